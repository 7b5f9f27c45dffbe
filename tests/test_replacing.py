"""Layers of a program replaced by chains: each reader reads the end of the chain."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from program_models import SHAPE, exact_programs, signs, whole

import minicompress as mc
from minicompress.nn.parameters import as_tuple, with_layers
from minicompress.rewrite import (
    dense_to_conv,
    dense_to_global_pool,
    factorize,
    replace_layers,
    shrink_kernel,
    split_kernel,
)
from minicompress.rewrite.low_rank import restore_factors


def as_product(layer):
    """The same layer, its weight the product of two factors, one of them the identity."""
    if not isinstance(layer, mc.Conv2D | mc.Dense):
        return layer
    subscripts = "ir,ro->io" if isinstance(layer, mc.Dense) else "hwir,ro->hwio"
    factors = layer.weight, np.eye(layer.weight.shape[-1])
    return dataclasses.replace(layer, weight=mc.LowRank(factors, subscripts))


def law_factors_are_the_network(factorized, network, x):
    product = with_layers(network, [as_product(layer) for layer in network.layers])
    chained = factorized(product)
    assert not any(
        isinstance(rep, mc.LowRank) for p in mc.nn.parameters(chained) for rep in p.values()
    )
    for found, wanted in zip(as_tuple(chained(x)), as_tuple(network(x)), strict=True):
        np.testing.assert_array_equal(found, wanted)
    again = restore_factors(product, chained)
    assert again.inputs == product.inputs
    for layer, old in zip(again.layers, product.layers, strict=True):
        for name, rep in layer.parameters().items():
            np.testing.assert_array_equal(mc.decode(rep), mc.decode(old.parameters()[name]))
            kept = type(rep) is type(old.parameters()[name])
            assert kept or layer.groups > 1  # such a product has no chain


@given(exact_programs(head=False))
def test_the_factors_of_a_program(case):
    law_factors_are_the_network(factorize, *case)


@given(exact_programs(head=False), st.data())
def test_a_chain_in_place_of_a_layer(case, data):
    network, x = case
    places = [i for i, layer in enumerate(network.layers) if isinstance(layer, mc.ReLU)]
    chosen = {i: data.draw(st.sampled_from([(mc.ReLU(),) * n for n in (1, 2, 3)])) for i in places}
    longer = replace_layers(network, chosen)
    assert len(longer.layers) == len(network.layers) + sum(len(c) - 1 for c in chosen.values())
    for found, wanted in zip(as_tuple(longer(x)), as_tuple(network(x)), strict=True):
        np.testing.assert_array_equal(found, wanted)


RNG = np.random.default_rng(0)
CONV = mc.Conv2D(signs(RNG, 5, 5, 2, 2), padding="same")
NETWORK = mc.Sequential((mc.Residual(CONV), mc.Flatten(), mc.Dense(signs(RNG, 40, 3))))
X = RNG.integers(-3, 4, (2, *SHAPE)).astype(float)


def test_kernels_inside_a_residual_network():
    ring = np.pad(signs(RNG, 3, 3, 2, 2), ((1, 1), (1, 1), (0, 0), (0, 0)))
    network = replace_layers(NETWORK, {0: dataclasses.replace(CONV, weight=ring)})
    smaller = replace_layers(network, {0: shrink_kernel(network.layers[0], 3)})
    assert smaller.layers[0].weight.shape == (3, 3, 2, 2)
    np.testing.assert_array_equal(smaller(X), network(X))
    split = replace_layers(NETWORK, {0: split_kernel(CONV, rng=np.random.default_rng(0))})
    assert split.inputs == ((0,), (1,), (0, 2), (3,), (4,))
    assert split(X).shape == NETWORK(X).shape


def test_a_dense_layer_inside_a_program():
    first = dense_to_conv(NETWORK.layers[3], (5, 4)), mc.Flatten()
    conv = replace_layers(NETWORK, {2: (), 3: first})
    np.testing.assert_array_equal(conv(X), NETWORK(X))
    rows = np.tile(signs(RNG, 2, 3), (20, 1))
    even = replace_layers(NETWORK, {3: mc.Dense(rows)})
    pooled = replace_layers(even, {2: (), 3: dense_to_global_pool(even.layers[3], (5, 4))})
    # A mean of twenty whole numbers, times twenty: an error of some u of at most 1000.
    np.testing.assert_allclose(pooled(X), even(X), rtol=0, atol=1000 * 2.0**-50)
    assert np.array_equal(whole(rows), rows)


BAD = {
    r"layer 1 \(Add\) reads values \(0, 1\): it cannot be left out": {1: ()},
    r"a key of layers must be an int from 0 to 3": {4: mc.ReLU()},
    r"layers\[2\]\[0\] must be a Layer": {2: ("Flatten",)},
    r"layers\[2\] must be a tuple": {2: 5},
    r"with layers \[1\] replaced: layer 1 \(ReLU\)": {1: mc.ReLU()},
}


@pytest.mark.parametrize("message", BAD)
def test_refused(message):
    with pytest.raises(mc.CompressionError, match=message):
        replace_layers(NETWORK, BAD[message])


def test_factors_of_factors_are_not_restored():
    inner = mc.LowRank((np.ones((2, 1)), np.ones((1, 2))), "ir,ro->io")
    network = mc.Sequential((mc.Dense(mc.LowRank((inner, np.eye(2)), "ir,ro->io")),))
    with pytest.raises(mc.CompressionError, match=r"layer 0 \(Dense\): a factor is itself a prod"):
        restore_factors(network, factorize(network))


def without_bias(network):
    return with_layers(
        chained := factorize(network),
        [
            dataclasses.replace(layer, bias=None) if hasattr(layer, "bias") else layer
            for layer in chained.layers
        ],
    )


def test_planted_fault_is_found():
    network = mc.Sequential((mc.Residual(mc.Dense(np.eye(2), np.ones(2))),))
    law_factors_are_the_network(factorize, network, np.ones((1, 2)))
    with pytest.raises(AssertionError):
        law_factors_are_the_network(without_bias, network, np.ones((1, 2)))
