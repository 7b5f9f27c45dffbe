"""Pooling: the maximum or the mean of every window, forward and backward.

A window is reduced along its columns first and then along its rows: two short reductions, each over
a whole block of images at a time, are much faster than one over every small window.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from minicompress.arrays import Array, flag
from minicompress.errors import CompressionError
from minicompress.nn.kernels.windows import (
    BLOCK_BYTES,
    Geometry,
    Padding,
    Pair,
    Scratch,
    blocks,
    cut,
    geometry,
    gradient,
    image_array,
    pair,
    put_taps,
    taps,
)


def max_pool2d(
    x: Array, window: Pair, *, stride: Pair | None = None, padding: Padding = "valid"
) -> Array:
    """The maximum of every window, channel by channel.

    Parameters
    ----------
    x : (N, H, W, C) ndarray of float16, float32 or float64
    window : int or (int, int)
    stride : int or (int, int), optional
        The window's own size by default: windows side by side.
    padding : as for `conv2d`
        What is added counts as minus infinity, so it is never the maximum. Each side must be
        narrower than the window, or a window could lie wholly outside of the image.

    Returns
    -------
    y : (N, oh, ow, C) ndarray of the dtype of `x`
        NaN where a window holds one.

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
    x, g = _window(x, window, stride, padding)
    return _pooled(np.maximum, x, g, -np.inf)


def max_pool2d_vjp(
    dy: Array, x: Array, window: Pair, *, stride: Pair | None = None, padding: Padding = "valid"
) -> Array:
    """The vector-Jacobian product of `max_pool2d`.

    Parameters
    ----------
    dy : (N, oh, ow, C) ndarray of the dtype of `x`
    x, window, stride, padding
        As given to `max_pool2d`.

    Returns
    -------
    dx : ndarray like `x`
        Each window's gradient goes to its maximum; among equal ones to the first in row-major
        order. A window that holds NaN gives it to its first pixel.

    Raises
    ------
    CompressionError
        As `max_pool2d`, or `dy` is not of the output's shape.

    Examples
    --------
    >>> x = np.array([[1.0, 7.0], [7.0, 2.0]]).reshape(1, 2, 2, 1)
    >>> max_pool2d_vjp(np.ones((1, 1, 1, 1)), x, 2)[0, :, :, 0]
    array([[0., 1.],
           [0., 0.]])
    """
    x, g = _window(x, window, stride, padding)
    dy = gradient(dy, (len(x), *g.output, x.shape[3]), x)
    dx: Array = np.zeros(x.shape, x.dtype)
    scratch = Scratch(x.dtype)
    for images, rows in _blocks(x, g):
        view = taps(cut(x[images], rows, g, -np.inf), rows, g)
        pixels = scratch.array(*view.shape)
        np.copyto(pixels, view)
        places = [pixels[p, q] for p in range(g.kernel[0]) for q in range(g.kernel[1])]
        top, part = np.maximum.reduce(places), dy[images, rows]
        waiting = np.ones(top.shape, bool)  # windows whose maximum has not been met yet
        for place in places:
            # NaN is not less than anything, so a window with NaN is served at its first pixel.
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
    count_include_pad: bool = False,
) -> Array:
    """The mean of every window, channel by channel.

    Parameters
    ----------
    x, window, stride, padding
        As for `max_pool2d`; what is added counts as zeros.
    count_include_pad : bool
        Divide by the size of the window everywhere; by default the mean is over the pixels that
        lie in the image, as in ONNX.

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
    x, g = _window(x, window, stride, padding)
    sums = _pooled(np.add, x.astype(_computed(x), copy=False), g, 0.0)
    sums /= _counts(x, g, count_include_pad)
    return sums.astype(x.dtype, copy=False)


def avg_pool2d_vjp(
    dy: Array,
    x: Array,
    window: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = "valid",
    count_include_pad: bool = False,
) -> Array:
    """The vector-Jacobian product of `avg_pool2d`: every window shares its gradient out equally.

    Parameters
    ----------
    dy : (N, oh, ow, C) ndarray of the dtype of `x`
    x, window, stride, padding, count_include_pad
        As given to `avg_pool2d`; of `x` only the shape and dtype matter.

    Returns
    -------
    dx : ndarray like `x`

    Raises
    ------
    CompressionError
        As `avg_pool2d`, or `dy` is not of the output's shape.

    Examples
    --------
    >>> avg_pool2d_vjp(np.ones((1, 1, 1, 1)), np.zeros((1, 2, 2, 1)), 2)[0, :, :, 0]
    array([[0.25, 0.25],
           [0.25, 0.25]])
    """
    x, g = _window(x, window, stride, padding)
    dy = gradient(dy, (len(x), *g.output, x.shape[3]), x)
    share = dy.astype(_computed(x), copy=False) / _counts(x, g, count_include_pad)
    dx: Array = np.zeros(x.shape, share.dtype)
    put_taps(dx, np.broadcast_to(share, (*g.kernel, *share.shape)), slice(0, g.output[0]), g)
    return dx.astype(x.dtype, copy=False)


def global_avg_pool2d(x: Array) -> Array:
    """The mean of each channel over the whole image.

    Parameters
    ----------
    x : (N, H, W, C) ndarray of float16, float32 or float64
        H and W at least 1.

    Returns
    -------
    y : (N, C) ndarray of the dtype of `x`

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
    y = x.sum((1, 2), dtype=_computed(x))
    y /= x.shape[1] * x.shape[2]
    result: Array = y.astype(x.dtype, copy=False)
    return result


def global_avg_pool2d_vjp(dy: Array, x: Array) -> Array:
    """The vector-Jacobian product of `global_avg_pool2d`.

    Parameters
    ----------
    dy : (N, C) ndarray of the dtype of `x`
    x : (N, H, W, C) ndarray
        As given to `global_avg_pool2d`; only its shape and dtype matter.

    Returns
    -------
    dx : ndarray like `x`

    Raises
    ------
    CompressionError
        As `global_avg_pool2d`, or `dy` is not of the output's shape.

    Examples
    --------
    >>> global_avg_pool2d_vjp(np.array([[1.0]]), np.zeros((1, 2, 2, 1)))[0, :, :, 0]
    array([[0.25, 0.25],
           [0.25, 0.25]])
    """
    x = image_array(x)
    dy = gradient(dy, (len(x), x.shape[3]), x)
    share = dy / np.array(x.shape[1] * x.shape[2], _computed(x))
    dx: Array = np.empty(x.shape, x.dtype)
    dx[...] = share[:, None, None, :]
    return dx


def _window(
    x: Array, window: Pair, stride: Pair | None, padding: Padding
) -> tuple[Array, Geometry]:
    x = image_array(x)
    size = pair(window, "window", 1)
    g = geometry(x.shape[1:3], size, size if stride is None else stride, padding)
    if max(g.pads[0]) >= size[0] or max(g.pads[1]) >= size[1]:
        raise CompressionError(
            f"padding must be narrower than the window {size} on every side, not {g.pads}: a "
            "window would lie wholly in the padding"
        )
    return x, g


def _blocks(x: Array, g: Geometry) -> Iterator[tuple[slice, slice]]:
    """Blocks whose windows, each pixel counted once a window, fit in a block's bytes."""
    row_bytes = prod((*g.kernel, g.output[1], x.shape[3], x.itemsize))
    return blocks(len(x), g.output[0], row_bytes, BLOCK_BYTES)


def _pooled(operation: np.ufunc, x: Array, g: Geometry, fill: float) -> Array:
    """Reduce every window, along its columns first: those runs are long and work goes fast."""
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


def _counts(x: Array, g: Geometry, count_include_pad: bool) -> Array:
    """What to divide each window's sum by, as (oh, ow, 1)."""
    ones: Array = np.ones((1, *x.shape[1:3], 1), _computed(x))
    outside = 1.0 if flag(count_include_pad, "count_include_pad") else 0.0
    everything = cut(ones, slice(0, g.output[0]), g, outside)
    rows = _reduced(np.add, everything, g, 0, g.output[0])
    counts: Array = _reduced(np.add, rows, g, 1, g.output[1])[0]
    return counts


def _computed(x: Array) -> np.dtype[np.float32] | np.dtype[np.float64]:
    """float16 is summed in float32."""
    return np.dtype(np.float64) if x.dtype == np.float64 else np.dtype(np.float32)
