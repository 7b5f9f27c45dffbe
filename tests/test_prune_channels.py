"""Channel pruning: the least norms go, the first of equal ones, and one channel stays."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pruning_models import TABLE, exact, on, tied

from minicompress.compressors.pruning import prune_channels
from minicompress.representation import Compressed, decode


def law_least_channels_go(prune, w, count, axis, order):
    """No channel that goes has a norm above one that stays, but for the rounding of both.

    A sum of n magnitudes or squares errs by gamma_n, a square by u, a root and its scaling by a
    few u: (n + 16) u of a norm, and twice that of its square. Channels of the same entries in the
    same order have the same norm: the first of them goes.
    """
    slices = np.moveaxis(w, axis, 0)
    sizes = {
        1: lambda s: sum(map(abs, s)),
        2: lambda s: sum(x * x for x in s),
        math.inf: lambda s: max(map(abs, s)),
    }[order]
    norms = [sizes(exact(part)) for part in slices]
    decoded = np.moveaxis(decode(prune(w, count=count, axis=axis, order=order).rep), axis, 0)
    stays = [part.tobytes() == kept.tobytes() for part, kept in zip(slices, decoded, strict=True)]
    zeros = sum(not part.any() for part in slices)
    dropped = [c for c in range(len(slices)) if not decoded[c].any()]
    kept = [c for c in range(len(slices)) if decoded[c].any()]
    assert len(dropped) == max(count, zeros)
    assert all(stays[c] for c in kept)
    slack = 1 + 2 * (slices[0].size + 16) * Fraction(2) ** -53
    for c in dropped:
        for k in kept:
            assert norms[c] <= norms[k] * slack
            assert c < k or slices[c].tobytes() != slices[k].tobytes()


@given(tied(max_size=48), st.sampled_from([1, 2, math.inf]), st.data())
def test_prune_channels(w, order, data):
    axis = data.draw(st.integers(-w.ndim, w.ndim - 1))
    count = data.draw(st.integers(0, w.shape[axis] - 1))
    law_least_channels_go(prune_channels, w, count, axis, order)


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
    w = np.full((2, 3), 0.8e308) * [1, 0.99, 1]
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


def the_last_of_equal_ones(w, *, count, axis, order):
    flipped = np.flip(w, axis).copy()
    rep, cert = prune_channels(flipped, count=count, axis=axis, order=order)
    return Compressed(np.flip(decode(rep), axis).copy(), cert)


PLANTED = {
    "channels of the wrong axis": (
        on(law_least_channels_go, (TABLE, 1, 1, 2)),
        sizes_of_other_axis,
    ),
    "the order is ignored": (
        on(law_least_channels_go, (np.array([[2.0, 3.0], [2.0, 0.0]]), 1, 1, 1)),
        always_two,
    ),
    "of equal channels the last goes": (
        on(law_least_channels_go, (np.ones((2, 3)), 1, 1, 2)),
        the_last_of_equal_ones,
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
