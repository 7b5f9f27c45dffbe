"""One network compressed every way there is, each way counted, bounded and scored.

This is the experiment behind ``python -m minicompress``. A small CNN is trained, its weights are
compressed by each method, and the two structural variants of the network are trained beside it.
Every setting is fixed here, before any test image is seen, and each model is scored on them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from minicompress.analysis.accounting import summary
from minicompress.arrays import Array, as_int
from minicompress.certify.certificates import domain_certificate
from minicompress.compressors.chaining import Compressor, chain
from minicompress.compressors.pruning import prune_magnitude
from minicompress.compressors.quantization import quantize
from minicompress.compressors.svd import low_rank
from minicompress.datasets import Images
from minicompress.nn.architectures import digits_cnn, seed_cnn
from minicompress.nn.network import Sequential, apply, decoded
from minicompress.nn.optimizers import adam, cosine_lr
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
    """A data set, the network for it, and how that is trained."""

    train: Images
    validation: Images
    test: Images
    network: Callable[..., Sequential]
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    max_symbols: int | None  # of the certificates: all on small networks


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
    model: Sequential
    certificate: Certificate | None = None
    against: str | None = None


class Run(NamedTuple):
    """What every training of one comparison shares."""

    data: Setup
    seed: int
    epochs: int
    progress: Progress


def setup(name: str, load: Callable[[str], Images]) -> Setup:
    """The settings for "digits" or "mnist", with the images that `load` gives for each split."""
    train, validation, test = (load(split) for split in ("train", "validation", "test"))
    if name == "digits":
        # Strong decay, chosen on the validation images: they are classified better, and small
        # weights make small differences of large margins.
        return Setup(train, validation, test, digits_cnn, EPOCHS[name], 32, 3e-3, 0.3, None)
    return Setup(train, validation, test, seed_cnn, EPOCHS[name], 64, 1e-3, 0.0, 64)


def compare(
    data: Setup, *, seed: int = 0, epochs: int | None = None, progress: Progress | None = None
) -> tuple[Row, ...]:
    """Train, compress every way, count, bound and score.

    Parameters
    ----------
    data : Setup
    seed : int
        Of the initial weights and of the order of the images: the same seed, the same rows.
    epochs : int, optional
        For each network that is trained from scratch, as `data` says unless told; retraining after
        a compression takes `retraining_epochs` of it.
    progress : callable, optional
        Called with the name of what is being trained and the fraction of it that is done.

    Returns
    -------
    tuple of Row
        The uncompressed network first.
    """
    epochs = data.epochs if epochs is None else as_int(epochs, "epochs", 1)
    run = Run(data, as_int(seed, "seed", 0), epochs, progress or (lambda name, done: None))
    first, *others = _candidates(run)
    dense = _score(data, first, None, first.model)
    return (dense, *(_score(data, other, dense, first.model) for other in others))


def trained(
    data: Setup, *, seed: int = 0, epochs: int | None = None, progress: Progress | None = None
) -> Sequential:
    """The network of the first row of `compare`, with the same arguments."""
    epochs = data.epochs if epochs is None else as_int(epochs, "epochs", 1)
    seed = as_int(seed, "seed", 0)
    return _fresh(Run(data, seed, epochs, progress or (lambda name, done: None)), "baseline")


def retraining_epochs(epochs: int) -> int:
    """A third of what training from scratch took, but at least 1."""
    return max(1, epochs // 3)


def low_rank_share(weight: Array, *, share: Fraction) -> Compressed:
    """A dense weight or a kernel at a share of the rank that its shape allows, but at least 1."""
    full = min(weight.size // weight.shape[-1], weight.shape[-1])
    return low_rank(weight, rank=max(1, int(full * share)))


half_rank = partial(low_rank_share, share=Fraction(1, 2))


def _candidates(run: Run) -> list[Candidate]:
    """Every model of the comparison, the dense one first."""
    dense = _fresh(run, "baseline")
    sizes = {i: decode(w).size for i, w in weights(dense).items()}
    large = [i for i, size in sizes.items() if size >= SMALL * sum(sizes.values())]

    found = [
        Candidate("dense float32", dense),
        _compressed("int8", dense, dict.fromkeys(sizes, INT8)),
        _compressed("int4", dense, dict.fromkeys(sizes, INT4)),
    ]
    found += _retrained(run, dense, "low rank 1/2", large, half_rank, INT8)
    for amount in AMOUNTS:
        step = partial(prune_magnitude, amount=amount)
        found += _retrained(run, dense, f"prune {amount:.0%}", large, step, INT8_ONE_SCALE)

    return found + [Candidate(variant, _fresh(run, variant)) for variant in VARIANTS]


def _compressed(
    method: str, model: Sequential, compressors: Mapping[int, Compressor], against: str = TRAINED
) -> Candidate:
    compressed, certificates = compress(model, compressors)
    return Candidate(method, compressed, total(certificates.values()), against)


def _retrained(
    run: Run,
    dense: Sequential,
    method: str,
    large: Iterable[int],
    step: Compressor,
    rounding: Compressor,
) -> list[Candidate]:
    """The model compressed by `step` and retrained, and then that one in 8 bits as well."""
    steps = dict.fromkeys(large, step)
    before = _compressed(method, dense, steps, BEFORE_RETRAINING)
    few = retraining_epochs(run.epochs)
    if any(isinstance(w, LowRank) for w in weights(before.model).values()):
        factors = _train(run, method, factorize(before.model), few)
        retrained = restore_factors(before.model, factors)
    else:
        view = preserve_structure(before.model)
        retrained = _train(run, method, decoded(before.model), few, view)

    # The weights still have this rank or these zeros: the same step loses nothing on them.
    again, _ = compress(retrained, steps)
    both: dict[int, Compressor] = dict.fromkeys(weights(retrained), INT8)
    both |= dict.fromkeys(large, chain(step, rounding))
    hybrid = _compressed(f"{method} + int8", retrained, both, RETRAINED)
    return [before._replace(model=again), hybrid]


def _fresh(run: Run, variant: str) -> Sequential:
    model = run.data.network(np.random.default_rng([run.seed, 0]), variant)
    return _train(run, variant, model, run.epochs)


def _train(
    run: Run, name: str, model: Sequential, epochs: int, view: LatentView | None = None
) -> Sequential:
    data, (x, y) = run.data, run.data.train
    steps = epochs * -(-len(x) // data.batch_size)
    trained, _ = fit(
        model,
        x,
        y,
        optimizer=adam(cosine_lr(data.learning_rate, steps), weight_decay=data.weight_decay),
        epochs=epochs,
        batch_size=data.batch_size,
        rng=np.random.default_rng([run.seed, 1]),  # afresh: no row depends on those above it
        view=view,
        progress=lambda step, steps, loss: run.progress(name, step / steps),
    )
    return trained


def _score(data: Setup, candidate: Candidate, dense: Row | None, original: Sequential) -> Row:
    counted = summary(candidate.model, data.test[0].shape[1:])
    on_test = accuracy(candidate.model, *data.test)
    certificate = candidate.certificate
    return Row(
        candidate.method,
        counted.params,
        counted.nonzeros,
        counted.macs,
        counted.packed_bytes,
        (counted.dense_bytes if dense is None else dense.bytes) / counted.packed_bytes,
        accuracy(candidate.model, *data.validation),
        on_test,
        0.0 if dense is None else 100 * (on_test - dense.test_accuracy),
        None if certificate is None else certificate.bound,
        None if certificate is None else certificate.measured,
        candidate.against,
        None if candidate.against is None else certified_domain(original, candidate.model, data),
    )


def certified_domain(f: Sequential, g: Sequential, data: Setup) -> float:
    """The fraction of test images of which it is proven that g gives them the class of f.

    From f's outputs and the box of the training images alone: g is never run. Images outside of
    the box do not count, and both classes are those of the arithmetic that runs.
    """
    x = data.test[0]
    low, high = data.train[0].min(0), data.train[0].max(0)
    certificate = domain_certificate(f, g, low, high, max_symbols=data.max_symbols)
    return float(certificate.keeps(apply(f, x), x).mean())
