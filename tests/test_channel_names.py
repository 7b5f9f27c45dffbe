"""Channels have names: two have one name where a layer ties them, and none is removed alone."""

from __future__ import annotations

import dataclasses
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
        free = [c for c, name in enumerate(names) if int(name) not in channels.fixed]
        if free and makes_channels(network.layers[i]):
            found[i] = free
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
    # The counts are those of the same layers with so many channels.
    before, after = (mc.summary(m, SHAPE) for m in (network, smaller))
    wide, narrow = ([v.shape[-1] for v in values_of(m, x)] for m in (network, smaller))
    for i, (old, new) in enumerate(zip(before.rows, after.rows, strict=True)):
        assert (old.params, old.macs) == (0, 0) or new.params * wide[i + 1] <= (
            old.params * narrow[i + 1]
        )


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
    if any(lost) or has_shuffle(network):
        try:
            remove_channels(network, index, keep, shape)
        except mc.CompressionError as error:
            assert any(s in str(error) for s in ("at least one", "another order", "must divide"))
            return
    law_removal_is_zero(remove_channels, network, x, index, keep, shape)


def has_shuffle(network):
    return any(isinstance(layer, mc.nn.ChannelShuffle) for layer in network.layers)
