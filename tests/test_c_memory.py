"""C from an integer model: the smallest form of its weights, the least memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from c_models import convolutions, pools
from hypothesis import assume, given
from hypothesis import strategies as st
from integer_oracles import BORDERED, int8s

from minicompress.integer.joins import IntegerAdd, IntegerConcat, IntegerMultiply
from minicompress.integer.layers import IntegerConv2D, IntegerDense
from minicompress.integer.stateless import (
    IntegerChannelShuffle,
    IntegerReLU,
    IntegerTable,
    IntegerUpsample2D,
)
from minicompress.interchange.c_plan import lead, plan, plan_chain
from minicompress.interchange.c_weights import smallest

# the form of weights ------------------------------------------------------------------------------


def packed_bytes(values):
    """Of a list of codes, packed or with a codebook; a byte more where numbers cross bytes."""

    def size(bits):
        return -(-len(values) * bits // 8) + (8 % bits > 0)

    bits = next(b for b in range(1, 9) if min(values) >= -(2 ** (b - 1)) and
                max(values) < 2 ** (b - 1))  # fmt: skip
    count = len(set(values))
    width = max(math.ceil(math.log2(count)), 1)
    return min(size(bits), size(width) + count if width < 8 else math.inf)


def sparse_bytes(codes, bits):
    """Code by code: a gap that is full, or a value, makes an entry."""
    values, run = [], 0
    for code in codes:
        if code or run == 2**bits - 1:
            values.append(code)
            run = 0
        else:
            run += 1
    return packed_bytes(values) + -(-(len(values) + 1) * bits // 8) + (8 % bits > 0)


def law_smallest(impl, codes):
    numbers = codes.tolist()
    sizes = [packed_bytes(numbers)]
    if any(numbers):
        sizes += [sparse_bytes(numbers, bits) for bits in range(1, 9)]
    form = impl(codes)
    assert form.nbytes == min(sizes)
    assert sum(array.nbytes for array in form.arrays("n").values()) == form.nbytes


@given(st.data())
def test_the_smallest_form_is_taken(data):
    codes = data.draw(int8s(data.draw(st.integers(1, 60))))
    kept = data.draw(st.sampled_from([codes, codes * (codes > 90), codes // 32, codes % 3 * 50]))
    law_smallest(smallest, kept.astype(np.int8))


def test_a_planted_form_is_caught():
    codes = np.array([0] * 90 + [100], np.int8)
    law_smallest(smallest, codes)
    with pytest.raises(AssertionError):
        law_smallest(lambda codes: smallest(codes | 1), codes)


# the plan of the memory ---------------------------------------------------------------------------


def law_chain(impl, sizes, leads):
    """Every array lies within, no layer starts too late for its input, and no smaller size does."""
    size, steps = impl(sizes, leads)
    needs = [sizes[0]]
    assert 0 <= steps[0].target <= size - sizes[0]
    for i in range(1, len(sizes)):
        before, step = steps[i - 1].target, steps[i]
        needs.append(max(sizes[i - 1] + leads[i], sizes[i]))
        if step.moved_from is None:
            assert step.sources[0] == before
        else:
            assert step.moved_from == before < step.sources[0]  # moving starts at the last code
        assert 0 <= step.sources[0] <= size - sizes[i - 1]
        assert 0 <= step.target <= size - sizes[i]
        behind = step.target >= step.sources[0] + sizes[i - 1]
        assert behind or step.target + leads[i] <= step.sources[0]
    assert size == max(needs)


@given(st.data())
def test_plans_of_chains(data):
    sizes = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    leads = [data.draw(st.integers(0, size - 1)) for size in sizes]
    law_chain(plan_chain, sizes, leads)


def simulated(reads, start_in, start_out):
    """Does any output overwrite what a later one reads?"""
    for t in range(len(reads)):
        for later in reads[t + 1 :]:
            if start_out + t - start_in in later:
                return True
    return False


def law_lead(impl, layer, shape):
    """With the lead nothing is overwritten too early; with one byte less something is."""
    reads, window = [], math.prod(shape)
    probe = np.arange(window).reshape(shape)
    out = layer.output_shape(shape)
    for index in np.ndindex(out):
        if isinstance(layer, IntegerDense):
            reads.append(set(range(window)))
        elif isinstance(layer, IntegerReLU):
            reads.append({int(probe[index])})
        else:
            reads.append(seen(layer, probe, index))
    (needed,) = impl(layer, shape)
    assert not simulated(reads, needed, 0)
    if needed:
        assert simulated(reads, needed - 1, 0)


def seen(layer, probe, index):
    """The places that one output of a convolution or a pooling reads, by the definition."""
    (y, x, o), (h, w) = index, probe.shape[:2]
    dilation, kernel, inputs = (1, 1), (), slice(o, o + 1)
    if isinstance(layer, IntegerConv2D):
        dilation, kernel = layer.dilation, layer.weight.shape[:2]
        first = o // (layer.weight.shape[3] // layer.groups) * layer.weight.shape[2]
        inputs = slice(first, first + layer.weight.shape[2])
    else:
        kernel = layer.window
    rows = [y * layer.stride[0] + p * dilation[0] - layer.padding[0][0] for p in range(kernel[0])]
    columns = [
        x * layer.stride[1] + q * dilation[1] - layer.padding[1][0] for q in range(kernel[1])
    ]
    places = [probe[r, c, inputs] for r in rows for c in columns if 0 <= r < h and 0 <= c < w]
    return set(np.concatenate(places).tolist()) if places else set()


@given(st.data())
def test_leads(data):
    h, w, channels = (data.draw(st.integers(1, top)) for top in (4, 4, 2))
    layer = data.draw(st.one_of(convolutions(h, w, channels), pools(h, w), st.just(IntegerReLU(0))))
    # Where a window lies beside the image altogether the lead may be larger than it must be.
    if isinstance(layer, IntegerConv2D):
        out = layer.output_shape((h, w, channels))
        probe = np.zeros((h, w, channels), int)
        assume(all(seen(layer, probe, index) for index in np.ndindex(out)))
    law_lead(lead, layer, (h, w, channels))


def test_the_lead_of_a_dense_layer():
    for outputs in (1, 2, 5):
        fields = {name: getattr(BORDERED, name)[:1].repeat(outputs) for name in
                  ("bias", "multiplier", "shift")}  # fmt: skip
        layer = IntegerDense(
            np.ones((3, outputs), np.int8), **fields, input_zero_point=0, output_zero_point=0,
            low=-128, high=127, num_bits=8,
            scales=BORDERED.scales._replace(weight=np.ones(outputs)),
        )  # fmt: skip
        law_lead(lead, layer, (3,))


# the plan of programs -----------------------------------------------------------------------------


@st.composite
def programs(draw):
    """Sizes, reads, leads and outputs of a drawn program in which every value is needed."""
    count = draw(st.integers(1, 7))
    sizes = [draw(st.integers(1, 20)) for _ in range(count)]
    reads = [
        draw(st.lists(st.integers(0, k), min_size=1, max_size=3)) for k in range(count)
    ]  # value 0 is the caller's
    leads = [[draw(st.integers(0, sizes[k])) for _ in read] for k, read in enumerate(reads)]
    read = {value for values in reads for value in values}
    outputs = [value for value in range(1, count + 1) if value not in read]
    return sizes, reads, leads, outputs


def law_plan(impl, sizes, reads, leads, outputs):
    """While a layer runs, its output lies apart from all that is read later, or again later.

    Of an input that it is the last to read, the output may only begin `lead` bytes before.
    """
    size, steps = impl(sizes, reads, leads, outputs)
    place = {0: None}
    for k, (step, read) in enumerate(zip(steps, reads, strict=True)):
        if step.moved_from is None:
            assert step.sources == tuple(place[value] for value in read)
        else:
            assert step.moved_from == place[k]
            place[k] = step.sources[0]
        assert 0 <= step.target <= step.target + sizes[k] <= size
        later = {value for values in reads[k + 1 :] for value in values} | set(outputs)
        for value, at in place.items():
            if value == 0 or (value not in later and value not in read):
                continue
            behind = step.target >= at + sizes[value - 1]
            before = sizes[k]
            if value not in later:
                pairs = zip(read, leads[k], strict=True)
                before = min(before, max(lead for other, lead in pairs if other == value))
            assert behind or step.target + before <= at
        place[k + 1] = step.target
    # No less than what one layer needs, no more than all of it side by side.
    assert max(sizes, default=0) <= size <= sum(sizes)


@given(programs())
def test_plans_of_programs(case):
    law_plan(plan, *case)


def test_a_plan_reuses_what_nobody_reads_any_more():
    """A residual block in place: three values of 8, of which two live at a time."""
    size, _ = plan([8, 8, 8], [[0], [1], [2, 1]], [[0], [8], [0, 0]], [3])
    assert size == 16
    assert plan([], [], [], [0]).size == 0
    # The same chain, once as a program with a second output: that one is kept.
    assert plan([8, 8, 4], [[0], [1], [2]], [[0], [0], [0]], [3]).size == 8
    assert plan([8, 8, 4], [[0], [1], [2]], [[0], [0], [0]], [3, 1]).size == 16


def test_residual_blocks_take_two_values_and_a_lead():
    """One after the other, as in ResNet: x, conv, conv in place but for the lead, sum in place."""
    sizes, reads, leads = [100], [[0]], [[0]]
    for _ in range(9):
        x = len(sizes)
        sizes += [100, 100, 100]
        reads += [[x], [x + 1], [x + 2, x]]
        leads += [[7], [7], [0, 0]]
    assert plan(sizes, reads, leads, [len(sizes)]).size == 207


BLOCK = ([8, 8, 8, 6], [[0], [1], [2, 1], [3]], [[0], [8], [0, 0], [5]], [4])


def forgets_skips(sizes, reads, leads, outputs):
    """Every value is taken to die with the next layer."""
    return plan(sizes, [[k] for k in range(len(sizes))], [each[:1] for each in leads], outputs)


def without_leads(sizes, reads, leads, outputs):
    return plan(sizes, reads, [[0] * len(each) for each in leads], outputs)


def without_outputs(sizes, reads, leads, outputs):
    return plan(sizes, reads, leads, outputs[-1:])


@pytest.mark.parametrize("wrong", [forgets_skips, without_leads, without_outputs])
def test_a_planted_plan_of_a_program_breaks_its_law(wrong):
    sizes, reads, leads, _ = BLOCK
    case = (sizes, reads, leads, [2, 4])
    law_plan(plan, *case)
    with pytest.raises(AssertionError):
        law_plan(wrong, *case)


def law_leads(impl, layer, *shapes):
    """For each input: with the lead nothing is overwritten too early, with a byte less it is."""
    found = impl(layer, *shapes)
    for k, needed in enumerate(found):
        reads = read_by(layer, shapes, k)
        assert not simulated(reads, needed, 0)
        if needed:
            assert simulated(reads, needed - 1, 0)


def read_by(layer, shapes, which):
    """The places of one input that each entry of the output depends on, found by changing them.

    The codes are such that the layer passes them on: each entry reads at most one of this input.
    """
    zeros = [np.zeros((1, *shape), np.int8) for shape in shapes]
    if isinstance(layer, IntegerMultiply):
        zeros = [np.ones((1, *shape), np.int8) for shape in shapes]
    rest = layer.forward(*zeros).ravel()
    reads = [set() for _ in rest]
    for place in range(math.prod(shapes[which])):
        codes = [x.copy() for x in zeros]
        codes[which].ravel()[place] = 64
        for t in np.flatnonzero(layer.forward(*codes).ravel() != rest):
            reads[t].add(place)
    return reads


UNIT = {"multiplier": np.array([2**30]), "shift": np.array([30])}
UNITS = {name: value.repeat(2) for name, value in UNIT.items()}
IDENTITY = IntegerTable(np.arange(-128, 128).astype(np.int8))
MOVES = {
    "table": (IDENTITY, (2, 3, 2)),
    "add": (IntegerAdd((0, 0), multiplier=np.array([2**30, 2**30]), shift=30), *[(2, 3)] * 2),
    "multiply": (IntegerMultiply((0, 0), **UNIT), (2, 3), (2, 3)),
    "gate": (IntegerMultiply((0, 0), **UNIT), (2, 3, 2), (1, 1, 2)),
    "gate first": (IntegerMultiply((0, 0), **UNIT), (1, 1, 2), (2, 3, 2)),
    "concat": (IntegerConcat((0, 0), **UNITS), (2, 3, 2), (2, 3, 3)),
    "concat of rows": (IntegerConcat((0, 0), **UNITS), (5,), (3,)),
    "upsample": (IntegerUpsample2D((2, 3)), (2, 2, 2)),
    "shuffle": (IntegerChannelShuffle(3), (2, 1, 6)),
}


@pytest.mark.parametrize("name", MOVES)
def test_the_leads_of_joins_and_moves(name):
    law_leads(lead, *MOVES[name])


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize("name", ["gate", "concat", "upsample", "shuffle"])
def test_a_planted_lead_of_a_join_breaks_its_law(name, off):
    with pytest.raises(AssertionError):
        law_leads(lambda *args: tuple(n + off for n in lead(*args)), *MOVES[name])


# planted wrong exports ----------------------------------------------------------------------------


def two_buffers(sizes, leads):
    size, steps = plan_chain(sizes, leads)
    return max(sizes) + size, steps


def no_leads(sizes, leads):
    return plan_chain(sizes, [0] * len(leads))


@pytest.mark.parametrize("wrong", [two_buffers, no_leads])
def test_a_planted_plan_breaks_its_law(wrong):
    law_chain(plan_chain, [576, 512, 10], [0, 175, 9])
    with pytest.raises(AssertionError):
        law_chain(wrong, [576, 512, 10], [0, 175, 9])


@pytest.mark.parametrize("off", [-1, 1])
def test_a_planted_lead_breaks_its_law(off):
    law_lead(lead, BORDERED, (5, 5, 2))
    with pytest.raises(AssertionError):
        law_lead(lambda *arguments: (lead(*arguments)[0] + off,), BORDERED, (5, 5, 2))
