"""The command on files that somebody brings: what it prints and writes, and what it refuses."""

import json
import re

import numpy as np
import pytest

import minicompress as mc
from minicompress.cli import main
from minicompress.experiments.compressing import compress_file, output_change, read_plan
from minicompress.interchange import from_onnx, load_tensors, save_tensors
from minicompress.storage import load, load_arrays, save, save_arrays
from minicompress.testing.checks import same

RNG = np.random.default_rng(4)
ARRAYS = {
    "layers.0.weight": RNG.normal(size=(32, 16)).astype(np.float32),
    "layers.0.bias": RNG.normal(size=16).astype(np.float32),
    "layers.1.weight": RNG.normal(size=(16, 8, 3, 3)).astype(np.float32),
    "step": np.array(1000),
}
FILES = ("npz", "safetensors", "mcz")


def installed(ending):
    return pytest.importorskip({"safetensors": "safetensors", "onnx": "onnx"}.get(ending, "numpy"))


def write(path, arrays=ARRAYS):
    installed(path.suffix[1:])
    (save_arrays if path.suffix == ".mcz" else save_tensors)(path, arrays)


def read(path):
    return load_arrays(path) if path.suffix == ".mcz" else load_tensors(path)


def run(capsys, *arguments):
    """What the command prints; it has to end well."""
    status = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert printed.err == ""
    return printed.out


def refused(capsys, *arguments):
    """The one line that it says instead."""
    assert main([str(a) for a in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"minicompress: error: [^\n]+\n", printed.err)
    return printed.err


@pytest.mark.parametrize("source", FILES)
@pytest.mark.parametrize("target", FILES)
def test_from_any_file_into_any_file(tmp_path, capsys, source, target):
    installed(target)
    file, out = tmp_path / f"a.{source}", tmp_path / f"b.{target}"
    write(file)
    printed = run(capsys, "compress", file, "--out", out, "--method", "int8")
    found = read(out)
    assert set(found) == set(ARRAYS)
    quantize = mc.search.parse_method("int8")
    for name, array in ARRAYS.items():
        wanted = quantize(array).rep if array.ndim >= 2 else array
        assert same(mc.decode(found[name]), mc.decode(wanted))
        assert same(found[name], wanted) or target != "mcz"
    assert f"{out}: {out.stat().st_size:,} bytes" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({file.name, out.name})


def test_the_table_says_what_was_done(tmp_path, capsys):
    write(tmp_path / "a.npz")
    printed = run(capsys, "compress", tmp_path / "a.npz", "--out", tmp_path / "b.mcz",
                  "--method", "prune50+int8")  # fmt: skip
    table = printed.split("\n\n")[0].splitlines()
    assert re.split(r"\s{2,}", table[0]) == [
        "array", "shape", "method", "bytes", "times smaller", "bound", "error"]  # fmt: skip
    assert [line.split()[0] for line in table[2:]] == [
        "layers.0.weight", "layers.1.weight", "2", "total"]  # fmt: skip
    first = re.split(r"\s{2,}", table[2])
    rep, cert = mc.search.parse_method("prune50+int8")(ARRAYS["layers.0.weight"])
    norm = np.linalg.norm(ARRAYS["layers.0.weight"].astype(float))
    size = mc.storage_bits(rep) // 8
    assert first[1:] == ["32 x 16", "prune50+int8", f"{size:,}", f"{2048 / size:.2f}",
                         f"{cert.bound / norm:.3%}", f"{cert.measured / norm:.3%}"]  # fmt: skip


def test_a_plan_and_what_its_methods_do_not_fit(tmp_path, capsys):
    file, out, plan = tmp_path / "a.npz", tmp_path / "b.mcz", tmp_path / "plan.json"
    write(file, ARRAYS | {"mask": np.array([[0, -np.inf]], np.float32)})
    plan.write_text(json.dumps({"*.1.*": "cluster4", "layers.0.bias": "int4", "*": "rank50%"}))
    printed = run(capsys, "compress", file, "--out", out, "--plan", plan)
    found = load_arrays(out)
    assert [type(found[name]) for name in found] == [
        mc.LowRank, mc.Quantized, mc.Clustered, np.ndarray, np.ndarray]  # fmt: skip
    assert "  mask: weight must be finite, but entry (0, 1) is -inf" in printed
    plan.write_text(json.dumps({"mask": "int8"}))
    assert "array 'mask': weight must be finite" in refused(
        capsys, "compress", file, "--out", tmp_path / "c.mcz", "--plan", plan
    )
    assert not (tmp_path / "c.mcz").exists()


def test_keep_takes_arrays_out(tmp_path, capsys):
    write(tmp_path / "a.npz")
    (tmp_path / "plan.json").write_text('{"layers.0.weight": "keep", "*": "int4"}')
    run(capsys, "compress", tmp_path / "a.npz", "--out", tmp_path / "b.mcz",
        "--plan", tmp_path / "plan.json")  # fmt: skip
    assert same(load_arrays(tmp_path / "b.mcz")["layers.0.weight"], ARRAYS["layers.0.weight"])


@pytest.mark.parametrize("target", FILES)
def test_decompress_is_the_way_back(tmp_path, capsys, target):
    installed(target)
    write(tmp_path / "a.npz")
    run(capsys, "compress", tmp_path / "a.npz", "--out", tmp_path / "b.mcz", "--method", "int8")
    out = tmp_path / f"c.{target}"
    run(capsys, "decompress", tmp_path / "b.mcz", "--out", out)
    small = load_arrays(tmp_path / "b.mcz")
    assert same(dict(sorted(read(out).items())),
                {name: mc.decode(small[name]) for name in sorted(small)})  # fmt: skip


def test_summary_of_a_file(tmp_path, capsys):
    write(tmp_path / "a.npz")
    run(capsys, "compress", tmp_path / "a.npz", "--out", tmp_path / "b.mcz", "--method", "int8")
    printed = run(capsys, "summary", tmp_path / "b.mcz")
    assert printed.strip() == repr(mc.summary(load_arrays(tmp_path / "b.mcz")))


# networks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    return mc.digits_cnn(np.random.default_rng(0))


X = RNG.normal(size=(6, 8, 8, 1)).astype(np.float32)


def test_a_network_keeps_its_form(tmp_path, capsys, network):
    save(network, tmp_path / "a.mcz")
    np.save(tmp_path / "x.npy", X)
    printed = run(capsys, "compress", tmp_path / "a.mcz", "--out", tmp_path / "b.mcz",
                  "--method", "int4", "--calibration", tmp_path / "x.npy")  # fmt: skip
    small = load(tmp_path / "b.mcz")
    assert [type(layer) for layer in small.layers] == [type(layer) for layer in network.layers]
    change = output_change(network(X), small(X))
    assert change.inputs == 6
    assert f"relative error {change.error:.2%}, {change.agreement:.2%} keep" in printed
    assert 0 < change.error < 0.5
    assert "0.weight " in printed


def test_evaluate_takes_inputs_and_classes(tmp_path, capsys, network):
    save(network, tmp_path / "a.mcz")
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", network(X).argmax(1))
    given = ["--calibration", tmp_path / "x.npy", "--labels", tmp_path / "y.npy"]
    assert "0 of 6 test images wrong" in run(capsys, "evaluate", tmp_path / "a.mcz", *given)
    assert "go together" in refused(capsys, "evaluate", tmp_path / "a.mcz", *given[:2])


def test_how_outputs_change_is_measured_over_all_of_them():
    a = np.array([[3.0, 4.0], [0.0, 1.0]])
    assert output_change(a, a) == (2, 0.0, 1.0)
    assert output_change(a, a[:, ::-1]).agreement == 0.0
    assert output_change((a, 0 * a), (a, a)).error == pytest.approx(1.0)
    assert output_change(a[:, :1], a[:, :1]).agreement is None
    with pytest.raises(mc.CompressionError, match="finite"):
        output_change(a, a * np.nan)


# ONNX ---------------------------------------------------------------------------------------------


def test_an_onnx_file_comes_back_smaller(tmp_path, capsys, network):
    installed("onnx")
    mc.interchange.save_onnx(network, tmp_path / "a.onnx", (8, 8, 1), opset=13)
    np.save(tmp_path / "x.npy", X)
    printed = run(capsys, "compress", tmp_path / "a.onnx", "--out", tmp_path / "b.onnx",
                  "--method", "int8", "--calibration", tmp_path / "x.npy")  # fmt: skip
    size = (tmp_path / "b.onnx").stat().st_size
    assert size < 0.3 * (tmp_path / "a.onnx").stat().st_size
    small = from_onnx(tmp_path / "b.onnx")
    assert f"relative error {output_change(network(X), small(X)).error:.2%}" in printed
    run(capsys, "decompress", tmp_path / "b.onnx", "--out", tmp_path / "c.onnx")
    back = from_onnx(tmp_path / "c.onnx")
    np.testing.assert_allclose(back(X), small(X), atol=1e-5)
    run(capsys, "compress", tmp_path / "a.onnx", "--out", tmp_path / "d.mcz", "--method", "int8")
    assert isinstance(load(tmp_path / "d.mcz"), mc.Network)
    run(capsys, "decompress", tmp_path / "d.mcz", "--out", tmp_path / "e.npz")
    labels = tmp_path / "y.npy"
    np.save(labels, network(X).argmax(1))
    assert "test images wrong" in run(
        capsys, "evaluate", tmp_path / "b.onnx", "--calibration", tmp_path / "x.npy",
        "--labels", labels)  # fmt: skip


def test_an_onnx_file_without_a_network(tmp_path, capsys):
    """An LSTM has no layer here: its arrays are compressed all the same."""
    onnx = installed("onnx")
    pytest.importorskip("onnxruntime")
    from test_onnx_rewriting import lstm, outputs

    file = tmp_path / "a.onnx"
    onnx.save(lstm(), file)
    run(capsys, "compress", file, "--out", tmp_path / "b.onnx", "--method", "int8")
    x = RNG.normal(size=(4, 2, 6)).astype(np.float32)
    before, after = (outputs(onnx.load(tmp_path / f"{n}.onnx"), x)[0] for n in "ab")
    assert 0 < np.abs(before - after).max() < 0.1
    printed = run(capsys, "compress", file, "--out", tmp_path / "c.mcz", "--method", "int8")
    assert "holds the arrays, not a network:" in " ".join(printed.split())
    assert "LSTM" in printed
    run(capsys, "decompress", tmp_path / "c.mcz", "--out", tmp_path / "d.onnx",
        "--original", file)  # fmt: skip
    assert outputs(onnx.load(tmp_path / "d.onnx"), x)[0].tobytes() == after.tobytes()
    np.save(tmp_path / "x.npy", x)
    error = refused(capsys, "compress", file, "--out", tmp_path / "e.onnx", "--method", "int8",
                    "--calibration", tmp_path / "x.npy")  # fmt: skip
    assert "LSTM" in error
    assert not (tmp_path / "e.onnx").exists()


# what is refused ----------------------------------------------------------------------------------


def good(tmp_path):
    write(tmp_path / "a.npz")
    save(mc.digits_cnn(np.random.default_rng(0)), tmp_path / "net.mcz")
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "wide.npy", X[:, :7])
    np.save(tmp_path / "int.npy", np.arange(3))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-5])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    (tmp_path / "cut.mcz").write_bytes((tmp_path / "net.mcz").read_bytes()[:-40])
    (tmp_path / "a.onnx").write_bytes(b"no onnx")
    for name, text in {
        "list": "[1]",
        "none": "{}",
        "broken": "{",
        "twice": '{"*": "int8", "*": "int4"}',
        "number": '{"*": 8}',
        "slip": '{"a": "keep", "*": "int99"}',
        "absent": '{"Layers.*": "int8"}',
    }.items():
        (tmp_path / f"{name}.json").write_text(text)


BAD = {
    "no method": ("a.npz --out b.mcz", "give one of --method METHOD, --plan PLAN.json and"),
    "both": ("a.npz --out b.mcz --method int8 --plan none.json", "give one of"),
    "a slip": ("a.npz --out b.mcz --method int1", "--method: 'int1' of method 'int1': 2 to 16"),
    "no file": ("no.npz --out b.mcz --method int8", "no.npz cannot be read: No such file"),
    "no .mcz file": ("no.mcz --out b.mcz --method int8", "no.mcz cannot be read: No such file"),
    "an ending": ("a.bin --out b.mcz --method int8", "must end in .onnx, .npz, .safetensors"),
    "no ending": ("a.npz --out b --method int8", "must end in .onnx"),
    "no folder": ("a.npz --out no/b.mcz --method int8", "cannot write"),
    "no graph": ("a.npz --out b.onnx --method int8", "has no graph that"),
    "a cut .npz": ("cut.npz --out b.mcz --method int8", "no whole .npz file"),
    "a cut .mcz": ("cut.mcz --out b.mcz --method int8", "damaged"),
    "not ONNX": ("a.onnx --out b.onnx --method int8", "no whole ONNX file"),
    "a list as plan": ("a.npz --out b.mcz --plan list.json", "must be an object like"),
    "an empty plan": ("a.npz --out b.mcz --plan none.json", "must be an object like"),
    "no plan": ("a.npz --out b.mcz --plan no.json", "cannot be read: No such file"),
    "no JSON": ("a.npz --out b.mcz --plan broken.json", "is no JSON: Expecting property name"),
    "a name twice": ("a.npz --out b.mcz --plan twice.json", "has '*' twice"),
    "a number": ("a.npz --out b.mcz --plan number.json", "'*' must have a method, not 8"),
    "a slip in a plan": ("a.npz --out b.mcz --plan slip.json", "the method of '*': 'int99'"),
    "a name that is not there": (
        "a.npz --out b.mcz --plan absent.json", "'Layers.*' of the plan fits no array"),
    "inputs for arrays": (
        "a.npz --out b.mcz --method int8 --calibration x.npy", "holds arrays, not a network"),
    "inputs for arrays that come out": (
        "net.mcz --out b.npz --method int8 --calibration x.npy", "needs a network"),
    "inputs of another shape": (
        "net.mcz --out b.mcz --method int8 --calibration wide.npy",
        "--calibration of shape (6, 7, 8, 1): layer 5 (Dense)"),
    "inputs that are integers": (
        "net.mcz --out b.mcz --method int8 --calibration int.npy", "must be of dtype float16"),
    "cut inputs": (
        "net.mcz --out b.mcz --method int8 --calibration cut.npy", "no whole .npy file"),
    "empty inputs": (
        "net.mcz --out b.mcz --method int8 --calibration empty.npy", "no whole .npy file"),
    "no inputs": (
        "net.mcz --out b.mcz --method int8 --calibration no.npy", "cannot be read: No such file"),
    "a network without a shape": ("net.mcz --out b.onnx --method int8", "give --calibration"),
    "an unknown option": ("a.npz --out b.mcz --methods int8", "--methods"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(case, tmp_path, capsys, monkeypatch):
    installed("onnx")
    good(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    words, why = BAD[case]
    assert why in refused(capsys, "compress", *words.split())
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("decompress a.npz --out b.onnx", "has no graph"),
        ("decompress no.mcz --out b.npz", "cannot be read"),
        ("summary a.bin", "must end in"),
        ("summary cut.mcz", "damaged"),
        ("evaluate a.npz", "holds arrays, not a network"),
    ],
)
def test_other_commands_refuse_in_one_line_too(words, why, tmp_path, capsys, monkeypatch):
    good(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert why in refused(capsys, *words.split())
    assert not (tmp_path / "b.onnx").exists()


def test_progress_is_told_and_an_output_can_be_its_input(tmp_path):
    write(tmp_path / "a.mcz")
    told = []
    file = str(tmp_path / "a.mcz")
    found = compress_file(file, file, {"*": "int8"}, progress=lambda *a: told.append(a))
    assert told[-1] == ("compressing", 1.0)
    assert found.out_bytes == (tmp_path / "a.mcz").stat().st_size < found.file_bytes


def test_plans_are_read_in_order(tmp_path):
    (tmp_path / "p.json").write_text('{"b": "int8", "a": "keep"}')
    assert list(read_plan(str(tmp_path / "p.json"))) == ["b", "a"]
