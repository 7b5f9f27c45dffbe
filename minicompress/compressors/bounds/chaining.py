"""Chains: the error of a later step is added to that of the steps before it."""

from __future__ import annotations

import math

from minicompress import norms
from minicompress.arrays import Array


def disjoint_sum(first: float, second: float) -> float:
    """Two errors at different entries: their squares add (Pythagoras)."""
    return norms.upward(math.hypot(first, second), 8)


def overlapping_sum(first: float, second: float) -> float:
    """Two errors at the same entries: they add at most (triangle inequality)."""
    return norms.upward(first + second, 8)


def product_rule(
    before: list[Array], after: list[Array], errors: list[float], subscripts: str
) -> float:
    """How far a product moves when its factors move by at most `errors` in the Frobenius norm.

    The factors are replaced one after the other. The change of factor i is multiplied by the old
    factors on one side and by the new ones on the other, so it grows at most by their 2-norms. The
    replacement can start at either end; the smaller bound is taken.
    """
    left, output = subscripts.split("->")
    terms = left.split(",")
    old = [_two_norms(terms, i, f) for i, f in enumerate(before)]
    new = [_two_norms(terms, i, f) for i, f in enumerate(after)]
    moved = min(_exchange(old, new, errors), _exchange(new, old, errors))
    # The product itself is formed in float64 and rounded once, before the exchange and after it.
    sizes = {c: n for t, f in zip(terms, before) for c, n in zip(t, f.shape)}
    entries = math.prod(sizes[c] for c in output)
    inner = math.prod(n for c, n in sizes.items() if c not in output) ** 2
    dtype = before[0].dtype
    size = math.prod(map(norms.fro_upper, before)) + math.prod(map(norms.fro_upper, after))
    rounding = (norms.unit_roundoff(dtype) + norms.gamma(inner + 8)) * size
    return norms.upward(moved + rounding + 2 * math.sqrt(entries) * norms.smallest_subnormal(dtype))


def _exchange(
    first: list[tuple[float, float]], last: list[tuple[float, float]], errors: list[float]
) -> float:
    return norms.upward(
        sum(
            error
            * math.prod(toward_right for toward_right, _ in first[:i])
            * math.prod(toward_left for _, toward_left in last[i + 1 :])
            for i, error in enumerate(errors)
        )
    )


def _two_norms(terms: list[str], i: int, factor: Array) -> tuple[float, float]:
    """The 2-norms of a factor as a matrix that multiplies the next factor, or the one before.

    Its columns are the letters that it shares with that factor. If it also shares letters with a
    factor further away, there is no such matrix, and the Frobenius norm is the bound.
    """
    near = [set(terms[j]) if 0 <= j < len(terms) else set() for j in (i + 1, i - 1)]
    far = set("".join(t for j, t in enumerate(terms) if abs(j - i) > 1))
    if far & set(terms[i]):
        return norms.fro_upper(factor), norms.fro_upper(factor)
    both = []
    for shared in near:
        columns = [k for k, letter in enumerate(terms[i]) if letter in shared]
        rows = [k for k, letter in enumerate(terms[i]) if letter not in shared]
        width = math.prod(factor.shape[k] for k in columns)
        matrix = factor.transpose(rows + columns).reshape(-1 if width else 0, width)
        both.append(norms.spectral_norm_upper(matrix))
    return both[0], both[1]
