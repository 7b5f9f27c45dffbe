"""Files with weights, of every kind that the command takes: .onnx, .npz, .safetensors and .mcz.

Whatever the file, its weights are arrays with names. A network from a .mcz file gives its weights
the names "0.weight", "0.bias" and so on, by the index of the layer.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array, float_array, integer_array
from minicompress.errors import CompressionError, FileFormatError
from minicompress.interchange.onnx_file import save_onnx
from minicompress.interchange.onnx_import import from_onnx
from minicompress.interchange.onnx_import_file import onnx_package
from minicompress.interchange.onnx_rewriting import (
    onnx_arrays,
    read_onnx,
    save_onnx_arrays,
)
from minicompress.interchange.tensor_files import load_tensors, save_tensors
from minicompress.nn.network import Network
from minicompress.nn.parameters import parameters, with_parameters
from minicompress.representation import Rep, shape_of
from minicompress.storage.container import ARRAYS_VERSION, MAGIC, load, save
from minicompress.storage.files import file_name
from minicompress.storage.named_arrays import load_arrays, save_arrays

SUFFIXES = (".onnx", ".npz", ".safetensors", ".mcz")
MAX_BYTES = 16 << 30
"""Memory that the weights of a file may take: the user has chosen the file."""

QUICK = 1 << 20
"""Up to so many numbers, all codings of a .mcz file are tried: that takes some 20 s a million."""


class WeightFile(NamedTuple):
    """A file that was read.

    Parameters
    ----------
    path : str
    arrays : dict of str to ndarray or representation
    network : Network or None
        What the arrays are the weights of, if they are of a network.
    note : str
        What the reader should know, or "".
    """

    path: str
    arrays: dict[str, Rep]
    network: Network | None = None
    note: str = ""


def suffix_of(path: str) -> str:
    """The ending of a file's name, which says of what kind it is."""
    suffix = os.path.splitext(file_name(path))[1].lower()
    if suffix not in SUFFIXES:
        raise CompressionError(f"{path!r} must end in {', '.join(SUFFIXES)}")
    return suffix


def read_weights(path: str, *, out: str | None = None, x: Array | None = None) -> WeightFile:
    """Read the weights of a file.

    Parameters
    ----------
    path : str
    out : str, optional
        The file that is to be written. An ONNX file that goes into .mcz is read as a network, if
        all its operators have layers.
    x : ndarray, optional
        Inputs, which say what the ONNX file leaves open of its input shape.
    """
    kind = suffix_of(path)
    if kind in (".npz", ".safetensors"):
        return WeightFile(path, dict(load_tensors(path)))
    if kind == ".mcz":
        if _holds_arrays(path):
            return WeightFile(path, load_arrays(path, max_bytes=MAX_BYTES))
        return _of_network(path, load(path, max_bytes=MAX_BYTES))
    arrays: dict[str, Rep] = dict(onnx_arrays(path))
    if out is None or suffix_of(out) == ".onnx":
        return WeightFile(path, arrays)
    note = ""
    if suffix_of(out) == ".mcz":
        try:
            return _of_network(path, _imported(path, x)[0])
        except CompressionError as error:
            note = f"{out} holds the arrays, not a network: {error}"
    return WeightFile(path, arrays, note=note)


def write_weights(
    out: str, source: WeightFile, arrays: Mapping[str, Rep], input_shape: tuple[int, ...] | None
) -> int:
    """Write other weights for those of a file, and return how many bytes the new file has.

    Parameters
    ----------
    out : str
    source : WeightFile
    arrays : mapping
        The same names. .npz and .safetensors get decoded arrays.
    input_shape : tuple of int, optional
        Of one input, channels last: what a network needs to become ONNX.
    """
    kind = suffix_of(out)
    if kind in (".npz", ".safetensors"):
        return save_tensors(out, arrays)
    network = None if source.network is None else _with_arrays(source.network, arrays)
    if kind == ".mcz":
        size = sum(math.prod(shape_of(rep)) for rep in arrays.values())
        coding = "smallest" if size <= QUICK else "huffman"
        if network is None:
            return save_arrays(out, arrays, coding=coding)
        return save(network, out, coding=coding)
    if network is not None:
        if input_shape is None:
            raise CompressionError(
                "a network becomes ONNX for inputs of one shape: give --calibration X.npy"
            )
        return save_onnx(network, out, input_shape)
    if suffix_of(source.path) != ".onnx":
        raise CompressionError(
            f"{source.path} has no graph that {out} could have: only .onnx and networks have one"
        )
    changed = {name: rep for name, rep in arrays.items() if rep is not source.arrays[name]}
    return save_onnx_arrays(out, changed, source.path)


def read_network(path: str, x: Array) -> tuple[Network, Array]:
    """The network of a .mcz or .onnx file, and inputs in the layout that it takes.

    Inputs of an ONNX file have the layout of the file or channels last.
    """
    suffix = os.path.splitext(file_name(path))[1].lower()
    if suffix == ".onnx":
        return _imported(path, x)
    if suffix in (".npz", ".safetensors") or _holds_arrays(path):
        raise CompressionError(f"{path} holds arrays, not a network: nothing can be run")
    return load(path, max_bytes=MAX_BYTES), x


def read_array(path: str, what: str) -> Array:
    """The array of a .npy file."""
    try:
        return np.asarray(np.load(file_name(path), allow_pickle=False))
    except OSError as error:
        why = error.strerror or "it is no .npy file"
        raise FileFormatError(f"{what} {path!r} cannot be read: {why}") from None
    except (ValueError, EOFError, SyntaxError) as error:
        first = (str(error) or "it is empty").splitlines()[0]
        raise FileFormatError(f"{what} {path!r} is no whole .npy file: {first}") from None


def read_inputs(path: str) -> Array:
    """The inputs of a .npy file: floats, at least one."""
    x = float_array(read_array(path, "--calibration"), f"--calibration {path!r}")
    if x.ndim < 2 or len(x) == 0:
        raise CompressionError(
            f"--calibration {path!r} must hold inputs, (N, ...), not be of shape {x.shape}"
        )
    return x


def read_labels(path: str) -> Array:
    """The classes of a .npy file: integers."""
    y = integer_array(read_array(path, "--labels"), f"--labels {path!r}")
    if y.ndim != 1:
        raise CompressionError(f"--labels {path!r} must be (N,), not of shape {y.shape}")
    return y


def _holds_arrays(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC) + 1) == MAGIC + bytes([ARRAYS_VERSION])
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from None


def _imported(path: str, x: Array | None) -> tuple[Network, Array]:
    """An ONNX file as a network, and inputs in its layout, as the shape of one of them tells it."""
    if x is None:
        return from_onnx(path), np.zeros(0)
    candidates = [x]
    if x.ndim in (3, 4):
        candidates = [np.moveaxis(x, 1, -1), x]
        if read_onnx(onnx_package(), path).producer_name == "minicompress":
            candidates.reverse()
    errors = []
    for candidate in candidates:
        try:
            network = from_onnx(path, input_shape=candidate.shape[1:])
        except CompressionError as error:
            errors.append(error)
        else:
            return network, np.ascontiguousarray(candidate)
    shown = [e for e in errors if "input_shape" not in str(e)] or errors
    if "input_shape" in str(shown[0]):
        raise CompressionError(
            f"{path} does not take inputs of shape {x.shape[1:]}: {shown[0]}"
        ) from None
    raise CompressionError(f"{path}: {shown[0]}") from None


def _of_network(path: str, network: Network) -> WeightFile:
    arrays = {
        f"{i}.{name}": rep
        for i, of_layer in enumerate(parameters(network))
        for name, rep in of_layer.items()
    }
    return WeightFile(path, arrays, network)


def _with_arrays(network: Network, arrays: Mapping[str, Rep]) -> Network:
    changed = tuple(
        {name: arrays[f"{i}.{name}"] for name in of_layer}
        for i, of_layer in enumerate(parameters(network))
    )
    return with_parameters(network, changed)
