"""Uniform quantization: every entry is rounded to the nearest of evenly spaced levels.

The whole algorithm, for 4 bits and one scale:

>>> w = np.array([[0.5, 1.0], [-2.0, 7.0]])
>>> scale = np.abs(w).max() / 7
>>> codes = np.clip(np.rint(w / scale), -8, 7)
>>> codes * scale
array([[ 0.,  1.],
       [-2.,  7.]])

`minicompress.qparams.choose_qparams` chooses the scales, per tensor, channel or block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, choice, finite_array, freeze
from minicompress.compressors.bounds.quantization import bound_of, entry_bounds
from minicompress.errors import CompressionError
from minicompress.integers import code_dtype
from minicompress.norms import NORMS
from minicompress.qparams import Grid, QParams, choose_qparams
from minicompress.representation import Compressed, Quantized, certified


def quantize(
    weight: ArrayLike,
    *,
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
    """Round every entry to the nearest of evenly spaced levels.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
        Any shape and layout; never written to. Everything is computed in float64.
    num_bits : int from 2 to 16
        The bits of a code; 8 by default.
    signed, symmetric, axis, block_size, narrow_range, method, percentile, power_of_two
        As in `choose_qparams`, which chooses scales and zero points.
    qparams : QParams, optional
        Scales and zero points that are known already. No option above is given beside it.
    norm : "fro" | "spectral" | "max"
        Of the certificate.

    Returns
    -------
    rep : Quantized
    cert : Certificate
        The bound of an entry is half a step; outside the range of the codes it is the distance to
        the range if that is more; for a zero it is 0. What rounding can add is included (nothing
        for power-of-two scales that the dtype of `weight` can hold). "max" is the largest of these
        bounds, "fro" the root of the sum of their squares, and "spectral" the largest singular
        value of their matrix.

    Raises
    ------
    CompressionError
        `weight` is not finite, an option is out of range, `qparams` is for another shape or dtype,
        or other options are given beside it.

    Notes
    -----
    The mean squared error s**2 / 12 is a model of the error, not a bound; the bound is s**2 / 4.
    Other ways of rounding are `stochastic_quantize` and `compensated_quantize`. B. Jacob et al.,
    *Quantization and training of neural networks for efficient integer-arithmetic-only inference*
    (2018).

    Examples
    --------
    >>> rep, cert = quantize(np.array([[0.0, 1.0], [-2.0, 7.0]]), num_bits=4, norm="max")
    >>> rep.codes.tolist(), round(cert.bound, 6), cert.measured
    ([[0, 1], [-2, 7]], 0.5, 0.0)
    """
    w, x, q, grid = prepared(locals())
    steps = grid.nearest(x)
    entries = entry_bounds(x, grid.levels(steps, w.dtype), grid)
    return certified(w, quantized(w, steps, q, grid), norm, bound_of(entries, norm))


def prepared(arguments: dict[str, Any]) -> tuple[Array, Array, QParams, Grid]:
    """What a quantizer works on, made from its arguments by name: its ``locals()`` at the start.

    The checked weight, the same in float64, its scales and zero points, and its levels.
    """
    w, qparams = finite_array(arguments["weight"], "weight"), arguments["qparams"]
    choice(arguments["norm"], "norm", NORMS)
    defaults = {**(choose_qparams.__kwdefaults__ or {}), "num_bits": None}
    given = {name: arguments[name] for name in defaults if arguments[name] != defaults[name]}
    if qparams is None:
        qparams = choose_qparams(w, **given)
    elif not isinstance(qparams, QParams):
        raise CompressionError(f"qparams must be a QParams, not {qparams!r}")
    elif given:
        names = ", ".join(given)
        raise CompressionError(f"give qparams or {names}, not both: qparams holds them all")
    # In C order, so that sums do not depend on the memory layout of the weight.
    return w, np.array(w, np.float64, order="C"), qparams, qparams.grid(w)


def quantized(w: Array, steps: Array, q: QParams, grid: Grid) -> Quantized:
    """The representation of the levels so many steps from zero."""
    codes = (steps + grid.zero_point).astype(code_dtype(q.num_bits, q.signed))
    return Quantized.trusted(
        codes=freeze(codes),
        scale=q.scale,
        zero_point=q.zero_point,
        num_bits=q.num_bits,
        signed=q.signed,
        axis=None if q.axis is None else q.axis % w.ndim,
        block_size=q.block_size,
        dtype=w.dtype,
    )
