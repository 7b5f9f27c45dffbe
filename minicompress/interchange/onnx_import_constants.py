"""The constants of an ONNX file: arrays, compressed weights, and arithmetic on them."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from minicompress.arrays import FLOATS, Array, freeze
from minicompress.errors import CompressionError, FileFormatError
from minicompress.nn.factors import rearranged
from minicompress.representation import Clustered, Quantized, Rep, decode, dtype_of, shape_of

BATCH = 2**31 - 1
"""Stands for the number of images in arithmetic on shapes: a prime, which no size is."""

LARGEST = 2**32
"""Bytes of the largest constant that a node may make."""

CODES = {f"{sign}int{bits}": bits for sign in ("", "u") for bits in (2, 4, 8, 16)}


def tensor_array(onnx: Any, tensor: Any) -> Array:
    """The array of a TensorProto, read-only; integers of 4 bits have a dtype of ml_dtypes."""
    try:
        return freeze(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError, OSError) as error:  # whatever onnx raises of it
        raise FileFormatError(f"constant {tensor.name!r} is not whole: {error}") from error


def folded(onnx: Any, node: Any, inputs: list[Rep | None], opset: int) -> list[Rep]:
    """The outputs of a node whose inputs are all constants."""
    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial"):
        raise CompressionError("no layer draws random numbers")
    match node.op_type:
        case "Constant":
            return [_constant(onnx, options)]
        case "Identity":
            return inputs  # type: ignore[return-value]
        case "ConstantOfShape":
            shape = tuple(int(n) for n in decode(inputs[0]))  # type: ignore[arg-type]
            value = options.get("value")
            fill = np.zeros(1, np.float32) if value is None else tensor_array(onnx, value)
            if math.prod(shape) * fill.itemsize > LARGEST:
                raise CompressionError(f"a constant of shape {shape} is too large")
            return [np.broadcast_to(fill.reshape(()), shape)]
        case "Transpose" if not isinstance(inputs[0], np.ndarray) and "perm" in options:
            return [rearranged(inputs[0], tuple(options["perm"]))]  # type: ignore[arg-type]
        case "DequantizeLinear":
            return [_dequantized(inputs, options)]
        case "Gather":
            book, codes = inputs[0], inputs[1]
            if book is not None and codes is not None and _are_codes(book, decode(codes)):
                return [Clustered(decode(codes).astype(np.uint16), book)]
    return _evaluated(onnx, node, inputs, opset)


def _are_codes(book: Rep, codes: Array) -> bool:
    """Whether a Gather looks up entries of a codebook."""
    if len(shape_of(book)) != 1 or dtype_of(book) not in FLOATS or codes.ndim == 0:
        return False
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    return low >= 0 and high < shape_of(book)[0] <= 2**16


def _constant(onnx: Any, options: dict[str, Any]) -> Array:
    ((kind, value),) = options.items()
    if kind == "value":
        return tensor_array(onnx, value)
    if kind in ("value_float", "value_floats", "value_int", "value_ints"):
        return np.array(value, np.float32 if "float" in kind else np.int64)
    raise CompressionError(f"a constant must be a tensor or numbers, not {kind}")


def _dequantized(inputs: list[Rep | None], options: dict[str, Any]) -> Rep:
    """Integers with scales: `Quantized`, or an array if that has no such integers."""
    codes, scale = decode(inputs[0]), decode(inputs[1])  # type: ignore[arg-type]
    given = inputs[2] if len(inputs) > 2 else None
    zero_point = np.zeros(scale.shape, np.int64) if given is None else decode(given)
    zero_point = zero_point.astype(np.int64)
    axis = int(options.get("axis", 1)) % max(codes.ndim, 1)
    block_size = int(options.get("block_size", 0)) or None
    if scale.size == 1:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    along = None if scale.ndim == 0 else axis
    name = codes.dtype.name
    if name in CODES and scale.dtype in FLOATS and (scale > 0).all():
        block = None if along is None else block_size
        signed = name.startswith("int")
        codes = codes.astype(np.int16 if signed else np.uint16)
        return Quantized(codes, scale, zero_point, CODES[name], signed, along, block, scale.dtype)
    if block_size and along is not None:
        scale, zero_point = (
            np.repeat(v, block_size, along).take(range(codes.shape[along]), along)
            for v in (scale, zero_point)
        )
    elif along is not None:
        sizes = [-1 if k == along else 1 for k in range(codes.ndim)]
        scale, zero_point = scale.reshape(sizes), zero_point.reshape(sizes)
    return ((codes.astype(np.int64) - zero_point).astype(scale.dtype) * scale).astype(scale.dtype)


def _evaluated(onnx: Any, node: Any, inputs: list[Rep | None], opset: int) -> list[Rep]:
    """By onnx's own evaluator."""
    helper, evaluator = onnx.helper, importlib.import_module("onnx.reference").ReferenceEvaluator
    arrays = {
        name: decode(rep) for name, rep in zip(node.input, inputs, strict=True) if rep is not None
    }
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in arrays.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "constants", infos, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            found = evaluator(model).run(None, arrays)
    except Exception as error:  # whatever onnx raises of a node that cannot be computed
        raise CompressionError(f"onnx cannot compute this constant: {error}") from error
    return [np.asarray(array) for array in found]
