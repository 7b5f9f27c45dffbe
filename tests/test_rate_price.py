"""Training for the fewest bytes: the slopes of what weights and biases take in bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rate_models import U, exchanged

from minicompress.recipes.rate import bias_slopes, weight_slopes


def price_of_being_there(units):
    """The documented c for every weight, by loops."""
    matrix = units.reshape(-1, units.shape[-1])
    n, m = matrix.shape
    there = [[abs(u) > 0.5 for u in row] for row in matrix.tolist()]
    whole = (sum(map(sum, there)) + 1) / (n * m + 2)
    rows = [(sum(row) + 4 * whole) / (m + 4) for row in there]
    columns = [(sum(column) + 4 * whole) / (n + 4) for column in zip(*there)]
    chances = [[min(r * c / whole, 0.5) for c in columns] for r in rows]
    return np.array([[math.log2((1 - p) / p) + 2 for p in row] for row in chances]).reshape(
        units.shape
    )


def bits_of(u, c):
    """The documented estimate of what a weight of u steps takes."""
    u = abs(u)
    return c * math.log1p(min(u, 1.5) / 0.3) / math.log1p(1 / 0.3) + 1.2 * math.log2(max(u, 1.0))


def law_slopes_of_the_estimate(slopes_of, units):
    """Central differences of the estimate, c held, away from its kinks at 0, 1 and 1.5 steps.

    Its third derivative is at most 2 c / log(1 + 1 / 0.3) / 0.3^3 < 51 c up to 1.5 steps, and
    2.4 / log(2) < 4 beyond 1; its value, below 3 c + 1.2 log2(8), takes fewer than 32 roundings.
    """
    h = 2.0**-15
    slopes, prices = slopes_of(units), price_of_being_there(units)
    assert (slopes.shape, slopes.dtype) == (units.shape, units.dtype)
    for index in np.ndindex(units.shape):
        u, c = float(units[index]), float(prices[index])
        if u == 0.0:
            assert slopes[index] == 0.0
            continue
        difference = (bits_of(u + h, c) - bits_of(u - h, c)) / (2 * h)
        slack = h * h / 6 * (51 * c + 4) + 32 * U * (3 * c + 4) / h
        assert abs(slopes[index] - difference) <= slack


def law_slopes_of_biases(slopes_of, units):
    """The same for 2 log2(1 + |u|), of third derivative below 4 / log(2) < 6 and value below 8."""
    h = 2.0**-15
    slopes = slopes_of(units)
    for u, slope in zip(units.tolist(), slopes.tolist()):
        ends = [2 * math.log2(1 + abs(u + move)) for move in (h, -h)]
        allowed = h * h + 32 * U * 8 / h
        assert abs(slope - (ends[0] - ends[1]) / (2 * h)) <= allowed if u else slope == 0.0


def law_odd(slopes_of, units):
    """The slope of -u is minus that of u: a weight that grows costs more, whichever its sign."""
    np.testing.assert_array_equal(slopes_of(-units), -slopes_of(units))
    assert (slopes_of(units) * units >= 0).all()


# Eighths of a step up to 4, without the kinks.
UNITS = st.integers(-32, 32).filter(lambda k: abs(k) not in (8, 12)).map(lambda k: k / 8)


@given(
    st.sampled_from([(1, 1), (3, 4), (5, 2), (2, 1, 2, 3)]).flatmap(
        lambda shape: arrays(float, shape, elements=UNITS)
    )
)
def test_slopes_of_the_estimate(units):
    law_slopes_of_the_estimate(weight_slopes, units)
    law_odd(weight_slopes, units)


@given(arrays(float, st.integers(0, 5), elements=UNITS))
def test_slopes_of_biases(units):
    law_slopes_of_biases(bias_slopes, units)
    law_odd(bias_slopes, units)


def test_slopes_have_the_dtype_of_the_weights():
    units = np.array([[0.0, 2.0, -0.25], [0.75, 0.0, 1.25]])
    exact = weight_slopes(units)
    for dtype in (np.float16, np.float32):
        slopes = weight_slopes(units.astype(dtype))
        assert slopes.dtype == bias_slopes(units.astype(dtype)).dtype == dtype
        # p, of three roundings, is below 1/2 or cut there, where log2(1/p - 1) has a slope of
        # 4 / log(2) < 6 over p at most; some ten more roundings of values below 16 follow.
        assert np.abs(slopes - exact).max() <= (6 * 3 + 10 * 16) * np.finfo(dtype).eps


def test_a_lone_weight_costs_more():
    units = np.zeros((20, 10))
    units[:3] = 1.0
    units[7, 4] = 1.0
    slopes = weight_slopes(units + 0.125)
    assert slopes[7, 4] > slopes[0, 4]  # alone in its row
    assert slopes[10, 4] < slopes[10, 5]  # in the column that has one more
    # Steps from 1.5 on pay for their length alone.
    np.testing.assert_array_equal(weight_slopes(np.full((2, 2), 2.0)), 1.2 / math.log(2) / 2)


# Wrong implementations that the laws must catch ---------------------------------------------------

MATRIX = np.array([[1.25, 0.25, 0.0], [2.25, 0.75, 0.0], [-1.25, 0.0, 0.125], [0.625, 3.0, 0.0]])

PLANTED = {
    "one price for all": (
        lambda wrong: law_slopes_of_the_estimate(wrong, MATRIX),
        lambda units: weight_slopes(units.reshape(-1, 1)).reshape(units.shape),
    ),
    "rows and columns that count at once": (
        lambda wrong: law_slopes_of_the_estimate(wrong, MATRIX),
        exchanged("PRIOR", 1e-9, weight_slopes),
    ),
    "magnitudes for nothing": (
        lambda wrong: law_slopes_of_the_estimate(wrong, MATRIX),
        exchanged("MAGNITUDE_BITS", 1.0, weight_slopes),
    ),
    "no flat part": (
        lambda wrong: law_slopes_of_the_estimate(wrong, MATRIX),
        exchanged("FLAT", 9.0, weight_slopes),
    ),
    "long numbers for nothing": (
        lambda wrong: law_slopes_of_the_estimate(wrong, MATRIX),
        exchanged("GROWTH", 0.0, weight_slopes),
    ),
    "slopes without a sign": (
        lambda wrong: law_odd(wrong, MATRIX), lambda units: np.abs(weight_slopes(units)),
    ),
    "a slope at zero": (
        lambda wrong: law_slopes_of_biases(wrong, np.array([0.0, 1.25])),
        lambda units: np.where(units == 0, 2 / math.log(2), bias_slopes(units)),
    ),
    "half of the bits of a bias": (
        lambda wrong: law_slopes_of_biases(wrong, np.array([0.5, 1.25])),
        lambda units: bias_slopes(units) / 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
