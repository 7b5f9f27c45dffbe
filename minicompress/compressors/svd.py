"""Low rank: a weight as a product of small factors, by the singular value decomposition.

The whole algorithm (C. Eckart and G. Young, *The approximation of one matrix by another of lower
rank*, 1936): decompose, and keep the largest singular values.

>>> w, rank = np.diag([4.0, 3.0, 2.0, 1.0]), 2
>>> u, s, vt = np.linalg.svd(w, full_matrices=False)
>>> left, right = u[:, :rank] * np.sqrt(s[:rank]), np.sqrt(s[:rank])[:, None] * vt[:rank]
>>> error = np.linalg.norm(w - left @ right)
>>> bool(np.isclose(error, np.sqrt(np.sum(s[rank:] ** 2))))
True

A kernel is first written as a matrix. The way it is written decides what convolutions its factors
are: `channel_svd`, `spatial_svd`.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minicompress import arrays
from minicompress.arrays import Array, DType
from minicompress.compressors.bounds.svd import scaled_float64, truncation_bound
from minicompress.errors import CompressionError
from minicompress.norms import NORMS, Svd, svd_of
from minicompress.representation import Compressed, LowRank, certified


def dropped_squares(singular_values: Array) -> Array:
    """For each rank the sum of the dropped squares, added up from the smallest."""
    squares = singular_values.astype(np.float64) ** 2
    return np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])


def least_rank(singular_values: Array, energy: float) -> int:
    """The least rank that keeps a fraction of the sum of squares; 1.0 drops nothing but zeros."""
    dropped = dropped_squares(singular_values)
    return int(np.argmax(dropped <= (1 - energy) * dropped[0]))


def truncated_svd(
    weight: ArrayLike,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_params: int | None = None,
    norm: str = "fro",
) -> Compressed:
    """Factor a matrix into its nearest product of rank at most `rank`.

    Parameters
    ----------
    weight : (m, n) ndarray of float16, float32 or float64, finite
        Any layout; never written to. m or n may be 0.
    rank : int, 0 <= rank <= min(m, n)
        Saves parameters only when ``rank * (m + n) < m * n``.
    energy : float in [0, 1]
        Take the least rank that keeps this fraction of the sum of the squared singular values.
    max_params : int, at least 0
        Take the largest rank whose ``rank * (m + n)`` parameters do not exceed this.
        Exactly one of rank, energy and max_params is given.
    norm : "fro" | "spectral" | "max"
        Of the certificate.

    Returns
    -------
    rep : LowRank
        Factors (m, rank) and (rank, n), read-only, each with the roots of the singular values.
    cert : Certificate
        "fro": root of the sum of the dropped squared singular values. "spectral": the largest
        dropped one. "max": the largest entry of the sum of the dropped triples. What rounding can
        add is included.

    Raises
    ------
    CompressionError
        `weight` is not 2-D or not finite, an option is out of range, or not exactly one of rank,
        energy and max_params is given.

    Notes
    -----
    No matrix of this rank is nearer in any unitarily invariant norm (C. Eckart and G. Young, 1936;
    L. Mirsky, 1960). For large matrices `randomized_svd` is faster and nearly as good.

    Examples
    --------
    >>> rep, cert = truncated_svd(np.diag([4.0, 3.0, 2.0, 1.0]), rank=1)
    >>> [f.shape for f in rep.factors], round(cert.bound, 6)
    ([(4, 1), (1, 4)], 3.741657)
    """
    w = arrays.finite_array(weight, "weight", ndim=2)
    return _factored(w, "ir,ro->io", norm, rank=rank, energy=energy, max_params=max_params)


def channel_svd(
    kernel: ArrayLike,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_params: int | None = None,
    norm: str = "fro",
) -> Compressed:
    """Factor a kernel into a kernel with `rank` outputs and a 1x1 convolution after it.

    Parameters
    ----------
    kernel : (kh, kw, in, out) ndarray of float16, float32 or float64, finite
    rank : int, 0 <= rank <= min(kh * kw * in, out)
    energy, max_params, norm
        As in `truncated_svd`, for the (kh kw in, out) matrix.

    Returns
    -------
    rep : LowRank
        Factors (kh, kw, in, rank) and (rank, out): ``rank * (kh * kw * in + out)`` parameters.
    cert : Certificate
        As of `truncated_svd`; "spectral" is that of the (kh kw in, out) matrix.

    Raises
    ------
    CompressionError
        As of `truncated_svd`, and `kernel` is not 4-D.

    Notes
    -----
    X. Zhang, J. Zou, K. He and J. Sun, *Accelerating very deep convolutional networks* (2015).

    Examples
    --------
    >>> rep, cert = channel_svd(np.ones((3, 3, 2, 5)), rank=1)
    >>> [f.shape for f in rep.factors], cert.bound < 1e-12
    ([(3, 3, 2, 1), (1, 5)], True)
    """
    w = arrays.finite_array(kernel, "kernel", ndim=4)
    return _factored(w, "hwir,ro->hwio", norm, rank=rank, energy=energy, max_params=max_params)


def spatial_svd(
    kernel: ArrayLike,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_params: int | None = None,
    norm: str = "fro",
) -> Compressed:
    """Factor a kernel into a vertical (kh, 1) convolution and a horizontal (1, kw) one.

    Parameters
    ----------
    kernel : (kh, kw, in, out) ndarray of float16, float32 or float64, finite
    rank : int, 0 <= rank <= min(kh * in, kw * out)
    energy, max_params, norm
        As in `truncated_svd`, for the (kh in, kw out) matrix.

    Returns
    -------
    rep : LowRank
        Factors (kh, in, rank) and (rank, kw, out): ``rank * (kh * in + kw * out)`` parameters.
    cert : Certificate
        As of `truncated_svd`. "spectral" is the norm of the kernel as a (kh kw in, out) matrix, and
        its bound is the Frobenius one.

    Raises
    ------
    CompressionError
        As of `truncated_svd`, and `kernel` is not 4-D.

    Notes
    -----
    M. Jaderberg, A. Vedaldi and A. Zisserman, *Speeding up convolutional neural networks with low
    rank expansions* (2014), scheme 2.

    Examples
    --------
    >>> rep, cert = spatial_svd(np.ones((3, 3, 2, 5)), rank=1)
    >>> [f.shape for f in rep.factors], cert.bound < 1e-12
    ([(3, 2, 1), (1, 3, 5)], True)
    """
    w = arrays.finite_array(kernel, "kernel", ndim=4)
    return _factored(w, "hir,rwo->hwio", norm, rank=rank, energy=energy, max_params=max_params)


def low_rank(
    weight: ArrayLike,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_params: int | None = None,
    norm: str = "fro",
) -> Compressed:
    """Factor the weight of a layer: a matrix by `truncated_svd`, a kernel by `channel_svd`.

    Parameters
    ----------
    weight : (in, out) or (kh, kw, in, out) ndarray of float16, float32 or float64, finite
    rank, energy, max_params, norm
        As in `truncated_svd`; exactly one of rank, energy and max_params is given.

    Returns
    -------
    rep : LowRank
    cert : Certificate

    Raises
    ------
    CompressionError
        As of `truncated_svd`, and `weight` has neither two nor four axes.

    Examples
    --------
    >>> [f.shape for f in low_rank(np.ones((3, 3, 2, 5)), rank=1).rep.factors]
    [(3, 3, 2, 1), (1, 5)]
    """
    w = arrays.finite_array(weight, "weight")
    if w.ndim not in (2, 4):
        raise CompressionError(
            f"weight must be (in, out) or (kh, kw, in, out), not of shape {w.shape}"
        )
    factor = truncated_svd if w.ndim == 2 else channel_svd
    return factor(w, rank=rank, energy=energy, max_params=max_params, norm=norm)


def _factored(w: Array, subscripts: str, norm: str, **size: Any) -> Compressed:
    """Factor an array as the matrix whose rows and columns are the axes of the two factors."""
    law, given = arrays.choice(norm, "norm", NORMS), arrays.exactly_one(**size)
    first, second, axes = re.split(",|->", subscripts)
    ordered = w.transpose([axes.index(letter) for letter in first[:-1] + second[1:]])
    rows, columns = ordered.shape[: len(first) - 1], ordered.shape[len(first) - 1 :]
    m, n = math.prod(rows), math.prod(columns)
    # Options are checked before the decomposition, which takes time.
    if given == "rank":
        kept = arrays.as_int(size["rank"], "rank", 0, min(m, n))
    elif given == "max_params":
        kept = min(arrays.as_int(size["max_params"], "max_params", 0) // max(m + n, 1), m, n)
    else:
        share = arrays.as_float(size["energy"], "energy", 0, 1)
    a, exponent = scaled_float64(ordered.reshape(m, n))
    svd = svd_of(a)
    if given == "energy":
        kept = least_rank(svd.s, share)
    left, right = balanced_factors(svd, kept, exponent, w.dtype)
    factors = (left.reshape(*rows, kept), right.reshape(kept, *columns))
    if law == "spectral" and len(columns) > 1:
        law = "fro"  # "spectral" means the norm of another matrix; only "fro" carries over
    bound = truncation_bound(svd, exponent, kept, law, w.dtype)
    return certified(w, LowRank(factors, subscripts), norm, bound)


def balanced_factors(svd: Svd, rank: int, exponent: int, dtype: DType) -> tuple[Array, Array]:
    """The factors of rank `rank`; each takes the square roots of the singular values.

    Half of the exponent goes into each; the left one takes the rest of an odd exponent.
    """
    roots, half = np.sqrt(svd.s[:rank]), exponent // 2
    left, right = svd.u[:, :rank] * roots, roots[:, None] * svd.vt[:rank]
    return stored(left, exponent - half, dtype), stored(right, half, dtype)


def stored(factor: Array, exponent: int, dtype: DType) -> Array:
    """A factor in `dtype`, multiplied by ``2**exponent``."""
    with np.errstate(under="ignore"):
        return arrays.freeze(arrays.cast_finite(np.ldexp(factor, exponent), dtype))
