"""Weights of Keras and PyTorch: in and out again, and every way in which they do not fit."""

import math
import os
import struct
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from minicompress.arrays import freeze
from minicompress.errors import CompressionError
from minicompress.interchange.state_dict import from_state_dict, to_state_dict
from minicompress.nn.architectures import digits_cnn
from minicompress.nn.composition import Sequential
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import decoded, parameters, with_parameters
from minicompress.nn.pointwise import ReLU
from minicompress.nn.stateless import Flatten
from minicompress.representation import decode
from minicompress.testing.models import models

F = np.float32
CNN = digits_cnn(np.random.default_rng(0))
GOOD = to_state_dict(CNN)
EXAMPLE = Path(__file__).parents[1] / "examples" / "from_keras_and_torch.py"

# Square in all that can be mistaken for each other, so that a mistake is not stopped by a shape.
SHAPE = (3, 4, 2)
HERE = Sequential(
    (
        Conv2D(np.zeros((2, 2, 2, 2), F), np.zeros(2, F)),
        Flatten(),
        BatchNorm(*np.ones((4, 12), F), epsilon=1.0),
        ReLU(),
        Dense(np.zeros((12, 12), F), np.zeros(12, F)),
        Dense(np.zeros((12, 12), F), np.zeros(12, F)),
    )
)
TORCH = {
    "conv.weight": (2, 2, 2, 2),
    "conv.bias": (2,),
    "norm.weight": (12,),
    "norm.bias": (12,),
    "norm.running_mean": (12,),
    "norm.running_var": (12,),
    "norm.num_batches_tracked": (),
    "fc1.weight": (12, 12),
    "fc1.bias": (12,),
    "fc2.weight": (12, 12),
    "fc2.bias": (12,),
}


@st.composite
def state_dicts(draw):
    """What a PyTorch model holds, in whole numbers that no sum of the oracle rounds."""

    def whole(shape):
        return draw(npst.arrays(F, shape, elements=st.integers(-3, 3), fill=st.nothing()))

    arrays = {name: whole(shape) for name, shape in TORCH.items()}
    # With epsilon 1 the deviation is 2, and 2 * scale / 2 is whole.
    arrays["norm.running_var"] = np.full(12, 3, F)
    arrays["norm.weight"] *= 2
    arrays["norm.num_batches_tracked"] = np.array(7)
    return arrays


pictures = npst.arrays(F, (2, *SHAPE), elements=st.integers(-3, 3), fill=st.nothing())


ORDERS = ["".join(axes) for axes in permutations("hwc")]


def torch_forward(arrays, x, flatten="chw"):
    """The network as PyTorch runs it, on (N, C, H, W), written out."""
    n, _, h, w = x.shape
    y = np.zeros((n, 2, h - 1, w - 1), F)
    for p in range(2):
        for q in range(2):
            patch = x[:, :, p : p + h - 1, q : q + w - 1]
            y += np.einsum("nchw,oc->nohw", patch, arrays["conv.weight"][:, :, p, q])
    y = np.einsum(f"nchw->n{flatten}", y + arrays["conv.bias"][:, None, None]).reshape(n, -1)
    y = (y - arrays["norm.running_mean"]) / 2 * arrays["norm.weight"] + arrays["norm.bias"]
    for name in ("fc1", "fc2"):
        y = np.maximum(y, 0) if name == "fc1" else y
        y = y @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]
    return y


def law_torch(load, arrays, x, flatten="chw"):
    """PyTorch's arrays give PyTorch's outputs, exactly, and are not written to."""
    before = {name: array.copy() for name, array in arrays.items()}
    options = {} if flatten == "chw" else {"flatten": flatten}
    model = load(HERE, arrays, layout="torch", input_shape=SHAPE, **options)
    expected = torch_forward(arrays, x.transpose(0, 3, 1, 2), flatten)
    np.testing.assert_array_equal(model(x), expected)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


@given(state_dicts(), pictures, st.sampled_from(ORDERS))
def test_the_arrays_of_pytorch(arrays, x, flatten):
    law_torch(from_state_dict, arrays, x, flatten)


def same_weights(a, b):
    for left, right in zip(parameters(a), parameters(b), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert isinstance(value, np.ndarray)
            assert value.dtype == right[name].dtype
            assert value.tobytes() == np.ascontiguousarray(right[name]).tobytes()


def blank(model):
    """The model decoded, all weights zero."""
    zeros = [{n: np.zeros_like(decode(v)) for n, v in p.items()} for p in parameters(model)]
    return with_parameters(decoded(model), tuple(zeros))


def law_round_trip(load, model, layout, flatten=None):
    """Out and in again: the decoded weights bit for bit, whatever was there before."""
    options = {"layout": layout, "input_shape": (5, 4, 2), "flatten": flatten}
    arrays = to_state_dict(model, **options)
    assert all(a.flags.writeable and a.flags.c_contiguous for a in arrays.values())
    same_weights(load(blank(model), arrays, **options), decoded(model))


LAYOUTS = st.sampled_from(["keras", "torch"])


@given(models(), LAYOUTS, st.none() | st.sampled_from(ORDERS))
def test_out_and_in_again(model, layout, flatten):
    law_round_trip(from_state_dict, model, layout, flatten)


@given(models(), st.sampled_from(ORDERS))
def test_both_layouts_flatten_alike_in_the_same_order(model, flatten):
    keras, torch = (
        to_state_dict(model, layout=layout, input_shape=(5, 4, 2), flatten=flatten).values()
        for layout in ("keras", "torch")
    )
    for ours, theirs in zip(keras, torch, strict=True):
        if ours.ndim == 4:
            theirs = theirs.transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(ours, theirs.T if ours.ndim == 2 else theirs)


def test_an_image_needs_no_shape_where_both_flatten_alike():
    arrays = to_state_dict(CNN, layout="torch", flatten="hwc")
    same_weights(from_state_dict(CNN, arrays, layout="torch", flatten="hwc"), CNN)
    for layout, flatten in [("keras", "whc"), ("torch", None)]:
        with pytest.raises(CompressionError, match=r"input_shape .* layer 5 \(Dense\) stands"):
            to_state_dict(CNN, layout=layout, flatten=flatten)


# Batch normalization without gamma or beta ------------------------------------------------------

NORMS = Sequential(tuple(BatchNorm(*np.full((4, 3), 7, F)) for _ in range(2)))
ABSENT = st.sets(st.tuples(st.integers(0, 1), st.sampled_from(["scale", "offset"])))
STATISTICS = npst.arrays(F, (2, 4, 3), elements=st.integers(0, 9), fill=st.nothing())


def law_absent(load, values, absent, layout):
    """Ones stand in for gamma and zeros for beta."""
    model = Sequential(tuple(BatchNorm(*v) for v in values))
    fields = [dict(p) for p in parameters(model)]
    arrays = to_state_dict(model, layout=layout)
    for (layer, field, _), name in zip(fields_of(model), list(arrays), strict=True):
        if (layer, field) in absent:
            del arrays[name]
            fields[layer][field] = np.full(3, field == "scale", F)
    same_weights(load(NORMS, arrays, layout=layout), with_parameters(model, tuple(fields)))


def fields_of(model):
    return [(i, n, v) for i, p in enumerate(parameters(model)) for n, v in p.items()]


@given(STATISTICS, ABSENT, LAYOUTS)
def test_ones_and_zeros_stand_in_for_gamma_and_beta(values, absent, layout):
    law_absent(from_state_dict, values, absent, layout)


def test_nothing_stands_in_for_other_weights():
    for name, field in [("batch_normalization/moving_mean", "mean"), ("dense/kernel", "weight")]:
        model = Sequential((*NORMS.layers, Dense(np.ones((3, 3), F))))
        arrays = to_state_dict(model)
        del arrays[name]
        with pytest.raises(CompressionError, match=rf"^\S.*\n  missing: layer .* {field}, .3"):
            from_state_dict(model, arrays)
    everything = dict(zip(("0.scale", "0.offset", "0.mean", "0.variance"), "abcd", strict=True))
    model = Sequential(NORMS.layers[:1])
    arrays = {name: np.full(3, i, F) for i, name in enumerate("abcd")}
    loaded = from_state_dict(model, arrays, names=everything | {"0.scale": None})
    assert [v[0] for v in parameters(loaded)[0].values()] == [1, 1, 2, 3]
    with pytest.raises(CompressionError, match=r"names\['0.mean'\] must be the name"):
        from_state_dict(model, arrays, names=everything | {"0.mean": None})
    del everything["0.scale"]
    with pytest.raises(CompressionError, match=r"missing: layer 0 \(BatchNorm\) scale"):
        from_state_dict(model, arrays, names=everything)


def test_the_arrays_of_keras_are_as_they_are_here():
    model = digits_cnn(np.random.default_rng(0))
    for ours, theirs in zip(
        [v for p in parameters(model) for v in p.values()],
        to_state_dict(model).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


# Other arrays -----------------------------------------------------------------------------------


def test_a_depthwise_kernel_of_keras():
    kernel = np.arange(2 * 3 * 4 * 2, dtype=F).reshape(2, 3, 4, 2)  # (kh, kw, channels, multiplier)
    model = Sequential((Conv2D(np.zeros((2, 3, 1, 8), F), groups=4),))
    loaded = from_state_dict(model, {"depthwise_conv2d/depthwise_kernel:0": kernel})
    x = np.arange(2 * 3 * 4, dtype=F).reshape(1, 2, 3, 4)
    expected = np.einsum("nhwc,hwcm->ncm", x, kernel).reshape(1, 8)  # whole numbers below 2**24
    np.testing.assert_array_equal(loaded(x)[:, 0, 0], expected)
    grouped = {"conv2d/kernel": kernel.reshape(2, 3, 1, 8)}
    same_weights(from_state_dict(model, grouped), loaded)


def test_what_frameworks_keep_besides_weights_is_left_alone():
    arrays = dict(GOOD)
    arrays["dropout/seed_generator/seed_generator_state"] = np.array([1, 2], np.uint32)
    same_weights(from_state_dict(CNN, arrays), CNN)


# Dtypes -----------------------------------------------------------------------------------------

TARGETS = {"float16": "e", "float32": "f", "float64": "d"}
SMALL_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


def rounded(value, target):
    """A Python float in another format, as Python's own struct rounds it; inf if too large."""
    try:
        return struct.unpack(TARGETS[target], struct.pack(TARGETS[target], value))[0]
    except OverflowError:
        return math.inf


def law_rounded_once(load, array, target):
    """Each number is the nearest one of the new dtype; one too large is refused by name."""
    model = Sequential((Dense(np.zeros((1, len(array)), F)),))
    expected = [rounded(float(value), target) for value in array]
    try:
        loaded, message = load(model, {"dense/kernel": array[None]}, dtype=target), ""
    except CompressionError as error:
        loaded, message = None, str(error)
    assert ("not finite: 'dense/kernel' for layer 0" in message) == (math.inf in map(abs, expected))
    if loaded is not None:
        (weight,) = parameters(loaded)[0].values()
        assert weight.dtype == target
        assert weight[0].tolist() == expected


@st.composite
def near_ties(draw):
    """Beside the middle of two numbers of float16, where a second rounding goes astray."""
    low = np.array(draw(st.integers(0, 0x7BFF)), np.uint16).view(np.float16)
    high = np.nextafter(low, np.float16(np.inf)) if low < 65504 else 65536
    return (float(low) + float(high)) / 2 * (1 + draw(st.sampled_from([-1, 0, 1])) * 2.0**-40)


WIDE = st.lists(near_ties() | st.floats(allow_nan=False, allow_infinity=False), min_size=1)


@given(WIDE.map(np.array), st.sampled_from(sorted(TARGETS)))
def test_floats_of_numpy_are_rounded_once(array, target):
    law_rounded_once(from_state_dict, array, target)
    with np.errstate(over="ignore"):
        narrow = array.astype(F)
    law_rounded_once(from_state_dict, narrow[np.isfinite(narrow)], target)


@pytest.mark.parametrize("name", SMALL_FLOATS)
@pytest.mark.parametrize("target", TARGETS)
def test_all_small_floats_are_rounded_once(name, target):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))
    codes = np.arange(0, 256**dtype.itemsize, 255 * dtype.itemsize - 254)  # all of 8 bits
    array = codes.astype(f"u{dtype.itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(array.astype(np.float64))
    fits = [
        f and math.isfinite(rounded(float(v), target)) for v, f in zip(array, finite, strict=True)
    ]
    law_rounded_once(from_state_dict, array[fits], target)
    for value in [*array[finite & ~np.array(fits)][:2], *array[~finite][:2]]:
        with pytest.raises(CompressionError, match="not finite: 'dense/kernel'"):
            from_state_dict(
                Sequential((Dense(np.zeros((1, 1), F)),)),
                {"dense/kernel": np.full((1, 1), value)},
                dtype=target,
            )


def test_a_dtype_is_only_converted_when_asked():
    for dtype in ("float16", "float64"):
        for order in ("=", "S"):
            arrays = {n: a.astype(np.dtype(dtype).newbyteorder(order)) for n, a in GOOD.items()}
            with pytest.raises(CompressionError, match="dtype='float32' converts it"):
                from_state_dict(CNN, arrays)
            loaded = from_state_dict(CNN, arrays, dtype=dtype)
            assert {v.dtype for p in parameters(loaded) for v in p.values()} == {np.dtype(dtype)}
    same_weights(from_state_dict(CNN, {n: a.astype(">f4") for n, a in GOOD.items()}), CNN)


NO_FLOATS = ["int64", "uint8", "bool", "complex64", "V4", "f4, f4", "m8[s]", "int4", "uint4"]


@pytest.mark.parametrize("name", NO_FLOATS)
def test_what_is_no_float_is_refused(name):
    if name in {"int4", "uint4"}:
        name = getattr(pytest.importorskip("ml_dtypes"), name)
    with pytest.raises(
        CompressionError, match=r"wrong dtype: 'dense/bias' .* must be of float32, "
    ):
        from_state_dict(CNN, GOOD | {"dense/bias": np.zeros(10, name)}, dtype="float32")


@pytest.mark.skipif(np.finfo(np.longdouble).bits == 64, reason="long double is float64 here")
def test_a_float_wider_than_float64_is_refused():
    """To float16 NumPy rounds it twice."""
    with pytest.raises(
        CompressionError, match=r"wrong dtype: 'dense/bias' .* must be of float32, "
    ):
        from_state_dict(CNN, GOOD | {"dense/bias": np.zeros(10, np.longdouble)}, dtype="float32")


# What does not fit ------------------------------------------------------------------------------

OBJECTS = np.array([None] * 10, object)
MALFORMED = {
    "missing": ({"conv2d_1/bias": None}, ["missing: layer 2 (Conv2D) bias, (32,)"]),
    "a whole layer missing": (
        {"dense/kernel": None, "dense/bias": None},
        ["missing: layer 5 (Dense) weight, (512, 10)", "missing: layer 5 (Dense) bias, (10,)"],
    ),
    "extra": ({"dense_1/kernel": np.zeros((10, 3), F)}, ["extra: 'dense_1/kernel', (10, 3)"]),
    "an unknown word": ({"step": np.zeros((), F)}, ["extra: 'step', ()"]),
    "misshapen": (
        {"dense/kernel": np.zeros((512, 11), F)},
        ["misshapen: 'dense/kernel' for layer 5 (Dense) weight must be (512, 10), not (512, 11)"],
    ),
    "the other layout": (
        {"conv2d/kernel": np.zeros((16, 1, 3, 3), F)},
        ["must be (3, 3, 1, 16), not (16, 1, 3, 3), as layout='torch' has it"],
    ),
    "of no layer's dimensions": (
        {"dense/kernel": np.zeros(5120, F)},
        [
            "missing: layer 5 (Dense) weight, (512, 10)",
            "missing: layer 5 (Dense) bias, (10,)",
            "extra: 'dense/kernel', (5120,)",
            "extra: 'dense/bias', (10,)",
        ],
    ),
    "double precision": (
        {"dense/bias": np.zeros(10)},
        ["wrong dtype: 'dense/bias' for layer 5 (Dense) bias must be of float32, not float64; "],
    ),
    "integers": (
        {"dense/bias": np.zeros(10, np.int8)},
        ["wrong dtype: 'dense/bias' for layer 5 (Dense) bias must be of float32, not int8"],
    ),
    "text": ({"dense/bias": "none"}, ["not <U4", "must be (10,), not ()"]),
    "pickled": (
        {"dense/bias": OBJECTS},
        ["pickled: 'dense/bias' for layer 5 (Dense) bias must be of float32, not Python objects"],
    ),
    "masked": ({"dense/bias": np.ma.zeros(10, F)}, ["unreadable: 'dense/bias': it is masked"]),
    "ragged": ({"dense/bias": [[1.0], [1.0, 2.0]]}, ["unreadable: 'dense/bias': "]),
    "all at once": (
        {
            "conv2d/kernel": np.zeros((16, 1, 3, 3), F),
            "conv2d/bias": np.zeros(16),
            "conv2d_1/bias": None,
            "conv2d_1/kernel": np.zeros((3, 3, 16, 33), np.int64),
            "dense/bias": OBJECTS,
            "lost": np.zeros(3, F),
        },
        [
            "misshapen: 'conv2d/kernel' for layer 0",
            "misshapen: 'conv2d_1/kernel' for layer 2 (Conv2D) weight must be (3, 3, 16, 32), "
            "not (3, 3, 16, 33)",
            "wrong dtype: 'conv2d/bias' for layer 0",
            "wrong dtype: 'conv2d_1/kernel' for layer 2",
            "missing: layer 2 (Conv2D) bias, (32,)",
            "pickled: 'dense/bias'",
            "extra: 'lost', (3,)",
        ],
    ),
}


def law_malformed(load, changes, lines):
    """One error, which says all of it."""
    arrays = {n: a for n, a in (GOOD | changes).items() if a is not None}
    try:
        load(CNN, arrays)
    except CompressionError as error:
        message = str(error)
    else:
        raise AssertionError("nothing was said")
    said = message.splitlines()[1:]
    assert len(said) == len(lines), message
    for line, wanted in zip(said, lines, strict=True):
        assert wanted in line, message


@pytest.mark.parametrize("name", MALFORMED)
def test_every_way_not_to_fit_is_said(name):
    law_malformed(from_state_dict, *MALFORMED[name])


def test_a_file_of_pickles(tmp_path):
    np.savez(tmp_path / "file.npz", **(GOOD | {"dense/bias": OBJECTS}))
    with (
        np.load(tmp_path / "file.npz") as arrays,
        pytest.raises(CompressionError, match=r"unreadable: 'dense/bias': .*allow_pickle"),
    ):
        from_state_dict(CNN, arrays)
    np.savez(tmp_path / "good.npz", **GOOD)
    with np.load(tmp_path / "good.npz") as arrays:
        same_weights(from_state_dict(CNN, arrays), CNN)


class Odd(Layer):
    """A layer with weights of a kind of its own."""

    def parameters(self):
        return {"weight": np.zeros(1, F)}


ARGUMENTS = {
    "layout": ({"layout": "onnx"}, "layout must be one of keras, torch"),
    "no input_shape": ({"layout": "torch"}, r"input_shape .* layer 5 \(Dense\) stands behind"),
    "input_shape": ({"layout": "torch", "input_shape": (8, 8, 3)}, r"layer 0 \(Conv2D\)"),
    "dtype": ({"dtype": "int8"}, "dtype must be float16, float32 or float64"),
    "no dtype": ({"dtype": "flat"}, "dtype must be float16, float32 or float64"),
    "flatten": ({"flatten": "hw"}, "flatten must be one of hwc, hcw, whc, wch, chw, cwh"),
    "prefix": ({"prefix": None}, "prefix must be a string, not None"),
    "prefix of nothing": (
        {"prefix": "head."},
        "prefix must begin a name of 'conv2d/kernel', .*, and 3 more, not 'head.'",
    ),
    "names": ({"names": {"9.weight": "x"}}, "names must be among"),
    "no names": ({"names": ["x"]}, "names must be a mapping"),
    "names of nothing": ({"names": {"0.weight": "x"}}, r"missing: layer 0 \(Conv2D\) weight, 'x'"),
    "arrays": ({"arrays": list(GOOD.values())}, "arrays must be a mapping"),
    "numbers for names": ({"arrays": dict(enumerate(GOOD.values()))}, "named by strings, not 0"),
    "model": ({"model": CNN.layers}, "model must be a Network"),
    "layer": ({"model": Sequential((Odd(),))}, r"layer 0 \(Odd\) has weights that"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name):
    options, message = ARGUMENTS[name]
    with pytest.raises(CompressionError, match=message):
        from_state_dict(**({"model": CNN, "arrays": GOOD} | options))


def test_the_example_runs_or_says_what_is_missing(tmp_path):
    path = os.pathsep.join([str(EXAMPLE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for name in ("PyTorch", "Keras"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(name)]
        assert "is not installed" in line or "largest difference" in line


# Wrong implementations --------------------------------------------------------------------------


def tampered(change):
    """The right weights, then a change of some: `change(fields of all layers, arrays)`."""

    def load(model, arrays, **options):
        fields = [dict(p) for p in parameters(from_state_dict(model, arrays, **options))]
        change(fields, arrays)
        return with_parameters(model, tuple(fields))

    return load


def put(layer, field, value):
    def change(fields, arrays):
        fields[layer][field] = freeze(np.ascontiguousarray(value(fields, arrays)))

    return tampered(change)


def swap(a, b):
    def change(fields, arrays):
        (i, m), (j, n) = a, b
        fields[i][m], fields[j][n] = fields[j][n], fields[i][m]

    return tampered(change)


ROWS = np.arange(12).reshape(2, 2, 3).transpose(1, 2, 0).ravel()
FIXED = {
    name: np.random.default_rng(i).integers(-3, 4, shape).astype(F)
    for i, (name, shape) in enumerate(TORCH.items())
} | {"norm.running_var": np.full(12, 3, F), "norm.weight": np.arange(2, 26, 2, dtype=F)}
PICTURES = np.random.default_rng(0).integers(-3, 4, (2, *SHAPE)).astype(F)


def law_fixed(load):
    law_torch(load, FIXED, PICTURES)


def silent(model, arrays, **options):
    """Takes what fits and says nothing of the rest."""
    try:
        return from_state_dict(model, arrays, **options)
    except CompressionError:
        return model


def first_only(model, arrays, **options):
    """Stops at the first thing that is wrong."""
    try:
        return from_state_dict(model, arrays, **options)
    except CompressionError as error:
        raise CompressionError("\n".join(str(error).splitlines()[:2])) from None


def writing(model, arrays, **options):
    loaded = from_state_dict(model, arrays, **options)
    arrays["fc1.bias"] += 1
    return loaded


def unflattened(model, arrays, flatten=None, **options):
    return from_state_dict(model, arrays, **options)


def from_the_fastest(model, arrays, flatten="chw", **options):
    return from_state_dict(model, arrays, flatten=flatten[::-1], **options)


def standing_in(scale, offset):
    """Other numbers for the gamma and beta that are not there."""

    def load(model, arrays, **options):
        full = {"0.weight": scale, "0.bias": offset, "1.weight": scale, "1.bias": offset}
        absent = {n: np.full(3, v, F) for n, v in full.items() if n not in arrays}
        return from_state_dict(model, arrays | absent, **options)

    return load


def law_absent_torch(load):
    law_absent(load, np.ones((2, 4, 3), F), {(0, "scale"), (1, "offset")}, "torch")


def through(dtype):
    """Rounded twice, or to infinity."""

    def load(model, arrays, **options):
        with np.errstate(over="ignore"):
            rounded = {n: a.astype(dtype) for n, a in arrays.items()}
        fields = [dict(p) for p in parameters(from_state_dict(model, GOOD_KERNEL, **options))]
        with np.errstate(over="ignore"):
            fields[0]["weight"] = rounded["dense/kernel"].astype(options["dtype"])
        return with_parameters(model, tuple(fields))

    return load


GOOD_KERNEL = {"dense/kernel": np.zeros((1, 1), F)}
TIE = np.array([1 + 2.0**-11 + 2.0**-40])


def law_tenth(load):
    law_round_trip(load, Sequential((BatchNorm(*np.full((4, 2), 0.1, F)),)), "torch")


def narrowed(model, arrays, **options):
    rounded = {n: a.astype(np.float16).astype(a.dtype) for n, a in arrays.items()}
    return from_state_dict(model, rounded, **options)


PLANTED = {
    "the kernel not transposed": (law_fixed, put(0, "weight", lambda f, a: a["conv.weight"])),
    "the kernel as HWOI": (
        law_fixed,
        put(0, "weight", lambda f, a: a["conv.weight"].transpose(2, 3, 0, 1)),
    ),
    "height and width of the kernel swapped": (
        law_fixed,
        put(0, "weight", lambda f, a: a["conv.weight"].transpose(3, 2, 1, 0)),
    ),
    "a kernel flipped, as if it were convolved": (
        law_fixed,
        put(0, "weight", lambda f, a: f[0]["weight"][::-1, ::-1]),
    ),
    "the dense weight not transposed": (
        law_fixed,
        put(5, "weight", lambda f, a: a["fc2.weight"]),
    ),
    "rows of a dense weight that does not stand behind the Flatten permuted": (
        law_fixed,
        put(5, "weight", lambda f, a: f[5]["weight"][ROWS]),
    ),
    "rows behind the Flatten not permuted": (
        law_fixed,
        put(4, "weight", lambda f, a: a["fc1.weight"].T),
    ),
    "rows behind the Flatten permuted the other way": (
        law_fixed,
        put(4, "weight", lambda f, a: a["fc1.weight"].T[np.argsort(ROWS)]),
    ),
    "batch normalization behind the Flatten not permuted": (
        law_fixed,
        put(2, "mean", lambda f, a: a["norm.running_mean"]),
    ),
    "the bias behind the Flatten permuted": (
        law_fixed,
        put(4, "bias", lambda f, a: f[4]["bias"][ROWS]),
    ),
    "biases of two layers swapped": (law_fixed, swap((4, "bias"), (5, "bias"))),
    "two layers swapped": (law_fixed, swap((4, "weight"), (5, "weight"))),
    "gamma and beta swapped": (law_fixed, swap((2, "scale"), (2, "offset"))),
    "beta and the mean swapped": (law_fixed, swap((2, "offset"), (2, "mean"))),
    "writing to its input": (law_fixed, writing),
    "the order of the flatten ignored": (
        lambda load: law_torch(load, FIXED, PICTURES, "whc"),
        unflattened,
    ),
    "the order of the flatten read from its end": (
        lambda load: law_torch(load, FIXED, PICTURES, "whc"),
        from_the_fastest,
    ),
    "gamma as zeros": (law_absent_torch, standing_in(0, 0)),
    "beta as ones": (law_absent_torch, standing_in(1, 1)),
    "float64 rounded to float32, then to float16": (
        lambda load: law_rounded_once(load, TIE, "float16"),
        through(F),
    ),
    "numbers too large become infinite": (
        lambda load: law_rounded_once(load, np.array([65520.0]), "float16"),
        through(np.float64),
    ),
    "weights rounded to float16": (law_tenth, narrowed),
    "nothing said": (lambda load: law_malformed(load, *MALFORMED["extra"]), silent),
    "only the first thing said": (
        lambda load: law_malformed(load, *MALFORMED["all at once"]),
        first_only,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
    law(from_state_dict)
