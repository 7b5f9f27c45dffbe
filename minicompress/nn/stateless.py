"""What a layer is, and the layers that have no weights.

A layer is a frozen value. Its fields are the weights and the options of one operation. Training
makes new layers; nothing changes a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

import numpy as np

from minicompress.arrays import Array, Value, as_float, flag, freeze, generator
from minicompress.errors import CompressionError
from minicompress.nn import activations, pooling
from minicompress.nn.kernels.windows import (
    Geometry,
    Padding,
    Pair,
    geometry,
    normal_padding,
    pair,
)
from minicompress.representation import Rep

Shape: TypeAlias = tuple[int, ...]
Pullback: TypeAlias = Callable[[Array], tuple[Array | None, dict[str, Array]]]


@dataclass(frozen=True, eq=False, repr=False)
class Layer(Value):
    """Base of all layers.

    To write your own, derive a frozen dataclass with `forward`, `output_shape` and, to train it,
    `vjp`. List its weights, if any, in `parameters`: no other array is stored, counted or trained.
    `summary` counts it if its class defines `parameters` and `macs(input_shape)`, the
    multiply-accumulates for one input. Files, ONNX, integers and certificates know this package's
    layers only, and not the classes derived from them, which may compute something else.
    """

    def forward(self, x: Array) -> Array:
        """The output for a batch; the batch is the first axis of both."""
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
            For `Dropout`, which does nothing without one.
        input_gradient : bool
            False saves the work for the gradient by `x`, which is then None.

        Returns
        -------
        y : ndarray
        pullback : callable
            From the gradient by `y` to the gradient by `x` and a dict of those by the weights.
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
class _Operation(Layer):
    """A function of this package as a layer; the fields are its options."""

    function: ClassVar[Callable[..., Array]]
    function_vjp: ClassVar[Callable[..., Array]]

    def forward(self, x: Array) -> Array:
        return type(self).function(x, **self.options())

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def vjp(
        self, x: Array, *, rng: np.random.Generator | None = None, input_gradient: bool = True
    ) -> tuple[Array, Pullback]:
        def pullback(dy: Array) -> tuple[Array | None, dict[str, Array]]:
            dx = type(self).function_vjp(dy, x, **self.options()) if input_gradient else None
            return dx, {}

        return self.forward(x), pullback


@dataclass(frozen=True, eq=False, repr=False)
class Flatten(_Operation):
    """Each example as one row, its entries in C order.

    Examples
    --------
    >>> Flatten().output_shape((4, 4, 32))
    (512,)
    """

    function = staticmethod(activations.flatten)
    function_vjp = staticmethod(activations.flatten_vjp)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (math.prod(input_shape),)


@dataclass(frozen=True, eq=False, repr=False)
class ReLU(_Operation):
    """The positive part: ``max(x, 0)``.

    Examples
    --------
    >>> ReLU().forward(np.array([[-1.0, 2.0]]))
    array([[0., 2.]])
    """

    function = staticmethod(activations.relu)
    function_vjp = staticmethod(activations.relu_vjp)

    def vjp(
        self, x: Array, *, rng: np.random.Generator | None = None, input_gradient: bool = True
    ) -> tuple[Array, Pullback]:
        # The output is positive where the input is. The next layer keeps the output anyway, so the
        # memory of the input is free.
        y = activations.relu(x)
        return y, lambda dy: (activations.relu_vjp(dy, y) if input_gradient else None, {})


@dataclass(frozen=True, eq=False, repr=False)
class LeakyReLU(_Operation):
    """``x`` where it is positive, ``negative_slope * x`` elsewhere.

    Parameters
    ----------
    negative_slope : float, 0 <= negative_slope <= 1

    Examples
    --------
    >>> LeakyReLU(0.25).forward(np.array([[-2.0, 2.0]]))
    array([[-0.5,  2. ]])
    """

    negative_slope: float = 0.01

    function = staticmethod(activations.leaky_relu)
    function_vjp = staticmethod(activations.leaky_relu_vjp)

    def __post_init__(self) -> None:
        self._set(negative_slope=as_float(self.negative_slope, "negative_slope", 0.0, 1.0))


@dataclass(frozen=True, eq=False, repr=False)
class Sigmoid(_Operation):
    """``1 / (1 + exp(-x))``.

    Examples
    --------
    >>> Sigmoid().forward(np.array([[0.0]]))
    array([[0.5]])
    """

    function = staticmethod(activations.sigmoid)
    function_vjp = staticmethod(activations.sigmoid_vjp)


@dataclass(frozen=True, eq=False, repr=False)
class Tanh(_Operation):
    """The hyperbolic tangent.

    Examples
    --------
    >>> Tanh().forward(np.array([[0.0]]))
    array([[0.]])
    """

    function = staticmethod(activations.tanh)
    function_vjp = staticmethod(activations.tanh_vjp)


@dataclass(frozen=True, eq=False, repr=False)
class Softmax(_Operation):
    """Probabilities from logits, along the last axis.

    Train on the logits: `softmax_cross_entropy` contains the softmax already.

    Examples
    --------
    >>> Softmax().forward(np.array([[0.0, 0.0]]))
    array([[0.5, 0.5]])
    """

    function = staticmethod(activations.softmax)
    function_vjp = staticmethod(activations.softmax_vjp)


@dataclass(frozen=True, eq=False, repr=False)
class _Pool2D(_Operation):
    """The windows of the pooling layers."""

    window: Pair
    stride: Pair | None = None
    padding: Padding = "valid"

    def __post_init__(self) -> None:
        stride = None if self.stride is None else pair(self.stride, "stride", 1)
        window, padding = pair(self.window, "window", 1), normal_padding(self.padding)
        self._set(window=window, stride=stride, padding=padding)

    def geometry(self, input_hw: Shape) -> Geometry:
        """Where the windows lie in an image of this height and width."""
        stride = self.window if self.stride is None else self.stride
        return geometry(input_hw, self.window, stride, self.padding)

    def output_shape(self, input_shape: Shape) -> Shape:
        h, w, channels = image_shape(input_shape)
        return *self.geometry((h, w)).output, channels


@dataclass(frozen=True, eq=False, repr=False)
class MaxPool2D(_Pool2D):
    """The maximum of every window, channel by channel.

    Parameters
    ----------
    window : int or (int, int)
    stride : int or (int, int), optional
        The window's size by default.
    padding : as for `Conv2D`
        Counts as minus infinity, so it is never the maximum.

    Examples
    --------
    >>> MaxPool2D(2).output_shape((24, 24, 20))
    (12, 12, 20)
    """

    function = staticmethod(pooling.max_pool2d)
    function_vjp = staticmethod(pooling.max_pool2d_vjp)


@dataclass(frozen=True, eq=False, repr=False)
class AvgPool2D(_Pool2D):
    """The mean of every window, channel by channel.

    Parameters
    ----------
    window, stride, padding
        As for `MaxPool2D`.
    count_include_pad : bool
        Whether the padding counts, as zeros, in the mean.

    Examples
    --------
    >>> AvgPool2D(2).output_shape((24, 24, 20))
    (12, 12, 20)
    """

    count_include_pad: bool = False

    function = staticmethod(pooling.avg_pool2d)
    function_vjp = staticmethod(pooling.avg_pool2d_vjp)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(count_include_pad=flag(self.count_include_pad, "count_include_pad"))


@dataclass(frozen=True, eq=False, repr=False)
class GlobalAvgPool2D(_Operation):
    """The mean of each channel over the whole image.

    Examples
    --------
    >>> GlobalAvgPool2D().output_shape((7, 7, 64))
    (64,)
    """

    function = staticmethod(pooling.global_avg_pool2d)
    function_vjp = staticmethod(pooling.global_avg_pool2d_vjp)

    def geometry(self, input_hw: Shape) -> Geometry:
        """One window: the whole image."""
        return geometry(input_hw, input_hw)

    def output_shape(self, input_shape: Shape) -> Shape:
        return image_shape(input_shape)[2:]


@dataclass(frozen=True, eq=False, repr=False)
class Dropout(Layer):
    """In training, set each entry to 0 with probability `rate`; divide the others by 1 - rate.

    `forward`, and `vjp` without `rng`, leave the input as it is.

    Parameters
    ----------
    rate : float, 0 <= rate < 1

    Notes
    -----
    The expected output is the input (Srivastava et al., 2014; "inverted dropout").

    Examples
    --------
    >>> y, _ = Dropout(0.5).vjp(np.ones((1, 4)), rng=np.random.default_rng(0))
    >>> y
    array([[2., 2., 2., 0.]])
    """

    rate: float

    def __post_init__(self) -> None:
        rate = as_float(self.rate, "rate", 0.0, 1.0)
        if rate == 1.0:
            raise CompressionError("rate must be less than 1, or nothing is left")
        self._set(rate=rate)

    def forward(self, x: Array) -> Array:
        return x

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def vjp(
        self, x: Array, *, rng: np.random.Generator | None = None, input_gradient: bool = True
    ) -> tuple[Array, Pullback]:
        if rng is None:
            return x, lambda dy: (dy if input_gradient else None, {})
        kept = generator(rng).random(x.shape, dtype=np.float32) >= self.rate
        factors = freeze(np.multiply(kept, 1 / (1 - self.rate), dtype=x.dtype))
        return x * factors, lambda dy: (dy * factors if input_gradient else None, {})


def image_shape(input_shape: Shape, channels: int | None = None) -> Shape:
    """Check the shape of an image, (H, W, C), and its number of channels if it is given."""
    if len(input_shape) != 3 or channels not in (None, input_shape[2]):
        wanted = "C" if channels is None else channels
        raise CompressionError(f"the input must have shape (H, W, {wanted}), not {input_shape}")
    return tuple(input_shape)


STATELESS_TYPES = frozenset[type[Layer]]({
    AvgPool2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Sigmoid,
    Softmax,
    Tanh,
})  # fmt: skip
"""The layers above, by their exact type."""


def same_options(a: Layer, b: Layer) -> bool:
    """Whether two layers have the same type and the same options; weights are not compared.

    Examples
    --------
    >>> same_options(MaxPool2D(2), MaxPool2D((2, 2))), same_options(MaxPool2D(2), AvgPool2D(2))
    (True, False)
    """
    return type(a) is type(b) and a.options() == b.options()
