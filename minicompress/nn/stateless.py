"""What a layer is, and the layers that hold no weights.

A layer is a frozen value: its fields are all there is to it, and they are the arguments of the
operation that it stands for. Training makes new layers; nothing changes one.
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
from minicompress.nn.convolution import Padding, Pair, conv_output_hw, pair, resolve_padding
from minicompress.representation import Rep

Shape: TypeAlias = tuple[int, ...]
Pullback: TypeAlias = Callable[[Array], tuple[Array | None, dict[str, Array]]]


@dataclass(frozen=True, eq=False, repr=False)
class Layer(Value):
    """Base of all layers. One of your own needs `forward`, `output_shape` and, to train it, `vjp`.

    It is a dataclass like those below, and lists its weights, if any, in `parameters`: arrays that
    are not in there cannot be seen. `summary` counts it if its class defines `parameters` and
    `macs(input_shape)`, the multiply-accumulates for one input. Files, ONNX, integers and
    certificates know this package's layers only. A class derived from one of them is not that one.
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
            The pullback reads it again: do not write to it, nor to `y`, in between.
        rng : numpy.random.Generator, optional
            For `Dropout`, which does nothing without one.
        input_gradient : bool
            False spares the work for the first of the pullback's results, which is then None.

        Returns
        -------
        y : ndarray
        pullback : callable
            Takes the gradient by `y`; returns the one by `x` and a dict of those by the weights.
        """
        raise NotImplementedError

    def parameters(self) -> dict[str, Rep]:
        """The weights, arrays or representations, by the names of their fields."""
        return {}


@dataclass(frozen=True, eq=False, repr=False)
class _Operation(Layer):
    """A function of this package as a layer: the fields are the names of its options."""

    function: ClassVar[Callable[..., Array]]
    function_vjp: ClassVar[Callable[..., Array]]

    def forward(self, x: Array) -> Array:
        return type(self).function(x, **self._options())

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def vjp(
        self, x: Array, *, rng: np.random.Generator | None = None, input_gradient: bool = True
    ) -> tuple[Array, Pullback]:
        def pullback(dy: Array) -> tuple[Array | None, dict[str, Array]]:
            dx = type(self).function_vjp(dy, x, **self._options()) if input_gradient else None
            return dx, {}

        return self.forward(x), pullback

    def _options(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


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
        # The output is positive where the input is, and the next layer keeps it anyway: with it
        # the pullback lets go of the input, which is as large.
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
        slope = as_float(self.negative_slope, "negative_slope", 0.0, 1.0)
        object.__setattr__(self, "negative_slope", slope)


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

    For the loss take the logits: `softmax_cross_entropy` holds the softmax already.

    Examples
    --------
    >>> Softmax().forward(np.array([[0.0, 0.0]]))
    array([[0.5, 0.5]])
    """

    function = staticmethod(activations.softmax)
    function_vjp = staticmethod(activations.softmax_vjp)


@dataclass(frozen=True, eq=False, repr=False)
class _Pool2D(_Operation):
    """What the pooling layers share: the windows."""

    window: Pair
    stride: Pair | None = None
    padding: Padding = "valid"

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", pair(self.window, "window", 1))
        if self.stride is not None:
            object.__setattr__(self, "stride", pair(self.stride, "stride", 1))
        pads = resolve_padding(self.padding, (1, 1), (1, 1))
        if not isinstance(self.padding, str):
            object.__setattr__(self, "padding", pads)

    def output_shape(self, input_shape: Shape) -> Shape:
        h, w, channels = image_shape(input_shape)
        window, stride = pair(self.window, "window", 1), self.stride
        stride = window if stride is None else stride
        return *conv_output_hw((h, w), window, stride=stride, padding=self.padding), channels


@dataclass(frozen=True, eq=False, repr=False)
class MaxPool2D(_Pool2D):
    """The maximum of every window, channel by channel.

    Parameters
    ----------
    window : int or (int, int)
    stride : int or (int, int), optional
        The window's size by default.
    padding : as for `Conv2D`
        Counts as minus infinity.

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
        include = flag(self.count_include_pad, "count_include_pad")
        object.__setattr__(self, "count_include_pad", include)


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

    def output_shape(self, input_shape: Shape) -> Shape:
        return image_shape(input_shape)[2:]


@dataclass(frozen=True, eq=False, repr=False)
class Dropout(Layer):
    """In training, zero each entry with probability `rate` and scale the rest by 1 / (1 - rate).

    Everywhere else, and in `vjp` without `rng`, the identity.

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
        object.__setattr__(self, "rate", rate)

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
    """Check the shape of an image, (H, W, C), with as many channels as needed."""
    if len(input_shape) != 3 or channels not in (None, input_shape[2]):
        wanted = "C" if channels is None else channels
        raise CompressionError(f"the input must have shape (H, W, {wanted}), not {input_shape}")
    return tuple(input_shape)
