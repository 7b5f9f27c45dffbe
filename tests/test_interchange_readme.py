"""Every block of the README of interchange runs on its own."""

import re
from pathlib import Path

import pytest

from minicompress import interchange

TEXT = (Path(interchange.__file__).parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=["C", "ONNX", "state dicts"])
def test_a_block_runs(block, capsys):
    if "import onnx" in block:
        pytest.importorskip("onnx")
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_all_that_the_room_offers_is_explained():
    missing = {name for name in interchange.__all__ if f"`{name}" not in TEXT}
    assert missing <= {"CExport"}
