"""The report: its numbers are those of its rows, and the page needs nothing but itself."""

import hashlib
import importlib.util
import math
import re
import sys
from fractions import Fraction
from html.parser import HTMLParser

import numpy as np
import pytest

import minicompress as mc
from minicompress.cli import main
from minicompress.experiments import report as module
from minicompress.experiments.certification import METHODS, certificate_legend, run_certification
from minicompress.experiments.comparison import TRAINED, Row, compare, setup
from minicompress.experiments.figures import need_matplotlib
from minicompress.experiments.page import CSS, html_page
from minicompress.experiments.report import LAYER_METHODS, gather, pareto_front
from minicompress.experiments.table import format_table, legend, read_table

DRAWS = importlib.util.find_spec("matplotlib") is not None
VOID = {"meta", "br", "img", "input", "link", "hr"}
BALLS = 2


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BALLS", BALLS)
        yield gather(setup("digits", mc.load_digits, epochs=1, seed=3))


@pytest.fixture(scope="module")
def page(found):
    if not DRAWS:
        pytest.skip("nothing to draw with")
    return html_page(found)


class Node:
    """An element: its name, attributes and children; texts are strings."""

    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.children = tag, dict(attributes), []

    def all(self, *tags):
        for child in self.children:
            if isinstance(child, Node):
                if not tags or child.tag in tags:
                    yield child
                yield from child.all(*tags)

    @property
    def text(self):
        return "".join(c.text if isinstance(c, Node) else c for c in self.children)


class Reader(HTMLParser):
    """A parser that forgives nothing: what is opened is closed, in its order."""

    def __init__(self, text):
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert self.open == [self.root], f"{self.open[-1].tag} is never closed"

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Node(tag, attrs))

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(self.open[-1].children[-1])

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        self.open[-1].children.append(data)


def law_well_formed(page):
    root = Reader(page).root
    assert page.startswith("<!DOCTYPE html>")
    assert page.isascii()
    assert next(root.all("meta")).attributes == {"charset": "utf-8"}
    for tag in ("title", "h1", "main", "style"):
        assert len(list(root.all(tag))) >= 1
    assert [node.attributes["lang"] for node in root.all("html")] == ["en"]


def law_ids(page):
    """Each names one element, and what is referred to is there."""
    nodes = list(Reader(page).root.all())
    ids = [node.attributes["id"] for node in nodes if "id" in node.attributes]
    assert len(set(ids)) == len(ids)
    for node in nodes:
        for name in ("href", "xlink:href"):
            if name in node.attributes:
                assert node.attributes[name].removeprefix("#") in ids
        named = node.attributes.get("aria-labelledby", "").split()
        assert set(named) <= set(ids)


def law_alternatives(page):
    """Whoever cannot see a figure is told what it shows."""
    root = Reader(page).root
    texts = {n.attributes["id"]: n.text for n in root.all() if "id" in n.attributes}
    pictures = list(root.all("svg", "img"))
    assert len(pictures) == 5
    for picture in pictures:
        assert picture.attributes["role"] == "img"
        title, description = picture.attributes["aria-labelledby"].split()
        assert len(texts[title]) > 10
        assert len(texts[description]) > 20


def law_nothing_from_outside(page):
    assert "http" not in page
    assert not re.search(r"url\(|@import|javascript:|//", page.split("<body>")[0])
    for node in Reader(page).root.all():
        assert node.tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name, value in node.attributes.items():
            assert name not in {"src", "srcset", "data", "action"}
            assert not name.startswith("on")
            assert "url(" not in value
            if name in {"href", "xlink:href"}:
                assert value.startswith("#")


def law_read_in_the_dark(page):
    """Every colour of a figure is that of the text, or a variable with a value in both schemes."""
    light, dark = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    assert "prefers-color-scheme: dark" in CSS
    drawn = re.findall(r"(?:fill|stroke|color): ?([^;\"]+)", page.split("</style>")[1])
    assert len(drawn) > 100
    for color in drawn:
        assert color in {"none", "currentColor"} or color.startswith("var(--")
        if color.startswith("var("):
            assert f"{color[4:-1]}:" in light
            assert f"{color[4:-1]}:" in dark
    for node in Reader(page).root.all("text"):
        assert "fill: currentColor" in node.attributes["style"]  # else it is black on black


def law_wide_tables_scroll(page):
    """Every table stands in a box of its own, which a keyboard reaches and scrolls."""
    root = Reader(page).root
    assert re.search(r"\.wide \{[^}]*overflow-x: auto", CSS)
    assert 'name="viewport" content="width=device-width' in page
    boxes = [n for n in root.all("div") if n.attributes.get("class") == "wide"]
    tables = list(root.all("table"))
    assert len(tables) == 6
    assert [t for box in boxes for t in box.all("table")] == tables
    for box in boxes:
        assert box.attributes["tabindex"] == "0"
        assert box.attributes["aria-label"]
    for table in tables:
        head, *rows = table.all("tr")
        assert {cell.attributes["scope"] for cell in head.all("th")} == {"col"}
        assert all(len(row.children) == len(head.children) for row in rows)


def with_a(text):
    return lambda page: page.replace("<main>", f"<main>{text}")


PLANTED = {
    "a tag that is not closed": (law_well_formed, with_a("<p>")),
    "tags that cross": (law_well_formed, with_a("<b><i></b></i>")),
    "a letter beyond ASCII": (law_well_formed, with_a("\u2212")),
    "an id twice": (law_ids, with_a('<p id="front-title"></p>')),
    "a reference to nothing": (law_ids, with_a('<a href="#nowhere"></a>')),
    "figures whose ids are not their own": (
        law_ids,
        lambda page: page.replace("exits-axes_1", "front-axes_1"),
    ),
    "a picture without words": (law_alternatives, with_a("<img>")),
    "an empty description": (
        law_alternatives,
        lambda page: re.sub(r'(<desc id="exits-desc">)[^<]*', r"\1", page),
    ),
    "a script": (law_nothing_from_outside, with_a("<script></script>")),
    "a handler": (law_nothing_from_outside, with_a('<p onclick="f()"></p>')),
    "a picture from a server": (law_nothing_from_outside, with_a('<img src="x.png">')),
    "a link away": (law_nothing_from_outside, with_a('<a href="x.html">x</a>')),
    "a style sheet": (
        law_nothing_from_outside,
        lambda page: page.replace("<style>", '<style>@import "x.css";'),
    ),
    "a clip path": (law_nothing_from_outside, with_a('<p style="clip-path: url(#x)"></p>')),
    "black ink": (
        law_read_in_the_dark,
        lambda page: page.replace("fill: currentColor", "fill: #000000", 1),
    ),
    "ink that is not said": (
        law_read_in_the_dark,
        lambda page: re.sub(r'(<text style="[^"]*)fill: currentColor', r"\1", page, count=1),
    ),
    "a variable without a value": (
        law_read_in_the_dark,
        lambda page: page.replace("var(--series-1)", "var(--series-9)", 1),
    ),
    "a table without a box": (law_wide_tables_scroll, with_a("<table></table>")),
    "a row too short": (
        law_wide_tables_scroll,
        lambda page: re.sub(r"<td>[^<]*</td></tr>", "</tr>", page, count=1),
    ),
}


@pytest.mark.parametrize("law", sorted({law for law, _ in PLANTED.values()}, key=str))
def test_law(page, law):
    law(page)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught(page, name):
    law, fault = PLANTED[name]
    assert fault(page) != page
    with pytest.raises(AssertionError):
        law(fault(page))


def tables(page):
    """The cells of each table by its name."""
    boxes = [n for n in Reader(page).root.all("div") if n.attributes.get("class") == "wide"]
    return {
        box.attributes["aria-label"].removesuffix(": the numbers"): [
            [cell.text for cell in row.children] for row in box.all("tr")
        ]
        for box in boxes
    }


def test_the_numbers_are_those_of_the_rows(found, page):
    shown = tables(page)
    printed = [
        re.split(r" {2,}", line.strip())
        for line in format_table(found.rows, wide=True).splitlines()
    ]
    assert shown["All methods"] == [printed[0], *printed[2:]]
    for row, cells in zip(found.rows, shown["All methods"][1:], strict=True):
        assert (cells[0], cells[4]) == (row.method, f"{row.bytes:,}")
        assert cells[6] == f"{100 * row.test_accuracy:.2f}"
    for text in (read_table(found.rows, 300), legend(1, wide=True)):
        assert text in Reader(page).root.text

    sizes = {row.method: (row.bytes, row.test_accuracy) for row in found.rows}
    cells = shown["Accuracy against bytes"][1:]
    assert [int(c[1].replace(",", "")) for c in cells] == sorted(b for b, _ in sizes.values())
    assert {c[0]: c[2] for c in cells} == {m: f"{100 * a:.2f}" for m, (_, a) in sizes.items()}
    assert [c[0] for c in cells if c[3] == "yes"] == list(found.front)

    cells = shown["What each layer tolerates"][1:]
    assert len(cells) == 3 * len(LAYER_METHODS)
    for row, line in zip(found.layers, cells, strict=True):
        assert line[:3] == [f"{row.layer} {row.kind}", row.method, f"{row.loss_change:+.4f}"]
        assert line[3] == f"{100 * row.accuracy_change:+.2f}"
        assert line[4] == f"{-row.file_saved:+,}"
        assert line[6] == f"{row.certificate.bound:.4g}"

    cells = shown["What is certified"][1:]
    for row, line in zip(found.certificates, cells, strict=True):
        assert line[0] == row.method
        assert line[3:7] == [f"{100 * share:.1f}" for share in (row.domain, *row.balls)]
    assert certificate_legend(found.accuracy, BALLS) in Reader(page).root.text

    cells = shown["Proven and measured"][1:]
    bounds = [r.certificate.bound for r in found.layers]
    bounds += [r.bound for r in found.rows if r.bound is not None]
    bounds += [r.bound for r in found.certificates]
    assert [line[2] for line in cells] == [f"{bound:.4g}" for bound in bounds]
    errors = [r.certificate.measured for r in found.layers]
    errors += [r.measured for r in found.rows if r.measured is not None]
    errors += [r.found for r in found.certificates]
    assert [line[3] for line in cells] == [f"{error:.4g}" for error in errors]

    cells = shown["Leaving early"][1:]
    for point, line in zip(found.exits.curve, cells, strict=True):
        assert line[1:3] == [f"{100 * point.accuracy:.2f}", f"{float(point.macs):,.0f}"]
    assert f"{found.exits.left:.2%} leave early" in Reader(page).root.text


def points(page, figure):
    """The places of the markers of each line of a figure, by the id of the line."""
    svg = next(
        n
        for n in Reader(page).root.all("svg")
        if n.attributes["aria-labelledby"].startswith(figure)
    )
    lines = [n for n in svg.all("g") if "line2d" in n.attributes.get("id", "")]
    return [
        [(float(u.attributes["x"]), float(u.attributes["y"])) for u in line.all("use")]
        for line in lines
    ]


def law_where_the_numbers_are(places, numbers):
    """Places on paper are an affine function of the numbers, up to what is rounded away."""
    for on_paper, number in zip(np.transpose(places), np.transpose(numbers), strict=True):
        if np.ptp(number) == 0:
            assert np.ptp(on_paper) < 1e-3
            continue
        fit = np.polyfit(number, on_paper, 1)
        assert abs(fit[0]) * np.ptp(number) > 10
        # Six decimals are written, and the sums of so few terms lose less.
        assert np.abs(np.polyval(fit, number) - on_paper).max() < 1e-3


def test_points_are_drawn_where_the_numbers_are(found, page):
    rest = [row for row in found.rows if row.method not in found.front]
    numbers = [(math.log(row.bytes), row.test_accuracy) for row in rest]
    (places,) = (p for p in points(page, "front") if len(p) == len(rest))
    law_where_the_numbers_are(places, numbers)

    curve = found.exits.curve
    numbers = [(point.share, point.accuracy) for point in curve]
    (places,) = (p for p in points(page, "exits") if len(p) == len(curve))
    law_where_the_numbers_are(places, numbers)
    moved = [(share, accuracy + (i == 2) / 50) for i, (share, accuracy) in enumerate(numbers)]
    with pytest.raises(AssertionError):
        law_where_the_numbers_are(places, moved)

    numbers = [(r.certificate.measured, r.certificate.bound) for r in found.layers]
    (places,) = (p for p in points(page, "bounds") if len(p) == len(numbers))
    law_where_the_numbers_are(places, np.log(numbers))


def test_what_is_gathered_is_what_the_commands_show(found):
    data = setup("digits", mc.load_digits, seed=3, epochs=1)
    assert found.rows == compare(data)
    certified = run_certification(data, inputs=BALLS)
    assert (found.accuracy, found.certificates) == certified
    assert [row.method for row in found.certificates] == list(METHODS)
    assert found.data.images == {"train": 1197, "validation": 300, "test": 300}
    assert found.balls == BALLS
    everything = hashlib.sha256()
    for split in ("train", "validation", "test"):
        for array in mc.load_digits(split):
            everything.update(array.tobytes())
    assert found.digest == everything.hexdigest()
    # The threshold loses nothing on the validation images, on which it was chosen.
    assert found.exits.curve[0].threshold == math.inf
    assert found.exits.curve[0].macs == Fraction(84_032)
    assert found.exits.plain_accuracy == found.rows[0].test_accuracy
    assert 0 < found.exits.share <= 1.02  # of heads that are passed it can cost a little


def blank(method, size, right):
    return Row(method, 0, 0, 0, size, 1.0, 0.0, right, 0.0, 1.0, 0.5, TRAINED, None)


def dominates(a, b):
    """The definition, straight from a book."""
    as_good = a.bytes <= b.bytes and a.test_accuracy >= b.test_accuracy
    return as_good and (a.bytes < b.bytes or a.test_accuracy > b.test_accuracy)


def test_the_front_is_what_nothing_dominates():
    places = [(size, right) for size in (1, 2, 3) for right in (0.5, 0.6, 0.7)]
    for k in range(2 ** len(places)):
        rows = [blank(str(i), *p) for i, p in enumerate(places) if k >> i & 1]
        expected = {b.method for b in rows if not any(dominates(a, b) for a in rows)}
        front = pareto_front(rows)
        assert set(front) == expected
        sizes = {row.method: row.bytes for row in rows}
        assert [sizes[m] for m in front] == sorted(sizes[m] for m in front)
    twins = [blank("a", 1, 0.5), blank("b", 1, 0.5), blank("c", 2, 0.5)]
    assert pareto_front(twins) == ("a", "b")


def test_names_are_escaped(found, page):
    name = '<b>&"hé'
    rows = tuple(r._replace(method=name) if r.method == "int4" else r for r in found.rows)
    front = tuple(name if method == "int4" else method for method in found.front)
    changed = html_page(
        found._replace(rows=rows, front=front, data=found.data._replace(name="<i>"))
    )
    for law in {law for law, _ in PLANTED.values()}:
        law(changed)
    assert name in [row[0] for row in tables(changed)["All methods"]]
    assert "<b>" not in changed


def test_the_command_writes_the_page(found, page, tmp_path, capsys, monkeypatch):
    def gathered(data):
        assert (data.name, data.epochs, data.seed) == ("digits", 1, 3)
        return found  # which the test above gathers once more

    monkeypatch.setattr("minicompress.cli.gather", gathered)
    out = tmp_path / "report.html"
    assert main(["report", "--epochs", "1", "--seed", "3", "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == page  # the same seed, the same bytes
    assert capsys.readouterr().out == f"{out}: {len(page):,} bytes\n"
    assert list(tmp_path.iterdir()) == [out]
    assert str(tmp_path) not in page


def test_settings_of_the_process_change_nothing_and_are_left_alone(found, page, monkeypatch):
    import matplotlib

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # to import it is an error
    theirs = {"font.size": 30.0, "axes.grid": False, "text.color": "red", "svg.hashsalt": "x"}
    with matplotlib.rc_context(theirs):
        assert html_page(found) == page
        assert {name: matplotlib.rcParams[name] for name in theirs} == theirs


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("minicompress.cli.gather", pytest.fail)  # nobody waits for nothing
    assert main(["report", "--out", str(tmp_path / "report.html")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "minicompress: error: the report needs matplotlib: "
        "in the clone, python -m pip install '.[plot]'\n"
    )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(mc.CompressionError, match="needs matplotlib"):
        need_matplotlib()
