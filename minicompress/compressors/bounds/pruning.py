"""Pruning: the error is equal to the dropped entries, so their norm is the bound."""

from __future__ import annotations

import numpy as np

from minicompress.arrays import Array
from minicompress.norms import as_matrix, fro_upper, spectral_norm_upper


def dropped_norm(w: Array, keep: Array, kind: str) -> float:
    """An upper bound of the norm of what is dropped; `keep` is a mask of the flattened entries."""
    lost = np.where(keep.reshape(w.shape), w.dtype.type(0), w)
    if kind == "fro":
        return fro_upper(lost[~keep.reshape(w.shape)])
    if kind == "max":
        return float(np.abs(lost).max(initial=0))
    return spectral_norm_upper(as_matrix(lost))
