"""Rewriting a network: other layers, the same function, or a smaller one of the same form.

What a mask only marks, these functions take away: parameters and multiplications really fall.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, as_int, cast_or_refuse, freeze
from minicompress.errors import CompressionError, naming
from minicompress.nn.layers import LAYER_TYPES, Conv2D, Dense, Layer, factor_layers
from minicompress.nn.network import Sequential, finite_layer, finite_model
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.stateless import (
    AvgPool2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Sigmoid,
    Tanh,
)
from minicompress.representation import LowRank, decode, shape_of

# Each channel of their output comes from the same channel of their input.
CHANNELWISE = (
    ReLU,
    LeakyReLU,
    Sigmoid,
    Tanh,
    Dropout,
    MaxPool2D,
    AvgPool2D,
    GlobalAvgPool2D,
)


def fold_batch_norm(model: Sequential) -> Sequential:
    """Fold every batch normalization into the convolution or dense layer right before it.

    Parameters
    ----------
    model : Sequential
        Weights of the layers in question are decoded.

    Returns
    -------
    Sequential
        The same function up to rounding, without a `BatchNorm`.

    Raises
    ------
    CompressionError
        A `BatchNorm` does not stand right behind a `Conv2D` or `Dense`, a weight is NaN or
        infinite, or a product is too large for the dtype: the message names layer and entry.

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
            stands = "first" if before is None else f"behind {type(before).__name__}"
            raise CompressionError(
                f"layer {i}, BatchNorm, must stand right behind a Conv2D or Dense, not {stands}"
            )
        with naming(f"layer {i} (BatchNorm), folded into the {type(before).__name__} before it"):
            layers.append(_folded(before, layer))
    return Sequential(tuple(layers))


def factorize(layer: Layer) -> tuple[Layer, ...]:
    """A layer with a low-rank weight as a chain of ordinary layers, one for each factor.

    Parameters
    ----------
    layer : Conv2D or Dense
        Its weight a `LowRank` of `truncated_svd`, `channel_svd`, `spatial_svd` or `tucker2`.

    Returns
    -------
    tuple of Layer
        The same function up to rounding; the bias is the last one's.

    Raises
    ------
    CompressionError
        The weight is no `LowRank`, or there is no such chain for it.

    Examples
    --------
    >>> product = LowRank((np.ones((8, 2)), np.ones((2, 4))), "ir,ro->io")
    >>> [part.weight.shape for part in factorize(Dense(product))]
    [(8, 2), (2, 4)]
    """
    weight = getattr(layer, "weight", None)
    finite_layer(layer)
    if not isinstance(weight, LowRank):
        raise CompressionError(f"layer must have a LowRank weight, not be {layer!r}")
    chain = factor_layers(layer)
    if len(chain) == 1:
        raise CompressionError(f"there is no chain of layers for {weight.subscripts!r} here")
    return chain


def remove_channels(model: Sequential, index: int, keep: ArrayLike) -> Sequential:
    """Remove output channels of a layer, and all that hangs on them, from a network.

    Parameters
    ----------
    model : Sequential
        Weights that have to be cut are decoded.
    index : int
        Of a `Conv2D` or `Dense` that is not the last layer with weights.
    keep : (channels,) ndarray of bool, or (n,) ndarray of increasing indices
        The channels that stay, at least one.

    Returns
    -------
    Sequential
        The channels' weights and biases are gone, with their entries in batch normalizations and
        depthwise convolutions on the way, and the rows that read them in the next layer: also
        those behind a `Flatten`. Removing a channel that is zero everywhere changes no output.

    Raises
    ------
    CompressionError
        No channel would stay, the outputs of the network would change in number, or a layer on
        the way mixes channels in a way that cannot be followed.

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
    for i in range(index + 1, len(layers)):
        layer = layers[i]
        match layer:
            case _ if type(layer) not in LAYER_TYPES:
                raise CompressionError(f"channels cannot be followed through layer {i}, {layer!r}")
            case Dense():
                # Behind a Flatten the channel varies fastest: row r reads channel r % channels.
                rows = np.arange(shape_of(layer.weight)[0]) % channels
                weight = decode(layer.weight)[np.isin(rows, kept)]
                layers[i] = dataclasses.replace(layer, weight=freeze(weight))
                return Sequential(tuple(layers))
            case Conv2D(groups=1):
                weight = decode(layer.weight)[:, :, kept]
                layers[i] = dataclasses.replace(layer, weight=freeze(weight))
                return Sequential(tuple(layers))
            case Conv2D() if layer.groups == channels == shape_of(layer.weight)[3]:
                layers[i] = _with_outputs(layer, kept)
            case BatchNorm():
                scale, offset, mean, variance = (v[kept] for v in _statistics(layer))
                layers[i] = BatchNorm(scale, offset, mean, variance, layer.epsilon)
            case Flatten() | ReLU() | LeakyReLU() | Sigmoid() | Tanh() | Dropout():
                pass
            case _ if not isinstance(layer, CHANNELWISE):
                raise CompressionError(f"channels cannot be followed through layer {i}, {layer!r}")
    raise CompressionError(
        f"layer {index} makes the outputs of the network: they cannot be removed"
    )


def dense_to_conv(layer: Dense, input_hw: tuple[int, int]) -> Conv2D:
    """A dense layer behind a `Flatten` as a convolution as large as the image: an equal one.

    Parameters
    ----------
    layer : Dense
        Of H * W * C inputs.
    input_hw : (int, int)
        H and W of the images that are flattened.

    Returns
    -------
    Conv2D
        With a kernel (H, W, C, out). On (N, H, W, C) it gives (N, 1, 1, out), the very sums of the
        dense layer; on a larger image, the dense layer at every place.

    Raises
    ------
    CompressionError
        The number of inputs is no multiple of H * W.

    Examples
    --------
    >>> dense_to_conv(Dense(np.ones((4 * 4 * 32, 10))), (4, 4)).weight.shape
    (4, 4, 32, 10)
    """
    h, w, channels = _image(layer, input_hw)
    weight = decode(layer.weight)
    return Conv2D(weight.reshape(h, w, channels, weight.shape[1]), layer.bias)


def dense_to_global_pool(layer: Dense, input_hw: tuple[int, int]) -> tuple[Conv2D, GlobalAvgPool2D]:
    """A dense layer behind a `Flatten` as a 1x1 convolution and a mean over the image.

    Parameters
    ----------
    layer : Dense
        Of H * W * C inputs.
    input_hw : (int, int)

    Returns
    -------
    tuple of Conv2D and GlobalAvgPool2D
        H * W times fewer weights. The same function where the dense weights do not depend on the
        place, and the nearest one for inputs that do not; otherwise a start for retraining.

    Raises
    ------
    CompressionError
        The number of inputs is no multiple of H * W.

    Notes
    -----
    M. Lin, Q. Chen and S. Yan, *Network in network* (2014).

    Examples
    --------
    >>> conv, pool = dense_to_global_pool(Dense(np.ones((4 * 4 * 32, 10))), (4, 4))
    >>> conv.weight.shape
    (1, 1, 32, 10)
    """
    h, w, channels = _image(layer, input_hw)
    weight = decode(layer.weight)
    with np.errstate(over="ignore", invalid="ignore"):
        total = weight.reshape(h * w, channels, -1).sum(0, dtype=np.float64)
    total = cast_or_refuse(total, weight.dtype, "the sum of weights")
    return Conv2D(total[None, None], layer.bias), GlobalAvgPool2D()


def _folded(layer: Conv2D | Dense, norm: BatchNorm) -> Layer:
    scale, offset, mean, variance = (v.astype(np.float64) for v in _statistics(norm))
    weight = decode(layer.weight)
    bias = 0.0 if layer.bias is None else decode(layer.bias).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = scale / np.sqrt(variance + norm.epsilon)
        new_weight, new_bias = weight * ratio, (bias - mean) * ratio + offset
    return dataclasses.replace(
        layer,
        weight=cast_or_refuse(new_weight, weight.dtype, "weight"),
        bias=cast_or_refuse(np.asarray(new_bias), weight.dtype, "bias"),
    )


def _statistics(norm: BatchNorm) -> tuple[Array, Array, Array, Array]:
    return norm.scale, norm.offset, norm.mean, norm.variance


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
    weight = freeze(decode(layer.weight)[..., kept])
    bias = None if layer.bias is None else freeze(decode(layer.bias)[kept])
    if isinstance(layer, Conv2D) and layer.groups > 1:  # depthwise: a group for each channel
        return dataclasses.replace(layer, weight=weight, bias=bias, groups=len(kept))
    return dataclasses.replace(layer, weight=weight, bias=bias)


def _image(layer: Dense, input_hw: tuple[int, int]) -> tuple[int, int, int]:
    finite_layer(layer)
    h, w = (as_int(n, "input_hw", 1) for n in input_hw)
    rows = shape_of(layer.weight)[0]
    if rows % (h * w):
        raise CompressionError(f"{rows} inputs are no {h} x {w} images: no multiple of {h * w}")
    return h, w, rows // (h * w)
