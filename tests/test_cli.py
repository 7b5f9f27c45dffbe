"""The command as a newcomer and as a script runs it: what it prints, writes, and refuses."""

import gzip
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from noise_mnist import write_noise_mnist

import minicompress as mc
from minicompress.cli import COMMANDS, _progress_line, main
from minicompress.experiments.budget import METHODS

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, cwd=None):
    """The command in a process of its own; not a terminal, warnings are errors."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "minicompress", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path},
        timeout=300,
    )


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    """One run for all the tests that read it: what it printed, and what it wrote."""
    folder = tmp_path_factory.mktemp("run")
    done = run("--epochs", "1", "--seed", "3", "--json", "figures.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return done, folder


def test_nothing_but_the_table_is_written(one_epoch):
    done, folder = one_epoch
    assert done.stderr == ""  # no progress where nobody sits at a terminal
    assert [file.name for file in folder.iterdir()] == ["figures.json"]  # no part file left


HEADS = {
    False: "method bytes ratio MACs accuracy change bound error",
    True: "method params non-zero MACs bytes ratio accuracy change bound error certified",
}


@pytest.fixture(scope="module")
def screens(one_epoch):
    """What is printed without --wide and with it."""
    return {False: one_epoch[0].stdout, True: run("--epochs", "1", "--seed", "3", "--wide").stdout}


@pytest.mark.parametrize("wide", HEADS)
def test_the_table_lines_up(screens, wide):
    table, explained, reading = screens[wide].split("\n\n")
    head, rule, *lines = table.splitlines()
    assert " ".join(head.split()) == HEADS[wide]
    assert set(rule) == {"-"}
    # Every number ends where its head ends; only the last error has a mark behind it.
    for line in lines:
        for name in head.split()[1:-1]:
            if name != "error":
                end = head.index(name) + len(name)
                assert line[end - 1] != " "
                assert line[end] == " "
    assert screens[wide].isascii()
    assert max(map(len, [*explained.splitlines(), *reading.splitlines()])) <= 80
    assert max(map(len, table.splitlines())) <= (120 if wide else 80)


def test_the_table_and_the_file_agree(one_epoch, screens):
    _, folder = one_epoch
    figures = json.loads((folder / "figures.json").read_text())
    assert (figures["data"], figures["seed"], figures["epochs"]) == ("digits", 3, 1)
    assert figures["images"] == {"train": 1197, "validation": 300, "test": 300}
    dense = figures["rows"][0]
    for wide, screen in screens.items():
        lines = screen.split("\n\n")[0].splitlines()[2:]
        digits = 4 if wide else 3
        for line, row in zip(lines, figures["rows"], strict=True):
            assert line.startswith(row["method"] + "  ")
            cells = dict(zip(HEADS[wide].split()[1:], line[len(row["method"]) :].split()))
            share = row["certified"]
            expected = {
                "params": f"{row['params']:,}",
                "non-zero": f"{row['nonzeros']:,}",
                "MACs": f"{row['macs']:,}" if wide else f"{row['macs'] / dense['macs']:.0%}",
                "bytes": f"{row['bytes']:,}",
                "ratio": f"{row['ratio']:.1f}x",
                "accuracy": f"{100 * row['test_accuracy']:.2f}",
                "change": f"{row['change']:+.2f}",
                "bound": "-" if row["bound"] is None else f"{row['bound']:.{digits}g}",
                "error": "-" if row["measured"] is None else f"{row['measured']:.{digits}g}",
                "certified": "-" if share is None else f"{100 * share:.1f}",
            }
            for name, cell in cells.items():
                assert cell.rstrip("*") == expected[name]
        assert figures["reading"].split() == screen.split("\n\n")[-1].split()


def test_same_seed_same_table(one_epoch, capsys):
    assert main(["--epochs", "1", "--seed", "3"]) == 0
    assert capsys.readouterr().out == one_epoch[0].stdout


def test_another_seed_another_table(one_epoch, capsys):
    assert main(["--epochs", "1", "--seed", "4"]) == 0
    assert capsys.readouterr().out != one_epoch[0].stdout


BAD = {
    "unknown option": (["--sed", "1"], "unrecognized arguments: --sed"),
    "abbreviated option": (["--epoch", "1"], "unrecognized arguments: --epoch"),
    "unknown command": (["shrink"], "unrecognized arguments: shrink"),
    "unknown data": (["--data", "cifar"], "argument --data: invalid choice: 'cifar'"),
    "seed of no number": (["--seed", "one"], "argument --seed: invalid int value: 'one'"),
    "negative seed": (["--seed", "-1"], "seed must be an int of at least 0, not -1"),
    "no epochs": (["--epochs", "0"], "epochs must be an int of at least 1, not 0"),
    "mnist from nowhere": (["--data", "mnist"], "--data mnist and --folder DIR go together"),
    "folder for digits": (["--folder", "."], "--data mnist and --folder DIR go together"),
    "mnist from a folder of no name": (["--data", "mnist", "--folder", ""], "folder '.' holds"),
    "no such folder": (["--data", "mnist", "--folder", "no/such"], "'no/such' does not exist"),
    "json into nowhere": (["--json", "no/such/file"], "cannot write 'no/such/file': No such file"),
    "json over a folder": (["--json", "."], "cannot write '.': Is a directory"),
    "evaluate nothing": (["evaluate"], "the following arguments are required: FILE"),
    "evaluate no file": (["evaluate", "no.mcz"], "no.mcz cannot be read: No such file"),
    "evaluate another file": (["evaluate", "file"], "file: this is no .mcz file"),
    "search for nothing": (["search", "--max-bytes", "x"], "max_bytes must be a number of bytes"),
    "search for less": (["search", "--max-bytes", "-1"], "max_bytes must be a number of bytes"),
    "search without epochs": (["search", "--epochs", "0"], "epochs must be an int of at least 1"),
    "search with json": (["search", "--json", "x"], "unrecognized arguments: --json x"),
    "report to nowhere": (["report"], "the following arguments are required: --out"),
    "json under a file": (["--json", "file/x.json"], "cannot write 'file/x.json': Not a directory"),
}


# Without matplotlib another line comes first.
if importlib.util.find_spec("matplotlib"):
    BAD |= {
        "report into nowhere": (["report", "--out", "no/such/x.html"], "cannot write 'no/such/x.h"),
        "report over a folder": (["report", "--out", "."], "cannot write '.': Is a directory"),
        "report of no epochs": (
            ["report", "--out", "x.html", "--epochs", "0"],
            "epochs must be an int of at least 1, not 0",
        ),
        "report of mnist from nowhere": (
            ["report", "--out", "x.html", "--data", "mnist"],
            "--data mnist and --folder DIR go together",
        ),
    }


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(name, tmp_path, monkeypatch, capsys):
    arguments, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minicompress: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert os.listdir() == ["file"]


def test_a_truncated_file_is_one_line_and_status_2(tmp_path):
    for prefix in ("train", "t10k"):
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(3))[:-4])
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0\0")
    done = run("--data", "mnist", "--folder", str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "truncated" in done.stderr


def test_a_file_that_was_there_survives_a_failed_run(tmp_path):
    target = tmp_path / "figures.json"
    target.write_text("precious")
    assert main(["--json", str(target), "--epochs", "0"]) == 2
    assert target.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [target]


def test_evaluate_counts_bytes_and_errors(tmp_path, capsys):
    model, (x, y) = mc.digits_cnn(np.random.default_rng(0)), mc.load_digits("test")
    size = mc.save(model, tmp_path / "model.mcz")
    wrong = int((model(x).argmax(1) != y).sum())
    assert main(["evaluate", str(tmp_path / "model.mcz")]) == 0
    table, last = capsys.readouterr().out.split("\n\n")
    assert table == str(mc.summary(model, (8, 8, 1)))
    assert last.startswith(f"{size:,} bytes of file, {wrong} of 300 test images wrong: ")
    assert f"{wrong / 300:.2%} error" in last


def test_evaluate_wants_images_that_fit(tmp_path, capsys):
    mc.save(mc.lenet_300_100(np.random.default_rng(0)), tmp_path / "model.mcz")
    assert main(["evaluate", str(tmp_path / "model.mcz")]) == 2
    assert "layer 1 (Dense)" in capsys.readouterr().err


def test_evaluate_says_what_is_too_large(tmp_path, capsys):
    layers = (mc.Conv2D(np.ones((1, 1, 1, 1), np.float32), padding=2**24), mc.GlobalAvgPool2D())
    mc.save(mc.Sequential(layers), tmp_path / "model.mcz")
    assert main(["evaluate", str(tmp_path / "model.mcz")]) == 2
    assert "Unable to allocate" in capsys.readouterr().err


def test_nobody_reads_the_table(tmp_path):
    mc.save(mc.digits_cnn(np.random.default_rng(0)), tmp_path / "model.mcz")
    command = [sys.executable, "-m", "minicompress", "evaluate", str(tmp_path / "model.mcz")]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=300)
    os.close(writing)
    assert (done.returncode, done.stderr) == (2, b"")


def test_export_writes_c(tmp_path, capsys):
    mc.save(mc.digits_cnn(np.random.default_rng(0)), tmp_path / "model.mcz")
    out = tmp_path / "net.c"
    arguments = ["export", str(tmp_path / "model.mcz"), "--target", "c", "--name", "digits"]
    assert main([*arguments, "--bits", "4", "--out", str(out)]) == 0
    assert "of constants in flash" in capsys.readouterr().out
    assert "int digits_class(const int8_t *input)" in out.with_suffix(".h").read_text()
    small = out.stat().st_size
    assert main([*arguments, "--out", str(out)]) == 0
    assert small < out.stat().st_size
    capsys.readouterr()
    assert main([*arguments, "--out", str(tmp_path / "no" / "net.c")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.mcz", "net.c", "net.h"]


def test_search_keeps_the_budget_and_says_what_it_found(capsys, monkeypatch):
    # Of the methods only some: what is tested is the way through, and each costs a second.
    few = {"low rank, int8": METHODS["low rank, int8"]}
    monkeypatch.setattr("minicompress.experiments.budget.METHODS", few)
    assert main(["search", "--max-bytes", "10%", "--epochs", "2"]) == 0
    plan, table, explained = capsys.readouterr().out.split("\n\n")
    assert re.match(r"    layer 0: .+\n    layer 2: .+\n    layer 5: .+$", plan)
    head, _, ours, *others = [re.split(" {2,}", line) for line in table.splitlines()]
    assert head == ["method", "setting", "file bytes", "MACs", "loss", "accuracy"]
    assert ours[:2] == ["the plan", "one for each layer"]
    size, loss = int(ours[2].replace(",", "")), float(ours[4])
    assert size <= 3972  # a tenth of 39,720
    assert [line[0] for line in others] == [*few, "as it is"]
    assert all(loss <= float(line[4]) for line in others[:-1])
    explained = " ".join(explained.split())
    assert f"takes {size:,} bytes of the 3,972" in explained
    assert "No network is retrained here, and low rank needs that most." in explained
    assert main(["search", "--max-bytes", "3,972", "--epochs", "2"]) == 2
    assert "max_bytes must be a number of bytes" in capsys.readouterr().err


def test_export_writes_onnx_or_says_what_it_needs(tmp_path, capsys):
    mc.save(mc.digits_cnn(np.random.default_rng(0)), tmp_path / "model.mcz")
    out = tmp_path / "net.onnx"
    status = main(["export", str(tmp_path / "model.mcz"), "--target", "onnx", "--out", str(out)])
    printed = capsys.readouterr()
    if importlib.util.find_spec("onnx"):
        assert (status, printed.out) == (0, f"{out}: {out.stat().st_size:,} bytes\n")
    else:
        assert status == 2
        assert "pip install '.[onnx]'" in printed.err


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert all(
        name in out for name in ("--data", "--folder", "--seed", "--epochs", "--json", "--wide")
    )
    assert all(f"\n{name} " in out for name in COMMANDS if name)


OF_FILES = {"compress", "decompress", "summary"}
"""The commands that need no data set."""


@pytest.mark.parametrize("command", [name for name in COMMANDS if name])
def test_every_command_has_help_of_its_own(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: minicompress {command} ")
    assert ("--data" in out) != (command in OF_FILES)


def test_a_terminal_sees_progress(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    with _progress_line() as progress:
        progress("dense", 0.5)
        progress("dense", 1.0)
    written = terminal.getvalue()
    assert "\r\x1b[Kdense:  50%" in written
    assert written.endswith("\r\x1b[K")  # the line is wiped at the end
    assert "\n" not in written


def test_mnist_takes_the_seed_network(tmp_path, capsys, monkeypatch):
    # The proofs of so large a network take the most time; they have tests of their own.
    monkeypatch.setattr("minicompress.experiments.comparison.certified_domain", lambda *_: 0.5)
    write_noise_mnist(tmp_path)
    file = tmp_path / "figures.json"
    arguments = ["--data", "mnist", "--folder", str(tmp_path), "--epochs", "1"]
    assert main([*arguments, "--json", str(file)]) == 0
    rows = {row["method"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows["dense float32"]["params"] == 387_466
    assert rows["small_kernel"]["params"] == 39_786
    assert rows["strided"]["params"] == 41_866
    table = capsys.readouterr().out.split("\n\n")[0]
    assert "1,549,864" in table
    assert max(map(len, table.splitlines())) <= 80
