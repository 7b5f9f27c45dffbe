"""Losses against scalar formulas in float64; their gradients by central differences."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.errors import CompressionError
from minicompress.nn.losses import distillation, mean_squared_error, softmax_cross_entropy

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


def law_gradient(loss_of, outputs, *rest, size=100):
    """The derivative of the loss by central differences.

    Off by h^2 / 6 times a third derivative, of at most 1, and by the loss's rounding over h: its
    terms are below `size` here and take fewer than 32 roundings.
    """
    h = 1e-4
    allowed = h * h / 6 + 32 * U * size / h
    _, gradient = loss_of(outputs, *rest)
    for index in np.ndindex(outputs.shape):
        step = np.zeros_like(outputs)
        step[index] = h
        difference = (loss_of(outputs + step, *rest)[0] - loss_of(outputs - step, *rest)[0]) / (
            2 * h
        )
        assert abs(gradient[index] - difference) <= allowed


def log_softmax(row, temperature):
    scaled = [z / temperature for z in row]
    top = max(scaled)
    total = math.log(math.fsum(math.exp(z - top) for z in scaled))
    return [z - top - total for z in scaled]


def law_distillation(loss_of, case, teacher, temperature, share):
    """(1 - share) CE + share T^2 KL(teacher || ours), row by row.

    The slack: let M = 1 + log(classes) + 2 max|z| / T bound every log-softmax and their
    differences. Such a log-softmax is off by at most 13 u M (two divisions, two subtractions, the
    logarithm of a sum that inherits them), so a probability relatively by 15 u M and a difference
    of two by 27 u M. Terms p (t - o) then sum to an error of (27 M + 15 M^2 + 5 M) u <= 48 u M^2,
    here and in what is tested alike, so 96 u M^2 with a few roundings for means and products. The
    cross-entropy takes fewer than 32 roundings of terms up to M at T = 1.
    """
    logits, labels = case
    loss, dlogits = loss_of(logits, labels, teacher, temperature=temperature, share=share)
    assert type(loss) is float
    assert (dlogits.shape, dlogits.dtype) == (logits.shape, logits.dtype)
    entropies, divergences = [], []
    pairs = zip(*(a.astype(float).tolist() for a in (logits, teacher)), labels.tolist())
    for row, wanted, label in pairs:
        entropies.append(-log_softmax(row, 1.0)[label])
        both = log_softmax(wanted, temperature), log_softmax(row, temperature)
        divergences.append(math.fsum(math.exp(t) * (t - o) for t, o in zip(*both)))
    n = max(len(labels), 1)
    entropy, divergence = math.fsum(entropies) / n, math.fsum(divergences) / n
    exact = (1 - share) * entropy + share * temperature**2 * divergence
    top = max(np.abs(logits).max(initial=0), np.abs(teacher).max(initial=0))
    sizes = [1 + math.log(logits.shape[1]) + 2 * float(top) / t for t in (1.0, temperature)]
    slack = 32 * sizes[0] + 100 * share * temperature**2 * sizes[1] ** 2
    assert abs(loss - exact) <= U * slack


def law_without_a_share(loss_of, case, teacher, temperature):
    """At share 0 it is the cross-entropy: ``1 * loss + 0`` rounds nothing, in the gradient too.

    Only the sign of a zero may differ: -0.0 + 0.0 is 0.0.
    """
    loss, dlogits = loss_of(*case, teacher, temperature=temperature, share=0.0)
    expected, gradient = softmax_cross_entropy(*case)
    assert loss.hex() == expected.hex()
    np.testing.assert_array_equal(dlogits, gradient)


def law_nothing_to_learn(loss_of, case, temperature):
    """With the teacher's logits there is no loss and no gradient: differences of equal numbers."""
    loss, dlogits = loss_of(*case, case[0], temperature=temperature, share=1.0)
    assert loss == 0.0
    np.testing.assert_array_equal(dlogits, np.zeros_like(case[0]))


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
    logit_cases(st.floats(-1000, 1000, width=16)),
    st.sampled_from([0.5, 1.0, 2.0, 20.0]),
    st.sampled_from([0.0, 0.25, 0.7, 1.0]),
    st.data(),
)
def test_distillation(case, temperature, share, data):
    elements = st.floats(-1000, 1000, width=16)
    teacher = data.draw(arrays(case[0].dtype, case[0].shape, elements=elements))
    law_distillation(distillation, case, teacher, temperature, share)
    law_without_a_share(distillation, case, teacher, temperature)
    law_nothing_to_learn(distillation, case, temperature)


@given(
    logit_cases(st.floats(-5, 5, width=16)),
    st.sampled_from([1.0, 2.0, 4.0]),
    st.sampled_from([0.25, 0.7, 1.0]),
    st.data(),
)
def test_distillation_gradient(case, temperature, share, data):
    # The third derivative of T^2 KL is 1 / T at most, and what the law above allows its value,
    # 48 u T^2 M^2 with M = 1 + log 4 + 10 / T, is below 32 * 800 u at each of these T.
    teacher = data.draw(arrays(float, case[0].shape, elements=st.floats(-5, 5)))
    loss = partial(distillation, temperature=temperature, share=share)
    law_gradient(loss, case[0].astype(float), case[1], teacher, size=900)


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


def test_known_distillation():
    # Both certain and opposite: the divergence is the distance of the logits over T, exactly.
    ours, theirs = np.array([[30000.0, -30000.0]]), np.array([[-30000.0, 30000.0]])
    loss, dlogits = distillation(ours, np.array([0]), theirs, temperature=2.0, share=1.0)
    assert loss == 2.0**2 * 60000 / 2
    np.testing.assert_array_equal(dlogits, [[2, -2]])
    mixed, dlogits = distillation(ours, np.array([1]), theirs, temperature=2.0, share=0.5)
    assert mixed == (60000 + loss) / 2
    np.testing.assert_array_equal(dlogits, [[1.5, -1.5]])


def test_empty_batch():
    loss, dlogits = distillation(np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, 4)))
    assert (loss, dlogits.shape) == (0.0, (0, 4))
    loss, dlogits = softmax_cross_entropy(np.zeros((0, 4)), np.zeros(0, int))
    assert (loss, dlogits.shape) == (0.0, (0, 4))
    assert softmax_cross_entropy(np.zeros((0, 0)), np.zeros(0, int))[0] == 0.0


def test_arguments_are_left_alone_in_any_layout():
    logits, labels = np.arange(12.0).reshape(3, 4) / 7, np.array([0, 3, 2], np.uint8)
    before = logits.tobytes(), labels.tobytes()
    loss, dlogits = softmax_cross_entropy(logits, labels)
    mean_squared_error(logits, dlogits)
    distilled = distillation(logits, labels, dlogits)
    assert (logits.tobytes(), labels.tobytes()) == before
    for other in (np.asfortranarray(logits), np.repeat(logits, 2, axis=0)[::2]):
        assert softmax_cross_entropy(other, labels)[0] == loss
        assert distillation(other, labels, dlogits)[0] == distilled[0]


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
    ("logits", distillation, (np.zeros(3), LABELS, Z)),
    ("labels", distillation, (Z, np.array([0, 3]), Z)),
    ("teacher", distillation, (Z, LABELS, np.zeros((3, 2)))),
    ("teacher", distillation, (Z, LABELS, np.zeros((1, 3)))),
    ("teacher", distillation, (Z, LABELS, Z.astype(int))),
    ("dtype", distillation, (Z, LABELS, Z.astype(np.float32))),
    ("temperature", partial(distillation, temperature=0.0), (Z, LABELS, Z)),
    ("temperature", partial(distillation, temperature=math.inf), (Z, LABELS, Z)),
    ("share", partial(distillation, share=1.5), (Z, LABELS, Z)),
    ("share", partial(distillation, share=-0.5), (Z, LABELS, Z)),
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


def _other_divergence(part):
    """`part` of T, the wanted and our log-softmax (n, classes), in place of T^2 KL."""

    def wrong(logits, labels, teacher, *, temperature, share):
        rows = [[log_softmax(r, temperature) for r in a.tolist()] for a in (teacher, logits)]
        right, gradient = distillation(logits, labels, teacher, temperature=temperature, share=0.0)
        divergence = float(part(temperature, *map(np.array, rows)).sum() / len(logits))
        return (1 - share) * right + share * divergence, gradient

    return wrong


def _distilled(change_gradient=lambda d, n, t: d, **changed):
    def wrong(logits, labels, teacher, **options):
        options |= {name: change(options[name]) for name, change in changed.items()}
        loss, gradient = distillation(logits, labels, teacher, **options)
        return loss, change_gradient(gradient, len(logits), options["temperature"])

    return wrong


def _the_teacher_at_one(logits, labels, teacher, *, temperature, share):
    return distillation(logits, labels, teacher * temperature, temperature=temperature, share=share)


def _labels_of_the_teacher(logits, labels, teacher, **options):
    return distillation(logits, teacher.argmax(1), teacher, **options)


def loss_in_float16(logits, labels):
    loss, gradient = softmax_cross_entropy(logits, labels)
    return float(np.float16(loss)), gradient


CASE = np.array([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]]), np.array([0, 2])
LARGE = CASE[0] * 1000, CASE[1]
TEACHER = np.array([[0.5, 2.0, -1.0], [2.0, 0.0, -0.5]])
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
    "distillation without T^2": (
        lambda f: law_distillation(f, CASE, TEACHER, 2.0, 0.7),
        _other_divergence(lambda t, wanted, ours: np.exp(wanted) * (wanted - ours)),
    ),
    "the divergence the other way round": (
        lambda f: law_distillation(f, CASE, TEACHER, 2.0, 0.7),
        _other_divergence(lambda t, wanted, ours: t**2 * np.exp(ours) * (ours - wanted)),
    ),
    "the teacher's cross-entropy for its divergence": (
        lambda f: law_nothing_to_learn(f, CASE, 2.0),
        _other_divergence(lambda t, wanted, ours: -(t**2) * np.exp(wanted) * ours),
    ),
    "share swapped": (
        lambda f: law_distillation(f, CASE, TEACHER, 2.0, 0.7),
        _distilled(share=lambda share: 1 - share),
    ),
    "share swapped where there is none": (
        lambda f: law_without_a_share(f, CASE, TEACHER, 2.0),
        _distilled(share=lambda share: 1 - share),
    ),
    "temperature inverted": (
        lambda f: law_distillation(f, CASE, TEACHER, 2.0, 0.7),
        _distilled(temperature=lambda t: 1 / t),
    ),
    "the teacher's temperature forgotten": (
        lambda f: law_distillation(f, CASE, TEACHER, 2.0, 0.7), _the_teacher_at_one,
    ),
    "the teacher's answer for the label": (
        lambda f: law_distillation(f, CASE, TEACHER, 2.0, 0.7), _labels_of_the_teacher,
    ),
    "gradient of distillation not averaged": (
        lambda f: law_gradient(partial(f, temperature=2.0, share=0.7), *CASE, TEACHER),
        _distilled(lambda d, n, t: d * n),
    ),
    "gradient of distillation by T^2": (
        lambda f: law_gradient(partial(f, temperature=2.0, share=1.0), *CASE, TEACHER),
        _distilled(lambda d, n, t: d * t),
    ),
    "squares summed": (
        lambda f: law_squared_error(f, *SQUARES),
        _changed(mean_squared_error, lambda loss, n: loss * 4),
    ),
    "half of the gradient": (
        lambda f: law_squared_error(f, *SQUARES),
        _changed(mean_squared_error, change_gradient=lambda d, n: d / 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_losses_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
