"""What a network costs: its parameters, its multiplications, its bytes, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from minicompress.arrays import Array, Value, as_int
from minicompress.errors import CompressionError
from minicompress.nn.layers import LAYER_TYPES, Conv2D, Dense, Layer, factor_layers
from minicompress.nn.network import Sequential, layer_shapes
from minicompress.representation import (
    LowRank,
    Rep,
    Sparse,
    decode,
    dtype_of,
    num_params,
    shape_of,
    storage_bits,
)
from minicompress.storage.container import dumps


@dataclass(frozen=True, repr=False)
class LayerSummary(Value):
    """What one layer costs; see `summary` for what is counted."""

    index: int
    layer: str
    output_shape: tuple[int, ...]
    params: int
    nonzeros: int
    macs: int
    dense_bytes: int
    sparse_bytes: int
    packed_bytes: int
    activation_bytes: int
    saves_nothing: bool


@dataclass(frozen=True, eq=False, repr=False)
class Summary(Value):
    """The rows of `summary`, one a layer, and their sums; ``str()`` of it is a table."""

    rows: tuple[LayerSummary, ...]
    input_bytes: int = 0
    file_bytes: int | None = None

    @property
    def params(self) -> int:
        """Weights that are stored."""
        return sum(row.params for row in self.rows)

    @property
    def nonzeros(self) -> int:
        """Those of them that are not zero."""
        return sum(row.nonzeros for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        return sum(row.macs for row in self.rows)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all weights as plain arrays."""
        return sum(row.dense_bytes for row in self.rows)

    @property
    def sparse_bytes(self) -> int:
        """Bytes of all weights as plain arrays without their zeros."""
        return sum(row.sparse_bytes for row in self.rows)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all weights as they are represented."""
        return sum(row.packed_bytes for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """The most that the input and the output of a layer take together, for one input."""
        outputs = [self.input_bytes, *(row.activation_bytes for row in self.rows)]
        return max((a + b for a, b in pairwise(outputs)), default=self.input_bytes)

    def __str__(self) -> str:
        numbers = ["params", "nonzeros", "MACs", "dense B", "sparse B", "packed B", "output B"]
        header = ("", "layer", "output", *numbers, "")
        table = [header] + [_cells(row) for row in self.rows]
        table.append(("", "total", "", *_counts(self), ""))
        widths = [max(len(line[c]) for line in table) for c in range(len(header))]
        return "\n".join(
            "  ".join(
                # Words to the left, numbers to the right.
                cell.ljust(width) if c in (1, 2, len(header) - 1) else cell.rjust(width)
                for c, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        )


def summary(model: Sequential, input_shape: tuple[int, ...], *, file: bool = False) -> Summary:
    """Count what a model costs, in exact integers.

    Parameters
    ----------
    model : Sequential
        Its weights may be representations.
    input_shape : tuple of int
        Of one input, without the batch axis; only `macs`, `activation_bytes` and the shapes
        depend on it.
    file : bool
        Whether to count `file_bytes` too, which takes as long as `save`.

    Returns
    -------
    Summary
        For every layer and in total:

        params : `num_params` of weight and bias. A `LowRank` weight has those of its factors, a
            `Sparse` one those that it stores; batch normalization has its four arrays.
        nonzeros : how many of the stored weights are not 0 when decoded.
        macs : multiply-accumulates for one input. A `LowRank` weight counts as the chain of layers
            that it runs as. A mask cuts none, for the zeros are multiplied all the same. Adding a
            bias, pooling, activations and batch normalization count 0.
        dense_bytes : of weight and bias as plain arrays of their shape and dtype.
        sparse_bytes : the same without the zeros: what is not zero, and where it stands as a
            bitmap or as indices, whichever is less.
        packed_bytes : `storage_bits` of weight and bias in whole bytes: what the parts take by
            themselves, each padded to a byte.
        activation_bytes : of the output for one input, in the dtype of the weights before it. In
            total, the most that an input and an output take together.
        file_bytes : in total only, the length of the file that `save` writes: packed and
            entropy-coded, with the architecture. None unless asked for.
        saves_nothing : whether a compressed layer is no smaller packed than dense, or a factorized
            weight has as many parameters as its product or more. Never for plain arrays.

    Raises
    ------
    CompressionError
        A layer cannot take such an input, or cannot be counted: it is not of this package, and
        does not define both `parameters` and `macs` as `Layer` says.

    Examples
    --------
    >>> from minicompress.nn.architectures import lenet_300_100
    >>> print(summary(lenet_300_100(np.random.default_rng(0)), (28, 28, 1)))
       layer    output   params  nonzeros     MACs    dense B   sparse B   packed B  output B
    0  Flatten  784           0         0        0          0          0          0     3,136
    1  Dense    300     235,500   235,200  235,200    942,000    970,200    942,000     1,200
    2  ReLU     300           0         0        0          0          0          0     1,200
    3  Dense    100      30,100    30,000   30,000    120,400    123,750    120,400       400
    4  ReLU     100           0         0        0          0          0          0       400
    5  Dense    10        1,010     1,000    1,000      4,040      4,125      4,040        40
       total            266,610   266,200  266,200  1,066,440  1,098,075  1,066,440     6,272
    """
    shapes = layer_shapes(model, input_shape)
    itemsizes = [dtype_of(rep).itemsize for layer in model.layers for rep in _reps(layer)]
    itemsize = max(itemsizes, default=4)  # all layers of a network that runs have one dtype
    rows = tuple(
        _layer_account(i, layer, shapes[i], shapes[i + 1], itemsize)
        for i, layer in enumerate(model.layers)
    )
    return Summary(rows, math.prod(shapes[0]) * itemsize, len(dumps(model)) if file else None)


def _layer_account(
    index: int,
    layer: Layer,
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
    itemsize: int,
) -> LayerSummary:
    kind = type(layer)
    inherited = kind.parameters in {known.parameters for known in LAYER_TYPES}
    if kind not in LAYER_TYPES and (inherited or not hasattr(kind, "macs")):
        raise CompressionError(
            f"layer {index} ({kind.__name__}) cannot be counted: its class must define "
            "parameters(), all of its weights by name, and macs(input_shape), its "
            "multiply-accumulates for one input"
        )
    reps = _reps(layer)
    dense_bytes = sum(math.prod(shape_of(rep)) * dtype_of(rep).itemsize for rep in reps)
    packed_bytes = sum(-(-storage_bits(rep) // 8) for rep in reps)
    compressed = any(not isinstance(rep, np.ndarray) for rep in reps)
    pointless = any(
        isinstance(rep, LowRank) and num_params(rep) >= math.prod(shape_of(rep)) for rep in reps
    )
    return LayerSummary(
        index,
        kind.__name__,
        output_shape,
        sum(num_params(rep) for rep in reps),
        sum(_nonzeros(rep) for rep in reps),
        _macs(layer, input_shape),
        dense_bytes,
        sum(_sparse_bytes(decode(rep)) for rep in reps),
        packed_bytes,
        math.prod(output_shape) * itemsize,
        pointless or (compressed and packed_bytes >= dense_bytes),
    )


def _reps(layer: Layer) -> list[Rep]:
    return list(layer.parameters().values())


def _sparse_bytes(array: Array) -> int:
    places = np.flatnonzero(array)
    return -(-storage_bits(Sparse(array.shape, places, array.reshape(-1)[places])) // 8)


def _nonzeros(rep: Rep) -> int:
    if isinstance(rep, LowRank):
        return sum(_nonzeros(factor) for factor in rep.factors)
    return int(np.count_nonzero(decode(rep)))


def _macs(layer: Layer, input_shape: tuple[int, ...]) -> int:
    """Every output entry of a product costs one multiplication for each weight it sees."""
    if type(layer) not in LAYER_TYPES:
        return as_int(layer.macs(input_shape), f"{type(layer).__name__}.macs", 0)  # type: ignore[attr-defined]
    total, shape = 0, input_shape
    for part in factor_layers(layer):
        output = part.output_shape(shape)
        if isinstance(part, Conv2D | Dense):
            total += math.prod(output) * math.prod(shape_of(part.weight)[:-1])
        shape = output
    return total


def _cells(row: LayerSummary) -> tuple[str, ...]:
    return (
        str(row.index),
        row.layer,
        " x ".join(map(str, row.output_shape)),
        *_counts(row),
        "saves nothing" if row.saves_nothing else "",
    )


def _counts(what: LayerSummary | Summary) -> list[str]:
    names = ("params", "nonzeros", "macs", "dense_bytes", "sparse_bytes", "packed_bytes")
    return [f"{getattr(what, name):,}" for name in (*names, "activation_bytes")]
