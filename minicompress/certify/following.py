"""Following sets of inputs through two networks at once, by difference zonotopes.

Two zonotopes are followed for every value: z, all values of the original f, and d, all values of
the difference g - f, over *shared* symbols. What the two networks do alike then cancels in d, where
two separate zonotopes would lose it. All values of a network are over one list of symbols, so that
what branches have in common cancels where they meet, too.

Affine layers are exact: ``d' = W_g d + (W_g - W_f) z + (b_g - b_f)``; so are sums, concatenations
and what only moves entries about. A ReLU on [l, u] is ``lambda z + mu + mu e`` for any lambda in
[0, 1] and the mu that covers it; where it is on they are 1 and 0, where it is off 0 and 0. So d'
has two forms, and every neuron takes the one of least radius:

    relu(z + d) - relu(z) = lambda_g d + (lambda_g - lambda_f) z + mu_g - mu_f + mu_g e_g - mu_f e_f
    relu(z + d) - relu(z) = d / 2 +- max|d| / 2         (its secant slope lies in [0, 1])

Every other function of one number has these two forms with lines, gaps and slopes of its own, see
`curves`. Max-pooling is max(a, b) = b + relu(a - b). A product differs by

    x_g y_g - x_f y_f = (x + dx / 2) dy + dx (y + dy / 2).

The networks are taken in real-arithmetic semantics, a `LowRank` weight of a convolution or a dense
layer as the exact product of its factors.

Differential verification: B. Paulsen, J. Wang and C. Wang, *ReluDiff*, and *NeuroDiff* (both 2020);
S. Teuber et al., *VeryDiff* (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array, as_int
from minicompress.certify.curves import Curve, Enclosure, curve_of, enclosed, slopes
from minicompress.certify.pairs import TINY, Affine, Linear, affine_pair, norm_pair, paired, under
from minicompress.certify.zonotope import Zonotope
from minicompress.errors import CompressionError
from minicompress.nn.layer import Layer
from minicompress.nn.layers import LAYER_TYPES, Conv2D, ConvTranspose2D, Dense
from minicompress.nn.network import Network, last_readers, naming_layer
from minicompress.nn.normalization import BatchNorm
from minicompress.nn.pointwise import Dropout, HardSigmoid, LeakyReLU, PReLU, ReLU
from minicompress.nn.stateless import (
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
from minicompress.norms import UNIT, gamma


class Pair(NamedTuple):
    """What is known of a value: all values of f, and of g - f, over the same symbols."""

    f: Zonotope
    d: Zonotope

    def each(self, change: Callable[[Zonotope], Zonotope]) -> Pair:
        """The same change of both."""
        return Pair(change(self.f), change(self.d))


def follow(
    f: Network,
    g: Network,
    low: Array,
    high: Array,
    max_symbols: int | None,
    watch: Callable[[int, list[Pair]], None] | None = None,
) -> Pair:
    """The pair of zonotopes of the output, for a batch of boxes of inputs.

    `watch` is shown the index of each layer with what it reads.
    """
    if max_symbols is not None:
        as_int(max_symbols, "max_symbols", 0)
    pairs = paired(f, g)
    values = _capped({0: _box(low, high)}, max_symbols)
    last = last_readers(f)
    for i, ((a, b), reads, dropped) in enumerate(zip(pairs, f.inputs, last, strict=True)):
        read = _over_all(values, reads)
        with naming_layer(f, i, [pair.f.center.shape[1:] for pair in read]):
            values[i + 1] = _step(a, b, read, max_symbols)
            if watch is not None:
                watch(i, read)
        for value in dropped:
            del values[value]
        values = _capped(values, max_symbols)
    output = values[f.outputs[0]]
    if output.f.center.ndim != 2:
        raise CompressionError(
            f"the networks must end in one number per class, not shape {output.f.center.shape[1:]}"
        )
    return output


def _box(low: Array, high: Array) -> Pair:
    """Inputs with a symbol for every coordinate that moves in any box of the batch."""
    b, shape = len(low), low.shape[1:]
    center = low / 2 + high / 2
    radius = np.maximum(high - center, center - low) * (1 + 4 * UNIT)
    moving = np.flatnonzero((radius > 0).any(0))
    zeros = Zonotope(center, np.zeros((b, 0, *shape)), np.zeros_like(center))
    index = np.broadcast_to(moving, (b, len(moving)))
    z = zeros.grown(index, radius)
    return Pair(z, Zonotope(*map(np.zeros_like, z)))


def _over_all(values: dict[int, Pair], reads: Sequence[int]) -> list[Pair]:
    """The values that are read, over the symbols of all values.

    So a symbol that is made next is none of those that other values have already.
    """
    count = max(pair.f.generators.shape[1] for pair in values.values())
    return [values[value].each(lambda z: z.over(count)) for value in reads]


def _capped(values: dict[int, Pair], most: int | None) -> dict[int, Pair]:
    """At most so many symbols, the same for all values; those that move least are boxed."""
    count = max(pair.f.generators.shape[1] for pair in values.values())
    if most is None or count <= most:
        return values
    values = dict(zip(values, _over_all(values, [*values]), strict=True))
    # The difference is what the bound is about: its symbols weigh by their share of it.
    shares = []
    for z in (z for pair in values.values() for z in pair):
        size = np.abs(z.generators).sum(tuple(range(2, z.generators.ndim)))
        shares.append(size / np.maximum(size.sum(1, keepdims=True), 1e-300))
    order = np.argsort(-np.asarray(sum(shares)), axis=1, kind="stable")
    rows = np.arange(len(order))[:, None]
    kept, boxed = order[:, :most], order[:, most:]

    def most_kept(z: Zonotope) -> Zonotope:
        box = z.box + np.abs(z.generators[rows, boxed]).sum(1)
        return Zonotope(z.center, z.generators[rows, kept], box * (1 + gamma(count + 4)))

    return {value: pair.each(most_kept) for value, pair in values.items()}


def _step(a: Layer, b: Layer, read: Sequence[Pair], most: int | None) -> Pair:
    pair, curve = read[0], curve_of(a)
    match a, b:
        case _ if type(a) not in LAYER_TYPES:
            pass
        case (Dense(), Dense()) | (Conv2D(), Conv2D()) | (ConvTranspose2D(), ConvTranspose2D()):
            return _affine(a, b, pair)  # type: ignore[arg-type]
        case BatchNorm(), BatchNorm():
            return _batch_norm(a, b, pair)
        case Flatten(), _:
            return pair.each(lambda z: z.moved(lambda v: v.reshape(len(v), math.prod(v.shape[1:]))))
        case Upsample2D() | ChannelShuffle(), _:
            return pair.each(lambda z: z.moved(a.forward))
        case Dropout(), _:
            return pair
        case Add(), _:
            return reduce(_added, read)
        case Concat(), _:
            return Pair(*(_concatenated(z) for z in zip(*read, strict=True)))
        case Multiply(), _:
            shape = a.output_shape(*(p.f.center.shape[1:] for p in read))
            x, y = (_broadcast(p, shape) for p in read)
            return _product(x, y, most)
        case ReLU(), _:
            return _relu(pair, most)
        case LeakyReLU(), _:
            # slope * z + (1 - slope) * relu(z)
            return _combined(pair, a.negative_slope, _relu(pair, most), 1 - a.negative_slope)
        case PReLU(), PReLU():
            return _prelu(a, b, pair, most)
        case HardSigmoid(), _:
            line = Pair(pair.f.scaled(a.alpha, a.beta), pair.d.scaled(a.alpha))
            return _curve(line, curve, most)  # type: ignore[arg-type]
        case _ if curve is not None:
            return _curve(pair, curve, most)
        case AvgPool2D() | GlobalAvgPool2D(), _:
            terms = math.prod(a.geometry(pair.f.center.shape[1:3]).kernel) + 1
            return pair.each(lambda z: z.map(a.forward, a.forward, terms))
        case MaxPool2D(), _:
            return _max_pool(a, pair, most)
    raise CompressionError(f"no certificate follows {a!r}")


# Linear layers -----------------------------------------------------------------------------------


def _affine(a: Affine, b: Affine, pair: Pair) -> Pair:
    maps = affine_pair(a, b)
    terms = math.prod(maps.f.weight.shape[:-1])

    def image(z: Zonotope, map: Linear) -> Zonotope:
        wrong = under(a, map.wrong) if map.wrong.any() else None
        return z.map(under(a, map.weight), under(a, np.abs(map.weight)), terms, wrong)

    # The changes are rounded once more: one term each in gamma covers it.
    d = image(pair.d, maps.g).add(image(pair.f, maps.change)).scaled(1.0, maps.offset_change)
    return Pair(image(pair.f, maps.f).scaled(1.0, maps.offset), d)


def _batch_norm(a: BatchNorm, b: BatchNorm, pair: Pair) -> Pair:
    norms = norm_pair(a, b)

    def image(z: Zonotope, factor: Linear, offset: Linear | None = None) -> Zonotope:
        shift, wrong = (0.0, 0.0) if offset is None else offset
        image = z.scaled(factor.weight, shift)
        return image.loosened(np.asarray(factor.wrong * z.size() + wrong))

    d = image(pair.d, norms.g).add(image(pair.f, norms.change, norms.offset_change))
    return Pair(image(pair.f, norms.f, norms.offset), d)


def _added(x: Pair, y: Pair) -> Pair:
    return Pair(x.f.add(y.f), x.d.add(y.d))


def _concatenated(parts: Sequence[Zonotope]) -> Zonotope:
    return Zonotope(*(np.concatenate(arrays, -1) for arrays in zip(*parts, strict=True)))


def _combined(x: Pair, p: Array | float, y: Pair, q: Array | float) -> Pair:
    """p x + q y."""
    return Pair(*(a.scaled(p).add(b.scaled(q)) for a, b in zip(x, y, strict=True)))


# Products ----------------------------------------------------------------------------------------


def _broadcast(pair: Pair, shape: tuple[int, ...]) -> Pair:
    """A gate at every pixel."""
    return pair.each(lambda z: z.moved(lambda v: np.broadcast_to(v, (len(v), *shape))))


def _product(x: Pair, y: Pair, most: int | None) -> Pair:
    f, off = x.f.times(y.f)
    first, off_first = x.f.add(x.d.scaled(0.5)).times(y.d)
    second, off_second = x.d.times(y.f.add(y.d.scaled(0.5)))
    off_d = (off_first + off_second) * (1 + 2 * UNIT)
    both = _with_symbols(Pair(f, first.add(second)), off, np.zeros_like(off), most)
    return _with_symbols(both, np.zeros_like(off_d), off_d, most)


# Functions of one number -------------------------------------------------------------------------


def _relaxed(low: Array, high: Array) -> tuple[Array, Array]:
    """lambda and mu of a ReLU on [low, high]: relu(z) is in lambda z + mu +- mu."""
    unstable = (low < 0) & (high > 0)
    width = np.where(unstable, high - low, 1.0)
    slope = np.where(unstable, np.clip(high / width, 0.0, 1.0), (low >= 0).astype(np.float64))
    gap = np.maximum(-slope * low, (1 - slope) * high) * (1 + 4 * UNIT) + 4 * TINY
    return slope, np.where(unstable, gap / 2, 0.0)


def _relu(pair: Pair, most: int | None) -> Pair:
    def line(z: Zonotope) -> Enclosure:
        slope, gap = _relaxed(*z.interval())
        return Enclosure(slope, gap, gap)

    return _bent(pair, line(pair.f), line(pair.f.add(pair.d)), 0.5, 0.5, most)


def _curve(pair: Pair, curve: Curve, most: int | None) -> Pair:
    (f_low, f_high), (g_low, g_high) = (z.interval() for z in (pair.f, pair.f.add(pair.d)))
    of_f, of_g = enclosed(curve, f_low, f_high), enclosed(curve, g_low, g_high)
    least, largest = slopes(curve, np.minimum(f_low, g_low), np.maximum(f_high, g_high))
    middle = least / 2 + largest / 2
    half = np.maximum(largest - middle, middle - least) * (1 + 2 * UNIT)
    return _bent(pair, of_f, of_g, middle, half, most)


def _bent(
    pair: Pair, of_f: Enclosure, of_g: Enclosure, middle: Array | float, half: Array | float,
    most: int | None,
) -> Pair:  # fmt: skip
    """A function that lies around these lines, with secant slopes in ``middle +- half``.

    Every neuron of d takes the form of least radius; see the top of the file.
    """
    f, d = pair
    first = f.scaled(of_g.slope - of_f.slope, of_g.shift - of_f.shift).add(d.scaled(of_g.slope))
    low, high = d.interval()
    largest = np.maximum(-low, high)
    around = first.reach() + of_g.gap + of_f.gap
    second = largest <= around - np.abs(middle) * d.reach() + (1 - half) * largest
    chosen = first.scaled(np.where(second, 0.0, 1.0)).add(d.scaled(np.where(second, middle, 0.0)))
    own = np.where(second, largest * half + TINY * (largest > 0), of_g.gap) * (1 + 4 * UNIT)
    shared = np.where(second, 0.0, -of_f.gap)
    both = _with_symbols(Pair(f.scaled(of_f.slope, of_f.shift), chosen), of_f.gap, shared, most)
    return _with_symbols(both, np.zeros_like(own), own, most)


def _with_symbols(pair: Pair, of_f: Array, of_d: Array, most: int | None) -> Pair:
    """A new symbol for every coordinate that moves by itself: so much in f, so much in d.

    At most so many: what moves least goes to the boxes.
    """
    size = (np.abs(of_f) + np.abs(of_d)).reshape(len(of_f), -1)
    count = int((size > 0).sum(1).max(initial=0))
    kept = count if most is None else min(count, most)
    index = np.argsort(-size, axis=1, kind="stable")[:, :kept]

    def with_symbols(z: Zonotope, coefficients: Array) -> Zonotope:
        loose = np.abs(coefficients).reshape(size.shape)
        np.put_along_axis(loose, index, 0.0, 1)
        box = (z.box + loose.reshape(z.box.shape)) * (1 + 2 * UNIT) if kept < count else z.box
        return z._replace(box=box).grown(index, coefficients)

    return Pair(with_symbols(pair.f, of_f), with_symbols(pair.d, of_d))


def _prelu(a: PReLU, b: PReLU, pair: Pair, most: int | None) -> Pair:
    """slope * z + (1 - slope) * relu(z), with r = relu(z) and the difference dr of relu:

    ``d' = s_g d + (1 - s_g) dr + (s_g - s_f) (z - r)``
    """
    s_f, s_g = (layer.slope.astype(np.float64) for layer in (a, b))
    relu = _relu(pair, most)
    both = Pair(
        _combined(pair, s_f, relu, 1 - s_f).f,
        _combined(pair, s_g, relu, 1 - s_g).d,
    )
    below = pair.f.scaled(s_g - s_f).add(relu.f.scaled(s_f - s_g))
    return Pair(both.f, both.d.add(below))


def _max_pool(layer: MaxPool2D, pair: Pair, most: int | None) -> Pair:
    """max(a, b) = b + relu(a - b), over the places of the window one after the other.

    Of a place beyond the image the nearest pixel is taken, which is in the window. A pixel that the
    window has had already is left out: its box would not cancel.
    """
    h, w = pair.f.center.shape[1:3]
    g = layer.geometry((h, w))
    starts = [np.arange(n) * s - p[0] for n, s, p in zip(g.output, g.stride, g.pads, strict=True)]

    def at(i: int, j: int) -> tuple[Array, Array]:
        return np.clip(starts[0] + i, 0, h - 1), np.clip(starts[1] + j, 0, w - 1)

    def pixels(rows: Array, columns: Array) -> Pair:
        return pair.each(lambda z: z.moved(lambda v: v[:, rows[:, None], columns]))

    first, *others = np.ndindex(*g.kernel)
    had, best = at(*first), pixels(*at(*first))
    for i, j in others:
        rows, columns = at(i, j)
        inside = np.logical_and.outer(rows == starts[0] + i, columns == starts[1] + j)
        inside &= ~np.logical_and.outer(rows == had[0], columns == had[1])
        better = _combined(best, -1.0, pixels(rows, columns), 1.0)
        if not inside.all():
            share = inside[..., None].astype(np.float64)
            better = Pair(better.f.scaled(share), better.d.scaled(share))
        best = _combined(best, 1.0, _relu(better, most), 1.0)
    return best
