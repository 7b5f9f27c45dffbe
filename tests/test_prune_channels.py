"""Channel pruning: the least norms go, compared exactly, and one channel stays."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pruning_models import TABLE, exact, on, tied

from minicompress.compressors.pruning import prune_channels
from minicompress.representation import Certificate, Compressed, decode
from minicompress.testing.strategies import weights


def law_least_channels_go(prune, w, count, axis, order):
    slices = [exact(part) for part in np.moveaxis(w, axis, 0)]
    sizes = {
        1: lambda s: sum(map(abs, s)),
        2: lambda s: sum(x * x for x in s),
        math.inf: lambda s: max(map(abs, s)),
    }[order]
    gone = sorted(range(len(slices)), key=lambda c: (sizes(slices[c]), c))[:count]
    wanted = np.moveaxis(w.copy(), axis, 0)
    wanted[gone] = 0.0
    decoded = decode(prune(w, count=count, axis=axis, order=order).rep)
    assert decoded.tobytes() == np.ascontiguousarray(np.moveaxis(wanted, 0, axis)).tobytes()


@given(tied(max_size=48), st.sampled_from([1, 2, math.inf]), st.data())
def test_prune_channels(w, order, data):
    axis = data.draw(st.integers(-w.ndim, w.ndim - 1))
    count = data.draw(st.integers(0, w.shape[axis] - 1))
    law_least_channels_go(prune_channels, w, count, axis, order)


@given(
    weights(min_ndim=1, max_ndim=1, empty=False, max_size=12),
    st.sampled_from([1, 2, math.inf]),
    st.data(),
)
def test_channels_of_the_same_entries_are_equal(channel, order, data):
    """In whatever order they stand, and so is what differs by less than a rounding told apart."""
    columns = [data.draw(st.permutations(channel.tolist())) for _ in range(3)]
    with np.errstate(over="ignore"):
        columns[data.draw(st.integers(0, 2))][0] *= data.draw(st.sampled_from([1.0, 0.999999999]))
    w = np.array(columns, channel.dtype).T
    law_least_channels_go(prune_channels, w, data.draw(st.integers(0, 2)), 1, order)


@pytest.mark.parametrize(
    ("columns", "orders"),
    [
        ([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], (1, 2)),
        ([[1.0, 1.0], [2.0**-53, 0.0]], (1, 2)),
        ([[1e-323, 5e-324, 1.7e308]], (1, 2, math.inf)),
        ([[5e-324, 5e-324], [1e-323, 5e-324]], (1, 2)),
    ],
)
def test_channels_nearer_than_a_rounding_are_told_apart(columns, orders):
    w = np.array(columns)
    for order in orders:
        for turned in (w, w[:, ::-1].copy()):
            law_least_channels_go(prune_channels, turned, 1, 1, order)


@pytest.mark.parametrize(
    ("amount", "n", "kept"), [(1.0, 4, 1), (0.9, 1, 1), (0.5, 5, 3), (0, 3, 3)]
)
def test_one_channel_stays(amount, n, kept):
    rep, cert = prune_channels(np.ones((2, n)), amount=amount, axis=1)
    assert rep.indices.size == 2 * kept
    dropped = 2 * (n - kept)  # the sum of the dropped groups' squares
    assert dropped <= Fraction(cert.bound) ** 2 <= dropped * (1 + Fraction(2**-44))


def test_channels_are_compared_even_where_squares_would_vanish():
    w = np.array([[1.0, 3e-170, 2e-170, 1e300]])
    assert decode(prune_channels(w, count=1, axis=1).rep)[0].tolist() == [1.0, 3e-170, 0.0, 1e300]
    w = np.full((4, 3), 1.7e308) * [1, 0.99, 1]
    for order in (1, 2, np.inf):
        assert not decode(prune_channels(w, count=1, axis=1, order=order).rep)[:, 1].any()


def test_channels_are_compared_by_their_squares_unless_told():
    w = np.array([[3.0, 2.0], [0.0, 2.0]])  # sums 3 and 4, squares 9 and 8
    assert decode(prune_channels(w, count=1, axis=1).rep).tolist() == [[3.0, 0.0], [0.0, 0.0]]
    assert decode(prune_channels(w, count=1, axis=1, order=1).rep)[:, 0].tolist() == [0.0, 0.0]


# -- wrong implementations ------------------------------------------------------------------------


def sizes_of_other_axis(w, *, count, axis, order):
    return prune_channels(w, count=count, axis=axis - 1, order=order)


def always_two(w, *, count, axis, order):
    return prune_channels(w, count=count, axis=axis)


def by_rounded_norms(w, *, count, axis, order):
    sizes = np.linalg.norm(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1), order, axis=1)
    gone = np.isin(np.arange(w.shape[axis]), np.argsort(sizes, kind="stable")[:count])
    left = np.where(np.expand_dims(gone, [i for i in range(w.ndim) if i != axis]), 0.0, w)
    return Compressed(left, Certificate("fro", 0.0, 0.0))


PLANTED = {
    "channels of the wrong axis": (
        on(law_least_channels_go, (TABLE, 1, 1, 2)),
        sizes_of_other_axis,
    ),
    "the order is ignored": (
        on(law_least_channels_go, (np.array([[2.0, 3.0], [2.0, 0.0]]), 1, 1, 1)),
        always_two,
    ),
    "channels of norms compared as they are rounded": (
        on(law_least_channels_go, (np.array([[1.0, 1.0], [2.0**-53, 0.0]]), 1, 1, 2)),
        by_rounded_norms,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)


def test_the_cases_of_the_planted_faults_are_lawful():
    """What catches a wrong implementation lets the right one pass."""
    for law, _ in PLANTED.values():
        law(prune_channels)
