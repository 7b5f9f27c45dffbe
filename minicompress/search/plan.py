"""Compressing a whole network by a plan: which method, where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from minicompress.arrays import as_int
from minicompress.compressors.chaining import Compressor
from minicompress.errors import CompressionError, naming
from minicompress.nn.network import Network
from minicompress.representation import Certificate, checked, decode
from minicompress.search.weights import weights, with_weights


class CompressedModel(NamedTuple):
    """A model whose weights are representations, and their certificates by layer index."""

    model: Network
    certificates: dict[int, Certificate]


def compress(model: Network, plan: Mapping[int, Compressor]) -> CompressedModel:
    """Replace the weights of some layers by what their compressors make of them.

    Parameters
    ----------
    model : Network
    plan : mapping of int to compressor
        For the index of a layer with weights, a compressor: array -> `Compressed`, options bound
        beforehand, as in ``functools.partial(quantize, num_bits=8, axis=-1)``. A weight that is
        a representation already is decoded first. Biases stay as they are.

    Returns
    -------
    model : Network
        The same layers; it runs, counts and stores its representations.
    certificates : dict of int to Certificate
        For the indices of the plan.

    Raises
    ------
    CompressionError
        A layer has no weights, or a compressor refuses them: the message names the layer.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> import numpy as np
    >>> from minicompress.compressors.pruning import prune_magnitude
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(np.array([[3.0, 4.0]])),))
    >>> pruned, certificates = compress(model, {0: lambda w: prune_magnitude(w, count=1)})
    >>> decode(pruned.layers[0].weight), certificates[0].measured
    (array([[0., 4.]]), 3.0)
    """
    if not isinstance(plan, Mapping):
        raise CompressionError(f"plan must map layer indices to compressors, not be {plan!r}")
    arrays = weights(model)
    changed: dict[int, Any] = {}
    certificates = {}
    for key, compressor in plan.items():
        index = as_int(key, "a layer index of the plan", 0, len(model.layers) - 1)
        name = type(model.layers[index]).__name__
        if index not in arrays:
            raise CompressionError(f"layer {index} ({name}) has no weights to compress")
        with naming(f"layer {index} ({name})"):
            result = checked(compressor(decode(arrays[index])), "a compressor of the plan")
            changed[index], certificates[index] = result
    return CompressedModel(with_weights(model, changed), certificates)
