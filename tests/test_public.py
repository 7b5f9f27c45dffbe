"""Every public function is pure, documented, and refuses options that it does not know."""

import inspect
import re
from functools import partial

import numpy as np
import pytest

import minicompress as mc
from minicompress.testing.checks import check_pure

F = np.float32
image = np.arange(2 * 6 * 6 * 2, dtype=F).reshape(2, 6, 6, 2) / 72 - 0.5
kernel = np.arange(3 * 3 * 2 * 3, dtype=F).reshape(3, 3, 2, 3) / 54 - 0.5
matrix = np.arange(12, dtype=F).reshape(4, 3) - 5
rows = np.arange(8, dtype=F).reshape(2, 4) / 8
bias = np.ones(3, F)
labels = np.array([0, 2])
codes = np.array([[1, -2], [3, 4]], np.int8)
q = mc.qparams.QParams(np.array(0.5, F), np.array(1), num_bits=4)
model = mc.Sequential((mc.Dense(matrix, bias), mc.ReLU(), mc.Dense(matrix.T[:, :3], bias)))
other = mc.Sequential((mc.Dense(matrix * F(1.25), bias), *model.layers[1:]))
rep = mc.Sparse((2, 2), np.array([1]), np.ones(1))
gradients = ({"weight": matrix, "bias": bias}, {}, {"weight": matrix.T[:, :3], "bias": bias})
factors = mc.Dense(mc.LowRank((matrix[:, :2], matrix[:2]), "ir,ro->io"), bias)
rng = np.random.default_rng(0)
half = partial(mc.prune_magnitude, amount=0.5)
pruned = mc.compress(model, {0: half}).model
latent = mc.recipes.latent_model(model)
noise = mc.recipes.Step(
    "noise", lambda m, rng: mc.Sequential((mc.Dense(matrix + F(rng.random())),))
)
int4 = partial(mc.quantize, num_bits=4)

segment = mc.Sequential((mc.Dense(np.eye(3, dtype=F)),))
exits = mc.early_exit.EarlyExit((segment, segment), (segment,), (0.5,))

CALLS = {
    "attach_heads": (model, (0,), (4,)),
    "choose_thresholds": (exits, matrix[:2], labels),
    "confidence": (matrix,),
    "exit_curve": (exits, matrix[:2], labels),
    "exit_logits": (exits, matrix),
    "exit_macs": (exits, (3,)),
    "expected_macs": (exits, (3,), np.array([0, 1])),
    "fit_exits": (exits, matrix[:2], labels),
    "predict": (exits, matrix),
    "summary": (model, (4,)),
    "accuracy": (model, rows, labels),
    "adam": (1e-3,),
    "apply": (model, rows),
    "avg_pool2d": (image, 2),
    "avg_pool2d_vjp": (np.ones((2, 3, 3, 2), F), image, 2),
    "batch_norm": (rows, *np.ones((4, 4), F)),
    "batch_norm_vjp": (rows, rows, *np.ones((3, 4), F)),
    "chain": (half, int4),
    "ball_certificate": (model, other, rows[0]),
    "ball_certificates": (model, other, rows),
    "channel_svd": (kernel,),
    "choose_qparams": (matrix,),
    "cluster": (matrix,),
    "compress": (model, {0: half, 2: int4}),
    "compensate": (model, {0: partial(mc.compressors.compensated_quantize, num_bits=4)}, rows),
    "constant_lr": (1e-3,),
    "conv2d": (image, kernel, bias),
    "conv_norm_upper": (kernel, (5, 5)),
    "conv2d_vjp": (np.ones((2, 4, 4, 3), F), image, kernel),
    "correct_bias": (pruned, model, rows),
    "cosine_lr": (1e-3, 10),
    "polynomial_sparsity": (3,),
    "decode": (rep,),
    "decoded": (mc.Sequential((factors,)),),
    "dense": (rows, matrix, bias),
    "dense_to_conv": (mc.Dense(np.ones((8, 2))), (2, 2)),
    "dense_to_global_pool": (mc.Dense(np.ones((8, 2))), (2, 2)),
    "dense_vjp": (np.ones((2, 3), F), rows, matrix),
    "deep_compression": ((rows, labels), {0: 0.5}, {0: 2}),
    "dequantize_linear": (codes, np.array(0.5), np.array(1)),
    "digits_cnn": (rng,),
    "distillation": (rows, labels, rows + 1),
    "domain_certificate": (model, other, rows[0], rows[0] + 1),
    "dumps": (model,),
    "equalize": (model,),
    "evaluate": (model, rows, labels),
    "factor_layers": (factors,),
    "factorize": (mc.Sequential((factors,)),),
    "fake_quantize": (matrix, q),
    "attack": (model, other, rows),
    "array_digest": (rows, labels),
    "fit": (model, rows, labels),
    "quantize_multiplier": (np.array([0.75, 1.0]),),
    "flatten": (image,),
    "flatten_vjp": (rows, image[:, :2, :1]),
    "fold_batch_norm": (mc.Sequential((mc.Dense(matrix), mc.BatchNorm(*np.ones((4, 3), F)))),),
    "preserve_structure": (pruned,),
    "global_avg_pool2d": (image,),
    "global_avg_pool2d_vjp": (rows[:, :2], image),
    "huffman_decode": (mc.storage.huffman_encode(codes.ravel()),),
    "huffman_encode": (codes.ravel(),),
    "restore_structure": (pruned, mc.nn.decoded(pruned)),
    "latent_model": (model,),
    "leaky_relu": (rows - 0.5,),
    "leaky_relu_vjp": (rows, rows - 0.5),
    "lenet5": (rng,),
    "lenet_300_100": (rng,),
    "load_digits": ("validation",),
    "from_state_dict": (model, mc.interchange.to_state_dict(model)),
    "loads": (mc.storage.dumps(model),),
    "dumps_arrays": ({"w": matrix, "codes": codes},),
    "parse_method": ("prune80+int8",),
    "quantize_best_axis": (matrix,),
    "factor_in_two": (matrix,),
    "loads_arrays": (mc.storage.dumps_arrays({"w": matrix}),),
    "matmul_integer": (codes, codes, np.array(1), np.array([1, 2])),
    "max_pool2d": (image, 2),
    "max_pool2d_vjp": (np.ones((2, 3, 3, 2), F), image, 2),
    "mean_squared_error": (rows, rows + 1),
    "spectral_norm_upper": (matrix,),
    "num_params": (rep,),
    "output_bound": (model, other),
    "output_shape": (model, (4,)),
    "parameters": (model,),
    "prune_channels": (kernel,),
    "prune_global": ((matrix, kernel),),
    "prune_magnitude": (matrix,),
    "prune_n_m": (matrix,),
    "quantize": (matrix,),
    "stochastic_quantize": (matrix,),
    "compensated_quantize": (matrix,),
    "quantize_linear": (matrix, np.array(0.5, F), np.array(1)),
    "quantized_model": (latent,),
    "range_decode": (mc.storage.range_encode(codes.ravel()),),
    "range_encode": (codes.ravel(),),
    "rate_view": (lambda step: 1e-3,),
    "relu": (rows - 0.5,),
    "relu_vjp": (rows, rows - 0.5),
    "reestimate_batch_norm": (mc.Sequential((mc.BatchNorm(*np.ones((4, 3), F)),)), rows[:, :3]),
    "remove_channels": (model, 0, [0, 2]),
    "remove_least_channels": (model, 0.5),
    "replace_layers": (model, {1: mc.nn.Tanh()}),
    "requantize": (np.array([[100, -7]]), np.array(2**30), np.array(35)),
    "run_recipe": (model, (noise,)),
    "search_plan": (model, {"half": half, "int4": int4}, rows, labels),
    "sensitivity": (model, {"half": half, "int4": int4}, rows, labels),
    "seed_cnn": (rng, "strided"),
    "sgd": (1e-2,),
    "sigmoid": (rows,),
    "sigmoid_vjp": (rows, rows),
    "shrink_kernel": (mc.Conv2D(kernel, bias), 2),
    "softmax": (rows,),
    "softmax_vjp": (rows, rows),
    "softmax_cross_entropy": (rows, labels),
    "spatial_svd": (kernel,),
    "split_kernel": (mc.Conv2D(kernel, bias),),
    "step_lr": (1e-3, 0.5, 10),
    "storage_bits": (rep,),
    "tanh": (rows,),
    "tanh_vjp": (rows, rows),
    "to_integer": (model, rows),
    "truncated_svd": (matrix,),
    "low_rank": (matrix,),
    "randomized_svd": (matrix,),
    "tucker2": (kernel,),
    "vjp": (model, rows),
    "value_shapes": (model, (4,)),
    "Sequential": (model.layers,),
    "Parallel": ((mc.ReLU(), model), mc.Concat()),
    "Residual": (mc.ReLU(),),
    "add": (rows, rows),
    "add_vjp": (rows, rows, rows),
    "multiply": (image, image[:, :1, :1]),
    "multiply_vjp": (image, image, image[:, :1, :1]),
    "concat": (rows, rows[:, :2]),
    "concat_vjp": (np.ones((2, 6), F), rows, rows[:, :2]),
    "clip": (rows, 0.25, 0.5),
    "clip_vjp": (rows, rows, 0.25, 0.5),
    "hard_sigmoid": (rows,),
    "hard_sigmoid_vjp": (rows, rows),
    "hard_swish": (rows,),
    "hard_swish_vjp": (rows, rows),
    "silu": (rows,),
    "silu_vjp": (rows, rows),
    "prelu": (rows - 0.5, np.ones(4, F)),
    "prelu_vjp": (rows, rows - 0.5, np.ones(4, F)),
    "upsample2d": (image, 2),
    "upsample2d_vjp": (image.repeat(2, 1).repeat(2, 2), image, 2),
    "channel_shuffle": (image, 2),
    "channel_shuffle_vjp": (image, image, 2),
    "local_response_norm": (image, 3),
    "local_response_norm_vjp": (image, image, 3),
    "conv_transpose2d": (image, kernel, bias),
    "conv_transpose2d_vjp": (np.ones((2, 8, 8, 3), F), image, kernel),
    "normalize_batch": (rows, *np.ones((2, 4), F)),
    "normalize_batch_vjp": (rows, rows, np.ones(4, F)),
    "digits_resnet": (rng,),
    "resnet20": (rng,),
    "mobilenet_v2": (rng, 0.25, 32, 10),
    "with_weights": (model, {0: matrix}),
    "weights": (model,),
    "total": ([mc.Certificate("fro", 6.0, 3.0)],),
    "to_state_dict": (model,),
    "with_parameters": (model, gradients),
}
OPTIONS = {
    "factor_in_two": {"rank": 1},
    "choose_thresholds": {"max_macs": 30},
    "fit_exits": {
        "optimizer": mc.adam(1e-3),
        "epochs": 1,
        "batch_size": 1,
        "rng": rng,
        "joint": True,
    },
    "ball_certificate": {"eps": 0.1},
    "ball_certificates": {"eps": 0.1, "clip": (0.0, 1.0)},
    "channel_svd": {"rank": 2},
    "cluster": {"n_clusters": 3, "method": "exact"},
    "polynomial_sparsity": {"final_sparsity": 0.5, "end_step": 9},
    "output_bound": {"radius": 2.0},
    "prune_channels": {"amount": 0.5, "axis": -1},
    "prune_global": {"amount": 0.5},
    "prune_n_m": {"n": 1, "m": 2, "axis": 0},
    "run_recipe": {"seed": 0},
    "shrink_kernel": {"calibration": image},
    "split_kernel": {"rng": rng, "iterations": 2},
    "tucker2": {"rank_in": 1, "rank_out": 2},
    "attack": {"eps": 0.1, "rng": rng, "starts": 1},
    "fit": {"optimizer": mc.adam(1e-3), "epochs": 2, "batch_size": 1, "rng": rng},
    "prune_magnitude": {"amount": 0.5},
    "quantize": {"axis": -1, "symmetric": False},
    "stochastic_quantize": {"rng": rng},
    "compensated_quantize": {"calibration": rows},
    "choose_qparams": {"axis": 0, "block_size": 3, "method": "mse"},
    "spatial_svd": {"energy": 0.9},
    "truncated_svd": {"max_params": 10},
    "low_rank": {"rank": 1},
    "randomized_svd": {"rank": 1, "rng": rng},
    "conv2d": {"padding": "same", "stride": 2},
    "evaluate": {"batch_size": 1},
    "search_plan": {"max_bytes": 100},
}
NOT_CALLED = {
    "export_c": "writes files; see test_export_c",
    "from_onnx": "needs onnx; see test_onnx_import",
    "load_exits": "reads a file; see test_exit_file",
    "onnx_report": "needs onnx; see test_onnx_import",
    "save_exits": "writes a file; see test_exit_file",
    "save_onnx": "needs onnx; see test_onnx",
    "to_onnx": "needs onnx; see test_onnx",
    "load_mnist": "reads files that are not in the package; see test_datasets",
    "load_arrays": "reads a file: `loads_arrays` is its pure core; see test_named_arrays",
    "load_tensors": "reads a file; see test_tensor_files",
    "save_arrays": "writes a file: `dumps_arrays` is its pure core; see test_named_arrays",
    "onnx_arrays": "reads a file; see test_onnx_rewriting",
    "save_decoded_onnx": "writes a file; see test_onnx_decoding",
    "save_onnx_arrays": "writes a file; see test_onnx_rewriting",
    "save_tensors": "writes a file; see test_tensor_files",
    "load": "reads a file: `loads` is its pure core; see test_damaged_files",
    "save": "writes a file: `dumps` is its pure core; see test_container",
}

ROOMS = [room for room in vars(mc).values() if inspect.ismodule(room) and hasattr(room, "__all__")]
ROOMS = [room for room in ROOMS if room.__name__ != "minicompress.testing"]  # needs hypothesis
PUBLIC = {name: getattr(door, name) for door in (mc, *ROOMS) for name in door.__all__}
FUNCTIONS = [name for name, thing in PUBLIC.items() if inspect.isfunction(thing)]


def test_every_public_name_is_there_once_and_sorted():
    assert len(mc.__all__) <= 60
    for door in (mc, *ROOMS):
        assert sorted(set(door.__all__)) == door.__all__
        for name in door.__all__:
            assert getattr(door, name) is PUBLIC[name], "one name for one thing"
    assert not set(FUNCTIONS) & {room.__name__.rpartition(".")[2] for room in ROOMS}
    assert set(FUNCTIONS) == CALLS.keys() | NOT_CALLED.keys()


@pytest.mark.parametrize("name", CALLS)
def test_every_public_function_is_pure(name):
    check_pure(PUBLIC[name], *CALLS[name], **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_option_raises(name):
    with pytest.raises((TypeError, mc.CompressionError), match="no_such_option"):
        PUBLIC[name](*CALLS[name], **OPTIONS.get(name, {}), no_such_option=1)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented_with_an_example(name):
    thing = PUBLIC[name]
    doc = inspect.getdoc(thing) or ""
    assert len(doc.splitlines()[0]) > 10
    if name.endswith("_vjp"):  # one line and the law: the rest is the forward function's
        assert doc.startswith(f"The vector-Jacobian product of `{name.removesuffix('_vjp')}`")
    elif inspect.isfunction(thing):
        assert re.search(r"^Examples\n---", doc, re.M)
        assert ">>> " in doc
        if len(inspect.signature(thing).parameters) > 1:
            assert re.search(r"^Parameters\n---", doc, re.M)
            assert re.search(r"^Returns\n---", doc, re.M)


def test_optimizers_views_and_pullbacks_are_pure_too():
    for optimizer in (mc.sgd(0.1, momentum=0.9), mc.adam(0.1)):
        state = optimizer.init(model)
        check_pure(optimizer.init, model)
        check_pure(optimizer.update, model, gradients, state)
        _, state = optimizer.update(model, gradients, state)
        check_pure(optimizer.update, model, gradients, state)
    for view, model_of_it in (
        (mc.recipes.preserve_structure(pruned), model),
        (mc.recipes.rate_view(float), latent),
    ):
        check_pure(view, model_of_it, 3)
        check_pure(view(model_of_it, 3).pullback, gradients)
    y, pullback = mc.nn.vjp(model, rows)
    check_pure(pullback, np.ones_like(y))
