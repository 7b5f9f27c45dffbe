"""The two exceptions that the library raises on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CompressionError(ValueError):
    """An argument is not what it must be; the message names it, what came and what is needed."""


class FileFormatError(CompressionError):
    """A file is missing, truncated, altered, or of another format than asked for."""


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put the place where an error was raised in front of its message."""
    try:
        yield
    except CompressionError as error:
        raise CompressionError(f"{where}: {error}") from error
