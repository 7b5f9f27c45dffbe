"""All record runs in one table, from their files: mean and worst of the seeds, once for the test.

    python examples/records/summary.py --folder MNIST --out runs [--keep]

With --keep the file of the seed that is the median by validation error is copied beside this.
"""

import argparse
import shutil
import statistics
from pathlib import Path

import numpy as np
from train import RUNS

import minicompress as mc
from minicompress.experiments.file_evaluation import evaluate_file
from minicompress.tables import aligned

HERE = Path(__file__).parent
DENSE = (mc.lenet_300_100, mc.lenet5, mc.seed_cnn)
HEAD = (
    "run",
    "seeds",
    "bytes, mean",
    "worst",
    "ratio",
    "validation error, mean",
    "worst",
    "test error, mean",
    "worst",
    "median: seed",
    "bytes",
    "test error",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="where MNIST's four files lie")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where train.py put them")
    parser.add_argument("--keep", action="store_true", help="copy the files of the median seeds")
    options = parser.parse_args()
    validation, test = (mc.load_mnist(options.folder, s) for s in ("validation", "test"))
    lines = [HEAD]
    for name in RUNS:
        files = sorted(options.out.glob(f"{name}-[0-9]*.mcz"))
        if files:
            lines.append(line(name, files, validation, test, options.keep))
    print(aligned(lines))


def line(name, files, validation, test, keep):
    """The figures of one run's seeds."""
    chosen = [error(file, validation) for file in files]
    middle = chosen.index(statistics.median_low(chosen))
    scored = [error(file, test) for file in files]
    sizes = [file.stat().st_size for file in files]
    network = next(network for network in DENSE if name.startswith(network.__name__))
    dense = mc.summary(network(np.random.default_rng(0)), validation[0].shape[1:]).dense_bytes
    if keep:
        shutil.copyfile(files[middle], HERE / f"{name}.mcz")
    return (
        name,
        f"{len(files)}",
        f"{statistics.mean(sizes):,.0f}",
        f"{max(sizes):,}",
        f"{dense / statistics.mean(sizes):.0f}x",
        f"{statistics.mean(chosen):.2%}",
        f"{max(chosen):.2%}",
        f"{statistics.mean(scored):.2%}",
        f"{max(scored):.2%}",
        files[middle].stem.rpartition("-")[2],
        f"{sizes[middle]:,}",
        f"{scored[middle]:.2%}",
    )


def error(file, images):
    found = evaluate_file(file, *images)
    return found.wrong / found.images


if __name__ == "__main__":
    main()
