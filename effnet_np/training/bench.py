"""`effnet-np bench --training`: a step of learning (forward, back, AdamW) beside PyTorch: eager, channels-last, torch.compile.

As kernels/bench.py measures: a process for each engine, the same weights and pictures, first answers compared (gradients of the
classifier and the stem, dropout off), then interleaved rounds (dropout on), medians. Memory is what each process's resident
set rises above what it was with the model built.

The Lite networks' peer is the package `efficientnet-lite-pytorch`, the others' is transformers. torch.compile needs a C++
compiler; so it is measured where `--compile` asks for it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from effnet_np.kernels import bench

EAGER = ("torch", "torch-channels-last")
COMPILED = "torch-compile"
PEERS = (*EAGER, COMPILED)
# Gradients against PyTorch's, of the same weights: the classifier's to that share of its largest number, the stem's, which all
# layers lie behind, to that share of its length. PyTorch's own float32 is as far from its float64 as 2e-4 and 6e-2 (Lite0
# channels-last with the batch's statistics: a number that rounding puts on the other side of one of ReLU6's kinks moves a
# gradient by all of it; with B0's swish it is 2e-5 and 5e-5). One step of AdamW at 1e-6 moves the classifier's by 3e-3.
TOLERANCES = {"classifier": 1e-3, "stem": 0.1}


def columns(peers: Sequence[str]) -> list[str]:
    what = ["model", "threads", "batch", "statistics", "ours ms", *(f"{peer} ms" for peer in peers)]
    return [*what, "of best peer", "of GEMM", "ours MB", "PyTorch MB", "of its memory"]


def run(options: argparse.Namespace) -> int:
    """The command. Prints a table; gives its exit status."""
    bench.check_installed(["torch"], bool(options.plot))
    check_peers(options.model)
    peers = PEERS if options.compile else EAGER
    results = []
    with tempfile.TemporaryDirectory() as folder:
        names = columns(peers)
        print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
        for model in options.model:
            for batch in options.batch:
                for threads in sorted(set(options.threads)):
                    for statistics in ("batch", "stored"):
                        results.append(measure(model, threads, batch, statistics, peers, options.seconds, folder))
                        print("| " + " | ".join(cells(results[-1], peers)) + " |", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")
    if options.plot:
        plot(results, options.plot)
    return 0


def check_peers(models: Sequence[str]) -> None:
    """Raise ImportError or ValueError for a model whose peer is not installed, or that has none."""
    for model in models:
        if model.startswith("lite"):
            if find_spec("efficientnet_lite_pytorch") is None:
                raise ImportError(f"{model}'s peer needs its package: pip install efficientnet-lite-pytorch, or leave it out")
        elif not re.fullmatch("b[0-7]", model):
            raise ValueError(f"transformers has no {model}, so there is nothing to measure a step of learning against")


def cells(result: dict[str, Any], peers: Sequence[str]) -> list[str]:
    ms, memory = result["milliseconds"], result["megabytes"]
    least = min(memory[peer] for peer in EAGER)
    numbers = [f"{ms[name]:.0f}" for name in ("ours", *peers)]
    shares = [f"{result['of_best_peer']:.2f}", f"{result['of_gemm']:.2f}"]
    sizes = [f"{memory['ours']:.0f}", f"{least:.0f}", f"{memory['ours'] / least:.2f}"]
    return [str(result[name]) for name in ("model", "threads", "batch", "statistics")] + numbers + shares + sizes


def check(theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray], what: str) -> None:
    """Raise ValueError where gradients are further apart than TOLERANCES."""
    for name, order in (("classifier", np.inf), ("stem", 2)):  # the largest number, the length
        expected = ours[name].ravel()
        error = np.linalg.norm(theirs[name].ravel() - expected, order) / np.linalg.norm(expected, order)
        if not error <= TOLERANCES[name]:
            raise ValueError(f"{what} by {error:.1e} in the gradient of the {name}: nothing was timed")


def measure(
    model: str, threads: int, batch: int, statistics: str, peers: Sequence[str], seconds: float, folder: str
) -> dict[str, Any]:
    """Medians of every engine, interleaved."""
    module = "effnet_np.training.bench"
    names = ("ours", *peers, "gemm")
    engines = {name: bench.Engine(f"{name}:{statistics}", model, threads, batch, folder, module) for name in names}
    try:
        answers = {name: np.load(engine.ready()) for name, engine in engines.items()}
        for name in peers:
            check(answers[name], answers["ours"], f"{name} and ours disagree on {model}")
        times, _ = bench.interleaved(engines, seconds)
        memory = {name: engine.turn(0)[0] for name, engine in engines.items()}
    finally:
        for engine in engines.values():
            engine.stop()
    milliseconds = {name: float(np.median(taken)) * 1e3 for name, taken in times.items()}
    gemm = 2 * bench.GEMM_SIZE**3 / np.percentile(times["gemm"], 10) / 1e9
    return {
        "model": model,
        "threads": threads,
        "batch": batch,
        "statistics": statistics,
        "milliseconds": milliseconds,
        "megabytes": memory,
        "of_best_peer": milliseconds["ours"] / min(milliseconds[peer] for peer in peers),
        "of_gemm": 3 * bench.flops(model) * batch / milliseconds["ours"] / 1e6 / gemm,
    }


# -- the engines ------------------------------------------------------------------------------------------------------


def stepper(name: str, model: str, threads: int, batch: int, statistics: str) -> tuple[Callable, ...]:
    """(a step of learning; gradients of the classifier and the stem from it; what turns dropout on or off)."""
    images, labels = bench.images(model, batch), np.arange(batch)
    return (ours if name == "ours" else peer)(name, model, threads, statistics, images, labels)


def peer(name: str, model: str, threads: int, statistics: str, images: np.ndarray, labels: np.ndarray) -> tuple[Callable, ...]:
    """PyTorch's."""
    import torch

    torch.set_num_threads(threads)
    theirs, (classifier, stem), drop = torch_lite(model) if model.startswith("lite") else torch_hf(model)
    theirs.train()
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
    if name != "torch":  # for a compiled one it is the faster layout, too
        theirs, pixels = theirs.to(memory_format=torch.channels_last), pixels.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(theirs.parameters(), 1e-6)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and statistics == "stored":
            module.eval()
    forward = torch.compile(theirs) if name == COMPILED else theirs

    def step() -> None:
        optimizer.zero_grad()
        logits = forward(pixels)
        torch.nn.functional.cross_entropy(logits if isinstance(logits, torch.Tensor) else logits.logits, targets).backward()
        optimizer.step()

    def gradients() -> dict[str, np.ndarray]:
        return {"classifier": classifier.weight.grad.numpy(), "stem": stem.weight.grad.numpy()}

    return step, gradients, drop


def torch_hf(model: str) -> tuple[Any, tuple[Any, Any], Callable]:
    """(transformers' network with our weights; its classifier and stem; what turns dropout on or off)."""
    import torch

    theirs = bench.torch_model(model)
    dropouts = {module: module.p for module in theirs.modules() if isinstance(module, torch.nn.Dropout)}

    def drop(on: bool) -> None:
        for module, rate in dropouts.items():
            module.p = rate if on else 0.0

    return theirs, (theirs.classifier, theirs.efficientnet.embeddings.convolution), drop


def torch_lite(model: str) -> tuple[Any, tuple[Any, Any], Callable]:
    """The same, of `efficientnet-lite-pytorch`."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    from effnet_np.checkpoints.foreign_writer import foreign_state
    from effnet_np.weights.dialect import blocks_of
    from effnet_np.weights.lite import DIALECT

    network = bench.network(model)
    state = foreign_state(network.state_dict(), DIALECT, blocks_of(network.config.architecture()))
    theirs = EfficientNet.from_name(f"efficientnet-{model}")
    theirs.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()})
    fields, rate = theirs._global_params, theirs._dropout.p

    def drop(on: bool) -> None:
        theirs._dropout.p = rate if on else 0.0
        theirs._global_params = fields._replace(drop_connect_rate=fields.drop_connect_rate if on else 0.0)

    return theirs, (theirs._fc, theirs._conv_stem), drop


def ours(name: str, model: str, threads: int, statistics: str, images: np.ndarray, labels: np.ndarray) -> tuple[Callable, ...]:
    from effnet_np.layers import BatchNorm2d, Dropout
    from effnet_np.training.compiled import CompiledForTraining
    from effnet_np.training.optimizers import AdamW
    from effnet_np.training.trainer import Trainer

    learner = CompiledForTraining(bench.network(model).train(), threads)
    parameters = dict(learner.named_parameters())
    trainer = Trainer(learner, AdamW(parameters, 1e-6), batch_norm="learning" if statistics == "batch" else "stored")
    dropouts = {module: module.rate for _, module in learner.model.named_modules() if isinstance(module, Dropout)}

    def drop(on: bool) -> None:
        for module, rate in dropouts.items():
            module.rate = rate if on else 0.0

    for _, module in learner.model.named_modules():
        if isinstance(module, BatchNorm2d):
            module.train(statistics == "batch")

    def gradients() -> dict[str, np.ndarray]:
        found = learner.gradients(images, labels, list(parameters), 0.0, (0,)).parameters
        return {"classifier": found["classifier.weight"], "stem": found["efficientnet.embeddings.convolution.weight"]}

    return lambda: trainer.step(images, labels), gradients, drop


def serve(name: str, model: str, threads: str, batch: str, folder: str) -> None:
    """The engine's process: one answer, then as many steps as each line of stdin says, or, for 0, the memory of all so far."""
    name, _, statistics = name.partition(":")
    if name == "gemm":
        step: Callable = bench.answerer(name, model, int(threads), int(batch), folder)
        answers, built = {}, 0.0
    else:
        step, gradients, drop = stepper(name, model, int(threads), int(batch), statistics)
        built = resident()
        drop(False)
        if name != "ours":
            step()
        answers = {name: np.array(gradient) for name, gradient in gradients().items()}
        drop(True)
    file = os.path.join(folder, f"{name}.npz")
    np.savez(file, **answers)  # type: ignore[arg-type]
    step()
    print("@" + file, flush=True)
    for line in sys.stdin:
        if int(line) == 0:
            print(f"@{resident(peak=True) - built:.1f}", flush=True)
            continue
        step()
        taken = []
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            taken.append(time.perf_counter() - began)
        print("@" + " ".join(f"{seconds:.9f}" for seconds in taken), flush=True)


def resident(peak: bool = False) -> float:
    """Megabytes of this process in memory now, from where a peak is counted; or the peak."""
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")
    wanted = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(wanted))


def plot(results: list[dict[str, Any]], file: str) -> None:
    """Bars: each engine's step, a group for each line of the table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for number, name in enumerate(name for name in results[0]["milliseconds"] if name != "gemm"):
        heights = [result["milliseconds"][name] / result["batch"] for result in results]
        axes.bar(np.arange(len(results)) + 0.22 * (number - 1), heights, 0.2, label=name)
    labels = [f"{r['model']}, {r['statistics']}\n{r['threads']} threads" for r in results]
    axes.set_xticks(np.arange(len(results)), labels, fontsize=8)
    axes.set(ylabel="milliseconds a picture", title="A step of learning: forward, back, AdamW")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    serve(*sys.argv[1:])
