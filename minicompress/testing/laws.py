"""The laws that a compressor must keep on one array, each a function that raises when it is broken.

Errors are recomputed in rational arithmetic (`fractions.Fraction`), because a float oracle is
wrong by itself: of 2,500 sound bounds 211 look violated by a float sum, and none by an exact one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import suppress
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


def check_array(compressor: Callable[[Array], Compressed], w: Array) -> None:
    """All laws, on one array."""
    rep, cert = _call(compressor, w.copy(), w)  # a copy, for it may be written to
    decoded = well_formed(w, rep, cert)
    before = decoded.copy()
    alike_in_every_layout(compressor, w, rep, cert)
    certified(w, decoded, cert)
    counted(w, rep)
    refuses_what_is_not_finite(compressor, w)
    with suppress(Exception):  # the domain need not hold it
        compressor(-w)
    if decode(rep).tobytes() != before.tobytes():
        law = "a result stays as it is when the compressor is called again"
        broken(law, w, decode(rep).tolist(), before.tolist())


def broken(law: str, w: Array, seen: Any, right: Any) -> NoReturn:
    """A law is broken: its name, the input, and both numbers."""
    raise AssertionError(
        f"law '{law}' is broken on {w.dtype} {w.tolist()} of shape {w.shape}: "
        f"got {seen}, but right is {right}"
    )


def _call(compressor: Callable[[Array], Compressed], argument: Array, w: Array) -> Compressed:
    try:
        result = compressor(argument)
    except CompressionError as error:
        broken("every finite array of the domain is compressed", w, repr(error), "a Compressed")
    except Exception as error:
        broken("nothing but CompressionError is raised", w, repr(error), "a Compressed")
    if not (isinstance(result, tuple) and len(result) == 2):
        broken("a compressor returns (rep, cert)", w, repr(result), "a Compressed")
    rep, cert = result
    if not isinstance(rep, np.ndarray | LowRank | Sparse | Quantized | Clustered):
        broken("rep is an array or a representation", w, type(rep).__name__, "one of those")
    if not (isinstance(cert, Certificate) and isinstance(cert.norm, str) and cert.norm in NORMS):
        broken("cert is a Certificate in a known norm", w, repr(cert), f"one of {NORMS}")
    if not all(isinstance(number, int | float | np.floating) for number in cert[1:]):
        broken("bound and measured are numbers", w, repr(cert), "floats")
    return Compressed(rep, cert)


def well_formed(w: Array, rep: Rep, cert: Certificate) -> Array:
    """The representation decodes to a finite array of the same shape and dtype, and is frozen."""
    try:
        decoded = decode(rep)
    except Exception as error:
        broken("the representation decodes", w, repr(error), "an array")
    if decoded.shape != w.shape:
        broken("decode has the shape of the input", w, decoded.shape, w.shape)
    if decoded.dtype != w.dtype:
        broken("decode has the dtype of the input", w, decoded.dtype, w.dtype)
    if not np.isfinite(decoded).all():
        broken("finite in, finite out", w, decoded.tolist(), "finite entries")
    for part in parts(rep):
        if part.flags.writeable:
            broken("the arrays of a representation are read-only", w, "a writable one", "read-only")
    return decoded


def alike_in_every_layout(
    compressor: Callable[[Array], Compressed], w: Array, rep: Rep, cert: Certificate
) -> None:
    """The same entries give the same result, bit for bit, in every memory layout.

    The input is not written to, and writing to it afterwards changes nothing.
    """
    decoded = decode(rep)
    for layout in LAYOUTS:
        argument = in_layout(w, layout)
        other = _call(compressor, argument, w)
        if argument.tobytes() != in_layout(w, layout).tobytes():
            law = f"the input is not written to, here a {layout} array"
            broken(law, w, argument.tolist(), w.tolist())
        again = decode(other.rep)
        law = f"the same result every time, also for a {layout} array"
        if again.shape != decoded.shape or again.dtype != decoded.dtype:
            broken(law, w, (again.dtype, again.shape), (decoded.dtype, decoded.shape))
        if again.tobytes() != decoded.tobytes():
            broken(law, w, again.tolist(), decoded.tolist())
        if repr(other.cert) != repr(cert):
            broken(law, w, other.cert, cert)
        if not same(other.rep, rep):
            broken(law, w, other.rep, rep)
        before = again.copy()
        owner = argument
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        owner.flags.writeable = True  # of a read-only array too it is the owner who may write
        owner[...] = 1
        after = decode(other.rep)
        if after.tobytes() != before.tobytes():
            law = f"the result shares no memory with the input, here a {layout} array"
            broken(law, w, after.tolist(), before.tolist())


def certified(w: Array, decoded: Array, cert: Certificate) -> None:
    """Measured is the error, the bound is not below it: exactly, in the norm that is claimed."""
    kind, bound, measured = cert.norm, float(cert.bound), float(cert.measured)
    if math.isnan(bound) or math.isnan(measured) or bound < 0 or measured < 0:
        broken("a certificate holds numbers of at least 0", w, cert, "at least 0")
    if kind == "spectral":
        _certified_spectral(w, decoded, bound, measured)
    else:
        error = exact_error_power(w, decoded, kind)
        power = 2 if kind == "fro" else 1
        # n squares, their sum, the root and the differences: gamma_(n + 4), relative, and twice
        # that for a square. Half a subnormal is lost on the way back from scaling.
        slack = Fraction(power * (2 * w.size + 16)) * Fraction(UNIT)
        if math.isinf(measured):
            if error < Fraction(np.finfo(np.float64).max) ** power:
                broken("measured is the error", w, measured, _float_root(error, power))
        else:
            tiny = Fraction(5e-324) ** power + 2 * Fraction(5e-324) * Fraction(measured) * (
                power - 1
            )
            if abs(Fraction(measured) ** power - error) > slack * error + tiny:
                broken("measured is the error", w, measured, _float_root(error, power))
        if not math.isinf(bound) and Fraction(bound) ** power < error:
            broken(
                "the bound is not below the error",
                w,
                bound,
                f"at least {_float_root(error, power)}",
            )
        reach = exact_error_power(w, np.zeros_like(w), kind)
        if math.isinf(bound) and reach + error < Fraction(np.finfo(np.float64).max) ** power / 16:
            broken("the bound is finite", w, bound, f"about {_float_root(error, power)}")
    if measured > bound:
        broken("measured <= bound", w, measured, f"at most {bound}")


def exact_error_power(w: Array, decoded: Array, kind: str) -> Fraction:
    """The squared Frobenius norm, or the largest magnitude, of the difference: exactly."""
    differences = (
        Fraction(float(a)) - Fraction(float(b))
        for a, b in zip(w.ravel().tolist(), decoded.ravel().tolist(), strict=True)
    )
    if kind == "max":
        return max((abs(d) for d in differences), default=Fraction(0))
    return sum((d * d for d in differences), Fraction(0))


def _certified_spectral(w: Array, decoded: Array, bound: float, measured: float) -> None:
    """The 2-norm between a rational lower bound, ||D v|| / ||v||, and LAPACK's value."""
    x, y = as_matrix(w).astype(np.float64), as_matrix(decoded).astype(np.float64)
    with np.errstate(over="ignore"):
        difference = x - y
    halved = int(not np.isfinite(difference).all())
    if halved:  # beyond float64; the lost last bits of subnormal entries do not matter then
        difference = x / 2 - y / 2
    shift = int(np.frexp(np.abs(difference).max(initial=0))[1])
    scaled = np.ldexp(difference, -shift)
    if not scaled.any():
        if measured > 5e-324:
            broken("measured is the error", w, measured, 0.0)
        return
    _, s, vt = np.linalg.svd(scaled, full_matrices=False)
    with np.errstate(over="ignore", under="ignore"):
        value = float(np.ldexp(s[0], shift + halved))
    # LAPACK's own error is some max(m, n) eps of the largest singular value; 8 is customary.
    slack = 8 * max(scaled.shape) * 2 * UNIT * value + 5e-324
    if not (math.isinf(value) and math.isinf(measured)) and not abs(measured - value) <= slack:
        broken("measured is the error", w, measured, value)
    if math.isinf(bound):
        return
    v = [Fraction(float(x)) for x in vt[0]]
    rows = zip(as_matrix(w).tolist(), as_matrix(decoded).tolist(), strict=True)
    image = (
        sum((Fraction(a) - Fraction(b)) * x for a, b, x in zip(left, right, v, strict=True))
        for left, right in rows
    )
    least = sum((y * y for y in image), Fraction(0)) / sum((x * x for x in v), Fraction(0))
    if Fraction(bound) ** 2 < least:
        broken("the bound is not below the error", w, bound, f"at least {_float_root(least, 2)}")


def _float_root(power: Fraction, exponent: int) -> float:
    """The root of an exact number as a float, for the message."""
    if power == 0:
        return 0.0
    shift = (power.numerator.bit_length() - power.denominator.bit_length()) // 2 * 2
    value = float(power / Fraction(2) ** shift) ** (1 / exponent)
    try:
        return math.ldexp(value, shift // exponent)
    except OverflowError:
        return math.inf


def counted(w: Array, rep: Rep) -> None:
    """The sizes are those of the arrays that are stored, recounted from the arrays themselves."""
    params, bits = recount(rep)
    if num_params(rep) != params:
        broken("num_params counts what is stored", w, num_params(rep), params)
    if storage_bits(rep) != bits:
        broken("storage_bits counts what is stored", w, storage_bits(rep), bits)


def recount(rep: Rep) -> tuple[int, int]:
    """Parameters and bits of a representation, by packing its streams for real."""
    match rep:
        case LowRank(factors, _):
            counts = [recount(f) for f in factors]
            return sum(p for p, _ in counts), sum(b for _, b in counts)
        case Sparse(shape, indices, values):
            params, bits = recount(values)
            return params, bits + _places(shape, indices)
        case Quantized(codes=codes):
            packed = 0
            entries = codes
            if isinstance(codes, Sparse):
                packed, entries = _places(codes.shape, codes.indices), decode(codes.values)
            assert isinstance(entries, np.ndarray)
            packed += _packed(entries.size, rep.num_bits)
            if any(z != 0 for z in rep.zero_point.ravel().tolist()):
                lowest = -(2 ** (rep.num_bits - 1)) if rep.signed else 0
                inside = all(
                    lowest <= z < lowest + 2**rep.num_bits for z in rep.zero_point.ravel().tolist()
                )
                packed += _packed(rep.zero_point.size, rep.num_bits if inside else 32)
            return entries.size, packed + 8 * len(rep.scale.tobytes())
        case Clustered(codes, codebook):
            k = decode(codebook).size
            width = len(format(k - 1, "b")) if k > 1 else 0
            return codes.size, _packed(codes.size, width) + recount(codebook)[1]
    assert isinstance(rep, np.ndarray)
    return rep.size, 8 * len(rep.tobytes())


def _packed(count: int, width: int) -> int:
    """The bits of `count` codes of `width` bits, packed for real."""
    return 8 * np.packbits(np.zeros(count * width, bool)).nbytes


def _places(shape: tuple[int, ...], indices: Array) -> int:
    n = math.prod(shape)
    width = len(format(n - 1, "b")) if n > 1 else 0
    return min(_packed(n, 1), _packed(indices.size, width))


def refuses_what_is_not_finite(compressor: Callable[[Array], Compressed], w: Array) -> None:
    """NaN and infinite entries are refused, wherever they stand."""
    for place in {0, w.size // 2, w.size - 1} if w.size else ():
        for bad in (np.nan, np.inf, -np.inf):
            argument = w.copy()
            argument.reshape(-1)[place] = bad
            try:
                result = compressor(argument)
            except CompressionError:
                continue
            except Exception as error:
                broken(f"{bad} is refused with a CompressionError", argument, repr(error), "that")
            broken(f"{bad} is refused with a CompressionError", argument, repr(result), "that")


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal bit for bit: arrays, and whatever holds them."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if dataclasses.is_dataclass(a) and not isinstance(a, type):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float):
        return bool(a.hex() == b.hex())
    if callable(a):
        return True  # a pullback, an optimizer: what it computes is checked by calling it
    return bool(a == b) or (a != a and b != b)


def parts(rep: Rep) -> list[Array]:
    """All arrays that a representation holds."""
    match rep:
        case LowRank(factors, _):
            return [part for f in factors for part in parts(f)]
        case Sparse(_, indices, values):
            return [indices, *parts(values)]
        case Quantized(codes=codes):
            return [*parts(codes), rep.scale, rep.zero_point]
        case Clustered(codes, codebook):
            return [codes, *parts(codebook)]
    assert isinstance(rep, np.ndarray)
    return [rep]
