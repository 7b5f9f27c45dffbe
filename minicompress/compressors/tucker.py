"""Tucker-2: a kernel as a small kernel between two 1x1 convolutions.

The input axis and then the output axis are projected on the largest singular vectors of their
unfoldings. "hosvd" uses both unfoldings of the kernel itself (L. De Lathauwer et al., 2000).
"sthosvd" takes the second unfolding after the first projection (N. Vannieuwenhoven et al., 2012).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, as_float, as_int, choice, exactly_one, finite_array
from minicompress.compressors.bounds.svd import scaled_float64
from minicompress.compressors.bounds.tucker import (
    INPUTS,
    OUTPUTS,
    Tucker,
    factor_shifts,
    tucker_bound,
)
from minicompress.compressors.svd import dropped_squares, stored
from minicompress.errors import CompressionError
from minicompress.norms import NORMS, Svd, svd_of
from minicompress.representation import Compressed, LowRank, certified


def truncated_hosvd(
    a: Array, first: Svd, second: Svd | None, rank_in: int, rank_out: int
) -> Tucker:
    """Project the inputs of a kernel on `rank_in` directions, then its outputs on `rank_out`.

    `first` is the decomposition of the unfolding of the inputs, and `second` that of the outputs
    ("hosvd"). Without `second`, the result of the first projection is decomposed ("sthosvd").
    """
    u_in = first.u[:, :rank_in]
    partly = np.moveaxis(np.tensordot(a, u_in, (INPUTS, 0)), 3, INPUTS)  # (kh, kw, rank_in, out)
    if second is None:
        second = svd_of(unfolded(partly, OUTPUTS))
    u_out = second.u[:, :rank_out]
    # There are fewer vectors where rank_out > kh kw rank_in; the others are 0.
    u_out = np.pad(u_out, ((0, 0), (0, rank_out - u_out.shape[1])))
    return Tucker(first, second, u_in, partly, partly @ u_out, u_out)


def unfolded(a: Array, axis: int) -> Array:
    """The matrix whose rows are the slices along an axis."""
    rows = np.moveaxis(a, axis, 0)
    return np.ascontiguousarray(rows).reshape(a.shape[axis], a.size // max(a.shape[axis], 1))


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
        Keep at least this fraction of the sum of squares: take the ranks of fewest parameters whose
        two tails together are no more than the rest.
    max_params : int, at least 0
        Take the ranks of least tails whose parameters do not exceed this. Exactly one of the two
        ranks, energy and max_params is given.
    method : "sthosvd" | "hosvd"
        Decompose the outputs after the inputs have been projected ("sequentially truncated"), or
        both from the kernel itself. The first is the default: its bound is equal to its error,
        while the bound of "hosvd" can be sqrt(2) times its error. With given ranks it is cheaper.
    norm : "fro" | "spectral" | "max"
        Of the certificate.

    Returns
    -------
    rep : LowRank
        Factors (in, rank_in), (kh, kw, rank_in, rank_out) and (rank_out, out):
        ``in * rank_in + kh * kw * rank_in * rank_out + rank_out * out`` parameters.
    cert : Certificate
        "fro": ``sqrt(t_in**2 + t_out**2)``, where the tail t of an unfolding is the root of the sum
        of its dropped squared singular values. For "sthosvd" t_out is that of the projected kernel,
        and the error is equal to the bound. "spectral": t_out is the largest dropped singular
        value. "max": the Frobenius bound. What rounding can add is included.

    Raises
    ------
    CompressionError
        `kernel` is not 4-D or not finite, one rank is given without the other, an option is out of
        range, or not exactly one of the two ranks, energy and max_params is given.

    Notes
    -----
    ``max(t_in, t_out) <= error <= sqrt(t_in**2 + t_out**2)`` for "hosvd" (L. De Lathauwer, B. De
    Moor and J. Vandewalle, *A multilinear singular value decomposition*, 2000). "sthosvd" is of N.
    Vannieuwenhoven, R. Vandebril and K. Meerbergen, *A new truncation strategy for the higher-order
    singular value decomposition* (2012); it is never worse than that bound. For convolutions: Y.-D.
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
    first = svd_of(unfolded(a, INPUTS))
    second = None if given == "ranks" and sequential else svd_of(unfolded(a, OUTPUTS))
    if given == "ranks":
        if rank_in is None or rank_out is None:
            raise CompressionError(
                f"rank_in and rank_out are given together, not {rank_in} and {rank_out}"
            )
        ri = as_int(rank_in, "rank_in", 0, min(inputs, kh * kw * outputs))
        ro = as_int(rank_out, "rank_out", 0, min(outputs, kh * kw * inputs))
    elif second is not None:
        tails = dropped_squares(first.s), dropped_squares(second.s)
        lost = np.minimum(np.add.outer(*tails), tails[0][0])
        i, o = np.ogrid[: len(tails[0]), : len(tails[1])]
        params = inputs * i + kh * kw * i * o + o * outputs
        if given == "energy":
            allowed = lost <= (1 - as_float(energy, "energy", 0, 1)) * lost[0, 0]
            ri, ro = _least(allowed, params, lost)
        else:
            allowed = params <= as_int(max_params, "max_params", 0)
            ri, ro = _least(allowed, lost, params)
    cut = truncated_hosvd(a, first, None if sequential else second, ri, ro)
    parts = zip((cut.u_in, cut.core, cut.u_out.T), factor_shifts(cut.core, exponent))
    factors = tuple(stored(factor, shift, w.dtype) for factor, shift in parts)
    bound = tucker_bound(a, exponent, cut, sequential, kind, w.dtype)
    return certified(w, LowRank(factors, "ia,hwab,bo->hwio"), kind, bound)


def _least(allowed: Array, cost: Array, second: Array) -> tuple[int, int]:
    """The allowed pair of ranks of least cost; of equal ones that of least second cost."""
    pairs = np.flatnonzero(allowed)  # never empty: rank 0 costs nothing, full rank loses nothing
    best = np.lexsort((second.ravel()[pairs], cost.ravel()[pairs]))[0]
    ri, ro = np.unravel_index(pairs[best], allowed.shape)
    return int(ri), int(ro)
