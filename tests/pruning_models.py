"""What the tests of pruning share: exact numbers, arrays with ties, and cases for wrong ones."""

import math
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

TABLE = np.array([[1.0, 5.0, 2.0], [4.0, 3.0, 6.0]])


def exact(w):
    return [Fraction(x) for x in w.astype(np.float64).ravel().tolist()]


def squares(w, indices):
    values = exact(w)
    return sum((values[i] ** 2 for i in indices), Fraction(0))


def dropped_of(w, rep):
    """The C-order places that are not kept."""
    return sorted(set(range(w.size)) - set(rep.indices.tolist()))


def tied(max_size=12):
    """Small integers, both zeros among them: most draws have ties."""
    entries = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 3.0])
    return array_shapes(max_dims=3, max_side=4).filter(lambda s: math.prod(s) <= max_size).flatmap(
        lambda shape: arrays(np.float64, shape, elements=entries)
    )  # fmt: skip


def counted(strategy):
    return strategy.flatmap(lambda w: st.tuples(st.just(w), st.integers(0, w.size)))


def on(law, *cases):
    return lambda wrong: [law(wrong, *case) for case in cases]
