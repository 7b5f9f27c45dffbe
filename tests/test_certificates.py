"""Certificates hold at every vertex and sample of tiny networks, exactly, and are tight there.

The networks have small integers as weights and are looked at on dyadic inputs, so that float64
computes their outputs without any rounding: the truth is exact.
"""

import dataclasses
import itertools

import numpy as np
import pytest
from budgets import at_most
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import minicompress as mc
from minicompress.certify import following, zonotope
from minicompress.certify.certificates import (
    ball_certificate,
    ball_certificates,
    domain_certificate,
)
from minicompress.certify.float_error import Values, float_error


def integers(*shape, most=2):
    return npst.arrays(
        np.float64, shape, elements=st.integers(-most, most).map(float), fill=st.nothing()
    )


def mlp(parts):
    (w1, b1), (w2, b2), (w3, b3) = parts
    return mc.Sequential(
        (mc.Dense(w1, b1), mc.ReLU(), mc.Dense(w2, b2), mc.nn.LeakyReLU(0.5), mc.Dense(w3, b3))
    )


def cnn(parts):
    (k, b), (w, c) = parts
    return mc.Sequential(
        (
            mc.Conv2D(k, b, padding=((0, 1), (1, 0))),
            mc.ReLU(),
            mc.MaxPool2D(2, stride=1),
            mc.AvgPool2D((1, 2)),
            mc.Flatten(),
            mc.Dropout(0.5),
            mc.Dense(w, c),
        )
    )


NETWORKS = {
    "mlp": (mlp, [((2, 3), (3,)), ((3, 3), (3,)), ((3, 2), (2,))], (2,)),
    "cnn": (cnn, [((2, 2, 1, 2), (2,)), ((4, 3), (3,))], (3, 3, 1)),
}


@st.composite
def pairs(draw, near=True):
    """Two networks of one form, the second near the first or not, and an input."""
    name = draw(st.sampled_from(list(NETWORKS)))
    make, shapes, shape = NETWORKS[name]
    parts = [[draw(integers(*s)) for s in layer] for layer in shapes]
    steps = [[draw(integers(*s, most=1)) for s in layer] for layer in shapes]
    size = draw(st.sampled_from([0.0, 0.25, 1.0, 4.0]))
    moved = [
        [a + size * d for a, d in zip(*layers, strict=True)]
        for layers in zip(parts, steps, strict=True)
    ]
    return make(parts), make(moved), draw(integers(*shape))


def points(x, eps, clip=None):
    """The center, corners (some of them), and a few points in between: dyadic all."""
    signs = list(itertools.islice(itertools.product([-1.0, 1.0], repeat=x.size), 64))
    signs += [
        ([0.0] * x.size),
        ([0.5, -0.25, 1.0] * x.size)[: x.size],
        ([-1.0, 0.5] * x.size)[: x.size],
    ]
    moved = x + eps * np.array(signs).reshape(-1, *x.shape)
    return moved if clip is None else np.clip(moved, *clip)


def law_contains(certify, f, g, x, eps, clip=None):
    """Every point of the ball has its difference within the bounds, and classes as promised."""
    certificate = certify(f, g, x, eps=eps, clip=clip)
    ball = points(x, eps, clip)
    yf, yg = f(ball), g(ball)
    assert (certificate.lower <= yg - yf).all()
    assert (yg - yf <= certificate.upper).all()
    assert certificate.bound >= np.abs(yg - yf).max()
    if certificate.same_class:
        winners = {int(c) for y in (yf, yg) for c in y.argmax(1)}
        assert len(winners) == 1


def law_encloses(f, g, x, eps, most):
    """The zonotopes behind the last layer contain f, g - f and g at every point of the ball."""
    inside = following.follow(f, g, x[None] - eps, x[None] + eps, most)
    ball = points(x, eps)
    yf, yg = f(ball), g(ball)
    for found, values in (
        (inside.f, yf),
        (inside.d, yg - yf),
        (inside.f.add(inside.d), yg),
    ):
        low, high = found.interval()
        assert (low <= values).all()
        assert (values <= high).all()


@given(pairs(), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([None, 0, 3]))
def test_the_zonotopes_contain_both_networks_and_their_difference(pair, eps, most):
    law_encloses(*pair, eps, most)


@given(pairs(), st.sampled_from([0.0, 0.125, 0.5, 2.0]), st.sampled_from([None, (-1.0, 1.0)]))
def test_the_ball_certificate_holds_everywhere(pair, eps, clip):
    law_contains(ball_certificate, *pair, eps, clip)


@given(pairs(), st.sampled_from([0.5, 2.0]), st.integers(0, 6))
def test_it_holds_for_any_number_of_symbols(pair, eps, most):
    def capped(f, g, x, **options):
        return ball_certificate(f, g, x, max_symbols=most, **options)

    law_contains(capped, *pair, eps)


def law_domain(certify, f, g, x, eps):
    certificate = certify(f, g, x - eps, x + eps)
    box = points(x, eps)
    yf, yg = f(box), g(box)
    assert (certificate.lower <= yg - yf).all()
    assert (yg - yf <= certificate.upper).all()
    d = yg - yf
    assert (d[:, None, :] - d[:, :, None] <= certificate.pairwise).all()
    kept = certificate.keeps(yf, box)
    assert (yf.argmax(1) == yg.argmax(1))[kept].all()


@given(pairs(), st.sampled_from([0.0, 0.5, 2.0]))
def test_the_domain_certificate_keeps_only_what_is_kept(pair, eps):
    law_domain(domain_certificate, *pair, eps)


def law_point(certify, f, g, x):
    """At eps = 0 the bounds are the difference, up to the rounding of the analysis itself."""
    certificate = certify(f, g, x, eps=0.0)
    truth = (g(x[None]) - f(x[None]))[0]
    assert (np.abs(certificate.lower - truth) <= 2.0**-35).all()
    assert (np.abs(certificate.upper - truth) <= 2.0**-35).all()


@given(pairs())
def test_at_a_point_it_is_the_difference(pair):
    law_point(ball_certificate, *pair)


def law_equal(certify, f, x, eps):
    certificate = certify(f, f, x, eps=eps, arithmetic="real")
    assert certificate.lower.tolist() == [0.0] * len(certificate.lower)
    assert certificate.upper.tolist() == [0.0] * len(certificate.upper)


@given(pairs(), st.sampled_from([0.0, 0.5, 2.0]))
def test_a_network_is_not_apart_from_itself(pair, eps):
    law_equal(ball_certificate, pair[0], pair[2], eps)


@given(pairs(), st.sampled_from([0.125, 0.5]))
def test_without_a_bend_the_bound_is_reached(pair, eps):
    """Affine networks are followed exactly: some corner has the difference that is the bound."""
    f, g, x = pair

    def straight(model):
        return mc.Sequential(
            tuple(
                layer
                for layer in model.layers
                if not isinstance(layer, mc.ReLU | mc.nn.LeakyReLU | mc.MaxPool2D | mc.AvgPool2D)
            )
        )

    if isinstance(f.layers[0], mc.Conv2D):
        return
    f, g = straight(f), straight(g)
    certificate = ball_certificate(f, g, x, eps=eps)
    ball = x + eps * np.array(list(itertools.product([-1.0, 1.0], repeat=x.size)))
    d = g(ball) - f(ball)
    np.testing.assert_allclose(certificate.upper, d.max(0), atol=2.0**-35, rtol=0)
    np.testing.assert_allclose(certificate.lower, d.min(0), atol=2.0**-35, rtol=0)


@given(pairs(), st.sampled_from([0.25, 1.0]))
def test_a_batch_is_its_inputs_one_by_one(pair, eps):
    f, g, x = pair
    batch = np.stack([x, -x, x + 1])
    together = ball_certificates(f, g, batch, eps=eps, batch_size=2)
    for one, point in zip(together, batch, strict=True):
        alone = ball_certificate(f, g, point, eps=eps)
        np.testing.assert_allclose(one.lower, alone.lower, atol=2.0**-30)
        np.testing.assert_allclose(one.upper, alone.upper, atol=2.0**-30)
        assert one.same_class == alone.same_class


def digits_pair():
    x, y = mc.load_digits("train")
    rng = np.random.default_rng(0)
    f, _ = mc.fit(
        mc.digits_cnn(rng), x, y, optimizer=mc.adam(3e-3), epochs=2, batch_size=32, rng=rng
    )
    weights = [p["weight"] for p in mc.nn.parameters(f) if "weight" in p]
    quantized = iter(mc.decode(mc.quantize(w, num_bits=8, axis=-1).rep) for w in weights)
    changed = tuple(
        {"weight": next(quantized)} if "weight" in p else {} for p in mc.nn.parameters(f)
    )
    return f, mc.nn.with_parameters(f, changed), x[:6]


def test_no_attack_beats_a_certificate_and_none_is_far_from_it():
    f, g, x = digits_pair()
    for eps in (0.0, 1 / 64):
        certificates = ball_certificates(f, g, x, eps=eps, clip=(0.0, 1.0))
        found = attack(f, g, x, eps)
        limits = np.array([c.bound for c in certificates])
        assert (found <= limits).all()
        assert np.median(limits / found) < 2.0


def attack(f, g, x, eps):
    """The largest difference that sign gradients and corners find, input by input."""
    best = np.zeros(len(x))
    rng = np.random.default_rng(0)
    starts = [x] + [np.clip(x + eps * rng.choice([-1, 1], x.shape), 0, 1) for _ in range(20)]
    for start in starts:
        for k, sign in itertools.product(range(10), (1, -1)):
            at = start.astype(np.float32)
            (yf, back_f), (yg, back_g) = (mc.nn.vjp(m, at) for m in (f, g))
            best = np.maximum(best, np.abs(yg - yf).max(1))
            seed = np.zeros_like(yf)
            seed[:, k] = sign
            step = np.sign(back_g(seed)[0] - back_f(seed)[0])
            at = np.clip(x + eps * step, 0, 1).astype(np.float32)
            best = np.maximum(best, np.abs(g(at) - f(at)).max(1))
    return best


def as_float32(model):
    layers = []
    for layer in model.layers:
        if hasattr(layer, "weight"):
            arrays = {n: a.astype(np.float32) for n, a in layer.parameters().items()}
            layer = dataclasses.replace(layer, **arrays)
        layers.append(layer)
    return mc.Sequential(tuple(layers))


@given(pairs(), st.sampled_from([0.0, 0.5]))
def test_the_arithmetic_of_float32_is_within_its_certificate(pair, eps):
    """Thirds instead of integers, so that float32 rounds everywhere; float64 is the real one."""
    f, g, x = pair
    thirds = [
        dataclasses.replace(layer, weight=np.float32(1 / 3) * layer.weight.astype(np.float32),
                            bias=np.float32(1 / 7) * layer.bias.astype(np.float32))
        if hasattr(layer, "weight") else layer
        for layer in f.layers
    ]  # fmt: skip
    f, g, x = mc.Sequential(tuple(thirds)), as_float32(g), (x / 3).astype(np.float32)
    certificate = ball_certificate(f, g, x, eps=eps)
    ball = points(x, eps).astype(np.float32)
    # Points of float32 may lie a rounding outside of the ball: of 1e-6, which moves them by 1e-4.
    slack = 1e-4 if eps else 0.0
    apart = g(ball).astype(np.float64) - f(ball)
    assert (certificate.lower - slack <= apart).all()
    assert (apart <= certificate.upper + slack).all()
    real = ball_certificate(f, g, x, eps=eps, arithmetic="real")
    assert (certificate.lower <= real.lower).all()
    assert (real.upper <= certificate.upper).all()


def law_evaluation(error_of, layer, x):
    """What float32 computes is within the bound of what float64 computes from the same numbers."""
    computed = layer.forward(x).astype(np.float64)
    wide = dataclasses.replace(
        layer, **{n: a.astype(np.float64) for n, a in layer.parameters().items()}
    )
    exact = wide.forward(x.astype(np.float64))  # to 1e-9 of what float32 is off by
    values = Values(*[x.astype(np.float64)] * 2, np.zeros(x.shape))
    bound = error_of(layer, [values], x.dtype)
    assert (np.abs(computed - exact) <= bound * (1 + 1e-6)).all()


def evaluations():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    yield mc.Dense(normal(300, 5), normal(5)), normal(4, 300)
    yield mc.Conv2D(normal(5, 5, 3, 4), normal(4), stride=2, padding="same"), normal(2, 9, 9, 3)
    yield mc.Conv2D(normal(3, 3, 32, 32), normal(32)), normal(2, 10, 10, 32)  # by Winograd's path
    yield mc.AvgPool2D(3, 2), normal(2, 9, 9, 3)
    yield mc.GlobalAvgPool2D(), normal(2, 9, 9, 3)
    yield mc.nn.LeakyReLU(0.3), normal(2, 9)


def test_every_layer_computes_within_its_bound():
    for layer, x in evaluations():
        law_evaluation(float_error, layer, x)


def test_digits_in_float32_are_hardly_less_certain():
    f, g, x = digits_pair()
    real, single = (
        ball_certificates(f, g, x, eps=1 / 64, arithmetic=a) for a in ("real", "native")
    )
    for a, b in zip(real, single, strict=True):
        assert a.bound < b.bound < a.bound + 0.01


ONE = mc.Sequential((mc.Dense(np.ones((2, 2))),))


def whole():
    return domain_certificate(ONE, ONE, np.zeros(2), np.ones(2))


BAD = [
    (lambda: ball_certificate(ONE, mc.Sequential(()), np.ones(2), eps=1.0), "same types of layers"),
    (lambda: ball_certificate(ONE, ONE, np.ones(2), eps=-1.0), "eps must be a number"),
    (lambda: ball_certificate(ONE, ONE, np.array([np.nan, 1]), eps=1.0), "x must be finite"),
    (lambda: domain_certificate(ONE, ONE, np.ones(2), np.zeros(2)), "lo must not be above hi"),
    (
        lambda: ball_certificate(*[mc.Sequential((mc.Softmax(),))] * 2, np.ones(2), eps=1.0),
        r"layer 0 \(Softmax\): no certificate follows",
    ),
    (
        lambda: ball_certificate(
            ONE, mc.Sequential((mc.Dense(np.ones((2, 3))),)), np.ones(2), eps=1.0
        ),
        "weights of shapes",
    ),
    (
        lambda: ball_certificate(ONE, as_float32(ONE), np.ones(2), eps=1.0),
        "f and g must be of one dtype",
    ),
    (
        lambda: ball_certificate(ONE, ONE, np.ones(2), eps=1.0, arithmetic="int8"),
        "arithmetic must be one of native, real",
    ),
    (
        lambda: whole().keeps(np.ones((1, 3)), np.ones((1, 2))),
        "a column for each class",
    ),
    (lambda: whole().keeps(np.ones((2, 2)), np.ones((1, 2))), "a row for each of x"),
    (lambda: whole().covers(np.ones((1, 3))), "x must be rows of shape"),
    (lambda: domain_certificate(ONE, ONE, np.ones(2), np.array([np.nan, 1])), "hi must be finite"),
    *(
        (lambda c=clip: ball_certificate(ONE, ONE, np.ones(2), eps=1.0, clip=c), "clip must be")
        for clip in ((1.0, 0.0), (np.nan, 1.0), (0.0, np.nan), (0.0,), 1.0)
    ),
    (
        lambda: ball_certificate(*[mc.Sequential((mc.ReLU(),))] * 2, np.ones((2, 2)), eps=1.0),
        "one number per class",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_cannot_be_certified_is_refused(call, message):
    with pytest.raises(mc.CompressionError, match=message):
        call()


# Wrong zonotopes, each by one wrong piece ---------------------------------------------------------


def halved_reach(patch):
    right = zonotope.Zonotope.reach
    patch.setattr(zonotope.Zonotope, "reach", lambda z: right(z) / 2)


def no_change_of_weights(patch):
    right = zonotope.Zonotope.add
    patch.setattr(
        zonotope.Zonotope,
        "add",
        lambda a, b: a if a.generators.shape == b.generators.shape else right(a, b),
    )


def flipped_relaxation(patch):
    right = following._relaxed
    patch.setattr(following, "_relaxed", lambda lo, hi: (right(lo, hi)[0], -right(lo, hi)[1]))


def no_gap(patch):
    right = following._relaxed
    patch.setattr(following, "_relaxed", lambda lo, hi: (right(lo, hi)[0], 0 * right(lo, hi)[1]))


def always_on(patch):
    patch.setattr(following, "_relaxed", lambda lo, hi: (np.ones_like(lo), np.zeros_like(lo)))


def boxes_dropped(patch):
    right = following._capped

    def capped(values, most):
        values = right(values, most)
        return {v: p.each(lambda z: z._replace(box=0 * z.box)) for v, p in values.items()}

    patch.setattr(following, "_capped", capped)


def first_of_window(patch):
    patch.setattr(
        following,
        "_max_pool",
        lambda layer, pair, most: pair.each(lambda z: z.moved(lambda v: v[:, :-1, :-1])),
    )


def bent():
    """A network and its neighbour whose every neuron is unstable on the ball."""
    kernel = np.array([1.0, -1.0, 1.0, 2.0]).reshape(2, 2, 1, 1) * np.array([1.0, -1.0])
    head = np.array([[1.0, -1, 2], [2, 1, -1], [-1, 1, 1], [1, 2, -2]])
    f = cnn([(kernel, np.zeros(2)), (head, np.zeros(3))])
    g = cnn([(kernel * 1.25, np.array([0.25, -0.5])), (head, np.zeros(3))])
    return f, g, np.array([0.0, 1, -1, 1, 0, -1, 2, 1, -2]).reshape(3, 3, 1)


def law_all(certify):
    for eps in (0.5, 2.0):
        law_encloses(*bent(), eps, None)
        law_contains(certify, *bent(), eps)
        law_contains(lambda f, g, x, **o: certify(f, g, x, max_symbols=2, **o), *bent(), eps)


PLANTED = {
    "halved radius": halved_reach,
    "the change of the weights dropped": no_change_of_weights,
    "flipped sign of the relaxation": flipped_relaxation,
    "the gap of the relaxation dropped": no_gap,
    "every ReLU on": always_on,
    "boxed symbols dropped": boxes_dropped,
    "the first of the window for its maximum": first_of_window,
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name, monkeypatch):
    law_all(ball_certificate)
    PLANTED[name](monkeypatch)
    with pytest.raises(AssertionError):
        law_all(ball_certificate)


@at_most(40)
@given(pairs(), st.sampled_from([0.125, 0.5]))
def test_a_larger_ball_has_no_smaller_bound(pair, eps):
    small, large = (ball_certificate(*pair, eps=e) for e in (eps, 2 * eps))
    assert large.bound >= small.bound * (1 - 2.0**-40)
