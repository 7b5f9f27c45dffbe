"""Original against compressed: what is proven of their difference, beside what a search finds.

This is the experiment behind ``python -m minicompress certify``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from minicompress.arrays import as_int
from minicompress.certify.attacks import attack
from minicompress.certify.certificates import ball_certificates
from minicompress.compressors.chaining import Compressor
from minicompress.compressors.pruning import prune_magnitude
from minicompress.experiments.comparison import INT4, INT8, Setup, certified_domain, trained
from minicompress.nn.network import Network, apply
from minicompress.nn.parameters import finite_outputs
from minicompress.search.plan import compress
from minicompress.search.weights import weights
from minicompress.tables import aligned, wrap

RADII = (1 / 64, 1 / 32, 1 / 16)
RADIUS_NAMES = tuple(f"1/{round(1 / eps)}" for eps in RADII)
SEARCHED = 1 / 32
PIXELS = (0.0, 1.0)
METHODS: Mapping[str, Compressor] = {
    "int8": INT8,
    "int4": INT4,
    "prune 20%": partial(prune_magnitude, amount=0.2),
    "prune 50%": partial(prune_magnitude, amount=0.5),
}
LEGEND = """The original classifies {:.2%} of the test images rightly.
agree: % of them that the compressed network gives the same class.
domain: % of them that lie in the box of the training images and provably keep their class, known
from the original's outputs alone.
{}: % of the first {} with provably one class of both networks on the whole ball of that radius,
every pixel in [0, 1].
bound: how far the outputs that run can be apart in the ball of 1/{}, proven, rounding included;
found: the most that sign gradients and corners find there;
both medians, and the median of their ratio."""


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
    data: Setup, *, inputs: int = 100
) -> tuple[float, tuple[CertificateRow, ...]]:
    """Train a network, compress it by several methods, and certify each against the original.

    Parameters
    ----------
    data : Setup
    inputs : int
        Test inputs whose balls are followed; accuracy, agreement and domain take all of them.

    Returns
    -------
    accuracy : float
        Of the original.
    rows : tuple of CertificateRow
    """
    return certified_against(trained(data), data, inputs=inputs)


def certified_against(
    f: Network, data: Setup, *, inputs: int
) -> tuple[float, tuple[CertificateRow, ...]]:
    """`run_certification` for a network that is trained already."""
    x, y = data.test
    classes = finite_outputs(apply(f, x)).argmax(1)
    some = x[: as_int(inputs, "inputs", 1)]
    rows = []
    for method, compressor in METHODS.items():
        g, _ = compress(f, dict.fromkeys(weights(f), compressor))
        others = finite_outputs(apply(g, x), name=method).argmax(1)
        balls = {
            eps: ball_certificates(f, g, some, eps=eps, clip=PIXELS, max_symbols=data.max_symbols)
            for eps in RADII
        }
        bounds = [c.bound for c in balls[SEARCHED]]
        rng = np.random.default_rng([data.seed, 2])
        found = attack(f, g, some, eps=SEARCHED, clip=PIXELS, rng=rng)
        rows.append(
            CertificateRow(
                method,
                float((others == y).mean()),
                float((others == classes).mean()),
                certified_domain(f, g, data),
                tuple(sum(c.same_class for c in ball) / len(some) for ball in balls.values()),
                *(float(np.median(of)) for of in (bounds, found, bounds / found)),
            )
        )
    return float((classes == y).mean()), tuple(rows)


def format_certificates(accuracy: float, rows: tuple[CertificateRow, ...], inputs: int) -> str:
    """The rows in columns that line up, and what they are."""
    return f"{aligned(certificate_cells(rows))}\n\n{wrap(certificate_legend(accuracy, inputs))}"


def certificate_cells(rows: tuple[CertificateRow, ...]) -> list[tuple[str, ...]]:
    """The rows under their heads."""
    head = ("method", "accuracy", "agree", "domain", *RADIUS_NAMES, "bound", "found", "ratio")
    cells = [
        (
            row.method,
            *(f"{100 * share:.2f}" for share in (row.accuracy, row.agreement)),
            *(f"{100 * share:.1f}" for share in (row.domain, *row.balls)),
            *(f"{value:.4g}" for value in (row.bound, row.found)),
            f"{row.ratio:.2f}",
        )
        for row in rows
    ]
    return [head, *cells]


def certificate_legend(accuracy: float, inputs: int) -> str:
    """What the columns are."""
    return LEGEND.format(accuracy, ", ".join(RADIUS_NAMES), inputs, round(1 / SEARCHED))
