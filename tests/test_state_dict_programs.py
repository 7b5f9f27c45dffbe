"""Weights of Keras and PyTorch for networks with branches, and for transposed convolutions."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from test_state_dict import LAYOUTS, ORDERS, blank, same_weights

from minicompress.errors import CompressionError
from minicompress.interchange.state_dict import from_state_dict, to_state_dict
from minicompress.nn.architectures import mobilenet_v2, resnet20
from minicompress.nn.composition import Parallel, Residual, Sequential
from minicompress.nn.layers import ConvTranspose2D, Dense
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import decoded
from minicompress.nn.pointwise import PReLU, ReLU
from minicompress.nn.stateless import Add, Concat, Flatten, GlobalAvgPool2D
from minicompress.testing.models import models

F = np.float32
RNG = np.random.default_rng(0)

# A transposed convolution of two groups, of which one output channel each, and two flattened
# branches side by side.
SHAPE = (2, 3, 4)
TORCH = {
    "up.weight": (4, 2, 2, 2),
    "up.bias": (4,),
    "act.weight": (4,),
    "mix.weight": (24, 24),
    "mix.bias": (24,),
    "norm.weight": (96 + 24,),
    "norm.bias": (96 + 24,),
    "norm.running_mean": (96 + 24,),
    "norm.running_var": (96 + 24,),
    "slope.weight": (96 + 24,),
    "fc.weight": (3, 96 + 24),
    "fc.bias": (3,),
}
HERE = Sequential(
    (
        Parallel(
            (
                (
                    ConvTranspose2D(np.zeros((2, 2, 2, 4), F), np.zeros(4, F), stride=2, groups=2),
                    PReLU(np.zeros(4, F)),
                    Flatten(),
                ),
                (Flatten(), Dense(np.zeros((24, 24), F), np.zeros(24, F))),
            ),
            Concat(),
        ),
        BatchNorm(*np.ones((4, 120), F), epsilon=1.0),
        PReLU(np.zeros(120, F)),
        Dense(np.zeros((120, 3), F), np.zeros(3, F)),
    )
)


@st.composite
def state_dicts(draw):
    """What the PyTorch model holds, in whole numbers that no sum of the oracle rounds."""

    def whole(shape):
        return draw(npst.arrays(F, shape, elements=st.integers(-2, 2)))

    arrays = {name: whole(shape) for name, shape in TORCH.items()}
    arrays["norm.running_var"] = np.full(120, 3, F)  # a deviation of 2, with epsilon 1
    arrays["norm.weight"] *= 2
    return arrays


pictures = npst.arrays(F, (2, *SHAPE), elements=st.integers(-2, 2), fill=st.nothing())


def torch_forward(arrays, x, flatten):
    """The network as PyTorch runs it, on (N, C, H, W), written out."""
    n, c, h, w = x.shape
    kernel, y = arrays["up.weight"], np.zeros((n, 4, 2 * h, 2 * w), F)
    for i in range(c):
        for o in range(2):  # outputs of the group that input i is in
            for p in range(2):
                for q in range(2):
                    y[:, 2 * (i // 2) + o, p::2, q::2] += x[:, i] * kernel[i, o, p, q]
    y += arrays["up.bias"][:, None, None]
    y = np.where(y > 0, y, y * arrays["act.weight"][:, None, None])
    flat = np.einsum(f"nchw->n{flatten}", y).reshape(n, -1)
    mixed = np.einsum(f"nchw->n{flatten}", x).reshape(n, -1) @ arrays["mix.weight"].T
    y = np.concatenate((flat, mixed + arrays["mix.bias"]), 1)
    y = (y - arrays["norm.running_mean"]) / 2 * arrays["norm.weight"] + arrays["norm.bias"]
    y = np.where(y > 0, y, y * arrays["slope.weight"])
    return y @ arrays["fc.weight"].T + arrays["fc.bias"]


def law_torch(load, arrays, x, flatten="chw"):
    """PyTorch's arrays give PyTorch's outputs, exactly."""
    model = load(HERE, arrays, layout="torch", input_shape=SHAPE, flatten=flatten)
    np.testing.assert_array_equal(model(x), torch_forward(arrays, x.transpose(0, 3, 1, 2), flatten))


@given(state_dicts(), pictures, st.sampled_from(ORDERS))
def test_the_arrays_of_pytorch(arrays, x, flatten):
    law_torch(from_state_dict, arrays, x, flatten)


def law_keras(load):
    """A kernel of Conv2DTranspose is (kh, kw, out, in), and a slope (1, 1, channels)."""
    kernel = RNG.integers(-3, 4, (2, 3, 4, 4)).astype(F)
    alpha = RNG.integers(-3, 4, (1, 1, 4)).astype(F)
    model = Sequential(
        (ConvTranspose2D(np.zeros((2, 3, 4, 4), F), stride=(2, 3)), PReLU(np.zeros(4, F)))
    )
    arrays = {"conv2d_transpose/kernel": kernel, "p_re_lu/alpha": alpha}
    x = RNG.integers(-3, 4, (2, 3, 2, 4)).astype(F)
    y = np.einsum("nhwi,pqoi->nhpwqo", x, kernel).reshape(2, 6, 6, 4)
    np.testing.assert_array_equal(load(model, arrays)(x), np.where(y > 0, y, y * alpha))


def test_the_arrays_of_keras():
    law_keras(from_state_dict)


def test_one_slope_of_pytorch_for_all_channels():
    model = Sequential((PReLU(np.zeros(3, F)),))
    loaded = from_state_dict(model, {"act.weight": np.full(1, 0.25, F)}, layout="torch")
    same_weights(loaded, Sequential((PReLU(np.full(3, 0.25, F)),)))


# Out and in again ---------------------------------------------------------------------------------

CANNOT = (
    r"layer \d+ \(\w+\) joins features that are not all of one flattened image",
    r"layer \d+ \(ConvTranspose2D\) has 2 groups, and transposed convolutions of Keras have none",
)


@given(models(max_layers=8), LAYOUTS, st.none() | st.sampled_from(ORDERS))
def test_drawn_programs(model, layout, flatten):
    options = {"layout": layout, "input_shape": (5, 4, 2), "flatten": flatten}
    try:
        arrays = to_state_dict(model, **options)
    except CompressionError as error:
        if not any(re.match(message, str(error)) for message in CANNOT):
            raise
        return
    same_weights(from_state_dict(blank(model), arrays, **options), decoded(model))


def test_what_cannot_be_followed_is_refused_by_name():
    image = (Flatten(), Dense(np.ones((24, 24), F)))
    joined = Sequential((Parallel(((Flatten(),), image), Add()), Dense(np.ones((24, 1), F))))
    with pytest.raises(CompressionError, match=r"layer 3 \(Add\) joins features"):
        to_state_dict(joined, layout="torch", input_shape=SHAPE)
    assert len(to_state_dict(joined, layout="torch", flatten="hwc")) == 2
    behind = Sequential((Parallel(((Flatten(),), (Flatten(),)), Concat()), PReLU(np.ones(48, F))))
    with pytest.raises(CompressionError, match=r"input_shape must be given.*layer 3 \(PReLU\)"):
        to_state_dict(behind, layout="torch")
    grouped = Sequential((ReLU(), ConvTranspose2D(np.ones((1, 1, 1, 2), F), groups=2)))
    with pytest.raises(CompressionError, match=r"layer 1 \(ConvTranspose2D\) has 2 groups"):
        to_state_dict(grouped)
    pooled = Sequential((GlobalAvgPool2D(keep_axes=True), Flatten(), Residual(Dense(np.eye(4)))))
    assert len(to_state_dict(pooled, layout="torch", input_shape=SHAPE)) == 1


# Architectures ------------------------------------------------------------------------------------

RESNET = resnet20(np.random.default_rng(0))
MOBILENET = mobilenet_v2(np.random.default_rng(0), width=0.1, resolution=32, classes=3)


def resnet_names():
    """The modules of torchvision's ResNet, in the order in which they are made."""
    yield from ("conv1", "bn1")
    for stage in (1, 2, 3):
        for block in range(3):
            shortcut = ("downsample.0", "downsample.1") if stage > 1 and block == 0 else ()
            for name in ("conv1", "bn1", "conv2", "bn2", *shortcut):
                yield f"layer{stage}.{block}.{name}"
    yield "fc"


def mobilenet_names():
    yield from ("features.0.0", "features.0.1")
    yield from (f"features.1.conv.{name}" for name in ("0.0", "0.1", "1", "2"))
    for block in range(2, 18):
        yield from (f"features.{block}.conv.{n}" for n in ("0.0", "0.1", "1.0", "1.1", "2", "3"))
    yield from ("features.18.0", "features.18.1", "classifier.1")


def torchvision(model, names):
    """The model's arrays under these names, which stand for the layers with weights."""
    places = {i: None for i, layer in enumerate(model.layers) if layer.parameters()}
    new = dict(zip(places, names, strict=True))
    arrays = to_state_dict(model, layout="torch")
    return {
        f"{new[int(index)]}.{word}": array
        for (index, word), array in ((name.split("."), a) for name, a in arrays.items())
    }


def law_torchvision(load, model, names):
    arrays = torchvision(randomized(model), names())
    same_weights(load(blank(model), arrays, layout="torch"), randomized(model))


def randomized(model):
    """The model with all weights different, so that no two can be confused."""
    rng = np.random.default_rng(1)
    arrays = to_state_dict(model)
    return from_state_dict(model, {n: rng.random(a.shape, a.dtype) for n, a in arrays.items()})


@pytest.mark.parametrize(
    ("model", "names"), [(RESNET, resnet_names), (MOBILENET, mobilenet_names)], ids=["r", "m"]
)
def test_state_dicts_of_torchvision(model, names):
    law_torchvision(from_state_dict, model, names)


def test_in_alphabetical_order_numbers_tell_the_layers_apart():
    arrays = torchvision(randomized(MOBILENET), mobilenet_names())
    loaded = from_state_dict(blank(MOBILENET), dict(sorted(arrays.items())), layout="torch")
    same_weights(loaded, randomized(MOBILENET))


def test_where_the_alphabet_is_ambiguous_names_must_be_given():
    arrays = torchvision(randomized(RESNET), resnet_names())
    shuffled = dict(sorted(arrays.items()))
    with pytest.raises(CompressionError, match=r"ambiguous: the order of 'bn1', 'layer1.0.bn1'"):
        from_state_dict(blank(RESNET), shuffled, layout="torch")
    keys = [f"{i}.{f}" for i, layer in enumerate(RESNET.layers) for f in layer.parameters()]
    names = dict(zip(keys, arrays, strict=True))
    loaded = from_state_dict(blank(RESNET), shuffled, layout="torch", names=names)
    same_weights(loaded, randomized(RESNET))


# Wrong implementations ----------------------------------------------------------------------------

RANDOM = {n: RNG.integers(-2, 3, shape).astype(F) for n, shape in TORCH.items()}
FIXED = RANDOM | {
    "norm.running_var": np.full(120, 3, F),
    "norm.weight": 2 * RANDOM["norm.weight"],
}


def with_array(name, change):
    """The right loader, of a changed array."""

    def load(model, arrays, **options):
        return from_state_dict(model, arrays | {name: change(arrays[name])}, **options)

    return load


def law_fixed(load):
    law_torch(load, FIXED, RNG.integers(-2, 3, (2, *SHAPE)).astype(F))


def shortcut_first(model, arrays, **options):
    """The order of ResNets that make the shortcut before the rest of the block."""
    blocks = sorted(arrays, key=lambda n: ("downsample" not in n) if "layer2.0" in n else 0)
    return from_state_dict(model, {n: arrays[n] for n in blocks}, **options)


def in_groups(kernel):
    """Inputs dealt to the groups in turn."""
    return kernel[[0, 2, 1, 3]]


def swapped_in_torch(model, arrays, **options):
    turned = {n: a.swapaxes(0, 1) if n == "up.weight" else a for n, a in arrays.items()}
    shapes = {n: a.reshape(TORCH[n]) for n, a in turned.items()}
    return from_state_dict(model, shapes, **options)


PLANTED = {
    "inputs and outputs swapped": (law_fixed, swapped_in_torch),
    "groups dealt in turn": (law_fixed, with_array("up.weight", in_groups)),
    "a kernel flipped": (law_fixed, with_array("up.weight", lambda a: a[:, :, ::-1, ::-1])),
    "slopes behind the Flatten in another order": (
        law_fixed,
        with_array("slope.weight", lambda a: np.roll(a, 1)),
    ),
    "features of the second branch permuted": (
        law_fixed,
        with_array("fc.weight", lambda a: np.concatenate((a[:, :96], a[:, :95:-1]), 1)),
    ),
    "the second branch not permuted": (
        law_fixed,
        with_array("mix.weight", lambda a: a.reshape(24, 4, 6).swapaxes(1, 2).reshape(24, 24)),
    ),
    "Keras' kernel not transposed": (
        law_keras,
        with_array("conv2d_transpose/kernel", lambda a: a.swapaxes(2, 3)),
    ),
    "the shortcut before the block": (
        lambda load: law_torchvision(load, RESNET, resnet_names),
        shortcut_first,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught(name):
    law, wrong = PLANTED[name]
    law(from_state_dict)
    with pytest.raises((AssertionError, CompressionError)):
        law(wrong)
