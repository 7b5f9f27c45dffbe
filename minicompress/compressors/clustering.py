"""Clustering: every entry becomes one of a few values, a codebook (weight sharing).

In one dimension clusters are intervals. So the entries are sorted once, and a clustering is the
list of the borders between its intervals: each of Lloyd's iterations costs a binary search for each
border and one sum, and the best clustering of all can be found by dynamic programming.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import (
    Array,
    DType,
    as_int,
    cast_finite,
    choice,
    finite_array,
    flag,
    freeze,
)
from minicompress.compressors.bounds.clustering import clustering_bound
from minicompress.norms import (
    NORMS,
    error_norm,
    power_of_two_scaled,
)
from minicompress.representation import Certificate, Clustered, Compressed, decode

ROUNDS = 1000
"""Lloyd's iterations at most; an array of some thousand entries takes fewer to come to rest."""


def linear_start(values: Array, limit: int, zero: bool) -> Array:
    """Evenly spaced values; where zeros are kept, the one nearest to 0.0 moves there."""
    start = np.linspace(values[0], values[-1], limit)
    if zero:
        start[np.argmin(np.abs(start))] = 0.0
    return start


def lloyd(x: Array, centers: Array, fixed: int | None, dtype: DType) -> tuple[Array, Array]:
    """Centers that are the means of what is nearest to them, and the borders between those.

    The center of index `fixed` stays. One that nothing is nearest to stays too, until something is.
    """
    y, exponent = power_of_two_scaled(x)
    centers = cast_finite(centers, dtype).astype(np.float64)
    for _ in range(ROUNDS):
        borders = nearest(y, np.ldexp(centers, -exponent))
        used = np.diff(borders) > 0
        first, end = borders[:-1][used], borders[1:][used]
        means = np.ldexp(np.add.reduceat(y, first) / (end - first), exponent)
        moved = centers.copy()
        # The mean of equal floats can differ from them: the ends of the cluster hold it.
        moved[used] = np.clip(cast_finite(means, dtype), x[first], x[end - 1])
        if fixed is not None:
            moved[fixed] = 0.0
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers, nearest(y, np.ldexp(centers, -exponent))


def nearest(y: Array, centers: Array) -> Array:
    """The borders of the intervals that are nearest to each center, exactly; ties go down.

    An entry is below the middle of two centers where twice the entry is below their sum, that is
    below the sum as a float, or equal to it where the float lies below the sum (D. Knuth's
    two-sum tells). A comparison with a rounded middle would err at ties.
    """
    low, high = centers[:-1], centers[1:]
    total = low + high
    part = total - low
    below = (low - (total - part)) + (high - part) >= 0
    ends = [np.searchsorted(2 * y, total, side) for side in ("right", "left")]
    return np.concatenate([[0], np.where(below, *ends), [y.size]])


def cluster(
    weight: ArrayLike,
    *,
    n_clusters: int,
    method: str = "linear",
    preserve_sparsity: bool = True,
    norm: str = "fro",
) -> Compressed:
    """Let every entry be one of at most `n_clusters` values.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
        Any shape and layout; never written to.
    n_clusters : int, at least 1
        An array of no more distinct values than this comes back as it is.
    method : "linear" | "exact"
        "linear": from values evenly spaced between the least and the largest entry by Lloyd's
        iterations, until nothing changes or 1,000 of them. "exact": the codebook of least squared
        error of all, by dynamic programming, to within the rounding of its sums.
    preserve_sparsity : bool
        Zeros stay zeros: where there are any, 0.0 is one of the `n_clusters` values.
    norm : "fro" | "spectral" | "max"
        Of the certificate.

    Returns
    -------
    rep : Clustered
        The codebook in the dtype of `weight`, increasing, every value in use; every entry has the
        value nearest to it, of two equally near ones the lower.
    cert : Certificate
        Frobenius: root of the within-cluster sum of squares, from each cluster's count, sum and sum
        of squares. max: the largest distance of a cluster's ends from its value. spectral: of the
        matrix of these distances, unless the Frobenius bound is less. Rounded upward.

    Raises
    ------
    CompressionError
        `weight` is not finite, or an option is out of range.

    Notes
    -----
    The sum of squares is never above that of the start. Each value is the mean of its cluster,
    rounded to the dtype and kept between the ends of the cluster, which the mean of equal floats
    may leave.
    S. Lloyd, *Least squares quantization in PCM* (1982); S. Han, H. Mao and W. Dally, *Deep
    compression* (2016), for the linear start; X. Wu, *Optimal quantization by matrix searching*
    (1991), for the exact method.

    Examples
    --------
    >>> rep, cert = cluster(np.array([1.0, 2.0, 0.0, 9.0, 11.0]), n_clusters=3, method="exact")
    >>> decode(rep).tolist(), round(cert.bound, 6)
    ([1.5, 1.5, 0.0, 10.0, 10.0], 1.581139)
    """
    w = finite_array(weight, "weight")
    kind = choice(norm, "norm", NORMS)
    limit = as_int(n_clusters, "n_clusters", 1)
    exact = choice(method, "method", ("linear", "exact")) == "exact"
    flat = w.astype(np.float64).reshape(-1)
    order = np.argsort(flat, kind="stable")
    x = flat[order] + 0.0  # -0.0 becomes 0.0
    zero = flag(preserve_sparsity, "preserve_sparsity") and bool((x == 0).any())
    values, counts = np.unique(x, return_counts=True)
    if values.size <= limit:
        centers, borders = values, np.concatenate([[0], np.cumsum(counts)])
    else:
        y, exponent = power_of_two_scaled(values)
        start = _exact_start(y, counts, limit, zero) if exact else linear_start(y, limit, zero)
        fixed = int(np.argmin(np.abs(start))) if zero else None
        centers, borders = lloyd(x, np.ldexp(start, exponent), fixed, w.dtype)
    sizes = np.diff(borders)
    used = sizes > 0
    centers, sizes = centers[used], sizes[used]
    codes: Array = np.empty(w.size, np.int64)
    codes[order] = np.repeat(np.arange(sizes.size), sizes)
    codes = codes.reshape(w.shape)
    rep = Clustered(freeze(codes), freeze(centers.astype(w.dtype)))
    bound = clustering_bound(x, centers, sizes, codes, kind)
    return Compressed(rep, Certificate(kind, bound, error_norm(w, decode(rep), kind)))


def _exact_start(values: Array, counts: Array, limit: int, zero: bool) -> Array:
    """The centers of the partition into intervals that has the least sum of squares.

    With 0.0 as a center of its own, the entries on either side are partitioned by themselves, those
    nearest to zero left to it, and the other centers are shared out between the sides.
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

    ``least[j]`` is that of the first j values, and ``splits[k][j]`` where the last of k + 1
    intervals begins then. With `origin` the first values can stay outside of all intervals, and
    cost their squares; else they cannot.

    The start of the last interval never moves back when values are added (the quadrangle
    inequality). So it is found for every second j once it is known for the ones between which they
    lie, in ranges that together are no longer than the array, and so on, halving the distance.
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
    """For each end j the least ``least[i] + (sum of squares from i to j)`` of low <= i <= high."""
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
