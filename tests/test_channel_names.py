"""Channels have names: two have one name where a layer ties them, and none is removed alone."""

from __future__ import annotations

import dataclasses
import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from program_models import SHAPE, exact_programs, signs, values_of

import minicompress as mc
from minicompress.nn.network import value_shapes
from minicompress.nn.parameters import with_layers
from minicompress.representation import decode
from minicompress.rewrite import channel_names as names_module
from minicompress.rewrite.channel_names import channel_names, is_depthwise, makes_channels
from minicompress.rewrite.channels import remove_channels

AFFINE = mc.Conv2D | mc.nn.ConvTranspose2D | mc.Dense


def ones(layer):
    """The layer with weights that hide nothing: every output grows with all that it depends on."""
    changed = {name: np.ones_like(decode(rep)) for name, rep in layer.parameters().items()}
    return dataclasses.replace(layer, **changed) if changed else layer


def tied(network, shape):
    """What ties channels, found by trying: the set of (value, channel) of each, and the fixed ones.

    A channel of what a layer reads is raised. The channels of its output that change are tied to
    it, unless the layer makes new channels.
    """
    shapes = value_shapes(network, shape)
    sets = {(v, c): {(v, c)} for v, s in enumerate(shapes) for c in range(s[-1])}
    fixed = {(v, c) for v in (0, *network.outputs) for c in range(shapes[v][-1])}

    def join(a, b):
        both = sets[a] | sets[b]
        sets.update(dict.fromkeys(both, both))

    for i, (layer, reads) in enumerate(zip(network.layers, network.inputs, strict=True)):
        if isinstance(layer, AFFINE) and not is_depthwise(layer):
            if not makes_channels(layer):
                fixed |= {(v, c) for v in (*reads, i + 1) for c in range(shapes[v][-1])}
            continue
        xs = [1 + np.random.default_rng(v).random((1, *shapes[v])) for v in reads]
        before = ones(layer).forward(*xs)
        for k, v in enumerate(reads):
            for c in range(shapes[v][-1]):
                raised = [x + (np.arange(x.shape[-1]) == c) * (j == k) for j, x in enumerate(xs)]
                moved = (ones(layer).forward(*raised) != before).reshape(-1, before.shape[-1])
                for d in np.flatnonzero(moved.any(0)):
                    join((v, c), (i + 1, int(d)))
    return sets, {node for node in sets if sets[node] & fixed}


def law_names_say_what_is_tied(name, network, shape):
    found = name(network, shape)
    sets, fixed = tied(network, shape)
    first = {}
    for v, names in enumerate(found.names):
        for c, label in enumerate(names):
            node = first.setdefault(int(label), (v, c))
            assert sets[node] == sets[v, c]
            assert (int(label) in found.fixed) == ((v, c) in fixed)
    assert len(first) == len({min(s) for s in sets.values()})


@given(st.booleans().flatmap(lambda head: exact_programs(head=head)))
def test_a_name_is_a_tie(case):
    law_names_say_what_is_tied(channel_names, case[0], SHAPE)


@given(exact_programs())
def test_without_the_shape_of_an_input_less_is_known_and_nothing_else(case):
    known, guessed = channel_names(case[0], SHAPE), channel_names(case[0])
    pairs = {
        (int(b), int(a))
        for full, part in zip(known.names, guessed.names, strict=True)
        if not isinstance(part, str)
        for a, b in zip(full, part, strict=True)
    }
    free = {(b, a) for b, a in pairs if b not in guessed.fixed}
    assert len(free) == len({b for b, _ in free}) == len({a for _, a in free})
    assert not {a for _, a in free} & set(known.fixed)


def zeroed(network, channels, gone):
    """The network whose layers make zeros in the channels of these names."""
    layers = []
    for layer, names in zip(network.layers, channels.names[1:], strict=True):
        keep = 1.0 * ~np.isin(names, gone)
        drop = ("weight", "bias", "scale", "offset")
        changed = {n: decode(v) * keep for n, v in layer.parameters().items() if n in drop}
        layers.append(dataclasses.replace(layer, **changed) if changed else layer)
    return with_layers(network, layers)


def free_layers(network, shape):
    """The layers that make channels of which some can be removed, and these channels."""
    channels = channel_names(network, shape)
    found = {}
    for i, names in enumerate(channels.names[1:]):
        if makes_channels(network.layers[i]):
            free = [c for c, name in enumerate(names) if int(name) not in channels.fixed]
            found |= {i: free} if free else {}
    return channels, found


def law_removal_is_zero(remove, network, x, index, keep, shape):
    channels = channel_names(network, SHAPE)
    gone = np.delete(channels.names[index + 1], keep)
    try:
        smaller = remove(network, index, keep, shape)
        values = values_of(smaller, x)
    except (mc.CompressionError, ValueError) as error:
        raise AssertionError(f"a network that does not run: {error}") from None
    zeros = values_of(zeroed(network, channels, gone), x)
    for names, value, full in zip(channels.names, values, zeros, strict=True):
        kept = ~np.isin(names, gone)
        assert not full[..., ~kept].any()
        np.testing.assert_array_equal(value, full[..., kept])
    before, after = (mc.summary(m, SHAPE).rows for m in (network, smaller))
    assert [row.index for row in before] == [row.index for row in after]
    for old, new in zip(before, after, strict=True):
        i, layer = old.index, network.layers[old.index]
        masks = [~np.isin(channels.names[v], gone) for v in (network.inputs[i][0], i + 1)]
        left, whole = zip(*((int(m.sum()), len(m)) for m in masks), strict=True)
        if not makes_channels(layer):
            left, whole = left[1:], whole[1:]  # a weight for each channel, not for each pair
        biases = 0 if getattr(layer, "bias", None) is None else 1
        assert new.macs * math.prod(whole) == old.macs * math.prod(left)
        rest = old.params - biases * whole[-1], new.params - biases * left[-1]
        assert rest[1] * math.prod(whole) == rest[0] * math.prod(left)


@given(exact_programs(), st.data())
def test_removing_zero_channels_changes_no_output(case, data):
    network, x = case
    shape = data.draw(st.sampled_from([SHAPE, None]))
    channels, free = free_layers(network, shape)
    if not free:
        return
    index = data.draw(st.sampled_from(sorted(free)))
    names = channels.names[index + 1]
    gone = {int(names[c]) for c in data.draw(st.sets(st.sampled_from(free[index]), min_size=1))}
    keep = [c for c, name in enumerate(names) if int(name) not in gone]
    lost = [set(map(int, n)) <= gone for n in channels.names if not isinstance(n, str)]
    shuffled = any(isinstance(layer, mc.nn.ChannelShuffle) for layer in network.layers)
    may_be_refused = shuffled or any(lost)
    if not (may_be_refused and refused(lambda: remove_channels(network, index, keep, shape))):
        law_removal_is_zero(remove_channels, network, x, index, keep, shape)


def refused(call):
    try:
        call()
    except mc.CompressionError as error:
        return "at least one" in str(error) or "another order" in str(error)
    return False


# -- by hand --------------------------------------------------------------------------------------


def kernel(*shape, seed=0):
    return mc.Conv2D(signs(np.random.default_rng(seed), *shape), padding="same")


HEAD = (mc.GlobalAvgPool2D(), mc.Dense(np.ones((4, 2))))
BLOCK = mc.Residual(kernel(3, 3, 4, 6), mc.ReLU(), kernel(3, 3, 6, 4))
GATE = mc.Parallel(
    ((), (mc.GlobalAvgPool2D(keep_axes=True), kernel(1, 1, 4, 4), mc.nn.Sigmoid())), mc.Multiply()
)
DENSE_BLOCK = mc.Sequential(
    (mc.Parallel(((), kernel(3, 3, 4, 3)), mc.Concat()), kernel(1, 1, 7, 4))
)
WIDER = mc.Conv2D(signs(np.random.default_rng(1), 3, 3, 1, 8), padding="same", groups=4)
NORM = mc.BatchNorm(*np.ones((4, 144)))
BY_HAND = {
    # Of four channels two go: what is left of each layer with weights.
    "residual": (
        (BLOCK, *HEAD), 0, 4,
        {0: (1, 1, 2, 2), 1: (3, 3, 2, 6), 3: (3, 3, 6, 2), 6: (2, 2)},
    ),
    "inside": (
        (BLOCK, *HEAD), 1, 6,
        {0: (1, 1, 2, 4), 1: (3, 3, 4, 4), 3: (3, 3, 4, 4), 6: (4, 2)},
    ),
    "gated": ((GATE, *HEAD), 2, 4, {0: (1, 1, 2, 2), 2: (1, 1, 2, 2), 6: (2, 2)}),
    "concatenated": (
        (DENSE_BLOCK, *HEAD), 1, 3,
        {0: (1, 1, 2, 4), 1: (3, 3, 4, 2), 3: (1, 1, 6, 4)},
    ),
    "a channel multiplier": (
        (WIDER, mc.GlobalAvgPool2D(), mc.Dense(np.ones((8, 2)))), 0, 4,
        {0: (1, 1, 2, 2), 1: (3, 3, 1, 4), 3: (4, 2)},
    ),
    "flattened and normalized": (
        (mc.Flatten(), NORM, mc.nn.PReLU(np.ones(144)), mc.Dense(np.ones((144, 3)))), 0, 4,
        {0: (1, 1, 2, 2), 4: (72, 3)},
    ),
    "shuffled": (
        (mc.nn.ChannelShuffle(2), kernel(1, 1, 4, 4), *HEAD), 0, 4,
        {0: (1, 1, 2, 2), 2: (1, 1, 2, 4)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_left_by_hand(name):
    rest, index, channels, shapes = BY_HAND[name]
    network = mc.Sequential((kernel(1, 1, 2, 4), *rest))
    keep = [c for c in range(channels) if c not in (1, 3)]
    smaller = remove_channels(network, index, keep)
    assert {i: smaller.layers[i].weight.shape for i in shapes} == shapes
    assert smaller(np.ones((1, 6, 6, 2))).shape == network(np.ones((1, 6, 6, 2))).shape
    for layer, old in zip(smaller.layers, network.layers, strict=True):
        if isinstance(layer, mc.BatchNorm):
            assert layer.scale.size == 72
        assert layer is old or layer.parameters() or isinstance(old, mc.nn.ChannelShuffle)


def chain(*layers):
    return mc.Sequential((kernel(1, 1, 2, 4), *layers))


BAD = {
    "the input": (
        chain(mc.Residual(kernel(1, 1, 4, 4)), mc.ReLU()), 0,
        r"channel 1 of layer 0 \(Conv2D\) cannot be removed: layer 3 \(ReLU\) makes an output",
    ),
    "tied to the input": (
        mc.Sequential((mc.Residual(kernel(1, 1, 2, 2)), mc.GlobalAvgPool2D(),
                       mc.Dense(np.ones((2, 1))))), 0,
        "channel 1 of layer 0 .* cannot be removed: it belongs to the network's input",
    ),
    "groups": (
        chain(mc.Conv2D(np.ones((1, 1, 2, 4)), groups=2), *HEAD), 0,
        r"layer 1 \(Conv2D\) has groups=2",
    ),
    "softmax": (chain(mc.nn.Softmax(), *HEAD), 0, r"layer 1 \(Softmax\) reads it together"),
    "neighbours": (
        chain(mc.nn.LocalResponseNorm(2), *HEAD), 0, r"layer 1 \(LocalResponseNorm\) reads it",
    ),
    "pixels": (
        chain(mc.Parallel((mc.Flatten(), mc.Flatten()), mc.Concat()), mc.Dense(np.ones((8, 1)))), 0,
        r"not known how many pixels layer 1 \(Flatten\) joins: give input_shape",
    ),
    "pixels, asked for": (
        chain(mc.Parallel((mc.Flatten(), mc.Flatten()), mc.Concat()), mc.Dense(np.ones((8, 1)))), 1,
        r"no channel of layer 1 \(Flatten\) can be removed: it is not known",
    ),
    "another order": (
        chain(mc.nn.ChannelShuffle(2), kernel(1, 1, 4, 4), *HEAD), 0,
        r"the channels \[1, 2\] that stay would be shuffled in another order",
    ),
    "one of two": (
        chain(mc.Parallel(((), ()), mc.Concat()), mc.GlobalAvgPool2D(), mc.Dense(np.ones((8, 1)))),
        1, r"channel 1 of layer 1 \(Concat\) is tied to its channel 5: keep or remove both",
    ),
    "a whole branch": (
        chain(mc.Parallel((kernel(1, 1, 4, 1), kernel(1, 1, 4, 1, seed=1)), mc.Concat()),
              mc.GlobalAvgPool2D(), mc.Dense(np.ones((2, 1)))), 3,
        r"layer 2 \(Conv2D\).*: all of its channels would be removed",
    ),
    "channels that do not fit": (
        chain(mc.nn.PReLU(np.ones(3))), 0, r"layer 1 \(PReLU\): its weights read 3 channels, but",
    ),
    "rows that do not fit": (
        chain(mc.Flatten(), mc.Dense(np.ones((7, 1)))), 0, r"layer 1 \(Flatten\): it makes 7 num",
    ),
}  # fmt: skip


KEEP = {
    "another order": [1, 2],
    "a whole branch": [0],
    "one of two": [0, 2, 3, 4, 5, 6, 7],
    "tied to the input": [0],
    "pixels, asked for": [0, 2],
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_removed_is_refused_by_name(name):
    network, index, message = BAD[name]
    with pytest.raises(mc.CompressionError, match=message):
        remove_channels(network, index, KEEP.get(name, [0, 2, 3]))


# -- wrong implementations ------------------------------------------------------------------------


def instead(name, value, function):
    """The function with something of the pass exchanged."""

    def wrong(*arguments):
        with mock.patch.object(names_module, name, value):
            return function(*arguments)

    return wrong


class Untied(names_module._Book):
    def equal(self, a, b):
        pass


class Unfixed(names_module._Book):
    def fix(self, names, why):
        pass


class Slowly:
    """NumPy, in which tiles are repeats: the channel varies slowest behind a Flatten."""

    def __getattr__(self, name):
        return np.repeat if name == "tile" else getattr(np, name)


class Tiled:
    def __getattr__(self, name):
        return np.tile if name == "repeat" else getattr(np, name)


def unshuffled(channels, groups):
    return np.arange(channels).reshape(-1, groups).T.ravel()


def keeps_biases(network, index, keep, shape):
    with mock.patch.object(names_module, "_cut", bias_shifted):
        return remove_channels(network, index, keep, shape)


def bias_shifted(layer, inputs, outputs, cut=names_module._cut):
    new = cut(layer, inputs, outputs)
    if new is not layer and getattr(layer, "bias", None) is not None:
        new = dataclasses.replace(new, bias=layer.bias[: new.bias.size])
    return new


BIASED = mc.Conv2D(np.ones((1, 1, 2, 4)), np.arange(4.0))
FLAT = mc.Sequential((BIASED, mc.Flatten(), mc.Dense(np.arange(80.0).reshape(80, 1))))
RESIDUAL = chain(BLOCK, *HEAD)
WIDE = chain(WIDER, mc.GlobalAvgPool2D(), mc.Dense(np.arange(8.0).reshape(8, 1)))
SIX = mc.Sequential((kernel(1, 1, 2, 6), mc.nn.ChannelShuffle(2), mc.GlobalAvgPool2D(),
                     mc.Dense(np.arange(6.0).reshape(6, 1))))  # fmt: skip
X = np.arange(40.0).reshape(1, *SHAPE)
WRONG_NAMES = {
    "Add ties nothing": (RESIDUAL, "_Book", Untied),
    "nothing is fixed": (RESIDUAL, "_Book", Unfixed),
    "a multiplier that tiles": (WIDE, "np", Tiled()),
    "Flatten that repeats": (FLAT, "np", Slowly()),
    "the shuffle backwards": (SIX, "_shuffled", unshuffled),
}
PLANTED = {
    name: (
        lambda wrong, network=network: law_names_say_what_is_tied(wrong, network, SHAPE),
        instead(place, value, channel_names),
    )
    for name, (network, place, value) in WRONG_NAMES.items()
} | {
    "removal: " + name: (
        lambda wrong, network=network: law_removal_is_zero(wrong, network, X, 0, [0, 2, 3], SHAPE),
        instead(place, value, remove_channels),
    )
    for name, (network, place, value) in WRONG_NAMES.items()
    if network in (RESIDUAL, FLAT, WIDE) and value is not Unfixed
} | {
    "the first biases stay": (
        lambda wrong: law_removal_is_zero(wrong, FLAT, X, 0, [1, 2, 3], SHAPE), keeps_biases,
    ),
    "a mask in place of removal": (
        lambda wrong: law_removal_is_zero(wrong, FLAT, X, 0, [1, 2, 3], SHAPE),
        lambda network, index, keep, shape: zeroed(network, channel_names(network), np.array([0])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)


def test_the_cases_of_the_planted_faults_are_lawful():
    for network in (FLAT, RESIDUAL, WIDE, SIX):
        law_names_say_what_is_tied(channel_names, network, SHAPE)
    for network in (FLAT, RESIDUAL, WIDE):
        law_removal_is_zero(remove_channels, network, X, 0, [0, 2, 3], SHAPE)
