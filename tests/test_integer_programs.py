"""Integer networks with branches, joins and several outputs: code for code the int64 oracle's."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from integer_oracles import (
    CODE,
    Q,
    chained,
    floats,
    int8s,
    int64_layer,
    int64_outputs,
    law_model,
    run,
)

from minicompress.datasets import load_digits
from minicompress.errors import CompressionError
from minicompress.integer.conversion import to_integer
from minicompress.integer.forms import table
from minicompress.integer.joins import IntegerAdd, IntegerConcat, IntegerMultiply
from minicompress.integer.layers import IntegerConv2D, IntegerConvTranspose2D, IntegerScale
from minicompress.integer.model import IntegerModel
from minicompress.integer.requantization import quantize_multiplier
from minicompress.integer.stateless import (
    IntegerAvgPool2D,
    IntegerChannelShuffle,
    IntegerReLU,
    IntegerTable,
    IntegerUpsample2D,
)
from minicompress.nn.architectures import digits_resnet
from minicompress.nn.composition import Parallel, Residual, Sequential
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.optimizers import adam
from minicompress.nn.parameters import as_tuple
from minicompress.nn.pointwise import (
    Clip,
    Dropout,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from minicompress.nn.stateless import (
    Add,
    AvgPool2D,
    ChannelShuffle,
    Concat,
    Flatten,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
    Multiply,
    Upsample2D,
)
from minicompress.nn.training import fit
from minicompress.qparams import QParams
from minicompress.testing.models import models

F = np.float32


# ---- drawn programs


def has_form(network):
    """Whether all its layers have an integer form: a Softmax only where nothing reads it."""
    read = {value for reads in network.inputs for value in reads}
    return not any(
        isinstance(layer, LocalResponseNorm) or (isinstance(layer, Softmax) and i + 1 in read)
        for i, layer in enumerate(network.layers)
    )


@st.composite
def integer_models(draw, max_layers=6):
    """A drawn program in integers, and codes that it takes."""
    network = draw(models((4, 4, 2), max_layers))
    assume(has_form(network))
    dtype = next((rep.dtype for layer in network.layers for rep in layer.parameters().values()
                  if isinstance(rep, np.ndarray)), np.dtype(F))  # fmt: skip
    calibration = draw(floats((3, 4, 4, 2))).astype(dtype)
    bits = draw(st.sampled_from([(8, 8), (8, 8), (4, 8), (2, 3)]))
    try:
        made = to_integer(network, calibration, num_bits=bits[0], activation_bits=bits[1])
    except CompressionError as error:  # what is refused, is refused for a reason that is said
        text = str(error)
        known = ("finite", "dtype", "the same value", "must fit int32")
        assert any(reason in text for reason in known), text
        assume(False)
    return made, draw(int8s((2, 4, 4, 2)))


@given(integer_models())
def test_drawn_programs_are_their_oracle(case):
    model, codes = case
    law_model(run, model, codes)
    assert model.run(codes[:0]) is not None
    for part, q in zip(as_tuple(model.run(codes)), model.output_qparams, strict=True):
        assert part.shape[0] == len(codes)
        assert q.scale > 0


def many():
    """A program with all kinds of layers, and two outputs."""
    rng = np.random.default_rng(0)

    def kernel(*shape):
        return rng.standard_normal(shape) / math.sqrt(math.prod(shape[:-1]))

    one = np.ones(4)
    gate = (
        GlobalAvgPool2D(keep_axes=True), Conv2D(kernel(1, 1, 4, 4)), Sigmoid(),
    )  # fmt: skip
    stem = (Conv2D(kernel(3, 3, 2, 4), padding=1), BatchNorm(one, 0.1 * one, 0.2 * one, 2 * one))
    block = Residual(Conv2D(kernel(3, 3, 1, 4), padding=1, groups=4), Clip(0, 6),
                     Conv2D(kernel(1, 1, 4, 4)))  # fmt: skip
    fire = Parallel((MaxPool2D(2, ceil_mode=True), AvgPool2D(2, ceil_mode=True),
                     Conv2D(kernel(2, 2, 2, 4), rng.standard_normal(4), stride=2, groups=2,
                            padding=((0, 1), (0, 1)))), Concat())  # fmt: skip
    up = (
        ChannelShuffle(3), PReLU(rng.standard_normal(12)), Upsample2D((1, 2)),
        ConvTranspose2D(kernel(3, 2, 6, 4), rng.standard_normal(4), stride=2, groups=2),
    )  # fmt: skip
    body = Sequential((*stem, Parallel(((), gate), Multiply()), block, HardSwish(), fire, *up))
    last = len(body.layers)
    layers = (*body.layers, Tanh(), GlobalAvgPool2D(), Dense(kernel(4, 3), one[:3]), Softmax())
    inputs = (*body.inputs, (last,), (last,), (last + 2,), (last + 3,))
    network = Network(layers, inputs, (last + 1, last + 4))
    return network, rng.standard_normal((6, 5, 5, 2))


def test_a_program_with_all_kinds_of_layers():
    network, x = many()
    model = to_integer(network, x)
    codes = np.random.default_rng(1).integers(-128, 128, (3, 5, 5, 2)).astype(np.int8)
    law_model(run, model, codes)
    kinds = {type(layer) for layer in model.layers}
    assert kinds >= {IntegerAdd, IntegerConcat, IntegerMultiply, IntegerScale, IntegerTable,
                     IntegerConvTranspose2D, IntegerUpsample2D, IntegerChannelShuffle}  # fmt: skip
    first, logits = model(x)
    right_first = network(x)[0]
    assert first.shape == right_first.shape
    assert logits.shape == (6, 3)
    assert np.abs(first - right_first).max() < 0.15  # tanh: 19 layers of 8 bits on the way


def as_a_chain(model, codes):
    """Every layer reads the value before it, as often as it reads."""
    values = [codes]
    for layer, reads in zip(model.layers, model.network.inputs, strict=True):
        values.append(layer.forward(*(values[-1] for _ in reads)))
    return tuple(values[value] for value in model.network.outputs)


def dropped_at_the_first_reader(model, codes):
    """A value that several layers read is zeros for all but the first."""
    values = [codes]
    for layer, reads in zip(model.layers, model.network.inputs, strict=True):
        made = layer.forward(*(values[value] for value in reads))
        for value in reads:
            values[value] = np.zeros_like(values[value])
        values.append(made)
    return tuple(values[value] for value in model.network.outputs)


def inputs_swapped(model, codes):
    values = [codes]
    for layer, reads in zip(model.layers, model.network.inputs, strict=True):
        values.append(layer.forward(*(values[value] for value in reversed(reads))))
    return tuple(values[value] for value in model.network.outputs)


def outputs_swapped(model, codes):
    return model.run(codes)[::-1]


@pytest.mark.parametrize(
    "wrong", [as_a_chain, dropped_at_the_first_reader, inputs_swapped, outputs_swapped]
)
def test_a_program_that_runs_otherwise_is_caught(wrong):
    network = Network((D, Tanh(), Add(), Sigmoid()), ((0,), (1,), (1, 2), (3,)), (3, 4))
    model = to_integer(network, X)
    codes = model.quantize_input(X)
    law_model(run, model, codes)
    with pytest.raises(AssertionError):
        law_model(wrong, model, codes)


def test_a_table_of_numbers_that_overflow_is_refused():
    wide = QParams(np.array(1e308), np.array(0), num_bits=8)
    with pytest.raises(CompressionError, match="must be finite in float64"):
        table(SiLU(), wide, Q)


# ---- joins: the nearest code


def law_join(impl, layer, xs, codes, bits=8):
    """A code is within 1/2 + n * 2**-23 of the real sum or product of n values, clamped."""
    network = joined(layer, xs)
    model = to_integer(network, np.concatenate(xs, axis=-1), activation_bits=bits)
    join = model.layers[-1]
    made = impl(join, codes)
    scales = [Fraction(float(q)) for q in input_scales(model)]
    target = model.output_qparams[0]
    real = [
        (part.astype(object) - z) * scale
        for part, z, scale in zip(codes, join.input_zero_points, scales, strict=True)
    ]
    if isinstance(layer, Add):
        total = sum(real[1:], real[0])
    elif isinstance(layer, Multiply):
        total = real[0] * real[1]
    else:
        total = np.concatenate(real, axis=-1)
    assert made.shape == total.shape
    for code, value in zip(made.ravel().tolist(), total.ravel(), strict=True):
        step = value / Fraction(float(target.scale)) + int(target.zero_point)
        clamped = min(max(step, target.qmin), target.qmax)
        assert abs(code - clamped) <= Fraction(1, 2) + len(codes) * Fraction(1, 2**23)


def joined(layer, xs):
    """Dense layers that pick the parts of the input, each exactly, and the join of them."""
    total = sum(x.shape[-1] for x in xs)
    ends = np.cumsum([0, *(x.shape[-1] for x in xs)])
    picks = [Dense(np.eye(total)[:, a:b]) for a, b in itertools.pairwise(ends)]
    return Parallel(tuple(picks), layer)


def input_scales(model):
    return [model.layers[value - 1].scales.output for value in model.network.inputs[-1]]


JOINS = st.sampled_from([Add(), Multiply(), Concat()])


@given(st.data(), JOINS, st.sampled_from([8, 5, 2]))
def test_a_join_is_the_nearest_code(data, layer, bits):
    count = 2 if isinstance(layer, Multiply) else data.draw(st.integers(1, 3))
    scales = st.sampled_from([0.01, 1.0, 100.0])
    xs = [data.draw(floats((4, 2))).astype(np.float64) * data.draw(scales) for _ in range(count)]
    # Else the product of the scales is raised to what a float can hold.
    assume(not isinstance(layer, Multiply) or all(np.abs(x).max() > 1e-4 for x in xs))
    law_join(lambda join, codes: join.forward(*codes), layer, xs,
             [data.draw(int8s((3, 2))) for _ in range(count)], bits)  # fmt: skip


def changed(**change):
    def impl(join, codes):
        new = {name: f(join) for name, f in change.items()}
        return dataclasses.replace(join, **new).forward(*codes)

    return impl


def rounded_twice(join, codes):
    """Each value rounded to a step of the output before they are added."""
    total = np.zeros(codes[0].shape, np.int64)
    for x, zero, m in zip(codes, join.input_zero_points, join.multiplier, strict=True):
        total += ((x.astype(np.int64) - zero) * int(m) + (1 << (join.shift - 1))) >> join.shift
    return np.clip(total + join.output_zero_point, join.low, join.high).astype(np.int8)


def codes_added(join, codes):
    total = sum(part.astype(int) for part in codes)
    return np.clip(total, -128, 127).astype(np.int8)


def codes_side_by_side(join, codes):
    return np.concatenate(codes, axis=-1)


def codes_multiplied(join, codes):
    """The zero point of the second factor forgotten."""
    zero = (join.input_zero_points[0], 0)
    return dataclasses.replace(join, input_zero_points=zero).forward(*codes)


WRONG_JOINS = {
    "rounded twice": (Add(), rounded_twice),
    "codes added": (Add(), codes_added),
    "one multiplier for both": (Add(), changed(multiplier=lambda j: j.multiplier[[0, 0]])),
    "multipliers swapped": (Add(), changed(multiplier=lambda j: j.multiplier[::-1])),
    "zero points swapped": (Add(), changed(input_zero_points=lambda j: j.input_zero_points[::-1])),
    "shift off by one": (Add(), changed(shift=lambda j: j.shift + 1)),
    "no common scale": (Concat(), codes_side_by_side),
    "the scales swapped": (Concat(), changed(shift=lambda j: j.shift[::-1],
                                             multiplier=lambda j: j.multiplier[::-1])),
    "a zero point forgotten": (Multiply(), codes_multiplied),
    "the output's zero point forgotten": (Multiply(), changed(output_zero_point=lambda j: 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_JOINS)
def test_a_wrong_join_is_caught(name):
    layer, wrong = WRONG_JOINS[name]
    rng = np.random.default_rng(3)
    xs = [rng.standard_normal((40, 3)) + 0.5, 7 * rng.standard_normal((40, 3)) - 9]
    codes = [rng.integers(-128, 128, (50, 3)).astype(np.int8) for _ in xs]
    law_join(lambda join, codes: join.forward(*codes), layer, xs, codes)
    with pytest.raises(AssertionError):
        law_join(wrong, layer, xs, codes)


def test_the_extremes_of_a_sum():
    """The largest multiplier and as many steps as there are, against Python ints."""
    for count in (1, 2, 1000):
        for shift in (1, 30, 62):
            layer = IntegerAdd((-128,) * count, multiplier=np.full(count, 2**31 - 1), shift=shift)
            codes = [np.array([[127, -128]], np.int8)] * count
            np.testing.assert_array_equal(layer.forward(*codes), int64_layer(layer, *codes))


# ---- functions of one number: the code of the value


FUNCTIONS = [
    Sigmoid(), Tanh(), HardSigmoid(), HardSigmoid(1 / 6), HardSwish(), SiLU(), LeakyReLU(0.2),
    LeakyReLU(0.0), Clip(-0.5, 1), Clip(0.5, 0.75), Clip(), PReLU(np.array([0.3, -2.0])),
    PReLU(np.array([0.25, 0.25])),
]  # fmt: skip


def value(layer, x, channel):
    """The function, by its definition, of one number."""
    match layer:
        case Sigmoid():
            return 1 / (1 + math.exp(-x))
        case Tanh():
            return math.tanh(x)
        case HardSigmoid():
            return min(max(layer.alpha * x + layer.beta, 0), 1)
        case HardSwish():
            return x * min(max(x / 6 + 0.5, 0), 1)
        case SiLU():
            return x / (1 + math.exp(-x))
        case LeakyReLU():
            return x if x > 0 else layer.negative_slope * x
        case Clip():
            return min(max(x, layer.low), layer.high)
        case PReLU():
            return x if x > 0 else float(layer.slope[channel]) * x
    raise AssertionError(layer)


def law_function(impl, layer, x, bits=8):
    """Every code becomes the code nearest to the value of what it stands for."""
    model = to_integer(Sequential((layer,)), x, activation_bits=bits)
    source, target = model.input_qparams, model.output_qparams[0]
    codes = np.arange(-128, 128, dtype=np.int8)[:, np.newaxis].repeat(2, 1)
    made = impl(model, codes)
    for (i, channel), code in np.ndenumerate(made):
        number = (int(codes[i, channel]) - int(source.zero_point)) * float(source.scale)
        steps = value(layer, number, channel) / float(target.scale) + int(target.zero_point)
        clamped = min(max(steps, target.qmin), target.qmax)
        assert abs(int(code) - clamped) <= 0.5 + 1e-9  # float64 rounds, some 2**-40 of 2**9 steps


@pytest.mark.parametrize("layer", FUNCTIONS, ids=repr)
@given(data=st.data())
def test_a_function_is_a_table_of_the_nearest_codes(layer, data):
    x = data.draw(floats((4, 2), -8, 8)).astype(np.float64)
    law_function(run, layer, x, data.draw(st.sampled_from([8, 8, 4])))


def table_of(change):
    def impl(model, codes):
        (layer,) = model.layers
        return IntegerTable(change(layer.table)).forward(codes)

    return impl


WRONG_TABLES = {
    "shifted by a code": table_of(lambda t: np.roll(t, 1, axis=-1)),
    "channels swapped": table_of(lambda t: t[::-1]),
    "one channel for all": table_of(lambda t: t[0]),
    "from the code 0": table_of(lambda t: np.roll(t, 128, axis=-1)),
}


@pytest.mark.parametrize("name", WRONG_TABLES)
def test_a_wrong_table_is_caught(name):
    x = np.random.default_rng(4).standard_normal((30, 2))
    law_function(run, PReLU(np.array([0.3, -2.0])), x)
    with pytest.raises(AssertionError):
        law_function(WRONG_TABLES[name], PReLU(np.array([0.3, -2.0])), x)


def test_equal_slopes_share_a_table():
    x = np.linspace(-1, 1, 8).reshape(4, 2)
    for slopes, shape in (([0.25, 0.25], (256,)), ([0.25, 0.5], (2, 256))):
        made = to_integer(Sequential((PReLU(np.array(slopes)),)), x)
        assert made.layers[0].table.shape == shape


# ---- layers with weights


@pytest.mark.parametrize("padding", ["valid", "same", ((1, 0), (0, 1))])
@given(data=st.data())
def test_a_transposed_convolution(padding, data):
    stride, dilation = (data.draw(st.sampled_from([1, 2, (3, 1)])) for _ in range(2))
    layer = ConvTranspose2D(
        data.draw(floats((2, 3, 1, 4))), data.draw(st.none() | floats(4)), stride=stride,
        padding=padding, dilation=dilation, groups=2,
        output_padding=1 if padding != "same" and stride == 2 else 0,
    )  # fmt: skip
    x = data.draw(floats((2, 3, 4, 2)))
    model = to_integer(Sequential((layer,)), x)
    assert model.layers[0].output_shape((3, 4, 2)) == layer.output_shape((3, 4, 2))
    law_model(run, model, data.draw(int8s((2, 3, 4, 2))))


@given(st.data())
def test_a_depthwise_convolution(data):
    layer = Conv2D(data.draw(floats((3, 2, 1, 6))), data.draw(floats(6)), groups=3, padding="same",
                   stride=data.draw(st.sampled_from([1, 2])))  # fmt: skip
    model = to_integer(Sequential((layer,)), data.draw(floats((2, 4, 5, 3))))
    law_model(run, model, data.draw(int8s((3, 4, 5, 3))))


@given(st.data(), st.sampled_from([(2,), (3, 3, 2)]))
def test_a_batch_normalization(data, shape):
    scale, offset, mean = (data.draw(floats(2)) for _ in range(3))
    norm = BatchNorm(scale, offset, mean, data.draw(floats(2, 0, 4)))
    after = (ReLU(),) if data.draw(st.booleans()) else ()
    x = data.draw(floats((4, *shape)))
    model = to_integer(Sequential((norm, *after)), x)
    (layer,) = model.layers
    assert (layer.low == layer.output_zero_point) or not after
    law_model(run, model, data.draw(int8s((3, *shape))))
    # The range of the input clamps nothing; half a step of the input, of the weight and of the
    # output, and of the bias, are all that is lost.
    real = Sequential((norm, *after))(x).astype(np.float64)
    ratio = np.abs(scale / np.sqrt(norm.variance + norm.epsilon)).max()
    step = float(model.output_qparams[0].scale) + ratio * float(model.input_qparams.scale)
    reach = np.abs(x).max() + float(model.input_qparams.scale)
    assert np.abs(model(x) - real).max() <= step + ratio / 254 * reach + 1e-4


@given(st.data())
def test_pools_with_ceil_mode(data):
    window, stride = data.draw(st.sampled_from([(2, 2), (3, 2)])), data.draw(st.integers(1, 3))
    kind = data.draw(st.sampled_from([MaxPool2D, AvgPool2D, "padding counts"]))
    options = {"stride": stride, "padding": data.draw(st.sampled_from([0, 1])), "ceil_mode": True}
    if kind == "padding counts":
        pool = AvgPool2D(window, **options, count_include_pad=True)
    else:
        pool = kind(window, **options)
    x = data.draw(floats((3, 5, 4, 2))).astype(np.float64)
    model = to_integer(Sequential((pool,)), x)
    law_model(run, model, data.draw(int8s((2, 5, 4, 2))))
    steps = float(model.input_qparams.scale + model.output_qparams[0].scale)
    assert np.abs(model(x) - pool.forward(x)).max() <= 0.51 * steps


def test_padding_that_counts_is_told_from_what_lies_beyond():
    """The last window has 2 pixels, of 4 places of which 3 count."""
    x = np.ones((1, 4, 1, 1))
    pool = AvgPool2D((4, 1), stride=3, padding=((0, 1), (0, 0)), ceil_mode=True,
                     count_include_pad=True)  # fmt: skip
    model = to_integer(Sequential((pool,)), x)
    (layer,) = model.layers
    assert isinstance(layer, IntegerAvgPool2D)
    assert layer.counted == ((0, 1), (0, 0))
    codes = model.quantize_input(x)
    law_model(run, model, codes)
    wrong = dataclasses.replace(layer, counted=((0, 0), (0, 0)))
    with pytest.raises(AssertionError):
        law_model(lambda _, codes: wrong.forward(codes), model, codes)


# ---- what is fused


D = Dense(np.array([[1.0, -1.0], [0.5, 2.0]]))
X = np.random.default_rng(5).standard_normal((50, 2))


def kinds(network, x=X):
    return [type(layer).__name__.removeprefix("Integer") for layer in to_integer(network, x).layers]


def test_clamping_is_fused_where_nothing_else_reads():
    assert kinds(Sequential((D, ReLU()))) == ["Dense"]
    assert kinds(Sequential((D, Dropout(0.5), ReLU(), Clip(-1, 1)))) == ["Dense"]
    assert kinds(Residual(D, ReLU())) == ["Dense", "Add"]
    assert kinds(Sequential((Residual(D), Clip(0, 6)))) == ["Dense", "Add"]
    assert kinds(Sequential((Parallel((D, D), Multiply()), ReLU()))) == [
        "Dense",
        "Dense",
        "Multiply",
    ]
    assert kinds(Sequential((Parallel((D, D), Concat()), ReLU()))) == ["Dense", "Dense", "Concat"]
    # Another layer, or the caller, reads the sum too.
    assert kinds(Sequential((D, Residual(ReLU())))) == ["Dense", "ReLU", "Add"]
    assert kinds(Network((D, ReLU()), ((0,), (1,)), (1, 2))) == ["Dense", "ReLU"]
    assert kinds(Network((D, Dropout(0.1), ReLU(), Add()), ((0,), (1,), (2,), (1, 3)), (4,))) == [
        "Dense", "ReLU", "Add",
    ]  # fmt: skip
    assert kinds(Sequential((ReLU(), Tanh(), ReLU()))) == ["ReLU", "Table", "ReLU"]


@given(st.data())
def test_what_is_fused_is_the_clamped_code(data):
    """The nearest code of the clamped number is the clamped nearest code."""
    low, high = sorted((data.draw(st.floats(-2, 2)), data.draw(st.floats(-2, 2))))
    x = data.draw(floats((4, 2))).astype(np.float64)
    assume(np.abs(x).max() > 1e-3)  # else the scales are raised to what floats can hold
    limits = Clip(low, high) if data.draw(st.booleans()) else ReLU()
    model = to_integer(Sequential((D, limits)), x)
    assume(len(model.layers) == 1)  # a Clip that is narrow beside the sums is a table of its own
    (layer,) = model.layers
    q, codes = model.output_qparams[0], data.draw(int8s((5, 2)))
    totals = (codes.astype(object) - layer.input_zero_point) @ layer.weight.astype(object)
    steps = Fraction(layer.scales.input), [Fraction(float(s)) for s in layer.scales.weight]
    for i, o in np.ndindex(5, 2):
        real = float((totals[i, o] + int(layer.bias[o])) * steps[0] * steps[1][o])
        clamped = float(limits.forward(np.array([real]))[0]) / float(q.scale) + int(q.zero_point)
        nearest = min(max(clamped, q.qmin), q.qmax)
        assert abs(int(layer.forward(codes)[i, o]) - nearest) <= 0.5 + 1e-6


def relu_fused_although_read(network, x):
    """The planted wrong one: the sum that two layers read is clamped for both."""
    model = to_integer(network, x)
    first = dataclasses.replace(model.layers[0], low=model.layers[0].output_zero_point)
    layers = (first, *model.layers[1:])
    changed_network = dataclasses.replace(model.network, layers=layers)
    return dataclasses.replace(model, network=changed_network)


def law_close(impl, network, x):
    """Within what rounding costs: a few steps of the output, here."""
    model = impl(network, x)
    step = max(float(q.scale) for q in model.output_qparams)
    for made, right in zip(as_tuple(model(x)), as_tuple(network(x)), strict=True):
        assert np.abs(made - right).max() <= 4 * step


def test_a_relu_fused_although_its_input_is_read_is_caught():
    network = Sequential((D, Parallel(((), ReLU()), Concat())))
    law_close(to_integer, network, X)
    with pytest.raises(AssertionError):
        law_close(relu_fused_although_read, network, X)


# ---- several outputs, and what is refused


def test_several_outputs():
    network = Network((D, Sigmoid(), Flatten()), ((0,), (1,), (0,)), (2, 3, 1))
    model = to_integer(network, X)
    codes = model.quantize_input(X)
    law_model(run, model, codes)
    made = model(X)
    assert [part.shape for part in made] == [(50, 2)] * 3
    assert len(model.output_qparams) == 3
    law_close(to_integer, network, X)
    np.testing.assert_array_equal(model.run(codes)[1], codes)
    assert [part.shape for part in model.run(codes[:0])] == [(0, 2)] * 3


NUMBERS = {"multiplier": np.array([2**30]), "shift": np.array([30])}
TWO = np.ones(2, int)
ONE = np.ones(1, int)
ROWS = IntegerTable(np.zeros((2, 256), np.int8))
PAIR = [np.zeros((1, 2), np.int8)] * 2
LRN = LocalResponseNorm(1)

REFUSED = {
    r"input_zero_points\[1\]": lambda: IntegerAdd((0, 200), multiplier=TWO, shift=1),
    "multiplier must have shape": lambda: IntegerAdd((0,), multiplier=TWO, shift=1),
    "multiplier must lie in": lambda: IntegerAdd((0,), multiplier=-ONE, shift=1),
    "shift must be": lambda: IntegerAdd((0,), multiplier=ONE, shift=63),
    "high must be": lambda: IntegerConcat((0,), **NUMBERS, low=5, high=4),
    "must read 1 values, .*, not 2": lambda: IntegerConcat((0,), **NUMBERS).forward(*PAIR),
    "output_zero_point must": lambda: IntegerMultiply((0, 0), **NUMBERS, output_zero_point=128),
    "table must be of int8": lambda: IntegerTable(np.zeros(255, np.int8)),
    "must have 2 channels": lambda: ROWS.output_shape((3,)),
    "must divide the 3 channels": lambda: IntegerChannelShuffle(2).output_shape((1, 1, 3)),
    "factor must be": lambda: IntegerUpsample2D((0, 1)),
    "counted must be within the padding": lambda: IntegerAvgPool2D(
        (1, 1), (1, 1), **NUMBERS, counted=((1, 0), (0, 0))
    ),
    r"layer 0 \(ReLU\): it must be an integer layer": lambda: chained((ReLU(),), (2,)),
    r"layer 0 .* must have 2 channels": lambda: chained((ROWS,), (3,)),
    "output_qparams must be one for each of 1 outputs, not 0": lambda: IntegerModel(
        Sequential((IntegerReLU(0),)), (2,), Q, ()
    ),
    "two outputs of the network are the same": lambda: to_integer(
        Network((Dropout(0.1),), ((0,),), (0, 1)), X
    ),
    r"layer 1 \(Softmax\): softmax has an integer form at the end": lambda: to_integer(
        Sequential((D, Residual(Softmax()))), X
    ),
    r"layer 0 \(LocalResponseNorm\): local response .* no integer form": lambda: to_integer(
        Parallel((LRN, ()), Add()), np.ones((1, 1, 1, 1))
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message):
    with pytest.raises(CompressionError, match=message):
        REFUSED[message]()


@pytest.mark.parametrize("layer", [Clip(0, 1), Clip(-1, 6), Clip(-1.25, -1.25)], ids=repr)
@pytest.mark.parametrize("weight", [1.0, 300.0, 1e4])
def test_a_narrow_clip_behind_coarse_sums_stays_in_its_limits(layer, weight):
    """Where the output's scale has to follow the sums, the Clip is a table of its own."""
    x = np.linspace(-100, 100, 9)[:, None]
    network = Sequential((Dense(np.array([[weight]])), layer))
    model = to_integer(network, x)
    # 255 steps cover the range and 0; coarser ones by at most a factor of two.
    step = (max(layer.high, 0) - min(layer.low, 0)) / 255
    np.testing.assert_allclose(model(x), network(x), atol=2 * step)


# ---- the digits


@pytest.fixture(scope="module")
def trained():
    x, y = load_digits("train")
    rng = np.random.default_rng(0)
    model, _ = fit(digits_resnet(rng), x, y, optimizer=adam(3e-3), epochs=2, batch_size=64, rng=rng)
    return model


def test_digits_resnet(trained):
    """Code for code the oracle; of 300 images a few at most are classified otherwise."""
    x, y = load_digits("test")
    model = to_integer(trained, load_digits("train")[0][:300])
    codes = model.quantize_input(x)
    law_model(run, model, codes)
    right = (trained(x).argmax(1) == y).mean()
    assert right > 0.9
    assert (model(x).argmax(1) == y).mean() > right - 0.02
    (made,) = int64_outputs(model, codes[:5])
    np.testing.assert_array_equal(model.run(codes[:5]), made)
    assert not any(isinstance(layer, IntegerReLU) for layer in model.layers)
    assert sum(isinstance(layer, IntegerConv2D) for layer in model.layers) == 8


def test_codes_of_every_kind_of_join_are_drawn():
    """The oracle itself: a gate multiplies each channel of each example."""
    layer = IntegerMultiply((3, -4), **dict(zip(("multiplier", "shift"), quantize_multiplier([0.1]),
                                                strict=True)))  # fmt: skip
    rng = np.random.default_rng(6)
    image = rng.integers(-128, 128, (2, 3, 2, 2)).astype(np.int8)
    gate = rng.integers(-128, 128, (2, 1, 1, 2)).astype(np.int8)
    for pair in ((image, gate), (gate, image)):
        np.testing.assert_array_equal(layer.forward(*pair), int64_layer(layer, *pair))


@given(st.data())
def test_drawn_joins(data):
    """All fields drawn, not only those that `to_integer` makes."""
    count = data.draw(st.integers(1, 3))
    zeros = tuple(data.draw(CODE) for _ in range(count))
    low, high = sorted((data.draw(CODE), data.draw(CODE)))
    clamp = {"output_zero_point": data.draw(CODE), "low": low, "high": high}
    codes = [data.draw(int8s((2, 3))) for _ in range(count)]
    multiplier = [data.draw(st.integers(0, 2**31 - 1)) for _ in range(count)]
    add = IntegerAdd(
        zeros, multiplier=np.array(multiplier), shift=data.draw(st.integers(1, 62)), **clamp
    )
    np.testing.assert_array_equal(add.forward(*codes), int64_layer(add, *codes))
    multiplier = [data.draw(st.integers(2**30, 2**31 - 1)) for _ in range(count)]
    shift = [data.draw(st.integers(29, 40)) for _ in range(count)]
    concat = IntegerConcat(zeros, multiplier=np.array(multiplier), shift=np.array(shift), **clamp)
    np.testing.assert_array_equal(concat.forward(*codes), int64_layer(concat, *codes))
