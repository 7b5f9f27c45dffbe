"""Low rank: the error is the tail of the singular values, and no product of that rank is nearer.

Oracles take their singular values from `numpy.linalg.svd`, which promises no constant. Tolerances
are what LAPACK's own tests let pass, 50 max(m, n) eps ||W|| (the threshold in its file svd.in); on
[[3, 2, -2], [-2, 2, -3], [-3, 1, -3]] its residual is 25 eps. Soundness is checked without any.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from budgets import contract_seconds
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_norms import exact_gamma, exact_root, exact_upward, law_within_units

from minicompress import norms
from minicompress.compressors.randomized import randomized_svd
from minicompress.compressors.svd import (
    channel_svd,
    least_rank,
    low_rank,
    spatial_svd,
    truncated_svd,
)
from minicompress.errors import CompressionError
from minicompress.norms import UNIT, svd_of
from minicompress.representation import Certificate, Compressed, LowRank, decode, num_params
from minicompress.testing.checks import check_compressor, check_pure
from minicompress.testing.strategies import conv_kernels, matrices

DOUBLE = [np.dtype("f8")]
small = matrices(dtypes=DOUBLE, kinds=["integers", "ordinary"], empty=False)
bricks = conv_kernels(dtypes=DOUBLE, kinds=["integers", "ordinary"], empty=False)


def ranked(strategy):
    return strategy.flatmap(lambda w: st.tuples(st.just(w), st.integers(0, min(w.shape))))


def size(w):
    """The Frobenius norm, also where squares would underflow."""
    return math.hypot(*w.ravel())


def lapack_slack(w):
    """What the singular values of a matrix may err by, and an error that is made of them."""
    return 50 * max(w.shape) * 2 * UNIT * size(w)


def tails(w):
    """For every rank the root of the sum of the dropped squares, by another library."""
    s = np.linalg.svd(w, compute_uv=False)
    return [math.hypot(*s[r:]) for r in range(len(s) + 1)]


def error(w, rep):
    return size(w - decode(rep))


# -- the laws, each a function of the implementation ----------------------------------------------


def law_error_is_the_tail(svd, w, rank):
    """From above and from below: Eckart and Young leave nothing open."""
    rep, cert = svd(w, rank=rank)
    assert abs(error(w, rep) - tails(w)[rank]) <= lapack_slack(w)
    assert abs(cert.measured - tails(w)[rank]) <= lapack_slack(w)


def law_bound_is_the_tail(svd, w, rank):
    """Above it by what orthogonality, residual and rounding can add, and by no more.

    The largest of these is ``||U'U - I||_F + gamma_(m + 4) k`` for each side; the residual and the
    products have gamma_(k + 8) and norms of at most sqrt(k) ||W||_F: (m + n + 20) (k + 2) u covers
    them twice. Two outward steps of 64 u and one of 4 k + 64 follow.
    """
    (m, n), k = w.shape, min(w.shape)
    units = 2 * (m + n + 20) * (k + 2) + 4 * k + 3 * 64
    slack = units * UNIT * size(w)
    assert abs(svd(w, rank=rank).cert.bound - tails(w)[rank]) <= slack + lapack_slack(w)


def law_bound_holds_exactly(svd, w, rank):
    rep, cert = svd(w, rank=rank)
    differences = zip(w.ravel().tolist(), decode(rep).ravel().tolist(), strict=True)
    exact = sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in differences), Fraction(0))
    assert Fraction(cert.bound) ** 2 >= exact


def law_nothing_of_the_rank_is_nearer(svd, w, left, right):
    rival = size(w - left @ right)
    rep = svd(w, rank=min(left.shape[1], *w.shape)).rep
    assert error(w, rep) <= rival + lapack_slack(w)


def law_factors_have_the_rank(svd, w, rank):
    (m, n), rep = w.shape, svd(w, rank=rank).rep
    assert [f.shape for f in rep.factors] == [(m, rank), (rank, n)]
    assert rep.subscripts == "ir,ro->io"
    assert num_params(rep) == rank * (m + n)


def law_input_is_unchanged(svd, w, rank):
    check_pure(svd, w, rank=rank)


LAWS = [
    law_error_is_the_tail,
    law_bound_is_the_tail,
    law_bound_holds_exactly,
    law_factors_have_the_rank,
    law_input_is_unchanged,
]


@pytest.mark.parametrize("law", LAWS)
@given(ranked(small))
def test_truncated_svd(law, drawn):
    law(truncated_svd, *drawn)


@given(small, st.integers(1, 3), st.data())
def test_no_product_of_that_rank_is_nearer(w, rank, data):
    entries = st.integers(-2, 2).map(float)
    left = data.draw(arrays(np.float64, (w.shape[0], rank), elements=entries))
    right = data.draw(arrays(np.float64, (rank, w.shape[1]), elements=entries))
    law_nothing_of_the_rank_is_nearer(truncated_svd, w, left, right)
    nearby = left @ right + w / 64  # a rival that comes near
    law_nothing_of_the_rank_is_nearer(truncated_svd, nearby, left, right)


@given(small)
def test_full_rank_reconstructs(w):
    rep, cert = truncated_svd(w, rank=min(w.shape))
    assert error(w, rep) <= lapack_slack(w)
    assert cert.measured <= cert.bound


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("norm", ["fro", "spectral", "max"])
def test_bounds_of_an_ordinary_matrix_are_its_error(norm, dtype):
    """Ratio 1.00; in half precision storing the factors takes its part, 3 u each way."""
    w = np.random.default_rng(0).standard_normal((40, 30)).astype(dtype)
    for rank in (0, 1, 8, 20):
        _, cert = truncated_svd(w, rank=rank, norm=norm)
        ratio = {"f8": 1e-10, "f4": 1e-5, "f2": 0.05}[dtype]
        assert cert.measured <= cert.bound <= cert.measured * (1 + ratio)


def test_the_spectral_bound_is_the_next_singular_value():
    w = np.random.default_rng(0).standard_normal((12, 9))
    s = np.linalg.svd(w, compute_uv=False)
    for rank in range(9):
        bound = truncated_svd(w, rank=rank, norm="spectral").cert.bound
        assert abs(bound - s[rank]) <= 1e-11 * s[0]


def test_the_bound_is_reached_on_a_diagonal():
    """Singular values without rounding: what is left is the bound's own caution."""
    w = np.diag([4.0, 3.0, 2.0, 1.0])
    for rank, square in enumerate([30, 14, 5, 1, 0]):
        bound = truncated_svd(w, rank=rank).cert.bound
        assert math.sqrt(square) <= bound <= math.sqrt(square) + 1e-14 * 30
        assert truncated_svd(w, rank=rank, norm="max").cert.bound <= 4 - rank + 1e-13


def test_the_spectral_bound_is_the_frobenius_one_where_entries_saturate():
    """Clipping brings an entry nearer, which the sum of squares may use and the 2-norm may not."""
    shape = np.array([[1.0, 1.0, 1.0], [1.0, 0.5, 1.0], [1.0, 1.0, 0.25]])
    top = float(np.finfo("f2").max)
    for svd in (truncated_svd, randomized):
        for largest, saturated in ((top, True), (top / 4, False)):
            w = (shape * largest).astype("f2")
            two, fro = (svd(w, rank=1, norm=norm).cert.bound for norm in ("spectral", "fro"))
            assert two == fro if saturated else two < 0.95 * fro


@given(small, st.integers(1, 64))
def test_energy_takes_the_least_rank(w, sixtyfourths):
    """On squares that are whole numbers: 64ths are exact, and so is every comparison."""
    s = np.sort(np.abs(np.rint(w.ravel()[:6])))[::-1]
    squares = [Fraction(x) ** 2 for x in s.tolist()]
    kept = Fraction(sixtyfourths, 64) * sum(squares)
    rank = next(r for r in range(len(s) + 1) if sum(squares[:r]) >= kept)
    assert least_rank(s, sixtyfourths / 64) == rank
    assert least_rank(s, 0.0) == 0


@given(small, st.floats(0, 1))
def test_energy_is_kept(w, energy):
    rep, cert = truncated_svd(w, energy=energy)
    whole = size(w) or 1.0
    assert (cert.measured / whole) ** 2 <= 1 - energy + 1e-12
    rank = rep.factors[0].shape[1]
    assert rank == 0 or (tails(w)[rank - 1] / whole) ** 2 >= (1 - energy) * (1 - 1e-12)


@given(small, st.integers(0, 80))
def test_a_budget_is_never_exceeded_nor_left_unused(w, budget):
    rep = truncated_svd(w, max_params=budget).rep
    rank = rep.factors[0].shape[1]
    assert num_params(rep) <= budget
    assert rank == min(w.shape) or (rank + 1) * sum(w.shape) > budget


# -- what is allowed for rounding: as derived, in rationals, no less and no more -------------------


def in_norm(x, norm):
    """What a bound entry by entry comes to: the largest entry, or the Frobenius norm."""
    return Fraction(norms.norm_of(x, "max" if norm == "max" else "fro"))


def dtype_units(dtype):
    info = np.finfo(dtype)
    return Fraction(float(info.eps)) / 2, Fraction(float(info.smallest_subnormal))


def law_allowance(svd, w, rank, norm):
    """The bound is dropped + residual + rounding, as its derivation has them, and no other sum.

    Of dtype: a root, a product and a cast for L and for R, a cast of their product, 3 u in all to
    first order; of float64 gamma_(rank + 8); relative to |U| S |V|. One eta for each entry of L, of
    R, which ||R|| and ||L|| multiply, and of their product. The sum is rounded up by 4 k + 64.
    """
    (m, n), (unit, eta) = w.shape, dtype_units(w.dtype)
    a, exponent = norms.power_of_two_scaled(w.astype(np.float64))
    u, s, vt, residual = svd_of(a)
    k = len(s)
    kept = np.abs(u[:, :rank] * s[:rank]) @ np.abs(vt[:rank])
    if norm == "max":
        products = s[rank:, None] * np.abs(vt[rank:])
        largest = Fraction(float(np.abs((u[:, rank:] * s[rank:]) @ vt[rank:]).max()))
        sums = Fraction(float((np.abs(u[:, rank:]) @ products).max()))
        dropped = largest + exact_gamma(k - rank + 8) * sums
    else:
        tail = norms.norm_of(s[rank:]) if norm == "fro" else max(s[rank:].tolist(), default=0.0)
        dropped = Fraction(norms.orthogonality_factor(u, vt)) * Fraction(tail)
    rounding = (3 * unit * (1 + 4 * unit) + exact_gamma(rank + 8)) * in_norm(kept, norm)
    scaled = exact_upward(dropped + Fraction(residual) + rounding, 4 * k + 64)
    scaled *= Fraction(2) ** exponent
    # ||L||_F**2 and ||R||_F**2 are the sum of the singular values, with half of the exponent each.
    factor = exact_root(Fraction(float(s[:rank].sum()))) * Fraction(2) ** -(-exponent // 2)
    lost = factor * (exact_root(rank * n) + exact_root(rank * m))
    lost += exact_root(m * n) * (1 + rank * eta)
    law = exact_upward(scaled + exact_upward(lost) * eta)
    # A product, two sums, `upward` (3 u: it rounds and moves a place), a sum and `upward` once more
    # on the one way; two roots, two sums, a product, `upward`, a sum and `upward` on the other.
    law_within_units(svd(w, rank=rank, norm=norm).cert.bound, law, 12)


@given(ranked(small), st.sampled_from(["f2", "f4", "f8"]), st.sampled_from(["low", "", "high"]))
def test_the_bound_has_the_allowance_that_is_derived(drawn, dtype, place):
    """Also where a dtype's numbers are subnormal, and what they lose is most of the bound."""
    w, rank = drawn
    info = np.finfo(dtype)
    shift = {"low": int(info.minexp) - 5, "": 0, "high": int(info.maxexp) - 8}[place]
    w = np.ldexp(np.rint(w), shift).astype(dtype)
    if w.any():
        for norm in norms.NORMS:
            law_allowance(truncated_svd, w, rank, norm)


def test_the_bound_of_many_singular_values_has_the_allowance_that_is_derived():
    """From 16 on 4 k is more than the 64 that are added to it."""
    w = np.random.default_rng(0).standard_normal((20, 17))
    for rank in (0, 1, 5, 16, 17):
        for norm in norms.NORMS:
            law_allowance(truncated_svd, w, rank, norm)
            law_allowance(truncated_svd, w[:, :16], min(rank, 16), norm)
    signs = np.sign(np.random.default_rng(0).standard_normal((60, 60)))
    for rank in (0, 1, 30):  # of the sums of magnitudes these entries are a fourth
        law_allowance(truncated_svd, signs, rank, "max")


def law_posterior_allowance(svd, w, rank, norm):
    """What is seen of the difference, and what forming it twice and rounding once does not show."""
    unit, eta = dtype_units(w.dtype)
    (left, right), bound = (result := svd(w, rank=rank, norm=norm)).rep.factors, result.cert.bound
    a, exponent = norms.power_of_two_scaled(w.astype(np.float64))
    half = exponent // 2
    left, right = np.ldexp(left.astype("f8"), half - exponent), np.ldexp(right.astype("f8"), -half)
    rest, product = a - left @ right, np.abs(left) @ np.abs(right)
    seen = {"fro": norms.fro_upper, "spectral": norms.spectral_norm_upper, "max": norms.norm_of}[
        norm
    ]
    largest = seen(rest, "max") if norm == "max" else seen(rest)
    rounding = (unit + 2 * exact_gamma(rank + 4)) * (1 + 4 * unit) * in_norm(product, norm)
    rounding += 2 * Fraction(UNIT) * in_norm(a, norm)
    scaled = exact_upward(Fraction(largest) + rounding, 2 * (a.size + 8)) * Fraction(2) ** exponent
    law = exact_upward(scaled + exact_root(a.size) * eta)
    # A sum, `upward` (3 u: it rounds and moves a place), a sum and `upward` once more; where
    # the rounding is the most, 6 products and sums before.
    law_within_units(bound, law, 14)


@given(ranked(small), st.sampled_from(["f2", "f4", "f8"]), st.sampled_from(["low", ""]))
def test_the_bound_a_posteriori_has_the_allowance_that_is_derived(drawn, dtype, place):
    w, rank = drawn
    w = np.ldexp(np.rint(w), int(np.finfo(dtype).minexp) - 5 if place else 0).astype(dtype)
    if w.any():
        for norm in norms.NORMS:
            law_posterior_allowance(randomized, w, rank, norm)


# -- kernels --------------------------------------------------------------------------------------


def law_channel_is_of_its_matrix(svd, kernel, rank):
    kh, kw, inputs, outputs = kernel.shape
    left, right = svd(kernel, rank=rank).rep.factors
    matrix = kernel.reshape(kh * kw * inputs, outputs)
    flat = truncated_svd(matrix, rank=rank).rep.factors
    assert left.shape == (kh, kw, inputs, rank)
    assert np.array_equal(left.reshape(flat[0].shape), flat[0])
    assert np.array_equal(right, flat[1])


def law_spatial_separates(svd, column, row):
    """A kernel that is one vertical filter times one horizontal one has rank 1."""
    kernel = np.einsum("hi,wo->hwio", column, row)
    rep, cert = svd(kernel, rank=1)
    assert [f.shape for f in rep.factors] == [(*column.shape, 1), (1, *row.shape)]
    assert np.linalg.norm(decode(rep) - kernel) <= 64 * UNIT * np.linalg.norm(kernel)
    assert cert.bound <= 1e-12 * np.linalg.norm(kernel)


@given(bricks, st.data())
def test_channel_svd(kernel, data):
    most = min(math.prod(kernel.shape[:3]), kernel.shape[3])
    law_channel_is_of_its_matrix(channel_svd, kernel, data.draw(st.integers(0, most)))


integers = st.integers(-3, 3).map(float)


@given(arrays(np.float64, (3, 2), elements=integers), arrays(np.float64, (2, 3), elements=integers))
def test_spatial_svd(column, row):
    assume(column.any() and row.any())
    law_spatial_separates(spatial_svd, column, row)


@given(bricks, st.data())
def test_spatial_svd_has_the_error_of_its_matrix(kernel, data):
    kh, kw, inputs, outputs = kernel.shape
    matrix = kernel.transpose(0, 2, 1, 3).reshape(kh * inputs, kw * outputs)
    rank = data.draw(st.integers(0, min(matrix.shape)))
    rep, cert = spatial_svd(kernel, rank=rank)
    assert abs(error(kernel, rep) - tails(matrix)[rank]) <= lapack_slack(matrix)
    assert spatial_svd(kernel, rank=rank, norm="spectral").cert.bound == cert.bound


@pytest.mark.parametrize("method", [channel_svd, spatial_svd])
@given(bricks, st.integers(0, 90), st.floats(0, 1))
def test_kernels_by_budget_and_by_energy(method, kernel, budget, energy):
    assert num_params(method(kernel, max_params=budget).rep) <= budget
    cert, whole = method(kernel, energy=energy).cert, size(kernel) or 1.0
    assert (cert.measured / whole) ** 2 <= 1 - energy + 1e-12


# -- the randomized method ------------------------------------------------------------------------


def randomized(w, seed=0, **options):
    rng = np.random.default_rng(seed)
    return randomized_svd(w, rng=rng, **options)


@given(ranked(small))
def test_randomized_is_nearly_the_best_and_never_better(drawn):
    """With 10 columns beyond the rank these matrices are sampled whole, so the tail is met."""
    w, rank = drawn
    rep, cert = randomized(w, rank=rank)
    assert abs(error(w, rep) - tails(w)[rank]) <= 4 * lapack_slack(w)
    law_factors_have_the_rank(randomized, w, rank)
    law_bound_holds_exactly(randomized, w, rank)
    # Here too the outward steps come to 3 times 64 u, and the products to some k u.
    slack = (3 * 64 + 16 * w.size) * UNIT * size(w)
    assert cert.measured <= cert.bound <= cert.measured + slack


def test_randomized_samples_a_large_matrix():
    rng = np.random.default_rng(0)
    w = (
        rng.standard_normal((300, 40))
        @ np.diag(0.8 ** np.arange(40))
        @ rng.standard_normal((40, 200))
    )
    best = tails(w)[12]
    for norm in ("fro", "spectral", "max"):
        cert = randomized(w, rank=12, norm=norm).cert
        assert cert.measured <= cert.bound <= cert.measured * (1 + 1e-9)
    assert best <= randomized(w, rank=12).cert.bound <= 1.01 * best
    rough = randomized(w, rank=12, oversampling=0, power_iterations=0).cert.bound
    assert 1.05 * best <= rough
    other = randomized(w, seed=1, rank=12, oversampling=0, power_iterations=0).cert.bound
    assert rough != other  # the generator is what the sample comes from
    exact_rank = randomized(w, rank=40, oversampling=0)
    assert exact_rank.cert.bound <= 1e-11 * np.linalg.norm(w)


def test_defaults_of_the_randomized_method_are_those_that_are_stated():
    w = np.random.default_rng(0).standard_normal((60, 50))
    stated = randomized(w, rank=5, oversampling=10, power_iterations=4)
    assert randomized(w, rank=5).cert == stated.cert
    assert randomized(w, rank=5, oversampling=9).cert != stated.cert
    assert randomized(w, rank=5, power_iterations=3).cert != stated.cert


CONTRACTS = {
    "rank 1": (partial(truncated_svd, rank=1), matrices(empty=False)),
    "energy": (partial(truncated_svd, energy=0.7), matrices()),
    "energy, spectral": (partial(truncated_svd, energy=0.7, norm="spectral"), matrices()),
    "budget, max": (partial(truncated_svd, max_params=12, norm="max"), matrices()),
    "randomized": (partial(randomized, rank=1, oversampling=1), matrices(empty=False)),
    "randomized, max": (partial(randomized, rank=1, norm="max"), matrices(empty=False)),
    "channels": (partial(channel_svd, energy=0.7), conv_kernels()),
    "spatial": (partial(spatial_svd, max_params=12, norm="max"), conv_kernels()),
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_contract(name):
    compressor, domain = CONTRACTS[name]
    check_compressor(compressor, domain, seconds=contract_seconds())


W, K = np.ones((3, 4)), np.ones((2, 2, 3, 4))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: truncated_svd(W), "exactly one"),
        (lambda: truncated_svd(W, rank=1, energy=0.5), "exactly one"),
        (lambda: truncated_svd(W, rank=4), "rank"),
        (lambda: truncated_svd(W, rank=-1), "rank"),
        (lambda: truncated_svd(W, rank=1.0), "rank"),
        (lambda: truncated_svd(W, rank="same"), "rank"),
        (lambda: truncated_svd(W, energy=1.1), "energy"),
        (lambda: truncated_svd(W, max_params=-1), "max_params"),
        (lambda: truncated_svd(W, rank=1, norm="nuclear"), "norm"),
        (lambda: truncated_svd(K, rank=1), "weight"),
        (lambda: truncated_svd(W * np.nan, rank=1), "weight"),
        (lambda: channel_svd(W, rank=1), "kernel"),
        (lambda: channel_svd(K, rank=5), "rank"),
        (lambda: spatial_svd(W, rank=1), "kernel"),
        (lambda: spatial_svd(K, rank=7), "rank"),
        (lambda: low_rank(W[0], rank=1), "weight"),
        (lambda: randomized_svd(W, rank=1, rng=0), "rng"),
        (lambda: randomized(W, rank=4), "rank"),
        (lambda: randomized(W, rank=1, oversampling=-1), "oversampling"),
        (lambda: randomized(W, rank=1, power_iterations=0.5), "power_iterations"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(CompressionError, match=name):
        call()


def test_low_rank_is_the_method_for_the_number_of_axes():
    for w, method in ((W, truncated_svd), (K, channel_svd)):
        rep, cert = low_rank(w, max_params=9, norm="max")
        wanted = method(w, max_params=9, norm="max")
        assert cert == wanted.cert
        assert decode(rep).tobytes() == decode(wanted.rep).tobytes()


@pytest.mark.parametrize("method", [truncated_svd, channel_svd, spatial_svd, low_rank])
def test_unknown_options_raise(method):
    with pytest.raises(TypeError, match="ranks"):
        method(K, ranks=1)


def test_rank_none_of_an_empty_matrix():
    for shape in ((0, 3), (3, 0), (0, 0)):
        rep, cert = truncated_svd(np.zeros(shape), rank=0)
        assert decode(rep).shape == shape
        assert cert.bound == cert.measured == 0.0


# -- wrong implementations ------------------------------------------------------------------------


def claiming(bound):
    """The right factors with another bound, a function of the singular values and the rank."""

    def svd(w, *, rank):
        rep, cert = truncated_svd(w, rank=rank)
        s = np.append(np.linalg.svd(w, compute_uv=False), 0.0)
        return Compressed(rep, cert._replace(bound=float(bound(s, rank, cert.bound))))

    return svd


def triples(choose, change=lambda s: s):
    """Other triples than the first, or other values on them."""

    def svd(w, *, rank):
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        k = choose(len(s), rank)
        rep = LowRank((u[:, k] * change(s[k]), vt[k]), "ir,ro->io")
        e = error(w, rep)
        return Compressed(rep, Certificate("fro", e * (1 + 1e-12), e))

    return svd


def in_place(w, *, rank):
    w -= 0.0 * w + 1.0
    return truncated_svd(w, rank=rank)


def one_rank_more(w, *, rank):
    return truncated_svd(w, rank=min(rank + 1, *w.shape))


def channel_of_the_outputs(kernel, *, rank):
    """Sorts the axes the other way: still a factorization, but of another matrix."""
    return channel_svd(np.ascontiguousarray(kernel.transpose(1, 0, 2, 3)), rank=rank)


def spatial_of_the_channel_matrix(kernel, *, rank):
    return spatial_svd(np.ascontiguousarray(kernel.transpose(1, 0, 2, 3)), rank=rank)


def on(law, *cases):
    return lambda wrong: [law(wrong, *case) for case in cases]


rng = np.random.default_rng(1)
PLAIN = rng.integers(-5, 6, (6, 5)).astype(float)
BRICK = rng.integers(-5, 6, (2, 3, 2, 4)).astype(float)
MANY = [(rng.integers(-5, 6, (4, 5)).astype(float), 2) for _ in range(40)]
bound_is_tail = on(law_bound_is_the_tail, (PLAIN, 2), (PLAIN, 1))
error_is_tail = on(law_error_is_the_tail, (PLAIN, 2))
holds = on(law_bound_holds_exactly, *MANY)
spatial = on(
    law_spatial_separates, (np.array([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]]), np.ones((2, 2)))
)
PLANTED = {
    "s_r for s_(r+1)": (bound_is_tail, claiming(lambda s, r, b: np.linalg.norm(s[r - 1 :]))),
    "the doubled bound": (bound_is_tail, claiming(lambda s, r, b: 2 * b)),
    "0.1 % too much": (bound_is_tail, claiming(lambda s, r, b: 1.001 * b)),
    "the L1 tail": (bound_is_tail, claiming(lambda s, r, b: s[r:].sum())),
    "the whole norm": (bound_is_tail, claiming(lambda s, r, b: np.linalg.norm(s))),
    "spectral sold as Frobenius": (holds, claiming(lambda s, r, b: s[r])),
    "no outward rounding": (holds, claiming(lambda s, r, b: np.linalg.norm(s[r:]))),
    "the last triples": (error_is_tail, triples(lambda k, r: slice(k - r, k))),
    "one triple too few": (error_is_tail, triples(lambda k, r: slice(0, max(r - 1, 0)))),
    "roots of the singular values": (error_is_tail, triples(lambda k, r: slice(r), np.sqrt)),
    "a rival is nearer": (
        on(law_nothing_of_the_rank_is_nearer, (np.outer([1.0, 2], [3.0, 4]), np.array([[1.0], [2]]),
                                               np.array([[3.0, 4]]))),
        triples(lambda k, r: slice(k - r, k)),
    ),
    "one rank more than asked for": (on(law_factors_have_the_rank, (PLAIN, 2)), one_rank_more),
    "in-place writes": (on(law_input_is_unchanged, (PLAIN, 2)), in_place),
    "channel: height and width exchanged": (
        on(law_channel_is_of_its_matrix, (BRICK, 2)),
        channel_of_the_outputs,
    ),
    "spatial: height and width exchanged": (spatial, spatial_of_the_channel_matrix),
    "spatial: of the channel matrix": (spatial, channel_svd),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)


def test_the_cases_of_the_planted_faults_are_lawful():
    """What catches a wrong implementation lets the right one pass."""
    right = {"channel": channel_svd, "spatial": spatial_svd}
    for name, (law, _) in PLANTED.items():
        law(right.get(name.split(":")[0], truncated_svd))


@pytest.mark.parametrize("exponent", [-1000, -501, -3, 0, 1, 2, 500, 999])
def test_both_factors_take_half_of_the_scale(exponent):
    """Each within a factor of 2 of the other: nothing over- or underflows that need not."""
    w = np.ldexp(np.array([[4.0, 1.0], [1.0, 3.0]]), exponent)
    left, right = (np.abs(f).max() for f in truncated_svd(w, rank=2).rep.factors)
    assert 0.25 <= left / right <= 4.0
