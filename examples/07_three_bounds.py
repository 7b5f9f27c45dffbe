"""How far apart can the outputs of a network and its int8 form be? Three proofs, and a search.

For every input within a radius of a test image:

- norms: only the norms of the layers, ``d' = ||W_g|| d + ||W_g - W_f|| a``, where a bounds the
  norm of the activations;
- trace: the same, where a is the norm of the image's own activations, plus what the ball adds;
- zonotope: both networks are followed together, symbol by symbol.

The largest difference lies between what a search finds and each proven bound.

    python examples/07_three_bounds.py [figure.png]
"""

import sys

import numpy as np
from _figures import draw

import minicompress as mc

RADII = (1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16)
IMAGES = 20


def main(figure="07_three_bounds.png"):
    x, y = mc.load_digits("train")
    rng = np.random.default_rng(0)
    optimizer = mc.adam(mc.nn.cosine_lr(3e-3, 15 * 38), weight_decay=0.3)
    f, _ = mc.fit(mc.digits_cnn(rng), x, y, optimizer=optimizer, epochs=15, batch_size=32, rng=rng)
    plan = dict.fromkeys(mc.search.weights(f), lambda w: mc.quantize(w, num_bits=8, axis=-1))
    g = mc.nn.decoded(mc.compress(f, plan).model)
    images = mc.load_digits("validation")[0][:IMAGES]
    norms = [layer_norms(a, b, shape) for a, b, shape in layers(f, g)]

    print("radius     norms     trace  zonotope     found   (medians)")
    curves = []
    for eps in RADII:
        ball = eps * images[0].size ** 0.5  # the Euclidean ball that holds it
        by_norms = [along(norms, np.linalg.norm(image) + ball, None, 0.0) for image in images]
        by_trace = [along(norms, None, activations(f, image), ball) for image in images]
        certificates = mc.certify.ball_certificates(f, g, images, eps=eps, clip=(0.0, 1.0))
        by_zonotope = [c.bound for c in certificates]
        found = mc.certify.attack(f, g, images, eps=eps, clip=(0.0, 1.0), rng=rng)
        row = [float(np.median(v)) for v in (by_norms, by_trace, by_zonotope, found)]
        curves.append(row)
        print(f" 1/{round(1 / eps):<4}" + "".join(f"{v:10.4g}" for v in row))

    def plot(figure):
        axes = figure.subplots()
        for name, values in zip(("norms", "trace", "zonotope", "found by a search"), zip(*curves)):
            axes.loglog(RADII, values, "o-", label=name)
        axes.set_xticks(RADII, [f"1/{round(1 / eps)}" for eps in RADII])
        axes.minorticks_off()
        axes.set(xlabel="radius of the ball", ylabel="difference of the outputs")
        axes.set_title("Three proofs of one difference, int8")
        axes.legend()

    draw(plot, figure, size=(7, 4.5))


def layers(f, g):
    """The layers with weights of both networks, and the shapes of their inputs."""
    shape = (8, 8, 1)
    for a, b in zip(f.layers, g.layers, strict=True):
        if hasattr(a, "weight"):
            yield a, b, shape
        shape = a.output_shape(shape)


def layer_norms(a, b, shape):
    """Upper bounds of ||W_f||, ||W_g|| and ||W_g - W_f||, and ||b||, which both networks share."""
    offset = float(np.linalg.norm(a.bias) * np.prod(a.output_shape(shape)[:-1]) ** 0.5)
    weights = a.weight, b.weight, b.weight.astype(np.float64) - a.weight
    if isinstance(a, mc.Conv2D):
        return [mc.certify.conv_norm_upper(w, shape[:2], padding=a.padding) for w in weights] + [
            offset
        ]
    return [mc.certify.spectral_norm_upper(w) for w in weights] + [offset]


def activations(f, image):
    """The Euclidean norms of the inputs of each layer with weights."""
    sizes, x = [], image[None]
    for layer in f.layers:
        if hasattr(layer, "weight"):
            sizes.append(float(np.linalg.norm(x)))
        x = layer.forward(x)
    return sizes


def along(norms, size, sizes, ball):
    """A bound on the difference after the last layer. ReLU and Flatten do not increase it."""
    difference = 0.0
    for i, (stretch_f, stretch_g, change, offset) in enumerate(norms):
        a = size if sizes is None else sizes[i] + ball
        difference = stretch_g * difference + change * a
        ball *= stretch_f
        if sizes is None:
            size = stretch_f * size + offset
    return difference


if __name__ == "__main__":
    main(*sys.argv[1:2])
