"""Networks with early exits so small that a test can say everything about them."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.early_exit.exits import EarlyExit, attach_heads
from minicompress.nn.architectures import digits_cnn
from minicompress.nn.composition import Parallel, Residual, Sequential
from minicompress.nn.layers import Dense
from minicompress.nn.pointwise import ReLU
from minicompress.nn.stateless import Add, Concat


def whole(shape, largest=3):
    return arrays(np.float64, shape, elements=st.integers(-largest, largest).map(float))


def dense(*rows):
    return Sequential((Dense(np.array(rows, float)),))


# Two features, three classes, small integers throughout: nothing is rounded before the softmax, so
# a row's logits are the same bits in any company.
FIRST = Sequential((Dense(np.array([[1.0, 2.0], [-1.0, 1.0]])), ReLU()))
SECOND = Sequential((Dense(np.array([[1.0, 0.0], [1.0, -1.0]])),))
LAST = dense([2, 0, -1], [1, -3, 0])
HEADS = (dense([1, -1, 0], [0, 1, 1]), dense([0, 1, -1], [2, -1, 0]))
EXITS = EarlyExit((FIRST, SECOND, LAST), HEADS, (0.9, 0.8))
# Its first segment hands the logits on, so that a test can say what the heads see.
PLAIN = dense([1, 0, 0], [0, 1, 0], [0, 0, 1])

# With a shortcut in the first segment, and branches in the last one and in the head.
BRANCHED = EarlyExit(
    (Sequential((Residual(*FIRST.layers), ReLU())),
     Sequential((Parallel(((), SECOND), Concat()), *dense([1, 0, 1], [0, 2, 0], [1, 1, 0],
                                                          [-1, 0, 2]).layers))),
    (Parallel(HEADS, Add()),),
    (0.75,),
    "margin",
)  # fmt: skip

SEEN = np.array([[3.0, 1], [0, 0], [1, -3], [-2, -1], [2, 2], [-3, 3], [0, -1], [1, 1]])


def images(n):
    return np.random.default_rng(1).random((n, 8, 8, 1), np.float32)


CNN = digits_cnn(np.random.default_rng(0))
CNN_EXITS = attach_heads(CNN, (1, 3), (8, 8, 1), pool=2)

X, Y = images(40), np.arange(40) % 10
