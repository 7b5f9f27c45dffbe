"""The recipe for the smallest files: from a dense network to one that an entropy coder likes.

Dense training, a price for bits that rises from next to nothing, a cooldown at the price that was
reached, restarts from there, and the result in whole steps. All of it is `fit` with `rate_view`,
epoch by epoch: between two of them, units that have died are taken out, and the images are moved
anew by a pixel or not at all.

It learns from a teacher (`distillation`), whose answers to every image in every place are computed
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array, as_float, as_int, ceil_div, freeze
from minicompress.errors import CompressionError
from minicompress.nn.losses import distillation, softmax_cross_entropy
from minicompress.nn.network import Network, apply
from minicompress.nn.optimizers import Optimizer, adam, cosine_lr
from minicompress.nn.training import LatentView, Loss, TrainingState, fit
from minicompress.recipes.dead_units import without_dead_units
from minicompress.recipes.latent import is_latent, latent_model, quantized_model
from minicompress.recipes.rate import rate_view
from minicompress.recipes.recipe import Step, array_digest

# How far images are moved down and to the right: by a pixel in each direction, or not.
STILL = ((0, 0),)
BY_A_PIXEL = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))

# How much of the loss is the teacher's, and at which temperature its answers are compared.
SHARE, TEMPERATURE = 0.7, 2.0
BATCH_SIZE = 128


class Lesson(NamedTuple):
    """What is learned from.

    Parameters
    ----------
    x : (N, H, W, C) ndarray
    y : (N,) ndarray of integers
    shifts : tuple of (int, int)
        The places that an image may be moved to, down and to the right.
    answers : (shifts, N, classes) ndarray, or None
        The teacher's logits for each of them.
    """

    x: Array
    y: Array
    shifts: tuple[tuple[int, int], ...] = STILL
    answers: Array | None = None


class Prices(NamedTuple):
    """Of a bit, in loss: where the annealing starts, and where it ends."""

    first: float
    last: float


def shifted(images: Array, down: int, right: int) -> Array:
    """Images moved by some pixels; zeros come in from behind.

    Parameters
    ----------
    images : (N, H, W, C) ndarray
    down, right : int
        Negative for up and left; as far as you like.

    Returns
    -------
    ndarray like `images`

    Examples
    --------
    >>> shifted(np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1), 1, 0)[0, :, :, 0]
    array([[0., 0.],
           [1., 2.]])
    """
    moved = np.zeros_like(images)
    height, width = images.shape[1:3]
    if abs(down) < height and abs(right) < width:
        moved[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = (
            images[:, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
        )
    return moved


def lesson(
    x: Array,
    y: Array,
    *,
    shifts: Sequence[tuple[int, int]] = STILL,
    teacher: Network | None = None,
) -> Lesson:
    """Images, the places they may be moved to, and a teacher's answers to all of it.

    Examples
    --------
    >>> from minicompress.nn.architectures import digits_cnn
    >>> x, y = np.zeros((5, 8, 8, 1), np.float32), np.zeros(5, int)
    >>> lesson(x, y, shifts=BY_A_PIXEL, teacher=digits_cnn(np.random.default_rng(0))).answers.shape
    (9, 5, 10)
    """
    answers = None
    if teacher is not None:
        if len(teacher.outputs) != 1:
            raise CompressionError(f"teacher must have one output, not {len(teacher.outputs)}")
        answers = freeze(np.stack([apply(teacher, shifted(x, *shift)) for shift in shifts]))
    return Lesson(x, y, tuple(shifts), answers)


def taught(
    model: Network | TrainingState,
    learn: Lesson,
    *,
    optimizer: Optimizer,
    epochs: int,
    rng: np.random.Generator,
    view: LatentView | None = None,
    between: Callable[[TrainingState], TrainingState] | None = None,
) -> tuple[Network, TrainingState]:
    """`fit`, one epoch after the other, each on images that are moved anew.

    Parameters
    ----------
    model : Network or TrainingState
    learn : Lesson
        With answers the loss is `distillation`, otherwise the cross-entropy.
    optimizer : Optimizer
        Its schedule sees all updates, of all epochs.
    epochs : int, at least 1
    rng : numpy.random.Generator
    view : callable, optional
        As for `fit`.
    between : callable, optional
        What is done with the state after each epoch.

    Returns
    -------
    seen : Network
        What `fit` gave after the last epoch.
    state : TrainingState
    """
    loss: Loss = softmax_cross_entropy
    if learn.answers is not None:
        loss = partial(distillation, temperature=TEMPERATURE, share=SHARE)
    state: TrainingState | None = None
    for _ in range(as_int(epochs, "epochs", 1)):
        x, answers = _moved(learn, rng)
        seen, history = fit(
            state or model,
            x,
            learn.y,
            optimizer=optimizer,
            epochs=1,
            batch_size=BATCH_SIZE,
            rng=rng,
            view=view,
            loss=loss,
            targets=answers,
        )
        assert history.state is not None  # fit always says where it stands
        state = history.state if between is None else between(history.state)
    assert state is not None  # there was an epoch
    return seen, state


def smallest_file(
    learn: Lesson,
    prices: Prices,
    *,
    dense: int = 15,
    anneal: int = 40,
    cool: int = 20,
    restarts: int = 1,
    learning_rate: float = 1e-3,
) -> tuple[Step, ...]:
    """The recipe: from a fresh network to one of `Quantized` weights, most of them zero.

    Parameters
    ----------
    learn : Lesson
    prices : Prices
        The last one decides how small the file gets, and how many errors that costs.
    dense : int
        Epochs of training without a price; 0 to go on from a network that is trained, or from the
        latent one of an earlier recipe's last step but "store".
    anneal, cool : int, at least 1
        Epochs with a price that rises geometrically, at a constant learning rate; and at the last
        price, with a learning rate that falls to zero.
    restarts : int
        How often the cooldown is done again.
    learning_rate : float

    Returns
    -------
    tuple of Step
        For `run_recipe`: "dense", "anneal", "cool", "restart 1" ..., "store". From "anneal" on a
        step's model is the latent one; `quantized_model` gives what it stands for.

    Raises
    ------
    CompressionError
        The prices do not rise from above 0, or a number is out of range.

    Examples
    --------
    >>> x, y = np.zeros((2, 8, 8, 1), np.float32), np.array([0, 1])
    >>> [step.name for step in smallest_file(Lesson(x, y), Prices(1e-7, 1e-4))]
    ['dense', 'anneal', 'cool', 'restart 1', 'store']
    """
    first, last = (as_float(price, "prices", 0.0) for price in prices)
    if not 0.0 < first <= last:
        raise CompressionError(f"prices must rise from above 0, not from {first} to {last}")
    for name, epochs in (("anneal", anneal), ("cool", cool)):
        as_int(epochs, name, 1)
    updates = ceil_div(len(learn.x), BATCH_SIZE)

    def train_dense(model: Network, rng: np.random.Generator) -> Network:
        rate = cosine_lr(learning_rate, dense * updates)
        return taught(model, learn, optimizer=adam(rate), epochs=dense, rng=rng)[0]

    train = partial(taught, learn=learn, between=without_dead_units)

    def priced(
        model: Network,
        rng: np.random.Generator,
        price: Callable[[int], float],
        optimizer: Optimizer,
        epochs: int,
    ) -> Network:
        latent = model if is_latent(model) else latent_model(model)
        view = rate_view(price)
        _, state = train(latent, optimizer=optimizer, epochs=epochs, rng=rng, view=view)
        return state.latent

    def rising(step: int) -> float:
        return float(first * (last / first) ** (step / (anneal * updates)))

    steady, falling = adam(learning_rate), adam(cosine_lr(learning_rate, cool * updates))
    raise_price = partial(priced, price=rising, optimizer=steady, epochs=anneal)
    cool_down = partial(priced, price=lambda step: last, optimizer=falling, epochs=cool)
    arrays = [array for array in (learn.x, learn.y, learn.answers) if array is not None]
    settings = (
        f"{first} to {last}, dense={dense}, anneal={anneal}, cool={cool}, restarts={restarts}, "
        f"learning_rate={learning_rate}, shifts={learn.shifts}, lesson={array_digest(*arrays)}"
    )
    runs: dict[str, Callable[..., Network]] = {}
    if as_int(dense, "dense", 0):
        runs["dense"] = train_dense
    runs |= {"anneal": raise_price, "cool": cool_down}
    runs |= {f"restart {i + 1}": cool_down for i in range(as_int(restarts, "restarts", 0))}
    runs["store"] = lambda latent, rng: quantized_model(latent)
    return tuple(Step(name, run, settings) for name, run in runs.items())


def _moved(learn: Lesson, rng: np.random.Generator) -> tuple[Array, Array | None]:
    """Every image in a place of its own choice, and the teacher's answer to it there."""
    places = rng.integers(0, len(learn.shifts), len(learn.x))
    x = np.empty_like(learn.x)
    for k, shift in enumerate(learn.shifts):
        rows = np.flatnonzero(places == k)
        x[rows] = shifted(learn.x[rows], *shift)
    answers = None if learn.answers is None else learn.answers[places, np.arange(len(x))]
    return x, answers
