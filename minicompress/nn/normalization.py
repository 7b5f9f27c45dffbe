"""Batch normalization: forward, backward, and as a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicompress.arrays import (
    Array,
    as_float,
    float_array,
    frozen,
    normal_axis,
    same_dtype,
    widened,
)
from minicompress.errors import CompressionError
from minicompress.nn.kernels.windows import column_sums, gradient
from minicompress.nn.layer import Layer, Pullback, Shape
from minicompress.representation import Rep

NO_EPSILON = 2.0**-60
"""So small that 1 + NO_EPSILON is 1 in every float: with it, mean 0 and variance 1 a batch
normalization is a scale and a shift."""


def batch_norm(
    x: Array, scale: Array, offset: Array, mean: Array, variance: Array, epsilon: float = 1e-5
) -> Array:
    """Batch normalization with given statistics, along the last axis.

    ``scale * (x - mean) / sqrt(variance + epsilon) + offset``

    Parameters
    ----------
    x : (..., C) ndarray of float16, float32 or float64
    scale, offset, mean, variance : (C,) ndarray of the dtype of `x`
        `variance` not negative.
    epsilon : float
        Positive.

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    CompressionError
        Shapes or dtypes do not fit, a variance is negative, or `epsilon` is not positive.

    Examples
    --------
    >>> one = np.ones(1)
    >>> batch_norm(np.array([[3.0]]), 2 * one, one, one, 4 * one, epsilon=1e-12)
    array([[3.]])
    """
    x, scale, offset, mean, inverse = _norm_operands(x, scale, offset, mean, variance, epsilon)
    y: Array = (widened(x) - mean) * (scale * inverse) + offset
    return y.astype(x.dtype, copy=False)


def batch_norm_vjp(
    dy: Array, x: Array, scale: Array, mean: Array, variance: Array, epsilon: float = 1e-5
) -> tuple[Array, Array, Array]:
    """The vector-Jacobian product of `batch_norm`; the statistics are constants.

    ``dx = dy * scale / sqrt(variance + epsilon)``; `dscale` and `doffset` are the sums over all but
    the last axis of ``dy * (x - mean) / sqrt(variance + epsilon)`` and of ``dy``.
    """
    x, scale, _, mean, inverse = _norm_operands(x, scale, scale, mean, variance, epsilon)
    dy = widened(gradient(dy, x.shape, x))
    normal = (widened(x) - mean) * inverse
    return (
        (dy * (scale * inverse)).astype(x.dtype, copy=False),
        column_sums(dy * normal).astype(x.dtype, copy=False),
        column_sums(dy).astype(x.dtype, copy=False),
    )


def normalize_batch(x: Array, scale: Array, offset: Array, epsilon: float = 1e-5) -> Array:
    """Batch normalization with the mean and the variance of the batch itself, as in training.

    Parameters
    ----------
    x : (..., C) ndarray of float16, float32 or float64
        At least one row; the statistics are over all axes but the last.
    scale, offset : (C,) ndarray of the dtype of `x`
    epsilon : float
        Positive.

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    CompressionError
        As `batch_norm`, or there is no row.

    Notes
    -----
    The variance is the mean squared deviation, divided by the number of rows (Ioffe and Szegedy,
    2015).

    Examples
    --------
    >>> normalize_batch(np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), 1e-12)
    array([[-1.],
           [ 1.]])
    """
    return batch_norm(x, scale, offset, *batch_statistics(x), epsilon)


def normalize_batch_vjp(
    dy: Array, x: Array, scale: Array, epsilon: float = 1e-5
) -> tuple[Array, Array, Array]:
    """The vector-Jacobian product of `normalize_batch`: the statistics depend on `x`, too.

    With z the normalized x and m rows, ``dx = scale / deviation * (dy - sum(dy) / m - z * sum(dy *
    z) / m)``; `dscale` and `doffset` are ``sum(dy * z)`` and ``sum(dy)``.
    """
    x, scale, _, mean, inverse = _norm_operands(x, scale, scale, *batch_statistics(x), epsilon)
    dy = widened(gradient(dy, x.shape, x))
    z = (widened(x) - mean) * inverse
    rows = z.size // z.shape[-1]
    dscale, doffset = column_sums(dy * z), column_sums(dy)
    dx = (scale * inverse) * (dy - doffset / rows - z * (dscale / rows))
    return tuple(d.astype(x.dtype, copy=False) for d in (dx, dscale, doffset))  # type: ignore[return-value]


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """The mean and the variance of each channel, over all axes but the last, in the dtype of `x`.

    Computed in float64 from the deviations, so a large mean costs no precision.
    """
    x = float_array(x, "x")
    if x.size == 0:
        raise CompressionError("the statistics of a batch need at least one row")
    rows = x.reshape(-1, x.shape[-1])
    mean = rows.mean(0, dtype=np.float64)
    variance = np.square(rows - mean).mean(0)
    return mean.astype(x.dtype), variance.astype(x.dtype)


def _norm_operands(
    x: Array, scale: Array, offset: Array, mean: Array, variance: Array, epsilon: float
) -> tuple[Array, Array, Array, Array, Array]:
    """The checked operands, the small ones in the dtype of the computation, and 1 / deviation."""
    x = float_array(x, "x")
    normal_axis(-1, "axis", x.ndim)
    small = {"scale": scale, "offset": offset, "mean": mean, "variance": variance}
    small = {name: float_array(value, name) for name, value in small.items()}
    same_dtype(x=x, **small)
    for name, value in small.items():
        if value.shape != x.shape[-1:]:
            raise CompressionError(f"{name} must have shape {x.shape[-1:]}, not {value.shape}")
    if (small["variance"] < 0).any():
        raise CompressionError("variance must not be negative")
    if as_float(epsilon, "epsilon", 0.0) == 0.0:
        raise CompressionError("epsilon must be positive, not 0")
    scale, offset, mean, variance = map(widened, small.values())
    inverse: Array = 1 / np.sqrt(np.add(variance, epsilon, dtype=variance.dtype))
    return x, scale, offset, mean, inverse


@dataclass(frozen=True, eq=False, repr=False)
class BatchNorm(Layer):
    """Batch normalization, on the last axis.

    ``scale * (x - mean) / sqrt(variance + epsilon) + offset``

    `mean` and `variance` are parameters without a gradient. In training (`vjp` with `rng`) the
    statistics of the batch stand in for them, and `fit` estimates them anew from training data.

    Parameters
    ----------
    scale, offset, mean, variance : (channels,) ndarrays of one dtype
    epsilon : float, positive

    Raises
    ------
    CompressionError
        A shape, dtype or number is not as above, or a variance is negative.

    Examples
    --------
    >>> one = np.ones(1)
    >>> BatchNorm(2 * one, one, 3 * one, 4 * one, epsilon=1e-12).forward(np.array([[5.0]]))
    array([[3.]])
    """

    scale: Array
    offset: Array
    mean: Array
    variance: Array
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        arrays = {n: float_array(v, n, ndim=1) for n, v in self.parameters().items()}  # type: ignore[arg-type]
        # A batch without rows runs all checks of the operation.
        nothing = np.empty((0, arrays["scale"].size), arrays["scale"].dtype)
        batch_norm(nothing, **arrays, epsilon=self.epsilon)
        self._set(**{name: frozen(array) for name, array in arrays.items()})

    def parameters(self) -> dict[str, Rep]:
        return {n: getattr(self, n) for n in ("scale", "offset", "mean", "variance")}

    def forward(self, x: Array) -> Array:
        return batch_norm(x, self.scale, self.offset, self.mean, self.variance, self.epsilon)

    def output_shape(self, input_shape: Shape) -> Shape:
        if tuple(input_shape[-1:]) != self.scale.shape:
            raise CompressionError(
                f"the input must have {self.scale.size} channels, not shape {input_shape}"
            )
        return tuple(input_shape)

    def vjp(
        self, x: Array, *, rng: np.random.Generator | None = None, input_gradient: bool = True
    ) -> tuple[Array, Pullback]:
        if rng is None:
            y = self.forward(x)
        else:
            y = normalize_batch(x, self.scale, self.offset, self.epsilon)

        def pullback(dy: Array) -> tuple[Array | None, dict[str, Array]]:
            if rng is None:
                statistics = self.mean, self.variance
                dx, dscale, doffset = batch_norm_vjp(dy, x, self.scale, *statistics, self.epsilon)
            else:
                dx, dscale, doffset = normalize_batch_vjp(dy, x, self.scale, self.epsilon)
            return dx if input_gradient else None, {"scale": dscale, "offset": doffset}

        return y, pullback
