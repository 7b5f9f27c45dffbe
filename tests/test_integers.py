"""quantize_linear, dequantize_linear and matmul_integer against rational and Python-int oracles."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from minicompress.errors import CompressionError
from minicompress.integers import code_range, dequantize_linear, matmul_integer, quantize_linear
from minicompress.qparams import QParams, fake_quantize
from minicompress.testing.checks import check_pure
from minicompress.testing.strategies import LAYOUTS, in_layout

DTYPES = [np.float16, np.float32, np.float64]


# ---- QuantizeLinear and DequantizeLinear, one entry at a time, in rational numbers


def group_index(index, shape, axis, block_size):
    """Where the scale of an entry stands: the definition of ONNX, index by index."""
    if axis is None:
        return ()
    axis %= len(shape)
    if block_size is None:
        return (index[axis],)
    return (*index[:axis], index[axis] // block_size, *index[axis + 1 :])


def oracle_code(x, scale, zero_point, low, high, dtype):
    if np.isinf(x):
        return high if x > 0 else low
    # float() of a Fraction rounds correctly; rounding the quotient again to a dtype of at most
    # 24 bits changes nothing (53 >= 2 * 24 + 2: Figueroa, 1995).
    exact = Fraction(float(x)) / Fraction(float(scale))
    if abs(exact) > 2**40:
        return high if exact > 0 else low
    quotient = np.array(float(exact)).astype(dtype)
    if np.isinf(quotient):
        return high if exact > 0 else low
    return min(max(round(Fraction(float(quotient))) + int(zero_point), low), high)


def oracle_value(code, scale, zero_point, dtype):
    exact = (int(code) - int(zero_point)) * Fraction(float(scale))
    top = Fraction(float(np.finfo(dtype).max))
    return np.array(float(min(max(exact, -top), top))).astype(dtype)


def law_quantize(impl, x, scale, zero_point, num_bits=8, signed=True, axis=None, block_size=None):
    low, high = code_range(num_bits, signed)
    codes = impl(
        x, scale, zero_point, num_bits=num_bits, signed=signed, axis=axis, block_size=block_size
    )
    assert codes.shape == x.shape
    width = 8 if num_bits <= 8 else 16
    assert codes.dtype == np.dtype(f"{'' if signed else 'u'}int{width}")
    with np.errstate(all="ignore"):
        for index in np.ndindex(x.shape):
            g = group_index(index, x.shape, axis, block_size)
            right = oracle_code(x[index], scale[g], zero_point[g], low, high, x.dtype)
            assert int(codes[index]) == right, (x[index], scale[g], zero_point[g])


def law_dequantize(impl, codes, scale, zero_point, axis=None, block_size=None):
    values = impl(codes, scale, zero_point, axis=axis, block_size=block_size)
    assert values.shape == codes.shape
    assert values.dtype == scale.dtype
    with np.errstate(all="ignore"):
        for index in np.ndindex(codes.shape):
            g = group_index(index, codes.shape, axis, block_size)
            right = oracle_value(codes[index], scale[g], zero_point[g], scale.dtype)
            assert values[index] == right, (codes[index], scale[g], zero_point[g])


@st.composite
def linear_cases(draw):
    """x on and near the halves of steps, anywhere, and infinite; every granularity."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    num_bits, signed = draw(st.integers(2, 16)), draw(st.booleans())
    low, high = code_range(num_bits, signed)
    shape = draw(npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    block_size = None if axis is None else draw(st.none() | st.integers(1, 5))
    groups = ()
    if axis is not None:
        a = axis % len(shape)
        groups = (shape[a],)
        if block_size is not None:
            groups = (*shape[:a], -(-shape[a] // block_size), *shape[a + 1 :])
    scales = st.sampled_from([1.0, 0.5, 15.0, 0.1, 1 / 3, float(np.finfo(dtype).tiny), 60000.0])
    scale = draw(npst.arrays(np.float64, groups, elements=scales, fill=st.nothing())).astype(dtype)
    zero_point = draw(
        npst.arrays(np.int64, groups, elements=st.integers(low, high), fill=st.nothing())
    )
    halves = draw(npst.arrays(np.int64, shape, elements=st.integers(-300, 300), fill=st.nothing()))
    units = draw(st.sampled_from([1.0, 15.0, 0.1, 1 / 3]))
    x = (halves / 2 * units).astype(dtype)
    odd = st.floats(width=8 * dtype.itemsize, allow_nan=False)
    x = np.where(
        draw(npst.arrays(np.bool_, shape)), draw(npst.arrays(dtype, shape, elements=odd)), x
    )
    options = {"num_bits": num_bits, "signed": signed, "axis": axis, "block_size": block_size}
    return x, scale, zero_point, options


@given(linear_cases())
def test_quantize_linear_is_onnx(case):
    x, scale, zero_point, options = case
    law_quantize(quantize_linear, x, scale, zero_point, **options)


@given(linear_cases(), st.data())
def test_dequantize_linear_is_onnx(case, data):
    x, scale, zero_point, options = case
    low, high = code_range(options["num_bits"], options["signed"])
    codes = data.draw(npst.arrays(np.int32, x.shape, elements=st.integers(low, high)))
    codes = codes.astype(f"{'' if options['signed'] else 'u'}int16")
    law_dequantize(
        dequantize_linear, codes, scale, zero_point, options["axis"], options["block_size"]
    )


F = np.float64
TIES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
HAND_MADE = {
    # name: (x, scale, zero_point, options, codes)
    "ties to even": (TIES, F(1), 0, {}, [-2, -2, 0, 0, 2, 2]),
    "the zero point is added after rounding": (TIES, F(1), 1, {}, [-1, -1, 1, 1, 3, 3]),
    "saturation": ([-1e9, -129, 127.4, 127.6], F(1), 0, {}, [-128, -128, 127, 127]),
    "infinite": ([-np.inf, np.inf], F(0.1), 5, {}, [-128, 127]),
    "a zero point saturates too": ([1.0, -250.0], F(1), 127, {}, [127, -123]),
    "unsigned": ([-1.0, 0.0, 300.0], F(1), 128, {"signed": False}, [127, 128, 255]),
    "divided, not multiplied by 1/15": ([757.5], F(15), 0, {}, [50]),
    "2 bits": ([-9, -1, 0.4, 9], F(1), 0, {"num_bits": 2}, [-2, -1, 0, 1]),
    "2 bits, unsigned": ([-9, 0.6, 9], F(1), 1, {"num_bits": 2, "signed": False}, [0, 2, 3]),
    "16 bits": ([-1e9, 300.5, 1e9], F(1), 0, {"num_bits": 16}, [-32768, 300, 32767]),
    "16 bits, unsigned": (
        [7.0, 1e9], F(1), 60000, {"num_bits": 16, "signed": False}, [60007, 65535],
    ),
    "per axis 0": ([[4.0, 6.0], [4.0, 6.0]], [1.0, 2.0], [0, 1], {"axis": 0}, [[4, 6], [3, 4]]),
    "per axis -1": ([[4.0, 6.0], [4.0, 6.0]], [1.0, 2.0], [0, 1], {"axis": -1}, [[4, 4], [4, 4]]),
    "blocks, the last one ragged": (
        [[2.0, 4.0, 8.0, 16.0, 32.0]],
        [[1.0, 2.0, 4.0]],
        [[0, 1, 2]],
        {"axis": 1, "block_size": 2},
        [[2, 4, 5, 9, 10]],
    ),
    "a block beyond the axis": ([3.0, 4.0], [2.0], [0], {"axis": 0, "block_size": 2**60}, [2, 2]),
    "empty": (np.zeros((0, 2)), [1.0, 2.0], [0, 0], {"axis": 1}, np.zeros((0, 2))),
}  # fmt: skip


def law_table(impl, name):
    x, scale, zero_point, options, codes = HAND_MADE[name]
    for dtype in DTYPES:
        with np.errstate(over="ignore"):
            entries = np.asarray(x, np.float64).astype(dtype)
        got = impl(entries, np.asarray(scale, dtype), np.asarray(zero_point, int), **options)
        assert got.shape == np.shape(codes)
        assert got.tolist() == np.asarray(codes).tolist()


@pytest.mark.parametrize("name", HAND_MADE)
def test_quantize_linear_by_hand(name):
    law_table(quantize_linear, name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    x = np.array([[0.5, 1.5, -2.5], [3.0, 4.0, 99.0]], np.float32)
    scale, zero = np.array([1, 2, 4], np.float32), np.array([0, 1, 2])
    codes = quantize_linear(in_layout(x, layout), scale, zero, num_bits=4, axis=-1)
    assert codes.tolist() == [[0, 2, 1], [3, 3, 7]]
    back = dequantize_linear(in_layout(codes, layout), scale, zero, axis=-1)
    assert back.tolist() == [[0.0, 2.0, -4.0], [3.0, 4.0, 20.0]]
    a = in_layout(np.arange(6, dtype=np.int8).reshape(2, 3), layout)
    b = in_layout(np.arange(6, dtype=np.uint8).reshape(3, 2), layout)
    assert matmul_integer(a, b, a_zero_point=1).tolist() == [[4, 4], [22, 31]]


def test_arguments_are_left_alone():
    x, s, z = np.ones((2, 3), np.float32), np.ones(3, np.float32), np.array([0, 1, 2])
    check_pure(quantize_linear, x, s, z, axis=1)
    check_pure(dequantize_linear, np.ones((2, 3), np.int8), s, z, axis=1)
    check_pure(matmul_integer, np.ones((2, 3), np.int8), np.ones((3, 2), np.int8), 1, 2)


def test_dequantize_upcasts_and_stays_finite():
    """Requirement 13, and section 4 of the hazards: 127 * fl(max / 127) may be inf."""
    law_dequantize(dequantize_linear, np.array([100], np.int8), np.array(1.0), np.array(-100))
    for dtype in DTYPES:
        top = np.finfo(dtype).max
        scale = np.asarray(np.nextafter(top / dtype(127), dtype(np.inf)))
        decoded = dequantize_linear(np.array([-127, 127], np.int8), scale, 0)
        assert decoded.tolist() == [-top, top]
        assert decoded.dtype == dtype


# ---- matmul_integer


def law_matmul(impl, a, b, a_zero_point=0, b_zero_point=0):
    product = impl(a, b, a_zero_point, b_zero_point)
    za, zb = np.asarray(a_zero_point).astype(object), np.asarray(b_zero_point).astype(object)
    if za.ndim == 1:
        za = za[:, np.newaxis]
    right = np.zeros((a.shape[0], b.shape[1]), object) + (a.astype(object) - za) @ (
        b.astype(object) - zb
    )
    assert product.dtype in (np.int32, np.int64)
    assert product.shape == right.shape
    assert product.tolist() == right.tolist()


INTEGERS = ["uint8", "int8", "int16", "uint16", "int32", "uint32"]


@st.composite
def integer_matrices(draw):
    m, k, n = (draw(st.integers(0, 4)) for _ in range(3))

    def integers(shape, dtype):
        info = np.iinfo(dtype)
        ends = st.sampled_from([int(info.min), int(info.max), 0, 1])
        small = st.integers(max(-3, int(info.min)), 3)
        return draw(npst.arrays(dtype, shape, elements=ends | small, fill=st.nothing()))

    a_type, b_type = draw(st.sampled_from(INTEGERS)), draw(st.sampled_from(INTEGERS[:4]))
    a, b = integers((m, k), a_type), integers((k, n), b_type)
    za = integers(draw(st.sampled_from([(), (m,), (m, 1)])), a_type)
    zb = integers(draw(st.sampled_from([(), (n,), (1, n)])), b_type)
    return a, b, za, zb


@given(integer_matrices())
def test_matmul_integer_is_exact(matrices):
    law_matmul(matmul_integer, *matrices)


def extreme(m, k, n, left, right, dtype):
    """Everywhere the extreme codes, less one here and there so that sums are odd."""
    a, b = np.full((m, k), left, dtype), np.full((k, n), right, dtype)
    a[0, ::7] -= np.sign(left).astype(dtype)
    b[::5, 0] -= np.sign(right).astype(dtype)
    return a, b


LONG = {
    # (m, k, n, left, right, dtype), zero points, dtype of the result
    "uint8, k = 258": ((2, 258, 3, 255, 255, np.uint8), 0, 0, np.int32),
    "uint8, k = 259": ((2, 259, 3, 255, 255, np.uint8), 0, 0, np.int32),
    "uint8 less 255": ((2, 1500, 2, 0, 255, np.uint8), 255, 0, np.int32),
    "int8, k = 1025": ((2, 1025, 2, -128, -128, np.int8), 0, 0, np.int32),
    "int8 with zero points": ((2, 5000, 2, -128, 127, np.int8), 127, -128, np.int32),
    "beyond int32": ((1, 40000, 2, 255, 255, np.uint8), 0, 0, np.int64),
    "int16": ((1, 3000, 2, -32768, 32767, np.int16), 32767, -32768, np.int64),
    "int32 by int8": ((1, 300, 2, 2**31 - 1, 127, np.int32), 0, 0, np.int64),
    "int32 by int32": ((1, 1, 2, 2**31 - 1, 2**31 - 1, np.int32), 0, 0, np.int64),
}


@pytest.mark.parametrize("name", LONG)
def test_matmul_integer_is_exact_for_long_sums(name):
    shape, za, zb, dtype = LONG[name]
    a, b = extreme(*shape)
    law_matmul(matmul_integer, a, b, za, zb)
    assert matmul_integer(a, b, za, zb).dtype == dtype


def test_int32_is_left_where_its_range_is():
    one = np.array([[1]])
    for top, dtype in ((2**31 - 1, np.int32), (2**31, np.int64)):
        assert matmul_integer(np.array([[top]]), one).dtype == dtype


def test_wrapping_on_the_way_is_harmless():
    top = np.full((1, 1), 2**64 - 1, np.uint64)
    law_matmul(matmul_integer, top, np.array([[3]]), np.array(2**64 - 5, np.uint64))
    law_matmul(matmul_integer, np.array([[2**31 - 1]], np.int32), np.array([[1]]), -(2**31))
    assert dequantize_linear(np.array(2**31 - 1), 1.0, -(2**31)) == 2.0**32 - 1
    assert dequantize_linear(np.array(2**63 + 3, np.uint64), 1.0, np.array(2**63, np.uint64)) == 3


# ---- zero points that are left out


def law_left_out_is_zero(quantizer, dequantizer, x, scale, options):
    """The very numbers of the call with a 0 for each scale."""
    zeros = np.zeros(scale.shape, np.int64)
    codes = quantizer(x, scale, **options)
    right = quantize_linear(x, scale, zeros, **options)
    assert codes.dtype == right.dtype
    np.testing.assert_array_equal(codes, right)
    where = {name: options[name] for name in ("axis", "block_size")}
    back, right = (
        dequantizer(codes, scale, **where),
        dequantize_linear(codes, scale, zeros, **where),
    )
    assert back.dtype == right.dtype
    np.testing.assert_array_equal(back, right)


@given(linear_cases())
def test_a_zero_point_that_is_left_out_is_zero(case):
    x, scale, _, options = case
    law_left_out_is_zero(quantize_linear, dequantize_linear, x, scale, options)
    narrow = {name: value for name, value in options.items() if name != "signed"}
    explicit = QParams(scale, np.zeros(scale.shape, int), signed=options["signed"], **narrow)
    left_out = QParams(scale, signed=options["signed"], **narrow)
    np.testing.assert_array_equal(left_out.zero_point, explicit.zero_point)
    assert left_out.zero_point.dtype == np.int64
    finite = np.where(np.isinf(x), 0, x).astype(x.dtype)
    np.testing.assert_array_equal(fake_quantize(finite, left_out), fake_quantize(finite, explicit))


@given(integer_matrices())
def test_a_product_without_zero_points(matrices):
    a, b, za, zb = matrices
    left, right = np.zeros((len(a), 1), int), np.zeros((1, b.shape[1]), int)
    for given_, explicit in (({}, (left, right)), ({"a_zero_point": za}, (za, 0)),
                             ({"b_zero_point": zb}, (0, zb))):  # fmt: skip
        made, wanted = matmul_integer(a, b, **given_), matmul_integer(a, b, *explicit)
        assert made.dtype == wanted.dtype
        np.testing.assert_array_equal(made, wanted)


def in_the_middle(x, scale, **options):
    """Unsigned codes around 128: what symmetric codes have, not what is left out."""
    middle = 0 if options["signed"] else 2 ** (options["num_bits"] - 1)
    return quantize_linear(x, scale, np.full(scale.shape, middle), **options)


def one_scale(codes, scale, **where):
    return codes * scale.ravel()[0]


@pytest.mark.parametrize(
    ("quantizer", "dequantizer"),
    [(in_the_middle, dequantize_linear), (quantize_linear, one_scale)],
    ids=["the middle code", "one scale for all blocks"],
)
def test_another_zero_is_found(quantizer, dequantizer):
    x, scale = np.arange(6.0).reshape(2, 3), np.array([[1.0, 2.0], [0.5, 4.0]])
    options = {"num_bits": 8, "signed": False, "axis": 1, "block_size": 2}
    law_left_out_is_zero(quantize_linear, dequantize_linear, x, scale, options)
    with pytest.raises(AssertionError):
        law_left_out_is_zero(quantizer, dequantizer, x, scale, options)


@given(st.data())
def test_onnx_leaves_zero_points_out_too(data):
    """ONNX's own reference, where there is one; of 8 and 16 bits, the codes that it knows."""
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference").ReferenceEvaluator

    def run(kind, arrays, **attributes):
        arrays = dict(zip("abcd", arrays, strict=False))
        node = onnx.helper.make_node(kind, [*arrays], ["y"], **attributes)
        return reference(node).run(None, arrays)[0]

    shape = data.draw(npst.array_shapes(min_dims=2, max_dims=3, max_side=4))
    axis, kind = data.draw(st.integers(0, len(shape) - 1)), data.draw(st.integers(0, 2))
    block_size = data.draw(st.integers(1, 3)) if kind == 2 else None
    blocks = -(-shape[axis] // (block_size or 1))
    groups = [(), (shape[axis],), (*shape[:axis], blocks, *shape[axis + 1 :])][kind]
    scales = st.sampled_from([1.0, 0.5, 15.0, 0.1, 1 / 3])
    scale = data.draw(npst.arrays(np.float32, groups, elements=scales, fill=st.nothing()))
    halves = data.draw(npst.arrays(np.float32, shape, elements=st.integers(-300, 300)))
    x = halves / 2 * data.draw(scales.map(np.float32))
    num_bits, signed = data.draw(st.sampled_from([8, 16])), data.draw(st.booleans())
    where = {"axis": axis if kind else None, "block_size": block_size}
    attributes = {"axis": axis} | ({"block_size": block_size} if block_size else {})
    name = f"{'' if signed else 'U'}INT{num_bits}"
    codes = quantize_linear(x, scale, num_bits=num_bits, signed=signed, **where)
    right = run(
        "QuantizeLinear", [x, scale], output_dtype=getattr(onnx.TensorProto, name), **attributes
    )
    assert codes.dtype == right.dtype
    np.testing.assert_array_equal(codes, right)
    back = dequantize_linear(codes, scale, **where)
    np.testing.assert_array_equal(back, run("DequantizeLinear", [codes, scale], **attributes))
    a = data.draw(npst.arrays(np.uint8, (2, 3), fill=st.nothing()))
    b = data.draw(npst.arrays(np.int8, (3, 2), fill=st.nothing()))
    np.testing.assert_array_equal(matmul_integer(a, b), run("MatMulInteger", [a, b]))


# ---- what is refused

ONE, EYE = np.ones(3), np.eye(2, dtype=np.int8)
BAD = {
    "codes must be an array": lambda: dequantize_linear([[1], [1, 2]], 1.0, 0),
    "x must not hold NaN": lambda: quantize_linear(np.array([np.nan]), 1.0, 0),
    "x must be of dtype": lambda: quantize_linear(np.array([1]), 1.0, 0),
    "scale must be of dtype": lambda: quantize_linear(ONE, 1, 0),
    "for float64, not float32": lambda: quantize_linear(ONE, np.float32(1), 0),
    "scale must be positive": lambda: quantize_linear(ONE, 0.0, 0),
    "scale must be finite": lambda: quantize_linear(ONE, np.inf, 0),
    "zero_point must lie in": lambda: quantize_linear(ONE, 1.0, 128),
    "zero_point must be of an integer": lambda: quantize_linear(ONE, 1.0, 0.0),
    "num_bits": lambda: quantize_linear(ONE, 1.0, 0, num_bits=17),
    "num_bits must": lambda: quantize_linear(ONE, 1.0, 0, num_bits=1),
    "signed": lambda: quantize_linear(ONE, 1.0, 0, signed=1),
    "axis": lambda: quantize_linear(ONE, ONE, np.zeros(3, int), axis=1),
    "scale must have shape": lambda: quantize_linear(ONE, ONE, np.zeros(3, int)),
    "zero_point must have shape": lambda: quantize_linear(ONE, ONE, 0, axis=0),
    "block_size needs an axis": lambda: quantize_linear(ONE, 1.0, 0, block_size=2),
    "block_size must be": lambda: quantize_linear(ONE, ONE, 0, axis=0, block_size=0),
    "codes must be of an integer": lambda: dequantize_linear(ONE, 1.0, 0),
    "codes minus its zero point": lambda: dequantize_linear(np.array([2**63 - 1]), 1.0, -1),
    "a and b must be of shapes": lambda: matmul_integer(EYE, EYE[0]),
    "\\(m, k\\) and \\(k, n\\), not \\(2,\\) and": lambda: matmul_integer(EYE[0], EYE),
    "shapes \\(m, k\\)": lambda: matmul_integer(EYE, np.eye(3, dtype=int)),
    "a must be of an integer": lambda: matmul_integer(np.eye(2), EYE),
    "a_zero_point must be one": lambda: matmul_integer(EYE, EYE, np.zeros(3, int)),
    "a_zero_point must be of": lambda: matmul_integer(EYE, EYE, 0.5),
    "b_zero_point must be one": lambda: matmul_integer(EYE, EYE, 0, np.zeros((2, 1), int)),
    "a and b must be small enough": lambda: matmul_integer(np.array([[2**62]]), np.array([[2]])),
    "b minus its zero point": lambda: matmul_integer(EYE, np.array([[2**62], [1]]), 0, -(2**62)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(CompressionError, match=message):
        BAD[message]()


@pytest.mark.parametrize("scale", [0.0, -0.0, -1.0])
def test_a_scale_is_positive(scale):
    with pytest.raises(CompressionError, match="scale must be positive"):
        quantize_linear(ONE, scale, 0)
    with pytest.raises(CompressionError, match="scale must be positive"):
        dequantize_linear(np.array([1]), scale, 0)


# ---- wrong implementations, and the laws that they break


def planted_quantize(rounded=np.rint, offset=0, wrap=False, divide=np.divide, move=0):
    def impl(x, scale, zero_point, *, num_bits=8, signed=True, axis=None, block_size=None):
        low, high = code_range(num_bits, signed)
        if axis is not None and block_size is None:
            form = [1] * x.ndim
            form[(axis + move) % x.ndim] = -1
            scale, zero_point = scale.reshape(form), zero_point.reshape(form)
        codes = rounded(divide(x, scale)).astype(float) + zero_point + offset
        clipped = codes if wrap else np.clip(codes, low, high)
        width = 8 if num_bits <= 8 else 16
        return clipped.astype(np.int64).astype(f"{'' if signed else 'u'}int{width}")

    return impl


def away(x):
    return np.sign(x) * np.floor(np.abs(x) + x.dtype.type(0.5))


def in_int8(codes, scale, zero_point, axis=None, block_size=None):
    return (codes - zero_point.astype(codes.dtype)) * scale


def reciprocal(x, scale):
    return x * (1 / scale)


def float32_at_once(a, b, a_zero_point=0, b_zero_point=0):
    left = a.astype(np.float32) - np.asarray(a_zero_point, np.float32)
    return (left @ (b.astype(np.float32) - np.asarray(b_zero_point, np.float32))).astype(np.int32)


def matmul_in_int8(a, b, a_zero_point=0, b_zero_point=0):
    left = a - np.asarray(a_zero_point).astype(a.dtype)
    return np.asarray(left.astype(np.int32) @ b.astype(np.int32))


def b_zero_forgotten(a, b, a_zero_point=0, b_zero_point=0):
    return matmul_integer(a, b, a_zero_point)


def rows_for_columns(a, b, a_zero_point=0, b_zero_point=0):
    left = a.astype(np.int64) - np.asarray(a_zero_point)  # (m,) broadcast along k
    return left @ (b.astype(np.int64) - np.asarray(b_zero_point))


SQUARE = np.array([[1, 2], [3, 4]], np.int8)
PLANTED = {
    "half away from zero": (law_table, planted_quantize(away), "ties to even"),
    "half up": (law_table, planted_quantize(lambda x: np.floor(x + 0.5)), "ties to even"),
    "truncation": (law_table, planted_quantize(np.trunc), "ties to even"),
    "zero point off by one": (law_table, planted_quantize(offset=1), "unsigned"),
    "zero point added before rounding": (
        law_table,
        lambda x, s, z, **_: np.clip(np.rint(x / s + z), -128, 127).astype(np.int8),
        "the zero point is added after rounding",
    ),
    "wraps": (law_table, planted_quantize(wrap=True), "saturation"),
    "multiplied by the reciprocal": (
        law_table,
        planted_quantize(divide=reciprocal),
        "divided, not multiplied by 1/15",
    ),
    "wrong axis": (law_table, planted_quantize(move=1), "per axis 0"),
    "blocks ignored": (
        law_table,
        lambda x, s, z, **_: quantize_linear(x, s.ravel()[0], z.ravel()[0]),
        "blocks, the last one ragged",
    ),
    "int8 overflow in decoding": (
        law_dequantize,
        in_int8,
        np.array([100], np.int8),
        np.array(1.0),
        np.array(-100),
    ),
    "float32 at once": (law_matmul, float32_at_once, *extreme(2, 1500, 2, 255, 255, np.uint8)),
    "int8 overflow in a product": (law_matmul, matmul_in_int8, SQUARE, SQUARE, -126),
    "zero point of b forgotten": (law_matmul, b_zero_forgotten, SQUARE, SQUARE, 0, 1),
    "zero points of rows as of columns": (
        law_matmul,
        rows_for_columns,
        SQUARE,
        SQUARE,
        np.array([1, 2]),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_wrong_implementations_are_found(name):
    law, wrong, *arguments = PLANTED[name]
    right = {law_matmul: matmul_integer, law_dequantize: dequantize_linear}
    law(right.get(law, quantize_linear), *arguments)
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        law(wrong, *arguments)


def test_a_python_float_is_a_scale_of_float32_for_float16():
    x = np.array([1000.0], np.float16)
    codes = quantize_linear(x, 0.1, np.array(0), num_bits=16)
    assert codes.tolist() == [10_000]  # float16's 0.1 would give 10,002
