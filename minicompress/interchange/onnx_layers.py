"""Each layer as nodes of ONNX.

Convolutions, pooling, batch normalization and what else works on images take them with the channels
first. `Flatten` must get them with the channels last, so that the weights after it keep their
order. All other layers take both, and keep the layout that their inputs have. So channels are moved
only where it is necessary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minicompress.interchange.onnx_graph import Graph, Tensor
from minicompress.nn.factors import rearranged
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.layers import LAYER_TYPES, Conv2D, ConvTranspose2D, Dense
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import (
    Clip,
    Dropout,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from minicompress.nn.stateless import (
    Add,
    AvgPool2D,
    ChannelShuffle,
    Concat,
    Flatten,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
    Multiply,
    Upsample2D,
)
from minicompress.representation import Rep, shape_of

# Layers that are one operator without options.
PLAIN: dict[type[Layer], str] = {ReLU: "Relu", Sigmoid: "Sigmoid", Tanh: "Tanh", Multiply: "Mul"}
CHANNELS_FIRST = (
    AvgPool2D,
    BatchNorm,
    ChannelShuffle,
    Conv2D,
    ConvTranspose2D,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
    Upsample2D,
)
TYPES = LAYER_TYPES
"""The types themselves: a layer derived from one of these may compute something else."""


def add_layer(graph: Graph, layer: Layer, reads: list[Tensor], name: str) -> Tensor:
    """Append the nodes of a layer, whose type is one of `TYPES`; their names begin with `name`.

    Returns the layer's output.
    """
    if isinstance(layer, Dropout):  # nothing at inference
        return reads[0]
    first = _channels_first(layer, reads)
    xs = [graph.named(tensor, first) for tensor in reads]
    shapes = [tensor.shape for tensor in reads]
    _nodes(graph, layer, xs, shapes, first, name)
    return graph.tensor(name, layer.output_shape(*shapes), first)


def _channels_first(layer: Layer, reads: list[Tensor]) -> bool:
    """The layout in which a layer computes: what it needs, or else what most of its inputs have."""
    if isinstance(layer, CHANNELS_FIRST):
        return True
    (*pixels, channels) = reads[0].shape
    if isinstance(layer, Flatten) and math.prod(pixels) != 1 and channels != 1:
        return False
    return sum(True in t.names for t in reads) >= sum(False in t.names for t in reads)


def _nodes(
    graph: Graph, layer: Layer, xs: list[str], shapes: list[Shape], first: bool, name: str
) -> None:
    """The nodes that compute the value `name` from the values `xs`."""
    shape, axis = shapes[0], 1 if first else -1
    match layer:
        case Conv2D():
            weights = weights_of(graph, rearranged(layer.weight, (3, 2, 0, 1)), layer.bias, name)
            options = {"dilations": layer.dilation, **window(layer, shape)}
            graph.node("Conv", xs + weights, name, group=layer.groups, **options)
        case ConvTranspose2D():
            transposed(graph, layer, layer.weight, layer.bias, xs, shape, name)
        case Dense():
            # Stored (out, in). For (in, out) onnxruntime would replace Gemm by MatMulNBits, which
            # rounds the *inputs* to 8 bits.
            weights = weights_of(graph, rearranged(layer.weight, (1, 0)), layer.bias, name)
            graph.node("Gemm", xs + weights, name, transB=1)
        case MaxPool2D():
            graph.node("MaxPool", xs, name, **window(layer, shape))
        case AvgPool2D():
            average(graph, layer, xs, shape, name)
        case GlobalAvgPool2D(keep_axes=True):
            graph.node("GlobalAveragePool", xs, name)
        case GlobalAvgPool2D():
            graph.node("Flatten", [graph.node("GlobalAveragePool", xs, f"{name}.image")], name)
        case BatchNorm():
            constants = [graph.weight(v, f"{name}.{f}") for f, v in layer.parameters().items()]
            graph.node("BatchNormalization", xs + constants, name, epsilon=layer.epsilon)
        case PReLU():
            ones = (1,) * (len(shape) - 1) if first else ()
            slope = graph.weight(layer.slope.reshape(-1, *ones), f"{name}.slope")
            graph.node("PRelu", [*xs, slope], name)
        case Clip():
            limits = {"low": layer.low, "high": layer.high}
            constants = [
                graph.small(limit, f"{name}.{side}") if math.isfinite(limit) else ""
                for side, limit in limits.items()
            ]
            graph.node("Clip", xs + constants, name)
        case HardSigmoid():
            graph.node("HardSigmoid", xs, name, alpha=layer.alpha, beta=layer.beta)
        case HardSwish() if graph.opset >= 14:
            graph.node("HardSwish", xs, name)
        case HardSwish():
            gate = graph.node("HardSigmoid", xs, f"{name}.gate", alpha=1 / 6, beta=0.5)
            graph.node("Mul", [*xs, gate], name)
        case SiLU():
            graph.node("Mul", [*xs, graph.node("Sigmoid", xs, f"{name}.gate")], name)
        case LeakyReLU():
            graph.node("LeakyRelu", xs, name, alpha=layer.negative_slope)
        case Softmax():
            graph.node("Softmax", xs, name, axis=axis)
        case LocalResponseNorm():
            graph.node("LRN", xs, name, **layer.options())
        case Upsample2D():
            scales = graph.small((1, 1, *layer.factor), f"{name}.scales", np.float32)  # type: ignore[misc]
            nearest = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            graph.node("Resize", [*xs, "", scales], name, mode="nearest", **nearest)
        case ChannelShuffle(groups):
            h, w, channels = shape
            split = (groups, channels // groups, h, w)
            rows = graph.reshape(xs[0], (0, *split), f"{name}.groups")
            turned = graph.node("Transpose", [rows], f"{name}.dealt", perm=(0, 2, 1, 3, 4))
            graph.reshape(turned, (0, channels, h, w), name)
        case Add():
            graph.node("Add" if len(xs) == 2 else "Sum", xs, name)
        case Concat():
            graph.node("Concat", xs, name, axis=axis)
        case Flatten():
            graph.node("Flatten", xs, name)
        case _:
            graph.node(PLAIN[type(layer)], xs, name)


def weights_of(graph: Graph, weight: Any, bias: Any, name: str) -> list[str]:
    parts = {"weight": weight, "bias": bias}
    return [graph.weight(rep, f"{name}.{f}") for f, rep in parts.items() if rep is not None]


def window(layer: Any, shape: Shape) -> dict[str, Any]:
    """Attributes of a window.

    The image has a known size, so "same" padding is numbers, too, and so is what the last window
    reads beyond the image with `ceil_mode`: ONNX's own `ceil_mode` has changed between versions.
    """
    g = layer.geometry(shape[:2])
    return {"kernel_shape": g.kernel, "strides": g.stride, "pads": sides(g.pads)}


def sides(pads: Any) -> tuple[int, ...]:
    """((top, bottom), (left, right)) in ONNX's order."""
    (top, bottom), (left, right) = pads
    return top, left, bottom, right


def average(graph: Graph, layer: AvgPool2D, xs: list[str], shape: Shape, name: str) -> None:
    """A mean. What is read beyond the padded image never counts, also where padding counts."""
    options, counted = window(layer, shape), layer.count_include_pad
    if counted and layer.ceil_mode:
        floor = AvgPool2D(layer.window, layer.stride, layer.padding)
        padded = window(floor, shape)["pads"]
        xs = [pad(graph, xs, padded, name)]
        beyond = (all_ - own for all_, own in zip(options["pads"], padded, strict=True))
        options, counted = {**options, "pads": tuple(beyond)}, False
    graph.node("AveragePool", xs, name, count_include_pad=int(counted), **options)


def pad(graph: Graph, xs: list[str], pads: Sequence[int], name: str) -> str:
    """An image with a border, in ONNX's order of sides; `xs` may have the border's value."""
    amounts = graph.small((0, 0, *pads[:2], 0, 0, *pads[2:]), f"{name}.pads", np.int64)
    return graph.node("Pad", [xs[0], amounts, *xs[1:]], f"{name}.padded")


def transposed(
    graph: Graph,
    layer: Any,
    weight: Rep,
    bias: Any,
    xs: list[str],
    shape: Shape,
    name: str,
) -> None:
    """A transposed convolution, whose kernel is (in, out // groups, kh, kw) in ONNX."""
    size, g = layer.geometry(shape[:2])
    full = [
        (n - 1) * s + d * (k - 1) + 1 - sum(p)
        for n, s, d, k, p in zip(shape[:2], g.stride, g.dilation, g.kernel, g.pads, strict=True)
    ]
    if layer.groups == 1:
        weights = weights_of(graph, rearranged(weight, (2, 3, 0, 1)), bias, name)
    else:  # the groups are among the outputs here, and among the inputs there
        kh, kw, inputs, outputs = shape_of(weight)
        each = outputs // layer.groups
        kernel = graph.weight(rearranged(weight, (3, 2, 0, 1)), f"{name}.weight")
        split = (layer.groups, each, inputs, kh, kw)
        rows = graph.reshape(kernel, split, f"{name}.groups")
        turned = graph.node("Transpose", [rows], f"{name}.turned", perm=(0, 2, 1, 3, 4))
        whole = (layer.groups * inputs, each, kh, kw)
        weights = [graph.reshape(turned, whole, f"{name}.kernel")]
        weights += [] if bias is None else [graph.weight(bias, f"{name}.bias")]
    graph.node(
        "ConvTranspose",
        xs + weights,
        name,
        kernel_shape=g.kernel,
        strides=g.stride,
        dilations=g.dilation,
        pads=sides(g.pads),
        output_padding=[n - m for n, m in zip(size, full, strict=True)],
        group=layer.groups,
    )
