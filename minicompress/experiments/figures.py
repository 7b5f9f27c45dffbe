"""The figures of the report: drawn by matplotlib, returned as SVG that is part of a page.

Each brings its text alternative. Colours stand for variables of the page, so that a figure is read
on light paper and on dark. matplotlib is imported where it is used: nothing else here needs it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, TypeAlias

from minicompress.analysis.sensitivities import Sensitivity
from minicompress.early_exit.thresholds import ExitPoint
from minicompress.errors import CompressionError
from minicompress.experiments.certification import RADIUS_NAMES, CertificateRow
from minicompress.experiments.comparison import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# By what they are about: the name of each, its bound, its error.
Pairs: TypeAlias = Mapping[str, Sequence[tuple[str, float, float]]]

# What figures are drawn in, and what that becomes on the page.
INK, LINE, *SERIES = "#010101", "#020202", "#030301", "#030302", "#030303", "#030304"
ON_PAGE = {INK: "currentColor", LINE: "var(--line)"} | {
    color: f"var(--series-{i})" for i, color in enumerate(SERIES, 1)
}
MARKERS = "os^D"
# Narrow, so that letters are large enough on a telephone, too.
SIZE = (4.6, 3.4)
INKED = ("axes.edgecolor", "axes.labelcolor", "legend.labelcolor", "text.color")
STYLE: Any = dict.fromkeys((*INKED, "xtick.color", "ytick.color"), INK) | {
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.grid": True,
    "axes.prop_cycle": f"cycler(color={SERIES})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": False,
    "font.size": 9,
    "grid.color": LINE,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def need_matplotlib() -> str:
    """The version of what draws the figures; without it a `CompressionError` that helps."""
    try:
        import matplotlib
    except ImportError:
        raise CompressionError(
            "the report needs matplotlib: in the clone, python -m pip install '.[plot]'"
        ) from None
    return str(matplotlib.__version__)


@contextmanager
def figure_style() -> Iterator[None]:
    """Within it, figures are drawn by these settings, whatever those of the process are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def front_figure(rows: Sequence[Row], front: Sequence[str]) -> str:
    """Accuracy against bytes; the methods of the front joined and named."""
    from matplotlib.ticker import LogLocator

    figure, axes = _axes("bytes", "accuracy, % of the test images")
    best = [next(row for row in rows if row.method == method) for method in front]
    others = [row for row in rows if row.method not in front]
    for label, style, some in (("the others", "o", others), ("the front", "D-", best)):
        accuracies = [100 * row.test_accuracy for row in some]
        axes.semilogx([row.bytes for row in some], accuracies, style, label=label)
    for row in best:
        place = (row.bytes, 100 * row.test_accuracy)
        axes.annotate(row.method, place, xytext=(5, -14), textcoords="offset points")
    axes.margins(0.1, 0.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    _plain_ticks(axes.xaxis, "{x:,.0f}")
    figure.legend(loc="outside upper center", ncols=2)
    told = "; ".join(f"{r.method}, {r.bytes:,} bytes, {r.test_accuracy:.2%}" for r in best)
    return _svg(
        figure,
        "front",
        "Accuracy against bytes",
        f"The Pareto front of {len(rows)} methods, the smallest first: {told}.",
    )


def layers_figure(rows: Sequence[Sensitivity]) -> str:
    """What each method adds to the loss, in each layer."""
    methods = list(dict.fromkeys(row.method for row in rows))
    layers = list(dict.fromkeys((row.layer, row.kind) for row in rows))
    figure, axes = _axes("added to the loss on validation images", "")
    for i, (layer, kind) in enumerate(layers):
        of_layer = [row for row in rows if row.layer == layer]
        axes.plot(
            [row.loss_change for row in of_layer],
            [methods.index(row.method) for row in of_layer],
            MARKERS[i % len(MARKERS)],
            label=f"layer {layer}, {kind}",
        )
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xticks([-0.01, 0, 0.01, 0.1, 1])
    _plain_ticks(axes.xaxis, "{x:g}")
    figure.legend(loc="outside upper center", ncols=min(3, len(layers)), handletextpad=0)
    worst = max(rows, key=lambda row: row.loss_change)
    return _svg(
        figure,
        "layers",
        "Loss added by compressing one layer alone",
        f"{len(layers)} layers by {len(methods)} methods. The most, {worst.loss_change:+.4f}, is "
        f"added by {worst.method} in layer {worst.layer}.",
    )


def certified_figure(rows: Sequence[CertificateRow]) -> str:
    """For each method a bar for the domain and for each radius."""
    names = ["all of the domain", *(f"ball of {radius}" for radius in RADIUS_NAMES)]
    methods = [row.method for row in rows]
    figure, axes = _axes("", "certified, %")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        axes.bar(
            [x + (i - (len(names) - 1) / 2) * width for x in range(len(methods))],
            [100 * (row.domain, *row.balls)[i] for row in rows],
            width,
            label=name,
        )
    axes.set_xticks(range(len(methods)), methods)
    axes.set_ylim(0, 100)
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper center", ncols=2)
    told = "; ".join(f"{row.method}, {row.domain:.1%}" for row in rows)
    return _svg(
        figure,
        "certified",
        "Certified fractions of the test images",
        f"Known to keep their class without running the compressed network: {told}. For the balls "
        "see the table.",
    )


def bounds_figure(pairs: Pairs) -> str:
    """Every bound over its error, and the line that no bound may be below."""
    figure, axes = _axes("measured", "proven bound")
    for i, (what, found) in enumerate(pairs.items()):
        points = [(measured, bound) for _, bound, measured in found if bound > 0 and measured > 0]
        if points:
            axes.loglog(*zip(*points), MARKERS[i], mfc="none", label=what)
    ends = [f((*axes.get_xlim(), *axes.get_ylim())) for f in (min, max)]
    axes.plot(ends, ends, color=INK, lw=1, ls="--", label="bound = error")
    for axis in (axes.xaxis, axes.yaxis):
        _plain_ticks(axis, "{x:g}")
    axes.legend(loc="lower right")
    every = [pair for found in pairs.values() for pair in found]
    above = sum(measured > bound for _, bound, measured in every)
    return _svg(
        figure,
        "bounds",
        "Proven bound against measured error",
        f"{len(every)} pairs; {above or 'none'} of the errors is above its bound.",
    )


def exits_figure(curve: Sequence[ExitPoint]) -> str:
    """Accuracy against multiplications."""
    figure, axes = _axes("MACs, % of the network's", "accuracy, % of validation images")
    shares = [100 * point.share for point in curve]
    axes.plot(shares, [100 * point.accuracy for point in curve], "o-")
    axes.margins(0.05, 0.15)
    first, last = curve[0], curve[-1]
    return _svg(
        figure,
        "exits",
        "Accuracy against multiplications, as ever more images leave early",
        f"From {first.accuracy:.2%} at all of the MACs, where nobody leaves, to "
        f"{last.accuracy:.2%} at {last.share:.1%} of them, where all do.",
    )


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def _plain_ticks(axis: Axis, text: str) -> None:
    """Numbers as they are read, not as powers of ten."""
    axis.set_major_formatter(text)
    axis.set_minor_formatter("")


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
    """A figure as SVG within the page: its text alternative, its own ids, the page's colours."""
    import matplotlib

    for artist in figure.findobj():
        artist.set_clip_on(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    inner = buffer.getvalue().split("<svg", 1)[1].split(">", 1)[1].rsplit("</svg>", 1)[0]
    for pattern, new in (
        ("(?s)<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", ""),
        (r"\bid=\"", f'id="{name}-'),
        (r"(xlink:)?href=\"#", f'href="#{name}-'),
        (r"font: ([\d.]+px)[^;\"]*", r"font-size: \1"),
        (r"\s*\n\s*", r"\n"),
        *ON_PAGE.items(),
    ):
        inner = re.sub(pattern, new, inner)
    width, height = (72 * inches for inches in SIZE)
    return f"""\
<svg role="img" aria-labelledby="{name}-title {name}-desc" viewBox="0 0 {width:g} {height:g}">
<title id="{name}-title">{escape(title)}</title>
<desc id="{name}-desc">{escape(description)}</desc>
{inner.strip()}
</svg>"""
