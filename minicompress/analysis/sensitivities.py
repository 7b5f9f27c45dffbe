"""What each layer tolerates: one layer is compressed at a time, by one method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from minicompress.analysis.accounting import summary
from minicompress.arrays import Array, as_int, float_array
from minicompress.compressors.chaining import Compressor
from minicompress.errors import CompressionError, naming
from minicompress.nn.losses import softmax_cross_entropy
from minicompress.nn.network import Network, Runner
from minicompress.nn.parameters import with_parameters
from minicompress.nn.training import Loss, evaluate, scored
from minicompress.representation import Certificate, Compressed, checked, decode
from minicompress.storage.container import dumps

Compressors: TypeAlias = Mapping[str, Compressor] | Iterable[Compressor]


class Sensitivity(NamedTuple):
    """What compressing one layer does to a network.

    Parameters
    ----------
    layer, kind : int, str
        The index of the layer, and its type.
    method : str
        The name of the compressor.
    loss_change, accuracy_change : float
        The loss and the accuracy (a fraction) with this layer compressed, minus those of the
        original network. A loss that is not finite counts as infinite.
    packed_saved, file_saved, macs_saved : int
        The decrease in `packed_bytes` of `summary`, in the length of the file, and in
        multiply-accumulates. Negative for an increase.
    certificate : Certificate
        Of the layer's weights.
    """

    layer: int
    kind: str
    method: str
    loss_change: float
    accuracy_change: float
    packed_saved: int
    file_saved: int
    macs_saved: int
    certificate: Certificate


def sensitivity(
    model: Network,
    compressors: Compressors,
    x: Array,
    y: Array,
    *,
    loss: Loss = softmax_cross_entropy,
    batch_size: int = 256,
    coding: str = "smallest",
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Sensitivity, ...]:
    """Compress one layer at a time by each method, and measure what that does to the network.

    Parameters
    ----------
    model : Network
    compressors : mapping of str to compressor, or iterable of compressors
        Array -> `Compressed`, options bound beforehand. Each is tried on every layer with weights,
        so it must accept all of their shapes. In a list, they are named after their functions and
        options.
    x : (N, ...) ndarray, N at least 1
    y : (N,) ndarray of integers
        Validation data. Use other data to judge what is chosen by these results.
    loss : callable
        As for `evaluate`.
    batch_size : int
        How many rows run at a time.
    coding : "smallest" | "huffman" | "packed"
        As for `save`, for the lengths of files.
    progress : callable, optional
        ``progress(what, done)`` with the fraction that is done.

    Returns
    -------
    tuple of Sensitivity
        Layer by layer, the methods in the given order.

    Raises
    ------
    CompressionError
        A compressor refuses a layer's weights (the message names both), two compressors have the
        same name, or the data do not fit the model.

    Notes
    -----
    The data are read once. Each batch runs through the original network, and at each layer also
    through the rest of the network behind every compressed version of that layer. The results are
    those of ``evaluate(changed, x, y, batch_size=batch_size)`` for each changed network, up to
    rounding.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.compressors.pruning import prune_magnitude
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(np.array([[4.0, 0.0], [1.0, 2.0]])),))
    >>> half = {"half": partial(prune_magnitude, amount=0.5)}
    >>> row, = sensitivity(model, half, np.array([[0.0, 1.0]]), np.array([0]))
    >>> row.method, row.packed_saved, row.certificate.measured, round(row.loss_change, 3)
    ('half', 15, 1.0, 0.814)
    """
    methods = named(compressors, "compressors")
    batch_size = as_int(batch_size, "batch_size", 1)
    base_loss, base_accuracy = evaluate(model, x, y, loss=loss, batch_size=batch_size)
    shape = float_array(x, "x").shape[1:]
    before, file_before = summary(model, shape), len(dumps(model, coding=coding))

    report = progress or (lambda what, done: None)
    weighted = [i for i, layer in enumerate(model.layers) if "weight" in layer.parameters()]
    pairs = list(product(weighted, methods))
    networks, certificates = {}, {}
    for n, (i, name) in enumerate(pairs):
        rep, certificates[i, name] = compressed_weight(model, i, name, methods[name])
        changed = tuple({"weight": rep} if k == i else {} for k in range(len(model.layers)))
        networks[i, name] = with_parameters(model, changed)
        report("compressing", (n + 1) / len(pairs))

    run = Runner(model)
    runs = {(i, name): run.with_layer(i, networks[i, name].layers[i]) for i, name in pairs}
    parts: dict[tuple[int, str], list[tuple[Array, ...]]] = {pair: [] for pair in pairs}
    for start in range(0, len(x), batch_size):
        values = {0: x[start : start + batch_size]}
        with np.errstate(over="ignore", invalid="ignore"):
            for i in range(len(model.layers)):
                for name in methods if i in weighted else ():
                    ends = runs[i, name](values, i)
                    parts[i, name].append(tuple(ends[value] for value in model.outputs))
                values = run(values, i, i + 1)
        report("running", min(1.0, (start + batch_size) / len(x)))

    rows = []
    for n, (i, name) in enumerate(pairs):
        network = networks[i, name]
        after = summary(network, shape)
        outputs = tuple(map(np.concatenate, zip(*parts[i, name], strict=True)))
        found, right = scored(outputs if len(outputs) > 1 else outputs[0], y, loss)
        rows.append(
            Sensitivity(
                i,
                type(model.layers[i]).__name__,
                name,
                found - base_loss,
                right - base_accuracy,
                before.packed_bytes - after.packed_bytes,
                file_before - len(dumps(network, coding=coding)),
                before.macs - after.macs,
                certificates[i, name],
            )
        )
        report("counting", (n + 1) / len(pairs))
    return tuple(rows)


def named(compressors: Any, argument: str) -> dict[str, Compressor]:
    """Compressors by name. Those in a list are named after their functions and bound options."""
    if isinstance(compressors, Mapping):
        pairs = list(compressors.items())
    elif isinstance(compressors, Iterable) and not isinstance(compressors, str):
        pairs = [(_name(compressor), compressor) for compressor in compressors]
    else:
        raise CompressionError(
            f"{argument} must be a mapping of names to compressors or a list of compressors, "
            f"not {compressors!r}"
        )
    names = [name for name, _ in pairs]
    for name, compressor in pairs:
        if not isinstance(name, str) or not callable(compressor):
            raise CompressionError(
                f"{argument} must hold compressors by name, not {name!r}: {compressor!r}"
            )
        if names.count(name) > 1:
            raise CompressionError(f"{argument} holds {name!r} twice: give names that differ")
    return dict(pairs)


def compressed_weight(model: Network, index: int, name: str, compressor: Compressor) -> Compressed:
    """A layer's weight compressed; errors name the layer and the method."""
    weight = model.layers[index].parameters()["weight"]
    with naming(f"layer {index} ({type(model.layers[index]).__name__}), {name}"):
        return checked(compressor(decode(weight)), "a compressor")


def _name(compressor: Any) -> str:
    if isinstance(compressor, partial):
        options = [f"{option}={value}" for option, value in compressor.keywords.items()]
        return f"{_name(compressor.func)}({', '.join([*map(str, compressor.args), *options])})"
    return getattr(compressor, "__name__", None) or repr(compressor)
