"""Early exit: easy images leave the network at a small head after its first layers.

The network is trained first, then the head alone. A threshold says how confident the head must be.
The lower it is, the more images leave early, and the fewer multiplications an image takes on
average.

    python examples/10_early_exit.py [figure.png]
    python examples/10_early_exit.py --data mnist --folder FOLDER    # LeNet-5, some minutes
"""

import argparse
import time
from dataclasses import replace
from functools import partial

import numpy as np
from _figures import draw_lines

import minicompress as mc

# The network, the layer before the head, the head's pool, the epochs of both, and the accuracy on
# the validation images that the threshold is chosen for. For 99 % on the test images, 99.1 % leaves
# a margin: one standard deviation of an accuracy that 10,000 images measure.
DATA = {
    "digits": (mc.digits_cnn, 1, 2, (12, 12), 0.98),
    "mnist": (mc.lenet5, 2, 1, (10, 3), 0.991),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("figure", nargs="?", default="10_early_exit.png")
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--folder", help="where MNIST's four files lie")
    options = parser.parse_args()
    if options.data == "mnist" and options.folder is None:
        parser.error("--data mnist needs --folder")
    load = mc.load_digits if options.data == "digits" else partial(mc.load_mnist, options.folder)
    network, behind, pool, epochs, least = DATA[options.data]
    (x, y), validation, test = (load(split) for split in ("train", "validation", "test"))
    shape, batch, rng = x.shape[1:], 32 if len(x) < 10_000 else 128, np.random.default_rng(0)

    def schedule(epochs, rate):
        steps = epochs * -(-len(x) // batch)
        rates = mc.nn.cosine_lr(rate, steps)
        return {"optimizer": mc.adam(rates), "epochs": epochs, "batch_size": batch, "rng": rng}

    model, _ = mc.fit(network(rng), x, y, **schedule(epochs[0], 2e-3))
    exits = mc.early_exit.attach_heads(model, (behind,), shape, pool=pool)
    exits, _ = mc.early_exit.fit_exits(exits, x, y, **schedule(epochs[1], 4e-3))
    # With any threshold below infinity: what leaving early takes, and what staying takes.
    early, late = mc.early_exit.exit_macs(replace(exits, thresholds=(0.5,)), shape)
    plain = mc.summary(model, shape).macs
    print(f"the whole network takes {plain:,} MACs, an image that leaves early {early:,},")
    print(f"and an image that passes the head and goes on {late:,}\n")

    curve = mc.early_exit.exit_curve(exits, *validation, points=12)
    print("threshold  accuracy       MACs   share")
    for point in curve[1:]:  # the first is the network itself
        print(f"{point.threshold:9.4f}  {point.accuracy:8.2%}  {float(point.macs):9,.0f}", end="  ")
        print(f"{point.share:6.1%}")
    print(f"\nwithout the head: {curve[0].accuracy:.2%} of the validation images")

    # The threshold is chosen on the validation images; the test images see it once.
    chosen = mc.early_exit.choose_thresholds(exits, *validation, min_accuracy=least)
    logits, left_at = mc.early_exit.predict(chosen, test[0])
    right = np.mean(logits.argmax(1) == test[1])
    share = float(mc.early_exit.expected_macs(chosen, shape, left_at)) / plain
    print(f"chosen for {least:.1%}: {chosen.thresholds[0]:.4f}. Of the test images", end=" ")
    print(f"{np.mean(left_at == 0):.1%} leave early,\n{right:.2%} are right", end=" ")
    print(f"(whole network: {mc.accuracy(model, *test):.2%}), for {share:.1%} of the MACs", end=" ")
    print(f"and {time_ratio(chosen, test[0]):.0%} of the time")
    shares, accuracies = [100 * p.share for p in curve], [100 * p.accuracy for p in curve]
    draw_lines(
        {"validation images": (shares, accuracies)},
        options.figure,
        xlabel="MACs, % of the network's",
        ylabel="accuracy, %",
        title="Leaving early, on the validation images",
    )


def time_ratio(exits, x, rounds=7):
    """The time of a run with exits over that of the network: the best of several, taken in turn."""
    times = {mc.nn.apply: [], mc.early_exit.predict: []}
    for _ in range(rounds):
        for run, taken in times.items():
            start = time.perf_counter()
            run(exits.network if run is mc.nn.apply else exits, x)
            taken.append(time.perf_counter() - start)
    return min(times[mc.early_exit.predict]) / min(times[mc.nn.apply])


if __name__ == "__main__":
    main()
