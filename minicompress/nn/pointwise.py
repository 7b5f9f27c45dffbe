"""Layers that treat every number by itself (and softmax, which treats every row)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicompress.arrays import Array, as_float, float_array, freeze, frozen, generator
from minicompress.errors import CompressionError
from minicompress.nn import activations, losses
from minicompress.nn.layer import Layer, Operation, Pullback, Shape
from minicompress.representation import Rep


@dataclass(frozen=True, eq=False, repr=False)
class ReLU(Operation):
    """The positive part: ``max(x, 0)``.

    Examples
    --------
    >>> ReLU().forward(np.array([[-1.0, 2.0]]))
    array([[0., 2.]])
    """

    function = staticmethod(activations.relu)
    function_vjp = staticmethod(activations.relu_vjp)

    def vjp(
        self, *x: Array, rng: np.random.Generator | None = None, input_gradient: bool = True
    ) -> tuple[Array, Pullback]:
        # The output is positive where the input is. The next layer keeps the output anyway, so the
        # memory of the input is free.
        y = activations.relu(*x)
        return y, lambda dy: (activations.relu_vjp(dy, y) if input_gradient else None, {})


@dataclass(frozen=True, eq=False, repr=False)
class LeakyReLU(Operation):
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
class Clip(Operation):
    """``min(max(x, low), high)``. ReLU6 is ``Clip(0, 6)``.

    Parameters
    ----------
    low, high : float, low <= high
        Infinite for no limit, which is the default.

    Examples
    --------
    >>> Clip(0, 6).forward(np.array([[-1.0, 2.0, 7.0]]))
    array([[0., 2., 6.]])
    """

    low: float = -math.inf
    high: float = math.inf

    function = staticmethod(activations.clip)
    function_vjp = staticmethod(activations.clip_vjp)

    def __post_init__(self) -> None:
        low, high = activations.limits(self.low, self.high)
        self._set(low=low, high=high)


@dataclass(frozen=True, eq=False, repr=False)
class Sigmoid(Operation):
    """``1 / (1 + exp(-x))``.

    Examples
    --------
    >>> Sigmoid().forward(np.array([[0.0]]))
    array([[0.5]])
    """

    function = staticmethod(activations.sigmoid)
    function_vjp = staticmethod(activations.sigmoid_vjp)


@dataclass(frozen=True, eq=False, repr=False)
class Tanh(Operation):
    """The hyperbolic tangent.

    Examples
    --------
    >>> Tanh().forward(np.array([[0.0]]))
    array([[0.]])
    """

    function = staticmethod(activations.tanh)
    function_vjp = staticmethod(activations.tanh_vjp)


@dataclass(frozen=True, eq=False, repr=False)
class HardSigmoid(Operation):
    """``min(max(alpha * x + beta, 0), 1)``; the numbers of PyTorch are 1/6 and 1/2.

    Parameters
    ----------
    alpha, beta : float
        The defaults are those of ONNX.

    Examples
    --------
    >>> HardSigmoid(0.25).forward(np.array([[-4.0, 0.0, 1.0]]))
    array([[0.  , 0.5 , 0.75]])
    """

    alpha: float = 0.2
    beta: float = 0.5

    function = staticmethod(activations.hard_sigmoid)
    function_vjp = staticmethod(activations.hard_sigmoid_vjp)

    def __post_init__(self) -> None:
        alpha, beta = (
            as_float(self.alpha, "alpha", -math.inf),
            as_float(self.beta, "beta", -math.inf),
        )
        self._set(alpha=alpha, beta=beta)


@dataclass(frozen=True, eq=False, repr=False)
class HardSwish(Operation):
    """``x * min(max(x / 6 + 1 / 2, 0), 1)`` (Howard et al., 2019).

    Examples
    --------
    >>> HardSwish().forward(np.array([[-3.0, 0.0, 3.0]]))
    array([[-0.,  0.,  3.]])
    """

    function = staticmethod(activations.hard_swish)
    function_vjp = staticmethod(activations.hard_swish_vjp)


@dataclass(frozen=True, eq=False, repr=False)
class SiLU(Operation):
    """``x / (1 + exp(-x))``, also called swish (Hendrycks and Gimpel, 2016).

    Examples
    --------
    >>> SiLU().forward(np.array([[0.0, 1000.0]]))
    array([[   0., 1000.]])
    """

    function = staticmethod(activations.silu)
    function_vjp = staticmethod(activations.silu_vjp)


@dataclass(frozen=True, eq=False, repr=False)
class PReLU(Layer):
    """``x`` where it is positive, ``slope * x`` elsewhere, with a slope for each channel.

    Parameters
    ----------
    slope : (channels,) ndarray
        Of any value; it is trained (He et al., 2015).

    Raises
    ------
    CompressionError
        The slope is no float array of one axis.

    Examples
    --------
    >>> PReLU(np.array([0.5, 2.0])).forward(np.array([[-2.0, -2.0], [1.0, 1.0]]))
    array([[-1., -4.],
           [ 1.,  1.]])
    """

    slope: Array

    def __post_init__(self) -> None:
        self._set(slope=frozen(float_array(self.slope, "slope", ndim=1)))

    def parameters(self) -> dict[str, Rep]:
        return {"slope": self.slope}

    def forward(self, x: Array) -> Array:
        return activations.prelu(x, self.slope)

    def output_shape(self, input_shape: Shape) -> Shape:
        if tuple(input_shape[-1:]) != self.slope.shape:
            raise CompressionError(
                f"the input must have {self.slope.size} channels, not shape {input_shape}"
            )
        return tuple(input_shape)

    def vjp(
        self, x: Array, *, rng: np.random.Generator | None = None, input_gradient: bool = True
    ) -> tuple[Array, Pullback]:
        def pullback(dy: Array) -> tuple[Any, dict[str, Array]]:
            dx, dslope = activations.prelu_vjp(dy, x, self.slope)
            return dx if input_gradient else None, {"slope": dslope}

        return self.forward(x), pullback


@dataclass(frozen=True, eq=False, repr=False)
class Softmax(Operation):
    """Probabilities from logits, along the last axis.

    Train on the logits: `softmax_cross_entropy` contains the softmax already.

    Examples
    --------
    >>> Softmax().forward(np.array([[0.0, 0.0]]))
    array([[0.5, 0.5]])
    """

    function = staticmethod(losses.softmax)
    function_vjp = staticmethod(losses.softmax_vjp)


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
