"""What the library does not know is refused by name; nothing of it is counted as nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from minicompress.analysis.accounting import summary
from minicompress.analysis.sensitivities import sensitivity
from minicompress.arrays import Array
from minicompress.certify.certificates import ball_certificate, domain_certificate
from minicompress.certify.float_error import Values, float_error
from minicompress.certify.lipschitz import output_bound
from minicompress.compressors.quantization import quantize
from minicompress.early_exit.exits import EarlyExit
from minicompress.early_exit.thresholds import exit_macs
from minicompress.errors import CompressionError
from minicompress.integer.conversion import to_integer
from minicompress.integer.stateless import IntegerFlatten, IntegerReLU
from minicompress.interchange import onnx_layers
from minicompress.interchange.c import export_c
from minicompress.nn.composition import Sequential
from minicompress.nn.layer import Layer
from minicompress.nn.layers import LAYER_TYPES, Conv2D, Dense
from minicompress.nn.network import apply
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import Dropout, ReLU, Softmax
from minicompress.nn.stateless import Flatten
from minicompress.representation import LowRank
from minicompress.rewrite import fold_batch_norm, remove_channels
from minicompress.search.searching import search_plan
from minicompress.storage.container import TYPES, dumps

F = np.float32


# ---- layers of somebody's own


@dataclass(frozen=True, eq=False, repr=False)
class Hidden(Layer):
    """Its weight is not in `parameters`: nobody can see it."""

    weight: Array

    def forward(self, x):
        return x @ self.weight

    def output_shape(self, input_shape):
        return tuple(input_shape)


@dataclass(frozen=True, eq=False, repr=False)
class Listed(Hidden):
    """Its weight can be seen, but not what it is multiplied by."""

    def parameters(self):
        return {"weight": self.weight}


@dataclass(frozen=True, eq=False, repr=False)
class Costly(Hidden):
    """Its multiplications are known, but not its weight."""

    def macs(self, input_shape):
        return self.weight.size


@dataclass(frozen=True, eq=False, repr=False)
class Counted(Listed):
    """All of it is known."""

    def macs(self, input_shape):
        return self.weight.size


class Inheriting(Counted):
    """What its own base says of it holds."""


@dataclass(frozen=True, eq=False, repr=False)
class Gated(Dense):
    """No Dense: a gate behind it, an array of its own, which `parameters` of Dense leaves out."""

    gate: Array | None = None

    def forward(self, x):
        return super().forward(x) * self.gate


@dataclass(frozen=True, eq=False, repr=False)
class CostlyGated(Gated):
    def macs(self, input_shape):
        return self.weight.size + self.gate.size


class Squared(ReLU):
    def forward(self, x):
        return x * x


class Noise(Dropout):
    def forward(self, x):
        return x + 1


class Sharp(Softmax):
    def forward(self, x):
        return x * 9


class Reversed(Flatten):
    def forward(self, x):
        return super().forward(x)[:, ::-1]


EYE, TWO = np.eye(2, dtype=F), np.ones(2, F)
STRANGE = {
    layer_type.__name__: layer_type(*fields)
    for layer_type, *fields in [
        (Hidden, EYE),
        (Listed, EYE),
        (Costly, EYE),
        (Gated, EYE, TWO, TWO),
        (CostlyGated, EYE, TWO, TWO),
        (Squared,),
        (Noise, 0.5),
        (Sharp,),
        (Reversed,),
    ]
}
NORM = BatchNorm(TWO, TWO, TWO, TWO)
X, Y = np.array([[1, 2], [-1, 0.5]], F), np.array([0, 1])


def around(layer):
    return Sequential((Dense(EYE, TWO), layer, Dense(EYE)))


def exits(layer):
    inner = Sequential((Dense(EYE, TWO), layer))
    return EarlyExit((inner, Sequential((Dense(EYE),))), (Sequential(()),), (0.5,))


USES = {
    "account": lambda layer: summary(around(layer), (2,)),
    "account and file": lambda layer: summary(around(layer), (2,), file=True),
    "exit_macs": lambda layer: exit_macs(exits(layer), (2,)),
    "search": lambda layer: search_plan(around(layer), [quantize], X, Y, max_bytes=10**6),
    "sensitivity": lambda layer: sensitivity(around(layer), [quantize], X, Y),
    "save": lambda layer: dumps(around(layer)),
    "to_integer": lambda layer: to_integer(around(layer), X),
    "to_integer at the end": lambda layer: to_integer(Sequential((Dense(EYE), layer)), X),
    "output_bound": lambda layer: output_bound(around(layer), around(layer), radius=1.0),
    "ball": lambda layer: ball_certificate(around(layer), around(layer), X[0], eps=0.1),
    "domain": lambda layer: domain_certificate(around(layer), around(layer), X[1], X[0]),
    "exact ball": lambda layer: ball_certificate(
        around(layer), around(layer), X[0], eps=0.1, arithmetic="real"
    ),
    "remove_channels": lambda layer: remove_channels(around(layer), 0, [0]),
    "remove channels of it": lambda layer: remove_channels(around(layer), 1, [0]),
}


def law_refused(use, layer):
    """An error that names the type and the place: 1, in the networks here."""
    name = type(layer).__name__
    with pytest.raises(CompressionError, match=rf"1.*{name}|{name}.*1"):
        use(layer)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", STRANGE)
def test_what_is_not_known_is_refused_by_name(name, use):
    law_refused(USES[use], STRANGE[name])


@pytest.mark.parametrize("name", STRANGE)
def test_a_layer_that_is_not_known_takes_no_batch_norm(name):
    layer = STRANGE[name]
    folded = fold_batch_norm(Sequential((layer, NORM, layer)))
    assert folded.layers[::2] == (layer, layer)
    np.testing.assert_allclose(folded.layers[1].forward(X), NORM.forward(X), rtol=1e-6)


def test_what_a_layer_must_provide_is_said():
    with pytest.raises(
        CompressionError,
        match=r"layer 1 \(Hidden\) cannot be counted: .* parameters\(\), .* macs\(input_shape\)",
    ):
        summary(around(STRANGE["Hidden"]), (2,))
    head = replace(exits(ReLU()), heads=(Sequential((STRANGE["Hidden"],)),))
    with pytest.raises(CompressionError, match=r"heads\[0\]: layer 0 \(Hidden\) cannot be counted"):
        exit_macs(head, (2,))


def test_files_onnx_and_the_rest_know_the_same_layers():
    assert set(onnx_layers.TYPES) == set(TYPES) == LAYER_TYPES


def test_the_arithmetic_of_a_derived_layer_is_not_known():
    with pytest.raises(CompressionError, match="no bound of the arithmetic of Gated"):
        float_error(STRANGE["Gated"], [Values(X, X, 0 * X)], np.dtype(F))


@pytest.mark.parametrize("kind", [IntegerReLU, IntegerFlatten])
def test_a_derived_integer_layer_has_no_c_form(kind, tmp_path):
    class Other(kind):
        def forward(self, codes):
            return -super().forward(codes)

    layer = Other(0) if kind is IntegerReLU else Other()
    model = replace(to_integer(Sequential((ReLU(),)), X), network=Sequential((layer,)))
    with pytest.raises(CompressionError, match=r"layer 0 \(Other\): it has no C form"):
        export_c(model, tmp_path / "net.c")


# ---- what is known


@pytest.mark.parametrize("layer", [Counted(EYE), Inheriting(EYE)])
def test_a_layer_that_says_what_it_costs_is_counted(layer):
    total = summary(around(layer), (2,))
    row = total.rows[1]
    assert (row.params, row.nonzeros, row.macs, row.dense_bytes, row.packed_bytes) == (
        4, 2, 4, 16, 16,
    )  # fmt: skip
    assert total.macs == 4 + 4 + 4
    assert exit_macs(exits(layer), (2,)) == (8, 12)


@pytest.mark.parametrize("macs", [-1, 1.5, None])
def test_macs_are_a_count(macs):
    class Wrong(Counted):
        def macs(self, input_shape):
            return macs

    with pytest.raises(CompressionError, match=r"Wrong\.macs must be an int"):
        summary(around(Wrong(EYE)), (2,))


def test_a_derived_layer_runs_as_itself():
    """With a low-rank weight too, whose factors would be another layer's."""
    product = LowRank((np.ones((2, 1), F), np.ones((1, 2), F)), "ir,ro->io")
    gated = Gated(product, None, np.array([1, -1], F))
    np.testing.assert_array_equal(apply(Sequential((gated,)), X), [[3, -3], [-0.5, 0.5]])


# ---- wrong implementations


def nothing_for_it(model, shape):
    """Counts what it does not know as nothing, as if it were not there."""
    known = tuple(layer for layer in model.layers if isinstance(layer, Dense | Conv2D))
    return summary(Sequential(known), shape)


def by_isinstance(model, shape):
    """Takes a derived layer for what it is derived from."""
    layers = (
        Dense(layer.weight, layer.bias) if isinstance(layer, Dense) else layer
        for layer in model.layers
    )
    return summary(Sequential(tuple(layers)), shape)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [(nothing_for_it, "Hidden"), (by_isinstance, "Gated"), (by_isinstance, "CostlyGated")],
)
def test_planted_counts_are_caught(wrong, name):
    with pytest.raises(pytest.fail.Exception):
        law_refused(lambda layer: wrong(around(layer), (2,)), STRANGE[name])
