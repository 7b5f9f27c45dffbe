"""The networks of the lessons and benchmarks, freshly initialized.

All are float32, start from He-normal weights and zero biases, and end in logits; activations are
layers of their own. A convolution before a batch normalization has no bias. Inputs are NHWC.
"""

from __future__ import annotations

import math

import numpy as np

from minicompress.arrays import Array, as_float, as_int, choice, freeze, generator
from minicompress.errors import CompressionError
from minicompress.nn.composition import Parallel, Residual, Sequential
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import Network, output_shape
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import Clip, Dropout, ReLU
from minicompress.nn.stateless import Add, Flatten, GlobalAvgPool2D, MaxPool2D

# Kernel size and stride of both convolutions. The last two make the same network smaller without
# any compression: what a compressor has to beat.
VARIANTS = {"baseline": (3, 1), "small_kernel": (2, 2), "strided": (3, 2)}


def seed_cnn(rng: np.random.Generator, variant: str = "baseline") -> Network:
    """Two convolutions of 32 and 64 filters and a dense layer, for (N, 28, 28, 1).

    Parameters
    ----------
    rng : numpy.random.Generator
    variant : "baseline" | "small_kernel" | "strided"
        3 x 3 kernels: 387,466 parameters; 2 x 2 kernels with stride 2: 39,786; 3 x 3 kernels with
        stride 2: 41,866.

    Returns
    -------
    Network

    Raises
    ------
    CompressionError
        `rng` is no generator or `variant` none of the three.

    Examples
    --------
    >>> model = seed_cnn(np.random.default_rng(0))
    >>> [type(layer).__name__ for layer in model.layers]
    ['Conv2D', 'ReLU', 'Conv2D', 'ReLU', 'Flatten', 'Dense']
    """
    return _two_convolutions(rng, variant, (28, 28, 1), (32, 64))


def digits_cnn(rng: np.random.Generator, variant: str = "baseline") -> Network:
    """The smaller sibling of `seed_cnn`, for the shipped digits (N, 8, 8, 1): 16 and 32 filters.

    Parameters
    ----------
    rng : numpy.random.Generator
    variant : "baseline" | "small_kernel" | "strided"
        As for `seed_cnn`: 9,930, 3,450 and 5,130 parameters.

    Returns
    -------
    Network

    Raises
    ------
    CompressionError
        `rng` is no generator or `variant` none of the three.

    Examples
    --------
    >>> digits_cnn(np.random.default_rng(0)).layers[-1].weight.shape
    (512, 10)
    """
    return _two_convolutions(rng, variant, (8, 8, 1), (16, 32))


def lenet_300_100(rng: np.random.Generator) -> Network:
    """The dense network 784-300-100-10 of LeCun et al. (1998), with ReLU: 266,610 parameters.

    Parameters
    ----------
    rng : numpy.random.Generator

    Returns
    -------
    Network
        For (N, 28, 28, 1): it starts with Flatten.

    Raises
    ------
    CompressionError
        `rng` is no generator.

    Examples
    --------
    >>> lenet_300_100(np.random.default_rng(0))(np.zeros((2, 28, 28, 1), np.float32)).shape
    (2, 10)
    """
    generator(rng)
    return Sequential(
        (
            Flatten(),
            _dense(rng, 784, 300),
            ReLU(),
            _dense(rng, 300, 100),
            ReLU(),
            _dense(rng, 100, 10),
        )
    )


def lenet5(rng: np.random.Generator) -> Network:
    """LeNet-5 as Caffe has it and as pruning papers count it: 431,080 parameters, 2,293,000 MACs.

    Parameters
    ----------
    rng : numpy.random.Generator

    Returns
    -------
    Network
        For (N, 28, 28, 1).

    Raises
    ------
    CompressionError
        `rng` is no generator.

    Examples
    --------
    >>> lenet5(np.random.default_rng(0))(np.zeros((2, 28, 28, 1), np.float32)).shape
    (2, 10)
    """
    generator(rng)
    return Sequential(
        (
            _conv(rng, 5, 1, 20),
            ReLU(),
            MaxPool2D(2),
            _conv(rng, 5, 20, 50),
            ReLU(),
            MaxPool2D(2),
            Flatten(),
            _dense(rng, 800, 500),
            ReLU(),
            _dense(rng, 500, 10),
        )
    )


def digits_resnet(rng: np.random.Generator) -> Network:
    """A small residual network for the shipped digits (N, 8, 8, 1): 21,694 parameters.

    Three residual blocks of 12, 24 and 24 channels, with batch normalization, as in `resnet20`. The
    parameters are counted without the 312 statistics of the batch normalizations.

    Parameters
    ----------
    rng : numpy.random.Generator

    Returns
    -------
    Network

    Raises
    ------
    CompressionError
        `rng` is no generator.

    Examples
    --------
    >>> digits_resnet(np.random.default_rng(0))(np.zeros((2, 8, 8, 1), np.float32)).shape
    (2, 10)
    """
    generator(rng)
    blocks = [_basic_block(rng, *sizes) for sizes in ((12, 12, 1), (12, 24, 2), (24, 24, 1))]
    return Sequential(
        (*_normalized(rng, 3, 1, 12), ReLU(), *blocks, GlobalAvgPool2D(), _dense(rng, 24, 10))
    )


def resnet20(rng: np.random.Generator, classes: int = 10) -> Network:
    """The residual network of 20 layers for CIFAR-10, (N, 32, 32, 3) (He et al., 2016).

    Parameters
    ----------
    rng : numpy.random.Generator
    classes : int

    Returns
    -------
    Network
        272,474 parameters with 10 classes, not counting 1,568 statistics of the batch
        normalizations; 40.8 million MACs. Where the number of channels doubles, the shortcut is a
        1 x 1 convolution ("option B").

    Raises
    ------
    CompressionError
        `rng` is no generator, or `classes` not a positive int.

    Examples
    --------
    >>> resnet20(np.random.default_rng(0))(np.zeros((1, 32, 32, 3), np.float32)).shape
    (1, 10)
    """
    generator(rng)
    blocks, inputs = [], 16
    for outputs in (16, 32, 64):
        for k in range(3):
            blocks.append(_basic_block(rng, inputs, outputs, 2 if k == 0 and outputs > 16 else 1))
            inputs = outputs
    head = GlobalAvgPool2D(), _dense(rng, 64, as_int(classes, "classes", 1))
    return Sequential((*_normalized(rng, 3, 3, 16), ReLU(), *blocks, *head))


# Expansion, channels, repeats and first stride of each stage of MobileNetV2.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(
    rng: np.random.Generator, width: float = 1.0, resolution: int = 224, classes: int = 1000
) -> Network:
    """MobileNetV2, for images (N, resolution, resolution, 3) (Sandler et al., 2018).

    Parameters
    ----------
    rng : numpy.random.Generator
    width : float
        Multiplies the channels, which are rounded to multiples of 8.
    resolution : int
        A multiple of 32. The parameters do not depend on it.
    classes : int

    Returns
    -------
    Network
        With width 1 and 1,000 classes 3,504,872 parameters, not counting 34,112 statistics of the
        batch normalizations; at resolution 224, 300.8 million MACs.

    Raises
    ------
    CompressionError
        An argument is not as above.

    Examples
    --------
    >>> network = mobilenet_v2(np.random.default_rng(0), width=0.25, resolution=32, classes=10)
    >>> network(np.zeros((1, 32, 32, 3), np.float32)).shape
    (1, 10)
    """
    generator(rng)
    width = as_float(width, "width", 0.0)
    if as_int(resolution, "resolution", 32) % 32:
        raise CompressionError(f"resolution must be a multiple of 32, not {resolution}")
    inputs = _multiple_of_8(32 * width)
    parts: list[Layer | Network] = [*_normalized(rng, 3, 3, inputs, 2), Clip(0, 6)]
    for expansion, channels, repeats, stride in STAGES:
        outputs = _multiple_of_8(channels * width)
        for k in range(repeats):
            block = _inverted_residual(rng, inputs, outputs, expansion, stride if k == 0 else 1)
            parts.append(block)
            inputs = outputs
    last = _multiple_of_8(1280 * max(width, 1.0))
    head = GlobalAvgPool2D(), Dropout(0.2), _dense(rng, last, as_int(classes, "classes", 1))
    return Sequential((*parts, *_normalized(rng, 1, inputs, last), Clip(0, 6), *head))


def _basic_block(rng: np.random.Generator, inputs: int, outputs: int, stride: int) -> Network:
    """Two 3 x 3 convolutions and a shortcut, added before the last ReLU."""
    body = (
        *_normalized(rng, 3, inputs, outputs, stride),
        ReLU(),
        *_normalized(rng, 3, outputs, outputs),
    )
    same = stride == 1 and inputs == outputs
    shortcut = () if same else _normalized(rng, 1, inputs, outputs, stride)
    return Sequential((Parallel((body, shortcut), Add()), ReLU()))


def _inverted_residual(
    rng: np.random.Generator, inputs: int, outputs: int, expansion: int, stride: int
) -> Network:
    """1 x 1 to more channels, depthwise 3 x 3, 1 x 1 to fewer; a shortcut if it fits."""
    inner = inputs * expansion
    expand = () if expansion == 1 else (*_normalized(rng, 1, inputs, inner), Clip(0, 6))
    depthwise = (*_normalized(rng, 3, inner, inner, stride, groups=inner), Clip(0, 6))
    parts = (*expand, *depthwise, *_normalized(rng, 1, inner, outputs))
    return Residual(*parts) if stride == 1 and inputs == outputs else Sequential(parts)


def _normalized(
    rng: np.random.Generator, size: int, inputs: int, outputs: int, stride: int = 1, groups: int = 1
) -> tuple[Conv2D, BatchNorm]:
    """A convolution without bias that keeps the size (before the stride), and a normalization."""
    kernel = _he_normal(rng, (size, size, inputs // groups, outputs))
    one, zero = np.ones(outputs, np.float32), np.zeros(outputs, np.float32)
    convolution = Conv2D(kernel, stride=stride, padding=size // 2, groups=groups)
    return convolution, BatchNorm(one, zero, zero, one)


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and not more than 10 % below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _two_convolutions(
    rng: np.random.Generator,
    variant: str,
    input_shape: tuple[int, int, int],
    filters: tuple[int, int],
) -> Network:
    generator(rng)
    size, stride = VARIANTS[choice(variant, "variant", VARIANTS)]
    layers: tuple[Layer, ...] = (
        _conv(rng, size, input_shape[2], filters[0], stride),
        ReLU(),
        _conv(rng, size, filters[0], filters[1], stride),
        ReLU(),
        Flatten(),
    )
    (features,) = output_shape(Sequential(layers), input_shape)
    return Sequential((*layers, _dense(rng, features, 10)))


def _conv(
    rng: np.random.Generator, size: int, inputs: int, outputs: int, stride: int = 1
) -> Conv2D:
    kernel = _he_normal(rng, (size, size, inputs, outputs))
    return Conv2D(kernel, freeze(np.zeros(outputs, np.float32)), stride=stride)


def _dense(rng: np.random.Generator, inputs: int, outputs: int) -> Dense:
    return Dense(_he_normal(rng, (inputs, outputs)), freeze(np.zeros(outputs, np.float32)))


def _he_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Variance 2 / fan-in keeps the size of activations through ReLUs (He et al., 2015)."""
    deviation = np.float32(math.sqrt(2 / math.prod(shape[:-1])))
    return freeze(rng.standard_normal(shape, np.float32) * deviation)
