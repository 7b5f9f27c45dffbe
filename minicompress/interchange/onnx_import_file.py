"""Reading an ONNX file: what is not whole is refused, and its one input is found."""

from __future__ import annotations

import importlib
import os
from typing import Any

from minicompress.arrays import as_int
from minicompress.errors import CompressionError, FileFormatError
from minicompress.interchange.onnx_import_constants import tensor_array
from minicompress.nn.layer import Shape

FIRST_OPSET = 9


class Model:
    """A file that was read: its graph, its one input, and the layouts that this may have."""

    def __init__(self, path: Any, input_shape: Shape | None) -> None:
        self.onnx = onnx = onnx_package()
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
        self.elem_type = tensor.elem_type
        floats = {onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
        dims = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
        if not 2 <= len(dims) <= 4 or self.elem_type not in floats:
            kind = dict(map(reversed, onnx.TensorProto.DataType.items())).get(self.elem_type, "?")
            raise CompressionError(
                f"input {self.input!r} must be floats (N, C, H, W) or (N, features), not {kind} of "
                f"shape {dims}"
            )
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(self.elem_type)
        self.batch = dims[0]
        self.shapes = self._shapes(dims[1:], input_shape)

    def _shapes(self, sizes: list[int | None], given: Shape | None) -> dict[bool, Shape]:
        """The shape of one input here, for each layout of the file: channels first, or last."""
        shapes: dict[bool, Shape] = {}
        if given is not None:
            given = tuple(as_int(n, f"input_shape[{i}]", 1) for i, n in enumerate(given))
        for first in self._layouts(len(sizes)):
            here = [*sizes[1:], sizes[0]] if first else sizes
            shape = tuple(n for n in here if n is not None) if given is None else given
            known = [n if k is None else k for k, n in zip(here, given or (), strict=False)]
            if given is None and len(shape) < len(here):
                raise CompressionError(
                    f"input_shape must be given, (H, W, C): input {self.input!r} has the shape "
                    f"{sizes} without the batch axis, where None is not known"
                )
            if given is None or (tuple(known) == given and len(given) == len(here)):
                shapes[first] = shape
        if not shapes:
            raise CompressionError(
                f"input_shape must fit input {self.input!r}, whose shape is {sizes} without the "
                f"batch axis, not be {given}"
            )
        return shapes

    def _layouts(self, rank: int) -> list[bool]:
        """Channels first, and also last if a Transpose moves them to the first place."""
        if self.proto.producer_name == "minicompress" or rank == 1:
            return [False]
        moved = [0, rank, *range(1, rank)]
        perms = [
            list(a.ints)
            for node in self.proto.graph.node
            for a in node.attribute
            if node.op_type == "Transpose" and a.name == "perm"
        ]
        return [True, False] if moved in perms else [True]


def onnx_package() -> Any:
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
        try:
            name = os.fspath(path)
        except TypeError:
            raise CompressionError(
                f"path must be a path or an onnx.ModelProto, not {type(path).__name__}"
            ) from None
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
