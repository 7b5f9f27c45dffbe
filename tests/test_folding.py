"""Batch normalization folded backward, forward, or into a scale and a shift: the same function."""

from __future__ import annotations

import dataclasses
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from program_models import exact_programs, signs, values_of

import minicompress as mc
from minicompress.nn.parameters import as_tuple
from minicompress.rewrite import batch_norm as module
from minicompress.rewrite import fold_batch_norm, reestimate_batch_norm
from minicompress.testing.checks import check_pure


def is_affine(layer):
    return not layer.mean.any() and (layer.variance + layer.epsilon == 1).all()


def norms_of(network):
    return [layer for layer in network.layers if isinstance(layer, mc.BatchNorm)]


def law_same_function(fold, network, x):
    folded = fold(network)
    for new, old in zip(as_tuple(folded(x)), as_tuple(network(x)), strict=True):
        np.testing.assert_array_equal(new, old)
    assert all(map(is_affine, norms_of(folded)))
    return folded


@given(exact_programs(max_layers=8), exact_programs(head=False))
def test_drawn_networks_stay_the_same_functions(one, many):
    for network, x in (one, many):
        folded = law_same_function(fold_batch_norm, network, x)
        assert law_same_function(fold_batch_norm, folded, x).inputs == folded.inputs
        for i, layer in enumerate(folded.layers):  # none that could be folded backward is left
            (before, *_) = folded.inputs[i]
            readers = [v for reads in (*folded.inputs, folded.outputs) for v in reads]
            if isinstance(layer, mc.BatchNorm) and before > 0 and readers.count(before) == 1:
                maker = folded.layers[before - 1]
                assert not isinstance(maker, mc.Conv2D | mc.nn.ConvTranspose2D | mc.Dense)


RNG = np.random.default_rng(0)
NORM = mc.BatchNorm(
    *signs(RNG, 3, 4) * 2 + 1, np.array([0.25, 1.0, 4.0, 16.0]), epsilon=1e-300
)  # fmt: skip
CENTRED = mc.BatchNorm(NORM.scale, np.zeros(4), np.zeros(4), NORM.variance, epsilon=1e-300)
X = RNG.integers(-3, 4, (2, 4, 4, 4)).astype(float)


def conv(kernel, outputs=4, groups=1, **options):
    shape = (*kernel, 4 // groups, outputs)
    return mc.Conv2D(signs(RNG, *shape), signs(RNG, outputs), groups=groups, **options)


def upward(groups=1, **options):
    weight = signs(RNG, 2, 3, 4 // groups, 4)
    return mc.nn.ConvTranspose2D(weight, None, stride=2, groups=groups, **options)


# What stands around a normalization, and how many stay behind as scales and shifts.
FLAT = mc.Flatten(), mc.Dense(signs(RNG, 64, 4), signs(RNG, 4))
FORK = mc.Parallel((conv((2, 2)), conv((2, 2))), mc.Add())
CASES = {
    "behind a convolution": ((conv((2, 2)), NORM, mc.ReLU()), 0),
    "behind a grouped one": ((conv((2, 2), groups=2), NORM), 0),
    "behind a depthwise one": ((conv((3, 3), groups=4, padding=1), NORM), 0),
    "behind a transposed one": ((upward(groups=2), NORM), 0),
    "behind a dense layer": ((*FLAT, NORM, mc.ReLU()), 0),
    "before a convolution": ((mc.ReLU(), NORM, conv((2, 2))), 0),
    "before a grouped one": ((mc.ReLU(), NORM, conv((2, 2), 6, groups=2)), 0),
    "before a depthwise one": ((mc.ReLU(), NORM, conv((2, 2), 8, groups=4)), 0),
    "before one of a pixel": ((mc.ReLU(), NORM, conv((1, 1), padding="same", stride=2)), 0),
    "before a padded one": ((mc.ReLU(), NORM, conv((3, 3), padding=1)), 1),
    "before a same one": ((mc.ReLU(), NORM, conv((3, 3), padding="same")), 1),
    "without a shift, before a padded one": ((mc.ReLU(), CENTRED, conv((3, 3), padding=1)), 0),
    "before a transposed one": ((mc.ReLU(), NORM, upward()), 1),
    "without a shift, before a transposed one": ((mc.ReLU(), CENTRED, upward(groups=2)), 0),
    "before a dense layer": ((mc.GlobalAvgPool2D(), NORM, mc.Dense(signs(RNG, 4, 3))), 0),
    "at the beginning": ((NORM, mc.ReLU()), 1),
    "at the beginning, before a convolution": ((NORM, conv((2, 2))), 0),
    "at the end": ((mc.ReLU(), NORM), 1),
    "two behind": ((conv((2, 2)), NORM, NORM, mc.ReLU()), 0),
    "two before": ((mc.ReLU(), NORM, NORM, conv((2, 2))), 0),
    "two alone": ((mc.ReLU(), NORM, NORM, mc.ReLU()), 1),
    "of a shortcut": ((conv((1, 1)), mc.Parallel((NORM, NORM), mc.Add())), 2),
    "before all readers": ((mc.ReLU(), NORM, FORK), 0),
    "before one reader of two": ((mc.ReLU(), NORM, mc.Residual(conv((1, 1)))), 1),
    "two, and then two readers": ((mc.ReLU(), NORM, NORM, FORK), 0),
    "dense block": ((mc.Residual(NORM, mc.ReLU(), conv((3, 3), padding=1)), NORM), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_how_many_are_left(name):
    layers, left = CASES[name]
    network = mc.Sequential(layers)
    folded = law_same_function(fold_batch_norm, network, X)
    assert len(norms_of(folded)) == left
    check_pure(fold_batch_norm, network)


def test_a_value_that_is_returned_keeps_its_normalization():
    first = conv((1, 1))
    shown = mc.Network((first, NORM), ((0,), (1,)), (1, 2))
    assert len(norms_of(law_same_function(fold_batch_norm, shown, X))) == 1
    both = mc.Network((mc.ReLU(), NORM, first), ((0,), (1,), (2,)), (2, 3))
    assert len(norms_of(law_same_function(fold_batch_norm, both, X))) == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_and_tolerance(dtype):
    """A fold rounds each weight once, and the sums differ by their rounding."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(4, 4)).astype(dtype)
    rows[3] = 1 + abs(rows[3])
    layers = mc.Dense(rng.normal(size=(4, 4)).astype(dtype)), mc.BatchNorm(*rows), mc.ReLU()
    forward = mc.ReLU(), mc.BatchNorm(*rows), mc.Dense(rng.normal(size=(4, 4)).astype(dtype))
    x = rng.normal(size=(5, 4)).astype(dtype)
    for network in (mc.Sequential(layers), mc.Sequential(forward)):
        folded = fold_batch_norm(network)
        assert {v.dtype for p in mc.nn.parameters(folded) for v in p.values()} == {np.dtype(dtype)}
        # Five terms of at most 40 each, and fewer than 16 roundings of each on either side.
        assert np.abs(folded(x) - network(x)).max() <= 2 * 16 * 200 * np.finfo(dtype).eps


def test_overflow_names_the_layer():
    big = np.full(4, 6e4, np.float16)
    one = np.ones(4, np.float16)
    norm = mc.BatchNorm(big, 0 * one, -big, one)
    with pytest.raises(mc.CompressionError, match=r"layer 1 \(BatchNorm\), .*: offset would overf"):
        fold_batch_norm(mc.Sequential((mc.ReLU(), norm)))
    dense = mc.Dense(np.full((4, 1), 2, np.float16))
    with pytest.raises(mc.CompressionError, match=r"layer 1 \(BatchNorm\), .*: weight would overf"):
        fold_batch_norm(mc.Sequential((mc.ReLU(), norm, dense)))


def test_statistics_are_estimated_anew_after_channels_went():
    rng = np.random.default_rng(0)
    norm = mc.BatchNorm(*np.ones((4, 6)))
    head = mc.GlobalAvgPool2D(), mc.Dense(np.ones((6, 2)))
    network = mc.Sequential((mc.Conv2D(rng.normal(size=(3, 3, 4, 6))), norm, *head))
    small = mc.rewrite.remove_channels(network, 0, [0, 2, 5])
    again = reestimate_batch_norm(small, X)
    normal = values_of(again, X)[2]
    np.testing.assert_allclose(normal.mean((0, 1, 2)), 1.0, atol=1e-12)  # the offset
    assert again.layers[0] is small.layers[0]


# -- wrong implementations ------------------------------------------------------------------------


def exchanged(name, value):
    def wrong(network):
        with mock.patch.object(module, name, value):
            return fold_batch_norm(network)

    return wrong


def readers_of_one(network):
    return [[k] for k in range(len(network.layers))] + [[None]]


def tiled(layer, norm, right=module._with_scaled_inputs):
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return right(layer, norm)
    return right(layer, norm._replace(**{n: v[::-1] for n, v in norm._asdict().items()}))


def without_bias(layer, norm, right=module._with_scaled_inputs):
    new = right(layer, norm)
    return new and dataclasses.replace(new, bias=layer.bias)


PLANTED = {
    "a shift into padding": ("before a padded one", exchanged("reads_no_zeros", bool)),
    "groups in another order": ("before a grouped one", exchanged("_with_scaled_inputs", tiled)),
    "no shift forward": ("before a convolution", exchanged("_with_scaled_inputs", without_bias)),
    "an epsilon that counts": ("at the end", exchanged("NO_EPSILON", 1e-3)),
    "other readers are forgotten": ("of a shortcut", exchanged("_readers", readers_of_one)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    case, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law_same_function(wrong, mc.Sequential(CASES[case][0]), X)
