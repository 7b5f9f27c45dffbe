"""Quantization: what a bit is worth, and a scale for every channel.

Every weight is rounded to one of 2**bits evenly spaced levels. Half a step is the farthest that a
weight can move, so a bit less doubles the bound. One scale for a whole weight has to reach its
largest entry; a scale for each output channel only that channel's.

    python examples/04_quantize_bit_by_bit.py [figure.png]
"""

import sys

import numpy as np

import minicompress as mc


def main(figure="04_quantize_bit_by_bit.png"):
    x, y = mc.load_digits("train")
    rng = np.random.default_rng(0)
    model, _ = mc.fit(
        mc.digits_cnn(rng), x, y, optimizer=mc.adam(3e-3), epochs=10, batch_size=32, rng=rng
    )
    validation = mc.load_digits("validation")
    dense = mc.summary(model, (8, 8, 1)).dense_bytes
    print(f"float32: {dense} bytes,", end=" ")
    print(f"accuracy {mc.accuracy(model, *validation):.2%} on the validation images\n")

    print("      one scale for each weight          one scale for each channel")
    print("bits  bytes   bound   error  accuracy    bytes   bound   error  accuracy")
    curve = []
    for bits in (8, 7, 6, 5, 4, 3, 2):
        cells = []
        for axis in (None, -1):
            rounded, bound, error = quantized(model, bits, axis)
            size = mc.summary(rounded, (8, 8, 1)).packed_bytes
            accuracy = mc.accuracy(rounded, *validation)
            cells.append(f"{size:5}  {bound:6.3f}  {error:6.3f}  {accuracy:8.2%}")
            curve.append((axis, bits, bound, error, accuracy))
        print(f"{bits:4}  {'    '.join(cells)}")

    # The bound doubles with each bit that goes, and the error stays about 0.58 of it: errors are
    # spread evenly over half a step, and the root of their mean square is 1 / sqrt(3) of it.
    draw(curve, figure)


def quantized(model, bits, axis):
    """The model with every weight quantized, and the bound and error of all of them together."""
    changed, certificates = [], []
    for parameters in mc.nn.parameters(model):
        changed.append({})
        if "weight" in parameters:
            rep, cert = mc.quantize(parameters["weight"], num_bits=bits, axis=axis)
            changed[-1] = {"weight": rep}
            certificates.append(cert)
    bound = sum(cert.bound**2 for cert in certificates) ** 0.5
    error = sum(cert.measured**2 for cert in certificates) ** 0.5
    return mc.nn.with_parameters(model, tuple(changed)), bound, error


def draw(curve, path):
    """Bound and error over the bits, if matplotlib is there to draw them."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("\n(no figure: matplotlib is not installed)")
        return
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for axis, name, color in ((None, "weight", "C0"), (-1, "channel", "C1")):
        _, bits, bound, error, _ = zip(*(p for p in curve if p[0] == axis), strict=True)
        axes.plot(bits, bound, color=color, label=f"bound, a scale for each {name}")
        axes.plot(bits, error, "o", color=color, label=f"error, a scale for each {name}")
    axes.set(xlabel="bits", ylabel="error of the weights", title="Quantizing a digits CNN")
    axes.set_yscale("log")
    axes.legend()
    figure.savefig(path)
    print(f"\nfigure: {path}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
