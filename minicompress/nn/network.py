"""A network: a list of layers, and for each layer the values that it reads.

Value 0 is the network's input, and value i + 1 is the output of layer i. A layer reads values that
stand before it, so running the network is one loop over its layers (a "straight-line program"). In
a chain, layer i reads value i. `Sequential`, `Residual` and `Parallel` write such lists.

A network is a value: `apply` runs it, `vjp` differentiates it, `with_parameters` makes a copy with
other weights, and nothing changes it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from minicompress.arrays import Array, Value, as_int, ceil_div, float_array
from minicompress.errors import CompressionError, naming
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.layers import plain_layers
from minicompress.representation import Rep, num_params, shape_of
from minicompress.tables import aligned

Parameters: TypeAlias = tuple[dict[str, Rep], ...]
Gradients: TypeAlias = tuple[dict[str, Array], ...]


# The largest array between two layers while `apply` runs. It is small enough that the C library
# reuses its memory without page faults, and large enough for matrix products at full speed.
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, eq=False, repr=False)
class Network(Value):
    """Layers, and the values that each of them reads.

    Parameters
    ----------
    layers : tuple of Layer
    inputs : tuple of tuple of int
        For each layer the values that it reads: 0 is the network's input, i + 1 the output of
        layer i.
    outputs : tuple of int
        The values that the network returns.

    Raises
    ------
    CompressionError
        A layer reads a value that is made later, or another number of values than its type takes.
        A value is neither read nor returned, or it is returned twice.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.pointwise import ReLU
    >>> from minicompress.nn.stateless import Add
    >>> Network((Dense(np.ones((2, 2))), ReLU(), Add()), ((0,), (1,), (0, 2)), (3,))
    layer          reads  parameters
    --------------------------------
    0 Dense 2 x 2  0               4
    1 ReLU         1               0
    2 Add          0, 2            0
    outputs        3
    """

    layers: tuple[Layer, ...]
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        layers = layer_tuple(self.layers, "layers")
        given: dict[str, Any] = {"inputs": self.inputs, "outputs": self.outputs}
        for name, values in given.items():
            if not isinstance(values, tuple | list):
                raise CompressionError(f"{name} must be a tuple, not {type(values).__name__}")
        if len(self.inputs) != len(layers):
            raise CompressionError(
                f"inputs must have one entry for each of {len(layers)} layers, "
                f"not {len(self.inputs)}"
            )
        inputs = []
        for i, (layer, reads) in enumerate(zip(layers, self.inputs, strict=True)):
            with naming(f"layer {i} ({type(layer).__name__})"):
                if not isinstance(reads, tuple | list):
                    raise CompressionError(f"what it reads must be a tuple, not {reads!r}")
                inputs.append(tuple(as_int(v, "a value that it reads", 0, i) for v in reads))
                wanted = layer.num_inputs
                if len(reads) != wanted if wanted else not reads:
                    raise CompressionError(
                        f"it must read {wanted or 'one or more'} values, not {len(reads)}: {reads}"
                    )
        outputs = tuple(as_int(v, "a value of outputs", 0, len(layers)) for v in self.outputs)
        if len(set(outputs)) != len(outputs) or not outputs:
            raise CompressionError(f"outputs must be one value or more, each once, not {outputs}")
        read = {*outputs, *(value for reads in inputs for value in reads)}
        for value in range(len(layers) + 1):
            if value not in read:
                maker = f"the output of layer {value - 1} ({type(layers[value - 1]).__name__})"
                raise CompressionError(
                    f"value {value}, {maker if value else 'the input'}, is neither read nor "
                    "returned: leave the layer out, or add the value to outputs"
                )
        self._set(layers=layers, inputs=tuple(inputs), outputs=outputs)

    def __call__(self, x: Array) -> Any:
        """The outputs for a batch of inputs: ``apply(self, x)``."""
        return apply(self, x)

    def __repr__(self) -> str:
        return aligned(_cells(self), words=2)

    def _repr_html_(self) -> str:
        rows = ["".join(f"<td>{cell}</td>" for cell in row) for row in _cells(self)]
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def is_chain(network: Network) -> bool:
    """Whether every layer reads the value before it, and the last value is the only output."""
    n = len(network.layers)
    return network.inputs == tuple((i,) for i in range(n)) and network.outputs == (n,)


def last_readers(network: Network) -> list[list[int]]:
    """For each layer the values that nothing reads after it, and that are no outputs.

    Every pass drops a value there: what is kept longer is memory for nothing.

    Examples
    --------
    >>> from minicompress.nn.composition import Residual
    >>> from minicompress.nn.pointwise import ReLU
    >>> last_readers(Residual(ReLU(), ReLU()))
    [[], [1], [0, 2]]
    """
    last = {value: i for i, reads in enumerate(network.inputs) for value in reads}
    dropped: list[list[int]] = [[] for _ in network.layers]
    for value, i in sorted(last.items()):
        if value not in network.outputs:
            dropped[i].append(value)
    return dropped


def output_shape(network: Network, input_shape: Shape) -> Any:
    """The shape of an output, from the shape of an input; both without the batch axis.

    Parameters
    ----------
    network : Network
    input_shape : tuple of int

    Returns
    -------
    tuple of int
        A tuple of such tuples if the network has several outputs.

    Raises
    ------
    CompressionError
        A layer cannot take such an input; the message names the layer.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Conv2D
    >>> from minicompress.nn.stateless import Flatten
    >>> output_shape(Sequential((Conv2D(np.ones((3, 3, 1, 4))), Flatten())), (8, 8, 1))
    (144,)
    """
    shapes = value_shapes(network, input_shape)
    found = tuple(shapes[value] for value in network.outputs)
    return found[0] if len(found) == 1 else found


def value_shapes(network: Network, input_shape: Shape) -> tuple[Shape, ...]:
    """The shape of every value: the input, and then each layer's output; without the batch axis.

    Parameters
    ----------
    network : Network
    input_shape : tuple of int

    Returns
    -------
    tuple of tuple of int

    Raises
    ------
    CompressionError
        As `output_shape`.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.stateless import Flatten
    >>> from minicompress.nn.pointwise import ReLU
    >>> value_shapes(Sequential((ReLU(), Flatten())), (2, 3))
    ((2, 3), (2, 3), (6,))
    """
    check_network(network)
    shapes = [tuple(as_int(n, f"input_shape[{i}]", 0) for i, n in enumerate(input_shape))]
    for i, (layer, reads) in enumerate(zip(network.layers, network.inputs, strict=True)):
        read = [shapes[value] for value in reads]
        with naming_layer(network, i, read):
            shapes.append(layer.output_shape(*read))
    return tuple(shapes)


def apply(network: Network, x: Array, *, batch_size: int | None = None) -> Any:
    """The network's outputs for a batch of inputs.

    Parameters
    ----------
    network : Network
        Its weights may be representations; each call decodes them once.
    x : (N, ...) ndarray of float16, float32 or float64
        The rows run in chunks, so the memory between two layers does not grow with N.
    batch_size : int, optional
        Rows in a chunk. By default every array between two layers stays below 8 MB.

    Returns
    -------
    y : (N, ...) ndarray
        A tuple of them if the network has several outputs.

    Raises
    ------
    CompressionError
        A layer refuses its input; the message names the layer.

    Notes
    -----
    A value is dropped after the last layer that reads it.

    The chunks depend on shapes alone, so the same call gives the same bits on the same machine. The
    last bits of a row can change with the batch size: the order in which BLAS adds depends on the
    shapes.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> apply(Sequential((Dense(np.ones((2, 1))),)), np.array([[1.0, 2.0]]))
    array([[3.]])
    """
    x = input_batch(network, x)
    run = Runner(network)
    size = run.chunk_rows(x) if batch_size is None else as_int(batch_size, "batch_size", 1)
    return run_chunks(run, x, size)


def run_chunks(run: Runner, x: Array, size: int) -> Any:
    """The outputs for a batch that runs in chunks of so many rows."""
    ys: list[Array] = []
    for start in range(0, max(len(x), 1), size):  # an empty batch runs too, for its shape
        values = run({0: x[start : start + size]})
        for k, output in enumerate(run.network.outputs):
            part = values[output]
            if start == 0:
                ys.append(np.empty((len(x), *part.shape[1:]), part.dtype))
            ys[k][start : start + size] = part
    return ys[0] if len(ys) == 1 else tuple(ys)


class Runner:
    """A network made ready to run: every weight decoded, once."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.parts = [plain_layers(layer) for layer in network.layers]
        self.dropped = last_readers(network)

    def __call__(
        self, values: dict[int, Array], start: int = 0, stop: int | None = None
    ) -> dict[int, Array]:
        """The values that are needed after layer `stop`, from those needed at layer `start`."""
        values = dict(values)
        for i in range(start, len(self.parts) if stop is None else stop):
            with naming_layer(self.network, i):
                y = self.parts[i][0].forward(*(values[v] for v in self.network.inputs[i]))
                for part in self.parts[i][1:]:
                    y = part.forward(y)
            values[i + 1] = y
            for value in self.dropped[i]:
                del values[value]
        return values

    def with_layer(self, index: int, layer: Layer) -> Runner:
        """The same network with another layer in one place; the other weights are shared."""
        changed = copy.copy(self)
        changed.parts = [*self.parts]
        changed.parts[index] = plain_layers(layer)
        return changed

    def chunk_rows(self, x: Array) -> int:
        """Rows in a chunk, so that every array between two layers fits in `CHUNK_BYTES`."""
        shapes, largest = [x.shape[1:]], 1
        for i, reads in enumerate(self.network.inputs):
            with naming_layer(self.network, i, [shapes[value] for value in reads]):
                shape = self.parts[i][0].output_shape(*(shapes[value] for value in reads))
                largest = max(largest, math.prod(shape))
                for part in self.parts[i][1:]:
                    shape = part.output_shape(shape)
                    largest = max(largest, math.prod(shape))
            shapes.append(shape)
        chunks = ceil_div(len(x), max(CHUNK_BYTES // (largest * x.itemsize), 1))
        return max(ceil_div(len(x), max(chunks, 1)), 1)  # chunks of nearly the same size


def input_batch(network: Network, x: Array) -> Array:
    check_network(network)
    x = float_array(x, "x")
    if x.ndim == 0:
        raise CompressionError("x must be a batch of inputs, not a single number")
    return x


def check_network(network: Any) -> None:
    """Refuse what is no network."""
    if not isinstance(network, Network):
        raise CompressionError(f"network must be a Network, not {type(network).__name__}")


def naming_layer(
    network: Network, index: int, shapes: Sequence[Shape] = ()
) -> AbstractContextManager[None]:
    """Name the layer in which an error arose, and what it reads if that is not the value before."""
    where, reads = f"layer {index} ({type(network.layers[index]).__name__})", network.inputs[index]
    if reads != (index,):
        sizes = [f" of shape {shape}" for shape in shapes] or [""] * len(reads)
        values = [f"value {v}{size}" for v, size in zip(reads, sizes, strict=True)]
        where += f", which reads {' and '.join(values)}"
    return naming(where)


def layer_label(layer: Layer) -> str:
    """A layer for a table: its type, and the shape of its weight.

    Examples
    --------
    >>> from minicompress.nn.layers import Conv2D
    >>> layer_label(Conv2D(np.ones((3, 3, 1, 16))))
    'Conv2D 3 x 3 x 1 x 16'
    """
    weight = layer.parameters().get("weight")
    shape = "" if weight is None else " " + " x ".join(map(str, shape_of(weight)))
    kind = "" if weight is None or isinstance(weight, np.ndarray) else f" {type(weight).__name__}"
    return f"{type(layer).__name__}{shape}{kind}"


def _cells(network: Network) -> list[tuple[str, str, str]]:
    """The rows of the table that a network shows of itself."""
    rows = [("layer", "reads", "parameters")]
    for i, (layer, reads) in enumerate(zip(network.layers, network.inputs, strict=True)):
        count = sum(num_params(rep) for rep in layer.parameters().values())
        rows.append((f"{i} {layer_label(layer)}", ", ".join(map(str, reads)), f"{count:,}"))
    returned = ", ".join(map(str, network.outputs))
    return [*rows, ("outputs", returned, "")]


def layer_tuple(layers: Any, name: str) -> tuple[Layer, ...]:
    """Check that every entry is a layer."""
    if not isinstance(layers, tuple | list):
        raise CompressionError(f"{name} must be a tuple of layers, not {type(layers).__name__}")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise CompressionError(f"{name}[{i}] must be a Layer, not {layer!r}")
    return tuple(layers)
