"""Channels removed from a network: parameters and multiplications fall, unlike with a mask."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, as_float, as_int
from minicompress.errors import CompressionError
from minicompress.nn.layer import Shape
from minicompress.nn.network import Network
from minicompress.nn.parameters import finite_model
from minicompress.representation import decode
from minicompress.rewrite.channel_names import (
    Channels,
    channel_names,
    is_depthwise,
    layer_name,
    makes_channels,
    with_one_left,
    without_channels,
)


def remove_channels(
    network: Network, index: int, keep: ArrayLike, input_shape: Shape | None = None
) -> Network:
    """Remove output channels of a layer, all channels that are tied to them, and their weights.

    Parameters
    ----------
    network : Network
        Weights that have to be cut are decoded.
    index : int
        Of the layer.
    keep : (channels,) ndarray of bool, or (n,) ndarray of increasing indices
        The channels that stay, at least one.
    input_shape : tuple of int, optional
        Of one input. It is needed if a `Flatten` has no `Dense`, `BatchNorm` or `PReLU` behind it
        that tells how many pixels it joins.

    Returns
    -------
    Network
        Without the weights and biases of these channels, without their entries in normalizations,
        slopes and depthwise convolutions, and without the rows that read them, also behind a
        `Flatten`. The outputs are those of the network whose readers have zero weights for these
        channels. So removing a channel that is zero everywhere changes no output.

    Raises
    ------
    CompressionError
        No channel of a layer would stay, or a channel cannot be removed: it is tied to the input or
        to an output, or read by a grouped convolution, a `Softmax`, a `LocalResponseNorm` or an
        unknown layer. The message names the layer.

    Notes
    -----
    Every value has a name for each channel. A convolution with groups=1 and a dense layer make
    fresh names; `Add` and `Multiply` declare names equal; `Concat` puts them side by side;
    `Flatten` repeats them; `ChannelShuffle` permutes them; the other layers pass them on. What is
    removed is a set of names, and every layer keeps what still has one.

    Examples
    --------
    >>> from minicompress.nn.composition import Residual, Sequential
    >>> from minicompress.nn.layers import Conv2D, Dense
    >>> from minicompress.nn.stateless import Flatten
    >>> inner = Conv2D(np.ones((3, 3, 4, 4)), padding="same")
    >>> network = Sequential((Conv2D(np.ones((3, 3, 1, 4))), Residual(inner), Flatten(),
    ...                       Dense(np.ones((36 * 4, 10)))))
    >>> removed = remove_channels(network, 0, [1, 3])
    >>> [removed.layers[i].weight.shape for i in (0, 1, 4)]
    [(3, 3, 1, 2), (3, 3, 2, 2), (72, 10)]
    """
    finite_model(network)
    as_int(index, "index", 0, len(network.layers) - 1)
    channels = channel_names(network, input_shape)
    names, where = channels.names[index + 1], layer_name(network, index)
    if isinstance(names, str):
        raise CompressionError(f"no channel of {where} can be removed: {names}")
    left = np.isin(np.arange(len(names)), _kept(keep, len(names)))
    for c in np.flatnonzero(~left):
        if int(names[c]) in channels.fixed:
            why = channels.fixed[int(names[c])]
            raise CompressionError(f"channel {c} of {where} cannot be removed: {why}")
        if (same := np.flatnonzero(left & (names == names[c]))).size:
            raise CompressionError(
                f"channel {c} of {where} is tied to its channel {same[0]}: keep or remove both"
            )
    return without_channels(network, channels, names[~left])


def remove_least_channels(
    network: Network, amount: float | Mapping[int, float], input_shape: Shape | None = None
) -> Network:
    """Remove the channels of least norm; those that are tied count as one.

    Parameters
    ----------
    network : Network
        Weights that have to be cut are decoded. Fold batch normalizations first: a filter's norm
        says little if a normalization behind it scales it.
    amount : float in [0, 1], or {layer index: float}
        The fraction of its channels that each layer loses, or some layers lose. Layers whose
        channels are tied lose the same ones.
    input_shape : tuple of int, optional
        As for `remove_channels`.

    Returns
    -------
    Network
        Of n channels, ``round(amount * n)`` are removed, halves to even. Every layer keeps at least
        one, and what cannot be removed stays (see `remove_channels`).

    Raises
    ------
    CompressionError
        `amount` is out of range, names a layer that makes no channels or whose channels cannot be
        removed, or is different for layers that are tied.

    Notes
    -----
    The norm of a channel is the root of the sum of squares of the weights that make it, over all
    layers that are tied by `Add` or `Multiply`, and of its depthwise kernels. The channels of one
    place in each group of a `ChannelShuffle` are tied, too. Of equal ones the channel that is made
    first goes first. H. Li et al., *Pruning filters for efficient ConvNets*
    (2017).

    Examples
    --------
    >>> from minicompress.nn.composition import Residual, Sequential
    >>> from minicompress.nn.layers import Dense
    >>> network = Sequential((Dense(np.array([[1.0, 2.0, 3.0]])), Residual(Dense(9 * np.eye(3)))))
    >>> network = Sequential((network, Dense(np.ones((3, 2)))))
    >>> remove_least_channels(network, 1 / 3).layers[0].weight
    array([[2., 3.]])
    """
    finite_model(network)
    channels = channel_names(network, input_shape, tie_shuffles=True)
    norms = channel_norms(network, channels)
    groups = tied_layers(network, channels)
    amounts = _amounts(network, channels, groups, amount)
    gone = np.zeros(0, int)
    for (_, names), share in zip(groups, amounts, strict=True):
        free = np.array([name for name in names if name not in channels.fixed], int)
        order = np.argsort(norms[free], kind="stable")
        gone = np.append(gone, free[order[: round(share * len(names))]])
    return without_channels(network, channels, with_one_left(channels, gone, norms))


def channel_norms(network: Network, channels: Channels) -> Array:
    """For every name the norm of the weights that make the channel, in float64."""
    norms = np.zeros(1 + max((n.max(initial=-1) for n in _known(channels)), default=-1))
    for layer, names in zip(network.layers, channels.names[1:], strict=True):
        if makes_channels(layer) or is_depthwise(layer):
            weight = decode(layer.parameters()["weight"]).astype(np.float64)
            columns = np.hypot.reduce(weight.reshape(-1, weight.shape[-1]), 0)  # no overflow
            for name, norm in zip(names, columns, strict=True):
                norms[name] = np.hypot(norms[name], norm)
    return norms


def tied_layers(network: Network, channels: Channels) -> list[tuple[list[int], list[int]]]:
    """The layers that make channels, those that share a name together; and their names.

    Examples
    --------
    >>> from minicompress.nn.composition import Residual, Sequential
    >>> from minicompress.nn.layers import Dense
    >>> one = Dense(np.eye(2))
    >>> network = Sequential((one, Residual(one, one), one))
    >>> tied_layers(network, channel_names(network))
    [([0, 2], [2, 3]), ([1], [4, 5]), ([4], [8, 9])]
    """
    groups: list[tuple[list[int], list[int]]] = []
    for i, (layer, found) in enumerate(zip(network.layers, channels.names[1:], strict=True)):
        if makes_channels(layer) and not isinstance(found, str):
            names = set(found.tolist())
            tied = [group for group in groups if names & {*group[1]}]
            groups = [group for group in groups if group not in tied]
            layers = [i, *(k for group in tied for k in group[0])]
            groups.append((sorted(layers), sorted(names.union(*(group[1] for group in tied)))))
    return sorted(groups)


def _amounts(
    network: Network,
    channels: Channels,
    groups: list[tuple[list[int], list[int]]],
    amount: float | Mapping[int, float],
) -> list[float]:
    """The fraction for each group of tied layers."""
    if not isinstance(amount, Mapping):
        return [as_float(amount, "amount", 0.0, 1.0)] * len(groups)
    found = []
    given = {as_int(i, "a layer of amount", 0, len(network.layers) - 1): amount[i] for i in amount}
    for layers, names in groups:
        shares = {i: as_float(given.pop(i), f"amount[{i}]", 0.0, 1.0) for i in layers if i in given}
        if len({*shares.values()}) > 1:
            raise CompressionError(f"layers {list(shares)} are tied: amount must not be {shares}")
        found.append(max(shares.values(), default=0.0))
        why = [channels.fixed[name] for name in names if name in channels.fixed]
        if found[-1] and len(why) == len(names):
            where = layer_name(network, min(shares))
            raise CompressionError(f"no channel of {where} can be removed: {why[0]}")
    for i in given:
        raise CompressionError(
            f"{layer_name(network, i)} makes no channels: leave it out of amount"
        )
    return found


def _known(channels: Channels) -> list[Array]:
    return [names for names in channels.names if not isinstance(names, str)]


def _kept(keep: ArrayLike, channels: int) -> Array:
    """The channels to keep as increasing indices."""
    array = np.asarray(keep)
    if array.dtype == bool and array.shape == (channels,):
        array = np.flatnonzero(array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise CompressionError(
            f"keep must be {channels} bools or a list of channels, not {array.dtype} of shape "
            f"{array.shape}"
        )
    if array.size == 0:
        raise CompressionError("keep must leave at least one channel")
    if (np.diff(array) <= 0).any() or array[0] < 0 or array[-1] >= channels:
        raise CompressionError(
            f"keep must hold increasing channels from 0 to {channels - 1}, not {array.tolist()}"
        )
    return array
