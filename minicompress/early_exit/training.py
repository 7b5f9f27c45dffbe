"""Training the heads of an `EarlyExit`, alone or together with its network, by the one `fit`.

Apart, a head is a model that learns from what the segments before it compute. Together, the latent
model of `fit` is the layers of all segments and heads in a row; it is never run. What is run is its
view: a single layer that gives the logits of all exits next to each other, and a loss that adds up
what they are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np

from minicompress.arrays import Array, as_float, finite_array, flag
from minicompress.early_exit.exits import (
    EarlyExit,
    checked,
    exit_logits,
    flat_layers,
    number_of_classes,
    parts,
    regrouped,
)
from minicompress.errors import CompressionError
from minicompress.nn.layers import Layer, Pullback, Shape
from minicompress.nn.losses import softmax_cross_entropy
from minicompress.nn.network import Gradients, Sequential, apply, finite_outputs, vjp
from minicompress.nn.optimizers import Optimizer
from minicompress.nn.stateless import Dropout
from minicompress.nn.training import History, View, fit
from minicompress.representation import Rep


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
        What is trained must be of plain arrays.
    x, y, optimizer, epochs, batch_size, rng, validation, progress
        As for `fit`.
    joint : bool
        False: the heads learn one after the other, each from what its segments make of `x`, which
        is computed once, and the segments stay as they are. True: everything learns, and the loss
        is the sum of the cross-entropies at all exits.
    loss_weights : sequence of float, one for each exit, optional
        What they count in that sum; 1 each by default. The network's end is the last.

    Returns
    -------
    exits : EarlyExit
        With the thresholds as they were: choose them after the training.
    histories : tuple of History
        One for each head. Of a joint training only one, without accuracies, which its exits do not
        share.

    Raises
    ------
    CompressionError
        As `fit`; or `loss_weights` are not as above, or come without `joint`.

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
    settings: dict[str, Any] = {
        "optimizer": optimizer,
        "epochs": epochs,
        "batch_size": batch_size,
        "rng": rng,
    }
    if flag(joint, "joint"):
        weights = _loss_weights(loss_weights, len(exits.segments))
        seen, history = fit(
            Sequential(flat_layers(exits)),
            x,
            y,
            view=lambda latent, step: _joint_view(exits, latent),
            loss=lambda outputs, labels: _summed_loss(outputs, labels, weights),
            validation=validation,
            progress=progress,
            **settings,
        )
        (together,) = seen.layers
        assert isinstance(together, _AllExits)  # as the view made it
        losses_only = replace(history, train_accuracy=(), validation_accuracy=(), state=None)
        return together.exits, (losses_only,)
    if loss_weights is not None:
        raise CompressionError("loss_weights are for joint=True: apart, each head has its own loss")
    heads, histories = [], []
    for i, head in enumerate(exits.heads):
        # What does not learn need not run again in every epoch, and a pool before the first weight
        # makes it less to keep.
        fixed = tuple(
            takewhile(lambda a: not a.parameters() and type(a) is not Dropout, head.layers)
        )
        before = [layer for segment in exits.segments[: i + 1] for layer in segment.layers]
        body = partial(_features, Sequential((*before, *fixed)), i)
        trained, history = fit(
            Sequential(head.layers[len(fixed) :]),
            body(x),
            y,
            validation=None if validation is None else (body(validation[0]), validation[1]),
            progress=progress,
            **settings,
        )
        heads.append(Sequential((*fixed, *trained.layers)))
        histories.append(history)
    return replace(exits, heads=tuple(heads)), tuple(histories)


def _features(body: Sequential, i: int, x: Array) -> Array:
    """What a head learns from."""
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused
        return finite_outputs(apply(body, finite_array(x, "x")), name=f"the way to heads[{i}]")


def _joint_view(exits: EarlyExit, latent: Sequential) -> View:
    """All exits of the latent layers as one layer, and its gradients as those of the latent."""
    models = regrouped(latent.layers, [len(part.layers) for part in parts(exits)])
    together = _AllExits(replace(exits, segments=models[::2], heads=models[1::2]))

    def pullback(gradients: Gradients) -> Gradients:
        (by_name,) = gradients
        return tuple(
            {name: by_name[_name(i, name)] for name in layer.parameters()}
            for i, layer in enumerate(latent.layers)
        )

    return View(Sequential((together,)), pullback)


def _name(index: int, name: str) -> str:
    return f"{index} {name}"


@dataclass(frozen=True, eq=False, repr=False)
class _AllExits(Layer):
    """Every exit's logits next to each other, (N, exits * classes), the network's end last."""

    exits: EarlyExit

    def forward(self, x: Array) -> Array:
        return exit_logits(self.exits, x).reshape(len(x), -1)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (len(self.exits.segments) * number_of_classes(self.exits, input_shape),)

    def parameters(self) -> dict[str, Rep]:
        layers = enumerate(flat_layers(self.exits))
        return {_name(i, n): rep for i, layer in layers for n, rep in layer.parameters().items()}

    def vjp(
        self, x: Array, *, rng: np.random.Generator | None = None, input_gradient: bool = True
    ) -> tuple[Array, Pullback]:
        logits, pulls = [], []
        # The network's end is an exit with nothing more to compute.
        stages = list(zip(self.exits.segments, (*self.exits.heads, Sequential(()))))
        for i, (segment, head) in enumerate(stages):
            x, pull = vjp(segment, x, rng=rng, input_gradient=input_gradient or i > 0)
            answers, pull_head = vjp(head, x, rng=rng)
            logits.append(answers)
            pulls.append((pull, pull_head))

        def pullback(dy: Array) -> tuple[Array | None, dict[str, Array]]:
            gradients: list[dict[str, Array]] = []
            below: Array | None = None  # from the segments behind
            for (pull, pull_head), part in zip(
                reversed(pulls), reversed(np.split(dy, len(pulls), axis=1))
            ):
                dx, of_head = pull_head(part)
                assert dx is not None  # as a head is asked for it
                below, of_segment = pull(dx if below is None else dx + below)
                gradients = [*of_segment, *of_head, *gradients]
            named = {_name(i, n): g for i, each in enumerate(gradients) for n, g in each.items()}
            return below, named

        return np.concatenate(logits, axis=1), pullback


def _summed_loss(outputs: Array, labels: Array, weights: Sequence[float]) -> tuple[float, Array]:
    """The cross-entropies of all exits, each by its weight."""
    losses = [softmax_cross_entropy(z, labels) for z in np.split(outputs, len(weights), axis=1)]
    total = sum(weight * loss for weight, (loss, _) in zip(weights, losses))
    return total, np.hstack([gradient * w for w, (_, gradient) in zip(weights, losses)])


def _loss_weights(weights: Sequence[float] | None, exits: int) -> list[float]:
    if weights is None:
        return [1.0] * exits
    if len(weights) != exits:
        raise CompressionError(
            f"loss_weights must be {exits}, one for each exit, not {len(weights)}"
        )
    return [as_float(w, f"loss_weights[{i}]", 0.0) for i, w in enumerate(weights)]
