"""Units that died in training for the fewest bytes, removed from network and optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from minicompress.arrays import Array
from minicompress.nn.layer import Layer
from minicompress.nn.network import Network
from minicompress.nn.parameters import finite_model, parameters, with_parameters
from minicompress.nn.stateless import (
    POINTWISE_TYPES,
    Add,
    AvgPool2D,
    ChannelShuffle,
    Concat,
    Flatten,
    GlobalAvgPool2D,
    MaxPool2D,
    Multiply,
    Upsample2D,
)
from minicompress.nn.training import TrainingState
from minicompress.recipes.latent import Latent, latent_parts, with_steps
from minicompress.representation import Rep
from minicompress.rewrite.batch_norm import reads_no_zeros
from minicompress.rewrite.channel_names import (
    Channels,
    channel_names,
    makes_channels,
    with_one_left,
    without_channels,
)
from minicompress.rewrite.channels import tied_layers

NO_PADDING = "valid", ((0, 0), (0, 0))

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
        is constant; its constant is added to the biases of the layers that read it.

    Raises
    ------
    CompressionError
        The model does not come from `latent_model`, or is not finite.

    Notes
    -----
    A unit is a channel by its name: units that are added or multiplied go together, or stay. What
    is tied to an input or an output of the network stays, and every layer keeps at least one unit.
    Outputs change only by the rounding of biases: not at all if the constants are whole steps of
    the biases.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
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
    named = partial(channel_names, tie_shuffles=True)
    for layers, _ in tied_layers(latent.network, named(latent.network)):
        channels = named(latent.network)
        gone = _dead(latent, channels, layers)
        if gone.size:
            network = without_channels(_passed_on(latent, channels, gone), channels, gone)
            latent = latent_parts(with_steps(network, last))
            shadows = {k: without_channels(s, channels, gone) for k, s in shadows.items()}
    kept = {k: (*parameters(s), moments[k][-1]) for k, s in shadows.items()}
    smaller = with_steps(latent.network, last)
    return TrainingState(smaller, optimizer._replace(**kept), state.step)


def _dead(latent: Latent, channels: Channels, layers: list[int]) -> Array:
    """The names that some tied layers make, and that no layer needs; of each layer one is left.

    A layer needs a channel if its weights for it are not zero, and the channel is neither zero nor
    a constant that the layer's bias can take over.
    """
    made = np.unique(np.concatenate([channels.names[i + 1] for i in layers]))
    needed = set(channels.fixed)
    constants = _constants(latent, channels)
    for k, names in _reading(latent, channels):
        constant, far = (
            constants[latent.network.inputs[k][0]],
            DEAD * latent.steps[k]["weight"].first,
        )
        live = (np.abs(latent.arrays[k]["weight"]) >= far).any(-1).reshape(-1, len(names)).any(0)
        if _spreads_evenly(latent, k):
            live &= np.isnan(constant)
        needed |= {*names[live & (constant != 0)].tolist()}  # NaN is not 0
    dead = made[~np.isin(made, list(needed))]
    return with_one_left(channels, dead, np.zeros(1 + made.max(initial=0)))


def _reading(latent: Latent, channels: Channels) -> Iterator[tuple[int, Array]]:
    """The layers that sum over their inputs, and the names of these, where they are known."""
    for k, layer in enumerate(latent.network.layers):
        names = channels.names[latent.network.inputs[k][0]]
        if makes_channels(layer) and not isinstance(names, str):
            yield k, names


def _constants(latent: Latent, channels: Channels) -> list[Array]:
    """For every value the constant that each channel is, or NaN."""
    network, arrays, steps = latent
    dtype = next(array["weight"].dtype for array in arrays if array)
    found: list[Array] = []
    for value, names in enumerate(channels.names):
        found.append(np.full(1 if isinstance(names, str) else len(names), np.nan, dtype))
        if value == 0 or isinstance(names, str):
            continue
        i = value - 1
        layer, read = network.layers[i], [found[v] for v in network.inputs[i]]
        if "weight" in arrays[i]:
            weight = np.abs(arrays[i]["weight"]).reshape(-1, len(names))
            dead = (weight < DEAD * steps[i]["weight"].first).all(0)
            found[value][dead] = 0.0
            if "bias" in arrays[i]:
                found[value][dead] = steps[i]["bias"].rounded(arrays[i]["bias"])[dead]
        elif all(type(channels.names[v]) is not str for v in network.inputs[i]):
            found[value] = _constant_outputs(layer, read, len(names))
    return found


def _constant_outputs(layer: Layer, read: list[Array], count: int) -> Array:
    """What a layer without weights makes of channels that are constants."""
    x = read[0]
    match layer:
        case Concat():
            return np.concatenate(read)
        case Flatten():
            return np.tile(x, count // len(x))
        case ChannelShuffle():
            return np.asarray(layer.forward(x[None, None, None])[0, 0, 0])
        case AvgPool2D(count_include_pad=True) if layer.padding not in NO_PADDING:
            return np.where(x == 0, x, np.nan).astype(x.dtype)  # zeros come in at the border
        case MaxPool2D() | AvgPool2D() | GlobalAvgPool2D() | Upsample2D():
            return x
        case Add() | Multiply() if all(len(v) == len(x) for v in read):
            pass
        case _ if type(layer) not in POINTWISE_TYPES:
            return np.full(count, np.nan, x.dtype)
    known = ~np.isnan(read).any(0)
    y = layer.forward(*(np.where(known, v, 0).astype(x.dtype)[None] for v in read))[0]
    return np.where(known, y, np.nan).astype(x.dtype)


def _spreads_evenly(latent: Latent, k: int) -> bool:
    """Whether a constant that layer k reads adds a constant to its outputs, and it has a bias.

    Padding with zeros prevents that.
    """
    return "bias" in latent.arrays[k] and reads_no_zeros(latent.network.layers[k])


def _passed_on(latent: Latent, channels: Channels, gone: Array) -> Network:
    """The network with the constants of channels that go added to the biases behind them."""
    changed: list[dict[str, Rep]] = [{} for _ in latent.arrays]
    constants = _constants(latent, channels)
    for k, names in _reading(latent, channels):
        arrays, step = latent.arrays[k], latent.steps[k]["weight"]
        weight = arrays["weight"]
        sums = (step.codes(weight) * step.now).reshape(-1, *weight.shape[-2:]).sum(0)
        constant = np.nan_to_num(constants[latent.network.inputs[k][0]])
        passed = np.where(np.isin(names, gone), constant, 0) @ sums
        if passed.any():  # zero where nothing comes out; then there may be no bias
            changed[k] = {"bias": (arrays["bias"] + passed).astype(arrays["bias"].dtype)}
    return with_parameters(latent.network, tuple(changed))
