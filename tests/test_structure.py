"""Rewritten networks compute the same function, or the same but for what was taken away."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import minicompress as mc
from minicompress.rewrite import (
    dense_to_conv,
    dense_to_global_pool,
    factorize,
    fold_batch_norm,
    remove_channels,
)


def integers(*shape, dtype=np.float64):
    """Small integers: every sum of their products is exact, in any order."""
    return npst.arrays(dtype, shape, elements=st.integers(-3, 3).map(float), fill=st.nothing())


@st.composite
def batch_norms(draw, channels, dtype=np.float64):
    """With variances whose roots are powers of two, so that folding is exact."""
    variance = draw(npst.arrays(dtype, channels, elements=st.sampled_from([0.25, 1.0, 4.0, 16.0])))
    parts = [draw(integers(channels, dtype=dtype)) for _ in range(3)]
    return mc.BatchNorm(*parts, variance, epsilon=1e-300)


def law_folding_keeps_the_function(fold, model, x):
    folded = fold(model)
    assert not any(isinstance(layer, mc.BatchNorm) for layer in folded.layers)
    assert np.array_equal(folded(x), model(x))


@given(st.data())
def test_a_folded_batch_norm_is_the_same_function(data):
    conv = mc.Conv2D(data.draw(integers(2, 2, 2, 3)), data.draw(st.none() | integers(3)))
    dense = mc.Dense(data.draw(integers(12, 2)), data.draw(st.none() | integers(2)))
    model = mc.Sequential(
        (conv, data.draw(batch_norms(3)), mc.ReLU(), mc.Flatten(), dense, data.draw(batch_norms(2)))
    )
    x = data.draw(integers(2, 3, 3, 2))
    law_folding_keeps_the_function(fold_batch_norm, model, x)


def test_two_batch_norms_in_a_row_fold_one_after_the_other():
    one = np.ones(1)
    norms = [mc.BatchNorm(k * one, one, one, one, epsilon=1e-300) for k in (2.0, 4.0)]
    model = mc.Sequential((mc.Dense(np.array([[3.0]])), *norms))
    assert len(fold_batch_norm(model).layers) == 1
    assert fold_batch_norm(model)(np.array([[5.0]])) == model(np.array([[5.0]]))


def network(data):
    """Channels 4 of the first convolution reach the second through everything on the way."""
    draw = data.draw
    depthwise = mc.Conv2D(draw(integers(2, 2, 1, 4)), draw(integers(4)), groups=4)
    return mc.Sequential(
        (
            mc.Conv2D(draw(integers(2, 2, 1, 4)), draw(integers(4))),
            draw(batch_norms(4)),
            mc.ReLU(),
            mc.MaxPool2D(2, stride=1),
            depthwise,
            mc.nn.LeakyReLU(0.5),
            mc.Conv2D(draw(integers(1, 1, 4, 3)), draw(integers(3))),
            mc.ReLU(),
            mc.Flatten(),
            mc.Dense(draw(integers(12, 4)), draw(integers(4))),
            mc.Dense(draw(integers(4, 2)), draw(integers(2))),
        )
    )


def silenced(model, index, kept):
    """The model whose removed channels nobody reads: their rows in the next layer are 0."""
    layers, channels = list(model.layers), model.layers[index].weight.shape[-1]
    gone = np.setdiff1d(np.arange(channels), kept)
    for i in range(index + 1, len(layers)):
        layer = layers[i]
        if isinstance(layer, mc.Dense) or (isinstance(layer, mc.Conv2D) and layer.groups == 1):
            weight = np.array(layer.weight)
            if weight.ndim == 4:
                weight[:, :, gone] = 0
            else:
                weight[np.isin(np.arange(len(weight)) % channels, gone)] = 0
            layers[i] = dataclasses.replace(layer, weight=weight)
            break
    return mc.Sequential(tuple(layers))


def law_removal_is_not_reading(remove, model, index, kept, x):
    removed = remove(model, index, kept)
    assert np.array_equal(removed(x), silenced(model, index, kept)(x))
    before, after = (mc.summary(m, x.shape[1:]) for m in (model, removed))
    if len(kept) < model.layers[index].weight.shape[-1]:
        assert after.params < before.params
        assert after.macs < before.macs


@given(st.data())
def test_a_removed_channel_is_one_that_nobody_reads(data):
    model = network(data)
    index = data.draw(st.sampled_from([0, 6, 9]))
    channels = model.layers[index].weight.shape[-1]
    kept = sorted(data.draw(st.sets(st.integers(0, channels - 1), min_size=1)))
    x = data.draw(integers(2, 5, 5, 1))
    law_removal_is_not_reading(remove_channels, model, index, kept, x)


@given(st.data())
def test_removing_a_channel_that_is_zero_changes_no_output(data):
    model = mc.Sequential(
        (
            mc.Conv2D(data.draw(integers(2, 2, 1, 3)) * [1, 0, 1], np.array([1.0, 0.0, -1.0])),
            mc.ReLU(),
            mc.MaxPool2D(2),
            mc.Flatten(),
            mc.Dense(data.draw(integers(12, 2)), data.draw(integers(2))),
        )
    )
    x = data.draw(integers(2, 5, 5, 1))
    assert np.array_equal(remove_channels(model, 0, [True, False, True])(x), model(x))


def test_global_pooling_leads_to_the_next_rows():
    kernel = np.arange(12.0).reshape(1, 2, 2, 3)
    head = np.arange(6.0).reshape(3, 2)
    model = mc.Sequential((mc.Conv2D(kernel), mc.GlobalAvgPool2D(), mc.Dense(head)))
    removed = remove_channels(model, 0, [0, 2])
    assert removed.layers[2].weight.tolist() == head[[0, 2]].tolist()


def test_a_filter_pruned_lenet5_is_a_lenet5_built_at_that_size():
    """Half of the filters and neurons gone: the counts are those of the formula."""
    model = mc.lenet5(np.random.default_rng(0))
    for index, layer in enumerate(model.layers[:-1]):
        if isinstance(layer, mc.Conv2D | mc.Dense):
            model = remove_channels(model, index, np.arange(layer.weight.shape[-1]) % 2 == 0)
    params = (25 * 10 + 10) + (250 * 25 + 25) + (16 * 25 * 250 + 250) + (250 * 10 + 10)
    macs = 24 * 24 * 25 * 10 + 8 * 8 * 250 * 25 + 400 * 250 + 2500
    counted = mc.summary(model, (28, 28, 1))
    assert (counted.params, counted.macs) == (params, macs)


EASY = mc.Sequential(
    (mc.Conv2D(np.ones((1, 1, 1, 4))), mc.ReLU(), mc.Flatten(), mc.Dense(np.ones((16, 2))))
)
GROUPED = mc.Sequential(
    (mc.Conv2D(np.ones((1, 1, 1, 4))), mc.Conv2D(np.ones((1, 1, 2, 4)), groups=2), *EASY.layers[1:])
)
BAD = [
    (EASY, 0, [], "keep must leave at least one channel"),
    (EASY, 0, [False] * 4, "keep must leave at least one channel"),
    (EASY, 0, [0, 4], "increasing channels from 0 to 3"),
    (EASY, 0, [1, 1], "increasing channels"),
    (EASY, 0, [0.0, 1.0], "keep must be 4 bools or a list of channels"),
    (EASY, 0, [True, False], "keep must be 4 bools"),
    (EASY, 3, [0], r"layer 3 \(Dense\) makes an output of the network"),
    (EASY, 9, [0], "index must be an int from 0 to 3"),
    (GROUPED, 0, [0], r"layer 1 \(Conv2D\) has groups=2"),
    (GROUPED, 1, [0], r"layer 1 \(Conv2D\) has groups=2"),
]


@pytest.mark.parametrize(("model", "index", "keep", "message"), BAD)
def test_what_cannot_be_removed_is_refused(model, index, keep, message):
    with pytest.raises(mc.CompressionError, match=message):
        remove_channels(model, index, keep)


@given(integers(12, 3), integers(3), integers(2, 2, 3, 2))
def test_a_dense_layer_is_a_convolution_of_the_size_of_the_image(weight, bias, x):
    layer = mc.Dense(weight, bias)
    conv = dense_to_conv(layer, (2, 3))
    dense = mc.Sequential((mc.Flatten(), layer))(x)
    assert np.array_equal(conv.forward(x).reshape(2, 3), dense)
    larger = np.concatenate([x, x], axis=1)  # the dense layer at every place
    assert np.array_equal(conv.forward(larger)[:, 0, 0], dense)


@given(integers(2, 3), integers(3), integers(2, 2, 4, 2))
def test_pooling_in_place_of_dense_is_equal_where_the_place_does_not_matter(rows, bias, x):
    layer = mc.Dense(np.tile(rows, (8, 1)), bias)
    pooled = mc.Sequential(dense_to_global_pool(layer, (2, 4)))
    assert np.array_equal(pooled(x), mc.Sequential((mc.Flatten(), layer))(x))


def test_rows_that_are_no_image_are_refused():
    for rewrite in (dense_to_conv, dense_to_global_pool):
        with pytest.raises(mc.CompressionError, match="10 inputs are no 2 x 3 images"):
            rewrite(mc.Dense(np.ones((10, 2))), (2, 3))


KERNELS = {
    "hwir,ro->hwio": ((3, 3, 2, 2), (2, 4)),
    "hir,rwo->hwio": ((3, 2, 2), (2, 3, 4)),
    "ia,hwab,bo->hwio": ((2, 2), (3, 3, 2, 3), (3, 4)),
}


@given(st.data())
def test_a_factorized_layer_is_its_decoded_one(data):
    subscripts = data.draw(st.sampled_from(list(KERNELS)))
    factors = tuple(data.draw(integers(*shape)) for shape in KERNELS[subscripts])
    layer = mc.Conv2D(
        mc.LowRank(factors, subscripts),
        data.draw(integers(4)),
        stride=data.draw(st.sampled_from([1, 2, (1, 2)])),
        padding=data.draw(st.sampled_from(["valid", "same", 1, ((0, 1), (2, 0))])),
    )
    x = data.draw(integers(1, 5, 6, 2))
    chain = factorize(mc.Sequential((mc.ReLU(), layer)))
    assert len(chain.layers) == 1 + len(factors)
    decoded = dataclasses.replace(layer, weight=mc.decode(layer.weight))
    assert np.array_equal(chain(x), mc.Sequential((mc.ReLU(), decoded))(x))


def test_what_has_no_chain_of_factors_is_one_layer():
    plain = mc.Sequential((mc.Dense(np.ones((2, 2))), mc.ReLU()))
    assert factorize(plain).layers == plain.layers
    product = mc.LowRank((np.ones((1, 1, 1, 1)), np.ones((1, 4))), "hwir,ro->hwio")
    (layer,) = factorize(mc.Sequential((mc.Conv2D(product, groups=2),))).layers
    assert np.array_equal(layer.weight, np.ones((1, 1, 1, 4)))


def rows_by_place(model, index, kept):
    """Takes the rows of a Dense as if the channel varied slowest, as it does in PyTorch."""
    right = remove_channels(model, index, kept)
    channels = model.layers[index].weight.shape[-1]
    last = next(
        i for i in range(index + 1, len(model.layers)) if isinstance(model.layers[i], mc.Dense)
    )
    weight = model.layers[last].weight
    rows = np.arange(len(weight)) // (len(weight) // channels)
    layers = list(right.layers)
    layers[last] = dataclasses.replace(layers[last], weight=weight[np.isin(rows, kept)])
    return mc.Sequential(tuple(layers))


def keeps_the_bias(model):
    folded = fold_batch_norm(model)
    layers = [dataclasses.replace(folded.layers[0], bias=model.layers[0].bias), *folded.layers[1:]]
    return mc.Sequential(tuple(layers))


FLAT = mc.Sequential(
    (
        mc.Conv2D(np.array([[[[1.0, 2.0]]]]), np.zeros(2)),
        mc.Flatten(),
        mc.Dense(np.arange(8.0).reshape(8, 1)),
    )
)
NORMED = mc.Sequential(
    (mc.Dense(np.ones((1, 1)), np.ones(1)), mc.BatchNorm(*(np.full(1, 4.0),) * 4, epsilon=1e-300))
)
PLANTED = {
    "rows of the next layer in PyTorch's order": (
        lambda f: law_removal_is_not_reading(f, FLAT, 0, [1], np.ones((1, 2, 2, 1))),
        rows_by_place,
    ),
    "a mask in place of removal": (
        lambda f: law_removal_is_not_reading(f, FLAT, 0, [1], np.ones((1, 2, 2, 1))),
        silenced,
    ),
    "the bias is not folded": (
        lambda f: law_folding_keeps_the_function(f, NORMED, np.ones((1, 1))),
        keeps_the_bias,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
