"""Schedules of sparsity: both endpoints exactly, monotone between, constant outside."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicompress.compressors.schedules import polynomial_sparsity
from minicompress.errors import CompressionError

fractions = st.floats(0, 1)
spans = st.tuples(st.integers(0, 50), st.integers(1, 200)).map(lambda p: (p[0], p[0] + p[1]))


def options_of(initial, final, begin, end):
    return {
        "initial_sparsity": initial,
        "final_sparsity": final,
        "begin_step": begin,
        "end_step": end,
    }


def law_endpoints_are_hit(schedule, initial, final, begin, end):
    """==, not nearly: a network that is to be 90 % sparse is 90 % sparse in the end."""
    options = options_of(initial, final, begin, end)
    for step in range(begin + 1):
        assert schedule(step, **options) == initial
    for step in (end, end + 1, end + 1000):
        assert schedule(step, **options) == final


def law_monotone_between(schedule, initial, final, begin, end):
    options = options_of(initial, final, begin, end)
    values = [schedule(step, **options) for step in range(end + 2)]
    assert values == sorted(values, reverse=initial > final)
    assert all(min(initial, final) <= v <= max(initial, final) for v in values)


def law_is_the_formula(schedule, power, initial, final, begin, end):
    for step in range(begin, end + 1):
        left = Fraction(end - step, end - begin)
        exact = Fraction(final) + (Fraction(initial) - Fraction(final)) * left**power
        got = schedule(step, **options_of(initial, final, begin, end))
        # Quotient (which the power multiplies), power, difference, product, sum: 8 roundings at
        # most of numbers of at most 1, and the clipping moves toward the exact value.
        assert abs(Fraction(got) - exact) <= Fraction(8, 2**53)


def law_rises_fast_at_first(schedule):
    """Half way seven eighths of a cubic schedule's sparsity are reached."""
    assert schedule(4, final_sparsity=0.5, end_step=8) == 0.4375


linear = partial(polynomial_sparsity, power=1)


@pytest.mark.parametrize("schedule", [polynomial_sparsity, linear])
@given(fractions, fractions, spans)
def test_endpoints_and_order(schedule, initial, final, span):
    law_endpoints_are_hit(schedule, initial, final, *span)
    law_monotone_between(schedule, initial, final, *span)


@given(fractions, fractions, spans)
def test_formula(initial, final, span):
    law_is_the_formula(polynomial_sparsity, 3, initial, final, *span)
    law_is_the_formula(linear, 1, initial, final, *span)


def test_half_way():
    law_rises_fast_at_first(polynomial_sparsity)
    assert linear(4, final_sparsity=0.5, end_step=8) == 0.25
    assert polynomial_sparsity(4, final_sparsity=0.5, end_step=8, power=2) == 0.375


def test_before_it_begins_there_is_nothing_to_compute():
    """A root or a power of what has not begun could be anything, and overflow."""
    options = {"initial_sparsity": 0.25, "final_sparsity": 0.8, "begin_step": 10, "end_step": 12}
    for power in (0, 1, 3, 5000):
        assert polynomial_sparsity(0, **options, power=power) == 0.25


def test_begin_and_end_at_one_step_is_one_shot():
    values = [
        polynomial_sparsity(s, final_sparsity=0.9, begin_step=2, end_step=2) for s in range(4)
    ]
    assert values == [0.0, 0.0, 0.9, 0.9]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"step": -1}, "step"),
        ({"step": 1.5}, "step"),
        ({"final_sparsity": 1.1}, "final_sparsity"),
        ({"final_sparsity": -0.1}, "final_sparsity"),
        ({"final_sparsity": float("nan")}, "final_sparsity"),
        ({"initial_sparsity": -0.1}, "initial_sparsity"),
        ({"initial_sparsity": 1.1}, "initial_sparsity"),
        ({"begin_step": -1}, "begin_step"),
        ({"begin_step": 5, "end_step": 4}, "end_step"),
        ({"power": -1}, "power"),
    ],
)
def test_bad_arguments_are_named(options, name):
    options = {"step": 3, "final_sparsity": 0.5, "end_step": 9} | options
    with pytest.raises(CompressionError, match=name):
        polynomial_sparsity(**options)


def unclamped(step, *, initial_sparsity=0.0, final_sparsity, begin_step=0, end_step):
    """The bare formula: it goes on behind the end, and misses it by a rounding."""
    t = (step - begin_step) / (end_step - begin_step)
    return final_sparsity + (initial_sparsity - final_sparsity) * (1 - t) ** 3


def one_step_late(step, *, initial_sparsity=0.0, final_sparsity, begin_step=0, end_step):
    return polynomial_sparsity(
        max(step - 1, 0),
        initial_sparsity=initial_sparsity,
        final_sparsity=final_sparsity,
        begin_step=begin_step,
        end_step=end_step,
    )


def begins_at_zero(step, *, initial_sparsity=0.0, final_sparsity, begin_step=0, end_step):
    return polynomial_sparsity(
        step,
        final_sparsity=final_sparsity,
        initial_sparsity=initial_sparsity,
        end_step=end_step,
    )


def slow_at_first(step, *, final_sparsity, end_step):
    return final_sparsity * (step / end_step) ** 3


CASE = (0.1, 0.7, 3, 10)
PLANTED = {
    "no constant outside": (lambda f: law_endpoints_are_hit(f, *CASE), unclamped),
    "the end missed by one step": (lambda f: law_endpoints_are_hit(f, *CASE), one_step_late),
    "begin ignored": (lambda f: law_endpoints_are_hit(f, *CASE), begins_at_zero),
    "linear for cubic": (lambda f: law_is_the_formula(f, 3, *CASE), linear),
    "slow at first": (law_rises_fast_at_first, slow_at_first),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
