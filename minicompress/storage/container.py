"""The .mcz file: a model in few bytes that are safe to read.

`save` and `load` are `dumps` and `loads` with a file. FORMAT.md beside this module specifies the
format. This module codes the layers and the frame (magic, version, two sections, checksum);
`sections` codes numbers and arrays, and `coding` codes representations.
"""

from __future__ import annotations

import os
from functools import partial
from itertools import chain, repeat

import numpy as np

from minicompress.arrays import as_int, choice, freeze
from minicompress.errors import CompressionError, FileFormatError
from minicompress.nn.composition import Sequential
from minicompress.nn.kernels.windows import Padding, Pair, pair, resolve_padding
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import Network
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import finite_model
from minicompress.nn.pointwise import Dropout, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from minicompress.nn.stateless import AvgPool2D, Flatten, GlobalAvgPool2D, MaxPool2D
from minicompress.representation import Rep, dtype_of, shape_of
from minicompress.storage.bits import ByteReader, blob_bytes, put_varint
from minicompress.storage.coding import Template, code_rep
from minicompress.storage.files import file_name, read_file, sealed, unsealed, write_file
from minicompress.storage.sections import CODINGS, DTYPES, Reader, Section, Writer, allowed_work

MAGIC, VERSION = b"mcz", 1
MAX_BYTES = 256 << 20

# A layer's number in the file is its index here: new layers go to the end. A reader passes these
# layers as the values to write, which are ignored.
ONE = freeze(np.ones(1))
KERNEL = freeze(np.ones((1, 1, 1, 1)))
LAYERS: tuple[Layer, ...] = (
    Dense(KERNEL[0, 0]),
    ReLU(),
    Conv2D(KERNEL),
    MaxPool2D(1),
    Flatten(),
    BatchNorm(ONE, ONE, ONE, ONE),
    AvgPool2D(1),
    GlobalAvgPool2D(),
    Softmax(),
    Dropout(0.0),
    LeakyReLU(),
    Sigmoid(),
    Tanh(),
)
TYPES = [type(layer) for layer in LAYERS]

# The codings to try for integers. The best choice for each array can be a byte longer for the whole
# file, or need more decisions than a reader accepts. So simpler choices are tried too.
CHOICES = {
    "smallest": (CODINGS, ("packed", "huffman"), ("packed",)),
    "huffman": (("packed", "huffman"), ("packed",)),
    "packed": (("packed",),),
}


def save(model: Network, path: str | os.PathLike[str], *, coding: str = "smallest") -> int:
    """Write a model to a file, and return how many bytes it takes.

    Parameters
    ----------
    model : Network
        Weights may be arrays or any representations, nested in any way.
    path : str or path-like
        Written atomically: a temporary file, then a rename.
    coding : "smallest" | "huffman" | "packed"
        As for `dumps`.

    Returns
    -------
    int
        The length of the file.

    Raises
    ------
    CompressionError
        A layer has a type that the format does not know, or a weight is NaN or infinite; the
        message names the layer.
    OSError
        The file cannot be written. An older file of this name stays as it was.

    Examples
    --------
    >>> import tempfile
    >>> from minicompress.nn.architectures import digits_cnn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(digits_cnn(np.random.default_rng(0)), folder + "/model.mcz")
    39515
    """
    file_name(path)  # before the work of seconds
    return write_file(path, dumps(model, coding=coding))


def load(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Network:
    """Read a model from a file: the same values, bit for bit, so the same outputs.

    Parameters
    ----------
    path : str or path-like
    max_bytes : int
        As for `loads`.

    Returns
    -------
    Network

    Raises
    ------
    FileFormatError
        The file is missing, truncated, altered, of another format or of a later version, or takes
        more memory than `max_bytes`.

    Examples
    --------
    >>> load("no/such/file.mcz")
    Traceback (most recent call last):
    minicompress.errors.FileFormatError: no/such/file.mcz cannot be read: No such file or directory
    """
    limit = as_int(max_bytes, "max_bytes", 0)
    return read_file(path, partial(loads, max_bytes=limit), limit)


def dumps(model: Network, *, coding: str = "smallest") -> bytes:
    """The bytes of the file that `save` writes.

    Parameters
    ----------
    model : Network
    coding : "smallest" | "huffman" | "packed"
        Which codings of integers are tried; each array gets the shortest. "smallest" tries all,
        and takes some seconds for a million codes. "huffman" tries Huffman's code and packed bits,
        which is much faster. "packed" has packed bits only.

    Returns
    -------
    bytes
        The same for the same model on every machine.

    Raises
    ------
    CompressionError
        `model` is not a Sequential, has a layer of a type that the format does not know, or has a
        weight that is NaN or infinite.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> blob = dumps(Sequential((Dense(np.ones((2, 3), np.float32)), ReLU())))
    >>> len(blob), loads(blob).layers[0].weight.tolist()
    (24, [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    """
    if not isinstance(model, Network):
        raise CompressionError(f"model must be a Sequential, not {type(model).__name__}")
    for i, layer in enumerate(model.layers):
        if type(layer) not in TYPES:
            raise CompressionError(
                f"layers[{i}] is a {type(layer).__name__}, and the file format knows only "
                f"{', '.join(t.__name__ for t in TYPES)}"
            )
    finite_model(model)
    contents = []
    for codings in CHOICES[choice(coding, "coding", CHOICES)]:
        writer = Writer(codings)
        _code_model(writer, model.layers)
        bulk, coded = bytes(writer.bulk), writer.coder.finish()
        if writer.coder.work <= allowed_work(len(coded)):
            contents.append(put_varint(len(bulk)) + bulk + coded)
    if not contents:
        raise CompressionError("model has more parts than a reader would accept")
    return sealed(MAGIC, VERSION, min(contents, key=len))


def loads(blob: bytes, *, max_bytes: int = MAX_BYTES) -> Network:
    """Decode the bytes of a file that `save` wrote.

    Parameters
    ----------
    blob : bytes
    max_bytes : int
        Memory that the decoded weights and their parts may take; a few bytes can decode to very
        large arrays. A model that needs more is refused before the memory is taken.

    Returns
    -------
    Network

    Raises
    ------
    FileFormatError
        The bytes are not a whole, unaltered file of a known version, need more memory, or hold a
        weight that is NaN or infinite.

    Examples
    --------
    >>> blob = dumps(Sequential((Flatten(),)))
    >>> loads(blob[:-1])
    Traceback (most recent call last):
    minicompress.errors.FileFormatError: the checksum is not that of the bytes: the file is damaged
    """
    raw, limit = blob_bytes(blob), as_int(max_bytes, "max_bytes", 0)
    frame = ByteReader(unsealed(raw, MAGIC, VERSION))
    bulk = frame.take(frame.varint())
    reader = Reader(frame.take(frame.left), bulk, limit)
    try:
        layers = _code_model(reader, ())
        reader.coder.finish()
        reader.bulk.end()
        model = Sequential(layers)
        finite_model(model)
    except FileFormatError:
        raise
    except CompressionError as error:  # from the layers and representations themselves
        raise FileFormatError(f"the file describes something impossible: {error}") from None
    return model


def _code_model(section: Section, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Code all layers. A reader passes none."""
    coded: list[Layer] = []
    features: int | None = None  # the number of outputs of the layer before, if known
    count = section.number("layers", len(layers))
    for _, layer in zip(range(count), chain(layers, repeat(LAYERS[0]))):
        section.part()
        number = section.choice("layer", TYPES.index(type(layer)), len(TYPES))
        if isinstance(section, Reader):
            layer = LAYERS[number]
        with np.errstate(all="ignore"):  # a damaged batch normalization may overflow
            layer = _code_layer(section, layer, features)
        coded.append(layer)
        if isinstance(layer, Flatten):
            features = None
        for rep in layer.parameters().values():  # the last axis is that of the outputs
            features = shape_of(rep)[-1]
    return tuple(coded)


def _code_layer(section: Section, layer: Layer, features: int | None) -> Layer:
    """Code a layer. A reader passes one of the same type, whose values are ignored."""
    match layer:
        case Dense():
            inputs = _code_inputs(section, shape_of(layer.weight)[0], features)
            return Dense(*_code_affine(section, layer, (inputs, None)))
        case Conv2D():
            stride = _code_pair(section, "stride", layer.stride)
            padding = _code_padding(section, layer.padding)
            dilation = _code_pair(section, "dilation", layer.dilation)
            groups = section.number("groups", layer.groups - 1) + 1
            expected = None if features is None else features // groups
            inputs = _code_inputs(section, shape_of(layer.weight)[2], expected)
            weight, bias = _code_affine(section, layer, (None, None, inputs, None))
            return Conv2D(
                weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
            )
        case BatchNorm():
            channels = _code_inputs(section, layer.scale.size, features)
            dtype = DTYPES[section.choice("dtype", DTYPES.index(layer.scale.dtype), 3)]
            scale, offset, mean, variance = (
                section.floats((channels,), dtype, array)
                for array in (layer.scale, layer.offset, layer.mean, layer.variance)
            )
            epsilon = _code_real(section, layer.epsilon, 1e-5)
            return BatchNorm(scale, offset, mean, variance, epsilon)
        case MaxPool2D() | AvgPool2D():
            window = _code_pair(section, "window", layer.window)
            steps: Pair | None = None
            if section.flag("pool stride", layer.stride is not None):
                steps = _code_pair(section, "stride", layer.stride or 1)
            padding = _code_padding(section, layer.padding)
            if isinstance(layer, MaxPool2D):
                return MaxPool2D(window, steps, padding)
            include = section.flag("count_include_pad", layer.count_include_pad)
            return AvgPool2D(window, steps, padding, include)
        case LeakyReLU():
            return LeakyReLU(_code_real(section, layer.negative_slope, 0.01))
        case Dropout():
            return Dropout(_code_real(section, layer.rate, 0.5))
    return layer  # the others have no fields


def _code_affine(
    section: Section, layer: Dense | Conv2D, shape: Template
) -> tuple[Rep, Rep | None]:
    """Code weight and bias. A bias has the weight's dtype and one entry for each output."""
    weight = code_rep(section, shape, None, layer.weight)
    if not section.flag("bias", layer.bias is not None):
        return weight, None
    bias = layer.weight if layer.bias is None else layer.bias  # a reader's stand-in has none
    return weight, code_rep(section, shape_of(weight)[-1:], dtype_of(weight), bias)


def _code_inputs(section: Section, inputs: int, expected: int | None) -> int:
    """Code a number of inputs, which usually is the expected number."""
    if expected is not None and section.flag("as expected", inputs == expected):
        return expected
    return section.number("size", inputs)


def _code_pair(section: Section, name: str, value: Pair) -> tuple[int, int]:
    first, second = pair(value, name, 1)
    return section.number(name, first), section.number(name, second)


def _code_padding(section: Section, padding: Padding) -> Padding:
    words = ("valid", "same")
    word = words.index(padding) if isinstance(padding, str) else len(words)
    word = section.choice("padding", word, len(words) + 1)
    if word < len(words):
        return words[word]
    given = (0, 0) if isinstance(padding, str) else padding
    (top, bottom), (left, right) = resolve_padding(given, (1, 1), (1, 1))
    top, bottom, left, right = (section.number("pad", n) for n in (top, bottom, left, right))
    return (top, bottom), (left, right)


def _code_real(section: Section, value: float, usual: float) -> float:
    if section.flag("usual", value == usual):
        return usual
    return float(section.floats((), np.dtype(np.float64), np.array(value, np.float64)))
