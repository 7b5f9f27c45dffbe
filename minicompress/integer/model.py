"""A network of integers, as a device without floating point runs it.

There are real numbers at its ends only: `IntegerModel.quantize_input` turns inputs into codes, and
a call of the model turns the codes of the outputs into numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicompress.arrays import Array, Value
from minicompress.errors import CompressionError
from minicompress.integer.stateless import IntegerLayer
from minicompress.integers import dequantize_linear, quantize_linear
from minicompress.nn.layer import Shape
from minicompress.nn.network import Network, Runner, naming_layer, run_chunks, value_shapes
from minicompress.nn.parameters import as_tuple
from minicompress.qparams import QParams

# The largest array of codes between two layers while a model runs.
CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, eq=False, repr=False)
class IntegerModel(Value):
    """A network of integers. `to_integer` makes one.

    Parameters
    ----------
    network : Network
        Of integer layers; its values are codes of int8.
    input_shape : tuple of int
        Of one input; no other size can run.
    input_qparams : QParams
        Scale and zero point of the codes of the input.
    output_qparams : tuple of QParams
        Those of each output.

    Raises
    ------
    CompressionError
        A layer is no integer layer or does not fit what it reads, or the outputs are not as many as
        `output_qparams`.

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

    network: Network
    input_shape: Shape
    input_qparams: QParams
    output_qparams: tuple[QParams, ...]

    def __post_init__(self) -> None:
        for i, layer in enumerate(self.network.layers):
            if not isinstance(layer, IntegerLayer):
                with naming_layer(self.network, i):
                    raise CompressionError("it must be an integer layer")
        value_shapes(self.network, self.input_shape)
        if len(self.output_qparams) != len(self.network.outputs):
            raise CompressionError(
                f"output_qparams must be one for each of {len(self.network.outputs)} outputs, "
                f"not {len(self.output_qparams)}"
            )
        self._set(input_shape=tuple(self.input_shape), output_qparams=tuple(self.output_qparams))

    @property
    def layers(self) -> tuple[Any, ...]:
        """The integer layers."""
        return self.network.layers

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

    def run(self, codes: Array) -> Any:
        """The codes of the outputs for the codes of a batch of inputs.

        Parameters
        ----------
        codes : (N, ...) ndarray of int8

        Returns
        -------
        codes : (N, ...) ndarray of int8
            A tuple of them if the network has several outputs.

        Raises
        ------
        CompressionError
            `codes` is not of int8 or not of `input_shape`.
        """
        codes = self._batch(codes)
        largest = max(map(math.prod, value_shapes(self.network, self.input_shape)))
        return run_chunks(Runner(self.network), codes, max(CHUNK_BYTES // max(largest, 1), 1))

    def __call__(self, x: Array) -> Any:
        """Real outputs for real inputs: codes in, `run`, codes out."""
        codes, dtype = as_tuple(self.run(self.quantize_input(x))), np.asarray(x).dtype
        ys = [
            dequantize_linear(part, q.scale, q.zero_point, dtype=dtype)
            for part, q in zip(codes, self.output_qparams, strict=True)
        ]
        return ys[0] if len(ys) == 1 else tuple(ys)

    def _batch(self, codes: Array) -> Array:
        array = np.asarray(codes)
        if array.dtype != np.int8 or array.ndim == 0 or array.shape[1:] != self.input_shape:
            raise CompressionError(
                f"the input must be a batch of {self.input_shape} in codes of int8 (see "
                f"quantize_input), not of {array.dtype} and shape {array.shape}"
            )
        return array
