"""Layers with weights that compute with int8 codes and int32 sums, and nothing else.

Weights are symmetric (their zero point is 0), with a scale for every output. So a layer's sums are
in steps of input scale * weight scale; `requantize` turns them into steps of the output scale.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from minicompress.arrays import Array, DType, as_int, finite_array, frozen, integer_array
from minicompress.errors import CompressionError
from minicompress.integer.requantization import HIGHEST, LOWEST
from minicompress.integer.stateless import NO_PADDING, IntegerLayer, explicit, requantized
from minicompress.nn.convolution import transposed_geometry
from minicompress.nn.kernels.direct import direct_adjoint, direct_conv2d
from minicompress.nn.kernels.windows import Geometry, Pads, cut, geometry, pair, taps
from minicompress.nn.layer import Shape, image_shape

# Of the sums of one block, so that they stay in the cache until they are codes.
TILE_BYTES = 1 << 20


class Scales(NamedTuple):
    """The real numbers from which a layer's integers were made. Running the layer needs none.

    Parameters
    ----------
    input, output : float
    weight : (O,) ndarray of float64
    """

    input: float
    weight: Array
    output: float


@dataclass(frozen=True, eq=False, repr=False)
class _IntegerAffine(IntegerLayer):
    """What `IntegerConv2D` and `IntegerDense` share: codes of weights, and how sums become codes.

    Layers in which some input could overflow an int32 accumulator are refused.
    """

    weight: Array
    bias: Array
    multiplier: Array
    shift: Array
    input_zero_point: int
    output_zero_point: int
    low: int
    high: int
    num_bits: int
    scales: Scales

    ndim: ClassVar[int]

    def __post_init__(self) -> None:
        weight = integer_array(self.weight, "weight")
        if weight.dtype != np.int8 or weight.ndim != self.ndim:
            raise CompressionError(
                f"weight must be of int8 with {self.ndim} axes, not of {weight.dtype} and shape "
                f"{weight.shape}"
            )
        self._set(weight=frozen(weight))
        outputs = weight.shape[-1:]
        for name in ("bias", "multiplier", "shift"):
            array = integer_array(getattr(self, name), name)
            if array.dtype != np.int32 or array.shape != outputs:
                raise CompressionError(
                    f"{name} must be of shape {outputs} and dtype int32, one number for each "
                    f"output, not of shape {array.shape} and {array.dtype}"
                )
            self._set(**{name: frozen(array)})
        scales = self.scales._replace(weight=frozen(finite_array(self.scales.weight, "scales")))
        if scales.weight.shape != outputs:
            raise CompressionError(f"scales must have a weight of shape {outputs}, like bias")
        self._set(scales=scales)
        as_int(self.num_bits, "num_bits", 2, 8)
        as_int(self.input_zero_point, "input_zero_point", LOWEST, HIGHEST)
        requantized(self, np.zeros((0, *outputs), np.int32))  # checks the other fields
        magnitudes = np.abs(self.weight.astype(np.int64)).sum(tuple(range(self.ndim - 1)))
        sums = magnitudes * self._reach() + np.abs(self.bias.astype(np.int64))
        if sums.max(initial=0) >= 2**31:
            raise CompressionError(
                f"the accumulators must fit int32, but {math.prod(self.weight.shape[:-1])} "
                f"products and the bias can add up to {sums.max()}: split the layer, or use fewer "
                "bits"
            )

    def _reach(self) -> int:
        """How far a code can be from the zero point."""
        return max(HIGHEST - self.input_zero_point, self.input_zero_point - LOWEST)

    def _centred(self, codes: Array, exact: DType) -> Array:
        """Codes minus the zero point, so that the padding of 0.0 is 0."""
        x = codes.astype(exact)
        x -= self.input_zero_point
        return x


@dataclass(frozen=True, eq=False, repr=False)
class IntegerConv2D(_IntegerAffine):
    """A convolution of codes.

    ``acc[o] = bias[o] + sum of (x - input_zero_point) * weight[..., o]`` in int32; padding is
    `input_zero_point`. Then `requantize` with the multiplier and the shift of every output,
    `output_zero_point`, `low` and `high`.

    Parameters
    ----------
    weight : (kh, kw, in // groups, out) ndarray of int8
    bias, multiplier, shift : (out,) ndarrays of int32
    input_zero_point, output_zero_point : int, -128 to 127
    low, high : int
        The output is clamped to [low, high]; with a ReLU, `low` is `output_zero_point`.
    num_bits : int from 2 to 8
        Bits of a stored weight.
    scales : Scales
        The real numbers from which the integers were made.
    stride, dilation : (int, int)
    padding : ((top, bottom), (left, right))
    groups : int

    Raises
    ------
    CompressionError
        A dtype or shape is not as above, or some input could overflow an accumulator.
    """

    _: KW_ONLY
    stride: tuple[int, int] = (1, 1)
    padding: Pads = NO_PADDING
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    ndim: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight.shape[3] % as_int(self.groups, "groups", 1):
            raise CompressionError(f"groups must divide the outputs, not be {self.groups}")
        stride, dilation = pair(self.stride, "stride", 1), pair(self.dilation, "dilation", 1)
        self._set(stride=stride, dilation=dilation, padding=explicit(self.padding))

    def geometry(self, input_hw: Shape) -> Geometry:
        """Where the windows lie in an image of this height and width."""
        kernel = self.weight.shape[:2]
        return geometry(input_hw, kernel, self.stride, self.padding, self.dilation)

    def forward(self, codes: Array) -> Array:
        g = self.geometry(image_shape(codes.shape[1:], self.weight.shape[2] * self.groups)[:2])
        exact, block = _exact_block(self.weight, self._reach())
        inputs, outputs = self.weight.shape[2], self.weight.shape[3] // self.groups
        kernel, nothing = self.weight.astype(exact), np.zeros(outputs, exact)
        y: Array = np.empty((len(codes), *g.output, len(self.bias)), np.int8)
        rows = max(TILE_BYTES // (4 * max(math.prod(y.shape[1:]), 1)), 1)
        for start in range(0, len(codes), rows):
            if inputs == 1 < self.groups:
                y[start : start + rows] = requantized(self, self._depthwise(codes, start, rows))
                continue
            x = self._centred(codes[start : start + rows], exact)
            sums = np.full((len(x), *y.shape[1:]), self.bias)
            for group in range(self.groups):
                image = x[..., group * inputs : (group + 1) * inputs]
                made = slice(group * outputs, (group + 1) * outputs)
                for channel in range(0, inputs, block):
                    places = slice(channel, channel + block)
                    weight = kernel[:, :, places, made]
                    part = direct_conv2d(image[..., places], weight, nothing, g)
                    sums[..., made] += part.astype(np.int32)
            y[start : start + rows] = requantized(self, sums)
        return y

    def _depthwise(self, codes: Array, start: int, rows: int) -> Array:
        """The sums of some examples where each output reads one channel, place by place."""
        x = self._centred(codes[start : start + rows], np.dtype(np.int32))
        g = self.geometry(x.shape[1:3])
        whole = slice(0, g.output[0])
        view = taps(cut(x, whole, g, 0), whole, g)
        sums = np.full((len(x), *g.output, len(self.bias)), self.bias)
        for place in np.ndindex(*g.kernel):
            tap = view[place].repeat(len(self.bias) // self.groups, axis=-1)
            sums += tap * self.weight[place][0]
        return sums

    def output_shape(self, input_shape: Shape) -> Shape:
        image = image_shape(input_shape, self.weight.shape[2] * self.groups)
        return *self.geometry(image[:2]).output, self.weight.shape[3]


@dataclass(frozen=True, eq=False, repr=False)
class IntegerConvTranspose2D(_IntegerAffine):
    """A transposed convolution of codes.

    ``acc[s*i + d*p, s*j + d*q, o] += (x[i, j, c] - input_zero_point) * weight[p, q, c, o]`` in
    int32, cut by the padding, plus ``bias[o]``; then as for `IntegerConv2D`.

    Parameters
    ----------
    weight : (kh, kw, in // groups, out) ndarray of int8
    bias, multiplier, shift, input_zero_point, output_zero_point, low, high, num_bits, scales
        As for `IntegerConv2D`.
    stride, output_padding, dilation : (int, int)
    padding : ((top, bottom), (left, right))
    groups : int

    Raises
    ------
    CompressionError
        As `IntegerConv2D`.
    """

    _: KW_ONLY
    stride: tuple[int, int] = (1, 1)
    padding: Pads = NO_PADDING
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    ndim: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight.shape[3] % as_int(self.groups, "groups", 1):
            raise CompressionError(f"groups must divide the outputs, not be {self.groups}")
        stride, dilation = pair(self.stride, "stride", 1), pair(self.dilation, "dilation", 1)
        more = pair(self.output_padding, "output_padding", 0)
        pads = explicit(self.padding)
        self._set(stride=stride, dilation=dilation, padding=pads, output_padding=more)

    def geometry(self, input_hw: Shape) -> tuple[tuple[int, int], Geometry]:
        """The output's height and width, and the windows of the convolution that goes back."""
        options = self.stride, self.padding, self.output_padding, self.dilation
        return transposed_geometry(input_hw, self.weight.shape[:2], *options)

    def forward(self, codes: Array) -> Array:
        shape = len(codes), *self.output_shape(codes.shape[1:])
        _, g = self.geometry(codes.shape[1:3])
        exact, block = _exact_block(self.weight, self._reach())
        inputs, outputs = self.weight.shape[2], self.weight.shape[3] // self.groups
        kernel, x = self.weight.astype(exact).swapaxes(2, 3), self._centred(codes, exact)
        sums = np.full(shape, self.bias)
        for group in range(self.groups):
            made = slice(group * outputs, (group + 1) * outputs)
            for channel in range(0, inputs, block):
                places = slice(channel, min(channel + block, inputs))
                read = slice(group * inputs + places.start, group * inputs + places.stop)
                weight = kernel[:, :, made, places]
                part = direct_adjoint(x[..., read], weight, (*shape[:3], outputs), g)
                sums[..., made] += part.astype(np.int32)
        return requantized(self, sums)

    def output_shape(self, input_shape: Shape) -> Shape:
        image = image_shape(input_shape, self.weight.shape[2] * self.groups)
        return *self.geometry(image[:2])[0], self.weight.shape[3]


@dataclass(frozen=True, eq=False, repr=False)
class IntegerScale(_IntegerAffine):
    """Each channel times a weight, plus a bias: a batch normalization on its own.

    ``acc[..., c] = bias[c] + (x[..., c] - input_zero_point) * weight[c]`` in int32; then as for
    `IntegerConv2D`.

    Parameters
    ----------
    weight : (channels,) ndarray of int8
    bias, multiplier, shift, input_zero_point, output_zero_point, low, high, num_bits, scales
        As for `IntegerConv2D`.

    Raises
    ------
    CompressionError
        As `IntegerConv2D`.
    """

    ndim: ClassVar[int] = 1

    def forward(self, codes: Array) -> Array:
        self.output_shape(codes.shape[1:])
        sums = self._centred(codes, np.dtype(np.int32))
        sums *= self.weight
        sums += self.bias
        return requantized(self, sums)

    def output_shape(self, input_shape: Shape) -> Shape:
        if tuple(input_shape[-1:]) != self.weight.shape:
            raise CompressionError(
                f"the input must have {self.weight.size} channels, not shape {input_shape}"
            )
        return tuple(input_shape)


@dataclass(frozen=True, eq=False, repr=False)
class IntegerDense(_IntegerAffine):
    """A fully connected layer of codes: `IntegerConv2D` for images of one pixel.

    Parameters
    ----------
    weight : (in, out) ndarray of int8
    bias, multiplier, shift, input_zero_point, output_zero_point, low, high, num_bits, scales
        As for `IntegerConv2D`.

    Raises
    ------
    CompressionError
        As `IntegerConv2D`.
    """

    ndim: ClassVar[int] = 2

    def forward(self, codes: Array) -> Array:
        self.output_shape(codes.shape[1:])
        exact, block = _exact_block(self.weight[None, None], self._reach())
        x, matrix = self._centred(codes, exact), self.weight.astype(exact)
        sums = np.full((len(x), len(self.bias)), self.bias)
        for start in range(0, len(matrix), block):
            places = slice(start, start + block)
            sums += (x[:, places] @ matrix[places]).astype(np.int32)
        return requantized(self, sums)

    def output_shape(self, input_shape: Shape) -> Shape:
        inputs, outputs = self.weight.shape
        if tuple(input_shape) != (inputs,):
            raise CompressionError(f"the input must have shape ({inputs},), not {input_shape}")
        return (outputs,)


def _exact_block(kernel: Array, reach: int) -> tuple[DType, int]:
    """The float type and the number of input channels for which every sum is exact.

    A sum of integers is exact in float32, in any order, if no partial sum can exceed 2**24. So a
    product may run over ``2**24 // (largest code * largest weight)`` places at a time, which is a
    number of channels times the size of the kernel. A larger kernel needs float64.
    """
    largest = max(int(np.abs(kernel.astype(np.int16)).max(initial=0)) * reach, 1)
    places = math.prod(kernel.shape[:2])
    if places * largest <= 2**24:
        return np.dtype(np.float32), 2**24 // (places * largest)
    return np.dtype(np.float64), 2**53 // (places * largest)
