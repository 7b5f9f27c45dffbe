"""The weights of a network: all of them, others in their place, and whether they are finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from minicompress.arrays import Array, not_finite
from minicompress.errors import CompressionError
from minicompress.nn.layer import Layer
from minicompress.nn.layers import decoded_layer
from minicompress.nn.network import Network, Parameters, naming_layer


def parameters(network: Network) -> Parameters:
    """For every layer a dict of its weights by name, arrays or representations.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.pointwise import ReLU
    >>> parameters(Sequential((Dense(np.ones((1, 1))), ReLU())))
    ({'weight': array([[1.]])}, {})
    """
    return tuple(layer.parameters() for layer in network.layers)


def with_parameters(network: Network, parameters: Parameters) -> Network:
    """The network with other weights.

    Parameters
    ----------
    network : Network
    parameters : tuple with one dict for each layer
        A weight that a dict does not name stays as it is.

    Returns
    -------
    Network

    Raises
    ------
    CompressionError
        The number of dicts is not the number of layers, a layer has no weight of that name, or it
        refuses the new one.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> network = Sequential((Dense(np.ones((1, 1))),))
    >>> with_parameters(network, ({"weight": np.zeros((1, 1))},)).layers[0].weight
    array([[0.]])
    """
    if len(parameters) != len(network.layers):
        raise CompressionError(
            f"parameters must hold one dict for each of {len(network.layers)} layers, "
            f"not {len(parameters)}"
        )
    layers = []
    for i, (layer, changed) in enumerate(zip(network.layers, parameters, strict=True)):
        with naming_layer(network, i):
            known = layer.parameters()
            if not changed.keys() <= known.keys():
                raise CompressionError(
                    f"parameters must be among {list(known)}, not {list(changed)}"
                )
            layers.append(dataclasses.replace(layer, **changed) if changed else layer)
    return with_layers(network, layers)


def with_layers(network: Network, layers: Sequence[Layer]) -> Network:
    """The network with other layers, which read the same values."""
    return dataclasses.replace(network, layers=tuple(layers))


def decoded(network: Network) -> Network:
    """The network with every weight decoded to a plain array.

    Decode once to run many times, or to train. The last bits of the outputs can change, because
    `LowRank` weights run as their factors when they are not decoded.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.representation import Clustered
    >>> weight = Clustered(np.array([[0, 1]]), np.array([0.5, 2.0]))
    >>> decoded(Sequential((Dense(weight),))).layers[0].weight
    array([[0.5, 2. ]])
    """
    return with_layers(network, [decoded_layer(layer) for layer in network.layers])


def finite_model(network: Network) -> None:
    """Refuse a network with NaN or infinity among its weights.

    `apply` runs such a network: its outputs show the fault. Training, rewriting, files and exports
    refuse it, because their results would look right. Representations are always finite.

    Raises
    ------
    CompressionError
        Naming the layer, the weight and its first entry that is not finite.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> finite_model(Sequential((Dense(np.array([[1.0, np.nan]])),)))
    Traceback (most recent call last):
    minicompress.errors.CompressionError: layer 0 (Dense): weight must be finite, \
but entry (0, 1) is nan
    """
    for i, layer in enumerate(network.layers):
        with naming_layer(network, i):
            finite_layer(layer)


def finite_layer(layer: Layer) -> None:
    """The same for one layer."""
    for name, rep in layer.parameters().items():
        if isinstance(rep, np.ndarray) and (fault := not_finite(rep)):
            raise CompressionError(f"{name} must be finite, but {fault}")


def finite_outputs(outputs: Any, rows: Array | None = None, name: str = "network") -> Any:
    """A network's outputs, unchanged; NaN and infinity are refused, since they name no class.

    Raises
    ------
    CompressionError
        Naming the first input whose outputs are not finite: its index, or its entry of `rows`.
    """
    for y in as_tuple(outputs):
        if not np.isfinite(y).all():
            first = int(np.isfinite(y).reshape(len(y), -1).all(1).argmin())
            row = first if rows is None else rows[first]
            raise CompressionError(
                f"{name} must give finite outputs, but for x[{row}] {not_finite(y[first])}: its "
                f"weights are not finite, or {y.dtype} is too narrow for its numbers"
            )
    return outputs


def as_tuple(outputs: Any) -> tuple[Any, ...]:
    """A network's outputs as a tuple, also where there is only one."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
