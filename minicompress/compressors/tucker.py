"""Tucker-2: a kernel as a small kernel between two 1x1 convolutions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import (
    Array,
    DType,
    as_float,
    as_int,
    cast_finite,
    choice,
    exactly_one,
    finite_array,
    freeze,
)
from minicompress.compressors.svd import Svd, certified, dropped_squares, scaled_float64, svd_of
from minicompress.errors import CompressionError
from minicompress.norms import (
    NORMS,
    UNIT,
    gamma,
    norm_of,
    orthogonality_factor,
    smallest_subnormal,
    unit_roundoff,
    unscaled,
    unscaled_upper,
    upward,
)
from minicompress.representation import Compressed

INPUTS, OUTPUTS = 2, 3
"""The two axes of a kernel (kh, kw, in, out) that Tucker-2 shortens."""


def tucker2(
    kernel: ArrayLike,
    *,
    rank_in: int | None = None,
    rank_out: int | None = None,
    energy: float | None = None,
    max_params: int | None = None,
    method: str = "sthosvd",
    norm: str = "fro",
) -> Compressed:
    """Factor a kernel into a 1x1 convolution, a smaller kernel, and a 1x1 convolution.

    Parameters
    ----------
    kernel : (kh, kw, in, out) ndarray of float16, float32 or float64, finite
    rank_in : int, 0 <= rank_in <= min(in, kh * kw * out)
    rank_out : int, 0 <= rank_out <= min(out, kh * kw * in)
        The two ranks are given together.
    energy : float in [0, 1]
        Take the ranks of fewest parameters whose two tails together lose no more than the rest of
        the sum of squares, so that at least this fraction is kept.
    max_params : int, at least 0
        Take the ranks of least tails whose parameters do not exceed this. Exactly one of the two
        ranks, energy and max_params is given.
    method : "sthosvd" | "hosvd"
        Cut the outputs after the inputs have been cut ("sequentially truncated"), or both as the
        kernel itself has them. The first is the default because its bound is its error, where the
        other's can be sqrt(2) times as much; and it is cheaper when the ranks are known.
    norm : "fro" | "spectral" | "max"
        Of the certificate.

    Returns
    -------
    rep : LowRank
        Factors (in, rank_in), (kh, kw, rank_in, rank_out) and (rank_out, out):
        ``in * rank_in + kh * kw * rank_in * rank_out + rank_out * out`` parameters.
    cert : Certificate
        ``sqrt(t_in**2 + t_out**2)``, t the roots of the sums of the dropped squared singular values
        of the two unfoldings; for "sthosvd" t_out is that of the kernel with its inputs cut, and
        the error is equal to it. "spectral" has the largest dropped singular value for t_out;
        "max" is the Frobenius bound. With what rounding can add, and rounded upward.

    Raises
    ------
    CompressionError
        `kernel` is not 4-D or not finite, one rank comes without the other, not exactly one way of
        choosing the ranks is given, or it is out of range.

    Notes
    -----
    ``max(t_in, t_out) <= error <= sqrt(t_in**2 + t_out**2)`` for "hosvd" (L. De Lathauwer, B. De
    Moor and J. Vandewalle, *A multilinear singular value decomposition*, 2000). "sthosvd" is of N.
    Vannieuwenhoven, R. Vandebril and K. Meerbergen, *A new truncation strategy for the higher-order
    singular value decomposition* (2012), and never worse than that bound. For convolutions: Y.-D.
    Kim et al., *Compression of deep convolutional neural networks for fast and low power mobile
    applications* (2016).

    Examples
    --------
    >>> rep, cert = tucker2(np.ones((3, 3, 4, 5)), max_params=18)
    >>> [f.shape for f in rep.factors], cert.bound < 1e-12
    ([(4, 1), (3, 3, 1, 1), (1, 5)], True)
    """
    w = finite_array(kernel, "kernel", ndim=4)
    kind = choice(norm, "norm", NORMS)
    sequential = choice(method, "method", ("sthosvd", "hosvd")) == "sthosvd"
    ranks = None if rank_in is None and rank_out is None else (rank_in, rank_out)
    given = exactly_one(ranks=ranks, energy=energy, max_params=max_params)
    kh, kw, inputs, outputs = w.shape
    a, exponent = scaled_float64(w)
    first = svd_of(_unfolded(a, INPUTS))
    if given != "ranks" or not sequential:
        second = svd_of(_unfolded(a, OUTPUTS))
    if given != "ranks":
        tails = dropped_squares(first.s), dropped_squares(second.s)
        lost = np.minimum(np.add.outer(*tails), tails[0][0])
        params = _params(w.shape, lost.shape)
    if given == "energy":
        kept = lost <= (1 - as_float(energy, "energy", 0, 1)) * lost[0, 0]
        ri, ro = _least(kept, params, lost)
    elif given == "max_params":
        ri, ro = _least(params <= as_int(max_params, "max_params", 0), lost, params)
    elif rank_in is None or rank_out is None:
        raise CompressionError(
            f"rank_in and rank_out are given together, not {rank_in} and {rank_out}"
        )
    else:
        ri = as_int(rank_in, "rank_in", 0, min(inputs, kh * kw * outputs))
        ro = as_int(rank_out, "rank_out", 0, min(outputs, kh * kw * inputs))
    u_in = first.u[:, :ri]
    partly = np.moveaxis(np.tensordot(a, u_in, (INPUTS, 0)), 3, INPUTS)  # (kh, kw, ri, out)
    if sequential:
        second = svd_of(_unfolded(partly, OUTPUTS))
    u_out = second.u[:, :ro]
    # Fewer inputs than outputs are left where rank_out > kh kw rank_in: the others carry nothing.
    u_out = np.pad(u_out, ((0, 0), (0, ro - u_out.shape[1])))
    core = partly @ u_out
    bound = _bound(
        a, exponent, first, second, (u_in, partly, core, u_out), sequential, kind, w.dtype
    )
    factors = _stored(u_in, core, u_out, exponent, w.dtype)
    return certified(w, factors, "ia,hwab,bo->hwio", kind, bound)


def _unfolded(a: Array, axis: int) -> Array:
    """The matrix whose rows are the slices along an axis."""
    rows = np.moveaxis(a, axis, 0)
    return np.ascontiguousarray(rows).reshape(a.shape[axis], a.size // max(a.shape[axis], 1))


def _params(shape: tuple[int, ...], ranks: tuple[int, ...]) -> Array:
    """The parameters for every pair of ranks."""
    kh, kw, inputs, outputs = shape
    ri, ro = np.ogrid[: ranks[0], : ranks[1]]
    return np.asarray(inputs * ri + kh * kw * ri * ro + ro * outputs)


def _least(allowed: Array, cost: Array, second: Array) -> tuple[int, int]:
    """The allowed pair of ranks of least cost; of equal ones that of least second cost."""
    pairs = np.flatnonzero(allowed)  # never empty: no rank at all is free, full rank loses nothing
    best = np.lexsort((second.ravel()[pairs], cost.ravel()[pairs]))[0]
    ri, ro = np.unravel_index(pairs[best], allowed.shape)
    return int(ri), int(ro)


def _stored(
    u_in: Array, core: Array, u_out: Array, exponent: int, dtype: DType
) -> tuple[Array, ...]:
    """The factors in `dtype`, each with a third of the magnitude, as powers of two."""
    shifts = _shifts(core, exponent)
    with np.errstate(under="ignore"):
        return tuple(
            freeze(cast_finite(np.ldexp(f, shift), dtype))
            for f, shift in zip((u_in, core, u_out.T), shifts, strict=True)
        )


def _shifts(core: Array, exponent: int) -> tuple[int, int, int]:
    """The powers of two by which the factors are scaled: no factor alone may overflow."""
    largest = int(np.frexp(np.abs(core).max(initial=0))[1])
    third = (exponent + largest) // 3
    return third, exponent - 2 * third, third


def _bound(
    a: Array,
    exponent: int,
    first: Svd,
    second: Svd,
    parts: tuple[Array, Array, Array, Array],
    sequential: bool,
    law: str,
    dtype: DType,
) -> float:
    """The law's error of the dropped triples, and what computing and storing the rest can add.

    With P the projection on the computed u_in, A - (decoded) is (A - P A), which the dropped
    triples of the inputs bound, and beside it what lies in the range of u_in, orthogonal to it
    whatever u_in is: the dropped triples of the outputs, and the rounding of both products. How
    far u u' is from a projection is at most o = ||u'u - I||, which adds o ||A||. Then each factor
    is cast to dtype and the product formed in float64 and rounded: entry by entry 4 u of dtype and
    the gamma of its sums, relative to |u_in| |core| |u_out|', and an eta for each subnormal entry.
    """
    u_in, partly, core, u_out = parts
    if not a.any():
        return 0.0
    size, (ri, ro) = norm_of(a), core.shape[2:]
    f_in = orthogonality_factor(first.u, first.vt)
    f_out = orthogonality_factor(second.u, second.vt) if second.s.size else 1.0
    off_in, off_out = f_in**2 - 1 + 4 * UNIT, f_out**2 - 1 + 4 * UNIT
    absolute = np.abs(core) @ np.abs(u_out.T)
    product = np.tensordot(np.abs(u_in), absolute, (1, INPUTS))
    saturated = unscaled(product.max(initial=0), exponent) >= float(np.finfo(dtype).max)
    spectral = law == "spectral" and not saturated

    cut_in = f_in * norm_of(first.s[ri:]) + first.residual
    tail = second.s[ro:]
    cut_out = f_out * (float(tail.max(initial=0)) if spectral else norm_of(tail))
    cut_out += second.residual + off_out * size
    partly_error = gamma(a.shape[INPUTS] + 2) * size * norm_of(u_in)
    core_error = gamma(a.shape[OUTPUTS] + 2) * norm_of(partly) * norm_of(u_out)
    if not sequential:  # the tail is that of the whole kernel, the cut is made in what is left
        cut_out = f_in * cut_out + 2 * partly_error
    cut_out = min(cut_out, (1 + off_out) * norm_of(partly))  # all that is left, at most
    beside = off_in * size + f_in * (partly_error + cut_out + f_out * core_error)
    unit, eta = unit_roundoff(dtype), smallest_subnormal(dtype)
    sums = gamma(ri * ro + ri + ro + 8)
    rounding = (4 * unit * (1 + 8 * unit) + sums) * norm_of(product)
    law_error = upward(math.hypot(cut_in, beside) + rounding, 2 * (a.size + 8))

    # One factor after the other moves by eta an entry, between the norms of the two others.
    norms = [
        math.ldexp(norm, shift)
        for norm, shift in zip((f_in, 2 * size, f_out), _shifts(core, exponent), strict=True)
    ]
    moves = [eta * math.sqrt(f.size) for f in (u_in, core, u_out)]
    lost = math.sqrt(a.size) * eta
    for i, move in enumerate(moves):
        before = math.prod(norms[:i])
        after = math.prod(n + m for n, m in zip(norms[i + 1 :], moves[i + 1 :], strict=True))
        lost += before * move * after
    return upward(unscaled_upper(law_error, exponent) + upward(2 * lost))
