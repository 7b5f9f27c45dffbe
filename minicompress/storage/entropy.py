"""Entropy coding of a sequence of integers: Huffman's code, and a model for the range coder.

The model of `range_encode`: most symbols are one value, which counts as zero. What is coded is how
many zeros come before the next other symbol, then on which side of zero that one is, then how far
from it. Each of the three is learned while it is coded. A sequence with few symbols that are not
zero takes as little time as it takes space.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

import numpy as np

from minicompress.arrays import Array, as_int, freeze
from minicompress.errors import FileFormatError
from minicompress.storage.bits import blob_bytes, symbol_array, unzigzag, zigzag
from minicompress.storage.huffman import huffman_decode as huffman_decode
from minicompress.storage.huffman import huffman_encode as huffman_encode
from minicompress.storage.range_coder import (
    Coder,
    Numbers,
    RangeDecoder,
    RangeEncoder,
    code_number,
    new_context,
)


def range_encode(symbols: Array) -> bytes:
    """Encode integers with an adaptive range coder: close to their entropy, and often below it.

    Parameters
    ----------
    symbols : (n,) ndarray of integers in [-2**31, 2**31)
        Any integer dtype, any layout; n may be 0.

    Returns
    -------
    bytes
        Self-contained, and the same on every machine.

    Raises
    ------
    CompressionError
        `symbols` is not 1-D, not of integers, or reaches out of that range.

    Notes
    -----
    Nothing is stored about the frequencies; they are learned on the way. A context of n decisions
    costs about log2(n) / 2 + 1 bits more than if its frequencies had been known.

    Examples
    --------
    >>> codes = np.zeros(100_000, np.int8)
    >>> codes[::1000] = 5
    >>> len(range_encode(codes))
    32
    >>> bool((range_decode(range_encode(codes)) == codes).all())
    True
    """
    array = symbol_array(symbols)
    coder, numbers = RangeEncoder(), Numbers()
    code_number(coder, numbers, array.size)
    code_sequence(coder, Ranges(), array.size, array)
    return coder.finish()


def range_decode(blob: bytes, *, max_count: int = 2**25) -> Array:
    """Decode what `range_encode` encoded.

    Parameters
    ----------
    blob : bytes
    max_count : int
        More symbols than this are refused before memory is taken for them.

    Returns
    -------
    (n,) ndarray of int64, read-only

    Raises
    ------
    FileFormatError
        The blob is not one that `range_encode` writes. One that was altered may well be: it then
        decodes to other symbols. The file format has a checksum against that.

    Examples
    --------
    >>> range_decode(range_encode(np.array([0, 0, -3, 0, 200])))
    array([  0,   0,  -3,   0, 200])
    """
    coder, numbers = RangeDecoder(blob_bytes(blob)), Numbers()
    count = code_number(coder, numbers, 0)
    if count > as_int(max_count, "max_count", 0):
        raise FileFormatError(f"{count} symbols are more than max_count={max_count}")
    array = code_sequence(coder, Ranges(), count)
    coder.finish()
    return freeze(array)


class Signed:
    """What was learned about integers around a centre, which is not itself among them."""

    def __init__(self) -> None:
        self.parameters = Numbers()
        self.distances = Numbers(), Numbers()  # above the centre, and below
        self.signs = [new_context() for _ in range(9)]
        self.centre, self.both_sides = 0, 0

    def begin(self, coder: Coder, symbols: Array | None) -> None:
        """Code the centre, which is the most frequent symbol, and if any lies below it."""
        below = 0
        if symbols is not None and symbols.size:
            values, counts = np.unique(symbols, return_counts=True)
            self.centre = int(values[counts.argmax()])
            below = int(values[0] < self.centre)
        self.centre = unzigzag(code_number(coder, self.parameters, zigzag(self.centre)))
        self.both_sides = code_number(coder, self.parameters, below)

    def code(self, coder: Coder, offset: int, likely: int = 0) -> int:
        """Code how far from the centre a symbol is, other than 0; `likely` chooses the context."""
        negative = coder.code(self.signs[likely], offset < 0) if self.both_sides else 0
        distance = code_number(coder, self.distances[negative], abs(offset) - 1) + 1
        return -distance if negative else distance


class Ranges(Signed):
    """What was learned about a sequence: `Signed`, and the runs of its most frequent symbol."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = Numbers(), Numbers()  # after a run of none, and after any other


def code_sequence(coder: Coder, model: Ranges, count: int, symbols: Array | None = None) -> Array:
    """Code `count` integers; decoding needs no `symbols`. Returns them, as int64."""
    if count == 0:
        return np.empty(0, np.int64)
    model.begin(coder, symbols)
    runs: Iterable[int] = repeat(0)
    offsets: Iterable[int] = repeat(0)
    if symbols is not None:
        others = np.flatnonzero(symbols != model.centre)
        runs = (np.diff(others, prepend=-1, append=count) - 1).tolist()
        offsets = [*(symbols[others] - model.centre).tolist(), 0]
    place, after = 0, 0
    places, found = [], []
    for run, offset in zip(runs, offsets):
        run = code_number(coder, model.runs[after], run)
        place += run
        if place >= count:
            break
        places.append(place)
        found.append(model.centre + model.code(coder, offset))
        place += 1
        after = int(run > 0)
        if place == count:
            break
    if place != count:
        raise FileFormatError(f"a run of {run} symbols does not fit into {count}")
    result = np.full(count, in_range([model.centre])[0], np.int64)
    result[places] = in_range(found)
    return result


def in_range(symbols: list[int]) -> Array:
    """Decoded symbols as int64, if they are such as can be encoded."""
    if symbols and not (min(symbols) >= -(2**31) and max(symbols) < 2**31):
        raise FileFormatError("a symbol is not in [-2**31, 2**31)")
    return np.array(symbols, np.int64)
