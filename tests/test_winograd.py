"""Winograd's path: its identity exactly, its result and gradients within derived bounds."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.nn.kernels.direct import direct_conv2d, direct_conv2d_vjp
from minicompress.nn.kernels.windows import geometry
from minicompress.nn.kernels.winograd import (
    F43,
    Transforms,
    winograd_conv2d,
    winograd_conv2d_vjp,
    winograd_error_bound,
)

F32 = np.float32
U32 = 2.0**-24
# The largest magnitude that one pixel and one entry of the kernel can be blown up to on the way,
# along one axis: sum over frequencies of |A||G|(sum of |B|). Both axes: its square, 860.4.
B1, G1, A1 = (np.abs(matrix) for matrix in F43)
GROWTH = ((A1 * B1.sum(1)) @ G1).max()


def gamma(n, u=U32):
    return n * u / (1 - n * u)


def seeded(hw, c=8, channels=8, n=2, padding="valid"):
    """Real-valued float32 operands, a gradient for the output, and the geometry."""
    rng, g = np.random.default_rng(0), geometry(hw, (3, 3), 1, padding)
    shapes = (n, *hw, c), (3, 3, c, channels), (channels,), (n, *g.output, channels)
    return (*(rng.standard_normal(shape).astype(F32) for shape in shapes), g)


def law_identity(transforms):
    """A [(G w) * (B x)] is the correlation of w and x, for all w and x: in rational numbers.

    It is bilinear, so it is enough that the coefficient of each x_j w_t in y_k is 1 where j = k + t
    and 0 elsewhere.
    """
    b, g, a = (
        [[Fraction(float(v)).limit_denominator(24) for v in row] for row in m] for m in transforms
    )
    for k in range(4):
        for j in range(6):
            for t in range(3):
                coefficient = sum(a[k][f] * b[f][j] * g[f][t] for f in range(6))
                assert coefficient == (j == k + t)


def law_within_bound(convolve, x, weight, bias, g, block_bytes=2**21):
    """The distance to the convolution in float64 is at most the bound, and float64's own error."""
    y = convolve(x, weight, bias, g, block_bytes)
    assert (y.dtype, y.shape) == (x.dtype, (len(x), *g.output, weight.shape[3]))
    exact = [array.astype(float) for array in (x, weight, bias)]
    oracle = direct_conv2d(*exact, g)
    # The oracle is a sum of 9 C products and a bias in float64.
    own = gamma(9 * x.shape[3] + 1, 2.0**-53) * direct_conv2d(*(np.abs(a) for a in exact), g)
    assert (np.abs(y - oracle) <= winograd_error_bound(x, weight, bias, g) + own).all()


def law_gradients_within_bound(vjp, x, weight, dy, g, block_bytes=2**21):
    """The gradients against the direct path in float64, within the bound of the adjoint path.

    The roundings along it, as in `winograd_error_bound`: 4 on each side for the output's gradient,
    4 for the kernel, O channels, 5 for the image's, and 3 where up to four patches overlap, for dx;
    4, 4, one for each patch, and 6 (5 and a coefficient) for dweight. The magnitudes: along one
    axis at most sum over f of |B||G|(sum of |A|), or |G|(sum of |B|)(sum of |A|). The direct path's
    own: 9 O products, or one for each pixel of the output.
    """
    u, u64 = float(np.finfo(x.dtype).eps) / 2, 2.0**-53
    dx, dweight, dbias = vjp(dy, x, weight, g, True, block_bytes)
    oracle = direct_conv2d_vjp(*(a.astype(float) for a in (dy, x, weight)), g, True)
    up_x = ((B1.T * A1.sum(0)) @ G1).max() ** 2 * 4  # at most four patches meet in a pixel
    up_w = (G1.T @ (B1.sum(1) * A1.sum(0))).max() ** 2
    patches = int(len(x) * np.prod([-(-n // 4) for n in g.output]))
    outputs = dy.shape[3]
    size = np.abs(dy).max() * np.abs(weight).astype(float).sum((0, 1, 3)).max()
    allowed = gamma(outputs + 29, u) * up_x * size + gamma(9 * outputs, u64) * size
    assert np.abs(dx - oracle[0]).max() <= allowed
    size = float(np.abs(dy).max()) * float(np.abs(x).max()) * patches
    allowed = gamma(patches + 28, u) * up_w * size + gamma(16 * patches, u64) * 16 * size
    assert np.abs(dweight - oracle[1]).max() <= allowed
    # 16 pixels of a patch, summed along each axis by 4, then the patches.
    size = np.abs(dy).astype(float).sum((0, 1, 2))
    allowed = (gamma(patches + 8, u) + gamma(16 * patches, u64)) * size
    assert (np.abs(dbias - oracle[2]) <= allowed).all()


def test_identity():
    law_identity(F43)


HALVES = st.integers(-2048, 2048).map(lambda k: k / 128)


@given(st.data())
def test_result_is_within_the_bound(data):
    side, c = st.integers(0, 2), data.draw(st.integers(1, 3))
    hw = data.draw(st.tuples(st.integers(3, 7), st.integers(3, 7)))
    padding = data.draw(st.tuples(st.tuples(side, side), st.tuples(side, side)))
    x, weight, bias = (
        data.draw(arrays(F32, shape, elements=HALVES))
        for shape in ((1, *hw, c), (3, 3, c, 2), (2,))
    )
    law_within_bound(winograd_conv2d, x, weight, bias, geometry(hw, (3, 3), 1, padding))


SHAPES = {
    "whole patches": ((10, 14), "valid"),
    "patches beyond the output": ((8, 9), "valid"),
    "same": ((8, 8), "same"),
    "sides": ((5, 6), ((2, 0), (1, 3))),
    "smallest": ((3, 3), "valid"),
    "one pixel": ((1, 1), "same"),
}


@pytest.mark.parametrize("block_bytes", [1, 40_000, 2**21])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_blocks(shape, block_bytes):
    hw, padding = SHAPES[shape]
    x, weight, bias, dy, g = seeded(hw, n=3, padding=padding)
    law_within_bound(winograd_conv2d, x, weight, bias, g, block_bytes)
    law_gradients_within_bound(winograd_conv2d_vjp, x, weight, dy, g, block_bytes)
    x, weight, dy = (a.astype(float) for a in (x, weight, dy))
    law_gradients_within_bound(winograd_conv2d_vjp, x, weight, dy, g, block_bytes)


def test_gradients_leave_out_the_input():
    x, weight, _, dy, g = seeded((8, 8))
    dx, dweight, _ = winograd_conv2d_vjp(dy, x, weight, g, False)
    assert dx is None
    np.testing.assert_array_equal(dweight, winograd_conv2d_vjp(dy, x, weight, g, True)[1])


def test_bound_is_as_small_as_the_path_allows():
    """Its worst entry is the growth of both axes, and rounding does come to a fair part of it."""
    ones, corner = np.ones((1, 6, 6, 1), F32), np.zeros((3, 3, 1, 1), F32)
    corner[2, 2] = 1.0
    g = geometry((6, 6), (3, 3), 1, "valid")
    bound = winograd_error_bound(ones, corner, np.zeros(1, F32), g)
    np.testing.assert_allclose(bound.max() / gamma(28), GROWTH**2, rtol=1e-12)
    assert 860 < GROWTH**2 < 861
    x, weight, bias, _, g = seeded((18, 18), 16, 16)
    exact = direct_conv2d(*(a.astype(float) for a in (x, weight, bias)), g)
    ratio = np.abs(winograd_conv2d(x, weight, bias, g) - exact) / winograd_error_bound(
        x, weight, bias, g
    )
    # Roundings of random sign grow like the root of their number n = C + 27 = 43, not like n, and
    # so do the sums of C = 16 terms of random sign: some 1 / (43 * 4) of the bound is to be seen.
    assert ratio.max() > 1 / (4 * 43 * 4)


def test_arguments_are_left_alone():
    x, weight, bias, dy, g = seeded((8, 8))
    before = [a.tobytes() for a in (x, weight, bias, dy)]
    winograd_conv2d(x, weight, bias, g)
    winograd_conv2d_vjp(dy, x, weight, g, True)
    assert [a.tobytes() for a in (x, weight, bias, dy)] == before


# Wrong implementations that the laws must catch -------------------------------------------------


def _changed(k, row, column, value):
    matrices = [matrix.copy() for matrix in F43]
    matrices[k][row, column] = value
    return Transforms(*matrices)


def kernel_transposed(x, weight, bias, g, block_bytes):
    return winograd_conv2d(x, weight.swapaxes(0, 1), bias, g, block_bytes)


def bias_in_one_pixel(x, weight, bias, g, block_bytes):
    y = winograd_conv2d(x, weight, np.zeros_like(bias), g, block_bytes)
    y[:, ::4, ::4] += bias
    return y


def last_patches_left_out(x, weight, bias, g, block_bytes):
    y = winograd_conv2d(x, weight, bias, g, block_bytes)
    y[:, g.output[0] // 4 * 4 :] = 0
    return y


def in_half_precision(x, weight, bias, g, block_bytes):
    weight = weight.astype(np.float16).astype(F32)
    return winograd_conv2d(x, weight, bias, g, block_bytes)


def overlaps_not_added(dy, x, weight, g, *rest):
    dx, *others = winograd_conv2d_vjp(dy, x, weight, g, *rest)
    dx[:, 4:6] = 0
    return dx, *others


def kernel_gradient_transposed(*a):
    dx, dweight, dbias = winograd_conv2d_vjp(*a)
    return dx, dweight.swapaxes(0, 1), dbias


RAGGED = seeded((8, 9))
PLANTED = {
    "a coefficient of the image": (law_identity, _changed(0, 2, 3, 1.0)),
    "a coefficient of the kernel": (law_identity, _changed(1, 3, 1, -1 / 12)),
    "a coefficient of the output": (law_identity, _changed(2, 3, 4, 8.0)),
    "kernel transposed": (lambda f: law_within_bound(f, *RAGGED[:3], RAGGED[4]), kernel_transposed),
    "bias in one pixel of a patch": (
        lambda f: law_within_bound(f, *RAGGED[:3], RAGGED[4]),
        bias_in_one_pixel,
    ),
    "patches at the border left out": (
        lambda f: law_within_bound(f, *RAGGED[:3], RAGGED[4]),
        last_patches_left_out,
    ),
    "the kernel rounded to float16": (
        lambda f: law_within_bound(f, *RAGGED[:3], RAGGED[4]),
        in_half_precision,
    ),
    "gradients of overlapping patches lost": (
        lambda f: law_gradients_within_bound(f, *RAGGED[:2], *RAGGED[3:]),
        overlaps_not_added,
    ),
    "kernel gradient transposed": (
        lambda f: law_gradients_within_bound(f, *RAGGED[:2], *RAGGED[3:]),
        kernel_gradient_transposed,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_paths_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
