"""Methods by their short names, as people write them: "int8", "prune80+int8", "rank50%+int4/32".

    METHOD = keep | STEP{+STEP}, each step at most once, in this order:
    rankR        a product of two factors of rank R
    rankP%       ... of the largest rank whose factors hold at most P % of the array's numbers
    pruneP       the P % of the entries that are smallest in magnitude become zero; also pruneP%
    pruneN:M     of every M neighbours along the last axis, the N largest stay; pruneN:M@A: axis A
    clusterK     at most K different values
    intB         codes of B bits, 2 to 16; a scale for each index of the axis that suits best
    intB@A       ... of axis A, counted from the end if negative; int8@all: one scale for the array
    intB/N       ... for every N neighbours along the longest axis; intB/N@A: along axis A
    uintB...     the same with zero points: for arrays that are not centred on zero

The axis that suits best has small steps and few scales: a bit of accuracy in every entry is worth
`PRICE` bits of scales in each. A scale serves at least `FEWEST` entries. One scale for the whole
array is a choice too, and what prune and cluster leave always gets one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from string import ascii_letters
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, finite_array
from minicompress.compressors.chaining import Compressor, chain
from minicompress.compressors.clustering import cluster
from minicompress.compressors.pruning import prune_magnitude, prune_n_m
from minicompress.compressors.quantization import quantize
from minicompress.compressors.svd import truncated_svd
from minicompress.errors import CompressionError
from minicompress.representation import Compressed, LowRank, certified

FEWEST, PRICE = 8, 8
"""Where no axis is given: the fewest entries that share a scale, and what a scale counts.

A scale has 32 bits, but the kernels in which it serves few entries, the depthwise ones, are a small
part of a network and need theirs most.
"""

NUMBER = r"(\d{1,3}(?:\.\d{1,6})?)"
AXIS = r"(?:@(-?\d{1,2}|all))?"
EXAMPLES = "int8, int4/32, prune80, prune80+int8, rank50%+int8, cluster16, prune2:4, keep"


def parse_method(text: str) -> Compressor | None:
    """The compressor that a short name stands for.

    Parameters
    ----------
    text : str
        As the module `minicompress.search.methods` describes: ``"prune80+int8"``.

    Returns
    -------
    compressor : callable, array -> Compressed; or None
        None for "keep". Its certificate is in the Frobenius norm. It pickles.

    Raises
    ------
    CompressionError
        The name is not understood; the message says which part of it.

    Examples
    --------
    >>> rep, cert = parse_method("prune50+int4")(np.linspace(-1, 1, 64).reshape(8, 8))
    >>> rep.indices.size, rep.values.num_bits
    (32, 4)
    >>> parse_method("prune50+int1")
    Traceback (most recent call last):
    minicompress.errors.CompressionError: 'int1' of method 'prune50+int1': 2 to 16 bits, not 1
    """
    if not isinstance(text, str):
        raise CompressionError(f"a method must be a text such as 'int8', not {text!r}")
    words = text.strip().lower().split("+")
    if words == ["keep"]:
        return None
    steps, kinds = [], []
    for word in words:
        step = _step(word.strip(), text)
        steps.append(step[1])
        kinds.append(step[0])
    if kinds != sorted(set(kinds)):
        raise CompressionError(
            f"method {text!r}: steps come once each, in the order rank, prune, cluster, int"
        )
    return steps[0] if len(steps) == 1 else chain(*steps)


def quantize_best_axis(weight: ArrayLike, **options: Any) -> Compressed:
    """`quantize` with a scale for each index of the axis that suits best, or one for all.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
    **options
        Those of `quantize` but for the axis.

    Returns
    -------
    rep : Quantized
    cert : Certificate

    Notes
    -----
    Half the steps are a bit more of accuracy. So ``log2(r) + PRICE n / size`` is made least, with
    the root mean square r of the ranges of the n slices. All slices have as many entries.

    Examples
    --------
    >>> loud = np.ones((8, 16))
    >>> loud[:, 3] = 100
    >>> quantize_best_axis(loud, num_bits=4).rep.axis
    1
    """
    w = finite_array(weight, "weight")
    symmetric = options.get("symmetric", True)
    axes: list[int | None] = [None]
    axes += [axis for axis, n in enumerate(w.shape) if n > 1 and w.size >= FEWEST * n]
    best = min(axes, key=lambda axis: _cost_of(w, axis, symmetric)) if w.size else None
    return quantize(w, axis=best, **options)


def quantize_longest_axis(weight: ArrayLike, **options: Any) -> Compressed:
    """`quantize` in blocks along the longest axis, the last one of these."""
    w = finite_array(weight, "weight")
    if w.ndim == 0:
        raise CompressionError("an array without axes has no blocks")
    return quantize(w, axis=max(range(w.ndim), key=lambda axis: (w.shape[axis], axis)), **options)


def factor_in_two(
    weight: ArrayLike, *, rank: int | None = None, share: float | None = None
) -> Compressed:
    """A truncated SVD of an array of two or more axes, split where the two sides are most alike.

    Parameters
    ----------
    weight : ndarray of float16, float32 or float64, finite
        The first axis against the others, or the last one: what serves both layouts of kernels.
    rank : int, optional
    share : float, optional
        The rank is the largest whose factors hold at most this share of the array's numbers.

    Returns
    -------
    rep : LowRank
    cert : Certificate

    Raises
    ------
    CompressionError
        `weight` has fewer than two axes, the rank is above the least of the two sides, or not even
        rank 1 fits the share.

    Examples
    --------
    >>> [f.shape for f in factor_in_two(np.ones((16, 4, 3, 3)), rank=2).rep.factors]
    [(16, 2), (2, 4, 3, 3)]
    """
    w = finite_array(weight, "weight")
    if w.ndim < 2:
        raise CompressionError(f"a rank needs two axes, and the shape is {w.shape}")
    first, last = w.shape[0], w.shape[-1]
    at_first = min(first, math.prod(w.shape[1:])) > min(math.prod(w.shape[:-1]), last)
    rows, columns = (w.shape[:1], w.shape[1:]) if at_first else (w.shape[:-1], w.shape[-1:])
    m, n = math.prod(rows), math.prod(columns)
    if share is not None:
        rank = int(share * m * n / max(m + n, 1))
        if rank == 0:
            raise CompressionError(
                f"rank 1 of an array of shape {w.shape} takes {m + n} numbers, more than "
                f"{share:.0%} of {m * n}"
            )
        rank = min(rank, m, n)
    rep, cert = truncated_svd(w.reshape(m, n), rank=rank)
    assert isinstance(rep, LowRank)
    left, right = (np.asarray(factor) for factor in rep.factors)
    letters = ascii_letters[: w.ndim]
    inner = ascii_letters[w.ndim]
    cut = len(rows)
    subscripts = f"{letters[:cut]}{inner},{inner}{letters[cut:]}->{letters}"
    size = left.shape[1]
    factors = (left.reshape(*rows, size), right.reshape(size, *columns))
    subscripts = "ir,ro->io" if w.ndim == 2 else subscripts
    return certified(w, LowRank(factors, subscripts), cert.norm, cert.bound)


def _cost_of(w: Array, axis: int | None, symmetric: bool) -> float:
    """Bits for each entry: those of the steps, but for a constant, and those of the scales."""
    others = tuple(i for i in range(w.ndim) if i != axis)
    high, low = (np.asarray(f(w, axis=others), np.float64) for f in (np.max, np.min))
    ranges = np.maximum(high, -low)
    if not symmetric:  # zero has a code of its own
        ranges = np.maximum(high, 0) / 2 - np.minimum(low, 0) / 2
    top = float(max(high.max(), -low.min())) or 1.0
    mean = float(np.mean((ranges / top) ** 2))
    return (math.log2(mean) / 2 if mean else -math.inf) + PRICE * ranges.size / w.size


def _step(word: str, text: str) -> tuple[int, Compressor]:
    """A step: its place in the order, and its compressor."""
    where = f"{word!r} of method {text!r}"
    for place, (pattern, make) in enumerate(STEPS):
        if found := re.fullmatch(pattern, word, re.ASCII):
            try:
                return place, make(*found.groups())
            except CompressionError as error:
                raise CompressionError(f"{where}: {error}") from None
    raise CompressionError(f"{where} is not understood: methods are, for example, {EXAMPLES}")


def _rank(number: str, percent: str) -> Compressor:
    if percent:
        return partial(factor_in_two, share=_percent(number, least=0) / 100)
    if "." in number or int(number) < 1:
        raise CompressionError(f"a rank is a whole number of at least 1, or a share, not {number}")
    return partial(factor_in_two, rank=int(number))


def _prune(number: str | None, n: str | None, m: str | None, axis: str | None) -> Compressor:
    if number is not None:
        return partial(prune_magnitude, amount=_percent(number) / 100)
    assert n is not None
    assert m is not None
    if not 0 < int(n) <= int(m):
        raise CompressionError(f"{n} of every {m} cannot stay")
    if axis == "all":
        raise CompressionError("neighbours lie along one axis")
    return partial(prune_n_m, n=int(n), m=int(m), axis=-1 if axis is None else int(axis))


def _cluster(number: str) -> Compressor:
    if not 1 <= int(number) <= 65536:
        raise CompressionError(f"1 to 65536 values, not {number}")
    return partial(cluster, n_clusters=int(number))


def _int(unsigned: str, bits: str, block: str | None, axis: str | None) -> Compressor:
    if not 2 <= int(bits) <= 16:
        raise CompressionError(f"2 to 16 bits, not {bits}")
    options: dict[str, Any] = {"num_bits": int(bits)}
    if unsigned:
        options |= {"signed": False, "symmetric": False}
    if block is not None:
        if axis == "all" or int(block) == 0:
            raise CompressionError("blocks have a size of at least 1 and lie along one axis")
        options["block_size"] = int(block)
        if axis is None:
            return partial(quantize_longest_axis, **options)
        options["axis"] = int(axis)
    elif axis is None:
        return partial(quantize_best_axis, **options)
    elif axis != "all":
        options["axis"] = int(axis)
    return partial(quantize, **options)


def _percent(number: str, least: float = 0) -> float:
    if not least <= float(number) <= 100:
        raise CompressionError(f"a share is from 0 to 100 percent, not {number}")
    return float(number)


STEPS: Sequence[tuple[str, Callable[..., Compressor]]] = (
    (rf"rank{NUMBER}(%?)", _rank),
    (rf"prune(?:{NUMBER}%?|(\d{{1,3}}):(\d{{1,3}}){AXIS})", _prune),
    (r"cluster(\d{1,5})", _cluster),
    (rf"(u?)int(\d{{1,2}})(?:/(\d{{1,6}}))?{AXIS}", _int),
)
"""In the order in which they follow each other: a pattern, and what makes the compressor."""
