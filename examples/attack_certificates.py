"""Attack certificates by the million, and see that none of them is beaten.

A certificate says how far two networks can be apart on a whole set of inputs. Here networks are
drawn that compute where floating point is at its worst (examples/attacks/networks.py), and inputs
that may break what was certified (inputs.py): corners, kinks, where gradients lead, and just
outside of the set. One attack is one input at which both networks run and are compared with one
certificate: the difference of what `apply` returns, and the classes that were promised. Where a sum
overflows, the certificate must bound nothing and promise nothing. A certificate for real arithmetic
is compared with the truth in integers (exact.py).

    python examples/attack_certificates.py [--attacks 1000000] [--seed 0] [--case N]

It ends with status 1 if a certificate was beaten; `--case N` runs that one case again and shows it.
The products are small: with OMP_NUM_THREADS=1 a million attacks take some two minutes.
"""

import argparse
import math
import sys
import time
from collections import Counter, defaultdict
from decimal import Decimal
from functools import partial
from typing import NamedTuple

import numpy as np
from attacks.exact import (
    exact,
    is_above,
    is_rational,
    minus,
    quotient,
    root_above,
    run_exactly,
    squares,
)
from attacks.inputs import ball_ends, beyond, inward, radius, reaches_ends, searched
from attacks.networks import SCALES, compared, network, numbers

import minicompress as mc
from minicompress.certify.attacks import attack as sign_gradients
from minicompress.certify.certificates import ball_certificates, domain_certificate
from minicompress.certify.lipschitz import output_bound
from minicompress.certify.operator_norms import conv_norm_upper
from minicompress.nn.gradient import vjp
from minicompress.nn.network import value_shapes
from minicompress.nn.parameters import decoded

DTYPES = tuple(map(np.dtype, (np.float16, np.float32, np.float64)))
SHOWN = 10  # beaten certificates that are told of on standard error


class Case(NamedTuple):
    """Two networks of one form, and what was drawn with them."""

    f: mc.Sequential
    g: mc.Sequential
    x: np.ndarray  # a batch of three inputs
    power: float  # the power of two that they are about the size of
    options: dict  # of a certificate
    shapes: tuple  # between the layers of f
    compressed: list  # (weight, what its compressor returned)
    rows: list  # (heading, name): the rows of the table in which it counts


class Result(NamedTuple):
    """Attacks of one kind on one case."""

    kind: str
    certificates: int
    finite: int  # those of them that bound anything
    attacks: int
    ratios: tuple = ()  # truth / bound, one for each certificate that has both
    beaten: tuple = ()  # (why, where), one for each attack that beat its certificate
    promises: int = 0  # inputs at which a class was promised


# How the library is called: all there is to change where it is called otherwise ------------------


def certified_balls(case, x, eps, clip=None, **options):
    return ball_certificates(case.f, case.g, x, eps=eps, clip=clip, **case.options | options)


def certified_domain(case, low, high, **options):
    return domain_certificate(case.f, case.g, low, high, **case.options | options)


def kept(certificate, logits, x):
    """At which x the certificate promises that g has f's class."""
    finite, promised = np.isfinite(logits).all(1), np.zeros(len(x), bool)
    if finite.any():
        promised[finite] = certificate.keeps(logits[finite], x[finite])
    return promised


def covered(certificate, x):
    """At which x the certificate holds, as it says itself."""
    return certificate.covers(x)


# Attacks ------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Inputs, what both networks make of them, and where all of that is finite."""

    x: np.ndarray
    f: np.ndarray
    g: np.ndarray
    finite: np.ndarray


def both(case, x):
    f, g = mc.nn.apply(case.f, x), mc.nn.apply(case.g, x)
    return Run(x, f, g, np.isfinite(f).all(1) & np.isfinite(g).all(1))


def told(why, certificate, run, wrong):
    """A pair (why, where) for every row that is wrong; only the first says where."""
    rows = np.flatnonzero(wrong)
    if not len(rows):
        return []
    x, f, g = (v[rows[0]].tolist() for v in run[:3])
    bounds = f"{certificate.lower.tolist()} to {certificate.upper.tolist()}"
    where = f"x = {x}\n    f(x) = {f}\n    g(x) = {g}\n    certified: g - f from {bounds}"
    return [(why, where)] * len(rows)


def differences(c, run):
    """What beats the bounds of a certificate, and how near to its bound the truth was seen."""
    d = run.g.astype(np.float64) - run.f.astype(np.float64)
    # Rounding is monotonic: a difference that float64 has beyond a bound is beyond it.
    inside = ((c.lower <= d) & (d <= c.upper) & (np.abs(d) <= c.bound)).all(1)
    missed = ~run.finite & (c.bound != np.inf)
    found = np.abs(d[run.finite & inside]).max(initial=0.0)
    beaten = told("a difference beyond the bounds", c, run, run.finite & ~inside)
    beaten += told("an overflow under a finite bound", c, run, missed)
    other = np.full(len(run.x), c.arithmetic != run.x.dtype)
    return beaten + told("the name of another arithmetic", c, run, other), quotient(found, c.bound)


def attack_balls(rng, case):
    """Balls around every x, of what the networks compute."""
    x, eps = case.x, radius(rng, case.x, case.power)
    low, high = float(x.min()), float(x.max())
    clip = (low, high) if rng.random() < 0.2 and low < high else None
    certificates = certified_balls(case, x, eps, clip)
    f, g = decoded(case.f), decoded(case.g)
    ends = zip(x, *ball_ends(x, eps, clip), strict=True)
    beaten, ratios, promises, attacks = [], [], 0, 0
    for c, box in zip(certificates, ends, strict=True):
        run = both(case, searched(rng, f, g, *box, 48))
        attacks += len(run.x)
        bad, ratio = differences(c, run)
        if c.same_class:
            promises += len(run.x)
            classes = run.f.argmax(1), run.g.argmax(1)
            wrong = ~run.finite | (classes[0] != classes[0][0]) | (classes[1] != classes[0][0])
            bad = bad or told("a class that changes in the ball", c, run, wrong)
        beaten += bad
        ratios += ratio
    if f is case.f and g is case.g and rng.random() < 0.1 and reaches_ends(x, eps):
        found = sign_gradients(f, g, x, eps=eps, rng=rng, clip=clip)
        attacks += len(x)
        beaten += [("a difference beyond the bounds", f"attack at {point}: {d}")
                   for c, point, d in zip(certificates, x, found, strict=True)
                   if math.isfinite(d) and not d <= c.bound]  # fmt: skip
    finite = sum(math.isfinite(c.bound) for c in certificates)
    return Result("ball", len(x), finite, attacks, ratios, beaten, promises)


def attack_domain(rng, case):
    """A box, of what the networks compute; and inputs outside of it, where nothing is promised."""
    x = case.x[0]
    low, high = ball_ends(x, radius(rng, x, case.power), None)
    if rng.random() < 0.3:  # ends that are no numbers of the dtype
        wide = low.astype(np.float64), high.astype(np.float64)
        wide = np.nextafter(wide[0], -np.inf), np.nextafter(wide[1], np.inf)
        low, high = wide if np.isfinite(wide).all() else (low, high)
    c = certified_domain(case, low, high)
    inner = inward(low, high, x.dtype)
    points = searched(rng, decoded(case.f), decoded(case.g), x, *inner, 96)
    run = both(case, points)
    beaten, ratios = differences(c, run)
    promised = kept(c, run.f, points)
    wrong = promised & (~run.finite | (run.f.argmax(1) != run.g.argmax(1)))
    beaten = beaten or told("a class that changes in the box", c, run, wrong)
    outside = beyond(rng, points, *inner, 32)
    if len(outside):
        run = both(case, outside)
        wrong = kept(c, run.f, outside) | covered(c, outside)
        beaten += told("a promise outside of the box", c, run, wrong)
    finite, attacks = int(math.isfinite(c.bound)), len(points) + len(outside)
    return Result("domain", 1, finite, attacks, ratios, beaten, int(promised.sum()))


def attack_real(rng, case):
    """A ball and a box in real arithmetic, against integers."""
    x, eps = case.x[0], radius(rng, case.x, case.power)
    low, high = ball_ends(x, eps, None)
    (ball,) = certified_balls(case, x[None], eps, arithmetic="real")
    domain = certified_domain(case, low, high, arithmetic="real")
    points = searched(rng, decoded(case.f), decoded(case.g), x, low, high, 12)
    f, g = run_exactly(case.f, points), run_exactly(case.g, points)
    d = minus(g, f)
    beaten, ratios = [], []
    columns = [[n * d.unit for n in column] for column in d.n.T]
    for name, c in (("ball", ball), ("box", domain)):
        for k, column in enumerate(columns):
            where = f"{name}, output {k}, from {c.lower[k]} to {c.upper[k]}"
            beaten += [("an exact difference beyond the bounds",
                        f"{where}: {Decimal(v.numerator) / v.denominator:.17g}, {point.tolist()}")
                       for v, point in zip(column, points, strict=True)
                       if is_above(v, c.upper[k]) or is_above(-v, -c.lower[k])]  # fmt: skip
        ratios += quotient(max(abs(v) for column in columns for v in column), c.bound)
    for c, k in np.ndindex(*domain.pairwise.shape):
        apart = max(b - a for a, b in zip(columns[c], columns[k], strict=True))
        if is_above(apart, domain.pairwise[c, k]):
            beaten.append(("an exact difference beyond the bounds", f"box, outputs {c} and {k}"))
    classes = [np.array([row.argmax() for row in y.n]) for y in (f, g)]
    if ball.same_class and len(set(np.concatenate(classes))) > 1:
        beaten.append(("an exact class that changes in the ball", f"{classes} around {x.tolist()}"))
    promised = kept(domain, mc.nn.apply(case.f, points), points)
    if (promised & (classes[0] != classes[1])).any():
        beaten.append(("an exact class that changes in the box", f"{classes}, {promised}"))
    finite = sum(math.isfinite(c.bound) for c in (ball, domain))
    promises = len(points) * ball.same_class
    return Result(
        "real", 2, finite, 2 * len(points), ratios if not beaten else [], beaten, promises
    )


def attack_norms(rng, case):
    """`output_bound`, against integers."""
    x = np.abs(case.x[0])
    points = searched(rng, decoded(case.f), decoded(case.g), x, -x, x, 12)
    reach = root_above(max(squares(exact(points))))
    if reach == math.inf:
        return Result("norms", 0, 0, 0)
    bound = output_bound(case.f, case.g, radius=reach, input_shape=x.shape)
    apart = squares(minus(run_exactly(case.g, points), run_exactly(case.f, points)))
    beaten = [("an exact norm beyond the bound", f"radius {reach}, bound {bound}, {point.tolist()}")
              for s, point in zip(apart, points, strict=True) if is_above(s, bound, 2)]  # fmt: skip
    ratios = quotient(max(apart), bound, 2) if not beaten else []
    return Result("norms", 1, int(math.isfinite(bound)), len(points), ratios, beaten)


def attack_convolutions(rng, case):
    """`conv_norm_upper`, against power iteration and one last step in integers."""
    for layer, shape in zip(case.f.layers, case.shapes[:-1], strict=True):
        if not isinstance(layer, mc.Conv2D) or layer.groups > 1:
            continue
        kernel = mc.decode(layer.weight).astype(np.float64)
        options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        bound = conv_norm_upper(kernel, shape[:2], **options)
        size = np.abs(kernel).max(initial=0.0) or 1.0
        near, alone = (mc.Sequential((mc.Conv2D(k, **options),)) for k in (kernel / size, kernel))
        x = rng.standard_normal((4, *shape))
        for _ in range(12):
            y, pullback = vjp(near, x)
            x, _ = pullback(y)
            x /= np.abs(x).max((1, 2, 3), keepdims=True) + 1e-300
        x = np.rint(x * 2**20)
        pairs = zip(squares(exact(x)), squares(run_exactly(alone, x)), strict=True)
        found = [b / a for a, b in pairs if a]
        beaten = [("a convolution's norm beyond the bound", f"{layer!r} on {shape}: {bound}")
                  for s in found if is_above(s, bound, 2)]  # fmt: skip
        ratios = quotient(max(found, default=0), bound, 2) if not beaten else []
        yield Result("convolution", 1, int(math.isfinite(bound)), len(found), ratios, beaten)


def attack_compressors(case):
    """What compressors said of the error of a weight, against integers."""
    for weight, (rep, cert) in case.compressed:
        error = minus(exact(mc.decode(rep).reshape(1, -1)), exact(weight.reshape(1, -1)))
        (square,) = squares(error)
        bad = is_above(square, cert.bound, 2)
        beaten = [("a weight's error beyond its bound", f"{rep!r}, {cert!r}")] if bad else []
        ratios = quotient(square, cert.bound, 2) if not bad and weight.size else []
        yield Result("compressor", 1, int(math.isfinite(cert.bound)), 1, ratios, beaten)


# Many of them -------------------------------------------------------------------------------------


def drawn(rng):
    """A case, from a generator of its own."""
    dtype, scale = DTYPES[rng.integers(3)], str(rng.choice(SCALES, p=[0.4, 0.2, 0.2, 0.2]))
    form = rng.choice(["dense", "image", "winograd"], p=[0.45, 0.4, 0.15])
    f, shape, power = network(rng, dtype, scale, form)
    f, g, compressed = compared(rng, f)
    few = form == "winograd" or rng.random() < 0.2
    options = {"max_symbols": int(rng.integers(0, 9))} if few else {}
    layers = {type(layer).__name__ for layer in f.layers}
    layers |= {"Conv2D by Winograd"} if form == "winograd" else set()
    kinds = {type(v).__name__ for n in (f, g) for layer in n.layers
             for v in layer.parameters().values()}  # fmt: skip
    rows = [("dtype", str(dtype)), ("scale", scale), *(("layer", n) for n in layers)]
    rows += [("weights", name.replace("ndarray", "plain arrays")) for name in kinds]
    x = numbers(rng, (3, *shape), power, dtype)
    pixels = {"dense": 0.0, "image": 0.3, "winograd": 0.8}[str(form)]
    if rng.random() < pixels:  # one alone: what lies apart from it is exactly 0
        alone = np.zeros((*shape[:2], 1), dtype)
        alone[tuple(rng.integers(0, shape[:2]))] = 1
        x *= alone
    return Case(f, g, x, power, options, value_shapes(f, shape), compressed, rows)


def attacked(rng, case):
    """The results of attacks on one case, of kinds that are drawn."""
    yield from attack_compressors(case)
    if rng.random() < 0.1:
        yield from attack_convolutions(rng, case)
    kinds, shares = [attack_balls, attack_domain], [0.5, 0.5]
    if is_rational(case.f) and sum(map(math.prod, case.shapes)) < 200:
        kinds, shares = [*kinds, attack_real, attack_norms], [0.38, 0.38, 0.17, 0.07]
    yield kinds[rng.choice(len(kinds), p=shares)](rng, case)


def run_case(seed, number):
    """A case, the results, and why it was refused, if it was; the same for the same numbers."""
    rng = np.random.default_rng([seed, number])
    results, refused = [], []
    with np.errstate(all="ignore"):  # to overflow is what some cases are for
        case = drawn(rng)
        try:
            results.extend(attacked(rng, case))
        except mc.CompressionError as error:  # nothing is certified, so nothing can be beaten
            refused.append(str(error))
        except Exception as error:
            results.append(Result("error", 0, 0, 1, beaten=[("another error", repr(error))]))
    return case, results, refused


class Tally:
    """What came of all cases, for the rows of a table."""

    def __init__(self):
        self.rows = defaultdict(lambda: np.zeros(4, np.int64))
        self.tightest = defaultdict(float)
        self.beaten, self.cases, self.attacks, self.promises, self.refused = Counter(), 0, 0, 0, 0

    def add(self, case, results, refused):
        self.cases += 1
        self.refused += len(refused)
        for r in results:
            self.attacks += r.attacks
            self.promises += r.promises
            self.beaten.update(why for why, _ in r.beaten)
            whole = r.kind in ("ball", "domain", "real", "norms")  # of whole networks
            for row in [("certificate", r.kind), *case.rows * whole]:
                self.rows[row] += (r.certificates, r.finite, r.attacks, len(r.beaten))
                self.tightest[row] = max([self.tightest[row], *r.ratios])

    def print(self):
        for heading in ("certificate", "dtype", "scale", "layer", "weights"):
            print(f"{heading:18} certificates     finite      attacks    beaten  tightest")
            for name in sorted(name for group, name in self.rows if group == heading):
                made, finite, attacks, beaten = self.rows[heading, name]
                print(f"{name:18} {made:12,} {finite:10,} {attacks:12,} {beaten:9,}  "
                      f"{self.tightest[heading, name]:8.6f}")  # fmt: skip
            print()
        print(f"{self.attacks:,} attacks in {self.cases:,} cases, {self.refused:,} of them refused")
        print(f"a class was promised at {self.promises:,} inputs")
        print(f"{sum(self.beaten.values()):,} attacks beat a certificate")
        for why, count in self.beaten.most_common():
            print(f"{count:12,} {why}")


def attack(attacks, seed, report=lambda line: None):
    """Run cases until there were so many attacks; what came of them."""
    tally, start, shown = Tally(), time.perf_counter(), 0
    last = start
    while tally.attacks < attacks:
        number = tally.cases
        case, results, refused = run_case(seed, number)
        tally.add(case, results, refused)
        for why, where in [b for r in results for b in r.beaten][:1]:
            if shown < SHOWN:
                report(f"{why}: --seed {seed} --case {number}\n    {where}")
            shown += 1
        if time.perf_counter() > last + 5:
            last = time.perf_counter()
            report(f"{last - start:4.0f} s: {tally.attacks:,} attacks, {shown:,} cases beaten")
    return tally


def show(seed, number):
    """One case in full."""
    case, results, refused = run_case(seed, number)
    for name, model in (("f", case.f), ("g", case.g)):
        for layer in model.layers:
            print(f"{name}: {layer!r}")
            for key, rep in layer.parameters().items():
                print(f"    {key} = {mc.decode(rep).tolist()}")
    print(f"options: {case.options}")
    print(*(f"refused: {why}" for why in refused), sep="\n")
    for r in results:
        print(f"{r.kind}: {r.attacks} attacks on {r.certificates} certificates, "
              f"{len(r.beaten)} beat one")  # fmt: skip
        print(*(f"{why}: {where}" for why, where in r.beaten[:1]), sep="\n")
    return int(any(r.beaten for r in results))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Try to beat certificates.")
    parser.add_argument("--attacks", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this one again and show it")
    options = parser.parse_args(arguments)
    if options.case is not None:
        return show(options.seed, options.case)
    tally = attack(options.attacks, options.seed, partial(print, file=sys.stderr))
    tally.print()
    return int(bool(tally.beaten))


if __name__ == "__main__":
    sys.exit(main())
