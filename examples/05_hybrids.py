"""Hybrids: a representation inside a representation.

`chain` gives what one compressor left to the next: the values that pruning kept, the factors of a
low-rank weight, the entries of a codebook. Nothing else is needed. The certificate of the chain
follows from those of its steps, and the bytes are those of the innermost arrays.

    python examples/05_hybrids.py [figure.png]
"""

import sys
from functools import partial

import numpy as np
from _figures import draw

import minicompress as mc


def half_rank(weight):
    """A kernel or a dense weight at half of the rank that its shape allows."""
    rank = min(weight[..., 0].size, weight.shape[-1]) // 2
    return mc.low_rank(weight, rank=rank)


INT8, INT4 = partial(mc.quantize, num_bits=8), partial(mc.quantize, num_bits=4)
PRUNE = partial(mc.prune_magnitude, amount=0.3)
SHARE = partial(mc.cluster, n_clusters=16)
METHODS = {
    "int4": [INT4],
    "prune 30%": [PRUNE],
    "prune 30%, int8": [PRUNE, INT8],
    "prune 30%, int4": [PRUNE, INT4],
    "share 16": [SHARE],
    "prune 30%, share 16": [PRUNE, SHARE],
    "prune 30%, share 16, int8": [PRUNE, SHARE, INT8],
    "half rank": [half_rank],
    "half rank, int8": [half_rank, INT8],
}


def main(figure="05_hybrids.png"):
    x, y = mc.load_digits("train")
    rng = np.random.default_rng(0)
    model, _ = mc.fit(
        mc.digits_cnn(rng), x, y, optimizer=mc.adam(3e-3), epochs=10, batch_size=32, rng=rng
    )
    validation = mc.load_digits("validation")
    dense = mc.summary(model, (8, 8, 1)).dense_bytes
    print(f"float32: {dense:,} bytes,", end=" ")
    print(f"accuracy {mc.accuracy(model, *validation):.2%} on the validation images\n")

    print("method                      bytes   bound   error  accuracy  the last layer's weight is")
    points = []
    for name, steps in METHODS.items():
        plan = dict.fromkeys(mc.search.weights(model), mc.chain(*steps))
        made, certificates = mc.compress(model, plan)
        size = mc.summary(made, (8, 8, 1)).packed_bytes
        _, bound, error = mc.search.total(certificates.values())
        accuracy = mc.accuracy(made, *validation)
        points.append((name, dense / size, bound, error))
        print(f"{name:25}  {size:6,}  {bound:6.3f}  {error:6.3f}  {accuracy:8.2%}", end="  ")
        print(nesting(made.layers[-1].weight))

    # Three things to see: quantizing what pruning left adds little to the error and saves most of
    # the bytes; the bound of a hybrid is hardly looser than the bounds of its steps; and low rank
    # needs retraining here, which the main command does.
    def plot(figure):
        axes = figure.subplots()
        for i, (name, times, bound, error) in enumerate(points):
            axes.plot([times, times], [error, bound], color=f"C{i}")
            axes.plot(times, error, "os^"[i % 3], color=f"C{i}", label=name)
        axes.set(xlabel="times smaller", ylabel="error of the weights, up to its bound")
        axes.set_title("Hybrids, without retraining")
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0.2, 1.0))

    draw(plot, figure)


def nesting(rep):
    """The types of a representation, from the outermost to the innermost."""
    match rep:
        case mc.Sparse():
            return f"Sparse({nesting(rep.values)})"
        case mc.Clustered():
            return f"Clustered({nesting(rep.codebook)})"
        case mc.LowRank():
            return f"LowRank({', '.join(map(nesting, rep.factors))})"
        case mc.Quantized():
            return f"Quantized({rep.num_bits} bits)"
    return str(rep.dtype)


if __name__ == "__main__":
    main(*sys.argv[1:2])
