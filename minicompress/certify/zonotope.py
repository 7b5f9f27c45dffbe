"""Zonotopes: sets of arrays that are followed through layers, and the rounding of doing so.

A zonotope is the set of ``center + sum_i e_i generator_i + box``, every symbol e_i and every entry
of the box ranging over [-1, 1]. Several over the same symbols know what they have in common. The
rounding of the analysis itself is bounded and goes into the boxes: relative errors, and what
products lose that underflow. Where the analysis overflows, a center, a generator or a box is
infinite or NaN, and stays so to the end.

G. Singh et al., *Fast and Effective Robustness Certification* (DeepZ, 2018).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minicompress.arrays import Array
from minicompress.certify.pairs import TINY, Map
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

    def loosened(self, amount: Array) -> Zonotope:
        """With so much more in the box."""
        return self._replace(box=(self.box + amount) * (1 + 2 * UNIT))

    def times(self, other: Zonotope) -> tuple[Zonotope, Array]:
        """The product of every coordinate with that of another one, and what it is off by.

        With a_i and b_i the generators of the two, the products a_i b_i e_i e_i lie between 0 and
        a_i b_i: half of them go to the center. All other products of symbols are off by up to
        their size.
        """
        a, b = self.shared(other)
        squares = (a.generators * b.generators).sum(1)
        sides = np.abs(a.generators * b.generators).sum(1)
        size, count = a.size() * b.size(), a.generators.shape[1]
        alive = (a.size() > 0) & (b.size() > 0)
        rounding = 4 * gamma(count + 16) * size + (4 * count + 32) * TINY * alive
        product = Zonotope(
            a.center * b.center + squares / 2,
            a.center[:, None] * b.generators + b.center[:, None] * a.generators,
            np.abs(a.center) * b.box + np.abs(b.center) * a.box + rounding,
        )
        off = np.maximum(a.reach() * b.reach() - sides / 2, 0) + rounding
        return product, off * (1 + 4 * UNIT)

    def shared(self, other: Zonotope) -> tuple[Zonotope, Zonotope]:
        """Both over all symbols that one of them has."""
        count = max(z.generators.shape[1] for z in (self, other))
        return self.over(count), other.over(count)

    def over(self, count: int) -> Zonotope:
        """Over so many symbols: it does not depend on those that it has not met."""
        b, m, *shape = self.generators.shape
        if m == count:
            return self
        more = np.zeros((b, count - m, *shape))
        return self._replace(generators=np.concatenate([self.generators, more], 1))

    def grown(self, index: Array, coefficients: Array) -> Zonotope:
        """With more symbols: the i-th new one of input b moves only coordinate index[b, i]."""
        (b, *shape), count = self.center.shape, index.shape[1]
        fresh = np.zeros((b, count, math.prod(shape)))
        moves = np.take_along_axis(coefficients.reshape(b, -1), index, 1)
        np.put_along_axis(fresh, index[:, :, None], moves[:, :, None], 2)
        generators = np.concatenate([self.generators, fresh.reshape(b, count, *shape)], 1)
        return self._replace(generators=generators)
