"""Deep Compression (Han, Mao and Dally, 2016) as a recipe: pruning, shared values, Huffman code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from minicompress.arrays import as_float, as_int, ceil_div
from minicompress.compressors.chaining import Compressor, chain
from minicompress.compressors.clustering import cluster
from minicompress.compressors.pruning import prune_magnitude
from minicompress.datasets import Images
from minicompress.errors import CompressionError
from minicompress.nn.network import Network
from minicompress.nn.optimizers import adam, cosine_lr
from minicompress.nn.parameters import decoded
from minicompress.nn.training import fit
from minicompress.recipes.recipe import Step, array_digest
from minicompress.recipes.structure import preserve_structure, restore_structure
from minicompress.search.plan import compress


def deep_compression(
    images: Images,
    kept: Mapping[int, float],
    bits: Mapping[int, int],
    *,
    rounds: int = 4,
    epochs: int = 8,
    fine_tuning: int = 4,
    learning_rate: float = 1e-3,
) -> tuple[Step, ...]:
    """The recipe of Deep Compression: prune and retrain in rounds, share values, tune them.

    Parameters
    ----------
    images : (x, y)
        To train on.
    kept : mapping of int to float in (0, 1]
        For the index of a layer, the fraction of its weights that is left at the end.
    bits : mapping of int to int
        For the same layers, the bits of an index of a shared value. The weights of a layer have
        2**bits different values, found by k-means.
    rounds : int, at least 1
        Every round keeps the same fraction of the weights that the round before has left.
    epochs, fine_tuning : int
        Of training after each round, and of the shared values at the end.
    learning_rate : float
        Of training; the shared values are trained with a tenth of it.

    Returns
    -------
    tuple of Step
        For `run_recipe`. With ``coding="huffman"`` the file has the contents that the paper
        describes: the gaps between weights and the indices of their values, both in Huffman code,
        and the values.

    Raises
    ------
    CompressionError
        A number is out of range, or the two mappings name different layers.

    Notes
    -----
    S. Han, H. Mao and W. J. Dally, *Deep compression: compressing deep neural networks with
    pruning, trained quantization and Huffman coding* (2016).

    Examples
    --------
    >>> x, y = np.zeros((2, 4), np.float32), np.array([0, 1])
    >>> steps = deep_compression((x, y), {0: 0.1}, {0: 5}, rounds=2)
    >>> [step.name for step in steps]
    ['prune 1', 'retrain 1', 'prune 2', 'retrain 2', 'share', 'tune']
    """
    rounds = as_int(rounds, "rounds", 1)
    left = {i: as_float(share, "kept", 0.0, 1.0) for i, share in kept.items()}
    if left.keys() != bits.keys() or 0.0 in left.values():
        raise CompressionError(f"kept and bits must be of the same layers, not {kept} and {bits}")
    learning_rate = as_float(learning_rate, "learning_rate", 0.0)
    fine_tuning, epochs = as_int(fine_tuning, "fine_tuning", 0), as_int(epochs, "epochs", 0)
    settings = (
        f"{left}, {dict(bits)}, rounds={rounds}, epochs={epochs}, fine_tuning={fine_tuning}, "
        f"learning_rate={learning_rate}, images={array_digest(*images)}"
    )
    training = partial(retrained, images=images, learning_rate=learning_rate)
    steps = []
    for i in range(1, rounds + 1):
        prune: dict[int, Compressor] = {
            k: partial(prune_magnitude, amount=1 - share ** (i / rounds))
            for k, share in left.items()
        }
        steps.append(Step(f"prune {i}", partial(compressed, plan=prune), settings))
        steps.append(Step(f"retrain {i}", partial(training, epochs=epochs), settings))
    share: dict[int, Compressor] = {
        # `prune` drops the weights that are zero already, so this loses nothing more.
        k: chain(prune[k], partial(cluster, n_clusters=2 ** as_int(bits[k], "bits", 0, 16)))
        for k in left
    }
    tune = partial(training, epochs=fine_tuning, learning_rate=learning_rate / 10)
    last = Step("share", partial(compressed, plan=share), settings), Step("tune", tune, settings)
    return (*steps, *last)


def compressed(
    model: Network, rng: np.random.Generator, *, plan: Mapping[int, Compressor]
) -> Network:
    """`compress` as a step; bind the plan by `functools.partial`."""
    return compress(model, plan).model


def retrained(
    model: Network,
    rng: np.random.Generator,
    *,
    images: Images,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
) -> Network:
    """`fit` by Adam as a step; zero weights stay zero, and shared values stay shared."""
    updates = epochs * ceil_div(len(images[0]), batch_size)
    trained, _ = fit(
        decoded(model),
        *images,
        optimizer=adam(cosine_lr(learning_rate, max(updates, 1))),
        epochs=epochs,
        batch_size=batch_size,
        rng=rng,
        view=preserve_structure(model),
    )
    return restore_structure(model, trained)
