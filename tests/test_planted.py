"""The wrong implementations that the suite kills: listed, counted, and none of them forgotten.

Every test module with laws has a table PLANTED of wrong implementations by name, and one test that
runs each against its law and fails if it survives. Here it is checked that those tests run over
the whole of their tables, and that the faults everybody makes are among them.
"""

import importlib
import inspect
from pathlib import Path

import pytest

MODULES = sorted(p.stem for p in Path(__file__).parent.glob("test_*.py"))


def tables():
    """The table of each module that has one, and the test that runs over it."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(name)
        if hasattr(module, "PLANTED"):
            runs = [
                test
                for test in vars(module).values()
                if inspect.isfunction(test)
                for mark in getattr(test, "pytestmark", [])
                if mark.name == "parametrize" and mark.args[1] is module.PLANTED
            ]
            found[name] = (module.PLANTED, runs)
    return found


TABLES = tables()

# Each of these has been seen in a real library or is the slip next at hand.
COMMON = {
    "half away from zero": "half away from zero",
    "zero point off by one": "zero point",
    "codes that wrap around in int8": "wrap",
    "the wrong axis": "wrong axis",
    "ties that drop too many": "too many",
    "ties that drop too few": "too few",
    "writing to the input": "in place|writes to its input|in-place",
    "scale by the wrong power": "2**(b - 1)|2**(b-1)|2 ** (b - 1)",
    "biases forgotten in the count": "bias",
    "s_r for s_(r+1)": "s_r",
    "doubled bounds": "doubled",
    "an L1 tail": "L1|l1|magnitudes for a root",
    "no outward rounding": "outward",
    "-128 under narrow_range": "narrow",
    "a flipped kernel": "flip",
    "SAME padding at the top": "top",
}


@pytest.mark.parametrize("module", TABLES)
def test_every_table_is_run_through(module):
    planted, runs = TABLES[module]
    assert planted, "a table without a fault tests nothing"
    assert len(runs) == 1
    assert "name" in inspect.signature(runs[0]).parameters


@pytest.mark.parametrize("fault", COMMON)
def test_the_faults_that_everybody_makes_are_planted(fault):
    names = [name for planted, _ in TABLES.values() for name in planted]
    assert any(word in name for word in COMMON[fault].split("|") for name in names)


def test_the_list():
    """`pytest tests/test_planted.py -k list -s` prints it."""
    for module, (planted, _) in TABLES.items():
        print(f"\n{module.removeprefix('test_')}", *planted, sep="\n    ")
    assert sum(len(planted) for planted, _ in TABLES.values()) >= 250
