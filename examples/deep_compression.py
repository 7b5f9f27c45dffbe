"""Deep Compression: prune, share, Huffman, down to a file; layer by layer, beside the paper.

Han, Mao and Dally (2016) prune a network in rounds, let the weights that are left share a few
values, tune those, and write gaps and indices in Huffman's code. The recipe is one of the
library's; here it is run, its file is counted, and each layer is shown.

    python examples/deep_compression.py --network lenet_300_100 --folder MNIST [--out FILE.mcz]
"""

import argparse
import os
from typing import NamedTuple

import numpy as np

import minicompress as mc
from minicompress.recipes import deep_compression, run_recipe
from minicompress.recipes.rate_recipe import BY_A_PIXEL, lesson, shifted, taught
from minicompress.search.weights import weights
from minicompress.tables import aligned


class Settings(NamedTuple):
    """By layer, what is kept and the bits of an index; epochs of training, of each round, of the
    shared values; what the paper has (kept %, weight bits, then Huffman's, the same for the index,
    final rate %)."""

    network: object
    kept: dict
    bits: dict
    epochs: tuple
    rounds: int
    paper: tuple


SETTINGS = {
    "lenet_300_100": Settings(
        mc.lenet_300_100, {1: 0.07, 3: 0.09, 5: 0.26}, {1: 5, 3: 5, 5: 5}, (20, 3, 1), 4,
        (("8", "6", "4.4", "5", "3.7", "2.32"), ("9", "6", "4.4", "5", "4.3", "3.04"),
         ("26", "6", "4.3", "5", "3.2", "12.7"), ("8", "", "", "", "", "2.49")),
    ),
    "lenet5": Settings(
        mc.lenet5, {0: 0.66, 3: 0.12, 7: 0.065, 9: 0.19}, {0: 8, 3: 8, 7: 5, 9: 5}, (8, 1, 1), 3,
        (("66", "8", "7.2", "5", "1.5", "67.45"), ("12", "8", "7.2", "5", "3.9", "5.28"),
         ("8", "5", "4.5", "5", "4.5", "2.45"), ("19", "5", "5.2", "5", "3.7", "6.13"),
         ("8", "", "", "", "", "2.55")),
    ),
}  # fmt: skip
HEAD = ("layer", "kept %", "bits", "Huffman", "gap bits", "Huffman", "rate %")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=SETTINGS, required=True)
    parser.add_argument("--folder", required=True, help="where MNIST's four files lie")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="deep_compression.mcz")
    options = parser.parse_args()
    settings = SETTINGS[options.network]
    (x, y), validation, test = (
        mc.load_mnist(options.folder, split) for split in ("train", "validation", "test")
    )
    dense, each, tuning = settings.epochs
    rng = np.random.default_rng([options.seed, 0])
    rate = mc.nn.cosine_lr(1e-3, dense * -(-len(x) // 128))
    moved = lesson(x, y, shifts=BY_A_PIXEL)
    model, _ = taught(settings.network(rng), moved, optimizer=mc.adam(rate), epochs=dense, rng=rng)
    original = mc.summary(model, x.shape[1:]).dense_bytes
    print(f"dense: {original:,} bytes, {error(model, validation)} error on validation")

    # Every image in five places: as it is, and moved by a pixel each way.
    places = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    images = np.concatenate([shifted(x, *s) for s in places]), np.tile(y, len(places))
    steps = deep_compression(
        images, settings.kept, settings.bits, rounds=settings.rounds, epochs=each,
        fine_tuning=tuning,
    )  # fmt: skip
    run = run_recipe(
        model,
        steps,
        seed=options.seed,
        coding="huffman",
        measure=lambda m: {"error": 1 - mc.accuracy(m, *validation)},
        progress=lambda row: print(
            f"{row.name:10} {row.bytes:9,} bytes {row.figures['error']:7.2%} error", flush=True
        ),
    )
    mc.save(run.model, options.out, coding="huffman")
    size = os.path.getsize(options.out)
    print("\n" + aligned([HEAD, *rows(run.model, size / original)]))
    names = [*(str(i) for i in weights(run.model)), "all"]
    print("\nthe paper's\n" + aligned([HEAD, *zip(names, *zip(*settings.paper))]))
    wrong = error(mc.load(options.out), test)
    print(f"\n{options.out}: {size:,} bytes, {original / size:.1f} times less, {wrong} test error")


def rows(model, total):
    """What each layer's weights came to."""
    for i, rep in weights(model).items():
        codes, gaps = rep.values.codes, np.diff(rep.indices, prepend=-1) - 1
        share = codes.size / np.prod(rep.shape)
        huffman = [8 * len(mc.storage.huffman_encode(a)) / codes.size for a in (codes, gaps)]
        width = np.ceil(np.log2(mc.decode(rep.values.codebook).size))
        rate = share * sum(huffman) / 32
        plain = np.ceil(np.log2(gaps.max() + 1))
        cells = (100 * share, width, huffman[0], plain, huffman[1], 100 * rate)
        yield str(i), *(f"{c:.{d}f}" for c, d in zip(cells, (1, 0, 1, 0, 1, 2)))
    yield "all", *[""] * 5, f"{100 * total:.2f}"


def error(model, images):
    return f"{1 - mc.accuracy(model, *images):.2%}"


if __name__ == "__main__":
    main()
