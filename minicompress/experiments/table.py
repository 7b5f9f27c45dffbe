"""The comparison as a table, and a paragraph that says in words what its numbers show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from minicompress.experiments.comparison import BEFORE_RETRAINING, RETRAINED, Row
from minicompress.tables import aligned

NARROW = ("method", "bytes", "ratio", "MACs", "accuracy", "change", "bound", "error  ")
"""The columns that fit a terminal of 80 characters."""

LEGEND = """bytes: of all weights. ratio: how many times smaller than the dense network. MACs: {}.
accuracy: % of the test images; change: in points.
bound: the proven limit of the distance between original and compressed weights;
error: the measured distance. *: before retraining (epochs: {}).
**: distance from the retrained weights. -: another network, nothing is approximated.
"""
CERTIFIED = """certified: % of the test images that lie in the box of the training images and
provably keep the class of the dense network as the floats compute it; this is known from the dense
network's outputs alone."""
MARKS = {BEFORE_RETRAINING: "*", RETRAINED: "**"}


def format_table(rows: Sequence[Row], *, wide: bool = False) -> str:
    """The rows as an aligned table, in ASCII; `wide` for all columns."""
    return aligned(comparison_cells(rows, wide=wide))


def comparison_cells(rows: Sequence[Row], *, wide: bool) -> list[list[str]]:
    """The table's cells; the first row holds the heads."""
    lines = [_cells(row, rows[0], wide) for row in rows]
    heads = list(lines[0]) if wide else list(NARROW)
    return [heads, *([line[head] for head in heads] for line in lines)]


def _cells(row: Row, dense: Row, wide: bool) -> dict[str, str]:
    mark = MARKS.get(row.against or "", "")
    digits = 4 if wide else 3
    return {
        "method": row.method,
        "params": f"{row.params:,}",
        "non-zero": f"{row.nonzeros:,}",
        "MACs": f"{row.macs:,}" if wide else f"{row.macs / dense.macs:.0%}",
        "bytes": f"{row.bytes:,}",
        "ratio": f"{row.ratio:.1f}x",
        "accuracy": f"{100 * row.test_accuracy:.2f}",
        "change": f"{row.change:+.2f}",
        "bound": "-" if row.bound is None else f"{row.bound:.{digits}g}",
        "error  ": "-  " if row.measured is None else f"{row.measured:.{digits}g}{mark:2}",
        "certified": "-" if row.certified is None else f"{100 * row.certified:.1f}",
    }


def legend(retraining: int, *, wide: bool = False) -> str:
    """What the columns mean, after so many epochs of retraining."""
    macs = "multiplications for one image" if wide else "multiplications, % of the dense network's"
    return LEGEND.format(macs, retraining) + (CERTIFIED if wide else "--wide shows all columns.")


def read_table(rows: Sequence[Row], test_images: int) -> str:
    """What the table shows: what shrank, what is cheaper to run, what it cost, what is proven."""
    dense, *others = rows
    parts = (_shrank(dense, others), _cheaper(dense, others), _cost(dense, others, test_images))
    return " ".join([*parts, _proven(others)]).strip()


def _shrank(dense: Row, others: Sequence[Row]) -> str:
    smaller = [row for row in others if row.bytes < dense.bytes]
    if not smaller:
        return "What shrank: nothing."
    best = min(smaller, key=lambda row: row.bytes)
    return (
        f"What shrank: {len(smaller)} of {len(others)} take fewer bytes than the dense network. "
        f"The smallest is {best.method}, with {best.bytes:,} bytes instead of {dense.bytes:,}: "
        f"{best.ratio:.1f} times smaller."
    )


def _cheaper(dense: Row, others: Sequence[Row]) -> str:
    fewer = sorted((row for row in others if row.macs < dense.macs), key=lambda row: row.macs)
    as_many = sum(row.macs == dense.macs for row in others)
    shares = ", ".join(f"{row.method} ({row.macs / dense.macs:.0%})" for row in fewer)
    text = f"What is cheaper to run: {shares or 'nothing'}."
    if as_many:
        text += (
            f" {as_many} of {len(others)} need as many multiplications as before: zeros and short "
            "codes save memory, but they save time only on special hardware."
        )
    return text


def _cost(dense: Row, others: Sequence[Row], test_images: int) -> str:
    lost = [row for row in others if row.change < 0]
    kept = [row for row in others if row.change >= 0]
    text = f"What it cost: {len(lost)} of {len(others)} lost test accuracy."
    claim = "These numbers do not contradict the claim that compression never costs accuracy."
    if lost:
        worst = min(lost, key=lambda row: row.change)
        p = dense.test_accuracy
        error = 100 * math.sqrt(p * (1 - p) / test_images)
        text += (
            f" {worst.method} lost most: {-worst.change:.2f} points (one image is "
            f"{100 / test_images:.2f}, the standard error of the dense accuracy {error:.2f})."
        )
        claim = "These numbers refute the claim that compression never costs accuracy."
        if -worst.change <= 2 * error:
            claim = "No loss is above two standard errors: measure on more images."
    if kept:
        best = max(kept, key=lambda row: row.ratio)
        text += f" The smallest that lost none is {best.method}, {best.ratio:.1f} times smaller."
    return f"{text} {claim}"


def _proven(others: Sequence[Row]) -> str:
    pairs = [(row.measured, row.bound) for row in others if row.measured and row.bound]
    if not pairs:
        return ""
    above = sum(measured > bound for measured, bound in pairs)
    times = [bound / measured for measured, bound in pairs]
    return (
        f"What is proven: {above or 'none'} of {len(pairs)} errors is above its bound. The bounds "
        f"are {min(times):.1f} to {max(times):.1f} times the errors."
    )
