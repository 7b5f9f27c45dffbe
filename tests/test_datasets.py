"""The shipped digits, and the IDX reader against files that are right and files that are not."""

import gzip
import hashlib
import struct
import tracemalloc
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from minicompress import datasets
from minicompress.datasets import SPLITS, load_digits, load_mnist
from minicompress.errors import CompressionError, FileFormatError

IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"
N = 13  # the last sixth of 13, rounded down, is 2


def idx(array, shape=None):
    """An IDX file of unsigned bytes; its header may declare another shape."""
    shape = array.shape if shape is None else shape
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + array.tobytes()


PIXELS = (np.arange(N * 28 * 28) % 256).astype(np.uint8).reshape(N, 28, 28)
DIGITS = (np.arange(N) % 10).astype(np.uint8)
GOOD = {
    IMAGES: idx(PIXELS),
    LABELS: idx(DIGITS),
    "t10k-images-idx3-ubyte": idx(PIXELS[:4]),
    "t10k-labels-idx1-ubyte": idx(DIGITS[:4]),
}


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_digits_are_the_published_file():
    packed = resources.files("minicompress").joinpath("data", "digits.csv.gz").read_bytes()
    unpacked = gzip.decompress(packed)
    assert hashlib.sha256(packed).hexdigest() == (
        "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
    )
    assert unpacked.count(b"\n") == 1797


def test_digits_are_split_as_the_rule_says():
    # Parsed here by hand: the loader's own reading is what is tested.
    packed = resources.files("minicompress").joinpath("data", "digits.csv.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split()
    rows = [[int(n) for n in line.split(",")] for line in lines]
    parts = {"train": [], "validation": [], "test": []}
    for i, row in enumerate(rows):
        parts["validation" if i % 6 == 0 else "test" if i % 6 == 1 else "train"].append(row)
    for split, part in parts.items():
        x, y = load_digits(split)
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert x.shape == (len(part), 8, 8, 1)
        assert (x * 16).reshape(-1, 64).tolist() == [row[:64] for row in part]  # exact: sixteenths
        assert y.tolist() == [row[64] for row in part]
    assert [len(parts[split]) for split in SPLITS] == [1197, 300, 300]


@pytest.mark.parametrize("split", SPLITS)
def test_digits_are_balanced(split):
    # As even as a draw by lot: three standard deviations of N draws with probability 1/10. A split
    # that the order of the rows has crept into (by labels, by runs of writers) is not.
    _, y = load_digits(split)
    counts = np.bincount(y, minlength=10)
    assert np.abs(counts - len(y) / 10).max() <= 3 * (len(y) * 0.1 * 0.9) ** 0.5


def test_digits_are_fresh_arrays():
    x, _ = load_digits("test")
    x[:] = 9
    assert load_digits("test")[0].max() == 1


@pytest.mark.parametrize("split", ["Train", "", None, 0, "tests"])
def test_unknown_split_is_refused(split, tmp_path):
    for load in (load_digits, lambda s: load_mnist(write(tmp_path, GOOD), s)):
        with pytest.raises(CompressionError, match="split must be one of train, validation, test"):
            load(split)


@pytest.mark.parametrize("form", ["plain", "gzipped", "gzipped without the suffix"])
def test_mnist_is_read(form, tmp_path):
    suffix = ".gz" if form == "gzipped" else ""
    pack = bytes if form == "plain" else gzip.compress
    folder = write(tmp_path, {name + suffix: pack(content) for name, content in GOOD.items()})
    wanted = {
        "train": (PIXELS[:11], DIGITS[:11]),
        "validation": (PIXELS[11:], DIGITS[11:]),
        "test": (PIXELS[:4], DIGITS[:4]),
    }
    for split, (pixels, digits) in wanted.items():
        x, y = load_mnist(str(folder), split)
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert x.shape == (len(pixels), 28, 28, 1)
        # One division rounds to nearest, so it is the division of the same two float32 numbers.
        assert np.array_equal(x[..., 0], pixels.astype(np.float32) / np.float32(255))
        assert np.array_equal(y, digits)


def test_mnist_split_of_60000_is_the_usual_one(tmp_path, monkeypatch):
    images = np.broadcast_to(np.arange(60_000, dtype=np.int32)[:, None, None], (60_000, 1, 1))
    labels = np.arange(60_000, dtype=np.int32) % 10
    monkeypatch.setattr(datasets, "_read_idx", lambda path, entry: images if entry else labels)
    x, y = load_mnist(write(tmp_path, GOOD), "train")
    assert x.shape[0] == y.shape[0] == 50_000
    x, y = load_mnist(tmp_path, "validation")
    assert x.shape[0] == y.shape[0] == 10_000
    assert x[0, 0, 0, 0] == np.float32(50_000) / np.float32(255)


def test_empty_files_of_a_right_form_are_empty_sets(tmp_path):
    write(tmp_path, {IMAGES: idx(PIXELS[:0]), LABELS: idx(DIGITS[:0])})
    x, y = load_mnist(tmp_path, "train")
    assert (x.shape, y.shape) == ((0, 28, 28, 1), (0,))


def flipped_checksum(content):
    packed = bytearray(gzip.compress(content))
    packed[-8] ^= 1
    return bytes(packed)


BAD = {
    "empty": (IMAGES, b"", "truncated: it ends inside its header"),
    "header cut": (IMAGES, GOOD[IMAGES][:15], "truncated: it ends inside its header"),
    "one byte short": (IMAGES, GOOD[IMAGES][:-1], f"truncated.*{N * 784} bytes.*{N * 784 - 1}"),
    "one byte long": (IMAGES, GOOD[IMAGES] + b"\0", "goes on after the"),
    "labels short": (LABELS, GOOD[LABELS][:-1], "truncated"),
    "labels long": (LABELS, GOOD[LABELS] + b"\0", "goes on after the"),
    "labels as images": (IMAGES, GOOD[LABELS], "must start with 00 00 08 03 .*not 00 00 08 01"),
    "images as labels": (LABELS, GOOD[IMAGES], "must start with 00 00 08 01"),
    "signed bytes": (IMAGES, b"\0\0\x09\3" + GOOD[IMAGES][4:], "not 00 00 09 03"),
    "text": (IMAGES, b"<html>not found</html>", "must start with"),
    "other images": (IMAGES, idx(np.zeros((N, 32, 32), np.uint8)), "of shape .28, 28., not .32"),
    "fewer images": (IMAGES, idx(PIXELS[:-1]), f"{N - 1} images, but .*{N} labels"),
    "fewer labels": (LABELS, idx(DIGITS[:-1]), f"{N} images, but .*{N - 1} labels"),
    "label 10": (LABELS, idx(DIGITS + 1), "labels from 0 to 9, not 10"),
    "absurd count": (IMAGES, idx(PIXELS, (2**32 - 1, 28, 28)), "declares 4294967295 entries"),
    "absurd sides": (IMAGES, idx(PIXELS, (N, 2**32 - 1, 2**32 - 1)), "must hold images of shape"),
    "gzip cut": (IMAGES, gzip.compress(GOOD[IMAGES])[:-30], "truncated: its gzip stream"),
    "gzip without its end": (IMAGES, gzip.compress(GOOD[IMAGES])[:-8], "truncated: its gzip"),
    "gzip checksum": (IMAGES, flipped_checksum(GOOD[IMAGES]), "damaged: CRC check failed"),
    "gzip header": (IMAGES, b"\x1f\x8b\x07" + bytes(20), "damaged: Unknown compression method"),
    "gzip body": (IMAGES, gzip.compress(b"")[:10] + b"\xff" * 20, "damaged: Error -3"),
    "gzip and more": (IMAGES, gzip.compress(GOOD[IMAGES]) + b"more", "damaged: Not a gzipped"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name, tmp_path):
    file, content, message = BAD[name]
    write(tmp_path, GOOD | {file: content})
    with pytest.raises(FileFormatError, match=message) as caught:
        load_mnist(tmp_path, "train")
    assert file in str(caught.value)  # which of the four
    assert "\n" not in str(caught.value)
    load_mnist(tmp_path, "test")  # the other pair is still good


@pytest.mark.parametrize("name", list(GOOD))
def test_a_missing_file_is_named(name, tmp_path):
    write(tmp_path, {other: content for other, content in GOOD.items() if other != name})
    with pytest.raises(FileFormatError, match=f"holds neither {name} nor {name}.gz"):
        load_mnist(tmp_path, "test" if name.startswith("t10k") else "train")


def test_a_folder_in_the_place_of_a_file_is_no_file(tmp_path):
    write(tmp_path, {name: content for name, content in GOOD.items() if name != IMAGES})
    (tmp_path / IMAGES).mkdir()
    with pytest.raises(FileFormatError, match="holds neither"):
        load_mnist(tmp_path, "train")


def test_a_file_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
    # The failure is put in: permission bits would not stop a test that runs as root.
    def refuse(self, mode):
        raise PermissionError(13, "Permission denied")

    write(tmp_path, GOOD)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FileFormatError, match="cannot be read: Permission denied"):
        load_mnist(tmp_path, "train")


def test_bad_folders(tmp_path):
    with pytest.raises(FileFormatError, match="cannot be read: File name too long"):
        load_mnist(tmp_path / (300 * "x"), "train")
    with pytest.raises(FileFormatError, match="does not exist"):
        load_mnist(tmp_path / "nowhere", "train")
    (tmp_path / "file").touch()
    with pytest.raises(FileFormatError, match="is not a folder"):
        load_mnist(tmp_path / "file", "train")
    with pytest.raises(CompressionError, match="folder must be a path, not 3"):
        load_mnist(3, "train")


def peak_memory_of_refusing(folder, message):
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=message):
            load_mnist(folder, "train")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_header_takes_no_memory_on_its_word(tmp_path):
    # As many as the reader believes in (784 MB), of which 10 kB are there.
    write(tmp_path, GOOD | {IMAGES: idx(PIXELS, (1_000_000, 28, 28))})
    assert peak_memory_of_refusing(tmp_path, "truncated") < 5e6


def test_a_gzip_bomb_is_not_expanded(tmp_path):
    bomb = gzip.compress(GOOD[IMAGES]) + gzip.compress(bytes(200_000_000), 1)
    write(tmp_path, GOOD | {IMAGES: bomb})
    assert peak_memory_of_refusing(tmp_path, "goes on after the") < 5e6
