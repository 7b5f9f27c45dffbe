"""The .mcz format: its golden files, and a reader written by FORMAT.md alone."""

import dataclasses
import hashlib

import numpy as np
import pytest
from container_models import (
    GOLDEN,
    GOLDEN_MODELS,
    numbers,
)

import minicompress as mc
from minicompress.nn.layers import Dense
from minicompress.nn.network import is_chain
from minicompress.nn.pointwise import Clip, ReLU
from minicompress.nn.stateless import Flatten
from minicompress.storage.container import dumps, load
from minicompress.testing.checks import same

# the models of the golden files: every layer, representation and coding, by formula ---------------


# Of the decoded models. These lines are never to be changed: version 1 decodes for ever.
# "every_representation" holds factors out of an SVD, whose last bits depend on the machine: it can
# be read everywhere, and made again nowhere else.
DIGESTS = {
    "every_layer": "f19f403c31ad579ab5b705b704d424eed6c2c71ff0f892dbf7a2f0a09ac4d58b",
    "every_newer_layer": "ba4dee6b5257634e1fdee2bcb630c99df24f53844a392cd90d7e6b678473a221",
    "residual_network": "9e890d94b60ff43af46fc269a119587e05eeccccac2f5132615d933d3a889bd8",
    "half_network": "de1a231c65eae153b4688d0966051ae7c8b3561b093fcce171978674bf6da7b7",
    "every_representation": "f1e2e385420ead337176adec3924ebb2e8b54e0699275c8fe1b34603986551b3",
    "pruned_network": "7b9652f5d82af3a0f6f2fbed2f924107b67d1cf8ba65f06d9168a45f69f7cb89",
    "pruned_network_huffman": "7b9652f5d82af3a0f6f2fbed2f924107b67d1cf8ba65f06d9168a45f69f7cb89",
    "pruned_network_packed": "7b9652f5d82af3a0f6f2fbed2f924107b67d1cf8ba65f06d9168a45f69f7cb89",
    "representations": "ae175969d67d0c72f1db54bae9f4669e6d5ed448edd2dd4439bc022d1e7fd2d1",
}


# Options that came after the first files; where they are as they were before, they do not count.
LATER = {"ceil_mode": False, "keep_axes": False}


def digest(model):
    """sha256 of all that a model holds: types, fields, and arrays with dtype, shape and bytes.

    A chain counts as the `Sequential` that it was before there were networks of other forms.
    """
    total = hashlib.sha256()

    def add(value):
        if isinstance(value, mc.Network) and is_chain(value):
            total.update(b"Sequentiallayers")
            return add(value.layers)
        if isinstance(value, np.ndarray):
            little = value.astype(value.dtype.newbyteorder("<"))
            total.update(f"{value.dtype.name}{value.shape}".encode() + little.tobytes())
        elif dataclasses.is_dataclass(value):
            total.update(type(value).__name__.encode())
            for field in dataclasses.fields(value):
                if getattr(value, field.name) is not LATER.get(field.name, ...):
                    total.update(field.name.encode())
                    add(getattr(value, field.name))
        elif isinstance(value, tuple):
            total.update(f"tuple{len(value)}".encode())
            for item in value:
                add(item)
        else:
            total.update(str(value).encode())
        return None

    add(model)
    return total.hexdigest()


@pytest.mark.parametrize("name", DIGESTS)
def test_golden_files_decode_for_ever(name):
    assert digest(load(GOLDEN / f"{name}.mcz")) == DIGESTS[name]


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_golden_files_hold_the_models_they_were_made_of(name):
    assert same(load(GOLDEN / f"{name}.mcz"), GOLDEN_MODELS[name][0]())


def test_every_golden_file_is_decoded():
    assert {path.stem for path in GOLDEN.glob("*.mcz")} == set(DIGESTS) | {"named_arrays"}


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_the_same_model_is_the_same_file_on_every_machine(name):
    """A writer that becomes better may write less: then this test changes, the files do not."""
    make, coding = GOLDEN_MODELS[name]
    assert dumps(make(), coding=coding) == (GOLDEN / f"{name}.mcz").read_bytes()


# an independent reader, by FORMAT.md alone --------------------------------------------------------


class Plain:
    """The range decoder as the format has it."""

    def __init__(self, blob):
        self.blob, self.place, self.range, self.contexts = blob + bytes(8), 4, 2**32, {}
        self.code = int.from_bytes(self.blob[:4], "big")

    def widen(self):
        while self.range < 2**24:
            self.code = 256 * self.code + self.blob[self.place]
            self.range, self.place = self.range * 256, self.place + 1

    def decision(self, *name):
        z, o = self.contexts.get(name, (1, 1))
        split = self.range * z // (z + o)
        bit = int(self.code >= split)
        self.code, self.range = (
            (self.code - split, self.range - split) if bit else (self.code, split)
        )
        self.contexts[name] = (z, o + 2) if bit else (z + 2, o)
        self.widen()
        return bit

    def number(self, kind):
        n = 0
        while self.decision(kind, n):
            n += 1
        value = 1
        for i in range(n):
            if i < 8:
                value = 2 * value + self.decision(kind, n, value)
        if n > 8:
            self.range //= 2 ** (n - 8)
            value = value * 2 ** (n - 8) + self.code // self.range
            self.code %= self.range
            self.widen()
        return value - 1


def test_float32_scales_of_float16_can_be_read_by_the_specification():
    rep = mc.Quantized(
        np.array([[3, -2]]), np.float32(1e-6), np.array(0), 4, True, None, None, np.dtype("f2")
    )
    blob = dumps(mc.Sequential((Dense(rep),)))
    assert blob[4] < 128  # the length of bulk
    bulk, coder = blob[5 : 5 + blob[4]], Plain(blob[5 + blob[4] : -4])
    assert [coder.number(kind) for kind in ("layers", "layer", "size")] == [1, 0, 1]
    assert [coder.number(kind) for kind in ("kind", "dtype", "size")] == [1, 0, 2]
    assert coder.number("bits") == 16 + 4
    assert coder.decision("signed") == 1
    assert coder.number("axis") == 0
    assert bulk[-4:] == np.array(1e-6, ">f4").tobytes()


def test_a_file_can_be_read_by_its_specification():
    weight, bias = numbers((784, 3)), numbers((3,))
    blob = dumps(mc.Sequential((Flatten(), Dense(weight, bias), ReLU())))
    assert blob[:4] == b"mcz\x01"
    length, place, shift = 0, 4, 0
    while True:
        length |= (blob[place] & 127) << shift
        place, shift = place + 1, shift + 7
        if blob[place - 1] < 128:
            break
    bulk, coder = blob[place : place + length], Plain(blob[place + length : -4])
    assert coder.number("layers") == 3
    assert coder.number("layer") == 4  # Flatten
    assert coder.number("layer") == 0  # Dense
    assert coder.number("size") == 784
    assert (coder.number("kind"), coder.number("dtype")) == (0, 1)
    assert coder.number("size") == 3
    kept = 4 - coder.number("bytes")
    entries = [bulk[i : i + kept].ljust(4, b"\0") for i in range(0, 784 * 3 * kept, kept)]
    assert np.frombuffer(b"".join(entries), ">f4").tolist() == weight.ravel().tolist()
    assert coder.decision("bias") == 1
    assert coder.number("kind") == 0
    assert 4 - coder.number("bytes") == kept
    assert coder.number("layer") == 1  # ReLU


def test_a_program_can_be_read_by_its_specification():
    weight = numbers((1, 2))
    layers = (Dense(weight), Clip(0, 6), mc.Add(), mc.Multiply(), mc.Concat())
    network = mc.Network(layers, ((0,), (1,), (0, 2), (3, 2), (4, 1, 1)), (5, 3))
    blob = dumps(network)
    assert blob[4] < 128  # the length of bulk
    bulk, coder = blob[5 : 5 + blob[4]], Plain(blob[5 + blob[4] : -4])
    assert (coder.number("layers"), coder.number("program")) == (0, 5)
    assert (coder.number("layer"), coder.number("back")) == (0, 0)  # Dense reads value 0
    assert [coder.number(kind) for kind in ("size", "kind", "dtype", "size")] == [1, 0, 1, 2]
    kept = 4 - coder.number("bytes")
    assert len(bulk) == 2 * kept
    assert coder.decision("bias") == 0
    assert (coder.number("layer"), coder.number("back")) == (19, 0)  # Clip
    assert [coder.decision("usual") for _ in range(2)] == [1, 1]
    assert (coder.number("layer"), coder.number("reads")) == (16, 1)  # Add
    assert [coder.number("back") for _ in range(2)] == [2, 0]
    assert coder.number("layer") == 17  # Multiply
    assert [coder.number("back") for _ in range(2)] == [0, 1]
    assert (coder.number("layer"), coder.number("reads")) == (18, 2)  # Concat
    assert [coder.number("back") for _ in range(3)] == [0, 3, 3]
    assert coder.number("outputs") == 1
    assert [coder.number("output") for _ in range(2)] == [0, 2]
