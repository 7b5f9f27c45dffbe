"""The latent model of training for few bytes: weights that are stored in whole steps.

It is the network with its weights as they are before they are rounded, and behind its last layer a
Dense layer that is never run. That layer has a column for each layer with weights: in the first row
the length of a step at the start, in the second the logarithm of the factor by which the length has
changed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array, as_float, freeze
from minicompress.errors import CompressionError
from minicompress.integers import code_dtype, scale_dtypes
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Dense
from minicompress.nn.network import Network
from minicompress.nn.parameters import finite_model, parameters, with_parameters
from minicompress.representation import Quantized, Rep, decode, shape_of
from minicompress.search.weights import weights

BIAS_STEP = 1 / 16
"""The length of a bias's step, which is not trained: there are few biases."""


class StepLength(NamedTuple):
    """The length of an array's step: at the start of the training, and now."""

    first: float
    now: float

    def codes(self, array: Array) -> Array:
        """The array in whole steps, ties to even, in the dtype of scales."""
        wide = array.astype(scale_dtypes(array.dtype)[0], copy=False)
        return np.asarray(np.rint(wide / self.first))

    def rounded(self, array: Array) -> Array:
        """The array rounded to whole steps of the length that they have now."""
        return np.asarray(self.codes(array) * self.now).astype(array.dtype, copy=False)


class Latent(NamedTuple):
    """A latent model taken apart: for every layer its arrays by name, and their steps."""

    network: Network
    arrays: tuple[dict[str, Array], ...]
    steps: tuple[dict[str, StepLength], ...]


def latent_model(model: Network, *, deviations: float = 1.2) -> Network:
    """The latent model of a network, to be trained by `fit` with `rate_view`.

    Parameters
    ----------
    model : Network
        Of plain arrays, with biases or without.
    deviations : float, positive
        The length of a step at the start, in standard deviations of its layer's weights. Training
        makes steps longer more easily than shorter. With shorter first steps it takes longer until
        weights become zero.

    Returns
    -------
    Network
        The layers of `model`, and the layer with the steps.

    Raises
    ------
    CompressionError
        The model has no weights, or all weights of a layer are equal: their step would be 0.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> model = Sequential((Dense(np.array([[1.0, -1.0]])),))
    >>> [layer.weight.tolist() for layer in latent_model(model).layers]
    [[[1.0, -1.0]], [[1.2], [0.0]]]
    """
    finite_model(model)
    deviations = as_float(deviations, "deviations", 0.0)
    arrays = [decode(w) for w in weights(model).values()]
    steps = [deviations * float(np.std(a, dtype=np.float64)) if a.size else 0.0 for a in arrays]
    if not arrays or min(steps) == 0.0:
        raise CompressionError(
            f"every layer needs weights that differ: its step must not be 0, as {steps}"
        )
    rows = np.array([steps, [0.0] * len(steps)], scale_dtypes(arrays[0].dtype)[0])
    return with_steps(model, Dense(freeze(rows)))


def quantized_model(latent: Network) -> Network:
    """The network of a latent model, with weights and biases as they are stored.

    Parameters
    ----------
    latent : Network
        Made by `latent_model`, trained or not.

    Returns
    -------
    Network
        With `Quantized` weights and biases, one scale for each array. Scales are rounded to 8 bits
        of precision, so that they take two bytes. Its outputs differ by this rounding from those of
        the model that training saw.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> latent = latent_model(Sequential((Dense(np.array([[1.0, -1.0, 0.5]])),)))
    >>> weight = quantized_model(latent).layers[0].weight
    >>> weight.codes, weight.scale
    (array([[ 1, -1,  0]], dtype=int8), array(1.0234375))
    """
    finite_model(latent)
    network, arrays, steps = latent_parts(latent)
    found: list[dict[str, Rep]] = [
        {name: _quantized(array, step[name]) for name, array in layer.items()}
        for layer, step in zip(arrays, steps, strict=True)
    ]
    return with_parameters(network, tuple(found))


def is_latent(model: Network) -> bool:
    """Whether a model can come from `latent_model`: its last layer holds a step for each layer.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> model = Sequential((Dense(np.array([[1.0, -1.0]])),))
    >>> is_latent(model), is_latent(latent_model(model))
    (False, True)
    """
    n = len(model.layers) - 1
    if n < 1 or model.inputs[n] != (n,) or n in model.outputs:
        return False
    last, layers = model.layers[n], weights(model).keys() - {n}
    if not (layers and isinstance(last, Dense) and last.bias is None):
        return False
    fits = shape_of(last.weight) == (2, len(layers))
    return fits and bool((decode(last.weight)[0] > 0).all())


def with_steps(network: Network, steps: Layer) -> Network:
    """The network, and behind its last layer the one that holds the steps.

    The last value of a network is always an output, and nothing else reads it.
    """
    n = len(network.layers)
    outputs = tuple(n + 1 if value == n else value for value in network.outputs)
    return Network((*network.layers, steps), (*network.inputs, (n,)), outputs)


def latent_parts(latent: Network) -> Latent:
    """Take a latent model apart.

    Raises
    ------
    CompressionError
        It is not made by `latent_model`, a layer's parameters are not a weight and a bias, or a
        step has grown beyond its dtype.
    """
    if not is_latent(latent):
        raise CompressionError("latent must be a model of latent_model: its last layer holds steps")
    n = len(latent.layers) - 1
    outputs = tuple(n if value == n + 1 else value for value in latent.outputs)
    network = Network(latent.layers[:n], latent.inputs[:n], outputs)
    last = decode(parameters(latent)[-1]["weight"])
    lengths, dtype = last.astype(np.float64).tolist(), scale_dtypes(last.dtype)[0]
    steps = tuple({"bias": StepLength(BIAS_STEP, BIAS_STEP)} for _ in network.layers)
    for i, first, growth in zip(weights(network), *lengths, strict=True):
        now = first * math.exp(min(growth, 700.0))
        if not now <= np.finfo(dtype).max:
            raise CompressionError(
                f"layer {i}: its step has grown to {now:.3g}, too much for {dtype}; "
                "take a smaller learning rate"
            )
        steps[i]["weight"] = StepLength(first, now)
    for i, layer in enumerate(network.layers):
        if not layer.parameters().keys() <= steps[i].keys():
            raise CompressionError(
                f"layer {i} ({type(layer).__name__}) has weights without steps: only those of "
                "convolutions and dense layers have them; see rewrite.fold_batch_norm"
            )
    arrays = tuple({name: decode(w) for name, w in p.items()} for p in parameters(network))
    return Latent(network, arrays, steps)


def _quantized(array: Array, step: StepLength) -> Quantized:
    codes = step.codes(array)
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    num_bits = max(2, max(-low - 1, high).bit_length() + 1)
    mantissa, exponent = math.frexp(step.now)
    scale = math.ldexp(round(mantissa * 256), exponent - 8)
    codes = codes.astype(code_dtype(num_bits, signed=True))
    length = np.array(scale, scale_dtypes(array.dtype)[0])
    return Quantized(codes, length, np.array(0), num_bits, True, None, None, array.dtype)
