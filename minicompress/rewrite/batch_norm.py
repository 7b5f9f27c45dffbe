"""Batch normalization folded into the layer before it: one layer less, the same function."""

from __future__ import annotations

import dataclasses

import numpy as np

from minicompress.arrays import cast_or_refuse
from minicompress.errors import CompressionError, naming
from minicompress.nn.composition import Sequential
from minicompress.nn.layer import Layer
from minicompress.nn.layers import LAYER_TYPES, Conv2D, Dense
from minicompress.nn.network import Network
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import finite_model
from minicompress.representation import decode


def fold_batch_norm(model: Network) -> Network:
    """Fold every batch normalization into the convolution or dense layer right before it.

    Parameters
    ----------
    model : Network
        The weights of these layers are decoded.

    Returns
    -------
    Network
        The same function up to rounding, without a `BatchNorm`.

    Raises
    ------
    CompressionError
        The layer before a `BatchNorm` is no `Conv2D` or `Dense`, a weight is NaN or infinite, or a
        product is too large for the dtype: the message names layer and entry.

    Notes
    -----
    ``w' = w * r`` and ``b' = (b - mean) * r + offset`` with ``r = scale / sqrt(variance +
    epsilon)``, computed in float64 and rounded once (B. Jacob et al., 2018, section 3.2).

    Examples
    --------
    >>> one = np.ones(1)
    >>> norm = BatchNorm(2 * one, one, 3 * one, 4 * one, epsilon=1e-12)
    >>> folded = fold_batch_norm(Sequential((Dense(np.array([[5.0]])), norm)))
    >>> len(folded.layers), folded(np.array([[1.0]]))
    (1, array([[3.]]))
    """
    finite_model(model)
    layers: list[Layer] = []
    for i, layer in enumerate(model.layers):
        if type(layer) is not BatchNorm:
            layers.append(layer)
            continue
        before = layers.pop() if layers else None
        if type(before) not in LAYER_TYPES or not isinstance(before, Conv2D | Dense):
            found = "first" if before is None else f"behind {type(before).__name__}"
            raise CompressionError(
                f"layer {i}, BatchNorm, must stand right behind a Conv2D or Dense, not {found}"
            )
        with naming(f"layer {i} (BatchNorm), folded into the {type(before).__name__} before it"):
            layers.append(_folded(before, layer))
    return Sequential(tuple(layers))


def _folded(layer: Conv2D | Dense, norm: BatchNorm) -> Layer:
    wide = (v.astype(np.float64) for v in (norm.scale, norm.offset, norm.mean, norm.variance))
    scale, offset, mean, variance = wide
    weight = decode(layer.weight)
    bias = 0.0 if layer.bias is None else decode(layer.bias).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = scale / np.sqrt(variance + norm.epsilon)
        new_weight, new_bias = weight * ratio, (bias - mean) * ratio + offset
    return dataclasses.replace(
        layer,
        weight=cast_or_refuse(new_weight, weight.dtype, "weight"),
        bias=cast_or_refuse(new_bias, weight.dtype, "bias"),
    )
