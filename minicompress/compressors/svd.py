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
    as_float,
    as_int,
    cast_finite,
    choice,
    exactly_one,
    finite_array,
    freeze,
    generator,
)
from minicompress.errors import CompressionError
from minicompress.norms import (
    NORMS,
    UNIT,
    error_norm,
    fro_upper,
    gamma,
    norm_of,
    orthogonality_factor,
    power_of_two_scaled,
    smallest_subnormal,
    spectral_norm_upper,
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
    method: str = "exact",
    rng: np.random.Generator | None = None,
    oversampling: int | None = None,
    power_iterations: int | None = None,
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
    method : "exact" | "randomized"
        "randomized", for large matrices, sees `weight` only through products with a few columns;
        it takes `rank` alone.
    rng : numpy.random.Generator
        Needed by "randomized", and only there.
    oversampling, power_iterations : int, at least 0; 10 and 4 unless told
        Of "randomized": columns beyond `rank`, and rounds that sharpen the decay of the spectrum.
    norm : "fro" | "spectral" | "max"
        Of the certificate.

    Returns
    -------
    rep : LowRank
        Factors (m, rank) and (rank, n), read-only, each with the roots of the singular values.
    cert : Certificate
        In units of `weight`. Frobenius: root of the sum of the dropped squared singular values;
        spectral: the largest dropped one; max: the largest entry of the dropped triples' sum. With
        what rounding can add, and rounded upward. "randomized" knows no dropped singular values:
        there the bound is a posteriori, the norm of `weight` less the product of the factors, with
        what rounding can add.

    Raises
    ------
    CompressionError
        `weight` is not 2-D or not finite, not exactly one of rank, energy and max_params is given,
        one is out of range, or an option belongs to the other method.

    Notes
    -----
    No matrix of this rank is nearer in any unitarily invariant norm (Eckart and Young, 1936;
    Mirsky, 1960). "randomized" is algorithm 4.4 of N. Halko, P.-G. Martinsson and J. Tropp,
    *Finding structure with randomness* (2011), and comes near to that.

    Examples
    --------
    >>> rep, cert = truncated_svd(np.diag([4.0, 3.0, 2.0, 1.0]), rank=1)
    >>> [f.shape for f in rep.factors], round(cert.bound, 6)
    ([(4, 1), (1, 4)], 3.741657)
    """
    w = finite_array(weight, "weight", ndim=2)
    law = choice(norm, "norm", NORMS)
    options = {"rng": rng, "oversampling": oversampling, "power_iterations": power_iterations}
    if choice(method, "method", ("exact", "randomized")) == "randomized":
        if exactly_one(rank=rank, energy=energy, max_params=max_params) != "rank":
            raise CompressionError('method="randomized" takes rank=, not energy= or max_params=')
        kept = as_int(rank, "rank", 0, min(w.shape))
        extra = 10 if oversampling is None else as_int(oversampling, "oversampling", 0)
        rounds = 4 if power_iterations is None else as_int(power_iterations, "power_iterations", 0)
        factors, bound = _randomized(w, kept, generator(rng), extra, rounds, law)
    else:
        for name, value in options.items():
            if value is not None:
                raise CompressionError(f'{name} is an option of method="randomized"')
        factors, bound = _factor(w, law, rank, energy, max_params)
    return certified(w, factors, "ir,ro->io", norm, bound)


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
    return certified(w, factors, "hwir,ro->hwio", norm, bound)


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
    return certified(w, factors, "hir,rwo->hwio", norm, bound)


class Svd(NamedTuple):
    """Singular triples of a matrix in float64, and how far their product is from it."""

    u: Array
    s: Array
    vt: Array
    residual: float


def svd_of(a: Array) -> Svd:
    """The thin decomposition of a float64 matrix of ordinary magnitude."""
    if a.size == 0:
        m, n = a.shape
        return Svd(np.zeros((m, 0)), np.zeros(0), np.zeros((0, n)), 0.0)
    try:
        u, s, vt = scipy.linalg.svd(a, full_matrices=False, check_finite=False)
    except np.linalg.LinAlgError:  # the divide and conquer did not converge; this one does
        u, s, vt = scipy.linalg.svd(a, full_matrices=False, lapack_driver="gesvd")
    return Svd(u, s, vt, svd_residual(a, u, s, vt))


def scaled_float64(w: Array) -> tuple[Array, int]:
    """`power_of_two_scaled` in float64 and C order: BLAS sums other layouts in another order."""
    return power_of_two_scaled(np.array(w, np.float64, order="C"))


def dropped_squares(singular_values: Array) -> Array:
    """What each rank loses of the sum of squares, summed from the smallest on."""
    squares = singular_values.astype(np.float64) ** 2
    return np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])


def least_rank(singular_values: Array, energy: float) -> int:
    """The least rank that keeps a fraction of the sum of squares; 1.0 drops only squares of 0.0."""
    dropped = dropped_squares(singular_values)
    return int(np.argmax(dropped <= (1 - energy) * dropped[0]))


def certified(
    w: Array, factors: tuple[Array, ...], subscripts: str, kind: str, bound: float
) -> Compressed:
    """The representation of the factors, with its bound and with its error measured."""
    rep = LowRank(factors, subscripts)
    return Compressed(rep, Certificate(kind, bound, error_norm(w, decode(rep), kind)))


def _factor(
    matrix: Array, law: str, rank: int | None, energy: float | None, max_params: int | None
) -> tuple[tuple[Array, Array], float]:
    """The two factors of a matrix, and the bound of their product's error in the norm `law`."""
    given = exactly_one(rank=rank, energy=energy, max_params=max_params)
    m, n = matrix.shape
    if given == "rank":
        as_int(rank, "rank", 0, min(m, n))
    if given == "energy":
        as_float(energy, "energy", 0, 1)
    a, exponent = scaled_float64(matrix)
    svd = svd_of(a)
    if given == "energy":
        rank = least_rank(svd.s, float(energy or 0))
    elif given == "max_params":
        limit = as_int(max_params, "max_params", 0)
        rank = min(limit // (m + n), m, n) if m + n else 0
    kept = int(rank or 0)
    factors = _halves(svd.u[:, :kept], svd.s[:kept], svd.vt[:kept], exponent, matrix.dtype)
    return factors, _bound(svd, exponent, kept, law, matrix.dtype)


def _halves(u: Array, s: Array, vt: Array, exponent: int, dtype: DType) -> tuple[Array, Array]:
    """Two factors of the triples' product, each with the roots of the singular values."""
    roots = np.sqrt(s)
    # The power of two goes into both factors alike; an odd one is halved on the left.
    half = exponent // 2
    with np.errstate(under="ignore"):
        left = cast_finite(np.ldexp(u * roots, exponent - half), dtype)
        right = cast_finite(np.ldexp(roots[:, None] * vt, half), dtype)
    return freeze(left), freeze(right)


def _bound(svd: Svd, exponent: int, rank: int, law: str, dtype: DType) -> float:
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
    law = _unsaturated(law, product, exponent, dtype)
    if law == "max":
        sums = np.abs(u) @ (s[:, None] * np.abs(vt))
        dropped = float(np.abs((u * s) @ vt).max() + gamma(len(s) + 8) * sums.max())
    else:
        tail = norm_of(s) if law == "fro" else float(s.max(initial=0))
        dropped = orthogonality_factor(svd.u, svd.vt) * tail
    unit, eta = unit_roundoff(dtype), smallest_subnormal(dtype)
    rounding = (3 * unit * (1 + 4 * unit) + gamma(rank + 8)) * _size(product, law)
    scaled = unscaled_upper(
        upward(dropped + svd.residual + rounding, 4 * len(svd.s) + 64), exponent
    )
    m, n = svd.u.shape[0], svd.vt.shape[1]
    # ||L||_F**2 is the sum of the kept singular values, and so is ||R||_F**2.
    roots = math.sqrt(float(svd.s[:rank].sum())) * 2.0 ** ((exponent + 1) // 2)
    lost = roots * (math.sqrt(rank * n) + math.sqrt(rank * m)) + math.sqrt(m * n) * (1 + rank * eta)
    return upward(scaled + upward(lost) * eta)


def _randomized(
    matrix: Array, rank: int, rng: np.random.Generator, extra: int, rounds: int, law: str
) -> tuple[tuple[Array, Array], float]:
    """Two factors by way of a random sample of the range, and their bound a posteriori."""
    a, exponent = scaled_float64(matrix)
    m, n = a.shape
    width = min(rank + extra, m, n)
    q = _orthonormal(a @ rng.standard_normal((n, width)))
    for _ in range(rounds):  # q spans the range of (a a')**i a: the large values stand out more
        q = _orthonormal(a @ _orthonormal(a.T @ q))
    inner = svd_of(q.T @ a)
    u, s, vt = q @ inner.u[:, :rank], inner.s[:rank], inner.vt[:rank]
    factors = _halves(u, s, vt, exponent, matrix.dtype)
    return factors, _posterior_bound(a, exponent, factors, law, matrix.dtype)


def _orthonormal(a: Array) -> Array:
    """An orthonormal basis of the columns."""
    return np.linalg.qr(a)[0] if a.size else a


def _posterior_bound(
    a: Array, exponent: int, factors: tuple[Array, Array], law: str, dtype: DType
) -> float:
    """How far the product of two stored factors is from the scaled matrix, rounding included.

    Forming the product here, forming it again when decoding (gamma_(rank + 2) each) and rounding
    it to dtype (u, or eta where it is subnormal) is what a difference of floats does not show.
    """
    half = exponent // 2
    left = np.ldexp(factors[0].astype(np.float64), half - exponent)
    right = np.ldexp(factors[1].astype(np.float64), -half)
    difference, product = a - left @ right, np.abs(left) @ np.abs(right)
    law = _unsaturated(law, product, exponent, dtype)
    if law == "spectral":
        seen = spectral_norm_upper(difference)
    else:
        seen = fro_upper(difference) if law == "fro" else float(np.abs(difference).max(initial=0))
    rank, unit = left.shape[1], unit_roundoff(dtype)
    rounding = (unit + 2 * gamma(rank + 4)) * (1 + 4 * unit) * _size(product, law)
    rounding += 2 * UNIT * _size(a, law)
    scaled = unscaled_upper(upward(seen + rounding, 2 * (a.size + 8)), exponent)
    return upward(scaled + math.sqrt(a.size) * smallest_subnormal(dtype)) if a.any() else 0.0


def _unsaturated(law: str, product: Array, exponent: int, dtype: DType) -> str:
    """The law, or "fro": saturated entries come nearer to the original, but only one by one."""
    highest = unscaled(product.max(initial=0), exponent)
    return "fro" if law == "spectral" and highest >= float(np.finfo(dtype).max) else law


def _size(x: Array, law: str) -> float:
    """A norm that one known entry by entry bounds: largest magnitude, or Frobenius."""
    return float(np.abs(x).max(initial=0)) if law == "max" else norm_of(x)
