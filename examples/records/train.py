"""A record run: a network, a seed, one command. It goes on where it was broken off.

    python examples/records/train.py lenet_300_100 --folder MNIST --seed 0 --out runs

The network learns from a LeNet-5 of the same seed, and pays a price for bits that rises (see
`minicompress.recipes.rate_recipe`). The settings below were chosen on the 10,000 validation
images; the test images are scored once, by summary.py beside this.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import minicompress as mc
from minicompress.nn.layer import Layer
from minicompress.recipes.latent import is_latent, quantized_model
from minicompress.recipes.rate_recipe import (
    BATCH_SIZE,
    BY_A_PIXEL,
    STILL,
    Prices,
    lesson,
    smallest_file,
    taught,
)
from minicompress.recipes.recipe import Step, StepRow, run_recipe

TEACHER_EPOCHS, DROPOUT = 12, 0.3


class Run(NamedTuple):
    """A network as it starts, or the run that this one goes on from, and the settings."""

    start: Callable[[np.random.Generator], mc.Sequential] | str
    first_price: float
    last_price: float
    dense: int
    anneal: int
    cool: int
    restarts: int = 1
    still: bool = False


def narrow(model: mc.Sequential, widths: dict[int, int]) -> mc.Sequential:
    """The network with the first so many outputs of some layers: what it is going to need."""
    for layer, width in widths.items():
        model = mc.rewrite.remove_channels(model, layer, np.arange(width))
    return model


def lenet5(rng: np.random.Generator) -> mc.Sequential:
    return narrow(mc.lenet5(rng), {0: 10, 3: 28, 7: 160})


def seed_cnn(rng: np.random.Generator) -> mc.Sequential:
    return narrow(mc.seed_cnn(rng), {0: 12, 2: 16})


# "still": without moved images, to tell what they are worth.
RUNS = {
    "lenet_300_100_accurate": Run(mc.lenet_300_100, 2e-7, 2.2e-5, 15, 40, 20),
    "lenet_300_100": Run("lenet_300_100_accurate", 2.2e-5, 4.2e-5, 0, 12, 20),
    "lenet5_accurate": Run(lenet5, 3e-7, 9e-6, 12, 24, 10),
    "lenet5": Run("lenet5_accurate", 9e-6, 2.7e-5, 0, 10, 15),
    "seed_cnn": Run(seed_cnn, 3e-7, 8e-6, 8, 16, 8),
    "lenet_300_100_accurate_still": Run(mc.lenet_300_100, 2e-7, 2.2e-5, 15, 40, 20, still=True),
    "lenet5_accurate_still": Run(lenet5, 3e-7, 9e-6, 12, 24, 10, still=True),
}


def trained_teacher(
    seed: int, folder: Path, x: np.ndarray, y: np.ndarray, shifts: tuple[tuple[int, int], ...]
) -> mc.Sequential:
    """LeNet-5 with dropout in front of its dense layers."""

    def train(model: mc.Sequential, rng: np.random.Generator) -> mc.Sequential:
        rate = mc.nn.cosine_lr(1e-3, TEACHER_EPOCHS * -(-len(x) // BATCH_SIZE))
        moved = lesson(x, y, shifts=shifts)
        seen, _ = taught(model, moved, optimizer=mc.adam(rate), epochs=TEACHER_EPOCHS, rng=rng)
        return mc.Sequential(tuple(a for a in seen.layers if not isinstance(a, mc.Dropout)))

    layers: list[Layer] = []
    for layer in mc.lenet5(np.random.default_rng([seed, 0])).layers:
        layers += [mc.Dropout(DROPOUT), layer] if isinstance(layer, mc.Dense) else [layer]
    start = mc.Sequential(tuple(layers))
    return run_recipe(
        start, (Step("teacher", train),), seed=seed, folder=folder, coding="packed"
    ).model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("--folder", required=True, help="where MNIST's four files lie")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="for models and logs")
    options = parser.parse_args()
    run, start = RUNS[options.name], time.monotonic()

    base = options.out / f"{run.start}-{options.seed}" if isinstance(run.start, str) else None
    if base and not Path(f"{base}.mcz").exists():
        parser.error(f"{options.name} goes on from {run.start}: run that to its end first")
    x, y = mc.load_mnist(options.folder, "train")
    validation = mc.load_mnist(options.folder, "validation")
    shifts = STILL if run.still else BY_A_PIXEL
    teaching = options.out / f"teacher{'-still' if run.still else ''}-{options.seed}"
    teacher = trained_teacher(options.seed, teaching, x, y, shifts)
    print(f"teacher: {1 - mc.accuracy(teacher, *validation):.2%} error on validation", flush=True)

    def measure(model: mc.Sequential) -> dict[str, float]:
        stored = quantized_model(model) if is_latent(model) else model
        return {
            "stored_bytes": len(mc.storage.dumps(stored)) if is_latent(model) else 0,
            "validation_error": 1 - mc.accuracy(stored, *validation),
            "minutes": (time.monotonic() - start) / 60,
        }

    def show(row: StepRow) -> None:
        figures = {**row.figures}
        size = int(figures["stored_bytes"]) or row.bytes
        print(
            f"{options.name} seed {options.seed} {row.name:10} {size:9,} bytes "
            f"{figures['validation_error']:7.2%} error on validation, "
            f"{figures['minutes']:.0f} minutes",
            flush=True,
        )

    steps = smallest_file(
        lesson(x, y, shifts=shifts, teacher=teacher),
        Prices(run.first_price, run.last_price),
        dense=run.dense,
        anneal=run.anneal,
        cool=run.cool,
        restarts=run.restarts,
    )
    folder = options.out / f"{options.name}-{options.seed}"
    if base:  # its last latent model: what came before "store"
        network = mc.load(sorted(base.glob("*.mcz"))[-2])
    else:
        network = run.start(np.random.default_rng([options.seed, 1]))
    result = run_recipe(
        network, steps, seed=options.seed, folder=folder, measure=measure, progress=show
    )
    mc.save(result.model, f"{folder}.mcz")


if __name__ == "__main__":
    main()
