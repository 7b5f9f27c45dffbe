"""A model as ONNX, for any runtime that reads it: the same layers, integers and scales.

The package onnx is imported only when a model is exported.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from minicompress.arrays import DType, as_int
from minicompress.errors import CompressionError
from minicompress.integer.model import IntegerModel
from minicompress.interchange.onnx_graph import Graph, constant_bytes
from minicompress.interchange.onnx_integer import integer_graph
from minicompress.interchange.onnx_layers import TYPES, add_layer
from minicompress.nn.layer import Shape
from minicompress.nn.layers import factor_layers
from minicompress.nn.network import Network, apply
from minicompress.nn.parameters import finite_model
from minicompress.representation import dtype_of
from minicompress.storage.files import write_file

OPSETS = (13, 25)
"""The first and the last version of ONNX's operators that can be written."""

MAX_BYTES = 2**31 - 1
"""The largest file: ONNX files are Protocol Buffers, which have no larger messages."""

LAYER_BYTES = 2000
"""An upper bound of the nodes and names of one layer."""


def to_onnx(
    model: Network | IntegerModel, input_shape: Shape | None = None, *, opset: int = 21
) -> Any:
    """Convert a model to an ``onnx.ModelProto``, and check it with onnx's own checker.

    Parameters
    ----------
    model : Network or IntegerModel
        A network's weights have dtype float32 or float16, and its layers are the library's own.
    input_shape : tuple of int
        The shape of one input, without the batch axis: (H, W, C), or (features,). An
        `IntegerModel` has its own, which is the default.
    opset : int from 13 to 25
        The version of the operators. 21 is the first with 4-bit and 16-bit integers and blocks.

    Returns
    -------
    onnx.ModelProto
        From "input" to "output", with the shapes that ``model(x)`` takes and gives: any number of
        images of this size, channels last. Several outputs are "output0", "output1" and so on.

    Raises
    ------
    CompressionError
        The package onnx is not installed. A layer has no ONNX form, has weights of float64, has a
        weight that is NaN or infinite, or does not fit the layer before; the message names the
        layer. The file would be larger than 2 GB.

    Notes
    -----
    ONNX has images with the channels first, and kernels (out, in, kh, kw). Transpose nodes convert
    the images, each at most once. Before Flatten they are converted back, so the weights after it
    keep their order.

    Layers that no operator has are written in pieces: `SiLU` as Sigmoid and Mul, `HardSwish` before
    opset 14 as HardSigmoid and Mul, `ChannelShuffle` as Reshape, Transpose and Reshape. The windows
    of `ceil_mode` are written as padding. onnxruntime reads LRN of odd sizes only.

    Weights keep their representation:

    - `Quantized` is DequantizeLinear of integers, with the same scales and zero points, and a Cast
      if float16 has float32 scales. The result is ``decode(rep)``, bit for bit. The integers have
      the narrowest type that holds codes and zero points: int4, uint4, int8, uint8, int16 or
      uint16; before opset 21 only int8 and uint8, and no blocks. If no type gives the same floats,
      the weights are decoded.
    - `Clustered` is Gather from the codebook, with indices of 8 or 16 bits.
    - `LowRank` is the layers that `factor_layers` makes of it, or decoded.
    - `Sparse` has a code for every entry if its values have codes, and is decoded otherwise: few
      runtimes read ONNX's sparse initializers.

    An `IntegerModel` is written in ONNX's QDQ form: each operator stands between DequantizeLinear
    of the codes that it reads and QuantizeLinear of what it gives, and onnxruntime fuses them into
    one operator on integers. Weights are int8 with a scale for each output, biases int32 in steps
    of input scale * weight scale. Codes are uint8, 128 more than here, since onnxruntime on x86
    fuses int8 only in chains. Input and output of the file are real numbers of float32. Maximum
    pooling, tables and what moves codes are exact. The code of another layer differs by at most 1
    from ours for the same input codes, and rarely: the runtime's multipliers are floats, and it
    rounds ties to even. (Its sums can saturate on processors with AVX2 but without VNNI.)

    The file format has a limit of 2 GB. The bytes are counted before anything is decoded: the
    constants, from their shapes, and at most `LAYER_BYTES` for the nodes of each layer.

    float64 is refused: DequantizeLinear does not have it, nor does onnxruntime's convolution.

    Examples
    --------
    >>> from minicompress.nn.architectures import digits_cnn
    >>> made = to_onnx(digits_cnn(np.random.default_rng(0)), (8, 8, 1))  # doctest: +SKIP
    >>> [node.op_type for node in made.graph.node]  # doctest: +SKIP
    ['Transpose', 'Conv', 'Relu', 'Conv', 'Relu', 'Transpose', 'Flatten', 'Gemm']
    """
    try:
        onnx = importlib.import_module("onnx")
    except ImportError:
        raise CompressionError(
            "ONNX needs a package that is not installed: in the clone, pip install '.[onnx]'"
        ) from None
    opset = as_int(opset, "opset", *OPSETS)
    if not isinstance(model, Network | IntegerModel):
        raise CompressionError(
            f"model must be a Network or an IntegerModel, not {type(model).__name__}"
        )
    if isinstance(model, IntegerModel):
        if input_shape is not None and tuple(input_shape) != model.input_shape:
            raise CompressionError(
                f"input_shape must be that of the integer model, {model.input_shape}, not "
                f"{input_shape}"
            )
        made = integer_graph(onnx, model, opset)
        onnx.checker.check_model(made, full_check=True)
        return made
    finite_model(model)
    if not isinstance(input_shape, tuple | list) or not input_shape:
        raise CompressionError(f"input_shape must be a tuple like (28, 28, 1), not {input_shape!r}")
    shape = tuple(as_int(n, f"input_shape[{i}]", 1) for i, n in enumerate(input_shape))
    dtype = _dtype(model)
    chains = [factor_layers(layer) for layer in model.layers]
    parts = [part for chain in chains for part in chain]
    size = LAYER_BYTES * (len(parts) + 1) + sum(
        constant_bytes(rep, opset) for part in parts for rep in part.parameters().values()
    )
    if size > MAX_BYTES:
        raise CompressionError(
            f"model takes about {size:,} bytes as ONNX, and a file of ONNX has at most "
            f"{MAX_BYTES:,}; quantize its weights or export it in parts"
        )
    apply(model, np.empty((0, *shape), dtype))  # refuses layers that do not fit together
    graph = Graph(onnx, opset, dtype, shape)
    values = [graph.input]
    for i, (chain, reads) in enumerate(zip(chains, model.inputs, strict=True)):
        tensors = [values[value] for value in reads]
        for j, part in enumerate(chain):
            name = f"layer{i}" if len(chain) == 1 else f"layer{i}.{j}"
            tensors = [add_layer(graph, part, tensors, name)]
        values += tensors
    made = graph.model([values[value] for value in model.outputs])
    onnx.checker.check_model(made, full_check=True)
    return made


def save_onnx(
    model: Network | IntegerModel,
    path: str | os.PathLike[str],
    input_shape: Shape | None = None,
    *,
    opset: int = 21,
) -> int:
    """Write a model as an ONNX file, and return how many bytes it has.

    Parameters
    ----------
    model : Network or IntegerModel
    path : str or path-like
        Usually ends in ".onnx". Written atomically: a temporary file, then a rename.
    input_shape, opset
        As for `to_onnx`.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    CompressionError
        As `to_onnx`.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> import tempfile
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(np.ones((2, 1), np.float32)),))
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
    ...     save_onnx(model, folder + "/model.onnx", (2,)) > 8
    True
    """
    made = to_onnx(model, input_shape, opset=opset)
    return write_file(path, made.SerializeToString(deterministic=True))


def _dtype(model: Network) -> DType:
    """The one dtype of all weights; float32 if there are none."""
    first: tuple[str, DType] | None = None
    for i, layer in enumerate(model.layers):
        name = f"layer {i} ({type(layer).__name__})"
        if type(layer) not in TYPES:
            known = ", ".join(sorted(kind.__name__ for kind in TYPES))
            raise CompressionError(f"{name} has no ONNX form: {known} have one")
        for dtype in map(dtype_of, layer.parameters().values()):
            first = first or (name, dtype)
            named, other = first
            if dtype == np.float64:
                raise CompressionError(
                    f"{name} must be of float32 or float16, not float64, which ONNX's runtimes lack"
                )
            if dtype != other:
                raise CompressionError(f"{name} must be of {other} as {named} is, not {dtype}")
    return first[1] if first else np.dtype(np.float32)
