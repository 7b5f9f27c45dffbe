"""Thresholds of an `EarlyExit`: what they save, what they cost, and which to take.

Everything is counted on data given, in whole numbers: inputs that leave at each exit, how many of
them are right, and the multiplications that this takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Rational
from typing import NamedTuple, TypeAlias

import numpy as np

from minicompress.analysis.accounting import summary
from minicompress.arrays import Array, as_float, as_int, exactly_one, float_array, integer_array
from minicompress.early_exit.exits import NEVER, EarlyExit, checked, confidence, exit_logits
from minicompress.errors import CompressionError
from minicompress.nn.layers import Shape
from minicompress.nn.network import Sequential, output_shape

# Thresholds that all heads could share, of which the search sets out from the best.
SHARED = 200

# What is wanted, largest first: three integers for the numbers of right answers and of MACs.
Rank: TypeAlias = Callable[[Array, Array], tuple[Array, Array, Array]]


class ExitPoint(NamedTuple):
    """A point of `exit_curve`.

    Parameters
    ----------
    threshold : float
        Of every head.
    accuracy : float
        The fraction of right answers.
    macs : Fraction
        Multiply-accumulates for one input, the mean over all of them.
    share : float
        `macs` as a fraction of what the network without heads takes.
    """

    threshold: float
    accuracy: float
    macs: Fraction
    share: float


def exit_macs(exits: EarlyExit, input_shape: Shape) -> tuple[int, ...]:
    """Multiply-accumulates that an input has cost when it leaves, for each exit.

    Parameters
    ----------
    exits : EarlyExit
    input_shape : tuple of int
        Of one input, without the batch axis.

    Returns
    -------
    tuple of int
        Of the segments up to that exit and of the heads passed, its own among them. A head whose
        threshold is ``math.inf`` is not run and costs nothing.

    Raises
    ------
    CompressionError
        As `summary`.

    Examples
    --------
    >>> from minicompress.nn.architectures import lenet5
    >>> from minicompress.early_exit.exits import attach_heads
    >>> exits = attach_heads(lenet5(np.random.default_rng(0)), (2,), (28, 28, 1))
    >>> exit_macs(exits, (28, 28, 1)), exit_macs(replace(exits, thresholds=(0.9,)), (28, 28, 1))
    ((288000, 2293000), (316800, 2321800))
    """
    segments, heads = _macs(checked(exits), input_shape)
    return tuple(_spent(segments, heads, np.array(exits.thresholds)).tolist())


def expected_macs(exits: EarlyExit, input_shape: Shape, left_at: Array) -> Fraction:
    """Multiply-accumulates for one input: the mean over inputs that left at these exits.

    Parameters
    ----------
    exits : EarlyExit
    input_shape : tuple of int
        Of one input, without the batch axis.
    left_at : (N,) ndarray of integers, N at least 1
        As `predict` gives it.

    Returns
    -------
    Fraction
        Exact.

    Raises
    ------
    CompressionError
        As `exit_macs`; or there is no input, or no such exit.

    Examples
    --------
    >>> from minicompress.nn.architectures import lenet5
    >>> from minicompress.early_exit.exits import attach_heads
    >>> exits = attach_heads(lenet5(np.random.default_rng(0)), (2,), (28, 28, 1))
    >>> exits = replace(exits, thresholds=(0.9,))
    >>> expected_macs(exits, (28, 28, 1), np.array([0, 0, 1]))
    Fraction(2955400, 3)
    """
    costs = exit_macs(exits, input_shape)
    left_at = integer_array(left_at, "left_at")
    if left_at.ndim != 1 or left_at.size == 0:
        raise CompressionError(f"left_at must hold the exit of each input, not {left_at!r}")
    for index in (left_at.min(), left_at.max()):
        as_int(index, "left_at", 0, len(costs) - 1)
    counts = np.bincount(left_at, minlength=len(costs)).tolist()
    return Fraction(sum(n * cost for n, cost in zip(counts, costs)), left_at.size)


def exit_curve(exits: EarlyExit, x: Array, y: Array, *, points: int = 50) -> tuple[ExitPoint, ...]:
    """Accuracy against multiplications, as one threshold for all heads goes down.

    Parameters
    ----------
    exits : EarlyExit
        Its own thresholds do not matter.
    x : (N, ...) ndarray, N at least 1
    y : (N,) ndarray of integers
        The classes.
    points : int, at least 2
        At most so many; they stand evenly in the order of the confidences seen.

    Returns
    -------
    tuple of ExitPoint
        From the network as it is, where nobody leaves, to where all leave at the first head.

    Raises
    ------
    CompressionError
        As `predict` and `exit_macs`; or data do not fit each other.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.network import Sequential
    >>> segment = Sequential((Dense(np.eye(2)),))
    >>> exits = EarlyExit((segment, segment), (segment,), (math.inf,))
    >>> x, y = np.array([[0.0, 2.0], [1.0, 0.0]]), np.array([1, 1])
    >>> for point in exit_curve(exits, x, y):
    ...     print(f"{point.threshold:.2f}  {point.accuracy:.0%}  {point.macs}")
    inf  50%  8
    0.81  50%  10
    0.37  50%  8
    """
    seen = _seen(exits, x, y)
    plain = max(int(seen.segments[-1]), 1)  # a network without a weight costs nothing
    curve = []
    for threshold in _shared(seen, as_int(points, "points", 2)):
        hits, macs = _outcome(seen, np.full(len(exits.heads), threshold))
        mean = Fraction(macs, seen.inputs)
        curve.append(ExitPoint(threshold, hits / seen.inputs, mean, float(mean / plain)))
    return tuple(curve)


def choose_thresholds(
    exits: EarlyExit,
    x: Array,
    y: Array,
    *,
    min_accuracy: float | None = None,
    max_macs: float | Fraction | None = None,
) -> EarlyExit:
    """The thresholds that save most at an accuracy, or are right most often within a budget.

    Parameters
    ----------
    exits : EarlyExit
        Its own thresholds do not matter.
    x : (N, ...) ndarray, N at least 1
        Validation images, which neither network nor heads were trained with.
    y : (N,) ndarray of integers
        Their classes.
    min_accuracy : float from 0 to 1
        The least accuracy: the fewest MACs are looked for.
    max_macs : int, float or Fraction
        The most multiply-accumulates for one input, in the mean: the best accuracy is looked for.
        Exactly one of the two is given.

    Returns
    -------
    EarlyExit
        With other thresholds. On these data, with every exit's logits as `exit_logits` computes
        them, it keeps what was asked for. On others it need not: leave a margin.

    Raises
    ------
    CompressionError
        Both or none of the two are given, none that was found keeps it (the message says what can
        be had), or as `exit_curve`.

    Notes
    -----
    A threshold stands halfway between two confidences that were seen, so that rounding moves nobody
    across. With one head the choice is the best there is. With more, all share a threshold at
    first, then one at a time is put where it is best for the others as they are, until nothing is
    gained; and the same from where nobody leaves. A head that does not pay ends at ``math.inf``.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.network import Sequential
    >>> first = Sequential((Dense(np.eye(2)),))
    >>> second = Sequential((*first.layers, *first.layers, Dense(np.diag([1.0, 4.0]))))
    >>> exits = EarlyExit((first, second), (first,), (math.inf,))
    >>> x, y = np.array([[0.0, 3.0], [2.0, 1.0]]), np.array([1, 1])
    >>> chosen = choose_thresholds(exits, x, y, min_accuracy=1.0)
    >>> round(chosen.thresholds[0], 4)  # only the end is right about [2, 1]: it may not leave
    0.8418
    """
    wanted = exactly_one(min_accuracy=min_accuracy, max_macs=max_macs)
    seen = _seen(exits, x, y)
    if wanted == "min_accuracy":
        least = as_float(min_accuracy, "min_accuracy", 0.0, 1.0)
        goal = next(hits for hits in range(seen.inputs + 1) if hits / seen.inputs >= least)
    else:
        assert max_macs is not None  # as it was given
        if not isinstance(max_macs, Rational):
            max_macs = as_float(max_macs, "max_macs", 0.0)
        goal = math.floor(Fraction(max_macs) * seen.inputs)

    def rank(hits: Array, macs: Array) -> tuple[Array, Array, Array]:
        if wanted == "min_accuracy":
            return np.minimum(hits, goal), -macs, hits
        return -np.maximum(macs, goal), hits, -macs

    best = _best(seen, rank)
    hits, macs = _outcome(seen, best)
    if wanted == "min_accuracy" and hits < goal:
        raise CompressionError(
            f"min_accuracy must be at most {hits / seen.inputs}, the best of these exits on these "
            f"data, not {min_accuracy}"
        )
    if wanted == "max_macs" and macs > goal:
        raise CompressionError(
            f"max_macs must be at least {macs / seen.inputs:.1f}, the fewest of these exits, "
            f"not {max_macs}"
        )
    return replace(exits, thresholds=tuple(best.tolist()))


@dataclass(frozen=True)
class _Seen:
    """What there is to know of the data: for each head, exit and input."""

    sure: Array  # (heads, N): confidences
    right: Array  # (exits, N): 1 where the exit's answer is right
    segments: Array  # (exits,): MACs of the segments up to there
    heads: Array  # (heads,): MACs of each

    @property
    def inputs(self) -> int:
        return len(self.right[0])


def _seen(exits: EarlyExit, x: Array, y: Array) -> _Seen:
    checked(exits)
    x, y = float_array(x, "x"), integer_array(y, "y")
    if x.ndim < 1 or y.shape != x.shape[:1] or len(x) == 0:
        raise CompressionError(
            f"y must hold one label for each of at least one row of x, not be of shape {y.shape} "
            f"for {x.shape}"
        )
    logits = exit_logits(exits, x)
    sure = [confidence(logits[:, i], exits.criterion) for i in range(len(exits.heads))]
    return _Seen(
        np.array(sure).reshape(-1, len(x)),
        (logits.argmax(2) == y[:, None]).T.astype(np.int64),
        *_macs(exits, x.shape[1:]),
    )


def _macs(exits: EarlyExit, input_shape: Shape) -> tuple[Array, Array]:
    """Of the segments up to each exit, and of each head."""
    segments, heads, shape = [], [], input_shape
    for i, segment in enumerate(exits.segments):
        segments.append(_macs_of(segment, f"segments[{i}]", shape))
        shape = output_shape(segment, shape)
        if i < len(exits.heads):
            heads.append(_macs_of(exits.heads[i], f"heads[{i}]", shape))
    return np.cumsum(segments, dtype=np.int64), np.array(heads, np.int64)


def _macs_of(part: Sequential, name: str, input_shape: Shape) -> int:
    try:
        return summary(part, input_shape).macs
    except CompressionError as error:
        raise CompressionError(f"{name}: {error}") from error


def _spent(segments: Array, heads: Array, thresholds: Array) -> Array:
    """MACs of an input that leaves at each exit; heads that nobody leaves at are not run."""
    passed = np.cumsum(np.where(thresholds == NEVER, 0, heads), dtype=np.int64)
    spent: Array = segments + np.append(passed, passed[-1:].sum())
    return spent


def _leaving(seen: _Seen, thresholds: Array) -> Array:
    """The exit of each input: the first whose head is confident enough, or the last."""
    fires = np.vstack([seen.sure >= thresholds[:, None], np.ones((1, seen.inputs), bool)])
    exit_of: Array = fires.argmax(0)
    return exit_of


def _outcome(seen: _Seen, thresholds: Array) -> tuple[int, int]:
    """Right answers and MACs, of all inputs together."""
    exit_of = _leaving(seen, thresholds)
    hits = seen.right[exit_of, np.arange(seen.inputs)].sum()
    return int(hits), int(_spent(seen.segments, seen.heads, thresholds)[exit_of].sum())


def _ranked(rank: Rank, hits: int, macs: int) -> tuple[int, ...]:
    return tuple(int(part) for part in rank(np.array(hits), np.array(macs)))


def _shared(seen: _Seen, points: int) -> list[float]:
    """Thresholds for all heads alike: nobody leaves, then ever more do, then all that can."""
    levels = np.unique(seen.sure)[::-1]
    places = np.unique(np.linspace(0, len(levels), points).astype(int))
    return [_above(levels, int(k)) for k in places]


def _above(levels: Array, count: int) -> float:
    """A threshold that the first `count` of these falling confidences reach, and no other."""
    if count == 0:
        return NEVER
    last, following = float(levels[count - 1]), float(levels[count]) if count < len(levels) else 0.0
    between = (last + following) / 2
    return between if between > following else last  # two neighbours have nothing between them


def _best(seen: _Seen, rank: Rank) -> Array:
    """The best thresholds found from two starts: the best that all can share, and none at all."""

    def value(thresholds: Array) -> tuple[int, ...]:
        return _ranked(rank, *_outcome(seen, thresholds))

    heads = len(seen.heads)
    shared = max((np.full(heads, t) for t in _shared(seen, SHARED)), key=value)
    starts = (shared, np.full(heads, NEVER))
    return max((_improved(seen, rank, start) for start in starts), key=value)


def _improved(seen: _Seen, rank: Rank, thresholds: Array) -> Array:
    """One threshold after the other at its best, until a round gains nothing."""
    while True:
        before = _ranked(rank, *_outcome(seen, thresholds))
        for i in range(len(thresholds)):
            thresholds = _swept(seen, rank, thresholds, i)
        if _ranked(rank, *_outcome(seen, thresholds)) <= before:
            return thresholds


def _swept(seen: _Seen, rank: Rank, thresholds: Array, head: int) -> Array:
    """The best threshold of one head among all there are, with the others as they are."""
    without = np.where(np.arange(len(thresholds)) == head, NEVER, thresholds)
    onward = _leaving(seen, without)
    costs = _spent(seen.segments, seen.heads, without)
    arrived = np.flatnonzero(onward > head)
    arrived = arrived[np.argsort(-seen.sure[head, arrived], kind="stable")]
    levels, onward_there = seen.sure[head, arrived], onward[arrived]
    # What changes when the first, the first two, ... of those who arrive leave here.
    more_hits = np.cumsum(seen.right[head, arrived] - seen.right[onward_there, arrived])
    more_macs = np.cumsum(costs[head] - costs[onward_there]) + seen.heads[head] * len(arrived)
    hits, macs = _outcome(seen, without)
    # Equal confidences leave together.
    may_end = np.append(levels[:-1] > levels[1:], True)[: len(levels)]
    counts = np.append(0, np.flatnonzero(may_end) + 1)
    first, second, third = rank(
        hits + np.append(0, more_hits)[counts], macs + np.append(0, more_macs)[counts]
    )
    best = int(counts[np.lexsort((third, second, first))[-1]])
    return np.where(np.arange(len(thresholds)) == head, _above(levels, best), thresholds)
