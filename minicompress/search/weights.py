"""The weights of a model: taking them out, putting others in, and training what is left of them.

Retraining gives a model of plain arrays of the old shapes. It has the form that the compressor
gave it (zeros in the same places, or the same rank), so the same compressor loses nothing on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

import numpy as np

from minicompress.arrays import Array
from minicompress.compressors.chaining import Compressor as Compressor
from minicompress.errors import CompressionError
from minicompress.nn.layers import factor_layers
from minicompress.nn.network import Gradients, Sequential, parameters, with_parameters
from minicompress.nn.training import View
from minicompress.norms import fro_upper, norm_of
from minicompress.representation import (
    Certificate,
    Clustered,
    LowRank,
    Rep,
    Sparse,
    decode,
    shape_of,
)


def weights(model: Sequential) -> dict[int, Rep]:
    """The weights by the index of their layer, without the biases."""
    return {i: p["weight"] for i, p in enumerate(parameters(model)) if "weight" in p}


def with_weights(model: Sequential, changed: Mapping[int, Rep]) -> Sequential:
    """The model with other weights in some of its layers."""
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


def preserve_structure(model: Sequential) -> Callable[[Sequential, int], View]:
    """The view for `fit` in which weights keep the form they have in a model: zeros, shared values.

    Start from ``decoded(model)``. A `Sparse` weight takes gradients at its places only; a value of
    a `Clustered` one gets the sum of its members' (centroid fine-tuning, Han et al., 2016). They
    begin equal, so each optimizer that works entry by entry keeps them equal.

    Parameters
    ----------
    model : Sequential
        Its weights are arrays, `Sparse` or `Clustered`, nested in any way.

    Returns
    -------
    view : callable
        ``view(latent, step)``: the latent model as it is, with the pullback.

    Raises
    ------
    CompressionError
        In the first step, a weight is of another kind.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(Clustered(np.array([[0, 1, 0]]), np.array([5.0, 7.0]))),))
    >>> seen = preserve_structure(model)(Sequential((Dense(np.array([[5.0, 7.0, 5.0]])),)), 0)
    >>> seen.pullback(({"weight": np.array([[1.0, 2.0, 3.0]])},))
    ({'weight': array([[4., 2., 4.]])},)
    """
    reps = weights(model)

    def pullback(gradients: Gradients) -> Gradients:
        return tuple(
            {**g, "weight": _projected(reps[i], g["weight"])} if "weight" in g else g
            for i, g in enumerate(gradients)
        )

    return lambda latent, step: View(latent, pullback)


def restore_structure(model: Sequential, trained: Sequential) -> Sequential:
    """Plain arrays, trained through ``preserve_structure(model)``, as representations like the model's.

    Parameters
    ----------
    model : Sequential
    trained : Sequential
        Of the same shapes.

    Returns
    -------
    Sequential
        It decodes to `trained`, where that has the form of `model`.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(Sparse((1, 2), np.array([1]), np.array([5.0]))),))
    >>> restore_structure(model, Sequential((Dense(np.array([[0.0, 3.0]])),))).layers[0].weight.values
    array([3.])
    """
    arrays = {i: decode(w) for i, w in weights(trained).items()}
    everywhere = {i: np.ones(array.shape, bool) for i, array in arrays.items()}
    return with_weights(
        trained,
        {i: _refilled(rep, arrays[i], everywhere[i]) for i, rep in weights(model).items()},
    )


def _projected(rep: Rep, gradient: Array) -> Array:
    """The gradient of a representation's free numbers, at all entries that they stand for."""
    match rep:
        case np.ndarray():
            return gradient
        case Sparse(_, indices, values):
            projected = np.zeros_like(gradient, order="C")
            projected.ravel()[indices] = _projected(values, gradient.ravel()[indices])
            return projected
        case Clustered(codes, codebook):
            sums = np.bincount(codes.ravel(), gradient.ravel(), shape_of(codebook)[0])
            return _projected(codebook, sums.astype(gradient.dtype))[codes]
    raise CompressionError(f"a {type(rep).__name__} weight cannot be trained in its form")


def _refilled(rep: Rep, array: Array, known: Array) -> Rep:
    """An array of a representation's form as such a one; `known` leaves out what nobody uses."""
    match rep:
        case Sparse(shape, indices, values):
            flat = array.ravel()[indices], known.ravel()[indices]
            return Sparse(shape, indices, _refilled(values, *flat))
        case Clustered(codes, codebook):
            entries, used = decode(codebook).copy(), np.zeros(shape_of(codebook), bool)
            entries[codes[known]], used[codes[known]] = array[known], True
            return Clustered(codes, _refilled(codebook, entries, used))
    return array


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
