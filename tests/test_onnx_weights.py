"""ONNX: the codes, scales and codebooks of weights."""

import numpy as np
import pytest
from budgets import at_most
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx_laws import HALF, MATRIX, ROWS, F, law_outputs, law_weights, needs_onnx, onnx, storage

from minicompress.interchange.onnx_file import to_onnx
from minicompress.interchange.onnx_graph import densely_coded
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense
from minicompress.representation import (
    Clustered,
    LowRank,
    Quantized,
    Sparse,
    decode,
    dtype_of,
    shape_of,
)
from minicompress.testing.models import reps

# Layers -------------------------------------------------------------------------------------------


@needs_onnx
@at_most(40)
@given(st.sampled_from([F, HALF]).flatmap(lambda d: reps((5, 3), d)), st.sampled_from([17, 21]))
def test_drawn_weights(rep, opset):
    assume(not isinstance(rep, LowRank))
    x = np.zeros((1, 5), dtype_of(rep))
    law_weights(lambda *a: to_onnx(*a, opset=opset), Sequential((Dense(rep),)), x)


# Codes --------------------------------------------------------------------------------------------


def quantized(codes, zero_point, bits, signed, *, scale=0.1, dtype=F, scales=None):
    return Quantized(
        np.array([codes]),
        np.array(scale, scales or dtype),
        np.array(zero_point),
        bits,
        signed,
        None,
        None,
        dtype,
    )


STORED = {
    "2 bits": (quantized([-2, 1], 1, 2, True), 21, ["INT4"]),
    "4 bits unsigned": (quantized([0, 15, 7], 15, 4, False), 21, ["UINT4"]),
    "4 bits before opset 21": (quantized([0, 15], 3, 4, False), 20, ["INT8"]),
    "a zero point beyond 4 bits": (quantized([0, 15], -1, 4, False), 21, ["INT8"]),
    "a zero point beyond 8 bits": (quantized([-128, 127], -3000, 8, True), 21, ["INT16"]),
    "a zero point beyond 16 bits": (quantized([0, 1], 70_000, 8, True), 21, []),
    "16 bits before opset 21": (quantized([-32768, 32767], 0, 16, True), 20, []),
    "16 bits in float16": (quantized([-2047, 2047], 1, 16, True, dtype=HALF), 21, []),
    "float16 before opset 19": (quantized([-8, 7], 1, 4, True, dtype=HALF), 18, []),
    "float16 with float32 scales": (
        quantized([-2047, 2047], 1, 16, True, scale=1e-5, dtype=HALF, scales=F),
        21,
        ["INT16"],
    ),
    "float16 with float32 scales before opset 19": (
        quantized([-8, 7], 1, 4, True, scale=1e-6, dtype=HALF, scales=F),
        13,
        ["INT8"],
    ),
    "beyond float16": (quantized([-8, 7], 0, 4, True, scale=1e4, dtype=HALF, scales=F), 21, []),
    "a product that is too large": (quantized([-128, 127], 0, 8, True, scale=3e36), 21, []),
    "one block": (
        Quantized(np.array([[1, -2]]), np.full((1, 1), 0.1, F), np.array([[1]]), 4, True, 1, 5, F),
        21,
        ["INT4"],
    ),
    "the smallest scales": (quantized([-128, 127], 3, 8, True, scale=1e-45), 21, ["INT8"]),
}


@needs_onnx
@pytest.mark.parametrize("name", STORED)
def test_codes_are_in_the_narrowest_type_that_gives_the_same_floats(name):
    rep, opset, types = STORED[name]
    model = Sequential((Dense(rep),))
    x = np.zeros((1, 1), dtype_of(rep))
    proto = law_weights(lambda *a: to_onnx(*a, opset=opset), model, x)
    assert storage(proto) == types
    if not types:
        (stored,) = (onnx.numpy_helper.to_array(c) for c in proto.graph.initializer)
        np.testing.assert_array_equal(stored, decode(rep).T)


@needs_onnx
def test_blocks_of_a_bias():
    codes, scale = np.arange(5), np.array([0.1, 0.3, 0.7], F)
    bias = Quantized(codes, scale, np.array([1, 0, 2]), 8, True, 0, 2, F)
    model = Sequential((Dense(MATRIX, bias),))
    law_weights(to_onnx, model, ROWS)
    law_outputs(to_onnx, model, ROWS)


@given(reps((3, 4), F))
def test_dense_codes_decode_to_the_same(rep):
    if isinstance(rep, Sparse):
        coded = densely_coded(rep)
        assert shape_of(coded) == rep.shape
        assert decode(coded).tobytes() == decode(rep).tobytes()


def test_values_with_codes_keep_them():
    places, ones = np.array([1, 2]), np.ones((), F)
    codes = Quantized(np.array([5, 7]), ones, np.array(3), 4, False, None, None, F)
    assert isinstance(densely_coded(Sparse((2, 2), places, codes)), Quantized)
    shared = Clustered(np.array([0, 0]), np.ones(1, F))
    assert isinstance(densely_coded(Sparse((2, 2), places, shared)), Clustered)
