"""Weights of any ONNX file: read, compressed and put back, for graphs that have no `Network`."""

from functools import partial

import numpy as np
import pytest
from budgets import at_most
from hypothesis import given
from hypothesis import strategies as st

import minicompress as mc
from minicompress.interchange import onnx_rewriting as rewriting
from minicompress.interchange.onnx_rewriting import onnx_arrays, save_onnx_arrays
from minicompress.testing.checks import same
from minicompress.testing.models import reps

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
helper, proto = onnx.helper, onnx.TensorProto

F = np.float32
RNG = np.random.default_rng(5)


def drawn(*shape):
    return RNG.normal(size=shape).astype(F)


def made(nodes, weights, shape, opset=21, *, constants=False, listed=False, rank=None):
    """A ModelProto from "x" to "y"; weights as Constant nodes, or also among the inputs."""
    nodes = [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes]
    tensors = [onnx.numpy_helper.from_array(w, name) for name, w in weights.items()]
    if constants:
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors] + nodes
        tensors = []
    inputs = [helper.make_tensor_value_info("x", proto.FLOAT, shape)]
    if listed:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("y", proto.FLOAT, list("abcd"[: rank or len(shape)]))],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 3 if listed else helper.find_min_ir_version_for(model.opset_import)
    return model


def lstm(opset=21, **options):
    weights = {"W": drawn(1, 20, 6), "R": drawn(1, 20, 5), "B": drawn(1, 40)}
    nodes = [
        ("LSTM", ["x", "W", "R", "B"], ["states", "last"], {"hidden_size": 5}),
        ("Squeeze", ["last"], ["y"], {"axes": [0]} if opset < 13 else {}),
    ]
    return made(nodes, weights, [4, 2, 6], opset, rank=2, **options)


def attention(opset=21, **options):
    """One head of attention with a mask of infinities, then a normalization by hand."""
    mask = np.triu(np.full((7, 7), -np.inf, F), 1)
    weights = {"query": drawn(8, 8), "key": drawn(8, 8), "value": drawn(8, 8), "out.w": drawn(8, 8)}
    weights |= {"out.bias": drawn(8), "mask": mask, "root": np.array(8**0.5, F)}
    nodes = [
        *(("MatMul", ["x", name], [name[0]]) for name in ("query", "key", "value")),
        ("Transpose", ["k"], ["kt"], {"perm": [0, 2, 1]}),
        ("MatMul", ["q", "kt"], ["products"]),
        ("Div", ["products", "root"], ["scores"]),
        ("Add", ["scores", "mask"], ["masked"]),
        ("Softmax", ["masked"], ["share"], {"axis": -1 if opset >= 13 else 2}),
        ("MatMul", ["share", "v"], ["mixed"]),
        ("MatMul", ["mixed", "out.w"], ["flat"]),
        ("Add", ["flat", "out.bias"], ["y"]),
    ]
    return made(nodes, weights, [2, 7, 8], opset, **options)


def convolution(opset=21, **options):
    weights = {"kernel": drawn(16, 3, 3, 3), "bias": drawn(16), "depth": drawn(16, 1, 3, 3)}
    nodes = [
        ("Conv", ["x", "kernel", "bias"], ["a"]),
        ("Conv", ["a", "depth"], ["y"], {"group": 16}),
    ]
    return made(nodes, weights, [1, 3, 8, 8], opset, **options)


GRAPHS = {"lstm": lstm, "attention": attention, "convolution": convolution}


def outputs(model, x, optimized=False):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Otherwise a MatMul with integer weights rounds its input to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not optimized:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


def law_same_as_decoded(save, folder, model, arrays, *, exact=True):
    """The file with representations computes what the file with their decoded arrays computes."""
    onnx.save(model, folder / "original.onnx")
    size = save(folder / "small.onnx", arrays, folder / "original.onnx")
    assert size == (folder / "small.onnx").stat().st_size
    small = onnx.load(folder / "small.onnx")
    onnx.checker.check_model(small, full_check=True)
    plain = onnx.ModelProto.FromString(model.SerializeToString())
    tensors = [
        *plain.graph.initializer,
        *(n.attribute[0].t for n in plain.graph.node if n.op_type == "Constant"),
    ]
    for tensor, name in [(t, t.name) for t in tensors]:
        if name in arrays:
            tensor.CopyFrom(onnx.numpy_helper.from_array(mc.decode(arrays[name]), name))
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).normal(size=dims).astype(F)
    wanted, found = outputs(plain, x), outputs(small, x)
    assert len(wanted) == len(found)
    for a, b in zip(wanted, found, strict=True):
        if exact:
            assert a.tobytes() == b.tobytes()
        # Other sums in another order: some hundred roundings of numbers up to the largest.
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * np.abs(a).max())
    # An optimized graph may multiply by the integers themselves.
    for a, b in zip(wanted, outputs(small, x, optimized=True), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * np.abs(a).max())
    return small


def pruned_codes(w):
    return mc.chain(partial(mc.prune_magnitude, amount=0.5), partial(mc.quantize, num_bits=8))(w)


METHODS = {
    "int8": partial(mc.quantize, num_bits=8),
    "int8 by axis 0": partial(mc.quantize, num_bits=8, axis=0),
    "int8 by the last axis": partial(mc.quantize, num_bits=8, axis=-1),
    "uint8": partial(mc.quantize, num_bits=8, axis=0, signed=False, symmetric=False),
    "int4": partial(mc.quantize, num_bits=4, axis=0),
    "int4 in blocks": partial(mc.quantize, num_bits=4, axis=-1, block_size=4),
    "int12": partial(mc.quantize, num_bits=12, axis=0),
    "16 values": partial(mc.cluster, n_clusters=16),
    "pruned": partial(mc.prune_magnitude, amount=0.5),
    "pruned codes": pruned_codes,
}


def compressed(path, method):
    arrays = {n: a for n, a in onnx_arrays(path).items() if np.isfinite(a).all() and a.ndim >= 2}
    return mc.compress(arrays, {"*": METHODS[method]}).arrays


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21, 23])
def test_compressed_weights_compute_what_decoded_ones_do(tmp_path, graph, method, opset):
    model = GRAPHS[graph](opset)
    onnx.save(model, tmp_path / "original.onnx")
    arrays = compressed(tmp_path / "original.onnx", method)
    law_same_as_decoded(save_onnx_arrays, tmp_path, model, arrays)


@pytest.mark.parametrize("options", [{"constants": True}, {"listed": True}])
@pytest.mark.parametrize("graph", GRAPHS)
def test_wherever_the_weights_stand(tmp_path, graph, options):
    """As nodes, as Paddle writes them; among the inputs, as the first versions had to."""
    model = GRAPHS[graph](11, **options)
    onnx.save(model, tmp_path / "original.onnx")
    small = law_same_as_decoded(
        save_onnx_arrays, tmp_path, model, compressed(tmp_path / "original.onnx", "int8 by axis 0")
    )
    kept = {"x"} if "listed" not in options else {"x", "B", "bias", "out.bias", "mask", "root"}
    assert {value.name for value in small.graph.input} <= kept


def nodes(model, kind):
    return [node for node in model.graph.node if node.op_type == kind]


def test_weights_are_integers_in_the_file(tmp_path):
    def kinds(opset, method):
        model = attention(opset)
        onnx.save(model, tmp_path / "original.onnx")
        arrays = compressed(tmp_path / "original.onnx", method)
        small = law_same_as_decoded(save_onnx_arrays, tmp_path, model, arrays)
        decoding = len(nodes(small, "DequantizeLinear")), len(nodes(small, "Mul"))
        return decoding, {t.data_type for t in small.graph.initializer if t.name == "key.codes"}

    assert kinds(21, "int8 by axis 0") == ((4, 0), {proto.INT8})
    assert kinds(21, "int4 in blocks") == ((4, 0), {proto.INT4})
    assert kinds(13, "int8 by axis 0") == ((4, 0), {proto.INT8})
    assert kinds(13, "int4") == ((4, 0), {proto.INT4})
    assert kinds(11, "int4 in blocks") == ((4, 0), {proto.INT4})
    assert kinds(11, "int8 by axis 0") == ((0, 4), {proto.INT8})
    assert kinds(11, "uint8") == ((0, 4), {proto.UINT8})


def test_what_the_converter_does_not_know_stays_at_its_opset(tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no adapter")

    monkeypatch.setattr("onnx.version_converter.convert_version", refuse)
    for method, kind in (("int4", {proto.INT8}), ("int4 in blocks", set())):
        onnx.save(attention(13), tmp_path / "original.onnx")
        arrays = compressed(tmp_path / "original.onnx", method)
        small = law_same_as_decoded(save_onnx_arrays, tmp_path, attention(13), arrays)
        assert [o.version for o in small.opset_import] == [13]
        assert {t.data_type for t in small.graph.initializer if t.name == "key.codes"} == kind


def test_factors_are_multiplied(tmp_path):
    for opset in (21, 12, 11):
        model = convolution(opset)
        onnx.save(model, tmp_path / "original.onnx")
        kernel = drawn(2, 3, 3, 3)
        rep = mc.LowRank((mc.quantize(drawn(16, 2), axis=0).rep, kernel), "or,rihw->oihw")
        small = law_same_as_decoded(save_onnx_arrays, tmp_path, model, {"kernel": rep}, exact=False)
        assert len(nodes(small, "Einsum")) == 1
    model = attention()
    rep = mc.truncated_svd(drawn(8, 8), rank=2).rep
    small = law_same_as_decoded(save_onnx_arrays, tmp_path, model, {"key": rep}, exact=False)
    assert len(nodes(small, "MatMul")) == len(nodes(model, "MatMul")) + 1


@at_most(60)
@given(st.data())
def test_any_representation_computes_what_it_decodes_to(tmp_path_factory, data):
    shape = data.draw(st.sampled_from([(1, 20, 6), (1, 20, 5)]))
    name = "W" if shape[-1] == 6 else "R"
    rep = data.draw(reps(shape, np.dtype(F)))
    if np.abs(mc.decode(rep)).max() > 1e3:
        return  # what overflows in the LSTM says nothing about weights
    opset = data.draw(st.sampled_from([9, 12, 13, 21]))
    folder = tmp_path_factory.mktemp("drawn")
    law_same_as_decoded(save_onnx_arrays, folder, lstm(opset), {name: rep})


@pytest.mark.parametrize("dtype", ["f2", "f8"])
@pytest.mark.parametrize("opset", [11, 13, 21])
def test_other_floats(tmp_path, dtype, opset):
    """Neither overflow nor a double rounding: what is read back is the decoded array."""
    weights = {"w": RNG.normal(size=(4, 5)).astype(dtype)}
    to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [("Cast", ["w"], ["wide"], {"to": proto.FLOAT}), ("MatMul", ["x", "wide"], ["y"])]
    model = made(nodes, weights, [2, 4], opset)
    assert model.graph.initializer[0].data_type == to
    onnx.save(model, tmp_path / "original.onnx")
    for method in ("int8 by axis 0", "16 values", "int4 in blocks"):
        arrays = compressed(tmp_path / "original.onnx", method)
        assert arrays["w"].dtype if isinstance(arrays["w"], np.ndarray) else True
        law_same_as_decoded(save_onnx_arrays, tmp_path, model, arrays)


def test_what_is_not_named_stays(tmp_path):
    model = attention()
    onnx.save(model, tmp_path / "a.onnx")
    before = onnx_arrays(tmp_path / "a.onnx")
    assert list(before) == [t.name for t in model.graph.initializer]
    assert before["mask"][0, 1] == -np.inf
    save_onnx_arrays(tmp_path / "a.onnx", {"key": 2 * before["key"]}, tmp_path / "a.onnx")
    after = onnx_arrays(tmp_path / "a.onnx")
    assert same(after.pop("key"), mc.decode(2 * before["key"]))
    assert same(after, {name: a for name, a in before.items() if name != "key"})
    again = onnx.load(tmp_path / "a.onnx")
    assert [n.SerializeToString() for n in again.graph.node] == [
        n.SerializeToString() for n in model.graph.node
    ]


def test_names_that_are_taken(tmp_path):
    """Another value is called as the codes would be."""
    weights = {"w": drawn(4, 5), "w.codes": drawn(5, 3), "w.scale": drawn(3, 3)}
    nodes = [
        ("MatMul", ["x", "w"], ["w.zero_point"]),
        ("MatMul", ["w.zero_point", "w.codes"], ["b"]),
        ("MatMul", ["b", "w.scale"], ["y"]),
    ]
    model = made(nodes, weights, [2, 4])
    onnx.save(model, tmp_path / "original.onnx")
    for method in METHODS:
        arrays = compressed(tmp_path / "original.onnx", method)
        law_same_as_decoded(save_onnx_arrays, tmp_path, model, arrays)


def test_data_in_a_file_beside_it(tmp_path):
    model = attention()
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(model, tmp_path / "a.onnx", **options)
    onnx.save(attention(), tmp_path / "b.onnx")
    found = onnx_arrays(tmp_path / "a.onnx")
    assert found["key"].shape == (8, 8)
    save_onnx_arrays(tmp_path / "whole.onnx", {}, tmp_path / "a.onnx")
    (tmp_path / "weights.bin").unlink()
    assert same(onnx_arrays(tmp_path / "whole.onnx"), found)
    with pytest.raises(mc.FileFormatError, match=r"a\.onnx") as caught:
        onnx_arrays(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


def broken_data():
    model = attention()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    return model.SerializeToString()


FILES = {
    "no file": (None, "No such file"),
    "an empty one": (b"", "no whole ONNX file"),
    "another format": (b"mcz\x01" + bytes(100), "no whole ONNX file"),
    "a truncated one": (lstm().SerializeToString()[:-20], "no whole ONNX file"),
    "too few numbers": (broken_data(), "no whole ONNX file|does not fit its shape"),
}


@pytest.mark.parametrize("case", FILES)
def test_what_is_no_onnx_file_is_refused_in_one_line(case, tmp_path):
    blob, why = FILES[case]
    if blob is not None:
        (tmp_path / "a.onnx").write_bytes(blob)
    for act in (onnx_arrays, lambda path: save_onnx_arrays(tmp_path / "new.onnx", {}, path)):
        with pytest.raises(mc.FileFormatError, match=why) as caught:
            act(tmp_path / "a.onnx")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new.onnx").exists()


WRONG = {
    "another name": ({"Key": np.ones((8, 8), F)}, "array 'Key': the graph has no weight"),
    "another shape": ({"key": np.ones((8, 7), F)}, r"array 'key': it must be of shape \(8, 8\)"),
    "another dtype": ({"key": np.ones((8, 8))}, "array 'key': .* float32, not .* float64"),
    "no array": ({"key": "text"}, "array 'key': rep must be"),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_that_do_not_fit_are_refused(case, tmp_path):
    arrays, why = WRONG[case]
    onnx.save(attention(), tmp_path / "a.onnx")
    with pytest.raises(mc.CompressionError, match=why):
        save_onnx_arrays(tmp_path / "b.onnx", arrays, tmp_path / "a.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


def test_integers_are_not_among_the_weights(tmp_path):
    model = made([("Gather", ["w", "i"], ["r"]), ("Add", ["x", "r"], ["y"])],
                 {"w": drawn(4, 5), "i": np.array([1, 2])}, [2, 5])  # fmt: skip
    onnx.save(model, tmp_path / "a.onnx")
    assert list(onnx_arrays(tmp_path / "a.onnx")) == ["w"]
    with pytest.raises(mc.CompressionError, match="only floats can be replaced, not int64"):
        save_onnx_arrays(tmp_path / "b.onnx", {"i": np.array([0, 0])}, tmp_path / "a.onnx")


def test_more_than_2_gb_is_refused(tmp_path, monkeypatch):
    onnx.save(lstm(), tmp_path / "a.onnx")
    size = (tmp_path / "a.onnx").stat().st_size
    monkeypatch.setattr(rewriting, "MAX_BYTES", size)
    save_onnx_arrays(tmp_path / "b.onnx", {}, tmp_path / "a.onnx")
    monkeypatch.setattr(rewriting, "MAX_BYTES", size - 1)
    with pytest.raises(mc.CompressionError, match="2 GB"):
        save_onnx_arrays(tmp_path / "b.onnx", {}, tmp_path / "a.onnx")


# planted: wrong implementations that the law catches ----------------------------------------------


def first_alone(path, arrays, original):
    return save_onnx_arrays(path, dict(list(arrays.items())[:1]), original)


def with_other_scales(path, arrays, original):
    coarse = {n: mc.quantize(mc.decode(a), num_bits=7).rep for n, a in arrays.items()}
    return save_onnx_arrays(path, coarse, original)


@pytest.mark.parametrize("wrong", [first_alone, with_other_scales])
def test_the_law_catches(wrong, tmp_path):
    onnx.save(attention(), tmp_path / "original.onnx")
    arrays = compressed(tmp_path / "original.onnx", "int8")
    with pytest.raises(AssertionError):
        law_same_as_decoded(wrong, tmp_path, onnx.load(tmp_path / "original.onnx"), arrays)
