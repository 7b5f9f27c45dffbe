"""A weight array goes in, a representation and a certificate come out: one method a file."""

from minicompress.compressors.chaining import chain
from minicompress.compressors.clustering import cluster
from minicompress.compressors.compensated import compensated_quantize
from minicompress.compressors.pruning import (
    prune_channels,
    prune_global,
    prune_magnitude,
    prune_n_m,
)
from minicompress.compressors.quantization import quantize
from minicompress.compressors.randomized import randomized_svd
from minicompress.compressors.schedules import polynomial_sparsity
from minicompress.compressors.stochastic import stochastic_quantize
from minicompress.compressors.svd import channel_svd, low_rank, spatial_svd, truncated_svd
from minicompress.compressors.tucker import tucker2

__all__ = [
    "chain",
    "channel_svd",
    "cluster",
    "compensated_quantize",
    "low_rank",
    "polynomial_sparsity",
    "prune_channels",
    "prune_global",
    "prune_magnitude",
    "prune_n_m",
    "quantize",
    "randomized_svd",
    "spatial_svd",
    "stochastic_quantize",
    "truncated_svd",
    "tucker2",
]
