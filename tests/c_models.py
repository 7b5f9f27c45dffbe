"""Integer networks for the tests of their C."""

from __future__ import annotations

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from integer_oracles import averages, int8s
from test_integer_layers import PAIR, affine_fields

from minicompress.integer.layers import IntegerConv2D
from minicompress.integer.stateless import IntegerMaxPool2D


@st.composite
def affine(draw, kind, shape, **options):
    """A layer whose codes are of all kinds: dense, few values, mostly zeros, few bits."""
    fields = draw(affine_fields(shape))
    weight = fields["weight"]
    form = draw(st.sampled_from(["dense", "few", "sparse", "narrow"]))
    if form == "few":
        weight = draw(int8s(3))[np.abs(weight.astype(int)) % 3]
    elif form == "sparse":
        weight = np.where(weight % 8 == 0, weight, 0)
    elif form == "narrow":
        weight = weight // 2 ** draw(st.integers(1, 6))
    fields["weight"] = weight.astype(np.int8)
    return kind(**fields, **options)


@st.composite
def convolutions(draw, h, w, channels):
    groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
    kh, kw = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = (kh, kw, channels // groups, draw(st.integers(1, 3)) * groups)
    pads = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 2))] * 2))
    options = {"stride": draw(PAIR), "dilation": draw(PAIR), "padding": pads, "groups": groups}
    assume((kh - 1) * options["dilation"][0] < h + sum(pads[0]))
    assume((kw - 1) * options["dilation"][1] < w + sum(pads[1]))
    return draw(affine(IntegerConv2D, shape, **options))


@st.composite
def pools(draw, h, w):
    window = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    pads = tuple(
        (draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1))) for size in window
    )
    assume(window[0] <= h + sum(pads[0]) and window[1] <= w + sum(pads[1]))
    if draw(st.booleans()):
        return IntegerMaxPool2D(window, draw(PAIR), pads)
    return draw(averages(window, draw(PAIR), pads))
