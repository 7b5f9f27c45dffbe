"""An ONNX file as a network, and a report of what in a file has no layer.

The package onnx is imported only when a file is read.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicompress.arrays import Value, as_int
from minicompress.errors import CompressionError, FileFormatError, naming
from minicompress.interchange import onnx_import_layers as layers
from minicompress.interchange import onnx_import_pointwise as pointwise
from minicompress.interchange.onnx_import_constants import folded, tensor_array
from minicompress.interchange.onnx_import_draft import Draft, View, order_of
from minicompress.interchange.onnx_import_nodes import Node
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.network import Network, apply
from minicompress.nn.pointwise import HardSwish, ReLU, Sigmoid, Tanh
from minicompress.nn.stateless import AvgPool2D, MaxPool2D
from minicompress.representation import Rep

FIRST_OPSET = 9

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
    "Dropout": layers.passed,
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
    network, problems = _read(_Model(path, input_shape))
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
    model = _Model(path, input_shape)
    counts = Counter(node.op_type for node in model.proto.graph.node)
    return OnnxReport(
        model.opset, model.input_shape, dict(counts.most_common()), tuple(_read(model)[1])
    )


class _Model:
    """A file that was read: its graph, its one input, and the layouts that this may have."""

    def __init__(self, path: Any, input_shape: Shape | None) -> None:
        self.onnx = onnx = _package()
        self.proto = _loaded(onnx, path)
        graph = self.proto.graph
        opsets = [o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")]
        newest = onnx.defs.onnx_opset_version()
        if len(opsets) != 1 or not FIRST_OPSET <= opsets[0] <= newest:
            raise CompressionError(
                f"the file must have an opset from {FIRST_OPSET} to {newest}, not {opsets}"
            )
        self.opset = int(opsets[0])
        self.constants = {c.name: tensor_array(onnx, c) for c in graph.initializer}
        if graph.sparse_initializer:
            raise CompressionError("the file must not have sparse initializers, and has some")
        inputs = [value for value in graph.input if value.name not in self.constants]
        if len(inputs) != 1:
            raise CompressionError(
                f"the file must have one input, not {len(inputs)}: {[v.name for v in inputs]}"
            )
        self.input = inputs[0].name
        tensor = inputs[0].type.tensor_type
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        dims = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
        if not 2 <= len(dims) <= 4 or self.dtype.kind != "f":
            raise CompressionError(
                f"input {self.input!r} must be floats (N, C, H, W) or (N, features), not "
                f"{self.dtype} of shape {dims}"
            )
        self.batch, sizes = dims[0], dims[1:]
        self.firsts = (False,) if self.proto.producer_name == "minicompress" else (True, False)
        if len(sizes) == 1:
            self.firsts = (True,)
        self.input_shape = self._shape(sizes, self.firsts[0], input_shape)
        self.shapes = {
            first: self.input_shape if input_shape else self._shape(sizes, first, None)
            for first in self.firsts
        }

    def _shape(self, sizes: list[int | None], first: bool, given: Shape | None) -> Shape:
        """The shape of one input here, from the file and from what the caller gave."""
        here = [*sizes[1:], sizes[0]] if first else sizes
        if given is not None:
            shape = tuple(as_int(n, f"input_shape[{i}]", 1) for i, n in enumerate(given))
            fits = any(
                len(shape) == len(known)
                and all(k in (None, n) for k, n in zip(known, shape, strict=True))
                for known in (here, sizes)
            )
            if not fits:
                raise CompressionError(
                    f"input_shape must fit input {self.input!r}, whose shape is {sizes} without "
                    f"the batch axis, not be {shape}"
                )
            return shape
        if None in here:
            raise CompressionError(
                f"input_shape must be given, (H, W, C): input {self.input!r} has the shape {sizes} "
                "without the batch axis, where None is not known"
            )
        return tuple(n for n in here if n is not None)


def _package() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise CompressionError(
            "ONNX needs a package that is not installed: pip install 'minicompress[onnx]'"
        ) from None


def _loaded(onnx: Any, path: Any) -> Any:
    """The ModelProto of a file, with its external data and without functions."""
    if isinstance(path, onnx.ModelProto):
        proto = path
    else:
        name = os.fspath(path)
        try:
            proto = onnx.load(name)
        except FileNotFoundError as error:
            if os.path.exists(name):
                raise FileFormatError(f"{name!r} lacks its external data: {error}") from error
            raise
        except OSError:
            raise
        except Exception as error:  # of Protocol Buffers, or of onnx's checker
            raise FileFormatError(f"{name!r} is no whole ONNX file: {error}") from error
        if not proto.graph.output or not proto.opset_import:
            raise FileFormatError(f"{name!r} is no whole ONNX file: it has no graph")
    if len(proto.functions):
        proto = importlib.import_module("onnx.inliner").inline_local_functions(proto)
    return proto


def _read(model: _Model) -> tuple[Network | None, list[str]]:
    """The network, or what stops it; in the layout of the input that has the fewest problems."""
    best: tuple[Network | None, list[str]] | None = None
    for first in model.firsts:
        found = _Reading(model, first).run()
        if best is None or len(found[1]) < len(best[1]):
            best = found
        if not found[1]:
            break
    assert best is not None  # there is a layout
    return best


class _Reading:
    """One walk over the nodes."""

    def __init__(self, model: _Model, first: bool) -> None:
        self.model, shape = model, model.shapes[first]
        self.draft = Draft(shape)
        self.tensors: dict[str, View | Rep | None] = dict(model.constants)
        self.tensors[model.input] = View(0, order_of(shape, first))
        graph = model.proto.graph
        self.uses = Counter(name for node in graph.node for name in node.input)
        self.uses.update(value.name for value in graph.output)
        self.problems: list[str] = []

    def run(self) -> tuple[Network | None, list[str]]:
        """The network and no problems, or None and all problems."""
        graph = self.model.proto.graph
        for i, node in enumerate(graph.node):
            try:
                with naming(f"node {i} {node.name!r} ({node.op_type})"):
                    found = self._outputs(node)
            except CompressionError as error:
                self.problems.append(str(error))
                found = []
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
            return folded(onnx, node, list(inputs), model.opset)  # type: ignore[arg-type]
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
        read = Node(node.op_type, self.draft, inputs, options, model.opset, single)
        if node.op_type in PLAIN:
            return [layers.layer_view(read, PLAIN[node.op_type])]
        if node.op_type == "Reshape":
            return [layers.reshape(model.batch)(read)]
        if node.op_type == "Cast":
            if onnx.helper.tensor_dtype_to_np_dtype(options["to"]) == model.dtype:
                return [layers.passed(read)]
        if node.op_type not in READERS:
            raise CompressionError("no layer computes this operator")
        return [READERS[node.op_type](read)]


def _attribute(onnx: Any, node: Any, name: str) -> Any:
    found = [a for a in node.attribute if a.name == name]
    return onnx.helper.get_attribute_value(found[0]) if found else None
