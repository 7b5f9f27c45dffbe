"""Compressing a whole network, or arrays with names, by a plan: which method, where."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, overload

import numpy as np

from minicompress.arrays import as_int
from minicompress.compressors.chaining import Compressor
from minicompress.errors import CompressionError, naming
from minicompress.nn.network import Network, naming_layer
from minicompress.representation import (
    Certificate,
    Clustered,
    LowRank,
    Quantized,
    Rep,
    Sparse,
    checked,
    decode,
    dtype_of,
    shape_of,
)
from minicompress.search.weights import weights, with_weights


class CompressedModel(NamedTuple):
    """A model whose weights are representations, and their certificates by layer index."""

    model: Network
    certificates: dict[int, Certificate]


class CompressedArrays(NamedTuple):
    """Arrays and representations by name, and the certificates of those that were compressed."""

    arrays: dict[str, Rep]
    certificates: dict[str, Certificate]


@overload
def compress(model: Network, plan: Mapping[int, Compressor]) -> CompressedModel: ...
@overload
def compress(
    model: Mapping[str, Rep], plan: Mapping[str, Compressor | None]
) -> CompressedArrays: ...
def compress(model: Any, plan: Any) -> Any:
    """Replace the weights of some layers, or some named arrays, by what compressors make of them.

    Parameters
    ----------
    model : Network, or mapping of str to ndarray or representation
        A weight that is a representation already is decoded first.
    plan : mapping
        Of a network: for the index of a layer with weights, a compressor: array -> `Compressed`,
        options bound beforehand, as in ``functools.partial(quantize, num_bits=8, axis=-1)``. Biases
        stay as they are.

        Of named arrays: for a name, or a pattern such as ``"encoder.*"`` or ``"*"``, a compressor,
        or None to leave the arrays alone. A name goes before patterns, and of several patterns that
        fit, the first counts. Patterns fit only float arrays of two axes or more, so biases and
        integers stay as they are unless they are named.

    Returns
    -------
    CompressedModel or CompressedArrays
        The same network or names with representations; and the certificates for the indices of the
        plan, or for the names that were compressed.

    Raises
    ------
    CompressionError
        A layer has no weights, a name or a pattern fits no array, or a compressor refuses an array:
        the message names the layer or the array.

    Examples
    --------
    >>> from minicompress.compressors.pruning import prune_magnitude
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> half = lambda w: prune_magnitude(w, amount=0.5)
    >>> model = Sequential((Dense(np.array([[3.0, 4.0]])),))
    >>> pruned, certificates = compress(model, {0: half})
    >>> decode(pruned.layers[0].weight), certificates[0].measured
    (array([[0., 4.]]), 3.0)
    >>> small, certificates = compress({"w": np.array([[3.0, 4.0]]), "b": np.ones(2)}, {"*": half})
    >>> decode(small["w"]), small["b"], list(certificates)
    (array([[0., 4.]]), array([1., 1.]), ['w'])
    """
    if not isinstance(plan, Mapping):
        what = "layer indices" if isinstance(model, Network) else "names"
        raise CompressionError(f"plan must map {what} to compressors, not be {plan!r}")
    if isinstance(model, Mapping):
        return _compressed_arrays(model, plan)
    arrays = weights(model)
    changed: dict[int, Any] = {}
    certificates = {}
    for key, compressor in plan.items():
        index = as_int(key, "a layer index of the plan", 0, len(model.layers) - 1)
        if index not in arrays:
            name = type(model.layers[index]).__name__
            raise CompressionError(f"layer {index} ({name}) has no weights to compress")
        with naming_layer(model, index):
            changed[index], certificates[index] = _compressed(arrays[index], compressor)
    return CompressedModel(with_weights(model, changed), certificates)


def _compressed_arrays(
    arrays: Mapping[str, Rep], plan: Mapping[str, Compressor | None]
) -> CompressedArrays:
    made = {name: _named_array(name, value) for name, value in arrays.items()}
    chosen = planned(made, plan)
    certificates = {}
    for name, pattern in chosen.items():
        if (compressor := plan[pattern]) is not None:
            with naming(f"array {name!r}"):
                made[name], certificates[name] = _compressed(made[name], compressor)
    return CompressedArrays(made, certificates)


def planned(arrays: Mapping[str, Rep], plan: Mapping[str, Any]) -> dict[str, str]:
    """For each array that a plan names or fits, the entry of the plan that counts for it."""
    fitting: dict[str, list[str]] = {
        name: [
            key
            for key in plan
            if key == name or (_has_weights(array) and fnmatchcase(name, _text(key)))
        ]
        for name, array in arrays.items()
    }
    used = {key for keys in fitting.values() for key in keys}
    if unused := [key for key in plan if key not in used]:
        listed = ", ".join(map(repr, list(arrays)[:10])) or "none"
        raise CompressionError(
            f"{unused[0]!r} of the plan fits no array; patterns fit float arrays of two axes or "
            f"more. The names are {listed}{', ...' if len(arrays) > 10 else ''}"
        )
    return {name: name if name in keys else keys[0] for name, keys in fitting.items() if keys}


def _has_weights(array: Rep) -> bool:
    return len(shape_of(array)) >= 2 and dtype_of(array).kind == "f"


def _text(key: Any) -> str:
    if not isinstance(key, str):
        raise CompressionError(f"the plan of named arrays must have names as keys, not {key!r}")
    return key


def _named_array(name: Any, value: Any) -> Rep:
    if not isinstance(name, str):
        raise CompressionError(f"the names of arrays must be strings, not {name!r}")
    return (
        value if isinstance(value, LowRank | Sparse | Quantized | Clustered) else np.asarray(value)
    )


def _compressed(array: Rep, compressor: Any) -> Any:
    return checked(compressor(decode(array)), "a compressor of the plan")
