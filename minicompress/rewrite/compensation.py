"""Compensated rounding (GPTQ) of a whole network, layer by layer.

Of each layer only the Gram matrix of what it reads is kept: its inputs, or the windows that a
convolution lays over them. A layer reads what the quantized layers before it make, so it also makes
up for what they changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from minicompress.arrays import Array, as_int, finite_array
from minicompress.errors import CompressionError
from minicompress.nn.kernels.windows import BLOCK_BYTES, blocks, cut, taps
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.network import Network, Runner, input_batch, naming_layer
from minicompress.nn.parameters import with_layers
from minicompress.representation import Certificate, Compressed, checked, decode, shape_of
from minicompress.search.plan import CompressedModel

CalibratedCompressor: TypeAlias = Callable[..., Compressed]


def compensate(
    network: Network, plan: Mapping[int, CalibratedCompressor], x: Array
) -> CompressedModel:
    """Compress the layers of a plan in order, each on the inputs that the network gives it.

    Parameters
    ----------
    network : Network
        A weight that is a representation is decoded first.
    plan : {layer index: compressor}
        For a `Conv2D` or `Dense` a compressor that takes `calibration`, options bound beforehand,
        as in ``functools.partial(compensated_quantize, num_bits=4, axis=-1)``. Biases stay as they
        are.
    x : (N, ...) ndarray of the network's dtype, finite
        Some dozen images are enough. They run in one piece, so the memory grows with N.

    Returns
    -------
    CompressedModel
        The network with representations, and the certificates for the indices of the plan.

    Raises
    ------
    CompressionError
        `x` or what a layer reads is not finite, a layer of the plan is no `Conv2D` or `Dense`, or a
        compressor takes no `calibration` or refuses the weight: the message names the layer.

    Notes
    -----
    The plan is followed in the order of the layers. With `compensated_quantize` no output of a
    layer, on what the new network gives it to read, is further from the output of the old weight
    than with `quantize` and the same options: a column of the weight that compensation would not
    surely improve is rounded to nearest. A convolution is the product of its windows and its
    weight as a matrix; with groups, each group of outputs has windows of its own.

    A compressor gets the windows as an iterator of arrays (n, kh * kw * in), or (groups, n, kh * kw
    * in // groups) where there is more than one group, and need not keep them.

    E. Frantar, S. Ashkboos, T. Hoefler and D. Alistarh, *GPTQ: accurate post-training quantization
    for generative pre-trained transformers* (2022).

    Examples
    --------
    Two inputs are always equal. One weight is rounded up because the other was rounded down.

    >>> from functools import partial
    >>> import numpy as np
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
                assert isinstance(layer, Conv2D | Dense)  # as _checked_plan found
                made = chosen[i](decode(layer.weight), calibration=layer_inputs(layer, read))
                weight, certificates[i] = checked(made, "a compressor of the plan")
                layers[i] = replace(layer, weight=weight)
            run = run.with_layer(i, layers[i])
        values = run(values, i, i + 1)
    ordered = {i: certificates[i] for i in chosen}
    return CompressedModel(with_layers(network, layers), ordered)


def layer_inputs(layer: Conv2D | Dense, x: Array) -> Iterator[Array]:
    """What a layer multiplies by its weight as a matrix, block by block.

    Parameters
    ----------
    layer : Conv2D or Dense
    x : (N, ...) ndarray
        What the layer reads.

    Yields
    ------
    (n, in) or (n, kh * kw * in) ndarray
        With more than one group (groups, n, kh * kw * in // groups).

    Examples
    --------
    >>> import numpy as np
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
    g, groups = layer.geometry(x.shape[1:3]), layer.groups
    height, width, channels, _ = shape_of(layer.weight)
    row_bytes = g.output[1] * height * width * channels * groups * x.itemsize
    for images, rows in blocks(len(x), g.output[0], row_bytes, BLOCK_BYTES):
        pixels = taps(cut(x[images], rows, g), rows, g)  # (kh, kw, n, rows, columns, in)
        pixels = pixels.reshape(*pixels.shape[:5], groups, channels)
        windows = pixels.transpose(5, 2, 3, 4, 0, 1, 6)
        windows = windows.reshape(groups, -1, height * width * channels)
        yield windows if groups > 1 else windows[0]


def _checked_plan(network: Network, plan: Any) -> dict[int, CalibratedCompressor]:
    if not isinstance(plan, Mapping):
        raise CompressionError(f"plan must map layer indices to compressors, not be {plan!r}")
    chosen = {}
    for key, compressor in plan.items():
        i = as_int(key, "a layer index of the plan", 0, len(network.layers) - 1)
        with naming_layer(network, i):
            if type(network.layers[i]) not in (Conv2D, Dense):
                raise CompressionError("only a Conv2D or a Dense is compensated")
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
