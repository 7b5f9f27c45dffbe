"""The arithmetic of uniform quantization: real numbers as integer codes, and back.

``code = saturate(round(x / scale) + zero_point)``, ties to even, and
``x' = (code - zero_point) * scale``. `quantize_linear` and `dequantize_linear` give the same
numbers as ONNX's QuantizeLinear and DequantizeLinear. The module `qparams` chooses scale and zero
point.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from minicompress import arrays
from minicompress.arrays import Array, DType
from minicompress.errors import CompressionError


def code_range(num_bits: int, signed: bool) -> tuple[int, int]:
    """The lowest and the highest code, of two's complement or of plain binary."""
    return (-(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1) if signed else (0, 2**num_bits - 1)


def qparam_shape(
    shape: tuple[int, ...], axis: int | None, block_size: int | None
) -> tuple[int, ...]:
    """The shape of scale and zero point for an array of `shape`: per array, channel or block."""
    if block_size is not None:
        if axis is None:
            raise CompressionError("block_size needs an axis along which the blocks lie")
        arrays.as_int(block_size, "block_size", 1)
        return (*shape[:axis], arrays.ceil_div(shape[axis], block_size), *shape[axis + 1 :])
    return () if axis is None else (shape[axis],)


def spread(
    parameter: Array, shape: tuple[int, ...], axis: int | None, block_size: int | None
) -> Array:
    """A scale or zero point as an array that broadcasts against one of `shape`."""
    if block_size is not None and axis is not None:
        n = shape[axis]
        return parameter.take(np.arange(n) // min(block_size, max(n, 1)), axis)
    if axis is None:
        return parameter
    return parameter.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def scale_dtypes(dtype: DType) -> tuple[DType, ...]:
    """The dtypes that scales of an array may have; the library chooses the first.

    It is float32 for float16 arrays, and the dtype of the array otherwise. A float16 scale has only
    11 binary digits, and fewer below 6.1e-5. Where it is rounded down, the largest entries are
    clipped. Weights of standard deviation 0.001, quantized to 16 bits per channel, then lose 8 per
    cent of their norm; with float32 scales they lose 0.001 per cent.
    """
    return (np.dtype(np.float32), dtype) if dtype == np.float16 else (dtype,)


def checked_params(
    scale: ArrayLike,
    zero_point: ArrayLike | None,
    shape: tuple[int, ...],
    axis: int | None,
    block_size: int | None,
    dtype: DType | None = None,
) -> tuple[Array, Array, int | None]:
    """Scales, zero points (0 if None) and the axis from the front, which fit an array of `shape`.

    With `dtype`, which is that of the array, the scales must be of one of its `scale_dtypes`.
    """
    axis = None if axis is None else arrays.normal_axis(axis, "axis", len(shape))
    wanted = qparam_shape(shape, axis, block_size)
    s = positive_scale(scale)
    if s.shape != wanted:
        raise CompressionError(
            f"scale must have shape {wanted} for an array of shape {shape}, axis={axis} and "
            f"block_size={block_size}, not {s.shape}"
        )
    if dtype is not None and s.dtype not in (dtypes := scale_dtypes(dtype)):
        names = " or ".join(map(str, dtypes))
        raise CompressionError(f"scale must be of dtype {names} for {dtype}, not {s.dtype}")
    return s, zero_points(zero_point, s), axis


def positive_scale(scale: ArrayLike) -> Array:
    """Scales, refused unless they are finite and positive."""
    s = arrays.finite_array(scale, "scale")
    if not (s > 0).all():
        raise CompressionError("scale must be positive")
    return s


def zero_points(zero_point: ArrayLike | None, scale: Array) -> Array:
    """One zero point for each scale; if None, 0."""
    zero_point = np.zeros(scale.shape, np.int64) if zero_point is None else zero_point
    z = arrays.integer_array(zero_point, "zero_point")
    if z.shape != scale.shape:
        raise CompressionError(
            f"zero_point must have shape {scale.shape}, as scale has, not {z.shape}"
        )
    return z


def levels(steps: Array, scale: Array, dtype: DType) -> Array:
    """``steps * scale``, rounded to the dtype of `scale`, and then to `dtype` if it differs.

    It differs where float16 arrays have float32 scales. ONNX rounds twice there too. What is too
    large becomes the largest finite value.
    """
    with np.errstate(over="ignore", under="ignore"):
        product = np.asarray(steps * scale.astype(np.float64))
        for rounded in dict.fromkeys((scale.dtype, dtype)):
            product = arrays.cast_finite(product, rounded)
    return product


def code_dtype(num_bits: int, signed: bool) -> DType:
    """The narrowest integer dtype that holds the codes."""
    return np.dtype(f"{'int' if signed else 'uint'}{8 if num_bits <= 8 else 16}")


def quantize_linear(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike | None = None,
    *,
    num_bits: int = 8,
    signed: bool = True,
    axis: int | None = None,
    block_size: int | None = None,
) -> Array:
    """ONNX's QuantizeLinear: ``saturate(round(x / scale) + zero_point)``, ties to even.

    Parameters
    ----------
    x : ndarray of float16, float32 or float64, without NaN
        Infinite entries saturate.
    scale : positive float ndarray of the dtype of `x`, or of float32 for float16 `x`
        A Python float is taken as float32 then. Shape ``()``, ``(x.shape[axis],)``, or with
        `block_size` the shape of `x` but for ``ceil(n / block_size)`` along `axis`.
    zero_point : integer ndarray of the shape of `scale`, in the range of the codes
        Left out, it is 0 for each scale, as it is in ONNX.
    num_bits : int from 2 to 16
    signed : bool
    axis, block_size : int, optional

    Returns
    -------
    ndarray of int8, uint8, int16 or uint16
        The shape of `x`. As in ONNX, the division is made in the dtype of `scale`. It is a
        division: the product with the reciprocal would round some ties to another code.

    Raises
    ------
    CompressionError
        `x` holds NaN, a dtype or shape is not as above, or a zero point is outside the codes.

    Examples
    --------
    >>> quantize_linear(np.array([0.5, 1.5, 2.5, 1e9]), 1.0).tolist()
    [0, 2, 2, 127]
    """
    array = arrays.float_array(x, "x")
    if np.isnan(array).any():
        raise CompressionError("x must not hold NaN")
    bits = arrays.as_int(num_bits, "num_bits", 2, 16)
    low, high = code_range(bits, arrays.flag(signed, "signed"))
    # A Python float takes the dtype that the library would choose for the array.
    chosen = scale_dtypes(array.dtype)[0]
    scale = np.asarray(scale, chosen) if type(scale) is float else scale
    s, z, axis = checked_params(scale, zero_point, array.shape, axis, block_size, array.dtype)
    arrays.check_range(z, "zero_point", low, high)
    s, z = (spread(part, array.shape, axis, block_size) for part in (s, z))
    with np.errstate(over="ignore", under="ignore"):
        steps = np.rint(array.astype(s.dtype, copy=False) / s).astype(np.float64)
    return np.asarray(np.clip(steps + z, low, high)).astype(code_dtype(num_bits, signed))


def dequantize_linear(
    codes: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike | None = None,
    *,
    axis: int | None = None,
    block_size: int | None = None,
    dtype: DType | None = None,
) -> Array:
    """ONNX's DequantizeLinear: ``(codes - zero_point) * scale``, rounded once.

    It is rounded twice, to float64 and to the dtype, where the difference has more than 29 bits.

    Parameters
    ----------
    codes : ndarray of integers
        The subtraction is made in a wider type: in int8, 100 - (-100) would be -56.
    scale : positive float ndarray
        Shapes as in `quantize_linear`.
    zero_point : integer ndarray of the shape of `scale`
        Left out, it is 0 for each scale.
    axis, block_size : int, optional
    dtype : numpy.dtype, optional
        Of the result (ONNX's output_dtype); by default that of `scale`. If it is another one, the
        result is rounded to the dtype of `scale` first.

    Returns
    -------
    ndarray of `dtype`
        What would overflow becomes the largest finite value.

    Raises
    ------
    CompressionError
        A dtype or shape is wrong, or a scale is not positive.

    Examples
    --------
    >>> dequantize_linear(np.array([-100, 100], np.int8), 0.5, -100).tolist()
    [0.0, 100.0]
    """
    array = arrays.integer_array(codes, "codes")
    s, z, axis = checked_params(scale, zero_point, array.shape, axis, block_size)
    return decoded_levels(array, s, z, axis, block_size, np.dtype(dtype or s.dtype))


def decoded_levels(
    codes: Array,
    scale: Array,
    zero_point: Array,
    axis: int | None,
    block_size: int | None,
    dtype: DType,
) -> Array:
    """`dequantize_linear` of arguments that were checked before."""
    s, z = (spread(part, codes.shape, axis, block_size) for part in (scale, zero_point))
    return levels(_difference(codes, z, "codes")[0], s, dtype)


def matmul_integer(
    a: ArrayLike,
    b: ArrayLike,
    a_zero_point: ArrayLike | None = None,
    b_zero_point: ArrayLike | None = None,
) -> Array:
    """The exact product of two integer matrices, zero points subtracted.

    Parameters
    ----------
    a : (m, k) ndarray of integers
    b : (k, n) ndarray of integers
    a_zero_point : int, or (m,) or (m, 1) ndarray of integers
        One for the matrix or one per row; 0 by default.
    b_zero_point : int, or (n,) ndarray of integers
        One for the matrix or one per column; 0 by default.

    Returns
    -------
    (m, n) ndarray of int32
        Or of int64 where the largest possible sum does not fit int32.

    Raises
    ------
    CompressionError
        The shapes do not match, a dtype is not an integer one, or the numbers are so large that
        int64 could overflow.

    Notes
    -----
    A product of integers in float32 is exact while no partial sum exceeds 2**24. So k is split
    into blocks of ``floor(2**24 / (max|a| max|b|))``. Each block is a fast float32 product, and the
    blocks are added as integers. Where a single product is too large for that, float64 and 2**53
    are used. The result is the same for every BLAS and every number of threads.

    Examples
    --------
    >>> a, b = np.array([[200, 100]], np.uint8), np.array([[7], [9]], np.uint8)
    >>> matmul_integer(a, b, a_zero_point=128, b_zero_point=8)
    array([[-100]], dtype=int32)
    """
    left, right = arrays.integer_array(a, "a"), arrays.integer_array(b, "b")
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise CompressionError(
            f"a and b must be of shapes (m, k) and (k, n), not {left.shape} and {right.shape}"
        )
    k = left.shape[1]
    left_zero = _zero_point(a_zero_point, "a_zero_point", (left.shape[0], 1))
    right_zero = _zero_point(b_zero_point, "b_zero_point", (1, right.shape[1]))
    left, top_left = _difference(left, left_zero, "a")
    right, top_right = _difference(right, right_zero, "b")
    product = top_left * top_right
    if k * product >= 2**63:
        raise CompressionError(
            f"a and b must be small enough for an exact int64 sum, but {k} products of up to "
            f"{top_left} * {top_right} reach 2**63"
        )
    # The operands must be exact in the type of the product too, also where the other one is zero.
    reach = max(product, top_left, top_right)
    types = {24: np.float32, 53: np.float64, 63: np.int64}  # the last is exact, but slow
    digits = next(digits for digits in types if reach <= 2**digits)
    left, right = left.astype(types[digits]), right.astype(types[digits])
    total = np.zeros((left.shape[0], right.shape[1]), np.int32 if k * product < 2**31 else np.int64)
    block = 2**digits // max(product, 1)
    for start in range(0, k, block):
        part = np.matmul(left[:, start : start + block], right[start : start + block])
        total += part.astype(total.dtype)
    return total


def _zero_point(zero_point: ArrayLike | None, name: str, per_line: tuple[int, int]) -> Array:
    """One zero point, or one per row or column as an array that broadcasts against the matrix."""
    zero = arrays.integer_array(0 if zero_point is None else zero_point, name)
    lines = math.prod(per_line)
    if zero.shape not in {(), (lines,), per_line}:
        raise CompressionError(
            f"{name} must be one int or {lines} of them, not of shape {zero.shape}"
        )
    return zero.reshape(per_line if zero.ndim else (1, 1))


def _difference(array: Array, zero: Array, name: str) -> tuple[Array, int]:
    """``array - zero``, exactly, in the narrower of int32 and int64; and a bound of its size."""
    if array.size == 0:
        return array.astype(np.int32), 0
    reach = max(int(array.max()) - int(zero.min()), int(zero.max()) - int(array.min()))
    if reach >= 2**63:
        raise CompressionError(f"{name} minus its zero point must fit int64, not reach {reach}")
    # Each may wrap around by itself. Their difference fits, so it is right all the same.
    wide = np.dtype(np.int32 if reach < 2**31 else np.int64)
    with np.errstate(over="ignore"):
        return np.asarray(array.astype(wide) - zero.astype(wide)), reach
