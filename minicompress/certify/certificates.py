"""Certificates that two networks agree on whole sets of inputs.

At one known input there is nothing to prove: run both. A certificate earns its name by holding
where nobody ran anything: for every input within eps of x, or in the whole box of the data. What
holds there is read off the two zonotopes that `following.follow` brings to the outputs: of all
values of the original f, and of the difference g - f; and off what `float_error` says that the
engine's rounding can add.

A certificate speaks of the networks as they are given and as `apply` runs them. The integers that
`to_integer` makes of one round otherwise: nothing here holds for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import (
    Array,
    DType,
    Value,
    as_float,
    as_int,
    choice,
    finite_array,
    float_array,
    freeze,
    interval,
)
from minicompress.certify.float_error import Values, float_error
from minicompress.certify.following import Pair, follow
from minicompress.certify.margins import limits, margins, widened, wins
from minicompress.certify.pairs import paired
from minicompress.errors import CompressionError
from minicompress.nn.network import Network
from minicompress.norms import UNIT
from minicompress.representation import dtype_of

ARITHMETICS = ("native", "real")


@dataclass(frozen=True, eq=False, repr=False)
class _Certificate(Value):
    """What certificates share: bounds of g - f, the box they hold on, and whose arithmetic."""

    lower: Array
    upper: Array
    low: Array
    high: Array
    arithmetic: str

    @property
    def bound(self) -> float:
        """The largest difference that any output can have; infinite where nothing is known."""
        return float(max(np.abs(self.lower).max(initial=0), np.abs(self.upper).max(initial=0)))

    def covers(self, x: ArrayLike) -> Array:
        """Which rows of inputs lie in the box, (N,) bools. A row with NaN does not."""
        rows = float_array(x, "x")
        if rows.shape[1:] != self.low.shape or rows.ndim != self.low.ndim + 1:
            raise CompressionError(f"x must be rows of shape {self.low.shape}, not {rows.shape}")
        inside = (self.low <= rows) & (rows <= self.high)
        return np.asarray(inside.reshape(len(rows), self.low.size).all(1))


@dataclass(frozen=True, eq=False, repr=False)
class BallCertificate(_Certificate):
    """What holds for every input within eps of one input.

    Parameters
    ----------
    lower, upper : (classes,) ndarray
        Bounds of g - f, output by output.
    low, high : ndarray of the shape of an input
        The box of inputs that it holds for.
    arithmetic : "float16" | "float32" | "float64" | "real"
        Whose outputs and classes it speaks of: those that `apply` returns, or the exact ones.
    same_class : bool
        f and g have one and the same class on the whole ball.
    """

    same_class: bool


@dataclass(frozen=True, eq=False, repr=False)
class DomainCertificate(_Certificate):
    """What holds for every input of a box.

    Parameters
    ----------
    lower, upper, low, high, arithmetic
        As for `BallCertificate`.
    pairwise : (classes, classes) ndarray
        ``pairwise[c, k]``: how much g can favour class k over class c more than f does.
    error : (classes,) ndarray
        How far the logits that f computes can be from those that `pairwise` speaks of: 0 unless
        the arithmetic is real.
    """

    pairwise: Array
    error: Array

    def keeps(self, logits: ArrayLike, x: ArrayLike) -> Array:
        """For which inputs g certainly has f's class, from f's logits there alone.

        Parameters
        ----------
        logits : (N, classes) ndarray
            ``apply(f, x)``. g need never be run.
        x : (N, ...) ndarray
            The inputs. Nothing is known of those outside of the box.

        Returns
        -------
        (N,) ndarray of bool
            The input lies in the box, and the margin over every other class is above what
            `pairwise` can take away. Rows with infinite or NaN logits are not kept, and none is
            where `bound` is infinite.
        """
        z = float_array(logits, "logits", ndim=2).astype(np.float64)
        inside = self.covers(x)
        if z.shape != (len(inside), len(self.pairwise)):
            raise CompressionError(
                f"logits must be ({len(inside)}, {len(self.pairwise)}), a row for each of x and a "
                f"column for each class, not {z.shape}"
            )
        best = z.argmax(1)
        with np.errstate(over="ignore", invalid="ignore"):
            ahead = np.take_along_axis(z, best[:, None], 1) - z
            size = np.abs(z).max(1, keepdims=True, initial=0)
            # Of exact outputs f's own class must be certain too, which the logits only come near.
            least = self.pairwise if self.arithmetic != "real" else np.maximum(self.pairwise, 0)
            lost = widened(least[None], self.error[None])[0]
            kept = ahead - 4 * UNIT * (np.abs(z) + size) > lost[best]
        kept[np.arange(len(z)), best] = True
        known = np.isfinite(z).all(1) & np.isfinite(self.bound)
        return np.asarray(kept.all(1) & inside & known)


def ball_certificate(
    f: Network,
    g: Network,
    x: ArrayLike,
    *,
    eps: float,
    clip: tuple[float, float] | None = None,
    max_symbols: int | None = None,
    arithmetic: str = "native",
) -> BallCertificate:
    """Bound g - f over all inputs within eps of one input.

    Parameters
    ----------
    f, g : Network
        The original and the compressed network: the same types of layers, which read the same
        values, and one output. All layers are followed but `Softmax` and `LocalResponseNorm`.
    x : ndarray, one input without a batch axis
    eps : float, at least 0
        In the largest-entry norm, so that every entry may move by eps.
    clip : (lo, hi), optional
        The range of valid inputs, which the ball does not leave; lo <= hi.
    max_symbols : int, optional
        Symbols that are kept apart; the least of the others are boxed. Sound for any number;
        a smaller one is faster, takes less memory and is less tight.
    arithmetic : "native" | "real"
        Native: of the numbers that `apply` returns, whatever else is in the batch, in the dtype of
        f and g; the rounding of both is added. Infinite where that dtype can overflow. Real: of
        the exact outputs.

    Returns
    -------
    BallCertificate

    Raises
    ------
    CompressionError
        The layers do not correspond, one is of a type that is not followed, x does not fit, the
        networks are not of one dtype, or `clip` is no range.

    Notes
    -----
    It holds for f and g, not for what `to_integer` makes of g: integers round otherwise. In native
    arithmetic f is apart from itself, too, by the rounding of two runs.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> from minicompress.nn.pointwise import ReLU
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
    f: Network,
    g: Network,
    x: ArrayLike,
    *,
    eps: float,
    clip: tuple[float, float] | None = None,
    max_symbols: int | None = None,
    arithmetic: str = "native",
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
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> f, g = (Sequential((Dense(np.eye(2) * s),)) for s in (1.0, 1.25))
    >>> found = ball_certificates(f, g, np.array([[3.0, 1.0], [1.0, 1.0]]), eps=0.5)
    >>> [c.same_class for c in found]
    [True, False]
    """
    given = finite_array(x, "x")
    points, radius = given.astype(np.float64), as_float(eps, "eps", 0.0)
    low = high = points
    if radius > 0:  # outward, since the ball's ends are rounded
        with np.errstate(over="ignore"):
            low = np.nextafter(points - radius, -np.inf)
            high = np.nextafter(points + radius, np.inf)
    if clip is not None:
        low, high = (np.clip(end, *interval(clip, "clip")) for end in (low, high))
    step = as_int(batch_size, "batch_size", 1)
    named, dtypes = _arithmetic(f, g, arithmetic, given.dtype)
    certificates: list[BallCertificate] = []
    for start in range(0, len(points), step):
        rows = slice(start, start + step)
        with np.errstate(all="ignore"):
            outputs, f_error, g_error = _evaluated(f, g, low[rows], high[rows], max_symbols, dtypes)
            if named == "real":
                f_error = g_error = np.zeros_like(f_error)
            lower, upper = limits(outputs.d, f_error + g_error)
            f_pairs, d_pairs = margins(outputs.f), widened(margins(outputs.d), g_error)
            g_pairs = widened(margins(outputs.f.add(outputs.d)), g_error)
            f_wins = wins(-widened(f_pairs, f_error))
            g_wins = wins(np.maximum(-g_pairs, -f_pairs - d_pairs))
            # Outputs that may overflow have no class, even where there is but one.
            known = (np.isfinite(lower) & np.isfinite(upper)).all(1)
        same_class = np.asarray((f_wins & g_wins).any(1) & known).tolist()
        for *ends, same in zip(lower, upper, low[rows], high[rows], same_class, strict=True):
            a, b, c, d = (freeze(end.copy()) for end in ends)
            certificates.append(BallCertificate(a, b, c, d, named, same))
    return tuple(certificates)


def domain_certificate(
    f: Network,
    g: Network,
    lo: ArrayLike,
    hi: ArrayLike,
    *,
    max_symbols: int | None = None,
    arithmetic: str = "native",
) -> DomainCertificate:
    """Bound g - f over a whole box of inputs, such as that of the data.

    Parameters
    ----------
    f, g : Network
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

    Notes
    -----
    As for `ball_certificate`.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> f = Sequential((Dense(np.array([[1.0, -1.0]])),))
    >>> g = Sequential((Dense(np.array([[1.25, -1.0]])),))
    >>> certificate = domain_certificate(f, g, np.array([-1.0]), np.array([1.0]))
    >>> x = np.array([[0.5], [0.1], [2.0]])
    >>> certificate.keeps(f(x), x)  # margins 1.0 and 0.2, against 0.25; 2.0 is outside of the box
    array([ True, False, False])
    """
    corners = [finite_array(v, n) for v, n in ((lo, "lo"), (hi, "hi"))]
    low, high = (corner.astype(np.float64) for corner in corners)
    if low.shape != high.shape or (low > high).any():
        raise CompressionError("lo and hi must have one shape, and lo must not be above hi")
    named, dtypes = _arithmetic(f, g, arithmetic, corners[0].dtype)
    with np.errstate(all="ignore"):
        outputs, f_error, g_error = _evaluated(f, g, low[None], high[None], max_symbols, dtypes)
        logits_error = none = np.zeros_like(f_error)
        if named == "real":
            logits_error, f_error, g_error = f_error, none, none
        lower, upper = limits(outputs.d, f_error + g_error)
        pairwise = widened(margins(outputs.d), f_error + g_error)  # the most that d_k - d_c can be
    a, b, c, d = (freeze(end.copy()) for end in (lower[0], upper[0], low, high))
    return DomainCertificate(a, b, c, d, named, freeze(pairwise[0]), freeze(logits_error[0]))


def _arithmetic(
    f: Network, g: Network, arithmetic: str, given: DType
) -> tuple[str, tuple[DType, DType]]:
    """The name of the arithmetic, and the dtypes that the networks run in."""
    choice(arithmetic, "arithmetic", ARITHMETICS)
    paired(f, g)
    dtypes = []
    for name, model in (("f", f), ("g", g)):
        found = {dtype_of(rep) for layer in model.layers for rep in layer.parameters().values()}
        if len(found) > 1:
            raise CompressionError(f"{name} must be of one dtype, not {sorted(map(str, found))}")
        dtypes.append(found.pop() if found else given)
    if arithmetic == "real":
        return "real", (dtypes[0], dtypes[1])
    if dtypes[0] != dtypes[1]:
        raise CompressionError(
            f"f and g must be of one dtype, not {dtypes[0]} and {dtypes[1]}, "
            "or arithmetic must be 'real'"
        )
    return str(dtypes[0]), (dtypes[0], dtypes[1])


def _evaluated(
    f: Network,
    g: Network,
    low: Array,
    high: Array,
    max_symbols: int | None,
    dtypes: tuple[DType, DType],
) -> tuple[Pair, Array, Array]:
    """The zonotopes of the outputs, and how far each network computes from its own (B, classes)."""
    errors: dict[int, list[Array]] = {0: [np.zeros_like(low)] * 2}

    def watch(i: int, read: list[Pair]) -> None:
        behind = []
        for k, model in enumerate((f, g)):
            values = [
                Values(*(pair.f.add(pair.d) if k else pair.f).interval(), errors[value][k])
                for value, pair in zip(f.inputs[i], read, strict=True)
            ]
            behind.append(float_error(model.layers[i], values, dtypes[k]))
        errors[i + 1] = behind

    outputs = follow(f, g, low, high, max_symbols, watch)
    f_error, g_error = errors[f.outputs[0]]
    return outputs, f_error, g_error
