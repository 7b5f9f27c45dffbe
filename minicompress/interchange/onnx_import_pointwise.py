"""Activations and arithmetic from nodes of ONNX, in the several spellings that exporters have."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from minicompress.arrays import Array, not_finite
from minicompress.errors import CompressionError
from minicompress.interchange.onnx_import_draft import Draft, Scale, View
from minicompress.interchange.onnx_import_layers import equal_views, layer_view
from minicompress.interchange.onnx_import_nodes import Node
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.normalization import NO_EPSILON, BatchNorm
from minicompress.nn.pointwise import (
    Clip,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    PReLU,
    Sigmoid,
    SiLU,
    Softmax,
)
from minicompress.nn.stateless import Add, Multiply

# Activations --------------------------------------------------------------------------------------


def clip(node: Node) -> View:
    limits = []
    for place, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        given = node.options.get(name, node.optional(place))
        limits.append(default if given is None else float(np.reshape(given, ())))
    low, high = (v if abs(v) < 3.4e38 else math.copysign(math.inf, v) for v in limits)
    view, draft = node.view(), node.draft
    layer: Layer = Clip(low, high)
    before = draft.maker(view.value)
    if (low, high) == (0, 1) and isinstance(before, Scale):  # a hard sigmoid in pieces
        (read,) = draft.reads(view.value)
        layer = HardSigmoid(before.factor, before.offset)
        return View(draft.add(layer, read), view.order)
    return layer_view(node, layer)


def leaky_relu(node: Node) -> View:
    alpha = float(node.options.get("alpha", 0.01))
    if 0 <= alpha <= 1:
        return layer_view(node, LeakyReLU(alpha))
    return _prelu(node, np.full((1,) * node.view().order.ndim, alpha, np.float32))


def prelu(node: Node) -> View:
    return _prelu(node, node.array(1))


def _prelu(node: Node, slope: Array) -> View:
    view, vector = node.draft.per_channel(node.view(), slope)
    return View(node.draft.add(PReLU(vector), view.value), view.order)


def hard_sigmoid(node: Node) -> View:
    return layer_view(
        node, HardSigmoid(node.options.get("alpha", 0.2), node.options.get("beta", 0.5))
    )


def swish(node: Node) -> View:
    node.refuse("alpha", 1.0, 1.0)
    return layer_view(node, SiLU())


def softmax(node: Node) -> View:
    view, draft = node.view(), node.draft
    shape, rank = view.order.shape, view.order.ndim + 1
    axis = int(node.options.get("axis", 1 if node.opset < 13 else -1)) % rank
    value, first = draft.canonical(view)
    alone = node.opset >= 13 or math.prod(shape[axis:]) == 1  # earlier, it is over all axes behind
    if not alone or axis != (1 if first else rank - 1):
        raise CompressionError(f"axis must be the channels, and no others, not {axis}")
    return draft.view(draft.add(Softmax(), value), first)


# Sums and products --------------------------------------------------------------------------------


def add(node: Node) -> View:
    return _joined(node, Add()) or _shifted(node)


def multiply(node: Node) -> View:
    return _joined(node, Multiply()) or _scaled(node, lambda c: c)


def subtract(node: Node) -> View:
    """A constant subtracted, or subtracted from."""
    if all(isinstance(x, View) for x in node.inputs):
        raise CompressionError("a tensor is subtracted from another, and no layer does that")
    if isinstance(node.given(0), View):
        return _shifted(node, sign=-1)
    minus = dataclasses.replace(node, inputs=(node.inputs[1], np.array(-1.0, np.float32)))
    turned = _scaled(minus, lambda c: c)
    return _shifted(dataclasses.replace(node, inputs=(turned, node.inputs[0])))


def divide(node: Node) -> View:
    if not isinstance(node.given(0), View):
        raise CompressionError("a constant is divided by a tensor, and no layer does that")
    if isinstance(node.given(1), View):
        raise CompressionError("a tensor is divided by another, and no layer does that")
    if not node.array(1).all():
        raise CompressionError("input 1 must not have zeros, by which it is divided")
    return _scaled(node, lambda c: 1 / c)


def _joined(node: Node, layer: Layer) -> View | None:
    """A layer that joins tensors; None if one of the inputs is a constant."""
    if not all(isinstance(x, View) for x in node.inputs):
        return None
    views, draft = [node.view(k) for k in range(len(node.inputs))], node.draft
    shapes = [draft.shapes[view.value] for view in views]
    if equal_views(views, shapes):
        values, order = [view.value for view in views], views[0].order
    else:
        found = [draft.canonical(view) for view in views]
        rank = {view.order.ndim for view in views}
        if len({first for _, first in found}) > 1 or len(rank) > 1:
            raise CompressionError("the inputs must have their channels on the same axis")
        values, order = [value for value, _ in found], None
    if isinstance(layer, Multiply):
        special = _gated(draft, *values)
        made = draft.add(layer, *values) if special is None else special
    else:
        made = draft.add(layer, *values)
    return draft.view(made, found[0][1]) if order is None else View(made, order)


def _gated(draft: Draft, a: int, b: int) -> int | None:
    """x times a function of x, which is a layer of its own."""
    for x, gate in ((a, b), (b, a)):
        if gate == 0 or draft.reads(gate) != (x,):
            continue
        match draft.maker(gate):
            case Sigmoid():
                return draft.add(SiLU(), x)
            case HardSigmoid(alpha, beta) if abs(6 * alpha - 1) < 1e-6 and beta == 0.5:
                return draft.add(HardSwish(), x)
    return None


def _constant(node: Node) -> tuple[View, Array]:
    """The tensor and the constant, of either order."""
    place = 0 if isinstance(node.given(0), View) else 1
    array = node.array(1 - place)
    if fault := not_finite(array):
        raise CompressionError(f"input {1 - place} must be finite, but {fault}")
    return node.view(place), array


def _scaled(node: Node, change: Any) -> View:
    view, array = _constant(node)
    draft = node.draft
    if array.size == 1:
        return _rescaled(node, view, float(change(float(array.reshape(())))), 0.0)
    view, vector = draft.per_channel(view, array)
    zero, one = np.zeros_like(vector), np.ones_like(vector)
    layer = BatchNorm(change(vector).astype(vector.dtype), zero, zero, one, NO_EPSILON)
    return View(draft.add(layer, view.value), view.order)


def _shifted(node: Node, sign: int = 1) -> View:
    view, array = _constant(node)
    draft = node.draft
    if array.size == 1 and not _takes_bias(draft, view.value, node.single):
        return _rescaled(node, view, 1.0, sign * float(array.reshape(())))
    view, vector = draft.per_channel(view, sign * array)
    before = draft.maker(view.value)
    if before is not None and _takes_bias(draft, view.value, node.single):
        field = "offset" if isinstance(before, BatchNorm) else "bias"
        layer = dataclasses.replace(before, **{field: vector})
        return View(draft.add(layer, *draft.reads(view.value)), view.order)
    zero, one = np.zeros_like(vector), np.ones_like(vector)
    layer = BatchNorm(one, vector, zero, one, NO_EPSILON)
    return View(draft.add(layer, view.value), view.order)


def _takes_bias(draft: Draft, value: int, single: tuple[bool, ...]) -> bool:
    """Whether a sum can be the bias of the layer before, which nothing else reads."""
    match draft.maker(value):
        case Conv2D(bias=None) | ConvTranspose2D(bias=None) | Dense(bias=None):
            return all(single)
        case BatchNorm(epsilon=epsilon, offset=offset) if epsilon == NO_EPSILON:
            return all(single) and not offset.any()
    return False


def _rescaled(node: Node, view: View, factor: float, offset: float) -> View:
    """Two numbers for all entries: what was before may be a known function in pieces."""
    draft, value = node.draft, view.value
    before = draft.maker(value)
    if isinstance(before, Scale) and all(node.single):
        factor, offset = factor * before.factor, factor * before.offset + offset
        (value,) = draft.reads(value)
        before = draft.maker(value)
    made = None if offset else _hard(draft, value, before, factor)
    if made is None:
        made = draft.add(Scale(factor, offset), value)
    return View(made, view.order)


def _hard(draft: Draft, value: int, before: Layer | None, factor: float) -> int | None:
    """``factor * clip(a * x + b, 0, 1 / factor)``, alone or times x: hard sigmoid, hard swish."""
    match before:
        case Clip(low, high) if low == 0 and abs(factor * high - 1) < 1e-6:
            (inner,) = draft.reads(value)
            match draft.maker(inner):
                case Scale(a, b):
                    return draft.add(HardSigmoid(factor * a, factor * b), *draft.reads(inner))
        case Multiply() if abs(6 * factor - 1) < 1e-6:
            a, b = draft.reads(value)
            for x, gate in ((a, b), (b, a)):
                if _is_clipped(draft, gate, x):
                    return draft.add(HardSwish(), x)
    return None


def _is_clipped(draft: Draft, gate: int, x: int) -> bool:
    """Whether a value is ``clip(x + 3, 0, 6)``."""
    if gate == 0 or draft.maker(gate) is None:
        return False
    match draft.maker(gate):
        case Clip(low, high) if (low, high) == (0, 6):
            (inner,) = draft.reads(gate)
            match draft.maker(inner):
                case Scale(factor, offset) if (factor, offset) == (1, 3):
                    return draft.reads(inner) == (x,)
    return False


def as_affine(draft: Draft, dtype: Any) -> None:
    """Write what is left of `Scale` as a normalization."""
    for i, layer in enumerate(draft.layers):
        if isinstance(layer, Scale):
            one = np.ones(draft.shapes[i + 1][-1], dtype)
            scale, offset = one * one.dtype.type(layer.factor), one * one.dtype.type(layer.offset)
            draft.layers[i] = BatchNorm(scale, offset, 0 * one, one, NO_EPSILON)
