"""Training for the fewest bytes: weights in whole steps, and a price for the bits they will take.

An entropy coder pays for surprise, so the size of a file can be trained like its error. Every
weight is a whole number of steps, seen through rounding; the length of a step is learned; and what
the number is going to cost is estimated and added to the loss (Oktay et al., *Scalable model
compression by entropy penalized reparameterization*, 2020). Zero costs next to nothing, and most
weights end there. Nobody says how many: there is no mask and no schedule of sparsity.

The estimate depends on the neighbours. A weight costs more in a row or a column where nearly all
others are zero, for the coder names those that are dead once, and skips them. So inputs and units
die as a whole.

All of it is a view for `fit`:

    latent = latent_model(model)
    seen, history = fit(latent, x, y, view=rate_view(price), ...)
    small = quantized_model(history.state.latent)

The latent model is never run itself. It is the network, with its weights as they are before they
are rounded, and behind it a Dense layer that holds for each of its layers the length of a step at
the start (first row), and the logarithm of the factor by which it has grown since (second row).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array, as_float, freeze
from minicompress.errors import CompressionError
from minicompress.integers import code_dtype, scale_dtypes
from minicompress.nn.layers import Dense
from minicompress.nn.network import (
    Gradients,
    Parameters,
    Sequential,
    finite_model,
    parameters,
    with_parameters,
)
from minicompress.nn.stateless import LeakyReLU, ReLU, Sigmoid, Tanh
from minicompress.nn.training import LatentView, TrainingState, View
from minicompress.representation import Quantized, decode, dtype_of, shape_of
from minicompress.rewrite.structure import remove_channels
from minicompress.search.weights import weights

# Biases are few: their step is fixed, and each is priced alone.
BIAS_STEP = 1 / 16
# The price of a weight of u steps rises like log(1 + |u| / KNEE) up to FLAT steps; from one step on
# there is that of a longer number, too: GROWTH bits for every doubling.
KNEE, FLAT, GROWTH = 0.3, 1.5, 1.2
# Rows and columns count as dense as the whole until they have shown this many entries.
PRIOR = 4.0
# What sign and magnitude take beside the news that a weight is there at all.
MAGNITUDE_BITS = 2.0
# A weight this far from zero, in steps, keeps its row and column alive: it may come back.
DEAD = 0.3


def latent_model(model: Sequential, *, deviations: float = 1.2) -> Sequential:
    """The latent model that starts at a network: what `fit` trains through `rate_view`.

    Parameters
    ----------
    model : Sequential
        Of plain arrays, with biases or without.
    deviations : float, positive
        The length of a first step, in standard deviations of its layer's weights. Steps grow more
        easily than they shrink: with finer ones it takes longer for weights to die.

    Returns
    -------
    Sequential
        The layers of `model`, and the one with the steps.

    Raises
    ------
    CompressionError
        The model has no weights, or all of a layer's are equal: a step has to have a length.

    Examples
    --------
    >>> model = Sequential((Dense(np.array([[1.0, -1.0]])),))
    >>> [layer.weight.tolist() for layer in latent_model(model).layers]
    [[[1.0, -1.0]], [[1.2], [0.0]]]
    """
    finite_model(model)
    deviations = as_float(deviations, "deviations", 0.0)
    arrays = [decode(w) for w in weights(model).values()]
    steps = [deviations * float(np.std(a, dtype=np.float64)) if a.size else 0.0 for a in arrays]
    if not arrays or min(steps) == 0.0:
        raise CompressionError(f"every layer needs weights that differ, for steps not of {steps}")
    rows = np.array([steps, [0.0] * len(steps)], scale_dtypes(arrays[0].dtype)[0])
    return Sequential((*model.layers, Dense(freeze(rows))))


def rate_view(price: Callable[[int], float]) -> LatentView:
    """The view for `fit` that rounds weights to whole steps, and charges for their bits.

    Parameters
    ----------
    price : callable, step -> float
        How much loss a bit is worth, by the number of updates made so far. Let it rise from next to
        nothing: what dies early does not come back.

    Returns
    -------
    view : callable
        Of a latent model as of `latent_model`: the network with its weights and biases rounded.
        The gradients go straight through the rounding, and those of the price join them on the way
        back. Weight decay would shrink the steps themselves: use none.

    Examples
    --------
    >>> latent = latent_model(Sequential((Dense(np.array([[1.0, -1.0, 0.5]])),)))
    >>> seen = rate_view(lambda step: 0.0)(latent, 0)
    >>> seen.model.layers[0].weight.round(3)
    array([[ 1.02, -1.02,  0.  ]])
    """

    def view(latent: Sequential, step: int) -> View:
        network, units = _parts(latent)
        values = [
            {name: _seen(array, unit[name]) for name, array in layer.items()}
            for layer, unit in zip(_arrays(network), units, strict=True)
        ]

        def pullback(gradients: Gradients) -> Gradients:
            charge, found, growth = price(step), list[dict[str, Array]](), []
            for latents, seen, unit, given in zip(_arrays(network), values, units, gradients):
                found.append({})
                for name, gradient in given.items():
                    first, now = unit[name]
                    slopes = weight_slopes if name == "weight" else bias_slopes
                    slope = slopes(latents[name] / first)
                    slope *= charge / first
                    slope += gradient * (now / first)
                    found[-1][name] = slope
                    if name == "weight":
                        growth.append(float(np.vdot(gradient, seen[name])))
            last = decode(latent.layers[-1].weight)  # type: ignore[attr-defined]
            return (*found, {"weight": np.array([[0.0] * len(growth), growth], last.dtype)})

        return View(_with_arrays(network, values), pullback)

    return view


def weight_slopes(units: Array) -> Array:
    """How the estimated bits of weights grow with their distance from zero.

    Parameters
    ----------
    units : (..., outputs) ndarray of floats
        Weights in steps; as a matrix, the last axis is the columns.

    Returns
    -------
    ndarray like `units`
        The derivative of ``c log(1 + min(|u|, 1.5) / 0.3) / log(1 + 1 / 0.3) + 1.2 log2 max(|u|,
        1)``. The price c of being there at all is ``log2((1 - p) / p) + 2``, where p is the density
        of the row times that of the column, divided by that of the whole, and at most 1/2: the
        chance of a weight there for who knows nothing else.

    Examples
    --------
    >>> units = np.zeros((100, 50))
    >>> units[:10] = 1.0
    >>> slopes = weight_slopes(units + 0.2)
    >>> bool(slopes[0, 0] < slopes[99, 0])  # it is the lone one that pays
    True
    """
    there = (np.abs(units) > 0.5).reshape(-1, units.shape[-1])
    rows, columns = there.sum(1), there.sum(0)
    density = (rows.sum() + 1) / (there.size + 2)
    row = (rows + PRIOR * density) / (there.shape[1] + PRIOR)
    column = (columns + PRIOR * density) / (there.shape[0] + PRIOR) / density
    chance = np.outer(row.astype(units.dtype), column.astype(units.dtype))
    np.minimum(chance, 0.5, out=chance)  # so being there costs its MAGNITUDE_BITS at least
    price = np.log2(1 / chance - 1).reshape(units.shape)
    price += MAGNITUDE_BITS

    size = np.abs(units)
    slope = price / ((size + KNEE) * math.log1p(1 / KNEE))
    slope[size >= FLAT] = 0.0
    far = size > 1
    slope[far] += GROWTH / math.log(2) / size[far]
    return np.asarray(slope * np.sign(units))


def bias_slopes(units: Array) -> Array:
    """The same for biases, of ``2 log2(1 + |u|)`` bits."""
    return np.asarray(np.sign(units) * (2 / math.log(2)) / (1 + np.abs(units)))


def without_dead_units(state: TrainingState) -> TrainingState:
    """The training without the units that nothing goes into, or that nothing comes out of.

    Parameters
    ----------
    state : TrainingState
        Of a latent model as of `latent_model`, trained by `adam` or `sgd`.

    Returns
    -------
    TrainingState
        Of a smaller network, and of the optimizer's moments of what is left. A unit with nothing
        but a bias is constant: the biases of the next layer take its part over.

    Notes
    -----
    The last layer keeps its units, which are the answers, the first its inputs, and every other one
    unit at least. Outputs change by no more than what biases are rounded by: not at all where the
    constants come out as whole steps of the biases.

    Examples
    --------
    >>> from minicompress.nn.optimizers import adam
    >>> weights = np.array([[1.0, 0.0, -1.0]]), np.array([[1.0], [-1.0], [1.0]])
    >>> latent = latent_model(Sequential((Dense(weights[0]), ReLU(), Dense(weights[1]))))
    >>> left = without_dead_units(TrainingState(latent, adam().init(latent), 0)).latent
    >>> [layer.weight.shape for layer in left.layers[:3:2]]
    [(1, 2), (2, 1)]
    """
    finite_model(state.latent)
    network, units = _parts(state.latent)
    last, optimizer = state.latent.layers[-1], state.optimizer
    moments = {k: m for k, m in optimizer._asdict().items() if isinstance(m, tuple) and m}
    shadows = {k: with_parameters(network, m[:-1]) for k, m in moments.items()}
    for i, following in pairwise(weights(network)):
        keep = _living(network, units, i, following)
        if not keep.all():
            network = _passed_on(network, units, i, following, ~keep)
            network = remove_channels(network, i, keep)
            shadows = {k: remove_channels(s, i, keep) for k, s in shadows.items()}
    kept = {k: (*parameters(s), moments[k][-1]) for k, s in shadows.items()}
    latent = Sequential((*network.layers, last))
    return TrainingState(latent, optimizer._replace(**kept), state.step)


def quantized_model(latent: Sequential) -> Sequential:
    """What a latent model has come to, as it is stored.

    Parameters
    ----------
    latent : Sequential
        As of `latent_model`.

    Returns
    -------
    Sequential
        Of `Quantized` weights and biases, a scale for each. Scales are rounded to 8 bits of
        precision, to take two bytes: outputs differ by that from those of the last view.

    Examples
    --------
    >>> latent = latent_model(Sequential((Dense(np.array([[1.0, -1.0, 0.5]])),)))
    >>> weight = quantized_model(latent).layers[0].weight
    >>> weight.codes, weight.scale
    (array([[ 1, -1,  0]], dtype=int8), array(1.0234375))
    """
    finite_model(latent)
    network, units = _parts(latent)
    found: Parameters = tuple(
        {name: _quantized(array, unit[name]) for name, array in layer.items()}
        for layer, unit in zip(_arrays(network), units, strict=True)
    )
    return with_parameters(network, found)


def is_latent(model: Sequential) -> bool:
    """Whether a model is one of `latent_model`: its last layer holds a step for each of the others.

    Examples
    --------
    >>> model = Sequential((Dense(np.array([[1.0, -1.0]])),))
    >>> is_latent(model), is_latent(latent_model(model))
    (False, True)
    """
    layers, last = weights(Sequential(model.layers[:-1])), model.layers[-1:]
    if not (layers and isinstance(last[0], Dense) and last[0].bias is None):
        return False
    fits = shape_of(last[0].weight) == (2, len(layers))
    return fits and bool((decode(last[0].weight)[0] > 0).all())  # a step has a length


class _Unit(NamedTuple):
    """The length of a step, at the start and now."""

    first: float
    now: float


def _parts(latent: Sequential) -> tuple[Sequential, list[dict[str, _Unit]]]:
    """The network in a latent model, and for all its arrays the length of a step."""
    if not is_latent(latent):
        raise CompressionError("latent must be a model of latent_model: its last layer holds steps")
    network = Sequential(latent.layers[:-1])
    layers, steps = weights(network), decode(parameters(latent)[-1]["weight"])
    units = [{"bias": _Unit(BIAS_STEP, BIAS_STEP)} for _ in network.layers]
    for i, first, growth in zip(layers, *steps.astype(np.float64).tolist(), strict=True):
        units[i]["weight"] = _Unit(first, first * math.exp(min(growth, 700.0)))
    for i, layer in enumerate(network.layers):
        if not layer.parameters().keys() <= units[i].keys():
            raise CompressionError(f"layer {i} must be a Dense or Conv2D to have steps: {layer!r}")
    return network, units


def _arrays(network: Sequential) -> list[dict[str, Array]]:
    return [{name: decode(rep) for name, rep in layer.items()} for layer in parameters(network)]


def _with_arrays(network: Sequential, values: Sequence[Mapping[str, Array]]) -> Sequential:
    return with_parameters(network, tuple({**layer} for layer in values))


def _living(network: Sequential, units: list[dict[str, _Unit]], i: int, following: int) -> Array:
    """Which outputs of layer i have weights before and behind; constants that cannot go stay."""
    if any(getattr(network.layers[k], "groups", 1) != 1 for k in (i, following)):
        return np.ones(shape_of(weights(network)[i])[-1], bool)
    entering, leaving = (
        np.abs(decode(weights(network)[k])) >= DEAD * units[k]["weight"].first
        for k in (i, following)
    )
    channels = entering.shape[-1]
    used = leaving.reshape(-1, channels, leaving.shape[-1]).any((0, 2))
    moved = entering.reshape(-1, channels).any(0)
    if not _spreads_evenly(network, i, following):
        moved |= _constants(network, units, i, following) != 0
    keep: Array = np.asarray(moved & used)
    keep[0] |= not keep.any()
    return keep


def _constants(network: Sequential, units: list[dict[str, _Unit]], i: int, following: int) -> Array:
    """What the units of layer i hand on if nothing enters them: the activation of their bias."""
    value = np.zeros(shape_of(weights(network)[i])[-1], dtype_of(weights(network)[i]))
    bias = parameters(network)[i].get("bias")
    if bias is not None:
        value = _seen(decode(bias), units[i]["bias"])
    for layer in network.layers[i + 1 : following]:
        if isinstance(layer, ReLU | LeakyReLU | Sigmoid | Tanh):
            value = layer.forward(value)
    return np.asarray(value)


def _spreads_evenly(network: Sequential, i: int, following: int) -> bool:
    """Whether what layer i hands on as a constant can be added to a bias of layer `following`."""
    bordered = any(
        getattr(between, "padding", "valid") not in ("valid", ((0, 0), (0, 0)))
        for between in network.layers[i + 1 : following + 1]
    )
    return parameters(network)[following].get("bias") is not None and not bordered


def _passed_on(
    network: Sequential, units: list[dict[str, _Unit]], i: int, following: int, gone: Array
) -> Sequential:
    """The network with the constants of the units that are gone in the next layer's biases."""
    constants = _constants(network, units, i, following) * gone
    values = _arrays(network)
    weight, unit = values[following]["weight"], units[following]["weight"]
    sums = (_codes(weight, unit) * unit.now).reshape(-1, len(gone), weight.shape[-1]).sum(0)
    passed = constants @ sums  # nothing where nothing comes out: there may be no bias then
    if passed.any():
        bias = values[following]["bias"]
        values[following]["bias"] = (bias + passed).astype(bias.dtype)
    return _with_arrays(network, values)


def _codes(array: Array, unit: _Unit) -> Array:
    """Weights in whole steps, ties to even, in the dtype of steps."""
    return np.asarray(np.rint(array.astype(scale_dtypes(array.dtype)[0], copy=False) / unit.first))


def _seen(array: Array, unit: _Unit) -> Array:
    """Weights rounded to whole steps."""
    return np.asarray(_codes(array, unit) * unit.now).astype(array.dtype, copy=False)


def _quantized(array: Array, unit: _Unit) -> Quantized:
    codes = _codes(array, unit)
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    num_bits = max(2, max(-low - 1, high).bit_length() + 1)
    mantissa, exponent = math.frexp(unit.now)
    scale = math.ldexp(round(mantissa * 256), exponent - 8)
    return Quantized(
        codes.astype(code_dtype(num_bits, signed=True)),
        np.array(scale, scale_dtypes(array.dtype)[0]),
        np.array(0),
        num_bits,
        True,
        None,
        None,
        array.dtype,
    )
