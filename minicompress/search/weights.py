"""The weights of a model: taking them out, putting others in, and training what is left of them.

Retraining gives a model of plain arrays of the old shapes. It has the form that the compressor
gave it (zeros in the same places, or the same rank), so the same compressor loses nothing on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

import numpy as np

from minicompress.compressors.chaining import Compressor as Compressor
from minicompress.nn.layers import factor_layers
from minicompress.nn.network import Sequential, parameters, with_parameters
from minicompress.norms import fro_upper, norm_of
from minicompress.representation import (
    Certificate,
    LowRank,
    Rep,
    Sparse,
    decode,
    shape_of,
)


def weights(model: Sequential) -> dict[int, Rep]:
    """The weights by the index of their layer, without the biases.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> weights(Sequential((Dense(np.eye(2), np.zeros(2)),)))
    {0: array([[1., 0.],
           [0., 1.]])}
    """
    return {i: p["weight"] for i, p in enumerate(parameters(model)) if "weight" in p}


def with_weights(model: Sequential, changed: Mapping[int, Rep]) -> Sequential:
    """The model with other weights in some of its layers.

    Parameters
    ----------
    model : Sequential
    changed : {layer index: array or representation}
        Of the old shapes.

    Returns
    -------
    Sequential

    Raises
    ------
    CompressionError
        An index names no layer with a weight, or a shape does not fit.

    Examples
    --------
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
    """The certificate of all the weights as one long vector: roots of sums of squares.

    Examples
    --------
    >>> total([Certificate("fro", 6.0, 3.0), Certificate("fro", 8.0, 4.0)]).measured
    5.0
    """
    pairs = np.array([(c.bound, c.measured) for c in certificates]).reshape(-1, 2)
    return Certificate("fro", fro_upper(pairs[:, 0]), norm_of(pairs[:, 1]))


def mask_view(pruned: Sequential) -> Callable[[Sequential, int], Sequential]:
    """The view for `fit` that keeps the zeros of a pruned model's weights where they are."""
    masks = {i: decode(w) != 0 for i, w in weights(pruned).items() if isinstance(w, Sparse)}

    def view(latent: Sequential, step: int) -> Sequential:
        arrays = weights(latent)
        return with_weights(latent, {i: decode(arrays[i]) * mask for i, mask in masks.items()})

    return view


def factored(model: Sequential) -> Sequential:
    """The model with a layer for every factor of its low-rank weights, so that they can be trained.

    Each weight has to be of `truncated_svd` or `channel_svd`, or a plain array.
    """
    return Sequential(tuple(part for layer in model.layers for part in factor_layers(layer)))


def multiplied(trained: Sequential, model: Sequential) -> Sequential:
    """The way back from ``factored(model)``, once trained: plain arrays, each factors' product."""
    parts, values = iter(parameters(trained)), []
    for layer, old in zip(model.layers, parameters(model), strict=True):
        chain = list(islice(parts, len(factor_layers(layer))))
        new = dict(chain[-1])
        if isinstance(rep := old.get("weight"), LowRank):
            # But for axes of length 1 these are the factors as they were.
            pairs = zip(chain, rep.factors, strict=True)
            factors = tuple(decode(p["weight"]).reshape(shape_of(f)) for p, f in pairs)
            new["weight"] = decode(LowRank(factors, rep.subscripts))
        values.append(new)
    return with_parameters(model, tuple(values))
