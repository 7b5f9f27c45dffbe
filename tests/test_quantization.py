"""quantize: which codes, and a bound that is the law's, sound in rational numbers and attained."""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from budgets import contract_seconds
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from test_norms import law_within_units

from minicompress.compressors.bounds.quantization import entry_bounds
from minicompress.compressors.quantization import quantize
from minicompress.errors import CompressionError
from minicompress.norms import error_norm, norm_of
from minicompress.qparams import Grid, QParams, choose_qparams, fake_quantize
from minicompress.representation import Certificate, Compressed, Quantized, decode
from minicompress.testing.checks import check_compressor, check_pure
from minicompress.testing.strategies import conv_kernels, matrices, weights

DTYPES = [np.float16, np.float32, np.float64]
U64 = Fraction(2) ** -53
TOP64 = Fraction(float(np.finfo(np.float64).max))


def exact(array):
    return [Fraction(x) for x in np.asarray(array, np.float64).ravel().tolist()]


def grids(w, q):
    """Scale, lowest and highest step of every entry in C order, found index by index."""
    axis = None if q.axis is None else q.axis % w.ndim
    for index in np.ndindex(w.shape):
        if axis is None:
            g = ()
        elif q.block_size is None:
            g = (index[axis],)
        else:
            g = (*index[:axis], index[axis] // q.block_size, *index[axis + 1 :])
        zero = int(q.zero_point[g])
        yield Fraction(float(q.scale[g])), q.qmin - zero, q.qmax - zero


def entry_law(x, s, low, high, reach=Fraction(1, 2)):
    """Half a step, or the distance to the range where that is more; nothing for a zero."""
    if x == 0 and low <= 0 <= high:
        return Fraction(0)
    return max(reach * s, low * s - x, x - high * s)


def entry_slack(x, decoded, law, dtype):
    """What rounding may add: to the quotient, to the level and its cast, to the bound itself."""
    info = np.finfo(dtype)
    unit, eta = Fraction(float(info.eps)) / 2, Fraction(float(info.smallest_subnormal))
    twice = Fraction(2) ** -23 if dtype == np.float16 else 0  # float32 before float16
    slack = 4 * U64 * abs(x) + (unit + twice + 8 * U64) * abs(decoded) + eta
    return slack + 8 * U64 * (law + slack) + Fraction(5e-324)


supplied = st.builds(
    lambda scale, zero, bits, signed, narrow: (
        scale,
        zero,
        {"num_bits": bits, "signed": signed, "narrow_range": narrow},
    ),
    st.sampled_from([1.0, 0.5, 0.1, 3.0, 2.0**-14]),
    st.sampled_from([0, 1, -1, 100, -300]),
    st.sampled_from([2, 3, 8, 16]),
    st.booleans(),
    st.booleans(),
)
calibrated = st.fixed_dictionaries(
    {
        "num_bits": st.sampled_from([2, 4, 8]),
        "signed": st.booleans(),
        "symmetric": st.booleans(),
        "narrow_range": st.booleans(),
        "power_of_two": st.booleans(),
        "axis": st.sampled_from([None, 0, -1]),
        "block_size": st.sampled_from([None, 2]),
    }
).filter(lambda o: o["axis"] is not None or o["block_size"] is None)


def supplied_qparams(w, case):
    scale, zero, options = case
    return QParams(np.array(scale, w.dtype), np.array(zero), **options)


# ---- the bound


def law_bound_is_the_law(impl, w, q, kind):
    """bound is what steps and ranges give, and above that no more than rounding can make."""
    rep, cert = impl(w, qparams=q, norm=kind)
    decoded = exact(decode(rep))
    laws = [entry_law(x, *grid) for x, grid in zip(exact(w), grids(w, q), strict=True)]
    above = [
        law + (entry_slack(x, d, law, w.dtype) if law else 0)
        for x, d, law in zip(exact(w), decoded, laws, strict=True)
    ]
    if math.isinf(cert.bound):
        assert sum(above) > TOP64
        return
    bound = Fraction(cert.bound)
    if kind == "max":
        assert max(laws, default=0) <= bound <= max(above, default=0)
    else:
        assert sum(x * x for x in laws) <= bound**2
        # fro_upper: 2 (n + 8) u on purpose and at most as much by its own roundings.
        rounding = 1 + 4 * (w.size + 40) * U64
        assert max(bound - Fraction(2e-323), 0) ** 2 <= sum(x * x for x in above) * rounding**2


@given(weights(min_ndim=2, max_ndim=3), calibrated, st.sampled_from(["max", "fro"]))
def test_bound_is_the_law(w, options, kind):
    law_bound_is_the_law(quantize, w, choose_qparams(w, **options), kind)


@given(weights(max_ndim=2), supplied, st.sampled_from(["max", "fro"]))
def test_bound_is_the_law_for_supplied_scales(w, case, kind):
    law_bound_is_the_law(quantize, w, supplied_qparams(w, case), kind)


@given(
    npst.arrays(np.float64, 8, elements=st.floats(-1e6, 1e6)),
    st.sampled_from([0.3, 7.0]),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from(DTYPES),
)
def test_an_entry_within_the_range_has_the_allowance_that_is_derived(x, scale, reach, dtype):
    """reach steps, 4 u |x|, u of dtype and 8 u of |x'|, and eta: no less and no more.

    Thousands of steps from zero, where a unit more of these is many of the bound's own.
    """
    kind = np.float32 if dtype == np.float16 else dtype
    grid = Grid(np.array(scale, kind), *map(np.array, (-1e9, 1e9, 0.0)))
    info, scale = np.finfo(dtype), float(grid.scale)
    # What float16 decodes to was rounded to float32 before: 2 u of that.
    twice = Fraction(2) ** -23 if dtype == np.float16 else 0
    x = np.clip(x, -float(info.max) / 2, float(info.max) / 2)  # else the dtype is the range
    decoded = grid.levels(grid.nearest(x), dtype)
    unit, eta = Fraction(float(info.eps)) / 2, Fraction(float(info.smallest_subnormal))
    for bound, a, b in zip(entry_bounds(x, decoded, grid, reach), exact(x), exact(decoded)):
        slack = 4 * U64 * abs(a) + (unit + twice + 8 * U64) * abs(b) + eta
        law = (Fraction(scale) * Fraction(reach) + slack) * (1 + 4 * U64)
        law_within_units(bound, law if a else Fraction(0), 7)  # two products, five sums


@pytest.mark.parametrize("dtype", DTYPES)
def test_levels_need_no_slack_as_long_as_their_integers_are_exact(dtype):
    """Up to 1 / u they are, in steps of a power of two; from the next one on they are rounded."""
    most = 2 / float(np.finfo(dtype).eps)
    x = np.array([1.25, -0.5, 1000.5])
    for end, exact_there in ((most, True), (np.nextafter(most, np.inf), False)):
        for low, high in ((-end, 2000.0), (-2000.0, end)):
            grid = Grid(*map(np.array, (1.0, low, high, 0.0)))
            bounds = entry_bounds(x, grid.levels(grid.nearest(x), dtype), grid)
            assert (bounds == 0.5).all() if exact_there else (bounds > 0.5).all()


def law_error_below_bound(impl, w, q, kind="max"):
    """Exactly: a float oracle would be wrong by itself."""
    rep, cert = impl(w, qparams=q, norm=kind)
    errors = [abs(x - d) for x, d in zip(exact(w), exact(decode(rep)), strict=True)]
    if not math.isinf(cert.bound):
        if kind == "max":
            assert max(errors, default=0) <= Fraction(cert.bound)
        else:
            assert sum(e * e for e in errors) <= Fraction(cert.bound) ** 2


@given(weights(max_ndim=2), supplied)
def test_error_below_bound(w, case):
    law_error_below_bound(quantize, w, supplied_qparams(w, case))


def half_steps(scale, dtype):
    """Every tie of int8, as near as the dtype has it: where plain s / 2 fails."""
    return ((np.arange(-127, 127) + 0.5) * np.float64(dtype(scale))).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.7])
def test_error_below_bound_on_planted_ties(dtype, scale):
    q = QParams(np.array(scale, dtype), np.array(0))
    for entry in half_steps(scale, dtype):
        law_error_below_bound(quantize, np.array([entry]), q)


def law_power_of_two_needs_no_slack(impl, w, q):
    """Property 11: |w - w'| <= s / 2, and the bound says just that."""
    rep, cert = impl(w, qparams=q, norm="max")
    laws = [entry_law(x, *grid) for x, grid in zip(exact(w), grids(w, q), strict=True)]
    errors = [abs(x - d) for x, d in zip(exact(w), exact(decode(rep)), strict=True)]
    assert all(e <= law for e, law in zip(errors, laws, strict=True))
    assert Fraction(cert.bound) == max(laws, default=0)


TAME = ("integers", "ordinary", "zeros", "ties")


@given(
    weights(kinds=TAME, min_ndim=2, max_ndim=3),
    calibrated.map(lambda o: {**o, "power_of_two": True}),
)
def test_power_of_two_needs_no_slack(w, options):
    law_power_of_two_needs_no_slack(quantize, w, choose_qparams(w, **options))


def test_power_of_two_ties_beyond_the_end_need_no_slack():
    q = QParams(np.array(1.0), np.array(0), num_bits=2)  # -2 to 1
    for x, bound in ((1.5, 0.5), (-2.5, 0.5), (0.5, 0.5), (1.0, 0.5), (0.0, 0.0)):
        assert quantize(np.array([x]), qparams=q, norm="max").cert.bound == bound
    # Levels -4 to -1, which end before zero: in floats this entry is 0.5 away, in truth further.
    beside = QParams(np.array(1.0), np.array(2), num_bits=2)
    law_error_below_bound(quantize, np.array([-0.5 + 2.0**-54]), beside)


# ---- the bound is attained


def law_tight(impl, dtype):
    """Properties 6: on constant half steps bound and error are the same, in every norm."""
    q = QParams(np.array(0.25, dtype), np.array(0))
    w = np.full((4, 5), 0.125 * 7, dtype)
    for kind, error in (("max", 0.125), ("fro", 0.125 * math.sqrt(20))):
        _rep, cert = impl(w, qparams=q, norm=kind)
        assert cert.measured == pytest.approx(error, rel=20 * 2.0**-53)
        # fro_upper's 2 (n + 8) u and as much for its roundings; "max" is exact.
        assert cert.bound <= error * (1 + (4 * (w.size + 40) * 2.0**-53 if kind == "fro" else 0))
    spectral = impl(w, qparams=q, norm="spectral").cert
    assert spectral.bound <= 0.125 * math.sqrt(20) * (1 + 1e-13)
    outside = impl(np.array([1000.0], dtype), qparams=q, norm="max").cert
    assert outside.bound <= (1000 - 127 / 4) * (1 + 4 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bound_is_attained(dtype):
    law_tight(quantize, dtype)


def test_an_end_of_the_range_beyond_the_dtype_is_its_largest_number():
    """All levels are from 72e307 on, and decode to the largest float64."""
    q = QParams(np.array(1e307), np.array(-200))
    law_error_below_bound(quantize, np.array([1e308]), q)
    cert = quantize(np.array([1e308]), qparams=q, norm="max").cert
    # 4 u of the entry, 9 u of the level, 4 u of the distance, and u of what was measured.
    slack = 2.0**-53 * (4 * 1.0 + 9 * 1.8 + 5 * 0.8)
    assert cert.measured <= cert.bound <= cert.measured + slack * 1e308
    half = QParams(np.array(1e3, "f2"), np.array(-200))
    law_error_below_bound(quantize, np.array([1.0, 2.0], "f2"), half)
    cert = quantize(np.array([1.0, 2.0], "f2"), qparams=half, norm="max").cert
    assert cert.measured == 65503
    # u of the level; eta and some u of float64 are less than the last number together.
    assert cert.bound <= 65503 + 65504 * 2.0**-11 + 2.0**-23


# ---- the codes


def law_nearest(impl, w, q):
    """The nearest level in rational numbers, ties to even steps, saturated; decoded at once.

    float16 and float32 only: w / s - (k + 1/2) is 0 or at least 2**-24 * 2**-24 * 2**-3 of k there,
    which float64 keeps apart.
    """
    rep, _ = impl(w, qparams=q)
    decoded = decode(rep).ravel()
    info = np.finfo(w.dtype)
    for x, (s, low, high), got in zip(exact(w), grids(w, q), decoded, strict=True):
        steps = min(max(round(x / s), low), high)
        level = min(max(steps * s, -Fraction(float(info.max))), Fraction(float(info.max)))
        rounded = q.scale.dtype.type(float(level))  # to float32 before float16
        assert got == w.dtype.type(rounded), (float(x), float(s))


single = weights(dtypes=[np.dtype("f4"), np.dtype("f2")], min_ndim=2, max_ndim=3)


@given(single, calibrated)
def test_codes_are_the_nearest(w, options):
    law_nearest(quantize, w, choose_qparams(w, **options))


def law_by_hand(impl, x, codes, scale=1.0, zero_point=0, **options):
    """A table row: what is decoded is the level of the right code."""
    for dtype in DTYPES:
        q = QParams(np.array(scale, dtype), np.array(zero_point), **options)
        w = np.array(x, dtype)
        right = dtype((np.array(codes, float) - zero_point) * scale)
        assert decode(impl(w, qparams=q).rep).tolist() == right.tolist()


BY_HAND = {
    "ties to even": ([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], [-2, -2, 0, 0, 2, 2]),
    "ties to even, then the zero point": ([0.5, 1.5], [1, 3], 1.0, 1),
    "divided, not multiplied by 1/15": ([757.5], [50], 15.0),  # requirement 12
    "saturated": ([-999.0, 999.0], [-128, 127]),
    "narrow": ([-999.0, 999.0], [-127, 127], 1.0, 0),
    "int8 subtraction": ([227.0], [127], 1.0, -100),
}
NARROW = {"narrow": {"narrow_range": True}}


@pytest.mark.parametrize("name", BY_HAND)
def test_codes_by_hand(name):
    law_by_hand(quantize, *BY_HAND[name], **NARROW.get(name, {}))


def law_half_a_step(impl, w, **options):
    """Property 10: scales of its own choosing leave no entry of that array out of range."""
    rep, _ = impl(w, **options)
    s, unit = Fraction(float(rep.scale)), Fraction(float(np.finfo(w.dtype).eps)) / 2
    for x, d in zip(exact(w), exact(decode(rep)), strict=True):
        # The scale, rounded to its dtype, moves the end of the range by u of 2**num_bits steps.
        assert abs(x - d) <= s / 2 + (2**rep.num_bits + 4) * unit * s


@given(weights(kinds=TAME), st.sampled_from([2, 4, 8]), st.booleans())
def test_half_a_step(w, num_bits, symmetric):
    law_half_a_step(quantize, w, num_bits=num_bits, symmetric=symmetric)


def law_zero(impl, w, **options):
    """Property 13, requirements 9 and 11: zeros stay, and decode to +0.0."""
    decoded = decode(impl(w, **options).rep)
    assert decoded[w == 0].tobytes() == np.zeros(np.count_nonzero(w == 0), w.dtype).tobytes()


@given(weights(), st.booleans(), st.sampled_from([2, 8]))
def test_zeros_stay(w, symmetric, num_bits):
    law_zero(quantize, w, symmetric=symmetric, num_bits=num_bits)


def law_monotone(impl, w, q):
    decoded = decode(impl(np.sort(w.ravel()), qparams=q).rep)
    assert (np.diff(decoded.astype(np.float64)) >= 0).all()


@given(weights(), supplied)
def test_monotone(w, case):
    law_monotone(quantize, w, supplied_qparams(w, case))


def law_odd(impl, w, **options):
    """Property 15: Q(-w) = -Q(w) for narrow-range symmetric codes."""
    plus, minus = (decode(impl(x, narrow_range=True, **options).rep) for x in (w, -w))
    assert (plus == -minus).all()


@given(weights(), st.sampled_from([2, 3, 8]), st.booleans())
def test_odd(w, num_bits, signed):
    law_odd(quantize, w, num_bits=num_bits, signed=signed)


def law_idempotent(impl, w, q):
    """Property 16: what is a level stays, for frozen qparams."""
    once = decode(impl(w, qparams=q).rep)
    assert decode(impl(once, qparams=q).rep).tobytes() == once.tobytes()


@given(weights(max_ndim=3, min_ndim=2), calibrated)
def test_idempotent(w, options):
    law_idempotent(quantize, w, choose_qparams(w, **options))


def law_codes_in_range(impl, w, **options):
    """Property 18: within the codes in use; the largest magnitude gets an end code."""
    codes = np.asarray(impl(w, **options).rep.codes).astype(int)
    bits, signed = options["num_bits"], options.get("signed", True)
    low = (-(2 ** (bits - 1)) if signed else 0) + options.get("narrow_range", False)
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    assert codes.min(initial=high) >= low
    assert codes.max(initial=low) <= high
    middle = 0 if signed else 2 ** (bits - 1)
    # Less would take a scale below the smallest normal number, which is the least there is.
    kind = np.float32 if w.dtype == np.float16 else w.dtype
    if w.size and float(np.abs(w).max()) >= (high - middle) * float(np.finfo(kind).tiny):
        assert np.abs(codes - middle).max() == high - middle


@given(
    weights(),
    st.fixed_dictionaries(
        {
            "num_bits": st.sampled_from([2, 4, 8]),
            "signed": st.booleans(),
            "narrow_range": st.booleans(),
        }
    ),
)
@example(np.array(0.0039, np.float16), {"num_bits": 8, "signed": True, "narrow_range": False})
def test_codes_in_range(w, options):
    law_codes_in_range(quantize, w, **options)


def law_clipped(impl, w, q):
    """Property 12: beyond the range the error is the distance to its end; the bound says so."""
    for entry in w.ravel():
        rep, cert = impl(np.array([entry]), qparams=q, norm="max")
        s, low, high = next(grids(np.array([entry]), q))
        x = Fraction(float(entry))
        distance = max(low * s - x, x - high * s)
        if distance > s / 2:
            assert abs(x - Fraction(float(decode(rep)[0]))) == distance
            assert Fraction(cert.bound) >= distance
            eps = Fraction(float(np.finfo(w.dtype).eps))
            assert Fraction(cert.bound) <= distance + 4 * eps * (abs(x) + abs(high * s))


@given(
    npst.arrays(np.float32, 6, elements=st.floats(-4096, 4096, width=32)),
    st.sampled_from([-3, 0, 2]),
    st.booleans(),
)
def test_clipped(w, zero_point, narrow_range):
    q = QParams(np.array(0.5, "f4"), np.array(zero_point), num_bits=4, narrow_range=narrow_range)
    law_clipped(quantize, w, q)


def law_channels_are_apart(impl, w, channel, power, axis):
    """Property 19: scaling a channel by 2**j scales what it decodes to, and nothing else."""
    before, after = w.copy(), w.copy()
    index = tuple(channel if i == axis else slice(None) for i in range(w.ndim))
    after[index] = np.ldexp(after[index], power)
    old, new = (decode(impl(x, axis=axis, num_bits=4).rep) for x in (before, after))
    right = old.copy()
    right[index] = np.ldexp(right[index], power)
    assert new.tolist() == right.tolist()


@given(
    npst.arrays(np.float32, (3, 4), elements=st.integers(1, 9).map(float)),
    st.integers(0, 2),
    st.integers(-8, 8),
    st.sampled_from([0, 1]),
)
def test_channels_are_apart(w, channel, power, axis):
    law_channels_are_apart(quantize, w, channel, power, axis)


def law_leaves_the_input_alone(impl, w):
    check_pure(impl, w, num_bits=3)


@given(weights(), calibrated)
def test_fake_quantize_is_quantize_and_decode(w, options):
    if w.ndim < 2:
        options = {**options, "axis": None, "block_size": None}
    q = choose_qparams(w, **options)
    assert fake_quantize(w, q).tobytes() == decode(quantize(w, qparams=q).rep).tobytes()


def test_recalibration_is_not_idempotent():
    """Measured and said so: 127 (max / 127) may not be max."""
    changed = 0
    for k in range(1, 1000):
        once = decode(quantize(np.array([float(k)]), num_bits=4).rep)
        changed += decode(quantize(once, num_bits=4).rep)[0] != once[0]
    assert changed < 300


# ---- the contract, on everything that can be asked for

CONTRACT = {
    "8 bits": (partial(quantize), None),
    "2 bits, narrow": (partial(quantize, num_bits=2, narrow_range=True, norm="max"), None),
    "affine": (partial(quantize, num_bits=3, symmetric=False), None),
    "16 bits": (partial(quantize, num_bits=16, signed=False, norm="max"), None),
    "power of two": (
        partial(quantize, num_bits=4, symmetric=False, power_of_two=True, norm="max"),
        None,
    ),
    "mse": (partial(quantize, num_bits=3, method="mse"), None),
    "percentile": (partial(quantize, num_bits=4, method="percentile", percentile=60.0), None),
    "per column": (partial(quantize, num_bits=4, axis=-1, norm="spectral"), matrices()),
    "per channel": (partial(quantize, num_bits=4, axis=2, norm="max"), conv_kernels()),
    "per block": (partial(quantize, num_bits=5, axis=0, block_size=2), weights(min_ndim=1)),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_contract(name):
    check_compressor(*CONTRACT[name], seconds=contract_seconds())


# ---- what is refused

W = np.ones((2, 3))
Q = choose_qparams(W)
BAD = {
    "weight must be finite": lambda: quantize(np.array([np.inf])),
    "weight must be of dtype": lambda: quantize(np.array([1])),
    "norm must be one of": lambda: quantize(W, norm="l1"),
    "num_bits must be": lambda: quantize(W, num_bits=1),
    "give qparams or num_bits": lambda: quantize(W, num_bits=8, qparams=Q),
    "give qparams or axis": lambda: quantize(W, axis=0, qparams=Q),
    "qparams must be a QParams, not 0.5": lambda: quantize(W, qparams=0.5),
    "qparams: scale must have shape": lambda: quantize(W, qparams=choose_qparams(W.T, axis=0)),
    "scale must be of dtype float32 for float32": lambda: quantize(W.astype("f4"), qparams=Q),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(CompressionError, match=message):
        BAD[message]()


def test_an_unknown_option_raises():
    with pytest.raises(TypeError, match="bits"):
        quantize(W, bits=4)


# ---- wrong implementations, and the laws that they break


def variant(
    rounded=np.rint,
    divide=np.divide,
    shift=0,
    below=0,
    bound=lambda bound, w, q: bound,
    choose=choose_qparams,
    after=lambda decoded, q: None,
):
    """quantize with one thing changed."""

    def impl(w, *, qparams=None, norm="fro", **options):
        q = choose(w, **options) if qparams is None else qparams
        grid = q.grid(w)
        steps = np.clip(rounded(divide(w.astype(float), grid.scale)), grid.low - below, grid.high)
        codes = (steps + grid.zero_point + shift).astype(int)
        rep = Quantized(codes, q.scale, q.zero_point, 16, True, q.axis, q.block_size, w.dtype)
        changed = after(decode(rep), q)
        cert = quantize(w, qparams=q, norm=norm).cert
        measured = error_norm(w, decode(rep) if changed is None else changed, norm)
        return Compressed(
            rep if changed is None else changed,
            Certificate(norm, bound(cert.bound, w, q), measured),
        )

    return impl


def away(x):
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


def half_of_a_step(bound, w, q):
    """s / 2 or the distance, as floats have it: no outward rounding."""
    grid = q.grid(w)
    outside = np.maximum(grid.low * grid.scale - w, w - grid.high * grid.scale)
    return float(np.maximum(grid.scale / 2, outside).max(initial=0))


def without_clipping(bound, w, q):
    return float(q.scale) / 2 * (1 + 1e-6)


def by_power(w, **options):
    q = choose_qparams(w, **options)
    half = 2 ** (q.num_bits - 1)
    scale = np.asarray(q.scale * (half - 1) / half, q.scale.dtype)
    return QParams(scale, q.zero_point, q.num_bits, q.signed)


def writes(w, **options):
    rep, cert = quantize(w, **options)
    if w.flags.writeable:
        w[...] = decode(rep)
    return Compressed(rep, cert)


def shared_scale(w, *, axis=None, **options):
    return quantize(w, **options)


def wrong_axis(w, *, axis=None, **options):
    return quantize(w, axis=axis - 1, **options)


def as_int8(decoded, q):
    """The subtraction of the zero point in int8."""
    codes = np.rint(decoded / q.scale).astype(int) + q.zero_point
    return (codes.astype(np.int8) - q.zero_point.astype(np.int8)) * q.scale


ROW = np.array([[4.0, -7.0, 0.5, 0.0], [1.0, 2.5, -3.5, 60.0], [1.0, 5.0, 6.0, 7.0]], "f4")
PLAIN = QParams(np.array(1.0, "f4"), np.array(0))
TENTH = QParams(np.array(0.1), np.array(0))
PLANTED = {
    "half away from zero": (law_by_hand, variant(away), *BY_HAND["ties to even"]),
    "half away from zero, drawn": (law_nearest, variant(away), ROW, PLAIN),
    "half up": (law_odd, variant(lambda x: np.floor(x + 0.5)), np.array([127.0, 0.5, 1.5])),
    "truncation": (law_half_a_step, variant(np.trunc), ROW),
    "zero point off by one": (law_by_hand, variant(shift=1), [0.0], [5], 1.0, 5),
    "zero point off by one, zeros": (law_zero, variant(shift=1), ROW),
    "zero not a level": (law_zero, variant(after=lambda d, q: d + q.scale / 4), ROW),
    "int8 overflow": (law_by_hand, variant(after=as_int8), *BY_HAND["int8 subtraction"]),
    "by the reciprocal": (
        law_by_hand,
        variant(divide=lambda x, s: np.float32(x) * (1 / np.float32(s))),
        *BY_HAND["divided, not multiplied by 1/15"],
    ),
    "scale / 2**(b - 1)": (law_half_a_step, variant(choose=by_power), ROW),
    "-128 under narrow_range": (
        lambda impl: law_by_hand(impl, *BY_HAND["narrow"], narrow_range=True),
        variant(below=1),
    ),
    "-128 under narrow_range, clipped": (
        law_clipped,
        variant(below=1),
        np.array([-200.0]),
        QParams(np.array(1.0), np.array(0), narrow_range=True),
    ),
    "one scale for all channels": (law_channels_are_apart, shared_scale, ROW, 1, 5, 0),
    "wrong axis": (law_channels_are_apart, wrong_axis, ROW, 1, 5, 0),
    "writes to its input": (law_leaves_the_input_alone, writes, ROW),
    "not monotone": (law_monotone, variant(lambda x: np.rint(x) * (-1) ** (x > 2)), ROW, PLAIN),
    "drifts": (law_idempotent, variant(lambda x: np.rint(x * 0.99)), ROW * 10, PLAIN),
    "end code never used": (
        lambda impl, w: law_codes_in_range(impl, w, num_bits=8),
        variant(lambda x: np.clip(np.rint(x), -100, 100)),
        ROW,
    ),
    "bound without outward rounding": (
        lambda impl: [
            law_error_below_bound(impl, np.array([x]), TENTH) for x in half_steps(0.1, np.float64)
        ],
        variant(bound=half_of_a_step),
    ),
    "bound doubled": (law_tight, variant(bound=lambda bound, w, q: 2 * bound), np.float64),
    "bound doubled, by the law": (
        law_bound_is_the_law,
        variant(bound=lambda bound, w, q: 2 * bound),
        ROW,
        PLAIN,
        "fro",
    ),
    "a sum of errors for a root of squares": (
        law_tight,
        variant(bound=lambda bound, w, q: bound * math.sqrt(w.size) if w.size > 1 else bound),
        np.float32,
    ),
    "bound from the arrays": (
        law_bound_is_the_law,
        variant(bound=lambda bound, w, q: norm_of(w - fake_quantize(w, q), "max")),
        np.array([[0.3, 2.2]], "f4"),
        PLAIN,
        "max",
    ),
    "bound without clipping": (
        law_error_below_bound,
        variant(bound=without_clipping),
        ROW * 10,
        PLAIN,
    ),
    "slack for powers of two": (
        law_power_of_two_needs_no_slack,
        variant(bound=lambda bound, w, q: bound * (1 + 1e-15)),
        ROW,
        PLAIN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_wrong_implementations_are_found(name):
    law, wrong, *arguments = PLANTED[name]
    law(quantize, *arguments)
    with pytest.raises(AssertionError):
        law(wrong, *arguments)
