"""How sparse to be at which step of training: the schedules of gradual pruning."""

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
    """The sparsity at a step: fast at first, where much is redundant, and slow at the end.

    Parameters
    ----------
    step : int, at least 0
    initial_sparsity, final_sparsity : float in [0, 1]
        Exactly these up to `begin_step` and from `end_step` on.
    begin_step, end_step : int, 0 <= begin_step <= end_step
        Where the two are the same step, the final sparsity holds from there on.
    power : float, at least 0
        3 is the cubic one; 1 is linear.

    Returns
    -------
    float
        ``final + (initial - final) * (1 - t) ** power`` where t goes from 0 to 1; never outside
        of the two, and monotone in `step`. Made for ``amount=`` of the pruning functions.

    Raises
    ------
    CompressionError
        An argument is out of range.

    Notes
    -----
    M. Zhu and S. Gupta, *To prune, or not to prune* (2017).

    Examples
    --------
    >>> [polynomial_sparsity(s, final_sparsity=0.8, end_step=4) for s in (0, 2, 4, 9)]
    [0.0, 0.7000000000000001, 0.8, 0.8]
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


def linear_schedule(
    step: int,
    *,
    initial_sparsity: float = 0.0,
    final_sparsity: float,
    begin_step: int = 0,
    end_step: int,
) -> float:
    """The sparsity at a step, evenly rising: `polynomial_sparsity` with ``power=1``.

    Parameters
    ----------
    step, initial_sparsity, final_sparsity, begin_step, end_step
        As in `polynomial_sparsity`.

    Returns
    -------
    float

    Raises
    ------
    CompressionError
        An argument is out of range.

    Examples
    --------
    >>> [linear_schedule(s, final_sparsity=0.8, end_step=4) for s in (0, 2, 4, 9)]
    [0.0, 0.4, 0.8, 0.8]
    """
    return polynomial_sparsity(
        step,
        initial_sparsity=initial_sparsity,
        final_sparsity=final_sparsity,
        begin_step=begin_step,
        end_step=end_step,
        power=1,
    )


def constant_schedule(step: int, *, target_sparsity: float, begin_step: int = 0) -> float:
    """The sparsity at a step, all of it at once: one-shot pruning.

    Parameters
    ----------
    step : int, at least 0
    target_sparsity : float in [0, 1]
        From `begin_step` on; 0.0 before.
    begin_step : int, at least 0

    Returns
    -------
    float

    Raises
    ------
    CompressionError
        An argument is out of range.

    Examples
    --------
    >>> [constant_schedule(s, target_sparsity=0.9, begin_step=2) for s in (0, 1, 2, 3)]
    [0.0, 0.0, 0.9, 0.9]
    """
    now, begin = as_int(step, "step", 0), as_int(begin_step, "begin_step", 0)
    target = as_float(target_sparsity, "target_sparsity", 0, 1)
    return target if now >= begin else 0.0
