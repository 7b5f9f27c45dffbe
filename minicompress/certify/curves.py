"""Functions of one number, enclosed by lines: what certificates know of the activations.

A function is cut at its knots, between which its slope rises or falls, and into some more pieces.
On a piece [a, b] the slope lies between the two at its ends. A line of slope lambda is subtracted;
what is left, psi, has slopes in [p, q], so that on the piece

    max(psi(a) + min(p, 0) w, psi(b) - max(q, 0) w)  <=  psi
    psi  <=  min(psi(a) + max(q, 0) w, psi(b) - min(p, 0) w),  w = b - a.

Where psi rises or falls the ends are exact; an extremum inside of a piece costs O(w^2). So nothing
is assumed of the whole function: not that it is monotone, nor convex.

exp, tanh and the logistic function are taken to be right to 16 u, and to the smallest normal
number below that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from minicompress.arrays import Array
from minicompress.certify.pairs import Map
from minicompress.nn.layer import Layer
from minicompress.nn.pointwise import Clip, HardSigmoid, HardSwish, Sigmoid, SiLU, Tanh
from minicompress.norms import UNIT

PIECES = 8
SMALLEST_NORMAL = float(np.finfo(np.float64).tiny)

# Where the slope of SiLU is least and greatest: z tanh(z / 2) = 2.
SILU_BEND = 2.3993572805154675
CUTS = tuple(n / 2 for n in range(-16, 17))
"""Where functions that bend are cut, too: on a wide interval they do so in a small part of it."""


class Curve(NamedTuple):
    """A function with its slopes.

    value : from (...) to (...), right to 32 u of the value and of the argument
    slope : of a piece's left and right ends to the slopes at them, as seen from inside the piece;
        right to `slack`
    knots : where the slope jumps, or turns from rising to falling
    """

    value: Map
    slope: Callable[[Array, Array], tuple[Array, Array]]
    knots: tuple[float, ...]
    slack: float


class Enclosure(NamedTuple):
    """A function on an interval lies in ``slope z + shift +- gap``; its slopes in [least, most]."""

    slope: Array
    shift: Array
    gap: Array


def curve_of(layer: Layer) -> Curve | None:
    """The function of a layer, or None; a `HardSigmoid` is followed as a line and a `Clip`."""
    match layer:
        case Clip():
            return _clip(layer.low, layer.high)
        case HardSigmoid():
            return _clip(0.0, 1.0)
        case HardSwish():
            return Curve(_hard_swish, _hard_swish_slope, CUTS, 8 * UNIT)
        case Sigmoid():
            return _smooth(special.expit, lambda z: special.expit(z) * special.expit(-z), (0.0,))
        case Tanh():
            return _smooth(np.tanh, lambda z: (1 - np.tanh(z)) * (1 + np.tanh(z)), (0.0,))
        case SiLU():
            return _smooth(lambda z: z * special.expit(z), _silu_slope, (-SILU_BEND, SILU_BEND))
    return None


def _clip(low: float, high: float) -> Curve:
    def slope(left: Array, right: Array) -> tuple[Array, Array]:
        inside = ((left >= low) & (right <= high)).astype(np.float64)
        return inside, inside

    return Curve(lambda z: np.clip(z, low, high), slope, (low, high), 0.0)


def _hard_swish(z: Array) -> Array:
    return np.asarray(z * np.clip(z / 6 + 0.5, 0, 1))


def _hard_swish_slope(left: Array, right: Array) -> tuple[Array, Array]:
    """0 to the left of -3, 1 to the right of 3, and ``z / 3 + 1 / 2`` between."""
    flat = np.where(right <= -3, 0.0, np.where(left >= 3, 1.0, np.nan))
    at_left, at_right = (np.where(np.isnan(flat), z / 3 + 0.5, flat) for z in (left, right))
    return at_left, at_right


def _silu_slope(z: Array) -> Array:
    up, down = special.expit(z), special.expit(-z)
    return np.asarray(up + z * up * down)


def _smooth(value: Map, slope: Map, knots: tuple[float, ...]) -> Curve:
    return Curve(value, lambda left, right: (slope(left), slope(right)), knots + CUTS, 128 * UNIT)


def _pieces(curve: Curve, low: Array, high: Array) -> tuple[Array, Array, Array]:
    """The ends of all pieces, (pieces + 1, ...), and the least and largest slope on each."""
    shares = np.linspace(0.0, 1.0, PIECES + 1).reshape(-1, *[1] * low.ndim)
    ends = [np.clip(low + (high - low) * shares, low, high)]
    ends += [np.clip(knot, low, high)[None] for knot in curve.knots]
    points = np.sort(np.concatenate([low[None], high[None], *ends]), axis=0)
    at_left, at_right = curve.slope(points[:-1], points[1:])
    least = np.minimum(at_left, at_right) - curve.slack
    return points, least, np.maximum(at_left, at_right) + curve.slack


def slopes(curve: Curve, low: Array, high: Array) -> tuple[Array, Array]:
    """The least and the largest slope on [low, high].

    Examples
    --------
    >>> lo, hi = np.array([-1.0, 1.0]), np.array([0.5, 2.0])
    >>> slopes(curve_of(Clip(0.0, 6.0)), lo, hi)
    (array([0., 1.]), array([1., 1.]))
    """
    points, least, most = _pieces(curve, low, high)
    # Pieces without any width have no slope, unless that is all there is.
    empty = (points[:-1] == points[1:]) & (low < high)
    return (
        np.where(empty, np.inf, least).min(0),
        np.where(empty, -np.inf, most).max(0),
    )


def enclosed(curve: Curve, low: Array, high: Array, *, flat: bool = False) -> Enclosure:
    """The line through both ends of a function, and how far the function is from it.

    With `flat` the line has slope 0: the shift and the gap are those of the function's values.

    Examples
    --------
    >>> lo, hi = np.array([-3.0]), np.array([3.0])
    >>> line = enclosed(curve_of(HardSwish()), lo, hi)
    >>> line.slope.round(9), line.shift.round(3), line.gap.round(3)
    (array([0.5]), array([0.75]), array([0.75]))
    """
    points, least, most = _pieces(curve, low, high)
    values = curve.value(points)
    slope = np.zeros_like(low)
    if not flat:
        width = np.where(high > low, high - low, 1.0)
        slope = np.clip((values[-1] - values[0]) / width, *slopes(curve, low, high))
    psi, width = values - slope * points, points[1:] - points[:-1]
    falls, rises = np.minimum(least - slope, 0) * width, np.maximum(most - slope, 0) * width
    bottom = np.maximum(psi[:-1] + falls, psi[1:] - rises).min(0)
    top = np.minimum(psi[:-1] + rises, psi[1:] - falls).max(0)
    reach = np.maximum(np.abs(low), np.abs(high))
    rounding = 64 * UNIT * (np.abs(values).max(0) + 4 * reach * (1 + np.abs(slope)))
    rounding += 8 * SMALLEST_NORMAL * (1 + reach)
    shift = bottom / 2 + top / 2
    gap = np.maximum(top - shift, shift - bottom) * (1 + 4 * UNIT) + rounding
    return Enclosure(slope, shift, gap)


def value_range(curve: Curve, low: Array, high: Array) -> Array:
    """An upper bound of the magnitude of a function on [low, high]."""
    line = enclosed(curve, low, high, flat=True)
    return np.asarray((np.abs(line.shift) + line.gap) * (1 + 4 * UNIT))


def largest_slope(curve: Curve, low: Array, high: Array) -> Array:
    """An upper bound of how much faster than its argument a function moves on [low, high]."""
    least, most = slopes(curve, low, high)
    return np.asarray(np.maximum(np.abs(least), np.abs(most)))


LIPSCHITZ: dict[type[Layer], float] = {Sigmoid: 0.25, Tanh: 1.0, HardSwish: 1.5, SiLU: 1.1}
"""The largest slope anywhere, or a little above it."""
