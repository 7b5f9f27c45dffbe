"""A plan says which method goes where; the model and its certificates come back."""

from functools import partial

import numpy as np
import pytest

import minicompress as mc
from minicompress.testing.checks import check_pure

int4 = partial(mc.quantize, num_bits=4, axis=-1)
half = partial(mc.prune_magnitude, amount=0.5)
low = partial(mc.truncated_svd, rank=2)


def net():
    rng = np.random.default_rng(0)
    kernel, matrix = rng.normal(size=(3, 3, 1, 4)), rng.normal(size=(144, 5))
    return mc.Sequential(
        (mc.Conv2D(kernel, np.ones(4)), mc.ReLU(), mc.Flatten(), mc.Dense(matrix, np.ones(5)))
    )


def test_what_the_plan_names_is_compressed_and_nothing_else():
    model = net()
    small, certificates = mc.compress(model, {3: low})
    assert certificates.keys() == {3}
    assert certificates[3] == low(model.layers[3].weight).cert
    assert isinstance(small.layers[3].weight, mc.LowRank)
    assert small.layers[3].bias.tolist() == model.layers[3].bias.tolist()
    assert small.layers[:3] == model.layers[:3]
    assert mc.compress(model, {}).model.layers == model.layers


def test_the_compressed_model_is_smaller_cheaper_and_runs():
    model = net()
    small = mc.compress(model, {0: int4, 3: low}).model
    before, after = (mc.summary(m, (8, 8, 1)) for m in (model, small))
    assert after.packed_bytes < before.packed_bytes
    assert after.macs < before.macs
    x = np.ones((2, 8, 8, 1))
    # Factors one after the other, or their product rounded first: gamma_150 of sizes below 1e3.
    np.testing.assert_allclose(small(x), mc.nn.decoded(small)(x), atol=1e-10)


def test_a_compressed_weight_is_compressed_again_as_the_array_it_stands_for():
    pruned = mc.compress(net(), {3: half}).model
    again = mc.compress(pruned, {3: half})
    assert again.certificates[3].measured == 0.0


def test_compressing_is_pure():
    check_pure(mc.compress, net(), {0: int4, 3: half})


BAD = [
    ({1: int4}, r"layer 1 \(ReLU\) has no weights"),
    ({4: int4}, "a layer index of the plan must be an int from 0 to 3, not 4"),
    ({-1: int4}, "from 0 to 3, not -1"),
    ({"0": int4}, "must be an int from 0 to 3, not '0'"),
    ({0: low}, r"layer 0 \(Conv2D\): weight must have 2 dimensions"),
    ({0: np.abs}, "a compressor of the plan must return"),
    ([int4], "plan must map layer indices to compressors"),
]


@pytest.mark.parametrize(("plan", "message"), BAD)
def test_a_plan_that_does_not_fit_is_refused(plan, message):
    with pytest.raises(mc.CompressionError, match=message):
        mc.compress(net(), plan)
