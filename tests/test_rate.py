"""Training for the fewest bytes: the view in whole steps, its price, and the units that die."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.errors import CompressionError
from minicompress.nn.layers import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Sigmoid,
    Tanh,
)
from minicompress.nn.model import Sequential, apply, parameters, vjp, with_parameters
from minicompress.nn.optimizers import adam, sgd
from minicompress.nn.training import TrainingState, View, fit
from minicompress.pipeline import rate
from minicompress.pipeline.rate import (
    BIAS_STEP,
    bias_slopes,
    is_latent,
    latent_model,
    quantized_model,
    rate_view,
    weight_slopes,
    without_dead_units,
)
from minicompress.pipeline.weights import weights
from minicompress.representation import Quantized, decode
from minicompress.testing.checks import check_pure, same

U = 2.0**-53


def free(step):
    """The price that is none."""
    return 0.0


def latent_of(layers, steps, growths):
    """A latent model by hand."""
    rows = np.array([steps, growths], decode(weights(Sequential(layers)).popitem()[1]).dtype)
    return Sequential((*layers, Dense(rows)))


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
    np.testing.assert_array_equal(steps, np.array([expected, [0, 0]], dtype))
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
        "layer 1 must be a Dense or Conv2D",
    ),
    "no latent model": (
        lambda: rate_view(free)(Sequential((Dense(SQUARE), Dense(SQUARE))), 0),
        "a model of latent_model",
    ),
    "nothing": (lambda: quantized_model(Sequential(())), "a model of latent_model"),
    "steps alone": (lambda: quantized_model(Sequential((Dense(SQUARE),))), "of latent_model"),
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


# The price ----------------------------------------------------------------------------------------


def price_of_being_there(units):
    """The documented c for every weight, by loops."""
    matrix = units.reshape(-1, units.shape[-1])
    n, m = matrix.shape
    there = [[abs(u) > 0.5 for u in row] for row in matrix.tolist()]
    whole = (sum(map(sum, there)) + 1) / (n * m + 2)
    rows = [(sum(row) + 4 * whole) / (m + 4) for row in there]
    columns = [(sum(column) + 4 * whole) / (n + 4) for column in zip(*there)]
    chances = [[min(r * c / whole, 0.5) for c in columns] for r in rows]
    return np.array([[math.log2((1 - p) / p) + 2 for p in row] for row in chances]).reshape(
        units.shape
    )


def bits_of(u, c):
    """The documented estimate of what a weight of u steps takes."""
    u = abs(u)
    return c * math.log1p(min(u, 1.5) / 0.3) / math.log1p(1 / 0.3) + 1.2 * math.log2(max(u, 1.0))


def law_slopes_of_the_estimate(slopes_of, units):
    """Central differences of the estimate, c held, away from its kinks at 0, 1 and 1.5 steps.

    Its third derivative is at most 2 c / log(1 + 1 / 0.3) / 0.3^3 < 51 c up to 1.5 steps, and
    2.4 / log(2) < 4 beyond 1; its value, below 3 c + 1.2 log2(8), takes fewer than 32 roundings.
    """
    h = 2.0**-15
    slopes, prices = slopes_of(units), price_of_being_there(units)
    assert (slopes.shape, slopes.dtype) == (units.shape, units.dtype)
    for index in np.ndindex(units.shape):
        u, c = float(units[index]), float(prices[index])
        if u == 0.0:
            assert slopes[index] == 0.0
            continue
        difference = (bits_of(u + h, c) - bits_of(u - h, c)) / (2 * h)
        slack = h * h / 6 * (51 * c + 4) + 32 * U * (3 * c + 4) / h
        assert abs(slopes[index] - difference) <= slack


def law_slopes_of_biases(slopes_of, units):
    """The same for 2 log2(1 + |u|), of third derivative below 4 / log(2) < 6 and value below 8."""
    h = 2.0**-15
    slopes = slopes_of(units)
    for u, slope in zip(units.tolist(), slopes.tolist()):
        ends = [2 * math.log2(1 + abs(u + move)) for move in (h, -h)]
        allowed = h * h + 32 * U * 8 / h
        assert abs(slope - (ends[0] - ends[1]) / (2 * h)) <= allowed if u else slope == 0.0


def law_odd(slopes_of, units):
    """The slope of -u is minus that of u: a weight that grows costs more, whichever its sign."""
    np.testing.assert_array_equal(slopes_of(-units), -slopes_of(units))
    assert (slopes_of(units) * units >= 0).all()


# Eighths of a step up to 4, without the kinks.
UNITS = st.integers(-32, 32).filter(lambda k: abs(k) not in (8, 12)).map(lambda k: k / 8)


@given(
    st.sampled_from([(1, 1), (3, 4), (5, 2), (2, 1, 2, 3)]).flatmap(
        lambda shape: arrays(float, shape, elements=UNITS)
    )
)
def test_slopes_of_the_estimate(units):
    law_slopes_of_the_estimate(weight_slopes, units)
    law_odd(weight_slopes, units)


@given(arrays(float, st.integers(0, 5), elements=UNITS))
def test_slopes_of_biases(units):
    law_slopes_of_biases(bias_slopes, units)
    law_odd(bias_slopes, units)


def test_slopes_have_the_dtype_of_the_weights():
    units = np.array([[0.0, 2.0, -0.25], [0.75, 0.0, 1.25]])
    exact = weight_slopes(units)
    for dtype in (np.float16, np.float32):
        slopes = weight_slopes(units.astype(dtype))
        assert slopes.dtype == bias_slopes(units.astype(dtype)).dtype == dtype
        # p, of three roundings, is below 1/2 or cut there, where log2(1/p - 1) has a slope of
        # 4 / log(2) < 6 over p at most; some ten more roundings of values below 16 follow.
        assert np.abs(slopes - exact).max() <= (6 * 3 + 10 * 16) * np.finfo(dtype).eps


def test_a_lone_weight_costs_more():
    units = np.zeros((20, 10))
    units[:3] = 1.0
    units[7, 4] = 1.0
    slopes = weight_slopes(units + 0.125)
    assert slopes[7, 4] > slopes[0, 4]  # alone in its row
    assert slopes[10, 4] < slopes[10, 5]  # in the column that has one more
    # Steps from 1.5 on pay for their length alone.
    np.testing.assert_array_equal(weight_slopes(np.full((2, 2), 2.0)), 1.2 / math.log(2) / 2)


# Dead units ---------------------------------------------------------------------------------------

# In steps: gone for good, rounded to zero but not gone, and there.
LIVES = st.sampled_from([0.0, 0.0, 0.0, 0.25, -0.25, 0.4375, 1.0, -1.0, 2.0])
BIASES = st.sampled_from([0.0, 0.0, 1.0, -2.0, 5.0]).map(lambda k: k * BIAS_STEP)

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
def dying(draw, name):
    """A latent model with many dead weights, whose every sum is exact."""
    layers = []
    for part in NETWORKS[name][1]:
        if not isinstance(part, tuple):
            layers.append(part)
            continue
        shape, options = part if isinstance(part[0], tuple) else (part, {})
        weight = draw(arrays(float, shape, elements=LIVES, fill=st.just(0.0)))
        bias = draw(st.none() | arrays(float, shape[-1], elements=BIASES))
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


# Wrong implementations that the laws must catch -------------------------------------------------


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


def _patched(name, value, function=without_dead_units):
    """The function with something inside it exchanged."""

    def wrong(*arguments):
        with mock.patch.object(rate, name, value):
            return function(*arguments)

    return wrong


def _constants_lost(state):
    left = without_dead_units(state)
    bias = state.latent.layers[-2].bias
    layers = [*left.latent.layers[:-2], Dense(left.latent.layers[-2].weight, bias)]
    return left._replace(latent=Sequential((*layers, left.latent.layers[-1])))


def _constants_before_the_activation(network, units, i, following):
    return np.rint(network.layers[i].bias / BIAS_STEP) * BIAS_STEP


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
MATRIX = np.array([[1.25, 0.25, 0.0], [2.25, 0.75, 0.0], [-1.25, 0.0, 0.125], [0.625, 3.0, 0.0]])
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
    "one price for all": (
        lambda wrong: law_slopes_of_the_estimate(wrong, MATRIX),
        lambda units: weight_slopes(units.reshape(-1, 1)).reshape(units.shape),
    ),
    "rows and columns that count at once": (
        lambda wrong: law_slopes_of_the_estimate(wrong, MATRIX),
        _patched("PRIOR", 1e-9, weight_slopes),
    ),
    "magnitudes for nothing": (
        lambda wrong: law_slopes_of_the_estimate(wrong, MATRIX),
        _patched("MAGNITUDE_BITS", 1.0, weight_slopes),
    ),
    "no flat part": (
        lambda wrong: law_slopes_of_the_estimate(wrong, MATRIX),
        _patched("FLAT", 9.0, weight_slopes),
    ),
    "long numbers for nothing": (
        lambda wrong: law_slopes_of_the_estimate(wrong, MATRIX),
        _patched("GROWTH", 0.0, weight_slopes),
    ),
    "slopes without a sign": (
        lambda wrong: law_odd(wrong, MATRIX), lambda units: np.abs(weight_slopes(units)),
    ),
    "a slope at zero": (
        lambda wrong: law_slopes_of_biases(wrong, np.array([0.0, 1.25])),
        lambda units: np.where(units == 0, 2 / math.log(2), bias_slopes(units)),
    ),
    "half of the bits of a bias": (
        lambda wrong: law_slopes_of_biases(wrong, np.array([0.5, 1.25])),
        lambda units: bias_slopes(units) / 2,
    ),
    "constants lost": (lambda wrong: law_outputs_stay(wrong, DYING, POINTS), _constants_lost),
    "constants before their activation": (
        lambda wrong: law_outputs_stay(wrong, DYING, POINTS),
        _patched("_constants", _constants_before_the_activation),
    ),
    "units that live are removed": (
        lambda wrong: law_outputs_stay(wrong, LIVING, POINTS[:, :1]), _patched("DEAD", 1.5),
    ),
    "constants passed on into a border": (
        lambda wrong: law_outputs_stay(wrong, BORDERED, PICTURE),
        _patched("_spreads_evenly", lambda *arguments: True),
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
