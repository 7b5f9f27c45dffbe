"""Early exit: how the heads learn, by themselves and together with the network."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from exit_models import CNN, CNN_EXITS, EXITS, SEEN, X, Y, whole
from hypothesis import given

from minicompress.compressors.quantization import quantize
from minicompress.datasets import load_digits
from minicompress.early_exit.exits import EarlyExit, all_exits, attach_heads, exit_logits
from minicompress.early_exit.training import fit_exits
from minicompress.errors import CompressionError
from minicompress.nn.composition import Sequential
from minicompress.nn.gradient import vjp
from minicompress.nn.layers import Dense
from minicompress.nn.network import apply
from minicompress.nn.optimizers import adam
from minicompress.nn.parameters import decoded
from minicompress.nn.pointwise import Dropout
from minicompress.nn.training import fit
from minicompress.search.plan import compress
from minicompress.testing.checks import same

SETTINGS = {"optimizer": adam(1e-2), "epochs": 2, "batch_size": 16}


def fitted(fit_them, exits=CNN_EXITS, **options):
    return fit_them(exits, X, Y, rng=np.random.default_rng(3), **SETTINGS, **options)


def law_frozen(fit_them):
    """The network stays, and a head learns as a model of its own does from the same features."""
    exits = replace(CNN_EXITS, segments=tuple(decoded(s) for s in CNN_EXITS.segments))
    trained, histories = fitted(fit_them, exits)
    assert all(same(a, b) for a, b in zip(exits.segments, trained.segments, strict=True))
    assert same(trained.segments, CNN_EXITS.segments)
    rng = np.random.default_rng(3)
    for i, head in enumerate(exits.heads):
        features = apply(Sequential(CNN.layers[: 2 * i + 2] + head.layers[:-1]), X)
        alone, history = fit(Sequential(head.layers[-1:]), features, Y, rng=rng, **SETTINGS)
        assert same(trained.heads[i].layers[-1], alone.layers[0])
        assert histories[i].train_loss == history.train_loss
    assert trained.thresholds == exits.thresholds


def test_frozen():
    law_frozen(fit_exits)


def test_a_compressed_network_can_get_heads():
    small = compress(CNN, {2: partial(quantize, num_bits=8)}).model
    exits, _ = fitted(fit_exits, attach_heads(small, (1,), (8, 8, 1)))
    assert same(exits.network, small)


def law_joint_ends(fit_them):
    """With all the weight on one exit, it is the training of the model that ends there."""
    first, second = CNN_EXITS.segments[0], CNN_EXITS.segments[1:]
    exits = EarlyExit((first, Sequential(second[0].layers + second[1].layers)),
                      CNN_EXITS.heads[:1], (math.inf,))  # fmt: skip
    rng = partial(np.random.default_rng, 3)
    trained, (history,) = fitted(fit_them, exits, joint=True, loss_weights=(0.0, 1.0))
    alone, expected = fit(CNN, X, Y, rng=rng(), **SETTINGS)
    assert same(trained.network, alone)
    assert history.train_loss == expected.train_loss
    assert same(trained.heads, exits.heads)
    trained, _ = fitted(fit_them, exits, joint=True, loss_weights=(1.0, 0.0))
    body = Sequential(first.layers + exits.heads[0].layers)
    alone, _ = fit(body, X, Y, rng=rng(), **SETTINGS)
    assert same((*trained.segments[0].layers, *trained.heads[0].layers), alone.layers)
    assert same(trained.segments[1], exits.segments[1])


def test_joint_with_one_exit_that_counts():
    law_joint_ends(fit_exits)


def joint_vjp(exits, x):
    return vjp(all_exits(exits), x)


def law_joint_gradient(run, x, dys):
    """The gradient of all exits is the sum of those of the networks that end at each: exact."""
    logits, pullback = run(EXITS, x)
    dx, gradients = pullback(tuple(dys))
    assert np.stack(logits, 1).tolist() == exit_logits(EXITS, x).tolist()
    (s0, s1, s2), (h0, h1) = EXITS.segments, EXITS.heads
    order = (s0, h0, s1, h1, s2)
    sums, dx_sum = dict.fromkeys(order, 0.0), 0.0
    for ends, dy in zip(((s0, h0), (s0, s1, h1), (s0, s1, s2)), dys, strict=True):
        dx_part, of_path = vjp(Sequential(ends), x)[1](dy)
        dx_sum = dx_sum + dx_part
        weights = iter([g["weight"] for g in of_path if g])
        for part in ends:
            sums[part] = sums[part] + next(weights)
    assert dx.tolist() == dx_sum.tolist()
    found = [g["weight"].tolist() for g in gradients if g]
    assert found == [sums[part].tolist() for part in order]


@given(whole((3, 2)), whole((3, 3, 3)))
def test_the_joint_gradient_is_the_sum(x, dys):
    law_joint_gradient(joint_vjp, x, dys)


def test_joint_training_learns_at_every_exit():
    x, y = load_digits("train")
    validation = load_digits("validation")
    exits, (history,) = fit_exits(
        CNN_EXITS, x, y, joint=True, validation=validation, epochs=4, batch_size=32,
        optimizer=adam(3e-3), rng=np.random.default_rng(0),
    )  # fmt: skip
    accuracies = (exit_logits(exits, validation[0]).argmax(2) == validation[1][:, None]).mean(0)
    assert (accuracies > 0.85).all(), accuracies
    assert history.epochs == 4
    assert len(history.validation_loss) == 4
    assert history.train_accuracy == history.validation_accuracy == ()


def test_a_dropout_before_a_heads_weight_drops_in_training():
    heads = [Sequential((*h.layers[:-1], Dropout(0.9), h.layers[-1])) for h in CNN_EXITS.heads]
    dropped, _ = fitted(fit_exits, replace(CNN_EXITS, heads=heads))
    assert [type(layer) for layer in dropped.heads[0].layers[2:]] == [Dropout, Dense]
    plain, _ = fitted(fit_exits)
    assert not same(dropped.heads[0].layers[-1], plain.heads[0].layers[-1])


# People -------------------------------------------------------------------------------------------

WRONG = {
    "loss_weights are for joint": lambda: fitted(fit_exits, loss_weights=(1, 1, 1)),
    "loss_weights must be 3": lambda: fitted(fit_exits, joint=True, loss_weights=(1, 1)),
    r"loss_weights\[1\] must be": lambda: fitted(fit_exits, joint=True, loss_weights=(1, -1, 1)),
    "joint must be True or False": lambda: fitted(fit_exits, joint=1),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_wrong_arguments_are_named(words):
    with pytest.raises(CompressionError, match=words):
        WRONG[words]()


# Planted faults -----------------------------------------------------------------------------------


def thawed(exits, x, y, **options):
    return fit_exits(exits, x, y, **options, joint=True)


def turned_weights(exits, x, y, **options):
    return fit_exits(exits, x, y, **{**options, "loss_weights": options["loss_weights"][::-1]})


def equal_weights(exits, x, y, **options):
    return fit_exits(exits, x, y, **{**options, "loss_weights": None})


def detached(exits, x):
    """The heads' gradients do not reach the segments before them."""
    logits, pull = joint_vjp(exits, x)

    def pullback(dys):
        dx, gradients = pull((0 * dys[0], 0 * dys[1], dys[2]))
        of_heads = pull(dys)[1]
        return dx, tuple(of_heads[i] if i in (2, 4) else g for i, g in enumerate(gradients))

    return logits, pullback


def halved(exits, x):
    """The mean over the exits for the sum."""
    logits, pull = joint_vjp(exits, x)
    return logits, lambda dys: pull(tuple(dy / 2 for dy in dys))


PLANTED = {
    "the frozen network moves": (law_frozen, thawed),
    "loss weights are turned around": (law_joint_ends, turned_weights),
    "loss weights are ignored": (law_joint_ends, equal_weights),
    "heads do not reach the segments": (
        lambda run: law_joint_gradient(run, SEEN, np.ones((3, 8, 3))), detached),
    "a mean for the sum of the losses": (
        lambda run: law_joint_gradient(run, SEEN, np.ones((3, 8, 3))), halved),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
