"""Compensated rounding (GPTQ) of a whole network, layer by layer.

Of each layer only the Gram matrix of what it reads is kept: its inputs, or the windows that a
convolution lays over them. A layer reads what the quantized layers before it make, so it also makes
up for what they changed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from minicompress.arrays import Array, as_int, finite_array
from minicompress.errors import CompressionError
from minicompress.nn.kernels.windows import BLOCK_BYTES, Geometry, blocks, cut, taps
from minicompress.nn.layers import Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network, Runner, input_batch, naming_layer
from minicompress.nn.parameters import with_layers
from minicompress.representation import Certificate, Compressed, checked, decode, shape_of
from minicompress.search.plan import CompressedModel

CalibratedCompressor: TypeAlias = Callable[..., Compressed]
Compensated: TypeAlias = Conv2D | ConvTranspose2D | Dense


def compensate(
    network: Network, plan: Mapping[int, CalibratedCompressor], x: Array
) -> CompressedModel:
    """Compress the layers of a plan in order, each on the inputs that the network gives it.

    Parameters
    ----------
    network : Network
        A weight that is a representation is decoded first.
    plan : {layer index: compressor}
        For a `Conv2D`, `ConvTranspose2D` or `Dense` a compressor that takes `calibration`, options
        bound beforehand, as in ``functools.partial(compensated_quantize, num_bits=4, axis=-1)``.
        Biases stay as they are.
    x : (N, ...) ndarray of the network's dtype, finite
        Some dozen images are enough. They run in one piece, so the memory grows with N.

    Returns
    -------
    CompressedModel
        The network with representations, and the certificates for the indices of the plan.

    Raises
    ------
    CompressionError
        `x` or what a layer reads is not finite, a layer of the plan is of another type, or a
        compressor takes no `calibration` or refuses the weight: the message names the layer.

    Notes
    -----
    The plan is followed in the order of the layers. With `compensated_quantize` no output of a
    layer, on what the new network gives it to read, is further from the output of the old weight
    than with `quantize` and the same options: a column of the weight that compensation would not
    surely improve is rounded to nearest. A convolution is the product of its windows and its
    weight as a matrix; with groups, each group of outputs has windows of its own. `correct_bias`
    afterwards takes away what is left in the means.

    A compressor gets the windows as an iterator of arrays (n, kh * kw * in), or (groups, n, kh * kw
    * in // groups) where there is more than one group, and need not keep them.

    E. Frantar, S. Ashkboos, T. Hoefler and D. Alistarh, *GPTQ: accurate post-training quantization
    for generative pre-trained transformers* (2022).

    Examples
    --------
    Two inputs are always equal. One weight is rounded up because the other was rounded down.

    >>> from functools import partial
    >>> from minicompress.compressors.compensated import compensated_quantize
    >>> from minicompress.nn.composition import Sequential
    >>> network = Sequential((Dense(np.array([[7.0], [0.4], [0.4]])),))
    >>> plan = {0: partial(compensated_quantize, num_bits=4)}
    >>> found, certificates = compensate(network, plan, np.array([[0.0, 1.0, 1.0]]))
    >>> found.layers[0].weight.codes.T.tolist()
    [[7, 1, 0]]
    """
    values = {0: finite_array(input_batch(network, x), "x")}
    chosen = _checked_plan(network, plan)
    layers, run = list(network.layers), Runner(network)
    certificates: dict[int, Certificate] = {}
    for i in range(max(chosen, default=-1) + 1):
        if i in chosen:
            with naming_layer(network, i):
                layer, read = layers[i], values[network.inputs[i][0]]
                assert isinstance(layer, Compensated)  # as _checked_plan found
                made = chosen[i](decode(layer.weight), calibration=layer_inputs(layer, read))
                weight, certificates[i] = checked(made, "a compressor of the plan")
                layers[i] = replace(layer, weight=weight)
            run = run.with_layer(i, layers[i])
        values = run(values, i, i + 1)
    ordered = {i: certificates[i] for i in chosen}
    return CompressedModel(with_layers(network, layers), ordered)


def layer_inputs(layer: Compensated, x: Array) -> Iterator[Array]:
    """What a layer multiplies by its weight as a matrix, block by block.

    Parameters
    ----------
    layer : Conv2D, ConvTranspose2D or Dense
    x : (N, ...) ndarray
        What the layer reads.

    Yields
    ------
    (n, in) or (n, kh * kw * in) ndarray
        With more than one group (groups, n, kh * kw * in // groups).

    Examples
    --------
    >>> x = np.arange(6.0).reshape(1, 1, 3, 2)
    >>> for block in layer_inputs(Conv2D(np.ones((1, 2, 2, 1))), x):
    ...     print(block)
    [[0. 1. 2. 3.]
     [2. 3. 4. 5.]]
    """
    layer.output_shape(x.shape[1:])
    if isinstance(layer, Dense):
        yield x
        return
    height, width, channels, _ = shape_of(layer.weight)
    if isinstance(layer, Conv2D):
        g, order = layer.geometry(x.shape[1:3]), 1
    else:
        x, g, order = *_spread_out(layer, x), -1
    row_bytes = g.output[1] * height * width * x.shape[3] * x.itemsize
    for images, rows in blocks(len(x), g.output[0], row_bytes, BLOCK_BYTES):
        pixels = taps(cut(x[images], rows, g), rows, g)[::order, ::order]
        pixels = pixels.reshape(*pixels.shape[:5], layer.groups, channels)
        count = math.prod(pixels.shape[2:5])
        # From (kh, kw, n, rows, columns, groups, in // groups).
        windows = pixels.transpose(5, 2, 3, 4, 0, 1, 6)
        windows = windows.reshape(layer.groups, count, height * width * channels)
        yield windows if layer.groups > 1 else windows[0]


def _spread_out(layer: ConvTranspose2D, x: Array) -> tuple[Array, Geometry]:
    """The image of which a transposed convolution is the convolution with the kernel turned round.

    With stride s, dilation d and k places of the kernel, pixel i is moved to ``s * i + d * (k - 1)
    - padding``. Between the pixels and around them are zeros.
    """
    output, back = layer.geometry(x.shape[1:3])
    reach = [(k - 1) * d for k, d in zip(back.kernel, back.dilation, strict=True)]
    large = np.zeros((len(x), output[0] + reach[0], output[1] + reach[1], x.shape[3]), x.dtype)
    places = []
    for axis in (0, 1):
        moved = np.arange(x.shape[1 + axis]) * back.stride[axis] + reach[axis] - back.pads[axis][0]
        inside = (moved >= 0) & (moved < large.shape[1 + axis])
        x = x.compress(inside, 1 + axis)
        places.append(moved[inside])
    large[:, places[0][:, np.newaxis], places[1]] = x
    return large, Geometry(back.kernel, (1, 1), back.dilation, ((0, 0), (0, 0)), output)


def _checked_plan(network: Network, plan: Any) -> dict[int, CalibratedCompressor]:
    if not isinstance(plan, Mapping):
        raise CompressionError(f"plan must map layer indices to compressors, not be {plan!r}")
    chosen = {}
    for key, compressor in plan.items():
        i = as_int(key, "a layer index of the plan", 0, len(network.layers) - 1)
        with naming_layer(network, i):
            if type(network.layers[i]) not in (Conv2D, ConvTranspose2D, Dense):
                raise CompressionError(
                    "only a Conv2D, a ConvTranspose2D or a Dense can be compensated"
                )
            try:
                known = inspect.signature(compressor).parameters
            except (TypeError, ValueError):
                raise CompressionError(
                    f"a compressor of the plan must be a function, not {compressor!r}"
                ) from None
            if "calibration" not in known:
                raise CompressionError(
                    "a compressor of the plan must take calibration, as compensated_quantize "
                    f"does, not {compressor!r}"
                )
        chosen[i] = compressor
    return chosen
