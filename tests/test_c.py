"""C from an integer model: the same codes, bit for bit, under warnings and sanitizers."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from c_models import affine, convolutions, pools
from hypothesis import given
from hypothesis import strategies as st
from integer_oracles import BORDERED, CODE, PICTURE, chained, int8s, with_layers

from minicompress.compressors.clustering import cluster
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.datasets import load_digits, load_mnist
from minicompress.errors import CompressionError, FileFormatError
from minicompress.integer.conversion import to_integer
from minicompress.integer.layers import IntegerConv2D, IntegerDense
from minicompress.integer.requantization import quantize_multiplier
from minicompress.integer.stateless import (
    IntegerAvgPool2D,
    IntegerFlatten,
    IntegerLayer,
    IntegerMaxPool2D,
    IntegerReLU,
)
from minicompress.interchange.c import export_c, export_c_file
from minicompress.interchange.c_weights import smallest
from minicompress.nn.architectures import digits_cnn, lenet5
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import value_shapes
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.optimizers import adam
from minicompress.nn.parameters import as_tuple
from minicompress.nn.pointwise import ReLU
from minicompress.nn.stateless import AvgPool2D, GlobalAvgPool2D
from minicompress.nn.training import fit
from minicompress.representation import Clustered, Sparse, decode
from minicompress.search.weights import weights, with_weights
from minicompress.storage.container import save

CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

needs_cc = pytest.mark.skipif(CC is None, reason="there is no C compiler (cc, gcc, clang) here")

STRICT = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror")

# Reads, for each network, how many inputs there are, and the inputs; each into memory of its own
# size, so that a sanitizer sees when more is read. Writes all outputs of each, and its class.
MAIN = """
#include <stdio.h>
#include <stdlib.h>
struct network {
    int (*classify)(const int8_t *);
    const int8_t *(*logits)(const int8_t *);
    void (*run)(const int8_t *, const int8_t **);
    size_t inputs, count, outputs[9];
};
static const struct network networks[] = {@NETWORKS@};
int main(void) {
    for (size_t i = 0; i < sizeof networks / sizeof *networks; i++) {
        const struct network *network = &networks[i];
        int32_t count = 0;
        if (fread(&count, sizeof count, 1, stdin) != 1) return 1;
        while (count-- > 0) {
            int8_t *input = malloc(network->inputs);
            if (input == NULL || fread(input, 1, network->inputs, stdin) != network->inputs)
                return 1;
            const int32_t class = network->classify(input);
            const int8_t *outputs[9];
            outputs[0] = network->logits(input);
            if (network->run != NULL)
                network->run(input, outputs);
            for (size_t k = 0; k < network->count; k++)
                fwrite(outputs[k], 1, network->outputs[k], stdout);
            fwrite(&class, sizeof class, 1, stdout);
            free(input);
        }
    }
    return 0;
}
"""


def compiled(folder, *arguments, compiler=CC):
    done = subprocess.run(
        [compiler, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[:3000]


@pytest.fixture(scope="module")
def sanitizers(tmp_path_factory):
    """The flags for them, where the compiler has their libraries."""
    folder = tmp_path_factory.mktemp("empty")
    flags = ("-fsanitize=undefined,address", "-fno-sanitize-recover")
    (folder / "main.c").write_text("int main(void) { return 0; }\n")
    try:
        compiled(folder, *flags, "main.c", "-o", "main")
    except AssertionError:
        pytest.skip("the C compiler has no address and undefined-behaviour sanitizers here")
    return flags


def run_c(cases, folder, flags, edits=None):
    """All outputs, and classes, that C computes for pairs of an integer model and codes of inputs.

    All networks become one program. `edits` are changes of the text of some of them.
    """
    rows, data, shapes = [], b"", []
    for i, (model, codes) in enumerate(cases):
        name = f"n{i}"
        export_c(model, folder / f"{name}.c", name=name)
        if edits:
            text = (folder / f"{name}.c").read_text()
            (folder / f"{name}.c").write_text(edits[i](text, name))
        sizes, run = [f"{name}_OUTPUTS"], "NULL"
        if len(model.network.outputs) > 1:
            run, count = f"{name}_run", len(model.network.outputs)
            sizes = [f"{name}_OUTPUTS_{k}" for k in range(count)]
        row = f"{name}_class, {name}_logits, {run}, {name}_INPUTS, {len(sizes)}"
        rows.append(f"{{{row}, {{{', '.join(sizes)}}}}}")
        data += struct.pack("=i", len(codes)) + codes.tobytes()
        shapes.append((len(codes), sum(output_sizes(model))))
    includes = "".join(f'#include "n{i}.c"\n' for i in range(len(rows)))
    (folder / "main.c").write_text(includes + MAIN.replace("@NETWORKS@", ", ".join(rows)))
    compiled(folder, *flags, "main.c", "-o", "main")
    done = subprocess.run([folder / "main"], input=data, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()[:3000]
    made, start = [], 0
    for n, outputs in shapes:
        record = np.dtype([("logits", np.int8, (outputs,)), ("class", "=i4")])
        part = np.frombuffer(done.stdout, record, n, start)
        start += n * record.itemsize
        made.append((part["logits"], part["class"]))
    assert start == len(done.stdout)
    return made


def output_sizes(model):
    shapes = value_shapes(model.network, model.input_shape)
    return [math.prod(shapes[value]) for value in model.network.outputs]


def law_codes(model, codes, logits, classes):
    """Bit for bit the outputs of the integer model, and the first class of the largest."""
    parts = zip(as_tuple(model.run(codes)), output_sizes(model), strict=True)
    right = [part.reshape(len(codes), size) for part, size in parts]
    np.testing.assert_array_equal(logits, np.concatenate(right, axis=1))
    np.testing.assert_array_equal(classes, right[0].argmax(1))


def small(layer, shape):
    return chained((layer,), shape)


def prefixes(model):
    """The network cut off behind every layer: its logits are that layer's output."""
    return [with_layers(model, model.layers[: i + 1]) for i in range(len(model.layers))]


# drawn networks -----------------------------------------------------------------------------------


@st.composite
def networks(draw):
    shape = tuple(draw(st.integers(1, top)) for top in (5, 5, 3))
    input_shape, layers = shape, []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "pool", "relu", "flatten", "dense"]))
        if kind in {"conv", "pool"} and len(shape) == 1:
            kind = "dense"
        if kind == "dense" and len(shape) == 3:
            layers.append(IntegerFlatten())
            shape = (math.prod(shape),)
        layer = {
            "conv": lambda s: draw(convolutions(*s)),
            "pool": lambda s: draw(pools(*s[:2])),
            "relu": lambda s: IntegerReLU(draw(CODE)),
            "flatten": lambda s: IntegerFlatten(),
            "dense": lambda s: draw(affine(IntegerDense, (*s, draw(st.integers(1, 4))))),
        }[kind](shape)
        layers.append(layer)
        shape = layer.output_shape(shape)
    return chained(layers, input_shape), draw(int8s((2, *input_shape)))


def moving():
    """A network whose plan cannot do without moving codes: 3 to 2 to 10 to 10."""
    rng = np.random.default_rng(1)
    steps = [Dense(rng.standard_normal(shape)) for shape in ((3, 2), (2, 10), (10, 10))]
    model = to_integer(Sequential(tuple(steps)), rng.standard_normal((20, 3)))
    return model, rng.integers(-128, 128, (50, 3)).astype(np.int8)


def averaging():
    """Every kind of average: without padding, with it in the mean, and beside it."""
    rng = np.random.default_rng(2)
    layers = (
        AvgPool2D(3, 1, 1),
        Conv2D(rng.standard_normal((2, 2, 2, 3))),
        AvgPool2D((2, 3), (2, 1), ((1, 0), (0, 2)), count_include_pad=True),
        ReLU(),
        GlobalAvgPool2D(),
        Dense(rng.standard_normal((3, 4))),
    )
    model = to_integer(Sequential(layers), rng.standard_normal((20, 5, 5, 2)), activation_bits=6)
    return model, PICTURE


@needs_cc
def test_drawn_networks(tmp_path, sanitizers):
    """All that Hypothesis draws become one program; the laws are asked when it has run."""
    cases = [moving(), averaging()]
    for bits in range(1, 9):
        weight = BORDERED.weight.astype(int) // 2 ** (8 - bits)
        layer = dataclasses.replace(BORDERED, weight=weight.astype(np.int8))
        cases.append((small(layer, PICTURE.shape[1:]), PICTURE))
    x = np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32)
    for few in (pruned, clustered):  # a list of places, a codebook
        made = to_integer(Sequential((Dense(few(np.sin(np.outer(x[0], x[1])))),)), x)
        cases.append((made, made.quantize_input(x)))
    for zero_point in (-128, 127):  # where a comparison of codes has only one way to come out
        cases.append((small(IntegerReLU(zero_point), PICTURE.shape[1:]), PICTURE))

    @given(networks())
    def collect(case):
        cases.append(case)

    collect()
    forms = [
        smallest(np.moveaxis(layer.weight, -1, 0).ravel())
        for model, _ in cases
        for layer in model.layers
        if isinstance(layer, IntegerConv2D | IntegerDense)
    ]
    assert {form.gaps is None for form in forms} == {True, False}
    assert {form.values.codebook is None for form in forms} == {True, False}
    assert {form.values.bits for form in forms} == set(range(1, 9))
    flags = ("-std=c99", "-O1", *STRICT[2:], *sanitizers)
    for start in range(0, len(cases), 100):
        part = cases[start : start + 100]
        for case, made in zip(part, run_c(part, tmp_path, flags), strict=True):
            law_codes(*case, *made)
        assert start or "n0_move(" in (tmp_path / "n0.c").read_text()


# the digits ---------------------------------------------------------------------------------------


def pruned(weight):
    return decode(prune_magnitude(weight, amount=0.9).rep)


def clustered(weight):
    return quantize(decode(cluster(weight, n_clusters=7).rep)).rep


KINDS = {
    "int8": (None, 8, "8-bit codes"),
    "4 bits": (None, 4, "4-bit codes"),
    "5 bits": (None, 5, "5-bit codes"),
    "pruned": (pruned, 8, "8-bit codes behind 5-bit gaps"),
    "clustered": (clustered, 8, "3-bit indices of 7 values"),
}


@pytest.fixture(scope="module")
def digits_models():
    x, y = load_digits("train")
    rng = np.random.default_rng(0)
    model, _ = fit(digits_cnn(rng), x, y, optimizer=adam(3e-3), epochs=2, batch_size=64, rng=rng)
    made = {}
    for kind, (change, bits, _) in KINDS.items():
        changed = model
        if change:
            changed = with_weights(model, {i: change(w) for i, w in weights(model).items()})
        made[kind] = to_integer(changed, x[:200], num_bits=bits)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_of_weights_is_the_one_meant(digits_models, kind, tmp_path):
    made = export_c(digits_models[kind], tmp_path / "net.c")
    assert made.layers[1].form == KINDS[kind][2]
    assert made.layers[1].kind == "Conv2D"
    assert made.layers[1].output_shape == (4, 4, 32)
    floats = 4 * 9930
    assert made.flash_bytes < floats / (3 if kind == "int8" else 5)
    assert made.ram_bytes == 751
    assert "Conv2D" in str(made)


@needs_cc
def test_every_layer_on_digits(digits_models, tmp_path, sanitizers):
    x, _ = load_digits("test")
    cases = [
        (part, model.quantize_input(x[::5]))
        for model in digits_models.values()
        for part in prefixes(model)
        if not isinstance(part.layers[-1], IntegerFlatten)
    ]
    for case, made in zip(cases, run_c(cases, tmp_path, (*STRICT, *sanitizers)), strict=True):
        law_codes(*case, *made)


@needs_cc
@pytest.mark.parametrize("kind", ["int8", "pruned", "clustered"])
def test_the_header_counts_the_bytes_of_the_object(digits_models, kind, tmp_path):
    made = export_c(digits_models[kind], tmp_path / "net.c")
    compiled(tmp_path, *STRICT, "-c", "net.c", "-o", "net.o")
    law_bytes(made, tmp_path / "net.o")
    header = made.header.read_text()
    assert f"#define predict_FLASH_BYTES {made.flash_bytes}\n" in header
    assert f"#define predict_RAM_BYTES {made.ram_bytes}\n" in header
    assert f"Flash: exactly {made.flash_bytes} bytes" in header
    wrong = made._replace(ram_bytes=made.ram_bytes - 1)
    with pytest.raises(AssertionError):
        law_bytes(wrong, tmp_path / "net.o")


def law_bytes(made, path):
    """The constants are those that nm lists, and .data and .bss what size lists."""
    if not (sys.platform == "linux" and shutil.which("nm") and shutil.which("size")):
        pytest.skip("there are no nm and size for ELF here")
    run = {"capture_output": True, "text": True, "check": True, "timeout": 60}
    symbols = subprocess.run(["nm", "-S", path], **run).stdout
    found = re.findall(r"^\w+ (\w+) [rR] ", symbols, re.MULTILINE)
    assert sum(int(size, 16) for size in found) == made.flash_bytes
    sections = subprocess.run(["size", "-A", path], **run).stdout
    found = re.findall(r"^\.(?:data|bss)\S*\s+(\d+)", sections, re.MULTILINE)
    assert sum(map(int, found)) == made.ram_bytes
    assert not re.search(r" U (?!_GLOBAL_OFFSET_TABLE_|__stack_chk)", symbols)  # calls nobody


def test_the_files_need_stdint_alone(digits_models, tmp_path):
    made = export_c(digits_models["int8"], tmp_path / "net.c")
    text = made.source.read_text()
    assert re.findall("#include.*", text) == ['#include "net.h"']
    assert not re.search("float|double", text)
    assert re.findall("#include.*", made.header.read_text()) == ["#include <stdint.h>"]


MNIST = os.environ.get("MINICOMPRESS_MNIST")


@needs_cc
@pytest.mark.skipif(not MNIST, reason="MINICOMPRESS_MNIST names no folder with MNIST's files")
def test_mnist(tmp_path, sanitizers):
    """LeNet-5, freshly initialized: every test image, and under the sanitizers the first 50."""
    x, _ = load_mnist(MNIST, "test")
    for bits in (8, 4):
        model = to_integer(lenet5(np.random.default_rng(0)), x[:200], num_bits=bits)
        codes = model.quantize_input(x)
        parts = [(part, codes[:50]) for part in prefixes(model)]
        folder = tmp_path / f"{bits}"
        folder.mkdir()
        for case, made in zip(parts, run_c(parts, folder, (*STRICT, *sanitizers)), strict=True):
            law_codes(*case, *made)
        (made,) = run_c([(model, codes)], folder, STRICT)
        law_codes(model, codes, *made)


# planted wrong exports ----------------------------------------------------------------------------


TIES = np.full((1, 4), 127, np.int8)

RAMP = np.arange(-128, 128, dtype=np.int8).reshape(-1, 1)

ONE = IntegerDense(
    np.ones((1, 1), np.int8), np.zeros(1, np.int32), np.array([2**30], np.int32),
    np.array([31], np.int32), 0, 0, -128, 127, 8, BORDERED.scales._replace(weight=np.ones(1)),
)  # fmt: skip

PADDED = """for (int32_t c = 0; c < 2; c++) {
    sum += (0 - 17) * NAME_0_weight[((o * 3 + p) * 3 + q) * 2 + c];
}
continue;"""

IMAGE = small(BORDERED, PICTURE.shape[1:]), PICTURE

NARROW = small(dataclasses.replace(BORDERED, weight=BORDERED.weight // 16), (5, 5, 2)), PICTURE

MEANS = dict(zip(("multiplier", "shift"), quantize_multiplier(1 / np.arange(1, 5)), strict=True))

POOL = IntegerAvgPool2D(
    (2, 2), (2, 2), ((1, 0), (1, 0)), **MEANS, input_zero_point=9, output_zero_point=3
)

POOL = small(POOL, (5, 5, 2)), PICTURE

MAXIMUM = small(IntegerMaxPool2D((1, 2), (1, 2)), (5, 5, 2)), PICTURE

HALVES = small(ONE, (1,)), RAMP

PLANTED = {
    "sums are not rounded": (HALVES, " + ((int64_t)1 << (shift - 1))", ""),
    "sums are rounded toward zero": (HALVES, "(n < 0 ? ~(~n >> shift) : n >> shift)",
                                     "n / ((int64_t)1 << shift)"),
    "padding is the code 0": (IMAGE, "continue;", PADDED),
    "the zero point is forgotten": (IMAGE, " - 17)", ")"),
    "the output's zero point is forgotten": (IMAGE, ">> shift) + zero", ">> shift)"),
    "nothing is clamped": (IMAGE, "code < low ? low : code > high ? high : code", "code"),
    "of ties the last is the class": ((small(IntegerReLU(0), (4,)), TIES),
                                      "logits[i] > logits[best]", "logits[i] >= logits[best]"),
    "4-bit codes are not centred": (NARROW, " - 8)", ")"),
    "low bits come first": (NARROW, "(4 - (index) * 4 % 8)", "((index) * 4 % 8)"),
    "means are rounded down": (POOL, " + ((int64_t)1 << (shift - 1))", ""),
    "a mean's zero point is forgotten": (POOL, " - 9;", ";"),
    "all means are of whole windows": (POOL, "[last]", "[3]"),
    "the maximum starts at 0": (MAXIMUM, "best = -128", "best = 0"),
}  # fmt: skip


def edited(old, new):
    def edit(text, name):
        assert old in text
        return text.replace(old, new.replace("NAME", name))

    return edit


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """What the wrong exports compute, and the right ones of the same networks."""
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
@pytest.mark.parametrize(
    ("old", "new"),
    [("arena[751]", "arena[750]"), ("arena + 175", "arena + 174")],
    ids=["the array is a byte too small", "an output starts a byte too late"],
)
def test_a_planted_plan_is_caught(digits_models, tmp_path, sanitizers, old, new):
    """Too small an array is the sanitizer's to find; what is overwritten too early, the law's."""
    model = digits_models["int8"]
    codes = model.quantize_input(load_digits("test")[0])
    case = (with_layers(model, model.layers[:2]), codes)

    def law(flags, edits):
        law_codes(*case, *run_c([case], tmp_path, flags, edits)[0])

    with pytest.raises(AssertionError, match="global-buffer-overflow" if "[" in old else None):
        law(("-std=c99", "-w", *sanitizers), [edited(old, new)])


# from a file --------------------------------------------------------------------------------------


def test_from_a_file(tmp_path):
    x, _ = load_digits("train")
    model = digits_cnn(np.random.default_rng(0))
    sparse = {i: prune_magnitude(w, amount=0.9).rep for i, w in weights(model).items()}
    both = {
        i: Sparse(rep.shape, rep.indices, cluster(rep.values, n_clusters=4).rep)
        for i, rep in sparse.items()
    }
    codebooks = {i: cluster(w, n_clusters=8).rep for i, w in weights(model).items()}
    assert all(isinstance(rep, Clustered) for rep in codebooks.values())
    forms = []
    for changed in ({}, sparse, codebooks, both):
        save(with_weights(model, changed), tmp_path / "model.mcz")
        made = export_c_file(tmp_path / "model.mcz", x[:50], tmp_path / "net.c", name="net")
        assert made.source == tmp_path / "net.c"
        assert "int net_class(const int8_t *input);" in made.header.read_text()
        forms.append(made.layers[1].form)
    assert forms == [
        "8-bit codes",
        "8-bit codes behind 5-bit gaps",
        "3-bit indices of 8 values",
        "3-bit indices of 5 values behind 5-bit gaps",
    ]
    direct = export_c(to_integer(model, x[:50], num_bits=4), tmp_path / "direct.c", name="net")
    save(model, tmp_path / "model.mcz")
    made = export_c_file(tmp_path / "model.mcz", x[:50], tmp_path / "net.c", name="net", num_bits=4)
    text = direct.source.read_text().replace("direct.h", "net.h")
    assert made.source.read_text() == text


def test_batch_normalization_is_folded(tmp_path):
    ones = np.ones(2)
    model = Sequential((Dense(np.eye(2)), BatchNorm(ones, ones, ones, ones)))
    save(model, tmp_path / "model.mcz")
    assert len(export_c_file(tmp_path / "model.mcz", np.eye(2), tmp_path / "net.c").layers) == 1
    with pytest.raises(FileFormatError, match="cannot be read"):
        export_c_file(tmp_path / "none.mcz", np.eye(2), tmp_path / "net.c")


# what is refused, and what is left behind ---------------------------------------------------------


class Odd(IntegerLayer):
    def output_shape(self, input_shape):
        return input_shape


SMALL = to_integer(Sequential((Dense(np.eye(2)),)), np.eye(2))


@pytest.mark.parametrize(
    ("model", "path", "name", "message"),
    [
        (Sequential(()), "a.c", "f", "model must be an IntegerModel, as to_integer makes one, not"),
        (small(Odd(), (2,)), "a.c", "f", r"layer 0 \(Odd\): it has no C form; those that have"),
        (small(IntegerReLU(0), (0,)), "a.c", "f", "0 numbers"),
        (small(IntegerReLU(0), (2**28 + 1,)), "a.c", "f", "268,435,457 numbers"),
        (SMALL, "a.cpp", "f", r'path must be the name of a file that ends in "\.c", not'),
        (SMALL, 3, "f", "path must be the name of a file"),
        (SMALL, ".c", "f", "path must be"),
        (SMALL, 'a".c', "f", "path must be a name that #include takes"),
    ],
)
def test_bad_arguments_are_refused(model, path, name, message, tmp_path):
    target = str(tmp_path / path) if isinstance(path, str) else path
    with pytest.raises(CompressionError, match=message):
        export_c(model, target, name=name)
    assert not list(tmp_path.iterdir())


@needs_cc
def test_a_network_without_layers_is_its_input(tmp_path):
    made = export_c(chained((), (2, 1, 1)), tmp_path / "net.c")
    assert (made.flash_bytes, made.ram_bytes, made.layers) == (0, 0, ())
    case = chained((IntegerFlatten(),), (2, 1, 1)), PICTURE[:, :2, :1, :1]
    law_codes(*case, *run_c([case], tmp_path, STRICT)[0])


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    export_c(SMALL, tmp_path / "net.c")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {"net.c", "net.h"}
    with pytest.raises(OSError, match=r"No such file"):
        export_c(SMALL, tmp_path / "none" / "net.c")
    for name in ("other.c", "other.h"):
        (tmp_path / name).mkdir()
        with pytest.raises(IsADirectoryError, match=name):
            export_c(SMALL, tmp_path / "other.c")
        (tmp_path / name).rmdir()
    assert {file.name: file.read_bytes() for file in Path(tmp_path).iterdir()} == before
