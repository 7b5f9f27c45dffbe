"""What stands for a compressed array: four small immutable values, and the certificate.

A representation ("rep") is stored, shipped and run in place of its array; `decode` gives the array
back. Reps nest, and a hybrid method is nothing but that: a `Sparse` whose values are `Clustered` is
Deep Compression, a `LowRank` whose factors are `Quantized` is low rank with int8. A plain array
is a rep too, the one that nothing was done to.

Sizes here are exact counts of what the parts themselves take, each stream of codes padded to a
whole byte. What a file takes is the length of the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from minicompress.arrays import (
    FLOATS,
    Array,
    DType,
    Value,
    as_int,
    finite_array,
    flag,
    freeze,
    frozen,
    integer_array,
    normal_axis,
)
from minicompress.errors import CompressionError
from minicompress.integers import check_scale_dtype, code_range, dequantize_linear, qparam_shape
from minicompress.subscripts import check_subscripts, output_shape, product


class Certificate(NamedTuple):
    """How far a decoded array can be from its original.

    Parameters
    ----------
    norm : "fro" | "spectral" | "max"
        Root of the sum of squares; largest singular value of the array as a matrix with its last
        axis as columns; largest magnitude.
    bound : float
        What the law of the method gives, rounded upward: the true error is never above it.
    measured : float
        The error itself, computed in float64 and rounded to nearest.
    """

    norm: str
    bound: float
    measured: float


class Compressed(NamedTuple):
    """What every compressor returns: the representation and its certificate, always both."""

    rep: Rep
    cert: Certificate


def checked(result: Any, who: str) -> Compressed:
    """What somebody's compressor returned, if it is what a compressor returns."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Certificate)):
        raise CompressionError(f"{who} must return (rep, Certificate), not {result!r:.80}")
    return Compressed(*result)


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Value):
    """A product of small factors; decode is ``einsum(subscripts, *factors)``.

    Parameters
    ----------
    factors : tuple of two or more arrays or reps, of one dtype
    subscripts : str
        With every letter of a factor either in the output or in exactly one other factor. The
        library's own: dense ``"ir,ro->io"``, channel SVD ``"hwir,ro->hwio"``, spatial SVD
        ``"hir,rwo->hwio"``, Tucker-2 ``"ia,hwab,bo->hwio"``.
    """

    factors: tuple[Rep, ...]
    subscripts: str

    def __post_init__(self) -> None:
        factors = tuple(_part(f, f"factors[{i}]") for i, f in enumerate(self.factors))
        check_subscripts(self.subscripts, [shape_of(f) for f in factors])
        dtypes = {dtype_of(f) for f in factors}
        if len(dtypes) != 1:
            raise CompressionError(f"factors must have one dtype, not {sorted(map(str, dtypes))}")
        object.__setattr__(self, "factors", factors)


@dataclass(frozen=True, eq=False, repr=False)
class Sparse(Value):
    """An array that is +0.0 except at some places.

    Parameters
    ----------
    shape : tuple of int
    indices : (n,) integer ndarray
        Places in C order, strictly increasing.
    values : (n,) ndarray or rep
        What stands there. Integers where a `Sparse` serves as the codes of a `Quantized`.
    """

    shape: tuple[int, ...]
    indices: Array
    values: Rep

    def __post_init__(self) -> None:
        shape = tuple(as_int(n, f"shape[{i}]", 0) for i, n in enumerate(self.shape))
        indices = integer_array(self.indices, "indices").astype(np.int64, copy=False)
        values = _part(self.values, "values", integers=True)
        if indices.ndim != 1 or shape_of(values) != indices.shape:
            raise CompressionError(
                f"values must be 1-D with one entry per index, not of shape {shape_of(values)} "
                f"for indices of shape {indices.shape}"
            )
        if indices.size:
            # The range first: differences of what lies beyond it could overflow.
            least, largest = int(indices.min()), int(indices.max())
            if least < 0 or largest >= math.prod(shape):
                raise CompressionError(
                    f"indices must lie in [0, {math.prod(shape)}) for shape {shape}, "
                    f"not reach from {least} to {largest}"
                )
            if (np.diff(indices) <= 0).any():
                raise CompressionError("indices must be strictly increasing")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "indices", frozen(indices))
        object.__setattr__(self, "values", values)


@dataclass(frozen=True, eq=False, repr=False)
class Quantized(Value):
    """Integer codes; decode is ``(codes - zero_point) * scale``, rounded once, to `dtype`.

    Where `dtype` is float16 and the scale float32, it is rounded to float32 and then to float16.

    Parameters
    ----------
    codes : integer ndarray, or Sparse of integers
    scale : float ndarray of `dtype`, positive; for float16 of float32 or of float16
        Scalar shape ``()``; ``(channels,)`` with `axis`; with `block_size` the shape of `codes`
        but for ``ceil(n / block_size)`` along `axis`: ONNX's three granularities.
    zero_point : integer ndarray of the shape of `scale`
        The code of 0.0.
    num_bits : int from 2 to 16
        Bits a code takes when stored.
    signed : bool
        Codes from ``-2**(num_bits - 1)`` on, or from 0 on.
    axis : int or None
        The axis whose every index has a scale of its own, or along which the blocks lie.
    block_size : int or None
        Entries that share a scale along `axis`; the last block may be ragged.
    dtype : numpy.dtype
        Of the decoded array.
    """

    codes: Array | Sparse
    scale: Array
    zero_point: Array
    num_bits: int
    signed: bool
    axis: int | None
    block_size: int | None
    dtype: DType

    def __post_init__(self) -> None:
        num_bits, signed = as_int(self.num_bits, "num_bits", 2, 16), flag(self.signed, "signed")
        low, high = code_range(num_bits, signed)
        codes = self.codes
        if isinstance(codes, Sparse):
            if dtype_of(codes).kind not in "iu":
                raise CompressionError(f"codes must be integers, not {dtype_of(codes)}")
            entries = decode(codes.values)
        else:
            codes = entries = frozen(integer_array(codes, "codes"))
        if entries.size and not (low <= int(entries.min()) and int(entries.max()) <= high):
            raise CompressionError(
                f"codes of {num_bits} bits must lie in [{low}, {high}], "
                f"not reach from {entries.min()} to {entries.max()}"
            )
        dtype = np.dtype(self.dtype)
        scale = finite_array(self.scale, "scale")
        check_scale_dtype(scale, dtype)
        if not (scale > 0).all():
            raise CompressionError("scale must be positive")
        zero_point = integer_array(self.zero_point, "zero_point").astype(np.int64, copy=False)
        if zero_point.shape != scale.shape:
            raise CompressionError(
                f"zero_point must have the shape {scale.shape} of scale, not {zero_point.shape}"
            )
        shape = shape_of(codes)
        axis = None if self.axis is None else normal_axis(self.axis, "axis", len(shape))
        wanted = qparam_shape(shape, axis, self.block_size)
        if scale.shape != wanted:
            raise CompressionError(
                f"scale must have shape {wanted} for codes of shape {shape}, axis={axis} and "
                f"block_size={self.block_size}, not {scale.shape}"
            )
        for name, value in (
            ("codes", codes),
            ("scale", frozen(scale)),
            ("zero_point", frozen(zero_point)),
            ("num_bits", num_bits),
            ("signed", signed),
            ("axis", axis),
            ("dtype", dtype),
        ):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False, repr=False)
class Clustered(Value):
    """A codebook and, for every entry, which of its values stands there.

    Parameters
    ----------
    codes : ndarray of unsigned integers
        Indices into the codebook.
    codebook : (k,) ndarray or rep
    """

    codes: Array
    codebook: Rep

    def __post_init__(self) -> None:
        codes, codebook = integer_array(self.codes, "codes"), _part(self.codebook, "codebook")
        if len(shape_of(codebook)) != 1:
            raise CompressionError(f"codebook must be 1-D, not of shape {shape_of(codebook)}")
        k = shape_of(codebook)[0]
        if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= k):
            raise CompressionError(
                f"codes must lie in [0, {k}) for a codebook of {k}, "
                f"not reach from {codes.min()} to {codes.max()}"
            )
        narrow = np.dtype(np.uint8) if k <= 256 else np.dtype(np.uint16 if k <= 65536 else np.int64)
        object.__setattr__(self, "codes", frozen(codes.astype(narrow, copy=False)))
        object.__setattr__(self, "codebook", codebook)


Rep: TypeAlias = Array | LowRank | Sparse | Quantized | Clustered


def shape_of(rep: Rep) -> tuple[int, ...]:
    """The shape of the decoded array."""
    match rep:
        case LowRank(factors, subscripts):
            return output_shape(subscripts, [shape_of(f) for f in factors])
        case Sparse(shape, _, _):
            return shape
        case Quantized() | Clustered():
            return shape_of(rep.codes)
    return _array(rep).shape


def dtype_of(rep: Rep) -> DType:
    """The dtype of the decoded array."""
    match rep:
        case LowRank(factors, _):
            return dtype_of(factors[0])
        case Sparse(_, _, values):
            return dtype_of(values)
        case Quantized():
            return rep.dtype
        case Clustered(_, codebook):
            return dtype_of(codebook)
    return _array(rep).dtype


def decode(rep: Rep) -> Array:
    """The array that a representation stands for, read-only.

    Products of `LowRank` and of `Quantized` are formed in float64 and rounded once, and what would
    round to infinity becomes the largest finite value of the dtype. The same array every time.

    Raises
    ------
    CompressionError
        `rep` is no representation.

    Examples
    --------
    >>> decode(Sparse((2, 2), np.array([1, 2]), np.array([5.0, 7.0])))
    array([[0., 5.],
           [7., 0.]])
    """
    match rep:
        case LowRank(factors, subscripts):
            return freeze(product([decode(f) for f in factors], subscripts))
        case Sparse(shape, indices, values):
            array = np.zeros(math.prod(shape), dtype_of(rep))
            array[indices] = decode(values)
            return freeze(array.reshape(shape))
        case Quantized(codes, scale, zero_point):
            given: Any = {"axis": rep.axis, "block_size": rep.block_size, "dtype": rep.dtype}
            return freeze(dequantize_linear(decode(codes), scale, zero_point, **given))
        case Clustered(codes, codebook):
            return freeze(decode(codebook)[codes])
    return _array(rep)


def num_params(rep: Rep) -> int:
    """The number of weights that are stored; scales, indices and codebooks are overhead.

    `LowRank`: the sum over its factors; `Sparse`: those of its values; otherwise one per entry.

    Examples
    --------
    >>> num_params(LowRank((np.ones((30, 2)), np.ones((2, 40))), "ir,ro->io"))
    140
    """
    match rep:
        case LowRank(factors, _):
            return sum(num_params(f) for f in factors)
        case Sparse(_, _, values):
            return num_params(values)
        case Quantized(codes=codes) | Clustered(codes=codes):
            return num_params(codes)
    return _array(rep).size


def storage_bits(rep: Rep) -> int:
    """Bits that the parts take when each is stored by itself, every stream padded to a whole byte.

    Arrays: their bytes. `Sparse`: its values and the cheaper of a bitmap (one bit per entry) and a
    list of indices of ``ceil(log2(n))`` bits each. `Quantized`: codes of `num_bits` bits, the
    scales, and zero points of `num_bits` bits unless all are 0 (32 where one lies outside the
    codes).
    `Clustered`: codes of ``ceil(log2(k))`` bits and the codebook.

    Examples
    --------
    >>> storage_bits(np.ones((3, 5), np.float32))
    480
    >>> storage_bits(Sparse((3, 5), np.array([7]), np.ones(1, np.float32)))  # 4 bits of index
    40
    """
    match rep:
        case LowRank(factors, _):
            return sum(storage_bits(f) for f in factors)
        case Sparse(_, _, values):
            return _index_bits(rep) + storage_bits(values)
        case Quantized(codes=codes, num_bits=num_bits):
            stored = _index_bits(codes) if isinstance(codes, Sparse) else 0
            low, high = code_range(num_bits, rep.signed)
            zeros = rep.zero_point
            inside = bool(((zeros >= low) & (zeros <= high)).all())
            zero_bits = (num_bits if inside else 32) if zeros.any() else 0
            return (
                stored
                + whole_bytes(num_params(codes) * num_bits)
                + whole_bytes(rep.zero_point.size * zero_bits)
                + 8 * rep.scale.nbytes
            )
        case Clustered(codes, codebook):
            width = bits_for(shape_of(codebook)[0])
            return whole_bytes(codes.size * width) + storage_bits(codebook)
    return 8 * _array(rep).nbytes


def bits_for(count: int) -> int:
    """Bits that tell `count` things apart: ``ceil(log2(count))``, and 0 for one thing or none."""
    return max(count - 1, 0).bit_length()


def whole_bytes(bits: int) -> int:
    """The bits that `bits` take once padded to a whole byte."""
    return -(-bits // 8) * 8


def _array(rep: Rep) -> Array:
    if not isinstance(rep, np.ndarray):
        raise CompressionError(
            f"rep must be an array or a representation, not {type(rep).__name__}"
        )
    return rep


def _part(value: Rep, name: str, *, integers: bool = False) -> Rep:
    """A part of a representation: a nested one as it is, an array checked and frozen."""
    part: Rep = value
    if not isinstance(value, LowRank | Sparse | Quantized | Clustered):
        array = np.asarray(value)
        whole = array.dtype.kind in "iu"
        part = frozen(integer_array(array, name) if whole else finite_array(array, name))
    kind = dtype_of(part)
    if not (kind in FLOATS or (integers and kind.kind in "iu")):
        raise CompressionError(f"{name} must be of a float dtype, not {kind}")
    return part


def _index_bits(rep: Sparse) -> int:
    """Where the values stand: a bit for every entry, or each one's index, whichever is less."""
    n = math.prod(rep.shape)
    return min(whole_bytes(n), whole_bytes(rep.indices.size * bits_for(n)))
