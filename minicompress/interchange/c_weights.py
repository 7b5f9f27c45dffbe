"""Weights as const arrays of C: packed, clustered or sparse, whichever takes the fewest bytes.

The integer model holds only codes, so pruning and clustering are found again in the codes: a code 0
is a pruned weight, and few distinct codes make a codebook.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array
from minicompress.representation import bits_for
from minicompress.storage.bits import pack_bits

NUMBERS_A_LINE = 16


def definition(name: str, values: Array, placement: str) -> str:
    """The lines of C that define a const array; `placement` is a macro for its place in memory."""
    numbers = list(map(str, values.tolist()))
    starts = range(0, len(numbers), NUMBERS_A_LINE)
    rows = "".join(f"    {', '.join(numbers[i : i + NUMBERS_A_LINE])},\n" for i in starts)
    return f"static const {placement} {values.dtype}_t {name}[{len(numbers)}] = {{\n{rows}}};"


class Numbers(NamedTuple):
    """Small integers in an array of C.

    Parameters
    ----------
    stored : 1-D ndarray of int8 or uint8
        int8: one number each. uint8: the packed bits of all numbers.
    bits : int from 1 to 8
        The bits of each number in `stored`.
    offset : int
        It is subtracted from a stored number.
    codebook : 1-D ndarray of int8, or None
        The stored numbers are indices into it.
    """

    stored: Array
    bits: int
    offset: int = 0
    codebook: Array | None = None

    def arrays(self, name: str) -> dict[str, Array]:
        """The arrays of C by name, in the dtypes that they have there."""
        codebook = {} if self.codebook is None else {f"{name}_codebook": self.codebook}
        return {name: self.stored, **codebook}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays("").values())

    def read(self, name: str, prefix: str, index: str) -> str:
        """The C expression for the number with this index."""
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
    """The codes of one layer, in the order in which its loops read them.

    Parameters
    ----------
    values : Numbers
        All codes. If there are gaps: the codes that are not 0.
    gaps : Numbers or None
        The number of zeros before each value. A run too long for one gap is cut by a value that is
        0. The last gap leads to the end, so there is one gap more than values.
    """

    values: Numbers
    gaps: Numbers | None = None

    def arrays(self, name: str) -> dict[str, Array]:
        """The arrays of C by name, in the dtypes that they have there."""
        gaps = {} if self.gaps is None else self.gaps.arrays(f"{name}_gap")
        return {**self.values.arrays(f"{name}_weight"), **gaps}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays("").values())

    def __str__(self) -> str:
        return str(self.values) + (f" behind {self.gaps.bits}-bit gaps" if self.gaps else "")


def smallest(codes: Array) -> Weights:
    """The form that takes the fewest bytes; the simplest of equally small ones.

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
    """The C macro that reads a number of 1 to 7 bits, highest bit first.

    A function cannot do this: a pointer to a constant in flash may have another type.
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
    """Store all codes, in as many bits as their range or the number of distinct codes needs."""
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
    """Store the codes that are not 0, and the gaps between them in `bits` bits each."""
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
    """Pack numbers; add a byte if a number can cross a byte, because two bytes are read at once."""
    spare = b"\0" if 8 % bits else b""
    return np.frombuffer(pack_bits(numbers, bits) + spare, np.uint8)
