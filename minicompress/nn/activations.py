"""Activations, forward and backward.

``f_vjp(dy, x)`` takes the input of ``f(x)``, not its output, and gives the gradient by `x`. All
arrays have the dtype of `x`; float16 is computed in float32 and rounded once.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from minicompress.arrays import Array, as_float, float_array, same_dtype, widened
from minicompress.errors import CompressionError
from minicompress.nn.kernels.windows import column_sums, gradient


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


def clip(x: Array, low: float = -math.inf, high: float = math.inf) -> Array:
    """``min(max(x, low), high)``.

    Parameters
    ----------
    x : ndarray of float16, float32 or float64, any shape
    low, high : float, low <= high
        Rounded to the dtype of `x`; infinite for no limit.

    Returns
    -------
    y : ndarray like `x`
        NaN stays NaN.

    Raises
    ------
    CompressionError
        `x` is not a float array, or `low` is greater than `high`.

    Examples
    --------
    >>> clip(np.array([-1.0, 2.0, 7.0]), 0, 6)
    array([0., 2., 6.])
    """
    x, (low, high) = float_array(x, "x"), limits(low, high)
    with np.errstate(over="ignore"):  # a limit beyond float16 is no limit
        y: Array = np.clip(x, x.dtype.type(low), x.dtype.type(high))
    return y


def clip_vjp(dy: Array, x: Array, low: float = -math.inf, high: float = math.inf) -> Array:
    """The vector-Jacobian product of `clip`: ``dy`` where ``low < x < high``, else 0."""
    x, (low, high) = float_array(x, "x"), limits(low, high)
    dx: Array = np.multiply(gradient(dy, x.shape, x), (x > low) & (x < high))
    return dx


def limits(low: Any, high: Any) -> tuple[float, float]:
    """Check the limits of `clip`."""
    for name, value in (("low", low), ("high", high)):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or math.isnan(value):
            raise CompressionError(f"{name} must be a number or infinite, not {value!r}")
    if low > high:
        raise CompressionError(f"low must not be greater than high, not {low} and {high}")
    try:
        return float(low), float(high)
    except OverflowError:
        raise CompressionError("low and high must be floats, not ints beyond all floats") from None


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
    return _times(dy, x, lambda z: special.expit(z) * special.expit(-z))


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
    return _times(dy, x, lambda z: (1 - np.tanh(z)) * (1 + np.tanh(z)))


def hard_sigmoid(x: Array, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """``min(max(alpha * x + beta, 0), 1)``.

    Parameters
    ----------
    x : ndarray of float16, float32 or float64, any shape
    alpha, beta : float
        The defaults are those of ONNX.

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    CompressionError
        `x` is not a float array.

    Examples
    --------
    >>> hard_sigmoid(np.array([-4.0, 0.0, 1.0]), 0.25)
    array([0.  , 0.5 , 0.75])
    """
    x = float_array(x, "x")
    return _hard_sigmoid(widened(x), alpha, beta).astype(x.dtype, copy=False)


def hard_sigmoid_vjp(dy: Array, x: Array, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """The vector-Jacobian product of `hard_sigmoid`: ``alpha * dy`` between the ends, else 0."""
    return _times(dy, x, lambda z: z.dtype.type(alpha) * _between(z, alpha, beta))


def hard_swish(x: Array) -> Array:
    """``x * min(max(x / 6 + 1 / 2, 0), 1)``.

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
    >>> hard_swish(np.array([-6.0, 3.0, 6.0]))
    array([-0.,  3.,  6.])
    """
    x = float_array(x, "x")
    y: Array = widened(x) * _hard_sigmoid(widened(x), 1 / 6, 0.5)
    return y.astype(x.dtype, copy=False)


def hard_swish_vjp(dy: Array, x: Array) -> Array:
    """The vector-Jacobian product of `hard_swish`: its slope is ``x / 3 + 1 / 2`` in (-3, 3)."""
    return _times(dy, x, lambda z: _hard_sigmoid(z, 1 / 6, 0.5) + z / 6 * _between(z, 1 / 6, 0.5))


def silu(x: Array) -> Array:
    """``x * sigmoid(x)``.

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
    >>> silu(np.array([0.0, 1000.0]))
    array([   0., 1000.])
    """
    x = float_array(x, "x")
    y: Array = widened(x) * special.expit(widened(x))
    return y.astype(x.dtype, copy=False)


def silu_vjp(dy: Array, x: Array) -> Array:
    """The vector-Jacobian product of `silu`: the slope is ``s + x * s * (1 - s)``, s sigmoid."""
    return _times(dy, x, lambda z: special.expit(z) + z * special.expit(z) * special.expit(-z))


def prelu(x: Array, slope: Array) -> Array:
    """``x`` where it is positive, ``slope * x`` elsewhere, with a slope for each channel.

    Parameters
    ----------
    x : (..., C) ndarray of float16, float32 or float64
    slope : (C,) ndarray of the dtype of `x`
        Of any value.

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    CompressionError
        Shapes or dtypes do not fit.

    Examples
    --------
    >>> prelu(np.array([[-2.0, -2.0]]), np.array([0.5, 2.0]))
    array([[-1., -4.]])
    """
    x, slope = _with_slope(x, slope)
    return np.where(x > 0, x, x * slope)


def prelu_vjp(dy: Array, x: Array, slope: Array) -> tuple[Array, Array]:
    """The vector-Jacobian product of `prelu`: the gradients by `x` and by `slope`."""
    x, slope = _with_slope(x, slope)
    dy = gradient(dy, x.shape, x)
    dx: Array = dy * np.where(x > 0, x.dtype.type(1), slope)
    dslope = column_sums(widened(dy) * np.minimum(widened(x), 0))
    return dx, dslope.astype(x.dtype, copy=False)


def _times(dy: Array, x: Array, slope: Callable[[Array], Array]) -> Array:
    """``dy`` times a function's slope at `x`, in the dtype of the computation, rounded once."""
    x = float_array(x, "x")
    dx: Array = gradient(dy, x.shape, x) * slope(widened(x))
    return dx.astype(x.dtype, copy=False)


def _hard_sigmoid(z: Array, alpha: float, beta: float) -> Array:
    inner: Array = z.dtype.type(alpha) * z + z.dtype.type(beta)
    return np.clip(inner, z.dtype.type(0), z.dtype.type(1))


def _between(z: Array, alpha: float, beta: float) -> Array:
    """Where a hard sigmoid is neither 0 nor 1."""
    inner: Array = z.dtype.type(alpha) * z + z.dtype.type(beta)
    return (inner > 0) & (inner < 1)


def _with_slope(x: Array, slope: Array) -> tuple[Array, Array]:
    x, slope = float_array(x, "x"), float_array(slope, "slope", ndim=1)
    same_dtype(x=x, slope=slope)
    if x.ndim == 0 or slope.shape != x.shape[-1:]:
        raise CompressionError(f"slope must have shape {x.shape[-1:]}, not {slope.shape}")
    return x, slope
