"""A compressor of your own, held to the laws: caught, and mended.

Anything that takes an array and returns `Compressed(rep, cert)` is a compressor. Here is one that
keeps only the sign of every weight and one scale (a binary network's weights), written the way
one writes it first. `check_compressor` finds what is wrong with it, one law after the other.

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
    """Empty arrays, NaN and the dtype are taken care of; the result is frozen."""
    if not np.isfinite(weight).all():
        raise mc.CompressionError("weight must be finite")
    scale = weight.dtype.type(np.abs(weight).mean() if weight.size else 0)
    decoded = np.where(weight >= 0, scale, -scale)
    decoded.flags.writeable = False
    error = np.linalg.norm(weight - decoded)
    return mc.Compressed(decoded, mc.Certificate("fro", error, error))


def mended(weight):
    """A representation, exact scaling, and a bound from the law that is rounded upward.

    The codebook is (-s, s), so the array takes one bit an entry. The law: an entry w is off by
    ||w| - s|, whatever its sign, and for zeros by s.
    """
    if not np.isfinite(weight).all():
        raise mc.CompressionError("weight must be finite")
    # In C order and native bytes, so that sums are the same for every layout.
    weight = np.array(weight, weight.dtype.newbyteorder("="), order="C")
    magnitudes = np.abs(weight).astype(np.float64)
    top = magnitudes.max(
        initial=0
    )  # a mean of huge numbers overflows, one of their shares does not
    share = (magnitudes / top).mean() if top > 0 else 0.0
    scale = weight.dtype.type(min(share, 1.0) * top)
    codes = np.asarray(weight >= 0, np.uint8)
    rep = mc.Clustered(codes, np.array([-scale, scale], weight.dtype))
    law = np.abs(magnitudes - np.float64(scale))
    # A difference of two float64 numbers is rounded once: by 2**-53 of itself.
    bound = fro_upper(law) * (1 + 2.0**-52)
    bound = float(np.nextafter(bound, np.inf)) if bound else 0.0
    return mc.Compressed(
        rep, mc.Certificate("fro", bound, error_norm(weight, mc.decode(rep), "fro"))
    )


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
