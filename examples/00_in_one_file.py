"""Neural-network compression in one file: the whole idea, with nothing but NumPy.

A small CNN learns to read handwritten digits. Each of its operations returns its output, and a
function that carries gradients back. Then every weight of the network is replaced by something
smaller: a product of two thin matrices, a weight with many zeros, or integers of a few bits. Each
method is one function. A weight goes in, and three things come out: the weight as the network will
see it, the bytes that it takes, and a bound that its error cannot exceed, but for rounding.

    python examples/00_in_one_file.py
"""

from math import ceil, hypot, sqrt
from pathlib import Path

import numpy as np


def taps(x, height, width, stride):
    """For each place (p, q) in a sliding window: a view of all the pixels that ever lie there."""
    rows, columns = (x.shape[1] - height) // stride + 1, (x.shape[2] - width) // stride + 1
    for p, q in np.ndindex(height, width):
        yield (p, q), x[:, p : p + stride * rows : stride, q : q + stride * columns : stride]


def conv(x, w, b, stride=1, padding="valid"):
    """Images (N, H, W, C) and a kernel (kh, kw, C, O) give images (N, H', W', O).

    y[n, i, j, o] = b[o] + sum over p, q, c of x[n, s*i + p, s*j + q, c] * w[p, q, c, o]
    So it is a sum of matrix products, one for each place (p, q) in the kernel.
    """
    (_, h, width, _), (kh, kw, _, _), zeros = x.shape, w.shape, (0, 0)
    if padding == "same":  # as many rows and columns of zeros as make H' = ceil(H / stride)
        zeros = [max((ceil(n / stride) - 1) * stride + k - n, 0) for n, k in ((h, kh), (width, kw))]
    top, left = zeros[0] // 2, zeros[1] // 2
    padded = np.pad(x, ((0, 0), (top, zeros[0] - top), (left, zeros[1] - left), (0, 0)))
    y = b + sum(np.tensordot(pixels, w[at], 1) for at, pixels in taps(padded, kh, kw, stride))

    def backward(dy):
        dw, dpadded = np.zeros_like(w), np.zeros_like(padded)
        for at, pixels in taps(padded, kh, kw, stride):
            dw[at] = np.tensordot(pixels, dy, ((0, 1, 2), (0, 1, 2)))
        for at, dpixels in taps(dpadded, kh, kw, stride):
            dpixels += np.tensordot(dy, w[at].T, 1)
        return dpadded[:, top : top + h, left : left + width], dw, dy.sum((0, 1, 2))

    return y, backward


def max_pool(x, size=2):
    """The largest pixel of each size x size block. The gradient goes to the first such pixel."""
    window = size, size, size  # height, width and stride
    y = np.max([pixels for _, pixels in taps(x, *window)], axis=0)

    def backward(dy):
        dx, waiting = np.zeros_like(x), np.ones(y.shape, bool)
        for (_, pixels), (_, dpixels) in zip(taps(x, *window), taps(dx, *window)):
            dpixels += dy * (waiting & (pixels == y))
            waiting &= pixels != y
        return dx

    return y, backward


def relu(x):
    return np.maximum(x, 0), lambda dy: dy * (x > 0)


def flatten(x):
    return x.reshape(len(x), -1), lambda dy: dy.reshape(x.shape)


def dense(x, w, b):
    return x @ w + b, lambda dy: (dy @ w.T, x.T @ dy, dy.sum(0))


def network(parameters, x):
    """Images (N, 8, 8, 1) give ten scores each; backward gives the gradient of each parameter."""
    w1, b1, w2, b2, w3, b3 = parameters
    x, conv1_back = conv(x, w1, b1, padding="same")
    x, relu1_back = relu(x)
    x, pool_back = max_pool(x)
    x, conv2_back = conv(x, w2, b2, padding="same")
    x, relu2_back = relu(x)
    x, flatten_back = flatten(x)
    scores, dense_back = dense(x, w3, b3)

    def backward(d):
        d, dw3, db3 = dense_back(d)
        d, dw2, db2 = conv2_back(relu2_back(flatten_back(d)))
        _, dw1, db1 = conv1_back(relu1_back(pool_back(d)))
        return dw1, db1, dw2, db2, dw3, db3

    return scores, backward


def new_network(rng):
    """Random weights of variance 2 / inputs, so that signals keep their size (He et al., 2015)."""
    shapes = (3, 3, 1, 16), (3, 3, 16, 32), (512, 10)
    pairs = [(rng.normal(0, sqrt(2 / np.prod(s[:-1])), s), np.zeros(s[-1])) for s in shapes]
    return [array.astype(np.float32) for pair in pairs for array in pair]


def train(parameters, x, y, rng, epochs, masks=(1,) * 6, rate=0.05, batch=32):
    """Gradient descent with momentum, its rate falling to zero. Where a mask is 0 nothing moves."""
    speeds = [np.zeros_like(p) for p in parameters]
    for epoch in range(epochs):
        now = rate * (1 - epoch / epochs)
        for rows in np.array_split(rng.permutation(len(x)), len(x) // batch):
            scores, backward = network(parameters, x[rows])
            # The cross-entropy's gradient by the scores: the softmax, less 1 at the right digit.
            d = np.exp(scores - scores.max(1, keepdims=True))
            d = d / d.sum(1, keepdims=True) - np.eye(10, dtype=np.float32)[y[rows]]
            speeds = [0.9 * v - now * g for v, g in zip(speeds, backward(d / len(rows)))]
            parameters = [p + v * mask for p, v, mask in zip(parameters, speeds, masks)]
    return parameters


def truncated_svd(w, rank):
    """Keep the largest singular values: of W = U S V the factors U S and V, cut to `rank`, stay.

    The error is the root of the sum of the dropped s_i^2, no more and no less, and no other matrix
    of that rank is nearer (Eckart and Young, 1936). A kernel is taken as a matrix (kh kw C, O). The
    factors of an (m, n) matrix hold rank (m + n) numbers: fewer if rank < m n / (m + n).
    """
    u, s, v = np.linalg.svd(w.reshape(-1, w.shape[-1]), full_matrices=False)
    left, right = u[:, :rank] * s[:rank], v[:rank]
    return (left @ right).reshape(w.shape), left.nbytes + right.nbytes, hypot(*s[rank:])


def prune(w, amount):
    """Set the entries of least magnitude to zero: exactly k = round(amount * n) of all n.

    The error is the root of the sum of their squares, and no other k entries would cost less. It is
    at most sqrt(k / n) ||W||, since the least k of n squares are at most k / n of their sum.
    Stored are the entries that stay, and a bit for each place: is there an entry, or a zero?
    """
    count = round(amount * w.size)
    dropped = np.argsort(abs(w), axis=None, kind="stable")[:count]  # of equal ones the first
    pruned = w.copy()
    pruned.flat[dropped] = 0
    return pruned, ceil(w.size / 8) + (w.size - count) * w.itemsize, hypot(*w.flat[dropped])


def quantize(w, bits):
    """Round every entry to a multiple of one step. Stored are the step, and integers of few bits.

    The largest magnitude gets the largest integer, which is 127 of 8 bits. Zero stays zero. An
    entry moves by half a step at most, so the error of n entries is at most sqrt(n) step / 2.
    """
    top = 2 ** (bits - 1) - 1
    step = max(w.dtype.type(abs(w).max(initial=0) / top), np.finfo(w.dtype).tiny)  # never zero
    codes = np.rint(w.astype(float) / step).astype(np.int8)  # a half goes to the even neighbour
    return codes * step, ceil(w.size * bits / 8) + step.itemsize, sqrt(w.size) * float(step) / 2


def prune_then_quantize(w, amount, bits):
    """Prune, and quantize what is left. No entry has both errors, so their squares add up."""
    pruned, _, dropped = prune(w, amount)
    kept = pruned != 0
    pruned[kept], size, rounded = quantize(pruned[kept], bits)
    return pruned, ceil(w.size / 8) + size, hypot(dropped, rounded)


def main(path):
    table = np.loadtxt(path, int, delimiter=",")  # in each line 64 pixels of 0 to 16, and the digit
    x, y = np.float32(table[:, :-1].reshape(-1, 8, 8, 1) / 16), table[:, -1]
    test = np.arange(len(x)) % 6 == 1  # every sixth image is for the test, the others to learn from
    rng = np.random.default_rng(0)

    def low_rank(w):  # three quarters of the numbers, or a few less
        return truncated_svd(w, int(0.75 * w.size / (w[..., 0].size + w.shape[-1])))

    def show(name, parameters, method):
        weights, biases = parameters[::2], parameters[1::2]
        smaller, sizes, bounds = zip(*map(method, weights))
        parameters = [p for pair in zip(smaller, biases) for p in pair]
        right = np.mean(network(parameters, x[test])[0].argmax(1) == y[test])
        error = hypot(*(np.linalg.norm(w - v) for w, v in zip(weights, smaller)))  # of all weights
        size = sum(sizes) + sum(b.nbytes for b in biases)
        print(f"{name:26}  {size:6,}  {right:8.2%}  {error:7.4f}  {hypot(*bounds):7.4f}")
        return parameters

    print("method                       bytes  accuracy    error    bound")
    trained = train(new_network(rng), x[~test], y[~test], rng, epochs=10)
    show("float32", trained, lambda w: (w, w.nbytes, 0))
    show("low rank", trained, low_rank)
    show("8 bits", trained, lambda w: quantize(w, 8))
    show("4 bits", trained, lambda w: quantize(w, 4))
    show("50% pruned", trained, lambda w: prune(w, 0.5))
    show("50% pruned, 4 bits", trained, lambda w: prune_then_quantize(w, 0.5, 4))
    pruned = show("80% pruned", trained, lambda w: prune(w, 0.8))
    masks = [mask for w in pruned[::2] for mask in (w != 0, 1)]  # zeros stay, biases are free
    again = train(pruned, x[~test], y[~test], rng, 5, masks)
    show("80% pruned, more training", again, lambda w: prune(w, 0.8))
    show("the same, 4 bits", again, lambda w: prune_then_quantize(w, 0.8, 4))
    print("error and bound: from the trained weights; the last two rows: from the retrained ones")


if __name__ == "__main__":
    main(Path(__file__).parent.parent / "minicompress/data/digits.csv.gz")
