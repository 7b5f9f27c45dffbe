"""Pruning: how much can be dropped, and what retraining brings back.

The smallest weights are set to zero. Then training goes on, but at a model seen through a view that
multiplies the weights by the mask, so what was dropped stays dropped and the rest makes up for it.

    python examples/03_prune_and_retrain.py [figure.png]
"""

import sys

import numpy as np

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
        results = {i: mc.prune_magnitude(model.layers[i].weight, amount=amount) for i in PRUNED}
        pruned = with_weights(model, {i: mc.decode(rep) for i, (rep, _) in results.items()})
        # Squares add up, within a weight and from one weight to the next.
        bound = sum(cert.bound**2 for _, cert in results.values()) ** 0.5
        error = sum(cert.measured**2 for _, cert in results.values()) ** 0.5

        masks = {i: pruned.layers[i].weight != 0 for i in PRUNED}

        def view(latent, step, masks=masks):
            return with_weights(latent, {i: latent.layers[i].weight * masks[i] for i in PRUNED})

        retrained, _ = mc.fit(model, x, y, epochs=4, view=view, **settings)
        before, after = (mc.accuracy(m, *validation) for m in (pruned, retrained))
        curve.append((amount, before, after))
        print(f"{amount:6.0%}  {count(retrained):8}  {bound:6.3f}  {error:6.3f}", end="  ")
        print(f"{before:8.2%}  {after:9.2%}")

    # The bound is the error: it is made of the very values that were dropped. It speaks of the step
    # from the trained weights to the pruned ones; of what retraining then does, nothing is proven.
    draw(curve, figure)


def with_weights(model, weights):
    """The model with other weights in some layers."""
    indices = range(len(model.layers))
    changed = tuple({"weight": weights[i]} if i in weights else {} for i in indices)
    return mc.nn.with_parameters(model, changed)


def count(model):
    """How many weights are not zero."""
    return mc.summary(model, (8, 8, 1)).nonzeros


def draw(curve, path):
    """Accuracy over the amount, if matplotlib is there to draw it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("\n(no figure: matplotlib is not installed)")
        return
    amount, before, after = zip(*curve, strict=True)
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot(amount, before, "o-", label="pruned")
    axes.plot(amount, after, "o-", label="pruned and retrained")
    axes.set(xlabel="pruned", ylabel="accuracy", title="Pruning a digits CNN")
    axes.legend()
    figure.savefig(path)
    print(f"\nfigure: {path}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
