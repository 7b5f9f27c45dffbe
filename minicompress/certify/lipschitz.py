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
from minicompress.nn.kernels.windows import geometry
from minicompress.nn.layers import LAYER_TYPES, Conv2D, Dense, Layer, Shape
from minicompress.nn.network import Sequential, naming_layer
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
from minicompress.norms import (
    UNIT,
    fro_upper,
    spectral_norm_upper,
    upward,
)
from minicompress.representation import decode, shape_of


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
                shape = a.output_shape(shape) if shape is not None else _unshaped(a)
            products = _times(c.stretch_g, difference) + _times(c.change, size)
            difference = upward(products + c.offset_change)
            size = upward(_times(c.stretch_f, size) + c.offset_f)
    return difference


def _times(a: float, b: float) -> float:
    """The product, rounded upward; nothing times anything is nothing."""
    return math.nextafter(a * b, math.inf) if a and b else 0.0


def _unshaped(layer: Layer) -> Shape | None:
    return layer.output_shape(shape_of(layer.weight)[:1]) if isinstance(layer, Dense) else None


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
        case (GlobalAvgPool2D(), _):
            h, w, _ = _image(shape)
            mean = upward(1 / math.sqrt(h * w))
            return _Constants(mean, mean)
        case MaxPool2D() | AvgPool2D(), _:
            return _pooling(a, shape)
    raise CompressionError(f"there is no bound for {a!r} against {b!r}")


def _affine(a: Conv2D | Dense, b: Conv2D | Dense, shape: Shape | None) -> _Constants:
    maps, copies = affine_pair(a, b), 1.0
    if isinstance(a, Conv2D):
        oh, ow, _ = a.output_shape(_image(shape))
        copies = upward(math.sqrt(oh * ow))  # a bias stands at every place of the output

    def norm(map: Linear, rounded: float = 0.0) -> float:
        if not np.isfinite(map.weight).all():
            return math.inf
        whole = (
            _grouped_norm(map.weight, a, shape)
            if isinstance(a, Conv2D)
            else spectral_norm_upper(map.weight)
        )
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
    h, w, _ = _image(shape)
    norms = (
        conv_norm_upper(
            part, (h, w), stride=layer.stride, padding=layer.padding, dilation=layer.dilation
        )
        for part in np.split(kernel, layer.groups, axis=3)
    )
    return max(norms, default=0.0)


def _batch_norm(a: BatchNorm, b: BatchNorm, shape: Shape | None) -> _Constants:
    """It is ``factor x + offset``, channel by channel, each with what its rounding loses."""
    factors, offsets, wrong = [], [], []
    for layer in (a, b):
        arrays = [decode(rep).astype(np.float64) for rep in layer.parameters().values()]
        scale, offset, mean, variance = arrays
        factor = scale / np.sqrt(variance + float(layer.epsilon))
        shift = mean * factor
        factors.append(factor)
        offsets.append(offset - shift)
        lost = 16 * UNIT * (np.abs(offset) + np.abs(shift)) + TINY * (np.abs(mean) + 4)
        wrong.append((8 * UNIT * np.abs(factor) + 2 * TINY, lost))
    apart = [np.abs(v[1] - v[0]) * (1 + 2 * UNIT) for v in (factors, offsets)]
    apart = [v + x + y for v, x, y in zip(apart, *wrong, strict=True)]
    fields = [layer.parameters().values() for layer in (a, b)]
    if a.epsilon == b.epsilon and all(np.array_equal(*two) for two in zip(*fields, strict=True)):
        apart = [np.zeros_like(v) for v in apart]
    copies = upward(math.sqrt(_entries(shape) / len(factors[0])))

    def largest(v: Array) -> float:
        return upward(float(v.max(initial=0)))

    return _Constants(
        largest(np.abs(factors[0]) + wrong[0][0]),
        largest(np.abs(factors[1]) + wrong[1][0]),
        largest(apart[0]),
        _times(_fro(np.abs(offsets[0]) + wrong[0][1]), copies),
        _times(_fro(apart[1]), copies),
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


def _image(shape: Shape | None) -> tuple[int, int, int]:
    if shape is None or len(shape) != 3:
        raise CompressionError(f"input_shape must be given as (H, W, C), not {shape}")
    return shape[0], shape[1], shape[2]


def _entries(shape: Shape | None) -> int:
    if shape is None:
        raise CompressionError("input_shape must be given")
    return math.prod(shape)
