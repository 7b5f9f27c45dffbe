"""Retraining of networks with branches: zeros stay in place, shared values stay shared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

import minicompress as mc
from minicompress.nn.parameters import parameters, with_layers
from minicompress.recipes import (
    deep_compression,
    preserve_structure,
    restore_structure,
)
from minicompress.recipes.rate_recipe import lesson
from minicompress.search.weights import weights
from minicompress.testing.models import models


def is_trainable(rep):
    """Whether a representation is made of arrays, zeros and shared values alone."""
    match rep:
        case np.ndarray():
            return True
        case mc.Sparse():
            return is_trainable(rep.values)
        case mc.Clustered():
            return is_trainable(rep.codebook)
    return False


def law_structure_is_kept(view_of, restore, network, rng):
    """A step along any gradient, seen through the view, decodes from the same places."""
    latent = mc.nn.decoded(network)
    seen = view_of(network)(latent, 0)
    assert seen.model is latent
    gradients = tuple(
        {n: rng.integers(-3, 4, np.shape(v)).astype(v.dtype) for n, v in p.items()}
        for p in parameters(latent)
    )
    moves = seen.pullback(gradients)
    moved = mc.nn.with_parameters(
        latent,
        tuple(
            {n: v - moves[i][n] for n, v in p.items() if n not in ("variance", "mean")}
            for i, p in enumerate(parameters(latent))
        ),
    )
    again = restore(network, moved)
    assert (again.inputs, again.outputs) == (network.inputs, network.outputs)
    for i, rep in weights(again).items():
        old = weights(network)[i]
        assert type(rep) is type(old)
        np.testing.assert_array_equal(mc.decode(rep), moved.layers[i].weight)
        if isinstance(rep, mc.Sparse):
            np.testing.assert_array_equal(rep.indices, old.indices)
        if isinstance(rep, mc.Clustered):
            np.testing.assert_array_equal(rep.codes, old.codes)


@given(models())
def test_drawn_networks_keep_their_structure(network):
    kept = [
        layer
        if is_trainable(layer.parameters().get("weight", np.ones(0)))
        else mc.nn.layers.decoded_layer(layer)
        for layer in network.layers
    ]
    network = with_layers(network, kept)
    rng = np.random.default_rng(0)
    law_structure_is_kept(preserve_structure, restore_structure, network, rng)


def residual(rng):
    def conv(*shape):
        return mc.Conv2D(0.4 * rng.normal(size=shape), np.zeros(shape[-1]), padding="same")

    norm = mc.BatchNorm(np.ones(4), np.zeros(4), np.zeros(4), np.ones(4))
    block = mc.Residual(conv(3, 3, 4, 4), norm, mc.ReLU(), conv(3, 3, 4, 4))
    tail = mc.ReLU(), mc.GlobalAvgPool2D(), mc.Dense(rng.normal(size=(4, 2)), np.zeros(2))
    return mc.Sequential((conv(3, 3, 1, 4), block, *tail))


def test_deep_compression_of_a_residual_network():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 48)
    x = rng.normal(size=(48, 6, 6, 1)) + 2.0 * y[:, None, None, None]
    kept, bits = {1: 0.25, 4: 0.5, 8: 0.75}, {1: 2, 4: 2, 8: 2}
    network, generator = residual(rng), np.random.default_rng(1)
    for step in deep_compression((x, y), kept, bits, rounds=2, epochs=6, learning_rate=0.03):
        network = step.run(network, generator)
    for i, share in kept.items():
        rep = network.layers[i].weight
        assert isinstance(rep, mc.Sparse)
        assert isinstance(rep.values, mc.Clustered)
        count = np.prod(rep.shape)
        assert rep.indices.size == count - round((1 - share) * count)
        assert np.unique(mc.decode(rep.values)).size <= 4
    assert network.inputs == residual(rng).inputs
    assert mc.accuracy(network, x, y) > 0.9
    assert (network.layers[2].mean != 0).any()  # batch normalization trained with it


# -- wrong implementations ------------------------------------------------------------------------


def free_gradients(network):
    return lambda latent, step: mc.nn.View(latent, lambda gradients: gradients)


SPARSE = mc.Sparse((2, 2), np.array([1, 2]), np.array([5.0, 6.0]))
SHARED = mc.Clustered(np.array([[0, 1], [1, 0]]), np.array([5.0, 7.0]))


@pytest.mark.parametrize("rep", [SPARSE, SHARED])
def test_planted_fault_is_found(rep):
    network = mc.Sequential((mc.Residual(mc.Dense(rep)),))
    law_structure_is_kept(preserve_structure, restore_structure, network, np.random.default_rng(0))
    with pytest.raises(AssertionError):
        law_structure_is_kept(free_gradients, restore_structure, network, np.random.default_rng(0))


def test_a_teacher_of_several_outputs_is_refused():
    teacher = mc.Network((mc.Flatten(), mc.Dense(np.ones((4, 2)))), ((0,), (1,)), (1, 2))
    with pytest.raises(mc.CompressionError, match="teacher must have one output, not 2"):
        lesson(np.ones((3, 2, 2, 1)), np.zeros(3, int), teacher=teacher)
