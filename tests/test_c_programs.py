"""C of networks with branches, joins and several outputs: the same codes, bit for bit."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from integer_oracles import PICTURE, chained
from test_c import (
    STRICT,
    compiled,
    edited,
    law_bytes,
    law_codes,
    needs_cc,
    run_c,
    sanitizers,
    with_layers,
)
from test_integer_programs import integer_models, many, trained

from minicompress.datasets import load_digits
from minicompress.integer.conversion import to_integer
from minicompress.integer.joins import IntegerMultiply
from minicompress.integer.layers import IntegerScale
from minicompress.integer.stateless import IntegerTable
from minicompress.interchange.c import export_c
from minicompress.nn.architectures import digits_resnet
from minicompress.nn.composition import Parallel, Residual, Sequential
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network
from minicompress.nn.pointwise import PReLU, ReLU, Sigmoid
from minicompress.nn.stateless import Add, AvgPool2D, ChannelShuffle, Concat, Multiply, Upsample2D
from minicompress.rewrite.batch_norm import fold_batch_norm

__all__ = ["sanitizers", "trained"]  # fixtures


def values_of(model):
    """The model with every value as an output, the input too, up to the nine that C is asked for.

    So each layer's codes are seen, and everything lives to the end.
    """
    count = min(len(model.layers), 8)
    network = Network(model.network.layers[:count], model.network.inputs[:count],
                      tuple(range(count + 1)))  # fmt: skip
    return type(model)(network, model.input_shape, model.input_qparams,
                       (model.input_qparams,) * (count + 1))  # fmt: skip


@needs_cc
def test_drawn_programs(tmp_path, sanitizers):
    """All that Hypothesis draws become one program, each model as it is and with all values."""
    network, x = many()
    model = to_integer(network, x)
    codes = np.random.default_rng(1).integers(-128, 128, (4, 5, 5, 2)).astype(np.int8)
    cases = [(model, codes), (values_of(model), codes)]

    @given(integer_models())
    def collect(case):
        model, codes = case
        cases.append(case)
        cases.append((values_of(model), codes))

    collect()
    cases = [case for case in cases if len(case[0].network.outputs) <= 9]
    flags = ("-std=c99", "-O1", *STRICT[2:], *sanitizers)
    for start in range(0, len(cases), 100):
        part = cases[start : start + 100]
        for case, made in zip(part, run_c(part, tmp_path, flags), strict=True):
            law_codes(*case, *made)
    assert any(len(model.network.outputs) > 1 for model, _ in cases)


@needs_cc
def test_digits_resnet(trained, tmp_path, sanitizers):
    """Every test image in C, and the bytes that the header states in the object file."""
    calibration, (x, y) = load_digits("train")[0][:300], load_digits("test")
    whole, model = (to_integer(n, calibration) for n in (trained, fold_batch_norm(trained)))
    codes = model.quantize_input(x)
    cases = [(whole, codes), (model, codes)]
    for case, made in zip(cases, run_c(cases, tmp_path, (*STRICT, *sanitizers)), strict=True):
        law_codes(*case, *made)
        assert (made[1] == y).mean() > (trained(x).argmax(1) == y).mean() - 0.02
    assert len(model.layers) == len(whole.layers) - 8
    assert not any(isinstance(layer, IntegerScale) for layer in model.layers)
    written = export_c(model, tmp_path / "net.c")
    compiled(tmp_path, *STRICT, "-c", "net.c", "-o", "net.o")
    law_bytes(written, tmp_path / "net.o")
    assert f"#define predict_RAM_BYTES {written.ram_bytes}\n" in written.header.read_text()
    # Two values of 8 x 8 x 12 live in the first block, and a convolution of 3 x 3 runs ahead of
    # its input by a row, a pixel and a channel: not a third value.
    assert 2 * 768 < written.ram_bytes < 2 * 768 + 768 // 4
    assert digits_resnet(np.random.default_rng(0)).inputs == trained.inputs


def test_the_header_speaks_of_every_output(tmp_path):
    dense = Dense(np.eye(2))
    network = Network((dense, Sigmoid()), ((0,), (1,)), (2, 0, 1))
    made = export_c(to_integer(network, np.eye(2)), tmp_path / "net.c", name="net")
    header = made.header.read_text()
    assert re.findall(r"#define net_OUTPUTS(\w*) (\d+)", header) == [
        ("", "2"), ("_0", "2"), ("_1", "2"), ("_2", "2"),
    ]  # fmt: skip
    assert "void net_run(const int8_t *input, const int8_t **outputs);" in header
    assert len(re.findall(r"^ \* Output", header, re.MULTILINE)) == 3
    assert "outputs[1] = input;" in made.source.read_text()
    single = export_c(to_integer(Sequential((dense,)), np.eye(2)), tmp_path / "one.c")
    assert "run(" not in single.header.read_text()


# planted wrong exports ----------------------------------------------------------------------------


RNG = np.random.default_rng(2)
IMAGES = RNG.standard_normal((9, 3, 4, 4)) + 0.5


def case(*parts):
    model = to_integer(Sequential(parts), IMAGES)
    return model, RNG.integers(-128, 128, (6, 3, 4, 4)).astype(np.int8)


def kernel(*shape):
    return RNG.standard_normal(shape)


SUM = case(Parallel((Conv2D(kernel(1, 1, 4, 4)), ()), Add()))
JOINED = case(Parallel((Conv2D(kernel(1, 1, 4, 2)), ()), Concat()))
TIMES = case(Parallel((Conv2D(kernel(1, 1, 4, 4)), ()), Multiply()))
SLOPES = case(PReLU(RNG.standard_normal(4)))
LARGER = case(Upsample2D((2, 3)))
SHUFFLED = case(ChannelShuffle(2))
BACK = case(ConvTranspose2D(kernel(2, 2, 4, 3), stride=2, padding=((1, 0), (0, 1))))
COUNTED = case(
    AvgPool2D((2, 3), 2, ((0, 1), (1, 1)), ceil_mode=True, count_include_pad=True)
)  # fmt: skip

PLANTED = {
    "one multiplier for both": (SUM, str(SUM[0].layers[1].multiplier[0]), "1"),
    "a sum is not rounded": (SUM, " + ((int64_t)1 << (shift - 1))", ""),
    "a sum reads one value twice": (SUM, "(in_1[i]", "(in_0[i]"),
    "parts overwrite each other": (JOINED, "p * 6 + 2 + c", "p * 6 + 1 + c"),
    "the factors are added": (TIMES, ") * (in_1", ") + (in_1"),
    "one row of the table": (SLOPES, "(i % 4) * 256 + ", ""),
    "the table begins at 0": (SLOPES, "in[i] + 128]", "in[i] + 127]"),
    "rows and columns swapped": (LARGER, "* 4 + i /", "* 3 + i /"),
    "the shuffle goes back": (SHUFFLED, "c % 2 * 2 + c / 2", "c % 3 + c / 3"),
    "rows between are not skipped": (BACK, "row % 2 == 0 && ", ""),
    "the cut is forgotten": (BACK, "y + 1 - p", "y - p"),
    "all places count": (COUNTED, "last += 1;", "last = 5;"),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    cases = [case for case, _, _ in PLANTED.values()]
    edits = [edited(old, new) for _, old, new in PLANTED.values()]
    flags = ("-std=c99", "-O1", "-w")
    wrong = run_c(cases, tmp_path_factory.mktemp("wrong"), flags, edits)
    right = run_c(cases, tmp_path_factory.mktemp("right"), flags)
    return {name: pair for name, *pair in zip(PLANTED, wrong, right, strict=True)}


@needs_cc
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_wrong_export_is_caught(planted, name):
    case, wrong, right = PLANTED[name][0], *planted[name]
    law_codes(*case, *right)
    with pytest.raises(AssertionError):
        law_codes(*case, *wrong)


@needs_cc
def test_a_value_that_is_overwritten_too_early_is_caught(tmp_path):
    """The output of the block's first layer in the place of what the sum still reads."""
    _, codes = SUM
    stem = to_integer(Sequential((ReLU(), Residual(ReLU(), Conv2D(kernel(1, 1, 4, 4))))), IMAGES)
    text = export_c(stem, tmp_path / "a.c", name="n0").source.read_text()
    calls = re.findall(r"n0_layer_\d+\(.*\);", text)
    first = re.search(r"arena \+ (\d+)\);", calls[0])[1]
    second = re.sub(r"arena \+ \d+\);", f"arena + {first});", calls[1])
    assert second != calls[1]
    for edits, fits in ((None, True), ([edited(calls[1], second)], False)):
        (made,) = run_c([(stem, codes)], tmp_path, ("-std=c99", "-w"), edits)
        if fits:
            law_codes(stem, codes, *made)
        else:
            with pytest.raises(AssertionError):
                law_codes(stem, codes, *made)


@needs_cc
def test_gates_on_either_side_and_a_table_at_the_end(tmp_path):
    unit = {"multiplier": np.array([2**30]), "shift": np.array([36])}
    table = IntegerTable(np.arange(127, -129, -1).clip(-128, 127).astype(np.int8))
    gate = to_integer(Sequential((AvgPool2D(5), Sigmoid())), np.ones((1, 5, 5, 2)))
    for pair in ((0, 2), (2, 0)):
        layers = (*gate.layers, IntegerMultiply((3, -4), **unit), table)
        network = Network(layers, ((0,), (1,), pair, (3,)), (4,))
        model = chained((), (5, 5, 2))
        model = type(model)(network, (5, 5, 2), model.input_qparams, model.output_qparams)
        (made,) = run_c([(model, PICTURE)], tmp_path, STRICT)
        law_codes(model, PICTURE, *made)
    assert with_layers(model, (table,)).layers == (table,)
