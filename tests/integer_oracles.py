"""Two slow oracles for integer inference; neither shares a line with what is tested.

Six loops over Python ints for one layer of a drawn tiny network, and int64 for whole networks and
data sets. And the layers and inputs that planted wrong code is shown.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from minicompress.integer.layers import IntegerConv2D, IntegerDense, Scales
from minicompress.integer.requantization import quantize_multiplier
from minicompress.integer.stateless import (
    IntegerAvgPool2D,
    IntegerFlatten,
    IntegerMaxPool2D,
    IntegerReLU,
)

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


def int64_layer(layer, codes):
    if isinstance(layer, IntegerConv2D):
        return int64_convolution(layer, codes)
    if isinstance(layer, IntegerDense):
        x, w = codes.astype(np.int64) - layer.input_zero_point, layer.weight.astype(np.int64)
        return int64_requantize(np.einsum("ni,io->no", x, w) + layer.bias, layer)
    if isinstance(layer, IntegerReLU):
        return np.where(codes < layer.zero_point, layer.zero_point, codes).astype(np.int8)
    if isinstance(layer, IntegerFlatten):
        return codes.reshape(len(codes), -1)
    (w0, w1), (s0, s1) = layer.window, layer.stride
    assert layer.padding == ((0, 0), (0, 0))  # drawn ones have `slow_pooling`
    windows = np.lib.stride_tricks.sliding_window_view(codes, (w0, w1), (1, 2))[:, ::s0, ::s1]
    if isinstance(layer, IntegerMaxPool2D):
        return windows.max((-2, -1))
    return int64_requantize(
        (windows.astype(np.int64) - layer.input_zero_point).sum((-2, -1)), layer
    )


def law_model(impl, model, codes):
    right = codes
    for layer in model.layers:
        right = int64_layer(layer, right)
    np.testing.assert_array_equal(impl(model, codes), right)


def run(model, codes):
    return model.run(codes)


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
