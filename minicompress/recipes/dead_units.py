"""Units that died in training for the fewest bytes, removed from network and optimizer."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from minicompress.arrays import Array
from minicompress.nn.composition import Sequential
from minicompress.nn.network import Network
from minicompress.nn.parameters import finite_model, parameters, with_parameters
from minicompress.nn.pointwise import LeakyReLU, ReLU, Sigmoid, Tanh
from minicompress.nn.training import TrainingState
from minicompress.recipes.latent import Latent, latent_parts
from minicompress.representation import Rep
from minicompress.rewrite.channels import remove_channels
from minicompress.search.weights import weights

# A weight this far from zero, in steps, keeps its row and column: it may round to a step again.
DEAD = 0.3


def without_dead_units(state: TrainingState) -> TrainingState:
    """Remove the units of a training without inputs or without outputs.

    Parameters
    ----------
    state : TrainingState
        Of a latent model from `latent_model`, trained by `adam` or `sgd`.

    Returns
    -------
    TrainingState
        Of a smaller network, with the optimizer's moments for what is left. A unit without inputs
        is constant; its constant is added to the biases of the next layer.

    Raises
    ------
    CompressionError
        The model does not come from `latent_model`, or is not finite.

    Notes
    -----
    The last layer keeps all of its units, the first layer its inputs, and every layer at least one
    unit. Outputs change only by the rounding of biases: not at all if the constants are whole steps
    of the biases.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.optimizers import adam
    >>> from minicompress.nn.pointwise import ReLU
    >>> from minicompress.recipes.latent import latent_model
    >>> weights = np.array([[1.0, 0.0, -1.0]]), np.array([[1.0], [-1.0], [1.0]])
    >>> latent = latent_model(Sequential((Dense(weights[0]), ReLU(), Dense(weights[1]))))
    >>> left = without_dead_units(TrainingState(latent, adam().init(latent), 0)).latent
    >>> [layer.weight.shape for layer in left.layers[:3:2]]
    [(1, 2), (2, 1)]
    """
    finite_model(state.latent)
    latent, last, optimizer = latent_parts(state.latent), state.latent.layers[-1], state.optimizer
    moments = {k: m for k, m in optimizer._asdict().items() if isinstance(m, tuple) and m}
    shadows = {k: with_parameters(latent.network, m[:-1]) for k, m in moments.items()}
    for i, following in pairwise(weights(latent.network)):
        keep = _living(latent, i, following)
        if not keep.all():
            network = remove_channels(_passed_on(latent, i, following, ~keep), i, keep)
            latent = latent_parts(Sequential((*network.layers, last)))
            shadows = {k: remove_channels(s, i, keep) for k, s in shadows.items()}
    kept = {k: (*parameters(s), moments[k][-1]) for k, s in shadows.items()}
    smaller = Sequential((*latent.network.layers, last))
    return TrainingState(smaller, optimizer._replace(**kept), state.step)


def _living(latent: Latent, i: int, following: int) -> Array:
    """Which outputs of layer i to keep: those with inputs and outputs that are not zero."""
    network, arrays, steps = latent
    if any(getattr(network.layers[k], "groups", 1) != 1 for k in (i, following)):
        return np.ones(arrays[i]["weight"].shape[-1], bool)
    entering, leaving = (
        np.abs(arrays[k]["weight"]) >= DEAD * steps[k]["weight"].first for k in (i, following)
    )
    channels = entering.shape[-1]
    used = leaving.reshape(-1, channels, leaving.shape[-1]).any((0, 2))
    moved = entering.reshape(-1, channels).any(0)
    if not _spreads_evenly(latent, i, following):
        moved |= _constants(latent, i, following) != 0
    keep: Array = np.asarray(moved & used)
    keep[0] |= not keep.any()
    return keep


def _constants(latent: Latent, i: int, following: int) -> Array:
    """The outputs of layer i, and of the activation behind it, for inputs of zero."""
    network, arrays, steps = latent
    weight = arrays[i]["weight"]
    value = np.zeros(weight.shape[-1], weight.dtype)
    if "bias" in arrays[i]:
        value = steps[i]["bias"].rounded(arrays[i]["bias"])
    for layer in network.layers[i + 1 : following]:
        if isinstance(layer, ReLU | LeakyReLU | Sigmoid | Tanh):
            value = layer.forward(value)
    return np.asarray(value)


def _spreads_evenly(latent: Latent, i: int, following: int) -> bool:
    """Whether a constant output of layer i adds a constant to the outputs of layer `following`.

    Padding with zeros prevents that, and a layer without a bias cannot take it over.
    """
    bordered = any(
        getattr(between, "padding", "valid") not in ("valid", ((0, 0), (0, 0)))
        for between in latent.network.layers[i + 1 : following + 1]
    )
    return "bias" in latent.arrays[following] and not bordered


def _passed_on(latent: Latent, i: int, following: int, gone: Array) -> Network:
    """The network with the constants of units that go added to the biases of the next layer."""
    constants = _constants(latent, i, following) * gone
    arrays, step = latent.arrays[following], latent.steps[following]["weight"]
    weight = arrays["weight"]
    sums = (step.codes(weight) * step.now).reshape(-1, len(gone), weight.shape[-1]).sum(0)
    passed = constants @ sums  # zero where nothing comes out; then there may be no bias
    if not passed.any():
        return latent.network
    bias: Rep = (arrays["bias"] + passed).astype(arrays["bias"].dtype)
    indices = range(len(latent.arrays))
    changed = tuple({"bias": bias} if k == following else {} for k in indices)
    return with_parameters(latent.network, changed)
