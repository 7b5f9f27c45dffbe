"""Weights of a Keras or PyTorch model brought in, and the same outputs.

The arrays of both frameworks fit as they are; PyTorch's are transposed, and the rows of its first
dense layer put in another order, because it flattens images channels first. From here on they can
be compressed, certified and written as C or ONNX.

    python examples/from_keras_and_torch.py
"""

import numpy as np

import minicompress as mc

SHAPE = (8, 8, 1)


def main():
    x, _ = mc.load_digits("test")
    for name, framework in (("PyTorch", from_torch), ("Keras", from_keras)):
        try:
            model, theirs = framework(x)
        except ImportError:
            print(f"{name}: nothing to show, it is not installed")
            continue
        difference, largest = np.abs(model(x) - theirs).max(), np.abs(theirs).max()
        print(f"{name}: largest difference {difference:.1e} in logits up to {largest:.1f}")


def from_torch(x):
    """A PyTorch model's weights in a model of this library, and the PyTorch model's outputs."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 10),
    ).eval()
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    model = mc.digits_cnn(np.random.default_rng(0))  # the same architecture; its weights go
    model = mc.interchange.from_state_dict(model, arrays, layout="torch", input_shape=SHAPE)
    with torch.no_grad():
        return model, network(torch.tensor(x.transpose(0, 3, 1, 2).copy())).numpy()


def from_keras(x):
    """The same for a Keras model."""
    import keras

    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    arrays = {getattr(w, "path", w.name): np.asarray(w) for w in network.weights}
    model = mc.interchange.from_state_dict(
        mc.digits_cnn(np.random.default_rng(0)), arrays, layout="keras"
    )
    return model, np.asarray(network(x))


if __name__ == "__main__":
    main()
