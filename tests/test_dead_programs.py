"""Units that died in networks with branches: they go by their names, and no output changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from program_models import SHAPE, exact_programs, signs
from rate_models import exchanged, free

import minicompress as mc
from minicompress.nn.parameters import as_tuple, parameters, with_layers
from minicompress.nn.training import TrainingState, fit
from minicompress.recipes import latent_model, quantized_model, rate_view
from minicompress.recipes.dead_units import without_dead_units
from minicompress.recipes.latent import is_latent, latent_parts, with_steps
from minicompress.search.weights import weights


def latent_of(network):
    """The latent model by hand, in which all steps are 1."""
    return with_steps(network, mc.Dense(np.array([[1.0], [0.0]]) * np.ones(len(weights(network)))))


@st.composite
def dying(draw):
    """A latent program with many dead columns, whose every sum is exact; and inputs."""
    network, x = draw(exact_programs())
    layers = []
    for layer in network.layers:
        if isinstance(layer, mc.BatchNorm | mc.nn.PReLU):
            layer = mc.ReLU()
        elif layer.parameters():
            columns = layer.weight.shape[-1]
            lives = draw(arrays(bool, columns, elements=st.booleans(), fill=st.nothing()))
            layer = dataclasses.replace(layer, weight=layer.weight * lives)
        layers.append(layer)
    return latent_of(with_layers(network, layers)), x


def state_of(latent):
    own = parameters(latent)
    optimizer = mc.adam().init(latent)._replace(step=7, mean=own, square=own)
    return TrainingState(latent, optimizer, 7)


def law_outputs_stay(without, latent, x):
    """The outputs are the same, and the moments have followed the weights."""
    left = without(state_of(latent))
    before, after = (rate_view(free)(m, 0).model for m in (latent, left.latent))
    for new, old in zip(as_tuple(after(x)), as_tuple(before(x)), strict=True):
        np.testing.assert_array_equal(new, old)
    assert after.inputs == before.inputs
    for values, moments in zip(parameters(left.latent), left.optimizer.mean, strict=True):
        np.testing.assert_array_equal(values.get("weight", 0), moments.get("weight", 0))
        assert np.shape(values.get("bias")) == np.shape(moments.get("bias"))
    return left.latent


@given(dying())
def test_outputs_stay(case):
    law_outputs_stay(without_dead_units, *case)


@given(exact_programs(head=False))
def test_a_latent_program_is_taken_apart_as_it_was(case):
    network = mc.rewrite.fold_batch_norm(case[0])
    usable = all(layer.parameters().keys() <= {"weight", "bias"} for layer in network.layers)
    if usable:
        latent = latent_of(network)
        assert is_latent(latent)
        assert not is_latent(network)
        back = latent_parts(latent).network
        assert (back.inputs, back.outputs) == (network.inputs, network.outputs)
        assert all(a is b for a, b in zip(back.layers, network.layers, strict=True))


RNG = np.random.default_rng(0)
X = RNG.integers(-3, 4, (2, *SHAPE)).astype(float)


def conv(inputs, outputs, dead=(), unread=(), size=1, **options):
    weight = 2 * signs(RNG, size, size, inputs, outputs) + 1.0
    weight[..., list(dead)] = 0
    weight[:, :, list(unread)] = 0
    return mc.Conv2D(weight, np.arange(1.0, outputs + 1), padding="same", **options)


def head(channels, unread=()):
    weight = 2 * signs(RNG, channels, 2) + 1.0
    weight[list(unread)] = 0
    return mc.GlobalAvgPool2D(), mc.Dense(weight, np.ones(2))


# The layers, and how many outputs are left of each that has weights.
CASES = {
    "a tie that one keeps": (
        (conv(2, 4, dead=[1, 2]), mc.Residual(conv(4, 4, dead=[2, 3])), *head(4)), [3, 3, 2],
    ),
    "a shortcut that nobody reads": (
        (conv(2, 4), mc.Residual(conv(4, 3), mc.ReLU(), conv(3, 4, unread=[1])), *head(4, [0])),
        [4, 2, 4, 2],
    ),
    "a dead branch": (
        (conv(2, 3), mc.Parallel((conv(3, 2, dead=[0]), conv(3, 2, dead=[0, 1])), mc.Concat()),
         *head(4)), [3, 1, 1, 2],
    ),
    "a gate and what it shuts": (
        (conv(2, 3, dead=[1]), mc.Parallel(
            ((), (mc.GlobalAvgPool2D(keep_axes=True), conv(3, 3, dead=[1]))), mc.Multiply()),
         *head(3)), [2, 2, 2],
    ),
    "shuffled": (
        (conv(2, 6, dead=[0, 2, 3]), mc.nn.ChannelShuffle(2), mc.ReLU(), conv(6, 2), *head(2)),
        [4, 2, 2],
    ),
    "depthwise": (
        (conv(2, 3), conv(1, 6, dead=[0, 1, 4], groups=3), mc.ReLU(), *head(6)), [2, 4, 2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_who_goes_by_hand(name):
    layers, wanted = CASES[name]
    left = law_outputs_stay(without_dead_units, latent_of(mc.Sequential(layers)), 20 * X)
    found = [w.shape[-1] for w in weights(left).values()][:-1]
    assert found == wanted


def test_a_residual_network_is_trained_for_few_bytes():
    """It trains, loses units, and is stored: the steps stay with their layers."""
    rng = np.random.default_rng(3)

    def layer(*shape):
        return mc.Conv2D(0.5 * rng.normal(size=shape), np.zeros(shape[-1]), padding="same")

    block = mc.Residual(layer(3, 3, 4, 6), mc.ReLU(), layer(3, 3, 6, 4))
    tail = mc.ReLU(), mc.GlobalAvgPool2D(), mc.Dense(rng.normal(size=(4, 2)), np.zeros(2))
    latent = latent_model(mc.Sequential((layer(3, 3, 2, 4), block, *tail)))
    y = rng.integers(0, 2, 40)
    x = rng.normal(size=(40, *SHAPE)) + y[:, None, None, None]
    view = rate_view(lambda step: 3e-3)
    state = latent
    for _ in range(3):
        options = {"optimizer": mc.adam(0.03), "epochs": 8, "batch_size": 8, "rng": rng}
        _, history = fit(state, x, y, view=view, **options)
        state = without_dead_units(history.state)
    small = quantized_model(state.latent)
    assert small.inputs == latent.inputs[:-1]
    assert small.outputs == (len(small.layers),)
    assert mc.accuracy(small, x, y) > 0.8
    sizes = [sum(v.size for v in weights(m).values()) for m in (latent, state.latent)]
    assert sizes[1] <= sizes[0]


def nothing_passed_on(latent, channels, gone):
    return latent.network


PLANTED = {
    "constants of the shortcut forgotten": (
        "a tie that one keeps", exchanged("_passed_on", nothing_passed_on),
    ),
    "weights that live are dead": ("a dead branch", exchanged("DEAD", 9.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    case, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law_outputs_stay(wrong, latent_of(mc.Sequential(CASES[case][0])), X)
