"""Pruning: keep the entries that matter, drop the others to zero.

What to drop is chosen apart from dropping it, by the index of the sorted scores. So the counts are
exact: among equal scores the entry with the lower C-order index is dropped first, and a constant
array is pruned as far as any other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, choice, exactly_one, finite_array, freeze, integer, real
from minicompress.errors import CompressionError
from minicompress.norms import NORMS, as_matrix, error_norm, fro_upper, norm2_upper
from minicompress.representation import Certificate, Compressed, Sparse, decode


def prune_magnitude(
    weight: ArrayLike,
    *,
    amount: float | None = None,
    count: int | None = None,
    importance_scores: ArrayLike | None = None,
    norm: str = "fro",
) -> Compressed:
    """Drop the entries of least magnitude.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
        Any shape and layout; never written to.
    amount : float in [0, 1]
        The fraction of all n entries to drop: ``round(amount * n)`` of them, halves to even. Zeros
        that stand there already count among the dropped.
    count : int from 0 to n
        How many to drop. Exactly one of amount and count is given.
    importance_scores : ndarray of the shape of `weight`, optional
        Drop the entries of least score instead of least magnitude.
    norm : "fro" | "spectral" | "max"
        Of the certificate.

    Returns
    -------
    rep : Sparse
        The survivors, bit for bit; dropped entries decode to +0.0.
    cert : Certificate
        The norm of the dropped entries, rounded upward.

    Raises
    ------
    CompressionError
        `weight` is not finite, not exactly one of amount and count is given, or it is out of
        range; scores of another shape.

    Notes
    -----
    The squared Frobenius error is the sum of the dropped squares, at most ``count / n`` of the
    whole, with equality where all magnitudes are equal; no other mask of that count is better.
    S. Han, J. Pool, J. Tran and W. Dally, *Learning both weights and connections* (2015).

    Examples
    --------
    >>> rep, cert = prune_magnitude(np.array([3.0, -1.0, 0.5, 4.0]), amount=0.5)
    >>> decode(rep).tolist(), round(cert.bound, 6)
    ([3.0, 0.0, 0.0, 4.0], 1.118034)
    """
    w = finite_array(weight, "weight")
    kind = choice(norm, "norm", NORMS)
    if exactly_one(amount=amount, count=count) == "count":
        dropped = integer(count, "count", 0, w.size)
    else:
        dropped = round(real(amount, "amount", 0, 1) * w.size)
    scores = np.abs(w) if importance_scores is None else _scores(importance_scores, w)
    return drop(w, _least(scores, dropped), kind)


def drop(w: Array, indices: Array, kind: str) -> Compressed:
    """Drop the entries at these C-order indices; the certificate is the norm of what they held."""
    flat = w.reshape(-1)
    keep = np.ones(w.size, bool)
    keep[indices] = False
    kept = np.flatnonzero(keep)
    rep = Sparse(w.shape, freeze(kept), freeze(flat[kept]))
    lost = flat[indices]
    if kind == "fro":
        bound = fro_upper(lost)
    elif kind == "max":
        bound = float(np.abs(lost).max(initial=0))
    else:
        bound = norm2_upper(as_matrix(np.where(keep, 0, flat).reshape(w.shape).astype(w.dtype)))
    return Compressed(rep, Certificate(kind, bound, error_norm(w, decode(rep), kind)))


def _least(scores: Array, count: int) -> Array:
    """The C-order indices of the `count` least scores; equal ones in the order of their index."""
    return np.argsort(scores.reshape(-1), kind="stable")[:count]


def _scores(importance_scores: ArrayLike, w: Array) -> Array:
    scores = finite_array(importance_scores, "importance_scores")
    if scores.shape != w.shape:
        raise CompressionError(
            f"importance_scores must have the shape {w.shape} of weight, not {scores.shape}"
        )
    return scores
