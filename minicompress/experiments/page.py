"""The report as one page: HTML that needs no network and no script, with figures as inline SVG.

Every number that a figure shows stands in a table beside it.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from html import escape

import numpy as np
import scipy

from minicompress.early_exit.thresholds import ExitPoint
from minicompress.experiments.budget import sensitivity_cells
from minicompress.experiments.certification import certificate_cells, certificate_legend
from minicompress.experiments.comparison import retraining_epochs
from minicompress.experiments.figures import (
    Pairs,
    bounds_figure,
    certified_figure,
    exits_figure,
    figure_style,
    front_figure,
    layers_figure,
    need_matplotlib,
)
from minicompress.experiments.report import Report
from minicompress.experiments.table import comparison_cells, legend, read_table

CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --line: #d0d4d9;
  --series-1: #0b5cad; --series-2: #b3470b; --series-3: #1a7f37; --series-4: #7a3e9d; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e8ea; --line: #3c4248;
  --series-1: #6cb6ff; --series-2: #ff9d5c; --series-3: #5fd38d; --series-4: #d2a8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; }
figure { margin: 1rem 0; max-width: 40rem; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; }
figcaption { font-size: 0.9rem; }
.wide { overflow-x: auto; max-width: 100%; border: 1px solid var(--line); }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; }
thead th { border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
pre { border: 1px solid var(--line); padding: 0.5rem; overflow-x: auto; }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>minicompress: the {name} report</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>minicompress: the {name} report</h1>

<section>
<h2>One network, compressed every way</h2>
<p>{reading}</p>
{methods_table}
<p>{legend}</p>
</section>

<section>
<h2>Accuracy against bytes</h2>
<figure>
{front_figure}
<figcaption>Of the methods on the front, no other is both as small and as good.</figcaption>
</figure>
{front_table}
</section>

<section>
<h2>What each layer tolerates</h2>
<figure>
{layers_figure}
<figcaption>One layer compressed, all others as they were. The axis is linear up to 0.01, and
logarithmic beyond.</figcaption>
</figure>
{layers_table}
<p>loss, accuracy (in points), file bytes and MACs are changes of the whole network; bound and error
are those of the layer's weights, proven and measured.</p>
</section>

<section>
<h2>What is certified</h2>
<figure>
{certified_figure}
<figcaption>No retraining here: it is proven of the network and its compressed forms that they
agree.</figcaption>
</figure>
{certified_table}
<p>{certificate_legend}</p>
</section>

<section>
<h2>Proven and measured</h2>
<figure>
{bounds_figure}
<figcaption>No point can lie below the dashed line, and the nearer one is to it, the tighter is its
bound. Of outputs, the error is the most that a search found.</figcaption>
</figure>
{bounds_table}
</section>

<section>
<h2>Leaving early</h2>
<figure>
{exits_figure}
<figcaption>A small head behind the first layers answers when it is confident enough, and the rest
of the network is not run.</figcaption>
</figure>
{exits_table}
<p>The threshold {exits.threshold:.4f} was chosen on the validation images: it saves most of those
that lose nothing there. Of the test images, looked at once, {exits.left:.2%} leave early at it, for
{exits.share:.2%} of the MACs; {exits.accuracy:.2%} are right, and {exits.plain_accuracy:.2%} by the
whole network.</p>
</section>

<section>
<h2>The same again</h2>
<pre tabindex="0">python -m minicompress report --data {name}{folder} --seed {data.seed} \
--epochs {data.epochs} --out FILE.html</pre>
<p>Data: {source}. Images: {images}.</p>
<p>SHA-256 of all images and labels: {digest}.</p>
<p>Versions: {versions}. With these the same seed gives the same page, byte for byte; another BLAS,
or another number of its threads, may move last digits.</p>
</section>
</main>
</body>
</html>
"""

DATA = {
    "digits": "8x8 digits that come with the package: the test part of Optical Recognition of "
    "Handwritten Digits (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998), "
    "CC BY 4.0",
    "mnist": "MNIST (Y. LeCun, C. Cortes and C. Burges), from its four IDX files",
}


def html_page(report: Report) -> str:
    """A report as HTML.

    Parameters
    ----------
    report : Report

    Returns
    -------
    str
        ASCII. The same report and the same matplotlib, the same text.

    Raises
    ------
    CompressionError
        There is no matplotlib.
    """
    versions = _versions()
    data, exits = report.data, report.exits
    pairs = _pairs(report)
    texts = {
        "name": data.name,
        "reading": read_table(report.rows, data.images["test"]),
        "legend": legend(retraining_epochs(data.epochs), wide=True),
        "certificate_legend": certificate_legend(report.accuracy, report.balls),
        "folder": " --folder DIR" if data.name == "mnist" else "",
        "source": DATA.get(data.name, data.name),
        "images": ", ".join(f"{n:,} {split}" for split, n in data.images.items()),
        "digest": report.digest,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    tables: dict[str, tuple[str, Sequence[Sequence[str]]]] = {
        "methods_table": ("All methods", comparison_cells(report.rows, wide=True)),
        "front_table": ("Accuracy against bytes", _front_cells(report)),
        "layers_table": ("What each layer tolerates", sensitivity_cells(report.layers)),
        "certified_table": ("What is certified", certificate_cells(report.certificates)),
        "bounds_table": ("Proven and measured", _bounds_cells(pairs)),
        "exits_table": ("Leaving early", _exits_cells(exits.curve)),
    }
    with figure_style():
        page = PAGE.format(
            css=CSS,
            data=data,
            exits=exits,
            front_figure=front_figure(report.rows, report.front),
            layers_figure=layers_figure(report.layers),
            certified_figure=certified_figure(report.certificates),
            bounds_figure=bounds_figure(pairs),
            exits_figure=exits_figure(exits.curve),
            **{name: escape(text) for name, text in texts.items()},
            **{name: _table(cells, title) for name, (title, cells) in tables.items()},
        )
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _versions() -> dict[str, str]:
    """Of what was running; without matplotlib a `CompressionError`."""
    from minicompress import __version__

    return {
        "minicompress": __version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "SciPy": scipy.__version__,
        "matplotlib": need_matplotlib(),
    }


def _front_cells(report: Report) -> list[tuple[str, ...]]:
    yes = dict.fromkeys(report.front, "yes")
    cells = [
        (r.method, f"{r.bytes:,}", f"{100 * r.test_accuracy:.2f}", yes.get(r.method, "no"))
        for r in sorted(report.rows, key=lambda row: row.bytes)
    ]
    return [("method", "bytes", "accuracy", "front"), *cells]


def _pairs(report: Report) -> Pairs:
    return {
        "a layer's weights": [
            (f"layer {r.layer}, {r.method}", r.certificate.bound, r.certificate.measured)
            for r in report.layers
        ],
        "all weights": [
            (row.method, row.bound, row.measured)
            for row in report.rows
            if row.bound is not None and row.measured is not None
        ],
        "outputs": [(row.method, row.bound, row.found) for row in report.certificates],
    }


def _bounds_cells(pairs: Pairs) -> list[tuple[str, ...]]:
    cells = [
        (name, what, f"{bound:.4g}", f"{error:.4g}", f"{bound / error:.2f}" if error else "-")
        for what, found in pairs.items()
        for name, bound, error in found
    ]
    return [("method", "of", "bound", "error", "ratio"), *cells]


def _exits_cells(curve: Sequence[ExitPoint]) -> list[tuple[str, ...]]:
    cells = [
        (f"{p.threshold:.4f}", f"{100 * p.accuracy:.2f}", f"{float(p.macs):,.0f}", f"{p.share:.1%}")
        for p in curve
    ]
    return [("threshold", "accuracy", "MACs", "share"), *cells]


def _table(cells: Sequence[Sequence[str]], name: str) -> str:
    """A table that scrolls within its own box, by the keyboard too."""
    head = "".join(f'<th scope="col">{escape(cell.strip())}</th>' for cell in cells[0])
    rows = "\n".join(
        f'<tr><th scope="row">{escape(first.strip())}</th>'
        f"{''.join(f'<td>{escape(cell.strip())}</td>' for cell in others)}</tr>"
        for first, *others in cells[1:]
    )
    return f"""\
<div class="wide" role="region" aria-label="{escape(name)}: the numbers" tabindex="0">
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>"""
