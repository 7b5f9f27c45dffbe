"""ONNX: the laws catch planted faults."""

import numpy as np
import pytest
from onnx_laws import (
    IMAGE,
    MATRIX,
    ROWS,
    kernel,
    law_outputs,
    law_weights,
    needs_onnx,
    onnx,
)
from test_onnx_layers import LAYERS, POINT

from minicompress.compressors.quantization import quantize
from minicompress.interchange.onnx_file import to_onnx
from minicompress.nn.composition import Parallel, Residual, Sequential
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.pointwise import PReLU, ReLU, Tanh
from minicompress.nn.stateless import Concat, Flatten, GlobalAvgPool2D, MaxPool2D


def altered(change):
    """The right graph, then `change(node, constants by name)` on each node."""

    def export(model, shape):
        proto = to_onnx(model, shape)
        constants = {c.name: c for c in proto.graph.initializer}
        for node in proto.graph.node:
            change(node, constants)
        return proto

    return export


def attribute(kind, name, value):
    """An attribute of every node of a kind, set to a function of what it was; None takes it out."""

    def change(node, constants):
        for i, a in reversed(list(enumerate(node.attribute))):
            if node.op_type == kind and a.name == name:
                old = onnx.helper.get_attribute_value(a)
                del node.attribute[i]
                if value is not None:
                    node.attribute.append(onnx.helper.make_attribute(name, value(old)))

    return altered(change)


def without_input(kind, place):
    def change(node, constants):
        if node.op_type == kind:
            del node.input[place]

    return altered(change)


def unturned(node, constants):
    """Flatten of images with their channels first."""
    if node.op_type == "Transpose" and node.output[0].endswith(".last"):
        node.op_type = "Identity"
        del node.attribute[:]


def as_it_came(node, constants):
    """A matrix as (in, out): the same product, until onnxruntime rounds the inputs to 8 bits."""
    if node.op_type == "Gemm":
        del node.attribute[:]
        codes, zero = (constants[f"{node.input[1]}.{part}"] for part in ("codes", "zero_point"))
        assert not zero.dims  # one scale, so that only codes have to be turned
        turned = onnx.numpy_helper.to_array(codes).T
        codes.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(turned), codes.name))


def kernel_spun(node, constants):
    if node.op_type == "Conv" and node.input[1] in constants:
        w = constants[node.input[1]]
        spun = onnx.numpy_helper.to_array(w).transpose(0, 1, 3, 2)
        w.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(spun), w.name))


def renamed(node, old, new):
    if node.op_type == old:
        node.op_type = new


def swapped(node, constants):
    if node.op_type == "Concat":
        node.input[:] = node.input[::-1]


def slope_along_rows(node, constants):
    if node.op_type == "PRelu":
        constants[node.input[1]].dims[:] = (4,)


def nibbles_swapped(node, constants):
    for c in constants.values():
        if node.op_type == "DequantizeLinear" and c.name == node.input[0]:
            c.raw_data = bytes((b >> 4 | b << 4) & 255 for b in c.raw_data)


def law_of(law, *layers, x):
    return lambda export: law(export, Sequential(layers), x)


def of_layer(name):
    layer, x = LAYERS[name]
    return law_of(law_outputs, layer, x=x)


def of_weight(*, x=ROWS, **options):
    matrix = MATRIX[:, [0, 1, 2, 3, 4, 0]]  # square: either axis would do
    return law_of(law_weights, Dense(quantize(matrix, **options).rep), x=x)


def rev(values):
    return list(values)[::-1]


SQUARE = Conv2D(kernel(3, 3, 4, 5), padding=((0, 2), (1, 3)))

FLAT = (Conv2D(kernel(1, 1, 4, 4)), Flatten(), Dense(kernel(7 * 6 * 4, 3)))

WIDE = np.random.default_rng(2)

INT8 = Dense(quantize(WIDE.standard_normal((64, 32), np.float32), num_bits=8).rep)

PLANTED = {
    "flatten with the channels first": (law_of(law_outputs, *FLAT, x=IMAGE), altered(unturned)),
    "padding sides swapped": (of_layer("Conv2D, sides"), attribute("Conv", "pads", rev)),
    "padding of height and width swapped": (
        of_layer("Conv2D, sides"),
        attribute("Conv", "pads", lambda p: [p[1], p[0], p[3], p[2]]),
    ),
    "padding as ONNX does not order it": (
        of_layer("Conv2D, sides"),
        attribute("Conv", "pads", lambda p: [p[0], p[2], p[1], p[3]]),
    ),
    "SAME padding at the top": (
        of_layer("Conv2D, same"),
        attribute("Conv", "pads", lambda p: [p[2], p[3], p[0], p[1]]),
    ),
    "strides swapped": (
        law_of(law_outputs, Conv2D(kernel(3, 3, 4, 5), stride=(1, 2)), GlobalAvgPool2D(), x=IMAGE),
        attribute("Conv", "strides", rev),
    ),
    "dilation ignored": (
        law_of(law_outputs, Conv2D(kernel(2, 2, 4, 5), dilation=2), GlobalAvgPool2D(), x=IMAGE),
        attribute("Conv", "dilations", None),
    ),
    "height and width of the kernel swapped": (
        law_of(law_outputs, SQUARE, x=IMAGE),
        altered(kernel_spun),
    ),
    "the bias of a convolution forgotten": (of_layer("Conv2D"), without_input("Conv", 2)),
    "the bias of a dense layer forgotten": (of_layer("Dense"), without_input("Gemm", 2)),
    "padding counted in a mean": (
        of_layer("AvgPool2D, same"),
        attribute("AveragePool", "count_include_pad", lambda _: 1),
    ),
    "padding not counted in a mean": (
        of_layer("AvgPool2D, padding counts"),
        attribute("AveragePool", "count_include_pad", lambda _: 0),
    ),
    "the padding of a maximum at the other side": (
        of_layer("MaxPool2D, sides"),
        attribute("MaxPool", "pads", lambda p: [p[2], p[3], p[0], p[1]]),
    ),
    "epsilon forgotten": (of_layer("BatchNorm"), attribute("BatchNormalization", "epsilon", None)),
    "the slope forgotten": (of_layer("LeakyReLU"), attribute("LeakyRelu", "alpha", None)),
    "softmax over the wrong axis": (
        of_layer("Softmax of pixels"),
        attribute("Softmax", "axis", lambda _: 1),
    ),
    "the slope along another axis": (
        law_of(law_outputs, MaxPool2D(1), PReLU(kernel(4)), x=IMAGE[:, :4, :4]),
        altered(slope_along_rows),
    ),
    "a product for a sum": (
        lambda export: law_outputs(export, Residual(POINT), IMAGE),
        altered(lambda node, constants: renamed(node, "Add", "Mul")),
    ),
    "side by side along the rows": (
        lambda export: law_outputs(export, Parallel((POINT, ()), Concat()), IMAGE),
        attribute("Concat", "axis", lambda _: 2),
    ),
    "the inputs of a concatenation swapped": (
        lambda export: law_outputs(export, Parallel((POINT, ()), Concat()), IMAGE),
        altered(swapped),
    ),
    "outputs swapped": (
        lambda export: law_outputs(export, Parallel((ReLU(), Tanh()), Concat()), IMAGE),
        altered(swapped),
    ),
    "gates forgotten": (of_layer("SiLU"), altered(lambda n, _: renamed(n, "Sigmoid", "Tanh"))),
    "shuffled the other way": (
        of_layer("ChannelShuffle"),
        attribute("Transpose", "perm", lambda p: [0, 1, 2, 3, 4] if len(p) == 5 else p),
    ),
    "a limit forgotten": (of_layer("Clip"), without_input("Clip", 2)),
    "alpha forgotten": (of_layer("HardSigmoid, options"), attribute("HardSigmoid", "alpha", None)),
    "beta forgotten": (of_layer("LocalResponseNorm"), attribute("LRN", "beta", None)),
    "output padding forgotten": (
        law_of(law_outputs, LAYERS["ConvTranspose2D, sides"][0], GlobalAvgPool2D(), x=IMAGE),
        attribute("ConvTranspose", "output_padding", None),
    ),
    "interpolated": (
        of_layer("Upsample2D"),
        attribute("Resize", "mode", lambda _: "linear"),
    ),
    "the zero point dropped": (
        of_weight(num_bits=8, signed=False, symmetric=False),
        without_input("DequantizeLinear", 2),
    ),
    "scales along the wrong axis": (
        of_weight(num_bits=8, axis=1),
        attribute("DequantizeLinear", "axis", lambda a: 1 - a),
    ),
    "the high half of a byte first": (of_weight(num_bits=4), altered(nibbles_swapped)),
    "a matrix that onnxruntime rounds the inputs for": (
        law_of(law_outputs, INT8, x=WIDE.standard_normal((2, 64), np.float32)),
        altered(as_it_came),
    ),
}


@needs_onnx
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
    law(to_onnx)
