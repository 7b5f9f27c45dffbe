"""Four small immutable values that stand for a compressed array, and the certificate.

A representation ("rep") is stored, shipped and run in place of its array; `decode` gives the array
back. Reps nest, and this is all that a hybrid method needs: a `Sparse` whose values are `Clustered`
is Deep Compression, and a `LowRank` whose factors are `Quantized` is low rank with int8. A plain
array is a rep too: nothing was done to it.

Sizes here count the parts exactly, each stream of codes padded to a whole byte. The size of a file
is the length of the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from minicompress import arrays
from minicompress.arrays import FLOATS, Array, DType, Value
from minicompress.errors import CompressionError
from minicompress.integers import checked_params, code_range, decoded_levels
from minicompress.norms import error_norm
from minicompress.subscripts import check_subscripts, output_shape, product


class Certificate(NamedTuple):
    """How far a decoded array can be from its original.

    Parameters
    ----------
    norm : "fro" | "spectral" | "max"
        Root of the sum of squares; largest singular value of the array as a matrix with its last
        axis as columns; largest magnitude.
    bound : float
        The error bound that the theory of the method gives, rounded upward. The true error is never
        above it.
    measured : float
        The error itself, computed in float64 and rounded to nearest.
    """

    norm: str
    bound: float
    measured: float


class Compressed(NamedTuple):
    """The result of every compressor: a representation and its certificate."""

    rep: Rep
    cert: Certificate


def checked(result: Any, who: str) -> Compressed:
    """The result of a user's compressor, refused if it is not (rep, Certificate)."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Certificate)):
        raise CompressionError(f"{who} must return (rep, Certificate), not {result!r:.80}")
    return Compressed(*result)


def certified(weight: Array, rep: Rep, norm: str, bound: float) -> Compressed:
    """A representation with its bound and with its error, which is measured here."""
    return Compressed(rep, Certificate(norm, bound, error_norm(weight, decode(rep), norm)))


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Value):
    """A product of small factors. Decoded, it is ``einsum(subscripts, *factors)``.

    Parameters
    ----------
    factors : tuple of two or more arrays or reps, of one dtype
    subscripts : str
        Every letter of a factor is either in the output or in exactly one other factor. The
        library uses these: dense ``"ir,ro->io"``, channel SVD ``"hwir,ro->hwio"``, spatial SVD
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
        self._set(factors=factors)


@dataclass(frozen=True, eq=False, repr=False)
class Sparse(Value):
    """An array that is +0.0 except at some indices.

    Parameters
    ----------
    shape : tuple of int
    indices : (n,) integer ndarray
        Indices of the flattened array in C order, strictly increasing.
    values : (n,) ndarray or rep
        The entries there. They are integers where a `Sparse` holds the codes of a `Quantized`.
    """

    shape: tuple[int, ...]
    indices: Array
    values: Rep

    def __post_init__(self) -> None:
        shape = tuple(arrays.as_int(n, f"shape[{i}]", 0) for i, n in enumerate(self.shape))
        indices = arrays.integer_array(self.indices, "indices").astype(np.int64, copy=False)
        values = _part(self.values, "values", integers=True)
        if indices.ndim != 1 or shape_of(values) != indices.shape:
            raise CompressionError(
                f"values must be 1-D with one entry per index, not of shape {shape_of(values)} "
                f"for indices of shape {indices.shape}"
            )
        arrays.check_range(indices, "indices", 0, math.prod(shape) - 1)
        if (indices[1:] <= indices[:-1]).any():
            raise CompressionError("indices must be strictly increasing")
        self._set(shape=shape, indices=arrays.frozen(indices), values=values)


@dataclass(frozen=True, eq=False, repr=False)
class Quantized(Value):
    """Integer codes. Decoded, they are ``(codes - zero_point) * scale``, rounded to `dtype`.

    Where `dtype` is float16 and the scale is float32, the product is rounded to float32 first.

    Parameters
    ----------
    codes : integer ndarray, or Sparse of integers
    scale : float ndarray of `dtype`, positive; for float16 of float32 or of float16
        Scalar shape ``()``; ``(channels,)`` with `axis`; with `block_size` the shape of `codes`
        but for ``ceil(n / block_size)`` along `axis`: ONNX's three granularities.
    zero_point : integer ndarray of the shape of `scale`
        The code of 0.0. It may lie outside the codes.
    num_bits : int from 2 to 16
        The bits of a stored code.
    signed : bool
        The lowest code is ``-2**(num_bits - 1)`` if signed, else 0.
    axis : int or None
        The axis whose every index has a scale of its own, or along which the blocks lie.
    block_size : int or None
        The number of entries along `axis` that share a scale; the last block may be shorter.
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
        num_bits = arrays.as_int(self.num_bits, "num_bits", 2, 16)
        signed = arrays.flag(self.signed, "signed")
        low, high = code_range(num_bits, signed)
        codes = self.codes
        if isinstance(codes, Sparse):
            if dtype_of(codes).kind not in "iu":
                raise CompressionError(f"codes must be integers, not {dtype_of(codes)}")
            entries = decode(codes.values)
        else:
            codes = entries = arrays.frozen(arrays.integer_array(codes, "codes"))
        arrays.check_range(entries, f"codes of {num_bits} bits", low, high)
        dtype = np.dtype(self.dtype)
        scale, zero_point, axis = checked_params(
            self.scale, self.zero_point, shape_of(codes), self.axis, self.block_size, dtype
        )
        self._set(
            codes=codes,
            scale=arrays.frozen(scale),
            zero_point=arrays.frozen(zero_point.astype(np.int64, copy=False)),
            num_bits=num_bits,
            signed=signed,
            axis=axis,
            dtype=dtype,
        )


@dataclass(frozen=True, eq=False, repr=False)
class Clustered(Value):
    """A codebook, and for every entry the index of its value in the codebook.

    Parameters
    ----------
    codes : ndarray of unsigned integers
        Indices into the codebook.
    codebook : (k,) ndarray or rep
    """

    codes: Array
    codebook: Rep

    def __post_init__(self) -> None:
        codes = arrays.integer_array(self.codes, "codes")
        codebook = _part(self.codebook, "codebook")
        if len(shape_of(codebook)) != 1:
            raise CompressionError(f"codebook must be 1-D, not of shape {shape_of(codebook)}")
        k = shape_of(codebook)[0]
        arrays.check_range(codes, "codes", 0, k - 1)
        narrow = np.dtype(np.uint8) if k <= 256 else np.dtype(np.uint16 if k <= 65536 else np.int64)
        self._set(codes=arrays.frozen(codes.astype(narrow, copy=False)), codebook=codebook)


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

    Products of `LowRank` and of `Quantized` are formed in float64 and rounded once. What would
    round to infinity becomes the largest finite value of the dtype.

    Parameters
    ----------
    rep : LowRank, Sparse, Quantized, Clustered, or ndarray

    Returns
    -------
    ndarray
        The same numbers every time. An array is returned as it is.

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
            return arrays.freeze(product([decode(f) for f in factors], subscripts))
        case Sparse(shape, indices, values):
            array = np.zeros(math.prod(shape), dtype_of(rep))
            array[indices] = decode(values)
            return arrays.freeze(array.reshape(shape))
        case Quantized(codes, scale, zero_point):
            parts = (decode(codes), scale, zero_point, rep.axis, rep.block_size, rep.dtype)
            return arrays.freeze(decoded_levels(*parts))
        case Clustered(codes, codebook):
            return arrays.freeze(decode(codebook)[codes])
    return _array(rep)


def num_params(rep: Rep) -> int:
    """The number of stored weights, without scales, indices and codebooks.

    `LowRank`: the sum over its factors. `Sparse`: that of its values. Otherwise one per entry.

    Raises
    ------
    CompressionError
        `rep` is no representation.

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
    """The bits of all parts, each stored by itself and padded to a whole byte.

    Arrays: their bytes. `LowRank`: its factors. `Sparse`: its values, and the smaller of a bitmap
    (one bit per entry) and a list of indices of ``ceil(log2(n))`` bits each. `Quantized`: codes of
    `num_bits` bits, the scales, and unless all are 0 the zero points, of `num_bits` bits each, or
    of 32 where one is outside the codes. `Clustered`: codes of ``ceil(log2(k))`` bits and the
    codebook.

    Raises
    ------
    CompressionError
        `rep` is no representation.

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
            zero_bits = zeros.size * (num_bits if inside else 32) if zeros.any() else 0
            stored += whole_bytes(num_params(codes) * num_bits) + whole_bytes(zero_bits)
            return stored + 8 * rep.scale.nbytes
        case Clustered(codes, codebook):
            width = bits_for(shape_of(codebook)[0])
            return whole_bytes(codes.size * width) + storage_bits(codebook)
    return 8 * _array(rep).nbytes


def bits_for(count: int) -> int:
    """Bits that tell `count` things apart: ``ceil(log2(count))``, and 0 for one or none."""
    return max(count - 1, 0).bit_length()


def whole_bytes(bits: int) -> int:
    """`bits` rounded up to a multiple of 8."""
    return arrays.ceil_div(bits, 8) * 8


def _array(rep: Rep) -> Array:
    if not isinstance(rep, np.ndarray):
        raise CompressionError(
            f"rep must be an array or a representation, not {type(rep).__name__}"
        )
    return rep


def _part(value: Rep, name: str, *, integers: bool = False) -> Rep:
    """A part of a representation: a nested one is kept, an array is checked and frozen."""
    part: Rep = value
    if not isinstance(value, LowRank | Sparse | Quantized | Clustered):
        array = np.asarray(value)
        check = arrays.integer_array if array.dtype.kind in "iu" else arrays.finite_array
        part = arrays.frozen(check(array, name))
    kind = dtype_of(part)
    if not (kind in FLOATS or (integers and kind.kind in "iu")):
        raise CompressionError(f"{name} must be of a float dtype, not {kind}")
    return part


def _index_bits(rep: Sparse) -> int:
    """The smaller of one bit for every entry and an index for every value."""
    n = math.prod(rep.shape)
    return min(whole_bytes(n), whole_bytes(rep.indices.size * bits_for(n)))
