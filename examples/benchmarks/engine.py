"""How fast the engine is: as ratios, measured in one run, against whoever is installed.

    python examples/benchmarks/engine.py [--batches 1 64 256] [--save FILE]

Forward and training step of three networks, against the bare matrix products of the same
operations in NumPy, PyTorch (the better of its two layouts) and onnxruntime, two threads each.

The rivals take turns in blocks, not call by call: workers of a BLAS spin for a while after a call
and steal a core from whoever runs next. A block is a pause, a warm-up call, and then at least 50 ms
of calls; its figure is their median, and the figure of a rival is the median of its blocks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "2")

import numpy as np
import scipy

import minicompress as mc
from minicompress.nn.network import value_shapes

torch = ort = onnx = None
with contextlib.suppress(ImportError):
    import torch
with contextlib.suppress(ImportError):
    import onnx
    import onnxruntime as ort

PAUSE, BLOCK, ROUNDS = 0.16, 0.05, 3
NETWORKS: dict[str, Callable[..., mc.Sequential]] = {
    "seed CNN": mc.seed_cnn,
    "LeNet-5": mc.lenet5,
    "LeNet-300-100": mc.lenet_300_100,
}
INPUT = (28, 28, 1)


def block(call: Callable[[], object]) -> float:
    """The median time of a call, in one undisturbed block of them."""
    time.sleep(PAUSE)
    call()
    times, end = [], time.perf_counter() + BLOCK
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def race(rivals: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median block of each rival, in turns."""
    blocks: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(ROUNDS):
        for name, call in rivals.items():
            blocks[name].append(block(call))
    return {name: statistics.median(times) for name, times in blocks.items()}


# The rivals --------------------------------------------------------------------------------------


def products(model: mc.Sequential, batch: int, training: bool) -> Callable[[], None]:
    """Nothing but the matrix products of the same operations, into buffers that are there."""
    rng = np.random.default_rng(0)
    jobs, first = [], True
    for layer, out in zip(model.layers, value_shapes(model, INPUT)[1:], strict=True):
        if not isinstance(layer, mc.Conv2D | mc.Dense):
            continue
        weight = np.asarray(layer.weight)
        w = weight.reshape(-1, weight.shape[-1])
        x = rng.random((batch * math.prod(out[:-1]), len(w)), np.float32)
        y = np.empty((len(x), w.shape[1]), np.float32)
        jobs.append((x, w, y))
        if training:
            jobs.append((x.T, y, np.empty_like(w)))
            if not first:  # nobody needs the gradient of the images
                jobs.append((y, np.ascontiguousarray(w.T), np.empty_like(x)))
        first = False

    def call() -> None:
        for a, b, out in jobs:
            np.matmul(a, b, out=out)

    return call


def engine_forward(model: mc.Sequential, x: np.ndarray) -> Callable[[], object]:
    return lambda: model(x)


def engine_step(model: mc.Sequential, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    optimizer = mc.sgd(0.01, momentum=0.9)
    state = [model, optimizer.init(model)]

    def call() -> None:
        logits, pullback = mc.nn.vjp(state[0], x, input_gradient=False)
        _, dlogits = mc.nn.softmax_cross_entropy(logits, y)
        _, gradients = pullback(dlogits)
        state[0], state[1] = optimizer.update(state[0], gradients, state[1])

    return call


def torch_network(model: mc.Sequential):
    """The same network with the same weights in PyTorch's layout."""
    layers = []
    for layer in model.layers:
        match layer:
            case mc.Conv2D():
                kh, kw, i, o = layer.weight.shape
                new = torch.nn.Conv2d(i, o, (kh, kw), stride=layer.stride)
                new.weight.data = torch.tensor(layer.weight.transpose(3, 2, 0, 1).copy())
                new.bias.data = torch.tensor(np.array(layer.bias))
            case mc.Dense():
                new = torch.nn.Linear(*layer.weight.shape)
                new.weight.data = torch.tensor(np.array(layer.weight.T))
                new.bias.data = torch.tensor(np.array(layer.bias))
            case mc.ReLU():
                new = torch.nn.ReLU()
            case mc.MaxPool2D():
                new = torch.nn.MaxPool2d(layer.window)
            case mc.Flatten():
                new = torch.nn.Flatten()
            case _:
                raise ValueError(f"no counterpart for {layer!r}")
        layers.append(new)
    return torch.nn.Sequential(*layers)


def torch_rivals(model: mc.Sequential, x: np.ndarray, y: np.ndarray, training: bool):
    """One call for each memory layout; the better one counts."""
    if torch is None:
        return
    torch.set_num_threads(2)
    for layout in (torch.contiguous_format, torch.channels_last):
        network = torch_network(model).to(memory_format=layout)
        images = torch.tensor(x.transpose(0, 3, 1, 2).copy()).to(memory_format=layout)
        labels = torch.tensor(y)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

        def forward(network=network, images=images) -> None:
            with torch.inference_mode():
                network(images)

        def step(network=network, images=images, labels=labels, optimizer=optimizer) -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()

        yield f"torch {str(layout).removeprefix('torch.')}", step if training else forward


def onnx_rival(model: mc.Sequential, x: np.ndarray) -> Callable[[], object]:
    """The same network as an ONNX graph, in NCHW."""
    nodes, weights, name = [], [], "x"

    def node(kind: str, *arrays: np.ndarray, **attributes) -> None:
        nonlocal name
        inputs = [name]
        for array in arrays:
            inputs.append(f"w{len(weights)}")
            weights.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), inputs[-1]))
        nodes.append(onnx.helper.make_node(kind, inputs, [f"y{len(nodes)}"], **attributes))
        name = f"y{len(nodes) - 1}"

    rows = None
    for layer, shape in zip(model.layers, value_shapes(model, INPUT)[:-1], strict=True):
        match layer:
            case mc.Conv2D():
                kernel = np.asarray(layer.weight).transpose(3, 2, 0, 1)
                node("Conv", kernel, np.asarray(layer.bias), strides=list(layer.stride))
            case mc.Dense():
                weight = np.asarray(layer.weight)
                if rows is not None:  # rows behind a Flatten, in the order of NCHW
                    h, w, c = rows
                    weight = (
                        weight.reshape(h, w, c, -1).transpose(2, 0, 1, 3).reshape(h * w * c, -1)
                    )
                node("Gemm", weight, np.asarray(layer.bias))
                rows = None
            case mc.ReLU():
                node("Relu")
            case mc.MaxPool2D():
                node("MaxPool", kernel_shape=list(layer.window), strides=list(layer.window))
            case mc.Flatten():
                node("Flatten")
                rows = shape
            case _:
                raise ValueError(f"no counterpart for {layer!r}")
    images = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [onnx.helper.make_tensor_value_info("x", float32, images.shape)],
        [onnx.helper.make_tensor_value_info(name, float32, [len(x), 10])],
        weights,
    )
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    difference = np.abs(session.run(None, {"x": images})[0] - model(x)).max()
    assert difference < 1e-3, f"not the same network: {difference}"
    return lambda: session.run(None, {"x": images})


# The table ---------------------------------------------------------------------------------------


def measure(name: str, batch: int, training: bool) -> dict[str, float]:
    """The times of all rivals for one row of the table, in seconds."""
    rng = np.random.default_rng(0)
    model = NETWORKS[name](rng)
    x = rng.random((batch, *INPUT), np.float32)
    y = rng.integers(0, 10, batch)
    rivals = {
        "ours": engine_step(model, x, y) if training else engine_forward(model, x),
        "products": products(model, batch, training),
        **dict(torch_rivals(model, x, y, training)),
    }
    if ort is not None and not training:
        rivals["onnxruntime"] = onnx_rival(model, x)
    times = race(rivals)
    layouts = [seconds for rival, seconds in times.items() if rival.startswith("torch")]
    return times | ({"torch": min(layouts)} if layouts else {})


def machine() -> str:
    """What the figures were measured with."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    config = io.StringIO()
    with contextlib.redirect_stdout(config):
        np.show_config()
    text = config.getvalue()
    blas = next((x.strip() for x in text.splitlines() if "openblas configuration" in x), "")
    versions = [
        f"Python {platform.python_version()}",
        f"NumPy {np.__version__}",
        f"SciPy {scipy.__version__}",
        f"PyTorch {torch.__version__}" if torch else "PyTorch not installed",
        f"onnxruntime {ort.__version__}" if ort else "onnxruntime not installed",
    ]
    return f"{model}, {os.cpu_count()} cores, 2 threads\n{', '.join(versions)}\n{blas}"


def table(batches: list[int]) -> str:
    """One row for each network, batch and direction; then the geometric means at batch 64."""
    columns = ("products", "torch", "onnxruntime")
    lines = [
        f"{'network':<14} {'what':<8} {'batch':>5} {'ours, ms':>9}"
        + "".join(f"{'/ ' + c:>14}" for c in columns)
    ]
    means: dict[tuple[str, str], list[float]] = {}
    for training in (False, True):
        what = "step" if training else "forward"
        for batch in batches:
            for name in NETWORKS:
                times = measure(name, batch, training)
                line = f"{name:<14} {what:<8} {batch:>5} {1e3 * times['ours']:>9.2f}"
                for column in columns:
                    if column in times:
                        ratio = times["ours"] / times[column]
                        line += f"{ratio:>14.2f}"
                        if batch == 64:
                            means.setdefault((what, column), []).append(ratio)
                    else:
                        line += f"{'-':>14}"
                lines.append(line)
                print(line, file=sys.stderr, flush=True)
    lines.append("")
    for (what, column), ratios in means.items():
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        lines.append(f"geometric mean at batch 64, {what} / {column}: {mean:.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--save", type=Path, help="write the table to a file too")
    options = parser.parse_args()
    text = f"{machine()}\n\n{table(options.batches)}\n"
    print(text)
    if options.save:
        options.save.write_text(text)


if __name__ == "__main__":
    main()
