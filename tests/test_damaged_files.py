"""The .mcz file: what is damaged, lies or would take too much is refused."""

import importlib.util
import time
import tracemalloc
from functools import partial

import numpy as np
import pytest
from budgets import at_most
from container_models import (
    F4,
    F8,
    GOLDEN,
    GOLDEN_MODELS,
    ROOT,
    SMALL,
    codes,
    costly_to_decode,
    frame,
    law_readable,
    law_round_trip,
    one_dense,
    quantized,
    with_checksum,
)
from hypothesis import given
from hypothesis import strategies as st

import minicompress as mc
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import ReLU
from minicompress.storage import container, networks, sections
from minicompress.storage.container import dumps, loads
from minicompress.storage.sections import Writer
from minicompress.testing.checks import same

# damage -------------------------------------------------------------------------------------------


def law_refused(decode, blob, why=None):
    try:
        decode(blob)
    except mc.FileFormatError as error:
        message = str(error)
    else:
        raise AssertionError(f"{blob.hex()} was believed")
    assert why is None or why in message, message


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


def test_no_weight_makes_loading_warn():
    """Warnings are errors here."""
    arrays = [np.full(2, 3e38, np.float32)] * 4
    model = mc.Sequential((Dense(arrays[0].reshape(1, 2)),))
    with np.errstate(all="ignore"):
        model = mc.Sequential((*model.layers, BatchNorm(*arrays)))
    law_round_trip(dumps, loads, model)


@at_most(200)
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


# bombs --------------------------------------------------------------------------------------------


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
    networks.code_network(writer, model)
    return frame(bytes(writer.bulk), writer.coder.finish())


def empty_sparse(*shape):
    return mc.Sparse(shape, np.zeros(0, int), np.zeros(0))


def begun(inputs, kind, dtype):
    """A writer in the middle of a network of one dense layer: its weight's kind is written."""
    writer = Writer()
    for name, value in (("layers", 1), ("layer", 0), ("size", inputs)):
        writer.number(name, value)
    writer.number("kind", kind)
    writer.number("dtype", dtype)
    return writer


def alternating(count):
    """Codes that cost no bits to speak of, once they are learned."""
    writer = begun(1, 1, 1)
    writer.number("size", count)
    writer.number("bits", 2)
    writer.flag("signed", True)
    writer.number("axis", 0)
    writer.flag("usual codes", True)
    writer.number("kind", 0)
    writer._put_integers("sequence", np.arange(count) % 2, (1, count))
    return frame(b"", writer.coder.finish())


def bitmap_of_ones(count):
    """A column of which every entry is there, in a bitmap that takes no bits."""
    writer = begun(count, 2, 0)
    writer.number("size", 1)
    writer.number("form", 1)
    writer._put_integers("packed", np.ones(1, np.int64), (1,))
    return frame(b"", writer.coder.finish())


SHORTCUT = mc.Residual(Dense(np.ones((1, 1))), Dense(np.ones((1, 1))))


def reading_again(count):
    """A sum of one value and itself, so many times, at next to no bits each."""
    writer = Writer()
    for name, value in (("layers", 0), ("program", 1), ("layer", 16), ("reads", count - 1)):
        writer.number(name, value)
    for _ in range(count):
        writer.number("back", 0)
    return frame(b"", writer.coder.finish())


BOMBS = {
    "a bitmap of ones": lambda: bitmap_of_ones(2**28 // 10),
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
    "a count of layers, not of a chain": lambda: lying("program", 2**60, SHORTCUT),
    "a count of values that a layer reads": lambda: lying("reads", 2**60, SHORTCUT),
    "a count of outputs": lambda: lying("outputs", 2**60, SHORTCUT),
    "a value that is read 600,000 times": lambda: reading_again(600_000),
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


def subscripted(subscripts, shape):
    """A network whose weight has factors by these subscripts, the first of so many axes."""
    writer = begun(1, 4, 1)
    writer.number("subscripts", 0)
    writer.number("text", len(subscripts))
    for letter in subscripts:
        writer.number("letter", ord(letter))
    writer.number("kind", 0)
    for size in shape:
        writer.number("size", size)
    writer.number("bytes", 4)
    return frame(b"", writer.coder.finish())


def test_factors_of_too_many_axes_are_refused():
    law_refused(loads, subscripted("a" * 100 + ",x->io", 100 * (1,)), "every letter")
    many = "abcdefghjklmnpqrstuvwxyzABCDEFGHIJKLM"
    law_refused(loads, subscripted(f"i{many},{many}o->io", 38 * (1,)), "at most 32 axes")


def test_indices_that_wrap_around_are_refused():
    """Gaps that go around twice and end in the range, with every step but two upward."""
    writer = begun(2, 2, 1)
    writer.number("size", 3)
    writer.number("form", 0)
    writer.number("count", 5)
    gaps = np.array([0, 2**63 - 2, 0, 2**63 - 2, 5])
    writer.integers((5,), np.dtype(np.int64), gaps)
    writer.number("kind", 0)
    writer.floats((5,), F4, np.ones(5, F4))
    writer.flag("bias", False)
    law_refused(loads, frame(bytes(writer.bulk), writer.coder.finish()), "must lie in")


def test_numbers_too_large_to_be_stored_are_not_written():
    rep = mc.Quantized(codes((2, 2)), np.ones((1, 2)), np.zeros((1, 2), int), 4, True, 0, 2**70, F8)
    with pytest.raises(mc.CompressionError, match="can be stored"):
        dumps(one_dense(rep))
    with pytest.raises(mc.CompressionError, match="stride must be"):
        Conv2D(np.ones((1, 1, 1, 1)), stride=2**31)


WRONG_NUMBERS = {
    ("layer", 28): "layer must be less than 28",
    ("kind", 5): "kind must be less than 5",
    ("dtype", 12): "dtype must be less than 12",
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


def told(*numbers):
    """A file of these numbers, each with its kind."""
    writer = Writer()
    for kind, number in numbers:
        writer.number(kind, number)
    return frame(b"", writer.coder.finish())


def relus(*backs, output=0):
    """A program of layers without weights: each reads the value so far behind, the last is out."""
    layers = [pair for back in backs for pair in (("layer", 1), ("back", back))]
    return [("layers", 0), ("program", len(backs)), *layers, ("outputs", 0), ("output", output)]


WRONG_PROGRAMS = {
    "a value from before the input": (relus(0, 2), "back must be less than 2"),
    "a value that is made later": (relus(0, 2**64), "back must be less than 2"),
    "a value that nobody reads": (relus(0, 1), "value 1, the output of layer 0"),
    "an input that nobody reads": ([("layers", 0), ("program", 0), ("outputs", 1)], "outputs must"),
    "an output from before the input": (relus(0, output=2), "output must be less than 2"),
    "an end that nobody reads": (relus(0, 0, output=1), "value 2, the output of layer 1"),
    "an output that comes twice": (
        [*relus(0)[:-2], ("outputs", 1), ("output", 0), ("output", 0)], "each once"),
    "more outputs than values": ([*relus(0)[:-2], ("outputs", 2)], "outputs must be less than 2"),
    "a product of one value": (
        [("layers", 1), ("layer", 17)], r"layer 0 (Multiply): it must read 2 values"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_PROGRAMS)
def test_programs_that_cannot_be_are_refused(name):
    numbers, why = WRONG_PROGRAMS[name]
    law_refused(loads, told(*numbers), why)


def test_the_example_of_the_wrong_programs_is_a_program():
    read = loads(told(*relus(0, 0, 0)))
    assert read.inputs == ((0,), (1,), (2,))
    assert read.outputs == (3,)


@pytest.mark.parametrize(
    ("number", "value", "why"),
    [
        (10, np.inf, "negative_slope"),
        (19, np.nan, "low must be"),
        (19, 7.0, "low must not be greater"),
        (21, np.inf, "alpha must be"),
    ],
)
def test_numbers_of_layers_that_cannot_be_are_refused(number, value, why):
    """The first of the layer's numbers; the other is the usual one."""
    writer = Writer()
    writer.number("layers", 1)
    writer.number("layer", number)
    writer.flag("usual", False)
    writer.floats((), F8, np.array(value))
    writer.flag("usual", True)
    law_refused(loads, frame(bytes(writer.bulk), writer.coder.finish()), why)


# planted: wrong implementations that the laws catch -----------------------------------------------


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


PLANTED = {
    "the checksum is not looked at": (
        lambda read: law_refused(read, SMALL[:-1] + bytes([SMALL[-1] ^ 1])), careless),
    "what is appended is not seen": (lambda read: law_nothing_appended(read, SMALL), lenient),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_files_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
