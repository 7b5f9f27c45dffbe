"""Files of named arrays that other libraries read and write: .npz and .safetensors.

Neither has a form for compressed weights: what is written are decoded arrays. `save_arrays` of
`storage` keeps representations.
"""

from __future__ import annotations

import importlib
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy

from minicompress.arrays import Array, as_int, choice, freeze
from minicompress.errors import CompressionError, FileFormatError, naming
from minicompress.representation import Rep, decode
from minicompress.storage.files import PathLike, file_name, read_file, replacing

SUFFIXES = (".npz", ".safetensors")
MAX_BYTES = 16 << 30

# The names of dtypes in a .safetensors file. bfloat16 is the upper half of float32.
SAFE = {"F16": "f2", "F32": "f4", "F64": "f8", "BF16": "u2", "BOOL": "?"}
SAFE |= {f"{sign}{8 * n}": f"{sign.lower()}{n}" for sign in "IU" for n in (1, 2, 4, 8)}

# What NumPy and zipfile raise for bytes that are no header, for a password, and for a compression
# that Python lacks.
DAMAGED = (EOFError, ValueError, RuntimeError, SyntaxError, TypeError, tokenize.TokenError)


def load_tensors(path: PathLike, *, max_bytes: int = MAX_BYTES) -> dict[str, Array]:
    """Read named arrays from an .npz or a .safetensors file.

    Parameters
    ----------
    path : str or path-like
        Ends in .npz or .safetensors. The latter needs the package safetensors.
    max_bytes : int
        Memory that the arrays may take. A file that needs more is refused in time.

    Returns
    -------
    dict of str to ndarray, read-only
        In the order of the file. bfloat16, which NumPy lacks, becomes float32 without rounding.

    Raises
    ------
    FileFormatError
        The file is missing, damaged, of another format, holds Python objects, or takes more memory
        than `max_bytes`.
    CompressionError
        `path` has another ending, the package is not installed, or a dtype has no form in NumPy;
        the message names the array.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(folder + "/weights.npz", kernel=np.ones((2, 3)), bias=np.zeros(3))
    ...     {name: array.shape for name, array in load_tensors(folder + "/weights.npz").items()}
    {'kernel': (2, 3), 'bias': (3,)}
    """
    limit = as_int(max_bytes, "max_bytes", 0)
    if _suffix(path) == ".npz":
        return _load_npz(file_name(path), limit)
    package = _safetensors()
    return read_file(path, lambda blob: _parse_safetensors(package, blob), limit)


def save_tensors(path: PathLike, arrays: Mapping[str, Rep]) -> int:
    """Write named arrays to an .npz or a .safetensors file, decoded, and return its size in bytes.

    Parameters
    ----------
    path : str or path-like
        Ends in .npz (packed by deflate) or .safetensors, which needs the package safetensors.
        Written atomically: a temporary file, then a rename.
    arrays : mapping of str to ndarray or representation
        Representations are decoded. Floats, integers and bools.

    Returns
    -------
    int
        The length of the file.

    Raises
    ------
    CompressionError
        `path` has another ending, the package is not installed, or a name or an array has no form
        in the file; the message names the array.
    OSError
        The file cannot be written. An older file of this name stays as it was.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save_tensors(folder + "/weights.npz", {"bias": np.zeros(3)})
    ...     load_tensors(folder + "/weights.npz")["bias"]
    array([0., 0., 0.])
    """
    suffix = _suffix(path)
    if not isinstance(arrays, Mapping):
        raise CompressionError(f"arrays must map names to arrays, not be {type(arrays).__name__}")
    package = _safetensors() if suffix == ".safetensors" else None
    for name in arrays:
        _check_name(name)
    with replacing(path) as (file,):
        if package is not None:
            made = {name: np.array(_plain(name, rep)) for name, rep in arrays.items()}
            file.write(importlib.import_module("safetensors.numpy").save(made))
        else:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, rep in arrays.items():
                    # The default date makes the same arrays the same file.
                    entry = zipfile.ZipInfo(f"{name}.npy")
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    with archive.open(entry, "w", force_zip64=True) as member:
                        npy.write_array(member, _plain(name, rep), allow_pickle=False)
        return file.tell()


def _suffix(path: PathLike) -> str:
    suffix = os.path.splitext(file_name(path))[1].lower()
    return choice(suffix, "the ending of path", SUFFIXES)


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors")
    except ImportError:
        raise CompressionError(
            "a .safetensors file needs a package that is not installed: in the clone, "
            "pip install '.[safetensors]'"
        ) from None


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise CompressionError(f"the names of arrays must be strings, not {name!r}")
    if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise CompressionError(f"array {name!r}: a name must be Unicode without a zero byte")


def _plain(name: str, rep: Rep) -> Array:
    with naming(f"array {name!r}"):
        array = decode(rep) if not isinstance(rep, np.ndarray | np.generic) else np.asarray(rep)
        native = array.dtype.newbyteorder("=")
        if np.dtype(native).kind not in "fiub" or native.itemsize > 8:
            raise CompressionError(f"it must be of floats, integers or bool, not {array.dtype}")
        return np.array(array, native, order="C")


def _load_npz(name: str, max_bytes: int) -> dict[str, Array]:
    try:
        with open(name, "rb") as file, zipfile.ZipFile(file) as archive:
            return dict(_members(archive, max_bytes))
    except FileFormatError as error:
        raise FileFormatError(f"{name}: {error}") from None
    except OSError as error:
        raise FileFormatError(f"{name} cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, zlib.error, *DAMAGED) as error:
        raise FileFormatError(f"{name} is no whole .npz file: {error}") from None


def _members(archive: zipfile.ZipFile, left: int) -> Iterator[tuple[str, Array]]:
    """The arrays one by one. Sizes are compared before memory is taken."""
    seen = set()
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if name in seen:
            raise FileFormatError(f"two arrays have the name {name!r}")
        seen.add(name)
        with archive.open(entry) as member:
            version = npy.read_magic(member)
            if version not in ((1, 0), (2, 0)):
                raise FileFormatError(f"array {name!r} is of version {version}: NumPy's structures")
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(member)
            if dtype.kind not in "fiub" or dtype.itemsize > 8:
                raise FileFormatError(f"array {name!r} must hold numbers, not {dtype}")
            size = math.prod(shape) * dtype.itemsize
            if size > left:
                raise FileFormatError(f"array {name!r} takes more than max_bytes allows")
            if size != entry.file_size - member.tell():
                raise FileFormatError(f"array {name!r} is not as long as its shape {shape} says")
            left -= size
            raw = np.frombuffer(member.read(), dtype)
            array = raw.reshape(shape[::-1]).T if fortran else raw.reshape(shape)
            yield name, freeze(array.astype(dtype.newbyteorder("="), order="C"))


def _parse_safetensors(package: Any, blob: bytes) -> dict[str, Array]:
    try:
        tensors = package.deserialize(blob)
    except package.SafetensorError as error:
        raise FileFormatError(f"this is no whole .safetensors file: {error}") from None
    return {name: _tensor(name, **tensor) for name, tensor in tensors}


def _tensor(name: str, shape: list[int], dtype: str, data: bytes) -> Array:
    if dtype not in SAFE:
        raise FileFormatError(f"array {name!r} has dtype {dtype}, which NumPy lacks")
    stored = np.dtype(SAFE[dtype])
    array = np.frombuffer(data, stored.newbyteorder("<")).astype(stored).reshape(shape)
    if dtype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return freeze(array)
