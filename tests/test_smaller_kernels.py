"""Smaller kernels: equal where nothing is lost, and the nearest by least squares where it is."""

import numpy as np
import pytest
from budgets import at_most
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import minicompress as mc
from minicompress.rewrite import shrink_kernel, split_kernel


def integers(*shape):
    return npst.arrays(np.float64, shape, elements=st.integers(-3, 3).map(float), fill=st.nothing())


def ringed(inner, size):
    """A kernel with a ring of zeros around it."""
    around = (size - inner.shape[0]) // 2
    return np.pad(inner, ((around, around), (around, around), (0, 0), (0, 0)))


@given(st.data())
def test_cutting_a_ring_of_zeros_changes_nothing(data):
    padding = data.draw(st.sampled_from(["same", 4, 5, ((4, 6), (5, 4))]))  # enough to take away
    stride, dilation = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    kernel = ringed(data.draw(integers(3, 3, 1, 2)), 5)
    layer = mc.Conv2D(
        kernel, data.draw(integers(2)), stride=stride, dilation=dilation, padding=padding
    )
    x = data.draw(integers(1, 9, 8, 1))
    new = shrink_kernel(layer, 3, input_hw=(9, 8))
    assert new.weight.shape == (3, 3, 1, 2)
    assert np.array_equal(new.forward(x), layer.forward(x))


def law_least_squares(shrink, layer, x):
    """On the calibration inputs never worse than cutting out the middle."""
    target = layer.forward(x)
    fitted = shrink(layer, 3, calibration=x).forward(x)
    cut = shrink_kernel(layer, 3).forward(x)
    worse = np.square(target - cut).sum()
    # lstsq is backward stable: the minimum up to some 1e-10 of what there is to explain.
    assert np.square(target - fitted).sum() <= worse + 1e-10 * np.square(target).sum()


@at_most(20)
@given(integers(5, 5, 2, 2), integers(3, 6, 6, 2))
def test_fitting_is_never_worse_than_cutting(kernel, x):
    law_least_squares(shrink_kernel, mc.Conv2D(kernel, np.ones(2), padding="same"), x)


def test_fitting_finds_what_can_be_found():
    # On constant images a 5x5 of ones is nine times a 3x3 of 25/9, borders apart.
    x = np.ones((2, 9, 9, 1)) * np.array([1.0, 2.0]).reshape(2, 1, 1, 1)
    layer = mc.Conv2D(np.ones((5, 5, 1, 1)), np.zeros(1))
    new = shrink_kernel(layer, 3, calibration=x)
    assert new.forward(x).shape == (2, 7, 7, 1)  # no padding to take away: the output grows
    # Least squares on exact data: right to some hundred u of float64.
    np.testing.assert_allclose(
        new.forward(x)[:, 1:-1, 1:-1], layer.forward(x), rtol=1e-13, atol=1e-12
    )


def test_a_three_by_three_becomes_a_two_by_two():
    kernel = np.zeros((3, 3, 1, 1))
    kernel[1:, 1:] = np.arange(1.0, 5.0).reshape(2, 2, 1, 1)
    layer = mc.Conv2D(kernel, padding="same")
    x = np.arange(25.0).reshape(1, 5, 5, 1)
    new = shrink_kernel(layer, 2)
    assert new.weight.shape == (2, 2, 1, 1)
    assert np.array_equal(new.forward(x), layer.forward(x))


def composed(first, second):
    """The kernel of two convolutions, one after the other."""
    h, k = len(first), 2 * len(first) - 1
    kernel = np.zeros((k, k, first.shape[2], second.shape[3]))
    for i, j in np.ndindex(h, h):
        for u, v in np.ndindex(h, h):
            kernel[i + u, j + v] += first[i, j] @ second[u, v]
    return kernel


def test_a_composed_kernel_is_found_again():
    rng = np.random.default_rng(0)
    kernel = composed(rng.normal(size=(3, 3, 2, 3)), rng.normal(size=(3, 3, 3, 4)))
    layer = mc.Conv2D(kernel, np.ones(4), padding="same")
    parts = split_kernel(layer, channels=6, iterations=200, rng=rng)
    error = np.abs(composed(parts[0].weight, parts[1].weight) - kernel).max()
    assert error < 1e-3 * np.abs(kernel).max()  # an iteration that converges: no bound is claimed
    assert parts[0].padding == ((2, 2), (2, 2))
    assert parts[1].padding == "valid" or parts[1].padding == ((0, 0), (0, 0))


@at_most(20)
@given(integers(5, 5, 1, 2), integers(2), integers(1, 8, 7, 1), st.sampled_from([1, 2]))
def test_two_kernels_are_the_convolution_by_their_product(kernel, bias, x, stride):
    layer = mc.Conv2D(kernel, bias, stride=stride, padding=2)
    first, second = split_kernel(layer, rng=np.random.default_rng(0), iterations=3)
    both = mc.Sequential((first, second))(x)
    whole = mc.nn.conv2d(x, composed(first.weight, second.weight), bias, stride=stride, padding=2)
    # Both sum at most 25 products of three numbers, in different orders: gamma_60 of their sizes.
    size = mc.nn.conv2d(
        np.abs(x),
        composed(np.abs(first.weight), np.abs(second.weight)),
        np.abs(bias),
        stride=stride,
        padding=2,
    )
    assert (np.abs(both - whole) <= 2 * 60 * 2.0**-53 * size * 18 + 1e-300).all()


@at_most(10)
@given(integers(5, 5, 2, 2))
def test_the_error_of_splitting_never_grows(kernel):
    layer, errors = mc.Conv2D(kernel), []
    for n in (1, 2, 4):
        parts = split_kernel(layer, rng=np.random.default_rng(0), channels=2, iterations=n)
        errors.append(np.square(composed(*(p.weight for p in parts)) - kernel).sum())
    slack = 1e-10 * np.square(kernel).sum()  # of lstsq, as above
    assert errors[0] + slack >= errors[1]
    assert errors[1] + slack >= errors[2]


def test_a_split_saves_weights_by_default():
    rng = np.random.default_rng(0)
    layer = mc.Conv2D(rng.normal(size=(5, 5, 20, 50)).astype(np.float32))
    first, second = split_kernel(layer, rng=rng, iterations=2)
    assert first.weight.size + second.weight.size <= layer.weight.size
    assert first.weight.dtype == np.float32


BAD = [
    (lambda: shrink_kernel(mc.Conv2D(np.ones((3, 3, 1, 1))), 4), r"size must be at most \(3, 3\)"),
    (lambda: shrink_kernel(mc.Conv2D(np.ones((3, 3, 1, 2)), groups=2), 2), "groups=1, not 2"),
    (
        lambda: shrink_kernel(
            mc.Conv2D(np.ones((3, 3, 1, 2))), 2, calibration=np.ones((1, 9, 9, 2))
        ),
        "must have 1 channel|channels",
    ),
    (
        lambda: split_kernel(mc.Conv2D(np.ones((4, 4, 1, 1))), rng=np.random.default_rng(0)),
        "square kernel of odd size",
    ),
    (lambda: split_kernel(mc.Conv2D(np.ones((5, 5, 1, 1))), rng=0), "rng must be a numpy.random"),
    (
        lambda: split_kernel(
            mc.Conv2D(np.ones((5, 5, 1, 1)), stride=2, padding="same"), rng=np.random.default_rng(0)
        ),
        "depends on the image",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_makes_no_smaller_kernel_is_refused(call, message):
    with pytest.raises(mc.CompressionError, match=message):
        call()


PLANTED = {
    "cutting sold as fitting": lambda layer, size, calibration: shrink_kernel(layer, size),
    "the corner in place of the middle": lambda layer, size, calibration: mc.Conv2D(
        layer.weight[:3, :3], layer.bias, padding="same"
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    rng = np.random.default_rng(0)
    layer = mc.Conv2D(rng.normal(size=(5, 5, 1, 1)), np.ones(1), padding="same")
    x = rng.normal(size=(2, 8, 8, 1))

    def strictly(shrink):
        law_least_squares(shrink, layer, x)
        target = layer.forward(x)
        fitted, cut = (f(layer, 3, calibration=x).forward(x) for f in (shrink, shrink_kernel))
        assert np.square(target - fitted).sum() <= np.square(target - cut).sum() * (1 + 1e-9)

    strictly(shrink_kernel)
    with pytest.raises(AssertionError):
        strictly(PLANTED[name])
