"""The same search on a cluster: only the executor is another one.

`search_plan` takes any concurrent.futures.Executor: a pool of processes here, dask's on a cluster,
mpi4py.futures.MPIPoolExecutor under MPI. What comes out does not depend on which.

    python examples/search_on_a_cluster.py [address of a dask scheduler]
"""

import sys
import time
from functools import partial

import numpy as np

import minicompress as mc
from minicompress.search.searching import search_plan

# What is submitted must pickle: functions of a module with their options bound, not lambdas.
CHOICES = [
    *(partial(mc.quantize, num_bits=bits) for bits in (8, 6, 5, 4, 3)),
    *(partial(mc.quantize, num_bits=bits, axis=-1) for bits in (4, 3, 2)),
    *(partial(mc.cluster, n_clusters=n) for n in (16, 8)),
]


def main(address=None):
    try:
        from dask.distributed import Client
    except ImportError:
        print("dask is not installed: python -m pip install distributed")
        return
    x, y = mc.load_digits("train")
    rng = np.random.default_rng(0)
    model, _ = mc.fit(
        mc.digits_cnn(rng), x, y, optimizer=mc.adam(3e-3), epochs=10, batch_size=32, rng=rng
    )
    find = partial(
        search_plan,
        model,
        CHOICES,
        *mc.load_digits("validation"),
        max_bytes=4000,
        plans=8,
        rounds=2,
    )
    # Without an address: two workers on this machine.
    local = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with Client(address) if address else Client(**local) as client:
        results = []
        for name, executor in (("here", None), ("dask", client.get_executor())):
            start = time.perf_counter()
            results.append(find(executor=executor).best)
            print(f"{name}: {time.perf_counter() - start:.1f} s, {results[-1]}")
    print("the same" if results[0] == results[1] else "not the same: is it another machine's BLAS?")


if __name__ == "__main__":
    main(*sys.argv[1:2])
