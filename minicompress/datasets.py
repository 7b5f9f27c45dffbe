"""The data to learn and to measure on: 8x8 digits shipped in the package, and MNIST's files.

Every loader takes the name of a split and returns ``(x, y)``: images as float32 (N, H, W, 1) in
[0, 1], labels as int64 (N,). "train" is for fitting, "validation" for choosing. "test" is used
once, for the figure that is reported.

Sources: Optical Recognition of Handwritten Digits, its test part (E. Alpaydin and C. Kaynak, UCI
Machine Learning Repository, 1998, CC BY 4.0); MNIST (Y. LeCun, C. Cortes and C. Burges).
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from importlib import resources
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from minicompress.arrays import Array, choice
from minicompress.errors import CompressionError, FileFormatError

# The images of a split, and their classes.
Images: TypeAlias = tuple[Array, Array]

SPLITS = ("train", "validation", "test")

# EMNIST, the largest set of this form, has 814,255 images. A header that declares more than this
# is refused.
_MOST_IMAGES = 1_000_000
_CHUNK = 1 << 20


def load_digits(split: str) -> Images:
    """Load the 8x8 handwritten digits that come with the package: 1,797 images.

    Parameters
    ----------
    split : "train" | "validation" | "test"
        Row i of the file is for validation where ``i % 6 == 0``, for the test where
        ``i % 6 == 1``, and for training otherwise. Neighbouring rows are by the same writers, so
        every writer is in every split.

    Returns
    -------
    x : (N, 8, 8, 1) ndarray of float32
        Ink from 0 to 1, in sixteenths; N is 1,197 for training, 300 for each of the others.
    y : (N,) ndarray of int64
        The digit, 0 to 9.

    Raises
    ------
    CompressionError
        `split` is none of the three.

    Examples
    --------
    >>> x, y = load_digits("train")
    >>> x.shape, x.dtype.name, y[:5]
    ((1197, 8, 8, 1), 'float32', array([2, 3, 4, 5, 8]))
    """
    choice(split, "split", SPLITS)
    packed = resources.files("minicompress").joinpath("data", "digits.csv.gz").read_bytes()
    table = np.loadtxt(gzip.decompress(packed).decode().splitlines(), np.uint8, delimiter=",")
    turn = np.arange(len(table)) % 6
    rows = {"validation": turn == 0, "test": turn == 1, "train": turn > 1}[split]
    pixels, labels = table[rows, :-1], table[rows, -1]
    return pixels.reshape(-1, 8, 8, 1).astype(np.float32) / 16, labels.astype(np.int64)


def load_mnist(folder: str | os.PathLike[str], split: str) -> Images:
    """Load MNIST, or a set of the same form, from its four IDX files in a folder.

    Parameters
    ----------
    folder : path
        Where ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``
        and ``t10k-labels-idx1-ubyte`` lie, each plain or gzipped, with or without ``.gz``.
    split : "train" | "validation" | "test"
        Validation is the last sixth of the training files, rounded down (MNIST: 10,000 of
        60,000), training the rest, and the test the t10k files.

    Returns
    -------
    x : (N, 28, 28, 1) ndarray of float32
        Pixels divided by 255.
    y : (N,) ndarray of int64
        Labels, 0 to 9.

    Raises
    ------
    FileFormatError
        A file is missing, unreadable, truncated, too long, damaged (gzip's checksum) or of another
        kind, or the two files have different lengths. Memory is taken only for bytes that exist,
        and for no more than the header declares.
    CompressionError
        `split` is none of the three, or `folder` is no path.

    Notes
    -----
    IDX: two zero bytes, the type (8: unsigned bytes), the number of dimensions, then each of them
    as a big-endian 32-bit integer, then the entries in C order.

    Examples
    --------
    >>> load_mnist("no/such/folder", "test")
    Traceback (most recent call last):
    ...
    minicompress.errors.FileFormatError: folder 'no/such/folder' does not exist
    """
    choice(split, "split", SPLITS)
    try:
        place = Path(folder)
    except TypeError:
        raise CompressionError(f"folder must be a path, not {folder!r}") from None
    prefix = "t10k" if split == "test" else "train"
    try:
        if not place.is_dir():
            problem = "is not a folder" if place.exists() else "does not exist"
            raise FileFormatError(f"folder {str(folder)!r} {problem}")
        images_path = _find(place, f"{prefix}-images-idx3-ubyte")
        labels_path = _find(place, f"{prefix}-labels-idx1-ubyte")
    except OSError as error:
        raise FileFormatError(f"folder {str(folder)!r} cannot be read: {error.strerror}") from None
    labels = _read_idx(labels_path, entry=())
    images = _read_idx(images_path, entry=(28, 28))
    if len(images) != len(labels):
        raise FileFormatError(
            f"{images_path} holds {len(images)} images, but {labels_path} {len(labels)} labels"
        )
    if labels.max(initial=0) > 9:
        raise FileFormatError(f"{labels_path} must hold labels from 0 to 9, not {labels.max()}")

    if split != "test":
        first = len(images) - len(images) // 6
        rows = slice(first) if split == "train" else slice(first, None)
        images, labels = images[rows], labels[rows]
    x = images[..., np.newaxis].astype(np.float32)
    x /= 255
    return x, labels.astype(np.int64)


def _find(folder: Path, name: str) -> Path:
    """The path of a regular file of that name, plain or gzipped."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileFormatError(f"folder {str(folder)!r} holds neither {name} nor {name}.gz")


def _read_idx(path: Path, *, entry: tuple[int, ...]) -> Array:
    """The entries of an IDX file, each of shape `entry`. Errors name the file."""
    try:
        with path.open("rb") as raw:
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"  # an IDX file starts with two zero bytes
            return _parse_idx(gzip.GzipFile(fileobj=raw) if zipped else raw, path, entry)
    except EOFError:
        raise FileFormatError(f"{path} is truncated: its gzip stream has no end") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror or error}") from None


def _parse_idx(stream: BinaryIO | gzip.GzipFile, path: Path, entry: tuple[int, ...]) -> Array:
    """Check the header, then read the bytes that it declares."""
    magic = bytes([0, 0, 8, 1 + len(entry)])
    length = 4 * (2 + len(entry))
    header = _read_at_most(stream, length)
    if not magic.startswith(header[:4]):
        raise FileFormatError(
            f"{path} must start with {magic.hex(' ')} (IDX, unsigned bytes, {1 + len(entry)} "
            f"dimensions), not {header[:4].hex(' ')}"
        )
    if len(header) < length:
        raise FileFormatError(f"{path} is truncated: it ends inside its header")
    count, *shape = np.frombuffer(header, ">u4", offset=4).tolist()
    if tuple(shape) != entry:
        raise FileFormatError(f"{path} must hold images of shape {entry}, not {tuple(shape)}")
    if count > _MOST_IMAGES:
        raise FileFormatError(
            f"{path} declares {count} entries, more than the {_MOST_IMAGES} of any file of its kind"
        )
    declared = count * math.prod(entry)
    # One more byte is asked for. It shows that a file is too long; and at the end of a gzipped file
    # gzip compares its checksum.
    body = _read_at_most(stream, declared + 1)
    if len(body) > declared:
        raise FileFormatError(f"{path} goes on after the {declared} bytes that its header declares")
    if len(body) < declared:
        raise FileFormatError(
            f"{path} is truncated: its header declares {declared} bytes, it has {len(body)}"
        )
    return np.frombuffer(body, np.uint8).reshape(count, *entry)


def _read_at_most(stream: BinaryIO | gzip.GzipFile, limit: int) -> bytearray:
    """Up to `limit` bytes, a chunk at a time, so that only bytes that are there take memory."""
    body = bytearray()
    while len(body) < limit and (chunk := stream.read(min(_CHUNK, limit - len(body)))):
        body += chunk
    return body
