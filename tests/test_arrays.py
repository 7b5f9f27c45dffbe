"""Arguments are checked the same way everywhere, and values are frozen without needless copies."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest

from minicompress import arrays
from minicompress.errors import CompressionError
from minicompress.qparams import QParams
from minicompress.representation import Clustered, LowRank, Quantized, Sparse

BAD = [
    (arrays.float_array, (np.arange(3), "w"), {}, "w must be of dtype float16, float32 or float64"),
    (arrays.float_array, ([[1.0], [1.0, 2.0]], "w"), {}, "w must be an array"),
    (arrays.float_array, (np.ma.ones(3), "w"), {}, "w must be a plain array"),
    (arrays.float_array, (np.ones(3, complex), "w"), {}, "not complex128"),
    (arrays.float_array, (np.ones((2, 3)), "w"), {"ndim": 1}, r"1 dimensions, not shape \(2, 3\)"),
    (
        arrays.finite_array,
        (np.array([1.0, np.nan]), "w"),
        {},
        "w must be finite, but entry .1,. is nan",
    ),
    (arrays.finite_array, (np.array([-np.inf]), "w"), {}, "entry .* is -inf"),
    (arrays.integer_array, (np.array([True]), "codes"), {}, "codes must be of an integer dtype"),
    (arrays.integer_array, (np.array([1.0]), "codes"), {}, "not float64"),
    (arrays.as_int, (True, "rank", 0), {}, "rank must be an int of at least 0, not True"),
    (arrays.as_int, (2.0, "rank", 0, 3), {}, "rank must be an int from 0 to 3, not 2.0"),
    (arrays.as_int, (4, "rank", 0, 3), {}, "not 4"),
    (arrays.as_float, (1.5, "amount", 0, 1), {}, "amount must be a number from 0 to 1, not 1.5"),
    (arrays.as_float, (float("nan"), "amount", 0, 1), {}, "not nan"),
    (arrays.as_float, ("0.5", "amount", 0, 1), {}, "not '0.5'"),
    (arrays.as_float, (True, "amount", 0, 1), {}, "not True"),
    (arrays.choice, ("l1", "norm", ["fro", "max"]), {}, "norm must be one of fro, max, not 'l1'"),
    (arrays.choice, (np.ones(2), "norm", ["fro"]), {}, "norm must be one of fro"),
    (arrays.flag, (1, "signed"), {}, "signed must be True or False, not 1"),
    (
        arrays.exactly_one,
        (),
        {"rank": 1, "energy": 0.5},
        "exactly one of rank, energy; given: rank",
    ),
    (arrays.exactly_one, (), {"rank": None, "energy": None}, "given: none"),
    (arrays.normal_axis, (0, "axis", 0), {}, "axis=0 was given for an array without axes"),
    (arrays.normal_axis, (2, "axis", 2), {}, "axis must be an int from -2 to 1, not 2"),
    (arrays.generator, (0,), {}, "rng must be a numpy.random.Generator"),
    (arrays.generator, (np.random,), {}, "rng must be a numpy.random.Generator"),
    (
        arrays.same_dtype,
        (),
        {"x": np.ones(1, np.float32), "bias": np.ones(1)},
        "x is float32, bias is float64",
    ),
]


@pytest.mark.parametrize(("check", "args", "kwargs", "message"), BAD)
def test_a_wrong_argument_is_named_with_what_came_and_what_is_needed(check, args, kwargs, message):
    with pytest.raises(CompressionError, match=message):
        check(*args, **kwargs)


def test_good_arguments_pass_unchanged():
    w = np.ones((2, 3), np.float16)
    assert arrays.finite_array(w, "w", ndim=2) is w
    assert arrays.as_int(np.int8(3), "rank", 0) == 3
    assert arrays.as_float(np.float32(0.5), "amount", 0, 1) == 0.5
    assert arrays.as_float(1, "amount", 0, 1) == 1.0
    assert arrays.normal_axis(-1, "axis", 3) == 2
    assert arrays.flag(np.True_, "signed") is True
    assert arrays.exactly_one(rank=None, energy=0.5) == "energy"
    arrays.same_dtype(x=w, bias=None)
    arrays.same_dtype(x=None, bias=None)


def test_byte_swapped_floats_are_floats():
    swapped = np.array([1.5, -2.0], ">f4")
    assert arrays.float_array(swapped, "w").dtype == np.dtype("<f4").newbyteorder("=")
    assert arrays.float_array(swapped, "w").tolist() == [1.5, -2.0]


def test_freezing_copies_exactly_what_somebody_could_write_to():
    own = arrays.freeze(np.ones(3))
    assert arrays.frozen(own) is own
    writable = np.ones(3)
    copy = arrays.frozen(writable)
    writable[0] = 9.0
    assert copy.tolist() == [1.0, 1.0, 1.0]
    assert not copy.flags.writeable
    locked_view = writable[:]
    locked_view.flags.writeable = False  # its base can still be written to
    assert not np.shares_memory(arrays.frozen(locked_view), writable)
    assert arrays.frozen(arrays.freeze(np.ones((2, 3), order="F"))).flags.c_contiguous
    from_bytes = np.frombuffer(b"\0" * 8, np.uint8)
    assert arrays.frozen(from_bytes) is from_bytes


def test_values_stay_frozen_through_pickle_and_print_short():
    rep = Sparse((2, 3), np.array([1, 4]), np.array([1.0, 2.0]))
    again = pickle.loads(pickle.dumps(rep))
    assert not again.values.flags.writeable
    assert not again.indices.flags.writeable
    assert again.values.tolist() == [1.0, 2.0]
    assert repr(rep) == "Sparse(shape=(2, 3), indices=int64[2], values=float64[2])"
    with pytest.raises(AttributeError):
        rep.shape = (3, 2)
    # A single number is shown as one, and what is left out is what the docstring says.
    assert repr(QParams(np.array(0.5), np.array(3))) == (
        "QParams(scale=0.5, zero_point=3, num_bits=8, signed=True, narrow_range=False, "
        "axis=None, block_size=None)"
    )


def test_values_compare_by_identity_not_by_an_ambiguous_array():
    two = np.array([1.0, 2.0])

    def one_of_each():
        yield Clustered(np.array([0, 1]), two)
        yield Sparse((3,), np.array([0, 1]), two)
        yield LowRank((two[:, None], two[None]), "ir,ro->io")
        yield Quantized(np.array([1, 2]), np.array(1.0), np.array(0), 8, True, None, None, "f8")
        yield QParams(two, np.array([0, 1]), axis=0)

    for rep, other in zip(one_of_each(), one_of_each(), strict=True):
        assert rep == rep
        assert rep != other
        assert len({rep, other}) == 2


def test_the_dtype_of_a_value_may_be_given_by_name():
    rep = Quantized(np.array([1]), np.array(1.0), np.array(0), 8, True, None, None, "f8")
    assert isinstance(rep.dtype, np.dtype)


def law_ceil_div(div):
    for a in [*range(13), 2**53 + 1, 2**64 - 1]:
        for b in range(1, 6):
            assert div(a, b) == math.ceil(Fraction(a, b))


def law_widened(widen):
    """float16 in float32, exactly; anything else is left alone, without a copy."""
    for dtype in arrays.FLOATS:
        x = np.array([0.1, 65504.0], dtype)
        y = widen(x)
        assert y.dtype == (np.float32 if dtype == np.float16 else dtype)
        assert y.tolist() == x.tolist()
        assert (y is x) == (dtype != np.float16)


PLANTED = {
    "ceiling by rounding a float": (law_ceil_div, lambda a, b: math.ceil(a / b)),
    "one more at each multiple": (law_ceil_div, lambda a, b: a // b + 1),
    "everything computed in float64": (law_widened, lambda x: x.astype(np.float64)),
    "float16 computed as it is": (law_widened, lambda x: x),
    "a copy of what is wide enough": (law_widened, lambda x: x + np.float32(0)),
}


def test_ceil_div_and_widened():
    law_ceil_div(arrays.ceil_div)
    law_widened(arrays.widened)


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
