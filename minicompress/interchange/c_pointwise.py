"""Layers that compute or move one number at a time, in C: one loop over the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minicompress.integer.joins import IntegerAdd, IntegerConcat, IntegerMultiply
from minicompress.integer.layers import IntegerScale
from minicompress.integer.stateless import (
    IntegerChannelShuffle,
    IntegerLayer,
    IntegerReLU,
    IntegerTable,
    IntegerUpsample2D,
)
from minicompress.interchange.c_expressions import code, filled, less, times
from minicompress.nn.layer import Shape

EACH = """
for (int32_t i = 0; i < $count; i++) {
    $before
    out[i] = $result;
}"""

CONCAT = """
for (int32_t p = 0; p < $pixels; p++) {
    $parts
}"""

PART = """
for (int32_t c = 0; c < $channels; c++) {
    out[$to + c] = $result;
}"""


def pointwise(layer: IntegerLayer, shapes: Sequence[Shape], name: str, prefix: str) -> str:
    """The body of a function that reads `in`, or `in_0`, `in_1`, ... and writes `out`."""
    if isinstance(layer, IntegerConcat):
        return _concat(layer, shapes, prefix)
    shape = layer.output_shape(*shapes)
    before, result = _each(layer, shapes, shape, name, prefix)
    return filled(EACH, count=math.prod(shape), before=before, result=result)


def _each(
    layer: Any, shapes: Sequence[Shape], shape: Shape, name: str, prefix: str
) -> tuple[str, str]:
    """What is computed for entry i of the output: statements, and the expression of its code."""
    channel = f"i % {shape[-1]}" if shape else "0"
    match layer:
        case IntegerReLU(zero_point=zero):
            # No code is above 127, and compilers warn of comparisons that are always false.
            larger = f"in[i] > {zero} ? in[i] : {zero}"
            return "", f"(int8_t)({larger if zero < 127 else 'in[i] < 127 ? 127 : in[i]'})"
        case IntegerTable():
            row = f"({channel}) * 256 + " if layer.table.ndim == 2 else ""
            return "", f"{name}_table[{row}in[i] + 128]"
        case IntegerScale():
            total = f"{name}_bias[c] + (in[i]{less(layer.input_zero_point)}) * {name}_weight[c]"
            made = code(layer, prefix, total, f"{name}_multiplier[c]", f"{name}_shift[c]")
            return f"const int32_t c = {channel};", made
        case IntegerAdd():
            terms = (
                f"(int64_t)(in_{k}[i]{less(zero)}) * {multiplier}"
                for k, (zero, multiplier) in enumerate(
                    zip(layer.input_zero_points, layer.multiplier.tolist(), strict=True)
                )
            )
            total = "\n    + ".join(terms)
            clamp = f"{layer.output_zero_point}, {layer.low}, {layer.high}"
            return f"const int64_t sum = {total};", f"{prefix}_code(sum, {layer.shift}, {clamp})"
        case IntegerMultiply():
            factors = (
                f"(in_{k}[{'i' if math.prod(read) == math.prod(shape) else channel}]{less(zero)})"
                for k, (read, zero) in enumerate(zip(shapes, layer.input_zero_points, strict=True))
            )
            product, multiplier = " * ".join(factors), int(layer.multiplier[0])
            return "", code(layer, prefix, product, multiplier, int(layer.shift[0]))
        case IntegerUpsample2D():
            (_, w, channels), (down, across) = shapes[0], layer.factor
            row = f"i / {w * across * channels * down}"
            column = f"i / {across * channels} % {w}"
            pixel = f"const int32_t pixel = {times(row, w)} + {column};"
            return pixel, f"in[{times('pixel', channels)} + {channel}]"
    assert isinstance(layer, IntegerChannelShuffle)
    # Entry g of group k of the output is entry k of group g of the input.
    groups, size = layer.groups, shape[-1] // layer.groups
    start = f"const int32_t c = {channel};"
    return start, f"in[i - c + {times(f'c % {groups}', size)} + c / {groups}]"


def _concat(layer: IntegerConcat, shapes: Sequence[Shape], prefix: str) -> str:
    parts, first = [], 0
    total = sum(shape[-1] for shape in shapes)
    for k, (shape, zero) in enumerate(zip(shapes, layer.input_zero_points, strict=True)):
        channels = shape[-1]
        step = f"in_{k}[{times('p', channels)} + c]{less(zero)}"
        result = code(layer, prefix, step, int(layer.multiplier[k]), int(layer.shift[k]))
        to = f"{times('p', total)} + {first}"
        parts.append(filled(PART, channels=channels, to=to, result=result))
        first += channels
    return filled(CONCAT, pixels=math.prod(shapes[0][:-1]), parts="\n".join(parts))
