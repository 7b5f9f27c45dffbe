"""Two-dimensional convolution and the dense layer's product, forward and backward.

Images are NHWC, kernels HWIO: ``(kh, kw, in // groups, out)``. "Convolution" is what networks mean
by it, a correlation: the kernel is not flipped.
"""

from __future__ import annotations

import numpy as np

from minicompress.arrays import Array, as_int, flag, float_array, same_dtype
from minicompress.errors import CompressionError
from minicompress.nn.kernels.direct import direct_conv2d, direct_conv2d_vjp
from minicompress.nn.kernels.windows import Geometry, column_sums, geometry, gradient, image_array
from minicompress.nn.kernels.windows import Padding as Padding
from minicompress.nn.kernels.windows import Pair as Pair
from minicompress.nn.kernels.windows import conv_output_hw as conv_output_hw
from minicompress.nn.kernels.windows import pair as pair
from minicompress.nn.kernels.windows import resolve_padding as resolve_padding
from minicompress.nn.kernels.winograd import winograd_conv2d, winograd_conv2d_vjp

MANY_CHANNELS = 32


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = "valid",
    dilation: Pair = 1,
    groups: int = 1,
) -> Array:
    """Slide a kernel over the images and sum up the products.

    ``y[n, i, j, o] = bias[o] + sum over p, q, c of x[n, s*i + d*p, s*j + d*q, c] * w[p, q, c, o]``
    for stride s, dilation d and the padded x.

    Parameters
    ----------
    x : (N, H, W, C) ndarray of float16, float32 or float64
    weight : (kh, kw, C // groups, O) ndarray of the dtype of `x`
        Not flipped. Group g of the outputs sees group g of the inputs.
    bias : (O,) ndarray of the dtype of `x`, or None
    stride, dilation : int or (int, int)
    padding : "valid", "same", int, (ph, pw) or ((top, bottom), (left, right))
        Zeros around the image; see `resolve_padding`.
    groups : int
        Divides C and O; ``groups == C`` is a depthwise convolution.

    Returns
    -------
    y : (N, oh, ow, O) ndarray of the dtype of `x`
        float16 is computed in float32 and rounded once.

    Raises
    ------
    CompressionError
        Shapes or dtypes do not fit each other, or the kernel is larger than the padded image.

    Examples
    --------
    >>> image = np.arange(9.0).reshape(1, 3, 3, 1)
    >>> conv2d(image, np.ones((2, 2, 1, 1)))[0, :, :, 0]
    array([[ 8., 12.],
           [20., 24.]])
    """
    x, weight, bias = _operands(x, weight, bias, groups)
    g = geometry(x.shape[1:3], weight.shape[:2], stride, padding, dilation)
    dtype, (x, weight) = x.dtype, _computed(x, weight)
    bias = _computed(np.zeros(weight.shape[3], dtype) if bias is None else bias)[0]
    run = winograd_conv2d if uses_winograd(weight, g) else direct_conv2d
    xs, weights, biases = (np.split(a, groups, axis=-1) for a in (x, weight, bias))
    ys = [run(x, w, b, g) for x, w, b in zip(xs, weights, biases, strict=True)]
    return _joined(ys).astype(dtype, copy=False)


def conv2d_vjp(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Padding = "valid",
    dilation: Pair = 1,
    groups: int = 1,
    input_gradient: bool = True,
) -> tuple[Array | None, Array, Array]:
    """The vector-Jacobian product of `conv2d`: a loss's gradients by its operands.

    Parameters
    ----------
    dy : (N, oh, ow, O) ndarray of the dtype of `x`
        The gradient by the output.
    x, weight, stride, padding, dilation, groups
        As given to `conv2d`.
    input_gradient : bool
        The first layer needs none: False saves half of the work.

    Returns
    -------
    dx : ndarray like `x`, or None without `input_gradient`
    dweight : ndarray like `weight`
    dbias : (O,) ndarray

    Raises
    ------
    CompressionError
        As `conv2d`, or `dy` is not of the output's shape.

    Examples
    --------
    >>> x, w = np.arange(9.0).reshape(1, 3, 3, 1), np.ones((2, 2, 1, 1))
    >>> dx, dweight, dbias = conv2d_vjp(np.ones((1, 2, 2, 1)), x, w)
    >>> dx[0, :, :, 0], dweight[:, :, 0, 0], dbias
    (array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]]), array([[ 8., 12.],
           [20., 24.]]), array([4.]))
    """
    x, weight, _ = _operands(x, weight, None, groups)
    g = geometry(x.shape[1:3], weight.shape[:2], stride, padding, dilation)
    dy = gradient(dy, (len(x), *g.output, weight.shape[3]), x)
    wanted = flag(input_gradient, "input_gradient")
    dtype, (dy, x, weight) = x.dtype, _computed(dy, x, weight)
    run = winograd_conv2d_vjp if uses_winograd(weight, g) else direct_conv2d_vjp
    dys, xs, weights = (np.split(a, groups, axis=-1) for a in (dy, x, weight))
    parts = [run(dy, x, w, g, wanted) for dy, x, w in zip(dys, xs, weights, strict=True)]
    dx = _joined([part[0] for part in parts if part[0] is not None]) if wanted else None
    return (
        None if dx is None else dx.astype(dtype, copy=False),
        _joined([part[1] for part in parts]).astype(dtype, copy=False),
        _joined([part[2] for part in parts]).astype(dtype, copy=False),
    )


def dense(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """The product ``x @ weight + bias``.

    Parameters
    ----------
    x : (N, I) ndarray of float16, float32 or float64
    weight : (I, O) ndarray of the dtype of `x`
    bias : (O,) ndarray of the dtype of `x`, or None

    Returns
    -------
    y : (N, O) ndarray of the dtype of `x`
        float16 is computed in float32 and rounded once.

    Raises
    ------
    CompressionError
        Shapes or dtypes do not fit each other.

    Examples
    --------
    >>> dense(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]), np.array([5.0]))
    array([[16.]])
    """
    x, weight, bias = _dense_operands(x, weight, bias)
    dtype, (x, weight) = x.dtype, _computed(x, weight)
    y = x @ weight
    if bias is not None:
        y += bias
    return y.astype(dtype, copy=False)


def dense_vjp(
    dy: Array, x: Array, weight: Array, *, input_gradient: bool = True
) -> tuple[Array | None, Array, Array]:
    """The vector-Jacobian product of `dense`.

    Parameters
    ----------
    dy : (N, O) ndarray of the dtype of `x`
    x, weight
        As given to `dense`.
    input_gradient : bool
        False leaves dx out.

    Returns
    -------
    dx : (N, I) ndarray, or None without `input_gradient`
        ``dy @ weight.T``
    dweight : (I, O) ndarray
        ``x.T @ dy``
    dbias : (O,) ndarray
        The column sums of `dy`.

    Raises
    ------
    CompressionError
        As `dense`, or `dy` is not of the output's shape.

    Examples
    --------
    >>> dense_vjp(np.array([[1.0]]), np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]))
    (array([[3., 4.]]), array([[1.],
           [2.]]), array([1.]))
    """
    x, weight, _ = _dense_operands(x, weight, None)
    dy = gradient(dy, (len(x), weight.shape[1]), x)
    wanted = flag(input_gradient, "input_gradient")
    dtype, (dy, x, weight) = x.dtype, _computed(dy, x, weight)
    dx = dy @ weight.T if wanted else None
    return (
        None if dx is None else dx.astype(dtype, copy=False),
        (x.T @ dy).astype(dtype, copy=False),
        column_sums(dy).astype(dtype, copy=False),
    )


def uses_winograd(weight: Array, g: Geometry) -> bool:
    """The rule: 3x3 windows side by side, in float32, with channels enough to pay for transforms.

    float64 is asked for where rounding matters, so it takes the direct path.
    """
    plain = (g.kernel, g.stride, g.dilation) == ((3, 3), (1, 1), (1, 1))
    return plain and weight.dtype == np.float32 and min(weight.shape[2:]) >= MANY_CHANNELS


def _joined(parts: list[Array]) -> Array:
    """The groups side by side along their channels."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _computed(*arrays: Array) -> list[Array]:
    """float16 is computed in float32, all else as it is."""
    half = arrays[0].dtype == np.float16
    return [array.astype(np.float32) if half else array for array in arrays]


def _operands(
    x: Array, weight: Array, bias: Array | None, groups: int
) -> tuple[Array, Array, Array | None]:
    x, weight = image_array(x), float_array(weight, "weight", ndim=4)
    bias = None if bias is None else float_array(bias, "bias", ndim=1)
    same_dtype(x=x, weight=weight, bias=bias)
    groups = as_int(groups, "groups", 1)
    channels, outputs = x.shape[3], weight.shape[3]
    if channels % groups or outputs % groups:
        raise CompressionError(
            f"groups must divide the channels of x and of weight: {channels} and {outputs} are "
            f"not both multiples of {groups}"
        )
    if weight.shape[2] * groups != channels:
        raise CompressionError(
            f"weight must have {channels // groups} input channels for x of shape {x.shape} and "
            f"groups={groups}, not shape {weight.shape}"
        )
    if bias is not None and bias.shape != (outputs,):
        raise CompressionError(f"bias must have shape ({outputs},), not {bias.shape}")
    return x, weight, bias


def _dense_operands(
    x: Array, weight: Array, bias: Array | None
) -> tuple[Array, Array, Array | None]:
    x, weight = float_array(x, "x", ndim=2), float_array(weight, "weight", ndim=2)
    bias = None if bias is None else float_array(bias, "bias", ndim=1)
    same_dtype(x=x, weight=weight, bias=bias)
    if weight.shape[0] != x.shape[1]:
        raise CompressionError(
            f"weight must have {x.shape[1]} rows for x of shape {x.shape}, not shape {weight.shape}"
        )
    if bias is not None and bias.shape != weight.shape[1:]:
        raise CompressionError(f"bias must have shape {weight.shape[1:]}, not {bias.shape}")
    return x, weight, bias
