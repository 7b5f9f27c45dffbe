"""Integer layers that read several values: each value has a scale and a zero point of its own.

A code less its zero point is a number of steps of its value's scale. Multipliers turn them into
steps of the output's scale.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from minicompress.arrays import Array, as_int, check_range, frozen, integer_array
from minicompress.errors import CompressionError
from minicompress.integer.requantization import HIGHEST, LOWEST, MOST_SHIFT, requantize, rounded
from minicompress.integer.stateless import IntegerLayer
from minicompress.nn.joins import equal_shapes, gated_shape, joined_shape
from minicompress.nn.layer import Shape


@dataclass(frozen=True, eq=False, repr=False)
class _IntegerJoin(IntegerLayer):
    """What the joins share: the zero points of what they read, and how their codes are clamped."""

    input_zero_points: tuple[int, ...]
    _: KW_ONLY
    output_zero_point: int = 0
    low: int = LOWEST
    high: int = HIGHEST

    num_inputs: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        for i, zero_point in enumerate(self.input_zero_points):
            as_int(zero_point, f"input_zero_points[{i}]", LOWEST, HIGHEST)
        as_int(self.output_zero_point, "output_zero_point", LOWEST, HIGHEST)
        as_int(self.low, "low", LOWEST, HIGHEST)
        as_int(self.high, "high", self.low, HIGHEST)

    def _steps(self, codes: tuple[Array, ...]) -> list[Array]:
        """Codes less their zero points, int32."""
        if len(codes) != len(self.input_zero_points):
            raise CompressionError(
                f"it must read {len(self.input_zero_points)} values, one for each zero point, "
                f"not {len(codes)}"
            )
        pairs = zip(codes, self.input_zero_points, strict=True)
        return [np.subtract(x, zero_point, dtype=np.int32) for x, zero_point in pairs]

    def _set_numbers(self, name: str, count: int, low: int, high: int) -> None:
        """Keep a field of so many integers, checked."""
        numbers = integer_array(getattr(self, name), name)
        if numbers.shape != (count,):
            raise CompressionError(f"{name} must have shape ({count},), not {numbers.shape}")
        check_range(numbers, name, low, high)
        self._set(**{name: frozen(numbers)})


@dataclass(frozen=True, eq=False, repr=False)
class IntegerAdd(_IntegerJoin):
    """The sum of values of different scales: a multiplier for each, and one rounding.

    ``clamp(round(sum of (x_i - input_zero_point_i) * multiplier_i / 2**shift) + zero_point)``, in
    int64, ties up.

    Parameters
    ----------
    input_zero_points : tuple of int
        One for each value that is read.
    multiplier : (n,) ndarray of integers
        For each value its scale in units of ``2**-shift`` of the output's, in [0, 2**31).
    shift : int from 1 to 62
    output_zero_point, low, high : int
        As for `IntegerConv2D`.

    Raises
    ------
    CompressionError
        A number or a shape is not as above.

    Examples
    --------
    >>> half_and_one = np.array([2**29, 2**30])
    >>> layer = IntegerAdd((0, 0), multiplier=half_and_one, shift=30)
    >>> layer.forward(np.array([[3, -3]], np.int8), np.array([[10, 10]], np.int8))
    array([[12,  9]], dtype=int8)
    """

    _: KW_ONLY
    multiplier: Array
    shift: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_numbers("multiplier", len(self.input_zero_points), 0, 2**31 - 1)
        as_int(self.shift, "shift", 1, MOST_SHIFT)

    def forward(self, *codes: Array) -> Array:
        pairs = zip(self._steps(codes), self.multiplier.tolist(), strict=True)
        total = sum(steps.astype(np.int64) * multiplier for steps, multiplier in pairs)
        return rounded(total, self.shift, self.output_zero_point, self.low, self.high)

    def output_shape(self, *input_shapes: Shape) -> Shape:
        return equal_shapes(input_shapes)


@dataclass(frozen=True, eq=False, repr=False)
class IntegerMultiply(_IntegerJoin):
    """The product of two values: of one shape, or of an image and a gate (1, 1, C).

    ``(a - input_zero_points[0]) * (b - input_zero_points[1])`` in int32; then `requantize`.

    Parameters
    ----------
    input_zero_points : (int, int)
    multiplier, shift : (1,) ndarray of integers
        As for `requantize`.
    output_zero_point, low, high : int
        As for `IntegerConv2D`.

    Raises
    ------
    CompressionError
        A number or a shape is not as above.

    Examples
    --------
    >>> from minicompress.integer.requantization import quantize_multiplier
    >>> multiplier, shift = quantize_multiplier([1 / 64])
    >>> layer = IntegerMultiply((0, 1), multiplier=multiplier, shift=shift)
    >>> layer.forward(np.array([[64, -10]], np.int8), np.array([[3, 33]], np.int8))
    array([[ 2, -5]], dtype=int8)
    """

    _: KW_ONLY
    multiplier: Array
    shift: Array

    num_inputs: ClassVar[int | None] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_numbers("multiplier", 1, 2**30, 2**31 - 1)
        self._set_numbers("shift", 1, 1, MOST_SHIFT)

    def forward(self, *codes: Array) -> Array:
        a, b = self._steps(codes)
        made = (a * b).astype(np.int64) * int(self.multiplier[0])
        return rounded(made, int(self.shift[0]), self.output_zero_point, self.low, self.high)

    def output_shape(self, *input_shapes: Shape) -> Shape:
        return gated_shape(*input_shapes)


@dataclass(frozen=True, eq=False, repr=False)
class IntegerConcat(_IntegerJoin):
    """Values side by side along the last axis, each brought to the scale of the output.

    Parameters
    ----------
    input_zero_points : tuple of int
        One for each value that is read.
    multiplier, shift : (n,) ndarray of integers
        One for each value, as for `requantize`.
    output_zero_point, low, high : int
        As for `IntegerConv2D`.

    Raises
    ------
    CompressionError
        A number or a shape is not as above.

    Examples
    --------
    >>> from minicompress.integer.requantization import quantize_multiplier
    >>> multiplier, shift = quantize_multiplier([1.0, 0.5])
    >>> layer = IntegerConcat((0, 0), multiplier=multiplier, shift=shift)
    >>> layer.forward(np.array([[3]], np.int8), np.array([[10]], np.int8))
    array([[3, 5]], dtype=int8)
    """

    _: KW_ONLY
    multiplier: Array
    shift: Array

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_numbers("multiplier", len(self.input_zero_points), 2**30, 2**31 - 1)
        self._set_numbers("shift", len(self.input_zero_points), 1, MOST_SHIFT)

    def forward(self, *codes: Array) -> Array:
        options = {"zero_point": self.output_zero_point, "low": self.low, "high": self.high}
        parts = zip(self._steps(codes), self.multiplier, self.shift, strict=True)
        return np.concatenate([requantize(*part, **options) for part in parts], axis=-1)

    def output_shape(self, *input_shapes: Shape) -> Shape:
        return joined_shape(input_shapes)
