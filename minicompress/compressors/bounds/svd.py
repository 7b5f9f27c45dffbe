"""Low rank: how far a product of truncated factors can be from the matrix.

In exact arithmetic the dropped singular values give the error (C. Eckart and G. Young, 1936).
LAPACK promises no constant for the error of its results. So nothing is assumed about the computed
triples: how far their product is from the matrix is computed, and so is how far U and V are from
orthogonal.
"""

from __future__ import annotations

import math

import numpy as np

from minicompress import norms
from minicompress.arrays import Array, DType
from minicompress.norms import UNIT, Svd


def scaled_float64(w: Array) -> tuple[Array, int]:
    """`power_of_two_scaled` in float64 and C order, since BLAS sums depend on the layout."""
    return norms.power_of_two_scaled(np.array(w, np.float64, order="C"))


def truncation_bound(svd: Svd, exponent: int, rank: int, law: str, dtype: DType) -> float:
    """The norm of the dropped triples, and what computing and storing the rest can add.

    W = U S V + E with ||E||_F <= residual. The kept triples become L and R by a root, a product
    and a cast. The product of L and R is formed in float64 and rounded to dtype once. Entry by
    entry these errors are at most 3 u of dtype and gamma_(rank + 8) of float64, relative to
    |U| S |V|. Where numbers are subnormal, one eta for each entry of L, R and their product is
    added.
    """
    if svd.s.max(initial=0) == 0:
        return 0.0
    u, s, vt = svd.u[:, rank:], svd.s[rank:], svd.vt[rank:]
    product = np.abs(svd.u[:, :rank] * svd.s[:rank]) @ np.abs(svd.vt[:rank])
    law = unsaturated(law, product, exponent, dtype)
    if law == "max":
        sums = np.abs(u) @ (s[:, None] * np.abs(vt))
        dropped = float(np.abs((u * s) @ vt).max() + norms.gamma(len(s) + 8) * sums.max())
    else:
        tail = norms.norm_of(s) if law == "fro" else float(s.max(initial=0))
        dropped = norms.orthogonality_factor(svd.u, svd.vt) * tail
    unit, eta = norms.unit_roundoff(dtype), norms.smallest_subnormal(dtype)
    rounding = (3 * unit * (1 + 4 * unit) + norms.gamma(rank + 8)) * _size(product, law)
    scaled = norms.unscaled_upper(
        norms.upward(dropped + svd.residual + rounding, 4 * len(svd.s) + 64), exponent
    )
    m, n = svd.u.shape[0], svd.vt.shape[1]
    # ||L||_F**2 is the sum of the kept singular values, and so is ||R||_F**2.
    roots = math.sqrt(float(svd.s[:rank].sum())) * 2.0 ** ((exponent + 1) // 2)
    lost = roots * (math.sqrt(rank * n) + math.sqrt(rank * m)) + math.sqrt(m * n) * (1 + rank * eta)
    return norms.upward(scaled + norms.upward(lost) * eta)


def product_bound(
    a: Array, exponent: int, factors: tuple[Array, Array], law: str, dtype: DType
) -> float:
    """How far the product of two stored factors is from the scaled matrix, rounding included.

    The computed difference does not show three errors: of the product here, of the product in
    decoding (gamma_(rank + 2) each), and of its rounding to dtype (u, or eta if it is subnormal).
    """
    half = exponent // 2
    left = np.ldexp(factors[0].astype(np.float64), half - exponent)
    right = np.ldexp(factors[1].astype(np.float64), -half)
    difference, product = a - left @ right, np.abs(left) @ np.abs(right)
    law = unsaturated(law, product, exponent, dtype)
    rank, unit = left.shape[1], norms.unit_roundoff(dtype)
    rounding = (unit + 2 * norms.gamma(rank + 4)) * (1 + 4 * unit) * _size(product, law)
    rounding += 2 * UNIT * _size(a, law)
    seen = norms.norm_upper(difference, law)
    scaled = norms.unscaled_upper(norms.upward(seen + rounding, 2 * (a.size + 8)), exponent)
    lost = math.sqrt(a.size) * norms.smallest_subnormal(dtype)
    return norms.upward(scaled + lost) if a.any() else 0.0


def unsaturated(law: str, product: Array, exponent: int, dtype: DType) -> str:
    """The law, but "fro" for "spectral" if entries saturate: that lowers single errors only."""
    highest = norms.unscaled(product.max(initial=0), exponent)
    return "fro" if law == "spectral" and highest >= float(np.finfo(dtype).max) else law


def _size(x: Array, law: str) -> float:
    """A norm that grows with the magnitude of every entry: the largest magnitude, or Frobenius."""
    return norms.norm_of(x, "max" if law == "max" else "fro")
