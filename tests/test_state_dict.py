"""Weights of Keras and PyTorch: in and out again, and every way in which they do not fit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from minicompress.arrays import freeze
from minicompress.errors import CompressionError
from minicompress.interchange.array_names import by_number, matched
from minicompress.interchange.state_dict import from_state_dict, to_state_dict
from minicompress.nn.architectures import digits_cnn
from minicompress.nn.layers import Conv2D, Dense, Layer
from minicompress.nn.network import Sequential, decoded, parameters, with_parameters
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.stateless import Flatten, ReLU
from minicompress.representation import decode
from minicompress.testing.models import models

F = np.float32
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


def torch_forward(arrays, x):
    """The network as PyTorch runs it, on (N, C, H, W), written out."""
    n, _, h, w = x.shape
    y = np.zeros((n, 2, h - 1, w - 1), F)
    for p in range(2):
        for q in range(2):
            patch = x[:, :, p : p + h - 1, q : q + w - 1]
            y += np.einsum("nchw,oc->nohw", patch, arrays["conv.weight"][:, :, p, q])
    y = (y + arrays["conv.bias"][:, None, None]).reshape(n, -1)
    y = (y - arrays["norm.running_mean"]) / 2 * arrays["norm.weight"] + arrays["norm.bias"]
    for name in ("fc1", "fc2"):
        y = np.maximum(y, 0) if name == "fc1" else y
        y = y @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]
    return y


def law_torch(load, arrays, x):
    """PyTorch's arrays give PyTorch's outputs, exactly, and are not written to."""
    before = {name: array.copy() for name, array in arrays.items()}
    model = load(HERE, arrays, layout="torch", input_shape=SHAPE)
    np.testing.assert_array_equal(model(x), torch_forward(arrays, x.transpose(0, 3, 1, 2)))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


@given(state_dicts(), pictures)
def test_the_arrays_of_pytorch(arrays, x):
    law_torch(from_state_dict, arrays, x)


def same_weights(a, b):
    for left, right in zip(parameters(a), parameters(b), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert isinstance(value, np.ndarray)
            assert value.dtype == right[name].dtype
            assert value.tobytes() == np.ascontiguousarray(right[name]).tobytes()


def law_round_trip(load, model, layout):
    """Out and in again: the decoded weights bit for bit, whatever was there before."""
    blank = with_parameters(
        decoded(model),
        tuple({n: np.zeros_like(decode(v)) for n, v in p.items()} for p in parameters(model)),
    )
    arrays = to_state_dict(model, layout=layout, input_shape=(5, 4, 2))
    assert all(a.flags.writeable and a.flags.c_contiguous for a in arrays.values())
    same_weights(load(blank, arrays, layout=layout, input_shape=(5, 4, 2)), decoded(model))


@given(models(), st.sampled_from(["keras", "torch"]))
def test_out_and_in_again(model, layout):
    law_round_trip(from_state_dict, model, layout)


def test_the_arrays_of_keras_are_as_they_are_here():
    model = digits_cnn(np.random.default_rng(0))
    for ours, theirs in zip(
        [v for p in parameters(model) for v in p.values()],
        to_state_dict(model).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


# Names ------------------------------------------------------------------------------------------

CNN = digits_cnn(np.random.default_rng(0))
KERAS = list(to_state_dict(CNN).values())
PYTORCH = list(to_state_dict(CNN, layout="torch", input_shape=(8, 8, 1)).values())


def sorted_by_name(names):
    """As a safetensors file or HDF5 gives them."""
    return lambda values: dict(sorted(zip(names, values, strict=True)))


def as_given(names):
    return lambda values: dict(zip(names, values, strict=True))


def affine(stems, *ends):
    return [stem + end for stem in stems for end in ends]


CONVENTIONS = {
    "keras 3": affine(("conv2d", "conv2d_1", "dense"), "/kernel", "/bias"),
    "keras 3, numbered on": affine(("conv2d_9", "conv2d_10", "dense_3"), "/kernel", "/bias"),
    "keras 2": affine(("conv2d", "conv2d_1", "dense"), "/kernel:0", "/bias:0"),
    "keras 2, .h5": affine(("c/c/", "d/d/", "o/o/"), "kernel:0", "bias:0"),
    "keras 3, .weights.h5": affine(
        ("layers/conv2d/", "layers/conv2d_1/", "layers/dense/"), "vars/0", "vars/1"
    ),
    "torch": affine(("0", "2", "5"), ".weight", ".bias"),
    "torch, compiled": affine(
        ("_orig_mod.conv1", "_orig_mod.conv2", "_orig_mod.fc"), ".weight", ".bias"
    ),
    "torch, past ten": affine(("features.2", "features.10", "head"), ".weight", ".bias"),
    "np.savez": [f"arr_{i}" for i in range(6)],
    "numbers": [str(i) for i in range(5, 11)],
}


@pytest.mark.parametrize("order", [as_given, sorted_by_name])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_names_that_are_known(name, order):
    torch = name.startswith("torch")
    arrays = order(CONVENTIONS[name])(PYTORCH if torch else KERAS)
    layout = "torch" if torch else "keras"
    same_weights(from_state_dict(CNN, arrays, layout=layout, input_shape=(8, 8, 1)), CNN)


def stack(count):
    rng = np.random.default_rng(0)
    return Sequential(tuple(Dense(rng.standard_normal((2, 2), F)) for _ in range(count)))


def law_numbers(load):
    """Twelve layers of one shape, alphabetically: the second is not the tenth."""
    model = stack(12)
    names = sorted(f"features.{i}.weight" for i in range(12))
    arrays = {n: model.layers[int(n.split(".")[1])].weight.T for n in names}
    same_weights(load(model, arrays, layout="torch"), model)


def test_numbers_tell_the_order_where_the_alphabet_does_not():
    law_numbers(from_state_dict)


def test_layers_that_nothing_tells_apart_have_to_be_named():
    model = stack(2)
    first, second = (layer.weight for layer in model.layers)
    alphabetical = {"decoder/kernel": second, "encoder/kernel": first}
    with pytest.raises(CompressionError, match=r"'decoder', 'encoder' is alphabetical"):
        from_state_dict(model, alphabetical)
    names = {"0.weight": "encoder/kernel", "1.weight": "decoder/kernel"}
    same_weights(from_state_dict(model, alphabetical, names=names), model)
    # In another order than the alphabet's, the order is somebody's.
    same_weights(from_state_dict(model, dict(reversed(alphabetical.items()))), model)
    with pytest.raises(CompressionError, match="'alpha', 'beta_' is alphabetical"):
        from_state_dict(model, {"alpha": first, "beta_": second})


def test_matching_leaves_out_what_has_no_array():
    slots = [("conv", "weight", (1, 1, 1, 1)), ("conv", "bias", (1,)), ("dense", "weight", (2, 2))]
    arrays = {"c.weight": np.zeros((1, 1, 1, 1)), "d.bias": np.zeros(1), "z.weight": np.zeros(3)}
    assert matched(slots, arrays, []) == {0: "c.weight"}
    assert sorted(["x2", "x10", "x1", ""], key=by_number) == ["", "x1", "x2", "x10"]


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
    arrays = dict(zip(CONVENTIONS["keras 3"], KERAS, strict=True))
    arrays["dropout/seed_generator/seed_generator_state"] = np.array([1, 2], np.uint32)
    same_weights(from_state_dict(CNN, arrays), CNN)


def test_other_float_dtypes_are_converted_when_asked():
    arrays = {n: a.astype(np.float64) for n, a in to_state_dict(CNN).items()}
    same_weights(from_state_dict(CNN, arrays, dtype="float32"), CNN)
    wide = from_state_dict(CNN, arrays, dtype=np.float64)
    assert {v.dtype for p in parameters(wide) for v in p.values()} == {np.dtype(np.float64)}
    with pytest.raises(
        CompressionError, match=r"wrong dtype: 'dense/bias' .* too large for float16"
    ):
        from_state_dict(CNN, arrays | {"dense/bias": np.full(10, 1e9)}, dtype="float16")
    with pytest.raises(CompressionError, match="must be of float32, not int64"):
        from_state_dict(CNN, arrays | {"dense/bias": np.zeros(10, np.int64)}, dtype="float32")
    swapped = {n: a.astype(">f4") for n, a in arrays.items()}
    same_weights(from_state_dict(CNN, swapped), CNN)


# What does not fit ------------------------------------------------------------------------------

GOOD = dict(zip(CONVENTIONS["keras 3"], KERAS, strict=True))
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
            "wrong dtype: 'conv2d/bias' for layer 0",
            "wrong dtype: 'conv2d_1/kernel' for layer 2",
            "misshapen: 'conv2d_1/kernel' for layer 2 (Conv2D) weight must be (3, 3, 16, 32), "
            "not (3, 3, 16, 33)",
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
    "names": ({"names": {"9.weight": "x"}}, "names must be among"),
    "no names": ({"names": ["x"]}, "names must be a mapping"),
    "names of nothing": ({"names": {"0.weight": "x"}}, r"missing: layer 0 \(Conv2D\) weight, 'x'"),
    "arrays": ({"arrays": KERAS}, "arrays must be a mapping"),
    "numbers for names": ({"arrays": dict(enumerate(KERAS))}, "named by strings, not 0"),
    "model": ({"model": CNN.layers}, "model must be a Sequential"),
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


def no_names(model, arrays, **options):
    return from_state_dict(model, {f"arr_{i}": a for i, a in enumerate(arrays.values())}, **options)


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
    "weights rounded to float16": (law_tenth, narrowed),
    "alphabetical order taken for the layers' order": (law_numbers, no_names),
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
