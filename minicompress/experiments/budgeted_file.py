"""A plan for somebody's network that keeps a file size, for ``compress --max-bytes``."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from typing import Any

import numpy as np

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.experiments.budget import share_of
from minicompress.experiments.comparison import Progress
from minicompress.experiments.model_files import (
    read_network,
    read_weights,
    suffix_of,
    write_weights,
)
from minicompress.nn.losses import softmax_cross_entropy
from minicompress.nn.network import Network, apply
from minicompress.nn.parameters import finite_outputs
from minicompress.representation import Rep, decode, dtype_of, shape_of
from minicompress.search.choices import KEPT
from minicompress.search.methods import parse_method
from minicompress.search.plan import compress
from minicompress.search.searching import search_plan
from minicompress.search.weights import weights
from minicompress.storage.container import dumps

LADDERS = {
    ".onnx": ("int8", "int4"),
    ".mcz": (
        "int8",
        "int6",
        "int5",
        "int4",
        "int3",
        "prune50+int8",
        "prune80+int8",
        "prune80+int4",
    ),
}
"""What a search chooses from: what makes the file smaller."""

SMALLEST = 64
"""Arrays of fewer numbers stay as they are."""

TRIES = 4


def searched_methods(
    path: str,
    out: str,
    max_bytes: str,
    x: Array,
    y: Array | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Search a method for each array of a network, so that the file keeps a size.

    Parameters
    ----------
    path, out : str
        .onnx or .mcz, of a network.
    max_bytes : str
        Bytes, or a share of the file at `path`: "25%".
    x : (N, ...) ndarray
    y : (N,) ndarray of integers, optional
        Classes, whose cross-entropy is made small. Otherwise it is the mean squared distance from
        the network's own outputs.
    progress : callable, optional

    Returns
    -------
    dict of str to str
        A method for each array that is to be compressed.

    Raises
    ------
    CompressionError
        No plan keeps the size; the file holds no network, or one with several outputs.
    """
    if suffix_of(out) not in LADDERS:
        raise CompressionError(f"--max-bytes needs a network, and {out} will hold arrays alone")
    limit = share_of(max_bytes, os.path.getsize(path))
    source = read_weights(path, out=out, x=x)
    network, inputs = read_network(path, x)
    outputs = finite_outputs(apply(network, inputs))
    if isinstance(outputs, tuple) or outputs.ndim != 2:
        raise CompressionError("--max-bytes needs a network with one output, (N, classes)")
    names = _names(network, source.arrays)
    ladder = {text: parse_method(text) for text in LADDERS[suffix_of(out)]}
    choices: Any = dict.fromkeys(names, ladder)

    def distance(found: Array, rows: Array) -> tuple[float, Array]:
        moved = found.astype(np.float64) - outputs[rows]
        return float(np.mean(moved**2)), found

    target = np.arange(len(inputs)) if y is None else y
    coding = "packed" if suffix_of(out) == ".onnx" else "huffman"
    budget = limit - max(os.path.getsize(path) - len(dumps(network, coding="packed")), 0)
    for _ in range(TRIES):
        found = search_plan(
            network,
            choices,
            inputs,
            target,
            max_bytes=max(budget, 0),
            loss=distance if y is None else softmax_cross_entropy,
            plans=8,
            rounds=2,
            coding=coding,
            progress=progress,
        )
        plan = {names[i]: text for i, text in found.best.plan.items() if text != KEPT}
        size = _size_with(plan, source, out, inputs.shape[1:])
        if size <= limit:
            return plan
        budget -= size - limit
    raise CompressionError(f"no plan that was tried keeps {limit:,} bytes: the least is {size:,}")


def _names(network: Network, arrays: dict[str, Rep]) -> dict[int, str]:
    """For each layer the name of the array that holds the numbers of its weight, in any order."""
    known = {_digest(rep): name for name, rep in arrays.items() if _large(rep)}
    found = {i: known.get(_digest(rep)) for i, rep in weights(network).items() if _large(rep)}
    return {i: name for i, name in found.items() if name is not None}


def _large(rep: Rep) -> bool:
    shape = shape_of(rep)
    return len(shape) >= 2 and math.prod(shape) >= SMALLEST and dtype_of(rep).kind == "f"


def _digest(rep: Rep) -> bytes:
    return hashlib.sha256(np.sort(decode(rep), axis=None).tobytes()).digest()


def _size_with(plan: dict[str, str], source: Any, out: str, shape: tuple[int, ...]) -> int:
    """The bytes of the file that a plan makes."""
    compressors = {name: parse_method(text) for name, text in plan.items()}
    made = compress(source.arrays, compressors).arrays
    arrays = {name: made[name] if name in plan else rep for name, rep in source.arrays.items()}
    with tempfile.TemporaryDirectory() as folder:
        return write_weights(f"{folder}/tried{suffix_of(out)}", source, arrays, shape)
