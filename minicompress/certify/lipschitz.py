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
from minicompress.certify.operator_norms import conv_norm_upper
from minicompress.certify.pairs import TINY, Linear, affine_pair, paired
from minicompress.errors import CompressionError
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.layers import LAYER_TYPES, Conv2D, Dense
from minicompress.nn.network import Network, naming_layer
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import Dropout, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from minicompress.nn.stateless import AvgPool2D, Flatten, GlobalAvgPool2D, MaxPool2D
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
        The original and the compressed network: the same types of layers in the same order.
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
    certificates of `equivalence` follow single inputs instead.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> f = Sequential((Dense(np.eye(2)), ReLU()))
    >>> g = Sequential((Dense(np.eye(2) * 1.25), ReLU()))
    >>> round(output_bound(f, g, radius=4.0), 6)
    1.0
    """
    size, difference, shape = as_float(radius, "radius", 0.0), 0.0, input_shape
    with np.errstate(all="ignore"):
        for i, (a, b) in enumerate(paired(f, g)):
            with naming_layer(f, i):
                c = _Constants(*(math.inf if math.isnan(v) else v for v in _constants(a, b, shape)))
                if shape is None and isinstance(a, Dense):
                    shape = shape_of(a.weight)[:1]
                shape = None if shape is None else a.output_shape(shape)
            products = _times(c.stretch_g, difference) + _times(c.change, size)
            difference = upward(products + c.offset_change)
            size = upward(_times(c.stretch_f, size) + c.offset_f)
    return difference


def _times(a: float, b: float) -> float:
    """The product, rounded upward; nothing times anything is nothing."""
    return math.nextafter(a * b, math.inf) if a and b else 0.0


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
        case LeakyReLU(), _:
            slope = max(1.0, abs(a.negative_slope))
            return _Constants(slope, slope)
        case (Sigmoid(), _):
            return _Constants(0.25, 0.25, offset_f=upward(0.5 * math.sqrt(_entries(shape))))
        case (Softmax(), _):
            # Its Jacobian is diag(p) - p p', whose rows sum to 2 p (1 - p) <= 1/2 (Gershgorin).
            return _Constants(0.5, 0.5, offset_f=upward(math.sqrt(_entries(shape))))
        case MaxPool2D() | AvgPool2D() | GlobalAvgPool2D(), _:
            stretch = _pooling(a, _image(shape)[:2])
            return _Constants(stretch, stretch)
    raise CompressionError(f"there is no bound for {a!r} against {b!r}")


def _affine(a: Conv2D | Dense, b: Conv2D | Dense, shape: Shape | None) -> _Constants:
    maps, copies = affine_pair(a, b), 1.0
    if isinstance(a, Conv2D):
        oh, ow, _ = a.output_shape(_image(shape))
        copies = upward(math.sqrt(oh * ow))  # a bias stands at every place of the output

    def norm(map: Linear, rounded: float = 0.0) -> float:
        if not np.isfinite(map.weight).all():
            return math.inf
        if isinstance(a, Conv2D):
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


def _grouped_norm(kernel: Array, layer: Conv2D, shape: Shape | None) -> float:
    """Groups see disjoint channels, so the norm is the largest of theirs."""
    (h, w, _), options = _image(shape), layer.options()
    parts = np.split(kernel, options.pop("groups"), axis=3)
    return max(conv_norm_upper(part, (h, w), **options) for part in parts)


def _batch_norm(a: BatchNorm, b: BatchNorm, shape: Shape | None) -> _Constants:
    """It is ``factor x + offset``, channel by channel, each with what its rounding loses."""
    f, g = (_factor_and_offset(layer) for layer in (a, b))
    # How far g is from f; nothing, if all of their numbers are the same.
    fields = [layer.parameters().values() for layer in (a, b)]
    same = a.epsilon == b.epsilon and all(map(np.array_equal, *fields))
    factor_change, offset_change = (
        np.where(same, 0.0, np.abs(y - x) * (1 + 2 * UNIT) + wrong_x + wrong_y)
        for (x, wrong_x), (y, wrong_y) in zip(f, g, strict=True)
    )
    copies = upward(math.sqrt(_entries(shape) / len(a.scale)))

    def largest(v: Array) -> float:
        return upward(float(v.max(initial=0)))

    stretch_f, stretch_g = (largest(np.abs(factor.weight) + factor.wrong) for factor, _ in (f, g))
    return _Constants(
        stretch_f,
        stretch_g,
        largest(factor_change),
        _times(_fro(np.abs(f[1].weight) + f[1].wrong), copies),
        _times(_fro(offset_change), copies),
    )


def _factor_and_offset(layer: BatchNorm) -> tuple[Linear, Linear]:
    wide = (v.astype(np.float64) for v in (layer.scale, layer.offset, layer.mean, layer.variance))
    scale, offset, mean, variance = wide
    factor = scale / np.sqrt(variance + float(layer.epsilon))
    shift = mean * factor
    lost = 16 * UNIT * (np.abs(offset) + np.abs(shift)) + TINY * (np.abs(mean) + 4)
    return Linear(factor, 8 * UNIT * np.abs(factor) + 2 * TINY), Linear(offset - shift, lost)


def _pooling(layer: MaxPool2D | AvgPool2D | GlobalAvgPool2D, hw: Shape) -> float:
    """The squared norm is at most the product of the largest row sum and column sum (Schur)."""
    mean: Layer = layer
    if isinstance(layer, MaxPool2D):
        mean = AvgPool2D(layer.window, layer.stride, layer.padding, count_include_pad=True)
    y, pullback = mean.vjp(np.zeros((1, *hw, 1)))
    columns = pullback(np.ones_like(y))[0]
    assert columns is not None  # it was not forgone
    reach = float(columns.max())
    if isinstance(layer, MaxPool2D):
        # A maximum moves by no more than the window does; an entry is in so many windows.
        reach = round(reach * math.prod(layer.geometry(hw).kernel))
    return upward(math.sqrt(reach))


def _image(shape: Shape | None) -> tuple[int, int, int]:
    if shape is None or len(shape) != 3:
        raise CompressionError(f"input_shape must be given as (H, W, C), not {shape}")
    return shape[0], shape[1], shape[2]


def _entries(shape: Shape | None) -> int:
    if shape is None:
        raise CompressionError("input_shape must be given")
    return math.prod(shape)
