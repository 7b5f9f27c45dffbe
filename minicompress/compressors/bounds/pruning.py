"""Pruning: the error is equal to the dropped entries, so their norm is the bound."""

from __future__ import annotations

import numpy as np

from minicompress.arrays import Array
from minicompress.norms import norm_upper


def dropped_norm(w: Array, keep: Array, kind: str) -> float:
    """An upper bound of the norm of what is dropped; `keep` is a mask of the flattened entries."""
    if kind == "spectral":
        return norm_upper(np.where(keep.reshape(w.shape), w.dtype.type(0), w), kind)
    return norm_upper(w.reshape(-1)[~keep], kind)
