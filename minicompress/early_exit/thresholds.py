"""Thresholds of an `EarlyExit`: what they save, what they cost, and how to choose them.

Everything is counted on given data, in integers: right answers, and multiply-accumulates (MACs).
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
from minicompress.errors import CompressionError, naming
from minicompress.nn.layers import Shape
from minicompress.nn.network import output_shape

# The search begins with the best of this many thresholds that all heads share.
SHARED = 200

# The rank of choices by their right answers and MACs: three integers, compared in order.
Rank: TypeAlias = Callable[[Array, Array], tuple[Array, Array, Array]]


class ExitPoint(NamedTuple):
    """A point of `exit_curve`.

    Parameters
    ----------
    threshold : float
        The threshold of every head.
    accuracy : float
        The fraction of right answers.
    macs : Fraction
        Multiply-accumulates for one input, the mean over all inputs.
    share : float
        `macs` as a fraction of the network's without heads.
    """

    threshold: float
    accuracy: float
    macs: Fraction
    share: float


def exit_macs(exits: EarlyExit, input_shape: Shape) -> tuple[int, ...]:
    """Multiply-accumulates for an input that leaves at each exit.

    Parameters
    ----------
    exits : EarlyExit
    input_shape : tuple of int
        The shape of one input, without the batch axis.

    Returns
    -------
    tuple of int
        For each exit the MACs of the segments and heads up to it. A head whose threshold is
        ``math.inf`` is not run and costs nothing.

    Raises
    ------
    CompressionError
        As for `summary`.

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
    """Mean multiply-accumulates for one input, for inputs that left at the given exits.

    Parameters
    ----------
    exits : EarlyExit
    input_shape : tuple of int
        The shape of one input, without the batch axis.
    left_at : (N,) ndarray of integers, N at least 1
        The exits, as `predict` returns them.

    Returns
    -------
    Fraction
        Exact.

    Raises
    ------
    CompressionError
        As for `exit_macs`; or there is no input, or no such exit.

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
    """Accuracy against multiply-accumulates, as one threshold for all heads goes down.

    Parameters
    ----------
    exits : EarlyExit
        Its own thresholds do not matter.
    x : (N, ...) ndarray, N at least 1
    y : (N,) ndarray of integers
        The classes.
    points : int, at least 2
        The largest number of points. They are spread evenly over the sorted confidences.

    Returns
    -------
    tuple of ExitPoint
        The first point is the network itself, where no input leaves early; at the last, all inputs
        leave at the first head.

    Raises
    ------
    CompressionError
        As for `predict` and `exit_macs`; or `x` and `y` do not fit each other.

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
    """Choose the thresholds with the fewest MACs for an accuracy, or the best within a budget.

    Parameters
    ----------
    exits : EarlyExit
        Its own thresholds do not matter.
    x : (N, ...) ndarray, N at least 1
        Validation data, which were not used to train network or heads.
    y : (N,) ndarray of integers
        The classes.
    min_accuracy : float from 0 to 1
        The least accuracy, for which the fewest MACs are searched.
    max_macs : int, float or Fraction
        The largest mean of MACs for one input, for which the best accuracy is searched. Give
        exactly one of the two.

    Returns
    -------
    EarlyExit
        With other thresholds. They keep the accuracy or the budget on these data, with the logits
        of `exit_logits`. On other data they may miss it: leave a margin.

    Raises
    ------
    CompressionError
        Both or none of the two are given. No thresholds that were found keep it; the message says
        what is possible. Or as for `exit_curve`.

    Notes
    -----
    A threshold is halfway between two confidences of the data, so rounding does not change who
    leaves. With one head the choice is optimal. With more heads this is a coordinate search: one
    threshold at a time is set to its best value while the others are fixed, until nothing
    improves. It starts twice: from the best threshold that all heads can share, and from
    ``math.inf`` for all. A head that does not pay ends at ``math.inf``.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.network import Sequential
    >>> first = Sequential((Dense(np.eye(2)),))
    >>> second = Sequential((*first.layers, *first.layers, Dense(np.diag([1.0, 4.0]))))
    >>> exits = EarlyExit((first, second), (first,), (math.inf,))
    >>> x, y = np.array([[0.0, 3.0], [2.0, 1.0]]), np.array([1, 1])
    >>> chosen = choose_thresholds(exits, x, y, min_accuracy=1.0)
    >>> round(chosen.thresholds[0], 4)  # at the head, [2, 1] is wrong
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
    """All that the search needs of the data, for each head, exit and input."""

    sure: Array  # (heads, N): confidences
    right: Array  # (exits, N): 1 where the exit's answer is right
    segments: Array  # (exits,): MACs of the segments up to each exit
    heads: Array  # (heads,): MACs of each head

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
    """MACs of the segments up to each exit, and of each head."""
    segments, heads, shape = [], [], input_shape
    for i, segment in enumerate(exits.segments):
        with naming(f"segments[{i}]"):
            segments.append(summary(segment, shape).macs)
        shape = output_shape(segment, shape)
        if i < len(exits.heads):
            with naming(f"heads[{i}]"):
                heads.append(summary(exits.heads[i], shape).macs)
    return np.cumsum(segments, dtype=np.int64), np.array(heads, np.int64)


def _spent(segments: Array, heads: Array, thresholds: Array) -> Array:
    """MACs of an input that leaves at each exit; heads with an infinite threshold are not run."""
    passed = np.cumsum(np.where(thresholds == NEVER, 0, heads), dtype=np.int64)
    spent: Array = segments + np.append(passed, passed[-1:].sum())
    return spent


def _leaving(seen: _Seen, thresholds: Array) -> Array:
    """The exit of each input: the first whose head is confident enough, or the last."""
    fires = np.vstack([seen.sure >= thresholds[:, None], np.ones((1, seen.inputs), bool)])
    exit_of: Array = fires.argmax(0)
    return exit_of


def _outcome(seen: _Seen, thresholds: Array) -> tuple[int, int]:
    """Right answers and MACs of all inputs together."""
    exit_of = _leaving(seen, thresholds)
    hits = seen.right[exit_of, np.arange(seen.inputs)].sum()
    return int(hits), int(_spent(seen.segments, seen.heads, thresholds)[exit_of].sum())


def _shared(seen: _Seen, points: int) -> list[float]:
    """Falling thresholds to share among all heads: from no input that leaves to all."""
    levels = np.unique(seen.sure)[::-1]
    places = np.unique(np.linspace(0, len(levels), points).astype(int))
    return [_above(levels, int(k)) for k in places]


def _above(levels: Array, count: int) -> float:
    """A threshold that exactly the first `count` of these falling confidences reach."""
    if count == 0:
        return NEVER
    last, following = float(levels[count - 1]), float(levels[count]) if count < len(levels) else 0.0
    between = (last + following) / 2
    return between if between > following else last  # there may be no float in between


def _best(seen: _Seen, rank: Rank) -> Array:
    """The best of two searches: from the best shared threshold, and from infinite ones.

    Each sets one threshold after the other to its best value, until a round improves nothing.
    """

    def value(thresholds: Array) -> tuple[int, ...]:
        parts = rank(*map(np.array, _outcome(seen, thresholds)))
        return tuple(map(int, parts))

    heads = len(seen.heads)
    shared = max((np.full(heads, t) for t in _shared(seen, SHARED)), key=value)
    found = []
    for thresholds in (shared, np.full(heads, NEVER)):
        before = None
        while before is None or value(thresholds) > before:
            before = value(thresholds)
            for i in range(heads):
                thresholds = _swept(seen, rank, thresholds, i)
        found.append(thresholds)
    return max(found, key=value)


def _swept(seen: _Seen, rank: Rank, thresholds: Array, head: int) -> Array:
    """Set the threshold of one head to its best value, with the others fixed."""
    without = np.where(np.arange(len(thresholds)) == head, NEVER, thresholds)
    onward = _leaving(seen, without)
    costs = _spent(seen.segments, seen.heads, without)
    arrived = np.flatnonzero(onward > head)
    arrived = arrived[np.argsort(-seen.sure[head, arrived], kind="stable")]
    levels, onward_there = seen.sure[head, arrived], onward[arrived]
    # The changes if the first, the first two, ... of the inputs that arrive leave at this head.
    more_hits = np.cumsum(seen.right[head, arrived] - seen.right[onward_there, arrived])
    more_macs = np.cumsum(costs[head] - costs[onward_there]) + seen.heads[head] * len(arrived)
    hits, macs = _outcome(seen, without)
    # Inputs of equal confidence leave together.
    counts = np.append(0, np.cumsum(np.unique(-levels, return_counts=True)[1]))
    first, second, third = rank(
        hits + np.append(0, more_hits)[counts], macs + np.append(0, more_macs)[counts]
    )
    best = int(counts[np.lexsort((third, second, first))[-1]])
    return np.where(np.arange(len(thresholds)) == head, _above(levels, best), thresholds)
