"""A residual network goes the whole way: fewer channels, int8, a certificate, C.

Channels that a shortcut adds are tied: they are removed together, chosen by their norms together.
What the batch normalizations read is different then, so their statistics are estimated again. At
the end they are folded into the convolutions, and the network is made of integers.

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
        options = {"optimizer": optimizer, "epochs": epochs, "batch_size": 32, "rng": rng}
        return mc.fit(network, *train, **options)[0]

    rows = []

    def show(name, network):
        count, right = mc.summary(network, SHAPE, file=True), mc.accuracy(network, *validation)
        rows.append((name, count.macs, count.file_bytes, right))
        print(f"{name:18} {count.params:7,}  {count.macs:8,}  {count.file_bytes:7,}  {right:8.2%}")

    print("step                params      MACs    bytes  accuracy")
    network = fit(mc.nn.digits_resnet(rng), EPOCHS, 3e-3)
    show("residual network", network)
    network = mc.rewrite.remove_least_channels(network, 0.5)
    show("half the channels", network)
    network = mc.rewrite.reestimate_batch_norm(network, train[0][:256])
    show("new statistics", network)
    network = fit(network, EPOCHS, 3e-3)
    show("trained on", network)
    network = mc.rewrite.fold_batch_norm(network)
    show("folded", network)
    small = mc.compress(network, dict.fromkeys(mc.search.weights(network), int8)).model
    show("int8 weights", small)

    # How far the outputs of the two can be apart for every image within EPS of a test image. With
    # real numbers: what float32 can add to it in the worst case grows from layer to layer.
    images, ball = test[0][:IMAGES], {"eps": EPS, "clip": (0.0, 1.0)}
    proven = mc.certify.ball_certificates(network, small, images, **ball, arithmetic="real")
    found = mc.certify.attack(network, small, images, **ball, rng=rng)
    bound, seen = np.median([c.bound for c in proven]), np.median(found)
    print(f"\nwith every pixel within 1/{round(1 / EPS)} of a test image, outputs differ", end=" ")
    print(f"by at most {bound:.3f}\n(proven, median of {IMAGES}); a search finds {seen:.3f}")

    # In integers throughout, as a microcontroller runs it. The test images see it once.
    whole = mc.integer.to_integer(network, train[0][:256])
    with tempfile.TemporaryDirectory() as scratch:
        made = mc.interchange.export_c(whole, f"{folder or scratch}/residual.c")
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
