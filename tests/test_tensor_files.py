""".npz and .safetensors: what other libraries write is read, and the other way round."""

import io
import json
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from budgets import at_most
from container_models import codes, numbers, quantized
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import minicompress as mc
from minicompress.interchange.tensor_files import load_tensors, save_tensors
from minicompress.storage.sections import DTYPES
from minicompress.testing.checks import same
from minicompress.testing.strategies import in_layout

safetensors = pytest.importorskip("safetensors")
safe = pytest.importorskip("safetensors.numpy")

ENDINGS = ("npz", "safetensors")
ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=6).filter(lambda name: "\0" not in name),
    st.tuples(
        st.sampled_from(DTYPES), npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3)
    ).flatmap(lambda p: npst.arrays(*p)),
    max_size=4,
)


def law_both_agree(path, arrays, write, read):
    """What one writes the other reads: names, dtypes, shapes, and every bit."""
    write(path, arrays)
    assert same(dict(sorted(read(path).items())), dict(sorted(arrays.items())))


@at_most(60)
@given(ARRAYS)
def test_tensors_come_back(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("tensors")
    for ending in ENDINGS:
        path = folder / f"weights.{ending}"
        law_both_agree(path, arrays, save_tensors, load_tensors)
        assert save_tensors(path, arrays) == path.stat().st_size
        before = path.read_bytes()
        save_tensors(path, arrays)
        assert path.read_bytes() == before, "the same arrays, the same file"
    assert list(load_tensors(folder / "weights.npz")) == list(arrays)


PLAIN = {
    "kernel": numbers((3, 3, 2, 4)),
    "a/b.c": np.arange(5, dtype=np.uint16),
    "step": np.array(7),
    "yes": np.array([True, False]),
    "none": np.zeros((0, 3), np.float16),
    "nan": np.array([np.nan, np.inf]),
}


def test_numpy_and_safetensors_agree(tmp_path):
    for write in (np.savez, np.savez_compressed):
        law_both_agree(tmp_path / "a.npz", PLAIN, lambda p, a, w=write: w(p, **a), load_tensors)
    law_both_agree(tmp_path / "b.npz", PLAIN, save_tensors, lambda p: dict(np.load(p)))
    path = tmp_path / "c.safetensors"
    law_both_agree(path, PLAIN, lambda p, a: safe.save_file(a, p), load_tensors)
    law_both_agree(path, PLAIN, save_tensors, safe.load_file)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("layout", ["Fortran", "strided", "reversed", "read-only", "byte-swapped"])
def test_layouts_do_not_change_what_is_read(ending, layout, tmp_path):
    path, array = tmp_path / f"a.{ending}", numbers((3, 4))
    save_tensors(path, {"a": in_layout(array, layout)})
    assert same(load_tensors(path), {"a": array})
    assert not load_tensors(path)["a"].flags.writeable
    np.savez(tmp_path / "numpy.npz", a=in_layout(array, layout))
    assert same(load_tensors(tmp_path / "numpy.npz"), {"a": array})


@pytest.mark.parametrize("ending", ENDINGS)
def test_representations_are_decoded(ending, tmp_path):
    rep = quantized(codes((4, 3)), axis=1)
    save_tensors(tmp_path / f"a.{ending}", {"w": rep})
    assert same(load_tensors(tmp_path / f"a.{ending}"), {"w": mc.decode(rep)})


def raw_safetensors(**tensors):
    """A file of (dtype, shape, bytes)."""
    head, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        head[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_bfloat16_becomes_float32_once(tmp_path):
    every = np.arange(2**16, dtype=np.uint16)
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw_safetensors(w=("BF16", [256, 256], every.tobytes())))
    found = load_tensors(path)["w"]
    assert (found.dtype, found.shape) == (np.float32, (256, 256))
    assert (found.view(np.uint32).ravel() == every.astype(np.uint32) << 16).all()
    assert found.ravel()[[0x3F80, 0x4000, 0xC0A0]].tolist() == [1.0, 2.0, -5.0]


def test_dtypes_that_numpy_lacks_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw_safetensors(scale=("F8_E4M3", [2], b"\1\2")))
    with pytest.raises(mc.FileFormatError, match="array 'scale' has dtype F8_E4M3"):
        load_tensors(path)


def npz(name="a.npy", raw=b"", method=zipfile.ZIP_DEFLATED, times=1):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that comes twice
        for _ in range(times):
            archive.writestr(name, raw)
    return file.getvalue()


def npy(array=None, shape=None, descr="<f4"):
    file = io.BytesIO()
    if array is not None:
        np.save(file, array)
    else:
        head = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
    return file.getvalue()


DAMAGED = {
    "no file": (None, "cannot be read: No such file"),
    "an empty file": (b"", "no whole .npz"),
    "another file": (b"PNG" * 40, "no whole .npz"),
    "no array inside": (npz(raw=b"text"), "no whole .npz"),
    "Python objects": (npz(raw=npy(shape=(1,), descr="|O") + bytes(8)), "'a' must hold numbers"),
    "complex numbers": (npz(raw=npy(np.ones(2, complex))), "'a' must hold numbers, not complex128"),
    "text": (npz(raw=npy(np.array(["text"]))), "'a' must hold numbers, not <U4"),
    "a shape that lies": (npz(raw=npy(shape=(2**20,))), "not as long as its shape"),
    "a shape below zero": (npz(raw=npy(shape=(-1, -1)) + bytes(4)), "no whole .npz"),
    "a header alone": (npz(raw=npy(shape=(3,))[:20]), "no whole .npz"),
    "a name twice": (npz(raw=npy(np.ones(1)), times=2), "two arrays have the name 'a'"),
    "a bomb": (npz(raw=npy(shape=(2**24,)) + bytes(2**26)), "max_bytes"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_npz_files_are_refused(case, tmp_path):
    blob, why = DAMAGED[case]
    if blob is not None:
        (tmp_path / "a.npz").write_bytes(blob)
    tracemalloc.start()
    with pytest.raises(mc.FileFormatError, match=why) as caught:
        load_tensors(tmp_path / "a.npz", max_bytes=2**25)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert str(tmp_path / "a.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_truncation_is_refused(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    save_tensors(path, {"w": numbers((3, 4)), "b": numbers((2,))})
    blob = path.read_bytes()
    for length in range(len(blob)):
        path.write_bytes(blob[:length])
        with pytest.raises(mc.FileFormatError):
            load_tensors(path)


@at_most(300)
@given(st.data())
def test_altered_npz_files_are_refused_or_hold_arrays(tmp_path_factory, data):
    """The checksums of a zip file do not cover its names, so not every change is seen."""
    blob = bytearray(npz(raw=npy(numbers((3, 4))), method=zipfile.ZIP_STORED))
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("altered") / "a.npz"
    path.write_bytes(bytes(blob))
    try:
        found = load_tensors(path, max_bytes=10**6)
    except mc.FileFormatError:
        return
    assert all(array.dtype.kind in "fiub" for array in found.values())


BAD = {
    "another ending": ("a.bin", PLAIN, "ending of path must be one of .npz, .safetensors"),
    "no ending": ("a", PLAIN, "ending of path"),
    "a list": ("a.npz", [1], "must map names to arrays, not be list"),
    "a number as name": ("a.npz", {1: np.ones(1)}, "must be strings, not 1"),
    "a zero byte": ("a.npz", {"a\0b": np.ones(1)}, "zero byte"),
    "half a character": ("a.safetensors", {"\ud800": np.ones(1)}, "must be Unicode"),
    "complex": ("a.safetensors", {"w": np.ones(1, complex)}, "array 'w': .* not complex128"),
    "text": ("a.npz", {"w": np.array("text")}, "array 'w': .* not <U4"),
    "wide floats": ("a.npz", {"w": np.ones(1, np.longdouble)}, "array 'w'"),
    "no array": ("a.npz", {"w": "text"}, "array 'w': .*array or a representation"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_form_is_refused_and_nothing_is_written(case, tmp_path):
    name, arrays, why = BAD[case]
    (tmp_path / name).write_bytes(b"as it was")
    with pytest.raises(mc.CompressionError, match=why):
        save_tensors(tmp_path / name, arrays)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"as it was"]


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    for act in (lambda p: save_tensors(p, PLAIN), load_tensors):
        with pytest.raises(mc.CompressionError, match=r"pip install '.\[safetensors\]'"):
            act(tmp_path / "a.safetensors")


# planted: wrong implementations that the law catches ----------------------------------------------


def without_axes_of_length_one(path):
    return {name: array.squeeze() for name, array in load_tensors(path).items()}


def widened(path):
    return {name: array.astype(np.float64) for name, array in load_tensors(path).items()}


def first_only(path):
    return dict(list(load_tensors(path).items())[:1])


@pytest.mark.parametrize("wrong", [without_axes_of_length_one, widened, first_only])
def test_the_law_catches(wrong, tmp_path):
    arrays = {"a": numbers((1, 3)), "b": numbers((2,))}
    with pytest.raises(AssertionError):
        law_both_agree(tmp_path / "a.npz", arrays, save_tensors, wrong)
