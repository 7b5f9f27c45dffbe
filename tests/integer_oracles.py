"""Two slow oracles for integer inference; neither shares a line with what is tested.

Six loops over Python ints for one layer of a drawn tiny network, and int64 for whole networks and
data sets. And the layers and inputs that planted wrong code is shown.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from minicompress.integer.joins import IntegerAdd, IntegerConcat, IntegerMultiply
from minicompress.integer.layers import (
    IntegerConv2D,
    IntegerConvTranspose2D,
    IntegerDense,
    IntegerScale,
    Scales,
)
from minicompress.integer.model import IntegerModel
from minicompress.integer.requantization import quantize_multiplier
from minicompress.integer.stateless import (
    IntegerAvgPool2D,
    IntegerChannelShuffle,
    IntegerFlatten,
    IntegerMaxPool2D,
    IntegerReLU,
    IntegerTable,
    IntegerUpsample2D,
)
from minicompress.nn.composition import Sequential
from minicompress.qparams import QParams

F = np.float32


# ---- the first oracle: one entry of the output at a time, in Python ints


def slow_code(total, layer, o):
    n = (total * int(layer.multiplier[o]) + (1 << (int(layer.shift[o]) - 1))) >> int(layer.shift[o])
    return min(max(n + layer.output_zero_point, layer.low), layer.high)


def slow_convolution(layer, codes):
    (n, h, w, _), (kh, kw, c, outputs) = codes.shape, layer.weight.shape
    oh, ow, _ = layer.output_shape(codes.shape[1:])
    y = np.zeros((n, oh, ow, outputs), np.int8)
    for i, j, k, o in np.ndindex(y.shape):
        total, first = int(layer.bias[o]), o // (outputs // layer.groups) * c
        for p, q, r in np.ndindex(kh, kw, c):
            row = j * layer.stride[0] + p * layer.dilation[0] - layer.padding[0][0]
            column = k * layer.stride[1] + q * layer.dilation[1] - layer.padding[1][0]
            if 0 <= row < h and 0 <= column < w:  # outside the real 0: nothing to add
                step = int(codes[i, row, column, first + r]) - layer.input_zero_point
                total += step * int(layer.weight[p, q, r, o])
        y[i, j, k, o] = slow_code(total, layer, o)
    return y


def slow_product(layer, codes):
    y = np.zeros((len(codes), layer.weight.shape[1]), np.int8)
    for i, o in np.ndindex(y.shape):
        total = int(layer.bias[o])
        for x, w in zip(codes[i].tolist(), layer.weight[:, o].tolist(), strict=True):
            total += (x - layer.input_zero_point) * w
        y[i, o] = slow_code(total, layer, o)
    return y


def slow_pooling(layer, codes, code=slow_code):
    n, h, w, _ = codes.shape
    y = np.zeros((n, *layer.output_shape(codes.shape[1:])), np.int8)
    for i, j, k, c in np.ndindex(y.shape):
        top = j * layer.stride[0] - layer.padding[0][0]
        left = k * layer.stride[1] - layer.padding[1][0]
        seen = [
            int(codes[i, a, b, c])
            for a in range(max(top, 0), min(top + layer.window[0], h))
            for b in range(max(left, 0), min(left + layer.window[1], w))
        ]
        if isinstance(layer, IntegerMaxPool2D):
            y[i, j, k, c] = max(seen)
            continue
        total = sum(seen) - len(seen) * layer.input_zero_point  # padding is the real 0
        y[i, j, k, c] = code(total, layer, len(seen) - 1 if layer.shift.size > 1 else 0)
    return y


def law_codes(impl, layer, codes, slow=slow_convolution):
    made = impl(layer, codes)
    assert made.dtype == np.int8
    np.testing.assert_array_equal(made, slow(layer, codes))


def forward(layer, codes):
    return layer.forward(codes)


# ---- the second oracle: whole networks on int64


def int64_requantize(sums, layer):
    m, s = layer.multiplier.astype(np.int64), layer.shift.astype(np.int64)
    codes = ((sums * m + (1 << (s - 1))) >> s) + layer.output_zero_point
    return np.clip(codes, layer.low, layer.high).astype(np.int8)


def int64_convolution(layer, codes, border=None, requant=int64_requantize, centred=None):
    """Padded with the code of zero, tap by tap."""
    zero = layer.input_zero_point
    pads = ((0, 0), *layer.padding, (0, 0))
    x = np.pad(codes, pads, constant_values=zero if border is None else border)
    x = x.astype(np.int64) - zero if centred is None else centred(x, zero)
    oh, ow, outputs = layer.output_shape(codes.shape[1:])
    (kh, kw, c, _), groups, (d0, d1) = layer.weight.shape, layer.groups, layer.dilation
    weight = layer.weight.astype(np.int64).reshape(kh, kw, c, groups, outputs // groups)
    sums = np.zeros((len(x), oh, ow, outputs), np.int64) + layer.bias
    for p, q in np.ndindex(kh, kw):
        down = slice(p * d0, p * d0 + (oh - 1) * layer.stride[0] + 1, layer.stride[0])
        right = slice(q * d1, q * d1 + (ow - 1) * layer.stride[1] + 1, layer.stride[1])
        tap = x[:, down, right].reshape(len(x), oh, ow, groups, c)
        sums += np.einsum("nijgc,cgo->nijgo", tap, weight[p, q]).reshape(sums.shape)
    return requant(sums, layer)


def int64_transposed(layer, codes):
    """Every pixel adds its multiple of the kernel to a large image, of which a part is kept."""
    (n, h, w, _), (kh, kw, c, outputs), groups = codes.shape, layer.weight.shape, layer.groups
    (s0, s1), (d0, d1) = layer.stride, layer.dilation
    x = (codes.astype(np.int64) - layer.input_zero_point).reshape(n, h, w, groups, c)
    weight = layer.weight.astype(np.int64).reshape(kh, kw, c, groups, outputs // groups)
    more = layer.output_padding
    size = (h - 1) * s0 + (kh - 1) * d0 + 1 + more[0], (w - 1) * s1 + (kw - 1) * d1 + 1 + more[1]
    large = np.zeros((n, *size, outputs), np.int64)
    for i, j, p, q in np.ndindex(h, w, kh, kw):
        each = np.einsum("ngc,cgo->ngo", x[:, i, j], weight[p, q]).reshape(n, outputs)
        large[:, i * s0 + p * d0, j * s1 + q * d1] += each
    (top, bottom), (left, right) = layer.padding
    return int64_requantize(
        large[:, top : size[0] - bottom, left : size[1] - right] + layer.bias, layer
    )


def exact_codes(total, shift, layer):
    """Sums, in units of 2**-shift of the output's steps, as codes: in Python ints."""
    flat = [(int(t) + (1 << (shift - 1))) >> shift for t in total.ravel()]
    flat = [min(max(t + layer.output_zero_point, layer.low), layer.high) for t in flat]
    return np.array(flat, np.int8).reshape(total.shape)


def int64_join(layer, *codes):
    steps = [x.astype(object) - z for x, z in zip(codes, layer.input_zero_points, strict=True)]
    if isinstance(layer, IntegerAdd):
        products = [x * int(m) for x, m in zip(steps, layer.multiplier, strict=True)]
        return exact_codes(sum(products[1:], products[0]), int(layer.shift), layer)
    if isinstance(layer, IntegerMultiply):
        product = steps[0] * steps[1] * int(layer.multiplier[0])
        return exact_codes(product, int(layer.shift[0]), layer)
    parts = zip(steps, layer.multiplier, layer.shift, strict=True)
    return np.concatenate([exact_codes(x * int(m), int(s), layer) for x, m, s in parts], axis=-1)


def int64_average(layer, codes):
    """The windows one by one; a place counts in the image, or in the padding that counts."""
    (n, h, w, _), (t, left) = codes.shape, (layer.counted[0][0], layer.counted[1][0])
    y = np.zeros((n, *layer.output_shape(codes.shape[1:])), np.int8)
    for j, k in np.ndindex(y.shape[1:3]):
        top = j * layer.stride[0] - layer.padding[0][0]
        start = k * layer.stride[1] - layer.padding[1][0]
        rows = [r for r in range(top, top + layer.window[0]) if -t <= r < h + layer.counted[0][1]]
        columns = [
            q for q in range(start, start + layer.window[1]) if -left <= q < w + layer.counted[1][1]
        ]
        seen = np.zeros((n, y.shape[3]), np.int64)
        for r in rows:
            for q in columns:
                if 0 <= r < h and 0 <= q < w:
                    seen += codes[:, r, q].astype(np.int64) - layer.input_zero_point
        place = len(rows) * len(columns) - 1 if layer.shift.size > 1 else 0
        product = seen.astype(object) * int(layer.multiplier[place])
        y[:, j, k] = exact_codes(product, int(layer.shift[place]), layer)
    return y


def int64_layer(layer, codes, *others):
    match layer:
        case IntegerConv2D():
            return int64_convolution(layer, codes)
        case IntegerConvTranspose2D():
            return int64_transposed(layer, codes)
        case IntegerDense():
            x, w = codes.astype(np.int64) - layer.input_zero_point, layer.weight.astype(np.int64)
            return int64_requantize(np.einsum("ni,io->no", x, w) + layer.bias, layer)
        case IntegerScale():
            x = codes.astype(np.int64) - layer.input_zero_point
            return int64_requantize(x * layer.weight.astype(np.int64) + layer.bias, layer)
        case IntegerAdd() | IntegerMultiply() | IntegerConcat():
            return int64_join(layer, codes, *others)
        case IntegerReLU():
            return np.where(codes < layer.zero_point, layer.zero_point, codes).astype(np.int8)
        case IntegerTable():
            rows = np.broadcast_to(layer.table, (codes.shape[-1], 256)).tolist()
            flat = codes.reshape(-1, codes.shape[-1]).tolist()
            made = [[rows[c][q + 128] for c, q in enumerate(row)] for row in flat]
            return np.array(made, np.int8).reshape(codes.shape)
        case IntegerFlatten():
            return codes.reshape(len(codes), -1)
        case IntegerUpsample2D():
            n, h, w, c = codes.shape
            down, across = layer.factor
            wide = np.broadcast_to(codes[:, :, None, :, None], (n, h, down, w, across, c))
            return wide.reshape(n, h * down, w * across, c)
        case IntegerChannelShuffle():
            size = codes.shape[3] // layer.groups
            order = [g * size + k for k in range(size) for g in range(layer.groups)]
            return codes[..., order]
        case IntegerMaxPool2D():
            y = np.full((len(codes), *layer.output_shape(codes.shape[1:])), -128, np.int8)
            for j, k in np.ndindex(y.shape[1:3]):
                top = j * layer.stride[0] - layer.padding[0][0]
                left = k * layer.stride[1] - layer.padding[1][0]
                down = slice(max(top, 0), top + layer.window[0])
                across = slice(max(left, 0), left + layer.window[1])
                y[:, j, k] = codes[:, down, across].max((1, 2))
            return y
        case IntegerAvgPool2D():
            return int64_average(layer, codes)
    raise AssertionError(type(layer))


def int64_outputs(model, codes):
    """Every value of the program from the oracle, none dropped; then the outputs."""
    values = [codes]
    for layer, reads in zip(model.layers, model.network.inputs, strict=True):
        values.append(int64_layer(layer, *(values[value] for value in reads)))
    return [values[value] for value in model.network.outputs]


def law_model(impl, model, codes):
    made = impl(model, codes)
    made = made if isinstance(made, tuple) else (made,)
    for part, right in zip(made, int64_outputs(model, codes), strict=True):
        assert part.dtype == np.int8
        np.testing.assert_array_equal(part, right)


def run(model, codes):
    return model.run(codes)


Q = QParams(np.array(1.0), np.array(0), num_bits=8)


def chained(layers, shape):
    """A chain of integer layers as a model, whose codes stand for themselves."""
    return IntegerModel(Sequential(tuple(layers)), shape, Q, (Q,))


def with_layers(model, layers):
    """The model with other layers, a chain."""
    return dataclasses.replace(model, network=Sequential(tuple(layers)))


def int8s(shape, low=-128):
    return npst.arrays(np.int8, shape, elements=st.integers(low, 127), fill=st.nothing())


CODE = st.integers(-128, 127)


@st.composite
def averages(draw, window, stride, padding):
    """Means of one kind of window, or of every number of pixels; all scales near 1 and none."""
    size = draw(st.sampled_from([1, window[0] * window[1]]))
    factors = npst.arrays(np.float64, size, elements=st.floats(0.01, 4), fill=st.nothing())
    multiplier, shift = quantize_multiplier(draw(factors))
    low, high = sorted((draw(CODE), draw(CODE)))
    return IntegerAvgPool2D(
        window,
        stride,
        padding,
        multiplier=multiplier,
        shift=shift,
        input_zero_point=draw(CODE),
        output_zero_point=draw(CODE),
        low=draw(st.sampled_from([-128, low])),
        high=draw(st.sampled_from([127, high])),
    )


def floats(shape, low=-2.0, high=2.0):
    return npst.arrays(F, shape, elements=st.floats(low, high, width=16))


# ---- a layer whose every field matters

RNG = np.random.default_rng(0)
BORDERED = IntegerConv2D(
    RNG.integers(-127, 128, (3, 3, 2, 2)).astype(np.int8),
    np.array([700, -3000], np.int32),
    np.array([2**30, 3 * 2**29], np.int32),
    np.array([38, 41], np.int32),
    17,
    -5,
    -128,
    127,
    8,
    Scales(1.0, np.ones(2), 1.0),
    padding=((1, 1), (1, 1)),
)
PICTURE = RNG.integers(-128, 128, (2, 5, 5, 2)).astype(np.int8)
