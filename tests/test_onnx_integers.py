"""Integer models in ONNX: the codes of every layer in onnxruntime, one apart at most."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from integer_oracles import BORDERED, Q, chained
from onnx_laws import F, needs_onnx, onnx, onnxruntime, run
from test_integer_programs import integer_models, many

from minicompress.datasets import load_digits
from minicompress.errors import CompressionError
from minicompress.integer.conversion import to_integer
from minicompress.integer.joins import IntegerAdd
from minicompress.integer.model import IntegerModel
from minicompress.integer.stateless import (
    IntegerChannelShuffle,
    IntegerFlatten,
    IntegerMaxPool2D,
    IntegerReLU,
    IntegerTable,
    IntegerUpsample2D,
)
from minicompress.interchange.onnx_file import save_onnx, to_onnx
from minicompress.nn.architectures import digits_cnn, digits_resnet
from minicompress.nn.composition import Parallel, Sequential
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import Network
from minicompress.nn.pointwise import ReLU, Tanh
from minicompress.nn.stateless import Add, AvgPool2D
from minicompress.rewrite.batch_norm import fold_batch_norm

EXACT = (
    IntegerChannelShuffle, IntegerFlatten, IntegerMaxPool2D, IntegerReLU, IntegerTable,
    IntegerUpsample2D,
)  # fmt: skip


def everything(model):
    """The model that gives all its values, each as codes that stand for themselves."""
    values = tuple(range(len(model.layers) + 1))
    network = Network(model.layers, model.network.inputs, values)
    return IntegerModel(network, model.input_shape, model.input_qparams, (Q,) * len(values))


def law_codes(impl, model, x):
    """Each layer in onnxruntime is within one code of ours, run on the runtime's own codes.

    A layer's real value is rounded to the nearest code by both. Scales in float32, sums in float32
    and another way to round ties move it by far less than a code. Returns the share of equal codes.
    """
    codes = run(impl(everything(model)), x)
    values = [value.astype(np.int8) for value in codes]
    wide = x.astype(model.input_qparams.scale.dtype)
    right, equal = model.quantize_input(wide), []
    for i, (value, whole) in enumerate(zip(values, codes, strict=True)):
        assert value.shape == right.shape
        assert (value == whole).all(), "a code is an integer of int8"
        apart = np.abs(value.astype(int) - right)
        assert apart.max(initial=0) <= 1
        if i and isinstance(model.layers[i - 1], EXACT):
            assert not apart.any()
        equal.append(apart == 0)
        if i < len(model.layers):
            right = model.layers[i].forward(*(values[v] for v in model.network.inputs[i]))
    return np.concatenate([part.ravel() for part in equal]).mean()


def inputs_of(model, codes):
    """Real numbers, most of which have these codes, and some beyond the range."""
    q = model.input_qparams
    steps = (codes.astype(np.float64) - int(q.zero_point)) * 1.1
    return (steps * float(q.scale)).astype(F)


@needs_onnx
@given(integer_models(), st.sampled_from([13, 21, 25]))
def test_drawn_programs(case, opset):
    model, codes = case
    assume(model.input_qparams.scale.dtype == F)
    try:
        proto = to_onnx(model, opset=opset)
    except CompressionError as error:  # scales beyond float32 are refused with the layer's name
        if "must be normal numbers of float32" not in str(error):
            raise
        assume(False)
    assert_8_bits_throughout(proto)
    law_codes(lambda m: to_onnx(m, opset=opset), model, inputs_of(model, codes))


def assert_8_bits_throughout(proto):
    """Floats are only at the ends, and between DequantizeLinear and QuantizeLinear."""
    makers = {node.output[0]: node.op_type for node in proto.graph.node}
    constants = {array.name: array.data_type for array in proto.graph.initializer}
    kinds = onnx.TensorProto
    for node in proto.graph.node:
        for name in node.input:
            if constants.get(name) == kinds.FLOAT:
                assert name.endswith(".scale")
                assert node.op_type in ("QuantizeLinear", "DequantizeLinear")
    known = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.value_info
    for value in known:
        if value.type.tensor_type.elem_type == kinds.FLOAT and value.name in makers:
            real = (
                value.name.endswith((".real", ".real.product", ".scales")) or ".read" in value.name
            )
            assert real or ".real." in value.name or makers[value.name] == "DequantizeLinear"


@needs_onnx
def test_a_program_with_all_kinds_of_layers():
    network, x = many()
    model = to_integer(network, x)
    assert_8_bits_throughout(to_onnx(model))
    assert law_codes(to_onnx, model, x.astype(F)) > 0.99


@needs_onnx
@pytest.mark.parametrize("border", [False, True])
@pytest.mark.parametrize("ceil", [False, True])
def test_averages_count_their_padding(border, ceil):
    x = np.random.default_rng(0).random((4, 6, 7, 3), F)
    pool = AvgPool2D(3, 2, padding=1, count_include_pad=border, ceil_mode=ceil)
    assert law_codes(to_onnx, to_integer(Sequential((pool,)), x), x) > 0.99


def optimized(proto, path):
    """The operators that onnxruntime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [node.op_type for node in onnx.load(str(path)).graph.node]


@needs_onnx
def test_digits_resnet_is_fused_to_integers_and_gives_the_same_classes(tmp_path):
    x, _ = load_digits("test")
    network = fold_batch_norm(digits_resnet(np.random.default_rng(0)))
    model = to_integer(network, x[:100])
    size = save_onnx(model, tmp_path / "integers.onnx")
    assert size < 0.6 * save_onnx(network, tmp_path / "floats.onnx", (8, 8, 1))
    proto = onnx.load(str(tmp_path / "integers.onnx"))
    kinds = optimized(proto, tmp_path / "fused.onnx")
    assert kinds.count("QLinearConv") == sum(isinstance(v, Conv2D) for v in network.layers)
    assert kinds.count("QLinearAdd") == sum(isinstance(v, Add) for v in network.layers)
    assert kinds.count("QGemm") == sum(isinstance(v, Dense) for v in network.layers)
    assert set(kinds) == {
        "QuantizeLinear", "QLinearConv", "QLinearAdd", "QLinearAveragePool", "Transpose", "Flatten",
        "QGemm", "DequantizeLinear",
    }  # fmt: skip
    assert law_codes(to_onnx, model, x) > 0.999
    (y,) = run(proto, x)
    right = model(x)
    step = float(model.output_qparams[0].scale)
    assert y.dtype == F
    assert np.abs(y - right).max() <= 2.01 * step  # a code more or less in a layer before
    assert (np.abs(y - right) < step / 2).mean() > 0.99


@needs_onnx
def test_a_chain_within_one_code_of_the_whole_run():
    x, _ = load_digits("test")
    model = to_integer(digits_cnn(np.random.default_rng(0)), x[:100])
    (y,) = run(to_onnx(model, (8, 8, 1)), x)
    steps = np.abs(y - model(x)) / float(model.output_qparams[0].scale)
    assert steps.max() < 1.01
    assert (steps < 0.5).mean() > 0.98


# ---- wrong files


def changed(kind, end, change):
    """Files in which constants of these names are others."""

    def impl(model):
        proto = to_onnx(model)
        found = [a for a in proto.graph.initializer if a.name.endswith(end) and kind in a.name]
        assert found
        for array in found:
            values = onnx.numpy_helper.to_array(array)
            new = np.ascontiguousarray(change(values)).astype(values.dtype)
            array.CopyFrom(onnx.numpy_helper.from_array(new, array.name))
        return proto

    return impl


def bare(model):
    """Without a clamp."""
    proto = to_onnx(model)
    for node in proto.graph.node:
        if node.op_type == "Clip":
            node.op_type = "Identity"
            del node.input[1:]
    return proto


WRONG = {
    "scales of values": changed(".read", ".scale", lambda a: a * 1.5),
    "zero points": changed(".read", ".zero_point", lambda a: a * 0 + 128),
    "zero points of outputs": changed("", "r0.zero_point", lambda a: a + 3),
    "scales of outputs": changed("", "r0.scale", lambda a: a / 1.5),
    "scales of weights": changed(".weight", ".scale", lambda a: a[::-1]),
    "weights": changed(".weight", ".codes", lambda a: a[:, ::-1]),
    "biases": changed(".bias", ".codes", lambda a: a * 0),
    "tables": changed("", ".table", lambda a: np.roll(a, 128)),
    "no clamp": bare,
}


@needs_onnx
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_caught(name):
    rng = np.random.default_rng(0)
    first = Conv2D(rng.standard_normal((3, 3, 2, 4)), rng.standard_normal(4))
    network = Sequential((first, Tanh(), Conv2D(rng.standard_normal((1, 1, 4, 2))), ReLU()))
    x = rng.standard_normal((6, 5, 5, 2))
    model = to_integer(network, x, activation_bits=5)
    law_codes(to_onnx, model, x.astype(F))
    with pytest.raises(AssertionError):
        law_codes(WRONG[name], model, x.astype(F))


# ---- what is refused


@needs_onnx
def test_what_cannot_be_written_is_refused_by_name():
    x, _ = load_digits("test")
    model = to_integer(digits_cnn(np.random.default_rng(0)), x[:10])
    with pytest.raises(
        CompressionError, match=r"input_shape must be .*\(8, 8, 1\), not \(9, 9, 1\)"
    ):
        to_onnx(model, (9, 9, 1))
    with pytest.raises(CompressionError, match="model must be a Network or an IntegerModel"):
        to_onnx(3)
    with pytest.raises(CompressionError, match="input_shape must be a tuple"):
        to_onnx(digits_cnn(np.random.default_rng(0)))
    sums = IntegerAdd((0, 0), multiplier=np.array([2**30, 2**28]), shift=30)
    other = Network((IntegerReLU(0), sums), ((0,), (0, 1)), (2,))
    with pytest.raises(CompressionError, match=r"layer 1 \(IntegerAdd\).*do not fit the scales"):
        to_onnx(IntegerModel(other, (3,), Q, (Q,)))
    far = dataclasses.replace(BORDERED, scales=BORDERED.scales._replace(output=1e39))
    with pytest.raises(CompressionError, match=r"layer 0 \(IntegerConv2D\).*normal numbers"):
        to_onnx(chained([far], (5, 5, 2)))


@needs_onnx
def test_a_sum_of_one_and_of_three():
    x = np.random.default_rng(0).standard_normal((5, 4))
    for count in (1, 3):
        parts = tuple(Dense(np.random.default_rng(k).standard_normal((4, 3))) for k in range(count))
        model = to_integer(Parallel(parts, Add()), x)
        assert law_codes(to_onnx, model, x.astype(F)) > 0.9
