"""Clustering: the distance of each entry from the value of its cluster."""

from __future__ import annotations

import numpy as np

from minicompress.arrays import Array
from minicompress.norms import UNIT, fro_upper, gamma, norm_upper


def clustering_bound(x: Array, centers: Array, sizes: Array, codes: Array, kind: str) -> float:
    """An upper bound of the error of a clustering of sorted entries, in a norm.

    In a cluster of n entries, take the distances from the lowest entry: d is that of the center, s
    the sum of all, q the sum of their squares. The sum of squares about the center is
    ``q - 2 d s + n d**2``. The relative error of each term is at most gamma_(n + 8). Each cluster
    is scaled by its own power of two.
    """
    if x.size == 0:
        return 0.0
    ends = np.cumsum(sizes)
    first = ends - sizes
    low, high = x[first], x[ends - 1]
    with np.errstate(over="ignore", under="ignore"):
        distances = np.maximum(high - centers, centers - low)
        radii = np.where(distances > 0, np.nextafter(distances, np.inf), 0.0)
        if kind == "max":
            return float(radii.max())
        width = np.maximum(high, centers) - np.minimum(low, centers)
        exponents = np.frexp(np.minimum(width, np.finfo(np.float64).max))[1]
        y = np.ldexp(x, -np.repeat(exponents, sizes))
        y -= np.repeat(np.ldexp(low, -exponents), sizes)
        d = np.ldexp(centers, -exponents) - np.ldexp(low, -exponents)
        terms = (
            np.add.reduceat(y * y, first),
            2 * np.abs(d) * np.add.reduceat(y, first),
            sizes * d**2,
        )
        squares = np.maximum(terms[0] - np.sign(d) * terms[1] + terms[2], 0)
        squares += gamma(int(sizes.max()) + 8) * (terms[0] + terms[1] + terms[2])
        parts = np.ldexp(np.sqrt(squares) * (1 + 8 * UNIT), exponents)
        parts = np.where(parts > 0, np.nextafter(parts, np.inf), 0.0)
    if not (np.isfinite(parts).all() and np.isfinite(radii).all()):
        return float("inf")
    frobenius = fro_upper(parts)
    return frobenius if kind == "fro" else min(frobenius, norm_upper(radii[codes], kind))
