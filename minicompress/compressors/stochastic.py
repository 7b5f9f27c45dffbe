"""Stochastic rounding: up or down at random, with the entry itself as the mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, DType, generator
from minicompress.compressors.bounds.quantization import bound_of, entry_bounds
from minicompress.compressors.quantization import prepared, quantized
from minicompress.qparams import Grid, QParams
from minicompress.representation import Compressed, certified


def stochastic_steps(x: Array, grid: Grid, dtype: DType, rng: np.random.Generator) -> Array:
    """Round x / scale up with its fractional part as the probability, else down.

    An entry that is a level already stays, although its quotient by the scale may have a fraction.
    """
    with np.errstate(over="ignore", under="ignore"):
        exact = np.clip(x / grid.scale, grid.low, grid.high)
    down = np.floor(exact)
    steps = down + (rng.random(x.shape) < exact - down) + 0.0
    nearest = grid.nearest(x)
    return np.where(grid.levels(nearest, dtype) == x, nearest, steps)


def stochastic_quantize(
    weight: ArrayLike,
    *,
    rng: np.random.Generator,
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
    """Round every entry at random to the level above or below it.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
        Any shape and layout; never written to.
    rng : numpy.random.Generator
        Its state moves on.
    num_bits, signed, symmetric, axis, block_size, narrow_range, method, percentile, power_of_two
        As in `quantize`.
    qparams, norm
        As in `quantize`.

    Returns
    -------
    rep : Quantized
        Its expected value is `weight`, for entries within the range of the codes.
    cert : Certificate
        As of `quantize`, with a whole step in place of half a step.

    Raises
    ------
    CompressionError
        As of `quantize`, and `rng` is not a Generator.

    Notes
    -----
    S. Gupta, A. Agrawal, K. Gopalakrishnan and P. Narayanan, *Deep learning with limited numerical
    precision* (2015).

    Examples
    --------
    >>> w = np.full(1000, 0.25)
    >>> q = QParams(np.array(1.0), num_bits=4)
    >>> rep, cert = stochastic_quantize(w, rng=np.random.default_rng(0), qparams=q, norm="max")
    >>> sorted(set(rep.codes.tolist())), bool(200 < rep.codes.sum() < 300), cert.bound
    ([0, 1], True, 1.0)
    """
    w, x, q, grid = prepared(locals())
    steps = stochastic_steps(x, grid, w.dtype, generator(rng))
    entries = entry_bounds(x, grid.levels(steps, w.dtype), grid, reach=1.0)
    return certified(w, quantized(w, steps, q, grid), norm, bound_of(entries, norm))
