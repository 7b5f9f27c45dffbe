"""The .mcz file: a network in few bytes that are safe to read.

`save` and `load` are `dumps` and `loads` with a file. FORMAT.md beside this module specifies the
format. This module codes the frame (magic, version, two sections, checksum), `networks` layers and
what they read, `coding` representations, and `sections` numbers and arrays. Files of named arrays
have the same frame: see `named_arrays`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from minicompress.arrays import as_int, choice
from minicompress.errors import CompressionError, FileFormatError
from minicompress.nn.network import Network, naming_layer
from minicompress.nn.parameters import finite_model
from minicompress.storage.bits import ByteReader, blob_bytes, put_varint
from minicompress.storage.files import file_name, read_file, sealed, unsealed, write_file
from minicompress.storage.networks import TYPES, code_network
from minicompress.storage.sections import CODINGS, Reader, Writer, allowed_work

MAGIC, VERSION, ARRAYS_VERSION = b"mcz", 1, 2
MAX_BYTES = 256 << 20

T = TypeVar("T")

# The codings to try for integers. The best choice for each array can be a byte longer for the whole
# file, or need more decisions than a reader accepts. So simpler choices are tried too.
CHOICES = {
    "smallest": (CODINGS, ("packed", "huffman"), ("packed",)),
    "huffman": (("packed", "huffman"), ("packed",)),
    "packed": (("packed",),),
}


def save(model: Network, path: str | os.PathLike[str], *, coding: str = "smallest") -> int:
    """Write a model to a file, and return how many bytes it takes.

    Parameters
    ----------
    model : Network
        Weights may be arrays or any representations, nested in any way.
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
        A layer has a type that the format does not know, or a weight is NaN or infinite; the
        message names the layer.
    OSError
        The file cannot be written. An older file of this name stays as it was.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from minicompress.nn.architectures import digits_cnn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(digits_cnn(np.random.default_rng(0)), folder + "/model.mcz")
    39515
    """
    file_name(path)  # before the work of seconds
    return write_file(path, dumps(model, coding=coding))


def load(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Network:
    """Read a model from a file: the same values, bit for bit, so the same outputs.

    Parameters
    ----------
    path : str or path-like
    max_bytes : int
        As for `loads`.

    Returns
    -------
    Network

    Raises
    ------
    FileFormatError
        The file is missing, truncated, altered, of another format or of a later version, or takes
        more memory than `max_bytes`.

    Examples
    --------
    >>> load("no/such/file.mcz")
    Traceback (most recent call last):
    minicompress.errors.FileFormatError: no/such/file.mcz cannot be read: No such file or directory
    """
    limit = as_int(max_bytes, "max_bytes", 0)
    return read_file(path, partial(loads, max_bytes=limit), limit)


def dumps(model: Network, *, coding: str = "smallest") -> bytes:
    """The bytes of the file that `save` writes.

    Parameters
    ----------
    model : Network
    coding : "smallest" | "huffman" | "packed"
        Which codings of integers are tried; each array gets the shortest. "smallest" tries all,
        and takes some seconds for a million codes. "huffman" tries Huffman's code and packed bits,
        which is much faster. "packed" has packed bits only.

    Returns
    -------
    bytes
        The same for the same model on every machine.

    Raises
    ------
    CompressionError
        `model` is not a Network, has a layer of a type that the format does not know, or has a
        weight that is NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.pointwise import ReLU
    >>> blob = dumps(Sequential((Dense(np.ones((2, 3), np.float32)), ReLU())))
    >>> len(blob), loads(blob).layers[0].weight.tolist()
    (24, [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    """
    if not isinstance(model, Network):
        raise CompressionError(f"model must be a Network, not {type(model).__name__}")
    for i, layer in enumerate(model.layers):
        if type(layer) not in TYPES:
            with naming_layer(model, i):
                raise CompressionError(
                    f"the file format knows only {', '.join(t.__name__ for t in TYPES)}"
                )
    finite_model(model)
    return framed(VERSION, partial(code_network, network=model), coding)


def loads(blob: bytes, *, max_bytes: int = MAX_BYTES) -> Network:
    """Decode the bytes of a file that `save` wrote.

    Parameters
    ----------
    blob : bytes
    max_bytes : int
        Memory that the decoded weights and their parts may take; a few bytes can decode to very
        large arrays. A model that needs more is refused before the memory is taken.

    Returns
    -------
    Network

    Raises
    ------
    FileFormatError
        The bytes are not a whole, unaltered file of a known version, need more memory, or hold a
        weight that is NaN or infinite.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.stateless import Flatten
    >>> blob = dumps(Sequential((Flatten(),)))
    >>> loads(blob[:-1])
    Traceback (most recent call last):
    minicompress.errors.FileFormatError: the checksum is not that of the bytes: the file is damaged
    """

    def finite_network(reader: Reader) -> Network:
        model = code_network(reader)
        finite_model(model)
        return model

    return unframed(blob, VERSION, finite_network, max_bytes)


def framed(version: int, code: Callable[[Writer], object], coding: str) -> bytes:
    """The bytes of a file: of the codings that are tried, those of the shortest."""
    contents = []
    for codings in CHOICES[choice(coding, "coding", CHOICES)]:
        writer = Writer(codings)
        code(writer)
        bulk, coded = bytes(writer.bulk), writer.coder.finish()
        if writer.coder.work <= allowed_work(len(coded)):
            contents.append(put_varint(len(bulk)) + bulk + coded)
    if not contents:
        raise CompressionError("there are more parts than a reader would accept")
    return sealed(MAGIC, version, min(contents, key=len))


def unframed(blob: bytes, version: int, code: Callable[[Reader], T], max_bytes: int) -> T:
    """What the bytes of a file hold. `code` reads it; a CompressionError says what cannot be."""
    raw, limit = blob_bytes(blob), as_int(max_bytes, "max_bytes", 0)
    other = {VERSION: ARRAYS_VERSION, ARRAYS_VERSION: VERSION}[version]
    if raw[: len(MAGIC) + 1] == MAGIC + bytes([other]):
        held = "named arrays: load_arrays" if version == VERSION else "a network: load"
        raise FileFormatError(f"the file has version {other}, which holds {held} reads it")
    frame = ByteReader(unsealed(raw, MAGIC, version))
    bulk = frame.take(frame.varint())
    reader = Reader(frame.take(frame.left), bulk, limit)
    try:
        found = code(reader)
        reader.coder.finish()
        reader.bulk.end()
    except FileFormatError:
        raise
    except CompressionError as error:  # from the layers and representations themselves
        raise FileFormatError(f"the file describes something impossible: {error}") from None
    return found
