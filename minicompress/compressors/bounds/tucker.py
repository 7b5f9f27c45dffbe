"""Tucker-2: how far the product of three truncated factors can be from the kernel."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from minicompress import norms
from minicompress.arrays import Array, DType
from minicompress.compressors.bounds.svd import unsaturated
from minicompress.norms import UNIT, Svd

INPUTS, OUTPUTS = 2, 3
"""The two axes of a kernel (kh, kw, in, out) that Tucker-2 shortens."""


class Tucker(NamedTuple):
    """Both decompositions, and what they made of a kernel: u_in x core x u_out.

    `partly` is the kernel of which only the inputs are projected.
    """

    first: Svd
    second: Svd
    u_in: Array
    partly: Array
    core: Array
    u_out: Array


def factor_shifts(core: Array, exponent: int) -> tuple[int, int, int]:
    """The powers of two by which the factors are scaled: no factor alone may overflow."""
    largest = int(np.frexp(np.abs(core).max(initial=0))[1])
    third = (exponent + largest) // 3
    return third, exponent - 2 * third, third


def tucker_bound(
    a: Array, exponent: int, cut: Tucker, sequential: bool, law: str, dtype: DType
) -> float:
    """The norm of the dropped triples, and what computing and storing the rest can add.

    Let P be the projection on the computed u_in. The error is the sum of two orthogonal parts. The
    first is A - P A, which the dropped triples of the inputs bound. The second lies in the range of
    u_in: the dropped triples of the outputs, and the rounding of both products. u u' differs from a
    projection by at most o = ||u'u - I||, which adds o ||A||. Then each factor is cast to dtype,
    and the product is formed in float64 and rounded. Entry by entry that is 4 u of dtype and the
    gamma of its sums, relative to |u_in| |core| |u_out|', and an eta for each subnormal entry.
    """
    first, second, u_in, partly, core, u_out = cut
    if not a.any():
        return 0.0
    size, (ri, ro) = norms.norm_of(a), core.shape[2:]
    f_in = norms.orthogonality_factor(first.u, first.vt)
    f_out = norms.orthogonality_factor(second.u, second.vt) if second.s.size else 1.0
    off_in, off_out = f_in**2 - 1 + 4 * UNIT, f_out**2 - 1 + 4 * UNIT
    absolute = np.abs(core) @ np.abs(u_out.T)
    product = np.tensordot(np.abs(u_in), absolute, (1, INPUTS))
    spectral = unsaturated(law, product, exponent, dtype) == "spectral"

    cut_in = f_in * norms.norm_of(first.s[ri:]) + first.residual
    tail = second.s[ro:]
    cut_out = f_out * (float(tail.max(initial=0)) if spectral else norms.norm_of(tail))
    cut_out += second.residual + off_out * size
    partly_error = norms.gamma(a.shape[INPUTS] + 2) * size * norms.norm_of(u_in)
    core_error = norms.gamma(a.shape[OUTPUTS] + 2) * norms.norm_of(partly) * norms.norm_of(u_out)
    if not sequential:  # the tail belongs to the whole kernel, not to the projected one
        cut_out = f_in * cut_out + 2 * partly_error
    cut_out = min(cut_out, (1 + off_out) * norms.norm_of(partly))  # no more than all of it
    beside = off_in * size + f_in * (partly_error + cut_out + f_out * core_error)
    unit, eta = norms.unit_roundoff(dtype), norms.smallest_subnormal(dtype)
    sums = norms.gamma(ri * ro + ri + ro + 8)
    rounding = (4 * unit * (1 + 8 * unit) + sums) * norms.norm_of(product)
    law_error = norms.upward(math.hypot(cut_in, beside) + rounding, 2 * (a.size + 8))

    # Each entry of each factor moves by at most eta; the norms of the other two factors multiply.
    sizes = [
        math.ldexp(norm, shift)
        for norm, shift in zip((f_in, 2 * size, f_out), factor_shifts(core, exponent), strict=True)
    ]
    moves = [eta * math.sqrt(f.size) for f in (u_in, core, u_out)]
    lost = math.sqrt(a.size) * eta
    for i, move in enumerate(moves):
        before = math.prod(sizes[:i])
        after = math.prod(n + m for n, m in zip(sizes[i + 1 :], moves[i + 1 :], strict=True))
        lost += before * move * after
    return norms.upward(norms.unscaled_upper(law_error, exponent) + norms.upward(2 * lost))
