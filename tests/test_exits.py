"""Early exit: the value, how sure a head is, and who leaves where with which answer."""

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
from exit_models import (
    CNN,
    CNN_EXITS,
    EXITS,
    FIRST,
    HEADS,
    LAST,
    PLAIN,
    SEEN,
    Y,
    dense,
    images,
    whole,
)
from hypothesis import given
from hypothesis import strategies as st

from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.compressors.svd import truncated_svd
from minicompress.datasets import load_digits
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
from minicompress.early_exit.training import fit_exits
from minicompress.errors import CompressionError
from minicompress.nn.architectures import lenet5
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense
from minicompress.nn.losses import softmax
from minicompress.nn.network import apply
from minicompress.nn.optimizers import adam, sgd
from minicompress.nn.parameters import decoded
from minicompress.nn.pointwise import ReLU
from minicompress.nn.stateless import Flatten, MaxPool2D
from minicompress.search.plan import compress
from minicompress.testing.checks import check_pure, same


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
    law_run(predict, exits, x, batch_size=batch_size)


def test_the_example_of_the_planted_faults_has_all_exits():
    counts = np.bincount(predict(EXITS, SEEN)[1])
    assert len(counts) == 3
    assert counts.all()


def test_none_one_all_and_nobody():
    for n in (0, 1, 8):
        law_run(predict, EXITS, SEEN[:n])
        for thresholds, left in (((0.0, 0.0), 0), ((math.inf, 0.0), 1), ((math.inf,) * 2, 2)):
            logits, left_at = predict(replace(EXITS, thresholds=thresholds), SEEN[:n])
            assert left_at.tolist() == [left] * n
            assert logits.shape == (n, 3)
    alone = EarlyExit((LAST,), (), ())
    assert bits(predict(alone, SEEN)[0], apply(LAST, SEEN))


def law_ties(run):
    """At the threshold itself an input leaves, and equal inputs leave together."""
    x = np.array([[0.0, 1000, 0]] * 5 + [[1000.0, 1000, 0]] * 4)  # exactly 1, and exactly 1/2
    for threshold, left in ((1.0, 5), (0.5, 9), (np.nextafter(0.5, 1), 5), (1.1, 0)):
        exits = EarlyExit((PLAIN, PLAIN), (PLAIN,), (threshold,))
        assert run(exits, x)[1].tolist() == [0] * left + [1] * (9 - left)


def test_ties_leave_together():
    law_ties(predict)


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
    law_never(predict, thresholds)


def test_without_exits_it_is_the_segments_one_after_the_other():
    x = images(20)
    inside = x
    for segment in CNN_EXITS.segments:
        inside = apply(segment, inside, batch_size=20)
    assert bits(inside, predict(CNN_EXITS, x, batch_size=20)[0])
    assert bits(inside, exit_logits(CNN_EXITS, x, batch_size=20)[:, 2])


def test_the_network_of_many_pieces_is_the_network():
    """The pieces of 8 MB are those of the whole network, not of a segment."""
    network = lenet5(np.random.default_rng(0))
    x = np.random.default_rng(1).random((200, 28, 28, 1), np.float32)
    exits = attach_heads(network, (2, 5), (28, 28, 1))
    assert bits(predict(exits, x)[0], apply(network, x))
    assert bits(exit_logits(exits, x)[:, 2], apply(network, x))


@dataclass(frozen=True, eq=False, repr=False)
class Mine(ReLU):
    """A layer that must not be run."""

    def forward(self, x):
        raise AssertionError("it was run")


def test_a_head_that_nobody_can_leave_at_is_not_run():
    exits = replace(EXITS, heads=(Sequential((Mine(), *HEADS[0].layers)), HEADS[1]))
    predict(replace(exits, thresholds=(math.inf, 0.5)), SEEN)
    with pytest.raises(AssertionError):
        predict(exits, SEEN)


def test_any_layout_runs():
    for x in (SEEN[::-1], np.asfortranarray(SEEN), np.repeat(SEEN, 2, 0)[::2]):
        law_run(predict, EXITS, x)


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
    assert same(predict(small, images(30)), predict(plain, images(30)))
    # 512 x 10 as 512 x 4 and 4 x 10
    saved = exit_macs(exits, (8, 8, 1))[-1] - exit_macs(small, (8, 8, 1))[-1]
    heads_macs = 144 * 10 + 4 * 10 * CNN_EXITS.heads[1].layers[-1].weight.shape[0] // 4
    assert saved == 5120 - (512 * 4 + 40) - heads_macs


# People -------------------------------------------------------------------------------------------

TWO_CLASSES = dense([1, 0], [0, 1])
WRONG = {
    "segments must be a tuple of Network": lambda: EarlyExit((FIRST, ReLU()), HEADS[:1], (1.0,)),
    "heads must be one fewer": lambda: EarlyExit((FIRST,), HEADS, (0.5, 0.5)),
    "thresholds must be a tuple of 2": lambda: replace(EXITS, thresholds=(0.5,)),
    "thresholds must be a number": lambda: replace(EXITS, thresholds=(0.5, -0.5)),
    "thresholds must be a number from": lambda: replace(EXITS, thresholds=(math.nan, 0.5)),
    "criterion must be one of": lambda: replace(EXITS, criterion="certainty"),
    "at least 2 classes": lambda: confidence(np.ones((3, 1))),
    "2 dimensions": lambda: confidence(np.ones(3)),
    "exits must be an EarlyExit": lambda: predict(FIRST, SEEN),
    r"heads\[0\] must end in 3 logits": lambda: predict(
        replace(EXITS, heads=(TWO_CLASSES, HEADS[1])), SEEN),
    "must end in logits": lambda: predict(
        EarlyExit((Sequential(CNN.layers[:4]),), (), ()), images(2)),
    r"heads\[0\] and the exit after it": lambda: exit_logits(
        EarlyExit((FIRST, Sequential(())), (Sequential(()),), (1.0,)), SEEN),
    "x must be a batch": lambda: predict(EXITS, np.array(1.0)),
    "batch_size must be": lambda: predict(EXITS, SEEN, batch_size=0),
    "x must be of dtype": lambda: predict(EXITS, [[1, 2]]),
    r"positions\[0\] must be an int from 0 to 4": lambda: attach_heads(CNN, (5,), (8, 8, 1)),
    "positions must increase": lambda: attach_heads(CNN, (3, 1), (8, 8, 1)),
    "positions must increase, not": lambda: attach_heads(CNN, (1, 1), (8, 8, 1)),
    "model must end in logits": lambda: attach_heads(Sequential(CNN.layers[:4]), (1,), (8, 8, 1)),
    "model must have weights": lambda: attach_heads(Sequential((ReLU(), ReLU())), (0,), (2,)),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_wrong_arguments_are_named(words):
    with pytest.raises(CompressionError, match=words):
        WRONG[words]()


def test_all_of_it_is_pure():
    y, rng = Y[:8], np.random.default_rng(0)
    check_pure(attach_heads, CNN, (1,), (8, 8, 1), pool=2)
    check_pure(confidence, SEEN, "entropy")
    check_pure(predict, EXITS, SEEN, batch_size=3)
    check_pure(exit_logits, EXITS, SEEN)
    check_pure(exit_macs, EXITS, (2,))
    check_pure(expected_macs, EXITS, (2,), y % 3)
    check_pure(exit_curve, EXITS, SEEN, y)
    check_pure(choose_thresholds, EXITS, SEEN, y, max_macs=20)
    for joint in (False, True):
        check_pure(fit_exits, EXITS, SEEN, y % 3, joint=joint, optimizer=sgd(0.1), epochs=2,
                   batch_size=3, rng=rng)  # fmt: skip


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
    logits, left_at = predict(exits, x)
    order = np.argsort(left_at, kind="stable")
    return logits[order], left_at[order]


def answers_of_the_end(exits, x, **options):
    return apply(exits.network, x), predict(exits, x)[1]


def strictly(exits, x, **options):
    return predict(replace(exits, thresholds=[np.nextafter(t, 9) for t in exits.thresholds]), x)


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
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
