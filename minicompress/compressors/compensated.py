"""Compensated rounding (GPTQ): the next weights make up for the rounding error of each weight.

E. Frantar, S. Ashkboos, T. Hoefler and D. Alistarh, *GPTQ: accurate post-training quantization
for generative pre-trained transformers* (2022), after B. Hassibi and D. Stork, *Second order
derivatives for network pruning* (1992).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

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
from minicompress.qparams import Grid, QParams
from minicompress.representation import Compressed, certified

DAMPING = 0.01
"""Added to the diagonal of the Hessian, as in GPTQ, in units of that diagonal: it is regular."""

TOGETHER = 64
"""Rows after which the rows behind them are corrected, for all of these at once (section 3.3)."""

Calibration: TypeAlias = "ArrayLike | Iterator[ArrayLike]"


def gptq(w: Array, grid: Grid, dtype: DType, hessian: Array) -> tuple[Array, Array]:
    """Algorithm 1 of the paper: one row of w after the other, largest inputs first.

    Let H = X'X for the inputs X, and U'U = H^-1 with U upper triangular. When row i is rounded, its
    error e is spread: U_ij e / U_ii is subtracted from each row j > i. Given the rows that are
    rounded already, the error of the output X w is then least. H is taken for inputs of norm 1
    (`units` are their norms). Returns the targets (the rows at the moment when they were rounded)
    and their steps. All arguments may have more axes in front: one problem for each index.
    """
    norms = np.sqrt(np.einsum("...ii->...i", hessian))
    order = np.argsort(norms, axis=-1, kind="stable")[..., ::-1]
    # An input that is always 0, or next to it, compensates nothing.
    units = _taken(np.where(norms > 2.0**-450, norms, 1.0), order, -1)
    h = _taken(_taken(hessian, order[..., np.newaxis], -2), order[..., np.newaxis, :], -1)
    h = h / units[..., np.newaxis] / units[..., np.newaxis, :] + DAMPING * np.eye(w.shape[-2])
    upper = np.swapaxes(np.linalg.cholesky(np.linalg.inv(h)), -1, -2)
    spread = upper / units[..., np.newaxis, :]
    rows, *parts = (_taken(a, order[..., np.newaxis], -2) for a in (w, *grid))
    steps, errors = np.empty_like(rows), np.empty_like(rows)
    for i in range(w.shape[-2]):
        levels = Grid(*(part[..., i, :] for part in parts))
        steps[..., i, :] = levels.nearest(rows[..., i, :])
        error = rows[..., i, :] - levels.levels(steps[..., i, :], dtype)
        errors[..., i, :] = error * (units[..., i] / upper[..., i, i])[..., np.newaxis]
        start, end = i // TOGETHER * TOGETHER, i // TOGETHER * TOGETHER + TOGETHER
        near = spread[..., i, i + 1 : end, np.newaxis]
        rows[..., i + 1 : end, :] -= near * errors[..., i : i + 1, :]
        if i + 1 == end:
            far = np.swapaxes(spread[..., start:end, end:], -1, -2)
            rows[..., end:, :] -= far @ errors[..., start:end, :]
    back = np.argsort(order, axis=-1)[..., np.newaxis]
    return _taken(rows, back, -2), _taken(steps, back, -2)


def _taken(array: Array, order: Array, axis: int) -> Array:
    """The entries of `array` in another order along one axis."""
    return np.take_along_axis(array, order, axis)


def compensated_steps(x: Array, grid: Grid, dtype: DType, gram: Gram) -> tuple[Array, Array]:
    """`gptq` for a weight of any shape, column by column never worse than nearest rounding.

    Parameters
    ----------
    x : (..., out) float64 ndarray
    grid : Grid
    dtype : numpy.dtype
        Of the decoded levels.
    gram : Gram
        Of the inputs; `in` is the number of rows of `x` as a matrix.

    Returns
    -------
    targets, steps : float64 ndarrays of the shape of `x`
        What was rounded, and to what. A column whose output would not surely come nearer keeps
        ``targets == x`` and the nearest levels.
    """
    groups, height = gram.products.shape[:2]

    def stacked(a: Array) -> Array:
        """(groups, in, out // groups): for each group of columns the matrix of its weights."""
        columns = np.broadcast_to(a, x.shape).reshape(height, groups, x.shape[-1] // groups)
        return columns.swapaxes(0, 1)

    w, levels = stacked(x), Grid(*(stacked(part) for part in grid))
    plain = levels.nearest(w)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        targets, steps = gptq(w, levels, dtype, gram.products)
        errors = (w - levels.levels(taken, dtype) for taken in (steps, plain))
        better = comes_nearer(gram.products, gram.num_rows, *errors)
    # Errors and corrections must be small enough to be added; NaN is not.
    better &= (np.abs(targets - w) <= np.finfo(np.float64).max / 8).all(axis=-2)
    better = better[:, np.newaxis]
    targets, steps = np.where(better, targets, w), np.where(better, steps, plain)
    return targets.swapaxes(0, 1).reshape(x.shape), steps.swapaxes(0, 1).reshape(x.shape)


class Gram(NamedTuple):
    """All that compensation needs to know of the inputs X of each group of outputs.

    products : (groups, in, in) float64 ndarray
        X'X, for inputs scaled by a power of two so that the largest is below 1.
    num_rows : int
        Of X.
    """

    products: Array
    num_rows: int


def gram_of(calibration: Calibration, width: int, dtype: DType) -> Gram:
    """The Gram matrices of inputs of this width and dtype, added up block by block."""
    blocks = calibration if isinstance(calibration, Iterator) else iter([calibration])
    products, num_rows, unit, ndim = np.zeros((1, width, width)), 0, -(2**12), 0
    for block in blocks:
        inputs = finite_array(block, "calibration")
        same_dtype(weight=np.empty(0, dtype), calibration=inputs)
        ndim = ndim or inputs.ndim
        stack = inputs if inputs.ndim == 3 else inputs[np.newaxis]
        groups = len(products) if num_rows else max(len(stack), 1)
        if inputs.ndim != ndim or ndim not in (2, 3) or stack.shape[::2] != (groups, width):
            raise CompressionError(
                f"calibration must be (N, {width}) or (groups, N, {width}) for this weight, not "
                f"{inputs.shape}"
            )
        if num_rows == 0:
            products = np.zeros((groups, width, width))
        num_rows += stack.shape[1]
        largest = float(np.abs(stack).max(initial=0.0))
        if largest == 0:
            continue
        exponent = math.frexp(largest)[1]
        with np.errstate(under="ignore"):  # lost: squares of less than 2**-1074 of the largest
            if exponent > unit:
                products, unit = np.ldexp(products, 2 * (unit - exponent)), exponent
            # In C order, so that sums do not depend on the memory layout of the inputs.
            x = np.ldexp(np.array(stack, np.float64, order="C"), -unit)
            products += x.swapaxes(1, 2) @ x
    return Gram(products, num_rows)


def compensated_quantize(
    weight: ArrayLike,
    *,
    calibration: Calibration,
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
        Inputs of the layer, or patches of them for a kernel. N may be 0. An array (groups, N, ...)
        has inputs of their own for each group of outputs, as a kernel with groups reads them. An
        iterator gives such arrays one after the other, so that they need not be in memory together.
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
    than with nearest rounding is rounded to nearest. Of the inputs X only X'X is kept. Single
    weights move further than half a step, and a zero may become another level: where zeros must
    stay, do not use it after pruning.

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
    gram = gram_of(calibration, math.prod(w.shape[:-1]), w.dtype)
    if w.shape[-1] % (groups := len(gram.products)):
        raise CompressionError(
            f"calibration must have groups that divide the {w.shape[-1]} outputs, not {groups}"
        )
    targets, steps = compensated_steps(x, grid, w.dtype, gram)
    entries = entry_bounds(targets, grid.levels(steps, w.dtype), grid)
    bound = bound_of(corrected_bounds(entries, x, targets), norm)
    return certified(w, quantized(w, steps, q, grid), norm, bound)
