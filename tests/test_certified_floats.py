"""No input beats a certificate: neither in rational numbers nor in the floats that run.

Networks of every layer that is followed are drawn in all three dtypes, with weights from the
subnormal numbers to the edge of overflow. The truth of the real arithmetic is computed in
fractions, that of the floats by `apply`, once for the whole batch and once row by row.
"""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minicompress as mc
from minicompress.certify import certificates as equivalence
from minicompress.certify import float_error as evaluation
from minicompress.certify import following, pairs, zonotope
from minicompress.certify import lipschitz as bounds
from minicompress.certify.attacks import attack
from minicompress.certify.certificates import ball_certificates, domain_certificate
from minicompress.certify.lipschitz import output_bound
from minicompress.nn.kernels.windows import geometry
from minicompress.nn.layers import decoded_layer, plain_layers
from minicompress.norms import fro_upper
from minicompress.representation import LowRank

DTYPES = (np.float16, np.float32, np.float64)
exact = np.vectorize(Fraction, otypes=[object])


# The networks in rational numbers ----------------------------------------------------------------


def rational(model, x):
    """The outputs of real arithmetic for rows of floats."""
    values = exact(x.astype(np.float64))
    for layer in model.layers:
        for part in plain_layers(layer):
            values = rational_layer(part, values)
    return values


def rational_layer(layer, x):
    match layer:
        case mc.Dense():
            y = x @ exact(layer.weight.astype(np.float64))
            return y if layer.bias is None else y + exact(layer.bias.astype(np.float64))
        case mc.Conv2D():
            return rational_conv(layer, x)
        case mc.Flatten():
            return x.reshape(len(x), -1)
        case mc.Dropout():
            return x
        case mc.ReLU():
            return np.maximum(x, Fraction(0))
        case mc.nn.LeakyReLU():
            return np.maximum(x, x * Fraction(layer.negative_slope))
        case mc.GlobalAvgPool2D():
            return x.sum((1, 2)) / (x.shape[1] * x.shape[2])
    reduce = np.max if isinstance(layer, mc.MaxPool2D) else np.mean
    stride = layer.window if layer.stride is None else layer.stride
    g = geometry(x.shape[1:3], layer.window, stride, layer.padding)
    y = np.empty((len(x), *g.output, x.shape[3]), object)
    for i, j in np.ndindex(*g.output):
        (kh, kw), (sh, sw) = g.kernel, g.stride
        y[:, i, j] = reduce(x[:, i * sh : i * sh + kh, j * sw : j * sw + kw], axis=(1, 2))
    return y


def rational_conv(layer, x):
    weight = exact(layer.weight.astype(np.float64))
    g = geometry(x.shape[1:3], weight.shape[:2], layer.stride, layer.padding, layer.dilation)
    padded = np.pad(x, ((0, 0), *g.pads, (0, 0)), constant_values=Fraction(0))
    zero = np.full(weight.shape[3], Fraction(0), object)
    bias = zero if layer.bias is None else exact(layer.bias.astype(np.float64))
    y = np.empty((len(x), *g.output, weight.shape[3]), object)
    size = weight.shape[3] // layer.groups
    for i, j, o in np.ndindex(*g.output, weight.shape[3]):
        first = o // size * weight.shape[2]
        total = bias[o]
        for p, q, c in np.ndindex(*weight.shape[:3]):
            at = i * g.stride[0] + p * g.dilation[0], j * g.stride[1] + q * g.dilation[1]
            total = total + padded[:, at[0], at[1], first + c] * weight[p, q, c, o]
        y[:, i, j, o] = total
    return y


# Drawn networks ----------------------------------------------------------------------------------


def numbers(draw, dtype, shape, scale):
    """Small integers, thirds and zeros, each times a power of two that is drawn for the array."""
    whole = st.integers(-3, 3).map(float)
    thirds = st.integers(-9, 9).map(lambda n: n / 3)
    entries = [draw(whole | thirds) for _ in range(int(np.prod(shape)))]
    with np.errstate(all="ignore"):
        array = np.ldexp(np.array(entries).reshape(shape), scale).astype(dtype)
    top = np.finfo(dtype).max
    return np.clip(array, -top, top)


def scales(dtype):
    info = np.finfo(dtype)
    least = info.minexp - info.nmant
    extreme = st.sampled_from([least, least // 2, info.maxexp // 2, info.maxexp - 2])
    return st.integers(-2, 2) | st.integers(-2, 2) | extreme


def product(draw, dtype, scale, form):
    """A weight of rank 1 or 2 that runs as its factors."""
    shapes, subscripts = form
    half = (scale // 2, scale - scale // 2, 0)
    factors = [numbers(draw, dtype, s, e) for s, e in zip(shapes, half, strict=False)]
    return LowRank(tuple(factors), subscripts)


DENSE = ([(3, 2), (2, 3)], "ir,ro->io")
KERNELS = [
    ([(2, 2, 1, 1), (1, 2)], "hwir,ro->hwio"),
    ([(2, 1, 2), (2, 2, 2)], "hir,rwo->hwio"),
    ([(1, 1), (2, 2, 1, 2), (2, 2)], "ia,hwab,bo->hwio"),
]


@st.composite
def problems(draw, dtypes=DTYPES):
    """Two networks, inputs, and a radius: g is f moved, or drawn by itself, or f."""
    dtype = draw(st.sampled_from(dtypes))
    kind = draw(st.sampled_from(["near", "near", "far", "same"]))
    form = draw(st.sampled_from([dense_form, image_form]))
    f, g, shape = form(draw, dtype, kind)
    size = draw(st.integers(-2, 2) | scales(dtype))
    x = numbers(draw, dtype, (2, *shape), size)
    eps = draw(st.sampled_from([0.0, 0.25, 1.0])) * 2.0**size if size < 900 else 0.0
    return f, g, x, eps, draw(st.sampled_from([None, 0, 2]))


def moved(draw, dtype, kind, make):
    """An array of f, and the one of g."""
    scale = draw(scales(dtype))
    a = make(scale)
    if kind == "same":
        return a, a
    if kind == "far" or isinstance(a, LowRank):
        return a, make(scale)
    step = numbers(draw, dtype, a.shape, scale - draw(st.sampled_from([2, 8])))
    top = np.finfo(dtype).max
    with np.errstate(all="ignore"):
        return a, np.clip(a + step, -top, top).astype(dtype)


def dense_form(draw, dtype, kind):
    bends = [mc.ReLU(), mc.nn.LeakyReLU(draw(st.sampled_from([0.0, 0.3, 1e-9, 1.0])))]
    layers = []
    for i, o in ((2, 3), (3, 3), (3, 2)):

        def make(scale, i=i, o=o):
            if (i, o) == (3, 3) and draw(st.booleans()):
                return product(draw, dtype, scale, DENSE)
            return numbers(draw, dtype, (i, o), scale)

        weights = moved(draw, dtype, kind, make)
        biases = moved(draw, dtype, kind, lambda e, o=o: numbers(draw, dtype, (o,), e))
        layers.append([mc.Dense(w, b) for w, b in zip(weights, biases, strict=True)])
    return *(
        mc.Sequential((one, bends[0], two, bends[1], three))
        for one, two, three in zip(*layers, strict=True)
    ), (2,)


def image_form(draw, dtype, kind):
    form, plain = draw(st.sampled_from(KERNELS)), draw(st.booleans())
    options = draw(
        st.sampled_from(
            [{"padding": ((0, 1), (1, 0))}, {"padding": "same"}, {"dilation": (1, 2), "padding": 1}]
        )
    )

    def make(scale):
        if plain:
            return numbers(draw, dtype, (2, 2, 1, 2), scale)
        return product(draw, dtype, scale, form)

    kernels = moved(draw, dtype, kind, make)
    biases = moved(draw, dtype, kind, lambda e: numbers(draw, dtype, (2,), e))
    deep = moved(draw, dtype, kind, lambda e: numbers(draw, dtype, (1, 2, 1, 2), e))
    pools = draw(
        st.sampled_from(
            [
                (mc.MaxPool2D(2, 1), mc.AvgPool2D((1, 2), 1), mc.GlobalAvgPool2D()),
                (mc.AvgPool2D(2, 1), mc.MaxPool2D((2, 1), 1), mc.GlobalAvgPool2D()),
                (
                    mc.MaxPool2D(2, 2),
                    mc.Dropout(0.5),
                    mc.Flatten(),
                ),
            ]
        )
    )
    return *(
        mc.Sequential(
            (
                mc.Conv2D(k, b, **options),
                mc.ReLU(),
                mc.Conv2D(w, padding="same", groups=2),
                *pools,
            )
        )
        for k, b, w in zip(kernels, biases, deep, strict=True)
    ), (3, 3, 1)


# The laws ----------------------------------------------------------------------------------------


def inputs(certificate, dtype):
    """Corners of the box and points within, of the dtype, that lie in it."""
    low, high = certificate.low, certificate.high
    signs = list(itertools.islice(itertools.product([0.0, 1.0], repeat=low.size), 0, 512, 37))
    shares = np.array(
        [*signs[:6], [1.0] * low.size, [0.5] * low.size, ([0.25, 1.0] * low.size)[: low.size]]
    )
    shares = shares.reshape(-1, *low.shape)
    top = np.finfo(dtype).max
    with np.errstate(all="ignore"):
        points = np.clip(low * (1 - shares) + high * shares, -top, top).astype(dtype)
    return points[certificate.covers(points)]


def run(model, x):
    with np.errstate(all="ignore"):
        return np.stack([*(mc.nn.apply(model, row[None])[0] for row in x)]), mc.nn.apply(model, x)


def law_bounds(certificate, yf, yg):
    """Every difference lies between lower and upper; those of infinity or NaN in none."""
    for a, b in zip(yf.tolist(), yg.tolist(), strict=True):
        for va, vb, low, high in zip(a, b, certificate.lower, certificate.upper, strict=True):
            if all(isinstance(v, Fraction) or np.isfinite(v) for v in (va, vb)):
                assert low <= Fraction(vb) - Fraction(va) <= high
            else:
                assert (low, high) == (-np.inf, np.inf)


def classes(y):
    return [max(range(len(row)), key=row.__getitem__) for row in y.tolist()]


def law_ball(f, g, x, eps, most, arithmetics=("native", "real")):
    for arithmetic in arithmetics:
        found = ball_certificates(f, g, x, eps=eps, max_symbols=most, arithmetic=arithmetic)
        for certificate in found:
            points = inputs(certificate, x.dtype)
            if not len(points):
                continue
            if arithmetic == "real":
                outputs = [(rational(f, points), rational(g, points))]
            else:
                assert certificate.arithmetic == str(x.dtype)
                outputs = list(itertools.product(run(f, points), run(g, points)))
            for yf, yg in outputs:
                law_bounds(certificate, yf, yg)
                if certificate.same_class:
                    assert len({*classes(yf), *classes(yg)}) == 1


def law_domain(f, g, x, eps, most):
    low, high = x[0].astype(np.float64) - eps, x[0].astype(np.float64) + eps
    for arithmetic in ("native", "real"):
        certificate = domain_certificate(f, g, low, high, max_symbols=most, arithmetic=arithmetic)
        points = inputs(certificate, x.dtype)
        if not len(points):
            continue
        beyond = np.concatenate([points, x[1:]])
        for logits in run(f, beyond):
            kept = certificate.keeps(logits, beyond)
            assert not kept[~certificate.covers(beyond)].any()
            for y in [rational(g, beyond)] if arithmetic == "real" else run(g, beyond):
                had = classes(rational(f, beyond)) if arithmetic == "real" else logits.argmax(1)
                assert (np.array(had) == np.array(classes(y)))[kept].all()


def law_itself(f, x, eps, most):
    """In real arithmetic a network is not apart from itself, whatever underflows."""
    for certificate in ball_certificates(f, f, x, eps=eps, max_symbols=most, arithmetic="real"):
        if np.isfinite(certificate.bound):
            assert certificate.bound == 0


@settings(max_examples=40, deadline=None)
@given(problems())
def test_no_input_of_a_ball_beats_its_certificate(problem):
    law_ball(*problem)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_no_class_that_a_domain_promises_is_lost(problem):
    law_domain(*problem)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_a_network_is_not_apart_from_itself(problem):
    f, _, x, eps, most = problem
    law_itself(f, x, eps, most)


def law_output_bound(bound, f, g, x):
    """The exact difference at points of the ball, and the bound of its norm, squared."""
    radius = fro_upper(x.astype(np.float64))
    if radius < np.inf:
        limit = bound(f, g, radius=radius, input_shape=x.shape[1:])
        if limit < np.inf:
            for row in rational(g, x) - rational(f, x):
                assert sum(v * v for v in row.ravel()) <= Fraction(limit) ** 2


@settings(max_examples=30, deadline=None)
@given(problems())
def test_no_input_beats_the_bound_by_norms(problem):
    f, g, x, *_ = problem
    law_output_bound(output_bound, f, g, x)
    assert output_bound(f, f, radius=1.0, input_shape=x.shape[1:]) in (0.0, np.inf)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_input_beats_the_bound_of_a_batch_norm(data):
    """The variance and epsilon make 4, so that its root is rational."""

    def norm():
        scale = data.draw(scales(np.float64))
        s, o, m = (numbers(data.draw, np.float64, (2,), e) for e in (scale, scale, 0))
        return mc.BatchNorm(s, o, m, np.full(2, 3.0), epsilon=1.0), (s, o, m)

    (a, parts_a), (b, parts_b) = norm(), norm()
    x = numbers(data.draw, np.float64, (2, 2), min(data.draw(scales(np.float64)), 1000))
    limit = output_bound(
        mc.Sequential((a,)), mc.Sequential((b,)), radius=fro_upper(x), input_shape=(2,)
    )
    assert output_bound(mc.Sequential((a,)), mc.Sequential((a,)), radius=1.0, input_shape=(2,)) == 0
    if limit < np.inf:
        ya, yb = (exact(s) * (exact(x) - exact(m)) / 2 + exact(o) for s, o, m in (parts_a, parts_b))
        for row in yb - ya:
            assert sum(v * v for v in row) <= Fraction(limit) ** 2


# The holes that were found, one for each kind ----------------------------------------------------


def chain_of(*weights):
    return mc.Sequential(tuple(mc.Dense(np.atleast_2d(w)) for w in weights))


def rounding():
    """Sums of thirds in float32: what runs is not what is exact."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(40, 3)).astype(np.float32) for _ in range(2))
    return chain_of(a), chain_of(a + b * np.float32(2**-8)), rng.normal(size=(8, 40)).astype("f4")


def lost_unit():
    """2**24 + 1 is lost in float32: f's margin is computed as 0 or 2, and g's is another."""
    ones = np.float32([[1, 1], [1, 1], [-1, 1]])
    f, g = chain_of(ones), chain_of(ones + np.float32([[0, 0], [0, 0], [2**-10, 0]]))
    return f, g, np.float32([[2**24, 1, 0.5], [2**24, 1, -0.5], [2**24, 3, 1.0]])


def tie():
    """f's second class is ahead by what float16 loses, and g's first by far."""
    weight, bias = np.array([[0, 2.0**-20]], np.float16), np.array([3, 3], np.float16)
    f = mc.Sequential((mc.Dense(weight, bias),))
    return (
        f,
        mc.Sequential((mc.Dense(0 * weight, bias - np.array([0, 2], np.float16)),)),
        np.ones((2, 1), np.float16),
    )


def outside():
    """In the box the two agree; at 4 they do not."""
    f = chain_of([[1.0, -1.0]])
    bend = mc.Sequential((mc.Dense(np.array([[1.0, 1]]), np.array([0.0, -2])), mc.ReLU()))
    ends = (np.array([[1.0, 0], [0, 0.0]]), np.array([[1.0, 0], [-9, 0]]))
    f, g = (mc.Sequential((*bend.layers, mc.Dense(end, np.array([0.0, -0.5])))) for end in ends)
    return f, g, np.array([[1.0], [4.0]])


def overflow(dtype):
    """Behind a layer that overflows there is no class: of NaN it is the first."""
    large = np.array([[np.finfo(dtype).max / 2] * 2, [0, 0]], dtype)
    head = np.array([[0.0, 0.5], [0.0, -0.5]], dtype)
    f = mc.Sequential((mc.Dense(large), mc.Dense(head, np.array([0.0, 1.0], dtype))))
    return f, f, np.array([[8.0, 0.0], [0.0, 0.0]], dtype)


def underflow():
    """1e-200 squared is nothing in float64, and 1 after a layer of 1e200, and another."""
    return (
        chain_of(1e-200, 1e-200, 1e200, 1e200),
        chain_of(1e-200, 3e-200, 1e200, 1e200),
        np.ones((1, 1)),
    )


def winograd():
    """A pixel of 0 among large ones: exact by the direct path, and wrong by Winograd's."""
    kernel = np.zeros((3, 3, 32, 32), np.float16)
    kernel[1, 1] = np.eye(32)
    x = np.full((1, 4, 4, 32), 60000 / 3, np.float16)
    x[:, 0, 0] = 0
    layers = (mc.Flatten(), mc.Dense(np.eye(512, 8, dtype=np.float16)))
    f = mc.Sequential((mc.Conv2D(kernel, padding="same"), *layers))
    g = mc.Sequential((mc.Conv2D(kernel * np.float16(0.7), padding="same"), *layers))
    return f, g, x


def factors():
    """The product of the factors is not its rounding to float32."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3)).astype("f4"), rng.normal(size=(3, 4)).astype("f4")
    product = LowRank((a, b), "ir,ro->io")
    f = mc.Sequential((mc.Dense(product),))
    return f, mc.nn.decoded(f), rng.normal(size=(2, 4)).astype("f4")


HOLES = {
    "rounding": rounding,
    "a lost unit": lost_unit,
    "a tie of the logits": tie,
    "outside": outside,
    "overflow of float16": lambda: overflow(np.float16),
    "overflow of float32": lambda: overflow(np.float32),
    "underflow": underflow,
    "winograd": winograd,
    "factors": factors,
}


def law_hole(name):
    f, g, x = HOLES[name]()
    law_ball(f, g, x, 0.0, None, ("native",))
    if name != "winograd":  # which is too large for fractions
        law_ball(f, g, x, 0.0, None, ("real",))
        law_domain(f, g, x, 0.5 * (name == "outside"), None)
        law_output_bound(output_bound, f, g, x)


@pytest.mark.parametrize("name", HOLES)
def test_a_hole_is_closed(name):
    law_hole(name)


def test_an_overflow_promises_nothing():
    f, g, x = overflow(np.float16)
    certificate = ball_certificates(f, g, x, eps=0.5)[0]
    assert certificate.bound == np.inf
    assert not certificate.same_class
    domain = domain_certificate(f, g, x[1], x[0])
    assert not domain.keeps(np.array([[0.0, 1.0], [np.nan, np.inf]]), x).any()


def law_one_class_is_none_where_it_overflows():
    f, g = (mc.Sequential((mc.Dense(np.array([[w]])),)) for w in (1.0, 4.0))
    x = np.array([[1e308]])
    assert not ball_certificates(f, g, x, eps=0.0)[0].same_class  # g gives infinity
    assert not domain_certificate(f, g, x[0] * 0, x[0]).keeps(f(x), x).any()


def test_one_class_is_none_where_it_overflows():
    law_one_class_is_none_where_it_overflows()


def law_an_overflow_of_the_analysis_is_no_bound():
    """5e307 + 1e308 and 1e308 + 1e308 are numbers; the box around the second is infinite."""
    f, g = (
        mc.Sequential((mc.Dense(np.array([[w]]), np.array([1e308])), mc.ReLU())) for w in (1.0, 2.0)
    )
    (certificate,) = ball_certificates(f, g, np.array([[5e307]]), eps=0.0, arithmetic="real")
    assert certificate.lower[0] <= 5e307 <= certificate.upper[0]


def test_an_overflow_of_the_analysis_is_no_bound():
    law_an_overflow_of_the_analysis_is_no_bound()


def test_ends_that_are_not_known_pass_for_an_off_relu(monkeypatch):
    def interval(z):
        reach = z.reach()
        return z.center - reach, z.center + reach

    monkeypatch.setattr(zonotope.Zonotope, "interval", interval)
    with pytest.raises(AssertionError):
        law_an_overflow_of_the_analysis_is_no_bound()


def test_a_certificate_knows_its_box_and_its_arithmetic():
    f, g, x = outside()
    certificate = domain_certificate(f, g, np.zeros(1), np.ones(1))
    assert (certificate.low, certificate.high, certificate.arithmetic) == (0, 1, "float64")
    assert certificate.covers(np.array([[0.0], [1.0], [1.5], [np.nan]])).tolist() == [1, 1, 0, 0]
    assert domain_certificate(f, g, x[0], x[0], arithmetic="real").arithmetic == "real"
    (ball,) = ball_certificates(f, g, x[:1], eps=1.0, clip=(0.0, 1.5))
    assert (ball.high, ball.arithmetic) == (1.5, "float64")
    assert ball.low[0] < 1e-15


def test_the_search_runs_the_factors_too():
    f, g, x = factors()
    rng = np.random.default_rng(0)
    found = attack(f, g, x, eps=0.0, rng=rng, starts=0, steps=0)
    assert (found == np.abs(g(x).astype(float) - f(x)).max(1)).all()


# Wrong certificates, each by one wrong piece -----------------------------------------------------


def exact_floats(patch):
    right = equivalence.float_error
    patch.setattr(equivalence, "float_error", lambda *a: np.zeros_like(right(*a)))


def exact_logits(patch):
    def keeps(certificate, logits, x):
        return right(dataclasses.replace(certificate, arithmetic="float16"), logits, x)

    right = equivalence.DomainCertificate.keeps
    patch.setattr(equivalence.DomainCertificate, "keeps", keeps)


def infinite_box(patch):
    patch.setattr(equivalence.DomainCertificate, "covers", lambda c, x: np.ones(len(x), bool))


def no_overflow(patch):

    patch.setattr(evaluation, "_stored", lambda dtype, size: 0 * size)


def no_tiny(patch):
    for module in (pairs, zonotope, following, evaluation):
        patch.setattr(module, "TINY", 0.0)


def always_direct(patch):
    patch.setattr(evaluation, "uses_winograd", lambda weight, g: False)


def decoded_product(patch):
    for module in (pairs, evaluation):
        patch.setattr(module, "plain_layers", lambda layer: (decoded_layer(layer),))


PLANTED = {
    "the rounding of the floats forgotten": ("rounding", exact_floats),
    "logits believed": ("a lost unit", exact_floats),
    "the class of the logits taken for the exact one": ("a tie of the logits", exact_logits),
    "inputs outside of the box kept": ("outside", infinite_box),
    "overflow forgotten": ("overflow of float16", no_overflow),
    "underflow forgotten": ("underflow", no_tiny),
    "Winograd's path taken for the direct one": ("winograd", always_direct),
    "factors taken for their decoded product": ("factors", decoded_product),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name, monkeypatch):
    hole, plant = PLANTED[name]
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        law_hole(hole)


def test_underflow_of_norms_is_found(monkeypatch):
    monkeypatch.setattr(bounds, "_times", lambda a, b: a * b)
    with pytest.raises(AssertionError):
        law_output_bound(output_bound, *underflow())
