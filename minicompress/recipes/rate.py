"""Training for the fewest bytes: the loss includes the estimated bits of the coded weights.

An entropy coder spends few bits on what it expects. So the size of a file can be trained like the
error: every weight is a whole number of steps, seen through rounding; the length of a step is
trained too; and an estimate of the bits is added to the loss. A weight of zero costs almost
nothing, and most weights become zero. There is no mask and no schedule of sparsity.

After D. Oktay, J. Ballé, S. Singh and A. Shrivastava, *Scalable model compression by entropy
penalized reparameterization* (2020). The estimate here also depends on the neighbours: a weight
costs more in a row or a column where nearly all others are zero, since the coder skips rows and
columns of zeros. So inputs and units become zero as a whole.

All of it is a view for `fit`:

    latent = latent_model(model)
    seen, history = fit(latent, x, y, view=rate_view(price), ...)
    small = quantized_model(history.state.latent)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from minicompress.arrays import Array
from minicompress.nn.network import Gradients, Network
from minicompress.nn.parameters import parameters, with_parameters
from minicompress.nn.training import LatentView, View
from minicompress.recipes.latent import latent_parts
from minicompress.representation import Rep, decode, dtype_of

# The bits of a weight of u steps rise like log(1 + |u| / KNEE) up to FLAT steps. From one step on
# every doubling adds GROWTH bits, for a longer number.
KNEE, FLAT, GROWTH = 0.3, 1.5, 1.2
# A row or column starts with the density of the whole, counted as this many entries.
PRIOR = 4.0
# The bits of sign and magnitude, beside those that say that the weight is not zero.
MAGNITUDE_BITS = 2.0


def rate_view(price: Callable[[int], float]) -> LatentView:
    """The view for `fit` that rounds weights to whole steps and adds a price for their bits.

    Parameters
    ----------
    price : callable, step -> float
        The loss that one bit is worth, by the number of updates made so far. Let it rise slowly
        from almost nothing: a unit that becomes zero early does not come back.

    Returns
    -------
    view : callable
        ``view(latent, step)`` of a model from `latent_model` gives the network with rounded weights
        and biases. Gradients pass through the rounding as if it were the identity, and the
        gradient of the price is added. Use no weight decay: it would change the steps.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.recipes.latent import latent_model
    >>> latent = latent_model(Sequential((Dense(np.array([[1.0, -1.0, 0.5]])),)))
    >>> seen = rate_view(lambda step: 0.0)(latent, 0)
    >>> seen.model.layers[0].weight.round(3)
    array([[ 1.02, -1.02,  0.  ]])
    """

    def view(latent: Network, step: int) -> View:
        network, arrays, steps = latent_parts(latent)
        seen: list[dict[str, Rep]] = [
            {name: lengths[name].rounded(array) for name, array in layer.items()}
            for layer, lengths in zip(arrays, steps, strict=True)
        ]

        def pullback(gradients: Gradients) -> Gradients:
            charge, found, growth = price(step), [], []
            for i, given in enumerate(gradients):
                slopes = {}
                for name, gradient in given.items():
                    first, now = steps[i][name]
                    bits = weight_slopes if name == "weight" else bias_slopes
                    slopes[name] = bits(arrays[i][name] / first) * (charge / first)
                    slopes[name] += gradient * (now / first)
                    if name == "weight":  # the derivative by the logarithm of the length
                        growth.append(float(np.vdot(gradient, decode(seen[i][name]))))
                found.append(slopes)
            dtype = dtype_of(parameters(latent)[-1]["weight"])
            return (*found, {"weight": np.array([[0.0] * len(growth), growth], dtype)})

        return View(with_parameters(network, tuple(seen)), pullback)

    return view


def weight_slopes(units: Array) -> Array:
    """The derivative of the estimated bits of weights by the weights, in steps.

    Parameters
    ----------
    units : (..., outputs) ndarray of floats
        Weights in steps. As a matrix, the last axis is the columns.

    Returns
    -------
    ndarray like `units`
        The derivative of ``c log(1 + min(|u|, 1.5) / 0.3) / log(1 + 1 / 0.3) + 1.2 log2 max(|u|,
        1)``. The price c of a weight that is not zero is ``log2((1 - p) / p) + 2``. Here p is the
        estimated probability that it is not zero: the density of its row times that of its column,
        divided by that of the whole, and at most 1/2.

    Examples
    --------
    >>> units = np.zeros((100, 50))
    >>> units[:10] = 1.0
    >>> slopes = weight_slopes(units + 0.2)
    >>> bool(slopes[0, 0] < slopes[99, 0])  # a weight alone costs more
    True
    """
    there = (np.abs(units) > 0.5).reshape(-1, units.shape[-1])
    rows, columns = there.sum(1), there.sum(0)
    density = (rows.sum() + 1) / (there.size + 2)
    row = (rows + PRIOR * density) / (there.shape[1] + PRIOR)
    column = (columns + PRIOR * density) / (there.shape[0] + PRIOR) / density
    chance = np.outer(row.astype(units.dtype), column.astype(units.dtype))
    np.minimum(chance, 0.5, out=chance)
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
