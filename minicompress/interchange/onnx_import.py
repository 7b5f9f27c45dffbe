"""An ONNX file as a network, and a report of what in a file has no layer.

The package onnx is imported only when a file is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicompress.arrays import Value
from minicompress.errors import CompressionError, naming
from minicompress.interchange import onnx_import_layers as layers
from minicompress.interchange import onnx_import_pointwise as pointwise
from minicompress.interchange.onnx_import_constants import folded
from minicompress.interchange.onnx_import_draft import Draft, View
from minicompress.interchange.onnx_import_file import Model
from minicompress.interchange.onnx_import_nodes import Node
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.network import Network, apply
from minicompress.nn.pointwise import HardSwish, ReLU, Sigmoid, Tanh
from minicompress.nn.stateless import AvgPool2D, MaxPool2D
from minicompress.representation import Rep

READERS: dict[str, Callable[[Node], View]] = {
    "Add": pointwise.add,
    "AveragePool": layers.pool(AvgPool2D),
    "BatchNormalization": layers.batch_norm,
    "Cast": layers.cast,
    "Clip": pointwise.clip,
    "Concat": layers.concat,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Div": pointwise.divide,
    "Dropout": layers.dropout,
    "Flatten": layers.flatten,
    "Gemm": layers.gemm,
    "GlobalAveragePool": layers.global_average,
    "GlobalMaxPool": layers.global_max,
    "HardSigmoid": pointwise.hard_sigmoid,
    "Identity": layers.passed,
    "LRN": layers.lrn,
    "LeakyRelu": pointwise.leaky_relu,
    "MatMul": layers.matmul,
    "MaxPool": layers.pool(MaxPool2D),
    "Mul": pointwise.multiply,
    "PRelu": pointwise.prelu,
    "Pad": layers.pad,
    "ReduceMean": layers.reduce_mean,
    "Resize": layers.resize,
    "Softmax": pointwise.softmax,
    "Squeeze": layers.squeeze,
    "Sub": pointwise.subtract,
    "Sum": pointwise.add,
    "Swish": pointwise.swish,
    "Transpose": layers.transpose,
    "Unsqueeze": layers.unsqueeze,
    "Upsample": layers.resize,
}
PLAIN: dict[str, Layer] = {
    "HardSwish": HardSwish(),
    "Relu": ReLU(),
    "Sigmoid": Sigmoid(),
    "Tanh": Tanh(),
}


def from_onnx(path: Any, *, input_shape: Shape | None = None) -> Network:
    """Read a network from an ONNX file.

    Parameters
    ----------
    path : str or path-like, or onnx.ModelProto
        Opset 9 or later, with one input: (N, C, H, W), (N, H, W, C) or (N, features).
    input_shape : tuple of int, optional
        The shape of one input of the network, (H, W, C) or (features,). It is needed if the file
        leaves the height or the width open.

    Returns
    -------
    Network
        It takes and gives images with the channels last, whatever the file does. Weights that the
        file has as integers with scales are `Quantized`, and those that it has in a codebook are
        `Clustered`, exactly.

    Raises
    ------
    FileFormatError
        The file is no ONNX file, is truncated, or lacks its external data.
    CompressionError
        A node has no layer, or an option that its layer does not have; the message names the node.
        There is not one input, or its size is not known.

    Notes
    -----
    Nodes that only move entries (Transpose, Reshape, Flatten, Squeeze, Unsqueeze) make no layer:
    where a dense layer reads a flattened image, its rows are put in this library's order. Dealt out
    channels are `ChannelShuffle`. Arithmetic on constants and shapes is carried out. Zeros of Pad
    become the padding of the convolution, added constants its bias. What scales and shifts is
    `BatchNorm` with mean 0 and variance 1. SiLU, hard swish and hard sigmoid are found in pieces.

    Whether the file's images have their channels first is seen from what reads them.

    Examples
    --------
    >>> from minicompress.interchange.onnx_file import to_onnx
    >>> from minicompress.nn.architectures import digits_cnn
    >>> model = to_onnx(digits_cnn(np.random.default_rng(0)), (8, 8, 1))  # doctest: +SKIP
    >>> [type(layer).__name__ for layer in from_onnx(model).layers]  # doctest: +SKIP
    ['Conv2D', 'ReLU', 'Conv2D', 'ReLU', 'Flatten', 'Dense']
    """
    network, problems = _read(Model(path, input_shape))
    if problems:
        more = f" (and {len(problems) - 1} more: see onnx_report)" if len(problems) > 1 else ""
        raise CompressionError(problems[0] + more)
    assert network is not None  # without problems there is one
    return network


@dataclass(frozen=True, eq=False, repr=False)
class OnnxReport(Value):
    """What an ONNX file has, and what of it stops `from_onnx`.

    Parameters
    ----------
    opset : int
    input_shape : tuple of int
        The shape of one input in this library.
    operators : dict of str to int
        How often each operator occurs.
    problems : tuple of str
        One line for each node that cannot be read, and empty if the file can.
    """

    opset: int
    input_shape: Shape
    operators: dict[str, int]
    problems: tuple[str, ...]

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {op}" for op, n in self.operators.items())
        lines = [f"opset {self.opset}, input {self.input_shape}", f"operators: {counts}"]
        said = [f"problem: {problem}" for problem in self.problems]
        return "\n".join([*lines, *(said or ["no problems"])])


def onnx_report(path: Any, *, input_shape: Shape | None = None) -> OnnxReport:
    """Say what in an ONNX file would stop `from_onnx`: all of it, not only the first.

    Parameters
    ----------
    path, input_shape
        As for `from_onnx`.

    Returns
    -------
    OnnxReport
        Nodes that read the output of one that cannot be read are not reported.

    Raises
    ------
    FileFormatError, CompressionError
        As `from_onnx`, if the file cannot be read at all or its input is not known.

    Examples
    --------
    >>> from minicompress.interchange.onnx_file import to_onnx
    >>> from minicompress.nn.composition import Sequential
    >>> print(onnx_report(to_onnx(Sequential((ReLU(),)), (3,))))  # doctest: +SKIP
    opset 21, input (3,)
    operators: 1 Relu
    no problems
    """
    model = Model(path, input_shape)
    counts = Counter(node.op_type for node in model.proto.graph.node)
    shape, *_ = model.shapes.values()
    return OnnxReport(model.opset, shape, dict(counts.most_common()), tuple(_read(model)[1]))


def _read(model: Model) -> tuple[Network | None, list[str]]:
    """The network, or what stops it; in the layout of the input that has the fewest problems."""
    best: tuple[Network | None, list[str]] | None = None
    for first in model.shapes:
        found = _Reading(model, first).run()
        if best is None or len(found[1]) < len(best[1]):
            best = found
        if not found[1]:
            break
    assert best is not None  # there is a layout
    return best


class _Reading:
    """One walk over the nodes."""

    def __init__(self, model: Model, first: bool) -> None:
        self.model, shape = model, model.shapes[first]
        self.draft = Draft(shape)
        self.tensors: dict[str, View | Rep | None] = dict(model.constants)
        self.tensors[model.input] = self.draft.view(0, first)
        graph = model.proto.graph
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(value.name for value in graph.output)
        self.problems: list[str] = []

    def run(self) -> tuple[Network | None, list[str]]:
        """The network and no problems, or None and all problems."""
        graph = self.model.proto.graph
        for i, node in enumerate(graph.node):
            where = f"node {i} {node.name!r} ({node.op_type})"
            found: list[View | Rep] = []
            try:
                with naming(where):
                    found = self._outputs(node)
            except CompressionError as error:
                self.problems.append(str(error))
            except (ValueError, TypeError, LookupError, ArithmeticError) as error:
                self.problems.append(f"{where}: it is not as ONNX has it: {error}")
            for name in node.output:
                self.tensors[name] = None  # not known
            self.tensors.update(zip(node.output, found, strict=False))
        outputs = []
        for value in graph.output:
            try:
                with naming(f"output {value.name!r}"):
                    outputs += self._end(value.name)
            except CompressionError as error:
                self.problems.append(str(error))
        if self.problems:
            return None, self.problems
        try:
            pointwise.as_affine(self.draft, self.model.dtype)
            network = self.draft.network(outputs)
            # Refuses layers that do not fit together, or not this dtype.
            apply(network, np.empty((0, *self.draft.shapes[0]), self.model.dtype))
        except CompressionError as error:
            return None, [str(error)]
        return network, []

    def _end(self, name: str) -> list[int]:
        """The value that an output of the file is; none if it could not be read."""
        view = self.tensors.get(name)
        if view is None and name in self.tensors:
            return []
        if not isinstance(view, View) or view.pads is not None:
            raise CompressionError("it must be computed by a layer")
        return [self.draft.canonical(view)[0]]

    def _outputs(self, node: Any) -> list[View | Rep]:
        onnx, model = self.model.onnx, self.model
        for name in node.input:
            if name and name not in self.tensors:
                raise CompressionError(
                    f"it reads {name!r}, which no node before it makes: the nodes have a cycle, or "
                    "are out of order"
                )
        inputs = tuple(self.tensors[name] if name else None for name in node.input)
        if any(x is None and name for x, name in zip(inputs, node.input, strict=True)):
            return []  # a node before it could not be read, which is reported
        if node.domain not in ("", "ai.onnx"):
            raise CompressionError(f"no layer computes operators of {node.domain!r}")
        views = [x for x in inputs if isinstance(x, View)]
        if not views:
            return [*folded(onnx, node, list(inputs), model.opset)]  # type: ignore[arg-type]
        if node.op_type == "Shape":
            start, stop = (_attribute(onnx, node, name) for name in ("start", "end"))
            return [layers.shape_constant(views[0])[start:stop]]
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for name in node.output[1:]:
            if self.uses[name]:
                raise CompressionError(f"its output {name!r} is read, and no layer gives it")
        single = tuple(
            self.uses[name] == 1
            for name, x in zip(node.input, inputs, strict=True)
            if isinstance(x, View)
        )
        outputs = sum(map(bool, node.output))
        read = Node(node.op_type, self.draft, inputs, options, model.opset, single, outputs)
        if node.op_type in PLAIN:
            return [layers.layer_view(read, PLAIN[node.op_type])]
        if node.op_type == "Reshape":
            return [layers.reshape(model.batch)(read)]
        if node.op_type == "Cast" and options["to"] == model.elem_type:
            return [layers.passed(read)]
        if node.op_type not in READERS:
            raise CompressionError("no layer computes this operator")
        return [READERS[node.op_type](read)]


def _attribute(onnx: Any, node: Any, name: str) -> Any:
    found = [a for a in node.attribute if a.name == name]
    return onnx.helper.get_attribute_value(found[0]) if found else None
