"""Tables and paragraphs for a terminal: columns that line up, lines that fit."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def aligned(cells: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A table with a line below its heads.

    Parameters
    ----------
    cells : sequence of sequences of str
        The first row holds the heads.
    words : int
        So many columns are set to the left, all others to the right.

    Returns
    -------
    str

    Examples
    --------
    >>> print(aligned([("method", "bytes"), ("int8", "10,336")]))
    method   bytes
    --------------
    int8    10,336
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def wrap(text: str, width: int = 80) -> str:
    """Text in lines of at most `width` characters."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
