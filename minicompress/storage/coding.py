"""Representations in a file: the kind, then the numbers and arrays, and parts inside parts.

`code_rep` codes any representation. It is given the part of the shape that is known already (a
dense layer after another has as many inputs as that has outputs), and codes only the rest.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TypeAlias

import numpy as np

from minicompress.arrays import Array, DType, freeze, normal_axis
from minicompress.errors import CompressionError, FileFormatError
from minicompress.integers import code_dtype, qparam_shape, scale_dtypes
from minicompress.representation import (
    Clustered,
    LowRank,
    Quantized,
    Rep,
    Sparse,
    decode,
    dtype_of,
    shape_of,
)
from minicompress.storage.sections import DTYPES, Reader, Section, Writer
from minicompress.subscripts import check_letters

# A shape in which None stands for a size that is not known yet.
Template: TypeAlias = tuple[int | None, ...]

KINDS = (np.ndarray, Quantized, Sparse, Clustered, LowRank)
SUBSCRIPTS = ("", "ir,ro->io", "hwir,ro->hwio", "hir,rwo->hwio", "ia,hwab,bo->hwio")
INDEX_BYTES = 8
# The deepest nesting of representations, and the longest subscripts that are not in the list above.
DEEPEST, LONGEST_SUBSCRIPTS = 16, 256
# The forms of a sparse array: gaps between its indices; a bitmap of them; or, if all its values are
# integers other than zero, the full array.
GAPS, BITMAP, FULL = 0, 1, 2
# Bitmap and full array are tried up to this size, and the bitmap also if an array is dense enough.
BITMAP_ENTRIES = 1 << 20

# A reader passes these as the values to write, which are ignored.
NOTHING = freeze(np.zeros(0, np.int64))
STAND_INS: dict[type, Rep] = {
    np.ndarray: NOTHING,
    Quantized: Quantized(NOTHING, np.array(1.0), np.array(0), 8, True, None, None, np.dtype("f8")),
    Sparse: Sparse((0,), NOTHING, NOTHING),
    Clustered: Clustered(NOTHING, np.zeros(0)),
    LowRank: LowRank((np.zeros((0, 0)), np.zeros((0, 0))), "ir,ro->io"),
}


def code_rep(
    section: Section, shape: Template, dtype: DType | None, rep: Rep | None, depth: int = 0
) -> Rep:
    """Code a representation, or a plain array.

    Parameters
    ----------
    section : Writer or Reader
    shape : tuple of int or None
        One entry for each axis; None for a size that is not known.
    dtype : numpy.dtype or None
        None if it is not known.
    rep : Rep or None
        None for a Reader.
    depth : int
        The number of representations around it.

    Returns
    -------
    Rep
    """
    if depth > DEEPEST:
        error = FileFormatError if rep is None else CompressionError
        raise error(f"representations must not nest deeper than {DEEPEST}")
    section.part()
    kind = 0 if rep is None else next(i for i, k in enumerate(KINDS) if isinstance(rep, k))
    kind = section.choice("kind", kind, len(KINDS))
    if dtype is None:
        index = 0 if rep is None else DTYPES.index(dtype_of(rep))
        dtype = DTYPES[section.choice("dtype", index, len(DTYPES))]
    if rep is None:
        rep, actual = STAND_INS[KINDS[kind]], (0,) * len(shape)
    else:
        actual = shape_of(rep)
    if isinstance(rep, LowRank):
        return _code_low_rank(section, shape, dtype, rep, depth)
    sizes = _code_shape(section, shape, actual)
    section.claim(math.prod(max(n, 1) for n in sizes), dtype.itemsize)
    match rep:
        case Quantized():
            return _code_quantized(section, sizes, dtype, rep, depth)
        case Sparse():
            return _code_sparse(section, sizes, dtype, rep, depth)
        case Clustered():
            count = section.number("codebook", shape_of(rep.codebook)[0])
            codes = section.integers(sizes, _narrowest(count), rep.codes)
            return Clustered(codes, _code_part(section, (count,), dtype, rep.codebook, depth))
    return (section.floats if dtype.kind == "f" else section.integers)(sizes, dtype, rep)


def _code_shape(section: Section, known: Template, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Code the sizes that are not known, and return the whole shape."""
    return tuple(
        section.number("size", n) if size is None else size
        for n, size in zip(shape, known, strict=True)
    )


def _code_part(
    section: Section, shape: Template, dtype: DType | None, part: Rep, depth: int
) -> Rep:
    """Code a part of another representation. A reader's stand-in has no such part."""
    return code_rep(section, shape, dtype, None if isinstance(section, Reader) else part, depth + 1)


def _code_quantized(
    section: Section, shape: tuple[int, ...], dtype: DType, rep: Quantized, depth: int
) -> Quantized:
    # For float16 with float32 scales this is 18 to 32: 16 more than the number of bits.
    num_bits = section.number("bits", rep.num_bits + 16 * (rep.scale.dtype != rep.dtype))
    kind = dtype
    if num_bits > 17 and dtype == np.float16:
        num_bits, kind = num_bits - 16, scale_dtypes(dtype)[0]
    signed = section.flag("signed", rep.signed)
    axis: int | None = section.number("axis", 0 if rep.axis is None else rep.axis + 1) - 1
    axis = None if axis == -1 else normal_axis(axis, "axis", len(shape))
    block_size: int | None = None
    if axis is not None:
        block_size = section.number("block", int(rep.block_size or 0)) or None
    usual = code_dtype(min(num_bits, 16), signed)
    known = section.flag("usual codes", dtype_of(rep.codes) == usual)
    codes = _code_part(section, shape, usual if known else None, rep.codes, depth)
    scale = section.floats(qparam_shape(shape, axis, block_size), kind, rep.scale)
    zero_point = np.zeros(scale.shape, np.int64)
    if section.flag("zero point", bool(rep.zero_point.any())):
        zero_point = section.integers(scale.shape, np.dtype(np.int64), rep.zero_point)
    if not isinstance(codes, np.ndarray | Sparse):
        raise FileFormatError(f"codes must be integers, not {type(codes).__name__}")
    return Quantized(codes, scale, zero_point, num_bits, signed, axis, block_size, dtype)


def _code_sparse(
    section: Section, shape: tuple[int, ...], dtype: DType, rep: Sparse, depth: int
) -> Sparse:
    if isinstance(section, Writer):
        _write_sparse(section, dtype, rep, depth)
        return rep
    form = section.choice("form", GAPS, 3)
    if form == FULL:
        return _code_full(section, shape, dtype, rep)
    indices = _code_places(section, shape, rep, form)
    return Sparse(shape, indices, _code_part(section, indices.shape, dtype, rep.values, depth))


def _write_sparse(section: Writer, dtype: DType, rep: Sparse, depth: int) -> None:
    """Choose the form. Gaps and bitmap have the same values, so these are written only once."""

    def places_as(form: int, writer: Writer) -> None:
        writer.number("form", form)
        _code_places(writer, rep.shape, rep, form)

    def apart(writer: Writer) -> None:
        few = math.prod(rep.shape) <= max(BITMAP_ENTRIES, 64 * rep.indices.size)
        forms = (GAPS, BITMAP) if few else (GAPS,)
        writer.smallest([partial(places_as, form) for form in forms])
        _code_part(writer, rep.indices.shape, dtype, rep.values, depth)

    def full(writer: Writer) -> None:
        writer.number("form", FULL)
        _code_full(writer, rep.shape, dtype, rep)

    integers = isinstance(rep.values, np.ndarray) and dtype.kind != "f" and rep.values.all()
    if integers and math.prod(rep.shape) <= BITMAP_ENTRIES:
        section.smallest([apart, full])
    else:
        apart(section)


def _code_places(section: Section, shape: tuple[int, ...], rep: Sparse, form: int) -> Array:
    """Code the indices of a sparse array."""
    if form == BITMAP:
        mask = np.zeros(math.prod(rep.shape), np.uint8)
        mask[rep.indices] = 1
        mask = section.integers(shape, np.dtype(np.uint8), mask.reshape(rep.shape))
        if mask.max(initial=0) > 1:
            raise FileFormatError("a bitmap must hold 0 and 1")
        # For the indices, and for their differences when they are checked.
        section.claim(int(np.count_nonzero(mask)), 2 * INDEX_BYTES)
        return freeze(np.flatnonzero(mask))
    count = section.number("count", rep.indices.size)
    gaps = np.diff(rep.indices, prepend=-1) - 1
    gaps = section.integers((count,), np.dtype(np.int64), gaps)
    return freeze(np.cumsum(gaps + 1) - 1)


def _code_full(section: Section, shape: tuple[int, ...], dtype: DType, rep: Sparse) -> Sparse:
    """Code a sparse array of integers as the full array."""
    if dtype.kind == "f":
        raise FileFormatError("floats are not coded as integers")
    full = section.integers(shape, dtype, decode(rep)).ravel()
    indices = freeze(np.flatnonzero(full))
    return Sparse(shape, indices, freeze(full[indices]))


def _code_low_rank(
    section: Section, shape: Template, dtype: DType, rep: LowRank, depth: int
) -> LowRank:
    known = SUBSCRIPTS.index(rep.subscripts) if rep.subscripts in SUBSCRIPTS else 0
    subscripts = SUBSCRIPTS[section.choice("subscripts", known, len(SUBSCRIPTS))]
    subscripts = subscripts or _code_text(section, rep.subscripts)
    check_letters(subscripts)
    left, _, output = subscripts.partition("->")
    if len(output) != len(shape):
        raise FileFormatError(f"{subscripts!r} does not give an array of {len(shape)} dimensions")
    sizes = dict(zip(output, shape))  # of the letters, as far as they are known
    factors = []
    for i, term in enumerate(left.split(",")):
        factor = rep.factors[i] if isinstance(section, Writer) else NOTHING
        template = tuple(sizes.get(letter) for letter in term)
        factors.append(_code_part(section, template, dtype, factor, depth))
        sizes.update(zip(term, shape_of(factors[-1])))
    product = LowRank(tuple(factors), subscripts)
    section.claim(math.prod(shape_of(product)), dtype.itemsize)
    return product


def _code_text(section: Section, text: str) -> str:
    if len(text) > LONGEST_SUBSCRIPTS:
        raise CompressionError(
            f"subscripts must have at most {LONGEST_SUBSCRIPTS} characters, not {len(text)}"
        )
    length = section.choice("text", len(text), LONGEST_SUBSCRIPTS + 1)
    letters = [ord(letter) for letter in text.ljust(length)]
    return "".join(chr(section.choice("letter", letters[i], 0x110000)) for i in range(length))


def _narrowest(size: int) -> DType:
    """The dtype of the codes of `Clustered` with a codebook of this size."""
    return np.dtype(np.uint8 if size <= 256 else np.uint16 if size <= 65536 else np.int64)
