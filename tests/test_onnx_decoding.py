"""Compressed ONNX files become plain ones again, with the same outputs."""

import numpy as np
import pytest

import minicompress as mc
from minicompress.interchange.onnx_decoding import save_decoded_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from test_onnx_rewriting import GRAPHS, METHODS, compressed, outputs

from minicompress.interchange.onnx_rewriting import onnx_arrays, save_onnx_arrays
from minicompress.testing.checks import same


def law_back(write, folder, model, arrays, *, exact=True):
    """The weights are the decoded ones, under their names, and no other node is left."""
    onnx.save(model, folder / "original.onnx")
    save_onnx_arrays(folder / "small.onnx", arrays, folder / "original.onnx")
    size = write(folder / "back.onnx", folder / "small.onnx")
    assert size == (folder / "back.onnx").stat().st_size
    back = onnx.load(folder / "back.onnx")
    assert [n.op_type for n in back.graph.node] == [n.op_type for n in model.graph.node]
    found = onnx_arrays(folder / "back.onnx")
    before = onnx_arrays(folder / "original.onnx")
    assert found.keys() == before.keys()
    for name, array in found.items():
        wanted = mc.decode(arrays.get(name, before[name]))
        if exact:
            assert same(array, wanted)
        np.testing.assert_allclose(
            array, wanted, atol=1e-5 * np.abs(wanted[wanted > -np.inf]).max()
        )
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).normal(size=dims).astype(np.float32)
    for a, b in zip(outputs(onnx.load(folder / "small.onnx"), x), outputs(back, x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("opset", [9, 13, 21])
def test_there_and_back(tmp_path, graph, method, opset):
    if opset < 21 and method in ("int4", "int4 in blocks", "int12"):
        opset = 21  # to which it would be converted, with other nodes
    model = GRAPHS[graph](opset)
    onnx.save(model, tmp_path / "original.onnx")
    arrays = compressed(tmp_path / "original.onnx", method)
    law_back(save_decoded_onnx, tmp_path, model, arrays)


def test_factors_there_and_back(tmp_path):
    w = np.random.default_rng(0).normal(size=(16, 3, 3, 3)).astype(np.float32)
    rep = mc.search.parse_method("rank50%+int8")(w).rep
    law_back(save_decoded_onnx, tmp_path, GRAPHS["convolution"](), {"kernel": rep}, exact=False)


def test_a_plain_file_stays(tmp_path):
    law_back(save_decoded_onnx, tmp_path, GRAPHS["lstm"](), {})
    assert onnx.load(tmp_path / "back.onnx") == onnx.load(tmp_path / "original.onnx")


def as_it_was(path, original):
    path.write_bytes(original.read_bytes())
    return path.stat().st_size


@pytest.mark.parametrize("method", ["int8", "16 values"])
def test_the_law_catches(tmp_path, method):
    model = GRAPHS["attention"]()
    onnx.save(model, tmp_path / "original.onnx")
    arrays = compressed(tmp_path / "original.onnx", method)
    with pytest.raises(AssertionError):
        law_back(as_it_was, tmp_path, model, arrays)
