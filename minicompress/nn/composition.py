"""Networks written by composition: chains, branches that are joined, and shortcuts.

Each function returns a flat `Network`; a network among its parts is written out layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from minicompress.arrays import as_int
from minicompress.errors import CompressionError
from minicompress.nn.layer import Layer
from minicompress.nn.network import Network, check_network
from minicompress.nn.stateless import Add

Part: TypeAlias = "Layer | Network | Sequence[Layer | Network]"


def Sequential(parts: Sequence[Layer | Network]) -> Network:
    """A chain: every part reads the output of the part before it.

    Parameters
    ----------
    parts : sequence of Layer and Network
        The layers of a network among them become layers of the result.

    Returns
    -------
    Network

    Raises
    ------
    CompressionError
        An entry is neither a layer nor a network, or a network before the last has several outputs.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> import numpy as np
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.pointwise import ReLU
    >>> network = Sequential((Dense(np.array([[1.0, -1.0]])), ReLU()))
    >>> network(np.array([[3.0], [-4.0]]))
    array([[3., 0.],
           [0., 4.]])
    """
    return _composed((_sequence(parts, "parts"),), None)


def Parallel(branches: Sequence[Part], join: Layer | None = None) -> Network:
    """Branches that read the same value, and a layer that joins their outputs, if any.

    Parameters
    ----------
    branches : sequence
        Each is a layer, a network, or a sequence of them, which is a chain; ``()`` passes the value
        on.
    join : Layer, optional
        `Add`, `Multiply`, `Concat`, or another layer that reads several values. It reads the
        branches' outputs in order. Without it they are the outputs of the network.

    Returns
    -------
    Network

    Raises
    ------
    CompressionError
        As `Sequential`, or the layer does not join so many branches.

    Examples
    --------
    >>> import numpy as np
    >>> from minicompress.nn.stateless import Concat
    >>> from minicompress.nn.pointwise import ReLU
    >>> Parallel((ReLU(), ()), Concat())(np.array([[-1.0, 2.0]]))
    array([[ 0.,  2., -1.,  2.]])
    >>> Parallel((ReLU(), ()))(np.array([[-1.0, 2.0]]))
    (array([[0., 2.]]), array([[-1.,  2.]]))
    """
    return _composed(branches, join)


def Residual(*parts: Layer | Network) -> Network:
    """A chain whose input is added to its output (He et al., 2016).

    The chain must keep the shape. `Parallel` with `Add` has a layer on the shortcut, too.

    Examples
    --------
    >>> import numpy as np
    >>> from minicompress.nn.layers import Dense
    >>> Residual(Dense(2 * np.eye(2)))(np.array([[1.0, 2.0]]))
    array([[3., 6.]])
    """
    return Parallel(((), parts), Add())


def _sequence(value: Any, name: str) -> Any:
    if not isinstance(value, tuple | list):
        raise CompressionError(
            f"{name} must be a tuple of layers and networks, not {type(value).__name__}"
        )
    return value


def _composed(branches: Sequence[Part], join: Layer | None) -> Network:
    layers: list[Layer] = []
    inputs: list[tuple[int, ...]] = []
    ends: list[int] = []
    for branch in _sequence(branches, "branches"):
        outputs: tuple[int, ...] = (0,)
        whole = isinstance(branch, Layer | Network)
        chain = (branch,) if whole else _sequence(branch, "a branch")
        for i, part in enumerate(chain):
            if len(outputs) > 1:
                raise CompressionError(
                    f"a network with {len(outputs)} outputs can only be the last part of a chain"
                )
            if isinstance(part, Layer):
                part = Network((part,), ((0,),), (1,))
            if not isinstance(part, Network):
                raise CompressionError(f"part {i} must be a Layer or a Network, not {part!r}")
            # Value 0 of the part is the chain's last value; the others follow what is there.
            place = [outputs[0], *range(len(layers) + 1, len(layers) + len(part.layers) + 1)]
            layers += part.layers
            inputs += [tuple(place[value] for value in reads) for reads in part.inputs]
            outputs = tuple(place[value] for value in part.outputs)
        ends += outputs
    if join is not None:
        layers, inputs, ends = [*layers, join], [*inputs, tuple(ends)], [len(layers) + 1]
    return Network(tuple(layers), tuple(inputs), tuple(ends))


def split(network: Network, value: int) -> tuple[Network, Network]:
    """The layers that make a value, and those that read it.

    Raises
    ------
    CompressionError
        A layer behind the cut, or an output, reads a value before it: the value is not all that
        the rest of the network needs.

    Examples
    --------
    >>> from minicompress.nn.pointwise import ReLU, Tanh
    >>> before, after = split(Sequential((ReLU(), Tanh(), ReLU())), 2)
    >>> len(before.layers), len(after.layers)
    (2, 1)
    """
    check_network(network)
    as_int(value, "value", 0, len(network.layers))
    rest = [*enumerate(network.inputs)][value:]
    for i, reads in [*rest, (-1, network.outputs)]:
        if early := [v for v in reads if v < value]:
            reader = f"layer {i} ({type(network.layers[i]).__name__})" if i >= 0 else "the network"
            raise CompressionError(
                f"the network cannot be cut at value {value}: {reader} also "
                f"{'reads' if i >= 0 else 'returns'} value {early[0]}, which is made before it"
            )
    inputs = tuple(tuple(v - value for v in reads) for _, reads in rest)
    outputs = tuple(v - value for v in network.outputs)
    return (
        Network(network.layers[:value], network.inputs[:value], (value,)),
        Network(network.layers[value:], inputs, outputs),
    )


def replaced(network: Network, chains: Sequence[Sequence[Layer]]) -> Network:
    """The network with a chain of layers in place of each layer.

    An empty chain passes on the layer's input.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.pointwise import Dropout, ReLU
    >>> replaced(Sequential((Dropout(0.5), ReLU())), ((), (ReLU(), ReLU()))).inputs
    ((0,), (1,))
    """
    layers: list[Layer] = []
    inputs: list[tuple[int, ...]] = []
    place = [0]
    for chain, reads in zip(chains, network.inputs, strict=True):
        reads = tuple(place[value] for value in reads)
        for layer in chain:
            layers.append(layer)
            inputs.append(reads)
            reads = (len(layers),)
        place.append(reads[0])
    return Network(tuple(layers), tuple(inputs), tuple(place[v] for v in network.outputs))
