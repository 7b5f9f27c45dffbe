"""What the report shows, gathered: the main comparison, layers, certificates and early exit.

This is the experiment behind ``python -m minicompress report``; `page` makes a page of it. All of
it is about one network, the dense one of the main table. What is chosen is chosen on validation
images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from minicompress.analysis.accounting import summary
from minicompress.analysis.sensitivities import Sensitivity, sensitivity
from minicompress.arrays import ceil_div
from minicompress.compressors.chaining import Compressor
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.early_exit.exits import attach_heads, predict
from minicompress.early_exit.thresholds import (
    ExitPoint,
    choose_thresholds,
    exit_curve,
    expected_macs,
)
from minicompress.early_exit.training import fit_exits
from minicompress.experiments.certification import CertificateRow, certified_against
from minicompress.experiments.comparison import (
    INT4,
    INT8,
    Row,
    Setup,
    compare,
    half_rank,
    trained,
)
from minicompress.nn.composition import Sequential
from minicompress.nn.network import Network, output_shape
from minicompress.nn.optimizers import adam, cosine_lr
from minicompress.nn.training import accuracy

LAYER_METHODS: Mapping[str, Compressor] = {
    "int8": INT8,
    "int4": INT4,
    "int2": partial(quantize, num_bits=2, axis=-1),
    "prune 50%": partial(prune_magnitude, amount=0.5),
    "prune 90%": partial(prune_magnitude, amount=0.9),
    "low rank 1/2": half_rank,
}
IMAGES = 1000  # of the validation images, at most, for layers and exits
BALLS = 20  # test images whose balls are followed
FEW_BALLS = 2  # the same for a large network, where each takes long
HEAD_BEHIND = 1  # the first activation
POINTS = 12  # of the early-exit curve


class ExitResult(NamedTuple):
    """A head behind the first activation, and what leaving there saves.

    Parameters
    ----------
    curve : tuple of ExitPoint
        On validation images; the first is the network itself.
    threshold : float
        Of those with no less than the network's accuracy on them, the one that saves most.
    left : float
        The fraction of test images that leave early at it.
    accuracy, plain_accuracy : float
        Of the test images, with the head and without.
    share : float
        Multiply-accumulates of a test image in the mean, as a fraction of the network's.
    """

    curve: tuple[ExitPoint, ...]
    threshold: float
    left: float
    accuracy: float
    plain_accuracy: float
    share: float


class Report(NamedTuple):
    """All that the page shows.

    Parameters
    ----------
    data : Setup
        As the command was told.
    digest : str
        SHA-256 of all images and labels, in hexadecimal.
    rows : tuple of Row
        As the main command prints them.
    front : tuple of str
        The methods on the Pareto front of `rows`.
    layers : tuple of Sensitivity
    accuracy : float
        Of the network that `certificates` are about, on the test images.
    certificates : tuple of CertificateRow
    balls : int
        How many test images these follow.
    exits : ExitResult
    """

    data: Setup
    digest: str
    rows: tuple[Row, ...]
    front: tuple[str, ...]
    layers: tuple[Sensitivity, ...]
    accuracy: float
    certificates: tuple[CertificateRow, ...]
    balls: int
    exits: ExitResult


def gather(data: Setup) -> Report:
    """Run all that the report shows: the same settings, the same report."""
    digest = hashlib.sha256()
    for array in (*data.train, *data.validation, *data.test):
        # The same on every machine: as little-endian, in C order.
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    rows = compare(data)
    network = trained(data)
    x, y = (part[:IMAGES] for part in data.validation)
    layers = sensitivity(network, LAYER_METHODS, x, y, progress=data.progress)
    balls = min(BALLS if data.max_symbols is None else FEW_BALLS, len(data.test[0]))
    certified = certified_against(network, data, inputs=balls)
    front, exits = pareto_front(rows), _exits(data, network)
    return Report(data, digest.hexdigest(), rows, front, layers, *certified, balls, exits)


def pareto_front(rows: Sequence[Row]) -> tuple[str, ...]:
    """The methods that no other beats: none has as few bytes and as much accuracy, and one better.

    The smallest first.

    Examples
    --------
    >>> blank = Row("", 0, 0, 0, 0, 1.0, 0.0, 0.0, 0.0, None, None, None, None)
    >>> sizes = {"dense": (400, 0.98), "int8": (100, 0.98), "int4": (50, 0.97), "int2": (60, 0.5)}
    >>> rows = [blank._replace(method=m, bytes=b, test_accuracy=a) for m, (b, a) in sizes.items()]
    >>> pareto_front(rows)
    ('int4', 'int8')
    """
    places = [(row.bytes, -row.test_accuracy) for row in rows]
    front = [
        (place, row.method)
        for place, row in zip(places, rows, strict=True)
        if not any(other != place and np.all(np.less_equal(other, place)) for other in places)
    ]
    return tuple(method for _, method in sorted(front))


def _exits(data: Setup, network: Network) -> ExitResult:
    inside = output_shape(Sequential(network.layers[: HEAD_BEHIND + 1]), data.shape)
    # A head of 4 x 4 windows is cheap, and so is what it learns from.
    exits = attach_heads(network, (HEAD_BEHIND,), data.shape, pool=max(1, inside[0] // 4))
    epochs = max(1, data.epochs // 2)
    steps = epochs * ceil_div(len(data.train[0]), data.batch_size)
    exits, _ = fit_exits(
        exits,
        *data.train,
        optimizer=adam(cosine_lr(data.learning_rate, steps)),
        epochs=epochs,
        batch_size=data.batch_size,
        rng=np.random.default_rng([data.seed, 3]),
        progress=lambda step, steps, loss: data.progress("head", step / steps),
    )
    x, y = (part[:IMAGES] for part in data.validation)
    curve = exit_curve(exits, x, y, points=POINTS)
    chosen = choose_thresholds(exits, x, y, min_accuracy=curve[0].accuracy)
    x, y = data.test
    logits, left_at = predict(chosen, x)
    macs = expected_macs(chosen, data.shape, left_at)
    return ExitResult(
        curve,
        chosen.thresholds[0],
        float((left_at == 0).mean()),
        float((logits.argmax(1) == y).mean()),
        accuracy(network, x, y),
        float(macs / summary(network, data.shape).macs),
    )
