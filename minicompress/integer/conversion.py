"""From a float model to one that computes with integers only.

`to_integer` runs a float model on some inputs and so finds a scale and a zero point for every array
between two layers. The integer model computes with int8 codes, int32 sums and fixed-point
multipliers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array, as_int, finite_array
from minicompress.errors import CompressionError
from minicompress.integer.forms import (
    CLAMPED,
    FORMS,
    KEEPING,
    Affine,
    Average,
    Join,
    Limits,
    affine,
    average,
    join,
    keeping,
    table,
)
from minicompress.integer.model import IntegerModel
from minicompress.integer.stateless import IntegerFlatten, IntegerLayer
from minicompress.nn.activations import clip
from minicompress.nn.composition import replaced
from minicompress.nn.layer import Layer
from minicompress.nn.layers import decoded_layer, factor_layers
from minicompress.nn.network import Network, last_readers, naming_layer
from minicompress.nn.parameters import finite_model, finite_outputs
from minicompress.nn.pointwise import Clip, Dropout, ReLU, Softmax
from minicompress.nn.stateless import GlobalAvgPool2D, LocalResponseNorm
from minicompress.qparams import QParams, choose_qparams

NO_FORM = (
    f"it has no integer form; those that have one are "
    f"{', '.join(sorted(kind.__name__ for kind in FORMS))}, and Softmax at the end"
)

REFUSED: dict[type[Layer], str] = {
    LocalResponseNorm: "local response normalization has no integer form",
    Softmax: "softmax has an integer form at the end of a network only",
}

NO_LIMITS = (-math.inf, math.inf)
RELU: Limits = (0.0, math.inf)

QUANTILES = 1 << 17
"""The number of values of an array between two layers from which "percentile" and "mse" choose."""


class Prepared(NamedTuple):
    """A network ready to be converted: only layers that have an integer form.

    Parameters
    ----------
    network : Network
    origin : list of int
        For each layer the index of the layer in the original network that it comes from.
    limits : list of (float, float)
        What the output of each layer is clamped to, by a ReLU or a Clip that followed it.
    """

    network: Network
    origin: list[int]
    limits: list[Limits]


def to_integer(
    model: Network,
    calibration: Array,
    *,
    num_bits: int = 8,
    activation_bits: int = 8,
    method: str = "minmax",
    percentile: float = 99.99,
) -> IntegerModel:
    """Turn a float model into one that computes with integers only.

    Parameters
    ----------
    model : Network
        Of all layers but LocalResponseNorm. Dropout is left out. A Softmax whose output is an
        output of the network is left out too: its codes are those of the logits, which have the
        same order. Elsewhere there is no Softmax.
    calibration : (N, ...) ndarray of float16, float32 or float64, N at least 1
        Inputs like those that will be run; a few hundred are enough. All of them run through the
        float model at once, and the codes cover the ranges found between the layers.
    num_bits : int from 2 to 8
        Of weights.
    activation_bits : int from 2 to 8
        Of all arrays between layers, input and logits included.
    method : "minmax" | "percentile" | "mse"
        How a range is chosen from the values found: see `choose_qparams`. The last two look at no
        more than 131,072 evenly spaced quantiles of them, with the extremes among these.
    percentile : float in (0, 100]
        The percentage of the values that "percentile" keeps.

    Returns
    -------
    IntegerModel

    Raises
    ------
    CompressionError
        A layer has no integer form, its accumulators or its bias could overflow int32, or an
        argument is not as above; the message names the layer.

    Notes
    -----
    Activations are affine, with one scale and zero point for each array, and 0.0 always has a code.
    Weights are symmetric, from -127 to 127 at 8 bits, with a scale for each output, by "minmax".
    A weight that is already `Quantized` like that (zero point in the middle, at most 8 bits, one
    scale or one for each output) keeps its codes and scales. So `quantize` weights first to choose
    them in another way. A `LowRank` weight becomes the chain of its factors, each with its own
    layer; other representations are decoded first.

    Biases are int32 in steps of input scale * weight scale. If a weight is so small beside its bias
    that the bias overflows, the weight's scale is raised until the bias is 2**30 steps; a pruned
    output is the common case. (Of a `Quantized` weight this is possible only for outputs whose
    codes are all 0.) An output's scale is never finer than the largest step of its accumulators.

    A sum of values of different scales has a multiplier for each value and one rounding. Values
    side by side are brought to a common scale. A product has one multiplier. A function of one
    number, as Sigmoid, is a table with an entry for each of 256 codes; PReLU has a table for each
    channel.

    A ReLU or a Clip is computed by clamping if it follows a layer with weights, an average or a
    join, and nothing else reads the output of that layer. An average gives the codes of the equal
    depthwise convolution, with weights of code 1 and scale 1 / n. Maximum pooling, Upsample2D,
    ChannelShuffle and any other ReLU keep scale and zero point.

    A batch normalization is an affine layer of its own, with a weight for each channel, whose
    output is rounded to codes once more. `fold_batch_norm` first saves that layer and its rounding.

    Compare with simulated quantization: decoded weights and biases, real arithmetic, the same
    scales. A layer's code is at most 1/2 + 2**-22 from the real value in steps of the output,
    clamped. So for the same input codes the two differ by at most 1, and only within 2**-22 of a
    tie. The 2**-22 is the relative error of the multiplier, 2**-31, times at most 2**9 steps. (A
    sum of n values: n * 2**-23. A table has no error but the rounding.)

    A certificate of the decoded float network says nothing about the integer model: that one also
    rounds every array between two layers.

    Source: B. Jacob et al., *Quantization and training of neural networks for efficient
    integer-arithmetic-only inference* (2018).

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(np.array([[1.0, -1.0], [0.5, 2.0]])), ReLU()))
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    >>> integer_model = to_integer(model, x)
    >>> integer_model.run(integer_model.quantize_input(x))
    array([[  -1, -128],
           [ -64,  126],
           [-128,  127]], dtype=int8)
    >>> bool(np.abs(integer_model(x) - model(x)).max() < 0.02)
    True
    """
    if not isinstance(model, Network):
        raise CompressionError(f"model must be a Network, not {type(model).__name__}")
    finite_model(model)
    bits = as_int(num_bits, "num_bits", 2, 8)
    between = as_int(activation_bits, "activation_bits", 2, 8)
    x = finite_array(calibration, "calibration")
    if x.ndim == 0 or x.size == 0:
        raise CompressionError(f"calibration must hold inputs, not be of shape {x.shape}")
    input_shape = x.shape[1:]
    prepared = _prepared(model)
    network = prepared.network
    values, qparams = {0: x}, [_range(x, between, method, percentile)]
    layers: list[IntegerLayer] = []
    inputs: list[tuple[int, ...]] = []
    place = [0]  # the value of the integer network for each value of `network`
    for i, dropped in enumerate(last_readers(network)):
        layer, reads = network.layers[i], network.inputs[i]
        read, sources = [values[value] for value in reads], [qparams[value] for value in reads]
        shapes = [value.shape[1:] for value in read]
        with naming_layer(model, prepared.origin[i], shapes):
            with np.errstate(over="ignore", invalid="ignore"):  # finite_outputs finds them
                y = finite_outputs(decoded_layer(layer).forward(*read), name="it")
            limits, whole = prepared.limits[i], y
            y = clip(whole, *limits)
            wanted = target = (
                sources[0] if type(layer) in KEEPING else _range(y, between, method, percentile)
            )
            made, target = _form(layer, shapes, bits, sources, target, limits)
            # Where the sums are so coarse that a narrow Clip would lose more than a bit, it is a
            # table of its own.
            coarse = float(target.scale) > 2 * float(wanted.scale)
            apart = coarse and limits not in (NO_LIMITS, RELU)
            if apart:
                target = _range(whole, between, method, percentile)
                made, target = _form(layer, shapes, bits, sources, target, NO_LIMITS)
        layers.append(made)
        inputs.append(tuple(place[value] for value in reads))
        if apart:
            layers.append(table(Clip(*limits), target, wanted))
            inputs.append((len(layers) - 1,))
            target = wanted
        if isinstance(layer, GlobalAvgPool2D) and not layer.keep_axes:
            layers.append(IntegerFlatten())
            inputs.append((len(layers) - 1,))
        place.append(len(layers))
        values[i + 1] = y
        qparams.append(target)
        for value in dropped:
            del values[value]
    outputs = tuple(place[value] for value in network.outputs)
    integers = Network(tuple(layers), tuple(inputs), outputs)
    return IntegerModel(
        integers, input_shape, qparams[0], tuple(qparams[value] for value in network.outputs)
    )


def _form(
    layer: Layer,
    shapes: Sequence[tuple[int, ...]],
    num_bits: int,
    sources: Sequence[QParams],
    target: QParams,
    limits: Limits,
) -> tuple[IntegerLayer, QParams]:
    """The integer form of a layer, and the scale and zero point of its output."""
    if isinstance(layer, Affine):
        return affine(layer, shapes[0], num_bits, sources[0], target, limits)
    if isinstance(layer, Average):
        return average(layer, shapes[0], sources[0], target, limits)
    if isinstance(layer, Join):
        return join(layer, sources, target, limits)
    if type(layer) in KEEPING:
        return keeping(layer, shapes[0], sources[0]), target
    return table(layer, sources[0], target), target


def _prepared(model: Network) -> Prepared:
    """Take factors apart, leave out Dropout and Softmax at the end, and fuse ReLU and Clip."""
    chains: list[Sequence[Layer]] = []
    for i, layer in enumerate(model.layers):
        if type(layer) not in FORMS | {Softmax}:
            with naming_layer(model, i):
                raise CompressionError(REFUSED.get(type(layer), NO_FORM))
        chains.append(() if isinstance(layer, Dropout) else factor_layers(layer))
    network, origin = _replaced(model, range(len(chains)), chains)
    read = {value for reads in network.inputs for value in reads}
    chains = []
    for i, layer in enumerate(network.layers):
        if isinstance(layer, Softmax) and i + 1 in read:
            with naming_layer(model, origin[i]):
                raise CompressionError(REFUSED[Softmax])
        chains.append(() if isinstance(layer, Softmax) else (layer,))
    network, origin = _replaced(network, origin, chains)
    limits = _fused(network)
    kept = [i for i in range(len(limits)) if limits[i] is not None]
    chains = [() if limits[i] is None else (layer,) for i, layer in enumerate(network.layers)]
    network, origin = _replaced(network, origin, chains)
    return Prepared(network, origin, [limits[i] or NO_LIMITS for i in kept])


def _fused(network: Network) -> list[Limits | None]:
    """What each layer's output is clamped to; None for a ReLU or a Clip that is part of a layer.

    It is part of the layer before it if that one can clamp, and nothing else reads its output.
    """
    limits: list[Limits | None] = []
    readers = Counter(value for reads in [*network.inputs, network.outputs] for value in reads)
    makers: dict[int, int] = {}  # of values: the layer that can clamp them
    for i, (layer, reads) in enumerate(zip(network.layers, network.inputs, strict=True)):
        maker = makers.get(reads[0])
        if isinstance(layer, ReLU | Clip) and maker is not None and readers[reads[0]] == 1:
            low, high = RELU if isinstance(layer, ReLU) else (layer.low, layer.high)
            before, after = limits[maker] or NO_LIMITS
            limits[maker] = min(max(before, low), high), min(max(after, low), high)
            limits.append(None)
            makers[i + 1] = maker
            continue
        limits.append(NO_LIMITS)
        if type(layer) in CLAMPED:
            makers[i + 1] = i
    return limits


def _replaced(
    network: Network, origin: Sequence[int], chains: Sequence[Sequence[Layer]]
) -> tuple[Network, list[int]]:
    """`replaced`, and for each of the new layers its origin."""
    origins = [i for i, chain in zip(origin, chains, strict=True) for _ in chain]
    try:
        return replaced(network, chains), origins
    except CompressionError as error:
        raise CompressionError(
            "two outputs of the network are the same value without Dropout, and without Softmax at "
            "the end: return it once"
        ) from error


def _range(x: Array, num_bits: int, method: str, percentile: float) -> QParams:
    """Scale and zero point for an array between two layers."""
    if method == "minmax":
        x = np.array([x.min(), x.max()])
    elif x.size > QUANTILES:
        x = np.sort(x, axis=None)[np.linspace(0, x.size - 1, QUANTILES).astype(np.int64)]
    return choose_qparams(
        x, num_bits=num_bits, symmetric=False, method=method, percentile=percentile
    )
