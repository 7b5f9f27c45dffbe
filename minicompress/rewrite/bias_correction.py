"""Biases corrected after compression: the mean of every output is what it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from minicompress.arrays import Array, cast_or_refuse, finite_array
from minicompress.errors import CompressionError
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network, Runner, check_network, input_batch, naming_layer
from minicompress.nn.parameters import finite_model, with_layers
from minicompress.representation import decode, dtype_of

BIASED = (Conv2D, ConvTranspose2D, Dense)


def correct_bias(network: Network, original: Network, x: Array) -> Network:
    """Give every output channel of every layer the mean over `x` that it has in the original.

    Rounding and pruning move the mean of a layer's outputs, and every layer behind it reads the
    moved ones. A bias takes the difference away.

    Parameters
    ----------
    network : Network
        `original` after compression: the same kinds of layers, which read the same values.
    original : Network
    x : (N, ...) ndarray of the network's dtype, finite, N at least 1
        Some hundred examples are enough. They run in one piece, so the memory grows with N.

    Returns
    -------
    Network
        Equal to `network` but for the biases of `Conv2D`, `ConvTranspose2D` and `Dense`, which are
        plain arrays. A bias is added where there is none. A layer that has lost output channels
        keeps its bias.

    Raises
    ------
    CompressionError
        The layers differ, there is no example, or a value or a new bias is not finite; the message
        names the layer.

    Notes
    -----
    One pass: each layer reads what the corrected layers before it make. Then ``bias' = bias +
    mean(y_original) - mean(y)``, where a mean is over examples, rows and columns, computed in
    float64; the bias is rounded once. So the mean of each channel is restored up to the rounding of
    the bias and of the outputs. Correct the biases before batch normalizations are re-estimated,
    because those are told by the outputs.

    M. Nagel, M. van Baalen, T. Blankevoort and M. Welling, *Data-free quantization through weight
    equalization and bias correction* (2019), section 4.2; here from examples.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> original = Sequential((Dense(np.array([[1.5]])),))
    >>> rounded = Sequential((Dense(np.array([[2.0]])),))
    >>> correct_bias(rounded, original, np.array([[1.0], [3.0]])).layers[0].bias
    array([-1.])
    """
    same_layers(network, original)
    values = {0: finite_array(input_batch(network, x), "x")}
    if len(values[0]) == 0:
        raise CompressionError("x must hold at least one example")
    finite_model(network)
    finite_model(original)
    wanted = dict(values)
    layers, run, run_original = list(network.layers), Runner(network), Runner(original)
    last = max((i for i, layer in enumerate(layers) if type(layer) in BIASED), default=-1)
    for i in range(last + 1):
        layer, before = layers[i], values
        values, wanted = run(before, i, i + 1), run_original(wanted, i, i + 1)
        if type(layer) not in BIASED or values[i + 1].shape[-1] != wanted[i + 1].shape[-1]:
            continue
        assert isinstance(layer, BIASED)
        with naming_layer(network, i):
            moved = channel_means(wanted[i + 1]) - channel_means(values[i + 1])
            old = 0.0 if layer.bias is None else decode(layer.bias).astype(np.float64)
            bias = cast_or_refuse(old + moved, dtype_of(layer.weight), "bias")
            layers[i] = replace(layer, bias=bias)
        run = run.with_layer(i, layers[i])
        values = run(before, i, i + 1)
    return with_layers(network, layers)


def channel_means(y: Array) -> Array:
    """The mean of every channel over examples, rows and columns, in float64."""
    if y[..., :1].size == 0:
        raise CompressionError(f"an output of shape {y.shape} has no mean")
    with np.errstate(over="ignore", invalid="ignore"):
        means = y.mean(axis=tuple(range(y.ndim - 1)), dtype=np.float64)
    return finite_array(means, "the mean of the outputs")


def same_layers(network: Any, original: Any) -> None:
    """Refuse networks that do not have the same kinds of layers reading the same values."""
    check_network(network)
    if not isinstance(original, Network):
        raise CompressionError(f"original must be a Network, not {type(original).__name__}")
    kinds, wanted = ([type(layer).__name__ for layer in n.layers] for n in (network, original))
    for i, (kind, other) in enumerate(zip(kinds, wanted, strict=False)):
        if kind != other or network.inputs[i] != original.inputs[i]:
            raise CompressionError(
                f"layer {i} is {kind}, which reads values {network.inputs[i]}, but in original "
                f"{other}, which reads {original.inputs[i]}"
            )
    if len(kinds) != len(wanted):
        raise CompressionError(
            f"network and original must have the same layers, not {len(kinds)} and {len(wanted)}"
        )
