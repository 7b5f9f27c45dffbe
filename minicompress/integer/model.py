"""A network of integers, as a device without floating point runs it.

There are real numbers at its two ends only: `IntegerModel.quantize_input` turns inputs into codes,
and a call of the model turns the last codes into logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from minicompress.arrays import Array, Value
from minicompress.errors import CompressionError
from minicompress.integer.stateless import IntegerLayer
from minicompress.integers import dequantize_linear, quantize_linear
from minicompress.nn.layer import Shape
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
        Of one input; no other size can run.
    input_qparams, output_qparams : QParams
        Scale and zero point of the codes of the input and of the logits.

    Notes
    -----
    `run` gives the same codes on every machine, with every BLAS and any number of threads. Sums are
    products of integers in float32, cut into blocks in which no partial sum can exceed 2**24 in
    magnitude. So every intermediate result is an integer that float32 holds, in whatever order a
    BLAS adds, with or without fused products: nothing is ever rounded. All else is integer
    arithmetic. (The scales were chosen by a float model, whose last bits depend on the BLAS: make
    the integer model once, and ship it.)

    In NumPy, integers buy size and exactness, not speed. `run` takes a third to a half more time
    than the same products in float32. For float convolutions of 3 x 3, which `apply` computes by
    Winograd's algorithm, it takes more than twice the time.
    """

    layers: tuple[IntegerLayer, ...]
    input_shape: Shape
    input_qparams: QParams
    output_qparams: QParams

    def quantize_input(self, x: Array) -> Array:
        """The codes of real inputs, by `quantize_linear`: what is out of range is clamped.

        Parameters
        ----------
        x : (N, ...) float ndarray
            Of the dtype of the calibration; float32 is accepted for float16.

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
