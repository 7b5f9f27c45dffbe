"""Each layer as nodes of ONNX.

Convolutions, pooling and batch normalization want the channels first, `Flatten` wants them last;
every other layer takes them as they come. So they are moved only where they have to be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minicompress.interchange.onnx_graph import Graph
from minicompress.nn.factors import rearranged
from minicompress.nn.layers import Conv2D, Dense, Layer
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.stateless import (
    AvgPool2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Sigmoid,
    Softmax,
    Tanh,
)


def add_layer(graph: Graph, layer: Layer, name: str) -> None:
    """Append the nodes of a layer of a type that `FORMS` knows; names begin with `name`."""
    shape = layer.output_shape(graph.shape)
    FORMS[type(layer)](graph, layer, name)
    graph.shape = shape


def _conv(graph: Graph, layer: Any, name: str) -> None:
    graph.move_channels(True, name)
    kernel_oihw = graph.weight(rearranged(layer.weight, (3, 2, 0, 1)), f"{name}.weight")
    window = {"dilations": layer.dilation, **_window(graph, layer)}
    graph.step("Conv", name, kernel_oihw, *_bias(graph, layer, name), group=layer.groups, **window)


def _dense(graph: Graph, layer: Any, name: str) -> None:
    # Stored (out, in) although ONNX takes (in, out) too: that way round onnxruntime replaces the
    # two nodes by MatMulNBits, which rounds the *inputs* to 8 bits.
    matrix = graph.weight(rearranged(layer.weight, (1, 0)), f"{name}.weight")
    graph.step("Gemm", name, matrix, *_bias(graph, layer, name), transB=1)


def _bias(graph: Graph, layer: Any, name: str) -> list[str]:
    return [] if layer.bias is None else [graph.weight(layer.bias, f"{name}.bias")]


def _window(graph: Graph, layer: Any) -> dict[str, Any]:
    """Attributes of a window: the image has a known size, so "same" is numbers, too."""
    g = layer.geometry(graph.shape[:2])
    (top, bottom), (left, right) = g.pads
    return {"kernel_shape": g.kernel, "strides": g.stride, "pads": (top, left, bottom, right)}


def _pool(kind: str) -> Callable[[Graph, Any, str], None]:
    def form(graph: Graph, layer: Any, name: str) -> None:
        graph.move_channels(True, name)
        attributes = _window(graph, layer)
        if kind == "AveragePool":
            attributes["count_include_pad"] = int(layer.count_include_pad)
        graph.step(kind, name, **attributes)

    return form


def _global_pool(graph: Graph, layer: Any, name: str) -> None:
    graph.move_channels(True, name)
    graph.step("GlobalAveragePool", f"{name}.image")
    graph.step("Flatten", name)


def _flatten(graph: Graph, layer: Any, name: str) -> None:
    graph.move_channels(False, name)
    graph.step("Flatten", name)


def _batch_norm(graph: Graph, layer: Any, name: str) -> None:
    graph.move_channels(True, name)
    parts = [
        graph.constant(value, f"{name}.{field}") for field, value in layer.parameters().items()
    ]
    graph.step("BatchNormalization", name, *parts, epsilon=layer.epsilon)


def _softmax(graph: Graph, layer: Any, name: str) -> None:
    graph.step("Softmax", name, axis=1 if graph.channels_first else -1)


def _leaky_relu(graph: Graph, layer: Any, name: str) -> None:
    graph.step("LeakyRelu", name, alpha=layer.negative_slope)


def _plain(kind: str) -> Callable[[Graph, Any, str], None]:
    return lambda graph, layer, name: graph.step(kind, name)


def _nothing(graph: Graph, layer: Any, name: str) -> None:
    """Dropout, at inference."""


# By the very type: a layer derived from one of these may compute something else.
FORMS: dict[type[Layer], Callable[[Graph, Any, str], None]] = {
    AvgPool2D: _pool("AveragePool"),
    BatchNorm: _batch_norm,
    Conv2D: _conv,
    Dense: _dense,
    Dropout: _nothing,
    Flatten: _flatten,
    GlobalAvgPool2D: _global_pool,
    LeakyReLU: _leaky_relu,
    MaxPool2D: _pool("MaxPool"),
    ReLU: _plain("Relu"),
    Sigmoid: _plain("Sigmoid"),
    Softmax: _softmax,
    Tanh: _plain("Tanh"),
}
