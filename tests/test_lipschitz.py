"""Norms of convolutions are never below the truth and near it; so are bounds of whole networks."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from budgets import at_most
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import minicompress as mc
from minicompress.certify import operator_norms as bounds
from minicompress.certify.lipschitz import output_bound
from minicompress.certify.operator_norms import conv_norm_upper


def integers(*shape):
    return npst.arrays(np.float64, shape, elements=st.integers(-3, 3).map(float), fill=st.nothing())


def dense_matrix(kernel, hw, **geometry):
    """The convolution as a matrix, column by column, by its definition."""
    units = np.eye(hw[0] * hw[1] * kernel.shape[2]).reshape(-1, *hw, kernel.shape[2])
    images = mc.nn.conv2d(units, kernel, **geometry)
    return images.reshape(len(images), -1)


def law_above(norm, kernel, hw, **geometry):
    """Above ||A v|| / ||v|| for the computed singular vector v, in rational arithmetic."""
    bound = norm(kernel, hw, **geometry)
    matrix = dense_matrix(kernel, hw, **geometry)
    if not matrix.any():
        return
    v = [Fraction(x) for x in np.linalg.svd(matrix.T)[2][0].tolist()]
    image = [
        sum((Fraction(a) * x for a, x in zip(row, v, strict=True) if a), Fraction(0))
        for row in matrix.T.tolist()
    ]
    assert Fraction(bound) ** 2 * sum(x * x for x in v) >= sum(y * y for y in image)


def by_circle(kernel, hw, **geometry):
    """The path for large maps, also where the exact one would be taken."""
    return with_limit(0, kernel, hw, **geometry)


def with_limit(columns, kernel, hw, **geometry):
    before = bounds.EXACT_COLUMNS
    try:
        bounds.EXACT_COLUMNS = columns
        return conv_norm_upper(kernel, hw, **geometry)
    finally:
        bounds.EXACT_COLUMNS = before


geometries = st.fixed_dictionaries(
    {
        "stride": st.sampled_from([1, 2, 3, (1, 2)]),
        "padding": st.sampled_from(["valid", "same", 1, ((0, 2), (1, 0))]),
        "dilation": st.sampled_from([1, 2]),
    }
)


@at_most(30)
@given(st.data(), geometries)
def test_the_bound_is_above_the_exact_norm(data, geometry):
    kernel = data.draw(
        integers(*data.draw(st.sampled_from([(1, 2, 1, 2), (3, 3, 1, 1), (2, 3, 2, 1)])))
    )
    law_above(conv_norm_upper, kernel, (5, 6), **geometry)
    law_above(by_circle, kernel, (5, 6), **geometry)


KERNELS = {
    "ones": np.ones((3, 3, 1, 1)),
    "normal": np.random.default_rng(0).normal(size=(3, 3, 2, 3)),
    "edges": np.array([1.0, 0, -1]).reshape(1, 3, 1, 1) * np.ones((3, 1, 1, 1)),
}
GEOMETRIES = [
    {"padding": p, "stride": s}
    for p, s in itertools.product(["valid", "same", 2, ((0, 1), (2, 0))], [1, 2, 3])
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_the_circle_is_near_the_exact_norm(name, geometry):
    kernel, hw = KERNELS[name], (12, 11)
    exact = conv_norm_upper(kernel, hw, **geometry)
    circle = by_circle(kernel, hw, **geometry)
    # Both are bounds, the exact one above the truth by some (m + n) u of a Frobenius norm.
    assert exact * (1 - 1e-10) <= circle
    # The circle has up to n + p + 1 points where the truth has n - k + 1 windows.
    assert circle <= 1.12 * exact


def test_windows_that_do_not_overlap_are_exact():
    kernel = np.random.default_rng(1).normal(size=(2, 2, 3, 4))
    exact = np.linalg.norm(kernel.reshape(-1, 4), 2)
    # LAPACK's own 2-norm is right to some n eps.
    assert exact <= by_circle(kernel, (40, 40), stride=2) * (1 + 1e-13) <= exact * (1 + 1e-11)


def test_small_maps_are_exact():
    kernel = np.random.default_rng(2).normal(size=(3, 3, 2, 2))
    exact = np.linalg.norm(dense_matrix(kernel, (6, 6), padding="same"), 2)
    assert exact <= conv_norm_upper(kernel, (6, 6), padding="same") * (1 + 1e-13)
    assert conv_norm_upper(kernel, (6, 6), padding="same") <= exact * (1 + 1e-11)


def test_degenerate_maps():
    assert conv_norm_upper(np.zeros((3, 3, 1, 1)), (5, 5)) == 0.0
    assert conv_norm_upper(np.zeros((1, 1, 0, 3)), (5, 5)) == 0.0
    assert conv_norm_upper(np.full((1, 1, 1, 1), 2.0), (50, 50)) <= 2.0 * (1 + 1e-12)
    with pytest.raises(mc.CompressionError, match="kernel must have 4 dimensions"):
        conv_norm_upper(np.ones((3, 3)), (5, 5))
    with pytest.raises(mc.CompressionError):
        conv_norm_upper(np.ones((3, 3, 1, 1)), (2, 2))


# Whole networks ---------------------------------------------------------------------------------


def network(weights):
    kernel, bias, head = weights
    return mc.Sequential(
        (
            mc.Conv2D(kernel, bias, padding="same"),
            mc.ReLU(),
            mc.MaxPool2D(2, stride=1),
            mc.AvgPool2D(2),
            mc.nn.LeakyReLU(0.5),
            mc.Flatten(),
            mc.Dense(head, np.array([1.0, -1.0])),
            mc.nn.Tanh(),
        )
    )


def law_output_bound(bound, f, g, points, shape):
    radius = max(math.sqrt(float((x * x).sum())) for x in points) * (1 + 1e-12)
    limit = bound(f, g, radius=radius, input_shape=shape)
    for x in points:
        difference = np.linalg.norm(g(x[None]) - f(x[None]))
        # Both networks are run in float64: each right to some 1e-13 of sizes below 1e4.
        assert difference <= limit + 1e-9


@at_most(25)
@given(st.data())
def test_no_input_of_the_ball_is_beyond_the_bound(data):
    parts = (integers(2, 2, 1, 2), integers(2), integers(8, 2))
    f, g = (network([data.draw(p) for p in parts]) for _ in range(2))
    points = [data.draw(integers(5, 5, 1)) for _ in range(4)]
    law_output_bound(output_bound, f, g, points, (5, 5, 1))


def test_the_bound_is_reached_by_an_affine_network():
    f = mc.Sequential((mc.Dense(np.diag([3.0, 1.0])), mc.Dense(np.eye(2) * 2)))
    g = mc.Sequential((mc.Dense(np.diag([3.5, 1.0])), mc.Dense(np.eye(2) * 2)))
    x = np.array([[4.0, 0.0]])
    assert np.linalg.norm(g(x) - f(x)) <= output_bound(f, g, radius=4.0) <= 4.0 * (1 + 1e-9)


def test_a_batch_norm_and_a_global_mean_are_followed():
    rng = np.random.default_rng(0)

    def net(change):
        norm = mc.BatchNorm(*(rng.random((4, 3)) + 0.5))
        kernel = np.sin(np.arange(12.0)).reshape(2, 2, 1, 3) + change
        return mc.Sequential(
            (mc.Conv2D(kernel), norm, mc.nn.Sigmoid(), mc.GlobalAvgPool2D(), mc.Softmax())
        )

    points = list(rng.normal(size=(20, 5, 5, 1)))
    law_output_bound(output_bound, net(0.0), net(0.1), points, (5, 5, 1))


def test_the_same_network_is_not_apart():
    f = network([np.ones((2, 2, 1, 2)), np.ones(2), np.ones((8, 2))])
    assert output_bound(f, f, radius=3.0, input_shape=(5, 5, 1)) == 0.0


def test_what_cannot_be_bounded_is_refused():
    f = network([np.ones((2, 2, 1, 2)), np.ones(2), np.ones((8, 2))])
    with pytest.raises(mc.CompressionError, match=r"layer 0 \(Conv2D\): input_shape must be"):
        output_bound(f, f, radius=1.0)
    with pytest.raises(mc.CompressionError, match="same types of layers"):
        output_bound(f, mc.Sequential(f.layers[1:]), radius=1.0, input_shape=(5, 5, 1))
    with pytest.raises(mc.CompressionError, match="radius must be a number"):
        output_bound(f, f, radius=-1.0, input_shape=(5, 5, 1))
    wide = mc.Sequential((mc.Dense(np.ones((2, 3))),))
    with pytest.raises(mc.CompressionError, match="weights of shapes"):
        output_bound(wide, mc.Sequential((mc.Dense(np.ones((2, 4))),)), radius=1.0)


def on_n_points(kernel, hw, **geometry):
    """The symbols on the circle of n points: what is usually computed, and not a bound."""
    g = bounds.geometry(hw, kernel.shape[:2], geometry.get("stride", 1), geometry["padding"], 1)
    blocks, _ = bounds._as_stride_one(kernel, hw, g)
    return bounds._circular_norm_upper(blocks, hw, 0)


def power_iteration(kernel, hw, **geometry):
    matrix = dense_matrix(kernel, hw, **geometry)
    v = np.ones(len(matrix))
    for _ in range(5):
        v = matrix @ (matrix.T @ v)
        v /= np.linalg.norm(v)
    return float(np.linalg.norm(matrix.T @ v))


def no_offsets(f, g, **options):
    def without(model):
        return mc.Sequential(
            tuple(
                type(layer)(layer.weight, padding=layer.padding)
                if isinstance(layer, mc.Conv2D)
                else layer
                for layer in model.layers
            )
        )

    return output_bound(without(f), without(g), **options)


WAVE = np.array([1.0, -1.0] * 2).reshape(2, 2, 1, 1) * np.array([1.0, -1.0]).reshape(2, 1, 1, 1)
BIASED = [
    mc.Sequential((mc.Conv2D(np.ones((1, 1, 1, 1)), np.array([b]), padding="valid"),))
    for b in (0.0, 2.0)
]
PLANTED = {
    "the circle of n points": (
        lambda f: law_above(f, WAVE, (5, 5), padding=1),
        on_n_points,
    ),
    "power iteration": (
        lambda f: law_above(f, KERNELS["normal"], (6, 6), padding="same"),
        power_iteration,
    ),
    "the norm of the kernel as a matrix": (
        lambda f: law_above(f, KERNELS["ones"], (6, 6), padding="valid"),
        lambda k, hw, **g: float(np.linalg.norm(k.reshape(-1, k.shape[3]), 2)),
    ),
    "biases forgotten in the bound": (
        lambda f: law_output_bound(f, *BIASED, [np.zeros((2, 2, 1))], (2, 2, 1)),
        no_offsets,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
