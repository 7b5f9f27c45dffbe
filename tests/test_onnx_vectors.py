"""ONNX's node vectors: each layer gives the outputs that the standard lists for its operator."""

import math
import warnings

import numpy as np
import pytest

from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, ConvTranspose2D
from minicompress.nn.normalization import BatchNorm, normalize_batch
from minicompress.nn.pointwise import (
    Clip,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from minicompress.nn.stateless import (
    Add,
    AvgPool2D,
    Concat,
    Flatten,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
    Multiply,
    Upsample2D,
)

pytest.importorskip("onnx")
from onnx import helper
from onnx.backend.test.case.node import collect_testcases

PADS = {"NOTSET": None, "VALID": "valid", "SAME_UPPER": "same"}


def padding(options):
    word = PADS.get(options.get("auto_pad", b"NOTSET").decode(), "other")
    if word == "other":
        pytest.skip("padding at the start")
    top, left, bottom, right = options.get("pads", [0, 0, 0, 0])
    return word or ((top, bottom), (left, right))


def windows(options):
    return {"stride": tuple(options.get("strides", (1, 1))), "padding": padding(options)}


def pool(kind, options):
    if options.get("dilations", [1, 1]) != [1, 1]:
        pytest.skip("dilated windows")
    more = {"ceil_mode": bool(options.get("ceil_mode", 0))}
    if kind is AvgPool2D:
        more["count_include_pad"] = bool(options.get("count_include_pad", 0))
    return kind(tuple(options["kernel_shape"]), **windows(options), **more)


def transposed(options, x, weight, bias=None):
    groups = options.get("group", 1)
    kernels = [w.transpose(2, 3, 0, 1) for w in np.split(weight, groups)]
    more = {
        "stride": tuple(options.get("strides", (1, 1))),
        "dilation": tuple(options.get("dilations", (1, 1))),
        "groups": groups,
        "output_padding": tuple(options.get("output_padding", (0, 0))),
    }
    if "output_shape" in options:
        full = ConvTranspose2D(np.concatenate(kernels, -1), **more).output_shape(
            (*x.shape[2:], x.shape[1])
        )
        totals = [a - b for a, b in zip(full[:2], options["output_shape"][-2:], strict=True)]
        if min(totals) < 0:  # rows are added instead
            more["output_padding"] = tuple(max(-total, 0) for total in totals)
            more["padding"] = "valid"
        else:
            more["padding"] = tuple((total - total // 2, total // 2) for total in totals)
    else:
        more["padding"] = padding(options)
    return ConvTranspose2D(np.concatenate(kernels, -1), bias, **more)


def layer_of(op, options, arrays, named):
    """The layer that a node stands for, and how many of its inputs are values."""
    x = arrays[0]
    match op:
        case "Conv":
            kernel = arrays[1]
            more = {"dilation": tuple(options.get("dilations", (1, 1)))}
            return Conv2D.from_oihw(kernel, *arrays[2:], **windows(options), **more), 1
        case "ConvTranspose":
            return transposed(options, *arrays), 1
        case "MaxPool":
            return pool(MaxPool2D, options), 1
        case "AveragePool":
            return pool(AvgPool2D, options), 1
        case "GlobalAveragePool":
            return GlobalAvgPool2D(keep_axes=True), 1
        case "BatchNormalization":
            if options.get("training_mode"):
                pytest.skip("updates running statistics: see test_batch_statistics")
            return BatchNorm(*arrays[1:], epsilon=options.get("epsilon", 1e-5)), 1
        case "Clip":
            low, high = (named.get(name) for name in ("min", "max"))
            low = -math.inf if low is None or low.ndim else float(low)
            high = math.inf if high is None or high.ndim else float(high)
            if low > high:
                pytest.skip("min greater than max is refused")
            return Clip(low, high), 1
        case "PRelu":
            if arrays[1].shape[:-1] not in ((), (1,) * (arrays[1].ndim - 1)):
                pytest.skip("a slope for every entry")
            return PReLU(arrays[1].reshape(-1)), 1
        case "LRN":
            return LocalResponseNorm(**options), 1
        case "Softmax":
            if options.get("axis", -1) not in (-1, x.ndim - 1):
                pytest.skip("another axis")
            return Softmax(), 1
        case "Flatten":
            if options.get("axis", 1) not in (1, 1 - x.ndim):
                pytest.skip("another axis")
            return Flatten(), 1
        case "Concat":
            if options["axis"] not in (1, 1 - x.ndim) or x.ndim not in (2, 4):
                pytest.skip("another axis")
            return Concat(), 2
        case "Add" | "Sum":
            return Add(), len(arrays)
        case "Mul":
            return Multiply(), 2
        case "Upsample":
            return Upsample2D(tuple(int(s) for s in arrays[1][2:])), 1
        case "LeakyRelu":
            return LeakyReLU(options.get("alpha", 0.01)), 1
        case "HardSigmoid":
            return HardSigmoid(**options), 1
    simple = {"Relu": ReLU, "Sigmoid": Sigmoid, "Tanh": Tanh, "HardSwish": HardSwish, "Swish": SiLU}
    return simple[op](), 1


OPERATORS = [
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Flatten",
    "GlobalAveragePool",
    "HardSigmoid",
    "HardSwish",
    "LRN",
    "LeakyRelu",
    "MaxPool",
    "Mul",
    "PRelu",
    "Relu",
    "Sigmoid",
    "Softmax",
    "Sum",
    "Swish",
    "Tanh",
    "Upsample",
]


def cases():
    """All vectors; onnx computes them when its modules are imported, with some overflows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return collect_testcases(None)


def vectors():
    for case in cases():
        nodes = [] if case.model is None else case.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type in OPERATORS:
            yield pytest.param(case, id=case.name)


def last(array):
    """Channels last, where there are two or more axes of pixels."""
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


@pytest.mark.parametrize("case", list(vectors()))
def test_node(case):
    (node,) = case.model.graph.node
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    given, expected = case.data_sets[0]
    if given[0].dtype.kind != "f" or len(node.output) > 1:
        pytest.skip("another dtype, or indices as well")
    images = ("Conv", "ConvTranspose", "LRN", "Upsample", "BatchNormalization")
    dims = (2, 4) if node.op_type == "BatchNormalization" else (4,)
    if (node.op_type in images or "Pool" in node.op_type) and given[0].ndim not in dims:
        pytest.skip("not of two dimensions")
    named = dict(zip(filter(None, node.input), given, strict=True))
    layer, count = layer_of(node.op_type, options, given, named)
    assert isinstance(layer, Layer)
    flat = node.op_type in ("Flatten", "Softmax")
    values = [x if flat else last(x) for x in given[:count]]
    if len({x.shape for x in values}) > 1 and node.op_type in ("Add", "Mul"):
        pytest.skip("a broadcast that is no gate")
    y = layer.forward(*values)
    assert y.shape[1:] == layer.output_shape(*(x.shape[1:] for x in values))
    wanted = expected[0] if flat else last(expected[0])
    np.testing.assert_allclose(y, wanted, rtol=case.rtol, atol=case.atol)


def test_batch_statistics():
    found = 0
    for case in cases():
        if not case.name.startswith("test_batchnorm"):
            continue
        node = case.model.graph.node[0]
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "BatchNormalization" and options.get("training_mode"):
            (x, scale, offset, *_), (y, *_) = case.data_sets[0]
            got = normalize_batch(last(x), scale, offset, options.get("epsilon", 1e-5))
            np.testing.assert_allclose(got, last(y), rtol=case.rtol, atol=case.atol)
            found += 1
    assert found == 2
