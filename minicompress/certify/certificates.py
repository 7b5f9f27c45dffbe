"""Certificates that two networks agree on whole sets of inputs.

At one known input there is nothing to prove: run both. A certificate earns its name by holding
where nobody ran anything: for every input within eps of x, or in the whole box of the data. What
holds there is read off the two zonotopes that `zonotope.follow` brings to the outputs: of all
values of the original f, and of the difference g - f. The networks are taken in real-arithmetic
semantics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, Value, as_float, as_int, choice, finite_array, freeze
from minicompress.certify.float_error import ARITHMETICS, float_error
from minicompress.certify.zonotope import Pair, Zonotope, follow
from minicompress.errors import CompressionError
from minicompress.nn.layers import Layer
from minicompress.nn.network import Sequential
from minicompress.norms import UNIT, gamma


@dataclass(frozen=True, eq=False, repr=False)
class BallCertificate(Value):
    """What holds for every input within eps of one input.

    Parameters
    ----------
    lower, upper : (classes,) ndarray
        Bounds of g - f, output by output.
    same_class : bool
        f and g have one and the same class on the whole ball.
    """

    lower: Array
    upper: Array
    same_class: bool

    @property
    def bound(self) -> float:
        """The largest difference that any output can have."""
        return float(max(np.abs(self.lower).max(initial=0), np.abs(self.upper).max(initial=0)))


@dataclass(frozen=True, eq=False, repr=False)
class DomainCertificate(Value):
    """What holds for every input of a box.

    Parameters
    ----------
    lower, upper : (classes,) ndarray
        Bounds of g - f, output by output.
    pairwise : (classes, classes) ndarray
        ``pairwise[c, k]``: how much g can favour class k over class c more than f does.
    """

    lower: Array
    upper: Array
    pairwise: Array

    @property
    def bound(self) -> float:
        """The largest difference that any output can have."""
        return float(max(np.abs(self.lower).max(initial=0), np.abs(self.upper).max(initial=0)))

    def keeps(self, logits: ArrayLike) -> Array:
        """For which inputs g certainly has f's class, from f's logits there alone.

        Parameters
        ----------
        logits : (N, classes) ndarray
            ``apply(f, x)`` for inputs x of the box. g need never be run.

        Returns
        -------
        (N,) ndarray of bool
            The margin over every other class is above what `pairwise` can take away. The margin
            is computed from the logits as they are given.
        """
        z = finite_array(logits, "logits", ndim=2).astype(np.float64)
        if z.shape[1] != len(self.pairwise):
            raise CompressionError(
                f"logits must have {len(self.pairwise)} columns, not shape {z.shape}"
            )
        best = z.argmax(1)
        margins = np.take_along_axis(z, best[:, None], 1) - z
        slack = 2 * UNIT * (np.abs(z) + np.abs(z).max(1, keepdims=True, initial=0))
        kept = margins - slack > self.pairwise[best]
        kept[np.arange(len(z)), best] = True
        return np.asarray(kept.all(1))


def ball_certificate(
    f: Sequential,
    g: Sequential,
    x: ArrayLike,
    *,
    eps: float,
    clip: tuple[float, float] | None = None,
    max_symbols: int | None = None,
    arithmetic: str = "real",
) -> BallCertificate:
    """Bound g - f over all inputs within eps of one input.

    Parameters
    ----------
    f, g : Sequential
        The original and the compressed network: the same types of layers in the same order.
    x : ndarray, one input without a batch axis
    eps : float, at least 0
        In the largest-entry norm, so that every entry may move by eps.
    clip : (lo, hi), optional
        The range of valid inputs, which the ball does not leave.
    max_symbols : int, optional
        Symbols that are kept apart; the least of the others are boxed. Sound for any number;
        a smaller one is faster, takes less memory and is less tight.
    arithmetic : "real" | "float16" | "float32" | "float64"
        With a dtype, what its rounding can add when the engine runs both networks is added: the
        certificate then speaks of the numbers that `apply` returns.

    Returns
    -------
    BallCertificate

    Raises
    ------
    CompressionError
        The layers do not correspond, one is of a type that is not followed, or x does not fit.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.stateless import ReLU
    >>> f = Sequential((Dense(np.eye(2)), ReLU()))
    >>> g = Sequential((Dense(np.eye(2) * 1.25), ReLU()))
    >>> c = ball_certificate(f, g, np.array([1.0, 3.0]), eps=0.5)
    >>> c.lower.round(6), c.upper.round(6), c.same_class
    (array([0.125, 0.625]), array([0.375, 0.875]), True)
    """
    point = finite_array(x, "x")[None]
    options = {"max_symbols": max_symbols, "arithmetic": arithmetic}
    return ball_certificates(f, g, point, eps=eps, clip=clip, **options)[0]  # type: ignore[arg-type]


def ball_certificates(
    f: Sequential,
    g: Sequential,
    x: ArrayLike,
    *,
    eps: float,
    clip: tuple[float, float] | None = None,
    max_symbols: int | None = None,
    arithmetic: str = "real",
    batch_size: int = 25,
) -> tuple[BallCertificate, ...]:
    """`ball_certificate` for each of a batch of inputs.

    Parameters
    ----------
    f, g, eps, clip, max_symbols, arithmetic
        As for `ball_certificate`.
    x : (N, ...) ndarray
    batch_size : int
        How many are followed at once; memory grows with it.

    Returns
    -------
    tuple of N BallCertificate

    Raises
    ------
    CompressionError
        As `ball_certificate`.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> f, g = (Sequential((Dense(np.eye(2) * s),)) for s in (1.0, 1.25))
    >>> found = ball_certificates(f, g, np.array([[3.0, 1.0], [1.0, 1.0]]), eps=0.5)
    >>> [c.same_class for c in found]
    [True, False]
    """
    points = finite_array(x, "x").astype(np.float64)
    radius = as_float(eps, "eps", 0.0)
    low, high = points - radius, points + radius
    # Outward, since the ball's ends were rounded; clipping is exact.
    low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
    if radius == 0:
        low = high = points
    if clip is not None:
        low, high = np.clip(low, *clip), np.clip(high, *clip)
    step = as_int(batch_size, "batch_size", 1)
    certificates: list[BallCertificate] = []
    for start in range(0, len(points), step):
        rows = slice(start, start + step)
        outputs, f_error, g_error = _evaluated(f, g, low[rows], high[rows], max_symbols, arithmetic)
        lower, upper = outputs.d.interval()
        lower, upper = _widened(lower, upper, f_error + g_error)
        d_pairs = _pairs(outputs.d, f_error + g_error)
        f_pairs = _pairs(outputs.f, f_error)
        g_pairs = _pairs(outputs.f.add(outputs.d), g_error)
        for i in range(len(lower)):
            f_wins = _wins(-f_pairs[i])
            g_wins = _wins(np.maximum(-g_pairs[i], -f_pairs[i] - d_pairs[i]))
            certificates.append(
                BallCertificate(
                    freeze(lower[i].copy()), freeze(upper[i].copy()), bool((f_wins & g_wins).any())
                )
            )
    return tuple(certificates)


def domain_certificate(
    f: Sequential,
    g: Sequential,
    lo: ArrayLike,
    hi: ArrayLike,
    *,
    max_symbols: int | None = None,
    arithmetic: str = "real",
) -> DomainCertificate:
    """Bound g - f over a whole box of inputs, such as that of the data.

    Parameters
    ----------
    f, g : Sequential
    lo, hi : ndarray, one input without a batch axis
        The corners of the box, ``lo <= hi``.
    max_symbols, arithmetic
        As for `ball_certificate`.

    Returns
    -------
    DomainCertificate
        Its `keeps` tells from f's logits at an input of the box whether g's class is f's.

    Raises
    ------
    CompressionError
        As `ball_certificate`; or lo is above hi somewhere.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> f = Sequential((Dense(np.array([[1.0, -1.0]])),))
    >>> g = Sequential((Dense(np.array([[1.25, -1.0]])),))
    >>> certificate = domain_certificate(f, g, np.array([-1.0]), np.array([1.0]))
    >>> certificate.keeps(f(np.array([[0.5], [0.1]])))  # margins 1.0 and 0.2, against 0.25
    array([ True, False])
    """
    low, high = (finite_array(v, n).astype(np.float64)[None] for v, n in ((lo, "lo"), (hi, "hi")))
    if low.shape != high.shape or (low > high).any():
        raise CompressionError("lo and hi must have one shape, and lo must not be above hi")
    outputs, f_error, g_error = _evaluated(f, g, low, high, max_symbols, arithmetic)
    error = f_error + g_error
    lower, upper = _widened(*outputs.d.interval(), error)
    # pairs[c, k] is the most that d_k - d_c can be
    return DomainCertificate(
        freeze(lower[0]), freeze(upper[0]), freeze(_pairs(outputs.d, error)[0])
    )


def certified_fraction(
    f: Sequential,
    g: Sequential,
    x: ArrayLike,
    *,
    eps: float,
    clip: tuple[float, float] | None = None,
    max_symbols: int | None = None,
    arithmetic: str = "real",
) -> float:
    """The fraction of inputs on whose whole ball f and g provably have one and the same class.

    Parameters
    ----------
    f, g, eps, clip, max_symbols, arithmetic
        As for `ball_certificate`.
    x : (N, ...) ndarray

    Returns
    -------
    float
        In [0, 1]. How robust f is by itself is its ceiling.

    Raises
    ------
    CompressionError
        As `ball_certificate`.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> f, g = (Sequential((Dense(np.eye(2) * s),)) for s in (1.0, 1.25))
    >>> certified_fraction(f, g, np.array([[3.0, 1.0], [1.0, 1.0]]), eps=0.5)
    0.5
    """
    found = ball_certificates(
        f, g, x, eps=eps, clip=clip, max_symbols=max_symbols, arithmetic=arithmetic
    )
    return sum(c.same_class for c in found) / max(len(found), 1)


def _evaluated(
    f: Sequential,
    g: Sequential,
    low: Array,
    high: Array,
    max_symbols: int | None,
    arithmetic: str,
) -> tuple[Pair, Array, Array]:
    """The zonotopes of the outputs, and how far each network computes from its own (B, classes)."""
    choice(arithmetic, "arithmetic", ARITHMETICS)
    errors = [np.zeros_like(low), np.zeros_like(low)]

    def watch(a: Layer, b: Layer, pair: Pair) -> None:
        dtype = np.dtype(arithmetic)
        for i, (layer, z) in enumerate(((a, pair.f), (b, pair.f.add(pair.d)))):
            errors[i] = float_error(layer, z.size(), errors[i], dtype)

    if arithmetic != "real":
        return follow(f, g, low, high, max_symbols, watch), errors[0], errors[1]
    outputs = follow(f, g, low, high, max_symbols)
    return outputs, *(np.zeros_like(outputs.f.center) for _ in range(2))  # type: ignore[return-value]


def _widened(lower: Array, upper: Array, error: Array) -> tuple[Array, Array]:
    if not error.any():
        return lower, upper
    return np.nextafter(lower - error, -np.inf), np.nextafter(upper + error, np.inf)


def _pairs(z: Zonotope, error: Array) -> Array:
    """[b, c, k]: an upper bound of z_k - z_c, each of them off by up to its error."""
    center = z.center[:, None, :] - z.center[:, :, None]
    generators = np.abs(z.generators[:, :, None, :] - z.generators[:, :, :, None]).sum(1)
    box = z.box + error
    reach = generators + box[:, None, :] + box[:, :, None]
    reach = reach * (1 + gamma(z.generators.shape[1] + 8))
    size = z.size()
    pairs = center + reach + 4 * UNIT * (size[:, None, :] + size[:, :, None] + reach)
    diagonal = np.arange(z.center.shape[1])
    pairs[:, diagonal, diagonal] = 0.0
    return np.asarray(pairs)


def _wins(margins: Array) -> Array:
    """Which classes c have a positive margin[c, k] over every other class k."""
    margins = margins + np.diag(np.full(len(margins), np.inf))
    return np.asarray((margins > 0).all(1))
