"""ONNX: networks in all their forms, files and refusals, in onnxruntime as here."""

import doctest
import importlib
import sys

import numpy as np
import pytest
from budgets import at_most
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx_laws import (
    HALF,
    IMAGE,
    MATRIX,
    ROWS,
    F,
    kernel,
    kinds,
    law_outputs,
    law_weights,
    needs_onnx,
    onnx,
    reference,
    run,
    shared,
    storage,
)

from minicompress.compressors.clustering import cluster
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.compressors.svd import channel_svd, spatial_svd, truncated_svd
from minicompress.compressors.tucker import tucker2
from minicompress.datasets import load_digits
from minicompress.errors import CompressionError
from minicompress.interchange.onnx_file import save_onnx, to_onnx
from minicompress.nn.architectures import (
    digits_cnn,
    digits_resnet,
    lenet5,
    lenet_300_100,
    mobilenet_v2,
    seed_cnn,
)
from minicompress.nn.composition import Sequential
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import value_shapes
from minicompress.nn.pointwise import (
    ReLU,
)
from minicompress.nn.stateless import (
    MaxPool2D,
)
from minicompress.representation import LowRank, decode, dtype_of
from minicompress.search.weights import weights, with_weights
from minicompress.testing.models import models

# The networks -------------------------------------------------------------------------------------


def each(compressor):
    return lambda array: compressor(array).rep


def factored(array):
    return (truncated_svd(array, rank=5) if array.ndim == 2 else channel_svd(array, rank=1)).rep


def nested(array):
    """Low rank, and its factors at 8 bits."""
    rep = factored(array)
    return LowRank(tuple(quantize(f, num_bits=8, axis=-1).rep for f in rep.factors), rep.subscripts)


FORMS = {
    "as it is": (lambda array: array, []),
    "int8 per channel": (each(lambda a: quantize(a, num_bits=8, axis=-1)), ["INT8"]),
    "int4": (each(lambda a: quantize(a, num_bits=4)), ["INT4"]),
    "uint8 affine": (
        each(lambda a: quantize(a, num_bits=8, signed=False, symmetric=False)),
        ["UINT8"],
    ),
    "int4 in blocks": (each(lambda a: quantize(a, num_bits=4, axis=-2, block_size=16)), ["INT4"]),
    "uint16": (
        each(lambda a: quantize(a, num_bits=16, signed=False, symmetric=False, axis=-1)),
        ["UINT16"],
    ),
    "pruned": (each(lambda a: prune_magnitude(a, amount=0.8)), []),
    "clustered": (each(lambda a: cluster(a, n_clusters=16)), []),
    "pruned and clustered": (shared, []),
    "factorized": (factored, []),
    "factorized, int8": (nested, ["INT8"]),
}

NETWORKS = {
    "digits CNN": (digits_cnn, (8, 8, 1), FORMS),
    "LeNet-5": (lenet5, (28, 28, 1), FORMS),
    "seed CNN": (seed_cnn, (28, 28, 1), ("as it is", "int8 per channel", "pruned", "factorized")),
    "seed CNN, strided": (
        lambda rng: seed_cnn(rng, "strided"),
        (28, 28, 1),
        ("int4 in blocks", "uint8 affine"),
    ),
    "digits ResNet": (digits_resnet, (8, 8, 1), ("as it is", "int8 per channel", "factorized")),
    "MobileNetV2": (
        lambda rng: mobilenet_v2(rng, width=0.1, resolution=32, classes=3),
        (32, 32, 3),
        ("as it is",),
    ),
    "LeNet-300-100": (lenet_300_100, (28, 28, 1), ("int4", "uint8 affine")),
}

CASES = [(network, form) for network, (*_, forms) in NETWORKS.items() for form in forms]


@needs_onnx
@pytest.mark.parametrize(("network", "form"), CASES)
def test_the_networks_in_all_their_forms(network, form):
    make, shape, _ = NETWORKS[network]
    rng = np.random.default_rng(0)
    plain = make(rng)
    compressed, types = FORMS[form]
    model = with_weights(plain, {i: compressed(decode(w)) for i, w in weights(plain).items()})
    x = rng.random((3, *shape), np.float32)
    proto = law_weights(to_onnx, model, x)
    law_outputs(lambda *_: proto, model, x)
    assert storage(proto) == types
    assert ("Gather" in kinds(proto)) == ("clustered" in form)
    layers = sum(isinstance(layer, Conv2D | Dense) for layer in model.layers)
    products = kinds(proto).count("Conv") + kinds(proto).count("Gemm")
    assert products == layers * (2 if "factorized" in form else 1)
    if types == ["INT4"]:  # of scales and biases there are a few
        assert proto.ByteSize() < 0.33 * to_onnx(plain, shape).ByteSize()


@needs_onnx
def test_every_size_of_batch_and_the_class_of_every_digit():
    x, _ = load_digits("test")
    model = digits_cnn(np.random.default_rng(0))
    proto = to_onnx(model, (8, 8, 1))
    for rows in (0, 1, len(x)):
        (got,) = run(proto, x[:rows])
        assert got.shape == (rows, 10)
    np.testing.assert_array_equal(got.argmax(1), model(x).argmax(1))


# Drawn networks, and dtypes ----------------------------------------------------------------------


CHAINS = {
    "spatial": (spatial_svd, {"rank": 2}, {"stride": (2, 1), "padding": ((0, 2), (1, 3))}, 2),
    "Tucker-2": (tucker2, {"rank_in": 2, "rank_out": 3}, {"stride": 2, "padding": "same"}, 3),
    "groups, which have no chain": (channel_svd, {"rank": 1}, {"groups": 2}, 1),
}


@needs_onnx
@pytest.mark.parametrize("name", CHAINS)
def test_low_rank_kernels_are_chains(name):
    factor, ranks, geometry, length = CHAINS[name]
    groups = geometry.get("groups", 1)
    rep = factor(kernel(3, 3, 4 // groups, 6), **ranks).rep
    model = Sequential((Conv2D(rep, kernel(6), **geometry),))
    proto = law_weights(to_onnx, model, IMAGE)
    law_outputs(lambda *_: proto, model, IMAGE)
    assert kinds(proto).count("Conv") == length


@needs_onnx
@at_most(40)
@given(models(), st.sampled_from([13, 20, 21, 25]), st.data())
def test_drawn_models(model, opset, data):
    dtypes = {dtype_of(rep) for layer in model.layers for rep in layer.parameters().values()}
    assume(dtypes <= {F})
    assert all(min(shape) > 0 for shape in value_shapes(model, (5, 4, 2)))
    x = RNG_IMAGE if data.draw(st.booleans()) else np.zeros((1, 5, 4, 2), F)
    proto = law_weights(lambda *a: to_onnx(*a, opset=opset), model, x)
    law_outputs(lambda *_: proto, model, x)


RNG_IMAGE = np.random.default_rng(1).integers(-2, 3, (2, 5, 4, 2)).astype(F)


@needs_onnx
def test_float16_stays_float16():
    weight = (MATRIX * 4).astype(HALF)
    model = Sequential((Dense(quantize(weight, num_bits=8, axis=1).rep, weight[0]), ReLU()))
    x = np.rint(ROWS).astype(HALF)
    proto = law_weights(to_onnx, model, x)
    assert storage(proto) == ["INT8"]
    (got,) = run(proto, x)
    ((expected, bound),) = reference(model, x, HALF)
    assert got.dtype == HALF
    assert (np.abs(got - expected) <= bound).all()


# Files and refusals -------------------------------------------------------------------------------


@needs_onnx
def test_a_file_is_what_the_model_is(tmp_path):
    model = digits_cnn(np.random.default_rng(0))
    path = tmp_path / "model.onnx"
    written = save_onnx(model, path, (8, 8, 1), opset=17)
    assert written == path.stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    proto = onnx.load(path)
    assert proto == to_onnx(model, (8, 8, 1), opset=17)
    assert (proto.opset_import[0].version, proto.ir_version) == (17, 8)


class Odd(ReLU):
    """Derived from a layer that has a form, and not that layer."""


class Own(Layer):
    """A layer of somebody's own."""


REFUSED = {
    "a layer of one's own": (
        Sequential((ReLU(), Own())),
        (2,),
        r"layer 1 \(Own\) has no ONNX form",
    ),
    "a derived layer": (Sequential((Odd(),)), (2,), r"layer 0 \(Odd\) has no ONNX form"),
    "float64": (Sequential((Dense(np.ones((2, 2))),)), (2,), r"layer 0 \(Dense\).* not float64"),
    "two dtypes": (
        Sequential((Dense(np.ones((2, 2), F)), Dense(np.ones((2, 2), HALF)))),
        (2,),
        r"layer 1 \(Dense\) must be of float32 as layer 0 \(Dense\) is, not float16",
    ),
    "another shape": (Sequential((Dense(np.ones((2, 2), F)),)), (3,), r"layer 0 \(Dense\)"),
    "padding as wide as the window": (
        Sequential((MaxPool2D(2, padding=2),)),
        (4, 4, 1),
        r"layer 0 \(MaxPool2D\)",
    ),
    "no shape": (Sequential(()), (), "input_shape must be a tuple"),
    "a number": (Sequential(()), 3, "input_shape must be a tuple"),
    "a shape of nothing": (Sequential(()), (0,), r"input_shape\[0\] must be an int of at least 1"),
    "no model": ((ReLU(),), (3,), "model must be a Network or an IntegerModel, not tuple"),
}


@needs_onnx
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_refused_by_name(name):
    model, shape, message = REFUSED[name]
    with pytest.raises(CompressionError, match=message):
        to_onnx(model, shape)


@needs_onnx
@pytest.mark.parametrize("opset", [12, 26, 21.0])
def test_opsets_beyond_the_known_are_refused(opset):
    with pytest.raises(CompressionError, match="opset must be an int from 13 to 25"):
        to_onnx(Sequential(()), (1,), opset=opset)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CompressionError, match=r"^ONNX .* in the clone, pip install '\.\[onnx\]'$"):
        to_onnx(Sequential(()), (1,))


@needs_onnx
def test_the_examples_in_the_docstrings():
    module = importlib.import_module("minicompress.interchange.onnx_file")
    runner = doctest.DocTestRunner()
    for function in (to_onnx, save_onnx):
        text = function.__doc__.replace("  # doctest: +SKIP", "")
        examples = doctest.DocTestParser().get_doctest(text, dict(vars(module)), "it", None, 0)
        assert runner.run(examples) == (0, len(examples.examples))
