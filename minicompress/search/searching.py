"""The best plan for a budget: which method for which layer, found by measuring."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, TypeAlias

from minicompress.analysis.sensitivities import Compressors
from minicompress.arrays import Array, as_float, as_int, choice, exactly_one, float_array
from minicompress.errors import CompressionError
from minicompress.nn.losses import softmax_cross_entropy
from minicompress.nn.network import Sequential
from minicompress.nn.training import Loss, evaluate
from minicompress.representation import Certificate
from minicompress.search.choices import (
    LayerChoices,
    Pick,
    bound_of,
    changed_in_one,
    in_order,
    layer_choices,
    picked,
    plan_of,
    score,
    size,
    with_pick,
)
from minicompress.search.knapsack import Item, best_picks

Numbers: TypeAlias = Mapping[Pick, tuple[float, float]]


class MeasuredPlan(NamedTuple):
    """A plan, and what the network is with it, measured whole.

    Parameters
    ----------
    plan : dict of int to str
        For the index of every layer with choices the name of one; "as it is" for none.
    bytes : int
        The length of the file that `save` writes.
    macs : int
        Multiply-accumulates for one input.
    loss, accuracy : float
        On the data of the search.
    bound : float
        How far all the weights as one vector can be from the original, in the Frobenius norm;
        infinite where a certificate is in another norm.
    """

    plan: dict[int, str]
    bytes: int
    macs: int
    loss: float
    accuracy: float
    bound: float


class SearchResult(NamedTuple):
    """What a search found.

    Parameters
    ----------
    best : MeasuredPlan
    model : Sequential
    certificates : dict of int to Certificate
        The network compressed by the best plan; of the layers that it changes.
    runners_up : tuple of MeasuredPlan
        Others that keep the budget, the next best first.
    measured : int
        How many plans were measured whole.
    """

    best: MeasuredPlan
    model: Sequential
    certificates: dict[int, Certificate]
    runners_up: tuple[MeasuredPlan, ...]
    measured: int


class _Budget(NamedTuple):
    """What is limited, and what is to be as little as possible: fields of `MeasuredPlan`."""

    limited: str
    limit: float
    aim: str


def search_plan(
    model: Sequential,
    choices: Mapping[int, Compressors] | Compressors,
    x: Array,
    y: Array,
    *,
    max_bytes: int | None = None,
    max_macs: int | None = None,
    max_loss: float | None = None,
    cost: str = "measured",
    loss: Loss = softmax_cross_entropy,
    plans: int = 16,
    rounds: int = 4,
    runners_up: int = 5,
    coding: str = "smallest",
    executor: Executor | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> SearchResult:
    """Choose for every layer one of several compressors, or none, so that a budget is kept.

    Parameters
    ----------
    model : Sequential
    choices : mapping of int to compressors, or compressors for all layers
        For the index of a layer with weights, compressors by name or a list of them, as for
        `sensitivity`. To keep the layer as it is, is always a choice too. A `LowRank` weight runs
        and counts as its factors.
    x : (N, ...) ndarray, N at least 1
    y : (N,) ndarray of integers
        Validation data: the plan is chosen by them, so they are not to judge it.
    max_bytes, max_macs, max_loss : exactly one
        The least loss in a file of at most `max_bytes` (all of it: what `save` writes), or with at
        most `max_macs` multiply-accumulates for one input; or the fewest bytes with a loss of at
        most `max_loss`. Each holds for the whole plan, measured, not for a sum of estimates.
    cost : "measured" | "certificate"
        What is made small under the first two budgets: the loss, or `MeasuredPlan.bound`, proven
        by certificates in the Frobenius norm without a look at the data.
    loss : callable
        As for `evaluate`.
    plans, rounds, runners_up : int, at least 1, 1 and 0
        Plans measured whole in a round, rounds at most, how many other plans come back.
    coding : "smallest" | "huffman" | "packed"
        As for `save`.
    executor : concurrent.futures.Executor, optional
        Where to compress and to measure: threads, processes, dask.distributed's or mpi4py.futures'
        pool. What is submitted pickles if compressors and loss do: functions of a module and
        functools.partial of them, not lambdas. The same plan comes out whatever the executor.
    progress : callable, optional
        ``progress(what, done)`` with the fraction of this part that is done.

    Returns
    -------
    SearchResult

    Raises
    ------
    CompressionError
        No plan that was measured keeps the budget (the message says how little can be reached), a
        compressor refuses a layer's weights, or arguments do not fit.

    Notes
    -----
    What each choice adds to the file and to the MACs is measured once, alone. In every round, what
    it adds to the loss is measured around the best plan so far, at first the network as it is. If
    all this added up, the best plans would be those of a multiple-choice knapsack, which is solved
    exactly (see `knapsack`). It hardly fails for bytes and only at first for losses; so the `plans`
    best are measured whole, and the best that keeps the budget is where the next round begins.
    It ends when a round finds nothing better.

    With L layers and C choices it codes ``L C`` files once, and in every round goes ``L C`` times
    through the data and measures `plans` whole. The knapsack takes 0.03 s a round for 5 layers of
    50 choices, 0.3 s for 10, 3 s for 20, 40 s for 50 (one core; choices of which few dominate
    others): for most networks measuring takes the time. For 3 layers of 36 choices on the shipped
    digits it is some 10 s, nearly all of it the entropy coding of 150 files.

    Examples
    --------
    >>> import numpy as np
    >>> from minicompress.compressors.quantization import quantize
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.stateless import ReLU
    >>> from minicompress.storage.container import dumps
    >>> rng = np.random.default_rng(0)
    >>> model = Sequential((Dense(rng.normal(size=(4, 8))), ReLU(), Dense(rng.normal(size=(8, 3)))))
    >>> x = rng.normal(size=(20, 4))
    >>> few = [partial(quantize, num_bits=bits) for bits in (2, 4, 8)]
    >>> found = search_plan(model, few, x, model(x).argmax(1), max_bytes=90)
    >>> found.best.plan[0], found.best.bytes <= 90, found.best.bytes == len(dumps(found.model))
    ('quantize(num_bits=4)', True, True)
    """
    budget = _budget(max_bytes, max_macs, max_loss, cost)
    as_int(plans, "plans", 1)
    as_int(rounds, "rounds", 1)
    as_int(runners_up, "runners_up", 0)
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise CompressionError(f"executor must be a concurrent.futures.Executor, not {executor!r}")
    report = progress or (lambda what, done: None)
    layers = layer_choices(model, choices, executor, partial(report, "compressing"))
    if budget.aim == "bound":
        _check_norms(layers)
    shape = float_array(x, "x").shape[1:]
    sizes: dict[Pick, tuple[int, int]] = {}
    scores: dict[Pick, tuple[float, float]] = {}

    def measure(
        known: dict[Pick, Any], what: str, picks: Iterable[Pick], function: Any, *options: Any
    ) -> None:
        new = [pick for pick in dict.fromkeys(picks) if pick not in known]
        tasks = [(with_pick(model, layers, pick), *options) for pick in new]
        found = in_order(executor, function, tasks, partial(report, what))
        known.update(zip(new, found, strict=True))

    def whole(pick: Pick) -> MeasuredPlan:
        bound = bound_of(layers, pick)
        return MeasuredPlan(plan_of(layers, pick), *sizes[pick], *scores[pick], bound)

    def rank(pick: Pick) -> tuple[Any, ...]:
        """The best first; those over the budget behind, the nearest to it first."""
        plan = whole(pick)
        over = max(getattr(plan, budget.limited) - budget.limit, 0)
        first = math.isinf(plan.loss), over, getattr(plan, budget.aim)
        return (*first, plan.bytes, plan.macs, plan.loss, pick)

    original = best = (0,) * len(layers)
    alone = chain([original], *changed_in_one(layers, original))
    measure(sizes, "sizes", alone, size, shape, coding)
    scores[original] = evaluate(model, x, y, loss=loss)  # refused if it is not finite
    begun: list[Pick] = []
    while best not in begun and len(begun) < rounds:
        begun.append(best)
        around = chain(*changed_in_one(layers, best))
        measure(scores, f"scores, round {len(begun)}", around, score, x, y, loss)
        groups = _groups(layers, best, sizes, scores, budget)
        room = budget.limit - getattr(whole(best), budget.limited)
        least = tuple(min(range(len(group)), key=group.__getitem__) for group in groups)
        likely = [*islice(best_picks(groups, room), plans), least]
        measure(sizes, f"plans, round {len(begun)}", likely, size, shape, coding)
        measure(scores, f"plans, round {len(begun)}", likely, score, x, y, loss)
        ranked = sorted((pick for pick in sizes if pick in scores), key=rank)
        best = ranked[0]

    found = [plan for plan in map(whole, ranked) if math.isfinite(plan.loss)]
    fitting = [plan for plan in found if getattr(plan, budget.limited) <= budget.limit]
    if not fitting:
        raise CompressionError(
            f"max_{budget.limited}={budget.limit} cannot be kept with these choices: the least "
            f"that was found is {min(getattr(plan, budget.limited) for plan in found)}"
        )
    return SearchResult(
        fitting[0],
        with_pick(model, layers, ranked[0]),
        {index: made.cert for index, made in picked(layers, ranked[0]).items()},
        tuple(fitting[1 : 1 + runners_up]),
        len(found),
    )


def _budget(
    max_bytes: int | None, max_macs: int | None, max_loss: float | None, cost: str
) -> _Budget:
    choice(cost, "cost", ("measured", "certificate"))
    aim = "loss" if cost == "measured" else "bound"
    given = exactly_one(max_bytes=max_bytes, max_macs=max_macs, max_loss=max_loss)
    if given == "max_bytes":
        return _Budget("bytes", as_int(max_bytes, given, 0), aim)
    if given == "max_macs":
        return _Budget("macs", as_int(max_macs, given, 0), aim)
    if aim == "bound":
        raise CompressionError("max_loss needs cost='measured': certificates say nothing of losses")
    return _Budget("loss", as_float(max_loss, given, -math.inf), "bytes")


def _check_norms(layers: Sequence[LayerChoices]) -> None:
    for layer, names, results in layers:
        for name, made in zip(names, results, strict=True):
            if made is not None and made.cert.norm != "fro":
                raise CompressionError(
                    f"cost='certificate' adds up Frobenius certificates; that of {name!r} for "
                    f"layer {layer} is in {made.cert.norm!r}"
                )


def _groups(
    layers: Sequence[LayerChoices], best: Pick, sizes: Numbers, scores: Numbers, budget: _Budget
) -> list[list[Item]]:
    """What each choice adds to what is limited and to what is to be small, in the best plan."""
    groups: list[list[Item]] = []
    # Squares of bounds add up to that of all weights; scaled, so that none of them overflows.
    bounds = [[0.0 if c is None else c.cert.bound for c in layer.made] for layer in layers]
    top = max((b for row in bounds for b in row), default=0.0) or 1.0
    squares = [[(b / top) ** 2 for b in row] for row in bounds]
    original = changed_in_one(layers, (0,) * len(layers))
    for i, (alone, here) in enumerate(zip(original, changed_in_one(layers, best), strict=True)):
        file, macs = sizes[alone[best[i]]]
        adds: dict[str, Sequence[float]] = {
            "bytes": [sizes[pick][0] - file for pick in alone],
            "macs": [sizes[pick][1] - macs for pick in alone],
            "loss": [scores[pick][0] - scores[best][0] for pick in here],
            "bound": squares[i],
        }
        groups.append(list(zip(adds[budget.limited], adds[budget.aim], strict=True)))
    return groups
