"""A node of an ONNX file, with its inputs found, and how it is asked for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.interchange.onnx_import_draft import Draft, View
from minicompress.nn.kernels.windows import Pads
from minicompress.representation import Rep, decode, shape_of

NO_PADS: Pads = ((0, 0), (0, 0))


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A node.

    Parameters
    ----------
    op : str
    draft : Draft
        The network so far, to which the node's layers are added.
    inputs : tuple
        Tensors and constants; None for one that is left out.
    options : dict
        The attributes.
    opset : int
    single : tuple of bool
        For each tensor among the inputs whether nothing else reads it.
    outputs : int
        How many it has.
    """

    op: str
    draft: Draft
    inputs: tuple[View | Rep | None, ...]
    options: dict[str, Any]
    opset: int
    single: tuple[bool, ...]
    outputs: int

    def given(self, place: int) -> View | Rep | None:
        """An input, or None."""
        return self.inputs[place] if place < len(self.inputs) else None

    def view(self, place: int = 0, *, padded: bool = False) -> View:
        """An input that the network computes."""
        found = self.given(place)
        if not isinstance(found, View):
            raise CompressionError(f"input {place} must depend on the network's input")
        if found.pads is not None and not padded:
            raise CompressionError("padding can be read by a convolution only")
        return found

    def rep(self, place: int) -> Rep:
        """An input that is a constant."""
        found = self.given(place)
        if found is None or isinstance(found, View):
            raise CompressionError(f"input {place} must be a constant")
        return found

    def array(self, place: int) -> Array:
        """A constant as an array."""
        return decode(self.rep(place))

    def optional(self, place: int) -> Array | None:
        """A constant as an array, or None if it is left out."""
        return None if self.given(place) is None else self.array(place)

    def image(self, place: int = 0) -> int:
        """An input that is images with their channels first."""
        return self.draft.image(self.view(place))

    def refuse(self, name: str, allowed: Any, default: Any) -> None:
        """Refuse an attribute that is not what the layer has."""
        value = self.options.get(name, default)
        if value != allowed:
            raise CompressionError(f"{name} must be {allowed!r}, not {value!r}")

    def word(self, name: str, default: str) -> str:
        """An attribute that is a string."""
        value = self.options.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def pair(self, name: str, default: int | None = 1) -> tuple[int, int]:
        """An attribute with one number for the height and one for the width."""
        values = self.options.get(name, None if default is None else [default] * 2)
        if values is None or len(values) != 2:
            raise CompressionError(f"{name} must have two numbers, not {values!r}")
        return int(values[0]), int(values[1])

    def sides(self) -> Pads:
        """The attribute `pads`."""
        pads = [int(n) for n in self.options.get("pads", [0, 0, 0, 0])]
        if len(pads) != 4 or min(pads) < 0:
            raise CompressionError(f"pads must be four numbers that are not negative, not {pads}")
        top, left, bottom, right = pads
        return (top, bottom), (left, right)

    def padding(
        self, size: tuple[int, ...], kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)
    ) -> Any:
        """The padding of a window: a word, or numbers."""
        match self.word("auto_pad", "NOTSET"):
            case "NOTSET":
                return self.sides()
            case "VALID":
                return "valid"
            case "SAME_UPPER":
                return "same"
            case "SAME_LOWER":
                strides, sides = self.pair("strides"), []
                for n, k, s, d in zip(size, kernel, strides, dilation, strict=False):
                    total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
                    sides.append((total - total // 2, total // 2))
                return tuple(sides)
            case word:
                raise CompressionError(f"auto_pad must be a word that ONNX knows, not {word!r}")

    def axes(self, place: int) -> list[int] | None:
        """Axes, of the tensor with its batch: an attribute, or an input in later opsets."""
        axes = self.options.get("axes", self.optional(place))
        rank = self.view().order.ndim + 1
        return None if axes is None else [int(axis) % rank for axis in np.ravel(axes)]


def kernel_shape(rep: Rep) -> tuple[int, ...]:
    """The shape of a kernel of two dimensions."""
    shape = shape_of(rep)
    if len(shape) != 4:
        raise CompressionError(f"the kernel must have four axes, not shape {shape}")
    return shape
