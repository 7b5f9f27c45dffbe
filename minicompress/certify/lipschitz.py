"""How much a layer can stretch its input, and how far two networks can be apart anywhere.

Everything here is an upper bound, sound under the rounding of its own computation, of networks in
real-arithmetic semantics: the numbers are those of the weights, the sums are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, as_float, finite_array
from minicompress.errors import CompressionError
from minicompress.nn.convolution import conv2d
from minicompress.nn.kernels.windows import Geometry, Padding, Pair, geometry
from minicompress.nn.layers import LAYER_TYPES, Conv2D, Dense, Layer, Shape
from minicompress.nn.network import Sequential
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pooling import avg_pool2d_vjp
from minicompress.nn.stateless import (
    AvgPool2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Sigmoid,
    Softmax,
    Tanh,
)
from minicompress.norms import UNIT, fro_upper, gamma, spectral_norm_upper, upward
from minicompress.representation import decode

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
    k = finite_array(kernel, "kernel", ndim=4).astype(np.float64)
    g = geometry(input_hw, k.shape[:2], stride, padding, dilation)
    if k.size == 0 or not k.any():
        return 0.0
    inputs = input_hw[0] * input_hw[1] * k.shape[2]
    outputs = g.output[0] * g.output[1] * k.shape[3]
    if min(inputs, outputs) <= EXACT_COLUMNS and max(inputs, outputs) <= 16 * EXACT_COLUMNS:
        # Every entry of the matrix is one entry of the kernel times 1, plus zeros: exact.
        units = np.eye(inputs).reshape(inputs, *input_hw, k.shape[2])
        images = conv2d(units, k, stride=stride, padding=padding, dilation=dilation)
        return spectral_norm_upper(images.reshape(inputs, outputs))
    # How many windows see the same pixel: on each axis every so-manieth tap meets it again.
    periods = [s // math.gcd(s, d) for s, d in zip(g.stride, g.dilation, strict=True)]
    windows = math.prod(-(-n // p) for n, p in zip(k.shape[:2], periods, strict=True))
    flat = upward(math.sqrt(windows) * spectral_norm_upper(k.reshape(-1, k.shape[3])))
    blocks, points = _as_stride_one(k, input_hw, g)
    circles = [points, (points[0] + 1, points[1] + 1)]
    shifts = (0, 1)  # in halves of the grid's spacing
    return min(flat, *(_circular_norm_upper(blocks, n, s) for n in circles for s in shifts))


def _as_stride_one(k: Array, hw: tuple[int, int], g: Geometry) -> tuple[Array, tuple[int, int]]:
    """The kernel on space-to-depth images, dilation written out, and the circle that they need."""
    stride, dilation, pads = g.stride, g.dilation, g.pads
    spread = [(n - 1) * d + 1 for n, d in zip(k.shape[:2], dilation, strict=True)]
    blocks = [-(-n // s) for n, s in zip(spread, stride, strict=True)]
    full = np.zeros((blocks[0] * stride[0], blocks[1] * stride[1], *k.shape[2:]))
    full[: spread[0] : dilation[0], : spread[1] : dilation[1]] = k
    split = full.reshape(blocks[0], stride[0], blocks[1], stride[1], *k.shape[2:])
    kernel = split.transpose(0, 2, 1, 3, 4, 5).reshape(*blocks, -1, k.shape[3])
    points = [
        max(-(-(n + sum(p)) // s), b) for n, p, s, b in zip(hw, pads, stride, blocks, strict=True)
    ]
    return kernel, (points[0], points[1])


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
    largest = max(_largest_norm_upper(part) for part in _chunks(symbols))
    return upward(largest + wrong)


def _twiddles(taps: int, points: int, shift: int) -> Array:
    """exp(-2 pi i a (j + shift / 2) / points), its angle reduced to one turn in integers."""
    turns = np.outer(2 * np.arange(points) + shift, np.arange(taps)) % (2 * points)
    return np.asarray(np.exp(-1j * math.pi * turns / points))


def _chunks(symbols: Array) -> Iterator[Array]:
    """At most some 32 MB of Gram matrices at a time."""
    step = max(1, (2 << 20) // symbols.shape[2] ** 2)
    for start in range(0, len(symbols), step):
        yield symbols[start : start + step]


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


# Whole networks ---------------------------------------------------------------------------------


class _Constants(NamedTuple):
    """What the deploy certificate knows of a layer of f and of g: upper bounds of 2-norms."""

    stretch_f: float
    stretch_g: float
    change: float = 0.0
    offset_f: float = 0.0
    offset_change: float = 0.0


def output_bound(
    f: Sequential, g: Sequential, *, radius: float, input_shape: Shape | None = None
) -> float:
    """How far the outputs of two networks can be apart for any input of a given norm.

    Parameters
    ----------
    f, g : Sequential
        The original and the compressed network: the same types of layers in the same order.
    radius : float, at least 0
        Of the ball of inputs: ``||x||_2 <= radius``.
    input_shape : tuple of int, optional
        Of one input; needed where there is a convolution or a pooling.

    Returns
    -------
    float
        At least ``||g(x) - f(x)||_2`` for every such x, in real arithmetic.

    Raises
    ------
    CompressionError
        The layers do not correspond, one has no known bound, or `input_shape` is missing.

    Notes
    -----
    The certificate for deployment: nothing but g and three norms a layer are needed, of W_f, of
    W_g - W_f and of b_g - b_f. With a the size of f's activations and d the difference,
    ``d' = ||W_g|| d + ||W_g - W_f|| a + ||b_g - b_f||`` and ``a' = ||W_f|| a + ||b_f||``; every
    activation and pooling is a Lipschitz map. The norms multiply, so this bound is loose; the
    certificates of `equivalence` follow single inputs instead.

    Examples
    --------
    >>> f = Sequential((Dense(np.eye(2)), ReLU()))
    >>> g = Sequential((Dense(np.eye(2) * 1.25), ReLU()))
    >>> round(output_bound(f, g, radius=4.0), 6)
    1.0
    """
    if [type(layer) for layer in f.layers] != [type(layer) for layer in g.layers]:
        raise CompressionError("f and g must have the same types of layers in the same order")
    size, difference, shape = as_float(radius, "radius", 0.0), 0.0, input_shape
    for i, (a, b) in enumerate(zip(f.layers, g.layers, strict=True)):
        try:
            c = _constants(a, b, shape)
            shape = a.output_shape(shape) if shape is not None else _unshaped(a)
        except CompressionError as error:
            raise CompressionError(f"layer {i}, {type(a).__name__}: {error}") from None
        difference = upward(c.stretch_g * difference + c.change * size + c.offset_change)
        size = upward(c.stretch_f * size + c.offset_f)
    return difference


def _unshaped(layer: Layer) -> Shape | None:
    return (
        (layer.output_shape((decode(layer.weight).shape[0],))) if isinstance(layer, Dense) else None
    )


def _constants(a: Layer, b: Layer, shape: Shape | None) -> _Constants:
    match a, b:
        case _ if type(a) not in LAYER_TYPES:
            pass
        case (Dense(), Dense()) | (Conv2D(), Conv2D()):
            return _affine(a, b, shape)  # type: ignore[arg-type]
        case (BatchNorm(), BatchNorm()):
            return _batch_norm(a, b, shape)
        case (Flatten() | ReLU() | Dropout() | Tanh(), _):
            return _Constants(1.0, 1.0)  # none of them moves 0
        case (LeakyReLU(), LeakyReLU()) if a.negative_slope == b.negative_slope:
            slope = max(1.0, abs(a.negative_slope))
            return _Constants(slope, slope)
        case (Sigmoid(), _):
            return _Constants(0.25, 0.25, offset_f=upward(0.5 * math.sqrt(_entries(shape))))
        case (Softmax(), _):
            # Its Jacobian is diag(p) - p p', whose rows sum to 2 p (1 - p) <= 1/2 (Gershgorin).
            return _Constants(0.5, 0.5, offset_f=upward(math.sqrt(_entries(shape))))
        case (GlobalAvgPool2D(), _):
            h, w, _ = _image(shape)
            mean = upward(1 / math.sqrt(h * w))
            return _Constants(mean, mean)
        case (MaxPool2D() | AvgPool2D(), _) if _same_windows(a, b):
            return _pooling(a, shape)
    raise CompressionError(f"there is no bound for {a!r} against {b!r}")


def _affine(a: Conv2D | Dense, b: Conv2D | Dense, shape: Shape | None) -> _Constants:
    weights = [decode(layer.weight).astype(np.float64) for layer in (a, b)]
    if weights[0].shape != weights[1].shape:
        raise CompressionError(f"weights of shapes {weights[0].shape} and {weights[1].shape}")
    biases = [
        np.zeros(w.shape[-1]) if layer.bias is None else decode(layer.bias).astype(np.float64)
        for layer, w in zip((a, b), weights, strict=True)
    ]
    change = weights[1] - weights[0]
    if isinstance(a, Conv2D) and isinstance(b, Conv2D):
        if (a.stride, a.padding, a.dilation, a.groups) != (
            b.stride,
            b.padding,
            b.dilation,
            b.groups,
        ):
            raise CompressionError("the two convolutions differ in their geometry")
        h, w, _ = _image(shape)
        norms = [_grouped_norm(k, a, (h, w)) for k in (*weights, change)]
        oh, ow, _ = a.output_shape((h, w, weights[0].shape[2] * a.groups))
        copies = math.sqrt(oh * ow)  # a bias stands at every place of the output
    else:
        norms, copies = [spectral_norm_upper(matrix) for matrix in (*weights, change)], 1.0
    return _Constants(
        norms[0],
        norms[1],
        upward(norms[2] + UNIT * fro_upper(change) * copies),  # the difference was rounded
        upward(fro_upper(biases[0]) * copies),
        upward(fro_upper(biases[1] - biases[0]) * copies, 8),
    )


def _grouped_norm(kernel: Array, layer: Conv2D, hw: tuple[int, int]) -> float:
    """Groups see disjoint channels, so the norm is the largest of theirs."""
    parts = np.split(kernel, layer.groups, axis=3)
    norms = (
        conv_norm_upper(
            part, hw, stride=layer.stride, padding=layer.padding, dilation=layer.dilation
        )
        for part in parts
    )
    return max(norms, default=0.0)


def _batch_norm(a: BatchNorm, b: BatchNorm, shape: Shape | None) -> _Constants:
    factors, offsets = [], []
    for layer in (a, b):
        scale, offset, mean, variance = (
            decode(v).astype(np.float64) for v in layer.parameters().values()
        )
        factors.append(scale / np.sqrt(variance + layer.epsilon))
        offsets.append(offset - mean * factors[-1])
    copies = math.sqrt(_entries(shape) / len(factors[0]))

    def largest(x: Array) -> float:
        return upward(float(np.abs(x).max(initial=0)), 16)

    # Each factor and offset took a few roundings: relative to the sizes that went in, 16 u.
    wrong = [16 * UNIT * (largest(x) + largest(y)) for x, y in (factors, offsets)]
    wrong[1] += (
        16 * UNIT * max(largest(layer.mean) for layer in (a, b)) * max(map(largest, factors))
    )
    return _Constants(
        largest(factors[0]),
        largest(factors[1]),
        upward(largest(factors[1] - factors[0]) + wrong[0]),
        upward(fro_upper(offsets[0]) * copies + wrong[1] * copies * len(offsets[0])),
        upward(fro_upper(offsets[1] - offsets[0]) * copies + wrong[1] * copies * len(offsets[0])),
    )


def _pooling(layer: MaxPool2D | AvgPool2D, shape: Shape | None) -> _Constants:
    """The squared norm is at most the product of the largest row sum and column sum (Schur)."""
    h, w, _ = _image(shape)
    oh, ow, _ = layer.output_shape((h, w, 1))
    include = True if isinstance(layer, MaxPool2D) else layer.count_include_pad
    columns = avg_pool2d_vjp(
        np.ones((1, oh, ow, 1)),
        np.zeros((1, h, w, 1)),
        layer.window,
        stride=layer.stride,
        padding=layer.padding,
        count_include_pad=include,
    )
    reach = float(columns.max())
    if isinstance(layer, MaxPool2D):
        # A maximum moves by no more than the window does; an entry is in so many windows.
        kh, kw = geometry((h, w), layer.window, 1, layer.padding).kernel
        reach = round(reach * kh * kw)
    stretch = upward(math.sqrt(reach))
    return _Constants(stretch, stretch)


def _same_windows(a: Layer, b: Layer) -> bool:
    return repr(a) == repr(b)


def _image(shape: Shape | None) -> tuple[int, int, int]:
    if shape is None or len(shape) != 3:
        raise CompressionError(f"input_shape must be given as (H, W, C), not {shape}")
    return shape[0], shape[1], shape[2]


def _entries(shape: Shape | None) -> int:
    if shape is None:
        raise CompressionError("input_shape must be given")
    return math.prod(shape)
