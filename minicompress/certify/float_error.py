"""How far the engine's floating point can be from the real arithmetic of the certificates."""

from __future__ import annotations

import numpy as np

from minicompress.arrays import FLOATS, Array, DType
from minicompress.errors import CompressionError
from minicompress.nn.convolution import conv2d, uses_winograd
from minicompress.nn.kernels.windows import geometry
from minicompress.nn.kernels.winograd import winograd_error_bound
from minicompress.nn.layers import LAYER_TYPES, Conv2D, Dense, Layer
from minicompress.nn.stateless import (
    AvgPool2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
)
from minicompress.norms import UNIT, gamma, smallest_subnormal, unit_roundoff
from minicompress.representation import LowRank, decode, dtype_of

ARITHMETICS = ("real", *(str(dtype) for dtype in FLOATS))


def float_error(layer: Layer, size: Array, error: Array, dtype: DType) -> Array:
    """The error behind a layer that computes in a dtype, from the error before it.

    Parameters
    ----------
    layer : Layer
        Its weights of `dtype`; no `LowRank` ones, which run as their factors.
    size : (B, ...) ndarray of float64
        Bounds of the magnitudes of the exact input.
    error : (B, ...) ndarray of float64
        Bounds of how far the computed input is from it.
    dtype : numpy.dtype

    Returns
    -------
    (B, ...) ndarray of float64

    Raises
    ------
    CompressionError
        The layer is of a type that is not followed, or its weights are of another dtype.

    Notes
    -----
    A sum of n products in any order is off by at most gamma_n of the sum of their magnitudes
    (Higham, 2002, section 3.1), an error that came in is spread by the magnitudes of the weights,
    and float16 is computed in float32 and rounded once more. Where a convolution runs by
    Winograd's path, that path's own bound holds.

    Examples
    --------
    >>> layer = Dense(np.ones((3, 1), np.float32))
    >>> one = np.ones((1, 3))
    >>> float(float_error(layer, one, 0 * one, np.dtype(np.float32))[0, 0]) < 3e-6
    True
    """
    match layer:
        case _ if type(layer) not in LAYER_TYPES:
            pass
        case Conv2D() | Dense():
            return _affine_error(layer, size, error, dtype)
        case Flatten():
            return error.reshape(len(error), int(np.prod(error.shape[1:])))
        case ReLU() | Dropout():
            return error
        case LeakyReLU():
            return error * max(1.0, abs(layer.negative_slope)) + 2 * _output_unit(dtype) * size
        case MaxPool2D():
            return layer.forward(error)
        case AvgPool2D() | GlobalAvgPool2D():
            h, w = size.shape[1:3]
            terms = h * w
            if isinstance(layer, AvgPool2D):
                kernel = geometry((h, w), layer.window, 1, layer.padding).kernel
                terms = kernel[0] * kernel[1]
            unit = _accumulated(terms + 2, dtype)
            return layer.forward(error) + unit * layer.forward(size + error)
    raise CompressionError(f"no bound of the arithmetic of {layer!r} is known")


def _affine_error(layer: Conv2D | Dense, size: Array, error: Array, dtype: DType) -> Array:
    for name, rep in layer.parameters().items():
        if isinstance(rep, LowRank) or dtype_of(rep) != dtype:
            raise CompressionError(
                f"{name} must be of dtype {dtype} and not LowRank, which runs as its factors, to "
                f"bound the arithmetic; it is {rep!r}"
            )
    weight = decode(layer.weight)
    bias = np.zeros(weight.shape[-1], dtype) if layer.bias is None else decode(layer.bias)
    spread, offset = np.abs(weight.astype(np.float64)), np.abs(bias.astype(np.float64))
    reach = size + error
    if isinstance(layer, Dense):
        terms = weight.shape[0]
        incoming, total = error @ spread, reach @ spread + offset
    else:
        names = ("stride", "padding", "dilation", "groups")
        options = {name: getattr(layer, name) for name in names}
        terms = int(np.prod(weight.shape[:3]))
        incoming, total = conv2d(error, spread, **options), conv2d(reach, spread, offset, **options)
        g = geometry(size.shape[1:3], weight.shape[:2], layer.stride, layer.padding, layer.dilation)
        if uses_winograd(weight, g):
            parts = zip(
                np.split(reach, layer.groups, axis=3),
                np.split(weight, layer.groups, axis=3),
                np.split(bias, layer.groups),
                strict=True,
            )
            # Its bound is monotone in |x|, and rounding |x| to dtype may lower it by one part in u.
            fast = [
                winograd_error_bound((x * (1 + 4 * unit_roundoff(dtype))).astype(dtype), w, b, g)
                for x, w, b in parts
            ]
            return np.asarray((incoming + np.concatenate(fast, axis=3)) * (1 + 16 * terms * UNIT))
    unit = _accumulated(terms + 2, dtype)
    lost = (terms + 2) * smallest_subnormal(dtype)
    return np.asarray((incoming + unit * total + lost) * (1 + 16 * terms * UNIT))


def _accumulated(terms: int, dtype: DType) -> float:
    """gamma_terms of the dtype that is computed in, and the rounding to the one that is stored."""
    unit = unit_roundoff(np.dtype(np.float32) if dtype == np.float16 else dtype)
    summed = terms * unit / (1 - terms * unit)
    return (summed + (unit_roundoff(dtype) if dtype == np.float16 else 0.0)) * (1 + gamma(16))


def _output_unit(dtype: DType) -> float:
    return unit_roundoff(dtype) * (1 + gamma(16))
