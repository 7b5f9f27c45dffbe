"""Uniform quantization as a compressor: codes, scales, and a bound from the steps alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, choice, finite_array, freeze, generator, same_dtype
from minicompress.compressors.rounding import compensated_steps, stochastic_steps
from minicompress.errors import CompressionError
from minicompress.integers import code_dtype
from minicompress.norms import (
    NORMS,
    UNIT,
    as_matrix,
    error_norm,
    fro_upper,
    smallest_subnormal,
    spectral_norm_upper,
    unit_roundoff,
)
from minicompress.qparams import Grid, QParams, choose_qparams
from minicompress.representation import Certificate, Compressed, Quantized, decode

ROUNDINGS = ("nearest", "stochastic", "compensated")


def quantize(
    weight: ArrayLike,
    *,
    num_bits: int | None = None,
    qparams: QParams | None = None,
    rounding: str = "nearest",
    rng: np.random.Generator | None = None,
    calibration: ArrayLike | None = None,
    norm: str = "fro",
    **options: Any,
) -> Compressed:
    """Round every entry to one of evenly spaced levels: to the nearest unless told.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
        Any shape and layout; never written to. Computed in float64 whatever the dtype.
    num_bits : int from 2 to 16, 8 unless told
    qparams : QParams, optional
        Scales and zero points that are already known, in place of num_bits and of the options.
    rounding : "nearest" | "stochastic" | "compensated"
        To the nearest level, ties to even; to the level above or below at random, with the entry
        itself as the mean; or one input after the other, each making up for the errors of those
        before it, so that the layer's outputs on the `calibration` inputs stay near.
    rng : numpy.random.Generator
        For "stochastic", and only for it.
    calibration : (N, in) ndarray of the dtype of `weight`, finite
        For "compensated", and only for it: inputs of the layer whose weight is (in, out), or
        patches of them where it is a kernel (kh, kw, in / kh kw, out). N may be 0.
    norm : "fro" | "spectral" | "max"
        Of the certificate.
    **options
        Those of `choose_qparams`: signed, symmetric, axis, block_size, narrow_range, method,
        percentile, power_of_two, preserve_zero.

    Returns
    -------
    rep : Quantized
    cert : Certificate
        Nearest: half a step for an entry within the range of the codes, its distance to the range
        where that is more, nothing for a zero; with what rounding can add (nothing for power-of-two
        scales that `weight` could hold, if their range holds zero). Stochastic: a step in place of
        half a step. Compensated: as nearest, for the corrected entry, and the correction besides.
        "max" is the largest of these, "fro" the root of the sum of their squares, "spectral" the
        largest singular value of their matrix.

    Raises
    ------
    CompressionError
        `weight` or `calibration` is not finite or does not fit, an option is out of range, both
        qparams and others are given, or a rounding is given what it has no use for.
    TypeError
        An option is unknown.

    Notes
    -----
    A matrix is not larger in its 2-norm than the matrix of its entries' bounds (Perron and
    Frobenius; Horn and Johnson, *Matrix Analysis*, theorem 8.1.18). The mean squared error s**2/12
    is a model of the error, no bound; the bound is s**2/4.

    Compensated rounding is GPTQ (E. Frantar, S. Ashkboos, T. Hoefler and D. Alistarh, *GPTQ*,
    2022), after B. Hassibi and D. Stork, *Second order derivatives for network pruning* (1992).
    Columns of the weight do not depend on each other, and one whose output on the calibration
    inputs would be no nearer than with nearest rounding is rounded so: the error of the output is
    never above that of nearest rounding. Single weights move further, and a zero may become
    another level; prune after it, or not at all, where zeros are to stay.

    Examples
    --------
    >>> rep, cert = quantize(np.array([[0.0, 1.0], [-2.0, 7.0]]), num_bits=4, norm="max")
    >>> rep.codes.tolist(), round(cert.bound, 6), cert.measured
    ([[0, 1], [-2, 7]], 0.5, 0.0)

    Two inputs that are always equal: what the one loses the other wins.

    >>> w, x = np.array([[7.0], [0.4], [0.4]]), np.array([[0.0, 1.0, 1.0]])
    >>> quantize(w, num_bits=4).rep.codes.T.tolist()
    [[7, 0, 0]]
    >>> quantize(w, num_bits=4, rounding="compensated", calibration=x).rep.codes.T.tolist()
    [[7, 1, 0]]
    """
    w = finite_array(weight, "weight")
    kind = choice(norm, "norm", NORMS)
    choice(rounding, "rounding", ROUNDINGS)
    for name, given, wanted in (
        ("rng", rng, "stochastic"),
        ("calibration", calibration, "compensated"),
    ):
        if (given is None) == (rounding == wanted):
            raise CompressionError(
                f"{name} must be given with rounding={wanted!r} and only with it, "
                f"not {'left out' if given is None else 'given'} with rounding={rounding!r}"
            )
    if qparams is None:
        qparams = choose_qparams(w, num_bits=8 if num_bits is None else num_bits, **options)
    elif num_bits is not None or options:
        names = ", ".join(options) or "num_bits"
        raise CompressionError(f"give qparams or {names}, not both: qparams holds them all")
    elif not isinstance(qparams, QParams):
        raise CompressionError(f"qparams must be a QParams, not {qparams!r}")
    grid = qparams.grid(w)
    # In C order, so that a sum does not depend on how the weight lies in memory.
    x = np.array(w, np.float64, order="C")
    targets, reach = x, 0.5
    if rounding == "nearest":
        steps = grid.nearest(x)
    elif rounding == "stochastic":
        steps, reach = stochastic_steps(x, grid, w.dtype, generator(rng)), 1.0
    else:
        inputs = _inputs(calibration, w)
        targets, steps = compensated_steps(x, grid, w.dtype, inputs)
    rep = Quantized(
        freeze((steps + grid.zero_point).astype(code_dtype(qparams.num_bits, qparams.signed))),
        qparams.scale,
        qparams.zero_point,
        qparams.num_bits,
        qparams.signed,
        qparams.axis,
        qparams.block_size,
        w.dtype,
    )
    decoded = decode(rep)
    entries = entry_bounds(targets, decoded, grid, reach)
    if targets is not x:
        moved = np.abs(targets - x)
        entries = np.where(moved == 0, entries, (entries + moved) * (1 + 4 * UNIT))
    return Compressed(rep, Certificate(kind, bound_of(entries, kind), error_norm(w, decoded, kind)))


def _inputs(calibration: ArrayLike | None, w: Array) -> Array:
    """The calibration inputs, checked against the weight, in float64 and C order."""
    if w.ndim not in (2, 4):
        raise CompressionError(
            "weight must be (in, out) or (kh, kw, in, out) for compensated rounding, "
            f"not of shape {w.shape}"
        )
    inputs = finite_array(calibration if calibration is not None else (), "calibration", ndim=2)
    same_dtype(weight=w, calibration=inputs)
    wanted = math.prod(w.shape[:-1])
    if inputs.shape[1] != wanted:
        raise CompressionError(
            f"calibration must be (N, {wanted}) for a weight of shape {w.shape}, not {inputs.shape}"
        )
    return np.array(inputs, np.float64, order="C")


def entry_bounds(x: Array, decoded: Array, grid: Grid, reach: float = 0.5) -> Array:
    """How far each decoded entry can be from the float64 number x that was rounded to it.

    `reach` steps, or the distance to the range where that is more. The quotient x / scale errs by
    u |x| in terms of x; the level, formed in float64 and rounded to its dtype, by u of the dtype
    and of float64 times itself; and the distance by u of both. A level that is rounded to float32
    and then to float16 errs by u of float32 besides, times itself before the second rounding: less
    than 2 u.
    """
    unit, eta = unit_roundoff(decoded.dtype), smallest_subnormal(decoded.dtype)
    twice = 2 * unit_roundoff(grid.scale.dtype) if grid.scale.dtype != decoded.dtype else 0.0
    held = (grid.low <= 0) & (grid.high >= 0)  # then 0.0 has a code of its own
    with np.errstate(over="ignore", under="ignore"):
        step = grid.scale.astype(np.float64) * reach
        top = float(np.finfo(decoded.dtype).max)  # of what decodes
        low, high = (np.clip(end * grid.scale, -top, top) for end in (grid.low, grid.high))
        outside = np.maximum(low - x, x - high)
        bound = np.maximum(step, outside)
        # A power of two times an integer of few bits is exact in every dtype whose smallest number
        # is no larger, and so is x / scale.
        # Where the range holds zero, `outside` <= step is decided exactly too (Sterbenz: x is
        # within a factor of two of the end).
        exact = (np.frexp(grid.scale)[0] == 0.5) & (grid.scale >= eta)
        exact = exact & (np.maximum(np.abs(grid.low), np.abs(grid.high)) * unit <= 1)
        exact = exact & held & (outside <= step)
        size = np.abs(decoded.astype(np.float64))
        slack = 4 * UNIT * np.abs(x) + (unit + twice + 8 * UNIT) * size + eta
        bound = np.where(exact, bound, (bound + slack) * (1 + 4 * UNIT))
    return np.where((x == 0) & held, 0.0, bound)


def bound_of(entries: Array, kind: str) -> float:
    """The norm of an array whose entries are at most these, rounded upward."""
    if kind == "max":
        return float(entries.max(initial=0))
    if not np.isfinite(entries).all():
        return float("inf")
    return fro_upper(entries) if kind == "fro" else spectral_norm_upper(as_matrix(entries))
