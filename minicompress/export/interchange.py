"""Weights from Keras and PyTorch, and back: other names, other layouts, the same numbers.

Arrays come as a mapping of names to arrays, whatever file they were in: ``np.load`` of an .npz,
``safetensors.numpy.load_file``, a state dict. What is wrong with them is said all at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from minicompress.arrays import FLOATS, Array, DType, freeze, not_finite
from minicompress.errors import CompressionError
from minicompress.export.array_names import matched
from minicompress.export.layouts import Slot, slots_of
from minicompress.nn.model import Sequential, finite_model, with_parameters
from minicompress.nn.weightless import Shape
from minicompress.representation import decode

# What each of our fields is called, and the stem of a layer's name in Keras.
KERAS_NAMES = {
    "weight": "kernel",
    "bias": "bias",
    "scale": "gamma",
    "offset": "beta",
    "mean": "moving_mean",
    "variance": "moving_variance",
}
TORCH_NAMES = {
    "weight": "weight",
    "bias": "bias",
    "scale": "weight",
    "offset": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}
KERAS_STEMS = {"conv": "conv2d", "dense": "dense", "norm": "batch_normalization"}


def load_weights(
    model: Sequential,
    arrays: Mapping[str, Any],
    *,
    layout: str = "keras",
    input_shape: Shape | None = None,
    names: Mapping[str, str] | None = None,
    dtype: DTypeLike | None = None,
) -> Sequential:
    """The model with the weights of a Keras or PyTorch model of the same architecture.

    Parameters
    ----------
    model : Sequential
        Its own weights do not matter, only their shapes and dtype.
    arrays : mapping of str to array
        Exactly one for every weight. Left out of account: ``num_batches_tracked`` and the seeds of
        Keras's dropout.
    layout : "keras" | "torch"
        Kernels (kh, kw, in, out), dense weights (in, out) and images flattened channels last; or
        (out, in, kh, kw), (out, in) and channels first.
    input_shape : tuple of int, optional
        (H, W, C) of one input of `model`. Needed for PyTorch's layout where weights stand behind a
        `Flatten`: their rows are put in order.
    names : mapping of str to str, optional
        For every weight of the model, as "0.weight", "0.bias", "1.scale", ..., the name of its
        array, where names are such that they have to be told.
    dtype : "float16" | "float32" | "float64", optional
        Convert arrays of other float dtypes to this one, which the model then has. By default each
        must have the model's.

    Returns
    -------
    Sequential
        Of plain arrays.

    Raises
    ------
    CompressionError
        Arrays are missing, left over, of wrong shapes or dtypes, pickled objects, not finite, or
        cannot be told apart: all of it in one message. An argument is not as above.

    Notes
    -----
    Layers are matched by kind (convolution, dense, batch normalization) in the order of the
    mapping, arrays within a layer by the end of their names (kernel, weight, bias, gamma, beta,
    moving_mean, running_var, vars/0, ...). Alphabetical order, in which safetensors and HDF5 files
    come, says nothing: then numbers in the names do ("features.2" before "features.10"), and where
    there are none to tell arrays of one shape apart, that is an error and `names` has to. If no
    name ends in a known word, all arrays are matched one by one, as ``np.savez(file,
    *keras_model.get_weights())`` puts them.

    A kernel of Keras's DepthwiseConv2D, (kh, kw, channels, multiplier), goes into a `Conv2D` with
    as many groups as channels. A `BatchNorm` keeps its epsilon, which is no array: 1e-3 is Keras's
    own choice, 1e-5 PyTorch's.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(np.zeros((2, 3)), np.zeros(3)),))
    >>> arrays = {"fc.weight": np.ones((3, 2)), "fc.bias": np.ones(3)}
    >>> load_weights(model, arrays, layout="torch")(np.array([[1.0, 2.0]]))
    array([[4., 4., 4.]])
    >>> load_weights(model, {"fc.weight": np.ones((3, 2))})
    Traceback (most recent call last):
    minicompress.errors.CompressionError: arrays do not fit the model:
      misshapen: 'fc.weight' for layer 0 (Dense) weight must be (2, 3), not (3, 2), \
as layout='torch' has it
      missing: layer 0 (Dense) bias, (3,)
    """
    slots = slots_of(model, layout, input_shape)
    wanted = None if dtype is None else _float_dtype(dtype)
    given = _given(arrays)
    problems: list[str] = []
    if names is None:
        found = matched([(slot.kind, slot.field, slot.shape) for slot in slots], given, problems)
    else:
        found = _named(slots, names)
    taken = set(found.values())
    values: list[dict[str, Array]] = [{} for _ in model.layers]
    for index, slot in enumerate(slots):
        name = found.get(index)
        if name is None or name not in given:
            asked = "" if name is None else f", {name!r}"
            problems.append(f"missing: {slot.label}{asked}, {slot.shape}")
            continue
        trouble = _trouble(given[name], slot, wanted)
        problems += [f"{kind}: {name!r} for {slot.label} {text}" for kind, text in trouble]
        if not trouble:
            array = given[name].astype(slot.dtype if wanted is None else wanted)
            values[slot.layer][slot.field] = slot.inward(array.reshape(slot.shape))
    problems += [f"extra: {n!r}, {a.shape}" for n, a in given.items() if n not in taken]
    if problems:
        raise CompressionError("\n  ".join(["arrays do not fit the model:", *problems]))
    return with_parameters(
        model, tuple({n: freeze(np.array(a, order="C")) for n, a in v.items()} for v in values)
    )


def weights_out(
    model: Sequential, *, layout: str = "keras", input_shape: Shape | None = None
) -> dict[str, Array]:
    """A model's weights as Keras or PyTorch has them: the way back from `load_weights`.

    Parameters
    ----------
    model : Sequential
        Representations are decoded.
    layout, input_shape
        As for `load_weights`.

    Returns
    -------
    dict of str to ndarray
        Arrays of your own. PyTorch: named as in a ``torch.nn.Sequential`` of the same layers, for
        its ``load_state_dict``. Keras: in the order that ``set_weights`` takes.

    Raises
    ------
    CompressionError
        An argument is not as for `load_weights`, a layer's weights have no such layout, or one of
        them is NaN or infinite.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense, Flatten
    >>> model = Sequential((Flatten(), Dense(np.zeros((4, 3)), np.zeros(3))))
    >>> for name, array in weights_out(model, layout="torch", input_shape=(1, 2, 2)).items():
    ...     print(name, array.shape)
    1.weight (3, 4)
    1.bias (3,)
    >>> list(weights_out(model))
    ['dense/kernel', 'dense/bias']
    """
    slots = slots_of(model, layout, input_shape)
    finite_model(model)
    out: dict[str, Array] = {}
    numbers: dict[str, dict[int, int]] = defaultdict(dict)  # Keras counts layers of each kind
    for slot in slots:
        array = decode(model.layers[slot.layer].parameters()[slot.field])
        if layout == "torch":
            name = f"{slot.layer}.{TORCH_NAMES[slot.field]}"
        else:
            count = numbers[slot.kind].setdefault(slot.layer, len(numbers[slot.kind]))
            stem = KERAS_STEMS[slot.kind] + (f"_{count}" if count else "")
            name = f"{stem}/{KERAS_NAMES[slot.field]}"
        out[name] = slot.outward(array)
    return out


def _given(arrays: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays by name, of any shape and dtype."""
    if not isinstance(arrays, Mapping):
        raise CompressionError(
            f"arrays must be a mapping of names to arrays, not {type(arrays).__name__}"
        )
    given: dict[str, Array] = {}
    unreadable = []
    for name in arrays:
        if not isinstance(name, str):
            raise CompressionError(f"arrays must be named by strings, not {name!r}")
        parts = name.replace("/", ".").split(".")
        if parts[-1] == "num_batches_tracked" or any(p.startswith("seed_generator") for p in parts):
            continue
        try:
            value = arrays[name]
            if isinstance(value, np.ma.MaskedArray):
                raise TypeError("it is masked: fill it first")
            given[name] = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:  # pickles, ragged lists, tensors
            unreadable.append(f"unreadable: {name!r}: {error}")
    if unreadable:  # without their shapes nothing can be said of the others
        raise CompressionError("\n  ".join(["arrays cannot all be read:", *unreadable]))
    return given


def _named(slots: list[Slot], names: Mapping[str, str]) -> dict[int, str]:
    """Which array belongs to which slot, as the caller has it."""
    if not isinstance(names, Mapping):
        raise CompressionError(
            f"names must be a mapping like {{'0.weight': 'conv'}}, not {type(names).__name__}"
        )
    keys = [slot.key for slot in slots]
    unknown = [key for key in names if key not in keys]
    if unknown:
        raise CompressionError(f"names must be among {keys}, not {unknown}")
    return {i: names[key] for i, key in enumerate(keys) if key in names}


def _trouble(array: Array, slot: Slot, dtype: DType | None) -> list[tuple[str, str]]:
    """All that is wrong with an array for a slot."""
    trouble = []
    target = slot.dtype if dtype is None else dtype
    native = array.dtype.newbyteorder("=")
    if array.dtype.hasobject:
        trouble.append(("pickled", f"must be of {target}, not Python objects"))
    elif native not in FLOATS:
        trouble.append(("wrong dtype", f"must be of {target}, not {array.dtype}"))
    elif dtype is None and native != target:
        text = f"must be of {target}, not {array.dtype}; dtype={str(target)!r} converts it"
        trouble.append(("wrong dtype", text))
    elif fault := not_finite(array):
        trouble.append(("not finite", f"must hold numbers, but {fault}"))
    elif (np.abs(array) > np.finfo(target).max).any():
        trouble.append(("wrong dtype", f"has numbers too large for {target}"))
    if array.shape not in {slot.shape, slot.depthwise}:
        unnamed = "torch" if slot.layout == "keras" else "keras"
        hint = f", as layout={unnamed!r} has it" if array.shape == slot.other else ""
        trouble.append(("misshapen", f"must be {slot.shape}, not {array.shape}{hint}"))
    return trouble


def _float_dtype(dtype: DTypeLike) -> DType:
    try:
        found = np.dtype(dtype)
    except TypeError:
        pass
    else:
        if found in FLOATS:
            return found
    raise CompressionError(f"dtype must be float16, float32 or float64, not {dtype!r}")
