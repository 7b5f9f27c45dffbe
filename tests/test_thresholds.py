"""Early exit: what the exits cost, exactly, and which thresholds are chosen."""

import math
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import product

import numpy as np
import pytest
from exit_models import CNN, EXITS, FIRST, HEADS, LAST, PLAIN, SECOND, SEEN, Y, whole
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.analysis.accounting import summary
from minicompress.early_exit import thresholds as exit_choice
from minicompress.early_exit.exits import (
    CRITERIA,
    EarlyExit,
    attach_heads,
    confidence,
    exit_logits,
    predict,
)
from minicompress.early_exit.thresholds import (
    choose_thresholds,
    exit_curve,
    exit_macs,
    expected_macs,
)
from minicompress.errors import CompressionError
from minicompress.nn.architectures import lenet5
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense
from minicompress.nn.pointwise import ReLU

# Counting -----------------------------------------------------------------------------------------


def law_macs(count, left_at):
    """By hand: 2 x 2, 2 x 2 and 2 x 3 in the network, 2 x 3 in each head."""
    exact = {(0.9, 0.8): (10, 20, 26), (0.9, math.inf): (10, 14, 20), (math.inf, 0.8): (4, 14, 20)}
    for thresholds, costs in exact.items():
        mean = count(replace(EXITS, thresholds=thresholds), (2,), left_at)
        assert mean == Fraction(sum(costs[i] for i in left_at), len(left_at))


@given(arrays(np.int64, st.integers(1, 9), elements=st.integers(0, 2)))
def test_expected_macs_are_exact(left_at):
    law_macs(expected_macs, left_at)


def test_macs_are_those_of_account():
    exits = attach_heads(lenet5(np.random.default_rng(0)), (2, 5), (28, 28, 1), pool=2)
    whole_network = summary(exits.network, (28, 28, 1)).macs
    assert exit_macs(exits, (28, 28, 1))[-1] == whole_network == 2_293_000
    live = replace(exits, thresholds=(0.5, 0.5))
    assert exit_macs(live, (28, 28, 1)) == (295_200, 1_897_200, whole_network + 9_200)


# Choosing -----------------------------------------------------------------------------------------

SEGMENT_MACS, HEAD_MACS = {1: (4, 14), 2: (4, 8, 14)}, 6  # by hand, by the number of heads


def sweeps(exits, x, y):
    """What every choice of thresholds among the confidences seen gives: hits and MACs, counted."""
    logits, segments = exit_logits(exits, x), SEGMENT_MACS[len(exits.heads)]
    right = logits.argmax(2) == y[:, None]
    sure = [confidence(logits[:, i], exits.criterion) for i in range(len(exits.heads))]
    for thresholds in product(*([math.inf, *sorted(set(s))] for s in sure)):
        hits = macs = 0
        for n in range(len(x)):
            fires = [s[n] >= t for s, t in zip(sure, thresholds, strict=True)]
            left = [*fires, True].index(True)
            hits += int(right[n, left])
            macs += segments[left] + HEAD_MACS * sum(t < math.inf for t in thresholds[: left + 1])
        yield hits, Fraction(macs, len(x))


def measured(exits, x, y):
    """The same of the exits as they are, by running them."""
    logits, left_at = predict(exits, x)
    hits = int((logits.argmax(1) == y).sum())
    return hits, expected_macs(exits, x.shape[1:], left_at)


def law_keeps_the_accuracy(choose, exits, x, y, least, best):
    """The target is met, and with one head so cheaply as it can be.

    It is refused only where no threshold meets it, or with more heads, not even the network does.
    """
    network, *others = sweeps(exits, x, y)
    possible = [(h, macs) for h, macs in (network, *others) if h / len(x) >= least]
    try:
        chosen = choose(exits, x, y, min_accuracy=least)
    except CompressionError:
        assert not possible if best else network not in possible
        return
    hits, macs = measured(chosen, x, y)
    assert hits / len(x) >= least
    if best:
        fewest = min(macs for _, macs in possible)
        assert (macs, hits) == (fewest, max(h for h, m in possible if m == fewest))


def law_keeps_the_budget(choose, exits, x, y, most, best):
    """The same with the budget for the target."""
    network, *others = sweeps(exits, x, y)
    possible = [(hits, macs) for hits, macs in (network, *others) if macs <= most]
    try:
        chosen = choose(exits, x, y, max_macs=most)
    except CompressionError:
        assert not possible if best else network not in possible
        return
    hits, macs = measured(chosen, x, y)
    assert macs <= most
    if best:
        assert hits == max(h for h, _ in possible)
        assert macs == min(m for h, m in possible if h == hits)


ONE_HEAD = EarlyExit((FIRST, Sequential((*SECOND.layers, *LAST.layers))), HEADS[:1], (math.inf,))
LABELS = st.lists(st.integers(0, 2), min_size=6, max_size=6).map(np.array)


@given(whole((5, 2)), LABELS, st.integers(0, 5), st.sampled_from(CRITERIA))
def test_one_threshold_is_the_best_there_is(x, y, goal, criterion):
    exits = replace(ONE_HEAD, criterion=criterion)
    law_keeps_the_accuracy(choose_thresholds, exits, x, y[:5], goal / 5, best=True)
    law_keeps_the_budget(choose_thresholds, exits, x, y[:5], Fraction(10 + goal), best=True)


def test_of_equally_cheap_thresholds_the_better_is_taken():
    """At 5 inputs it costs the same whether three leave or the head is not there."""
    x, y = np.array([[3.0, 0], [1, -3], [3, -3], [2, 0], [2, 0]]), np.array([2, 0, 0, 1, 1])
    law_keeps_the_accuracy(choose_thresholds, ONE_HEAD, x, y, 0.8, best=True)


@given(whole((4, 2)), LABELS, st.integers(0, 4))
def test_two_thresholds_keep_what_was_asked_for(x, y, goal):
    law_keeps_the_accuracy(choose_thresholds, EXITS, x, y[:4], goal / 4, best=False)
    law_keeps_the_budget(choose_thresholds, EXITS, x, y[:4], 10 + goal, best=False)


@given(whole((6, 2)), LABELS)
def test_two_thresholds_are_never_worse_than_one_for_both(x, y):
    for point in exit_curve(EXITS, x, y, points=4):
        chosen = choose_thresholds(EXITS, x, y, min_accuracy=point.accuracy)
        assert measured(chosen, x, y)[1] <= point.macs
        chosen = choose_thresholds(EXITS, x, y, max_macs=point.macs)
        assert measured(chosen, x, y)[0] / 6 >= point.accuracy


def law_curve(curve, exits, x, y):
    """Each row is what a run with its threshold gives; it reaches from nobody to everybody."""
    rows = curve(exits, x, y)
    plain = summary(exits.network, x.shape[1:]).macs
    for threshold, accuracy, macs, share in rows:
        hits, cost = measured(replace(exits, thresholds=(threshold,) * len(exits.heads)), x, y)
        assert (accuracy, macs, share) == (hits / len(x), cost, float(cost / plain))
    thresholds = [row.threshold for row in rows]
    assert thresholds == sorted(set(thresholds), reverse=True)
    assert rows[0].threshold == math.inf
    assert (predict(replace(exits, thresholds=(thresholds[-1],) * 2), x)[1] == 0).all()


@given(whole((6, 2)), LABELS, st.sampled_from(CRITERIA))
def test_the_curve_is_measured(x, y, criterion):
    law_curve(exit_curve, replace(EXITS, criterion=criterion), x, y)


def test_the_curve_has_as_many_points_as_asked_for():
    y = np.zeros(8, int)
    assert [len(exit_curve(EXITS, SEEN, y, points=n)) for n in (2, 3, 4)] == [2, 3, 4]


# Of confidences (eighths), right answers, MACs of segments and heads: in the first the threshold
# that both heads can share leads astray, in the second one round is not enough.
ASTRAY = (([4, 4, 6], [6, 6, 2]), ([0, 1, 0], [1, 1, 1], [1, 0, 1]), (4, 6, 9), (2, 2))
ROUNDS = (([2, 2, 4], [4, 4, 2]), ([0, 0, 0], [1, 1, 0], [0, 1, 0]), (5, 7, 12), (1, 0))


@pytest.mark.parametrize("table", [ASTRAY, ROUNDS])
def test_the_search_starts_twice_and_goes_on(table):
    sure, right, segments, heads = map(np.array, table)
    seen, goal = exit_choice._Seen(sure / 8, right, segments, heads), right[-1].sum()

    def rank(hits, macs):
        return np.minimum(hits, goal), -macs, hits

    def value(thresholds):
        hits, macs = exit_choice._outcome(seen, np.array(thresholds))
        return min(hits, goal), -macs, hits

    best = max(map(value, product([math.inf, *np.arange(1, 8) / 8], repeat=2)))
    assert value(exit_choice._best(seen, rank)) == best


def law_between(above, high, low):
    """A threshold that only the higher reaches, in the middle if there is one."""
    threshold = above(np.array([high, low]), 1)
    assert low < threshold <= high
    if (middle := (Fraction(high) + Fraction(low)) / 2) == Fraction(float(middle)):
        assert threshold == middle


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_threshold_stands_between(a, b):
    low, high = sorted((a, b))
    for neighbour in (np.nextafter(high, 0), np.nextafter(np.nextafter(high, 0), 0), low):
        if neighbour < high:
            law_between(exit_choice._above, high, float(neighbour))
    assert 0 <= exit_choice._above(np.array([high]), 1) <= high
    assert exit_choice._above(np.array([high, low]), 0) == math.inf


def test_equal_inputs_of_different_classes_are_not_told_apart():
    """Six leave as one wishes; of the last three, all alike, it would be nice if only one did."""
    x = np.array([[1.0, -3]] * 6 + [[2.0, 0]] * 3)
    law_keeps_the_accuracy(choose_thresholds, ONE_HEAD, x, np.array([0] * 6 + [2, 1, 1]), 1.0, True)
    law_keeps_the_budget(choose_thresholds, ONE_HEAD, x, np.array([0] * 6 + [2, 1, 1]), 13, True)


def test_a_head_that_does_not_pay_is_switched_off():
    dear = Sequential((*PLAIN.layers * 9, Dense(np.zeros((3, 3)))))
    exits = EarlyExit((PLAIN, PLAIN, PLAIN), (dear, PLAIN), (0.5, 0.5))
    x, y = np.eye(3) * 9, np.arange(3)
    assert choose_thresholds(exits, x, y, min_accuracy=1.0).thresholds[0] == math.inf


# People -------------------------------------------------------------------------------------------

FREE = Sequential((ReLU(),))  # costs nothing
WRONG = {
    "exits must be an EarlyExit, ": lambda: choose_thresholds(CNN, SEEN, Y[:8], min_accuracy=0.5),
    "exactly one of min_accuracy, max_macs": lambda: choose_thresholds(EXITS, SEEN, Y[:8]),
    "min_accuracy must be a number": lambda: choose_thresholds(EXITS, SEEN, Y[:8], min_accuracy=2),
    "min_accuracy must be at most 0.0,": lambda: choose_thresholds(
        EXITS, SEEN, np.full(8, 7), min_accuracy=0.5),
    "max_macs must be at least 4.0": lambda: choose_thresholds(
        EarlyExit((FIRST, SECOND, FREE), (FREE, FREE), (0.5, 0.5)), SEEN, Y[:8], max_macs=3),
    "one label for each": lambda: choose_thresholds(EXITS, SEEN, Y[:7], min_accuracy=0.5),
    "at least one row": lambda: exit_curve(EXITS, SEEN[:0], Y[:0]),
    "points must be": lambda: exit_curve(EXITS, SEEN, Y[:8], points=1),
    "left_at must hold": lambda: expected_macs(EXITS, (2,), Y[:0]),
    "left_at must be an int from 0 to 2": lambda: expected_macs(EXITS, (2,), np.array([0, 3])),
    "left_at must be an int": lambda: expected_macs(EXITS, (2,), np.array([-1, 0])),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_wrong_arguments_are_named(words):
    with pytest.raises(CompressionError, match=words):
        WRONG[words]()


# Planted faults -----------------------------------------------------------------------------------


def without_heads(exits, input_shape, left_at):
    plain = replace(exits, thresholds=(math.inf,) * len(exits.heads))
    return expected_macs(plain, input_shape, left_at)


def with_all_heads(exits, input_shape, left_at):
    return expected_macs(replace(exits, thresholds=(0.5,) * 2), input_shape, left_at)


def own_head_only(exits, input_shape, left_at):
    costs = np.subtract(exit_macs(exits, input_shape), [0, 6, 12])
    return Fraction(int(np.add(costs, [0, 6, 0])[left_at].sum()), len(left_at))


def lower(step, exits, x, y, **goal):
    chosen = choose_thresholds(exits, x, y, **goal)
    return replace(chosen, thresholds=[max(t - step, 0.0) for t in chosen.thresholds])


def by_rank(exits, x, y, *, min_accuracy):
    """Takes the head's accuracy among those that leave for that of all; ties are cut through."""
    logits = exit_logits(exits, x)
    sure = np.sort(confidence(logits[:, 0], exits.criterion))
    return replace(exits, thresholds=(sure[int(len(x) * min_accuracy) - 1],))


def never_leaving(exits, x, y, **goal):
    return replace(exits, thresholds=(math.inf,) * len(exits.heads))


# The head is surest of the first two, alike, and least of the last, about which it is wrong.
CHOICE_X = np.array([[1.0, -3], [1, -3], [3, -3], [2, -2], [0, -2], [2, 0]])
CHOICE_Y = exit_logits(ONE_HEAD, CHOICE_X)[:, 1].argmax(1)  # the end is right about all
accuracy_law = partial(law_keeps_the_accuracy, exits=ONE_HEAD, x=CHOICE_X, y=CHOICE_Y, best=True)
budget_law = partial(law_keeps_the_budget, exits=ONE_HEAD, x=CHOICE_X, y=CHOICE_Y, best=True)
LEFT = np.array([0, 1, 1, 2])

PLANTED = {
    "the heads' MACs are forgotten": (lambda count: law_macs(count, LEFT), without_heads),
    "heads that are not run are counted": (lambda count: law_macs(count, LEFT), with_all_heads),
    "only the head left at is counted": (lambda count: law_macs(count, LEFT), own_head_only),
    "the mean is rounded": (
        lambda count: law_macs(count, LEFT), lambda *a: round(expected_macs(*a))),
    "the threshold misses the target": (
        lambda choose: accuracy_law(choose, least=1.0), partial(lower, 0.5)),
    "the threshold breaks the budget": (
        lambda choose: budget_law(choose, most=12), never_leaving),
    "the threshold gives MACs away": (
        lambda choose: accuracy_law(choose, least=0.5), never_leaving),
    "the threshold is a rank": (lambda choose: accuracy_law(choose, least=0.5), by_rank),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
