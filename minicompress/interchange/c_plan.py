"""Where the codes between the layers are stored: one array, in which outputs overwrite inputs.

A layer writes its output one code after the other, and reads its input from front to back. So the
output may begin a little before the input, by the layer's `lead`: each code then overwrites only
inputs that were read for the last time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array
from minicompress.integer.layers import IntegerConv2D
from minicompress.integer.stateless import (
    IntegerAvgPool2D,
    IntegerLayer,
    IntegerMaxPool2D,
    IntegerReLU,
)
from minicompress.nn.layer import Shape


class Step(NamedTuple):
    """Where one layer reads and writes, in bytes from the start of the array.

    Parameters
    ----------
    source, target : int
    moved_from : int or None
        If the input must first be moved to `source`: where it was.
    """

    source: int
    target: int
    moved_from: int | None = None


class Plan(NamedTuple):
    """The size of the array in bytes, and a step for every layer; the first reads the input."""

    size: int
    steps: tuple[Step, ...]


def plan(sizes: Sequence[int], leads: Sequence[int]) -> Plan:
    """Choose a place in the array for the output of every layer.

    Parameters
    ----------
    sizes : sequence of int, at least one
        Bytes of the output of every layer.
    leads : sequence of int
        The lead of every layer. The first is not used: its layer reads the caller's input.

    Notes
    -----
    One layer alone needs ``max(input + lead, output)`` bytes, while two separate buffers take
    ``input + output``. The array is as large as its largest layer needs, which is the least for
    layers that run one after the other. While a layer runs, the rest of the array is free. If
    there is not enough room before or after its input, the input is first moved to the end.

    Examples
    --------
    >>> plan([576, 512, 10], [0, 175, 9])  # 1,088 with two buffers
    Plan(size=751, steps=(Step(source=0, target=175, moved_from=None), \
Step(source=175, target=0, moved_from=None), Step(source=0, target=512, moved_from=None)))
    """
    pairs = list(zip(sizes[:-1], sizes[1:], leads[1:], strict=True))
    size = max([sizes[0], *(max(before + lead, after) for before, after, lead in pairs)])
    steps = [Step(0, size - sizes[0])]
    for before, after, lead in pairs:
        at = steps[-1].target
        if at >= lead:
            steps.append(Step(at, min(at - lead, size - after)))
        elif at + before + after <= size:
            steps.append(Step(at, at + before))
        else:
            end = size - before
            steps.append(Step(end, min(end - lead, size - after), at))
    return Plan(size, tuple(steps))


def lead(layer: IntegerLayer, input_shape: Shape) -> int:
    """The least number of bytes by which a layer's output must begin before its input.

    A layer is assumed to read its whole windows, even where weights are 0.

    Examples
    --------
    >>> lead(IntegerMaxPool2D((2, 2), (2, 2)), (4, 4, 3))
    0
    """
    reads = _first_reads(layer, input_shape)
    if reads.size < 2:
        return 0
    # When output t is written at `start + t`, later outputs must read only beyond that.
    later = np.minimum.accumulate(reads[:0:-1])[::-1]
    return max(int((np.arange(1, reads.size) - later).max()), 0)


def _first_reads(layer: IntegerLayer, input_shape: Shape) -> Array:
    """For every output, in the order of the loops, the first index of the input that it reads."""
    output_shape = layer.output_shape(input_shape)
    outputs = np.arange(np.prod(output_shape))
    if isinstance(layer, IntegerReLU):
        return outputs
    if not isinstance(layer, IntegerConv2D | IntegerMaxPool2D | IntegerAvgPool2D):
        return np.zeros_like(outputs)  # a dense layer reads everything
    h, w, channels = input_shape
    g = layer.geometry((h, w))
    y, x, first = np.unravel_index(outputs, output_shape)
    if isinstance(layer, IntegerConv2D):
        first = first // (output_shape[2] // layer.groups) * layer.weight.shape[2]
    row, column = (
        np.minimum(np.where(start < 0, start % dilation, start), size - 1)
        for start, dilation, size in (
            (y * g.stride[0] - g.pads[0][0], g.dilation[0], h),
            (x * g.stride[1] - g.pads[1][0], g.dilation[1], w),
        )
    )
    reads: Array = (row * w + column) * channels + first
    return reads
