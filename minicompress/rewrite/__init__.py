"""The same function by other layers, or a smaller one: fold, remove channels, smaller kernels.

And better weights without training: equalize, compensate for rounding, correct biases.
"""

from minicompress.nn.statistics import reestimate_batch_norm
from minicompress.rewrite.batch_norm import fold_batch_norm
from minicompress.rewrite.bias_correction import correct_bias
from minicompress.rewrite.channels import remove_channels, remove_least_channels
from minicompress.rewrite.compensation import compensate
from minicompress.rewrite.dense import dense_to_conv, dense_to_global_pool
from minicompress.rewrite.equalization import equalize
from minicompress.rewrite.low_rank import factorize
from minicompress.rewrite.replacing import replace_layers
from minicompress.rewrite.smaller_kernels import shrink_kernel, split_kernel

__all__ = [
    "compensate",
    "correct_bias",
    "dense_to_conv",
    "dense_to_global_pool",
    "equalize",
    "factorize",
    "fold_batch_norm",
    "reestimate_batch_norm",
    "remove_channels",
    "remove_least_channels",
    "replace_layers",
    "shrink_kernel",
    "split_kernel",
]
