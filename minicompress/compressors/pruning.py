"""Pruning: keep the entries that matter, drop the others to zero.

Two steps: sort the entries by score, then drop the first ones. So the counts are exact: of equal
scores the entry with the lower C-order index goes first, and a constant array is pruned as far as
any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import (
    Array,
    as_float,
    as_int,
    choice,
    exactly_one,
    finite_array,
    freeze,
    normal_axis,
)
from minicompress.compressors.bounds.pruning import dropped_norm
from minicompress.errors import CompressionError
from minicompress.norms import NORMS, error_norm, norm_of
from minicompress.representation import Certificate, Compressed, Sparse, decode


def least(scores: Array, count: int) -> Array:
    """The C-order indices of the `count` least scores; equal ones in the order of their index."""
    return np.argsort(scores.reshape(-1), kind="stable")[:count]


def drop(w: Array, indices: Array, kind: str) -> Compressed:
    """Drop the entries at these C-order indices; the certificate is the norm of what they held."""
    flat = w.reshape(-1)
    keep = np.ones(w.size, bool)
    keep[indices] = False
    kept = np.flatnonzero(keep)
    rep = Sparse(w.shape, freeze(kept), freeze(flat[kept]))
    bound = dropped_norm(w, keep, kind)
    return Compressed(rep, Certificate(kind, bound, error_norm(w, decode(rep), kind)))


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
    dropped = _how_many(amount, count, w.size)
    return drop(w, least(_scores(importance_scores, w), dropped), kind)


def prune_n_m(
    weight: ArrayLike,
    *,
    n: int,
    m: int,
    axis: int,
    importance_scores: ArrayLike | None = None,
    norm: str = "fro",
) -> Compressed:
    """Keep the n entries of largest magnitude of every m in a row.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite, at least 1-D
    n : int from 0 to m
        How many are kept: "2:4" is ``n=2, m=4``.
    m : int, at least 1
    axis : int
        The axis along which the groups lie. A shorter last group of g entries keeps min(n, g).
    importance_scores : ndarray of the shape of `weight`, optional
        Keep the entries of largest score instead of largest magnitude.
    norm : "fro" | "spectral" | "max"
        Of the certificate.

    Returns
    -------
    rep : Sparse
        The survivors, bit for bit. Of equal ones in a group the first along `axis` is dropped.
    cert : Certificate
        The norm of the dropped entries, rounded upward.

    Raises
    ------
    CompressionError
        `weight` is not finite or has no axes, n, m or axis is out of range, scores of another
        shape.

    Notes
    -----
    With whole groups the squared Frobenius error is at most ``(m - n) / m`` of the whole, with
    equality where all magnitudes are equal; `prune_magnitude` at the same count is never worse.
    A. Mishra et al., *Accelerating sparse deep neural networks* (2021).

    Examples
    --------
    >>> rep, cert = prune_n_m(np.array([4.0, 1.0, -3.0, 2.0, 5.0, 5.0]), n=2, m=4, axis=0)
    >>> decode(rep).tolist(), round(cert.bound, 6)
    ([4.0, 0.0, -3.0, 0.0, 5.0, 5.0], 2.236068)
    """
    w = finite_array(weight, "weight")
    kind = choice(norm, "norm", NORMS)
    along = normal_axis(axis, "axis", w.ndim)
    as_int(n, "n", 0, as_int(m, "m", 1))
    longest = max(w.shape[along], 1)  # what of a group is beyond the axis is not there anyway
    n, m = min(n, longest), min(m, longest)
    # Whole groups, by what is dropped before anything else and stands nowhere.
    missing = [(0, 0)] * (w.ndim - 1) + [(0, -w.shape[along] % m)]

    def grouped(x: Array, filler: float) -> Array:
        lines = np.pad(np.moveaxis(x, along, -1), missing, constant_values=filler)
        return lines.reshape(-1, m)

    scores = grouped(_scores(importance_scores, w).astype(np.float64), -np.inf)
    places = grouped(np.arange(w.size).reshape(w.shape), -1)
    least = np.argsort(scores, axis=1, kind="stable")[:, : m - n]
    dropped = np.take_along_axis(places, least, axis=1).ravel()
    return drop(w, np.sort(dropped[dropped >= 0]), kind)


def prune_channels(
    weight: ArrayLike,
    *,
    amount: float | None = None,
    count: int | None = None,
    axis: int,
    order: float = 2,
    norm: str = "fro",
) -> Compressed:
    """Drop whole channels: the slices of least norm along an axis.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite, at least 1-D
    amount : float in [0, 1]
        The fraction of all n channels to drop: ``round(amount * n)`` of them, halves to even, but
        never the last one: at most n - 1.
    count : int from 0 to n - 1
        How many to drop. Exactly one of amount and count is given.
    axis : int
        The axis whose indices are the channels: -1 for the outputs of a layer.
    order : 1, 2 or numpy.inf
        Of the norm by which channels are compared: sum of magnitudes, root of the sum of squares,
        largest magnitude.
    norm : "fro" | "spectral" | "max"
        Of the certificate.

    Returns
    -------
    rep : Sparse
        Dropped channels decode to +0.0, the others are there bit for bit. Norms are compared in
        float64, as they are rounded; of equal ones the channel of lower index is dropped first.
    cert : Certificate
        The norm of the dropped entries, rounded upward.

    Raises
    ------
    CompressionError
        `weight` is not finite or has no axes, not exactly one of amount and count is given, or an
        option is out of range.

    Notes
    -----
    The array keeps its shape. That a network gets smaller takes the removal of the channels, with
    their biases and with what reads them in the next layer. H. Li et al., *Pruning filters for
    efficient ConvNets* (2017).

    Examples
    --------
    >>> w = np.array([[3.0, 0.5, 1.0], [4.0, 0.5, 2.0]])
    >>> decode(prune_channels(w, count=1, axis=1).rep).tolist()
    [[3.0, 0.0, 1.0], [4.0, 0.0, 2.0]]
    """
    w = finite_array(weight, "weight")
    kind = choice(norm, "norm", NORMS)
    along = normal_axis(axis, "axis", w.ndim)
    if isinstance(order, bool | np.bool_ | np.ndarray) or order not in (1, 2, math.inf):
        raise CompressionError(f"order must be 1, 2 or numpy.inf, not {order!r}")
    channels = w.shape[along]
    most = max(channels - 1, 0)
    if count is not None:
        as_int(count, f"count, which must leave one of {channels} channels,", 0, most)
    dropped = min(_how_many(amount, count, channels), most)
    with np.errstate(over="ignore"):
        norms = [_channel_norm(x, order) for x in np.moveaxis(w.astype(np.float64), along, 0)]
    gone = np.isin(np.arange(channels), least(np.array(norms), dropped))
    spread = gone.reshape([-1 if i == along else 1 for i in range(w.ndim)])
    return drop(w, np.flatnonzero(np.broadcast_to(spread, w.shape)), kind)


def prune_global(
    weights: Sequence[ArrayLike],
    *,
    amount: float | None = None,
    count: int | None = None,
    max_amount: float | Sequence[float] = 1.0,
    importance_scores: Sequence[ArrayLike] | None = None,
    norm: str = "fro",
) -> tuple[Compressed, ...]:
    """Drop the entries of least magnitude of several arrays, whichever array they stand in.

    Parameters
    ----------
    weights : sequence of ndarrays of float16, float32 or float64, finite
        Of any shapes; their dtypes may differ.
    amount : float in [0, 1]
        The fraction of all n entries of all arrays: ``round(amount * n)``, halves to even.
    count : int from 0 to n
        How many to drop in all. Exactly one of amount and count is given.
    max_amount : float in [0, 1], or one for each array
        No array of k entries loses more than ``floor(max_amount * k)``.
    importance_scores : sequence of ndarrays of the shapes of `weights`, optional
        Drop the entries of least score instead of least magnitude.
    norm : "fro" | "spectral" | "max"
        Of the certificates.

    Returns
    -------
    tuple of Compressed
        A `Sparse` and its certificate for each array, as of `prune_magnitude`. The number of
        dropped entries is exact: of equal ones those of the earlier array go first, and in an array
        those of lower C-order index.

    Raises
    ------
    CompressionError
        An array is not finite, not exactly one of amount and count is given, an option is out of
        range, or the caps leave too few entries to drop.

    Examples
    --------
    >>> one, other = prune_global([np.array([1.0, 5.0, 2.0]), np.array([3.0, 4.0])], count=3)
    >>> decode(one.rep).tolist(), decode(other.rep).tolist()
    ([0.0, 5.0, 0.0], [0.0, 4.0])
    >>> one, other = prune_global([np.ones(4), 9 * np.ones(4)], amount=0.5, max_amount=0.75)
    >>> decode(one.rep).tolist(), decode(other.rep).tolist()
    ([0.0, 0.0, 0.0, 1.0], [0.0, 9.0, 9.0, 9.0])
    """
    arrays = [finite_array(w, f"weights[{i}]") for i, w in enumerate(_several(weights, "weights"))]
    kind = choice(norm, "norm", NORMS)
    dropped = _how_many(amount, count, sum(w.size for w in arrays))
    caps = [
        math.floor(as_float(cap, f"max_amount[{i}]", 0, 1) * w.size)
        for i, (w, cap) in enumerate(zip(arrays, _one_each(max_amount, len(arrays)), strict=True))
    ]
    if dropped > sum(caps):
        raise CompressionError(
            f"max_amount must leave {dropped} entries to drop, not {sum(caps)} in all"
        )
    given = _several(importance_scores, "importance_scores", len(arrays))
    scores = [_scores(s, w).astype(np.float64) for s, w in zip(given, arrays, strict=True)]
    candidates = [least(s, cap) for s, cap in zip(scores, caps, strict=True)]
    if not arrays:
        return ()
    ranked = np.concatenate([s.reshape(-1)[c] for s, c in zip(scores, candidates, strict=True)])
    owner = np.repeat(np.arange(len(arrays)), caps)[least(ranked, dropped)]
    shares = np.bincount(owner, minlength=len(arrays))  # of each array its first so many go
    return tuple(
        drop(w, np.sort(c[:share]), kind)
        for w, c, share in zip(arrays, candidates, shares, strict=True)
    )


def _channel_norm(x: Array, order: float) -> float:
    return norm_of(x) if order == 2 else float(np.linalg.norm(x.ravel(), order))


def _how_many(amount: float | None, count: int | None, size: int) -> int:
    """The number that is meant by the one of the two options that is given."""
    if exactly_one(amount=amount, count=count) == "count":
        return as_int(count, "count", 0, size)
    return round(as_float(amount, "amount", 0, 1) * size)


def _scores(importance_scores: ArrayLike | None, w: Array) -> Array:
    if importance_scores is None:
        return np.abs(w)
    scores = finite_array(importance_scores, "importance_scores")
    if scores.shape != w.shape:
        raise CompressionError(
            f"importance_scores must have the shape {w.shape} of weight, not {scores.shape}"
        )
    return scores


def _several(values: Any, name: str, length: int | None = None) -> list[Any]:
    """The members of a sequence; None stands for as many of itself as there should be."""
    if values is None and length is not None:
        return [None] * length
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise CompressionError(f"{name} must be a sequence of arrays, not {type(values).__name__}")
    if length is not None and len(values) != length:
        raise CompressionError(
            f"{name} must have {length} entries, one for each array, not {len(values)}"
        )
    return list(values)


def _one_each(value: Any, length: int) -> list[Any]:
    """One option for each array, where one for all may be given."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return _several(value, "max_amount", length) if several else [value] * length
