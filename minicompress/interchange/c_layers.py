"""Each integer layer as a C function that reads codes at `in` and writes codes at `out`.

A function is written for one layer, and all sizes in it are constants. Its loops run over the
output and write one code after the other. Each code is written after its inputs were read for the
last time: see `c_plan`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import indent
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.integer.joins import IntegerAdd, IntegerConcat, IntegerMultiply
from minicompress.integer.layers import (
    IntegerConv2D,
    IntegerConvTranspose2D,
    IntegerDense,
    IntegerScale,
)
from minicompress.integer.stateless import (
    IntegerAvgPool2D,
    IntegerChannelShuffle,
    IntegerLayer,
    IntegerMaxPool2D,
    IntegerReLU,
    IntegerTable,
    IntegerUpsample2D,
)
from minicompress.interchange.c_pointwise import pointwise
from minicompress.interchange.c_weights import definition, smallest
from minicompress.interchange.c_windows import Affine, Pooling, affine, pooling
from minicompress.nn.layer import Shape

C_TYPES = (
    IntegerAdd,
    IntegerAvgPool2D,
    IntegerChannelShuffle,
    IntegerConcat,
    IntegerConv2D,
    IntegerConvTranspose2D,
    IntegerDense,
    IntegerMaxPool2D,
    IntegerMultiply,
    IntegerReLU,
    IntegerScale,
    IntegerTable,
    IntegerUpsample2D,
)

LARGEST = 2**28
"""The most numbers in one array: so the index of any bit in it fits int32."""


class CLayer(NamedTuple):
    """One layer of the C file.

    Parameters
    ----------
    kind : str
    output_shape : tuple of int
    form : str
        How its weights are stored.
    flash_bytes : int
        The size of its constants.
    """

    kind: str
    output_shape: tuple[int, ...]
    form: str
    flash_bytes: int


class LayerCode(NamedTuple):
    """One layer in C: its function's name, and the text of its arrays and its function."""

    layer: CLayer
    name: str
    text: str


def layer_code(
    layer: IntegerLayer, input_shapes: Sequence[Shape], index: int, prefix: str
) -> LayerCode:
    """Write one layer in C.

    Parameters
    ----------
    layer : IntegerLayer
        Not IntegerFlatten, which takes no code.
    input_shapes : sequence of tuple of int
        The shape of each value that it reads.
    index : int
    prefix : str
        All names begin with the prefix and the index.

    Raises
    ------
    CompressionError
        The layer has no C form, or an array of it is empty or too large.
    """
    if type(layer) not in C_TYPES:
        known = ", ".join(kind.__name__ for kind in C_TYPES)
        raise CompressionError(f"it has no C form; those that have one are {known}, IntegerFlatten")
    name, kind = f"{prefix}_{index}", type(layer).__name__.removeprefix("Integer")
    output_shape = layer.output_shape(*input_shapes)
    fits(*map(math.prod, input_shapes), math.prod(output_shape))
    arrays: dict[str, Array] = {}
    form = title = ""
    if isinstance(layer, Affine):
        fits(layer.weight.size)
        # Output by output, each in the order of the loops over its window.
        weights = smallest(np.moveaxis(layer.weight, -1, 0).ravel())
        form, title = str(weights), f"\n * Weights: {weights}, {weights.nbytes} bytes."
        arrays = {**weights.arrays(name), f"{name}_bias": layer.bias, **_rescaling(layer, name)}
        body = affine(layer, input_shapes[0], weights, name, prefix)
    elif isinstance(layer, Pooling):
        if isinstance(layer, IntegerAvgPool2D) and layer.shift.size > 1:
            arrays = _rescaling(layer, name)
        body = pooling(layer, input_shapes[0], name, prefix)
    else:
        if isinstance(layer, IntegerScale):
            form = "8-bit codes"
            arrays = {f"{name}_weight": layer.weight, f"{name}_bias": layer.bias}
            arrays |= _rescaling(layer, name)
        elif isinstance(layer, IntegerTable):
            fits(layer.table.size)
            arrays = {f"{name}_table": layer.table.ravel()}
        body = pointwise(layer, input_shapes, name, prefix)
    called, several = f"{prefix}_layer_{index}", layer.num_inputs != 1
    read = [f"in_{k}" for k in range(len(input_shapes))] if several else ["in"]
    arguments = ", ".join([*(f"const int8_t *{at}" for at in read), "int8_t *out"])
    shapes = " and ".join(map(str, input_shapes))
    parts = [
        f"/* Layer {index}: {kind}, {shapes} to {output_shape}.{title} */",
        *(definition(array, values, f"{prefix}_PLACEMENT") for array, values in arrays.items()),
        f"static void {called}({arguments})\n{{\n{indent(body, '    ')}\n}}",
    ]
    nbytes = sum(values.nbytes for values in arrays.values())
    return LayerCode(CLayer(kind, output_shape, form, nbytes), called, "\n\n".join(parts))


def fits(*sizes: int) -> None:
    """Refuse empty arrays, which C does not have, and arrays too large for int32 indices."""
    for size in sizes:
        if not 0 < size <= LARGEST:
            raise CompressionError(f"an array of it has {size:,} numbers, not from 1 to 2**28")


def _rescaling(layer: Affine | IntegerAvgPool2D | IntegerScale, name: str) -> dict[str, Array]:
    return {
        f"{name}_multiplier": layer.multiplier.astype(np.int32),
        f"{name}_shift": layer.shift.astype(np.uint8),
    }
