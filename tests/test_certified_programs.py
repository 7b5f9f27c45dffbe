"""Certificates of programs: branches, joins and all layers, against exact values and floats."""

from fractions import Fraction

import numpy as np
import pytest
from budgets import at_most
from certified_programs import ALGEBRAIC, SMOOTH, moved, program_pairs, rational
from hypothesis import given
from hypothesis import strategies as st

import minicompress as mc
from minicompress.certify import (
    attack,
    ball_certificate,
    curves,
    domain_certificate,
    following,
    output_bound,
    zonotope,
)
from minicompress.norms import fro_upper
from minicompress.representation import dtype_of
from minicompress.testing import models

FLOATS = (np.float16, np.float32, np.float64)


def points(certificate, dtype):
    """Corners of the box and points within, of the dtype, that lie in it."""
    low, high = certificate.low, certificate.high
    rng = np.random.default_rng(0)
    shares = np.concatenate([rng.integers(0, 2, (6, *low.shape)), rng.random((4, *low.shape))])
    inside = np.clip(low + (high - low) * shares, low, high).astype(dtype)
    return inside[certificate.covers(inside)]


def law_real(f, g, x, eps, most):
    """Every exact difference is within the bounds, and every class is as promised."""
    certificate = ball_certificate(f, g, x, eps=eps, max_symbols=most, arithmetic="real")
    ball = points(certificate, x.dtype)
    yf, yg = rational(f, ball), rational(g, ball)
    for difference in yg - yf:
        for low, value, high in zip(certificate.lower, difference, certificate.upper, strict=True):
            assert low <= value <= high
    if certificate.same_class:
        assert len({row.argmax() for y in (yf, yg) for row in y}) == 1


@np.errstate(all="ignore")
def law_floats(f, g, x, eps, most):
    """Every difference of what runs is within the bounds; overflow has no bounds."""
    certificate = ball_certificate(f, g, x, eps=eps, max_symbols=most)
    ball = points(certificate, x.dtype)
    runs = [(f(ball), g(ball)), *((f(row[None]), g(row[None])) for row in ball[:3])]
    for yf, yg in runs:
        difference = yg.astype(np.float64) - yf
        if not np.isfinite(difference).all():
            assert certificate.bound == np.inf
            return
        assert (certificate.lower <= difference).all()
        assert (difference <= certificate.upper).all()
        if certificate.same_class:
            assert len({*yf.argmax(1), *yg.argmax(1)}) == 1
    if eps and np.isfinite(certificate.bound):
        rng = np.random.default_rng(0)
        found = attack(f, g, x[None], eps=eps * 0.99, rng=rng, starts=1, steps=1)
        assert found[0] <= certificate.bound


def extremes(dtype):
    return program_pairs(dtype, smooth=True, extreme=True)


EPS = st.sampled_from([0.0, 0.125, 1.0])
MOST = st.sampled_from([None, 0, 3, 8])


@at_most(40)
@given(program_pairs(), EPS, MOST)
def test_no_exact_value_beats_a_certificate(pair, eps, most):
    law_real(*pair, eps, most)


@at_most(40)
@given(st.sampled_from(FLOATS).flatmap(lambda t: program_pairs(t, smooth=True)), EPS, MOST)
def test_no_value_that_runs_beats_a_certificate(pair, eps, most):
    law_floats(*pair, eps, most)


@at_most(40)
@given(st.sampled_from(FLOATS).flatmap(extremes), EPS, MOST)
def test_no_value_beats_a_certificate_from_underflow_to_overflow(pair, eps, most):
    law_floats(*pair, eps, most)


@at_most(40)
@given(program_pairs(extreme=True), EPS, MOST)
def test_no_exact_value_beats_one_from_underflow_to_overflow(pair, eps, most):
    law_real(*pair, eps, most)


@at_most(40)
@given(models((3, 2, 2)), EPS)
def test_a_drawn_program_is_certified_or_refused_by_name(model, eps):
    """Against itself with its weights decoded."""
    dtype = next((dtype_of(r) for p in mc.nn.parameters(model) for r in p.values()), np.float64)
    x = np.linspace(-1, 1, 12).reshape(3, 2, 2).astype(dtype)
    if len(model.outputs) == 1:
        model = mc.Sequential((model, mc.Flatten()))
    types = {type(layer).__name__ for layer in model.layers}
    why = [name for name in ("Softmax", "LocalResponseNorm") if name in types]
    why = [rf"\({name}\)" for name in why] if len(model.outputs) == 1 else ["must have one output"]
    if why:
        with pytest.raises(mc.CompressionError, match="|".join(why)):
            law_floats(model, mc.nn.decoded(model), x, eps, 10)
    else:
        law_floats(model, mc.nn.decoded(model), x, eps, 10)


@at_most(40)
@given(program_pairs(smooth=True), EPS)
def test_a_domain_keeps_only_what_is_kept(pair, eps):
    f, g, x = pair
    certificate = domain_certificate(f, g, x - eps, x + eps, max_symbols=40)
    ball = points(certificate, x.dtype)
    yf = f(ball)
    assert (yf.argmax(1) == g(ball).argmax(1))[certificate.keeps(yf, ball)].all()


@at_most(40)
@given(program_pairs(smooth=True), EPS, MOST)
def test_a_network_is_not_apart_from_itself(pair, eps, most):
    f, _, x = pair
    certificate = ball_certificate(f, f, x, eps=eps, max_symbols=most, arithmetic="real")
    assert certificate.bound == 0
    shape = x.shape
    assert output_bound(f, f, radius=1.0, input_shape=shape) == 0


def law_norms(f, g, x):
    limit = output_bound(f, g, radius=fro_upper(x), input_shape=x.shape)
    if limit == np.inf:
        return
    for sign in (1, -1):
        (difference,) = rational(g, sign * x[None]) - rational(f, sign * x[None])
        assert sum(v * v for v in difference) <= Fraction(limit) ** 2


@at_most(40)
@given(program_pairs() | program_pairs(extreme=True))
def test_no_input_beats_the_bound_by_norms(pair):
    law_norms(*pair)


@at_most(30)
@given(program_pairs(smooth=True))
def test_no_smooth_program_beats_the_bound_by_norms(pair):
    """Both are run in float64; each is right to 1e-6 of sizes below 1e8, or of its own size."""
    f, g, x = pair
    limit = output_bound(f, g, radius=fro_upper(x), input_shape=x.shape)
    yf, yg = f(x[None]), g(x[None])
    assert np.linalg.norm(yg - yf) <= limit + 1e-9 * (1 + np.abs(yf).max() + np.abs(yg).max())


def test_every_kind_of_layer_is_drawn():
    found = set()

    @at_most(200)
    @given(program_pairs(smooth=True))
    def collect(pair):
        found.update(type(layer).__name__ for layer in pair[0].layers)

    collect()
    assert len(found) > 12


# Tight -------------------------------------------------------------------------------------------


def interval(network, low, high):
    """Bounds of a network alone: of its difference from one of zeros."""
    found = following.follow(network, network, low[None], high[None], None)
    return tuple(end[0] for end in found.f.interval())


def near(found, *wanted):
    for end, value in zip(found, wanted, strict=True):
        np.testing.assert_allclose(end, value, rtol=0, atol=2.0**-30)


def law_shared():
    """x - x is 0, x + x twice x, and x x is never negative."""
    minus, one, two = mc.Dense(-np.eye(2)), np.ones(2), np.full(2, 2.0)
    near(interval(mc.Residual(minus), -one, two), 0 * one, 0 * one)
    near(interval(mc.Network((mc.Add(),), ((0, 0),), (1,)), -one, two), -2 * one, 2 * two)
    near(interval(mc.Network((mc.Multiply(),), ((0, 0),), (1,)), -one, one), 0 * one, one)


def test_what_branches_share_cancels():
    law_shared()


def law_one_list():
    """The gap of one branch's ReLU is not that of the other's: relu(x) - relu(y) + y / 2 is 1."""

    def only(*column):
        return mc.Dense(np.array(column)[:, None])

    branches = (
        (only(1.0, 0.0), mc.ReLU()),
        (only(0.0, 1.0), mc.ReLU(), mc.Dense(-np.eye(1))),
        only(0.0, 0.5),
    )
    low, high = interval(mc.Parallel(branches, mc.Add()), -np.ones(2), np.ones(2))
    assert low <= -0.5  # at (-1, 1)
    assert high >= 1  # at (1, 0)


def test_every_layer_has_symbols_of_its_own():
    law_one_list()


def difference_of(layer, other, low, high):
    f, g = mc.Sequential((layer,)), mc.Sequential((other,))
    c = domain_certificate(f, g, low, high, arithmetic="real")
    return c.lower, c.upper


ONE = np.ones(1)
REACHED = {
    "batch norm": (
        mc.BatchNorm(ONE, ONE, ONE, 3 * ONE, 1.0), mc.BatchNorm(2 * ONE, ONE, ONE, 3 * ONE, 1.0),
        (-2.0, 1.0),
    ),
    "prelu": (mc.nn.PReLU(-ONE), mc.nn.PReLU(-2 * ONE), None),
}  # fmt: skip


def test_a_batch_norm_is_exact():
    a, b, (low, high) = REACHED["batch norm"]
    near(difference_of(a, b, -3 * ONE, 3 * ONE), low * ONE, high * ONE)


def test_a_slope_that_changes_is_reached_below_zero():
    a, b, _ = REACHED["prelu"]
    near(difference_of(a, b, -3 * ONE, -1 * ONE), ONE, 3 * ONE)
    near(difference_of(a, b, ONE, 3 * ONE), 0 * ONE, 0 * ONE)


@pytest.mark.parametrize("layer", ALGEBRAIC + SMOOTH, ids=repr)
@pytest.mark.parametrize("ends", [(-5.0, -4.0), (-4.0, 0.5), (-2.0, 3.0), (0.0, 20.0), (7.0, 9.0)])
def test_a_function_reaches_both_ends_of_what_lies_around_its_line(layer, ends):
    """Piecewise linear and quadratic ones reach it up to rounding, smooth ones to a share."""
    curve = curves.curve_of(layer)
    if curve is None:
        return
    low, high = (np.array([end]) for end in ends)
    line = curves.enclosed(curve, low, high)
    z = np.linspace(low, high, 20001)
    z = np.unique(np.concatenate([z.ravel(), np.clip(curve.knots, low, high)]))[:, None]
    rest = (curve.value(z) - line.slope * z - line.shift).ravel()
    assert rest.max() <= line.gap
    assert -rest.min() <= line.gap
    share = 0.0 if isinstance(layer, mc.nn.Clip | mc.nn.HardSigmoid) else 0.05
    assert 2 * line.gap <= (rest.max() - rest.min()) * (1 + share) + 0.05 * (share > 0) + 1e-6
    least, most = curves.slopes(curve, low, high)
    steps = np.diff(curve.value(z), axis=0) / np.diff(z, axis=0)
    assert least - 1e-9 <= steps.min() <= least + 0.02
    assert most - 0.02 <= steps.max() <= most + 1e-9


def law_pools():
    """Padding is not 0: the maximum of negative numbers is negative, in every window."""
    for pool in (
        mc.MaxPool2D(2, 1, padding=1),
        mc.MaxPool2D(3, 2, "same"),
        mc.MaxPool2D(2, ceil_mode=True),
    ):
        f = mc.Sequential((pool, mc.Flatten()))
        low, high = np.full((3, 3, 1), -5.0), np.full((3, 3, 1), -2.0)
        ends = interval(f, low, high)
        for truth in (f(low[None])[0], f(high[None])[0]):
            assert (ends[0] <= truth).all()
            assert (truth <= ends[1]).all()
        moving = low.copy()
        moving[1, 1] = 0  # one pixel moves above all others: both ends are reached
        near(interval(f, moving, moving), f(moving[None])[0], f(moving[None])[0])


def test_padding_is_never_the_maximum():
    law_pools()


def law_capped():
    """What both branches have is the larger share, and is kept: x - x cancels."""
    f = mc.Parallel(((mc.Dense(np.eye(4)),), (mc.Dense(-np.eye(4)),)), mc.Add())
    x = np.array([8.0, 4.0, 0.1, 0.1])
    values = following.follow(f, f, -x[None], x[None], 2)
    np.testing.assert_allclose(values.f.interval()[1][0], [0, 0, 0.2, 0.2], atol=1e-9)


def test_a_cap_keeps_what_living_values_share():
    law_capped()


# Refused -----------------------------------------------------------------------------------------

LINE = mc.Dense(np.eye(2))


def pair_of(*layers):
    return (mc.Sequential(layers),) * 2


BAD = {
    "outputs": (
        (mc.Network((LINE, mc.ReLU()), ((0,), (0,)), (1, 2)),) * 2,
        "must have one output, not 2",
    ),
    "reads": (
        (
            mc.Network((LINE, LINE, mc.Add()), ((0,), (1,), (0, 2)), (3,)),
            mc.Network((LINE, LINE, mc.Add()), ((0,), (1,), (1, 2)), (3,)),
        ),
        r"layer 2 \(Add\).*in g it reads values \(1, 2\), not \(0, 2\)",
    ),
    "options": (
        (mc.Sequential((mc.nn.Clip(0, 6),)), mc.Sequential((mc.nn.Clip(0, 5),))),
        r"layer 0 \(Clip\).*differ in their options",
    ),
    "softmax": (pair_of(mc.Softmax()), r"layer 0 \(Softmax\): no certificate follows"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_followed_is_refused_by_name(name):
    (f, g), message = BAD[name]
    with pytest.raises(mc.CompressionError, match=message):
        ball_certificate(f, g, np.ones(2), eps=1.0)


def test_a_normalization_across_channels_is_refused_by_name():
    f = mc.Sequential((mc.nn.LocalResponseNorm(3), mc.Flatten()))
    with pytest.raises(mc.CompressionError, match=r"\(LocalResponseNorm\): no certificate"):
        ball_certificate(f, f, np.ones((1, 1, 2)), eps=1.0)
    with pytest.raises(mc.CompressionError, match=r"\(LocalResponseNorm\): there is no bound"):
        output_bound(f, f, radius=1.0, input_shape=(1, 1, 2))


def test_an_attack_wants_one_number_per_class():
    f = mc.Sequential((mc.ReLU(),))
    with pytest.raises(mc.CompressionError, match="one number per class"):
        attack(f, f, np.ones((1, 2, 2, 1)), eps=1.0, rng=np.random.default_rng(0))


# The engine's functions --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_engine_computes_functions_as_well_as_is_assumed(dtype):
    """Against long double, over all magnitudes: 20 u, and the smallest normal number."""
    info = np.finfo(dtype)
    magnitudes = np.exp(np.linspace(np.log(1e-30), np.log(800), 40001))
    z = np.concatenate([magnitudes, -magnitudes]).astype(dtype)
    wide = z.astype(np.longdouble)
    logistic = 1 / (1 + np.exp(-wide))
    truths = {"Sigmoid": logistic, "Tanh": np.tanh(wide), "SiLU": wide * logistic}
    for layer in SMOOTH:
        truth = truths[type(layer).__name__]
        wrong = np.abs(layer.forward(z) - truth)
        allowed = 10 * info.eps * np.abs(truth) + info.tiny * (1 + np.abs(wide))
        assert (wrong <= allowed).all()


# Wrong certificates, each by one wrong piece -----------------------------------------------------


def no_product_term(patch):
    right = zonotope.Zonotope.times
    patch.setattr(zonotope.Zonotope, "times", lambda a, b: (right(a, b)[0], 0 * right(a, b)[1]))


def squares_forgotten(patch):
    right = zonotope.Zonotope.times

    def times(a, b):
        product, off = right(a, b)
        return product._replace(center=a.center * b.center), off

    patch.setattr(zonotope.Zonotope, "times", times)


def symbols_forgotten(patch):
    def added(x, y):
        return following.Pair(*(apart(a, b) for a, b in zip(x, y, strict=True)))

    def apart(a, b):
        return zonotope.Zonotope(a.center + b.center, 0 * a.generators, a.reach() + b.reach())

    patch.setattr(following, "_added", added)


def symbols_of_others(patch):
    patch.setattr(following, "_over_all", lambda values, reads: [values[v] for v in reads])


def padded_with_zeros(patch):
    def pool(layer, pair, most):
        def padded(v):
            g = layer.geometry(v.shape[1:3])
            return np.pad(v, ((0, 0), *g.pads, (0, 0)))

        inner = mc.MaxPool2D(layer.window, layer.stride)
        return right(inner, pair.each(lambda z: z.moved(padded)), most)

    right = following._max_pool
    patch.setattr(following, "_max_pool", pool)


def ends_alone(patch):
    right = curves._pieces

    def pieces(curve, low, high):
        points, least, most = right(curve, low, high)
        return points[[0, -1]], least[:1], most[:1]

    patch.setattr(curves, "_pieces", pieces)


def ordered_apart(patch):
    right = following._capped

    def capped(values, most):
        found = {}
        for value, pair in values.items():
            found |= right({value: pair}, most)
        return found

    patch.setattr(following, "_capped", capped)


def slope_of_f(patch):
    right = following._prelu
    patch.setattr(following, "_prelu", lambda a, b, pair, most: right(a, a, pair, most))


def unchanged_norm(patch):
    right = following.norm_pair
    patch.setattr(following, "norm_pair", lambda a, b: right(a, a))


def law_products():
    rng = np.random.default_rng(1)
    branches = [mc.Dense(rng.integers(-2, 3, (3, 2)) / 1) for _ in range(2)]
    f = mc.Parallel(branches, mc.Multiply())
    for size in (0.5, 1.0):
        law_real(
            f,
            moved(f, size, lambda shape: rng.integers(-8, 9, shape) / 8),
            np.array([1.0, -1, 0.5]),
            2.0,
            None,
        )
    law_shared()


def law_functions():
    for layer in ALGEBRAIC + SMOOTH:
        f, g = mc.Sequential((layer,)), mc.Sequential((layer,))
        low, high = np.array([-6.0]), np.array([6.0])
        ends = interval(f, low, high)
        y = f(np.linspace(low, high, 999))
        assert ends[0] <= y.min() + 1e-12
        assert y.max() - 1e-12 <= ends[1]
        assert g is not f


def law_norm_and_slope():
    for a, b, _ in REACHED.values():
        low, high = difference_of(a, b, -3 * ONE, 3 * ONE)
        x = np.linspace(-3, 3, 99)[:, None]
        difference = b.forward(x) - a.forward(x)
        assert low <= difference.min() + 1e-12
        assert difference.max() - 1e-12 <= high


def law_cap_of_branches():
    """Values that live at once keep the same symbols, whichever are the largest of each."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (300, 2))
    for _ in range(20):
        a, b = rng.integers(-2, 3, (2, 2, 2)) / 1
        f = mc.Residual(mc.Dense(a), mc.ReLU(), mc.Dense(b))
        ends = following.follow(f, f, -np.ones((1, 2)), np.ones((1, 2)), 2).f.interval()
        y = f(x)
        assert (ends[0][0] <= y.min(0)).all()
        assert (y.max(0) <= ends[1][0]).all()


PLANTED = {
    "a product without its last term": (no_product_term, law_products),
    "squares around 0": (squares_forgotten, law_products),
    "a sum that forgets what is shared": (symbols_forgotten, law_shared),
    "branches with each other's symbols": (symbols_of_others, law_one_list),
    "padding of zeros": (padded_with_zeros, law_pools),
    "functions without extrema": (ends_alone, law_functions),
    "values capped one by one": (ordered_apart, law_cap_of_branches),
    "g with the slopes of f": (slope_of_f, law_norm_and_slope),
    "g with the batch norm of f": (unchanged_norm, law_norm_and_slope),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name, monkeypatch):
    plant, law = PLANTED[name]
    law()
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        law()
