"""A network in a tenth of its bytes: the plan of a search, beside one method for all layers.

This is the experiment behind ``python -m minicompress search``. The plan is chosen, and so is the
best setting of every method, on validation images; the test images are looked at once, at the end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from fractions import Fraction
from functools import partial
from itertools import groupby, product
from typing import NamedTuple

from minicompress.analysis.accounting import summary
from minicompress.analysis.sensitivities import Sensitivity
from minicompress.arrays import Array, as_int
from minicompress.compressors.chaining import Compressor, chain
from minicompress.compressors.clustering import cluster
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.errors import CompressionError
from minicompress.experiments.comparison import INT8, Setup, low_rank_share, trained
from minicompress.nn.losses import softmax_cross_entropy
from minicompress.nn.network import Network
from minicompress.nn.training import accuracy
from minicompress.search.choices import in_order, score, size
from minicompress.search.plan import compress
from minicompress.search.searching import SearchResult, search_plan
from minicompress.search.weights import weights
from minicompress.tables import aligned, wrap


def _pruned(amount: float) -> Compressor:
    return partial(prune_magnitude, amount=amount)


METHODS: Mapping[str, Mapping[str, Compressor]] = {
    "a scale per channel": {
        f"int{n} per channel": partial(quantize, num_bits=n, axis=-1) for n in range(8, 1, -1)
    },
    "one scale": {f"int{n}": partial(quantize, num_bits=n) for n in range(8, 1, -1)},
    "clustering": {f"{n} clusters": partial(cluster, n_clusters=n) for n in (32, 16, 8, 4)},
    "pruning, one scale": {
        f"prune {amount:.0%} int{n}": chain(_pruned(amount), partial(quantize, num_bits=n))
        for amount, n in product((0.3, 0.5, 0.7, 0.9), (5, 4))
    },
    "pruning, clustering": {
        f"prune {amount:.0%} {n} clusters": chain(_pruned(amount), partial(cluster, n_clusters=n))
        for amount, n in product((0.3, 0.5, 0.7), (16, 8))
    },
    "low rank, int8": {
        f"rank {share} int8": chain(partial(low_rank_share, share=share), INT8)
        for share in map(Fraction, ("3/4", "1/2", "1/4", "1/8"))
    },
}
EXPLAINED = """The file of the plan takes {best.bytes:,} bytes of the {found.max_bytes:,} that it
may, {share:.2%} of the {found.dense_bytes:,} of the weights as float32; {found.result.measured}
plans were measured whole.
Below it, one setting of one method for all layers: of those that keep the budget, the one of the
least loss. No network is retrained here, and low rank needs that most.
loss: of the validation images, by which all was chosen;
accuracy: % of the test images, looked at once."""


class UniformRow(NamedTuple):
    """One method in all layers: of its settings that keep the budget the one of the least loss.

    Losses are those of the validation images, accuracies fractions of the test images.
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
        Without the methods that have no setting which keeps the budget.
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
    images: int = 1000,
    executor: Executor | None = None,
) -> Searched:
    """Train a network, find the best plan for a file of so many bytes, and score it.

    Parameters
    ----------
    data : Setup
    max_bytes : str or int
        Bytes, or a share of those that all weights take as float32: "10%".
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
    model = trained(data)
    x, y = (part[: as_int(images, "images", 1)] for part in data.validation)
    dense_bytes = summary(model, data.shape).dense_bytes
    limit = share_of(max_bytes, dense_bytes)
    choices = {name: c for settings in METHODS.values() for name, c in settings.items()}
    result = search_plan(
        model, choices, x, y, max_bytes=limit, executor=executor, progress=data.progress
    )

    networks = {("as it is", "-"): model} | {
        (method, setting): compress(model, dict.fromkeys(weights(model), compressor)).model
        for method, settings in METHODS.items()
        for setting, compressor in settings.items()
    }
    tasks = [(*names, network, x, y) for names, network in networks.items()]
    dense, *rows = in_order(executor, _measured, tasks, partial(data.progress, "one method"))
    fitting = [row for row in rows if row.bytes <= limit and math.isfinite(row.loss)]
    best = [
        min(settings, key=lambda row: (row.loss, row.bytes))
        for _, settings in groupby(fitting, lambda row: row.method)
    ]
    dense, *uniform = (
        row._replace(test_accuracy=accuracy(networks[row.method, row.setting], *data.test))
        for row in (dense, *best)
    )
    right = accuracy(result.model, *data.test)
    return Searched(dense_bytes, limit, dense, result, right, tuple(uniform))


def _measured(method: str, setting: str, model: Network, x: Array, y: Array) -> UniformRow:
    """A row that is not yet tested; a task for an executor."""
    loss, _ = score(model, x, y, softmax_cross_entropy)
    return UniformRow(method, setting, *size(model, x.shape[1:], "smallest"), loss, math.nan)


def share_of(text: str | int, whole: int) -> int:
    """Bytes as they are given: a number, or a percentage of `whole`, rounded down.

    Examples
    --------
    >>> share_of("10%", 39727), share_of("4000", 39727), share_of(4000, 39727)
    (3972, 4000, 4000)
    """
    number = str(text).strip()
    if re.fullmatch(r"\d{1,18}", number, re.ASCII):
        return int(number)
    if re.fullmatch(r"\d{0,18}\.?\d{1,18} ?%", number, re.ASCII):
        return int(Fraction(number[:-1]) * whole / 100)
    raise CompressionError(f"max_bytes must be a number of bytes or like '10%', not {text!r}")


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
    explained = EXPLAINED.format(best=best, found=found, share=best.bytes / found.dense_bytes)
    return f"{plan}\n\n{aligned([head, *cells])}\n\n{wrap(explained)}"


def format_sensitivity(rows: Sequence[Sensitivity]) -> str:
    """The rows of `sensitivity` in columns that line up."""
    return aligned(sensitivity_cells(rows))


def sensitivity_cells(rows: Sequence[Sensitivity]) -> list[tuple[str, ...]]:
    """The rows of `sensitivity` under their heads."""
    head = ("layer", "method", "loss", "accuracy", "file bytes", "MACs", "bound", "error")
    cells = [
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
    ]
    return [head, *cells]
