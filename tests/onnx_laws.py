"""What a model in ONNX has to compute and to hold."""

import dataclasses

import numpy as np
import pytest

from minicompress.certify.float_error import Values, float_error
from minicompress.compressors.clustering import cluster
from minicompress.compressors.pruning import prune_magnitude
from minicompress.nn.layers import factor_layers, plain_layers
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import Sigmoid, Softmax, Tanh
from minicompress.norms import unit_roundoff
from minicompress.representation import Sparse, decode

try:
    import onnx
    import onnxruntime
except ImportError:
    onnx = onnxruntime = None

needs_onnx = pytest.mark.skipif(onnx is None, reason="onnx or onnxruntime is not installed")

F, HALF = np.dtype(np.float32), np.dtype(np.float16)

# What the runtime's own exp and tanh may be off by, relative to 1: it has approximations of some
# units in the last place, and the library's are within one. 16 units of float32.
FUNCTION = 16 * unit_roundoff(F)


def run(proto, x, *wanted):
    """The output, or the values of these names."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    known = {v.name: v for v in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    proto.graph.output.extend(known[name] for name in wanted)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run([*wanted] or None, {proto.graph.input[0].name: x})


def exact(layer, x):
    """A layer of plain arrays in float64."""
    wide = {n: v.astype(np.float64) for n, v in layer.parameters().items()}
    return dataclasses.replace(layer, **wide).forward(x)


def spread(layer, x, error, dtype):
    """A bound of the error behind a layer, of one who computes in floats in any order."""
    u = unit_roundoff(dtype)
    match layer:
        case Sigmoid():  # its slope is at most 1/4, its values at most 1
            return error / 4 + FUNCTION + u
        case Tanh():
            return error + FUNCTION + u
        case Softmax():
            # Logits off by e: a factor of exp(2 e). Then x - max, exp, the sum, the quotient.
            n = x.shape[-1]
            far = 2 * error.max(-1, keepdims=True) + 4 * u * np.abs(x).max(-1, keepdims=True)
            return np.broadcast_to(np.expm1(far + FUNCTION) + (n + 4) * u, x.shape)
        case BatchNorm():
            # scale * (x - mean) / sqrt(variance + epsilon) + offset, or x * a + b: 8 roundings.
            s, o, m, v = (value.astype(np.float64) for value in layer.parameters().values())
            ratio = np.abs(s) / np.sqrt(v + layer.epsilon)
            size = (np.abs(x) + error + np.abs(m)) * ratio + np.abs(o)
            return error * ratio + 8 * u / (1 - 8 * u) * size
    # The magnitude of what went in, of either sign.
    size = np.abs(x)
    return float_error(layer, Values(-size, size, error), dtype)


def reference(model, x, dtype=F):
    """The exact output for the floats of the weights, and how far from it rounding can lead."""
    y, error = x.astype(np.float64), np.zeros(x.shape)
    for layer in model.layers:
        for part in plain_layers(layer):
            y, error = exact(part, y), spread(part, y, error, dtype)
    return y, error


def law_outputs(export, model, x):
    """onnxruntime's outputs are the model's within the rounding of float32."""
    (got,) = run(export(model, x.shape[1:]), x)
    expected, bound = reference(model, x)
    assert got.shape == expected.shape
    assert got.dtype == x.dtype
    far = np.abs(got - expected)
    assert (far <= bound).all(), f"{far.max()} beyond {bound.max()}"
    return got


def decoded_weights(model):
    """The weights by the names of their values in the graph, in ONNX's order of axes."""
    for i, layer in enumerate(model.layers):
        parts = factor_layers(layer)
        for j, part in enumerate(parts):
            name = f"layer{i}" if len(parts) == 1 else f"layer{i}.{j}"
            for field, rep in part.parameters().items():
                if not isinstance(part, BatchNorm):
                    array = decode(rep)
                    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
                    yield f"{name}.{field}", rep, array.transpose(axes)


def law_weights(export, model, x):
    """What the nodes make of codes, scales and zero points is `decode(rep)`, bit for bit."""
    proto = export(model, x.shape[1:])
    made = {name for node in proto.graph.node for name in node.output}
    found = {name: value for name, _, value in decoded_weights(model) if name in made}
    for name, got in zip(found, run(proto, x, *found) if found else [], strict=True):
        assert got.dtype == found[name].dtype
        np.testing.assert_array_equal(got, found[name], err_msg=name)
    return proto


def storage(proto):
    """The integer types that codes are stored in."""
    names = {node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    types = {
        onnx.TensorProto.DataType.Name(c.data_type)
        for c in proto.graph.initializer
        if c.name in names
    }
    return sorted(types)


def shared(array):
    pruned = prune_magnitude(array, amount=0.8).rep
    return Sparse(pruned.shape, pruned.indices, cluster(decode(pruned.values), n_clusters=8).rep)


RNG = np.random.default_rng(0)

ROWS = RNG.standard_normal((3, 6), np.float32)

MATRIX = RNG.standard_normal((6, 5), np.float32)
