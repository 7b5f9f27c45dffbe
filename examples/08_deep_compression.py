"""Deep Compression: prune, share, Huffman, and a file that anybody can measure.

Han, Mao and Dally (2016) prune a network in rounds, let the weights that are left share a few
values, and tune those; then gaps and indices are written in Huffman's code. The recipe is a list of
steps, run one after the other. On MNIST, next to the paper's figures: deep_compression.py.

    python examples/08_deep_compression.py [figure.png] [file.mcz]
"""

import os
import sys

import numpy as np

import minicompress as mc

# By layer: how much of its weights is kept, and how many bits the index of a shared value takes.
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

    # What counts is the file, and what is read from it.
    mc.save(made.model, file, coding="huffman")
    size, again = os.path.getsize(file), mc.load(file)
    print(f"\n{file}: {size:,} bytes, {dense / size:.1f} times less;", end=" ")
    print(f"{mc.accuracy(again, *test):.2%} of the test images are right,", end=" ")
    print(f"{mc.accuracy(model, *test):.2%} before")
    # The library's own code, an adaptive range coder, does without Huffman's whole bits.
    print(f"the same network by coding='smallest': {len(mc.storage.dumps(again)):,} bytes")
    draw(made.history, dense, figure)


def draw(history, dense, path):
    """Bytes and accuracy, step by step, if matplotlib is there to draw them."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("\n(no figure: matplotlib is not installed)")
        return
    names = ["float32", *(row.name for row in history)]
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    left.bar(names, [dense, *(row.bytes for row in history)], color="C0")
    left.set(ylabel="bytes of the file", yscale="log", title="Deep Compression of a digits CNN")
    left.tick_params(axis="x", rotation=30)
    right = left.twinx()
    right.plot(names[1:], [100 * row.figures["accuracy"] for row in history], "ko--")
    right.set_ylabel("accuracy, % (dashed)")
    figure.savefig(path)
    print(f"\nfigure: {path}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
