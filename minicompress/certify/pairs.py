"""Two networks layer by layer: that they correspond, and the linear maps that run in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.nn.convolution import conv2d, conv_transpose2d
from minicompress.nn.layer import Layer
from minicompress.nn.layers import LAYER_TYPES, Conv2D, ConvTranspose2D, Dense, plain_layers
from minicompress.nn.network import Network, naming_layer
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import Dropout
from minicompress.norms import UNIT, gamma, smallest_subnormal
from minicompress.representation import decode, shape_of

Map: TypeAlias = Callable[[Array], Array]
Affine: TypeAlias = "Conv2D | ConvTranspose2D | Dense"

TINY = smallest_subnormal(np.dtype(np.float64))
"""eta of float64: a product that underflows is off by at most half of it."""


class Linear(NamedTuple):
    """The weight that runs, in float64, and how far each entry can be from the exact one."""

    weight: Array
    wrong: Array


class AffinePair(NamedTuple):
    """The maps of f and of g, and of g - f. The two changes are rounded once."""

    f: Linear
    g: Linear
    change: Linear
    offset: Array
    offset_change: Array


class NormPair(NamedTuple):
    """The factors and offsets of two batch normalizations: of f, of g, and what changes."""

    f: Linear
    g: Linear
    change: Linear
    offset: Linear
    offset_change: Linear


def paired(f: Network, g: Network) -> list[tuple[Layer, Layer]]:
    """The layers of two networks, pair by pair.

    Raises
    ------
    CompressionError
        They do not correspond: other types of layers, values that are read, shapes of weights or
        options. Or they have several outputs.
    """
    for name, model in (("f", f), ("g", g)):
        if not isinstance(model, Network):
            raise CompressionError(f"{name} must be a Network, not {type(model).__name__}")
    if [type(layer) for layer in f.layers] != [type(layer) for layer in g.layers]:
        raise CompressionError("f and g must have the same types of layers in the same order")
    pairs = list(zip(f.layers, g.layers, strict=True))
    for i, (a, b) in enumerate(pairs):
        with naming_layer(f, i):
            if f.inputs[i] != g.inputs[i]:
                raise CompressionError(f"in g it reads values {g.inputs[i]}, not {f.inputs[i]}")
            shapes = [{n: shape_of(rep) for n, rep in p.parameters().items()} for p in (a, b)]
            if any(shapes[0][n] != shapes[1][n] for n in shapes[0].keys() & shapes[1].keys()):
                raise CompressionError(f"weights of shapes {shapes[0]} and {shapes[1]}")
            # An epsilon is followed as the weights are, and a rate changes nothing.
            fixed = type(a) in LAYER_TYPES and not isinstance(a, BatchNorm | Dropout)
            if fixed and a.options() != b.options():
                raise CompressionError(f"{a!r} and {b!r} differ in their options")
    if f.outputs != g.outputs:
        raise CompressionError(f"f returns values {f.outputs}, but g returns {g.outputs}")
    if len(f.outputs) > 1:
        raise CompressionError(
            f"f and g must have one output, not {len(f.outputs)}, the values {f.outputs}: certify "
            "networks of one of them, or join them with a Concat"
        )
    return pairs


def under(layer: Affine, weight: Array) -> Map:
    """The linear map of a layer, with another weight and without a bias."""
    if isinstance(layer, Conv2D):
        return lambda v: conv2d(v, weight, **layer.options())
    if isinstance(layer, ConvTranspose2D):
        return lambda v: conv_transpose2d(v, weight, **layer.options())
    return lambda v: np.asarray(v @ weight)


def affine_pair(a: Affine, b: Affine) -> AffinePair:
    """The linear maps of two layers that correspond, as they run in real arithmetic."""
    factors = [[p.parameters()["weight"] for p in plain_layers(layer)] for layer in (a, b)]
    f, g = (_product([decode(w).astype(np.float64) for w in weights]) for weights in factors)
    same = len(factors[0]) == len(factors[1]) and all(map(np.array_equal, *factors))
    none = np.zeros(f.weight.shape[-1])
    biases = [none if p.bias is None else decode(p.bias).astype(np.float64) for p in (a, b)]
    change = Linear(g.weight - f.weight, 0 * f.wrong if same else f.wrong + g.wrong)
    return AffinePair(f, g, change, biases[0], biases[1] - biases[0])


def norm_pair(a: BatchNorm, b: BatchNorm) -> NormPair:
    """A batch normalization is ``factor x + offset``, each with what its rounding loses."""
    f, g = (_factor_and_offset(layer) for layer in (a, b))
    # How far g is from f; nothing, if all of their numbers are the same.
    fields = [layer.parameters().values() for layer in (a, b)]
    same = a.epsilon == b.epsilon and all(map(np.array_equal, *fields))

    def change(x: Linear, y: Linear) -> Linear:
        moved = y.weight - x.weight
        wrong = 2 * UNIT * np.abs(moved) + x.wrong + y.wrong
        return Linear(np.where(same, 0.0, moved), np.where(same, 0.0, wrong))

    return NormPair(f[0], g[0], change(f[0], g[0]), f[1], change(f[1], g[1]))


def _factor_and_offset(layer: BatchNorm) -> tuple[Linear, Linear]:
    wide = (v.astype(np.float64) for v in (layer.scale, layer.offset, layer.mean, layer.variance))
    scale, offset, mean, variance = wide
    factor = scale / np.sqrt(variance + float(layer.epsilon))
    shift = mean * factor
    lost = 16 * UNIT * (np.abs(offset) + np.abs(shift)) + TINY * (np.abs(mean) + 4)
    return Linear(factor, 8 * UNIT * np.abs(factor) + 2 * TINY), Linear(offset - shift, lost)


def _product(factors: list[Array]) -> Linear:
    """The weight of a layer from its factors: one, but for a `LowRank` weight.

    A product sums r terms: it is off by at most ``gamma_r |A| |B|``, what A is off by times |B|,
    and what underflow loses.
    """
    weight, wrong = factors[0], np.zeros_like(factors[0])
    for factor in factors[1:]:
        slack, lost = gamma(factor.shape[-2] + 8), 4 * factor.shape[-2] * TINY
        spread = wrong + slack * np.abs(weight) + TINY * (weight != 0)
        weight = _composed(weight, factor)
        wrong = _composed(spread, np.abs(factor)) * (1 + slack) + lost
    return Linear(weight, wrong)


def _composed(a: Array, b: Array) -> Array:
    """One linear map after another: matrices, or kernels of which one is 1 wide on each axis."""
    if a.ndim == 2:
        return np.asarray(a @ b)
    (kh, kw, inputs), (lh, lw) = a.shape[:3], b.shape[:2]
    both = np.einsum("hwir,vxro->hvwxio", a, b, optimize=True)
    return np.asarray(both.reshape(kh * lh, kw * lw, inputs, b.shape[3]))
