"""Hybrids are nesting, and their certificates compose by the tightest rule that applies."""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from budgets import at_most, contract_seconds
from hypothesis import given
from hypothesis import strategies as st
from test_norms import exact_gamma, exact_root, exact_upward, law_within_units

from minicompress import norms
from minicompress.compressors.chaining import chain
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.compressors.svd import channel_svd, spatial_svd, truncated_svd
from minicompress.compressors.tucker import tucker2
from minicompress.errors import CompressionError
from minicompress.representation import (
    Certificate,
    Clustered,
    Compressed,
    LowRank,
    Quantized,
    Sparse,
    decode,
    num_params,
    storage_bits,
)
from minicompress.testing.checks import check_compressor
from minicompress.testing.laws import exact_error_power
from minicompress.testing.strategies import conv_kernels, matrices, weights

half = partial(prune_magnitude, amount=0.5)
int4 = partial(quantize, num_bits=4)
int8 = partial(quantize, num_bits=8)
low = partial(truncated_svd, energy=0.9)


def two_values(w):
    """A crude clustering: every entry becomes the least or the largest one, the nearer of them."""
    book = np.array([w.min(initial=0), w.max(initial=0)], w.dtype)
    with np.errstate(over="ignore"):
        codes = (np.abs(w - book[0]) > np.abs(w - book[1])).astype(np.uint8)
    rep = Clustered(codes, book)
    return Compressed(rep, _certificate(w, rep))


def _certificate(w, rep):
    error = norms.error_norm(w, decode(rep), "fro")
    return Certificate("fro", norms.upward(error, 4 * w.size + 64), error)


CHAINS = {
    "pruned, quantized": ((half, int4), weights()),
    "pruned twice, quantized": ((half, half, int8), weights()),
    "pruned, clustered": ((half, two_values), weights()),
    "pruned, clustered, quantized": ((half, two_values, int8), weights()),
    "clustered, quantized": ((two_values, int4), weights()),
    "low rank, quantized": ((low, int8), matrices(max_size=20)),
    "low rank, pruned, quantized": ((low, half, int8), matrices(max_size=20)),
    "channel svd, quantized": ((partial(channel_svd, energy=0.9), int8), conv_kernels(max_size=24)),
    "spatial svd, quantized": ((partial(spatial_svd, energy=0.9), int8), conv_kernels(max_size=24)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_every_hybrid_keeps_the_contract_of_a_compressor(name):
    steps, domain = CHAINS[name]
    check_compressor(lambda w: chain(*steps)(w), domain, seconds=contract_seconds())


def test_hybrids_are_nesting():
    w = np.arange(24.0).reshape(4, 6)
    rep, _ = chain(half, int4)(w)
    assert isinstance(rep, Sparse)
    assert isinstance(rep.values, Quantized)
    rep, _ = chain(partial(truncated_svd, rank=2), half, int4)(w)
    assert isinstance(rep, LowRank)
    assert all(isinstance(f, Sparse) and isinstance(f.values, Quantized) for f in rep.factors)
    rep, _ = chain(half, two_values, int8)(w)
    assert isinstance(rep.values, Clustered)
    assert isinstance(rep.values.codebook, Quantized)


def test_a_hybrid_counts_its_parts():
    w = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    rep, _ = chain(half, int4)(w)
    assert num_params(rep) == 12
    assert storage_bits(rep) == 24 + 12 * 4 + 32  # a bitmap, the codes, a scale


@given(weights(kinds=("integers", "ordinary", "ties")))
def test_one_step_is_that_step(w):
    rep, cert = chain(int4)(w)
    alone = int4(w)
    assert decode(rep).tolist() == decode(alone.rep).tolist()
    assert cert == alone.cert


def law_disjoint_supports(chain_, w):
    """Dropped and kept entries do not overlap: the squares of their errors add, no more."""
    rep, cert = chain_(half, int4)(w)
    pruned = half(w)
    quantized = int4(pruned.rep.values)
    squares = Fraction(pruned.cert.bound) ** 2 + Fraction(quantized.cert.bound) ** 2
    assert Fraction(cert.bound) ** 2 >= exact_error_power(w, decode(rep), "fro")
    # hypot errs by 2 u at most and is rounded up by 8 u and one place: 12 u, doubled by squaring.
    assert Fraction(cert.bound) ** 2 <= squares * (1 + 24 * Fraction(norms.UNIT)) + Fraction(5e-324)


@given(weights(kinds=("integers", "ordinary", "ties", "zeros", "constant"), empty=False))
def test_pruned_then_quantized_is_tighter_than_the_triangle(w):
    if norms.norm_of(w, "max") < 1e100:
        law_disjoint_supports(chain, w)


def test_the_error_of_disjoint_steps_is_exactly_pythagorean():
    w = np.array([[3.0, 4.0, 20.0, -28.0]])  # drops 3 and 4
    coarse = partial(quantize, num_bits=3, power_of_two=True)
    kept = np.array([20.0, -28.0])
    error = exact_error_power(w, decode(chain(half, coarse)(w).rep), "fro")
    assert error == 25 + exact_error_power(kept, decode(coarse(kept).rep), "fro")
    assert error > 25


@at_most(25)
@given(matrices(kinds=("integers", "ordinary", "constant"), empty=False))
def test_the_product_rule_bounds_quantized_factors(w):
    if norms.norm_of(w, "max") > 1e100:
        return
    rep, cert = chain(low, int4)(w)
    tail = low(w).cert.bound
    (u, v), (u4, v4) = low(w).rep.factors, [decode(f) for f in rep.factors]
    eu, ev = int4(u).cert.bound, int4(v).cert.bound
    rule = min(
        eu * norms.spectral_norm_upper(v) + norms.spectral_norm_upper(u4) * ev,
        eu * norms.spectral_norm_upper(v4) + norms.spectral_norm_upper(u) * ev,
    )
    sizes = norms.norm_of(u) * norms.norm_of(v) + norms.norm_of(u4) * norms.norm_of(v4)
    rounding = 1.5 * norms.unit_roundoff(w.dtype) * sizes + 1e-12 * (rule + tail)
    lost = 3 * math.sqrt(w.size) * norms.smallest_subnormal(w.dtype)
    assert cert.bound <= tail + rule + rounding + lost + 2e-323  # rounded up a few times


def test_a_step_that_moves_survivors_gets_the_triangle_rule():
    def shrinking(w):  # a Sparse whose values are not the survivors
        rep, _ = half(w)
        moved = Sparse(rep.shape, rep.indices, rep.values * 0.5)
        return Compressed(moved, _certificate(w, moved))

    check_compressor(
        lambda w: chain(shrinking, int4)(w),
        weights(kinds=("ordinary",)),
        seconds=contract_seconds(),
    )
    w = np.array([1.0, 10.0])
    _, cert = chain(shrinking, int4)(w)
    assert cert.bound > math.hypot(shrinking(w).cert.bound, 0.0)


def bounded(bound):
    return lambda w: Compressed(
        two_values(w).rep if bound < 1 else half(w).rep, Certificate("fro", bound, 0.0)
    )


@given(weights(kinds=("integers", "ordinary"), empty=False), st.floats(2.0**-6, 0.5))
def test_a_codebook_moves_every_entry_of_its_largest_cluster(w, first):
    """A root, a product and a sum, and `upward` with 8 steps for them, which is 3 u itself."""
    rep, _ = two_values(w)
    largest = max(rep.codes.ravel().tolist().count(i) for i in (0, 1))
    inner = int4(rep.codebook).cert.bound
    law = exact_upward(Fraction(first) + exact_root(largest) * Fraction(inner), 8)
    law_within_units(chain(bounded(first), int4)(w).cert.bound, law, 6)


@given(weights(kinds=("integers", "ordinary"), empty=False), st.floats(1, 64))
def test_the_squares_of_disjoint_errors_add_and_no_more(w, first):
    """`hypot` is within a unit in the last place, 2 u, and `upward` is 3 u."""
    inner = int4(half(w).rep.values).cert.bound
    law = exact_upward(exact_root(Fraction(first) ** 2 + Fraction(inner) ** 2), 8)
    law_within_units(chain(bounded(first), int4)(w).cert.bound, law, 5)


def law_product_rule(chain_, w, rank, second):
    """The tail, the cheaper exchange, and what forming and rounding the product twice can add."""
    step = partial(truncated_svd, rank=min(rank, *w.shape))
    (u, v), tail = (first := step(w)).rep.factors, first.cert.bound
    rep, cert = chain_(step, second)(w)
    errors = [Fraction(second(f).cert.bound) for f in (u, v)]
    u4, v4 = (decode(f) for f in rep.factors)

    def two(left, right):
        right = right.transpose(1, 0).reshape(-1, right.shape[0])  # its columns face the left
        return Fraction(norms.spectral_norm_upper(left)), Fraction(norms.spectral_norm_upper(right))

    old, new = two(u, v), two(u4, v4)
    moved = exact_upward(
        min(errors[0] * b[1] + a[0] * errors[1] for a, b in ((old, new), (new, old)))
    )
    fro = [Fraction(norms.fro_upper(f)) for f in (u, v, u4, v4)]
    info = np.finfo(w.dtype)
    unit, eta = Fraction(float(info.eps)) / 2, Fraction(float(info.smallest_subnormal))
    lost = 2 * exact_root(w.size) * eta
    laws = []
    for terms in (u.shape[1], u.shape[1] ** 2):  # the sum has as many; it may count them twice
        rounding = (unit + exact_gamma(terms + 8)) * (fro[0] * fro[1] + fro[2] * fro[3])
        laws.append(exact_upward(Fraction(tail) + exact_upward(moved + rounding + lost), 8))
    # 3 operations and `upward` of 3 u for the exchange, 2 sums, `upward`, a sum, `upward`; and of
    # subnormal numbers in place of a u of the result a unit of the least float.
    bound, units, least = Fraction(cert.bound), 15 * Fraction(norms.UNIT), 15 * Fraction(5e-324)
    assert laws[0] * (1 - units) - least <= bound <= laws[1] * (1 + units) + least


@given(matrices(kinds=("integers", "ordinary"), empty=False), st.integers(1, 3), st.booleans())
def test_the_product_rule_is_composed_as_it_says(w, rank, low):
    """Also where numbers are subnormal, and what they lose can be seen."""
    law_product_rule(
        chain, np.ldexp(w, int(np.finfo(w.dtype).minexp) - 4) if low else w, rank, int4
    )


@pytest.mark.parametrize("rank", range(1, 7))
def test_the_product_rule_counts_the_terms_of_its_sums(rank):
    """In float64, and beside an error of 16 bits: a rounding more or less of the sums is seen."""
    w = np.sin(np.arange(72.0)).reshape(8, 9)
    w = np.where(np.eye(8, 9), 3.0, w)
    law_product_rule(chain, w, rank, partial(quantize, num_bits=16))


BAD = [
    ((), "at least one compressor"),
    ((lambda w: w,), r"each compressor of a chain must return \(rep, Certificate\), not array"),
    ((int4, half), "can follow a Quantized in a chain"),
    ((half, 3), "a compressor is a function of an array, not 3"),
    ((lambda w: int4(w)._replace(rep=np.array(w)), int4), "nothing can follow a ndarray"),
    ((half, partial(quantize, axis=-1)), "axis=0 names the channels of a weight, but shape"),
    ((partial(prune_magnitude, amount=0.5, norm="max"), int4), "not 'max' ones"),
    ((chain(half, int4), int4), "no plain arrays inside"),
]


@pytest.mark.parametrize(("steps", "message"), BAD)
def test_chains_that_mean_nothing_are_refused(steps, message):
    with pytest.raises(CompressionError, match=message):
        chain(*steps)(np.arange(12.0).reshape(3, 4))


def triangle_chain(*steps):
    return partial(_triangle_chain, steps=steps)


def _triangle_chain(w, steps):
    rep, cert = chain(*steps)(w)
    pruned = half(w)
    return Compressed(
        rep, cert._replace(bound=pruned.cert.bound + int4(pruned.rep.values).cert.bound)
    )


def pythagoras_everywhere(w):
    """Adds squares although the clusters' errors and the codebook's are on the same entries."""
    rep, cert = chain(two_values, int4)(w)
    first = two_values(w)
    second = int4(first.rep.codebook)
    return Compressed(rep, cert._replace(bound=math.hypot(first.cert.bound, second.cert.bound)))


def forgets_the_tail(w):
    rep, cert = chain(partial(truncated_svd, rank=min(1, *w.shape)), int8)(w)
    tail = truncated_svd(w, rank=min(1, *w.shape)).cert.bound
    return Compressed(rep, cert._replace(bound=max(cert.bound - tail, 0.0)))


def law_bound_holds(impl, w):
    rep, cert = impl(w)
    assert Fraction(cert.bound) ** 2 >= exact_error_power(w, decode(rep), "fro")


def test_the_cases_of_the_planted_compositions_are_lawful():
    law_disjoint_supports(chain, SPREAD)
    law_bound_holds(lambda w: chain(two_values, int4)(w), np.append(np.full(30, -0.49), 7.0))
    law_bound_holds(lambda w: chain(partial(truncated_svd, rank=1), int8)(w), np.diag([4.0, 3.0]))


SPREAD = np.array([[0.1, 0.2, 7.3, -9.9]])
PLANTED = {
    "triangle inequality where supports are disjoint": (
        lambda f: law_disjoint_supports(f, SPREAD),
        triangle_chain,
    ),
    "Pythagoras where errors overlap": (
        lambda f: law_bound_holds(f, np.append(np.full(30, -0.49), 7.0)),
        pythagoras_everywhere,
    ),
    "the tail of the singular values is forgotten": (
        lambda f: law_bound_holds(f, np.diag([4.0, 3.0])),
        forgets_the_tail,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_compositions_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)


def test_three_factors_in_a_row_are_bounded_by_their_two_norms():
    """Not by their Frobenius norms, which would do as well and are larger."""
    w = np.sin(np.arange(3 * 3 * 6 * 6.0)).reshape(3, 3, 6, 6)
    step = partial(tucker2, rank_in=4, rank_out=4)
    rep, cert = chain(step, int4)(w)
    old = step(w).rep.factors
    new = [decode(f) for f in rep.factors]
    errors = [int4(f).cert.bound for f in old]

    def outer(factors):
        return norms.spectral_norm_upper(factors[0]), norms.spectral_norm_upper(factors[2])

    def toward_right(core):
        return norms.spectral_norm_upper(core.reshape(-1, core.shape[3]))

    def toward_left(core):
        return norms.spectral_norm_upper(core.transpose(2, 0, 1, 3).reshape(core.shape[2], -1))

    def exchange(a, b):
        return (
            errors[0] * toward_left(b[1]) * outer(b)[1]
            + outer(a)[0] * errors[1] * outer(b)[1]
            + outer(a)[0] * toward_right(a[1]) * errors[2]
        )

    rule = min(exchange(old, new), exchange(new, old))
    assert cert.bound <= (step(w).cert.bound + rule) * (1 + 1e-12)


@given(st.integers(0, 3))
def test_factors_in_a_ring_get_the_bound_of_their_sizes(k):
    """Axis b joins the first factor with the last: their 2-norms as matrices would not do."""
    w = np.arange(1.0, 7.0).reshape(2, 3) * 1.7**k
    factors = (w.reshape(2, 1, 3), np.array([[1.0, 0.3]]), np.array([[1.0, 0.9, 1.1], [0.2, 1, 3]]))
    total = np.einsum("iab,ac,cb->i", *factors)

    def as_ring(target):
        rep = LowRank(factors, "iab,ac,cb->i")
        return Compressed(rep, _certificate(target, rep))

    rep, cert = chain(as_ring, partial(quantize, num_bits=2))(total)
    assert Fraction(cert.bound) ** 2 >= exact_error_power(total, decode(rep), "fro")


@given(st.integers(0, 1))
def test_the_order_of_the_exchange_does_not_make_the_bound_unsound(which):
    w = np.outer([1.0, 100.0], [1.0, -1.0])
    w = w if which else w.T
    rep, cert = chain(partial(truncated_svd, rank=1), partial(quantize, num_bits=2))(w)
    assert Fraction(cert.bound) ** 2 >= exact_error_power(w, decode(rep), "fro")
