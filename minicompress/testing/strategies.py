"""Arrays for property tests: drawn entry by entry, so that a failure shrinks to a readable one.

A weight is drawn from cells: every dtype with every hard kind of content and every class of shape
is a cell of its own, so that a test can walk through all of them instead of hoping to meet them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from hypothesis.strategies import SearchStrategy

from minicompress.arrays import Array, DType

DTYPES: tuple[DType, ...] = (np.dtype("f8"), np.dtype("f4"), np.dtype("f2"))

KINDS = ("integers", "ordinary", "zeros", "constant", "ties", "denormal", "huge", "any")
"""Contents, simplest first.

integers: small ones, many of them equal; ordinary: of magnitude up to 4; zeros: of both signs;
constant: one value everywhere; ties: one magnitude in both signs and its halves; denormal: below
the smallest normal number; huge: up to the largest finite one; any: all finite ones.
"""

LAYOUTS = ("C", "Fortran", "strided", "reversed", "read-only", "byte-swapped")


def elements(kind: str, dtype: DType) -> SearchStrategy[float]:
    """Single entries of a kind; "constant" and "ties" are of whole arrays."""
    info = np.finfo(dtype)
    width: Any = 8 * dtype.itemsize
    top = float(info.max)
    match kind:
        case "integers":
            return st.integers(-3, 3).map(float)
        case "ordinary":
            return st.floats(-4, 4, width=width, allow_subnormal=False)
        case "zeros":
            return st.sampled_from([0.0, -0.0])
        case "denormal":
            return st.integers(-40, 40).map(lambda k: k * float(info.smallest_subnormal))
        case "huge":
            exact, drawn = [top, top / 2, top / 4], st.floats(top / 8, top, width=width)
            magnitude = st.sampled_from(exact) | drawn
            return st.tuples(magnitude, st.sampled_from([1, -1])).map(math.prod)
    return st.floats(width=width, allow_nan=False, allow_infinity=False)


def contents(kind: str, dtype: DType, shape: tuple[int, ...]) -> SearchStrategy[Array]:
    """Arrays of a kind."""
    if kind == "constant":
        values = st.one_of(elements("integers", dtype), elements("any", dtype))
        return values.map(lambda value: np.full(shape, value, dtype))
    if kind == "ties":
        # Halves of a step and equal magnitudes: what rounds to even and what is cut by index.
        unit = st.sampled_from([1.0, 1.5, 7.0, 0.1]).map(lambda u: float(dtype.type(u)))
        codes = npst.arrays(np.int8, shape, elements=st.integers(-4, 4), fill=st.nothing())
        return st.tuples(unit, codes).map(lambda p: np.asarray(p[0] / 2 * p[1], dtype))
    return npst.arrays(dtype, shape, elements=elements(kind, dtype), fill=st.nothing())


def shapes(
    extent: str, min_ndim: int, max_ndim: int, max_size: int
) -> SearchStrategy[tuple[int, ...]]:
    """Shapes of a class: "empty", "one" entry, or "some"."""
    if extent == "one":
        return st.integers(min_ndim, max_ndim).map(lambda n: (1,) * n)
    low = 0 if extent == "empty" else 1
    dims, high = (max(min_ndim, low ^ 1), max_ndim), 7 if max_ndim <= 2 else 5
    drawn = npst.array_shapes(min_dims=dims[0], max_dims=dims[1], min_side=low, max_side=high)
    if extent == "empty":
        return st.tuples(drawn, st.integers(0, max_ndim - 1)).map(
            lambda p: tuple(0 if i == p[1] % len(p[0]) else n for i, n in enumerate(p[0]))
        )
    return drawn.filter(lambda shape: math.prod(shape) <= max_size)


def weights(
    *,
    dtypes: Sequence[DType] = DTYPES,
    kinds: Sequence[str] = KINDS,
    min_ndim: int = 0,
    max_ndim: int = 4,
    max_size: int = 60,
    empty: bool = True,
) -> SearchStrategy[Array]:
    """Arrays such as a compressor meets, and the hard ones, drawn entry by entry.

    Parameters
    ----------
    dtypes : sequence of numpy.dtype
        float64, float32 and float16 unless told.
    kinds : sequence of str
        Of `KINDS`.
    min_ndim, max_ndim : int
        0 to 4 dimensions unless told.
    max_size : int
        Entries at most, 60 unless told: what exact rational arithmetic checks in no time.
    empty : bool
        Whether arrays without entries belong to the domain.

    Returns
    -------
    strategy of ndarray
        C-contiguous and writable; `in_layout` gives the others. Its attribute ``cells`` is a list
        with a strategy for every dtype, kind and class of shape: `check_compressor` walks through
        all of them.

    Examples
    --------
    >>> len(weights(min_ndim=2, max_ndim=2).cells)  # 3 dtypes, 8 kinds, 2 extents; and 3 empty
    51
    """
    extents = ("some", "one", "empty") if empty and max_ndim > 0 else ("some", "one")
    cells = [
        shapes(extent, min_ndim, max_ndim, max_size).flatmap(
            lambda shape, kind=kind, dtype=dtype: contents(kind, dtype, shape)  # type: ignore[misc]
        )
        for extent in extents
        for kind in (kinds if extent != "empty" else kinds[:1])
        for dtype in dtypes
    ]
    strategy = st.one_of(cells)
    strategy.cells = cells  # type: ignore[attr-defined]
    return strategy


def matrices(**domain: Any) -> SearchStrategy[Array]:
    """`weights` of two dimensions: (in, out), as of a dense layer."""
    return weights(min_ndim=2, max_ndim=2, **domain)


def conv_kernels(**domain: Any) -> SearchStrategy[Array]:
    """`weights` of four dimensions: (kh, kw, in, out), as of a convolution."""
    return weights(min_ndim=4, max_ndim=4, **domain)


def in_layout(array: Array, layout: str) -> Array:
    """The same entries in another layout of `LAYOUTS`; a new array, never a view of `array`."""
    if layout == "Fortran":
        return np.array(array, order="F")
    if layout == "strided" and array.ndim > 0:
        spaced = np.zeros([2 * n for n in array.shape], array.dtype)
        view = spaced[tuple(slice(None, None, 2) for _ in array.shape)]
        view[...] = array
        return view
    if layout == "reversed" and array.ndim > 0:
        flip = tuple(slice(None, None, -1) for _ in array.shape)
        return np.array(array[flip])[flip]
    if layout == "byte-swapped":
        return array.astype(array.dtype.newbyteorder())
    copy = np.array(array, order="C")
    if layout == "read-only":
        copy.flags.writeable = False
    return copy
