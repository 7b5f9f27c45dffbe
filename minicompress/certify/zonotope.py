"""Following sets of inputs through two networks at once, by difference zonotopes.

A zonotope is the set of ``center + sum_i e_i generator_i + box``, every symbol e_i and every
entry of the box ranging over [-1, 1]. Two are followed through the layers: z, all values of the
original f, and d, all values of the difference g - f, over *shared* symbols. What the two
networks do alike then cancels in d, where two separate zonotopes would lose it.

Affine layers are exact: ``d' = W_g d + (W_g - W_f) z + (b_g - b_f)``. A ReLU on [l, u] is
``lambda z + mu + mu e`` for any lambda in [0, 1] and the mu that covers it; where it is on they are
1 and 0, where it is off 0 and 0. So d' has two forms, and every neuron takes the one of least
radius:

    relu(z + d) - relu(z) = lambda_g d + (lambda_g - lambda_f) z + mu_g - mu_f + mu_g e_g - mu_f e_f
    relu(z + d) - relu(z) = d / 2 +- max|d| / 2         (its secant slope lies in [0, 1])

Max-pooling is max(a, b) = b + relu(a - b). The networks are taken in real-arithmetic semantics, a
`LowRank` weight as the exact product of its factors. The rounding of the analysis itself is bounded
and goes into the boxes: relative errors, and what products lose that underflow. Where the analysis
overflows, a center, a generator or a box is infinite or NaN, and stays so to the end.

Differential verification: B. Paulsen, J. Wang and C. Wang, *ReluDiff*, and *NeuroDiff* (both 2020);
S. Teuber et al., *VeryDiff* (2024). Zonotopes: G. Singh et al., *DeepZ* (2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array, as_int
from minicompress.certify.pairs import TINY, Linear, Map, affine_pair, paired, under
from minicompress.errors import CompressionError
from minicompress.nn.layer import Layer
from minicompress.nn.layers import LAYER_TYPES, Conv2D, Dense
from minicompress.nn.network import Network, naming_layer
from minicompress.nn.pointwise import Dropout, LeakyReLU, ReLU
from minicompress.nn.stateless import AvgPool2D, Flatten, GlobalAvgPool2D, MaxPool2D
from minicompress.norms import UNIT, gamma


class Zonotope(NamedTuple):
    """A batch of zonotopes: center (B, ...), generators (B, symbols, ...), box (B, ...)."""

    center: Array
    generators: Array
    box: Array

    def reach(self) -> Array:
        """Half the width in every coordinate, rounded upward."""
        total = np.abs(self.generators).sum(1) + self.box
        return np.asarray(total * (1 + gamma(self.generators.shape[1] + 4)))

    def size(self) -> Array:
        """An upper bound of the magnitude in every coordinate."""
        return np.asarray((np.abs(self.center) + self.reach()) * (1 + 4 * UNIT))

    def interval(self) -> tuple[Array, Array]:
        """The least and the largest value in every coordinate, rounded outward.

        Infinite where the analysis overflowed: an end that is NaN would pass for one that is not
        above 0.
        """
        reach = self.reach()
        slack = 4 * UNIT * (np.abs(self.center) + reach)
        low, high = self.center - reach - slack, self.center + reach + slack
        return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)

    def map(self, linear: Map, absolute: Map, terms: int, wrong: Map | None = None) -> Zonotope:
        """The image under a linear map that sums `terms` products; its rounding goes to the box.

        `absolute` is the map of the magnitudes, `wrong` that of how far they are from the exact
        ones. A product can underflow where both of its factors are not zero.
        """
        size, m = self.size(), self.generators.shape[1]
        alive = (size > 0).astype(np.float64)
        spread = self.box + gamma(terms + 8) * size + terms * TINY * alive
        box, reached = absolute(spread), absolute(alive)
        if wrong is not None:
            box, reached = box + wrong(size), reached + wrong(alive)
        lost = (m + 8) * terms * TINY * (reached > 0)
        return self._moved(linear, box * (1 + gamma(terms + 8)) + lost)

    def moved(self, move: Map) -> Zonotope:
        """The image under a map that only moves entries about: exact."""
        return self._moved(move, move(self.box))

    def _moved(self, linear: Map, box: Array) -> Zonotope:
        b, m = self.generators.shape[:2]
        flat = linear(self.generators.reshape(b * m, *self.generators.shape[2:]))
        return Zonotope(linear(self.center), flat.reshape(b, m, *flat.shape[1:]), box)

    def add(self, other: Zonotope) -> Zonotope:
        """The sum, over the same symbols; one may have more of them than the other."""
        few, many = sorted((self, other), key=lambda z: z.generators.shape[1])
        generators = many.generators.copy()
        generators[:, : few.generators.shape[1]] += few.generators
        rounding = 2 * UNIT * (self.size() + other.size())
        box = (self.box + other.box + rounding) * (1 + 4 * UNIT)
        return Zonotope(self.center + other.center, generators, box)

    def scaled(self, factor: Array | float, shift: Array | float = 0.0) -> Zonotope:
        """Every coordinate times a factor, plus a shift."""
        size, factor = self.size(), np.broadcast_to(factor, self.center.shape)
        rounding = 4 * UNIT * (size * np.abs(factor) + np.abs(shift))
        rounding += (self.generators.shape[1] + 8) * TINY * ((size > 0) & (factor != 0))
        return Zonotope(
            self.center * factor + shift,
            self.generators * factor[:, None],
            (self.box * np.abs(factor) + rounding) * (1 + 4 * UNIT),
        )

    def grown(self, index: Array, coefficients: Array) -> Zonotope:
        """With more symbols: the i-th new one of input b moves only coordinate index[b, i]."""
        (b, *shape), count = self.center.shape, index.shape[1]
        fresh = np.zeros((b, count, math.prod(shape)))
        moves = np.take_along_axis(coefficients.reshape(b, -1), index, 1)
        np.put_along_axis(fresh, index[:, :, None], moves[:, :, None], 2)
        generators = np.concatenate([self.generators, fresh.reshape(b, count, *shape)], 1)
        return self._replace(generators=generators)


class Pair(NamedTuple):
    """What is known between two layers: all values of f, and of g - f, over the same symbols."""

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
    watch: Callable[[Layer, Layer, Pair], None] | None = None,
) -> Pair:
    """The pair of zonotopes behind the last layer, for a batch of boxes of inputs.

    `watch` is shown each pair of layers with what goes into them.
    """
    if max_symbols is not None:
        as_int(max_symbols, "max_symbols", 0)
    pairs = paired(f, g)
    pair = _capped(_box(low, high), max_symbols)
    for i, (a, b) in enumerate(pairs):
        with naming_layer(f, i):
            behind = _capped(_step(a, b, pair, max_symbols), max_symbols)
            if watch is not None:
                watch(a, b, pair)
            pair = behind
    if pair.f.center.ndim != 2:
        raise CompressionError(
            f"the networks must end in one number per class, not shape {pair.f.center.shape[1:]}"
        )
    return pair


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


def _capped(pair: Pair, most: int | None) -> Pair:
    """At most so many symbols; those that move least are boxed."""
    count = pair.f.generators.shape[1]
    if most is None or count <= most:
        return pair
    axes = tuple(range(2, pair.f.generators.ndim))
    # The difference is what the bound is about: its symbols weigh by their share of it.
    sizes = [np.abs(z.generators).sum(axes) for z in pair]
    weight = sum(s / np.maximum(s.sum(1, keepdims=True), 1e-300) for s in sizes)
    order = np.argsort(-np.asarray(weight), axis=1, kind="stable")
    rows = np.arange(len(order))[:, None]
    kept, boxed = order[:, :most], order[:, most:]

    def most_kept(z: Zonotope) -> Zonotope:
        box = z.box + np.abs(z.generators[rows, boxed]).sum(1)
        return Zonotope(z.center, z.generators[rows, kept], box * (1 + gamma(count + 4)))

    return pair.each(most_kept)


def _step(a: Layer, b: Layer, pair: Pair, most: int | None) -> Pair:
    match a, b:
        case _ if type(a) not in LAYER_TYPES:
            pass
        case (Dense(), Dense()) | (Conv2D(), Conv2D()):
            return _affine(a, b, pair)  # type: ignore[arg-type]
        case Flatten(), _:
            return pair.each(lambda z: z.moved(lambda v: v.reshape(len(v), math.prod(v.shape[1:]))))
        case Dropout(), _:
            return pair
        case ReLU(), _:
            return _relu(pair, most)
        case LeakyReLU(), _:
            # slope * z + (1 - slope) * relu(z)
            return _combined(pair, a.negative_slope, _relu(pair, most), 1 - a.negative_slope)
        case AvgPool2D() | GlobalAvgPool2D(), _:
            terms = math.prod(a.geometry(pair.f.center.shape[1:3]).kernel) + 1
            return pair.each(lambda z: z.map(a.forward, a.forward, terms))
        case MaxPool2D(), _:
            return _max_pool(a, pair, most)
    raise CompressionError(f"no certificate follows {a!r}")


def _affine(a: Conv2D | Dense, b: Conv2D | Dense, pair: Pair) -> Pair:
    maps = affine_pair(a, b)
    terms = math.prod(maps.f.weight.shape[:-1])

    def image(z: Zonotope, map: Linear) -> Zonotope:
        wrong = under(a, map.wrong) if map.wrong.any() else None
        return z.map(under(a, map.weight), under(a, np.abs(map.weight)), terms, wrong)

    # The changes are rounded once more: one term each in gamma covers it.
    d = image(pair.d, maps.g).add(image(pair.f, maps.change)).scaled(1.0, maps.offset_change)
    return Pair(image(pair.f, maps.f).scaled(1.0, maps.offset), d)


def _relaxed(low: Array, high: Array) -> tuple[Array, Array]:
    """lambda and mu of a ReLU on [low, high]: relu(z) is in lambda z + mu +- mu."""
    unstable = (low < 0) & (high > 0)
    width = np.where(unstable, high - low, 1.0)
    slope = np.where(unstable, np.clip(high / width, 0.0, 1.0), (low >= 0).astype(np.float64))
    gap = np.maximum(-slope * low, (1 - slope) * high) * (1 + 4 * UNIT) + 4 * TINY
    return slope, np.where(unstable, gap / 2, 0.0)


def _relu(pair: Pair, most: int | None) -> Pair:
    """Every neuron of d takes the form of least radius; see the top of the file."""
    f, d = pair
    f_slope, f_gap = _relaxed(*f.interval())
    g_slope, g_gap = _relaxed(*f.add(d).interval())
    first = f.scaled(g_slope - f_slope, g_gap - f_gap).add(d.scaled(g_slope))
    low, high = d.interval()
    largest = np.maximum(-low, high)
    half = largest <= first.reach() + g_gap + f_gap - d.reach() / 2 + largest / 2
    chosen = first.scaled(np.where(half, 0.0, 1.0)).add(d.scaled(np.where(half, 0.5, 0.0)))
    own = np.where(half, largest / 2 + TINY * (largest > 0), g_gap) * (1 + 4 * UNIT)
    shared = np.where(half, 0.0, -f_gap)
    both = _with_symbols(Pair(f.scaled(f_slope, f_gap), chosen), f_gap, shared, most)
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


def _combined(x: Pair, p: float, y: Pair, q: float) -> Pair:
    """p x + q y."""
    return Pair(*(a.scaled(p).add(b.scaled(q)) for a, b in zip(x, y, strict=True)))


def _max_pool(layer: MaxPool2D, pair: Pair, most: int | None) -> Pair:
    """max(a, b) = b + relu(a - b), over the places of the window one after the other."""
    g = layer.geometry(pair.f.center.shape[1:3])
    if any(sum(g.pads, ())):
        raise CompressionError("no certificate follows a padded max-pooling")
    (oh, ow), (sh, sw) = g.output, g.stride

    def at(i: int, j: int) -> Pair:
        rows, columns = slice(i, i + (oh - 1) * sh + 1, sh), slice(j, j + (ow - 1) * sw + 1, sw)
        return pair.each(lambda z: z.moved(lambda v: v[:, rows, columns]))

    best, *others = (at(*place) for place in np.ndindex(*g.kernel))
    for here in others:
        best = _combined(best, 1.0, _relu(_combined(best, -1.0, here, 1.0), most), 1.0)
    return best
