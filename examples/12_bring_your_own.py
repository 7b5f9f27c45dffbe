"""From somebody's ONNX file to a smaller one.

The file comes in as a network, which computes what onnxruntime computes. Weights get fewer bits.
The rounding of one weight is compensated by the others, and the mean of every output is restored:
that needs some inputs without labels. Nothing is trained. The result goes out as ONNX again.

    python examples/12_bring_your_own.py [figure.png] [FILE.onnx for digits]

Without a file the lesson makes one: a small residual network. It needs the package onnx, and
compares with onnxruntime where that is installed.
"""

import importlib.util
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from _figures import draw

import minicompress as mc

SHAPE, EPOCHS, CALIBRATION = (8, 8, 1), 8, 256


def somebody(path):
    """Train a network on the digits and leave nothing of it but an ONNX file."""
    rng, train = np.random.default_rng(0), mc.load_digits("train")
    optimizer = mc.adam(mc.nn.cosine_lr(3e-3, EPOCHS * -(-len(train[0]) // 32)))
    options = {"optimizer": optimizer, "epochs": EPOCHS, "batch_size": 32, "rng": rng}
    network, _ = mc.fit(mc.nn.digits_resnet(rng), *train, **options)
    mc.interchange.save_onnx(network, path, SHAPE)


def in_onnxruntime(path, x):
    """The outputs of a file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def compensated(network, bits, x):
    """Weights of so many bits, each rounded with a view to the others; then the biases."""
    method = partial(mc.compressors.compensated_quantize, num_bits=bits, axis=-1)
    made = mc.rewrite.compensate(network, dict.fromkeys(mc.search.weights(network), method), x)
    return mc.rewrite.correct_bias(made.model, network, x)


def nearest(network, bits, x):
    """Weights of so many bits, each rounded on its own."""
    method = partial(mc.quantize, num_bits=bits, axis=-1)
    return mc.compress(network, dict.fromkeys(mc.search.weights(network), method)).model


def main(figure="12_bring_your_own.png", file=None):
    if not importlib.util.find_spec("onnx"):
        print("this lesson needs a package that is not installed: pip install '.[onnx]'")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(file or f"{folder}/somebody.onnx")
        if file is None:
            somebody(path)
        rows = lesson(path, Path(folder))

    def plot(figure):
        axes = figure.subplots()
        for name, size, error, _, _ in rows:
            axes.plot(size, error, "o")
            axes.annotate(name, (size, error), textcoords="offset points", xytext=(4, 6))
        axes.set(xscale="log", yscale="symlog", xlabel="bytes of the ONNX file")
        axes.set(ylabel="error of the outputs, %", title="Smaller ONNX files, without training")

    draw(plot, figure)


def lesson(path, folder):
    """Read the file, make it smaller in five ways, and print what that costs."""
    print(mc.interchange.onnx_report(path))  # what is in the file, and what would stop us
    network = mc.rewrite.fold_batch_norm(mc.interchange.from_onnx(path))
    x = mc.load_digits("train")[0][:CALIBRATION]
    images, labels = mc.load_digits("test")
    original, rows = network(images), []
    runtime = bool(importlib.util.find_spec("onnxruntime"))

    print("\nweights               bytes  error  same class  test images")

    def show(name, model):
        made = folder / "smaller.onnx"
        size = mc.interchange.save_onnx(model, made, SHAPE)
        # What is measured is the file, where something can run it.
        y = in_onnxruntime(made, images) if runtime else model(images)
        error = 100 * np.linalg.norm(y - original) / np.linalg.norm(original)
        same = np.mean(y.argmax(1) == original.argmax(1))
        right = np.mean(y.argmax(1) == labels)
        rows.append((name, size, error, same, right))
        print(f"{name:18} {size:8,}  {error:4.1f}%  {same:10.2%}  {right:11.2%}")

    show("float32", network)
    show("int8", nearest(network, 8, x))
    show("int4", nearest(network, 4, x))
    show("int4, compensated", compensated(network, 4, x))
    show("integers, 8 bits", mc.integer.to_integer(network, x))
    print(
        "\nthe last has codes of 8 bits between the layers, too: onnxruntime computes with integers"
    )
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:3])
