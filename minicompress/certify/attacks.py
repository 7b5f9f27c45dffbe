"""The other side of a certificate: inputs that are searched for, where two networks differ most."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from minicompress.arrays import Array, as_float, as_int, finite_array, generator, interval
from minicompress.certify.pairs import paired
from minicompress.errors import CompressionError
from minicompress.nn.gradient import vjp
from minicompress.nn.network import Network, apply
from minicompress.nn.parameters import decoded


def attack(
    f: Network,
    g: Network,
    x: ArrayLike,
    *,
    eps: float,
    rng: np.random.Generator,
    clip: tuple[float, float] | None = None,
    starts: int = 4,
    steps: int = 2,
) -> Array:
    """The largest difference of any output that a search finds within eps of each input.

    Parameters
    ----------
    f, g : Network
        As for `ball_certificate`: layers that correspond, one number per class as output. Every
        layer with a gradient is climbed.
    x : (N, ...) ndarray
    eps : float, at least 0
        In the largest-entry norm.
    rng : numpy.random.Generator
        For the corners where the search starts.
    clip : (lo, hi), optional
        The range of valid inputs.
    starts, steps : int
        Corners beside x itself, and sign-gradient steps from each, for every output and sign.

    Returns
    -------
    (N,) ndarray of float64
        A lower bound of the truth: what was found, as the networks compute it. A certificate is
        an upper bound; the truth lies between.

    Raises
    ------
    CompressionError
        An argument is out of range, the layers do not correspond, or x does not fit the networks.

    Notes
    -----
    ``g_k - f_k`` is climbed, and descended, to the corner of the ball that its gradient points to
    (I. Goodfellow, J. Shlens and C. Szegedy, 2015), where the step is taken again.

    Examples
    --------
    >>> from minicompress.nn.composition import Sequential
    >>> from minicompress.nn.layers import Dense
    >>> f, g = (Sequential((Dense(np.eye(2) * s),)) for s in (1.0, 1.25))
    >>> attack(f, g, np.array([[3.0, 1.0]]), eps=1.0, rng=np.random.default_rng(0))
    array([1.])
    """
    points, radius = finite_array(x, "x"), as_float(eps, "eps", 0.0)
    paired(f, g)
    plain_f, plain_g = decoded(f), decoded(g)  # for the gradients; what is compared is what runs
    ends = None if clip is None else interval(clip, "clip")

    def within(z: Array) -> Array:
        z = np.clip(z, points - radius, points + radius)
        return (z if ends is None else np.clip(z, *ends)).astype(points.dtype)

    def difference(z: Array) -> Array:
        apart = apply(g, z).astype(np.float64) - apply(f, z).astype(np.float64)
        return np.asarray(np.abs(apart).max(1, initial=0.0))

    shape = apply(f, points).shape
    if len(shape) != 2:
        raise CompressionError(
            f"the networks must give one number per class, not shape {shape[1:]}"
        )
    best = difference(points)
    corners = [
        within(points + radius * generator(rng).choice([-1.0, 1.0], points.shape))
        for _ in range(as_int(starts, "starts", 0))
    ]
    for start in (points, *corners):
        best = np.maximum(best, difference(start))
        for k, sign in np.ndindex(shape[1], 2):
            z = start
            for _ in range(as_int(steps, "steps", 0)):
                direction = _gradient(plain_g, z, k) - _gradient(plain_f, z, k)
                z = within(points + (2 * sign - 1) * radius * np.sign(direction))
                best = np.maximum(best, difference(z))
    return best


def _gradient(model: Network, x: Array, output: int) -> Array:
    y, pullback = vjp(model, x)
    seed = np.zeros_like(y)
    seed[:, output] = 1
    dx, _ = pullback(seed)
    assert dx is not None  # it was not forgone
    return dx
