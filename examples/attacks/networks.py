"""Pairs of networks that compute where floating point is at its worst."""

import dataclasses
import math
from functools import partial

import numpy as np

import minicompress as mc
from minicompress.certify.certificates import ball_certificates
from minicompress.nn.convolution import uses_winograd
from minicompress.nn.kernels.windows import geometry
from minicompress.nn.parameters import decoded

SCALES = ("ordinary", "tiny", "huge", "mixed")


def accepted(call):
    """Whether the library takes what a call gives it."""
    try:
        call()
    except mc.CompressionError:
        return False
    return True


def follows(layer, shape=(2, 2, 1)):
    """Whether certificates follow such a layer."""
    f = mc.Sequential((layer, mc.Flatten()))
    return accepted(lambda: ball_certificates(f, f, np.ones((1, *shape)), eps=0.5))


# The least number of channels with which a convolution runs by Winograd's path.
WIDE = next(
    c for c in (2**i for i in range(10))
    if uses_winograd(np.zeros((3, 3, c, c), np.float32), geometry((6, 6), (3, 3), 1, "valid"))
)  # fmt: skip
SLOPES = [s for s in (0.0, 0.01, 0.3, 1.0, -0.5, 1.5) if accepted(partial(mc.nn.LeakyReLU, s))]
# Layers that keep a shape, but for batch normalization, which has weights.
BENDS = [mc.Dropout(0.5), *map(mc.nn.LeakyReLU, SLOPES)]
BENDS += filter(follows, (mc.nn.Sigmoid(), mc.nn.Tanh(), mc.Softmax()))
NORMALIZES = follows(mc.BatchNorm(*np.ones((4, 1))))


def exponent(rng, scale, dtype):
    """The power of two that a layer's outputs shall be about the size of."""
    if scale in ("tiny", "huge") and rng.random() < 0.4:
        scale = "ordinary"  # so that weights are tiny or huge, too
    info = np.finfo(dtype)
    least, normal, top = (math.log2(v) for v in (info.smallest_subnormal, info.tiny, info.max))
    low, high = {
        "ordinary": (-6, 8),
        "loud": (6, 13),
        "tiny": (least - 2, least + 6 if rng.random() < 0.5 else normal + 4),
        "huge": (top - 6, top + 1),
        "mixed": (least, top),
    }[scale]
    return rng.uniform(low, high)


def numbers(rng, shape, power, dtype):
    """An array of about the size 2**power, of one of the kinds that faults are found with."""
    normal, top = rng.standard_normal(shape), float(np.finfo(dtype).max)
    what = rng.integers(12)
    values = normal
    if what == 0:
        values = np.zeros(shape)
    elif what == 1:
        values = np.ones(shape)
    elif what == 2:
        values = np.sign(normal) / 3
    elif what == 3:
        values = normal * 2.0 ** rng.integers(-12, 1, shape)
    elif what == 4:
        values = normal * (rng.random(shape) < 0.3)
    elif what == 5:  # only the largest
        values = normal * (np.abs(normal) == np.abs(normal).max(initial=0.0))
    elif what in (6, 7):
        values, power = np.rint(2 * normal), math.floor(power)
    whole = math.floor(power)
    scaled = np.ldexp(values * 2.0 ** (power - whole), whole)
    return np.clip(scaled, -top, top).astype(dtype)


# One network --------------------------------------------------------------------------------------


class Walk:
    """A network under construction: its layers, and the shape and size of what they put out."""

    def __init__(self, rng, shape, scale, dtype):
        self.rng, self.scale, self.dtype, self.shape, self.layers = rng, scale, dtype, shape, []
        self.power = exponent(rng, scale, dtype)
        self.biased = self.pick([0.1, 0.8])  # the share of its layers that have a bias

    def chance(self, share):
        return self.rng.random() < share

    def whole(self, low, high):
        return int(self.rng.integers(low, high))

    def pick(self, several):
        return several[self.whole(0, len(several))]

    def add(self, layer):
        self.shape = layer.output_shape(self.shape)
        self.layers.append(layer)

    def affine(self, make, shape):
        """A layer with weights that bring what comes in to a size that is drawn."""
        info = np.finfo(self.dtype)
        least, top = math.log2(info.smallest_subnormal), math.log2(info.max)
        grows = self.power + math.log2(math.prod(shape[:-1])) / 2
        wanted = exponent(self.rng, self.scale, self.dtype)
        power = min(max(wanted - grows, least), top - 3)
        self.power = power + grows
        bias = numbers(self.rng, shape[-1:], min(max(self.power, least), top), self.dtype)
        weight = numbers(self.rng, shape, power, self.dtype)
        self.add(make(weight, bias if self.chance(self.biased) else None))

    def select(self, outputs):
        """A dense layer each of whose outputs reads one entry."""
        weight = np.zeros((self.shape[0], outputs), self.dtype)
        weight[self.rng.integers(0, len(weight), outputs), np.arange(outputs)] = 1
        self.add(mc.Dense(weight))

    def bend(self):
        if self.chance(0.5):
            self.add(mc.ReLU())
        elif NORMALIZES and self.chance(0.2):
            scale, offset, mean = (
                numbers(self.rng, self.shape[-1:], power, self.dtype)
                for power in (0, 0, self.power)
            )
            self.add(mc.BatchNorm(scale, offset, mean, np.abs(scale) + self.dtype.type(0.5)))
        else:
            self.add(self.pick(BENDS))

    def convolve(self):
        channels = self.shape[2]
        groups = self.pick([1, 1, 1, channels])
        options = {
            "stride": (self.whole(1, 3), self.whole(1, 3)),
            "padding": self.pick(["valid", "same", 1, ((0, 1), (2, 0))]),
            "dilation": self.pick([1, 1, 2]),
            "groups": groups,
        }
        kernel = self.whole(1, 4), self.whole(1, 4)
        shape = (*kernel, channels // groups, groups * self.whole(1, 4))
        if accepted(lambda: mc.Conv2D(np.zeros(shape), **options).output_shape(self.shape)):
            self.affine(partial(mc.Conv2D, **options), shape)

    def pool(self):
        window = self.whole(1, 4), self.whole(1, 4)
        options = window, self.pick([None, 1, 2]), self.pick(["valid", "valid", "same", 1])
        layer = mc.MaxPool2D(*options)
        if self.chance(0.5):
            layer = mc.AvgPool2D(*options, self.chance(0.5))
        # Not every window fits, and not every padding is followed.
        if accepted(lambda: layer.forward(np.zeros((1, *self.shape)))) and follows(
            layer, self.shape
        ):
            self.add(layer)


def network(rng, dtype, scale, form):
    """A network, the shape of its input, and the power of two that inputs shall be the size of."""
    size = tuple(int(n) for n in rng.integers(1, 7, 3))
    groups = int(rng.choice([1, 1, 1, 2]))  # of the convolution by Winograd's path
    first = int(rng.choice([1, WIDE * groups]))
    shapes = {"dense": size[:1], "image": (*size[:2], (size[2] + 1) // 2),
              "winograd": (4 + size[0] // 3, 4 + size[1] // 3, first)}  # fmt: skip
    walk = Walk(rng, shapes[form], scale, dtype)
    shape, power = walk.shape, walk.power
    if walk.chance(0.2):
        walk.bend()
    if form == "image":
        if walk.chance(0.2):
            walk.pool()
        for _ in range(walk.whole(1, 4)):
            walk.convolve()
            if walk.chance(0.7):
                walk.bend()
            if walk.chance(0.5):
                walk.pool()
    bare = form == "winograd" and walk.chance(0.4)  # nothing else rounds as much
    if form == "winograd":
        if bare:
            walk.biased, walk.scale = 0, walk.pick(["loud", "loud", scale])
        if first == 1:
            walk.affine(mc.Conv2D, (1, 1, 1, WIDE * groups))
        options = {"padding": walk.pick([0, 1, "same"]), "groups": groups}
        walk.affine(partial(mc.Conv2D, **options), (3, 3, WIDE, WIDE * groups))
        if bare:
            walk.add(mc.Flatten())
            walk.select(8)
            return mc.Sequential(tuple(walk.layers)), shape, power
        walk.bend()
    if form != "dense":
        walk.add(mc.GlobalAvgPool2D() if walk.chance(0.3) else mc.Flatten())
    for _ in range(walk.whole(1, 4) if form == "dense" else walk.whole(0, 2)):
        walk.affine(mc.Dense, (walk.shape[0], walk.whole(1, 7)))
        walk.bend()
    if walk.chance(0.8) or not any(layer.parameters() for layer in walk.layers):
        walk.affine(mc.Dense, (walk.shape[0], walk.whole(1, 5)))
    return mc.Sequential(tuple(walk.layers)), shape, power


# And another to compare it with -------------------------------------------------------------------


def compared(rng, f):
    """The original, another network of its form, and [(weight, what its compressor returned)]."""
    how = rng.choice(["compressed", "decoded", "perturbed", "scaled", "itself"],
                     p=[0.45, 0.15, 0.2, 0.1, 0.1])  # fmt: skip
    if how in ("compressed", "decoded"):
        g, found = _compressed(rng, f)
        if how == "decoded":  # the same numbers, which may run otherwise
            return g, decoded(g), found
        return (_compressed(rng, f)[0] if rng.random() < 0.2 else f), g, found
    if how == "perturbed":
        moved = partial(_moved, rng, size=2.0 ** rng.integers(-30, 2))
        return f, _changed(rng, f, 0.7, moved), []
    if how == "scaled":
        factor = float(rng.choice([0.0, 1 - 2**-8, 1 + 2**-8, 2.0, -1.0]))
        return f, _changed(rng, f, 0.5, lambda array: _clipped(array * factor, array.dtype)), []
    return f, f, []


def _compressors(rng, ndim):
    """Compressors for a weight of so many axes."""
    energy, amount = float(rng.choice([0.3, 0.9, 1.0])), float(rng.uniform(0, 1))
    bits = int(rng.choice([2, 3, 4, 8, 12]))
    quantize = partial(mc.quantize, num_bits=bits, axis=rng.choice([None, -1]))
    prune = partial(mc.prune_magnitude, amount=amount)
    cluster = partial(mc.cluster, n_clusters=int(rng.integers(1, 9)))
    if ndim == 2:
        factor = [partial(mc.truncated_svd, energy=energy), partial(mc.truncated_svd, rank=1)]
    else:
        factor = [partial(f, energy=energy) for f in (mc.channel_svd, mc.spatial_svd, mc.tucker2)]
    first = [*factor, prune, cluster]
    return [
        *first,
        quantize,
        partial(mc.quantize, num_bits=bits, symmetric=False),
        partial(mc.prune_n_m, n=1, m=2, axis=-2),
        partial(mc.prune_channels, amount=amount, axis=-1),
        *(lambda weight, f=f: mc.chain(weight, f, quantize) for f in first),
        lambda weight: mc.chain(weight, prune, cluster),
    ]


def _compressed(rng, f):
    found = []

    def replaced(weight):
        several = _compressors(rng, weight.ndim)
        try:
            found.append((weight, several[rng.integers(len(several))](weight)))
        except mc.CompressionError:  # it is not for such a weight
            return weight
        return found[-1][1].rep

    return _changed(rng, f, 0.8, replaced, names=("weight",)), found


def _moved(rng, array, size):
    """Every entry by a last bit, or by about a share of it."""
    if rng.random() < 0.2:
        return _clipped(np.nextafter(array, array.dtype.type(np.inf)), array.dtype)
    wide = array.astype(np.float64)
    return _clipped(wide + wide * size * rng.standard_normal(array.shape), array.dtype)


def _clipped(array, dtype):
    top = np.finfo(dtype).max
    return np.clip(array, -top, top).astype(dtype)


def _changed(rng, f, share, change, names=("weight", "bias")):
    """f with such a share of its layers changed, of those that have a weight."""
    layers = []
    for layer in decoded(f).layers:
        if isinstance(layer, mc.Dense | mc.Conv2D) and rng.random() < share:
            known = layer.parameters()
            changed = {name: change(known[name]) for name in names if name in known}
            layer = dataclasses.replace(layer, **changed)
        layers.append(layer)
    return mc.Sequential(tuple(layers))
