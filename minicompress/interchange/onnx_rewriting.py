"""The weights of any ONNX file: read by name, and replaced where they are.

The graph is not understood, only its constants are. So this works for every ONNX file, also for one
with operators that this library does not have, such as LSTM and Attention.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from minicompress.arrays import FLOATS, Array, freeze
from minicompress.errors import CompressionError, FileFormatError, naming
from minicompress.integers import qparam_shape
from minicompress.interchange.onnx_graph import Graph, constant_bytes, integer_type
from minicompress.interchange.onnx_import_file import onnx_package
from minicompress.representation import (
    Clustered,
    LowRank,
    Quantized,
    Rep,
    Sparse,
    decode,
    dtype_of,
    shape_of,
)
from minicompress.storage.files import PathLike, file_name, write_file

MAX_BYTES = 2**31 - 1
"""The largest file: ONNX files are Protocol Buffers, which have no larger messages."""

# The first opsets with Einsum, with Cast and Mul as they are needed here, and with integers of 4
# bits; the first version of the file with these.
EINSUM, CAST, NARROW, NIBBLES = 12, 7, 21, 10


def onnx_arrays(path: PathLike) -> dict[str, Array]:
    """The float weights of an ONNX file, by name.

    Parameters
    ----------
    path : str or path-like
        Of any ONNX file, whatever its operators. Data in files beside it is read too.

    Returns
    -------
    dict of str to ndarray of float16, float32 or float64, read-only
        The initializers of the graph, then the constants that its Constant nodes make, in the order
        of the file. Layouts are those of ONNX: a kernel is (out, in, height, width). Constants of
        inner graphs (the branches of If, the body of Loop) are not among them.

    Raises
    ------
    FileFormatError
        The file is missing, damaged or no ONNX file.
    CompressionError
        The package onnx is not installed.

    Examples
    --------
    >>> from minicompress.interchange.onnx_file import save_onnx
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> import tempfile
    >>> model = Sequential((Dense(np.ones((2, 3), np.float32)),))
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
    ...     _ = save_onnx(model, folder + "/model.onnx", (2,))
    ...     [array.shape for array in onnx_arrays(folder + "/model.onnx").values()]
    [(2, 3)]
    """
    onnx = onnx_package()
    return dict(_weights(onnx, read_onnx(onnx, path)))


def save_onnx_arrays(path: PathLike, arrays: Mapping[str, Rep], original: PathLike) -> int:
    """Write an ONNX file again with other weights, and return how many bytes it has.

    Parameters
    ----------
    path : str or path-like
        Written atomically; it may be `original`.
    arrays : mapping of str to ndarray or representation
        For names of `onnx_arrays`, an array of the same shape and dtype, or a representation of
        one. Weights that are not named stay as they are.
    original : str or path-like
        The file whose graph is written.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    FileFormatError
        As `onnx_arrays`.
    CompressionError
        A name is not among the weights, a shape or a dtype is another one, or the file would be
        larger than 2 GB; the message names the array.
    OSError
        The file cannot be written.

    Notes
    -----
    Nodes and names stay. In front of the nodes come those that decode weights:

    - `Quantized`: DequantizeLinear with the same scales and zero points. Before opset 13, which
      brought scales per axis: Cast, Sub and Mul. The result is ``decode(rep)``, bit for bit.
    - `Clustered`: Gather from the codebook. `Sparse` has a code for every entry if its values have
      codes.
    - `LowRank`: MatMul of the factors, or Einsum. Their last bits are the runtime's.
    - Whatever has no such form at the opset of the file is decoded, and so is all of float64.

    Integers of 4 and 16 bits and blocks of scales came with opset 21, and Einsum with 12. If an
    array needs them, an older file is converted to opset 21 by ``onnx.version_converter``. Where
    that cannot convert it, codes take 8 bits, or the array is decoded.

    Where the weight of a MatMul or Gemm comes from DequantizeLinear, onnxruntime rounds its input
    to 8 bits, too. The session option ``session.qdq_matmulnbits_accuracy_level`` = "1" prevents it.

    Examples
    --------
    >>> from functools import partial
    >>> from minicompress.compressors.quantization import quantize
    >>> from minicompress.search.plan import compress
    >>> weights = onnx_arrays("model.onnx")  # doctest: +SKIP
    >>> small, _ = compress(weights, {"*": partial(quantize, axis=0)})  # doctest: +SKIP
    >>> save_onnx_arrays("small.onnx", small, "model.onnx")  # doctest: +SKIP
    26413
    """
    file_name(path)
    onnx = onnx_package()
    model = _with_newer_opset(onnx, read_onnx(onnx, original), arrays)
    _replace(onnx, model, arrays)
    size = model.ByteSize()
    if size > MAX_BYTES:
        raise CompressionError(f"the file would have {size:,} bytes, and ONNX's limit is 2 GB")
    onnx.checker.check_model(model)
    return write_file(path, model.SerializeToString(deterministic=True))


def read_onnx(onnx: Any, path: PathLike) -> Any:
    """The ModelProto of a file, checked, with the data of files beside it."""
    name = file_name(path)
    try:
        if os.path.getsize(name) > MAX_BYTES:
            raise FileFormatError(f"{name} is larger than 2 GB, the limit of ONNX")
        model = onnx.load(name)
        onnx.checker.check_model(model)
    except FileFormatError:
        raise
    except OSError as error:
        raise FileFormatError(f"{name} cannot be read: {error.strerror or error}") from None
    except (
        Exception
    ) as error:  # from protobuf and from the checker, which have classes of their own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileFormatError(f"{name} is no whole ONNX file: {first}") from None
    return model


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators in a ModelProto; 0 if it uses none."""
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return int(max(versions, default=0))


def _tensors(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, tensor and node (None for an initializer) of every constant of the graph."""
    for tensor in model.graph.initializer:
        yield tensor.name, tensor, None
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t, node


def _weights(onnx: Any, model: Any) -> Iterator[tuple[str, Array]]:
    proto = onnx.TensorProto
    for name, tensor, _ in _tensors(model):
        if tensor.data_type in (proto.FLOAT, proto.FLOAT16, proto.DOUBLE):
            with naming(f"array {name!r}"):
                try:
                    array = onnx.numpy_helper.to_array(tensor)
                except (ValueError, TypeError) as error:  # fewer numbers than the shape says
                    raise FileFormatError(f"its data does not fit its shape: {error}") from None
            yield name, freeze(array.astype(array.dtype.newbyteorder("="), copy=False))


def _replace(onnx: Any, model: Any, arrays: Mapping[str, Rep]) -> None:
    """Put other weights into a ModelProto."""
    known = {name: (tensor, node) for name, tensor, node in _tensors(model)}
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)} | set(known)
    graph = Graph(onnx, opset_of(model), np.dtype(np.float32), ())
    gone, dropped = set(), []
    for name, rep in arrays.items():
        if name not in known:
            raise CompressionError(f"array {name!r}: the graph has no weight of this name")
        tensor, node = known[name]
        with naming(f"array {name!r}"):
            _check_fits(onnx, tensor, rep)
        base = name
        while any(other.startswith(f"{base}.") for other in taken):
            base += "_"
        _give_name(graph, _weight(graph, rep, base), name)
        if node is None:
            gone.add(name)
        else:
            dropped.append(node)
    body = model.graph
    for kept, protos in (
        ([t for t in body.initializer if t.name not in gone], body.initializer),
        ([v for v in body.input if v.name not in gone], body.input),
    ):
        _set(protos, [*kept, *(graph.constants if protos is body.initializer else [])])
    left = [node for node in body.node if not any(node is other for other in dropped)]
    _set(body.node, [*graph.nodes, *left])
    proto = onnx.TensorProto
    if any(t.data_type in (proto.INT4, proto.UINT4) for t in graph.constants):
        model.ir_version = max(model.ir_version, NIBBLES)
    if model.ir_version < 4:  # until then every initializer had to be among the inputs as well
        model.ir_version = 4


def _with_newer_opset(onnx: Any, model: Any, arrays: Mapping[str, Rep]) -> Any:
    """The ModelProto at opset 21, if that makes weights smaller and can be done."""
    opset = opset_of(model)
    parts = [part for rep in arrays.values() for part in _parts(rep)]
    narrower = any(constant_bytes(p, NARROW) < constant_bytes(p, max(opset, 13)) for p in parts)
    products = any(isinstance(r, LowRank) and len(shape_of(r)) > 2 for r in arrays.values())
    if opset >= NARROW or not (narrower or (products and opset < EINSUM)):
        return model
    try:
        newer = importlib.import_module("onnx.version_converter").convert_version(model, NARROW)
        onnx.checker.check_model(newer)
    except Exception:  # an operator that the converter does not know, of whatever class
        return model
    same = {name for name, *_ in _tensors(model)} <= {name for name, *_ in _tensors(newer)}
    return newer if same else model


def _parts(rep: Rep) -> Iterator[Rep]:
    """An array, or the factors of a product."""
    if isinstance(rep, LowRank):
        for factor in rep.factors:
            yield from _parts(factor)
    elif isinstance(rep, Quantized | Sparse | Clustered):
        yield rep


def _set(protos: Any, items: list[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del protos[:]
    protos.extend(copies)


def _check_fits(onnx: Any, tensor: Any, rep: Rep) -> None:
    shape, dtype = tuple(tensor.dims), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if dtype not in FLOATS:
        raise CompressionError(f"only floats can be replaced, not {dtype}")
    if (shape_of(rep), dtype_of(rep)) != (shape, dtype):
        raise CompressionError(
            f"it must be of shape {shape} and dtype {dtype}, not {shape_of(rep)} and "
            f"{dtype_of(rep)}"
        )


def _weight(graph: Graph, rep: Rep, name: str) -> str:
    """Add a weight and the nodes that decode it; the name of the value."""
    if graph.opset < CAST or dtype_of(rep) == np.float64:
        return graph.constant(decode(rep), name)
    match rep:
        case LowRank(factors, subscripts) if _multiplies(graph, rep):
            made = [_weight(graph, f, f"{name}.factor{i}") for i, f in enumerate(factors)]
            if subscripts == "ir,ro->io":
                return graph.node("MatMul", made, name)
            return graph.node("Einsum", made, name, equation=subscripts)
        case Quantized(block_size=None) if graph.opset < 13 and _exact_product(graph, rep):
            return _scaled(graph, rep, name)
    return graph.weight(rep, name)


def _multiplies(graph: Graph, rep: LowRank) -> bool:
    """Whether runtimes can multiply the factors, and nothing is lost that `decode` keeps."""
    large = float(np.abs(decode(rep)).max(initial=0)) > float(np.finfo(dtype_of(rep)).max) / 2
    known = rep.subscripts == "ir,ro->io" or graph.opset >= EINSUM
    return known and dtype_of(rep) == np.float32 and 0 not in shape_of(rep) and not large


def _exact_product(graph: Graph, rep: Quantized) -> bool:
    kind = integer_type(rep, 13)
    return kind is not None and rep.dtype == np.float32


def _scaled(graph: Graph, rep: Quantized, name: str) -> str:
    """Codes times scales as plain arithmetic: every operation is exact but the last one."""
    codes, axis = decode(rep.codes), rep.axis
    shape = [1] * codes.ndim
    if axis is not None:
        (shape[axis],) = qparam_shape(codes.shape, axis, None)
    value = graph.constant(codes, f"{name}.codes", integer_type(rep, 13))
    value = graph.node("Cast", [value], f"{name}.floats", to=graph.onnx.TensorProto.FLOAT)
    if rep.zero_point.any():
        zero = graph.constant(rep.zero_point.astype(np.float32).reshape(shape), f"{name}.zero")
        value = graph.node("Sub", [value, zero], f"{name}.steps")
    return graph.node(
        "Mul", [value, graph.constant(rep.scale.reshape(shape), f"{name}.scale")], name
    )


def _give_name(graph: Graph, made: str, name: str) -> None:
    """Let the value that was made have this name."""
    if made != name:
        for tensor in graph.constants:
            tensor.name = name if tensor.name == made else tensor.name
        for node in graph.nodes:
            node.output[0] = name if node.output[0] == made else node.output[0]
