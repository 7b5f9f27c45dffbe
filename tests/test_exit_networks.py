"""Early exit of networks with shortcuts: where they can be cut, and all that follows."""

import math
from dataclasses import replace

import numpy as np
import pytest
from container_models import with_checksum
from hypothesis import given
from hypothesis import strategies as st

from minicompress.analysis.accounting import summary
from minicompress.datasets import load_digits
from minicompress.early_exit.exits import (
    EarlyExit,
    attach_heads,
    exit_logits,
    predict,
)
from minicompress.early_exit.file import load_exits, save_exits
from minicompress.early_exit.thresholds import (
    choose_thresholds,
    exit_curve,
    exit_macs,
    expected_macs,
)
from minicompress.early_exit.training import fit_exits
from minicompress.errors import CompressionError, FileFormatError
from minicompress.nn.architectures import digits_resnet
from minicompress.nn.composition import Parallel, Residual, Sequential
from minicompress.nn.layers import Dense
from minicompress.nn.network import apply, value_shapes
from minicompress.nn.optimizers import adam
from minicompress.nn.parameters import with_layers
from minicompress.nn.pointwise import ReLU
from minicompress.nn.stateless import Add, Flatten
from minicompress.nn.training import fit
from minicompress.representation import dtype_of
from minicompress.storage.container import dumps
from minicompress.testing.checks import same
from minicompress.testing.models import models

SHAPE = (5, 4, 2)


@st.composite
def classifiers(draw):
    """Drawn networks that end in logits, and inputs of their dtype."""
    network = Sequential((draw(models(SHAPE, single_output=True)), Flatten()))
    (features,) = value_shapes(network, SHAPE)[-1]
    reps = [rep for layer in network.layers for rep in layer.parameters().values()]
    dtype = dtype_of(reps[0]) if reps else np.dtype(np.float32)
    weight = (np.arange(features * 3).reshape(features, 3) % 5 - 2).astype(dtype)
    x = (np.arange(6 * 40).reshape(6, *SHAPE) * 37 % 64 / 64).astype(dtype)
    return Sequential((network, Dense(weight))), x


def cuts_of(network):
    """The layers after which one value is all that the rest needs, by counting what crosses."""
    size = len(network.layers)
    crossing = [
        {v for reads in [*network.inputs[i + 1 :], network.outputs] for v in reads if v <= i + 1}
        for i in range(size - 1)
    ]
    return [i for i, values in enumerate(crossing) if values == {i + 1}]


def law_attached(attach, network):
    """Heads go wherever one value is all that the rest needs, and nowhere else."""
    possible = cuts_of(network)
    exits = attach(network, possible, SHAPE)
    assert same(exits.network, network)
    assert np.cumsum([len(s.layers) for s in exits.segments]).tolist() == [
        *(i + 1 for i in possible), len(network.layers)]  # fmt: skip
    for i in {*range(len(network.layers) - 1)} - {*possible}:
        try:
            attach(network, [i], SHAPE)
        except CompressionError as error:
            message = str(error)
        else:
            raise AssertionError(f"it was cut after layer {i}")
        assert f"positions[0]: the network cannot be cut at value {i + 1}" in message


@given(classifiers())
def test_heads_go_wherever_the_network_can_be_cut(drawn):
    law_attached(attach_heads, drawn[0])


def with_heads(network):
    """Heads wherever they can be, of weights that differ; they begin as zeros."""
    exits = attach_heads(network, cuts_of(network), SHAPE)
    heads = []
    for i, head in enumerate(exits.heads):
        weight = head.layers[-1].weight
        other = ((np.arange(weight.size) * (i + 3) % 7 - 3) / 4).reshape(weight.shape)
        dense = Dense(other.astype(weight.dtype), np.ones(3, weight.dtype))
        heads.append(with_layers(head, (*head.layers[:-1], dense)))
    return replace(exits, heads=tuple(heads))


def bodies(exits):
    """For each exit the network that ends there."""
    ends = (*exits.heads, Sequential(()))
    return [Sequential((*exits.segments[: i + 1], end)) for i, end in enumerate(ends)]


def law_runs(run, exits, x):
    """If nobody leaves it is the network, bit for bit; at an exit, the network that ends there."""
    heads = len(exits.heads)
    for i, body in enumerate(bodies(exits)):
        thresholds = [math.inf] * heads
        thresholds[i : i + 1] = [0.0] * (i < heads)
        logits, left_at = run(replace(exits, thresholds=thresholds), x)
        assert left_at.tolist() == [i] * len(x)
        assert logits.tobytes() == apply(body, x).tobytes()


@given(classifiers())
def test_every_exit_is_the_network_that_ends_there(drawn):
    network, x = drawn
    exits = with_heads(network)
    with np.errstate(all="ignore"):
        expected = [apply(body, x) for body in bodies(exits)]
    faults = [i for i, logits in enumerate(expected) if not np.isfinite(logits).all()]
    if faults:
        name = "network" if faults[0] == len(exits.heads) else rf"heads\[{faults[0]}\]"
        with pytest.raises(CompressionError, match=f"{name} must give finite outputs"):
            exit_logits(exits, x)
        return
    assert exit_logits(exits, x).tobytes() == np.stack(expected, 1).tobytes()
    law_runs(predict, exits, x)


@given(drawn=classifiers())
def test_a_file_holds_exits_of_any_network(drawn, tmp_path_factory):
    exits = with_heads(drawn[0])
    path = tmp_path_factory.mktemp("exits") / "exits.mcx"
    assert save_exits(exits, path) == path.stat().st_size
    assert same(load_exits(path), exits)


@given(classifiers())
def test_what_exits_cost_is_what_the_network_counts(drawn):
    network, _ = drawn
    exits = attach_heads(network, cuts_of(network), SHAPE)
    assert exit_macs(exits, SHAPE)[-1] == summary(network, SHAPE).macs


# A residual network from the beginning to the end ------------------------------------------------

RESNET = digits_resnet(np.random.default_rng(0))


def test_a_residual_network_is_cut_between_its_blocks():
    """At the sum of every block, and at its activation; inside it, the shortcut goes around."""
    sums = [i for i, layer in enumerate(RESNET.layers) if type(layer) is Add]
    assert {*sums, *(i + 1 for i in sums)} <= {*cuts_of(RESNET)}
    words = rf"positions\[1\]: .*layer {sums[0]} \(Add\) also reads value 3"
    with pytest.raises(CompressionError, match=words):
        attach_heads(RESNET, (2, sums[0] - 1), (8, 8, 1))


@pytest.mark.parametrize("joint", [False, True])
def test_a_residual_network_with_heads_learns_and_saves_work(joint, tmp_path):
    x, y = load_digits("train")
    validation = load_digits("validation")
    ends = [i + 1 for i, layer in enumerate(RESNET.layers) if type(layer) is Add][:2]
    settings = {"batch_size": 32, "optimizer": adam(3e-3), "rng": np.random.default_rng(0)}
    network = RESNET if joint else fit(RESNET, x, y, epochs=2, **settings)[0]
    exits = attach_heads(network, ends, (8, 8, 1), pool=2)
    exits, histories = fit_exits(exits, x, y, joint=joint, epochs=2, **settings)
    assert len(histories) == (1 if joint else 2)
    assert joint or same(exits.network, network)
    accuracies = (exit_logits(exits, validation[0]).argmax(2) == validation[1][:, None]).mean(0)
    assert (accuracies > 0.8).all(), accuracies
    goal = accuracies[-1] - 0.01
    chosen = choose_thresholds(exits, *validation, min_accuracy=goal)
    logits, left_at = predict(chosen, validation[0])
    assert (logits.argmax(1) == validation[1]).mean() >= goal
    whole = summary(network, (8, 8, 1)).macs
    assert expected_macs(chosen, (8, 8, 1), left_at) < whole
    assert exit_curve(exits, *validation)[0].macs == whole
    save_exits(chosen, tmp_path / "exits.mcx", coding="packed")
    assert same(load_exits(tmp_path / "exits.mcx"), chosen)


# People -------------------------------------------------------------------------------------------


def test_a_segment_or_a_head_of_several_outputs_is_named():
    two, one = Parallel((ReLU(), Dense(np.eye(2)))), Sequential((Dense(np.eye(2)),))
    for name, segments, heads in (("segments", (one, two), (one,)), ("heads", (one, one), (two,))):
        i = len(segments) - 1 if name == "segments" else 0
        with pytest.raises(CompressionError, match=rf"{name}\[{i}\] must have one output"):
            EarlyExit(segments, heads, (1.0,))
    with pytest.raises(CompressionError, match="model must end in logits, not in outputs of shape"):
        attach_heads(two, (0,), (2,))


def test_a_file_whose_parts_cannot_be_cut_is_refused(tmp_path):
    """The frame is right, but a layer behind the cut reads what stands before it."""
    shortcut = Residual(Dense(np.eye(2)), Dense(np.eye(2)))
    chain = Sequential([Dense(np.eye(2))] * 3)
    path = tmp_path / "exits.mcx"
    save_exits(EarlyExit((Sequential(chain.layers[:1]),) * 2, (Sequential(chain.layers[:1]),),
                         (0.5,)), path)  # fmt: skip
    blob = path.read_bytes()
    frame = blob[: -len(dumps(chain)) - 4]
    for network, words in (
        (shortcut, "cannot be cut at value 2"),
        (Parallel((chain.layers[:2], chain.layers[0])), "cannot be cut at value 2"),
        (Sequential((*chain.layers[:2], Parallel(((), chain.layers[0])))), "must have one output"),
    ):
        path.write_bytes(with_checksum(frame + dumps(network)))
        with pytest.raises(FileFormatError, match=words):
            load_exits(path)


# Planted faults -----------------------------------------------------------------------------------


def anywhere(model, positions, input_shape):
    """Cut a network as if it were a chain."""
    return attach_heads(Sequential(model.layers), positions, input_shape)


def shortcuts_forgotten(exits, x):
    """Run the layers of every segment one after the other."""
    segments = tuple(Sequential(segment.layers) for segment in exits.segments)
    return predict(replace(exits, segments=segments), x)


BLOCKS = Sequential(
    (Flatten(), Residual(Dense(np.eye(40)), ReLU()), Dense(np.ones((40, 3)) * np.arange(3)))
)
SEEN = np.arange(-40.0, 40).reshape(2, *SHAPE)

PLANTED = {
    "a network is cut beside a shortcut": (lambda attach: law_attached(attach, BLOCKS), anywhere),
    "shortcuts are forgotten": (
        lambda run: law_runs(run, with_heads(BLOCKS), SEEN), shortcuts_forgotten),
}  # fmt: skip


def test_the_example_of_the_planted_faults_runs():
    law_attached(attach_heads, BLOCKS)
    law_runs(predict, with_heads(BLOCKS), SEEN)


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
