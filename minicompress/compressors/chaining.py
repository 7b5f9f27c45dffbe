"""Hybrid methods: each compressor works on the arrays inside the result of the one before."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, finite_array
from minicompress.compressors.bounds.chaining import disjoint_sum, overlapping_sum, product_rule
from minicompress.errors import CompressionError
from minicompress.representation import (
    Clustered,
    Compressed,
    LowRank,
    Sparse,
    certified,
    checked,
    decode,
)

Compressor: TypeAlias = Callable[[Array], Compressed]


def chain(*compressors: Compressor) -> Compressor:
    """Make one compressor of several: each is applied to the leaves of the result before.

    Parameters
    ----------
    *compressors : callables, array -> Compressed, at least one
        Options are bound beforehand: ``functools.partial(quantize, num_bits=4)``. The leaves are
        the factors of a `LowRank`, the values of a `Sparse` and the codebook of a `Clustered`.
        A `Quantized` has none, so it can only come last.

    Returns
    -------
    compressor : callable, array -> Compressed
        Its representation is nested. Its certificate is in the Frobenius norm, by the tightest rule
        that applies.

    Raises
    ------
    CompressionError
        At once: there is no compressor, or one cannot be called. When an array is compressed: a
        compressor comes after a `Quantized`, or a certificate is in another norm. The values of a
        `Sparse` are 1-D, so per-channel options raise there.

    Notes
    -----
    Sparse: dropped and kept entries do not overlap, so the squares of the two errors are added.
    Clustered: every entry of a cluster moves with its value. LowRank: ``||UV - U'V'||_F <=
    ||U - U'||_F ||V||_2 + ||U'||_2 ||V - V'||_F``. Both are added to the error of the first step
    (triangle inequality).

    Examples
    --------
    >>> from minicompress.compressors.pruning import prune_magnitude
    >>> from minicompress.compressors.quantization import quantize
    >>> compressor = chain(partial(prune_magnitude, amount=0.5), partial(quantize, num_bits=4))
    >>> rep, cert = compressor(np.array([[8.0, 0.5], [-0.25, 3.0]]))
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
    return partial(_chained, steps=compressors)  # which pickle can send to other processes


def _chained(weight: ArrayLike, *, steps: tuple[Compressor, ...]) -> Compressed:
    w, (first, *rest) = finite_array(weight, "weight"), steps
    rep, cert = checked(first(w), "each compressor of a chain")
    if cert.norm != "fro":
        raise CompressionError(f"chain composes Frobenius certificates, not {cert.norm!r} ones")
    if not rest:
        return Compressed(rep, cert)
    then = partial(_chained, steps=tuple(rest))
    match rep:
        case Sparse(shape, indices, np.ndarray() as values):
            inner, kept = then(values), w.reshape(-1)[indices]
            rep = Sparse(shape, indices, inner.rep)
            add = disjoint_sum if np.array_equal(kept, values) else overlapping_sum
            bound = add(cert.bound, inner.cert.bound)
        case Clustered(codes, np.ndarray() as codebook):
            inner = then(codebook)
            rep = Clustered(codes, inner.rep)
            largest = np.bincount(codes.reshape(-1)).max(initial=0)
            bound = overlapping_sum(cert.bound, math.sqrt(largest) * inner.cert.bound)
        case LowRank(factors, subscripts) if all(isinstance(f, np.ndarray) for f in factors):
            before = [f for f in factors if isinstance(f, np.ndarray)]
            inners = [then(f) for f in before]
            rep = LowRank(tuple(i.rep for i in inners), subscripts)
            after = [decode(f) for f in rep.factors]
            moved = product_rule(before, after, [i.cert.bound for i in inners], subscripts)
            bound = overlapping_sum(cert.bound, moved)
        case _:
            raise CompressionError(
                f"nothing can follow a {type(rep).__name__} in a chain: it has no plain arrays "
                f"inside"
            )
    return certified(w, rep, "fro", bound)
