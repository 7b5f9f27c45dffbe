"""Numbers as bytes: integers of any size, and arrays of small ones packed bit by bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minicompress.arrays import Array, integer_array
from minicompress.errors import CompressionError, FileFormatError

# The longest varint: ten groups of seven bits hold every 64-bit integer.
VARINT_BYTES = 10
# Integers that are packed at a time, so that memory does not grow with their number. It is a
# multiple of 8, so each block fills whole bytes.
BLOCK = 1 << 16


def put_varint(value: int) -> bytes:
    """Write an integer >= 0 in groups of 7 bits, lowest first; the top bit means that more follow.

    Examples
    --------
    >>> put_varint(5), put_varint(300)
    (b'\\x05', b'\\xac\\x02')
    """
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def zigzag(value: int) -> int:
    """Map 0, -1, 1, -2, 2 ... to 0, 1, 2, 3, 4 ...: small integers of both signs stay small."""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """Undo `zigzag`."""
    return -(value + 1) // 2 if value & 1 else value // 2


def pack_bits(values: Array, width: int) -> bytes:
    """Pack unsigned integers of `width` bits each, highest bit first.

    Parameters
    ----------
    values : 1-D ndarray of integers from 0 to ``2**width - 1``
    width : int from 0 to 64

    Returns
    -------
    bytes
        ``ceil(values.size * width / 8)`` bytes; unused bits of the last one are 0.

    Examples
    --------
    >>> pack_bits(np.array([1, 2, 3]), 3).hex()  # 001 010 011, and zeros
    '2980'
    """
    # Each integer as bytes, the highest first; the last `width` of their bits are kept.
    size = _word(width)
    packed = bytearray()
    for start in range(0, values.size, BLOCK):
        wide = values[start : start + BLOCK].astype(f">u{size}").view(np.uint8).reshape(-1, size)
        bits = np.unpackbits(wide, axis=1)[:, 8 * size - width :]
        packed += np.packbits(bits).tobytes()
    return bytes(packed)


def unpack_bits(blob: bytes, count: int, width: int) -> Array:
    """Unpack `count` integers that `pack_bits` packed, as uint64.

    Raises
    ------
    FileFormatError
        `blob` has the wrong length, or an unused bit of its last byte is not 0.

    Examples
    --------
    >>> unpack_bits(bytes.fromhex("2980"), 3, 3)
    array([1, 2, 3], dtype=uint64)
    """
    if len(blob) != packed_size(count, width):
        raise FileFormatError(
            f"{count} integers of {width} bits take {packed_size(count, width)} bytes, "
            f"not {len(blob)}"
        )
    size = _word(width)
    values = np.empty(count, np.uint64)
    for start in range(0, count, BLOCK):
        part = values[start : start + BLOCK]
        raw = blob[start * width // 8 : start * width // 8 + packed_size(part.size, width)]
        bits = np.unpackbits(np.frombuffer(raw, np.uint8))
        if bits[part.size * width :].any():
            raise FileFormatError("bits behind the last packed integer must be 0")
        wide = np.zeros((part.size, 8 * size), np.uint8)
        wide[:, 8 * size - width :] = bits[: part.size * width].reshape(part.size, width)
        part[:] = np.packbits(wide, axis=1).view(f">u{size}").ravel()
    return values


def _word(width: int) -> int:
    """Bytes of the narrowest unsigned dtype that holds `width` bits."""
    return next(n for n in (1, 2, 4, 8) if width <= 8 * n)


def packed_size(count: int, width: int) -> int:
    """Bytes that `count` integers of `width` bits take."""
    return -(-count * width // 8)


class ByteReader:
    """Bytes that are read from front to back; reading past the end is a `FileFormatError`."""

    def __init__(self, blob: bytes) -> None:
        self._blob, self._place = blob, 0

    @property
    def left(self) -> int:
        """The number of bytes that are not read yet."""
        return len(self._blob) - self._place

    def take(self, count: int) -> bytes:
        """Read the next `count` bytes."""
        if count > self.left:
            raise FileFormatError(f"{count} more bytes are needed, but only {self.left} are left")
        self._place += count
        return self._blob[self._place - count : self._place]

    def varint(self) -> int:
        """Read an integer that `put_varint` wrote."""
        value, shift = 0, 0
        for _ in range(VARINT_BYTES):
            group = self.take(1)[0]
            value |= (group & 127) << shift
            shift += 7
            if group < 128:
                if group == 0 and shift > 7:
                    raise FileFormatError("an integer must not be longer than it need be")
                return value
        raise FileFormatError(f"an integer must not be longer than {VARINT_BYTES} bytes")

    def end(self) -> None:
        """Refuse bytes that were not read."""
        if self.left:
            raise FileFormatError(f"{self.left} bytes too many")


def symbol_array(symbols: Array) -> Array:
    """Symbols as int64, checked: what the entropy coders accept."""
    array = integer_array(symbols, "symbols")
    if array.ndim != 1:
        raise CompressionError(f"symbols must be 1-D, not of shape {array.shape}")
    if array.size and not (int(array.min()) >= -(2**31) and int(array.max()) < 2**31):
        raise CompressionError(
            f"symbols must lie in [-2**31, 2**31), not reach from {array.min()} to {array.max()}"
        )
    return array.astype(np.int64)


def decoded_symbols(symbols: Sequence[int]) -> Array:
    """Decoded symbols as int64, if an entropy coder accepts them."""
    if symbols and not -(2**31) <= min(symbols) <= max(symbols) < 2**31:
        raise FileFormatError("a symbol is not in [-2**31, 2**31)")
    return np.array(symbols, np.int64)


def blob_bytes(blob: bytes) -> bytes:
    """A blob as bytes, checked."""
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise CompressionError(f"blob must be bytes, not {type(blob).__name__}")
    return bytes(blob)
