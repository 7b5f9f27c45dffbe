"""NaN and infinity: every door refuses them, and says where they are and what to do.

A door is a function that would make something of them that looks right: a trained network, an
accuracy, a file, a smaller network. One entry of a network, of its inputs or of its outputs is
planted at a drawn place.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from budgets import at_most
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress import cli
from minicompress.analysis import sensitivities as sensitivity_module
from minicompress.analysis.sensitivities import sensitivity
from minicompress.compressors.pruning import prune_magnitude
from minicompress.early_exit import exits as early_exit
from minicompress.early_exit.exits import EarlyExit, confidence, exit_logits, predict
from minicompress.early_exit.file import save_exits
from minicompress.early_exit.thresholds import choose_thresholds, exit_curve
from minicompress.early_exit.training import fit_exits
from minicompress.errors import CompressionError, FileFormatError
from minicompress.integer import conversion as integer
from minicompress.integer.conversion import to_integer
from minicompress.interchange.onnx_file import to_onnx
from minicompress.interchange.state_dict import from_state_dict, to_state_dict
from minicompress.nn import training
from minicompress.nn.composition import Sequential
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import apply
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.optimizers import Optimizer, sgd
from minicompress.nn.parameters import parameters, with_parameters
from minicompress.nn.pointwise import ReLU
from minicompress.nn.stateless import Flatten
from minicompress.nn.training import accuracy, evaluate, fit
from minicompress.recipes import latent as latents
from minicompress.recipes.dead_units import without_dead_units
from minicompress.recipes.latent import latent_model, quantized_model
from minicompress.recipes.rate import rate_view
from minicompress.recipes.recipe import Step, run_recipe
from minicompress.representation import Certificate, Clustered, Compressed, LowRank, Sparse
from minicompress.rewrite import (
    batch_norm,
    channels,
    dense_to_conv,
    dense_to_global_pool,
    factorize,
    fold_batch_norm,
    remove_channels,
    shrink_kernel,
    split_kernel,
)
from minicompress.search import searching as search_module
from minicompress.search.searching import search_plan
from minicompress.storage import container
from minicompress.storage.container import dumps, loads

F = np.float32
RNG = np.random.default_rng(0)
SOME = at_most(25)
BAD = st.sampled_from([np.nan, np.inf, -np.inf])


def drawn(*shape):
    return RNG.standard_normal(shape).astype(F)


NETWORK = Sequential(
    (
        Conv2D(drawn(3, 3, 1, 2), drawn(2)),
        BatchNorm(drawn(2), drawn(2), drawn(2), np.ones(2, F)),
        ReLU(),
        Flatten(),
        Dense(drawn(8, 4), drawn(4)),
        ReLU(),
        Dense(drawn(4, 3), drawn(3)),
    )
)
PLAIN = Sequential((*NETWORK.layers[:1], *NETWORK.layers[2:]))
X, Y = drawn(6, 4, 4, 1), np.array([0, 1, 2, 0, 1, 2])


def with_entry(array, place, value):
    changed = array.copy()
    changed.flat[place % changed.size] = value
    return changed, tuple(map(int, np.unravel_index(place % changed.size, changed.shape)))


def planted(model, which, place, value):
    """The model with one entry of one weight changed, and what a message has to say of it."""
    names = [(i, name) for i, layer in enumerate(parameters(model)) for name in layer]
    i, name = names[which % len(names)]
    value = abs(value) if name == "variance" else value  # a negative one is refused before
    array, entry = with_entry(parameters(model)[i][name], place, value)
    changes = [{name: array} if j == i else {} for j in range(len(model.layers))]
    changed = with_parameters(model, tuple(changes))
    kind = type(model.layers[i]).__name__
    return changed, (f"layer {i} ({kind})", f"{name} must be finite", f"entry {entry} is {value}")


def law_refused(door, argument, *words, error=CompressionError):
    """The door does not open, and its message has all the words."""
    try:
        made = door(argument)
    except error as found:
        message = str(found)
    else:
        raise AssertionError(f"this went through: {made!r:.200}")
    assert all(word in message for word in words), f"{message} does not say {words}"


def unchecked(module, name, door, instead=lambda value, *rest, **options: value):
    """The door without one of its checks, or with another function in its place."""

    def wrong(*arguments, **options):
        with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
            patch.setattr(module, name, instead)
            return door(*arguments, **options)

    return wrong


def trained(model=PLAIN, x=X, y=Y, **options):
    chosen = {"optimizer": sgd(0.01), "epochs": 2, "batch_size": 2} | options
    return fit(model, x, y, rng=np.random.default_rng(0), **chosen)


# Weights ------------------------------------------------------------------------------------------


def as_exits(model):
    return EarlyExit((model, Sequential((ReLU(),))), (Sequential(()),), (0.5,))


BEGUN = trained(epochs=0)[1].state

DOORS = {
    "fit": (trained, PLAIN),
    "fit from a state": (lambda m: trained(BEGUN._replace(latent=m)), PLAIN),
    "dumps": (dumps, NETWORK),
    "to_state_dict": (to_state_dict, NETWORK),
    "to_onnx": (lambda m: to_onnx(m, (4, 4, 1)), NETWORK),
    "to_integer": (lambda m: to_integer(m, X), PLAIN),
    "fold_batch_norm": (fold_batch_norm, NETWORK),
    "remove_channels": (lambda m: remove_channels(m, 0, [1]), NETWORK),
    "factorize": (factorize, NETWORK),
    "latent_model": (latent_model, PLAIN),
    "run_recipe": (lambda m: run_recipe(m, [Step("same", lambda m, rng: m)], seed=0), NETWORK),
    "fit_exits": (
        lambda m: fit_exits(
            as_exits(m), X, Y, optimizer=sgd(0.1), epochs=1, batch_size=6, joint=True,
            rng=np.random.default_rng(0),
        ),
        PLAIN,
    ),
}  # fmt: skip
PLACES = (st.integers(0, 99), st.integers(0, 999), BAD)


@pytest.mark.parametrize("name", [name for name in DOORS if name != "to_onnx"])
@SOME
@given(*PLACES)
def test_a_weight_that_is_not_finite_is_refused_by_name(name, which, place, value):
    door, model = DOORS[name]
    law_refused(door, *_said(*planted(model, which, place, value)))


def _said(model, words):
    return model, *words


@SOME
@given(*PLACES)
def test_onnx_refuses_it_too(which, place, value):
    pytest.importorskip("onnx")
    door, model = DOORS["to_onnx"]
    law_refused(door, *_said(*planted(model, which, place, value)))


written_blindly = unchecked(container, "finite_model", dumps)


@SOME
@given(*PLACES)
def test_a_file_that_holds_it_is_damaged(which, place, value):
    changed, words = planted(NETWORK, which, place, value)
    law_refused(loads, written_blindly(changed), *words, error=FileFormatError)


@SOME
@given(*PLACES)
def test_a_state_dict_that_holds_it_is_refused(which, place, value):
    arrays = to_state_dict(NETWORK, layout="torch", input_shape=(4, 4, 1))
    name = list(arrays)[which % len(arrays)]
    arrays[name], entry = with_entry(arrays[name], place, value)
    law_refused(torch_in, arrays, "not finite", repr(name), f"entry {entry} is {value}")


def torch_in(arrays):
    return from_state_dict(NETWORK, arrays, layout="torch", input_shape=(4, 4, 1))


@SOME
@given(*PLACES, st.booleans())
def test_exits_are_not_saved_with_it(tmp_path_factory, which, place, value, in_head):
    changed, (layer, name, entry) = planted(PLAIN, which, place, value)
    exits = as_exits(PLAIN)
    part = "heads[0]" if in_head else "segments[0]"
    exits = replace(exits, **({"heads": (changed,)} if in_head else {"segments": (changed, PLAIN)}))
    path = tmp_path_factory.getbasetemp() / "never.mcx"
    law_refused(lambda e: save_exits(e, path), exits, f"{part}: {layer}", name, entry)
    assert not path.exists()


STRAIGHT = {
    "dense_to_conv": lambda w: dense_to_conv(Dense(w), (2, 2)),
    "dense_to_global_pool": lambda w: dense_to_global_pool(Dense(w), (2, 2)),
    "shrink_kernel": lambda w: shrink_kernel(Conv2D(w.reshape(3, 3, 2, 2)), 2),
    "shrink_kernel, fitted": lambda w: shrink_kernel(
        Conv2D(w.reshape(3, 3, 2, 2)), 2, calibration=np.ones((1, 4, 4, 2), F)
    ),
    "split_kernel": lambda w: split_kernel(Conv2D(w.reshape(3, 3, 2, 2)), rng=RNG),
}


@pytest.mark.parametrize("name", STRAIGHT)
@SOME
@given(st.integers(0, 35), BAD)
def test_a_layer_that_holds_it_is_not_rewritten(name, place, value):
    shape = (4, 9) if name.startswith("dense") else (36,)
    array, _ = with_entry(np.ones(shape, F), place, value)
    law_refused(STRAIGHT[name], array, "must be finite", f"is {value}")


@SOME
@given(arrays(F, 4, elements=st.floats(-9, 9, width=32)), st.integers(0, 3), BAD)
def test_representations_are_finite(values, place, value):
    values[place] = value
    ones = np.ones((2, 2), F)
    for make, part in (
        (lambda v: LowRank((v.reshape(2, 2), ones), "ir,ro->io"), r"factors[0]"),
        (lambda v: LowRank((ones, v.reshape(2, 2)), "ir,ro->io"), r"factors[1]"),
        (lambda v: Sparse((9,), np.arange(4), v), "values"),
        (lambda v: Clustered(np.array([0]), v), "codebook"),
    ):
        law_refused(make, values, f"{part} must be finite", f"is {value}")


def test_what_a_training_for_bytes_came_to_is_looked_at():
    """A latent model's codes are whole numbers of steps, which grow by powers of e."""
    latent = latent_model(PLAIN)
    for which, place, value in ((0, 0, np.nan), (3, 2, np.inf)):
        changed, words = planted(latent, which, place, value)
        law_refused(quantized_model, changed, *words)
        law_refused(without_dead_units, BEGUN._replace(latent=changed), *words)
    grown = Sequential((*latent.layers[:-1], Dense(np.full((2, 3), 1000.0, F))))
    law_refused(lambda m: trained(m, view=rate_view(lambda step: 0.0)), grown)


# Outputs ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Says(Layer):
    """Answers input k, an integer, with row k of a table: a test says what the outputs are."""

    table: np.ndarray

    def forward(self, x):
        return self.table[x[:, 0].astype(int)]

    def output_shape(self, input_shape):
        return (self.table.shape[1],)


def answering(table):
    table = np.array(table)
    return Sequential((Says(table),)), np.arange(len(table), dtype=table.dtype)[:, None]


def first_class(outputs, labels):
    """A loss that minds nothing but its first column, and not even NaN there."""
    return float(np.nan_to_num(outputs[:, 0]).sum()), np.zeros_like(outputs)


TABLES = arrays(
    F, st.tuples(st.integers(1, 5), st.integers(2, 4)), elements=st.floats(-9, 9, width=32)
)


def law_no_class(judge, table, place, value):
    """Outputs that are not finite are no answer: refused, with the first such input."""
    table, (row, column) = with_entry(table, place, value)
    model, x = answering(table)
    law_refused(
        lambda m: judge(m, x, np.zeros(len(x), int)),
        model,
        f"x[{row}] entry ({column},) is {value}",
    )


JUDGES = {
    "accuracy": accuracy,
    "evaluate": evaluate,
    "evaluate by a loss that minds nothing": lambda m, x, y: evaluate(m, x, y, loss=first_class),
    "predict": lambda m, x, y: predict(EarlyExit((m,), (), ()), x, batch_size=2),
    "predict, in a head": lambda m, x, y: predict(nothing_but(m), x, batch_size=2),
    "exit_logits": lambda m, x, y: exit_logits(nothing_but(m), x, batch_size=2),
    "exit_curve": lambda m, x, y: exit_curve(nothing_but(m), x, y),
    "choose_thresholds": lambda m, x, y: choose_thresholds(nothing_but(m), x, y, min_accuracy=0.0),
    "fit_exits": lambda m, x, y: fit_exits(
        replace(nothing_but(m), heads=(Sequential((Dense(np.ones((9, 9), F)),)),), segments=(m, m)),
        x, y, optimizer=sgd(0.1), epochs=1, batch_size=2, rng=np.random.default_rng(0),
    ),
}  # fmt: skip


def nothing_but(model):
    """Exits whose one head is the model; most inputs leave there."""
    return EarlyExit((Sequential(()), model), (model,), (0.4,))


@pytest.mark.parametrize("name", JUDGES)
@SOME
@given(TABLES, st.integers(0, 99), BAD)
def test_what_is_not_finite_is_no_answer(name, table, place, value):
    law_no_class(JUDGES[name], table, place, value)


@SOME
@given(TABLES, st.integers(0, 99), BAD, st.sampled_from(early_exit.CRITERIA))
def test_nothing_is_known_of_how_sure_it_is(table, place, value, criterion):
    logits, entry = with_entry(table, place, value)
    law_refused(
        lambda z: confidence(z, criterion), logits, f"logits must be finite, but entry {entry}"
    )


def test_a_loss_that_is_not_finite_is_no_measure():
    model, x = answering(np.eye(2, dtype=F))
    for value in (math.nan, math.inf, -math.inf):
        law_refused(
            lambda v: evaluate(model, x, np.array([0, 1]), loss=lambda o, y, v=v: (v, o)),
            value,
            "the loss on x and y is not finite",
        )


@SOME
@given(st.integers(0, 95), BAD)
def test_inputs_are_looked_at_first(place, value):
    x, entry = with_entry(X, place, value)
    exits = as_exits(PLAIN)
    words = f"must be finite, but entry {entry} is {value}"
    for judge in (
        lambda x: evaluate(PLAIN, x, Y),
        lambda x: accuracy(PLAIN, x, Y),
        lambda x: predict(exits, x),
        lambda x: exit_logits(exits, x),
        lambda x: trained(x=x),
        lambda x: search_plan(PLAIN, [], x, Y, max_bytes=10**6),
        lambda x: sensitivity(PLAIN, [], x, Y),
    ):
        law_refused(judge, x, f"x {words}")
    law_refused(lambda x: trained(validation=(x, Y)), x, f"validation[0] {words}")
    law_refused(
        lambda t: trained(targets=t, loss=lambda o, y, t: first_class(o, y)), x, f"targets {words}"
    )


# Training -----------------------------------------------------------------------------------------


def law_training_stops(fit_with, bad_step, value, batch_size):
    """A loss that is not finite ends the training: by its step and its epoch."""
    asked = []

    def loss(outputs, labels):
        asked.append(len(labels))
        return (value if len(asked) == bad_step else 0.5), np.zeros_like(outputs)

    per_epoch = -(-len(X) // batch_size)
    epoch = (bad_step - 1) // per_epoch + 1
    law_refused(
        lambda model: fit_with(model, loss=loss, epochs=epoch + 1, batch_size=batch_size),
        PLAIN,
        f"step {bad_step} of {(epoch + 1) * per_epoch} (epoch {epoch}): the loss is {value}",
        "a smaller learning rate, or a wider float",
    )
    assert len(asked) == bad_step


@SOME
@given(st.integers(1, 9), BAD, st.integers(1, 7))
def test_training_stops_at_a_loss_that_is_not_finite(bad_step, value, batch_size):
    law_training_stops(trained, bad_step, value, batch_size)


def law_no_epoch_ends_with_it(fit_with, place, value):
    """The last update of an epoch has no loss behind it: so weights are looked at there."""

    def update(model, gradients, state):
        return with_parameters(
            model, ({"bias": with_entry(np.zeros(2, F), place, value)[0]}, *[{}] * 5)
        ), state

    law_refused(
        lambda model: fit_with(
            model, optimizer=Optimizer(lambda m: (), update), epochs=1, batch_size=6
        ),
        PLAIN,
        f"after step 1 of 1 (epoch 1): layer 0 (Conv2D): bias must be finite, but entry ({place},)",
        "a smaller learning rate, or a wider float",
    )


@SOME
@given(st.integers(0, 1), BAD)
def test_no_epoch_ends_with_weights_that_are_not_finite(place, value):
    law_no_epoch_ends_with_it(trained, place, value)


def test_no_view_hides_it():
    """Neither what is seen of a finite latent, nor a latent of which nothing is seen."""
    one, gone = (
        Sequential((Dense(np.ones((1, 2), F)),)),
        Sequential((Dense(np.full((1, 2), np.nan, F)),)),
    )
    x, y = np.ones((1, 1), F), np.zeros(1, int)
    run = {"batch_size": 1, "epochs": 1}
    law_refused(
        lambda m: trained(m, x, y, view=lambda latent, k: gone if k else latent, **run),
        one,
        "after step 1",
    )
    blind = Optimizer(lambda m: (), lambda m, g, s: (gone, s))
    law_refused(
        lambda m: trained(m, x, y, view=lambda latent, k: one, optimizer=blind, **run),
        one,
        "after step 1",
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_learning_rate_that_is_far_too_large(dtype):
    """Without a warning on the way, which would be an error here."""
    model = Sequential(
        (Dense(np.array([[1.0, -1.0]], dtype)), ReLU(), Dense(np.eye(2, dtype=dtype)))
    )
    x, y = np.array([[1.0], [-2.0]], dtype), np.array([1, 0])
    optimizer = sgd(float(np.finfo(dtype).max))
    law_refused(
        lambda m: trained(m, x, y, optimizer=optimizer, epochs=9), model, "(epoch ", "smaller"
    )


def law_patience_keeps_numbers(fit_with, bad_epoch, value):
    """A validation loss that is not finite ends the training: patience keeps no such network."""
    x, y, asked = np.ones((1, 1)), np.zeros(1, int), []

    def loss(outputs, labels):
        asked.append(outputs)
        bad = len(asked) == 2 * bad_epoch  # one step, one validation
        return (value if bad else -len(asked)), np.full_like(outputs, -1.0)

    law_refused(
        lambda model: fit_with(
            model,
            x,
            y,
            optimizer=sgd(1.0),
            epochs=5,
            batch_size=1,
            loss=loss,
            validation=(x, y),
            patience=2,
        ),
        Sequential((Dense(np.zeros((1, 1))),)),
        f"validation after step {bad_epoch} of 5 (epoch {bad_epoch}): the loss",
    )


@SOME
@given(st.integers(1, 5), BAD)
def test_patience_keeps_no_network_without_a_loss(bad_epoch, value):
    law_patience_keeps_numbers(trained, bad_epoch, value)


# Folding ------------------------------------------------------------------------------------------

HALF = np.float16
HALVES = arrays(HALF, (2, 3), elements=st.floats(-60000, 60000, width=16))


def law_fold_fits(fold, weight, scale, offset):
    """A fold is finite, every product rounded once; or it names layer, weight and first entry."""
    norm = BatchNorm(scale, offset, np.zeros(3, HALF), np.ones(3, HALF), epsilon=1e-12)
    model = Sequential((Dense(np.eye(2, dtype=HALF)), Dense(weight), norm))
    # 1 + 1e-12 under the root is nothing beside a rounding to 11 bits, but at ties of doubles.
    exact = weight.astype(np.float64) * (scale.astype(np.float64) / np.sqrt(1 + 1e-12))
    with np.errstate(over="ignore"):
        wanted = exact.astype(HALF)
    if np.isfinite(wanted).all():
        folded = fold(model).layers[1]
        assert (folded.weight == wanted).all()
        assert (folded.bias == offset).all()
        return
    entry = tuple(map(int, np.argwhere(~np.isfinite(wanted))[0]))
    law_refused(
        fold,
        model,
        "layer 2 (BatchNorm)",
        "Dense",
        f"weight would overflow float16: entry {entry} is",
        "wider float",
    )


@SOME
@given(HALVES, arrays(HALF, 3, elements=st.floats(-4, 4, width=16)), HALVES.map(lambda a: a[0]))
def test_a_fold_that_overflows_is_refused(weight, scale, offset):
    law_fold_fits(fold_batch_norm, weight, scale, offset)


def test_a_bias_that_overflows_and_a_variance_without_end():
    big = np.full(1, 6e4, HALF)
    one = np.ones(1, HALF)
    dense = Dense(np.ones((1, 1), HALF), big)
    law_refused(
        fold_batch_norm,
        Sequential((dense, BatchNorm(one, big, 0 * one, one))),
        "bias would overflow float16",
    )
    with np.errstate(over="ignore"):
        endless = BatchNorm(one, one, one, one * np.inf)  # would fold to a layer of zeros
    law_refused(
        fold_batch_norm,
        Sequential((dense, endless)),
        "layer 1 (BatchNorm): variance must be finite",
    )


def test_sums_and_fits_that_overflow_are_refused():
    top = Dense(np.full((4, 1), 6e4, HALF))
    law_refused(
        lambda d: dense_to_global_pool(d, (2, 2)),
        top,
        "the sum of weights would overflow float16: entry (0, 0)",
    )
    kernel = Conv2D(np.full((3, 3, 1, 1), 6e4, HALF))
    images = np.ones((1, 5, 5, 1), HALF)
    law_refused(
        lambda c: shrink_kernel(c, 1, calibration=images),
        kernel,
        "the new",
        "would overflow float16",
    )


# Choosing -----------------------------------------------------------------------------------------


def blown_up(weight):
    """A compressor whose network overflows: its file is tiny."""
    return Compressed(
        Clustered(np.zeros(weight.shape, int), np.full(1, 3e38, F)), Certificate("fro", 0.0, 0.0)
    )


CHOICES = {"blown up": blown_up, "half": lambda w: prune_magnitude(w, amount=0.5)}
SMALL = Sequential((Dense(drawn(3, 16)), ReLU(), Dense(drawn(16, 2))))
SMALL_X, SMALL_Y = np.abs(drawn(8, 3)), np.zeros(8, int)  # the class that argmax gives to NaN


def law_numbers_win(search_with, limit, cost):
    """No plan without a finite loss is chosen or named, whatever it saves."""
    found = search_with(
        SMALL, CHOICES, SMALL_X, SMALL_Y, max_bytes=limit, cost=cost, coding="packed"
    )
    for plan in (found.best, *found.runners_up):
        assert math.isfinite(plan.loss)
        assert "blown up" not in plan.plan.values()
    assert found.best.bytes == len(dumps(found.model, coding="packed")) <= limit
    assert np.isfinite(apply(found.model, SMALL_X)).all()


def law_nothing_fits(search_with, cost):
    """Where only a network without a loss is small enough, there is none."""
    law_refused(lambda n: law_numbers_win(search_with, n, cost), 100, "the least that was found is")


@pytest.mark.parametrize("cost", ["measured", "certificate"])
def test_a_plan_without_a_loss_does_not_win(cost):
    law_numbers_win(search_plan, 300, cost)
    law_nothing_fits(search_plan, cost)


def law_sensitivity_counts_no_nan(rows_of):
    """A layer that makes the network overflow costs all that there is to lose."""
    rows = rows_of(SMALL, CHOICES, SMALL_X, SMALL_Y)
    right = accuracy(SMALL, SMALL_X, SMALL_Y)
    for row in rows:
        if row.method == "blown up":
            assert row.loss_change == math.inf
            assert row.accuracy_change == -right
        else:
            assert math.isfinite(row.loss_change)


def test_sensitivity_counts_no_nan_as_right():
    law_sensitivity_counts_no_nan(sensitivity)


def test_a_recipe_names_the_step_and_the_figure():
    steps = [
        Step("fine", lambda m, rng: m),
        Step("bad", lambda m, rng: planted(m, 0, 0, np.nan)[0]),
    ]
    law_refused(
        lambda s: run_recipe(PLAIN, s, seed=0), steps, "step 'bad': layer 0 (Conv2D): weight"
    )
    for value in (math.nan, math.inf):
        law_refused(
            lambda v: run_recipe(PLAIN, steps[:1], seed=0, measure=lambda m: {"loss": v}),
            value,
            "loss, measured after step 'fine',",
        )


def test_the_command_writes_no_figures_that_json_has_no_word_for(tmp_path, monkeypatch, capsys):
    row = SimpleNamespace(_asdict=lambda: {"bound": math.inf})
    monkeypatch.setattr(cli, "compare", lambda *arguments, **options: [row])
    monkeypatch.setattr(cli, "read_table", lambda *arguments: "")
    path = tmp_path / "figures.json"
    path.write_text(json.dumps("before"))
    assert cli.main(["--json", str(path)]) == 2
    assert "the figures cannot be written" in capsys.readouterr().err
    assert json.loads(path.read_text()) == "before"


# Planted faults -----------------------------------------------------------------------------------


def accuracy_by_argmax(model, x, y):
    with np.errstate(all="ignore"):
        return float((apply(model, x).argmax(1) == y).mean())


def accuracy_but_for_nan(model, x, y):
    """Looks for NaN alone: of two infinities the first would be the class."""
    outputs = apply(model, x)
    if np.isnan(outputs).any():
        raise CompressionError(f"x[{np.isnan(outputs).any(1).argmax()}] entry")
    return float((outputs.argmax(1) == y).mean())


def naive(outputs, y, loss):
    with np.errstate(all="ignore"):
        return float(loss(outputs, y)[0]), float((outputs.argmax(1) == y).mean())


def no_more_than_the_largest(array, dtype, name):
    return np.clip(array, -65504, 65504).astype(dtype)


def infinite_is_fine(module, door):
    return unchecked(
        module, "math", door, SimpleNamespace(**{**vars(math), "isfinite": lambda v: True})
    )


def refuses(name, which=0, place=1, value=np.nan):
    changed, words = planted(DOORS[name][1], which, place, value)
    return lambda wrong: law_refused(lambda m: wrong(m), changed, *words)


def one(judge):
    return lambda wrong: law_no_class(wrong, np.eye(3, dtype=F), 4, judge)


TOO_LARGE = np.full((2, 3), 6e4, HALF), np.full(3, 2, HALF), np.zeros(3, HALF)
PLANTED = {
    "an accuracy by plain argmax": (one(np.nan), accuracy_by_argmax),
    "an accuracy that lets infinity through": (one(np.inf), accuracy_but_for_nan),
    "an evaluate that looks at the loss alone": (
        one(np.nan),
        unchecked(training, "finite_outputs", JUDGES["evaluate by a loss that minds nothing"]),
    ),
    "a run that takes NaN out of the last exit": (
        one(np.nan), unchecked(early_exit, "finite_outputs", JUDGES["predict"]),
    ),
    "a training that takes any loss": (
        lambda wrong: law_training_stops(wrong, 2, math.nan, 2),
        infinite_is_fine(training, trained),
    ),
    "a training that looks at losses alone": (
        lambda wrong: law_no_epoch_ends_with_it(wrong, 1, math.inf),
        unchecked(training, "finite_model", trained),
    ),
    "a patience that keeps NaN": (
        lambda wrong: law_patience_keeps_numbers(wrong, 1, math.nan),
        unchecked(training, "evaluate", trained, lambda m, x, y, loss: naive(apply(m, x), y, loss)),
    ),
    "a fold that does not check": (
        lambda wrong: law_fold_fits(wrong, *TOO_LARGE),
        unchecked(batch_norm, "cast_or_refuse", fold_batch_norm, lambda a, to, name: a.astype(to)),
    ),
    "a fold that saturates": (
        lambda wrong: law_fold_fits(wrong, *TOO_LARGE),
        unchecked(batch_norm, "cast_or_refuse", fold_batch_norm, no_more_than_the_largest),
    ),
    "a search that takes infinite losses": (
        lambda wrong: law_nothing_fits(wrong, "measured"),
        infinite_is_fine(search_module, search_plan),
    ),
    "a sensitivity that counts NaN as class 0": (
        law_sensitivity_counts_no_nan, unchecked(sensitivity_module, "scored", sensitivity, naive),
    ),
    "a training that starts from NaN": (
        refuses("fit", 3), unchecked(training, "finite_model", trained),
    ),
    "a file with NaN": (refuses("dumps"), written_blindly),
    "integers from NaN": (
        refuses("to_integer"), unchecked(integer, "finite_model", DOORS["to_integer"][0]),
    ),
    "channels cut off with their NaN": (
        refuses("remove_channels", 0, 0),
        unchecked(channels, "finite_model", DOORS["remove_channels"][0]),
    ),
    "steps for NaN": (refuses("latent_model"), unchecked(latents, "finite_model", latent_model)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
