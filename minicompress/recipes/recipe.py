"""Recipes: several steps of compression and training, which can be interrupted and continued.

A recipe is a sequence of `Step`, each a name and a function from one model to the next.
`run_recipe` runs them. With a folder it keeps the model of every step there as a .mcz file, and a
history. The same call with the same folder continues after the last finished step. It ends with the
same bits, since every step has a random generator of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicompress.arrays import Array, as_float, as_int
from minicompress.errors import CompressionError, naming
from minicompress.nn.network import Network
from minicompress.storage.container import dumps, load
from minicompress.storage.files import write_file

HISTORY = "history.json"


class Step(NamedTuple):
    """One step of a recipe.

    Parameters
    ----------
    name : str
        It becomes part of a file's name, where other characters than letters and digits become
        hyphens.
    run : callable
        ``run(model, rng)`` gives the next model; its weights may be representations.
    settings : str
        Everything else that `run` depends on, as text. `run_recipe` compares it with that of an
        earlier run in the same folder. For arrays see `array_digest`.
    """

    name: str
    run: Callable[[Network, np.random.Generator], Network]
    settings: str = ""


class StepRow(NamedTuple):
    """The result of one step.

    Parameters
    ----------
    name : str
        Of the step.
    bytes : int
        The length of the model's file.
    digest : str
        Of that file, to recognize it in a later run.
    figures : dict of str to float
        The results of `measure`.
    """

    name: str
    bytes: int
    digest: str
    figures: dict[str, float]


class RecipeResult(NamedTuple):
    """The result of a recipe.

    Parameters
    ----------
    model : Network
        Of the last step.
    history : tuple of StepRow
        One row for each step.
    """

    model: Network
    history: tuple[StepRow, ...]


def run_recipe(
    model: Network,
    steps: Sequence[Step],
    *,
    seed: int,
    folder: str | os.PathLike[str] | None = None,
    measure: Callable[[Network], Mapping[str, float]] | None = None,
    coding: str = "smallest",
    progress: Callable[[StepRow], None] | None = None,
) -> RecipeResult:
    """Run the steps of a recipe one after the other, or continue an interrupted run.

    Parameters
    ----------
    model : Network
        The input of the first step.
    steps : sequence of Step
    seed : int
        Step i gets ``numpy.random.default_rng([seed, i])``.
    folder : str or path-like, optional
        Where to keep each step's model and the history; it is made if it does not exist. Steps that
        an earlier run has finished there are not run again. That run must have had the same steps
        (names and settings), seed, model and coding.
    measure : callable, optional
        ``measure(model)`` gives figures for the history, such as an accuracy.
    coding : "smallest" | "huffman" | "packed"
        As for `save`, for the files and for the bytes in the history.
    progress : callable, optional
        Called with the row of each step, also of steps from an earlier run.

    Returns
    -------
    model : Network
    history : tuple of StepRow

    Raises
    ------
    CompressionError
        Two steps have the same name, a step refuses its model or makes one with NaN, a figure of
        `measure` is not finite, the folder belongs to another recipe, or its history or its last
        model was changed.
    FileFormatError
        A file in the folder is damaged.
    OSError
        The folder cannot be written.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.compressors.pruning import prune_magnitude
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.search.plan import compress
    >>> def half(weight):
    ...     return prune_magnitude(weight, amount=0.5)
    >>> start = Sequential((Dense(np.array([[3.0, 1.0]])),))
    >>> prune = Step("prune", lambda model, rng: compress(model, {0: half}).model)
    >>> result = run_recipe(start, (prune,), seed=0)
    >>> result.model.layers[0].weight.values, [row.name for row in result.history]
    (array([3.]), ['prune'])
    """
    names = [step.name for step in steps]
    if len(set(names)) != len(names):
        raise CompressionError(f"the steps of a recipe need different names, not {names}")
    seed = as_int(seed, "seed", 0)
    report = progress or (lambda row: None)
    kept = None if folder is None else _Folder(Path(folder), model, steps, seed, coding)
    history = [] if kept is None else kept.rows()
    if kept is not None and history:
        model = kept.model(history)
    for row in history:
        report(row)
    for i, step in list(enumerate(steps))[len(history) :]:
        with naming(f"step {step.name!r}"):
            model = step.run(model, np.random.default_rng([seed, i]))
            blob = dumps(model, coding=coding)
        figures = {
            name: as_float(float(figure), f"{name}, measured after step {step.name!r},", -math.inf)
            for name, figure in (measure(model) if measure else {}).items()
        }
        history.append(StepRow(step.name, len(blob), _digest([blob]), figures))
        if kept is not None:
            kept.keep(history, blob)
        report(history[-1])
    return RecipeResult(model, tuple(history))


def array_digest(*arrays: Array) -> str:
    """A short text that tells arrays apart, for the settings of a step.

    Parameters
    ----------
    *arrays : ndarrays

    Returns
    -------
    str
        16 hexadecimal digits. Values, shapes and dtypes all count.

    Examples
    --------
    >>> array_digest(np.zeros(2)) == array_digest(np.zeros((2, 1)))
    False
    """
    return _digest(
        part
        for array in map(np.asarray, arrays)
        for part in (f"{array.dtype.str}{array.shape}".encode(), array.tobytes())
    )


class _Folder:
    """The folder where `run_recipe` keeps models and history."""

    def __init__(
        self, path: Path, start: Network, steps: Sequence[Step], seed: int, coding: str
    ) -> None:
        self._path, self._names = path, [step.name for step in steps]
        path.mkdir(parents=True, exist_ok=True)
        self._made_for = {
            "seed": seed,
            "coding": coding,
            "steps": [[step.name, step.settings] for step in steps],
            "start": _digest([dumps(start, coding="packed")]),
        }

    def file(self, i: int) -> Path:
        """The file of a step's model."""
        plain = "".join(c if c.isalnum() else "-" for c in self._names[i])
        return self._path / f"{i + 1:02}-{plain}.mcz"

    def rows(self) -> list[StepRow]:
        """The history of an earlier run; empty if there was none."""
        try:
            found: dict[str, Any] = json.loads((self._path / HISTORY).read_text("utf-8"))
            made_for, rows = found["recipe"], [StepRow(**row) for row in found["history"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CompressionError(f"{self._path / HISTORY} cannot be read: {error!r}") from None
        if made_for != self._made_for or [r.name for r in rows] != self._names[: len(rows)]:
            raise CompressionError(
                f"{self._path} is of another recipe, seed or model, or of other settings: "
                "choose another folder"
            )
        return rows

    def model(self, history: Sequence[StepRow]) -> Network:
        """The model of the last finished step."""
        path = self.file(len(history) - 1)
        model = load(path)
        if _digest([path.read_bytes()]) != history[-1].digest:
            raise CompressionError(f"{path} is not the model that was left there")
        return model

    def keep(self, history: Sequence[StepRow], blob: bytes) -> None:
        """Write the model of the last finished step, then the history."""
        write_file(self.file(len(history) - 1), blob)
        text = {"recipe": self._made_for, "history": [row._asdict() for row in history]}
        write_file(self._path / HISTORY, (json.dumps(text, indent=2) + "\n").encode())


def _digest(parts: Iterable[bytes]) -> str:
    """A hash. Not CRC-32: it is the same for all files that end with their own CRC-32."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:16]
