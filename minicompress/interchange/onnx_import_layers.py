"""The layers of a network from nodes of ONNX: convolutions, pooling, and what moves entries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.interchange.onnx_import_constants import BATCH
from minicompress.interchange.onnx_import_draft import View, in_order, same
from minicompress.interchange.onnx_import_nodes import NO_PADS, Node, kernel_shape
from minicompress.nn.factors import rearranged
from minicompress.nn.kernels.windows import Pads, geometry
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.stateless import (
    AvgPool2D,
    Concat,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
    Upsample2D,
)
from minicompress.representation import Clustered, Quantized, Rep, decode, shape_of

# Layers with weights ------------------------------------------------------------------------------


def conv(node: Node) -> View:
    view, weight = node.view(padded=True), node.rep(1)
    value = node.draft.image(View(view.value, view.order))
    kernel = kernel_shape(weight)[2:]
    dilation = node.pair("dilations")
    size = node.draft.shapes[value]
    padding = node.padding(size, (kernel[0], kernel[1]), dilation)
    if view.pads is not None:
        if isinstance(padding, str) and padding != "valid":
            raise CompressionError("an image that is padded already must not be padded by a word")
        own = NO_PADS if isinstance(padding, str) else padding
        padding = tuple((a + c, b + d) for (a, b), (c, d) in zip(view.pads, own, strict=True))
    layer = Conv2D(
        rearranged(weight, (2, 3, 1, 0)),
        _bias(node, 2),
        stride=node.pair("strides"),
        padding=padding,
        dilation=dilation,
        groups=int(node.options.get("group", 1)),
    )
    return node.draft.view(node.draft.add(layer, value))


def conv_transpose(node: Node) -> View:
    value, weight = node.image(), node.rep(1)
    inputs, each, kh, kw = kernel_shape(weight)
    groups = int(node.options.get("group", 1))
    if groups == 1:
        kernel: Rep = rearranged(weight, (2, 3, 0, 1))
    else:
        split = decode(weight).reshape(groups, inputs // groups, each, kh, kw)
        kernel = split.transpose(3, 4, 1, 0, 2).reshape(kh, kw, inputs // groups, groups * each)
    stride, dilation = node.pair("strides"), node.pair("dilations")
    more, size = node.pair("output_padding", 0), node.draft.shapes[value][:2]
    word, sides = node.word("auto_pad", "NOTSET"), node.sides()
    shape = node.options.get("output_shape")
    if shape is None and word.startswith("SAME"):
        shape = [n * s for n, s in zip(size, stride, strict=True)]
    if shape is not None:
        full = [
            (n - 1) * s + (k - 1) * d + 1 + m
            for n, s, k, d, m in zip(size, stride, (kh, kw), dilation, more, strict=True)
        ]
        totals = [a - int(b) for a, b in zip(full, list(shape)[-2:], strict=True)]
        if word.startswith("SAME") and min(totals) < 0:
            raise CompressionError(f"auto_pad must not enlarge the output, and {totals} does")
        more = tuple(m + max(-t, 0) for m, t in zip(more, totals, strict=True))  # type: ignore[assignment]
        cut = [max(t, 0) for t in totals]
        ends = [(t // 2, t - t // 2) if word == "SAME_UPPER" else (t - t // 2, t // 2) for t in cut]
        sides = ends[0], ends[1]
    layer = ConvTranspose2D(
        kernel,
        _bias(node, 2),
        stride=stride,
        padding=sides,
        output_padding=more,
        dilation=dilation,
        groups=groups,
    )
    return node.draft.view(node.draft.add(layer, value))


def gemm(node: Node) -> View:
    node.refuse("transA", 0, 0)
    weight = node.rep(1)
    if node.options.get("transB", 0):
        weight = rearranged(weight, (1, 0))
    alpha, beta = node.options.get("alpha", 1.0), node.options.get("beta", 1.0)
    if alpha != 1:
        array = decode(weight)
        weight = array * array.dtype.type(alpha)
    bias: Rep | None = None
    if node.given(2) is not None:
        bias, outputs = node.rep(2), shape_of(weight)[1]
        if shape_of(bias) not in ((), (1,), (outputs,), (1, 1), (1, outputs)):
            raise CompressionError(f"input 2 must be one row, not of shape {shape_of(bias)}")
        if beta != 1 or shape_of(bias) != (outputs,):
            array = np.broadcast_to(decode(bias), (1, outputs))[0]
            bias = array * array.dtype.type(beta)
    return _dense(node, weight, bias)


def matmul(node: Node) -> View:
    weight = node.rep(1)
    if len(shape_of(weight)) != 2:
        raise CompressionError(f"input 1 must be a matrix, not of shape {shape_of(weight)}")
    return _dense(node, weight, None)


def _dense(node: Node, weight: Rep, bias: Rep | None) -> View:
    """A dense layer: its rows are put in the order in which this library flattens."""
    view, draft = node.view(), node.draft
    if view.order.ndim != 1:
        raise CompressionError(f"it must read rows (N, features), not {view.order.ndim + 1} axes")
    if len(view.order) != shape_of(weight)[0]:
        raise CompressionError(
            f"input 1 must have {len(view.order)} rows, not shape {shape_of(weight)}"
        )
    if not in_order(view.order):
        weight = _reordered(weight, np.argsort(view.order))
    return draft.view(draft.add(Dense(weight, bias), draft.rows(view.value)))


def _reordered(weight: Rep, order: Array) -> Rep:
    """The rows of a matrix in another order; codes stay codes where the scales allow it."""
    match weight:
        case Clustered(codes, codebook):
            return Clustered(codes[order], codebook)
        case Quantized(block_size=None) if weight.axis != 0:
            return dataclasses.replace(weight, codes=decode(weight.codes)[order])
    return decode(weight)[order]


def _bias(node: Node, place: int) -> Rep | None:
    return None if node.given(place) is None else node.rep(place)


def batch_norm(node: Node) -> View:
    node.refuse("training_mode", 0, 0)
    node.refuse("spatial", 1, 1)
    if node.opset < 14 and node.outputs > 1:
        raise CompressionError("it must have one output, or it takes statistics of the batch")
    view, draft = node.view(), node.draft
    ones = (1,) * (view.order.ndim - 1)
    parts = [node.array(place).reshape(-1, *ones) for place in range(1, 5)]
    found = [draft.per_channel(view, part) for part in parts]
    rows = max((v.value for v, _ in found), default=view.value)  # of one that differs by pixel
    if rows != view.value:
        view = View(rows, view.order)
        found = [draft.per_channel(view, part) for part in parts]
    epsilon = float(node.options.get("epsilon", 1e-5))
    scale, offset, mean, variance = (vector for _, vector in found)
    layer = BatchNorm(scale, offset, mean, variance, epsilon)
    return View(draft.add(layer, view.value), view.order)


# Pooling and images -------------------------------------------------------------------------------


def pool(kind: type[MaxPool2D] | type[AvgPool2D]) -> Callable[[Node], View]:
    def read(node: Node) -> View:
        node.refuse("dilations", [1, 1], [1, 1])
        view = node.view(padded=kind is AvgPool2D)
        value = node.draft.image(View(view.value, view.order))
        window = node.pair("kernel_shape", None)
        padding = node.padding(node.draft.shapes[value], window)
        ceil_mode = bool(node.options.get("ceil_mode", 0))
        more: dict[str, Any] = {"ceil_mode": ceil_mode}
        if kind is AvgPool2D:
            counted = bool(node.options.get("count_include_pad", 0))
            if view.pads is not None:  # zeros that count
                size = node.draft.shapes[value][:2]
                padding, more["ceil_mode"] = _counted(node, size, window, view.pads, padding)
                counted = True
            more["count_include_pad"] = counted
        layer = kind(window, node.pair("strides"), padding, **more)
        return node.draft.view(node.draft.add(layer, value))

    return read


def _counted(
    node: Node, size: tuple[int, ...], window: tuple[int, int], pads: Pads, own: Any
) -> tuple[Pads, bool]:
    """Padding that a mean counts, and then some at the end that only `ceil_mode` reads."""
    own = NO_PADS if own == "valid" else own
    every = tuple((a + c, b + d) for (a, b), (c, d) in zip(pads, own, strict=True))
    for ceil_mode in (False, True):
        strides = node.pair("strides")
        if geometry(size, window, strides, pads, ceil_mode=ceil_mode).pads == every:
            return pads, ceil_mode
    raise CompressionError(f"a mean over the padded image must not be padded again, by {own}")


def global_average(node: Node) -> View:
    value = node.image()
    return node.draft.view(node.draft.add(GlobalAvgPool2D(keep_axes=True), value))


def global_max(node: Node) -> View:
    value = node.image()
    h, w, _ = node.draft.shapes[value]
    return node.draft.view(node.draft.add(MaxPool2D((h, w)), value))


def reduce_mean(node: Node) -> View:
    """A mean over height and width."""
    axes, draft = node.axes(1), node.draft
    value, first = draft.canonical(node.view())
    pixels = [2, 3] if first else [1, 2]
    if len(draft.shapes[value]) != 3 or axes is None or sorted(axes) != pixels:
        raise CompressionError(f"axes must be the height and the width, {pixels}, not {axes}")
    made = draft.view(draft.add(GlobalAvgPool2D(keep_axes=True), value), first)
    return made if node.options.get("keepdims", 1) else View(made.value, made.order.ravel())


def lrn(node: Node) -> View:
    options = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0, **node.options}
    layer = LocalResponseNorm(**options)
    return node.draft.view(node.draft.add(layer, node.image()))


def pad(node: Node) -> View:
    """Zeros around an image, for the convolution that reads it."""
    mode, view, draft = node.word("mode", "constant"), node.view(), node.draft
    pads = node.options["pads"] if "pads" in node.options else node.array(1)
    filled = node.options.get("value", node.optional(2))
    rank = view.order.ndim + 1
    axes = range(rank) if node.given(3) is None else [int(a) % rank for a in node.array(3)]
    before, after = np.reshape(pads, (2, len(axes))).tolist()
    sides = {axis: (b, a) for axis, b, a in zip(axes, before, after, strict=True)}
    if not any(map(any, sides.values())):
        return view
    value, first = draft.canonical(view)
    pixels = (2, 3) if first else (1, 2)
    others = [axis for axis, ends in sides.items() if any(ends) and axis not in pixels]
    if mode != "constant" or (filled is not None and np.any(filled)):
        raise CompressionError(f"padding must be zeros, not mode {mode!r} with value {filled}")
    if others or rank != 4 or min(map(min, sides.values())) < 0:
        raise CompressionError(f"pads must enlarge the height and the width only, not be {sides}")
    top_bottom, left_right = (sides.get(axis, (0, 0)) for axis in pixels)
    return View(value, draft.view(value, first).order, (top_bottom, left_right))


def resize(node: Node) -> View:
    """Nearest neighbours, whose number is whole."""
    value, shape = node.image(), (BATCH, *node.view().order.shape)
    if node.word("mode", "nearest") != "nearest":
        raise CompressionError(f"mode must be 'nearest', not {node.word('mode', '')!r}")
    place = 1 if node.op == "Upsample" or node.opset < 11 else 2
    scales = node.options.get("scales", node.optional(place))
    axes = [int(axis) % 4 for axis in node.options.get("axes", range(4))]
    if scales is None or np.size(scales) == 0:
        if node.word("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise CompressionError("the new size must not depend on the aspect ratio")
        scales = [
            1 if k == 0 else int(n) / shape[k] for k, n in zip(axes, node.array(3), strict=True)
        ]
    given = dict(zip(axes, map(float, scales), strict=True))
    factors = [given.get(axis, 1.0) for axis in range(4)]
    if factors[:2] != [1, 1] or any(f < 1 or f != int(f) for f in factors[2:]):
        raise CompressionError(f"scales must be whole and keep batch and channels, not {factors}")
    if node.op == "Resize" and node.opset > 10:
        way = node.word("coordinate_transformation_mode", "half_pixel")
        near = node.word("nearest_mode", "round_prefer_floor")
        rounds = {"half_pixel": "round", "pytorch_half_pixel": "round"}
        if way not in ("asymmetric", "tf_half_pixel_for_nn", *rounds) or not near.startswith(
            rounds.get(way, "floor")
        ):
            raise CompressionError(f"nearest pixels by {way!r} and {near!r} are not copies")
    layer = Upsample2D((int(factors[2]), int(factors[3])))
    return node.draft.view(node.draft.add(layer, value))


# Order of entries ---------------------------------------------------------------------------------


def concat(node: Node) -> View:
    views, draft = [node.view(k) for k in range(len(node.inputs))], node.draft
    axis = int(node.options["axis"]) % (views[0].order.ndim + 1)
    if views[0].order.ndim == 1:  # rows, each in an order of its own
        starts = np.cumsum([0, *(v.order.size for v in views[:-1])])
        order = np.concatenate([v.order + n for v, n in zip(views, starts, strict=True)])
        return View(draft.add(Concat(), *(draft.rows(v.value) for v in views)), order)
    found = [draft.canonical(view) for view in views]
    first = found[0][1]
    if {f for _, f in found} != {first} or axis != (1 if first else views[0].order.ndim):
        raise CompressionError(f"axis must be the channels of all inputs, not {axis}")
    return draft.view(draft.add(Concat(), *(value for value, _ in found)), first)


def passed(node: Node) -> View:
    """What leaves every entry as it is."""
    return node.view(padded=True)


def dropout(node: Node) -> View:
    training = node.optional(2)
    if training is not None and training.any():
        raise CompressionError("training_mode must be false")
    return passed(node)


def transpose(node: Node) -> View:
    view = node.view()
    perm = [int(p) for p in node.options.get("perm", range(view.order.ndim, -1, -1))]
    if perm[0] != 0:
        raise CompressionError(f"perm must keep the batch axis first, not be {perm}")
    return View(view.value, view.order.transpose([p - 1 for p in perm[1:]]))


def reshape(batch: int | None) -> Callable[[Node], View]:
    """The file's batch size, or None, stands for any number of images."""

    def read(node: Node) -> View:
        view = node.view()
        order, target = view.order, [int(n) for n in np.ravel(node.array(1))]
        shape = (BATCH, *order.shape)
        if not node.options.get("allowzero", 0):
            target = [shape[k] if n == 0 and k < len(shape) else n for k, n in enumerate(target)]
        head, rest = target[0] if target else 0, target[1:]
        known = int(np.prod([n for n in rest if n != -1]))
        fits = order.size == known or (-1 in rest and known and order.size % known == 0)
        if head not in (-1, BATCH, batch) or not fits:
            raise CompressionError(
                f"the shape {target} must keep one row for each image: (N, ...) of {order.size} "
                "entries"
            )
        return node.draft.shuffled(View(view.value, order.reshape(rest)))

    return read


def flatten(node: Node) -> View:
    view = node.view()
    axis = int(node.options.get("axis", 1)) % (view.order.ndim + 1)
    if axis != 1:
        raise CompressionError(f"axis must be 1, not {axis}")
    return View(view.value, view.order.ravel())


def squeeze(node: Node) -> View:
    view, axes = node.view(), node.axes(1)
    if axes is None:
        axes = [k + 1 for k, n in enumerate(view.order.shape) if n == 1]
    if 0 in axes:
        raise CompressionError("axes must not be the batch axis, 0")
    return View(view.value, view.order.squeeze(tuple(axis - 1 for axis in axes)))


def unsqueeze(node: Node) -> View:
    view = node.view()
    given = node.options["axes"] if "axes" in node.options else node.array(1)
    rank = view.order.ndim + 1 + np.size(given)
    axes = sorted(int(axis) % rank for axis in np.ravel(given))
    if 0 in axes:
        raise CompressionError("axes must not be before the batch axis, 0")
    return View(view.value, np.expand_dims(view.order, tuple(axis - 1 for axis in axes)))


def cast(node: Node) -> View:
    raise CompressionError("a tensor must keep its dtype, and is cast to another")


def shape_constant(view: View) -> Array:
    """What Shape gives: sizes are known, and a number stands for the batch."""
    return np.array([BATCH, *view.order.shape], np.int64)


def equal_views(views: Sequence[View], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether tensors have their entries in the same order of values of the same shape."""
    first = views[0]
    return all(same(v.order, first.order) for v in views) and len(set(shapes)) == 1


def layer_view(node: Node, layer: Layer) -> View:
    """A layer that treats every number by itself keeps the order."""
    view = node.view()
    return View(node.draft.add(layer, view.value), view.order)
