"""The way back from `save_onnx_arrays`: weights that nodes decode become plain floats again."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from minicompress.arrays import FLOATS
from minicompress.errors import CompressionError
from minicompress.interchange.onnx_import_file import onnx_package
from minicompress.interchange.onnx_rewriting import (
    MAX_BYTES,
    NARROW,
    opset_of,
    read_onnx,
)
from minicompress.storage.files import PathLike, file_name, write_file

DECODING = {"DequantizeLinear", "Cast", "Sub", "Mul", "Gather", "MatMul", "Einsum"}
PARTS = (".codes", ".floats", ".steps", ".indices", ".codebook", ".float32", ".factor0", ".factor1")
"""How the names end that `save_onnx_arrays` and `save_onnx` give to parts of weights."""


def save_decoded_onnx(path: PathLike, original: PathLike) -> int:
    """Write an ONNX file again with plain floats for its compressed weights.

    Parameters
    ----------
    path : str or path-like
        Written atomically; it may be `original`.
    original : str or path-like
        A file of `save_onnx_arrays` or `save_onnx`. Of others, weights that come from
        DequantizeLinear are decoded.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    FileFormatError
        As `onnx_arrays`.
    CompressionError
        The package onnx is not installed, or the file would be larger than 2 GB.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> save_decoded_onnx("model.onnx", "small.onnx")  # doctest: +SKIP
    18613528
    """
    file_name(path)
    onnx = onnx_package()
    model = read_onnx(onnx, original)
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    known |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    decoding = []
    for node in graph.node:
        if _decodes(node) and all(name in known for name in node.input if name):
            decoding.append(node)
            known.update(node.output)
    if decoding:
        _evaluate(onnx, model, decoding)
    if model.ByteSize() > MAX_BYTES:
        raise CompressionError("the file would be larger than 2 GB, ONNX's limit")
    onnx.checker.check_model(model)
    return write_file(path, model.SerializeToString(deterministic=True))


def _decodes(node: Any) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in DECODING:
        return False
    return node.op_type == "DequantizeLinear" or any(n.endswith(PARTS) for n in node.input)


def _evaluate(onnx: Any, model: Any, decoding: list[Any]) -> None:
    """Put the results of these nodes into the graph as initializers."""
    graph, helper = model.graph, onnx.helper
    made = {id(node) for node in decoding}
    rest = [node for node in graph.node if id(node) not in made]
    read = {name for node in rest for name in _reads(node)} | {v.name for v in graph.output}
    results = [name for node in decoding for name in node.output if name in read]
    used = {name for node in decoding for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    constants = [n for n in rest if n.op_type == "Constant" and n.output[0] in used]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in results]
    part = helper.make_model(
        helper.make_graph([*constants, *decoding], "weights", [], ends, tensors),
        # These operators mean the same in all opsets, and the evaluator lacks the older ones.
        opset_imports=[helper.make_opsetid("", max(opset_of(model), NARROW))],
    )
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(part)
    arrays = dict(zip(results, evaluator.run(None, {}), strict=True))
    for name, array in arrays.items():
        if np.asarray(array).dtype not in FLOATS:
            raise CompressionError(f"array {name!r}: it decodes to {array.dtype}, not to floats")
    kept = [t for t in graph.initializer if t.name not in used or t.name in read]
    kept += [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    left = [n for n in rest if not any(n is c for c in constants) or n.output[0] in read]
    nodes = [type(n).FromString(n.SerializeToString()) for n in left]
    copies = [type(t).FromString(t.SerializeToString()) for t in kept]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(copies)


def _reads(node: Any) -> set[str]:
    """What a node reads, inner graphs included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
            for inner in graph.node:
                names |= _reads(inner)
            names |= {value.name for value in graph.output}
    return names
