"""Pooling against plain loops over the windows; gradients by hand-made oracles, exactly."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.errors import CompressionError
from minicompress.nn.kernels.windows import geometry, resolve_padding
from minicompress.nn.pooling import (
    avg_pool2d,
    avg_pool2d_vjp,
    global_avg_pool2d,
    global_avg_pool2d_vjp,
    max_pool2d,
    max_pool2d_vjp,
)

# A multiple of every number of pixels in a window of up to 3x3: means of it are whole numbers.
WHOLE = 2520


def windows(shape, window, stride=None, padding="valid"):
    """For every window the pixels that lie in the image, in row-major order, and its full size."""
    (_, h, w, _), (kh, kw) = shape, window
    s0, s1 = np.broadcast_to(window if stride is None else stride, 2)
    (top, _), (left, _) = resolve_padding(padding, (h, w), window, stride=(int(s0), int(s1)))
    size = geometry((h, w), window, stride=(int(s0), int(s1)), padding=padding).output
    for i, j in np.ndindex(size):
        places = [
            (i * s0 + p - top, j * s1 + q - left)
            for p, q in itertools.product(range(kh), range(kw))
        ]
        yield (i, j), [(a, b) for a, b in places if 0 <= a < h and 0 <= b < w]


@st.composite
def pool_cases(draw):
    """An image, a gradient for its pooled one, and options; few different values, so many ties."""
    window = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    low, wide = st.integers(0, window[0] - 1), st.integers(0, window[1] - 1)
    padding = draw(
        st.one_of(st.just("valid"), st.tuples(st.tuples(low, low), st.tuples(wide, wide)))
    )
    hw = tuple(k + draw(st.integers(0, 4)) for k in window)
    oh, ow = geometry(
        hw, window, stride=window if stride is None else stride, padding=padding
    ).output
    n, c = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    elements = st.integers(-2, 2).map(lambda k: k * WHOLE)
    x = draw(arrays(dtype, (n, *hw, c), elements=elements, fill=st.nothing()))
    dy = draw(arrays(dtype, (n, oh, ow, c), elements=elements, fill=st.nothing()))
    return x, dy, window, {"stride": stride, "padding": padding}


def law_max(pool, vjp, case):
    """The maximum of the window's pixels; its gradient to the first of them in row-major order."""
    x, dy, window, options = case
    y, dx = pool(x, window, **options), vjp(dy, x, window, **options)
    assert y.dtype == dx.dtype == x.dtype
    expected, gradient = np.zeros_like(dy), np.zeros_like(x)
    for (i, j), places in windows(x.shape, window, **options):
        for n, c in np.ndindex(len(x), x.shape[3]):
            values = [x[n, a, b, c] for a, b in places]
            expected[n, i, j, c] = max(values)
            a, b = places[values.index(max(values))]
            gradient[n, a, b, c] += dy[n, i, j, c]
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx, gradient)


def law_mean(pool, vjp, case, count_include_pad=False):
    """The mean over the pixels in the image, or over the whole window; the gradient in shares."""
    x, dy, window, options = case
    y = pool(x, window, **options, count_include_pad=count_include_pad)
    dx = vjp(dy, x, window, **options, count_include_pad=count_include_pad)
    assert y.dtype == dx.dtype == x.dtype
    expected, gradient = np.zeros_like(dy), np.zeros_like(x)
    for (i, j), places in windows(x.shape, window, **options):
        count = window[0] * window[1] if count_include_pad else len(places)
        for a, b in places:
            expected[:, i, j] += x[:, a, b]
            gradient[:, a, b] += dy[:, i, j] / count
        expected[:, i, j] /= count
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx, gradient)


@given(pool_cases())
def test_max(case):
    law_max(max_pool2d, max_pool2d_vjp, case)


@given(pool_cases(), st.booleans())
def test_mean(case, count_include_pad):
    law_mean(avg_pool2d, avg_pool2d_vjp, case, count_include_pad)


def test_many_blocks():
    """Images enough for several blocks, and one image whose rows are cut into blocks."""
    rng = np.random.default_rng(0)
    for shape in ((300, 24, 24, 8), (1, 800, 300, 8)):
        x = rng.integers(-9, 10, shape).astype(np.float32)
        y = max_pool2d(x, 2)
        blocks = x.reshape(shape[0], shape[1] // 2, 2, shape[2] // 2, 2, 8)
        np.testing.assert_array_equal(y, blocks.max((2, 4)))
        np.testing.assert_array_equal(avg_pool2d(x, 2), blocks.sum((2, 4)) / 4)
        # A window's gradient goes to one pixel, and to one that holds the maximum.
        dx = max_pool2d_vjp(np.ones_like(y), x, 2)
        np.testing.assert_array_equal(dx.reshape(blocks.shape).sum((2, 4)), np.ones_like(y))
        np.testing.assert_array_equal((dx * x).reshape(blocks.shape).sum((2, 4)), y)


RAMP = np.arange(1.0, 10.0).reshape(1, 3, 3, 1)  # 1 2 3 / 4 5 6 / 7 8 9
TABLE = {
    "max, side by side, rest dropped": (max_pool2d, 2, {}, [[5]]),
    "max, stride 1": (max_pool2d, 2, {"stride": 1}, [[5, 6], [8, 9]]),
    "max, same": (max_pool2d, 2, {"padding": "same"}, [[5, 6], [8, 9]]),
    "max of negatives does not see the padding": (
        lambda x, *a, **k: max_pool2d(-x, *a, **k),
        2,
        {"padding": "same"},
        [[-1, -3], [-7, -9]],
    ),
    "max, window by axis": (max_pool2d, (1, 3), {}, [[3], [6], [9]]),
    "mean, pad left out": (avg_pool2d, 2, {"padding": "same"}, [[3, 4.5], [7.5, 9]]),
    "mean, pad counted": (
        avg_pool2d,
        2,
        {"padding": "same", "count_include_pad": True},
        [[3, 2.25], [3.75, 2.25]],
    ),
    "mean, asymmetric": (
        avg_pool2d,
        (2, 2),
        {"padding": ((1, 0), (0, 0)), "stride": 2, "count_include_pad": True},
        [[0.75], [6]],
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_table_of_onnx_semantics(name):
    pool, window, options, expected = TABLE[name]
    np.testing.assert_array_equal(pool(RAMP, window, **options)[0, :, :, 0], expected)


def test_ties_and_nan():
    x = np.array([[1.0, 7.0], [7.0, 7.0]]).reshape(1, 2, 2, 1)
    dx = max_pool2d_vjp(np.full((1, 1, 1, 1), 3.0), x, 2)
    np.testing.assert_array_equal(dx.ravel(), [0, 3, 0, 0])
    x[0, 1, 1] = np.nan
    assert np.isnan(max_pool2d(x, 2)).all()
    dx = max_pool2d_vjp(np.full((1, 1, 1, 1), 3.0), x, 2)
    np.testing.assert_array_equal(dx.ravel(), [3, 0, 0, 0])


@given(arrays(np.float64, (2, 2, 3, 2), elements=st.integers(-9, 9).map(lambda k: 6.0 * k)))
def test_global_mean(x):
    y = global_avg_pool2d(x)
    np.testing.assert_array_equal(y, x.reshape(2, 6, 2).sum(1) / 6)
    dx = global_avg_pool2d_vjp(y * 6, x)
    np.testing.assert_array_equal(dx, np.broadcast_to(y[:, None, None], x.shape))


def test_float16_means_are_summed_in_float32():
    x = np.full((1, 64, 64, 1), 20.0, np.float16)  # the sum, 81,920, is beyond float16
    for y in (global_avg_pool2d(x), avg_pool2d(x, 64)):
        assert (y.dtype, y.item()) == (np.float16, 20.0)
    assert max_pool2d(x, 64).dtype == np.float16
    assert avg_pool2d_vjp(x[:, :1, :1], x, 64).dtype == np.float16
    assert global_avg_pool2d_vjp(x[:, 0, 0], x).dtype == np.float16


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "negative": lambda a: a[::-1].copy()[::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_arguments_left_alone(layout):
    rng = np.random.default_rng(0)
    x, dy = rng.integers(-9, 9, (2, 6, 6, 3)) * 1.0, rng.integers(-9, 9, (2, 3, 3, 3)) * 1.0
    other = [LAYOUTS[layout](a) for a in (x, dy)]
    np.testing.assert_array_equal(max_pool2d(other[0], 2), max_pool2d(x, 2))
    np.testing.assert_array_equal(avg_pool2d(other[0], 2), avg_pool2d(x, 2))
    np.testing.assert_array_equal(max_pool2d_vjp(other[1], other[0], 2), max_pool2d_vjp(dy, x, 2))
    np.testing.assert_array_equal(avg_pool2d_vjp(other[1], other[0], 2), avg_pool2d_vjp(dy, x, 2))
    for a, b in zip(other, (x, dy), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_window_of_one_pixel_gives_a_new_array():
    x = np.ones((1, 2, 2, 1))
    assert not np.shares_memory(max_pool2d(x, 1), x)
    assert not np.shares_memory(avg_pool2d(x, 1), x)


def test_empty_batch():
    x, dy = np.zeros((0, 4, 4, 2)), np.zeros((0, 2, 2, 2))
    assert max_pool2d(x, 2).shape == avg_pool2d(x, 2).shape == dy.shape
    assert max_pool2d_vjp(dy, x, 2).shape == avg_pool2d_vjp(dy, x, 2).shape == x.shape
    assert global_avg_pool2d(x).shape == (0, 2)
    assert global_avg_pool2d_vjp(np.zeros((0, 2)), x).shape == x.shape


X = np.zeros((1, 4, 4, 1))
ERRORS = [
    ("x", max_pool2d, (X[0], 2), {}),
    ("x", max_pool2d, (np.zeros((1, 0, 4, 1)), 1), {}),
    ("x", global_avg_pool2d, (X[0],), {}),
    ("x", global_avg_pool2d, (np.zeros((1, 0, 4, 1)),), {}),
    ("dtype", avg_pool2d, (X.astype(int), 2), {}),
    ("window", max_pool2d, (X, 0), {}),
    ("window", max_pool2d, (X, (1, 2, 3)), {}),
    ("kernel covers 5 x 5", avg_pool2d, (X, 5), {}),
    ("stride", max_pool2d, (X, 2), {"stride": 0}),
    ("padding must be narrower", max_pool2d, (X, 2), {"padding": 2}),
    ("padding must be narrower", avg_pool2d, (X, 2), {"padding": ((0, 0), (0, 2))}),
    ("padding", avg_pool2d, (X, 2), {"padding": "SAME"}),
    ("count_include_pad", avg_pool2d, (X, 2), {"count_include_pad": 1}),
    ("dy", max_pool2d_vjp, (X, X, 2), {}),
    ("dy", avg_pool2d_vjp, (X, X, 2), {}),
    ("dy", global_avg_pool2d_vjp, (X, X), {}),
    ("dtype", max_pool2d_vjp, (np.zeros((1, 2, 2, 1), np.float32), X, 2), {}),
]


@pytest.mark.parametrize(("word", "function", "arguments", "options"), ERRORS)
def test_bad_arguments_are_named(word, function, arguments, options):
    with pytest.raises(CompressionError, match=word):
        function(*arguments, **options)


# Wrong implementations that the laws must catch -------------------------------------------------


def padded_with_zeros(x, window, *, padding, **options):
    (a, b), (c, d) = padding
    return max_pool2d(np.pad(x, ((0, 0), (a, b), (c, d), (0, 0))), window, **options)


def ties_to_the_last(dy, x, window, **options):
    turned = max_pool2d_vjp(dy[:, ::-1, ::-1], x[:, ::-1, ::-1], window, **options)
    return turned[:, ::-1, ::-1]


def ties_by_column(dy, x, window, *, stride, **options):
    turned = (a.swapaxes(1, 2) for a in (dy, x))
    stride = None if stride is None else stride[::-1]
    return max_pool2d_vjp(*turned, window[::-1], stride=stride, **options).swapaxes(1, 2)


def ties_to_all(dy, x, window, **options):
    dx = max_pool2d_vjp(dy, x, window, **options)
    return np.where(x == x.max(), dx.max(), dx)


def gradient_of_the_last_window(dy, x, window, **options):
    dx = np.zeros_like(x)
    for i, j in np.ndindex(dy.shape[1:3]):
        dx[:, i : i + 3, j : j + 3] = dy[:, i : i + 1, j : j + 1] / 9
    return dx


FLAT = np.full((1, 4, 4, 1), -WHOLE, np.float32)
GRADIENT = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1) * WHOLE
PLAIN = FLAT, GRADIENT, (2, 2), {"stride": None, "padding": "valid"}
NINE = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1) * WHOLE
BORDER = FLAT, NINE, (2, 2), {"stride": None, "padding": ((1, 1), (1, 1))}
OVERLAP = FLAT, GRADIENT, (3, 3), {"stride": (1, 1), "padding": "valid"}

PLANTED = {
    "padding of zeros beats negatives": (
        lambda f: law_max(f, max_pool2d_vjp, BORDER),
        padded_with_zeros,
    ),
    "ties to the last": (lambda f: law_max(max_pool2d, f, PLAIN), ties_to_the_last),
    "ties to all": (lambda f: law_max(max_pool2d, f, PLAIN), ties_to_all),
    "ties column by column": (
        lambda f: law_max(
            max_pool2d,
            f,
            (np.array([1.0, 2, 2, 1]).reshape(1, 2, 2, 1), np.ones((1, 1, 1, 1)), *PLAIN[2:]),
        ),
        ties_by_column,
    ),
    "stride ignored": (
        lambda f: law_max(f, max_pool2d_vjp, OVERLAP),
        lambda x, window, *, stride, **options: max_pool2d(x, window, **options),
    ),
    "mean counts the padding": (
        lambda f: law_mean(f, avg_pool2d_vjp, BORDER),
        lambda *a, count_include_pad, **k: avg_pool2d(*a, **k, count_include_pad=True),
    ),
    "mean never counts the padding": (
        lambda f: law_mean(f, avg_pool2d_vjp, BORDER, True),
        lambda *a, count_include_pad, **k: avg_pool2d(*a, **k),
    ),
    "gradient counts the padding": (
        lambda f: law_mean(avg_pool2d, f, BORDER),
        lambda *a, count_include_pad, **k: avg_pool2d_vjp(*a, **k, count_include_pad=True),
    ),
    "gradient of the sum": (
        lambda f: law_mean(avg_pool2d, f, PLAIN),
        lambda *a, **k: 4 * avg_pool2d_vjp(*a, **k),
    ),
    "gradients of overlapping windows not added": (
        lambda f: law_mean(avg_pool2d, f, OVERLAP),
        gradient_of_the_last_window,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_poolings_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
