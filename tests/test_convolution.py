"""Convolution and the dense product against plain loops; their gradients by the adjoint identity.

All inputs are small integers. Every product and sum of them is exact in every dtype, so the claims
are checked with ==.
"""

import itertools
import tracemalloc
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.errors import CompressionError
from minicompress.nn.convolution import (
    conv2d,
    conv2d_vjp,
    dense,
    dense_vjp,
)
from minicompress.nn.kernels.direct import direct_conv2d, direct_conv2d_vjp
from minicompress.nn.kernels.windows import geometry, resolve_padding
from minicompress.nn.kernels.winograd import winograd_conv2d, winograd_conv2d_vjp

DTYPES = (np.float16, np.float32, np.float64)
F32 = np.float32


class Case(NamedTuple):
    """The operands of a convolution, a gradient for its output, and its options."""

    x: Any
    weight: Any
    bias: Any
    dy: Any
    options: dict[str, Any]


def integers(dtype, shape):
    return arrays(dtype, shape, elements=st.integers(-3, 3), fill=st.nothing())


@st.composite
def conv_cases(draw):
    """Any kernel up to 3x3, stride, padding, dilation and groups that fit the image."""
    two = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(two), draw(two), draw(st.tuples(*[st.integers(1, 2)] * 2))
    side = st.integers(0, 2)
    padding = draw(
        st.one_of(
            st.sampled_from(["valid", "same"]),
            side,
            st.tuples(side, side),
            st.tuples(st.tuples(side, side), st.tuples(side, side)),
        )
    )
    groups = draw(st.integers(1, 3))
    # On both sides of the number of channels where the layout of the window matrix changes.
    c, channels = draw(st.sampled_from([1, 2, 4, 5])), draw(st.integers(1, 2))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    hw = tuple(e + draw(st.integers(0, 3)) for e in extent)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    oh, ow = geometry(hw, kernel, stride=stride, padding=padding, dilation=dilation).output
    n, dtype = draw(st.integers(0, 2)), draw(st.sampled_from(DTYPES))
    return Case(
        draw(integers(dtype, (n, *hw, c * groups))),
        draw(integers(dtype, (*kernel, c, channels * groups))),
        draw(integers(dtype, channels * groups)),
        draw(integers(dtype, (n, oh, ow, channels * groups))),
        options,
    )


def fixed(hw, kernel, c=2, channels=2, n=2, dtype=F32, **options):
    """A case of seeded integers, for sizes that nobody would want drawn one by one."""
    rng = np.random.default_rng(0)
    groups = options.get("groups", 1)
    where = {k: v for k, v in options.items() if k != "groups"}
    oh, ow = geometry(hw, kernel, **where).output
    shapes = (n, *hw, c * groups), (*kernel, c, channels), (channels,), (n, oh, ow, channels)
    return Case(*(rng.integers(-3, 4, shape).astype(dtype) for shape in shapes), options)


def loops(x, weight, bias, *, stride=1, padding="valid", dilation=1, groups=1):
    """The definition, one product at a time."""
    stride, dilation = np.broadcast_to(stride, 2), np.broadcast_to(dilation, 2)
    kh, kw, c, channels = weight.shape
    (top, bottom), (left, right) = resolve_padding(
        padding, x.shape[1:3], (kh, kw), stride=tuple(stride), dilation=tuple(dilation)
    )
    h, w = x.shape[1:3]
    oh = (h + top + bottom - (kh - 1) * dilation[0] - 1) // stride[0] + 1
    ow = (w + left + right - (kw - 1) * dilation[1] - 1) // stride[1] + 1
    y = np.zeros((len(x), oh, ow, channels))
    xs, ws = x.tolist(), weight.tolist()
    for n, i, j, o in np.ndindex(y.shape):
        total = float(bias[o])
        first = o // (channels // groups) * c  # of the input channels that this output sees
        for p, q in itertools.product(range(kh), range(kw)):
            a = i * stride[0] + p * dilation[0] - top
            b = j * stride[1] + q * dilation[1] - left
            if 0 <= a < h and 0 <= b < w:
                total += sum(xs[n][a][b][first + k] * ws[p][q][k][o] for k in range(c))
        y[n, i, j, o] = total
    return y


def law_equals_loops(convolve, case):
    """The convolution is what its definition says, entry by entry, in the dtype of its operands."""
    y = convolve(case.x, case.weight, case.bias, **case.options)
    assert y.dtype == case.x.dtype
    np.testing.assert_array_equal(y, loops(case.x, case.weight, case.bias, **case.options))


def law_adjoint(vjp, case):
    """<dy, y> = <dx, x> + <dbias, bias> = <dweight, weight> + <dbias, bias>: exact for integers."""
    x, weight, bias, dy, options = case
    gradients = vjp(dy, x, weight, **options)
    for gradient, operand in zip(gradients, (x, weight, bias), strict=True):
        assert (gradient.shape, gradient.dtype) == (operand.shape, operand.dtype)
    y = loops(x, weight, np.zeros_like(bias), **options)
    dx, dweight, dbias = (gradient.astype(float) for gradient in gradients)
    assert (dy.astype(float) * y).sum() == (dx * x).sum() == (dweight * weight).sum()
    np.testing.assert_array_equal(dbias, dy.astype(float).sum((0, 1, 2)))


def law_differences(vjp, case):
    """A convolution is linear in each operand, so central differences of step 1 are exact."""
    x, weight, bias, dy, options = (
        *(a.astype(float) if isinstance(a, np.ndarray) else a for a in case),
    )
    operands = [x, weight, bias]
    for k, gradient in enumerate(vjp(dy, x, weight, **options)):
        for index in np.ndindex(gradient.shape):
            ends = []
            for step in (1.0, -1.0):
                moved = operands[k].copy()
                moved[index] += step
                y = conv2d(*operands[:k], moved, *operands[k + 1 :], **options)
                ends.append((dy * y).sum())
            assert gradient[index] == (ends[0] - ends[1]) / 2


def law_pure(function, *arguments, **options):
    """No byte of an argument changes, and the same call gives the same result."""
    before = [argument.tobytes() for argument in arguments]
    first, second = function(*arguments, **options), function(*arguments, **options)
    assert [argument.tobytes() for argument in arguments] == before
    for a, b in zip(np.atleast_1d(first), np.atleast_1d(second), strict=True):
        np.testing.assert_array_equal(a, b)


@given(conv_cases())
def test_equals_six_loops(case):
    law_equals_loops(conv2d, case)


@given(conv_cases())
def test_gradients_are_adjoint(case):
    law_adjoint(conv2d_vjp, case)


@given(conv_cases(), st.integers(1, 2000))
def test_blocks_of_any_size_give_the_same(case, block_bytes):
    if case.options["groups"] > 1:
        return
    options = {k: v for k, v in case.options.items() if k != "groups"}
    x, weight, bias, dy = (a.astype(np.float64) for a in case[:4])
    g = geometry(x.shape[1:3], weight.shape[:2], **options)
    np.testing.assert_array_equal(
        direct_conv2d(x, weight, bias, g, block_bytes), direct_conv2d(x, weight, bias, g)
    )
    small = direct_conv2d_vjp(dy, x, weight, g, True, block_bytes)
    for a, b in zip(small, direct_conv2d_vjp(dy, x, weight, g, True), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_that_see_nothing_but_padding(stride):
    x, weight, bias, dy, options = fixed((1, 2), (2, 2), padding=4, stride=stride)
    g = geometry(x.shape[1:3], (2, 2), **options)
    y = direct_conv2d(x, weight, bias, g, 1)
    np.testing.assert_array_equal(y, loops(x, weight, bias, **options))
    law_adjoint(
        lambda dy, x, weight, **_: direct_conv2d_vjp(dy, x, weight, g, True, 1),
        Case(x, weight, bias, dy, options),
    )


def test_blocks_of_the_usual_size_meet_at_their_borders():
    law_equals_loops(conv2d, fixed((9, 8), (3, 3), padding="same", stride=2))
    # Several blocks of images, and several blocks of rows of one image.
    for case in (fixed((6, 6), (5, 5), 25, 1, n=1000), fixed((400, 90), (5, 5), 5, 1, n=1)):
        x, weight, bias, dy, _ = (*(a.astype(float) for a in case[:4]), None)
        taps = [
            x[:, p : p + dy.shape[1], q : q + dy.shape[2]] @ weight[p, q]
            for p, q in np.ndindex(5, 5)
        ]
        np.testing.assert_array_equal(conv2d(*case[:3]), sum(taps) + bias)
        dx, dweight, _ = conv2d_vjp(case.dy, case.x, case.weight)
        assert (dy * sum(taps)).sum() == (dx * x).sum() == (dweight * weight).sum(dtype=float)


DIFFERENCES = [
    fixed((4, 5), (2, 3), stride=(2, 1), padding=1),
    fixed((5, 5), (2, 2), 1, 4, groups=2, dilation=2, padding="same"),
]


@pytest.mark.parametrize("case", DIFFERENCES)
def test_central_differences(case):
    law_differences(conv2d_vjp, case)


def test_input_gradient_can_be_left_out():
    x, weight, _, dy, _ = fixed((5, 5), (3, 3))
    dx, *rest = conv2d_vjp(dy, x, weight, input_gradient=False)
    assert dx is None
    for a, b in zip(rest, conv2d_vjp(dy, x, weight)[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert (
        dense_vjp(np.ones((2, 3)), np.ones((2, 4)), np.ones((4, 3)), input_gradient=False)[0]
        is None
    )


RAMP = np.arange(1.0, 26.0).reshape(1, 5, 5, 1)  # 1 ... 25
ONES3, ONES2 = np.ones((3, 3, 1, 1)), np.ones((2, 2, 1, 1))
TABLE = {
    # operands, options, the first channel of the output
    "valid": (RAMP, ONES3, {}, [[63, 72, 81], [108, 117, 126], [153, 162, 171]]),
    "all sides": (
        RAMP[:, :2, :2],
        ONES3,
        {"padding": 1},
        [[16, 16], [16, 16]],
    ),
    "asymmetric": (
        RAMP[:, :2, :2],  # 1 2 / 6 7
        ONES2,
        {"padding": ((1, 0), (0, 1))},
        [[3, 2], [16, 9]],
    ),
    "same, surplus at the bottom and right": (
        RAMP[:, :2, :2],
        ONES2,
        {"padding": "same"},
        [[16, 9], [13, 7]],
    ),
    "same, odd size, stride 2": (
        RAMP,
        ONES3,
        {"padding": "same", "stride": 2},
        [[16, 33, 28], [69, 117, 87], [76, 123, 88]],
    ),
    "same, even kernel, odd size, stride 2": (
        RAMP[:, :3, :3],  # 1 2 3 / 6 7 8 / 11 12 13
        ONES2,
        {"padding": "same", "stride": 2},
        [[16, 11], [23, 13]],
    ),
    "dilated": (RAMP, ONES2, {"dilation": 3}, [[1 + 4 + 16 + 19, 44], [60, 64]]),
    "dilated along one axis": (RAMP[:, :2], ONES2, {"dilation": (1, 4)}, [[1 + 5 + 6 + 10]]),
    "stride by axis": (RAMP, ONES3, {"stride": (1, 2)}, [[63, 81], [108, 126], [153, 171]]),
    "not flipped": (
        RAMP[:, :2, :2],
        np.array([1.0, 10.0, 100.0, 1000.0]).reshape(2, 2, 1, 1),
        {},
        [[1 + 20 + 600 + 7000]],
    ),
    "padding wider than the image": (
        RAMP[:, :1, :1],
        ONES3,
        {"padding": 3},
        np.pad(np.ones((3, 3)), 1),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_table_of_onnx_semantics(name):
    x, weight, options, expected = TABLE[name]
    np.testing.assert_array_equal(conv2d(x, weight, **options)[0, :, :, 0], expected)


def test_groups_see_their_own_channels():
    x = np.array([1.0, 10.0, 100.0, 1000.0]).reshape(1, 1, 1, 4)
    y = conv2d(x, np.array([[1.0, 1.0, 1.0, 2.0], [1.0, 2.0, 1.0, 1.0]])[None, None], groups=2)
    np.testing.assert_array_equal(y.ravel(), [11, 21, 1100, 1200])
    depthwise = conv2d(x, np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4), groups=4)
    np.testing.assert_array_equal(depthwise.ravel(), [1, 20, 300, 4000])


@given(
    st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3)
)
def test_output_size(n, k, s, d, p):
    """ "same" gives ceil(n / s); else every window lies in the padded image and no more would."""
    g = geometry((n, n), (k, k), stride=s, dilation=d, padding="same")
    assert g.output == (-(-n // s),) * 2
    (before, after), _ = g.pads
    assert after - before in (0, 1)
    extent = (k - 1) * d + 1
    if extent <= n + 2 * p:
        oh, _ = geometry((n, n), (k, k), stride=s, dilation=d, padding=p).output
        assert (oh - 1) * s + extent <= n + 2 * p < oh * s + extent


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("valid", ((0, 0), (0, 0))),
        ("same", ((0, 1), (1, 1))),
        (2, ((2, 2), (2, 2))),
        (np.int64(2), ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))),
        (((1, 2), (3, 4)), ((1, 2), (3, 4))),
    ],
)
def test_padding_forms(padding, expected):
    assert resolve_padding(padding, (6, 6), (2, 3)) == expected


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "negative": lambda a: a[::-1].copy()[::-1],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("c", [2, 6, 32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same(layout, c):
    x, weight, bias, dy, options = fixed((6, 6), (3, 3), c, 32, padding=1)
    other = [LAYOUTS[layout](a) for a in (x, weight, bias, dy)]
    np.testing.assert_array_equal(conv2d(*other[:3], **options), conv2d(x, weight, bias, **options))
    gradients = conv2d_vjp(other[3], *other[:2], **options)
    for a, b in zip(gradients, conv2d_vjp(dy, x, weight, **options), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("c", [2, 32])
def test_arguments_are_left_alone(c):
    x, weight, bias, dy, _ = fixed((6, 6), (3, 3), c, 32)
    law_pure(conv2d, x, weight, bias)
    law_pure(lambda *a: conv2d_vjp(*a)[0], dy, x, weight)
    law_pure(dense, np.ones((2, 3)), np.ones((3, 4)), np.ones(4))
    law_pure(lambda *a: dense_vjp(*a)[0], np.ones((2, 4)), np.ones((2, 3)), np.ones((3, 4)))


def test_float16_is_summed_in_float32():
    ones = np.ones((1, 1, 1, 4099), np.float16)  # summed in float16 it would stall at 2048
    assert conv2d(ones, ones.reshape(1, 1, 4099, 1)).item() == 4100.0  # 4099, a tie, to even
    assert dense(ones.reshape(1, -1), ones.reshape(-1, 1)).item() == 4100.0


def test_all_but_one_kind_of_convolution_is_exact():
    """Whole numbers of 2^26 and more would not survive Winograd's fractions."""
    x, weight, bias, _, _ = fixed((4, 4), (3, 3), 32, 32, n=1, dtype=np.float64)
    x *= 2.0**30 + 1
    np.testing.assert_array_equal(conv2d(x, weight, bias), loops(x, weight, bias))
    law_equals_loops(conv2d, fixed((5, 5), (3, 3), 32, 32, n=1, stride=2))
    law_equals_loops(conv2d, fixed((6, 6), (3, 3), 32, 32, n=1, dilation=2))
    law_equals_loops(conv2d, fixed((3, 3), (2, 2), 32, 32, n=1))
    law_equals_loops(conv2d, fixed((4, 4), (3, 3), 31, 32, n=1))


def test_float32_with_many_channels_takes_the_fast_path():
    x, weight, bias, dy, _ = fixed((6, 6), (3, 3), 32, 32)
    g = geometry((6, 6), (3, 3), 1, "valid")
    np.testing.assert_array_equal(conv2d(x, weight, bias), winograd_conv2d(x, weight, bias, g))
    fast = winograd_conv2d_vjp(dy, x, weight, g, True)
    for a, b in zip(conv2d_vjp(dy, x, weight), fast, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("c", "kernel"), [(1, (3, 3)), (6, (5, 5)), (32, (3, 3))])
def test_memory_does_not_grow_with_the_batch_beyond_the_output(c, kernel):
    peaks = []
    for n in (200, 400):
        x, weight = np.zeros((n, 16, 16, c), F32), np.zeros((*kernel, c, 32), F32)
        tracemalloc.start()
        y = conv2d(x, weight, padding="same")
        peaks.append(tracemalloc.get_traced_memory()[1] - y.nbytes)
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 10_000


def test_empty_batch_and_one_pixel():
    x, weight = np.zeros((0, 5, 5, 8), F32), np.ones((3, 3, 8, 8), F32)
    assert conv2d(x, weight).shape == (0, 3, 3, 8)
    dx, dweight, dbias = conv2d_vjp(np.zeros((0, 3, 3, 8), F32), x, weight)
    assert (dx.shape, dweight.any(), dbias.any()) == (x.shape, False, False)
    one = np.full((1, 1, 1, 1), 3.0)
    assert conv2d(one, one, one[0, 0, 0]).item() == 12.0
    assert dense(np.zeros((0, 3)), np.ones((3, 2))).shape == (0, 2)
    assert [a.any() for a in dense_vjp(np.ones((0, 2)), np.ones((0, 3)), np.ones((3, 2)))[1:]] == [
        False,
        False,
    ]


@st.composite
def dense_cases(draw):
    n, i, o = draw(st.integers(0, 4)), draw(st.integers(0, 4)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(DTYPES))
    return tuple(draw(integers(dtype, shape)) for shape in ((n, i), (i, o), (o,), (n, o)))


def law_dense(multiply, vjp, case):
    """Each entry is its sum of products; <dy, y> = <dx, x> = <dweight, weight> without a bias."""
    x, weight, bias, dy = case
    y = multiply(x, weight, bias)
    assert y.dtype == x.dtype
    for n, o in np.ndindex(y.shape):
        terms = zip(x[n].tolist(), weight[:, o].tolist(), strict=True)
        assert y[n, o] == bias[o] + sum(a * b for a, b in terms)
    dx, dweight, dbias = vjp(dy, x, weight)
    assert dx.dtype == dweight.dtype == dbias.dtype == x.dtype
    product = (dy.astype(float) * multiply(x, weight, None)).sum()
    assert product == (dx.astype(float) * x).sum() == (dweight.astype(float) * weight).sum()
    np.testing.assert_array_equal(dbias, dy.sum(0))


@given(dense_cases())
def test_dense(case):
    law_dense(dense, dense_vjp, case)


X, W, B = np.zeros((1, 4, 4, 4)), np.zeros((3, 3, 4, 6)), np.zeros(6)
ERRORS = {
    "x": [
        (conv2d, (X[0], W), {}),
        (conv2d, (X.astype(int), W), {}),
        (conv2d, (np.zeros((1, 0, 4, 4)), W), {}),
        (dense, (np.zeros(3), np.zeros((3, 3))), {}),
    ],
    "weight": [
        (conv2d, (X, W[0]), {}),
        (conv2d, (X, W[:, :, :3]), {}),
        (conv2d, (X, W), {"groups": 2}),
        (dense, (np.zeros((2, 3)), np.zeros((2, 3))), {}),
    ],
    "bias": [
        (conv2d, (X, W, B[:5]), {}),
        (conv2d, (X, W, 1.0), {}),
        (dense, (np.zeros((2, 3)), np.zeros((3, 2)), np.zeros(3)), {}),
    ],
    "dtype": [
        (conv2d, (X, W.astype(F32)), {}),
        (conv2d, (X, W, B.astype(F32)), {}),
        (conv2d_vjp, (np.zeros((1, 2, 2, 6), F32), X, W), {}),
        (dense, (np.zeros((2, 3)), np.zeros((3, 2), F32)), {}),
    ],
    "stride": [
        (conv2d, (X, W), {"stride": 0}),
        (conv2d, (X, W), {"stride": (1, 2, 3)}),
        (conv2d, (X, W), {"stride": 1.0}),
    ],
    "dilation": [(conv2d, (X, W), {"dilation": 0})],
    "groups": [
        (conv2d, (X, W), {"groups": 0}),
        (conv2d, (X, W), {"groups": 3}),
        (conv2d, (X, W[:, :, :1]), {"groups": 4}),
    ],
    "padding": [
        (conv2d, (X, W), {"padding": "full"}),
        (conv2d, (X, W), {"padding": -1}),
        (conv2d, (X, W), {"padding": True}),
        (conv2d, (X, W), {"padding": (1, 1, 1)}),
        (conv2d, (X, W), {"padding": ((1, 1), (1, -1))}),
        (conv2d, (X, W), {"padding": None}),
    ],
    "kernel": [
        (conv2d, (X[:, :2], W), {}),
        (conv2d, (X, W), {"dilation": (1, 2)}),
        (conv2d, (X, W[:0]), {}),
    ],
    "dy": [
        (conv2d_vjp, (np.zeros((1, 3, 2, 6)), X, W), {}),
        (dense_vjp, (np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((3, 2))), {}),
    ],
    "input_gradient": [
        (conv2d_vjp, (np.zeros((1, 2, 2, 6)), X, W), {"input_gradient": 1}),
        (
            dense_vjp,
            (np.zeros((2, 2)), np.zeros((2, 3)), np.zeros((3, 2))),
            {"input_gradient": None},
        ),
    ],
}


@pytest.mark.parametrize(
    ("word", "call"), [(word, call) for word, calls in ERRORS.items() for call in calls]
)
def test_bad_arguments_are_named(word, call):
    function, arguments, options = call
    with pytest.raises(CompressionError, match=word):
        function(*arguments, **options)


# Wrong implementations that the laws must catch -------------------------------------------------


def flipped(x, weight, bias, **options):
    return conv2d(x, weight[::-1, ::-1], bias, **options)


def same_at_the_top_left(x, weight, bias, **options):
    (a, b), (c, d) = resolve_padding("same", x.shape[1:3], weight.shape[:2])
    return conv2d(x, weight, bias, **{**options, "padding": ((b, a), (d, c))})


def sides_exchanged(x, weight, bias, *, padding, **options):
    (a, b), (c, d) = padding
    return conv2d(x, weight, bias, padding=((c, d), (a, b)), **options)


def without(option):
    """Ignores an option; pads with zeros or cuts so that at least the shape is right."""

    def wrong(x, weight, bias, **options):
        y = conv2d(x, weight, bias, **options)
        z = conv2d(x, weight, bias, **{k: v for k, v in options.items() if k != option})
        y[...] = z[:, : y.shape[1], : y.shape[2]]
        return y

    return wrong


def interleaved_groups(x, weight, bias, *, groups, **options):
    y = conv2d(x, weight, bias, groups=groups, **options)
    return y.reshape(*y.shape[:3], groups, -1).swapaxes(3, 4).reshape(y.shape)


def last_image_forgotten(x, weight, bias, **options):
    y = conv2d(x, weight, bias, **options)
    y[-1] = 0
    return y


def in_float64(x, weight, bias, **options):
    return conv2d(*(a.astype(float) for a in (x, weight, bias)), **options)


def vjp_without_stride(dy, x, weight, *, stride, **options):
    _, dweight, dbias = conv2d_vjp(dy, x, weight, stride=stride, **options)
    spread = np.zeros((len(x), *geometry(x.shape[1:3], weight.shape[:2]).output, dy.shape[3]), F32)
    spread[:, : dy.shape[1], : dy.shape[2]] = dy
    return conv2d_vjp(spread, x, weight)[0], dweight, dbias


def vjp_changed(k, change):
    """One of the three gradients changed."""

    def wrong(dy, x, weight, **options):
        gradients = list(conv2d_vjp(dy, x, weight, **options))
        gradients[k] = change(gradients[k])
        return gradients

    return wrong


def writes_to_its_input(x, weight, bias):
    np.maximum(x, 0, out=x)
    return conv2d(x, weight, bias)


BORDER = fixed((5, 5), (2, 2), padding="same")
PLAIN = fixed((5, 6), (3, 3))
STRIDED = fixed((7, 7), (2, 2), stride=2)
GROUPED = fixed((4, 4), (2, 2), 2, 4, groups=2)
DILATED = fixed((7, 7), (3, 3), dilation=2)
SIDES = fixed((6, 6), (3, 3), padding=((1, 2), (0, 1)))

PLANTED = {
    "kernel flipped": (lambda f: law_equals_loops(f, PLAIN), flipped),
    "surplus of same at the top left": (
        lambda f: law_equals_loops(f, BORDER),
        same_at_the_top_left,
    ),
    "height and width exchanged": (lambda f: law_equals_loops(f, SIDES), sides_exchanged),
    "stride ignored": (lambda f: law_equals_loops(f, STRIDED), without("stride")),
    "dilation ignored": (
        lambda f: law_equals_loops(f, DILATED),
        without("dilation"),
    ),
    "outputs of the groups interleaved": (
        lambda f: law_equals_loops(f, GROUPED),
        interleaved_groups,
    ),
    "bias forgotten": (
        lambda f: law_equals_loops(f, PLAIN),
        lambda x, weight, bias, **options: conv2d(x, weight, **options),
    ),
    "last block forgotten": (lambda f: law_equals_loops(f, PLAIN), last_image_forgotten),
    "silent float64": (lambda f: law_equals_loops(f, PLAIN), in_float64),
    "stride ignored going backward": (lambda f: law_adjoint(f, STRIDED), vjp_without_stride),
    "kernel gradient flipped": (
        lambda f: law_adjoint(f, PLAIN),
        vjp_changed(1, lambda dweight: dweight[::-1, ::-1]),
    ),
    "input gradient shifted by a pixel": (
        lambda f: law_adjoint(f, PLAIN),
        vjp_changed(0, lambda dx: np.roll(dx, 1, axis=2)),
    ),
    "bias gradient averaged": (
        lambda f: law_adjoint(f, PLAIN),
        vjp_changed(2, lambda dbias: dbias / 2),
    ),
    "input gradient exchanged between images": (
        lambda f: law_differences(f, DIFFERENCES[0]),
        vjp_changed(0, lambda dx: dx[::-1]),
    ),
    "writes to its input": (
        lambda f: law_pure(f, *(a.copy() for a in PLAIN[:3])),
        writes_to_its_input,
    ),
    "dense with the weight transposed": (
        lambda f: law_dense(f, dense_vjp, DENSE),
        lambda x, weight, bias: dense(x, weight.T, bias),
    ),
    "dense gradient averaged over the batch": (
        lambda f: law_dense(dense, f, DENSE),
        lambda *a: tuple(gradient / 2 for gradient in dense_vjp(*a)),
    ),
}
DENSE = tuple(np.arange(s[0] * s[1]).reshape(s) % 5 - 2.0 for s in ((2, 3), (3, 3), (1, 3), (2, 3)))
DENSE = (*DENSE[:2], DENSE[2][0], DENSE[3])


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_convolutions_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
