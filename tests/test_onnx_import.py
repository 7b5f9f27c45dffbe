"""ONNX in: every operator and spelling, from small models written here, against onnxruntime."""

import warnings

import numpy as np
import pytest
from onnx_laws import needs_onnx, onnx, run

from minicompress.errors import CompressionError
from minicompress.interchange.onnx_import import PLAIN, READERS, from_onnx, onnx_report

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
    "transposed, a bias added": (
        "t = ConvTranspose<strides = [2, 2]>(x, w) y = Add(t, b)",
        {"w": kernel(4, 3, 2, 2), "b": kernel(1, 3, 1, 1)},
        ["ConvTranspose2D"],
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


# What is refused ----------------------------------------------------------------------------------

REFUSED = {
    "an unknown operator": ("a = Relu(x) y = Erf(a)", {}, r"node 1 '.*' \(Erf\): no layer"),
    "an unknown option": (
        "y = MaxPool<kernel_shape = [2, 2], dilations = [2, 2]>(x)",
        {},
        r"node 0 .*\(MaxPool\): dilations must be",
    ),
    "a computed kernel": ("y = Conv(x, x)", {}, r"\(Conv\): input 1 must be a constant"),
    "padding that nothing adds": (
        "p = Pad(x, s) y = Relu(p)",
        {"s": ints(0, 0, 1, 1, 0, 0, 1, 1)},
        r"node 1 .*\(Relu\): padding can be read by a convolution only",
    ),
    "padding of ones": (
        "p = Pad(x, s, one) y = Conv(p, w)",
        {"s": ints(0, 0, 1, 1, 0, 0, 1, 1), "one": F(1), "w": SQUARE},
        r"\(Pad\): padding must be zeros",
    ),
    "padded channels": (
        "y = Pad(x, s)",
        {"s": ints(0, 1, 0, 0, 0, 0, 0, 0)},
        r"\(Pad\): pads must enlarge the height and the width only",
    ),
    "images in one batch": (
        "y = Reshape(x, s)",
        {"s": ints(-1, 6, 5)},
        r"\(Reshape\): the shape .* must keep one row for each image",
    ),
    "a moved batch": (
        "y = Transpose<perm = [1, 0, 2, 3]>(x)",
        {},
        r"\(Transpose\): perm must keep",
    ),
    "rows of another axis": (
        "y = Softmax<axis = 2>(x)",
        {},
        r"\(Softmax\): axis must be the channels",
    ),
    "a number for each pixel": (
        "y = Mul(x, a)",
        {"a": kernel(4, 6, 5)},
        r"\(Mul\): a constant of shape \(4, 6, 5\) must have one number for each channel",
    ),
    "half a pixel": (
        "y = Resize(x, , s)",
        {"s": f(1, 1, 1.5, 2)},
        r"\(Resize\): scales must be whole",
    ),
    "interpolated": (
        'y = Resize<mode = "linear">(x, , s)',
        {"s": f(1, 1, 2, 2)},
        r"\(Resize\): mode must be 'nearest'",
    ),
    "an order that no layer makes": (
        "t = Transpose<perm = [0, 1, 3, 2]>(x) y = Conv(t, w)",
        {"w": SQUARE},
        r"\(Conv\): it reads a tensor .* no layer makes",
    ),
    "an output in such an order": (
        "y = Transpose<perm = [0, 1, 3, 2]>(x)",
        {},
        r"output 'y': it reads a tensor",
    ),
    "a cycle": ("a = Add(x, y) y = Relu(a)", {}, r"node 0 .*\(Add\): it reads 'y', which no node"),
    "another dtype": ("y = Cast<to = 11>(x)", {}, r"\(Cast\): a tensor must keep its dtype"),
    "nothing of the input": ("y = Identity(a)", {"a": kernel(1, 4, 6, 5)}, "output 'y'"),
    "an output that has no layer": (
        "y, i = MaxPool<kernel_shape = [1, 1]>(x) z = Cast<to = 1>(i)",
        {},
        r"\(MaxPool\): its output 'i' is read",
    ),
    "training": (
        "y = BatchNormalization<training_mode = 1>(x, o, o, o, o)",
        {"o": np.ones(4, F)},
        r"\(BatchNormalization\): training_mode must be 0, not 1",
    ),
}


@needs_onnx
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_layer_is_refused_by_name(name):
    body, constants, message = REFUSED[name]
    proto = model(body, opset=15, **constants)
    with pytest.raises(CompressionError, match=message):
        from_onnx(proto, input_shape=(6, 5, 4))
    report = onnx_report(proto, input_shape=(6, 5, 4))
    assert len(report.problems) >= 1
    assert "problem: " in repr(report)


@needs_onnx
def test_a_report_names_all_that_stops_a_file_once():
    body = "a = Erf(x) b = Relu(a) c = Sin(x) d = Add(b, c) e = Relu(x) y = Add(d, e)"
    report = onnx_report(model(body))
    assert [p.split("(")[1][:3] for p in report.problems] == ["Erf", "Sin"]
    assert (report.opset, report.input_shape) == (13, (6, 5, 4))
    assert report.operators == {"Relu": 2, "Add": 2, "Erf": 1, "Sin": 1}
    with pytest.raises(CompressionError, match=r"\(Erf\).* \(and 1 more: see onnx_report\)"):
        from_onnx(model(body))
    assert onnx_report(model("y = Relu(x)")).problems == ()


@needs_onnx
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"input_shape must be given, \(H, W, C\): input 'x' has the shape \[4, None, 5\]"),
        ((6, 5, 3), "input_shape must fit input 'x'"),
        ((6, 5), "input_shape must fit input 'x'"),
        ((0, 5, 4), r"input_shape\[0\] must be an int of at least 1"),
    ],
)
def test_sizes_that_must_be_known(given, message):
    proto = model("y = Relu(x)", "N, 4, H, 5")
    assert names(from_onnx(proto, input_shape=(6, 5, 4))) == ["ReLU"]
    with pytest.raises(CompressionError, match=message):
        from_onnx(proto, input_shape=given)


@needs_onnx
def test_there_is_one_input():
    proto = model("y = Relu(x)")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("z", 1, [1]))
    with pytest.raises(CompressionError, match=r"one input, not 2: \['x', 'z'\]"):
        from_onnx(proto)
    with pytest.raises(CompressionError, match="must be floats"):
        from_onnx(model("y = Relu(x)", "N, 1, 1, 1, 1"))
    with pytest.raises(CompressionError, match="an opset from 9 to"):
        from_onnx(model("y = Relu(x)", opset=8))


@needs_onnx
def test_files_that_are_not_whole(tmp_path):
    proto = model("y = Conv(x, w)", w=kernel(300, 4, 1, 1))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    assert names(from_onnx(path)) == ["Conv2D"]
    blob = path.read_bytes()
    for wrong in (b"", b"no model at all", blob[:-9], blob[: len(blob) // 2]):
        path.write_bytes(wrong)
        with pytest.raises(CompressionError, match="no whole ONNX file"):
            from_onnx(path)
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "absent.onnx")
    onnx.save(proto, path, save_as_external_data=True, location="data", size_threshold=0)
    assert names(from_onnx(path)) == ["Conv2D"]
    (tmp_path / "data").unlink()
    with pytest.raises(CompressionError, match="tensor name: w"):
        from_onnx(path)


# ONNX's node vectors ------------------------------------------------------------------------------


def vectors():
    if onnx is None:
        return []
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    known = {*READERS, *PLAIN, "Reshape"} - NOTHING
    return [
        case
        for case in cases
        if case.model is not None
        and len(case.model.graph.node) == 1
        and case.model.graph.node[0].op_type in known
        and not case.model.graph.node[0].domain
    ]


NOTHING = {"Cast", "Identity", "Dropout", "Transpose"}


def as_read(case):
    """The model of a vector whose inputs but the first are constants."""
    proto = onnx.ModelProto.FromString(case.model.SerializeToString())
    inputs = case.data_sets[0][0]
    for value, array in list(zip(proto.graph.input, inputs, strict=True))[1:]:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), value.name))
    return proto


@needs_onnx
def test_node_vectors():
    """A vector is read and right, or it is refused."""
    read = {}
    for case in vectors():
        (x, *_), (wanted, *_) = case.data_sets[0]
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or x.ndim < 2:
            continue
        try:
            network = from_onnx(as_read(case))
        except CompressionError:
            continue
        y = network(last(x))
        wanted = last(wanted) if wanted.ndim > 2 else wanted
        np.testing.assert_allclose(y, wanted, rtol=case.rtol, atol=case.atol, err_msg=case.name)
        read.setdefault(case.model.graph.node[0].op_type, []).append(case.name)
    joins = {"Add", "Concat", "Div", "Mul", "Sub", "Sum"}  # of two tensors, or of no channels
    moved = {"Flatten", "Squeeze", "Unsqueeze"}  # to an order that no layer makes
    others = {"PRelu", "Pad", "ReduceMean", "Swish"}  # of sequences, or in a later opset
    assert {*READERS, *PLAIN} - {*read} <= joins | moved | others | NOTHING
    assert sum(map(len, read.values())) >= 72


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
