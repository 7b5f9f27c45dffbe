"""Pruning: exact counts under ties, survivors bit for bit, and the error of what was dropped.

Oracles sort with Python and add with `fractions.Fraction`: what is exact is compared exactly.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from budgets import contract_seconds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pruning_models import TABLE, counted, dropped_of, exact, on, squares, tied

from minicompress.compressors.pruning import (
    prune_channels,
    prune_global,
    prune_magnitude,
    prune_n_m,
)
from minicompress.errors import CompressionError
from minicompress.norms import UNIT
from minicompress.representation import Certificate, Compressed, Sparse, decode
from minicompress.testing.checks import check_compressor, check_pure
from minicompress.testing.strategies import weights

# -- prune_magnitude: the laws, each a function of the implementation -----------------------------


def law_the_least_go_ties_by_index(prune, w, count):
    """Which entries are dropped is determined by the entries alone: no freedom is left."""
    magnitudes = [abs(x) for x in exact(w)]
    order = sorted(range(w.size), key=lambda i: (magnitudes[i], i))
    assert dropped_of(w, prune(w, count=count).rep) == sorted(order[:count])


def law_counts_are_exact(prune, w, count):
    rep = prune(w, count=count).rep
    assert rep.indices.size == w.size - count
    assert np.count_nonzero(decode(rep)) == min(np.count_nonzero(w), w.size - count)


def law_survivors_are_bitwise_equal(prune, w, count):
    rep = prune(w, count=count).rep
    decoded = decode(rep).ravel()
    kept = rep.indices
    assert decoded[kept].tobytes() == w.ravel()[kept].tobytes()
    gone = decoded[dropped_of(w, rep)]
    assert gone.tobytes() == np.zeros_like(gone).tobytes()  # +0.0, never -0.0


def law_no_mask_is_better(prune, w, count):
    error = squares(w, dropped_of(w, prune(w, count=count).rep))
    assert all(error <= squares(w, mask) for mask in itertools.combinations(range(w.size), count))


def law_input_is_unchanged(prune, w, count):
    check_pure(prune, w, count=count)


def law_bound_is_sound_and_tight(prune, w, count):
    """The root of the dropped squares, and above it by no more than what makes it safe.

    n squares, their sum and the root err by gamma_(n + 2) or less; the bound adds 2 (n + 8) u and
    one step of 2 u: for the square, 6 n + 40 units at most.
    """
    rep, cert = prune(w, count=count)
    error, bound = squares(w, dropped_of(w, rep)), Fraction(cert.bound) ** 2
    assert bound >= error
    assert bound <= error * (1 + Fraction(6 * w.size + 40) * Fraction(UNIT))


MAGNITUDE_LAWS = [
    law_the_least_go_ties_by_index,
    law_counts_are_exact,
    law_survivors_are_bitwise_equal,
    law_input_is_unchanged,
    law_bound_is_sound_and_tight,
]


@pytest.mark.parametrize("law", MAGNITUDE_LAWS)
@given(counted(tied() | weights(dtypes=[np.dtype("f4"), np.dtype("f2")])))
def test_prune_magnitude(law, drawn):
    law(prune_magnitude, *drawn)


@given(counted(weights(dtypes=[np.dtype("f8")], kinds=["integers", "ordinary", "ties"])))
def test_the_bound_is_the_error_in_double_precision(drawn):
    law_bound_is_sound_and_tight(prune_magnitude, *drawn)


@given(counted(tied(max_size=8)))
def test_no_mask_of_that_count_is_better(drawn):
    law_no_mask_is_better(prune_magnitude, *drawn)


@given(st.integers(1, 40), st.data())
def test_the_bound_is_reached_where_all_magnitudes_are_equal(n, data):
    """error^2 = (k / n) ||W||^2 there, exactly; elsewhere it is less."""
    k = data.draw(st.integers(0, n))
    signs = data.draw(arrays(np.float64, n, elements=st.sampled_from([-3.0, 3.0])))
    rep, cert = prune_magnitude(signs, count=k)
    error = squares(signs, dropped_of(signs, rep))
    assert error == Fraction(k, n) * squares(signs, range(n)) == 9 * k
    assert 9 * k <= Fraction(cert.bound) ** 2 <= 9 * k * (1 + Fraction(6 * n + 40) * Fraction(UNIT))


@given(counted(weights(min_ndim=2, max_ndim=2)))
def test_other_norms(drawn):
    w, count = drawn
    rep, cert = prune_magnitude(w, count=count, norm="max")
    gone = [abs(exact(w)[i]) for i in dropped_of(w, rep)]
    assert Fraction(cert.bound) == max(gone, default=0) == Fraction(cert.measured)
    kept = [abs(exact(w)[i]) for i in rep.indices.tolist()]
    assert not gone or not kept or max(gone) <= min(kept)


def test_the_spectral_bound_is_the_norm_of_what_is_dropped():
    w = np.arange(1.0, 13.0).reshape(3, 4)
    cert = prune_magnitude(w, count=8, norm="spectral").cert
    largest = np.linalg.svd(np.where(w <= 8, w, 0.0), compute_uv=False)[0]
    assert largest <= cert.bound <= largest * (1 + 1e-13)
    one = prune_magnitude(np.ones((4, 4)), count=16, norm="spectral").cert
    assert 4 <= one.bound <= 4 * (1 + 1e-14)


@pytest.mark.parametrize(
    ("amount", "n", "dropped"),
    [(0.0, 5, 0), (1.0, 5, 5), (0.5, 5, 2), (0.5, 7, 4), (0.3, 10, 3), (0.99, 4, 4), (1, 0, 0)],
)
def test_amount_is_rounded_halves_to_even(amount, n, dropped):
    assert prune_magnitude(np.ones(n), amount=amount).rep.indices.size == n - dropped


def test_scores_say_what_goes_and_the_bound_follows():
    w, scores = np.array([5.0, 1.0, 2.0]), np.array([-1.0, 7.0, 0.0])
    rep, cert = prune_magnitude(w, count=2, importance_scores=scores)
    assert decode(rep).tolist() == [0.0, 1.0, 0.0]
    assert 29 <= Fraction(cert.bound) ** 2 <= 29 * (1 + Fraction(2**-45))


CONTRACTS = {
    "half": partial(prune_magnitude, amount=0.5),
    "half, max": partial(prune_magnitude, amount=0.5, norm="max"),
    "half, spectral": partial(prune_magnitude, amount=0.5, norm="spectral"),
    "2:4 on the last axis": partial(prune_n_m, n=2, m=4, axis=-1),
    "1:3 on the first axis": partial(prune_n_m, n=1, m=3, axis=0, norm="max"),
    "channels": partial(prune_channels, amount=0.5, axis=-1),
    "channels by their sum": partial(prune_channels, amount=1.0, axis=0, order=1),
    "two arrays": lambda w: prune_global([w, w[..., :0], w], amount=0.4)[2],
    "capped": lambda w: prune_global([w, np.zeros(3)], amount=0.4, max_amount=0.75)[0],
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_contract(name):
    check_compressor(CONTRACTS[name], weights(min_ndim=1), seconds=contract_seconds())


# -- prune_n_m ------------------------------------------------------------------------------------


def law_n_of_every_m_by_loops(prune, w, n, m, axis):
    """Each line along the axis is cut into groups; of each the n largest stay, later ones first."""
    kept = np.zeros(w.shape, bool)
    lines = np.moveaxis(np.arange(w.size).reshape(w.shape), axis, -1).reshape(-1, w.shape[axis])
    magnitudes = np.abs(w).ravel()
    for line in lines.tolist():
        for begin in range(0, len(line), m):
            group = line[begin : begin + m]
            best = sorted(group, key=lambda i: (magnitudes[i], i), reverse=True)[:n]
            kept.ravel()[best] = True
    assert np.array_equal(prune(w, n=n, m=m, axis=axis).rep.indices, np.flatnonzero(kept))


@st.composite
def grouped(draw):
    w = draw(tied(max_size=48))
    m = draw(st.integers(1, 5))
    return w, draw(st.integers(0, m)), m, draw(st.integers(-w.ndim, w.ndim - 1))


@given(grouped())
def test_prune_n_m(drawn):
    law_n_of_every_m_by_loops(prune_n_m, *drawn)


@given(grouped())
def test_n_m_is_never_better_than_the_same_count_anywhere(drawn):
    w, n, m, axis = drawn
    rep = prune_n_m(w, n=n, m=m, axis=axis).rep
    gone = dropped_of(w, rep)
    anywhere = dropped_of(w, prune_magnitude(w, count=len(gone)).rep)
    assert squares(w, gone) >= squares(w, anywhere)


def test_n_m_drops_its_share_of_constant_arrays():
    w = np.full((4, 8), -2.0)
    rep, cert = prune_n_m(w, n=1, m=4, axis=1)
    assert squares(w, dropped_of(w, rep)) == Fraction(3, 4) * squares(w, range(32)) == 96
    assert 96 <= Fraction(cert.bound) ** 2 <= 96 * (1 + Fraction(2**-43))


def test_a_ragged_last_group_is_not_skipped():
    rep = prune_n_m(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), n=1, m=4, axis=0).rep
    assert decode(rep).tolist() == [0, 0, 0, 4, 0, 0, 7]
    rep = prune_n_m(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), n=2, m=4, axis=0).rep
    assert decode(rep).tolist() == [0, 0, 3, 4, 5]


def test_n_m_by_scores():
    w, scores = np.array([9.0, 1.0, 9.0, 1.0]), np.array([-5.0, -4.0, 2.0, 3.0])
    rep = prune_n_m(w, n=1, m=2, axis=0, importance_scores=scores).rep
    assert decode(rep).tolist() == [0, 1, 0, 1]


def test_a_group_longer_than_the_axis_is_one_of_its_length():
    w = np.arange(12.0).reshape(3, 4)
    for m in (4, 10**12, 10**25):
        assert decode(prune_n_m(w, n=1, m=m, axis=1).rep).tolist() == [
            [0.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 7.0], [0.0, 0.0, 0.0, 11.0]
        ]  # fmt: skip
    assert decode(prune_n_m(w, n=10**12, m=10**13, axis=1).rep).tolist() == w.tolist()


# -- prune_global ---------------------------------------------------------------------------------


def law_least_of_all_arrays_go(prune, ws, count, max_amount):
    """One list of all entries by magnitude, array, index; an array at its cap is passed over."""
    room = [math.floor(max_amount * w.size) for w in ws]
    entries = [(abs(x), a, i) for a, w in enumerate(ws) for i, x in enumerate(exact(w))]
    gone = [[] for _ in ws]
    for _, a, i in sorted(entries):
        if sum(map(len, gone)) < count and len(gone[a]) < room[a]:
            gone[a].append(i)
    pruned = prune(ws, count=count, max_amount=max_amount)
    assert [dropped_of(w, c.rep) for w, c in zip(ws, pruned, strict=True)] == list(
        map(sorted, gone)
    )
    assert sum(map(len, gone)) == count
    for w, c, indices in zip(ws, pruned, gone, strict=True):
        law_bound_is_sound_and_tight(lambda w, *, count, c=c: c, w, len(indices))


@given(st.lists(tied(), min_size=1, max_size=3), st.sampled_from([1.0, 0.75, 0.5, 0.0]), st.data())
def test_prune_global(ws, max_amount, data):
    most = sum(math.floor(max_amount * w.size) for w in ws)
    law_least_of_all_arrays_go(prune_global, ws, data.draw(st.integers(0, most)), max_amount)


def test_global_takes_no_arrays_one_cap_each_and_mixed_dtypes():
    assert prune_global([], count=0) == ()
    ws = [np.ones(4, np.float16), np.full(4, 2.0)]
    caps = [prune_global(ws, count=5, max_amount=m) for m in ([0.25, 1.0], [1.0, 0.25])]
    assert [[c.rep.indices.size for c in pair] for pair in caps] == [[3, 0], [0, 3]]
    scores = [np.full(4, 9.0), np.zeros(4)]
    pair = prune_global(ws, amount=0.5, importance_scores=scores, norm="max")
    assert [c.rep.indices.size for c in pair] == [4, 0]
    assert [c.cert.bound for c in pair] == [0.0, 2.0]


def test_arguments_are_not_written_to():
    w = np.array([[3.0, -0.0, 1.0], [2.0, 2.0, 1.0]])
    check_pure(prune_n_m, w, n=1, m=2, axis=1, importance_scores=w[::-1])
    check_pure(prune_channels, w, count=1, axis=1)
    check_pure(prune_global, [w, w[0]], count=3, importance_scores=[w, w[1]])


W = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: prune_magnitude(W), "exactly one"),
        (lambda: prune_magnitude(W, amount=0.5, count=1), "exactly one"),
        (lambda: prune_magnitude(W, amount=1.5), "amount"),
        (lambda: prune_magnitude(W, amount=True), "amount"),
        (lambda: prune_magnitude(W, count=7), "count"),
        (lambda: prune_magnitude(W, count=1.0), "count"),
        (lambda: prune_magnitude(W, count=1, norm="l2"), "norm"),
        (lambda: prune_magnitude(W, count=1, importance_scores=np.ones(6)), "importance_scores"),
        (lambda: prune_magnitude(W, count=1, importance_scores=W * np.nan), "importance_scores"),
        (lambda: prune_magnitude([[1, 2]], count=1), "weight"),
        (lambda: prune_n_m(W, n=3, m=2, axis=0), "n must"),
        (lambda: prune_n_m(W, n=-1, m=2, axis=0), "n must"),
        (lambda: prune_n_m(W, n=0, m=0, axis=0), "m must"),
        (lambda: prune_n_m(W, n=1, m=2, axis=2), "axis"),
        (lambda: prune_n_m(np.array(1.0), n=1, m=2, axis=0), "axis"),
        (lambda: prune_n_m(W * np.inf, n=1, m=2, axis=0), "weight"),
        (lambda: prune_channels(W, count=3, axis=1), "count"),
        (lambda: prune_channels(W, count=4, axis=1), "must be an int from 0 to 2, not 4"),
        (lambda: prune_channels(W, count=1, axis=1, order=np.array([1, 2])), "order must be"),
        (lambda: prune_channels(W, count=1, axis=1, order=np.True_), "order must be"),
        (lambda: prune_magnitude(W, amount=10**400), "amount must be"),
        (lambda: prune_global([W], amount=0.5, max_amount="0.5"), "max_amount"),
        (lambda: prune_channels(W, axis=1), "exactly one"),
        (lambda: prune_channels(W, count=1, axis=1, order=3), "order"),
        (lambda: prune_channels(W, count=1, axis=1, order=True), "order"),
        (lambda: prune_channels(W, count=1, axis=-3), "axis"),
        (lambda: prune_global(W, count=1), "weights"),
        (lambda: prune_global([W, W * np.nan], count=1), r"weights\[1\]"),
        (lambda: prune_global([W], count=7), "count"),
        (lambda: prune_global([W], amount=1.0, max_amount=0.9), "max_amount"),
        (lambda: prune_global([W], count=1, max_amount=[0.5, 0.5]), "max_amount"),
        (lambda: prune_global([W], count=1, max_amount=1.5), "max_amount"),
        (lambda: prune_global([W], count=1, importance_scores=[W, W]), "importance_scores"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, name):
    with pytest.raises(CompressionError, match=name):
        call()


def test_unknown_options_raise():
    with pytest.raises(TypeError, match="percent"):
        prune_magnitude(W, percent=0.5)


# -- wrong implementations ------------------------------------------------------------------------


def keeping(w, keep):
    """What a wrong rule returns: a mask and its error."""
    kept = np.flatnonzero(keep)
    rep = Sparse(w.shape, kept, w.ravel()[kept])
    lost = np.where(keep, 0, w.ravel()).astype(np.float64)
    return Compressed(rep, Certificate("fro", float(np.linalg.norm(lost)), 0.0))


def threshold(w, count):
    return np.sort(np.abs(w).ravel())[count - 1] if count else -1.0


def too_many(w, *, count):
    return keeping(w, np.abs(w).ravel() > threshold(w, count))


def too_few(w, *, count):
    return keeping(w, np.abs(w).ravel() >= threshold(w, count))


def percentile(w, *, count):
    limit = np.percentile(np.abs(w), 100 * count / w.size)
    return keeping(w, np.abs(w).ravel() >= limit)


def later_first(w, *, count):
    keep = np.ones(w.size, bool)
    keep[w.size - 1 - np.argsort(np.abs(w).ravel()[::-1], kind="stable")[:count]] = False
    return keeping(w, keep)


def by_value(w, *, count):
    keep = np.ones(w.size, bool)
    keep[np.argsort(w.ravel(), kind="stable")[:count]] = False
    return keeping(w, keep)


def only_what_is_not_zero(w, *, count):
    flat = np.abs(w).ravel()
    keep = np.ones(w.size, bool)
    keep[[i for i in np.argsort(flat, kind="stable") if flat[i]][:count]] = False
    return keeping(w, keep)


def in_place(w, *, count):
    rep, cert = prune_magnitude(w, count=count)
    w[...] = decode(rep)
    return Compressed(rep, cert)


def signed_zeros(w, *, count):
    rep, cert = prune_magnitude(w, count=count)
    return Compressed(Sparse(w.shape, rep.indices, rep.values + 0.0), cert)


def bounded(change):
    """The right mask with another bound, a function of the dropped entries and of the right one."""

    def prune(w, *, count):
        rep, cert = prune_magnitude(w, count=count)
        lost = w.ravel()[dropped_of(w, rep)].astype(np.float64)
        return Compressed(rep, cert._replace(bound=float(change(lost, cert.bound))))

    return prune


def wrong_axis(w, *, n, m, axis):
    return prune_n_m(w, n=n, m=m, axis=axis - 1)


def drops_n(w, *, n, m, axis):
    return prune_n_m(w, n=m - n, m=m, axis=axis)


def ragged_skipped(w, *, n, m, axis):
    whole = w.shape[axis] // m * m
    rep = prune_n_m(np.moveaxis(w, axis, -1)[..., :whole], n=n, m=m, axis=-1).rep
    full = np.moveaxis(w.copy(), axis, -1)
    full[..., :whole] = decode(rep)
    full = np.ascontiguousarray(np.moveaxis(full, -1, axis))
    return keeping(w, full.ravel() != 0)


def each_its_share(ws, *, count, max_amount):
    total = sum(w.size for w in ws)
    return tuple(prune_magnitude(w, count=count * w.size // total) for w in ws)


def caps_ignored(ws, *, count, max_amount):
    return prune_global(ws, count=count)


def later_array_first(ws, *, count, max_amount):
    return prune_global(ws[::-1], count=count, max_amount=max_amount)[::-1]


CONSTANT, MIXED = np.ones(6), np.array([2.0, -1.0, 0.0, 1.0, -2.0, 1.0])
TENTHS = [np.full(n, 0.1) for n in range(2, 30)]


every = on(law_the_least_go_ties_by_index, (CONSTANT, 3), (MIXED, 2), (MIXED, 4))
counts = on(law_counts_are_exact, (CONSTANT, 3), (MIXED, 3), (MIXED, 1))
survivors = on(law_survivors_are_bitwise_equal, (np.array([0.0, -0.0]), 1), (MIXED, 3))
bounds = on(law_bound_is_sound_and_tight, (MIXED, 4), *[(w, w.size) for w in TENTHS])
PLANTED = {
    "ties drop too many": (counts, too_many),
    "ties drop too few": (counts, too_few),
    "a percentile prunes nothing on constants": (counts, percentile),
    "zeros are not counted among the dropped": (counts, only_what_is_not_zero),
    "the later of equal ones goes": (every, later_first),
    "signed values are sorted": (every, by_value),
    "a worse mask": (on(law_no_mask_is_better, (MIXED, 3)), by_value),
    "in-place writes": (on(law_input_is_unchanged, (MIXED, 3)), in_place),
    "-0.0 among the survivors is lost": (survivors, signed_zeros),
    "no outward rounding": (bounds, bounded(lambda lost, b: math.sqrt(np.sum(lost**2)))),
    "the doubled bound": (bounds, bounded(lambda lost, b: 2 * b)),
    "the L1 bound": (bounds, bounded(lambda lost, b: np.abs(lost).sum() * (1 + 1e-12))),
    "0.01 % too much": (bounds, bounded(lambda lost, b: 1.0001 * b)),
    "max sold as Frobenius": (bounds, bounded(lambda lost, b: np.abs(lost).max(initial=0))),
    "N:M on the wrong axis": (on(law_n_of_every_m_by_loops, (TABLE, 1, 2, 1)), wrong_axis),
    "N:M drops n": (on(law_n_of_every_m_by_loops, (TABLE, 1, 3, 1)), drops_n),
    "N:M skips the ragged group": (on(law_n_of_every_m_by_loops, (TABLE, 0, 2, 1)), ragged_skipped),
    "global: each array its share": (
        on(law_least_of_all_arrays_go, ([CONSTANT, 2 * CONSTANT], 6, 1.0)),
        each_its_share,
    ),
    "global: caps ignored": (
        on(law_least_of_all_arrays_go, ([CONSTANT, 2 * CONSTANT], 6, 0.5)),
        caps_ignored,
    ),
    "global: the later array first": (
        on(law_least_of_all_arrays_go, ([CONSTANT, CONSTANT], 3, 1.0)),
        later_array_first,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)


def test_the_cases_of_the_planted_faults_are_lawful():
    """What catches a wrong implementation lets the right one pass."""
    right = {"global": prune_global, "N:M": prune_n_m}
    for name, (law, _) in PLANTED.items():
        law(next((f for start, f in right.items() if name.startswith(start)), prune_magnitude))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_scores_as_arrays(count):
    arrays = (np.ones(3), np.ones(2))
    scores = [np.ones(3)] * count
    with pytest.raises(
        CompressionError, match=f"must have 2 entries, one for each array, not {count}"
    ):
        prune_global(arrays, amount=0.5, importance_scores=scores)
