"""What an integer layer is, and those without weights: they keep scale and zero point.

A code q stands for the real number ``(q - zero_point) * scale``. Geometry is explicit: what "same"
padding means has been worked out for the one size of image that a layer is for.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import numpy as np

from minicompress.arrays import Array, Value, as_int, flag
from minicompress.errors import CompressionError
from minicompress.integer.requantization import HIGHEST, LOWEST
from minicompress.nn.kernels.windows import Pads, cut, geometry, pair, resolve_padding, taps
from minicompress.nn.stateless import Shape, image_shape

NO_PADDING: Pads = ((0, 0), (0, 0))


@dataclass(frozen=True, eq=False, repr=False)
class IntegerLayer(Value):
    """Base of the integer layers."""

    def forward(self, codes: Array) -> Array:
        """The output's codes for a batch of codes, both int8."""
        raise NotImplementedError

    def output_shape(self, input_shape: Shape) -> Shape:
        """The output's shape for an input's, both without the batch axis."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, repr=False)
class IntegerReLU(IntegerLayer):
    """``max(code, zero_point)``, where no layer before it could take it in.

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
class IntegerFlatten(IntegerLayer):
    """Each example as one row, its codes in C order."""

    def forward(self, codes: Array) -> Array:
        return codes.reshape(len(codes), math.prod(codes.shape[1:]))

    def output_shape(self, input_shape: Shape) -> Shape:
        return (math.prod(input_shape),)


@dataclass(frozen=True, eq=False, repr=False)
class _IntegerPool2D(IntegerLayer):
    """What both poolings share: the windows."""

    window: tuple[int, int]
    stride: tuple[int, int]
    padding: Pads = NO_PADDING

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", pair(self.window, "window", 1))
        object.__setattr__(self, "stride", pair(self.stride, "stride", 1))
        object.__setattr__(self, "padding", explicit(self.padding))
        for size, sides in zip(self.window, self.padding, strict=True):
            if max(sides) >= size:
                raise CompressionError(
                    f"padding must be narrower than the window {self.window} on every side, "
                    f"not {self.padding}"
                )

    def output_shape(self, input_shape: Shape) -> Shape:
        h, w, channels = image_shape(input_shape)
        return *geometry((h, w), self.window, self.stride, self.padding).output, channels

    def _windows(self, codes: Array, fill: int) -> Array:
        """A view (kh, kw, N, oh, ow, C) of the padded images."""
        g = geometry(codes.shape[1:3], self.window, self.stride, self.padding)
        rows = slice(0, g.output[0])
        return taps(cut(codes, rows, g, fill), rows, g)


@dataclass(frozen=True, eq=False, repr=False)
class IntegerMaxPool2D(_IntegerPool2D):
    """The largest code of every window: codes are in the order of what they stand for.

    Padding is never the largest.

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
    """The mean code of every window, rounded to the nearest, ties up.

    ``floor((2 * sum + count) / (2 * count))``; scale and zero point stay what they are. Where the
    sum could be negative, C, which rounds quotients toward zero, takes codes + 128 instead and
    takes 128 off again: the same number.

    Parameters
    ----------
    window, stride : (int, int)
    padding : ((top, bottom), (left, right))
        Narrower than the window.
    zero_point : int
        What the padding counts as with `count_include_pad`.
    count_include_pad : bool
        Divide by the size of the window everywhere; or by the pixels that lie in the image.

    Examples
    --------
    >>> codes = np.array([0, 1, 1, 0], np.int8).reshape(1, 2, 2, 1)
    >>> IntegerAvgPool2D((2, 2), (2, 2)).forward(codes).ravel()
    array([1], dtype=int8)
    """

    _: KW_ONLY
    zero_point: int = 0
    count_include_pad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        as_int(self.zero_point, "zero_point", LOWEST, HIGHEST)
        flag(self.count_include_pad, "count_include_pad")
        if math.prod(self.window) > 2**22:
            raise CompressionError(f"window must hold at most 2**22 pixels, not be {self.window}")

    def forward(self, codes: Array) -> Array:
        fill = self.zero_point if self.count_include_pad else 0
        sums = self._windows(codes, fill).sum((0, 1), dtype=np.int32)
        counts: Array | int = math.prod(self.window)
        if self.padding != NO_PADDING and not self.count_include_pad:
            inside = np.ones((1, *codes.shape[1:3], 1), np.int8)
            counts = self._windows(inside, 0).sum((0, 1), dtype=np.int32)
        sums *= 2
        sums += counts
        means: Array = sums // (2 * counts)
        return means.astype(np.int8)


def explicit(padding: Pads) -> Pads:
    """Padding in its last form; a word would need a size of image."""
    if isinstance(padding, str):
        raise CompressionError(f"padding must be ((top, bottom), (left, right)), not {padding!r}")
    return resolve_padding(padding, (1, 1), (1, 1))
