"""Batch normalization folded into the layers around it: fewer layers, the same function."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from minicompress.arrays import Array, DType, cast_or_refuse
from minicompress.errors import naming
from minicompress.nn.composition import replaced
from minicompress.nn.layer import Layer
from minicompress.nn.layers import LAYER_TYPES, Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network
from minicompress.nn.normalization import NO_EPSILON, BatchNorm
from minicompress.nn.parameters import finite_model
from minicompress.representation import decode, dtype_of, shape_of


class _Affine(NamedTuple):
    """``ratio * (x - mean) + offset``, for each channel, in float64."""

    ratio: Array
    mean: Array
    offset: Array

    def shift(self) -> Array:
        """What it makes of zeros."""
        return np.asarray(self.offset - self.mean * self.ratio)


def fold_batch_norm(network: Network) -> Network:
    """Fold every batch normalization into a convolution or dense layer beside it.

    Parameters
    ----------
    network : Network
        The weights of the layers that change are decoded.

    Returns
    -------
    Network
        The same function up to rounding. A `BatchNorm` that cannot be folded becomes a scale and a
        shift: a `BatchNorm` with mean 0, variance 1 and an `epsilon` without effect.

    Raises
    ------
    CompressionError
        A weight is NaN or infinite, or a product is too large for the dtype: the message names
        layer and entry.

    Notes
    -----
    Let ``r = scale / sqrt(variance + epsilon)``. Backward: into the `Conv2D`, `ConvTranspose2D`,
    `Dense` or `BatchNorm` before it, if nothing else reads that layer. ``w' = w * r`` and ``b' = (b
    - mean) * r + offset`` (B. Jacob et al., 2018, section 3.2).

    Else forward: into the layers that read it, if each is a `Dense` or a convolution and the
    network does not return it. With ``s = offset - mean * r``, ``w' = r * w`` and ``b' = b + sum of
    s * w``. A convolution that pads with zeros, or a transposed one, takes it only if s is 0.

    Each fold is computed in float64 and rounded once.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> one = np.ones(1)
    >>> norm = BatchNorm(2 * one, one, 3 * one, 4 * one, epsilon=1e-12)
    >>> folded = fold_batch_norm(Sequential((Dense(np.array([[5.0]])), norm)))
    >>> len(folded.layers), folded(np.array([[1.0]]))
    (1, array([[3.]]))
    """
    finite_model(network)
    layers: list[Any] = [*network.layers]  # None is a folded one: it passes its input on
    readers = _readers(network)
    norms = [i for i, layer in enumerate(network.layers) if type(layer) is BatchNorm]
    for i in norms:
        norm, before = layers[i], network.inputs[i][0] - 1
        while before >= 0 and layers[before] is None:
            before = network.inputs[before][0] - 1
        maker = layers[before] if before >= 0 else None
        if maker is not None and readers[network.inputs[i][0]] == [i]:
            with naming(f"layer {i} (BatchNorm), folded into the {type(maker).__name__} before it"):
                if folded := _with_scaled_outputs(maker, _affine(norm)):
                    layers[before], layers[i] = folded, None
    for i in norms:
        if (norm := layers[i]) is None:
            continue
        affine, behind = _affine(norm), _still_there(layers, readers, i + 1)
        with naming(f"layer {i} (BatchNorm), folded into what reads it"):
            changed = {k: _with_scaled_inputs(layers[k], affine) for k in behind if k is not None}
            if None in behind or None in changed.values():
                layers[i] = _scale_and_shift(affine, norm.scale.dtype)
            else:
                layers[i] = None
                for k, layer in changed.items():
                    layers[k] = layer
    return replaced(network, [() if layer is None else (layer,) for layer in layers])


def _readers(network: Network) -> list[list[int | None]]:
    """For every value the layers that read it, and None where it is an output."""
    readers: list[list[int | None]] = [[] for _ in range(len(network.layers) + 1)]
    for i, reads in enumerate(network.inputs):
        for value in reads:
            readers[value].append(i)
    for value in network.outputs:
        readers[value].append(None)
    return readers


def _still_there(layers: list[Any], readers: list[list[int | None]], value: int) -> set[int | None]:
    """The readers of a value; what was folded stands for its own readers."""
    found: set[int | None] = set()
    for k in readers[value]:
        if k is not None and layers[k] is None:
            found |= _still_there(layers, readers, k + 1)
        else:
            found.add(k)
    return found


def _affine(norm: BatchNorm) -> _Affine:
    wide = (v.astype(np.float64) for v in (norm.scale, norm.offset, norm.mean, norm.variance))
    scale, offset, mean, variance = wide
    with np.errstate(over="ignore", invalid="ignore"):
        return _Affine(scale / np.sqrt(variance + norm.epsilon), mean, offset)


def _with_scaled_outputs(layer: Layer, norm: _Affine) -> Layer | None:
    """The layer and the normalization behind it; None if it cannot take it over."""
    if type(layer) is BatchNorm:
        first = _affine(layer)
        offset = (first.offset - norm.mean) * norm.ratio + norm.offset
        both = _Affine(first.ratio * norm.ratio, first.mean, offset)
        return _scale_and_shift(both, layer.scale.dtype)
    if not isinstance(layer, Conv2D | ConvTranspose2D | Dense) or type(layer) not in LAYER_TYPES:
        return None
    weight = decode(layer.weight).astype(np.float64)
    bias = 0.0 if layer.bias is None else decode(layer.bias).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        new = weight * norm.ratio, (bias - norm.mean) * norm.ratio + norm.offset
    return _with_weights(layer, *new)


def _with_scaled_inputs(layer: Layer, norm: _Affine) -> Layer | None:
    """The layer and the normalization before it; None if it cannot take it over exactly."""
    if not isinstance(layer, Conv2D | ConvTranspose2D | Dense) or type(layer) not in LAYER_TYPES:
        return None
    if norm.shift().any() and not reads_no_zeros(layer):
        return None
    weight = decode(layer.weight).astype(np.float64)
    groups, rows, outputs = getattr(layer, "groups", 1), *weight.shape[-2:]
    ratio, shift = (  # what each output reads: (rows, outputs)
        np.repeat(v.reshape(groups, rows), outputs // groups, 0).T
        for v in (norm.ratio, norm.shift())
    )
    with np.errstate(over="ignore", invalid="ignore"):
        bias = (shift * weight).sum(tuple(range(weight.ndim - 1)))
        if layer.bias is not None:
            bias = bias + decode(layer.bias)
        return _with_weights(layer, weight * ratio, bias)


def reads_no_zeros(layer: Layer) -> bool:
    """Whether every output is a sum over a whole window of the input."""
    if isinstance(layer, Conv2D):
        alone = layer.padding == "same" and shape_of(layer.weight)[:2] == (1, 1)
        return alone or layer.padding in ("valid", ((0, 0), (0, 0)))
    return isinstance(layer, Dense)


def _with_weights(layer: Conv2D | ConvTranspose2D | Dense, weight: Array, bias: Array) -> Layer:
    dtype = dtype_of(layer.weight)
    return dataclasses.replace(
        layer,
        weight=cast_or_refuse(weight, dtype, "weight"),
        bias=cast_or_refuse(bias, dtype, "bias"),
    )


def _scale_and_shift(norm: _Affine, dtype: DType) -> BatchNorm:
    zero, one = np.zeros(norm.ratio.shape, dtype), np.ones(norm.ratio.shape, dtype)
    scale = cast_or_refuse(norm.ratio, dtype, "scale")
    offset = cast_or_refuse(norm.shift(), dtype, "offset")
    return BatchNorm(scale, offset, zero, one, epsilon=NO_EPSILON)
