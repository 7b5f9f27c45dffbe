"""The .mcz file: the same model comes back, from exactly as many bytes, and from no others."""

import dataclasses
import hashlib
import importlib.util
import os
import subprocess
import sys
import time
import tracemalloc
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minicompress as mc
from minicompress.nn.layers import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Layer,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Sigmoid,
    Softmax,
    Tanh,
)
from minicompress.storage import container, sections
from minicompress.storage.container import dumps, load, loads, save
from minicompress.storage.sections import CODINGS, Writer
from minicompress.testing.checks import check_codec, check_pure, same
from minicompress.testing.models import models, reps

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
F4, F8 = np.dtype(np.float32), np.dtype(np.float64)


def one_dense(weight, bias=None):
    return mc.Sequential((Dense(weight, bias),))


def with_checksum(body):
    return body + zlib.crc32(body).to_bytes(4, "little")


def frame(bulk, coded):
    """A file of these two sections, with the checksum right."""
    return with_checksum(b"mcz\x01" + container.put_varint(len(bulk)) + bulk + coded)


# -- the models of the golden files: every layer, representation and coding, by formula -----------


def numbers(shape, dtype=F4):
    return ((np.arange(np.prod(shape)) * 37 % 64 - 31) / 16).astype(dtype).reshape(shape)


def codes(shape, dtype=np.int8):
    return (np.arange(np.prod(shape)) ** 2 * 7 % 15 - 7).astype(dtype).reshape(shape)


def quantized(codes, num_bits=4, dtype=F4, axis=None, block_size=None, zero_point=0):
    shape = codes.shape
    if axis is not None:
        n = shape[axis] if block_size is None else -(-shape[axis] // block_size)
        shape = (n,) if block_size is None else (*shape[:axis], n, *shape[axis + 1 :])
    grid = () if axis is None else shape
    scale = np.full(grid, 0.3, dtype)
    zero = np.full(grid, zero_point)
    return mc.Quantized(codes, scale, zero, num_bits, True, axis, block_size, dtype)


def every_layer():
    channels = [numbers((3,)), numbers((3,)), numbers((3,)), abs(numbers((3,)))]
    return mc.Sequential(
        (
            Conv2D(numbers((3, 3, 2, 4)), numbers((4,)), stride=(1, 2), padding="same"),
            ReLU(),
            Conv2D(numbers((2, 1, 2, 4)), padding=((0, 1), (2, 0)), dilation=(2, 1), groups=2),
            LeakyReLU(0.3),
            MaxPool2D(2, 1, "same"),
            AvgPool2D((2, 1), count_include_pad=True),
            Dropout(0.25),
            Conv2D(numbers((1, 1, 4, 3))),
            BatchNorm(*channels, epsilon=0.001),
            Tanh(),
            GlobalAvgPool2D(),
            Flatten(),
            Dense(numbers((3, 5)), numbers((5,))),
            Sigmoid(),
            LeakyReLU(),
            Dense(numbers((5, 2))),
            Softmax(),
        )
    )


def every_representation():
    half = np.dtype(np.float16)
    places = np.array([0, 5, 6, 40])
    nested = mc.Sparse((7, 6), places, mc.Clustered(np.array([0, 2, 1, 2]), numbers((3,))))
    factors = (
        quantized(codes((6, 2)), axis=1),
        mc.Sparse((2, 8), np.array([1, 9]), numbers((2,))),
    )
    kernel = mc.LowRank(
        (numbers((2, 2), half), numbers((3, 3, 2, 2), half), numbers((2, 4), half)),
        "ia,hwab,bo->hwio",
    )
    return mc.Sequential(
        (
            Conv2D(kernel, mc.Clustered(np.array([0, 1, 1, 0]), numbers((2,), half))),
            Conv2D(mc.channel_svd(numbers((2, 2, 3, 4), F8), rank=2).rep),
            Conv2D(mc.spatial_svd(numbers((2, 2, 3, 4)), rank=2).rep),
            Dense(nested, quantized(codes((6,)), zero_point=-1)),
            Dense(mc.LowRank(factors, "ir,ro->io")),
            Dense(mc.LowRank((numbers((2, 8)), numbers((3, 2))), "ri,or->io")),
            Dense(quantized(codes((3, 300)), axis=1, block_size=7, dtype=F8)),
            Dense(quantized(mc.Sparse((300, 9), np.arange(3, 2700, 50), codes((54,)) | 8), 5)),
            Dense(quantized(codes((9, 4), np.int64), num_bits=16)),
            Dense(np.zeros((0, 3), F4)),
        )
    )


def pruned_network():
    """Dead rows and columns, neighbours, two streams that Huffman or packing would be long for."""
    i, j = np.meshgrid(np.arange(784), np.arange(40), indexing="ij")
    first = np.where(((i // 28 + j) % 9 < 2) & ((i * j) % 11 < 2) & (j % 3 > 0), 1 + i % 2, 0)
    second = np.where((np.arange(400) * 7919 % 97) < 9, -1, 0).reshape(40, 10)
    return mc.Sequential(
        (
            Flatten(),
            Dense(quantized(first.astype(np.int8)), quantized(codes((40,), np.int8))),
            ReLU(),
            Dense(quantized(second.astype(np.int8)), quantized(np.zeros(10, np.int8))),
        )
    )


GOLDEN_MODELS = {
    "every_layer": (every_layer, "smallest"),
    "every_representation": (every_representation, "smallest"),
    "pruned_network": (pruned_network, "smallest"),
    "pruned_network_huffman": (pruned_network, "huffman"),
    "pruned_network_packed": (pruned_network, "packed"),
}
# Of the decoded models. These lines are never to be changed: version 1 decodes for ever.
DIGESTS = {
    "every_layer": "f19f403c31ad579ab5b705b704d424eed6c2c71ff0f892dbf7a2f0a09ac4d58b",
    "every_representation": "f1e2e385420ead337176adec3924ebb2e8b54e0699275c8fe1b34603986551b3",
    "pruned_network": "7b9652f5d82af3a0f6f2fbed2f924107b67d1cf8ba65f06d9168a45f69f7cb89",
    "pruned_network_huffman": "7b9652f5d82af3a0f6f2fbed2f924107b67d1cf8ba65f06d9168a45f69f7cb89",
    "pruned_network_packed": "7b9652f5d82af3a0f6f2fbed2f924107b67d1cf8ba65f06d9168a45f69f7cb89",
}


def digest(model):
    """sha256 of all that a model holds: types, fields, and arrays with dtype, shape and bytes."""
    total = hashlib.sha256()

    def add(value):
        if isinstance(value, np.ndarray):
            little = value.astype(value.dtype.newbyteorder("<"))
            total.update(f"{value.dtype.name}{value.shape}".encode() + little.tobytes())
        elif dataclasses.is_dataclass(value):
            total.update(type(value).__name__.encode())
            for field in dataclasses.fields(value):
                total.update(field.name.encode())
                add(getattr(value, field.name))
        elif isinstance(value, tuple):
            total.update(f"tuple{len(value)}".encode())
            for item in value:
                add(item)
        else:
            total.update(str(value).encode())

    add(model)
    return total.hexdigest()


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_golden_files_decode_for_ever(name):
    model = load(GOLDEN / f"{name}.mcz")
    assert digest(model) == DIGESTS[name]
    assert same(model, GOLDEN_MODELS[name][0]())


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_the_same_model_is_the_same_file_on_every_machine(name):
    """A writer that becomes better may write less: then this test changes, the files do not."""
    make, coding = GOLDEN_MODELS[name]
    assert dumps(make(), coding=coding) == (GOLDEN / f"{name}.mcz").read_bytes()


# -- the round trip --------------------------------------------------------------------------------


def law_round_trip(encode, decode, model):
    check_codec(encode, decode, model)
    for layer in decode(encode(model)).layers:
        for rep in layer.parameters().values():
            assert not mc.decode(rep).flags.writeable


@given(models(), st.sampled_from(sorted(container.CHOICES)))
def test_any_model_survives(model, coding):
    law_round_trip(partial(dumps, coding=coding), loads, model)
    assert len(dumps(model)) <= len(dumps(model, coding=coding))


def law_same_outputs(encode, decode, model, x):
    assert decode(encode(model))(x).tobytes() == model(x).tobytes()


@given(models())
def test_any_model_computes_the_same(model):
    dtype = next((a.dtype for a in floats_of(model)), F4)
    with np.errstate(all="ignore"):
        law_same_outputs(dumps, loads, model, numbers((2, 5, 4, 2), dtype))


def floats_of(model):
    for weights in mc.parameters(model):
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


@pytest.mark.parametrize("value", [-0.0, np.nan, np.inf, 5e-324, 1.7e308])
def test_floats_survive_bit_for_bit(value):
    law_round_trip(dumps, loads, one_dense(np.full((2, 2), value)))
    negative_nan = np.array([0xFFF8_0000_0000_0001], np.uint64).view(np.float64)
    law_round_trip(dumps, loads, one_dense(negative_nan.reshape(1, 1)))


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
        "huffman": None,
        "sequence": rng.permutation(np.repeat([0, 3, 9], [900, 50, 50])).reshape(-1, 1),
        "matrix": pruned_network().layers[1].weight.codes,
    }[coding]
    if best is None:  # what a range coder may not take the time for
        best = costly_to_decode().layers[0].weight.codes
    writer = Writer()
    writer.integers(best.shape, np.dtype(np.int64), best)
    reader = sections.Reader(writer.coder.finish(), bytes(writer.bulk), 2**28)
    assert CODINGS[reader.number("coding", 0)] == coding


# -- sizes -----------------------------------------------------------------------------------------


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
    scales = sum(rep.scale.nbytes for weights in mc.parameters(model) for rep in weights.values())
    assert len(dumps(model)) - scales < 40


def test_plain_weights_take_their_bytes():
    model = mc.lenet_300_100(np.random.default_rng(0))
    assert len(dumps(model)) < 4 * 266_610 + 40


# -- damage ----------------------------------------------------------------------------------------


def law_refused(decode, blob, why=None):
    try:
        decode(blob)
    except mc.FileFormatError as error:
        message = str(error)
    else:
        raise AssertionError(f"{blob.hex()} was believed")
    assert why is None or why in message, message


SMALL = dumps(mc.Sequential((Dense(quantized(codes((4, 3))), numbers((3,))), ReLU())))


def test_every_change_of_a_byte_is_refused():
    assert len(SMALL) < 60
    for place in range(len(SMALL)):
        for flip in range(1, 256):
            altered = bytearray(SMALL)
            altered[place] ^= flip
            law_refused(loads, bytes(altered))


def law_no_truncation(decode, blob):
    for length in range(len(blob)):
        law_refused(decode, blob[:length])


def law_nothing_appended(decode, blob):
    for more in (b"\0", b"\n", bytes(100), blob):
        law_refused(decode, blob + more)
        law_refused(decode, with_checksum(blob[:-4] + more))  # the checksum made right again


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_truncated_and_appended_to(name):
    blob = (GOLDEN / f"{name}.mcz").read_bytes()
    law_nothing_appended(loads, blob)
    law_no_truncation(loads, blob[::1])


def test_with_the_checksum_right_a_truncated_file_is_refused_or_says_something_else():
    for length in range(len(SMALL) - 4):
        blob = with_checksum(SMALL[:length])
        try:
            model = loads(blob)
        except mc.FileFormatError:
            continue
        assert same(loads(dumps(model)), model)


def test_other_versions_are_named():
    for version in (0, 2, 255):
        for blob in (SMALL[:3] + bytes([version]) + SMALL[4:], b"mcz" + bytes([version])):
            law_refused(loads, blob, f"version {version}")
            law_refused(loads, with_checksum(blob), f"version {version}")


def test_other_files_are_named():
    for blob in (b"", b"m", b"mc", b"PK\x03\x04", b"\x89PNG", b"MCZ\x01" + SMALL[4:]):
        law_refused(loads, blob, "no .mcz file")


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_no_weight_makes_loading_warn(value):
    """Warnings are errors here."""
    arrays = [np.full(2, value, np.float32)] * 4
    model = mc.Sequential((Dense(arrays[0].reshape(1, 2)),))
    with np.errstate(all="ignore"):
        model = mc.Sequential((*model.layers, BatchNorm(*arrays)))
    law_round_trip(dumps, loads, model)


@settings(max_examples=200)
@given(st.binary(max_size=40), st.binary(max_size=60))
def test_any_bytes_are_refused_or_are_a_model(bulk, coded):
    try:
        model = loads(frame(bulk, coded), max_bytes=10**6)
    except mc.FileFormatError:
        return
    assert same(loads(dumps(model)), model)


def fuzzer():
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "examples" / "fuzz_container.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fuzz_command(capsys):
    assert fuzzer().main(["--files", "300", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert "0 altered files were believed" in printed
    assert "another model" in printed


# -- bombs -----------------------------------------------------------------------------------------


class Liar(Writer):
    """Writes another number than it is given, under one name; integers as it is told."""

    def __init__(self, name, lie, coding=None):
        super().__init__()
        self.name, self.lie, self.coding = name, lie, coding

    def number(self, name, value):
        super().number(name, self.lie if name == self.name else value)
        return value

    def integers(self, shape, dtype, array):
        if self.coding is None:
            return super().integers(shape, dtype, array)
        self._put_integers(self.coding, array.ravel().astype(np.int64), shape)
        return array


def lying(name, lie, model, coding=None):
    writer = Liar(name, lie, coding)
    container._code_model(writer, model.layers)
    return frame(bytes(writer.bulk), writer.coder.finish())


def empty_sparse(*shape):
    return mc.Sparse(shape, np.zeros(0, int), np.zeros(0))


def alternating(count):
    """Codes that cost no bits to speak of, once they are learned."""
    writer = Writer(("sequence",))
    writer.number("layers", 1)
    writer.number("layer", 0)
    writer.number("size", 1)  # inputs
    writer.number("kind", 1)
    writer.number("dtype", 1)
    writer.number("size", count)
    writer.number("bits", 2)
    writer.flag("signed", True)
    writer.number("axis", 0)
    writer.flag("usual codes", True)
    writer.number("kind", 0)
    writer._put_integers("sequence", np.arange(count) % 2, (1, count))
    return frame(b"", writer.coder.finish())


BOMBS = {
    "an empty sparse matrix": lambda: dumps(one_dense(empty_sparse(2**16, 2**16))),
    "a product of thin factors": lambda: dumps(
        one_dense(mc.LowRank((empty_sparse(2**16, 1), empty_sparse(1, 2**16)), "ir,ro->io"))
    ),
    "rows of a plain array": lambda: lying("size", 2**40, one_dense(np.ones((1, 1)))),
    "no rows, but very many columns": lambda: lying("size", 2**62, one_dense(empty_sparse(0, 1))),
    "zeros, which take no bytes": lambda: lying("size", 2**20, one_dense(np.zeros((1, 1)))),
    "codes of no bits": lambda: lying(
        "size", 2**20, one_dense(quantized(np.zeros((1, 1), np.int8))), "packed"
    ),
    "codes of one symbol, Huffman": lambda: lying(
        "size", 2**14, one_dense(quantized(np.zeros((1, 1), np.int8))), "huffman"
    ),
    "codes of one symbol, range coder": lambda: lying(
        "size", 2**16, one_dense(quantized(np.zeros((1, 1), np.int8))), "sequence"
    ),
    "a codebook": lambda: lying(
        "codebook", 2**40, one_dense(mc.Clustered(np.zeros((1, 1), int), np.ones(1)))
    ),
    "a count of indices": lambda: lying(
        "count", 2**40, one_dense(mc.Sparse((2000, 2000), np.arange(2), np.ones(2)))
    ),
    "a count of layers": lambda: lying("layers", 2**60, mc.Sequential((ReLU(),))),
    "a length of Huffman's": lambda: lying(
        "length", 2**40, one_dense(quantized(np.ones((2, 2), np.int8))), "huffman"
    ),
    "the length of the bulk": lambda: with_checksum(b"mcz\x01" + container.put_varint(2**62)),
    "600,000 decisions": lambda: alternating(300_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_memory_is_taken(name):
    blob = BOMBS[name]()
    assert len(blob) < 200
    start = time.perf_counter()
    law_refused(loads, blob)
    seconds = time.perf_counter() - start
    tracemalloc.start()
    law_refused(loads, blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20  # what half a million decisions may fill
    assert seconds < 5  # one, on a machine that does nothing else


def test_max_bytes_is_what_the_weights_take():
    model = one_dense(empty_sparse(100, 100))
    assert same(loads(dumps(model), max_bytes=10**5), model)
    law_refused(partial(loads, max_bytes=8 * 100 * 100 - 1), dumps(model), "max_bytes")
    large = one_dense(empty_sparse(2**13, 2**13))
    assert same(loads(dumps(large), max_bytes=2**30), large)
    law_refused(loads, dumps(large), "max_bytes")


def law_readable(encode, model):
    """No file is written that cannot be read again, however cheap its codes are."""
    assert same(loads(encode(model)), model)


def costly_to_decode():
    """A million decisions for a few bytes: other codings must be taken."""
    array = np.add.outer(np.arange(64), np.arange(2**13)).astype(np.int8) % 2
    array[0, 0] = 2
    return one_dense(quantized(array))


def test_a_file_that_takes_too_long_is_not_written():
    law_readable(dumps, costly_to_decode())


def test_the_number_of_parts_is_limited():
    most = sections.MOST_PARTS
    law_round_trip(dumps, loads, mc.Sequential((ReLU(),) * most))
    with pytest.raises(mc.CompressionError, match=f"more than {most}"):
        dumps(mc.Sequential((ReLU(),) * (most + 1)))


def test_nesting_is_limited():
    def nested(depth):
        rep = np.ones(1)
        for _ in range(depth):
            rep = mc.Sparse((1,), np.array([0]), rep)
        return one_dense(np.ones((1, 1)), rep)

    law_round_trip(dumps, loads, nested(16))
    with pytest.raises(mc.CompressionError, match="deeper than 16"):
        dumps(nested(17))


WRONG_NUMBERS = {
    ("layer", 13): "layer must be less than 13",
    ("kind", 5): "kind must be less than 5",
    ("dtype", 11): "dtype must be less than 11",
    ("coding", 4): "coding must be less than 4",
    ("coding", 1): "",
    ("bits", 1): "num_bits",
    ("bits", 2**50): "num_bits",
    ("axis", 4): "axis",
    ("bytes", 9): "bytes must be less than",
    ("size", 7): "",
    ("width", 65): "width must be less than 65",
    ("least", 2**40): "do not fit int8",
}


@pytest.mark.parametrize("name", WRONG_NUMBERS)
def test_numbers_that_cannot_be_are_refused(name):
    law_refused(
        loads, lying(*name, one_dense(quantized(codes((4, 3)))), "packed"), WRONG_NUMBERS[name]
    )


# -- what is refused, and what is left behind ------------------------------------------------------


class Doubling(Layer):
    """A layer of somebody's own."""

    def forward(self, x):
        return 2 * x


class Better(ReLU):
    """A subclass is another type: read back, it would be one no more."""


@pytest.mark.parametrize("layer", [Doubling(), Better()])
def test_a_layer_that_the_format_does_not_know_is_named(layer):
    with pytest.raises(mc.CompressionError, match=rf"layers\[1\] is a {type(layer).__name__}"):
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


# -- an independent reader, by FORMAT.md alone -----------------------------------------------------


class Plain:
    """The range decoder as the format has it."""

    def __init__(self, blob):
        self.blob, self.place, self.range, self.contexts = blob + bytes(8), 4, 2**32, {}
        self.code = int.from_bytes(self.blob[:4], "big")

    def widen(self):
        while self.range < 2**24:
            self.code = 256 * self.code + self.blob[self.place]
            self.range, self.place = self.range * 256, self.place + 1

    def decision(self, *name):
        z, o = self.contexts.get(name, (1, 1))
        split = self.range * z // (z + o)
        bit = int(self.code >= split)
        self.code, self.range = (
            (self.code - split, self.range - split) if bit else (self.code, split)
        )
        self.contexts[name] = (z, o + 2) if bit else (z + 2, o)
        self.widen()
        return bit

    def number(self, kind):
        n = 0
        while self.decision(kind, n):
            n += 1
        value = 1
        for i in range(n):
            if i < 8:
                value = 2 * value + self.decision(kind, n, value)
        if n > 8:
            self.range //= 2 ** (n - 8)
            value = value * 2 ** (n - 8) + self.code // self.range
            self.code %= self.range
            self.widen()
        return value - 1


def test_a_file_can_be_read_by_its_specification():
    weight, bias = numbers((784, 3)), numbers((3,))
    blob = dumps(mc.Sequential((Flatten(), Dense(weight, bias), ReLU())))
    assert blob[:4] == b"mcz\x01"
    length, place, shift = 0, 4, 0
    while True:
        length |= (blob[place] & 127) << shift
        place, shift = place + 1, shift + 7
        if blob[place - 1] < 128:
            break
    bulk, coder = blob[place : place + length], Plain(blob[place + length : -4])
    assert coder.number("layers") == 3
    assert coder.number("layer") == 4  # Flatten
    assert coder.number("layer") == 0  # Dense
    assert coder.number("size") == 784
    assert (coder.number("kind"), coder.number("dtype")) == (0, 1)
    assert coder.number("size") == 3
    kept = 4 - coder.number("bytes")
    entries = [bulk[i : i + kept].ljust(4, b"\0") for i in range(0, 784 * 3 * kept, kept)]
    assert np.frombuffer(b"".join(entries), ">f4").tolist() == weight.ravel().tolist()
    assert coder.decision("bias") == 1
    assert coder.number("kind") == 0
    assert 4 - coder.number("bytes") == kept
    assert coder.number("layer") == 1  # ReLU


# -- planted: wrong implementations that the laws catch --------------------------------------------


def careless(blob):
    """A reader that does not look at the checksum."""
    return loads(with_checksum(blob[:-4]))


def lenient(blob):
    """A reader that stops where the model ends."""
    for end in range(len(blob), 3, -1):
        try:
            return loads(with_checksum(blob[: end - 4]))
        except mc.FileFormatError:
            pass
    raise mc.FileFormatError("no model")


def forgetful(model):
    """A writer that decodes what is nested."""
    return dumps(mc.decoded(model))


def rounded(model):
    """A writer of float16."""
    return dumps(one_dense(model.layers[0].weight.astype(np.float16).astype(np.float64)))


def tireless(model):
    """A writer that does not count decisions."""
    writer = Writer(("sequence",))
    writer._cost = None
    unlimited, sections.FREE_WORK = sections.FREE_WORK, 2**60
    try:
        container._code_model(writer, model.layers)
    finally:
        sections.FREE_WORK = unlimited
    return frame(bytes(writer.bulk), writer.coder.finish())


THIRD = one_dense(np.full((1, 1), 1 / 3))
PLANTED = {
    "the checksum is not looked at": (
        lambda read: law_refused(read, SMALL[:-1] + bytes([SMALL[-1] ^ 1])), careless),
    "what is appended is not seen": (lambda read: law_nothing_appended(read, SMALL), lenient),
    "representations are decoded": (
        lambda write: law_round_trip(write, loads, every_representation()), forgetful),
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
