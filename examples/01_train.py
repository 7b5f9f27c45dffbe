"""Training: a network is a value, and training returns a new one.

`fit` takes a network and returns another; the first one is not changed. All randomness comes from
the generator that `fit` is given, so the same seed gives the same network, to the last bit.

    python examples/01_train.py [figure.png]
"""

import sys

import numpy as np
from _figures import draw_lines

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

    # Two things to see: the first two epochs do most of the work; and in the end the network is
    # right on more of the images that it learned from than of other images.
    epochs = range(1, history.epochs + 1)
    draw_lines(
        {
            "training images": (epochs, history.train_loss),
            "validation images": (epochs, history.validation_loss),
        },
        figure,
        xlabel="epoch",
        ylabel="loss",
        yscale="log",
        title="Training a digits CNN",
    )


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


if __name__ == "__main__":
    main(*sys.argv[1:2])
