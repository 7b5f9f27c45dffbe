"""Two-dimensional convolution and the dense layer's product, forward and backward.

Images are NHWC, kernels HWIO: ``(kh, kw, in // groups, out)``. As in all frameworks, "convolution"
is a correlation: the kernel is not flipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minicompress.arrays import Array, as_int, flag, float_array, same_dtype, widened
from minicompress.errors import CompressionError
from minicompress.nn.kernels.direct import direct_adjoint, direct_conv2d, direct_conv2d_vjp
from minicompress.nn.kernels.windows import (
    Geometry,
    Padding,
    Pair,
    column_sums,
    geometry,
    gradient,
    image_array,
    pair,
    resolve_padding,
)
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
    """Slide a kernel over the images and add up the products.

    ``y[n, i, j, o] = bias[o] + sum over p, q, c of x[n, s*i + d*p, s*j + d*q, c] * w[p, q, c, o]``
    for stride s, dilation d and the padded x.

    Parameters
    ----------
    x : (N, H, W, C) ndarray of float16, float32 or float64
    weight : (kh, kw, C // groups, O) ndarray of the dtype of `x`
        Group g of the outputs reads group g of the inputs only.
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
    if bias is None:
        bias = np.zeros(weight.shape[3], x.dtype)
    run = winograd_conv2d if uses_winograd(widened(weight), g) else direct_conv2d
    xs, weights, biases = (np.split(widened(a), groups, axis=-1) for a in (x, weight, bias))
    ys = [run(*part, g) for part in zip(xs, weights, biases, strict=True)]
    return _joined(ys).astype(x.dtype, copy=False)


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
    """The vector-Jacobian product of `conv2d`: the gradients by `x`, `weight` and the bias.

    ``dweight[p, q, c, o]`` is the sum over n, i, j of ``x[n, s*i + d*p, s*j + d*q, c] * dy[n, i, j,
    o]`` and `dx` the same products with `weight` in place of `x`, added at the pixels they read.
    Without `input_gradient`, `dx` is None and costs nothing.
    """
    x, weight, _ = _operands(x, weight, None, groups)
    g = geometry(x.shape[1:3], weight.shape[:2], stride, padding, dilation)
    dy = gradient(dy, (len(x), *g.output, weight.shape[3]), x)
    wanted = flag(input_gradient, "input_gradient")
    run = winograd_conv2d_vjp if uses_winograd(widened(weight), g) else direct_conv2d_vjp
    dys, xs, weights = (np.split(widened(a), groups, axis=-1) for a in (dy, x, weight))
    parts = [run(*part, g, wanted) for part in zip(dys, xs, weights, strict=True)]
    dxs, dweights, dbiases = zip(*parts, strict=True)
    dx = _joined(dxs).astype(x.dtype, copy=False) if wanted else None
    dweight, dbias = (_joined(d).astype(x.dtype, copy=False) for d in (dweights, dbiases))
    return dx, dweight, dbias


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = "valid",
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Array:
    """The transposed convolution: every pixel adds its multiple of the kernel to the output.

    ``y[n, s*i + d*p, s*j + d*q, o] += x[n, i, j, c] * w[p, q, c, o]`` for all n, i, j, p, q, c, o,
    cut by the padding, plus ``bias[o]``.

    Parameters
    ----------
    x : (N, H, W, C) ndarray of float16, float32 or float64
    weight : (kh, kw, C // groups, O) ndarray of the dtype of `x`
        Group g of the outputs reads group g of the inputs only.
    bias : (O,) ndarray of the dtype of `x`, or None
    stride, dilation : int or (int, int)
    padding : "valid", "same", int, (ph, pw) or ((top, bottom), (left, right))
        What is cut off the output; "same" makes it `stride` times as large as the input.
    output_padding : int or (int, int)
        Rows and columns added to the output at the end; less than `stride`.
    groups : int
        Divides C and O.

    Returns
    -------
    y : (N, oh, ow, O) ndarray of the dtype of `x`
        ``oh = (H - 1) * stride + dilation * (kh - 1) + 1 - padding + output_padding``

    Raises
    ------
    CompressionError
        Shapes or dtypes do not fit each other, or nothing of the output is left.

    Notes
    -----
    It is the vector-Jacobian product of a convolution by its input: of the one from O to C channels
    with the same kernel and the same windows (Dumoulin and Visin, 2016).

    Examples
    --------
    >>> conv_transpose2d(np.ones((1, 2, 2, 1)), np.ones((2, 2, 1, 1)))[0, :, :, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    x, weight, bias = _operands(x, weight, bias, groups)
    shape, g = transposed_geometry(
        x.shape[1:3], weight.shape[:2], stride, padding, output_padding, dilation
    )
    kernels = [k.swapaxes(2, 3) for k in np.split(widened(weight), groups, axis=-1)]
    xs = np.split(widened(x), groups, axis=-1)
    ys = [
        direct_adjoint(part, kernel, (len(x), *shape, kernel.shape[2]), g)
        for part, kernel in zip(xs, kernels, strict=True)
    ]
    y = _joined(ys)
    if bias is not None:
        y += bias
    return y.astype(x.dtype, copy=False)


def conv_transpose2d_vjp(
    dy: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Padding = "valid",
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    input_gradient: bool = True,
) -> tuple[Array | None, Array, Array]:
    """The vector-Jacobian product of `conv_transpose2d`: by `x`, `weight` and the bias.

    `dx` is the convolution of `dy`, and `dweight` that convolution's gradient by its kernel.
    """
    x, weight, _ = _operands(x, weight, None, groups)
    shape, g = transposed_geometry(
        x.shape[1:3], weight.shape[:2], stride, padding, output_padding, dilation
    )
    dy = gradient(dy, (len(x), *shape, weight.shape[3]), x)
    kernel = _joined([k.swapaxes(2, 3) for k in np.split(weight, groups, axis=-1)])
    options: dict[str, Any] = {"stride": g.stride, "padding": g.pads, "dilation": g.dilation}
    wanted = flag(input_gradient, "input_gradient")
    dx = conv2d(dy, kernel, groups=groups, **options) if wanted else None
    _, dkernel, _ = conv2d_vjp(x, dy, kernel, groups=groups, **options, input_gradient=False)
    dweight = _joined([k.swapaxes(2, 3) for k in np.split(dkernel, groups, axis=-1)])
    return dx, dweight, column_sums(widened(dy)).astype(x.dtype, copy=False)


def transposed_geometry(
    input_hw: Any,
    kernel_hw: Any,
    stride: Pair,
    padding: Padding,
    output_padding: Pair,
    dilation: Pair,
) -> tuple[tuple[int, int], Geometry]:
    """The output's height and width, and the windows of the convolution that goes back."""
    size, kernel = pair(input_hw, "input_hw", 1), pair(kernel_hw, "kernel_hw", 1)
    steps, rates = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
    more = pair(output_padding, "output_padding", 0)
    if more[0] >= steps[0] or more[1] >= steps[1]:
        raise CompressionError(f"output_padding must be less than stride {steps}, not {more}")
    large = (size[0] * steps[0], size[1] * steps[1])
    pads = resolve_padding(padding, large, kernel, steps, rates)
    if padding != "same":
        large = tuple(
            (n - 1) * s + d * (k - 1) + 1 - sum(p) + m
            for n, s, d, k, p, m in zip(size, steps, rates, kernel, pads, more, strict=True)
        )
    if min(large) < 1:
        raise CompressionError(f"padding {pads} leaves nothing of the output: {large}")
    return large, geometry(large, kernel, steps, pads, rates)


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
    x, weight, bias = _operands(x, weight, bias)
    y = widened(x) @ widened(weight)
    if bias is not None:
        y += bias
    return y.astype(x.dtype, copy=False)


def dense_vjp(
    dy: Array, x: Array, weight: Array, *, input_gradient: bool = True
) -> tuple[Array | None, Array, Array]:
    """The vector-Jacobian product of `dense`: ``dy @ weight.T, x.T @ dy, dy.sum(0)``.

    Without `input_gradient` the first is None.
    """
    x, weight, _ = _operands(x, weight, None)
    dy = widened(gradient(dy, (len(x), weight.shape[1]), x))
    dx = dy @ widened(weight).T if flag(input_gradient, "input_gradient") else None
    return (
        None if dx is None else dx.astype(x.dtype, copy=False),
        (widened(x).T @ dy).astype(x.dtype, copy=False),
        column_sums(dy).astype(x.dtype, copy=False),
    )


def uses_winograd(weight: Array, g: Geometry) -> bool:
    """Whether a convolution runs as `winograd_conv2d`.

    It does for 3 x 3 kernels of stride and dilation 1, in float32, with enough channels that the
    transforms pay off. float64 is used where rounding matters, so it takes the direct path.
    """
    plain = (g.kernel, g.stride, g.dilation) == ((3, 3), (1, 1), (1, 1))
    return plain and weight.dtype == np.float32 and min(weight.shape[2:]) >= MANY_CHANNELS


def _joined(parts: Sequence[Array]) -> Array:
    """The groups side by side along their channels."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _operands(
    x: Array, weight: Array, bias: Array | None, groups: int | None = None
) -> tuple[Array, Array, Array | None]:
    """The operands of a convolution, or, without `groups`, of a dense layer, checked."""
    if groups is None:
        x, weight = float_array(x, "x", ndim=2), float_array(weight, "weight", ndim=2)
        groups, what, given = 1, "rows", ""
    else:
        x, weight = image_array(x), float_array(weight, "weight", ndim=4)
        groups, what, given = as_int(groups, "groups", 1), "input channels", f" and {groups=}"
    bias = None if bias is None else float_array(bias, "bias", ndim=1)
    same_dtype(x=x, weight=weight, bias=bias)
    inputs, outputs = x.shape[-1], weight.shape[-1]
    if inputs % groups or outputs % groups:
        raise CompressionError(
            f"groups must divide the channels of x and of weight: {inputs} and {outputs} are "
            f"not both multiples of {groups}"
        )
    if weight.shape[-2] * groups != inputs:
        raise CompressionError(
            f"weight must have {inputs // groups} {what} for x of shape {x.shape}{given}, "
            f"not shape {weight.shape}"
        )
    if bias is not None and bias.shape != (outputs,):
        raise CompressionError(f"bias must have shape ({outputs},), not {bias.shape}")
    return x, weight, bias
