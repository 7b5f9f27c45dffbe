"""The networks have the sizes that papers and lessons quote, and start as they say."""

from __future__ import annotations

import numpy as np
import pytest

from minicompress.analysis.accounting import summary
from minicompress.errors import CompressionError
from minicompress.nn.architectures import (
    VARIANTS,
    digits_cnn,
    digits_resnet,
    lenet5,
    lenet_300_100,
    mobilenet_v2,
    resnet20,
    seed_cnn,
)
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import output_shape, value_shapes
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import parameters
from minicompress.nn.pointwise import ReLU
from minicompress.nn.stateless import Add

# Parameters by hand: kernels and biases of both convolutions, then the dense layer.
COUNTS = {
    (seed_cnn, "baseline"): (9 * 32 + 32) + (9 * 32 * 64 + 64) + (24 * 24 * 64 * 10 + 10),
    (seed_cnn, "small_kernel"): (4 * 32 + 32) + (4 * 32 * 64 + 64) + (7 * 7 * 64 * 10 + 10),
    (seed_cnn, "strided"): (9 * 32 + 32) + (9 * 32 * 64 + 64) + (6 * 6 * 64 * 10 + 10),
    (digits_cnn, "baseline"): (9 * 16 + 16) + (9 * 16 * 32 + 32) + (4 * 4 * 32 * 10 + 10),
    (digits_cnn, "small_kernel"): (4 * 16 + 16) + (4 * 16 * 32 + 32) + (2 * 2 * 32 * 10 + 10),
    (digits_cnn, "strided"): (9 * 16 + 16) + (9 * 16 * 32 + 32) + (1 * 1 * 32 * 10 + 10),
}
QUOTED = {
    (seed_cnn, "baseline"): 387_466,
    (seed_cnn, "small_kernel"): 39_786,
    (seed_cnn, "strided"): 41_866,
    (digits_cnn, "baseline"): 9_930,
    (digits_cnn, "small_kernel"): 3_450,
    (digits_cnn, "strided"): 5_130,
}


def rng(seed=0):
    return np.random.default_rng(seed)


def counted(model):
    return sum(value.size for layer in parameters(model) for value in layer.values())


@pytest.mark.parametrize(("make", "variant"), COUNTS)
def test_two_convolutions(make, variant):
    model = make(rng(), variant)
    assert counted(model) == COUNTS[make, variant] == QUOTED[make, variant]
    assert [type(layer).__name__ for layer in model.layers] == [
        "Conv2D", "ReLU", "Conv2D", "ReLU", "Flatten", "Dense",
    ]  # fmt: skip
    size, stride = VARIANTS[variant]
    for layer in (model.layers[0], model.layers[2]):
        assert layer.weight.shape[:2] == (size, size)
        assert (layer.stride, layer.padding) == ((stride, stride), "valid")


def test_lenet_300_100():
    model = lenet_300_100(rng())
    assert counted(model) == (784 * 300 + 300) + (300 * 100 + 100) + (100 * 10 + 10) == 266_610
    assert summary(model, (28, 28, 1)).macs == 784 * 300 + 300 * 100 + 100 * 10


def test_lenet5():
    model = lenet5(rng())
    weights = (25 * 20 + 20) + (25 * 20 * 50 + 50) + (800 * 500 + 500) + (500 * 10 + 10)
    assert counted(model) == weights == 431_080
    macs = 24 * 24 * 25 * 20 + 8 * 8 * 25 * 20 * 50 + 800 * 500 + 500 * 10
    assert summary(model, (28, 28, 1)).macs == macs == 2_293_000
    assert value_shapes(model, (28, 28, 1))[6] == (4, 4, 50)


def trained(model):
    """The parameters that have a gradient: all but the statistics of batch normalizations."""
    return counted(model) - sum(
        2 * layer.scale.size for layer in model.layers if isinstance(layer, BatchNorm)
    )


def normalized(size, inputs, outputs, pixels):
    """Parameters and MACs of a convolution without bias and its normalization."""
    kernel = size * size * inputs * outputs
    return np.array([kernel + 2 * outputs, kernel * pixels])


def test_resnet20():
    """By hand from table 6 of He et al. (2016): 6n + 2 layers with n = 3; option B shortcuts."""
    total = normalized(3, 3, 16, 32 * 32) + 6 * normalized(3, 16, 16, 32 * 32)
    for inputs, outputs, side in ((16, 32, 16), (32, 64, 8)):
        total += normalized(3, inputs, outputs, side**2) + 5 * normalized(
            3, outputs, outputs, side**2
        )
        total += normalized(1, inputs, outputs, side**2)
    total += [64 * 10 + 10, 64 * 10]
    model = resnet20(rng())
    assert total.tolist() == [272_474, 40_813_184]
    assert [trained(model), summary(model, (32, 32, 3)).macs] == total.tolist()
    assert sum(isinstance(layer, Conv2D) for layer in model.layers) == 19 + 2
    assert sum(isinstance(layer, Add) for layer in model.layers) == 9
    assert resnet20(rng(), classes=100).layers[-1].weight.shape == (64, 100)


@pytest.mark.parametrize(
    ("width", "resolution", "classes", "count", "macs"),
    [
        (1.0, 224, 1000, 3_504_872, 300_774_272),
        (0.5, 96, 1000, 1_968_680, None),
        (1.4, 32, 10, None, None),
    ],
)
def test_mobilenet_v2(width, resolution, classes, count, macs):
    """3,504,872 parameters and 300 M MACs are those of the paper (table 4) and of torchvision."""
    model = mobilenet_v2(rng(), width, resolution, classes)
    shapes = value_shapes(model, (resolution, resolution, 3))
    assert shapes[-1] == (classes,)
    if count:
        assert trained(model) == count
    if macs:
        assert summary(model, (resolution, resolution, 3)).macs == macs
    channels = [s[-1] for s in shapes[1:-1]]
    assert all(c % 8 == 0 for c in channels)
    assert sum(isinstance(layer, Add) for layer in model.layers) == 10
    with pytest.raises(CompressionError, match="resolution must be a multiple of 32"):
        mobilenet_v2(rng(), 0.25, 100)


def test_digits_resnet():
    model = digits_resnet(rng())
    assert trained(model) == 21_694
    assert summary(model, (8, 8, 1)).macs == 467_952
    assert summary(model, (8, 8, 1)).activation_bytes == 3 * 8 * 8 * 12 * 4  # block 1 at its join


MODELS = {
    "digits_resnet": (digits_resnet, (8, 8, 1)),
    "resnet20": (resnet20, (32, 32, 3)),
    "seed_cnn": (seed_cnn, (28, 28, 1)),
    "digits_cnn": (digits_cnn, (8, 8, 1)),
    "lenet_300_100": (lenet_300_100, (28, 28, 1)),
    "lenet5": (lenet5, (28, 28, 1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_all_models(name):
    make, shape = MODELS[name]
    model = make(rng())
    y = model(np.ones((3, *shape), np.float32))
    assert y.shape == (3, *output_shape(model, shape)) == (3, 10)
    assert y.dtype == np.float32
    assert isinstance(model.layers[-1], Dense)  # logits
    assert all(
        type(v) is np.ndarray and v.dtype == np.float32 and not v.flags.writeable
        for layer in parameters(model)
        for v in layer.values()
    )


def law_he_normal(layer: Layer, initialized) -> None:
    """Normal with variance 2 / fan-in, and biases 0.

    Of n normal draws the mean square has a relative deviation of sqrt(2 / n), the mean one of
    sqrt(1 / n) of theirs, and a third of a normal lies beyond one deviation; six deviations each.
    """
    weight, bias = initialized(layer)
    assert bias is None or (bias == 0).all()
    n, variance = weight.size, 2 / np.prod(weight.shape[:-1])
    assert abs(np.mean(np.square(weight, dtype=float)) / variance - 1) < 6 * (2 / n) ** 0.5
    assert abs(weight.mean()) < 6 * (variance / n) ** 0.5
    beyond = (np.abs(weight) > variance**0.5).mean()
    p = 0.31731  # of a normal beyond one deviation
    assert abs(beyond - p) < 6 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_he_normal(name):
    for layer in MODELS[name][0](rng()).layers:
        if isinstance(layer, Conv2D | Dense):
            law_he_normal(layer, lambda layer: (layer.weight, layer.bias))


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides(name):
    make = MODELS[name][0]
    first, same, other = (parameters(make(rng(seed))) for seed in (0, 0, 1))
    np.testing.assert_equal(first, same)
    assert not np.array_equal(first[-1]["weight"], other[-1]["weight"])


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_is_no_generator(name):
    with pytest.raises(CompressionError, match="rng must be"):
        MODELS[name][0](0)


@pytest.mark.parametrize("make", [seed_cnn, digits_cnn])
def test_unknown_variant(make):
    with pytest.raises(CompressionError, match="variant must be one of baseline, small_kernel"):
        make(rng(), "tiny")


PLANTED = {
    "variance 1 / fan-in": lambda layer: (layer.weight * 0.5**0.5, layer.bias),
    "fan-out": lambda layer: (layer.weight * (300 / 784) ** -0.5, layer.bias),
    "uniform": lambda layer: (
        rng().uniform(-1, 1, layer.weight.shape) * (6 / 784) ** 0.5,
        layer.bias,
    ),
    "biases too": lambda layer: (layer.weight, layer.bias + layer.weight[0]),
    "magnitudes": lambda layer: (np.abs(layer.weight), layer.bias),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    layer = lenet_300_100(rng()).layers[1]
    assert not isinstance(layer, ReLU)
    with pytest.raises(AssertionError):
        law_he_normal(layer, PLANTED[name])
