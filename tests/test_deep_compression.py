"""Deep Compression, and the view that keeps zeros and shared values while it trains."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from recipe_models import contents, law_changes_are_seen

from minicompress.compressors.quantization import quantize
from minicompress.datasets import load_digits
from minicompress.errors import CompressionError
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense
from minicompress.nn.optimizers import adam, sgd
from minicompress.nn.parameters import decoded
from minicompress.nn.pointwise import ReLU
from minicompress.nn.stateless import Flatten
from minicompress.nn.training import View, accuracy, fit
from minicompress.recipes.deep_compression import deep_compression, retrained
from minicompress.recipes.recipe import run_recipe
from minicompress.recipes.structure import preserve_structure, restore_structure
from minicompress.representation import Clustered, LowRank, Sparse, decode, shape_of
from minicompress.search.weights import weights
from minicompress.storage.container import dumps, load
from minicompress.testing.checks import same

# The form of a weight -----------------------------------------------------------------------------


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
    assert same(restore_structure(model, decoded(model)), model)
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
    back = restore_structure(model, trained)
    assert same(decoded(back), trained)
    assert [type(r) for r in nested(back.layers[0].weight)] == [type(r) for r in nested(rep)]


def nested(rep):
    yield rep
    if isinstance(rep, Sparse | Clustered):
        yield from nested(rep.values if isinstance(rep, Sparse) else rep.codebook)


@given(forms((3, 2)), small((3, 2)))
def test_slopes_of_free_numbers(rep, gradient):
    law_slopes_of_free_numbers(preserve_structure, rep, gradient)


@given(forms((2, 3)), small((5, 2)), st.sampled_from([sgd(0.5, momentum=0.5), adam(0.25)]))
def test_training_keeps_the_form(rep, x, optimizer):
    law_training_keeps_the_form(preserve_structure, rep, x, optimizer)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_gradients_of_any_dtype_and_layout(dtype, order):
    rep = Sparse((2, 3), np.array([0, 2, 4]), Clustered(np.array([1, 0, 1]), np.ones(2, dtype)))
    gradient = np.array([[1, 2, 3], [4, 5, 6]], dtype, order=order)
    (found,) = preserve_structure(Sequential((Dense(rep),)))(None, 0).pullback(
        ({"weight": gradient},)
    )
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


# Deep Compression ---------------------------------------------------------------------------------

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


def test_whatever_is_changed_is_in_the_settings():
    x, y = np.zeros((2, 4), np.float32), np.array([0, 1])
    plain = {"images": (x, y), "kept": {0: 0.1}, "bits": {0: 5}}
    changed = [
        {"images": (x + 1, y)},
        {"images": (x, y + 1)},
        {"images": (x.astype(float), y)},
        {"kept": {0: 0.2}},
        {"bits": {0: 4}},
        {"rounds": 3},
        {"epochs": 7},
        {"fine_tuning": 3},
        {"learning_rate": 2e-3},
    ]
    law_changes_are_seen(deep_compression, plain, changed)


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


# Wrong implementations that the laws must catch ---------------------------------------------------


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
    right = preserve_structure(model)

    def view(latent, step):
        seen, pullback = right(latent, step)
        return View(
            seen, lambda gradients: tuple({"weight": g["weight"]} for g in pullback(gradients))
        )

    return view


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
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
