"""Pruning: how many weights can be removed, and how much accuracy retraining brings back.

The smallest weights are set to zero. Then training goes on, through a view that lets the zeros stay
zero: the weights that are left adapt.

    python examples/03_prune_and_retrain.py [figure.png]
"""

import sys
from functools import partial

import numpy as np
from _figures import draw_lines

import minicompress as mc

PRUNED = (2, 5)  # the large kernel and the dense weight; the first kernel is too small to matter


def main(figure="03_prune_and_retrain.png"):
    x, y = mc.load_digits("train")
    rng = np.random.default_rng(0)
    settings = {"optimizer": mc.adam(3e-3), "batch_size": 32, "rng": rng}
    model, _ = mc.fit(mc.digits_cnn(rng), x, y, epochs=10, **settings)
    validation = mc.load_digits("validation")
    print(f"dense: {count(model)} weights are not zero,", end=" ")
    print(f"accuracy {mc.accuracy(model, *validation):.2%} on the validation images\n")

    print("pruned  non-zero   bound   error  accuracy  retrained")
    curve = []
    for amount in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98):
        prune = partial(mc.prune_magnitude, amount=amount)
        pruned, certificates = mc.compress(model, dict.fromkeys(PRUNED, prune))
        _, bound, error = mc.search.total(certificates.values())  # of both weights together

        keep_zeros = mc.recipes.preserve_structure(pruned)
        start = mc.nn.decoded(pruned)  # plain arrays, which training can change
        retrained, _ = mc.fit(start, x, y, epochs=4, view=keep_zeros, **settings)
        before, after = (mc.accuracy(m, *validation) for m in (pruned, retrained))
        curve.append((amount, before, after))
        print(f"{amount:6.0%}  {count(retrained):8}  {bound:6.3f}  {error:6.3f}", end="  ")
        print(f"{before:8.2%}  {after:9.2%}")

    # The bound equals the error: it is computed from the values that were dropped. It holds for the
    # step from the trained weights to the pruned ones; it says nothing about retraining.
    amounts, before, after = zip(*curve)
    draw_lines(
        {"pruned": (amounts, before), "pruned and retrained": (amounts, after)},
        figure,
        xlabel="pruned",
        ylabel="accuracy",
        title="Pruning a digits CNN",
    )


def count(model):
    """How many weights are not zero."""
    return mc.summary(model, (8, 8, 1)).nonzeros


if __name__ == "__main__":
    main(*sys.argv[1:2])
