"""The table and its reading say what the rows hold, whatever the rows hold."""

import pytest

from minicompress.experiments.comparison import BEFORE_RETRAINING, RETRAINED, TRAINED, Row
from minicompress.experiments.table import format_table, legend, read_table
from minicompress.tables import wrap


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


MADE = row("int8", 100, 250, -1.5, 2.0, 1.0, TRAINED, 0.955)
CELLS = {
    True: ["int8", "100", "90", "250", "100", "4.0x", "88.50", "-1.50", "2", "1", "95.5"],
    False: ["int8", "100", "4.0x", "25%", "88.50", "-1.50", "2", "1"],
}


@pytest.mark.parametrize("wide", [False, True])
def test_cells_stand_under_their_heads(wide):
    head, rule, first, second = format_table([DENSE, MADE], wide=wide).splitlines()
    assert second.split() == CELLS[wide]
    assert first.split()[-2:] == ["-", "-"]
    assert len(rule) == max(map(len, (head, first, second)))
    for name in ("bytes", "ratio", "MACs", "accuracy", "change", "bound"):
        end = head.index(name) + len(name)
        assert [line[end - 1] != " " and line[end] == " " for line in (first, second)] == [True] * 2


def test_the_first_screen_fits_a_terminal():
    """The longest name and the largest numbers, those of the seed network on MNIST."""
    dense = row("dense", 1_549_864, 9_999_999)
    worst = row("low rank 1/2 + int8", 1_549_863, 9_999_999, -10.0, 0.012345, 0.012345, RETRAINED)
    assert max(map(len, format_table([dense, worst]).splitlines())) <= 80


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    ("against", "cell"), [(TRAINED, "2"), (BEFORE_RETRAINING, "2*"), (RETRAINED, "2**")]
)
def test_marks_say_what_an_error_is_measured_from(against, cell, wide):
    table = format_table([DENSE, row("x", bound=2.0, measured=2.0, against=against)], wide=wide)
    cells = table.splitlines()[-1].split()
    assert cells[6 + 2 * wide :][:2] == ["2", cell]


def test_what_shrank_is_counted_and_the_smallest_named():
    text = read_table([DENSE, row("a", 100), row("b", 50), row("c", 500)], 300)
    assert "2 of 3 take fewer bytes" in text
    assert "The smallest is b, with 50 bytes instead of 400: 8.0 times smaller." in text
    assert "1 of 1 take fewer bytes" in read_table([DENSE, row("a", 100)], 300)
    assert "What shrank: nothing." in read_table([DENSE, row("c", 400)], 300)


def test_what_is_cheaper_is_listed_from_the_cheapest():
    text = read_table([DENSE, row("a", macs=500), row("b", macs=70), row("c"), row("d")], 300)
    assert "cheaper to run: b (7%), a (50%)." in text
    assert "2 of 4 need as many multiplications as before" in text
    assert "as before" not in read_table([DENSE, row("a", macs=500)], 300)
    assert "cheaper to run: nothing. 1 of 1" in read_table([DENSE, row("a")], 300)


def test_what_it_cost_is_answered_by_the_numbers():
    text = read_table([DENSE, row("a", 200, change=-5.0), row("b", 100, change=-0.5)], 200)
    assert "2 of 2 lost test accuracy. a lost most: 5.00 points" in text
    # 0.9 of 200 images: sqrt(0.9 * 0.1 / 200) is 2.12 %.
    assert "one image is 0.50, the standard error of the dense accuracy 2.12" in text
    assert "These numbers refute" in text
    assert "lost none" not in text

    text = read_table([DENSE, row("a", 200), row("b", 100, change=0.5), row("c", change=-4)], 200)
    assert "1 of 3 lost test accuracy" in text
    assert "The smallest that lost none is b, 4.0 times smaller" in text
    assert "No loss is above two standard errors" in text
    assert "refute" not in text

    text = read_table([DENSE, row("a", 200)], 200)
    assert "0 of 1 lost test accuracy." in text
    assert "do not contradict" in text


def test_a_bound_that_is_broken_would_be_told():
    rows = [DENSE, row("a", bound=3.0, measured=2.0), row("b", bound=2.0, measured=1.0)]
    assert "none of 2 errors is above its bound. The bounds are 1.5 to 2.0 times" in read_table(
        rows, 9
    )
    rows.append(row("c", bound=1.0, measured=2.0))
    assert "1 of 3 errors is above its bound" in read_table(rows, 9)
    assert "What is proven" not in read_table([DENSE, row("a")], 9)


def test_lines_are_wrapped_between_words():
    text = " ".join(["word"] * 50)
    assert max(map(len, wrap(text, 30).splitlines())) <= 30
    assert wrap(text, 30).split() == text.split()


def test_the_legend_explains_every_mark():
    for wide in (False, True):
        told = legend(8, wide=wide)
        assert all(mark in told for mark in ("ratio", "*:", "**:", "-:", "(epochs: 8)"))
    assert "--wide" in legend(8)
    assert "certified" in legend(8, wide=True)
