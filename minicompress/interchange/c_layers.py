"""Each integer layer as a C function that reads codes at `in` and writes codes at `out`.

A function is written for one layer, and all sizes in it are constants. Its loops run over the
output and write one code after the other. Each code is written after its inputs were read for the
last time: see `c_plan`.
"""

from __future__ import annotations

import math
from textwrap import indent
from typing import NamedTuple, TypeAlias

import numpy as np

from minicompress.errors import CompressionError
from minicompress.integer.layers import IntegerConv2D, IntegerDense
from minicompress.integer.stateless import (
    NO_PADDING,
    IntegerAvgPool2D,
    IntegerLayer,
    IntegerMaxPool2D,
    IntegerReLU,
)
from minicompress.interchange.c_weights import CArray, Weights, smallest
from minicompress.nn.stateless import Shape

Affine: TypeAlias = IntegerConv2D | IntegerDense
Windowed: TypeAlias = IntegerConv2D | IntegerMaxPool2D | IntegerAvgPool2D

C_TYPES = (IntegerConv2D, IntegerDense, IntegerMaxPool2D, IntegerAvgPool2D, IntegerReLU)

INDENT = " " * 4
LARGEST = 2**28
"""The most numbers in one array: so the index of any bit in it fits int32."""


class LayerCode(NamedTuple):
    """One layer in C.

    Parameters
    ----------
    kind : str
    output_shape : tuple of int
    weights : Weights or None
    arrays : tuple of CArray
    name, text : str
        The function's name; the definitions of the arrays and of the function.
    """

    kind: str
    output_shape: Shape
    weights: Weights | None
    arrays: tuple[CArray, ...]
    name: str
    text: str

    @property
    def nbytes(self) -> int:
        """The size of all arrays."""
        return sum(array.values.nbytes for array in self.arrays)


def layer_code(layer: IntegerLayer, input_shape: Shape, index: int, prefix: str) -> LayerCode:
    """Write one layer in C.

    Parameters
    ----------
    layer : IntegerLayer
        Not IntegerFlatten, which takes no code.
    input_shape : tuple of int
    index : int
    prefix : str
        All names begin with the prefix and the index.

    Raises
    ------
    CompressionError
        The layer has no C form, or an array of it is empty or too large.
    """
    name, kind = f"{prefix}_{index}", type(layer).__name__.removeprefix("Integer")
    output_shape = layer.output_shape(input_shape)
    weights: Weights | None = None
    arrays: tuple[CArray, ...] = ()
    if type(layer) not in C_TYPES:
        raise CompressionError(
            "it has no C form; those that have one are Conv2D, Dense, ReLU, MaxPool2D, AvgPool2D "
            "and Flatten, as integer layers"
        )
    if isinstance(layer, Affine):
        fits(math.prod(input_shape), math.prod(output_shape), layer.weight.size)
        # Output by output, each in the order of the loops over its window.
        weights = smallest(np.moveaxis(layer.weight, -1, 0).ravel())
        arrays = _arrays(layer, weights, name)
        body = _affine(layer, input_shape, weights, name, prefix)
    elif isinstance(layer, IntegerMaxPool2D | IntegerAvgPool2D):
        fits(math.prod(input_shape), math.prod(output_shape))
        if isinstance(layer, IntegerAvgPool2D) and layer.shift.size > 1:
            arrays = _rescaling(layer, name)
        body = _pooling(layer, input_shape, name, prefix)
    else:
        assert isinstance(layer, IntegerReLU)
        fits(math.prod(input_shape))
        body = _relu(layer, input_shape)
    title = f"Layer {index}: {kind}, {input_shape} to {output_shape}."
    if weights is not None:
        title += f"\n * Weights: {weights}, {weights.nbytes} bytes."
    called = f"{prefix}_layer_{index}"
    head = f"static void {called}(const int8_t *in, int8_t *out)"
    function = f"{head}\n{{\n{indent(body, INDENT)}\n}}"
    definitions = [array.definition(f"{prefix}_PLACEMENT") for array in arrays]
    text = "\n\n".join([f"/* {title} */", *definitions, function])
    return LayerCode(kind, output_shape, weights, arrays, called, text)


def fits(*sizes: int) -> None:
    """Refuse empty arrays, which C does not have, and arrays too large for int32 indices."""
    for size in sizes:
        if not 0 < size <= LARGEST:
            raise CompressionError(f"an array of it has {size:,} numbers, not from 1 to 2**28")


def _arrays(layer: Affine, weights: Weights, name: str) -> tuple[CArray, ...]:
    return (
        *weights.values.arrays(f"{name}_weight"),
        *(weights.gaps.arrays(f"{name}_gap") if weights.gaps else ()),
        CArray(f"{name}_bias", layer.bias),
        *_rescaling(layer, name),
    )


def _rescaling(layer: Affine | IntegerAvgPool2D, name: str) -> tuple[CArray, ...]:
    return (
        CArray(f"{name}_multiplier", layer.multiplier.astype(np.int32)),
        CArray(f"{name}_shift", layer.shift.astype(np.uint8)),
    )


def _code(
    layer: Affine | IntegerAvgPool2D, prefix: str, multiplier: str | int, shift: str | int
) -> str:
    """The expression that turns `sum` into a code."""
    return (
        f"{prefix}_requantize(\n{INDENT}sum, {multiplier}, {shift}, "
        f"{layer.output_zero_point}, {layer.low}, {layer.high})"
    )


def _affine(layer: Affine, input_shape: Shape, weights: Weights, name: str, prefix: str) -> str:
    """For every output a sum of products, then its code."""
    start = ""
    if weights.gaps is not None:  # once through the list of weights for every pixel
        first = weights.gaps.read(f"{name}_gap", prefix, "0")
        start = _lines(
            "/* Only weights that are not 0 are stored. Number `entry` is weight `place`. */",
            f"int32_t end = 0, entry = 0, place = {first};",
        )
    total = f"int32_t sum = {name}_bias[o];"
    code = _code(layer, prefix, f"{name}_multiplier[o]", f"{name}_shift[o]")
    outputs = layer.weight.shape[-1]
    if isinstance(layer, IntegerDense):
        count = layer.weight.shape[0]
        products = _products(
            layer, weights, name, prefix, count, at="", k=f"o * {count}", inside=""
        )
        return _lines(start, _loop("o", outputs, total, products, f"out[o] = {code};"))
    (kh, kw, count, _), (oh, ow, _) = layer.weight.shape, layer.output_shape(input_shape)
    h, w, channels = input_shape
    lines, inside = _pixel(layer, (h, w), layer.dilation)
    at = _times(f"(row * {w} + column)", channels)
    if layer.groups > 1:
        at += f" + o / {outputs // layer.groups} * {count}"
    k = f"((o * {kh} + p) * {kw} + q) * {count}"
    products = _products(layer, weights, name, prefix, count, at=at, k=k, inside=inside)
    window = _loop("p", kh, _loop("q", kw, lines, products))
    out = f"out[(y * {ow} + x) * {outputs} + o] = {code};"
    return _loop("y", oh, _loop("x", ow, start, _loop("o", outputs, total, window, out)))


def _products(
    layer: Affine,
    weights: Weights,
    name: str,
    prefix: str,
    count: int,
    *,
    at: str,
    k: str,
    inside: str,
) -> str:
    """Add the products of `count` inputs, from index `at`, with weights, from index `k`.

    `inside` is the condition that the inputs are not padding, which adds nothing.
    """
    begin, plus = (f"const int32_t at = {at};", "at + ") if at else ("", "")
    zero = _less(layer.input_zero_point)
    if weights.gaps is None:
        weight = weights.values.read(f"{name}_weight", prefix, "k + c")
        return _lines(
            _skip(inside),
            begin,
            f"const int32_t k = {k};",
            _loop("c", count, f"sum += (in[{plus}c]{zero}) * {weight};"),
        )
    weight = weights.values.read(f"{name}_weight", prefix, "entry")
    gap = weights.gaps.read(f"{name}_gap", prefix, "entry")
    term = f"sum += (in[{plus}place - (end - {count})]{zero}) * {weight};"
    return _lines(
        begin,
        f"end += {count};",
        "while (place < end) {",
        indent(
            _lines(
                f"if ({inside}) {{\n{INDENT}{term}\n}}" if inside else term,
                "entry += 1;",
                f"place += 1 + {gap};",
            ),
            INDENT,
        ),
        "}",
    )


def _relu(layer: IntegerReLU, input_shape: Shape) -> str:
    zero = layer.zero_point
    # No code is above 127, and compilers warn of comparisons that are always false.
    larger = f"in[i] > {zero} ? in[i] : {zero}" if zero < 127 else "in[i] < 127 ? 127 : in[i]"
    return _loop("i", math.prod(input_shape), f"out[i] = (int8_t)({larger});")


def _less(number: int) -> str:
    return f" {'-' if number > 0 else '+'} {abs(number)}"


def _pooling(
    layer: IntegerMaxPool2D | IntegerAvgPool2D, input_shape: Shape, name: str, prefix: str
) -> str:
    h, w, channels = input_shape
    oh, ow, _ = layer.output_shape(input_shape)
    lines, inside = _pixel(layer, (h, w), (1, 1))
    skip = _skip(inside)
    code = f"in[{_times(f'(row * {w} + column)', channels)} + c]"
    if isinstance(layer, IntegerMaxPool2D):
        start, result = "int8_t best = -128;", "best"
        each = f"const int8_t code = {code};\nif (code > best) {{\n{INDENT}best = code;\n}}"
    else:
        start, each = "int32_t sum = 0;", f"sum += {code}{_less(layer.input_zero_point)};"
        result = _code(layer, prefix, layer.multiplier[0], layer.shift[0])
        if layer.shift.size > 1:  # the mean of the pixels that lie in the image
            start, each = "int32_t sum = 0, last = -1;", f"{each}\nlast += 1;"
            result = _code(layer, prefix, f"{name}_multiplier[last]", f"{name}_shift[last]")
    window = _loop("p", layer.window[0], _loop("q", layer.window[1], lines, skip, each))
    out = f"out[(y * {ow} + x) * {channels} + c] = {result};"
    pixel = _loop("c", channels, start, window, out)
    return _loop("y", oh, _loop("x", ow, pixel))


def _pixel(layer: Windowed, size: tuple[int, int], dilation: tuple[int, int]) -> tuple[str, str]:
    """Lines that compute a window entry's pixel, and the condition that it is in the image."""
    lines = []
    for i, (name, output, tap) in enumerate((("row", "y", "p"), ("column", "x", "q"))):
        place = f"{_times(output, layer.stride[i])} + {_times(tap, dilation[i])}"
        before = layer.padding[i][0]
        lines.append(f"const int32_t {name} = {place}{f' - {before}' if before else ''};")
    inside = f"row >= 0 && row < {size[0]} && column >= 0 && column < {size[1]}"
    return _lines(*lines), "" if layer.padding == NO_PADDING else inside


def _skip(inside: str) -> str:
    """Leave padding out."""
    return f"if (!({inside})) {{\n{INDENT}continue;\n}}" if inside else ""


def _times(variable: str, factor: int) -> str:
    return variable if factor == 1 else f"{variable} * {factor}"


def _loop(variable: str, count: int, *parts: str) -> str:
    head = f"for (int32_t {variable} = 0; {variable} < {count}; {variable}++) {{"
    return f"{head}\n{indent(_lines(*parts), INDENT)}\n}}"


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)
