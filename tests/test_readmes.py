"""The READMEs are true: their Python runs and prints what they say, and their links lead somewhere.

Each README is one namespace, run from top to bottom in a folder of its own. A comment ``# -> text``
behind a call of `print` is what it prints.
"""

import os
import re
import subprocess
import sys

import pytest
from test_examples import ROOT

FOLDERS = (".", "examples", "examples/records", "tests", "minicompress")
READMES = sorted(
    {file for folder in FOLDERS[:4] for file in (ROOT / folder).glob("*.md")}
    | set((ROOT / "minicompress").rglob("*.md"))
)
NAMES = [str(file.relative_to(ROOT)) for file in READMES]
EXTRAS = ("onnx", "matplotlib")


def blocks(text):
    """The Python blocks, each on the lines where it stands, so that an error names its line."""
    return "\n".join(
        line if inside else "" for line, inside in zip(text.splitlines(), in_python(text))
    )


def in_python(text):
    """For each line: whether it is inside of a Python block."""
    language = None
    for line in text.splitlines():
        fence = re.fullmatch(r"```(\w*)", line)
        if fence:
            language = None if language is not None else fence[1]
        yield language == "python" and not fence


def said(source):
    """What the comments say that is printed, in order."""
    return re.findall(r"  # -> (.*)$", source, re.M)


def printed(source, folder):
    """The lines that come from the calls of `print` with such a comment, in order."""
    # A marked call prints with a mark of its own: other calls may print whatever they like.
    marked = re.sub(r"^(\s*)print\((.*)\)(  # -> )", r"\1print('->', \2)\3", source, flags=re.M)
    done = subprocess.run(
        [sys.executable, "-c", marked],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        timeout=240,
    )
    missing = re.search(r"No module named '(\w+)'", done.stderr)
    if missing and missing[1] in EXTRAS:
        pytest.skip(f"{missing[1]} is not installed")
    assert done.returncode == 0, done.stderr
    return re.findall(r"^-> (.*)$", done.stdout, re.M)


def anchors(text):
    """The anchors of the headings, as GitHub makes them."""
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken_links(file):
    """The links of a README to a file or a heading that is not there."""
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in found:
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        if not target.exists() or (
            anchor and anchor not in anchors(target.read_text(encoding="utf-8"))
        ):
            yield link


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    assert list(broken_links(ROOT / name)) == []


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "```python" in (ROOT / name).read_text(encoding="utf-8")]
)
def test_python_runs_and_prints_what_is_said(name, tmp_path):
    source = blocks((ROOT / name).read_text(encoding="utf-8"))
    assert printed(source, tmp_path) == said(source)


def test_the_readme_fits_and_both_languages_lead_to_each_other():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in NAMES[1:3])
    assert NAMES[1:3] == ["README.md", "README.zh.md"]
    assert len(english.splitlines()) <= 160
    assert "(README.zh.md)" in english.splitlines()[2]
    assert "(README.md)" in chinese.splitlines()[2]


# Planted faults: a README that is wrong is found.


def test_a_broken_link_is_found(tmp_path):
    other = tmp_path / "other.md"
    other.write_text("# A heading, with `code`\n\n```\n# no heading\n```\n")
    file = tmp_path / "README.md"
    right = "[a](other.md) [b](other.md#a-heading-with-code) [c](https://example.org) [d](#here)\n"
    file.write_text(f"# Here\n{right}")
    assert list(broken_links(file)) == []
    for wrong in ("[a](othr.md)", "[a](other.md#no-heading)", "[a](#her)", '<img src="a.png">'):
        file.write_text(f"# Here\n{right}{wrong}\n")
        assert len(list(broken_links(file))) == 1


def test_wrong_python_is_found(tmp_path):
    first, other, second = "```python\nx = 2\nprint(x)\n```\n", "```\nno python\n```\n", "x, 3"
    text = f"# A\n{first}{other}```python\nprint({second})  # -> 2 3\n```\n"
    assert printed(blocks(text), tmp_path) == said(blocks(text)) == ["2 3"]
    other = blocks(text.replace("-> 2 3", "-> 2 4"))
    assert printed(other, tmp_path) != said(other)
    with pytest.raises(AssertionError, match="NameError"):
        printed(blocks(text.replace("x = 2\n", "")), tmp_path)
