"""Recipes: compression in several steps, with training in between, that can be taken up again.

A recipe is a tuple of `Step`, each a name and a function from a model to the next. `run_recipe`
goes through them. With a folder it keeps the model of every step there, as a .mcz file, and a
history; the same command in the same folder goes on where it was broken off, and ends with the same
bits, for every step has a random generator of its own.

`deep_compression` is such a recipe: Han, Mao and Dally, *Deep compression: compressing deep neural
networks with pruning, trained quantization and Huffman coding* (2016).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicompress.arrays import Array, as_float, as_int
from minicompress.compressors.chaining import chain
from minicompress.compressors.clustering import cluster
from minicompress.compressors.pruning import prune_magnitude
from minicompress.datasets import Images
from minicompress.errors import CompressionError, naming
from minicompress.nn.network import Sequential, decoded
from minicompress.nn.optimizers import adam, cosine_lr
from minicompress.nn.training import fit
from minicompress.recipes.structure import preserve_structure, restore_structure
from minicompress.search.plan import compress
from minicompress.search.weights import Compressor
from minicompress.storage.container import dumps, load
from minicompress.storage.files import write_file

HISTORY = "history.json"


class Step(NamedTuple):
    """One step of a recipe.

    Parameters
    ----------
    name : str
        Of letters, digits, blanks and the like: it becomes part of a file's name.
    run : callable
        ``run(model, rng)`` gives the next model; its weights may be representations.
    settings : str
        All that `run` depends on besides, as text: by it `run_recipe` tells whether what an earlier
        run left in a folder is of this step. See `array_digest` for arrays.
    """

    name: str
    run: Callable[[Sequential, np.random.Generator], Sequential]
    settings: str = ""


class StepRow(NamedTuple):
    """What a step came to.

    Parameters
    ----------
    name : str
        The step's.
    bytes : int
        Of the model's file.
    digest : str
        Of that file, by which a later run knows it.
    figures : dict of str to float
        What `measure` found.
    """

    name: str
    bytes: int
    digest: str
    figures: dict[str, float]


class RecipeResult(NamedTuple):
    """The last model, and a row for every step."""

    model: Sequential
    history: tuple[StepRow, ...]


def run_recipe(
    model: Sequential,
    steps: Sequence[Step],
    *,
    seed: int,
    folder: str | os.PathLike[str] | None = None,
    measure: Callable[[Sequential], Mapping[str, float]] | None = None,
    coding: str = "smallest",
    progress: Callable[[StepRow], None] | None = None,
) -> RecipeResult:
    """Run the steps of a recipe one after the other, or those that are left.

    Parameters
    ----------
    model : Sequential
        Where the first step begins.
    steps : sequence of Step
    seed : int
        Step i gets ``numpy.random.default_rng([seed, i])``.
    folder : str or path-like, optional
        Where to keep each step's model and the history; made if need be. If an earlier run of the
        same steps (by name and settings), seed, model and coding has left some there, they are not
        run again.
    measure : callable, optional
        ``measure(model)`` gives figures for the history, as of the validation images.
    coding : "smallest" | "huffman" | "packed"
        As for `save`: of the files, and so of the bytes in the history.
    progress : callable, optional
        Called with the row of each step, those from an earlier run too.

    Returns
    -------
    model : Sequential
    history : tuple of StepRow

    Raises
    ------
    CompressionError
        Two steps have one name, a step refuses its model or makes one with NaN, a figure of
        `measure` is not finite, the folder belongs to another recipe, its history is damaged, or
        its last model is not the one that was left there.
    FileFormatError
        A file in the folder is damaged.
    OSError
        The folder cannot be written.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> start = Sequential((Dense(np.array([[3.0, 1.0]])),))
    >>> prune = Step("prune", partial(compressed, plan={0: partial(prune_magnitude, amount=0.5)}))
    >>> result = run_recipe(start, (prune,), seed=0)
    >>> result.model.layers[0].weight.values, [row.name for row in result.history]
    (array([3.]), ['prune'])
    """
    names = [step.name for step in steps]
    if len(set(names)) != len(names):
        raise CompressionError(f"the steps of a recipe need names of their own, not {names}")
    seed = as_int(seed, "seed", 0)
    kept = None if folder is None else _Folder(Path(folder), model, steps, seed, coding)
    history: list[StepRow] = [] if kept is None else kept.rows()
    if kept is not None and history:
        model = kept.model(history)
    for row in history:
        if progress is not None:
            progress(row)
    for i in range(len(history), len(names)):
        with naming(f"step {names[i]!r}"):
            model = steps[i].run(model, np.random.default_rng([seed, i]))
            blob = dumps(model, coding=coding)
        if kept is not None:
            write_file(kept.file(i), blob)
        measured = {} if measure is None else measure(model)
        figures = {
            name: as_float(float(figure), f"{name}, measured after step {names[i]!r},", -math.inf)
            for name, figure in measured.items()
        }
        history.append(StepRow(names[i], len(blob), _digest([blob]), figures))
        if kept is not None:
            kept.keep(history)
        if progress is not None:
            progress(history[-1])
    return RecipeResult(model, tuple(history))


def compressed(
    model: Sequential, rng: np.random.Generator, *, plan: Mapping[int, Compressor]
) -> Sequential:
    """`compress` as a step: bind the plan by functools.partial."""
    return compress(model, plan).model


def retrained(
    model: Sequential,
    rng: np.random.Generator,
    *,
    images: Images,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
) -> Sequential:
    """`fit` by Adam as a step: zeros of the weights stay zeros, shared values stay shared."""
    x, y = images
    trained, _ = fit(
        decoded(model),
        x,
        y,
        optimizer=adam(cosine_lr(learning_rate, max(epochs * -(-len(x) // batch_size), 1))),
        epochs=epochs,
        batch_size=batch_size,
        rng=rng,
        view=preserve_structure(model),
    )
    return restore_structure(model, trained)


def deep_compression(
    images: Images,
    kept: Mapping[int, float],
    bits: Mapping[int, int],
    *,
    rounds: int = 4,
    epochs: int = 8,
    fine_tuning: int = 4,
    learning_rate: float = 1e-3,
) -> tuple[Step, ...]:
    """The recipe of Deep Compression: prune and retrain by rounds, share values, tune them.

    Parameters
    ----------
    images : (x, y)
        To train on.
    kept : mapping of int to float in (0, 1]
        For the index of a layer the fraction of its weights that is left in the end.
    bits : mapping of int to int
        How many bits a shared value's index takes: a layer has 2**bits values, by k-means from a
        linear start.
    rounds : int, at least 1
        Each keeps the same fraction of what the one before has left.
    epochs, fine_tuning : int
        Of training behind each round, and of the shared values in the end.
    learning_rate : float
        Of training; a tenth of it for the shared values.

    Returns
    -------
    tuple of Step
        For `run_recipe`. With ``coding="huffman"`` the file has what the paper has: the gaps
        between weights, the indices of their values, both in Huffman's code, and the values.

    Raises
    ------
    CompressionError
        A number is out of range, or the two mappings name different layers.

    Examples
    --------
    >>> x, y = np.zeros((2, 4), np.float32), np.array([0, 1])
    >>> steps = deep_compression((x, y), {0: 0.1}, {0: 5}, rounds=2)
    >>> [step.name for step in steps]
    ['prune 1', 'retrain 1', 'prune 2', 'retrain 2', 'share', 'tune']
    """
    rounds = as_int(rounds, "rounds", 1)
    left = {i: as_float(share, "kept", 0.0, 1.0) for i, share in kept.items()}
    if left.keys() != bits.keys() or 0.0 in left.values():
        raise CompressionError(f"kept and bits must be of the same layers, not {kept} and {bits}")
    learning_rate = as_float(learning_rate, "learning_rate", 0.0)
    fine_tuning, epochs = as_int(fine_tuning, "fine_tuning", 0), as_int(epochs, "epochs", 0)
    settings = (
        f"{left}, {dict(bits)}, rounds={rounds}, epochs={epochs}, fine_tuning={fine_tuning}, "
        f"learning_rate={learning_rate}, images={array_digest(*images)}"
    )
    training = partial(retrained, images=images, learning_rate=learning_rate)
    steps = []
    for i in range(1, rounds + 1):
        prune: dict[int, Compressor] = {
            k: partial(prune_magnitude, amount=1 - share ** (i / rounds))
            for k, share in left.items()
        }
        steps += [
            Step(f"prune {i}", partial(compressed, plan=prune), settings),
            Step(f"retrain {i}", partial(training, epochs=epochs), settings),
        ]
    share: dict[int, Compressor] = {
        # What is zero already is what `prune` drops first: it loses nothing more.
        k: chain(prune[k], partial(cluster, n_clusters=2 ** as_int(bits[k], "bits", 0, 16)))
        for k in left
    }
    tune = partial(training, epochs=fine_tuning, learning_rate=learning_rate / 10)
    last = Step("share", partial(compressed, plan=share), settings), Step("tune", tune, settings)
    return (*steps, *last)


def array_digest(*arrays: Array) -> str:
    """Arrays as a few characters of text, for the settings of a step.

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
    """Where `run_recipe` keeps models and history."""

    def __init__(
        self, path: Path, start: Sequential, steps: Sequence[Step], seed: int, coding: str
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
        """The history so far."""
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
                "take a folder of its own"
            )
        return rows

    def model(self, history: Sequence[StepRow]) -> Sequential:
        """The model of the last step so far."""
        path = self.file(len(history) - 1)
        model = load(path)
        if _digest([path.read_bytes()]) != history[-1].digest:
            raise CompressionError(f"{path} is not the model that was left there")
        return model

    def keep(self, history: Sequence[StepRow]) -> None:
        """Write the history."""
        text = {"recipe": self._made_for, "history": [row._asdict() for row in history]}
        write_file(self._path / HISTORY, (json.dumps(text, indent=2) + "\n").encode())


def _digest(parts: Iterable[bytes]) -> str:
    """Of bytes. No CRC-32: of a file that ends with its own it is the same number for all."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:16]
