"""Channels removed from a network: parameters and multiplications fall, unlike with a mask."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, as_int, freeze
from minicompress.errors import CompressionError
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import LAYER_TYPES, Conv2D, Dense
from minicompress.nn.network import Network
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import finite_model
from minicompress.nn.pointwise import Dropout, LeakyReLU, ReLU, Sigmoid, Tanh
from minicompress.nn.stateless import AvgPool2D, Flatten, GlobalAvgPool2D, MaxPool2D
from minicompress.representation import decode, shape_of


def remove_channels(model: Network, index: int, keep: ArrayLike) -> Network:
    """Remove output channels of a layer, and every weight that belongs to them.

    Parameters
    ----------
    model : Network
        Weights that have to be cut are decoded.
    index : int
        Of a `Conv2D` or `Dense` that is not the last layer with weights.
    keep : (channels,) ndarray of bool, or (n,) ndarray of increasing indices
        The channels that stay, at least one.

    Returns
    -------
    Network
        Without the weights and biases of these channels, without their entries in batch
        normalizations and depthwise convolutions, and without the rows of the next layer that read
        them, also behind a `Flatten`. Removing a channel that is zero everywhere changes no output.

    Raises
    ------
    CompressionError
        No channel would stay, the network would have fewer outputs, or a layer before the next one
        with weights mixes channels.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> model = Sequential((Conv2D(rng.normal(size=(3, 3, 1, 4))), ReLU(), Flatten(),
    ...                     Dense(rng.normal(size=(36 * 4, 10)))))
    >>> [layer.weight.shape for layer in remove_channels(model, 0, [1, 3]).layers[::3]]
    [(3, 3, 1, 2), (72, 10)]
    """
    finite_model(model)
    layers = list(model.layers)
    as_int(index, "index", 0, len(layers) - 1)
    first = layers[index]
    if type(first) not in LAYER_TYPES or not isinstance(first, Conv2D | Dense):
        raise CompressionError(f"layer {index} must be a Conv2D or Dense, not {first!r}")
    if isinstance(first, Conv2D) and first.groups != 1:
        raise CompressionError(f"layer {index} has groups={first.groups}: its channels are tied")
    channels = shape_of(first.weight)[-1]
    kept = _kept(keep, channels)
    layers[index] = _with_outputs(first, kept)
    for i, layer in enumerate(layers[index + 1 :], index + 1):
        match layer if type(layer) in LAYER_TYPES else None:
            case Dense(weight=weight) as last:
                # Behind a Flatten the channel varies fastest: row r reads channel r % channels.
                rows = np.isin(np.arange(shape_of(weight)[0]) % channels, kept)
                layers[i] = dataclasses.replace(last, weight=freeze(decode(weight)[rows]))
                return Sequential(tuple(layers))
            case Conv2D(weight=weight, groups=1) as last:
                layers[i] = dataclasses.replace(last, weight=freeze(decode(weight)[:, :, kept]))
                return Sequential(tuple(layers))
            case Conv2D() as depthwise if depthwise.groups == shape_of(depthwise.weight)[3]:
                layers[i] = _with_outputs(depthwise, kept)
            case BatchNorm() as norm:
                cut = {name: decode(v)[kept] for name, v in norm.parameters().items()}
                layers[i] = BatchNorm(**cut, epsilon=norm.epsilon)
            case Flatten() | MaxPool2D() | AvgPool2D() | GlobalAvgPool2D() | Dropout():
                pass
            case ReLU() | LeakyReLU() | Sigmoid() | Tanh():
                pass
            case _:
                raise CompressionError(f"channels cannot be followed through layer {i}, {layer!r}")
    raise CompressionError(
        f"layer {index} makes the outputs of the network: they cannot be removed"
    )


def _kept(keep: ArrayLike, channels: int) -> Array:
    """The channels to keep as increasing indices."""
    array = np.asarray(keep)
    if array.dtype == bool and array.shape == (channels,):
        array = np.flatnonzero(array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise CompressionError(
            f"keep must be {channels} bools or a list of channels, not {array.dtype} of shape "
            f"{array.shape}"
        )
    if array.size == 0:
        raise CompressionError("keep must leave at least one channel")
    if (np.diff(array) <= 0).any() or array[0] < 0 or array[-1] >= channels:
        raise CompressionError(
            f"keep must hold increasing channels from 0 to {channels - 1}, not {array.tolist()}"
        )
    return array


def _with_outputs(layer: Conv2D | Dense, kept: Array) -> Conv2D | Dense:
    changed: dict[str, Any] = {"weight": freeze(decode(layer.weight)[..., kept])}
    if layer.bias is not None:
        changed["bias"] = freeze(decode(layer.bias)[kept])
    if isinstance(layer, Conv2D) and layer.groups > 1:  # depthwise: a group for each channel
        changed["groups"] = len(kept)
    return dataclasses.replace(layer, **changed)
