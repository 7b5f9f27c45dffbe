"""Low-rank weights as ordinary layers, one for each factor."""

from __future__ import annotations

from minicompress.nn.composition import Sequential
from minicompress.nn.layers import factor_layers
from minicompress.nn.network import Network
from minicompress.nn.parameters import finite_model, parameters, with_parameters
from minicompress.representation import LowRank, decode, shape_of


def factorize(model: Network) -> Network:
    """Replace every layer that has a `LowRank` weight by a chain of layers, one for each factor.

    The factors can then be trained, and other frameworks can run them.

    Parameters
    ----------
    model : Network
        With weights from `truncated_svd`, `channel_svd`, `spatial_svd` or `tucker2`.

    Returns
    -------
    Network
        The same function up to rounding. The bias goes to the last layer of a chain. Where there is
        no such chain, as for ``groups=2``, the weight is decoded; all other layers stay.

    Raises
    ------
    CompressionError
        A weight or a bias is NaN or infinite.

    See Also
    --------
    minicompress.nn.factor_layers : the chain of one layer.

    Examples
    --------
    >>> import numpy as np
    >>> from minicompress.nn.layers import Dense
    >>> product = LowRank((np.ones((8, 2)), np.ones((2, 4))), "ir,ro->io")
    >>> [layer.weight.shape for layer in factorize(Sequential((Dense(product),))).layers]
    [(8, 2), (2, 4)]
    """
    finite_model(model)
    return Sequential(tuple(part for layer in model.layers for part in factor_layers(layer)))


def restore_factors(model: Network, trained: Network) -> Network:
    """The inverse of `factorize`: the layers of `model`, with the weights of `trained`."""
    parts, values = iter(parameters(trained)), []
    for layer, old in zip(model.layers, parameters(model), strict=True):
        chain = [next(parts) for _ in factor_layers(layer)]
        new = dict(chain[-1])
        if isinstance(rep := old.get("weight"), LowRank):
            # A 1 x 1 kernel has two axes more than the factor that it is made of.
            pairs = zip(chain, rep.factors, strict=True)
            factors = tuple(decode(p["weight"]).reshape(shape_of(f)) for p, f in pairs)
            new["weight"] = LowRank(factors, rep.subscripts)
        values.append(new)
    return with_parameters(model, tuple(values))
