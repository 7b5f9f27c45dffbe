"""Uniform quantization as a compressor: codes, scales, and a bound from the steps alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, choice, finite_array, freeze
from minicompress.errors import CompressionError
from minicompress.integers import code_dtype
from minicompress.norms import (
    NORMS,
    UNIT,
    as_matrix,
    error_norm,
    fro_upper,
    norm2_upper,
    smallest_subnormal,
    unit_roundoff,
)
from minicompress.qparams import QParams, choose_qparams, nearest_codes
from minicompress.representation import Certificate, Compressed, Quantized, decode


def quantize(
    weight: ArrayLike,
    *,
    num_bits: int | None = None,
    qparams: QParams | None = None,
    norm: str = "fro",
    **options: Any,
) -> Compressed:
    """Round every entry to the nearest of evenly spaced levels.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
        Any shape and layout; never written to. Computed in float64 whatever the dtype.
    num_bits : int from 2 to 16, 8 unless told
    qparams : QParams, optional
        Scales and zero points that are already known, in place of num_bits and of the options.
    norm : "fro" | "spectral" | "max"
        Of the certificate.
    **options
        Those of `choose_qparams`: signed, symmetric, axis, block_size, narrow_range, method,
        percentile, power_of_two, preserve_zero.

    Returns
    -------
    rep : Quantized
    cert : Certificate
        Half a step for an entry within the range of the codes, its distance to the range where
        that is more, nothing for a zero; with what rounding can add (nothing for power-of-two
        scales). "max" is the largest of these, "fro" the root of the sum of their squares,
        "spectral" the largest singular value of their matrix.

    Raises
    ------
    CompressionError
        `weight` is not finite, an option is unknown or out of range, or both qparams and others
        are given.

    Notes
    -----
    A matrix is not larger in its 2-norm than the matrix of its entries' bounds (Perron and
    Frobenius; Horn and Johnson, *Matrix Analysis*, theorem 8.1.18). The mean squared error s**2/12
    is a model of the error, no bound; the bound is s**2/4.

    Examples
    --------
    >>> rep, cert = quantize(np.array([[0.0, 1.0], [-2.0, 7.0]]), num_bits=4, norm="max")
    >>> rep.codes.tolist(), round(cert.bound, 6), cert.measured
    ([[0, 1], [-2, 7]], 0.5, 0.0)
    """
    w = finite_array(weight, "weight")
    kind = choice(norm, "norm", NORMS)
    if qparams is None:
        qparams = choose_qparams(w, num_bits=8 if num_bits is None else num_bits, **options)
    elif num_bits is not None or options:
        given = ", ".join(options) or "num_bits"
        raise CompressionError(f"give qparams or {given}, not both: qparams holds them all")
    elif not isinstance(qparams, QParams):
        raise CompressionError(f"qparams must be a QParams, not {qparams!r}")
    codes = nearest_codes(w, qparams).astype(code_dtype(qparams.num_bits, qparams.signed))
    rep = represent(codes, qparams, w)
    decoded = decode(rep)
    entries = entry_bounds(w, decoded, qparams)
    return Compressed(rep, Certificate(kind, bound_of(entries, kind), error_norm(w, decoded, kind)))


def represent(codes: Array, qparams: QParams, w: Array) -> Quantized:
    """The codes of an array with everything that decodes them."""
    return Quantized(
        freeze(codes),
        qparams.scale,
        qparams.zero_point,
        qparams.num_bits,
        qparams.signed,
        qparams.axis,
        qparams.block_size,
        w.dtype,
    )


def entry_bounds(w: Array, decoded: Array, qparams: QParams) -> Array:
    """How far each decoded entry can be from its original: half a step, or out of the range."""
    scale, zero_point = qparams.for_array(w)
    x = w.astype(np.float64)
    steps_low, steps_high = qparams.qmin - zero_point, qparams.qmax - zero_point
    unit, eta = unit_roundoff(w.dtype), smallest_subnormal(w.dtype)
    with np.errstate(over="ignore", under="ignore"):
        low, high = steps_low * scale, steps_high * scale
        outside = np.maximum(low - x, x - high)
        bound = np.maximum(scale / 2, outside)
        # A power of two times an integer of few bits is exact in every dtype, and so is x / scale.
        exact = (np.frexp(scale)[0] == 0.5) & (scale >= np.finfo(w.dtype).tiny)
        exact = exact & (np.maximum(np.abs(steps_low), np.abs(steps_high)) * unit <= 1)
        exact = exact & (outside <= scale / 2)
        slack = 4 * UNIT * np.abs(x) + (unit + 8 * UNIT) * np.abs(decoded.astype(np.float64)) + eta
        bound = np.where(exact, bound, (bound + slack) * (1 + 4 * UNIT))
    held = (steps_low <= 0) & (steps_high >= 0)  # then 0.0 has a code of its own
    return np.where((x == 0) & held, 0.0, bound)


def bound_of(entries: Array, kind: str) -> float:
    """The norm of an array whose entries are at most these, rounded upward."""
    if kind == "max":
        return float(entries.max(initial=0))
    if not np.isfinite(entries).all():
        return float("inf")
    return fro_upper(entries) if kind == "fro" else norm2_upper(as_matrix(entries))
