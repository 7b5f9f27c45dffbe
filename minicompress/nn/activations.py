"""Activations and reshaping, forward and backward.

Every backward function takes the forward function's input, not its output: nothing is kept between
the two, and a layer is free to drop what it computed.
"""

from __future__ import annotations

import numpy as np

from minicompress.arrays import Array, as_float, float_array, normal_axis
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
    # Three times as fast as np.maximum, which takes a detour for a scalar operand.
    y: Array = np.clip(x, x.dtype.type(0), x.dtype.type(np.inf))
    return y


def relu_vjp(dy: Array, x: Array) -> Array:
    """The vector-Jacobian product of `relu`; its derivative at 0 is taken to be 0.

    Parameters
    ----------
    dy : ndarray like `x`
    x : ndarray
        As given to `relu`.

    Returns
    -------
    dx : ndarray like `x`

    Raises
    ------
    CompressionError
        `dy` is not of the shape and dtype of `x`.

    Examples
    --------
    >>> relu_vjp(np.array([5.0, 5.0, 5.0]), np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 5.])
    """
    x = float_array(x, "x")
    dy = gradient(dy, x.shape, x)
    dx: Array = np.multiply(dy, x > 0)
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
    For a slope of at most 1 it is the greater of ``x`` and ``negative_slope * x``.

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
    """The vector-Jacobian product of `leaky_relu`; its derivative at 0 is `negative_slope`.

    Parameters
    ----------
    dy : ndarray like `x`
    x : ndarray
        As given to `leaky_relu`.
    negative_slope : float, 0 <= negative_slope <= 1

    Returns
    -------
    dx : ndarray like `x`

    Raises
    ------
    CompressionError
        `dy` is not of the shape and dtype of `x`, or `negative_slope` lies outside of [0, 1].

    Examples
    --------
    >>> leaky_relu_vjp(np.array([4.0, 4.0]), np.array([-2.0, 2.0]), 0.25)
    array([1., 4.])
    """
    x = float_array(x, "x")
    dy = gradient(dy, x.shape, x)
    slope = x.dtype.type(as_float(negative_slope, "negative_slope", 0.0, 1.0))
    dx: Array = dy * np.where(x > 0, x.dtype.type(1), slope)
    return dx


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``, without overflow at any x.

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

    Notes
    -----
    Computed as ``e / (1 + e)`` or ``1 / (1 + e)`` with ``e = exp(-|x|) <= 1``.

    Examples
    --------
    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """
    x = float_array(x, "x")
    return _sigmoid(x.astype(computed_dtype(x), copy=False)).astype(x.dtype, copy=False)


def sigmoid_vjp(dy: Array, x: Array) -> Array:
    """The vector-Jacobian product of `sigmoid`: ``dy * s(x) * s(-x)``.

    Parameters
    ----------
    dy : ndarray like `x`
    x : ndarray
        As given to `sigmoid`.

    Returns
    -------
    dx : ndarray like `x`

    Raises
    ------
    CompressionError
        `dy` is not of the shape and dtype of `x`.

    Examples
    --------
    >>> sigmoid_vjp(np.array([4.0]), np.array([0.0]))
    array([1.])
    """
    x = float_array(x, "x")
    dy = gradient(dy, x.shape, x)
    z = x.astype(computed_dtype(x), copy=False)
    dx: Array = dy * (_sigmoid(z) * _sigmoid(np.negative(z)))
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
    y: Array = np.tanh(x.astype(computed_dtype(x), copy=False)).astype(x.dtype, copy=False)
    return y


def tanh_vjp(dy: Array, x: Array) -> Array:
    """The vector-Jacobian product of `tanh`: ``dy * (1 - tanh(x)) * (1 + tanh(x))``.

    Parameters
    ----------
    dy : ndarray like `x`
    x : ndarray
        As given to `tanh`.

    Returns
    -------
    dx : ndarray like `x`

    Raises
    ------
    CompressionError
        `dy` is not of the shape and dtype of `x`.

    Examples
    --------
    >>> tanh_vjp(np.array([3.0]), np.array([0.0]))
    array([3.])
    """
    x = float_array(x, "x")
    dy = gradient(dy, x.shape, x)
    y = np.tanh(x.astype(computed_dtype(x), copy=False))
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
    The maximum is subtracted first, which changes nothing but that nothing overflows.

    Examples
    --------
    >>> softmax(np.array([[1000.0, 1000.0]]))
    array([[0.5, 0.5]])
    """
    x = float_array(x, "x")
    axis = normal_axis(axis, "axis", x.ndim)
    return _softmax(x.astype(computed_dtype(x), copy=False), axis).astype(x.dtype, copy=False)


def softmax_vjp(dy: Array, x: Array, axis: int = -1) -> Array:
    """The vector-Jacobian product of `softmax`: ``y * (dy - sum(dy * y))``.

    Parameters
    ----------
    dy : ndarray like `x`
    x, axis
        As given to `softmax`.

    Returns
    -------
    dx : ndarray like `x`

    Raises
    ------
    CompressionError
        As `softmax`, or `dy` is not of the shape and dtype of `x`.

    Examples
    --------
    >>> softmax_vjp(np.array([1.0, 0.0]), np.array([3.0, 3.0]))
    array([ 0.25, -0.25])
    """
    x = float_array(x, "x")
    axis = normal_axis(axis, "axis", x.ndim)
    dy = gradient(dy, x.shape, x)
    y = _softmax(x.astype(computed_dtype(x), copy=False), axis)
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
        Possibly a view of `x`.

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
    return x.reshape(len(x), int(np.prod(x.shape[1:])))


def flatten_vjp(dy: Array, x: Array) -> Array:
    """The vector-Jacobian product of `flatten`: the shape goes back.

    Parameters
    ----------
    dy : (N, size of an example) ndarray of the dtype of `x`
    x : (N, ...) ndarray
        As given to `flatten`; only its shape and dtype matter.

    Returns
    -------
    dx : ndarray of the shape of `x`
        Possibly a view of `dy`.

    Raises
    ------
    CompressionError
        As `flatten`, or `dy` is not of the output's shape.

    Examples
    --------
    >>> flatten_vjp(np.zeros((2, 12)), np.zeros((2, 3, 4))).shape
    (2, 3, 4)
    """
    x = float_array(x, "x")
    normal_axis(0, "axis", x.ndim)
    return gradient(dy, (len(x), int(np.prod(x.shape[1:]))), x).reshape(x.shape)


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    y: Array = np.where(x >= 0, x.dtype.type(1), e) / (1 + e)
    return y


def _softmax(x: Array, axis: int) -> Array:
    if x.shape[axis] == 0:
        return np.empty(x.shape, x.dtype)
    y: Array = np.exp(x - x.max(axis, keepdims=True))
    y /= y.sum(axis, keepdims=True)
    return y


def computed_dtype(x: Array) -> np.dtype[np.float32] | np.dtype[np.float64]:
    """float16 is computed in float32."""
    return np.dtype(np.float64) if x.dtype == np.float64 else np.dtype(np.float32)
