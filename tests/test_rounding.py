"""Stochastic and compensated rounding: what they promise besides the contract of a compressor."""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from budgets import contract_seconds
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from minicompress.compressors.bounds.quantization import comes_nearer, corrected_bounds
from minicompress.compressors.compensated import (
    DAMPING,
    compensated_quantize,
    compensated_steps,
    gptq,
    gram_of,
)
from minicompress.compressors.quantization import quantize
from minicompress.compressors.stochastic import stochastic_quantize, stochastic_steps
from minicompress.errors import CompressionError
from minicompress.qparams import Grid, QParams, choose_qparams
from minicompress.representation import decode
from minicompress.testing.checks import check_compressor, check_pure
from minicompress.testing.strategies import LAYOUTS, conv_kernels, in_layout, matrices, weights

DTYPES = [np.float16, np.float32, np.float64]
UNIT_STEP = QParams(np.array(1.0), np.array(0), num_bits=5)


def rng(seed=0):
    return np.random.default_rng(seed)


def grid_of(x, scale=1.0, low=-8, high=7):
    return Grid(*map(np.asarray, (scale, float(low), float(high), 0.0)))


# ---- stochastic


class Fixed:
    """A source of randomness that says always the same: makes chances into cases."""

    def __init__(self, value):
        self.value = value

    def random(self, shape):
        return np.full(shape, self.value)


def law_chances(steps_of, x):
    """x = k + f goes up for the fraction f of all draws, so x is the mean: exactly."""
    grid = grid_of(x)
    taken = [steps_of(x, grid, x.dtype, Fixed(u / 64)) for u in range(64)]
    inside = np.clip(x, -8, 7)
    for steps in taken:
        assert (np.abs(steps - inside) < 1).all()
    assert (np.sum(taken, axis=0) == 64 * inside).all()


@given(npst.arrays(np.float64, (3, 2), elements=st.integers(-800, 800).map(lambda k: k / 64)))
def test_chances(x):
    law_chances(stochastic_steps, x)


def law_levels_stay(steps_of, dtype):
    """What is a level stays, also where fl(k s) / s is no integer."""
    grid = grid_of(None, float(dtype(0.1)), -128, 127)
    steps = np.arange(-128.0, 128.0)
    levels = grid.levels(steps, dtype).astype(np.float64)
    for u in (0.0, 0.5, 1 - 2.0**-53):
        assert (steps_of(levels, grid, dtype, Fixed(u)) == steps).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_levels_stay(dtype):
    law_levels_stay(stochastic_steps, np.dtype(dtype).type)


def law_beyond_the_range(steps_of):
    x = np.array([-1e300, -8.5, 7.25, 1e300])
    for u in (0.0, 0.99):
        assert steps_of(x, grid_of(x), x.dtype, Fixed(u)).tolist() == [-8, -8, 7, 7]


def test_beyond_the_range():
    law_beyond_the_range(stochastic_steps)


def law_mean(impl):
    """20,000 draws: the mean is within 6 standard deviations, sqrt(f (1 - f) / n) steps each."""
    n = 20_000
    for f in (0.1, 0.25, 0.5, 0.9):
        w = np.full(n, 3 + f)
        rep, cert = impl(w, qparams=UNIT_STEP, rng=rng(1), norm="max")
        mean = float(decode(rep).mean())
        assert abs(mean - (3 + f)) < 6 * math.sqrt(f * (1 - f) / n)
        assert cert.bound == 1.0
        assert cert.measured == max(w[0] - 3, 4 - w[0])


def test_mean():
    law_mean(stochastic_quantize)


def law_within_a_step(impl, w, q):
    """Exactly, for a power of two: less than one step, zeros stay, and the bound is one step."""
    rep, cert = impl(w, qparams=q, rng=rng(), norm="max")
    s, laws = Fraction(float(q.scale)), [Fraction(0)]
    for entry, level in zip(w.ravel().tolist(), decode(rep).ravel().tolist(), strict=True):
        x = Fraction(entry)
        beyond = max(q.qmin * s - x, x - q.qmax * s)
        error = abs(x - Fraction(level))
        if x == 0:
            assert error == 0
        elif beyond > 0:
            assert error == beyond
        else:
            assert error < s
        laws.append(max(s, beyond) if x else Fraction(0))
    law = max(laws)
    assert law <= Fraction(cert.bound)
    # A distance to the range errs by u of both its ends; a step of a power of two does not.
    assert Fraction(cert.bound) <= law + (law > s) * 2.0**-49 * (law + 16 * s)


@given(
    npst.arrays(np.float64, (4, 3), elements=st.floats(-9, 9, allow_subnormal=False)),
    st.sampled_from([2, 4]),
)
def test_within_a_step(w, num_bits):
    law_within_a_step(
        stochastic_quantize, w, QParams(np.array(0.5), np.array(0), num_bits=num_bits)
    )


def test_draws_follow_the_generator():
    w = np.linspace(-1, 1, 60).reshape(6, 10)
    first, again, other = (
        decode(stochastic_quantize(w, num_bits=3, rng=rng(s)).rep) for s in (1, 1, 2)
    )
    assert first.tolist() == again.tolist() != other.tolist()
    check_pure(stochastic_quantize, w, num_bits=3, rng=rng())


# ---- compensated


def test_a_bound_that_can_be_told_is_finite():
    """What compensation would move the second weight to is 2.9e308."""
    w = np.array([[-5.900380758304178e307], [-1.1686388304387755e308]])
    cert = compensated(w, np.array([[3.0, 1.0]]), num_bits=2, norm="max").cert
    assert cert.measured <= cert.bound < np.finfo(float).max


def compensated(w, calibration, **options):
    return compensated_quantize(w, calibration=calibration, **options)


def output_errors(w, decoded, calibration):
    """The squared error of every output column, in rational numbers."""
    d = np.array(
        [[Fraction(a) - Fraction(b) for a, b in zip(*rows, strict=True)] for rows in zip(
            w.tolist(), decoded.tolist(), strict=True)], object
    ).reshape(w.shape)  # fmt: skip
    x = np.array([[Fraction(v) for v in row] for row in calibration.tolist()], object)
    out = x.reshape(calibration.shape) @ d
    return [sum((v * v for v in column), Fraction(0)) for column in out.T]


def law_never_worse(impl, w, calibration, **options):
    """Column by column, and so altogether: exactly, on the calibration inputs."""
    best = decode(impl(w, calibration, **options).rep)
    nearest = decode(quantize(w, **options).rep)
    for a, b in zip(
        output_errors(w, best, calibration), output_errors(w, nearest, calibration), strict=True
    ):
        assert a <= b


GRANULARITIES = [
    {},
    {"axis": -1},
    {"axis": 0},
    {"axis": 0, "block_size": 2},
    {"symmetric": False, "axis": -1},
    {"axis": 1, "power_of_two": True},
    {"symmetric": False, "method": "percentile", "percentile": 60.0},
]
quarters = st.integers(-12, 12).map(lambda k: k / 4)
ROW_BY_ROW = np.array([[2.75], [-0.5], [-2.75]])  # here compensation alone is the worse
INPUTS = np.array([[3.0, 0.0, -3.0], [-3.0, -1.0, 0.0], [3.0, -3.0, -1.0]])


@given(
    st.tuples(*[st.integers(0, 4)] * 3).flatmap(
        lambda n: st.tuples(
            npst.arrays(np.float64, n[1:], elements=quarters, fill=st.nothing()),
            npst.arrays(
                np.float64, n[:2], elements=st.integers(-3, 3).map(float), fill=st.nothing()
            ),
        )
    ),
    st.sampled_from(GRANULARITIES),
    st.sampled_from([2, 3, 4]),
)
@example((ROW_BY_ROW, INPUTS), {}, 3)
def test_never_worse(arrays, options, num_bits):
    law_never_worse(compensated, *arrays, num_bits=num_bits, **options)


@given(
    matrices(max_size=12).flatmap(
        lambda w: st.tuples(
            st.just(w), npst.arrays(w.dtype, (2, w.shape[0]), elements=st.integers(-3, 3))
        )
    )
)
def test_never_worse_on_hard_weights(arrays):
    law_never_worse(compensated, *arrays, num_bits=3)


def law_equal_is_not_nearer(nearer):
    """The same numbers in another order have the same norm, whatever their float sums are."""
    d = rng(6).standard_normal((30, 200))
    assert not nearer(np.eye(30), d[::-1], d).any()
    assert not nearer(np.eye(30), d * (1 + 2.0**-52), d).any()
    assert nearer(np.eye(30), d * (1 - 2.0**-40), d).all()


def nearer_by_products(inputs, first, second):
    return comes_nearer(inputs.T @ inputs, len(inputs), first, second)


def test_equal_is_not_nearer():
    law_equal_is_not_nearer(nearer_by_products)


def test_what_vanishes_in_the_squares_decides_nothing():
    """Twenty outputs of 2**-539 have a norm above 2**-537, but each of their squares is 0."""
    inputs = np.zeros((21, 2))
    inputs[:20, 0], inputs[20, 1] = 2.0**-538, 2.0**-536
    first, second = np.eye(2)[:, :1], np.eye(2)[:, 1:]
    assert nearer_in_floats(inputs, first, second).all()  # and it is not
    assert not nearer_by_products(inputs, first, second).any()
    assert not nearer_by_products(inputs, second, first).any()


@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 4), (4, 64)])
def test_what_is_nearer_by_less_than_all_rounding_decides_nothing(n, k):
    """Two times gamma_(n + 2k + 8) of each square: from a difference of 2 (n + 2k + 8) u on.

    On ones, where the sum of magnitudes is the sum; the squares and the sums here round by some u.
    """
    inputs, second = np.ones((n, k)), np.ones((k, 1))
    units = 2 * (n + 2 * k + 8)
    spread = 2 if n * k == 1 else 16
    for difference, nearer in ((units - spread, False), (units + spread, True)):
        first = second * (1 - difference * 2.0**-53)
        assert nearer_by_products(inputs, first, second).all() == nearer


@pytest.mark.parametrize(("n", "k"), [(1, 2), (1, 3), (2, 3), (5, 3)])
def test_what_the_squares_can_lose_is_allowed_for_and_no_more(n, k):
    """2**-500 (n + k)**3 for each of the two: one output is 0, the other that twice, or a bit more.

    The columns' largest entry is 1 and so scaled to 1/2; the other roundings are of 2**-53 of it.
    """
    first, second = np.zeros((k, 1)), np.zeros((k, 1))
    first[1], second[1], second[0] = 1.0, 1.0, 1.0
    inputs = np.zeros((n, k))
    for part, nearer in ((0.99, False), (1.01, True)):
        inputs[0, 0] = 2 * math.sqrt(part * 2.0 * (n + k) ** 3) * 2.0**-250
        assert nearer_by_products(inputs, first, second).all() == nearer


def nearer_in_floats(inputs, first, second):
    return np.linalg.norm(inputs @ first, axis=0) < np.linalg.norm(inputs @ second, axis=0)


def lawcomes_nearer(impl):
    """Two inputs that are always equal: one weight makes up for the error of the other."""
    w, x = np.array([[7.0], [0.4], [0.4]]), np.array([[0.0, 1.0, 1.0]])
    decoded = decode(impl(w, x, num_bits=4).rep)
    assert decoded.tolist() == [[7.0], [1.0], [0.0]]
    general = rng(3)
    x = general.standard_normal((40, 8)) @ general.standard_normal((8, 12))
    w = general.standard_normal((12, 6))
    best = decode(impl(w, x, num_bits=3, axis=-1).rep)
    nearest = decode(quantize(w, num_bits=3, axis=-1).rep)
    assert np.linalg.norm(x @ (w - best)) < 0.8 * np.linalg.norm(x @ (w - nearest))


def testcomes_nearer():
    lawcomes_nearer(compensated)


def nearest_plane(w, x, q):
    """The same by back substitution, as Babai has it; returns steps and targets.

    With H = R'R, the squared error of the output is that of R (w - w'). Its row i is least if w'_i
    is near ``w_i + sum_(j > i) R_ij / R_ii (w - w')_j``: from the last row upward.
    """
    h = x.T @ x
    h += np.diag(DAMPING * np.diag(h))
    order = np.argsort(np.diag(h), kind="stable")
    factor = np.linalg.cholesky(h[np.ix_(order, order)]).T
    scale = np.broadcast_to(q.scale.reshape((1, -1) if q.axis else ()), w.shape)
    targets, steps, errors = np.empty_like(w), np.empty_like(w), np.zeros_like(w)
    for i in reversed(range(len(order))):
        row = order[i]
        targets[row] = w[row] + factor[i, i + 1 :] @ errors[i + 1 :] / factor[i, i]
        steps[row] = np.clip(np.rint(targets[row] / scale[row]), q.qmin, q.qmax)
        errors[i] = w[row] - steps[row] * scale[row]
    return steps, targets


@pytest.mark.parametrize("axis", [None, 1])
def test_gptq_is_the_nearest_plane_algorithm(axis):
    """Back substitution gives the same codes, and its corrections give the same bound."""
    general = rng(5)
    x = general.standard_normal((60, 10)) @ general.standard_normal((10, 14))
    x += 0.1 * general.standard_normal((60, 14))
    w = general.standard_normal((14, 20))
    q = choose_qparams(w, num_bits=4, axis=axis)
    rep, cert = compensated(w, x, qparams=q)
    steps, targets = nearest_plane(w, x, q)
    scale = np.broadcast_to(q.scale, w.shape)
    nearest = np.asarray(quantize(w, qparams=q).rep.codes)
    plain = (rep.codes == nearest).all(axis=0)  # fell back, and then nothing was corrected
    assert plain.sum() <= 3
    assert (rep.codes == steps)[:, ~plain].all()
    targets = np.where(plain, w, targets)
    outside = np.maximum(q.qmin * scale - targets, targets - q.qmax * scale)
    entries = np.maximum(scale / 2, outside) + np.abs(targets - w)
    # The two loops round differently, by some 1e-13 of the corrections.
    assert cert.bound == pytest.approx(np.linalg.norm(entries), rel=1e-9)
    assert cert.measured < cert.bound


def law_without_inputs_nearest(impl, w, calibration):
    """No inputs, or none but zeros: nothing to compensate, so nearest with its certificate."""
    plain = quantize(w, num_bits=3, axis=-1)
    rep, cert = impl(w, calibration, num_bits=3, axis=-1)
    assert decode(rep).tobytes() == decode(plain.rep).tobytes()
    assert cert == plain.cert


@given(matrices(max_size=20), st.integers(0, 2))
def test_without_inputs_nearest(w, count):
    law_without_inputs_nearest(compensated, w, np.zeros((count, w.shape[0]), w.dtype))


def test_an_input_that_is_always_zero_is_rounded_to_nearest():
    w = np.array([[0.4, 1.4], [7.0, -7.0], [0.4, -0.4], [0.4, -0.4]])
    x = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]])
    codes = compensated(w, x, num_bits=4).rep.codes
    assert codes.tolist() == [[0, 1], [7, -7], [1, -1], [0, 0]]


def test_a_zero_may_move_and_the_bound_says_so():
    w, x = np.array([[7.0], [0.4], [0.0]]), np.array([[0.0, 1.0, 0.4]])
    rep, cert = compensated(w, x, num_bits=4, norm="max")
    assert decode(rep).T.tolist() == [[7.0, 0.0, 1.0]]
    assert cert.measured == 1.0
    assert cert.bound >= 1.0


def test_the_scale_of_inputs_and_weights_does_not_matter():
    general = rng(7)
    x = general.standard_normal((20, 4)) @ general.standard_normal((4, 12))
    w = general.standard_normal((12, 5))
    right = compensated(w, x, num_bits=3)
    assert (right.rep.codes != quantize(w, num_bits=3).rep.codes).any(axis=0).all()
    for exponent in (-900, -200, 200, 900):
        rep, cert = compensated(w, np.ldexp(x, exponent), num_bits=3)
        assert rep.codes.tolist() == right.rep.codes.tolist()
        assert cert == right.cert
        rep, cert = compensated(np.ldexp(w, exponent), x, num_bits=3)
        assert rep.codes.tolist() == right.rep.codes.tolist()


def test_corrections_that_overflow_fall_back():
    w = np.array([[1e308, -1e308], [1e308, 3.0], [-1e308, 0.3]])
    x = np.array([[1.0, 1e-150, 1e-150], [1.0, 2e-150, -1e-150]])
    law_never_worse(compensated, w, x, num_bits=2)


def test_a_kernel_is_its_matrix():
    general = rng(2)
    kernel, x = general.standard_normal((2, 3, 2, 4)), general.standard_normal((30, 12))
    for options in ({"axis": -1}, {"axis": 2, "block_size": 1}, {}):
        rep, cert = compensated(kernel, x, num_bits=3, **options)
        q = choose_qparams(kernel, num_bits=3, **options)
        gram = gram_of(x, 12, x.dtype)
        steps = compensated_steps(kernel, q.grid(kernel), kernel.dtype, gram)[1]
        assert rep.codes.tolist() == steps.tolist()
        assert cert.measured <= cert.bound
    flat = compensated(kernel.reshape(12, 4), x, num_bits=3, axis=-1)
    rep, cert = compensated(kernel, x, num_bits=3, axis=-1)
    assert rep.codes.reshape(12, 4).tolist() == flat.rep.codes.tolist()
    assert cert == flat.cert


def law_groups(impl):
    """Each group of outputs is compensated on its own inputs, as if it were a weight of its own."""
    general = rng(8)
    kernel, x = general.standard_normal((3, 3, 2, 6)), general.standard_normal((3, 40, 18))
    x = x @ general.standard_normal((18, 18))
    codes = impl(kernel, x, num_bits=3, axis=-1).rep.codes
    for g in range(3):
        part = compensated(kernel[..., 2 * g : 2 * g + 2], x[g], num_bits=3, axis=-1)
        assert codes[..., 2 * g : 2 * g + 2].tolist() == part.rep.codes.tolist()


def test_groups():
    law_groups(compensated)


def test_inputs_come_in_blocks():
    """Of powers of two and integers every sum is exact, so no order of adding matters."""
    general = rng(9)
    w, x = general.standard_normal((6, 4)), general.integers(-4, 5, (50, 6)) * 1.0
    x[:7] = 0
    x[30:] *= 2.0**20
    whole = compensated(w, x, num_bits=3)
    for sizes in ([7, 20], [40], []):
        blocks = iter(np.split(x, np.cumsum(sizes, dtype=int)))
        found = compensated(w, blocks, num_bits=3)
        assert found.rep.codes.tolist() == whole.rep.codes.tolist()
        assert found.cert == whole.cert
    assert compensated(w, iter([]), num_bits=3).cert == quantize(w, num_bits=3).cert


def test_rows_are_corrected_late_and_all_the_same():
    """More rows than are corrected together: the same steps as one correction after the other."""
    general = rng(10)
    w, x = general.standard_normal((150, 3)), general.standard_normal((300, 150))
    x += x @ general.standard_normal((150, 150))
    q = choose_qparams(w, num_bits=4, axis=1)
    steps, _ = nearest_plane(w, x, q)
    grid = Grid(*(np.broadcast_to(part, w.shape) for part in q.grid(w)))
    assert (gptq(w, grid, w.dtype, x.T @ x)[1] == steps).mean() > 0.99


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    general = rng(4)
    x, w = general.standard_normal((30, 9)), general.standard_normal((9, 7))
    right = compensated(w, x, num_bits=3)
    again = compensated(in_layout(w, layout), in_layout(x, layout), num_bits=3)
    assert again.rep.codes.tolist() == right.rep.codes.tolist()
    assert again.cert == right.cert


def test_arguments_are_left_alone():
    x, w = np.eye(4)[:3] + 0.5, np.arange(12.0).reshape(4, 3)
    check_pure(compensated_quantize, w, num_bits=3, calibration=x)


# ---- the contract


def seeded(w, **options):
    return stochastic_quantize(w, rng=rng(), **options)


def calibrated(w, count=5, **options):
    """On inputs that depend on nothing but the shape."""
    width = math.prod(w.shape[:-1])
    x = rng().integers(-3, 4, (count, width)).astype(w.dtype.newbyteorder("="))
    return compensated(w, x, **options)


CONTRACT = {
    "stochastic": (partial(seeded, num_bits=3, symmetric=False, norm="max"), weights()),
    "stochastic, power of two": (partial(seeded, num_bits=4, power_of_two=True), weights()),
    "compensated": (partial(calibrated, num_bits=3, norm="max"), matrices()),
    "compensated, per channel": (partial(calibrated, num_bits=4, axis=-1), conv_kernels()),
    "compensated, few inputs": (
        partial(calibrated, count=1, num_bits=2, axis=0, symmetric=False, power_of_two=True),
        matrices(),
    ),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_contract(name):
    check_compressor(*CONTRACT[name], seconds=contract_seconds())


# ---- what is refused

W, X = np.ones((2, 3)), np.ones((4, 2))
BAD = {
    "rng must be a numpy.random.Generator": lambda: stochastic_quantize(W, rng=0),
    "give qparams or num_bits": lambda: stochastic_quantize(
        W, rng=rng(), num_bits=4, qparams=UNIT_STEP
    ),
    "give qparams or signed, axis": lambda: compensated(
        W, X, qparams=UNIT_STEP, signed=False, axis=0
    ),
    "norm must be one of": lambda: compensated(W, X, norm="l1"),
    "calibration must be \\(N, 2\\)": lambda: compensated(W, X.T),
    "this weight, not \\(2,\\)": lambda: compensated(W, X[0]),
    "must have groups that divide the 3 outputs, not 2": lambda: compensated(W, np.ones((2, 4, 2))),
    "this weight, not \\(0, 4, 2\\)": lambda: compensated(W, np.ones((0, 4, 2))),
    "this weight, not \\(1, 4, 2\\)": lambda: compensated(W, iter([X, X[np.newaxis]])),
    "this weight, not \\(3, 1, 2\\)": lambda: compensated(
        W, iter([np.ones((1, 1, 2)), np.ones((3, 1, 2))])
    ),
    "calibration must be finite": lambda: compensated(W, X * np.nan),
    "calibration must be of dtype": lambda: compensated(W, X.astype(int)),
    "calibration is float32": lambda: compensated(W, X.astype("f4")),
    "weight must be \\(in, out\\)": lambda: compensated(W[0], X),
    "not of shape \\(1, 2, 3\\)": lambda: compensated(W[np.newaxis], X),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(CompressionError, match=message):
        BAD[message]()


# ---- wrong implementations, and the laws that they break


def always_nearest(x, grid, dtype, source):
    return grid.nearest(x)


def always_up(x, grid, dtype, source):
    return np.clip(np.ceil(x / grid.scale), grid.low, grid.high)


def biased(x, grid, dtype, source):
    exact = np.clip(x / grid.scale, grid.low, grid.high)
    down = np.floor(exact)
    return down + (source.random(x.shape) < (exact - down) ** 2)


def two_steps(x, grid, dtype, source):
    exact = np.clip(x / grid.scale, grid.low, grid.high)
    down = np.floor(exact) - 1  # as far below as above, and the mean is right
    return down + 3 * (source.random(x.shape) < (exact - down) / 3)


def without_levels(x, grid, dtype, source):
    exact = np.clip(x / grid.scale, grid.low, grid.high)
    down = np.floor(exact)
    return down + (source.random(x.shape) < exact - down)


def unclipped(x, grid, dtype, source):
    down = np.floor(x / grid.scale)
    return down + (source.random(x.shape) < x / grid.scale - down)


def whole(steps_of, reach=1.0):
    """A quantize with another stochastic rounding."""

    def impl(w, *, qparams, rng, norm):
        _rep, cert = stochastic_quantize(w, qparams=qparams, rng=rng, norm=norm)
        grid = qparams.grid(w)
        decoded = grid.levels(steps_of(w, grid, w.dtype, rng), w.dtype)
        error = float(np.abs(w - decoded).max())
        return decoded, cert._replace(bound=cert.bound * reach, measured=error)

    return impl


def without_fallback(w, calibration, qparams):
    grid = Grid(*(np.broadcast_to(part, w.shape) for part in qparams.grid(w)))
    steps = gptq(w, grid, w.dtype, calibration.T @ calibration)[1]
    return quantize(grid.levels(steps, w.dtype), qparams=qparams)


def nothing_compensated(w, calibration, **options):
    return quantize(w, **options)


def first_group_only(w, calibration, **options):
    return compensated(w, calibration[0], **options)


def wrong_certificate(w, calibration, **options):
    rep, cert = compensated(w, calibration, **options)
    return rep, cert._replace(bound=2 * cert.bound)


HALVES = np.array([0.25, 3.5, -2.75])
PLANTED = {
    "nearest, not at random": (law_chances, always_nearest, HALVES),
    "always up": (law_chances, always_up, HALVES),
    "biased": (law_chances, biased, HALVES),
    "by more than a step": (law_chances, two_steps, HALVES),
    "levels move": (law_levels_stay, without_levels, np.float32),
    "leaves the range": (law_beyond_the_range, unclipped),
    "biased, by its mean": (law_mean, whole(biased)),
    "by more than a step, as a whole": (law_within_a_step, whole(two_steps), HALVES, UNIT_STEP),
    "a bound of half a step": (
        law_within_a_step,
        whole(stochastic_steps, reach=0.5),
        HALVES,
        UNIT_STEP,
    ),
    "a bound of two steps": (law_mean, whole(stochastic_steps, reach=2.0)),
    "compensated without falling back": (
        lambda impl, w, x: law_never_worse(impl, w, x, qparams=UNIT_STEP),
        without_fallback,
        ROW_BY_ROW,
        INPUTS,
    ),
    "compared without a margin": (law_equal_is_not_nearer, nearer_in_floats),
    "one group's inputs for all": (law_groups, first_group_only),
    "nothing compensated": (lawcomes_nearer, nothing_compensated),
    "another bound without inputs": (
        law_without_inputs_nearest,
        wrong_certificate,
        W * [0.1, 0.5, 1.0],
        X * 0,
    ),
}


RIGHT = {
    law_mean: stochastic_quantize,
    law_within_a_step: stochastic_quantize,
    law_chances: stochastic_steps,
    law_levels_stay: stochastic_steps,
    law_beyond_the_range: stochastic_steps,
    law_equal_is_not_nearer: nearer_by_products,
}


@pytest.mark.parametrize("name", PLANTED)
def test_wrong_implementations_are_found(name):
    law, wrong, *arguments = PLANTED[name]
    law(RIGHT.get(law, compensated), *arguments)
    with pytest.raises(AssertionError):
        law(wrong, *arguments)


def test_a_correction_is_added_upward():
    """1 + 2**-54 rounds to 1: the bound has to be above the exact sum all the same."""
    entries, x, targets = np.array([1.0]), np.array([0.0]), np.array([2.0**-54])
    (bound,) = corrected_bounds(entries, x, targets).tolist()
    assert Fraction(bound) > 1 + Fraction(1, 2**54)
    assert corrected_bounds(entries, x, x).tolist() == [1.0]
