"""Original against compressed: what is proven of their difference, beside what a search finds.

This is the experiment behind ``python -m minicompress certify``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from minicompress.tables import aligned, wrap
from minicompress.arrays import as_int
from minicompress.certify.attacks import attack
from minicompress.certify.certificates import ball_certificates
from minicompress.compressors.chaining import Compressor
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.experiments.comparison import Progress, Setup, certified_domain, trained
from minicompress.nn.network import Sequential, apply, finite_outputs
from minicompress.search.plan import compress
from minicompress.search.weights import weights

RADII = (1 / 64, 1 / 32, 1 / 16)
RADIUS_NAMES = tuple(f"1/{round(1 / eps)}" for eps in RADII)
SEARCHED = 1 / 32
METHODS: Mapping[str, Compressor] = {
    "int8": partial(quantize, num_bits=8, axis=-1),
    "int4": partial(quantize, num_bits=4, axis=-1),
    "prune 20%": partial(prune_magnitude, amount=0.2),
    "prune 50%": partial(prune_magnitude, amount=0.5),
}


class CertificateRow(NamedTuple):
    """What can be said of one compressed network; fractions are of test inputs.

    `domain`: in the box of the training data and certified to keep their class, from the
    original's outputs alone. `balls`: with one class of both networks on the whole ball, for
    each of `RADII`. `ratio`: the median of bound over largest difference found, at radius
    `SEARCHED`.
    """

    method: str
    accuracy: float
    agreement: float
    domain: float
    balls: tuple[float, ...]
    bound: float
    found: float
    ratio: float


def run_certification(
    data: Setup,
    *,
    seed: int = 0,
    epochs: int | None = None,
    inputs: int = 100,
    progress: Progress | None = None,
) -> tuple[float, tuple[CertificateRow, ...]]:
    """Train a network, compress it by several methods, and certify each against the original.

    Parameters
    ----------
    data : Setup
    seed, epochs, progress
        As for `comparison.compare`.
    inputs : int
        Test inputs whose balls are followed; accuracy, agreement and domain take all of them.

    Returns
    -------
    accuracy : float
        Of the original.
    rows : tuple of CertificateRow
    """
    f = trained(data, seed=seed, epochs=epochs, progress=progress)
    return certified_against(f, data, seed=seed, inputs=inputs)


def certified_against(
    f: Sequential, data: Setup, *, seed: int = 0, inputs: int = 100
) -> tuple[float, tuple[CertificateRow, ...]]:
    """`run_certification` for a network that is trained already."""
    x, y = data.test
    logits = finite_outputs(apply(f, x))
    some = x[: as_int(inputs, "inputs", 1)]
    rows = []
    for method, compressor in METHODS.items():
        g, _ = compress(f, dict.fromkeys(weights(f), compressor))
        others = finite_outputs(apply(g, x), name=method)
        balls = {
            eps: ball_certificates(
                f, g, some, eps=eps, clip=(0.0, 1.0), max_symbols=data.max_symbols
            )
            for eps in RADII
        }
        bounds = np.array([c.bound for c in balls[SEARCHED]])
        found = attack(
            f, g, some, eps=SEARCHED, clip=(0.0, 1.0), rng=np.random.default_rng([seed, 2])
        )
        rows.append(
            CertificateRow(
                method,
                float((others.argmax(1) == y).mean()),
                float((others.argmax(1) == logits.argmax(1)).mean()),
                certified_domain(f, g, data),
                tuple(sum(c.same_class for c in balls[eps]) / len(some) for eps in RADII),
                float(np.median(bounds)),
                float(np.median(found)),
                float(np.median(bounds / found)),
            )
        )
    return float((logits.argmax(1) == y).mean()), tuple(rows)


def format_certificates(accuracy: float, rows: tuple[CertificateRow, ...], inputs: int) -> str:
    """The rows in columns that line up, and what they are."""
    return f"{aligned(certificate_cells(rows))}\n\n{wrap(certificate_legend(accuracy, inputs))}"


def certificate_cells(rows: tuple[CertificateRow, ...]) -> list[tuple[str, ...]]:
    """The rows under their heads."""
    head = ("method", "accuracy", "agree", "domain", *RADIUS_NAMES, "bound", "found", "ratio")
    return [head, *(_cells(row) for row in rows)]


def certificate_legend(accuracy: float, inputs: int) -> str:
    """What the columns are."""
    return (
        f"The original classifies {accuracy:.2%} of the test images rightly. agree: % of them that "
        "the compressed network gives the same class. domain: % of them that lie in the box of the "
        "training images and provably keep their class, known from the original's outputs alone. "
        f"{', '.join(RADIUS_NAMES)}: % of the first {inputs} with provably one class of both "
        "networks on the whole ball of that radius, every pixel in [0, 1]. bound: how far the "
        f"outputs that run can be apart in the ball of 1/{round(1 / SEARCHED)}, proven, rounding "
        "included; found: the most that sign gradients and corners find there; both medians, and "
        "the median of their ratio."
    )


def _cells(row: CertificateRow) -> tuple[str, ...]:
    shares = (row.accuracy, row.agreement, row.domain, *row.balls)
    return (
        row.method,
        *(f"{100 * share:.2f}" for share in shares[:2]),
        *(f"{100 * share:.1f}" for share in shares[2:]),
        f"{row.bound:.4g}",
        f"{row.found:.4g}",
        f"{row.ratio:.2f}",
    )
