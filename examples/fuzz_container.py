"""Alter files by the thousand, and see that none of them is believed.

A file that was altered is refused by its checksum. What if somebody makes the checksum right again?
Then what the bytes say is either no model, and refused, or another model, and that is loaded. It
must never raise anything else, take long, or take memory that the file does not warrant.

    python examples/fuzz_container.py [--files 10000] [--seed 0]
"""

import argparse
import sys
import time
import warnings
import zlib
from collections import Counter
from contextlib import suppress

import numpy as np

import minicompress as mc
from minicompress.nn.layers import ConvTranspose2D
from minicompress.nn.pointwise import Clip, Dropout, HardSigmoid, PReLU
from minicompress.nn.stateless import (
    AvgPool2D,
    ChannelShuffle,
    Flatten,
    LocalResponseNorm,
    MaxPool2D,
    Upsample2D,
)
from minicompress.storage.container import dumps, loads

LIMIT = 1 << 20  # bytes that a file may decode to
SLOW = 5.0  # seconds: a file decodes within one, but the machine may be busy with other things


def originals():
    """Small files that have every layer with fields, every representation and every coding."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 2, 4)).astype(np.float32)
    matrix = np.rint(2 * rng.standard_normal((16, 6))).astype(np.float32)
    bias = np.ones(6, np.float32)
    sparse = mc.prune_magnitude(matrix, amount=0.7).rep
    int4 = mc.quantize(matrix, num_bits=4, axis=-1).rep
    shared = mc.Clustered(rng.integers(0, 3, (16, 6)), np.array([0, 1, 2], np.float32))
    mixed = mc.chain(lambda w: mc.truncated_svd(w, rank=2), mc.quantize)(matrix).rep
    pruned = mc.Quantized(
        mc.Sparse((16, 6), sparse.indices, rng.integers(1, 8, sparse.indices.size, np.int8)),
        np.array(0.5, np.float32), np.array(0), 4, True, None, None, np.dtype(np.float32),
    )  # fmt: skip
    ones = np.ones(4, np.float32)
    image = (
        mc.Conv2D(mc.spatial_svd(kernel, rank=2).rep, ones, stride=2, padding=1),
        mc.BatchNorm(ones, ones, ones, ones),
        MaxPool2D(2, 1, "same"),
        AvgPool2D(2),
        Dropout(0.25),
        Flatten(),
    )
    for weights in ((matrix, sparse), (int4, mixed), (shared, pruned)):
        for coding in ("smallest", "huffman", "packed"):
            dense = [mc.Dense(weight, bias) for weight in weights]
            yield dumps(mc.Sequential((*image, *dense)), coding=coding)
    up = ConvTranspose2D(kernel, ones, stride=2, output_padding=1)
    gate = (mc.GlobalAvgPool2D(keep_axes=True), HardSigmoid(1 / 6))
    branched = mc.Sequential(
        (
            *(up, PReLU(ones), Clip(-1.5, 6), MaxPool2D(2, ceil_mode=True), ChannelShuffle(2)),
            mc.Residual(LocalResponseNorm(3, 1e-3), mc.Conv2D(np.ones((1, 1, 4, 4), np.float32))),
            mc.Parallel(((), gate), mc.Multiply()),
            mc.Parallel(((), mc.ReLU(), ()), mc.Concat()),
            Upsample2D(2),
        )
    )
    for outputs in ((len(branched.layers),), (3, len(branched.layers), 0)):
        yield dumps(mc.Network(branched.layers, branched.inputs, outputs))


def altered(rng, files):
    """One of the files with one thing done to it, as happens by accident or with intent."""
    blob = bytearray(files[rng.integers(len(files))])
    place, length = int(rng.integers(len(blob))), int(rng.integers(1, 9))
    what = rng.choice(["bit", "bytes", "cut", "more", "gone", "twice", "splice", "noise"])
    if what == "bit":
        blob[place] ^= 1 << rng.integers(8)
    elif what == "bytes":
        blob[place : place + length] = rng.bytes(min(length, len(blob) - place))
    elif what == "cut":
        del blob[place:]
    elif what == "more":
        blob += rng.bytes(length)
    elif what == "gone":
        del blob[place : place + length]
    elif what == "twice":
        blob[place:place] = blob[place : place + length]
    elif what == "splice":
        other = files[rng.integers(len(files))]
        blob[place:] = other[min(place, len(other) - 1) :]
    else:
        blob[4:] = rng.bytes(len(blob) - 4)
    return str(what), bytes(blob)


def with_checksum(blob):
    """The bytes with their last four made the checksum of those before."""
    return blob[:-4] + zlib.crc32(blob[:-4]).to_bytes(4, "little")


def fuzz(files, seed):
    """Alter and load; returns the counts of what happened, and the longest time of one load."""
    rng, good = np.random.default_rng(seed), list(originals())
    seen, slowest = Counter(), 0.0
    for _ in range(files):
        what, blob = altered(rng, good)
        for kind, candidate in (("as it is", blob), ("checksum right", with_checksum(blob))):
            if candidate in good:
                continue
            start, model = time.perf_counter(), None
            with suppress(mc.FileFormatError), warnings.catch_warnings():
                warnings.simplefilter("error")  # a warning is something else, too
                model = loads(candidate, max_bytes=LIMIT)
            slowest = max(slowest, time.perf_counter() - start)
            # What was loaded is a model like any other: it has bytes that stand for it.
            if model is not None and dumps(loads(dumps(model))) != dumps(model):
                raise AssertionError(f"{candidate.hex()} does not say what it is")
            seen[what, kind, "refused" if model is None else "another model"] += 1
    return seen, slowest


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Alter .mcz files and try to load them.")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    seen, slowest = fuzz(options.files, options.seed)
    print("altered   checksum        refused  another model")
    for what, kind in sorted({key[:2] for key in seen}):
        counts = [seen[what, kind, how] for how in ("refused", "another model")]
        print(f"{what:8}  {kind:14}  {counts[0]:7,}  {counts[1]:13,}")
    believed = sum(n for key, n in seen.items() if key[1:] == ("as it is", "another model"))
    print(f"\n{sum(seen.values()):,} loads, nothing raised but FileFormatError")
    print(f"{believed} altered files were believed; the slowest took {slowest:.2f} s")
    return int(believed > 0 or slowest > SLOW)


if __name__ == "__main__":
    sys.exit(main())
