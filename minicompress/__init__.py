"""Neural-network compression in NumPy: proven error bounds, exact counts.

A weight array goes in; a representation and a certificate come out:

>>> import numpy as np
>>> import minicompress as mc
>>> rep, cert = mc.quantize(np.linspace(-1, 1, 12).reshape(3, 4), num_bits=4, axis=-1)
>>> mc.decode(rep).shape, cert.measured <= cert.bound
((3, 4), True)

The everyday names are here. All else is reached through its room, as `mc.certify.ball_certificate`:

- `minicompress.compressors`: array -> (rep, cert), one method a file
- `minicompress.nn`: operations, layers, networks, training
- `minicompress.integer`: the same networks in integers alone
- `minicompress.storage`: entropy coding, and the `.mcz` file
- `minicompress.analysis`: parameters, multiplications and bytes; sensitivity
- `minicompress.certify`: what is proven of whole networks
- `minicompress.rewrite`: the same function by other layers, or a smaller one
- `minicompress.search`: which method for which layer
- `minicompress.recipes`: Deep Compression, and training for the fewest bytes
- `minicompress.early_exit`: easy inputs leave a network early
- `minicompress.interchange`: C, ONNX, state dicts of Keras and PyTorch
- `minicompress.testing`: property tests for compressors and layers of your own
"""

from minicompress import analysis as analysis
from minicompress import certify as certify
from minicompress import compressors as compressors
from minicompress import early_exit as early_exit
from minicompress import integer as integer
from minicompress import interchange as interchange
from minicompress import nn as nn
from minicompress import recipes as recipes
from minicompress import rewrite as rewrite
from minicompress import search as search
from minicompress import storage as storage
from minicompress.analysis import summary
from minicompress.compressors import (
    chain,
    channel_svd,
    cluster,
    low_rank,
    prune_channels,
    prune_global,
    prune_magnitude,
    prune_n_m,
    quantize,
    spatial_svd,
    truncated_svd,
    tucker2,
)
from minicompress.datasets import load_digits, load_mnist
from minicompress.errors import CompressionError, FileFormatError
from minicompress.integers import dequantize_linear, matmul_integer, quantize_linear
from minicompress.nn import (
    Add,
    AvgPool2D,
    BatchNorm,
    Concat,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    MaxPool2D,
    Multiply,
    Network,
    Parallel,
    ReLU,
    Residual,
    Sequential,
    Softmax,
    accuracy,
    adam,
    digits_cnn,
    evaluate,
    fit,
    lenet5,
    lenet_300_100,
    seed_cnn,
    sgd,
)
from minicompress.qparams import choose_qparams, fake_quantize
from minicompress.representation import (
    Certificate,
    Clustered,
    Compressed,
    LowRank,
    Quantized,
    Sparse,
    decode,
    num_params,
    storage_bits,
)
from minicompress.search import compress
from minicompress.storage import load, save

__version__ = "0.2.0"

__all__ = [
    "Add",
    "AvgPool2D",
    "BatchNorm",
    "Certificate",
    "Clustered",
    "Compressed",
    "CompressionError",
    "Concat",
    "Conv2D",
    "Dense",
    "Dropout",
    "FileFormatError",
    "Flatten",
    "GlobalAvgPool2D",
    "LowRank",
    "MaxPool2D",
    "Multiply",
    "Network",
    "Parallel",
    "Quantized",
    "ReLU",
    "Residual",
    "Sequential",
    "Softmax",
    "Sparse",
    "accuracy",
    "adam",
    "chain",
    "channel_svd",
    "choose_qparams",
    "cluster",
    "compress",
    "decode",
    "dequantize_linear",
    "digits_cnn",
    "evaluate",
    "fake_quantize",
    "fit",
    "lenet5",
    "lenet_300_100",
    "load",
    "load_digits",
    "load_mnist",
    "low_rank",
    "matmul_integer",
    "num_params",
    "prune_channels",
    "prune_global",
    "prune_magnitude",
    "prune_n_m",
    "quantize",
    "quantize_linear",
    "save",
    "seed_cnn",
    "sgd",
    "spatial_svd",
    "storage_bits",
    "summary",
    "truncated_svd",
    "tucker2",
]
