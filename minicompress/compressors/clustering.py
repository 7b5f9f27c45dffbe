"""Clustering: every entry becomes one of a few values, a codebook (weight sharing).

The whole algorithm (S. Lloyd, *Least squares quantization in PCM*, 1982): every entry goes to the
nearest center, every center becomes the mean of its entries, and so on.

>>> w, centers = np.array([1.0, 2.0, 4.0, 9.0, 11.0]), np.array([1.0, 11.0])
>>> for _ in range(10):
...     codes = np.abs(w[:, None] - centers).argmin(axis=1)
...     centers = np.array([w[codes == k].mean() for k in range(len(centers))])
>>> codes.tolist(), [round(c, 3) for c in centers.tolist()]
([0, 0, 0, 1, 1], [2.333, 10.0])

In one dimension clusters are intervals. So the entries are sorted once here, and a clustering is
the list of the borders between its intervals. An iteration costs a binary search for each border
and one sum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from minicompress import arrays
from minicompress.arrays import Array, DType
from minicompress.compressors.bounds.clustering import clustering_bound
from minicompress.compressors.exact_clustering import exact_start
from minicompress.norms import NORMS, power_of_two_scaled
from minicompress.representation import Clustered, Compressed, certified

ROUNDS = 1000
"""The most iterations; an array of some thousand entries needs fewer until nothing changes."""


def linear_start(values: Array, limit: int, zero: bool) -> Array:
    """Evenly spaced values; where zeros are kept, the one nearest to 0.0 becomes 0.0."""
    start = np.linspace(values[0], values[-1], limit)
    if zero:
        start[np.argmin(np.abs(start))] = 0.0
    return start


def lloyd(x: Array, centers: Array, fixed: int | None, dtype: DType) -> tuple[Array, Array]:
    """Centers that are the means of their nearest entries, and the borders of their clusters.

    The center of index `fixed` does not move, nor does one without entries.
    """
    y, exponent = power_of_two_scaled(x)
    centers = arrays.cast_finite(centers, dtype).astype(np.float64)
    for _ in range(ROUNDS):
        borders = nearest(y, np.ldexp(centers, -exponent))
        used = np.diff(borders) > 0
        first, end = borders[:-1][used], borders[1:][used]
        means = np.ldexp(np.add.reduceat(y, first) / (end - first), exponent)
        moved = centers.copy()
        # The computed mean of equal floats can differ from them: it is clipped to the cluster.
        moved[used] = np.clip(arrays.cast_finite(means, dtype), x[first], x[end - 1])
        if fixed is not None:
            moved[fixed] = 0.0
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers, nearest(y, np.ldexp(centers, -exponent))


def nearest(y: Array, centers: Array) -> Array:
    """The borders of the intervals that are nearest to each center, exactly; ties go down.

    An entry is below the middle of two centers if twice the entry is below their sum. So it is
    compared with the sum as a float; D. Knuth's two-sum says whether that float is below the exact
    sum, which decides where they are equal. A rounded middle would be wrong at ties.
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
        An array with no more distinct values than this is not changed.
    method : "linear" | "exact"
        "linear": Lloyd's iterations, from values evenly spaced between the least and the largest
        entry, until nothing changes, at most 1,000. "exact": the codebook of least squared error,
        by dynamic programming, to within the rounding of its sums.
    preserve_sparsity : bool
        Zeros stay zeros: if there are any, 0.0 is one of the `n_clusters` values.
    norm : "fro" | "spectral" | "max"
        Of the certificate.

    Returns
    -------
    rep : Clustered
        The codebook has the dtype of `weight`, is increasing, and every value is in use. Every
        entry gets its nearest value, the lower of two equally near ones.
    cert : Certificate
        "fro": root of the within-cluster sum of squares, from the count, the sum and the sum of
        squares of each cluster. "max": the largest distance between a cluster's ends and its value.
        "spectral": the norm of the matrix of these distances, or the Frobenius bound if that is
        less. Rounded upward.

    Raises
    ------
    CompressionError
        `weight` is not finite, or an option is out of range.

    Notes
    -----
    The sum of squares is never above that of the start. Each value is the mean of its cluster,
    rounded to the dtype and clipped to the ends of the cluster. S. Lloyd, *Least squares
    quantization in PCM* (1982); S. Han, H. Mao and W. Dally, *Deep compression* (2016), for the
    linear start; `minicompress.compressors.exact_clustering` for the exact method.

    Examples
    --------
    >>> from minicompress.representation import decode
    >>> rep, cert = cluster(np.array([1.0, 2.0, 0.0, 9.0, 11.0]), n_clusters=3, method="exact")
    >>> decode(rep).tolist(), round(cert.bound, 6)
    ([1.5, 1.5, 0.0, 10.0, 10.0], 1.581139)
    """
    w = arrays.finite_array(weight, "weight")
    kind = arrays.choice(norm, "norm", NORMS)
    limit = arrays.as_int(n_clusters, "n_clusters", 1)
    exact = arrays.choice(method, "method", ("linear", "exact")) == "exact"
    flat = w.astype(np.float64).reshape(-1)
    order = np.argsort(flat, kind="stable")
    x = flat[order] + 0.0  # -0.0 becomes 0.0
    zero = arrays.flag(preserve_sparsity, "preserve_sparsity") and bool((x == 0).any())
    values, counts = np.unique(x, return_counts=True)
    if values.size <= limit:
        centers, borders = values, np.concatenate([[0], np.cumsum(counts)])
    else:
        y, exponent = power_of_two_scaled(values)
        start = exact_start(y, counts, limit, zero) if exact else linear_start(y, limit, zero)
        fixed = int(np.argmin(np.abs(start))) if zero else None
        centers, borders = lloyd(x, np.ldexp(start, exponent), fixed, w.dtype)
    sizes = np.diff(borders)
    used = sizes > 0
    centers, sizes = centers[used], sizes[used]
    codes: Array = np.empty(w.size, np.int64)
    codes[order] = np.repeat(np.arange(sizes.size), sizes)
    codes = codes.reshape(w.shape)
    rep = Clustered(arrays.freeze(codes), arrays.freeze(centers.astype(w.dtype)))
    bound = clustering_bound(x, centers, sizes, codes, kind)
    return certified(w, rep, kind, bound)
