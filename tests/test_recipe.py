"""Recipes: a row for every step, and taken up again where they were broken off."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from recipe_models import contents

from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.errors import CompressionError, FileFormatError
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense
from minicompress.nn.parameters import decoded, parameters, with_parameters
from minicompress.nn.pointwise import ReLU
from minicompress.recipes.deep_compression import compressed
from minicompress.recipes.recipe import HISTORY, Step, run_recipe
from minicompress.representation import decode
from minicompress.storage.container import dumps, load
from minicompress.testing.checks import same

# Recipes ------------------------------------------------------------------------------------------


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
    "other settings": (START, (*recipe()[:3], recipe()[3]._replace(settings="num_bits=5")), 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_of_another_recipe_is_refused(name, tmp_path):
    run_recipe(START, recipe(), seed=0, folder=tmp_path)
    before = contents(tmp_path)
    start, steps, seed = OTHERS[name]
    with pytest.raises(CompressionError, match="of another recipe, seed or model"):
        run_recipe(start, steps, seed=seed, folder=tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_of_another_coding_is_refused(tmp_path):
    run_recipe(START, recipe(), seed=0, folder=tmp_path)
    with pytest.raises(CompressionError, match="of other settings"):
        run_recipe(START, recipe(), seed=0, folder=tmp_path, coding="packed")


def test_another_model_in_the_place_of_the_last_is_refused(tmp_path):
    run_recipe(START, recipe(), seed=0, folder=tmp_path)
    models = sorted(tmp_path.glob("*.mcz"))
    shutil.copy(models[0], models[-1])
    with pytest.raises(CompressionError, match="not the model that was left there"):
        run_recipe(START, recipe(), seed=0, folder=tmp_path)


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
    "nested without end": lambda text: 100_000 * b"[",
    "no digest": lambda text: text.replace(b'"digest"', b'"more"'),
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
    with pytest.raises(CompressionError, match="need different names"):
        run_recipe(START, (*recipe(), recipe()[0]), seed=0)
    with pytest.raises(CompressionError, match="seed must be"):
        run_recipe(START, recipe(), seed=-1)
    with pytest.raises(CompressionError, match="coding must be"):
        run_recipe(START, recipe(), seed=0, coding="zip", folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run_recipe(START, recipe(), seed=0, folder=tmp_path / "file")


# Wrong implementations that the laws must catch ---------------------------------------------------


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


PLANTED = {
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
