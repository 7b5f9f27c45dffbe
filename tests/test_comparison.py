"""The experiment behind the command: its pieces by hand, and its figures on the shipped digits."""

import math
from functools import partial

import numpy as np
import pytest

from minicompress.analysis.accounting import summary
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.compressors.svd import channel_svd, truncated_svd
from minicompress.datasets import load_digits
from minicompress.experiments import comparison
from minicompress.experiments.comparison import (
    BEFORE_RETRAINING,
    RETRAINED,
    TRAINED,
    compare,
    half_rank,
    retraining_epochs,
    setup,
)
from minicompress.nn.architectures import digits_cnn
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import apply
from minicompress.nn.pointwise import ReLU
from minicompress.nn.stateless import Flatten
from minicompress.representation import Certificate, LowRank, Quantized, decode
from minicompress.rewrite.low_rank import factorize, restore_factors
from minicompress.search.plan import compress
from minicompress.search.weights import total, weights, with_weights


@pytest.fixture(scope="module")
def net():
    return digits_cnn(np.random.default_rng(0))


@pytest.fixture(scope="module")
def rows():
    """The command's own run, with its settings."""
    return {row.method: row for row in compare(setup("digits", load_digits))}


def test_only_the_chosen_weights_are_replaced(net):
    small, certificates = compress(net, {2: partial(quantize, num_bits=4)})
    assert isinstance(small.layers[2].weight, Quantized)
    assert list(certificates) == [2]
    assert small.layers[2].bias is net.layers[2].bias
    assert all(small.layers[i] is net.layers[i] for i in (0, 1, 3, 4, 5))
    assert isinstance(net.layers[2].weight, np.ndarray)


def test_what_is_compressed_already_is_compressed_as_the_array_it_stands_for(net):
    pruned, _ = compress(net, {5: partial(prune_magnitude, amount=0.5)})
    again, certificates = compress(pruned, {5: partial(prune_magnitude, amount=0.5)})
    assert certificates[5].measured == certificates[5].bound == 0
    assert np.array_equal(decode(again.layers[5].weight), decode(pruned.layers[5].weight))


def test_weights_and_back(net):
    assert list(weights(net)) == [0, 2, 5]
    doubled = with_weights(net, {i: decode(w) * 2 for i, w in weights(net).items()})
    for i, weight in weights(net).items():
        assert np.array_equal(decode(doubled.layers[i].weight), decode(weight) * 2)


def test_total_is_the_certificate_of_one_long_vector():
    parts = [Certificate("fro", 5.0, 3.0), Certificate("fro", 12.0, 4.0)]
    assert total(parts).measured == 5.0
    assert 13.0 <= total(parts).bound < 13.0 * (1 + 1e-13)  # rounded upward, by a few units
    assert total([]) == Certificate("fro", 0.0, 0.0)


def test_factors_as_layers_and_back():
    # Factors of small integers: every product and sum is exact in float32, so == is right.
    rng = np.random.default_rng(0)
    kernel = LowRank(
        tuple(rng.integers(-3, 4, s).astype(np.float32) for s in ((3, 3, 1, 2), (2, 5))),
        "hwir,ro->hwio",
    )
    matrix = LowRank(
        tuple(rng.integers(-3, 4, s).astype(np.float32) for s in ((180, 2), (2, 10))), "ir,ro->io"
    )
    bias = rng.integers(-3, 4, 5).astype(np.float32)
    model = Sequential(
        (Conv2D(kernel, bias), ReLU(), Flatten(), Dense(matrix, np.arange(10, dtype=np.float32)))
    )
    parts = factorize(model)
    assert len(parts.layers) == 6
    assert summary(parts, (8, 8, 1)).params == summary(model, (8, 8, 1)).params
    back = restore_factors(model, parts)
    assert len(back.layers) == 4
    x = rng.integers(0, 3, (4, 8, 8, 1)).astype(np.float32)
    assert np.array_equal(decode(back.layers[0].weight), decode(kernel))
    assert np.array_equal(decode(back.layers[3].weight), decode(matrix))
    assert np.array_equal(back.layers[0].bias, bias)
    assert np.array_equal(apply(back, x), apply(parts, x))


def test_half_rank_takes_half(net):
    kernel, matrix = decode(net.layers[2].weight), decode(net.layers[5].weight)
    assert [f.shape for f in half_rank(kernel).rep.factors] == [(3, 3, 16, 16), (16, 32)]
    assert [f.shape for f in half_rank(matrix).rep.factors] == [(512, 5), (5, 10)]
    assert half_rank(kernel).cert == channel_svd(kernel, rank=16).cert
    assert half_rank(matrix).cert == truncated_svd(matrix, rank=5).cert


def test_retraining_takes_a_third():
    assert [retraining_epochs(n) for n in (1, 2, 3, 24)] == [1, 1, 1, 8]


def test_every_method_is_there(rows):
    assert list(rows) == [
        "dense float32",
        "int8",
        "int4",
        "low rank 1/2",
        "low rank 1/2 + int8",
        "prune 50%",
        "prune 50% + int8",
        "prune 90%",
        "prune 90% + int8",
        "small_kernel",
        "strided",
    ]


def test_counts_are_those_of_the_formulas(rows):
    # digits_cnn: kernels 3x3x1x16 and 3x3x16x32, a dense 512x10, and their biases.
    sizes, biases = [144, 4608, 5120], 16 + 32 + 10
    dense = rows["dense float32"]
    assert dense.params == sum(sizes) + biases == 9930
    assert dense.bytes == 4 * 9930
    assert dense.macs == 6 * 6 * 144 + 4 * 4 * 4608 + 5120

    low = rows["low rank 1/2"]
    assert low.params == 144 + 16 * (144 + 32) + 5 * (512 + 10) + biases
    assert low.macs == 6 * 6 * 144 + 4 * 4 * 16 * (144 + 32) + 5 * (512 + 10)
    for amount in (0.5, 0.9):
        pruned = rows[f"prune {amount:.0%}"]
        kept = [n - round(amount * n) for n in sizes[1:]]
        assert pruned.nonzeros == pruned.params == 144 + sum(kept) + biases
        # Which survive is a bit for each, or an index of 13 bits for each survivor.
        places = [min(n // 8, math.ceil(13 * k / 8)) for n, k in zip(sizes[1:], kept, strict=True)]
        assert pruned.bytes == 4 * pruned.params + sum(places)

    channels = 16 + 32 + 10
    assert rows["int8"].bytes == sum(sizes) + 4 * channels + 4 * biases
    assert rows["int4"].bytes == sum(sizes) // 2 + 4 * channels + 4 * biases
    for name in ("int8", "int4", "prune 50%", "prune 90%", "prune 90% + int8"):
        assert rows[name].macs == dense.macs


def test_ratios_and_changes_are_against_the_first_row(rows):
    dense = rows["dense float32"]
    assert (dense.ratio, dense.change) == (1.0, 0.0)
    for row in rows.values():
        assert row.ratio == 4 * dense.params / row.bytes
        # A difference of two fractions of 300, in percent: what is lost to rounding is below 1e-12.
        assert abs(row.change - 100 * (row.test_accuracy - dense.test_accuracy)) < 1e-12
        assert abs(300 * row.test_accuracy - round(300 * row.test_accuracy)) < 1e-9


def test_no_error_is_above_its_bound(rows):
    certified = [row for row in rows.values() if row.against]
    assert len(certified) == 8
    for row in certified:
        assert 0 < row.measured <= row.bound
    # The law of pruning and of the SVD is an equality, so these bounds are reached.
    for name in ("prune 50%", "prune 90%", "low rank 1/2"):
        assert rows[name].bound <= rows[name].measured * (1 + 1e-4)


def test_it_is_said_what_the_errors_are_measured_from(rows):
    said = {name: row.against for name, row in rows.items()}
    assert said["int8"] == said["int4"] == TRAINED
    assert said["prune 50%"] == said["prune 90%"] == said["low rank 1/2"] == BEFORE_RETRAINING
    assert said["prune 90% + int8"] == said["low rank 1/2 + int8"] == RETRAINED
    assert said["dense float32"] is said["strided"] is said["small_kernel"] is None
    # Rounding what was retrained is far less than what the first step took away.
    assert rows["prune 90% + int8"].bound < 0.1 * rows["prune 90%"].measured


def test_most_images_keep_their_class_in_eight_bits_and_that_is_proven(rows):
    assert rows["int8"].certified >= 0.85
    assert all(0 <= row.certified <= 1 for row in rows.values() if row.against)
    for name in ("dense float32", "strided", "small_kernel"):
        assert rows[name].certified is None


def test_accuracies_are_sensible(rows):
    assert rows["dense float32"].test_accuracy >= 0.97
    assert rows["dense float32"].validation_accuracy >= 0.97
    # Eight bits move no more than an image or two of 300, as the README says; all stay useful.
    assert abs(rows["int8"].change) < 0.7
    assert min(row.test_accuracy for row in rows.values()) > 0.94


def test_a_row_does_not_depend_on_those_before_it(monkeypatch):
    digits = setup("digits", load_digits, epochs=1)
    all_rows = {row.method: row for row in compare(digits)}
    monkeypatch.setattr(comparison, "AMOUNTS", (0.9,))
    for row in compare(digits):
        assert row == all_rows[row.method]


def test_progress_is_told_by_name():
    told = []
    compare(setup("digits", load_digits, epochs=1, progress=lambda *args: told.append(args)))
    names = list(dict.fromkeys(name for name, _ in told))
    assert names == [
        "baseline",
        "low rank 1/2",
        "prune 50%",
        "prune 90%",
        "small_kernel",
        "strided",
    ]
    assert [done for name, done in told if name == "baseline"][-1] == 1.0
    assert all(0 < done <= 1 for _, done in told)
