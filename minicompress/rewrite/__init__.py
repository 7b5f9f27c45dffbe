"""The same function by other layers, or a smaller one: fold, remove channels, smaller kernels."""

from minicompress.rewrite.smaller_kernels import shrink_kernel, split_kernel
from minicompress.rewrite.structure import (
    dense_to_conv,
    dense_to_global_pool,
    factorize,
    fold_batch_norm,
    remove_channels,
)

__all__ = [
    "dense_to_conv",
    "dense_to_global_pool",
    "factorize",
    "fold_batch_norm",
    "remove_channels",
    "shrink_kernel",
    "split_kernel",
]
