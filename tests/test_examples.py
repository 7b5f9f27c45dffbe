"""Every example runs, prints its table, and draws where there is something to draw with."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEADS = {
    "low_rank_curve": "rank  params   bound   error  accuracy",
    "prune_and_retrain": "pruned  non-zero   bound   error  accuracy  retrained",
    "quantize_bit_by_bit": "bits  bytes   bound   error  accuracy    bytes",
    "three_bounds": "radius     norms     trace  zonotope     found",
}
OTHERS = {
    "how_tight",
    "your_own_compressor",
    "against_others",
    "fuzz_container",
    "c_sizes",
    "deep_compression",
}


def run(name, folder, *arguments, first_on_path=ROOT):
    path = os.pathsep.join(map(str, (first_on_path, ROOT)))
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "MPLCONFIGDIR": str(folder)},
        timeout=120,
    )


def table(printed, name):
    """The rows of numbers under the head, percent signs and the note at the end taken off."""
    lines = printed.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(HEADS[name])) + 1
    rows = lines[start : lines.index("", start)]
    cells = [[c.rstrip("%").removeprefix("1/") for c in row.split()] for row in rows]
    return [[float(c) for c in row if c[0].isdigit()] for row in cells]


def test_every_example_is_tested():
    assert {file.stem for file in (ROOT / "examples").glob("*.py")} <= set(HEADS) | OTHERS


@pytest.mark.parametrize("name", HEADS)
def test_example(name, tmp_path):
    done = run(name, tmp_path, tmp_path / "figure.png")
    assert done.returncode == 0, done.stderr
    rows = table(done.stdout, name)
    assert len(rows) >= 5
    assert len({len(row) for row in rows}) == 1
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert "no figure" in done.stdout

    # What each lesson says is to be seen must be there to be seen.
    if name == "low_rank_curve":
        assert all(abs(bound - error) <= 0.001 for _, _, bound, error, _ in rows)
        assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)
        assert rows[-1][-1] > 97
    if name == "prune_and_retrain":
        assert all(abs(bound - error) <= 0.001 for _, _, bound, error, *_ in rows)
        assert all(after > before for amount, *_, before, after in rows if amount >= 80)
    if name == "three_bounds":
        for _, norms, trace, zonotope, found in rows:
            assert norms > trace > zonotope > found
    if name == "quantize_bit_by_bit":
        for _, *halves in rows:
            for _, bound, error, _ in (halves[:4], halves[4:]):
                assert error < bound
        assert rows[0][4] > 97
        assert all(row[6] < row[2] for row in rows)  # a scale for each channel has smaller bounds


def test_an_example_does_without_matplotlib(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "matplotlib.py").write_text("raise ImportError('hidden by a test')\n")
    done = run("quantize_bit_by_bit", tmp_path, first_on_path=hidden)
    assert done.returncode == 0, done.stderr
    assert "no figure: matplotlib is not installed" in done.stdout
    assert not list(tmp_path.glob("*.png"))


def test_a_figure_is_left_in_the_working_directory_unless_told(tmp_path):
    if not importlib.util.find_spec("matplotlib"):
        pytest.skip("nothing to draw with")
    done = run("quantize_bit_by_bit", tmp_path)
    assert (tmp_path / "quantize_bit_by_bit.png").exists(), done.stderr


def test_no_bound_is_below_its_error_and_none_is_only_large(tmp_path):
    done = run("how_tight", tmp_path, 25)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines()[1:]:
        name, (largest, median, norm) = line[:36].strip(), line[36:].split()
        assert 0 < float(largest) <= 1
        # The laws of the SVD and of pruning are equalities, and half a step is nearly reached.
        if norm == "fro" and name.startswith(("truncated_svd", "prune_")):
            assert float(median) > 0.99
        if norm == "max" and name.startswith("quantize, int"):
            assert float(median) > 0.5


def test_a_compressor_of_ones_own_is_caught_and_mended(tmp_path):
    done = run("your_own_compressor", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[0].startswith("first_try: law '")
    assert lines[1].startswith("second_try: law '")
    assert lines[2] == "mended: keeps every law"


def test_the_comparison_with_others_says_what_is_not_there(tmp_path):
    done = run("against_others", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3


def test_deep_compression_ends_in_a_file(tmp_path):
    done = run("deep_compression", tmp_path)
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "deep_compression.mcz").stat().st_size
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"deep_compression.mcz: {size:,} bytes, {39720 / size:.1f} times less")
    assert size < 39720 / 10


def test_c_sizes_are_a_table(tmp_path):
    done = run("c_sizes", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    int8 = [float(line.split()[3].rstrip("%")) for line in lines if line.split()[:1] == ["8"]]
    assert len(int8) == 2
    assert max(int8) < 100 / 3
