"""Representations in a file: the kind, then the numbers and arrays, and parts inside parts.

`code_rep` codes any representation. It is given the part of the shape that is known already (a
dense layer after another has as many inputs as that has outputs), and codes only the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import chain, repeat
from typing import Any, TypeAlias

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
from minicompress.storage.sections import DTYPES, Reader, Section
from minicompress.subscripts import check_letters

# A shape in which None stands for a size that is not known yet.
Template: TypeAlias = tuple[int | None, ...]

SUBSCRIPTS = ("", "ir,ro->io", "hwir,ro->hwio", "hir,rwo->hwio", "ia,hwab,bo->hwio")
INT64, UINT8 = np.dtype(np.int64), np.dtype(np.uint8)
INDEX_BYTES = 8
# The deepest nesting of representations, and the longest subscripts that are not in the list above.
DEEPEST, LONGEST_SUBSCRIPTS = 16, 256
# The forms of a sparse array: gaps between its indices; a bitmap of them; or, if all its values are
# integers other than zero, the full array.
GAPS, BITMAP, FULL = 0, 1, 2
# Bitmap and full array are tried up to this size, and the bitmap also if an array is dense enough.
BITMAP_ENTRIES = 1 << 20

# A representation's kind in the file is its index here. A reader passes these as the values to
# write, which are ignored.
NOTHING = freeze(np.zeros(0, np.int64))
STAND_INS: tuple[Rep, ...] = (
    NOTHING,
    Quantized(NOTHING, np.array(1.0), np.array(0), 8, True, None, None, np.dtype("f8")),
    Sparse((0,), NOTHING, NOTHING),
    Clustered(NOTHING, np.zeros(0)),
    LowRank((np.zeros((0, 0)), np.zeros((0, 0))), "ir,ro->io"),
)


def code_rep(
    section: Section, shape: Template, dtype: DType | None, rep: Rep, depth: int = 0
) -> Rep:
    """Code a representation, or a plain array.

    Parameters
    ----------
    section : Writer or Reader
    shape : tuple of int or None
        One entry for each axis; None for a size that is not known.
    dtype : numpy.dtype or None
        None if it is not known.
    rep : Rep
        Any, for a Reader.
    depth : int
        The number of representations around it.

    Returns
    -------
    Rep
    """
    if depth > DEEPEST:
        raise CompressionError(f"representations must not nest deeper than {DEEPEST}")
    section.part()
    kind = next(i for i, stand_in in enumerate(STAND_INS) if isinstance(rep, type(stand_in)))
    kind = section.choice("kind", kind, len(STAND_INS))
    if isinstance(section, Reader):
        rep = STAND_INS[kind]
    if dtype is None:
        dtype = DTYPES[section.choice("dtype", DTYPES.index(dtype_of(rep)), len(DTYPES))]
    if isinstance(rep, LowRank):
        return _code_low_rank(section, shape, dtype, rep, depth)
    actual = (0,) * len(shape) if isinstance(section, Reader) else shape_of(rep)
    sizes = tuple(
        section.number("size", n) if size is None else size
        for n, size in zip(actual, shape, strict=True)
    )
    section.claim(math.prod(max(n, 1) for n in sizes), dtype.itemsize)
    match rep:
        case Quantized():
            return _code_quantized(section, sizes, dtype, rep, depth)
        case Sparse():
            return _code_sparse(section, sizes, dtype, rep, depth)
        case Clustered():
            count = section.number("codebook", shape_of(rep.codebook)[0])
            narrow = np.uint8 if count <= 256 else np.uint16 if count <= 65536 else np.int64
            codes = section.integers(sizes, np.dtype(narrow), rep.codes)
            return Clustered(codes, code_rep(section, (count,), dtype, rep.codebook, depth + 1))
    return (section.floats if dtype.kind == "f" else section.integers)(sizes, dtype, rep)


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
    codes: Any = code_rep(section, shape, usual if known else None, rep.codes, depth + 1)
    scale = section.floats(qparam_shape(shape, axis, block_size), kind, rep.scale)
    zero_point = np.zeros(scale.shape, np.int64)
    if section.flag("zero point", bool(rep.zero_point.any())):
        zero_point = section.integers(scale.shape, INT64, rep.zero_point)
    return Quantized(codes, scale, zero_point, num_bits, signed, axis, block_size, dtype)


def _code_sparse(
    section: Section, shape: tuple[int, ...], dtype: DType, rep: Sparse, depth: int
) -> Sparse:
    """Code it in the shortest form. With gaps and bitmap, the values follow the indices."""

    def gaps(section: Section) -> Array:
        count = section.number("count", rep.indices.size)
        steps = section.integers((count,), INT64, np.diff(rep.indices, prepend=-1) - 1)
        return freeze(np.cumsum(steps + 1) - 1)

    def bitmap(section: Section) -> Array:
        mask = np.zeros(math.prod(rep.shape), np.uint8)
        mask[rep.indices] = 1
        mask = section.integers(shape, UINT8, mask.reshape(rep.shape))
        if mask.max(initial=0) > 1:
            raise FileFormatError("a bitmap must hold 0 and 1")
        # For the indices, and for their differences when they are checked.
        section.claim(int(np.count_nonzero(mask)), 2 * INDEX_BYTES)
        return freeze(np.flatnonzero(mask))

    def full(section: Section) -> Sparse:
        if dtype.kind == "f":
            raise FileFormatError("floats are not coded as integers")
        entries = section.integers(shape, dtype, decode(rep)).ravel()
        indices = freeze(np.flatnonzero(entries))
        return Sparse(shape, indices, freeze(entries[indices]))

    def in_form(section: Section, forms: dict[int, Callable[[Section], Array | Sparse]]) -> Sparse:
        found = section.one_of("form", forms)
        if isinstance(found, Sparse):
            return found
        return Sparse(shape, found, code_rep(section, found.shape, dtype, rep.values, depth + 1))

    if isinstance(section, Reader):
        return in_form(section, {GAPS: gaps, BITMAP: bitmap, FULL: full})
    size = math.prod(shape)
    few = size <= max(BITMAP_ENTRIES, 64 * rep.indices.size)
    options = [partial(in_form, forms={GAPS: gaps, BITMAP: bitmap} if few else {GAPS: gaps})]
    integers = isinstance(rep.values, np.ndarray) and dtype.kind != "f" and rep.values.all()
    if integers and size <= BITMAP_ENTRIES:
        options.append(partial(in_form, forms={FULL: full}))
    return section.smallest(options)


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
    factors: list[Rep] = []
    for term, factor in zip(left.split(","), chain(rep.factors, repeat(NOTHING))):
        template = tuple(sizes.get(letter) for letter in term)
        factors.append(code_rep(section, template, dtype, factor, depth + 1))
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
    letters = text.ljust(length)[:length]
    return "".join(chr(section.choice("letter", ord(letter), 0x110000)) for letter in letters)
