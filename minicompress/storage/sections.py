"""The two sections of a file: how numbers and arrays become bytes, and bytes become them.

They are filled side by side. What is small or has a pattern is coded by one range coder,
from the first layer to the last: every number of the structure in a context of its own name, and
the codes that a model of `entropy` or `matrices` describes best. What is incompressible or asked to
be simple, floats and packed or Huffman codes, goes to `bulk`, byte by byte.

As with the models of the range coder, everything is written once and serves both directions: a
method takes the value to write, and returns the value that a reader finds there. A `Reader` ignores
what it is given, so a stand-in will do.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from minicompress.arrays import FLOATS, Array, DType, freeze
from minicompress.errors import CompressionError, FileFormatError
from minicompress.storage.bits import (
    ByteReader,
    pack_bits,
    packed_size,
    unpack_bits,
    unzigzag,
    zigzag,
)
from minicompress.storage.entropy import code_sequence
from minicompress.storage.huffman import huffman_decode, huffman_encode
from minicompress.storage.matrices import code_matrix
from minicompress.storage.range_coder import (
    Coder,
    Contexts,
    RangeDecoder,
    RangeEncoder,
    code_number,
)

DTYPES: tuple[DType, ...] = (*FLOATS, *(np.dtype(c) for c in "bBhHiIqQ"))
CODINGS = ("packed", "huffman", "sequence", "matrix")
# What a reader accepts of decisions, so that no file keeps it busy for long: this many, and more
# for every byte of the section that holds them.
FREE_WORK, WORK_PER_BYTE = 1 << 19, 16
# How many layers and representations a file may hold.
MOST_PARTS = 1 << 13


class Section:
    """What writing and reading share: numbers and flags, each in the context of its name."""

    coder: Coder

    def __init__(self) -> None:
        self._parts = 0
        self._numbers: defaultdict[str, Contexts] = defaultdict(Contexts)
        self._flags = Contexts()

    def number(self, name: str, value: int) -> int:
        """An integer of at least 0."""
        return code_number(self.coder, self._numbers[name], value)

    def flag(self, name: str, value: bool) -> bool:
        """True or false."""
        return bool(self.coder.code(self._flags[name], value))

    def choice(self, name: str, value: int, count: int) -> int:
        """One of `count` things."""
        found = self.number(name, value)
        if found >= count:
            raise FileFormatError(f"{name} must be less than {count}, not {found}")
        return found

    def part(self) -> None:
        """Count a layer or a representation."""
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise CompressionError(f"there are more than {MOST_PARTS} layers and representations")

    def claim(self, count: int, itemsize: int) -> None:
        """Say how much memory is about to be taken."""

    def floats(self, shape: tuple[int, ...], dtype: DType, array: Array) -> Array:
        """An array of floats, bit for bit."""
        raise NotImplementedError

    def integers(self, shape: tuple[int, ...], dtype: DType, array: Array) -> Array:
        """An array of integers."""
        raise NotImplementedError


class Writer(Section):
    """The two sections of a file that is being written.

    Parameters
    ----------
    codings : tuple of str
        Those of `CODINGS` that may be used for integers; "packed" always is.
    """

    coder: RangeEncoder

    def __init__(self, codings: tuple[str, ...] = CODINGS) -> None:
        super().__init__()
        self.coder, self.bulk, self.codings = RangeEncoder(), bytearray(), codings

    def fork(self) -> Writer:
        """A writer that goes on from here, to see how long something would get."""
        other = copy.copy(self)
        other.coder, other.bulk = self.coder.copy(), bytearray()
        learned = {name: numbers.copy() for name, numbers in self._numbers.items()}
        other._numbers, other._flags = defaultdict(Contexts, learned), self._flags.copy()
        return other

    def smallest(self, options: list[Callable[[Writer], object]]) -> None:
        """Write the one of several ways to say the same that takes the fewest bits."""
        forks = []
        for option in options:
            forks.append(self.fork())
            option(forks[-1])
        best = min(forks, key=Writer._cost)
        self.bulk += best.bulk
        self.coder, self._parts = best.coder, best._parts
        self._numbers, self._flags = best._numbers, best._flags

    def floats(self, shape: tuple[int, ...], dtype: DType, array: Array) -> Array:
        swapped = array.ravel().astype(dtype.newbyteorder(">"))
        octets = swapped.view(np.uint8).reshape(array.size, dtype.itemsize)
        used = np.flatnonzero(octets.any(axis=0))
        kept = int(used[-1]) + 1 if used.size else 0
        self.number("bytes", dtype.itemsize - kept)
        self.bulk += octets[:, :kept].tobytes()
        return array

    def integers(self, shape: tuple[int, ...], dtype: DType, array: Array) -> Array:
        values = array.ravel().view(np.int64) if dtype == np.uint64 else array.ravel()
        values = values.astype(np.int64, copy=False)
        small = bool(((values >= -(2**31)) & (values < 2**31)).all())
        matrix = len(shape) > 1 and 1 not in (shape[-1], math.prod(shape[:-1]))
        possible = {"packed": True, "huffman": small, "sequence": small, "matrix": small and matrix}
        options: list[Callable[[Writer], object]] = [
            lambda writer, coding=coding: writer._put_integers(coding, values, shape)  # type: ignore[misc]
            for coding, fits in possible.items()
            if fits and coding in ("packed", *self.codings)
        ]
        if values.size:
            self.smallest(options)
        return array

    def _put_integers(self, coding: str, values: Array, shape: tuple[int, ...]) -> None:
        self.number("coding", CODINGS.index(coding))
        if coding == "packed":
            least = int(values.min())
            offsets = values.view(np.uint64) - np.uint64(least & 2**64 - 1)
            width = int(offsets.max()).bit_length()
            self.number("least", zigzag(least))
            self.number("width", width)
            self.bulk += pack_bits(offsets, width)
        elif coding == "huffman":
            blob = huffman_encode(values)
            self.number("length", len(blob))
            self.bulk += blob
        elif coding == "sequence":
            code_sequence(self.coder, values.size, values)
        else:
            code_matrix(self.coder, _as_matrix(shape), values.reshape(_as_matrix(shape)))

    def _cost(self) -> float:
        """Bits, or infinity if a reader would refuse the work."""
        bits = self.coder.bits + 8 * len(self.bulk)
        return bits if self.coder.work <= allowed_work(self.coder.bits // 8) else math.inf


class Reader(Section):
    """The two sections of a file that is being read.

    Parameters
    ----------
    coded, bulk : bytes
    max_bytes : int
        Memory that may be taken; what would take more is refused before.
    """

    coder: RangeDecoder

    def __init__(self, coded: bytes, bulk: bytes, max_bytes: int) -> None:
        super().__init__()
        self.coder = RangeDecoder(coded, allowed_work(len(coded)))
        self.bulk, self._left = ByteReader(bulk), max_bytes

    def claim(self, count: int, itemsize: int) -> None:
        if count * itemsize > self._left:
            raise FileFormatError(
                f"{count} more entries of {itemsize} bytes are more than max_bytes allows"
            )
        self._left -= count * itemsize

    def floats(self, shape: tuple[int, ...], dtype: DType, array: Array) -> Array:
        size = math.prod(shape)
        self.claim(size, dtype.itemsize)
        kept = dtype.itemsize - self.choice("bytes", 0, dtype.itemsize + 1)
        raw = self.bulk.take(size * kept)
        octets = np.zeros((size, dtype.itemsize), np.uint8)
        octets[:, :kept] = np.frombuffer(raw, np.uint8).reshape(size, kept)
        return _shaped(octets.view(dtype.newbyteorder(">")), shape, dtype)

    def integers(self, shape: tuple[int, ...], dtype: DType, array: Array) -> Array:
        size = math.prod(shape)
        self.claim(size, dtype.itemsize)
        if size == 0:
            return freeze(np.empty(shape, dtype))
        coding = CODINGS[self.choice("coding", 0, len(CODINGS))]
        # All are decoded as 64-bit integers first, which are given back at once.
        self.claim(size, 8)
        self._left += 8 * size
        if coding == "packed":
            return self._packed(shape, dtype)
        if coding == "huffman":
            values = huffman_decode(self.bulk.take(self.number("length", 0)), max_count=size)
            if values.size != size:
                raise FileFormatError(f"{size} codes are needed, not {values.size}")
        elif coding == "sequence":
            values = code_sequence(self.coder, size)
        elif len(shape) > 1:
            values = code_matrix(self.coder, _as_matrix(shape))
        else:
            raise FileFormatError("what has one dimension is not coded as a matrix")
        _check_range(int(values.min()), int(values.max()), dtype)
        return _shaped(values, shape, dtype)

    def _packed(self, shape: tuple[int, ...], dtype: DType) -> Array:
        size, least = math.prod(shape), unzigzag(self.number("least", 0))
        width = self.choice("width", 0, 65)
        if width == 0:
            _check_range(least, least, dtype)
            return freeze(np.full(shape, np.int64(least).astype(dtype)))
        offsets = unpack_bits(self.bulk.take(packed_size(size, width)), size, width)
        _check_range(least, least + int(offsets.max()), dtype)
        values = (offsets + np.uint64(least & 2**64 - 1)).view(np.int64)
        return _shaped(values, shape, dtype)


def allowed_work(size: int) -> int:
    """How many decisions a reader accepts in so many bytes."""
    return FREE_WORK + WORK_PER_BYTE * size


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """The last axis as columns, all others as rows."""
    return math.prod(shape[:-1]), shape[-1]


def _shaped(values: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """Values in their shape and dtype, read-only to the bottom, so that nobody need copy them."""
    return freeze(freeze(values.astype(dtype)).reshape(shape))


def _check_range(least: int, largest: int, dtype: DType) -> None:
    """Codes must fit their dtype; uint64 goes as the int64 of the same bits."""
    info = np.iinfo(np.int64 if dtype == np.uint64 else dtype)
    if not info.min <= least <= largest <= info.max:
        raise FileFormatError(f"codes from {least} to {largest} do not fit {dtype}")
