"""Batch normalization: what training does with it, and its statistics estimated anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.datasets import load_digits
from minicompress.errors import CompressionError
from minicompress.nn.architectures import digits_resnet
from minicompress.nn.composition import Residual, Sequential
from minicompress.nn.gradient import vjp
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import Runner
from minicompress.nn.normalization import BatchNorm, normalize_batch
from minicompress.nn.optimizers import adam
from minicompress.nn.parameters import decoded, parameters
from minicompress.nn.pointwise import ReLU
from minicompress.nn.stateless import Flatten
from minicompress.nn.statistics import reestimate_batch_norm
from minicompress.nn.training import accuracy, fit
from minicompress.search.plan import compress
from minicompress.testing import models


def law_statistics(network, x):
    """Each batch normalization has the mean and the variance of what it reads, and nothing else
    changes."""
    values, run = {0: x}, Runner(network)
    for i, layer in enumerate(network.layers):
        if isinstance(layer, BatchNorm):
            rows = values[network.inputs[i][0]].astype(np.float64)
            rows = rows.reshape(-1, rows.shape[-1])
            # The inputs are the same numbers; the statistics are rounded once from float64.
            u = np.finfo(layer.mean.dtype).eps
            spread = np.abs(rows).max(initial=1.0)
            np.testing.assert_allclose(layer.mean, rows.mean(0), rtol=u, atol=1e-13 * spread)
            np.testing.assert_allclose(layer.variance, rows.var(0), rtol=u, atol=1e-13 * spread**2)
        values = run(values, i, i + 1)


def drawn(network):
    reps = [rep for weights in parameters(decoded(network)) for rep in weights.values()]
    dtype = reps[0].dtype if reps else np.dtype(np.float32)
    x = ((np.arange(3 * 40) * 7) % 11 - 5.0).reshape(3, 5, 4, 2)
    return x.astype(dtype)


@given(models())
def test_statistics_are_those_of_the_inputs(network):
    x = drawn(network)
    with np.errstate(all="ignore"):
        found = reestimate_batch_norm(network, x)
        if all(np.isfinite(v).all() for v in Runner(found)({0: x}).values()):
            law_statistics(found, x)
    assert (found.inputs, found.outputs) == (network.inputs, network.outputs)
    for old, new in zip(network.layers, found.layers, strict=True):
        assert new is old or isinstance(old, BatchNorm)
        for name in () if new is old else ("scale", "offset"):
            np.testing.assert_array_equal(getattr(new, name), getattr(old, name))


ONE = np.ones(2)
TWICE = Sequential(
    (Dense(np.array([[2.0, 1.0], [0.0, 1.0]])), BatchNorm(ONE, ONE, ONE, ONE), ReLU(),
     BatchNorm(3 * ONE, ONE, ONE, ONE))
)  # fmt: skip


def from_the_old_network(network, x):
    """A fault: every batch normalization sees what the network made with its old statistics."""
    values, run, layers = {0: x}, Runner(network), []
    for i, layer in enumerate(network.layers):
        if isinstance(layer, BatchNorm):
            (read,) = (values[value] for value in network.inputs[i])
            layers.append(replace(layer, mean=read.mean(0), variance=read.var(0)))
        else:
            layers.append(layer)
        values = run(values, i, i + 1)
    return Sequential(layers)


def test_a_planted_fault_is_caught():
    x = np.array([[1.0, 2.0], [-3.0, 1.0], [0.0, 5.0]])
    law_statistics(reestimate_batch_norm(TWICE, x), x)
    with pytest.raises(AssertionError):
        law_statistics(from_the_old_network(TWICE, x), x)
    with pytest.raises(AssertionError):
        law_statistics(TWICE, x)


@given(arrays(np.float64, (4, 3), elements=st.integers(-4, 4).map(float)))
def test_training_takes_the_statistics_of_the_batch(x):
    layer = BatchNorm(2 * np.ones(3), np.ones(3), 7 * np.ones(3), np.ones(3))
    y, _ = layer.vjp(x, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(y, normalize_batch(x, layer.scale, layer.offset))
    np.testing.assert_array_equal(layer.vjp(x)[0], layer.forward(x))


def test_fit_returns_statistics_of_training_data():
    (x, y), validation, _ = (load_digits(split) for split in ("train", "validation", "test"))
    x, y = x[:256], y[:256]
    network = digits_resnet(np.random.default_rng(0))
    options = {"optimizer": adam(3e-3), "epochs": 3, "batch_size": 32}
    trained, history = fit(network, x, y, **options, rng=np.random.default_rng(1))
    rng = np.random.default_rng(1)  # it draws the order of each epoch, and here nothing else
    order = [rng.permutation(len(x)) for _ in range(3)][-1]
    found = reestimate_batch_norm(trained, x[order])  # all of them: fewer than `fit` takes
    for a, b in zip(trained.layers, found.layers, strict=True):
        np.testing.assert_equal(a.parameters(), b.parameters())
    stale = history.state.latent  # its statistics are those of the start: nobody ran with them
    assert stale.layers[1].mean.tolist() == [0.0] * 12
    assert accuracy(trained, *validation) > accuracy(stale, *validation) + 0.3
    again, _ = fit(network, x, y, **options, rng=np.random.default_rng(1))
    for a, b in zip(trained.layers, again.layers, strict=True):
        np.testing.assert_equal(a.parameters(), b.parameters())


def test_statistics_are_estimated_with_compressed_weights():
    """After pruning half, the new statistics bring back what the old ones lose."""
    from minicompress.compressors.pruning import prune_magnitude

    (x, y), validation, _ = (load_digits(split) for split in ("train", "validation", "test"))
    network = digits_resnet(np.random.default_rng(0))
    options = {"optimizer": adam(3e-3), "epochs": 4, "batch_size": 32}
    trained, _ = fit(network, x, y, **options, rng=np.random.default_rng(1))
    weighted = [i for i, layer in enumerate(trained.layers) if isinstance(layer, Conv2D)]
    plan = dict.fromkeys(weighted, lambda w: prune_magnitude(w, amount=0.7))
    pruned, _ = compress(trained, plan)
    better = reestimate_batch_norm(pruned, x[:256])
    assert accuracy(better, *validation) > accuracy(pruned, *validation) + 0.05


def test_gradients_of_a_network_in_training():
    """By central differences in float64, with the statistics of the batch in the network."""
    rng = np.random.default_rng(0)
    norm = BatchNorm(*rng.normal(size=(2, 4)), *np.ones((2, 4)))
    inner = Residual(Dense(rng.normal(size=(4, 4))), norm)
    network = Sequential((inner, Dense(rng.normal(size=(4, 2)))))
    x, dy, direction = rng.normal(size=(5, 4)), rng.normal(size=(5, 2)), rng.normal(size=(5, 4))
    dx, _ = vjp(network, x, rng=rng)[1](dy)
    near, far = (
        (dy * (vjp(network, x + t * direction, rng=rng)[0]
               - vjp(network, x - t * direction, rng=rng)[0])).sum() / (2 * t)
        for t in (1e-4, 2e-4)
    )  # fmt: skip
    # The error of a central difference grows as the step squared: that of `near` is a third of the
    # distance to `far`. Rounding: some u of each of ten products of at most 10, over the step.
    allowed = abs(near - far) / 2 + 10 * 10 * 64 * 2.0**-53 / 1e-4
    assert abs((dx * direction).sum() - near) <= allowed < 1e-6


def test_refused():
    with pytest.raises(CompressionError, match="at least one example"):
        reestimate_batch_norm(TWICE, np.empty((0, 2)))
    with pytest.raises(CompressionError, match="x must be finite"):
        reestimate_batch_norm(TWICE, np.array([[np.nan, 1.0]]))
    with pytest.raises(CompressionError, match=r"layer 0 \(Dense\)"):
        reestimate_batch_norm(TWICE, np.ones((1, 3)))
    half = np.ones(2, np.float16)
    network = Sequential((BatchNorm(half, half, half, half),))
    with np.errstate(over="ignore"), pytest.raises(CompressionError, match="variance must be fin"):
        reestimate_batch_norm(network, np.array([[-900, 1], [900, 1]], np.float16))
    network = Sequential((Flatten(),))
    assert reestimate_batch_norm(network, np.ones((1, 2))) is network
