"""How much a convolution can stretch an image: upper bounds of its norm as a linear map.

Sound under rounding and underflow of their own computation.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, ceil_div, finite_array
from minicompress.nn.convolution import conv2d
from minicompress.nn.kernels.windows import Geometry, Padding, Pair, geometry
from minicompress.norms import (
    UNIT,
    fro_upper,
    gamma,
    power_of_two_scaled,
    spectral_norm_upper,
    unscaled_upper,
    upward,
)

EXACT_COLUMNS = 1000
SQUARINGS = 10


def conv_norm_upper(
    kernel: ArrayLike,
    input_hw: tuple[int, int],
    *,
    stride: Pair = 1,
    padding: Padding = "valid",
    dilation: Pair = 1,
) -> float:
    """An upper bound of the 2-norm of a convolution as a linear map of whole images.

    Parameters
    ----------
    kernel : (kh, kw, in, out) ndarray of float16, float32 or float64, finite
    input_hw : (int, int)
        Height and width of the image.
    stride, padding, dilation
        As for `conv2d`.

    Returns
    -------
    float
        At least ``||conv2d(x, kernel)|| / ||x||`` for every image x of this size. Exact to rounding
        where the map has up to 1,000 inputs or outputs, some per cent above it otherwise.

    Raises
    ------
    CompressionError
        `kernel` is not 4-D or not finite, or the geometry is impossible.

    Notes
    -----
    Small maps: the dense matrix, by `spectral_norm_upper`. Others: the least of

    - the kernel's symbols on a circle of N points (Sedghi, Gupta and Long, 2019). A convolution
      with zero padding p cuts from a circular one of N >= n + p points, so those bounds hold for
      every such N and every phase shift of the grid; on the circle of n points they would not. A
      stride s is a stride of 1 on the image with its s x s blocks as channels. Each symbol's norm
      is bounded by squaring its Gram matrix (Delattre et al., 2023), with all rounding added;
    - ``sqrt(ceil(kh / s) ceil(kw / s)) ||K||`` of the (kh kw in, out) matrix, after Tsuzuku et al.
      (2018): exact where windows do not overlap.

    Examples
    --------
    >>> mean = np.full((3, 3, 1, 1), 1 / 9)
    >>> 0.9 < conv_norm_upper(mean, (28, 28), padding="same") < 1.0  # below the sum, at the border
    True
    """
    given = finite_array(kernel, "kernel", ndim=4).astype(np.float64)
    g = geometry(input_hw, given.shape[:2], stride, padding, dilation)
    if given.size == 0 or not given.any():
        return 0.0
    k, exponent = power_of_two_scaled(given)
    inputs = input_hw[0] * input_hw[1] * k.shape[2]
    outputs = g.output[0] * g.output[1] * k.shape[3]
    if min(inputs, outputs) <= EXACT_COLUMNS and max(inputs, outputs) <= 16 * EXACT_COLUMNS:
        # Every entry of the matrix is one entry of the kernel times 1, plus zeros: exact.
        units = np.eye(inputs).reshape(inputs, *input_hw, k.shape[2])
        images = conv2d(units, k, stride=stride, padding=padding, dilation=dilation)
        return unscaled_upper(spectral_norm_upper(images.reshape(inputs, outputs)), exponent)
    # How many windows see the same pixel: on each axis every `period`-th tap reads it.
    periods = [s // math.gcd(s, d) for s, d in zip(g.stride, g.dilation, strict=True)]
    windows = math.prod(ceil_div(n, p) for n, p in zip(k.shape[:2], periods, strict=True))
    flat = upward(math.sqrt(windows) * spectral_norm_upper(k.reshape(-1, k.shape[3])))
    blocks, points = _as_stride_one(k, input_hw, g)
    circles = [points, (points[0] + 1, points[1] + 1)]
    shifts = (0, 1)  # in halves of the grid's spacing
    norm = min(flat, *(_circular_norm_upper(blocks, n, s) for n in circles for s in shifts))
    return unscaled_upper(norm, exponent)


def _as_stride_one(k: Array, hw: tuple[int, int], g: Geometry) -> tuple[Array, tuple[int, int]]:
    """The kernel on space-to-depth images, dilation written out, and the circle that they need."""
    stride, dilation, pads = g.stride, g.dilation, g.pads
    spread = [(n - 1) * d + 1 for n, d in zip(k.shape[:2], dilation, strict=True)]
    blocks = [ceil_div(n, s) for n, s in zip(spread, stride, strict=True)]
    full = np.zeros((blocks[0] * stride[0], blocks[1] * stride[1], *k.shape[2:]))
    full[: spread[0] : dilation[0], : spread[1] : dilation[1]] = k
    split = full.reshape(blocks[0], stride[0], blocks[1], stride[1], *k.shape[2:])
    kernel = split.transpose(0, 2, 1, 3, 4, 5).reshape(*blocks, -1, k.shape[3])
    padded = [ceil_div(n + sum(p), s) for n, p, s in zip(hw, pads, stride, strict=True)]
    return kernel, (max(padded[0], blocks[0]), max(padded[1], blocks[1]))


def _circular_norm_upper(k: Array, points: tuple[int, int], shift: int) -> float:
    """The largest symbol of a kernel on a circle of points, shifted by so many half spacings."""
    rows = _twiddles(k.shape[0], points[0], shift)[: points[0] // 2 + 1]  # the rest: conjugates
    columns = _twiddles(k.shape[1], points[1], shift)
    taps = k.shape[0] * k.shape[1]
    symbols = np.einsum("ua,vb,abio->uvio", rows, columns, k, optimize=True)
    symbols = symbols.reshape(-1, *k.shape[2:])
    # Twiddles are right to 32 u each; a sum of complex products of so many taps follows.
    wrong = (72 * UNIT + gamma(4 * (taps + 4))) * fro_upper(np.abs(k).sum((0, 1)))
    if symbols.shape[1] < symbols.shape[2]:
        symbols = symbols.transpose(0, 2, 1)
    step = max(1, (2 << 20) // symbols.shape[2] ** 2)  # some 32 MB of Gram matrices at a time
    starts = range(0, len(symbols), step)
    return upward(max(_largest_norm_upper(symbols[i : i + step]) for i in starts) + wrong)


def _twiddles(taps: int, points: int, shift: int) -> Array:
    """exp(-2 pi i a (j + shift / 2) / points), its angle reduced to one turn in integers."""
    turns = np.outer(2 * np.arange(points) + shift, np.arange(taps)) % (2 * points)
    return np.asarray(np.exp(-1j * math.pi * turns / points))


def _largest_norm_upper(matrices: Array) -> float:
    """The largest 2-norm of a stack of complex matrices (f, m, r), bounded by Gram iteration.

    ``||S||**2 = ||G_0||`` for the Gram matrix G_0, ``||G_k||**2 = ||G_(k+1)||`` for its square, and
    ``||G|| <= ||G||_F`` at the end. Each product errs by at most gamma_(4 (m + 4)) of the squared
    Frobenius norm (four real products for a complex one); every matrix is divided by a power of
    two before it is squared.
    """
    m, r = matrices.shape[1:]
    scale = _power_above(matrices)
    s = matrices / scale[:, None, None]
    gram = np.matmul(s.conj().transpose(0, 2, 1), s)
    errors, scales = [gamma(4 * (m + 4)) * _fro_squared(s)], [scale]
    for _ in range(SQUARINGS):
        scale = _power_above(gram)
        gram = gram / scale[:, None, None]
        scales.append(scale)
        errors.append(gamma(4 * (r + 4)) * _fro_squared(gram))
        gram = np.matmul(gram, gram)
    upper = np.sqrt(_fro_squared(gram) * (1 + gamma(2 * r * r + 16)))
    for error, scale in zip(reversed(errors), reversed(scales), strict=True):
        upper = np.sqrt((upper + error) * (1 + 8 * UNIT)) * scale * (1 + 8 * UNIT)
    return float(upper.max())


def _fro_squared(stack: Array) -> Array:
    return np.asarray(np.einsum("fij,fij->f", stack, stack.conj()).real)


def _power_above(stack: Array) -> Array:
    """For each matrix a power of two of the size of its largest entry."""
    top = np.abs(stack).max((1, 2))
    return np.ldexp(1.0, np.frexp(np.where(top > 0, top, 1.0))[1])
