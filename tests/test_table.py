"""The table and its reading say what the rows hold, whatever the rows hold."""

import pytest

from minicompress.analysis.tables import wrap
from minicompress.experiments.comparison import BEFORE_RETRAINING, RETRAINED, TRAINED, Row
from minicompress.experiments.table import format_table, legend, read_table


def row(
    method,
    bytes=400,
    macs=1000,
    change=0.0,
    bound=None,
    measured=None,
    against=None,
    certified=None,
):
    return Row(
        method=method,
        params=100,
        nonzeros=90,
        macs=macs,
        bytes=bytes,
        ratio=400 / bytes,
        validation_accuracy=0.9,
        test_accuracy=0.9 + change / 100,
        change=change,
        bound=bound,
        measured=measured,
        against=against,
        certified=certified,
    )


DENSE = row("dense")


def test_cells_stand_under_their_heads():
    rows = [DENSE, row("int8", 100, 1_000_000, -1.5, 2.0, 1.0, TRAINED, 0.955)]
    second_cells = ["int8", "100", "90", "1,000,000", "100", "4.0x", "88.50", "-1.50", "2", "1"]
    second_cells += ["95.5"]
    head, rule, first, second = format_table(rows).splitlines()
    assert second.split() == second_cells
    assert first.split()[-3:] == ["-", "-", "-"]
    assert len(rule) == max(map(len, (head, first, second)))
    for name in ("params", "non-zero", "MACs", "bytes", "ratio", "accuracy", "change"):
        end = head.index(name) + len(name)
        assert [line[end - 1] != " " and line[end] == " " for line in (first, second)] == [True] * 2


@pytest.mark.parametrize(
    ("against", "cell"), [(TRAINED, "2"), (BEFORE_RETRAINING, "2*"), (RETRAINED, "2**")]
)
def test_marks_say_what_an_error_is_measured_from(against, cell):
    table = format_table([DENSE, row("x", bound=2.0, measured=2.0, against=against)])
    assert table.splitlines()[-1].split()[-3:] == [cell, cell, "-"]


def test_what_shrank_is_counted_and_the_smallest_named():
    text = read_table([DENSE, row("a", 100), row("b", 50), row("c", 500)], 300)
    assert "2 of 3 take fewer bytes" in text
    assert "b the fewest: 50 instead of 400, 8.0 times less" in text
    assert "all 1 take fewer bytes" in read_table([DENSE, row("a", 100)], 300)
    assert "What shrank: nothing." in read_table([DENSE, row("c", 400)], 300)


def test_what_is_cheaper_is_listed_from_the_cheapest():
    text = read_table([DENSE, row("a", macs=500), row("b", macs=70), row("c"), row("d")], 300)
    assert "cheaper to run: b 7%, a 50% of the multiplications" in text
    assert "2 of 4 need as many as before" in text
    assert "as before" not in read_table([DENSE, row("a", macs=500)], 300)
    assert "cheaper to run: nothing; 1 of 1" in read_table([DENSE, row("a")], 300)


def test_what_it_cost_is_answered_by_the_numbers():
    text = read_table([DENSE, row("a", 200, change=-5.0), row("b", 100, change=-0.5)], 200)
    assert "all 2 lost test accuracy, a the most: 5.00 points" in text
    # 0.9 of 200 images: sqrt(0.9 * 0.1 / 200) is 2.12 %.
    assert "one image is 0.50, the standard error of the dense accuracy 2.12" in text
    assert "is refuted by these numbers" in text
    assert "lost none" not in text

    text = read_table([DENSE, row("a", 200), row("b", 100, change=0.5), row("c", change=-4)], 200)
    assert "1 of 3 lost test accuracy" in text
    assert "the smallest that lost none is b, 4.0 times smaller" in text
    assert "no loss is beyond two standard errors" in text
    assert "is refuted" not in text

    text = read_table([DENSE, row("a", 200)], 200)
    assert "none of 1 lost test accuracy;" in text
    assert "is not contradicted by these numbers" in text


def test_a_bound_that_is_broken_would_be_told():
    rows = [DENSE, row("a", bound=3.0, measured=2.0), row("b", bound=2.0, measured=1.0)]
    assert "none of 2 errors is above its bound, which is 1.5 to 2.0 times" in read_table(rows, 9)
    rows.append(row("c", bound=1.0, measured=2.0))
    assert "1 of 3 errors is above its bound" in read_table(rows, 9)
    assert "What is proven" not in read_table([DENSE, row("a")], 9)


def test_lines_are_wrapped_between_words():
    text = " ".join(["word"] * 50)
    assert max(map(len, wrap(text, 30).splitlines())) <= 30
    assert wrap(text, 30).split() == text.split()


def test_the_legend_explains_every_mark():
    assert all(mark in legend(8) for mark in ("ratio", "* ", "** ", "- ", "(epochs: 8)"))
