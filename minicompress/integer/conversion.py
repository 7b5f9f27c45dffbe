"""From a float model to one that computes with integers only.

`to_integer` looks at a float model and at some inputs and fixes, for every array between two
layers, a scale and a zero point; what comes out of it computes with int8 codes, int32 sums and
fixed-point multipliers.
"""

from __future__ import annotations

import math
from typing import TypeAlias

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
from minicompress.nn.layers import (
    LAYER_TYPES,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Layer,
    MaxPool2D,
    ReLU,
    Shape,
    Softmax,
    decoded_layer,
    factor_layers,
)
from minicompress.nn.network import Sequential, finite_model, finite_outputs
from minicompress.qparams import QParams, choose_qparams
from minicompress.representation import Quantized, Rep, decode, shape_of

Rescaled: TypeAlias = Conv2D | Dense | AvgPool2D | GlobalAvgPool2D
"""Layers whose output has a scale of its own; the others keep their input's."""

NO_FORM = (
    "it has no integer form; those that have one are Conv2D, Dense, ReLU, MaxPool2D, AvgPool2D, "
    "GlobalAvgPool2D, Flatten, Dropout, and Softmax at the end"
)

QUANTILES = 1 << 17
"""Of the values between two layers, this many are looked at where the whole range is not taken."""


def to_integer(
    model: Sequential,
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
    model : Sequential
        Of Conv2D, Dense, ReLU, MaxPool2D, AvgPool2D, GlobalAvgPool2D, Flatten and Dropout, which
        goes. A Softmax at the very end goes too: the codes are those of the logits, which have the
        same order. Batch normalization must have been folded into the layer before it.
    calibration : (N, ...) ndarray, N at least 1
        Inputs such as will come; a few hundred will do. All of them run through the float model at
        once, and the ranges met between the layers become the ranges of the codes.
    num_bits : int from 2 to 8
        Of weights.
    activation_bits : int from 2 to 8
        Of all that is between the layers, input and logits included.
    method : "minmax" | "percentile" | "mse"
        How a range is made of the values met: see `choose_qparams`. The last two look at no more
        than 131,072 evenly spaced quantiles of them, the extremes among these.
    percentile : float in (0, 100]
        How much "percentile" keeps, in per cent.

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
    Activations are affine, one scale and zero point for each array, and 0.0 always has a code.
    Weights are symmetric, from -127 to 127 at 8 bits, with a scale for each output, by "minmax".
    A weight that is already `Quantized` like that (zero point in the middle, at most 8 bits, one
    scale or one for each output) keeps its codes and scales, so any other choice can be made with
    `quantize` before. A `LowRank` one becomes the chain of its factors, each a layer of its own;
    other representations are decoded first.

    Biases are int32 in steps of input scale * weight scale. Where a weight is so small beside its
    bias that this overflows, its scale is raised until the bias is 2**30 steps; a pruned output
    is the common case, and of a `Quantized` weight only the scale of outputs with no other codes
    than 0 can be raised so. An output's scale is never finer than the largest step of its
    accumulators: it is raised where needed.

    A ReLU behind a layer with weights or an average is done by clamping. An average gives the
    codes of the depthwise convolution that it is, with weights of code 1 and scale 1 / n. Maximum
    pooling keeps scale and zero point.

    Against simulated quantization (decoded weights and biases, real arithmetic, the same scales):
    a layer's code is never farther than 1/2 + 2**-22 from the real value in steps of the output,
    clamped; so for the same input codes the two differ by at most 1, and only within 2**-22 of a
    tie. The 2**-22 is the multiplier's rounding, one part in 2**31, over at most 2**9 steps.

    Source: B. Jacob et al., *Quantization and training of neural networks for efficient
    integer-arithmetic-only inference* (2018).

    Examples
    --------
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
    if not isinstance(model, Sequential):
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
            with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused
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


def _parts(model: Sequential) -> list[tuple[int, Layer, bool]]:
    """The layers that are left, each with its place in the model and whether a ReLU is in it."""
    for index, layer in enumerate(model.layers):
        if type(layer) not in LAYER_TYPES:
            raise CompressionError(f"layer {index} ({type(layer).__name__}): {NO_FORM}")
    chain = [
        (index, part)
        for index, layer in enumerate(model.layers)
        if not isinstance(layer, Dropout)
        for part in factor_layers(layer)
    ]
    if chain and isinstance(chain[-1][1], Softmax):
        chain.pop()
    parts: list[tuple[int, Layer, bool]] = []
    for index, part in chain:
        if isinstance(part, ReLU) and parts and isinstance(parts[-1][1], Rescaled):
            parts[-1] = (*parts[-1][:2], True)
        else:
            parts.append((index, part, False))
    return parts


def _range(x: Array, num_bits: int, method: str, percentile: float) -> QParams:
    """The codes for an array between two layers."""
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
    """A layer with weights in integers, and what the codes of its output stand for."""
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
    multiplier, shift = quantize_multiplier(step / float(target.scale))
    zero_point = int(target.zero_point)
    fields = (
        weight,
        bias.astype(np.int32),
        multiplier,
        shift,
        int(source.zero_point),
        zero_point,
        zero_point if clamped else target.qmin,
        target.qmax,
        num_bits,
        Scales(input_scale, scale, float(target.scale)),
    )
    if isinstance(part, Dense):
        return IntegerDense(*fields), target
    g = part.geometry(input_shape[:2])
    layer = IntegerConv2D(
        *fields, stride=g.stride, padding=g.pads, dilation=g.dilation, groups=part.groups
    )
    return layer, target


def _weight_codes(rep: Rep, num_bits: int, least: Array) -> tuple[Array, Array, int]:
    """Codes of a weight, the scale of every output (at least `least` if it can be), and bits."""
    outputs = shape_of(rep)[-1:]
    places = tuple(range(len(shape_of(rep)) - 1))
    if isinstance(rep, Quantized) and rep.block_size is None and rep.axis in (None, len(places)):
        steps = decode(rep.codes).astype(np.int64) - rep.zero_point
        low, high = code_range(min(rep.num_bits, 8), True)
        if low <= steps.min(initial=0) and steps.max(initial=0) <= high:
            scale = np.broadcast_to(rep.scale, outputs).astype(np.float64)
            unused = ~steps.any(axis=places)  # the scale of nothing but zeros is free
            scale = np.where(unused, np.maximum(scale, least), scale)
            return steps.astype(np.int8), scale, min(rep.num_bits, 8)
    weight = decode(rep)
    q = choose_qparams(weight, num_bits=num_bits, axis=-1, narrow_range=True)
    scale = np.maximum(q.scale.astype(np.float64), least)
    steps = np.clip(np.rint(weight.astype(np.float64) / scale), q.qmin, q.qmax)
    return steps.astype(np.int8), scale, num_bits


def _no_finer(q: QParams, step: float) -> QParams:
    """The same range in steps that are not finer than the accumulators'."""
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
    """An average in integers, and what the codes of its output stand for."""
    g = part.geometry(input_shape[:2])
    pixels = np.array([math.prod(g.kernel)])
    if isinstance(part, AvgPool2D) and g.pads != NO_PADDING and not part.count_include_pad:
        pixels = np.arange(1, pixels[0] + 1)
    step = np.maximum(float(source.scale) * (1 / pixels), np.finfo(np.float64).tiny)
    target = _no_finer(target, step[-1])
    multiplier, shift = quantize_multiplier(step / float(target.scale))
    zero_point = int(target.zero_point)
    layer = IntegerAvgPool2D(
        g.kernel,
        g.stride,
        g.pads,
        multiplier=multiplier,
        shift=shift,
        input_zero_point=int(source.zero_point),
        output_zero_point=zero_point,
        low=zero_point if clamped else target.qmin,
        high=target.qmax,
    )
    return layer, target


def _weightless(layer: Layer, input_shape: Shape, zero_point: int) -> IntegerLayer:
    """A layer that keeps the scale and the zero point of its input, in integers."""
    match layer:
        case Flatten():
            return IntegerFlatten()
        case ReLU():
            return IntegerReLU(zero_point)
        case MaxPool2D():
            g = layer.geometry(input_shape[:2])
            return IntegerMaxPool2D(g.kernel, g.stride, g.pads)
        case BatchNorm():
            raise CompressionError(
                "batch normalization has no integer form of its own: fold it into the weights of "
                "the layer before it first"
            )
        case Softmax():
            raise CompressionError("softmax has an integer form at the end of a model only")
    raise CompressionError(NO_FORM)
