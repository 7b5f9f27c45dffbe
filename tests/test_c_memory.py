"""C from an integer model: the smallest form of its weights, the least memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from c_models import convolutions, pools
from hypothesis import assume, given
from hypothesis import strategies as st
from integer_oracles import BORDERED, int8s

from minicompress.integer.layers import IntegerConv2D, IntegerDense
from minicompress.integer.stateless import IntegerReLU
from minicompress.interchange.c_plan import lead, plan
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


def law_plan(impl, sizes, leads):
    """Every array lies within, no layer starts too late for its input, and no smaller size does."""
    size, steps = impl(sizes, leads)
    needs = [sizes[0]]
    assert 0 <= steps[0].target <= size - sizes[0]
    for i in range(1, len(sizes)):
        before, step = steps[i - 1].target, steps[i]
        needs.append(max(sizes[i - 1] + leads[i], sizes[i]))
        if step.moved_from is None:
            assert step.source == before
        else:
            assert step.moved_from == before < step.source  # moving starts at the last code
        assert 0 <= step.source <= size - sizes[i - 1]
        assert 0 <= step.target <= size - sizes[i]
        behind = step.target >= step.source + sizes[i - 1]
        assert behind or step.target + leads[i] <= step.source
    assert size == max(needs)


@given(st.data())
def test_plans(data):
    sizes = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    leads = [data.draw(st.integers(0, size - 1)) for size in sizes]
    law_plan(plan, sizes, leads)


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
    needed = impl(layer, shape)
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


# planted wrong exports ----------------------------------------------------------------------------


def two_buffers(sizes, leads):
    size, steps = plan(sizes, leads)
    return max(sizes) + size, steps


def no_leads(sizes, leads):
    return plan(sizes, [0] * len(leads))


@pytest.mark.parametrize("wrong", [two_buffers, no_leads])
def test_a_planted_plan_breaks_its_law(wrong):
    law_plan(plan, [576, 512, 10], [0, 175, 9])
    with pytest.raises(AssertionError):
        law_plan(wrong, [576, 512, 10], [0, 175, 9])


@pytest.mark.parametrize("off", [-1, 1])
def test_a_planted_lead_breaks_its_law(off):
    law_lead(lead, BORDERED, (5, 5, 2))
    with pytest.raises(AssertionError):
        law_lead(lambda *arguments: lead(*arguments) + off, BORDERED, (5, 5, 2))
