"""How Keras and PyTorch lay out the weights of each layer.

Keras has them as they are here: images flattened channels last, kernels HWIO, dense weights (in,
out). PyTorch has kernels OIHW, dense weights (out, in), and flattens images channels first. A
network of either may flatten in any other order, which then has to be told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from minicompress.arrays import Array, DType, choice
from minicompress.errors import CompressionError
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import Sequential, layer_shapes
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.stateless import Flatten, Shape
from minicompress.representation import dtype_of, shape_of

FLATTEN_ORDERS = {"keras": "hwc", "torch": "chw"}  # each layout's own
_ORDERS = ["".join(axes) for axes in permutations("hwc")]
KINDS: dict[type, str] = {Conv2D: "conv", Dense: "dense", BatchNorm: "norm"}


@dataclass(frozen=True)
class Slot:
    """A place for one array: a weight of the model, and how the other side lays it out.

    layer : int
    field : str
    kind : "conv" | "dense" | "norm"
    label : str
        What it is called in messages.
    shape : tuple of int
        Of the array on the other side.
    other : tuple of int
        As the layout that was not named has it, for a hint.
    dtype : numpy.dtype
    depthwise : tuple of int or None
        The shape of Keras's DepthwiseConv2D, (kh, kw, channels, multiplier): in C order the same.
    layout : str
    order : ndarray or None
        Behind a Flatten of images: for every feature here, its place on the other side. None
        where both sides flatten in the same order.
    """

    layer: int
    field: str
    kind: str
    label: str
    shape: Shape
    other: Shape
    dtype: DType
    depthwise: Shape | None
    layout: str
    order: Array | None

    @property
    def key(self) -> str:
        """Its name in ``names=``."""
        return f"{self.layer}.{self.field}"

    def inward(self, array: Array) -> Array:
        """The other side's array as the model has it."""
        if self.layout == "torch" and self.field == "weight":
            array = array.transpose(2, 3, 1, 0) if self.kind == "conv" else array.T
        return array if self.order is None or self.field == "bias" else array[self.order]

    def outward(self, array: Array) -> Array:
        """The model's array as the other side has it."""
        if self.order is not None and self.field != "bias":
            array = array[np.argsort(self.order)]
        if self.layout == "torch" and self.field == "weight":
            array = array.transpose(3, 2, 0, 1) if self.kind == "conv" else array.T
        return np.array(array, order="C")


def slots_of(
    model: Sequential, layout: str, input_shape: Shape | None, flatten: str | None
) -> list[Slot]:
    """A place for every weight, in the order of both Keras and PyTorch."""
    default = FLATTEN_ORDERS[choice(layout, "layout", FLATTEN_ORDERS)]
    flatten = choice(default if flatten is None else flatten, "flatten", _ORDERS)
    if not isinstance(model, Sequential):
        raise CompressionError(f"model must be a Sequential, not {type(model).__name__}")
    shapes = None if input_shape is None else layer_shapes(model, input_shape)
    slots: list[Slot] = []
    order: Array | None = None
    flat = False
    for i, layer in enumerate(model.layers):
        if isinstance(layer, Flatten) and not flat:
            flat, order = True, None if shapes is None else _places(shapes[i], flatten)
        parameters = layer.parameters()
        if not parameters:
            continue
        label = f"layer {i} ({type(layer).__name__})"
        kind = KINDS.get(type(layer))
        if kind is None:
            raise CompressionError(f"{label} has weights that Keras and PyTorch have no layout of")
        if flat and flatten != "hwc" and shapes is None:
            raise CompressionError(
                f"input_shape must be given, (H, W, C): {label} stands behind a Flatten, and the "
                f"order {flatten!r} is not the one of this library, 'hwc'"
            )
        for field, rep in parameters.items():
            shape, torch_shape = shape_of(rep), _torch_shape(kind, field, shape_of(rep))
            here, there = (shape, torch_shape) if layout == "keras" else (torch_shape, shape)
            depthwise = None
            if layout == "keras" and field == "weight" and getattr(layer, "groups", 1) > 1:
                depthwise = _depthwise(shape, layer.groups)  # type: ignore[attr-defined]
            slots.append(
                Slot(
                    i,
                    field,
                    kind,
                    f"{label} {field}",
                    here,
                    there,
                    dtype_of(rep),
                    depthwise,
                    layout,
                    order,
                )
            )
        if kind == "dense":
            flat, order = False, None
    return slots


def _torch_shape(kind: str, field: str, shape: Shape) -> Shape:
    if field != "weight":
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if kind == "conv" else shape[::-1]


def _depthwise(shape: Shape, groups: int) -> Shape | None:
    """The kernel of a DepthwiseConv2D, if that is what this one is."""
    kh, kw, inputs, outputs = shape
    return (kh, kw, groups, outputs // groups) if inputs == 1 else None


def _places(shape: Shape, flatten: str) -> Array | None:
    """For each entry of a flattened image its place when it is flattened in another order."""
    if len(shape) != 3 or flatten == "hwc":
        return None
    axes = ["hwc".index(axis) for axis in flatten]
    places = np.arange(math.prod(shape)).reshape([shape[axis] for axis in axes])
    return places.transpose(np.argsort(axes)).ravel()
