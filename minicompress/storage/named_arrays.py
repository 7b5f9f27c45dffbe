"""The .mcz file of named arrays: weights of any model, without the model.

`save_arrays` and `load_arrays` are `dumps_arrays` and `loads_arrays` with a file. It is the frame
and the coding of a network's file; only the layers are missing. Each array has its name, its number
of axes and then what `coding` makes of any representation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from itertools import repeat, takewhile

import numpy as np

from minicompress.arrays import as_int, frozen
from minicompress.errors import CompressionError, FileFormatError, naming
from minicompress.representation import Clustered, LowRank, Quantized, Rep, Sparse, shape_of
from minicompress.storage.coding import NOTHING, code_rep
from minicompress.storage.container import ARRAYS_VERSION, MAX_BYTES, framed, unframed
from minicompress.storage.files import file_name, read_file, write_file
from minicompress.storage.sections import DTYPES, Section

MOST_AXES = 32
"""The most axes of an array; NumPy before version 2 has no more."""


def save_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, Rep], *, coding: str = "smallest"
) -> int:
    """Write named arrays to a .mcz file, and return how many bytes it takes.

    Parameters
    ----------
    path : str or path-like
        Written atomically: a temporary file, then a rename.
    arrays : mapping of str to ndarray or representation
        As for `dumps_arrays`.
    coding : "smallest" | "huffman" | "packed"
        As for `dumps`.

    Returns
    -------
    int
        The length of the file.

    Raises
    ------
    CompressionError
        As `dumps_arrays`.
    OSError
        The file cannot be written. An older file of this name stays as it was.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_arrays(folder + "/weights.mcz", {"layer.weight": np.ones((3, 2)), "step": 7})
    ...     load_arrays(folder + "/weights.mcz")["step"]
    44
    array(7)
    """
    file_name(path)  # before the work of seconds
    return write_file(path, dumps_arrays(arrays, coding=coding))


def load_arrays(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> dict[str, Rep]:
    """Read named arrays from a .mcz file: the same names and values, bit for bit.

    Parameters
    ----------
    path : str or path-like
    max_bytes : int
        As for `loads_arrays`.

    Returns
    -------
    dict of str to ndarray or representation
        In the order in which they were written.

    Raises
    ------
    FileFormatError
        The file is missing, truncated, altered, of another format or version, holds a network, or
        takes more memory than `max_bytes`.

    Examples
    --------
    >>> load_arrays("no/such/file.mcz")
    Traceback (most recent call last):
    minicompress.errors.FileFormatError: no/such/file.mcz cannot be read: No such file or directory
    """
    limit = as_int(max_bytes, "max_bytes", 0)
    return read_file(path, partial(loads_arrays, max_bytes=limit), limit)


def dumps_arrays(arrays: Mapping[str, Rep], *, coding: str = "smallest") -> bytes:
    """The bytes of the file that `save_arrays` writes.

    Parameters
    ----------
    arrays : mapping of str to ndarray or representation
        Arrays of float16, float32, float64, integers of 8 to 64 bits or bool, with any number of
        axes up to 32; also without entries. NaN and infinity are kept, bit for bit. Representations
        of any kind, nested in any way.
    coding : "smallest" | "huffman" | "packed"
        As for `dumps`.

    Returns
    -------
    bytes
        The same for the same arrays on every machine.

    Raises
    ------
    CompressionError
        `arrays` is no mapping, a name is not a string of Unicode, or an array has another dtype or
        more axes; the message names the array.

    Examples
    --------
    >>> from minicompress.compressors.quantization import quantize
    >>> weight = quantize(np.linspace(-1, 1, 60, dtype="f4").reshape(5, 12), num_bits=4).rep
    >>> blob = dumps_arrays({"weight": weight, "mask": np.array([True, False])})
    >>> {name: type(rep).__name__ for name, rep in loads_arrays(blob).items()}
    {'weight': 'Quantized', 'mask': 'ndarray'}
    """
    if not isinstance(arrays, Mapping):
        raise CompressionError(f"arrays must map names to arrays, not be {type(arrays).__name__}")
    checked = {}
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise CompressionError(f"the names of arrays must be strings, not {name!r}")
        with naming(f"array {name!r}"):
            _utf8(name)
            checked[name] = _storable(value)
    return framed(ARRAYS_VERSION, partial(_code_arrays, arrays=checked), coding)


def loads_arrays(blob: bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, Rep]:
    """Decode the bytes of a file that `save_arrays` wrote.

    Parameters
    ----------
    blob : bytes
    max_bytes : int
        Memory that names, arrays and their parts may take; a few bytes can decode to very large
        arrays. What needs more is refused before the memory is taken.

    Returns
    -------
    dict of str to ndarray or representation

    Raises
    ------
    FileFormatError
        The bytes are not a whole, unaltered file of named arrays, or need more memory.

    Examples
    --------
    >>> loads_arrays(dumps_arrays({"a": np.arange(3)})[:-1])
    Traceback (most recent call last):
    minicompress.errors.FileFormatError: the checksum is not that of the bytes: the file is damaged
    """
    return unframed(blob, ARRAYS_VERSION, _code_arrays, max_bytes)


def _code_arrays(section: Section, arrays: Mapping[str, Rep] | None = None) -> dict[str, Rep]:
    """Code all arrays. A reader passes none.

    Names often begin alike, so of each only what differs from the name before is stored.
    """
    given = [] if arrays is None else list(arrays.items())
    count = section.number("arrays", len(given))
    found: dict[str, Rep] = {}
    before = b""
    for i, (name, rep) in zip(range(count), [*given] or repeat(("", NOTHING))):
        raw = _utf8(name)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, raw)))
        shared = section.choice("shared", shared, len(before) + 1)
        rest = section.number("name", len(raw) - shared if arrays is not None else 0)
        section.claim(shared + rest, 1)
        before = before[:shared] + section.octets(raw[shared:], rest)
        try:
            read = before.decode()
        except UnicodeDecodeError:
            raise FileFormatError(f"the name of array {i} is not UTF-8") from None
        if read in found:
            raise FileFormatError(f"two arrays have the name {read!r}")
        axes = section.choice("axes", len(shape_of(rep)), MOST_AXES + 1)
        found[read] = code_rep(section, (None,) * axes, None, rep)
    return found


def _storable(value: Rep) -> Rep:
    if isinstance(value, LowRank | Sparse | Quantized | Clustered):
        return value
    array = np.asarray(value)
    native = array.dtype.newbyteorder("=")
    if native not in DTYPES or isinstance(value, np.ma.MaskedArray):
        kind = "a masked array" if isinstance(value, np.ma.MaskedArray) else str(array.dtype)
        raise CompressionError(
            f"it must be of float16, float32, float64, integers or bool, not {kind}"
        )
    if array.ndim > MOST_AXES:
        raise CompressionError(f"it must have at most {MOST_AXES} axes, not {array.ndim}")
    return frozen(array.astype(native, copy=False))


def _utf8(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise CompressionError("a name must be Unicode without lone surrogates") from None
