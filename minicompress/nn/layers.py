"""Convolutions and dense layers, and how a compressed weight runs.

Images are NHWC, kernels HWIO (kh, kw, in // groups, out), dense weights (in, out). A weight may be
a representation. A `LowRank` weight runs as its factors one after the other (see `factor_layers`),
so their product is never formed; any other is decoded when it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from minicompress.arrays import FLOATS, Array, as_int, float_array, frozen
from minicompress.errors import CompressionError
from minicompress.nn.convolution import (
    conv2d,
    conv2d_vjp,
    conv_transpose2d,
    conv_transpose2d_vjp,
    dense,
    dense_vjp,
    transposed_geometry,
)
from minicompress.nn.factors import rearranged
from minicompress.nn.kernels.windows import (
    Geometry,
    Padding,
    Pair,
    geometry,
    normal_padding,
    pair,
    resolve_padding,
)
from minicompress.nn.layer import Layer, Pullback, Shape, image_shape
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import PReLU
from minicompress.nn.stateless import STATELESS_TYPES
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

AnyLayer = TypeVar("AnyLayer", bound=Layer)


@dataclass(frozen=True, eq=False, repr=False)
class _Affine(Layer):
    """What `Conv2D` and `Dense` share: a weight, whose last axis is the outputs, and a bias."""

    weight: Rep
    bias: Rep | None = None

    ndim: ClassVar[int]
    option_names: ClassVar[tuple[str, ...]] = ()
    function: ClassVar[Callable[..., Array]]
    function_vjp: ClassVar[Callable[..., tuple[Array | None, Array, Array]]]

    def __post_init__(self) -> None:
        weight = _parameter(self.weight, "weight", self.ndim)
        self._set(weight=weight)
        if self.bias is None:
            return
        bias, outputs = _parameter(self.bias, "bias", 1), shape_of(weight)[-1:]
        if shape_of(bias) != outputs or dtype_of(bias) != dtype_of(weight):
            raise CompressionError(
                f"bias must be {dtype_of(weight)} of shape {outputs}, one for each output of "
                f"weight, not {dtype_of(bias)} of shape {shape_of(bias)}"
            )
        self._set(bias=bias)

    def parameters(self) -> dict[str, Rep]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def options(self) -> dict[str, Any]:
        """What the operation takes beside arrays; a derived layer may have fields of its own."""
        return {name: getattr(self, name) for name in self.option_names}

    def forward(self, x: Array) -> Array:
        for part in plain_layers(self):
            assert isinstance(part, _Affine)  # as its parts are
            x = type(part).function(x, *part._arrays(), **part.options())
        return x

    def vjp(
        self, x: Array, *, rng: np.random.Generator | None = None, input_gradient: bool = True
    ) -> tuple[Array, Pullback]:
        weight, bias = self._arrays()

        def pullback(dy: Array) -> tuple[Array | None, dict[str, Array]]:
            dx, dweight, dbias = type(self).function_vjp(
                dy, x, weight, **self.options(), input_gradient=input_gradient
            )
            return dx, {"weight": dweight} | ({} if bias is None else {"bias": dbias})

        return type(self).function(x, weight, bias, **self.options()), pullback

    def _arrays(self) -> tuple[Array, Array | None]:
        """Weight and bias, which must be plain arrays: representations have no gradient."""
        for name, value in self.parameters().items():
            if not isinstance(value, np.ndarray):
                raise CompressionError(
                    f"{name} is {type(value).__name__}, and only a plain array has a gradient: "
                    "take decoded(model)"
                )
        return self.weight, self.bias  # type: ignore[return-value]


@dataclass(frozen=True, eq=False, repr=False)
class _Convolution(_Affine):
    """What `Conv2D` and `ConvTranspose2D` share: the options of their windows."""

    _: KW_ONLY
    stride: Pair = 1
    padding: Padding = "valid"
    dilation: Pair = 1
    groups: int = 1

    ndim: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        groups, outputs = as_int(self.groups, "groups", 1), shape_of(self.weight)[3]
        if outputs % groups:
            raise CompressionError(f"groups must divide the {outputs} outputs, not be {groups}")
        stride, dilation = pair(self.stride, "stride", 1), pair(self.dilation, "dilation", 1)
        padding = normal_padding(self.padding)
        self._set(stride=stride, padding=padding, dilation=dilation, groups=groups)


@dataclass(frozen=True, eq=False, repr=False)
class Conv2D(_Convolution):
    """A convolution as a layer: `conv2d` with its weight, bias and options.

    Parameters
    ----------
    weight : (kh, kw, in // groups, out) ndarray or rep
    bias : (out,) ndarray or rep, optional
    stride, dilation : int or (int, int)
        Kept as pairs.
    padding : "valid", "same", int, (ph, pw) or ((top, bottom), (left, right))
        Numbers are kept in the last form.
    groups : int
        Divides the inputs and the outputs; group g of the outputs reads group g of the inputs.

    Raises
    ------
    CompressionError
        A shape, dtype or number is not as above.

    Examples
    --------
    >>> layer = Conv2D(np.ones((3, 3, 1, 8)), stride=2, padding="same")
    >>> layer.output_shape((28, 28, 1)), layer.stride
    ((14, 14, 8), (2, 2))
    """

    option_names = ("stride", "padding", "dilation", "groups")
    function = staticmethod(conv2d)
    function_vjp = staticmethod(conv2d_vjp)

    @classmethod
    def from_oihw(cls, weight: Array, bias: Array | None = None, **options: Any) -> Conv2D:
        """A layer from a kernel (out, in // groups, kh, kw), the layout of PyTorch and ONNX.

        Examples
        --------
        >>> Conv2D.from_oihw(np.ones((8, 1, 5, 3)), stride=2).weight.shape
        (5, 3, 1, 8)
        """
        kernel = float_array(weight, "weight", ndim=4)
        return cls(kernel.transpose(2, 3, 1, 0), bias, **options)

    def geometry(self, input_hw: Shape) -> Geometry:
        """Where the windows lie in an image of this height and width."""
        kernel = shape_of(self.weight)[:2]
        return geometry(input_hw, kernel, self.stride, self.padding, self.dilation)

    def output_shape(self, input_shape: Shape) -> Shape:
        _, _, channels, outputs = shape_of(self.weight)
        image = image_shape(input_shape, channels * self.groups)
        return *self.geometry(image[:2]).output, outputs


@dataclass(frozen=True, eq=False, repr=False)
class ConvTranspose2D(_Convolution):
    """A transposed convolution as a layer: `conv_transpose2d` with its weight, bias and options.

    Parameters
    ----------
    weight : (kh, kw, in // groups, out) ndarray or rep
    bias : (out,) ndarray or rep, optional
    stride, padding, output_padding, dilation, groups
        As for `conv_transpose2d`.

    Raises
    ------
    CompressionError
        A shape, dtype or number is not as above.

    Examples
    --------
    >>> layer = ConvTranspose2D(np.ones((2, 2, 16, 8)), stride=2)
    >>> layer.output_shape((7, 7, 16))
    (14, 14, 8)
    """

    _: KW_ONLY
    output_padding: Pair = 0

    option_names = ("stride", "padding", "output_padding", "dilation", "groups")
    function = staticmethod(conv_transpose2d)
    function_vjp = staticmethod(conv_transpose2d_vjp)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(output_padding=pair(self.output_padding, "output_padding", 0))

    def geometry(self, input_hw: Shape) -> tuple[tuple[int, int], Geometry]:
        """The output's height and width, and the windows of the convolution that goes back."""
        kernel = shape_of(self.weight)[:2]
        return transposed_geometry(
            input_hw, kernel, self.stride, self.padding, self.output_padding, self.dilation
        )

    def output_shape(self, input_shape: Shape) -> Shape:
        _, _, channels, outputs = shape_of(self.weight)
        image = image_shape(input_shape, channels * self.groups)
        return *self.geometry(image[:2])[0], outputs


@dataclass(frozen=True, eq=False, repr=False)
class Dense(_Affine):
    """A fully connected layer: ``x @ weight + bias``.

    Parameters
    ----------
    weight : (in, out) ndarray or rep
    bias : (out,) ndarray or rep, optional

    Raises
    ------
    CompressionError
        A shape or dtype is not as above.

    Examples
    --------
    >>> Dense(np.ones((2, 3)), np.zeros(3)).forward(np.array([[1.0, 2.0]]))
    array([[3., 3., 3.]])
    """

    ndim: ClassVar[int] = 2
    function = staticmethod(dense)
    function_vjp = staticmethod(dense_vjp)

    @classmethod
    def from_out_in(cls, weight: Array, bias: Array | None = None) -> Dense:
        """A layer from a matrix (out, in), the layout of PyTorch and of ONNX's Gemm.

        Examples
        --------
        >>> Dense.from_out_in(np.ones((10, 784))).weight.shape
        (784, 10)
        """
        return cls(float_array(weight, "weight", ndim=2).T, bias)

    def output_shape(self, input_shape: Shape) -> Shape:
        inputs, outputs = shape_of(self.weight)
        if tuple(input_shape) != (inputs,):
            raise CompressionError(f"the input must have shape ({inputs},), not {input_shape}")
        return (outputs,)


LAYER_TYPES: frozenset[type[Layer]] = STATELESS_TYPES | {
    BatchNorm,
    Conv2D,
    ConvTranspose2D,
    Dense,
    PReLU,
}
"""The layers that are known, by their exact type: a derived one may compute something else."""


# Running a compressed weight --------------------------------------------------------------------


def factor_layers(layer: Layer) -> tuple[Layer, ...]:
    """The chain of layers that a layer with a `LowRank` weight stands for.

    Parameters
    ----------
    layer : Layer

    Returns
    -------
    tuple of Layer
        Their weights are the factors, with their axes moved; a factor that is a representation
        stays one. The last layer has the bias. A layer whose weight is not `LowRank`, or whose type
        is not known, is returned as it is. If the subscripts have no such chain, or `groups` is not
        1, it is returned with its weight decoded.

    Notes
    -----
    - "ir,ro->io": two dense layers (Denil et al., 2013).
    - "hwir,ro->hwio": a convolution, then one of 1 x 1 (Zhang et al., 2016).
    - "hir,rwo->hwio": a convolution along the columns, then one along the rows, each with its part
      of stride, padding and dilation (Jaderberg et al., 2014).
    - "ia,hwab,bo->hwio": 1 x 1, the core, 1 x 1 (Kim et al., 2016). A 1 x 1 kernel without bias
      maps zeros to zeros, so the core can do the padding.

    Examples
    --------
    >>> product = LowRank((np.ones((3, 8, 2)), np.ones((2, 3, 16))), "hir,rwo->hwio")
    >>> for part in factor_layers(Conv2D(product, stride=2, padding="same")):
    ...     print(part.weight.shape, part.stride)
    (3, 1, 8, 2) (2, 1)
    (1, 3, 2, 16) (1, 2)
    """
    if type(layer) not in LAYER_TYPES or not isinstance(layer, Conv2D | Dense):
        return (layer,)
    if not isinstance(layer.weight, LowRank):
        return (layer,)
    match layer, layer.weight.subscripts, layer.weight.factors:
        case Dense(), "ir,ro->io", (a, b):
            chain: list[Layer] = [Dense(a), Dense(b, layer.bias)]
        case Conv2D(groups=1), "hwir,ro->hwio", (a, b):
            chain = [_with(layer, a), Conv2D(_pointwise(b), layer.bias)]
        case Conv2D(groups=1), "hir,rwo->hwio", (a, b):
            chain = _columns_then_rows(layer, a, b)
        case Conv2D(groups=1), "ia,hwab,bo->hwio", (a, core, b):
            chain = [Conv2D(_pointwise(a)), _with(layer, core), Conv2D(_pointwise(b), layer.bias)]
        case _:
            chain = [dataclasses.replace(layer, weight=decode(layer.weight))]
    return tuple(part for link in chain for part in factor_layers(link))  # factors nest, too


def plain_layers(layer: Layer) -> tuple[Layer, ...]:
    """The layers of plain arrays that a layer runs as: `factor_layers`, each decoded."""
    return tuple(decoded_layer(part) for part in factor_layers(layer))


def decoded_layer(layer: AnyLayer) -> AnyLayer:
    """The layer with every weight decoded; the same layer if all are plain arrays.

    Examples
    --------
    >>> layer = Dense(LowRank((np.ones((2, 1)), np.ones((1, 3))), "ir,ro->io"))
    >>> decoded_layer(layer).weight.shape
    (2, 3)
    """
    packed = {n: v for n, v in layer.parameters().items() if not isinstance(v, np.ndarray)}
    if not packed:
        return layer
    return dataclasses.replace(layer, **{name: decode(rep) for name, rep in packed.items()})


def _columns_then_rows(layer: Conv2D, a: Rep, b: Rep) -> list[Layer]:
    """The two convolutions of a spatially separated kernel, (kh, 1) and (1, kw)."""
    (sh, sw), (dh, dw) = pair(layer.stride, "stride", 1), pair(layer.dilation, "dilation", 1)
    above = beside = layer.padding  # a word means the same on each axis
    if not isinstance(layer.padding, str):
        vertical, horizontal = resolve_padding(layer.padding, (1, 1), (1, 1))
        above, beside = (vertical, (0, 0)), ((0, 0), horizontal)
    columns, rows = rearranged(a, (0, None, 1, 2)), rearranged(b, (None, 1, 0, 2))
    return [
        Conv2D(columns, stride=(sh, 1), padding=above, dilation=(dh, 1)),
        Conv2D(rows, layer.bias, stride=(1, sw), padding=beside, dilation=(1, dw)),
    ]


def _with(layer: Conv2D, kernel: Rep) -> Conv2D:
    """The same convolution with another kernel, and without the bias, which the last layer has."""
    return dataclasses.replace(layer, weight=kernel, bias=None)


def _pointwise(matrix: Rep) -> Rep:
    """A matrix as a kernel of 1 x 1."""
    return rearranged(matrix, (None, None, 0, 1))


def _parameter(value: Rep, name: str, ndim: int) -> Rep:
    """A weight checked and, where it is an array, frozen."""
    if not isinstance(value, LowRank | Sparse | Quantized | Clustered):
        return frozen(float_array(value, name, ndim=ndim))
    if len(shape_of(value)) != ndim or dtype_of(value) not in FLOATS:
        raise CompressionError(
            f"{name} must stand for a float array of {ndim} dimensions, not for one of shape "
            f"{shape_of(value)} and dtype {dtype_of(value)}"
        )
    return value
