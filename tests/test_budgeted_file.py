"""A file of somebody's network in so many bytes."""

import os

import numpy as np
import pytest

import minicompress as mc
from minicompress.cli import main
from minicompress.experiments.budgeted_file import searched_methods
from minicompress.search.methods import parse_method

X = np.random.default_rng(1).normal(size=(12, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget")
    network = mc.digits_cnn(np.random.default_rng(0))
    mc.save(network, folder / "a.mcz")
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", network(X).argmax(1))
    return folder


def run(capsys, *words):
    status = main([str(w) for w in words])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


@pytest.mark.parametrize("labels", [False, True])
def test_a_network_in_so_many_bytes(folder, capsys, labels):
    given = ["--labels", folder / "y.npy"] if labels else []
    words = ["compress", folder / "a.mcz", "--out", folder / "b.mcz", "--max-bytes", "20%"]
    status, printed = run(capsys, *words, "--calibration", folder / "x.npy", *given)
    assert status == 0, printed
    size = os.path.getsize(folder / "b.mcz")
    assert size <= 0.2 * os.path.getsize(folder / "a.mcz")
    assert "Outputs of 12 inputs" in printed
    # At least as good as the best single method that keeps the budget.
    original, small = mc.load(folder / "a.mcz"), mc.load(folder / "b.mcz")
    if not labels:
        plan = dict.fromkeys(mc.search.weights(original), parse_method("int5"))
        uniform = mc.compress(original, plan).model
        assert len(mc.storage.dumps(uniform)) <= 0.2 * os.path.getsize(folder / "a.mcz")
        near, far = (np.mean((f(X) - original(X)) ** 2) for f in (small, uniform))
        assert near <= far


def test_an_onnx_file_in_so_many_bytes(folder, capsys):
    pytest.importorskip("onnx")
    mc.interchange.save_onnx(mc.load(folder / "a.mcz"), folder / "a.onnx", (8, 8, 1))
    status, printed = run(capsys, "compress", folder / "a.onnx", "--out", folder / "b.onnx",
                          "--max-bytes", "25%", "--calibration", folder / "x.npy")  # fmt: skip
    assert status == 0, printed
    assert os.path.getsize(folder / "b.onnx") <= 0.25 * os.path.getsize(folder / "a.onnx")
    assert "int8" in printed
    assert "int4" in printed


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--max-bytes 1%", "cannot be kept"),
        ("--max-bytes much", "max_bytes must be a number of bytes or like '10%'"),
        ("--method int8 --labels y.npy", "--labels Y.npy goes with --max-bytes"),
        ("--method int8 --max-bytes 10%", "give one of"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(folder, capsys, monkeypatch, words, why):
    monkeypatch.chdir(folder)
    status, printed = run(
        capsys, *f"compress a.mcz --out no.mcz --calibration x.npy {words}".split()
    )
    assert status == 2
    assert why in printed
    assert printed.count("\n") == 1
    assert not (folder / "no.mcz").exists()


def test_inputs_are_needed(folder, capsys):
    words = ["compress", folder / "a.mcz", "--out", folder / "no.mcz", "--max-bytes", "10%"]
    status, printed = run(capsys, *words)
    assert (status, "--max-bytes needs --calibration X.npy" in printed) == (2, True)
    with pytest.raises(mc.CompressionError, match="will hold arrays alone"):
        searched_methods(str(folder / "a.mcz"), "b.npz", "10%", X)
