"""Early exit: who leaves where, what it costs, which thresholds, how heads learn, and the file."""

import math
import os
import zlib
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.analysis.accounting import account
from minicompress.compressors.lowrank import truncated_svd
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.datasets import load_digits
from minicompress.errors import CompressionError, FileFormatError
from minicompress.nn.activations import softmax
from minicompress.nn.architectures import digits_cnn, lenet5
from minicompress.nn.layers import AvgPool2D, Dense, Dropout, Flatten, MaxPool2D, ReLU
from minicompress.nn.model import Sequential, apply, decoded, vjp
from minicompress.nn.optimizers import adam, sgd
from minicompress.nn.training import fit
from minicompress.pipeline import exit_choice, exit_training
from minicompress.pipeline.early_exit import (
    CRITERIA,
    EarlyExit,
    attach_heads,
    confidence,
    exit_logits,
    run_exits,
)
from minicompress.pipeline.exit_choice import (
    choose_thresholds,
    exit_curve,
    exit_macs,
    expected_macs,
)
from minicompress.pipeline.exit_file import load_exits, save_exits
from minicompress.pipeline.exit_training import fit_exits
from minicompress.pipeline.plan import compress
from minicompress.testing.checks import check_pure, same

RNG = np.random.default_rng(0)


def whole(shape, largest=3):
    return arrays(np.float64, shape, elements=st.integers(-largest, largest).map(float))


def dense(*rows):
    return Sequential((Dense(np.array(rows, float)),))


# Two features, three classes, small integers throughout: nothing is rounded before the softmax, so
# a row's logits are the same bits in any company.
FIRST = Sequential((Dense(np.array([[1.0, 2.0], [-1.0, 1.0]])), ReLU()))
SECOND = Sequential((Dense(np.array([[1.0, 0.0], [1.0, -1.0]])),))
LAST = dense([2, 0, -1], [1, -3, 0])
HEADS = (dense([1, -1, 0], [0, 1, 1]), dense([0, 1, -1], [2, -1, 0]))
EXITS = EarlyExit((FIRST, SECOND, LAST), HEADS, (0.9, 0.8))
# Its first segment hands the logits on, so that a test can say what the heads see.
PLAIN = dense([1, 0, 0], [0, 1, 0], [0, 0, 1])


def bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# Confidence ---------------------------------------------------------------------------------------


def law_confidence(impl, logits, criterion):
    """The definition, class by class, in math's functions.

    The slack: each probability is an exp of a rounded difference d (relative error |d| u), over a
    sum of c such, so relatively within (2 max|d| + c + 6) u; max and margin are at most 1. The
    entropy sums c terms p log p of that error plus u p |log p|, and d enters log p absolutely. With
    |d| <= 2000 and c <= 5 all stays below 3 c (2 max|d| + c + 6) u < 1.4e-11.
    """
    found = impl(logits, criterion)
    assert found.shape == (len(logits),)
    assert found.dtype == np.float64
    for row, sure in zip(logits.tolist(), found.tolist(), strict=True):
        powers = [math.exp(z - max(row)) for z in row]
        p = sorted(power / math.fsum(powers) for power in powers)
        entropy = -math.fsum(q * math.log(q) for q in p if q > 0)
        exact = {
            "max_probability": p[-1],
            "margin": p[-1] - p[-2],
            "entropy": 1 - entropy / math.log(len(p)),
        }[criterion]
        assert abs(sure - exact) <= 1.4e-11
        assert 0 <= sure <= 1


@given(
    st.integers(2, 5).flatmap(lambda c: whole((3, c), 1000) | whole((2, c), 2)),
    st.sampled_from(CRITERIA),
)
def test_confidence(logits, criterion):
    law_confidence(confidence, logits, criterion)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_confidence_of_huge_logits(criterion, dtype):
    top = np.finfo(dtype).max
    logits = np.array([[top, -top, -top], [top, top, top], [-top, -top, -top]], dtype)
    sure = confidence(logits, criterion)
    assert sure[0] == 1
    none = {"max_probability": 1 / 3, "margin": 0, "entropy": 0}[criterion]
    assert np.allclose(sure[1:], none, rtol=0, atol=1e-15)  # a quotient, or a sum of three logs


@pytest.mark.parametrize("criterion", CRITERIA)
def test_what_is_no_number_is_never_confident(criterion):
    logits = np.array([[np.nan, 0.0], [np.inf, np.inf], [-np.inf, -np.inf]])
    assert not (confidence(logits, criterion) >= 0).any()
    exits = replace(EarlyExit((PLAIN, PLAIN), (PLAIN,), (0.0,)), criterion=criterion)
    assert run_exits(exits, np.array([[np.nan, 0.0, 0.0], [0.0, 1.0, 2.0]]))[1].tolist() == [1, 0]


# Running ------------------------------------------------------------------------------------------


def one_by_one(exits, x):
    """Every input by itself, in the order of the definition."""
    for row in x:
        inside = row[None]
        for i, segment in enumerate(exits.segments):
            inside = apply(segment, inside)
            answer = inside if i == len(exits.heads) else apply(exits.heads[i], inside)
            if i == len(exits.heads) or (
                confidence(answer, exits.criterion)[0] >= exits.thresholds[i]
            ):
                yield answer[0], i
                break


def law_run(run, exits, x, **options):
    """Each input's answer is that of the first head that is confident, in the order of x."""
    logits, left_at = run(exits, x, **options)
    expected = list(one_by_one(exits, x))
    assert left_at.tolist() == [i for _, i in expected]
    assert left_at.dtype == np.int64
    assert logits.shape == (len(x), 3)
    assert logits.dtype == x.dtype
    assert logits.tolist() == [row.tolist() for row, _ in expected]


@given(
    whole((7, 2)),
    st.tuples(*[st.sampled_from([0.0, 0.35, 0.6, 0.9, 1.0, math.inf])] * 2),
    st.sampled_from(CRITERIA),
    st.sampled_from([None, 1, 3, 7, 100]),
)
def test_inputs_leave_at_the_first_confident_head(x, thresholds, criterion, batch_size):
    exits = replace(EXITS, thresholds=thresholds, criterion=criterion)
    law_run(run_exits, exits, x, batch_size=batch_size)


SEEN = np.array([[3.0, 1], [0, 0], [1, -3], [-2, -1], [2, 2], [-3, 3], [0, -1], [1, 1]])


def test_the_example_of_the_planted_faults_has_all_exits():
    counts = np.bincount(run_exits(EXITS, SEEN)[1])
    assert len(counts) == 3
    assert counts.all()


def test_none_one_all_and_nobody():
    for n in (0, 1, 8):
        law_run(run_exits, EXITS, SEEN[:n])
        for thresholds, left in (((0.0, 0.0), 0), ((math.inf, 0.0), 1), ((math.inf,) * 2, 2)):
            logits, left_at = run_exits(replace(EXITS, thresholds=thresholds), SEEN[:n])
            assert left_at.tolist() == [left] * n
            assert logits.shape == (n, 3)
    alone = EarlyExit((LAST,), (), ())
    assert bits(run_exits(alone, SEEN)[0], apply(LAST, SEEN))


def law_ties(run):
    """At the threshold itself an input leaves, and equal inputs leave together."""
    x = np.array([[0.0, 1000, 0]] * 5 + [[1000.0, 1000, 0]] * 4)  # exactly 1, and exactly 1/2
    for threshold, left in ((1.0, 5), (0.5, 9), (np.nextafter(0.5, 1), 5), (1.1, 0)):
        exits = EarlyExit((PLAIN, PLAIN), (PLAIN,), (threshold,))
        assert run(exits, x)[1].tolist() == [0] * left + [1] * (9 - left)


def test_ties_leave_together():
    law_ties(run_exits)


def images(n):
    return np.random.default_rng(1).random((n, 8, 8, 1), np.float32)


CNN = digits_cnn(np.random.default_rng(0))
CNN_EXITS = attach_heads(CNN, (1, 3), (8, 8, 1), pool=2)


def law_never(run, thresholds):
    """If nobody leaves, it is the network, bit for bit, in as many pieces as that runs in."""
    x = images(600)
    exits = replace(CNN_EXITS, thresholds=thresholds)
    for n, batch_size in ((600, None), (1, None), (0, None), (50, 7), (50, 64)):
        logits, left_at = run(exits, x[:n], batch_size=batch_size)
        assert bits(logits, apply(CNN, x[:n], batch_size=batch_size))
        assert (left_at == 2).all()


@pytest.mark.parametrize("thresholds", [(math.inf, math.inf), (1.5, 1.5), (1.5, math.inf)])
def test_without_exits_it_is_the_network(thresholds):
    law_never(run_exits, thresholds)


def test_without_exits_it_is_the_segments_one_after_the_other():
    x = images(20)
    inside = x
    for segment in CNN_EXITS.segments:
        inside = apply(segment, inside, batch_size=20)
    assert bits(inside, run_exits(CNN_EXITS, x, batch_size=20)[0])
    assert bits(inside, exit_logits(CNN_EXITS, x, batch_size=20)[:, 2])


def test_the_network_of_many_pieces_is_the_network():
    """The pieces of 8 MB are those of the whole network, not of a segment."""
    network = lenet5(np.random.default_rng(0))
    x = np.random.default_rng(1).random((200, 28, 28, 1), np.float32)
    exits = attach_heads(network, (2, 5), (28, 28, 1))
    assert bits(run_exits(exits, x)[0], apply(network, x))
    assert bits(exit_logits(exits, x)[:, 2], apply(network, x))


@dataclass(frozen=True, eq=False, repr=False)
class Mine(ReLU):
    """A layer that must not be run."""

    def forward(self, x):
        raise AssertionError("it was run")


def test_a_head_that_nobody_can_leave_at_is_not_run():
    exits = replace(EXITS, heads=(Sequential((Mine(), *HEADS[0].layers)), HEADS[1]))
    run_exits(replace(exits, thresholds=(math.inf, 0.5)), SEEN)
    with pytest.raises(AssertionError):
        run_exits(exits, SEEN)


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
    whole_network = account(exits.network, (28, 28, 1)).macs
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
    logits, left_at = run_exits(exits, x)
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
    plain = account(exits.network, x.shape[1:]).macs
    for threshold, accuracy, macs, share in rows:
        hits, cost = measured(replace(exits, thresholds=(threshold,) * len(exits.heads)), x, y)
        assert (accuracy, macs, share) == (hits / len(x), cost, float(cost / plain))
    thresholds = [row.threshold for row in rows]
    assert thresholds == sorted(set(thresholds), reverse=True)
    assert rows[0].threshold == math.inf
    assert (run_exits(replace(exits, thresholds=(thresholds[-1],) * 2), x)[1] == 0).all()


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


def test_an_input_that_is_no_number_stays():
    x, y = CHOICE_X.copy(), CHOICE_Y
    x[1] = np.nan
    for point in exit_curve(ONE_HEAD, x, y):
        moved = replace(ONE_HEAD, thresholds=(point.threshold,))
        hits, macs = measured(moved, x, y)
        assert (point.accuracy, point.macs) == (hits / 6, macs)
    with pytest.raises(CompressionError, match="max_macs must be at least 11"):
        choose_thresholds(ONE_HEAD, x, y, max_macs=10)


def test_a_head_that_does_not_pay_is_switched_off():
    dear = Sequential((*PLAIN.layers * 9, Dense(np.zeros((3, 3)))))
    exits = EarlyExit((PLAIN, PLAIN, PLAIN), (dear, PLAIN), (0.5, 0.5))
    x, y = np.eye(3) * 9, np.arange(3)
    assert choose_thresholds(exits, x, y, min_accuracy=1.0).thresholds[0] == math.inf


# Training -----------------------------------------------------------------------------------------

X, Y = images(40), np.arange(40) % 10
SETTINGS = {"optimizer": adam(1e-2), "epochs": 2, "batch_size": 16}


def fitted(fit_them, exits=CNN_EXITS, **options):
    return fit_them(exits, X, Y, rng=np.random.default_rng(3), **SETTINGS, **options)


def law_frozen(fit_them):
    """The network stays, and a head learns as a model of its own does from the same features."""
    exits = replace(CNN_EXITS, segments=tuple(decoded(s) for s in CNN_EXITS.segments))
    trained, histories = fitted(fit_them, exits)
    assert all(same(a, b) for a, b in zip(exits.segments, trained.segments, strict=True))
    assert same(trained.segments, CNN_EXITS.segments)
    rng = np.random.default_rng(3)
    for i, head in enumerate(exits.heads):
        features = apply(Sequential(CNN.layers[: 2 * i + 2] + head.layers[:-1]), X)
        alone, history = fit(Sequential(head.layers[-1:]), features, Y, rng=rng, **SETTINGS)
        assert same(trained.heads[i].layers[-1], alone.layers[0])
        assert histories[i].train_loss == history.train_loss
    assert trained.thresholds == exits.thresholds


def test_frozen():
    law_frozen(fit_exits)


def test_a_compressed_network_can_get_heads():
    small = compress(CNN, {2: partial(quantize, num_bits=8)}).model
    exits, _ = fitted(fit_exits, attach_heads(small, (1,), (8, 8, 1)))
    assert same(exits.network, small)


def law_joint_ends(fit_them):
    """With all the weight on one exit, it is the training of the model that ends there."""
    first, second = CNN_EXITS.segments[0], CNN_EXITS.segments[1:]
    exits = EarlyExit((first, Sequential(second[0].layers + second[1].layers)),
                      CNN_EXITS.heads[:1], (math.inf,))  # fmt: skip
    rng = partial(np.random.default_rng, 3)
    trained, (history,) = fitted(fit_them, exits, joint=True, loss_weights=(0.0, 1.0))
    alone, expected = fit(CNN, X, Y, rng=rng(), **SETTINGS)
    assert same(trained.network, alone)
    assert history.train_loss == expected.train_loss
    assert same(trained.heads, exits.heads)
    trained, _ = fitted(fit_them, exits, joint=True, loss_weights=(1.0, 0.0))
    body = Sequential(first.layers + exits.heads[0].layers)
    alone, _ = fit(body, X, Y, rng=rng(), **SETTINGS)
    assert same((*trained.segments[0].layers, *trained.heads[0].layers), alone.layers)
    assert same(trained.segments[1], exits.segments[1])


def test_joint_with_one_exit_that_counts():
    law_joint_ends(fit_exits)


def law_joint_gradient(layer_of, x, dy):
    """The gradient of all exits is the sum of those of the models that end at each: exact here."""
    logits, pullback = layer_of(EXITS).vjp(x)
    dx, gradients = pullback(dy)
    assert logits.tolist() == exit_logits(EXITS, x).reshape(len(x), -1).tolist()
    names = [f"{part} {i}" for part, n in (("s0", 2), ("h0", 1), ("s1", 1), ("h1", 1), ("s2", 1))
             for i in range(n)]  # fmt: skip
    sums, dx_sum = dict.fromkeys(names, 0.0), 0.0
    ends = ((("s0", "h0"), 0), (("s0", "s1", "h1"), 3), (("s0", "s1", "s2"), 6))
    models = dict(zip(("s0", "s1", "s2", "h0", "h1"), EXITS.segments + EXITS.heads, strict=True))
    for parts, start in ends:
        path = [(f"{part} {i}", layer) for part in parts
                for i, layer in enumerate(models[part].layers)]  # fmt: skip
        _, pull = vjp(Sequential(tuple(layer for _, layer in path)), x)
        dx_part, of_path = pull(dy[:, start : start + 3])
        dx_sum = dx_sum + dx_part
        for (name, _), of_layer in zip(path, of_path, strict=True):
            sums[name] = sums[name] + of_layer.get("weight", 0.0)
    assert dx.tolist() == dx_sum.tolist()
    for i, name in enumerate(names):
        found = gradients.get(f"{i} weight")
        assert (found is None) == (name == "s0 1")
        assert found is None or found.tolist() == sums[name].tolist()


@given(whole((3, 2)), whole((3, 9)))
def test_the_joint_gradient_is_the_sum(x, dy):
    law_joint_gradient(exit_training._AllExits, x, dy)


def test_joint_training_learns_at_every_exit():
    x, y = load_digits("train")
    validation = load_digits("validation")
    exits, (history,) = fit_exits(
        CNN_EXITS, x, y, joint=True, validation=validation, epochs=4, batch_size=32,
        optimizer=adam(3e-3), rng=np.random.default_rng(0),
    )  # fmt: skip
    accuracies = (exit_logits(exits, validation[0]).argmax(2) == validation[1][:, None]).mean(0)
    assert (accuracies > 0.85).all(), accuracies
    assert history.epochs == 4
    assert len(history.validation_loss) == 4
    assert history.train_accuracy == history.validation_accuracy == ()


def test_a_dropout_before_a_heads_weight_drops_in_training():
    heads = [Sequential((*h.layers[:-1], Dropout(0.9), h.layers[-1])) for h in CNN_EXITS.heads]
    dropped, _ = fitted(fit_exits, replace(CNN_EXITS, heads=heads))
    assert [type(layer) for layer in dropped.heads[0].layers[2:]] == [Dropout, Dense]
    plain, _ = fitted(fit_exits)
    assert not same(dropped.heads[0].layers[-1], plain.heads[0].layers[-1])


# Attaching, compressing ---------------------------------------------------------------------------


def test_heads_are_attached():
    assert same(CNN_EXITS.network, CNN)
    assert [len(s.layers) for s in CNN_EXITS.segments] == [2, 2, 2]
    assert [type(layer) for layer in CNN_EXITS.heads[0].layers] == [MaxPool2D, Flatten, Dense]
    layers = (Flatten(), Dense(np.ones((4, 5))), ReLU(), Dense(np.ones((5, 2))))
    flat = attach_heads(Sequential(layers), (2,), (2, 2), pool=2)
    assert [type(layer) for layer in flat.heads[0].layers] == [Dense]
    assert flat.heads[0].layers[0].weight.dtype == np.float64
    assert flat.heads[0].layers[0].weight.shape == (5, 2)
    assert attach_heads(CNN, (), (8, 8, 1)).heads == ()
    (head,) = attach_heads(CNN, (1,), (8, 8, 1)).heads
    assert [type(layer) for layer in head.layers] == [Flatten, Dense]


def test_exits_compress_like_any_layer():
    x, y = load_digits("train")
    exits, _ = fit_exits(CNN_EXITS, x, y, epochs=1, batch_size=32, optimizer=adam(3e-3),
                         rng=np.random.default_rng(0))  # fmt: skip
    int8 = partial(quantize, num_bits=8, axis=-1)
    segments = tuple(compress(s, {0: int8}).model for s in exits.segments[:2])
    last = compress(exits.segments[2], {1: partial(truncated_svd, rank=4)}).model
    heads = tuple(compress(h, {2: partial(prune_magnitude, amount=0.5)}).model for h in exits.heads)
    small = replace(exits, segments=(*segments, last), heads=heads, thresholds=(0.4, 0.4))
    plain = replace(
        small, segments=(*map(decoded, segments), last), heads=tuple(map(decoded, heads))
    )
    assert same(run_exits(small, images(30)), run_exits(plain, images(30)))
    # 512 x 10 as 512 x 4 and 4 x 10
    saved = exit_macs(exits, (8, 8, 1))[-1] - exit_macs(small, (8, 8, 1))[-1]
    heads_macs = 144 * 10 + 4 * 10 * CNN_EXITS.heads[1].layers[-1].weight.shape[0] // 4
    assert saved == 5120 - (512 * 4 + 40) - heads_macs


# The file -----------------------------------------------------------------------------------------


def saved(exits, folder, **options):
    path = os.fspath(folder / "exits.mcx")
    size = save_exits(exits, path, **options)
    with open(path, "rb") as file:
        blob = file.read()
    assert len(blob) == size
    return blob


def read(blob, folder, **options):
    path = folder / "read.mcx"
    path.write_bytes(blob)
    return load_exits(path, **options)


def law_round_trip(write, load, exits, folder):
    path = folder / "exits.mcx"
    write(exits, path)
    assert same(load(path), exits)
    assert os.listdir(folder) == ["exits.mcx"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_file_gives_everything_back(criterion, tmp_path):
    for thresholds in ((0.1, math.inf), (0.0, 1 / 3), (math.inf, 1e-300)):
        exits = replace(CNN_EXITS, thresholds=thresholds, criterion=criterion)
        law_round_trip(partial(save_exits, coding="packed"), load_exits, exits, tmp_path)
    heads = (compress(HEADS[0], {0: partial(quantize, num_bits=4)}).model, Sequential(()))
    odd = EarlyExit((Sequential(()), FIRST, Sequential((AvgPool2D(2),))), heads, (0.5, 2.0))
    law_round_trip(save_exits, load_exits, odd, tmp_path)
    law_round_trip(save_exits, load_exits, EarlyExit((LAST,), (), ()), tmp_path)


def with_checksum(body):
    return body + zlib.crc32(body).to_bytes(4, "little")


def law_refused(load, blob):
    try:
        load(blob)
    except FileFormatError:
        return
    raise AssertionError("it was believed")


def law_damage_is_refused(load, blob):
    for place in range(len(blob)):
        for flip in (1, 255):
            law_refused(load, blob[:place] + bytes([blob[place] ^ flip]) + blob[place + 1 :])
    for length in range(len(blob)):
        law_refused(load, blob[:length])
        if length < len(blob) - 4:
            law_refused(load, with_checksum(blob[:length]))
    for more in (b"\0", bytes(30), blob):
        law_refused(load, blob + more)
        law_refused(load, with_checksum(blob[:-4] + more))


def test_damage_is_refused(tmp_path):
    blob = saved(EarlyExit((PLAIN, LAST_OF_3), (PLAIN,), (0.5,)), tmp_path)
    law_damage_is_refused(partial(read, folder=tmp_path), blob)


LAST_OF_3 = dense([1, 2, 3], [0, 0, 1], [1, 0, 0])


def test_frames_that_cannot_be_are_refused(tmp_path):
    blob = saved(EXITS, tmp_path)[:-4]
    refused = {
        "no .mcx": [b"", b"mc", b"mcz" + blob[3:], b"MCX" + blob[3:]],
        "version 2": [blob[:3] + b"\2" + blob[4:], b"mcx\2"],
        "criterion": [blob[:4] + b"\3" + blob[5:]],
        "heads|parts|needed|sizes": [blob[:5] + b"\xff\xff\xff\xff\x7f" + blob[6:]],
        "cannot be: thresholds": [
            blob[:6] + np.array(wrong, ">f8").tobytes() + blob[14:]
            for wrong in (-1.0, np.nan, -np.inf)
        ],
        "announced": [blob[:22] + bytes([3]) + blob[23:]],
    }
    assert blob[22:27] == bytes([2, 1, 1, 1, 1])  # the layers of the parts
    for words, blobs in refused.items():
        for wrong in blobs:
            with pytest.raises(FileFormatError, match=words):
                read(with_checksum(wrong), tmp_path)


def test_what_takes_too_much_memory_is_refused(tmp_path):
    big = EarlyExit((Sequential((Dense(np.zeros((1000, 1000))),)), LAST), (LAST,), (0.5,))
    blob = saved(big, tmp_path)
    assert len(blob) < 1000
    assert same(read(blob, tmp_path, max_bytes=20_000_000), big)
    with pytest.raises(FileFormatError, match=r"memory|max_bytes"):
        read(blob, tmp_path, max_bytes=1_000_000)
    with pytest.raises(FileFormatError, match="larger than max_bytes"):
        read(bytes(10_000), tmp_path, max_bytes=100)
    with pytest.raises(FileFormatError, match=r"read\.mcx: "):
        read(blob[:-1], tmp_path)
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_exits(tmp_path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    blob = saved(EXITS, tmp_path)

    @dataclass(frozen=True, eq=False, repr=False)
    class Own(Flatten):
        pass

    with pytest.raises(CompressionError, match="Own"):
        save_exits(EarlyExit((Sequential((Own(),)),), (), ()), tmp_path / "exits.mcx")

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        save_exits(CNN_EXITS, tmp_path / "exits.mcx", coding="packed")
    assert os.listdir(tmp_path) == ["exits.mcx"]
    assert (tmp_path / "exits.mcx").read_bytes() == blob


# People -------------------------------------------------------------------------------------------

TWO_CLASSES = dense([1, 0], [0, 1])
WRONG = {
    "segments must be a tuple of Sequential": lambda: EarlyExit((FIRST, ReLU()), HEADS[:1], (1.0,)),
    "heads must be one fewer": lambda: EarlyExit((FIRST,), HEADS, (0.5, 0.5)),
    "thresholds must be a tuple of 2": lambda: replace(EXITS, thresholds=(0.5,)),
    "thresholds must be a number": lambda: replace(EXITS, thresholds=(0.5, -0.5)),
    "thresholds must be a number from": lambda: replace(EXITS, thresholds=(math.nan, 0.5)),
    "criterion must be one of": lambda: replace(EXITS, criterion="certainty"),
    "at least 2 classes": lambda: confidence(np.ones((3, 1))),
    "2 dimensions": lambda: confidence(np.ones(3)),
    "exits must be an EarlyExit": lambda: run_exits(FIRST, SEEN),
    "exits must be an EarlyExit, ": lambda: choose_thresholds(CNN, SEEN, Y[:8], min_accuracy=0.5),
    r"heads\[0\] must end in 3 logits": lambda: run_exits(
        replace(EXITS, heads=(TWO_CLASSES, HEADS[1])), SEEN),
    "must end in logits": lambda: run_exits(
        EarlyExit((Sequential(CNN.layers[:4]),), (), ()), images(2)),
    "x must be a batch": lambda: run_exits(EXITS, np.array(1.0)),
    "batch_size must be": lambda: run_exits(EXITS, SEEN, batch_size=0),
    "x must be of dtype": lambda: run_exits(EXITS, [[1, 2]]),
    r"positions\[0\] must be an int from 0 to 4": lambda: attach_heads(CNN, (5,), (8, 8, 1)),
    "positions must increase": lambda: attach_heads(CNN, (3, 1), (8, 8, 1)),
    "positions must increase, not": lambda: attach_heads(CNN, (1, 1), (8, 8, 1)),
    "model must end in logits": lambda: attach_heads(Sequential(CNN.layers[:4]), (1,), (8, 8, 1)),
    "model must have weights": lambda: attach_heads(Sequential((ReLU(), ReLU())), (0,), (2,)),
    "loss_weights are for joint": lambda: fitted(fit_exits, loss_weights=(1, 1, 1)),
    "loss_weights must be 3": lambda: fitted(fit_exits, joint=True, loss_weights=(1, 1)),
    r"loss_weights\[1\] must be": lambda: fitted(fit_exits, joint=True, loss_weights=(1, -1, 1)),
    "joint must be True or False": lambda: fitted(fit_exits, joint=1),
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
    "path must be the name": lambda: save_exits(EXITS, 3),
    "coding must be": lambda: save_exits(EXITS, "never-written", coding="zip"),
}  # fmt: skip


FREE = Sequential((ReLU(),))  # costs nothing


@pytest.mark.parametrize("words", WRONG)
def test_wrong_arguments_are_named(words):
    with pytest.raises(CompressionError, match=words):
        WRONG[words]()


def test_all_of_it_is_pure():
    y, rng = Y[:8], np.random.default_rng(0)
    check_pure(attach_heads, CNN, (1,), (8, 8, 1), pool=2)
    check_pure(confidence, SEEN, "entropy")
    check_pure(run_exits, EXITS, SEEN, batch_size=3)
    check_pure(exit_logits, EXITS, SEEN)
    check_pure(exit_macs, EXITS, (2,))
    check_pure(expected_macs, EXITS, (2,), y % 3)
    check_pure(exit_curve, EXITS, SEEN, y)
    check_pure(choose_thresholds, EXITS, SEEN, y, max_macs=20)
    for joint in (False, True):
        check_pure(fit_exits, EXITS, SEEN, y % 3, joint=joint, optimizer=sgd(0.1), epochs=2,
                   batch_size=3, rng=rng)  # fmt: skip


def test_any_layout_runs():
    for x in (SEEN[::-1], np.asfortranarray(SEEN), np.repeat(SEEN, 2, 0)[::2]):
        law_run(run_exits, EXITS, x)


# Planted faults -----------------------------------------------------------------------------------


def with_confidence(sure, exits, x):
    """A run by another idea of when to leave."""
    logits = exit_logits(exits, x)
    fires = [sure(logits[:, i], exits) >= t for i, t in enumerate(exits.thresholds)]
    left_at = np.array([*fires, np.ones(len(x), bool)]).argmax(0)
    return logits[np.arange(len(x)), left_at], left_at


def last_confident(exits, x, **options):
    logits = exit_logits(exits, x)
    left_at = np.full(len(x), len(exits.heads))
    for i, threshold in enumerate(exits.thresholds):
        left_at[confidence(logits[:, i]) >= threshold] = i
    return logits[np.arange(len(x)), left_at], left_at


def in_order_of_leaving(exits, x, **options):
    logits, left_at = run_exits(exits, x)
    order = np.argsort(left_at, kind="stable")
    return logits[order], left_at[order]


def answers_of_the_end(exits, x, **options):
    return apply(exits.network, x), run_exits(exits, x)[1]


def strictly(exits, x, **options):
    return run_exits(replace(exits, thresholds=[np.nextafter(t, 9) for t in exits.thresholds]), x)


def raw_softmax(logits, criterion):
    with np.errstate(all="ignore"):
        powers = np.exp(logits)
        return (powers / powers.sum(1, keepdims=True)).max(1)


def through_float64(exits, x, batch_size=None):
    wide = Sequential(tuple(
        replace(a, **{n: w.astype(float) for n, w in a.parameters().items()})
        for a in exits.network.layers))  # fmt: skip
    logits = apply(wide, x.astype(float), batch_size=batch_size).astype(np.float32)
    return logits, np.full(len(x), 2)


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


def thawed(exits, x, y, **options):
    return fit_exits(exits, x, y, **options, joint=True)


def turned_weights(exits, x, y, **options):
    return fit_exits(exits, x, y, **{**options, "loss_weights": options["loss_weights"][::-1]})


def equal_weights(exits, x, y, **options):
    return fit_exits(exits, x, y, **{**options, "loss_weights": None})


class Detached(exit_training._AllExits):
    """The heads' gradients do not reach the segments before them."""

    def vjp(self, x, **options):
        logits, pull = super().vjp(x, **options)
        end = np.repeat([0.0, 0.0, 1.0], 3)

        def pullback(dy):
            dx, gradients = pull(dy * end)
            of_heads = pull(dy)[1]
            return dx, gradients | {n: of_heads[n] for n in ("2 weight", "4 weight")}

        return logits, pullback


class Halved(exit_training._AllExits):
    """The mean over the exits for the sum."""

    def vjp(self, x, **options):
        logits, pull = super().vjp(x, **options)
        return logits, lambda dy: pull(dy / 2)


def unchecked(folder, blob):
    """A reader that does not look at the checksum."""
    return read(with_checksum(blob[:-4]), folder)


def rounded_thresholds(exits, path):
    save_exits(replace(exits, thresholds=[float(np.float32(t)) for t in exits.thresholds]), path)


def ungrouped(path):
    exits = load_exits(path)
    layers = exit_training.flat_layers(exits)
    return replace(exits, segments=(Sequential(layers[:1]), *exits.segments[1:]))


# The head is surest of the first two, alike, and least of the last, about which it is wrong.
CHOICE_X = np.array([[1.0, -3], [1, -3], [3, -3], [2, -2], [0, -2], [2, 0]])
CHOICE_Y = exit_logits(ONE_HEAD, CHOICE_X)[:, 1].argmax(1)  # the end is right about all
accuracy_law = partial(law_keeps_the_accuracy, exits=ONE_HEAD, x=CHOICE_X, y=CHOICE_Y, best=True)
budget_law = partial(law_keeps_the_budget, exits=ONE_HEAD, x=CHOICE_X, y=CHOICE_Y, best=True)
LEFT = np.array([0, 1, 1, 2])
HUGE = np.array([[1000.0, 0.0, -1000.0], [999.0, 1000.0, 998.0]])

PLANTED = {
    "leaves at the last confident head, not the first": (
        lambda run: law_run(run, EXITS, SEEN), last_confident),
    "the order of the batch is lost as inputs leave": (
        lambda run: law_run(run, EXITS, SEEN), in_order_of_leaving),
    "the answer is the network's end's": (
        lambda run: law_run(run, EXITS, SEEN), answers_of_the_end),
    "leaves when it is unsure": (
        lambda run: law_run(run, EXITS, SEEN),
        partial(with_confidence, lambda z, e: 1 - confidence(z, e.criterion))),
    "another criterion is used": (
        lambda run: law_run(run, replace(EXITS, thresholds=(0.6, 0.6)), SEEN),
        partial(with_confidence, lambda z, e: confidence(z, "margin"))),
    "stays at the threshold itself": (law_ties, strictly),
    "computes in float64 in between": (lambda run: law_never(run, (1.5, 1.5)), through_float64),
    "softmax overflows": (
        lambda impl: law_confidence(impl, HUGE, "max_probability"), raw_softmax),
    "entropy the wrong way": (
        lambda impl: law_confidence(impl, HUGE, "entropy"), lambda z, c: 1 - confidence(z, c)),
    "entropy in other units": (
        lambda impl: law_confidence(impl, HUGE, "entropy"),
        lambda z, c: 1 - (1 - confidence(z, c)) * math.log(3)),
    "margin to the mean": (
        lambda impl: law_confidence(impl, HUGE, "margin"),
        lambda z, c: softmax(z).max(1) - softmax(z).mean(1)),
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
    "the frozen network moves": (law_frozen, thawed),
    "loss weights are turned around": (law_joint_ends, turned_weights),
    "loss weights are ignored": (law_joint_ends, equal_weights),
    "heads do not reach the segments": (
        lambda layer: law_joint_gradient(layer, SEEN, np.ones((8, 9))), Detached),
    "a mean for the sum of the losses": (
        lambda layer: law_joint_gradient(layer, SEEN, np.ones((8, 9))), Halved),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)


def test_planted_files_are_caught(tmp_path):
    exits = replace(EXITS, thresholds=(0.1, 0.2))
    with pytest.raises(AssertionError):
        law_round_trip(rounded_thresholds, load_exits, exits, tmp_path)
    with pytest.raises(AssertionError):
        law_round_trip(save_exits, ungrouped, exits, tmp_path)
    with pytest.raises(AssertionError):
        law_damage_is_refused(partial(unchecked, tmp_path), saved(exits, tmp_path))
