"""Clustering of least squared error: dynamic programming over the sorted values.

X. Wu, *Optimal quantization by matrix searching* (1991). The best partition of the first j values
into k intervals is the best partition of the first i into k - 1 intervals and one from i to j:
``best[k][j] = min over i of best[k - 1][i] + squares(i, j)``. The squares about the mean come from
prefix sums, and the start i of the last interval is searched in a few places only.
"""

from __future__ import annotations

import numpy as np

from minicompress.arrays import Array


def exact_start(values: Array, counts: Array, limit: int, zero: bool) -> Array:
    """The centers of the partition into at most `limit` intervals of least sum of squares.

    `values` are increasing and distinct, `counts` says how often each occurs. If `zero`, 0.0 is one
    of the centers. Then each side of it is partitioned for every number of centers, and the best
    way to share the centers between the two sides is taken.
    """
    if not zero:
        _, splits = _partitions(values, counts, limit, False)
        return _means(values, counts, splits, len(splits))
    sides = []
    for sign in (-1, 1):
        inward = np.flatnonzero(sign * values > 0)[::sign]
        magnitudes, weights = np.abs(values[inward]), counts[inward]
        sides.append((magnitudes, weights, *_partitions(magnitudes, weights, limit - 1, True)))
    below, above = sides
    left = np.arange(len(below[2]))
    right = np.minimum(limit - 1 - left, len(above[2]) - 1)
    best = int(np.argmin(below[2] + above[2][right]))
    lower = _means(below[0], below[1], below[3], best)
    upper = _means(above[0], above[1], above[3], int(right[best]))
    return np.concatenate([-lower[::-1], [0.0], upper])


def _partitions(
    values: Array, counts: Array, limit: int, origin: bool
) -> tuple[Array, list[Array]]:
    """Least sums of squares of all values in at most 0, 1, ..., `limit` intervals, and the splits.

    ``least[j]`` is the least sum for the first j values, and ``splits[k][j]`` is where the last of
    k + 1 intervals begins then. With `origin` the first values may be in no interval; they belong
    to the center 0.0 and cost their squares.

    The start of the last interval never moves back when values are added (the quadrangle
    inequality). So the starts for two values j limit the start for the one in the middle. All the
    ranges of one halving together are not much longer than the array.
    """
    n = values.size
    centered = values - values[n // 2] if n else values
    prefix = [
        np.concatenate([[0.0], np.cumsum(counts * powers)])
        for powers in (np.ones(n), centered, centered**2)
    ]
    outside = np.cumsum(counts * values**2) if origin else np.full(n, np.inf)
    least = np.concatenate([[0.0], outside])
    totals, splits = [least[n]], []
    for _ in range(min(limit, n)):
        best, split = np.zeros(n + 1), np.zeros(n + 1, np.int32)
        stride = 1 << n.bit_length()
        while stride > 1:
            j = np.arange(stride // 2, n + 1, stride)
            low = split[j - stride // 2]
            beyond = j + stride // 2
            high = np.where(beyond <= n, split[np.minimum(beyond, n)], n)
            best[j], split[j] = _least_in_ranges(least, prefix, j, low, np.minimum(high, j))
            stride //= 2
        least = best
        totals.append(least[n])
        splits.append(split)
    return np.array(totals), splits


def _least_in_ranges(
    least: Array, prefix: list[Array], ends: Array, low: Array, high: Array
) -> tuple[Array, Array]:
    """For each end j the minimum over low <= i <= high of ``least[i] + squares from i to j``."""
    lengths = high - low + 1
    offsets = np.cumsum(lengths) - lengths
    i = np.arange(lengths.sum()) + np.repeat(low - offsets, lengths)
    count, total, square = (np.repeat(p[ends], lengths) - p[i] for p in prefix)
    costs = least[i] + np.maximum(square - total**2 / np.maximum(count, 1), 0)
    best = np.minimum.reduceat(costs, offsets)
    hits = np.flatnonzero(costs == np.repeat(best, lengths))
    return best, i[hits[np.searchsorted(hits, offsets)]]


def _means(values: Array, counts: Array, splits: list[Array], k: int) -> Array:
    """The means of the intervals of the best partition into at most k, increasing."""
    means, end = [], values.size
    for split in reversed(splits[:k]):
        start = int(split[end])
        if start < end:
            means.append(np.average(values[start:end], weights=counts[start:end]))
        end = start
    return np.array(means[::-1])
