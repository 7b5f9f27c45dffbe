"""How far the outputs of two networks can be apart anywhere in a ball around 0.

An upper bound, sound under rounding and underflow of its own computation, of networks in
real-arithmetic semantics: the numbers are those of the weights, a `LowRank` one is the exact
product of its factors, and the sums are exact. What `apply` returns is further off by the rounding
of the dtype, and the integers of `to_integer` by more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array, as_float
from minicompress.certify.curves import LIPSCHITZ
from minicompress.certify.operator_norms import conv_norm_upper
from minicompress.certify.pairs import Affine, Linear, affine_pair, norm_pair, paired
from minicompress.errors import CompressionError
from minicompress.nn.kernels.windows import pair
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.layers import LAYER_TYPES, Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network, naming_layer
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import (
    Clip,
    Dropout,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from minicompress.nn.stateless import (
    Add,
    AvgPool2D,
    ChannelShuffle,
    Concat,
    Flatten,
    GlobalAvgPool2D,
    MaxPool2D,
    Multiply,
    Upsample2D,
)
from minicompress.norms import UNIT, fro_upper, spectral_norm_upper, upward
from minicompress.representation import shape_of


class _Constants(NamedTuple):
    """What the deploy certificate knows of a layer of f and of g: upper bounds of 2-norms."""

    stretch_f: float
    stretch_g: float
    change: float = 0.0
    offset_f: float = 0.0
    offset_change: float = 0.0


def output_bound(
    f: Network, g: Network, *, radius: float, input_shape: Shape | None = None
) -> float:
    """How far the outputs of two networks can be apart for any input of a given norm.

    Parameters
    ----------
    f, g : Network
        The original and the compressed network: the same types of layers, which read the same
        values, and one output.
    radius : float, at least 0
        Of the ball of inputs: ``||x||_2 <= radius``.
    input_shape : tuple of int, optional
        Of one input; needed where there is a convolution or a pooling.

    Returns
    -------
    float
        At least ``||g(x) - f(x)||_2`` for every such x, in real arithmetic: add the rounding of
        what runs, that of BatchNorm's epsilon to the dtype too. Infinite where it overflows.

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
    ball certificates follow single inputs instead. Sums add the norms, and products multiply them.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> f = Sequential((Dense(np.eye(2)), ReLU()))
    >>> g = Sequential((Dense(np.eye(2) * 1.25), ReLU()))
    >>> round(output_bound(f, g, radius=4.0), 6)
    1.0
    """
    pairs, last = paired(f, g), f.outputs[0]
    sizes, differences = [as_float(radius, "radius", 0.0)], [0.0]
    shapes: list[Shape | None] = [input_shape]
    with np.errstate(all="ignore"):
        for i, ((a, b), reads) in enumerate(zip(pairs, f.inputs, strict=True)):
            read = [shapes[v] for v in reads]
            known = [shape for shape in read if shape is not None]
            with naming_layer(f, i):
                if isinstance(a, Dense) and not known:
                    known = [shape_of(a.weight)[:1]]
                whole = len(known) == len(reads)
                shapes.append(a.output_shape(*known) if whole else None)
                at = ([sizes[v] for v in reads], [differences[v] for v in reads])
                if isinstance(a, Add | Concat | Multiply) and type(a) in LAYER_TYPES:
                    size, difference = _joined(a, *at)
                elif len(reads) != 1:
                    raise CompressionError("no bound is known for a layer of this type")
                else:
                    (size,), (difference,) = at
                    c = _Constants(*map(_number, _constants(a, b, read[0])))
                    products = _times(c.stretch_g, difference) + _times(c.change, size)
                    difference = upward(products + c.offset_change)
                    size = upward(_times(c.stretch_f, size) + c.offset_f)
            sizes.append(size)
            differences.append(difference)
    return differences[last]


def _number(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _joined(
    layer: Add | Concat | Multiply, sizes: list[float], differences: list[float]
) -> tuple[float, float]:
    """The norms behind a layer that reads several values: the size of f's, and the difference.

    The 2-norm of a product of coordinates, also with a gate, is at most the product of the norms:
    no coordinate is larger than its array's norm.
    """
    if isinstance(layer, Add):
        return upward(sum(sizes)), upward(sum(differences))
    if isinstance(layer, Concat):
        return _hypotenuse(sizes), _hypotenuse(differences)
    (x, y), (dx, dy) = sizes, differences
    return _times(x, y), upward(_times(x, dy) + _times(dx, upward(y + dy)))


def _hypotenuse(norms: list[float]) -> float:
    return upward(math.hypot(*norms)) if math.isfinite(sum(norms)) else math.inf


def _times(a: float, b: float) -> float:
    """The product, rounded upward; nothing times anything is nothing."""
    return math.nextafter(a * b, math.inf) if a and b else 0.0


def _constants(a: Layer, b: Layer, shape: Shape | None) -> _Constants:
    match a, b:
        case _ if type(a) not in LAYER_TYPES:
            pass
        case (Dense(), Dense()) | (Conv2D(), Conv2D()) | (ConvTranspose2D(), ConvTranspose2D()):
            return _affine(a, b, shape)  # type: ignore[arg-type]
        case (BatchNorm(), BatchNorm()):
            return _batch_norm(a, b, shape)
        case (Flatten() | ReLU() | Dropout() | ChannelShuffle(), _):
            return _Constants(1.0, 1.0)  # none of them moves 0
        case LeakyReLU(), _:
            slope = max(1.0, abs(a.negative_slope))
            return _Constants(slope, slope)
        case PReLU(), PReLU():
            return _prelu(*(layer.slope.astype(np.float64) for layer in (a, b)))
        case Clip() | HardSigmoid(), _:
            slope = abs(a.alpha) if isinstance(a, HardSigmoid) else 1.0
            start = float(abs(a.forward(np.zeros(()))))
            entries = _entries(shape) if start else 0
            return _Constants(slope, slope, offset_f=upward(start * math.sqrt(entries)))
        case Sigmoid() | Tanh() | HardSwish() | SiLU(), _:
            slope = LIPSCHITZ[type(a)]
            entries = _entries(shape) if isinstance(a, Sigmoid) else 0  # the others keep 0
            return _Constants(slope, slope, offset_f=upward(0.5 * math.sqrt(entries)))
        case Upsample2D(), _:
            copies = upward(math.sqrt(math.prod(pair(a.factor, "factor", 1))))
            return _Constants(copies, copies)
        case (Softmax(), _):
            # Its Jacobian is diag(p) - p p', whose rows sum to 2 p (1 - p) <= 1/2 (Gershgorin).
            return _Constants(0.5, 0.5, offset_f=upward(math.sqrt(_entries(shape))))
        case MaxPool2D() | AvgPool2D() | GlobalAvgPool2D(), _:
            stretch = _pooling(a, _image(shape)[:2])
            return _Constants(stretch, stretch)
    raise CompressionError(f"there is no bound for {a!r} against {b!r}")


def _prelu(f: Array, g: Array) -> _Constants:
    of_f, of_g = (float(np.maximum(np.abs(slope), 1.0).max(initial=1.0)) for slope in (f, g))
    return _Constants(of_f, of_g, upward(float(np.abs(g - f).max(initial=0.0))))


def _affine(a: Affine, b: Affine, shape: Shape | None) -> _Constants:
    maps, copies = affine_pair(a, b), 1.0
    if not isinstance(a, Dense):
        oh, ow, _ = a.output_shape(_image(shape))
        copies = upward(math.sqrt(oh * ow))  # a bias stands at every place of the output

    def norm(map: Linear, rounded: float = 0.0) -> float:
        if not np.isfinite(map.weight).all():
            return math.inf
        if not isinstance(a, Dense):
            whole = _grouped_norm(map.weight, a, shape)
        else:
            whole = spectral_norm_upper(map.weight)
        wrong = _fro(map.wrong) + _times(rounded, fro_upper(map.weight))
        return upward(whole + _times(wrong, copies))

    return _Constants(
        norm(maps.f),
        norm(maps.g),
        norm(maps.change, UNIT),  # the difference was rounded
        _times(_fro(maps.offset), copies),
        upward(_times(_fro(maps.offset_change), copies), 8),
    )


def _fro(array: Array) -> float:
    return fro_upper(array) if np.isfinite(array).all() else math.inf


def _grouped_norm(kernel: Array, layer: Conv2D | ConvTranspose2D, shape: Shape | None) -> float:
    """Groups see disjoint channels, so the norm is the largest of theirs."""
    (h, w, _), groups = _image(shape), layer.groups
    parts = np.split(kernel, groups, axis=3)
    if isinstance(layer, Conv2D):
        options = {n: v for n, v in layer.options().items() if n != "groups"}
        return max(conv_norm_upper(part, (h, w), **options) for part in parts)
    # The adjoint of the convolution that goes back, which has the same norm.
    hw, g = layer.geometry((h, w))
    back = {"stride": g.stride, "padding": g.pads, "dilation": g.dilation}
    return max(conv_norm_upper(part.swapaxes(2, 3), hw, **back) for part in parts)  # type: ignore[arg-type]


def _batch_norm(a: BatchNorm, b: BatchNorm, shape: Shape | None) -> _Constants:
    norms = norm_pair(a, b)
    copies = upward(math.sqrt(_entries(shape) / len(a.scale)))

    def sizes(linear: Linear) -> Array:
        return np.asarray(np.abs(linear.weight) + linear.wrong)

    def largest(linear: Linear) -> float:
        return upward(float(sizes(linear).max(initial=0)))

    return _Constants(
        largest(norms.f),
        largest(norms.g),
        largest(norms.change),
        _times(_fro(sizes(norms.offset)), copies),
        _times(_fro(sizes(norms.offset_change)), copies),
    )


def _pooling(layer: MaxPool2D | AvgPool2D | GlobalAvgPool2D, hw: Shape) -> float:
    """The squared norm is at most the product of the largest row sum and column sum (Schur)."""
    if isinstance(layer, MaxPool2D):
        # A maximum moves by no more than the window does; an entry is in so many windows.
        g, windows = layer.geometry(hw), 1
        for axis, size in enumerate(hw):
            pads, last = g.pads[axis], g.output[axis] * g.stride[axis]
            reads = np.add.outer(np.arange(0, last, g.stride[axis]), np.arange(g.kernel[axis]))
            counts = np.bincount(reads.ravel(), minlength=pads[0] + size)
            windows *= int(counts[pads[0] : pads[0] + size].max())
        return upward(math.sqrt(windows))
    y, pullback = layer.vjp(np.zeros((1, *hw, 1)))
    columns = pullback(np.ones_like(y))[0]
    assert columns is not None  # it was not forgone
    return upward(math.sqrt(float(columns.max())))


def _image(shape: Shape | None) -> tuple[int, int, int]:
    if shape is None or len(shape) != 3:
        raise CompressionError(f"input_shape must be given as (H, W, C), not {shape}")
    return shape[0], shape[1], shape[2]


def _entries(shape: Shape | None) -> int:
    if shape is None:
        raise CompressionError("input_shape must be given")
    return math.prod(shape)
