"""Models: running in chunks, the gradient of the whole, and models with other weights.

Values are small integers and biases are halves, so that sums are exact in any order and no
activation stands on the kink of its ReLU: oracles compare with ``==``.
"""

from __future__ import annotations

import pickle
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.nn.architectures import digits_cnn, seed_cnn
from minicompress.nn.composition import Parallel, Residual, Sequential, replaced, split
from minicompress.nn.gradient import vjp
from minicompress.nn.joins import add, concat, multiply
from minicompress.nn.layer import Layer
from minicompress.nn.layers import Conv2D, Dense, plain_layers
from minicompress.nn.network import Network, Runner, apply, last_readers, output_shape, value_shapes
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.parameters import as_tuple, decoded, parameters, with_parameters
from minicompress.nn.pointwise import Dropout, ReLU
from minicompress.nn.stateless import Add, AvgPool2D, Concat, Flatten, MaxPool2D, Multiply
from minicompress.nn.training import evaluate
from minicompress.representation import Clustered, LowRank, decode, dtype_of
from minicompress.testing import models


def small(shape, dtype=np.float64):
    return arrays(dtype, shape, elements=st.integers(-2, 2).map(float))


def whole(shape, start=0):
    return ((np.arange(np.prod(shape, dtype=int)) * 7 + start) % 5 - 2.0).reshape(shape)


def halves(n):
    return np.arange(n) % 3 - 0.5


def convolutional(dtype=np.float64):
    """Conv, ReLU, pooling, conv, ReLU, flatten, dense: integers, with halves for biases."""
    return Sequential(
        (
            Conv2D(whole((2, 2, 1, 2)).astype(dtype), halves(2).astype(dtype), padding="same"),
            ReLU(),
            MaxPool2D(2),
            Conv2D(2 * whole((2, 2, 2, 3), 1).astype(dtype), halves(3).astype(dtype)),
            ReLU(),
            Flatten(),
            Dense(whole((3, 2), 2).astype(dtype), np.ones(2, dtype)),
        )
    )


# Running ------------------------------------------------------------------------------------------


def law_chunks_do_not_matter(x, batch_size, run):
    """Chunked or not, the outputs are those of the layers one after the other."""
    model = convolutional()
    expected = x
    for layer in model.layers:
        expected = layer.forward(expected)
    y = run(model, x, batch_size)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, expected)


@given(st.integers(0, 5).flatmap(lambda n: small((n, 4, 4, 1))), st.none() | st.integers(1, 7))
def test_chunks_do_not_matter(x, batch_size):
    law_chunks_do_not_matter(x, batch_size, lambda m, x, b: apply(m, x, batch_size=b))
    law_chunks_do_not_matter(x, batch_size, lambda m, x, b: m(x))


def peak_beyond_output(model, x):
    tracemalloc.start()
    y = apply(model, x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - y.nbytes


def test_memory_does_not_grow_with_the_batch():
    model = seed_cnn(np.random.default_rng(0))
    few = peak_beyond_output(model, np.ones((100, 28, 28, 1), np.float32))
    many = peak_beyond_output(model, np.ones((400, 28, 28, 1), np.float32))
    assert many < 1.1 * few
    assert many < 100e6  # the feature maps of 10,000 images would take 2.3 GB


def test_the_same_call_gives_the_same_bits():
    model = digits_cnn(np.random.default_rng(0))
    as_float64 = [{n: w.astype(float) for n, w in d.items()} for d in parameters(model)]
    model = with_parameters(model, tuple(as_float64))  # which runs on the direct path
    x = np.random.default_rng(1).random((70, 8, 8, 1))
    assert np.array_equal(apply(model, x), apply(model, x))
    # In other chunks only the order of sums may differ: each way is off by at most gamma_n times
    # what the model of magnitudes gives, n = (9 + 1) + (144 + 1) + (512 + 1) roundings in a row.
    magnitudes = [{n: np.abs(w) for n, w in d.items()} for d in as_float64]
    nu = 668 * 2.0**-53
    slack = 2 * nu / (1 - nu) * apply(with_parameters(model, tuple(magnitudes)), x)
    assert (np.abs(apply(model, x) - apply(model, x, batch_size=1)) <= slack).all()


LAYOUTS = {
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
    "reversed": lambda x: x[:, ::-1].copy()[:, ::-1],
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "swapped bytes": lambda x: x.astype(x.dtype.newbyteorder()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_layout_and_dtype(layout, dtype):
    x = whole((3, 4, 4, 1), 3).astype(dtype)
    model = convolutional(dtype)
    laid_out = LAYOUTS[layout](x)
    before = laid_out.tobytes()
    y, pullback = vjp(model, laid_out)
    dx, gradients = pullback(np.ones_like(y))
    assert laid_out.tobytes() == before
    np.testing.assert_array_equal(y, convolutional()(x.astype(float)))
    np.testing.assert_array_equal(apply(model, laid_out), y)
    assert {a.dtype for a in (y, dx, *(g for d in gradients for g in d.values()))} == {
        np.dtype(dtype)
    }


def test_the_output_is_the_callers_own():
    x = np.ones((2, 3))
    for model in (Sequential(()), Sequential((Flatten(), Dropout(0.5)))):
        y = apply(model, x)
        y[...] = 5.0
    assert (x == 1).all()


def test_compressed_weights_run_and_decode():
    low_rank = LowRank((whole((4, 2)), whole((2, 3), 1)), "ir,ro->io")
    shared = Clustered(np.arange(3).reshape(3, 1) % 2, np.array([1.0, -2.0]))
    model = Sequential((Dense(low_rank, np.ones(3)), ReLU(), Dense(shared)))
    plain, x = decoded(model), whole((5, 4))
    hidden = np.maximum(x @ decode(low_rank) + 1, 0)
    np.testing.assert_array_equal(model(x), hidden @ decode(shared))
    np.testing.assert_array_equal(plain(x), model(x))
    assert all(type(v) is np.ndarray for layer in parameters(plain) for v in layer.values())
    assert plain.layers[1] is model.layers[1]
    with pytest.raises(CompressionError, match=r"layer 0 \(Dense\): weight is LowRank"):
        vjp(model, x)


# The gradient -------------------------------------------------------------------------------------

STEP = 2.0**-14


def kinked():
    """Conv, ReLU, mean, conv, ReLU, flatten, dense, with half-integers before each ReLU.

    The means are multiples of 1/8, the second kernel of 8.
    """
    layers = convolutional().layers
    second = Conv2D(8 * whole((2, 2, 2, 3), 1), halves(3))
    return Sequential((*layers[:2], AvgPool2D(2), second, *layers[4:]))


def law_gradient_is_the_slope(x, direction, v, differentiate):
    """Pulled back gradients are the slopes of <v, y>, exactly.

    Before each ReLU stands a half-integer, at least 1/2 from the kink. A step along integers up to
    2 moves what stands there by at most (4 taps * 2 * 2 + 2) h in the first layer, 8 taps * 16
    times that in the second, together 2304 h < 1/2 for h = 2**-14 (and by 8 taps * 2 * 17.5 h when
    the second kernel itself moves). So no ReLU switches, the model is linear in x and in each
    weight, all numbers are dyadic of fewer than 53 bits, and the quotient is exact.
    """
    model = kinked()
    y, pullback = differentiate(model, x)
    dx, gradients = pullback(v)
    moved = [(model, x + STEP * direction, (dx * direction).sum())]
    for i, layer in enumerate(parameters(model)):
        for name, weight in layer.items():
            u = whole(weight.shape, i)
            changed = [{} for _ in model.layers]
            changed[i] = {name: weight + STEP * u}
            slope = (gradients[i][name] * u).sum()
            moved.append((with_parameters(model, tuple(changed)), x, slope))
    for other_model, other_x, slope in moved:
        assert ((other_model(other_x) - y) * v).sum() / STEP == slope


@given(small((2, 4, 4, 1)), small((2, 4, 4, 1)), small((2, 2)))
def test_gradient_is_the_slope(x, direction, v):
    law_gradient_is_the_slope(x, direction, v, vjp)


@given(small((3, 2, 2)), small((4, 3)), small((3, 2)), small((3, 2)))
def test_gradient_of_a_dense_network_by_hand(x, w1, w2, v):
    model = Sequential((Flatten(), Dense(w1, np.ones(3)), ReLU(), Dense(w2)))
    y, pullback = vjp(model, x)
    rows = x.reshape(3, 4)
    before = rows @ w1 + 1
    hidden = np.maximum(before, 0)
    np.testing.assert_array_equal(y, hidden @ w2)
    dx, gradients = pullback(v)
    dhidden = (v @ w2.T) * (before > 0)
    expected = (
        {},
        {"weight": rows.T @ dhidden, "bias": dhidden.sum(0)},
        {},
        {"weight": hidden.T @ v},
    )
    np.testing.assert_equal(gradients, expected)
    np.testing.assert_array_equal(dx, (dhidden @ w1.T).reshape(x.shape))


@dataclass(frozen=True, eq=False, repr=False)
class NoGradientBelow(Layer):
    """A layer that refuses to give a gradient by its input."""

    weight: Array

    def forward(self, x):
        return x * self.weight

    def output_shape(self, input_shape):
        return tuple(input_shape)

    def parameters(self):
        return {"weight": self.weight}

    def vjp(self, x, *, rng=None, input_gradient=True):
        assert not input_gradient
        return self.forward(x), lambda dy: (None, {"weight": (dy * x).sum(0)})


@given(small((3, 2, 2)), small((3, 4)))
def test_nothing_is_pulled_below_the_first_weights(x, v):
    model = Sequential((Flatten(), NoGradientBelow(np.ones(4)), ReLU()))
    y, pullback = vjp(model, x, input_gradient=False)
    dx, gradients = pullback(v)
    assert dx is None
    rows = x.reshape(3, 4)
    expected = ({}, {"weight": (v * (rows > 0) * rows).sum(0)}, {})
    np.testing.assert_equal(gradients, expected)
    np.testing.assert_array_equal(model(x), y)


@given(small((2, 4, 4, 1)), small((2, 2)))
def test_sparing_the_input_gradient_changes_no_other(x, v):
    with_dx = vjp(convolutional(), x)[1](v)
    without = vjp(convolutional(), x, input_gradient=False)[1](v)
    assert without[0] is None
    np.testing.assert_equal(without[1], with_dx[1])


def test_models_without_weights_have_empty_gradients():
    for layers in ((), (ReLU(), Flatten())):
        y, pullback = vjp(Sequential(layers), np.ones((2, 3)), input_gradient=False)
        assert pullback(y) == (None, tuple({} for _ in layers))


def test_dropout_is_drawn_from_the_given_rng():
    model = Sequential((Dropout(0.5), Dropout(0.5)))
    x = np.ones((4, 50))
    y, pullback = vjp(model, x, rng=np.random.default_rng(0))
    again, _ = vjp(model, x, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(y, again)
    np.testing.assert_array_equal(pullback(x)[0], y)
    assert set(np.unique(y)) == {0.0, 4.0}
    np.testing.assert_array_equal(vjp(model, x)[0], x)


# Weights and shapes -------------------------------------------------------------------------------


def test_parameters_go_out_and_in():
    model = convolutional()
    weights = parameters(model)
    assert [list(d) for d in weights] == [
        ["weight", "bias"], [], [], ["weight", "bias"], [], [], ["weight", "bias"],
    ]  # fmt: skip
    doubled = with_parameters(model, tuple({n: 2 * v for n, v in d.items()} for d in weights))
    for old, new in zip(weights, parameters(doubled), strict=True):
        np.testing.assert_equal(new, {n: 2 * v for n, v in old.items()})
    assert doubled.layers[0].padding == "same"
    same = with_parameters(model, ({},) * 7)
    assert all(a is b for a, b in zip(same.layers, model.layers, strict=True))
    statistics = Sequential((BatchNorm(*[np.ones(2)] * 4),))
    moved = with_parameters(statistics, ({"mean": np.zeros(2)},))
    assert moved.layers[0].mean.tolist() == [0.0, 0.0]


def test_shapes():
    model = convolutional()
    assert output_shape(model, (4, 4, 1)) == (2,)
    shapes = value_shapes(model, (4, 4, 1))
    assert shapes == ((4, 4, 1), (4, 4, 2), (4, 4, 2), (2, 2, 2), (1, 1, 3), (1, 1, 3), (3,), (2,))


def test_models_print_and_pickle():
    model = convolutional()
    back = pickle.loads(pickle.dumps(model))
    assert repr(back) == repr(model)
    assert not back.layers[0].weight.flags.writeable
    table = ["layer    reads  parameters", "-" * 26, "0 ReLU   0               0", "outputs  1"]
    assert repr(Sequential((ReLU(),))).splitlines() == table
    assert "<td>0 ReLU</td><td>0</td><td>0</td>" in Sequential((ReLU(),))._repr_html_()
    assert Sequential([ReLU()]).layers[0].parameters() == {}
    with pytest.raises(AttributeError):
        model.layers = ()


ONE_DENSE = Sequential((Dense(np.ones((2, 2))),))
REFUSED = {
    "a layer that is none": (lambda: Sequential((ReLU(), np.tanh)), "part 1 must be a Layer"),
    "no tuple": (lambda: Sequential(ReLU()), "parts must be a tuple"),
    "no model": (lambda: apply([ReLU()], np.ones((1, 1))), "network must be a Network"),
    "a number": (lambda: apply(ONE_DENSE, np.float64(1.0)), "x must be a batch"),
    "integers": (lambda: apply(ONE_DENSE, np.ones((1, 2), int)), "x must be of dtype"),
    "batch_size": (lambda: apply(ONE_DENSE, np.ones((1, 2)), batch_size=0), "batch_size must be"),
    "input shape": (lambda: apply(ONE_DENSE, np.ones((1, 3))), r"layer 0 \(Dense\): the input"),
    "input shape in vjp": (lambda: vjp(ONE_DENSE, np.ones((1, 3))), r"layer 0 \(Dense\): weight"),
    "dtype": (lambda: ONE_DENSE(np.ones((1, 2), np.float32)), r"layer 0 \(Dense\): all arrays"),
    "dy": (lambda: vjp(ONE_DENSE, np.ones((1, 2)))[1](np.ones((2, 2))), "dy must have"),
    "later layer": (
        lambda: output_shape(Sequential((AvgPool2D(2), AvgPool2D(2))), (2, 2, 1)),
        r"layer 1 \(AvgPool2D\): the kernel covers",
    ),
    "too few dicts": (lambda: with_parameters(ONE_DENSE, ()), "one dict for each of 1 layers"),
    "unknown name": (lambda: with_parameters(ONE_DENSE, ({"bias": np.ones(2)},)), "among"),
    "unfit weight": (lambda: with_parameters(ONE_DENSE, ({"weight": np.ones(2)},)), "layer 0"),
    "input_shape": (lambda: output_shape(ONE_DENSE, (2.0,)), r"input_shape\[0\] must be"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(CompressionError, match=message):
        call()


# Wrong implementations that the laws must kill ----------------------------------------------------


def _whole_chunks_only(model, x, batch_size):
    y = apply(model, x)
    y[len(x) - len(x) % batch_size :] = 0
    return y


def _last_chunk_first(model, x, batch_size):
    return np.concatenate([apply(model, x[batch_size:]), apply(model, x[:batch_size])])


def _vjp_through(change):
    """The vjp of another model that has the same outputs, or with other gradients."""

    def wrong(model, x):
        y, pullback = vjp(model, x)

        def pulled(v):
            dx, gradients = pullback(v)
            return change(dx, list(gradients))

        return y, pulled

    return wrong


class _Open(ReLU):
    """A ReLU that lets every gradient through."""

    def vjp(self, x, *, rng=None, input_gradient=True):
        return self.forward(x), lambda dy: (dy, {})


def _open_relu(model, x):
    return vjp(Sequential(tuple(_Open() if type(c) is ReLU else c for c in model.layers)), x)


def _batch_mean(dx, gradients):
    return dx, [{n: g / 2 for n, g in d.items()} for d in gradients]


def _biases_forgotten(dx, gradients):
    return dx, [{n: g * (n != "bias") for n, g in d.items()} for d in gradients]


SLOPES = (whole((2, 4, 4, 1), 4) + np.arange(4)[:, None], whole((2, 4, 4, 1), 1), whole((2, 2), 1))
CHUNKS = (whole((5, 4, 4, 1)) + np.arange(5)[:, None, None, None], 2)
PLANTED = {
    "the ragged chunk is dropped": (
        lambda wrong: law_chunks_do_not_matter(*CHUNKS, wrong), _whole_chunks_only,
    ),
    "chunks in another order": (
        lambda wrong: law_chunks_do_not_matter(*CHUNKS, wrong), _last_chunk_first,
    ),
    "the ReLU lets every gradient through": (
        lambda wrong: law_gradient_is_the_slope(*SLOPES, wrong), _open_relu,
    ),
    "gradients averaged over the batch": (
        lambda wrong: law_gradient_is_the_slope(*SLOPES, wrong), _vjp_through(_batch_mean),
    ),
    "biases have no gradient": (
        lambda wrong: law_gradient_is_the_slope(*SLOPES, wrong), _vjp_through(_biases_forgotten),
    ),
    "the input's gradient is mirrored": (
        lambda wrong: law_gradient_is_the_slope(*SLOPES, wrong),
        _vjp_through(lambda dx, gradients: (dx[:, ::-1], gradients)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)


# Programs: branches, joins and several outputs --------------------------------------------------


def oracle(network, x):
    """Every value, in order; nothing is dropped."""
    values = [x]
    for layer, reads in zip(network.layers, network.inputs, strict=True):
        y = [values[value] for value in reads]
        for part in plain_layers(layer):
            y = [part.forward(*y)]
        values.append(y[0])
    return values


def drawn_input(network, rows=3):
    """Inputs of the dtype of a drawn network."""
    dtypes = [dtype_of(rep) for weights in parameters(network) for rep in weights.values()]
    return whole((rows, 5, 4, 2)).astype(dtypes[0] if dtypes else np.float32)


def law_values(run, network, x):
    """The outputs are the values that the program names, whatever was dropped on the way."""
    with np.errstate(all="ignore"):
        values, ys = oracle(network, x), run(network, x)
    for y, value in zip(as_tuple(ys), network.outputs, strict=True):
        np.testing.assert_array_equal(y, values[value])


@given(models())
def test_a_program_runs_value_by_value(network):
    law_values(lambda n, x: apply(n, x, batch_size=3), network, drawn_input(network))
    law_values(lambda n, x: vjp(n, x)[0], decoded(network), drawn_input(network))


@given(models())
def test_the_shapes_are_those_of_the_values(network):
    with np.errstate(all="ignore"):
        values = oracle(network, drawn_input(network))
    assert value_shapes(network, (5, 4, 2)) == tuple(value.shape[1:] for value in values)


def law_gradient(pull, network, x, dys):
    """By the chain rule along every path: the gradient of a value is summed over its readers."""
    values = oracle(network, x)
    pulls = [
        layer.vjp(*(values[value] for value in reads))[1]
        for layer, reads in zip(network.layers, network.inputs, strict=True)
    ]

    def by_value(value):
        total = [dy for output, dy in zip(network.outputs, dys, strict=True) if output == value]
        for i, reads in enumerate(network.inputs):
            if value in reads:
                dxs = as_tuple(pulls[i](by_value(i + 1))[0])
                total += [dx for read, dx in zip(reads, dxs, strict=True) if read == value]
        return sum(total)

    dx, gradients = pull(network, x, dys)
    np.testing.assert_array_equal(dx, by_value(0))
    for i, found in enumerate(gradients):
        np.testing.assert_equal(found, pulls[i](by_value(i + 1))[1])


def pulled(network, x, dys):
    return vjp(network, x)[1](dys if len(dys) > 1 else dys[0])


ADD, ID = Add(), Dense(np.eye(2))
EXACT = [
    Residual(Dense(np.array([[1.0, 2.0], [0.0, 1.0]])), ReLU()),
    Parallel((ID, (), (ReLU(), ID)), Concat()),
    Network((ID, ReLU(), ADD, Multiply()), ((0,), (1,), (2, 1), (3, 1)), (4, 2)),
    Network((ADD, ID), ((0, 0), (0,)), (1, 2)),
    Sequential((Residual(ReLU()), Residual(Residual(ID), ReLU()), Dense(np.ones((2, 3))))),
]


@pytest.mark.parametrize("network", EXACT, ids=range(len(EXACT)))
@given(data=st.data())
def test_a_program_has_the_gradient_of_the_chain_rule(network, data):
    x = data.draw(small((2, 2)))
    dys = [data.draw(small((2, *s))) for s in as_shapes(output_shape(network, (2,)))]
    law_gradient(pulled, network, x, dys)


def as_shapes(shapes):
    return shapes if shapes and isinstance(shapes[0], tuple) else (shapes,)


def overwriting(network, x, dys):
    """A fault: the gradient of a value is that of its last reader alone."""
    values, pulls = oracle(network, x), []
    for layer, reads in zip(network.layers, network.inputs, strict=True):
        pulls.append(layer.vjp(*(values[value] for value in reads))[1])
    known = dict(zip(network.outputs, dys, strict=True))
    gradients = [{}] * len(pulls)
    for i in reversed(range(len(pulls))):
        dxs, gradients[i] = pulls[i](known[i + 1])
        for value, dx in zip(network.inputs[i], as_tuple(dxs), strict=True):
            known[value] = dx
    return known[0], gradients


def test_faults_of_programs_are_caught():
    x, dys = np.array([[1.0, -2.0]]), [np.array([[1.0, 1.0]])]
    with pytest.raises(AssertionError):
        law_gradient(overwriting, EXACT[0], x, dys)
    with pytest.raises(AssertionError):  # outputs in another order
        law_values(lambda n, x: apply(n, x)[::-1], EXACT[2], x)


def test_a_value_is_dropped_after_its_last_reader():
    network = Sequential((Residual(ID, ReLU()), ID, Residual(ReLU())))
    run, values = Runner(network), {0: np.ones((1, 2))}
    alive = []
    for i in range(len(network.layers)):
        values = run(values, i, i + 1)
        alive.append(sorted(values))
    assert alive == [[0, 1], [0, 2], [3], [4], [4, 5], [6]]
    assert last_readers(network) == [[], [1], [0, 2], [3], [], [4, 5]]


@given(models(chain=True), st.data())
def test_a_chain_can_be_cut_anywhere(network, data):
    before, after = split(network, data.draw(st.integers(0, len(network.layers))))
    again = Sequential((before, after))
    assert again.inputs == network.inputs
    assert again.outputs == network.outputs
    assert again.layers == network.layers


@given(models())
def test_layers_stand_for_themselves(network):
    """A chain of one layer in place of each layer is the same program; of two, twice as long."""
    same = replaced(network, [(layer,) for layer in network.layers])
    assert (same.inputs, same.outputs, same.layers) == (
        network.inputs,
        network.outputs,
        network.layers,
    )
    longer = replaced(network, [(layer, Dropout(0.5)) for layer in network.layers])
    law_values(lambda n, x: apply(longer, x, batch_size=3), network, drawn_input(network))
    gone = [() if isinstance(layer, Dropout) else (layer,) for layer in longer.layers]
    wanted = [layer for layer in network.layers if not isinstance(layer, Dropout)]
    assert replaced(longer, gone).layers == tuple(wanted) or 0 in duplicated(longer, gone)


def duplicated(network, chains):
    """Where a value would be returned twice, since what stood between is gone."""
    place = [0]
    for chain, reads in zip(chains, network.inputs, strict=True):
        place.append(len(place) if chain else place[reads[0]])
    found = [place[value] for value in network.outputs]
    return [0] if len(set(found)) < len(found) else []


def test_composition_is_flat():
    inner = Residual(ID)
    network = Sequential((ReLU(), inner, Parallel((inner, ReLU()), Concat())))
    assert network.inputs == ((0,), (1,), (1, 2), (3,), (3, 4), (3,), (5, 6))
    assert network.outputs == (7,)
    heads = Network((ReLU(), ID), ((0,), (0,)), (1, 2))
    assert Sequential((ID, heads)).outputs == (2, 3)


@dataclass(frozen=True, eq=False, repr=False)
class Mix(Layer):
    """A layer of somebody's own that reads two values and has a weight."""

    weight: Array
    num_inputs = 2

    def parameters(self):
        return {"weight": self.weight}

    def forward(self, a, b):
        return a * self.weight + b

    def vjp(self, a, b, *, rng=None, input_gradient=True):
        def pullback(dy):
            dxs = (dy * self.weight, dy) if input_gradient else None
            return dxs, {"weight": (dy * a).sum(0)}

        return self.forward(a, b), pullback


def test_a_join_with_weights_can_be_trained_at_the_front():
    network = Network((Mix(np.array([2.0, 3.0])),), ((0, 0),), (1,))
    x = np.array([[1.0, -2.0]])
    dx, gradients = vjp(network, x, input_gradient=False)[1](x)
    assert dx is None
    np.testing.assert_array_equal(gradients[0]["weight"], [1.0, 4.0])
    np.testing.assert_array_equal(vjp(network, x)[1](x)[0], [[3.0, -8.0]])


TWO = Parallel((ID, ()), None)
PROGRAMS_REFUSED = {
    "one dy of two": (lambda: vjp(TWO, np.ones((1, 2)))[1](np.ones((1, 2))), "a tuple of 2 grad"),
    "a dy of another shape": (
        lambda: vjp(Sequential(()), np.ones((1, 2)))[1](np.ones((9, 9))),
        "dy must have the output's shape",
    ),
    "inputs that are none": (lambda: Network((ReLU(),), None, (1,)), "inputs must be a tuple"),
    "reads that are none": (lambda: Network((ReLU(),), (0,), (1,)), "must be a tuple, not 0"),
    "outputs": (lambda: Network((ReLU(),), ((0,),), 1), "outputs must be a tuple, not int"),
    "branches": (lambda: Parallel(ReLU(), ADD), "branches must be a tuple"),
    "a branch": (lambda: Parallel((None,), ADD), "a branch must be a tuple"),
    "a cut before": (lambda: split(TWO, -1), "value must be an int from 0 to 1"),
    "a cut of nothing": (lambda: split(None, 1), "network must be a Network"),
    "two outputs, one loss": (
        lambda: evaluate(TWO, np.ones((1, 2)), np.array([0])),
        "2 outputs: give a loss that takes a tuple",
    ),
    "batches": (lambda: multiply(np.ones((1, 2)), np.ones((3, 2))), "batches of one length"),
    "rows without a batch": (lambda: concat(np.ones(2), np.ones(3)), "batches of one length"),
    "nothing to add": (lambda: add(), "one array or more"),
    "a later value": (lambda: Network((ReLU(),), ((1,),), (1,)), r"layer 0 \(ReLU\): a value"),
    "a float": (lambda: Network((ReLU(),), ((0.0,),), (1,)), r"layer 0 \(ReLU\): a value"),
    "arity": (lambda: Network((ReLU(),), ((0, 0),), (1,)), "must read 1 values, not 2"),
    "arity of a product": (lambda: Network((Multiply(),), ((0,),), (1,)), "must read 2 values"),
    "no value": (lambda: Network((ADD,), ((),), (1,)), "must read one or more"),
    "unread": (
        lambda: Network((ReLU(), ID), ((0,), (0,)), (2,)),
        r"value 1, the output of layer 0 \(ReLU\), is neither read nor returned",
    ),
    "unread input": (lambda: Network((), (), ()), "outputs must be one value or more"),
    "output twice": (lambda: Network((ReLU(),), ((0,),), (1, 1)), "each once"),
    "output beyond": (lambda: Network((ReLU(),), ((0,),), (2,)), "a value of outputs"),
    "inputs": (lambda: Network((ReLU(),), (), (1,)), "one entry for each of 1 layers"),
    "layer": (lambda: Network((np.tanh,), ((0,),), (1,)), r"layers\[0\] must be a Layer"),
    "shapes": (
        lambda: output_shape(Parallel((ID, Dense(np.ones((2, 3)))), ADD), (2,)),
        r"layer 2 \(Add\), which reads value 1 of shape \(2,\) and value 2 of shape \(3,\)",
    ),
    "two outputs": (
        lambda: Sequential((Network((ReLU(), ID), ((0,), (0,)), (1, 2)), ReLU())),
        "2 outputs can only be the last",
    ),
    "a cut beside a branch": (
        lambda: split(Residual(ReLU(), ReLU()), 1),
        r"value 1: layer 2 \(Add\) also reads value 0",
    ),
    "an output before the cut": (
        lambda: split(Network((ReLU(), ReLU()), ((0,), (1,)), (1, 2)), 2),
        "the network also returns value 1",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS_REFUSED)
def test_programs_refused(name):
    call, message = PROGRAMS_REFUSED[name]
    with pytest.raises(CompressionError, match=message):
        call()
