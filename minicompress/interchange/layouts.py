"""How Keras and PyTorch lay out the weights of each layer.

Keras has the layout of this library: kernels (kh, kw, in, out), dense weights (in, out), and images
flattened with the channels last. PyTorch has kernels (out, in, kh, kw), dense weights (out, in),
and flattens images with the channels first. The kernel of a transposed convolution is (kh, kw, out,
in) in Keras, and (in, out // groups, kh, kw) in PyTorch. A network of either may flatten in any
other order; the caller must then say which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import TypeAlias

import numpy as np

from minicompress.arrays import Array, DType, choice
from minicompress.errors import CompressionError
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network, value_shapes
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import PReLU
from minicompress.nn.stateless import Concat, Flatten
from minicompress.representation import dtype_of, shape_of

FLATTEN_ORDERS = {"keras": "hwc", "torch": "chw"}  # the order that each layout flattens in
_ORDERS = ["".join(axes) for axes in permutations("hwc")]
KINDS: dict[type[Layer], str] = {
    Conv2D: "conv",
    ConvTranspose2D: "conv",  # names and dimensions do not tell it from a convolution
    Dense: "dense",
    BatchNorm: "norm",
    PReLU: "prelu",
}
UNKNOWN = "unknown"
# A flattened image: for every feature here, its index on the other side. None: both sides have the
# same order. UNKNOWN: the image's shape is not known.
Order: TypeAlias = "Array | str | None"


@dataclass(frozen=True)
class Slot:
    """A place for one array: a weight of the model, and the layout it has on the other side.

    Parameters
    ----------
    layer : int
    field : str
    kind : "conv" | "dense" | "norm" | "prelu"
    label : str
        Its name in messages.
    shape : tuple of int
        The shape on the other side.
    unnamed : tuple of int
        The shape in the layout that was not named, for a hint.
    others : tuple of tuple of int
        Other shapes that the same entries may have, in the same order; a shape of one entry stands
        for equal ones.
    dtype : numpy.dtype
    own : tuple of int
        The shape here.
    split : tuple of int
        `own` with its groups on an axis of their own.
    axes : tuple of int
        The axes of `split` in the order of the other side.
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
    others: tuple[Shape, ...]
    dtype: DType
    own: Shape
    split: Shape
    axes: tuple[int, ...]
    order: Array | None

    @property
    def key(self) -> str:
        """Its name in ``names=``."""
        return f"{self.layer}.{self.field}"

    def inward(self, array: Array) -> Array:
        """The other side's array in our layout."""
        if array.size == 1:
            array = np.broadcast_to(array.reshape(-1), self.shape)
        array = array.reshape([self.split[axis] for axis in self.axes])
        array = array.transpose(np.argsort(self.axes)).reshape(self.own)
        return array if self.order is None else array[self.order]

    def outward(self, array: Array) -> Array:
        """Our array in the layout of the other side."""
        if self.order is not None:
            array = array[np.argsort(self.order)]
        moved = array.reshape(self.split).transpose(self.axes)
        return np.array(moved, order="C").reshape(self.shape)


def slots_of(
    model: Network, layout: str, input_shape: Shape | None, flatten: str | None
) -> list[Slot]:
    """A place for every weight, in the order of both Keras and PyTorch."""
    default = FLATTEN_ORDERS[choice(layout, "layout", FLATTEN_ORDERS)]
    flatten = choice(default if flatten is None else flatten, "flatten", _ORDERS)
    if not isinstance(model, Network):
        raise CompressionError(f"model must be a Network, not {type(model).__name__}")
    shapes = None if input_shape is None else value_shapes(model, input_shape)
    slots: list[Slot] = []
    orders: list[Order] = [None]
    for i, (layer, reads) in enumerate(zip(model.layers, model.inputs, strict=True)):
        label = f"layer {i} ({type(layer).__name__})"
        read = [orders[value] for value in reads]
        sizes = None if shapes is None else [shapes[value] for value in reads]
        parameters = layer.parameters()
        if parameters and type(layer) not in KINDS:
            raise CompressionError(f"{label} has weights that Keras and PyTorch have no layout of")
        if parameters and isinstance(read[0], str):
            raise CompressionError(
                f"input_shape must be given, (H, W, C): {label} stands behind a Flatten, and the "
                f"order {flatten!r} is not the one of this library, 'hwc'"
            )
        for field in parameters:
            slots.append(_slot(layer, i, field, layout, read[0]))
        orders.append(_order_behind(layer, label, read, sizes, flatten))
    return slots


def _slot(layer: Layer, index: int, field: str, layout: str, order: Order) -> Slot:
    """The place of one weight, whose input has this order."""
    rep, label = layer.parameters()[field], f"layer {index} ({type(layer).__name__})"
    own = split = shape_of(rep)
    ways = {"keras": tuple(range(len(own))), "torch": tuple(range(len(own)))}
    others: tuple[Shape, ...] = ()
    match layer, field:
        case Conv2D(groups=groups), "weight":
            ways["torch"] = (3, 2, 0, 1)
            kh, kw, inputs, outputs = own
            if layout == "keras" and groups > 1 and inputs == 1:  # of DepthwiseConv2D
                others = ((kh, kw, groups, outputs // groups),)
        case ConvTranspose2D(groups=groups), "weight":
            kh, kw, inputs, outputs = own
            split = (kh, kw, inputs, groups, outputs // groups)
            ways = {"keras": (0, 1, 3, 4, 2), "torch": (3, 2, 4, 0, 1)}
            if layout == "keras" and groups > 1:
                raise CompressionError(
                    f"{label} has {groups} groups, and transposed convolutions of Keras have none"
                )
        case Dense(), "weight":
            ways["torch"] = (1, 0)
        case PReLU(), _:  # shared by all pixels in Keras, or by all channels in PyTorch
            others = ((1, 1, *own),) if layout == "keras" else ((1,),)
    there, unnamed = (_shape(layer, split, ways[side]) for side in ("keras", "torch"))
    if layout == "torch":
        there, unnamed = unnamed, there
    rows = None if field == "bias" or isinstance(order, str) else order
    return Slot(
        layer=index,
        field=field,
        kind=KINDS[type(layer)],
        label=f"{label} {field}",
        shape=there,
        unnamed=unnamed,
        others=others,
        dtype=dtype_of(rep),
        own=own,
        split=split,
        axes=ways[layout],
        order=rows,
    )


def _shape(layer: Layer, split: Shape, axes: tuple[int, ...]) -> Shape:
    """The shape with these axes; the groups of a transposed convolution are joined to the next."""
    shape = tuple(split[axis] for axis in axes)
    if isinstance(layer, ConvTranspose2D) and len(split) == 5:
        place = axes.index(3)
        shape = (*shape[:place], shape[place] * shape[place + 1], *shape[place + 2 :])
    return shape


def _order_behind(
    layer: Layer, label: str, read: list[Order], shapes: list[Shape] | None, flatten: str
) -> Order:
    """The order of the features behind a layer, from that of what it reads."""
    if isinstance(layer, Dense):
        return None
    if isinstance(layer, Flatten) and read[0] is None:
        return _order(None if shapes is None else shapes[0], flatten)
    if any(isinstance(order, str) for order in read):
        return UNKNOWN
    known = [order for order in read if not isinstance(order, str)]
    if isinstance(layer, Concat) and shapes is not None and any(o is not None for o in known):
        sizes = [shape[-1] for shape in shapes]
        starts = np.cumsum([0, *sizes[:-1]])
        return np.concatenate(
            [
                start + (np.arange(size) if order is None else order)
                for order, size, start in zip(known, sizes, starts, strict=True)
            ]
        )
    for order in known[1:]:
        if (order is None) != (known[0] is None) or not np.array_equal(order, known[0]):  # type: ignore[arg-type]
            raise CompressionError(
                f"{label} joins features that are not all of one flattened image, so that the "
                f"order {flatten!r} cannot be followed: give flatten='hwc', or reorder the arrays"
            )
    return known[0]


def _order(shape: Shape | None, flatten: str) -> Order:
    """For each entry of a flattened image, its index if the image is flattened as `flatten`."""
    if flatten == "hwc":
        return None
    if shape is None:
        return UNKNOWN
    if len(shape) != 3:
        return None
    axes = ["hwc".index(axis) for axis in flatten]
    places = np.arange(math.prod(shape)).reshape([shape[axis] for axis in axes])
    order: Array = places.transpose(np.argsort(axes)).ravel()
    return None if (order == np.arange(order.size)).all() else order
