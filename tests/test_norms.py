"""Norms are right where plain formulas fail, and upper bounds are above the exact value."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress import norms
from minicompress.errors import CompressionError
from minicompress.testing.strategies import in_layout, matrices, weights


def squares(array):
    """The exact sum of squares of an array's entries."""
    return sum((Fraction(x) ** 2 for x in array.astype(np.float64).ravel().tolist()), Fraction(0))


def law_fro_is_right(norm_of, array):
    """n squares, a sum and a root: gamma_(n + 4), doubled for the square; one lost subnormal."""
    computed, exact = norm_of(array), squares(array)
    if math.isinf(computed):
        assert exact >= Fraction(np.finfo(np.float64).max) ** 2
        return
    eta = Fraction(5e-324)
    relative = (2 * array.size + 8) * Fraction(norms.UNIT)
    slack = relative * exact + 2 * Fraction(computed) * eta + eta**2
    assert abs(Fraction(computed) ** 2 - exact) <= slack


def law_upper_is_above(upper, array):
    bound = upper(array)
    assert math.isinf(bound) or Fraction(bound) ** 2 >= squares(array)


def law_upper_is_tight(upper, array):
    """Not above the exact norm by more than the factor that the docstring derives, squared."""
    bound, exact = upper(array), squares(array)
    if not math.isinf(bound):
        eta = Fraction(1e-323)  # rounded up twice
        factor = 1 + Fraction(8 * (array.size + 10)) * Fraction(norms.UNIT)
        assert Fraction(bound) ** 2 <= exact * factor + 2 * Fraction(bound) * eta


@given(weights())
def test_the_frobenius_norm_neither_under_nor_overflows(array):
    law_fro_is_right(norms.norm_of, array)


@given(weights())
def test_the_upper_bound_is_above_the_exact_norm_and_hardly_more(array):
    law_upper_is_above(norms.fro_upper, array)
    law_upper_is_tight(norms.fro_upper, array)


@given(weights())
def test_the_max_norm_is_exact(array):
    assert norms.norm_of(array, "max") == max(map(abs, array.ravel().tolist()), default=0.0)


@given(weights())
def test_scaling_by_a_power_of_two_scales_every_norm_exactly(array):
    scaled = array.astype(np.float64) * 2.0**-3
    if norms.norm_of(array, "max") < 1e-290:
        return  # the last bits of subnormal numbers would be lost
    for kind in norms.NORMS:
        if math.isfinite(norms.norm_of(array, kind)):
            assert norms.norm_of(scaled, kind) == norms.norm_of(array, kind) / 8


@given(weights())
def test_the_upper_bound_has_the_slack_that_its_docstring_derives(array):
    """Norm times 1 + 2 (n + 8) u, and one place up: neither more nor less."""
    norm = norms.norm_of(array)
    if 0 < norm < math.inf:
        slack = norm * (1 + 2 * (array.size + 8) * 2.0**-53)
        assert norms.fro_upper(array) == np.nextafter(slack, np.inf)


# -- what is allowed for rounding: as derived, in rationals, no less and no more -------------------

U = Fraction(1, 2**53)


def exact_gamma(n):
    return Fraction(n, 2**53 - n)


def exact_root(square):
    """The root of a rational to some 100 bits, rounded down."""
    square = Fraction(square)
    shift = 100 - (square.numerator.bit_length() - square.denominator.bit_length()) // 2
    scaled = square * Fraction(4) ** shift
    return Fraction(math.isqrt(scaled.numerator // scaled.denominator)) / Fraction(2) ** shift


def exact_upward(value, roundings=64):
    """What a bound is to be: a float above this that is the next one, but for one rounding."""
    return value * (1 + roundings * U)


def law_within(bound, law, ulps):
    """A float is this rational, up to its own units in the last place."""
    assert abs(Fraction(bound) - law) <= ulps * Fraction(math.ulp(bound))


def law_within_units(bound, law, units):
    """A float is this rational, up to so many roundings and to some units of the least float."""
    assert abs(Fraction(bound) - law) <= units * U * law + 4 * Fraction(5e-324)


def test_gamma_is_correctly_rounded():
    """n u and 1 - n u are exact, so that the quotient is the only rounding."""
    for n in [*range(200), 2**20, 2**30 + 1]:
        assert norms.gamma(n) == float(exact_gamma(n))


@given(st.floats(1e-280, 1e280), st.integers(0, 300))
def test_upward_is_the_next_float_above_its_law(value, half):
    """1 + n u is exact for even n: one rounding of half a place, and one place up."""
    law = exact_upward(Fraction(value), 2 * half)
    bound = norms.upward(value, 2 * half)
    assert bound > law
    law_within(bound, law, Fraction(3, 2))
    assert norms.upward(value) == norms.upward(value, 64)


@given(st.floats(0.5, 1, exclude_max=True), st.integers(-1073, 1023))
def test_scaling_back_is_rounded_up_by_less_than_a_place(value, exponent):
    exact = Fraction(value) * Fraction(2) ** exponent
    result = norms.unscaled_upper(value, exponent)
    assert exact <= Fraction(result) < exact + Fraction(math.ulp(result))


@pytest.mark.parametrize("k", [1, 4, 25])
def test_the_factor_of_orthogonality_is_its_law(k):
    """c times the unit vectors: U'U - I is (c**2 - 1) I, of norm (c**2 - 1) sqrt(k), exactly.

    Each of the two sums, the product, the root and the two steps of `upward` round once; the first
    three count half under the root. That is 3/2 + 1/2 places and one up.
    """
    m, n = k + 3, k + 40
    for c, d in ((1, 1), (1.5, 1), (1, 1.5)):
        o_u = Fraction(c * c - 1) * math.isqrt(k) + exact_gamma(m + 4) * k
        o_v = Fraction(d * d - 1) * math.isqrt(k) + exact_gamma(n + 4) * k
        factor = norms.orthogonality_factor(c * np.eye(m, k), d * np.eye(k, n))
        law = exact_upward(exact_root((1 + o_u) * (1 + o_v)), 8)
        law_within(factor, law + Fraction(math.ulp(factor)), 2)


def small_integers(*shape):
    return arrays(np.float64, shape, elements=st.integers(-3, 3).map(float))


@st.composite
def integer_triples(draw):
    m, k, n = (draw(st.integers(1, 4)) for _ in range(3))
    a, u = draw(small_integers(m, n)), draw(small_integers(m, k))
    return a, u, np.abs(draw(small_integers(k))), draw(small_integers(k, n))


@given(integer_triples())
def test_the_residual_has_the_allowance_that_the_module_derives(drawn):
    """||R||_F + gamma_(k + 4) || |US| |V| ||_F + u ||A||_F, on integers, where R is exact.

    The sum rounds once and `upward` once, by half a place each, and goes one place up; what the
    products of gamma and of u round is of second order.
    """
    a, u, s, vt = drawn
    rest = a - (u * s) @ vt
    if not rest.any():
        return  # then the second order is the first
    sizes = exact_root(squares(np.abs(u * s) @ np.abs(vt)))
    rounding = exact_gamma(len(s) + 4) * sizes + U * exact_root(squares(a))
    law = exact_upward(Fraction(norms.fro_upper(rest)) + rounding, 2 * (a.size + 8))
    bound = norms.svd_residual(a, u, s, vt)
    law_within(bound, law + Fraction(math.ulp(bound)), Fraction(17, 16))


@given(integer_triples())
def test_the_two_norm_bound_is_composed_as_its_docstring_says(drawn):
    """The product, the sum and `upward` round once each, by half a place, and one place up."""
    a = drawn[0]
    scaled, exponent = norms.power_of_two_scaled(a)
    if min(a.shape) < 2 or not a.any():
        assert norms.spectral_norm_upper(a) == norms.unscaled(norms.fro_upper(scaled), exponent)
        return
    u, s, vt = scipy.linalg.svd(scaled, full_matrices=False)
    factor, residual = norms.orthogonality_factor(u, vt), norms.svd_residual(scaled, u, s, vt)
    law = exact_upward(Fraction(factor) * Fraction(float(s[0])) + Fraction(residual))
    law *= Fraction(2) ** exponent
    bound, frobenius = norms.spectral_norm_upper(a), norms.fro_upper(a)
    if bound != frobenius:
        law_within(bound, law + Fraction(math.ulp(bound)), 2)
    assert bound == frobenius or law < frobenius


def all_ones_law(upper):
    """Of an all-ones (m, n) matrix the 2-norm is sqrt(m n): LAPACK's value is often below it."""
    for m in range(1, 30):
        for n in range(1, 30):
            bound = upper(np.ones((m, n)))
            assert Fraction(bound) ** 2 >= m * n
            assert bound <= math.sqrt(m * n) * (1 + 1e-12)


def hadamard_law(upper):
    """A Hadamard matrix of order n has all singular values sqrt(n)."""
    for k in range(6):
        h = scipy.linalg.hadamard(2**k).astype(np.float64)
        assert Fraction(upper(h)) ** 2 >= 2**k
        assert upper(h) <= math.sqrt(2**k) * (1 + 1e-12)


def test_the_two_norm_bound_holds_on_all_ones_and_hadamard_matrices():
    all_ones_law(norms.spectral_norm_upper)
    hadamard_law(norms.spectral_norm_upper)


@given(matrices())
def test_the_two_norm_bound_is_above_a_rational_lower_bound(matrix):
    """||A v|| / ||v|| for the computed singular vector v, exactly, is never above the norm."""
    bound = norms.spectral_norm_upper(matrix)
    if matrix.size == 0 or not matrix.any():
        assert bound == 0.0
        return
    a = np.ldexp(matrix.astype(np.float64), -int(np.frexp(np.abs(matrix).max())[1]))
    v = [Fraction(x) for x in np.linalg.svd(a)[2][0].tolist()]
    image = [
        sum((Fraction(x) * y for x, y in zip(row, v, strict=True)), Fraction(0))
        for row in matrix.astype(np.float64).tolist()
    ]
    assert math.isinf(bound) or Fraction(bound) ** 2 * sum(y * y for y in v) >= sum(
        y * y for y in image
    )
    assert bound <= norms.fro_upper(matrix)


@given(weights(max_ndim=3), st.sampled_from(["Fortran", "strided", "reversed", "read-only"]))
def test_norms_do_not_depend_on_the_layout_of_a_matrix(array, layout):
    assert norms.norm_of(in_layout(array, layout)) == norms.norm_of(array)


def test_the_error_norm_survives_a_difference_beyond_the_largest_number():
    top = np.finfo(np.float64).max
    assert norms.error_norm(np.array([top / 2]), np.array([-top / 4]), "fro") == top / 2 + top / 4
    assert norms.error_norm(np.array([top]), np.array([-top]), "max") == math.inf
    assert norms.error_norm(np.array([5e-324, 1e308]), np.array([0.0, 1e308]), "fro") == 5e-324


def test_bad_input_is_refused():
    with pytest.raises(CompressionError, match="norm must be one of fro, spectral, max"):
        norms.error_norm(np.ones(2), np.ones(2), "l1")
    with pytest.raises(CompressionError, match="matrix must have 2 dimensions"):
        norms.spectral_norm_upper(np.ones(3))
    with pytest.raises(CompressionError, match="matrix must be finite"):
        norms.spectral_norm_upper(np.array([[np.nan]]))


def plain_fro(array):
    with np.errstate(all="ignore"):
        return float(np.sqrt((array.astype(np.float64) ** 2).sum()))


def lapack_two_norm(matrix):
    return float(np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)[0])


SEVENTHS = np.full(7, 1 / 7)

PLANTED = {
    "plain root of squares underflows": (
        lambda f: law_fro_is_right(f, np.full(3, 1e-170)),
        plain_fro,
    ),
    "plain root of squares overflows": (
        lambda f: law_fro_is_right(f, np.full(3, 1e200)),
        plain_fro,
    ),
    "upper bound without outward rounding": (
        lambda f: [law_upper_is_above(f, np.full(n, 1 / 7)) for n in range(1, 60)],
        plain_fro,
    ),
    "upper bound that is doubled": (
        lambda f: law_upper_is_tight(f, SEVENTHS),
        lambda a: 2 * norms.fro_upper(a),
    ),
    "sum of magnitudes for a root of squares": (
        lambda f: law_upper_is_tight(f, SEVENTHS),
        lambda a: float(np.abs(a).sum()),
    ),
    "LAPACK's largest singular value as an upper bound": (all_ones_law, lapack_two_norm),
    "Frobenius for spectral": (hadamard_law, norms.fro_upper),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_norms_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
