"""The .mcx file: an `EarlyExit`. FORMAT.md in `storage` specifies it.

The file is a frame around one .mcz file, which has the layers of all segments and heads as one
network. The frame has the sizes of these parts, the criterion and the thresholds.
"""

from __future__ import annotations

import os
import struct

from minicompress.arrays import as_int
from minicompress.early_exit.exits import (
    CRITERIA,
    EarlyExit,
    checked,
    parts,
    regrouped,
)
from minicompress.errors import CompressionError, FileFormatError, naming
from minicompress.nn.composition import Sequential
from minicompress.nn.parameters import finite_model
from minicompress.storage.bits import ByteReader, put_varint
from minicompress.storage.container import MAX_BYTES, dumps, loads
from minicompress.storage.files import read_file, sealed, unsealed, write_file

MAGIC, VERSION = b"mcx", 1


def save_exits(exits: EarlyExit, path: str | os.PathLike[str], *, coding: str = "smallest") -> int:
    """Write a network with its heads and thresholds to one file, and return its size in bytes.

    Parameters
    ----------
    exits : EarlyExit
        Weights may be arrays or any representations.
    path : str or path-like
        Written atomically: a temporary file, then a rename.
    coding : "smallest" | "huffman" | "packed"
        As for `dumps`.

    Returns
    -------
    int
        The length of the file.

    Raises
    ------
    CompressionError
        As `dumps`.
    OSError
        The file cannot be written. An older file of this name stays as it was.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from minicompress.nn.architectures import lenet_300_100
    >>> from minicompress.early_exit.exits import attach_heads
    >>> exits = attach_heads(lenet_300_100(np.random.default_rng(0)), (2,), (28, 28, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save_exits(exits, folder + "/exits.mcx")
    ...     [len(segment.layers) for segment in load_exits(folder + "/exits.mcx").segments]
    [3, 3]
    """
    sizes = [len(part.layers) for part in parts(checked(exits))]
    for name in ("segments", "heads"):
        for i, model in enumerate(getattr(exits, name)):
            with naming(f"{name}[{i}]"):
                finite_model(model)
    content = b"".join(
        (
            bytes([CRITERIA.index(exits.criterion)]),
            put_varint(len(exits.heads)),
            *(struct.pack(">d", threshold) for threshold in exits.thresholds),
            *map(put_varint, sizes),
            dumps(Sequential(parts(exits)), coding=coding),
        )
    )
    return write_file(path, sealed(MAGIC, VERSION, content))


def load_exits(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> EarlyExit:
    """Read a network with its heads and thresholds: the same values, bit for bit.

    Parameters
    ----------
    path : str or path-like
    max_bytes : int
        As for `load`.

    Returns
    -------
    EarlyExit

    Raises
    ------
    FileFormatError
        The file is missing, truncated, altered, of another format or of a later version, or takes
        more memory than `max_bytes`.

    Examples
    --------
    >>> load_exits("no/such/file.mcx")
    Traceback (most recent call last):
    minicompress.errors.FileFormatError: no/such/file.mcx cannot be read: No such file or directory
    """
    limit = as_int(max_bytes, "max_bytes", 0)
    return read_file(path, lambda blob: _parsed(blob, limit), limit)


def _parsed(blob: bytes, limit: int) -> EarlyExit:
    frame = ByteReader(unsealed(blob, MAGIC, VERSION))
    criterion = frame.take(1)[0]
    if criterion >= len(CRITERIA):
        raise FileFormatError(f"there is no criterion {criterion}")
    heads = frame.varint()
    thresholds = struct.unpack(f">{heads}d", frame.take(8 * heads))
    sizes = [frame.varint() for _ in range(2 * heads + 1)]
    network = loads(frame.take(frame.left), max_bytes=limit)
    if sum(sizes) != len(network.layers):
        raise FileFormatError(
            f"the parts have {sum(sizes)} layers, but the file has {len(network.layers)}"
        )
    try:
        return EarlyExit(*regrouped(network, sizes), thresholds, CRITERIA[criterion])
    except CompressionError as error:
        raise FileFormatError(f"the file describes something impossible: {error}") from None
