"""Pruning: the error is equal to the dropped entries, so their norm is the bound."""

from __future__ import annotations

import numpy as np

from minicompress.arrays import Array
from minicompress.norms import as_matrix, fro_upper, spectral_norm_upper


def dropped_norm(w: Array, keep: Array, kind: str) -> float:
    """An upper bound of the norm of what is dropped; `keep` is a mask of the flattened entries."""
    if kind == "spectral":
        return spectral_norm_upper(as_matrix(np.where(keep.reshape(w.shape), w.dtype.type(0), w)))
    lost = w.reshape(-1)[~keep]
    return fro_upper(lost) if kind == "fro" else float(np.abs(lost).max(initial=0))
