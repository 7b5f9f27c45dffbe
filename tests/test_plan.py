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


# Named arrays -----------------------------------------------------------------------------------


def named():
    rng = np.random.default_rng(0)
    return {
        "encoder.weight": rng.normal(size=(6, 4)),
        "encoder.bias": rng.normal(size=4),
        "head.weight": rng.normal(size=(4, 3)).astype(np.float32),
        "table": rng.integers(0, 9, (3, 3)),
        "conv3d": rng.normal(size=(2, 3, 2, 3, 2)),
    }


def test_named_arrays_are_compressed_as_the_plan_says():
    arrays = named()
    plan = {"*.weight": int4, "head.weight": half, "*": partial(mc.quantize, num_bits=8)}
    small, certificates = mc.compress(arrays, plan)
    assert list(small) == list(arrays)
    assert list(certificates) == ["encoder.weight", "head.weight", "conv3d"]
    assert certificates["encoder.weight"] == int4(arrays["encoder.weight"]).cert  # first pattern
    assert certificates["head.weight"] == half(arrays["head.weight"]).cert  # its own name
    assert isinstance(small["conv3d"], mc.Quantized)
    for name in ("encoder.bias", "table"):  # patterns leave them alone
        assert small[name] is arrays[name]
    check_pure(mc.compress, arrays, plan)


def test_a_name_reaches_what_patterns_leave():
    small, certificates = mc.compress(named(), {"encoder.bias": half, "head.*": None, "*": int4})
    assert isinstance(small["encoder.bias"], mc.Sparse)
    assert isinstance(small["head.weight"], np.ndarray)
    assert set(certificates) == {"encoder.bias", "encoder.weight", "conv3d"}
    again = mc.compress(small, {"encoder.bias": half})
    assert again.certificates["encoder.bias"].measured == 0.0


NAMED_REFUSED = [
    ({"decoder.*": int4}, r"'decoder.\*' of the plan fits no array"),
    ({"*bias": int4}, "patterns fit float arrays of two axes or more"),
    ({0: int4}, "names as keys, not 0"),
    ({"table": int4}, "array 'table': "),
    ({"head.weight": lambda w: w}, "array 'head.weight': "),
    ([int4], "plan must map names to compressors"),
]


@pytest.mark.parametrize(("plan", "message"), NAMED_REFUSED)
def test_plans_of_names_refused(plan, message):
    with pytest.raises(mc.CompressionError, match=message):
        mc.compress(named(), plan)
