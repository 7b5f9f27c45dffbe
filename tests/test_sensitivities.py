"""One layer compressed at a time: each row is what the whole network would say."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import minicompress as mc
from minicompress.analysis.sensitivities import Sensitivity, sensitivity
from minicompress.experiments.budget import format_sensitivity
from minicompress.search.weights import weights
from minicompress.testing.checks import check_pure

small = st.integers(-4, 4).map(float)


def evens(weight):
    """A compressor of a user's own, whose numbers stay integers."""
    rounded = 2 * np.trunc(weight / 2)
    error = float(np.sqrt(((weight - rounded) ** 2).sum()))
    return mc.Compressed(rounded, mc.Certificate("fro", error * (1 + 1e-12), error))


METHODS = {"half": partial(mc.prune_magnitude, amount=0.5), "evens": evens}


@st.composite
def cases(draw):
    """Networks and data of small integers: every sum is exact, so both ways give the same bits."""
    first, second = (
        draw(arrays(float, (2, 3), elements=small)),
        draw(arrays(float, (3, 2), elements=small)),
    )
    bias = draw(arrays(float, 3, elements=small))
    model = mc.Sequential((mc.Dense(first, bias), mc.ReLU(), mc.Dense(second)))
    n = draw(st.integers(1, 5))
    x = draw(arrays(float, (n, 2), elements=small))
    y = draw(arrays(np.int64, n, elements=st.integers(0, 1)))
    return model, x, y, draw(st.integers(1, 6))


def law_a_row_is_what_the_whole_network_says(impl, model, x, y, batch_size):
    rows = impl(model, METHODS, x, y, batch_size=batch_size, coding="packed")
    loss, accuracy = mc.evaluate(model, x, y)
    before, file = mc.summary(model, x.shape[1:]), len(mc.storage.dumps(model, coding="packed"))
    wanted = []
    for i in weights(model):
        for name, compressor in METHODS.items():
            changed, certificates = mc.compress(model, {i: compressor})
            other_loss, other_accuracy = mc.evaluate(changed, x, y)
            after = mc.summary(changed, x.shape[1:])
            wanted.append(
                Sensitivity(
                    i,
                    type(model.layers[i]).__name__,
                    name,
                    other_loss - loss,
                    other_accuracy - accuracy,
                    before.packed_bytes - after.packed_bytes,
                    file - len(mc.storage.dumps(changed, coding="packed")),
                    before.macs - after.macs,
                    certificates[i],
                )
            )
    assert rows == tuple(wanted)


@given(cases())
def test_a_row_is_what_the_whole_network_says(case):
    law_a_row_is_what_the_whole_network_says(sensitivity, *case)


def convolutional():
    """Small integers again, in another kind of network."""
    kernel, matrix = np.arange(36) % 5 - 2.0, np.arange(48) % 7 - 3.0
    model = mc.Sequential(
        (
            mc.Conv2D(kernel.reshape(3, 3, 1, 4), np.array([0.0, 1, -1, 2]), padding="same"),
            mc.ReLU(),
            mc.MaxPool2D(2),
            mc.Flatten(),
            mc.Dense(matrix.reshape(16, 3)),
        )
    )
    x = (np.arange(7 * 16) % 3 - 1.0).reshape(7, 4, 4, 1)
    return model, x, np.arange(7) % 3


def test_images_too():
    for batch_size in (1, 3, 7, 100):
        law_a_row_is_what_the_whole_network_says(sensitivity, *convolutional(), batch_size)


def _rows(change):
    return lambda *args, **options: change(sensitivity(*args, **options))


def _all_so_far(model, compressors, x, y, **options):
    """Layers compressed before stay compressed."""
    rows, so_far = [], model
    for row in sensitivity(model, compressors, x, y, **options):
        so_far = mc.compress(so_far, {row.layer: compressors[row.method]}).model
        change = mc.evaluate(so_far, x, y)[0] - mc.evaluate(model, x, y)[0]
        rows.append(row._replace(loss_change=change))
    return tuple(rows)


def _whole_batches_only(model, compressors, x, y, *, batch_size, coding):
    n = len(x) // batch_size * batch_size or len(x)
    return sensitivity(model, compressors, x[:n], y[:n], coding=coding)


PLANTED = {
    "the last layer forgotten": _rows(lambda rows: rows[:2]),
    "layers stay compressed": _all_so_far,
    "the last batch dropped": _whole_batches_only,
    "saved and added confused": _rows(
        lambda rows: tuple(row._replace(file_saved=-row.file_saved) for row in rows)
    ),
    "packed bytes for the file's": _rows(
        lambda rows: tuple(row._replace(file_saved=row.packed_saved) for row in rows)
    ),
    "the first method's loss for all": _rows(
        lambda rows: tuple(r._replace(loss_change=rows[i // 2 * 2][3]) for i, r in enumerate(rows))
    ),
    "bounds for errors": _rows(
        lambda rows: tuple(
            r._replace(certificate=r.certificate._replace(measured=r.certificate.bound))
            for r in rows
        )
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    with pytest.raises(AssertionError):
        law_a_row_is_what_the_whole_network_says(PLANTED[name], *convolutional(), 3)


def test_low_rank_saves_its_multiplications():
    model, x, y = convolutional()
    dense = mc.Sequential(model.layers[3:])
    row, _ = sensitivity(
        mc.Sequential((*dense.layers, mc.Dense(np.eye(3)))),
        [partial(mc.truncated_svd, rank=1)],
        x.reshape(7, 16),
        y,
    )
    assert (row.method, row.macs_saved) == ("truncated_svd(rank=1)", 16 * 3 - (16 + 3))


def test_progress_is_told_and_reaches_the_end_of_each_part():
    told = []
    sensitivity(
        *convolutional()[:1],
        METHODS,
        *convolutional()[1:],
        batch_size=2,
        progress=lambda *a: told.append(a),
    )
    for part in ("compressing", "running", "counting"):
        done = [fraction for what, fraction in told if what == part]
        assert done == sorted(done)
        assert done[-1] == 1.0


def test_it_is_pure_and_its_table_lines_up():
    model, x, y = convolutional()
    check_pure(sensitivity, model, METHODS, x, y)
    lines = format_sensitivity(sensitivity(model, METHODS, x, y)).splitlines()
    assert len(lines) == 2 + 4
    assert lines[2].startswith("0 Conv2D    half")
    assert len(lines[1]) == max(map(len, lines))


BAD = [
    ({"compressors": 3}, "compressors must be a mapping of names"),
    ({"compressors": "int8"}, "compressors must be a mapping of names"),
    ({"compressors": {1: evens}}, "must hold compressors by name, not 1"),
    ({"compressors": [evens, evens]}, "compressors holds 'evens' twice"),
    ({"compressors": [abs]}, r"layer 0 \(Conv2D\), abs: a compressor must return"),
    ({"compressors": {"svd": partial(mc.truncated_svd, rank=1)}}, r"layer 0 \(Conv2D\), svd: "),
    ({"batch_size": 0}, "batch_size must be"),
    ({"y": np.zeros(3, int)}, "y must hold one label for each row"),
    ({"coding": "zip"}, "coding must be one of"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_does_not_fit_is_refused(change, message):
    model, x, y = convolutional()
    arguments = {"model": model, "compressors": METHODS, "x": x, "y": y} | change
    with pytest.raises(mc.CompressionError, match=message):
        sensitivity(**arguments)
