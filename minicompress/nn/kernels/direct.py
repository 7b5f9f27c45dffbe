"""Convolution as one matrix product per block ("im2col"): the path that serves every shape.

The windows of a block of images are copied into the rows of a matrix, which is multiplied by the
kernel as a matrix. What decides the speed is memory: blocks stay in the cache, and the memory for
them is taken once a call. Wherever the products and sums are exact, so is the result: this path is
the oracle for `winograd`.

The bias is one more row of the kernel, met by a column of ones in the window matrix; so its
gradient is one more row of the kernel's.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from minicompress.arrays import Array
from minicompress.nn.kernels.windows import (
    BLOCK_BYTES,
    Geometry,
    Scratch,
    blocks,
    cut,
    put_taps,
    taps,
)

FEW_CHANNELS = 4


def direct_conv2d(
    x: Array, weight: Array, bias: Array, g: Geometry, block_bytes: int = BLOCK_BYTES
) -> Array:
    """The convolution of one group: x (N, H, W, C), weight (kh, kw, C, O), bias (O,)."""
    kh, kw, c, channels = weight.shape
    kernel = np.concatenate([weight.reshape(kh * kw * c, channels), bias[None]])
    y: Array = np.empty((len(x), *g.output, channels), x.dtype)
    for images, rows, windows in _window_matrices(x, g, block_bytes):
        np.matmul(windows, kernel, out=y[images, rows].reshape(len(windows), channels))
    return y


def direct_conv2d_vjp(
    dy: Array,
    x: Array,
    weight: Array,
    g: Geometry,
    input_gradient: bool,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Array | None, Array, Array]:
    """The gradients (dx, dweight, dbias) of `direct_conv2d`.

    The window matrices are gathered again: that is faster than keeping them.
    """
    kh, kw, c, channels = weight.shape
    dkernel: Array = np.zeros((kh * kw * c + 1, channels), x.dtype)
    for images, rows, windows in _window_matrices(x, g, block_bytes):
        part = np.ascontiguousarray(dy[images, rows])
        dkernel += windows.T @ part.reshape(len(windows), channels)
    dx = direct_adjoint(dy, weight, x.shape, g, block_bytes) if input_gradient else None
    return dx, dkernel[:-1].reshape(weight.shape), dkernel[-1]


def direct_adjoint(
    dy: Array,
    weight: Array,
    shape: tuple[int, ...],
    g: Geometry,
    block_bytes: int = BLOCK_BYTES,
) -> Array:
    """The gradient by the images (of this shape), which is also the transposed convolution."""
    kh, kw, c, channels = weight.shape
    # One product per place in the window: its gradients then lie together image by image, and
    # adding them up takes half as long as from the rows of a window matrix.
    places = np.ascontiguousarray(weight.reshape(kh * kw, c, channels).swapaxes(1, 2))
    dx: Array = np.zeros(shape, dy.dtype)
    scratch = Scratch(dy.dtype)
    row_bytes = g.output[1] * (kh * kw * c) * dy.itemsize
    for images, rows in blocks(len(dy), g.output[0], row_bytes, block_bytes):
        part = np.ascontiguousarray(dy[images, rows])
        dtaps = scratch.array(kh, kw, *part.shape[:3], c)
        products = part.reshape(prod(part.shape[:3]), channels)
        np.matmul(products, places, out=dtaps.reshape(kh * kw, len(products), c))
        put_taps(dx[images], dtaps, rows, g)
    return dx


def _window_matrices(
    x: Array, g: Geometry, block_bytes: int
) -> Iterator[tuple[slice, slice, Array]]:
    """For each block its images, its rows of the output, and its windows as rows of a matrix.

    With few channels the runs of a window are too short to copy: then the matrix lies in memory
    transposed, where the runs are rows of the output.
    """
    (kh, kw), (oh, ow), c = g.kernel, g.output, x.shape[3]
    length = kh * kw * c
    scratch = Scratch(x.dtype)
    for images, rows in blocks(len(x), oh, ow * length * x.itemsize, block_bytes):
        view = taps(cut(x[images], rows, g), rows, g)
        n, m = view.shape[2:4]
        if c <= FEW_CHANNELS:
            columns = scratch.array(length + 1, n * m * ow)
            np.copyto(columns[:-1].reshape(kh, kw, c, n, m, ow), view.transpose(0, 1, 5, 2, 3, 4))
            matrix = columns.T
        else:
            matrix = scratch.array(n * m * ow, length + 1)
            np.copyto(matrix[:, :-1].reshape(n, m, ow, kh, kw, c), view.transpose(2, 3, 4, 0, 1, 5))
        matrix[:, -1] = 1.0
        yield images, rows, matrix
