"""The .mcz file of named arrays: every name, dtype and form comes back, or FileFormatError."""

import hashlib
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
    codes,
    numbers,
    one_dense,
    quantized,
    with_checksum,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import minicompress as mc
from minicompress.storage import container
from minicompress.storage.named_arrays import (
    dumps_arrays,
    load_arrays,
    loads_arrays,
    save_arrays,
)
from minicompress.storage.sections import DTYPES, MOST_PARTS, Writer
from minicompress.testing.checks import check_codec, check_pure, same
from minicompress.testing.models import reps
from minicompress.testing.strategies import in_layout

# the round trip -----------------------------------------------------------------------------------

SHAPES = npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3)
PLAIN = st.tuples(st.sampled_from(DTYPES), SHAPES).flatmap(lambda p: npst.arrays(*p))
REPS = st.tuples(st.sampled_from([F4, F8, np.dtype("f2")]), SHAPES.filter(all)).flatmap(
    lambda p: reps(p[1], p[0])
)
NAMES = st.text(max_size=6) | st.text("ab./", max_size=12)
ARRAYS = st.dictionaries(NAMES, PLAIN | REPS, max_size=5)


def law_all_comes_back(encode, decode, arrays):
    """Bit for bit, also NaN; names in their order; arrays read-only."""
    blob = encode(arrays)
    assert encode(arrays) == blob
    found = decode(blob)
    assert list(found) == list(arrays)
    for name, rep in found.items():
        assert type(rep) is type(arrays[name])
        if isinstance(rep, np.ndarray):
            assert (rep.dtype, rep.shape) == (arrays[name].dtype, arrays[name].shape)
            assert rep.tobytes() == arrays[name].tobytes()
            assert not rep.flags.writeable
        else:
            assert same(rep, arrays[name])


@given(ARRAYS, st.sampled_from(sorted(container.CHOICES)))
def test_named_arrays_survive(arrays, coding):
    law_all_comes_back(partial(dumps_arrays, coding=coding), loads_arrays, arrays)
    assert len(dumps_arrays(arrays)) <= len(dumps_arrays(arrays, coding=coding))
    check_pure(dumps_arrays, arrays)


EDGES = {
    "": np.float32(1.5),  # an empty name, and a scalar without axes
    "weights/0": np.zeros((0, 3), np.float16),
    "weights/1": numbers((2, 1, 2, 1, 3), F8),
    "ﬂöße": np.array([np.nan, np.inf, -np.inf, -0.0], F4),
    "greatest": np.array([2**64 - 1, 0], np.uint64),
    "least": np.array(-(2**63)),
    "yes": np.array(True),
    "none": np.zeros(0, bool),
    "mask": codes((4, 5)) > 0,
    "deep": np.ones((1,) * 32, np.uint8),
    "a\0b": np.arange(3, dtype=np.uint16),
}


def test_edges_survive():
    arrays = {name: np.asarray(value) for name, value in EDGES.items()}
    law_all_comes_back(dumps_arrays, loads_arrays, arrays)
    law_all_comes_back(dumps_arrays, loads_arrays, {})


@pytest.mark.parametrize("layout", ["Fortran", "strided", "reversed", "read-only", "byte-swapped"])
def test_layouts_do_not_change_the_file(layout):
    array = numbers((3, 4))
    assert dumps_arrays({"a": in_layout(array, layout)}) == dumps_arrays({"a": array})


def test_a_file_and_back(tmp_path):
    arrays = {"w": quantized(codes((6, 5)), axis=1), "b": numbers((5,))}
    path = tmp_path / "weights.mcz"
    assert save_arrays(path, arrays) == path.stat().st_size
    assert same(load_arrays(path), arrays)


def test_names_that_begin_alike_are_cheap():
    arrays = {f"model.encoder.layers.{i}.attention.weight": np.zeros((1, 1)) for i in range(100)}
    assert len(dumps_arrays(arrays)) < 100 * len(".attention.weight") + 300


BAD = {
    "a list": ([1, 2], "must map names to arrays, not be list"),
    "a number as name": ({3: np.ones(1)}, "must be strings, not 3"),
    "half a character": ({"\ud800": np.ones(1)}, "lone surrogates"),
    "complex": ({"w": np.ones(1, complex)}, "array 'w': .* not complex128"),
    "text": ({"w": np.array("text")}, "array 'w': .* not <U4"),
    "objects": ({"w": np.array([None])}, "array 'w': .* not object"),
    "dates": ({"w": np.array("2020", "M8[D]")}, "array 'w': .* not datetime64"),
    "a masked array": ({"w": np.ma.ones(2)}, "array 'w': .* not a masked array"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_form_is_refused_by_name(case, tmp_path):
    arrays, why = BAD[case]
    (tmp_path / "old.mcz").write_bytes(b"as it was")
    with pytest.raises(mc.CompressionError, match=why):
        save_arrays(tmp_path / "old.mcz", arrays)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"as it was"]


def test_too_many_arrays_are_refused():
    most = {str(i): np.zeros(0, np.int8) for i in range(MOST_PARTS)}
    assert list(loads_arrays(dumps_arrays(most, coding="packed"))) == list(most)
    with pytest.raises(mc.CompressionError, match="more than"):
        dumps_arrays(most | {"one": np.zeros(0)}, coding="packed")


def test_networks_and_arrays_are_not_mixed_up():
    with pytest.raises(
        mc.FileFormatError, match="version 2, which holds named arrays: load_arrays"
    ):
        mc.storage.loads(dumps_arrays({}))
    with pytest.raises(mc.FileFormatError, match="version 1, which holds a network: load reads it"):
        loads_arrays(mc.storage.dumps(one_dense(np.ones((1, 1)))))
    with pytest.raises(mc.FileFormatError, match="version 3, and only version 2"):
        loads_arrays(with_checksum(b"mcz\x03"))


# damage and bombs ---------------------------------------------------------------------------------

SMALL = dumps_arrays({"w": quantized(codes((4, 3))), "wide": numbers((3,)), "n": np.array(3)})


def test_every_change_and_every_truncation_is_refused():
    assert len(SMALL) < 80
    for place in range(len(SMALL)):
        for flip in range(1, 256):
            altered = bytearray(SMALL)
            altered[place] ^= flip
            with pytest.raises(mc.FileFormatError):
                loads_arrays(bytes(altered))
        with pytest.raises(mc.FileFormatError):
            loads_arrays(SMALL[:place])


def frame(bulk, coded):
    return with_checksum(b"mcz\x02" + container.put_varint(len(bulk)) + bulk + coded)


@at_most(200)
@given(st.binary(max_size=40), st.binary(max_size=60))
def test_any_bytes_are_refused_or_are_arrays(bulk, coded):
    try:
        arrays = loads_arrays(frame(bulk, coded), max_bytes=10**6)
    except mc.FileFormatError:
        return
    law_all_comes_back(dumps_arrays, loads_arrays, arrays)


def told(*numbers, bulk=b""):
    """A file of these numbers, each with its kind."""
    writer = Writer()
    for kind, number in numbers:
        writer.number(kind, number)
    return frame(bulk, writer.coder.finish())


def empty(name, shared=0):
    """An array of the int8 dtype without entries, under a name of so many bytes."""
    head = [("shared", shared), ("name", name), ("axes", 1)]
    return [*head, ("kind", 0), ("dtype", 3), ("size", 0)]


WRONG = {
    "2**60 arrays": (told(("arrays", 2**60)), "coded|coding|more|two arrays|name|end"),
    "a name longer than the file": (told(("arrays", 1), *empty(2**40)), "max_bytes"),
    "a name that is not there": (told(("arrays", 1), *empty(5), bulk=b"abc"), "5 more bytes"),
    "names that share much": (
        told(("arrays", 8000), *empty(200), *(8 * empty(0, 201)), bulk=bytes(200)), "shared must"),
    "a name that is not UTF-8": (
        told(("arrays", 1), *empty(1), bulk=b"\xff"), "array 0 is not UTF-8"),
    "a name that comes twice": (
        told(("arrays", 2), *empty(1), *empty(0, 1), bulk=b"a"), "two arrays have the name 'a'"),
    "33 axes": (told(("arrays", 1), ("shared", 0), ("name", 0), ("axes", 33)), "axes must"),
    "a terabyte of zeros": (
        told(("arrays", 1), *empty(0)[:5], ("size", 2**40), ("coding", 0)), "max_bytes"),
    "no rows, but very many columns": (
        told(("arrays", 1), ("shared", 0), ("name", 0), ("axes", 2), ("kind", 0), ("dtype", 3),
             ("size", 0), ("size", 2**62)), "max_bytes"),
    "a bool of 2": (
        told(("arrays", 1), ("shared", 0), ("name", 0), ("axes", 0), ("kind", 0), ("dtype", 11),
             ("coding", 0), ("least", 4), ("width", 0)), "from 2 to 2 do not fit bool"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_lies_are_refused_before_memory_is_taken(case):
    blob, why = WRONG[case]
    begun = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(mc.FileFormatError, match=why):
        loads_arrays(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    assert time.perf_counter() - begun < 10


def test_the_example_of_the_lies_is_a_file():
    blob = told(("arrays", 2), *empty(1), *empty(1, 1), bulk=b"ab")
    assert {name: rep.dtype.name for name, rep in loads_arrays(blob).items()} == {
        "a": "int8",
        "ab": "int8",
    }


def test_max_bytes_counts_names_and_arrays():
    """An array counts as what it takes decoded, and as its part of the file."""
    arrays = {"name": np.zeros(1000)}
    assert same(loads_arrays(dumps_arrays(arrays), max_bytes=16004), arrays)
    with pytest.raises(mc.FileFormatError, match="max_bytes"):
        loads_arrays(dumps_arrays(arrays), max_bytes=16003)


# the golden file ----------------------------------------------------------------------------------


def golden_arrays():
    pruned = mc.Sparse((4, 3, 2), np.array([1, 5, 20]), quantized(codes((3,))))
    palette = mc.Clustered(np.arange(12).reshape(3, 4) % 3, numbers((3,)))
    product = mc.LowRank((numbers((4, 2)), quantized(codes((2, 5)), axis=1)), "ir,ro->io")
    plain = {f"plain.{d.name}": np.arange(6).astype(d).reshape(1, 2, 3) for d in DTYPES}
    blocks = quantized(codes((2, 7)), axis=1, block_size=4, zero_point=1)
    made = {"pruned": pruned, "palette": palette, "product": product, "blocks": blocks}
    return plain | made | {name: np.asarray(value) for name, value in EDGES.items()}


# Never to be changed: this file decodes for ever.
DIGEST = "a234e74b0b243cdcd1abed4bf2ca3d3a38b9cc166b2a847eda6c7379c86bd6e6"


def test_the_golden_file_decodes_for_ever():
    blob = (GOLDEN / "named_arrays.mcz").read_bytes()
    assert hashlib.sha256(blob).hexdigest() == DIGEST
    law_all_comes_back(lambda arrays: blob, loads_arrays, golden_arrays())


def test_the_same_arrays_are_the_same_file_on_every_machine():
    assert dumps_arrays(golden_arrays()) == (GOLDEN / "named_arrays.mcz").read_bytes()


# planted: wrong implementations that the law catches ----------------------------------------------


def sorted_names(arrays):
    return dumps_arrays(dict(sorted(arrays.items())))


def without_nan(arrays):
    return dumps_arrays({name: np.nan_to_num(rep) for name, rep in arrays.items()})


def floats_only(arrays):
    return dumps_arrays({n: a.astype(F4) if a.dtype == bool else a for n, a in arrays.items()})


def at_least_one_axis(arrays):
    return dumps_arrays({name: np.atleast_1d(rep) for name, rep in arrays.items()})


@pytest.mark.parametrize("wrong", [sorted_names, without_nan, floats_only, at_least_one_axis])
def test_the_law_catches(wrong):
    arrays = {name: np.asarray(value) for name, value in EDGES.items()}
    with pytest.raises(AssertionError):
        law_all_comes_back(wrong, loads_arrays, arrays)


def test_check_codec_takes_named_arrays():
    check_codec(dumps_arrays, loads_arrays, {"a": numbers((2,)), "b": quantized(codes((2, 2)))})
