"""Each layer as nodes of ONNX.

Convolutions, pooling and batch normalization take images with the channels first. `Flatten` must
get them with the channels last, so that the weights after it keep their order. All other layers
take both. So channels are moved only where it is necessary.
"""

from __future__ import annotations

from typing import Any

from minicompress.interchange.onnx_graph import Graph
from minicompress.nn.factors import rearranged
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import Dropout, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from minicompress.nn.stateless import AvgPool2D, Flatten, GlobalAvgPool2D, MaxPool2D

# Layers that are one operator without options.
PLAIN: dict[type[Layer], str] = {
    Flatten: "Flatten",
    ReLU: "Relu",
    Sigmoid: "Sigmoid",
    Tanh: "Tanh",
}
CHANNELS_FIRST = (AvgPool2D, BatchNorm, Conv2D, GlobalAvgPool2D, MaxPool2D)
# The types themselves: a layer derived from one of these may compute something else.
TYPES: tuple[type[Layer], ...] = (*PLAIN, *CHANNELS_FIRST, Dense, Dropout, LeakyReLU, Softmax)


def add_layer(graph: Graph, layer: Layer, name: str) -> None:
    """Append the nodes of a layer, whose type is one of `TYPES`; their names begin with `name`."""
    shape = layer.output_shape(graph.shape)
    if isinstance(layer, (*CHANNELS_FIRST, Flatten)):
        graph.move_channels(not isinstance(layer, Flatten), name)
    match layer:
        case Conv2D():
            weights = _weights(graph, rearranged(layer.weight, (3, 2, 0, 1)), layer.bias, name)
            options = {"dilations": layer.dilation, **_window(graph, layer)}
            graph.step("Conv", name, *weights, group=layer.groups, **options)
        case Dense():
            # Stored (out, in). For (in, out) onnxruntime would replace Gemm by MatMulNBits, which
            # rounds the *inputs* to 8 bits.
            weights = _weights(graph, rearranged(layer.weight, (1, 0)), layer.bias, name)
            graph.step("Gemm", name, *weights, transB=1)
        case MaxPool2D():
            graph.step("MaxPool", name, **_window(graph, layer))
        case AvgPool2D():
            counted = int(layer.count_include_pad)
            graph.step("AveragePool", name, count_include_pad=counted, **_window(graph, layer))
        case GlobalAvgPool2D():
            graph.step("GlobalAveragePool", f"{name}.image")
            graph.step("Flatten", name)
        case BatchNorm():
            constants = [graph.weight(v, f"{name}.{f}") for f, v in layer.parameters().items()]
            graph.step("BatchNormalization", name, *constants, epsilon=layer.epsilon)
        case Softmax():
            graph.step("Softmax", name, axis=1 if graph.channels_first else -1)
        case LeakyReLU():
            graph.step("LeakyRelu", name, alpha=layer.negative_slope)
        case Dropout():
            pass  # nothing at inference
        case _:
            graph.step(PLAIN[type(layer)], name)
    graph.shape = shape


def _weights(graph: Graph, weight: Any, bias: Any, name: str) -> list[str]:
    parts = {"weight": weight, "bias": bias}
    return [graph.weight(rep, f"{name}.{f}") for f, rep in parts.items() if rep is not None]


def _window(graph: Graph, layer: Any) -> dict[str, Any]:
    """Attributes of a window. The image has a known size, so "same" padding is numbers, too."""
    g = layer.geometry(graph.shape[:2])
    (top, bottom), (left, right) = g.pads
    return {"kernel_shape": g.kernel, "strides": g.stride, "pads": (top, left, bottom, right)}
