"""Training the heads of an `EarlyExit` with `fit`: alone, or together with the network.

- Alone: a head is a network, and its inputs are the outputs of the segments before it.
- Together: segments and heads are one network whose outputs are the logits of all exits. The loss
  is the weighted sum of the losses of the exits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, takewhile
from typing import Any

import numpy as np

from minicompress.arrays import Array, as_float, finite_array, flag
from minicompress.early_exit.exits import EarlyExit, all_exits, checked, parts
from minicompress.errors import CompressionError
from minicompress.nn.composition import Sequential, split
from minicompress.nn.losses import softmax_cross_entropy
from minicompress.nn.network import Network, apply, is_chain
from minicompress.nn.optimizers import Optimizer
from minicompress.nn.parameters import as_tuple, finite_outputs, with_layers
from minicompress.nn.pointwise import Dropout
from minicompress.nn.training import History, fit


def fit_exits(
    exits: EarlyExit,
    x: Array,
    y: Array,
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    rng: np.random.Generator,
    joint: bool = False,
    loss_weights: Sequence[float] | None = None,
    validation: tuple[Array, Array] | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[EarlyExit, tuple[History, ...]]:
    """Train the heads, or heads and network together.

    Parameters
    ----------
    exits : EarlyExit
        The weights that are trained must be plain arrays.
    x, y, optimizer, epochs, batch_size, rng, validation, progress
        As for `fit`.
    joint : bool
        False: the heads are trained one after the other, each on the outputs of its segments, which
        are computed once. The segments do not change. True: everything is trained, and the loss is
        the weighted sum of the cross-entropies at all exits.
    loss_weights : sequence of float, one for each exit, optional
        The weights in that sum; 1 each by default. The end of the network is the last exit.

    Returns
    -------
    exits : EarlyExit
        With the same thresholds: choose them after the training.
    histories : tuple of History
        One for each head. For joint training there is only one, without accuracies, since each exit
        has its own.

    Raises
    ------
    CompressionError
        As for `fit`; or `loss_weights` are not as above, or are given without `joint`.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.optimizers import sgd
    >>> from minicompress.early_exit.exits import attach_heads
    >>> exits = attach_heads(Sequential((Dense(np.eye(2)), Dense(np.eye(2)))), (0,), (2,))
    >>> fitted, _ = fit_exits(exits, np.eye(2), np.array([0, 1]), optimizer=sgd(1.0), epochs=1,
    ...                       batch_size=2, rng=np.random.default_rng(0))
    >>> fitted.heads[0].layers[0].weight, fitted.segments == exits.segments
    (array([[ 0.25, -0.25],
           [-0.25,  0.25]]), True)
    """
    checked(exits)
    train = partial(
        fit, optimizer=optimizer, epochs=epochs, batch_size=batch_size, rng=rng, progress=progress
    )
    if flag(joint, "joint"):
        weights = _loss_weights(loss_weights, len(exits.segments))
        trained, history = train(
            all_exits(exits),
            x,
            y,
            loss=lambda outputs, labels: _summed_loss(outputs, labels, weights),
            validation=validation,
        )
        layers = iter(trained.layers)
        new = [with_layers(p, [*islice(layers, len(p.layers))]) for p in parts(exits)]
        losses_only = replace(history, train_accuracy=(), validation_accuracy=(), state=None)
        return replace(exits, segments=tuple(new[::2]), heads=tuple(new[1::2])), (losses_only,)
    if loss_weights is not None:
        raise CompressionError("loss_weights are for joint=True: apart, each head has its own loss")
    heads, histories = [], []
    for i, head in enumerate(exits.heads):
        # Layers before the first weight have constant outputs, which are computed only once.
        fixed = list(
            takewhile(lambda a: not a.parameters() and type(a) is not Dropout, head.layers)
        )
        before, rest = split(head, len(fixed) if is_chain(head) else 0)
        body = Sequential((*exits.segments[: i + 1], before))
        trained, history = train(
            rest,
            _features(body, i, x),
            y,
            validation=validation and (_features(body, i, validation[0]), validation[1]),
        )
        heads.append(Sequential((before, trained)))
        histories.append(history)
    return replace(exits, heads=tuple(heads)), tuple(histories)


def _features(body: Network, i: int, x: Array) -> Any:
    """The inputs of a head's first layer with weights."""
    with np.errstate(over="ignore", invalid="ignore"):  # outputs that are not finite are refused
        return finite_outputs(apply(body, finite_array(x, "x")), name=f"the way to heads[{i}]")


def _summed_loss(outputs: Any, labels: Array, weights: Sequence[float]) -> tuple[float, Any]:
    """The weighted sum of the cross-entropies of all exits, and its gradients."""
    losses = [softmax_cross_entropy(z, labels) for z in as_tuple(outputs)]
    total = sum(weight * loss for weight, (loss, _) in zip(weights, losses))
    gradients = tuple(gradient * w for w, (_, gradient) in zip(weights, losses))
    return total, gradients if len(gradients) > 1 else gradients[0]


def _loss_weights(weights: Sequence[float] | None, exits: int) -> list[float]:
    if weights is None:
        return [1.0] * exits
    if len(weights) != exits:
        raise CompressionError(
            f"loss_weights must be {exits}, one for each exit, not {len(weights)}"
        )
    return [as_float(w, f"loss_weights[{i}]", 0.0) for i, w in enumerate(weights)]
