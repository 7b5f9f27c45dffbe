"""The best plan for a budget: against brute force, whatever the executor, never over the budget."""

import itertools
import math
import multiprocessing
import pickle
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minicompress as mc
from minicompress.experiments import budget as experiment
from minicompress.experiments.budget import format_search, searched, share_of
from minicompress.experiments.comparison import setup
from minicompress.search.choices import KEPT, in_order
from minicompress.search.knapsack import best_picks
from minicompress.search.searching import search_plan
from minicompress.search.weights import weights
from minicompress.testing.checks import check_pure

# The knapsack ------------------------------------------------------------------------------------

items = st.lists(st.tuples(st.integers(-3, 8), st.integers(-3, 8)), min_size=1, max_size=4)
knapsacks = st.tuples(st.lists(items, max_size=4), st.integers(-8, 24))


def total(groups, pick):
    chosen = [group[j] for group, j in zip(groups, pick, strict=True)]
    return sum(w for w, _ in chosen), sum(c for _, c in chosen)


def law_picks_are_those_of_brute_force(impl, groups, limit):
    """All that keep the limit, each once, the cheapest first: in integers, so exactly."""
    picks = list(impl(groups, limit))
    every = itertools.product(*(range(len(group)) for group in groups))
    wanted = [pick for pick in every if total(groups, pick)[0] <= limit]
    assert sorted(picks) == sorted(wanted)
    costs = [total(groups, pick)[1] for pick in picks]
    assert costs == sorted(costs)


@given(knapsacks)
def test_picks_are_those_of_brute_force(case):
    law_picks_are_those_of_brute_force(best_picks, *case)


def test_what_costs_infinitely_much_is_never_picked():
    assert list(best_picks([[(1, math.inf), (2, 0.0)], [(0, 1.0), (0, math.inf)]], 9)) == [(1, 0)]
    assert list(best_picks([[(math.inf, 0.0), (2, 1.0)]], 9)) == [(1,)]
    assert list(best_picks([[(0, math.inf)]], 9)) == []


# Searches ----------------------------------------------------------------------------------------


def coarse(weight, *, levels):
    """A compressor of a user's own: so many levels on each side of 0, kept as a codebook."""
    top = float(np.abs(weight).max()) or 1.0
    codes = np.rint(weight / top * levels).astype(int) + levels
    codebook = (np.arange(-levels, levels + 1) * (top / levels)).astype(weight.dtype)
    rep = mc.Clustered(codes, codebook)
    error = float(np.linalg.norm(mc.decode(rep).astype(float) - weight))
    bound = top / (2 * levels) * weight.size**0.5 * (1 + 1e-6)
    return mc.Compressed(rep, mc.Certificate("fro", bound, error))


CHOICES = {
    "int8": partial(mc.quantize, num_bits=8),
    "int4": partial(mc.quantize, num_bits=4),
    "int3": partial(mc.quantize, num_bits=3, axis=-1),
    "own": partial(coarse, levels=4),
    "rank 4": partial(mc.truncated_svd, rank=4),
}


@cache
def trained():
    """Not at import: worker processes import this module for its compressors."""
    x, y = mc.load_digits("train")
    rng = np.random.default_rng(0)
    layers = []
    for inputs, outputs in ((64, 12), (12, 10), (10, 10)):
        kernel = rng.normal(0, (2 / inputs) ** 0.5, (inputs, outputs)).astype(np.float32)
        layers += [mc.Dense(kernel, np.zeros(outputs, np.float32)), mc.ReLU()]
    model = mc.Sequential((mc.Flatten(), *layers[:-1]))
    return mc.fit(model, x, y, optimizer=mc.adam(1e-2), epochs=8, batch_size=64, rng=rng)[0]


X, Y = mc.load_digits("validation")


def brute_force(model, choices, x, y, coding):
    """Every plan, measured whole: names -> (bytes, macs, loss, bound)."""
    listed = {i: {KEPT: None} | choices for i in weights(model)}
    found = {}
    for names in itertools.product(*(named for named in listed.values())):
        plan = {i: choices[n] for i, n in zip(listed, names, strict=True) if n != KEPT}
        changed, certificates = mc.compress(model, plan)
        found[names] = (
            len(mc.storage.dumps(changed, coding=coding)),
            mc.summary(changed, x.shape[1:]).macs,
            mc.evaluate(changed, x, y)[0],
            math.sqrt(sum(c.bound**2 for c in certificates.values())),
        )
    return found


@pytest.fixture(scope="module")
def every_plan():
    return brute_force(trained(), CHOICES, X, Y, "packed")


FIELDS = {"max_bytes": 0, "max_macs": 1, "max_loss": 2}
BUDGETS = [
    *({"max_bytes": n} for n in (608, 660, 700, 800, 1000, 1100, 3000, 9999)),
    *({"max_macs": n} for n in (500, 800, 986, 988)),
    *({"max_loss": loss} for loss in (0.265, 0.3, 0.4, 1.5)),
]


def law_it_is_as_good_as_brute_force(impl, budget, every_plan):
    """The budget is kept, what is said of the plan is so, and none is better by more than 1 %."""
    ((kind, limit),) = budget.items()
    try:
        found = impl(trained(), CHOICES, X, Y, coding="packed", **budget)
    except mc.CompressionError as error:
        raise AssertionError("there is a plan for each of these budgets") from error
    names = tuple(found.best.plan.values())
    assert found.best[1:4] == every_plan[names][:3]
    assert abs(found.best.bound - every_plan[names][3]) <= 1e-12 * found.best.bound  # 3 squares
    assert len(mc.storage.dumps(found.model, coding="packed")) == found.best.bytes
    assert mc.evaluate(found.model, X, Y) == found.best[3:5]
    assert every_plan[names][FIELDS[kind]] <= limit
    aim = 0 if kind == "max_loss" else 2
    least = min(plan[aim] for plan in every_plan.values() if plan[FIELDS[kind]] <= limit)
    assert every_plan[names][aim] <= 1.01 * least
    for other in found.runners_up:
        assert getattr(other, kind[4:]) <= limit


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_it_is_as_good_as_brute_force(budget, every_plan):
    law_it_is_as_good_as_brute_force(search_plan, budget, every_plan)


def edges(every_plan):
    """Budgets that are met exactly, and those one byte below."""
    sizes = sorted({plan[0] for plan in every_plan.values()})
    return [{"max_bytes": n + less} for n in sizes[8::50] for less in (0, -1)]


def test_it_is_as_good_as_brute_force_at_the_edge_of_each_byte(every_plan):
    for budget in edges(every_plan):
        law_it_is_as_good_as_brute_force(search_plan, budget, every_plan)


def test_sizes_that_do_not_quite_add_up_are_kept_to_the_byte():
    """Two layers of one choice each and the entropy coder, which learns from one for the other."""
    model, choices = trained(), {name: CHOICES[name] for name in ("int8", "int4", "int3")}
    plans = [
        mc.compress(model, {i: choices[n] for i, n in zip((3, 5), names, strict=True)}).model
        for names in itertools.product(choices, repeat=2)
    ]
    sizes, losses = ([f(m) for m in plans] for f in (lambda m: len(mc.storage.dumps(m)), loss_of))
    for limit in sorted({n - less for n in sizes for less in (0, 1)})[1::2]:
        found = search_plan(model, {3: choices, 5: choices}, X, Y, max_bytes=limit).best
        assert found.bytes <= limit
        fitting = [a for n, a in zip(sizes, losses, strict=True) if n <= limit]
        assert found.loss <= 1.01 * min(fitting)


def loss_of(model):
    return mc.evaluate(model, X, Y)[0]


def test_bounds_are_those_of_brute_force(every_plan):
    """Squares of bounds add up, so the first pick is the very best that fits, but for rounding.

    Bytes do so up to a few, for which the budget leaves room here.
    """
    found = partial(
        search_plan, trained(), CHOICES, X, Y, cost="certificate", coding="packed", plans=1
    )
    for room in sorted({plan[0] for plan in every_plan.values()})[::12]:
        best = found(max_bytes=room + 4).best
        least = min(plan[3] for plan in every_plan.values() if plan[0] <= room)
        assert best.bound <= least * (1 + 1e-12)
        assert best.bytes <= room + 4


def test_what_cannot_be_kept_is_told_what_can(every_plan):
    for kind, place in FIELDS.items():
        least = min(plan[place] for plan in every_plan.values())
        limit = least - 1 if kind != "max_loss" else least / 2
        with pytest.raises(mc.CompressionError, match=f"{kind}=.* the least that was found") as e:
            search_plan(trained(), CHOICES, X, Y, coding="packed", **{kind: limit})
        said = float(str(e.value).split()[-1])
        assert said == least if kind != "max_loss" else said >= least
        if kind != "max_loss":
            assert (
                getattr(
                    search_plan(trained(), CHOICES, X, Y, coding="packed", **{kind: least}).best,
                    kind[4:],
                )
                == least
            )


def test_low_rank_counts_as_its_factors():
    found = search_plan(trained(), {1: [partial(mc.truncated_svd, rank=3)]}, X, Y, max_macs=500)
    assert found.best.plan == {1: "truncated_svd(rank=3)"}
    assert found.best.macs == (64 + 12) * 3 + 120 + 100
    assert found.certificates.keys() == {1}
    assert isinstance(found.model.layers[1].weight, mc.LowRank)
    assert found.model.layers[3].weight is trained().layers[3].weight


def test_nothing_to_choose_leaves_the_model():
    found = search_plan(trained(), {}, X, Y, max_bytes=10**6)
    assert found.best.plan == dict.fromkeys((1, 3, 5), KEPT)
    assert found.best.bound == 0.0
    assert (found.certificates, found.runners_up, found.measured) == ({}, (), 1)


def test_it_is_pure():
    check_pure(search_plan, trained(), {1: CHOICES}, X, Y, max_bytes=2000, coding="packed")


# Executors ---------------------------------------------------------------------------------------


def pool_in_order(order):
    """An executor whose tasks are done in an order of its own, and which pickles like a pool."""

    class Pool(Executor):
        def __init__(self):
            self.waiting = []

        def submit(self, function, *arguments):
            task = Future()
            self.waiting.append((task, pickle.dumps((function, arguments))))
            task.result = partial(self.result, task)
            return task

        def result(self, task):
            for future, blob in order(self.waiting):
                function, arguments = pickle.loads(blob)
                future.set_result(function(*arguments))
            self.waiting = []
            return Future.result(task)

    return Pool()


def outcome(executor):
    found = search_plan(trained(), CHOICES, X, Y, max_bytes=900, coding="packed", executor=executor)
    return (
        found.best,
        found.runners_up,
        found.measured,
        mc.storage.dumps(found.model),
        found.certificates,
    )


def test_every_executor_finds_the_same():
    alone = outcome(None)
    assert outcome(pool_in_order(reversed)) == alone
    with ThreadPoolExecutor(3) as threads:
        assert outcome(threads) == alone
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as processes:
        assert outcome(processes) == alone


def law_results_are_in_the_order_of_the_tasks(impl):
    tasks = [(n,) for n in (3, 1, 2)]
    for order in (iter, reversed):
        assert impl(pool_in_order(order), abs, tasks, lambda done: None) == [3, 1, 2]
    assert impl(None, abs, tasks, lambda done: None) == [3, 1, 2]


def test_results_are_in_the_order_of_the_tasks():
    law_results_are_in_the_order_of_the_tasks(in_order)


def test_when_a_task_fails_the_others_are_called_off():
    futures = [Future() for _ in range(3)]
    futures[0].set_exception(mc.CompressionError("layer 1"))
    pool, left = Executor(), iter(futures)
    pool.submit = lambda *task: next(left)
    with pytest.raises(mc.CompressionError, match="layer 1"):
        in_order(pool, abs, [(1,), (2,), (3,)], print)
    assert [future.cancelled() for future in futures] == [False, True, True]
    with ThreadPoolExecutor(1) as threads, pytest.raises(mc.CompressionError, match="layer 1"):
        search_plan(trained(), [np.negative], X, Y, max_bytes=9, executor=threads)


# Planted faults ----------------------------------------------------------------------------------


def _greedy(groups, limit):
    """Layer by layer the cheapest that still fits."""
    pick, left = [], limit
    for i, group in enumerate(groups):
        later = sum(min(w for w, _ in g) for g in groups[i + 1 :])
        fitting = [j for j, (w, _) in enumerate(group) if w + later <= left]
        if not fitting:
            return
        pick.append(min(fitting, key=lambda j: group[j][1]))
        left -= group[pick[-1]][0]
    rest = (p for p in best_picks(groups, limit) if p != tuple(pick))
    yield from (tuple(pick), *rest)


def _undominated_only(groups, limit):
    thin = [
        [j for j, a in enumerate(g) if not any(b < a for b in g if b[1] < a[1])] for g in groups
    ]
    for pick in best_picks([[g[j] for j in t] for g, t in zip(groups, thin, strict=True)], limit):
        yield tuple(t[j] for t, j in zip(thin, pick, strict=True))


KNAPSACK = ([[(3, 0), (1, 2), (2, 3)], [(5, 0), (1, 4)], [(2, 0), (1, 1)]], 7)


def _knapsack(wrong):
    return lambda every_plan: law_picks_are_those_of_brute_force(wrong, *KNAPSACK)


def _order(wrong):
    return lambda every_plan: law_results_are_in_the_order_of_the_tasks(wrong)


def _searching(wrong):
    def law(every_plan):
        for budget in [*BUDGETS, *edges(every_plan)]:
            law_it_is_as_good_as_brute_force(wrong, budget, every_plan)

    return law


def _as_completed(executor, function, tasks, report):
    if executor is None:
        return [function(*task) for task in tasks]
    done = []
    for future in [executor.submit(function, *task) for task in tasks]:
        future.add_done_callback(lambda f: done.append(Future.result(f)))
    future.result()
    return done


def _one_byte_more(*args, max_bytes=None, **options):
    return search_plan(*args, max_bytes=max_bytes and max_bytes + 1, **options)


def _frame_forgotten(model, *args, max_bytes=None, **options):
    frame = (
        len(mc.storage.dumps(model, coding="packed")) - mc.summary(model, (8, 8, 1)).packed_bytes
    )
    return search_plan(model, *args, max_bytes=max_bytes and max_bytes + frame, **options)


def _last_layer_forgotten(model, choices, *args, **options):
    return search_plan(model, dict.fromkeys((1, 3), choices), *args, **options)


def _wrong_model(*args, **options):
    found = search_plan(*args, **options)
    return found._replace(model=args[0])


PLANTED = {
    "greedy for exact": _knapsack(_greedy),
    "below the limit for at most": _knapsack(lambda g, limit: best_picks(g, limit - 1)),
    "one more than the limit": _knapsack(lambda g, limit: best_picks(g, limit + 1)),
    "dominated items never come back": _knapsack(_undominated_only),
    "the lightest first": _knapsack(
        lambda g, limit: sorted(best_picks(g, limit), key=lambda pick: total(g, pick))
    ),
    "order of completion": _order(_as_completed),
    "last task first": _order(lambda *args: in_order(*args)[::-1]),
    "the budget exceeded by a byte": _searching(_one_byte_more),
    "the file's frame forgotten": _searching(_frame_forgotten),
    "the sum of estimates trusted": _searching(partial(search_plan, rounds=1, plans=1)),
    "a layer forgotten": _searching(_last_layer_forgotten),
    "the model before the search": _searching(_wrong_model),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name, every_plan):
    with pytest.raises(AssertionError):
        PLANTED[name](every_plan)


# Bad arguments -----------------------------------------------------------------------------------

BAD = [
    ({}, "give exactly one of max_bytes, max_macs, max_loss; given: none"),
    ({"max_bytes": 9, "max_loss": 1.0}, "given: max_bytes, max_loss"),
    ({"max_bytes": 9.5}, "max_bytes must be an int"),
    ({"max_macs": -1}, "max_macs must be"),
    ({"max_loss": "1"}, "max_loss must be a number"),
    ({"max_loss": 1.0, "cost": "certificate"}, "max_loss needs cost='measured'"),
    ({"max_bytes": 9, "cost": "guess"}, "cost must be one of measured, certificate"),
    ({"max_bytes": 9, "plans": 0}, "plans must be"),
    ({"max_bytes": 9, "rounds": 0}, "rounds must be"),
    ({"max_bytes": 9, "runners_up": -1}, "runners_up must be"),
    ({"max_bytes": 9, "executor": 2}, "executor must be"),
    ({"max_bytes": 9, "choices": 3}, "choices must be a mapping"),
    ({"max_bytes": 9, "choices": {0: CHOICES}}, r"layer 0 \(Flatten\) has no weights"),
    ({"max_bytes": 9, "choices": {9: CHOICES}}, "a layer index of choices must be"),
    ({"max_bytes": 9, "choices": {KEPT: CHOICES["int8"]}}, "must not hold 'as it is'"),
    ({"max_bytes": 9, "choices": {1: 3}}, r"choices\[1\] must be a mapping"),
    (
        {
            "max_bytes": 9,
            "cost": "certificate",
            "choices": {"svd": partial(mc.truncated_svd, rank=1, norm="spectral")},
        },
        "adds up Frobenius certificates; that of 'svd' for layer 1 is in 'spectral'",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"model": trained(), "choices": CHOICES, "x": X, "y": Y} | change
    with pytest.raises(mc.CompressionError, match=message):
        search_plan(**arguments)


# The command's experiment ------------------------------------------------------------------------


def one_layer(rng, variant):
    matrix = rng.normal(0, 0.1, (64, 10)).astype(np.float32)
    return mc.Sequential((mc.Flatten(), mc.Dense(matrix, np.zeros(10, np.float32))))


def test_the_experiment_is_what_it_says(monkeypatch):
    few = {
        "one scale": {f"int{bits}": partial(mc.quantize, num_bits=bits) for bits in (8, 4, 3)},
        "low rank, int8": {
            "rank 1/2 int8": experiment.METHODS["low rank, int8"]["rank 1/2 int8"],
        },
        "too large": {"8 bits a channel": partial(mc.quantize, num_bits=8, axis=-1)},
    }
    monkeypatch.setattr(experiment, "METHODS", few)
    data = setup("digits", mc.load_digits, epochs=2)._replace(network=one_layer)
    found = searched(data, max_bytes="20%", images=100)
    assert found.dense_bytes == 2600
    assert found.result.best.bytes <= found.max_bytes == 520
    assert len(mc.storage.dumps(found.result.model)) == found.result.best.bytes
    assert found.test_accuracy == mc.accuracy(found.result.model, *mc.load_digits("test"))
    assert [row.method for row in found.uniform] == ["one scale", "low rank, int8"]
    for row in found.uniform:
        assert row.bytes <= 520
        assert found.result.best.loss <= row.loss  # it is one of the plans
    lines = format_search(found).splitlines()
    assert lines[0].startswith("    layer 1: ")
    assert set(lines[3]) == {"-"}
    assert max(map(len, lines[2:8])) == len(lines[3])
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("text", ["x", "10 %%", "-5", "-5%", "3.5", "1/0", "", True, None])
def test_a_size_is_bytes_or_a_share(text):
    with pytest.raises(mc.CompressionError, match="max_bytes must be a number of bytes or like"):
        searched(setup("digits", mc.load_digits), max_bytes=text)


def test_a_share_is_rounded_down():
    assert [share_of(text, 999) for text in ("10%", "0.1%", "100%", "12", 12)] == [
        99,
        0,
        999,
        12,
        12,
    ]
