"""Training: `fit`, which may train a model seen through a view, and `evaluate`.

A view is how compression takes part in training. `fit` keeps a latent model. In every step the view
makes the model that is run from it: rounded, masked, with shared weights. The gradient is taken
there, and the latent model is updated. So updates that are smaller than a rounding step add up, and
are not lost (Courbariaux et al., 2015; the "straight-through" gradient of Bengio et al., 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from minicompress.arrays import (
    Array,
    Value,
    as_int,
    ceil_div,
    finite_array,
    generator,
    integer_array,
)
from minicompress.errors import CompressionError, naming
from minicompress.nn.gradient import vjp
from minicompress.nn.losses import softmax_cross_entropy
from minicompress.nn.network import Gradients, Network, apply
from minicompress.nn.optimizers import Optimizer
from minicompress.nn.parameters import as_tuple, finite_model, finite_outputs
from minicompress.nn.statistics import has_batch_norm, reestimate_batch_norm

# loss(outputs, classes), or loss(outputs, classes, targets): the mean, and its gradient by outputs.
Loss: TypeAlias = Callable[..., tuple[float, Array]]


class View(NamedTuple):
    """The model that a view makes of the latent model, and how its gradients go back.

    Parameters
    ----------
    model : Network
        Of plain arrays.
    pullback : callable
        ``pullback(gradients)`` gives the latent model's gradients from those of `model`. With a
        shared codebook, each weight gets the sum of the gradients of its cluster.
    """

    model: Network
    pullback: Callable[[Gradients], Gradients]


EXAMPLES = 1024
DIVERGED = "Take a smaller learning rate, or a wider float"

LatentView: TypeAlias = Callable[[Network, int], Network | View]


class TrainingState(NamedTuple):
    """Where a training stands. Given to `fit` in place of a model, the training goes on from there.

    Parameters
    ----------
    latent : Network
        The model that is updated, and that a view looks at.
    optimizer : object
        The optimizer's state.
    step : int
        The number of updates made so far.
    """

    latent: Network
    optimizer: Any
    step: int


@dataclass(frozen=True, eq=False, repr=False)
class History(Value):
    """How a training went: one entry for every epoch that was run.

    Parameters
    ----------
    train_loss, train_accuracy : tuple of float
        Means over the examples, each measured when its batch was trained on, so while the model was
        changing. Accuracy is a fraction.
    validation_loss, validation_accuracy : tuple of float
        After the epoch; empty without validation data.
    stopped_early : bool
        Whether `patience` ended the training.
    state : TrainingState or None
        After the last epoch, even if the model that `fit` returns is from an earlier one.
    """

    train_loss: tuple[float, ...] = ()
    train_accuracy: tuple[float, ...] = ()
    validation_loss: tuple[float, ...] = ()
    validation_accuracy: tuple[float, ...] = ()
    stopped_early: bool = False
    state: TrainingState | None = None

    @property
    def epochs(self) -> int:
        """The number of epochs that were run."""
        return len(self.train_loss)


def fit(
    model: Network | TrainingState,
    x: Array,
    y: Array,
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    rng: np.random.Generator,
    view: LatentView | None = None,
    loss: Loss = softmax_cross_entropy,
    targets: Array | None = None,
    validation: tuple[Array, Array] | None = None,
    patience: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Network, History]:
    """Train a model on shuffled batches.

    Parameters
    ----------
    model : Network or TrainingState
        Of plain arrays: where the latent model starts. Or the ``history.state`` of an earlier
        training, which then goes on with its momentum, its schedules and the view's steps.
    x : (N, ...) ndarray of the model's dtype, finite, N at least 1
    y : (N,) ndarray of integers
        The classes.
    optimizer : Optimizer
        `sgd`, `adam` or your own.
    epochs : int
        Passes over all examples; may be 0.
    batch_size : int
        Examples in a step; the last step of an epoch takes the rest.
    rng : numpy.random.Generator
        For the order of the examples and for `Dropout`.
    view : callable, optional
        ``view(latent, step)`` gives the model or the `View` that is run; `step` is the number of
        updates made so far. If it gives a model, the latent model gets its gradients unchanged.
    loss : callable
        ``loss(outputs, y) -> (mean loss, its gradient by the outputs)``
    targets : (N, ...) ndarray, optional
        More that the loss needs of each example, such as a teacher's outputs for `distillation`.
        The loss is then called as ``loss(outputs, y, targets)``.
    validation : (x, y), optional
        Evaluated after every epoch with the same loss, or with `softmax_cross_entropy` if there are
        targets, which these examples have not.
    patience : int, optional
        Stop when the validation loss has not become lower for this many epochs, and return the
        model of the epoch with the lowest one.
    progress : callable, optional
        ``progress(step, total_steps, loss)`` after every step; `step` counts from 1.

    Returns
    -------
    model : Network
        The final latent model, seen through the view.
    history : History

    Raises
    ------
    CompressionError
        Shapes do not fit, labels are not integers, a number is out of range, `patience` is given
        without `validation`, or the model holds representations. Inputs, targets or initial weights
        are NaN or infinite. The loss becomes NaN or infinite at a step, or the weights by the end
        of an epoch; the message names the step and the epoch.

    Notes
    -----
    The same arguments and the same state of `rng` give the same bits on the same machine.

    Batch normalizations take the statistics of each batch. After an epoch, those of the model that
    is measured and returned are estimated from 1,024 examples, drawn at random.

    Of a network with several outputs, which the loss gets as a tuple, the first decides accuracy.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.optimizers import sgd
    >>> model = Sequential((Dense(np.zeros((1, 2))),))
    >>> x, y = np.array([[-1.0], [1.0]]), np.array([0, 1])
    >>> trained, history = fit(model, x, y, optimizer=sgd(1.0), epochs=3, batch_size=2,
    ...                        rng=np.random.default_rng(0))
    >>> accuracy(trained, x, y), history.epochs
    (1.0, 3)
    """
    x, y = _data(x, y, "x", "y")
    if validation is not None:
        validation = _data(*validation, "validation[0]", "validation[1]")
    epochs, batch_size = as_int(epochs, "epochs", 0), as_int(batch_size, "batch_size", 1)
    generator(rng)
    if patience is not None:
        as_int(patience, "patience", 1)
        if validation is None:
            raise CompressionError("patience needs validation data to watch")
    if targets is not None:
        if len(targets) != len(x):
            raise CompressionError(f"targets must have {len(x)} rows as x, not {len(targets)}")
        if targets.dtype.kind == "f":
            finite_array(targets, "targets")
    if isinstance(model, Network):
        model = TrainingState(model, optimizer.init(model), 0)
    latent, state, step = model
    finite_model(latent)
    first, total_steps = step, epochs * ceil_div(len(x), batch_size)
    best, lowest, best_epoch = _seen(view, latent, step).model, math.inf, 0
    history = History(state=model)
    measure = loss if targets is None else softmax_cross_entropy

    for epoch in range(1, epochs + 1):
        loss_sum, hits, order = 0.0, 0, rng.permutation(len(x))
        for start in range(0, len(x), batch_size):
            rows = order[start : start + batch_size]
            known = (y[rows],) if targets is None else (y[rows], targets[rows])
            where = f"step {step - first + 1} of {total_steps} (epoch {epoch})"
            seen, to_latent = _seen(view, latent, step)
            with np.errstate(over="ignore", invalid="ignore"):  # the check of the loss finds them
                outputs, pullback = vjp(seen, x[rows], rng=rng, input_gradient=False)
                batch_loss, doutputs = loss(outputs, *known)
                if not math.isfinite(batch_loss):
                    raise CompressionError(f"{where}: the loss is {batch_loss}. {DIVERGED}")
                gradients = to_latent(pullback(doutputs)[1])
                latent, state = optimizer.update(latent, gradients, state)
            step += 1
            loss_sum += float(batch_loss) * len(rows)
            hits += _hits(outputs, y[rows])
            if progress is not None:
                progress(step - first, total_steps, float(batch_loss))
        try:
            finite_model(latent)
            last = _seen(view, latent, step).model
            finite_model(last)
            if has_batch_norm(last):
                last = reestimate_batch_norm(last, x[order[:EXAMPLES]])
                finite_model(last)
        except CompressionError as error:
            raise CompressionError(f"after {where}: {error}. {DIVERGED}") from error
        measured: tuple[float, ...] = ()
        if validation is not None:
            with naming(f"validation after {where}"):
                measured = evaluate(last, *validation, loss=measure)
        history = History(
            (*history.train_loss, loss_sum / len(x)),
            (*history.train_accuracy, hits / len(x)),
            history.validation_loss + measured[:1],
            history.validation_accuracy + measured[1:],
            state=TrainingState(latent, state, step),
        )
        if patience is None:
            best = last
        elif measured[0] < lowest:
            best, lowest, best_epoch = last, measured[0], epoch
        elif epoch - best_epoch >= patience:
            return best, replace(history, stopped_early=True)
    return best, history


def evaluate(
    model: Network,
    x: Array,
    y: Array,
    *,
    batch_size: int | None = None,
    loss: Loss = softmax_cross_entropy,
) -> tuple[float, float]:
    """The mean loss and the fraction of correct answers.

    Parameters
    ----------
    model : Network
        Its weights may be representations.
    x : (N, ...) ndarray, N at least 1
    y : (N,) ndarray of integers
    batch_size : int, optional
        As for `apply`.
    loss : callable
        As for `fit`.

    Returns
    -------
    loss : float
    accuracy : float
        The answer is the class of the largest output; of equal ones, the first.

    Raises
    ------
    CompressionError
        Shapes do not fit, or there are no examples. Inputs, outputs or the loss are NaN or
        infinite; the message names the first such input.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(np.array([[0.0, 0.0]])),))
    >>> loss, right = evaluate(model, np.array([[1.0], [2.0]]), np.array([0, 1]))
    >>> round(loss, 4), right
    (0.6931, 0.5)
    """
    x, y = _data(x, y, "x", "y")
    outputs = _answers(model, x, batch_size)
    found, right = scored(outputs, y, loss)
    if math.isinf(found):
        raise CompressionError("the loss on x and y is not finite")
    return found, right


def scored(outputs: Any, y: Array, loss: Loss) -> tuple[float, float]:
    """Loss and accuracy of outputs that may be NaN or infinite.

    Then the loss is infinite, which is worse than every number, and an input whose outputs are not
    all finite counts as a wrong answer.
    """
    right = _hits(outputs, y) / len(y)
    if not all(np.isfinite(y).all() for y in as_tuple(outputs)):
        return math.inf, right
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(loss(outputs, y)[0])
    return found if math.isfinite(found) else math.inf, right


def accuracy(model: Network, x: Array, y: Array) -> float:
    """The fraction of correct answers.

    Parameters
    ----------
    model : Network
        The answer is the class of the largest output.
    x : (N, ...) ndarray
    y : (N,) ndarray of integers
        N is at least 1.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    CompressionError
        As `evaluate`.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> model = Sequential((Dense(np.array([[-1.0, 1.0]])),))
    >>> accuracy(model, np.array([[-1.0], [2.0]]), np.array([0, 1]))
    1.0
    """
    x, y = _data(x, y, "x", "y")
    return _hits(_answers(model, x), y) / len(x)


def _data(x: Array, y: Array, x_name: str, y_name: str) -> tuple[Array, Array]:
    x, y = finite_array(x, x_name), integer_array(y, y_name)
    if x.ndim < 1 or y.shape != x.shape[:1]:
        raise CompressionError(
            f"{y_name} must hold one label for each row of {x_name}, not be of shape {y.shape} "
            f"for {x.shape}"
        )
    if len(x) == 0:
        raise CompressionError(f"{x_name} must hold at least one example")
    return x, y


def _answers(model: Network, x: Array, batch_size: int | None = None) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):  # finite_outputs finds them
        return finite_outputs(apply(model, x, batch_size=batch_size))


def _seen(view: LatentView | None, latent: Network, step: int) -> View:
    """The latent model through the view; its gradients come back unchanged unless the view says."""
    with np.errstate(over="ignore", invalid="ignore"):  # finite_model finds them
        seen = latent if view is None else view(latent, step)
    return seen if isinstance(seen, View) else View(seen, lambda gradients: gradients)


def _hits(outputs: Any, labels: Array) -> int:
    outputs = as_tuple(outputs)[0]
    if outputs.ndim != 2 or outputs.shape[1] == 0:
        raise CompressionError(
            f"the network's output for an input must be numbers for classes, not an array of shape "
            f"{outputs.shape[1:]}"
        )
    right = (outputs.argmax(-1) == labels) & np.isfinite(outputs).all(-1)  # NaN is no class
    return int(np.count_nonzero(right))
