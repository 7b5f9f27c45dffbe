"""Weights as const arrays of C: packed, clustered or sparse, whichever takes the fewest bytes.

The integer model holds codes and nothing else, so what was pruned or clustered is found again in
the codes: zeros are zeros, and few distinct values are a codebook.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array
from minicompress.representation import bits_for
from minicompress.storage.bits import pack_bits

NUMBERS_A_LINE = 16


class CArray(NamedTuple):
    """A const array of the C file: its name, and what it holds, of the dtype that it has there."""

    name: str
    values: Array

    def definition(self, placement: str) -> str:
        """The lines of C that define it, with a macro that may say where it lies."""
        numbers = list(map(str, self.values.tolist()))
        lines = (
            "    " + ", ".join(numbers[i : i + NUMBERS_A_LINE]) + ","
            for i in range(0, len(numbers), NUMBERS_A_LINE)
        )
        head = f"static const {placement} {self.values.dtype}_t {self.name}[{len(numbers)}] = {{"
        return "\n".join([head, *lines, "};"])


class Numbers(NamedTuple):
    """Small integers in an array of C.

    stored : 1-D ndarray of int8, one number an entry; or of uint8, the bits of all
    bits : int from 1 to 8
        Of each in `stored`.
    offset : int
        What is taken off what was read.
    codebook : 1-D ndarray of int8, or None
        What was read is a place in it.
    """

    stored: Array
    bits: int
    offset: int = 0
    codebook: Array | None = None

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes + (0 if self.codebook is None else self.codebook.nbytes)

    def arrays(self, name: str) -> Iterator[CArray]:
        """The arrays of C that it takes."""
        yield CArray(name, self.stored)
        if self.codebook is not None:
            yield CArray(f"{name}_codebook", self.codebook)

    def read(self, name: str, prefix: str, index: str) -> str:
        """The expression of C that is the number with this index."""
        code = f"{name}[{index}]"
        if self.bits < 8:
            code = f"{prefix}_read_{self.bits}({name}, {index})"
        if self.codebook is not None:
            return f"{name}_codebook[{code}]"
        return f"({code} - {self.offset})" if self.offset else code

    def __str__(self) -> str:
        if self.codebook is not None:
            many = "s" if self.codebook.size > 1 else ""
            return f"{self.bits}-bit indices of {self.codebook.size} value{many}"
        return f"{self.bits}-bit codes"


class Weights(NamedTuple):
    """The codes of one layer, in the order in which its loops want them.

    values : Numbers
        Of all of them; or, where there are gaps, of those that are not 0.
    gaps : Numbers or None
        How many zeros lie before each value. A longer run than a gap can say is cut by a value that
        is 0. One gap more than values leads to the place behind the last code.
    """

    values: Numbers
    gaps: Numbers | None = None

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.gaps is None else self.gaps.nbytes)

    def __str__(self) -> str:
        return str(self.values) + (f" behind {self.gaps.bits}-bit gaps" if self.gaps else "")


def smallest(codes: Array) -> Weights:
    """The form that takes the fewest bytes, of equally small ones the simplest.

    Parameters
    ----------
    codes : (n,) ndarray of int8, n at least 1

    Examples
    --------
    >>> print(smallest(np.array([7, -8, 1, 0], np.int8)))
    4-bit codes
    >>> print(smallest(np.array([100, -100] * 9, np.int8)))
    1-bit indices of 2 values
    >>> print(smallest(np.array([0, 0, 0, 0, 0, 0, 90, 0] * 9, np.int8)))
    1-bit indices of 1 value behind 3-bit gaps
    """
    forms = [Weights(_values(codes))]
    if codes.any():
        forms += [_sparse(codes, bits) for bits in range(1, 9)]
    return min(forms, key=lambda form: form.nbytes)


def reader(bits: int, prefix: str) -> str:
    """The macro of C that reads a number of 1 to 7 bits; the highest of them comes first.

    No function: of a constant that was placed, a pointer may have a type of its own.
    """
    byte, bit = f"(data)[(index) * {bits} / 8", f"(index) * {bits} % 8"
    bytes_, width = f"{byte}]", 8
    if 8 % bits:  # it may reach into the next byte
        bytes_, width = f"((uint32_t){byte}] << 8 | {byte} + 1])", 16
    return f"""/* Number `index` of an array of {bits}-bit numbers. */
#define {prefix}_read_{bits}(data, index) \\
    ((int32_t)({bytes_} \\
               >> ({width - bits} - {bit}) & {2**bits - 1}))"""


def _values(codes: Array) -> Numbers:
    """All codes, each in as many bits as the range or the number of distinct ones needs."""
    low, high = int(codes.min()), int(codes.max())
    bits = max(high, -low - 1).bit_length() + 1  # two's complement
    half = 2 ** (bits - 1)
    plain = Numbers(codes, 8)
    if bits < 8:
        plain = Numbers(_packed(codes.astype(np.int64) + half, bits), bits, half)
    codebook, index = np.unique(codes, return_inverse=True)
    width = max(bits_for(codebook.size), 1)
    if width == 8:
        return plain
    return min(
        plain, Numbers(_packed(index.ravel(), width), width, 0, codebook), key=lambda n: n.nbytes
    )


def _sparse(codes: Array, bits: int) -> Weights:
    """What is not 0, and gaps of so many bits between."""
    (places,) = np.nonzero(codes)
    zeros = np.diff(places, prepend=-1, append=codes.size) - 1
    longest = 2**bits - 1
    ends = np.cumsum(zeros // (longest + 1) + 1)  # a value of 0 takes a place too
    gaps = np.full(ends[-1], longest)
    gaps[ends - 1] = zeros % (longest + 1)
    values = np.zeros(ends[-1] - 1, np.int8)
    values[ends[:-1] - 1] = codes[places]
    return Weights(_values(values), Numbers(_packed(gaps, bits), bits))


def _packed(numbers: Array, bits: int) -> Array:
    """Bit by bit, and a byte more where a number may reach into the next: two are read at once."""
    spare = b"\0" if 8 % bits else b""
    return np.frombuffer(pack_bits(numbers, bits) + spare, np.uint8)
