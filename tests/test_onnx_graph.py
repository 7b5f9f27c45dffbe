"""How many bytes an ONNX file will have: counted from shapes, and refused above 2 GB."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_laws import HALF, F, needs_onnx, shared

from minicompress.compressors.clustering import cluster
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.compressors.svd import truncated_svd
from minicompress.errors import CompressionError
from minicompress.interchange import onnx_file as export
from minicompress.interchange.onnx_file import LAYER_BYTES, save_onnx, to_onnx
from minicompress.interchange.onnx_graph import constant_bytes
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense, factor_layers
from minicompress.representation import (
    Clustered,
    LowRank,
    Quantized,
    Sparse,
    decode,
    dtype_of,
    num_params,
    storage_bits,
)
from minicompress.testing.models import models


def law_count(count, model, input_shape, opset=21):
    """The constants are counted to the byte, and the rest of the file is within its allowance."""
    proto = to_onnx(model, input_shape, opset=opset)
    layers = [part for layer in model.layers for part in factor_layers(layer)]
    counted = sum(count(rep, opset) for layer in layers for rep in layer.parameters().values())
    assert counted == sum(len(constant.raw_data) for constant in proto.graph.initializer)
    assert counted < proto.ByteSize() <= counted + LAYER_BYTES * (len(layers) + 1)


WEIGHT = np.random.default_rng(0).standard_normal((7, 9), np.float32)  # odd: 4 bits end in a byte


def coded(count, zero_point, axis=None, block_size=None):
    """A vector of 4-bit codes, with so many scales as it has zero points."""
    scale = np.ones(np.shape(zero_point), F)
    zeros = np.array(zero_point)
    return Quantized(np.zeros(count, int), scale, zeros, 4, True, axis, block_size, F)


def pruned(values):
    """Pruned weights whose values are compressed once more."""
    rep = prune_magnitude(WEIGHT, amount=0.5).rep
    return Sparse(rep.shape, rep.indices, values(decode(rep.values)))


REPS = {
    "floats": WEIGHT,
    "float16": WEIGHT.astype(HALF),
    "4 bits": quantize(WEIGHT, num_bits=4).rep,
    "8 bits of float16": quantize(WEIGHT.astype(HALF), num_bits=8, axis=1).rep,
    "4 bits, a scale each column": quantize(WEIGHT, num_bits=4, axis=1).rep,
    "5 bits in blocks": quantize(WEIGHT, num_bits=5, axis=0, block_size=4).rep,
    "16 bits": quantize(WEIGHT, num_bits=16, signed=False, symmetric=False).rep,
    "9 bits, with a zero point": quantize(WEIGHT, num_bits=9, signed=False, symmetric=False).rep,
    "scales so large that ONNX would overflow": Quantized(
        np.ones((7, 9), int), np.array(F.type(3e38)), np.array(0), 4, True, None, None, F
    ),
    "clustered": cluster(WEIGHT, n_clusters=5).rep,
    "256 clusters": Clustered(np.zeros((7, 9), int), np.arange(256, dtype=F)),
    "257 clusters": Clustered(np.zeros((7, 9), int), np.arange(257, dtype=F)),
    "a quantized codebook": Clustered(np.zeros((7, 9), int), coded(10, [0] * 5, 0, 2)),
    "pruned": prune_magnitude(WEIGHT, amount=0.5).rep,
    "pruned and clustered": shared(WEIGHT),
    "pruned, with 256 clusters": Sparse(
        (7, 9), np.arange(2), Clustered(np.arange(2), np.arange(256, dtype=F))
    ),
    "pruned, at 4 bits": pruned(lambda values: quantize(values, num_bits=4).rep),
    "pruned, with scales": pruned(lambda values: coded(values.size, [0] * values.size, 0)),
    "pruned, with no code for zero": pruned(lambda values: coded(values.size, 99)),
    "low rank": truncated_svd(WEIGHT, rank=2).rep,
    "low rank, at 8 bits": LowRank(
        tuple(quantize(f, num_bits=8).rep for f in truncated_svd(WEIGHT, rank=2).rep.factors),
        "ir,ro->io",
    ),
}  # fmt: skip


@needs_onnx
@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("name", REPS)
def test_every_form_of_weights_is_counted(name, opset):
    law_count(constant_bytes, Sequential((Dense(REPS[name]),)), (7,), opset)


@needs_onnx
@given(models(), st.sampled_from([13, 20, 21, 25]))
def test_drawn_models_are_counted(model, opset):
    if {dtype_of(r) for layer in model.layers for r in layer.parameters().values()} <= {F}:
        law_count(constant_bytes, model, (5, 4, 2), opset)


PLANTED = {
    "every weight is four bytes": ("8 bits of float16", 21, lambda r, o: 4 * num_params(r)),
    "zeros take no place": ("pruned", 21, lambda r, o: 4 * num_params(r)),
    "codes of 5 bits are packed": ("5 bits in blocks", 21, lambda r, o: -(-storage_bits(r) // 8)),
    "a 4-bit code takes a byte": ("4 bits", 21, lambda r, o: r.codes.nbytes + 5),
    "the code of zero is forgotten": (
        "pruned, with 256 clusters",
        21,
        lambda r, o: 63 + constant_bytes(r.values.codebook, o),
    ),
    "types of a later opset": ("4 bits", 18, lambda r, o: constant_bytes(r, 21)),
    "low rank is counted decoded": ("low rank", 21, lambda r, o: 4 * 63),
}


@needs_onnx
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_count_is_caught(name):
    form, opset, wrong = PLANTED[name]
    model = Sequential((Dense(REPS[form]),))
    law_count(constant_bytes, model, (7,), opset)
    with pytest.raises(AssertionError):
        law_count(wrong, model, (7,), opset)


@needs_onnx
def test_a_file_over_the_limit_is_refused_before_any_work(monkeypatch, tmp_path):
    """The limit stands in for 2 GB: 1 MB of weights, of which nothing is copied or decoded."""
    weight = quantize(np.ones((1000, 1000), F), num_bits=8).rep
    model = Sequential((Dense(weight),))
    size = constant_bytes(weight, 21) + 2 * LAYER_BYTES
    monkeypatch.setattr(export, "MAX_BYTES", size)
    assert to_onnx(model, (1000,)).ByteSize() <= size
    monkeypatch.setattr(export, "MAX_BYTES", size - 1)
    (tmp_path / "net.onnx").write_bytes(b"before")
    tracemalloc.start()
    for export_it in (to_onnx, lambda m, s: save_onnx(m, tmp_path / "net.onnx", s)):
        with pytest.raises(CompressionError, match=f"model takes about {size:,} bytes as ONNX"):
            export_it(model, (1000,))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert (tmp_path / "net.onnx").read_bytes() == b"before"


def test_the_limit_counts_what_has_no_memory():
    """3 GiB of zeros in a view of one number: counted, not made."""
    weight = np.broadcast_to(F.type(0), (2**15, 3 * 2**13))
    assert constant_bytes(weight, 21) == 3 * 2**30 > export.MAX_BYTES
