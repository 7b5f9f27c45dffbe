"""Gradual pruning: how sparse a network is to be at each step of training.

``s(t) = s_f + (s_i - s_f) * (1 - (t - t_0) / (t_n - t_0)) ** 3`` is equation 1 of M. Zhu and S.
Gupta, *To prune, or not to prune* (2017).
"""

from __future__ import annotations

import math

from minicompress.arrays import as_float, as_int


def polynomial_sparsity(
    step: int,
    *,
    initial_sparsity: float = 0.0,
    final_sparsity: float,
    begin_step: int = 0,
    end_step: int,
    power: float = 3,
) -> float:
    """The sparsity at a step: it rises fast at first, where much is redundant, and slowly at last.

    Parameters
    ----------
    step : int, at least 0
    initial_sparsity, final_sparsity : float in [0, 1]
        The result is exactly the first up to `begin_step`, and the second from `end_step` on.
    begin_step, end_step : int, 0 <= begin_step <= end_step
        If they are equal, all is pruned at once at that step.
    power : float, at least 0
        3 is the cubic schedule of the paper, 1 the linear one.

    Returns
    -------
    float
        ``final + (initial - final) * (1 - t) ** power`` where t goes from 0 to 1. It is monotone in
        `step` and never outside of the two. Use it as ``amount=`` of the pruning functions.

    Raises
    ------
    CompressionError
        An argument is out of range.

    Examples
    --------
    >>> [polynomial_sparsity(s, final_sparsity=0.8, end_step=4) for s in (0, 2, 4, 9)]
    [0.0, 0.7000000000000001, 0.8, 0.8]
    >>> [polynomial_sparsity(s, final_sparsity=0.8, end_step=4, power=1) for s in (0, 2, 4, 9)]
    [0.0, 0.4, 0.8, 0.8]
    """
    now = as_int(step, "step", 0)
    initial = as_float(initial_sparsity, "initial_sparsity", 0, 1)
    final = as_float(final_sparsity, "final_sparsity", 0, 1)
    begin = as_int(begin_step, "begin_step", 0)
    end = as_int(end_step, "end_step", begin)
    exponent = as_float(power, "power", 0)
    if now >= end:
        return final
    if now <= begin:
        return initial
    left = math.pow((end - now) / (end - begin), exponent)
    sparsity = final + (initial - final) * left
    return min(max(sparsity, min(initial, final)), max(initial, final))
