"""Networks in a file: the layers, the values that they read, and the outputs.

`code_network` codes a network. Of a chain it codes the layers only. A layer is its number in
`LAYERS`, then its options and weights.
"""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any

import numpy as np

from minicompress.arrays import Array, DType, freeze
from minicompress.nn.kernels.windows import Padding, Pair, pair, resolve_padding
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network, is_chain
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import (
    Clip,
    Dropout,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from minicompress.nn.stateless import (
    Add,
    AvgPool2D,
    ChannelShuffle,
    Concat,
    Flatten,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
    Multiply,
    Upsample2D,
)
from minicompress.representation import Rep, dtype_of, shape_of
from minicompress.storage.coding import Template, code_rep
from minicompress.storage.sections import DTYPES, Reader, Section

# A layer's number in the file is its index here: new layers go to the end. A reader passes these
# layers as the values to write, which are ignored, but for the flags of `_kind`.
ONE = freeze(np.ones(1))
KERNEL = freeze(np.ones((1, 1, 1, 1)))
LAYERS: tuple[Layer, ...] = (
    Dense(KERNEL[0, 0]),
    ReLU(),
    Conv2D(KERNEL),
    MaxPool2D(1),
    Flatten(),
    BatchNorm(ONE, ONE, ONE, ONE),
    AvgPool2D(1),
    GlobalAvgPool2D(),
    Softmax(),
    Dropout(0.0),
    LeakyReLU(),
    Sigmoid(),
    Tanh(),
    MaxPool2D(1, ceil_mode=True),
    AvgPool2D(1, ceil_mode=True),
    GlobalAvgPool2D(keep_axes=True),
    Add(),
    Multiply(),
    Concat(),
    Clip(),
    PReLU(ONE),
    HardSigmoid(),
    HardSwish(),
    SiLU(),
    Upsample2D(1),
    ChannelShuffle(1),
    LocalResponseNorm(1),
    ConvTranspose2D(KERNEL),
)
TYPES = tuple(dict.fromkeys(type(layer) for layer in LAYERS))


def _kind(layer: Layer) -> tuple[type[Layer], bool]:
    """What a layer's number says: its type, and the option that has a number of its own."""
    match layer:
        case MaxPool2D() | AvgPool2D():
            return type(layer), layer.ceil_mode
        case GlobalAvgPool2D():
            return type(layer), layer.keep_axes
    return type(layer), False


NUMBERS = {_kind(layer): number for number, layer in enumerate(LAYERS)}

# What a reader passes as the network to write.
NO_LAYERS = Network((), (), (0,))


def code_network(section: Section, network: Network = NO_LAYERS) -> Network:
    """Code a network. A reader passes none.

    Parameters
    ----------
    section : Writer or Reader
    network : Network
        Its layers have types among `TYPES`.

    Returns
    -------
    Network

    Raises
    ------
    CompressionError
        A file describes a network that cannot be.
    """
    size, linear = len(network.layers), is_chain(network)
    count = section.number("layers", size if linear else 0)
    wired = count == 0
    if wired:
        count = section.number("program", 0 if linear else size)
    layers: list[Layer] = []
    inputs: list[tuple[int, ...]] = []
    # The length of each value's last axis, as far as the weights tell it.
    features: list[int | None] = [None]
    given = chain(zip(network.layers, network.inputs, strict=True), repeat((LAYERS[0], (0,))))
    for i, (layer, reads) in zip(range(count), given):
        section.part()
        number = section.choice("layer", NUMBERS[_kind(layer)], len(LAYERS))
        if isinstance(section, Reader):
            layer = LAYERS[number]
        inputs.append(_code_reads(section, layer, i, reads) if wired else (i,))
        read = [features[value] for value in inputs[i]]
        with np.errstate(all="ignore"):  # a damaged batch normalization may overflow
            layers.append(_code_layer(section, layer, read[0]))
        features.append(_features(layers[i], read))
    outputs = _code_outputs(section, count, network.outputs) if wired else (count,)
    return Network(tuple(layers), tuple(inputs), outputs)


def _code_reads(
    section: Section, layer: Layer, index: int, reads: tuple[int, ...]
) -> tuple[int, ...]:
    """Code the values that a layer reads; how many only if its type leaves that open."""
    count = layer.num_inputs or section.number("reads", len(reads) - 1) + 1
    return _code_values(section, "back", index, reads, count)


def _code_outputs(section: Section, last: int, outputs: tuple[int, ...]) -> tuple[int, ...]:
    count = section.choice("outputs", len(outputs) - 1, last + 1) + 1
    return _code_values(section, "output", last, outputs, count)


def _code_values(
    section: Section, name: str, latest: int, values: tuple[int, ...], count: int
) -> tuple[int, ...]:
    """Code values by how far they are behind the latest one, so that none can be later."""
    return tuple(
        latest - section.choice(name, latest - value, latest + 1)
        for _, value in zip(range(count), chain(values, repeat(0)))
    )


def _features(layer: Layer, read: list[int | None]) -> int | None:
    """The length of the output's last axis, from those of the values that it reads."""
    for rep in layer.parameters().values():  # the last axis is that of the outputs
        return shape_of(rep)[-1]
    if isinstance(layer, Concat):
        known = [n for n in read if n is not None]
        return sum(known) if len(known) == len(read) else None
    return None if isinstance(layer, Flatten) else read[0]


def _code_layer(section: Section, layer: Layer, features: int | None) -> Layer:
    """Code a layer. A reader passes one of the same type, whose values are ignored."""
    match layer:
        case Dense():
            inputs = _code_inputs(section, shape_of(layer.weight)[0], features)
            return Dense(*_code_affine(section, layer, (inputs, None)))
        case Conv2D() | ConvTranspose2D():
            return _code_convolution(section, layer, features)
        case BatchNorm():
            channels, dtype = _code_channels(section, layer.scale, features)
            scale, offset, mean, variance = (
                section.floats((channels,), dtype, array)
                for array in (layer.scale, layer.offset, layer.mean, layer.variance)
            )
            epsilon = _code_real(section, layer.epsilon, 1e-5)
            return BatchNorm(scale, offset, mean, variance, epsilon)
        case PReLU():
            channels, dtype = _code_channels(section, layer.slope, features)
            return PReLU(section.floats((channels,), dtype, layer.slope))
        case MaxPool2D() | AvgPool2D():
            window = _code_pair(section, "window", layer.window)
            stride: Pair | None = None
            if section.flag("pool stride", layer.stride is not None):
                stride = _code_pair(section, "stride", layer.stride or 1)
            padding, ceil_mode = _code_padding(section, layer.padding), layer.ceil_mode
            if isinstance(layer, MaxPool2D):
                return MaxPool2D(window, stride, padding, ceil_mode)
            include = section.flag("count_include_pad", layer.count_include_pad)
            return AvgPool2D(window, stride, padding, ceil_mode, include)
        case Upsample2D():
            return Upsample2D(_code_pair(section, "factor", layer.factor))
        case ChannelShuffle():
            return ChannelShuffle(section.number("groups", layer.groups - 1) + 1)
        case LocalResponseNorm():
            size = section.number("window", layer.size)
            alpha = _code_real(section, layer.alpha, 1e-4)
            beta = _code_real(section, layer.beta, 0.75)
            return LocalResponseNorm(size, alpha, beta, _code_real(section, layer.bias, 1.0))
        case LeakyReLU():
            return LeakyReLU(_code_real(section, layer.negative_slope, 0.01))
        case Dropout():
            return Dropout(_code_real(section, layer.rate, 0.5))
        case Clip():
            low = _code_real(section, layer.low, 0.0)
            return Clip(low, _code_real(section, layer.high, 6.0))
        case HardSigmoid():
            alpha = _code_real(section, layer.alpha, 0.2)
            return HardSigmoid(alpha, _code_real(section, layer.beta, 0.5))
    return layer  # the others have no fields, but for what their number says


def _code_convolution(
    section: Section, layer: Conv2D | ConvTranspose2D, features: int | None
) -> Layer:
    options: dict[str, Any] = {
        "stride": _code_pair(section, "stride", layer.stride),
        "padding": _code_padding(section, layer.padding),
        "dilation": _code_pair(section, "dilation", layer.dilation),
        "groups": section.number("groups", layer.groups - 1) + 1,
    }
    if isinstance(layer, ConvTranspose2D):
        options["output_padding"] = _code_pair(section, "output_padding", layer.output_padding, 0)
    expected = None if features is None else features // options["groups"]
    inputs = _code_inputs(section, shape_of(layer.weight)[2], expected)
    weight, bias = _code_affine(section, layer, (None, None, inputs, None))
    return type(layer)(weight, bias, **options)


def _code_affine(
    section: Section, layer: Dense | Conv2D | ConvTranspose2D, shape: Template
) -> tuple[Rep, Rep | None]:
    """Code weight and bias. A bias has the weight's dtype and one entry for each output."""
    weight = code_rep(section, shape, None, layer.weight)
    if not section.flag("bias", layer.bias is not None):
        return weight, None
    bias = layer.weight if layer.bias is None else layer.bias  # a reader's stand-in has none
    return weight, code_rep(section, shape_of(weight)[-1:], dtype_of(weight), bias)


def _code_channels(section: Section, array: Array, features: int | None) -> tuple[int, DType]:
    """Code the length and the dtype of floats with an entry for each channel."""
    channels = _code_inputs(section, array.size, features)
    return channels, DTYPES[section.choice("dtype", DTYPES.index(array.dtype), 3)]


def _code_inputs(section: Section, inputs: int, expected: int | None) -> int:
    """Code a number of inputs, which usually is the expected number."""
    if expected is not None and section.flag("as expected", inputs == expected):
        return expected
    return section.number("size", inputs)


def _code_pair(section: Section, name: str, value: Pair, low: int = 1) -> tuple[int, int]:
    first, second = pair(value, name, low)
    return section.number(name, first), section.number(name, second)


def _code_padding(section: Section, padding: Padding) -> Padding:
    words = ("valid", "same")
    word = words.index(padding) if isinstance(padding, str) else len(words)
    word = section.choice("padding", word, len(words) + 1)
    if word < len(words):
        return words[word]
    given = (0, 0) if isinstance(padding, str) else padding
    (top, bottom), (left, right) = resolve_padding(given, (1, 1), (1, 1))
    top, bottom, left, right = (section.number("pad", n) for n in (top, bottom, left, right))
    return (top, bottom), (left, right)


def _code_real(section: Section, value: float, usual: float) -> float:
    if section.flag("usual", float(value).hex() == usual.hex()):  # which tells -0 from 0
        return usual
    return float(section.floats((), np.dtype(np.float64), np.array(value, np.float64)))
