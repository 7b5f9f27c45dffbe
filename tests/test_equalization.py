"""Equalization leaves the function as it is, bit for bit, and gives channels ranges of one size."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from minicompress.compressors.quantization import quantize
from minicompress.errors import CompressionError
from minicompress.nn.architectures import mobilenet_v2
from minicompress.nn.composition import Parallel, Residual, Sequential
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network, Runner
from minicompress.nn.parameters import decoded, parameters
from minicompress.nn.pointwise import (
    Clip,
    Dropout,
    HardSwish,
    LeakyReLU,
    PReLU,
    ReLU,
    Sigmoid,
)
from minicompress.nn.stateless import (
    AvgPool2D,
    ChannelShuffle,
    Concat,
    Flatten,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
    Upsample2D,
)
from minicompress.representation import decode, dtype_of
from minicompress.rewrite.batch_norm import fold_batch_norm
from minicompress.rewrite.equalization import WEIGHTED, channel_readers, equalize
from minicompress.search.plan import compress
from minicompress.testing import models

rng = np.random.default_rng


def spread(*shape, seed=0):
    """Weights whose channels differ by factors up to a hundred, in every axis."""
    r = rng(seed)
    out = np.exp(r.uniform(-2, 2, (1,) * (len(shape) - 1) + shape[-1:]))
    into = np.exp(r.uniform(-2, 2, (*shape[-2:-1], 1)))
    return r.normal(size=shape) * out * into


def images(count, dtype=np.float64):
    return ((np.arange(count * 40) * 7) % 11 - 5.0).reshape(count, 5, 4, 2).astype(dtype)


def tame(network, x):
    """Whether no value of the network comes near the ends of its dtype."""
    values, run = {0: x}, Runner(network)
    for i in range(len(network.layers)):
        values = run(values, i, i + 1)
        y, ends = abs(values[i + 1].astype(np.float64)), np.finfo(values[i + 1].dtype)
        if not (
            (y == 0) | ((y > float(ends.tiny) * 2.0**30) & (y < float(ends.max) / 2**10))
        ).all():
            return False
    return True


def law_same_function(impl, network, x):
    """Every output, bit for bit; the layers and what they read stay."""
    found = impl(network)
    assert (found.inputs, found.outputs) == (network.inputs, network.outputs)
    for new, old in zip(found.layers, network.layers, strict=True):
        assert type(new) is type(old)
        assert new.options().keys() == old.options().keys()
    expected, got = decoded(network)(x), decoded(found)(x)
    if not isinstance(got, tuple):
        expected, got = (expected,), (got,)
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a, b)


def ranges(network):
    """For every channel between two layers its range before and behind, channel by channel."""
    for i in range(len(network.layers)):
        readers = channel_readers(network, i)
        if not readers:
            continue
        weight = abs(decode(network.layers[i].weight).astype(np.float64))
        for c in range(weight.shape[-1]):
            behind = [0.0]
            for j, channels in readers:
                layer = network.layers[j]
                w = abs(decode(layer.weight).astype(np.float64))
                groups = getattr(layer, "groups", 1)
                height, width = w.shape[-2], w.shape[-1] // groups
                for place in np.flatnonzero(channels == c):
                    g, row = divmod(int(place), height)
                    part = w[..., row, g * width : (g + 1) * width]
                    behind.append(part.max(initial=0.0))
            yield weight[..., c].max(initial=0.0), max(behind)


def law_equal_ranges(impl, network):
    """Within a factor of two, because the factors are powers of two."""
    for made, read in ranges(impl(network)):
        assert made == 0 or read == 0 or abs(math.log2(made / read)) <= 1 + 1e-9


@given(models(max_layers=6))
def test_the_function_stays(network):
    kind = next((dtype_of(r) for p in parameters(network) for r in p.values()), np.dtype("f4"))
    x = images(2, kind)
    with np.errstate(all="ignore"):
        if tame(decoded(network), x) and tame(decoded(equalize(network)), x):
            law_same_function(equalize, network, x)


BETWEEN = {
    "nothing": (),
    "ReLU": (ReLU(),),
    "LeakyReLU": (LeakyReLU(0.3),),
    "PReLU": (PReLU(np.array([0.5, -2.0, 0.0, 3.0, 1.0, 0.1])),),
    "Clip at 0": (Clip(0), Clip(-math.inf, math.inf)),
    "Dropout": (Dropout(0.5),),
    "MaxPool2D": (MaxPool2D(2, 1, 1), ReLU()),
    "AvgPool2D": (AvgPool2D(3, 1, 1),),
    "Upsample2D": (Upsample2D(2),),
    "ChannelShuffle": (ChannelShuffle(2), ChannelShuffle(3), ReLU(), ChannelShuffle(2)),
    "GlobalAvgPool2D": (GlobalAvgPool2D(keep_axes=True),),
}


def between(layers, groups=1):
    first = Conv2D(spread(3, 3, 2, 6), spread(6, seed=1), padding="same")
    second = Conv2D(spread(1, 1, 6 // groups, 6, seed=2), groups=groups)
    return Sequential((first, *layers, second, GlobalAvgPool2D(), Dense(spread(6, 3, seed=3))))


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("name", BETWEEN)
def test_layers_between(name, groups):
    network = between(BETWEEN[name], groups)
    law_same_function(equalize, network, images(3))
    law_same_function(equalize, network_in(network, np.float32), images(3, np.float32))
    law_equal_ranges(equalize, network)
    with pytest.raises(AssertionError):
        law_equal_ranges(lambda same: same, network)


def network_in(network, dtype):
    layers = [
        replace(layer, **{n: decode(v).astype(dtype) for n, v in layer.parameters().items()})
        for layer in network.layers
    ]
    return Network(tuple(layers), network.inputs, network.outputs)


def test_flattened_images_branches_and_transposed_convolutions():
    first = Conv2D(spread(3, 3, 2, 4), spread(4, seed=1), padding="same")
    up = ConvTranspose2D(spread(2, 2, 2, 4, seed=5), groups=2, stride=2)
    flat = (ReLU(), Flatten(), Dense(spread(80, 3, seed=6)))
    both = Parallel((flat, (up, LeakyReLU(), Flatten(), Dense(spread(320, 3, seed=7)))), Concat())
    network = Sequential((first, both, Dense(spread(6, 2, seed=8))))
    law_same_function(equalize, network, images(3))
    law_equal_ranges(equalize, network)
    assert [len(channel_readers(network, i)) for i in range(4)] == [2, 0, 0, 0]


def test_a_mobile_network():
    """Depthwise chains take several sweeps; with ReLU in place of ReLU6 all of them are equal."""
    plain = fold_batch_norm(mobilenet_v2(rng(0), 0.25, 32, 10))
    layers = [ReLU() if isinstance(layer, Clip) else layer for layer in plain.layers]
    layers = [
        replace(layer, weight=spread(*layer.weight.shape, seed=i).astype("f4") / 64)
        if isinstance(layer, Conv2D)
        else layer
        for i, layer in enumerate(layers)
    ]
    network = Network(tuple(layers), plain.inputs, plain.outputs)
    x = rng(1).normal(size=(1, 32, 32, 3)).astype("f4")
    assert network(x).any()
    law_same_function(equalize, network, x)
    law_equal_ranges(equalize, network)


def test_one_scale_for_a_weight_loses_less_after_it():
    network, x = between((ReLU(),)), rng(0).normal(size=(8, 5, 4, 2))
    errors = []
    for each in (network, equalize(network)):
        plan = dict.fromkeys((0, 2), quantize)
        errors.append(np.linalg.norm(compress(each, plan).model(x) - network(x)))
    assert errors[1] < 0.3 * errors[0]


# ---- channels that stay

STOPS = {
    "Clip(0, 6)": Clip(0, 6),
    "Clip(-1, 0)": Clip(-1, 0),
    "Sigmoid": Sigmoid(),
    "HardSwish": HardSwish(),
    "LocalResponseNorm": LocalResponseNorm(3, 0.5),
}


@pytest.mark.parametrize("name", STOPS)
def test_channels_that_go_elsewhere_stay(name):
    network = between((STOPS[name],))
    found = equalize(network)
    assert found.layers[0] is network.layers[0]
    law_same_function(equalize, network, images(3))


def test_outputs_and_sums_stay():
    one = Dense(spread(4, 4))
    network = Network((one, ReLU(), Dense(spread(4, 2, seed=1))), ((0,), (1,), (2,)), (2, 3))
    assert equalize(network).layers == network.layers
    network = Sequential((one, Residual(ReLU()), one))
    assert equalize(network).layers == network.layers


def test_the_second_reader_gets_its_own_channels():
    """A shuffle before one reader does not shuffle the channels of the other."""
    first = Conv2D(spread(1, 1, 2, 6))
    readers = (Conv2D(spread(1, 1, 6, 2, seed=s)) for s in (1, 2))
    both = Parallel(((ChannelShuffle(2), next(readers)), (next(readers),)), Concat())
    network = Sequential((first, both))
    law_same_function(equalize, network, images(2))
    law_equal_ranges(equalize, network)


def test_dead_channels_and_numbers_at_the_ends_stay():
    w = np.array([[0.0, 1e-300, 1e300, 4.0]])
    v = np.array([[1.0], [1e300], [1e-300], [0.0]])
    network = Sequential((Dense(w, np.array([0.0, 1e-300, 1e300, 1.0])), Dense(v)))
    found = equalize(network)
    assert found.layers[0].weight[0, [0, 3]].tolist() == [0.0, 4.0]
    assert np.isfinite(found.layers[0].bias).all()
    law_same_function(equalize, network, np.array([[1.0], [3.0]]))
    tiny = Sequential((Dense(np.array([[5e-324, 1.0]])), Dense(np.array([[1e-300], [1.0]]))))
    assert equalize(tiny).layers == tiny.layers
    # Its bias would become subnormal and lose bits.
    lossy = Sequential(
        (Dense(np.array([[2.0**20]]), np.array([1.1 * 2.0**-1020])), Dense(np.eye(1)))
    )
    assert equalize(lossy).layers == lossy.layers


def test_again_changes_nothing():
    network = between((ReLU(),))
    once = equalize(network)
    assert equalize(once).layers == once.layers


def test_bad_input():
    with pytest.raises(CompressionError, match="network must be a Network"):
        equalize((Dense(np.ones((1, 1))),))
    with pytest.raises(CompressionError, match=r"layer 0 \(Dense\): weight must be finite"):
        equalize(Sequential((Dense(np.full((1, 1), np.nan)),)))
    with pytest.raises(CompressionError, match=r"layer 1 \(Dense\): its weights read 3 inputs, no"):
        equalize(Sequential((Dense(np.ones((1, 2))), Dense(np.ones((3, 1))))))
    with pytest.raises(CompressionError, match=r"layer 1 \(ChannelShuffle\): groups must divide"):
        equalize(Sequential((Conv2D(np.ones((1, 1, 1, 3))), ChannelShuffle(2), Flatten())))


def test_empty_weights_stay():
    for inputs, hidden in ((0, 2), (2, 0)):
        network = Sequential((Dense(np.ones((inputs, hidden))), Dense(np.ones((hidden, 2)))))
        assert equalize(network).layers == network.layers
    network = Sequential((Dense(np.ones((1, 2))), Dense(np.ones((2, 0)))))
    assert equalize(network).layers == network.layers


# ---- wrong implementations


def exact_roots(network):
    """Factors that are no powers of two: the same only up to rounding."""
    first, relu, second = network.layers
    s = np.sqrt(abs(first.weight).max(0) / abs(second.weight).max(1))
    return Sequential(
        (
            replace(first, weight=first.weight / s),
            relu,
            replace(second, weight=second.weight * s[:, None]),
        )
    )


def without_the_bias(network):
    found = equalize(network)
    return Sequential((replace(found.layers[0], bias=network.layers[0].bias), *found.layers[1:]))


def only_one_side(network):
    return Sequential((*equalize(network).layers[:2], network.layers[2]))


@pytest.mark.parametrize("wrong", [exact_roots, without_the_bias, only_one_side])
def test_wrong_implementations_are_found(wrong):
    first = Dense(spread(5, 6), spread(6, seed=1))
    network = Sequential((first, ReLU(), Dense(spread(6, 4, seed=2))))
    x = rng(0).normal(size=(4, 5))
    law_same_function(equalize, network, x)
    law_equal_ranges(equalize, network)
    with pytest.raises(AssertionError):
        law_same_function(wrong, network, x)


def test_weighted_layers_are_those_that_can_be_read():
    assert set(WEIGHTED) == {Conv2D, ConvTranspose2D, Dense}
