"""From a float model to one that computes with integers only.

`to_integer` runs a float model on some inputs and so finds a scale and a zero point for every array
between two layers. The integer model computes with int8 codes, int32 sums and fixed-point
multipliers.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from minicompress.arrays import Array, as_int, cast_finite, finite_array
from minicompress.errors import CompressionError, naming
from minicompress.integer.layers import IntegerConv2D, IntegerDense, Scales
from minicompress.integer.model import IntegerModel
from minicompress.integer.requantization import quantize_multiplier
from minicompress.integer.stateless import (
    NO_PADDING,
    IntegerAvgPool2D,
    IntegerFlatten,
    IntegerLayer,
    IntegerMaxPool2D,
    IntegerReLU,
)
from minicompress.integers import code_range
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.layers import LAYER_TYPES, Conv2D, Dense, decoded_layer, factor_layers
from minicompress.nn.network import Network
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import finite_model, finite_outputs
from minicompress.nn.pointwise import Dropout, ReLU, Softmax
from minicompress.nn.stateless import AvgPool2D, Flatten, GlobalAvgPool2D, MaxPool2D
from minicompress.qparams import QParams, choose_qparams
from minicompress.representation import Quantized, Rep, decode, shape_of

Rescaled: TypeAlias = Conv2D | Dense | AvgPool2D | GlobalAvgPool2D
"""Layers whose output has its own scale; the others keep the scale of their input."""

NO_FORM = (
    "it has no integer form; those that have one are Conv2D, Dense, ReLU, MaxPool2D, AvgPool2D, "
    "GlobalAvgPool2D, Flatten, Dropout, and Softmax at the end"
)

REFUSED: dict[type[Layer], str] = {
    BatchNorm: "batch normalization has no integer form of its own: fold it into the weights of "
    "the layer before it first",
    Softmax: "softmax has an integer form at the end of a model only",
}

QUANTILES = 1 << 17
"""The number of values of an array between two layers from which "percentile" and "mse" choose."""


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
        Of Conv2D, Dense, ReLU, MaxPool2D, AvgPool2D, GlobalAvgPool2D, Flatten and Dropout, which is
        left out. A Softmax at the very end is left out too: the output is codes of the logits,
        which have the same order. Fold batch normalization into the layer before it first.
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

    A ReLU after a layer with weights or an average is computed by clamping. An average gives the
    codes of the equal depthwise convolution, with weights of code 1 and scale 1 / n. Maximum
    pooling keeps scale and zero point.

    Compare with simulated quantization: decoded weights and biases, real arithmetic, the same
    scales. A layer's code is at most 1/2 + 2**-22 from the real value in steps of the output,
    clamped. So for the same input codes the two differ by at most 1, and only within 2**-22 of a
    tie. The 2**-22 is the relative error of the multiplier, 2**-31, times at most 2**9 steps.

    A certificate of the decoded float network says nothing about the integer model: that one also
    rounds every array between two layers.

    Source: B. Jacob et al., *Quantization and training of neural networks for efficient
    integer-arithmetic-only inference* (2018).

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
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
        raise CompressionError(f"model must be a Sequential, not {type(model).__name__}")
    finite_model(model)
    bits = as_int(num_bits, "num_bits", 2, 8)
    between = as_int(activation_bits, "activation_bits", 2, 8)
    x = finite_array(calibration, "calibration")
    if x.ndim == 0 or x.size == 0:
        raise CompressionError(f"calibration must hold inputs, not be of shape {x.shape}")
    input_shape = x.shape[1:]
    first = source = _range(x, between, method, percentile)
    layers: list[IntegerLayer] = []
    layer: IntegerLayer
    for index, part, clamped in _parts(model):
        with naming(f"layer {index} ({type(model.layers[index]).__name__})"):
            with np.errstate(over="ignore", invalid="ignore"):  # finite_outputs finds them
                shape, x = x.shape[1:], finite_outputs(decoded_layer(part).forward(x), name="it")
            x = ReLU().forward(x) if clamped else x
            if not isinstance(part, Rescaled):
                layers.append(_weightless(part, shape, int(source.zero_point)))
                continue
            target = _range(x, between, method, percentile)
            if isinstance(part, Conv2D | Dense):
                layer, source = _affine(part, shape, bits, source, target, clamped)
            else:
                layer, source = _average(part, shape, source, target, clamped)
            layers.append(layer)
            if isinstance(part, GlobalAvgPool2D):
                layers.append(IntegerFlatten())
    return IntegerModel(tuple(layers), input_shape, first, source)


def _parts(model: Network) -> list[tuple[int, Layer, bool]]:
    """The layers to convert, each with its index in the model and whether it includes a ReLU."""
    parts: list[tuple[int, Layer, bool]] = []
    for index, layer in enumerate(model.layers):
        if type(layer) not in LAYER_TYPES:
            raise CompressionError(f"layer {index} ({type(layer).__name__}): {NO_FORM}")
        for part in factor_layers(layer):
            if isinstance(part, ReLU) and parts and isinstance(parts[-1][1], Rescaled):
                parts[-1] = (*parts[-1][:2], True)
            elif not isinstance(part, Dropout):
                parts.append((index, part, False))
    if parts and isinstance(parts[-1][1], Softmax):
        parts.pop()
    return parts


def _range(x: Array, num_bits: int, method: str, percentile: float) -> QParams:
    """Scale and zero point for an array between two layers."""
    if method == "minmax":
        x = np.array([x.min(), x.max()])
    elif x.size > QUANTILES:
        x = np.sort(x, axis=None)[np.linspace(0, x.size - 1, QUANTILES).astype(np.int64)]
    return choose_qparams(
        x, num_bits=num_bits, symmetric=False, method=method, percentile=percentile
    )


def _affine(
    part: Conv2D | Dense,
    input_shape: Shape,
    num_bits: int,
    source: QParams,
    target: QParams,
    clamped: bool,
) -> tuple[IntegerConv2D | IntegerDense, QParams]:
    """A layer with weights, in integers, and the scale and zero point of its output."""
    input_scale = float(source.scale)
    bias = np.zeros(shape_of(part.weight)[-1:]) if part.bias is None else decode(part.bias)
    bias = bias.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        least = np.abs(bias) / 2**30 / input_scale
        weight, scale, num_bits = _weight_codes(part.weight, num_bits, least)
        step = np.maximum(input_scale * scale, np.finfo(np.float64).tiny)
        bias = np.rint(bias / step)
    if not (np.isfinite(step).all() and (np.abs(bias) < 2**31).all()):
        raise CompressionError(
            f"bias must fit int32 in steps of input scale * weight scale, but is up to "
            f"{np.abs(bias).max():.3g} of them"
        )
    target = _no_finer(target, step.max(initial=0.0))
    scales = Scales(input_scale, scale, float(target.scale))
    fields = {
        **_rescaling(step, source, target, clamped),
        "weight": weight,
        "bias": bias.astype(np.int32),
        "num_bits": num_bits,
        "scales": scales,
    }
    if isinstance(part, Dense):
        return IntegerDense(**fields), target
    g = part.geometry(input_shape[:2])
    layer = IntegerConv2D(
        **fields, stride=g.stride, padding=g.pads, dilation=g.dilation, groups=part.groups
    )
    return layer, target


def _weight_codes(rep: Rep, num_bits: int, least: Array) -> tuple[Array, Array, int]:
    """Codes of a weight, the scale of every output (at least `least` where possible), and bits."""
    outputs = shape_of(rep)[-1:]
    places = tuple(range(len(shape_of(rep)) - 1))
    if isinstance(rep, Quantized) and rep.block_size is None and rep.axis in (None, len(places)):
        steps = decode(rep.codes).astype(np.int64) - rep.zero_point
        low, high = code_range(min(rep.num_bits, 8), True)
        if low <= steps.min(initial=0) and steps.max(initial=0) <= high:
            scale = np.broadcast_to(rep.scale, outputs).astype(np.float64)
            unused = ~steps.any(axis=places)  # any scale is right for zeros
            scale = np.where(unused, np.maximum(scale, least), scale)
            return steps.astype(np.int8), scale, min(rep.num_bits, 8)
    weight = decode(rep)
    q = choose_qparams(weight, num_bits=num_bits, axis=-1, narrow_range=True)
    scale = np.maximum(q.scale.astype(np.float64), least)
    steps = np.clip(np.rint(weight.astype(np.float64) / scale), q.qmin, q.qmax)
    return steps.astype(np.int8), scale, num_bits


def _no_finer(q: QParams, step: float) -> QParams:
    """The same range, in steps that are not smaller than the accumulators' steps."""
    if float(q.scale) >= step:
        return q
    scale = cast_finite(np.asarray(step), q.scale.dtype)
    below = (q.qmin - int(q.zero_point)) * (float(q.scale) / float(scale))
    return QParams(scale, np.asarray(round(q.qmin - below)), num_bits=q.num_bits)


def _average(
    part: AvgPool2D | GlobalAvgPool2D,
    input_shape: Shape,
    source: QParams,
    target: QParams,
    clamped: bool,
) -> tuple[IntegerAvgPool2D, QParams]:
    """An average in integers, and the scale and zero point of its output."""
    g = part.geometry(input_shape[:2])
    pixels = np.array([math.prod(g.kernel)])
    if isinstance(part, AvgPool2D) and g.pads != NO_PADDING and not part.count_include_pad:
        pixels = np.arange(1, pixels[0] + 1)
    step = np.maximum(float(source.scale) * (1 / pixels), np.finfo(np.float64).tiny)
    target = _no_finer(target, step[-1])
    rescaling = _rescaling(step, source, target, clamped)
    return IntegerAvgPool2D(g.kernel, g.stride, g.pads, **rescaling), target


def _rescaling(step: Array, source: QParams, target: QParams, clamped: bool) -> dict[str, Any]:
    """The fields of a layer that turn sums of so large steps into codes of its output."""
    multiplier, shift = quantize_multiplier(step / float(target.scale))
    zero_point = int(target.zero_point)
    return {
        "multiplier": multiplier,
        "shift": shift,
        "input_zero_point": int(source.zero_point),
        "output_zero_point": zero_point,
        "low": zero_point if clamped else target.qmin,
        "high": target.qmax,
    }


def _weightless(layer: Layer, input_shape: Shape, zero_point: int) -> IntegerLayer:
    """A layer that keeps the scale and zero point of its input, in integers."""
    match layer:
        case Flatten():
            return IntegerFlatten()
        case ReLU():
            return IntegerReLU(zero_point)
        case MaxPool2D():
            g = layer.geometry(input_shape[:2])
            return IntegerMaxPool2D(g.kernel, g.stride, g.pads)
    raise CompressionError(REFUSED.get(type(layer), NO_FORM))
