"""Training in a form, and recipes of several steps that can be taken up again at every point."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.datasets import load_digits
from minicompress.errors import CompressionError, FileFormatError
from minicompress.nn.layers import Dense, Flatten, ReLU
from minicompress.nn.model import Sequential, decoded, parameters, with_parameters
from minicompress.nn.optimizers import adam, sgd
from minicompress.nn.training import View, accuracy, fit
from minicompress.pipeline.recipe import (
    HISTORY,
    Step,
    compressed,
    deep_compression,
    retrained,
    run_recipe,
)
from minicompress.pipeline.weights import form_view, in_form_of, weights
from minicompress.representation import (
    Clustered,
    LowRank,
    Sparse,
    decode,
    shape_of,
)
from minicompress.storage.container import dumps, load
from minicompress.testing.checks import same

# The form of a weight ---------------------------------------------------------------------------


@st.composite
def forms(draw, shape, depth=3):
    """Arrays of small integers, sparse or of shared values, and these nested."""
    kind = draw(st.sampled_from(["plain", "sparse", "shared"])) if depth else "plain"
    size = int(np.prod(shape))
    if kind == "sparse":
        places = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        indices = np.flatnonzero(places)
        return Sparse(shape, indices, draw(forms((len(indices),), depth - 1)))
    if kind == "shared":
        count = draw(st.integers(1, 4))
        codes = draw(arrays(np.int64, shape, elements=st.integers(0, count - 1)))
        return Clustered(codes, draw(forms((count,), depth - 1)))
    return draw(small(shape))


def small(shape):
    return arrays(np.float64, shape, elements=st.integers(-3, 3).map(float))


def owners(rep):
    """Which free number stands at each place, in C order; None where a zero is for good."""
    if isinstance(rep, Sparse):
        places = [None] * int(np.prod(rep.shape))
        for place, owner in zip(rep.indices.tolist(), owners(rep.values), strict=True):
            places[place] = owner
        return places
    if isinstance(rep, Clustered):
        return [owners(rep.codebook)[code] for code in rep.codes.ravel().tolist()]
    return list(range(rep.size))


def of_one(weight):
    return Sequential((Dense(weight, np.zeros(shape_of(weight)[1])),))


def law_slopes_of_free_numbers(view_of, rep, gradient):
    """Each place gets the sum over all places of its number: exact for small integers."""
    model = of_one(rep)
    seen, pullback = view_of(model)(decoded(model), 0)
    assert same(seen, decoded(model))
    bias = np.array([1.0, -2.0, 3.0])[: gradient.shape[1]]
    (found,) = pullback(({"weight": gradient, "bias": bias},))
    places, slopes = owners(rep), gradient.ravel().tolist()
    sums = {o: sum(s for p, s in zip(places, slopes) if p == o) for o in places}
    expected = np.array([0.0 if o is None else sums[o] for o in places])
    np.testing.assert_array_equal(found["weight"].ravel(), expected)
    assert found["weight"].shape == gradient.shape
    assert found.keys() == {"weight", "bias"}
    np.testing.assert_array_equal(found["bias"], bias)


def law_training_keeps_the_form(view_of, rep, x, optimizer):
    """Zeros that are for good stay, members stay equal, and the way back loses nothing."""
    model, y = of_one(rep), np.arange(len(x)) % shape_of(rep)[1]
    assert same(in_form_of(model, decoded(model)), model)
    trained, _ = fit(
        decoded(model),
        x,
        y,
        optimizer=optimizer,
        epochs=2,
        batch_size=2,
        rng=np.random.default_rng(0),
        view=view_of(model),
    )
    groups: dict[int | None, set[float]] = {None: {0.0}}
    for owner, value in zip(owners(rep), trained.layers[0].weight.ravel().tolist(), strict=True):
        groups.setdefault(owner, set()).add(value)
    assert all(len(values) == 1 for values in groups.values())
    back = in_form_of(model, trained)
    assert same(decoded(back), trained)
    assert [type(r) for r in nested(back.layers[0].weight)] == [type(r) for r in nested(rep)]


def nested(rep):
    yield rep
    if isinstance(rep, Sparse | Clustered):
        yield from nested(rep.values if isinstance(rep, Sparse) else rep.codebook)


@given(forms((3, 2)), small((3, 2)))
def test_slopes_of_free_numbers(rep, gradient):
    law_slopes_of_free_numbers(form_view, rep, gradient)


@given(forms((2, 3)), small((5, 2)), st.sampled_from([sgd(0.5, momentum=0.5), adam(0.25)]))
def test_training_keeps_the_form(rep, x, optimizer):
    law_training_keeps_the_form(form_view, rep, x, optimizer)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_gradients_of_any_dtype_and_layout(dtype, order):
    rep = Sparse((2, 3), np.array([0, 2, 4]), Clustered(np.array([1, 0, 1]), np.ones(2, dtype)))
    gradient = np.array([[1, 2, 3], [4, 5, 6]], dtype, order=order)
    (found,) = form_view(Sequential((Dense(rep),)))(None, 0).pullback(({"weight": gradient},))
    assert found["weight"].dtype == dtype
    np.testing.assert_array_equal(found["weight"], [[6, 0, 3], [0, 6, 0]])


@pytest.mark.parametrize(
    ("rep", "name"),
    [
        (LowRank((np.ones((3, 1)), np.ones((1, 2))), "ir,ro->io"), "LowRank"),
        (quantize(np.ones((3, 2)), num_bits=4).rep, "Quantized"),
        (Sparse((3, 2), np.array([1]), quantize(np.ones(1), num_bits=4).rep), "Quantized"),
    ],
)
def test_forms_that_cannot_be_trained_are_named(rep, name):
    x, y = np.ones((2, 3)), np.array([0, 1])
    with pytest.raises(CompressionError, match=f"a {name} weight cannot be trained"):
        retrained(of_one(rep), np.random.default_rng(0), images=(x, y), epochs=1)


# Recipes ----------------------------------------------------------------------------------------

START = Sequential((Dense(np.arange(12.0).reshape(4, 3) - 5, np.ones(3)), ReLU()))


def noise(model, rng):
    """A step that draws: its result tells from which generator."""
    values = [{n: w + rng.normal(size=w.shape) for n, w in p.items()} for p in parameters(model)]
    return with_parameters(model, tuple(values))


def recipe(calls=None, stop=None):
    """Four steps that write down their names; the one called `stop` is interrupted."""

    def step(name, run):
        def counted(model, rng):
            if calls is not None:
                calls.append(name)
            if name == stop:
                raise KeyboardInterrupt
            return run(decoded(model), rng)

        return Step(name, counted)

    prune = partial(compressed, plan={0: partial(prune_magnitude, amount=0.5)})
    round_off = partial(compressed, plan={0: partial(quantize, num_bits=4)})
    return (
        step("first noise", noise),
        step("prune 1/2", prune),
        step("second noise", noise),
        step("int4", round_off),
    )


def largest(model):
    return {"largest": float(np.abs(decode(model.layers[0].weight)).max())}


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def law_taken_up_again(run):
    """Broken off anywhere, then run again: the same bytes, and no step is run that was done."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        stages = [base / "stage 0"]  # the folder as it was after so many steps
        stages[0].mkdir()

        def keep(row):
            stages.append(base / f"stage {len(stages)}")
            shutil.copytree(base / "whole", stages[-1])

        options = {"seed": 3, "measure": largest}
        whole = run(START, recipe(), folder=base / "whole", progress=keep, **options)
        files, names = contents(base / "whole"), [step.name for step in recipe()]
        assert [row.name for row in whole.history] == names
        assert same(load(base / "whole" / sorted(files)[3]), whole.model)
        for i, stage in enumerate(stages):
            folders = [base / f"interrupted {i}", base / f"cut {i}", base / f"saved {i}"]
            if i < len(names):
                with pytest.raises(KeyboardInterrupt):
                    run(START, recipe(stop=names[i]), folder=folders[0], **options)
                assert contents(folders[0]) == contents(stage)
            else:
                shutil.copytree(stage, folders[0])
            assert (HISTORY in contents(stage)) == (i > 0)
            shutil.copytree(stage, folders[1])
            # Models that the history does not know of yet: it broke off between the two.
            shutil.copytree(base / "whole", folders[2])
            (folders[2] / HISTORY).unlink()
            if i:
                shutil.copy(stage / HISTORY, folders[2])
            for folder in folders:
                calls, rows = [], []
                again = run(START, recipe(calls), folder=folder, progress=rows.append, **options)
                assert calls == names[i:]
                assert contents(folder) == files
                assert same(again.history, whole.history)
                assert same(tuple(rows), whole.history)
                assert dumps(again.model) == dumps(whole.model)
                assert same(decoded(again.model), decoded(whole.model))


def law_every_step_has_a_row(run):
    """Bytes are those of the file; a run without a folder comes to the same."""
    with tempfile.TemporaryDirectory() as name:
        rows = []
        options = {"seed": 0, "measure": largest, "coding": "huffman"}
        kept = run(START, recipe(), folder=name, progress=rows.append, **options)
        assert same(tuple(rows), kept.history)
        models = sorted(Path(name).glob("*.mcz"))
        assert len(os.listdir(name)) == len(models) + 1 == len(recipe()) + 1
        for row, path, step in zip(kept.history, models, recipe(), strict=True):
            assert row.name == step.name
            assert row.bytes == os.path.getsize(path)
            assert row.figures == largest(load(path))
            assert dumps(load(path), coding="huffman") == path.read_bytes()
        alone = run(START, recipe(), **options)
        assert same(alone.history, kept.history)
        assert dumps(alone.model) == dumps(kept.model)


def test_taken_up_again():
    law_taken_up_again(run_recipe)


def test_every_step_has_a_row():
    law_every_step_has_a_row(run_recipe)


def test_a_step_draws_from_the_seed_and_its_place():
    result = run_recipe(START, [Step(name, noise) for name in "abc"], seed=7)
    model = START
    for i in range(3):
        model = noise(model, np.random.default_rng([7, i]))
    assert same(result.model, model)
    assert dumps(run_recipe(START, recipe(), seed=1).model) != dumps(
        run_recipe(START, recipe(), seed=2).model
    )


def test_no_steps_leave_the_model(tmp_path):
    result = run_recipe(START, (), seed=0, folder=tmp_path)
    assert result.model is START
    assert result.history == ()


OTHERS = {
    "seed": (START, recipe(), 1),
    "start": (noise(START, np.random.default_rng(0)), recipe(), 0),
    "fewer steps": (START, recipe()[:3], 0),
    "more steps": (START, (*recipe(), Step("again", noise)), 0),
    "another order": (START, (*recipe()[1::-1], *recipe()[2:]), 0),
    "another name": (START, (Step("noise", noise), *recipe()[1:]), 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_recipe_is_refused(name, tmp_path):
    run_recipe(START, recipe(), seed=0, folder=tmp_path)
    before = contents(tmp_path)
    start, steps, seed = OTHERS[name]
    with pytest.raises(CompressionError, match="of another recipe, seed or model"):
        run_recipe(start, steps, seed=seed, folder=tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
def test_a_damaged_model_is_refused(damage, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_recipe(START, recipe(stop="second noise"), seed=0, folder=tmp_path)
    path = sorted(tmp_path.glob("*.mcz"))[-1]
    blob = path.read_bytes()
    path.write_bytes(blob[:-5] if damage == "cut" else blob[:9] + b"?" + blob[10:])
    if damage == "missing":
        path.unlink()
    with pytest.raises(FileFormatError, match=path.name):
        run_recipe(START, recipe(), seed=0, folder=tmp_path)


def rewritten(**changed):
    """A history with some parts of its first row changed."""

    def change(text):
        found = json.loads(text)
        found["history"][0] = {**found["history"][0], **changed}
        return json.dumps(found).encode()

    return change


DAMAGED = {
    "empty": lambda text: b"",
    "cut": lambda text: text[:-9],
    "no text": lambda text: b"\xff\xfe\x00",
    "a list": lambda text: b"[]",
    "nothing": lambda text: b"null",
    "no history": lambda text: b'{"recipe": {}}',
    "no recipe": lambda text: b'{"history": []}',
    "a history that is none": lambda text: text.replace(b'"history": [', b'"history": 5, "": ['),
    "rows that are none": lambda text: text.replace(b'"history": [', b'"history": [5,'),
    "rows with more in them": rewritten(more=1),
    "a row of another step": rewritten(name="int4"),
    "a row too many": lambda text: text.replace(
        b'"history": [', b'"history": [' + 4 * b'{"name": "", "bytes": 1, "figures": {}},'
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_history_is_refused(name, tmp_path):
    run_recipe(START, recipe(), seed=0, folder=tmp_path)
    text = (tmp_path / HISTORY).read_bytes()
    assert DAMAGED[name](text) != text
    (tmp_path / HISTORY).write_bytes(DAMAGED[name](text))
    with pytest.raises(CompressionError, match=r"cannot be read|of another recipe"):
        run_recipe(START, recipe(), seed=0, folder=tmp_path)


def test_a_history_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if str(target).endswith(HISTORY):
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        run_recipe(START, recipe(), seed=0, folder=tmp_path)
    monkeypatch.undo()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mcz"]
    again = run_recipe(START, recipe(), seed=0, folder=tmp_path)
    assert dumps(again.model) == dumps(run_recipe(START, recipe(), seed=0).model)


def test_names_of_all_kinds_make_files_of_the_folder(tmp_path):
    names = ["../up", "a/b", "a-b", "a\\b", "", "c:*?<>|", "größe 1", ".", "\ud800\n", "NUL"]
    steps, folder = [Step(name, noise) for name in names], tmp_path / "new" / "folder"
    whole = run_recipe(START, steps, seed=0, folder=folder)
    assert len(os.listdir(folder)) == len(names) + 1
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert same(run_recipe(START, steps, seed=0, folder=str(folder)), whole)
    assert [row.name for row in whole.history] == names


def test_figures_of_numpy_are_kept_as_floats(tmp_path):
    def figures(model):
        return {"a": np.float32(0.1), "b": np.int64(3), "c": True}

    whole = run_recipe(START, recipe(), seed=0, folder=tmp_path, measure=figures)
    assert whole.history[0].figures == {"a": float(np.float32(0.1)), "b": 3.0, "c": 1.0}
    again = run_recipe(START, recipe(), seed=0, folder=tmp_path, measure=figures)
    assert same(again.history, whole.history)


def test_what_is_refused(tmp_path):
    with pytest.raises(CompressionError, match="need names of their own"):
        run_recipe(START, (*recipe(), recipe()[0]), seed=0)
    with pytest.raises(CompressionError, match="seed must be"):
        run_recipe(START, recipe(), seed=-1)
    with pytest.raises(CompressionError, match="coding must be"):
        run_recipe(START, recipe(), seed=0, coding="zip", folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run_recipe(START, recipe(), seed=0, folder=tmp_path / "file")


# Deep Compression -------------------------------------------------------------------------------

KEPT, BITS = {1: 0.1, 3: 0.4}, {1: 3, 3: 2}
ROUNDS = 2


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits("train")
    return x[:400], y[:400]


@pytest.fixture(scope="module")
def net(digits):
    rng = np.random.default_rng(0)
    weight = [rng.normal(0, s**-0.5, (s, t)).astype("f4") for s, t in ((64, 16), (16, 10))]
    bias = [np.zeros(n, "f4") for n in (16, 10)]
    start = Sequential((Flatten(), Dense(weight[0], bias[0]), ReLU(), Dense(weight[1], bias[1])))
    options = {"optimizer": adam(0.01), "epochs": 8, "batch_size": 50}
    return fit(start, *digits, rng=np.random.default_rng(0), **options)[0]


def steps_of(digits):
    options = {"rounds": ROUNDS, "epochs": 2, "fine_tuning": 2, "learning_rate": 0.01}
    return deep_compression(digits, KEPT, BITS, **options)


@pytest.fixture(scope="module")
def whole(net, digits, tmp_path_factory):
    """Its folder as it was after each step, and the result."""
    base = tmp_path_factory.mktemp("deep")
    stages = []

    def keep(row):
        stages.append(base / f"stage {len(stages)}")
        shutil.copytree(base / "whole", stages[-1])

    steps = steps_of(digits)
    options = {"seed": 0, "folder": base / "whole", "coding": "huffman"}
    return stages, run_recipe(net, steps, progress=keep, **options)


def models(stages):
    return {path.stem[3:]: load(path) for path in sorted(stages[-1].glob("*.mcz"))}


def test_exact_counts_are_left_after_each_round(net, whole):
    found = models(whole[0])
    for i in range(1, ROUNDS + 1):
        pruned, trained = (weights(found[f"{name}-{i}"]) for name in ("prune", "retrain"))
        for k, share in KEPT.items():
            size = decode(net.layers[k].weight).size
            left = size - round((1 - share ** (i / ROUNDS)) * size)
            assert isinstance(pruned[k], Sparse)
            assert pruned[k].indices.size == left
            # What is pruned stays so through the training, which moves what is left.
            np.testing.assert_array_equal(trained[k].indices, pruned[k].indices)
            assert not np.array_equal(trained[k].values, pruned[k].values)
            if i == ROUNDS:
                for name in ("share", "tune"):
                    np.testing.assert_array_equal(
                        weights(found[name])[k].indices, pruned[k].indices
                    )


def test_values_are_shared_and_tuned(whole):
    found = models(whole[0])
    for k, bits in BITS.items():
        shared, tuned = (weights(found[name])[k].values for name in ("share", "tune"))
        assert len(np.unique(decode(shared))) <= 2**bits
        assert 1 < len(tuned.codebook) == len(shared.codebook) <= 2**bits
        np.testing.assert_array_equal(tuned.codes, shared.codes)
        assert not np.array_equal(tuned.codebook, shared.codebook)


def test_the_last_model_is_in_the_file_and_small(net, digits, whole):
    stages, result = whole
    kept = load(sorted(stages[-1].glob("*.mcz"))[-1])
    assert dumps(kept, coding="huffman") == dumps(result.model, coding="huffman")
    assert same(decoded(kept), decoded(result.model))
    assert [row.name for row in result.history] == [step.name for step in steps_of(digits)]
    # A tenth of 1,024 weights and four tenths of 160 take fewer than a byte and a half each.
    assert result.history[-1].bytes < (103 + 64) * 1.5 + 4 * 40 + 150 < len(dumps(net)) / 8
    assert accuracy(result.model, *digits) > 0.6  # chance is 0.1


def test_deep_compression_is_taken_up_again(net, digits, whole, tmp_path):
    stages, result = whole
    for stage in stages:
        shutil.copytree(stage, tmp_path / stage.name)
        options = {"seed": 0, "folder": tmp_path / stage.name, "coding": "huffman"}
        again = run_recipe(net, steps_of(digits), **options)
        assert contents(tmp_path / stage.name) == contents(stages[-1])
        assert same(again.history, result.history)


def test_nothing_may_be_left_of_a_layer(net, digits):
    steps = deep_compression(digits, {1: 1e-9, 3: 1.0}, {1: 0, 3: 16}, rounds=1, epochs=1)
    result = run_recipe(net, steps, seed=0)
    assert not decode(result.model.layers[1].weight).any()
    assert result.model.layers[3].weight.indices.size == 160


def test_deep_compression_refuses(digits):
    for message, kept, bits, options in (
        ("same layers", {1: 0.5}, {3: 2}, {}),
        ("same layers", {1: 0.0}, {1: 2}, {}),
        ("kept must be", {1: 1.5}, {1: 2}, {}),
        ("bits must be", {1: 0.5}, {1: 17}, {}),
        ("rounds must be", KEPT, BITS, {"rounds": 0}),
        ("epochs must be", KEPT, BITS, {"epochs": -1}),
        ("fine_tuning must be", KEPT, BITS, {"fine_tuning": -1}),
        ("learning_rate must be", KEPT, BITS, {"learning_rate": -0.1}),
    ):
        with pytest.raises(CompressionError, match=message):
            deep_compression(digits, kept, bits, **options)


# Wrong implementations that the laws must catch -------------------------------------------------


def _projecting(change):
    """A view whose gradient of the weight is something else; `change(rep, gradient)`."""

    def view_of(model):
        rep = model.layers[0].weight

        def pullback(gradients):
            return tuple({**g, "weight": change(rep, g["weight"])} for g in gradients)

        return lambda latent, step: View(latent, pullback)

    return view_of


def _of_members(reduce):
    def change(rep, gradient):
        places, slopes = owners(rep), gradient.ravel().tolist()
        found = {o: [s for p, s in zip(places, slopes) if p == o] for o in places}
        values = [0.0 if o is None else reduce(found[o]) for o in places]
        return np.array(values).reshape(gradient.shape)

    return _projecting(change)


def _biases_left_out(model):
    right = form_view(model)

    def view(latent, step):
        seen, pullback = right(latent, step)
        return View(
            seen, lambda gradients: tuple({"weight": g["weight"]} for g in pullback(gradients))
        )

    return view


def _one_generator_for_all(model, steps, *, seed, **options):
    rng = np.random.default_rng(seed)
    steps = [Step(s.name, lambda m, _, s=s: s.run(m, rng)) for s in steps]
    return run_recipe(model, steps, seed=seed, **options)


def _again_from_the_start(model, steps, **options):
    """The kept model is not loaded."""
    begun = []

    def late(step):
        def run(m, rng):
            begun.append(step)
            return step.run(model if len(begun) == 1 else m, rng)

        return Step(step.name, run)

    return run_recipe(model, [late(step) for step in steps], **options)


def _all_steps_again(model, steps, *, folder, **options):
    shutil.rmtree(folder, ignore_errors=True)
    return run_recipe(model, steps, folder=folder, **options)


def _kept_at_the_end(model, steps, *, folder, **options):
    """The history comes into the folder when everything is done."""
    with tempfile.TemporaryDirectory() as beside:
        Path(folder).mkdir(exist_ok=True)
        shutil.copytree(folder, beside, dirs_exist_ok=True)
        result = run_recipe(model, steps, folder=beside, **options)
        shutil.copytree(beside, folder, dirs_exist_ok=True)
        return result


def _bytes_of_another_coding(model, steps, *, coding="smallest", **options):
    result = run_recipe(model, steps, coding=coding, **options)
    rows = tuple(row._replace(bytes=len(dumps(result.model, coding=coding))) for row in result[1])
    return result._replace(history=rows)


SHARED = Sparse((3, 2), np.array([0, 1, 3, 4]), Clustered(np.array([0, 1, 0, 0]), np.ones(2)))
SLOPES = np.array([[1.0, 2.0], [-3.0, 3.0], [2.0, -1.0]])
INPUTS = np.array([[1.0, 2.0, -1.0], [0.5, -1.0, 3.0], [2.0, 0.0, 1.0]])

PLANTED = {
    "mean of the members for their sum": (
        lambda wrong: law_slopes_of_free_numbers(wrong, SHARED, SLOPES),
        _of_members(lambda slopes: sum(slopes) / len(slopes)),
    ),
    "the first member only": (
        lambda wrong: law_slopes_of_free_numbers(wrong, SHARED, SLOPES),
        _of_members(lambda slopes: slopes[0]),
    ),
    "pruned places take gradients": (
        lambda wrong: law_slopes_of_free_numbers(wrong, SHARED, SLOPES),
        _projecting(lambda rep, g: g),
    ),
    "biases are not trained": (
        lambda wrong: law_slopes_of_free_numbers(wrong, SHARED, SLOPES), _biases_left_out,
    ),
    "pruned places are trained": (
        lambda wrong: law_training_keeps_the_form(wrong, SHARED, INPUTS, sgd(0.5)),
        _projecting(lambda rep, g: g),
    ),
    "members go their own ways": (
        lambda wrong: law_training_keeps_the_form(wrong, SHARED, INPUTS, adam(0.25)),
        _projecting(lambda rep, g: g * (decode(rep) != 0)),
    ),
    "one generator for all steps": (law_taken_up_again, _one_generator_for_all),
    "going on from the start": (law_taken_up_again, _again_from_the_start),
    "steps run that were done": (law_taken_up_again, _all_steps_again),
    "a history that comes at the end": (law_taken_up_again, _kept_at_the_end),
    "the bytes of the last for all": (law_every_step_has_a_row, _bytes_of_another_coding),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
