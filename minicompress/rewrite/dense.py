"""A dense layer behind a `Flatten` as a convolution, or as a convolution and a mean."""

from __future__ import annotations

import numpy as np

from minicompress.arrays import as_int, cast_or_refuse
from minicompress.errors import CompressionError
from minicompress.nn.layers import Conv2D, Dense
from minicompress.nn.parameters import finite_layer
from minicompress.nn.stateless import GlobalAvgPool2D
from minicompress.representation import decode, shape_of


def dense_to_conv(layer: Dense, input_hw: tuple[int, int]) -> Conv2D:
    """Replace a dense layer behind a `Flatten` by an equal convolution with a kernel of image size.

    Parameters
    ----------
    layer : Dense
        Of H * W * C inputs.
    input_hw : (int, int)
        H and W of the images that are flattened.

    Returns
    -------
    Conv2D
        With a kernel (H, W, C, out). From (N, H, W, C) it makes (N, 1, 1, out), the outputs of the
        dense layer. On a larger image it is the dense layer applied at every position.

    Raises
    ------
    CompressionError
        The number of inputs is no multiple of H * W, or a weight is NaN or infinite.

    Examples
    --------
    >>> dense_to_conv(Dense(np.ones((4 * 4 * 32, 10))), (4, 4)).weight.shape
    (4, 4, 32, 10)
    """
    h, w, channels = _image(layer, input_hw)
    weight = decode(layer.weight)
    return Conv2D(weight.reshape(h, w, channels, weight.shape[1]), layer.bias)


def dense_to_global_pool(layer: Dense, input_hw: tuple[int, int]) -> tuple[Conv2D, GlobalAvgPool2D]:
    """Replace a dense layer behind a `Flatten` by a 1x1 convolution and a mean over the image.

    Parameters
    ----------
    layer : Dense
        Of H * W * C inputs.
    input_hw : (int, int)
        H and W of the images that are flattened.

    Returns
    -------
    tuple of Conv2D and GlobalAvgPool2D
        With H * W times fewer weights. They compute the same function if the dense weights are the
        same at every pixel, or if the inputs are. Otherwise they are a start for retraining.

    Raises
    ------
    CompressionError
        The number of inputs is no multiple of H * W, or a weight is NaN or infinite.

    Notes
    -----
    M. Lin, Q. Chen and S. Yan, *Network in network* (2014).

    Examples
    --------
    >>> conv, pool = dense_to_global_pool(Dense(np.ones((4 * 4 * 32, 10))), (4, 4))
    >>> conv.weight.shape
    (1, 1, 32, 10)
    """
    h, w, channels = _image(layer, input_hw)
    weight = decode(layer.weight)
    with np.errstate(over="ignore", invalid="ignore"):
        total = weight.reshape(h * w, channels, -1).sum(0, dtype=np.float64)
    total = cast_or_refuse(total, weight.dtype, "the sum of weights")
    return Conv2D(total[None, None], layer.bias), GlobalAvgPool2D()


def _image(layer: Dense, input_hw: tuple[int, int]) -> tuple[int, int, int]:
    finite_layer(layer)
    h, w = (as_int(n, "input_hw", 1) for n in input_hw)
    rows = shape_of(layer.weight)[0]
    if rows % (h * w):
        raise CompressionError(f"{rows} inputs are no {h} x {w} images: no multiple of {h * w}")
    return h, w, rows // (h * w)
