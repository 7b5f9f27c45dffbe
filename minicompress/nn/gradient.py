"""The gradient of a network: one loop over its layers forward, and one backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.nn.kernels.windows import gradient
from minicompress.nn.network import Gradients, Network, input_batch, last_readers, naming_layer
from minicompress.nn.parameters import as_tuple


def vjp(
    network: Network,
    x: Array,
    *,
    rng: np.random.Generator | None = None,
    input_gradient: bool = True,
) -> tuple[Any, Callable[[Any], tuple[Array | None, Gradients]]]:
    """The network's outputs, and the function that takes a gradient back through it.

    Parameters
    ----------
    network : Network
        Its weights must be plain arrays.
    x : (N, ...) ndarray of float16, float32 or float64
        It runs in one piece, and the pullback reads it again.
    rng : numpy.random.Generator, optional
        With one, the network runs as in training: `Dropout` drops entries, and `BatchNorm` takes
        the statistics of the batch.
    input_gradient : bool
        False saves the work for the gradient by `x`, which training does not need.

    Returns
    -------
    y : (N, ...) ndarray
        A tuple of them if the network has several outputs.
    pullback : callable
        ``pullback(dy)`` gives ``(dx, gradients)``: the gradient by `x` (None without
        `input_gradient`), and for every layer a dict of the gradients by its parameters. `dy` is a
        tuple if `y` is.

    Raises
    ------
    CompressionError
        A layer refuses its input or holds a representation; the message names the layer.

    Notes
    -----
    For any v, ``sum(v * (y(x + h u) - y(x)) / h)`` tends to ``sum(pullback(v)[0] * u)``. The
    gradients of a value that several layers read are added.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> y, pullback = vjp(Sequential((Dense(np.array([[3.0]])),)), np.array([[2.0]]))
    >>> pullback(np.array([[1.0]]))
    (array([[3.]]), ({'weight': array([[2.]])},))
    """
    values, outputs = {0: input_batch(network, x)}, network.outputs
    # A value needs a gradient if weights stand before it; the input needs one if it is asked for.
    needed, pulls = [input_gradient], []
    for i, dropped in enumerate(last_readers(network)):
        layer, reads = network.layers[i], network.inputs[i]
        wanted = any(needed[value] for value in reads)
        with naming_layer(network, i):
            read = [values[value] for value in reads]
            values[i + 1], pull = layer.vjp(*read, rng=rng, input_gradient=wanted)
        pulls.append(pull)
        needed.append(wanted or bool(layer.parameters()))
        for value in dropped:
            del values[value]

    def pullback(dy: Any) -> tuple[Array | None, Gradients]:
        known = dict(zip(outputs, _checked(dy, ys), strict=True))
        gradients: list[dict[str, Array]] = [{} for _ in pulls]
        for i in reversed(range(len(pulls))):
            dvalue = known.pop(i + 1, None)
            if dvalue is None or not needed[i + 1]:
                continue
            with naming_layer(network, i):
                dxs, gradients[i] = pulls[i](dvalue)
            if dxs is None:  # nothing before the layer needs a gradient
                continue
            for value, dx in zip(network.inputs[i], as_tuple(dxs), strict=True):
                if needed[value] and dx is not None:
                    known[value] = known[value] + dx if value in known else dx
        return known.get(0) if input_gradient else None, tuple(gradients)

    ys = tuple(values[value] for value in outputs)
    return ys if len(ys) > 1 else ys[0], pullback


def _checked(dy: Any, ys: tuple[Array, ...]) -> tuple[Array, ...]:
    """The gradients by the outputs: as many, of their shapes and dtypes."""
    dys = dy if len(ys) > 1 else (dy,)
    if not isinstance(dys, tuple | list) or len(dys) != len(ys):
        raise CompressionError(
            f"dy must be a tuple of {len(ys)} gradients, one for each output of the network"
        )
    return tuple(gradient(part, y.shape, y) for part, y in zip(dys, ys, strict=True))
