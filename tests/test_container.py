"""The .mcz file: what goes in comes out, in so many bytes, whole or not at all."""

import dataclasses
import hashlib
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from container_models import (
    F4,
    F8,
    GOLDEN_MODELS,
    ROOT,
    SMALL,
    codes,
    costly_to_decode,
    every_layer,
    every_representation,
    frame,
    law_readable,
    law_round_trip,
    numbers,
    one_dense,
    pruned_network,
    quantized,
    residual_network,
)
from hypothesis import given
from hypothesis import strategies as st

import minicompress as mc
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import as_tuple
from minicompress.nn.pointwise import Clip, ReLU
from minicompress.storage import container, networks, sections
from minicompress.storage.container import dumps, load, loads, save
from minicompress.storage.sections import CODINGS, Writer
from minicompress.testing.checks import check_pure, same
from minicompress.testing.models import models, reps

# the round trip -----------------------------------------------------------------------------------


@given(models(), st.sampled_from(sorted(container.CHOICES)))
def test_any_model_survives(model, coding):
    law_round_trip(partial(dumps, coding=coding), loads, model)
    assert len(dumps(model)) <= len(dumps(model, coding=coding))


def law_same_outputs(encode, decode, model, x):
    found, wanted = as_tuple(decode(encode(model))(x)), as_tuple(model(x))
    assert [y.tobytes() for y in found] == [y.tobytes() for y in wanted]


def test_reals_survive_bit_for_bit():
    """A zero has a sign, a limit may be infinite, and what is usual is not written."""
    for low in (-math.inf, -0.0, 0.0, 5e-324):
        for high in (math.inf, 6.0, np.nextafter(6, 7)):
            law_round_trip(dumps, loads, mc.Sequential((Clip(low, high),)))
    arrays = [np.ones(1)] * 4
    for epsilon in (1, 1e-5, np.float64(0.1)):
        epsilon_read = loads(dumps(mc.Sequential((BatchNorm(*arrays, epsilon),)))).layers[0].epsilon
        assert epsilon_read == epsilon


@given(models(chain=True))
def test_a_chain_has_no_bytes_for_what_its_layers_read(model):
    """As long as the same layers are read as ever: nothing is written but the layers."""
    kinds = []

    class Noting(Writer):
        def number(self, name, value):
            kinds.append(name)
            return super().number(name, value)

    networks.code_network(Noting(), model)
    assert not {"back", "reads"} & {*kinds}
    assert ({"program", "outputs", "output"} & {*kinds} == set()) == bool(model.layers)


def test_a_program_takes_few_bytes_more_than_its_layers():
    """Of 25 layers, all but 6 read the value before."""
    network = residual_network()
    chain = [mc.Add() if type(layer) is mc.Multiply else layer for layer in network.layers]
    assert len(dumps(network)) <= len(dumps(mc.Sequential(chain))) + 16


@given(models())
def test_any_model_computes_the_same(model):
    dtype = next((a.dtype for a in floats_of(model)), F4)
    with np.errstate(all="ignore"):
        law_same_outputs(dumps, loads, model, numbers((2, 5, 4, 2), dtype))


def floats_of(model):
    for weights in mc.nn.parameters(model):
        yield from (mc.decode(rep) for rep in weights.values())


@given(st.sampled_from([(), (3,), (2, 3), (2, 1, 2), (1, 2, 1, 3)]).flatmap(lambda s: reps(s, F8)))
def test_any_representation_survives(rep):
    """As the factor of another, where it need not be a weight of a layer."""
    letters = "abcd"[: np.ndim(mc.decode(rep))]
    outer = mc.LowRank((np.ones((2, 3)), np.ones((3, 2))), "ir,ro->io")
    if len(letters) == 2:
        outer = mc.LowRank((rep, np.ones((3, 2))), "ir,ro->io")
    elif letters:
        other = np.ones((*np.shape(mc.decode(rep))[1:], 5))
        text = f"{letters},{letters[1:]}z->{letters[0]}z"
        outer = mc.LowRank((rep, other), text)
    law_round_trip(dumps, loads, one_dense(outer))


@pytest.mark.parametrize("value", [-0.0, 5e-324, 1.7e308])
def test_floats_survive_bit_for_bit(value):
    law_round_trip(dumps, loads, one_dense(np.full((2, 2), value)))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("coding", container.CHOICES)
def test_codes_of_every_dtype_survive(dtype, coding):
    array = (np.arange(60) % 4).astype(dtype).reshape(12, 5)
    law_round_trip(partial(dumps, coding=coding), loads, one_dense(quantized(array)))


def test_zero_points_may_be_any_int64():
    ends = np.array([-(2**62), 2**62 - 1, 0])
    rep = mc.Quantized(codes((2, 3)), np.ones(3), ends, 4, True, 1, None, F8)
    law_round_trip(dumps, loads, one_dense(rep))


def test_models_without_layers_or_entries():
    law_round_trip(dumps, loads, mc.Sequential(()))
    law_round_trip(dumps, loads, one_dense(np.zeros((0, 0)), np.zeros(0)))
    law_round_trip(dumps, loads, one_dense(quantized(np.zeros((3, 0), np.int8), axis=0)))
    law_round_trip(dumps, loads, one_dense(mc.Sparse((0, 4), np.zeros(0, int), np.zeros(0))))


def test_everything_is_pure():
    check_pure(dumps, every_representation())
    check_pure(loads, dumps(every_layer()))


@pytest.mark.parametrize("coding", CODINGS)
def test_each_coding_is_chosen_where_it_is_shortest(coding):
    """Were one of them never the shortest, it would have no place in the format."""
    rng = np.random.default_rng(0)
    best = {
        "packed": rng.integers(0, 256, (40, 50)),
        # What a range coder may not take the time for.
        "huffman": costly_to_decode().layers[0].weight.codes,
        "sequence": rng.permutation(np.repeat([0, 3, 9], [900, 50, 50])).reshape(-1, 1),
        "matrix": pruned_network().layers[1].weight.codes,
    }[coding]
    writer = Writer()
    writer.integers(best.shape, np.dtype(np.int64), best)
    reader = sections.Reader(writer.coder.finish(), bytes(writer.bulk), 2**28)
    assert CODINGS[reader.number("coding", 0)] == coding


# sizes --------------------------------------------------------------------------------------------


def test_the_length_is_that_of_the_file(tmp_path):
    for name, (make, coding) in GOLDEN_MODELS.items():
        path = tmp_path / f"{name}.mcz"
        assert save(make(), path, coding=coding) == os.path.getsize(path)
        assert same(load(str(path)), make())


def zeros(layer):
    """The layer with int4 weights, all zero: streams that take next to nothing."""
    if not isinstance(layer, Conv2D | Dense):
        return layer
    weight, bias = (quantized(np.zeros(a.shape, np.int8)) for a in (layer.weight, layer.bias))
    return dataclasses.replace(layer, weight=weight, bias=bias)


@pytest.mark.parametrize("network", [mc.lenet_300_100, mc.lenet5])
def test_a_lenet_needs_less_than_40_bytes_beside_its_payload(network):
    model = mc.Sequential(tuple(map(zeros, network(np.random.default_rng(0)).layers)))
    scales = sum(
        rep.scale.nbytes for weights in mc.nn.parameters(model) for rep in weights.values()
    )
    assert len(dumps(model)) - scales < 40


def test_plain_weights_take_their_bytes():
    model = mc.lenet_300_100(np.random.default_rng(0))
    assert len(dumps(model)) < 4 * 266_610 + 40


# what is refused, and what is left behind ---------------------------------------------------------


class Doubling(Layer):
    """A layer of somebody's own."""

    def forward(self, x):
        return 2 * x


class Better(ReLU):
    """A subclass is another type: read back, it would be one no more."""


@pytest.mark.parametrize("layer", [Doubling(), Better()])
def test_a_layer_that_the_format_does_not_know_is_named(layer):
    with pytest.raises(mc.CompressionError, match=rf"layer 1 \({type(layer).__name__}\): the file"):
        dumps(mc.Sequential((ReLU(), layer)))


def test_wrong_arguments(tmp_path):
    model = one_dense(np.ones((1, 1)))
    for call, name in {
        partial(dumps, "model"): "model",
        partial(dumps, model, coding="zip"): "coding",
        partial(save, model, 5): "path",
        partial(save, model, "a\0b"): "path",
        partial(load, 5): "path",
        partial(load, "a\0b"): "path",
        partial(loads, "text"): "blob",
        partial(loads, SMALL, max_bytes=-1): "max_bytes",
        partial(load, tmp_path, max_bytes=1.5): "max_bytes",
    }.items():
        with pytest.raises(mc.CompressionError, match=name):
            call()


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.mcz").write_bytes(b"")
    (tmp_path / "large.mcz").write_bytes(SMALL + bytes(10_000))
    for name in ("missing.mcz", "", "empty.mcz"):
        with pytest.raises(mc.FileFormatError):
            load(tmp_path / name)
    with pytest.raises(mc.FileFormatError, match=r"large\.mcz is larger than max_bytes"):
        load(tmp_path / "large.mcz", max_bytes=1000)


def test_a_file_is_whole_or_is_not_there(tmp_path, monkeypatch):
    path = tmp_path / "model.mcz"
    save(every_layer(), path)
    before = path.read_bytes()

    def failing(source, target):
        assert Path(source).read_bytes() == dumps(every_representation())  # written beside
        assert path.read_bytes() == before
        raise OSError("no")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no"):
        save(every_representation(), path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["model.mcz"]
    assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError):
        save(every_layer(), tmp_path / "no such folder" / "model.mcz")
    with pytest.raises(OSError):  # noqa: PT011 -- whatever the system calls it
        save(every_layer(), tmp_path)
    assert [p.name for p in tmp_path.parent.glob("*.part")] == []
    save(every_representation(), path)
    assert same(load(path), every_representation())


def test_a_link_stays_and_what_is_no_file_is_written_to_as_it_is(tmp_path):
    (tmp_path / "link.mcz").symlink_to(tmp_path / "target.mcz")
    for model in (every_layer(), every_representation()):
        save(model, tmp_path / "link.mcz")
        assert (tmp_path / "link.mcz").is_symlink()
        assert same(load(tmp_path / "target.mcz"), model)
    reading, writing = os.pipe()
    size = save(every_layer(), f"/dev/fd/{writing}")
    assert os.read(reading, size + 1) == dumps(every_layer())
    os.close(reading)
    os.close(writing)


def test_nothing_is_executed():
    for path in (ROOT / "minicompress" / "storage").glob("*.py"):
        for word in ("pickle", "eval(", "exec(", "marshal", "allow_pickle", "__import__"):
            assert word not in path.read_text().replace("never pickle", ""), path.name


def test_a_fresh_process_computes_the_same(tmp_path):
    x, _ = mc.load_digits("validation")
    model = mc.digits_cnn(np.random.default_rng(0))
    layers = list(model.layers)
    layers[2] = dataclasses.replace(layers[2], weight=mc.spatial_svd(layers[2].weight, rank=4).rep)
    layers[5] = dataclasses.replace(layers[5], weight=mc.quantize(layers[5].weight, axis=1).rep)
    model = mc.Sequential(tuple(layers))
    save(model, tmp_path / "model.mcz")
    code = """
import sys, hashlib, minicompress as mc
from minicompress.storage.container import load
x, _ = mc.load_digits("validation")
print(hashlib.sha256(load(sys.argv[1])(x[:50]).tobytes()).hexdigest())
"""
    printed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.mcz")],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
        timeout=120,
    ).stdout  # fmt: skip
    assert printed.split() == [hashlib.sha256(model(x[:50]).tobytes()).hexdigest()]


# planted: wrong implementations that the laws catch -----------------------------------------------


def forgetful(model):
    """A writer that decodes what is nested."""
    return dumps(mc.nn.decoded(model))


def chained(model):
    """A writer that does not tell what layers read."""
    return dumps(mc.Sequential(model.layers))


def rounded(model):
    """A writer of float16."""
    return dumps(one_dense(model.layers[0].weight.astype(np.float16).astype(np.float64)))


def tireless(model):
    """A writer that does not count decisions."""
    writer = Writer(("sequence",))
    writer._cost = None
    unlimited, sections.FREE_WORK = sections.FREE_WORK, 2**60
    try:
        networks.code_network(writer, model)
    finally:
        sections.FREE_WORK = unlimited
    return frame(bytes(writer.bulk), writer.coder.finish())


THIRD = one_dense(np.full((1, 1), 1 / 3))

PLANTED = {
    "representations are decoded": (
        lambda write: law_round_trip(write, loads, every_representation()), forgetful),
    "what layers read is lost": (
        lambda write: law_round_trip(write, loads, mc.Residual(ReLU(), ReLU())), chained),
    "a dtype is lost": (lambda write: law_round_trip(write, loads, THIRD), rounded),
    "outputs differ": (
        lambda write: law_same_outputs(write, loads, THIRD, np.ones((1, 1))), rounded),
    "reading takes for ever": (
        lambda write: law_refusable(write, costly_to_decode()), tireless),
}  # fmt: skip


def law_refusable(write, model):
    """`law_readable`, with the refusal as the broken law that it is."""
    try:
        law_readable(write, model)
    except mc.FileFormatError as error:
        raise AssertionError(str(error)) from None


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_files_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
