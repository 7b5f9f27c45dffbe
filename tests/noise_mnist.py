"""MNIST's four files with a few images of noise: for the way through, not for the accuracy."""

import struct

import numpy as np


def write_noise_mnist(folder, train=12, test=5):
    rng = np.random.default_rng(0)
    for prefix, n in (("train", train), ("t10k", test)):
        pixels = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = rng.integers(0, 10, n).astype(np.uint8)
        head = struct.pack(">4I", 0x803, n, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">2I", 0x801, n)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
