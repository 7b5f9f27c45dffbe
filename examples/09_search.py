"""Search: which method for which layer, in a tenth of the bytes.

First each layer alone is compressed by each method, and the loss is measured. If these losses
simply added up, the best plan for a budget would solve a knapsack problem. It is solved, its best
plans are measured as a whole, and the search goes on around the best of them.

    python examples/09_search.py [figure.png]
"""

import sys
from functools import partial

import numpy as np
from _figures import draw

import minicompress as mc
from minicompress.analysis import sensitivity
from minicompress.experiments.budget import format_sensitivity
from minicompress.search import search_plan


def half_rank(weight):
    """A kernel or a dense weight at half of the rank that its shape allows."""
    rank = min(weight[..., 0].size, weight.shape[-1]) // 2
    return mc.low_rank(weight, rank=rank)


CHOICES = {
    "int8": partial(mc.quantize, num_bits=8),
    "int5": partial(mc.quantize, num_bits=5),
    "int4": partial(mc.quantize, num_bits=4),
    "int3 per channel": partial(mc.quantize, num_bits=3, axis=-1),
    "int2 per channel": partial(mc.quantize, num_bits=2, axis=-1),
    "eight clusters": partial(mc.cluster, n_clusters=8),
    "half rank": half_rank,
}


def main(figure="09_search.png"):
    x, y = mc.load_digits("train")
    rng = np.random.default_rng(0)
    model, _ = mc.fit(
        mc.digits_cnn(rng), x, y, optimizer=mc.adam(3e-3), epochs=10, batch_size=32, rng=rng
    )
    validation, test = mc.load_digits("validation"), mc.load_digits("test")
    size, (loss, accuracy) = len(mc.storage.dumps(model)), mc.evaluate(model, *validation)
    print(f"float32: {size:,} bytes, loss {loss:.4f}, accuracy {accuracy:.2%} on the validation")
    print("images. What changes when one layer alone is compressed:\n")
    rows = sensitivity(model, CHOICES, *validation)
    print(format_sensitivity(rows))

    print("\nbudget  bytes    loss  accuracy  plan, layer by layer")
    curve = []
    for share in (0.06, 0.08, 0.10, 0.12, 0.15):
        budget = int(share * size)
        best = search_plan(model, CHOICES, *validation, max_bytes=budget, plans=6, rounds=2).best
        curve.append((best.bytes, best.loss))
        plan = ", ".join(best.plan.values())
        print(f"{budget:6}  {best.bytes:5}  {best.loss:6.4f}  {best.accuracy:8.2%}  {plan}")

    # The other question: the fewest bytes at a loss that is acceptable.
    found = search_plan(model, CHOICES, *validation, max_loss=1.5 * loss, plans=6, rounds=2)
    print(f"\n1.5 times the loss: {found.best.bytes} bytes are enough;", end=" ")
    print(f"{mc.accuracy(found.model, *test):.2%} of the test images are right,", end=" ")
    print(f"{mc.accuracy(model, *test):.2%} before")

    # Two things to see: no method is best for all layers; and down to a tenth of the bytes the loss
    # hardly changes.
    def plot(figure):
        left, right = figure.subplots(1, 2)
        layers = sorted({row.layer for row in rows})
        table = np.reshape([max(row.loss_change, 1e-4) for row in rows], (len(layers), -1)).T
        image = left.imshow(np.log10(table), aspect="auto", cmap="viridis")
        left.set_xticks(range(len(layers)), [f"layer {layer}" for layer in layers])
        left.set_yticks(range(len(CHOICES)), list(CHOICES))
        left.set_title("One layer alone: what it adds to the loss")
        figure.colorbar(image, ax=left, label="log10")
        right.semilogy(*zip(*curve), "o-")
        right.set(xlabel="bytes of the file", ylabel="validation loss", title="The best plans")

    draw(plot, figure, size=(10, 4))


if __name__ == "__main__":
    main(*sys.argv[1:2])
