"""How far the engine's floating point can be from the real arithmetic of the certificates.

A sum of n terms in any order makes n - 1 additions, each off by at most u times a partial sum
(N. Higham, 2002, section 4.2). Here the terms are known to lie in intervals, so any partial sum
lies between the sum N of all that can be negative and the sum P of all that can be positive: the
error is at most ``u (n max(P, N) + P + N)``, where n counts the terms that can differ from 0. What
comes in wrong is spread by the magnitudes of the weights, and ends at a ReLU that is off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array, DType
from minicompress.certify.curves import Curve, curve_of, largest_slope, value_range
from minicompress.certify.pairs import TINY, Affine, norm_pair, under
from minicompress.errors import CompressionError
from minicompress.nn.convolution import uses_winograd
from minicompress.nn.kernels.windows import Geometry
from minicompress.nn.kernels.winograd import winograd_error_bound
from minicompress.nn.layer import Layer
from minicompress.nn.layers import LAYER_TYPES, Conv2D, ConvTranspose2D, Dense, plain_layers
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import Clip, Dropout, HardSigmoid, HardSwish, LeakyReLU, PReLU, ReLU
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
from minicompress.norms import UNIT, smallest_subnormal, unit_roundoff
from minicompress.representation import decode


class Values(NamedTuple):
    """What goes between two layers: the exact numbers, and how far the computed ones are off."""

    low: Array
    high: Array
    error: Array

    def computed(self) -> tuple[Array, Array]:
        """The ends of the computed numbers, and of the exact ones, rounded outward."""
        slack = 4 * UNIT * (np.abs(self.low) + np.abs(self.high) + self.error)
        return self.low - self.error - slack, self.high + self.error + slack

    def reach(self) -> tuple[Array, Array]:
        """The computed numbers lie in [-down, up]."""
        down, up = (np.maximum(v + self.error, 0) for v in (-self.low, self.high))
        return down * (1 + 2 * UNIT), up * (1 + 2 * UNIT)


def float_error(layer: Layer, read: Sequence[Values], dtype: DType) -> Array:
    """The error behind a layer that computes in a dtype, from the values that it reads.

    Parameters
    ----------
    layer : Layer
        Its weights of `dtype`. `LowRank` ones run as their factors.
    read : sequence of Values of (B, ...) ndarrays of float64
        Bounds of the exact inputs, and of how far the computed inputs are from them.
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
    >>> float(float_error(layer, [Values(one, one, 0 * one)], np.dtype(np.float32))[0, 0]) < 2e-6
    True
    """
    error = _error(layer, read, dtype)
    return np.where(np.isnan(error), np.inf, error)


def _error(layer: Layer, read: Sequence[Values], dtype: DType) -> Array:
    values, curve = read[0], curve_of(layer)
    error, (down, up) = values.error, values.reach()
    match layer:
        case _ if type(layer) not in LAYER_TYPES:
            pass
        case Conv2D() | Dense() | ConvTranspose2D():
            for part in plain_layers(layer):
                values = _affine(part, values, dtype)  # type: ignore[arg-type]
            return values.error
        case BatchNorm():
            return _batch_norm(layer, values, dtype)
        case Flatten():
            return error.reshape(len(error), int(np.prod(error.shape[1:])))
        case Dropout():
            return error
        case Upsample2D() | ChannelShuffle() | MaxPool2D():
            return layer.forward(error)
        case Add():
            return _sum(read, dtype)
        case Concat():
            return np.concatenate([part.error for part in read], -1)
        case Multiply():
            return _product(read[0], read[1], dtype)
        case ReLU():
            return np.minimum(error, up)  # it cannot be off by more than it gives
        case LeakyReLU():
            slope = float(dtype.type(layer.negative_slope))
            unit = abs(slope - layer.negative_slope) + unit_roundoff(dtype) * slope
            lost = smallest_subnormal(dtype) * (down > 0)
            return np.asarray((error + unit * down) * (1 + 8 * UNIT) + lost)
        case PReLU():
            slopes = np.abs(layer.slope.astype(np.float64))
            steepest = np.where(up > 0, np.maximum(slopes, 1.0), slopes)
            fresh = _rounded(dtype, slopes * down * (1 + 2 * UNIT), 1)
            return np.asarray((steepest * error + fresh) * (1 + 8 * UNIT))
        case HardSigmoid():
            line = _line(layer, values, dtype)
            moves = largest_slope(curve, -line[1], line[1])  # type: ignore[arg-type]
            return np.asarray(moves * line[0] + _stored(dtype, np.ones_like(error)))
        case _ if curve is not None:
            moved = largest_slope(curve, *values.computed()) * error
            # Without an error it does not matter how fast the function moves.
            moved = np.where(error > 0, moved, 0.0)
            fresh = _curve(layer, curve, values, dtype)
            return np.asarray((moved + fresh) * (1 + 16 * UNIT))
        case AvgPool2D() | GlobalAvgPool2D():
            terms = math.prod(layer.geometry(error.shape[1:3]).kernel)
            mean = layer.forward(np.maximum(down, up))
            fresh = _summed(dtype, terms + 1, mean, mean, terms * mean)
            fresh += _stored(dtype, mean + fresh)
            return np.asarray((layer.forward(error) + fresh) * (1 + 16 * terms * UNIT))
    raise CompressionError(f"no bound of the arithmetic of {layer!r} is known")


def _rounded(dtype: DType, size: Array, times: int) -> Array:
    """The error of so many roundings of numbers that are no larger than `size`."""
    unit, lost = unit_roundoff(dtype), smallest_subnormal(dtype)
    error = times * (unit * size * (1 + 2 * times * unit) + lost)
    return np.where(2 * size < np.finfo(dtype).max, np.where(size > 0, error, 0.0), np.inf)


def _sum(read: Sequence[Values], dtype: DType) -> Array:
    """From left to right; no partial sum is larger than the sum of all magnitudes."""
    total = sum(np.maximum(*values.reach()) for values in read) * (1 + 2 * len(read) * UNIT)
    error = sum(values.error for values in read) + _rounded(
        _sums_in(dtype), np.asarray(total), len(read) - 1
    )
    stored = _stored(dtype, total + error) if len(read) > 1 else 0.0
    return np.asarray((error + stored) * (1 + 4 * len(read) * UNIT))


def _product(x: Values, y: Values, dtype: DType) -> Array:
    """Off by x's error times y and y's times x, and by one rounding. A gate is broadcast."""
    sizes = [np.maximum(*values.reach()) for values in (x, y)]
    product = sizes[0] * sizes[1] * (1 + 4 * UNIT) + TINY * ((sizes[0] > 0) & (sizes[1] > 0))
    spread = x.error * sizes[1] + y.error * sizes[0]
    lost = 4 * TINY * (product > 0)
    return np.asarray((spread + _rounded(dtype, product, 1)) * (1 + 8 * UNIT) + lost)


def _batch_norm(layer: BatchNorm, values: Values, dtype: DType) -> Array:
    """``fl(fl(fl(x - mean) factor) + offset)``, the factor as the engine rounds it."""
    wide, dtype_of_sums = [np.asarray(v) for v in layer.parameters().values()], _sums_in(dtype)
    scale, offset, mean, variance = (v.astype(dtype_of_sums) for v in wide)
    inverse = 1 / np.sqrt(np.add(variance, layer.epsilon, dtype=dtype_of_sums))
    factor = (scale * inverse).astype(np.float64)
    exact = norm_pair(layer, layer).f
    factor_error = (np.abs(factor - exact.weight) + exact.wrong) * (1 + 4 * UNIT)
    center, shift = mean.astype(np.float64), np.abs(offset.astype(np.float64))
    size = np.maximum(*values.reach()) + np.abs(center)
    error = values.error + _rounded(dtype_of_sums, size, 1)
    moved = (size + error) * (1 + 4 * UNIT)
    product = np.abs(factor) * moved * (1 + 4 * UNIT) + TINY * ((factor != 0) & (moved > 0))
    error = np.abs(factor) * error + factor_error * moved + _rounded(dtype_of_sums, product, 1)
    total = (product + error + shift) * (1 + 4 * UNIT)
    error = error + _rounded(dtype_of_sums, total, 1) + 8 * TINY * (moved > 0)
    return np.asarray((error + _stored(dtype, total + error)) * (1 + 16 * UNIT))


def _line(layer: HardSigmoid, values: Values, dtype: DType) -> tuple[Array, Array]:
    """The error of ``alpha x + beta``, and a bound of its magnitude."""
    sums, size = _sums_in(dtype), np.maximum(*values.reach())
    alpha, beta = float(sums.type(layer.alpha)), float(sums.type(layer.beta))
    product = abs(alpha) * size * (1 + 2 * UNIT) + TINY * (size > 0) * (alpha != 0)
    total = (product + abs(beta)) * (1 + 4 * UNIT)
    fixed = (abs(alpha - layer.alpha) * size + abs(beta - layer.beta)) * (1 + 4 * UNIT)
    fresh = _rounded(sums, product, 1) + _rounded(sums, total, 1) + fixed + 4 * TINY
    error = (abs(layer.alpha) * values.error + fresh) * (1 + 8 * UNIT)
    return error, np.asarray(total + error)


def _curve(layer: Layer, curve: Curve, values: Values, dtype: DType) -> Array:
    """What a function is computed wrong by, at the computed argument."""
    low, high = values.computed()
    size = np.maximum(*values.reach())
    if isinstance(layer, Clip):
        fresh = np.zeros_like(size)
        for limit, met in ((layer.low, low), (layer.high, -high)):
            rounded = float(dtype.type(limit))
            sign = 1.0 if met is low else -1.0
            if rounded != limit:
                reached = met <= max(sign * limit, sign * rounded)
                fresh = np.where(reached, np.maximum(fresh, abs(rounded - limit)), fresh)
        return np.asarray(fresh * (1 + 4 * UNIT))
    sums = _sums_in(dtype)
    unit, lost = unit_roundoff(sums), float(np.finfo(sums).tiny)
    if isinstance(layer, HardSwish):
        # The inner function is off by 3.3 u, where it is neither 0 nor 1; then the product.
        fresh = unit * (4 * np.minimum(size, 4.0) + size) * (1 + 8 * unit) + lost
    else:
        fresh = 20 * unit * value_range(curve, low, high) + 2 * lost * (1 + size)
    return fresh + _stored(dtype, value_range(curve, low, high) + fresh)


def _affine(layer: Affine, values: Values, dtype: DType) -> Values:
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
