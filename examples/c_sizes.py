"""Out of Python: what a network takes on a microcontroller, flash and RAM, exactly.

Two networks as C files of integers, their weights at 8 and 4 bits, beside what floats would take:
4 bytes for each parameter in flash; in RAM, which is what lies between the layers, 4 bytes for each
number where the C file has 1. Of flash these are the constants; the code on top of them is the
compiler's, one to three kilobytes.

    python examples/c_sizes.py [folder]

The C files are left in the folder, if one is named. The digits CNN is calibrated on the shipped
digits and LeNet-5 on random images; neither is trained, for sizes do not depend on that. What is
pruned or shared does: then 90 % of every weight is zeros, or all entries are 16 values.
"""

import re
import sys
import tempfile
from pathlib import Path

import numpy as np

import minicompress as mc


def main(folder=None):
    if folder is not None:
        print(table(Path(folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        print(table(Path(temporary)))


def table(folder):
    """One line for each network and form: bytes of flash and of RAM."""
    lines = [f"{'network':12}{'weights':22}{'flash':>9}{'of floats':>11}{'RAM':>8}"]
    rng = np.random.default_rng(0)
    digits, images = mc.load_digits("train")[0][:200], rng.random((20, 28, 28, 1), np.float32)
    for name, model, calibration in (
        ("digits CNN", mc.digits_cnn(rng), digits),
        ("LeNet-5", mc.lenet5(rng), images),
    ):
        floats = mc.summary(model, calibration.shape[1:]).dense_bytes
        rows = []
        for form, changed, bits in forms(model):
            integers = mc.integer.to_integer(changed, calibration, num_bits=bits)
            file = re.sub(r"\W+", "_", f"{name} {form}".lower()) + ".c"
            rows.append((form, mc.interchange.export_c(integers, folder / file)))
        ram = 4 * rows[0][1].ram_bytes
        lines.append(f"{name:12}{'float32':22}{floats:9,}{1:11.1%}{ram:8,}")
        for form, made in rows:
            part = made.flash_bytes / floats
            lines.append(f"{'':12}{form:22}{made.flash_bytes:9,}{part:11.1%}{made.ram_bytes:8,}")
    return "\n".join(lines)


def forms(model):
    """The model, and its weights changed, with a name and the bits of what is left."""
    yield "8 bits", model, 8
    yield "4 bits", model, 4
    yield "90 % pruned, 8 bits", changed(model, pruned), 8
    yield "16 values, 8 bits", changed(model, shared), 8
    yield "both", changed(model, lambda weight: shared(pruned(weight))), 8


def pruned(weight):
    return mc.decode(mc.prune_magnitude(weight, amount=0.9).rep)


def shared(weight):
    # One scale for the whole weight keeps 16 values 16 codes.
    return mc.quantize(mc.decode(mc.cluster(weight, n_clusters=16).rep)).rep


def changed(model, change):
    """The model with every weight changed, biases left alone."""
    parameters = tuple(
        {"weight": change(layer["weight"])} if "weight" in layer else {}
        for layer in mc.nn.parameters(model)
    )
    return mc.nn.with_parameters(model, parameters)


if __name__ == "__main__":
    main(*sys.argv[1:2])
