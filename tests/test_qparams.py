"""choose_qparams: which range, per tensor, channel and block; and the values it returns."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from budgets import at_most
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.errors import CompressionError
from minicompress.qparams import QParams, choose_qparams, fake_quantize
from minicompress.testing.checks import check_pure
from minicompress.testing.strategies import LAYOUTS, in_layout, weights

DTYPES = [np.float16, np.float32, np.float64]
FINITE = ("integers", "ordinary", "zeros", "constant", "ties")


def scales_of(dtype):
    """The dtype of scales: float16 has float32 ones."""
    return np.dtype(np.float32 if dtype == np.float16 else dtype)


options = st.fixed_dictionaries(
    {
        "num_bits": st.sampled_from([2, 3, 4, 8]),
        "signed": st.booleans(),
        "symmetric": st.booleans(),
        "narrow_range": st.booleans(),
        "power_of_two": st.booleans(),
    }
)


def groups_of(w, axis=None, block_size=None):
    """The entries that share a scale, by plain slicing, in the C order of the scales."""
    if axis is None:
        return [w.ravel()]
    lines = np.moveaxis(w, axis, 0)
    if block_size is None:
        return [line.ravel() for line in lines]
    shape = list(w.shape)
    shape[axis] = -(-shape[axis] // block_size)
    groups = []
    for index in np.ndindex(*shape):
        start = index[axis] * block_size
        line = w[tuple(slice(None) if i == axis % w.ndim else k for i, k in enumerate(index))]
        groups.append(line[start : start + block_size])
    return groups


# ---- every group is treated as if it were alone


def law_groups_are_apart(impl, w, axis, block_size, **options):
    """Requirement 23: also the ragged last block has scale and zero point of its own."""
    together = impl(w, axis=axis, block_size=block_size, **options)
    scales, zeros = together.scale.ravel(), together.zero_point.ravel()
    groups = groups_of(w, axis, block_size)
    assert len(scales) == len(zeros) == len(groups)
    for group, scale, zero in zip(groups, scales, zeros, strict=True):
        q = impl(group, **options)
        if options.get("method") == "mse":  # of two ranges that are as good either may be taken
            one = QParams(scale, zero, q.num_bits, q.signed, q.narrow_range)
            assert not_above(squared_error(group, one), squared_error(group, q), group)
            assert not_above(squared_error(group, q), squared_error(group, one), group)
        else:
            assert (scale, zero) == (q.scale, q.zero_point)


def squared_error(w, q):
    """Of the levels: those of float16 before they are rounded to it."""
    w = w.astype(q.scale.dtype)
    decoded = fake_quantize(w, q)
    pairs = zip(w.ravel().tolist(), decoded.ravel().tolist(), strict=True)
    return sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs), Fraction(0))


def not_above(a, b, w):
    """a <= b for squared errors that were compared in floats, in units of the largest entry.

    Both are sums of n squares of differences that were divided: gamma_(n + 6) each; and what is
    below 2**-1000 of that unit was lost.
    """
    unit = Fraction(float(np.abs(w).max(initial=0)))
    return a <= b * (1 + 2 * (w.size + 6) * Fraction(2) ** -52) + unit**2 / 2**1000


@given(
    weights(min_ndim=2, max_ndim=3, max_size=40),
    options,
    st.sampled_from(["minmax", "percentile", "mse"]),
    st.integers(0, 2),
    st.none() | st.integers(1, 4),
)
def test_groups_are_apart(w, options, method, axis, block_size):
    axis = axis % w.ndim - w.ndim * (axis % 2)  # negative ones too
    law_groups_are_apart(
        choose_qparams, w, axis, block_size, method=method, percentile=70.0, **options
    )


def test_the_shapes_are_those_of_onnx():
    w = np.ones((2, 5, 3), np.float32)
    assert choose_qparams(w).scale.shape == ()
    assert choose_qparams(w, axis=1).scale.shape == (5,)
    assert choose_qparams(w, axis=1, block_size=2).scale.shape == (2, 3, 3)
    assert choose_qparams(w, axis=-1, block_size=10**12).scale.shape == (2, 5, 1)
    assert choose_qparams(np.ones(5), axis=0, block_size=2).scale.shape == (3,)
    assert choose_qparams(np.ones((0, 4)), axis=1).scale.tolist() == [np.finfo(float).tiny] * 4
    assert choose_qparams(np.ones((0, 4)), axis=0, block_size=2).scale.shape == (0, 4)


# ---- minmax: what the scale is


def law_minmax(impl, w, **options):
    """Scale and zero point by the definition, for the whole array."""
    q = impl(w, **options)
    bits, symmetric = options.get("num_bits", 8), options.get("symmetric", True)
    signed, narrow = options.get("signed", True), options.get("narrow_range", False)
    low, high = min(float(w.min(initial=0)), 0.0), max(float(w.max(initial=0)), 0.0)
    lowest = (-(2 ** (bits - 1)) if signed else 0) + narrow
    highest = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    if symmetric:
        scale = max(-low, high) / (2 ** (bits - 1) - 1)
    else:
        scale = high / (highest - lowest) - low / (highest - lowest)
    kind = scales_of(w.dtype)
    scale = max(scale, float(np.finfo(kind).tiny))
    if options.get("power_of_two"):
        top = math.ldexp(1.0, int(np.finfo(kind).maxexp) - 1)
        exact = Fraction(scale)
        power = Fraction(2) ** (exact.numerator.bit_length() - exact.denominator.bit_length() - 1)
        while power < exact:
            power *= 2
        scale = float(min(power, Fraction(top)))
    assert q.scale.dtype == kind
    assert q.scale == kind.type(scale)
    assert (q.qmin, q.qmax) == (lowest, highest)
    if symmetric:
        assert q.zero_point == (0 if signed else 2 ** (bits - 1))
    else:
        assert q.zero_point == min(max(round(lowest - low / float(q.scale)), lowest), highest)


@given(weights(), options)
def test_minmax(w, options):
    law_minmax(choose_qparams, w, **options)


def law_range_holds_the_entries(impl, w, **options):
    """No entry is further than half a step beyond the range: then s/2 bounds every error."""
    q = impl(w, **options)
    s = Fraction(float(q.scale))
    low, high = (q.qmin - int(q.zero_point)) * s, (q.qmax - int(q.zero_point)) * s
    # The scale is rounded to its dtype, by u: 2**num_bits steps of it by no more than that.
    unit = 0 if options.get("power_of_two") else Fraction(float(np.finfo(q.scale.dtype).eps) / 2)
    beyond = s / 2 + 2 ** options["num_bits"] * unit * s
    for x in w.ravel().tolist():
        assert low - beyond <= Fraction(x) <= high + beyond
    assert low <= 0 <= high  # requirement 10


@given(weights(kinds=FINITE), options)
def test_range_holds_the_entries(w, options):
    law_range_holds_the_entries(choose_qparams, w, **options)


@given(weights(), options, st.sampled_from(["minmax", "percentile", "mse"]))
def test_zero_has_a_code(w, options, method):
    """Requirements 9 to 11: a code of its own, whatever the entries are."""
    q = choose_qparams(w, method=method, percentile=60.0, **options)
    assert q.qmin <= q.zero_point <= q.qmax
    assert fake_quantize(np.zeros_like(w), q).tobytes() == np.zeros_like(w).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_and_constants(dtype, symmetric):
    for value in (0.0, -0.0, 3.0, -3.0, np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal):
        w = np.full((2, 3), value, dtype)
        q = choose_qparams(w, symmetric=symmetric)
        assert np.isfinite(q.scale)
        assert q.scale >= np.finfo(scales_of(dtype)).tiny
        assert np.isfinite(fake_quantize(w, q)).all()
        if value == 0:
            assert not fake_quantize(w, q).any()


def test_a_range_is_widened_to_hold_zero():
    """Requirement 10."""
    w = np.arange(-22.0, -14.0)
    assert len(set(fake_quantize(w, choose_qparams(w, num_bits=3)).tolist())) <= 4
    wide = choose_qparams(w, num_bits=3, symmetric=False)
    assert fake_quantize(np.zeros(8), wide).tolist() == [0.0] * 8


def test_a_zero_point_outside_the_codes_still_decodes():
    """Such qparams can come from a file."""
    q = QParams(np.array(0.5), np.array(40), num_bits=3)
    assert fake_quantize(np.array([-22.0, -20.0, 0.0]), q).tolist() == [-22.0, -20.0, -18.5]


def test_the_widest_range_does_not_overflow():
    for dtype in DTYPES:
        top = np.finfo(dtype).max
        for bits, symmetric in ((2, True), (2, False), (8, True), (8, False)):
            w = np.array([top, -top], dtype)
            q = choose_qparams(w, num_bits=bits, symmetric=symmetric)
            assert np.isfinite(q.scale)
            assert np.isfinite(fake_quantize(w, q)).all()


@given(weights(), options.filter(lambda o: o["power_of_two"]))
def test_a_power_of_two_is_less_than_twice_the_scale(w, options):
    power = choose_qparams(w, **options)
    exact = choose_qparams(w.astype(np.float64), **{**options, "power_of_two": False})
    info = np.finfo(scales_of(w.dtype))
    plain = max(float(exact.scale), float(info.tiny))
    assert np.frexp(power.scale)[0] == 0.5
    assert float(power.scale) < 2 * plain
    assert float(power.scale) >= plain or power.scale == 2.0 ** (info.maxexp - 1)


# ---- percentile


def law_percentile(impl, w, percentile):
    """Requirement 16: the range keeps that fraction of the magnitudes, and no shorter one does."""
    q = impl(w, method="percentile", percentile=percentile, power_of_two=False)
    wanted = math.ceil(percentile * w.size / 100)
    top = sorted(abs(x) for x in w.ravel().tolist())[wanted - 1] if w.size else 0.0
    kind = scales_of(w.dtype)
    assert q.scale == kind.type(max(top / 127, float(np.finfo(kind).tiny)))


@given(weights(), st.sampled_from([0.5, 10.0, 50.0, 75.0, 99.9, 100.0]))
def test_percentile(w, percentile):
    law_percentile(choose_qparams, w, percentile)


def test_percentile_cuts_both_ends_of_an_affine_range():
    w = np.arange(-50.0, 151.0)  # 201 entries, 101 to keep: 50 are cut at both ends
    q = choose_qparams(w, method="percentile", percentile=50.0, symmetric=False)
    low, high = (q.qmin - q.zero_point) * q.scale, (q.qmax - q.zero_point) * q.scale
    assert (round(low), round(high)) == (0, 100)


@given(weights(), options)
def test_all_percent_is_minmax(w, options):
    a = choose_qparams(w, method="percentile", percentile=100.0, **options)
    b = choose_qparams(w, **options)
    assert (a.scale, a.zero_point) == (b.scale, b.zero_point)


# ---- mse


def law_mse(impl, w, **options):
    """Never above the error of minmax, whose range is among those that are tried."""
    best = squared_error(w, impl(w, method="mse", **options))
    assert not_above(best, squared_error(w, impl(w, **options)), w)


@given(weights(kinds=(*FINITE, "huge")), options)
def test_mse_is_never_worse_than_minmax(w, options):
    law_mse(choose_qparams, w, **options)


def law_mse_knows_no_unit(impl, w, exponent, options):
    """Multiplied by a power of two every number of the choice is, exactly; also where its square
    is beyond float64."""
    plain, moved = (impl(x, method="mse", **options) for x in (w, np.ldexp(w, exponent)))
    assert np.ldexp(plain.scale, exponent) == moved.scale
    assert plain.zero_point == moved.zero_point


@at_most(30)
@given(
    arrays(np.float64, st.integers(1, 8), elements=st.integers(-1000, 1000).map(float)).filter(
        np.any
    ),
    st.sampled_from([-800, -600, -1, 1, 600, 800]),
    options,
)
def test_mse_knows_no_unit(w, exponent, options):
    law_mse_knows_no_unit(choose_qparams, w, exponent, options)


def law_mse_cuts_an_outlier(impl, symmetric):
    w = np.append(np.tile([-1.0, -0.5, 0.5, 1.0], 50), [2.0, -2.0])
    options = {"num_bits": 3, "symmetric": symmetric}
    assert squared_error(w, impl(w, method="mse", **options)) < squared_error(
        w, impl(w, **options)
    ) * Fraction(3, 4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_cuts_an_outlier(symmetric):
    law_mse_cuts_an_outlier(choose_qparams, symmetric)


def test_mse_shrinks_the_range_only_where_that_gains_something():
    """Half of the range has a level at -1 as well: no error either way, and the whole one stays."""
    for dtype in DTYPES:
        w = np.array([-1.0], dtype)
        assert choose_qparams(w, num_bits=2, method="mse").scale == 1
        assert squared_error(w, QParams(np.array(0.5, dtype), np.array(0), num_bits=2)) == 0


def test_what_fills_up_a_ragged_block_counts_for_nothing_in_mse():
    """Twenty entries hold the range; the last one is an ulp nearer to the middle of half of it.

    So half the range is better, but by 2**-54 only: a constant beside the sum would hide it.
    """
    block = np.append(np.full(20, -1.0), 0.25 + 2.0**-54)
    w = np.append(np.ones(32), block)
    options = {"num_bits": 2, "method": "mse"}
    assert choose_qparams(block, **options).scale == 0.5
    assert choose_qparams(w, axis=0, block_size=32, **options).scale[1] == 0.5


def test_mse_knows_that_decoding_does_not_overflow():
    """127 * fl(max / 127) is inf before it is clipped: the whole range is best all the same."""
    for dtype in DTYPES:
        top = np.finfo(dtype).max
        w = np.array([top, -top], dtype)
        assert squared_error(w, choose_qparams(w, method="mse")) <= squared_error(
            w, choose_qparams(w)
        )


# ---- mse, affine: both ends


def ranges_tried(w):
    """The whole range, those shrunken by one factor, those whose ends have a factor each."""
    low, high = min(float(w.min()), 0.0), max(float(w.max()), 0.0)
    one = [(f, f) for f in np.linspace(1.0, 0.05, 96)]
    both = [(0.75**i, 0.75**k) for i in range(12) for k in range(12)]
    return [(low * a, high * b) for a, b in one + both]


def fitted(ranges, **options):
    return [choose_qparams(np.array(r), symmetric=False, **options) for r in ranges]


def law_mse_is_the_best_tried(impl, w, **options):
    best = min(squared_error(w, q) for q in fitted(ranges_tried(w), **options))
    found = squared_error(w, impl(w, method="mse", symmetric=False, **options))
    assert not_above(found, best, w)
    assert not_above(best, found, w)  # no other range is tried


@at_most(15)
@given(
    arrays(np.float64, st.integers(1, 6), elements=st.integers(-40, 40).map(lambda k: k / 8)),
    st.sampled_from([2, 3, 4]),
)
def test_mse_is_the_best_tried(w, num_bits):
    law_mse_is_the_best_tried(choose_qparams, w, num_bits=num_bits, narrow_range=num_bits > 3)


LOPSIDED = np.array([-0.5, 0.0, 0.5, 1.25, 2.0])
NORMAL = np.random.default_rng(0).standard_normal(10_000)


def float_error(w, q):
    return np.square(fake_quantize(w, q) - w).sum()


def best_of(w, ranges, **options):
    return min(fitted(ranges, **options), key=lambda q: float_error(w, q))


def one_factor(w, *, method="mse", symmetric=False, **options):
    return best_of(w, ranges_tried(w)[:96], **options)


def law_mse_spends_no_codes_on_an_outlier(impl, outlier):
    """Requirement 36: the other end stays where it is, and one factor for both cannot do that."""
    w = np.append(NORMAL, outlier)
    for num_bits, gain in ((4, 1.7), (2, 2.4)):
        found = impl(w, method="mse", symmetric=False, num_bits=num_bits)
        one = one_factor(w, num_bits=num_bits)
        assert gain * float_error(w, found) < float_error(w, one)


@pytest.mark.parametrize("outlier", [20.0, -20.0])
def test_mse_spends_no_codes_on_an_outlier(outlier):
    law_mse_spends_no_codes_on_an_outlier(choose_qparams, outlier)


def law_mse_looks_at_all_entries(impl, channels, zeros):
    """Zeros have no error, whatever the scale is: any number of them changes nothing."""
    lines = np.multiply.outer(np.arange(1.0, channels + 1), LOPSIDED)
    long = np.concatenate([np.zeros((channels, zeros)), lines], axis=1)
    few, many = (impl(w, method="mse", num_bits=2, symmetric=False, axis=0) for w in (lines, long))
    assert (few.scale == many.scale).all()
    assert (few.zero_point == many.zero_point).all()


@pytest.mark.parametrize(("channels", "zeros"), [(1, 40_000), (2, 20_000), (9, 6_000)])
def test_mse_looks_at_all_entries(channels, zeros):
    law_mse_looks_at_all_entries(choose_qparams, channels, zeros)


def test_mse_of_a_range_that_zero_ends_looks_at_the_other_end_only():
    w = np.append(np.abs(NORMAL), [0.0, 20.0])
    for sign in (1, -1):
        q = choose_qparams(sign * w, method="mse", symmetric=False, num_bits=2)
        assert q.zero_point == (q.qmin if sign > 0 else q.qmax)
        assert q.scale < 2


# ---- fake_quantize and QParams


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    w = np.array([[0.5, 1.5, -2.5], [3.0, 4.0, 99.0]], np.float32)
    for given_axis, block_size in ((None, None), (0, None), (-1, None), (1, 2)):
        q = choose_qparams(in_layout(w, layout), axis=given_axis, block_size=block_size)
        right = choose_qparams(w, axis=given_axis, block_size=block_size)
        assert q.scale.tolist() == right.scale.tolist()
        again = fake_quantize(in_layout(w, layout), q)
        assert again.tolist() == fake_quantize(w, q).tolist()


def test_arguments_are_left_alone():
    w = np.arange(6.0).reshape(2, 3)
    check_pure(choose_qparams, w, axis=0, block_size=2, method="mse")
    check_pure(fake_quantize, w, choose_qparams(w, axis=1))


def test_zero_points_reach_to_the_ends_of_int32():
    ends = np.array([-(2**31), 2**31 - 1])
    assert QParams(np.ones(2), ends, axis=0).zero_point.tolist() == ends.tolist()


def test_qparams_are_frozen_and_pickle():
    scale = np.ones(2)
    q = QParams(scale, np.zeros(2, np.int8), axis=0)
    scale[0] = 9.0
    assert q.scale.tolist() == [1.0, 1.0]
    back = pickle.loads(pickle.dumps(q))
    assert not back.scale.flags.writeable
    assert (back.qmin, back.qmax, back.axis) == (-128, 127, 0)
    assert repr(q).startswith("QParams(scale=float64[2]")


ONE, W = np.ones(()), np.ones((2, 3))
BAD = {
    "qparams must be a QParams, not None": lambda: fake_quantize(ONE, None),
    "scale must be positive": lambda: QParams(ONE * 0, np.array(0)),
    "scale must be finite": lambda: QParams(ONE * np.inf, np.array(0)),
    "scale must be of dtype": lambda: QParams(np.array(1), np.array(0)),
    "zero_point must be of an integer": lambda: QParams(ONE, ONE),
    "zero_point must have shape": lambda: QParams(ONE, np.zeros(1, int)),
    "must lie in .-2147483648, 2147483647": lambda: QParams(ONE, np.array(2**31)),
    "to -2147483649": lambda: QParams(ONE, np.array(-(2**31) - 1)),
    "num_bits must": lambda: QParams(ONE, np.array(0), num_bits=1),
    "signed must": lambda: QParams(ONE, np.array(0), signed="yes"),
    "narrow_range must": lambda: QParams(ONE, np.array(0), narrow_range=1),
    "block_size must": lambda: QParams(ONE, np.array(0), block_size=0),
    "weight must be finite": lambda: choose_qparams(np.array([np.nan])),
    "entry .* is inf": lambda: choose_qparams(np.array([np.inf])),
    "weight must be of dtype": lambda: choose_qparams(np.array([1])),
    "num_bits": lambda: choose_qparams(W, num_bits=17),
    "signed": lambda: choose_qparams(W, signed=None),
    "symmetric": lambda: choose_qparams(W, symmetric=0),
    "narrow_range": lambda: choose_qparams(W, narrow_range=0),
    "power_of_two": lambda: choose_qparams(W, power_of_two=0),
    "method must be one of": lambda: choose_qparams(W, method="best"),
    "percentile must be above 0": lambda: choose_qparams(W, percentile=0),
    "percentile must be a number": lambda: choose_qparams(W, percentile=101),
    "axis must": lambda: choose_qparams(W, axis=2),
    "has none": lambda: choose_qparams(W[0], axis=0),
    "without axes": lambda: choose_qparams(ONE, axis=0),
    "block_size needs an axis": lambda: choose_qparams(W, block_size=2),
    "block_size must be an int": lambda: choose_qparams(W, axis=0, block_size=1.5),
    "for float64, not float32": lambda: fake_quantize(W, choose_qparams(W.astype("f4"))),
    "qparams: scale must have shape": lambda: fake_quantize(W, choose_qparams(W.T, axis=0)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(CompressionError, match=message):
        BAD[message]()


def test_an_unknown_option_raises():
    with pytest.raises(TypeError, match="bits"):
        choose_qparams(W, bits=4)


# ---- wrong implementations, and the laws that they break


def changed(**changes):
    def impl(w, **options):
        return choose_qparams(w, **{**options, **changes})

    return impl


def by_power(w, **options):
    """max / 2**(b - 1): the largest entry has no code."""
    q = choose_qparams(w, **options)
    half = 2 ** (q.num_bits - 1)
    scale = np.asarray(q.scale * (half - 1) / half, q.scale.dtype)
    return QParams(scale, q.zero_point, q.num_bits, q.signed)


def without_zero(w, **options):
    """The range of the entries alone."""
    low, steps = float(w.min()), 2.0 ** options["num_bits"] - 1
    scale = (float(w.max()) - low) / steps
    return QParams(np.array(scale, w.dtype), np.array(int(np.rint(-128 - low / scale))))


def unrounded(w, **options):
    """The scale as it comes from the division, so 0 for a subnormal range."""
    q = choose_qparams(w, **options)
    return QParams(q.scale * 0 + max(float(np.abs(w).max()) / 127, 5e-324), q.zero_point)


def shifted(w, **options):
    q = choose_qparams(w, **options)
    return QParams(q.scale, q.zero_point + 1, q.num_bits, q.signed)


def cut_block(w, *, axis=None, block_size=None, **options):
    """Never looks at the ragged last block: it gets the scale of the whole array."""
    q = choose_qparams(w, axis=axis, block_size=block_size, **options)
    if block_size is None:
        return q
    scale = q.scale.copy()
    scale[..., -1] = choose_qparams(w, **options).scale
    return QParams(scale, q.zero_point, axis=axis, block_size=block_size)


def wrong_axis(w, *, axis=None, **options):
    return choose_qparams(w, axis=None if axis is None else 1 - axis, **options)


def doubled_power(w, **options):
    q = choose_qparams(w, **options)
    return QParams(q.scale * 2, q.zero_point)


def without_method(w, **options):
    return choose_qparams(w, **{**options, "method": "minmax"})


def random_shrink(w, *, method="minmax", **options):
    """Always shrinks, also where that is worse."""
    q = choose_qparams(w, **options)
    return q if method == "minmax" else QParams(q.scale / 2, q.zero_point)


def high_end_only(w, *, method="mse", symmetric=False, **options):
    low, high = min(w.min(), 0.0), max(w.max(), 0.0)
    return best_of(w, [(low, high * f) for f in np.linspace(1.0, 0.05, 20)], **options)


def ends_only(w, *, method="mse", symmetric=False, **options):
    """144 ranges with a factor for each end, but not those that one factor has."""
    return best_of(w, ranges_tried(w)[96:], **options)


RISING = np.arange(1.0, 16.0).reshape(3, 5)
BITS8 = {"num_bits": 8}
PLANTED = {
    "scale / 2**(b - 1)": (law_minmax, by_power, RISING, {}),
    "scale / 2**(b - 1), by its range": (
        law_range_holds_the_entries,
        by_power,
        np.array([7.0]),
        {"num_bits": 3, "signed": True, "narrow_range": False, "symmetric": True},
    ),
    "no smallest scale": (law_minmax, unrounded, np.array([1e-310]), {}),
    "zero point off by one": (law_minmax, shifted, RISING, {"symmetric": False}),
    "narrow range ignored": (
        law_minmax,
        changed(narrow_range=False),
        RISING,
        {"narrow_range": True},
    ),
    "zero not in the range": (
        law_range_holds_the_entries,
        without_zero,
        RISING,
        BITS8,
    ),
    "ragged block ignored": (
        law_groups_are_apart,
        cut_block,
        RISING,
        {"axis": 1, "block_size": 2},
    ),
    "wrong axis": (law_groups_are_apart, wrong_axis, RISING, {"axis": 0, "block_size": None}),
    "power of two too large": (law_minmax, doubled_power, RISING, {"power_of_two": True}),
    "percentile ignored": (law_percentile, without_method, RISING, {"percentile": 50.0}),
    "percentile of the wrong end": (
        law_percentile,
        lambda w, percentile, **o: choose_qparams(w, percentile=100 - percentile, **o),
        RISING,
        {"percentile": 75.0},
    ),
    "always shrunken": (law_mse, random_shrink, RISING, BITS8),
    "mse ignored": (law_mse_cuts_an_outlier, without_method, True, {}),
    "one factor for both ends": (law_mse_spends_no_codes_on_an_outlier, one_factor, 20.0, {}),
    "one factor, drawn": (law_mse_is_the_best_tried, one_factor, LOPSIDED, {"num_bits": 2}),
    "only the high end": (law_mse_spends_no_codes_on_an_outlier, high_end_only, -20.0, {}),
    "only the high end, drawn": (
        law_mse_is_the_best_tried,
        high_end_only,
        LOPSIDED,
        {"num_bits": 2},
    ),
    "the first entries only": (
        law_mse_looks_at_all_entries,
        lambda w, **o: choose_qparams(w[:, :16_384], **o),
        1,
        {"zeros": 40_000},
    ),
    "not the one factor": (
        law_mse_is_the_best_tried,
        ends_only,
        np.array([-1.5, -1.0, -0.75, 1.25, 2.0]),
        {"num_bits": 3},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_wrong_implementations_are_found(name):
    law, wrong, argument, options = PLANTED[name]
    law(choose_qparams, argument, **options)
    with pytest.raises(AssertionError):
        law(wrong, argument, **options)
