"""Optimizers against exact re-implementations, and the schedules of their rates."""

from __future__ import annotations

import math
import pickle
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_models import OPTIMIZERS, START, mapped, small

from minicompress.errors import CompressionError
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.optimizers import Optimizer, adam, constant_lr, cosine_lr, sgd, step_lr
from minicompress.nn.pointwise import ReLU


def steps(optimizer, weight, gradients):
    """The weights that follow each other under the given gradients."""
    model = Sequential((Dense(weight), ReLU()))
    state, weights = optimizer.init(model), []
    for g in gradients:
        model, state = optimizer.update(model, ({"weight": g}, {}), state)
        weights.append(model.layers[0].weight)
    return weights


def law_sgd_is_exact(weight, gradients, knobs, optimizer_of):
    """With dyadic knobs and small integers float64 rounds nothing: the textbook in fractions."""
    rates, momentum, nesterov, decay = knobs
    optimizer = optimizer_of(
        lambda step: rates[step], momentum=momentum, nesterov=nesterov, weight_decay=decay
    )
    computed = steps(optimizer, weight, gradients)
    exact = [Fraction(float(w)) for w in weight.flat]
    velocity = [Fraction(0)] * weight.size
    for t, g in enumerate(gradients):
        for i, slope in enumerate(g.flat):
            slope = Fraction(float(slope)) + Fraction(decay) * exact[i]
            velocity[i] = Fraction(momentum) * velocity[i] + slope
            move = slope + Fraction(momentum) * velocity[i] if nesterov else velocity[i]
            exact[i] -= Fraction(rates[t]) * move
        assert [Fraction(float(w)) for w in computed[t].flat] == exact


@given(
    small((2, 2)),
    st.lists(small((2, 2)), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=4, max_size=4),
    st.sampled_from([(0.0, False), (0.5, False), (0.5, True), (1.0, True)]),
    st.sampled_from([0.0, 0.25]),
)
def test_sgd_is_exact(weight, gradients, rates, inertia, decay):
    law_sgd_is_exact(weight, gradients, (rates, *inertia, decay), sgd)


def law_adam_is_the_papers(weight, gradients, knobs, optimizer_of):
    """Adam with decoupled decay, in 50 digits.

    The slack: after t steps m is off by at most gamma_(2t+2) times M, the same mean of |g|, and s
    relatively by gamma_(2t+3), halved by the root, which some 12 more roundings follow until the
    step is taken. A correction 1 - beta ** t cancels: the power's error, an ulp or 2u, grows by
    beta ** t / (1 - beta ** t); there are two of them, one under the root. With nu the sum of these
    the step is off by at most gamma_nu (M factor / root + decay part). A weight carries the errors
    of the steps before, and 2u of itself each time.
    """
    rate, beta1, beta2, epsilon, decay = knobs
    optimizer = optimizer_of(rate, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay)
    computed = steps(optimizer, weight, gradients)
    with localcontext() as context:
        context.prec = 50
        lr, b1, b2, eps, wd = map(Decimal, knobs)
        for i, start in enumerate(weight.flat):
            w, m, magnitude, s, slack = Decimal(float(start)), *[Decimal(0)] * 4
            for t, g in enumerate((Decimal(float(g.flat[i])) for g in gradients), start=1):
                m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g * g
                magnitude = b1 * magnitude + (1 - b1) * abs(g)
                root = (s / (1 - b2**t)).sqrt() + eps
                cancelled = 2 * sum(b**t / (1 - b**t) for b in (b1, b2))
                nu = (4 * t + 20 + cancelled) * Decimal(2) ** -53
                gamma = nu / (1 - nu)
                slack += gamma * lr * (magnitude / (1 - b1**t) / root + wd * abs(w))
                slack += Decimal(2) ** -52 * abs(w)
                w -= lr * (m / (1 - b1**t) / root + wd * w)
                slack += Decimal(2) ** -52 * abs(w)
                assert abs(Decimal(float(computed[t - 1].flat[i])) - w) <= slack


@given(
    small((2, 2)),
    st.lists(small((2, 2)), min_size=1, max_size=4),
    st.sampled_from([0.001, 0.5]),
    st.sampled_from([(0.9, 0.999), (0.5, 0.75), (0.0, 0.0)]),
    st.sampled_from([1e-8, 0.5]),
    st.sampled_from([0.0, 0.1]),
)
def test_adam_is_the_papers(weight, gradients, rate, betas, epsilon, decay):
    law_adam_is_the_papers(weight, gradients, (rate, *betas, epsilon, decay), adam)


def test_three_steps_by_hand():
    weights = [
        w.item() for w in steps(sgd(0.5, momentum=0.5), np.array([[1.0]]), [np.array([[1.0]])] * 3)
    ]
    # velocities 1, 1.5, 1.75
    assert weights == [0.5, -0.25, -1.125]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_write_to_nothing_that_was_handed_out(name):
    optimizer = OPTIMIZERS[name]
    model = Sequential((Dense(np.ones((3, 2)), np.ones(2)), ReLU()))
    gradients = ({"weight": np.full((3, 2), 2.0), "bias": np.arange(2.0)}, {})
    start = (model, optimizer.init(model))
    once = optimizer.update(start[0], gradients, start[1])
    before = pickle.dumps((start, gradients, once))
    twice = optimizer.update(once[0], gradients, once[1])
    assert pickle.dumps((start, gradients, once)) == before
    again = optimizer.update(
        *(optimizer.update(start[0], gradients, start[1])[0], gradients), once[1]
    )
    assert pickle.dumps(again) == pickle.dumps(twice)
    for array in (twice[0].layers[0].weight, twice[0].layers[0].bias):
        assert not array.flags.writeable


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_keep_their_dtype_and_stay_finite(name, dtype):
    # Gradients whose square underflows in float16.
    gradients = [np.array([[1e-4, 0.0, -1e-5]], dtype)] * 3
    weights = steps(OPTIMIZERS[name], np.ones((1, 3), dtype), gradients)
    assert {w.dtype for w in weights} == {np.dtype(dtype)}
    assert all(np.isfinite(w).all() for w in weights)


def test_a_schedule_may_give_any_number():
    rates = [np.float64(0.5), np.float32(0.5), 1]
    weights = steps(
        sgd(lambda step: rates[step]),
        np.ones((1, 1), np.float32),
        [np.ones((1, 1), np.float32)] * 3,
    )
    assert [w.item() for w in weights] == [0.5, 0.0, -1.0]
    assert weights[-1].dtype == np.float32


def test_statistics_are_not_trained():
    one = np.ones(2)
    model = Sequential((BatchNorm(one, one, one, one),))
    for optimizer in OPTIMIZERS.values():
        gradients = ({"scale": one, "offset": one},)
        (layer,) = optimizer.update(model, gradients, optimizer.init(model))[0].layers
        assert (layer.scale < 1).all()
        assert (layer.mean == 1).all()
        assert (layer.variance == 1).all()


def test_schedules():
    assert [constant_lr(0.25)(k) for k in (0, 7)] == [0.25, 0.25]
    cosine = cosine_lr(0.3, 7, final=0.1)
    values = [cosine(k) for k in range(9)]
    assert (values[0], values[7], values[8]) == (0.3, 0.1, 0.1)
    assert all(a > b for a, b in pairwise(values[:8]))
    drop = step_lr(1.0, 0.5, 3)
    assert [drop(k) for k in range(7)] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]


# Refusals -----------------------------------------------------------------------------------------

REFUSED = {
    "learning_rate": (lambda: sgd(-0.1), "learning_rate must be"),
    "momentum": (lambda: sgd(0.1, momentum=1.5), "momentum must be"),
    "nesterov": (lambda: sgd(0.1, nesterov=True), "nesterov=True needs"),
    "weight_decay": (lambda: sgd(0.1, weight_decay=-1), "weight_decay must be"),
    "beta1": (lambda: adam(beta1=1.0), "beta1 and beta2 must be less than 1"),
    "epsilon": (lambda: adam(epsilon=0), "epsilon more than 0"),
    "steps": (lambda: cosine_lr(0.1, 0), "steps must be"),
    "every": (lambda: step_lr(0.1, 0.5, 0), "every must be"),
    "gradients too few": (
        lambda: sgd(0.1).update(START, (), sgd(0.1).init(START)),
        "one dict for each of 1 layers",
    ),
    "gradient of another shape": (
        lambda: steps(sgd(0.1), np.ones((2, 2)), [np.ones(2)]),
        "the gradient of weight has shape",
    ),
    "gradient of another name": (
        lambda: sgd(0.1).update(START, ({"scale": np.ones(2)},), sgd(0.1).init(START)),
        "the gradient of scale has shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(CompressionError, match=message):
        call()


# Wrong implementations that the laws must kill ----------------------------------------------------

WEIGHT = np.array([[1.0, -2.0], [3.0, 0.0]])
SLOPES = [np.array([[1.0, 2.0], [-1.0, 3.0]]), np.array([[2.0, 2.0], [0.0, -1.0]])] * 2
INERT = ([0.5, 0.25, 0.25, 0.5], 0.5, False, 0.25)
AHEAD = ([0.5, 0.25, 0.25, 0.5], 0.5, True, 0.0)
ADAM = (0.1, 0.9, 0.999, 0.5, 0.1)


def _decay_by_the_rate_only(rate, *, momentum, nesterov, weight_decay):
    """Decoupled decay in SGD."""
    right = sgd(rate, momentum=momentum, nesterov=nesterov)

    def update(model, gradients, state):
        decayed = mapped(model, lambda w: w * (1 - rate(state.step) * weight_decay))
        return right.update(decayed, gradients, state)

    return Optimizer(right.init, update)


def _rate_inside_velocity(rate, *, momentum, nesterov, weight_decay):
    """``v = momentum * v + rate * g``: another optimizer as soon as the rate changes."""

    def scaled(model, gradients, state):
        slopes = tuple({n: rate(state.step) * g for n, g in d.items()} for d in gradients)
        return unit.update(model, slopes, state)

    unit = sgd(1.0, momentum=momentum, nesterov=nesterov)
    return Optimizer(unit.init, scaled)


def _without_correction(rate, *, beta1, beta2, epsilon, weight_decay):
    right = adam(rate, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=weight_decay)

    def update(model, gradients, state):
        late = state._replace(step=10**6)
        model, state_after = right.update(model, gradients, late)
        return model, state_after._replace(step=state.step + 1)

    return Optimizer(right.init, update)


def _coupled_decay(rate, *, beta1, beta2, epsilon, weight_decay):
    right = adam(rate, beta1=beta1, beta2=beta2, epsilon=epsilon)

    def update(model, gradients, state):
        slopes = ({"weight": gradients[0]["weight"] + weight_decay * model.layers[0].weight}, {})
        return right.update(model, slopes, state)

    return Optimizer(right.init, update)


def _betas_swapped(rate, *, beta1, beta2, **others):
    return adam(rate, beta1=beta2, beta2=beta1, **others)


def _epsilon_uncorrected(rate, *, beta1, beta2, epsilon, weight_decay):
    """Epsilon beside the root of the uncorrected mean: the paper's short cut, another optimizer."""

    def update(model, gradients, state):
        factor = math.sqrt(1 - beta2 ** (state.step + 1))
        wrong = adam(
            rate, beta1=beta1, beta2=beta2, epsilon=epsilon / factor, weight_decay=weight_decay
        )
        return wrong.update(model, gradients, state)

    return Optimizer(adam(rate).init, update)


PLANTED = {
    "sgd with decoupled decay": (
        lambda wrong: law_sgd_is_exact(WEIGHT, SLOPES, INERT, wrong), _decay_by_the_rate_only,
    ),
    "the rate inside the velocity": (
        lambda wrong: law_sgd_is_exact(WEIGHT, SLOPES, AHEAD, wrong), _rate_inside_velocity,
    ),
    "nesterov ignored": (
        lambda wrong: law_sgd_is_exact(WEIGHT, SLOPES, AHEAD, wrong),
        lambda rate, **knobs: sgd(rate, **{**knobs, "nesterov": False}),
    ),
    "the schedule one step late": (
        lambda wrong: law_sgd_is_exact(WEIGHT, SLOPES, INERT, wrong),
        lambda rate, **knobs: sgd(lambda step: rate(max(step - 1, 0)), **knobs),
    ),
    "adam without bias correction": (
        lambda wrong: law_adam_is_the_papers(WEIGHT, SLOPES, ADAM, wrong), _without_correction,
    ),
    "adam with coupled decay": (
        lambda wrong: law_adam_is_the_papers(WEIGHT, SLOPES, ADAM, wrong), _coupled_decay,
    ),
    "adam with its betas swapped": (
        lambda wrong: law_adam_is_the_papers(WEIGHT, SLOPES, ADAM, wrong), _betas_swapped,
    ),
    "adam with an uncorrected epsilon": (
        lambda wrong: law_adam_is_the_papers(WEIGHT, SLOPES, ADAM, wrong), _epsilon_uncorrected,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
