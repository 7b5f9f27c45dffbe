"""Quantization: what a bit is worth, and a scale for each channel.

Every weight is rounded to one of 2**bits evenly spaced levels. A weight moves by half a step at
most, so one bit less doubles the bound. One scale for the whole array must reach its largest entry;
a scale for each output channel must only reach the largest entry of that channel.

    python examples/04_quantize_bit_by_bit.py [figure.png]
"""

import sys
from functools import partial

import numpy as np
from _figures import draw

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
            quantize = partial(mc.quantize, num_bits=bits, axis=axis)
            plan = dict.fromkeys(mc.search.weights(model), quantize)
            rounded, certificates = mc.compress(model, plan)
            _, bound, error = mc.search.total(certificates.values())
            size = mc.summary(rounded, (8, 8, 1)).packed_bytes
            accuracy = mc.accuracy(rounded, *validation)
            cells.append(f"{size:5}  {bound:6.3f}  {error:6.3f}  {accuracy:8.2%}")
            curve.append((axis, bits, bound, error, accuracy))
        print(f"{bits:4}  {'    '.join(cells)}")

    # The bound doubles with each bit less. The error is about 0.58 of the bound: rounding errors
    # are spread evenly over half a step, and the root of their mean square is half a step divided
    # by sqrt(3).
    def plot(figure):
        axes = figure.subplots()
        for axis, name, color in ((None, "weight", "C0"), (-1, "channel", "C1")):
            _, bits, bound, error, _ = zip(*(p for p in curve if p[0] == axis))
            axes.semilogy(bits, bound, color=color, label=f"bound, a scale for each {name}")
            axes.plot(bits, error, "o", color=color, label=f"error, a scale for each {name}")
        axes.set(xlabel="bits", ylabel="error of the weights", title="Quantizing a digits CNN")
        axes.legend()

    draw(plot, figure)


if __name__ == "__main__":
    main(*sys.argv[1:2])
