"""Norms that neither under- nor overflow, and upper bounds of them that survive rounding.

Everything is computed in float64. A plain ``sqrt(sum(x**2))`` of numbers near 1e200 is inf, and of
numbers near 1e-200 it is 0.0. So an array is first scaled by a power of two, which is exact. The
result of a function whose name ends in ``_upper`` is rounded upward: it is never below the exact
value, and above it by a few units in the last place.

Source: N. J. Higham, *Accuracy and Stability of Numerical Algorithms* (2002), chapters 3 and 4,
for gamma_n and the error of a sum in any order.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from minicompress.arrays import Array, DType, choice, finite_array

NORMS = ("fro", "spectral", "max")

UNIT = 2.0**-53
"""The unit roundoff of float64."""


def unit_roundoff(dtype: DType) -> float:
    """u: one correctly rounded operation errs by at most u times its result."""
    return float(np.finfo(dtype).eps) / 2


def smallest_subnormal(dtype: DType) -> float:
    """eta: what rounding can lose below the normal range."""
    return float(np.finfo(dtype).smallest_subnormal)


def gamma(n: int) -> float:
    """gamma_n = n u / (1 - n u): the relative error of n roundings of float64 in a row."""
    return n * UNIT / (1 - n * UNIT)


def upward(value: float, roundings: int = 64) -> float:
    """A float above the exact value of a sum of non-negative terms that took `roundings` steps."""
    return 0.0 if value == 0 else float(np.nextafter(value * (1 + roundings * UNIT), np.inf))


def as_matrix(array: Array) -> Array:
    """The matrix of which "spectral" is the 2-norm: the last axis of the array is its columns."""
    if array.size == 0:
        return np.zeros((0, 0), array.dtype)
    return array.reshape(-1, array.shape[-1] if array.ndim else 1)


def norm_of(array: Array, kind: str = "fro") -> float:
    """The norm of an array of any shape, in float64, rounded to nearest.

    Parameters
    ----------
    array : ndarray of float16, float32 or float64, finite
    kind : "fro" | "spectral" | "max"
        Root of the sum of squares; largest singular value of `as_matrix`; largest magnitude.

    Returns
    -------
    float
        inf only where the norm itself is above the largest float64.

    Examples
    --------
    >>> norm_of(np.full(4, 3e200)), norm_of(np.full(4, 3e-200))
    (6e+200, 6e-200)
    """
    x = array.astype(np.float64)
    if kind == "max" or x.size == 0:
        return float(np.abs(x).max(initial=0.0))
    scaled, exponent = power_of_two_scaled(x)
    if kind == "fro":
        flat = scaled.ravel()
        return unscaled(math.sqrt(float(flat @ flat)), exponent)
    values = _lapack_svd(as_matrix(scaled), compute_uv=False)
    return unscaled(float(values[0]), exponent)


def error_norm(original: Array, decoded: Array, kind: str = "fro") -> float:
    """The norm of ``original - decoded``, which a certificate calls measured.

    Raises
    ------
    CompressionError
        `kind` is unknown.
    """
    choice(kind, "norm", NORMS)
    with np.errstate(over="ignore"):
        difference = original.astype(np.float64) - decoded.astype(np.float64)
    if np.isfinite(difference).all():
        return norm_of(difference, kind)
    halves = original.astype(np.float64) / 2 - decoded.astype(np.float64) / 2
    return unscaled(norm_of(halves, kind), 1)


def norm_upper(array: Array, kind: str) -> float:
    """An upper bound of the norm of a finite array: `norm_of`, rounded upward."""
    if kind == "spectral":
        return spectral_norm_upper(as_matrix(array))
    return fro_upper(array) if kind == "fro" else norm_of(array, "max")


def fro_upper(array: Array) -> float:
    """An upper bound of the Frobenius norm of a finite array.

    The n squares and their sum, in any order, have an error of at most gamma_(n+1). The root and
    the scaling add a few u. The factor 1 + 2 (n + 8) u covers all of it twice, so the bound is also
    above a norm that is *computed* from the same numbers.
    """
    return upward(norm_of(array), 2 * (array.size + 8))


def spectral_norm_upper(matrix: ArrayLike) -> float:
    """An upper bound of the largest singular value of a matrix, sound under rounding.

    Parameters
    ----------
    matrix : (m, n) ndarray of float16, float32 or float64, finite
        m or n may be 0.

    Returns
    -------
    float
        Never below the exact 2-norm of the matrix, and above it by some (m + n) u.

    Raises
    ------
    CompressionError
        `matrix` is not 2-D or not finite.

    Notes
    -----
    LAPACK promises no constant for the error of its singular values, and its largest one is often
    below the true one. So nothing is assumed about the computed U, S and V. Let A = U S V + R. The
    residual R is computed, and so is how far U and V are from orthogonal. Then
    ``||A|| <= sqrt((1 + o_U) (1 + o_V)) s_1 + ||R||_F + gamma_(k+4) || |US| |V| ||_F + u ||A||_F``
    with ``o_U = ||U'U - I||_F + gamma_(m+4) k``. The Frobenius norm is an upper bound too, and
    exact for a single row or column. The smaller of the two is returned.

    Examples
    --------
    >>> 12.0 <= spectral_norm_upper(np.ones((16, 9))) < 12.0 * (1 + 1e-13)
    True
    """
    a = finite_array(matrix, "matrix", ndim=2).astype(np.float64)
    scaled, exponent = power_of_two_scaled(a)
    frobenius = fro_upper(scaled)
    if min(a.shape) <= 1 or frobenius == 0:
        return unscaled_upper(frobenius, exponent)
    svd = svd_of(scaled)
    spectral = upward(orthogonality_factor(svd.u, svd.vt) * float(svd.s[0]) + svd.residual)
    return unscaled_upper(min(frobenius, spectral), exponent)


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
    u, s, vt = _lapack_svd(a, full_matrices=False)
    return Svd(u, s, vt, svd_residual(a, u, s, vt))


def _lapack_svd(a: Array, **options: bool) -> Any:
    try:
        return scipy.linalg.svd(a, check_finite=False, **options)
    except np.linalg.LinAlgError:  # divide and conquer did not converge; QR iteration does
        return scipy.linalg.svd(a, lapack_driver="gesvd", **options)


def orthogonality_factor(u: Array, vt: Array) -> float:
    """sqrt((1 + o_U) (1 + o_V)): for computed U and V, ``||U X V|| <= factor ||X||``."""
    (m, k), n = u.shape, vt.shape[1]
    off_u = norm_of(u.T @ u - np.eye(k)) + gamma(m + 4) * k
    off_v = norm_of(vt @ vt.T - np.eye(k)) + gamma(n + 4) * k
    return upward(math.sqrt((1 + off_u) * (1 + off_v)), 8)


def svd_residual(a: Array, u: Array, s: Array, vt: Array) -> float:
    """An upper bound of ||A - U S V||_F for the exact product of the computed factors."""
    us = u * s
    rounding = gamma(len(s) + 4) * norm_of(np.abs(us) @ np.abs(vt)) + UNIT * norm_of(a)
    return upward(fro_upper(a - us @ vt) + rounding, 2 * (a.size + 8))


def power_of_two_scaled(x: Array) -> tuple[Array, int]:
    """``x / 2**exponent``, whose largest magnitude is in [1/2, 1), and the exponent."""
    exponent = int(np.frexp(np.abs(x).max(initial=0.0))[1])
    with np.errstate(under="ignore"):  # lost: less than 2**-1074 of the largest entry
        return np.ldexp(x, -exponent), exponent


def unscaled(value: float, exponent: int) -> float:
    """``value * 2**exponent``, rounded to nearest; inf where it overflows."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.ldexp(value, exponent))


def unscaled_upper(value: float, exponent: int) -> float:
    """``value * 2**exponent``, rounded upward where the result is subnormal; exact elsewhere."""
    result = unscaled(value, exponent)
    with np.errstate(over="ignore", under="ignore"):
        return upward(result, 0) if float(np.ldexp(result, -exponent)) < value else result
