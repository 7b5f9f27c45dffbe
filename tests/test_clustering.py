"""Clustering: at most so many values, each entry the nearest of them, zeros stay, errors counted.

Oracles work in `fractions.Fraction`. For the exact method all partitions into intervals are tried:
in one dimension the clusters of the best codebook are intervals.
"""

from __future__ import annotations

import itertools
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

from minicompress.compressors.chaining import chain
from minicompress.compressors.clustering import cluster, linear_start
from minicompress.compressors.clustering import nearest as nearest_borders
from minicompress.compressors.exact_clustering import exact_start
from minicompress.compressors.pruning import prune_magnitude
from minicompress.errors import CompressionError
from minicompress.norms import UNIT, unit_roundoff
from minicompress.representation import (
    Certificate,
    Clustered,
    Compressed,
    Sparse,
    decode,
    num_params,
    storage_bits,
)
from minicompress.testing.checks import check_compressor, check_pure
from minicompress.testing.strategies import weights

METHODS = ["linear", "exact"]
# Without denormal and mixed-huge ones, whose last bits are lost on the way to a common scale.
plain = weights(kinds=["integers", "ordinary", "zeros", "constant", "ties"], max_size=24)
lines = st.integers(1, 8).flatmap(
    lambda n: arrays(np.float64, n, elements=st.integers(-6, 6).map(float))
)


def fractions(w):
    return [Fraction(x) for x in w.astype(np.float64).ravel().tolist()]


def sse(w, decoded):
    return sum(
        ((a - b) ** 2 for a, b in zip(fractions(w), fractions(decoded), strict=True)), Fraction(0)
    )


def largest(w):
    return Fraction(float(np.abs(w.astype(np.float64)).max(initial=0)))


def least_sse(w, limit, zero):
    """The least sum of squares of all partitions of the distinct values into intervals."""
    xs = sorted(fractions(w))
    values = sorted(set(xs))
    anchored = zero and 0 in values
    best = None
    for k in range(1, min(limit, len(values)) + 1):
        for cuts in itertools.combinations(range(1, len(values)), k - 1):
            total = Fraction(0)
            for a, b in itertools.pairwise([0, *cuts, len(values)]):
                members = [x for x in xs if values[a] <= x <= values[b - 1]]
                center = sum(members) / len(members)
                if anchored and 0 in values[a:b]:
                    center = Fraction(0)
                total += sum((x - center) ** 2 for x in members)
            best = total if best is None else min(best, total)
    return best or Fraction(0)


# -- the laws, each a function of the implementation ----------------------------------------------


def law_at_most_so_many_values(clustering, w, k):
    rep = clustering(w, n_clusters=k).rep
    book = decode(rep.codebook)
    assert book.size <= k
    assert np.array_equal(np.unique(rep.codes), np.arange(book.size))  # each is in use
    assert book.dtype == w.dtype
    assert (np.diff(book.astype(np.float64)) > 0).all()


def law_entries_have_the_nearest_value(clustering, w, k):
    """Exactly the nearest, of two equally near ones the lower."""
    rep = clustering(w, n_clusters=k).rep
    book = fractions(decode(rep.codebook))
    for x, code in zip(fractions(w), rep.codes.ravel().tolist(), strict=True):
        assert code == min(range(len(book)), key=lambda i: (abs(x - book[i]), i))


def law_borders_are_exact(borders, low, high):
    """Also for the three floats about the middle of two centers, which need not be one."""
    middle = low / 2 + high / 2
    y = np.sort([low, np.nextafter(middle, -np.inf), middle, np.nextafter(middle, np.inf), high])
    got = borders(y, np.array([low, high])).tolist()
    down = [abs(x - Fraction(low)) <= abs(x - Fraction(high)) for x in fractions(y)]
    assert got == [0, sum(down), y.size]


def law_values_lie_inside_their_clusters(clustering, w, k):
    rep = clustering(w, n_clusters=k).rep
    for i, value in enumerate(fractions(decode(rep.codebook))):
        members = fractions(w.ravel()[rep.codes.ravel() == i])
        assert min(members) <= value <= max(members)


def law_values_are_the_means(clustering, w, k):
    """Lloyd's iterations have come to rest: means of their clusters, but for zero, and rounded."""
    rep = clustering(w, n_clusters=k).rep
    for i, value in enumerate(fractions(decode(rep.codebook))):
        members = fractions(w.ravel()[rep.codes.ravel() == i])
        assert members
        if value == 0 and 0 in members:
            continue
        # A sum of n terms and a quotient in float64, then one rounding to the dtype.
        unit = Fraction(unit_roundoff(w.dtype)) + (len(members) + 2) * Fraction(UNIT)
        tiny = Fraction(float(np.finfo(w.dtype).smallest_subnormal))
        assert abs(value - sum(members) / len(members)) <= 2 * unit * largest(w) + tiny


def law_zeros_stay(clustering, w, k):
    rep = clustering(w, n_clusters=k).rep
    zeros = decode(rep)[w == 0]
    assert zeros.tobytes() == np.zeros_like(zeros).tobytes()


def law_no_worse_than_the_start(clustering, w, k):
    """The linear start, with its entries to the nearest, bounds the sum of squares from above.

    Each mean is off by a few u of the largest entry, in a thousand rounds at most, and that enters
    the sum n times, squared: a mean is where the sum is flat.
    """
    low, high = float(w.min()), float(w.max())
    start = np.linspace(low, high, k)
    if (w == 0).any():
        start[np.argmin(np.abs(start))] = 0.0
    book = fractions(start.astype(w.dtype))
    first = sum((min((x - c) ** 2 for c in book) for x in fractions(w)), Fraction(0))
    off = ((w.size + 4) * Fraction(UNIT) * largest(w)) ** 2
    assert sse(w, decode(clustering(w, n_clusters=k).rep)) <= first + 1000 * w.size * off


def law_bound_is_the_sum_of_squares(clustering, w, k):
    """Never below it, and above it by what cancellation in the sums of a cluster can come to.

    About the lowest entry the three terms are at most 2 n times the width squared each, and the
    sum is at least half the width squared: 12 n times gamma_(n + 8), and as much to be outward.
    """
    rep, cert = clustering(w, n_clusters=k)
    error, bound = sse(w, decode(rep)), Fraction(cert.bound) ** 2
    assert bound >= error
    slack = Fraction(2 * (12 * w.size + 8) * (w.size + 16)) * Fraction(UNIT)
    tiny = w.size * Fraction(float(np.finfo(np.float64).smallest_subnormal)) ** 2
    assert bound <= error * (1 + slack) + 16 * tiny


def law_exact_is_the_least_of_all(clustering, w, k):
    error = sse(w, decode(clustering(w, n_clusters=k).rep))
    best = least_sse(w, k, True)
    # Centers rounded to float64, and sums of at most 8 squares of at most 36.
    assert best <= error <= best + Fraction(1, 10**12)


LAWS = [
    law_at_most_so_many_values,
    law_entries_have_the_nearest_value,
    law_values_lie_inside_their_clusters,
    law_values_are_the_means,
    law_zeros_stay,
    law_bound_is_the_sum_of_squares,
]


@pytest.mark.parametrize("method", METHODS)
@given(plain, st.integers(1, 6))
def test_every_law(method, w, k):
    for law in LAWS:
        law(partial(cluster, method=method), w, k)
    for law in LAWS[:2]:
        law(partial(cluster, method=method, preserve_sparsity=False), w, k)


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_borders_are_exact(a, b):
    assume(a != b)
    law_borders_are_exact(nearest_borders, min(a, b), max(a, b))


@pytest.mark.parametrize("method", METHODS)
@given(plain, st.integers(1, 6))
def test_never_worse_than_the_linear_start(method, w, k):
    assume(w.size)
    law_no_worse_than_the_start(partial(cluster, method=method), w, k)


@given(lines, st.integers(1, 4))
def test_exact_is_the_least_of_all_partitions(w, k):
    law_exact_is_the_least_of_all(partial(cluster, method="exact"), w, k)
    free = cluster(w, n_clusters=k, method="exact", preserve_sparsity=False).rep
    best = least_sse(w, k, False)
    assert best <= sse(w, decode(free)) <= best + Fraction(1, 10**12)


def test_exact_without_a_zero_does_not_start_at_zero():
    """Lloyd's rounds do not mend a start with a center at 0.0, which is none of these entries."""
    w = np.array([11.0, 6, 7, 11, 9, 7, 6])
    assert cluster(w, n_clusters=3, method="exact").cert.measured == 1.0


@pytest.mark.parametrize("zero", [True, False])
def test_the_linear_start_is_even_and_keeps_zero_if_asked(zero):
    middle = 0.0 if zero else 0.5
    assert linear_start(np.array([-1.0, 0, 2]), 3, zero).tolist() == [-1.0, middle, 2.0]


@given(weights(), st.integers(0, 3))
def test_as_many_values_as_there_are_lose_nothing(w, more):
    k = len(np.unique(w)) + more
    rep, cert = cluster(w, n_clusters=max(k, 1))
    assert np.array_equal(decode(rep), w)
    assert cert == ("fro", 0.0, 0.0)


def test_exact_beats_the_linear_start():
    w = np.array([0.0, 1, 2, 10, 11, 12, 100, 101, 102])
    assert cluster(w, n_clusters=3).cert == cluster(w, n_clusters=3, method="linear").cert
    rep = cluster(w, n_clusters=3, method="exact", preserve_sparsity=False).rep
    assert decode(rep.codebook).tolist() == [1, 11, 101]
    assert len(decode(cluster(w, n_clusters=3).rep.codebook)) == 2  # nothing near the middle start


@pytest.mark.parametrize("k", [1, 2, 3])
def test_exact_where_squared_distances_are_too_small_to_count(k):
    """1e-200 squared is 0: then several partitions are as good, also such with fewer intervals."""
    x = np.array([0.0, 1e-200, 2e-200, 1.0])
    law_at_most_so_many_values(partial(cluster, method="exact", preserve_sparsity=False), x, k)
    _, cert = cluster(x, n_clusters=k, method="exact", preserve_sparsity=False)
    assert cert.measured <= cert.bound
    assert (cert.measured > 0.5) == (k == 1)  # 1.0 is alone as soon as it can be


def test_exact_on_many_values_is_a_partition_that_nothing_improves():
    """100 quantiles of a normal distribution: moving one border by one entry never helps."""
    w = np.random.default_rng(0).standard_normal(3000)
    results = {m: cluster(w, n_clusters=16, method=m, preserve_sparsity=False) for m in METHODS}
    assert results["exact"].cert.measured <= results["linear"].cert.measured
    x = np.sort(w)
    borders = np.cumsum(np.bincount(results["exact"].rep.codes))[:-1]

    def total(borders):
        return sum(float(np.var(part)) * part.size for part in np.split(x, borders))

    least = total(borders)
    assert math.isclose(least, results["exact"].cert.measured ** 2, rel_tol=1e-12)
    for i, step in itertools.product(range(15), (-1, 1)):
        moved = borders.copy()
        moved[i] += step
        assert total(moved) >= least * (1 - 1e-12)


def test_bounds_are_the_errors():
    w = np.random.default_rng(0).standard_normal((60, 50))
    for dtype, method in itertools.product(("f2", "f4", "f8"), METHODS):
        for norm in ("fro", "max"):
            cert = cluster(w.astype(dtype), n_clusters=12, method=method, norm=norm).cert
            assert cert.measured <= cert.bound <= cert.measured * (1 + 1e-11)
        cert = cluster(w.astype(dtype), n_clusters=12, method=method, norm="spectral").cert
        assert cert.measured <= cert.bound


def test_bounds_are_reached():
    """Every entry at the end of its cluster: half the width, for each norm."""
    w = np.array([[1.0, -1.0, 1.0, -1.0]] * 4)
    for norm, value in (("fro", 4.0), ("spectral", 4.0), ("max", 1.0)):
        cert = cluster(w, n_clusters=1, norm=norm).cert
        assert value <= cert.measured <= cert.bound <= value * (1 + 1e-13)
    w = np.array([0.0, 2.0, 10.0, 14.0])
    cert = cluster(w, n_clusters=2, preserve_sparsity=False).cert
    assert math.sqrt(10) <= cert.bound <= math.sqrt(10) * (1 + 1e-14)


@pytest.mark.parametrize("n", [4, 16, 128])
def test_the_bound_of_a_cluster_has_the_allowance_that_is_derived(n):
    """gamma_(n + 8) of all three terms, 8 u for the root, and what `fro_upper` adds for one entry.

    All but one far from the lowest: there the terms are 4 n times their sum, a gamma more is seen.
    """
    w = np.append(0.0, np.full(n - 1, 64.0))
    rep, cert = cluster(w, n_clusters=1, preserve_sparsity=False)
    d, sums, squares = Fraction(float(rep.codebook[0])), 64 * (n - 1), 64**2 * (n - 1)
    terms = [squares, 2 * d * sums, n * d**2]
    error = terms[0] - terms[1] + terms[2] + exact_gamma(n + 8) * sum(terms)
    law = exact_upward(exact_upward(exact_root(error), 8), 2 * (1 + 8))
    # gamma times the terms, their sum, a root, two times `upward` of 3 u, a norm of one entry of 3.
    law_within_units(cert.bound, law, 13)


def test_zero_is_one_of_the_values():
    w = np.array([0.0, -0.0, 5.0, 6.0, -7.0])
    for method in METHODS:
        rep = cluster(w, n_clusters=2, method=method).rep
        assert decode(rep)[:2].tolist() == [0.0, 0.0]
        assert not np.signbit(decode(rep)[:2]).any()
        assert decode(cluster(w, n_clusters=1, method=method).rep).tolist() == [0.0] * 5
    kept = cluster(np.array([0.0, 1.0, 5.0, 6.0]), n_clusters=2, method="exact").rep
    assert decode(kept).tolist() == [0.0, 0.0, 5.5, 5.5]
    free = partial(cluster, n_clusters=2, method="exact", preserve_sparsity=False)
    assert decode(free(np.array([0.0, 1.0, 5.0, 6.0])).rep).tolist() == [0.5, 0.5, 5.5, 5.5]


def test_sizes():
    w = np.arange(40.0, dtype=np.float32).reshape(5, 8)
    rep = cluster(w, n_clusters=5).rep
    assert num_params(rep) == 40
    assert storage_bits(rep) == 40 * 3 + 5 * 32


def test_huge_and_denormal_and_far_apart():
    top = np.finfo(np.float64).max
    for method in METHODS:
        rep, cert = cluster(np.array([-top, top, top, top]), n_clusters=1, method=method)
        assert np.isfinite(decode(rep)).all()
        assert cert.bound == math.inf  # 1.5 top is beyond float64, and so is the error
        rep, cert = cluster(np.array([top, top / 2, -top]), n_clusters=2, method=method)
        assert cert.measured <= cert.bound < 1e308
        w = np.array([1e308, 1.0, 2.0])  # the squares of the small ones vanish beside the large one
        rep, cert = cluster(w, n_clusters=2, method=method)
        assert decode(rep).tolist() == [1e308, 1.5, 1.5]
        assert math.sqrt(0.5) <= cert.bound <= math.sqrt(0.5) * (1 + 1e-13)
        w = np.array([5e-324, 1e-323, 2e-323])
        cert = cluster(w, n_clusters=1, method=method).cert
        assert cert.measured <= cert.bound <= 6e-323


CONTRACTS = {
    f"{method}, {k}, {norm}": partial(cluster, n_clusters=k, method=method, norm=norm)
    for method, k, norm in (
        ("linear", 3, "fro"),
        ("linear", 1, "max"),
        ("linear", 4, "spectral"),
        ("exact", 3, "fro"),
        ("exact", 2, "spectral"),
    )
} | {"free": partial(cluster, n_clusters=2, method="exact", preserve_sparsity=False, norm="max")}


@pytest.mark.parametrize("name", CONTRACTS)
def test_contract(name):
    check_compressor(CONTRACTS[name], seconds=contract_seconds())


def test_deep_compression_is_a_chain():
    w = np.random.default_rng(0).standard_normal((8, 9))
    steps = partial(prune_magnitude, amount=0.5), partial(cluster, n_clusters=4)
    rep, cert = chain(*steps)(w)
    assert isinstance(rep, Sparse)
    assert isinstance(rep.values, Clustered)
    # The supports are disjoint: the squares of the two errors add.
    dropped = prune_magnitude(w, amount=0.5).cert.bound
    inner = cluster(decode(prune_magnitude(w, amount=0.5).rep.values), n_clusters=4).cert.bound
    assert math.isclose(cert.bound, math.hypot(dropped, inner), rel_tol=1e-14)
    assert cert.measured <= cert.bound <= cert.measured * (1 + 1e-12)


W = np.ones((2, 3))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"n_clusters": 0}, "n_clusters"),
        ({"n_clusters": 2.0}, "n_clusters"),
        ({"n_clusters": True}, "n_clusters"),
        ({"n_clusters": 2, "method": "kmeans"}, "method"),
        ({"n_clusters": 2, "preserve_sparsity": 1}, "preserve_sparsity"),
        ({"n_clusters": 2, "norm": "l1"}, "norm"),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(CompressionError, match=name):
        cluster(W, **options)


def test_bad_weights_and_unknown_options_raise():
    for bad in (W * np.nan, W * np.inf, W.astype(int)):
        with pytest.raises(CompressionError, match="weight"):
            cluster(bad, n_clusters=2)
    with pytest.raises(TypeError, match="clusters"):
        cluster(W, clusters=2)


def test_the_weight_is_not_written_to():
    for method in METHODS:
        check_pure(
            cluster, np.array([[3.0, -0.0, 1.0], [2.0, 2.0, 1.0]]), n_clusters=2, method=method
        )


# -- wrong implementations ------------------------------------------------------------------------


def with_book(w, book, ties_up=False, change=float):
    """Entries to the nearest of these values, and the error as a bound, or a function of it."""
    book = np.asarray(book, w.dtype)
    distances = np.abs(w.ravel()[:, None] - book)
    codes = distances.argmin(axis=1)
    if ties_up:
        codes = book.size - 1 - distances[:, ::-1].argmin(axis=1)
    rep = Clustered(codes.reshape(w.shape), book)
    error = float(np.linalg.norm((w - decode(rep)).ravel()))
    return Compressed(rep, Certificate("fro", change(error), error))


def start_only(w, *, n_clusters):
    return with_book(w, np.linspace(w.min(), w.max(), n_clusters))


def ties_up(w, *, n_clusters):
    return with_book(w, decode(cluster(w, n_clusters=n_clusters).rep.codebook), ties_up=True)


def zero_comes_extra(w, *, n_clusters):
    """Clusters what is not zero into all of the values, and adds one for the zeros."""
    rep = cluster(w[w != 0], n_clusters=n_clusters).rep
    return with_book(w, np.unique([0.0, *decode(rep.codebook)]))


def unclipped_means(w, *, n_clusters):
    rep = cluster(w, n_clusters=n_clusters).rep
    means = [np.mean(w.ravel()[rep.codes.ravel() == i]) for i in range(rep.codebook.size)]
    return Compressed(Clustered(rep.codes, np.array(means)), Certificate("fro", 0.0, 0.0))


def rounded_middles(y, centers):
    """Compares with the middle as a float: what lies between it and the true one goes astray."""
    inner = np.searchsorted(y, (centers[1:] + centers[:-1]) / 2, side="right")
    return np.concatenate([[0], inner, [y.size]])


def quantiles(w, *, n_clusters):
    ranks = np.argsort(np.argsort(w.ravel())) * n_clusters // max(w.size, 1)
    book = [w.ravel()[ranks == i].mean() for i in range(n_clusters)]
    return Compressed(Clustered(ranks.reshape(w.shape), np.array(book)), Certificate("fro", 0, 0))


def unused_values(w, *, n_clusters):
    rep, cert = cluster(w, n_clusters=n_clusters)
    return Compressed(Clustered(rep.codes, np.append(decode(rep.codebook), 1e9)), cert)


def not_zero(w, *, n_clusters):
    return cluster(w, n_clusters=n_clusters, preserve_sparsity=False)


def claiming(change):
    def clustering(w, *, n_clusters):
        rep, cert = cluster(w, n_clusters=n_clusters)
        error = (w - decode(rep)).ravel()
        return Compressed(rep, cert._replace(bound=float(change(error, cert.bound, rep))))

    return clustering


def radii(error, bound, rep):
    """The root of the sum over the clusters of count times radius squared."""
    codes = rep.codes.ravel()
    parts = [error[codes == i] for i in range(rep.codebook.size)]
    return math.sqrt(sum(p.size * np.abs(p).max() ** 2 for p in parts)) * (1 + 1e-12)


def on(law, *cases):
    return lambda wrong: [law(wrong, *case) for case in cases]


RAMP = np.array([0.0, 1.0, 2.0, 10.0, 11.0, 12.5, 100.0])
TIE = np.array([0.0, 1.0, 2.0, 2.0])  # 1.0 is as near to 0 as to 2
SPREAD = np.array([0.0, 1.0, 1.5, 5.0, 9.0, 9.5])
TENTHS = [(np.append(np.full(n, 0.1 * j), 9.0), 2) for n in range(3, 12) for j in range(1, 9)]
UNEVEN = [(np.array([0.1, 0.3, 0.7, 1.1]) * j, 2) for j in range(1, 30)]
MIDDLES = [(j / 10, j / 7) for j in range(1, 30)]
LAWFUL_EXACT = (np.array([0.0, 1.0, 2.0, 5.0, 6.0, -3.0]), 3)
bounds = on(law_bound_is_the_sum_of_squares, (RAMP, 3), *UNEVEN)
nearest = on(law_entries_have_the_nearest_value, (RAMP, 3), (TIE, 2))
PLANTED = {
    "one value too many": (on(law_at_most_so_many_values, (SPREAD, 3)), zero_comes_extra),
    "values that nothing uses": (on(law_at_most_so_many_values, (RAMP, 3)), unused_values),
    "ties go up": (nearest, ties_up),
    "borders: a middle is rounded": (on(law_borders_are_exact, *MIDDLES), rounded_middles),
    "equal shares": (nearest, quantiles),
    "values outside their clusters": (
        on(law_values_lie_inside_their_clusters, *TENTHS),
        unclipped_means,
    ),
    "the start is not improved": (on(law_values_are_the_means, (RAMP, 3)), start_only),
    "zeros are not kept": (on(law_zeros_stay, (RAMP, 3)), not_zero),
    "worse than the start": (on(law_no_worse_than_the_start, (RAMP, 3)), quantiles),
    "exact: Lloyd's local optimum": (
        on(law_exact_is_the_least_of_all, LAWFUL_EXACT, (RAMP, 3)),
        cluster,
    ),
    "exact: zero not kept": (on(law_exact_is_the_least_of_all, LAWFUL_EXACT), not_zero),
    "no outward rounding": (bounds, claiming(lambda e, b, rep: math.sqrt(np.sum(e * e)))),
    "the doubled bound": (bounds, claiming(lambda e, b, rep: 2 * b)),
    "0.1 % too much": (bounds, claiming(lambda e, b, rep: 1.001 * b)),
    "the L1 error": (bounds, claiming(lambda e, b, rep: np.abs(e).sum() * (1 + 1e-12))),
    "radii for the sum of squares": (bounds, claiming(radii)),
    "max sold as Frobenius": (bounds, claiming(lambda e, b, rep: np.abs(e).max())),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)


def test_the_cases_of_the_planted_faults_are_lawful():
    """What catches a wrong implementation lets the right one pass."""
    right = {"exact": partial(cluster, method="exact"), "borders": nearest_borders}
    for name, (law, _) in PLANTED.items():
        law(right.get(name.split(":")[0], cluster))


def least_with_zero(values, k):
    """The least sum of squares of any codebook of k values that holds 0, over all groupings."""
    best = None
    for groups in itertools.product(range(k), repeat=len(values)):  # group 0 is that of 0.0
        total = Fraction(0)
        for g in range(k):
            members = [Fraction(v) for v, group in zip(values, groups) if group == g]
            if members:
                center = Fraction(0) if g == 0 else sum(members) / len(members)
                total += sum((m - center) ** 2 for m in members)
        best = total if best is None else min(best, total)
    return best


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=5), st.integers(1, 3))
def test_exact_with_a_zero_is_the_least_of_all_groupings(entries, k):
    w = np.array([0.0, *entries])
    rep, _ = cluster(w, n_clusters=k, method="exact")
    error = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(w.tolist(), decode(rep).tolist()))
    # Means of up to five small integers, rounded once: off by 1e-15 each, squared sums by 1e-13.
    assert abs(error - least_with_zero(w.tolist(), k)) <= Fraction(1, 10**12)
    assert decode(rep)[0] == 0.0


def test_the_exact_start_weighs_values_by_how_often_they_occur():
    values, counts = np.array([-4.0, -2.0, 0.0, 9.0]), np.array([1, 3, 2, 1])
    assert exact_start(values, counts, 3, True).tolist() == [-2.5, 0.0, 9.0]
