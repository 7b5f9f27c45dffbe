"""How far the engine's floating point can be from the real arithmetic of the certificates.

A sum of n terms in any order makes n - 1 additions, each off by at most u times a partial sum
(N. Higham, 2002, section 4.2). Here the terms are known to lie in intervals, so any partial sum
lies between the sum N of all that can be negative and the sum P of all that can be positive: the
error is at most ``u (n max(P, N) + P + N)``, where n counts the terms that can differ from 0. What
comes in wrong is spread by the magnitudes of the weights, and ends at a ReLU that is off.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array, DType
from minicompress.certify.pairs import TINY, under
from minicompress.errors import CompressionError
from minicompress.nn.convolution import uses_winograd
from minicompress.nn.kernels.windows import Geometry
from minicompress.nn.kernels.winograd import winograd_error_bound
from minicompress.nn.layer import Layer
from minicompress.nn.layers import LAYER_TYPES, Conv2D, Dense, plain_layers
from minicompress.nn.pointwise import Dropout, LeakyReLU, ReLU
from minicompress.nn.stateless import AvgPool2D, Flatten, GlobalAvgPool2D, MaxPool2D
from minicompress.norms import UNIT, smallest_subnormal, unit_roundoff
from minicompress.representation import decode


class Values(NamedTuple):
    """What goes between two layers: the exact numbers, and how far the computed ones are off."""

    low: Array
    high: Array
    error: Array

    def reach(self) -> tuple[Array, Array]:
        """The computed numbers lie in [-down, up]."""
        down, up = (np.maximum(v + self.error, 0) for v in (-self.low, self.high))
        return down * (1 + 2 * UNIT), up * (1 + 2 * UNIT)


def float_error(layer: Layer, values: Values, dtype: DType) -> Array:
    """The error behind a layer that computes in a dtype, from the values before it.

    Parameters
    ----------
    layer : Layer
        Its weights of `dtype`. `LowRank` ones run as their factors.
    values : Values of (B, ...) ndarrays of float64
        Bounds of the exact input, and of how far the computed input is from it.
    dtype : numpy.dtype

    Returns
    -------
    (B, ...) ndarray of float64
        Infinite where the dtype, or the float32 that float16 is computed in, can overflow.

    Raises
    ------
    CompressionError
        The layer is of a type that is not followed.

    Examples
    --------
    >>> layer = Dense(np.ones((3, 1), np.float32))
    >>> one = np.ones((1, 3))
    >>> float(float_error(layer, Values(one, one, 0 * one), np.dtype(np.float32))[0, 0]) < 2e-6
    True
    """
    error = _error(layer, values, dtype)
    return np.where(np.isnan(error), np.inf, error)


def _error(layer: Layer, values: Values, dtype: DType) -> Array:
    error, (down, up) = values.error, values.reach()
    match layer:
        case _ if type(layer) not in LAYER_TYPES:
            pass
        case Conv2D() | Dense():
            for part in plain_layers(layer):
                values = _affine(part, values, dtype)  # type: ignore[arg-type]
            return values.error
        case Flatten():
            return error.reshape(len(error), int(np.prod(error.shape[1:])))
        case Dropout():
            return error
        case ReLU():
            return np.minimum(error, up)  # it cannot be off by more than it gives
        case LeakyReLU():
            slope = float(dtype.type(layer.negative_slope))
            unit = abs(slope - layer.negative_slope) + unit_roundoff(dtype) * slope
            lost = smallest_subnormal(dtype) * (down > 0)
            return np.asarray((error + unit * down) * (1 + 8 * UNIT) + lost)
        case MaxPool2D():
            return layer.forward(error)
        case AvgPool2D() | GlobalAvgPool2D():
            terms = math.prod(layer.geometry(error.shape[1:3]).kernel)
            mean = layer.forward(np.maximum(down, up))
            fresh = _summed(dtype, terms + 1, mean, mean, terms * mean)
            fresh += _stored(dtype, mean + fresh)
            return np.asarray((layer.forward(error) + fresh) * (1 + 16 * terms * UNIT))
    raise CompressionError(f"no bound of the arithmetic of {layer!r} is known")


def _affine(layer: Conv2D | Dense, values: Values, dtype: DType) -> Values:
    """The values behind one product of plain arrays, which lie in [-N, P]."""
    weight = decode(layer.weight)
    bias = np.zeros(weight.shape[-1], dtype) if layer.bias is None else decode(layer.bias)
    wide, offset = weight.astype(np.float64), bias.astype(np.float64)

    def images(w: Array, *arrays: Array) -> list[Array]:
        return np.split(under(layer, w)(np.concatenate(arrays)), len(arrays))

    down, up = values.reach()
    reach = np.maximum(down, up)
    p_up, p_down, p_error = images(np.maximum(wide, 0), up, down, values.error)
    n_up, n_down, n_error = images(np.maximum(-wide, 0), up, down, values.error)
    (count,) = images((wide != 0).astype(np.float64), (reach > 0).astype(np.float64))
    count = count + (offset != 0)
    slack, lost = 1 + 16 * math.prod(weight.shape[:-1]) * UNIT, 4 * count * TINY
    positive = (p_up + n_down + np.maximum(offset, 0)) * slack + lost
    negative = (n_up + p_down + np.maximum(-offset, 0)) * slack + lost
    largest = np.maximum(positive, negative)
    fresh = _summed(dtype, count, largest, positive + negative, largest)
    if isinstance(layer, Conv2D):
        g = layer.geometry(reach.shape[1:3])
        if uses_winograd(weight.astype(_sums_in(dtype)), g):
            fresh = _by_winograd(reach, weight, bias, g, layer.groups)
    error = (p_error + n_error + fresh + _stored(dtype, largest + fresh)) * slack + lost
    return Values(-negative, positive, np.where(np.isnan(error), np.inf, error))


def _summed(dtype: DType, count: Array | int, largest: Array, total: Array, top: Array) -> Array:
    """The error of a sum of so many terms, by the law at the top of the file.

    `largest` bounds all exact partial sums, `total` the sum of the magnitudes, and `top` what the
    memory of a sum must hold: infinite, where twice that overflows.
    """
    dtype = _sums_in(dtype)
    unit, lost = unit_roundoff(dtype), 2 * count * smallest_subnormal(dtype)
    error = unit * (count * (largest + 2 * unit * count * total) + total) + lost
    return np.where((4 * unit * count < 1) & (2 * top < np.finfo(dtype).max), error, np.inf)


def _stored(dtype: DType, size: Array) -> Array:
    """float16 is computed in float32 and rounded once more."""
    if dtype != np.float16:
        return np.zeros_like(size)
    error = unit_roundoff(dtype) * size + smallest_subnormal(dtype) * (size > 0)
    return np.where(size < np.finfo(dtype).max, error, np.inf)


def _sums_in(dtype: DType) -> DType:
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def _by_winograd(reach: Array, weight: Array, bias: Array, g: Geometry, groups: int) -> Array:
    """The error of Winograd's path, in float32: its own bound, underflow and overflow.

    The rows of the magnitudes of its matrices add up to at most 10, 1 and 19, so that no number on
    the way is above 19 * 19 * (10 * 10 * max|x| * sum|w| + max|b|). The same factors magnify what
    is lost to underflow: half of eta for each product.
    """
    single = np.dtype(np.float32)
    # Its bound is monotone in |x|, which rounding lowers by one part in 2**24.
    x = (reach * (1 + 2.0**-20)).astype(single)
    arrays = (x, weight.astype(single), bias.astype(single))  # their last axes are the channels
    groups_of = zip(*(np.split(v, groups, axis=-1) for v in arrays), strict=True)
    path = np.concatenate([winograd_error_bound(v, w, b, g) for v, w, b in groups_of], axis=3)
    farthest = reach.max((1, 2, 3), keepdims=True)
    sums = np.abs(weight.astype(np.float64)).sum((0, 1, 2)).max(initial=1)
    top = 361 * (100 * farthest * sums + np.abs(bias.astype(np.float64)).max(initial=0))
    lost = smallest_subnormal(single) * 3 * 36100 * weight.shape[2] * (farthest + sums + 1)
    return np.where(2 * top < np.finfo(single).max, path + lost, np.inf)
