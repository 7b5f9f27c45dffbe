"""Every example runs, prints its table, and draws where there is something to draw with."""

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from noise_mnist import write_noise_mnist

import minicompress as mc
from minicompress.search.searching import search_plan
from minicompress.testing.checks import check_compressor

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted(file.stem for file in (ROOT / "examples").glob("[0-9]*.py"))
HEADS = {
    "01_train": "epoch    loss  training  validation",
    "02_low_rank_curve": "rank  params   bound   error  accuracy",
    "03_prune_and_retrain": "pruned  non-zero   bound   error  accuracy  retrained",
    "04_quantize_bit_by_bit": "bits  bytes   bound   error  accuracy    bytes",
    "05_hybrids": "method                      bytes   bound   error  accuracy",
    "07_three_bounds": "radius     norms     trace  zonotope     found",
    "08_deep_compression": "step        bytes  times smaller  accuracy",
    "09_search": "budget  bytes    loss  accuracy  plan, layer by layer",
    "11_residual": "step                params      MACs    bytes  accuracy",
    "12_bring_your_own": "weights               bytes  error  same class  test images",
    "10_early_exit": "threshold  accuracy       MACs   share",
}
FEWER = {
    "07_three_bounds": {"RADII": (1 / 256, 1 / 64, 1 / 16), "IMAGES": 5},
    "11_residual": {"EPOCHS": 2, "IMAGES": 1},
    "12_bring_your_own": {"EPOCHS": 3, "CALIBRATION": 64},
    "09_search": {
        "search_plan": lambda *args, **options: search_plan(*args, **options | {"rounds": 1}),
        "CHOICES": {f"int{b}": partial(mc.quantize, num_bits=b) for b in (2, 4)},
    },
}
# How the methods of lesson 5 begin.
KINDS = ("int4", "prun", "shar", "half")
OTHERS = {
    "00_in_one_file",  # test_in_one_file.py
    "06_your_own_compressor",
    "accuracy_against_bytes",
    "against_others",
    "attack_certificates",
    "c_sizes",
    "deep_compression",
    "from_keras_and_torch",
    "fuzz_container",
    "how_tight",
    "search_on_a_cluster",
}


def load(name):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("example", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs an example in this process and a folder of its own; returns what it prints.

    Keywords exchange constants of the script: for fewer images or epochs.
    """
    monkeypatch.chdir(tmp_path)

    def call(name, *arguments, **constants):
        monkeypatch.syspath_prepend((ROOT / "examples" / name).parent)
        module = load(name)
        vars(module).update(constants)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        module.main(*arguments[: len(inspect.signature(module.main).parameters)])
        return capsys.readouterr().out

    return call


def table(printed, name):
    """The rows under the head: for each its numbers, without percent signs and commas."""
    lines = printed.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(HEADS[name])) + 1
    rows = []
    for line in lines[start : lines.index("", start)]:
        # Behind two spaces a cell begins: what is no number is the name of a method.
        cells = [c.strip().replace(",", "") for c in line.split("  ")]
        numbers = [c.removeprefix("1/").rstrip("%") for c in cells]
        rows.append([float(c) for c in numbers if re.fullmatch(r"-?[\d.]+", c)])
    return rows


def test_every_example_is_tested():
    found = {file.stem for file in (ROOT / "examples").glob("[!_]*.py")}
    assert found == set(HEADS) | OTHERS


def test_lessons_are_numbered_and_short():
    assert [name[:3] for name in LESSONS] == [f"{n:02}_" for n in range(13)]
    readme = (ROOT / "examples" / "README.md").read_text()
    for name in LESSONS:
        source = (ROOT / "examples" / f"{name}.py").read_text()
        assert len(source.splitlines()) <= (200 if name == "00_in_one_file" else 120)
        assert f"python examples/{name}.py" in source
        assert f"({name}.py)" in readme
    for figure in (ROOT / "examples" / "figures").iterdir():
        assert f"examples/figures/{figure.name}" in readme, "the command that draws it"
        assert figure.stat().st_size < 60_000


@pytest.mark.parametrize("name", HEADS)
def test_example(name, run, tmp_path):
    if name == "12_bring_your_own":
        pytest.importorskip("onnx")
    printed = run(name, **FEWER.get(name, {}))
    rows = table(printed, name)
    assert len(rows) >= 3
    assert len({len(row) for row in rows}) == 1
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert "no figure" in printed

    # What each lesson says is to be seen must be there to be seen.
    if name == "01_train":
        assert rows[0][1] > 4 * rows[-1][1]  # loss
        assert rows[1][3] > 95
        assert rows[-1][2] > rows[-1][3]
        assert "the same seed, the same file: True" in printed
    if name == "02_low_rank_curve":
        assert all(abs(bound - error) <= 0.001 for _, _, bound, error, *_ in rows)
        assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)
        assert rows[-1][-1] > 97
    if name == "03_prune_and_retrain":
        assert all(abs(bound - error) <= 0.001 for _, _, bound, error, *_ in rows)
        assert all(after > before for amount, *_, before, after in rows if amount >= 80)
    if name == "04_quantize_bit_by_bit":
        for _, *halves in rows:
            for _, bound, error, _ in (halves[:4], halves[4:]):
                assert error < bound
        assert rows[0][4] > 97
        assert all(row[6] < row[2] for row in rows)  # a scale for each channel has smaller bounds
    if name == "05_hybrids":
        lines = {line.split("  ")[0]: line for line in printed.splitlines()}
        nested = "Sparse(Clustered(Quantized(8 bits)))"
        assert lines["prune 30%, share 16, int8"].endswith(nested)
        figures = dict(zip((line for line in lines if line[:4] in KINDS), rows, strict=True))
        assert all(error <= bound for _, bound, error, _ in rows)
        pruned, both = figures["prune 30%"], figures["prune 30%, int8"]
        assert both[0] < pruned[0] / 3
        assert both[2] < 1.01 * pruned[2]
    if name == "07_three_bounds":
        for _, norms, trace, zonotope, found in rows:
            assert norms > trace > zonotope > found
    if name == "08_deep_compression":
        size = (tmp_path / "08_deep_compression.mcz").stat().st_size
        assert rows[-1][0] == size < 39720 / 10
        assert rows[-1][2] > 95
    if name == "09_search":
        assert all(size <= budget for budget, size, *_ in rows)
        assert [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)  # loss
    if name == "10_early_exit":
        macs, thresholds = [row[2] for row in rows], [row[0] for row in rows]
        assert macs == sorted(macs, reverse=True)
        assert thresholds == sorted(thresholds, reverse=True)
        assert macs[-1] < 0.2 * macs[0]
    if name == "12_bring_your_own":
        assert "no problems" in printed
        (whole, same), int8, int4, compensated = rows[0][:2], rows[1], rows[2], rows[3]
        assert same == 0
        assert int4[0] == compensated[0] < int8[0] < whole / 3
        assert int8[1] < compensated[1] < int4[1] / 2


def test_a_lesson_says_which_package_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    lesson = load("12_bring_your_own")
    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda name: None)
        lesson.main(tmp_path / "figure.png")
    assert "pip install '.[onnx]'" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_somebody_elses_file_is_made_smaller(run, tmp_path):
    pytest.importorskip("onnx")
    path = tmp_path / "theirs.onnx"
    mc.interchange.save_onnx(mc.digits_cnn(np.random.default_rng(0)), path, (8, 8, 1))
    before = path.read_bytes()
    printed = run("12_bring_your_own", tmp_path / "figure.png", path, CALIBRATION=8)
    assert "2 Conv" in printed
    assert path.read_bytes() == before


def test_networks_are_compared(run, tmp_path):
    for package in ("onnx", "onnxruntime", "matplotlib"):
        pytest.importorskip(package)
    rng = np.random.default_rng(0)
    layers = mc.Conv2D(rng.standard_normal((3, 3, 3, 16), np.float32), stride=4), mc.ReLU()
    ends = mc.GlobalAvgPool2D(), mc.Dense(rng.standard_normal((16, 3), np.float32)), mc.Softmax()
    made = mc.interchange.to_onnx(mc.Sequential((*layers, *ends)), (16, 24, 3))
    made.producer_name = "another"
    first = made.graph.node[0]  # images come with the channels first, as in the six networks
    assert first.op_type == "Transpose"
    made.graph.node.remove(first)
    made.graph.node[0].input[0] = "input"
    for dim, size in zip(
        made.graph.input[0].type.tensor_type.shape.dim, (1, 3, 16, 24), strict=True
    ):
        dim.ClearField("dim_param")
        dim.dim_value = size
    (tmp_path / "small.onnx").write_bytes(made.SerializeToString())
    module = load("networks/compare")
    networks = {"small.onnx": module.Input((16, 24, 3), crops=2, lines=1)}
    printed = run("networks/compare", tmp_path, tmp_path / "out.txt", NETWORKS=networks)
    lines = printed.splitlines()
    assert (tmp_path / "out.txt").read_text() == printed
    assert "5 layers" in printed
    for name in module.METHODS:
        assert sum(line.startswith(f"{name}  ") for line in lines) == 1
    assert float(lines[4].split()[2]) < 1e-5
    kept = (ROOT / "examples" / "networks" / "results.txt").read_text()
    assert all(name in kept for name in module.NETWORKS)


def test_the_first_figure_is_drawn_from_what_the_command_writes(run, tmp_path):
    command = [sys.executable, "-m", "minicompress", "--epochs", "1", "--json", "comparison.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    run("accuracy_against_bytes", tmp_path / "comparison.json")
    if importlib.util.find_spec("matplotlib"):
        figure = tmp_path / "accuracy_against_bytes.png"
        assert figure.read_bytes().startswith(b"\x89PNG")


def test_an_example_is_a_script_and_does_without_matplotlib(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "matplotlib.py").write_text("raise ImportError('hidden by a test')\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "04_quantize_bit_by_bit.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (hidden, ROOT)))},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "no figure: matplotlib is not installed" in done.stdout
    assert not list(tmp_path.glob("*.png"))


def test_a_figure_is_left_where_it_is_told(run, tmp_path):
    if not importlib.util.find_spec("matplotlib"):
        pytest.skip("nothing to draw with")
    run("01_train", "figure.png", EPOCHS=1)
    assert (tmp_path / "figure.png").exists()
    assert not (tmp_path / "01_train.png").exists()


def test_no_bound_is_below_its_error_and_none_is_only_large(run):
    printed = run("how_tight", 25)
    for line in printed.splitlines()[1:]:
        name, (largest, median, norm) = line[:36].strip(), line[36:].split()
        assert 0 < float(largest) <= 1
        # The laws of the SVD and of pruning are equalities, and half a step is nearly reached.
        if norm == "fro" and name.startswith(("truncated_svd", "prune_")):
            assert float(median) > 0.99
        if norm == "max" and name.startswith("quantize, int"):
            assert float(median) > 0.5


def test_a_compressor_of_ones_own_is_caught_and_mended(run):
    printed = run("06_your_own_compressor", check_compressor=partial(check_compressor, seconds=1.0))
    lines = [line for line in printed.splitlines() if line]
    assert lines[0].startswith("first_try: law '")
    assert lines[1].startswith("second_try: law '")
    assert lines[2] == "mended: keeps every law"


def test_the_cluster_says_what_is_not_there(run):
    printed = run("search_on_a_cluster")
    if not importlib.util.find_spec("dask"):
        assert printed == "dask is not installed: python -m pip install distributed\n"


def test_the_comparison_with_others_says_what_is_not_there(run):
    printed = run("against_others")
    assert len(printed.splitlines()) >= 3


def test_deep_compression_ends_in_a_file(run, tmp_path):
    write_noise_mnist(tmp_path)
    printed = run("deep_compression", "--network", "lenet_300_100", "--folder", tmp_path)
    size = (tmp_path / "deep_compression.mcz").stat().st_size
    ratio = 1_066_440 / size  # 266,610 parameters
    last = printed.splitlines()[-1]
    assert last.startswith(f"deep_compression.mcz: {size:,} bytes, {ratio:.1f} times less")
    assert ratio > 30
    ours, papers = (part.splitlines() for part in printed.split("\n\n")[1:3])
    kept = [line.split()[1] for line in ours if line[:1].isdigit()]
    assert kept == ["7.0", "9.0", "26.0"]
    assert [line.split()[1] for line in papers if line[:1].isdigit()] == ["8", "9", "26"]


def test_a_record_is_trained_taken_up_again_and_summed_up(run, tmp_path, capsys):
    write_noise_mnist(tmp_path)
    out = tmp_path / "runs"
    where = ("--folder", tmp_path, "--out", out)
    with pytest.raises(SystemExit):
        run("records/train", "lenet5", *where)
    assert (
        "lenet5 goes on from lenet5_accurate: run that to its end first" in capsys.readouterr().err
    )
    few = {
        "lenet5_accurate": load("records/train")
        .RUNS["lenet5_accurate"]
        ._replace(dense=2, anneal=4, cool=2),
        "lenet5": load("records/train").RUNS["lenet5"]._replace(anneal=4, cool=2),
    }
    for name in few:
        printed = run("records/train", name, *where, TEACHER_EPOCHS=2, RUNS=few)
    assert " store " in printed.splitlines()[-1]
    before = (out / "lenet5-0.mcz").read_bytes()
    steps = sorted((out / "lenet5-0").glob("*.mcz"))
    steps[-1].unlink()  # as if it had been broken off before its last step
    history = json.loads((out / "lenet5-0" / "history.json").read_text())
    history["history"].pop()
    (out / "lenet5-0" / "history.json").write_text(json.dumps(history))
    (out / "lenet5-0.mcz").unlink()
    run("records/train", "lenet5", *where, TEACHER_EPOCHS=2, RUNS=few)
    assert (out / "lenet5-0.mcz").read_bytes() == before
    printed = run("records/summary", *where)
    line = next(line for line in printed.splitlines() if line.startswith("lenet5 "))
    assert line.split()[2:5] == [*[f"{len(before):,}"] * 2, f"{1_724_320 / len(before):.0f}x"]


def test_c_sizes_are_a_table(run):
    printed = run("c_sizes")
    lines = printed.splitlines()
    int8 = [float(line.split()[3].rstrip("%")) for line in lines if line.split()[:1] == ["8"]]
    assert len(int8) == 2
    assert max(int8) < 100 / 3
