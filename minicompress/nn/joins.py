"""Operations that read several values: sum, product, and side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minicompress.arrays import Array, float_array, same_dtype, widened
from minicompress.errors import CompressionError
from minicompress.nn.kernels.windows import gradient
from minicompress.nn.layer import Shape


def add(*xs: Array) -> Array:
    """The sum of arrays of one shape, added from left to right.

    Parameters
    ----------
    *xs : (N, ...) ndarrays of float16, float32 or float64
        At least one, all of one shape and dtype.

    Returns
    -------
    y : (N, ...) ndarray
        float16 is added in float32 and rounded once.

    Raises
    ------
    CompressionError
        Shapes or dtypes differ.

    Examples
    --------
    >>> add(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]))
    array([[4., 6.]])
    """
    first, *others = _operands(xs)
    equal_shapes([first.shape, *(x.shape for x in others)])
    total: Array = widened(first)
    for x in others:
        total = total + x
    return total.astype(first.dtype, copy=False)


def add_vjp(dy: Array, *xs: Array) -> tuple[Array, ...]:
    """The vector-Jacobian product of `add`: `dy` for each of them."""
    return (gradient(dy, xs[0].shape, xs[0]),) * len(xs)


def multiply(a: Array, b: Array) -> Array:
    """The product of two arrays of one shape, or of images and one pixel for each.

    Parameters
    ----------
    a, b : (N, ...) ndarrays of float16, float32 or float64
        Of one shape and dtype; or one is (N, H, W, C) and the other, a gate, (N, 1, 1, C).

    Returns
    -------
    y : (N, ...) ndarray

    Raises
    ------
    CompressionError
        Shapes or dtypes do not fit.

    Examples
    --------
    >>> multiply(np.ones((1, 2, 2, 1)), np.full((1, 1, 1, 1), 3.0))[0, :, :, 0]
    array([[3., 3.],
           [3., 3.]])
    """
    a, b = _batches((a, b))
    gated_shape(a.shape[1:], b.shape[1:])
    y: Array = a * b
    return y


def multiply_vjp(dy: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """The vector-Jacobian product of `multiply`: ``dy * b`` and ``dy * a``, summed for a gate."""
    a, b = _batches((a, b))
    dy = widened(gradient(dy, (len(a), *gated_shape(a.shape[1:], b.shape[1:])), a))
    return _sum_to(dy * b, a), _sum_to(dy * a, b)


def concat(*xs: Array) -> Array:
    """Arrays side by side along the last axis.

    Parameters
    ----------
    *xs : (N, ..., C_i) ndarrays of float16, float32 or float64
        At least one, of one dtype, and of one shape but for the last axis.

    Returns
    -------
    y : (N, ..., sum of C_i) ndarray

    Raises
    ------
    CompressionError
        Shapes or dtypes do not fit.

    Examples
    --------
    >>> concat(np.ones((1, 2)), np.zeros((1, 1)))
    array([[1., 1., 0.]])
    """
    arrays = _batches(xs)
    joined_shape([x.shape[1:] for x in arrays])
    return np.concatenate(arrays, axis=-1)


def concat_vjp(dy: Array, *xs: Array) -> tuple[Array, ...]:
    """The vector-Jacobian product of `concat`: `dy` cut where the arrays meet."""
    arrays = _batches(xs)
    shape = joined_shape([x.shape[1:] for x in arrays])
    dy = gradient(dy, (len(arrays[0]), *shape), arrays[0])
    ends = np.cumsum([x.shape[-1] for x in arrays[:-1]])
    return tuple(np.split(dy, ends, axis=-1))


def equal_shapes(shapes: Sequence[Shape]) -> Shape:
    """Check that values that are added have one shape."""
    if not shapes or any(tuple(shape) != tuple(shapes[0]) for shape in shapes):
        raise CompressionError(
            f"one input or more, all of one shape, are needed, not {_listed(shapes)}"
        )
    return tuple(shapes[0])


def gated_shape(a: Shape, b: Shape) -> Shape:
    """The shape of a product, without the batch axis."""
    for image, gate in ((a, b), (b, a)):
        if a == b or (len(image) == 3 and tuple(gate) == (1, 1, image[2])):
            return tuple(image)
    raise CompressionError(
        f"the inputs must have the same shape, or one must be a gate (1, 1, C), not {a} and {b}"
    )


def joined_shape(shapes: Sequence[Shape]) -> Shape:
    """The shape of values side by side."""
    if not shapes or any(not shape or shape[:-1] != shapes[0][:-1] for shape in shapes):
        raise CompressionError(
            "one input or more, all of one shape but for the last axis, are needed, "
            f"not {_listed(shapes)}"
        )
    return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))


def _listed(shapes: Sequence[Shape]) -> str:
    return " and ".join(map(str, shapes))


def _operands(xs: Sequence[Array]) -> list[Array]:
    if not xs:
        raise CompressionError("there must be one array or more")
    arrays = [float_array(x, f"xs[{i}]") for i, x in enumerate(xs)]
    same_dtype(**{f"xs[{i}]": x for i, x in enumerate(arrays)})
    return arrays


def _batches(xs: Sequence[Array]) -> list[Array]:
    """Arrays with a batch axis, of one length."""
    arrays = _operands(xs)
    if any(x.ndim == 0 or len(x) != len(arrays[0]) for x in arrays):
        raise CompressionError(
            f"all arrays must be batches of one length, not {_listed([x.shape for x in arrays])}"
        )
    return arrays


def _sum_to(dx: Array, x: Array) -> Array:
    if dx.shape != x.shape:
        dx = dx.sum((1, 2), keepdims=True)
    return dx.astype(x.dtype, copy=False)
