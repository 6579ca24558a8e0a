"""Speed and memory of forward + backward of B0 beside eager PyTorch, in training mode: a script, not a test.

    python tests/benchmark_training.py [--batch 4] [--rounds 7] [--threads 2]
    python tests/benchmark_training.py --frozen b0 lite0 [--batch 16]    (compiled: a step where only the last blocks learn)

Times are medians of interleaved rounds in one process. Memory is what the resident set of a process of its own rises above what
it is with the model built and one forward + backward of 64 x 64 pixels done.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time


def steps(batch, size, libraries):
    """{"ours": function, "PyTorch": function}, each one forward + backward of B0."""
    import numpy as np

    labels = np.arange(batch)
    result = {}
    pixel_values = np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)
    if "ours" in libraries:
        import effnet_np
        from effnet_np.training.backward import backward

        model = effnet_np.EfficientNetForImageClassification(effnet_np.EfficientNetConfig.preset("b0"), seed=0).train()
        result["ours"] = lambda: backward(model, pixel_values, labels, pixel_gradient=False)
    if "PyTorch" in libraries:
        import torch
        import transformers

        import effnet_np

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        fields = effnet_np.EfficientNetConfig.preset("b0").to_dict()
        theirs = transformers.EfficientNetForImageClassification(transformers.EfficientNetConfig(**fields)).train()

        def step():
            theirs.zero_grad()
            theirs(torch.from_numpy(pixel_values), labels=torch.from_numpy(labels)).loss.backward()

        result["PyTorch"] = step
    return result


def speed(batch, rounds):
    functions = steps(batch, 224, ("ours", "PyTorch"))
    times = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            time.sleep(0.1)  # OpenBLAS's threads spin some 30 ms after their work
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    ours, theirs = (statistics.median(times[name][1:]) for name in ("ours", "PyTorch"))
    print(f"B0, batch {batch}, forward + backward: {ours:.2f} s, eager PyTorch {theirs:.2f} s, ratio {ours / theirs:.2f}")


def memory(batch, library):
    """Bytes that the peak lies above the process before the step."""
    for function in steps(2, 64, (library,)).values():
        function()
    step = steps(batch, 224, (library,))[library]
    with open("/proc/self/status") as status:
        before = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    step()
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print((peak - before) * 1024)


def frozen(name, batch, rounds, threads):
    """A compiled step with batch norms at stored statistics: all layers, the last blocks, the head; and forward alone."""
    import effnet_np
    from effnet_np.kernels.bench import images, network
    from effnet_np.training.trainer import trainable

    model, pixel_values = network(name).eval(), images(name, batch)
    fast, learner = effnet_np.compile(model, threads), effnet_np.compile(model, threads, training=True)

    def step(parts):
        options = {"labels": list(range(batch)), "parameters": trainable(model, parts), "pixel_gradient": False}
        return lambda: learner.backward(pixel_values, **options)

    functions = {parts: step(parts) for parts in ("all", "last:3", "last:1", "head")} | {"forward": lambda: fast(pixel_values)}
    times = {parts: [] for parts in functions}
    for _ in range(rounds):
        for parts, function in functions.items():
            function()  # another one's plan was the last
            start = time.perf_counter()
            function()
            times[parts].append(time.perf_counter() - start)
    medians = {parts: statistics.median(taken) for parts, taken in times.items()}
    shares = ", ".join(f"{parts} {t * 1e3:.0f} ms ({t / medians['all']:.2f})" for parts, t in medians.items())
    print(f"{name}, batch {batch}, {threads} threads: {shares}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--frozen", nargs="+", metavar="MODEL", help="compiled steps in which only the last blocks learn")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.frozen:
        for name in options.frozen:
            frozen(name, options.batch, options.rounds, int(options.threads))
    elif options.only == "speed":
        speed(options.batch, options.rounds)
    elif options.only:
        memory(options.batch, options.only)
    else:
        count = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), options.threads)
        sizes = [str(options.batch), str(options.rounds)]
        for only in ("speed", "ours", "PyTorch"):
            command = [sys.executable, __file__, "--only", only, "--batch", sizes[0], "--rounds", sizes[1]]
            output = subprocess.run(command, capture_output=True, text=True, env=os.environ | count, check=True).stdout
            print(output.strip() if only == "speed" else f"peak memory, {only}: {int(output) / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
