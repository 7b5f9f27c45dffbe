"""What a file is worth: its bytes, and the errors of the network that is in it."""

from __future__ import annotations

import os
from typing import NamedTuple

from minicompress.analysis.accounting import Summary, summary
from minicompress.arrays import Array
from minicompress.experiments.model_files import read_network
from minicompress.nn.training import accuracy


class Evaluation(NamedTuple):
    """A file, and how the network decoded from it does.

    Parameters
    ----------
    bytes : int
        The length of the file.
    counted : Summary
        Of the network.
    wrong, images : int
        How many images get another class than theirs, of how many.
    """

    bytes: int
    counted: Summary
    wrong: int
    images: int


def evaluate_file(path: str | os.PathLike[str], x: Array, y: Array) -> Evaluation:
    """Decode a network from its file, and run it on labelled images.

    Parameters
    ----------
    path : str or path-like
        Of a .mcz or a .onnx file.
    x : (N, ...) ndarray
    y : (N,) ndarray of integers

    Returns
    -------
    Evaluation

    Raises
    ------
    FileFormatError
        As `load`.
    CompressionError
        The file holds no network, or the network does not take such images.
    """
    model, x = read_network(os.fspath(path), x)
    size = os.path.getsize(path)
    wrong = round(len(y) * (1 - accuracy(model, x, y)))
    return Evaluation(size, summary(model, x.shape[1:]), wrong, len(y))


def format_evaluation(found: Evaluation) -> str:
    """The layers as a table, then the bytes and the errors."""
    error = found.wrong / found.images
    return (
        f"{found.counted}\n\n"
        f"{found.bytes:,} bytes of file, {found.wrong:,} of {found.images:,} test images wrong: "
        f"{error:.2%} error, {1 - error:.2%} accuracy"
    )
