"""Checking arguments and freezing arrays.

Every public function checks its arguments with these helpers, once. So a wrong argument is always
reported in the same way: its name, what was given, and what is needed. Every value of the library
keeps its arrays read-only, and `frozen` decides when that takes a copy.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minicompress.errors import CompressionError

Array: TypeAlias = NDArray[Any]
DType: TypeAlias = np.dtype[Any]
V = TypeVar("V", bound="Value")

FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def float_array(value: ArrayLike, name: str, *, ndim: int | None = None) -> Array:
    """The value as a float array of native byte order; not copied where it is one already.

    Raises
    ------
    CompressionError
        `value` is not of float16, float32 or float64, is masked, or has another number of
        dimensions than `ndim`. Integers are not converted: the caller says which float is meant.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise CompressionError(f"{name} must be a plain array, not a masked one: fill it first")
    array = _as_array(value, name)
    native = array.dtype.newbyteorder("=")
    if native not in FLOATS:
        raise CompressionError(
            f"{name} must be of dtype float16, float32 or float64, not {array.dtype}"
        )
    if ndim is not None and array.ndim != ndim:
        raise CompressionError(f"{name} must have {ndim} dimensions, not shape {array.shape}")
    return array.astype(native, copy=False)


def finite_array(value: ArrayLike, name: str, *, ndim: int | None = None) -> Array:
    """`float_array` with every entry finite: what the compressors accept."""
    array = float_array(value, name, ndim=ndim)
    if fault := not_finite(array):
        raise CompressionError(f"{name} must be finite, but {fault}")
    return array


def not_finite(array: Array) -> str:
    """Name the first entry that is NaN or infinite; "" if there is none.

    Examples
    --------
    >>> not_finite(np.array([[0.0, 1.0], [np.nan, np.inf]])), not_finite(np.zeros(3))
    ('entry (1, 0) is nan', '')
    """
    finite = np.isfinite(array)
    if finite.all():
        return ""
    index = tuple(map(int, np.unravel_index(finite.argmin(), array.shape)))
    return f"entry {index} is {array[index]}"


def integer_array(value: ArrayLike, name: str) -> Array:
    """The value as an array of integers. Bools and floats such as 2.0 are refused."""
    array = _as_array(value, name)
    if array.dtype.kind not in "iu":
        raise CompressionError(f"{name} must be of an integer dtype, not {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _as_array(value: ArrayLike, name: str) -> Array:
    try:
        return np.asarray(value)
    except ValueError as error:  # a ragged list
        raise CompressionError(f"{name} must be an array: {error}") from None


def check_range(values: Array, name: str, low: int, high: int) -> None:
    """Refuse integers outside [low, high]."""
    if values.size and not (low <= int(values.min()) and int(values.max()) <= high):
        raise CompressionError(
            f"{name} must lie in [{low}, {high}], not reach from {values.min()} to {values.max()}"
        )


def same_dtype(**arrays: Array | None) -> None:
    """Refuse operands of different dtypes: the caller says which dtype is meant."""
    dtypes = {name: array.dtype for name, array in arrays.items() if array is not None}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise CompressionError(f"all arrays must have the same dtype, but {listed}")


def as_int(value: Any, name: str, low: int, high: int | None = None) -> int:
    """An int in [low, high]. NumPy's integers are accepted; bools and floats are refused."""
    wanted = f"an int of at least {low}" if high is None else f"an int from {low} to {high}"
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or int(value) < low or (high is not None and int(value) > high):
        raise CompressionError(f"{name} must be {wanted}, not {value!r}")
    return int(value)


def as_float(value: Any, name: str, low: float, high: float = math.inf) -> float:
    """A finite float in [low, high]. Bools and strings are refused."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        number = float(value) if real else math.nan
    except OverflowError:
        number, value = math.inf, "an int beyond all floats"
    if not (math.isfinite(number) and low <= number <= high):
        raise CompressionError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")
    return number


def interval(value: Any, name: str) -> tuple[float, float]:
    """A pair of finite numbers, the lesser one first."""
    wanted = f"{name} must be a pair (lo, hi) with lo <= hi, not {value!r}"
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise CompressionError(wanted)
    low, high = (as_float(end, name, -math.inf) for end in value)
    if low > high:
        raise CompressionError(wanted)
    return low, high


def choice(value: Any, name: str, choices: Iterable[str]) -> str:
    """One of the named choices."""
    listed = list(choices)
    if not isinstance(value, str) or value not in listed:
        raise CompressionError(f"{name} must be one of {', '.join(listed)}, not {value!r}")
    return value


def flag(value: Any, name: str) -> bool:
    """A bool. Other values are refused, because 1 or "no" is most likely a mistake."""
    if not isinstance(value, bool | np.bool_):
        raise CompressionError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def exactly_one(**options: Any) -> str:
    """The name of the one option that was given, that is, the one that is not None."""
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        raise CompressionError(
            f"give exactly one of {', '.join(options)}; given: {', '.join(given) or 'none'}"
        )
    return given[0]


def normal_axis(axis: Any, name: str, ndim: int) -> int:
    """An axis in [-ndim, ndim), counted from the front: in [0, ndim)."""
    if ndim == 0:
        raise CompressionError(f"{name}={axis!r} was given for an array without axes")
    return as_int(axis, name, -ndim, ndim - 1) % ndim


def generator(rng: Any) -> np.random.Generator:
    """The source of random numbers, always an explicit Generator. A seed is refused."""
    if not isinstance(rng, np.random.Generator):
        raise CompressionError(
            f"rng must be a numpy.random.Generator, such as numpy.random.default_rng(0), "
            f"not {rng!r}"
        )
    return rng


def freeze(array: Array) -> Array:
    """Make an array of the library's own read-only, in place, and return it."""
    array = np.asarray(array)  # operations on 0-d arrays return scalars
    array.flags.writeable = False
    return array


def frozen(array: Array) -> Array:
    """A read-only, contiguous array of the same values that nobody else can write to.

    The array itself is returned where that already holds: it is read-only, and so is every array
    it is a view of. Anything else is copied, so that later writes of the caller do not change the
    result. (A caller who made an array read-only can still write through an older view of it.)
    """
    link: Any = array
    while isinstance(link, np.ndarray) and not link.flags.writeable:
        link = link.base
    locked = link is None or isinstance(link, bytes)
    if locked and array.flags.c_contiguous and type(array) is np.ndarray:
        return array
    return freeze(np.array(array, order="C", subok=False))


def widened(array: Array) -> Array:
    """float16 as float32, in which it is computed before it is rounded once; other floats as is."""
    return array.astype(np.promote_types(array.dtype, np.float32), copy=False)


def ceil_div(a: int, b: int) -> int:
    """``ceil(a / b)``, exactly.

    Examples
    --------
    >>> ceil_div(8, 4), ceil_div(9, 4), ceil_div(0, 4)
    (2, 3, 0)
    """
    return -(-a // b)


def cast_finite(array: Array, dtype: DType) -> Array:
    """Round float64 to `dtype`. What is too large for it becomes its largest finite value."""
    top = float(np.finfo(dtype).max)
    with np.errstate(under="ignore"):
        return np.asarray(np.clip(array, -top, top), dtype)


def cast_or_refuse(array: Array, dtype: DType, name: str) -> Array:
    """Round float64 to `dtype`. What is too large for it is refused."""
    with np.errstate(over="ignore", under="ignore"):
        cast = array.astype(dtype)
    if fault := not_finite(cast):
        raise CompressionError(f"{name} would overflow {dtype}: {fault}; take a wider float")
    return cast


class Value:
    """Base of the library's frozen dataclasses: short to print, frozen again when unpickled."""

    def _set(self, **fields: Any) -> None:
        """Assign fields of a frozen dataclass: for its `__post_init__`."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def trusted(cls: type[V], **fields: Any) -> V:
        """A value of parts that the library made itself and froze: nothing is checked again."""
        value = object.__new__(cls)
        value._set(**fields)
        return value

    def __repr__(self) -> str:
        shown = [f"{name}={_short(value)}" for name, value in _state(self).items()]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce__(self) -> Any:
        # The default would restore the arrays writable: NumPy does not pickle that flag.
        return partial(type(self), **_state(self)), ()


def _state(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}


def _short(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return repr(value)
    return f"{value.dtype}{list(value.shape)}" if value.ndim else repr(value.item())
