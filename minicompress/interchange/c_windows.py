"""Layers with windows, and dense layers, in C: loops over the output, and in them over a window."""

from __future__ import annotations

from textwrap import indent
from typing import TypeAlias

from minicompress.integer.layers import IntegerConv2D, IntegerConvTranspose2D, IntegerDense
from minicompress.integer.stateless import NO_PADDING, IntegerAvgPool2D, IntegerMaxPool2D
from minicompress.interchange.c_expressions import code, filled, less, times
from minicompress.interchange.c_weights import Weights
from minicompress.nn.kernels.windows import Pads
from minicompress.nn.layer import Shape

Convolution: TypeAlias = IntegerConv2D | IntegerConvTranspose2D
Affine: TypeAlias = Convolution | IntegerDense
Pooling: TypeAlias = IntegerMaxPool2D | IntegerAvgPool2D

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


def affine(layer: Affine, input_shape: Shape, weights: Weights, name: str, prefix: str) -> str:
    """For every output a sum of products, then its code."""
    *window, count, outputs = layer.weight.shape
    at, k, inside = "0", f"o * {count}", ""
    if isinstance(layer, Convolution):
        at, inside = _pixel(layer, input_shape), _inside(layer, input_shape)
        at += f" + o / {outputs // layer.groups} * {count}" if layer.groups > 1 else ""
        k = f"((o * {window[0]} + p) * {window[1]} + q) * {count}"
    skip = filled(SKIP, inside=inside) if inside else ""
    parts = {"at": at, "count": count, "zero": less(layer.input_zero_point)}
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
        "result": code(layer, prefix, "sum", f"{name}_multiplier[o]", f"{name}_shift[o]"),
    }
    if isinstance(layer, IntegerDense):
        return filled(DENSE, outputs=outputs, **sums)
    return _windows(layer, input_shape, channel="o", **sums)


def pooling(layer: Pooling, input_shape: Shape, name: str, prefix: str) -> str:
    """For every output the largest code of its window, or the code of the mean."""
    pixel = f"in[{_pixel(layer, input_shape)} + c]"
    inside = _inside(layer, input_shape)
    skip = f"{filled(SKIP, inside=inside)}\n" if inside else ""
    if isinstance(layer, IntegerMaxPool2D):
        start, result = "int8_t best = -128;", "best"
        each = skip + filled(MAXIMUM, code=pixel)
    else:
        start = "int32_t sum = 0;"
        each = f"{skip}sum += {pixel}{less(layer.input_zero_point)};"
        result = code(layer, prefix, "sum", layer.multiplier[0], layer.shift[0])
        if layer.shift.size > 1:  # the mean of the pixels that count
            start = "int32_t sum = 0, last = -1;"
            counted = _within(input_shape, layer.counted)
            each = f"{filled(SKIP, inside=counted)}\nlast += 1;\n{each}"
            if layer.counted == NO_PADDING:
                each = f"{skip}sum += {pixel}{less(layer.input_zero_point)};\nlast += 1;"
            result = code(layer, prefix, "sum", f"{name}_multiplier[last]", f"{name}_shift[last]")
    return _windows(layer, input_shape, channel="c", list="", start=start, each=each, result=result)


def _windows(layer: Convolution | Pooling, input_shape: Shape, **parts: str) -> str:
    """The loops over all windows of an image."""
    oh, ow, outputs = layer.output_shape(input_shape)
    if isinstance(layer, IntegerConvTranspose2D):
        # Entry (p, q) of the kernel adds the pixel (row / stride, column / stride).
        _, g = layer.geometry(input_shape[:2])
        row, column = (
            output + (f" + {before}" if before else "") + f" - {times(tap, dilation)}"
            for output, tap, dilation, (before, _) in zip(
                "yx", "pq", g.dilation, g.pads, strict=True
            )
        )
    else:
        g = layer.geometry(input_shape[:2])
        row, column = (
            f"{times(output, stride)} + {times(tap, dilation)}" + (f" - {before}" if before else "")
            for output, tap, stride, dilation, (before, _) in zip(
                "yx", "pq", g.stride, g.dilation, g.pads, strict=True
            )
        )
    sizes = {"oh": oh, "ow": ow, "outputs": outputs, "kh": g.kernel[0], "kw": g.kernel[1]}
    return filled(WINDOWS, row=row, column=column, **sizes, **parts)


def _inside(layer: Convolution | Pooling, input_shape: Shape) -> str:
    """The condition that a window's entry is a pixel of the image; "" if all are."""
    if isinstance(layer, IntegerConvTranspose2D):
        ends = zip(("row", "column"), layer.stride, input_shape[:2], strict=True)
        tests = [(f"{at} % {s} == 0" if s > 1 else "", f"{at} < {n * s}") for at, s, n in ends]
        (row, below), (column, right) = tests
        found = ["row >= 0", row, below, "column >= 0", column, right]
        return " && ".join(filter(None, found))
    return "" if layer.padding == NO_PADDING else _within(input_shape, NO_PADDING)


def _within(input_shape: Shape, pads: Pads) -> str:
    """The condition that a window's entry is in the image or in this much padding."""
    (h, w, _), ((top, bottom), (left, right)) = input_shape, pads
    rows = f"row >= {-top} && row < {h + bottom}"
    return f"{rows} && column >= {-left} && column < {w + right}"


def _pixel(layer: Convolution | Pooling, input_shape: Shape) -> str:
    """The index of the first channel of the pixel (row, column)."""
    row, column = "row", "column"
    if isinstance(layer, IntegerConvTranspose2D):
        row, column = (
            at if stride == 1 else f"{at} / {stride}"
            for at, stride in zip((row, column), layer.stride, strict=True)
        )
    return times(f"({times(row, input_shape[1])} + {column})", input_shape[2])
