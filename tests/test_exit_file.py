"""Early exit: the file gives back what was written, and damage is refused."""

import math
import os
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from exit_models import BRANCHED, CNN_EXITS, EXITS, FIRST, HEADS, LAST, PLAIN, dense

from minicompress.compressors.quantization import quantize
from minicompress.early_exit.exits import CRITERIA, EarlyExit
from minicompress.early_exit.file import load_exits, save_exits
from minicompress.errors import CompressionError, FileFormatError
from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense
from minicompress.nn.stateless import AvgPool2D, Flatten
from minicompress.search.plan import compress
from minicompress.testing.checks import same


def saved(exits, folder, **options):
    path = os.fspath(folder / "exits.mcx")
    size = save_exits(exits, path, **options)
    with open(path, "rb") as file:
        blob = file.read()
    assert len(blob) == size
    return blob


def read(blob, folder, **options):
    path = folder / "read.mcx"
    path.write_bytes(blob)
    return load_exits(path, **options)


def law_round_trip(write, load, exits, folder):
    path = folder / "exits.mcx"
    write(exits, path)
    assert same(load(path), exits)
    assert os.listdir(folder) == ["exits.mcx"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_file_gives_everything_back(criterion, tmp_path):
    for thresholds in ((0.1, math.inf), (0.0, 1 / 3), (math.inf, 1e-300)):
        exits = replace(CNN_EXITS, thresholds=thresholds, criterion=criterion)
        law_round_trip(partial(save_exits, coding="packed"), load_exits, exits, tmp_path)
    heads = (compress(HEADS[0], {0: partial(quantize, num_bits=4)}).model, Sequential(()))
    odd = EarlyExit((Sequential(()), FIRST, Sequential((AvgPool2D(2),))), heads, (0.5, 2.0))
    law_round_trip(save_exits, load_exits, odd, tmp_path)
    law_round_trip(save_exits, load_exits, EarlyExit((LAST,), (), ()), tmp_path)


GOLDEN = {
    "exits": replace(EXITS, thresholds=(0.9, math.inf), criterion="margin"),
    "branched_exits": BRANCHED,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_decode_for_ever(name, tmp_path):
    """These files are never to be changed; a better writer may write others."""
    path = Path(__file__).parent / "golden" / f"{name}.mcx"
    assert same(load_exits(path), GOLDEN[name])
    assert saved(GOLDEN[name], tmp_path) == path.read_bytes()


def with_checksum(body):
    return body + zlib.crc32(body).to_bytes(4, "little")


def law_refused(load, blob):
    try:
        load(blob)
    except FileFormatError:
        return
    raise AssertionError("it was believed")


def law_damage_is_refused(load, blob):
    for place in range(len(blob)):
        for flip in (1, 255):
            law_refused(load, blob[:place] + bytes([blob[place] ^ flip]) + blob[place + 1 :])
    for length in range(len(blob)):
        law_refused(load, blob[:length])
        if length < len(blob) - 4:
            law_refused(load, with_checksum(blob[:length]))
    for more in (b"\0", bytes(30), blob):
        law_refused(load, blob + more)
        law_refused(load, with_checksum(blob[:-4] + more))


def test_damage_is_refused(tmp_path):
    blob = saved(EarlyExit((PLAIN, LAST_OF_3), (PLAIN,), (0.5,)), tmp_path)
    law_damage_is_refused(partial(read, folder=tmp_path), blob)


LAST_OF_3 = dense([1, 2, 3], [0, 0, 1], [1, 0, 0])


def test_frames_that_cannot_be_are_refused(tmp_path):
    blob = saved(EXITS, tmp_path)[:-4]
    refused = {
        "no .mcx": [b"", b"mc", b"mcz" + blob[3:], b"MCX" + blob[3:]],
        "version 2": [blob[:3] + b"\2" + blob[4:], b"mcx\2"],
        "criterion": [blob[:4] + b"\3" + blob[5:]],
        "heads|parts|needed|sizes": [blob[:5] + b"\xff\xff\xff\xff\x7f" + blob[6:]],
        "impossible: thresholds": [
            blob[:6] + np.array(wrong, ">f8").tobytes() + blob[14:]
            for wrong in (-1.0, np.nan, -np.inf)
        ],
        "parts have": [blob[:22] + bytes([3]) + blob[23:]],
    }
    assert blob[22:27] == bytes([2, 1, 1, 1, 1])  # the layers of the parts
    for words, blobs in refused.items():
        for wrong in blobs:
            with pytest.raises(FileFormatError, match=words):
                read(with_checksum(wrong), tmp_path)


def test_what_takes_too_much_memory_is_refused(tmp_path):
    big = EarlyExit((Sequential((Dense(np.zeros((1000, 1000))),)), LAST), (LAST,), (0.5,))
    blob = saved(big, tmp_path)
    assert len(blob) < 1000
    assert same(read(blob, tmp_path, max_bytes=20_000_000), big)
    with pytest.raises(FileFormatError, match=r"memory|max_bytes"):
        read(blob, tmp_path, max_bytes=1_000_000)
    with pytest.raises(FileFormatError, match="larger than max_bytes"):
        read(bytes(10_000), tmp_path, max_bytes=100)
    with pytest.raises(FileFormatError, match=r"read\.mcx: "):
        read(blob[:-1], tmp_path)
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_exits(tmp_path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    blob = saved(EXITS, tmp_path)

    @dataclass(frozen=True, eq=False, repr=False)
    class Own(Flatten):
        pass

    with pytest.raises(CompressionError, match="Own"):
        save_exits(EarlyExit((Sequential((Own(),)),), (), ()), tmp_path / "exits.mcx")

    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        save_exits(CNN_EXITS, tmp_path / "exits.mcx", coding="packed")
    assert os.listdir(tmp_path) == ["exits.mcx"]
    assert (tmp_path / "exits.mcx").read_bytes() == blob


# People -------------------------------------------------------------------------------------------

WRONG = {
    "path must be the name": lambda: save_exits(EXITS, 3),
    "coding must be": lambda: save_exits(EXITS, "never-written", coding="zip"),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_wrong_arguments_are_named(words):
    with pytest.raises(CompressionError, match=words):
        WRONG[words]()


# Planted faults -----------------------------------------------------------------------------------


def unchecked(folder, blob):
    """A reader that does not look at the checksum."""
    return read(with_checksum(blob[:-4]), folder)


def rounded_thresholds(exits, path):
    save_exits(replace(exits, thresholds=[float(np.float32(t)) for t in exits.thresholds]), path)


def ungrouped(path):
    exits = load_exits(path)
    layers = exits.network.layers
    return replace(exits, segments=(Sequential(layers[:1]), *exits.segments[1:]))


def test_planted_files_are_caught(tmp_path):
    exits = replace(EXITS, thresholds=(0.1, 0.2))
    with pytest.raises(AssertionError):
        law_round_trip(rounded_thresholds, load_exits, exits, tmp_path)
    with pytest.raises(AssertionError):
        law_round_trip(save_exits, ungrouped, exits, tmp_path)
    with pytest.raises(AssertionError):
        law_damage_is_refused(partial(unchecked, tmp_path), saved(exits, tmp_path))
