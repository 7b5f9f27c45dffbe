"""Each integer layer as a C function that reads codes at `in` and writes codes at `out`.

A function is written for one layer, and all sizes in it are constants. Its loops run over the
output and write one code after the other. Each code is written after its inputs were read for the
last time: see `c_plan`.
"""

from __future__ import annotations

import math
from string import Template
from textwrap import indent
from typing import NamedTuple, TypeAlias

import numpy as np

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.integer.layers import IntegerConv2D, IntegerDense
from minicompress.integer.stateless import (
    NO_PADDING,
    IntegerAvgPool2D,
    IntegerLayer,
    IntegerMaxPool2D,
    IntegerReLU,
)
from minicompress.interchange.c_weights import Weights, definition, smallest
from minicompress.nn.layer import Shape

Affine: TypeAlias = IntegerConv2D | IntegerDense
Pooling: TypeAlias = IntegerMaxPool2D | IntegerAvgPool2D

C_TYPES = (IntegerConv2D, IntegerDense, IntegerMaxPool2D, IntegerAvgPool2D, IntegerReLU)

LARGEST = 2**28
"""The most numbers in one array: so the index of any bit in it fits int32."""

WINDOWS = """
for (int32_t y = 0; y < $oh; y++) {
    for (int32_t x = 0; x < $ow; x++) {
        $list
        for (int32_t $channel = 0; $channel < $outputs; $channel++) {
            $start
            for (int32_t p = 0; p < $kh; p++) {
                for (int32_t q = 0; q < $kw; q++) {
                    const int32_t row = $row;
                    const int32_t column = $column;
                    $each
                }
            }
            out[(y * $ow + x) * $outputs + $channel] = $result;
        }
    }
}"""

DENSE = """
$list
for (int32_t o = 0; o < $outputs; o++) {
    $start
    $each
    out[o] = $result;
}"""

PRODUCTS = """
$skip
const int32_t at = $at;
const int32_t k = $k;
for (int32_t c = 0; c < $count; c++) {
    sum += (in[at + c]$zero) * $weight;
}"""

SKIP = """
if (!($inside)) {
    continue;
}"""

# Where only the weights that are not 0 are stored: once through their list for every pixel.
LIST = """
/* Only weights that are not 0 are stored. Number `entry` is weight `place`. */
int32_t end = 0, entry = 0, place = $first;"""

LISTED_PRODUCTS = """
const int32_t at = $at;
end += $count;
while (place < end) {
    $add
    entry += 1;
    place += 1 + $gap;
}"""

LISTED_PRODUCT = "sum += (in[at + place - (end - $count)]$zero) * $weight;"

MAXIMUM = """
const int8_t code = $code;
if (code > best) {
    best = code;
}"""


RELU = """
for (int32_t i = 0; i < $inputs; i++) {
    out[i] = (int8_t)($larger);
}"""


class CLayer(NamedTuple):
    """One layer of the C file.

    Parameters
    ----------
    kind : str
    output_shape : tuple of int
    form : str
        How its weights are stored.
    flash_bytes : int
        The size of its constants.
    """

    kind: str
    output_shape: tuple[int, ...]
    form: str
    flash_bytes: int


class LayerCode(NamedTuple):
    """One layer in C: its function's name, and the text of its arrays and its function."""

    layer: CLayer
    name: str
    text: str


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
    if type(layer) not in C_TYPES:
        raise CompressionError(
            "it has no C form; those that have one are Conv2D, Dense, ReLU, MaxPool2D, AvgPool2D "
            "and Flatten, as integer layers"
        )
    name, kind = f"{prefix}_{index}", type(layer).__name__.removeprefix("Integer")
    output_shape = layer.output_shape(input_shape)
    fits(math.prod(input_shape), math.prod(output_shape))
    arrays: dict[str, Array] = {}
    form = title = ""
    if isinstance(layer, Affine):
        fits(layer.weight.size)
        # Output by output, each in the order of the loops over its window.
        weights = smallest(np.moveaxis(layer.weight, -1, 0).ravel())
        form, title = str(weights), f"\n * Weights: {weights}, {weights.nbytes} bytes."
        arrays = {**weights.arrays(name), f"{name}_bias": layer.bias, **_rescaling(layer, name)}
        body = _affine(layer, input_shape, weights, name, prefix)
    elif isinstance(layer, Pooling):
        if isinstance(layer, IntegerAvgPool2D) and layer.shift.size > 1:
            arrays = _rescaling(layer, name)
        body = _pooling(layer, input_shape, name, prefix)
    else:
        assert isinstance(layer, IntegerReLU)
        body = _relu(layer, input_shape)
    called = f"{prefix}_layer_{index}"
    parts = [
        f"/* Layer {index}: {kind}, {input_shape} to {output_shape}.{title} */",
        *(definition(array, values, f"{prefix}_PLACEMENT") for array, values in arrays.items()),
        f"static void {called}(const int8_t *in, int8_t *out)\n{{\n{indent(body, '    ')}\n}}",
    ]
    nbytes = sum(values.nbytes for values in arrays.values())
    return LayerCode(CLayer(kind, output_shape, form, nbytes), called, "\n\n".join(parts))


def fits(*sizes: int) -> None:
    """Refuse empty arrays, which C does not have, and arrays too large for int32 indices."""
    for size in sizes:
        if not 0 < size <= LARGEST:
            raise CompressionError(f"an array of it has {size:,} numbers, not from 1 to 2**28")


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


def _affine(layer: Affine, input_shape: Shape, weights: Weights, name: str, prefix: str) -> str:
    """For every output a sum of products, then its code."""
    *window, count, outputs = layer.weight.shape
    at, k, inside = "0", f"o * {count}", ""
    if isinstance(layer, IntegerConv2D):
        at, inside = _pixel(input_shape), _inside(layer, input_shape)
        at += f" + o / {outputs // layer.groups} * {count}" if layer.groups > 1 else ""
        k = f"((o * {window[0]} + p) * {window[1]} + q) * {count}"
    skip = filled(SKIP, inside=inside) if inside else ""
    parts = {"at": at, "count": count, "zero": _less(layer.input_zero_point)}
    if weights.gaps is None:
        weight = weights.values.read(f"{name}_weight", prefix, "k + c")
        lists, each = "", filled(PRODUCTS, **parts, k=k, weight=weight, skip=skip)
    else:
        first, gap = (weights.gaps.read(f"{name}_gap", prefix, i) for i in ("0", "entry"))
        weight = weights.values.read(f"{name}_weight", prefix, "entry")
        add = filled(LISTED_PRODUCT, **parts, weight=weight)
        add = f"if ({inside}) {{\n{indent(add, '    ')}\n}}" if inside else add
        lists, each = filled(LIST, first=first), filled(LISTED_PRODUCTS, **parts, add=add, gap=gap)
    sums = {
        "list": lists,
        "start": f"int32_t sum = {name}_bias[o];",
        "each": each,
        "result": _code(layer, prefix, f"{name}_multiplier[o]", f"{name}_shift[o]"),
    }
    if isinstance(layer, IntegerDense):
        return filled(DENSE, outputs=outputs, **sums)
    return _windows(layer, input_shape, channel="o", **sums)


def _pooling(layer: Pooling, input_shape: Shape, name: str, prefix: str) -> str:
    code, inside = f"in[{_pixel(input_shape)} + c]", _inside(layer, input_shape)
    if isinstance(layer, IntegerMaxPool2D):
        start, result = "int8_t best = -128;", "best"
        each = filled(MAXIMUM, code=code)
    else:
        start, each = "int32_t sum = 0;", f"sum += {code}{_less(layer.input_zero_point)};"
        result = _code(layer, prefix, layer.multiplier[0], layer.shift[0])
        if layer.shift.size > 1:  # the mean of the pixels that lie in the image
            start, each = "int32_t sum = 0, last = -1;", f"{each}\nlast += 1;"
            result = _code(layer, prefix, f"{name}_multiplier[last]", f"{name}_shift[last]")
    each = f"{filled(SKIP, inside=inside)}\n{each}" if inside else each
    return _windows(layer, input_shape, channel="c", list="", start=start, each=each, result=result)


def _relu(layer: IntegerReLU, input_shape: Shape) -> str:
    zero = layer.zero_point
    # No code is above 127, and compilers warn of comparisons that are always false.
    larger = f"in[i] > {zero} ? in[i] : {zero}" if zero < 127 else "in[i] < 127 ? 127 : in[i]"
    return filled(RELU, inputs=math.prod(input_shape), larger=larger)


def _windows(layer: IntegerConv2D | Pooling, input_shape: Shape, **parts: str) -> str:
    """The loops over all windows of an image."""
    oh, ow, outputs = layer.output_shape(input_shape)
    g = layer.geometry(input_shape[:2])
    row, column = (
        f"{_times(output, stride)} + {_times(tap, dilation)}" + (f" - {before}" if before else "")
        for output, tap, stride, dilation, (before, _) in zip(
            "yx", "pq", g.stride, g.dilation, g.pads, strict=True
        )
    )
    sizes = {"oh": oh, "ow": ow, "outputs": outputs, "kh": g.kernel[0], "kw": g.kernel[1]}
    return filled(WINDOWS, row=row, column=column, **sizes, **parts)


def _inside(layer: IntegerConv2D | Pooling, input_shape: Shape) -> str:
    """The condition that a window's entry is no padding; "" if there is no padding."""
    h, w, _ = input_shape
    inside = f"row >= 0 && row < {h} && column >= 0 && column < {w}"
    return "" if layer.padding == NO_PADDING else inside


def _pixel(input_shape: Shape) -> str:
    """The index of the first channel of the pixel (row, column)."""
    return _times(f"(row * {input_shape[1]} + column)", input_shape[2])


def _rescaling(layer: Affine | IntegerAvgPool2D, name: str) -> dict[str, Array]:
    return {
        f"{name}_multiplier": layer.multiplier.astype(np.int32),
        f"{name}_shift": layer.shift.astype(np.uint8),
    }


def _code(
    layer: Affine | IntegerAvgPool2D, prefix: str, multiplier: str | int, shift: str | int
) -> str:
    """The expression that turns `sum` into a code."""
    return (
        f"{prefix}_requantize(\n    sum, {multiplier}, {shift}, "
        f"{layer.output_zero_point}, {layer.low}, {layer.high})"
    )


def _less(number: int) -> str:
    return f" {'-' if number > 0 else '+'} {abs(number)}"


def _times(variable: str, factor: int) -> str:
    return variable if factor == 1 else f"{variable} * {factor}"
