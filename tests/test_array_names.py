"""Which array goes where: the names of Keras and PyTorch, parts of a file, and what is said."""

import re

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from minicompress.errors import CompressionError
from minicompress.interchange.array_names import by_number, listed, matched, summed
from minicompress.interchange.layouts import slots_of
from minicompress.interchange.state_dict import from_state_dict, to_state_dict
from minicompress.nn.architectures import digits_cnn
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import decoded, parameters
from minicompress.nn.stateless import Flatten
from minicompress.testing.models import models

F = np.float32
CNN = digits_cnn(np.random.default_rng(0))
KERAS = list(to_state_dict(CNN).values())
PYTORCH = list(to_state_dict(CNN, layout="torch", input_shape=(8, 8, 1)).values())
OTHER = {"keras": "torch", "torch": "keras"}
LAYOUTS = st.sampled_from(sorted(OTHER))


def same_weights(a, b):
    for left, right in zip(parameters(a), parameters(b), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            np.testing.assert_array_equal(value, right[name])


def refusal(load, *args, **options):
    """The message, or "" where nothing is said."""
    try:
        load(*args, **options)
    except CompressionError as error:
        return str(error)
    return ""


# Conventions ------------------------------------------------------------------------------------


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
    with pytest.raises(CompressionError, match="'left', 'right_' is alphabetical"):
        from_state_dict(model, {"left": first, "right_": second})


def test_matching_leaves_out_what_has_no_array():
    layers = (Conv2D(np.zeros((1, 1, 1, 1)), np.zeros(1)), Dense(np.zeros((2, 2))))
    slots = slots_of(Sequential(layers), "torch", None, None)
    arrays = {"c.weight": np.zeros((1, 1, 1, 1)), "d.bias": np.zeros(1), "z.weight": np.zeros(3)}
    assert matched(slots, arrays, "torch") == {0: "c.weight"}
    assert sorted(["x2", "x10", "x1", ""], key=by_number) == ["", "x1", "x2", "x10"]


NARROWING = Sequential(
    tuple(Dense(np.full((n, n + 1), n, F), np.zeros(n + 1, F)) for n in (2, 3, 4))
)


@given(st.permutations("xyz"), LAYOUTS)
def test_shapes_tell_layers_apart_where_the_alphabet_says_nothing(stems, layout):
    arrays = to_state_dict(NARROWING, layout=layout)
    stems = [stem for stem in stems for _ in range(2)]
    named = {
        f"{s}.{n.replace('/', '.').split('.')[1]}": a for s, (n, a) in zip(stems, arrays.items())
    }
    same_weights(from_state_dict(NARROWING, dict(sorted(named.items())), layout=layout), NARROWING)


def test_depthwise_kernels_among_others_in_alphabetical_order():
    """The 5 by 5 kernel is before the 3 by 3 one in the alphabet, and behind it in the model."""
    rng = np.random.default_rng(0)
    shapes = {
        "conv": (3, 3, 1, 4),
        "wide": (3, 3, 1, 4),
        "conv_1": (1, 1, 4, 4),
        "deep": (5, 5, 1, 4),
    }
    groups = {"wide": 4, "deep": 4}
    model = Sequential(
        tuple(
            Conv2D(rng.standard_normal(shape, F), groups=groups.get(name, 1))
            for name, shape in shapes.items()
        )
    )
    arrays = {
        f"{name}/vars/0": layer.weight for name, layer in zip(shapes, model.layers, strict=True)
    }
    for name in ("wide/vars/0", "deep/vars/0"):
        arrays[name] = arrays[name].swapaxes(2, 3)  # (kh, kw, channels, multiplier)
    same_weights(from_state_dict(model, dict(sorted(arrays.items()))), model)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_keras_numbers_the_arrays_that_a_normalization_has(count):
    """In .weights.h5 the arrays are vars/0, vars/1, ...: beta is vars/0 where there is no gamma."""
    model = Sequential((BatchNorm(*np.arange(12, dtype=F).reshape(4, 3)),))
    values = list(to_state_dict(model).values())[4 - count :]
    arrays = {f"layers/batch_normalization/vars/{i}": v for i, v in enumerate(values)}
    arrays = dict(reversed(arrays.items()))
    arrays = dict(reversed(arrays.items()))
    if count == 4:
        same_weights(from_state_dict(model, arrays), model)
    elif count == 2:
        expected = Sequential((BatchNorm(np.ones(3, F), np.zeros(3, F), *values),))
        same_weights(from_state_dict(model, arrays), expected)
    else:
        wanted = "vars/0 may be gamma or beta" if count == 3 else "extra: 'layers/batch_norm"
        assert wanted in refusal(from_state_dict, model, arrays)


# Names of the other framework -------------------------------------------------------------------

RNG = np.random.default_rng(0)
SQUARE = Sequential(tuple(Conv2D(RNG.standard_normal((2, 2, 2, 2), F)) for _ in range(2)))


def law_foreign(load, model, layout, named):
    """Names that only the other framework uses are refused, and the option to give is said."""
    arrays = to_state_dict(model, layout=layout, input_shape=(5, 4, 2))
    keys = [f"{i}.{n}" for i, p in enumerate(parameters(model)) for n in p]
    options = {"names": dict(zip(keys, arrays, strict=True))} if named else {}
    message = refusal(load, model, arrays, layout=OTHER[layout], input_shape=(5, 4, 2), **options)
    assert (f"give layout={layout!r}" in message) == bool(arrays)
    assert len(message.splitlines()) <= 1


@given(models(), LAYOUTS, st.booleans())
@example(SQUARE, "torch", False)
@example(SQUARE, "keras", True)
def test_names_of_the_other_framework_are_refused(model, layout, named):
    # Keras has no transposed convolutions of several groups.
    assume(all(getattr(x, "groups", 1) == 1 or type(x) is Conv2D for x in model.layers))
    law_foreign(from_state_dict, model, layout, named)


def test_one_foreign_name_among_the_right_ones_is_only_left_over():
    arrays = to_state_dict(CNN, layout="torch", input_shape=(8, 8, 1))
    arrays["block.gamma"] = np.zeros(3, F)
    message = refusal(from_state_dict, CNN, arrays, layout="torch", input_shape=(8, 8, 1))
    assert message.splitlines()[1:] == ["  extra: 'block.gamma', (3,)"]


# What is out of place ---------------------------------------------------------------------------

NET = Sequential(
    (
        Conv2D(np.ones((1, 1, 2, 3), F), np.zeros(3, F)),
        BatchNorm(*np.ones((4, 3), F)),
        Conv2D(np.full((1, 1, 3, 4), 2, F)),
        BatchNorm(*np.full((4, 4), 2, F)),
        Flatten(),
        Dense(np.ones((16, 5), F), np.ones(5, F)),
        Dense(np.ones((5, 3), F)),
    )
)
NET_SHAPE = {"input_shape": (2, 2, 2)}
STRAYS = {
    "torch": {
        "a PReLU": {"act.weight": (3,)},
        "a layer normalization": {"norm.weight": (3,), "norm.bias": (3,)},
        "another dense layer": {"aux.fc.weight": (7, 9), "aux.fc.bias": (7,)},
        "an embedding": {"embed.weight": (11, 6)},
        "a word of its own": {"scale.gamma": (3,)},
    },
    "keras": {
        "a PReLU": {"p_re_lu/alpha": (3,)},
        "an LSTM": {"lstm/kernel": (5, 28), "lstm/recurrent_kernel": (7, 28), "lstm/bias": (28,)},
        "an embedding": {"embedding/embeddings": (16, 5)},
        "another convolution": {"aux/kernel": (2, 2, 3, 4)},
    },
}
STRAY = st.sampled_from([(layout, name) for layout, kinds in STRAYS.items() for name in kinds])


def law_stray(load, stray, place, in_order):
    """Only the arrays that are too many are named, wherever they stand."""
    layout, name = stray
    items = list(to_state_dict(NET, layout=layout, **NET_SHAPE).items())
    strays = [(n, np.zeros(shape, F)) for n, shape in STRAYS[layout][name].items()]
    arrays = dict([*items[:place], *strays, *items[place:]])
    if in_order:
        arrays = dict(sorted(arrays.items()))
    message = refusal(load, NET, arrays, layout=layout, **NET_SHAPE)
    assert {line.split(",")[0] for line in message.splitlines()[1:]} == {
        f"  extra: {n!r}" for n, _ in strays
    }, message


@given(STRAY, st.integers(0, 14), st.booleans())
def test_only_what_is_out_of_place_is_named(stray, place, in_order):
    law_stray(from_state_dict, stray, place, in_order)


def test_a_layer_that_is_missing_is_the_one_that_is_named():
    for layer, layout in [(0, "torch"), (2, "torch"), (5, "torch"), (6, "keras")]:
        keys = [i for i, p in enumerate(parameters(NET)) for _ in p]
        arrays = to_state_dict(NET, layout=layout, **NET_SHAPE)
        kept = {n: a for i, (n, a) in zip(keys, arrays.items(), strict=True) if i != layer}
        said = refusal(from_state_dict, NET, kept, layout=layout, **NET_SHAPE).splitlines()[1:]
        assert len(said) == len(parameters(NET)[layer])
        assert all(line.startswith(f"  missing: layer {layer} ") for line in said)


COUNTS = st.integers(0, 40)


def law_short(load, missing, extra, misshapen, double):
    """At most 20 lines, and the counts of what is not shown add up."""
    model = stack(missing + misshapen + double + 1)
    arrays = {f"{i}/kernel": a for i, a in enumerate(to_state_dict(model).values())}
    names = list(arrays)
    for name in names[:misshapen]:
        arrays[name] = np.zeros((2, 3), F)
    for name in names[misshapen : misshapen + double]:
        arrays[name] = np.zeros((2, 2))
    for name in names[len(names) - missing :]:
        del arrays[name]
    arrays |= {f"{i}/extra": np.zeros(1, F) for i in range(extra)}
    message = refusal(load, model, arrays)
    counts = {"missing": missing, "extra": extra, "misshapen": misshapen, "wrong dtype": double}
    assert len(message.splitlines()) <= 20
    said = dict.fromkeys(counts, 0)
    for line in message.splitlines()[1:]:
        kind, text = line.strip().split(": ", 1)
        more = re.fullmatch(r"and (\d+) more", text)
        said[kind] += int(more[1]) if more else 1
    assert said == counts


@given(COUNTS, COUNTS, COUNTS, COUNTS)
@example(0, 431, 0, 0)
def test_a_message_is_short_and_counts_the_rest(missing, extra, misshapen, double):
    law_short(from_state_dict, missing, extra, misshapen, double)


def test_lists_are_summed_up():
    for count in range(6):
        lines = summed([str(i) for i in range(count)], 3)
        assert len(lines) == min(count, 3)
    assert lines == ["0", "1", "and 3 more"]
    assert listed("abcd") == "'a', 'b', 'c', 'd'"
    unreadable = {str(i): [[1], [1, 2]] for i in range(99)}
    assert refusal(from_state_dict, CNN, unreadable).count("\n") == 19
    assert "and 8 more is alphabetical" in refusal(
        from_state_dict, stack(11), {f"{x}/kernel": np.zeros((2, 2), F) for x in "abcdefghijk"}
    )


# Parts ------------------------------------------------------------------------------------------


def law_part(load, model, layout, place):
    """A prefix, or names, and the rest of the file is not even read."""
    arrays = to_state_dict(model, layout=layout, input_shape=(5, 4, 2))
    options = {"layout": layout, "input_shape": (5, 4, 2)}
    mine = [("backbone." + n, a) for n, a in arrays.items()]
    others = {f"head.{n}": np.array([None]) for n in arrays} | {"backbone2.weight": object()}
    whole = dict([*mine[:place], *others.items(), *mine[place:]])
    keys = [f"{i}.{n}" for i, p in enumerate(parameters(model)) for n in p]
    names = dict(zip(keys, [n for n, _ in mine], strict=True))
    zeros = from_state_dict(model, {n: np.zeros_like(a) for n, a in arrays.items()}, **options)
    same_weights(load(zeros, whole, names=names, **options), decoded(model))
    if mine:
        same_weights(load(zeros, whole, prefix="backbone.", **options), decoded(model))


@given(models(), LAYOUTS, st.integers(0, 9))
def test_a_part_can_be_asked_for(model, layout, place):
    law_part(from_state_dict, model, layout, place)


# Wrong implementations --------------------------------------------------------------------------


def no_names(model, arrays, **options):
    return from_state_dict(model, {f"arr_{i}": a for i, a in enumerate(arrays.values())}, **options)


def unnamed(model, arrays, names=None, **options):
    """Square arrays of the other layout, taken as they are."""
    return no_names(model, arrays, **options)


def by_dimensions(model, arrays, **options):
    """All vectors called weight are the gammas of batch normalizations."""
    vectors = [n for n, a in arrays.items() if n.endswith(".weight") and a.ndim == 1]
    means = {n.replace("weight", "running_mean"): arrays[n] for n in vectors}
    return from_state_dict(model, means | arrays, **options)


def whole(model, arrays, prefix="", names=None, **options):
    return from_state_dict(model, arrays, **options)


def in_full(model, arrays, **options):
    """One line for each array that is too many."""
    try:
        return from_state_dict(model, arrays, **options)
    except CompressionError:
        raise CompressionError("\n".join(["arrays:", *(f"extra: {n!r}" for n in arrays)])) from None


PLANTED = {
    "alphabetical order taken for the layers' order": (law_numbers, no_names),
    "PyTorch's arrays taken for Keras's": (
        lambda load: law_foreign(load, SQUARE, "torch", True),
        unnamed,
    ),
    "Keras's arrays taken for PyTorch's": (
        lambda load: law_foreign(load, SQUARE, "keras", False),
        unnamed,
    ),
    "batch normalization blamed for a PReLU": (
        lambda load: law_stray(load, ("torch", "a PReLU"), 0, False),
        by_dimensions,
    ),
    "the rest of the file not left alone": (lambda load: law_part(load, SQUARE, "keras", 0), whole),
    "hundreds of lines": (lambda load: law_short(load, 0, 431, 0, 0), in_full),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises((AssertionError, CompressionError)):
        law(wrong)
    law(from_state_dict)
