"""A model for the range coder of a matrix of integers, most of which are zero.

The weights of a pruned network are not zero at random:

- Whole rows and columns are zero: inputs and units that are not used. They are named once, and then
  skipped.
- Where a weight is not zero, the next one and the one a row of pixels away often are not zero
  either, and have the same sign. So each decision "is it zero?" is coded in the context of its
  neighbours above.
- If all these neighbours are zero, the context is how many entries the column had so far.

"Zero" means the most frequent value, the centre, as for sequences.
"""

from __future__ import annotations

import numpy as np

from minicompress.arrays import Array
from minicompress.errors import FileFormatError
from minicompress.storage.bits import decoded_symbols
from minicompress.storage.entropy import STAND_IN, Signed
from minicompress.storage.range_coder import Coder, code_number, new_context

# The longest row of pixels, in rows of the matrix, whose neighbours above are looked for.
FARTHEST = 64


def code_matrix(coder: Coder, shape: tuple[int, int], matrix: Array | None = None) -> Array:
    """Code the entries of a matrix; decoding needs no `matrix`. Returns it, as int64.

    Examples
    --------
    >>> from minicompress.storage.range_coder import RangeDecoder, RangeEncoder
    >>> matrix = np.zeros((784, 300), np.int64)
    >>> matrix[300:310, 7] = 1
    >>> encoder = RangeEncoder()
    >>> _ = code_matrix(encoder, matrix.shape, matrix)
    >>> blob = encoder.finish()
    >>> len(blob), bool((code_matrix(RangeDecoder(blob), matrix.shape) == matrix).all())
    (8, True)
    """
    if 0 in shape:
        return np.empty(shape, np.int64)
    model = Signed(coder, STAND_IN if matrix is None else matrix)
    offsets = np.zeros(shape, np.int64) if matrix is None else matrix - model.centre
    far = code_number(coder, model.parameters, _period(offsets != 0))
    if far > shape[0]:
        raise FileFormatError(f"a neighbour {far} rows away is not in a matrix of {shape[0]} rows")
    live_rows = _code_rows(coder, (offsets != 0).any(axis=1).tolist(), far)
    context = new_context()
    live = [coder.code(context, bit) for bit in (offsets != 0).any(axis=0).tolist()]
    columns = np.flatnonzero(live)
    near_contexts = [new_context() for _ in range(16)]
    busy_contexts = [new_context() for _ in range(3)]
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
                context = near_contexts[near]
            else:  # the column has under 1/2, up to 3/2, or over 3/2 of an average column's entries
                twice = 2 * counts[j] * width
                context = busy_contexts[(twice > total) + (twice > 3 * total)]
            if not coder.code(context, row[j] != 0):
                continue
            likely = _sign(a + d)
            likely = 2 + likely if likely else 5 + _sign(balance[j])
            offset = model.code(row[j], likely)
            coded[j] = _sign(offset)
            counts[j] += 1
            total += 1
            balance[j] += coded[j]
            places.append((i, j))
            found.append(model.centre + offset)
    result = np.full(shape, decoded_symbols([model.centre])[0], np.int64)
    if found:
        i, j = np.array(places).T
        result[i, columns[j]] = decoded_symbols(found)
    return result


def _code_rows(coder: Coder, alive: list[bool], far: int) -> list[int]:
    """Code which rows are alive, each in the context of the rows just before and `far` before."""
    contexts = [new_context() for _ in range(12)]
    live = [0] * (far + 2)
    for bit in alive:
        previous = live[-1] + live[-2]
        distant = sum(live[len(live) - far - 1 :][:3]) if far > 2 else 0
        live.append(coder.code(contexts[4 * previous + distant], bit))
    return live[far + 2 :]


def _period(other: Array) -> int:
    """The distance in rows at which nonzero entries most often repeat; 0 if only by chance.

    If the rows are the pixels of an image, row by row, this is its width.
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
