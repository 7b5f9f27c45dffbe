"""Low rank for large matrices: a random sample finds the range, without a full SVD.

N. Halko, P.-G. Martinsson and J. Tropp, *Finding structure with randomness: probabilistic
algorithms for constructing approximate matrix decompositions* (2011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, as_int, choice, finite_array, generator
from minicompress.compressors.bounds.svd import product_bound, scaled_float64
from minicompress.compressors.svd import balanced_factors
from minicompress.norms import NORMS, svd_of
from minicompress.representation import Compressed, LowRank, certified


def sampled_range(a: Array, columns: int, iterations: int, rng: np.random.Generator) -> Array:
    """An orthonormal basis of almost the range of the largest singular values.

    ``(a a')**i a`` has the singular vectors of a, and its singular values decay faster. The columns
    are made orthonormal after every product. Otherwise rounding would destroy the small values.
    """
    q = _orthonormal(a @ rng.standard_normal((a.shape[1], columns)))
    for _ in range(iterations):
        q = _orthonormal(a @ _orthonormal(a.T @ q))
    return q


def randomized_svd(
    weight: ArrayLike,
    *,
    rank: int,
    rng: np.random.Generator,
    oversampling: int = 10,
    power_iterations: int = 4,
    norm: str = "fro",
) -> Compressed:
    """Factor a large matrix into a product of rank `rank` that is nearly its nearest.

    Parameters
    ----------
    weight : (m, n) ndarray of float16, float32 or float64, finite
        Only products of it with a few columns are formed.
    rank : int, 0 <= rank <= min(m, n)
    rng : numpy.random.Generator
    oversampling : int, at least 0
        The number of columns of the sample beyond `rank`.
    power_iterations : int, at least 0
        The number of products with ``a a'``; more of them give a smaller error.
    norm : "fro" | "spectral" | "max"
        Of the certificate.

    Returns
    -------
    rep : LowRank
        Factors (m, rank) and (rank, n), as of `truncated_svd`.
    cert : Certificate
        The dropped singular values are not known. So the bound is a posteriori: the norm of
        `weight` minus the product of the factors, with what rounding can add.

    Raises
    ------
    CompressionError
        `weight` is not 2-D or not finite, or an option is out of range.

    Notes
    -----
    Algorithm 4.4 of N. Halko et al. (2011).

    Examples
    --------
    >>> rep, cert = randomized_svd(np.diag([4.0, 3.0]), rank=1, rng=np.random.default_rng(0))
    >>> [f.shape for f in rep.factors], round(cert.bound, 6)
    ([(2, 1), (1, 2)], 3.0)
    """
    w, law = finite_array(weight, "weight", ndim=2), choice(norm, "norm", NORMS)
    kept = as_int(rank, "rank", 0, min(w.shape))
    columns = min(kept + as_int(oversampling, "oversampling", 0), *w.shape)
    iterations = as_int(power_iterations, "power_iterations", 0)
    a, exponent = scaled_float64(w)
    q = sampled_range(a, columns, iterations, generator(rng))
    inner = svd_of(q.T @ a)
    factors = balanced_factors(inner._replace(u=q @ inner.u), kept, exponent, w.dtype)
    bound = product_bound(a, exponent, factors, law, w.dtype)
    return certified(w, LowRank(factors, "ir,ro->io"), law, bound)


def _orthonormal(a: Array) -> Array:
    return np.linalg.qr(a)[0] if a.size else a
