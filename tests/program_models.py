"""Drawn programs whose arithmetic is exact: what a pass keeps, it keeps bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from minicompress.nn.composition import Sequential, replaced
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Runner, output_shape, value_shapes
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import with_layers
from minicompress.nn.pointwise import PReLU, ReLU
from minicompress.nn.stateless import (
    AvgPool2D,
    Flatten,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
)
from minicompress.representation import decode
from minicompress.testing.models import models

SHAPE = (5, 4, 2)
EXACT = 2.0**45
"""Far below 2**53: every sum of whole numbers and quarters up to here is exact."""


def whole(rep):
    """The signs of an array, in float64."""
    return np.sign(decode(rep).astype(float))


def exact_layers(layer, shape):
    """Layers in place of one, with the same channels, that map whole numbers to whole numbers."""
    match layer:
        case Conv2D() | ConvTranspose2D() | Dense() | PReLU():
            changed = {name: whole(rep) for name, rep in layer.parameters().items()}
            return (dataclasses.replace(layer, **changed),)
        case BatchNorm():
            parts = (whole(v) for v in (layer.scale, layer.offset, layer.mean))
            variance = np.where(layer.variance > 1.5, 0.25, 1.0)
            return (BatchNorm(*parts, variance, epsilon=1e-300),)
        case AvgPool2D():
            return (MaxPool2D(layer.window, layer.stride, layer.padding, layer.ceil_mode),)
        case GlobalAvgPool2D(keep_axes=keep):
            return (MaxPool2D(shape[:2]), *(() if keep else (Flatten(),)))
        case LocalResponseNorm():
            return (ReLU(),)
    return (ReLU() if type(layer).__module__.endswith("pointwise") else layer,)


@st.composite
def exact_programs(draw, max_layers=6, head=True):
    """A program, and inputs on which it computes exactly.

    Its first layer makes four channels; a dense layer makes the one output, if it has a head.
    """
    drawn = draw(models((5, 4, 4), max_layers, single_output=head))
    shapes = value_shapes(drawn, (5, 4, 4))
    read = [shapes[reads[0]] for reads in drawn.inputs]
    drawn = replaced(drawn, [*map(exact_layers, drawn.layers, read)])
    rng = np.random.default_rng(0)
    first = Conv2D(signs(rng, 1, 2, 2, 4), draw(st.none() | st.just(signs(rng, 4))), padding="same")
    network = Sequential((first, drawn))
    if head:
        network = Sequential((network, Flatten()))
        head = Dense(signs(rng, *output_shape(network, SHAPE), 2), signs(rng, 2))
        network = Sequential((network, head))
    x = rng.integers(-2, 3, (2, *SHAPE)).astype(float)
    assume(all(np.abs(v).max(initial=0) < EXACT for v in values_of(network, x)))
    return network, x


def signs(rng, *shape):
    """Random numbers among -1, 0 and 1."""
    return rng.integers(-1, 2, shape).astype(float)


def values_of(network, x):
    """Every value of a run."""
    runner = Runner(network)
    runner.dropped = [[] for _ in network.layers]
    values = runner({0: x})
    return [values[i] for i in range(len(values))]


def changed(network, index, **weights):
    """The network with other weights in one layer."""
    layers = list(network.layers)
    layers[index] = dataclasses.replace(layers[index], **weights)
    return with_layers(network, layers)
