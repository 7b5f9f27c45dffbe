"""The channels of least norm go, tied ones together by the sum of their squares; one stays."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from program_models import SHAPE, exact_programs, values_of

import minicompress as mc
from minicompress.representation import decode
from minicompress.rewrite import channels as channels_module
from minicompress.rewrite import remove_least_channels
from minicompress.rewrite.channel_names import channel_names, is_depthwise, makes_channels
from minicompress.rewrite.channels import tied_layers


def squares(network, channels):
    """For every name the sum of the squares of all weights that make it; whole numbers."""
    sums = {}
    for layer, names in zip(network.layers, channels.names[1:], strict=True):
        if makes_channels(layer) or is_depthwise(layer):
            for c, name in enumerate(names.tolist()):
                sums[name] = sums.get(name, 0) + np.square(decode(layer.weight)[..., c]).sum()
    return sums


def law_least_go(remove, network, amount):
    channels = channel_names(network, SHAPE, tie_shuffles=True)
    smaller, sums = remove(network, amount, SHAPE), squares(network, channels)
    gone = set()
    for _, names in tied_layers(network, channels):
        free = [name for name in names if name not in channels.fixed]
        order = sorted(free, key=lambda name: (sums[name], name))
        gone |= {*order[: round(amount * len(names))]}
    for names in channels.names:  # of a value that would lose all its channels the largest stays
        if gone.issuperset(names.tolist()):
            gone.remove(max(names.tolist(), key=lambda name: (sums[name], -name)))
    values = values_of(smaller, np.ones((1, *SHAPE)))
    for names, value in zip(channels.names, values, strict=True):
        assert value.shape[-1] == sum(name not in gone for name in names.tolist())
    for old, new, names in zip(network.layers, smaller.layers, channels.names[1:], strict=True):
        if makes_channels(old):
            kept = [c for c, name in enumerate(names.tolist()) if name not in gone]
            if old.bias is not None:
                np.testing.assert_array_equal(decode(new.bias), decode(old.bias)[kept])


@given(exact_programs(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_drawn_networks(case, amount):
    law_least_go(remove_least_channels, case[0], amount)


def residual(first, inner):
    """Two layers whose outputs are added; the readers behind them."""
    head = mc.Dense(np.ones((len(first), 1)))
    norms = mc.Dense(np.diag(np.array(inner)))
    return mc.Sequential((mc.Dense(np.array([first])), mc.Residual(norms), head))


TIED = residual([3.0, 1.0, 2.0], [1.0, 9.0, 2.0])  # squares 10, 82 and 8


def law_by_the_sum(remove):
    assert remove(TIED, 1 / 3).layers[0].weight.tolist() == [[3.0, 1.0]]
    assert remove(TIED, 2 / 3).layers[0].weight.tolist() == [[1.0]]


def law_one_stays(remove):
    smaller = remove(TIED, 1.0)
    assert smaller.layers[0].weight.tolist() == [[1.0]]
    assert smaller.layers[1].weight.tolist() == [[9.0]]
    equal = mc.Sequential((mc.Dense(np.array([[2.0, -2.0, 2.0]])), mc.Dense(np.eye(3))))
    assert remove(equal, 1 / 3).layers[0].weight.tolist() == [[-2.0, 2.0]]


def test_by_hand():
    law_by_the_sum(remove_least_channels)
    law_one_stays(remove_least_channels)


def test_a_shuffle_keeps_the_same_places_of_each_group():
    first = mc.Conv2D(np.array([1.0, 9.0, 5.0, 5.0, 2.0, 1.0]).reshape(1, 1, 1, 6))
    head = mc.GlobalAvgPool2D(), mc.Dense(np.ones((6, 1)))
    network = mc.Sequential((first, mc.nn.ChannelShuffle(2), *head))
    # Places 0, 1, 2 of the two groups: squares 26, 85 and 26.
    assert remove_least_channels(network, 1 / 3).layers[0].weight.ravel().tolist() == [9, 5, 2, 1]


def test_norms_neither_overflow_nor_vanish():
    row = np.array([[2e300, 1e300, 3e-300, 2e-300]])
    network = mc.Sequential((mc.Dense(row), mc.Dense(np.ones((4, 1)))))
    assert remove_least_channels(network, 0.25).layers[0].weight.tolist() == [[*row[0, :3]]]
    assert remove_least_channels(network, 0.75).layers[0].weight.tolist() == [[2e300]]


def test_amounts_by_layer():
    layers = mc.Dense(np.array([[1.0, 2.0]])), mc.Dense(np.diag([3.0, 4.0])), mc.Dense(np.eye(2))
    network = mc.Sequential(layers)
    smaller = remove_least_channels(network, {1: 0.5})
    assert [layer.weight.shape for layer in smaller.layers] == [(1, 2), (2, 1), (1, 2)]
    same = remove_least_channels(network, 0.5)
    assert [layer.weight.shape for layer in same.layers] == [(1, 1), (1, 1), (1, 2)]
    assert remove_least_channels(TIED, {1: 0.5, 0: 0.5}).layers[0].weight.shape == (1, 1)


BAD = {
    "amount must": (TIED, 1.5),
    r"amount\[0\] must": (TIED, {0: -1}),
    r"layers \[0, 1\] are tied: amount must not be \{0: 0.5, 1: 0.25\}": (TIED, {0: 0.5, 1: 0.25}),
    r"layer 2 \(Add\) makes no channels": (TIED, {2: 0.5}),
    r"no channel of layer 3 \(Dense\) can be removed: layer 3 \(Dense\) makes an output": (
        TIED, {3: 0.5},
    ),
    "a layer of amount must": (TIED, {7: 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_refused(message):
    with pytest.raises(mc.CompressionError, match=message):
        remove_least_channels(*BAD[message])


def exchanged(name, value):
    def wrong(*arguments):
        with mock.patch.object(channels_module, name, value):
            return remove_least_channels(*arguments)

    return wrong


def norms_of_the_maker(network, channels, right=channels_module.channel_norms):
    norms = right(network, channels)
    weight = network.layers[0].weight
    norms[channels.names[1]] = np.abs(weight).max(0)
    return norms


def largest_go(network, channels, right=channels_module.channel_norms):
    return -right(network, channels)


PLANTED = {
    "the first of tied layers decides": (law_by_the_sum, norms_of_the_maker),
    "the largest go": (law_by_the_sum, largest_go),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(exchanged("channel_norms", wrong))


def test_all_of_a_tie_going_is_found():
    with pytest.raises((AssertionError, mc.CompressionError)):
        law_one_stays(exchanged("with_one_left", lambda channels, gone, norms: gone))


def test_a_residual_network_at_half_the_width_counts_as_one_built_so():
    rng = np.random.default_rng(0)

    def built(width, inner):
        def conv(*shape):
            return mc.Conv2D(rng.normal(size=shape), rng.normal(size=shape[-1]), padding="same")

        block = mc.Residual(conv(3, 3, width, inner), mc.ReLU(), conv(3, 3, inner, width))
        head = mc.GlobalAvgPool2D(), mc.Dense(rng.normal(size=(width, 10)))
        return mc.Sequential((conv(3, 3, 1, width), block, mc.ReLU(), *head))

    small = remove_least_channels(built(8, 12), 0.5)
    found, wanted = (mc.summary(m, (8, 8, 1)) for m in (small, built(4, 6)))
    assert (found.params, found.macs) == (wanted.params, wanted.macs)
