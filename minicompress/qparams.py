"""Which scale and which zero point: how real numbers are to be laid onto integer codes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import (
    Array,
    DType,
    Value,
    cast_finite,
    choice,
    finite_array,
    flag,
    frozen,
    integer,
    integer_array,
    normal_axis,
    real,
)
from minicompress.errors import CompressionError
from minicompress.integers import code_range, qparam_shape, spread

METHODS = ("minmax", "percentile", "mse")


@dataclass(frozen=True, eq=False, repr=False)
class QParams(Value):
    """Everything that turns numbers into codes; `quantize` and `fake_quantize` take it.

    Parameters
    ----------
    scale : float ndarray, positive and finite
        Of the dtype of the arrays it is for. Shape ``()``; ``(channels,)`` with `axis`; with
        `block_size` one per block along `axis`.
    zero_point : integer ndarray of the shape of `scale`
        The code of 0.0.
    num_bits : int from 2 to 16
    signed, narrow_range : bool
        Codes from ``-2**(num_bits - 1)`` on, or from 0 on; `narrow_range` leaves the lowest out.
    axis, block_size : int or None
    """

    scale: Array
    zero_point: Array
    num_bits: int = 8
    signed: bool = True
    narrow_range: bool = False
    axis: int | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        scale = finite_array(self.scale, "scale")
        zero_point = integer_array(self.zero_point, "zero_point").astype(np.int64, copy=False)
        if not (scale > 0).all():
            raise CompressionError("scale must be positive")
        if scale.shape != zero_point.shape:
            raise CompressionError(
                f"zero_point must have the shape {scale.shape} of scale, not {zero_point.shape}"
            )
        object.__setattr__(self, "scale", frozen(scale))
        object.__setattr__(self, "zero_point", frozen(zero_point))
        integer(self.num_bits, "num_bits", 2, 16)
        flag(self.signed, "signed")
        flag(self.narrow_range, "narrow_range")
        if self.block_size is not None:
            integer(self.block_size, "block_size", 1)

    @property
    def qmin(self) -> int:
        """The lowest code in use."""
        return code_range(self.num_bits, self.signed)[0] + int(self.narrow_range)

    @property
    def qmax(self) -> int:
        """The highest code in use."""
        return code_range(self.num_bits, self.signed)[1]

    def for_array(self, array: Array) -> tuple[Array, Array]:
        """Scale and zero point as arrays that broadcast against `array`, both in float64."""
        axis = None if self.axis is None else normal_axis(self.axis, "axis", array.ndim)
        wanted = qparam_shape(array.shape, axis, self.block_size)
        if self.scale.shape != wanted or self.scale.dtype != array.dtype:
            raise CompressionError(
                f"qparams must have scales of shape {wanted} and dtype {array.dtype} for an array "
                f"of shape {array.shape}, not {self.scale.shape} and {self.scale.dtype}"
            )
        scale = spread(self.scale, array.shape, axis, self.block_size)
        zero_point = spread(self.zero_point, array.shape, axis, self.block_size)
        return scale.astype(np.float64), zero_point.astype(np.float64)


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
        them (by magnitude where symmetric, cut at both ends where affine); or the one that has the
        least squared error of 96 shrunken ranges, the whole one among them.
    percentile : float in (0, 100]
        How much "percentile" keeps, in per cent.
    power_of_two : bool
        Round the scales up to powers of two. The error bound s/2 then holds without any slack.
    preserve_zero : bool
        Widen the range to hold 0.0, which then has a code of its own and decodes to 0.0. With
        False an affine zero point may lie outside the codes.

    Returns
    -------
    QParams
        Scales in the dtype of `weight`, never below its smallest normal number.

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
    bits = integer(num_bits, "num_bits", 2, 16)
    flag(symmetric, "symmetric")
    flag(power_of_two, "power_of_two")
    choice(method, "method", METHODS)
    kept = real(percentile, "percentile", 0, 100) / 100
    if kept == 0:
        raise CompressionError("percentile must be above 0: nothing would be kept")
    if symmetric and not flag(preserve_zero, "preserve_zero"):
        raise CompressionError("preserve_zero=False needs symmetric=False: symmetric codes hold 0")
    if axis is not None:
        axis = normal_axis(axis, "axis", w.ndim)
        if block_size is None and w.ndim == 1:
            raise CompressionError(
                f"axis={axis} names the channels of a weight, but shape {w.shape} has none; "
                "quantize the array before it is pruned or flattened, or per tensor"
            )
    shape = qparam_shape(w.shape, axis, block_size)
    one = QParams(
        np.ones((), w.dtype), np.zeros((), np.int64), bits, flag(signed, "signed"), narrow_range
    )
    scales, zeros = [], []
    for group in _groups(w.astype(np.float64), axis, block_size):
        low, high = _range(group, method, kept, symmetric, preserve_zero)
        shrinks = np.linspace(1.0, 0.05, 96) if method == "mse" and group.size else [1.0]
        tried = [
            _fit(low * f, high * f, one, symmetric, power_of_two, preserve_zero) for f in shrinks
        ]
        errors = [_squared_error(group, s, z, one) for s, z in tried] if len(tried) > 1 else [0.0]
        scale, zero_point = tried[int(np.argmin(errors))]
        scales.append(scale)
        zeros.append(zero_point)
    return QParams(
        np.array(scales, w.dtype).reshape(shape),
        np.array(zeros, np.int64).reshape(shape),
        bits,
        one.signed,
        one.narrow_range,
        axis,
        block_size,
    )


def fake_quantize(weight: ArrayLike, qparams: QParams) -> Array:
    """Quantize and decode at once: what training with quantization in view sees.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
    qparams : QParams
        Its scales of the dtype of `weight`.

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
    >>> q = QParams(np.array(0.5), np.array(0), num_bits=2)
    >>> fake_quantize(np.array([-9.0, -0.3, 0.2, 9.0]), q).tolist()
    [-1.0, -0.5, 0.0, 0.5]
    """
    w = finite_array(weight, "weight")
    scale, zero_point = qparams.for_array(w)
    steps = nearest_codes(w, qparams) - zero_point
    with np.errstate(over="ignore", under="ignore"):
        return cast_finite(steps * scale, w.dtype)


def nearest_codes(w: Array, qparams: QParams) -> Array:
    """The nearest codes, computed in float64 for every dtype, as float64 integers."""
    scale, zero_point = qparams.for_array(w)
    with np.errstate(over="ignore", under="ignore"):
        steps = np.rint(w.astype(np.float64) / scale)
    return np.asarray(np.clip(steps + zero_point, qparams.qmin, qparams.qmax))


def _groups(w: Array, axis: int | None, block_size: int | None) -> Iterator[Array]:
    """The entries that share a scale, as 1-D arrays in the C order of the scales."""
    if axis is None:
        yield w.ravel()
    elif block_size is None:
        yield from np.moveaxis(w, axis, 0).reshape(w.shape[axis], w.size // max(w.shape[axis], 1))
    else:
        starts = range(0, w.shape[axis], block_size)
        blocks = [np.take(w, range(s, min(s + block_size, w.shape[axis])), axis) for s in starts]
        for index in np.ndindex(qparam_shape(w.shape, axis, block_size)):
            others = (*index[:axis], slice(None), *index[axis + 1 :])
            yield blocks[index[axis]][others]


def _range(
    group: Array, method: str, kept: float, symmetric: bool, preserve_zero: bool
) -> tuple[float, float]:
    """The least and the largest number that the codes are to reach."""
    if group.size == 0:
        return 0.0, 0.0
    if method == "percentile" and symmetric:
        magnitudes = np.sort(np.abs(group))
        top = float(magnitudes[math.ceil(kept * group.size) - 1])
        return -top, top
    entries = np.sort(group) if method == "percentile" else group
    if method == "percentile":
        cut = (group.size - math.ceil(kept * group.size)) // 2
        entries = entries[cut : group.size - cut]
    low, high = float(entries.min()), float(entries.max())
    return (min(low, 0.0), max(high, 0.0)) if preserve_zero else (low, high)


def _fit(
    low: float,
    high: float,
    codes: QParams,
    symmetric: bool,
    power_of_two: bool,
    preserve_zero: bool,
) -> tuple[float, int]:
    """Scale and zero point for the range [low, high]."""
    dtype, steps = codes.scale.dtype, codes.qmax - codes.qmin
    half = 2 ** (codes.num_bits - 1) - 1
    if symmetric:
        scale = max(-low, high) / half
        return _as_scale(scale, dtype, power_of_two), 0 if codes.signed else half + 1
    if low == high and not preserve_zero and low != 0:
        # One value: a code one step away from the zero point is that value exactly.
        scale = _as_scale(abs(low), dtype, power_of_two)
        return scale, codes.qmin - 1 if low > 0 else codes.qmax + 1
    scale = _as_scale(high / steps - low / steps, dtype, power_of_two)
    zero_point = round(codes.qmin - low / scale)
    if preserve_zero:
        zero_point = min(max(zero_point, codes.qmin), codes.qmax)
    return scale, zero_point


def _as_scale(scale: float, dtype: DType, power_of_two: bool) -> float:
    """A scale rounded to its dtype: at least the smallest normal number, for 0 is no scale."""
    info = np.finfo(dtype)
    scale = max(scale, float(info.tiny))
    if power_of_two:
        mantissa, exponent = math.frexp(scale)
        exponent = exponent - 1 if mantissa == 0.5 else exponent
        return math.ldexp(1.0, min(exponent, int(info.maxexp) - 1))
    return float(np.asarray(scale).astype(dtype))


def _squared_error(group: Array, scale: float, zero_point: int, codes: QParams) -> float:
    # In units of the largest magnitude: only the order of the errors matters, and 1e200 squared
    # has none.
    unit = float(np.abs(group).max()) or 1.0
    with np.errstate(over="ignore", under="ignore"):
        steps = np.clip(np.rint(group / scale) + zero_point, codes.qmin, codes.qmax) - zero_point
        error = (group - steps * scale) / unit
        return float(error @ error)
