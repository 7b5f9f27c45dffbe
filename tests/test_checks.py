"""The contract catches the wrong, the subtly wrong too; the strategies reach every hard kind."""

import importlib
import re
import sys
import time
from functools import partial

import numpy as np
import pytest
from budgets import at_most
from hypothesis import given, settings

from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.errors import CompressionError
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.pointwise import ReLU, Sigmoid, Softmax, Tanh
from minicompress.nn.stateless import AvgPool2D, Flatten
from minicompress.norms import error_norm
from minicompress.representation import Clustered, Compressed, LowRank, Quantized, Sparse, decode
from minicompress.testing.checks import check_codec, check_compressor, check_layer, check_pure, same
from minicompress.testing.strategies import (
    DTYPES,
    KINDS,
    LAYOUTS,
    conv_kernels,
    in_layout,
    weights,
)


def test_without_hypothesis_one_line_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("minicompress.testing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"^minicompress\.testing needs .* '\.\[test\]'$"):
        importlib.import_module("minicompress.testing")


half = partial(prune_magnitude, amount=0.5)
int4 = partial(quantize, num_bits=4)


def recertified(rep, w, kind="fro"):
    """An honest certificate for whatever the representation is, with room for rounding."""
    error = error_norm(w, decode(rep), kind)
    bound = error * (1 + 1e-9) + 1e-300
    return Compressed(rep, half(w).cert._replace(norm=kind, bound=bound, measured=error))


def lies(**change):
    """Pruning whose certificate is changed: each value a function of the honest certificate."""

    def liar(w):
        rep, cert = half(w)
        return Compressed(rep, cert._replace(**{k: f(cert) for k, f in change.items()}))

    return liar


def tampered(where):
    """Pruning that errs by a little on the arrays of one kind, and does not say so."""

    def liar(w):
        rep, cert = half(w)
        if w.size == 0 or not where(w) or not np.any(rep.values):
            return Compressed(rep, cert)
        values = rep.values.copy()
        values[-1] = 0
        return Compressed(Sparse(rep.shape, rep.indices, values), cert)

    return liar


def ties(w):
    return len(set(np.abs(w).ravel().tolist())) < w.size > 1


def writes(w):
    np.abs(w, out=w)
    return half(w)


def aliases(w):
    cert = half(w).cert._replace(bound=0.0, measured=0.0)
    rep = np.asarray(w)
    if rep.flags.writeable:
        rep = rep[...]
        rep.flags.writeable = False
    return Compressed(rep, cert)


class Counter:
    calls = 0


def forgets_bad_values(w):
    finite = np.nan_to_num(np.asarray(w), posinf=0.0, neginf=0.0)
    return half(finite)


def counts_calls(counter):
    def compressor(w):
        counter.calls += 1
        rep, cert = half(w)
        return Compressed(rep, cert._replace(bound=cert.bound * (1 + counter.calls % 2)))

    return compressor


def first_in_memory(w):
    """Drops the first half in memory order, whatever the layout makes of that."""
    flat = w.ravel(order="K")
    count = round(0.5 * w.size)
    keep = np.arange(w.size)[count:]
    rep = Sparse(w.shape, keep, flat[keep].astype(w.dtype.newbyteorder("=")))
    return recertified(rep, np.asarray(w, w.dtype.newbyteorder("=")))


def in_float32(w):
    """Rounds float64 to float32 on the way, and certifies what it had then."""
    narrow = (
        w.astype(np.float32) if w.dtype == np.float64 and np.abs(w).max(initial=0) < 1e30 else w
    )
    rep, cert = half(narrow)
    return Compressed(Sparse(rep.shape, rep.indices, rep.values.astype(w.dtype)), cert)


def max_sold_as_frobenius(w):
    rep, cert = prune_magnitude(w, amount=0.5, norm="max")
    return Compressed(rep, cert._replace(norm="fro"))


def refuses_empty(w):
    if w.size == 0:
        raise ValueError("zero-size array to reduction operation")
    return half(w)


def refuses_zeros(w):
    if not w.any():
        raise CompressionError("weight must not be all zeros")
    return half(w)


def wrong_dtype(w):
    rep, cert = half(w.astype(np.float64))
    return Compressed(rep, cert)


def flattens(w):
    rep, cert = half(w.reshape(-1))
    return Compressed(rep, cert)


def writable_rep(w):
    array = np.array(w)
    return Compressed(array, half(w).cert._replace(bound=0.0, measured=0.0))


def reads_only_writable(w):
    if not w.flags.writeable:
        w = np.zeros_like(w)
    return half(w)


def overwrites(layout):
    """Writes zeros into arrays of one layout only."""

    def compressor(w):
        result = half(w)
        if w.flags.writeable and layout(w):
            w[...] = 0
        return result

    return compressor


def keeps_a_view(w):
    """Copies what is in C order, and hands back a view of all else."""
    rep = np.array(w) if w.flags.c_contiguous else w[...]
    rep = rep if rep.dtype.isnative else rep.astype(rep.dtype.newbyteorder("="))
    rep.flags.writeable = False
    return Compressed(rep, half(w).cert._replace(bound=0.0, measured=0.0))


def looks_at_both_ends(w):
    """Refuses NaN at the first and the last place, and takes it for zero elsewhere."""
    ends = w.ravel()[[0, -1]] if w.size else w.ravel()
    return half(np.where(np.isfinite(w), w, 0) if np.isfinite(ends).all() else w)


def dense_and_sparse(counter):
    """The same values every time, stored in two ways by turns."""

    def compressor(w):
        counter.calls += 1
        array = np.array(w, w.dtype.newbyteorder("="))
        array.flags.writeable = False
        rep = Sparse(w.shape, np.arange(w.size), array.ravel()) if counter.calls % 2 else array
        return recertified(rep, array)

    return compressor


def scratch(buffers):
    """Hands out views of one buffer for each size, which the next call of that size overwrites."""

    def compressor(w):
        native = np.asarray(w, w.dtype.newbyteorder("="))
        rep, cert = half(native)
        buffer = buffers.setdefault((native.dtype.str, w.shape), np.zeros(w.shape, native.dtype))
        buffer[...] = decode(rep)
        view = buffer[...]
        view.flags.writeable = False
        return Compressed(view, cert)

    return compressor


def slow_and_refuses_empty(w):
    time.sleep(0.002)
    return refuses_empty(w)


def writes_where_it_may(w):
    if w.flags.writeable:
        np.abs(w, out=w)
    return half(w)


PLANTED = {
    "writes to what may be written to": writes_where_it_may,
    "writes to Fortran arrays": overwrites(
        lambda w: w.flags.f_contiguous and not w.flags.c_contiguous
    ),
    "writes to strided arrays": overwrites(
        lambda w: not (w.flags.c_contiguous or w.flags.f_contiguous)
    ),
    "writes to byte-swapped arrays": overwrites(lambda w: not w.dtype.isnative),
    "views of Fortran arrays": keeps_a_view,
    "NaN in the middle": looks_at_both_ends,
    "another representation every time": dense_and_sparse(Counter()),
    "results that the next call overwrites": scratch({}),
    "refuses empty arrays, slowly": slow_and_refuses_empty,
    "a bound that is None": lies(bound=lambda c: None),
    "a bound that is text": lies(bound=lambda c: str(c.bound)),
    "a tuple for a certificate": lambda w: (half(w).rep, tuple(half(w).cert)),
    "a norm that is an array": lies(norm=lambda c: np.array([c.norm])),
    "measured 0.1 % off": lies(measured=lambda c: c.measured * 0.999),
    "measured larger than it is": lies(
        measured=lambda c: c.measured * 1.001, bound=lambda c: c.bound * 1.002
    ),
    "bound a hair below the error": lies(bound=lambda c: c.measured * (1 - 1e-12)),
    "bound not rounded outward": lies(bound=lambda c: np.nextafter(c.measured, 0)),
    "bound infinite": lies(bound=lambda c: float("inf")),
    "bound NaN": lies(bound=lambda c: float("nan")),
    "unknown norm": lies(norm=lambda c: "l1"),
    "max sold as Frobenius": max_sold_as_frobenius,
    "errs on ties only": tampered(ties),
    "errs on huge values only": tampered(lambda w: np.abs(w).max() > np.finfo(w.dtype).max / 8),
    "errs on denormals only": tampered(lambda w: 0 < np.abs(w).max() < np.finfo(w.dtype).tiny),
    "errs on float16 only": tampered(lambda w: w.dtype == np.float16),
    "errs on one entry only": tampered(lambda w: w.size == 1),
    "errs on constants only": tampered(lambda w: w.size > 1 and (w == w.flat[0]).all()),
    "errs on negative entries only": tampered(lambda w: (w < 0).all() and w.size > 2),
    "errs on four dimensions only": tampered(lambda w: w.ndim == 4),
    "errs on read-only arrays only": tampered(lambda w: not w.flags.writeable),
    "errs on strided arrays only": tampered(
        lambda w: not (w.flags.c_contiguous or w.flags.f_contiguous)
    ),
    "errs on Fortran arrays only": tampered(
        lambda w: w.flags.f_contiguous and not w.flags.c_contiguous
    ),
    "errs on byte-swapped arrays only": tampered(lambda w: not w.dtype.isnative),
    "read-only arrays read as zeros": reads_only_writable,
    "memory order for C order": first_in_memory,
    "writes to its input": writes,
    "returns a view of its input": aliases,
    "returns a writable array": writable_rep,
    "accepts NaN and inf": forgets_bad_values,
    "refuses empty arrays": refuses_empty,
    "refuses zeros": refuses_zeros,
    "another dtype": wrong_dtype,
    "another shape": flattens,
    "float32 on the way": in_float32,
    "not deterministic": counts_calls(Counter()),
    "no certificate": lambda w: half(w).rep,
    "no representation": lambda w: Compressed(w.tolist(), half(w).cert),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_compressors_are_caught(name):
    with pytest.raises(AssertionError, match=r"^law '.*' is broken on float"):
        check_compressor(PLANTED[name])


def test_the_message_names_the_law_the_input_and_both_numbers():
    with pytest.raises(AssertionError) as caught:
        check_compressor(lies(bound=lambda c: c.measured / 2), seconds=3.0)
    message = str(caught.value)
    assert "law 'the bound is not below the error' is broken on float" in message
    assert "got 0.5, but right is at least 1.0" in message
    assert len(message) < 200  # the array has shrunk to a few entries


def test_a_check_ends_in_time():
    start = time.monotonic()
    check_compressor(half, seconds=0.3)
    assert time.monotonic() - start < 8.0  # generous: one array more than the second allows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_reached_in_every_dtype(kind, dtype):
    seen = []

    @settings(max_examples=20, derandomize=True, database=None)
    @given(weights(kinds=(kind,), dtypes=(dtype,)))
    def draw(w):
        assert w.dtype == dtype
        assert np.isfinite(w).all()
        seen.append(w)

    draw()
    largest = max(np.abs(w).max(initial=0) for w in seen)
    info = np.finfo(dtype)
    assert any(w.size == 0 for w in seen) or len(seen) < 3
    assert any(w.size == 1 for w in seen)
    assert any(w.size > 1 for w in seen)
    if kind == "zeros":
        assert largest == 0
        assert any(np.signbit(w).any() for w in seen)
    if kind == "denormal":
        assert 0 < largest < info.tiny
    if kind == "huge":
        assert largest == info.max
    if kind == "constant":
        assert all((w == w.flat[0]).all() for w in seen if w.size)
    if kind == "ties":
        assert any(ties(w) for w in seen)
    if kind == "integers":
        assert all((w == np.rint(w)).all() for w in seen)


def test_every_cell_is_visited_by_a_check():
    visited = set()

    def watch(w):
        if np.isfinite(w).all():
            visited.add((w.dtype.newbyteorder("="), min(w.size, 2)))
        return half(w)

    check_compressor(watch, seconds=1.0)
    assert visited == {(dtype, n) for dtype in DTYPES for n in (0, 1, 2)}
    assert len(weights().cells) == 3 * (2 * len(KINDS) + 1)


@at_most(30)
@given(conv_kernels(empty=False))
def test_layouts_hold_the_same_entries_and_share_nothing(w):
    for layout in LAYOUTS:
        other = in_layout(w, layout)
        assert other.tolist() == w.tolist()
        assert other.shape == w.shape
        assert not np.shares_memory(other, w)
    assert not in_layout(w, "read-only").flags.writeable
    assert in_layout(w, "Fortran").flags.f_contiguous
    assert not in_layout(w, "byte-swapped").dtype.isnative


def test_purity_is_checked_inside_values_too():
    def writes_inside(pair):
        pair["w"][0][0] = 7.0

    with pytest.raises(
        AssertionError, match="'arguments are not written to' is broken by writes_i"
    ):
        check_pure(writes_inside, {"w": [np.ones(2)]})
    with pytest.raises(AssertionError, match="'read-only arguments are accepted'"):
        check_pure(lambda x: x.__setitem__(0, x[0]), np.ones(2))
    for grows, argument in [
        (lambda xs: xs.append(1), [np.ones(2)]),
        (lambda d: d.pop("a"), {"a": np.ones(2)}),
        (lambda xs: xs.__setitem__(0, 2.0), [1.0]),
        (lambda xs: xs.__setitem__(0, np.ones(3)), [np.ones(2)]),
        (lambda pair: pair[0].append(pair[1].pop()), ([1.0], [2.0])),
    ]:
        with pytest.raises(AssertionError, match=r"they held .* and now hold"):
            check_pure(grows, argument)
    with pytest.raises(AssertionError, match="the same arguments give the same result"):
        check_pure(lambda x, signs=[0.0, -0.0]: signs.pop(), np.ones(2))
    with pytest.raises(AssertionError, match="array 0 of its arguments"):
        check_pure(lambda x: x.resize((2, 1), refcheck=False), np.ones(2))
    state = [0]

    def drifts(x):
        state[0] += 1
        return x + state[0]

    with pytest.raises(AssertionError, match="the same arguments give the same result"):
        check_pure(drifts, np.ones(2))
    check_pure(lambda rng: rng.random(), np.random.default_rng(0))  # each call from the same state


def test_sameness_is_bit_for_bit():
    q = Quantized(np.array([1]), np.array(1.0), np.array(0), 8, True, None, None, "f8")
    other = Quantized(np.array([2]), np.array(1.0), np.array(0), 8, True, None, None, "f8")
    assert same(q, q)
    assert not same(q, other)
    assert not same(np.array([0.0]), np.array([-0.0]))
    assert not same(np.ones(1), np.ones(1, np.float32))
    assert not same((1, 2), [1, 2])
    assert same({"a": np.array([np.nan])}, {"a": np.array([np.nan])})
    assert not same({"a": 1}, {"b": 1})
    rank_one = LowRank((np.ones((2, 1)), np.ones((1, 2))), "ir,ro->io")
    assert not same(rank_one, Clustered(np.array([0]), np.ones(1)))


def test_codecs_are_checked_both_ways():
    pair = (lambda a: a.tobytes(), lambda b: np.frombuffer(b))
    check_codec(*pair, np.array([1.0, -0.0]))
    with pytest.raises(AssertionError, match="decode undoes encode"):
        check_codec(pair[0], lambda b: np.frombuffer(b) + 0.0, np.array([1.0, -0.0]))
    counter = iter(range(9))
    with pytest.raises(AssertionError, match="same bytes"):
        check_codec(lambda a: bytes([next(counter)]), pair[1], np.ones(1))


CLEAR = np.linspace(-1.0, 1.25, 2 * 4 * 4 * 3).reshape(2, 4, 4, 3)  # nothing within 1e-2 of 0
WEIGHT = np.sin(np.arange(3 * 3 * 3 * 2.0)).reshape(3, 3, 3, 2)
LAYERS = {
    "convolution": (Conv2D(WEIGHT, np.ones(2), padding="same", stride=2), CLEAR),
    "dense": (Dense(WEIGHT.reshape(9, 6), np.arange(6.0)), CLEAR[:, :3, 0].reshape(2, 9)),
    "relu": (ReLU(), CLEAR),
    "sigmoid": (Sigmoid(), CLEAR),
    "tanh": (Tanh(), CLEAR),
    "softmax": (Softmax(), CLEAR[:, 0, 0]),
    "pooling": (AvgPool2D(3, 1, "same"), CLEAR),
    "flatten": (Flatten(), CLEAR),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_the_library_pass(name):
    check_layer(*LAYERS[name])


class Halved(Tanh):
    def vjp(self, x, **options):
        y, pullback = super().vjp(x, **options)
        return y, lambda dy: (None if (dx := pullback(dy)[0]) is None else dx / 2, {})


class Other(ReLU):
    def vjp(self, x, **options):
        y, pullback = super().vjp(x, **options)
        return y + 1, pullback


class Misshapen(Flatten):
    def output_shape(self, input_shape):
        return input_shape


class Transposed(Dense):
    def vjp(self, x, **options):
        y, pullback = super().vjp(x, **options)

        def transposed(dy):
            dx, gradients = pullback(dy)
            return dx, {**gradients, "weight": gradients["weight"].T}

        return y, transposed


class Silent(Dense):
    def vjp(self, x, **options):
        y, pullback = super().vjp(x, **options)
        return y, lambda dy: (pullback(dy)[0], {})


class Loud(Tanh):
    def vjp(self, x, **options):
        y, pullback = super().vjp(x, **options)
        return y, lambda dy: (pullback(dy)[0], {"more": dy})


class Narrow(Tanh):
    def forward(self, x):
        return super().forward(x).astype(np.float32)


class Greedy(ReLU):
    def vjp(self, x, *, rng=None, input_gradient=True):
        return super().vjp(x, rng=rng)


WRONG_LAYERS = {
    "<v, J'u> = <Jv, u>": Halved(),
    "vjp gives the output of forward": Other(),
    "output_shape is the shape": Misshapen(),
    "a gradient has the shape of its argument": Transposed(np.ones((3, 2))),
    "weight and bias have gradients": Silent(np.ones((3, 2))),
    "nothing else but parameters": Loud(),
    "dtype in, dtype out": Narrow(),
    "without input_gradient it is None": Greedy(),
}


@pytest.mark.parametrize("law", WRONG_LAYERS)
def test_wrong_layers_are_caught(law):
    x = CLEAR[:, 0, 0] if isinstance(WRONG_LAYERS[law], Dense) else CLEAR
    with pytest.raises(AssertionError, match=re.escape(law)):
        check_layer(WRONG_LAYERS[law], x)
