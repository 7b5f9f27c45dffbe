"""Out as ONNX and in again: the same outputs, and the same weights in the same form."""

import numpy as np
import pytest
from budgets import at_most
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx_laws import HALF, F, kernel, needs_onnx, onnx, reference

from minicompress.compressors.clustering import cluster
from minicompress.compressors.quantization import quantize
from minicompress.interchange.onnx_file import to_onnx
from minicompress.interchange.onnx_import import from_onnx
from minicompress.nn.architectures import digits_resnet, lenet5, mobilenet_v2, resnet20
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import value_shapes
from minicompress.nn.parameters import as_tuple, parameters
from minicompress.nn.pointwise import Dropout
from minicompress.nn.stateless import Flatten
from minicompress.representation import Clustered, Quantized, decode, dtype_of
from minicompress.testing.models import models


def law_round(read, model, x, opset=21):
    """The network that comes back computes the same, and has the same output shapes."""
    back = read(to_onnx(model, x.shape[1:], opset=opset))
    got = as_tuple(back(x))
    for y, (a, far), (_, near) in zip(got, reference(model, x), reference(back, x), strict=True):
        assert y.shape == a.shape
        assert (np.abs(y - a) <= far + near).all()
    return back


IMAGE = np.random.default_rng(1).integers(-2, 3, (2, 5, 4, 2)).astype(F)


@needs_onnx
@at_most(60)
@given(models(max_layers=6), st.sampled_from([13, 14, 18, 21, 25]))
def test_drawn_programs(model, opset):
    assume({dtype_of(r) for p in parameters(model) for r in p.values()} <= {F})
    law_round(from_onnx, model, IMAGE, opset)


def channels_first(proto):
    """The same model as other exporters have it: images with their channels first."""
    helper, graph = onnx.helper, proto.graph
    for node in graph.node:
        node.input[:] = ["last" if name == "input" else name for name in node.input]
    head = helper.make_node("Transpose", ["input"], ["last"], perm=[0, 2, 3, 1])
    nodes, ends = [head, *graph.node], []
    for value in graph.output:
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
        if len(sizes) == 3:
            perm, sizes = [0, 3, 1, 2], [sizes[2], *sizes[:2]]
            nodes.append(helper.make_node("Transpose", [value.name], [f"{value.name}f"], perm=perm))
        else:
            nodes.append(helper.make_node("Identity", [value.name], [f"{value.name}f"]))
        ends.append(helper.make_tensor_value_info(f"{value.name}f", 1, ["N", *sizes]))
    start = helper.make_tensor_value_info("input", 1, ["N", IMAGE.shape[3], *IMAGE.shape[1:3]])
    made = helper.make_graph(nodes, "g", [start], ends, initializer=graph.initializer)
    model = helper.make_model(made, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


@needs_onnx
@at_most(60)
@given(models(max_layers=6), st.sampled_from([13, 18, 21]))
def test_drawn_programs_with_their_channels_first(model, opset):
    assume({dtype_of(r) for p in parameters(model) for r in p.values()} <= {F})
    law_round(lambda proto: from_onnx(channels_first(proto)), model, IMAGE, opset)


NETWORKS = {
    "LeNet-5": (lenet5, (28, 28, 1)),
    "digits ResNet": (digits_resnet, (8, 8, 1)),
    "ResNet-20": (resnet20, (32, 32, 3)),
    "MobileNetV2": (
        lambda rng: mobilenet_v2(rng, width=0.1, resolution=32, classes=3),
        (32, 32, 3),
    ),
}


@needs_onnx
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_layer_by_layer(name):
    make, shape = NETWORKS[name]
    model = make(np.random.default_rng(0))
    back = from_onnx(to_onnx(model, shape))
    kept = [layer for layer in model.layers if not isinstance(layer, Dropout)]
    assert [type(layer) for layer in back.layers] == [type(layer) for layer in kept]
    assert len(value_shapes(back, shape)) == len(back.layers) + 1
    for old, new in zip(kept, back.layers, strict=True):
        assert new.parameters().keys() == old.parameters().keys()
        for field, rep in old.parameters().items():
            np.testing.assert_array_equal(decode(new.parameters()[field]), decode(rep))


FORMS = {
    "int8": ({"num_bits": 8, "axis": -1}, 8),
    "int4": ({"num_bits": 4}, 4),
    "uint8": ({"num_bits": 8, "signed": False, "symmetric": False}, 8),
    "int4 in blocks": ({"num_bits": 4, "axis": -2, "block_size": 2}, 4),
    "int16": ({"num_bits": 16}, 16),
}


@needs_onnx
@pytest.mark.parametrize("name", FORMS)
def test_quantized_weights_stay_quantized(name):
    """Also those behind a flatten, whose rows are put in another order and back."""
    options, bits = FORMS[name]
    image = quantize(kernel(3, 3, 4, 6), **options).rep
    rows = quantize(kernel(24, 5), **options).rep
    model = Sequential((Conv2D(image, kernel(6)), Flatten(), Dense(rows)))
    back = from_onnx(to_onnx(model, (4, 4, 4)))
    for old, new in ((image, back.layers[0].weight), (rows, back.layers[2].weight)):
        assert isinstance(new, Quantized)
        assert (new.num_bits, new.signed, new.block_size) == (bits, old.signed, old.block_size)
        np.testing.assert_array_equal(decode(new), decode(old))
        np.testing.assert_array_equal(new.codes, old.codes)


@needs_onnx
def test_a_codebook_stays_a_codebook():
    rep = cluster(kernel(6, 5), n_clusters=4).rep
    weight = from_onnx(to_onnx(Sequential((Dense(rep),)), (6,))).layers[0].weight
    assert isinstance(weight, Clustered)
    np.testing.assert_array_equal(decode(weight), decode(rep))


@needs_onnx
def test_float16_comes_back_as_float16():
    model = Sequential((Dense(kernel(3, 2).astype(HALF)),))
    back = from_onnx(to_onnx(model, (3,)))
    assert dtype_of(back.layers[0].weight) == HALF


# Wrong implementations ----------------------------------------------------------------------------


def without_zero_points(proto):
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear":
            del node.input[2:]
    return from_onnx(proto)


def taken_as_it_is(proto):
    proto.producer_name = "another"
    return from_onnx(proto)


ROWS = Sequential((Flatten(), Dense(kernel(40, 3))))
CODES = Sequential(
    (Flatten(), Dense(quantize(kernel(40, 3), num_bits=8, signed=False, symmetric=False).rep))
)
PLANTED = {
    "the input taken with its channels first": (ROWS, taken_as_it_is),
    "zero points dropped": (CODES, without_zero_points),
}


@needs_onnx
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught(name):
    model, wrong = PLANTED[name]
    law_round(from_onnx, model, IMAGE)
    with pytest.raises((AssertionError, ValueError)):
        law_round(wrong, model, IMAGE)
