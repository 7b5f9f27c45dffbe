"""The two exceptions that the library raises on purpose."""


class CompressionError(ValueError):
    """An argument is not what it must be; the message names it, what came and what is needed."""


class FileFormatError(CompressionError):
    """A file is missing, truncated, altered, or of another format than asked for."""
