"""What an integer layer is, and the integer layers that pool, move or look up codes.

A code q stands for the real number ``(q - zero_point) * scale``. The output of an average or of a
table, as that of a convolution, has its own scale and zero point; the other layers here keep those
of their input. Padding is given in numbers: a layer is for one size of image, and "same" has been
resolved for it.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from minicompress.arrays import Array, as_int, frozen, integer_array
from minicompress.errors import CompressionError
from minicompress.integer.requantization import HIGHEST, LOWEST, requantize
from minicompress.nn.kernels.windows import (
    Geometry,
    Pads,
    cut,
    geometry,
    inner_padding,
    pair,
    resolve_padding,
    taps,
)
from minicompress.nn.layer import Layer, Shape, image_shape
from minicompress.nn.pooling import window_counts
from minicompress.nn.rearranging import shuffled

NO_PADDING: Pads = ((0, 0), (0, 0))


@dataclass(frozen=True, eq=False, repr=False)
class IntegerLayer(Layer):
    """Base of the integer layers: `forward` takes codes of int8 and gives codes of int8."""


@dataclass(frozen=True, eq=False, repr=False)
class IntegerReLU(IntegerLayer):
    """``max(code, zero_point)``: a ReLU that is not part of the layer before it.

    Examples
    --------
    >>> IntegerReLU(3).forward(np.array([[-128, 3, 4]], np.int8))
    array([[3, 3, 4]], dtype=int8)
    """

    zero_point: int

    def __post_init__(self) -> None:
        as_int(self.zero_point, "zero_point", LOWEST, HIGHEST)

    def forward(self, codes: Array) -> Array:
        return np.maximum(codes, np.int8(self.zero_point))

    def output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)


@dataclass(frozen=True, eq=False, repr=False)
class IntegerTable(IntegerLayer):
    """A function of one number: the code of its value for each of the 256 codes.

    Parameters
    ----------
    table : (256,) or (C, 256) ndarray of int8
        Entry ``q + 128`` is for the code q. With C rows, each channel has its own.
    scale : float
        The real number that a step of the output stands for. Running the layer does not need it.

    Raises
    ------
    CompressionError
        The dtype or the shape is not as above.

    Examples
    --------
    >>> negative = IntegerTable(np.clip(np.arange(128, -128, -1), -128, 127).astype(np.int8))
    >>> negative.forward(np.array([[-128, 3]], np.int8))
    array([[127,  -3]], dtype=int8)
    """

    table: Array
    scale: float = 1.0

    def __post_init__(self) -> None:
        table = integer_array(self.table, "table")
        if table.dtype != np.int8 or table.ndim not in (1, 2) or table.shape[-1] != 256:
            raise CompressionError(
                f"table must be of int8 and of shape (256,) or (C, 256), not of {table.dtype} and "
                f"shape {table.shape}"
            )
        self._set(table=frozen(table))

    def forward(self, codes: Array) -> Array:
        index = codes.astype(np.int16) + 128
        if self.table.ndim == 1:
            return self.table[index]
        return self.table[np.arange(len(self.table)), index]

    def output_shape(self, input_shape: Shape) -> Shape:
        if self.table.ndim == 2 and tuple(input_shape[-1:]) != self.table.shape[:1]:
            raise CompressionError(
                f"the input must have {len(self.table)} channels, not shape {input_shape}"
            )
        return tuple(input_shape)


@dataclass(frozen=True, eq=False, repr=False)
class IntegerUpsample2D(IntegerLayer):
    """Every pixel repeated, `factor` times on each axis.

    Examples
    --------
    >>> IntegerUpsample2D((1, 2)).forward(np.array([[[[1], [2]]]], np.int8)).ravel()
    array([1, 1, 2, 2], dtype=int8)
    """

    factor: tuple[int, int]

    def __post_init__(self) -> None:
        self._set(factor=pair(self.factor, "factor", 1))

    def forward(self, codes: Array) -> Array:
        return codes.repeat(self.factor[0], axis=1).repeat(self.factor[1], axis=2)

    def output_shape(self, input_shape: Shape) -> Shape:
        h, w, channels = image_shape(input_shape)
        return h * self.factor[0], w * self.factor[1], channels


@dataclass(frozen=True, eq=False, repr=False)
class IntegerChannelShuffle(IntegerLayer):
    """Entry i of group g of the channels becomes entry g of group i.

    Examples
    --------
    >>> IntegerChannelShuffle(2).forward(np.arange(6, dtype=np.int8)[None, None, None]).ravel()
    array([0, 3, 1, 4, 2, 5], dtype=int8)
    """

    groups: int

    def __post_init__(self) -> None:
        as_int(self.groups, "groups", 1)

    def forward(self, codes: Array) -> Array:
        return shuffled(codes, self.groups)

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = image_shape(input_shape)
        if shape[2] % self.groups:
            raise CompressionError(f"groups={self.groups} must divide the {shape[2]} channels")
        return shape


@dataclass(frozen=True, eq=False, repr=False)
class IntegerFlatten(IntegerLayer):
    """Each example as one row, its codes in C order."""

    def forward(self, codes: Array) -> Array:
        return codes.reshape(len(codes), math.prod(codes.shape[1:]))

    def output_shape(self, input_shape: Shape) -> Shape:
        return (math.prod(input_shape),)


@dataclass(frozen=True, eq=False, repr=False)
class _IntegerPool2D(IntegerLayer):
    """The windows of both poolings."""

    window: tuple[int, int]
    stride: tuple[int, int]
    padding: Pads = NO_PADDING

    def __post_init__(self) -> None:
        window, stride = pair(self.window, "window", 1), pair(self.stride, "stride", 1)
        self._set(window=window, stride=stride, padding=explicit(self.padding))
        inner_padding(self.padding, window)

    def geometry(self, input_hw: Shape) -> Geometry:
        """Where the windows lie in an image of this height and width."""
        return geometry(input_hw, self.window, self.stride, self.padding)

    def output_shape(self, input_shape: Shape) -> Shape:
        h, w, channels = image_shape(input_shape)
        return *self.geometry((h, w)).output, channels

    def _windows(self, codes: Array, fill: int) -> Array:
        """A view (kh, kw, N, oh, ow, C) of the padded images."""
        g = self.geometry(codes.shape[1:3])
        rows = slice(0, g.output[0])
        return taps(cut(codes, rows, g, fill), rows, g)


@dataclass(frozen=True, eq=False, repr=False)
class IntegerMaxPool2D(_IntegerPool2D):
    """The largest code of every window, which stands for the largest number.

    Padding counts as -128, so it is never the largest.

    Parameters
    ----------
    window, stride : (int, int)
    padding : ((top, bottom), (left, right))
        Narrower than the window.

    Examples
    --------
    >>> codes = np.arange(4, dtype=np.int8).reshape(1, 2, 2, 1)
    >>> IntegerMaxPool2D((2, 2), (2, 2)).forward(codes).ravel()
    array([3], dtype=int8)
    """

    def forward(self, codes: Array) -> Array:
        y: Array = self._windows(codes, LOWEST).max((0, 1))
        return y


@dataclass(frozen=True, eq=False, repr=False)
class IntegerAvgPool2D(_IntegerPool2D):
    """The mean of every window, in its own scale: a depthwise convolution with equal weights.

    ``sum of (x - input_zero_point)`` in int32; padding is `input_zero_point`. Then `requantize`,
    whose multiplier also divides by the number of pixels.

    Parameters
    ----------
    window, stride : (int, int)
        A window has at most 2**22 pixels: 255 times as many fit int32.
    padding : ((top, bottom), (left, right))
        Narrower than the window.
    multiplier, shift : (1,) or (window[0] * window[1],) ndarray of integers
        One for all windows. Or one for each number of pixels: entry n - 1 is for windows with n
        pixels in the image and in the padding that counts.
    counted : ((top, bottom), (left, right))
        The part of the padding that counts in the mean, if there are several multipliers.
    input_zero_point, output_zero_point, low, high : int
        As for `IntegerConv2D`.

    Raises
    ------
    CompressionError
        A number or a shape is not as above.

    Examples
    --------
    >>> from minicompress.integer.requantization import quantize_multiplier
    >>> multiplier, shift = quantize_multiplier([0.5 / 4])  # the output's steps are twice as large
    >>> pool = IntegerAvgPool2D((2, 2), (2, 2), multiplier=multiplier, shift=shift)
    >>> codes = np.array([10, 12, 14, 13], np.int8).reshape(1, 2, 2, 1)
    >>> pool.forward(codes).ravel()
    array([6], dtype=int8)
    """

    _: KW_ONLY
    multiplier: Array
    shift: Array
    input_zero_point: int = 0
    output_zero_point: int = 0
    low: int = LOWEST
    high: int = HIGHEST
    counted: Pads = NO_PADDING

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(counted=explicit(self.counted))
        if (np.array(self.counted) > np.array(self.padding)).any():
            raise CompressionError(
                f"counted must be within the padding {self.padding}, not be {self.counted}"
            )
        size = math.prod(self.window)
        if size > 2**22:
            raise CompressionError(f"window must hold at most 2**22 pixels, not be {self.window}")
        for name in ("multiplier", "shift"):
            self._set(**{name: frozen(integer_array(getattr(self, name), name))})
        if not self.multiplier.shape == self.shift.shape or self.shift.shape not in {(1,), (size,)}:
            raise CompressionError(
                f"multiplier and shift must both hold 1 number or {size}, one for each number of "
                f"pixels, not be of shapes {self.multiplier.shape} and {self.shift.shape}"
            )
        as_int(self.input_zero_point, "input_zero_point", LOWEST, HIGHEST)
        requantized(self, np.zeros((0, self.shift.size), np.int32), np.arange(self.shift.size))

    def forward(self, codes: Array) -> Array:
        sums = self._windows(codes, self.input_zero_point).sum((0, 1), dtype=np.int32)
        sums -= math.prod(self.window) * self.input_zero_point
        place = np.zeros(sums.shape[1:], np.int64)
        if self.shift.size > 1:
            image = codes.shape[1:3]
            place += window_counts(image, self.geometry(image), self.counted)[..., None] - 1
        made = requantized(self, sums.reshape(len(sums), place.size), place.ravel())
        return made.reshape(sums.shape)


def requantized(layer: Any, sums: Array, place: Any = ...) -> Array:
    """The codes of a layer's sums, by its own fields.

    Column i of the sums has the multiplier and the shift number ``place[i]``; by default number i.
    """
    return requantize(
        sums,
        layer.multiplier[place],
        layer.shift[place],
        zero_point=layer.output_zero_point,
        low=layer.low,
        high=layer.high,
    )


def explicit(padding: Pads) -> Pads:
    """Padding as ((top, bottom), (left, right)); a word is refused, since it needs an image."""
    if isinstance(padding, str):
        raise CompressionError(f"padding must be ((top, bottom), (left, right)), not {padding!r}")
    return resolve_padding(padding, (1, 1), (1, 1))
