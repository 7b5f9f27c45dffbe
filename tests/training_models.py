"""What the tests of `fit` and of the optimizers share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.nn.composition import Sequential
from minicompress.nn.layers import Dense
from minicompress.nn.optimizers import adam, sgd, step_lr
from minicompress.nn.parameters import parameters, with_parameters

OPTIMIZERS = {
    "sgd": sgd(0.5),
    "momentum": sgd(0.5, momentum=0.5, weight_decay=0.25),
    "nesterov": sgd(step_lr(0.5, 0.5, 2), momentum=0.5, nesterov=True),
    "adam": adam(0.1),
    "adamw": adam(0.1, weight_decay=0.5),
}
START = Sequential((Dense(np.array([[1.0, -1.0], [0.5, 0.25], [-2.0, 3.0]]), np.zeros(2)),))


def small(shape):
    return arrays(np.float64, shape, elements=st.integers(-3, 3).map(float))


def mapped(model, change):
    """The model with `change` applied to each weight of rank 2."""
    return with_parameters(
        model, tuple({n: change(w) for n, w in d.items() if w.ndim > 1} for d in parameters(model))
    )
