"""A network of integers, as a device without floating point runs it.

Real numbers are left at its edges only: `IntegerModel.quantize_input` makes codes of them, and
calling the model makes logits of the last codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from minicompress.arrays import Array, Value
from minicompress.errors import CompressionError
from minicompress.integer.stateless import IntegerLayer
from minicompress.integers import dequantize_linear, quantize_linear
from minicompress.nn.stateless import Shape
from minicompress.qparams import QParams

# The largest array of codes between two layers while a model runs.
CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, eq=False, repr=False)
class IntegerModel(Value):
    """A network of integers. `to_integer` makes one.

    Parameters
    ----------
    layers : tuple of IntegerLayer
    input_shape : tuple of int
        Of one input; the one size that it is for.
    input_qparams, output_qparams : QParams
        What the codes of the input and of the logits stand for.

    Notes
    -----
    `run` gives the same codes on every run, with every BLAS and any number of threads. Sums are
    products of integers in float32, cut into blocks in which no partial sum can exceed 2**24 in
    magnitude: in whatever order a BLAS adds, and whether or not it fuses a product with a sum,
    every intermediate result is an integer that float32 holds, so nothing is ever rounded. All
    else is integer arithmetic. (The scales that `to_integer` chose come from a float model, whose
    last bits are the BLAS's: make the integer model once, and ship it.)

    What integers buy in NumPy is size and exactness, not speed: `run` takes the time of the same
    products in float32 and a third to a half more, for the codes; and float convolutions of 3 x 3,
    which `apply` has a short cut for, take less than half of it.
    """

    layers: tuple[IntegerLayer, ...]
    input_shape: Shape
    input_qparams: QParams
    output_qparams: QParams

    def quantize_input(self, x: Array) -> Array:
        """The codes of real inputs: `quantize_linear`, which saturates.

        Parameters
        ----------
        x : (N, ...) float ndarray
            Of the dtype of the calibration's inputs; float32 will do for float16.

        Returns
        -------
        codes : ndarray of int8
        """
        q = self.input_qparams
        return self._batch(quantize_linear(x, q.scale, q.zero_point, num_bits=q.num_bits))

    def run(self, codes: Array) -> Array:
        """The codes of the logits for the codes of a batch of inputs.

        Parameters
        ----------
        codes : (N, ...) ndarray of int8

        Returns
        -------
        codes : (N, ...) ndarray of int8

        Raises
        ------
        CompressionError
            `codes` is not of int8 or not of `input_shape`.
        """
        codes, shapes = self._batch(codes), [self.input_shape]
        for layer in self.layers:
            shapes.append(layer.output_shape(shapes[-1]))
        rows = max(CHUNK_BYTES // max(map(math.prod, shapes), default=1), 1)
        y: Array = np.empty((len(codes), *shapes[-1]), np.int8)
        for start in range(0, len(codes), rows):
            part = codes[start : start + rows]
            for layer in self.layers:
                part = layer.forward(part)
            y[start : start + rows] = part
        return y

    def __call__(self, x: Array) -> Array:
        """Real logits for real inputs: codes in, `run`, codes out."""
        codes, q = self.run(self.quantize_input(x)), self.output_qparams
        return dequantize_linear(codes, q.scale, q.zero_point, dtype=np.asarray(x).dtype)

    def _batch(self, codes: Array) -> Array:
        array = np.asarray(codes)
        if array.dtype != np.int8 or array.ndim == 0 or array.shape[1:] != self.input_shape:
            raise CompressionError(
                f"the input must be a batch of {self.input_shape} in codes of int8 (see "
                f"quantize_input), not of {array.dtype} and shape {array.shape}"
            )
        return array
