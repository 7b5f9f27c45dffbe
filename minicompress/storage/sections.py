"""The two sections of a file: numbers and arrays as bytes, and back.

- `coder` is one range coder for the whole file. It codes the numbers of the structure, each in a
  context of its name, and integers for which a model of `entropy` or `matrices` is shortest.
- `bulk` is plain bytes: floats, and integers that are packed or in Huffman's code.

As with the models of the range coder, one method serves both directions. It takes the value to
write and returns the value that is read. A `Reader` ignores the value given to it, which may then
be any stand-in.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar

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

T = TypeVar("T")

DTYPES: tuple[DType, ...] = (
    *FLOATS,
    *(np.dtype(f"{sign}{size}") for size in (1, 2, 4, 8) for sign in "iu"),
    np.dtype(np.bool_),
)
CODINGS = ("packed", "huffman", "sequence", "matrix")
# The decisions that a reader accepts, so that no file keeps it busy for long: this many, plus some
# for every byte that holds them.
FREE_WORK, WORK_PER_BYTE = 1 << 19, 16
# The most layers and representations in a file.
MOST_PARTS = 1 << 13


class _Numbers:
    """The part that writing and reading share: numbers and flags, each in a context of its name."""

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
        """An integer of at least 0 and less than `count`."""
        found = self.number(name, value)
        if found >= count:
            raise FileFormatError(f"{name} must be less than {count}, not {found}")
        return found

    def part(self) -> None:
        """Count a layer or a representation."""
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise CompressionError(f"there are more than {MOST_PARTS} layers and representations")


class Writer(_Numbers):
    """The two sections of a file that is being written.

    Parameters
    ----------
    codings : tuple of str
        The members of `CODINGS` to try for integers. "packed" is always tried.
    """

    coder: RangeEncoder

    def __init__(self, codings: tuple[str, ...] = CODINGS) -> None:
        super().__init__()
        self.coder, self.bulk, self.codings = RangeEncoder(), bytearray(), codings

    def fork(self) -> Writer:
        """A writer in the same state, to try how long something gets."""
        other = copy.copy(self)
        other.coder, other.bulk = self.coder.copy(), bytearray()
        learned = {name: numbers.copy() for name, numbers in self._numbers.items()}
        other._numbers, other._flags = defaultdict(Contexts, learned), self._flags.copy()
        return other

    def smallest(self, options: Iterable[Callable[[Writer], T]]) -> T:
        """Write with the option that takes the fewest bits, and return its result."""
        tried = []
        for option in options:
            fork = self.fork()
            tried.append((fork, option(fork)))
        best, result = min(tried, key=lambda pair: Writer._cost(pair[0]))
        self.bulk += best.bulk
        self.coder, self._parts = best.coder, best._parts
        self._numbers, self._flags = best._numbers, best._flags
        return result

    def one_of(self, name: str, options: Mapping[int, Callable[[Any], T]]) -> T:
        """Write with the option that takes the fewest bits, behind its number."""

        def numbered(writer: Writer, index: int) -> T:
            writer.number(name, index)
            return options[index](writer)

        return self.smallest([partial(numbered, index=index) for index in options])

    def claim(self, count: int, itemsize: int) -> None:
        """Nothing: a writer takes no memory that is not there."""

    def floats(self, shape: tuple[int, ...], dtype: DType, array: Array) -> Array:
        """Write an array of floats, bit for bit."""
        swapped = array.ravel().astype(dtype.newbyteorder(">"))
        octets = swapped.view(np.uint8).reshape(array.size, dtype.itemsize)
        used = np.flatnonzero(octets.any(axis=0))
        kept = int(used[-1]) + 1 if used.size else 0
        self.number("bytes", dtype.itemsize - kept)
        self.bulk += octets[:, :kept].tobytes()
        return array

    def octets(self, blob: bytes, count: int) -> bytes:
        """Write bytes; a reader takes `count` of them."""
        self.bulk += blob
        return blob

    def integers(self, shape: tuple[int, ...], dtype: DType, array: Array) -> Array:
        """Write an array of integers, or of bools, in the shortest coding that it fits."""
        values = array.ravel().view(np.int64) if dtype == np.uint64 else array.ravel()
        values = values.astype(np.int64, copy=False)
        small = bool(((values >= -(2**31)) & (values < 2**31)).all())
        two = len(shape) > 1 and 1 not in _as_matrix(shape)
        fits = {"packed": True, "huffman": small, "sequence": small, "matrix": small and two}
        codings = [c for c in CODINGS if fits[c] and c in ("packed", *self.codings)]
        if values.size:
            put = partial(Writer._put_integers, values=values, shape=shape)
            self.smallest([partial(put, coding=coding) for coding in codings])
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


class Reader(_Numbers):
    """The two sections of a file that is being read.

    Parameters
    ----------
    coded, bulk : bytes
    max_bytes : int
        Memory that may be taken. A file that needs more is refused in time.
    """

    coder: RangeDecoder

    def __init__(self, coded: bytes, bulk: bytes, max_bytes: int) -> None:
        super().__init__()
        self.coder = RangeDecoder(coded, allowed_work(len(coded)))
        self.bulk, self._left = ByteReader(bulk), max_bytes

    def one_of(self, name: str, options: Mapping[int, Callable[[Any], T]]) -> T:
        """Read the number of an option, and with it the rest."""
        return options[self.choice(name, 0, len(options))](self)

    def claim(self, count: int, itemsize: int) -> None:
        """Announce that memory is about to be taken."""
        if count * itemsize > self._left:
            raise FileFormatError(
                f"{count} more entries of {itemsize} bytes are more than max_bytes allows"
            )
        self._left -= count * itemsize

    def floats(self, shape: tuple[int, ...], dtype: DType, array: Array) -> Array:
        """Read an array of floats."""
        size = math.prod(shape)
        self.claim(size, dtype.itemsize)
        kept = dtype.itemsize - self.choice("bytes", 0, dtype.itemsize + 1)
        raw = self.bulk.take(size * kept)
        octets = np.zeros((size, dtype.itemsize), np.uint8)
        octets[:, :kept] = np.frombuffer(raw, np.uint8).reshape(size, kept)
        return _shaped(octets.view(dtype.newbyteorder(">")), shape, dtype)

    def octets(self, blob: bytes, count: int) -> bytes:
        """Read bytes."""
        return self.bulk.take(count)

    def integers(self, shape: tuple[int, ...], dtype: DType, array: Array) -> Array:
        """Read an array of integers, or of bools."""
        size = math.prod(shape)
        self.claim(size, dtype.itemsize)
        if size == 0:
            return freeze(np.empty(shape, dtype))
        coding = CODINGS[self.choice("coding", 0, len(CODINGS))]
        # They are decoded as 64-bit integers, for a short time.
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
            raise FileFormatError("an array of one dimension cannot be coded as a matrix")
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


Section: TypeAlias = Writer | Reader


def allowed_work(size: int) -> int:
    """The most decisions that a reader accepts in `size` bytes."""
    return FREE_WORK + WORK_PER_BYTE * size


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape as a matrix: the last axis as columns, all others as rows."""
    return math.prod(shape[:-1]), shape[-1]


def _shaped(values: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """Values in their shape and dtype; array and base are read-only, so not copied later."""
    return freeze(freeze(values.astype(dtype)).reshape(shape))


def _check_range(least: int, largest: int, dtype: DType) -> None:
    """Check that codes fit their dtype; uint64 is coded as the int64 of the same bits."""
    low, high = 0, 1
    if dtype != np.bool_:
        info = np.iinfo(np.int64 if dtype == np.uint64 else dtype)
        low, high = int(info.min), int(info.max)
    if not low <= least <= largest <= high:
        raise FileFormatError(f"codes from {least} to {largest} do not fit {dtype}")
