"""How Keras and PyTorch lay out the weights of each layer.

Keras has the layout of this library: kernels (kh, kw, in, out), dense weights (in, out), and images
flattened with the channels last. PyTorch has kernels (out, in, kh, kw), dense weights (out, in),
and flattens images with the channels first. A network of either may flatten in any other order; the
caller must then say which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from minicompress.arrays import Array, DType, choice
from minicompress.errors import CompressionError
from minicompress.nn.layer import Shape
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import Network, value_shapes
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.stateless import Flatten
from minicompress.representation import dtype_of, shape_of

FLATTEN_ORDERS = {"keras": "hwc", "torch": "chw"}  # the order that each layout flattens in
_ORDERS = ["".join(axes) for axes in permutations("hwc")]
KINDS: dict[type, str] = {Conv2D: "conv", Dense: "dense", BatchNorm: "norm"}
TORCH_AXES = {"conv": (3, 2, 0, 1), "dense": (1, 0)}  # our axes in the order of PyTorch's weights


@dataclass(frozen=True)
class Slot:
    """A place for one array: a weight of the model, and the layout it has on the other side.

    Parameters
    ----------
    layer : int
    field : str
    kind : "conv" | "dense" | "norm"
    label : str
        Its name in messages.
    shape : tuple of int
        The shape on the other side.
    unnamed : tuple of int
        The shape in the layout that was not named, for a hint.
    dtype : numpy.dtype
    depthwise : tuple of int or None
        The shape (kh, kw, channels, multiplier) of Keras's DepthwiseConv2D, if the layer is one.
        The entries are in the same order as ours.
    axes : tuple of int
        The axes of our array in the order of the other side.
    order : ndarray or None
        After a Flatten of images: for every feature here, its index on the other side. None if
        both sides flatten in the same order.
    """

    layer: int
    field: str
    kind: str
    label: str
    shape: Shape
    unnamed: Shape
    dtype: DType
    depthwise: Shape | None
    axes: tuple[int, ...]
    order: Array | None

    @property
    def key(self) -> str:
        """Its name in ``names=``."""
        return f"{self.layer}.{self.field}"

    def inward(self, array: Array) -> Array:
        """The other side's array in our layout."""
        array = array.transpose(np.argsort(self.axes))
        return array if self.order is None else array[self.order]

    def outward(self, array: Array) -> Array:
        """Our array in the layout of the other side."""
        if self.order is not None:
            array = array[np.argsort(self.order)]
        return np.array(array.transpose(self.axes), order="C")


def slots_of(
    model: Network, layout: str, input_shape: Shape | None, flatten: str | None
) -> list[Slot]:
    """A place for every weight, in the order of both Keras and PyTorch."""
    default = FLATTEN_ORDERS[choice(layout, "layout", FLATTEN_ORDERS)]
    flatten = choice(default if flatten is None else flatten, "flatten", _ORDERS)
    if not isinstance(model, Network):
        raise CompressionError(f"model must be a Sequential, not {type(model).__name__}")
    shapes = None if input_shape is None else value_shapes(model, input_shape)
    slots: list[Slot] = []
    order: Array | None = None
    flat = False  # whether an image was flattened, and no dense layer has mixed its features yet
    for i, layer in enumerate(model.layers):
        if isinstance(layer, Flatten) and not flat:
            flat, order = True, None if shapes is None else _order(shapes[i], flatten)
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
            shape = shape_of(rep)
            same = tuple(range(len(shape)))
            torch = TORCH_AXES.get(kind, same) if field == "weight" else same
            axes, other = (same, torch) if layout == "keras" else (torch, same)
            there, unnamed = (tuple(shape[axis] for axis in way) for way in (axes, other))
            depthwise: Shape | None = None
            if isinstance(layer, Conv2D) and (layout, field) == ("keras", "weight"):
                kh, kw, inputs, outputs = shape
                if layer.groups > 1 and inputs == 1:
                    depthwise = kh, kw, layer.groups, outputs // layer.groups
            name, dtype = f"{label} {field}", dtype_of(rep)
            rows = None if field == "bias" else order
            slots.append(Slot(i, field, kind, name, there, unnamed, dtype, depthwise, axes, rows))
        if kind == "dense":
            flat, order = False, None
    return slots


def _order(shape: Shape, flatten: str) -> Array | None:
    """For each entry of a flattened image, its index if the image is flattened as `flatten`."""
    if len(shape) != 3 or flatten == "hwc":
        return None
    axes = ["hwc".index(axis) for axis in flatten]
    places = np.arange(math.prod(shape)).reshape([shape[axis] for axis in axes])
    return places.transpose(np.argsort(axes)).ravel()
