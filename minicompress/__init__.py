"""Neural-network compression in NumPy: proven error bounds, exact counts.

A weight array goes in; a representation and a certificate come out:

>>> import numpy as np
>>> import minicompress as mc
>>> rep, cert = mc.quantize(np.linspace(-1, 1, 12).reshape(3, 4), num_bits=4, axis=-1)
>>> mc.decode(rep).shape, cert.measured <= cert.bound
((3, 4), True)
"""

from minicompress.analysis.accounting import Account, LayerAccount, account
from minicompress.analysis.attack import find_difference
from minicompress.analysis.bounds import conv_norm_upper, output_bound
from minicompress.analysis.equivalence import (
    BallCertificate,
    DomainCertificate,
    ball_certificate,
    ball_certificates,
    domain_certificate,
)
from minicompress.analysis.sensitivity import Sensitivity, sensitivity
from minicompress.compressors.chain import chain
from minicompress.compressors.clustering import cluster
from minicompress.compressors.lowrank import channel_svd, spatial_svd, truncated_svd
from minicompress.compressors.pruning import (
    prune_channels,
    prune_global,
    prune_magnitude,
    prune_n_m,
)
from minicompress.compressors.quantization import quantize
from minicompress.compressors.schedules import constant_schedule, cubic_schedule, linear_schedule
from minicompress.compressors.tucker import tucker2
from minicompress.datasets import load_digits, load_mnist
from minicompress.errors import CompressionError, FileFormatError
from minicompress.export.c import CExport, export_c
from minicompress.export.interchange import load_weights, weights_out
from minicompress.export.onnx import save_onnx, to_onnx
from minicompress.integers import dequantize_linear, matmul_integer, quantize_linear
from minicompress.nn.activations import (
    flatten,
    flatten_vjp,
    leaky_relu,
    leaky_relu_vjp,
    relu,
    relu_vjp,
    sigmoid,
    sigmoid_vjp,
    softmax,
    softmax_vjp,
    tanh,
    tanh_vjp,
)
from minicompress.nn.architectures import digits_cnn, lenet5, lenet_300_100, seed_cnn
from minicompress.nn.convolution import conv2d, conv2d_vjp, dense, dense_vjp
from minicompress.nn.integer import to_integer
from minicompress.nn.integer_model import IntegerModel
from minicompress.nn.layers import Conv2D, Dense, factor_layers
from minicompress.nn.losses import distillation, mean_squared_error, softmax_cross_entropy
from minicompress.nn.model import (
    Sequential,
    apply,
    decoded,
    output_shape,
    parameters,
    vjp,
    with_parameters,
)
from minicompress.nn.normalization import BatchNorm, batch_norm, batch_norm_vjp
from minicompress.nn.optimizers import Optimizer, adam, constant, cosine_decay, sgd, step_decay
from minicompress.nn.pooling import (
    avg_pool2d,
    avg_pool2d_vjp,
    global_avg_pool2d,
    global_avg_pool2d_vjp,
    max_pool2d,
    max_pool2d_vjp,
)
from minicompress.nn.requantize import fixed_point, requantize
from minicompress.nn.training import History, TrainingState, View, accuracy, evaluate, fit
from minicompress.nn.weightless import (
    AvgPool2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Sigmoid,
    Softmax,
    Tanh,
)
from minicompress.norms import norm2_upper
from minicompress.pipeline.early_exit import (
    EarlyExit,
    attach_heads,
    confidence,
    exit_logits,
    run_exits,
)
from minicompress.pipeline.exit_choice import (
    ExitPoint,
    choose_thresholds,
    exit_curve,
    exit_macs,
    expected_macs,
)
from minicompress.pipeline.exit_file import load_exits, save_exits
from minicompress.pipeline.exit_training import fit_exits
from minicompress.pipeline.kernels import shrink_kernel, split_kernel
from minicompress.pipeline.plan import CompressedModel, compress
from minicompress.pipeline.rate import (
    latent_model,
    quantized_model,
    rate_view,
)
from minicompress.pipeline.recipe import (
    RecipeResult,
    Step,
    StepRow,
    deep_compression,
    fingerprint,
    run_recipe,
)
from minicompress.pipeline.search import MeasuredPlan, SearchResult, search
from minicompress.pipeline.structure import (
    dense_to_conv,
    dense_to_pooled,
    factorize,
    fold_batch_norm,
    remove_channels,
)
from minicompress.pipeline.weights import form_view, in_form_of
from minicompress.qparams import QParams, choose_qparams, fake_quantize
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
from minicompress.storage.container import dumps, load, loads, save
from minicompress.storage.entropy import range_decode, range_encode
from minicompress.storage.huffman import huffman_decode, huffman_encode

__version__ = "0.1.0"

__all__ = [
    "Account",
    "AvgPool2D",
    "BallCertificate",
    "BatchNorm",
    "CExport",
    "Certificate",
    "Clustered",
    "Compressed",
    "CompressedModel",
    "CompressionError",
    "Conv2D",
    "Dense",
    "DomainCertificate",
    "Dropout",
    "EarlyExit",
    "ExitPoint",
    "FileFormatError",
    "Flatten",
    "GlobalAvgPool2D",
    "History",
    "IntegerModel",
    "LayerAccount",
    "LeakyReLU",
    "LowRank",
    "MaxPool2D",
    "MeasuredPlan",
    "Optimizer",
    "QParams",
    "Quantized",
    "ReLU",
    "RecipeResult",
    "SearchResult",
    "Sensitivity",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Sparse",
    "Step",
    "StepRow",
    "Tanh",
    "TrainingState",
    "View",
    "account",
    "accuracy",
    "adam",
    "apply",
    "attach_heads",
    "avg_pool2d",
    "avg_pool2d_vjp",
    "ball_certificate",
    "ball_certificates",
    "batch_norm",
    "batch_norm_vjp",
    "chain",
    "channel_svd",
    "choose_qparams",
    "choose_thresholds",
    "cluster",
    "compress",
    "confidence",
    "constant",
    "constant_schedule",
    "conv2d",
    "conv2d_vjp",
    "conv_norm_upper",
    "cosine_decay",
    "cubic_schedule",
    "decode",
    "decoded",
    "deep_compression",
    "dense",
    "dense_to_conv",
    "dense_to_pooled",
    "dense_vjp",
    "dequantize_linear",
    "digits_cnn",
    "distillation",
    "domain_certificate",
    "dumps",
    "evaluate",
    "exit_curve",
    "exit_logits",
    "exit_macs",
    "expected_macs",
    "export_c",
    "factor_layers",
    "factorize",
    "fake_quantize",
    "find_difference",
    "fingerprint",
    "fit",
    "fit_exits",
    "fixed_point",
    "flatten",
    "flatten_vjp",
    "fold_batch_norm",
    "form_view",
    "global_avg_pool2d",
    "global_avg_pool2d_vjp",
    "huffman_decode",
    "huffman_encode",
    "in_form_of",
    "latent_model",
    "leaky_relu",
    "leaky_relu_vjp",
    "lenet5",
    "lenet_300_100",
    "linear_schedule",
    "load",
    "load_digits",
    "load_exits",
    "load_mnist",
    "load_weights",
    "loads",
    "matmul_integer",
    "max_pool2d",
    "max_pool2d_vjp",
    "mean_squared_error",
    "norm2_upper",
    "num_params",
    "output_bound",
    "output_shape",
    "parameters",
    "prune_channels",
    "prune_global",
    "prune_magnitude",
    "prune_n_m",
    "quantize",
    "quantize_linear",
    "quantized_model",
    "range_decode",
    "range_encode",
    "rate_view",
    "relu",
    "relu_vjp",
    "remove_channels",
    "requantize",
    "run_exits",
    "run_recipe",
    "save",
    "save_exits",
    "save_onnx",
    "search",
    "seed_cnn",
    "sensitivity",
    "sgd",
    "shrink_kernel",
    "sigmoid",
    "sigmoid_vjp",
    "softmax",
    "softmax_cross_entropy",
    "softmax_vjp",
    "spatial_svd",
    "split_kernel",
    "step_decay",
    "storage_bits",
    "tanh",
    "tanh_vjp",
    "to_integer",
    "to_onnx",
    "truncated_svd",
    "tucker2",
    "vjp",
    "weights_out",
    "with_parameters",
]
