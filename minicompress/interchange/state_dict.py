"""Weights from Keras and PyTorch, and back: other names, other layouts, the same numbers.

Arrays are given as a mapping of names to arrays: a state dict, ``np.load`` of an .npz file,
``safetensors.numpy.load_file``. One error lists everything that is wrong with them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minicompress.arrays import FLOATS, Array, DType, freeze, not_finite
from minicompress.errors import CompressionError
from minicompress.interchange.array_names import (
    OTHER,
    STAND_INS,
    WORDS,
    listed,
    matched,
    refuse_foreign,
    summed,
)
from minicompress.interchange.layouts import Slot, slots_of
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import finite_model, with_parameters
from minicompress.nn.pointwise import PReLU
from minicompress.representation import Rep, decode

KERAS_STEMS: dict[type[Layer], str] = {
    Conv2D: "conv2d",
    ConvTranspose2D: "conv2d_transpose",
    Dense: "dense",
    BatchNorm: "batch_normalization",
    PReLU: "p_re_lu",
}


def from_state_dict(
    model: Network,
    arrays: Mapping[str, Any],
    *,
    layout: str = "keras",
    input_shape: Shape | None = None,
    flatten: str | None = None,
    prefix: str = "",
    names: Mapping[str, str | None] | None = None,
    dtype: DTypeLike | None = None,
) -> Network:
    """Give a model the weights of a Keras or PyTorch model of the same architecture.

    Parameters
    ----------
    model : Network
        The values of its weights do not matter, only their shapes and dtype.
    arrays : mapping of str to array
        One array for every weight. A batch normalization without gamma or beta (``scale=False``,
        ``center=False`` or ``affine=False``) gets ones or zeros for them. Ignored:
        ``num_batches_tracked``, and the seeds of Keras's dropout.
    layout : "keras" | "torch"
        "keras": kernels (kh, kw, in, out), dense weights (in, out), images flattened with the
        channels last. "torch": kernels (out, in, kh, kw), dense weights (out, in), images
        flattened with the channels first. Transposed convolutions have kernels (kh, kw, out, in)
        and (in, out // groups, kh, kw). Names that only the other framework uses are refused.
    input_shape : tuple of int, optional
        The shape (H, W, C) of one input of `model`. It is needed if weights stand after a
        `Flatten` and the other network flattens in another order than "hwc": their rows are then
        reordered.
    flatten : str, optional
        The order in which the other network flattens an image, slowest axis first: any order of
        the letters h, w and c. By default "hwc" for Keras and "chw" for PyTorch.
    prefix : str
        Use only the arrays whose names begin with this, for example "backbone.".
    names : mapping of str to str, optional
        The name of the array for every weight of the model ("0.weight", "0.bias", "1.scale", ...),
        for models whose names cannot be matched automatically. None means that there is no such
        scale or offset. No other arrays are used.
    dtype : "float16" | "float32" | "float64", optional
        Convert all arrays to this dtype, which the model then has. They may be of float16,
        float32, float64 or a float dtype of the package ml_dtypes, such as bfloat16. Each number
        is rounded once. By default every array must have the model's dtype.

    Returns
    -------
    Network
        The model with plain arrays as weights.

    Raises
    ------
    CompressionError
        Arrays are missing, left over, of wrong shapes or dtypes, pickled objects, or not finite:
        one message of at most 20 lines lists all of this. Or arrays cannot be told apart, have the
        names of the other framework, or an argument is invalid.

    Notes
    -----
    Arrays belong to the same layer if their names differ only in the last word (kernel, weight,
    bias, gamma, beta, moving_mean, running_var, vars/0, ...). Layers are matched by kind
    (convolution, transposed or not; dense; batch normalization; PReLU), in the order of the
    mapping. PyTorch has the modules in the order in which they were made: in torchvision's residual
    blocks the shortcut comes last, as in `resnet20`.

    safetensors and HDF5 files have their names in alphabetical order, which is not the order of
    the layers. Then layers are ordered by the numbers in their names ("features.2.conv" before
    "features.10"), and by shapes if names differ by a word before any number ("bn1" and
    "layer1.bn1"). If that is ambiguous, it is an error, and `names` must be given.

    If no name ends in a known word, arrays are matched one by one, in the order that
    ``np.savez(file, *keras_model.get_weights())`` gives.

    A kernel of Keras's DepthwiseConv2D, (kh, kw, channels, multiplier), fits a `Conv2D` with as
    many groups as channels. A slope of PyTorch's PReLU for all channels, (1,), fits any, and so
    does Keras's (1, 1, channels), of ``shared_axes=[1, 2]``. A `BatchNorm` keeps its epsilon, which
    is not an array: Keras's default is 1e-3, PyTorch's is 1e-5.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(np.zeros((2, 3)), np.zeros(3)),))
    >>> arrays = {"fc.weight": np.ones((3, 2)), "fc.bias": np.ones(3)}
    >>> from_state_dict(model, arrays, layout="torch")(np.array([[1.0, 2.0]]))
    array([[4., 4., 4.]])
    >>> from_state_dict(model, {"fc.weight": np.ones((3, 3))}, layout="torch")
    Traceback (most recent call last):
    minicompress.errors.CompressionError: arrays do not fit the model:
      misshapen: 'fc.weight' for layer 0 (Dense) weight must be (3, 2), not (3, 3)
      missing: layer 0 (Dense) bias, (3,)
    """
    slots = slots_of(model, layout, input_shape, flatten)
    wanted = None if dtype is None else _float_dtype(dtype)
    found = None if names is None else _named(slots, names)
    given = _given(arrays, prefix, None if found is None else set(found.values()))
    refuse_foreign(given, layout)
    if found is None:
        found = matched(slots, given, layout)
    problems: dict[str, list[str]] = defaultdict(list)
    values: list[dict[str, Rep]] = [{} for _ in model.layers]
    for index, slot in enumerate(slots):
        name, target = found.get(index), slot.dtype if wanted is None else wanted
        if name in given:
            array = given[name]
        elif index in found and name is None:
            array = np.full(slot.shape, STAND_INS[slot.field], slot.dtype)
        else:
            asked = "" if name is None else f", {name!r}"
            problems["missing"].append(f"{slot.label}{asked}, {slot.shape}")
            continue
        trouble = list(_trouble(array, slot, target, wanted is not None, OTHER[layout][0]))
        for kind, text in trouble:
            problems[kind].append(f"{name!r} for {slot.label} {text}")
        if not trouble:
            array = _converted(array, target)
            values[slot.layer][slot.field] = freeze(np.array(slot.inward(array), order="C"))
    taken = set(found.values())
    if extra := [f"{n!r}, {a.shape}" for n, a in given.items() if n not in taken]:
        problems["extra"] = extra
    if problems:
        raise _error("arrays do not fit the model:", problems)
    return with_parameters(model, tuple(values))


def to_state_dict(
    model: Network,
    *,
    layout: str = "keras",
    input_shape: Shape | None = None,
    flatten: str | None = None,
) -> dict[str, Array]:
    """Return a model's weights as Keras or PyTorch has them: the inverse of `from_state_dict`.

    Parameters
    ----------
    model : Network
        Representations are decoded.
    layout, input_shape, flatten
        As for `from_state_dict`.

    Returns
    -------
    dict of str to ndarray
        New, writable arrays. PyTorch: named as in a ``torch.nn.Sequential`` of the same layers, for
        its ``load_state_dict``. Keras: in the order of ``set_weights``.

    Raises
    ------
    CompressionError
        An argument is invalid, a layer's weights have no such layout, or a weight is NaN or
        infinite.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.stateless import Flatten
    >>> model = Sequential((Flatten(), Dense(np.zeros((4, 3)), np.zeros(3))))
    >>> for name, array in to_state_dict(model, layout="torch", input_shape=(1, 2, 2)).items():
    ...     print(name, array.shape)
    1.weight (3, 4)
    1.bias (3,)
    >>> list(to_state_dict(model))
    ['dense/kernel', 'dense/bias']
    """
    slots = slots_of(model, layout, input_shape, flatten)
    finite_model(model)
    out: dict[str, Array] = {}
    numbers: dict[str, dict[int, int]] = defaultdict(dict)  # Keras numbers the layers of each type
    for slot in slots:
        array = decode(model.layers[slot.layer].parameters()[slot.field])
        if layout == "torch":
            name = f"{slot.layer}.{WORDS[layout][slot.field]}"
        else:
            stem = KERAS_STEMS[type(model.layers[slot.layer])]
            count = numbers[stem].setdefault(slot.layer, len(numbers[stem]))
            stem += f"_{count}" if count else ""
            name = f"{stem}/{WORDS[layout][slot.field]}"
        out[name] = slot.outward(array)
    return out


def _given(
    arrays: Mapping[str, Any], prefix: str, names: set[str | None] | None
) -> dict[str, Array]:
    """The arrays with this prefix and among these names, of any shape and dtype."""
    if not isinstance(arrays, Mapping):
        raise CompressionError(
            f"arrays must be a mapping of names to arrays, not {type(arrays).__name__}"
        )
    if not isinstance(prefix, str):
        raise CompressionError(f"prefix must be a string, not {prefix!r}")
    given: dict[str, Array] = {}
    unreadable = []
    for name in arrays:
        if not isinstance(name, str):
            raise CompressionError(f"arrays must be named by strings, not {name!r}")
        parts = name.replace("/", ".").split(".")
        if parts[-1] == "num_batches_tracked" or any(p.startswith("seed_generator") for p in parts):
            continue
        if not name.startswith(prefix) or (names is not None and name not in names):
            continue
        try:
            value = arrays[name]
            if isinstance(value, np.ma.MaskedArray):
                raise TypeError("it is masked: fill it first")
            given[name] = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:  # pickles, ragged lists, tensors
            unreadable.append(f"{name!r}: {error}")
    if arrays and not any(name.startswith(prefix) for name in arrays):
        raise CompressionError(f"prefix must begin a name of {listed(arrays)}, not {prefix!r}")
    if unreadable:  # the other arrays cannot be matched without their shapes
        raise _error("arrays cannot all be read:", {"unreadable": unreadable})
    return given


def _named(slots: list[Slot], names: Mapping[str, str | None]) -> dict[int, str | None]:
    """The name of the array for each slot, by the slot's index, as the caller gives them."""
    if not isinstance(names, Mapping):
        raise CompressionError(
            f"names must be a mapping like {{'0.weight': 'conv'}}, not {type(names).__name__}"
        )
    keys = {slot.key: index for index, slot in enumerate(slots)}
    if unknown := [key for key in names if key not in keys]:
        raise CompressionError(f"names must be among {listed(keys)}, not {listed(unknown)}")
    for key, name in names.items():
        if not isinstance(name, str) and (name is not None or key.split(".")[1] not in STAND_INS):
            raise CompressionError(f"names[{key!r}] must be the name of an array, not {name!r}")
    return {keys[key]: name for key, name in names.items()}


def _trouble(
    array: Array, slot: Slot, target: DType, convert: bool, unnamed: str
) -> Iterator[tuple[str, str]]:
    """Everything that is wrong with an array for a slot; `unnamed` is the other layout."""
    if array.dtype.hasobject:
        yield "pickled", f"must be of {target}, not Python objects"
    elif "float" not in array.dtype.name or not np.can_cast(array.dtype, np.float64):
        # By name: in ml_dtypes most floats have kind "V", and so have the integers.
        yield "wrong dtype", f"must be of {target}, not {array.dtype}"
    elif not convert and array.dtype.newbyteorder("=") != target:
        said = f"must be of {target}, not {array.dtype}; dtype={str(target)!r} converts it"
        yield "wrong dtype", said
    elif fault := not_finite(_converted(array, target)):
        yield "not finite", f"must hold numbers of {target}, but {fault}"
    if array.shape not in {slot.shape, *slot.others}:
        hint = f", as layout={unnamed!r} has it" if array.shape == slot.unnamed else ""
        yield "misshapen", f"must be {slot.shape}, not {array.shape}{hint}"


def _converted(array: Array, dtype: DType) -> Array:
    """Round to `dtype`; too large numbers become infinite."""
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def _error(header: str, problems: Mapping[str, list[str]]) -> CompressionError:
    """An error that lists all problems in at most 20 lines."""
    lines = [
        f"{kind}: {text}"
        for kind, texts in problems.items()
        for text in summed(texts, 19 // len(problems))
    ]
    return CompressionError("\n  ".join([header, *lines]))


def _float_dtype(dtype: DTypeLike) -> DType:
    with suppress(TypeError):
        if (found := np.dtype(dtype)) in FLOATS:
            return found
    raise CompressionError(f"dtype must be float16, float32 or float64, not {dtype!r}")
