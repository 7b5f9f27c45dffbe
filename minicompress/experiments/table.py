"""A comparison in words: the table, the paragraph that reads it, and the figures for a machine."""

from __future__ import annotations

import math
from collections.abc import Sequence

from minicompress.analysis.tables import aligned
from minicompress.experiments.comparison import BEFORE_RETRAINING, RETRAINED, Row

HEAD = (
    "method",
    "params",
    "non-zero",
    "MACs",
    "bytes",
    "ratio",
    "accuracy",
    "change",
    "bound  ",
    "error  ",
    "certified",
)

MARKS = {BEFORE_RETRAINING: "*", RETRAINED: "**"}


def format_table(rows: Sequence[Row]) -> str:
    """The rows under their heads, in columns that line up; plain ASCII."""
    return aligned(comparison_cells(rows))


def comparison_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The rows under their heads."""
    return [HEAD, *(_cells(row) for row in rows)]


def legend(retraining: int) -> str:
    """What the columns are, after so many epochs of retraining."""
    return (
        "ratio: dense float32 bytes / bytes. accuracy: % of the test images; change: in points. "
        "bound, error: how far the compressed weights can be, proven, and are, measured, from the "
        "trained ones (root of the sum of squares); * before more training (epochs: "
        f"{retraining}) moved what was left; ** by rounding alone, from the compressed and "
        "retrained ones; - nothing approximated, another network trained. certified: % of the test "
        "images that lie in the box of the training images and provably keep the dense network's "
        "class in the floats that run, known from its outputs alone."
    )


def read_table(rows: Sequence[Row], test_images: int) -> str:
    """What the table says, from its numbers: what shrank, what is cheaper to run, what it cost."""
    dense, *others = rows
    parts = (_shrank(dense, others), _cheaper(dense, others), _cost(dense, others, test_images))
    return " ".join([*parts, _proven(others)]).strip()


def _shrank(dense: Row, others: Sequence[Row]) -> str:
    smaller = [row for row in others if row.bytes < dense.bytes]
    if not smaller:
        return "What shrank: nothing."
    best = min(smaller, key=lambda row: row.bytes)
    return (
        f"What shrank: {_of(smaller, others)} take fewer bytes than the dense network, "
        f"{best.method} the fewest: {best.bytes:,} instead of {dense.bytes:,}, "
        f"{best.ratio:.1f} times less."
    )


def _cheaper(dense: Row, others: Sequence[Row]) -> str:
    fewer = sorted((row for row in others if row.macs < dense.macs), key=lambda row: row.macs)
    as_many = sum(row.macs == dense.macs for row in others)
    shares = ", ".join(f"{row.method} {row.macs / dense.macs:.0%}" for row in fewer)
    text = f"{shares} of the multiplications" if fewer else "nothing"
    if as_many:
        text += (
            f"; {as_many} of {len(others)} need as many as before, since zeros and short codes "
            "save memory, but time only on a machine made for them"
        )
    return f"What got cheaper to run: {text}."


def _cost(dense: Row, others: Sequence[Row], test_images: int) -> str:
    lost = [row for row in others if row.change < 0]
    kept = [row for row in others if row.change >= 0]
    text = f"What it cost: {_of(lost, others)} lost test accuracy"
    claim = "That compression never costs accuracy is not contradicted by these numbers."
    if lost:
        worst = min(lost, key=lambda row: row.change)
        p = dense.test_accuracy
        error = 100 * math.sqrt(p * (1 - p) / test_images)
        text += (
            f", {worst.method} the most: {-worst.change:.2f} points (one image is "
            f"{100 / test_images:.2f}, the standard error of the dense accuracy {error:.2f})"
        )
        claim = "That compression never costs accuracy is refuted by these numbers."
        if -worst.change <= 2 * error:
            claim = (
                "That compression never costs accuracy is not what these numbers say, but no loss "
                "is beyond two standard errors: measure on more images."
            )
    if kept:
        best = max(kept, key=lambda row: row.ratio)
        text += f"; the smallest that lost none is {best.method}, {best.ratio:.1f} times smaller"
    return f"{text}. {claim}"


def _proven(others: Sequence[Row]) -> str:
    pairs = [(row.measured, row.bound) for row in others if row.measured and row.bound]
    if not pairs:
        return ""
    above = sum(measured > bound for measured, bound in pairs)
    times = [bound / measured for measured, bound in pairs]
    return (
        f"What is proven: {above or 'none'} of {len(pairs)} errors is above its bound, which is "
        f"{min(times):.1f} to {max(times):.1f} times the error."
    )


def _of(some: Sequence[Row], others: Sequence[Row]) -> str:
    if len(some) == len(others):
        return f"all {len(others)}"
    return f"{len(some) or 'none'} of {len(others)}"


def _cells(row: Row) -> tuple[str, ...]:
    mark = MARKS.get(row.against, "") if row.against else ""
    return (
        row.method,
        f"{row.params:,}",
        f"{row.nonzeros:,}",
        f"{row.macs:,}",
        f"{row.bytes:,}",
        f"{row.ratio:.1f}x",
        f"{100 * row.test_accuracy:.2f}",
        f"{row.change:+.2f}",
        "-  " if row.bound is None else f"{row.bound:.4g}{mark:2}",
        "-  " if row.measured is None else f"{row.measured:.4g}{mark:2}",
        "-" if row.certified is None else f"{100 * row.certified:.1f}",
    )
