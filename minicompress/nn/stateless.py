"""Layers without weights that move, pool or join values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minicompress.arrays import as_float, as_int, flag
from minicompress.errors import CompressionError
from minicompress.nn import joins, pooling, rearranging
from minicompress.nn.kernels.windows import (
    Geometry,
    Padding,
    Pair,
    geometry,
    normal_padding,
    pair,
)
from minicompress.nn.layer import Layer, Operation, Shape, image_shape
from minicompress.nn.pointwise import (
    Clip,
    Dropout,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)


@dataclass(frozen=True, eq=False, repr=False)
class Flatten(Operation):
    """Each example as one row, its entries in C order.

    Examples
    --------
    >>> Flatten().output_shape((4, 4, 32))
    (512,)
    """

    function = staticmethod(rearranging.flatten)
    function_vjp = staticmethod(rearranging.flatten_vjp)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (math.prod(input_shape),)


@dataclass(frozen=True, eq=False, repr=False)
class _Pool2D(Operation):
    """The windows of the pooling layers."""

    window: Pair
    stride: Pair | None = None
    padding: Padding = "valid"
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        stride = None if self.stride is None else pair(self.stride, "stride", 1)
        window, padding = pair(self.window, "window", 1), normal_padding(self.padding)
        ceil_mode = flag(self.ceil_mode, "ceil_mode")
        self._set(window=window, stride=stride, padding=padding, ceil_mode=ceil_mode)

    def geometry(self, input_hw: Shape) -> Geometry:
        """Where the windows lie in an image of this height and width."""
        stride = self.window if self.stride is None else self.stride
        return geometry(input_hw, self.window, stride, self.padding, ceil_mode=self.ceil_mode)

    def output_shape(self, input_shape: Shape) -> Shape:
        h, w, channels = image_shape(input_shape)
        return *self.geometry((h, w)).output, channels


@dataclass(frozen=True, eq=False, repr=False)
class MaxPool2D(_Pool2D):
    """The maximum of every window, channel by channel.

    Parameters
    ----------
    window : int or (int, int)
    stride : int or (int, int), optional
        The window's size by default.
    padding : as for `Conv2D`
        Counts as minus infinity, so it is never the maximum.
    ceil_mode : bool
        Whether a last window that reaches beyond the padded image counts, too.

    Examples
    --------
    >>> MaxPool2D(2).output_shape((24, 24, 20))
    (12, 12, 20)
    """

    function = staticmethod(pooling.max_pool2d)
    function_vjp = staticmethod(pooling.max_pool2d_vjp)


@dataclass(frozen=True, eq=False, repr=False)
class AvgPool2D(_Pool2D):
    """The mean of every window, channel by channel.

    Parameters
    ----------
    window, stride, padding, ceil_mode
        As for `MaxPool2D`.
    count_include_pad : bool
        Whether the padding counts, as zeros, in the mean.

    Examples
    --------
    >>> AvgPool2D(2).output_shape((24, 24, 20))
    (12, 12, 20)
    """

    count_include_pad: bool = False

    function = staticmethod(pooling.avg_pool2d)
    function_vjp = staticmethod(pooling.avg_pool2d_vjp)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(count_include_pad=flag(self.count_include_pad, "count_include_pad"))


@dataclass(frozen=True, eq=False, repr=False)
class GlobalAvgPool2D(Operation):
    """The mean of each channel over the whole image.

    Parameters
    ----------
    keep_axes : bool
        Whether the output is an image of one pixel, (1, 1, C), and not (C,).

    Examples
    --------
    >>> GlobalAvgPool2D().output_shape((7, 7, 64))
    (64,)
    """

    keep_axes: bool = False

    function = staticmethod(pooling.global_avg_pool2d)
    function_vjp = staticmethod(pooling.global_avg_pool2d_vjp)

    def __post_init__(self) -> None:
        self._set(keep_axes=flag(self.keep_axes, "keep_axes"))

    def geometry(self, input_hw: Shape) -> Geometry:
        """One window: the whole image."""
        return geometry(input_hw, input_hw)

    def output_shape(self, input_shape: Shape) -> Shape:
        channels = image_shape(input_shape)[2]
        return (1, 1, channels) if self.keep_axes else (channels,)


@dataclass(frozen=True, eq=False, repr=False)
class Upsample2D(Operation):
    """Every pixel repeated: an image that is a whole number of times larger.

    Parameters
    ----------
    factor : int or (int, int)

    Examples
    --------
    >>> Upsample2D(2).output_shape((8, 8, 16))
    (16, 16, 16)
    """

    factor: Pair

    function = staticmethod(rearranging.upsample2d)
    function_vjp = staticmethod(rearranging.upsample2d_vjp)

    def __post_init__(self) -> None:
        self._set(factor=pair(self.factor, "factor", 1))

    def output_shape(self, input_shape: Shape) -> Shape:
        (h, w, channels), (down, across) = (
            image_shape(input_shape),
            pair(self.factor, "factor", 1),
        )
        return h * down, w * across, channels


@dataclass(frozen=True, eq=False, repr=False)
class ChannelShuffle(Operation):
    """The channels of several groups, dealt out in turn (Zhang et al., 2018).

    Parameters
    ----------
    groups : int
        Divides the channels. The channels 0 1 2 3 4 5 of 2 groups become 0 3 1 4 2 5.

    Examples
    --------
    >>> import numpy as np
    >>> ChannelShuffle(2).forward(np.arange(6.0)[None, None, None]).ravel()
    array([0., 3., 1., 4., 2., 5.])
    """

    groups: int

    function = staticmethod(rearranging.channel_shuffle)
    function_vjp = staticmethod(rearranging.channel_shuffle_vjp)

    def __post_init__(self) -> None:
        self._set(groups=as_int(self.groups, "groups", 1))

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = image_shape(input_shape)
        if shape[2] % self.groups:
            raise CompressionError(f"groups={self.groups} must divide the {shape[2]} channels")
        return shape


@dataclass(frozen=True, eq=False, repr=False)
class LocalResponseNorm(Operation):
    """Each channel divided by a power of the squares around it (Krizhevsky et al., 2012).

    ``x / (bias + alpha / size * sum of x ** 2 over `size` channels around it) ** beta``

    Parameters
    ----------
    size : int
    alpha, beta, bias : float
        `alpha` not negative, `bias` positive.

    Examples
    --------
    >>> import numpy as np
    >>> LocalResponseNorm(1, alpha=3.0, beta=0.5).forward(np.ones((1, 1, 1, 1))).item()
    0.5
    """

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0

    function = staticmethod(rearranging.local_response_norm)
    function_vjp = staticmethod(rearranging.local_response_norm_vjp)

    def __post_init__(self) -> None:
        size, alpha = as_int(self.size, "size", 1), as_float(self.alpha, "alpha", 0.0)
        beta, bias = as_float(self.beta, "beta", -math.inf), as_float(self.bias, "bias", 0.0)
        if bias == 0:
            raise CompressionError("bias must be positive, not 0")
        self._set(size=size, alpha=alpha, beta=beta, bias=bias)

    def output_shape(self, input_shape: Shape) -> Shape:
        return image_shape(input_shape)


@dataclass(frozen=True, eq=False, repr=False)
class Add(Operation):
    """The sum of values of one shape.

    Examples
    --------
    >>> import numpy as np
    >>> Add().forward(np.array([[1.0]]), np.array([[2.0]]))
    array([[3.]])
    """

    num_inputs = None
    function = staticmethod(joins.add)
    function_vjp = staticmethod(joins.add_vjp)

    def output_shape(self, *input_shapes: Shape) -> Shape:
        return joins.equal_shapes(input_shapes)


@dataclass(frozen=True, eq=False, repr=False)
class Multiply(Operation):
    """The product of two values: of one shape, or an image (H, W, C) and a gate (1, 1, C).

    Examples
    --------
    >>> Multiply().output_shape((8, 8, 16), (1, 1, 16))
    (8, 8, 16)
    """

    num_inputs = 2
    function = staticmethod(joins.multiply)
    function_vjp = staticmethod(joins.multiply_vjp)

    def output_shape(self, *input_shapes: Shape) -> Shape:
        return joins.gated_shape(*input_shapes)


@dataclass(frozen=True, eq=False, repr=False)
class Concat(Operation):
    """Values side by side along the last axis, the channels.

    Examples
    --------
    >>> Concat().output_shape((8, 8, 16), (8, 8, 4))
    (8, 8, 20)
    """

    num_inputs = None
    function = staticmethod(joins.concat)
    function_vjp = staticmethod(joins.concat_vjp)

    def output_shape(self, *input_shapes: Shape) -> Shape:
        return joins.joined_shape(input_shapes)


POINTWISE_TYPES = frozenset[type[Layer]]({
    Clip,
    Dropout,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Tanh,
})  # fmt: skip
"""Layers that treat every number by itself, in the same way."""

STATELESS_TYPES = POINTWISE_TYPES | {
    Add,
    AvgPool2D,
    ChannelShuffle,
    Concat,
    Flatten,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
    Multiply,
    Softmax,
    Upsample2D,
}
"""The layers without weights, by their exact type."""
