"""Batch normalization as a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicompress.arrays import Array, float_array, frozen
from minicompress.errors import CompressionError
from minicompress.nn.activations import batch_norm, batch_norm_vjp
from minicompress.nn.weightless import Layer, Pullback, Shape
from minicompress.representation import Rep


@dataclass(frozen=True, eq=False, repr=False)
class BatchNorm(Layer):
    """Batch normalization with given statistics, on the last axis.

    ``scale * (x - mean) / sqrt(variance + epsilon) + offset``. The statistics are constants: they
    are among the parameters, but training has gradients for `scale` and `offset` only.

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
        # The operation has all the checks; no row is enough for them.
        nothing = np.empty((0, arrays["scale"].size), arrays["scale"].dtype)
        batch_norm(nothing, **arrays, epsilon=self.epsilon)
        for name, array in arrays.items():
            object.__setattr__(self, name, frozen(array))

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
        def pullback(dy: Array) -> tuple[Array | None, dict[str, Array]]:
            dx, dscale, doffset = batch_norm_vjp(
                dy, x, self.scale, self.mean, self.variance, self.epsilon
            )
            return dx if input_gradient else None, {"scale": dscale, "offset": doffset}

        return self.forward(x), pullback
