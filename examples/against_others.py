"""The same arrays through other people's code: where it agrees, and where it differs and why.

    python examples/against_others.py

Each comparison runs where its package is installed: torch (pruning, quantization), tensorly
(Tucker), scikit-learn (k-means). It ends with an AssertionError where a claim does not hold.
"""

import contextlib
import warnings

import numpy as np

import minicompress as mc

torch = tensorly = cluster = None
with contextlib.suppress(ImportError):
    import torch
with contextlib.suppress(ImportError):
    import tensorly
    from tensorly.decomposition import partial_tucker
with contextlib.suppress(ImportError):
    from sklearn import cluster


def pruning(rng):
    """torch.nn.utils.prune.l1_unstructured drops the same entries."""
    from torch.nn.utils import prune

    same, arrays = 0, 100
    for _ in range(arrays):
        w = rng.normal(size=(40, 30)).astype(np.float32)
        module = torch.nn.Linear(30, 40, bias=False)
        module.weight.data = torch.tensor(w)
        theirs = prune.l1_unstructured(module, "weight", amount=0.7).weight.detach().numpy()
        ours = mc.decode(mc.prune_magnitude(w, amount=0.7).rep)
        same += np.array_equal(ours, theirs)
    print(f"pruning: {same} of {arrays} arrays are equal to torch's, entry by entry")
    assert same == arrays


def quantization(rng):
    """torch.quantize_per_tensor multiplies by a reciprocal, which moves some ties."""
    different = total = 0
    for _ in range(100):
        w = rng.normal(size=(100, 100)).astype(np.float32)
        q = mc.choose_qparams(w, num_bits=8, symmetric=False)
        ours = mc.quantize_linear(w, q.scale, q.zero_point)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = torch.quantize_per_tensor(
                torch.tensor(w), float(q.scale), int(q.zero_point), torch.qint8
            )
        apart = ours != theirs.int_repr().numpy()
        # Where the codes differ, the number lies next to the middle between two levels.
        steps = (w / q.scale.astype(np.float64))[apart]
        assert (np.abs(np.abs(steps - np.trunc(steps)) - 0.5) < 1e-4).all()
        different += apart.sum()
        total += apart.size
    print(f"quantization: {different} of {total} codes differ from torch's, all at ties")
    assert different < 1e-3 * total


def tucker(rng):
    """TensorLy iterates (HOOI); without iteration the error is at most sqrt(2) times the least."""
    worst = 0.0
    for _ in range(30):
        w = rng.normal(size=(3, 3, 16, 24))
        ours = mc.tucker2(w, rank_in=6, rank_out=8).cert.measured
        (core, factors), _ = partial_tucker(
            tensorly.tensor(w), rank=[6, 8], modes=[2, 3], n_iter_max=200, tol=1e-9
        )
        theirs = np.linalg.norm(w - tensorly.tenalg.multi_mode_dot(core, factors, modes=[2, 3]))
        worst = max(worst, ours / theirs)
    print(f"Tucker-2: our error is at most {worst:.3f} times TensorLy's iterated one")
    assert worst <= 2**0.5


def k_means(rng):
    """scikit-learn starts at random; the exact method cannot be beaten."""
    beaten, ratios = 0, []
    for _ in range(20):
        w = rng.normal(size=400)
        exact = (
            mc.cluster(w, n_clusters=8, method="exact", preserve_sparsity=False).cert.measured ** 2
        )
        linear = mc.cluster(w, n_clusters=8, preserve_sparsity=False).cert.measured ** 2
        theirs = cluster.KMeans(8, n_init=10, random_state=0).fit(w[:, None]).inertia_
        beaten += theirs < exact * (1 - 1e-12)
        ratios.append((linear / exact, theirs / exact))
    ours, other = np.max(ratios, axis=0)
    print(f"k-means: scikit-learn is below the exact inertia in {beaten} of {len(ratios)} cases;")
    print(
        f"  at most {other:.4f} times it with 10 random starts, {ours:.4f} times with a linear one"
    )
    assert beaten == 0


def main():
    comparisons = {
        "torch": (torch, (pruning, quantization)),
        "tensorly": (tensorly, (tucker,)),
        "scikit-learn": (cluster, (k_means,)),
    }
    for package, (module, runs) in comparisons.items():
        if module is None:
            print(f"({package} is not installed: nothing to compare)")
            continue
        for run in runs:
            run(np.random.default_rng(0))


if __name__ == "__main__":
    main()
