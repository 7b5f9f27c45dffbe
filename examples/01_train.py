"""Training: a network is a value, and so is everything that comes of it.

`fit` takes a network and gives back another; the first one stays what it was. All randomness comes
from the generator that it is given, so the same seed gives the same network, to the last bit.

    python examples/01_train.py [figure.png]
"""

import sys

import numpy as np

import minicompress as mc

EPOCHS, BATCH = 12, 32


def main(figure="01_train.png"):
    train, validation, test = (mc.load_digits(s) for s in ("train", "validation", "test"))
    print("images:", ", ".join(f"{len(y)} of {x[0].shape}" for x, y in (train, validation, test)))
    untrained = mc.digits_cnn(np.random.default_rng(0))
    counted = mc.summary(untrained, (8, 8, 1))
    print(f"network: {counted.params:,} parameters, {counted.macs:,} multiplications an image\n")

    model, history = trained(untrained, train, validation)
    print("epoch    loss  training  validation")
    for i, loss in enumerate(history.train_loss):
        print(f"{i + 1:5}  {loss:6.4f}  {history.train_accuracy[i]:8.2%}", end="  ")
        print(f"{history.validation_accuracy[i]:10.2%}")

    print(f"\nuntrained: {mc.accuracy(untrained, *test):.2%} of the test images are right")
    file = mc.storage.dumps(model)
    print(f"trained:   {mc.accuracy(model, *test):.2%}, in a file of {len(file):,} bytes")
    again, _ = trained(untrained, train, validation)
    print(f"the same seed, the same file: {mc.storage.dumps(again) == file}")

    # Two things to see: the first two epochs do most of it; and of the images that a network learns
    # from, more are right in the end than of others.
    draw(history, figure)


def trained(model, train, validation):
    """The network after some epochs of Adam, its rate falling along half a cosine."""
    steps = EPOCHS * -(-len(train[0]) // BATCH)
    return mc.fit(
        model,
        *train,
        optimizer=mc.adam(mc.nn.cosine_lr(3e-3, steps)),
        epochs=EPOCHS,
        batch_size=BATCH,
        rng=np.random.default_rng(1),
        validation=validation,
    )


def draw(history, path):
    """Loss over the epochs, if matplotlib is there to draw it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("\n(no figure: matplotlib is not installed)")
        return
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    epochs = range(1, history.epochs + 1)
    axes.plot(epochs, history.train_loss, "o-", label="training images")
    axes.plot(epochs, history.validation_loss, "o-", label="validation images")
    axes.set(xlabel="epoch", ylabel="loss", title="Training a digits CNN", yscale="log")
    axes.legend()
    figure.savefig(path)
    print(f"\nfigure: {path}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
