"""The multiple-choice knapsack: of every group one item, the least cost within a limit.

Groups are layers, items the methods for one, and what is limited are bytes, say. Both numbers add.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from minicompress.arrays import Array

Item: TypeAlias = tuple[float, float]  # (weight, cost)
Front: TypeAlias = tuple[Array, Array]  # weights rising, costs falling


def best_picks(groups: Sequence[Sequence[Item]], limit: float) -> Iterator[tuple[int, ...]]:
    """All picks of one item from each group that keep the limit, the cheapest first.

    Parameters
    ----------
    groups : sequence of sequences of (weight, cost)
        Numbers of either sign; an item that costs infinitely much is never picked.
    limit : float
        Of the sum of the weights, which may reach it.

    Yields
    ------
    tuple of int
        For every group the index of its item. Sums of costs never fall from one pick to the next,
        and each pick comes once: stop when you have enough.

    Notes
    -----
    Exact where sums in float64 are, as for integers below 2**53. From the last group to the first,
    dynamic programming keeps the Pareto front of (weight, cost) of what the groups from there on
    can come to: a sum that is heavier and no cheaper than another is in no best pick. With fronts
    of F points and groups of C items that is O(F C log(F C)) a group; F is at most C**groups, and
    at most the number of different weights. A best-first search then goes from the first group to
    the last. The fronts tell it the least that a partial pick will cost in the end, so that it
    opens none that does not lead to the next best pick: O(groups C) steps for each.

    The fronts are after Nemhauser and Ullmann (1969).

    Examples
    --------
    >>> groups = [[(5, 0.0), (2, 1.0)], [(7, 0.0), (3, 0.5), (1, 3.0)]]
    >>> list(best_picks(groups, 8))
    [(0, 1), (1, 1), (0, 2), (1, 2)]
    """
    fronts = [(np.zeros(1), np.zeros(1))]
    for group in reversed(groups):
        fronts.append(_front(group, fronts[-1]))
    fronts.reverse()

    # What a partial pick costs in the end, weighs, and costs by now.
    waiting = [(_least(fronts[0], limit), 0.0, 0.0, tuple[int, ...]())]
    while waiting:
        end, weight, cost, picked = heapq.heappop(waiting)
        if end == np.inf:
            return
        depth = len(picked)
        if depth == len(groups):
            yield picked
            continue
        for j, (more_weight, more_cost) in enumerate(groups[depth]):
            w, c = weight + more_weight, cost + more_cost
            end = c + _least(fronts[depth + 1], limit - w)
            if end < np.inf:
                heapq.heappush(waiting, (end, w, c, (*picked, j)))


def _front(group: Sequence[Item], after: Front) -> Front:
    """The sums of an item and a point of the front behind it that no other sum dominates."""
    items = np.array(group, dtype=np.float64).reshape(-1, 2)
    weights, costs = _undominated(items[:, 0], items[:, 1])
    return _undominated(
        np.add.outer(weights, after[0]).ravel(), np.add.outer(costs, after[1]).ravel()
    )


def _undominated(weights: Array, costs: Array) -> Front:
    """Those that are cheaper than everything that is no heavier, by weight."""
    order = np.lexsort((costs, weights))
    weights, costs = weights[order], costs[order]
    cheapest_before = np.minimum.accumulate(np.concatenate([[np.inf], costs]))[:-1]
    kept = costs < cheapest_before
    return weights[kept], costs[kept]


def _least(front: Front, limit: float) -> float:
    """The least cost that a front has within a limit, or infinity."""
    place = int(np.searchsorted(front[0], limit, side="right"))
    return float(front[1][place - 1]) if place else np.inf
