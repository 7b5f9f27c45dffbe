"""Replace kernels by smaller ones, fitted by least squares."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from minicompress.arrays import Array, as_int, cast_or_refuse, finite_array, generator
from minicompress.errors import CompressionError
from minicompress.nn.kernels.windows import pair, resolve_padding
from minicompress.nn.layers import Conv2D
from minicompress.nn.parameters import finite_layer
from minicompress.representation import decode


def shrink_kernel(
    layer: Conv2D,
    size: int | tuple[int, int],
    *,
    calibration: ArrayLike | None = None,
    input_hw: tuple[int, int] | None = None,
) -> Conv2D:
    """A convolution with a smaller kernel whose outputs are near those of the old one.

    Parameters
    ----------
    layer : Conv2D
        With groups=1.
    size : int or (int, int)
        Of the new kernel, no larger than the old one: 3 for a 5x5, 2 for a 3x3.
    calibration : (N, H, W, in) ndarray, optional
        Inputs on which the new outputs are fitted to the old ones. Without them the middle of the
        kernel is cut out.
    input_hw : (int, int), optional
        Size of the images, needed only for padding="same" with a stride and no calibration.

    Returns
    -------
    Conv2D
        Its windows are the middle of the old ones, and its padding is smaller by the same number of
        pixels. If there is less padding than that, the output grows, and the next layer has to be
        fitted to it. With calibration it always has a bias.

    Raises
    ------
    CompressionError
        The new kernel is larger, groups is not 1, or `calibration` does not fit the layer.

    Notes
    -----
    With calibration: the least-squares solution for weights and bias over all windows of the
    inputs, in float64. Its squared error there is at most that of cutting.

    Examples
    --------
    >>> old = Conv2D(np.ones((5, 5, 1, 2)), padding=2)
    >>> new = shrink_kernel(old, 3)
    >>> new.weight.shape, new.padding
    ((3, 3, 1, 2), ((1, 1), (1, 1)))
    """
    finite_layer(layer)
    if layer.groups != 1:
        raise CompressionError(f"layer must have groups=1, not {layer.groups}")
    weight = decode(layer.weight)
    old, new = weight.shape[:2], pair(size, "size", 1)
    if new[0] > old[0] or new[1] > old[1]:
        raise CompressionError(f"size must be at most {old}, not {new}")
    images = None if calibration is None else finite_array(calibration, "calibration", ndim=4)
    hw = pair((64, 64) if input_hw is None else input_hw, "input_hw", 1)
    if images is not None:
        hw = (images.shape[1], images.shape[2])
    strides, dilations = pair(layer.stride, "stride", 1), pair(layer.dilation, "dilation", 1)
    pads, after = (resolve_padding(layer.padding, hw, k, strides, dilations) for k in (old, new))
    offsets = [
        (b[0] - a[0]) // d if layer.padding == "same" else (o - n) // 2
        for b, a, d, o, n in zip(pads, after, dilations, old, new, strict=True)
    ]
    rows, columns = (slice(o, o + n) for o, n in zip(offsets, new, strict=True))
    kernel, bias, padding = weight[rows, columns], layer.bias, layer.padding
    if images is not None:
        kernel, bias = _fitted(layer, images, (rows, columns))
    if not isinstance(padding, str):
        padding = tuple(  # type: ignore[assignment]
            (max(p[0] - o * d, 0), max(p[1] - (k - n - o) * d, 0))
            for p, o, k, n, d in zip(pads, offsets, old, new, dilations, strict=True)
        )
    return dataclasses.replace(layer, weight=kernel, bias=bias, padding=padding)


def split_kernel(
    layer: Conv2D, *, rng: np.random.Generator, channels: int | None = None, iterations: int = 50
) -> tuple[Conv2D, Conv2D]:
    """Replace a convolution with an odd kernel by two smaller ones: a 5x5 by two 3x3.

    Parameters
    ----------
    layer : Conv2D
        With a (k, k, in, out) kernel, k odd and at least 3, and groups=1.
    rng : numpy.random.Generator
        For the start of the iteration.
    channels : int, optional
        Between the two layers. By default the largest number for which both kernels together have
        no more weights than the old one.
    iterations : int
        Of alternating least squares; the squared error never grows.

    Returns
    -------
    tuple of two Conv2D
        With kernels of size (k + 1) / 2. The first has the padding, the second the stride and the
        bias. Together they are exactly the convolution with their composed kernel.

    Raises
    ------
    CompressionError
        The kernel is not square or not odd, groups is not 1, or padding is "same" with a stride.

    Notes
    -----
    The composed kernel is ``K[a] = sum over b + c = a of K1[b] K2[c]``. It is linear in K1 for a
    fixed K2, and in K2 for a fixed K1. The idea of small kernels in place of a large one is from
    K. Simonyan and A. Zisserman (2015).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> first, second = split_kernel(Conv2D(rng.normal(size=(5, 5, 4, 8))), rng=rng)
    >>> first.weight.shape, second.weight.shape
    ((3, 3, 4, 7), (3, 3, 7, 8))
    """
    finite_layer(layer)
    kernel = decode(layer.weight)
    k, k2, inputs, outputs = kernel.shape
    if k != k2 or k % 2 == 0 or k < 3 or layer.groups != 1:
        raise CompressionError(
            f"layer must have a square kernel of odd size from 3 on and groups=1, not "
            f"{kernel.shape} and {layer.groups}"
        )
    if layer.padding == "same" and layer.stride != (1, 1):
        raise CompressionError('padding="same" with a stride depends on the image: give numbers')
    h, target = (k + 1) // 2, kernel.astype(np.float64)
    most = max(1, k * k * inputs * outputs // (h * h * (inputs + outputs)))
    middle = most if channels is None else as_int(channels, "channels", 1)
    second = generator(rng).normal(size=(h, h, middle, outputs))
    for _ in range(as_int(iterations, "iterations", 1)):
        turned = _solved(second, target.transpose(0, 1, 3, 2))  # the first kernel, (h, h, m, in)
        second = _solved(turned, target)
    first = turned.transpose(0, 1, 3, 2)
    padding = k // 2 if layer.padding == "same" else layer.padding
    first = cast_or_refuse(first, kernel.dtype, "the first kernel")
    second = cast_or_refuse(second, kernel.dtype, "the second kernel")
    return (
        dataclasses.replace(layer, weight=first, bias=None, stride=1, padding=padding),
        dataclasses.replace(layer, weight=second, padding="valid"),
    )


def _fitted(layer: Conv2D, images: Array, window: tuple[slice, slice]) -> tuple[Array, Array]:
    """The kernel and bias with the least squared error over all windows of the images."""
    weight = decode(layer.weight)
    inputs = weight.shape[2]
    h, w = (s.stop - s.start for s in window)
    # This kernel of zeros and ones copies the pixels that the new kernel reads into channels.
    picks = np.zeros((*weight.shape[:3], h * w * inputs))
    picks[window] = np.eye(h * w * inputs).reshape(h, w, inputs, -1)
    bias = None if layer.bias is None else decode(layer.bias).astype(np.float64)
    old = dataclasses.replace(layer, weight=weight.astype(np.float64), bias=bias)
    x = images.astype(np.float64)
    wanted = old.forward(x)
    seen = dataclasses.replace(layer, weight=picks, bias=None).forward(x)
    a = np.insert(seen.reshape(-1, h * w * inputs), h * w * inputs, 1.0, axis=1)
    solution = scipy.linalg.lstsq(a, wanted.reshape(len(a), -1))[0]
    kernel = cast_or_refuse(solution[:-1], weight.dtype, "the new kernel")
    bias = cast_or_refuse(solution[-1], weight.dtype, "the new bias")
    return kernel.reshape(h, w, inputs, -1), bias


def _solved(known: Array, target: Array) -> Array:
    """Solve ``target[a, p, n] = sum over b + c = a of known[b, m, p] u[c, m, n]`` for u.

    The positions a, b, c are pairs; known is (h, h, m, p), target (k, k, p, n), u (h, h, m, n).
    """
    h, _, m, p = known.shape
    k, n = target.shape[0], target.shape[3]
    system = np.zeros((k, k, p, h, h, m))
    for i, j, u, v in np.ndindex(h, h, h, h):
        system[i + u, j + v, :, u, v] = known[i, j].T
    matrix, right = system.reshape(k * k * p, h * h * m), target.reshape(k * k * p, n)
    return np.asarray(scipy.linalg.lstsq(matrix, right)[0]).reshape(h, h, m, n)
