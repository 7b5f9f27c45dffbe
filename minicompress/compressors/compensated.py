"""Compensated rounding (GPTQ): the next weights make up for the rounding error of each weight.

E. Frantar, S. Ashkboos, T. Hoefler and D. Alistarh, *GPTQ: accurate post-training quantization
for generative pre-trained transformers* (2022), after B. Hassibi and D. Stork, *Second order
derivatives for network pruning* (1992).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, DType, finite_array, same_dtype
from minicompress.compressors.bounds.quantization import (
    bound_of,
    comes_nearer,
    corrected_bounds,
    entry_bounds,
)
from minicompress.compressors.quantization import prepared, quantized
from minicompress.errors import CompressionError
from minicompress.norms import power_of_two_scaled
from minicompress.qparams import Grid, QParams
from minicompress.representation import Compressed, certified

DAMPING = 0.01
"""Added to the diagonal of the Hessian, as in GPTQ, in units of that diagonal: it is regular."""


def gptq(w: Array, grid: Grid, dtype: DType, inputs: Array) -> tuple[Array, Array]:
    """Algorithm 1 of the paper: one row of w after the other, largest inputs first.

    Let H = X'X for the inputs X, and U'U = H^-1 with U upper triangular. When row i is rounded, its
    error e is spread: U_ij e / U_ii is subtracted from each row j > i. Given the rows that are
    rounded already, the error of the output X w is then least. H is formed here for inputs of norm
    1 (`units` are their norms), so that no square overflows. Returns the targets (the rows at the
    moment when they were rounded) and their steps.
    """
    norms = np.sqrt(np.einsum("ni,ni->i", inputs, inputs))
    order = np.argsort(norms, kind="stable")[::-1]
    units = np.where(norms > 0, norms, 1.0)[order]  # an input that is always 0 compensates nothing
    x = inputs[:, order] / units
    hessian = x.T @ x + DAMPING * np.eye(len(order))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    targets, steps, rows = np.empty_like(w), np.empty_like(w), w[order]
    for i, row in enumerate(order):
        levels = Grid(*(part[row] for part in grid))
        targets[row], steps[row] = rows[i], levels.nearest(rows[i])
        error = (rows[i] - levels.levels(steps[row], dtype)) * (units[i] / upper[i, i])
        rows[i + 1 :] -= np.outer(upper[i, i + 1 :] / units[i + 1 :], error)
    return targets, steps


def compensated_steps(
    x: Array, grid: Grid, dtype: DType, calibration: Array
) -> tuple[Array, Array]:
    """`gptq` for a weight of any shape, column by column never worse than nearest rounding.

    Parameters
    ----------
    x : (..., out) float64 ndarray
    grid : Grid
    dtype : numpy.dtype
        Of the decoded levels.
    calibration : (N, in) float64 ndarray
        `in` is the number of rows of `x` as a matrix.

    Returns
    -------
    targets, steps : float64 ndarrays of the shape of `x`
        What was rounded, and to what. A column whose output ``calibration @ column`` would not
        surely come nearer keeps ``targets == x`` and the nearest levels.
    """
    w = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    flat = Grid(*(np.broadcast_to(part, x.shape).reshape(w.shape) for part in grid))
    inputs, _ = power_of_two_scaled(calibration)
    plain = flat.nearest(w)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        targets, steps = gptq(w, flat, dtype, inputs)
        better = comes_nearer(inputs, w - flat.levels(steps, dtype), w - flat.levels(plain, dtype))
    # Errors and corrections must be small enough to be added; NaN is not.
    better &= (np.abs(targets - w) <= np.finfo(np.float64).max / 8).all(axis=0)
    targets, steps = np.where(better, targets, w), np.where(better, steps, plain)
    return targets.reshape(x.shape), steps.reshape(x.shape)


def compensated_quantize(
    weight: ArrayLike,
    *,
    calibration: ArrayLike,
    num_bits: int | None = None,
    signed: bool = True,
    symmetric: bool = True,
    axis: int | None = None,
    block_size: int | None = None,
    narrow_range: bool = False,
    method: str = "minmax",
    percentile: float = 99.9,
    power_of_two: bool = False,
    qparams: QParams | None = None,
    norm: str = "fro",
) -> Compressed:
    """Quantize a layer's weight so that its outputs on some inputs stay near (GPTQ).

    Parameters
    ----------
    weight : (in, out) or (kh, kw, in, out) ndarray of float16, float32 or float64, finite
        Any layout; never written to.
    calibration : (N, in) or (N, kh * kw * in) ndarray of the dtype of `weight`, finite
        Inputs of the layer, or patches of them for a kernel. N may be 0.
    num_bits, signed, symmetric, axis, block_size, narrow_range, method, percentile, power_of_two
        As in `quantize`.
    qparams, norm
        As in `quantize`.

    Returns
    -------
    rep : Quantized
        On the calibration inputs the error of each output is never above that of `quantize`.
    cert : Certificate
        As of `quantize`, for the corrected entries, and the corrections are added.

    Raises
    ------
    CompressionError
        As of `quantize`, and `weight` has neither two nor four axes, or `calibration` is not finite
        or does not fit it.

    Notes
    -----
    Columns of the weight do not depend on each other. A column whose output would come no nearer
    than with nearest rounding is rounded to nearest. Single weights move further than half a step,
    and a zero may become another level: where zeros must stay, do not use it after pruning.

    Examples
    --------
    Two inputs are always equal. One weight is rounded up because the other was rounded down.

    >>> w, x = np.array([[7.0], [0.4], [0.4]]), np.array([[0.0, 1.0, 1.0]])
    >>> rep, cert = compensated_quantize(w, calibration=x, num_bits=4)
    >>> rep.codes.T.tolist()
    [[7, 1, 0]]
    """
    w, x, q, grid = prepared(locals())
    if w.ndim not in (2, 4):
        raise CompressionError(
            f"weight must be (in, out) or (kh, kw, in, out), not of shape {w.shape}"
        )
    inputs, wanted = finite_array(calibration, "calibration", ndim=2), math.prod(w.shape[:-1])
    same_dtype(weight=w, calibration=inputs)
    if inputs.shape[1] != wanted:
        raise CompressionError(
            f"calibration must be (N, {wanted}) for a weight of shape {w.shape}, not {inputs.shape}"
        )
    # In C order, so that sums do not depend on the memory layout of the inputs.
    ordered = np.array(inputs, np.float64, order="C")
    targets, steps = compensated_steps(x, grid, w.dtype, ordered)
    entries = entry_bounds(targets, grid.levels(steps, w.dtype), grid)
    bound = bound_of(corrected_bounds(entries, x, targets), norm)
    return certified(w, quantized(w, steps, q, grid), norm, bound)
