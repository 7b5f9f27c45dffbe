"""The laws that a compressor must keep on one array, each a function that raises when it is broken.

Errors are recomputed in rational arithmetic (`fractions.Fraction`), because a float oracle is
wrong by itself: of 2,500 sound bounds 211 look violated by a float sum, and none by an exact one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.norms import NORMS, UNIT, as_matrix
from minicompress.representation import (
    Certificate,
    Clustered,
    Compressed,
    LowRank,
    Quantized,
    Rep,
    Sparse,
    decode,
    num_params,
    storage_bits,
)
from minicompress.testing.strategies import LAYOUTS, in_layout

LARGEST = Fraction(np.finfo(np.float64).max)
TINIEST = 5e-324


def check_array(compressor: Callable[[Array], Compressed], w: Array) -> None:
    """All laws, on one array."""
    rep, cert = _call(compressor, w.copy(), w)  # a copy, for it may be written to
    decoded = well_formed(w, rep)
    before = decoded.copy()
    alike_in_every_layout(compressor, w, Compressed(rep, cert))
    certified(w, decoded, cert)
    counted(w, rep)
    refuses_what_is_not_finite(compressor, w)
    with suppress(Exception):  # the domain need not hold it
        compressor(-w)
    law = "a result stays as it is when the compressor is called again"
    equal(law, w, decode(rep), before)


def broken(law: str, w: Array, seen: Any, right: Any) -> NoReturn:
    """A law is broken: its name, the input, and both numbers."""
    seen, right = (v.tolist() if isinstance(v, np.ndarray) else v for v in (seen, right))
    raise AssertionError(
        f"law '{law}' is broken on {w.dtype} {w.tolist()} of shape {w.shape}: "
        f"got {seen}, but right is {right}"
    )


def holds(law: str, w: Array, condition: bool, seen: Any, right: Any) -> None:
    """A law is a condition."""
    if not condition:
        broken(law, w, seen, right)


def equal(law: str, w: Array, seen: Any, right: Any) -> None:
    """A law is that two values are the same, bit for bit."""
    holds(law, w, same(seen, right), seen, right)


def _call(compressor: Callable[[Array], Compressed], argument: Array, w: Array) -> Compressed:
    try:
        result = compressor(argument)
    except CompressionError as error:
        broken("every finite array of the domain is compressed", w, repr(error), "a Compressed")
    except Exception as error:
        broken("nothing but CompressionError is raised", w, repr(error), "a Compressed")
    two = isinstance(result, tuple) and len(result) == 2
    holds("a compressor returns (rep, cert)", w, two, repr(result), "a Compressed")
    rep, cert = result
    known = isinstance(rep, np.ndarray | LowRank | Sparse | Quantized | Clustered)
    law = "rep is an array or a representation"
    holds(law, w, known, type(rep).__name__, "one of those")
    known = isinstance(cert, Certificate) and isinstance(cert.norm, str) and cert.norm in NORMS
    holds("cert is a Certificate in a known norm", w, known, repr(cert), f"one of {NORMS}")
    numbers = all(isinstance(number, int | float | np.floating) for number in cert[1:])
    holds("bound and measured are numbers", w, numbers, repr(cert), "floats")
    return Compressed(rep, cert)


def well_formed(w: Array, rep: Rep) -> Array:
    """The representation decodes to a finite array of the same shape and dtype, and is frozen."""
    try:
        decoded = decode(rep)
    except Exception as error:
        broken("the representation decodes", w, repr(error), "an array")
    equal("decode has the shape of the input", w, decoded.shape, w.shape)
    equal("decode has the dtype of the input", w, decoded.dtype, w.dtype)
    finite = bool(np.isfinite(decoded).all())
    holds("finite in, finite out", w, finite, decoded, "finite entries")
    frozen = not any(part.flags.writeable for part in parts(rep))
    law = "the arrays of a representation are read-only"
    holds(law, w, frozen, "a writable one", "read-only")
    return decoded


def alike_in_every_layout(
    compressor: Callable[[Array], Compressed], w: Array, right: Compressed
) -> None:
    """The same entries give the same result, bit for bit, in every memory layout.

    The input is not written to, and writing to it afterwards changes nothing.
    """
    for layout in LAYOUTS:
        argument = in_layout(w, layout)
        other = _call(compressor, argument, w)
        law = f"the input is not written to, here a {layout} array"
        equal(law, w, argument, in_layout(w, layout))
        again = decode(other.rep).copy()
        law = f"the same result every time, also for a {layout} array"
        equal(law, w, again, decode(right.rep))
        equal(law, w, other, right)
        owner = argument
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        owner.flags.writeable = True  # of a read-only array too it is the owner who may write
        owner[...] = 1
        law = f"the result shares no memory with the input, here a {layout} array"
        equal(law, w, decode(other.rep), again)


def certified(w: Array, decoded: Array, cert: Certificate) -> None:
    """Measured is the error, the bound is not below it: exactly, in the norm that is claimed."""
    kind, bound, measured = cert.norm, float(cert.bound), float(cert.measured)
    law = "a certificate holds numbers of at least 0"
    holds(law, w, bound >= 0 and measured >= 0, cert, "at least 0")
    if kind == "spectral":
        _certified_spectral(w, decoded, bound, measured)
    else:
        error, power = exact_error_power(w, decoded, kind), 2 if kind == "fro" else 1
        right = _float_root(error, power)
        # n squares, their sum, the root and the differences: gamma_(n + 4), relative, and twice
        # that for a square. Half a subnormal is lost on the way back from scaling.
        slack = Fraction(power * (2 * w.size + 16)) * Fraction(UNIT)
        if math.isinf(measured):
            near = error >= LARGEST**power
        else:
            tiny = (Fraction(measured) + Fraction(TINIEST)) ** power - Fraction(measured) ** power
            near = abs(Fraction(measured) ** power - error) <= slack * error + tiny
        holds("measured is the error", w, near, measured, right)
        if math.isinf(bound):
            reach = exact_error_power(w, np.zeros_like(w), kind)
            beyond = reach + error >= LARGEST**power / 16
            holds("the bound is finite", w, beyond, bound, f"about {right}")
        else:
            sound = Fraction(bound) ** power >= error
            holds("the bound is not below the error", w, sound, bound, f"at least {right}")
    holds("measured <= bound", w, measured <= bound, measured, f"at most {bound}")


def exact_difference(w: Array, decoded: Array) -> Array:
    """The matrix ``w - decoded``, each entry a Fraction."""
    exact = np.vectorize(Fraction, otypes=[object])
    x, y = (exact(as_matrix(array).astype(np.float64)) for array in (w, decoded))
    return np.asarray(x - y)


def exact_error_power(w: Array, decoded: Array, kind: str) -> Fraction:
    """The squared Frobenius norm, or the largest magnitude, of the difference: exactly."""
    difference = exact_difference(w, decoded)
    return Fraction(np.square(difference).sum() if kind == "fro" else _largest(difference))


def _largest(array: Array) -> Fraction:
    return Fraction(np.abs(array).max(initial=0))


def _certified_spectral(w: Array, decoded: Array, bound: float, measured: float) -> None:
    """The 2-norm between a rational lower bound, ||D v|| / ||v||, and LAPACK's value."""
    difference = exact_difference(w, decoded)
    if not (top := _largest(difference)):
        holds("measured is the error", w, measured <= TINIEST, measured, 0.0)
        return
    _, s, vt = np.linalg.svd((difference / top).astype(np.float64), full_matrices=False)
    value = _float_root(top * Fraction(float(s[0])), 1)
    # LAPACK's own error is some max(m, n) eps of the largest singular value; 8 is customary.
    slack = 8 * max(difference.shape) * 2 * UNIT * value + TINIEST
    near = measured == value or abs(measured - value) <= slack
    holds("measured is the error", w, near, measured, value)
    if not math.isinf(bound):
        v = np.array([Fraction(x) for x in vt[0].tolist()])
        least = Fraction(np.square(difference @ v).sum() / np.square(v).sum())
        law, right = "the bound is not below the error", f"at least {_float_root(least, 2)}"
        holds(law, w, Fraction(bound) ** 2 >= least, bound, right)


def _float_root(power: Fraction, exponent: int) -> float:
    """The root of an exact number as a float; infinite beyond all floats."""
    value = Decimal(power.numerator) / power.denominator
    return float(value.sqrt() if exponent == 2 else value)


def counted(w: Array, rep: Rep) -> None:
    """The sizes are those of the arrays that are stored, recounted from the arrays themselves."""
    params, bits = recount(rep)
    equal("num_params counts what is stored", w, num_params(rep), params)
    equal("storage_bits counts what is stored", w, storage_bits(rep), bits)


def recount(rep: Rep) -> tuple[int, int]:
    """Parameters and bits of a representation, by packing its streams for real."""
    match rep:
        case LowRank(factors, _):
            counts = [recount(f) for f in factors]
            return sum(p for p, _ in counts), sum(b for _, b in counts)
        case Sparse(shape, indices, values):
            params, bits = recount(values)
            return params, bits + _places(shape, indices)
        case Quantized(codes=Sparse(shape, indices, values)):
            assert isinstance(values, np.ndarray)
            params, bits = recount(dataclasses.replace(rep, codes=values))
            return params, bits + _places(shape, indices)
        case Quantized(codes=np.ndarray() as codes, num_bits=width, zero_point=zero_point):
            bits = _packed(codes.size, width) + 8 * len(rep.scale.tobytes())
            if zero_point.any():
                low = -(2 ** (width - 1)) if rep.signed else 0
                inside = ((low <= zero_point) & (zero_point < low + 2**width)).all()
                bits += _packed(zero_point.size, width if inside else 32)
            return codes.size, bits
        case Clustered(codes, codebook):
            width = _width(decode(codebook).size)
            return codes.size, _packed(codes.size, width) + recount(codebook)[1]
    assert isinstance(rep, np.ndarray)
    return rep.size, 8 * len(rep.tobytes())


def _packed(count: int, width: int) -> int:
    """The bits of `count` codes of `width` bits, packed for real."""
    return 8 * np.packbits(np.zeros(count * width, bool)).nbytes


def _width(count: int) -> int:
    """The bits that tell so many things apart."""
    return len(format(count - 1, "b")) if count > 1 else 0


def _places(shape: tuple[int, ...], indices: Array) -> int:
    n = math.prod(shape)
    return min(_packed(n, 1), _packed(indices.size, _width(n)))


def refuses_what_is_not_finite(compressor: Callable[[Array], Compressed], w: Array) -> None:
    """NaN and infinite entries are refused, wherever they stand."""
    for place in {0, w.size // 2, w.size - 1} if w.size else ():
        for bad in (np.nan, np.inf, -np.inf):
            argument = w.copy()
            argument.reshape(-1)[place] = bad
            try:
                result: Any = compressor(argument)
            except CompressionError:
                continue
            except Exception as error:
                result = error
            broken(f"{bad} is refused with a CompressionError", argument, repr(result), "that")


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal bit for bit: arrays, and whatever holds them."""
    x, y = dict(leaves(a)), dict(leaves(b))
    return x.keys() == y.keys() and all(_alike(leaf, y[path]) for path, leaf in x.items())


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return bool(a.hex() == b.hex())
    # A pullback, an optimizer: what it computes is checked by calling it.
    return callable(a) or bool(a == b) or (a != a and b != b)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What lists, dicts, dataclasses and the like hold in the end, and where."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif isinstance(value, dict):
        inside = value
    elif isinstance(value, tuple | list):
        inside = dict(enumerate(value))  # type: ignore[arg-type]
    else:
        yield path, value
        return
    yield f"{path} of {type(value)}", None
    for key, part in inside.items():
        yield from leaves(part, f"{path}/{key!r}")


def parts(rep: Rep) -> list[Array]:
    """All arrays that a representation holds."""
    return [leaf for _, leaf in leaves(rep) if isinstance(leaf, np.ndarray)]
