"""The sets of inputs that are certified, and inputs of them where two networks are likely apart."""

import numpy as np

import minicompress as mc
from minicompress.nn.gradient import vjp

# Sets ---------------------------------------------------------------------------------------------


def radius(rng, x, power):
    """How far inputs may go: not at all, by next to nothing, by a share of their size, by far."""
    info, size = np.finfo(x.dtype), float(np.ldexp(1.0, int(np.clip(power, -1000, 1000))))
    far = rng.choice(["not", "an ulp", "a share", "far"], p=[0.25, 0.15, 0.5, 0.1])
    if far == "not" or (not x.all() and rng.random() < 0.5):  # exact zeros stay what they are
        return 0.0
    if far == "an ulp":
        return max(size * float(info.eps), float(info.smallest_subnormal))
    return float(size * 2.0 ** (rng.integers(1, 7) if far == "far" else -rng.integers(1, 9)))


def ball_ends(x, eps, clip):
    """The least and the largest inputs of x's dtype that lie in the ball around x, exactly."""

    def lower(point):
        """The least float64 that is not below point - eps: the rounding error is found exactly."""
        low = point - eps
        part = low - point
        error = (point - (low - part)) + (-eps - part)
        return np.where(error > 0, np.nextafter(low, np.inf), low)

    wide, top = x.astype(np.float64), float(np.finfo(x.dtype).max)
    low, high = lower(wide), -lower(-wide)
    if clip is not None:
        low, high = np.clip(low, *clip), np.clip(high, *clip)
    return inward(np.clip(low, -top, top), np.clip(high, -top, top), x.dtype)


def inward(low, high, dtype):
    """The ends of a box, rounded to a dtype towards its inside."""
    a, b = low.astype(dtype), high.astype(dtype)
    a = np.where(a < low, np.nextafter(a, dtype.type(np.inf)), a)
    return a, np.where(b > high, np.nextafter(b, dtype.type(-np.inf)), b)


def reaches_ends(x, eps):
    """Whether x - eps and x + eps are numbers of x's dtype: a search then stays in the ball."""
    wide = x.astype(np.float64)
    ends = np.stack([wide - eps, wide + eps])
    return bool((ends.astype(x.dtype) == ends).all() and (np.abs(ends - wide) == eps).all())


# Inputs -------------------------------------------------------------------------------------------


def searched(rng, f, g, x, low, high, count):
    """x, corners, other points of [low, high], and where gradients and kinks lead from them.

    f and g have plain arrays for weights; as many inputs as `count`, and up to as many again.
    """
    ends = low.astype(np.float64), high.astype(np.float64)
    t = rng.uniform(-1, 1, (count, *x.shape))
    t[: count // 2] = np.sign(t[: count // 2])  # corners
    t[count // 3 : 2 * count // 3] *= rng.random(x.shape) < 0.4  # only some entries move

    def within(z):
        return np.clip(np.nan_to_num(z), *ends).astype(x.dtype)

    points = within(ends[0] / 2 + ends[1] / 2 + t * (ends[1] / 2 - ends[0] / 2))
    points[-1] = x
    rows = points[rng.permutation(count)[: 1 + count // 4]]
    found = [_climbed(rng, f, g, rows, low, high), *(_kinks(rng, m, rows) for m in (f, g))]
    return np.concatenate([points, *map(within, found)])


def beyond(rng, points, low, high, count):
    """Inputs with one entry outside of [low, high], by a last bit or by more."""
    outside = points[rng.permutation(len(points))[:count]].copy()
    flat, rows = outside.reshape(len(outside), -1), np.arange(len(outside))
    place = rng.integers(0, flat.shape[1], len(rows))
    a, b = low.ravel()[place], high.ravel()[place]
    one, infinity = a.dtype.type(2.0 ** rng.integers(-3, 4)), a.dtype.type(np.inf)
    choices = [np.nextafter(a, -infinity), np.nextafter(b, infinity), a - one * np.abs(a) - one,
               b + one * np.abs(b) + one]  # fmt: skip
    flat[rows, place] = np.stack(choices)[rng.integers(0, 4, len(rows)), rows]
    moved = flat[rows, place]
    return outside[((moved < a) | (moved > b)) & np.isfinite(moved)]


def _gradient(model, rows, seed):
    y, pullback = vjp(model, rows)
    return y, np.nan_to_num(pullback(seed(y))[0].astype(np.float64))


def _climbed(rng, f, g, rows, low, high):
    """From every row to the corner where the difference of an output, or a margin, should grow."""
    n, line = np.arange(len(rows)), (-1, *[1] * (rows.ndim - 1))
    which, other = rng.integers(0, 1000, (2, len(rows)))
    sign, margin = rng.choice([-1, 1], len(rows)), rng.random(len(rows)) < 0.3

    def seed(y):
        dy = np.zeros_like(y)
        dy[n, other % y.shape[1]] -= sign * margin
        dy[n, which % y.shape[1]] += sign
        return dy

    (_, df), (_, dg) = (_gradient(model, rows, seed) for model in (f, g))
    up = dg - np.where(margin & (rng.random(len(rows)) < 0.5), 0, 1).reshape(line) * df
    return np.where(up > 0, high, np.where(up < 0, low, rows))


def _kinks(rng, model, rows):
    """From every row towards where an entry that a ReLU sees is exactly 0."""
    bends = [
        i for i, v in enumerate(model.layers) if isinstance(v, mc.ReLU | mc.nn.LeakyReLU) and i
    ]
    if not bends:
        return rows[:0]
    part = mc.Sequential(model.layers[: bends[rng.integers(len(bends))]])
    n, line = np.arange(len(rows)), (-1, *[1] * (rows.ndim - 1))
    place = rng.integers(0, 1000, len(rows))

    def seed(y):
        dy = np.zeros((len(y), y[0].size), y.dtype)
        dy[n, place % y[0].size] = 1
        return dy.reshape(y.shape)

    y, dx = _gradient(part, rows, seed)
    flat = y.reshape(len(y), -1).astype(np.float64)
    size = np.abs(dx.reshape(len(dx), -1)).max(1, initial=1e-300)
    step = dx / size.reshape(line)  # of size 1, so that its square is a good number
    length = flat[n, place % flat.shape[1]] / size
    return (
        rows - (length / np.maximum((step**2).reshape(len(dx), -1).sum(1), 1)).reshape(line) * step
    )
