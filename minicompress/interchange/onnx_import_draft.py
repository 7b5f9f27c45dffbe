"""A network while it is read from an ONNX file, and how the file's tensors lie in its values.

The file has images with the channels first and moves axes as it likes; this library has the
channels last. So every tensor of the file is a `View`: a value of the network, and for each entry
of the tensor the index of the same entry in the value. Transpose, Reshape, Flatten, Squeeze and
Unsqueeze only change this order and make no layer. A layer is made where one needs it: `Flatten`
before a dense layer, whose rows are then permuted; `ChannelShuffle` where channels were dealt out.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from minicompress.arrays import Array, freeze
from minicompress.errors import CompressionError
from minicompress.nn.factors import rearranged
from minicompress.nn.kernels.windows import Pads
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import Network
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import Dropout, PReLU, Softmax
from minicompress.nn.stateless import (
    POINTWISE_TYPES,
    Add,
    ChannelShuffle,
    Concat,
    Flatten,
    GlobalAvgPool2D,
    Multiply,
)
from minicompress.representation import decode

LARGEST = 2**28
"""Entries of the largest value for one input."""


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A tensor of the file.

    Parameters
    ----------
    value : int
        A value of the network.
    order : ndarray of int
        Of the tensor's shape without the batch axis: where each entry is in the flattened value.
    pads : ((top, bottom), (left, right)), optional
        Zeros around the image, which the next convolution has to add.
    """

    value: int
    order: Array
    pads: Pads | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scale(Layer):
    """``factor * x + offset`` with two numbers: a layer of drafts only."""

    factor: float
    offset: float

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


class Draft:
    """The layers so far, what they read, and the shapes of all values."""

    def __init__(self, input_shape: Shape) -> None:
        self.layers: list[Layer] = []
        self.inputs: list[tuple[int, ...]] = []
        self.shapes: list[Shape] = [input_shape]
        self._rows: dict[int, int] = {}
        self._places: Array = np.arange(0, dtype=np.int32)
        self._orders: dict[tuple[Shape, bool], Array] = {}

    def order(self, shape: Shape, first: bool) -> Array:
        """The order of a tensor that has a value's channels first, or last.

        All are views of one array of the numbers from 0.
        """
        size = math.prod(shape)
        if size > LARGEST:
            raise CompressionError(f"a value of shape {shape} is too large")
        if size > self._places.size:
            self._places = freeze(np.arange(size, dtype=np.int32))
            self._orders.clear()
        if (shape, first) not in self._orders:
            order = self._places[:size].reshape(shape)
            self._orders[shape, first] = np.moveaxis(order, -1, 0) if first else order
        return self._orders[shape, first]

    def add(self, layer: Layer, *reads: int) -> int:
        """Append a layer, and return the value that it makes."""
        shape = layer.output_shape(*(self.shapes[value] for value in reads))
        self.layers.append(layer)
        self.inputs.append(reads)
        self.shapes.append(shape)
        return len(self.layers)

    def maker(self, value: int) -> Layer | None:
        """The layer that makes a value; None for the input."""
        return self.layers[value - 1] if value else None

    def reads(self, value: int) -> tuple[int, ...]:
        """The values that this layer reads."""
        return self.inputs[value - 1]

    def view(self, value: int, first: bool = True) -> View:
        """A tensor that has the value's channels first, or last."""
        return View(value, self.order(self.shapes[value], first))

    def canonical(self, view: View) -> tuple[int, bool]:
        """A value that is the tensor with its channels last, and whether the tensor has them first.

        A row of features has both.
        """
        shape, order = self.shapes[view.value], view.order
        for first in (True, False):
            if same(order, self.order(shape, first)):
                return view.value, first
        if order.ndim == 1:
            rows = self.rows(view.value)
            if same(order, self.order(self.shapes[rows], True)):
                return rows, True
        elif order.shape in ((shape[0], 1, 1), (1, 1, shape[0])) and in_order(order):
            return self.lifted(view.value), order.shape[0] == shape[0]
        raise CompressionError(
            f"it reads a tensor of shape (N, {', '.join(map(str, order.shape))}) whose entries lie "
            f"in an order that no layer makes of {shape}"
        )

    def shuffled(self, view: View) -> View:
        """The same tensor; if its channels were dealt out in groups, of a layer that does that."""
        shape, order = self.shapes[view.value], view.order
        if order.ndim != 3 or len(shape) != 3 or same(order, self.order(shape, True)):
            return view
        groups = shuffled_groups(order.transpose(1, 2, 0), shape)
        return self.view(self.add(ChannelShuffle(groups), view.value)) if groups else view

    def image(self, view: View) -> int:
        """The value that is a tensor (N, C, H, W) with its channels last."""
        value, first = self.canonical(view)
        if not first or len(self.shapes[value]) != 3:
            raise CompressionError(
                "it must read images (N, C, H, W), not a tensor of shape "
                f"(N, {', '.join(map(str, view.order.shape))}), of {self.shapes[value]} in "
                "this library"
            )
        return value

    def rows(self, value: int) -> int:
        """The entries of a value in one row."""
        if len(self.shapes[value]) == 1:
            return value
        if value not in self._rows:
            if isinstance(self.maker(value), GlobalAvgPool2D):
                made = self.add(GlobalAvgPool2D(), *self.reads(value))
            else:
                made = self.add(Flatten(), value)
            self._rows[value] = made
        return self._rows[value]

    def lifted(self, value: int) -> int:
        """A row of features as an image of one pixel: made by the same layers, of images.

        A dense layer becomes a convolution whose kernel covers the whole image.
        """
        shape, layer = self.shapes[value], self.maker(value)
        if len(shape) == 3 and shape[:2] == (1, 1):
            return value
        reads = self.reads(value) if layer is not None else ()
        match layer:
            case GlobalAvgPool2D():
                return self.add(GlobalAvgPool2D(keep_axes=True), *reads)
            case Flatten() if self.shapes[reads[0]][:2] == (1, 1):
                return reads[0]
            case Dense(weight, bias):
                if isinstance(self.maker(reads[0]), Flatten):
                    (image,) = self.reads(reads[0])
                    kernel = decode(weight).reshape(*self.shapes[image], -1)
                    return self.add(Conv2D(kernel, bias), image)
                pixel = rearranged(weight, (None, None, 0, 1))
                return self.add(Conv2D(pixel, bias), self.lifted(reads[0]))
            case BatchNorm() | PReLU() | Softmax() | Scale() | Add() | Multiply() | Concat():
                return self.add(layer, *map(self.lifted, reads))
            case _ if type(layer) in POINTWISE_TYPES:
                assert layer is not None
                return self.add(layer, *map(self.lifted, reads))
        raise CompressionError(f"it reads the features {shape} as an image, and no layer does that")

    def per_channel(self, view: View, array: Array) -> tuple[View, Array]:
        """A constant that is broadcast over a tensor, as one number for each channel of a value.

        If it differs from pixel to pixel of a flattened image, the value is its rows.
        """
        try:
            full = np.broadcast_to(array, (1, *view.order.shape))[0]
        except ValueError:
            raise CompressionError(
                f"a constant of shape {array.shape} must not enlarge the tensor of shape "
                f"(N, {', '.join(map(str, view.order.shape))})"
            ) from None
        for value in (view.value, self.rows(view.value) if view.order.ndim == 1 else view.value):
            entries = np.empty(full.size, full.dtype)
            entries[view.order] = full
            entries = entries.reshape(-1, self.shapes[value][-1])
            if (entries == entries[:1]).all():
                return View(value, view.order), freeze(entries[0].copy())
        raise CompressionError(
            f"a constant of shape {array.shape} must have one number for each channel"
        )

    def network(self, outputs: list[int]) -> Network:
        """The layers that the outputs need."""
        needed = set(outputs)
        for i in reversed(range(len(self.layers))):
            if i + 1 in needed:
                needed.update(self.inputs[i])
        if 0 not in needed:
            raise CompressionError("the outputs must depend on the input, and they do not")
        layers: list[Layer] = []
        inputs: list[tuple[int, ...]] = []
        place = {0: 0}
        for i, (layer, reads) in enumerate(zip(self.layers, self.inputs, strict=True)):
            if i + 1 in needed:
                layers.append(layer)
                inputs.append(tuple(place[value] for value in reads))
                place[i + 1] = len(layers)
        ends: list[int] = []
        for value in outputs:
            end = place[value]
            if end in ends:  # an output can be returned once
                layers.append(Dropout(0.0))
                inputs.append((end,))
                end = len(layers)
            ends.append(end)
        return Network(tuple(layers), tuple(inputs), tuple(ends))


def same(a: Array, b: Array) -> bool:
    """Whether two orders are equal."""
    return a is b or np.array_equal(a, b)


def in_order(order: Array) -> bool:
    """Whether the entries lie as in the value."""
    return bool((order.ravel() == np.arange(order.size)).all())


def shuffled_groups(order: Array, shape: Shape) -> int:
    """The groups of a `ChannelShuffle` that makes this order of an image; 0 if none does."""
    if order.shape != shape or math.prod(shape) == 0:
        return 0
    channels = order[0, 0]
    pixels = np.arange(math.prod(shape)).reshape(shape)
    step = int(channels[1] - channels[0]) if len(channels) > 1 else 0
    if step < 1 or len(channels) % step or not (order == pixels[..., channels]).all():
        return 0
    groups = len(channels) // step
    dealt = np.arange(len(channels)).reshape(groups, step).T.ravel()
    return groups if (channels == dealt).all() else 0
