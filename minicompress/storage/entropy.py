"""Entropy coding of a sequence of integers: a model for the range coder.

Most symbols are assumed to be one value, the centre. The model codes how many centres come before
the next other symbol, then the sign of its distance from the centre, then the distance. It learns
the frequencies of all three while it codes. A sequence with few other symbols is short to store and
fast to code.
"""

from __future__ import annotations

from itertools import chain, repeat

import numpy as np

from minicompress.arrays import Array, as_int, freeze
from minicompress.errors import FileFormatError
from minicompress.storage.bits import (
    blob_bytes,
    decoded_symbols,
    symbol_array,
    unzigzag,
    zigzag,
)
from minicompress.storage.range_coder import (
    Coder,
    Contexts,
    RangeDecoder,
    RangeEncoder,
    code_number,
    new_context,
)

# What a decoder passes as the symbols to code, which are ignored.
STAND_IN = freeze(np.zeros(1, np.int64))


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
        `symbols` is not 1-D, not of integers, or has one outside that range.

    Notes
    -----
    Frequencies are not stored; they are learned while coding. For this, a context of n decisions
    costs about log2(n) / 2 + 1 more bits than with known frequencies (Krichevsky and Trofimov,
    1981).

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
    coder = RangeEncoder()
    code_number(coder, Contexts(), array.size)
    code_sequence(coder, array.size, array)
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
        `range_encode` does not write such a blob. An altered blob may be valid, and then decodes to
        other symbols; the file format has a checksum against that.

    Examples
    --------
    >>> range_decode(range_encode(np.array([0, 0, -3, 0, 200])))
    array([  0,   0,  -3,   0, 200])
    """
    coder = RangeDecoder(blob_bytes(blob))
    count = code_number(coder, Contexts(), 0)
    if count > as_int(max_count, "max_count", 0):
        raise FileFormatError(f"{count} symbols are more than max_count={max_count}")
    array = code_sequence(coder, count)
    coder.finish()
    return freeze(array)


class Signed:
    """A model of integers around their centre, the most frequent one, which it codes first."""

    def __init__(self, coder: Coder, symbols: Array) -> None:
        self.coder, self.parameters = coder, Contexts()
        self._distances = Contexts(), Contexts()  # above the centre, and below it
        self._signs = [new_context() for _ in range(9)]
        values, counts = np.unique(symbols, return_counts=True)
        centre = int(values[counts.argmax()])
        self.centre = unzigzag(code_number(coder, self.parameters, zigzag(centre)))
        self._both_sides = code_number(coder, self.parameters, int(values[0] < centre))

    def code(self, offset: int, likely: int = 0) -> int:
        """Code a symbol's distance from the centre, not 0; `likely` chooses the sign's context."""
        negative = self.coder.code(self._signs[likely], offset < 0) if self._both_sides else 0
        distance = code_number(self.coder, self._distances[negative], abs(offset) - 1) + 1
        return -distance if negative else distance


def code_sequence(coder: Coder, count: int, symbols: Array = STAND_IN) -> Array:
    """Code `count` integers; decoding needs no `symbols`. Returns them, as int64."""
    if count == 0:
        return np.empty(0, np.int64)
    model = Signed(coder, symbols)
    contexts = Contexts(), Contexts()  # of a run after an empty run, and after another
    others = np.flatnonzero(symbols != model.centre)
    runs = chain((np.diff(others, prepend=-1, append=count) - 1).tolist(), repeat(0))
    offsets = chain((symbols[others] - model.centre).tolist(), repeat(0))
    place, after = 0, 0
    places, found = [], []
    while place < count:
        run = code_number(coder, contexts[after], next(runs))
        place, after = place + run, int(run > 0)
        if place < count:
            places.append(place)
            found.append(model.centre + model.code(next(offsets)))
            place += 1
    if place > count:
        raise FileFormatError(f"a run of {run} symbols does not fit into {count}")
    result = np.full(count, decoded_symbols([model.centre])[0], np.int64)
    result[places] = decoded_symbols(found)
    return result
