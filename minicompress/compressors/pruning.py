"""Pruning: keep the entries that matter, set the others to zero.

The whole algorithm (S. Han et al., *Learning both weights and connections for efficient neural
networks*, 2015): first select entries by score, then set them to zero.

>>> w = np.array([3.0, -1.0, 0.5, 4.0])
>>> dropped = np.argsort(np.abs(w), kind="stable")[:2]
>>> w[dropped] = 0
>>> w
array([3., 0., 0., 4.])

Counts are exact. Of equal scores the entry of lower C-order index is dropped first, so a constant
array loses as many entries as any other.
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
from minicompress.norms import NORMS, norm_of
from minicompress.representation import Compressed, Sparse, certified


def least(scores: Array, count: int) -> Array:
    """The C-order indices of the `count` least scores; equal ones in the order of their index."""
    return np.argsort(scores.reshape(-1), kind="stable")[:count]


def drop(w: Array, dropped: Array, kind: str) -> Compressed:
    """Drop the entries of these C-order indices, or of a mask; the bound is their norm."""
    keep = np.ones(w.size, bool)
    keep[dropped] = False
    kept = np.flatnonzero(keep)
    values = w.reshape(-1)[kept]
    rep = Sparse.trusted(shape=w.shape, indices=freeze(kept), values=freeze(values))
    return certified(w, rep, kind, dropped_norm(w, keep, kind))


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
        The fraction of all n entries to drop: ``round(amount * n)`` of them, halves to even.
        Entries that are zero already are counted among the dropped ones.
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
        `weight` is not finite, not exactly one of amount and count is given, it is out of range,
        or the scores have another shape.

    Notes
    -----
    The squared Frobenius error is the sum of the dropped squares. It is at most ``count / n`` of
    the sum of all squares, with equality if all magnitudes are equal. No other mask of that count
    is better.

    Examples
    --------
    >>> from minicompress.representation import decode
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
    """Keep the n entries of largest magnitude in every group of m neighbours.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite, at least 1-D
    n : int from 0 to m
        How many are kept in a group: "2:4" is ``n=2, m=4``.
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
        `weight` is not finite or has no axes, n, m or axis is out of range, or the scores have
        another shape.

    Notes
    -----
    With whole groups the squared Frobenius error is at most ``(m - n) / m`` of the sum of all
    squares, with equality if all magnitudes are equal. `prune_magnitude` at the same count is never
    worse.
    A. Mishra et al., *Accelerating sparse deep neural networks* (2021).

    Examples
    --------
    >>> from minicompress.representation import decode
    >>> rep, cert = prune_n_m(np.array([4.0, 1.0, -3.0, 2.0, 5.0, 5.0]), n=2, m=4, axis=0)
    >>> decode(rep).tolist(), round(cert.bound, 6)
    ([4.0, 0.0, -3.0, 0.0, 5.0, 5.0], 2.236068)
    """
    w = finite_array(weight, "weight")
    kind = choice(norm, "norm", NORMS)
    along = normal_axis(axis, "axis", w.ndim)
    as_int(n, "n", 0, as_int(m, "m", 1))
    longest = max(w.shape[along], 1)  # no group is longer than the axis
    n, m = min(n, longest), min(m, longest)
    # The last group is filled up with entries that are dropped first.
    lines = np.moveaxis(_scores(importance_scores, w), along, -1)
    missing = [(0, 0)] * (w.ndim - 1) + [(0, -w.shape[along] % m)]
    padded = np.pad(lines.astype(np.float64), missing, constant_values=-np.inf)
    order = np.argsort(padded.reshape(-1, m), axis=1, kind="stable")
    dropped = np.zeros(padded.shape, bool)
    np.put_along_axis(dropped.reshape(-1, m), order[:, : m - n], True, axis=1)
    mask = np.moveaxis(dropped[..., : w.shape[along]], -1, along)
    return drop(w, mask.reshape(-1), kind)


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
        The norm by which channels are compared: sum of magnitudes, root of the sum of squares, or
        largest magnitude.
    norm : "fro" | "spectral" | "max"
        Of the certificate.

    Returns
    -------
    rep : Sparse
        Dropped channels decode to +0.0; the others are kept bit for bit. Norms are computed and
        compared in float64. Of equal ones the channel of lower index is dropped first.
    cert : Certificate
        The norm of the dropped entries, rounded upward.

    Raises
    ------
    CompressionError
        `weight` is not finite or has no axes, not exactly one of amount and count is given, or an
        option is out of range.

    Notes
    -----
    The array keeps its shape. `minicompress.rewrite.remove_channels` makes a network smaller: it
    removes channels, their biases, and the weights that read them in the next layer. H. Li et al.,
    *Pruning filters for efficient ConvNets* (2017).

    Examples
    --------
    >>> from minicompress.representation import decode
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
        norms = [
            norm_of(x) if order == 2 else np.linalg.norm(x.ravel(), order)
            for x in np.moveaxis(w.astype(np.float64), along, 0)
        ]
    mask = np.zeros(w.shape, bool)
    np.moveaxis(mask, along, 0)[least(np.array(norms), dropped)] = True
    return drop(w, mask.reshape(-1), kind)


def prune_global(
    weights: Sequence[ArrayLike],
    *,
    amount: float | None = None,
    count: int | None = None,
    max_amount: float | Sequence[float] = 1.0,
    importance_scores: Sequence[ArrayLike] | None = None,
    norm: str = "fro",
) -> tuple[Compressed, ...]:
    """Drop the entries of least magnitude of several arrays taken together.

    Parameters
    ----------
    weights : sequence of ndarrays of float16, float32 or float64, finite
        Any shapes; their dtypes may differ.
    amount : float in [0, 1]
        The fraction of all n entries of all arrays: ``round(amount * n)``, halves to even.
    count : int from 0 to n
        How many to drop in all. Exactly one of amount and count is given.
    max_amount : float in [0, 1], or one for each array
        An array of k entries loses at most ``floor(max_amount * k)`` of them.
    importance_scores : sequence of ndarrays of the shapes of `weights`, optional
        Drop the entries of least score instead of least magnitude.
    norm : "fro" | "spectral" | "max"
        Of the certificates.

    Returns
    -------
    tuple of Compressed
        A `Sparse` and its certificate for each array, as of `prune_magnitude`. The number of
        dropped entries is exact: of equal ones those of the earlier array are dropped first, and in
        an array those of lower C-order index.

    Raises
    ------
    CompressionError
        An array is not finite, not exactly one of amount and count is given, an option is out of
        range, or `max_amount` leaves too few entries to drop.

    Examples
    --------
    >>> from minicompress.representation import decode
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
    one_for_all = not isinstance(max_amount, Sequence)
    most = _several([max_amount] * len(arrays) if one_for_all else max_amount, "max_amount", arrays)
    caps = [
        math.floor(as_float(cap, f"max_amount[{i}]", 0, 1) * w.size)
        for i, (w, cap) in enumerate(zip(arrays, most, strict=True))
    ]
    if dropped > sum(caps):
        raise CompressionError(
            f"max_amount must leave {dropped} entries to drop, not {sum(caps)} in all"
        )
    given = [None] * len(arrays)
    if importance_scores is not None:
        given = _several(importance_scores, "importance_scores", arrays)
    if not arrays:
        return ()
    scores = [_scores(s, w).astype(np.float64) for s, w in zip(given, arrays, strict=True)]
    candidates = [least(s, cap) for s, cap in zip(scores, caps)]
    ranked = np.concatenate([s.reshape(-1)[c] for s, c in zip(scores, candidates)])
    owner = np.repeat(np.arange(len(arrays)), caps)[least(ranked, dropped)]
    shares = np.bincount(owner, minlength=len(arrays))  # how many candidates each array loses
    parts = zip(arrays, candidates, shares, strict=True)
    return tuple(drop(w, indices[:share], kind) for w, indices, share in parts)


def _how_many(amount: float | None, count: int | None, size: int) -> int:
    """The number of entries to drop, by whichever of the two options is given."""
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


def _several(values: Any, name: str, arrays: list[Array] | None = None) -> list[Any]:
    """The members of a sequence, of which there must be one for each array."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise CompressionError(f"{name} must be a sequence of arrays, not {type(values).__name__}")
    if arrays is not None and len(values) != len(arrays):
        raise CompressionError(
            f"{name} must have {len(arrays)} entries, one for each array, not {len(values)}"
        )
    return list(values)
