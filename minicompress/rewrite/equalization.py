"""Cross-layer equalization: the channels between two layers get ranges of one size.

If a channel is divided by a factor in one layer, and the next layer's weights for it are multiplied
by the factor, the network computes the same, as long as what stands between them keeps factors:
``relu(y / s) = relu(y) / s``. With one scale for a whole weight, a channel of small weights gets
few levels; after this, all channels have about as many.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense, decoded_layer
from minicompress.nn.network import Network, check_network, naming_layer
from minicompress.nn.parameters import finite_model, with_layers
from minicompress.nn.pointwise import Clip, Dropout, LeakyReLU, PReLU, ReLU
from minicompress.nn.stateless import (
    AvgPool2D,
    ChannelShuffle,
    Flatten,
    GlobalAvgPool2D,
    MaxPool2D,
    Upsample2D,
)
from minicompress.representation import decode, shape_of

WEIGHTED = (Conv2D, ConvTranspose2D, Dense)

KEEPS_FACTORS = (
    ReLU,
    LeakyReLU,
    PReLU,
    Dropout,
    MaxPool2D,
    AvgPool2D,
    GlobalAvgPool2D,
    Upsample2D,
    ChannelShuffle,
    Flatten,
)
"""f(x / s) = f(x) / s for a positive s in each channel; `Clip` too, if its limits are 0 or none."""

SWEEPS = 100
"""At most so many times over all layers. A long chain of depthwise layers needs some ten."""


def equalize(network: Network) -> Network:
    """Give the channels between two layers weights of about the same size in both.

    Parameters
    ----------
    network : Network
        Fold its batch normalizations first: they end a channel.

    Returns
    -------
    Network
        The same function. The weights that changed are plain arrays.

    Raises
    ------
    CompressionError
        A weight is NaN or infinite, or does not fit the channels that it reads; the message names
        the layer.

    Notes
    -----
    For channel c, let r be the largest magnitude of its weights in the layer that makes it, and q
    that in the layers that read it. The factor ``s = sqrt(r / q)`` makes both ``sqrt(r q)``. It is
    rounded to a power of two, so every product stays bit for bit what it was, and so do the
    outputs of the decoded network, unless an output of some layer leaves the range of normal
    floats. A factor that would take a weight out of it is not taken. Afterwards ``1 / 2 <= r / q <=
    2``. A depthwise layer's weights are both made and read by the same channels, so all pairs are
    repeated until nothing changes.

    Between the layers may stand `ReLU`, `LeakyReLU`, `PReLU`, `Dropout`, `MaxPool2D`, `AvgPool2D`,
    `GlobalAvgPool2D`, `Upsample2D`, `ChannelShuffle`, `Flatten`, and `Clip` whose limits are 0 or
    infinite. Channels that go anywhere else stay as they are: into an output, into `Add`, or into
    the ReLU6 ``Clip(0, 6)``, which cuts a scaled channel at another height.

    It helps where one scale has to do for channels of very different sizes. It looks at weights
    alone, so it can also make a quantized network worse: compare both on examples.

    M. Nagel, M. van Baalen, T. Blankevoort and M. Welling, *Data-free quantization through weight
    equalization and bias correction* (2019), section 4.1.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> network = Sequential((Dense(np.array([[8.0, 0.5]])), ReLU(), Dense(np.ones((2, 1)) / 2)))
    >>> first, _, second = equalize(network).layers
    >>> first.weight, second.weight.T
    (array([[2. , 0.5]]), array([[2. , 0.5]]))
    """
    check_network(network)
    finite_model(network)
    readers = [(i, channel_readers(network, i)) for i in range(len(network.layers))]
    links = [(i, found) for i, found in readers if found]
    decoded = [decoded_layer(layer) for layer in network.layers]
    layers = list(decoded)
    for _ in range(SWEEPS):
        before = list(layers)
        for i, found in links:
            _equalize(layers, i, found)
        if layers == before:
            break
    triples = zip(network.layers, decoded, layers, strict=True)
    return with_layers(network, [old if new is same else new for old, same, new in triples])


def channel_readers(network: Network, index: int) -> list[tuple[int, Array]]:
    """The layers whose weights can take up factors of the output channels of a layer.

    Returns
    -------
    list of (int, (inputs,) int ndarray)
        A layer's index, and for each of its inputs the channel that it is. Empty if the layer has
        no weight, or if any of its channels goes where factors are not kept.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> chain = (Conv2D(np.ones((1, 1, 1, 2))), Flatten(), Dense(np.ones((4, 1))))
    >>> channel_readers(Sequential(chain), 0)
    [(2, array([0, 1, 0, 1]))]
    """
    if type(network.layers[index]) not in WEIGHTED:
        return []
    channels = np.arange(_outputs(network.layers[index]))
    found, waiting = [], [(index + 1, channels)] if channels.size else []
    while waiting:
        value, channels = waiting.pop()
        if value in network.outputs:
            return []
        for j, reads in enumerate(network.inputs):
            layer = network.layers[j]
            if value not in reads:
                continue
            if type(layer) in WEIGHTED:
                if (inputs := _inputs(layer)) % len(channels):
                    with naming_layer(network, j):
                        raise CompressionError(
                            f"its weights read {inputs} inputs, no multiple of {len(channels)} "
                            "channels"
                        )
                found.append((j, np.tile(channels, inputs // len(channels))))
            elif type(layer) is ChannelShuffle:
                with naming_layer(network, j):
                    pixel = layer.forward(channels.astype(np.float64).reshape(1, 1, 1, -1))
                waiting.append((j + 1, pixel.ravel().astype(np.int64)))
            elif _keeps_factors(layer):
                waiting.append((j + 1, channels))
            else:
                return []
    return found


def _keeps_factors(layer: Layer) -> bool:
    if type(layer) is Clip:
        return {abs(layer.low), abs(layer.high)} <= {0.0, np.inf}
    return type(layer) in KEEPS_FACTORS


def _equalize(layers: list[Layer], index: int, readers: list[tuple[int, Array]]) -> None:
    """Equalize the channels that a layer makes, in place."""
    maker, takers = layers[index], [(j, layers[j], channels) for j, channels in readers]
    made = np.abs(_weight(maker)).reshape(-1, _outputs(maker)).max(0, initial=0.0)
    read = np.zeros(made.shape)
    for _, layer, channels in takers:
        np.maximum.at(read, channels, _by_input(np.abs(_weight(layer)), layer))
    used = (made > 0) & (read > 0)
    ranges = (np.where(used, part, 1.0).astype(np.float64) for part in (made, read))
    exponents = np.rint(np.subtract(*map(np.log2, ranges)) / 2).astype(np.int64)
    # Channels of which any number would lose a bit stay as they are.
    for part in maker.parameters().values():
        exponents[_loses_bits(decode(part), -exponents).reshape(-1, made.size).any(0)] = 0
    for _, layer, channels in takers:
        lost = _loses_bits(_weight(layer), _columns(exponents[channels], layer))
        exponents[channels[_by_input(lost, layer)]] = 0
    if not exponents.any():
        return
    scaled = {n: np.ldexp(decode(part), -exponents) for n, part in maker.parameters().items()}
    layers[index] = replace(maker, **scaled)
    for j, layer, channels in takers:
        weight = np.ldexp(_weight(layer), _columns(exponents[channels], layer))
        layers[j] = replace(layer, weight=weight)  # type: ignore[call-arg]


def _loses_bits(part: Array, exponents: Array) -> Array:
    """Which numbers, multiplied by 2**exponent, become subnormal or infinite and lose bits."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.ldexp(np.ldexp(part, exponents), -exponents) != part)


def _weight(layer: Layer) -> Array:
    return decode(layer.parameters()["weight"])


def _outputs(layer: Layer) -> int:
    return shape_of(layer.parameters()["weight"])[-1]


def _inputs(layer: Layer) -> int:
    return shape_of(layer.parameters()["weight"])[-2] * _groups(layer)


def _groups(layer: Layer) -> int:
    return layer.groups if isinstance(layer, Conv2D | ConvTranspose2D) else 1


def _by_input(weight: Array, layer: Layer) -> Array:
    """The largest entry of the weights of every input."""
    groups, (height, width) = _groups(layer), weight.shape[-2:]
    parts = weight.reshape(math.prod(weight.shape[:-2]), height, groups, width // groups)
    return np.asarray(parts.max((0, 3), initial=0).T.ravel())


def _columns(inputs: Array, layer: Layer) -> Array:
    """For every entry of the last two axes of the weight the number of its input."""
    groups = _groups(layer)
    return inputs.reshape(groups, -1).T.repeat(_outputs(layer) // groups, axis=1)
