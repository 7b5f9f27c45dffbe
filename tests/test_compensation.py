"""Compensated rounding of whole networks: no layer's outputs come further away than by rounding."""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicompress.compressors.compensated import compensated_quantize
from minicompress.compressors.quantization import quantize
from minicompress.datasets import load_digits
from minicompress.errors import CompressionError
from minicompress.nn.architectures import digits_resnet
from minicompress.nn.composition import Parallel, Residual, Sequential
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network, Runner
from minicompress.nn.parameters import parameters, with_layers
from minicompress.nn.pointwise import ReLU, Sigmoid
from minicompress.nn.stateless import Concat, Flatten, GlobalAvgPool2D
from minicompress.representation import Quantized, decode, dtype_of
from minicompress.rewrite.compensation import compensate, layer_inputs
from minicompress.search.plan import compress
from minicompress.testing import models

OPTIONS = [
    {"num_bits": 2},
    {"num_bits": 3, "axis": -1},
    {"num_bits": 4, "axis": -1, "symmetric": False},
    {"num_bits": 3, "axis": -1, "method": "mse"},
]


COMPENSATED = (Conv2D, ConvTranspose2D, Dense)


def images(count, dtype=np.float64):
    """Small integers in a fixed order; neighbours resemble each other, as in photographs."""
    x = ((np.arange(count * 40) // 3 * 7) % 11 - 5.0).reshape(count, 5, 4, 2)
    return x.astype(dtype)


def dtype_of_network(network):
    return next((dtype_of(r) for p in parameters(network) for r in p.values()), np.dtype("f4"))


def plan_of(network, options):
    chosen = [i for i, layer in enumerate(network.layers) if type(layer) in COMPENSATED]
    return {i: partial(compensated_quantize, **options) for i in chosen}


def rational(array):
    return np.array([Fraction(v) for v in np.ravel(array).tolist()], object).reshape(array.shape)


def window(x, layer, place, group):
    """The pixels of one window of one image in the order of the weight's rows; outside it zeros."""
    height, width, channels, _ = layer.weight.shape
    (top, _), (left, _) = layer.geometry(x.shape[:2]).pads
    rows = []
    for p, q in np.ndindex(height, width):
        i = place[0] * layer.stride[0] + p * layer.dilation[0] - top
        j = place[1] * layer.stride[1] + q * layer.dilation[1] - left
        inside = 0 <= i < x.shape[0] and 0 <= j < x.shape[1]
        pixel = x[i, j] if inside else np.zeros(x.shape[2], x.dtype)
        rows.append(pixel[group * channels : (group + 1) * channels])
    return np.concatenate(rows)


def squared_errors(layer, old, new, x):
    """Of every output channel over all examples and pixels, in rational numbers."""
    d = rational(old) - rational(new)
    if isinstance(layer, Dense):
        return ((rational(x) @ d) ** 2).sum(0)
    groups = layer.groups
    d = d.reshape(-1, groups, d.shape[-1] // groups)
    if isinstance(layer, ConvTranspose2D):
        blocks = [b.reshape(groups, -1, len(d)) for b in layer_inputs(layer, x)]
        inputs = np.concatenate(blocks or [np.zeros((groups, 0, len(d)))], 1)
        return np.concatenate(
            [((rational(inputs[g]) @ d[:, g]) ** 2).sum(0) for g in range(groups)]
        )
    total = []
    for g in range(groups):
        places = list(np.ndindex(layer.output_shape(x.shape[1:])[:2]))
        inputs = np.array([window(image, layer, place, g) for image in x for place in places])
        total += ((rational(inputs.reshape(-1, len(d))) @ d[:, g]) ** 2).sum(0).tolist()
    return np.array(total, object)


def law_never_worse(impl, network, options, x):
    """Given the inputs that a layer has in the new network, each output channel, exactly."""
    plan = plan_of(network, options)
    found, certificates = impl(network, plan, x)
    assert certificates.keys() == plan.keys()
    assert (found.inputs, found.outputs) == (network.inputs, network.outputs)
    values, run = {0: x}, Runner(found)
    for i, (old, new) in enumerate(zip(network.layers, found.layers, strict=True)):
        if i in plan:
            layer, read = Runner(network).parts[i], values[network.inputs[i][0]]
            weight, rounded = decode(old.weight), decode(new.weight)
            nearest = quantize(weight, **options).rep
            assert isinstance(new.weight, Quantized)
            assert new.bias is old.bias
            assert certificates[i].measured <= certificates[i].bound
            assert np.array_equal(new.weight.scale, nearest.scale)
            plain = old if len(layer) > 1 else layer[0]
            plain = type(plain)(weight, plain.bias, **plain.options())
            best = squared_errors(plain, weight, rounded, read)
            assert (best <= squared_errors(plain, weight, decode(nearest), read)).all()
        else:
            assert new is old
        values = run(values, i, i + 1)


def law_reads_the_new_network(impl, network, options, x):
    """Each layer is compressed as on its own, on what the new network gives it."""
    plan = plan_of(network, options)
    found = impl(network, plan, x)[0]
    values, run = {0: x}, Runner(found)
    for i, (old, new) in enumerate(zip(network.layers, found.layers, strict=True)):
        if i in plan:
            inputs = layer_inputs(old, values[network.inputs[i][0]])
            alone = compensated_quantize(decode(old.weight), calibration=inputs, **options).rep
            assert alone.codes.tolist() == new.weight.codes.tolist()
        values = run(values, i, i + 1)


def all_values(network, x):
    values, run = {0: x}, Runner(network)
    for i in range(len(network.layers)):
        values = run(values, i, i + 1)
        yield values[i + 1]


@given(models(max_layers=4), st.sampled_from(OPTIONS), st.integers(0, 2))
def test_no_output_is_further_away_than_by_rounding(network, options, count):
    x = images(count, dtype_of_network(network))
    with np.errstate(all="ignore"):
        if all(np.isfinite(value).all() for value in all_values(network, x)):
            law_never_worse(compensate, network, options, x)
            law_reads_the_new_network(compensate, network, options, x)


def rng(seed=0):
    return np.random.default_rng(seed)


def small_network(groups=2):
    """A convolution with groups, a depthwise one, a shortcut, two branches, and two outputs."""
    r = rng(4)
    first = Conv2D(r.normal(size=(3, 3, 2 // groups, 4)), groups=groups, padding="same")
    depthwise = Conv2D(
        r.normal(size=(3, 2, 1, 4)), r.normal(size=4), groups=4, padding="same", stride=(1, 1)
    )
    branch = Conv2D(r.normal(size=(1, 1, 4, 3)))
    joined = Parallel(((branch, ReLU()), (depthwise, Sigmoid())), Concat())
    head = (GlobalAvgPool2D(), Dense(r.normal(size=(7, 5)), r.normal(size=5)))
    body = Sequential((first, ReLU(), Residual(depthwise, ReLU()), joined, *head))
    layers, inputs, outputs = body.layers, body.inputs, body.outputs
    return Network(
        (*layers, Flatten(), Dense(r.normal(size=(80, 2)))),
        (*inputs, (1,), (len(layers) + 1,)),
        (*outputs, len(layers) + 2),
    )


def correlated(count):
    r = rng(5)
    x = r.normal(size=(count, 5, 4, 2)) + 2 * r.normal(size=(count, 1, 1, 1))
    return np.round(x * 64) / 64


def law_nearer(impl):
    """On inputs that resemble each other, the outputs come much nearer than by rounding."""
    network, x = small_network(), correlated(6)
    plan = plan_of(network, OPTIONS[1])
    plain = {i: partial(quantize, **OPTIONS[1]) for i in plan}
    nearest = compress(network, plain).model
    for y, far, near in zip(network(x), nearest(x), impl(network, plan, x).model(x), strict=True):
        assert np.linalg.norm(near - y) < 0.6 * np.linalg.norm(far - y)


def test_groups_depthwise_branches_and_several_outputs():
    law_never_worse(compensate, small_network(), OPTIONS[1], correlated(2))
    law_reads_the_new_network(compensate, small_network(), OPTIONS[1], correlated(2))
    law_nearer(compensate)


# ---- wrong implementations, and the laws that they break


def on_the_original_inputs(network, plan, x):
    """Every layer sees what the original network makes."""
    layers, values, run = list(network.layers), {0: x}, Runner(network)
    certificates = {}
    for i, layer in enumerate(network.layers):
        if i in plan:
            inputs = layer_inputs(layer, values[network.inputs[i][0]])
            rep, certificates[i] = plan[i](layer.weight, calibration=inputs)
            layers[i] = type(layer)(rep, layer.bias, **layer.options())
        values = run(values, i, i + 1)
    return with_layers(network, layers), certificates


def with_windows(change):
    def impl(network, plan, x):
        def changed(compressor, w, calibration):
            return compressor(w, calibration=iter([change(b) for b in calibration]))

        return compensate(network, _takes(plan, changed), x)

    return impl


def _takes(plan, changed):
    def wrapped(compressor):
        return lambda w, *, calibration: changed(compressor, w, calibration)

    return {i: wrapped(compressor) for i, compressor in plan.items()}


def channel_first(block):
    """The windows of the 3 x 3 kernels in another order than that of the weight's rows."""
    if block.shape[-1] == 9:
        return block.reshape(*block.shape[:-1], 3, 3).swapaxes(-1, -2).reshape(block.shape)
    return block[..., ::-1]


PLANTED = {
    "on the original's inputs": (law_reads_the_new_network, on_the_original_inputs),
    "windows in another order": (law_never_worse, with_windows(channel_first)),
    "another group's windows": (
        law_never_worse,
        with_windows(lambda b: np.roll(b, 1, 0) if b.ndim == 3 else b),
    ),
    "half of the windows": (
        law_never_worse,
        with_windows(lambda b: b[..., : b.shape[-2] // 2, :]),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_wrong_implementations_are_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong, small_network(), OPTIONS[1], correlated(2))


def test_rounding_compensates_nothing():
    with pytest.raises(AssertionError):
        law_nearer(with_windows(lambda b: 0 * b))


# ---- what else it promises


def windows_times_weight(layer, x):
    """A convolution as a product of matrices."""
    groups, outputs = layer.groups, layer.weight.shape[-1]
    weight = layer.weight.reshape(-1, groups, outputs // groups).swapaxes(0, 1)
    blocks = [b.reshape(groups, -1, weight.shape[1]) for b in layer_inputs(layer, x)]
    y = np.concatenate(blocks, 1) @ weight
    return y.transpose(1, 0, 2).reshape(len(x), *layer.output_shape(x.shape[1:]))


def whole_weight(*shape):
    """Small integers: all sums are exact."""
    return (np.arange(math.prod(shape)).reshape(shape) * 5 % 13 - 6).astype(np.float64)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
def test_windows_times_weight_is_the_convolution(groups, stride, dilation):
    options = {"groups": groups, "stride": stride, "dilation": dilation}
    for padding in ("valid", "same", 1, ((0, 2), (1, 0))):
        layer = Conv2D(whole_weight(2, 3, 2 // groups, 4), padding=padding, **options)
        np.testing.assert_array_equal(
            windows_times_weight(layer, images(3)), layer.forward(images(3))
        )
        layer = ConvTranspose2D(whole_weight(2, 3, 2 // groups, 4), padding=padding, **options)
        np.testing.assert_array_equal(
            windows_times_weight(layer, images(3)), layer.forward(images(3))
        )


def test_transposed_convolutions_that_cut_more_than_the_kernel_or_add_rows():
    for options in (
        {"padding": ((1, 0), (1, 2))},
        {"stride": 2, "padding": ((2, 1), (0, 3))},
        {"stride": 3, "output_padding": (2, 1)},
    ):
        layer = ConvTranspose2D(whole_weight(1, 2, 2, 3), **options)
        np.testing.assert_array_equal(
            windows_times_weight(layer, images(2)), layer.forward(images(2))
        )


def test_large_images_come_in_many_blocks():
    x = np.resize(images(1), (2, 300, 200, 2))
    layer = Conv2D(whole_weight(3, 3, 2, 1), padding="same")
    sizes = [len(block) for block in layer_inputs(layer, x)]
    assert len(sizes) > 1
    assert sum(sizes) == 2 * 300 * 200
    np.testing.assert_array_equal(windows_times_weight(layer, x), layer.forward(x))


def test_a_plan_is_followed_in_the_order_of_layers_and_reported_in_its_own():
    network, x = small_network(), correlated(2)
    plan = plan_of(network, OPTIONS[1])
    turned = dict(reversed(plan.items()))
    first, certificates = compensate(network, plan, x)
    again, others = compensate(network, turned, x)
    assert list(others) == list(turned)
    assert certificates == others
    for a, b in zip(first.layers, again.layers, strict=True):
        assert all(
            (decode(v) == decode(b.parameters()[n])).all() for n, v in a.parameters().items()
        )


def test_an_empty_plan_and_a_network_without_layers():
    network, x = small_network(), correlated(1)
    assert compensate(network, {}, x).model.layers == network.layers
    assert compensate(Sequential(()), {}, x).certificates == {}
    empty = Sequential((Conv2D(np.ones((2, 2, 0, 3))),))
    found = compensate(empty, plan_of(empty, OPTIONS[0]), x[..., :0])
    assert found.certificates[0].measured == 0


def test_it_wins_back_what_few_bits_lose_on_digits():
    (x, _), (validation, _) = load_digits("train"), load_digits("validation")
    network = digits_resnet(rng())
    options = {"num_bits": 4, "axis": -1}
    plan = plan_of(network, options)
    found = compensate(network, plan, x[:128]).model
    plain = compress(network, {i: partial(quantize, **options) for i in plan}).model
    y = network(validation)
    assert np.linalg.norm(found(validation) - y) < 0.7 * np.linalg.norm(plain(validation) - y)


W = np.ones((2, 2))
CHAIN = Sequential((Dense(W), ReLU(), Dense(W)))
GOOD = partial(compensated_quantize, num_bits=4)
BAD = {
    "layer 1 \\(ReLU\\): only a Conv2D, a ConvTranspose2D or a Dense": lambda: compensate(
        CHAIN, {1: GOOD}, W
    ),
    "a layer index of the plan must be an int from 0 to 2": lambda: compensate(CHAIN, {3: GOOD}, W),
    "plan must map layer indices": lambda: compensate(CHAIN, [GOOD], W),
    "layer 0 \\(Dense\\): a compressor of the plan must take calibration": lambda: compensate(
        CHAIN, {0: partial(quantize, num_bits=4)}, W
    ),
    "must be a function, not 4": lambda: compensate(CHAIN, {0: 4}, W),
    "x must be finite": lambda: compensate(CHAIN, {0: GOOD}, W * np.nan),
    "network must be a Network": lambda: compensate(CHAIN.layers, {0: GOOD}, W),
    "layer 0 \\(Dense\\): .*must have shape \\(2,\\)": lambda: compensate(
        CHAIN, {0: GOOD}, W[:, :1]
    ),
    "layer 0 \\(Dense\\): all arrays must have the same dtype": lambda: compensate(
        CHAIN, {0: GOOD}, W.astype("f4")
    ),
    "layer 1 \\(Dense\\): calibration must be finite": lambda: compensate(
        Sequential((Dense(W * 1e200), Dense(W))), {1: GOOD}, W * 1e200
    ),
    "layer 0 \\(Dense\\): num_bits": lambda: compensate(
        CHAIN, {0: partial(compensated_quantize, num_bits=1)}, W
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(CompressionError, match=message), np.errstate(over="ignore"):
        BAD[message]()
