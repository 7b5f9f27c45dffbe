"""Deep Compression: prune, share, Huffman, down to a file.

Han, Mao and Dally (2016) prune a network in rounds, let the remaining weights share a few values,
and fine-tune these values; then gaps and indices are written in a Huffman code. The recipe is a
list of steps, run one after the other. On MNIST, beside the paper's figures: deep_compression.py.

    python examples/08_deep_compression.py [figure.png] [file.mcz]
"""

import os
import sys

import numpy as np
from _figures import draw

import minicompress as mc

# For each layer: the fraction of weights that is kept; the bits of an index of a shared value.
KEPT = {0: 0.7, 2: 0.25, 5: 0.2}
BITS = {0: 5, 2: 5, 5: 5}


def main(figure="08_deep_compression.png", file="08_deep_compression.mcz"):
    x, y = mc.load_digits("train")
    validation, test = mc.load_digits("validation"), mc.load_digits("test")
    rng = np.random.default_rng(0)
    model, _ = mc.fit(
        mc.digits_cnn(rng), x, y, optimizer=mc.adam(3e-3), epochs=10, batch_size=32, rng=rng
    )
    dense = mc.summary(model, (8, 8, 1)).dense_bytes
    print(f"float32: {dense:,} bytes, {mc.accuracy(model, *validation):.2%} right\n")

    print("step        bytes  times smaller  accuracy")
    made = mc.recipes.run_recipe(
        model,
        mc.recipes.deep_compression((x, y), KEPT, BITS, rounds=3, epochs=4, fine_tuning=2),
        seed=0,
        coding="huffman",
        measure=lambda network: {"accuracy": mc.accuracy(network, *validation)},
    )
    for row in made.history:
        accuracy = row.figures["accuracy"]
        print(f"{row.name:9}  {row.bytes:6,}  {dense / row.bytes:13.1f}  {accuracy:8.2%}")

    # What counts is the length of the file, and the accuracy of the network that is read from it.
    mc.save(made.model, file, coding="huffman")
    size, again = os.path.getsize(file), mc.load(file)
    print(f"\n{file}: {size:,} bytes, {dense / size:.1f} times less;", end=" ")
    print(f"{mc.accuracy(again, *test):.2%} of the test images are right,", end=" ")
    print(f"{mc.accuracy(model, *test):.2%} before")
    # The library's own code is an adaptive range coder, which can spend parts of a bit.
    print(f"the same network by coding='smallest': {len(mc.storage.dumps(again)):,} bytes")

    def plot(figure):
        names = ["float32", *(row.name for row in made.history)]
        left = figure.subplots()
        left.bar(names, [dense, *(row.bytes for row in made.history)], color="C0")
        left.set(ylabel="bytes of the file", yscale="log", title="Deep Compression of a digits CNN")
        left.tick_params(axis="x", rotation=30)
        right = left.twinx()
        right.plot(names[1:], [100 * row.figures["accuracy"] for row in made.history], "ko--")
        right.set_ylabel("accuracy, % (dashed)")

    draw(plot, figure)


if __name__ == "__main__":
    main(*sys.argv[1:3])
