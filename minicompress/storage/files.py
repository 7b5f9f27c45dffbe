"""Whole files: written beside and renamed, read up to a size, and sealed with a checksum."""

from __future__ import annotations

import os
import secrets
import zlib
from contextlib import suppress

from minicompress.errors import CompressionError, FileFormatError

CHECKSUM_BYTES = 4


def write_file(path: str | os.PathLike[str], blob: bytes) -> int:
    """Write a file that is whole or not there, and say how many bytes it has.

    What was there before stays until the new file is complete; if it cannot be written, that is an
    OSError, and nothing is left behind. Through a link its target is written. What is no file but
    a device or a pipe is written to as it is.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_file(folder + "/file", b"abc"), read_file(folder + "/file", 0), os.listdir(folder)
    (3, b'abc', ['file'])
    """
    name = file_name(path)
    if os.path.exists(name) and not os.path.isfile(name):
        with open(name, "wb") as device:
            return device.write(blob)
    name = os.path.realpath(name)
    beside = f"{name}.{secrets.token_hex(4)}.part"
    try:
        with open(beside, "xb") as file:
            file.write(blob)
        os.replace(beside, name)
    except BaseException:
        with suppress(OSError):
            os.remove(beside)
        raise
    return len(blob)


def read_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Read a file of models that may take so much memory when decoded.

    Raises
    ------
    FileFormatError
        It cannot be read, or is larger than anything that decodes to so much.

    Examples
    --------
    >>> read_file("no/such/file", 1)
    Traceback (most recent call last):
    minicompress.errors.FileFormatError: no/such/file cannot be read: No such file or directory
    """
    name = file_name(path)
    try:
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > 2 * max_bytes + 4096:
                raise FileFormatError(f"{name} is larger than max_bytes={max_bytes} allows")
            return file.read(size)
    except OSError as error:
        raise FileFormatError(f"{name} cannot be read: {error.strerror}") from None


def sealed(magic: bytes, version: int, content: bytes) -> bytes:
    """A file's bytes: what it is, the version of its format, the content, and their checksum.

    Examples
    --------
    >>> unsealed(sealed(b"mcz", 1, b"abc"), b"mcz", 1)
    b'abc'
    """
    body = magic + bytes([version]) + content
    return body + _checksum(body)


def unsealed(blob: bytes, magic: bytes, version: int) -> bytes:
    """The content of what `sealed` made.

    Raises
    ------
    FileFormatError
        It is of another kind or version, or damaged.
    """
    kind, start = magic.decode(), len(magic) + 1
    if blob[: len(magic)] != magic:
        raise FileFormatError(f"this is no .{kind} file: it does not begin with {kind!r}")
    if blob[len(magic) : start] not in (b"", bytes([version])):
        raise FileFormatError(
            f"the file has version {blob[len(magic)]}, and only version {version} can be read here"
        )
    body, checksum = blob[:-CHECKSUM_BYTES], blob[-CHECKSUM_BYTES:]
    if len(body) < start or checksum != _checksum(body):
        raise FileFormatError("the checksum is not that of the bytes: the file is damaged")
    return body[start:]


def _checksum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(CHECKSUM_BYTES, "little")


def file_name(path: str | os.PathLike[str]) -> str:
    """A path, checked."""
    if not isinstance(path, str | os.PathLike) or "\0" in os.fspath(path):
        raise CompressionError(f"path must be the name of a file, not {path!r}")
    return os.fspath(path)
