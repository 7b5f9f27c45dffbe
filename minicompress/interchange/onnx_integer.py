"""Integer models as quantized ONNX: 8-bit codes between the layers, scales around operators.

In ONNX's QDQ form an operator on floats stands between DequantizeLinear nodes of what it reads and
a QuantizeLinear of what it gives. onnxruntime fuses the three into one operator on integers. What
only moves or compares codes (pooling by maximum, Flatten, tables) needs no scales and has none.

Codes are uint8 in the file, 128 more than as int8. On x86, onnxruntime turns int8 into uint8, but
only where one operator reads a value; then operators between the two types are not fused.

The integer layers have multipliers, which are quotients of scales. Here they become scales again: a
weight's scale is multiplier * output scale / input scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.integer.joins import IntegerAdd, IntegerConcat, IntegerMultiply
from minicompress.integer.layers import (
    IntegerConv2D,
    IntegerConvTranspose2D,
    IntegerDense,
    IntegerScale,
)
from minicompress.integer.model import IntegerModel
from minicompress.integer.requantization import HIGHEST, LOWEST
from minicompress.integer.stateless import (
    IntegerAvgPool2D,
    IntegerChannelShuffle,
    IntegerFlatten,
    IntegerLayer,
    IntegerMaxPool2D,
    IntegerReLU,
    IntegerTable,
    IntegerUpsample2D,
)
from minicompress.interchange.onnx_graph import Graph, IntegerBias, Tensor
from minicompress.interchange.onnx_layers import add_layer, pad, sides, transposed, window
from minicompress.nn.factors import rearranged
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.network import naming_layer
from minicompress.nn.stateless import ChannelShuffle, Flatten, Upsample2D
from minicompress.representation import Quantized, Rep

TOLERANCE = 2.0**-22
"""How far multipliers may be from the quotients of the scales, in steps of the output."""

ON_IMAGES = (IntegerAvgPool2D, IntegerConv2D, IntegerConvTranspose2D, IntegerMaxPool2D)

KINDS: dict[type[IntegerLayer], str] = {
    IntegerAdd: "Add",
    IntegerAvgPool2D: "AveragePool",
    IntegerConcat: "Concat",
    IntegerMultiply: "Mul",
}
"""Layers that are one operator on floats, without weights."""


class Read(NamedTuple):
    """A value that a layer reads.

    Parameters
    ----------
    codes : str
        Its name in the graph.
    shape : tuple of int
    scale : float
    """

    codes: str
    shape: Shape
    scale: float


def integer_graph(onnx: Any, model: IntegerModel, opset: int) -> Any:
    """The ModelProto of an integer model, from real numbers to real numbers."""
    graph = Graph(onnx, opset, np.dtype(np.float32), model.input_shape)
    q = model.input_qparams
    start = graph.named(graph.input, False)
    zero, scale = int(q.zero_point), float(q.scale)
    made = quantized(graph, start, scale, zero, q.qmin, q.qmax, "codes")
    values, scales = [graph.tensor(made, model.input_shape, False)], [scale]
    for i, (layer, reads) in enumerate(zip(model.layers, model.network.inputs, strict=True)):
        with naming_layer(model.network, i):
            read, steps = [values[value] for value in reads], [scales[value] for value in reads]
            values.append(_add_layer(graph, layer, read, steps, f"layer{i}"))
            scales.append(output_scale(layer, steps))
    outputs = []
    for k, (value, q) in enumerate(zip(model.network.outputs, model.output_qparams, strict=True)):
        codes = graph.named(values[value], False)
        real = dequantized(graph, codes, float(q.scale), int(q.zero_point), f"real{k}")
        outputs.append(graph.tensor(real, values[value].shape, False))
    return graph.model(outputs)


def output_scale(layer: IntegerLayer, scales: Sequence[float]) -> float:
    """The scale of what a layer gives, from those of what it reads."""
    match layer:
        case IntegerConv2D() | IntegerConvTranspose2D() | IntegerDense() | IntegerScale():
            return float(layer.scales.output)
        case IntegerTable():
            return layer.scale
        case IntegerAvgPool2D():
            size = layer.shift.size
            pixels = np.arange(1, size + 1) if size > 1 else np.array([math.prod(layer.window)])
            return _one_scale(scales[0] / pixels, factors(layer.multiplier, layer.shift))
        case IntegerAdd() | IntegerConcat():
            return _one_scale(np.array(scales), factors(layer.multiplier, layer.shift))
        case IntegerMultiply():
            product = np.array([scales[0] * scales[1]])
            return _one_scale(product, factors(layer.multiplier, layer.shift))
    return scales[0]


def factors(multiplier: Array, shift: Array | int) -> Array:
    """The real numbers that multipliers and shifts stand for."""
    made: Array = np.ldexp(multiplier.astype(np.float64), -np.asarray(shift))
    return made


def _one_scale(steps: Array, multiples: Array) -> float:
    """The scale in which steps of these sizes are these multiples of a step."""
    largest = int(multiples.argmax())
    scale = float(steps[largest] / multiples[largest])
    if not (np.abs(multiples - steps / scale) <= TOLERANCE * multiples[largest]).all():
        raise CompressionError("its multipliers do not fit the scales of what it reads")
    return scale


def quantized(
    graph: Graph, real: str, scale: float, zero_point: int, low: int, high: int, name: str
) -> str:
    """Codes of a real value, clamped to [low, high]."""
    clamped = (low, high) != (LOWEST, HIGHEST)
    parts = _parameters(graph, scale, zero_point, name)
    made = graph.node("QuantizeLinear", [real, *parts], f"{name}.rounded" if clamped else name)
    return _clamp(graph, made, low, high, name) if clamped else made


def dequantized(graph: Graph, codes: str, scale: float, zero_point: int, name: str) -> str:
    """The real value of codes."""
    return graph.node(
        "DequantizeLinear", [codes, *_parameters(graph, scale, zero_point, name)], name
    )


def unsigned(codes: Any) -> Array:
    """Codes as uint8: 128 more than as int8."""
    return (np.asarray(codes, np.int16) + 128).astype(np.uint8)


def _parameters(graph: Graph, scale: float, zero_point: int, name: str) -> list[str]:
    return [
        graph.constant(float32(np.array(scale), "scale"), f"{name}.scale"),
        graph.constant(unsigned(zero_point), f"{name}.zero_point"),
    ]


def _clamp(graph: Graph, codes: str, low: int, high: int, name: str) -> str:
    limits = {"low": low, "high": high}
    ends = [graph.constant(unsigned(n), f"{name}.{end}") for end, n in limits.items()]
    return graph.node("Clip", [codes, *ends], name)


def float32(scale: Array, name: str) -> Array:
    """Scales as float32, in which they must be normal numbers."""
    with np.errstate(over="ignore", under="ignore"):
        made = scale.astype(np.float32)
    limits = np.finfo(np.float32)
    if not ((made >= limits.tiny) & (made <= limits.max / 256)).all():
        raise CompressionError(
            f"the {name} must be normal numbers of float32, at most {limits.max / 256:.3g}, "
            f"not reach from {scale.min():.3g} to {scale.max():.3g}"
        )
    return made


def _add_layer(
    graph: Graph, layer: IntegerLayer, reads: list[Tensor], scales: list[float], name: str
) -> Tensor:
    """Append the nodes of a layer, from codes to codes."""
    moved = _moving(layer)
    if moved is not None:
        return add_layer(graph, moved, reads, name)
    shapes = [tensor.shape for tensor in reads]
    first = isinstance(layer, ON_IMAGES) or (
        isinstance(layer, IntegerScale) and len(shapes[0]) == 3
    )
    first = first or sum(True in t.names for t in reads) >= sum(False in t.names for t in reads)
    read = [
        Read(graph.named(tensor, first), tensor.shape, scale)
        for tensor, scale in zip(reads, scales, strict=True)
    ]
    _nodes(graph, layer, read, output_scale(layer, scales), first, name)
    return graph.tensor(name, layer.output_shape(*shapes), first)


def _moving(layer: IntegerLayer) -> Layer | None:
    """The float layer that moves codes as this one does."""
    match layer:
        case IntegerFlatten():
            return Flatten()
        case IntegerUpsample2D(factor):
            return Upsample2D(factor)
        case IntegerChannelShuffle(groups):
            return ChannelShuffle(groups)
    return None


def _nodes(
    graph: Graph, layer: Any, reads: list[Read], scale: float, first: bool, name: str
) -> None:
    """The nodes that compute the codes `name`."""
    codes, shape, source = reads[0]
    options: dict[str, Any] = {}
    kind = KINDS.get(type(layer), "")
    match layer:
        case IntegerMaxPool2D():
            graph.node("MaxPool", [codes], name, **window(layer, shape))
            return
        case IntegerReLU(zero_point):
            _clamp(graph, codes, zero_point, HIGHEST, name)
            return
        case IntegerTable():
            _table(graph, layer, codes, len(shape) if first else 1, name)
            return
        case IntegerAvgPool2D():
            codes, options = _average(graph, layer, codes, shape, name)
        case IntegerConcat():
            options = {"axis": 1 if first else -1}
        case IntegerAdd() if len(reads) != 2:
            kind = "Sum"
    several = kind not in ("", "AveragePool")
    zero_points = layer.input_zero_points if several else (layer.input_zero_point,)
    xs = [codes, *(read.codes for read in reads[1:])]
    reals = [
        dequantized(graph, x, read.scale, zero, f"{name}.read{k}")
        for k, (x, read, zero) in enumerate(zip(xs, reads, zero_points, strict=True))
    ]
    real = f"{name}.real"
    if kind:
        graph.node(kind, reals, real, **options)
    else:
        _affine(graph, layer, reals, shape, (source, scale), real)
    quantized(graph, real, scale, layer.output_zero_point, layer.low, layer.high, name)


def _affine(
    graph: Graph,
    layer: Any,
    xs: list[str],
    shape: Shape,
    scales: tuple[float, float],
    name: str,
) -> None:
    """The operator of a layer with weights, whose scales are those that its multipliers need."""
    source, target = scales
    steps = float32(factors(layer.multiplier, layer.shift) * target / source, "scales of weights")
    with np.errstate(under="ignore", over="ignore"):
        of_bias = np.float32(source) * steps
    bias = IntegerBias(layer.bias, float32(of_bias, "scales of biases"))
    images = isinstance(layer, IntegerScale) and len(shape) == 3
    codes = layer.weight[np.newaxis, np.newaxis, np.newaxis] if images else layer.weight
    axis, zero = codes.ndim - 1, np.zeros(steps.shape, np.int64)
    weight: Rep = Quantized(codes, steps, zero, 8, True, axis, None, np.dtype(np.float32))

    def constants(axes: tuple[int, ...]) -> list[str]:
        kernel = graph.weight(rearranged(weight, axes), f"{name}.weight")
        return [kernel, graph.weight(bias, f"{name}.bias")]

    match layer:
        case IntegerConv2D():
            options = {"dilations": layer.dilation, **window(layer, shape)}
            graph.node("Conv", xs + constants((3, 2, 0, 1)), name, group=layer.groups, **options)
        case IntegerConvTranspose2D():
            transposed(graph, layer, weight, bias, xs, shape, name)
        case IntegerDense():
            graph.node("Gemm", xs + constants((1, 0)), name, transB=1)
        case _ if images:  # a depthwise convolution, which is fused
            graph.node("Conv", xs + constants((3, 2, 0, 1)), name, group=codes.size)
        case _:
            kernel, offset = constants((0,))
            product = graph.node("Mul", [*xs, kernel], f"{name}.product")
            graph.node("Add", [product, offset], name)


def _average(
    graph: Graph, layer: IntegerAvgPool2D, codes: str, shape: Shape, name: str
) -> tuple[str, dict[str, Any]]:
    """The codes that are averaged, and attributes. Padding that counts is made of codes of 0.0."""
    options = window(layer, shape)
    if layer.shift.size == 1:
        return codes, {**options, "count_include_pad": 1}
    counted = sides(layer.counted)
    if any(counted):
        zero = graph.constant(unsigned(layer.input_zero_point), f"{name}.border")
        codes = pad(graph, [codes, zero], counted, name)
        beyond = (all_ - own for all_, own in zip(options["pads"], counted, strict=True))
        options["pads"] = tuple(beyond)
    return codes, options


def _table(graph: Graph, layer: IntegerTable, codes: str, axes: int, name: str) -> None:
    """Look up codes: 256 entries, or 256 for each channel."""
    to = graph.onnx.TensorProto.INT32
    index = graph.node("Cast", [codes], f"{name}.index", to=to)
    if layer.table.ndim == 2:
        starts = 256 * np.arange(len(layer.table), dtype=np.int32)
        place = graph.constant(starts.reshape(-1, *(1,) * (axes - 1)), f"{name}.start")
        index = graph.node("Add", [index, place], f"{name}.place")
    table = graph.constant(unsigned(layer.table.ravel()), f"{name}.table")
    graph.node("Gather", [table, index], name)
