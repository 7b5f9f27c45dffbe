"""Losses against scalar formulas in float64; their gradients by central differences."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.errors import CompressionError
from minicompress.nn.losses import mean_squared_error, softmax_cross_entropy

DTYPES = (np.float16, np.float32, np.float64)
U = 2.0**-53


@st.composite
def logit_cases(draw, elements):
    n, classes = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(DTYPES))
    logits = draw(arrays(dtype, (n, classes), elements=elements))
    return logits, draw(arrays(np.int64, n, elements=st.integers(0, classes - 1)))


def law_cross_entropy(loss_of, case):
    """The mean of log(sum exp(z)) - z_label, whatever the size of the logits."""
    logits, labels = case
    loss, dlogits = loss_of(logits, labels)
    assert type(loss) is float
    assert (dlogits.shape, dlogits.dtype) == (logits.shape, logits.dtype)
    total = 0.0
    for row, label in zip(logits.astype(float).tolist(), labels.tolist(), strict=True):
        top = max(row)
        total += math.log(math.fsum(math.exp(z - top) for z in row)) + top - row[label]
    exact = total / max(len(labels), 1)
    # Every term is at most 2,010; exp, log and the sums over classes and batch take fewer than 32
    # roundings, each of at most u of that.
    assert abs(loss - exact) <= 32 * U * 2010
    if len(labels):
        # Each row of softmax - one_hot sums to zero; its entries are rounded to the dtype.
        rows = dlogits.astype(float).sum(1)
        assert (np.abs(rows) <= logits.shape[1] * float(np.finfo(logits.dtype).eps)).all()


def law_gradient(loss_of, outputs, *rest):
    """The derivative of the loss by central differences.

    Off by h^2 / 6 times a third derivative, of at most 1, and by the loss's rounding over h: its
    terms are below 100 here and take fewer than 32 roundings.
    """
    h = 1e-4
    allowed = h * h / 6 + 32 * U * 100 / h
    _, gradient = loss_of(outputs, *rest)
    for index in np.ndindex(outputs.shape):
        step = np.zeros_like(outputs)
        step[index] = h
        difference = (loss_of(outputs + step, *rest)[0] - loss_of(outputs - step, *rest)[0]) / (
            2 * h
        )
        assert abs(gradient[index] - difference) <= allowed


def law_squared_error(loss_of, outputs, targets):
    """The mean of squared differences and its derivative: exact for integers and 2^k entries."""
    loss, doutputs = loss_of(outputs, targets)
    assert type(loss) is float
    assert doutputs.dtype == outputs.dtype
    difference = outputs.astype(float) - targets
    assert loss == (difference**2).sum() / max(outputs.size, 1)
    np.testing.assert_array_equal(doutputs, 2 * difference / max(outputs.size, 1))


@given(logit_cases(st.floats(-1000, 1000, width=16)))
def test_cross_entropy(case):
    law_cross_entropy(softmax_cross_entropy, case)


@given(logit_cases(st.floats(-5, 5, width=16)))
def test_cross_entropy_gradient(case):
    law_gradient(softmax_cross_entropy, case[0].astype(float), case[1])


@given(
    st.sampled_from(DTYPES),
    st.sampled_from([(0, 3), (1, 1), (2, 2), (4, 2)]),
    st.data(),
)
def test_squared_error(dtype, shape, data):
    pair = [data.draw(arrays(dtype, shape, elements=st.integers(-3, 3))) for _ in range(2)]
    law_squared_error(mean_squared_error, *pair)


def test_known_values():
    loss, dlogits = softmax_cross_entropy(np.zeros((2, 4), np.float32), np.array([0, 3]))
    assert loss == math.log(4)
    np.testing.assert_array_equal(dlogits * 8, [[-3, 1, 1, 1], [1, 1, 1, -3]])
    # Certain and wrong, by much more than exp can hold.
    loss, dlogits = softmax_cross_entropy(np.array([[30000.0, -30000.0]]), np.array([1]))
    assert loss == 60000.0
    np.testing.assert_array_equal(dlogits, [[1, -1]])


def test_empty_batch():
    loss, dlogits = softmax_cross_entropy(np.zeros((0, 4)), np.zeros(0, int))
    assert (loss, dlogits.shape) == (0.0, (0, 4))
    assert softmax_cross_entropy(np.zeros((0, 0)), np.zeros(0, int))[0] == 0.0


def test_arguments_are_left_alone_in_any_layout():
    logits, labels = np.arange(12.0).reshape(3, 4) / 7, np.array([0, 3, 2], np.uint8)
    before = logits.tobytes(), labels.tobytes()
    loss, dlogits = softmax_cross_entropy(logits, labels)
    mean_squared_error(logits, dlogits)
    assert (logits.tobytes(), labels.tobytes()) == before
    for other in (np.asfortranarray(logits), np.repeat(logits, 2, axis=0)[::2]):
        assert softmax_cross_entropy(other, labels)[0] == loss


Z, LABELS = np.zeros((2, 3)), np.array([0, 1])
ERRORS = [
    ("logits", softmax_cross_entropy, (np.zeros(3), LABELS)),
    ("logits", softmax_cross_entropy, (Z.astype(int), LABELS)),
    ("labels", softmax_cross_entropy, (Z, np.array([0, 1, 2]))),
    ("labels", softmax_cross_entropy, (Z, np.array([[0], [1]]))),
    ("labels", softmax_cross_entropy, (Z, np.array([0.0, 1.0]))),
    ("labels", softmax_cross_entropy, (Z, np.array([0, 3]))),
    ("labels", softmax_cross_entropy, (Z, np.array([0, -1]))),
    ("labels", softmax_cross_entropy, (np.zeros((2, 0)), LABELS)),
    ("targets", mean_squared_error, (Z, np.zeros((3, 2)))),
    ("targets", mean_squared_error, (Z, np.zeros((2, 3), int))),
    ("dtype", mean_squared_error, (Z, np.zeros((2, 3), np.float32))),
]


@pytest.mark.parametrize(("word", "function", "arguments"), ERRORS)
def test_bad_arguments_are_named(word, function, arguments):
    with pytest.raises(CompressionError, match=word):
        function(*arguments)


# Wrong implementations that the laws must catch -------------------------------------------------


def _changed(loss_of, change_loss=lambda loss, n: loss, change_gradient=lambda d, n: d):
    def wrong(outputs, rest):
        loss, gradient = loss_of(outputs, rest)
        return change_loss(loss, len(outputs)), change_gradient(gradient, len(outputs))

    return wrong


def without_shift(logits, labels):
    with np.errstate(all="ignore"):
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return float(-np.log(p[np.arange(len(p)), labels]).mean()), p


def loss_in_float16(logits, labels):
    loss, gradient = softmax_cross_entropy(logits, labels)
    return float(np.float16(loss)), gradient


CASE = np.array([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]]), np.array([0, 2])
LARGE = CASE[0] * 1000, CASE[1]
SQUARES = np.array([[1.0, 2.0], [3.0, -2.0]]), np.array([[0.0, 2.0], [1.0, 1.0]])

PLANTED = {
    "sum for mean": (
        lambda f: law_cross_entropy(f, CASE),
        _changed(softmax_cross_entropy, lambda loss, n: loss * n),
    ),
    "overflow": (lambda f: law_cross_entropy(f, LARGE), without_shift),
    "loss rounded to float16": (lambda f: law_cross_entropy(f, CASE), loss_in_float16),
    "labels one off": (
        lambda f: law_cross_entropy(f, CASE),
        lambda logits, labels: softmax_cross_entropy(logits, (labels + 1) % 3),
    ),
    "gradient not averaged": (
        lambda f: law_gradient(f, *CASE),
        _changed(softmax_cross_entropy, change_gradient=lambda d, n: d * n),
    ),
    "gradient of the other sign": (
        lambda f: law_gradient(f, *CASE),
        _changed(softmax_cross_entropy, change_gradient=lambda d, n: -d),
    ),
    "squares summed": (
        lambda f: law_squared_error(f, *SQUARES),
        _changed(mean_squared_error, lambda loss, n: loss * 4),
    ),
    "half of the gradient": (
        lambda f: law_squared_error(f, *SQUARES),
        _changed(mean_squared_error, change_gradient=lambda d, n: d / 2),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_losses_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
