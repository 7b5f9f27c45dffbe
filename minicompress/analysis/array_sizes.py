"""What named arrays cost, array by array."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from minicompress.arrays import Value, ceil_div
from minicompress.representation import (
    Clustered,
    LowRank,
    Quantized,
    Rep,
    Sparse,
    decode,
    dtype_of,
    num_params,
    shape_of,
    storage_bits,
)
from minicompress.tables import aligned


@dataclass(frozen=True, repr=False)
class ArrayRow(Value):
    """One array of an `ArraySummary`.

    Parameters
    ----------
    name, form : str
        `form` says how it is stored, as `form_of` does.
    shape : tuple of int
    params, nonzeros : int
        Stored numbers; numbers that are not 0 when decoded.
    dense_bytes, packed_bytes : int
        As a plain array, and as its representation stores it, rounded up to whole bytes.
    """

    name: str
    form: str
    shape: tuple[int, ...]
    params: int
    nonzeros: int
    dense_bytes: int
    packed_bytes: int


@dataclass(frozen=True, eq=False, repr=False)
class ArraySummary(Value):
    """What named arrays cost: a row for each, and the sums; it prints as a table."""

    rows: tuple[ArrayRow, ...]

    @property
    def params(self) -> int:
        """Stored numbers."""
        return sum(row.params for row in self.rows)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all as plain arrays."""
        return sum(row.dense_bytes for row in self.rows)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all as they are stored."""
        return sum(row.packed_bytes for row in self.rows)

    def __repr__(self) -> str:
        head = ("array", "shape", "form", "params", "dense B", "packed B", "times smaller")
        cells: list[tuple[str, ...]] = [head]
        for row in self.rows:
            shape = " x ".join(map(str, row.shape))
            cells.append((row.name, shape, row.form, *_sizes(row)))
        return aligned([*cells, ("total", "", "", *_sizes(self))])


def summary_of_arrays(arrays: Mapping[str, Rep]) -> ArraySummary:
    """Count what named arrays cost.

    Examples
    --------
    >>> from minicompress.compressors.quantization import quantize
    >>> codes, _ = quantize(np.ones((8, 16), np.float32), num_bits=4, axis=-1)
    >>> summary_of_arrays({"weight": codes, "bias": np.ones(16, np.float32)})
    array    shape              form  params  dense B  packed B  times smaller
    --------------------------------------------------------------------------
    weight  8 x 16  Quantized 4 bits     128      512       128            4.0
    bias        16           float32      16       64        64            1.0
    total                                144      576       192            3.0
    """
    rows = []
    for name, rep in arrays.items():
        shape, dtype = shape_of(rep), dtype_of(rep)
        rows.append(
            ArrayRow(
                name,
                form_of(rep),
                shape,
                num_params(rep),
                int(np.count_nonzero(decode(rep))),
                math.prod(shape) * dtype.itemsize,
                ceil_div(storage_bits(rep), 8),
            )
        )
    return ArraySummary(tuple(rows))


def form_of(rep: Rep) -> str:
    """How an array is stored, in a few words.

    Examples
    --------
    >>> form_of(Sparse((4,), np.array([1]), np.ones(1)))
    'Sparse 75% zero'
    """
    match rep:
        case LowRank(factors, _):
            return f"LowRank rank {shape_of(factors[-1])[0]}"
        case Sparse(shape, indices, values):
            zeros = 1 - len(indices) / max(math.prod(shape), 1)
            inner = "" if isinstance(values, np.ndarray) else f", {form_of(values)}"
            return f"Sparse {zeros:.0%} zero{inner}"
        case Quantized(num_bits=num_bits, codes=codes):
            sparse = "" if isinstance(codes, np.ndarray) else f", {form_of(codes)}"
            return f"Quantized {num_bits} bits{sparse}"
        case Clustered(codebook=codebook):
            return f"Clustered {shape_of(codebook)[0]} values"
    return str(rep.dtype)


def _sizes(counted: ArrayRow | ArraySummary) -> list[str]:
    ratio = counted.dense_bytes / max(counted.packed_bytes, 1)
    sizes = (counted.params, counted.dense_bytes, counted.packed_bytes)
    return [*(f"{size:,}" for size in sizes), f"{ratio:.1f}"]
