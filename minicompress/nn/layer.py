"""What a layer is: a frozen value whose fields are the weights and the options of one operation.

Training makes new layers; nothing changes a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

import numpy as np

from minicompress.arrays import Array, Value
from minicompress.errors import CompressionError
from minicompress.representation import Rep

Shape: TypeAlias = tuple[int, ...]
Pullback: TypeAlias = Callable[[Array], tuple[Any, dict[str, Array]]]


@dataclass(frozen=True, eq=False, repr=False)
class Layer(Value):
    """Base of all layers.

    To write your own, derive a frozen dataclass with `forward`, `output_shape` and, to train it,
    `vjp`. List its weights, if any, in `parameters`: no other array is stored, counted or trained.
    `summary` counts it if its class defines `parameters` and `macs(input_shape)`, the
    multiply-accumulates for one input. Files, ONNX, integers and certificates know this package's
    layers only, and not the classes derived from them, which may compute something else.
    """

    num_inputs: ClassVar[int | None] = 1
    """How many values the layer reads. None: one or more."""

    def forward(self, x: Array) -> Array:
        """The output for a batch; the batch is the first axis of both.

        A layer that reads several values takes them as several arguments, here, in `output_shape`
        and in `vjp`.
        """
        raise NotImplementedError

    def output_shape(self, input_shape: Shape) -> Shape:
        """The output's shape for an input's, both without the batch axis."""
        raise NotImplementedError

    def vjp(
        self, x: Array, *, rng: np.random.Generator | None = None, input_gradient: bool = True
    ) -> tuple[Array, Pullback]:
        """The output and its vector-Jacobian product.

        Parameters
        ----------
        x : ndarray, the batch
            The pullback reads it and `y` again: do not write to them before.
        rng : numpy.random.Generator, optional
            Given in training: `Dropout` draws from it, and `BatchNorm` takes batch statistics.
        input_gradient : bool
            False saves the work for the gradient by `x`, which is then None.

        Returns
        -------
        y : ndarray
        pullback : callable
            From the gradient by `y` to the gradient by `x` (a tuple, if the layer reads several
            values) and a dict of those by the weights.
        """
        raise NotImplementedError

    def parameters(self) -> dict[str, Rep]:
        """The weights, arrays or representations, by the names of their fields."""
        return {}

    def options(self) -> dict[str, Any]:
        """The fields that are not weights, by their names."""
        weights = self.parameters()
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in weights}


@dataclass(frozen=True, eq=False, repr=False)
class Operation(Layer):
    """A function of this package as a layer; the fields are its options."""

    function: ClassVar[Callable[..., Array]]
    function_vjp: ClassVar[Callable[..., Any]]

    def forward(self, *x: Array) -> Array:
        return type(self).function(*x, **self.options())

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def vjp(
        self, *x: Array, rng: np.random.Generator | None = None, input_gradient: bool = True
    ) -> tuple[Array, Pullback]:
        def pullback(dy: Array) -> tuple[Any, dict[str, Array]]:
            dx = type(self).function_vjp(dy, *x, **self.options()) if input_gradient else None
            return dx, {}

        return self.forward(*x), pullback


def image_shape(input_shape: Shape, channels: int | None = None) -> Shape:
    """Check the shape of an image, (H, W, C), and its number of channels if it is given."""
    if len(input_shape) != 3 or channels not in (None, input_shape[2]):
        wanted = "C" if channels is None else channels
        raise CompressionError(f"the input must have shape (H, W, {wanted}), not {input_shape}")
    return tuple(input_shape)


def same_options(a: Layer, b: Layer) -> bool:
    """Whether two layers have the same type and the same options; weights are not compared.

    Examples
    --------
    >>> from minicompress.nn.stateless import AvgPool2D, MaxPool2D
    >>> same_options(MaxPool2D(2), MaxPool2D((2, 2))), same_options(MaxPool2D(2), AvgPool2D(2))
    (True, False)
    """
    return type(a) is type(b) and a.options() == b.options()
