"""One network compressed every way there is, each way counted, bounded and scored.

This is the experiment behind ``python -m minicompress``. A small CNN is trained, its weights are
compressed by each method, and the two structural variants of the network are trained beside it.
Every setting is fixed here, before any test image is seen, and each model is scored on them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np

from minicompress.analysis.accounting import summary
from minicompress.arrays import Array, as_int, ceil_div
from minicompress.certify.certificates import domain_certificate
from minicompress.compressors.chaining import Compressor, chain
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.compressors.svd import low_rank
from minicompress.datasets import SPLITS, Images
from minicompress.nn.architectures import digits_cnn, seed_cnn
from minicompress.nn.network import Network, apply
from minicompress.nn.optimizers import adam, cosine_lr
from minicompress.nn.parameters import decoded
from minicompress.nn.training import LatentView, accuracy, fit
from minicompress.recipes.structure import preserve_structure
from minicompress.representation import Certificate, Compressed, LowRank, decode
from minicompress.rewrite.low_rank import factorize, restore_factors
from minicompress.search.plan import compress
from minicompress.search.weights import total, weights

Progress: TypeAlias = Callable[[str, float], None]

TRAINED = "the trained weights"
BEFORE_RETRAINING = "the trained weights, before retraining moved what was left"
RETRAINED = "the compressed and retrained weights"

EPOCHS = {"digits": 24, "mnist": 3}
VARIANTS = ("small_kernel", "strided")
AMOUNTS = (0.5, 0.9)
INT8 = partial(quantize, num_bits=8, axis=-1)
INT4 = partial(quantize, num_bits=4, axis=-1)
# What pruning leaves is a list of values without channels: one scale has to do for all of it.
INT8_ONE_SCALE = partial(quantize, num_bits=8)
# Weights below this share of all are not factored or pruned: little to gain there, much to lose.
SMALL = 0.02


class Setup(NamedTuple):
    """A data set, the network for it, and how that is trained: what all experiments share."""

    name: str
    train: Images
    validation: Images
    test: Images
    network: Callable[..., Network]
    batch_size: int
    learning_rate: float
    weight_decay: float
    max_symbols: int | None  # of the certificates: all on small networks
    seed: int
    epochs: int
    progress: Progress

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.test[0].shape[1:]

    @property
    def images(self) -> dict[str, int]:
        """How many there are in each split."""
        return {split: len(getattr(self, split)[0]) for split in SPLITS}


class Row(NamedTuple):
    """One line of the comparison.

    Accuracies are fractions, of the validation and of the test images; `change` is in points of
    test accuracy against the first row. `bound` and `measured` are those of all the weights that
    the method approximates, in the Frobenius norm, None where it approximates none; `against`
    says what they are measured from.
    """

    method: str
    params: int
    nonzeros: int
    macs: int
    bytes: int
    ratio: float
    validation_accuracy: float
    test_accuracy: float
    change: float
    bound: float | None
    measured: float | None
    against: str | None
    certified: float | None


class Candidate(NamedTuple):
    """A model that is yet to be counted and scored."""

    method: str
    model: Network
    certificates: Mapping[int, Certificate] = MappingProxyType({})
    against: str | None = None


def setup(
    name: str,
    load: Callable[[str], Images],
    *,
    seed: int = 0,
    epochs: int | None = None,
    progress: Progress | None = None,
) -> Setup:
    """The settings for "digits" or "mnist".

    Parameters
    ----------
    name : str
    load : callable
        Gives the images of a split.
    seed : int
        Of the initial weights and of the order of the images: the same seed, the same results.
    epochs : int, optional
        For each network that is trained from scratch, instead of those in `EPOCHS`; retraining
        after a compression takes `retraining_epochs` of it.
    progress : callable, optional
        Called with the name of what is being done and the fraction of it that is done.
    """
    shared = (
        as_int(seed, "seed", 0),
        as_int(EPOCHS[name] if epochs is None else epochs, "epochs", 1),
        progress or (lambda what, done: None),
    )
    train, validation, test = map(load, SPLITS)
    if name == "digits":
        # Strong decay, chosen on the validation images: they are classified better, and small
        # weights make small differences of large margins.
        return Setup(name, train, validation, test, digits_cnn, 32, 3e-3, 0.3, None, *shared)
    return Setup(name, train, validation, test, seed_cnn, 64, 1e-3, 0.0, 64, *shared)


def compare(data: Setup) -> tuple[Row, ...]:
    """Train, compress every way, count, bound and score; the uncompressed network first."""
    dense = trained(data)
    dense_bytes = summary(dense, data.shape).dense_bytes
    dense_accuracy = accuracy(dense, *data.test)
    rows = []
    for method, model, certificates, against in _candidates(data, dense):
        counted = summary(model, data.shape)
        certificate = total(certificates.values())
        on_test = accuracy(model, *data.test)
        rows.append(
            Row(
                method,
                counted.params,
                counted.nonzeros,
                counted.macs,
                counted.packed_bytes,
                dense_bytes / counted.packed_bytes,
                accuracy(model, *data.validation),
                on_test,
                100 * (on_test - dense_accuracy),
                certificate.bound if against else None,
                certificate.measured if against else None,
                against,
                certified_domain(dense, model, data) if against else None,
            )
        )
    return tuple(rows)


def trained(data: Setup, variant: str = "baseline") -> Network:
    """A variant of the network, trained from scratch; the first row of `compare` is "baseline"."""
    model = data.network(np.random.default_rng([data.seed, 0]), variant)
    return _train(data, variant, model, data.epochs)


def retraining_epochs(epochs: int) -> int:
    """A third of what training from scratch took, but at least 1."""
    return max(1, epochs // 3)


def low_rank_share(weight: Array, *, share: Fraction) -> Compressed:
    """A dense weight or a kernel at a share of the rank that its shape allows, but at least 1."""
    full = min(weight.size // weight.shape[-1], weight.shape[-1])
    return low_rank(weight, rank=max(1, int(full * share)))


half_rank = partial(low_rank_share, share=Fraction(1, 2))


def _candidates(data: Setup, dense: Network) -> Iterator[Candidate]:
    """Every model of the comparison, the dense one first."""
    sizes = {i: decode(w).size for i, w in weights(dense).items()}
    large = [i for i, size in sizes.items() if size >= SMALL * sum(sizes.values())]

    yield Candidate("dense float32", dense)
    yield Candidate("int8", *compress(dense, dict.fromkeys(sizes, INT8)), TRAINED)
    yield Candidate("int4", *compress(dense, dict.fromkeys(sizes, INT4)), TRAINED)
    steps: dict[str, tuple[Compressor, Compressor]] = {"low rank 1/2": (half_rank, INT8)}
    for amount in AMOUNTS:
        pruned = partial(prune_magnitude, amount=amount)
        steps[f"prune {amount:.0%}"] = (pruned, INT8_ONE_SCALE)
    for method, (step, rounding) in steps.items():
        made, certificates = compress(dense, dict.fromkeys(large, step))
        retrained = _retrained(data, method, made)
        # The weights still have this rank or these zeros: the same step loses nothing on them.
        again, _ = compress(retrained, dict.fromkeys(large, step))
        yield Candidate(method, again, certificates, BEFORE_RETRAINING)
        both = dict.fromkeys(sizes, INT8) | dict.fromkeys(large, chain(step, rounding))
        yield Candidate(f"{method} + int8", *compress(retrained, both), RETRAINED)
    for variant in VARIANTS:
        yield Candidate(variant, trained(data, variant))


def _retrained(data: Setup, name: str, model: Network) -> Network:
    """Plain weights of the same rank, or with the same zeros, after more training."""
    epochs = retraining_epochs(data.epochs)
    if any(isinstance(w, LowRank) for w in weights(model).values()):
        return restore_factors(model, _train(data, name, factorize(model), epochs))
    return _train(data, name, decoded(model), epochs, preserve_structure(model))


def _train(
    data: Setup, name: str, model: Network, epochs: int, view: LatentView | None = None
) -> Network:
    x, y = data.train
    steps = epochs * ceil_div(len(x), data.batch_size)
    return fit(
        model,
        x,
        y,
        optimizer=adam(cosine_lr(data.learning_rate, steps), weight_decay=data.weight_decay),
        epochs=epochs,
        batch_size=data.batch_size,
        rng=np.random.default_rng([data.seed, 1]),  # afresh: no row depends on those above it
        view=view,
        progress=lambda step, steps, loss: data.progress(name, step / steps),
    )[0]


def certified_domain(f: Network, g: Network, data: Setup) -> float:
    """The fraction of test images of which it is proven that g gives them the class of f.

    From f's outputs and the box of the training images alone: g is never run. Images outside of
    the box do not count, and both classes are those of the arithmetic that runs.
    """
    x = data.test[0]
    low, high = data.train[0].min(0), data.train[0].max(0)
    certificate = domain_certificate(f, g, low, high, max_symbols=data.max_symbols)
    return float(certificate.keeps(apply(f, x), x).mean())
