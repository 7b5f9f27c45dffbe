"""Training for the fewest bytes: the view in whole steps, its way back, what is stored."""

from __future__ import annotations

import math
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rate_models import U, free, latent_of

from minicompress.errors import CompressionError
from minicompress.nn.composition import Sequential
from minicompress.nn.gradient import vjp
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import apply
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.optimizers import adam, sgd
from minicompress.nn.parameters import parameters, with_parameters
from minicompress.nn.pointwise import ReLU
from minicompress.nn.stateless import Flatten, MaxPool2D
from minicompress.nn.training import View, fit
from minicompress.recipes import rate
from minicompress.recipes.latent import BIAS_STEP, is_latent, latent_model, quantized_model
from minicompress.recipes.rate import bias_slopes, rate_view, weight_slopes
from minicompress.representation import Quantized, decode
from minicompress.testing.checks import check_pure, same

# Steps are powers of two and weights quarters of them, so that their quotient is exact.
QUARTERS = st.integers(-14, 14).map(lambda k: k / 4)
STEPS = st.sampled_from([0.25, 0.5, 1.0, 4.0])
GROWTHS = st.sampled_from([-1.5, -0.25, 0.0, 0.5, 1.0])


@st.composite
def latents(draw, growths=GROWTHS, dtype=np.float64):
    """Two dense layers, with biases or without; weights near their steps' ties."""
    layers, steps = [], [draw(STEPS), draw(STEPS)]
    for shape, step in zip(((2, 3), (3, 2)), steps):
        weight = draw(arrays(dtype, shape, elements=QUARTERS)) * dtype(step)
        bias = draw(arrays(dtype, shape[1], elements=QUARTERS)) * dtype(BIAS_STEP)
        layers += [Dense(weight, bias if draw(st.booleans()) else None), ReLU()]
    return latent_of(layers[:-1], steps, [draw(growths), draw(growths)])


def steps_of(latent):
    """For each layer of the network the first and the present length of the steps of its arrays."""
    steps = iter(zip(*decode(latent.layers[-1].weight).astype(float).tolist()))
    found = []
    for layer in latent.layers[:-1]:
        first, growth = next(steps) if "weight" in layer.parameters() else (0.0, 0.0)
        lengths = {"weight": (first, first * math.exp(growth)), "bias": (BIAS_STEP, BIAS_STEP)}
        found.append({name: lengths[name] for name in layer.parameters()})
    return found


def whole_steps(array, first):
    """Codes in exact arithmetic; Python rounds fractions to even."""
    return [round(Fraction(float(w)) / Fraction(first)) for w in array.ravel()]


def entries_of(latent):
    """All arrays of the network of a latent model: layer, name, array, first step and present."""
    pairs = zip(parameters(latent), steps_of(latent))
    for i, (layer, lengths) in enumerate(pairs):
        for name, (first, now) in lengths.items():
            yield i, name, layer[name], first, now


# The latent model and its view --------------------------------------------------------------------


def law_view_is_in_whole_steps(view_of, latent):
    """Each weight is its number of steps, a tie the even one, times the length of a step now."""
    seen = view_of(free)(latent, 0).model
    assert len(seen.layers) == len(latent.layers) - 1
    for i, name, array, first, now in entries_of(latent):
        kind = array.dtype.type
        expected = [kind(code) * kind(now) for code in whole_steps(array, first)]
        found = parameters(seen)[i][name]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found.ravel(), expected)


def law_quantized_is_the_view(quantized_of, latent):
    """The same codes, and scales that differ by what 8 bits of precision round off.

    With a mantissa m from 1/2 to 1, m * 256 is rounded by at most 1/2, so relatively by at most
    1/2 / 128 = 2^-8. The view rounds the step and the product to its dtype, decoding the product.
    """
    stored, seen = quantized_of(latent), rate_view(free)(latent, 0).model
    for i, name, array, first, now in entries_of(latent):
        rep = parameters(stored)[i][name]
        assert isinstance(rep, Quantized)
        codes = whole_steps(array, first)
        assert rep.codes.ravel().tolist() == codes
        assert rep.dtype == array.dtype
        # As few bits as the codes need, two at least.
        low, high = min(codes), max(codes)
        assert -(2 ** (rep.num_bits - 1)) <= low
        assert high < 2 ** (rep.num_bits - 1)
        assert rep.num_bits == 2 or not -(2 ** (rep.num_bits - 2)) <= low <= high < 2 ** (
            rep.num_bits - 2
        )
        assert (math.frexp(float(rep.scale))[0] * 256).is_integer()
        slack = 2.0**-8 + 4 * float(np.finfo(array.dtype).eps) / 2
        difference = np.abs(decode(rep).astype(float) - parameters(seen)[i][name])
        assert (difference <= slack * np.abs(codes).reshape(array.shape) * now).all()
        if name == "bias":
            assert not difference.any()


@given(st.sampled_from([np.float64, np.float32]).flatmap(lambda kind: latents(dtype=kind)))
def test_view_and_quantized(latent):
    law_view_is_in_whole_steps(rate_view, latent)
    law_quantized_is_the_view(quantized_model, latent)


@pytest.mark.parametrize("growth", [k / 7 for k in range(-15, 16)])
def test_scales_of_eight_bits(growth):
    codes = np.array([[300.0, -5.0, 0.0, 1.0], [0.0, -129.0, 2.0, 127.0]])
    law_quantized_is_the_view(quantized_model, latent_of([Dense(codes / 3)], [1 / 3], [growth]))


def test_codes_take_as_few_bits_as_they_need():
    for codes, bits, kind in (
        ([[0, 0]], 2, "int8"),
        ([[1, -2]], 2, "int8"),
        ([[2, 0]], 3, "int8"),
        ([[-128, 127]], 8, "int8"),
        ([[128, 0]], 9, "int16"),
        ([[-32768, 0]], 16, "int16"),
    ):
        rep = quantized_model(latent_of([Dense(np.array(codes, float))], [1.0], [0.0]))
        assert (rep.layers[0].weight.num_bits, rep.layers[0].weight.codes.dtype) == (bits, kind)
    with pytest.raises(CompressionError, match="num_bits"):
        quantized_model(latent_of([Dense(np.array([[32768.0, 0.0]]))], [1.0], [0.0]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_latent_model_starts_at_the_network(dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, 2, 1, 3)).astype(dtype), rng.normal(size=(12, 2)).astype(dtype)]
    network = Sequential(
        (Conv2D(arrays[0], np.ones(3, dtype)), ReLU(), MaxPool2D(2), Flatten(), Dense(arrays[1]))
    )
    latent = latent_model(network, deviations=0.5)
    assert all(a is b for a, b in zip(latent.layers, network.layers))
    assert len(latent.layers) == len(network.layers) + 1
    steps = decode(latent.layers[-1].weight)
    expected = [0.5 * float(np.std(a, dtype=float)) for a in arrays]
    kind = np.float32 if dtype == np.float16 else dtype  # steps are scales
    np.testing.assert_array_equal(steps, np.array([expected, [0, 0]], kind), strict=True)
    # What is seen of it has the types of the network, and is within half a step of it.
    seen = rate_view(free)(latent, 0).model
    assert [type(layer) for layer in seen.layers] == [type(layer) for layer in network.layers]
    for k, step in zip((0, 4), steps[0].astype(float)):
        distance = np.abs(seen.layers[k].weight.astype(float) - network.layers[k].weight)
        assert (distance <= step * (0.5 + 8 * np.finfo(dtype).eps)).all()
    check_pure(rate_view(lambda step: 1e-3)(latent, 0).pullback, parameters(seen))


def test_what_a_latent_model_is():
    first, second = Dense(np.ones((3, 2))), np.array([[0.5], [-1.0]])
    assert is_latent(Sequential((first, ReLU(), Dense(second))))
    for last in (
        Dense(second, np.zeros(1)),
        Dense(-second),
        Dense(np.ones((2, 2))),
        Dense(np.ones((1, 1))),
        ReLU(),
    ):
        assert not is_latent(Sequential((first, ReLU(), last)))
    assert not is_latent(Sequential((Dense(second),)))
    assert not is_latent(Sequential(()))


NORM = BatchNorm(*np.ones((4, 2)))
SQUARE = np.array([[1.0, -1.0], [2.0, 0.5]])
REFUSED = {
    "no weights": (lambda: latent_model(Sequential((ReLU(),))), "weights that differ"),
    "equal weights": (
        lambda: latent_model(Sequential((Dense(SQUARE), Dense(np.ones((2, 2)))))),
        "weights that differ",
    ),
    "no entries": (lambda: latent_model(Sequential((Dense(np.ones((0, 2))),))), "weights that"),
    "deviations of 0": (
        lambda: latent_model(Sequential((Dense(SQUARE),)), deviations=0.0),
        "weights that differ",
    ),
    "deviations": (
        lambda: latent_model(Sequential((Dense(SQUARE),)), deviations=-1.0),
        "deviations must be",
    ),
    "a batch normalization": (
        lambda: rate_view(free)(latent_model(Sequential((Dense(SQUARE), NORM))), 0),
        r"layer 1 \(BatchNorm\) has weights without steps",
    ),
    "no latent model": (
        lambda: rate_view(free)(Sequential((Dense(SQUARE), Dense(SQUARE))), 0),
        "a model of latent_model",
    ),
    "nothing": (lambda: quantized_model(Sequential(())), "a model of latent_model"),
    "steps alone": (lambda: quantized_model(Sequential((Dense(SQUARE),))), "of latent_model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(CompressionError, match=message):
        call()


# The way back -------------------------------------------------------------------------------------


def law_straight_through(view_of, latent, gradients):
    """Without a price: a weight gets gain times its gradient, a step's logarithm sum(dW W).

    Both exactly: gains here are exp(growth) rounded as the quotient of the two lengths, small
    integers and quarters have exact sums where no step has grown, and otherwise the sum of n
    products is off by gamma_n of its magnitude.
    """
    seen, pullback = view_of(free)(latent, 0)
    *found, last = pullback(gradients)
    rows = []
    for i, name, array, first, now in entries_of(latent):
        given = gradients[i][name]
        assert found[i][name].dtype == array.dtype
        np.testing.assert_array_equal(found[i][name], given * (now / first))
        if name == "weight":
            products = given * parameters(seen)[i][name]
            rows.append((math.fsum(products.ravel()), np.abs(products).sum(), now != first))
    assert [set(layer) for layer in found] == [set(layer) for layer in gradients]
    steps, growths = last["weight"]
    assert not steps.any()
    assert last["weight"].dtype == latent.layers[-1].weight.dtype
    for growth, (exact, size, inexact) in zip(growths, rows, strict=True):
        assert abs(growth - exact) <= inexact * 7 * U * size


def law_slope_of_the_step(view_of, latent, x, c):
    """The gradient of a step's logarithm, by central differences of a loss of the view.

    The loss sum(c * outputs) of two layers without an activation is affine in exp(growth) of each,
    so its third derivative is at most the magnitude of its terms times exp(h), and so is h^2 / 6
    of it what the difference is off by; and by fewer than 32 roundings of that, over h.
    """
    h = 2.0**-15

    def loss(latent):
        return float((apply(view_of(free)(latent, 0).model, x) * c).sum())

    seen, pullback = view_of(free)(latent, 0)
    gradients = vjp(seen, x)[1](c)[1]
    slopes = pullback(gradients)[-1]["weight"][1]
    size = np.abs(x)
    for p in parameters(seen):
        size = size @ np.abs(p["weight"]) + np.abs(p.get("bias", 0.0))
    size = float((size * np.abs(c)).sum())
    for k in range(2):
        ends = []
        for move in (h, -h):
            rows = latent.layers[-1].weight.copy()
            rows[1, k] += move
            ends.append(loss(Sequential((*latent.layers[:-1], Dense(rows)))))
        difference = (ends[0] - ends[1]) / (2 * h)
        assert abs(slopes[k] - difference) <= (h * h / 6 * 1.01 + 32 * U / h) * size


def law_price_joins(view_of, latent, gradients):
    """With a price the slopes of the bits join the gradients; fewer than 8 roundings of the sum."""
    charge = 0.375
    found = view_of(lambda step: charge * step)(latent, 2).pullback(gradients)
    for i, name, array, first, now in entries_of(latent):
        bits = (weight_slopes if name == "weight" else bias_slopes)(array / first)
        parts = gradients[i][name] * (now / first), 2 * charge * bits / first
        slack = 8 * U * (np.abs(parts[0]) + np.abs(parts[1]))
        assert (np.abs(found[i][name] - (parts[0] + parts[1])) <= slack).all()
    without = view_of(free)(latent, 2).pullback(gradients)
    np.testing.assert_array_equal(found[-1]["weight"], without[-1]["weight"])


@st.composite
def latents_with_gradients(draw):
    latent = draw(latents())
    integers = st.integers(-3, 3).map(float)
    shapes = [{n: w.shape for n, w in p.items()} for p in parameters(latent)[:-1]]
    return latent, tuple(
        {n: draw(arrays(float, shape, elements=integers)) for n, shape in p.items()} for p in shapes
    )


@given(latents_with_gradients())
def test_the_way_back(case):
    law_straight_through(rate_view, *case)
    law_price_joins(rate_view, *case)


@given(latents(), st.data())
def test_slope_of_the_step(latent, data):
    small = st.integers(-3, 3).map(float)
    x, c = (data.draw(arrays(float, (3, 2), elements=small)) for _ in range(2))
    latent = Sequential(tuple(layer for layer in latent.layers if not isinstance(layer, ReLU)))
    law_slope_of_the_step(rate_view, latent, x, c)


def test_training_grows_steps_and_leaves_their_start():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 4)), rng.integers(0, 2, 20)
    latent = latent_model(
        Sequential((Dense(rng.normal(size=(4, 3))), ReLU(), Dense(rng.normal(size=(3, 2)))))
    )
    for optimizer in (adam(0.05), sgd(0.05, momentum=0.9)):
        options = {"optimizer": optimizer, "epochs": 5, "batch_size": 5, "rng": rng}
        seen, history = fit(latent, x, y, view=rate_view(lambda step: 1e-3), **options)
        before, after = (m.layers[-1].weight for m in (latent, history.state.latent))
        np.testing.assert_array_equal(after[0], before[0])
        assert after[1].all()
        assert same(seen, rate_view(free)(history.state.latent, 0).model)


# Wrong implementations that the laws must catch ---------------------------------------------------


def _seen_through(change_codes=np.rint, *, bias=True, grown=True):
    """A view that rounds in another way."""

    def view_of(price):
        def view(latent, step):
            values = [{} for _ in latent.layers[:-1]]
            for i, name, array, first, now in entries_of(latent):
                codes = change_codes(array / first) if name == "weight" or bias else array / first
                values[i][name] = codes * (now if grown else first)
            network = Sequential(latent.layers[:-1])
            pullback = rate_view(price)(latent, step).pullback
            return View(with_parameters(network, tuple(values)), pullback)

        return view

    return view_of


def _pulling(change):
    """The right view, and ``change(latent, price, gradients, found)`` of what comes back."""

    def view_of(price):
        def view(latent, step):
            seen, pullback = rate_view(price)(latent, step)
            return View(seen, lambda g: change(latent, seen, g, pullback(g)))

        return view

    return view_of


def _gain_forgotten(latent, seen, gradients, found):
    return (*gradients, found[-1])


def _slope_of_the_length(latent, seen, gradients, found):
    """Of the step itself, not of its logarithm."""
    rows = found[-1]["weight"].copy()
    rows[1] /= decode(latent.layers[-1].weight)[0]
    return (*found[:-1], {"weight": rows})


def _slope_by_the_latent(latent, seen, gradients, found):
    growths = [
        float((gradients[i][n] * w).sum()) for i, n, w, _, _ in entries_of(latent) if n == "weight"
    ]
    return (*found[:-1], {"weight": np.array([[0.0] * len(growths), growths])})


def _price_at_the_start(price):
    return rate_view(lambda step: price(0))


def _price_of_weights_for_biases(price):
    def slopes(units):
        return weight_slopes(units[None])[0]

    def view(latent, step):
        seen, pullback = rate_view(price)(latent, step)

        def patched(gradients):
            with mock.patch.object(rate, "bias_slopes", slopes):
                return pullback(gradients)

        return View(seen, patched)

    return view


def _quantized(change):
    """Of the right one, all weights changed by `change(rep, first step)`."""

    def quantized_of(latent):
        model = quantized_model(latent)
        values = [dict(p) for p in parameters(model)]
        for i, name, _, first, _ in entries_of(latent):
            values[i][name] = change(values[i][name], first)
        return with_parameters(model, tuple(values))

    return quantized_of


def _with_scale(rep, scale):
    return Quantized(
        rep.codes, np.array(scale), rep.zero_point, rep.num_bits, True, None, None, rep.dtype
    )


def _of_four_bits(rep, first):
    mantissa, exponent = math.frexp(float(rep.scale))
    return _with_scale(rep, math.ldexp(round(mantissa * 16), exponent - 4))


TIES = latent_of(
    [
        Dense(np.array([[0.5, 1.5], [-0.75, -2.5]]), np.array([0.25, -2.0]) * BIAS_STEP),
        Dense(SQUARE),
    ],
    [1.0, 0.5],
    [0.5, 0.25],
)
GIVEN = (
    {"weight": np.array([[1.0, -2.0], [3.0, 1.0]]), "bias": np.array([1.0, 2.0])},
    {"weight": np.array([[2.0, 1.0], [-1.0, 1.0]])},
)

X, C = np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([[1.0, -2.0], [2.0, 1.0]])

PLANTED = {
    "half away from zero in a view": (
        lambda wrong: law_view_is_in_whole_steps(wrong, TIES),
        _seen_through(lambda u: np.sign(u) * np.floor(np.abs(u) + 0.5)),
    ),
    "cut for rounded": (
        lambda wrong: law_view_is_in_whole_steps(wrong, TIES), _seen_through(np.trunc),
    ),
    "biases not rounded": (
        lambda wrong: law_view_is_in_whole_steps(wrong, TIES), _seen_through(bias=False),
    ),
    "steps that do not grow": (
        lambda wrong: law_view_is_in_whole_steps(wrong, TIES), _seen_through(grown=False),
    ),
    "codes by steps that have grown": (
        lambda wrong: law_view_is_in_whole_steps(wrong, TIES),
        _seen_through(lambda u: np.rint(u / math.exp(0.5))),
    ),
    "scale of the start": (
        lambda wrong: law_quantized_is_the_view(wrong, TIES), _quantized(_with_scale),
    ),
    "scale of four bits": (
        lambda wrong: law_quantized_is_the_view(wrong, TIES), _quantized(_of_four_bits),
    ),
    "scale in full precision": (
        lambda wrong: law_quantized_is_the_view(wrong, TIES),
        _quantized(lambda rep, first: _with_scale(rep, float(rep.scale) * (1 + 2.0**-12))),
    ),
    "the gain forgotten": (
        lambda wrong: law_straight_through(wrong, TIES, GIVEN), _pulling(_gain_forgotten),
    ),
    "the slope of a length for its logarithm's": (
        lambda wrong: law_straight_through(wrong, TIES, GIVEN), _pulling(_slope_of_the_length),
    ),
    "a step's slope by the latent weights": (
        lambda wrong: law_slope_of_the_step(wrong, TIES, X, C), _pulling(_slope_by_the_latent),
    ),
    "a price where there is none": (
        lambda wrong: law_straight_through(wrong, TIES, GIVEN),
        lambda price: rate_view(lambda step: price(step) + 1e-3),
    ),
    "the price of the first step": (
        lambda wrong: law_price_joins(wrong, TIES, GIVEN), _price_at_the_start,
    ),
    "biases charged as weights": (
        lambda wrong: law_price_joins(wrong, TIES, GIVEN), _price_of_weights_for_biases,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
