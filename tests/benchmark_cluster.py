"""Pictures a second: a Dask cluster of two local workers of one thread against one process of two threads, by turns.

    python tests/benchmark_cluster.py FOLDER [--pictures 2000] [--rounds 3] [--workers 2]

FOLDER holds pictures, which are taken again and again until there are enough. The workers are warm: the cluster is started,
and the model has reached them, before the clock starts; both ways' answers are compared first.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

from effnet_np.images.io import SUFFIXES
from effnet_np.inference import cluster
from effnet_np.inference.classify import get_runner
from effnet_np.inference.stream import stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    found = sorted(str(path) for path in options.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = list(itertools.islice(itertools.cycle(found), options.pictures))
    runner = get_runner("lite0", "numba", options.workers)
    with cluster.local(options.workers) as client:

        def one_process() -> list:
            return list(stream(runner, files, errors="return"))

        def workers() -> tuple[float, list]:
            results = cluster.map(client, itertools.chain(files[:64], files), backend="numba")
            list(itertools.islice(results, 64))  # by now every worker has the model
            began = time.perf_counter()
            return began, list(results)

        rates: dict[str, list[float]] = {"one process": [], "Dask": []}
        expected = one_process()
        for _ in range(options.rounds):
            began = time.perf_counter()
            one_process()
            rates["one process"].append(len(files) / (time.perf_counter() - began))
            began, answers = workers()
            rates["Dask"].append(len(files) / (time.perf_counter() - began))
            assert answers == expected
    for name, values in rates.items():
        print(f"{name:12} {statistics.median(values):7.1f} pictures a second ({', '.join(f'{value:.1f}' for value in values)})")
    ratio = statistics.median(rates["Dask"]) / statistics.median(rates["one process"])
    print(f"Dask, {options.workers} workers of one thread, against one process of {options.workers}: {ratio:.3f}")


if __name__ == "__main__":
    main()
