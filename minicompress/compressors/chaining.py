"""Hybrid methods: one compressor after another, each on the leaves of the one before."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, finite_array
from minicompress.errors import CompressionError
from minicompress.norms import (
    error_norm,
    fro_upper,
    gamma,
    smallest_subnormal,
    spectral_norm_upper,
    unit_roundoff,
    upward,
)
from minicompress.representation import (
    Certificate,
    Clustered,
    Compressed,
    LowRank,
    Quantized,
    Sparse,
    checked,
    decode,
)

Compressor: TypeAlias = Callable[[Array], Compressed]


def chain(weight: ArrayLike, *compressors: Compressor) -> Compressed:
    """Compress an array by the first compressor, then the leaves of the result by the next.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
    *compressors : callables, array -> Compressed, at least one
        Options are bound beforehand: ``functools.partial(quantize, num_bits=4)``. The leaves are
        the factors of a `LowRank`, the values of a `Sparse`, the codebook of a `Clustered`;
        a `Quantized` has none, so it can only be the last.

    Returns
    -------
    rep : a nested representation
    cert : Certificate
        In the Frobenius norm, by the tightest rule that applies.

    Raises
    ------
    CompressionError
        No compressor, something behind a `Quantized`, or a certificate in another norm. Values of
        a `Sparse` are 1-D, so that per-channel options raise there.

    Notes
    -----
    Sparse: the dropped entries and the kept ones do not overlap, so the squares of the two errors
    add. Clustered: every entry of a cluster moves with its value, behind the error of the first
    step (triangle). LowRank: ``||UV - U'V'|| <= ||U - U'||_F ||V||_2 + ||U'||_2 ||V - V'||_F``,
    behind the error of the first step.

    Examples
    --------
    >>> from functools import partial
    >>> from minicompress.compressors.pruning import prune_magnitude
    >>> from minicompress.compressors.quantization import quantize
    >>> w = np.array([[8.0, 0.5], [-0.25, 3.0]])
    >>> rep, cert = chain(w, partial(prune_magnitude, amount=0.5), partial(quantize, num_bits=4))
    >>> rep.values.codes.tolist(), float(decode(rep)[1, 0])
    ([7, 3], 0.0)
    >>> cert.measured <= cert.bound
    True
    """
    if not compressors:
        raise CompressionError("chain needs at least one compressor")
    for compressor in compressors:
        if not callable(compressor):
            raise CompressionError(f"a compressor is a function of an array, not {compressor!r}")
    return _chain(finite_array(weight, "weight"), compressors)


def _chain(w: Array, compressors: tuple[Compressor, ...]) -> Compressed:
    first, rest = compressors[0], compressors[1:]
    rep, cert = checked(first(w), "each compressor of a chain")
    if cert.norm != "fro":
        raise CompressionError(f"chain composes Frobenius certificates, not {cert.norm!r} ones")
    if not rest:
        return Compressed(rep, cert)
    match rep:
        case Sparse(shape, indices, np.ndarray() as values):
            inner = _chain(values, rest)
            rep = Sparse(shape, indices, inner.rep)
            untouched = np.array_equal(w.reshape(-1)[indices], values)
            total = math.hypot if untouched else lambda *errors: sum(errors)
            bound = upward(total(cert.bound, inner.cert.bound), 8)
        case Clustered(codes, np.ndarray() as codebook):
            inner = _chain(codebook, rest)
            rep = Clustered(codes, inner.rep)
            largest = np.bincount(codes.reshape(-1)).max(initial=0)
            bound = upward(cert.bound + math.sqrt(largest) * inner.cert.bound, 8)
        case LowRank(factors, subscripts) if all(isinstance(f, np.ndarray) for f in factors):
            inners = [_chain(f, rest) for f in factors if isinstance(f, np.ndarray)]
            rep = LowRank(tuple(i.rep for i in inners), subscripts)
            before = [decode(f) for f in factors]
            after = [decode(f) for f in rep.factors]
            errors = [i.cert.bound for i in inners]
            bound = upward(cert.bound + _product_bound(before, after, errors, subscripts), 8)
        case np.ndarray():
            raise CompressionError("nothing can follow a plain array in a chain: it has no parts")
        case Quantized():
            raise CompressionError("nothing can follow a Quantized in a chain: its codes are final")
        case _:
            raise CompressionError(
                f"the leaves of {rep!r} are compressed already: give its compressors one by one"
            )
    return Compressed(rep, Certificate("fro", bound, error_norm(w, decode(rep), "fro")))


def _product_bound(
    before: list[Array], after: list[Array], errors: list[float], subscripts: str
) -> float:
    """How far a product moves when its factors move by at most `errors` in the Frobenius norm.

    One factor after the other is exchanged. The change of factor i then stands between the old
    factors on one side and the new ones on the other, and cannot grow by more than their 2-norms.
    Which side is new is free: both are tried.
    """
    left, output = subscripts.split("->")
    terms = left.split(",")
    old = [_two_norms(terms, i, f) for i, f in enumerate(before)]
    new = [_two_norms(terms, i, f) for i, f in enumerate(after)]
    moved = min(_exchange(old, new, errors), _exchange(new, old, errors))
    # The product itself is formed in float64 and rounded once, before the exchange and after it.
    inner = math.prod(
        n
        for t, f in zip(terms, before, strict=True)
        for c, n in zip(t, f.shape, strict=True)
        if c not in output
    )
    entries = math.prod(
        n
        for t, f in zip(terms, before, strict=True)
        for c, n in zip(t, f.shape, strict=True)
        if c in output
    )
    dtype = before[0].dtype
    sizes = math.prod(map(fro_upper, before)) + math.prod(map(fro_upper, after))
    rounding = (unit_roundoff(dtype) + gamma(inner + 8)) * sizes
    return upward(moved + rounding + 2 * math.sqrt(entries) * smallest_subnormal(dtype))


def _exchange(
    first: list[tuple[float, float]], last: list[tuple[float, float]], errors: list[float]
) -> float:
    return upward(
        sum(
            error
            * math.prod(toward_right for toward_right, _ in first[:i])
            * math.prod(toward_left for _, toward_left in last[i + 1 :])
            for i, error in enumerate(errors)
        )
    )


def _two_norms(terms: list[str], i: int, factor: Array) -> tuple[float, float]:
    """The 2-norms of a factor as the matrix that a change on its right, or on its left, meets.

    The columns are the letters it shares with the next factor, or with the one before. Where it
    shares some with a factor further off there is no such matrix, and its Frobenius norm serves.
    """
    near = [set(terms[j]) if 0 <= j < len(terms) else set() for j in (i + 1, i - 1)]
    far = set("".join(t for j, t in enumerate(terms) if abs(j - i) > 1))
    if far & set(terms[i]):
        return fro_upper(factor), fro_upper(factor)
    norms = []
    for shared in near:
        columns = [k for k, letter in enumerate(terms[i]) if letter in shared]
        rows = [k for k, letter in enumerate(terms[i]) if letter not in shared]
        width = math.prod(factor.shape[k] for k in columns)
        matrix = factor.transpose(rows + columns).reshape(-1 if width else 0, width)
        norms.append(spectral_norm_upper(matrix) if matrix.size else 0.0)
    return norms[0], norms[1]
