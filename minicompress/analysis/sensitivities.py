"""What each layer tolerates: one layer compressed at a time, one method at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from minicompress.analysis.accounting import summary
from minicompress.arrays import Array, as_int, float_array
from minicompress.compressors.chaining import Compressor
from minicompress.errors import CompressionError, naming
from minicompress.nn.layers import Layer
from minicompress.nn.losses import softmax_cross_entropy
from minicompress.nn.network import Sequential, apply
from minicompress.nn.training import Loss, evaluate, scored
from minicompress.representation import Certificate, Compressed, checked, decode
from minicompress.storage.container import dumps

Compressors: TypeAlias = Mapping[str, Compressor] | Iterable[Compressor]


class Sensitivity(NamedTuple):
    """What it does to a network to compress one of its layers.

    Parameters
    ----------
    layer, kind : int, str
        The index of the layer, and its type.
    method : str
        The name of the compressor.
    loss_change, accuracy_change : float
        Of the network with this layer compressed, minus those of the network as it is. Accuracies
        are fractions. A loss that is not finite counts as infinite.
    packed_saved, file_saved, macs_saved : int
        By how much less the network takes: `packed_bytes` of `summary`, the length of its file,
        multiply-accumulates. Negative where compressing costs more.
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
    model: Sequential,
    compressors: Compressors,
    x: Array,
    y: Array,
    *,
    loss: Loss = softmax_cross_entropy,
    batch_size: int = 256,
    coding: str = "smallest",
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Sensitivity, ...]:
    """Compress every layer by every method, alone, and see what that does to the network.

    Parameters
    ----------
    model : Sequential
    compressors : mapping of str to compressor, or iterable of compressors
        Array -> `Compressed`, options bound beforehand. Each is tried on every layer with weights,
        so it has to take all of their shapes. Without names of their own they are called by their
        functions and options.
    x : (N, ...) ndarray, N at least 1
    y : (N,) ndarray of integers
        Validation data: what is chosen by them is not to be judged by them.
    loss : callable
        As for `evaluate`.
    batch_size : int
        Rows that run at a time.
    coding : "smallest" | "huffman" | "packed"
        As for `save`: of the files that are counted.
    progress : callable, optional
        ``progress(what, done)`` with the fraction that is done.

    Returns
    -------
    tuple of Sensitivity
        Layer by layer, the methods in the order that they were given.

    Raises
    ------
    CompressionError
        A compressor refuses a layer's weights (the message names both), two have one name, or the
        data do not fit.

    Notes
    -----
    One pass over the data: each batch goes through the network once, and from every layer on once
    more for each method. What comes out is what ``evaluate(changed, x, y, batch_size=batch_size)``
    gives for the whole changed network, but perhaps for last bits.

    Examples
    --------
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
    before = summary(model, shape, file=False)
    file_before = len(dumps(model, coding=coding))

    report = progress or (lambda what, done: None)
    pairs = [
        (i, name)
        for i, layer in enumerate(model.layers)
        if "weight" in layer.parameters()
        for name in methods
    ]
    layers, certificates = {}, {}
    for n, (i, name) in enumerate(pairs):
        rep, certificates[i, name] = compressed_weight(model, i, name, methods[name])
        # Any layer with a weight is a frozen dataclass with a field of that name.
        changed: Any = model.layers[i]
        layers[i, name] = dataclasses.replace(changed, weight=rep)
        report("compressing", (n + 1) / len(pairs))

    with np.errstate(over="ignore", invalid="ignore"):
        outputs = _outputs(model, layers, x, batch_size, report)
    rows = []
    for n, (i, name) in enumerate(pairs):
        changed = Sequential((*model.layers[:i], layers[i, name], *model.layers[i + 1 :]))
        after, (found, right) = summary(changed, shape), scored(outputs[i, name], y, loss)
        rows.append(
            Sensitivity(
                i,
                type(model.layers[i]).__name__,
                name,
                found - base_loss,
                right - base_accuracy,
                before.packed_bytes - after.packed_bytes,
                file_before - len(dumps(changed, coding=coding)),
                before.macs - after.macs,
                certificates[i, name],
            )
        )
        report("counting", (n + 1) / len(pairs))
    return tuple(rows)


def named(compressors: Any, argument: str) -> dict[str, Compressor]:
    """Compressors by name; those of a list are called by their functions and bound options."""
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


def compressed_weight(
    model: Sequential, index: int, name: str, compressor: Compressor
) -> Compressed:
    """A layer's weight compressed; what is wrong is said of this layer and this method."""
    weight = model.layers[index].parameters()["weight"]
    with naming(f"layer {index} ({type(model.layers[index]).__name__}), {name}"):
        return checked(compressor(decode(weight)), "a compressor")


def _name(compressor: Any) -> str:
    if isinstance(compressor, partial):
        options = [
            *map(str, compressor.args),
            *(f"{option}={value}" for option, value in compressor.keywords.items()),
        ]
        return f"{_name(compressor.func)}({', '.join(options)})"
    return getattr(compressor, "__name__", None) or repr(compressor)


def _outputs(
    model: Sequential,
    changed: Mapping[tuple[int, str], Layer],
    x: Array,
    batch_size: int,
    report: Callable[[str, float], None],
) -> dict[tuple[int, str], Array]:
    """The outputs of every changed network; the layers before the changed one run once for all."""
    parts: dict[tuple[int, str], list[Array]] = {key: [] for key in changed}
    for start in range(0, len(x), batch_size):
        batch = x[start : start + batch_size]
        for i, layer in enumerate(model.layers):
            for (index, name), other in changed.items():
                if index == i:
                    tail = Sequential((other, *model.layers[i + 1 :]))
                    parts[index, name].append(apply(tail, batch, batch_size=batch_size))
            batch = apply(Sequential((layer,)), batch, batch_size=batch_size)
        report("running", min(1.0, (start + batch_size) / len(x)))
    return {key: np.concatenate(batches) for key, batches in parts.items()}
