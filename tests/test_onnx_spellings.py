"""ONNX in: every operator and spelling, from small models written here, against onnxruntime."""

import numpy as np
import pytest
from onnx_laws import needs_onnx, onnx, run

from minicompress.errors import CompressionError
from minicompress.interchange.onnx_import import from_onnx
from minicompress.representation import Quantized, decode

F = np.float32
RNG = np.random.default_rng(0)
U = 2.0**-24


def model(body, shape="N, 4, 6, 5", opset=13, out="N, C, H, W", **constants):
    """A ModelProto from text: `x` is the input, `y` the output, and constants are initializers."""
    text = (
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[{shape}] x) '
        f"=> (float[{out}] y) {{ {body} }}"
    )
    made = onnx.parser.parse_model(text)
    for name, value in constants.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return made


def last(x):
    """Channels last."""
    return np.moveaxis(x, 1, -1)


def names(network):
    return [type(layer).__name__ for layer in network.layers]


def law_same(read, proto, shape=(2, 4, 6, 5), *, input_shape=None):
    """The network's outputs are onnxruntime's; at most one part in 2 ** 14 of the largest."""
    network = read(proto, input_shape=input_shape)
    x = RNG.standard_normal(shape, F)
    got = network(last(x))
    for y, wanted in zip(got if isinstance(got, tuple) else (got,), run(proto, x), strict=True):
        wanted = last(wanted) if wanted.ndim > 2 else wanted
        assert y.shape == wanted.shape
        assert np.abs(y - wanted).max() <= 2.0**10 * U * max(np.abs(wanted).max(), 1)
    return network


def kernel(*shape):
    return RNG.standard_normal(shape, F)


def ints(*values):
    return np.array(values, np.int64)


def f(*values):
    return np.array(values, F)


CHANNELS = kernel(4, 1, 1)
SQUARE = kernel(4, 4, 1, 1)
PIXELS = "N, 120"

# What is read: the nodes, their constants and options, and the layers that come out.
SPELLINGS = {
    # Convolutions
    "conv, SAME_UPPER": (
        'y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)',
        {"w": kernel(3, 4, 3, 2)},
        ["Conv2D"],
    ),
    "conv, SAME_LOWER": (
        'y = Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)',
        {"w": kernel(3, 4, 4, 2)},
        ["Conv2D"],
    ),
    "conv, groups and dilation": (
        "y = Conv<group = 2, dilations = [2, 1], pads = [1, 0, 2, 3]>(x, w, b)",
        {"w": kernel(6, 2, 2, 3), "b": kernel(6)},
        ["Conv2D"],
    ),
    "pad into conv": (
        "p = Pad(x, pads) y = Conv<pads = [0, 0, 1, 0]>(p, w)",
        {"w": kernel(3, 4, 3, 3), "pads": ints(0, 0, 1, 2, 0, 0, 0, 1)},
        ["Conv2D"],
    ),
    "padding of nothing": ("y = Pad(x, pads)", {"pads": ints(*[0] * 8)}, []),
    "a bias added": (
        "c = Conv(x, w) y = Add(b, c)",
        {"w": SQUARE, "b": kernel(1, 4, 1, 1)},
        ["Conv2D"],
    ),
    "a bias added to what is also read": (
        "c = Conv(x, w) d = Add(c, b) y = Add(c, d)",
        {"w": SQUARE, "b": kernel(4, 1, 1)},
        ["Conv2D", "BatchNorm", "Add"],
    ),
    "transposed": (
        "y = ConvTranspose<strides = [2, 3], pads = [1, 0, 0, 1], output_padding = [1, 2]>"
        "(x, w, b)",
        {"w": kernel(4, 3, 2, 3), "b": kernel(3)},
        ["ConvTranspose2D"],
    ),
    "transposed, groups": (
        "y = ConvTranspose<group = 2, dilations = [2, 1]>(x, w)",
        {"w": kernel(4, 3, 2, 3)},
        ["ConvTranspose2D"],
    ),
    "transposed to a shape": (
        "y = ConvTranspose<strides = [2, 2], output_shape = [12, 9]>(x, w)",
        {"w": kernel(4, 3, 3, 2)},
        ["ConvTranspose2D"],
    ),
    "transposed, SAME_UPPER": (
        'y = ConvTranspose<strides = [2, 2], auto_pad = "SAME_UPPER">(x, w)',
        {"w": kernel(4, 3, 3, 2)},
        ["ConvTranspose2D"],
    ),
    "transposed, SAME_LOWER": (
        'y = ConvTranspose<strides = [2, 2], auto_pad = "SAME_LOWER">(x, w)',
        {"w": kernel(4, 3, 3, 2)},
        ["ConvTranspose2D"],
    ),
    "transposed, a bias added": (
        "t = ConvTranspose<strides = [2, 2]>(x, w) y = Add(t, b)",
        {"w": kernel(4, 3, 2, 2), "b": kernel(1, 3, 1, 1)},
        ["ConvTranspose2D"],
    ),
    "quantized and dequantized": (
        "q = QuantizeLinear<axis = 0>(w, s, z) d = DequantizeLinear<axis = 0>(q, s, z) "
        "y = Conv(x, d)",
        {"w": SQUARE, "s": f(0.1, 0.2, 0.3, 0.4), "z": np.array([0, 1, 2, 3], np.int8)},
        ["Conv2D"],
    ),
    # Dense layers
    "gemm": (
        "f = Flatten(x) y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(f, w, b)",
        {"w": kernel(3, 120), "b": kernel(1, 3)},
        ["Flatten", "Dense"],
    ),
    "matmul and add": (
        "r = Reshape(x, s) m = MatMul(r, w) y = Add(m, b)",
        {"s": ints(0, -1), "w": kernel(120, 3), "b": kernel(3)},
        ["Flatten", "Dense"],
    ),
    "flattened by its shape": (
        "s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, zeros) c = Concat<axis = 0>(u, minus) "
        "r = Reshape(x, c) y = MatMul(r, w)",
        {"zero": np.int64(0), "zeros": ints(0), "minus": ints(-1), "w": kernel(120, 3)},
        ["Flatten", "Dense"],
    ),
    "flattened in another order": (
        "t = Transpose<perm = [0, 3, 1, 2]>(x) f = Flatten(t) r = Relu(f) y = MatMul(r, w)",
        {"w": kernel(120, 3)},
        ["ReLU", "Flatten", "Dense"],
    ),
    "flattened with the channels last": (
        "t = Transpose<perm = [0, 2, 3, 1]>(x) y = Flatten(t)",
        {},
        ["Flatten"],
    ),
    "normalized behind a flatten": (
        "f = Flatten(x) n = BatchNormalization(f, a, b, m, v) y = MatMul(n, w)",
        {
            "w": kernel(120, 3),
            "a": kernel(120),
            "b": np.repeat(kernel(4), 30),
            "m": kernel(120),
            "v": RNG.random(120, F) + F(0.5),
        },
        ["Flatten", "BatchNorm", "Dense"],
    ),
    # Pooling
    "max pool, ceil": (
        "y = MaxPool<kernel_shape = [3, 2], strides = [2, 2], ceil_mode = 1>(x)",
        {},
        ["MaxPool2D"],
    ),
    "average pool, ceil": (
        "y = AveragePool<kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 0, 1], "
        "ceil_mode = 1>(x)",
        {},
        ["AvgPool2D"],
    ),
    "average pool, padding counts": (
        "y = AveragePool<kernel_shape = [2, 2], pads = [1, 0, 1, 1], count_include_pad = 1>(x)",
        {},
        ["AvgPool2D"],
    ),
    "padded average pool": (
        "p = Pad(x, pads) y = AveragePool<kernel_shape = [2, 2]>(p)",
        {"pads": ints(0, 0, 1, 1, 0, 0, 1, 0)},
        ["AvgPool2D"],
    ),
    "global pools": ("y = GlobalMaxPool(x)", {}, ["MaxPool2D"]),
    "reduce mean": ("y = ReduceMean<axes = [2, 3], keepdims = 0>(x)", {}, ["GlobalAvgPool2D"]),
    "reduce mean, axes kept": ("y = ReduceMean<axes = [-1, -2]>(x)", {}, ["GlobalAvgPool2D"]),
    "reduce mean, channels last": (
        "t = Transpose<perm = [0, 2, 3, 1]>(x) y = ReduceMean<axes = [1, 2], keepdims = 0>(t)",
        {},
        ["GlobalAvgPool2D"],
    ),
    "pooled and squeezed": (
        "g = GlobalAveragePool(x) s = Squeeze(g, a) y = MatMul(s, w)",
        {"a": ints(2, 3), "w": kernel(4, 3)},
        ["GlobalAvgPool2D", "Dense"],
    ),
    # Gates
    "squeeze and excite": (
        "g = GlobalAveragePool(x) a = Conv(g, w) s = Sigmoid(a) y = Mul(x, s)",
        {"w": SQUARE},
        ["GlobalAvgPool2D", "Conv2D", "Sigmoid", "Multiply"],
    ),
    "squeeze and excite by dense layers": (
        "g = GlobalAveragePool(x) f = Flatten(g) a = Gemm(f, w, b) r = Relu(a) "
        "s = Sigmoid(r) u = Reshape(s, t) y = Mul(u, x)",
        {"w": SQUARE[:, :, 0, 0], "b": kernel(4), "t": ints(-1, 4, 1, 1)},
        ["GlobalAvgPool2D", "Conv2D", "ReLU", "Sigmoid", "Multiply"],
    ),
    "a whole image to one pixel": (
        "f = Flatten(x) a = MatMul(f, w) u = Unsqueeze(a, t) y = Mul(u, x)",
        {"w": kernel(120, 4), "t": ints(2, 3)},
        ["Conv2D", "Multiply"],
    ),
    # Activations
    "clip to tensors": ("y = Clip(x, a, b)", {"a": F(-0.5), "b": F(0.5)}, ["Clip"]),
    "clip on one side": ("y = Clip(x, , b)", {"b": F(0.5)}, ["Clip"]),
    "a large slope": ("y = LeakyRelu<alpha = 2.0>(x)", {}, ["PReLU"]),
    "prelu": ("y = PRelu(x, a)", {"a": CHANNELS}, ["PReLU"]),
    "prelu, one slope": ("y = PRelu(x, a)", {"a": f(0.25)}, ["PReLU"]),
    "hard swish": (
        "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
        {"three": F(3), "zero": F(0), "six": F(6)},
        ["HardSwish"],
    ),
    "hard swish, scaled": (
        "a = Add(three, x) c = Clip(a, zero, six) m = Mul(c, x) y = Mul(m, sixth)",
        {"three": f(3), "zero": F(0), "six": F(6), "sixth": f(1 / 6)},
        ["HardSwish"],
    ),
    "hard swish, by a hard sigmoid": (
        "h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(h, x)",
        {},
        ["HardSwish"],
    ),
    "hard sigmoid": (
        "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)",
        {"three": F(3), "zero": F(0), "six": F(6)},
        ["HardSigmoid"],
    ),
    "hard sigmoid, scaled first": (
        "m = Mul(x, a) s = Add(m, b) y = Clip(s, zero, one)",
        {"a": F(0.2), "b": F(0.5), "zero": F(0), "one": F(1)},
        ["HardSigmoid"],
    ),
    "silu": ("s = Sigmoid(x) y = Mul(s, x)", {}, ["SiLU"]),
    "softmax of channels": ("y = Softmax<axis = 1>(x)", {}, ["Softmax"]),
    "softmax of the last axis": (
        "t = Transpose<perm = [0, 2, 3, 1]>(x) s = Softmax(t) "
        "y = Transpose<perm = [0, 3, 1, 2]>(s)",
        {},
        ["Softmax"],
    ),
    # Scale and shift
    "scale and shift": (
        "m = Mul(a, x) y = Add(m, b)",
        {"a": CHANNELS, "b": kernel(4, 1, 1)},
        ["BatchNorm"],
    ),
    "by numbers": (
        "m = Mul(x, a) s = Sub(m, b) y = Div(s, a)",
        {"a": F(3), "b": F(0.25)},
        ["BatchNorm"],
    ),
    "subtracted from": ("y = Sub(a, x)", {"a": CHANNELS}, ["BatchNorm", "BatchNorm"]),
    "divided": ("y = Div(x, a)", {"a": CHANNELS}, ["BatchNorm"]),
    "normalized, then scaled": (
        "n = BatchNormalization<epsilon = 0.1>(x, o, o, o, o) m = Mul(n, a) y = Add(m, b)",
        {"o": np.ones(4, F), "a": CHANNELS, "b": kernel(4, 1, 1)},
        ["BatchNorm", "BatchNorm"],
    ),
    "shifted by features": (
        "f = Flatten(x) r = Relu(f) a = Add(r, b) y = MatMul(a, w)",
        {"b": kernel(120), "w": kernel(120, 3)},
        ["ReLU", "Flatten", "BatchNorm", "Dense"],
    ),
    # Joins
    "three summands": ("r = Relu(x) t = Tanh(x) y = Sum(x, r, t)", {}, ["ReLU", "Tanh", "Add"]),
    "rows side by side": (
        "f = Flatten(x) r = Relu(f) c = Concat<axis = -1>(f, r) y = MatMul(c, w)",
        {"w": kernel(240, 3)},
        ["ReLU", "Flatten", "Flatten", "Concat", "Dense"],
    ),
    "channels side by side": ("r = Relu(x) y = Concat<axis = 1>(r, x)", {}, ["ReLU", "Concat"]),
    # Images
    "lrn": ("y = LRN<size = 3, alpha = 0.5, beta = 0.6, bias = 2.0>(x)", {}, ["LocalResponseNorm"]),
    "shuffle": (
        "a = Reshape(x, s) b = Transpose<perm = [0, 2, 1, 3, 4]>(a) y = Reshape(b, t)",
        {"s": ints(0, 2, 2, 6, 5), "t": ints(0, 4, 6, 5)},
        ["ChannelShuffle"],
    ),
    "resize by scales": (
        'y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", '
        'nearest_mode = "floor">(x, , s)',
        {"s": f(1, 1, 2, 3)},
        ["Upsample2D"],
    ),
    "resize by half pixels": ("y = Resize(x, , s)", {"s": f(1, 1, 2, 1)}, ["Upsample2D"]),
    "resize to sizes": ("y = Resize(x, , , s)", {"s": ints(2, 4, 12, 15)}, ["Upsample2D"]),
    # Nothing
    "nothing": ("a = Identity(x) b = Dropout(a) y = Cast<to = 1>(b)", {}, []),
    "constants folded": (
        "a = Constant<value_float = 2.0>() b = Sqrt(a) c = Mul(b, b) d = Sub(c, a) y = Add(x, d)",
        {},
        ["BatchNorm"],
    ),
}


def out_rank(name):
    body = SPELLINGS[name][0]
    rows = ("MatMul", "Gemm", "keepdims = 0", "y = Flatten", "f = Flatten(x) y")
    return "N, C, H, W" if not any(r in body for r in rows) or "y = Mul(u" in body else "N, C"


def spelled(name):
    body, constants, _ = SPELLINGS[name]
    return model(body, out=out_rank(name), **constants)


@needs_onnx
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling(name):
    _, _, layers = SPELLINGS[name]
    network = law_same(from_onnx, spelled(name), input_shape=(6, 5, 4))
    assert layers is None or names(network) == layers


OLD = {
    "clip": (9, "y = Clip<min = 0.0, max = 6.0>(x)", {}, ["Clip"]),
    "pad": (9, "p = Pad<pads = [0,0,1,1,0,0,1,1]>(x) y = Conv(p, w)", {"w": SQUARE}, ["Conv2D"]),
    "upsample": (9, 'y = Upsample<mode = "nearest">(x, s)', {"s": f(1, 1, 2, 2)}, ["Upsample2D"]),
    "resize": (10, "y = Resize(x, s)", {"s": f(1, 1, 2, 2)}, ["Upsample2D"]),
    "softmax": (9, "g = GlobalAveragePool(x) y = Softmax(g)", {}, ["GlobalAvgPool2D", "Softmax"]),
    "unsqueeze": (9, "u = Unsqueeze<axes = [1, 2]>(b) y = Add(x, u)", {"b": kernel(4)}, None),
    "squeeze": (11, "g = GlobalAveragePool(x) y = Squeeze<axes = [3]>(g)", {}, None),
    "reduce mean": (18, "y = ReduceMean(x, a)", {"a": ints(2, 3)}, ["GlobalAvgPool2D"]),
    "hard swish": (14, "y = HardSwish(x)", {}, ["HardSwish"]),
}


@needs_onnx
def test_weights_between_quantize_and_dequantize_are_quantized():
    weight = from_onnx(spelled("quantized and dequantized")).layers[0].weight
    assert isinstance(weight, Quantized)
    assert (weight.num_bits, weight.axis) == (8, 3)
    # QuantizeLinear divides in float32 and rounds half to even.
    scale, zero = f(0.1, 0.2, 0.3, 0.4), np.arange(4)
    codes = np.rint(SQUARE / scale[:, None, None, None]) + zero[:, None, None, None]
    wanted = np.clip(codes, -128, 127).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(weight.codes, wanted)
    np.testing.assert_array_equal(decode(weight), (wanted - zero).astype(F) * scale)


@needs_onnx
@pytest.mark.parametrize("name", [n for n in OLD if n != "squeeze"])
def test_operators_of_other_opsets(name):
    opset, body, constants, layers = OLD[name]
    network = law_same(from_onnx, model(body, "N, 4, 6, 5", opset, **constants))
    assert layers is None or names(network) == layers


@needs_onnx
def test_images_with_their_channels_last():
    """Seen from the Transpose before the first convolution, as TensorFlow's exporter writes it."""
    body = "t = Transpose<perm = [0, 3, 1, 2]>(x) y = Conv(t, w)"
    proto = model(body, "N, 6, 5, 4", w=kernel(3, 4, 2, 2))
    x = RNG.standard_normal((2, 6, 5, 4), F)
    network = from_onnx(proto)
    assert names(network) == ["Conv2D"]
    np.testing.assert_allclose(last(run(proto, x)[0]), network(x), atol=1e-5)


@needs_onnx
def test_a_batch_of_one_in_the_file_is_any_number_of_images():
    body = "r = Reshape(x, s) y = MatMul(r, w)"
    proto = model(body, "1, 4, 6, 5", out="M, K", s=ints(1, 120), w=kernel(120, 3))
    network = law_same(from_onnx, proto, (1, 4, 6, 5))
    assert network(np.zeros((5, 6, 5, 4), F)).shape == (5, 3)


# Wrong implementations ----------------------------------------------------------------------------


def altered(change):
    """The right reader, of a model in which `change(node, constants by name)` was made."""

    def read(proto, **options):
        wrong = onnx.ModelProto.FromString(proto.SerializeToString())
        constants = {c.name: c for c in wrong.graph.initializer}
        for node in wrong.graph.node:
            change(node, constants)
        return from_onnx(wrong, **options)

    return read


def without(kind, name):
    """An attribute that is not read."""

    def change(node, constants):
        kept = [a for a in node.attribute if (node.op_type, a.name) != (kind, name)]
        del node.attribute[:]
        node.attribute.extend(kept)

    return altered(change)


def turned(kind, name):
    """The numbers of an attribute in reverse."""

    def change(node, constants):
        for a in node.attribute:
            if (node.op_type, a.name) == (kind, name):
                a.ints[:] = a.ints[::-1]

    return altered(change)


def untransposed(node, constants):
    """The order of the entries is not followed."""
    if node.op_type == "Transpose":
        node.op_type = "Identity"
        del node.attribute[:]


def shortened(kind, count):
    def change(node, constants):
        if node.op_type == kind:
            del node.input[count:]

    return altered(change)


def pads_turned(node, constants):
    if node.op_type == "Pad":
        pads = constants[node.input[1]]
        array = onnx.numpy_helper.to_array(pads)[[0, 1, 3, 2, 4, 5, 7, 6]]
        pads.CopyFrom(onnx.numpy_helper.from_array(array, pads.name))


PLANTED = {
    "the order of a flatten": ("flattened in another order", altered(untransposed)),
    "padding at the other sides": ("conv, groups and dilation", turned("Conv", "pads")),
    "dilation": ("conv, groups and dilation", turned("Conv", "dilations")),
    "a bias": ("gemm", shortened("Gemm", 2)),
    "alpha": ("gemm", without("Gemm", "alpha")),
    "beta": ("gemm", without("Gemm", "beta")),
    "height and width of padding": ("pad into conv", altered(pads_turned)),
    "groups": ("transposed, groups", turned("ConvTranspose", "dilations")),
    "output padding": (
        "transposed",
        turned("ConvTranspose", "output_padding"),
    ),
    "ceil_mode": ("max pool, ceil", without("MaxPool", "ceil_mode")),
    "padding that counts": (
        "average pool, padding counts",
        without("AveragePool", "count_include_pad"),
    ),
    "epsilon": ("normalized, then scaled", without("BatchNormalization", "epsilon")),
    "a limit": ("clip to tensors", shortened("Clip", 2)),
    "a slope": ("a large slope", without("LeakyRelu", "alpha")),
    "the power": ("lrn", without("LRN", "beta")),
    "axes of a mean": ("reduce mean", without("ReduceMean", "keepdims")),
}


@needs_onnx
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught(name):
    spelling, wrong = PLANTED[name]
    law_same(from_onnx, spelled(spelling), input_shape=(6, 5, 4))
    with pytest.raises((AssertionError, CompressionError)):
        law_same(wrong, spelled(spelling), input_shape=(6, 5, 4))
