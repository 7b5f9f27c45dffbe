"""The products that `LowRank` stands for, written as subscripts of an einsum: "ir,ro->io"."""

from __future__ import annotations

import numpy as np

from minicompress.arrays import Array, cast_finite
from minicompress.errors import CompressionError
from minicompress.norms import power_of_two_scaled

MOST_AXES = 32
"""Of an array in NumPy 1.26."""


def check_letters(subscripts: str) -> None:
    """Refuse subscripts unless each letter is in the output and one factor, or in two factors."""
    if not isinstance(subscripts, str) or subscripts.count("->") != 1:
        raise CompressionError(f"subscripts must be like 'ir,ro->io', not {subscripts!r}")
    left, output = subscripts.split("->")
    everywhere = left.replace(",", "") + output
    letters = everywhere.isascii() and everywhere.isalpha()
    if not letters or any(everywhere.count(letter) != 2 for letter in everywhere):
        raise CompressionError(
            f"every letter of {subscripts!r} must be one from a to z or A to Z, and stand in the "
            "output and one factor, or in two factors"
        )
    if max(len(term) for term in (*left.split(","), output)) > MOST_AXES:
        raise CompressionError(f"an array has at most {MOST_AXES} axes, unlike in {subscripts!r}")


def check_subscripts(subscripts: str, shapes: list[tuple[int, ...]]) -> None:
    """Refuse subscripts that do not fit factors of these shapes."""
    check_letters(subscripts)
    terms = subscripts.split("->")[0].split(",")
    if len(terms) != len(shapes) or len(terms) < 2:
        raise CompressionError(
            f"subscripts {subscripts!r} must name two or more factors, one term each; "
            f"there are {len(shapes)}"
        )
    sizes: dict[str, int] = {}
    for i, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        if len(term) != len(shape):
            raise CompressionError(f"factors[{i}] of shape {shape} does not fit the term {term!r}")
        for letter, n in zip(term, shape, strict=True):
            if sizes.setdefault(letter, n) != n:
                raise CompressionError(
                    f"axis {letter!r} of {subscripts!r} is {sizes[letter]} in one factor and {n} "
                    f"in another: shapes {shapes}"
                )


def output_shape(subscripts: str, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the product of factors of these shapes.

    Examples
    --------
    >>> output_shape("ir,ro->io", [(5, 2), (2, 3)])
    (5, 3)
    """
    left, output = subscripts.split("->")
    sizes = dict(zip(left.replace(",", ""), (n for s in shapes for n in s), strict=True))
    return tuple(sizes[letter] for letter in output)


def product(factors: list[Array], subscripts: str) -> Array:
    """The einsum in float64, each factor scaled by a power of two so that no step overflows."""
    scaled, exponents = zip(*(power_of_two_scaled(f.astype(np.float64)) for f in factors))
    with np.errstate(over="ignore", under="ignore"):
        result = np.ldexp(np.einsum(subscripts, *scaled, optimize=True), sum(exponents))
        return cast_finite(result, factors[0].dtype)
