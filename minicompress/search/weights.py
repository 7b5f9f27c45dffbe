"""The weights of a model: read them, replace them, and sum up their certificates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from minicompress.nn.network import Network
from minicompress.nn.parameters import parameters, with_parameters
from minicompress.norms import fro_upper, norm_of
from minicompress.representation import Certificate, Rep


def weights(model: Network) -> dict[int, Rep]:
    """The weights of a model, without the biases, by the index of their layer.

    Parameters
    ----------
    model : Network

    Returns
    -------
    {layer index: array or representation}

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> weights(Sequential((Dense(np.eye(2), np.zeros(2)),)))
    {0: array([[1., 0.],
           [0., 1.]])}
    """
    return {i: p["weight"] for i, p in enumerate(parameters(model)) if "weight" in p}


def with_weights(model: Network, changed: Mapping[int, Rep]) -> Network:
    """The model with other weights in some of its layers.

    Parameters
    ----------
    model : Network
    changed : {layer index: array or representation}
        Of the old shapes.

    Returns
    -------
    Network

    Raises
    ------
    CompressionError
        An index names no layer with a weight, or a shape does not fit.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> with_weights(Sequential((Dense(np.eye(2)),)), {0: np.zeros((2, 2))}).layers[0].weight
    array([[0., 0.],
           [0., 0.]])
    """
    indices = range(len(model.layers))
    return with_parameters(
        model, tuple({"weight": changed[i]} if i in changed else {} for i in indices)
    )


def total(certificates: Iterable[Certificate]) -> Certificate:
    """The certificate of all weights as one long vector.

    Parameters
    ----------
    certificates : iterable of Certificate
        In the Frobenius norm, for arrays that share no entries.

    Returns
    -------
    Certificate
        ``sqrt(sum of squares)`` of the bounds, rounded upward, and of the measured errors.

    Examples
    --------
    >>> total([Certificate("fro", 6.0, 3.0), Certificate("fro", 8.0, 4.0)]).measured
    5.0
    """
    pairs = np.array([(c.bound, c.measured) for c in certificates]).reshape(-1, 2)
    return Certificate("fro", fro_upper(pairs[:, 0]), norm_of(pairs[:, 1]))
