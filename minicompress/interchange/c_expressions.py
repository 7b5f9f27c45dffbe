"""Pieces of C: templates, and the expressions that several layers share."""

from __future__ import annotations

from string import Template
from textwrap import indent
from typing import Any


def filled(template: str, **parts: object) -> str:
    """A template with its parts. Each keeps its line's indentation; an empty one takes no line.

    Examples
    --------
    >>> print(filled("while (n) {\\n    $skip\\n    $body\\n}", skip="", body="n--;\\nf(n);"))
    while (n) {
        n--;
        f(n);
    }
    """
    lines = []
    for line in template.splitlines():
        text = line.lstrip()
        if made := Template(text).substitute(parts):
            lines.append(indent(made, " " * (len(line) - len(text))))
    return "\n".join(lines)


def code(layer: Any, prefix: str, value: str, multiplier: str | int, shift: str | int) -> str:
    """The expression that turns a sum into a code of the layer's output."""
    return (
        f"{prefix}_requantize(\n    {value}, {multiplier}, {shift}, "
        f"{layer.output_zero_point}, {layer.low}, {layer.high})"
    )


def less(number: int) -> str:
    """`` - number``, or `` + number`` for a negative one."""
    return f" {'-' if number > 0 else '+'} {abs(number)}"


def times(variable: str, factor: int) -> str:
    return variable if factor == 1 else f"{variable} * {factor}"
