"""How tight the bounds are: measured error over proven bound, for every compressor.

A bound that is only large proves nothing useful. Over 1,000 random arrays each, the largest ratio
must not be above 1 (the bound is sound), and the median tells how near the truth it is.

    python examples/how_tight.py [arrays]
"""

import sys
from functools import partial

import numpy as np

import minicompress as mc


def matrix(rng):
    """A matrix of a drawn shape, dtype and scale, with a few entries far out."""
    shape = tuple(rng.integers(2, 25, size=2))
    return _weights(rng, shape)


def kernel(rng):
    """A convolution's kernel (kh, kw, in, out)."""
    kh, kw = rng.integers(1, 6, size=2)
    return _weights(rng, (kh, kw, *rng.integers(2, 9, size=2)))


def _weights(rng, shape):
    dtype = rng.choice([np.float32, np.float64])
    scale = 10.0 ** rng.integers(-6, 7)
    return (scale * rng.standard_t(4, size=shape)).astype(dtype)


def stochastic(weight, norm):
    rng = np.random.default_rng(0)
    return mc.compressors.stochastic_quantize(weight, num_bits=4, rng=rng, norm=norm)


def chained(*steps):
    return lambda weight, norm: mc.chain(*steps)(weight)


COMPRESSORS = {
    "truncated_svd, half energy": (matrix, partial(mc.truncated_svd, energy=0.5)),
    "channel_svd": (kernel, partial(mc.channel_svd, energy=0.5)),
    "spatial_svd": (kernel, partial(mc.spatial_svd, energy=0.5)),
    "tucker2, hosvd": (kernel, partial(mc.tucker2, energy=0.5, method="hosvd")),
    "tucker2, sthosvd": (kernel, partial(mc.tucker2, energy=0.5, method="sthosvd")),
    "prune_magnitude, 80 %": (matrix, partial(mc.prune_magnitude, amount=0.8)),
    "prune_n_m, 2:4": (matrix, partial(mc.prune_n_m, n=2, m=4, axis=0)),
    "prune_channels, half": (kernel, partial(mc.prune_channels, amount=0.5, axis=-1)),
    "quantize, int8": (matrix, partial(mc.quantize, num_bits=8)),
    "quantize, int4 per channel": (matrix, partial(mc.quantize, num_bits=4, axis=-1)),
    "quantize, int4 affine": (matrix, partial(mc.quantize, num_bits=4, symmetric=False)),
    "quantize, stochastic int4": (matrix, stochastic),
    "cluster, 8 linear": (matrix, partial(mc.cluster, n_clusters=8)),
    "cluster, 8 exact": (matrix, partial(mc.cluster, n_clusters=8, method="exact")),
    "prune, quantize int4": (
        matrix,
        chained(partial(mc.prune_magnitude, amount=0.5), partial(mc.quantize, num_bits=4)),
    ),
    "svd, quantize int8": (
        matrix,
        chained(partial(mc.truncated_svd, energy=0.9), partial(mc.quantize, num_bits=8)),
    ),
}


def ratios(draw, compressor, norm, arrays):
    """measured / bound for so many arrays; those without an error say nothing."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(arrays):
        _, cert = compressor(draw(rng), norm=norm)
        if cert.bound > 0:
            found.append(cert.measured / cert.bound)
    return np.array(found)


def main(arrays=1000):
    print(f"measured / bound over {arrays} arrays   largest   median    (norm)")
    for name, (draw, compressor) in COMPRESSORS.items():
        for norm in ("fro", "spectral", "max"):
            if "," in name and name.startswith(("prune, ", "svd, ")) and norm != "fro":
                continue  # a chain composes Frobenius certificates
            found = ratios(draw, compressor, norm, arrays)
            assert found.max() <= 1, f"{name}: an error above its bound"
            print(f"{name:36} {found.max():12.9f} {np.median(found):8.4f}    {norm}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
