"""Biases are corrected so that the mean of every output is what it was."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicompress.compressors.pruning import prune_channels
from minicompress.compressors.quantization import quantize
from minicompress.errors import CompressionError
from minicompress.nn.composition import Parallel, Residual, Sequential
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Runner
from minicompress.nn.parameters import decoded, parameters, with_layers
from minicompress.nn.pointwise import ReLU, Sigmoid
from minicompress.nn.stateless import Concat, Flatten
from minicompress.representation import decode, dtype_of
from minicompress.rewrite.bias_correction import BIASED, channel_means, correct_bias
from minicompress.rewrite.channels import remove_channels
from minicompress.search.plan import compress
from minicompress.search.weights import weights
from minicompress.testing import models

W = np.ones((2, 2))


def images(count, dtype=np.float64):
    return ((np.arange(count * 40) * 7) % 11 - 5.0).reshape(count, 5, 4, 2).astype(dtype)


def all_values(network, x):
    values, run = {0: x}, Runner(network)
    for i in range(len(network.layers)):
        read = [values[v] for v in network.inputs[i]]
        values = run(values, i, i + 1)
        yield read, values[i + 1]


def rounding(network, i, x, y, bias):
    """What rounding can move a mean of the outputs of layer i, which reads x and gives y.

    An output is a sum of k products and the bias, in some order: it errs by gamma_k of the sum of
    magnitudes, here the same layer on magnitudes. A `LowRank` weight has such sums one after the
    other. Fast convolutions err by some ten times that. float16 is rounded once, to u of itself.
    """
    total = abs(x.astype(np.float64))
    k = 8
    for part in Runner(network).parts[i]:
        weight = abs(part.weight.astype(np.float64))
        k += weight.size // weight.shape[-1]
        total = replace(part, weight=weight, bias=None).forward(total)
    wide = np.promote_types(y.dtype, np.float32)
    largest = total.max(axis=tuple(range(y.ndim - 1))) + abs(bias)
    subnormal = k * np.finfo(y.dtype).smallest_subnormal
    return (20 * k * np.finfo(wide).eps + 2 * np.finfo(y.dtype).eps) * largest + subnormal


def law_means_restored(impl, network, original, x):
    """Every channel of every layer with a bias, given what the layers before it make."""
    found = impl(network, original, x)
    assert (found.inputs, found.outputs) == (network.inputs, network.outputs)
    pairs = zip(all_values(found, x), all_values(original, x), strict=True)
    for i, ((read, y), (_, wanted)) in enumerate(pairs):
        old, new = network.layers[i], found.layers[i]
        if type(old) not in BIASED:
            assert new is old
            continue
        assert new.weight is old.weight
        assert new.options() == old.options()
        assert isinstance(new.bias, np.ndarray)
        moved = abs(channel_means(y) - channel_means(wanted))
        before = 0 if old.bias is None else abs(decode(old.bias).astype(np.float64))
        allowed = rounding(found, i, read[0], y, abs(new.bias.astype(np.float64)) + before)
        assert (moved <= allowed).all()


@given(models(max_layers=4), st.sampled_from([2, 3, 8]), st.integers(1, 3))
def test_means_are_restored(original, num_bits, count):
    kind = next((dtype_of(r) for p in parameters(original) for r in p.values()), np.dtype("f4"))
    x = images(count, kind)
    rounded = partial(quantize, num_bits=num_bits)
    network = compress(original, dict.fromkeys(weights(original), rounded)).model
    with np.errstate(all="ignore"):
        values = [y for n in (network, original) for _, y in all_values(n, x)]
        if all(abs(y).max(initial=0) < np.finfo(y.dtype).max / 1e3 for y in values):
            law_means_restored(correct_bias, network, original, x)


def branched():
    r = np.random.default_rng(3)
    convolution = Conv2D(r.normal(size=(3, 3, 1, 4)), groups=2, padding="same")
    depthwise = Conv2D(r.normal(size=(3, 3, 1, 4)), r.normal(size=4), groups=4, padding="same")
    up = ConvTranspose2D(r.normal(size=(2, 2, 4, 3)), stride=2)
    both = Parallel(((up, ReLU()), (up, Sigmoid())), Concat())
    chain = (convolution, ReLU(), Residual(depthwise, ReLU()), both, Flatten())
    return Sequential((*chain, Dense(r.normal(size=(480, 3)))))


def rounded(network, num_bits=2):
    return compress(
        network, dict.fromkeys(weights(network), partial(quantize, num_bits=num_bits))
    ).model


def test_branches_and_all_layers_with_biases():
    law_means_restored(correct_bias, rounded(branched()), branched(), images(5))


def test_a_network_that_lost_nothing_keeps_its_biases():
    found = correct_bias(branched(), branched(), images(3))
    for new, old in zip(found.layers, branched().layers, strict=True):
        if type(old) in BIASED:
            assert new.bias.tolist() == (
                [0.0] * len(new.bias) if old.bias is None else old.bias.tolist()
            )


# ---- wrong implementations


def from_uncorrected_inputs(network, original, x):
    """All differences at once, as the network was before any was corrected."""
    layers = list(network.layers)
    pairs = zip(all_values(network, x), all_values(original, x), strict=True)
    for i, ((_, y), (_, wanted)) in enumerate(pairs):
        if type(layers[i]) in BIASED:
            moved = channel_means(wanted) - channel_means(y)
            old = 0 if layers[i].bias is None else layers[i].bias
            layers[i] = replace(layers[i], bias=old + moved)
    return with_layers(network, layers)


def of_the_first_example(network, original, x):
    return correct_bias(network, original, x[:1])


def the_other_way(network, original, x):
    right = correct_bias(network, original, x)
    layers = [
        replace(new, bias=(0 if old.bias is None else 2 * old.bias) - new.bias)
        if type(new) in BIASED
        else new
        for new, old in zip(right.layers, network.layers, strict=True)
    ]
    return with_layers(network, layers)


def without_new_biases(network, original, x):
    right = correct_bias(network, original, x)
    layers = [
        old if type(old) in BIASED and old.bias is None else new
        for new, old in zip(right.layers, network.layers, strict=True)
    ]
    return with_layers(network, layers)


@pytest.mark.parametrize(
    "wrong", [from_uncorrected_inputs, of_the_first_example, the_other_way, without_new_biases]
)
def test_wrong_implementations_are_found(wrong):
    with pytest.raises(AssertionError):
        law_means_restored(wrong, rounded(branched()), branched(), images(5))


# ---- channels that are gone, and what is refused


def test_a_layer_that_lost_channels_keeps_its_bias_and_others_are_corrected():
    r = np.random.default_rng(0)
    original = Sequential(
        (Dense(r.normal(size=(4, 6)), r.normal(size=6)), ReLU(), Dense(r.normal(size=(6, 3))))
    )
    x = r.normal(size=(20, 4))
    network = remove_channels(original, 0, [1, 4])
    found = correct_bias(network, original, x)
    assert found.layers[0] is network.layers[0]
    np.testing.assert_allclose(found(x).mean(0), original(x).mean(0), atol=1e-13)
    assert abs(network(x).mean(0) - original(x).mean(0)).max() > 0.1


def test_channels_of_zeros_get_their_mean_back():
    plain = Dense(np.array([[1.0, 0.1], [2.0, 0.1]]))
    original, x = Sequential((plain,)), np.array([[1.0, 1.0], [3.0, 0.0]])
    half = partial(prune_channels, amount=0.5, axis=-1)
    found = correct_bias(compress(original, {0: half}).model, original, x)
    assert found.layers[0].bias.tolist() == [0.0, 0.25]


BIG = Dense(np.full((2, 2), 3e38, np.float32))
BAD = {
    "layer 1 is Sigmoid, which reads values \\(1,\\), but in original ReLU": lambda: correct_bias(
        Sequential((Dense(W), Sigmoid())), Sequential((Dense(W), ReLU())), W
    ),
    "layer 1 is ReLU, which reads values \\(0,\\), but in original ReLU, which reads \\(1,\\)": (
        lambda: correct_bias(
            Parallel((ReLU(), ReLU()), Concat()), Sequential((ReLU(), ReLU(), Flatten())), W
        )
    ),
    "must have the same layers, not 1 and 2": lambda: correct_bias(
        Sequential((Dense(W),)), Sequential((Dense(W), ReLU())), W
    ),
    "at least one example": lambda: correct_bias(
        Sequential((Dense(W),)), Sequential((Dense(W),)), W[:0]
    ),
    "original must be a Network, not Dense": lambda: correct_bias(
        Sequential((Dense(W),)), Dense(W), W
    ),
    "network must be a Network": lambda: correct_bias(Dense(W), Sequential((Dense(W),)), W),
    "x must be finite": lambda: correct_bias(
        Sequential((Dense(W),)), Sequential((Dense(W),)), W * np.inf
    ),
    "layer 0 \\(Dense\\): weight must be finite": lambda: correct_bias(
        Sequential((Dense(W * np.nan),)), Sequential((Dense(W),)), W
    ),
    "layer 0 \\(Dense\\): the mean of the outputs must be finite": lambda: correct_bias(
        Sequential((BIG,)), Sequential((BIG,)), W.astype("f4") * 4
    ),
    "layer 0 \\(Dense\\): bias would overflow float16": lambda: correct_bias(
        Sequential((Dense(np.full((2, 2), -3e4, "f2"), np.full(2, 3e4, "f2")),)),
        Sequential((Dense(np.full((2, 2), 2e4, "f2")),)),
        W.astype("f2"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(CompressionError, match=message), np.errstate(over="ignore"):
        BAD[message]()


def test_representations_stay_and_their_biases_are_decoded():
    original = Sequential((Dense(W / 3, np.array([0.3, 0.7])),))
    packed = Dense(quantize(W / 3, num_bits=2).rep, quantize(np.array([0.3, 0.7]), num_bits=2).rep)
    found = correct_bias(Sequential((packed,)), original, W)
    assert found.layers[0].weight is packed.weight
    assert isinstance(found.layers[0].bias, np.ndarray)
    assert np.allclose(found(W), decoded(original)(W))
