"""What `fit` promises: its views, its batches and its going on from a state."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_models import OPTIMIZERS, START, mapped, small

from minicompress.datasets import load_digits
from minicompress.errors import CompressionError
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense
from minicompress.nn.losses import distillation, mean_squared_error, softmax_cross_entropy
from minicompress.nn.network import apply
from minicompress.nn.optimizers import Optimizer, adam, cosine_lr, sgd
from minicompress.nn.pointwise import Dropout, ReLU
from minicompress.nn.stateless import Flatten
from minicompress.nn.training import History, TrainingState, View, accuracy, evaluate, fit
from minicompress.representation import Clustered
from minicompress.testing.checks import same

X = np.array([[1.0, 2.0, 0.0], [0.0, -1.0, 1.0], [2.0, 0.0, -1.0], [1.0, 1.0, 1.0]])
Y = np.array([0, 1, 1, 0])


def one_weight(w):
    return Sequential((Dense(np.array([[w]])),))


def train(model=START, x=X, y=Y, *, optimizer=None, epochs=2, batch_size=2, seed=0, **options):
    return fit(
        model,
        x,
        y,
        optimizer=sgd(0.25, momentum=0.5) if optimizer is None else optimizer,
        epochs=epochs,
        batch_size=batch_size,
        rng=np.random.default_rng(seed),
        **options,
    )


# Views --------------------------------------------------------------------------------------------


def test_a_mask_holds_exactly_while_what_is_below_lives():
    mask = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    latents = []

    def masked(latent, step):
        latents.append(latent.layers[0].weight)
        return mapped(latent, lambda w: w * mask)

    model, _ = train(view=masked, epochs=5)
    assert (model.layers[0].weight[mask == 0] == 0.0).all()
    assert (model.layers[0].weight[mask == 1] != 0.0).all()
    assert (latents[-1][mask == 0] != latents[0][mask == 0]).all()  # so one could come back
    np.testing.assert_array_equal(model.layers[0].weight, latents[-1] * mask)


def slope_one(outputs, labels):
    """A loss whose gradient is 1 at the first output, whatever comes."""
    gradient = np.zeros_like(outputs)
    gradient[:, 0] = 1.0
    return float(outputs[:, 0].sum()), gradient


def test_rounding_erases_small_updates_unless_it_is_a_view():
    x, y, start = np.ones((1, 1)), np.zeros(1, int), one_weight(4.0)
    plain = sgd(0.125)

    def rounded(model):
        return mapped(model, np.rint)

    def round_after(model, gradients, state):
        model, state = plain.update(model, gradients, state)
        return rounded(model), state

    kept, _ = train(
        start, x, y, optimizer=Optimizer(plain.init, round_after), epochs=16, loss=slope_one
    )
    seen, _ = train(
        start, x, y, optimizer=plain, epochs=16, loss=slope_one, view=lambda m, k: rounded(m)
    )
    assert kept.layers[0].weight.item() == 4.0  # 3.875 becomes 4 again, for ever
    assert seen.layers[0].weight.item() == 2.0  # 4 - 16 / 8


def test_a_shared_codebook_learns_with_a_pullback_of_its_own():
    codes = np.array([[0, 1], [1, 0], [0, 0]])
    optimizer = sgd(0.5)

    def shared(latent, step):
        """The latent's one row is the codebook."""
        seen = Sequential((Dense(latent.layers[0].weight[0][codes]),))

        def pullback(gradients):
            sums = np.bincount(codes.ravel(), gradients[0]["weight"].ravel(), minlength=2)
            return ({"weight": sums[None]},)

        return View(seen, pullback)

    codebook = Sequential((Dense(np.array([[0.5, -1.0]])),))
    x, y = np.array([[1.0, 2.0, 4.0]]), np.zeros(1, int)
    model, _ = train(codebook, x, y, optimizer=optimizer, epochs=1, loss=slope_one, view=shared)
    # The gradient of output 0 is x by rows: code 0 stands in rows 0 and 2, code 1 in row 1.
    values = np.array([0.5 - 0.5 * (1 + 4), -1.0 - 0.5 * 2])
    np.testing.assert_array_equal(model.layers[0].weight, values[codes])


def test_a_view_sees_every_count_of_updates():
    seen = []
    model, _ = train(view=lambda m, k: seen.append(k) or mapped(m, lambda w: w + 100 * k), epochs=3)
    assert sorted(set(seen)) == list(range(7))
    assert seen[-1] == 6
    assert (model.layers[0].weight > 500).all()


# Fit ----------------------------------------------------------------------------------------------


def law_every_example_once_an_epoch(n, epochs, batch_size, train_with):
    """Each epoch takes every example exactly once, with its own label."""
    x, y, met = np.arange(1.0, n + 1)[:, None], np.arange(n), []

    def loss(outputs, labels):
        met.append(labels)
        assert (outputs[:, 0] == labels + 1).all()
        return 0.0, np.zeros_like(outputs)

    train_with(one_weight(1.0), x, y, epochs=epochs, batch_size=batch_size, loss=loss)
    per_epoch = -(-n // batch_size)
    assert len(met) == epochs * per_epoch
    for k in range(epochs):
        batches = met[k * per_epoch : (k + 1) * per_epoch]
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert sorted(np.concatenate(batches)) == list(range(n))


@given(st.integers(1, 9), st.integers(0, 3), st.integers(1, 10))
def test_every_example_once_an_epoch(n, epochs, batch_size):
    law_every_example_once_an_epoch(n, epochs, batch_size, train)


def law_targets_go_with_their_rows(n, epochs, batch_size, train_with):
    """Every example meets the loss with its own target, in ragged batches too."""
    x, y, targets = np.arange(1.0, n + 1)[:, None], np.arange(n), np.arange(2 * n).reshape(n, 2)
    met = []

    def loss(outputs, labels, known):
        met.append(labels)
        assert (outputs[:, 0] == labels + 1).all()
        np.testing.assert_array_equal(known, targets[labels])
        return 0.0, np.zeros_like(outputs)

    options = {"epochs": epochs, "batch_size": batch_size, "loss": loss}
    train_with(one_weight(1.0), x, y, targets=targets, **options)
    assert sum(map(len, met)) == epochs * n


@given(st.integers(1, 9), st.integers(0, 3), st.integers(1, 10))
def test_targets_go_with_their_rows(n, epochs, batch_size):
    law_targets_go_with_their_rows(n, epochs, batch_size, train)


def test_validation_without_targets_is_by_the_cross_entropy():
    options = {"loss": distillation, "targets": X[:, :2], "validation": (X, Y), "epochs": 3}
    model, history = train(**options)
    assert history.epochs == 3
    assert (history.validation_loss[-1], history.validation_accuracy[-1]) == evaluate(model, X, Y)
    # A loss of the classes alone is the validation's own, too.
    model, history = train(loss=slope_one, validation=(X, Y))
    assert history.validation_loss[-1] == slope_one(apply(model, X), Y)[0]


def by_the_step(latent, step):
    """A view that no two steps have in common."""
    return mapped(latent, lambda w: w + 2.0**-step)


# Those whose next step hangs on the steps before, and one that hangs on their number alone.
CONTINUED = {
    "momentum": sgd(0.25, momentum=0.5),
    "nesterov": OPTIMIZERS["nesterov"],
    "adam": adam(cosine_lr(0.5, 7)),
}


def law_goes_on(fit_with, optimizer, first, then, x, batch_size, view):
    """Going on from the state of a training is one longer training: in all bits, on one stream."""
    options = {"optimizer": optimizer, "batch_size": batch_size, "view": view}
    options |= {"validation": (X, Y), "loss": distillation, "targets": X[:, 1:]}
    model, history = fit_with(
        START, x, Y, epochs=first + then, rng=np.random.default_rng(0), **options
    )
    rng = np.random.default_rng(0)
    _, before = fit_with(START, x, Y, epochs=first, rng=rng, **options)
    again, after = fit_with(before.state, x, Y, epochs=then, rng=rng, **options)
    assert same(again, model)
    assert same(after.state, history.state)
    for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
        assert getattr(before, name) + getattr(after, name) == getattr(history, name)
    assert history.state.step == history.epochs * math.ceil(len(x) / batch_size)


@given(
    st.sampled_from(sorted(CONTINUED)),
    st.integers(0, 2),
    st.integers(0, 2),
    small((4, 3)),
    st.integers(1, 5),
    st.sampled_from([None, by_the_step]),
)
def test_training_goes_on_from_its_state(name, first, then, x, batch_size, view):
    law_goes_on(fit, CONTINUED[name], first, then, x, batch_size, view)


def test_the_state_holds_what_a_view_is_taken_of():
    model, history = train(view=by_the_step)
    assert same(model, by_the_step(history.state.latent, history.state.step))
    seen, unmoved = train(history.state, view=by_the_step, epochs=0)
    assert same(seen, model)
    assert unmoved.state is history.state


def test_progress_counts_the_steps_of_this_call():
    counted = []
    _, history = train(epochs=1)
    train(history.state, epochs=2, progress=lambda step, total, loss: counted.append((step, total)))
    assert counted == [(k, 4) for k in range(1, 5)]


def test_epochs_differ_in_order():
    orders = []

    def loss(outputs, labels):
        orders.append(labels.tolist())
        return 0.0, np.zeros_like(outputs)

    train(one_weight(1.0), np.ones((20, 1)), np.arange(20), epochs=2, batch_size=20, loss=loss)
    assert orders[0] != orders[1]


def test_one_full_batch_is_one_update():
    model, history = train(epochs=1, batch_size=4, optimizer=sgd(0.5))
    logits = apply(START, X)
    loss, dlogits = softmax_cross_entropy(logits, Y)
    # The rows are summed in shuffled order: 4 terms and a product each, gamma_5 of their magnitude.
    slack = 5 * 2.0**-53 * 1.01 * (np.abs(X).T @ np.abs(dlogits) + 4)
    weight = START.layers[0].weight - 0.5 * X.T @ dlogits
    assert (np.abs(model.layers[0].weight - weight) <= slack).all()
    assert abs(history.train_loss[0] - loss) <= 20 * 2.0**-53 * (1 + np.abs(logits).max())
    assert history.train_accuracy[0] == (logits.argmax(1) == Y).mean()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_seed_gives_the_same_bits(name):
    model = Sequential((Dense(START.layers[0].weight), Dropout(0.5), ReLU(), Dense(np.eye(2))))
    runs = [
        train(model, optimizer=OPTIMIZERS[name], seed=seed, epochs=3, validation=(X, Y))
        for seed in (0, 0, 1)
    ]
    assert pickle.dumps(runs[0]) == pickle.dumps(runs[1])
    assert pickle.dumps(runs[0]) != pickle.dumps(runs[2])


def test_history_and_progress():
    steps_made = []
    model, history = train(
        epochs=3,
        batch_size=3,
        validation=(X[:1], Y[:1]),
        progress=lambda step, total, loss: steps_made.append((step, total, loss)),
    )
    assert [s[:2] for s in steps_made] == [(k, 6) for k in range(1, 7)]
    losses = [s[2] for s in steps_made]
    assert history.train_loss[0] == (losses[0] * 3 + losses[1]) / 4
    assert history.epochs == len(history.validation_loss) == len(history.train_accuracy) == 3
    last = (history.validation_loss[-1], history.validation_accuracy[-1])
    assert last == evaluate(model, X[:1], Y[:1])
    assert not history.stopped_early


@pytest.mark.parametrize("view", [None, lambda m, k: mapped(m, np.floor)])
def test_no_epochs_give_the_view_of_the_start(view):
    optimizer = adam(0.1)
    model, history = train(epochs=0, view=view, validation=(X, Y), patience=1, optimizer=optimizer)
    expected = START if view is None else view(START, 0)
    assert pickle.dumps(model) == pickle.dumps(expected)
    # Nothing has happened: there is no entry, and the state is where every training starts.
    assert same(replace(history, state=None), History())
    assert history.epochs == 0
    assert same(history.state, TrainingState(START, optimizer.init(START), 0))


def falling_and_rising(bottom):
    """The weight counts updates; the validation loss of it is least at `bottom`."""

    def loss(outputs, labels):
        level = float(outputs[0, 0])
        return abs(level - bottom), np.full_like(outputs, -1.0)

    return loss


@pytest.mark.parametrize(
    ("bottom", "patience", "run"), [(3, 1, 4), (3, 2, 5), (1, 4, 5), (9, 2, 8)]
)
def test_patience_returns_the_best(bottom, patience, run):
    x, y = np.ones((1, 1)), np.zeros(1, int)
    options = {"optimizer": sgd(1.0), "epochs": 8, "loss": falling_and_rising(bottom)}
    model, history = train(one_weight(0.0), x, y, validation=(x, y), patience=patience, **options)
    assert history.epochs == run
    assert history.stopped_early == (run < 8)
    assert model.layers[0].weight.item() == min(bottom, 8)
    # The state is that of the last epoch all the same: a training goes on from where it stood.
    assert (history.state.latent.layers[0].weight.item(), history.state.step) == (run, run)
    last, _ = train(one_weight(0.0), x, y, validation=(x, y), **options)
    assert last.layers[0].weight.item() == 8


def test_fit_leaves_its_arguments_alone():
    x, y = X.copy(), Y.copy()
    before = pickle.dumps((START, x, y))
    train(START, x, y, view=lambda m, k: mapped(m, np.rint))
    assert pickle.dumps((START, x, y)) == before


def test_other_losses_serve():
    x, y = np.array([[1.0], [2.0], [3.0]]), np.array([2, 4, 6])

    def squared(outputs, labels):
        return mean_squared_error(outputs, labels[:, None].astype(outputs.dtype))

    model, history = train(one_weight(0.0), x, y, optimizer=sgd(0.05), epochs=60, loss=squared)
    # Least squares contract the error by 1 - 2 * 0.05 * x^2 / 2 at best; 60 epochs leave little.
    assert abs(model.layers[0].weight.item() - 2) < 1e-3
    assert history.train_loss[-1] < history.train_loss[0]


def test_the_digits_are_learned():
    x, y = load_digits("train")
    held_out = load_digits("test")
    rng = np.random.default_rng(0)
    weights = [
        (rng.standard_normal(shape) * (2 / shape[0]) ** 0.5).astype(np.float32)
        for shape in ((64, 32), (32, 10))
    ]
    model = Sequential((Flatten(), Dense(weights[0]), ReLU(), Dense(weights[1])))
    model, history = train(model, x, y, optimizer=adam(0.01), epochs=8, batch_size=64)
    assert accuracy(model, *held_out) > 0.85  # chance is 0.1
    assert evaluate(model, *held_out)[1] == accuracy(model, *held_out)
    assert history.train_loss[-1] < history.train_loss[0] / 4


# Refusals -----------------------------------------------------------------------------------------

CLUSTERED = Sequential((Dense(Clustered(np.zeros((3, 2), int), np.ones(1))),))
REFUSED = {
    "lengths": (lambda: train(y=Y[:2]), "y must hold one label for each row of x"),
    "labels of floats": (lambda: train(y=Y * 1.0), "y must be of an integer dtype"),
    "one-hot labels": (lambda: train(y=np.eye(4, dtype=int)), "y must hold one label"),
    "a label too large": (lambda: train(y=Y + 1), "labels must lie in"),
    "no examples": (lambda: train(x=X[:0], y=Y[:0]), "x must hold at least one"),
    "integers": (lambda: train(x=X.astype(int)), "x must be of dtype"),
    "another dtype": (lambda: train(x=X.astype("f4")), "layer 0"),
    "epochs": (lambda: train(epochs=-1), "epochs must be"),
    "batch_size": (lambda: train(batch_size=0), "batch_size must be"),
    "rng": (
        lambda: fit(START, X, Y, optimizer=sgd(0.1), epochs=1, batch_size=1, rng=0),
        "rng must be",
    ),
    "patience without validation": (lambda: train(patience=1), "patience needs validation"),
    "patience 0": (lambda: train(patience=0, validation=(X, Y)), "patience must be"),
    "validation": (lambda: train(validation=(X, Y[:1])), r"validation\[1\] must hold one label"),
    "targets too few": (lambda: train(targets=X[:1]), "targets must have 4 rows as x, not 1"),
    "compressed weights": (lambda: train(CLUSTERED), r"decoded\(model\)"),
    "learning_rate of a schedule": (
        lambda: train(optimizer=sgd(lambda step: math.nan)),
        r"learning_rate\(step\) must be",
    ),
    "accuracy of nothing": (lambda: accuracy(START, X[:0], Y[:0]), "at least one"),
    "accuracy of images": (
        lambda: accuracy(Sequential(()), np.ones((1, 2, 2, 1)), np.array([0])), r"\(2, 2, 1\)",
    ),
    "accuracy without classes": (
        lambda: accuracy(Sequential((Dense(np.ones((2, 0))),)), np.ones((1, 2)), np.array([0])),
        "numbers for classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(CompressionError, match=message):
        call()


# Wrong implementations that the laws must kill ----------------------------------------------------


def _in_order_without_the_rest(model, x, y, *, batch_size, **options):
    whole = max(len(x) // batch_size, 1) * batch_size
    return train(model, x[:whole], y[:whole], batch_size=batch_size, **options)


def _with_replacement(model, x, y, **options):
    rows = np.random.default_rng(0).integers(0, len(x), len(x))
    return train(model, x[rows], y[rows], **options)


def _targets_left_in_place(model, x, y, *, targets, **options):
    return train(model, x, y, targets=targets[::-1], **options)


def _targets_of_the_batch_before(model, x, y, *, loss, **options):
    known = [np.zeros((0, 2))]

    def late(outputs, labels, targets):
        known.append(targets)
        return loss(outputs, labels, known[-2][: len(labels)])

    return train(model, x, y, loss=late, **options)


def _state_changed(change):
    def wrong(model, *data, optimizer, **options):
        if isinstance(model, TrainingState):
            model = change(model, optimizer)
        return fit(model, *data, optimizer=optimizer, **options)

    return wrong


def _state_of_the_view(*data, **options):
    model, history = fit(*data, **options)
    return model, replace(history, state=history.state._replace(latent=model))


def _labels_left_in_place(model, x, y, **options):
    return train(model, x[::-1], y, **options)


PLANTED = {
    "the ragged batch is dropped": (
        lambda wrong: law_every_example_once_an_epoch(5, 2, 2, wrong), _in_order_without_the_rest,
    ),
    "examples drawn with replacement": (
        lambda wrong: law_every_example_once_an_epoch(5, 2, 2, wrong), _with_replacement,
    ),
    "labels not shuffled along": (
        lambda wrong: law_every_example_once_an_epoch(5, 2, 2, wrong), _labels_left_in_place,
    ),
    "targets left in place": (
        lambda wrong: law_targets_go_with_their_rows(5, 2, 2, wrong), _targets_left_in_place,
    ),
    "targets of the batch before": (
        lambda wrong: law_targets_go_with_their_rows(5, 2, 2, wrong), _targets_of_the_batch_before,
    ),
    "the state's step forgotten": (
        lambda wrong: law_goes_on(wrong, CONTINUED["momentum"], 1, 1, X, 2, by_the_step),
        _state_changed(lambda state, optimizer: state._replace(step=0)),
    ),
    "the optimizer's state forgotten": (
        lambda wrong: law_goes_on(wrong, CONTINUED["momentum"], 1, 1, X, 2, None),
        _state_changed(lambda s, optimizer: s._replace(optimizer=optimizer.init(s.latent))),
    ),
    "the schedule begins anew": (
        lambda wrong: law_goes_on(wrong, CONTINUED["adam"], 1, 1, X, 2, None),
        _state_changed(lambda s, _: s._replace(optimizer=s.optimizer._replace(step=0))),
    ),
    "a state that holds the view": (
        lambda wrong: law_goes_on(wrong, CONTINUED["momentum"], 1, 1, X, 2, by_the_step),
        _state_of_the_view,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
