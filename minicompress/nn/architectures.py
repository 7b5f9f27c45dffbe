"""The networks of the lessons and benchmarks, freshly initialized.

All are float32, have biases everywhere, start from He-normal weights and zero biases, and end in
logits; activations are layers of their own. Inputs are NHWC.
"""

from __future__ import annotations

import math

import numpy as np

from minicompress.arrays import Array, choice, freeze, generator
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import Sequential, output_shape
from minicompress.nn.stateless import Flatten, Layer, MaxPool2D, ReLU

# Kernel size and stride of both convolutions. The last two make the same network smaller without
# any compression: what a compressor has to beat.
VARIANTS = {"baseline": (3, 1), "small_kernel": (2, 2), "strided": (3, 2)}


def seed_cnn(rng: np.random.Generator, variant: str = "baseline") -> Sequential:
    """Two convolutions of 32 and 64 filters and a dense layer, for (N, 28, 28, 1).

    Parameters
    ----------
    rng : numpy.random.Generator
    variant : "baseline" | "small_kernel" | "strided"
        3 x 3 kernels: 387,466 parameters; 2 x 2 kernels with stride 2: 39,786; 3 x 3 kernels with
        stride 2: 41,866.

    Returns
    -------
    Sequential

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


def digits_cnn(rng: np.random.Generator, variant: str = "baseline") -> Sequential:
    """The smaller sibling of `seed_cnn`, for the shipped digits (N, 8, 8, 1): 16 and 32 filters.

    Parameters
    ----------
    rng : numpy.random.Generator
    variant : "baseline" | "small_kernel" | "strided"
        As for `seed_cnn`: 9,930, 3,450 and 5,130 parameters.

    Returns
    -------
    Sequential

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


def lenet_300_100(rng: np.random.Generator) -> Sequential:
    """The dense network 784-300-100-10 of LeCun et al. (1998), with ReLU: 266,610 parameters.

    Parameters
    ----------
    rng : numpy.random.Generator

    Returns
    -------
    Sequential
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


def lenet5(rng: np.random.Generator) -> Sequential:
    """LeNet-5 as Caffe has it and as pruning papers count it: 431,080 parameters, 2,293,000 MACs.

    Parameters
    ----------
    rng : numpy.random.Generator

    Returns
    -------
    Sequential
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


def _two_convolutions(
    rng: np.random.Generator,
    variant: str,
    input_shape: tuple[int, int, int],
    filters: tuple[int, int],
) -> Sequential:
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
