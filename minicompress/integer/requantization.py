"""Fixed-point requantization: from the accumulators of one layer to the codes of the next.

Each channel's accumulators are multiplied by one real number, M = input scale * weight scale /
output scale. `quantize_multiplier` makes it an integer and a shift, and `requantize` applies them
in integers alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, as_int, check_range, finite_array, integer_array
from minicompress.errors import CompressionError

LOWEST, HIGHEST = -128, 127
"""The codes of int8."""

MOST_SHIFT = 62
"""The largest shift: with it a product of 62 bits and the half that rounds it still fit int64."""


def quantize_multiplier(factor: ArrayLike) -> tuple[Array, Array]:
    """A positive factor as ``multiplier / 2**shift``, with a multiplier of 31 bits.

    Parameters
    ----------
    factor : float64 scalar or ndarray, positive, below 2**29

    Returns
    -------
    multiplier : ndarray of int32
        In [2**30, 2**31). Rounded to nearest, ties to even: its relative error is at most 2**-31.
    shift : ndarray of int32
        In [1, 62]. A factor below 2**-32 gets the smallest pair, 2**30 and 62. It turns every
        accumulator into 0, as the factor itself does.

    Raises
    ------
    CompressionError
        `factor` is not float64, not positive or too large.

    Notes
    -----
    This is TFLite's QuantizeMultiplier, except that all shifts are to the right: TFLite's shift is
    ``31 - shift``.

    Examples
    --------
    >>> multiplier, shift = quantize_multiplier([0.75, 1.0])
    >>> multiplier * 2.0**-shift
    array([0.75, 1.  ])
    """
    real = finite_array(factor, "factor")
    if real.dtype != np.float64:
        raise CompressionError(f"factor must be of dtype float64, not {real.dtype}")
    if not ((real > 0) & (real < 2**29)).all():
        raise CompressionError("factor must be positive and less than 2**29")
    mantissa, exponent = np.frexp(real)
    multiplier = np.rint(mantissa * 2.0**31).astype(np.int64)
    carried = multiplier == 2**31
    shift = 31 - exponent - carried
    small = shift > MOST_SHIFT
    multiplier = np.where(carried | small, 2**30, multiplier)
    return multiplier.astype(np.int32), np.where(small, MOST_SHIFT, shift).astype(np.int32)


def requantize(
    accumulators: ArrayLike,
    multiplier: ArrayLike,
    shift: ArrayLike,
    *,
    zero_point: int = 0,
    low: int = LOWEST,
    high: int = HIGHEST,
) -> Array:
    """Scale accumulators down to codes: ``clamp(round(a * multiplier / 2**shift) + zero_point)``.

    Parameters
    ----------
    accumulators : (..., C) integer ndarray
        Within int32.
    multiplier : integer, or (C,) ndarray of them, in [2**30, 2**31)
    shift : integer, or (C,) ndarray of them, in [1, 62]
    zero_point, low, high : int, -128 <= low <= high <= 127
        The code of 0.0, and the range to which codes are clamped. ReLU is ``low = zero_point``.

    Returns
    -------
    ndarray of int8
        The shape of `accumulators`.

    Raises
    ------
    CompressionError
        An argument is not as above.

    Notes
    -----
    In integers, where ``n >> s`` is floor(n / 2**s), also for negative n::

        code = min(max(((a * multiplier + 2**(shift - 1)) >> shift) + zero_point, low), high)

    The product fits in int64, the sum with the half is below 2**63, and ties are rounded up. This
    is TFLite's MultiplyByQuantizedMultiplier under TFLITE_SINGLE_ROUNDING. (gemmlowp's scheme, in
    Jacob et al., *Quantization and training of neural networks for efficient integer-arithmetic-
    only inference*, 2018, rounds twice, so its result can differ by one.) In C, the shift of a
    negative number depends on the compiler. The number n before the shift is at least -2**62, so
    portable C99 is
    ``(int64_t)(((uint64_t)n + (UINT64_C(1) << 62)) >> shift) - (INT64_C(1) << (62 - shift))``.

    Examples
    --------
    >>> half, shift = quantize_multiplier(0.5)
    >>> requantize(np.array([-3, -1, 0, 1, 3, 1000]), half, shift)
    array([ -1,   0,   0,   1,   2, 127], dtype=int8)
    """
    a = integer_array(accumulators, "accumulators")
    if a.size and a.dtype != np.int32 and (int(a.min()) < -(2**31) or int(a.max()) >= 2**31):
        raise CompressionError(
            f"accumulators must fit int32, not reach from {a.min()} to {a.max()}"
        )
    m = _per_channel(multiplier, "multiplier", a, 2**30, 2**31 - 1)
    s = _per_channel(shift, "shift", a, 1, MOST_SHIFT)
    as_int(low, "low", LOWEST, HIGHEST)
    as_int(high, "high", low, HIGHEST)
    as_int(zero_point, "zero_point", LOWEST, HIGHEST)
    n = a.astype(np.int64)  # then in place: new memory costs more than the work
    n *= m
    return rounded(n, s, zero_point, low, high)


def rounded(n: Array, shift: Array | int, zero_point: int, low: int, high: int) -> Array:
    """``clamp(round(n / 2**shift) + zero_point)``; `n`, of int64, is overwritten."""
    n += np.left_shift(np.int64(1), np.asarray(shift, np.int64) - 1)
    n >>= shift
    n += zero_point
    return np.clip(n, low, high, out=n).astype(np.int8)


def _per_channel(value: ArrayLike, name: str, a: Array, low: int, high: int) -> Array:
    """One number, or one for every channel, as int64; its range is checked."""
    array = integer_array(value, name)
    if array.ndim and array.shape != a.shape[-1:]:
        raise CompressionError(
            f"{name} must be one integer or one for each channel of accumulators of shape "
            f"{a.shape}, not of shape {array.shape}"
        )
    check_range(array, name, low, high)
    return array.astype(np.int64)
