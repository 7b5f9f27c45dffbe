"""Whole files: written atomically, read up to a size, and sealed with a checksum."""

from __future__ import annotations

import errno
import os
import secrets
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from minicompress.errors import CompressionError, FileFormatError

PathLike = str | os.PathLike[str]
Value = TypeVar("Value")

CHECKSUM_BYTES = 4


@contextmanager
def replacing(*paths: PathLike) -> Iterator[list[BinaryIO]]:
    """Write files atomically: temporary files beside them, renamed when the block has ended.

    Parameters
    ----------
    *paths : str or path-like
        If one is a link, its target is replaced. A device or a pipe is written to directly.

    Yields
    ------
    list of binary file
        One for each path. They are opened at once, so that a bad path fails before the work.

    Raises
    ------
    OSError
        A file cannot be written. Any error in the block leaves all files as they were. No file is
        ever half-written, and no temporary file is left behind.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(folder + "/a", folder + "/b") as (a, b):
    ...         _ = a.write(b"first"), b.write(b"second"), os.listdir(folder)
    ...     sorted(os.listdir(folder))
    ['a', 'b']
    """
    with ExitStack() as cleanup:
        files: list[BinaryIO] = []
        renames = []
        for path in paths:
            name = file_name(path)
            if not name or os.path.isdir(name):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
            if os.path.exists(name) and not os.path.isfile(name):
                files.append(cleanup.enter_context(open(name, "wb")))
                continue
            name = os.path.realpath(name)
            temporary = f"{name}.{secrets.token_hex(4)}.part"
            cleanup.callback(Path(temporary).unlink, missing_ok=True)  # renamed: gone
            renames.append((temporary, name))
            files.append(cleanup.enter_context(open(temporary, "xb")))
        yield files
        for file in files:
            file.close()
        for temporary, name in renames:
            os.replace(temporary, name)


def write_file(path: PathLike, blob: bytes) -> int:
    """Write one file atomically (see `replacing`), and return how many bytes it has.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_file(folder + "/file", b"abc"), read_file(folder + "/file", bytes, 0)
    (3, b'abc')
    """
    with replacing(path) as (file,):
        return file.write(blob)


def read_file(path: PathLike, parse: Callable[[bytes], Value], max_bytes: int) -> Value:
    """Read a file of models.

    Parameters
    ----------
    path : str or path-like
    parse : callable
        Makes the result from the file's bytes.
    max_bytes : int
        Memory that the result may take. No file that decodes to this much is larger than twice
        this size, so a larger one is refused before it is read.

    Raises
    ------
    FileFormatError
        The file cannot be read, is too large, or `parse` refuses it; the message names the file.

    Examples
    --------
    >>> read_file("no/such/file", bytes, 1)
    Traceback (most recent call last):
    minicompress.errors.FileFormatError: no/such/file cannot be read: No such file or directory
    """
    name = file_name(path)
    try:
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > 2 * max_bytes + 4096:
                raise FileFormatError(f"{name} is larger than max_bytes={max_bytes} allows")
            blob = file.read(size)
    except OSError as error:
        raise FileFormatError(f"{name} cannot be read: {error.strerror}") from None
    try:
        return parse(blob)
    except FileFormatError as error:
        raise FileFormatError(f"{name}: {error}") from None


def sealed(magic: bytes, version: int, content: bytes) -> bytes:
    """Frame `content` as a file: magic, version, content, checksum.

    Examples
    --------
    >>> unsealed(sealed(b"mcz", 1, b"abc"), b"mcz", 1)
    b'abc'
    """
    body = magic + bytes([version]) + content
    return body + zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "little")


def unsealed(blob: bytes, magic: bytes, version: int) -> bytes:
    """Return the content of a file that `sealed` made.

    Raises
    ------
    FileFormatError
        The file is of another kind or version, or damaged.
    """
    kind, start = magic.decode(), len(magic) + 1
    if blob[: len(magic)] != magic:
        raise FileFormatError(f"this is no .{kind} file: it does not begin with {kind!r}")
    if blob[len(magic) : start] not in (b"", bytes([version])):
        raise FileFormatError(
            f"the file has version {blob[len(magic)]}, and only version {version} can be read here"
        )
    body, checksum = blob[:-CHECKSUM_BYTES], blob[-CHECKSUM_BYTES:]
    if len(body) < start or zlib.crc32(body) != int.from_bytes(checksum, "little"):
        raise FileFormatError("the checksum is not that of the bytes: the file is damaged")
    return body[start:]


def file_name(path: PathLike) -> str:
    """The name of a file, checked."""
    if not isinstance(path, str | os.PathLike) or "\0" in os.fspath(path):
        raise CompressionError(f"path must be the name of a file, not {path!r}")
    return os.fspath(path)
