"""The recipe for the smallest files: images that are moved, a teacher, epoch by epoch."""

from __future__ import annotations

import shutil
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from recipe_models import law_changes_are_seen

from minicompress.datasets import load_digits
from minicompress.errors import CompressionError
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense
from minicompress.nn.losses import distillation
from minicompress.nn.network import apply
from minicompress.nn.optimizers import adam, cosine_lr
from minicompress.nn.parameters import decoded, parameters, with_parameters
from minicompress.nn.pointwise import ReLU
from minicompress.nn.stateless import Flatten
from minicompress.nn.training import fit
from minicompress.recipes import rate_recipe
from minicompress.recipes.latent import latent_model, quantized_model
from minicompress.recipes.rate import rate_view
from minicompress.recipes.rate_recipe import (
    BY_A_PIXEL,
    SHARE,
    STILL,
    TEMPERATURE,
    Lesson,
    Prices,
    lesson,
    shifted,
    smallest_file,
    taught,
)
from minicompress.recipes.recipe import run_recipe
from minicompress.representation import Quantized, decode, shape_of
from minicompress.search.weights import weights
from minicompress.storage.container import load
from minicompress.testing.checks import check_pure, same

# Images that are moved ----------------------------------------------------------------------------


def law_shifted(shift, images, down, right):
    """What was at (i, j) is at (i + down, j + right), if that is in the image; the rest is zero."""
    expected = np.zeros(images.shape, images.dtype)
    n, height, width, channels = images.shape
    for image, i, j, c in np.ndindex(n, height, width, channels):
        if 0 <= i + down < height and 0 <= j + right < width:
            expected[image, i + down, j + right, c] = images[image, i, j, c]
    moved = shift(images, down, right)
    assert moved.dtype == images.dtype
    np.testing.assert_array_equal(moved, expected)


@given(
    st.tuples(st.integers(0, 2), st.integers(1, 4), st.integers(1, 4), st.integers(1, 2)).flatmap(
        lambda shape: arrays(np.float32, shape, elements=st.integers(1, 9))
    ),
    st.integers(-6, 6),
    st.integers(-6, 6),
)
def test_shifted(images, down, right):
    law_shifted(shifted, images, down, right)


def test_every_shift_of_an_image():
    images = np.arange(1.0, 13.0).reshape(1, 3, 4, 1)
    for down in range(-5, 6):
        for right in range(-6, 7):
            law_shifted(shifted, images, down, right)
    check_pure(shifted, images, 1, -2)


# Lessons ------------------------------------------------------------------------------------------

FLAT = Sequential((Flatten(),))


def pictures(n):
    """Images that no shift makes equal, and labels that say which is which."""
    return np.random.default_rng(0).random((n, 4, 5, 1)), np.arange(n)


def test_a_lesson_has_the_teachers_answers_to_every_place():
    x, y = pictures(6)
    teacher = Sequential((Flatten(), Dense(np.random.default_rng(1).normal(size=(20, 3)))))
    learn = lesson(x, y, shifts=BY_A_PIXEL, teacher=teacher)
    assert learn.answers.shape == (9, 6, 3)
    for answers, (down, right) in zip(learn.answers, BY_A_PIXEL, strict=True):
        np.testing.assert_array_equal(answers, apply(teacher, shifted(x, down, right)))
    assert lesson(x, y).answers is None
    assert lesson(x, y, shifts=[(0, 1)]).shifts == ((0, 1),)
    assert len(set(BY_A_PIXEL)) == 9
    assert (0, 0) in BY_A_PIXEL


def law_each_image_has_its_answer(lesson_of, monkeypatch):
    """In every epoch each image is met once, in one of its places, with the answer to it there.

    The teacher says what it sees, and so does the model: the two are equal where places agree.
    """
    x, y = pictures(300)
    learn = lesson_of(x, y, shifts=BY_A_PIXEL, teacher=FLAT)
    met = []

    def seeing(outputs, labels, targets, *, temperature, share):
        assert (temperature, share) == (TEMPERATURE, SHARE)
        met.append((outputs, labels, targets))
        return 0.0, np.zeros_like(outputs)

    monkeypatch.setattr(rate_recipe, "distillation", seeing)
    taught(FLAT, learn, optimizer=adam(), epochs=2, rng=np.random.default_rng(0))
    places = []
    for k in range(2):
        outputs, labels, targets = (np.concatenate(part) for part in zip(*met[3 * k : 3 * k + 3]))
        assert sorted(labels) == list(range(300))
        np.testing.assert_array_equal(outputs, targets)
        found = np.zeros(300, int)
        moved = np.stack([shifted(x, *shift).reshape(300, -1) for shift in BY_A_PIXEL])
        for output, label in zip(outputs, labels):
            (place,) = np.flatnonzero((moved[:, label] == output).all(1))
            found[label] = place
        assert set(found) == set(range(9))
        places.append(found)
    assert (places[0] != places[1]).mean() > 0.5


def test_each_image_has_its_answer(monkeypatch):
    law_each_image_has_its_answer(lesson, monkeypatch)


# Teaching -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits("train")
    return x[:300], y[:300]


@pytest.fixture(scope="module")
def start():
    rng = np.random.default_rng(0)
    weight = [rng.normal(0, s**-0.5, (s, t)).astype("f4") for s, t in ((64, 12), (12, 10))]
    bias = [np.zeros(n, "f4") for n in (12, 10)]
    return Sequential((Flatten(), Dense(weight[0], bias[0]), ReLU(), Dense(weight[1], bias[1])))


def law_as_fit(taught_by, start, learn, optimizer, view):
    """Where images stand still, k epochs are those of `fit`, bit for bit.

    A choice of one place draws nothing, so the stream of the generator is the same.
    """
    options = {"optimizer": optimizer, "epochs": 3, "view": view}
    targets = None if learn.answers is None else learn.answers[0]
    known = {"targets": targets}
    if targets is not None:
        known["loss"] = partial(distillation, temperature=TEMPERATURE, share=SHARE)
    seen, history = fit(
        start, learn.x, learn.y, batch_size=128, rng=np.random.default_rng(5), **options, **known
    )
    again, state = taught_by(start, learn, rng=np.random.default_rng(5), **options)
    assert same(again, seen)
    assert same(state, history.state)


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("latent", [False, True])
def test_lessons_that_stand_still_are_fit(teacher, latent, start, digits):
    learn = lesson(*digits, teacher=start if teacher else None)
    view = rate_view(lambda step: 1e-5 * step) if latent else None
    model = latent_model(start) if latent else start
    law_as_fit(taught, model, learn, adam(cosine_lr(0.01, 9)), view)


def test_teaching_goes_on_from_a_state_and_from_what_is_done_between(start, digits):
    learn, optimizer = Lesson(*digits, BY_A_PIXEL), adam(0.01)
    whole, last = taught(start, learn, optimizer=optimizer, epochs=3, rng=np.random.default_rng(1))
    rng = np.random.default_rng(1)
    _, first = taught(start, learn, optimizer=optimizer, epochs=1, rng=rng)
    again, state = taught(first, learn, optimizer=optimizer, epochs=2, rng=rng)
    assert same((again, state), (whole, last))

    steps = []

    def halved(state):
        steps.append(state.step)
        half = tuple({n: decode(w) / 2 for n, w in p.items()} for p in parameters(state.latent))
        return state._replace(latent=with_parameters(state.latent, half))

    options = {"optimizer": optimizer, "epochs": 2, "rng": np.random.default_rng(1)}
    seen, state = taught(start, learn, between=halved, **options)
    assert steps == [3, 6]
    # The state is the one from between, the model what was seen before it.
    np.testing.assert_array_equal(state.latent.layers[1].weight * 2, seen.layers[1].weight)
    rng = np.random.default_rng(1)
    _, first = taught(start, learn, optimizer=optimizer, epochs=1, rng=rng)
    again, _ = taught(halved(first), learn, optimizer=optimizer, epochs=1, rng=rng)
    assert same(again, seen)


# The recipe ---------------------------------------------------------------------------------------

PRICES = Prices(1e-5, 1e-3)
EPOCHS = {"dense": 2, "anneal": 4, "cool": 2, "restarts": 2, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def steps(start, digits):
    return smallest_file(lesson(*digits, shifts=BY_A_PIXEL, teacher=start), PRICES, **EPOCHS)


@pytest.fixture(scope="module")
def whole(start, steps, tmp_path_factory):
    """The folder as it was after each step, the models, and the result."""
    base, stages = tmp_path_factory.mktemp("rate"), []

    def keep(row):
        stages.append(base / f"stage {len(stages)}")
        shutil.copytree(base / "whole", stages[-1])

    result = run_recipe(start, steps, seed=1, folder=base / "whole", progress=keep)
    return stages, [load(path) for path in sorted(stages[-1].glob("*.mcz"))], result


def test_the_recipe_ends_in_whole_steps(start, whole):
    _, models, result = whole
    names = ["dense", "anneal", "cool", "restart 1", "restart 2", "store"]
    assert [row.name for row in result.history] == names
    *_, latent, stored = models
    for p in parameters(stored):
        assert all(isinstance(rep, Quantized) for rep in p.values())
    assert same(stored, quantized_model(latent))
    assert same(decoded(stored), decoded(result.model))
    assert [type(layer) for layer in stored.layers] == [type(layer) for layer in start.layers]
    assert result.history[-1].bytes < result.history[0].bytes / 8


def test_no_layer_grows(start, whole):
    _, models, _ = whole
    sizes = [[np.prod(shape_of(w)) for w in weights(m).values()][:2] for m in (start, *models)]
    for before, after in pairwise(sizes):
        assert all(b >= a for b, a in zip(before, after))
    # Inputs and answers are never removed.
    for model in models:
        shapes = [shape_of(w) for w in weights(model).values()]
        assert shapes[0] == (64, shapes[1][0])
        assert shapes[1][1] == 10


def test_the_recipe_is_taken_up_again(start, steps, whole, tmp_path):
    stages, models, result = whole
    for stage in (stages[1], stages[3], stages[5]):
        folder = tmp_path / stage.name
        shutil.copytree(stage, folder)
        again = run_recipe(start, steps, seed=1, folder=folder)
        assert same(again.history, result.history)
        for path in folder.iterdir():
            assert path.read_bytes() == (stages[-1] / path.name).read_bytes()
    others = run_recipe(start, steps[:1], seed=2).model
    assert not same(others, models[0])


def test_it_goes_on_from_what_is_trained_already(digits, whole):
    """Without an epoch of dense training: from a network, and from the latent one it came to."""
    steps = smallest_file(Lesson(*digits), PRICES, **{**EPOCHS, "dense": 0, "restarts": 0})
    assert [step.name for step in steps] == ["anneal", "cool", "store"]
    _, models, _ = whole
    dense, latent = models[0], models[-2]
    for start in (dense, latent):
        kinds = [type(layer) for layer in (start.layers if start is latent else latent.layers)]
        annealed = steps[0].run(start, np.random.default_rng(0))
        assert [type(layer) for layer in annealed.layers] == kinds
    # The steps' lengths at the start are those that the first recipe chose.
    np.testing.assert_array_equal(annealed.layers[-1].weight[0], latent.layers[-1].weight[0])


def test_a_higher_price_makes_a_smaller_file(start, digits):
    """The last price decides: bits that are dear take weights away, and whole units in the end."""
    options = {"dense": 2, "anneal": 20, "cool": 2, "restarts": 0, "learning_rate": 0.03}
    sizes, units = [], []
    for last in (1e-5, 1e-2, 1e-1):
        steps = smallest_file(Lesson(*digits), Prices(1e-5, last), **options)
        result = run_recipe(start, steps, seed=1)
        sizes.append(result.history[-1].bytes)
        units.append(shape_of(result.model.layers[1].weight)[1])
    assert sizes[0] > sizes[1] > sizes[2] < sizes[0] / 2
    assert 12 >= units[0] >= units[1] >= units[2] < 12


def test_whatever_is_changed_is_in_the_settings():
    x, y = np.zeros((2, 8, 8, 1), np.float32), np.array([0, 1])
    answers = np.zeros((1, 2, 10), np.float32)
    plain = {"learn": Lesson(x, y), "prices": Prices(1e-7, 1e-4)}
    changed = [
        {"learn": Lesson(x + 1, y)},
        {"learn": Lesson(x, y + 1)},
        {"learn": Lesson(x, y, BY_A_PIXEL)},
        {"learn": Lesson(x, y, STILL, answers)},
        {"learn": Lesson(x, y, STILL, answers + 1)},
        {"prices": Prices(2e-7, 1e-4)},
        {"prices": Prices(1e-7, 2e-4)},
        {"dense": 0},
        {"anneal": 3},
        {"cool": 3},
        {"restarts": 2},
        {"learning_rate": 2e-3},
    ]
    law_changes_are_seen(smallest_file, plain, changed)


def test_refused(digits):
    learn = Lesson(*digits)
    for message, prices, options in (
        ("prices must rise", Prices(0.0, 1e-3), {}),
        ("prices must rise", Prices(1e-3, 1e-4), {}),
        ("prices must be", Prices(-1e-3, 1e-4), {}),
        ("dense must be", PRICES, {"dense": -1}),
        ("anneal must be", PRICES, {"anneal": 0}),
        ("cool must be", PRICES, {"cool": 0}),
        ("restarts must be", PRICES, {"restarts": -1}),
    ):
        with pytest.raises(CompressionError, match=message):
            smallest_file(learn, prices, **options)
    with pytest.raises(CompressionError, match="epochs must be"):
        taught(FLAT, learn, optimizer=adam(), epochs=0, rng=np.random.default_rng(0))


# Wrong implementations that the laws must catch -------------------------------------------------


def _answers_in_another_order(x, y, **options):
    learn = lesson(x, y, **options)
    return learn._replace(answers=learn.answers[::-1])


def _answers_to_still_images(x, y, **options):
    learn = lesson(x, y, **options)
    return learn._replace(answers=np.broadcast_to(learn.answers[4], learn.answers.shape))


def _never_moved(x, y, **options):
    learn = lesson(x, y, **options)
    return learn._replace(shifts=STILL, answers=learn.answers[4:5])


def _the_same_epoch_again(start, learn, *, optimizer, epochs, rng, view):
    """Every epoch begins where the first did."""
    for _ in range(epochs):
        result = taught(start, learn, optimizer=optimizer, epochs=1, rng=rng, view=view)
    return result


def _optimizer_begins_anew(start, learn, *, optimizer, epochs, rng, view):
    model = start
    for _ in range(epochs):
        seen, state = taught(model, learn, optimizer=optimizer, epochs=1, rng=rng, view=view)
        model = state.latent
    return seen, state


IMAGE = np.arange(1.0, 13.0).reshape(1, 3, 4, 1)
TINY = Sequential((Flatten(), Dense(np.arange(24.0).reshape(12, 2) / 24)))
TINY_LESSON = Lesson(np.random.default_rng(0).random((200, 3, 4, 1)), np.arange(200) % 2)


def _answering(wrong):
    with pytest.MonkeyPatch.context() as monkeypatch:
        law_each_image_has_its_answer(wrong, monkeypatch)


PLANTED = {
    "what leaves comes in from behind": (
        lambda wrong: law_shifted(wrong, IMAGE, 1, 0),
        lambda images, down, right: np.roll(images, (down, right), (1, 2)),
    ),
    "down for right": (
        lambda wrong: law_shifted(wrong, IMAGE, 1, 0),
        lambda images, down, right: shifted(images, right, down),
    ),
    "up for down": (
        lambda wrong: law_shifted(wrong, IMAGE, 1, 0),
        lambda images, down, right: shifted(images, -down, right),
    ),
    "no further than the border": (
        lambda wrong: law_shifted(wrong, IMAGE, 5, 0),
        lambda images, down, right: shifted(images, min(down, 2), right),
    ),
    "answers in another order": (_answering, _answers_in_another_order),
    "answers to images that stand still": (_answering, _answers_to_still_images),
    "images that never move": (_answering, _never_moved),
    "the same epoch again": (
        lambda wrong: law_as_fit(wrong, TINY, TINY_LESSON, adam(0.01), None),
        _the_same_epoch_again,
    ),
    "an optimizer that begins anew every epoch": (
        lambda wrong: law_as_fit(wrong, TINY, TINY_LESSON, adam(0.01), None),
        _optimizer_begins_anew,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
