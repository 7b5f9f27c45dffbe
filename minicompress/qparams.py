"""The scale and the zero point of uniform quantization, chosen to fit an array."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from minicompress import arrays, integers
from minicompress.arrays import Array, DType, Value
from minicompress.errors import CompressionError, naming

METHODS = ("minmax", "percentile", "mse")

SHRINKS = tuple(np.linspace(1.0, 0.05, 96).tolist())
"""The factors by which "mse" shrinks both ends of a range. The first is the whole range."""

ENDS = tuple(0.75**k for k in range(12))
"""The factors by which it shrinks each end of an affine range: all 144 pairs."""

CACHED = 1 << 14
"""The number of entries that "mse" looks at together: few enough to stay in the cache."""


class Grid(NamedTuple):
    """The levels ``k * scale``, low <= k <= high, that an array is rounded to.

    The integer ``k = code - zero_point`` is called steps below. It is the same for signed and
    unsigned codes. All fields are float64, but `scale` has its own dtype. They broadcast against
    the array.
    """

    scale: Array
    low: Array
    high: Array
    zero_point: Array

    def nearest(self, x: Array) -> Array:
        """The steps of the nearest level, ties to even, computed in float64."""
        with np.errstate(over="ignore", under="ignore"):
            steps = np.rint(x / self.scale)
        return np.asarray(np.clip(steps, self.low, self.high) + 0.0)  # and no -0.0

    def levels(self, steps: Array, dtype: DType) -> Array:
        """``steps * scale``, rounded as `decode` rounds it."""
        return integers.levels(steps, self.scale, dtype)


@dataclass(frozen=True, eq=False, repr=False)
class QParams(Value):
    """All that turns numbers into codes. `quantize` and `fake_quantize` take it.

    Parameters
    ----------
    scale : float ndarray, positive and finite
        Of the dtype of the arrays it is for; for float16 arrays of float32 or of float16. Shape
        ``()``; ``(channels,)`` with `axis`; with `block_size` one per block along `axis`.
    zero_point : integer ndarray of the shape of `scale`
        The code of 0.0; 0 for each scale by default. `choose_qparams` always gives 0.0 a code. A
        zero point outside the codes is accepted, since files may hold one.
    num_bits : int from 2 to 16
    signed, narrow_range : bool
        The lowest code is ``-2**(num_bits - 1)`` if signed, else 0. `narrow_range` leaves it out.
    axis, block_size : int or None

    Raises
    ------
    CompressionError
        A scale is not positive, the shapes differ, or a field is out of range.
    """

    scale: Array
    zero_point: Array = None  # type: ignore[assignment]
    num_bits: int = 8
    signed: bool = True
    narrow_range: bool = False
    axis: int | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        scale = integers.positive_scale(self.scale)
        zero_point = integers.zero_points(self.zero_point, scale)
        arrays.check_range(zero_point, "zero_point", -(2**31), 2**31 - 1)
        if self.block_size is not None:
            arrays.as_int(self.block_size, "block_size", 1)
        self._set(
            scale=arrays.frozen(scale),
            zero_point=arrays.frozen(zero_point.astype(np.int64, copy=False)),
            num_bits=arrays.as_int(self.num_bits, "num_bits", 2, 16),
            signed=arrays.flag(self.signed, "signed"),
            narrow_range=arrays.flag(self.narrow_range, "narrow_range"),
        )

    @property
    def qmin(self) -> int:
        """The lowest code in use."""
        return integers.code_range(self.num_bits, self.signed)[0] + int(self.narrow_range)

    @property
    def qmax(self) -> int:
        """The highest code in use."""
        return integers.code_range(self.num_bits, self.signed)[1]

    def grid(self, array: Array) -> Grid:
        """The levels for the entries of `array`."""
        shape, block_size = array.shape, self.block_size
        with naming("qparams"):
            *parts, axis = integers.checked_params(
                self.scale, self.zero_point, shape, self.axis, block_size, array.dtype
            )
        return self._grid(*(integers.spread(part, shape, axis, block_size) for part in parts))

    def _grid(self, scale: Array, zero_point: Array) -> Grid:
        zero = zero_point.astype(np.float64)
        return Grid(scale, self.qmin - zero, self.qmax - zero, zero)


def choose_qparams(
    weight: ArrayLike,
    *,
    num_bits: int = 8,
    signed: bool = True,
    symmetric: bool = True,
    axis: int | None = None,
    block_size: int | None = None,
    narrow_range: bool = False,
    method: str = "minmax",
    percentile: float = 99.9,
    power_of_two: bool = False,
) -> QParams:
    """Choose the scale and the zero point that fit an array, per tensor, channel or block.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
        Any shape and layout. An empty array gets the smallest scale.
    num_bits : int from 2 to 16
    signed : bool
        Codes of two's complement if True, else codes from 0 on.
    symmetric : bool
        If True, the zero point is the middle code (0, or ``2**(num_bits - 1)`` for unsigned codes)
        and the largest magnitude gets the highest code. If False (affine), the range from the least
        to the largest entry is spread over all codes; it is widened to hold 0.0.
    axis : int, optional
        Every index of this axis gets a scale of its own. With `block_size` it is the axis along
        which the blocks lie. Without `block_size` a 1-D array is refused: it has no channels.
    block_size : int, optional
        The number of entries along `axis` that share a scale; the last block may be shorter.
    narrow_range : bool
        Leave the lowest code out: int8 codes are then -127 to 127.
    method : "minmax" | "percentile" | "mse"
        "minmax": the range of all entries. "percentile": the range that holds at least the fraction
        `percentile` / 100 of them, by magnitude if symmetric, cut at both ends if affine. "mse":
        the range of least squared error among the whole range, 95 that are shrunk by one factor,
        and if affine 144 with a factor for each end.
    percentile : float in (0, 100]
        Used by "percentile" alone.
    power_of_two : bool
        Round the scales up to powers of two. The error bound s/2 then holds without any slack, with
        two exceptions: a scale below all numbers of the dtype of `weight`, and a scale whose next
        power of two overflows, which is rounded down.

    Returns
    -------
    QParams
        Scales in the dtype of `weight`, or in float32 for float16; never below the smallest normal
        number of that dtype. 0.0 always has a code of its own and decodes to 0.0. The result for a
        float16 array is the one for the same numbers in float32.

    Raises
    ------
    CompressionError
        `weight` is not finite, or an option is out of range.

    Notes
    -----
    B. Jacob et al., *Quantization and training of neural networks for efficient
    integer-arithmetic-only inference* (2018), equation 1.

    Examples
    --------
    >>> q = choose_qparams(np.array([-2.0, 0.5, 3.0]), num_bits=4, symmetric=False)
    >>> round(float(q.scale), 4), int(q.zero_point)
    (0.3333, -2)
    """
    w = arrays.finite_array(weight, "weight")
    arrays.flag(symmetric, "symmetric")
    arrays.flag(power_of_two, "power_of_two")
    arrays.choice(method, "method", METHODS)
    if arrays.as_float(percentile, "percentile", 0, 100) == 0:
        raise CompressionError("percentile must be above 0: nothing would be kept")
    if axis is not None:
        axis = arrays.normal_axis(axis, "axis", w.ndim)
        if block_size is None and w.ndim == 1:
            raise CompressionError(
                f"axis={axis} names the channels of a weight, but shape {w.shape} has none; "
                "quantize the array before it is pruned or flattened, or per tensor"
            )
    shape = integers.qparam_shape(w.shape, axis, block_size)
    unit, zeros = np.ones(shape, integers.scale_dtypes(w.dtype)[0]), np.zeros(shape, np.int64)
    codes = QParams(unit, zeros, num_bits, signed, narrow_range, axis, block_size)
    groups = _groups(w.astype(np.float64), axis, block_size)
    low, high = _ranges(groups, method, percentile, symmetric)
    scale, zero_point = _fit(low, high, codes, symmetric, power_of_two)
    if method == "mse":
        least = _squared_errors(groups, codes, scale, zero_point)
        for a, b in _shrinks(low, high, symmetric):
            tried = _fit(low * a, high * b, codes, symmetric, power_of_two)
            errors = _squared_errors(groups, codes, *tried)
            scale = np.where(errors < least, tried[0], scale)
            zero_point = np.where(errors < least, tried[1], zero_point)
            least = np.minimum(errors, least)
    made = {"scale": scale.reshape(shape), "zero_point": zero_point.reshape(shape)}
    made = {name: arrays.freeze(part) for name, part in made.items()}
    return QParams.trusted(**vars(codes) | made)


def fake_quantize(weight: ArrayLike, qparams: QParams) -> Array:
    """Quantize and decode in one step, as in quantization-aware training.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
    qparams : QParams
        With scales of the dtype of `weight`, or of float32 for float16.

    Returns
    -------
    ndarray of the shape and dtype of `weight`
        Equal to ``decode(quantize(weight, qparams=qparams).rep)``.

    Raises
    ------
    CompressionError
        `weight` is not finite, or `qparams` is for another shape or dtype.

    Examples
    --------
    >>> q = QParams(np.array(0.5), num_bits=2)
    >>> fake_quantize(np.array([-9.0, -0.3, 0.2, 9.0]), q).tolist()
    [-1.0, -0.5, 0.0, 0.5]
    """
    w = arrays.finite_array(weight, "weight")
    if not isinstance(qparams, QParams):
        raise CompressionError(f"qparams must be a QParams, not {qparams!r}")
    grid = qparams.grid(w)
    return grid.levels(grid.nearest(w.astype(np.float64)), w.dtype)


def _groups(w: Array, axis: int | None, block_size: int | None) -> Array:
    """A matrix with one row for each scale: the entries that share it, in C order.

    A row with fewer entries than the others, or with none, is filled up with NaN. The order is
    fixed so that sums do not depend on the memory layout of the weight.
    """
    if axis is None:
        rows = w.reshape(1, w.size)
    elif block_size is None:
        channels = w.shape[axis]
        rows = np.moveaxis(w, axis, 0).reshape(channels, w.size // max(channels, 1))
    elif w.size == 0:
        rows = np.zeros((0, 1))
    else:
        width = min(block_size, w.shape[axis])
        missing = [(0, -n % width if i == axis else 0) for i, n in enumerate(w.shape)]
        padded = np.pad(w, missing, constant_values=np.nan)
        blocks = padded.reshape(*w.shape[:axis], -1, width, *w.shape[axis + 1 :])
        rows = np.moveaxis(blocks, axis + 1, -1).reshape(-1, width)
    return np.ascontiguousarray(rows) if rows.shape[1] else np.full((len(rows), 1), np.nan)


def _ranges(groups: Array, method: str, percentile: float, symmetric: bool) -> tuple[Array, Array]:
    """The least and the largest number that the codes must reach, for every row; 0.0 is between."""
    if method != "percentile":
        low, high = np.fmin.reduce(groups, axis=1), np.fmax.reduce(groups, axis=1)
    else:
        ordered = np.sort(np.abs(groups) if symmetric else groups, axis=1)  # NaN goes last
        sizes = np.count_nonzero(~np.isnan(groups), axis=1)
        kept = np.ceil(percentile * sizes / 100).astype(np.int64)
        cut = np.zeros_like(kept) if symmetric else (sizes - kept) // 2
        last = kept - 1 if symmetric else sizes - 1 - cut
        rows = np.arange(len(groups))
        low, high = ordered[rows, cut], ordered[rows, np.maximum(last, 0)]
    return np.minimum(np.nan_to_num(low), 0.0), np.maximum(np.nan_to_num(high), 0.0)


def _fit(
    low: Array, high: Array, codes: QParams, symmetric: bool, power_of_two: bool
) -> tuple[Array, Array]:
    """Scales and zero points for the ranges [low, high]."""
    dtype, steps = codes.scale.dtype, codes.qmax - codes.qmin
    if symmetric:
        half = 2 ** (codes.num_bits - 1) - 1
        scale = _as_scales(np.maximum(-low, high) / half, dtype, power_of_two)
        return scale, np.full(scale.shape, 0 if codes.signed else half + 1, np.int64)
    scale = _as_scales(high / steps - low / steps, dtype, power_of_two)  # high - low may be inf
    with np.errstate(under="ignore"):
        zero_point = np.rint(codes.qmin - low / scale.astype(np.float64))
    return scale, np.clip(zero_point, codes.qmin, codes.qmax).astype(np.int64)


def _shrinks(low: Array, high: Array, symmetric: bool) -> list[tuple[float, float]]:
    """The factors for the two ends of a range that "mse" tries besides the whole range."""
    pairs = [(shrink, shrink) for shrink in SHRINKS[1:]]
    if symmetric:
        return pairs
    # An end that is 0.0 in every row, as behind a ReLU, does not move.
    first, last = (ENDS if end.any() else ENDS[:1] for end in (low, high))
    return [*pairs, *itertools.product(first, last)]


def _as_scales(scales: Array, dtype: DType, power_of_two: bool) -> Array:
    """The scales in their dtype, at least its smallest normal number: 0 is not a scale."""
    info = np.finfo(dtype)
    scales = np.maximum(scales, float(info.tiny))
    if power_of_two:
        mantissa, exponent = np.frexp(scales)
        exponent = np.where(mantissa == 0.5, exponent - 1, exponent)
        scales = np.ldexp(1.0, np.minimum(exponent, int(info.maxexp) - 1))
    return scales.astype(dtype)


def _squared_errors(groups: Array, codes: QParams, scale: Array, zero_point: Array) -> Array:
    """The squared error of every row, in units of its largest entry: no square overflows."""
    rows, columns = groups.shape
    unit = np.nan_to_num(np.fmax.reduce(np.abs(groups), axis=1, keepdims=True))
    unit[unit == 0] = 1.0
    total, height = np.zeros(rows), max(CACHED // columns, 1)
    for i, j in itertools.product(range(0, rows, height), range(0, columns, CACHED)):
        part = slice(i, i + height)
        x = groups[part, j : j + CACHED]
        grid = codes._grid(scale[part, np.newaxis], zero_point[part, np.newaxis])
        with np.errstate(over="ignore", under="ignore"):
            errors = (x - grid.levels(grid.nearest(x), scale.dtype)) / unit[part]
            errors[np.isnan(errors)] = 0.0
            total[part] += np.sum(errors * errors, axis=1)
    return total
