"""Networks run in Python's integers: the truth, to which nothing was rounded."""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

import minicompress as mc
from minicompress.nn.kernels.windows import geometry
from minicompress.nn.layers import plain_layers

RATIONAL = (
    mc.Dense, mc.Conv2D, mc.Flatten, mc.Dropout, mc.ReLU, mc.nn.LeakyReLU, mc.MaxPool2D,
    mc.AvgPool2D, mc.GlobalAvgPool2D,
)  # fmt: skip


class Exact(NamedTuple):
    """The numbers ``n * unit``: integers in an object array, times one fraction."""

    n: np.ndarray
    unit: Fraction


def exact(array):
    """Floats as what they are."""
    mantissa, power = np.frexp(np.asarray(array, np.float64))
    whole, power = np.ldexp(mantissa, 53).astype(np.int64), power.astype(np.int64) - 53
    least = int(power[whole != 0].min()) if whole.any() else 0
    shift = np.where(whole == 0, 0, power - least)
    return Exact(whole.astype(object) << shift.astype(object), Fraction(2) ** least)


def plus(a, b, sign=1):
    p, q = a.unit, b.unit
    common = math.gcd(p.numerator * q.denominator, q.numerator * p.denominator)
    unit = Fraction(common, p.denominator * q.denominator)
    return Exact(a.n * int(p / unit) + b.n * (sign * int(q / unit)), unit)


def minus(a, b):
    return plus(a, b, -1)


def is_rational(model):
    return all(isinstance(layer, RATIONAL) for layer in model.layers)


def run_exactly(model, x):
    """What the model's layers, factors one by one, make of a batch when nothing is rounded."""
    y = exact(x)
    for layer in model.layers:
        for part in plain_layers(layer):
            y = _forward(part, y)
    return y


def _forward(layer, x):
    n = x.n
    match layer:
        case mc.Dense():
            weight = exact(layer.weight)
            return _biased(layer, Exact(n @ weight.n, x.unit * weight.unit))
        case mc.Conv2D():
            weight = exact(layer.weight)
            seen = _taps(n, weight.n.shape[:2], layer.stride, layer.padding, layer.dilation)
            total = sum(_grouped(v, weight.n[place], layer.groups) for place, v in seen)
            return _biased(layer, Exact(total, x.unit * weight.unit))
        case mc.Flatten():
            return Exact(n.reshape(len(n), -1), x.unit)
        case mc.ReLU():
            return Exact(np.maximum(n, 0), x.unit)
        case mc.nn.LeakyReLU():
            slope = Fraction(layer.negative_slope)
            n = np.where(n > 0, n * slope.denominator, n * slope.numerator)
            return Exact(n, x.unit / slope.denominator)
        case mc.GlobalAvgPool2D():
            return Exact(n.sum((1, 2)), x.unit / math.prod(n.shape[1:3]))
        case mc.MaxPool2D():
            seen = _pooled(layer, n, fill=min(n.ravel().tolist(), default=0) - 1)
            return Exact(np.maximum.reduce(seen), x.unit)
        case mc.AvgPool2D():
            ones = np.ones((1, *n.shape[1:3], 1), object)
            counts = sum(_pooled(layer, ones, fill=int(layer.count_include_pad)))
            common = math.lcm(*counts.ravel().tolist())
            return Exact(sum(_pooled(layer, n)) * (common // counts), x.unit / common)
    return x  # Dropout


def _biased(layer, y):
    return y if layer.bias is None else plus(y, exact(layer.bias))


def _grouped(x, matrix, groups):
    parts = zip(np.split(x, groups, -1), np.split(matrix, groups, -1), strict=True)
    return np.concatenate([a @ b for a, b in parts], -1)


def _pooled(layer, n, fill=0):
    stride = layer.window if layer.stride is None else layer.stride
    return [v for _, v in _taps(n, layer.window, stride, layer.padding, 1, fill)]


def _taps(n, window, stride, padding, dilation, fill=0):
    """For each place of the window what it sees, (N, oh, ow, C)."""
    g = geometry(n.shape[1:3], window, stride, padding, dilation)
    (h, w), (top, left) = n.shape[1:3], (g.pads[0][0], g.pads[1][0])
    padded = np.full((len(n), h + sum(g.pads[0]), w + sum(g.pads[1]), n.shape[3]), fill, object)
    padded[:, top : top + h, left : left + w] = n
    for place in np.ndindex(*g.kernel):
        starts = [p * d for p, d in zip(place, g.dilation, strict=True)]
        rows, columns = (
            slice(start, start + (count - 1) * step + 1, step)
            for start, count, step in zip(starts, g.output, g.stride, strict=True)
        )
        yield place, padded[:, rows, columns]


# Against floats -----------------------------------------------------------------------------------


def squares(x):
    """The squared norm of every row, as a fraction."""
    return [int(n) * x.unit**2 for n in (x.n.reshape(len(x.n), -1) ** 2).sum(1)]


def is_above(truth, bound, power=1):
    """Whether a fraction is above a power of a float; infinity bounds everything, NaN nothing."""
    bound = float(bound)
    return not (bound == math.inf or (math.isfinite(bound) and truth <= Fraction(bound) ** power))


def quotient(truth, bound, power=1):
    """[r] for the r with truth = (r bound)**power, 2 at most; [] where that says nothing."""
    if not (0 < bound < math.inf and truth < math.inf):
        return []
    ratio = Fraction(truth) / Fraction(float(bound)) ** power
    return [float(min(ratio, 2**power)) ** (1 / power)]


def root_above(square):
    """A float at or above the root of a fraction."""
    square = Fraction(square)
    shift = 120 + max(0, square.denominator.bit_length() - square.numerator.bit_length())
    root = math.isqrt((square.numerator << (2 * shift)) // square.denominator) + 1
    try:
        return float(np.nextafter(float(Fraction(root, 1 << shift)), np.inf)) if square else 0.0
    except OverflowError:
        return math.inf
