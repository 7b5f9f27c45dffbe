"""Flat rows, larger images, shuffled channels, and normalization across channels."""

from __future__ import annotations

import math

import numpy as np

from minicompress.arrays import Array, as_int, float_array, normal_axis, widened
from minicompress.errors import CompressionError
from minicompress.nn.kernels.windows import Pair, gradient, image_array, pair


def flatten(x: Array) -> Array:
    """Each example as one row, its entries in C order.

    Parameters
    ----------
    x : (N, ...) ndarray of float16, float32 or float64

    Returns
    -------
    y : (N, size of an example) ndarray of the dtype of `x`
        A view of `x` where one exists.

    Raises
    ------
    CompressionError
        `x` is not a float array or has no axis.

    Examples
    --------
    >>> flatten(np.zeros((2, 3, 4))).shape
    (2, 12)
    """
    x = float_array(x, "x")
    normal_axis(0, "axis", x.ndim)
    return x.reshape(len(x), math.prod(x.shape[1:]))


def flatten_vjp(dy: Array, x: Array) -> Array:
    """The vector-Jacobian product of `flatten`: `dy` in the shape of `x`."""
    x = float_array(x, "x")
    normal_axis(0, "axis", x.ndim)
    return gradient(dy, (len(x), math.prod(x.shape[1:])), x).reshape(x.shape)


def upsample2d(x: Array, factor: Pair) -> Array:
    """Every pixel repeated: nearest-neighbour interpolation by a whole factor.

    Parameters
    ----------
    x : (N, H, W, C) ndarray of float16, float32 or float64
    factor : int or (int, int)

    Returns
    -------
    y : (N, H * factor, W * factor, C) ndarray of the dtype of `x`

    Raises
    ------
    CompressionError
        `x` is not a batch of images, or a factor is not a positive int.

    Examples
    --------
    >>> upsample2d(np.array([1.0, 2.0]).reshape(1, 1, 2, 1), 2)[0, :, :, 0]
    array([[1., 1., 2., 2.],
           [1., 1., 2., 2.]])
    """
    x, (down, across) = image_array(x), pair(factor, "factor", 1)
    return x.repeat(down, axis=1).repeat(across, axis=2)


def upsample2d_vjp(dy: Array, x: Array, factor: Pair) -> Array:
    """The vector-Jacobian product of `upsample2d`: the sum over the copies of each pixel."""
    x, (down, across) = image_array(x), pair(factor, "factor", 1)
    n, h, w, c = x.shape
    dy = widened(gradient(dy, (n, h * down, w * across, c), x))
    dx: Array = dy.reshape(n, h, down, w, across, c).sum((2, 4))
    return dx.astype(x.dtype, copy=False)


def channel_shuffle(x: Array, groups: int) -> Array:
    """Entry i of group g of the channels becomes entry g of group i.

    Parameters
    ----------
    x : (N, H, W, C) ndarray of float16, float32 or float64
    groups : int
        Divides C.

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    CompressionError
        `groups` does not divide the channels.

    Examples
    --------
    >>> channel_shuffle(np.arange(6.0).reshape(1, 1, 1, 6), 2).ravel()
    array([0., 3., 1., 4., 2., 5.])
    """
    x, groups = image_array(x), as_int(groups, "groups", 1)
    if x.shape[3] % groups:
        raise CompressionError(f"groups must divide the {x.shape[3]} channels, not be {groups}")
    return shuffled(x, groups)


def shuffled(x: Array, groups: int) -> Array:
    """The same for an array of any dtype, unchecked."""
    *pixels, c = x.shape
    return x.reshape(*pixels, groups, c // groups).swapaxes(-1, -2).reshape(x.shape)


def channel_shuffle_vjp(dy: Array, x: Array, groups: int) -> Array:
    """The vector-Jacobian product of `channel_shuffle`: the shuffle of C / groups groups."""
    dy = gradient(dy, x.shape, x)
    return channel_shuffle(dy, x.shape[3] // groups) if x.shape[3] else dy


def local_response_norm(
    x: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Array:
    """Each channel divided by a power of the squares of the channels around it.

    ``y[c] = x[c] / (bias + alpha / size * sum of x[k] ** 2) ** beta``, where k goes from
    ``c - (size - 1) // 2`` to ``c + size // 2``, as far as there are channels.

    Parameters
    ----------
    x : (N, H, W, C) ndarray of float16, float32 or float64
    size : int
    alpha, beta, bias : float

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    CompressionError
        `x` is not a batch of images.

    Examples
    --------
    >>> local_response_norm(np.ones((1, 1, 1, 3)), 3, alpha=3.0, beta=1.0).ravel()
    array([0.33333333, 0.25      , 0.33333333])
    """
    x, size = image_array(x), as_int(size, "size", 1)
    z = widened(x)
    y: Array = z * _powers(z, size, alpha, beta, bias)
    return y.astype(x.dtype, copy=False)


def local_response_norm_vjp(
    dy: Array, x: Array, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Array:
    """The vector-Jacobian product of `local_response_norm`.

    With ``s = bias + alpha / size * window_sum(x ** 2)``, it is ``dy * s ** -beta - 2 * alpha *
    beta / size * x * adjoint_window_sum(dy * x * s ** (-beta - 1))``.
    """
    x, size = image_array(x), as_int(size, "size", 1)
    z, dy = widened(x), widened(gradient(dy, x.shape, x))
    inner = _window_sums(
        dy * z * _powers(z, size, alpha, beta + 1, bias), size // 2, (size - 1) // 2
    )
    dx: Array = dy * _powers(z, size, alpha, beta, bias)
    dx -= z.dtype.type(2 * alpha * beta / size) * z * inner
    return dx.astype(x.dtype, copy=False)


def _powers(z: Array, size: int, alpha: float, beta: float, bias: float) -> Array:
    sums = _window_sums(z * z, (size - 1) // 2, size // 2)
    powers: Array = (z.dtype.type(bias) + z.dtype.type(alpha / size) * sums) ** z.dtype.type(-beta)
    return powers


def _window_sums(x: Array, before: int, after: int) -> Array:
    """For each channel the sum from `before` channels before it to `after` channels behind it."""
    channels = x.shape[-1]
    total: Array = np.zeros_like(x)
    for shift in range(-min(before, channels), min(after, channels) + 1):
        here, there = (
            slice(max(-shift, 0), channels - max(shift, 0)),
            slice(max(shift, 0), channels - max(-shift, 0)),
        )
        total[..., here] += x[..., there]
    return total
