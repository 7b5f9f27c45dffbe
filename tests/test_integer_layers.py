"""Integer layers, code for code the slow oracles'; planted wrong ones are caught."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from integer_oracles import (
    BORDERED,
    CODE,
    PICTURE,
    averages,
    forward,
    int8s,
    int64_convolution,
    int64_layer,
    int64_requantize,
    law_codes,
    slow_pooling,
    slow_product,
)

from minicompress.errors import CompressionError
from minicompress.integer.conversion import to_integer
from minicompress.integer.layers import IntegerConv2D, IntegerDense, Scales
from minicompress.integer.stateless import IntegerAvgPool2D, IntegerMaxPool2D
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense
from minicompress.qparams import choose_qparams

F = np.float32


# ---- drawn layers


@st.composite
def affine_fields(draw, weight_shape):
    outputs = weight_shape[-1]

    def int32s(low, high):
        elements = st.integers(low, high)
        return draw(npst.arrays(np.int32, outputs, elements=elements, fill=st.nothing()))

    low, high = sorted((draw(CODE), draw(CODE)))
    return {
        "weight": draw(int8s(weight_shape)),
        "bias": int32s(-50_000, 50_000),
        "multiplier": int32s(2**30, 2**31 - 1),
        "shift": int32s(31, 42),
        "input_zero_point": draw(CODE),
        "output_zero_point": draw(CODE),
        "low": draw(st.sampled_from([-128, low])),
        "high": draw(st.sampled_from([127, high])),
        "num_bits": 8,
        "scales": Scales(1.0, np.ones(outputs), 1.0),
    }


PAIR = st.tuples(st.integers(1, 2), st.integers(1, 2))


@st.composite
def convolutions(draw):
    groups = draw(st.integers(1, 3))
    kh, kw, c, o = (draw(st.integers(1, top)) for top in (3, 3, 2, 2))
    layer = IntegerConv2D(
        **draw(affine_fields((kh, kw, c, o * groups))),
        stride=draw(PAIR),
        dilation=draw(PAIR),
        padding=draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 2))] * 2)),
        groups=groups,
    )
    n, h, w = draw(st.integers(0, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    assume((kh - 1) * layer.dilation[0] < h + sum(layer.padding[0]))
    assume((kw - 1) * layer.dilation[1] < w + sum(layer.padding[1]))
    return layer, draw(int8s((n, h, w, c * groups)))


@given(convolutions())
def test_a_convolution_of_codes(case):
    law_codes(forward, *case)


@given(st.data())
def test_a_product_of_codes(data):
    k, o, n = (data.draw(st.integers(low, 4)) for low in (0, 0, 0))
    layer = IntegerDense(**data.draw(affine_fields((k, o))))
    law_codes(forward, layer, data.draw(int8s((n, k))), slow_product)


@given(st.data(), st.sampled_from([IntegerMaxPool2D, IntegerAvgPool2D]))
def test_pooling_of_codes(data, kind):
    window, stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), data.draw(PAIR)
    padding = tuple(
        (data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1)))
        for size in window
    )
    layer = data.draw(
        st.builds(IntegerMaxPool2D, st.just(window), st.just(stride), st.just(padding))
        if kind is IntegerMaxPool2D
        else averages(window, stride, padding)
    )
    n, h, w, c = (data.draw(st.integers(low, 4)) for low in (0, 1, 1, 1))
    assume(window[0] <= h + sum(padding[0]) and window[1] <= w + sum(padding[1]))
    law_codes(forward, layer, data.draw(int8s((n, h, w, c))), slow_pooling)


# ---- planted wrong layers


def law_bordered(impl):
    law_codes(impl, BORDERED, PICTURE)


def with_fields(**change):
    return lambda layer, codes: int64_convolution(dataclasses.replace(layer, **change), codes)


def changed(scaled):
    def requant(sums, layer):
        m, s = layer.multiplier.astype(np.int64), layer.shift.astype(np.int64)
        codes = scaled(sums, m, s) + layer.output_zero_point
        return np.clip(codes, layer.low, layer.high).astype(np.int8)

    return lambda layer, codes: int64_convolution(layer, codes, requant=requant)


def half_away(sums, m, s):
    return np.sign(sums) * ((abs(sums) * m + (1 << (s - 1))) >> s)


def tied(layer):
    """Sums at odd multiples of half a step, of both signs."""
    weight = np.zeros((1, 1, 1, 2), np.int8)
    weight[...] = 1
    pixel = np.arange(-9, 10, dtype=np.int8).reshape(1, 1, 19, 1)
    made = dataclasses.replace(
        layer,
        weight=weight,
        bias=np.zeros(2, np.int32),
        shift=np.full(2, 31, np.int32),
        multiplier=np.full(2, 2**30, np.int32),
        input_zero_point=0,
        padding=((0, 0), (0, 0)),
    )
    return made, pixel


def law_ties(impl):
    law_codes(impl, *tied(BORDERED))


def long_sum():
    """3,000 products that add up to far more than 2**24, all but 5 taken back by the bias.

    Unit steps: an error of 1 in the sum is an error of 1 in the code.
    """
    rng = np.random.default_rng(1)
    weight = (2 * rng.integers(45, 63, (3000, 4)) + 1).astype(np.int8)
    codes = (2 * rng.integers(40, 63, (1, 3000))).astype(np.int8)
    sums = (codes.astype(np.int64) + 128) @ weight.astype(np.int64)
    layer = IntegerDense(
        weight,
        (5 - sums[0]).astype(np.int32),
        np.full(4, 2**30, np.int32),
        np.full(4, 30, np.int32),
        -128,
        0,
        -128,
        127,
        8,
        Scales(1.0, np.ones(4), 1.0),
    )
    return layer, codes


def law_long_sums(impl):
    layer, codes = long_sum()
    assert int64_layer(layer, codes).tolist() == [[5, 5, 5, 5]]
    law_codes(impl, layer, codes, slow_product)


def float32_in_one_go(layer, codes):
    x = codes.astype(F) - F(layer.input_zero_point)
    sums = (x @ layer.weight.astype(F)).astype(np.int64) + layer.bias
    return int64_requantize(sums, layer)


def in_blocks_of(length):
    def impl(layer, codes):
        x, sums = codes.astype(F) - F(layer.input_zero_point), np.int64(0)
        for start in range(0, len(layer.weight), length):
            part = slice(start, start + length)
            sums = sums + (x[:, part] @ layer.weight[part].astype(F)).astype(np.int64)
        return int64_requantize(sums + layer.bias, layer)

    return impl


def law_weights(impl):
    """Codes and scales of a weight: each output's largest is at 127, none is off by over a half."""
    weight = np.array([[1.0, -3.0], [0.1, 50.0]])
    codes, scales = impl(weight)
    assert scales.shape == weight.shape[-1:]
    assert (np.abs(codes.astype(int)).max(0) == 127).all()
    steps = weight / scales
    assert (np.abs(steps - codes) <= 0.5 + 1e-9).all()  # the quotient's rounding: 127 * 2**-53


def converted(weight):
    made = to_integer(Sequential((Dense(weight),)), np.eye(len(weight))).layers[0]
    return made.weight, made.scales.weight


def wrong_axis(weight):
    q = choose_qparams(weight, axis=0, narrow_range=True)
    steps = np.rint(weight / q.scale[:, None])
    return steps.astype(np.int8), q.scale


PLANTED = {
    "padded with the code 0": (law_bordered, lambda a, b: int64_convolution(a, b, border=0)),
    "padded with the lowest code": (
        law_bordered,
        lambda a, b: int64_convolution(a, b, border=-128),
    ),
    "input zero point forgotten": (law_bordered, with_fields(input_zero_point=0)),
    "output zero point forgotten": (law_bordered, with_fields(output_zero_point=0)),
    "bias forgotten": (law_bordered, with_fields(bias=np.zeros(2, np.int32))),
    "shift off by one": (law_bordered, with_fields(shift=BORDERED.shift + 1)),
    "channels swapped": (
        law_bordered,
        with_fields(multiplier=BORDERED.multiplier[::-1], shift=BORDERED.shift[::-1]),
    ),
    "clamp forgotten": (
        law_bordered,
        lambda a, b: int64_convolution(
            a, b, requant=lambda s, x: ((s * x.multiplier) >> x.shift).astype(np.int8)
        ),
    ),
    "not rounded": (law_bordered, changed(lambda a, m, s: (a * m) >> s)),
    "half away from zero": (law_ties, changed(half_away)),
    "half down": (law_ties, changed(lambda a, m, s: (a * m + (1 << (s - 1)) - 1) >> s)),
    "wraps in int8": (
        law_bordered,
        lambda a, b: int64_convolution(
            a, b, centred=lambda x, zero: (x - np.int8(zero)).astype(np.int64)
        ),
    ),
    "float32 without blocks": (law_long_sums, float32_in_one_go),
    "blocks for int8, not for 255": (law_long_sums, in_blocks_of(1500)),
    "scales on the wrong axis": (law_weights, wrong_axis),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_ones_are_caught(name):
    law, impl = PLANTED[name]
    with np.errstate(over="ignore"), pytest.raises(AssertionError):
        law(impl)


def test_the_right_one_keeps_the_laws():
    law_bordered(forward)
    law_bordered(int64_convolution)
    law_ties(forward)
    law_long_sums(forward)
    law_long_sums(in_blocks_of(518))
    law_weights(converted)


def test_a_kernel_too_large_for_float32_is_exact():
    weight = np.full((23, 23, 1, 1), 127, np.int8)
    weight[::2, ::3] = 125
    codes = np.full((1, 23, 23, 1), 126, np.int8)
    total = 254 * int(weight.astype(np.int64).sum())
    assert total > 2**24
    layer = dataclasses.replace(
        BORDERED,
        weight=weight,
        bias=np.array([5 - total], np.int32),
        multiplier=np.array([2**30], np.int32),
        shift=np.array([30], np.int32),
        input_zero_point=-128,
        scales=Scales(1.0, np.ones(1), 1.0),
        padding=((0, 0), (0, 0)),
    )
    assert layer.forward(codes).tolist() == [[[[0]]]]  # 5, less its zero point of 5


# ---- fields


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": BORDERED.weight.astype(np.int16)}, "weight must be of int8 with 4 axes"),
        ({"bias": np.zeros(3, np.int32)}, "must be of shape"),
        ({"bias": np.zeros(2)}, "bias must be of an integer dtype"),
        ({"shift": np.zeros(2, np.int32)}, "shift must lie in"),
        ({"multiplier": np.ones(2, np.int32)}, "multiplier must lie in"),
        ({"input_zero_point": 128}, "input_zero_point must be"),
        ({"low": 9, "high": 8}, "high must be"),
        ({"num_bits": 9}, "num_bits must be"),
        ({"bias": np.array([0, 2**31 - 1], np.int32)}, "the accumulators must fit int32"),
        ({"bias": np.array([0, -(2**31)], np.int32)}, "the accumulators must fit int32"),
        ({"groups": 3}, "groups must divide"),
        ({"scales": Scales(1.0, np.ones(3), 1.0)}, "scales must have a weight of shape"),
        ({"padding": "same"}, "padding must be"),
    ],
)
def test_layers_check_their_fields(change, message):
    with pytest.raises(CompressionError, match=message):
        dataclasses.replace(BORDERED, **change)


def test_pooling_checks_its_fields():
    with pytest.raises(CompressionError, match="padding must be narrower than the window"):
        IntegerMaxPool2D((2, 2), (1, 1), ((2, 0), (0, 0)))
    good = {"multiplier": np.array([2**30]), "shift": np.array([30])}
    for change, message in (
        ({"input_zero_point": 200}, "input_zero_point must be"),
        ({"output_zero_point": -129}, "zero_point must be"),
        ({"low": 3, "high": 2}, "high must be"),
        ({"shift": np.array([63])}, "shift must lie in"),
        ({"multiplier": np.array([1.0])}, "multiplier must be of an integer dtype"),
        ({"shift": np.full(4, 30)}, r"must both hold 1 number or 4, .* shapes \(1,\) and \(4,\)"),
        ({"multiplier": np.full(3, 2**30), "shift": np.full(3, 30)}, "must both hold 1 number"),
    ):
        with pytest.raises(CompressionError, match=message):
            IntegerAvgPool2D((2, 2), (1, 1), **(good | change))
    with pytest.raises(CompressionError, match="window must hold at most"):
        IntegerAvgPool2D((2**12, 2**12), (1, 1), **good)
