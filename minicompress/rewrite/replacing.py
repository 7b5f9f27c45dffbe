"""Layers of a network replaced by others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minicompress.arrays import as_int
from minicompress.errors import CompressionError, naming
from minicompress.nn.composition import replaced
from minicompress.nn.layer import Layer
from minicompress.nn.network import Network, check_network, layer_tuple


def replace_layers(network: Network, layers: Mapping[int, Layer | Sequence[Layer]]) -> Network:
    """Replace layers of a network by others, each by one layer or by a chain of them.

    Parameters
    ----------
    network : Network
    layers : {layer index: layer or sequence of layers}
        Such as ``{2: split_kernel(network.layers[2], rng=rng)}``. Of a chain, the first layer reads
        what the old one has read. ``()`` leaves a layer out: its readers read its input.

    Returns
    -------
    Network
        The indices of the layers behind a chain change with its length.

    Raises
    ------
    CompressionError
        There is no layer of an index, an entry is no layer, or a layer that reads several values is
        left out, or replaced by one that does not.

    Examples
    --------
    >>> import numpy as np
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.stateless import Flatten
    >>> from minicompress.rewrite.dense import dense_to_global_pool
    >>> network = Sequential((Flatten(), Dense(np.ones((4 * 4 * 8, 10)))))
    >>> replace_layers(network, {0: (), 1: dense_to_global_pool(network.layers[1], (4, 4))})
    layer                    reads  parameters
    ------------------------------------------
    0 Conv2D 1 x 1 x 8 x 10  0              80
    1 GlobalAvgPool2D        1               0
    outputs                  2
    """
    check_network(network)
    chains: list[Sequence[Layer]] = [(layer,) for layer in network.layers]
    for i, new in layers.items():
        as_int(i, "a key of layers", 0, len(chains) - 1)
        chains[i] = layer_tuple((new,) if isinstance(new, Layer) else new, f"layers[{i}]")
        if not chains[i] and len(network.inputs[i]) > 1:
            raise CompressionError(
                f"layer {i} ({type(network.layers[i]).__name__}) reads values "
                f"{network.inputs[i]}: it cannot be left out"
            )
    with naming(f"with layers {sorted(layers)} replaced"):
        return replaced(network, chains)
