"""An ONNX graph while it is built: nodes, constants, and compressed weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from minicompress.arrays import Array, DType
from minicompress.integers import code_range, spread
from minicompress.nn.layer import Shape
from minicompress.representation import (
    Clustered,
    Quantized,
    Rep,
    Sparse,
    decode,
    dtype_of,
    shape_of,
    whole_bytes,
)

INPUT, OUTPUT = "input", "output"

# ONNX's integer types, the narrowest first: name, least, greatest, first opset.
INTEGERS = (
    ("INT4", -8, 7, 21),
    ("UINT4", 0, 15, 21),
    ("INT8", -128, 127, 13),
    ("UINT8", 0, 255, 13),
    ("INT16", -(2**15), 2**15 - 1, 21),
    ("UINT16", 0, 2**16 - 1, 21),
)


class IntegerBias(NamedTuple):
    """An int32 bias, in steps of input scale * weight scale.

    Parameters
    ----------
    codes : (O,) ndarray of int32
    scale : (O,) ndarray of float32
    """

    codes: Array
    scale: Array


@dataclasses.dataclass
class Tensor:
    """A value of the network in the graph.

    Parameters
    ----------
    shape : tuple of int
        Its shape in this library: without the batch axis, channels last.
    names : dict of bool to str
        Its name in the graph, by whether the channels come first, as ONNX's operators on images
        need them. A layout that no node needed so far has no name. A row of features has the same
        name in both.
    """

    shape: Shape
    names: dict[bool, str]


class Graph:
    """The nodes and constants so far.

    Parameters
    ----------
    onnx : module
    opset : int
    dtype : numpy.dtype
        The dtype of all values between the nodes.
    input_shape : tuple of int
        Without the batch axis, channels last.

    Attributes
    ----------
    input : Tensor
        The network's input.
    """

    def __init__(self, onnx: Any, opset: int, dtype: DType, input_shape: Shape) -> None:
        self.onnx, self.opset, self.dtype = onnx, opset, dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.input = self.tensor(INPUT, input_shape, False)

    def tensor(self, name: str, shape: Shape, first: bool) -> Tensor:
        """The value of this name, whose channels come first or last."""
        return Tensor(shape, {first: name} if len(shape) > 1 else {False: name, True: name})

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node with one output, and return its name. An attribute of None is left out."""
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def named(self, tensor: Tensor, first: bool) -> str:
        """The name of a value with its channels first or last; transposed, at most once."""
        if first not in tensor.names:
            (there,) = tensor.names.values()
            axes = len(tensor.shape)
            perm = [0, axes, *range(1, axes)] if first else [0, *range(2, axes + 1), 1]
            name = f"{there}.{'first' if first else 'last'}"
            tensor.names[first] = self.node("Transpose", [there], name, perm=perm)
        return tensor.names[first]

    def small(self, values: Any, name: str, dtype: Any = None) -> str:
        """Append numbers that are no weights; of the dtype of all values by default."""
        array = np.asarray(values, self.dtype if dtype is None else dtype)
        value = self.onnx.numpy_helper.from_array(array, name)
        return self.node("Constant", [], name, value=value)

    def reshape(self, value: str, shape: Shape, name: str) -> str:
        """Append a Reshape; a 0 stands for the batch, whose size stays."""
        return self.node("Reshape", [value, self.small(shape, f"{name}.shape", np.int64)], name)

    def constant(self, array: Array, name: str, kind: str | None = None) -> str:
        """Add an initializer. A byte holds two 4-bit integers, the first in the low half."""
        proto = self.onnx.TensorProto
        if kind in {"INT4", "UINT4"}:
            nibbles = np.append(array.ravel(), [0] * (array.size % 2)).astype(np.int64) & 15
            stored = (nibbles[::2] | nibbles[1::2] << 4).astype(np.uint8)
        else:
            stored = array if kind is None else array.astype(kind.lower())
        code = (
            self.onnx.helper.np_dtype_to_tensor_dtype(stored.dtype)
            if kind is None
            else getattr(proto, kind)
        )
        raw = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
        self.constants.append(proto(name=name, data_type=code, dims=array.shape, raw_data=raw))
        return name

    def weight(self, rep: Rep | IntegerBias, name: str) -> str:
        """Add a weight and, if it is compressed, the nodes that decode it."""
        if isinstance(rep, IntegerBias):
            parts = [self.constant(rep.codes, f"{name}.codes")]
            parts += [self.constant(rep.scale, f"{name}.scale")]
            return self.node("DequantizeLinear", parts, name, axis=0)
        if isinstance(rep, Sparse):
            rep = densely_coded(rep)
        match rep:
            case Quantized():
                return self._dequantized(rep, name)
            case Clustered(codes, codebook):
                indices = self.constant(codes, f"{name}.codes")
                if codes.dtype != np.int64:  # Gather takes none narrower than int32
                    to = self.onnx.TensorProto.INT32
                    indices = self.node("Cast", [indices], f"{name}.indices", to=to)
                return self.node(
                    "Gather", [self.weight(codebook, f"{name}.codebook"), indices], name
                )
        return self.constant(decode(rep), name)

    def _dequantized(self, rep: Quantized, name: str) -> str:
        kind, codes = integer_type(rep, self.opset), decode(rep.codes)
        if kind is None or codes.size == 0:
            return self.constant(decode(rep), name)
        scale, zero_point, axis, block_size = rep.scale, rep.zero_point, rep.axis, rep.block_size
        if scale.size == 1:
            # onnxruntime takes a single scale as the scale of the whole array, without blocks.
            scale, zero_point = scale.reshape(()), zero_point.reshape(())
            axis = block_size = None
        elif block_size is not None and codes.ndim == 1:  # and needs one scale for each entry here
            scale, zero_point = (
                spread(v, codes.shape, axis, block_size) for v in (scale, zero_point)
            )
            block_size = None
        parts = [
            self.constant(codes, f"{name}.codes", kind),
            self.constant(scale, f"{name}.scale"),
            self.constant(zero_point, f"{name}.zero_point", kind),
        ]
        first = name if scale.dtype == rep.dtype else f"{name}.{scale.dtype}"
        made = self.node("DequantizeLinear", parts, first, axis=axis, block_size=block_size)
        to = self.onnx.helper.np_dtype_to_tensor_dtype(rep.dtype)
        return made if first == name else self.node("Cast", [made], name, to=to)

    def model(self, outputs: list[Tensor]) -> Any:
        """The finished ModelProto, which gives these values with their channels last."""
        helper = self.onnx.helper
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        ends = []
        for i, tensor in enumerate(outputs):
            name, end = self.named(tensor, False), OUTPUT if len(outputs) == 1 else f"{OUTPUT}{i}"
            if name == INPUT or name.startswith(OUTPUT):  # it is not computed, or an output already
                self.node("Identity", [name], end)
            else:
                self._rename(name, end)
                tensor.names = {f: end if n == name else n for f, n in tensor.names.items()}
            ends.append(helper.make_tensor_value_info(end, kind, ["N", *tensor.shape]))
        start = helper.make_tensor_value_info(INPUT, kind, ["N", *self.input.shape])
        graph = helper.make_graph(
            self.nodes, "minicompress", [start], ends, initializer=self.constants
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="minicompress",
        )

    def _rename(self, old: str, new: str) -> None:
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]


def integer_type(rep: Quantized, opset: int) -> str | None:
    """The integer type for which DequantizeLinear equals `decode`; None if there is none."""
    blocks, half = rep.block_size is not None, rep.scale.dtype == np.float16
    if (blocks and opset < 21) or (half and opset < 19):
        return None
    low, high = code_range(rep.num_bits, rep.signed)
    low = min(low, int(rep.zero_point.min(initial=0)))
    high = max(high, int(rep.zero_point.max(initial=0)))
    # A code minus its zero point must be exact in the scale's dtype. And a product that overflows
    # is infinite in ONNX, but the largest finite number in `decode`.
    digits, top = np.finfo(rep.scale.dtype).nmant + 1, float(np.finfo(rep.dtype).max)
    farthest = (high - low) * float(rep.scale.max(initial=0))
    if high - low > 2**digits or farthest > top:
        return None
    fitting = (
        kind
        for kind, least, greatest, first_opset in INTEGERS
        if least <= low and high <= greatest and first_opset <= opset
    )
    return next(fitting, None)


def constant_bytes(rep: Rep, opset: int) -> int:
    """The bytes of the constants of `Graph.weight`, from shapes and options; nothing is decoded.

    An empty array may be counted with a scale that is not written.

    Examples
    --------
    >>> constant_bytes(np.ones((2, 3), np.float32), 21)
    24
    """
    size, itemsize = math.prod(shape_of(rep)), dtype_of(rep).itemsize
    sparse = isinstance(rep, Sparse)
    match rep.values if isinstance(rep, Sparse) else rep:
        case Clustered(_, codebook):
            entries = shape_of(codebook)[0] + sparse
            width = 1 if entries <= 2**8 else 2 if entries <= 2**16 else 8
            values = entries * itemsize if sparse else constant_bytes(codebook, opset)
            return size * width + values
        case Quantized(scale=scale) as q if not sparse or zero_has_a_code(q):
            kind = integer_type(q, opset)
            if kind is not None:
                bits = int(kind.lstrip("UINT"))  # of "UINT16", 16
                spreads = scale.size > 1 and q.block_size and len(shape_of(rep)) == 1
                groups = size if spreads else scale.size
                packed = whole_bytes(size * bits) + whole_bytes(groups * bits)
                return packed // 8 + groups * scale.itemsize
    return size * itemsize


def zero_has_a_code(values: Quantized) -> bool:
    """Whether the zeros of a `Sparse` with these values have a code: the zero point."""
    low, high = code_range(values.num_bits, values.signed)
    return values.axis is None and low <= int(values.zero_point) <= high


def densely_coded(rep: Sparse) -> Rep:
    """A `Sparse` with a code for every entry, or decoded if its values have no codes.

    Examples
    --------
    >>> pruned = Sparse((1, 3), np.array([1]), Clustered(np.array([0]), np.array([5.0])))
    >>> densely_coded(pruned).codes
    array([[1, 0, 1]], dtype=uint8)
    """

    def filled(codes: Array, code: int) -> Array:
        everywhere = np.full(math.prod(rep.shape), code, np.int64)
        everywhere[rep.indices] = codes
        return everywhere.reshape(rep.shape)

    match rep.values:
        case Clustered(codes, codebook):
            zero = shape_of(codebook)[0]
            entries = np.append(decode(codebook), np.zeros(1, dtype_of(codebook)))
            return Clustered(filled(codes, zero), entries)
        case Quantized() as values if zero_has_a_code(values):
            codes = filled(decode(values.codes), int(values.zero_point))
            return dataclasses.replace(values, codes=codes)
    return decode(rep)
