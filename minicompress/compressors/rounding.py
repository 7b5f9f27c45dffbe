"""Roundings other than to the nearest level: at random, and with the errors compensated.

Both work in float64 on the `Grid` of levels, and return steps: how many scales from zero.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from minicompress.arrays import Array, DType
from minicompress.norms import gamma, power_of_two_scaled
from minicompress.qparams import Grid

DAMPING = 0.01
"""Added to the correlation of every input with itself, as in GPTQ: then none is singular."""


def stochastic_steps(x: Array, grid: Grid, dtype: DType, rng: np.random.Generator) -> Array:
    """Up or down at random, such that the expected step is x / scale where x is within the range.

    What is a level already stays, although its quotient by the scale may not be an integer.
    """
    with np.errstate(over="ignore", under="ignore"):
        exact = np.clip(x / grid.scale, grid.low, grid.high)
    down = np.floor(exact)
    steps = down + (rng.random(x.shape) < exact - down) + 0.0
    nearest = grid.nearest(x)
    return np.where(grid.levels(nearest, dtype) == x, nearest, steps)


def compensated_steps(
    x: Array, grid: Grid, dtype: DType, calibration: Array
) -> tuple[Array, Array]:
    """Round one input's weights after the other, each making up for the errors before it.

    Parameters
    ----------
    x : (..., out) float64 ndarray
    grid : Grid
    dtype : numpy.dtype
        That the levels are rounded to.
    calibration : (N, in) float64 ndarray
        With as many columns as `x` has rows when it is a matrix.

    Returns
    -------
    targets, steps : float64 ndarrays of the shape of `x`
        What was rounded, and to what. Columns whose output ``calibration @ column`` would not come
        nearer to the original one keep ``targets == x`` and the nearest levels: so the error of the
        output is never above that of nearest rounding, in exact arithmetic too.
    """
    shape, columns = x.shape, x.shape[-1]
    w = x.reshape(math.prod(shape[:-1]), columns)
    flat = Grid(*(np.broadcast_to(part, shape).reshape(w.shape) for part in grid))
    inputs, _ = power_of_two_scaled(calibration)
    plain = flat.nearest(w)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        targets, steps = _nearest_plane(w, flat, dtype, inputs)
        better = _comes_nearer(inputs, w - flat.levels(steps, dtype), w - flat.levels(plain, dtype))
    # So far as errors and moves can be added up; NaN is not.
    better &= (np.abs(targets - w) <= np.finfo(np.float64).max / 8).all(axis=0)
    targets, steps = np.where(better, targets, w), np.where(better, steps, plain)
    return targets.reshape(shape), steps.reshape(shape)


def _nearest_plane(w: Array, grid: Grid, dtype: DType, inputs: Array) -> tuple[Array, Array]:
    """Targets and steps by back substitution.

    With the Cholesky factor R of the inputs' correlations, the output's squared error is that of
    ``R (w - w')``. Its row i is least if w'_i is near ``w_i + sum_(j > i) R_ij / R_ii (w - w')_j``:
    so from the last row upward. It is the order of GPTQ turned round, with the same result; the
    inputs of largest norm, on which most depends, are put last and so are rounded first.
    """
    norms = np.sqrt(np.einsum("ni,ni->i", inputs, inputs))
    unit = np.where(norms > 0, norms, 1.0)  # an input that is always zero compensates nothing
    order = np.argsort(unit * (norms > 0), kind="stable")
    units = unit[order]
    scaled = inputs[:, order] / units
    correlation = scaled.T @ scaled + DAMPING * np.eye(len(order))
    factor = scipy.linalg.cholesky(correlation, check_finite=False)
    targets, steps = np.empty_like(w), np.empty_like(w)
    errors = np.zeros_like(w)  # in the order of the factor, times the norms of the inputs
    for i in reversed(range(len(order))):
        row = order[i]
        ahead = factor[i, i + 1 :] @ errors[i + 1 :]
        line = Grid(*(part[row] for part in grid))
        targets[row] = w[row] + ahead / (factor[i, i] * units[i])
        steps[row] = line.nearest(targets[row])
        errors[i] = units[i] * (w[row] - line.levels(steps[row], dtype))
    return targets, steps


def _comes_nearer(inputs: Array, first: Array, second: Array) -> Array:
    """Per column: whether ``||inputs @ first||`` is the lesser of the two beyond all rounding."""
    largest = np.maximum(np.abs(first), np.abs(second)).max(axis=0, initial=0.0)
    exponent = np.frexp(np.where(np.isfinite(largest), largest, 1.0))[1]
    n, k = inputs.shape
    bounds = []
    for difference, sign in ((first, 1), (second, -1)):
        d = np.ldexp(difference, -exponent)
        size = _column_norms(np.abs(inputs) @ np.abs(d))
        # A dot product errs by gamma_(k+1) |inputs| |d|, the norm by gamma_(n+2), twice over for
        # the rounding of this line; and what is below 2**-500 was lost in the squares.
        rounding = 2 * gamma(n + k + 8) * size + 2.0**-500 * (n + k)
        bounds.append(_column_norms(inputs @ d) + sign * rounding)
    return np.asarray(bounds[0] < bounds[1])


def _column_norms(matrix: Array) -> Array:
    return np.asarray(np.sqrt(np.einsum("nc,nc->c", matrix, matrix)))
