"""Which scale and which zero point: how real numbers are to be laid onto integer codes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import (
    Array,
    DType,
    Value,
    as_float,
    as_int,
    choice,
    finite_array,
    flag,
    frozen,
    normal_axis,
)
from minicompress.errors import CompressionError
from minicompress.integers import (
    check_scale_dtype,
    code_range,
    levels,
    qparam_shape,
    scale_dtypes,
    spread,
    zero_points,
)

METHODS = ("minmax", "percentile", "mse")

SHRINKS = tuple(np.linspace(1.0, 0.05, 96).tolist())
"""By what "mse" shrinks a range, both ends alike. The first is the whole range."""

ENDS = tuple(0.75**k for k in range(12))
"""By what it shrinks the low end and the high end of an affine range: all 144 pairs."""

CACHED = 1 << 14
"""Entries that "mse" looks at together: few enough to stay in the cache."""

FARTHEST_ZERO = 2**30
"""Where preserve_zero=False stops: a zero point no farther than this from the codes fits int32."""


class Grid(NamedTuple):
    """The levels ``k * scale``, low <= k <= high, that an array is rounded to.

    In float64, but the scale in its own dtype; they broadcast against the array. The integer k, a
    code less its zero point, is called steps: they are the same for signed and unsigned codes.
    """

    scale: Array
    low: Array
    high: Array
    zero_point: Array

    def nearest(self, x: Array) -> Array:
        """Steps to the nearest level, ties to even: computed in float64, whatever x is."""
        with np.errstate(over="ignore", under="ignore"):
            steps = np.rint(x / self.scale)
        return np.asarray(np.clip(steps, self.low, self.high) + 0.0)  # and no -0.0

    def levels(self, steps: Array, dtype: DType) -> Array:
        """The numbers so many steps from zero, rounded as `decode` rounds them."""
        return levels(steps, self.scale, dtype)


@dataclass(frozen=True, eq=False, repr=False)
class QParams(Value):
    """Everything that turns numbers into codes; `quantize` and `fake_quantize` take it.

    Parameters
    ----------
    scale : float ndarray, positive and finite
        Of the dtype of the arrays it is for; for float16 ones of float32 or of float16. Shape
        ``()``; ``(channels,)`` with `axis`; with `block_size` one per block along `axis`.
    zero_point : integer ndarray of the shape of `scale`
        The code of 0.0. It may lie outside the codes, where the range does not hold 0.0. Left out,
        it is 0 for each scale.
    num_bits : int from 2 to 16
    signed, narrow_range : bool
        Codes from ``-2**(num_bits - 1)`` on, or from 0 on; `narrow_range` leaves the lowest out.
    axis, block_size : int or None
    """

    scale: Array
    zero_point: Array = None  # type: ignore[assignment]
    num_bits: int = 8
    signed: bool = True
    narrow_range: bool = False
    axis: int | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        scale = finite_array(self.scale, "scale")
        zero_point = zero_points(self.zero_point, scale).astype(np.int64, copy=False)
        if not (scale > 0).all():
            raise CompressionError("scale must be positive")
        if scale.shape != zero_point.shape:
            raise CompressionError(
                f"zero_point must have the shape {scale.shape} of scale, not {zero_point.shape}"
            )
        if zero_point.size and (zero_point.min() < -(2**31) or zero_point.max() >= 2**31):
            raise CompressionError(
                f"zero_point must fit int32, not reach from {zero_point.min()} to "
                f"{zero_point.max()}"
            )
        object.__setattr__(self, "scale", frozen(scale))
        object.__setattr__(self, "zero_point", frozen(zero_point))
        as_int(self.num_bits, "num_bits", 2, 16)
        flag(self.signed, "signed")
        flag(self.narrow_range, "narrow_range")
        if self.block_size is not None:
            as_int(self.block_size, "block_size", 1)

    @property
    def qmin(self) -> int:
        """The lowest code in use."""
        return code_range(self.num_bits, self.signed)[0] + int(self.narrow_range)

    @property
    def qmax(self) -> int:
        """The highest code in use."""
        return code_range(self.num_bits, self.signed)[1]

    def grid(self, array: Array) -> Grid:
        """The levels for the entries of `array`."""
        axis = None if self.axis is None else normal_axis(self.axis, "axis", array.ndim)
        shape, block_size = array.shape, self.block_size
        wanted, given = qparam_shape(shape, axis, block_size), self.scale.shape
        if given != wanted:
            raise CompressionError(
                f"qparams must have scales of shape {wanted} for an array {shape}, not {given}"
            )
        check_scale_dtype(self.scale, array.dtype)
        parts = (self.scale, self.zero_point)
        return self._grid(*(spread(part, shape, axis, block_size) for part in parts))

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
    preserve_zero: bool = True,
) -> QParams:
    """Choose the scale and the zero point that fit an array, per tensor, channel or block.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
        Any shape and layout; an empty one gets the smallest scale.
    num_bits : int from 2 to 16
    signed : bool
        Codes of two's complement, or from 0 on.
    symmetric : bool
        The zero point is the middle code (0, or ``2**(num_bits - 1)`` for unsigned codes) and the
        largest magnitude gets the highest code. Otherwise affine: the range from the least to the
        largest entry is spread over all codes.
    axis : int, optional
        The axis whose every index has a scale of its own; with `block_size` the one along which
        the blocks lie. Without `block_size` a 1-D array is refused: it has no channels.
    block_size : int, optional
        Entries along `axis` that share a scale; the last block may be ragged.
    narrow_range : bool
        Leave the lowest code out, so that -127 to 127 is used of int8.
    method : "minmax" | "percentile" | "mse"
        The range of the entries; the range that holds at least the fraction `percentile` / 100 of
        them (by magnitude where symmetric, cut at both ends where affine); or the range of least
        squared error: of the whole one, 95 shrunken by one factor, and where affine 144 with a
        factor for each end. Ends move towards 0.0, or the median if preserve_zero=False.
    percentile : float in (0, 100]
        How much "percentile" keeps, in per cent.
    power_of_two : bool
        Round the scales up to powers of two. The error bound s/2 then holds without any slack (but
        where the scale is below all numbers of the dtype of `weight`; and where the next power is
        beyond the dtype of the scales, for there it is rounded down).
    preserve_zero : bool
        Widen the range to hold 0.0, which then has a code of its own and decodes to 0.0. With
        False an affine zero point may lie outside the codes, by up to 2**30: what is narrower than
        that in relation to its distance from 0.0 gets coarser steps than it could have.

    Returns
    -------
    QParams
        Scales in the dtype of `weight`, in float32 for float16; never below the smallest normal
        number of that. The result for float16 is the one for the same numbers in float32: only
        what is decoded is rounded to float16 afterwards, and "mse" does not look at this rounding.

    Raises
    ------
    CompressionError
        Of what was said above; or preserve_zero=False for symmetric codes, which hold 0.0 anyway.

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
    w = finite_array(weight, "weight")
    bits = as_int(num_bits, "num_bits", 2, 16)
    flag(symmetric, "symmetric")
    flag(power_of_two, "power_of_two")
    choice(method, "method", METHODS)
    if as_float(percentile, "percentile", 0, 100) == 0:
        raise CompressionError("percentile must be above 0: nothing would be kept")
    if not flag(preserve_zero, "preserve_zero") and symmetric:
        raise CompressionError("preserve_zero=False needs symmetric=False: symmetric codes hold 0")
    if axis is not None:
        axis = normal_axis(axis, "axis", w.ndim)
        if block_size is None and w.ndim == 1:
            raise CompressionError(
                f"axis={axis} names the channels of a weight, but shape {w.shape} has none; "
                "quantize the array before it is pruned or flattened, or per tensor"
            )
    shape = qparam_shape(w.shape, axis, block_size)
    unit, zero = np.ones((), scale_dtypes(w.dtype)[0]), np.zeros((), np.int64)
    one = QParams(unit, zero, bits, flag(signed, "signed"), narrow_range)
    groups = _groups(w.astype(np.float64), axis, block_size)
    low, high = _ranges(groups, method, percentile, symmetric, preserve_zero)
    scale, zero_point = _fit(low, high, one, symmetric, power_of_two, preserve_zero)
    if method == "mse":
        least = _squared_errors(groups, one, scale, zero_point)
        # The range that keeps 0 per cent of the entries is the median.
        inner = 0.0 if preserve_zero else _ranges(groups, "percentile", 0, False, False)[0]
        for ends in _shrunken(low, high, inner, symmetric):
            tried = _fit(*ends, one, symmetric, power_of_two, preserve_zero)
            errors = _squared_errors(groups, one, *tried)
            scale = np.where(errors < least, tried[0], scale)
            zero_point = np.where(errors < least, tried[1], zero_point)
            least = np.minimum(errors, least)
    scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return replace(one, scale=scale, zero_point=zero_point, axis=axis, block_size=block_size)


def fake_quantize(weight: ArrayLike, qparams: QParams) -> Array:
    """Quantize and decode at once: what training with quantization in view sees.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
    qparams : QParams
        Its scales of the dtype of `weight`, or of float32 for float16.

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
    w = finite_array(weight, "weight")
    if not isinstance(qparams, QParams):
        raise CompressionError(f"qparams must be a QParams, not {qparams!r}")
    grid = qparams.grid(w)
    return grid.levels(grid.nearest(w.astype(np.float64)), w.dtype)


def _groups(w: Array, axis: int | None, block_size: int | None) -> Array:
    """The entries that share a scale as the rows of a matrix, in the C order of the scales.

    A row that has fewer entries than others, or none at all, is filled up with NaN. C order, so
    that sums do not depend on how the weight lies in memory.
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


def _ranges(
    groups: Array, method: str, percentile: float, symmetric: bool, preserve_zero: bool
) -> tuple[Array, Array]:
    """The least and the largest number that the codes are to reach, for every row."""
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
    low, high = np.nan_to_num(low), np.nan_to_num(high)
    return (np.minimum(low, 0.0), np.maximum(high, 0.0)) if preserve_zero else (low, high)


def _fit(
    low: Array,
    high: Array,
    codes: QParams,
    symmetric: bool,
    power_of_two: bool,
    preserve_zero: bool,
) -> tuple[Array, Array]:
    """Scales and zero points for the ranges [low, high]."""
    dtype, steps = codes.scale.dtype, codes.qmax - codes.qmin
    half = 2 ** (codes.num_bits - 1) - 1
    largest = np.maximum(-low, high)
    if symmetric:
        middle = 0 if codes.signed else half + 1
        scale = _as_scales(largest / half, dtype, power_of_two)
        return scale, np.full(scale.shape, middle, np.int64)
    wanted = high / steps - low / steps  # high - low may be inf
    # One value alone: the code one step away from the zero point is that value exactly.
    single = (low == high) & (low != 0) & (not preserve_zero)
    if not preserve_zero:
        largest = np.maximum(np.abs(low), np.abs(high))
        wanted = np.where(single, largest, np.maximum(wanted, largest / FARTHEST_ZERO))
    scale = _as_scales(wanted, dtype, power_of_two)
    with np.errstate(under="ignore"):
        zero_point = np.rint(codes.qmin - low / scale.astype(np.float64))
    if preserve_zero:
        zero_point = np.clip(zero_point, codes.qmin, codes.qmax)
    beside = np.where(low > 0, codes.qmin - 1, codes.qmax + 1)
    return scale, np.where(single, beside, zero_point).astype(np.int64)


def _shrunken(
    low: Array, high: Array, inner: float | Array, symmetric: bool
) -> Iterator[tuple[Array, Array]]:
    """The ranges that "mse" tries besides the whole one: within [low, high], and around `inner`."""
    pairs: list[tuple[float, ...]] = [(shrink, shrink) for shrink in SHRINKS[1:]]
    if not symmetric:
        # An end that is `inner` itself in every row, as behind a ReLU, does not move.
        moving = (ENDS if (end != inner).any() else ENDS[:1] for end in (low, high))
        pairs += itertools.product(*moving)
    for a, b in pairs:
        yield low * a + inner * (1 - a), high * b + inner * (1 - b)


def _as_scales(scales: Array, dtype: DType, power_of_two: bool) -> Array:
    """Scales in their dtype: at least the smallest normal number, for 0 is no scale."""
    info = np.finfo(dtype)
    scales = np.maximum(scales, float(info.tiny))
    if power_of_two:
        mantissa, exponent = np.frexp(scales)
        exponent = np.where(mantissa == 0.5, exponent - 1, exponent)
        scales = np.ldexp(1.0, np.minimum(exponent, int(info.maxexp) - 1))
    return scales.astype(dtype)


def _squared_errors(groups: Array, codes: QParams, scale: Array, zero_point: Array) -> Array:
    """The squared error of every row, in units of its largest entry: 1e200 squared has no order."""
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
