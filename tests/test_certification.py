"""What `certify` prints: what is proven never contradicts what is measured."""

import json

import numpy as np
import pytest

import minicompress as mc
from minicompress.certify.attacks import attack
from minicompress.cli import main
from minicompress.experiments.certification import (
    METHODS,
    RADII,
    format_certificates,
    run_certification,
)
from minicompress.experiments.comparison import setup


@pytest.fixture(scope="module")
def result():
    return run_certification(setup("digits", mc.load_digits, epochs=4), inputs=4)


def test_no_proof_is_contradicted(result):
    accuracy, rows = result
    assert [row.method for row in rows] == list(METHODS)
    assert 0.9 <= accuracy <= 1
    for row in rows:
        assert row.domain <= row.agreement  # what provably keeps its class keeps it
        assert list(row.balls) == sorted(row.balls, reverse=True)  # larger balls are harder
        assert len(row.balls) == len(RADII)
        assert row.found <= row.bound
        assert row.ratio >= 1


def test_the_table_lines_up(result):
    accuracy, rows = result
    lines = format_certificates(accuracy, rows, 4).splitlines()
    table = lines[: 2 + len(rows)]
    assert set(table[1]) == {"-"}
    assert len(table[1]) == max(map(len, table))
    assert [line.split("  ")[0] for line in table[2:]] == list(METHODS)


def test_the_command_prints_it_and_refuses_what_it_must(capsys, monkeypatch):
    monkeypatch.setattr("minicompress.experiments.certification.METHODS", {"int8": METHODS["int8"]})
    assert main(["certify", "--epochs", "1", "--inputs", "2"]) == 0
    out = capsys.readouterr().out
    assert "int8" in out
    assert json.dumps(out)  # plain text
    for wrong in (["--inputs", "0"], ["--data", "mnist"], ["--epochs", "0"], ["--nonsense"]):
        assert main(["certify", *wrong]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("minicompress: error: ")
        assert captured.err.count("\n") == 1


def test_the_search_finds_the_corner_of_an_affine_network():
    f = mc.Sequential((mc.Dense(np.zeros((3, 2))),))
    g = mc.Sequential((mc.Dense(np.array([[1.0, 0], [-2, 0], [4, 0]])),))
    x = np.array([[0.5, 0.5, 0.5]])
    rng = np.random.default_rng(0)
    # 1.5 at x, and 7 * 0.25 more at the corner that the gradient points to.
    assert attack(f, g, x, eps=0.25, rng=rng).tolist() == [3.25]
    assert attack(f, g, x, eps=0.0, rng=rng).tolist() == [1.5]
    clipped = attack(f, g, x, eps=9.0, clip=(0.0, 1.0), rng=rng)
    assert clipped.tolist() == [5.0]
    with pytest.raises(mc.CompressionError, match="rng must be"):
        attack(f, g, x, eps=0.25, rng=0)
    with pytest.raises(mc.CompressionError, match="clip must be"):
        attack(f, g, x, eps=0.25, rng=rng, clip=(1.0, 0.0))
