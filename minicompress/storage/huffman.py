"""Huffman coding: each symbol gets a whole number of bits, frequent symbols get fewer.

1. Build a binary tree: join the two rarest trees until one is left (Huffman, *A method for the
   construction of minimum-redundancy codes*, 1952).
2. A symbol's depth in the tree is the length of its code. No code is the beginning of another.
3. Number the codes in the order (length, symbol). Such a code is canonical: it follows from the
   lengths alone, so nothing else is stored (Schwartz and Kallick, 1964).

Encoding and decoding work on whole arrays. A blob holds, with all numbers as varints:

- the number of symbols; if it is 0, nothing more;
- the number of distinct symbols, and the least of them (zigzag); if it is the only one, no more;
- the distances between neighbouring distinct symbols, minus 1: their width in bits, then packed;
- the lengths of their codes, minus 1: their width in bits, then packed;
- the codes of all symbols, highest bit first, and zeros up to a whole byte.
"""

from __future__ import annotations

import heapq

import numpy as np

from minicompress.arrays import Array, as_int, freeze
from minicompress.errors import FileFormatError
from minicompress.storage.bits import (
    ByteReader,
    blob_bytes,
    decoded_symbols,
    pack_bits,
    packed_size,
    put_varint,
    symbol_array,
    unpack_bits,
    unzigzag,
    zigzag,
)

# The longest code. Only millions of symbols with frequencies like Fibonacci's numbers reach it.
LONGEST = 32
# Symbols or bytes that are processed at a time, so that memory does not grow with their number.
BLOCK = 1 << 16


def huffman_encode(symbols: Array) -> bytes:
    """Encode integers with the Huffman code of their own frequencies.

    Parameters
    ----------
    symbols : (n,) ndarray of integers in [-2**31, 2**31)
        Any integer dtype, any layout; n may be 0.

    Returns
    -------
    bytes
        Self-contained: number of symbols, alphabet, lengths, codes.

    Raises
    ------
    CompressionError
        `symbols` is not 1-D, not of integers, or has one outside that range.

    Notes
    -----
    If the frequencies have entropy H, the mean length of a code is at least H and less than H + 1.
    No prefix code has a smaller mean length (Huffman, 1952). If all symbols are equal, their codes
    take no bits.

    Examples
    --------
    >>> blob = huffman_encode(np.array([7, 7, 7, -1, 7, 7, 2, 7]))
    >>> len(blob), huffman_decode(blob).tolist()
    (9, [7, 7, 7, -1, 7, 7, 2, 7])
    """
    array = symbol_array(symbols)
    alphabet, places, counts = np.unique(array, return_inverse=True, return_counts=True)
    head = put_varint(array.size)
    if array.size == 0:
        return head
    head += put_varint(alphabet.size) + put_varint(zigzag(int(alphabet[0])))
    if alphabet.size == 1:
        return head
    gaps, lengths = np.diff(alphabet) - 1, code_lengths(counts)
    for numbers in (gaps, lengths - 1):
        width = int(numbers.max()).bit_length()
        head += put_varint(width) + pack_bits(numbers, width)
    codes = _canonical_codes(lengths)
    pieces = [
        _spread_codes(codes[part], lengths[part])
        for part in np.split(places.ravel(), range(BLOCK, array.size, BLOCK))
    ]
    return head + np.packbits(np.concatenate(pieces)).tobytes()


def huffman_decode(blob: bytes, *, max_count: int = 2**25) -> Array:
    """Decode what `huffman_encode` encoded.

    Parameters
    ----------
    blob : bytes
    max_count : int
        More symbols than this are refused before memory is taken for them. Equal symbols take no
        bits, so a blob of a few bytes can claim any number of them.

    Returns
    -------
    (n,) ndarray of int64, read-only

    Raises
    ------
    FileFormatError
        The blob is truncated, too long, or otherwise not what `huffman_encode` writes.

    Examples
    --------
    >>> huffman_decode(huffman_encode(np.array([3, 3, 3], np.uint8)))
    array([3, 3, 3])
    """
    reader = ByteReader(blob_bytes(blob))
    count = reader.varint()
    if count > as_int(max_count, "max_count", 0):
        raise FileFormatError(f"{count} symbols are more than max_count={max_count}")
    if count == 0:
        reader.end()
        return freeze(np.empty(0, np.int64))
    size, least = reader.varint(), unzigzag(reader.varint())
    if size == 1:
        reader.end()
        return freeze(np.full(count, decoded_symbols([least])[0], np.int64))
    # The code of every symbol takes at least one bit.
    if not 2 <= size <= min(count, 8 * reader.left) or count > 8 * reader.left:
        raise FileFormatError(
            f"{count} symbols, {size} of them distinct, cannot be in {reader.left} bytes"
        )
    gaps, lengths = _packed(reader, size - 1), _packed(reader, size)
    alphabet = least + np.concatenate([[0], np.cumsum(gaps)])
    decoded_symbols([least, int(alphabet[-1])])
    # Kraft's equality: every sequence of bits is a sequence of codes.
    if lengths.max() > LONGEST or int((1 << (LONGEST - lengths)).sum()) != 1 << LONGEST:
        raise FileFormatError("the lengths are not those of a Huffman code")
    return freeze(alphabet[_decode_places(reader.take(reader.left), count, lengths)])


def code_lengths(counts: Array) -> Array:
    """The lengths of an optimal prefix code for symbols of these frequencies.

    Parameters
    ----------
    counts : (k,) ndarray of positive integers, k >= 2

    Returns
    -------
    (k,) ndarray of int64
        At most `LONGEST`. If Huffman's tree is deeper, the frequencies are halved until it is not;
        the code is then only nearly optimal.

    Examples
    --------
    >>> code_lengths(np.array([1, 1, 2, 4]))
    array([3, 3, 2, 1])
    """
    # Join the two rarest trees until one is left.
    heap = [(count, node) for node, count in enumerate(counts.tolist())]
    heapq.heapify(heap)
    parent = [0] * (2 * len(counts) - 1)
    for node in range(len(counts), len(parent)):
        (first, a), (second, b) = heapq.heappop(heap), heapq.heappop(heap)
        parent[a] = parent[b] = node
        heapq.heappush(heap, (first + second, node))
    depths = [0] * len(parent)
    for node in reversed(range(len(parent) - 1)):
        depths[node] = depths[parent[node]] + 1
    if max(depths) > LONGEST:
        return code_lengths((counts + 1) // 2)
    return np.array(depths[: len(counts)])


def _canonical_codes(lengths: Array) -> Array:
    """Number the codes in the order (length, symbol): the one before plus 1, zeros appended."""
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    codes = np.empty_like(lengths)
    # A code of length n takes 2**(LONGEST - n) of all words of LONGEST bits. Its first word comes
    # right after the words of the codes before it.
    taken = 1 << (LONGEST - ordered)
    codes[order] = (np.cumsum(taken) - taken) >> (LONGEST - ordered)
    return codes


def _spread_codes(codes: Array, lengths: Array) -> Array:
    """Concatenate the bits of the codes, as an array of 0 and 1."""
    ends = np.cumsum(lengths)
    shifts = np.repeat(ends, lengths) - 1 - np.arange(ends[-1])
    bits: Array = np.repeat(codes, lengths) >> shifts & 1
    return bits.astype(np.uint8)


def _decode_places(payload: bytes, count: int, lengths: Array) -> Array:
    """Find the index in the alphabet of each coded symbol.

    For every bit at once, look up the symbol whose code would begin there. Then walk from code to
    code, by their lengths, to find the bits at which codes do begin.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    taken = 1 << (LONGEST - ordered)
    ends = np.cumsum(taken)
    data = np.frombuffer(payload + bytes(8), np.uint8).astype(np.int64)
    found, place = [], 0  # place: the bit at which the next code begins
    left = count
    for start in range(0, len(payload), BLOCK):
        part = data[start : start + BLOCK + 4]
        words = sum(part[k : len(part) - 4 + k] << (32 - 8 * k) for k in range(5))
        windows = np.asarray(words)[:, np.newaxis] >> (8 - np.arange(8)) & (1 << LONGEST) - 1
        indices = np.searchsorted(ends, windows.ravel(), side="right")
        steps = ordered[indices].astype(np.uint8).tobytes()
        visited, here = [], place - 8 * start
        while left and here < len(steps):
            visited.append(here)
            here += steps[here]
            left -= 1
        found.append(order[indices[visited]])
        place = here + 8 * start
    if left or -(-place // 8) != len(payload) or (place % 8 and payload[-1] << place % 8 & 255):
        raise FileFormatError(f"{len(payload)} bytes do not hold the codes of {count} symbols")
    return np.concatenate(found)


def _packed(reader: ByteReader, count: int) -> Array:
    """Read the width of packed integers, then the integers, to each of which 1 is added."""
    width = reader.varint()
    if width > 32:
        raise FileFormatError(f"a Huffman blob has no integers of {width} bits")
    return unpack_bits(reader.take(packed_size(count, width)), count, width).astype(np.int64) + 1
