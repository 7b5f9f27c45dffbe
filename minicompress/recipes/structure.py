"""Retraining that keeps the structure which compression gave: zeros in place, values shared.

Retraining gives a model of plain arrays of the old shapes. It has the structure that the compressor
gave it, so the same compressor loses nothing on it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.nn.network import Gradients, Network
from minicompress.nn.training import View
from minicompress.representation import Clustered, Rep, Sparse, decode, shape_of
from minicompress.search.weights import weights, with_weights


def preserve_structure(model: Network) -> Callable[[Network, int], View]:
    """The view for `fit` in which weights keep the form they have in a model: zeros, shared values.

    Start from ``decoded(model)``. A `Sparse` weight takes gradients at its places only; a value of
    a `Clustered` one gets the sum of its members' (centroid fine-tuning, Han et al., 2016). They
    begin equal, so each optimizer that works entry by entry keeps them equal.

    Parameters
    ----------
    model : Network
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
    >>> from minicompress.nn.composition import Sequential
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


def restore_structure(model: Network, trained: Network) -> Network:
    """Plain arrays trained through ``preserve_structure(model)``, as representations again.

    Parameters
    ----------
    model : Network
    trained : Network
        Of the same shapes.

    Returns
    -------
    Network
        It decodes to `trained`, where that has the form of `model`.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(Sparse((1, 2), np.array([1]), np.array([5.0]))),))
    >>> trained = Sequential((Dense(np.array([[0.0, 3.0]])),))
    >>> restore_structure(model, trained).layers[0].weight.values
    array([3.])
    """
    arrays = {i: decode(w) for i, w in weights(trained).items()}
    known = {i: np.ones(array.shape, bool) for i, array in arrays.items()}
    filled = {i: _refilled(rep, arrays[i], known[i]) for i, rep in weights(model).items()}
    return with_weights(trained, filled)


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
