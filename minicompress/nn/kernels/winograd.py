"""Winograd's minimal filtering F(4x4, 3x3): a 3x3 convolution with a quarter of the products.

Each 4x4 patch of the output is computed from the 6x6 patch of the image under it, by way of 36
"frequencies" in which a convolution is a plain product:

    y = A [(G w G') * (B x B')] A'

so a patch takes 36 products per pair of channels where there were 144. The transforms run over a
whole block of patches at once. Going backward, the same matrices stand transposed in the opposite
order.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (CVPR 2016); the points
of interpolation are 0, 1, -1, 2, -2 and infinity.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array, DType
from minicompress.nn.kernels.windows import (
    Geometry,
    Scratch,
    blocks,
    column_sums,
    cut,
    put_taps,
    taps,
)

BLOCK_BYTES = 2 << 20  # of frequencies, of the image and of the output together
CONSTANT = (1, 1)  # a frequency that every pixel of a patch gets once: a bias can be added there


class Transforms(NamedTuple):
    """The three matrices: of the image (6, 6), of the kernel (6, 3), of the output (4, 6)."""

    b: Array
    g: Array
    a: Array

    def to(self, dtype: DType) -> Transforms:
        """The same in another dtype."""
        return Transforms(*(matrix.astype(dtype) for matrix in self))


F43 = Transforms(
    np.array(
        [
            [4.0, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
    np.array([[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
    np.array(
        [[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
    ),
)


def winograd_conv2d(
    x: Array, weight: Array, bias: Array, g: Geometry, block_bytes: int = BLOCK_BYTES
) -> Array:
    """The convolution of x (N, H, W, C) with weight (3, 3, C, O) at stride 1, plus bias (O,).

    Differs from the direct path by rounding, at most by `winograd_error_bound`. Where a patch holds
    an infinity or NaN, all 16 pixels of its output may become NaN.
    """
    return _filtered(x, weight, bias, g, F43, block_bytes)


def winograd_error_bound(x: Array, weight: Array, bias: Array, g: Geometry) -> Array:
    """How far each entry of `winograd_conv2d` can be from the exact convolution, in float64.

    Let u be the unit roundoff of the dtype of `x` and gamma(n) = n u / (1 - n u). A sum of n
    products in any order is off by at most gamma(n) times the sum of their magnitudes, and such
    factors multiply along the path: 3 products and a rounded coefficient for each side of the
    kernel's transform, 4 for each side of the image's, C channels, the bias, and 5 for each side of
    the output's. So the error is at most gamma(C + 27) times the same path with every entry, the
    matrices' too, replaced by its magnitude; underflow aside. No entry of that exceeds
    ``861 * max(abs(x)) * sum(abs(weight))``.
    """
    n, u = weight.shape[2] + 27, float(np.finfo(x.dtype).eps) / 2
    x, weight, bias = (np.abs(array).astype(np.float64) for array in (x, weight, bias))
    absolute = Transforms(*(np.abs(matrix) for matrix in F43))
    path = _filtered(x, weight, bias, g, absolute, BLOCK_BYTES)
    bound: Array = n * u / (1 - n * u) * path
    return bound


def winograd_conv2d_vjp(
    dy: Array,
    x: Array,
    weight: Array,
    g: Geometry,
    input_gradient: bool,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Array | None, Array, Array]:
    """The gradients (dx, dweight, dbias) of `winograd_conv2d`: its adjoint, step by step."""
    c, channels = weight.shape[2:]
    t, inner, outer = F43.to(x.dtype), _input_patches(g), _output_patches(g)
    half, patch, product, frequency, pixel = (Scratch(x.dtype) for _ in range(5))
    kernel = _both(t.g, np.ascontiguousarray(weight), half, Scratch(x.dtype))
    kernel = kernel.reshape(36, c, channels)
    back = np.ascontiguousarray(kernel.swapaxes(1, 2))
    dkernel, dbias = np.zeros_like(kernel), np.zeros(channels, x.dtype)
    dx: Array | None = np.zeros(x.shape, x.dtype) if input_gradient else None
    for images, rows, v in _frequencies(x, g, channels, t, block_bytes):
        source = taps(cut(dy[images], rows, outer), rows, outer)
        dpatches = patch.array(*source.shape)
        np.copyto(dpatches, source)
        dm = _both(t.a.T, dpatches, half, product)
        dbias += column_sums(dm[CONSTANT])
        dproducts = dm.reshape(36, -1, channels)
        dkernel += v.reshape(36, -1, c).swapaxes(1, 2) @ dproducts
        if dx is not None:
            dv = frequency.array(*v.shape)
            np.matmul(dproducts, back, out=dv.reshape(36, -1, c))
            put_taps(dx[images], _both(t.b.T, dv, half, pixel), rows, inner)
    dweight = _both(t.g.T, dkernel.reshape(6, 6, c, channels), half, Scratch(x.dtype))
    return dx, dweight, dbias


def _filtered(
    x: Array, weight: Array, bias: Array, g: Geometry, transforms: Transforms, block_bytes: int
) -> Array:
    """Transform, multiply, transform back: with other matrices it also computes the error bound."""
    c, channels = weight.shape[2:]
    t, outer = transforms.to(x.dtype), _output_patches(g)
    half, product, patch = (Scratch(x.dtype) for _ in range(3))
    kernel = _both(t.g, np.ascontiguousarray(weight), half, Scratch(x.dtype))
    kernel = kernel.reshape(36, c, channels)
    y: Array = np.empty((len(x), *g.output, channels), x.dtype)
    for images, rows, v in _frequencies(x, g, channels, t, block_bytes):
        m = product.array(*v.shape[:5], channels)
        np.matmul(v.reshape(36, -1, c), kernel, out=m.reshape(36, -1, channels))
        m[CONSTANT] += bias
        put_taps(y[images], _both(t.a, m, half, patch), rows, outer)
    return y


def _frequencies(
    x: Array, g: Geometry, channels: int, t: Transforms, block_bytes: int
) -> Iterator[tuple[slice, slice, Array]]:
    """For each block its images, its rows of patches, and their frequencies (6, 6, n, m, ow, C)."""
    inner, c = _input_patches(g), x.shape[3]
    pixel, half, frequency = (Scratch(x.dtype) for _ in range(3))
    row_bytes = inner.output[1] * 36 * (c + channels) * x.itemsize
    for images, rows in blocks(len(x), inner.output[0], row_bytes, block_bytes):
        source = taps(cut(x[images], rows, inner), rows, inner)
        patches = pixel.array(*source.shape)
        np.copyto(patches, source)
        yield images, rows, _both(t.b, patches, half, frequency)


def _both(matrix: Array, x: Array, half: Scratch, out: Scratch) -> Array:
    """Apply a matrix along both of the leading axes of x (k, k, ...)."""
    rows, k = matrix.shape
    rest = prod(x.shape[2:])
    once = half.array(k, rows, rest)
    np.matmul(matrix, x.reshape(k, k, rest), out=once)
    twice = out.array(rows, rows, *x.shape[2:])
    np.matmul(matrix, once.reshape(k, rows * rest), out=twice.reshape(rows, rows * rest))
    return twice


def _output_patches(g: Geometry) -> Geometry:
    """The 4x4 patches that cover the output; the last ones may reach beyond it."""
    (oh, ow), count = g.output, (-(-g.output[0] // 4), -(-g.output[1] // 4))
    return Geometry((4, 4), (4, 4), (1, 1), ((0, -oh % 4), (0, -ow % 4)), count)


def _input_patches(g: Geometry) -> Geometry:
    """The 6x6 patches of the image, 4 apart, that they are computed from."""
    outer = _output_patches(g)
    (top, bottom), (left, right) = g.pads
    pads = (top, bottom + outer.pads[0][1]), (left, right + outer.pads[1][1])
    return Geometry((6, 6), (4, 4), (1, 1), pads, outer.output)
