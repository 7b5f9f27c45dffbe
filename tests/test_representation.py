"""Representations decode to what they say, nest, count their sizes, and refuse what is not one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from minicompress.errors import CompressionError
from minicompress.representation import (
    Certificate,
    Clustered,
    LowRank,
    Quantized,
    Sparse,
    bits_for,
    checked,
    decode,
    dtype_of,
    num_params,
    shape_of,
    storage_bits,
)
from minicompress.testing.laws import parts, recount
from minicompress.testing.strategies import DTYPES

small = st.integers(-8, 8)


def integers(shape, dtype=np.float64):
    return npst.arrays(dtype, shape, elements=small.map(float), fill=st.nothing())


@st.composite
def sparse(draw, values=None):
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    places = draw(st.sets(st.integers(0, max(math.prod(shape) - 1, 0))))
    indices = np.array(sorted(places)[: math.prod(shape)], np.int64)
    return Sparse(shape, indices, draw(integers(indices.size)) if values is None else values)


@st.composite
def quantized(draw, codes=None):
    dtype = draw(st.sampled_from(DTYPES))
    bits, signed = draw(st.integers(2, 16)), draw(st.booleans())
    low = -(2 ** (bits - 1)) if signed else 0
    codes = draw(npst.arrays(np.int64, npst.array_shapes(max_dims=2, max_side=4),
                             elements=st.integers(low, low + 2**bits - 1)))  # fmt: skip
    axis = draw(st.sampled_from([None, *range(codes.ndim)]))
    block = draw(st.sampled_from([None, 1, 2, 3])) if axis is not None else None
    shape = () if axis is None else (codes.shape[axis],)
    if block is not None:
        shape = tuple(-(-n // block) if i == axis else n for i, n in enumerate(codes.shape))
    scale = draw(npst.arrays(dtype, shape, elements=st.sampled_from([0.25, 0.5, 1.0, 2.0])))
    zero = draw(npst.arrays(np.int64, shape, elements=st.integers(low, low + 2**bits - 1)))
    return Quantized(codes, scale, zero, bits, signed, axis, block, dtype)


@st.composite
def clustered(draw):
    book = draw(integers(draw(st.integers(1, 9))))
    codes = draw(npst.arrays(np.int64, npst.array_shapes(max_dims=3, max_side=4),
                             elements=st.integers(0, book.size - 1)))  # fmt: skip
    return Clustered(codes, book)


@st.composite
def low_rank(draw):
    subscripts = draw(
        st.sampled_from(["ir,ro->io", "hwir,ro->hwio", "hir,rwo->hwio", "ia,hwab,bo->hwio"])
    )
    left, _ = subscripts.split("->")
    sizes = {letter: draw(st.integers(0, 3)) for letter in sorted(set(left) - {","})}
    terms = left.split(",")
    return LowRank(tuple(draw(integers([sizes[c] for c in t])) for t in terms), subscripts)


@st.composite
def nested(draw):
    inner = draw(quantized())
    codes = decode(inner).ravel()
    flat = Quantized(
        np.zeros(codes.size, np.int64), np.array(0.5), np.array(1), 3, True, None, None, "f8"
    )
    book = draw(integers(3))
    return draw(
        st.sampled_from(
            [
                Sparse((codes.size + 2,), np.arange(codes.size), flat),
                Sparse((4,), np.array([1, 2, 3]), Clustered(np.array([2, 0, 1]), book)),
                Clustered(
                    np.zeros((2, 2), int),
                    Quantized(np.array([1]), np.array(2.0), np.array(0), 4, True, None, None, "f8"),
                ),
                LowRank((Sparse((3, 2), np.array([0]), np.ones(1)), np.ones((2, 1))), "ir,ro->io"),
                Quantized(
                    Sparse((5,), np.array([2]), np.array([3])),
                    np.array(0.5),
                    np.array(0),
                    3,
                    True,
                    None,
                    None,
                    "f8",
                ),
            ]
        )
    )


reps = st.one_of(sparse(), quantized(), clustered(), low_rank(), nested())


def scalar_decode(rep):
    """Entry by entry, in Python floats: exact for the small numbers that are drawn here."""
    match rep:
        case LowRank(factors, subscripts):
            left, output = subscripts.split("->")
            terms, arrays = left.split(","), [decode(f) for f in factors]
            sizes = {c: n for t, a in zip(terms, arrays) for c, n in zip(t, a.shape)}
            inner = [c for c in sizes if c not in output]
            out = np.zeros([sizes[c] for c in output])
            for place in np.ndindex(*out.shape):
                at = dict(zip(output, place))
                for bond in np.ndindex(*[sizes[c] for c in inner]):
                    at.update(zip(inner, bond))
                    out[place] += math.prod(
                        float(a[tuple(at[c] for c in t)]) for t, a in zip(terms, arrays)
                    )
            return out
        case Sparse(shape, indices, values):
            out = np.zeros(math.prod(shape))
            for i, v in zip(indices, decode(values), strict=True):
                out[i] = v
            return out.reshape(shape)
        case Clustered(codes, codebook):
            return np.array([decode(codebook)[c] for c in codes.ravel()], float).reshape(
                codes.shape
            )
    codes, out = decode(rep.codes), np.zeros(shape_of(rep))
    for place in np.ndindex(*codes.shape):
        key = ()
        if rep.axis is not None:
            key = (place[rep.axis],)
        if rep.block_size is not None:
            key = tuple(i // rep.block_size if k == rep.axis else i for k, i in enumerate(place))
        out[place] = (int(codes[place]) - int(rep.zero_point[key])) * float(rep.scale[key])
    return out


def law_decodes(decode_, rep):
    decoded = decode_(rep)
    top = float(np.finfo(dtype_of(rep)).max)
    right = np.clip(scalar_decode(rep), -top, top).astype(dtype_of(rep))
    assert decoded.dtype == right.dtype
    assert decoded.shape == right.shape
    assert decoded.tolist() == right.tolist()


@given(reps)
def test_decode_is_what_the_definition_says(rep):
    law_decodes(decode, rep)
    assert shape_of(rep) == decode(rep).shape
    assert dtype_of(rep) == decode(rep).dtype
    assert not decode(rep).flags.writeable


def law_counted(sizes, rep):
    assert sizes(rep) == recount(rep)


@given(reps)
def test_sizes_are_those_of_the_streams_packed_for_real(rep):
    law_counted(lambda r: (num_params(r), storage_bits(r)), rep)


@given(reps)
def test_everything_inside_is_read_only(rep):
    assert not any(part.flags.writeable for part in parts(rep))


def test_codes_are_subtracted_without_wrapping_around():
    rep = Quantized(
        np.array([100, -100], np.int8), np.array(1.0), np.array(-100), 8, True, None, None, "f8"
    )
    assert decode(rep).tolist() == [200.0, 0.0]


def test_what_would_overflow_becomes_the_largest_finite_number():
    scale = np.array(np.finfo(np.float16).max)
    rep = Quantized(np.array([-2, 1]), scale, np.array(0), 2, True, None, None, np.float16)
    assert decode(rep).tolist() == [-65504.0, 65504.0]
    huge = np.full((1, 1), 1e200)
    assert decode(LowRank((huge, huge), "ir,ro->io")).tolist() == [[np.finfo(np.float64).max]]


def test_a_product_of_large_and_small_factors_does_not_overflow_on_the_way():
    big, tiny = np.full((2, 2), 1e300), np.full((2, 2), 1e-300)
    rep = LowRank((big, big.reshape(1, 1, 2, 2), tiny), "ia,hwab,bo->hwio")  # big @ big is inf
    # 1e300 and 1e-300 are rounded once each and used thrice; two sums and two products follow.
    assert (abs(decode(rep) / 4e300 - 1) <= 8 * 2.0**-53).all()


def test_sizes_by_hand():
    assert storage_bits(Sparse((1000,), np.array([3]), np.ones(1, np.float32))) == 16 + 32  # index
    assert storage_bits(Sparse((16,), np.arange(8), np.ones(8, np.float32))) == 16 + 256  # bitmap
    q = Quantized(np.zeros(9, int), np.array(1.0), np.array(0), 4, True, None, None, "f8")
    assert storage_bits(q) == 40 + 64  # nine codes of 4 bits are five bytes; no zero point
    affine = Quantized(np.zeros(9, int), np.array(1.0), np.array(1), 4, True, None, None, "f8")
    assert storage_bits(affine) == 40 + 64 + 8
    outside = Quantized(np.zeros(9, int), np.array(1.0), np.array(99), 4, True, None, None, "f8")
    assert storage_bits(outside) == 40 + 64 + 32
    assert storage_bits(Clustered(np.zeros(100, int), np.ones(1))) == 64  # one value takes no bits
    assert storage_bits(Clustered(np.zeros(100, int), np.ones(5))) == 304 + 320
    assert num_params(Sparse((4, 4), np.array([1, 2]), np.ones(2))) == 2
    assert [bits_for(k) for k in (0, 1, 2, 3, 4, 5, 256, 257)] == [0, 0, 1, 2, 2, 3, 8, 9]


@pytest.mark.parametrize(
    ("k", "narrowest"), [(1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "i8")]
)
def test_codes_are_kept_in_the_narrowest_integers(k, narrowest):
    assert Clustered(np.array([0, k - 1]), np.arange(float(k))).codes.dtype == narrowest


one = np.ones(1)
MANY_AXES = Sparse(33 * (1,), np.zeros(0, int), np.zeros(0))
AXES = "abcdefghijklmnopqrstuvwyzABCDEFGH"
BAD = [
    (lambda: decode("weights"), "rep must be an array or a representation, not str"),
    (lambda: num_params(None), "rep must be an array or a representation, not NoneType"),
    (lambda: Sparse((2,), np.array([1, 1]), np.ones(2)), "strictly increasing"),
    (lambda: Sparse((2,), np.array([2]), one), r"indices must lie in \[0, 1\]"),
    (lambda: Sparse((2,), np.array([-1]), one), r"indices must lie in \[0, 1\]"),
    (lambda: Sparse((4,), np.array([0, 1, 9]), np.ones(3)), "not reach from 0 to 9"),
    # The differences of these are positive once they have wrapped around.
    (lambda: Sparse((6,), np.array([0, 2**63 - 1, -(2**63), 5]), np.ones(4)), "must lie in"),
    (lambda: Sparse((2,), np.array([0, 1]), one), "one entry per index"),
    (
        lambda: Sparse((-1,), np.array([], int), np.ones(0)),
        r"shape\[0\] must be an int of at least 0",
    ),
    (lambda: Sparse((2,), np.array([0.0]), one), "indices must be of an integer dtype"),
    (lambda: Sparse((4,), np.array([[0, 1]]), np.ones((1, 2))), "values must be 1-D"),
    (lambda: Sparse((), np.array(0), np.array(1.0)), "values must be 1-D"),
    (lambda: Clustered(np.array([2]), np.ones(2)), r"codes must lie in \[0, 1\]"),
    (lambda: Clustered(np.array([-1]), np.ones(2)), r"codes must lie in \[0, 1\]"),
    (lambda: Clustered(np.array([0]), np.ones((1, 1))), "codebook must be 1-D"),
    (lambda: Clustered(np.array([0]), np.array([1])), "codebook must be of a float dtype"),
    (lambda: LowRank((np.ones((2, 1)),), "ir->ir"), "two or more factors"),
    (lambda: LowRank((np.ones((2, 1)), np.ones((2, 3))), "ir,ro->io"), "axis 'r'"),
    (lambda: LowRank((np.ones(2), np.ones((2, 3))), "ir,ro->io"), "does not fit the term 'ir'"),
    (lambda: LowRank((np.ones((2, 1)), np.ones((1, 2))), "ir,ro"), "subscripts must be like"),
    (lambda: LowRank((np.ones((2, 1)), np.ones((1, 2))), "ii,io->io"), "axis 'i'|every letter"),
    (lambda: LowRank((np.ones((2, 1)), np.ones((1, 2))), "ir,ro->i"), "every letter"),
    (lambda: LowRank((np.ones((2, 1)), np.ones((1, 2))), "αβ,βγ->αγ"), "one from a to z"),
    (lambda: LowRank((MANY_AXES, one), f"{AXES},x->{AXES}x"), "at most 32 axes"),
    (lambda: LowRank((np.ones((2, 1)), np.ones((1, 2), np.float32)), "ir,ro->io"), "one dtype"),
    (lambda: LowRank((np.ones((2, 1), int), np.ones((1, 2))), "ir,ro->io"), "float dtype"),
]
QUANTIZED = {
    "codes": np.array([[1, 2]]),
    "scale": np.array(1.0),
    "zero_point": np.array(0),
    "num_bits": 4,
    "signed": True,
    "axis": None,
    "block_size": None,
    "dtype": "f8",
}
BAD_QUANTIZED = [
    ({"codes": np.array([8])}, r"codes of 4 bits must lie in \[-8, 7\]"),
    ({"codes": np.array([-1]), "signed": False}, r"must lie in \[0, 15\]"),
    ({"codes": np.array([0.0])}, "codes must be of an integer dtype"),
    ({"codes": Sparse((2,), np.array([0]), one)}, "codes must be integers"),
    ({"scale": np.array(0.0)}, "scale must be positive"),
    ({"scale": np.array(np.inf)}, "scale must be finite"),
    ({"scale": np.array(1.0, np.float32)}, "scale must be of dtype float64"),
    ({"scale": np.ones(2)}, "scale must have shape"),
    ({"scale": np.ones(2), "zero_point": np.zeros(2, int)}, r"scale must have shape \(\)"),
    ({"axis": 2}, "axis must be an int from -2 to 1"),
    ({"block_size": 2}, "block_size needs an axis"),
    ({"block_size": 0, "axis": 1}, "block_size must be an int of at least 1"),
    ({"num_bits": 1}, "num_bits must be an int from 2 to 16"),
    ({"num_bits": 17}, "num_bits must be an int from 2 to 16"),
    ({"signed": 1}, "signed must be True or False"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_what_is_no_representation_is_refused(make, message):
    with pytest.raises(CompressionError, match=message):
        make()


@pytest.mark.parametrize(("change", "message"), BAD_QUANTIZED)
def test_what_is_no_quantized_array_is_refused(change, message):
    with pytest.raises(CompressionError, match=message):
        Quantized(**{**QUANTIZED, **change})


def test_a_representation_keeps_nothing_of_the_caller():
    values, indices = np.ones(1), np.array([1])
    rep = Sparse((2,), indices, values)
    values[0], indices[0] = 9.0, 0
    assert decode(rep).tolist() == [0.0, 1.0]


def wrapping_decode(rep):
    steps = rep.codes - rep.zero_point.astype(rep.codes.dtype)
    return steps * rep.scale


def wrong_axis(rep):
    if not isinstance(rep, Quantized) or rep.axis is None or rep.block_size is not None:
        return decode(rep)
    shape = [-1 if i != rep.axis else 1 for i in range(2)]
    return (rep.codes - rep.zero_point.reshape(shape)) * rep.scale.reshape(shape)


EXTREME = Quantized(
    np.array([100], np.int8), np.array(1.0), np.array(-100), 8, True, None, None, "f8"
)
PER_AXIS = Quantized(
    np.ones((2, 2), int), np.array([1.0, 2.0]), np.zeros(2, int), 4, True, 0, None, "f8"
)
HALF = Sparse((9,), np.array([0, 4]), np.ones(2, np.float32))
CODES = Clustered(np.zeros(9, int), np.ones(3))

PLANTED = {
    "codes subtracted in int8 wrap around": (lambda f: law_decodes(f, EXTREME), wrapping_decode),
    "scales along the wrong axis": (lambda f: law_decodes(f, PER_AXIS), wrong_axis),
    "the places of a sparse array are not counted": (
        lambda f: law_counted(f, HALF),
        lambda rep: (2, 64),
    ),
    "a bit short of a byte": (lambda f: law_counted(f, CODES), lambda rep: (9, 18 + 192)),
    "the codebook is not counted": (lambda f: law_counted(f, CODES), lambda rep: (9, 24)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_representations_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)


@pytest.mark.parametrize(
    "result",
    [
        np.zeros(2),
        (np.zeros(2), 0.5),
        [np.zeros(2), Certificate("fro", 0.0, 0.0)],
        (np.zeros(2), Certificate("fro", 0.0, 0.0), None),
    ],
)
def test_what_is_no_result_of_a_compressor(result):
    with pytest.raises(CompressionError, match=r"a compressor must return \(rep, Certificate\)"):
        checked(result, "a compressor")
