"""Activations against scalar formulas; their gradients by central differences in float64."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minicompress.errors import CompressionError
from minicompress.nn.activations import (
    clip,
    clip_vjp,
    hard_sigmoid,
    hard_sigmoid_vjp,
    hard_swish,
    hard_swish_vjp,
    leaky_relu,
    leaky_relu_vjp,
    prelu,
    prelu_vjp,
    relu,
    relu_vjp,
    sigmoid,
    sigmoid_vjp,
    silu,
    silu_vjp,
    tanh,
    tanh_vjp,
)
from minicompress.nn.losses import softmax, softmax_vjp
from minicompress.nn.normalization import (
    batch_norm,
    batch_norm_vjp,
    normalize_batch,
    normalize_batch_vjp,
)
from minicompress.nn.rearranging import flatten, flatten_vjp

DTYPES = (np.float16, np.float32, np.float64)
ELEMENTWISE = {
    "relu": (relu, relu_vjp),
    "leaky_relu": (leaky_relu, leaky_relu_vjp),
    "sigmoid": (sigmoid, sigmoid_vjp),
    "tanh": (tanh, tanh_vjp),
    "softmax": (softmax, softmax_vjp),
    "clip": (partial(clip, low=-4, high=6), partial(clip_vjp, low=-4, high=6)),
    "hard_sigmoid": (partial(hard_sigmoid, alpha=0.125), partial(hard_sigmoid_vjp, alpha=0.125)),
    "hard_swish": (hard_swish, hard_swish_vjp),
    "silu": (silu, silu_vjp),
}
SHAPES = array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
# Any float16 is a float32 and a float64 too, so one strategy serves all three.
FINITE = st.floats(-1000, 1000, width=16)


@st.composite
def any_arrays(draw, elements=FINITE):
    return draw(arrays(draw(st.sampled_from(DTYPES)), draw(SHAPES), elements=elements))


def scalar_sigmoid(v):
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


SCALARS = {
    # The exact function, and how many units of roundoff the computed one may be off: exp and tanh
    # of NumPy are within 4 ulp (8 u); then an addition, a division and, for float16, a rounding.
    "relu": (lambda v: max(v, 0.0), 0),
    "leaky_relu": (lambda v: v if v > 0 else 0.01 * v, 2),  # the slope and the product are rounded
    "sigmoid": (scalar_sigmoid, 8 + 3),
    "tanh": (math.tanh, 8 + 1),
    "clip": (lambda v: min(max(v, -4.0), 6.0), 0),
    "hard_sigmoid": (lambda v: min(max(v / 8 + 0.5, 0.0), 1.0), 2),  # the sum, and float16
    "silu": (lambda v: v * scalar_sigmoid(v), 8 + 4),
}


def law_formula(function, name, x):
    """Each entry is the scalar formula of its entry, in the dtype and shape of the array."""
    y, (formula, units) = function(x), SCALARS[name]
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    info = np.finfo(x.dtype)
    for got, v in zip(y.ravel().tolist(), x.ravel().tolist(), strict=True):
        exact = formula(v)
        # Below the smallest normal number, the last place is worth smallest_subnormal.
        allowed = units * (float(info.eps) / 2 * abs(exact) + float(info.smallest_subnormal))
        assert abs(got - exact) <= allowed


@pytest.mark.parametrize("name", SCALARS)
@given(any_arrays())
def test_formula(name, x):
    law_formula(ELEMENTWISE[name][0], name, x)


@given(any_arrays())
def test_hard_swish(x):
    """Near -3 the sum x / 6 + 1 / 2 cancels: an error of u in either term is one of u |x| / 2."""
    y = hard_swish(x)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    u = float(np.finfo(x.dtype).eps) / 2
    for got, v in zip(y.ravel().tolist(), x.ravel().tolist(), strict=True):
        exact = v * min(max(v / 6 + 0.5, 0.0), 1.0)
        below = float(np.finfo(x.dtype).smallest_subnormal)
        assert abs(got - exact) <= 4 * u * (abs(v) / 2 * (abs(v) < 4) + abs(exact)) + below


@given(any_arrays(), st.data())
def test_prelu(x, data):
    slope = data.draw(arrays(x.dtype, x.shape[-1:], elements=st.integers(-3, 3).map(float)))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(prelu(x, slope), np.where(x > 0, x, slope * x))


@given(arrays(np.float64, (2, 3), elements=st.integers(-3, 3).map(float)), st.data())
def test_prelu_gradient(x, data):
    slope, dy = (
        data.draw(arrays(np.float64, n, elements=st.integers(-3, 3).map(float)))
        for n in (3, (2, 3))
    )
    dx, dslope = prelu_vjp(dy, x, slope)
    np.testing.assert_array_equal(dx, np.where(x > 0, dy, dy * slope))
    np.testing.assert_array_equal(dslope, (dy * np.where(x > 0, 0, x)).sum(0))


@given(arrays(np.float64, (4, 2), elements=st.integers(-8, 8).map(float)), st.data())
def test_a_normalized_batch_has_its_own_statistics(x, data):
    """Mean `offset`, variance `scale ** 2 * v / (v + epsilon)`, up to rounding."""
    scale, offset = np.array([2.0, -1.0]), np.array([1.0, 0.0])
    y = normalize_batch(x, scale, offset, 1e-5)
    v = x.var(0)
    np.testing.assert_allclose(y.mean(0), offset, atol=1e-13)
    np.testing.assert_allclose(y.var(0), scale**2 * v / (v + 1e-5), rtol=1e-12, atol=1e-24)
    dy = data.draw(arrays(np.float64, (4, 2), elements=st.integers(-2, 2).map(float)))
    dx, dscale, doffset = normalize_batch_vjp(dy, x, scale, 0.5)
    for direction in np.eye(8).reshape(8, 4, 2):
        near, far = (
            (
                dy
                * (
                    normalize_batch(x + h * direction, scale, offset, 0.5)
                    - normalize_batch(x - h * direction, scale, offset, 0.5)
                )
            ).sum()
            / (2 * h)
            for h in (1e-4, 2e-4)
        )
        # The error of a central difference grows as the step squared: that of `near` is a third of
        # the distance to `far`. Rounding: some u of eight products of at most 8, over the step.
        allowed = abs(near - far) / 2 + 8 * 8 * 64 * 2.0**-53 / 1e-4
        assert abs((dx * direction).sum() - near) <= allowed < 1e-4
    z = (x - x.mean(0)) / np.sqrt(v + 0.5)
    np.testing.assert_allclose(dscale, (dy * z).sum(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(doffset, dy.sum(0))


def law_softmax(function, x, axis):
    """Along the axis exp(x_i - x_j) apart and summing to one; nothing overflows."""
    y = function(x, axis)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    u = float(np.finfo(x.dtype).eps) / 2
    k = x.shape[axis]
    rows = np.moveaxis(x, axis, -1).reshape(-1, k) if x.size else []
    got = np.moveaxis(y, axis, -1).reshape(-1, k) if x.size else []
    for row, result in zip(rows, got, strict=True):
        shifted = [float(v) - float(max(row)) for v in row]
        total = math.fsum(math.exp(v) for v in shifted)
        for v, p in zip(shifted, result, strict=True):
            exact = math.exp(v) / total
            # The difference is rounded, which exp multiplies by its size; then 8 u for exp in each
            # place, k for the sum, one for the quotient and one for float16.
            allowed = ((abs(v) + 8 + 8 + k + 2) * exact + k) * u
            assert abs(float(p) - exact) <= allowed


@given(any_arrays(), st.data())
def test_softmax(x, data):
    law_softmax(softmax, x, data.draw(st.integers(-x.ndim, x.ndim - 1)))


def law_gradient(vjp, function, x, dy):
    """The derivative of <dy, f(x)>, by central differences.

    They are off by h^2 / 6 times the third derivative, at most 2 for these functions and weights of
    at most 1 per entry of f; and by the rounding of f, at most 16 u for each of n entries, over h.
    """
    h, n = 1e-5, x.size
    allowed = n * (h * h / 3 + 16 * 2.0**-53 / h)
    dx = vjp(dy, x)
    assert (dx.dtype, dx.shape) == (x.dtype, x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        difference = (dy * (function(x + step) - function(x - step))).sum() / (2 * h)
        assert abs(dx[index] - difference) <= allowed


# Away from 0 and 3 by more than the step: there relu and hard_swish have no derivative.
SMOOTH = st.floats(0.001, 2.9).flatmap(lambda v: st.sampled_from([v, -v]))
WEIGHTS = st.floats(-1, 1)


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(arrays(float, (2, 3), elements=SMOOTH), arrays(float, (2, 3), elements=WEIGHTS))
def test_gradient(name, x, dy):
    function, vjp = ELEMENTWISE[name]
    law_gradient(vjp, function, x, dy)


def test_softmax_gradient_along_another_axis():
    x, dy = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]), np.arange(6.0).reshape(2, 3) / 6
    law_gradient(lambda dy, x: softmax_vjp(dy, x, 0), lambda x: softmax(x, 0), x, dy)


def test_kinks():
    """At 0 relu's derivative is 0, leaky_relu's the slope; -0.0 is 0; NaN passes on."""
    x, ones = np.array([-0.0, 0.0, 5e-324, -5e-324, np.inf, -np.inf]), np.ones(6)
    np.testing.assert_array_equal(relu(x), [0, 0, 5e-324, 0, np.inf, 0])
    np.testing.assert_array_equal(relu_vjp(ones, x), [0, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(leaky_relu_vjp(ones, x, 0.5), [0.5, 0.5, 1, 0.5, 1, 0.5])
    for dtype in DTYPES:
        nan = np.array([np.nan, -np.nan, 1.0, -1.0] * 40, dtype)  # long enough for SIMD loops
        for function in (relu, leaky_relu, sigmoid, tanh):
            np.testing.assert_array_equal(np.isnan(function(nan)), np.isnan(nan))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_overflows(dtype):
    """A warning would be an error here."""
    top = np.finfo(dtype).max
    x = np.array([-top, -1000.0, 0.0, 1000.0, top], dtype)
    np.testing.assert_array_equal(sigmoid(x), np.array([0, 0, 0.5, 1, 1], dtype))
    np.testing.assert_array_equal(tanh(x), [-1, -1, 0, 1, 1])
    half = x / dtype(2)
    np.testing.assert_array_equal(softmax(half), np.array([0, 0, 0, 0, 1], dtype))
    for vjp in (relu_vjp, leaky_relu_vjp, sigmoid_vjp, tanh_vjp, softmax_vjp):
        assert np.isfinite(vjp(np.ones_like(x), half)).all()


@given(any_arrays())
def test_flatten(x):
    y = flatten(x)
    assert y.shape == (len(x), math.prod(x.shape[1:]))
    assert y.ravel().tolist() == x.ravel().tolist()
    np.testing.assert_array_equal(flatten_vjp(y, x), x)


def test_flatten_is_in_c_order_for_any_layout():
    x = np.asfortranarray(np.arange(24.0).reshape(2, 3, 4))
    np.testing.assert_array_equal(flatten(x), np.arange(24.0).reshape(2, 12))


SMALL = st.integers(-3, 3)


@st.composite
def norm_cases(draw):
    """Integers with a variance + epsilon that is a power of four, so that all of it is exact."""
    dtype, c = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 3))
    shape = (*draw(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)), c)
    x, dy = (draw(arrays(dtype, shape, elements=SMALL)) for _ in range(2))
    scale, offset, mean = (draw(arrays(dtype, c, elements=SMALL)) for _ in range(3))
    variance = draw(arrays(dtype, c, elements=st.sampled_from([0.0, 3.0, 15.0])))
    return x, dy, scale, offset, mean, variance


def law_batch_norm(norm, vjp, case):
    """The formula and its derivatives, entry by entry: exact for these numbers."""
    x, dy, scale, offset, mean, variance = case
    deviation = np.sqrt(variance.astype(float) + 1)
    normal = (x.astype(float) - mean) / deviation
    y = norm(x, scale, offset, mean, variance, 1.0)
    np.testing.assert_array_equal(y, scale * normal + offset)
    gradients = vjp(dy, x, scale, mean, variance, 1.0)
    axes = tuple(range(x.ndim - 1))
    expected = dy * scale / deviation, (dy * normal).sum(axes), dy.astype(float).sum(axes)
    for got, wanted in zip(gradients, expected, strict=True):
        assert got.dtype == x.dtype == y.dtype
        np.testing.assert_array_equal(got, wanted)


@given(norm_cases())
def test_batch_norm(case):
    law_batch_norm(batch_norm, batch_norm_vjp, case)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_any_layout_and_arguments_left_alone(name):
    function, vjp = ELEMENTWISE[name]
    x, dy = np.linspace(-3, 3, 12).reshape(3, 4), np.arange(12.0).reshape(3, 4)
    before = x.tobytes(), dy.tobytes()
    y, dx = function(x), vjp(dy, x)
    for other in (
        np.asfortranarray,
        lambda a: a[::-1].copy()[::-1],
        lambda a: np.repeat(a, 2, 1)[:, ::2],
    ):
        np.testing.assert_array_equal(function(other(x)), y)
        np.testing.assert_array_equal(vjp(other(dy), other(x)), dx)
    assert (x.tobytes(), dy.tobytes()) == before


V = np.ones(3)
ERRORS = [
    ("x", relu, (np.ones(3, int),), {}),
    ("x", tanh, ("a",), {}),
    ("negative_slope", leaky_relu, (V, -0.1), {}),
    ("negative_slope", leaky_relu_vjp, (V, V, 2.0), {}),
    ("axis", softmax, (V, 1), {}),
    ("axis", softmax, (np.float64(1.0),), {}),
    ("axis", flatten, (np.float64(1.0),), {}),
    ("dy", relu_vjp, (np.ones(2), V), {}),
    ("dy", sigmoid_vjp, (np.ones((1, 3)), V), {}),
    ("dtype", tanh_vjp, (np.ones(3, np.float32), V), {}),
    ("dy", flatten_vjp, (V, np.ones((3, 2))), {}),
    ("scale", batch_norm, (np.ones((2, 3)), np.ones(2), V, V, V), {}),
    ("offset", batch_norm, (np.ones((2, 3)), V, np.ones(2), V, V), {}),
    ("mean", batch_norm, (np.ones((2, 3)), V, V, np.ones((1, 3)), V), {}),
    ("variance", batch_norm, (np.ones((2, 3)), V, V, V, -V), {}),
    ("epsilon", batch_norm, (np.ones((2, 3)), V, V, V, V, 0.0), {}),
    ("dtype", batch_norm, (np.ones((2, 3)), V.astype(np.float32), V, V, V), {}),
    ("dy", batch_norm_vjp, (np.ones((3, 2)), np.ones((2, 3)), V, V, V), {}),
]


@pytest.mark.parametrize(("word", "function", "arguments", "options"), ERRORS)
def test_bad_arguments_are_named(word, function, arguments, options):
    with pytest.raises(CompressionError, match=word):
        function(*arguments, **options)


# Wrong implementations that the laws must catch -------------------------------------------------

POINTS = np.array([[-2.0, -0.5, 0.25], [0.5, 1.5, 2.5]])
SHARES = np.array([[1.0, -0.5, 0.25], [0.75, -1.0, 0.5]])
NORM = (
    POINTS.round(),
    np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 1.0]]),
    np.array([1.0, 2.0, 3.0]),
    np.array([1.0, 0.0, 2.0]),
    np.array([1.0, -1.0, 2.0]),
    np.array([3.0, 15.0, 0.0]),
)

PLANTED = {
    "relu at the wrong threshold": (
        lambda f: law_formula(f, "relu", POINTS),
        lambda x: np.where(x > 0.3, x, 0.0),
    ),
    "leaky slope on the wrong side": (
        lambda f: law_formula(f, "leaky_relu", POINTS),
        lambda x: np.minimum(x, 0.01 * x),
    ),
    "tanh for sigmoid": (lambda f: law_formula(f, "sigmoid", POINTS), tanh),
    "sigmoid of half the argument": (
        lambda f: law_formula(f, "sigmoid", POINTS),
        lambda x: sigmoid(x / 2),
    ),
    "sigmoid in float16": (
        lambda f: law_formula(f, "sigmoid", POINTS),
        lambda x: sigmoid(x.astype(np.float16)).astype(float),
    ),
    "softmax along the wrong axis": (
        lambda f: law_softmax(f, POINTS, 1),
        lambda x, axis: softmax(x, 1 - axis),
    ),
    "softmax not normalized": (
        lambda f: law_softmax(f, POINTS, 1),
        lambda x, axis: np.exp(x - x.max(axis, keepdims=True)),
    ),
    "relu's gradient passes everywhere": (
        lambda f: law_gradient(f, relu, POINTS, SHARES),
        lambda dy, x: dy,
    ),
    "sigmoid's gradient of its output": (
        lambda f: law_gradient(f, sigmoid, POINTS, SHARES),
        lambda dy, x: sigmoid_vjp(dy, sigmoid(x)),
    ),
    "tanh's gradient without the square": (
        lambda f: law_gradient(f, tanh, POINTS, SHARES),
        lambda dy, x: dy * (1 - np.tanh(x)),
    ),
    "softmax's gradient without its sum": (
        lambda f: law_gradient(f, softmax, POINTS, SHARES),
        lambda dy, x: dy * softmax(x),
    ),
    "epsilon outside of the root": (
        lambda f: law_batch_norm(f, batch_norm_vjp, NORM),
        lambda x, s, o, m, v, e: s * (x - m) / (np.sqrt(v) + e) + o,
    ),
    "offset scaled": (
        lambda f: law_batch_norm(f, batch_norm_vjp, NORM),
        lambda x, s, o, m, v, e: s * ((x - m) / np.sqrt(v + e) + o),
    ),
    "gradient of the scale not normalized": (
        lambda f: law_batch_norm(batch_norm, f, NORM),
        lambda dy, x, s, m, v, e: (
            batch_norm_vjp(dy, x, s, m, v, e)[0],
            (dy * x).sum(0),
            dy.sum(0),
        ),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_activations_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
