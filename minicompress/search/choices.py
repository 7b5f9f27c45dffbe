"""What a search chooses from, every layer's weight under each of its compressors, and its tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from itertools import islice
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from minicompress.analysis.accounting import summary
from minicompress.analysis.sensitivities import compressed_weight, named
from minicompress.arrays import Array, as_int
from minicompress.compressors.chaining import Compressor
from minicompress.errors import CompressionError
from minicompress.nn.network import Network, apply
from minicompress.nn.training import Loss, scored
from minicompress.representation import Compressed
from minicompress.search.weights import total, weights, with_weights
from minicompress.storage.container import dumps

KEPT = "as it is"

T = TypeVar("T")
Pick: TypeAlias = tuple[int, ...]  # for every layer with choices, which of them


class LayerChoices(NamedTuple):
    """The choices for one layer by name: to keep it, or what each compressor made of its weight."""

    layer: int
    names: tuple[str, ...]
    made: tuple[Compressed | None, ...]


def layer_choices(
    model: Network, choices: Any, executor: Executor | None, report: Callable[[float], None]
) -> list[LayerChoices]:
    """Compress every layer's weight by all of its compressors."""
    listed = _listed(model, choices)
    tasks = [
        (model, index, name, compressor)
        for index, compressors in listed.items()
        for name, compressor in compressors.items()
    ]
    made = iter(in_order(executor, compressed_weight, tasks, report))
    return [
        LayerChoices(index, (KEPT, *names), (None, *islice(made, len(names))))
        for index, names in listed.items()
    ]


def in_order(
    executor: Executor | None,
    function: Callable[..., T],
    tasks: Sequence[tuple[Any, ...]],
    report: Callable[[float], None],
) -> list[T]:
    """The results in the order of the tasks, whichever is done first."""
    results = []
    futures = [] if executor is None else [executor.submit(function, *task) for task in tasks]
    try:
        for n, task in enumerate(tasks):
            results.append(function(*task) if executor is None else futures[n].result())
            report((n + 1) / len(tasks))
    finally:
        for future in futures:  # where one failed, nobody waits for the others
            future.cancel()
    return results


def picked(layers: Sequence[LayerChoices], pick: Pick) -> dict[int, Compressed]:
    """What a pick makes of the layers that it does not keep, by their indices."""
    made = {c.layer: c.made[j] for c, j in zip(layers, pick, strict=True)}
    return {index: c for index, c in made.items() if c is not None}


def with_pick(model: Network, layers: Sequence[LayerChoices], pick: Pick) -> Network:
    """The model as a pick makes it."""
    made = picked(layers, pick)
    return with_weights(model, {index: c.rep for index, c in made.items()})


def plan_of(layers: Sequence[LayerChoices], pick: Pick) -> dict[int, str]:
    """The names of the choices by the indices of their layers."""
    return {c.layer: c.names[j] for c, j in zip(layers, pick, strict=True)}


def bound_of(layers: Sequence[LayerChoices], pick: Pick) -> float:
    """How far all weights as one vector can move; infinite where a certificate does not say."""
    certificates = [c.cert for c in picked(layers, pick).values()]
    return total(certificates).bound if all(c.norm == "fro" for c in certificates) else math.inf


def changed_in_one(layers: Sequence[LayerChoices], pick: Pick) -> list[list[Pick]]:
    """For every layer the picks with each of its choices, the other layers staying as they are."""
    return [
        [(*pick[:i], j, *pick[i + 1 :]) for j in range(len(choices.names))]
        for i, choices in enumerate(layers)
    ]


def size(model: Network, input_shape: tuple[int, ...], coding: str) -> tuple[int, int]:
    """Bytes of the file, and MACs; a task for an executor."""
    return len(dumps(model, coding=coding)), summary(model, input_shape).macs


def score(model: Network, x: Array, y: Array, loss: Loss) -> tuple[float, float]:
    """Loss, infinite where there is none, and accuracy; a task for an executor."""
    with np.errstate(over="ignore", invalid="ignore"):
        return scored(apply(model, x), y, loss)


def _listed(model: Network, choices: Any) -> dict[int, dict[str, Compressor]]:
    """The compressors by layer and name."""
    indices = list(weights(model))
    if isinstance(choices, Mapping) and not all(isinstance(key, str) for key in choices):
        for key in choices:
            index = as_int(key, "a layer index of choices", 0, len(model.layers) - 1)
            if index not in indices:
                name = type(model.layers[index]).__name__
                raise CompressionError(f"layer {index} ({name}) has no weights to compress")
        listed = {int(key): named(value, f"choices[{key}]") for key, value in choices.items()}
    else:
        listed = dict.fromkeys(indices, named(choices, "choices"))
    if any(KEPT in compressors for compressors in listed.values()):
        raise CompressionError(f"choices must not hold {KEPT!r}, which is always there")
    return dict(sorted(listed.items()))
