"""A network in a tenth of its bytes: the plan of a search, beside one method for all layers.

This is the experiment behind ``python -m minicompress search``. The plan is chosen, and so is the
best setting of every method, on validation images; the test images are looked at once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from minicompress.analysis.accounting import summary
from minicompress.analysis.sensitivities import Sensitivity
from minicompress.analysis.tables import aligned, wrap
from minicompress.arrays import as_int
from minicompress.compressors.chaining import Compressor, chain
from minicompress.compressors.clustering import cluster
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.errors import CompressionError
from minicompress.experiments.comparison import Progress, Setup, low_rank_share, trained
from minicompress.nn.losses import softmax_cross_entropy
from minicompress.nn.network import Sequential
from minicompress.nn.training import accuracy
from minicompress.search.choices import in_order, score, size
from minicompress.search.plan import compress
from minicompress.search.searching import SearchResult, search_plan
from minicompress.search.weights import weights

LEFT_ALONE = "-"


METHODS: Mapping[str, Mapping[str, Compressor]] = {
    "a scale per channel": {
        f"int{bits} per channel": partial(quantize, num_bits=bits, axis=-1)
        for bits in range(8, 1, -1)
    },
    "one scale": {f"int{bits}": partial(quantize, num_bits=bits) for bits in range(8, 1, -1)},
    "clustering": {f"{n} clusters": partial(cluster, n_clusters=n) for n in (32, 16, 8, 4)},
    "pruning, one scale": {
        f"prune {amount:.0%} int{bits}": chain(
            partial(prune_magnitude, amount=amount), partial(quantize, num_bits=bits)
        )
        for amount in (0.3, 0.5, 0.7, 0.9)
        for bits in (5, 4)
    },
    "pruning, clustering": {
        f"prune {amount:.0%} {n} clusters": chain(
            partial(prune_magnitude, amount=amount), partial(cluster, n_clusters=n)
        )
        for amount in (0.3, 0.5, 0.7)
        for n in (16, 8)
    },
    "low rank, int8": {
        f"rank {share} int8": chain(
            partial(low_rank_share, share=share), partial(quantize, num_bits=8, axis=-1)
        )
        for share in (Fraction(3, 4), Fraction(1, 2), Fraction(1, 4), Fraction(1, 8))
    },
}


class UniformRow(NamedTuple):
    """One method in all layers: of its settings that keep the budget the one of the least loss.

    None where none keeps it. Losses are those of the validation images, accuracies fractions of
    the test images.
    """

    method: str
    setting: str
    bytes: int
    macs: int
    loss: float
    test_accuracy: float


class Searched(NamedTuple):
    """What `searched` found.

    Parameters
    ----------
    dense_bytes : int
        Of all weights as float32.
    max_bytes : int
        The budget.
    dense : UniformRow
        The network as it is.
    result : SearchResult
    test_accuracy : float
        Of the plan.
    uniform : tuple of UniformRow
    """

    dense_bytes: int
    max_bytes: int
    dense: UniformRow
    result: SearchResult
    test_accuracy: float
    uniform: tuple[UniformRow, ...]


def searched(
    data: Setup,
    *,
    max_bytes: str | int = "10%",
    seed: int = 0,
    epochs: int | None = None,
    images: int = 1000,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Searched:
    """Train a network, find the best plan for a file of so many bytes, and score it.

    Parameters
    ----------
    data : Setup
    max_bytes : str or int
        Bytes, or a share of those that all weights take as float32: "10%".
    seed, epochs, progress
        As for `comparison.compare`.
    images : int
        Validation images that plans are measured on, at most.
    executor : concurrent.futures.Executor, optional
        As for `search_plan`.

    Returns
    -------
    Searched

    Raises
    ------
    CompressionError
        `max_bytes` is no size, or too small for every plan.
    """
    share_of(max_bytes, 0)  # a slip is not found out only after the training
    model = trained(data, seed=seed, epochs=epochs, progress=progress)
    x, y = (part[: as_int(images, "images", 1)] for part in data.validation)
    dense_bytes = summary(model, x.shape[1:]).dense_bytes
    limit = share_of(max_bytes, dense_bytes)
    choices = {name: c for settings in METHODS.values() for name, c in settings.items()}
    result = search_plan(
        model, choices, x, y, max_bytes=limit, executor=executor, progress=progress
    )

    report = progress or (lambda what, done: None)
    uniform = {
        name: compress(model, dict.fromkeys(weights(model), c)).model for name, c in choices.items()
    }
    shape = x.shape[1:]
    networks = [model, *uniform.values()]
    sizes = in_order(
        executor, size, [(m, shape, "smallest") for m in networks], partial(report, "one method")
    )
    scores = in_order(
        executor,
        score,
        [(m, x, y, softmax_cross_entropy) for m in networks],
        partial(report, "one method"),
    )
    figures = dict(zip([LEFT_ALONE, *uniform], zip(sizes, scores, strict=True), strict=True))

    def row(method: str, setting: str, network: Sequential) -> UniformRow:
        (file_bytes, macs), (loss, _) = figures[setting]
        return UniformRow(method, setting, file_bytes, macs, loss, accuracy(network, *data.test))

    rows = []
    for method, settings in METHODS.items():
        fitting = [
            name
            for name in settings
            if figures[name][0][0] <= limit and math.isfinite(figures[name][1][0])
        ]
        if fitting:
            best = min(fitting, key=lambda name: (figures[name][1][0], figures[name][0][0]))
            rows.append(row(method, best, uniform[best]))
    return Searched(
        dense_bytes,
        limit,
        row("as it is", LEFT_ALONE, model),
        result,
        accuracy(result.model, *data.test),
        tuple(rows),
    )


def share_of(text: str | int, whole: int) -> int:
    """Bytes as they are given: a number, or a percentage of `whole`, rounded down.

    Examples
    --------
    >>> share_of("10%", 39727), share_of("4000", 39727), share_of(4000, 39727)
    (3972, 4000, 4000)
    """
    number = str(text).strip()
    try:
        if isinstance(text, bool):
            raise ValueError
        share = Fraction(number.removesuffix("%"))
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if share < 0 or (not number.endswith("%") and share.denominator != 1):
        raise CompressionError(f"max_bytes must be a number of bytes or like '10%', not {text!r}")
    return int(share * whole / 100) if number.endswith("%") else int(share)


def format_search(found: Searched) -> str:
    """The plan, and a table of it and of one method for all layers."""
    best = found.result.best
    plan = "\n".join(f"    layer {layer}: {name}" for layer, name in best.plan.items())
    ours = UniformRow(
        "the plan", "one for each layer", best.bytes, best.macs, best.loss, found.test_accuracy
    )
    head = ("method", "setting", "file bytes", "MACs", "loss", "accuracy")
    cells = [
        (m, setting, f"{file:,}", f"{macs:,}", f"{loss:.4f}", f"{100 * right:.2f}")
        for m, setting, file, macs, loss, right in (ours, *found.uniform, found.dense)
    ]
    share = best.bytes / found.dense_bytes
    explained = (
        f"The file of the plan takes {best.bytes:,} bytes of the {found.max_bytes:,} that it may, "
        f"{share:.2%} of the {found.dense_bytes:,} of the weights as float32; "
        f"{found.result.measured} plans were measured whole. Below it, one setting of one method "
        "for all layers: of those that keep the budget, the one of the least loss. No network "
        "is retrained here, and low rank needs that most. loss: of the validation images, by which "
        "all was chosen; accuracy: % of the test images, looked at once."
    )
    return f"{plan}\n\n{aligned([head, *cells])}\n\n{wrap(explained)}"


def format_sensitivity(rows: Sequence[Sensitivity]) -> str:
    """The rows of `sensitivity` in columns that line up."""
    return aligned(sensitivity_cells(rows))


def sensitivity_cells(rows: Sequence[Sensitivity]) -> list[tuple[str, ...]]:
    """The rows of `sensitivity` under their heads."""
    head = ("layer", "method", "loss", "accuracy", "file bytes", "MACs", "bound", "error")
    return [
        head,
        *(
            (
                f"{row.layer} {row.kind}",
                row.method,
                f"{row.loss_change:+.4f}",
                f"{100 * row.accuracy_change:+.2f}",
                f"{-row.file_saved:+,}",
                f"{-row.macs_saved:+,}",
                f"{row.certificate.bound:.4g}",
                f"{row.certificate.measured:.4g}",
            )
            for row in rows
        ),
    ]
