"""A model for the range coder of a matrix of integers, most of which are zero.

The weights of a pruned network are not scattered at random. Whole rows and columns are dead, the
inputs and units that nothing goes through; those are named once and skipped. Where a weight is not
zero, the one next to it and the one a row of pixels away often are not either, and have its sign;
and some columns are busier than others. So for each entry of the rows and columns that are alive
it is coded whether it is zero, in a context of its neighbours above, or if they are all zero, of
how busy its column was so far. Then, if need be, its sign and magnitude.

"Zero" is the most frequent value, here as for sequences.
"""

from __future__ import annotations

import numpy as np

from minicompress.arrays import Array, as_int, freeze
from minicompress.errors import FileFormatError
from minicompress.storage.bits import blob_bytes, symbol_array
from minicompress.storage.entropy import Signed, in_range
from minicompress.storage.range_coder import (
    Coder,
    Numbers,
    RangeDecoder,
    RangeEncoder,
    code_number,
    new_context,
)

# How far away, in rows, a neighbour is looked for beside the next row: as far as a row of pixels.
FARTHEST = 64


def range_encode_matrix(matrix: Array) -> bytes:
    """Encode a matrix of integers, most of them equal, with an adaptive range coder.

    Parameters
    ----------
    matrix : (m, n) ndarray of integers in [-2**31, 2**31)
        Any integer dtype, any layout; m or n may be 0.

    Returns
    -------
    bytes
        Self-contained, and the same on every machine.

    Raises
    ------
    CompressionError
        `matrix` is not 2-D, not of integers, or reaches out of that range.

    Examples
    --------
    >>> matrix = np.zeros((784, 300), np.int8)
    >>> matrix[300:310, 7] = 1
    >>> len(range_encode_matrix(matrix))
    12
    >>> bool((range_decode_matrix(range_encode_matrix(matrix)) == matrix).all())
    True
    """
    array = symbol_array(matrix, ndim=2)
    coder, numbers = RangeEncoder(), Numbers()
    for n in array.shape:
        code_number(coder, numbers, n)
    code_matrix(coder, Neighbours(), array.shape, array)
    return coder.finish()


def range_decode_matrix(blob: bytes, *, max_count: int = 2**25) -> Array:
    """Decode what `range_encode_matrix` encoded.

    Parameters
    ----------
    blob : bytes
    max_count : int
        More entries, rows or columns than this are refused before memory is taken for them.

    Returns
    -------
    (m, n) ndarray of int64, read-only

    Raises
    ------
    FileFormatError
        The blob is not one that `range_encode_matrix` writes.

    Examples
    --------
    >>> range_decode_matrix(range_encode_matrix(np.array([[0, 0, 0], [0, -7, 0]])))
    array([[ 0,  0,  0],
           [ 0, -7,  0]])
    """
    coder, numbers = RangeDecoder(blob_bytes(blob)), Numbers()
    rows, columns = code_number(coder, numbers, 0), code_number(coder, numbers, 0)
    if max(rows, columns, rows * columns) > as_int(max_count, "max_count", 0):
        raise FileFormatError(f"{rows} x {columns} entries are more than max_count={max_count}")
    array = code_matrix(coder, Neighbours(), (rows, columns))
    coder.finish()
    return freeze(array)


class Neighbours(Signed):
    """What was learned about a matrix: `Signed`, and where its entries other than zero stand."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = [new_context() for _ in range(12)]
        self.columns = new_context()
        self.near = [new_context() for _ in range(16)]
        self.busy = [new_context() for _ in range(3)]


def code_matrix(
    coder: Coder, model: Neighbours, shape: tuple[int, ...], matrix: Array | None = None
) -> Array:
    """Code the entries of a matrix; decoding needs no `matrix`. Returns it, as int64."""
    if 0 in shape:
        return np.empty(shape, np.int64)
    model.begin(coder, None if matrix is None else matrix.ravel())
    offsets = np.zeros(shape, np.int64) if matrix is None else matrix - model.centre
    far = code_number(coder, model.parameters, _period(offsets != 0))
    if far > shape[0]:
        raise FileFormatError(f"a neighbour {far} rows away is not in a matrix of {shape[0]} rows")
    live_rows = _code_rows(coder, model, (offsets != 0).any(axis=1).tolist(), far)
    live = [coder.code(model.columns, bit) for bit in (offsets != 0).any(axis=0).tolist()]
    columns = np.flatnonzero(live)
    width = len(columns)
    dead = [0] * width
    signs = {-k: dead for k in range(1, max(far, 2) + 1)}  # by row: -1, 0, 1 of its live columns
    counts, total, balance = [0] * width, 0, [0] * width
    found, places = [], []
    for i, alive in enumerate(live_rows):
        signs[i] = dead
        if not alive:
            continue
        row = offsets[i, columns].tolist()
        signs[i] = coded = [0] * width
        above, second = signs[i - 1], signs[i - 2]
        distant = signs[i - far] if far else dead
        next_to_it = signs[i - far + 1] if far > 1 else dead
        for j in range(width):
            a, d = above[j], distant[j]
            near = (a & 1) | (d & 1) << 1 | (second[j] & 1) << 2 | (next_to_it[j] & 1) << 3
            if near:
                context = model.near[near]
            else:  # fewer than half as many as the average column has, more than 3/2, or between
                twice = 2 * counts[j] * width
                context = model.busy[(twice > total) + (twice > 3 * total)]
            if not coder.code(context, row[j] != 0):
                continue
            likely = _sign(a + d)
            likely = 2 + likely if likely else 5 + _sign(balance[j])
            offset = model.code(coder, row[j], likely)
            coded[j] = _sign(offset)
            counts[j] += 1
            total += 1
            balance[j] += coded[j]
            places.append((i, j))
            found.append(model.centre + offset)
    result = np.full(shape, in_range([model.centre])[0], np.int64)
    if found:
        i, j = np.array(places).T
        result[i, columns[j]] = in_range(found)
    return result


def _code_rows(coder: Coder, model: Neighbours, alive: list[bool], far: int) -> list[int]:
    """Which rows are alive, each in the context of those before it and those one period before."""
    live = [0] * (far + 2)
    for bit in alive:
        previous = live[-1] + live[-2]
        distant = sum(live[len(live) - far - 1 :][:3]) if far > 2 else 0
        live.append(coder.code(model.rows[4 * previous + distant], bit))
    return live[far + 2 :]


def _period(other: Array) -> int:
    """How many rows away an entry most often has one like itself, if that is not by chance.

    What is drawn row by row, an image or a kernel, has neighbours that far from each other.
    """
    rows = len(other)
    counts = other.sum(axis=0, dtype=np.float64)
    best, most = 0, 0.0
    for far in range(3, min(FARTHEST, rows - 1) + 1):
        both = np.count_nonzero(other[far:] & other[:-far]) / (rows - far)
        if both > most:
            best, most = far, both
    by_chance = float(np.sum(counts**2)) / rows**2
    return best if most > 1.5 * by_chance else 0


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
