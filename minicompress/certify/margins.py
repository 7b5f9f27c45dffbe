"""What is read off a zonotope of outputs: their bounds, and by how much one is above another."""

from __future__ import annotations

import numpy as np

from minicompress.arrays import Array
from minicompress.certify.zonotope import Zonotope
from minicompress.norms import UNIT, gamma


def limits(z: Zonotope, error: Array) -> tuple[Array, Array]:
    """The ends of a zonotope whose points are computed with an error."""
    (low, high), error = z.interval(), error * (1 + 4 * UNIT)
    low = np.where(error > 0, np.nextafter(low - error, -np.inf), low)
    high = np.where(error > 0, np.nextafter(high + error, np.inf), high)
    return low, high


def margins(z: Zonotope) -> Array:
    """[b, c, k]: an upper bound of z_k - z_c."""
    center = z.center[:, None, :] - z.center[:, :, None]
    generators = np.abs(z.generators[:, :, None, :] - z.generators[:, :, :, None]).sum(1)
    reach = generators + z.box[:, None, :] + z.box[:, :, None]
    reach = reach * (1 + gamma(z.generators.shape[1] + 8))
    size = z.size()
    pairs = center + reach + 4 * UNIT * (size[:, None, :] + size[:, :, None] + reach)
    return widened(np.where(np.isnan(pairs), np.inf, pairs), np.zeros_like(size))


def widened(pairs: Array, error: Array) -> Array:
    """The same, if each z_k is off by up to its error (b, k); the diagonal is 0."""
    added = (error[:, None, :] + error[:, :, None]) * (1 + 4 * UNIT)
    total = np.where(added > 0, np.nextafter(pairs + added, np.inf), pairs)
    diagonal = np.arange(pairs.shape[1])
    total[:, diagonal, diagonal] = 0.0
    return np.asarray(total)


def wins(margins: Array) -> Array:
    """Which classes c have a positive margin[b, c, k] over every other class k."""
    return np.asarray(((margins > 0) | np.eye(margins.shape[1], dtype=bool)).all(2))
