"""Moving the axes of a representation without decoding it.

A factor of a `LowRank` weight becomes the weight of its own layer, whose axes must be in the order
of a kernel, HWIO. A quantized or clustered factor stays so: only its codes move.
"""

from __future__ import annotations

import math
import string
from dataclasses import replace
from typing import Any

import numpy as np

from minicompress.arrays import freeze
from minicompress.representation import Clustered, LowRank, Quantized, Rep, Sparse, decode, shape_of

Axes = tuple[int | None, ...]


def rearranged(rep: Rep, axes: Axes) -> Rep:
    """The representation of ``decode(rep)`` with its axes in another order.

    Parameters
    ----------
    rep : ndarray or rep
    axes : tuple of int and None
        For each axis of the result, the axis of `rep` that becomes it; every axis occurs once. None
        makes a new axis of length 1.

    Returns
    -------
    ndarray or rep
        Of the same kind and the same precision. One exception: the values of a `Sparse` are decoded
        unless they are an array, `Clustered`, or quantized with one scale.

    Notes
    -----
    ``decode(rearranged(rep, axes))`` equals ``rearranged(decode(rep), axes)`` exactly, except for a
    `LowRank`, whose product may be rounded in another order.

    Examples
    --------
    >>> codes = Clustered(np.array([[0, 1, 2], [2, 1, 0]]), np.array([0.5, 1.0, 1.5]))
    >>> shape_of(rearranged(codes, (None, 1, 0)))
    (1, 3, 2)
    """
    match rep:
        case LowRank(factors, subscripts):
            return _rearranged_product(factors, subscripts, axes)
        case Sparse(shape, indices, values):
            new = _rearranged_array(np.arange(math.prod(shape)).reshape(shape), axes)
            # new.ravel()[j] is the old place of entry j; `places` is the inverse permutation.
            places = np.empty(new.size, np.int64)
            places[new.ravel()] = np.arange(new.size)
            order = np.argsort(places[indices])
            return Sparse(new.shape, places[indices][order], _taken(values, order))
        case Quantized(codes=codes, scale=scale, zero_point=zero_point, axis=axis):
            if axis is not None and rep.block_size is not None:
                scale = _rearranged_array(scale, axes)
                zero_point = _rearranged_array(zero_point, axes)
            axis = None if axis is None else axes.index(axis)
            moved: Any = rearranged(codes, axes)
            return replace(rep, codes=moved, scale=scale, zero_point=zero_point, axis=axis)
        case Clustered(codes, codebook):
            return Clustered(_rearranged_array(codes, axes), codebook)
    return _rearranged_array(rep, axes)


def _rearranged_array(array: np.ndarray, axes: Axes) -> np.ndarray:
    """`rearranged` for an array: transpose, then put in the new axes."""
    moved = array.transpose([axis for axis in axes if axis is not None])
    return moved[tuple(None if axis is None else slice(None) for axis in axes)]


def _rearranged_product(factors: tuple[Rep, ...], subscripts: str, axes: Axes) -> LowRank:
    """The letters of the output move; a new axis is a new letter on the first factor."""
    left, output = subscripts.split("->")
    unused = [letter for letter in string.ascii_letters if letter not in left]
    letters = [unused.pop() if axis is None else output[axis] for axis in axes]
    added = [letter for letter in letters if letter not in output]
    first = rearranged(factors[0], (None,) * len(added) + tuple(range(len(shape_of(factors[0])))))
    return LowRank((first, *factors[1:]), f"{''.join(added)}{left}->{''.join(letters)}")


def _taken(values: Rep, order: np.ndarray) -> Rep:
    """The values of a `Sparse` in the order of their new places."""
    match values:
        case Clustered(codes, codebook):
            return Clustered(codes[order], codebook)
        case Quantized(codes=codes, axis=None) if isinstance(codes, np.ndarray):
            return replace(values, codes=codes[order])
    return freeze(decode(values)[order])
