"""`python -m effnet_np.kernels.versions`: first that all versions give the same, then how fast each is.

One thread, GFLOP/s, and the share of the core's peak: multiply-adds in registers, measured in the same rounds, as is NumPy's
matrix product (OpenBLAS). Versions take turns, round after round, and the fastest turn of each counts, so that others who use
the machine disturb all alike. --seconds: the time for each shape (default 6). --check: stop after the comparison.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import numpy as np

from effnet_np.kernels.target import CPU_NAME, WIDTH

SIZE = 512  # of the matrices that NumPy multiplies
TURN = 0.01  # seconds
TOLERANCE = 2e-5  # of the largest number


def cpu() -> str:
    """The processor's name, with LLVM's name for its kind."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else 'CPU'} ({CPU_NAME}, {WIDTH} numbers in a register)"


def fastest(functions: list, seconds: float) -> list[float]:
    """Seconds that each takes, at best, in turns of TURN seconds over all that time."""
    best, repeats = [float("inf")] * len(functions), [1] * len(functions)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for i, function in enumerate(functions):
            start = time.perf_counter()
            for _ in range(repeats[i]):
                function()
            taken = (time.perf_counter() - start) / repeats[i]
            best[i], repeats[i] = min(best[i], taken), max(1, int(TURN / taken))
    return best


def check(stories) -> None:
    for story in stories:
        for shape, case in story.CASES.items():
            reference, *others = story.results(case)
            for name, other in zip(story.NAMES[1:], others, strict=True):
                error = np.abs(other - reference).max() / np.abs(reference).max()
                if not (error <= TOLERANCE and np.isfinite(reference).all()):
                    raise SystemExit(f"{shape}: '{name}' differs from the loops by {error:.1e} of the largest number")
    print("all results match\n")


def measure(story, seconds: float) -> None:
    from effnet_np.kernels.versions.product import PEAK_FLOPS, multiply_adds

    a, b = np.random.default_rng(0).standard_normal((2, SIZE, SIZE), np.float32)
    out = np.empty_like(a)
    names = [*(f"v{number} {name}" for number, name in enumerate(story.NAMES)), f"NumPy, {SIZE} x {SIZE}", "peak"]
    table: list[list[str]] = [[] for _ in names]
    for case in story.CASES.values():
        functions = [lambda version=version, case=case: version(case) for version in story.VERSIONS]
        taken = fastest([*functions, lambda: np.matmul(a, b, out=out), multiply_adds], seconds)
        flops = [case.flops] * len(functions) + [2 * SIZE**3, PEAK_FLOPS]
        speeds = [f / t / 1e9 for f, t in zip(flops, taken, strict=True)]
        for row, speed in zip(table, speeds, strict=True):
            row.append(f"{speed:.1f} ({speed / speeds[-1]:.0%})")
    print(story.__doc__.split(":")[0] + ": GFLOP/s (share of peak)\n")
    print("| | " + " | ".join(story.CASES) + " |\n|---|" + "---|" * len(story.CASES))
    for name, row in zip(names, table, strict=True):
        print(f"| {name} | " + " | ".join(row) + " |")
    print(flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m effnet_np.kernels.versions", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="of measuring for each shape (default: 6)")
    parser.add_argument("--check", action="store_true", help="only compare the results")
    options = parser.parse_args()
    if not options.check and os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # NumPy's library reads it when it is loaded
        command = [sys.executable, "-m", "effnet_np.kernels.versions", *sys.argv[1:]]
        return subprocess.run(command, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}).returncode
    from effnet_np.kernels.versions import depthwise, fused, product

    print(cpu())
    stories = (product, depthwise, fused)
    check(stories)
    if not options.check:
        for story in stories:
            measure(story, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
