"""What a model in ONNX has to compute and to hold."""

import dataclasses

import numpy as np
import pytest

from minicompress.certify.float_error import Values, float_error
from minicompress.compressors.clustering import cluster
from minicompress.compressors.pruning import prune_magnitude
from minicompress.nn.layers import ConvTranspose2D, factor_layers, plain_layers
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import (
    Clip,
    HardSigmoid,
    HardSwish,
    PReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from minicompress.nn.stateless import (
    Add,
    ChannelShuffle,
    Concat,
    Flatten,
    LocalResponseNorm,
    MaxPool2D,
    Multiply,
    Upsample2D,
)
from minicompress.norms import smallest_subnormal, unit_roundoff
from minicompress.representation import Sparse, decode

try:
    import onnx
    import onnx.reference
    import onnxruntime
except ImportError:
    onnx = onnxruntime = None

needs_onnx = pytest.mark.skipif(onnx is None, reason="onnx or onnxruntime is not installed")

F, HALF = np.dtype(np.float32), np.dtype(np.float16)

# What the runtime's own exp and tanh may be off by, relative to 1: it has approximations of some
# units in the last place, and the library's are within one. 16 units of float32.
FUNCTION = 16 * unit_roundoff(F)


def run(proto, x, *wanted):
    """The outputs in onnxruntime, or the values of these names."""
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


def evaluate(proto, x):
    """The outputs in onnx's own evaluator."""
    return onnx.reference.ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: x})


def exact(layer, *xs):
    """A layer of plain arrays in float64."""
    wide = {n: v.astype(np.float64) for n, v in layer.parameters().items()}
    return dataclasses.replace(layer, **wide).forward(*xs)


def spread(layer, xs, errors, dtype):
    """A bound of the error behind a layer, of one who computes in floats in any order.

    `xs` are the exact inputs, in float64, and `errors` say how far the computed ones are off.
    """
    u, tiny = unit_roundoff(dtype), smallest_subnormal(dtype)
    x, error = xs[0], errors[0]
    size = np.abs(x) + error
    match layer:
        case Clip() | Flatten() | MaxPool2D() | Upsample2D() | ChannelShuffle() | Concat():
            if isinstance(layer, Clip):  # the limits are rounded
                limits = [abs(v) for v in (layer.low, layer.high) if np.isfinite(v)]
                return error + u * max(limits, default=0)
            return layer.forward(*errors)
        case Add():
            return sum(errors) + len(xs) * u / (1 - len(xs) * u) * (
                sum(map(np.abs, xs)) + sum(errors)
            )
        case Multiply():
            return product(xs, errors, dtype)
        case Sigmoid():  # its slope is at most 1/4, its values at most 1
            return error / 4 + FUNCTION + u
        case SiLU():  # x times a sigmoid
            gate = error / 4 + FUNCTION + u
            return product((x, exact(Sigmoid(), x)), (error, gate), dtype)
        case HardSigmoid():
            return hard_sigmoid(layer, size, error, dtype)
        case HardSwish():
            inner = HardSigmoid(1 / 6, 0.5)
            return product(
                (x, exact(inner, x)), (error, hard_sigmoid(inner, size, error, dtype)), dtype
            )
        case PReLU():
            slope = np.abs(layer.slope.astype(np.float64))
            return np.maximum(slope, 1) * error + u * slope * size + tiny
        case LocalResponseNorm(n, alpha, beta, bias):
            # x * S ** -beta, where S = bias + alpha / n * (the squares) is off by `far`.
            least = bias * (1 - 4 * u)
            top, base = (window_sums(v**2, n) * alpha / n + bias for v in (size, x))
            far = top - base + (n + 6) * u * top
            power = base**-beta
            relative = np.abs(beta) * (far / least + u * np.abs(np.log(base))) + FUNCTION
            return product((x, power), (error, power * np.expm1(relative)), dtype)
        case ConvTranspose2D():
            wide = np.abs(layer.weight.astype(np.float64))
            bias = np.zeros(wide.shape[-1]) if layer.bias is None else np.abs(layer.bias)
            pure = dataclasses.replace(layer, weight=wide, bias=None)
            terms = pure.forward(size) + bias.astype(np.float64)
            count = wide[..., 0].size + 2
            return pure.forward(error) + count * (u / (1 - count * u) * terms + tiny)
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
            far = (size + np.abs(m)) * ratio + np.abs(o)
            return error * ratio + 8 * u / (1 - 8 * u) * far
    # The magnitude of what went in, of either sign.
    size = np.abs(x)
    return float_error(layer, [Values(-size, size, error)], dtype)


def product(xs, errors, dtype):
    """The error of a product of two values, which may underflow."""
    u, tiny = unit_roundoff(dtype), smallest_subnormal(dtype)
    (a, b), (ea, eb) = map(np.abs, xs), errors
    return a * eb + ea * b + ea * eb + u * (a + ea) * (b + eb) + tiny


def window_sums(x, n):
    """For each channel the sum over the n channels around it."""
    c = x.shape[-1]
    k = np.arange(c)
    near = (k[:, None] >= k - (n - 1) // 2) & (k[:, None] <= k + n // 2)
    return x @ near


def hard_sigmoid(layer, size, error, dtype):
    """alpha * x + beta: roundings of alpha, beta, the product and the sum."""
    u, tiny = unit_roundoff(dtype), smallest_subnormal(dtype)
    alpha, beta = abs(layer.alpha), abs(layer.beta)
    return alpha * error + 4 * u * (alpha * size + beta) + tiny * (size + 1)


def reference(model, x, dtype=F):
    """The exact outputs for the floats of the weights, and how far from them rounding can lead."""
    values = [(x.astype(np.float64), np.zeros(x.shape))]
    for layer, reads in zip(model.layers, model.inputs, strict=True):
        ys, errors = ([values[v][k] for v in reads] for k in (0, 1))
        for part in plain_layers(layer):
            ys, errors = [exact(part, *ys)], [spread(part, ys, errors, dtype)]
        values.append((ys[0], errors[0]))
    return [values[v] for v in model.outputs]


def law_outputs(export, model, x, runs=None):
    """The outputs elsewhere are the model's within the rounding of the dtype."""
    proto = export(model, x.shape[1:])
    for runtime in runtimes(proto) if runs is None else runs:
        got = runtime(proto, x)
        for y, (expected, bound) in zip(got, reference(model, x, x.dtype), strict=True):
            assert y.shape == expected.shape
            assert y.dtype == x.dtype
            far = np.abs(y - expected)
            assert (far <= bound).all(), f"{far.max()} beyond {bound.max()}"
    return proto


def decoded_weights(model):
    """The weights by the names of their values in the graph, in ONNX's order of axes."""
    for i, layer in enumerate(model.layers):
        parts = factor_layers(layer)
        for j, part in enumerate(parts):
            name = f"layer{i}" if len(parts) == 1 else f"layer{i}.{j}"
            for field, rep in part.parameters().items():
                if not isinstance(part, BatchNorm | PReLU):
                    array = decode(rep)
                    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
                    if isinstance(part, ConvTranspose2D) and part.groups == 1 and array.ndim == 4:
                        axes = (2, 3, 0, 1)
                    yield f"{name}.{field}", rep, array.transpose(axes)


def law_weights(export, model, x):
    """What the nodes make of codes, scales and zero points is `decode(rep)`, bit for bit."""
    proto = export(model, x.shape[1:])
    made = {name for node in proto.graph.node for name in node.output}
    found = {name: value for name, _, value in decoded_weights(model) if name in made}
    if run not in runtimes(proto):
        return proto
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


def kinds(proto):
    return [node.op_type for node in proto.graph.node]


def runtimes(proto):
    """The runtimes that can run it: some of what ONNX has is refused by one, or wrong in one."""
    options = [
        (n.op_type, {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute})
        for n in proto.graph.node
    ]
    opset = proto.opset_import[0].version
    # onnx's evaluator sums the channels of LRN for the first N only, takes statistics of the batch
    # before opset 14, confuses the sides of padding, and has no groups of transposed convolutions.
    first = {"LRN": 99, "BatchNormalization": 14, "DequantizeLinear": 19}
    wrong = any(
        opset < first.get(kind, 0)
        or (kind == "ConvTranspose" and more["group"] > 1)
        or (kind == "MaxPool" and len(set(more["pads"])) > 1)
        for kind, more in options
    )
    even = any(kind == "LRN" and more["size"] % 2 == 0 for kind, more in options)
    return (() if even else (run,)) + (() if wrong else (evaluate,))


RNG = np.random.default_rng(0)


def kernel(*shape):
    return RNG.standard_normal(shape, np.float32)


IMAGE = RNG.standard_normal((2, 7, 6, 4), np.float32)


ROWS = RNG.standard_normal((3, 6), np.float32)

MATRIX = RNG.standard_normal((6, 5), np.float32)
