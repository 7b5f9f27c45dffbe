"""Low rank: what each singular value of a kernel is worth.

A 3x3 kernel with 16 inputs and 32 outputs is a matrix of 144 rows and 32 columns. Keeping only its
largest singular values gives the nearest matrix of that rank. The error is known beforehand: it is
the root of the sum of the squares of the dropped singular values.

    python examples/02_low_rank_curve.py [figure.png]
"""

import sys

import numpy as np
from _figures import draw

import minicompress as mc

KERNEL = 2  # the layer whose weight is factored


def main(figure="02_low_rank_curve.png"):
    x, y = mc.load_digits("train")
    rng = np.random.default_rng(0)
    model, _ = mc.fit(
        mc.digits_cnn(rng), x, y, optimizer=mc.adam(3e-3), epochs=10, batch_size=32, rng=rng
    )
    kernel = model.layers[KERNEL].weight
    validation = mc.load_digits("validation")
    print(f"kernel {kernel.shape}: {kernel.size} parameters,", end=" ")
    print(f"accuracy {mc.accuracy(model, *validation):.2%} on the validation images\n")

    print("rank  params   bound   error  accuracy")
    curve = []
    for rank in (0, 1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32):
        rep, cert = mc.low_rank(kernel, rank=rank)
        # The kernel now runs as two: `rank` filters of 3x3, then 1x1 to the 32 outputs.
        accuracy = mc.accuracy(mc.search.with_weights(model, {KERNEL: rep}), *validation)
        params = mc.num_params(rep)
        curve.append((rank, cert.bound, cert.measured, accuracy))
        note = "" if params < kernel.size else "  saves nothing"
        print(f"{rank:4}  {params:6}  {cert.bound:6.3f}  {cert.measured:6.3f}", end="  ")
        print(f"{accuracy:8.2%}{note}")

    # Three things to see: the bound equals the error; the error falls slowly, because training
    # leaves no gap between large and small singular values; and the accuracy is back long before
    # the error is zero.
    def plot(figure):
        rank, bound, measured, accuracy = zip(*curve)
        left = figure.subplots()
        left.plot(rank, bound, label="proven bound")
        left.plot(rank, measured, "o", label="measured error")
        left.set(xlabel="rank", ylabel="error of the kernel", title="Low rank on a digits CNN")
        left.legend(loc="center right")
        right = left.twinx()
        right.plot(rank, accuracy, "k--")
        right.set_ylabel("accuracy (dashed)")

    draw(plot, figure)


if __name__ == "__main__":
    main(*sys.argv[1:2])
