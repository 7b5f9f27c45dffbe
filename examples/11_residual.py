"""A residual network goes the whole way: fewer channels, int8, a certificate, C.

Channels that a shortcut adds are tied: they are removed together, chosen by their norms together.
Batch normalizations are folded into the convolutions before them first; then a norm tells what a
channel contributes.

    python examples/11_residual.py [figure.png] [folder for the C files]
"""

import sys
import tempfile
from functools import partial

import numpy as np
from _figures import draw

import minicompress as mc

SHAPE, EPOCHS, IMAGES, EPS = (8, 8, 1), 8, 10, 1 / 64
int8 = partial(mc.quantize, num_bits=8, axis=-1)


def main(figure="11_residual.png", folder=None):
    train, validation, test = (mc.load_digits(s) for s in ("train", "validation", "test"))
    rng = np.random.default_rng(0)

    def fit(network, epochs, rate):
        steps = epochs * -(-len(train[0]) // 32)
        optimizer = mc.adam(mc.nn.cosine_lr(rate, steps))
        return mc.fit(network, *train, optimizer=optimizer, epochs=epochs, batch_size=32, rng=rng)[
            0
        ]

    rows = []

    def show(name, network):
        count, right = mc.summary(network, SHAPE, file=True), mc.accuracy(network, *validation)
        rows.append((name, count.macs, count.file_bytes, right))
        print(f"{name:18} {count.params:7,}  {count.macs:8,}  {count.file_bytes:7,}  {right:8.2%}")

    print("step                params      MACs    bytes  accuracy")
    network = fit(mc.nn.digits_resnet(rng), EPOCHS, 3e-3)
    show("residual network", network)
    network = mc.rewrite.fold_batch_norm(network)
    show("folded", network)
    network = mc.rewrite.remove_least_channels(network, 0.5)
    show("half the channels", network)
    network = fit(network, EPOCHS // 2, 2e-3)
    show("trained on", network)
    small = mc.compress(network, dict.fromkeys(mc.search.weights(network), int8)).model
    show("int8 weights", small)

    # How far the outputs of the two can be apart for every image within EPS of a test image.
    images = test[0][:IMAGES]
    proven = mc.certify.ball_certificates(network, small, images, eps=EPS, clip=(0.0, 1.0))
    found = mc.certify.attack(network, small, images, eps=EPS, clip=(0.0, 1.0), rng=rng)
    print(
        f"\noutputs differ by at most {np.median([c.bound for c in proven]):.3f} (median,", end=" "
    )
    print(f"proven), {np.median(found):.3f} (found by a search); {len(proven)} images,", end=" ")
    print(f"every pixel within 1/{round(1 / EPS)}")

    # In integers throughout, as a microcontroller runs it. The test images see it once.
    whole = mc.integer.to_integer(network, train[0][:256])
    with tempfile.TemporaryDirectory() as scratch:
        made = mc.interchange.export_c(whole, folder or scratch)
        print(f"in C: {made.flash_bytes:,} bytes of constants, {made.ram_bytes:,} of RAM")
    for name, run in (("float32", network), ("integers", whole)):
        right = np.mean(run(test[0]).argmax(1) == test[1])
        print(f"{name}: {right:.2%} of the test images are right")

    def plot(figure):
        axes = figure.subplots()
        axes.plot([row[2] for row in rows], [100 * row[3] for row in rows], "o-")
        for name, _, size, right in rows:
            axes.annotate(name, (size, 100 * right), textcoords="offset points", xytext=(4, 6))
        axes.set(xscale="log", xlabel="bytes of the file", ylabel="accuracy, %")
        axes.set_title("A residual network, step by step")

    draw(plot, figure)


if __name__ == "__main__":
    main(*sys.argv[1:3])
