"""Where the codes between the layers are stored: one array, in which outputs overwrite inputs.

A layer writes its output one code after the other, and reads each input from front to back. So the
output may begin a little before an input that no later layer reads, by the layer's `lead` for this
input: each code then overwrites only inputs that were read for the last time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array
from minicompress.integer.joins import IntegerAdd, IntegerConcat, IntegerMultiply
from minicompress.integer.layers import IntegerConv2D, IntegerScale
from minicompress.integer.stateless import (
    IntegerAvgPool2D,
    IntegerChannelShuffle,
    IntegerLayer,
    IntegerMaxPool2D,
    IntegerReLU,
    IntegerTable,
    IntegerUpsample2D,
)
from minicompress.nn.layer import Shape
from minicompress.nn.rearranging import shuffled

SAME_PLACE = IntegerReLU | IntegerTable | IntegerScale | IntegerAdd
"""Layers that read entry i of their inputs for entry i of their output."""


class Step(NamedTuple):
    """Where one layer reads and writes, in bytes from the start of the array.

    Parameters
    ----------
    sources : tuple of int or None
        For each value that it reads; None is the caller's input.
    target : int
    moved_from : int or None
        If the only input must first be moved to its source: where it was.
    """

    sources: tuple[int | None, ...]
    target: int
    moved_from: int | None = None


class Plan(NamedTuple):
    """The size of the array in bytes, and a step for every layer."""

    size: int
    steps: tuple[Step, ...]


def plan(
    sizes: Sequence[int],
    reads: Sequence[Sequence[int]],
    leads: Sequence[Sequence[int]],
    outputs: Sequence[int],
) -> Plan:
    """Choose a place in the array for the output of every layer.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of the output of every layer.
    reads : sequence of sequence of int
        The values that each layer reads: 0 is the caller's input, k + 1 the output of layer k.
    leads : sequence of sequence of int
        The lead of every layer for each value that it reads.
    outputs : sequence of int
        The values that must stay to the end.

    Notes
    -----
    A value lives from the layer that makes it to the last layer that reads it. Values that live at
    the same time lie apart, but for the output of a layer and an input that it is the last to read:
    these two may overlap as far as the lead allows. The values are placed one after the other, each
    where the array grows least: once from the largest to the smallest ("greedy by size", Lee et
    al., *On-device neural net inference with mobile GPUs*, 2019, as in TensorFlow Lite Micro), and
    once by size times lifetime, which places the shortcuts of a residual network first. The smaller
    array is taken. It need not be the least that is possible; for a chain, `plan_chain` gives that.

    Examples
    --------
    >>> plan([8, 8, 8], [[0], [1], [2, 1]], [[0], [7], [0, 0]], [3])
    Plan(size=16, steps=(Step(sources=(None,), target=8, moved_from=None), \
Step(sources=(8,), target=0, moved_from=None), Step(sources=(0, 8), target=0, moved_from=None)))
    """
    if not sizes:
        return Plan(0, ())
    chain = all(list(read) == [k] for k, read in enumerate(reads))
    if chain and list(outputs) == [len(sizes)]:
        return plan_chain(sizes, [first for first, *_ in leads])
    last = {value: k for k, read in enumerate(reads) for value in read}
    last |= dict.fromkeys(outputs, len(sizes))
    values = range(1, len(sizes) + 1)
    by_size = sorted(values, key=lambda v: -sizes[v - 1])
    by_life = sorted(values, key=lambda v: -sizes[v - 1] * (last[v] - v))

    def apart(value: int, other: int, at: int) -> tuple[int, int] | None:
        """The open interval in which a value must not begin if another one is at `at`."""
        first, second = sorted((value, other))
        if last[first] < second - 1:
            return None
        before = sizes[second - 1]
        if last[first] == second - 1:
            pairs = zip(reads[second - 1], leads[second - 1], strict=True)
            before = min(before, max(lead for read, lead in pairs if read == first))
        after = sizes[first - 1]
        return (at - before, at + after) if value == second else (at - after, at + before)

    plans = []
    for order in (by_size, by_life):
        place: dict[int, int] = {}
        start = stop = 0
        for value in order:
            size = sizes[value - 1]
            taken = [span for v, at in place.items() if (span := apart(value, v, at))]
            ends = [0, *(end for span in taken for end in span)]
            free = [at for at in ends if not any(low < at < high for low, high in taken)]
            at = min(free, key=lambda at: (max(stop, at + size) - min(start, at), at))
            place[value] = at
            start, stop = min(start, at), max(stop, at + size)
        steps = (
            Step(tuple(place[v] - start if v else None for v in read), place[k + 1] - start)
            for k, read in enumerate(reads)
        )
        plans.append(Plan(stop - start, tuple(steps)))
    return min(plans, key=lambda made: made.size)


def plan_chain(sizes: Sequence[int], leads: Sequence[int]) -> Plan:
    """The same for a chain, in the least memory.

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
    >>> plan_chain([576, 512, 10], [0, 175, 9])  # 1,088 with two buffers
    Plan(size=751, steps=(Step(sources=(None,), target=175, moved_from=None), \
Step(sources=(175,), target=0, moved_from=None), Step(sources=(0,), target=512, moved_from=None)))
    """
    pairs = list(zip(sizes[:-1], sizes[1:], leads[1:], strict=True))
    size = max([sizes[0], *(max(before + lead, after) for before, after, lead in pairs)])
    steps = [Step((None,), size - sizes[0])]
    for before, after, lead in pairs:
        at = steps[-1].target
        if at >= lead:
            steps.append(Step((at,), min(at - lead, size - after)))
        elif at + before + after <= size:
            steps.append(Step((at,), at + before))
        else:
            end = size - before
            steps.append(Step((end,), min(end - lead, size - after), at))
    return Plan(size, tuple(steps))


def lead(layer: IntegerLayer, *input_shapes: Shape) -> tuple[int, ...]:
    """The least number of bytes by which a layer's output must begin before each of its inputs.

    A layer is assumed to read its whole windows, even where weights are 0.

    Examples
    --------
    >>> lead(IntegerMaxPool2D((2, 2), (2, 2)), (4, 4, 3))
    (0,)
    """
    found = []
    for reads in _first_reads(layer, input_shapes):
        # When output t is written at `start + t`, later outputs must read only beyond that.
        later = np.minimum.accumulate(reads[:0:-1])[::-1]
        found.append(max(int((np.arange(1, reads.size) - later).max(initial=0)), 0))
    return tuple(found)


def _first_reads(layer: IntegerLayer, input_shapes: Sequence[Shape]) -> list[Array]:
    """For each input, and every output in the order of the loops, the first index that it reads."""
    output_shape, shape = layer.output_shape(*input_shapes), input_shapes[0]
    count = math.prod(output_shape)
    outputs = np.arange(count)
    if isinstance(layer, SAME_PLACE):
        return [outputs for _ in input_shapes]
    if isinstance(layer, IntegerMultiply):
        return [
            outputs if math.prod(read) == count else outputs % read[-1] for read in input_shapes
        ]
    if isinstance(layer, IntegerConcat):
        pixel, channel = np.divmod(outputs, output_shape[-1])
        reads, first = [], 0
        for read in input_shapes:
            here = (channel >= first) & (channel < first + read[-1])
            # Where an output does not read this input, a place behind all.
            reads.append(np.where(here, pixel * read[-1] + channel - first, count))
            first += read[-1]
        return reads
    if isinstance(layer, IntegerUpsample2D):
        y, x, c = np.unravel_index(outputs, output_shape)
        return [(y // layer.factor[0] * shape[1] + x // layer.factor[1]) * shape[2] + c]
    if isinstance(layer, IntegerChannelShuffle):
        indices: Array = np.arange(count).reshape(1, *shape)
        return [shuffled(indices, layer.groups).ravel()]
    if not isinstance(layer, IntegerConv2D | IntegerMaxPool2D | IntegerAvgPool2D):
        return [np.zeros_like(outputs)]  # dense and transposed: they are taken to read everything
    h, w, channels = shape
    g = layer.geometry((h, w))
    y, x, channel = np.unravel_index(outputs, output_shape)
    if isinstance(layer, IntegerConv2D):
        channel = channel // (output_shape[2] // layer.groups) * layer.weight.shape[2]
    row, column = (
        np.minimum(np.where(start < 0, start % dilation, start), size - 1)
        for start, dilation, size in (
            (y * g.stride[0] - g.pads[0][0], g.dilation[0], h),
            (x * g.stride[1] - g.pads[1][0], g.dilation[1], w),
        )
    )
    return [(row * w + column) * channels + channel]
