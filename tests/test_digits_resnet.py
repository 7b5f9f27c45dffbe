"""A residual network goes the whole way: every pass of the library, one behind the other."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from integer_oracles import int64_outputs
from onnx_laws import law_outputs, needs_onnx
from test_c import STRICT, law_codes, needs_cc, run_c, sanitizers  # noqa: F401

from minicompress.analysis.accounting import summary
from minicompress.certify.attacks import attack
from minicompress.certify.certificates import ball_certificates
from minicompress.compressors.quantization import quantize
from minicompress.datasets import load_digits
from minicompress.integer.conversion import to_integer
from minicompress.interchange.onnx_file import to_onnx
from minicompress.nn.architectures import digits_resnet
from minicompress.nn.network import Network
from minicompress.nn.optimizers import adam, cosine_lr
from minicompress.nn.parameters import parameters
from minicompress.nn.training import accuracy, fit
from minicompress.rewrite.batch_norm import fold_batch_norm
from minicompress.rewrite.channels import remove_least_channels
from minicompress.search.plan import compress
from minicompress.search.searching import search_plan
from minicompress.search.weights import weights
from minicompress.storage.container import dumps, load, save

SHAPE = (8, 8, 1)
TRAIN, VALIDATION, TEST = (load_digits(split) for split in ("train", "validation", "test"))


def trained(network: Network, epochs: int) -> Network:
    optimizer = adam(cosine_lr(3e-3, epochs * 38))
    rng = np.random.default_rng(0)
    options = {"optimizer": optimizer, "epochs": epochs, "batch_size": 32, "rng": rng}
    return fit(network, *TRAIN, **options)[0]


@pytest.fixture(scope="module")
def whole():
    """Trained, with all its channels."""
    return trained(digits_resnet(np.random.default_rng(0)), 6)


@pytest.fixture(scope="module")
def halved(whole):
    """Half of the channels removed, trained again, and folded."""
    return fold_batch_norm(trained(remove_least_channels(whole, 0.5), 4))


def costs(stages):
    """Parameters of kernels and MACs by hand: 3 x 3 kernels, one 1 x 1, and the dense layer."""
    a, b = stages
    kernels = [9 * a, 9 * a * a, 9 * a * a, 9 * a * b, 9 * b * b, a * b, 9 * b * b, 9 * b * b]
    macs = sum(n * 64 for n in kernels[:3]) + sum(n * 16 for n in kernels[3:])
    return sum(kernels) + 10 * b, macs + 10 * b


def test_it_learns(whole):
    assert accuracy(whole, *VALIDATION) > 0.96


def test_half_of_the_channels_cost_what_is_counted(whole, halved):
    for network, stages in ((whole, (12, 24)), (halved, (6, 12))):
        kernels, macs = costs(stages)
        count = sum(v.size for p in parameters(network) for n, v in p.items() if n == "weight")
        assert (count, summary(network, SHAPE).macs) == (kernels, macs)
    assert summary(halved, SHAPE).activation_bytes == 3 * 8 * 8 * 6 * 4
    assert accuracy(halved, *VALIDATION) > 0.95


def test_a_search_keeps_its_budget_and_the_file_is_the_network(halved, tmp_path):
    choices = [partial(quantize, num_bits=bits, axis=-1) for bits in (3, 4, 6, 8)]
    budget = len(dumps(halved)) // 6
    found = search_plan(halved, choices, *VALIDATION, max_bytes=budget, rounds=1, plans=2)
    path = tmp_path / "digits_resnet.mcz"
    save(found.model, path)
    assert path.stat().st_size == found.best.bytes <= budget
    again = load(path)
    assert (again.inputs, again.outputs) == (halved.inputs, halved.outputs)
    assert dumps(again) == path.read_bytes()
    np.testing.assert_array_equal(again(TEST[0]), found.model(TEST[0]))
    assert accuracy(again, *VALIDATION) > 0.9


@needs_cc
def test_integers_and_c(halved, tmp_path, sanitizers):  # noqa: F811
    model = to_integer(halved, TRAIN[0][:256])
    codes = model.quantize_input(TEST[0])
    (right,) = int64_outputs(model, codes[:20])
    np.testing.assert_array_equal(model.run(codes[:20]), right)
    (made,) = run_c([(model, codes)], tmp_path, (*STRICT, *sanitizers))
    law_codes(model, codes, *made)
    classes = halved(TEST[0]).argmax(1)
    assert (made[1] == classes).mean() > 0.95


@needs_onnx
def test_onnx(halved):
    law_outputs(lambda network, x: to_onnx(network, SHAPE), halved, TEST[0][:50])


def test_certificates_hold_against_an_attack(halved):
    """Nothing that a search finds is further apart than what is proven; at a point it is near."""
    int8 = partial(quantize, num_bits=8, axis=-1)
    small = compress(halved, dict.fromkeys(weights(halved), int8)).model
    images, rng = TEST[0][:4], np.random.default_rng(0)
    for eps, factor in ((0.0, 1.01), (1 / 512, 100)):
        options = {"eps": eps, "clip": (0.0, 1.0)}
        found = attack(halved, small, images, **options, rng=rng)
        floats, reals = (
            np.array([c.bound for c in ball_certificates(halved, small, images, **options, **more)])
            for more in ({}, {"arithmetic": "real"})
        )
        assert (found <= floats).all()
        # For real numbers the rounding of this search is all that can be above the bound.
        assert (found <= reals + 1e-4).all()
        assert (reals <= factor * found).all()
