"""Speed and memory of the reference: a script, not a test.

    python tests/benchmark_reference.py [--threads 1 2] [--rounds 20]

Ratios are of medians of interleaved rounds in one process a thread count, NumPy's BLAS and PyTorch on the same number of
threads. Memory is the peak of a process of its own that builds B7, runs it at 600 x 600 and does nothing else. The last two
are the import, and the whole command from the shell, each the median of cold processes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PHOTO = Path(__file__).parent.parent / "notebooks" / "images" / "chelsea.png"


def speed(rounds):
    """Median seconds of B0, batch 1: (ours, HF's eager PyTorch)."""
    import torch

    import effnet_np

    from helpers import pair, pixels

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = effnet_np.EfficientNetConfig.preset("b0")
    theirs, ours = pair(config)
    image = pixels(config)
    tensor = torch.from_numpy(image)
    times = [[], []]
    with torch.no_grad():
        for _ in range(rounds + 3):
            for index, run in enumerate((lambda: ours(image), lambda: theirs(tensor))):
                time.sleep(0.1)  # OpenBLAS's threads spin some 30 ms after their work, and would halve PyTorch's speed
                start = time.perf_counter()
                run()
                times[index].append(time.perf_counter() - start)
    mine, torchs = (statistics.median(t[3:]) for t in times)
    print(f"{mine * 1e3:.1f} {torchs * 1e3:.1f}")


MEMORY = """
import resource, numpy as np, effnet_np
model = effnet_np.EfficientNetForImageClassification(effnet_np.EfficientNetConfig.preset("b7"), seed=0)
logits = model(np.random.default_rng(0).standard_normal((1, 3, 600, 600), np.float32)).logits
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


def run(*command, **environment):
    done = subprocess.run([*command], capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def seconds(*command, rounds=7):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run(*command)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--speed-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.speed_only:
        speed(options.rounds)
        return
    for threads in options.threads:
        count = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        output = run(sys.executable, __file__, "--speed-only", "--rounds", str(options.rounds), **count)
        ours, theirs = map(float, output.split())
        print(f"B0, batch 1, {threads} thread(s): {ours:.1f} ms, eager PyTorch {theirs:.1f} ms, ratio {ours / theirs:.2f}")
    print(f"B7 at 600 x 600, peak memory of the process: {float(run(sys.executable, '-c', MEMORY)):.2f} GB")
    empty = seconds(sys.executable, "-c", "")
    print(f"import effnet_np: {seconds(sys.executable, '-c', 'import effnet_np') - empty:.2f} s")
    print(f"effnet-np classify of one photo: {seconds(sys.executable, '-m', 'effnet_np.cli', 'classify', str(PHOTO)):.2f} s")


if __name__ == "__main__":
    main()
