"""The integer form of one layer, from the scales of what it reads and the range of what it makes.

Layers with weights, averages and joins bring their sums to the scale of the output by multipliers;
functions of one number become tables; the other layers keep the scale of their input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from minicompress.arrays import Array, cast_finite
from minicompress.errors import CompressionError
from minicompress.integer.joins import IntegerAdd, IntegerConcat, IntegerMultiply
from minicompress.integer.layers import (
    IntegerConv2D,
    IntegerConvTranspose2D,
    IntegerDense,
    IntegerScale,
    Scales,
)
from minicompress.integer.requantization import quantize_multiplier
from minicompress.integer.stateless import (
    NO_PADDING,
    IntegerAvgPool2D,
    IntegerChannelShuffle,
    IntegerFlatten,
    IntegerLayer,
    IntegerMaxPool2D,
    IntegerReLU,
    IntegerTable,
    IntegerUpsample2D,
)
from minicompress.integers import code_range
from minicompress.nn.kernels.windows import resolve_padding
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import PReLU, ReLU
from minicompress.nn.stateless import (
    POINTWISE_TYPES,
    Add,
    AvgPool2D,
    ChannelShuffle,
    Concat,
    Flatten,
    GlobalAvgPool2D,
    MaxPool2D,
    Multiply,
    Upsample2D,
)
from minicompress.qparams import QParams, choose_qparams
from minicompress.representation import Quantized, Rep, decode, shape_of

Affine: TypeAlias = Conv2D | ConvTranspose2D | Dense | BatchNorm
Average: TypeAlias = AvgPool2D | GlobalAvgPool2D
Join: TypeAlias = Add | Concat | Multiply
Limits: TypeAlias = tuple[float, float]

CLAMPED = frozenset[type[Layer]]({
    Add, AvgPool2D, BatchNorm, Concat, Conv2D, ConvTranspose2D, Dense, GlobalAvgPool2D, Multiply,
})  # fmt: skip
"""Layers that clamp their codes, so a ReLU or a Clip behind them costs nothing."""

KEEPING = frozenset[type[Layer]]({ChannelShuffle, Flatten, MaxPool2D, ReLU, Upsample2D})
"""Layers that keep the scale and the zero point of their input."""

FORMS = CLAMPED | KEEPING | POINTWISE_TYPES | {PReLU}
"""Layers that have an integer form."""

TINY = np.finfo(np.float64).tiny


def affine(
    layer: Affine,
    input_shape: Shape,
    num_bits: int,
    source: QParams,
    target: QParams,
    limits: Limits,
) -> tuple[IntegerLayer, QParams]:
    """A layer with weights, in integers, and the scale and zero point of its output."""
    input_scale = float(source.scale)
    weight, bias = _weight_and_bias(layer)
    with np.errstate(over="ignore", under="ignore"):
        least = np.abs(bias) / 2**30 / input_scale
        codes, scale, num_bits = _weight_codes(weight, num_bits, least)
        step = np.maximum(input_scale * scale, TINY)
        bias = np.rint(bias / step)
    if not (np.isfinite(step).all() and (np.abs(bias) < 2**31).all()):
        raise CompressionError(
            f"bias must fit int32 in steps of input scale * weight scale, but is up to "
            f"{np.abs(bias).max():.3g} of them"
        )
    target = _no_finer(target, step.max(initial=0.0))
    multiplier, shift = quantize_multiplier(step / float(target.scale))
    fields: dict[str, Any] = {
        "weight": codes,
        "bias": bias.astype(np.int32),
        "multiplier": multiplier,
        "shift": shift,
        "input_zero_point": int(source.zero_point),
        "num_bits": num_bits,
        "scales": Scales(input_scale, scale, float(target.scale)),
        **_clamping(target, limits),
    }
    match layer:
        case Dense():
            return IntegerDense(**fields), target
        case BatchNorm():
            return IntegerScale(**{**fields, "weight": codes[0]}), target
        case ConvTranspose2D():
            _, g = layer.geometry(input_shape[:2])
            more = layer.output_padding
            if layer.padding == "same":  # the output is `stride` times as large as the input
                extents = [(k - 1) * d + 1 for k, d in zip(g.kernel, g.dilation, strict=True)]
                more = max(g.stride[0] - extents[0], 0), max(g.stride[1] - extents[1], 0)
            fields["output_padding"] = more
            kind: Any = IntegerConvTranspose2D
        case Conv2D():
            g, kind = layer.geometry(input_shape[:2]), IntegerConv2D
    options = {"stride": g.stride, "padding": g.pads, "dilation": g.dilation}
    return kind(**fields, **options, groups=layer.groups), target


def _weight_and_bias(layer: Affine) -> tuple[Rep, Array]:
    if isinstance(layer, BatchNorm):
        parts = layer.scale, layer.offset, layer.mean, layer.variance
        scale, offset, mean, variance = (part.astype(np.float64) for part in parts)
        ratio = scale / np.sqrt(variance + layer.epsilon)
        return ratio[np.newaxis], offset - mean * ratio
    if layer.bias is None:
        return layer.weight, np.zeros(shape_of(layer.weight)[-1:])
    return layer.weight, decode(layer.bias).astype(np.float64)


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


def average(
    layer: Average, input_shape: Shape, source: QParams, target: QParams, limits: Limits
) -> tuple[IntegerLayer, QParams]:
    """An average in integers, and the scale and zero point of its output."""
    g, counted = layer.geometry(input_shape[:2]), NO_PADDING
    pixels = np.array([math.prod(g.kernel)])
    if isinstance(layer, AvgPool2D):
        if layer.count_include_pad:
            counted = resolve_padding(layer.padding, input_shape[:2], g.kernel, g.stride)  # type: ignore[arg-type]
        if counted != g.pads:
            pixels = np.arange(1, pixels[0] + 1)
    step = np.maximum(float(source.scale) * (1 / pixels), TINY)
    target = _no_finer(target, step[-1])
    multiplier, shift = quantize_multiplier(step / float(target.scale))
    made = IntegerAvgPool2D(
        g.kernel,
        g.stride,
        g.pads,
        multiplier=multiplier,
        shift=shift,
        input_zero_point=int(source.zero_point),
        counted=counted if pixels.size > 1 else NO_PADDING,
        **_clamping(target, limits),
    )
    return made, target


def join(
    layer: Join, sources: Sequence[QParams], target: QParams, limits: Limits
) -> tuple[IntegerLayer, QParams]:
    """A sum, a product or values side by side, in integers, and the scale of the output."""
    steps = np.array([float(source.scale) for source in sources])
    if isinstance(layer, Multiply):
        with np.errstate(over="ignore", under="ignore"):
            steps = steps[:1] * steps[1:]
        if not np.isfinite(steps).all():
            raise CompressionError("the product of the scales of what it reads is infinite")
    target = _no_finer(target, steps.max())
    factors = np.maximum(np.maximum(steps, TINY) / float(target.scale), TINY)
    multiplier, shift = quantize_multiplier(factors)
    zero_points = tuple(int(source.zero_point) for source in sources)
    clamping = _clamping(target, limits)
    if isinstance(layer, Add):  # one shift for all: that of the largest factor
        least = int(shift.min())
        multiplier = np.rint(np.ldexp(factors, least)).astype(np.int32)
        return IntegerAdd(zero_points, multiplier=multiplier, shift=least, **clamping), target
    kind: Any = IntegerConcat if isinstance(layer, Concat) else IntegerMultiply
    return kind(zero_points, multiplier=multiplier, shift=shift, **clamping), target


def table(layer: Layer, source: QParams, target: QParams) -> IntegerTable:
    """A function of one number as the codes of its values, each computed in float64."""
    with np.errstate(over="ignore"):
        x = (np.arange(-128, 128) - int(source.zero_point)) * float(source.scale)
    if not np.isfinite(x).all():
        raise CompressionError("what the codes of its input stand for must be finite in float64")
    if isinstance(layer, PReLU):
        slope = layer.slope.astype(np.float64)[:, np.newaxis]
        y = np.where(x > 0, x, slope * x)
        if (slope == slope[:1]).all():
            y = y[0] if len(y) else x
    else:
        with np.errstate(over="ignore"):
            y = layer.forward(x)
    return IntegerTable(_codes(y, target).astype(np.int8), float(target.scale))


def keeping(layer: Layer, input_shape: Shape, source: QParams) -> IntegerLayer:
    """A layer that keeps the scale and zero point of its input, in integers."""
    match layer:
        case Flatten():
            return IntegerFlatten()
        case ReLU():
            return IntegerReLU(int(source.zero_point))
        case Upsample2D(factor=(int(), int()) as factor):
            return IntegerUpsample2D(factor)
        case ChannelShuffle():
            return IntegerChannelShuffle(layer.groups)
    assert isinstance(layer, MaxPool2D)
    g = layer.geometry(input_shape[:2])
    return IntegerMaxPool2D(g.kernel, g.stride, g.pads)


def _no_finer(q: QParams, step: float) -> QParams:
    """The same range, in steps that are not smaller than the accumulators' steps."""
    if float(q.scale) >= step:
        return q
    scale = cast_finite(np.asarray(step), q.scale.dtype)
    below = (q.qmin - int(q.zero_point)) * (float(q.scale) / float(scale))
    return QParams(scale, np.asarray(round(q.qmin - below)), num_bits=q.num_bits)


def _codes(x: Array, q: QParams) -> Array:
    """The nearest codes of real numbers, which may be infinite."""
    with np.errstate(over="ignore"):
        steps = np.rint(x / float(q.scale))
    codes: Array = np.clip(steps + int(q.zero_point), q.qmin, q.qmax)
    return codes


def _clamping(target: QParams, limits: Limits) -> dict[str, int]:
    """The zero point of an output, and the codes to which it is clamped."""
    low, high = map(int, _codes(np.array(limits), target))
    return {"output_zero_point": int(target.zero_point), "low": low, "high": high}
