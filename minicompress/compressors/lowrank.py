"""Low rank: a weight as a product of small factors, by the singular value decomposition."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from minicompress.arrays import (
    Array,
    DType,
    cast_finite,
    choice,
    exactly_one,
    finite_array,
    freeze,
    integer,
    real,
)
from minicompress.norms import (
    NORMS,
    error_norm,
    gamma,
    norm_of,
    orthogonality_factor,
    power_of_two_scaled,
    smallest_subnormal,
    svd_residual,
    unit_roundoff,
    unscaled,
    unscaled_upper,
    upward,
)
from minicompress.representation import Certificate, Compressed, LowRank, decode


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
        In units of `weight`. Frobenius: root of the sum of the dropped squared singular values;
        spectral: the largest dropped one; max: the largest entry that the dropped part can have by
        Cauchy and Schwarz. With what rounding can add, and rounded upward.

    Raises
    ------
    CompressionError
        `weight` is not 2-D or not finite, not exactly one of the options is given, or it is out of
        range.

    Notes
    -----
    No matrix of this rank is nearer in any unitarily invariant norm (Eckart and Young, 1936;
    Mirsky, 1960).

    Examples
    --------
    >>> rep, cert = truncated_svd(np.diag([4.0, 3.0, 2.0, 1.0]), rank=1)
    >>> [f.shape for f in rep.factors], round(cert.bound, 6)
    ([(4, 1), (1, 4)], 3.741657)
    """
    w = finite_array(weight, "weight", ndim=2)
    factors, bound = _factor(w, choice(norm, "norm", NORMS), rank, energy, max_params)
    return _certified(w, factors, "ir,ro->io", norm, bound)


def channel_svd(
    kernel: ArrayLike,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_params: int | None = None,
    norm: str = "fro",
) -> Compressed:
    """Factor a kernel into one of `rank` outputs and a 1x1 convolution behind it.

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
    w = finite_array(kernel, "kernel", ndim=4)
    kh, kw, inputs, outputs = w.shape
    matrix = w.reshape(kh * kw * inputs, outputs)
    (left, right), bound = _factor(matrix, choice(norm, "norm", NORMS), rank, energy, max_params)
    factors = (left.reshape(kh, kw, inputs, left.shape[1]), right)
    return _certified(w, factors, "hwir,ro->hwio", norm, bound)


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
        As of `truncated_svd`. "spectral" is in the norm of the kernel as a (kh kw in, out) matrix,
        for which the Frobenius bound serves.

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
    w = finite_array(kernel, "kernel", ndim=4)
    kh, kw, inputs, outputs = w.shape
    matrix = w.transpose(0, 2, 1, 3).reshape(kh * inputs, kw * outputs)
    # Another matricization than the one that "spectral" speaks of: only "fro" carries over.
    law = "fro" if choice(norm, "norm", NORMS) == "spectral" else norm
    (left, right), bound = _factor(matrix, law, rank, energy, max_params)
    factors = (left.reshape(kh, inputs, left.shape[1]), right.reshape(right.shape[0], kw, outputs))
    return _certified(w, factors, "hir,rwo->hwio", norm, bound)


class _Svd(NamedTuple):
    """Factors of ``a * 2**-exponent`` in float64, and how far they are from it."""

    u: Array
    s: Array
    vt: Array
    exponent: int
    residual: float


def _factor(
    matrix: Array, law: str, rank: int | None, energy: float | None, max_params: int | None
) -> tuple[tuple[Array, Array], float]:
    """The two factors of a matrix, and the bound of their product's error in the norm `law`."""
    given = exactly_one(rank=rank, energy=energy, max_params=max_params)
    m, n = matrix.shape
    if given == "rank":
        integer(rank, "rank", 0, min(m, n))
    if given == "energy":
        real(energy, "energy", 0, 1)
    svd = _svd(matrix)
    if given == "energy":
        rank = least_rank(svd.s, float(energy or 0))
    elif given == "max_params":
        limit = integer(max_params, "max_params", 0)
        rank = min(limit // (m + n), m, n) if m + n else 0
    kept = int(rank or 0)
    roots = np.sqrt(svd.s[:kept])
    left, right = svd.u[:, :kept] * roots, roots[:, None] * svd.vt[:kept]
    # The power of two goes into both factors alike; an odd one is halved on the left.
    half = svd.exponent // 2
    with np.errstate(under="ignore"):
        left = cast_finite(np.ldexp(left, svd.exponent - half), matrix.dtype)
        right = cast_finite(np.ldexp(right, half), matrix.dtype)
    return (freeze(left), freeze(right)), _bound(svd, kept, law, matrix.dtype)


def _svd(matrix: Array) -> _Svd:
    a, exponent = power_of_two_scaled(matrix.astype(np.float64))
    if a.size == 0:
        m, n = a.shape
        return _Svd(np.zeros((m, 0)), np.zeros(0), np.zeros((0, n)), 0, 0.0)
    try:
        u, s, vt = scipy.linalg.svd(a, full_matrices=False, check_finite=False)
    except np.linalg.LinAlgError:  # the divide and conquer did not converge; this one does
        u, s, vt = scipy.linalg.svd(a, full_matrices=False, lapack_driver="gesvd")
    return _Svd(u, s, vt, exponent, svd_residual(a, u, s, vt))


def least_rank(singular_values: Array, energy: float) -> int:
    """The least rank that keeps a fraction of the sum of squares; all of it drops only zeros."""
    squares = singular_values.astype(np.float64) ** 2
    # dropped[r]: what rank r loses, summed from the smallest on, where the order matters most
    dropped = np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])
    return int(np.argmax(dropped <= (1 - energy) * dropped[0]))


def _bound(svd: _Svd, rank: int, law: str, dtype: DType) -> float:
    """The law's error of the dropped triples, and what computing and storing the rest can add.

    W = U S V + E with ||E||_F <= residual. The kept triples become L and R by a root, a product
    and a cast; the product of L and R is formed in float64 and rounded to dtype once. Entry by
    entry that is at most 3 u of dtype and gamma_(rank + 8) of float64, relative to |U| S |V|, and
    where numbers are subnormal one eta for each entry of L, of R and of their product.
    """
    if svd.s.max(initial=0) == 0:
        return 0.0
    u, s, vt = svd.u[:, rank:], svd.s[rank:], svd.vt[rank:]
    product = np.abs(svd.u[:, :rank] * svd.s[:rank]) @ np.abs(svd.vt[:rank])
    highest = unscaled(product.max(initial=0), svd.exponent)
    if law == "spectral" and highest >= float(np.finfo(dtype).max):
        law = "fro"  # saturated entries come nearer to the original, but only one by one
    if law == "max":
        rows, columns = np.sqrt((u * u) @ s), np.sqrt(s @ (vt * vt))
        dropped = float(rows.max(initial=0) * columns.max(initial=0))
    else:
        tail = norm_of(s) if law == "fro" else float(s.max(initial=0))
        dropped = orthogonality_factor(svd.u, svd.vt) * tail
    unit, eta = unit_roundoff(dtype), smallest_subnormal(dtype)
    rounding = (3 * unit * (1 + 4 * unit) + gamma(rank + 8)) * norm_of(product)
    scaled = unscaled_upper(
        upward(dropped + svd.residual + rounding, 4 * len(svd.s) + 64), svd.exponent
    )
    m, n = svd.u.shape[0], svd.vt.shape[1]
    # ||L||_F**2 is the sum of the kept singular values, and so is ||R||_F**2.
    roots = math.sqrt(float(svd.s[:rank].sum())) * 2.0 ** ((svd.exponent + 1) // 2)
    lost = roots * (math.sqrt(rank * n) + math.sqrt(rank * m)) + math.sqrt(m * n) * (1 + rank * eta)
    return upward(scaled + upward(lost) * eta)


def _certified(
    w: Array, factors: tuple[Array, ...], subscripts: str, kind: str, bound: float
) -> Compressed:
    rep = LowRank(factors, subscripts)
    return Compressed(rep, Certificate(kind, bound, error_norm(w, decode(rep), kind)))
