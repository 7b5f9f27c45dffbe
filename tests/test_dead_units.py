"""Training for the fewest bytes: the units that die, and what goes with them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rate_models import U, exchanged, free, latent_of

from minicompress.errors import CompressionError
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import apply
from minicompress.nn.optimizers import adam, sgd
from minicompress.nn.parameters import parameters
from minicompress.nn.pointwise import LeakyReLU, ReLU, Sigmoid, Tanh
from minicompress.nn.stateless import AvgPool2D, Flatten, GlobalAvgPool2D, MaxPool2D
from minicompress.nn.training import TrainingState, fit
from minicompress.recipes.dead_units import without_dead_units
from minicompress.recipes.latent import BIAS_STEP, latent_model
from minicompress.recipes.rate import rate_view
from minicompress.search.weights import weights
from minicompress.testing.checks import check_pure, same

# In steps: gone for good, rounded to zero but not gone, and there.
LIVES = st.sampled_from([0.0, 0.0, 0.0, 0.25, -0.25, 0.4375, 1.0, -1.0, 2.0])
BIASES = st.sampled_from([0.0, 0.0, 1.0, -2.0, 5.0]).map(lambda k: k * BIAS_STEP)
# What LeakyReLU(0.5) makes of these, in the dense network, is whole steps still.
EVEN = st.sampled_from([0.0, 0.0, 2.0, -2.0, 6.0]).map(lambda k: k * BIAS_STEP)

IMAGES = (2, 6, 6, 1)
NETWORKS = {
    "dense": ((2, 3), [(3, 4), ReLU(), (4, 3), LeakyReLU(0.5), (3, 2)]),
    "one layer": ((2, 3), [(3, 2)]),
    "pooled": (IMAGES, [(2, 2, 1, 3), ReLU(), MaxPool2D(2), Flatten(), (12, 2)]),
    "two kernels": (
        IMAGES,
        [(3, 3, 1, 2), ReLU(), AvgPool2D(2), (2, 2, 2, 3), ReLU(), Flatten(), (3, 2)],
    ),
    "strided": (
        IMAGES,
        [((2, 2, 1, 3), {"stride": 2, "padding": 0}), ReLU(), ((2, 2, 3, 2), {"padding": 0}),
         ReLU(), GlobalAvgPool2D(), (2, 2)],
    ),
    "padded": (
        IMAGES,
        [((3, 3, 1, 3), {"padding": "same"}), ReLU(), ((3, 3, 3, 2), {"padding": 1}), ReLU(),
         Flatten(), (72, 2)],
    ),
    "padded pool": (
        IMAGES,
        [(3, 3, 1, 3), ReLU(), AvgPool2D(2, padding=1, count_include_pad=True), Flatten(), (27, 2)],
    ),
    "in groups": (
        IMAGES,
        [(3, 3, 1, 4), ReLU(), ((1, 1, 2, 4), {"groups": 2}), ReLU(), Flatten(), (64, 2)],
    ),
}  # fmt: skip


@st.composite
def dying(draw, name, biases=None):
    """A latent model with many dead weights, whose every sum is exact unless biases are given."""
    layers = []
    if biases is None:
        biases = EVEN if name == "dense" else BIASES
    for part in NETWORKS[name][1]:
        if not isinstance(part, tuple):
            layers.append(part)
            continue
        shape, options = part if isinstance(part[0], tuple) else (part, {})
        weight = draw(arrays(float, shape, elements=LIVES, fill=st.just(0.0)))
        bias = draw(st.none() | arrays(float, shape[-1], elements=biases))
        kind = Dense if len(shape) == 2 else Conv2D
        layers.append(kind(weight, bias, **options))
    count = len(weights(Sequential(layers)))
    return latent_of(layers, [1.0] * count, [0.0] * count)


def state_of(latent, optimizer="adam"):
    """A training whose moments are the latent model's own weights: they show who went where."""
    made = {"adam": adam(), "momentum": sgd(0.1, momentum=0.9), "sgd": sgd(0.1)}[optimizer]
    state = made.init(latent)
    own = parameters(latent)
    if optimizer == "adam":
        square = tuple({n: w + 10 for n, w in p.items()} for p in own)
        state = state._replace(step=7, mean=own, square=square)
    if optimizer == "momentum":
        state = state._replace(step=7, velocity=own)
    return TrainingState(latent, state, 7)


def law_outputs_stay(without, latent, x):
    """The view of what is left gives the very outputs: steps are 1, so every sum is exact."""
    before = rate_view(free)(latent, 0).model
    left = without(state_of(latent)).latent
    after = rate_view(free)(left, 0).model
    np.testing.assert_array_equal(apply(after, x), apply(before, x))
    assert same(left.layers[-1], latent.layers[-1])


def law_outputs_move_by_half_a_step(without, latent, x):
    """In a dense network of whole weights, only constants behind LeakyReLU(0.5) can be rounded."""
    before = apply(rate_view(free)(latent, 0).model, x)
    after = apply(rate_view(free)(without(state_of(latent)).latent, 0).model, x)
    assert np.abs(after - before).max() <= BIAS_STEP / 2  # of the last biases alone


def law_moments_follow(without, latent, optimizer):
    """The moments keep the channels of the weights; all the rest of the state is as it was."""
    state = state_of(latent, optimizer)
    left = without(state)
    assert (left.step, type(left.optimizer)) == (state.step, type(state.optimizer))
    assert left.optimizer.step == state.optimizer.step
    own = parameters(left.latent)
    shifts = {"mean": 0.0, "velocity": 0.0, "square": 10.0}
    for name, shift in shifts.items():
        moments = getattr(left.optimizer, name, ())
        if optimizer == "sgd":
            assert moments == ()
        for moment, values in zip(moments, own):
            assert moment.keys() == values.keys()
            assert np.shape(moment.get("bias")) == np.shape(values.get("bias"))
            if "weight" in values:
                np.testing.assert_array_equal(moment["weight"], values["weight"] + shift)


def law_the_dead_go(without, latent):
    """Repeated until nothing goes: what stays of a dense network has weights before and behind.

    But for a layer's only unit, and for constants that no bias takes over.
    """
    state = state_of(latent)
    for _ in range(4):
        state = without(state)
    layers = [layer for layer in state.latent.layers[:-1] if isinstance(layer, Dense)]
    for before, behind in pairwise(layers):
        alive = np.abs(before.weight) >= 0.3, np.abs(behind.weight) >= 0.3
        moved, used = alive[0].any(0), alive[1].any(1)
        if behind.bias is None and before.bias is not None:
            moved |= np.rint(before.bias / BIAS_STEP) != 0
        assert (moved & used).all() or before.weight.shape[1] == 1


def inputs_of(name):
    shape = NETWORKS[name][0]
    return np.random.default_rng(0).integers(-3, 4, shape).astype(float)


@given(st.sampled_from(sorted(NETWORKS)).flatmap(lambda n: st.tuples(st.just(n), dying(n))))
def test_outputs_stay(case):
    name, latent = case
    law_outputs_stay(without_dead_units, latent, inputs_of(name))


@given(dying("dense", BIASES))
def test_constants_that_are_not_whole_steps_are_rounded(latent):
    law_outputs_move_by_half_a_step(without_dead_units, latent, inputs_of("dense"))


def test_half_a_step_is_reached():
    """The unit that the first bias alone keeps going hands on half a step, which goes to even."""
    first, second = np.zeros((3, 4)), np.zeros((4, 3))
    second[2, 1] = -1.0
    bias = np.array([0.0, 0.0, BIAS_STEP, 0.0])
    last = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    layers = (
        Dense(first, bias),
        ReLU(),
        Dense(second, np.zeros(3)),
        LeakyReLU(0.5),
        Dense(last, np.zeros(2)),
    )
    latent, x = latent_of(layers, [1.0] * 3, [0.0] * 3), inputs_of("dense")
    left = without_dead_units(state_of(latent)).latent
    made = [apply(rate_view(free)(model, 0).model, x) for model in (latent, left)]
    np.testing.assert_array_equal(made[1] - made[0], [[BIAS_STEP / 2, 0.0]] * 2)


@given(dying("dense"), st.sampled_from(["adam", "momentum", "sgd"]))
def test_the_dead_go_and_their_moments_with_them(latent, optimizer):
    law_moments_follow(without_dead_units, latent, optimizer)
    law_the_dead_go(without_dead_units, latent)


@given(dying("two kernels"), st.sampled_from(["adam", "momentum", "sgd"]))
def test_moments_of_kernels_follow(latent, optimizer):
    law_moments_follow(without_dead_units, latent, optimizer)


def with_one_alive(growth):
    """Of four units one and three are constant, two goes nowhere, zero lives."""
    first = np.array([[1.0, 0.0, 2.0, 0.25], [-1.0, 0.0, 1.0, 0.0]])
    second = np.array([[1.0, -1.0], [2.0, 1.0], [0.0, 0.125], [1.0, 1.0]])
    biases = np.array([1.0, 3.0, -2.0, -5.0]) * BIAS_STEP, np.array([4.0, -1.0]) * BIAS_STEP
    layers = [Dense(first, biases[0]), ReLU(), Dense(second, biases[1])]
    return latent_of(layers, [1.0, 1.0], [0.0, growth])


DYING = with_one_alive(0.0)


def test_moments_by_hand():
    rng, optimizer, latent = np.random.default_rng(0), adam(0.1), with_one_alive(0.5)
    random = tuple({n: rng.random(w.shape) for n, w in p.items()} for p in parameters(latent))
    start = TrainingState(latent, optimizer.init(latent)._replace(mean=random, square=random), 5)
    left = without_dead_units(start)
    kept = [0]
    for moments in (left.optimizer.mean, left.optimizer.square):
        np.testing.assert_array_equal(moments[0]["weight"], random[0]["weight"][:, kept])
        np.testing.assert_array_equal(moments[0]["bias"], random[0]["bias"][kept])
        np.testing.assert_array_equal(moments[2]["weight"], random[2]["weight"][kept])
        np.testing.assert_array_equal(moments[2]["bias"], random[2]["bias"])
        np.testing.assert_array_equal(moments[3]["weight"], random[3]["weight"])
    # The constants are relu(3/16) and relu(-5/16), through weights that have grown by exp(1/2).
    bias = np.array([4.0, -1.0]) / 16 + 3 / 16 * np.array([2.0, 1.0]) * math.exp(0.5)
    np.testing.assert_allclose(left.latent.layers[2].bias, bias, rtol=8 * U, atol=0)
    np.testing.assert_array_equal(left.latent.layers[0].bias, [BIAS_STEP])
    # And the training goes on.
    options = {"optimizer": optimizer, "epochs": 1, "batch_size": 2, "rng": rng}
    x, y = rng.normal(size=(4, 2)), np.array([0, 1, 1, 0])
    _, history = fit(left, x, y, view=rate_view(lambda step: 1e-3), **options)
    assert (history.state.step, history.state.optimizer.step) == (7, 2)


def test_a_living_network_stays_as_it_is():
    ones = latent_of(
        [Dense(np.ones((2, 3)), np.ones(3)), ReLU(), Dense(np.ones((3, 1)))], [1, 1], [0, 0]
    )
    for optimizer in ("adam", "momentum", "sgd"):
        state = state_of(ones, optimizer)
        assert same(without_dead_units(state), state)
    check_pure(without_dead_units, state_of(DYING))


@pytest.mark.parametrize("activation", [Sigmoid(), Tanh(), ReLU(), LeakyReLU(0.1)])
def test_any_constant_comes_within_a_bias_step(activation):
    # The bias is rounded to a step before the constant is in it and after, by a half each time.
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 6))
    weight[:, 2:] = 0.0
    layers = (
        Dense(weight, rng.normal(size=6)),
        activation,
        Dense(rng.normal(size=(6, 4)), rng.normal(size=4)),
    )
    latent = latent_model(Sequential(layers))
    left = without_dead_units(state_of(latent)).latent
    assert left.layers[0].weight.shape == (3, 2)
    x = rng.normal(size=(5, 3))
    seen = [apply(rate_view(free)(model, 0).model, x) for model in (latent, left)]
    # Fewer than 32 roundings of outputs below 100 come on top.
    assert 0 < np.abs(seen[0] - seen[1]).max() <= BIAS_STEP + 32 * U * 100


def test_a_constant_that_goes_nowhere_needs_no_bias():
    second = Dense(np.array([[1.0], [0.0], [2.0]]))
    latent = latent_of([Dense(np.ones((2, 3)), np.ones(3)), second], [1.0, 1.0], [0.0, 0.0])
    law_outputs_stay(without_dead_units, latent, POINTS)
    left = without_dead_units(state_of(latent)).latent
    assert left.layers[1].weight.tolist() == [[1.0], [2.0]]
    assert left.layers[1].bias is None


@pytest.mark.parametrize(("padding", "units"), [(1, 2), ("same", 2), (0, 1), ("valid", 1)])
def test_a_constant_stays_where_a_border_cuts_it_off(padding, units):
    first, activation, second, steps = BORDERED.layers
    latent = Sequential((first, activation, replace(second, padding=padding), steps))
    law_outputs_stay(without_dead_units, latent, PICTURE)
    left = without_dead_units(state_of(latent)).latent
    assert left.layers[0].weight.shape[-1] == units
    # Without a bias to take it over it stays, whatever the border.
    latent = Sequential((first, activation, replace(second, padding=padding, bias=None), steps))
    law_outputs_stay(without_dead_units, latent, PICTURE)


def test_a_unit_stays_at_least():
    dead = latent_of(
        [Dense(np.zeros((2, 3)), np.ones(3)), ReLU(), Dense(np.zeros((3, 2)))], [1, 1], [0, 0]
    )
    left = without_dead_units(state_of(dead)).latent
    assert [layer.weight.shape for layer in left.layers[:3:2]] == [(2, 1), (1, 2)]


REFUSED = {
    "another last layer": (
        lambda: without_dead_units(TrainingState(Sequential((ReLU(),)), None, 0)),
        "of latent_model",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(CompressionError, match=message):
        call()


# Wrong implementations that the laws must catch ---------------------------------------------------


def _constants_lost(state):
    left = without_dead_units(state)
    bias = state.latent.layers[-2].bias
    layers = [*left.latent.layers[:-2], Dense(left.latent.layers[-2].weight, bias)]
    return left._replace(latent=Sequential((*layers, left.latent.layers[-1])))


def _constants_before_the_activation(layer, read, count):
    return read[0]


def _moments_of_the_first(state):
    """The moments of the first channels, whoever stays."""
    left = without_dead_units(state)

    def cut(moments):
        return tuple(
            {n: old[n][tuple(map(slice, w.shape))] for n, w in new.items()}
            for old, new in zip(moments, parameters(left.latent))
        )

    optimizer = state.optimizer
    return left._replace(
        optimizer=optimizer._replace(mean=cut(optimizer.mean), square=cut(optimizer.square))
    )


def _moments_begin_anew(state):
    left = without_dead_units(state)
    return left._replace(optimizer=adam().init(left.latent))


POINTS = np.array([[1.0, 2.0], [-1.0, 3.0]])
BORDERED = latent_of(
    [
        Conv2D(np.array([1.0, 0.0]).reshape(1, 1, 1, 2), np.array([0.0, 1.0])),
        ReLU(),
        Conv2D(np.ones((3, 3, 2, 1)), np.zeros(1), padding=1),
    ],
    [1.0, 1.0],
    [0.0, 0.0],
)
LIVING = latent_of(
    [Dense(np.array([[2.0, 1.0]])), Dense(np.array([[2.0], [3.0]]))], [1.0, 1.0], [0.0, 0.0]
)
SECOND_ALIVE = latent_of(
    [Dense(np.array([[0.0, 1.0]]), np.ones(2)), Dense(np.array([[2.0], [3.0]]), np.ones(1))],
    [1.0, 1.0],
    [0.0, 0.0],
)
PICTURE = np.arange(9.0).reshape(1, 3, 3, 1)

PLANTED = {
    "constants lost": (lambda wrong: law_outputs_stay(wrong, DYING, POINTS), _constants_lost),
    "constants lost, taken for rounding": (
        lambda wrong: law_outputs_move_by_half_a_step(wrong, DYING, POINTS), _constants_lost,
    ),
    "constants before their activation": (
        lambda wrong: law_outputs_stay(wrong, DYING, POINTS),
        exchanged("_constant_outputs", _constants_before_the_activation),
    ),
    "units that live are removed": (
        lambda wrong: law_outputs_stay(wrong, LIVING, POINTS[:, :1]), exchanged("DEAD", 1.5),
    ),
    "constants passed on into a border": (
        lambda wrong: law_outputs_stay(wrong, BORDERED, PICTURE),
        exchanged("_spreads_evenly", lambda *arguments: True),
    ),
    "the dead stay": (lambda wrong: law_the_dead_go(wrong, DYING), lambda state: state),
    "moments of the first channels": (
        lambda wrong: law_moments_follow(wrong, SECOND_ALIVE, "adam"), _moments_of_the_first,
    ),
    "moments that begin anew": (
        lambda wrong: law_moments_follow(wrong, DYING, "adam"), _moments_begin_anew,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
