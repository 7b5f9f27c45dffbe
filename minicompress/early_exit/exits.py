"""Conditional computation: an easy input leaves the network early.

The network is cut into segments. After each segment but the last there is a head, a small
classifier of the values so far. An input leaves at the first head that is confident enough, and
only the other inputs go on (Teerapittayanon et al., *BranchyNet: fast inference via early exiting
from deep neural networks*, 2016). Segments and heads are networks like any other:

    exits = attach_heads(model, (2,), (28, 28, 1))         # a head behind layer 2
    exits, _ = fit_exits(exits, x, y, ...)                 # the head learns; the network stays
    exits = choose_thresholds(exits, *validation, min_accuracy=0.99)
    logits, left_at = predict(exits, x)

This file has the value, its heads and how it runs. `training` trains the heads, `thresholds`
chooses thresholds and counts what they save, `file` saves and loads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from scipy.special import entr

from minicompress.arrays import Array, DType, Value, as_float, as_int, choice, finite_array
from minicompress.errors import CompressionError, naming
from minicompress.nn.composition import Parallel, Sequential, split
from minicompress.nn.layer import Layer, Shape
from minicompress.nn.layers import Dense
from minicompress.nn.losses import softmax
from minicompress.nn.network import Network, Runner, apply, input_batch, output_shape, value_shapes
from minicompress.nn.parameters import as_tuple, finite_outputs
from minicompress.nn.stateless import Flatten, MaxPool2D
from minicompress.representation import dtype_of

CRITERIA = ("max_probability", "margin", "entropy")
NEVER = math.inf


@dataclass(frozen=True, eq=False, repr=False)
class EarlyExit(Value):
    """A network in segments, with a head after each segment but the last.

    Parameters
    ----------
    segments : tuple of Network, each with one output
        Run one after the other, they are the network. The last one ends in the logits.
    heads : tuple of Network with one output, one fewer
        From the outputs of a segment to logits of the same classes.
    thresholds : tuple of float, one for each head
        An input leaves at a head if its `confidence` there is at least the threshold. At
        ``math.inf`` no input leaves, and the head is not run.
    criterion : "max_probability" | "margin" | "entropy"
        The measure of `confidence`.

    Raises
    ------
    CompressionError
        The numbers of segments, heads and thresholds do not fit, one of the networks has several
        outputs, or a threshold is negative.

    Notes
    -----
    It is compressed part by part, for example
    ``replace(exits, heads=tuple(compress(head, plan).model for head in exits.heads))``.

    Examples
    --------
    >>> segment = Sequential((Dense(np.eye(2)),))
    >>> exits = EarlyExit((segment, segment), (segment,), (0.75,))
    >>> predict(exits, np.array([[0.0, 3.0], [0.0, 1.0]]))[1]
    array([0, 1])
    """

    segments: tuple[Network, ...]
    heads: tuple[Network, ...]
    thresholds: tuple[float, ...]
    criterion: str = "max_probability"

    def __post_init__(self) -> None:
        for name in ("segments", "heads"):
            networks = getattr(self, name)
            if not isinstance(networks, tuple | list) or not all(
                isinstance(part, Network) for part in networks
            ):
                raise CompressionError(f"{name} must be a tuple of Network, not {networks!r}")
            for i, part in enumerate(networks):
                if len(part.outputs) > 1:
                    raise CompressionError(
                        f"{name}[{i}] must have one output, not the values {part.outputs}"
                    )
            object.__setattr__(self, name, tuple(networks))
        if len(self.heads) != len(self.segments) - 1:
            raise CompressionError(
                f"heads must be one fewer than the {len(self.segments)} segments, "
                f"not {len(self.heads)}"
            )
        if not isinstance(self.thresholds, tuple | list) or len(self.thresholds) != len(self.heads):
            raise CompressionError(
                f"thresholds must be a tuple of {len(self.heads)}, one for each head, "
                f"not {self.thresholds!r}"
            )
        object.__setattr__(self, "thresholds", tuple(map(_threshold, self.thresholds)))
        choice(self.criterion, "criterion", CRITERIA)

    @property
    def network(self) -> Network:
        """The network without its heads."""
        return Sequential(self.segments)


def attach_heads(
    model: Network, positions: Sequence[int], input_shape: Shape, *, pool: int = 1
) -> EarlyExit:
    """Cut a network after some of its layers, and put a new head at each cut.

    Parameters
    ----------
    model : Network
        It ends in logits.
    positions : sequence of int, increasing
        Indices of the layers to cut after. The last layer is not allowed: the network ends there.
    input_shape : tuple of int
        The shape of one input, without the batch axis.
    pool : int
        A head first reduces images by the maximum over windows of ``pool x pool`` pixels, which
        makes it cheaper by a factor of ``pool ** 2``.

    Returns
    -------
    EarlyExit
        Its layers are those of `model`. A head is one dense layer that starts at zero. All
        thresholds start at infinity: no input exits early.

    Raises
    ------
    CompressionError
        A position is out of range or out of order, or lies beside a branch: a later layer reads a
        value from before the cut. The outputs are not logits, the network has no
        weights, or an image is smaller than the window.

    Examples
    --------
    >>> from minicompress.nn.architectures import lenet5
    >>> exits = attach_heads(lenet5(np.random.default_rng(0)), (2,), (28, 28, 1), pool=2)
    >>> [len(s.layers) for s in exits.segments], exits.heads[0].layers[-1].weight.shape
    ([3, 7], (720, 10))
    """
    shapes = value_shapes(model, input_shape)
    pool = as_int(pool, "pool", 1)
    highest = len(model.layers) - 2
    cuts = [as_int(p, f"positions[{i}]", 0, highest) + 1 for i, p in enumerate(positions)]
    if any(a >= b for a, b in pairwise(cuts)):
        raise CompressionError(f"positions must increase, not be {positions!r}")
    ends = [shapes[value] for value in model.outputs]
    if len(ends) > 1 or len(ends[0]) != 1:
        raise CompressionError(
            f"model must end in logits, not in outputs of shape {' and '.join(map(str, ends))}"
        )
    reps = [rep for layer in model.layers for rep in layer.parameters().values()]
    if not reps:
        raise CompressionError("model must have weights: the heads take their dtype from them")
    for i, cut in enumerate(cuts):
        with naming(f"positions[{i}]"):
            split(model, cut)
    classes, dtype = ends[0][0], dtype_of(reps[0])
    heads = tuple(_new_head(shapes[cut], classes, pool, dtype) for cut in cuts)
    return EarlyExit(_pieces(model, cuts), heads, (NEVER,) * len(heads))


def confidence(logits: Array, criterion: str = "max_probability") -> Array:
    """How confident a classifier is, from 0 to 1.

    Parameters
    ----------
    logits : (N, classes) ndarray of float16, float32 or float64, finite
        At least two classes. The probabilities p are their softmax.
    criterion : "max_probability" | "margin" | "entropy"
        "max_probability": the largest p. "margin": the largest minus the second largest p.
        "entropy": 1 - H(p) / log(classes), with the entropy H(p) = -sum(p log p).

    Returns
    -------
    (N,) ndarray of float64

    Raises
    ------
    CompressionError
        The logits are not as above, or the criterion does not exist.

    Examples
    --------
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.98, 0.01, 0.01]])
    >>> for criterion in ("max_probability", "margin", "entropy"):
    ...     print(confidence(logits, criterion).round(4))
    [0.5  0.98]
    [0.25 0.97]
    [0.0536 0.8981]
    """
    logits = finite_array(logits, "logits", ndim=2)
    classes = logits.shape[1]
    if classes < 2:
        raise CompressionError(f"logits must be of at least 2 classes, not {classes}")
    with np.errstate(over="ignore"):
        p = softmax(logits.astype(np.float64))
        match choice(criterion, "criterion", CRITERIA):
            case "max_probability":
                sure = p.max(1)
            case "margin":
                second, first = np.partition(p, (-2, -1), axis=1)[:, -2:].T
                sure = first - second
            case _:
                sure = 1 - entr(p).sum(1) / math.log(classes)
    return np.asarray(np.clip(sure, 0.0, 1.0))


def predict(exits: EarlyExit, x: Array, *, batch_size: int | None = None) -> tuple[Array, Array]:
    """Run a batch; each input leaves at the first head that is confident enough.

    Parameters
    ----------
    exits : EarlyExit
        Weights may be representations; they are decoded once a call.
    x : (N, ...) ndarray of float16, float32 or float64
    batch_size : int, optional
        Inputs that start together. By default as many as `apply` takes for the whole network.

    Returns
    -------
    logits : (N, classes) ndarray of the dtype of `x`
        In the order of `x`, each from the exit where the input left.
    left_at : (N,) ndarray of int64
        The index of that exit. ``len(heads)`` is the end of the network.

    Raises
    ------
    CompressionError
        A layer refuses its input, or a head has other classes than the network. Inputs, or the
        logits of an exit that is run, are NaN or infinite: the message names exit and input.

    Notes
    -----
    As long as no input leaves, the rows are those of ``apply(exits.network, x)`` with the same
    `batch_size`, bit for bit. After some have left, the batch is smaller, and the last bits of a
    row can change: see `apply`. So an input whose confidence is this close to a threshold can
    leave in one batch and stay in another.

    Examples
    --------
    >>> first, second = Sequential((Dense(np.eye(2)),)), Sequential((Dense(np.eye(2) * 2),))
    >>> exits = EarlyExit((first, second), (first,), (0.9,))
    >>> logits, left_at = predict(exits, np.array([[0.0, 1.0], [4.0, 0.0]]))
    >>> logits, left_at
    (array([[0., 2.],
           [4., 0.]]), array([1, 0]))
    """
    x, classes, batch_size = _prepared(exits, x, batch_size)
    segments, heads = (tuple(map(Runner, part)) for part in (exits.segments, exits.heads))
    logits = np.empty((len(x), classes), x.dtype)
    left_at = np.full(len(x), len(exits.heads), np.int64)
    for start in range(0, len(x), batch_size):
        inside = x[start : start + batch_size]
        rows = np.arange(start, start + len(inside))
        for i, (segment, head, threshold) in enumerate(zip(segments, heads, exits.thresholds)):
            inside = _run(segment, inside)
            if threshold == NEVER:
                continue
            answers = finite_outputs(_run(head, inside), rows, f"heads[{i}]")
            leave = confidence(answers, exits.criterion) >= threshold
            logits[rows[leave]], left_at[rows[leave]] = answers[leave], i
            if leave.any():  # else keep the batch, with its memory layout
                rows, inside = rows[~leave], inside[~leave]
            if not rows.size:
                break
        else:
            logits[rows] = finite_outputs(_run(segments[-1], inside), rows)
    return logits, left_at


def exit_logits(exits: EarlyExit, x: Array, *, batch_size: int | None = None) -> Array:
    """The logits of all exits for all inputs; no input leaves early.

    Parameters
    ----------
    exits : EarlyExit
    x : (N, ...) ndarray of float16, float32 or float64
    batch_size : int, optional
        As for `predict`.

    Returns
    -------
    (N, exits, classes) ndarray of the dtype of `x`
        The last exit is the end of the network.

    Raises
    ------
    CompressionError
        As `predict`.

    Examples
    --------
    >>> first, second = Sequential((Dense(np.eye(2)),)), Sequential((Dense(np.eye(2) * 2),))
    >>> exit_logits(EarlyExit((first, second), (first,), (0.9,)), np.array([[0.0, 1.0]]))
    array([[[0., 1.],
            [0., 2.]]])
    """
    x, _, batch_size = _prepared(exits, x, batch_size)
    with np.errstate(over="ignore", invalid="ignore"):  # logits that are not finite are refused
        logits = as_tuple(apply(all_exits(exits), x, batch_size=batch_size))
    names = [f"heads[{i}]" for i in range(len(exits.heads))] + ["network"]
    return np.stack([finite_outputs(z, name=name) for z, name in zip(logits, names)], axis=1)


def _threshold(value: float) -> float:
    """A threshold, checked; infinity is allowed."""
    return NEVER if value == NEVER else as_float(value, "thresholds", 0.0)


def _new_head(shape: Shape, classes: int, pool: int, dtype: DType) -> Network:
    before: tuple[Layer, ...] = ()
    if len(shape) > 1:
        before = (MaxPool2D(pool), Flatten()) if pool > 1 and len(shape) == 3 else (Flatten(),)
    (features,) = output_shape(Sequential(before), shape)
    dense = Dense(np.zeros((features, classes), dtype), np.zeros(classes, dtype))
    return Sequential((*before, dense))


def _prepared(exits: EarlyExit, x: Array, batch_size: int | None) -> tuple[Array, int, int]:
    """Check the arguments: the inputs, the number of classes, and the size of a batch."""
    x = input_batch(checked(exits).network, finite_array(x, "x"))
    classes = number_of_classes(exits, x.shape[1:])
    if batch_size is None:
        batch_size = Runner(exits.network).chunk_rows(x)
    return x, classes, as_int(batch_size, "batch_size", 1)


def checked(exits: EarlyExit) -> EarlyExit:
    """An argument that must be an `EarlyExit`."""
    if not isinstance(exits, EarlyExit):
        raise CompressionError(f"exits must be an EarlyExit, not {type(exits).__name__}")
    return exits


def parts(exits: EarlyExit) -> tuple[Network, ...]:
    """Segments and heads in turn: segment, head, ..., segment."""
    pairs = zip(exits.segments, exits.heads)
    return (*(part for pair in pairs for part in pair), exits.segments[-1])


def all_exits(exits: EarlyExit) -> Network:
    """One network whose outputs are the logits of all exits. Its layers are those of `parts`."""
    network = exits.segments[-1]
    for i, head in reversed([*enumerate(exits.heads)]):
        if not head.layers and 0 in network.outputs:
            raise CompressionError(f"heads[{i}] and the exit after it are the same value")
        network = Sequential((exits.segments[i], Parallel((head, network))))
    return network


def regrouped(
    network: Network, sizes: Sequence[int]
) -> tuple[tuple[Network, ...], tuple[Network, ...]]:
    """Segments and heads from ``Sequential(parts)`` and the number of layers in each part."""
    pieces = _pieces(network, [*accumulate(sizes[:-1])])
    return pieces[::2], pieces[1::2]


def _pieces(network: Network, cuts: Sequence[int]) -> tuple[Network, ...]:
    """The network cut at some values."""
    pieces = []
    for cut in reversed(cuts):
        network, piece = split(network, cut)
        pieces.append(piece)
    return (network, *reversed(pieces))


def number_of_classes(exits: EarlyExit, input_shape: Shape) -> int:
    """The number of classes of the network, and of every head."""
    network = all_exits(exits)
    shapes = value_shapes(network, input_shape)
    *others, wanted = [shapes[value] for value in network.outputs]
    if len(wanted) != 1:
        raise CompressionError(f"the network must end in logits, not in outputs of shape {wanted}")
    for i, found in enumerate(others):
        if found != wanted:
            raise CompressionError(
                f"heads[{i}] must end in {wanted[0]} logits as the network, "
                f"not in outputs of shape {found}"
            )
    return int(wanted[0])


def _run(run: Runner, x: Array) -> Array:
    """Run all rows at once: the caller has cut the batch already."""
    with np.errstate(over="ignore", invalid="ignore"):  # logits that are not finite are refused
        return run({0: x})[run.network.outputs[0]]
