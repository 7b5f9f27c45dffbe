"""Where the codes between the layers lie: one array, in which outputs overwrite inputs.

A layer writes its output one code after the other, and the inputs that it still needs lie further
and further on. So its output may start only a little before its input, by its `lead`: whatever it
overwrites has been read for the last time.
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
from minicompress.nn.stateless import Shape


class Step(NamedTuple):
    """Where one layer reads and writes, in bytes from the start of the array.

    source, target : int
    moved_from : int or None
        Where the input lies before; it is moved to `source` first.
    """

    source: int
    target: int
    moved_from: int | None = None


class Plan(NamedTuple):
    """The size of the array in bytes, and a step for every layer; the first reads elsewhere."""

    size: int
    steps: tuple[Step, ...]


def plan(sizes: Sequence[int], leads: Sequence[int]) -> Plan:
    """Give the output of every layer its place.

    Parameters
    ----------
    sizes : sequence of int, at least one
        Bytes of the output of every layer.
    leads : sequence of int
        Of every layer. The first reads the caller's input, and so needs none.

    Notes
    -----
    The size is the least there is for layers that run one after the other and in this order of
    their loops: the most that any of them needs for itself, ``max(input + lead, output)``. Two
    buffers of their own would be input + output. Every layer can have that much, for the rest of
    the array is free: where its input does not leave enough room in front of it or behind it, the
    input is moved to the end.

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
    """How many bytes before its input the output of a layer must start at the least.

    Zeros among the weights are not looked at: the layer counts as reading the whole of its windows.

    Examples
    --------
    >>> lead(IntegerMaxPool2D((2, 2), (2, 2)), (4, 4, 3))
    0
    """
    reads = _first_reads(layer, input_shape)
    if reads.size < 2:
        return 0
    # When output t is written, what later ones read must lie behind it: above `start + t`.
    later = np.minimum.accumulate(reads[:0:-1])[::-1]
    return max(int((np.arange(1, reads.size) - later).max()), 0)


def _first_reads(layer: IntegerLayer, input_shape: Shape) -> Array:
    """For every output, in the order of the loops, the lowest place in the input that it reads."""
    output_shape = layer.output_shape(input_shape)
    outputs = np.arange(np.prod(output_shape))
    if isinstance(layer, IntegerReLU):
        return outputs
    if not isinstance(layer, IntegerConv2D | IntegerMaxPool2D | IntegerAvgPool2D):
        return np.zeros_like(outputs)  # a dense layer reads everything
    h, w, channels = input_shape
    y, x, o = np.unravel_index(outputs, output_shape)
    dilation, first = (1, 1), o
    if isinstance(layer, IntegerConv2D):
        dilation = layer.dilation
        first = o // (output_shape[2] // layer.groups) * layer.weight.shape[2]
    row, column = (
        np.minimum(np.where(start < 0, start % step, start), size - 1)
        for start, step, size in (
            (y * layer.stride[0] - layer.padding[0][0], dilation[0], h),
            (x * layer.stride[1] - layer.padding[1][0], dilation[1], w),
        )
    )
    reads: Array = (row * w + column) * channels + first
    return reads
