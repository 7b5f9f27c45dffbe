"""From float models to integer ones: the codes of an int64 oracle, and close to the float model."""

from __future__ import annotations

import dataclasses
import os
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from integer_oracles import (
    BORDERED,
    PICTURE,
    floats,
    forward,
    int8s,
    law_model,
    run,
    slow_pooling,
)

import minicompress.integer.layers as integer_layers
import minicompress.integer.model as integer_model
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.datasets import load_digits, load_mnist
from minicompress.errors import CompressionError
from minicompress.integer.conversion import to_integer
from minicompress.integer.layers import IntegerConv2D, IntegerDense
from minicompress.integer.requantization import quantize_multiplier
from minicompress.integer.stateless import IntegerAvgPool2D, IntegerFlatten
from minicompress.nn.architectures import digits_cnn, lenet5
from minicompress.nn.composition import Sequential
from minicompress.nn.convolution import conv2d, dense
from minicompress.nn.layers import Conv2D, Dense, plain_layers
from minicompress.nn.optimizers import adam
from minicompress.nn.pointwise import Dropout, ReLU, Softmax
from minicompress.nn.stateless import (
    AvgPool2D,
    Flatten,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
)
from minicompress.nn.training import fit
from minicompress.qparams import choose_qparams
from minicompress.representation import Clustered, LowRank, Quantized, Sparse, decode
from minicompress.testing.checks import check_pure

F = np.float32
ONE = np.ones(2)


# ---- whole networks


def network(kind, data):
    """A tiny float network for (N, 4, 5, 2), with weights drawn entry by entry."""
    kernel, bias = data.draw(floats((3, 2, 2, 4))), data.draw(floats(4))
    one, wide = data.draw(floats((1, 1, 4, 3))), data.draw(floats((20 * 4, 3)))
    layers = {
        "same": (Conv2D(kernel, bias, padding="same"), ReLU(), Flatten(), Dense(wide)),
        "strided": (Conv2D(kernel, padding=1, stride=2, dilation=(1, 2)), Conv2D(one), ReLU()),
        "groups": (Conv2D(kernel[:, :, :1], bias, groups=2), MaxPool2D(2), ReLU(), Conv2D(one)),
        "average": (Conv2D(kernel, bias), ReLU(), AvgPool2D((2, 3), 1), Conv2D(one)),
        "global": (Conv2D(kernel, bias), Dropout(0.5), ReLU(), GlobalAvgPool2D(), Dense(one[0, 0])),
        "pool first": (ReLU(), AvgPool2D(2), Conv2D(kernel[:1, :2], bias), Flatten(), Softmax()),
    }
    return Sequential(layers[kind])


@pytest.mark.parametrize("kind", ["same", "strided", "groups", "average", "global", "pool first"])
@given(data=st.data())
def test_a_drawn_network_is_its_oracle(kind, data):
    bits = data.draw(st.sampled_from([(8, 8), (4, 8), (2, 3)]))
    model = network(kind, data)
    calibration = data.draw(floats((3, 4, 5, 2)))
    made = to_integer(model, calibration, num_bits=bits[0], activation_bits=bits[1])
    law_model(run, made, data.draw(int8s((2, 4, 5, 2))))
    top = 2 ** (bits[0] - 1) - 1
    low, high = -(2 ** (bits[1] - 1)), 2 ** (bits[1] - 1) - 1
    for layer in made.layers:
        if isinstance(layer, IntegerConv2D | IntegerDense):
            assert np.abs(layer.weight.astype(int)).max(initial=0) <= top
            assert low <= layer.low <= layer.output_zero_point <= layer.high == high
        elif isinstance(layer, IntegerAvgPool2D):
            assert low <= layer.low <= layer.output_zero_point <= layer.high == high
    codes = made.quantize_input(calibration)
    assert low <= codes.min()
    assert codes.max() <= high


# ---- zero padding (the code of 0.0, not the code 0)


def test_an_image_of_zeros_has_no_border():
    """Every window sees zeros only, inside the image and beyond it: the bias everywhere."""
    x = np.linspace(1, 3, 32, dtype=F).reshape(2, 4, 4, 1)
    x[1] = 0  # the range is [0, 3], so the code of 0.0 is the lowest one
    layer = Conv2D(np.ones((3, 3, 1, 2), F), np.array([1.0, -2.0], F), padding="same")
    model = to_integer(Sequential((layer,)), x)
    assert model.layers[0].input_zero_point == -128
    y = model(np.zeros((1, 4, 4, 1), F))
    assert (y == y[:, :1, :1]).all()
    np.testing.assert_allclose(y[0, 0, 0], [1, -2], atol=float(model.output_qparams[0].scale))


def test_a_mean_over_zeros_and_padding_is_zero():
    x = np.linspace(1, 3, 32, dtype=F).reshape(2, 4, 4, 1)
    pool = AvgPool2D(3, 1, padding=1, count_include_pad=True)
    model = to_integer(Sequential((pool,)), x)
    assert not model(np.zeros((1, 4, 4, 1), F)).any()
    # Half a step of the input for the codes of x, and half a step of the output for the mean.
    steps = model.input_qparams.scale + model.output_qparams[0].scale
    assert np.abs(model(x) - pool.forward(x)).max() <= 0.501 * steps


# ---- averages


def as_convolution(pool, channels, window):
    """The same average as a depthwise convolution, whose weights keep code and scale."""
    shape, each = (*window, 1, channels), np.array(1 / (window[0] * window[1]))
    weight = Quantized(np.ones(shape, int), each, np.array(0), 8, True, None, None, each.dtype)
    if isinstance(pool, GlobalAvgPool2D):
        return Conv2D(weight, groups=channels), Flatten()
    stride = window if pool.stride is None else pool.stride
    return (Conv2D(weight, stride=stride, padding=pool.padding, groups=channels),)


def law_average_is_a_convolution(layers, others, x, codes, **options):
    """The same codes and the same meaning of the last of them, bit for bit.

    Both averages of `x` are exact in float64, so both models see the same ranges.
    """
    np.testing.assert_array_equal(Sequential(layers)(x), Sequential(others)(x))
    made, right = (to_integer(Sequential(part), x, **options) for part in (layers, others))
    np.testing.assert_array_equal(made.run(codes), right.run(codes))
    assert made.output_qparams[0].scale == right.output_qparams[0].scale
    assert made.output_qparams[0].zero_point == right.output_qparams[0].zero_point


@given(st.data())
def test_an_average_is_its_convolution(data):
    """Windows of 1, 2, 4 or 8 pixels: their means are exact, as are products with 1 / n."""
    window = data.draw(st.sampled_from([(1, 1), (1, 2), (2, 2), (4, 1), (2, 4)]))
    pads = tuple((data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1)))
                 for n in window)  # fmt: skip
    pool = AvgPool2D(window, data.draw(st.integers(1, 2)), pads, count_include_pad=True)
    x = data.draw(floats((2, 4, 4, 2))).astype(np.float64)
    if data.draw(st.booleans()):
        pool, window = GlobalAvgPool2D(), (4, 4)
    before = (ReLU(),) if data.draw(st.booleans()) else ()
    after = (ReLU(),) if data.draw(st.booleans()) else ()
    layers = (*before, pool, *after)
    others = (*before, *as_convolution(pool, 2, window), *after)
    bits = data.draw(st.integers(2, 8))
    codes = data.draw(int8s((2, 4, 4, 2)))
    if isinstance(pool, GlobalAvgPool2D) and after:  # one ReLU clamps, the other is a layer
        others = (*before, others[len(before)], ReLU(), Flatten())
    law_average_is_a_convolution(layers, others, x, codes, activation_bits=bits)


def law_average(impl, pool, x, codes, bits=8):
    """A code is within 1/2 + 2**-22 of the real mean in steps of the output, clamped."""
    model = to_integer(Sequential((pool,)), x, activation_bits=bits)
    made, source, target = impl(model, codes), model.input_qparams, model.output_qparams[0]
    (w0, w1), pads, ratio = pool.window, pool.padding, Fraction(float(source.scale))
    ratio /= Fraction(float(target.scale))
    stride = pool.stride or (w0, w1)
    for i, j, k, c in np.ndindex(made.shape):
        top, left = j * stride[0] - pads[0][0], k * stride[1] - pads[1][0]
        seen = [
            int(codes[i, a, b, c]) - int(source.zero_point)
            for a in range(max(top, 0), min(top + w0, codes.shape[1]))
            for b in range(max(left, 0), min(left + w1, codes.shape[2]))
        ]
        count = w0 * w1 if pool.count_include_pad else len(seen)
        real = Fraction(sum(seen), count) * ratio + int(target.zero_point)
        clamped = min(max(real, target.qmin), target.qmax)
        assert abs(int(made[i, j, k, c]) - clamped) <= Fraction(1, 2) + Fraction(1, 2**22)


@given(st.data())
def test_an_average_is_the_nearest_code(data):
    window = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)))
    pads = tuple((data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1)))
                 for n in window)  # fmt: skip
    pool = AvgPool2D(window, (1, 2), pads, count_include_pad=data.draw(st.booleans()))
    x, bits = data.draw(floats((2, 3, 4, 1))), data.draw(st.integers(2, 8))
    law_average(run, pool, x, data.draw(int8s((2, 3, 4, 1))), bits)


def changed_pool(**change):
    def impl(model, codes):
        (layer,) = model.layers
        new = {name: f(layer, model) for name, f in change.items()}
        return dataclasses.replace(layer, **new).forward(codes)

    return impl


def input_scale_kept(model, codes):
    (layer,), q = model.layers, model.input_qparams
    m, s = quantize_multiplier(1 / np.arange(1, 10))
    kept = dataclasses.replace(layer, multiplier=m, shift=s, output_zero_point=int(q.zero_point))
    return kept.forward(codes)


def rounded_down(total, layer, o):
    n = total * int(layer.multiplier[o]) >> int(layer.shift[o])
    return min(max(n + layer.output_zero_point, layer.low), layer.high)


def truncated(total, layer, o):
    n = int(Fraction(total * int(layer.multiplier[o]), 2 ** int(layer.shift[o])))
    return min(max(n + layer.output_zero_point, layer.low), layer.high)


WRONG_AVERAGES = {
    "keeps its input's scale": input_scale_kept,
    "whole windows at the borders": changed_pool(
        multiplier=lambda a, _: a.multiplier[-1:], shift=lambda a, _: a.shift[-1:]
    ),
    "one pixel too few": changed_pool(
        multiplier=lambda a, _: np.roll(a.multiplier, 1), shift=lambda a, _: np.roll(a.shift, 1)
    ),
    "rounded down": lambda model, codes: slow_pooling(model.layers[0], codes, rounded_down),
    "truncated": lambda model, codes: slow_pooling(model.layers[0], codes, truncated),
    "padding is the code 0": changed_pool(input_zero_point=lambda a, _: 0),
    "the output's zero point forgotten": changed_pool(output_zero_point=lambda a, _: 0),
    "unclamped": changed_pool(low=lambda a, _: -128, high=lambda a, _: 127),
}


@pytest.mark.parametrize("name", WRONG_AVERAGES)
def test_a_wrong_average_is_caught(name):
    pool = AvgPool2D((3, 3), (1, 1), 1)
    x = np.random.default_rng(8).standard_normal((3, 5, 6, 2)) + 2
    codes = np.random.default_rng(9).integers(-128, 128, (2, 5, 6, 2)).astype(np.int8)
    law_average(run, pool, x, codes, 7)
    with pytest.raises(AssertionError):
        law_average(WRONG_AVERAGES[name], pool, x, codes, 7)


# ---- pieces


@pytest.mark.parametrize("tile", [1, 1 << 10, 1 << 24])
def test_pieces_do_not_matter(monkeypatch, tile):
    """However the batch is cut up, and whoever is in it, the codes are the same."""
    x, _ = load_digits("validation")
    model = to_integer(digits_cnn(np.random.default_rng(0)), x[:50])
    codes = model.quantize_input(x[:7])
    right = model.run(codes)
    monkeypatch.setattr(integer_layers, "TILE_BYTES", tile)
    monkeypatch.setattr(integer_model, "CHUNK_BYTES", tile)
    np.testing.assert_array_equal(model.run(codes), right)
    np.testing.assert_array_equal(
        np.concatenate([model.run(codes[i : i + 1]) for i in range(7)]), right
    )


# ---- simulated quantization


def law_simulated(impl, layer, codes):
    """A code is within 1/2 + 2**-22 of what real numbers give at the same scales, clamped."""
    input_scale, weight_scale, output_scale = layer.scales
    made = impl(layer, codes)
    x = codes.astype(object) - layer.input_zero_point
    totals = x @ layer.weight.astype(object) + layer.bias.astype(object)
    for i, o in np.ndindex(made.shape):
        step = Fraction(input_scale) * Fraction(float(weight_scale[o]))
        real = totals[i, o] * step / Fraction(output_scale) + layer.output_zero_point
        clamped = min(max(real, layer.low), layer.high)
        assert abs(int(made[i, o]) - clamped) <= Fraction(1, 2) + Fraction(1, 2**22)


@given(st.data())
def test_agreement_with_real_arithmetic(data):
    weight, bias = data.draw(floats((3, 2), -100, 100)), data.draw(floats(2, -100, 100))
    layers = (Dense(weight, bias), ReLU()) if data.draw(st.booleans()) else (Dense(weight, bias),)
    model = to_integer(Sequential(layers), data.draw(floats((3, 3), -100, 100)))
    law_simulated(forward, model.layers[0], data.draw(int8s((4, 3))))


@pytest.mark.parametrize(
    "change",
    [
        {"shift": np.array([1, 0], np.int32)},
        {"input_zero_point": 1},
        {"output_zero_point": 1},
        {"bias": np.array([0, 200], np.int32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_planted_disagreement_is_caught(change):
    x = np.linspace(-1, 1, 30).reshape(10, 3)
    layer = to_integer(Sequential((Dense(np.eye(3, 2) - 0.3),)), x).layers[0]
    codes = np.arange(-128, 127, 3, dtype=np.int8).reshape(-1, 1).repeat(3, 1)
    law_simulated(forward, layer, codes)
    name, value = next(iter(change.items()))
    wrong = dataclasses.replace(layer, **{name: getattr(layer, name) + value})
    with pytest.raises(AssertionError):
        law_simulated(lambda _, codes: wrong.forward(codes), layer, codes)


def simulated(part, layer, codes):
    """The layer in float64 on decoded codes, weights and bias, then rounded to codes."""
    source, weight, target = layer.scales
    x = (codes.astype(np.float64) - layer.input_zero_point) * source
    w, b = layer.weight * weight, layer.bias * (source * weight)
    if isinstance(part, Conv2D):
        y = conv2d(x, w, b, stride=part.stride, padding=part.padding)
    else:
        y = dense(x, w, b)
    return np.clip(np.rint(y / target) + layer.output_zero_point, layer.low, layer.high)


# ---- what is kept of a representation


def same_integers(a, b):
    """Two integer models are equal in every field but the real scales."""
    assert len(a.layers) == len(b.layers)
    for one, other in zip(a.layers, b.layers, strict=True):
        assert type(one) is type(other)
        for field in dataclasses.fields(one):
            if field.name != "scales":
                np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


X = np.random.default_rng(2).standard_normal((40, 6, 6, 3)).astype(F)
KERNEL = np.random.default_rng(3).standard_normal((3, 3, 3, 4)).astype(F)
MATRIX = np.random.default_rng(4).standard_normal((4, 5)).astype(F)


def with_weights(kernel, matrix, bias=None):
    return Sequential((Conv2D(kernel, bias), ReLU(), GlobalAvgPool2D(), Dense(matrix)))


@pytest.mark.parametrize("bits", [8, 5, 2])
def test_a_quantized_weight_is_what_a_plain_one_becomes(bits):
    def rep(weight):
        return quantize(weight, num_bits=bits, axis=-1, narrow_range=True).rep

    plain = to_integer(with_weights(KERNEL, MATRIX), X, num_bits=bits)
    packed = to_integer(with_weights(rep(KERNEL), rep(MATRIX)), X)
    for one, other in zip(plain.layers, packed.layers, strict=True):
        if isinstance(one, IntegerConv2D | IntegerDense):
            np.testing.assert_array_equal(one.weight, other.weight)
            np.testing.assert_array_equal(one.scales.weight, other.scales.weight)
            assert other.num_bits == bits


@pytest.mark.parametrize(
    "options",
    [
        {"axis": -1},
        {"num_bits": 3},
        {"num_bits": 4, "axis": 3, "method": "mse"},
        {"num_bits": 8, "signed": False},
        {"num_bits": 6, "power_of_two": True},
    ],
    ids=str,
)
def test_symmetric_codes_and_scales_are_kept(options):
    rep = quantize(KERNEL, **options).rep
    layer = to_integer(with_weights(rep, MATRIX), X).layers[0]
    np.testing.assert_array_equal(layer.weight, rep.codes.astype(int) - rep.zero_point)
    np.testing.assert_array_equal(layer.scales.weight, np.broadcast_to(rep.scale, 4))
    assert layer.num_bits == rep.num_bits


@pytest.mark.parametrize(
    "options",
    [
        {"symmetric": False},
        {"axis": 0},
        {"axis": 2, "block_size": 2},
        {"axis": 3, "block_size": 2},
        {"num_bits": 12, "axis": -1},
    ],
    ids=str,
)
def test_other_codes_are_decoded_first(options):
    rep = quantize(KERNEL, **options).rep
    same_integers(
        to_integer(with_weights(rep, MATRIX), X),
        to_integer(with_weights(decode(rep), MATRIX), X),
    )


def test_a_pruned_and_quantized_weight_keeps_its_zeros():
    sparse = prune_magnitude(KERNEL, amount=0.6).rep
    for rep in (sparse, quantize(decode(sparse), axis=-1).rep):
        layer = to_integer(with_weights(rep, MATRIX), X).layers[0]
        assert not layer.weight[decode(sparse) == 0].any()
    codes = Sparse((2, 3), np.array([1, 4]), np.array([5, -7], np.int8))
    rep = Quantized(codes, F(0.5), np.array(0), 8, True, None, None, np.dtype(F))
    layer = to_integer(Sequential((Dense(rep),)), np.eye(2, dtype=F)).layers[0]
    assert layer.weight.tolist() == [[0, 5, 0], [0, -7, 0]]


def test_clusters_are_decoded():
    rep = Clustered(np.array([[0, 1], [2, 0]]), np.array([-1.0, 0.5, 1.0]))
    x = np.eye(2)
    same_integers(
        to_integer(Sequential((Dense(rep),)), x), to_integer(Sequential((Dense(decode(rep)),)), x)
    )


PRODUCTS = {
    "hwir,ro->hwio": ((3, 3, 3, 2), (2, 4)),
    "hir,rwo->hwio": ((3, 3, 2), (2, 3, 4)),
    "ia,hwab,bo->hwio": ((3, 2), (3, 3, 2, 2), (2, 4)),
}


@pytest.mark.parametrize("subscripts", PRODUCTS)
@pytest.mark.parametrize("quantized", [False, True])
def test_a_low_rank_weight_is_a_chain_of_layers(subscripts, quantized):
    rng = np.random.default_rng(5)
    factors = tuple(rng.standard_normal(shape).astype(F) for shape in PRODUCTS[subscripts])
    if quantized:
        factors = tuple(quantize(f, num_bits=6).rep for f in factors)
    layer = Conv2D(LowRank(factors, subscripts), np.ones(4, F), padding=1)
    model = to_integer(Sequential((layer, ReLU())), X)
    assert len(model.layers) == len(factors)
    chain = to_integer(Sequential((*plain_layers(layer), ReLU())), X)
    if quantized:
        for made, factor in zip(model.layers, factors, strict=True):
            assert sorted(made.weight.ravel()) == sorted(factor.codes.ravel())
            assert made.num_bits == 6
            assert (made.scales.weight == factor.scale).all()
    else:
        same_integers(model, chain)
    law_model(run, model, model.quantize_input(X[:3]))
    error = np.abs(model(X) - Sequential((layer, ReLU()))(X)).max()
    assert error < 0.05 * np.abs(Sequential((layer, ReLU()))(X)).max()


# ---- biases, dead channels, dead layers, overflow


@pytest.mark.parametrize("packed", [False, True])
def test_a_pruned_output_keeps_its_bias(packed):
    """Its weights are all 0, so their smallest scale would take the bias far beyond int32."""
    kernel = KERNEL.copy()
    kernel[..., 1] = 0
    bias = np.array([0.5, -30.0, 0.0, 1.0], F)
    rep = quantize(kernel, axis=-1).rep if packed else kernel
    model = Sequential((Conv2D(rep, bias),))
    made = to_integer(model, X)
    assert made.layers[0].bias[1] == -(2**30)
    y, step = made(X), float(made.output_qparams[0].scale)
    assert (np.abs(y[..., 1] + 30) <= step).all()


def test_a_weight_far_smaller_than_its_bias():
    model = Sequential((Dense(np.array([[1e-30, 1.0]]), np.array([5.0, 1.0])),))
    made = to_integer(model, np.array([[1.0], [-1.0]]))
    np.testing.assert_allclose(made(np.array([[1.0]])), [[5.0, 2.0]], atol=6 / 255)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dead_layers_and_dead_inputs(dtype):
    """Ranges of nothing but 0.0 have scales all the same, and biases come through."""
    off = Dense(np.array([[1.0], [1.0]], dtype), np.array([-50.0], dtype))
    on = Dense(np.array([[3.0, -1.0]], dtype), np.array([1.5, -2.0], dtype))
    model = Sequential((off, ReLU(), on))
    for x in (np.ones((2, 2), dtype), np.zeros((2, 2), dtype)):
        y = to_integer(model, x)(x)
        assert y.dtype == dtype
        np.testing.assert_allclose(y, [[1.5, -2.0]] * 2, atol=0.05)


def test_what_could_overflow_is_refused():
    k = 2**31 // (127 * 255) + 1
    x = np.ones((1, k), F)
    with pytest.raises(CompressionError, match=r"layer 1 \(Dense\): the accumulators must fit int"):
        to_integer(Sequential((ReLU(), Dense(np.ones((k, 1), F)))), x)
    made = to_integer(Sequential((Dense(np.ones((k - 1, 1), F)),)), x[:, 1:])
    assert made.run(np.full((1, k - 1), 127, np.int8)).tolist() == [[127]]


def test_the_last_bias_that_fits():
    largest = np.abs(BORDERED.weight.astype(int)).sum((0, 1, 2)) * (128 + 17)
    bias = 2**31 - 1 - largest
    for sign in (1, -1):
        dataclasses.replace(BORDERED, bias=(sign * bias).astype(np.int32))
        with pytest.raises(CompressionError, match="the accumulators must fit int32"):
            dataclasses.replace(BORDERED, bias=(sign * np.add(bias, [0, 1])).astype(np.int32))


def test_an_output_finer_than_its_accumulators():
    """Its scale is raised to their step, and the range still starts where it did."""
    x = np.array([[1.0, 1.0], [1.0, 0.999]])
    model = to_integer(Sequential((Dense(np.array([[1.0], [-1.0]])),)), x)
    layer = model.layers[0]
    step = layer.scales.input * layer.scales.weight
    assert layer.scales.output == float(model.output_qparams[0].scale) == step
    assert layer.output_zero_point == int(model.output_qparams[0].zero_point) == -128
    np.testing.assert_array_equal(layer.multiplier * 2.0**-layer.shift, 1.0)
    law_simulated(forward, layer, PICTURE.reshape(-1, 2))


def test_a_bias_too_large_for_a_scale_that_is_given():
    rep = Quantized(
        np.array([[1]]), np.array(1e-12), np.array(0), 8, True, None, None, np.dtype(np.float64)
    )
    with pytest.raises(CompressionError, match=r"layer 0 \(Dense\): bias must fit int32"):
        to_integer(Sequential((Dense(rep, np.array([7.0])),)), np.ones((1, 1)))


@given(st.data())
def test_biases_are_rounded_to_the_nearest_step(data):
    weight, bias = data.draw(floats((2, 3))), data.draw(floats(3))
    layer = to_integer(Sequential((Dense(weight, bias),)), data.draw(floats((2, 2)))).layers[0]
    for code, b, scale in zip(layer.bias, bias, layer.scales.weight, strict=True):
        step = Fraction(layer.scales.input) * Fraction(float(scale))
        # The step and the quotient are rounded once each: two parts in 2**53 of at most 2**30.
        assert abs(int(code) * step - Fraction(float(b))) <= step * (Fraction(1, 2) + 2**-22)


# ---- ranges


def test_ranges_are_those_of_choose_qparams():
    x = np.random.default_rng(6).standard_normal((50, 8)).astype(F) ** 3
    model = Sequential((Dense(np.eye(8, dtype=F)),))
    for options in ({"method": "minmax"}, {"method": "percentile", "percentile": 90.0},
                    {"method": "mse"}):  # fmt: skip
        right = choose_qparams(x, symmetric=False, **options)
        made = to_integer(model, x, **options)
        for q in (made.input_qparams, made.output_qparams[0]):  # y = x exactly
            assert (q.scale, q.zero_point) == (right.scale, right.zero_point)
    few = to_integer(model, x, activation_bits=5).input_qparams
    assert (few.qmin, few.qmax) == (-16, 15)


def test_many_values_are_looked_at_through_their_quantiles():
    x = np.random.default_rng(7).standard_normal((400, 600)).astype(F)
    model = Sequential((Flatten(),))
    looked_at = np.sort(x, axis=None)[np.linspace(0, x.size - 1, 2**17).astype(int)]
    for percentile in (100.0, 99.0):
        options = {"method": "percentile", "percentile": percentile}
        made = to_integer(model, x, **options).input_qparams
        assert made.scale == choose_qparams(looked_at, symmetric=False, **options).scale
        # 131,072 of 240,000 values: the fraction kept is off by less than 1e-5.
        right = choose_qparams(x, symmetric=False, **options)
        np.testing.assert_allclose(made.scale, right.scale, rtol=0 if percentile == 100 else 1e-3)


def test_percentile_and_mse_clip_outliers():
    x = np.concatenate([np.linspace(-1, 1, 999), [100.0]])[:, None]
    model = Sequential((Dense(np.ones((1, 1))),))
    error = {
        method: np.abs(to_integer(model, x, method=method, percentile=99.5)(x) - x)
        for method in ("minmax", "percentile", "mse")
    }
    assert error["percentile"][:-1].mean() < error["minmax"][:-1].mean() / 20
    assert np.square(error["mse"]).sum() <= np.square(error["minmax"]).sum()


# ---- the model as a value, and what is refused


def test_edges():
    model = Sequential((Dense(np.eye(3, dtype=F)), Dropout(0.5), Softmax(), Dropout(0.1)))
    x = np.linspace(-1, 1, 12, dtype=F).reshape(4, 3)
    made = to_integer(model, x)
    assert len(made.layers) == 1  # the logits are left
    codes = made.quantize_input(x)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(made.quantize_input(np.full((1, 3), np.inf, F)), [[127] * 3])
    assert made.run(codes[:0]).shape == (0, 3)
    assert made(x[:0]).dtype == np.float32
    np.testing.assert_array_equal(made.run(np.asfortranarray(codes)[::-1]), made.run(codes)[::-1])
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(again.run(codes), made.run(codes))
    assert not again.layers[0].weight.flags.writeable
    assert not again.layers[0].scales.weight.flags.writeable
    check_pure(made, x)
    check_pure(made.run, codes)
    check_pure(lambda calibration: to_integer(model, calibration).layers[0].weight, x)
    nothing = to_integer(Sequential(()), x)
    np.testing.assert_array_equal(nothing.run(codes), codes)


D = Dense(np.eye(2))
GOOD = np.ones((1, 2))


@pytest.mark.parametrize(
    ("layers", "x", "options", "message"),
    [
        (
            (LocalResponseNorm(1),),
            np.ones((1, 1, 1, 1)),
            {},
            r"layer 0 .* has no integer form",
        ),
        ((D, Softmax(), D), GOOD, {}, r"layer 1 \(Softmax\): softmax has an integer form at the"),
        ((D,), np.ones((1, 3)), {}, r"layer 0 \(Dense\): weight must have 3 rows"),
        ((D,), GOOD[:0], {}, "calibration must hold inputs"),
        ((D,), np.float64(1), {}, "calibration must hold inputs"),
        ((D,), GOOD * np.nan, {}, "calibration must be finite"),
        ((D,), np.ones((1, 2), int), {}, "calibration must be of dtype"),
        ((D, D), GOOD, {"num_bits": 9}, "num_bits must be an int from 2 to 8"),
        ((D, D), GOOD, {"num_bits": 1}, "num_bits must be an int from 2 to 8"),
        ((D, D), GOOD, {"activation_bits": 16}, "activation_bits must be"),
        ((D, D), GOOD, {"method": "max"}, "method must be one of"),
        ((D, D), GOOD, {"percentile": 0.0}, "percentile must be above 0"),
    ],
)
def test_bad_arguments_are_refused(layers, x, options, message):
    with pytest.raises(CompressionError, match=message):
        to_integer(Sequential(layers), x, **options)


def test_what_is_no_model_is_refused():
    with pytest.raises(CompressionError, match="model must be a Network"):
        to_integer([D], GOOD)
    huge = Sequential((Dense(np.full((2, 1), 1e30, F)), Dense(np.full((1, 1), 1e30, F))))
    with np.errstate(over="ignore"), pytest.raises(CompressionError, match=r"layer 1 .*finite"):
        to_integer(huge, np.ones((1, 2), F))


def test_bad_inputs_are_refused():
    made = to_integer(Sequential((D,)), GOOD)
    for codes in (np.zeros((1, 2)), np.zeros((1, 2), np.int32), np.zeros((1, 3), np.int8),
                  np.int8(1)):  # fmt: skip
        with pytest.raises(CompressionError, match="the input must be a batch of"):
            made.run(codes)
    with pytest.raises(CompressionError, match="x must not hold NaN"):
        made(np.full((1, 2), np.nan))
    with pytest.raises(CompressionError, match="dtype"):
        made(np.ones((1, 2), F))


# ---- data


def correct(logits, labels):
    return int((logits.argmax(1) == labels).sum())


@pytest.fixture(scope="module")
def digits_model():
    x, y = load_digits("train")
    rng = np.random.default_rng(0)
    model, _ = fit(digits_cnn(rng), x, y, optimizer=adam(3e-3), epochs=8, batch_size=64, rng=rng)
    return model


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_digits(digits_model, method):
    """Code for code the oracle; of 600 images at most one more is wrong: 0.17 points."""
    calibration, _ = load_digits("train")
    sets = [load_digits(split) for split in ("validation", "test")]
    x, y = (np.concatenate(part) for part in zip(*sets, strict=True))
    made = to_integer(digits_model, calibration[:300], method=method)
    codes = made.quantize_input(x)
    law_model(run, made, codes)
    right = correct(digits_model(x), y)
    assert right >= 580
    assert correct(made.run(codes), y) >= right - 1
    assert correct(made(x), y) == correct(made.run(codes), y)


def dyadic(layer):
    """Weights of a few bits behind the point: every sum of them is exact in float64."""
    fields = {
        name: decode(quantize(value.astype(np.float64), num_bits=8, power_of_two=True).rep)
        for name, value in layer.parameters().items()
    }
    return dataclasses.replace(layer, **fields)


@pytest.fixture(scope="module")
def averaging_digits():
    """A network with both averages, and the same one with convolutions for them."""
    x, y = load_digits("train")
    rng = np.random.default_rng(0)
    layers = (
        Conv2D(F(0.4) * rng.standard_normal((3, 3, 1, 8)).astype(F), np.zeros(8, F)),
        ReLU(),
        AvgPool2D(2, 1),
        Conv2D(F(0.2) * rng.standard_normal((2, 2, 8, 24)).astype(F), np.zeros(24, F)),
        ReLU(),
        GlobalAvgPool2D(),
        Dense(F(0.4) * rng.standard_normal((24, 10)).astype(F), np.zeros(10, F)),
    )
    model, _ = fit(Sequential(layers), x, y, optimizer=adam(2e-2), epochs=8, batch_size=64, rng=rng)
    layers = tuple(dyadic(layer) for layer in model.layers)
    small, whole = as_convolution(layers[2], 8, (2, 2)), as_convolution(layers[5], 24, (4, 4))
    others = (*layers[:2], *small, *layers[3:5], *whole, *layers[6:])
    return Sequential(layers), Sequential(others)


@pytest.mark.parametrize("num_bits", [8, 6, 4])
def test_an_average_costs_what_its_convolution_costs(averaging_digits, num_bits):
    """The windows hold 4 and 16 pixels, so all is exact: the same codes, the same accuracy."""
    calibration, (x, y) = load_digits("train")[0][:200], load_digits("test")
    made, other = (
        to_integer(model, calibration.astype(np.float64), activation_bits=num_bits)
        for model in averaging_digits
    )
    codes = made.quantize_input(x.astype(np.float64))
    np.testing.assert_array_equal(made.run(codes), other.run(codes))
    assert correct(made.run(codes), y) == correct(other.run(codes), y)


def test_agreement_with_simulated_quantization_layer_by_layer(digits_model):
    """On the same codes float64 at the same scales differs by at most 1, and nearly never."""
    x, _ = load_digits("test")
    made = to_integer(digits_model, load_digits("train")[0][:300])
    parts = [layer for layer in digits_model.layers if not isinstance(layer, ReLU)]
    codes, differ, total = made.quantize_input(x), 0, 0
    for part, layer in zip(parts, made.layers, strict=True):
        after = layer.forward(codes)
        if not isinstance(layer, IntegerFlatten):
            apart = np.abs(after - simulated(part, layer, codes))
            assert apart.max() <= 1
            differ, total = differ + np.count_nonzero(apart), total + apart.size
        codes = after
    assert differ < 1e-4 * total


MNIST = os.environ.get("MINICOMPRESS_MNIST")


@pytest.mark.skipif(not MNIST, reason="MINICOMPRESS_MNIST names no folder with MNIST's files")
def test_mnist():
    """All 10,000 test images through LeNet-5: the oracle's codes, and 0.2 points of accuracy."""
    x, y = load_mnist(MNIST, "train")
    rng = np.random.default_rng(0)
    model, _ = fit(lenet5(rng), x, y, optimizer=adam(1e-3), epochs=1, batch_size=64, rng=rng)
    made = to_integer(model, x[:500])
    x, y = load_mnist(MNIST, "test")
    codes = made.quantize_input(x)
    out = made.run(codes)
    for start in range(0, len(x), 500):
        part = slice(start, start + 500)
        law_model(lambda _, __, part=part: out[part], made, codes[part])
    assert correct(out, y) >= correct(model(x), y) - 20
