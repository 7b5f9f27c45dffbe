"""The report as one page: HTML that needs no network and no script, with figures as inline SVG.

Every number that a figure shows stands in a table beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from minicompress.experiments.budget import sensitivity_cells
from minicompress.experiments.certification import certificate_cells, certificate_legend
from minicompress.experiments.comparison import retraining_epochs
from minicompress.experiments.figures import (
    bounds_figure,
    certified_figure,
    exits_figure,
    figure_style,
    front_figure,
    layers_figure,
    need_matplotlib,
)
from minicompress.experiments.report import ExitResult, Report
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
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
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
    drawn_by = need_matplotlib()
    with figure_style():
        body = [
            _table_section(report),
            _front_section(report),
            _layers_section(report),
            _certificates_section(report),
            _bounds_section(report),
            _exits_section(report.exits),
            _again_section(report, drawn_by),
        ]
    title = escape(f"minicompress: the {report.data} report")
    page = PAGE.format(title=title, css=CSS, body="\n".join(body))
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _table_section(report: Report) -> str:
    reading = read_table(report.rows, report.images["test"])
    return _section(
        "One network, compressed every way",
        _paragraph(reading),
        _table(comparison_cells(report.rows, wide=True), "All methods"),
        _paragraph(legend(retraining_epochs(report.epochs), wide=True)),
    )


def _front_section(report: Report) -> str:
    cells = [
        (
            row.method,
            f"{row.bytes:,}",
            f"{100 * row.test_accuracy:.2f}",
            "yes" if row.method in report.front else "no",
        )
        for row in sorted(report.rows, key=lambda row: row.bytes)
    ]
    return _section(
        "Accuracy against bytes",
        _figure(
            front_figure(report.rows, report.front),
            "Of the methods on the front, no other is both as small and as good.",
        ),
        _table([("method", "bytes", "accuracy", "front"), *cells], "Accuracy against bytes"),
    )


def _layers_section(report: Report) -> str:
    return _section(
        "What each layer tolerates",
        _figure(
            layers_figure(report.layers),
            "One layer compressed, all others as they were. The axis is linear up to 0.01, and "
            "logarithmic beyond.",
        ),
        _table(sensitivity_cells(report.layers), "What each layer tolerates"),
        _paragraph(
            "loss, accuracy (in points), file bytes and MACs are changes of the whole network; "
            "bound and error are those of the layer's weights, proven and measured."
        ),
    )


def _certificates_section(report: Report) -> str:
    return _section(
        "What is certified",
        _figure(
            certified_figure(report.certificates),
            "No retraining here: it is proven of the network and its compressed forms that they "
            "agree.",
        ),
        _table(certificate_cells(report.certificates), "What is certified"),
        _paragraph(certificate_legend(report.accuracy, report.balls)),
    )


def _bounds_section(report: Report) -> str:
    pairs = {
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
    cells = [
        (name, what, f"{bound:.4g}", f"{error:.4g}", f"{bound / error:.2f}" if error else "-")
        for what, found in pairs.items()
        for name, bound, error in found
    ]
    return _section(
        "Proven and measured",
        _figure(
            bounds_figure(pairs),
            "No point can lie below the dashed line, and the nearer one is to it, the tighter is "
            "its bound. Of outputs, the error is the most that a search found.",
        ),
        _table([("method", "of", "bound", "error", "ratio"), *cells], "Proven and measured"),
    )


def _exits_section(exits: ExitResult) -> str:
    cells = [
        (f"{p.threshold:.4f}", f"{100 * p.accuracy:.2f}", f"{float(p.macs):,.0f}", f"{p.share:.1%}")
        for p in exits.curve
    ]
    return _section(
        "Leaving early",
        _figure(
            exits_figure(exits.curve),
            "A small head behind the first layers answers when it is confident enough, and the "
            "rest of the network is not run.",
        ),
        _table([("threshold", "accuracy", "MACs", "share"), *cells], "Leaving early"),
        _paragraph(
            f"The threshold {exits.threshold:.4f} was chosen on the validation images: it saves "
            "most of those that lose nothing there. Of the test images, looked at once, "
            f"{exits.left:.2%} leave early at it, for {exits.share:.2%} of the MACs; "
            f"{exits.accuracy:.2%} are right, and {exits.plain_accuracy:.2%} by the whole network."
        ),
    )


def _again_section(report: Report, drawn_by: str) -> str:
    folder = " --folder DIR" if report.data == "mnist" else ""
    command = (
        f"python -m minicompress report --data {report.data}{folder} --seed {report.seed} "
        f"--epochs {report.epochs} --out FILE.html"
    )
    images = ", ".join(f"{n:,} {split}" for split, n in report.images.items())
    versions = report.versions | {"matplotlib": drawn_by}
    return _section(
        "The same again",
        f'<pre tabindex="0">{escape(command)}</pre>',
        _paragraph(f"Data: {DATA.get(report.data, report.data)}. Images: {images}."),
        _paragraph(f"SHA-256 of all images and labels: {report.digest}."),
        _paragraph(
            f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}. "
            "With these the same seed gives the same page, byte for byte; another BLAS, or another "
            "number of its threads, may move last digits."
        ),
    )


def _section(heading: str, *parts: str) -> str:
    return "\n".join(["<section>", f"<h2>{escape(heading)}</h2>", *parts, "</section>"])


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>\n{svg}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def _table(cells: Sequence[Sequence[str]], name: str) -> str:
    """A table that scrolls within its own box, by the keyboard too."""

    def row(line: Sequence[str], first: str, other: str) -> str:
        tags = [first, *[other] * (len(line) - 1)]
        inner = (
            f"<{t}>{escape(c.strip())}</{t.split()[0]}>" for t, c in zip(tags, line, strict=True)
        )
        return f"<tr>{''.join(inner)}</tr>"

    column, lead = 'th scope="col"', 'th scope="row"'
    body = "\n".join(row(line, lead, "td") for line in cells[1:])
    return (
        f'<div class="wide" role="region" aria-label="{escape(name)}: the numbers" tabindex="0">\n'
        f"<table>\n<thead>{row(cells[0], column, column)}</thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )
