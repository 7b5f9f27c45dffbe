"""A model: a tuple of layers that run one after the other, and the functions of a model.

A model is a value: `apply` runs it, `vjp` differentiates it, `with_parameters` makes a copy of it
with other weights, and nothing changes it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from minicompress.arrays import Array, Value, as_int, ceil_div, float_array, not_finite
from minicompress.errors import CompressionError, naming
from minicompress.nn.layers import decoded_layer, plain_layers
from minicompress.nn.stateless import Layer, Shape
from minicompress.representation import Rep

Parameters: TypeAlias = tuple[dict[str, Rep], ...]
Gradients: TypeAlias = tuple[dict[str, Array], ...]

# The largest array between two layers while `apply` runs. It is small enough that the C library
# reuses its memory without page faults, and large enough for matrix products at full speed.
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, eq=False, repr=False)
class Sequential(Value):
    """Layers that run one after the other.

    Parameters
    ----------
    layers : tuple of Layer
        Or a list of them, which is kept as a tuple.

    Raises
    ------
    CompressionError
        An entry is not a `Layer`.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.stateless import ReLU
    >>> model = Sequential((Dense(np.array([[1.0, -1.0]])), ReLU()))
    >>> model(np.array([[3.0], [-4.0]]))
    array([[3., 0.],
           [0., 4.]])
    """

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple | list):
            raise CompressionError(
                f"layers must be a tuple of layers, not {type(self.layers).__name__}"
            )
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                raise CompressionError(f"layers[{i}] must be a Layer, not {layer!r}")
        self._set(layers=tuple(self.layers))

    def __call__(self, x: Array) -> Array:
        """The outputs for a batch of inputs: ``apply(self, x)``."""
        return apply(self, x)


def apply(model: Sequential, x: Array, *, batch_size: int | None = None) -> Array:
    """The model's outputs for a batch of inputs.

    Parameters
    ----------
    model : Sequential
        Its weights may be representations; each call decodes them once.
    x : (N, ...) ndarray of float16, float32 or float64
        The rows run in chunks, so the memory between two layers does not grow with N.
    batch_size : int, optional
        Rows in a chunk. By default every array between two layers stays below 8 MB.

    Returns
    -------
    y : (N, ...) ndarray

    Raises
    ------
    CompressionError
        A layer refuses its input; the message names the layer.

    Notes
    -----
    The chunks depend on shapes alone, so the same call gives the same bits on the same machine. The
    last bits of a row can change with the batch size: the order in which BLAS adds depends on the
    shapes.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> apply(Sequential((Dense(np.ones((2, 1))),)), np.array([[1.0, 2.0]]))
    array([[3.]])
    """
    x = _batch(model, x)
    runs = [(i, part) for i, layer in enumerate(model.layers) for part in plain_layers(layer)]
    if batch_size is None:
        batch_size = chunk_rows(model, runs, x)
    else:
        batch_size = as_int(batch_size, "batch_size", 1)
    y: Array = np.empty(0)
    for start in range(0, max(len(x), 1), batch_size):  # an empty batch runs too, for its shape
        part = x[start : start + batch_size]
        for i, layer in runs:
            with naming_layer(model, i):
                part = layer.forward(part)
        if start == 0:
            y = np.empty((len(x), *part.shape[1:]), part.dtype)
        y[start : start + batch_size] = part
    return y


def vjp(
    model: Sequential,
    x: Array,
    *,
    rng: np.random.Generator | None = None,
    input_gradient: bool = True,
) -> tuple[Array, Callable[[Array], tuple[Array | None, Gradients]]]:
    """The model's outputs, and the function that takes a gradient back through it.

    Parameters
    ----------
    model : Sequential
        Its weights must be plain arrays.
    x : (N, ...) ndarray of float16, float32 or float64
        It runs in one piece, and the pullback reads it again.
    rng : numpy.random.Generator, optional
        For `Dropout`, which does nothing without one.
    input_gradient : bool
        False saves the work for the gradient by `x`, which training does not need.

    Returns
    -------
    y : (N, ...) ndarray
    pullback : callable
        ``pullback(dy)`` gives ``(dx, gradients)``: the gradient by `x` (None without
        `input_gradient`), and for every layer a dict of the gradients by its parameters.

    Raises
    ------
    CompressionError
        A layer refuses its input or holds a representation; the message names the layer.

    Notes
    -----
    For any v, ``sum(v * (y(x + h u) - y(x)) / h)`` tends to ``sum(pullback(v)[0] * u)``.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> y, pullback = vjp(Sequential((Dense(np.array([[3.0]])),)), np.array([[2.0]]))
    >>> pullback(np.array([[1.0]]))
    (array([[3.]]), ({'weight': array([[2.]])},))
    """
    x = _batch(model, x)
    # Without `input_gradient`, no layer up to the first with weights needs its input's gradient.
    wanted, pullbacks = input_gradient, []
    for i, layer in enumerate(model.layers):
        with naming_layer(model, i):
            x, pull = layer.vjp(x, rng=rng, input_gradient=wanted)
        pullbacks.append((pull, wanted or bool(layer.parameters())))
        wanted = pullbacks[-1][1]

    def pullback(dy: Array) -> tuple[Array | None, Gradients]:
        gradients: list[dict[str, Array]] = [{} for _ in pullbacks]
        current: Array | None = dy
        for i in reversed(range(len(pullbacks))):
            pull, needed = pullbacks[i]
            if not needed or current is None:
                break
            with naming_layer(model, i):
                current, gradients[i] = pull(current)
        return current if input_gradient else None, tuple(gradients)

    return x, pullback


def decoded(model: Sequential) -> Sequential:
    """The model with every weight decoded to a plain array.

    Decode once to run many times, or to train. The last bits of the outputs can change, because
    `LowRank` weights run as their factors when they are not decoded.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.representation import Clustered
    >>> weight = Clustered(np.array([[0, 1]]), np.array([0.5, 2.0]))
    >>> decoded(Sequential((Dense(weight),))).layers[0].weight
    array([[0.5, 2. ]])
    """
    return Sequential(tuple(decoded_layer(layer) for layer in model.layers))


def parameters(model: Sequential) -> Parameters:
    """For every layer a dict of its weights by name, arrays or representations.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.stateless import ReLU
    >>> parameters(Sequential((Dense(np.ones((1, 1))), ReLU())))
    ({'weight': array([[1.]])}, {})
    """
    return tuple(layer.parameters() for layer in model.layers)


def with_parameters(model: Sequential, parameters: Parameters) -> Sequential:
    """The model with other weights.

    Parameters
    ----------
    model : Sequential
    parameters : tuple with one dict for each layer
        A weight that a dict does not name stays as it is.

    Returns
    -------
    Sequential

    Raises
    ------
    CompressionError
        The number of dicts is not the number of layers, a layer has no weight of that name, or it
        refuses the new one.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(np.ones((1, 1))),))
    >>> with_parameters(model, ({"weight": np.zeros((1, 1))},)).layers[0].weight
    array([[0.]])
    """
    if len(parameters) != len(model.layers):
        raise CompressionError(
            f"parameters must hold one dict for each of {len(model.layers)} layers, "
            f"not {len(parameters)}"
        )
    layers = []
    for i, (layer, changed) in enumerate(zip(model.layers, parameters, strict=True)):
        with naming_layer(model, i):
            known = layer.parameters()
            if not changed.keys() <= known.keys():
                raise CompressionError(
                    f"parameters must be among {list(known)}, not {list(changed)}"
                )
            layers.append(dataclasses.replace(layer, **changed) if changed else layer)
    return Sequential(tuple(layers))


def finite_model(model: Sequential) -> None:
    """Refuse a model with NaN or infinity among its weights.

    `apply` runs such a model: its outputs show the fault. Training, rewriting, files and exports
    refuse it, because their results would look right. Representations are always finite.

    Raises
    ------
    CompressionError
        Naming the layer, the weight and its first entry that is not finite.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> finite_model(Sequential((Dense(np.array([[1.0, np.nan]])),)))
    Traceback (most recent call last):
    minicompress.errors.CompressionError: layer 0 (Dense): weight must be finite, \
but entry (0, 1) is nan
    """
    for i, layer in enumerate(model.layers):
        with naming_layer(model, i):
            finite_layer(layer)


def finite_layer(layer: Layer) -> None:
    """The same for one layer."""
    for name, rep in layer.parameters().items():
        if isinstance(rep, np.ndarray) and (fault := not_finite(rep)):
            raise CompressionError(f"{name} must be finite, but {fault}")


def finite_outputs(outputs: Array, rows: Array | None = None, name: str = "model") -> Array:
    """A network's outputs, unchanged; NaN and infinity are refused, since they name no class.

    Raises
    ------
    CompressionError
        Naming the first input whose outputs are not finite: its index, or its entry of `rows`.
    """
    if not np.isfinite(outputs).all():
        finite = np.isfinite(outputs).reshape(len(outputs), -1).all(1)
        first = int(finite.argmin())
        row = first if rows is None else rows[first]
        raise CompressionError(
            f"{name} must give finite outputs, but for x[{row}] {not_finite(outputs[first])}: its "
            f"weights are not finite, or {outputs.dtype} is too narrow for its numbers"
        )
    return outputs


def output_shape(model: Sequential, input_shape: Shape) -> Shape:
    """The shape of an output, from the shape of an input; both without the batch axis.

    Parameters
    ----------
    model : Sequential
    input_shape : tuple of int

    Returns
    -------
    tuple of int

    Raises
    ------
    CompressionError
        A layer cannot take such an input; the message names the layer.

    Examples
    --------
    >>> from minicompress.nn.layers import Conv2D
    >>> from minicompress.nn.stateless import Flatten
    >>> output_shape(Sequential((Conv2D(np.ones((3, 3, 1, 4))), Flatten())), (8, 8, 1))
    (144,)
    """
    return layer_shapes(model, input_shape)[-1]


def layer_shapes(model: Sequential, input_shape: Shape) -> tuple[Shape, ...]:
    """The shape of the input and then of each layer's output, without the batch axis.

    Examples
    --------
    >>> from minicompress.nn.stateless import Flatten, ReLU
    >>> layer_shapes(Sequential((ReLU(), Flatten())), (2, 3))
    ((2, 3), (2, 3), (6,))
    """
    _check(model)
    shapes = [tuple(as_int(n, f"input_shape[{i}]", 0) for i, n in enumerate(input_shape))]
    for i, layer in enumerate(model.layers):
        with naming_layer(model, i):
            shapes.append(layer.output_shape(shapes[-1]))
    return tuple(shapes)


def _check(model: Sequential) -> None:
    if not isinstance(model, Sequential):
        raise CompressionError(f"model must be a Sequential, not {type(model).__name__}")


def _batch(model: Sequential, x: Array) -> Array:
    _check(model)
    x = float_array(x, "x")
    if x.ndim == 0:
        raise CompressionError("x must be a batch of inputs, not a single number")
    return x


def chunk_rows(model: Sequential, runs: list[tuple[int, Layer]], x: Array) -> int:
    """Rows in a chunk, so that every array between two layers fits in `CHUNK_BYTES`."""
    shape, largest = x.shape[1:], 1
    for i, layer in runs:
        with naming_layer(model, i):
            shape = layer.output_shape(shape)
        largest = max(largest, math.prod(shape))
    chunks = ceil_div(len(x), max(CHUNK_BYTES // (largest * x.itemsize), 1))
    return max(ceil_div(len(x), max(chunks, 1)), 1)  # chunks of nearly the same size


def naming_layer(model: Sequential, index: int) -> AbstractContextManager[None]:
    """Name the layer in which an error arose."""
    return naming(f"layer {index} ({type(model.layers[index]).__name__})")
