"""Channels have names: which channels of a network are the same, by one pass over its layers.

Every value has one name for each channel, its last axis. A layer that makes channels gives fresh
names. `Add` and `Multiply` declare names equal, `Concat` puts them side by side, `Flatten` repeats
them, and most other layers pass them on. Two channels of the same name can only be removed
together. Some names are fixed: the input's, the outputs', and those of layers that mix channels
without weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from minicompress.arrays import Array, freeze
from minicompress.errors import CompressionError
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.layers import LAYER_TYPES, Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network, check_network, naming_layer, value_shapes
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import with_layers
from minicompress.nn.pointwise import PReLU, Softmax
from minicompress.nn.stateless import (
    Add,
    ChannelShuffle,
    Concat,
    Flatten,
    LocalResponseNorm,
    Multiply,
)
from minicompress.representation import decode, shape_of

Names: TypeAlias = "Array | str"
"""A name for each channel, or the reason why the channels are not known."""


class Channels(NamedTuple):
    """The names of a network's channels.

    Parameters
    ----------
    names : tuple of (C,) ndarray of int, or str
        For every value. All channels of unknown names are fixed; the text says why.
    fixed : dict of int to str
        The names that cannot be removed, and why.
    """

    names: tuple[Names, ...]
    fixed: dict[int, str]


def channel_names(
    network: Network, input_shape: Shape | None = None, *, tie_shuffles: bool = False
) -> Channels:
    """Name the channels of every value.

    Without `input_shape`, the number of pixels that a `Flatten` joins is read from the layer with
    weights behind it. With `tie_shuffles`, any names can be removed: those of one place in each
    group of a `ChannelShuffle` are declared equal. Otherwise it may refuse what is left.

    Examples
    --------
    >>> from minicompress.nn.composition import Residual, Sequential
    >>> one = Dense(np.eye(2))
    >>> names, fixed = channel_names(Sequential((one, Residual(one, one), one)))
    >>> [value.tolist() for value in names], sorted(fixed)
    ([[0, 1], [2, 3], [4, 5], [2, 3], [2, 3], [8, 9]], [0, 1, 8, 9])
    """
    check_network(network)
    counts = _counts(network, input_shape)
    book = _Book()
    names = [book.fixed_names(counts[0], "it belongs to the network's input")]
    for i, (layer, reads) in enumerate(zip(network.layers, network.inputs, strict=True)):
        where = layer_name(network, i)
        with naming_layer(network, i):
            if tie_shuffles and type(layer) is ChannelShuffle:
                book.tie_groups(names[reads[0]], layer.groups)
            names.append(_followed(book, layer, [names[v] for v in reads], counts[i + 1], where))
    for value in network.outputs:
        maker = f"{layer_name(network, value - 1)} makes" if value else "the input is"
        book.fix(names[value], f"{maker} an output of the network")
    roots = np.array([book.first(name) for name in range(len(book.same))], int)
    fixed = {int(roots[name]): why for name, why in book.fixed.items()}
    return Channels(tuple(n if isinstance(n, str) else roots[n] for n in names), fixed)


def without_channels(network: Network, channels: Channels, gone: Array) -> Network:
    """The network without the channels of some names, none of them fixed."""
    kept = [None if isinstance(n, str) else ~np.isin(n, gone) for n in channels.names]
    layers = []
    for i, (layer, reads) in enumerate(zip(network.layers, network.inputs, strict=True)):
        with naming_layer(network, i):
            layers.append(_cut(layer, kept[reads[0]], kept[i + 1]))
    return with_layers(network, layers)


def with_one_left(channels: Channels, gone: Array, score: Array) -> Array:
    """The names that go, less those of largest score that some value needs to keep a channel."""
    for names in channels.names:
        if not isinstance(names, str) and names.size and np.isin(names, gone).all():
            gone = np.setdiff1d(gone, names[np.argmax(score[names])])
    return gone


def layer_name(network: Network, index: int) -> str:
    """A layer for a message: its index and its type."""
    return f"layer {index} ({type(network.layers[index]).__name__})"


def input_channels(layer: Layer) -> int | None:
    """How many channels the weights of a layer read; None for a layer without weights."""
    if type(layer) in LAYER_TYPES:
        match layer:
            case Conv2D(groups=groups) | ConvTranspose2D(groups=groups):
                return shape_of(layer.weight)[2] * groups
            case Dense():
                return shape_of(layer.weight)[0]
            case BatchNorm(scale=array) | PReLU(slope=array):
                return array.size
    return None


def makes_channels(layer: Layer) -> bool:
    """Whether each output of a layer is a sum over all of its inputs, so its channels are new."""
    affine = type(layer) in LAYER_TYPES and isinstance(layer, Conv2D | ConvTranspose2D | Dense)
    return affine and getattr(layer, "groups", 1) == 1


def is_depthwise(layer: Layer) -> bool:
    """Whether a layer is a convolution of each channel by itself."""
    affine = type(layer) in LAYER_TYPES and isinstance(layer, Conv2D | ConvTranspose2D)
    return affine and getattr(layer, "groups", 1) == input_channels(layer) != 1


class _Book:
    """Names that can be declared equal ("union-find"), and those that are fixed."""

    def __init__(self) -> None:
        self.same: list[int] = []
        self.fixed: dict[int, str] = {}

    def fresh(self, count: int) -> Array:
        start = len(self.same)
        self.same += range(start, start + count)
        return np.arange(start, start + count)

    def fixed_names(self, count: int | None, why: str) -> Names:
        names: Names = why if count is None else self.fresh(count)
        self.fix(names, why)
        return names

    def first(self, name: int) -> int:
        """The name that stands for all that are equal to this one."""
        while self.same[name] != name:
            self.same[name] = name = self.same[self.same[name]]
        return name

    def fix(self, names: Names, why: str) -> None:
        if not isinstance(names, str):
            self.fixed |= {name: why for name in names.tolist() if name not in self.fixed}

    def equal(self, a: Array, b: Array) -> None:
        if len(a) != len(b):
            raise CompressionError(f"its inputs have {len(a)} and {len(b)} channels")
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            low, high = sorted((self.first(x), self.first(y)))
            self.same[high] = low

    def tie_groups(self, names: Names, groups: int) -> None:
        if not isinstance(names, str) and len(names) % groups == 0:
            for group in names.reshape(groups, -1):
                self.equal(names[: len(group)], group)


def _counts(network: Network, input_shape: Shape | None) -> list[int | None]:
    """The channels of every value; without an input's shape, what the weights behind it tell."""
    if input_shape is not None:
        return [shape[-1] if shape else 1 for shape in value_shapes(network, input_shape)]
    counts: list[int | None] = [None] * (len(network.layers) + 1)
    for i, layer in reversed([*enumerate(network.layers)]):
        passed = counts[i + 1] if type(layer) in LAYER_TYPES - {Concat, Flatten} else None
        if isinstance(layer, Conv2D | ConvTranspose2D | Dense):
            passed = None
        for value in network.inputs[i]:
            counts[value] = counts[value] or input_channels(layer) or passed
    return counts


def _followed(
    book: _Book, layer: Layer, read: Sequence[Names], count: int | None, where: str
) -> Names:
    """The names of a layer's output, from those of its inputs."""
    if type(layer) not in LAYER_TYPES:
        why = f"its channels cannot be followed through {where}"
        for names in read:
            book.fix(names, why)
        return why
    x, wanted = read[0], input_channels(layer)
    if wanted is not None:
        x = book.fixed_names(wanted, x) if isinstance(x, str) else x
        if len(x) != wanted:
            raise CompressionError(f"its weights read {wanted} channels, but there are {len(x)}")
    unknown = [names for names in read if isinstance(names, str)]
    known = [names for names in read if not isinstance(names, str)]
    match layer:
        case Conv2D() | ConvTranspose2D() | Dense():
            outputs = shape_of(layer.weight)[-1]
            if makes_channels(layer):
                return book.fresh(outputs)
            if is_depthwise(layer):
                return np.repeat(x, outputs // len(x))
            why = f"{where} has groups={layer.options()['groups']}, which must stay of equal size"
            book.fix(x, why)
            return book.fixed_names(outputs, why)
        case Add() | Multiply():
            for names in known[1:]:
                book.equal(known[0], names)
            for names in known if unknown else ():
                book.fix(names, unknown[0])
            return known[0] if known else unknown[0]
        case Concat():
            for names in known if unknown else ():
                book.fix(names, unknown[0])
            return unknown[0] if unknown else np.concatenate(known)
        case Flatten() if not isinstance(x, str):
            if count is None:
                why = f"it is not known how many pixels {where} joins: give input_shape"
                book.fix(x, why)
                return why
            if not x.size or count % len(x):
                raise CompressionError(
                    f"it makes {count} numbers, which are no multiple of {len(x)} channels"
                )
            return np.tile(x, count // len(x))  # in C order the channel varies fastest
        case ChannelShuffle() if not isinstance(x, str):
            return x[_shuffled(len(x), layer.groups)]
        case Softmax() | LocalResponseNorm():
            book.fix(x, f"{where} reads it together with other channels")
    return x


def _shuffled(channels: int, groups: int) -> Array:
    if channels % groups:
        raise CompressionError(f"groups={groups} must divide the {channels} channels")
    return np.arange(channels).reshape(groups, -1).T.ravel()


def _cut(layer: Layer, inputs: Array | None, outputs: Array | None) -> Layer:
    """The layer with the inputs and outputs of two masks; None keeps all of them."""
    if (inputs is None or inputs.all()) and (outputs is None or outputs.all()):
        return layer
    if outputs is not None and not outputs.any():
        raise CompressionError("all of its channels would be removed: at least one must stay")
    rows, columns = (slice(None) if m is None else m for m in (inputs, outputs))
    match layer:
        case Conv2D() | ConvTranspose2D() | Dense():
            weight = decode(layer.weight)
            changed: dict[str, Any] = {}
            if makes_channels(layer):
                weight = weight[..., rows, :]
            elif inputs is not None:
                changed["groups"] = int(inputs.sum())
            if layer.bias is not None:
                changed["bias"] = freeze(decode(layer.bias)[columns])
            return dataclasses.replace(layer, weight=freeze(weight[..., columns]), **changed)
        case BatchNorm() | PReLU():
            cut: dict[str, Any] = {
                name: freeze(decode(v)[columns]) for name, v in layer.parameters().items()
            }
            return dataclasses.replace(layer, **cut)
        case ChannelShuffle() if inputs is not None and outputs is not None:
            left, groups = np.flatnonzero(inputs), layer.groups
            order = _shuffled(len(inputs), groups)[columns]
            if len(left) % groups or (left[_shuffled(len(left), groups)] != order).any():
                raise CompressionError(
                    f"the channels {left.tolist()} that stay would be shuffled in another order: "
                    f"keep the same places of each of {groups} groups"
                )
    return layer
