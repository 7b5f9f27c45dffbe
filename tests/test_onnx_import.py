"""ONNX in: what is refused, files that are not whole, and ONNX's node vectors."""

import contextlib
import doctest
import importlib
import warnings
from pathlib import Path

import numpy as np
import pytest
from budgets import at_most
from hypothesis import given
from hypothesis import strategies as st
from onnx_laws import needs_onnx, onnx, run
from test_onnx_spellings import (
    SPELLINGS,
    SQUARE,
    F,
    f,
    ints,
    kernel,
    last,
    model,
    names,
    spelled,
)

from minicompress.errors import CompressionError
from minicompress.interchange.onnx_import import PLAIN, READERS, from_onnx, onnx_report

with contextlib.suppress(ImportError):
    from google.protobuf.message import DecodeError

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
    "training by a dropout": (
        "y = Dropout(x, ratio, t)",
        {"ratio": F(0.5), "t": np.array(True)},
        r"\(Dropout\): training_mode must be false",
    ),
    "a row of pixels": (
        "g = GlobalAveragePool(x) r = Reshape(g, s) y = Conv(r, w)",
        {"s": ints(-1, 1, 4, 1), "w": kernel(1, 1, 1, 1)},
        r"\(Conv\): it reads a tensor .* no layer makes",
    ),
    "noise": (
        "r = RandomNormal<shape = [4, 1, 1]>() y = Add(x, r)",
        {},
        r"\(RandomNormal\): no layer draws random numbers",
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
def test_a_normalization_of_five_outputs_trains_before_opset_14():
    body = "y, m, v, sm, sv = BatchNormalization(x, o, o, o, o)"
    with pytest.raises(CompressionError, match=r"\(BatchNormalization\): it must have one output"):
        from_onnx(model(body, opset=9, o=np.ones(4, F)))


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
    with pytest.raises(
        CompressionError, match=r"path must be a path or an onnx.ModelProto, not int"
    ):
        from_onnx(3)
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "absent.onnx")
    onnx.save(proto, path, save_as_external_data=True, location="data", size_threshold=0)
    assert names(from_onnx(path)) == ["Conv2D"]
    (tmp_path / "data").unlink()
    with pytest.raises(CompressionError, match="tensor name: w"):
        from_onnx(path)


@needs_onnx
@at_most(100)
@given(st.sampled_from(sorted(SPELLINGS)), st.data())
def test_an_altered_file_is_read_or_refused(name, data):
    blob = bytearray(spelled(name).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        proto = onnx.ModelProto.FromString(bytes(blob))
        with contextlib.suppress(CompressionError):
            from_onnx(proto, input_shape=(6, 5, 4))


# Networks that ship inside onnx -----------------------------------------------------------------


def with_weights(name):
    """One of onnx's networks, with random weights in place of its constant ones; its logits."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    proto = onnx.load(folder / f"light_{name}.onnx")
    graph, rng = proto.graph, np.random.default_rng(0)
    shapes = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    nodes = list(graph.node)[:-1]  # without the softmax, which hides differences
    assert graph.node[-1].op_type == "Softmax"
    del graph.node[:]
    for node in nodes:
        if node.op_type != "ConstantOfShape":
            graph.node.append(node)
            continue
        shape = shapes[node.input[0]]
        weight = rng.standard_normal(shape, F) * F((2 / max(np.prod(shape[1:]), 1)) ** 0.5)
        weight = weight if len(shape) > 1 else rng.random(shape, F) + F(0.5)
        graph.initializer.append(onnx.numpy_helper.from_array(weight, node.output[0]))
    proto.ir_version = 8  # in which constants need not be inputs
    inputs = [value for value in graph.input if value.name not in shapes]
    del graph.input[:]
    graph.input.extend(inputs)
    graph.output[0].name = nodes[-1].output[0]
    return proto


SHIPPED = {
    "squeezenet": {"Conv2D", "ReLU", "MaxPool2D", "Concat", "GlobalAvgPool2D"},
    "shufflenet": {
        "Conv2D",
        "BatchNorm",
        "ReLU",
        "MaxPool2D",
        "AvgPool2D",
        "ChannelShuffle",
        "Add",
        "Concat",
        "Flatten",
        "Dense",
    },
}


@needs_onnx
@pytest.mark.parametrize("name", SHIPPED)
def test_networks_that_ship_inside_onnx(name):
    proto = with_weights(name)
    network = from_onnx(proto)
    assert set(names(network)) == SHIPPED[name]
    x = np.random.default_rng(1).standard_normal((1, 3, 224, 224), F)
    (wanted,) = run(proto, x)
    wanted = last(wanted) if wanted.ndim > 2 else wanted
    assert np.abs(network(last(x)) - wanted).max() <= 1e-4 * np.abs(wanted).max()


@needs_onnx
def test_the_examples_in_the_docstrings():
    module = importlib.import_module("minicompress.interchange.onnx_import")
    runner = doctest.DocTestRunner()
    for function in (from_onnx, onnx_report):
        text = function.__doc__.replace("  # doctest: +SKIP", "")
        examples = doctest.DocTestParser().get_doctest(text, dict(vars(module)), "it", None, 0)
        assert runner.run(examples) == (0, len(examples.examples))


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
