"""A compressor of your own, tested against the laws: two faults are found, and mended.

Anything that takes an array and returns `Compressed(rep, cert)` is a compressor. Here is one that
keeps only the sign of every weight and one scale, as a binary network does, in the obvious first
version. `check_compressor` names the law that it breaks, and an array that shows it.

    python examples/06_your_own_compressor.py
"""

import numpy as np

import minicompress as mc
from minicompress.norms import error_norm, fro_upper
from minicompress.testing import check_compressor


def first_try(weight):
    """The mean magnitude and a sign: what could go wrong?"""
    scale = np.abs(weight).mean()
    decoded = np.where(weight >= 0, scale, -scale)
    error = np.linalg.norm(weight - decoded)
    return mc.Compressed(decoded, mc.Certificate("fro", error, error))


def second_try(weight):
    """NaN is refused; empty arrays and the dtype are handled; the result is read-only."""
    if not np.isfinite(weight).all():
        raise mc.CompressionError("weight must be finite")
    scale = weight.dtype.type(np.abs(weight).mean() if weight.size else 0)
    decoded = np.where(weight >= 0, scale, -scale)
    decoded.flags.writeable = False
    error = np.linalg.norm(weight - decoded)
    return mc.Compressed(decoded, mc.Certificate("fro", error, error))


def mended(weight):
    """A small representation, and a bound that comes from the law and is rounded upward.

    The codebook is (-s, s), so an entry takes one bit. The law: the error of an entry w is
    ||w| - s|, whatever its sign.
    """
    if not np.isfinite(weight).all():
        raise mc.CompressionError("weight must be finite")
    # In C order and native bytes, so that sums are the same for every layout.
    weight = np.array(weight, weight.dtype.newbyteorder("="), order="C")
    magnitudes = np.abs(weight).astype(np.float64)
    # The sum of huge numbers overflows; the sum of their fractions of the largest one does not.
    top = magnitudes.max(initial=0)
    share = (magnitudes / top).mean() if top > 0 else 0.0
    scale = weight.dtype.type(min(share, 1.0) * top)
    codes = np.asarray(weight >= 0, np.uint8)
    rep = mc.Clustered(codes, np.array([-scale, scale], weight.dtype))
    law = np.abs(magnitudes - np.float64(scale))
    # A difference of two float64 numbers is rounded once: by 2**-53 of itself.
    bound = fro_upper(law) * (1 + 2.0**-52)
    bound = float(np.nextafter(bound, np.inf)) if bound else 0.0
    measured = error_norm(weight, mc.decode(rep), "fro")
    return mc.Compressed(rep, mc.Certificate("fro", bound, measured))


def main():
    for compressor in (first_try, second_try, mended):
        with np.errstate(all="ignore"):
            try:
                check_compressor(compressor)
                print(f"{compressor.__name__}: keeps every law")
            except AssertionError as error:
                print(f"{compressor.__name__}: {error}\n")


if __name__ == "__main__":
    main()
