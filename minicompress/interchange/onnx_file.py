"""A model as ONNX, for any runtime that reads it: the same layers, the same integers and scales.

The package onnx is loaded when a model is exported, and not before.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from minicompress.arrays import DType, as_int
from minicompress.errors import CompressionError
from minicompress.interchange.onnx_graph import Graph, constant_bytes
from minicompress.interchange.onnx_layers import TYPES, add_layer
from minicompress.nn.layers import Layer, factor_layers
from minicompress.nn.network import Sequential, apply, finite_model
from minicompress.nn.stateless import Shape
from minicompress.representation import dtype_of
from minicompress.storage.files import write_file

OPSETS = (13, 25)
"""The first and the last version of ONNX's operators that can be asked for."""

MAX_BYTES = 2**31 - 1
"""Of a file: Protocol Buffers, which ONNX files are written in, have no larger messages."""

LAYER_BYTES = 2000
"""More than the nodes and names of one layer take."""


def to_onnx(model: Sequential, input_shape: Shape, *, opset: int = 21) -> Any:
    """A model as an ``onnx.ModelProto``, checked by onnx's own checker.

    Parameters
    ----------
    model : Sequential
        Of float32 or float16, of the library's own layers.
    input_shape : tuple of int
        Of one input, without the batch axis: (H, W, C), or (features,).
    opset : int from 13 to 25
        Version of the operators. 21 is the first with 4-bit and 16-bit integers and blocks.

    Returns
    -------
    onnx.ModelProto
        From "input" to "output", of the shapes that ``model(x)`` takes and gives: any number of
        images, channels last.

    Raises
    ------
    CompressionError
        The package onnx is not installed; a layer has no ONNX form, is of float64, has a weight
        that is NaN or infinite, or does not take what comes, and the message names the layer; the
        file would be larger than 2 GB.

    Notes
    -----
    Between Transpose nodes images are channels first, as ONNX has them, and kernels OIHW; before
    Flatten they are turned back, so the weights behind it keep their order. Batches may be of any
    size, images only of the one given.

    Weights are what they are in the model. `Quantized` ones are a DequantizeLinear of integers,
    with the same scales and zero points, and a Cast to float16 where that has float32 scales; the
    output is ``decode(rep)``, bit for bit. The integers are of the narrowest type that holds codes
    and zero points: int4 and uint4 (up to 4 bits), int8 and uint8, int16 and uint16; without opset
    21, int8 and uint8 alone, and no blocks. Where no type gives the same floats they are stored
    decoded. `Clustered` weights are a Gather from the codebook, at 8 or 16 bits an index. `LowRank`
    ones are the layers that `factor_layers` makes of them, or decoded. `Sparse` ones take a code
    for every entry where their values have codes, and are decoded otherwise: hardly a runtime reads
    ONNX's sparse initializers.

    The limit of 2 GB is the file format's. The bytes are counted from shapes before anything is
    decoded: the constants, and `LAYER_BYTES` for each layer's nodes. So what is not refused fits.

    float64 is refused: DequantizeLinear has none of it, and onnxruntime no convolution.

    Examples
    --------
    >>> from minicompress.nn.architectures import digits_cnn
    >>> made = to_onnx(digits_cnn(np.random.default_rng(0)), (8, 8, 1))  # doctest: +SKIP
    >>> [node.op_type for node in made.graph.node]  # doctest: +SKIP
    ['Transpose', 'Conv', 'Relu', 'Conv', 'Relu', 'Transpose', 'Flatten', 'Gemm']
    """
    onnx = _onnx()
    opset = as_int(opset, "opset", *OPSETS)
    if not isinstance(model, Sequential):
        raise CompressionError(f"model must be a Sequential, not {type(model).__name__}")
    finite_model(model)
    if not isinstance(input_shape, tuple | list) or not input_shape:
        raise CompressionError(f"input_shape must be a tuple like (28, 28, 1), not {input_shape!r}")
    shape = tuple(as_int(n, f"input_shape[{i}]", 1) for i, n in enumerate(input_shape))
    dtype = _dtype(model)
    chains = [factor_layers(layer) for layer in model.layers]
    _check_size([part for chain in chains for part in chain], opset)
    apply(model, np.empty((0, *shape), dtype))  # refuses layers that do not fit together
    graph = Graph(onnx, opset, dtype, shape)
    for i, chain in enumerate(chains):
        for j, part in enumerate(chain):
            add_layer(graph, part, f"layer{i}" if len(chain) == 1 else f"layer{i}.{j}")
    made = graph.model()
    onnx.checker.check_model(made, full_check=True)
    return made


def save_onnx(
    model: Sequential, path: str | os.PathLike[str], input_shape: Shape, *, opset: int = 21
) -> int:
    """Write a model as an ONNX file, and say how many bytes it has.

    Parameters
    ----------
    model : Sequential
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
    >>> import tempfile
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(np.ones((2, 1), np.float32)),))
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
    ...     save_onnx(model, folder + "/model.onnx", (2,)) > 8
    True
    """
    made = to_onnx(model, input_shape, opset=opset)
    return write_file(path, made.SerializeToString(deterministic=True))


def _onnx() -> Any:
    """The package, whose types nothing here depends on."""
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise CompressionError(
            "ONNX needs a package that is not installed: pip install 'minicompress[onnx]'"
        ) from None


def _dtype(model: Sequential) -> DType:
    """The one dtype of all weights; float32 where there are none."""
    found: list[tuple[str, DType]] = []
    for i, layer in enumerate(model.layers):
        name = f"layer {i} ({type(layer).__name__})"
        if type(layer) not in TYPES:
            known = ", ".join(sorted(kind.__name__ for kind in TYPES))
            raise CompressionError(f"{name} has no ONNX form: {known} have one")
        found += [(name, dtype_of(rep)) for rep in layer.parameters().values()]
    for name, dtype in found:
        if dtype == np.float64:
            raise CompressionError(
                f"{name} must be of float32 or float16, not float64, which ONNX's runtimes lack"
            )
        if dtype != found[0][1]:
            raise CompressionError(
                f"{name} must be of {found[0][1]} as {found[0][0]} is, not {dtype}"
            )
    return found[0][1] if found else np.dtype(np.float32)


def _check_size(layers: list[Layer], opset: int) -> None:
    size = LAYER_BYTES * (len(layers) + 1) + sum(
        constant_bytes(rep, opset) for layer in layers for rep in layer.parameters().values()
    )
    if size > MAX_BYTES:
        raise CompressionError(
            f"model takes about {size:,} bytes as ONNX, and a file of ONNX has at most "
            f"{MAX_BYTES:,}; quantize its weights or export it in parts"
        )
