"""Tucker-2: the sandwich of the two unfoldings' tails, and equality for the sequential method.

Oracles unfold with `einsum` and take singular values from `numpy.linalg`; as in `test_svd` the
tolerance is what LAPACK's own tests let pass, 50 max(m, n) eps ||W||, here for three of its
decompositions.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from budgets import contract_seconds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_norms import exact_gamma, exact_root, exact_upward, law_within_units

from minicompress import norms
from minicompress.compressors.tucker import tucker2
from minicompress.errors import CompressionError
from minicompress.norms import UNIT, svd_of
from minicompress.representation import Certificate, Compressed, LowRank, decode, num_params
from minicompress.testing.checks import check_compressor, check_pure
from minicompress.testing.strategies import conv_kernels

METHODS = ["hosvd", "sthosvd"]
bricks = conv_kernels(dtypes=[np.dtype("f8")], kinds=["integers", "ordinary"], empty=False)


def size(w):
    return math.hypot(*w.ravel())


def slack(w):
    return 3 * 50 * w.size * 2 * UNIT * size(w)


def tail(matrix, rank):
    return math.hypot(*np.linalg.svd(matrix, compute_uv=False)[rank:])


def rows_of_inputs(w):
    return np.einsum("hwio->ihwo", w).reshape(w.shape[2], -1)


def rows_of_outputs(w):
    return np.einsum("hwio->ohwi", w).reshape(w.shape[3], -1)


def tails(w, ri, ro):
    return tail(rows_of_inputs(w), ri), tail(rows_of_outputs(w), ro)


def sequential_tails(w, ri, ro):
    """The outputs' tail is that of the kernel whose inputs are projected already."""
    basis = np.linalg.svd(rows_of_inputs(w))[0][:, :ri]
    partly = np.einsum("hwio,ia->hwao", w, basis)
    return tail(rows_of_inputs(w), ri), tail(rows_of_outputs(partly), ro) if ri else 0.0


def largest_ranks(w):
    kh, kw, inputs, outputs = w.shape
    return min(inputs, kh * kw * outputs), min(outputs, kh * kw * inputs)


def error(w, rep):
    return size(w - decode(rep))


@st.composite
def ranked(draw):
    w = draw(bricks)
    ri, ro = largest_ranks(w)
    return w, draw(st.integers(0, ri)), draw(st.integers(0, ro))


# -- the laws, each a function of the implementation ----------------------------------------------


def law_sandwich(tucker, w, ri, ro):
    t_in, t_out = tails(w, ri, ro)
    e = error(w, tucker(w, rank_in=ri, rank_out=ro).rep)
    assert max(t_in, t_out) - slack(w) <= e <= math.hypot(t_in, t_out) + slack(w)


def law_hosvd_bound(tucker, w, ri, ro):
    """The two tails, but that no more than what the first cut leaves can go in the second."""
    t_in, t_out = tails(w, ri, ro)
    whole = size(w) or 1.0
    left = whole * math.sqrt(max(1 - (t_in / whole) ** 2, 0))
    bound = tucker(w, rank_in=ri, rank_out=ro).cert.bound
    # Where next to nothing is left its size is known to the root of a rounding only.
    spread = slack(w) if left > 1e-3 * size(w) else 1e-6 * size(w)
    assert abs(bound - math.hypot(t_in, min(t_out, left))) <= spread


def law_sequential_bound_is_the_error(tucker, w, ri, ro):
    rep, cert = tucker(w, rank_in=ri, rank_out=ro)
    assert abs(error(w, rep) - cert.bound) <= slack(w)


def law_sequential_bound(tucker, w, ri, ro):
    """By singular values alone; for simple ones, as equal ones may be cut either way."""
    bound = tucker(w, rank_in=ri, rank_out=ro).cert.bound
    assert abs(bound - math.hypot(*sequential_tails(w, ri, ro))) <= slack(w)


def law_bound_holds_exactly(tucker, w, ri, ro):
    rep, cert = tucker(w, rank_in=ri, rank_out=ro)
    differences = zip(w.ravel().tolist(), decode(rep).ravel().tolist(), strict=True)
    exact = sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in differences), Fraction(0))
    assert Fraction(cert.bound) ** 2 >= exact


def law_shapes(tucker, w, ri, ro):
    kh, kw, inputs, outputs = w.shape
    rep = tucker(w, rank_in=ri, rank_out=ro).rep
    assert [f.shape for f in rep.factors] == [(inputs, ri), (kh, kw, ri, ro), (ro, outputs)]
    assert rep.subscripts == "ia,hwab,bo->hwio"
    assert num_params(rep) == inputs * ri + kh * kw * ri * ro + ro * outputs


@pytest.mark.parametrize("method", METHODS)
@given(ranked())
def test_both_methods(method, drawn):
    tucker = partial(tucker2, method=method)
    law_sandwich(tucker, *drawn)
    law_bound_holds_exactly(tucker, *drawn)
    law_shapes(tucker, *drawn)


@given(ranked())
def test_the_bounds_are_those_of_the_singular_values(drawn):
    law_hosvd_bound(partial(tucker2, method="hosvd"), *drawn)
    law_sequential_bound_is_the_error(tucker2, *drawn)


@given(ranked())
def test_the_sequential_bound_is_never_above_the_other(drawn):
    w, ri, ro = drawn
    bounds = [tucker2(w, rank_in=ri, rank_out=ro, method=m).cert.bound for m in METHODS]
    assert bounds[1] <= bounds[0] + slack(w)


@given(bricks)
def test_full_ranks_reconstruct(w):
    ri, ro = largest_ranks(w)
    for method in METHODS:
        rep, cert = tucker2(w, rank_in=ri, rank_out=ro, method=method)
        assert error(w, rep) <= slack(w)
        assert cert.measured <= cert.bound <= slack(w) + 1e-12 * size(w)


integers = st.integers(-3, 3).map(float)


@given(
    arrays(np.float64, (3, 2), elements=integers),
    arrays(np.float64, (2, 2, 2, 1), elements=integers),
    arrays(np.float64, (1, 4), elements=integers),
)
def test_a_kernel_of_these_ranks_is_recovered(a, core, b):
    w = np.einsum("ia,hwab,bo->hwio", a, core, b)
    for method in METHODS:
        rep, cert = tucker2(w, rank_in=2, rank_out=1, method=method)
        assert error(w, rep) <= slack(w)
        assert cert.bound <= slack(w) + 1e-12 * size(w)


def apart():
    """What the cut inputs hold and what the cut outputs hold do not overlap."""
    w = np.zeros((1, 3, 2, 2))
    w[0, 0, 0, 0], w[0, 1, 1, 0], w[0, 2, 0, 1] = 4.0, 2.0, 1.0
    return w


def overlapping():
    """The same entry is cut twice: the tails are equal, and so is the error."""
    w = np.zeros((1, 2, 2, 2))
    w[0, 0, 0, 0], w[0, 1, 1, 1] = 4.0, 2.0
    return w


def test_both_ends_of_the_sandwich_are_reached():
    for method in METHODS:
        rep, cert = tucker2(apart(), rank_in=1, rank_out=1, method=method)
        assert math.sqrt(5) <= cert.bound <= math.sqrt(5) * (1 + 1e-13)
        assert abs(error(apart(), rep) - math.sqrt(5)) <= 1e-14
    rep, cert = tucker2(overlapping(), rank_in=1, rank_out=1, method="hosvd")
    assert abs(error(overlapping(), rep) - 2) <= 1e-14
    assert math.sqrt(8) <= cert.bound <= math.sqrt(8) * (1 + 1e-13)
    cert = tucker2(overlapping(), rank_in=1, rank_out=1, method="sthosvd").cert
    assert 2 <= cert.bound <= 2 * (1 + 1e-13)


@pytest.mark.parametrize("norm", ["spectral", "max"])
def test_other_norms_are_reached(norm):
    for method in METHODS:
        one = tucker2(overlapping(), rank_in=2, rank_out=1, method=method, norm=norm).cert
        assert 2 <= one.measured <= one.bound <= 2 * (1 + 1e-13)


def test_the_spectral_bound_uses_the_largest_dropped_value():
    w = np.random.default_rng(0).standard_normal((2, 2, 3, 8))
    for method in METHODS:
        s = np.linalg.svd(rows_of_outputs(w), compute_uv=False)
        cert = tucker2(w, rank_in=3, rank_out=4, method=method, norm="spectral").cert
        assert s[4] <= cert.bound <= s[4] * (1 + 1e-11)
        assert cert.measured <= cert.bound


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_the_sequential_bound_of_an_ordinary_kernel_is_its_error(dtype):
    w = np.random.default_rng(0).standard_normal((3, 3, 16, 12)).astype(dtype)
    for ranks in ((4, 4), (8, 6), (15, 11), (16, 3), (0, 5)):
        cert = tucker2(w, rank_in=ranks[0], rank_out=ranks[1]).cert
        ratio = {"f8": 1e-10, "f4": 1e-5, "f2": 0.1}[dtype]
        assert cert.measured <= cert.bound <= cert.measured * (1 + ratio)
        if dtype == "f8":
            law_sequential_bound(tucker2, w, *ranks)
            law_hosvd_bound(partial(tucker2, method="hosvd"), w, *ranks)


# -- what is allowed for rounding: as derived, in rationals, no less and no more -------------------


def sized(array):
    return Fraction(norms.norm_of(array))


def law_allowance(tucker, w, ri, ro, sequential, norm):
    """The bound is the tails and what their derivation adds to them, and no other sum.

    With o = f**2 - 1 for how far from orthogonal each basis is, and p and c what the two products
    with the bases round (gamma of their lengths and 2): beside the inputs' cut lies
    ``o_in ||A|| + f_in (p + cut_out + f_out c)``, where cut_out is the outputs' tail, its residual
    and ``o_out ||A||``, or for the one that cuts the whole kernel ``f_in`` times that and 2 p; and
    never more than is left. The roundings of storing and forming come to 4 u of dtype and the gamma
    of the sums, relative to the product of magnitudes. Last, a factor after the other moves by one
    eta an entry between the norms of the two others, and the product by one, all of it twice.
    """
    info, unit_64 = np.finfo(w.dtype), Fraction(UNIT)
    unit, eta = Fraction(float(info.eps)) / 2, Fraction(float(info.smallest_subnormal))
    a, exponent = norms.power_of_two_scaled(w.astype(np.float64))
    first = svd_of(rows_of_inputs(a))
    u_in = first.u[:, :ri]
    partly = np.moveaxis(np.tensordot(a, u_in, (2, 0)), 3, 2)
    second = svd_of(rows_of_outputs(partly if sequential else a))
    u_out = second.u[:, :ro]
    u_out = np.pad(u_out, ((0, 0), (0, ro - u_out.shape[1])))
    core = partly @ u_out
    product = np.tensordot(np.abs(u_in), np.abs(core) @ np.abs(u_out.T), (1, 2))

    whole, left, (inputs, outputs) = sized(a), sized(partly), a.shape[2:]
    f_in = Fraction(norms.orthogonality_factor(first.u, first.vt))
    f_out = Fraction(norms.orthogonality_factor(second.u, second.vt) if second.s.size else 1.0)
    off_in, off_out = f_in**2 - 1 + 4 * unit_64, f_out**2 - 1 + 4 * unit_64
    cut_in = f_in * sized(first.s[ri:]) + Fraction(first.residual)
    dropped = second.s[ro:]
    tail = Fraction(max(dropped.tolist(), default=0.0)) if norm == "spectral" else sized(dropped)
    cut_out = f_out * tail + Fraction(second.residual) + off_out * whole
    p = exact_gamma(inputs + 2) * whole * sized(u_in)
    c = exact_gamma(outputs + 2) * left * sized(u_out)
    if not sequential:
        cut_out = f_in * cut_out + 2 * p
    cut_out = min(cut_out, (1 + off_out) * left)
    beside = off_in * whole + f_in * (p + cut_out + f_out * c)
    rounding = 4 * unit * (1 + 8 * unit) + exact_gamma(ri * ro + ri + ro + 8)
    error = exact_root(cut_in**2 + beside**2) + rounding * sized(product)
    error = exact_upward(error, 2 * (a.size + 8)) * Fraction(2) ** exponent

    largest = int(np.frexp(np.abs(core).max(initial=0))[1])
    third = (exponent + largest) // 3
    n_in, n_out = f_in * Fraction(2) ** third, f_out * Fraction(2) ** third
    n_core = 2 * whole * Fraction(2) ** (exponent - 2 * third)
    m_in, m_core, m_out = (eta * exact_root(x.size) for x in (u_in, core, u_out))
    lost = m_in * (n_core + m_core) * (n_out + m_out) + n_in * m_core * (n_out + m_out)
    lost += n_in * n_core * m_out + exact_root(a.size) * eta
    law = exact_upward(error + exact_upward(2 * lost))
    method = "sthosvd" if sequential else "hosvd"
    bound = tucker(w, rank_in=ri, rank_out=ro, method=method, norm=norm).cert.bound
    # On the longest way 20 operations and two times `upward`, of 3 u. With f = 1 + d floats lose
    # d**2 of f**2 - 1, which is d / 2 of it: 8 u more for d up to 16 u.
    law_within_units(bound, law, 34)


@pytest.mark.parametrize("method", METHODS)
@given(ranked(), st.sampled_from(["f2", "f4", "f8"]), st.sampled_from(["low", "", "high"]))
def test_the_bound_has_the_allowance_that_is_derived(method, drawn, dtype, place):
    """At full ranks nothing else is left of it; with subnormal numbers their loss is most of it."""
    w, ri, ro = drawn
    info = np.finfo(dtype)
    shift = {"low": int(info.minexp) - 5, "": 0, "high": int(info.maxexp) - 8}[place]
    w = np.ldexp(np.rint(w), shift).astype(dtype)
    if w.any():
        for ranks in ((ri, ro), largest_ranks(w)):
            for norm in ("fro", "spectral"):
                law_allowance(tucker2, w, *ranks, method == "sthosvd", norm)


# -- choosing the ranks ---------------------------------------------------------------------------


def every_pair(w):
    """Parameters and least guaranteed error of every pair of ranks, by loops."""
    kh, kw, inputs, outputs = w.shape
    most_in, most_out = largest_ranks(w)
    for ri in range(most_in + 1):
        for ro in range(most_out + 1):
            params = inputs * ri + kh * kw * ri * ro + ro * outputs
            yield params, min(math.hypot(*tails(w, ri, ro)), size(w))


def law_budget(tucker, w, budget):
    """Never exceeded, and of all pairs that fit none has lesser tails."""
    rep, cert = tucker(w, max_params=budget)
    assert num_params(rep) <= budget
    best = min(e for params, e in every_pair(w) if params <= budget)
    assert cert.measured <= best + slack(w)
    ranks = rep.factors[1].shape[2:]
    assert min(math.hypot(*tails(w, *ranks)), size(w)) <= best + 1e-7 * size(w)


def law_energy(tucker, w, energy):
    """At least this fraction is kept, and no pair of fewer parameters is sure to keep it.

    As fractions of the whole, within 1e-12: the squares of LAPACK's values are not better known.
    """
    rep, cert = tucker(w, energy=energy)
    whole, room = size(w) or 1.0, 1 - energy
    assert (cert.measured / whole) ** 2 <= room + 1e-12
    losses = [(params, (e / whole) ** 2) for params, e in every_pair(w)]
    fewest = min(p for p, loss in losses if loss <= room + 1e-12)
    enough = min(p for p, loss in losses if loss <= max(room - 1e-12, 0) or loss == 0)
    assert fewest <= num_params(rep) <= enough or room < 1e-12


@pytest.mark.parametrize("method", METHODS)
@given(bricks, st.integers(0, 90))
def test_max_params(method, w, budget):
    law_budget(partial(tucker2, method=method), w, budget)


@pytest.mark.parametrize("method", METHODS)
@given(bricks, st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99, 1.0]))
def test_energy(method, w, energy):
    law_energy(partial(tucker2, method=method), w, energy)


def test_ranks_that_cannot_all_carry_something_are_kept_as_asked():
    w = np.arange(8.0).reshape(1, 1, 2, 4)
    rep, cert = tucker2(w, rank_in=1, rank_out=2)
    assert [f.shape for f in rep.factors] == [(2, 1), (1, 1, 1, 2), (2, 4)]
    assert cert.measured <= cert.bound <= tail(rows_of_inputs(w), 1) * (1 + 1e-12)


def test_the_sequential_method_is_the_default():
    default = tucker2(overlapping(), rank_in=1, rank_out=1)
    assert default.cert == tucker2(overlapping(), rank_in=1, rank_out=1, method="sthosvd").cert
    assert (
        default.cert.bound
        < tucker2(overlapping(), rank_in=1, rank_out=1, method="hosvd").cert.bound
    )


@pytest.mark.parametrize("shape", [(1, 1, 5, 2), (1, 2, 5, 2), (2, 1, 7, 3), (2, 3, 13, 2)])
def test_no_rank_is_above_that_of_its_unfolding(shape):
    """Nor below it: all ranks up to it are taken."""
    for w in (np.ones(shape), np.ones(shape).transpose(0, 1, 3, 2)):
        for name, most, other in zip(("rank_in", "rank_out"), largest_ranks(w), w.shape[3:1:-1]):
            rest = {"rank_out" if name == "rank_in" else "rank_in": min(other, 2)}
            assert num_params(tucker2(w, **{name: most}, **rest).rep) > 0
            with pytest.raises(CompressionError, match=f"{name} must be an int from 0 to {most}"):
                tucker2(w, **{name: most + 1}, **rest)


def test_no_rank_and_no_entries():
    rep, cert = tucker2(np.ones((2, 2, 3, 4)), rank_in=0, rank_out=4)
    assert not decode(rep).any()
    assert math.sqrt(48) <= cert.bound <= math.sqrt(48) * (1 + 1e-13)
    for method in METHODS:
        rep, cert = tucker2(np.ones((2, 2, 0, 4)), rank_in=0, rank_out=0, method=method)
        assert decode(rep).shape == (2, 2, 0, 4)
        assert cert.bound == 0.0


CONTRACTS = {
    "ranks": (partial(tucker2, rank_in=1, rank_out=1), conv_kernels(empty=False)),
    "energy": (partial(tucker2, energy=0.6), conv_kernels()),
    "hosvd, energy": (partial(tucker2, energy=0.6, method="hosvd"), conv_kernels()),
    "budget, spectral": (partial(tucker2, max_params=20, norm="spectral"), conv_kernels()),
    "budget, max": (partial(tucker2, max_params=20, method="hosvd", norm="max"), conv_kernels()),
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_contract(name):
    compressor, domain = CONTRACTS[name]
    check_compressor(compressor, domain, seconds=contract_seconds())


def test_half_precision_does_not_overflow():
    """The core alone would be 65504 * sqrt(768); a third of the magnitude goes into each factor."""
    w = np.full((3, 4, 8, 8), np.finfo("f2").max)
    rep, cert = tucker2(w, rank_in=1, rank_out=1)
    assert all(np.isfinite(f).all() for f in rep.factors)
    assert cert.measured <= cert.bound <= 0.01 * size(w.astype("f8"))


def test_the_kernel_is_not_written_to():
    for method in METHODS:
        check_pure(tucker2, apart(), rank_in=1, rank_out=1, method=method)


K = np.ones((2, 2, 3, 4))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: tucker2(K), "exactly one"),
        (lambda: tucker2(K, rank_in=1), "together"),
        (lambda: tucker2(K, rank_out=1), "together"),
        (lambda: tucker2(K, rank_in=1, rank_out=1, energy=0.5), "exactly one"),
        (lambda: tucker2(K, energy=0.5, max_params=3), "exactly one"),
        (lambda: tucker2(K, rank_in=4, rank_out=1), "rank_in"),
        (lambda: tucker2(K, rank_in=1, rank_out=5), "rank_out"),
        (lambda: tucker2(K, rank_in=1.0, rank_out=1), "rank_in"),
        (lambda: tucker2(K, rank_in=1, rank_out=-1), "rank_out"),
        (lambda: tucker2(K, energy=2), "energy"),
        (lambda: tucker2(K, max_params=-1), "max_params"),
        (lambda: tucker2(K, max_params=5, method="hooi"), "method"),
        (lambda: tucker2(K, max_params=5, norm="nuclear"), "norm"),
        (lambda: tucker2(K[0], max_params=5), "kernel"),
        (lambda: tucker2(K * np.inf, max_params=5), "kernel"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(CompressionError, match=name):
        call()


def test_unknown_options_raise():
    with pytest.raises(TypeError, match="ranks"):
        tucker2(K, ranks=(1, 1))


# -- wrong implementations ------------------------------------------------------------------------


def claiming(bound, method):
    """The right factors with another bound, a function of the tails' arguments."""

    def tucker(w, *, rank_in, rank_out):
        rep, cert = tucker2(w, rank_in=rank_in, rank_out=rank_out, method=method)
        return Compressed(rep, cert._replace(bound=bound(w, rank_in, rank_out)))

    return tucker


def wrong_axes(w, *, rank_in, rank_out):
    """Cuts height in place of the inputs."""
    turned = np.ascontiguousarray(w.transpose(2, 1, 0, 3))
    a, core, b = tucker2(turned, rank_in=min(rank_in, 2), rank_out=rank_out).rep.factors
    rep = LowRank((a, np.einsum("iwab->wiab", core), b), "ha,wiab,bo->hwio")
    return Compressed(rep, Certificate("fro", size(w), error(w, rep)))


def smallest(w, *, rank_in, rank_out):
    """Keeps the last directions of the inputs."""
    basis = np.linalg.svd(rows_of_inputs(w))[0][:, ::-1][:, :rank_in]
    out = np.linalg.svd(rows_of_outputs(w))[0][:, :rank_out]
    core = np.einsum("hwio,ia,ob->hwab", w, basis, out)
    rep = LowRank((basis, core, out.T), "ia,hwab,bo->hwio")
    return Compressed(rep, Certificate("fro", size(w), error(w, rep)))


def greedy_budget(w, *, max_params):
    """All inputs first, then as many outputs as fit."""
    kh, kw, inputs, outputs = w.shape
    ri = min(largest_ranks(w)[0], max_params // max(inputs, 1))
    left = max_params - inputs * ri
    return tucker2(w, rank_in=ri, rank_out=min(left // (kh * kw * ri + outputs), 1))


def same_ranks(w, *, max_params):
    """TensorLy's rank="same": the wanted ratio for both ranks, rounded up; the budget is missed."""
    fraction = math.sqrt(max_params / w.size)
    ri, ro = (math.ceil(fraction * n) for n in largest_ranks(w))
    return tucker2(w, rank_in=ri, rank_out=ro)


def each_keeps_the_fraction(w, *, energy):
    """Each unfolding may lose the whole allowance, so both together lose twice as much."""
    room = (1 - energy) * size(w) ** 2
    ri, ro = largest_ranks(w)
    ri = next(r for r in range(ri + 1) if tails(w, r, 0)[0] ** 2 <= room)
    ro = next(r for r in range(ro + 1) if tails(w, 0, r)[1] ** 2 <= room)
    return tucker2(w, rank_in=ri, rank_out=ro)


def on(law, *cases):
    return lambda wrong: [law(wrong, *case) for case in cases]


rng = np.random.default_rng(2)
BRICK = rng.integers(-5, 6, (2, 3, 3, 4)).astype(float)
MANY = [(rng.integers(-5, 6, (1, 2, 3, 3)).astype(float), 1, 2) for _ in range(40)]
sandwich = on(law_sandwich, (BRICK, 2, 2))
hosvd = on(law_hosvd_bound, (BRICK, 2, 2), (apart(), 1, 1), (overlapping(), 1, 1))
sequential = on(law_sequential_bound, (BRICK, 2, 2), (overlapping(), 1, 1))
PLANTED = {
    "hosvd: the larger tail alone": (hosvd, claiming(lambda *a: max(tails(*a)), "hosvd")),
    "hosvd: the L1 of the tails": (hosvd, claiming(lambda *a: sum(tails(*a)), "hosvd")),
    "hosvd: the doubled bound": (hosvd, claiming(lambda *a: 2 * math.hypot(*tails(*a)), "hosvd")),
    "hosvd: s_r for s_(r+1)": (
        hosvd,
        claiming(lambda w, ri, ro: math.hypot(*tails(w, ri - 1, ro - 1)), "hosvd"),
    ),
    "sequential: the tails of the whole": (
        sequential,
        claiming(lambda *a: math.hypot(*tails(*a)), "sthosvd"),
    ),
    "no outward rounding": (
        on(law_bound_holds_exactly, *MANY),
        claiming(lambda *a: math.hypot(*sequential_tails(*a)), "sthosvd"),
    ),
    "height cut for the inputs": (on(law_sandwich, (BRICK, 1, 4)), wrong_axes),
    "the last directions kept": (sandwich, smallest),
    "the ranks exchanged": (
        on(law_shapes, (BRICK, 1, 2)),
        lambda w, *, rank_in, rank_out: tucker2(w, rank_in=rank_out, rank_out=rank_in),
    ),
    "budget: greedy": (on(law_budget, (BRICK, 40)), greedy_budget),
    "budget: exceeded": (on(law_budget, (BRICK, 40)), same_ranks),
    "energy: the allowance spent twice": (
        on(law_energy, (apart(), 16.5 / 21)),
        each_keeps_the_fraction,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)


def test_the_cases_of_the_planted_faults_are_lawful():
    """What catches a wrong implementation lets the right one pass."""
    for name, (law, _) in PLANTED.items():
        law(partial(tucker2, method="hosvd" if name.startswith("hosvd") else "sthosvd"))


@pytest.mark.parametrize("exponent", [-900, -502, -3, 0, 1, 2, 500, 900])
def test_the_factors_share_the_scale(exponent):
    """No factor is further from 1 than a third of the way, and a few binary places."""
    w = np.ldexp(np.arange(1.0, 17.0).reshape(2, 2, 2, 2), exponent)
    for factor in tucker2(w, rank_in=2, rank_out=2).rep.factors:
        assert abs(np.frexp(np.abs(factor).max())[1] - exponent / 3) <= 5
