"""Low-rank weights as ordinary layers, one for each factor."""

from __future__ import annotations

from minicompress.errors import CompressionError
from minicompress.nn.composition import replaced
from minicompress.nn.layers import factor_layers
from minicompress.nn.network import Network, naming_layer
from minicompress.nn.parameters import finite_model, parameters, with_parameters
from minicompress.representation import LowRank, decode, shape_of


def factorize(network: Network) -> Network:
    """Replace every layer that has a `LowRank` weight by a chain of layers, one for each factor.

    The factors can then be trained, and other frameworks can run them.

    Parameters
    ----------
    network : Network
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
    replace_layers : any layers in place of one.

    Examples
    --------
    >>> import numpy as np
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> product = LowRank((np.ones((8, 2)), np.ones((2, 4))), "ir,ro->io")
    >>> network = Sequential((Dense(product),))
    >>> [layer.weight.shape for layer in factorize(network).layers]
    [(8, 2), (2, 4)]
    """
    finite_model(network)
    return replaced(network, [factor_layers(layer) for layer in network.layers])


def restore_factors(network: Network, trained: Network) -> Network:
    """The inverse of `factorize`: the layers of `network`, with the weights of `trained`.

    A weight that `factorize` has decoded stays an array. Factors of factors are refused.
    """
    parts, values = iter(parameters(trained)), []
    for i, (layer, old) in enumerate(zip(network.layers, parameters(network), strict=True)):
        chain = [next(parts) for _ in factor_layers(layer)]
        new = dict(chain[-1])
        if isinstance(rep := old.get("weight"), LowRank) and len(chain) > 1:
            if len(chain) > len(rep.factors):
                with naming_layer(network, i):
                    raise CompressionError("a factor is itself a product: it cannot be restored")
            # A 1 x 1 kernel has two axes more than the factor that it is made of.
            pairs = zip(chain, rep.factors, strict=True)
            factors = tuple(decode(p["weight"]).reshape(shape_of(f)) for p, f in pairs)
            new["weight"] = LowRank(factors, rep.subscripts)
        values.append(new)
    return with_parameters(network, tuple(values))
