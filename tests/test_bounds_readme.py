"""The blocks of the page on bounds run, and the checker finds what the page says it finds."""

import re
from pathlib import Path

import pytest

import minicompress as mc
from minicompress.testing import check_compressor

PAGE = Path(mc.__file__).parent / "compressors" / "bounds" / "README.md"


def test_the_blocks_run_and_half_the_bound_is_caught(capsys):
    space = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(block, space)
    assert capsys.readouterr().out.strip() in PAGE.read_text()

    def half(weight):
        rep, cert = space["keep_the_larger_half"](weight)
        return mc.Compressed(rep, cert._replace(bound=cert.bound / 2))

    law = re.search(r'it says "(law [^"]*)"', " ".join(PAGE.read_text().split()))[1]
    with pytest.raises(AssertionError, match=law):
        check_compressor(half, seconds=2)
