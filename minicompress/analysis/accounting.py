"""What a network costs, layer by layer: parameters, multiplications and bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from minicompress.analysis.array_sizes import ArraySummary, summary_of_arrays
from minicompress.arrays import Array, Value, as_int, ceil_div
from minicompress.errors import CompressionError
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.layers import LAYER_TYPES, Conv2D, ConvTranspose2D, Dense, factor_layers
from minicompress.nn.network import Network, last_readers, value_shapes
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
from minicompress.tables import aligned


@dataclass(frozen=True, repr=False)
class LayerSummary(Value):
    """One row of a `Summary`: what one layer costs.

    Parameters
    ----------
    index, layer : int, str
        The layer's position in the model, and the name of its type.
    reads : tuple of int
        The values that it reads.
    output_shape : tuple of int
        Of one output, without the batch axis.
    params, nonzeros, macs, dense_bytes, sparse_bytes, packed_bytes, activation_bytes : int
        Counted as `summary` says.
    saves_nothing : bool
        Whether the layer is compressed, but takes as many bytes or parameters as before.
    """

    index: int
    layer: str
    reads: tuple[int, ...]
    output_shape: tuple[int, ...]
    params: int
    nonzeros: int
    macs: int
    dense_bytes: int
    sparse_bytes: int
    packed_bytes: int
    activation_bytes: int
    saves_nothing: bool


def _total(name: str, doc: str) -> property:
    """A property of a `Summary`: the sum over its rows."""
    return property(lambda summary: sum(getattr(row, name) for row in summary.rows), doc=doc)


@dataclass(frozen=True, eq=False, repr=False)
class Summary(Value):
    """The result of `summary`: one row for each layer, and the sums; it prints as a table.

    Parameters
    ----------
    rows : tuple of LayerSummary
    activation_bytes : int
        The most that the values which are still needed take together, for one input.
    file_bytes : int or None
        The length of the model's file, if it was asked for.
    """

    rows: tuple[LayerSummary, ...]
    activation_bytes: int = 0
    file_bytes: int | None = None

    params = _total("params", "Stored weights.")
    nonzeros = _total("nonzeros", "Stored weights that are not zero.")
    macs = _total("macs", "Multiply-accumulates for one input.")
    dense_bytes = _total("dense_bytes", "Bytes of all weights as plain arrays.")
    sparse_bytes = _total("sparse_bytes", "Bytes of all weights as arrays without their zeros.")
    packed_bytes = _total("packed_bytes", "Bytes of all weights as they are stored.")

    def __repr__(self) -> str:
        counted = ("params", "nonzeros", "MACs", "dense B", "sparse B", "packed B", "output B")
        rows = [
            (
                f"{row.index} {row.layer}",
                ", ".join(map(str, row.reads)),
                " x ".join(map(str, row.output_shape)),
                *_counts(row),
                "saves nothing" if row.saves_nothing else "",
            )
            for row in self.rows
        ]
        cells = [("layer", "reads", "output", *counted, ""), *rows]
        cells.append(("total", "", "", *_counts(self), ""))
        if all(row.reads == (row.index,) for row in self.rows):  # a chain
            cells = [(*row[:1], *row[2:]) for row in cells]
        return aligned(cells)


@overload
def summary(model: Network, input_shape: tuple[int, ...], *, file: bool = ...) -> Summary: ...
@overload
def summary(model: Mapping[str, Rep]) -> ArraySummary: ...
def summary(model: Any, input_shape: Any = None, *, file: bool = False) -> Any:
    """Count what a network costs, or arrays with names, in exact integers.

    Parameters
    ----------
    model : Network, or mapping of str to ndarray or representation
        The weights of a network may be representations.
    input_shape : tuple of int
        Of one input, without the batch axis. Only `macs`, `activation_bytes` and the shapes depend
        on it. Arrays have none.
    file : bool
        Whether to count `file_bytes` too, which takes as long as `save`.

    Returns
    -------
    Summary, or ArraySummary
        For every layer (or array) and in total:

        params : `num_params` of weight and bias. For a `LowRank` weight these are the entries of
            its factors, for a `Sparse` weight the values that it stores. Batch normalization has
            four arrays.
        nonzeros : how many of the stored weights are not 0 when decoded.
        macs : multiply-accumulates for one input. A `LowRank` weight counts as the chain of layers
            that it runs as. Pruning saves none here, because zeros are multiplied like other
            numbers. Adding a bias, pooling, activations and batch normalization count 0.
        dense_bytes : of weight and bias as plain arrays of their shape and dtype.
        sparse_bytes : of the nonzero entries, and their positions as a bitmap or as indices,
            whichever is less.
        packed_bytes : `storage_bits` of weight and bias, each rounded up to whole bytes.
        activation_bytes : of the output for one input, in the dtype of the weights. In total, the
            most that all values take together which are needed at the same time: in a chain a
            layer's input and output, with a shortcut also the value that waits for its join.
        file_bytes : in total only, the length of the file that `save` writes: packed and
            entropy-coded, with the architecture. None unless asked for.
        saves_nothing : whether a compressed layer is no smaller packed than dense, or a `LowRank`
            weight has as many parameters as its product or more. Always False for plain arrays.

    Raises
    ------
    CompressionError
        A layer does not accept such an input. Or it cannot be counted: its type is not from this
        package, and does not define both `parameters` and `macs` as `Layer` says.

    Examples
    --------
    >>> from minicompress.nn.architectures import lenet_300_100
    >>> summary(lenet_300_100(np.random.default_rng(0)), (28, 28, 1))
    layer      output   params  nonzeros     MACs    dense B   sparse B   packed B  output B
    ----------------------------------------------------------------------------------------
    0 Flatten     784        0         0        0          0          0          0     3,136
    1 Dense       300  235,500   235,200  235,200    942,000    970,200    942,000     1,200
    2 ReLU        300        0         0        0          0          0          0     1,200
    3 Dense       100   30,100    30,000   30,000    120,400    123,750    120,400       400
    4 ReLU        100        0         0        0          0          0          0       400
    5 Dense        10    1,010     1,000    1,000      4,040      4,125      4,040        40
    total              266,610   266,200  266,200  1,066,440  1,098,075  1,066,440     6,272
    """
    if isinstance(model, Mapping):
        return summary_of_arrays(model)
    if input_shape is None:
        raise CompressionError("input_shape must be given: the shape of one input of the network")
    shapes = value_shapes(model, input_shape)
    dtypes = [dtype_of(rep) for layer in model.layers for rep in layer.parameters().values()]
    itemsize = max((dtype.itemsize for dtype in dtypes), default=4)  # a network has one dtype
    rows = tuple(
        _layer_summary(model, i, [shapes[value] for value in reads], shapes[i + 1], itemsize)
        for i, reads in enumerate(model.inputs)
    )
    peak = most_alive(model, [math.prod(shape) * itemsize for shape in shapes])
    return Summary(rows, peak, len(dumps(model)) if file else None)


def most_alive(model: Network, sizes: Sequence[int]) -> int:
    """The largest sum of the sizes of values that are needed at the same time.

    While a layer runs, these are the values that it or a later layer reads, its own output, and the
    network's outputs that are made already.
    """
    alive, peak = {0}, sizes[0]
    for i, dropped in enumerate(last_readers(model)):
        alive.add(i + 1)
        peak = max(peak, sum(sizes[value] for value in alive))
        alive.difference_update(dropped)
    return peak


def _layer_summary(
    model: Network, index: int, read: Sequence[Shape], output_shape: Shape, itemsize: int
) -> LayerSummary:
    layer = model.layers[index]
    kind = type(layer)
    inherited = kind.parameters in {known.parameters for known in LAYER_TYPES}
    if kind not in LAYER_TYPES and (inherited or not hasattr(kind, "macs")):
        raise CompressionError(
            f"layer {index} ({kind.__name__}) cannot be counted: its class must define "
            "parameters(), all of its weights by name, and macs(input_shape), its "
            "multiply-accumulates for one input"
        )
    reps = list(layer.parameters().values())
    dense_bytes = sum(math.prod(shape_of(rep)) * dtype_of(rep).itemsize for rep in reps)
    packed_bytes = sum(ceil_div(storage_bits(rep), 8) for rep in reps)
    larger = packed_bytes >= dense_bytes or any(
        isinstance(rep, LowRank) and num_params(rep) >= math.prod(shape_of(rep)) for rep in reps
    )
    return LayerSummary(
        index,
        kind.__name__,
        model.inputs[index],
        output_shape,
        sum(num_params(rep) for rep in reps),
        sum(_nonzeros(rep) for rep in reps),
        _macs(layer, read),
        dense_bytes,
        sum(_sparse_bytes(decode(rep)) for rep in reps),
        packed_bytes,
        math.prod(output_shape) * itemsize,
        larger and any(not isinstance(rep, np.ndarray) for rep in reps),
    )


def _sparse_bytes(array: Array) -> int:
    indices = np.flatnonzero(array)
    return ceil_div(storage_bits(Sparse(array.shape, indices, array.reshape(-1)[indices])), 8)


def _nonzeros(rep: Rep) -> int:
    if isinstance(rep, LowRank):
        return sum(_nonzeros(factor) for factor in rep.factors)
    return int(np.count_nonzero(decode(rep)))


def _macs(layer: Layer, read: Sequence[Shape]) -> int:
    """Multiplications by weights: for each output of a product, the weights that it depends on.

    For a transposed convolution, for each input, the weights that it meets.
    """
    if type(layer) not in LAYER_TYPES:
        return as_int(layer.macs(*read), f"{type(layer).__name__}.macs", 0)  # type: ignore[attr-defined]
    if isinstance(layer, ConvTranspose2D):
        kernel, (h, w, _) = shape_of(layer.weight), read[0]
        return h * w * math.prod(kernel)
    total = 0
    for part in factor_layers(layer):
        read = [part.output_shape(*read)]
        if isinstance(part, Conv2D | Dense):
            total += math.prod(read[0]) * math.prod(shape_of(part.weight)[:-1])
    return total


def _counts(counted: LayerSummary | Summary) -> list[str]:
    names = ("params", "nonzeros", "macs", "dense_bytes", "sparse_bytes", "packed_bytes")
    return [f"{getattr(counted, name):,}" for name in (*names, "activation_bytes")]
