"""Fixed-point requantization against Python's unbounded integers and fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from minicompress.errors import CompressionError
from minicompress.integer.requantization import quantize_multiplier, requantize
from minicompress.testing.checks import check_pure
from minicompress.testing.strategies import LAYOUTS, in_layout

INT32 = st.integers(-(2**31), 2**31 - 1)
MULTIPLIERS = st.integers(2**30, 2**31 - 1) | st.sampled_from([2**30, 2**31 - 1])
CODES = st.integers(-128, 127)


def law_rounds_to_nearest(impl, a, m, s, zero_point=0, low=-128, high=127):
    """``clamp(floor(a m / 2**s + 1/2) + zero_point)``, in rational numbers, entry by entry."""
    codes = impl(a, m, s, zero_point=zero_point, low=low, high=high)
    assert codes.dtype == np.int8
    assert codes.shape == a.shape
    ms, ss = np.broadcast_to(m, a.shape), np.broadcast_to(s, a.shape)
    for index in np.ndindex(a.shape):
        scaled = Fraction(int(a[index]) * int(ms[index]), 2 ** int(ss[index]))
        right = (scaled + Fraction(1, 2)).__floor__() + zero_point
        assert int(codes[index]) == min(max(right, low), high), (a[index], ms[index], ss[index])


@st.composite
def cases(draw):
    """Accumulators that come out as codes, as ties, and anywhere in int32."""
    channels = draw(st.integers(1, 3))
    m = draw(npst.arrays(np.int32, channels, elements=MULTIPLIERS, fill=st.nothing()))
    s = draw(npst.arrays(np.int32, channels, elements=st.integers(1, 62), fill=st.nothing()))
    shape = (draw(st.integers(0, 3)), channels)
    a = draw(npst.arrays(np.int64, shape, elements=INT32, fill=st.nothing()))
    halves = draw(npst.arrays(np.int64, shape, elements=st.integers(-600, 600), fill=st.nothing()))
    near = np.rint(halves / 2 / (m * 2.0**-s))  # the accumulators that are scaled to near a half
    a = np.where(np.abs(near) < 2**31, near, a).astype(np.int32)
    low, high = sorted((draw(CODES), draw(CODES)))
    return a, m, s, draw(CODES), low, high


@given(cases())
def test_it_rounds_to_nearest(case):
    law_rounds_to_nearest(requantize, *case)


ENDS = [-(2**31), 1 - 2**31, -(2**30), -1, 0, 1, 2**30 - 1, 2**30, 2**31 - 2, 2**31 - 1]


@pytest.mark.parametrize("s", range(1, 63))
def test_no_product_overflows(s):
    for m in (2**30, 2**31 - 1):
        law_rounds_to_nearest(requantize, np.array(ENDS), m, s)


# What separates the right rounding from its neighbours: ties of both signs, several channels.
TIES = (
    np.array([[-7, -6], [-5, -3], [-1, 1], [3, 5], [700, -700]], np.int32),
    np.array([2**30, 3 * 2**29], np.int32),
    np.array([31, 32], np.int32),
    3,
    -100,
    90,
)


def law_gauntlet(impl):
    law_rounds_to_nearest(impl, *TIES)
    law_rounds_to_nearest(impl, np.array(ENDS, np.int32), 2**31 - 1, 60)
    law_rounds_to_nearest(impl, np.array([[2**24 + 1, 2**24 - 1]], np.int32), 2**30, 55)
    square = np.array([[4, 8], [-3, 11]], np.int32)
    law_rounds_to_nearest(impl, square, np.array([2**30, 2**31 - 1], np.int32), 30)


def variant(scale):
    """A requantization with another way to scale: what is planted differs in one step only."""

    def impl(a, m, s, *, zero_point, low, high):
        n = scale(a.astype(object), np.asarray(m).astype(object), np.asarray(s).astype(object))
        n = np.array(n, object) + zero_point
        return np.minimum(np.maximum(n, low), high).astype(np.int64).astype(np.int8)

    return impl


def fractions(a, m, s):
    return np.frompyfunc(lambda x, y, z: Fraction(x * y, 2**z), 3, 1)(a, m, s)


def away(x):
    return np.frompyfunc(
        lambda f: (abs(f) + Fraction(1, 2)).__floor__() * (1 if f > 0 else -1), 1, 1
    )(x)


def doubling_high_product(x, y):
    nudge = 2**30 if x * y >= 0 else 1 - 2**30
    return int(Fraction(x * y + nudge, 2**31))  # toward zero, as C divides


def gemmlowp(a, m, s):
    """Rounds twice, as gemmlowp does: SaturatingRoundingDoublingHighMul, RoundingDivideByPOT."""
    high = np.frompyfunc(doubling_high_product, 2, 1)(a, m)
    return away(fractions(high, np.ones_like(high), np.maximum(s - 31, 0)))


def in_float32(a, m, s):
    scaled = a.astype(np.float32) * (m.astype(np.float64) * 2.0 ** -s.astype(np.float64)).astype(
        np.float32
    )
    return np.floor(scaled + np.float32(0.5)).astype(np.int64).astype(object)


def wraps(a, m, s, *, zero_point, low, high):
    return (((a.astype(np.int64) * m + (1 << (np.int64(s) - 1))) >> s) + zero_point).astype(np.int8)


def no_half(a, m, s):
    return (a * m) // 2**s


def test_the_right_ones_pass_the_gauntlet():
    law_gauntlet(requantize)
    law_gauntlet(variant(lambda a, m, s: (a * m + 2 ** (s - 1)) // 2**s))


PLANTED = {
    "half down": (law_gauntlet, variant(lambda a, m, s: (a * m + 2 ** (s - 1) - 1) // 2**s)),
    "half away from zero": (law_gauntlet, variant(lambda a, m, s: away(fractions(a, m, s)))),
    "half to even": (
        law_gauntlet,
        variant(lambda a, m, s: np.frompyfunc(round, 1, 1)(fractions(a, m, s))),
    ),
    "rounded twice": (law_gauntlet, variant(gemmlowp)),
    "not rounded": (law_gauntlet, variant(no_half)),
    "shift off by one": (
        law_gauntlet,
        variant(lambda a, m, s: (a * m + 2 ** (s - 1)) // 2 ** (s + 1)),
    ),
    "half off by one": (law_gauntlet, variant(lambda a, m, s: (a * m + 2**s) // 2**s)),
    "in float32": (law_gauntlet, variant(in_float32)),
    "wraps around": (law_gauntlet, wraps),
    "zero point forgotten": (
        law_gauntlet,
        lambda a, m, s, *, zero_point, low, high: requantize(a, m, s, low=low, high=high),
    ),
    "clamp forgotten": (
        law_gauntlet,
        lambda a, m, s, *, zero_point, low, high: requantize(a, m, s, zero_point=zero_point),
    ),
    "channels on the first axis": (
        law_gauntlet,
        lambda a, m, s, **options: (
            requantize(a.T, m, s, **options).T
            if a.ndim == 2 and a.shape[0] == a.shape[1]
            else requantize(a, m, s, **options)
        ),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_ones_are_caught(name):
    law, impl = PLANTED[name]
    with pytest.raises(AssertionError):
        law(impl)


@given(INT32, MULTIPLIERS, st.integers(1, 62))
def test_the_portable_shift_is_the_same(a, m, s):
    """What the docstring gives to C99: 64-bit unsigned arithmetic, no shift of a negative."""
    n = a * m + 2 ** (s - 1)
    assert -(2**63) <= n < 2**63
    lifted = (n % 2**64 + 2**62) % 2**64
    law_rounds_to_nearest(
        lambda *_, **__: np.array([min(max((lifted >> s) - 2 ** (62 - s), -128), 127)], np.int8),
        np.array([a]),
        m,
        s,
    )


# ---- fixed_point


def law_fixed_point(impl, factor):
    """Off by at most one part in 2**31, in the ranges that C relies on."""
    m, s = impl(factor)
    assert m.dtype == s.dtype == np.int32
    assert m.shape == s.shape == factor.shape
    for f, multiplier, shift in zip(factor.ravel(), m.ravel(), s.ravel(), strict=True):
        assert 2**30 <= multiplier < 2**31
        assert 1 <= shift <= 62
        exact, made = Fraction(float(f)), Fraction(int(multiplier), 2 ** int(shift))
        if f >= 2.0**-32:
            assert abs(made - exact) <= exact / 2**31
        else:
            assert made == Fraction(1, 2**32)


FACTORS = st.floats(2.0**-40, 2.0**29, exclude_max=True) | st.sampled_from(
    [2.0**-32, np.nextafter(2.0**-32, 0), 0.5, 1.0, np.nextafter(1.0, 0), np.nextafter(2.0**29, 0),
     5e-324, 1 - 2.0**-32, 1 - 2.0**-33, 0.75 + 2.0**-32]
)  # fmt: skip


@given(npst.arrays(np.float64, npst.array_shapes(max_dims=2, max_side=3), elements=FACTORS))
def test_fixed_point(factor):
    law_fixed_point(quantize_multiplier, factor)


def truncating(factor):
    mantissa, exponent = np.frexp(factor)
    return np.floor(mantissa * 2.0**30).astype(np.int32), (31 - exponent).astype(np.int32)


def carry_forgotten(factor):
    mantissa, exponent = np.frexp(factor)
    m = np.minimum(np.rint(mantissa * 2.0**31), 2**31 - 1).astype(np.int32)
    return m, (31 - exponent).astype(np.int32) + (m == 2**31 - 1)


def one_bit_short(factor):
    mantissa, exponent = np.frexp(factor)
    m = 2 * np.rint(mantissa * 2.0**30).astype(np.int64)
    return np.minimum(m, 2**31 - 2).astype(np.int32), (31 - exponent).astype(np.int32)


@pytest.mark.parametrize("impl", [truncating, carry_forgotten, one_bit_short])
def test_planted_wrong_fixed_points_are_caught(impl):
    factors = np.array([0.3, 1 / 3, 1 - 2.0**-33, 0.75 + 2.0**-31])
    law_fixed_point(quantize_multiplier, factors)
    with pytest.raises(AssertionError):
        law_fixed_point(impl, factors)


@given(INT32)
def test_a_factor_too_small_to_matter_gives_zero(a):
    for factor in (2.0**-33, 1e-300):
        codes = requantize(np.array([a]), *quantize_multiplier(np.array(factor)), zero_point=7)
        assert codes.tolist() == [7]


# ---- arguments


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_integer_dtype(layout):
    a = np.arange(-60, 60, 5, dtype=np.int32).reshape(4, 6)
    m, s = np.full(6, 2**30, np.int32), np.full(6, 32, np.int32)
    right = requantize(a, m, s)
    assert right.flags.c_contiguous
    for dtype in (np.int8, np.int16, np.int32, np.int64):
        np.testing.assert_array_equal(requantize(in_layout(a.astype(dtype), layout), m, s), right)


def test_one_number_and_no_number():
    assert requantize(np.array(10), 2**30, 31).tolist() == 5
    assert requantize(np.zeros((0, 3), np.int32), 2**30, 31).shape == (0, 3)


def test_pure():
    check_pure(requantize, np.arange(6).reshape(2, 3), np.full(3, 2**30), np.full(3, 31))
    check_pure(quantize_multiplier, np.array([0.1, 0.2]))


A = np.zeros((2, 3), np.int32)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((A.astype(float), 2**30, 31), {}, "accumulators must be of an integer dtype"),
        ((np.array([2**31]), 2**30, 31), {}, "accumulators must fit int32"),
        ((np.array([-(2**31) - 1]), 2**30, 31), {}, "accumulators must fit int32"),
        ((A, 2**30 - 1, 31), {}, "multiplier must lie in"),
        ((A, 2**31, 31), {}, "multiplier must lie in"),
        ((A, np.full(2, 2**30), 31), {}, "multiplier must be one integer or one for each channel"),
        ((A, 2**30, 0), {}, "shift must lie in"),
        ((A, 2**30, 63), {}, "shift must lie in"),
        ((A, 2**30, np.full((1, 3), 31)), {}, "shift must be one integer"),
        ((A, 2**30, 31), {"zero_point": 128}, "zero_point must be"),
        ((A, 2**30, 31), {"low": -129}, "low must be"),
        ((A, 2**30, 31), {"low": 5, "high": 4}, "high must be"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, message):
    with pytest.raises(CompressionError, match=message):
        requantize(*arguments, **options)


@pytest.mark.parametrize("factor", [0.0, -1.0, np.nan, 2.0**29, np.float32(0.5)])
def test_bad_factors_are_refused(factor):
    with pytest.raises(CompressionError, match="factor"):
        quantize_multiplier(np.asarray(factor))
