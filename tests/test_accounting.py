"""What a network costs, against counting one by one."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicompress.analysis.accounting import Summary, summary
from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.nn.architectures import digits_cnn
from minicompress.nn.composition import Residual, Sequential
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense, factor_layers
from minicompress.nn.network import Network, Runner, value_shapes
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import Dropout, ReLU
from minicompress.nn.stateless import Flatten, GlobalAvgPool2D, MaxPool2D
from minicompress.representation import (
    Clustered,
    LowRank,
    Quantized,
    Sparse,
    decode,
    dtype_of,
    shape_of,
)
from minicompress.storage.container import save
from minicompress.testing import models


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def multiplications(layer, x):
    """Multiply as the definition says, output by output and weight by weight, and count."""
    if isinstance(layer, Dense):
        return sum(1 for _ in product(*map(range, layer.weight.shape)))
    count = 0
    kh, kw, per_group, outputs = layer.weight.shape
    for _, _, output in np.ndindex(layer.forward(x).shape[1:]):
        assert output < outputs
        for _ in product(range(kh), range(kw), range(per_group)):
            count += 1
    return count


@st.composite
def layers(draw):
    """A layer of ones, as an array or as factors, and the shape of an input."""
    size = st.integers(1, 3)
    i, o, r, q = (draw(size) for _ in range(4))
    bias = ones(o) if draw(st.booleans()) else None
    if draw(st.booleans()):
        weight = draw(st.sampled_from([ones(i, o), LowRank((ones(i, r), ones(r, o)), "ir,ro->io")]))
        return Dense(weight, bias), (i,)
    kh, kw, groups = draw(size), draw(size), 1
    forms = [
        ones(kh, kw, i, o),
        LowRank((ones(kh, kw, i, r), ones(r, o)), "hwir,ro->hwio"),
        LowRank((ones(kh, i, r), ones(r, kw, o)), "hir,rwo->hwio"),
        LowRank((ones(i, r), ones(kh, kw, r, q), ones(q, o)), "ia,hwab,bo->hwio"),
    ]
    weight = draw(st.sampled_from(forms))
    if isinstance(weight, np.ndarray):
        groups = draw(st.sampled_from([g for g in (1, 2, 3) if o % g == 0]))
    layer = Conv2D(
        weight,
        bias,
        stride=draw(st.integers(1, 2)),
        padding=draw(st.sampled_from(["valid", "same", 1])),
        groups=groups,
    )
    return layer, (draw(st.integers(3, 5)), draw(st.integers(3, 5)), i * groups)


def index_bits(n):
    """Of the place of one entry among n, none of them 0."""
    return len(format(n - 1, "b")) if n > 1 else 0


def law_counts_are_those_of_the_definition(layer, shape, counter):
    (row,) = counter(Sequential((layer,)), shape).rows
    macs, x = 0, np.ones((1, *shape), np.float32)
    arrays = [] if layer.bias is None else [layer.bias]
    for part in factor_layers(layer):
        macs += multiplications(part, x)
        x = part.forward(x)
    arrays += layer.weight.factors if isinstance(layer.weight, LowRank) else [layer.weight]
    entries = sum(1 for array in arrays for _ in array.flat)
    assert row.macs == macs
    assert row.params == row.nonzeros == entries
    assert row.packed_bytes == 4 * entries
    assert row.dense_bytes == 4 * decode(layer.weight).size + (
        0 if layer.bias is None else layer.bias.nbytes
    )
    assert row.sparse_bytes == sum(
        4 * array.size + min(-(-array.size // 8), -(-array.size * index_bits(array.size) // 8))
        for array in [decode(layer.weight), *([] if layer.bias is None else [layer.bias])]
    )
    assert row.activation_bytes == x.nbytes
    assert row.output_shape == x.shape[1:]
    assert all(type(n) is int for n in (row.macs, row.params, row.nonzeros, row.packed_bytes))


@given(layers())
def test_counts_are_those_of_the_definition(pair):
    law_counts_are_those_of_the_definition(*pair, summary)


def test_a_whole_model():
    total = summary(digits_cnn(np.random.default_rng(0)), (8, 8, 1))
    assert [row.index for row in total.rows] == list(range(6))
    assert [row.layer for row in total.rows] == ["Conv2D", "ReLU"] * 2 + ["Flatten", "Dense"]
    assert [row.macs for row in total.rows] == [36 * 9 * 16, 0, 16 * 144 * 32, 0, 0, 5120]
    assert total.macs == 36 * 9 * 16 + 16 * 144 * 32 + 5120
    assert total.params == 9930
    assert total.nonzeros == 9930 - 16 - 32 - 10  # the biases start at zero
    assert total.dense_bytes == total.packed_bytes == 4 * 9930
    assert not any(row.saves_nothing for row in total.rows)


def test_layers_that_cost_no_multiplications():
    norm = BatchNorm(ones(2), np.zeros(2, np.float32), ones(2), ones(2))
    total = summary(
        Sequential((norm, MaxPool2D(2), Dropout(0.5), ReLU(), GlobalAvgPool2D())), (4, 4, 2)
    )
    assert (total.macs, total.params, total.nonzeros, total.dense_bytes) == (0, 8, 6, 32)
    assert total.rows[-1].output_shape == (2,)


def quantized(shape, bits=4):
    return Quantized(
        np.ones(shape, int), np.float32(0.5), np.array(0), bits, True, None, None, np.dtype("f4")
    )


# A scale for every weight.
SCALED_EACH = Quantized(
    np.ones((1, 2), int), ones(2), np.zeros(2, int), 8, True, 1, None, np.dtype("f4")
)


def one_dense(weight, bias=None):
    (row,) = summary(Sequential((Dense(weight, bias),)), shape_of(weight)[:1]).rows
    return row


def test_a_mask_cuts_no_multiplication():
    weight = Sparse((4, 5), np.array([1, 7, 9]), np.array([1, 2, 0], np.float32))
    row = one_dense(weight, ones(5))
    assert (row.macs, row.params, row.nonzeros) == (20, 3 + 5, 2 + 5)
    # 3 values; the cheaper of 20 bits and 3 indices of 5 bits, in bytes: 2; and the bias.
    assert (row.dense_bytes, row.packed_bytes) == (80 + 20, 12 + 2 + 20)
    assert not row.saves_nothing


def test_quantized_and_clustered_weights():
    row = one_dense(quantized((3, 5)), quantized((5,), 8))
    # 15 codes of half a byte and a scale; five of one byte and a scale.
    assert (row.packed_bytes, row.dense_bytes) == (8 + 4 + 5 + 4, 80)
    assert (row.params, row.nonzeros, row.macs) == (20, 20, 15)
    shared = Clustered(np.arange(12).reshape(3, 4) % 3, np.array([0, 1, 2], np.float32))
    row = one_dense(shared)
    # 12 codes of 2 bits and three values; every third entry is zero.
    assert (row.packed_bytes, row.dense_bytes, row.params, row.nonzeros) == (3 + 12, 48, 12, 8)


def test_nested_factors():
    weight = LowRank((quantized((6, 2), 8), ones(2, 8)), "ir,ro->io")
    row = one_dense(weight)
    assert (row.params, row.nonzeros, row.macs) == (28, 28, 28)
    assert (row.dense_bytes, row.packed_bytes) == (192, 12 + 4 + 64)


@pytest.mark.parametrize(
    ("weight", "flagged"),
    [
        (ones(4, 4), False),  # nothing was tried
        (LowRank((ones(4, 1), ones(1, 4)), "ir,ro->io"), False),  # 8 for 16
        (LowRank((ones(4, 2), ones(2, 4)), "ir,ro->io"), True),  # 16 for 16
        (LowRank((ones(4, 3), ones(3, 4)), "ir,ro->io"), True),  # 24 for 16
        # Fewer bytes, but as many parameters and multiplications.
        (LowRank((quantized((4, 2)), quantized((2, 4))), "ir,ro->io"), True),
        (quantized((4, 4)), False),
        (SCALED_EACH, True),
        (Sparse((2, 4), np.arange(8), ones(8)), True),
        (Clustered(np.zeros((1, 1), int), ones(1)), True),  # 0 bits and 4 bytes for 4 bytes
        (Clustered(np.arange(4).reshape(2, 2), ones(4)), True),
    ],
)  # fmt: skip
def test_what_saves_nothing_is_flagged(weight, flagged):
    assert one_dense(weight).saves_nothing is flagged
    text = str(summary(Sequential((Dense(weight),)), shape_of(weight)[:1]))
    assert ("saves nothing" in text) == flagged


def test_the_table_is_aligned():
    weight = LowRank((ones(64, 64), ones(64, 64)), "ir,ro->io")
    lines = str(summary(Sequential((Flatten(), Dense(weight), ReLU())), (8, 8, 1))).splitlines()
    assert lines == [
        "layer      output  params  nonzeros   MACs  dense B  sparse B  packed B  output B",
        "-" * 96,
        "0 Flatten      64       0         0      0        0         0         0       256",
        "1 Dense        64   8,192     8,192  8,192   16,384    16,896    32,768       256"
        "  saves nothing",
        "2 ReLU         64       0         0      0        0         0         0       256",
        "total               8,192     8,192  8,192   16,384    16,896    32,768       512",
    ]


def test_zeros_take_no_sparse_bytes_and_activations_take_the_most_of_a_pair():
    weight = np.zeros((100, 10), np.float32)
    weight[3, 4] = weight[99, 9] = 1.0
    total = summary(Sequential((Dense(weight), ReLU(), Dense(ones(10, 2)))), (100,))
    assert total.rows[0].sparse_bytes == 2 * 4 + 3  # two indices of ten bits
    assert [row.activation_bytes for row in total.rows] == [40, 40, 8]
    assert total.activation_bytes == 440
    half = summary(Sequential((Dense(weight.astype(np.float16)),)), (100,))
    assert half.activation_bytes == 220


def test_the_bytes_of_the_file_are_its_length(tmp_path):
    model = digits_cnn(np.random.default_rng(0))
    assert summary(model, (8, 8, 1)).file_bytes is None
    counted = summary(model, (8, 8, 1), file=True).file_bytes
    assert counted == save(model, tmp_path / "model.mcz") == (tmp_path / "model.mcz").stat().st_size


def test_accounts_are_values():
    total = summary(digits_cnn(np.random.default_rng(0)), (8, 8, 1))
    back = pickle.loads(pickle.dumps(total))
    assert back.rows == total.rows
    with pytest.raises(AttributeError):
        back.rows = ()
    assert (Summary(()).params, Summary(()).macs) == (0, 0)


@dataclass(frozen=True, eq=False, repr=False)
class Scaling(Layer):
    """A layer of one's own, with weights."""

    weight: Array

    def output_shape(self, input_shape):
        return tuple(input_shape)

    def parameters(self):
        return {"weight": self.weight}


def test_refused():
    model = digits_cnn(np.random.default_rng(0))
    with pytest.raises(CompressionError, match=r"layer 5 \(Dense\): the input must have shape"):
        summary(model, (9, 9, 1))
    with pytest.raises(CompressionError, match=r"layer 0 \(Scaling\) cannot be counted"):
        summary(Sequential((Scaling(ones(3)),)), (3,))
    with pytest.raises(CompressionError, match="network must be a Network"):
        summary(model.layers, (8, 8, 1))


# Wrong implementations that the law must kill -----------------------------------------------------


def _changed(**changes):
    def wrong(model, shape):
        rows = summary(model, shape).rows
        layer = model.layers[0]
        return Summary(
            tuple(replace(r, **{n: f(r, layer) for n, f in changes.items()}) for r in rows), 0, None
        )

    return wrong


BIASED = (Conv2D(ones(2, 2, 1, 4), ones(4), groups=2), (3, 3, 2))
FACTORED = (Dense(LowRank((ones(3, 1), ones(1, 3)), "ir,ro->io"), ones(3)), (3,))
PLANTED = {
    "biases forgotten": (BIASED, _changed(params=lambda row, layer: row.params - 4)),
    "bias additions as MACs": (BIASED, _changed(macs=lambda row, layer: row.macs + 16)),
    "groups ignored": (BIASED, _changed(macs=lambda row, layer: row.macs * layer.groups)),
    "MACs of the product": (FACTORED, _changed(macs=lambda row, layer: 9)),
    "dense bytes of the factors": (
        FACTORED,
        _changed(dense_bytes=lambda row, layer: row.packed_bytes),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    case, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law_counts_are_those_of_the_definition(*case, wrong)


def test_named_arrays_are_counted():
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(6, 5)), "i": np.arange(6, dtype=np.int16), "s": np.array(2.0)}
    arrays["p"] = Sparse((4, 4), np.array([1, 7, 9]), ones(3))
    arrays["l"] = LowRank((ones(3, 2), ones(2, 4)), "ir,ro->io")
    found = summary(arrays)
    assert [row.packed_bytes for row in found.rows] == [240, 12, 8, 12 + 2, 56]
    assert [row.dense_bytes for row in found.rows] == [240, 12, 8, 64, 48]
    assert [row.nonzeros for row in found.rows] == [30, 5, 1, 3, 12]
    assert [row.form for row in found.rows[3:]] == ["Sparse 81% zero", "LowRank rank 2"]
    assert found.packed_bytes == sum(row.packed_bytes for row in found.rows)
    assert repr(found).splitlines()[-1].split() == ["total", "54", "372", "330", "1.1"]
    with pytest.raises(CompressionError, match="input_shape must be given"):
        summary(digits_cnn(rng))


def test_the_most_that_is_needed_at_the_same_time():
    """By hand: a shortcut waits for its join, and an output that is made early stays."""
    one = Dense(ones(4, 4))
    residual = Sequential((one, Residual(one, ReLU()), Dense(ones(4, 1))))
    assert summary(residual, (4,)).activation_bytes == 3 * 16  # at each of its layers
    heads = Network((one, one, one), ((0,), (1,), (2,)), (1, 3))
    assert summary(heads, (4,)).activation_bytes == 3 * 16
    assert summary(Sequential((one, one, one)), (4,)).activation_bytes == 2 * 16


@given(models())
def test_the_peak_is_what_running_holds(network):
    """Counted while it runs: what the runner keeps, and the new value beside it."""
    shapes, run = value_shapes(network, (5, 4, 2)), Runner(network)
    reps = [rep for layer in network.layers for rep in layer.parameters().values()]
    itemsize = dtype_of(reps[0]).itemsize if reps else 4
    x = np.zeros((1, 5, 4, 2), dtype_of(reps[0]) if reps else np.float32)
    values, peak = {0: x}, x.nbytes
    with np.errstate(all="ignore"):
        for i in range(len(network.layers)):
            after = run(values, i, i + 1)
            together = {*values, i + 1}
            sizes = [int(np.prod(shapes[value])) * itemsize for value in together]
            peak, values = max(peak, sum(sizes)), after
    assert summary(network, (5, 4, 2)).activation_bytes == peak


@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 2]), st.sampled_from([1, 2]))
def test_multiplications_of_a_transposed_convolution(size, kernel, stride, groups):
    """Every pixel of the input meets every weight of its group."""
    layer = ConvTranspose2D(ones(kernel, 2, 2, 2 * groups), stride=stride, groups=groups)
    image = (size, 3, 2 * groups)
    count = sum(1 for _ in np.ndindex(size, 3, kernel, 2, 2, 2 * groups))
    assert summary(Sequential((layer,)), image).macs == count
