"""Quantization: half a step inside the range of the codes, and the distance to it outside."""

from __future__ import annotations

import numpy as np

from minicompress import norms
from minicompress.arrays import Array
from minicompress.norms import UNIT
from minicompress.qparams import Grid


def entry_bounds(x: Array, decoded: Array, grid: Grid, reach: float = 0.5) -> Array:
    """How far each decoded entry can be from the float64 number x that was rounded to it.

    The law is `reach` steps, or the distance to the range of the codes where that is more. Rounding
    adds to it: u |x| for the quotient x / scale; u of float64 and u of the dtype, times the level,
    for the level; and u of x and of the level for the distance. A level that is rounded to float32
    and then to float16 has another error of u of float32, relative to its size before the second
    rounding: less than 2 u.
    """
    unit, eta = norms.unit_roundoff(decoded.dtype), norms.smallest_subnormal(decoded.dtype)
    twice = 2 * norms.unit_roundoff(grid.scale.dtype) if grid.scale.dtype != decoded.dtype else 0.0
    held = (grid.low <= 0) & (grid.high >= 0)  # then 0.0 has a code of its own
    with np.errstate(over="ignore", under="ignore"):
        step = grid.scale.astype(np.float64) * reach
        top = float(np.finfo(decoded.dtype).max)  # no decoded entry is larger
        low, high = (np.clip(end * grid.scale, -top, top) for end in (grid.low, grid.high))
        outside = np.maximum(low - x, x - high)
        bound = np.maximum(step, outside)
        # A power of two times an integer of few bits is exact in every dtype whose smallest number
        # is not larger. So is x / scale. Where the range holds zero, `outside` <= step is decided
        # exactly too (Sterbenz: x is within a factor of two of the end).
        exact = (np.frexp(grid.scale)[0] == 0.5) & (grid.scale >= eta)
        exact = exact & (np.maximum(np.abs(grid.low), np.abs(grid.high)) * unit <= 1)
        exact = exact & held & (outside <= step)
        size = np.abs(decoded.astype(np.float64))
        slack = 4 * UNIT * np.abs(x) + (unit + twice + 8 * UNIT) * size + eta
        bound = np.where(exact, bound, (bound + slack) * (1 + 4 * UNIT))
    return np.where((x == 0) & held, 0.0, bound)


def corrected_bounds(entries: Array, x: Array, targets: Array) -> Array:
    """The same for an entry that was corrected before it was rounded: the correction is added."""
    moved = np.abs(targets - x)
    return np.where(moved == 0, entries, (entries + moved) * (1 + 4 * UNIT))


def bound_of(entries: Array, kind: str) -> float:
    """The norm of an array whose entries are at most these, rounded upward.

    A matrix has no larger 2-norm than the matrix of its entries' bounds (Perron and Frobenius; Horn
    and Johnson, *Matrix Analysis*, theorem 8.1.18).
    """
    return norms.norm_upper(entries, kind) if np.isfinite(entries).all() else float("inf")


def comes_nearer(products: Array, count: int, first: Array, second: Array) -> Array:
    """Per column: whether ``||X @ first||`` is surely less than ``||X @ second||``.

    ``products`` is X'X, computed from `count` rows whose entries are below 1 in magnitude. With a
    the norms of the columns of X, its entry (i, j) errs by gamma_count a_i a_j (Cauchy and
    Schwarz), and so ``d' (X'X) d`` by gamma_(count + 2k + 1) (a'|d|)**2 altogether. Twice that
    covers the rounding of this function too. What can be lost below the smallest number, in
    `products` and here, is far less than the last term. Axes in front are one problem for each
    index.
    """
    k = products.shape[-1]
    largest = np.maximum(np.abs(first), np.abs(second)).max(axis=-2, initial=0.0, keepdims=True)
    exponent = np.frexp(np.where(np.isfinite(largest), largest, 1.0))[1]
    norms_of_inputs = np.sqrt(np.einsum("...ii->...i", products))
    bounds = []
    for difference, sign in ((first, 1), (second, -1)):
        d = np.ldexp(difference, -exponent)
        size = np.einsum("...i,...ic->...c", norms_of_inputs, np.abs(d))
        rounding = 2 * norms.gamma(count + 2 * k + 8) * size**2 + 2.0**-500 * (count + k) ** 3
        bounds.append(np.einsum("...ic,...ic->...c", d, products @ d) + sign * rounding)
    return np.asarray(bounds[0] < bounds[1])
