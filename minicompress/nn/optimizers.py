"""Optimizers as pairs of pure functions, and schedules of the learning rate.

``init(model)`` gives the state for a model, ``update(model, gradients, state)`` the next model and
the next state. Models and states are never changed, so a training can go on from any of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from minicompress.arrays import Array, as_float, as_int, flag, freeze, widened
from minicompress.errors import CompressionError
from minicompress.nn.network import Gradients, Network
from minicompress.nn.parameters import parameters, with_parameters

Schedule: TypeAlias = Callable[[int], float]
Moments: TypeAlias = tuple[dict[str, Array], ...]


class Optimizer(NamedTuple):
    """How a model follows its gradients.

    Parameters
    ----------
    init : callable
        ``init(model) -> state``
    update : callable
        ``update(model, gradients, state) -> (model, state)``; a weight without a gradient stays as
        it is.
    """

    init: Callable[[Network], Any]
    update: Callable[[Network, Gradients, Any], tuple[Network, Any]]


class SGDState(NamedTuple):
    """Updates made so far, and the velocity of every parameter (none without momentum)."""

    step: int
    velocity: Moments


class AdamState(NamedTuple):
    """Updates made so far, and the running means of the gradients and of their squares."""

    step: int
    mean: Moments
    square: Moments


def sgd(
    learning_rate: float | Schedule,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Stochastic gradient descent, as in PyTorch.

    ``g += weight_decay * w; v = momentum * v + g; w -= learning_rate * v``, and with `nesterov`
    ``w -= learning_rate * (g + momentum * v)``.

    Parameters
    ----------
    learning_rate : float, or a schedule of the number of updates made so far
    momentum : float, 0 <= momentum <= 1
    nesterov : bool
        Needs momentum.
    weight_decay : float
        Coupled: a penalty ``weight_decay / 2 * sum(w ** 2)``, also on biases.

    Returns
    -------
    Optimizer

    Raises
    ------
    CompressionError
        A number is out of range; at `update`, a gradient is of another shape than its weight.

    Notes
    -----
    Polyak (1964); Nesterov's form by Sutskever et al. (2013).

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(np.array([[1.0]])),))
    >>> optimizer = sgd(0.5)
    >>> gradients = ({"weight": np.array([[0.25]])},)
    >>> stepped, state = optimizer.update(model, gradients, optimizer.init(model))
    >>> stepped.layers[0].weight, state.step
    (array([[0.875]]), 1)
    """
    rate = _schedule(learning_rate)
    momentum = as_float(momentum, "momentum", 0.0, 1.0)
    weight_decay = as_float(weight_decay, "weight_decay", 0.0)
    if flag(nesterov, "nesterov") and momentum == 0.0:
        raise CompressionError("nesterov=True needs a momentum above 0")

    def init(model: Network) -> SGDState:
        return SGDState(0, _zeros(model) if momentum else ())

    def update(model: Network, gradients: Gradients, state: SGDState) -> tuple[Network, SGDState]:
        step_size = rate(state.step)

        def rule(w: Array, g: Array, *v: Array) -> tuple[Array, ...]:
            if weight_decay:
                g = g + weight_decay * w
            if momentum:
                velocity = v[0] * momentum
                velocity += g
                v, g = (velocity,), g + momentum * velocity if nesterov else velocity
            stepped = g * step_size
            return np.subtract(w, stepped, out=stepped), *v

        model, velocity = _updated(model, gradients, rule, *([state.velocity] if momentum else []))
        return model, SGDState(state.step + 1, *velocity or [()])

    return Optimizer(init, update)


def adam(
    learning_rate: float | Schedule = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam; with `weight_decay` AdamW, in which the decay does not enter the moments.

    ``m = beta1 m + (1 - beta1) g; s = beta2 s + (1 - beta2) g ** 2; w -= learning_rate *
    ((m / (1 - beta1 ** t)) / (sqrt(s / (1 - beta2 ** t)) + epsilon) + weight_decay * w)``,
    where t is 1 at the first update.

    Parameters
    ----------
    learning_rate : float, or a schedule of the number of updates made so far
    beta1, beta2 : float, 0 <= beta < 1
    epsilon : float, positive
    weight_decay : float
        Decoupled; also on biases.

    Returns
    -------
    Optimizer
        The moments of float16 weights are float32, since squares in float16 underflow.

    Raises
    ------
    CompressionError
        A number is out of range; at `update`, a gradient is of another shape than its weight.

    Notes
    -----
    Kingma and Ba (2015); Loshchilov and Hutter (2019) for the decay.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(np.array([[1.0]])),))
    >>> optimizer = adam(0.125)
    >>> gradients = ({"weight": np.array([[4.0]])},)
    >>> stepped, state = optimizer.update(model, gradients, optimizer.init(model))
    >>> stepped.layers[0].weight.round(6)  # the first step is the learning rate, whatever g is
    array([[0.875]])
    """
    rate = _schedule(learning_rate)
    beta1, beta2 = as_float(beta1, "beta1", 0.0, 1.0), as_float(beta2, "beta2", 0.0, 1.0)
    weight_decay = as_float(weight_decay, "weight_decay", 0.0)
    if max(beta1, beta2) == 1.0 or as_float(epsilon, "epsilon", 0.0) == 0.0:
        raise CompressionError("beta1 and beta2 must be less than 1 and epsilon more than 0")

    def init(model: Network) -> AdamState:
        return AdamState(0, _zeros(model), _zeros(model))

    def update(model: Network, gradients: Gradients, state: AdamState) -> tuple[Network, AdamState]:
        t = state.step + 1
        step_size = rate(state.step)
        # Both corrections of the moments are two numbers for each step:
        # (m / c1) / (sqrt(s / c2) + epsilon) = (m * sqrt(c2) / c1) / (sqrt(s) + epsilon * sqrt(c2))
        root = math.sqrt(1 - beta2**t)
        factor, floor = step_size * root / (1 - beta1**t), epsilon * root

        def rule(w: Array, g: Array, m: Array, s: Array) -> tuple[Array, ...]:
            m, s = m * beta1, s * beta2
            spare = np.multiply(g, 1 - beta1, dtype=m.dtype)  # one buffer for all that follows
            m += spare
            np.multiply(g, g, out=spare, dtype=m.dtype)
            spare *= 1 - beta2
            s += spare
            np.sqrt(s, out=spare)
            spare += floor
            np.divide(m, spare, out=spare)
            spare *= factor
            if weight_decay:
                spare += (step_size * weight_decay) * w
            return np.subtract(w, spare, out=spare), m, s

        model, moments = _updated(model, gradients, rule, state.mean, state.square)
        return model, AdamState(t, *moments)

    return Optimizer(init, update)


def constant_lr(value: float) -> Schedule:
    """The schedule that stays at `value`.

    Examples
    --------
    >>> constant_lr(0.1)(1000)
    0.1
    """
    value = as_float(value, "value", 0.0)
    return lambda step: value


def cosine_lr(initial: float, steps: int, final: float = 0.0) -> Schedule:
    """Half a cosine, from exactly `initial` at step 0 to exactly `final` at `steps` and later.

    Parameters
    ----------
    initial, final : float, at least 0
    steps : int, at least 1

    Returns
    -------
    schedule : callable, step -> float

    Notes
    -----
    Loshchilov and Hutter (2017), without the restarts.

    Examples
    --------
    >>> rate = cosine_lr(0.5, 100)
    >>> rate(0), round(rate(50), 9), rate(100), rate(1000)
    (0.5, 0.25, 0.0, 0.0)
    """
    initial, final = as_float(initial, "initial", 0.0), as_float(final, "final", 0.0)
    steps = as_int(steps, "steps", 1)

    def rate(step: int) -> float:
        if step >= steps:
            return final
        weight = (1 + math.cos(math.pi * step / steps)) / 2
        return initial * weight + final * (1 - weight)

    return rate


def step_lr(initial: float, drop: float, every: int) -> Schedule:
    """`initial`, multiplied by `drop` once every `every` steps.

    Parameters
    ----------
    initial, drop : float, at least 0
    every : int, at least 1

    Returns
    -------
    schedule : callable, step -> float

    Examples
    --------
    >>> rate = step_lr(1.0, 0.5, 10)
    >>> rate(0), rate(9), rate(10), rate(25)
    (1.0, 1.0, 0.5, 0.25)
    """
    initial, drop = as_float(initial, "initial", 0.0), as_float(drop, "drop", 0.0)
    every = as_int(every, "every", 1)
    return lambda step: initial * drop ** (step // every)


def _schedule(learning_rate: float | Schedule) -> Schedule:
    """The learning rate as a function of the step; what a caller's function gives is checked."""
    if callable(learning_rate):
        return lambda step: as_float(learning_rate(step), "learning_rate(step)", 0.0)
    return constant_lr(as_float(learning_rate, "learning_rate", 0.0))


def _zeros(model: Network) -> Moments:
    """Zero for every parameter: where the moments start."""
    moments = []
    for i, weights in enumerate(parameters(model)):
        for name, weight in weights.items():
            if not isinstance(weight, np.ndarray):
                raise CompressionError(
                    f"layer {i}: {name} is {type(weight).__name__}, and only plain arrays can be "
                    "trained: take decoded(model)"
                )
        moments.append({n: freeze(np.zeros_like(widened(w))) for n, w in weights.items()})  # type: ignore[arg-type]
    return tuple(moments)


def _updated(
    model: Network, gradients: Gradients, rule: Callable[..., tuple[Array, ...]], *old: Moments
) -> tuple[Network, list[Moments]]:
    """Update each weight that has a gradient: ``rule(weight, gradient, *moments)`` gives it anew,
    and its moments after it."""
    if len(gradients) != len(model.layers):
        raise CompressionError(
            f"gradients must hold one dict for each of {len(model.layers)} layers, "
            f"not {len(gradients)}"
        )
    new: list[dict[str, Any]] = [{} for _ in gradients]
    moments = [[dict(layer) for layer in moment] for moment in old]
    for i, (weights, slopes) in enumerate(zip(parameters(model), gradients, strict=True)):
        for name, slope in slopes.items():
            weight: Any = weights.get(name)
            if weight is None or weight.shape != slope.shape:
                shape = None if weight is None else weight.shape
                raise CompressionError(
                    f"layer {i}: the gradient of {name} has shape {slope.shape}, the weight {shape}"
                )
            made, *after = rule(weight, slope, *(moment[i][name] for moment in moments))
            new[i][name] = freeze(made.astype(weight.dtype, copy=False))
            for moment, value in zip(moments, after, strict=True):
                moment[i][name] = freeze(value)
    return with_parameters(model, tuple(new)), [tuple(moment) for moment in moments]
