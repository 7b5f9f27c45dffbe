"""Small models for property tests: layers of all types, weights in every representation, nested."""

# Without `from __future__ import annotations`: `composite` moves annotations into a module of its
# own, where their names cannot be looked up.

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from hypothesis.strategies import DrawFn, SearchStrategy

from minicompress.arrays import Array, DType
from minicompress.errors import CompressionError
from minicompress.integers import code_dtype, code_range, qparam_shape, scale_dtypes
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import (
    Clip,
    Dropout,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from minicompress.nn.stateless import (
    Add,
    AvgPool2D,
    ChannelShuffle,
    Concat,
    Flatten,
    GlobalAvgPool2D,
    LocalResponseNorm,
    MaxPool2D,
    Multiply,
    Upsample2D,
)
from minicompress.representation import Clustered, LowRank, Quantized, Rep, Sparse
from minicompress.testing.strategies import DTYPES, contents

ANYWHERE = (
    ReLU(),
    LeakyReLU(),
    LeakyReLU(0.3),
    Sigmoid(),
    Tanh(),
    Softmax(),
    Dropout(0.25),
    Clip(0, 6),
    Clip(-1.5),
    HardSigmoid(),
    HardSwish(),
    SiLU(),
)
PRODUCTS = {
    2: ["ir,ro->io", "ri,or->io"],
    4: ["hwir,ro->hwio", "hir,rwo->hwio", "ia,hwab,bo->hwio"],
}
"""How factors of arrays with so many axes are multiplied."""


@st.composite
def models(
    draw: DrawFn,
    input_shape: tuple[int, ...] = (5, 4, 2),
    max_layers: int = 5,
    *,
    chain: bool = False,
    single_output: bool = False,
) -> Network:
    """Networks of all layer types, with branches and joins, and weights in all representations.

    Parameters
    ----------
    input_shape : (H, W, C) or (features,)
        Of one input that every drawn network takes.
    max_layers : int
        No layer at all is drawn too.
    chain : bool
        Whether every layer reads the value before it.
    single_output : bool
        Whether values that nothing reads are flattened and joined to one output. Otherwise each of
        them is an output.

    Returns
    -------
    strategy of Network
        All weights of a network have one dtype, that of the inputs it takes, and magnitudes up to
        4; the outputs of a deep one in float16 may overflow all the same.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(models((4,)), lambda network: any(type(x) is Dropout for x in network.layers))
    layer      reads  parameters
    ----------------------------
    0 Dropout  0               0
    outputs    1
    """
    dtype = draw(st.sampled_from(DTYPES))
    layers: list[Layer] = []
    inputs: list[tuple[int, ...]] = []
    shapes = [input_shape]
    for i in range(draw(st.integers(0, max_layers))):
        join = None if chain else draw(st.sampled_from([None, None, Add(), Multiply(), Concat()]))
        first = i if chain else draw(st.sampled_from(range(i, -1, -1)))
        fitting = [v for v in range(i, -1, -1) if join and _joins(join, shapes[first], shapes[v])]
        if join and fitting:
            layers.append(join)
            inputs.append((first, draw(st.sampled_from(fitting))))
        else:
            layers.append(draw(_layers(shapes[first], dtype)))
            inputs.append((first,))
        shapes.append(layers[-1].output_shape(*(shapes[value] for value in inputs[-1])))
    unread = sorted({*range(len(shapes))} - {value for reads in inputs for value in reads})
    if single_output and len(unread) > 1:
        flat = [len(layers) + 1 + k for k in range(len(unread))]
        layers += [Flatten() for _ in unread] + [Concat()]
        inputs += [(value,) for value in unread] + [tuple(flat)]
        unread = [len(layers)]
    return Network(tuple(layers), tuple(inputs), tuple(unread))


def _joins(join: Layer, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    try:
        join.output_shape(a, b)  # type: ignore[call-arg]
    except CompressionError:
        return False
    return True


@st.composite
def reps(draw: DrawFn, shape: tuple[int, ...], dtype: DType, depth: int = 2) -> Rep:
    """Representations of arrays of a shape and dtype, or plain arrays; `depth` of them nested.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(reps((3,), np.dtype(np.float32)), lambda rep: isinstance(rep, Clustered))
    Clustered(codes=uint8[3], codebook=float32[1])
    """
    kinds = [_plain]
    if depth > 0:
        kinds += [_quantized, _sparse, _clustered]
        if len(shape) in PRODUCTS:
            kinds.append(_low_rank)
    return draw(draw(st.sampled_from(kinds))(shape, dtype, depth))


def _layers(shape: tuple[int, ...], dtype: DType) -> SearchStrategy[Layer]:
    plain = [*ANYWHERE, Flatten()]
    weighted = [_batch_norms(shape[-1], dtype), _prelus(shape[-1], dtype)]
    if len(shape) == 1:
        return st.one_of(st.sampled_from(plain), _denses(shape[0], dtype), *weighted)
    plain += [GlobalAvgPool2D(), GlobalAvgPool2D(keep_axes=True), Upsample2D((1, 2))]
    plain += [LocalResponseNorm(2, 0.5), LocalResponseNorm(3, 0.5)]
    plain += [ChannelShuffle(2 if shape[2] % 2 == 0 else 1)]
    images = [_convolutions(shape, dtype), _transposed(shape, dtype), _pools(shape)]
    return st.one_of(st.sampled_from(plain), *images, *weighted)


@st.composite
def _denses(draw: DrawFn, inputs: int, dtype: DType) -> Layer:
    outputs = draw(st.integers(1, 4))
    return Dense(draw(reps((inputs, outputs), dtype)), draw(st.none() | reps((outputs,), dtype)))


@st.composite
def _convolutions(draw: DrawFn, shape: tuple[int, ...], dtype: DType) -> Layer:
    groups = draw(st.sampled_from([g for g in (1, 2, shape[2]) if shape[2] % g == 0]))
    kernel = (*(draw(st.integers(1, min(n, 3))) for n in shape[:2]), shape[2] // groups)
    outputs = groups * draw(st.integers(1, 2))
    options: dict[str, Any] = {
        "stride": draw(st.sampled_from([1, 2, (1, 2)])),
        "padding": draw(st.sampled_from(["valid", "same", 1, ((0, 1), (2, 0))])),
        "dilation": draw(st.sampled_from([1, 2] if max(kernel[:2]) == 1 else [1])),
        "groups": groups,
    }
    return Conv2D(
        draw(reps((*kernel, outputs), dtype)), draw(st.none() | reps((outputs,), dtype)), **options
    )


@st.composite
def _transposed(draw: DrawFn, shape: tuple[int, ...], dtype: DType) -> Layer:
    groups = draw(st.sampled_from([g for g in (1, 2) if shape[2] % g == 0]))
    outputs = groups * draw(st.integers(1, 2))
    kernel = (draw(st.integers(1, 3)), 2, shape[2] // groups, outputs)
    options: dict[str, Any] = {
        "stride": draw(st.sampled_from([1, 2, (1, 2)])),
        "padding": draw(st.sampled_from(["valid", "same", ((0, 0), (1, 0))])),
        "dilation": draw(st.sampled_from([1, (1, 2)])),
    }
    if options["stride"] == 2 and options["padding"] != "same":
        options["output_padding"] = draw(st.sampled_from([0, (1, 0)]))
    bias = draw(st.none() | reps((outputs,), dtype))
    return ConvTranspose2D(draw(reps(kernel, dtype)), bias, groups=groups, **options)


@st.composite
def _prelus(draw: DrawFn, channels: int, dtype: DType) -> Layer:
    return PReLU(draw(_tame((channels,), dtype)))


@st.composite
def _pools(draw: DrawFn, shape: tuple[int, ...]) -> Layer:
    window = draw(st.integers(1, min(shape[0], 2))), draw(st.integers(1, min(shape[1], 2)))
    stride = draw(st.sampled_from([None, 1, (2, 1)]))
    padding: Any = draw(st.sampled_from(["valid", "same", 1] if min(window) > 1 else ["valid"]))
    ceil_mode = draw(st.booleans())
    if draw(st.booleans()):
        return MaxPool2D(window, stride, padding, ceil_mode)
    return AvgPool2D(window, stride, padding, ceil_mode, draw(st.booleans()))


@st.composite
def _batch_norms(draw: DrawFn, channels: int, dtype: DType) -> Layer:
    scale, offset, mean, deviation = (draw(_tame((channels,), dtype)) for _ in range(4))
    return BatchNorm(scale, offset, mean, 1 + abs(deviation), draw(st.sampled_from([1e-5, 0.125])))


def _tame(shape: tuple[int, ...], dtype: DType) -> SearchStrategy[Array]:
    kinds = st.sampled_from(["integers", "ordinary", "zeros"])
    return kinds.flatmap(lambda kind: contents(kind, dtype, shape))


def _plain(shape: tuple[int, ...], dtype: DType, depth: int) -> SearchStrategy[Rep]:
    return _tame(shape, dtype)


def _codes(shape: tuple[int, ...], dtype: DType, low: int, high: int) -> SearchStrategy[Array]:
    return npst.arrays(dtype, shape, elements=st.integers(low, high), fill=st.nothing())


@st.composite
def _quantized(draw: DrawFn, shape: tuple[int, ...], dtype: DType, depth: int) -> Rep:
    num_bits, signed = draw(st.sampled_from([2, 3, 4, 8, 16])), draw(st.booleans())
    low, high = code_range(num_bits, signed)
    code = draw(st.sampled_from([code_dtype(num_bits, signed), np.dtype(np.int64)]))
    indices = draw(st.none() | _indices(shape))
    codes: Any = draw(_codes(shape if indices is None else indices.shape, code, low, high))
    if indices is not None:
        codes = Sparse(shape, indices, codes)
    axis = draw(st.none() | st.integers(0, len(shape) - 1)) if shape else None
    block_size = None if axis is None else draw(st.sampled_from([None, 1, 2, 100]))
    grid = qparam_shape(shape, axis, block_size)
    kind = draw(st.sampled_from(scale_dtypes(dtype)))
    steps = st.sampled_from([float(kind.type(step)) for step in (0.125, 0.1, 1.0)])
    scale = draw(npst.arrays(kind, grid, elements=steps, fill=st.nothing()))
    zero_point = draw(_codes(grid, np.dtype(np.int64), -1, 1))
    return Quantized(codes, scale, zero_point, num_bits, signed, axis, block_size, dtype)


@st.composite
def _sparse(draw: DrawFn, shape: tuple[int, ...], dtype: DType, depth: int) -> Rep:
    indices = draw(_indices(shape))
    return Sparse(shape, indices, draw(reps(indices.shape, dtype, depth - 1)))


def _indices(shape: tuple[int, ...]) -> SearchStrategy[Array]:
    kept = npst.arrays(np.bool_, math.prod(shape), elements=st.booleans(), fill=st.nothing())
    return kept.map(np.flatnonzero)


@st.composite
def _clustered(draw: DrawFn, shape: tuple[int, ...], dtype: DType, depth: int) -> Rep:
    k = draw(st.integers(1, 5))
    codes = draw(_codes(shape, np.dtype(np.uint8), 0, k - 1))
    return Clustered(codes, draw(reps((k,), dtype, depth - 1)))


@st.composite
def _low_rank(draw: DrawFn, shape: tuple[int, ...], dtype: DType, depth: int) -> Rep:
    subscripts = draw(st.sampled_from(PRODUCTS[len(shape)]))
    left, output = subscripts.split("->")
    sizes = dict(zip(output, shape, strict=True))
    for letter in sorted(set(left) - {*output, ","}):
        sizes[letter] = draw(st.integers(1, 2))
    shapes = [tuple(sizes[letter] for letter in term) for term in left.split(",")]
    return LowRank(tuple(draw(reps(f, dtype, depth - 1)) for f in shapes), subscripts)
