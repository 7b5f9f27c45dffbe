"""Six networks that others trained, brought in from ONNX and compressed in eight ways.

Each network is compared with onnxruntime. Then its weights are compressed, and the outputs on crops
of a photograph (which comes with matplotlib) are compared with those of the original. Two networks
look for text: words are written on their crops, on half of them upside down. The last rows are the
network in integers throughout, beside onnxruntime's own static quantization, both from the same
crops.

    python examples/networks/compare.py FOLDER [results.txt] [part of a file's name]

FOLDER holds the ONNX files named in NETWORKS. It needs onnx, onnxruntime and matplotlib.
"""

import logging
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import onnx
import onnxruntime
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

import minicompress as mc

IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
WORDS = "weight", "pruned", "rank", "bits", "bound", "layer", "codes", "small", "network"
CROPS = 32  # to measure; as many others calibrate


class Input(NamedTuple):
    """What a network reads: (x - mean) / deviation of pixels from 0 to 1.

    Some want fewer crops. On some, so many lines of text are written.
    """

    shape: tuple[int, int, int]
    mean: object = 0.5
    deviation: object = 0.5
    crops: int = CROPS
    lines: int = 0


NETWORKS = {
    "mtcnn_pnet.onnx": Input((64, 64, 3), 127.5 / 255, 128 / 255),
    "mtcnn_rnet.onnx": Input((24, 24, 3), 127.5 / 255, 128 / 255),
    "mtcnn_onet.onnx": Input((48, 48, 3), 127.5 / 255, 128 / 255),
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": Input((48, 192, 3), lines=1),
    "ch_PP-OCRv4_det_infer.onnx": Input((320, 320, 3), *IMAGENET, crops=4, lines=5),
    "efficientnet_lite0.onnx": Input((224, 224, 3), 127 / 255, 128 / 255),
}


# ---- inputs


def crops(wanted, rng):
    """Crops of the photograph, calibration and measurement, as one network reads them."""
    folder = Path(matplotlib.get_data_path()) / "sample_data"
    photograph = image.imread(folder / "grace_hopper.jpg") / np.float32(255)
    height, width = wanted.shape[:2]
    found = []
    for _ in range(2 * wanted.crops):
        scale = rng.uniform(0.3, 1.0) * min(512 / width, 600 / height)
        rows, columns = int(scale * height), int(scale * width)
        top, left = rng.integers(0, 601 - rows), rng.integers(0, 513 - columns)
        crop = photograph[top : top + rows, left : left + columns]
        crop = resized(crop, height, width)[:, :: rng.choice([1, -1])]
        found.append(written(crop, wanted.lines, rng) if wanted.lines else crop)
    x = ((np.stack(found) - wanted.mean) / wanted.deviation).astype(np.float32)
    return x[: wanted.crops], x[wanted.crops :]


def resized(pixels, height, width):
    """Bilinear, from blocks of pixels averaged first where it becomes smaller."""
    for axis, size in enumerate((height, width)):
        pixels = np.moveaxis(pixels, axis, 0)
        block = max(len(pixels) // size, 1)
        whole = pixels[: len(pixels) // block * block]
        means = whole.reshape(-1, block, *whole.shape[1:]).mean(1)
        places = np.linspace(0, len(means) - 1, size)
        low = places.astype(int)
        part = (places - low)[:, np.newaxis, np.newaxis]
        above = means[np.minimum(low + 1, len(means) - 1)]
        pixels = np.moveaxis(means[low] * (1 - part) + above * part, 0, axis)
    return pixels


def written(pixels, lines, rng):
    """Lines of words on an image; upside down every other time."""
    height, width = pixels.shape[:2]
    figure = Figure((width / 72, height / 72), dpi=72)
    canvas = FigureCanvasAgg(figure)
    figure.figimage(pixels)
    size = 0.5 * height / lines
    for line in range(lines):
        text = " ".join(rng.choice(WORDS, max(int(1.2 * width / size / 6), 1)))
        place = 0.05 + 0.1 * rng.random(), (line + 0.35) / lines
        color = "black" if pixels.mean() > 0.5 else "white"
        figure.text(*place, text, size=size, color=color)
    canvas.draw()
    made = np.asarray(canvas.buffer_rgba())[..., :3] / np.float32(255)
    return made[::-1, ::-1] if rng.random() < 0.5 else made


# ---- what is measured


def outputs(run, x):
    made = run(x)
    return made if isinstance(made, tuple) else (made,)


def in_onnxruntime(path, x, channels_first):
    """The outputs of a file, one crop at a time, with channels last."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, rows = session.get_inputs()[0].name, []
    for one in x:
        made = session.run(None, {name: (one.transpose(2, 0, 1) if channels_first else one)[None]})
        move = channels_first
        rows.append([v.transpose(0, 2, 3, 1) if move and v.ndim == 4 else v for v in made])
    return tuple(np.concatenate(parts) for parts in zip(*rows, strict=True))


def deciding(network):
    """The output that says the class: a Softmax or a Sigmoid, or else the first."""
    kinds = mc.nn.Softmax, mc.nn.Sigmoid
    found = [isinstance(network.layers[v - 1], kinds) for v in network.outputs]
    return found.index(True) if True in found else 0


def classes(y):
    """The class; of a single probability, whether it is above 0.5."""
    return y > 0.5 if y.shape[-1] == 1 else y.argmax(-1)


def relative_error(ys, originals):
    off = sum(float(np.square(y - o, dtype=np.float64).sum()) for y, o in zip(ys, originals))
    return (off / sum(float(np.square(o, dtype=np.float64).sum()) for o in originals)) ** 0.5


# ---- eight ways


def every(network, method):
    """The method for every layer with a weight."""
    return mc.compress(network, dict.fromkeys(mc.search.weights(network), method)).model


def per_channel(bits):
    return partial(mc.quantize, num_bits=bits, axis=-1)


def compensated(network, x, bits=4):
    """Compensated rounding where it applies, nearest rounding elsewhere; then biases corrected."""
    method = partial(mc.compressors.compensated_quantize, num_bits=bits, axis=-1)
    kinds = mc.Conv2D, mc.Dense
    plan = {i: method for i in mc.search.weights(network) if isinstance(network.layers[i], kinds)}
    made = mc.rewrite.compensate(network, plan, x).model
    rest = {i: per_channel(bits) for i in mc.search.weights(network) if i not in plan}
    made = mc.compress(made, rest).model
    return mc.rewrite.correct_bias(made, network, x)


def half_rank(network):
    """Half the parameters, of every matrix and kernel without groups that has 16 columns."""
    plan = {}
    for i, weight in mc.search.weights(network).items():
        layer = network.layers[i]
        whole = isinstance(layer, mc.Dense) or (isinstance(layer, mc.Conv2D) and layer.groups == 1)
        if whole and weight.shape[-1] >= 16:
            plan[i] = partial(mc.low_rank, max_params=weight.size // 2)
    return mc.compress(network, plan).model


half = partial(mc.prune_magnitude, amount=0.5)
METHODS = {
    "int8": lambda network, x: every(network, per_channel(8)),
    "int6": lambda network, x: every(network, per_channel(6)),
    "int4": lambda network, x: every(network, per_channel(4)),
    "int4 compensated": compensated,
    "pruned 50%": lambda network, x: every(network, half),
    "pruned 50%, int8": lambda network, x: every(
        network, mc.chain(half, partial(mc.quantize, num_bits=8))
    ),
    "rank for 50%": lambda network, x: half_rank(network),
    "cluster16": lambda network, x: every(network, partial(mc.cluster, n_clusters=16)),
}


# ---- integers


class Crops(CalibrationDataReader):
    """Calibration as onnxruntime reads it."""

    def __init__(self, name, x):
        self.inputs = iter([{name: one.transpose(2, 0, 1)[None]} for one in x])

    def get_next(self):
        return next(self.inputs, None)


def integers(network, path, calibration, x, scratch):
    """Networks in integers: ours, ours with corrected biases, that as ONNX, onnxruntime's own."""
    small = mc.integer.to_integer(network, calibration)
    yield "integers", "", outputs(small, x)
    rounded = every(network, partial(mc.quantize, num_bits=8, axis=-1, narrow_range=True))
    rounded = mc.nn.decoded(mc.rewrite.correct_bias(rounded, network, calibration))
    small = mc.integer.to_integer(rounded, calibration)
    ours, theirs = str(scratch / "ours.onnx"), str(scratch / "theirs.onnx")
    yield "integers, biases corrected", "", outputs(small, x)
    size = mc.interchange.save_onnx(small, ours)
    yield "the same in onnxruntime", size, in_onnxruntime(ours, x, False)
    name = onnx.load(path).graph.input[0].name
    logging.disable(logging.WARNING)  # it advises pre-processing
    quantize_static(path, theirs, Crops(name, calibration), quant_format=QuantFormat.QDQ,
                    per_channel=True)  # fmt: skip
    size = Path(theirs).stat().st_size
    yield "onnxruntime's static int8", size, in_onnxruntime(theirs, x, True)


# ---- the table


def compare(path, wanted, show):
    """All rows of one network."""
    network = mc.interchange.from_onnx(path, input_shape=wanted.shape)
    calibration, x = crops(wanted, np.random.default_rng(0))
    count = mc.summary(network, wanted.shape)
    size = Path(path).stat().st_size
    show(f"\n{path.name}: {len(network.layers)} layers, {count.params:,} parameters, "
         f"{count.macs:,} MACs, {size:,} bytes")  # fmt: skip
    runtime, original = in_onnxruntime(str(path), x, True), outputs(network, x)
    apart = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(original, runtime))
    show(f"at most {apart:.1e} of the largest output from onnxruntime, on {len(x)} crops")
    show(f"{'':26}{'bytes':>10}  {'smaller':>7}  {'error':>7}  {'same class':>10}  {'seconds':>7}")
    network, which = mc.rewrite.fold_batch_norm(network), deciding(network)
    start = time.perf_counter()

    def row(name, size, made, error=True):
        nonlocal start
        agree = np.mean(classes(made[which]) == classes(original[which]))
        error = f"{relative_error(made, original):7.4f}" if error else f"{'':7}"
        smaller = f"{path.stat().st_size / size:7.2f}" if size else f"{'':7}"
        size = f"{size:10,}" if size else f"{'':10}"
        took = time.perf_counter() - start
        show(f"{name:26}{size}  {smaller}  {error}  {agree:10.2%}  {took:7.1f}")
        start = time.perf_counter()

    with tempfile.TemporaryDirectory() as scratch:
        for name, method in METHODS.items():
            made = method(network, calibration)
            size = mc.save(made, Path(scratch) / "small.mcz", coding="huffman")
            row(name, size, outputs(made, x))
        # Integers end before a Softmax: their classes are comparable, their outputs are not.
        softmax = any(isinstance(network.layers[v - 1], mc.Softmax) for v in network.outputs)
        for found in integers(network, str(path), calibration, x, Path(scratch)):
            row(*found, error=not softmax or found[0].startswith("onnxruntime"))


def main(folder, results="results.txt", only=""):
    lines = []

    def show(line):
        print(line, flush=True)
        lines.append(line)

    show("bytes: of the .mcz file (Huffman) or the ONNX file; smaller: than the original ONNX file")
    show("error: of all outputs, relative to their norm; seconds: to compress, write and run")
    for name, wanted in NETWORKS.items():
        if only in name:
            compare(Path(folder) / name, wanted, show)
    Path(results).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:4])
