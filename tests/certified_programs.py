"""Pairs of drawn programs, and their exact values in rational numbers."""

import dataclasses
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

import minicompress as mc
from minicompress.nn.kernels.windows import geometry

exact = np.vectorize(Fraction, otypes=[object])

SMOOTH = (mc.nn.Sigmoid(), mc.nn.Tanh(), mc.nn.SiLU())
ALGEBRAIC = (
    mc.ReLU(),
    mc.nn.LeakyReLU(0.25),
    mc.nn.Clip(-1, 2),
    mc.nn.Clip(0, 6),
    mc.nn.HardSigmoid(0.3, 0.5),
    mc.nn.HardSigmoid(-0.25, 0.1),
    mc.nn.HardSwish(),
    mc.Dropout(0.5),
)
IMAGES = (
    mc.nn.Upsample2D((1, 2)),
    mc.nn.ChannelShuffle(2),
    mc.MaxPool2D(2, 1, padding=1),
    mc.MaxPool2D(2, 2, padding=((0, 1), (1, 0)), ceil_mode=True),
    mc.AvgPool2D(2, 2, ceil_mode=True),
    mc.AvgPool2D(2, 1, "same", count_include_pad=True),
)


def numbers(draw, dtype, *shape, most=6, extreme=False):
    """Thirds; or times a power of two, down to the subnormal numbers and up to overflow."""
    entries = [draw(st.integers(-most, most)) / 3 for _ in range(int(np.prod(shape)))]
    info, scale = np.finfo(dtype), 0
    if extreme:
        least = info.minexp - info.nmant
        scale = draw(st.sampled_from([0, 0, 0, 3, least, least // 2, 10, info.maxexp - 3]))
    with np.errstate(all="ignore"):
        array = np.ldexp(np.array(entries).reshape(shape), scale).astype(dtype)
    return np.clip(array, -info.max, info.max)


@st.composite
def program_pairs(draw, dtype=np.float64, smooth=False, steps=5, extreme=False):
    """f, a g of the same form with other weights, and an input."""

    def some(*shape, most=6):
        return numbers(draw, dtype, *shape, most=most, extreme=extreme)

    shape = draw(st.sampled_from([(3,), (2, 3, 2)]))
    shapes, layers, inputs = [shape], [], []

    def put(layer, *reads):
        shapes.append(layer.output_shape(*(shapes[v] for v in reads)))
        layers.append(layer)
        inputs.append(reads)
        return len(layers)

    for _ in range(draw(st.integers(1, steps))):
        value = draw(st.integers(max(0, len(layers) - 2), len(layers)))
        same = [v for v, s in enumerate(shapes) if s == shapes[value]]
        other = draw(st.sampled_from(same))
        here = shapes[value]
        kinds = ["bend", "bend", "own", "norm", "prelu", "add", "multiply", "concat"]
        if len(here) == 3:
            kinds += ["image", "image", "gate"]
        kind = draw(st.sampled_from(kinds))
        if kind == "bend":
            put(draw(st.sampled_from(ALGEBRAIC + SMOOTH if smooth else ALGEBRAIC)), value)
        elif kind == "own" and len(here) == 1:
            put(mc.Dense(some(here[0], 2), some(2)), value)
        elif kind == "own" and draw(st.booleans()):
            kernel = some(2, 1, here[2] // 2, 2)
            put(mc.Conv2D(kernel, padding="same", groups=2), value)
        elif kind == "own":
            kernel, bias = some(2, 2, here[2] // 2, 2), some(2)
            options = {"stride": draw(st.sampled_from([1, (1, 2)])), "groups": 2}
            put(mc.nn.ConvTranspose2D(kernel, bias, padding=((1, 0), (0, 1)), **options), value)
        elif kind == "norm":
            arrays = [some(here[-1]) for _ in range(3)]
            put(mc.BatchNorm(*arrays, np.full(here[-1], 3.0, dtype), epsilon=1.0), value)
        elif kind == "prelu":
            put(mc.nn.PReLU(some(here[-1])), value)
        elif kind == "add":
            put(mc.Add(), *[value, other, value][: draw(st.integers(1, 3))])
        elif kind == "multiply":
            put(mc.Multiply(), value, other)
        elif kind == "concat":
            put(mc.Concat(), value, other)
        elif kind == "gate":
            pooled = put(mc.GlobalAvgPool2D(keep_axes=True), value)
            gate = put(draw(st.sampled_from(ALGEBRAIC)), pooled)
            put(mc.Multiply(), *draw(st.permutations([value, gate])))
        elif min(here[:2]) > 1:
            put(draw(st.sampled_from(IMAGES)), value)
    read = {v for reads in inputs for v in reads}
    ends = [v for v in range(len(shapes)) if v not in read]
    flat = [put(mc.Flatten(), v) if len(shapes[v]) == 3 else v for v in ends]
    joined = put(mc.Concat(), *flat)
    put(mc.Dense(some(shapes[joined][0], 2, most=3)), joined)
    f = mc.Network(tuple(layers), tuple(inputs), (len(layers),))
    size = draw(st.sampled_from([0.0, 0.125, 1.0]))
    g = moved(f, size, lambda shape: numbers(draw, np.float64, *shape, most=3))
    return f, g, some(*shape)


def moved(f, size, step):
    """The network with every weight moved by a size times ``step(shape)``; a variance stays."""
    layers = []
    for layer in f.layers:
        arrays = {}
        for name, v in layer.parameters().items():
            if name != "variance":
                top = np.finfo(v.dtype).max
                with np.errstate(all="ignore"):
                    arrays[name] = np.clip(v + size * step(v.shape), -top, top).astype(v.dtype)
        layers.append(dataclasses.replace(layer, **arrays) if arrays else layer)
    return mc.Network(tuple(layers), f.inputs, f.outputs)


def rational(model, x):
    """The output of real arithmetic for rows of floats."""
    values = [exact(x.astype(np.float64))]
    for layer, reads in zip(model.layers, model.inputs, strict=True):
        values.append(rational_layer(layer, *(values[v] for v in reads)))
    return values[model.outputs[0]]


def rational_layer(layer, *xs):
    x = xs[0]
    zero, one = Fraction(0), Fraction(1)
    numbers = {n: exact(v.astype(np.float64)) for n, v in layer.parameters().items()}
    match layer:
        case mc.Dense():
            return x @ numbers["weight"] + numbers.get("bias", zero)
        case mc.Conv2D() | mc.nn.ConvTranspose2D():
            return rational_conv(layer, x, numbers["weight"], numbers.get("bias", zero))
        case mc.Flatten():
            return x.reshape(len(x), -1)
        case mc.Dropout():
            return x
        case mc.Add():
            return sum(xs[1:], x)
        case mc.Multiply():
            return xs[0] * xs[1]
        case mc.Concat():
            return np.concatenate(xs, -1)
        case mc.ReLU():
            return np.maximum(x, zero)
        case mc.nn.LeakyReLU():
            return np.maximum(x, x * Fraction(layer.negative_slope))
        case mc.nn.PReLU():
            return np.maximum(x, zero) + numbers["slope"] * np.minimum(x, zero)
        case mc.nn.Clip():
            return np.minimum(np.maximum(x, Fraction(layer.low)), Fraction(layer.high))
        case mc.nn.HardSigmoid():
            line = x * Fraction(layer.alpha) + Fraction(layer.beta)
            return np.minimum(np.maximum(line, zero), one)
        case mc.nn.HardSwish():
            return x * np.minimum(np.maximum(x / 6 + Fraction(1, 2), zero), one)
        case mc.BatchNorm():  # variance + epsilon is 4
            return numbers["scale"] * (x - numbers["mean"]) / 2 + numbers["offset"]
        case mc.nn.Upsample2D():
            return x.repeat(layer.factor[0], 1).repeat(layer.factor[1], 2)
        case mc.nn.ChannelShuffle():
            split = x.reshape(*x.shape[:3], layer.groups, -1)
            return split.swapaxes(-1, -2).reshape(x.shape)
        case mc.GlobalAvgPool2D():
            return x.sum((1, 2), keepdims=layer.keep_axes) / (x.shape[1] * x.shape[2])
        case mc.MaxPool2D() | mc.AvgPool2D():
            return rational_pool(layer, x)
    raise AssertionError(layer)


def rational_pool(layer, x):
    n, h, w, c = x.shape
    g = layer.geometry((h, w))
    stride = layer.window if layer.stride is None else layer.stride
    inside = geometry((h, w), layer.window, stride, layer.padding).pads
    y = np.empty((n, *g.output, c), object)
    for i, j in np.ndindex(*g.output):
        top, left = i * g.stride[0] - g.pads[0][0], j * g.stride[1] - g.pads[1][0]
        rows, columns = (
            slice(max(a, 0), a + k) for a, k in zip((top, left), g.kernel, strict=True)
        )
        window = x[:, rows, columns].reshape(n, -1, c)
        if isinstance(layer, mc.MaxPool2D):
            y[:, i, j] = window.max(1)
            continue
        count = window.shape[1]
        if layer.count_include_pad:
            ends = [
                min(a + k, size + pads[1]) - max(a, -pads[0])
                for a, k, size, pads in zip((top, left), g.kernel, (h, w), inside, strict=True)
            ]
            count = ends[0] * ends[1]
        y[:, i, j] = window.sum(1) / count
    return y


def rational_conv(layer, x, weight, bias):
    """By the definition: what every tap adds, on a large empty image that is then cut."""
    kh, kw, inputs, outputs = weight.shape
    h, w = x.shape[1:3]
    backward = isinstance(layer, mc.nn.ConvTranspose2D)
    g = layer.geometry((h, w))
    (oh, ow), g = g if backward else (g.output, g)
    y = np.full((len(x), oh, ow, outputs), Fraction(0), object) + bias
    size = outputs // layer.groups
    for i, j, p, q in np.ndindex(*((h, w) if backward else (oh, ow)), kh, kw):
        far = (
            i * g.stride[0] + p * g.dilation[0] - g.pads[0][0],
            j * g.stride[1] + q * g.dilation[1] - g.pads[1][0],
        )
        if min(far) < 0 or far[0] >= (oh if backward else h) or far[1] >= (ow if backward else w):
            continue
        read, written = ((i, j), far) if backward else (far, (i, j))
        for o in range(outputs):
            first = o // size * inputs
            pixel = x[:, read[0], read[1], first : first + inputs]
            y[:, written[0], written[1], o] += pixel @ weight[p, q, :, o]
    return y
