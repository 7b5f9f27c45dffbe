"""Short names of methods: what they stand for, and what is said of slips."""

import pickle
from functools import partial

import numpy as np
import pytest
from budgets import at_most
from hypothesis import given
from hypothesis import strategies as st

import minicompress as mc
from minicompress.search.methods import (
    EXAMPLES,
    FEWEST,
    PRICE,
    factor_in_two,
    parse_method,
    quantize_best_axis,
)
from minicompress.testing.checks import check_compressor, same
from minicompress.testing.strategies import weights

RNG = np.random.default_rng(3)
W = RNG.normal(size=(12, 16)).astype(np.float32)
KERNEL = RNG.normal(size=(16, 4, 3, 3)).astype(np.float32)

MEANING = {
    "int8": partial(mc.quantize, num_bits=8, axis=0),
    "INT4@1": partial(mc.quantize, num_bits=4, axis=1),
    "int4@-1": partial(mc.quantize, num_bits=4, axis=1),
    "int4@all": partial(mc.quantize, num_bits=4),
    "int3/8": partial(mc.quantize, num_bits=3, axis=1, block_size=8),  # the longest axis
    "int3/4@0": partial(mc.quantize, num_bits=3, axis=0, block_size=4),
    "uint8@0": partial(mc.quantize, num_bits=8, axis=0, signed=False, symmetric=False),
    "prune80": partial(mc.prune_magnitude, amount=0.8),
    "prune80%": partial(mc.prune_magnitude, amount=0.8),
    "prune99.5": partial(mc.prune_magnitude, amount=0.995),
    "prune2:4": partial(mc.prune_n_m, n=2, m=4, axis=-1),
    "prune1:3@0": partial(mc.prune_n_m, n=1, m=3, axis=0),
    "rank3": partial(mc.truncated_svd, rank=3),
    "rank50%": partial(mc.truncated_svd, rank=3),  # 3 * (12 + 16) = 84 of 192 numbers
    "cluster16": partial(mc.cluster, n_clusters=16),
    "prune80+int8": mc.chain(partial(mc.prune_magnitude, amount=0.8), mc.quantize),
    " prune80 + cluster4 + int8 ": mc.chain(
        partial(mc.prune_magnitude, amount=0.8), partial(mc.cluster, n_clusters=4), mc.quantize
    ),
}


@pytest.mark.parametrize("text", MEANING)
def test_names_mean_what_is_documented(text):
    w = W.copy()
    w[3] *= 100  # so axis 0 suits best
    made, wanted = parse_method(text)(w), MEANING[text](w)
    assert same(made.rep, wanted.rep)
    assert same(made.cert, wanted.cert)


def test_keep_is_no_compressor():
    assert parse_method("keep") is parse_method(" Keep ") is None


@pytest.mark.parametrize("text", [*MEANING, *(e for e in EXAMPLES.split(", ") if e != "keep")])
def test_every_name_gives_a_sound_compressor_that_pickles(text):
    compressor = pickle.loads(pickle.dumps(parse_method(text)))
    rep, cert = compressor(W)
    assert cert.norm == "fro"
    assert cert.measured <= cert.bound
    assert mc.decode(rep).dtype == W.dtype
    assert same(compressor(W), parse_method(text)(W))


SLIPS = {
    "int1": "'int1' of method 'int1': 2 to 16 bits, not 1",
    "prune10+int17": "'int17' of method 'prune10[+]int17': 2 to 16 bits, not 17",
    "int": "'int' of method 'int' is not understood: methods are, for example, int8",
    "float8": "'float8' of method 'float8' is not understood",
    "": "'' of method '' is not understood",
    "int8+": "'' of method 'int8[+]' is not understood",
    "prune": "is not understood",
    "prune101": "a share is from 0 to 100 percent, not 101",
    "prune0:4": "0 of every 4 cannot stay",
    "prune5:4": "5 of every 4 cannot stay",
    "prune2:4@all": "neighbours lie along one axis",
    "rank0": "a rank is a whole number of at least 1",
    "rank1.5": "a rank is a whole number of at least 1",
    "rank120%": "from 0 to 100 percent",
    "cluster0": "1 to 65536 values, not 0",
    "cluster99999": "1 to 65536 values",
    "int8/0": "at least 1",
    "int8/4@all": "along one axis",
    "int8+prune80": "in the order rank, prune, cluster, int",
    "prune10+prune20": "once each",
    "keep+int8": "'keep' of method 'keep[+]int8' is not understood",
    "int٨": "is not understood",
}


@pytest.mark.parametrize("text", SLIPS)
def test_slips_are_named(text):
    with pytest.raises(mc.CompressionError, match=SLIPS[text]) as caught:
        parse_method(text)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_refused():
    for value in (8, None, ["int8"]):
        with pytest.raises(mc.CompressionError, match="must be a text such as 'int8'"):
            parse_method(value)


@at_most(200)
@given(st.text(alphabet="intpruecluster0123456789+@/:%.-all ", max_size=16))
def test_any_text_is_understood_or_refused(text):
    try:
        compressor = parse_method(text)
        result = None if compressor is None else compressor(W)
    except mc.CompressionError:
        return
    assert result is None or result.cert.measured <= result.cert.bound


# the axis that suits best -------------------------------------------------------------------------


def law_least_cost(compressor, w, **options):
    """No axis whose scales serve `FEWEST` entries has smaller steps at the price of its scales."""
    sizes = {a: n for a, n in enumerate(w.shape) if n > 1 and w.size >= FEWEST * n} | {None: 1}
    made = compressor(w, **options).rep
    assert made.axis in sizes
    costs = {}
    for axis, n in sizes.items():
        scales = mc.quantize(w, axis=axis, **options).rep.scale.astype(np.float64)
        costs[axis] = np.log2(np.sqrt(np.mean(scales**2))) + PRICE * n / w.size
    # Scales are rounded to float32, and a step is not quite a range over a number of codes.
    assert costs[made.axis] <= min(costs.values()) + 0.02


@given(weights(dtypes=[np.dtype("f4")], kinds=["ordinary"], min_ndim=1, empty=False))
def test_the_axis_of_least_cost_is_taken(w):
    for options in ({}, {"num_bits": 4}, {"symmetric": False, "signed": False}):
        law_least_cost(quantize_best_axis, w, **options)


def test_scales_never_outnumber_the_entries():
    assert quantize_best_axis(np.ones((64, 1, 1))).rep.axis is None
    assert quantize_best_axis(np.ones((64, 1, 3, 3))).rep.axis is None
    one_loud = np.ones((64, 1, 3, 3))
    one_loud[5] = 100
    assert quantize_best_axis(one_loud).rep.axis == 0
    assert quantize_best_axis(np.moveaxis(one_loud, 0, -1)).rep.axis == 3


def test_blocks_lie_along_the_longest_axis():
    for shape, axis in (((12, 16), 1), ((16, 12), 0), ((8, 8), 1), ((16, 4, 3, 3), 0)):
        assert parse_method("int4/4")(np.ones(shape)).rep.axis == axis
    with pytest.raises(mc.CompressionError, match="without axes has no blocks"):
        parse_method("int4/4")(np.array(1.0))


def always_first(w, **options):
    return mc.quantize(w, axis=0, **options)


def always_one(w, **options):
    return mc.quantize(w, **options)


@pytest.mark.parametrize("wrong", [always_first, always_one])
def test_the_law_of_the_axis_catches(wrong):
    w = np.ones((16, 16), np.float32)
    w[:, 3] = 50
    with pytest.raises(AssertionError):
        law_least_cost(wrong, w)


# factors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w", [W, KERNEL, KERNEL.transpose(2, 3, 1, 0), W[None]])
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_factors_hold_at_most_their_share(w, share):
    rep, cert = factor_in_two(w, share=share)
    assert mc.num_params(rep) <= share * w.size
    if share < 1:
        larger = factor_in_two(w, rank=rep.factors[1].shape[0] + 1).rep
        assert mc.num_params(larger) > share * w.size
    assert mc.decode(rep).shape == w.shape
    assert cert.measured <= cert.bound


def test_kernels_are_split_at_their_outputs():
    assert [f.shape for f in factor_in_two(KERNEL, rank=2).rep.factors] == [(16, 2), (2, 4, 3, 3)]
    last = KERNEL.transpose(2, 3, 1, 0)
    assert [f.shape for f in factor_in_two(last, rank=2).rep.factors] == [(3, 3, 4, 2), (2, 16)]
    states = RNG.normal(size=(1, 20, 6))
    assert [f.shape for f in factor_in_two(states, rank=2).rep.factors] == [(1, 20, 2), (2, 6)]


def test_factors_of_full_rank_are_the_array():
    rep, cert = factor_in_two(KERNEL.astype(np.float64), rank=16)
    np.testing.assert_allclose(mc.decode(rep), KERNEL, atol=1e-12)
    assert cert.bound < 1e-10


def test_what_has_no_such_rank_is_refused():
    with pytest.raises(mc.CompressionError, match="two axes"):
        factor_in_two(np.ones(5), rank=1)
    with pytest.raises(mc.CompressionError, match="rank must be an int from 0 to 12, not 13"):
        factor_in_two(W, rank=13)
    with pytest.raises(mc.CompressionError, match=r"rank 1 .* takes 6 numbers, more than 50% of 9"):
        factor_in_two(np.ones((3, 3)), share=0.5)


def test_compressors_of_this_room_keep_the_laws_of_compressors():
    check_compressor(quantize_best_axis, weights())
    check_compressor(partial(factor_in_two, rank=1), weights(min_ndim=2, empty=False))
