"""Layers: what they compute, what they keep, and how a compressed weight runs.

Everything is integer-valued and small, so every sum is exact in any order and oracles compare with
``==``.
"""

from __future__ import annotations

import dataclasses
import pickle
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import minicompress.nn.activations as act
import minicompress.nn.losses as losses
import minicompress.nn.pooling as pool
import minicompress.nn.rearranging as move
from minicompress.errors import CompressionError
from minicompress.nn.convolution import conv2d, conv2d_vjp, dense, dense_vjp
from minicompress.nn.factors import rearranged
from minicompress.nn.layer import Layer, same_options
from minicompress.nn.layers import (
    Conv2D,
    ConvTranspose2D,
    Dense,
    decoded_layer,
    factor_layers,
    plain_layers,
)
from minicompress.nn.normalization import BatchNorm, batch_norm, batch_norm_vjp
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
    AvgPool2D,
    ChannelShuffle,
    Flatten,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
    Upsample2D,
)
from minicompress.representation import Clustered, LowRank, Quantized, Sparse, decode, shape_of

ONE = np.ones(3)


def small(shape, dtype=np.float64):
    """Arrays of small integers, drawn entry by entry."""
    return arrays(dtype, shape, elements=st.integers(-3, 3).map(float))


def whole(shape, start=0):
    """A fixed array of small integers."""
    return ((np.arange(np.prod(shape, dtype=int)) * 7 + start) % 5 - 2.0).reshape(shape)


# A weightless layer, its operation and the vjp of that ------------------------------------------

WEIGHTLESS = [
    (Flatten(), move.flatten, move.flatten_vjp, {}),
    (Clip(-1, 2), act.clip, act.clip_vjp, {"low": -1, "high": 2}),
    (HardSigmoid(), act.hard_sigmoid, act.hard_sigmoid_vjp, {}),
    (HardSwish(), act.hard_swish, act.hard_swish_vjp, {}),
    (SiLU(), act.silu, act.silu_vjp, {}),
    (Upsample2D((2, 3)), move.upsample2d, move.upsample2d_vjp, {"factor": (2, 3)}),
    (LocalResponseNorm(3), move.local_response_norm, move.local_response_norm_vjp, {"size": 3}),
    (ChannelShuffle(1), move.channel_shuffle, move.channel_shuffle_vjp, {"groups": 1}),
    (ReLU(), act.relu, act.relu_vjp, {}),
    (LeakyReLU(0.25), act.leaky_relu, act.leaky_relu_vjp, {"negative_slope": 0.25}),
    (Sigmoid(), act.sigmoid, act.sigmoid_vjp, {}),
    (Tanh(), act.tanh, act.tanh_vjp, {}),
    (Softmax(), losses.softmax, losses.softmax_vjp, {}),
    (MaxPool2D(2), pool.max_pool2d, pool.max_pool2d_vjp, {"window": 2}),
    (
        MaxPool2D((3, 2), stride=(2, 1), padding=1),
        pool.max_pool2d,
        pool.max_pool2d_vjp,
        {"window": (3, 2), "stride": (2, 1), "padding": 1},
    ),
    (
        AvgPool2D(3, 2, "same", count_include_pad=True),
        pool.avg_pool2d,
        pool.avg_pool2d_vjp,
        {"window": 3, "stride": 2, "padding": "same", "count_include_pad": True},
    ),
    (AvgPool2D(3, padding=((1, 0), (2, 1))), pool.avg_pool2d, pool.avg_pool2d_vjp,
     {"window": 3, "padding": ((1, 0), (2, 1))}),
    (
        MaxPool2D(2, ceil_mode=True), pool.max_pool2d, pool.max_pool2d_vjp,
        {"window": 2, "ceil_mode": True},
    ),
    (
        AvgPool2D(3, 2, 1, ceil_mode=True, count_include_pad=True),
        pool.avg_pool2d,
        pool.avg_pool2d_vjp,
        {"window": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": True},
    ),
    (
        GlobalAvgPool2D(keep_axes=True), pool.global_avg_pool2d, pool.global_avg_pool2d_vjp,
        {"keep_axes": True},
    ),
    (GlobalAvgPool2D(), pool.global_avg_pool2d, pool.global_avg_pool2d_vjp, {}),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "operation", "operation_vjp", "options"), WEIGHTLESS)
@given(data=st.data())
def test_weightless_layers_are_their_operations(layer, operation, operation_vjp, options, data):
    x = data.draw(small((2, 4, 5, 1)))
    y, pullback = layer.vjp(x)
    expected = operation(x, **options)
    np.testing.assert_array_equal(layer.forward(x), expected)
    np.testing.assert_array_equal(y, expected)
    dy = data.draw(small(expected.shape))
    dx, gradients = pullback(dy)
    np.testing.assert_array_equal(dx, operation_vjp(dy, x, **options))
    assert gradients == {}
    assert layer.parameters() == {}
    assert layer.vjp(x, input_gradient=False)[1](dy) == (None, {})


EVERY_LAYER = [layer for layer, *_ in WEIGHTLESS] + [
    Dropout(0.5),
    BatchNorm(ONE, ONE, ONE, ONE),
    PReLU(np.array([0.5, -1.0, 2.0])),
    ChannelShuffle(3),
    ConvTranspose2D(whole((2, 3, 3, 4)), np.ones(4)),
    ConvTranspose2D(whole((3, 3, 3, 2)), stride=(2, 3), padding=((1, 0), (0, 2)), dilation=2),
    ConvTranspose2D(whole((3, 2, 1, 6)), stride=2, padding="same", groups=3),
    ConvTranspose2D(whole((1, 2, 3, 2)), stride=(2, 3), output_padding=(1, 2)),
    Conv2D(whole((2, 3, 3, 4)), np.ones(4)),
    Conv2D(whole((2, 3, 1, 6)), stride=(2, 1), padding="same", dilation=(1, 2), groups=3),
    Conv2D(whole((3, 3, 3, 2)), padding=((2, 0), (1, 3)), stride=3),
]


@pytest.mark.parametrize("layer", EVERY_LAYER, ids=repr)
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("hw", [(6, 5), (7, 9)])
def test_output_shape_is_the_shape_of_the_output(layer, batch, hw):
    y = layer.forward(np.ones((batch, *hw, 3)))
    assert y.shape == (batch, *layer.output_shape((*hw, 3)))


def test_dense_output_shape():
    assert Dense(whole((4, 3))).output_shape((4,)) == (3,)


@pytest.mark.parametrize("layer", EVERY_LAYER, ids=repr)
def test_a_layer_leaves_its_arguments_alone(layer):
    x = whole((2, 6, 5, 3))
    y, pullback = layer.vjp(x, rng=np.random.default_rng(0))
    dy = np.ones(y.shape)
    first = pullback(dy)
    assert np.array_equal(x, whole((2, 6, 5, 3)))
    assert (dy == 1).all()
    np.testing.assert_equal(pullback(dy), first)  # and a pullback can be used again


# Gradients of the layers with weights -----------------------------------------------------------


class Case(NamedTuple):
    """A layer with weights, an input and a gradient by its output."""

    layer: Conv2D | Dense
    x: np.ndarray
    dy: np.ndarray


@st.composite
def cases(draw):
    bias = draw(st.booleans())
    if draw(st.booleans()):
        n, i, o = (draw(st.integers(low, 4)) for low in (0, 1, 1))
        layer = Dense(draw(small((i, o))), draw(small(o)) if bias else None)
        return Case(layer, draw(small((n, i))), draw(small((n, o))))
    groups, kh, kw, i, o = (draw(st.integers(1, k)) for k in (2, 3, 3, 2, 2))
    layer = Conv2D(
        draw(small((kh, kw, i, groups * o))),
        draw(small(groups * o)) if bias else None,
        stride=draw(st.integers(1, 3)),
        padding=draw(st.sampled_from(["valid", "same", 1, ((0, 2), (1, 0))])),
        groups=groups,
    )
    x = draw(small((draw(st.integers(0, 2)), draw(st.integers(3, 5)), 4, groups * i)))
    return Case(layer, x, draw(small((len(x), *layer.output_shape(x.shape[1:])))))


def law_gradients_are_adjoint(case, vjp):
    """The output is linear in x, in the weight and in the bias: <dy, J u> = <J' dy, u>, exactly."""
    layer, x, dy = case
    y, pullback = vjp(layer, x)
    dx, gradients = pullback(dy)
    bias_part = 0.0 if layer.bias is None else float((dy * layer.bias).sum())
    linear_part = float((dy * y).sum()) - bias_part
    assert list(gradients) == list(layer.parameters())
    assert {n: g.shape for n, g in gradients.items()} == {
        n: p.shape for n, p in layer.parameters().items()
    }
    assert float((dx * x).sum()) == linear_part
    assert float((gradients["weight"] * layer.weight).sum()) == linear_part
    if layer.bias is not None:
        assert float((gradients["bias"] * layer.bias).sum()) == bias_part
    again = layer.vjp(x, input_gradient=False)[1](dy)
    assert again[0] is None
    np.testing.assert_equal(again[1], gradients)


@given(cases())
def test_gradients_are_adjoint(case):
    law_gradients_are_adjoint(case, lambda layer, x: layer.vjp(x))


def law_layer_is_its_operation(case, vjp):
    """Output and gradients are those of the function that the layer names, with its geometry."""
    layer, x, dy = case
    y, pullback = vjp(layer, x)
    if isinstance(layer, Dense):
        expected, gradients = dense(x, layer.weight, layer.bias), dense_vjp(dy, x, layer.weight)
    else:
        options = {
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
        }
        expected = conv2d(x, layer.weight, layer.bias, **options)
        gradients = conv2d_vjp(dy, x, layer.weight, **options)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(layer.forward(x), expected)
    dx, named = pullback(dy)
    np.testing.assert_array_equal(dx, gradients[0])
    np.testing.assert_array_equal(named["weight"], gradients[1])
    if layer.bias is not None:
        np.testing.assert_array_equal(named["bias"], gradients[2])


@given(cases())
def test_layer_is_its_operation(case):
    law_layer_is_its_operation(case, lambda layer, x: layer.vjp(x))


@given(small((2, 3, 4)), small((2, 3, 4)), small(4), small(4), small(4))
def test_batch_norm_layer(x, dy, scale, offset, mean):
    variance = np.array([3.0, 0.0, 15.0, 8.0])
    layer = BatchNorm(scale, offset, mean, variance, epsilon=1.0)
    y, pullback = layer.vjp(x)
    np.testing.assert_array_equal(y, batch_norm(x, scale, offset, mean, variance, 1.0))
    np.testing.assert_array_equal(layer.forward(x), y)
    dx, gradients = pullback(dy)
    expected = batch_norm_vjp(dy, x, scale, mean, variance, 1.0)
    np.testing.assert_equal((dx, gradients["scale"], gradients["offset"]), expected)
    assert list(layer.parameters()) == ["scale", "offset", "mean", "variance"]
    assert layer.vjp(x, input_gradient=False)[1](dy)[0] is None


# Dropout ------------------------------------------------------------------------------------------


@given(small((3, 5)), small((3, 5)), st.sampled_from([0.0, 0.5, 0.75]))
def test_dropout_zeroes_or_scales_and_pulls_back_alike(x, dy, rate):
    layer = Dropout(rate)
    y, pullback = layer.vjp(x, rng=np.random.default_rng(0))
    factor = 1 / (1 - rate)  # a power of two
    mask = layer.vjp(np.ones(x.shape), rng=np.random.default_rng(0))[0]
    assert np.isin(mask, [0.0, factor] if rate else [1.0]).all()
    np.testing.assert_array_equal(y, x * mask)
    np.testing.assert_array_equal(pullback(dy)[0], dy * mask)
    np.testing.assert_array_equal(layer.forward(x), x)
    np.testing.assert_array_equal(layer.vjp(x)[0], x)
    np.testing.assert_array_equal(layer.vjp(x)[1](dy)[0], dy)


def test_dropout_drops_at_its_rate():
    n, rate = 100_000, 0.3
    y, _ = Dropout(rate).vjp(np.ones((1, n), np.float32), rng=np.random.default_rng(0))
    assert y.dtype == np.float32
    assert set(np.unique(y)) == {0.0, np.float32(1 / (1 - rate))}
    # Six standard deviations of a binomial count.
    assert abs((y == 0).sum() - n * rate) < 6 * (n * rate * (1 - rate)) ** 0.5


# How a compressed weight runs ---------------------------------------------------------------------


@st.composite
def geometries(draw):
    word_or_pads = st.sampled_from(["valid", "same", 1, (2, 0), ((0, 1), (2, 0))])
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    return {
        "stride": draw(pairs),
        "padding": draw(word_or_pads),
        "dilation": draw(st.sampled_from([1, (2, 1), (1, 2)])),
    }


@st.composite
def products(draw):
    """A layer with a `LowRank` weight of one of the four known forms, and an input."""
    kh, kw, i, o = (draw(st.integers(1, 3)) for _ in range(4))
    r, q = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    form = draw(st.sampled_from(["dense", "channel", "spatial", "tucker"]))
    shapes, subscripts = {
        "dense": ([(i, r), (r, o)], "ir,ro->io"),
        "channel": ([(kh, kw, i, r), (r, o)], "hwir,ro->hwio"),
        "spatial": ([(kh, i, r), (r, kw, o)], "hir,rwo->hwio"),
        "tucker": ([(i, r), (kh, kw, r, q), (q, o)], "ia,hwab,bo->hwio"),
    }[form]
    weight = LowRank(tuple(draw(small(shape)) for shape in shapes), subscripts)
    bias = draw(st.none() | small(o))
    if form == "dense":
        return Dense(weight, bias), draw(small((2, i)))
    x = draw(small((1, draw(st.integers(5, 7)), draw(st.integers(5, 6)), i)))
    return Conv2D(weight, bias, **draw(geometries())), x


def law_chain_runs_as_the_product(pair, chain):
    layer, x = pair
    expected = dataclasses.replace(layer, weight=decode(layer.weight)).forward(x)
    y = x
    for part in chain(layer):
        y = part.forward(y)
    np.testing.assert_array_equal(y, expected)


@given(products())
def test_chain_runs_as_the_product(pair):
    law_chain_runs_as_the_product(pair, factor_layers)


@given(products())
def test_a_low_rank_layer_runs_as_its_chain(pair):
    law_chain_runs_as_the_product(pair, lambda layer: (layer,))
    law_chain_runs_as_the_product(pair, plain_layers)
    layer, x = pair
    shape = x.shape[1:]
    for part in factor_layers(layer):
        assert not isinstance(part.weight, LowRank)
        shape = part.output_shape(shape)
    assert shape == layer.output_shape(x.shape[1:])


@pytest.mark.parametrize("subscripts", ["xz,zy->xy", "ri,ro->io"])
def test_unknown_subscripts_are_decoded(subscripts):
    layer = Dense(LowRank((whole((2, 2)), whole((2, 2), 1)), subscripts), np.ones(2))
    (part,) = factor_layers(layer)
    assert type(part.weight) is np.ndarray
    law_chain_runs_as_the_product((layer, whole((3, 2))), factor_layers)


def test_grouped_products_are_decoded():
    kernel = LowRank((whole((3, 3, 2, 1)), whole((1, 4), 1)), "hwir,ro->hwio")
    layer = Conv2D(kernel, np.ones(4), groups=2, padding="same")
    assert len(factor_layers(layer)) == 1
    law_chain_runs_as_the_product((layer, whole((1, 4, 4, 4))), factor_layers)


def quantized(shape, axis=None, block_size=None):
    """Integer codes with scales that are powers of two."""
    codes = whole(shape).astype(np.int8)
    scales = list(shape) if block_size else ([] if axis is None else [shape[axis]])
    if block_size:
        scales[axis] = -(-shape[axis] // block_size)
    scale = 2.0 ** (np.arange(np.prod(scales, dtype=int)) % 3).reshape(scales)
    zero = np.ones(scales, int)
    return Quantized(codes, scale, zero, 4, True, axis, block_size, np.dtype(np.float64))


def sparse(shape, values):
    return Sparse(shape, np.arange(0, int(np.prod(shape)), 2), values)


def half(shape):
    return (-(-int(np.prod(shape)) // 2),)


FACTOR_KINDS = {
    "array": whole,
    "quantized": quantized,
    "quantized by axis": lambda shape: quantized(shape, axis=1),
    "quantized in blocks": lambda shape: quantized(shape, axis=0, block_size=2),
    "clustered": lambda shape: Clustered(np.arange(np.prod(shape)).reshape(shape) % 3, ONE * 2),
    "sparse": lambda shape: sparse(shape, whole(half(shape))),
    "sparse clustered": lambda shape: sparse(
        shape, Clustered(np.arange(*half(shape)) % 3, np.array([1.0, 2.0, -3.0]))
    ),
    "sparse quantized": lambda shape: sparse(shape, quantized(half(shape))),
    "sparse quantized by axis": lambda shape: sparse(shape, quantized(half(shape), axis=0)),
    "quantized with sparse codes": lambda shape: dataclasses.replace(
        quantized(shape, axis=1), codes=sparse(shape, np.arange(*half(shape)) % 7)
    ),
    "low rank": lambda shape: LowRank(
        (whole((*shape[:-1], 2)), whole((2, shape[-1]), 1)),
        {2: "ar,rb->ab", 3: "abr,rc->abc"}[len(shape)],
    ),
}


def law_rearranged_moves_the_axes(kind, axes, move):
    rep = FACTOR_KINDS[kind]((3, 4, 5))
    moved = move(rep, axes)
    array = decode(rep).transpose([a for a in axes if a is not None])
    expected = array[tuple(None if a is None else slice(None) for a in axes)]
    assert type(moved) is type(rep)
    assert shape_of(moved) == expected.shape
    np.testing.assert_array_equal(decode(moved), expected)


@pytest.mark.parametrize("kind", FACTOR_KINDS)
@given(st.permutations([0, 1, 2, None, None]))
def test_rearranged_moves_the_axes(kind, axes):
    law_rearranged_moves_the_axes(kind, tuple(axes), rearranged)


@pytest.mark.parametrize("kind", FACTOR_KINDS)
def test_factors_stay_the_representations_they_are(kind):
    kernel = LowRank(
        (FACTOR_KINDS[kind]((3, 2, 4)), FACTOR_KINDS[kind]((4, 3, 2))), "hir,rwo->hwio"
    )
    layer = Conv2D(kernel, np.ones(2), padding="same", stride=2)
    first, *_, last = factor_layers(layer)
    if kind != "low rank":  # which is a chain itself, where its form is known
        assert [type(part.weight) for part in (first, last)] == [type(kernel.factors[0])] * 2
    law_chain_runs_as_the_product((layer, whole((2, 5, 5, 2))), factor_layers)


@pytest.mark.parametrize("kind", ["quantized by axis", "clustered", "sparse"])
def test_other_representations_are_decoded_when_used(kind):
    weight = FACTOR_KINDS[kind]((4, 3))
    layer, x = Dense(weight, Clustered(np.array([0, 1, 0]), np.array([1.0, 2.0]))), whole((2, 4))
    plain = decoded_layer(layer)
    assert type(plain.weight) is type(plain.bias) is np.ndarray
    assert decoded_layer(plain) is plain
    np.testing.assert_array_equal(layer.forward(x), x @ decode(weight) + [1.0, 2.0, 1.0])
    with pytest.raises(CompressionError, match=r"weight is .*decoded\(model\)"):
        layer.vjp(x)


# What a layer keeps, and what it refuses ----------------------------------------------------------


def test_layers_keep_copies_that_nobody_can_write_to():
    weight, bias = np.ones((2, 3)), np.zeros(3)
    layer = Dense(weight, bias)
    weight[...], bias[...] = 7.0, 7.0
    assert (layer.weight == 1).all()
    assert (layer.bias == 0).all()
    for kept in (layer.weight, layer.bias, BatchNorm(ONE, ONE, ONE, ONE).mean):
        with pytest.raises(ValueError, match="read-only"):
            kept[0] = 5.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.weight = weight
    assert Dense(layer.weight).weight is layer.weight  # what is frozen already is not copied


@pytest.mark.parametrize("layer", [*EVERY_LAYER, Dense(quantized((3, 2)))], ids=repr)
def test_pickled_layers_come_back_frozen(layer):
    back = pickle.loads(pickle.dumps(layer))
    assert repr(back) == repr(layer)
    for name, value in back.parameters().items():
        np.testing.assert_array_equal(decode(value), decode(layer.parameters()[name]))
        assert not isinstance(value, np.ndarray) or not value.flags.writeable


@given(small((2, 3, 4, 5)), small((4, 3)))
def test_other_layouts_of_weights(oihw, out_in):
    kernel, matrix = Conv2D.from_oihw(oihw, stride=2).weight, Dense.from_out_in(out_in).weight
    assert kernel.flags.c_contiguous
    assert matrix.flags.c_contiguous
    for o, i, p, q in np.ndindex(*oihw.shape):
        assert kernel[p, q, i, o] == oihw[o, i, p, q]
    for o, i in np.ndindex(*out_in.shape):
        assert matrix[i, o] == out_in[o, i]


def test_geometry_is_kept_in_one_form():
    layer = Conv2D(whole((3, 3, 1, 2)), stride=2, padding=1, dilation=np.int64(2))
    assert (layer.stride, layer.padding, layer.dilation) == ((2, 2), ((1, 1), (1, 1)), (2, 2))
    assert repr(layer).startswith("Conv2D(weight=float64[3, 3, 1, 2], bias=None, stride=(2, 2)")


KERNEL = np.ones((3, 3, 1, 2))


class Derived(ReLU):
    """Not a ReLU to whoever does not know it."""


# In a row: layers whose types and options are the same, however they are written or weighted.
SAME = [
    [Conv2D(KERNEL, padding=0), Conv2D(whole((2, 2, 5, 4)), np.ones(4), stride=1, padding=(0, 0))],
    [Conv2D(KERNEL, stride=2)],
    [Conv2D(KERNEL, padding=1), Conv2D(KERNEL, padding=((1, 1), (1, 1)))],
    [Conv2D(KERNEL, padding="same")],
    [Conv2D(KERNEL, dilation=2)],
    [Conv2D(KERNEL, groups=2)],
    [Dense(np.ones((2, 3))), Dense(np.zeros((3, 2)), np.ones(2))],
    [BatchNorm(ONE, ONE, ONE, ONE), BatchNorm(*[np.ones(2)] * 4)],
    [BatchNorm(ONE, ONE, ONE, ONE, 0.5)],
    [MaxPool2D(2), MaxPool2D((2, 2))],
    [MaxPool2D(2, 1)],
    [AvgPool2D(2)],
    [AvgPool2D(2, count_include_pad=True)],
    [LeakyReLU(0.5)],
    [LeakyReLU(0.25)],
    [ReLU()],
    [Derived()],
]


def law_same_options(same):
    """True within a row, False across rows."""
    for i, row in enumerate(SAME):
        for j, other in enumerate(SAME):
            assert {same(a, b) for a in row for b in other} == {i == j}


def test_same_options():
    law_same_options(same_options)


REFUSED = {
    "weight of integers": (lambda: Dense(np.ones((2, 2), int)), "weight must be of dtype"),
    "weight of another rank": (lambda: Dense(np.ones((2, 2, 2))), "weight must have 2 dim"),
    "kernel of another rank": (lambda: Conv2D(np.ones((2, 2))), "weight must have 4 dim"),
    "rep of another rank": (lambda: Dense(quantized((2,))), "weight must stand for a float array"),
    "rep of integers": (
        lambda: Dense(Sparse((2, 2), np.array([0]), np.array([1]))),
        "weight must stand for a float array",
    ),
    "bias of another length": (lambda: Dense(np.ones((2, 2)), np.ones(3)), r"shape \(2,\)"),
    "bias of another dtype": (
        lambda: Dense(np.ones((2, 2)), np.ones(2, np.float32)),
        "bias must be float64",
    ),
    "bias of another rank": (lambda: Dense(np.ones((2, 1)), np.ones((1, 1))), "bias must have 1"),
    "stride 0": (lambda: Conv2D(KERNEL, stride=0), "stride must be"),
    "stride of three": (lambda: Conv2D(KERNEL, stride=(1, 1, 1)), "stride must be"),
    "dilation 1.5": (lambda: Conv2D(KERNEL, dilation=1.5), "dilation must be"),
    "padding unknown": (lambda: Conv2D(KERNEL, padding="full"), "padding must be"),
    "padding negative": (lambda: Conv2D(KERNEL, padding=-1), "padding must be"),
    "groups do not divide": (lambda: Conv2D(KERNEL, groups=3), "groups must divide"),
    "groups 0": (lambda: Conv2D(KERNEL, groups=0), "groups must be"),
    "window 0": (lambda: MaxPool2D(0), "window must be"),
    "pool stride 0": (lambda: AvgPool2D(2, stride=0), "stride must be"),
    "pool padding": (lambda: MaxPool2D(2, padding="half"), "padding must be"),
    "count_include_pad": (lambda: AvgPool2D(2, count_include_pad=1), "count_include_pad must be"),
    "slope above 1": (lambda: LeakyReLU(1.5), "negative_slope must be"),
    "rate 1": (lambda: Dropout(1.0), "rate must be less than 1"),
    "rate negative": (lambda: Dropout(-0.1), "rate must be"),
    "rng a seed": (lambda: Dropout(0.5).vjp(np.ones((1, 1)), rng=3), "rng must be"),
    "variance negative": (lambda: BatchNorm(ONE, ONE, ONE, -ONE), "variance must not be negative"),
    "statistics of another length": (lambda: BatchNorm(ONE, ONE, np.ones(2), ONE), "mean must"),
    "epsilon 0": (lambda: BatchNorm(ONE, ONE, ONE, ONE, 0.0), "epsilon must be"),
    "shape of dense input": (lambda: Dense(np.ones((2, 2))).output_shape((3,)), r"shape \(2,\)"),
    "shape of image": (lambda: Conv2D(KERNEL).output_shape((5, 5, 2)), r"\(H, W, 1\), not"),
    "shape not an image": (lambda: MaxPool2D(2).output_shape((5, 5)), r"\(H, W, C\), not"),
    "image too small": (lambda: Conv2D(KERNEL).output_shape((2, 5, 1)), "kernel covers"),
    "channels of batch norm": (
        lambda: BatchNorm(ONE, ONE, ONE, ONE).output_shape((4,)),
        "3 channels",
    ),
    "dtype of the input": (lambda: Dense(np.ones((2, 2))).forward(np.ones((1, 2), "f4")), "dtype"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(CompressionError, match=message):
        call()


def test_the_base_has_no_operation_of_its_own():
    for call in (Layer().forward, Layer().vjp):
        with pytest.raises(NotImplementedError):
            call(np.ones((1, 1)))
    with pytest.raises(NotImplementedError):
        Layer().output_shape((1,))


# Wrong implementations that the laws must kill ----------------------------------------------------


def _chain_with(change):
    def wrong(layer):
        return tuple(change(i, part) for i, part in enumerate(factor_layers(layer)))

    return wrong


SPATIAL = LowRank((whole((3, 2, 2)), whole((2, 3, 2), 1)), "hir,rwo->hwio")
CHAINED = (Conv2D(SPATIAL, np.ones(2), stride=2, padding="same"), whole((1, 6, 6, 2)))
CASE = Case(
    Conv2D(whole((2, 2, 1, 2)), np.ones(2), stride=(2, 1)),
    whole((1, 4, 4, 1)),
    whole((1, 2, 3, 2), 1),
)


def _vjp_with(change):
    def wrong(layer, x):
        y, pullback = layer.vjp(x)
        return y, lambda dy: change(*pullback(dy))

    return wrong


def _replaced_axis(rep, axes):
    right = rearranged(rep, axes)
    wrong_axis = (right.axis + 1) % right.codes.ndim
    return dataclasses.replace(
        right,
        axis=wrong_axis,
        scale=np.resize(right.scale, right.codes.shape[wrong_axis]),
        zero_point=np.resize(right.zero_point, right.codes.shape[wrong_axis]),
    )


def _unsorted_values(rep, axes):
    right = rearranged(rep, axes)
    return Sparse(right.shape, right.indices, rep.values)


PLANTED = {
    "layers compared as they print": (law_same_options, lambda a, b: repr(a) == repr(b)),
    "layers compared without their type": (
        law_same_options,
        lambda a, b: a.options() == b.options(),
    ),
    "layers compared by their type": (law_same_options, lambda a, b: type(a) is type(b)),
    "a derived layer taken for its base": (
        law_same_options,
        lambda a, b: isinstance(a, type(b)) and a.options() == b.options(),
    ),
    "both halves take the whole stride": (
        lambda wrong: law_chain_runs_as_the_product(CHAINED, wrong),
        _chain_with(lambda i, part: dataclasses.replace(part, stride=2)),
    ),
    "no padding in the halves": (
        lambda wrong: law_chain_runs_as_the_product(CHAINED, wrong),
        _chain_with(lambda i, part: dataclasses.replace(part, padding="valid")),
    ),
    "the bias in the first of the chain": (
        lambda wrong: law_chain_runs_as_the_product(CHAINED, wrong),
        _chain_with(lambda i, part: dataclasses.replace(part, bias=None if i else np.ones(2))),
    ),
    "the bias is forgotten": (
        lambda wrong: law_chain_runs_as_the_product(CHAINED, wrong),
        _chain_with(lambda i, part: dataclasses.replace(part, bias=None)),
    ),
    "the scales stay on the old axis": (
        lambda wrong: law_rearranged_moves_the_axes("quantized by axis", (1, None, 0, 2), wrong),
        _replaced_axis,
    ),
    "sparse values in the old order": (
        lambda wrong: law_rearranged_moves_the_axes("sparse", (2, 1, 0), wrong),
        _unsorted_values,
    ),
    "gradient of the weight as a mean": (
        lambda wrong: law_gradients_are_adjoint(CASE, wrong),
        _vjp_with(lambda dx, g: (dx, {**g, "weight": g["weight"] / 2})),
    ),
    "no gradient of the bias": (
        lambda wrong: law_gradients_are_adjoint(CASE, wrong),
        _vjp_with(lambda dx, g: (dx, {"weight": g["weight"]})),
    ),
    "the stride is ignored": (
        lambda wrong: law_layer_is_its_operation(CASE, wrong),
        lambda layer, x: (conv2d(x, layer.weight, layer.bias), None),
    ),
    "the kernel's gradient is flipped": (
        lambda wrong: law_layer_is_its_operation(CASE, wrong),
        _vjp_with(lambda dx, g: (dx, {**g, "weight": g["weight"][::-1]})),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
