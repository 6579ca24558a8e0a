"""Another checkout's kernels beside these: are all outputs equal, bit for bit, and is this one as fast?

    python tests/compare_kernels.py OLD_CHECKOUT [--models b0 b4] [--threads 1 2] [--seconds 20] [--random 40] [--steps]

Each version runs in a process of its own, with machine code of its own in a temporary folder, compiled first (and timed).
Then both answer for the presets, for every network of test_kernels.py, and for random networks. Speed is measured in
short turns, one version after the other, so that a machine that slows down for a while slows both; the figure is the ratio of
the medians, and of the times that a tenth of all answers took at most, over all turns. --steps adds each kind of step's.
NUMBA_CPU_NAME and NUMBA_CPU_FEATURES in the environment choose the CPU that both make code for.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TURN = 0.1  # seconds


# -- the driver -------------------------------------------------------------------------------------------------------


class Version:
    def __init__(self, root: Path, folder: str):
        command = [sys.executable, __file__, str(root), "--serve"]
        environment = os.environ | {"EFFNET_NP_KERNEL_CACHE": os.path.join(folder, root.name)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError("the process of a version ended")


def random_network(seed: int) -> dict:
    """Fields of a small network that no preset has."""
    random = np.random.default_rng(seed)

    def some(options, count=7):
        return [int(n) for n in random.choice(options, count)]

    width, divisor = float(random.choice([0.2, 0.4, 0.7, 1.0])), int(random.choice([1, 3, 8]))
    channels = max(divisor, int(1280 * width + divisor / 2) // divisor * divisor)  # of the head, as round_filters has it
    return {
        "width_coefficient": width,
        "depth_coefficient": float(random.choice([0.3, 0.6])),
        "depth_divisor": divisor,
        "hidden_dim": channels,
        "kernel_sizes": some([1, 2, 3, 3, 5, 5, 7]),
        "strides": some([1, 1, 2]),
        "expand_ratios": some([1, 3, 4, 6]),
        "depthwise_padding": sorted(set(some(range(7), 3))),
        "squeeze_expansion_ratio": float(random.choice([0.0, 0.1, 0.25])),
        "hidden_act": str(random.choice(["swish", "swish", "relu6", "relu", "gelu", "gelu_new", "selu", "mish"])),
        "pooling_type": str(random.choice(["mean", "max"])),
        "num_channels": int(random.choice([1, 3, 4])),
        "num_labels": int(random.integers(1, 40)),
        "image_size": int(random.integers(32, 120)),
        "num_block_repeats": some([1, 2, 3]),
    }


def cases(models, threads, randoms: int):
    """(name, request) for every network and every way to call it."""
    from test_kernels import SMALL, VARIANTS

    networks = {name: {"preset": name} for name in ("lite0", *models)}
    networks |= {name: {"fields": SMALL | fields} for name, fields in VARIANTS.items()}
    networks |= {f"random {seed}": {"fields": random_network(seed)} for seed in range(randoms)}
    for name, network in networks.items():
        for bare in (False, True):
            for count in threads:
                yield f"{name}, {'bare' if bare else 'classifier'}, {count} threads", network | {"bare": bare, "threads": count}


def compare_bits(old: Version, new: Version, models, threads, randoms: int) -> bool:
    equal = different = refused = 0
    for name, request in cases(models, threads, randoms):
        ours, theirs = (version.ask(what="digest", **request) for version in (new, old))
        if theirs == "unknown":
            continue
        refused += ours == theirs and ours.startswith("refused")
        equal += ours == theirs
        different += ours != theirs
        if ours != theirs:
            print(f"DIFFERENT: {name}: {ours} here, {theirs} there")
    print(
        f"outputs: {equal} cases equal bit for bit (in {refused} of them both refuse), {different} different",
        flush=True,
    )
    return not different


def compare_speed(old: Version, new: Version, model: str, threads: int, seconds: float) -> None:
    taken: dict = {old: [], new: []}
    for version in (old, new):
        version.ask(what="time", preset=model, threads=threads, seconds=0.0)  # compiles and warms up
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for version in (old, new):
            taken[version] += version.ask(what="time", preset=model, threads=threads, seconds=TURN)
    (a, c), (b, d) = (np.percentile(taken[version], (50, 10)) * 1e3 for version in (old, new))
    print(f"{model}, {threads} threads, {len(taken[new])} answers each, milliseconds there and here:", end=" ")
    print(f"median {a:.2f} and {b:.2f}, ratio {b / a:.3f}; fastest tenth {c:.2f} and {d:.2f}, ratio {d / c:.3f}", flush=True)


def compare_steps(old: Version, new: Version, model: str, threads: int, turns: int = 7) -> None:
    """Of each kind of step: GFLOP/s there and here, and the ratio of the times, medians over turns."""
    taken: list[dict] = []
    for _ in range(turns):
        there, here = (version.ask(what="profile", preset=model, threads=threads) for version in (old, new))
        taken.append({kind: (*there[kind], *here[kind]) for kind in here if kind in there})
    for kind in taken[0]:
        before, _, now, flops = np.median([turn[kind] for turn in taken], axis=0)
        speeds = f"{flops / before / 1e6:.0f} and {flops / now / 1e6:.0f} GFLOP/s"
        print(f"{model}, {threads} threads, {kind}: {speeds}, time {np.median([t[kind][2] / t[kind][0] for t in taken]):.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("--models", nargs="*", default=["b0", "b4"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each model and number of threads (0: none)")
    parser.add_argument("--random", type=int, default=40, help="random networks")
    parser.add_argument("--steps", action="store_true", help="time each kind of step, too")
    parser.add_argument("--no-bits", action="store_true", help="time only")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.old)
    with tempfile.TemporaryDirectory() as folder:
        old, new = Version(options.old.resolve(), folder), Version(Path(__file__).resolve().parent.parent, folder)
        seconds = [version.ask(what="compile") for version in (old, new)]
        print(f"machine code: {seconds[0]:.1f} s of CPU time there, {seconds[1]:.1f} here, ratio {seconds[1] / seconds[0]:.2f}")
        same = options.no_bits or compare_bits(old, new, options.models, options.threads, options.random)
        for model in options.models:
            for threads in options.threads:
                if options.seconds:
                    compare_speed(old, new, model, threads, options.seconds)
                if options.steps:
                    compare_steps(old, new, model, threads)
        for version in (old, new):
            version.process.stdin.close()
            version.process.wait()
    return 0 if same else 1


# -- a version's process ----------------------------------------------------------------------------------------------


def serve(root: Path) -> int:
    """Answers requests with what is in `root`, whatever else is installed."""
    file, folders = root / "effnet_np" / "__init__.py", [str(root / "effnet_np"), str(root)]  # kernels/ is beside effnet_np/
    spec = importlib.util.spec_from_file_location("effnet_np", file, submodule_search_locations=folders)
    effnet_np = sys.modules["effnet_np"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(effnet_np)
    from effnet_np.kernels import library

    assert Path(library.__file__).is_relative_to(root), library.__file__
    models: dict = {}
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("what")
        if what == "compile":
            began = time.process_time()
            library.addresses()
            answer = time.process_time() - began
        elif what == "digest":
            answer = digest(effnet_np, **request)
        elif what == "profile":
            answer = profiled(effnet_np, models, **request)
        else:
            answer = timed(effnet_np, models, **request)
        print("@" + json.dumps(answer), flush=True)
    return 0


def network(effnet_np, preset=None, fields=None, bare=False):
    """A model with weights that keep a signal's scale, the same for every version."""
    config = effnet_np.EfficientNetConfig.preset(preset) if preset else effnet_np.EfficientNetConfig(**fields)
    model = (effnet_np.EfficientNetModel if bare else effnet_np.EfficientNetForImageClassification)(config, initialize=False)
    random, state = np.random.default_rng(0), model.state_dict()
    for name in sorted(state):
        array = state[name]
        if array.ndim > 1:
            value = random.standard_normal(array.shape) / np.sqrt(array[0].size)
        elif name.endswith("running_var"):
            value = random.random(array.shape) + 0.5
        else:
            value = 0.1 * random.standard_normal(array.shape) + name.endswith("weight")
        if not name.endswith("num_batches_tracked"):
            state[name] = value.astype(np.float32)
    model.load_state_dict(state)
    return model


def images(config, count: int) -> np.ndarray:
    shape = (count, config.num_channels, config.image_size, config.image_size)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def digest(effnet_np, threads: int, **which) -> str:
    """Of all bits of the outputs for two images, with hidden states and without, and for one image of another size."""
    if not set(which.get("fields") or ()) <= set(inspect.signature(effnet_np.EfficientNetConfig).parameters):
        return "unknown"  # fields that this version does not have
    try:
        model = network(effnet_np, **which)
        fast = effnet_np.compile(model, threads=threads)
        pixels = images(model.config, 1 if which.get("preset") else 2)
        smaller = pixels[:1, :, : -(model.config.image_size // 4)]
        outputs = [fast(pixels), fast(pixels, output_hidden_states=True), fast(smaller)]
    except ValueError:  # an image too small for this network; how that is said may differ
        return "refused"
    bits = hashlib.sha256()
    for output in outputs:
        for value in output.to_tuple():
            for array in value if isinstance(value, tuple) else (value,):
                bits.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return bits.hexdigest()[:16] + ("" if np.isfinite(outputs[0][0]).all() else " (not finite)")


def timed(effnet_np, models: dict, preset: str, threads: int, seconds: float) -> list[float]:
    """Seconds that each answer took, for about so long."""
    fast, pixels = compiled(effnet_np, models, preset, threads)
    fast(pixels)
    taken: list[float] = []
    while sum(taken) < seconds:
        began = time.perf_counter()
        fast(pixels)
        taken.append(time.perf_counter() - began)
    return taken


def profiled(effnet_np, models: dict, preset: str, threads: int) -> dict[str, list[float]]:
    """(milliseconds, FLOP) of each kind of step."""
    fast, pixels = compiled(effnet_np, models, preset, threads)
    sums: dict[str, list[float]] = {}
    for kind, milliseconds, flops, _ in fast.profile(pixels, 12):
        sums[kind] = [a + b for a, b in zip(sums.get(kind, [0, 0]), (milliseconds, flops), strict=True)]
    return sums


def compiled(effnet_np, models: dict, preset: str, threads: int):
    """That network, kept until another is asked for, and an image."""
    if (preset, threads) not in models:
        models.clear()
        model = network(effnet_np, preset)
        models[preset, threads] = effnet_np.compile(model, threads=threads), images(model.config, 1)
    return models[preset, threads]


if __name__ == "__main__":
    sys.exit(main())
