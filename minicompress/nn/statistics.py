"""The statistics of batch normalization, estimated anew from examples."""

from __future__ import annotations

from dataclasses import replace

from minicompress.arrays import Array, finite_array
from minicompress.errors import CompressionError
from minicompress.nn.network import Network, Runner, input_batch, naming_layer
from minicompress.nn.normalization import BatchNorm, batch_statistics
from minicompress.nn.parameters import finite_model, with_layers


def reestimate_batch_norm(network: Network, x: Array) -> Network:
    """The network whose batch normalizations have the statistics of these inputs.

    Compression changes what a batch normalization reads, so its mean and variance no longer fit.
    Estimating them again needs no labels and no training, and often wins back most of the accuracy.

    Parameters
    ----------
    network : Network
        Its weights may be representations.
    x : (N, ...) ndarray of the network's dtype, finite, N at least 1
        Some hundred examples are enough. They run in one piece, so the memory grows with N.

    Returns
    -------
    Network
        Equal but for `mean` and `variance` of each `BatchNorm`.

    Raises
    ------
    CompressionError
        There is no example, a layer refuses its input, or a statistic overflows its dtype.

    Notes
    -----
    One pass: each layer gets the outputs of the layers before it with their new statistics. So each
    normalized channel has mean 0 and variance 1 over `x`, up to `epsilon` and rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from minicompress.nn.composition import Sequential
    >>> one = np.ones(1)
    >>> network = Sequential((BatchNorm(one, 0 * one, 5 * one, one),))
    >>> reestimate_batch_norm(network, np.array([[1.0], [3.0]])).layers[0].mean
    array([2.])
    """
    values = {0: finite_array(input_batch(network, x), "x")}
    if len(values[0]) == 0:
        raise CompressionError("x must hold at least one example")
    if not has_batch_norm(network):
        return network
    run = Runner(network)
    layers = list(network.layers)
    for i, layer in enumerate(network.layers):
        if isinstance(layer, BatchNorm):
            with naming_layer(network, i):
                mean, variance = batch_statistics(*(values[v] for v in network.inputs[i]))
                layers[i] = replace(layer, mean=mean, variance=variance)
            run = run.with_layer(i, layers[i])
        values = run(values, i, i + 1)
    changed = with_layers(network, layers)
    finite_model(changed)  # the variance of large numbers can overflow
    return changed


def has_batch_norm(network: Network) -> bool:
    """Whether any layer has statistics."""
    return any(isinstance(layer, BatchNorm) for layer in network.layers)
