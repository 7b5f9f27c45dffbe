"""Pooling: the maximum or the mean of every window, forward and backward.

A window is reduced along its columns and then along its rows. Each is a short loop of operations on
a whole block of images, which is much faster than one reduction of every small window.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from minicompress.arrays import Array, flag, widened
from minicompress.nn.kernels.windows import (
    BLOCK_BYTES,
    Geometry,
    Padding,
    Pads,
    Pair,
    Scratch,
    blocks,
    cut,
    geometry,
    gradient,
    image_array,
    inner_padding,
    pair,
    put_taps,
    resolve_padding,
    taps,
)


def max_pool2d(
    x: Array,
    window: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = "valid",
    ceil_mode: bool = False,
) -> Array:
    """The maximum of every window, channel by channel.

    Parameters
    ----------
    x : (N, H, W, C) ndarray of float16, float32 or float64
    window : int or (int, int)
    stride : int or (int, int), optional
        By default the window's size, so that windows lie side by side.
    padding : as for `conv2d`
        Padding counts as minus infinity, so it is never the maximum. Each side must be narrower
        than the window: no window may lie wholly in the padding.
    ceil_mode : bool
        Whether a last window that reaches beyond the padded image counts, too, if it starts in the
        image (or in the padding before it).

    Returns
    -------
    y : (N, oh, ow, C) ndarray of the dtype of `x`
        NaN where the window has a NaN.

    Raises
    ------
    CompressionError
        The window is larger than the padded image, or the padding as wide as the window.

    Examples
    --------
    >>> max_pool2d(np.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    x, g = _window(x, window, stride, padding, ceil_mode)
    return _pooled(np.maximum, x, g, -np.inf)


def max_pool2d_vjp(
    dy: Array,
    x: Array,
    window: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = "valid",
    ceil_mode: bool = False,
) -> Array:
    """The vector-Jacobian product of `max_pool2d`: the gradient of a window goes to its maximum.

    Among equal ones it goes to the first in row-major order; in a window with NaN, to the first
    pixel.
    """
    x, g = _window(x, window, stride, padding, ceil_mode)
    dy = gradient(dy, (len(x), *g.output, x.shape[3]), x)
    dx: Array = np.zeros(x.shape, x.dtype)
    scratch = Scratch(x.dtype)
    for images, rows in _blocks(x, g):
        view = taps(cut(x[images], rows, g, -np.inf), rows, g)
        pixels = scratch.array(*view.shape)
        np.copyto(pixels, view)
        places = [pixels[p, q] for p in range(g.kernel[0]) for q in range(g.kernel[1])]
        top, part = np.maximum.reduce(places), dy[images, rows]
        waiting = np.ones(top.shape, bool)  # windows whose maximum has not been found yet
        for place in places:
            # No comparison with NaN is true, so a window with NaN stops at its first pixel.
            found = waiting > (place < top)
            waiting ^= found
            np.multiply(part, found, out=place)
        put_taps(dx[images], pixels, rows, g)
    return dx


def avg_pool2d(
    x: Array,
    window: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = "valid",
    ceil_mode: bool = False,
    count_include_pad: bool = False,
) -> Array:
    """The mean of every window, channel by channel.

    Parameters
    ----------
    x, window, stride, padding, ceil_mode
        As for `max_pool2d`, but padding counts as zeros.
    count_include_pad : bool
        True divides every sum by the size of the window. By default the mean is over the pixels of
        the window that lie in the image, as in ONNX.

    Returns
    -------
    y : (N, oh, ow, C) ndarray of the dtype of `x`

    Raises
    ------
    CompressionError
        The window is larger than the padded image, or the padding as wide as the window.

    Examples
    --------
    >>> image = np.ones((1, 2, 2, 1))
    >>> avg_pool2d(image, 2, padding=1, stride=1)[0, :, 0, 0]
    array([1., 1., 1.])
    >>> avg_pool2d(image, 2, padding=1, stride=1, count_include_pad=True)[0, :, 0, 0]
    array([0.25, 0.5 , 0.25])
    """
    x, g = _window(x, window, stride, padding, ceil_mode)
    sums = _pooled(np.add, widened(x), g, 0.0)
    sums /= _counts(x, g, padding, count_include_pad)
    return sums.astype(x.dtype, copy=False)


def avg_pool2d_vjp(
    dy: Array,
    x: Array,
    window: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = "valid",
    ceil_mode: bool = False,
    count_include_pad: bool = False,
) -> Array:
    """The vector-Jacobian product of `avg_pool2d`: each pixel of a window gets an equal share."""
    x, g = _window(x, window, stride, padding, ceil_mode)
    dy = gradient(dy, (len(x), *g.output, x.shape[3]), x)
    share = widened(dy) / _counts(x, g, padding, count_include_pad)
    dx: Array = np.zeros(x.shape, share.dtype)
    put_taps(dx, np.broadcast_to(share, (*g.kernel, *share.shape)), slice(0, g.output[0]), g)
    return dx.astype(x.dtype, copy=False)


def global_avg_pool2d(x: Array, keep_axes: bool = False) -> Array:
    """The mean of each channel over the whole image.

    Parameters
    ----------
    x : (N, H, W, C) ndarray of float16, float32 or float64
        H and W at least 1.
    keep_axes : bool
        Whether the result is a batch of images of one pixel.

    Returns
    -------
    y : (N, C) ndarray of the dtype of `x`
        (N, 1, 1, C) with `keep_axes`.

    Raises
    ------
    CompressionError
        `x` is not a batch of images, or its images have no pixel.

    Examples
    --------
    >>> global_avg_pool2d(np.arange(4.0).reshape(1, 2, 2, 1))
    array([[1.5]])
    """
    x = image_array(x)
    y: Array = widened(x).mean((1, 2), keepdims=flag(keep_axes, "keep_axes"))
    return y.astype(x.dtype, copy=False)


def global_avg_pool2d_vjp(dy: Array, x: Array, keep_axes: bool = False) -> Array:
    """The vector-Jacobian product of `global_avg_pool2d`: ``dx = dy / (H * W)``."""
    x = image_array(x)
    n, h, w, c = x.shape
    dy = gradient(dy, (n, 1, 1, c) if flag(keep_axes, "keep_axes") else (n, c), x)
    share = widened(dy).reshape(n, 1, 1, c) / (h * w)
    return np.broadcast_to(share, x.shape).astype(x.dtype)


def _window(
    x: Array, window: Pair, stride: Pair | None, padding: Padding, ceil_mode: bool
) -> tuple[Array, Geometry]:
    x = image_array(x)
    size = pair(window, "window", 1)
    steps = size if stride is None else stride
    inner_padding(geometry(x.shape[1:3], size, steps, padding).pads, size)
    return x, geometry(x.shape[1:3], size, steps, padding, ceil_mode=flag(ceil_mode, "ceil_mode"))


def _blocks(x: Array, g: Geometry) -> Iterator[tuple[slice, slice]]:
    """Blocks whose windows fit in `BLOCK_BYTES`, a pixel counted once for each window it is in."""
    row_bytes = prod((*g.kernel, g.output[1], x.shape[3], x.itemsize))
    return blocks(len(x), g.output[0], row_bytes, BLOCK_BYTES)


def _pooled(operation: np.ufunc, x: Array, g: Geometry, fill: float) -> Array:
    """Reduce every window, along its columns first, since those runs are long in memory."""
    y: Array = np.empty((len(x), *g.output, x.shape[3]), x.dtype)
    for images, rows in _blocks(x, g):
        part = cut(x[images], rows, g, fill)
        part = _reduced(operation, part, g, 0, rows.stop - rows.start)
        y[images, rows] = _reduced(operation, part, g, 1, g.output[1])
    return y


def _reduced(operation: np.ufunc, part: Array, g: Geometry, axis: int, count: int) -> Array:
    """Reduce `count` windows along one of the image's axes."""
    stop = (count - 1) * g.stride[axis] + 1
    lead = (slice(None),) * (1 + axis)
    places = [part[(*lead, slice(p, p + stop, g.stride[axis]))] for p in range(g.kernel[axis])]
    if len(places) == 1:
        return places[0]
    total: Array = operation(places[0], places[1])
    for place in places[2:]:
        operation(total, place, out=total)
    return total


def _counts(x: Array, g: Geometry, padding: Padding, count_include_pad: bool) -> Array:
    """The number by which each window's sum is divided, (oh, ow, 1).

    What a window reads beyond the padded image (`ceil_mode`) never counts.
    """
    size = x.shape[1:3]
    counted: Pads = ((0, 0), (0, 0))
    if flag(count_include_pad, "count_include_pad"):
        counted = resolve_padding(padding, size, g.kernel, g.stride)
    counts = window_counts(size, g, counted)[..., None]
    return counts.astype(widened(x[:0]).dtype)


def window_counts(size: tuple[int, ...], g: Geometry, counted: Pads) -> Array:
    """How many places of each window lie in the image or in `counted`, its padding: (oh, ow)."""
    lengths = []
    for axis in (0, 1):
        first = np.arange(g.output[axis]) * g.stride[axis] - g.pads[axis][0]
        low, high = -counted[axis][0], size[axis] + counted[axis][1]
        lengths.append(np.minimum(first + g.kernel[axis], high) - np.maximum(first, low))
    counts: Array = np.multiply.outer(*lengths)
    return counts
