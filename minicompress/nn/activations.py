"""Activations and reshaping, forward and backward.

``f_vjp(dy, x)`` takes the input of ``f(x)``, not its output, and gives the gradient by `x`. All
arrays have the dtype of `x`; float16 is computed in float32 and rounded once.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from minicompress.arrays import Array, as_float, float_array, normal_axis, widened
from minicompress.nn.kernels.windows import gradient


def relu(x: Array) -> Array:
    """The positive part: ``max(x, 0)``.

    Parameters
    ----------
    x : ndarray of float16, float32 or float64, any shape

    Returns
    -------
    y : ndarray like `x`
        NaN stays NaN.

    Raises
    ------
    CompressionError
        `x` is not a float array.

    Examples
    --------
    >>> relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    x = float_array(x, "x")
    # np.maximum with a scalar takes three times as long.
    y: Array = np.clip(x, x.dtype.type(0), x.dtype.type(np.inf))
    return y


def relu_vjp(dy: Array, x: Array) -> Array:
    """The vector-Jacobian product of `relu`: ``dy`` where ``x > 0``, else 0."""
    x = float_array(x, "x")
    dx: Array = np.multiply(gradient(dy, x.shape, x), x > 0)
    return dx


def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """``x`` where it is positive, ``negative_slope * x`` elsewhere.

    Parameters
    ----------
    x : ndarray of float16, float32 or float64, any shape
    negative_slope : float, 0 <= negative_slope <= 1

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    CompressionError
        `x` is not a float array or `negative_slope` lies outside of [0, 1].

    Notes
    -----
    Since the slope is at most 1, it is the greater of ``x`` and ``negative_slope * x``.

    Examples
    --------
    >>> leaky_relu(np.array([-2.0, 2.0]), 0.25)
    array([-0.5,  2. ])
    """
    x = float_array(x, "x")
    slope = x.dtype.type(as_float(negative_slope, "negative_slope", 0.0, 1.0))
    y: Array = x * slope
    return np.maximum(x, y, out=y) if x.ndim else np.maximum(x, y)


def leaky_relu_vjp(dy: Array, x: Array, negative_slope: float = 0.01) -> Array:
    """The vector-Jacobian product of `leaky_relu`: ``dy`` where ``x > 0``, else times the slope."""
    x = float_array(x, "x")
    dy = gradient(dy, x.shape, x)
    slope = x.dtype.type(as_float(negative_slope, "negative_slope", 0.0, 1.0))
    dx: Array = dy * np.where(x > 0, x.dtype.type(1), slope)
    return dx


def sigmoid(x: Array) -> Array:
    """The logistic function, ``1 / (1 + exp(-x))``, without overflow.

    Parameters
    ----------
    x : ndarray of float16, float32 or float64, any shape

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    CompressionError
        `x` is not a float array.

    Examples
    --------
    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """
    x = float_array(x, "x")
    y: Array = special.expit(widened(x)).astype(x.dtype, copy=False)
    return y


def sigmoid_vjp(dy: Array, x: Array) -> Array:
    """The vector-Jacobian product of `sigmoid`: ``dy * sigmoid(x) * sigmoid(-x)``."""
    x = float_array(x, "x")
    dy, z = gradient(dy, x.shape, x), widened(x)
    dx: Array = dy * (special.expit(z) * special.expit(-z))
    return dx.astype(x.dtype, copy=False)


def tanh(x: Array) -> Array:
    """The hyperbolic tangent.

    Parameters
    ----------
    x : ndarray of float16, float32 or float64, any shape

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    CompressionError
        `x` is not a float array.

    Examples
    --------
    >>> tanh(np.array([0.0, 1000.0]))
    array([0., 1.])
    """
    x = float_array(x, "x")
    y: Array = np.tanh(widened(x)).astype(x.dtype, copy=False)
    return y


def tanh_vjp(dy: Array, x: Array) -> Array:
    """The vector-Jacobian product of `tanh`: ``dy * (1 - tanh(x)) * (1 + tanh(x))``."""
    x = float_array(x, "x")
    dy, y = gradient(dy, x.shape, x), np.tanh(widened(x))
    dx: Array = (dy * ((1 - y) * (1 + y))).astype(x.dtype, copy=False)
    return dx


def softmax(x: Array, axis: int = -1) -> Array:
    """Positive numbers that add up to 1 along an axis: ``exp(x) / sum(exp(x))``.

    Parameters
    ----------
    x : ndarray of float16, float32 or float64, at least one axis
    axis : int

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    CompressionError
        `x` is not a float array or has no such axis.

    Notes
    -----
    The maximum is subtracted from `x` first: the result is the same, and nothing overflows.

    Examples
    --------
    >>> softmax(np.array([[1000.0, 1000.0]]))
    array([[0.5, 0.5]])
    """
    x = float_array(x, "x")
    axis = normal_axis(axis, "axis", x.ndim)
    return _softmax(x, axis).astype(x.dtype, copy=False)


def softmax_vjp(dy: Array, x: Array, axis: int = -1) -> Array:
    """The vector-Jacobian product of `softmax`: ``y * (dy - sum(dy * y))``, y its output."""
    x = float_array(x, "x")
    axis = normal_axis(axis, "axis", x.ndim)
    dy = gradient(dy, x.shape, x)
    y = _softmax(x, axis)
    dx: Array = y * (dy - (dy * y).sum(axis, keepdims=True))
    return dx.astype(x.dtype, copy=False)


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


def _softmax(x: Array, axis: int) -> Array:
    """In the dtype of the computation; scipy refuses an axis of length 0."""
    y: Array = special.softmax(widened(x), axis) if x.shape[axis] else x
    return y
