"""`effnet-np bench`: this network's speed beside that of every runtime which is installed, on the same weights.

How it measures, since that decides what the numbers are worth:

- Every engine runs in a process of its own, told how many threads to use, so that no library's settings or threads
  reach another one.
- All answers are compared before anything is timed.
- Rounds are interleaved: each engine in turn runs for about as long, then the next, over and over. A machine that slows
  down for a while slows all of them. What is reported is the median over all rounds, and ratios of medians.
- Between two turns there is a pause, because the threads of several runtimes go on spinning after their last answer and
  would take the next one's core.
- The speed of a large matrix product in NumPy is measured in the same rounds. The share of it that a network reaches says
  how well its time is used, whatever the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from effnet_np.presets import PRESETS

PEERS = {
    "torch": ("torch", "transformers"),
    "onnxruntime": ("onnxruntime", "torch", "transformers"),
    "openvino": ("openvino", "torch", "transformers"),
}
OURS = ("numba", "numpy")
PAUSE = 0.15  # seconds between two turns
TURN = 0.15  # seconds that an engine runs in its turn, at least one answer
TOLERANCE = 1e-3  # of the largest logit: other runtimes add up in another order
GEMM_SIZE = 1536
RESNET = "resnet152"  # what the paper's Table 4 measures B1 against, and how much longer it took there
PAPERS_RATIO = 5.7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", nargs="+", default=["b0"], choices=[*PRESETS], metavar="MODEL", help=f"{', '.join(PRESETS)} (default: b0)"
    )
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1, os.cpu_count() or 1], metavar="N", help="default: 1 and all"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N", help="images at a time (default: 1)")
    installed = [name for name, needs in PEERS.items() if all(find_spec(module) for module in needs)]
    help_ = f"of {', '.join(PEERS)} (default: those that are installed: {', '.join(installed) or 'none'})"
    parser.add_argument("--peers", nargs="*", default=installed, choices=[*PEERS], metavar="PEER", help=help_)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each model, thread count and batch (default: 20)")
    parser.add_argument("--json", metavar="FILE", help="also write all medians there")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="also draw a roofline of the steps of the first model (needs matplotlib)"
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="measure B1 against ResNet-152 on one core, as the paper's Table 4, and nothing else",
    )
    parser.add_argument("--no-numpy", action="store_true", help="leave out the NumPy reference, which is slow on large models")


def run(options: argparse.Namespace) -> int:
    """The command. Prints a table; gives its exit status. Raises ImportError for what is missing, before it measures."""
    check_installed(options.peers, bool(options.plot))
    if options.paper:
        return paper(options.peers, options.seconds)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for model in options.model:
            prepare(model, options.peers, folder)
            for batch in options.batch:
                for threads in sorted(set(options.threads)):
                    results.append(measure(model, threads, batch, options.peers, not options.no_numpy, options.seconds, folder))
                    print_result(results[-1], options.peers, header=len(results) == 1)
        if options.json:
            Path(options.json).write_text(json.dumps(results, indent=2) + "\n")
        if options.plot:
            plot(options.model[0], max(options.threads), options.plot)
    return 0


def check_installed(peers: list[str], with_plot: bool) -> None:
    """Raise ImportError that names what is missing, and what brings it."""
    wanted = {"Numba": ("numba",)} | {peer: PEERS[peer] for peer in peers} | ({"--plot": ("matplotlib",)} if with_plot else {})
    for name, modules in wanted.items():
        missing = [module for module in modules if find_spec(module) is None]
        if missing:
            way = "pip install 'effnet_np[bench]'" + ("" if name == "Numba" else f", or leave {name} out")
            raise ImportError(f"bench needs {', '.join(missing)}: {way}")


def print_result(result: dict, peers: list[str], header: bool) -> None:
    columns = [
        "model",
        "threads",
        "batch",
        "numba ms",
        "numpy ms",
        *[f"{peer} ms" for peer in peers],
        "of best peer",
        "of GEMM",
    ]
    if header:
        print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    ms = result["milliseconds"]
    cells = [result["model"], result["threads"], result["batch"]]
    cells += [f"{ms[name]:.2f}" if name in ms else "" for name in (*OURS, *peers)]
    cells += [f"{result['of_best_peer']:.2f}" if result["of_best_peer"] else "", f"{result['of_gemm']:.2f}"]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


# -- one measurement --------------------------------------------------------------------------------------------------


def measure(model: str, threads: int, batch: int, peers: list[str], with_numpy: bool, seconds: float, folder: str) -> dict:
    """Medians in milliseconds of every engine, interleaved."""
    names = ["numba", *(["numpy"] if with_numpy else []), *peers, "gemm"]
    engines = {name: Engine(name, model, threads, batch, folder) for name in names}
    try:
        answers = {name: engine.ready() for name, engine in engines.items() if name != "gemm"}
        engines["gemm"].ready()
        check_answers(answers, model)
        times, rounds = interleaved(engines, seconds)
    finally:
        for engine in engines.values():
            engine.stop()
    milliseconds = {name: float(np.median(taken)) * 1e3 for name, taken in times.items()}
    gemm = 2 * GEMM_SIZE**3 / np.percentile(times["gemm"], 10) / 1e9  # its best speed, not its median, is the measure
    best_peer = min((milliseconds[peer] for peer in peers), default=None)
    speed = flops(model) * batch / milliseconds["numba"] / 1e6
    return {
        "model": model,
        "threads": threads,
        "batch": batch,
        "milliseconds": milliseconds,
        "rounds": rounds,
        "of_best_peer": milliseconds["numba"] / best_peer if best_peer else None,
        "gemm_gflops": gemm,
        "gflops": speed,
        "of_gemm": speed / gemm,
    }


def check_answers(answers: dict[str, str], model: str) -> None:
    """Raise ValueError where engines (the files of their logits, by name) disagree."""
    (first, file), *others = answers.items()
    expected = np.load(file)
    for name, file in others:
        error = np.abs(np.load(file) - expected).max() / np.abs(expected).max()
        if not error <= TOLERANCE:
            raise ValueError(f"{name} and {first} disagree on {model} by {error:.1e} of the largest logit: nothing was timed")


def interleaved(engines: dict[str, Engine], seconds: float) -> tuple[dict[str, list[float]], int]:
    """(seconds of each answer, by engine; rounds that were measured)"""
    times: dict[str, list[float]] = {name: [] for name in engines}
    repeats = dict.fromkeys(engines, 1)
    began, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - began < seconds:
        for name, engine in engines.items():
            time.sleep(PAUSE)
            taken = engine.turn(repeats[name])
            repeats[name] = max(1, int(TURN / np.median(taken)))
            if rounds:  # the first round only finds out how often to repeat
                times[name] += taken
        rounds += 1
    return times, rounds - 1


def paper(peers: list[str], seconds: float) -> int:
    """Table 4 of the paper: B1 by the kernels, ResNet-152 by its fastest engine here, one image at a time on one core."""
    if not peers:
        raise ImportError("ResNet-152 needs torch, onnxruntime or openvino: pip install 'effnet_np[bench]'")
    with tempfile.TemporaryDirectory() as folder:
        prepare(RESNET, peers, folder)
        engines = {"B1": Engine("numba", "b1", 1, 1, folder)} | {peer: Engine(peer, RESNET, 1, 1, folder) for peer in peers}
        try:
            answers = {name: engine.ready() for name, engine in engines.items()}
            del answers["B1"]
            check_answers(answers, RESNET)
            times, rounds = interleaved(engines, seconds)
        finally:
            for engine in engines.values():
                engine.stop()
    ms = {name: float(np.median(taken)) * 1e3 for name, taken in times.items()}
    best = min(peers, key=lambda peer: ms[peer])
    rows = [("B1, 240 x 240, effnet_np's kernels", ms["B1"])] + [(f"ResNet-152, 224 x 224, {peer}", ms[peer]) for peer in peers]
    print("| network, one core | ms | times B1 |\n|---|---|---|")
    for name, milliseconds in rows:
        print(f"| {name} | {milliseconds:.1f} | {milliseconds / ms['B1']:.1f} |")
    print(f"{rounds} rounds; {ms[best] / ms['B1']:.1f} times by the best, {best}; {PAPERS_RATIO} in the paper")
    return 0


class Engine:
    """A process that answers when told to, and says how long each answer took."""

    def __init__(self, name: str, model: str, threads: int, batch: int, folder: str, module: str = "effnet_np.kernels.bench"):
        self.name = name
        count = str(threads)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), count)
        command = [sys.executable, "-m", module, name, model, count, str(batch), folder]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in stop)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=os.environ | limits
        )

    def _line(self) -> str:
        while True:
            line = self._process.stdout.readline()
            if not line:
                self._errors.seek(0)
                raise ValueError(f"the {self.name} process ended:\n{self._errors.read()[-2000:]}")
            if line.startswith("@"):  # libraries print as well
                return line[1:].strip()

    def ready(self) -> str:
        """Waits until it has answered once; gives the file with its answer."""
        return self._line()

    def turn(self, repeats: int) -> list[float]:
        self._process.stdin.write(f"{repeats}\n")
        self._process.stdin.flush()
        return [float(number) for number in self._line().split()]

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


# -- the same network for everyone ------------------------------------------------------------------------------------


def lively_state(config, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights with which activations keep a sane scale from layer to layer, so that speed is that of real weights."""
    from effnet_np.model import EfficientNetForImageClassification

    # V2 has no gates in its first blocks: residual branches of full strength would multiply rounding errors to anything.
    strength = {f"efficientnet.encoder.blocks.{b.index}.projection.project_bn.weight": 0.4 for b in config.blocks() if b.fused}
    random = np.random.default_rng(seed)
    state = EfficientNetForImageClassification(config, initialize=False).state_dict()
    for name, array in state.items():
        if array.ndim > 1:
            value = random.standard_normal(array.shape) / np.sqrt(array[0].size)
        elif name.endswith("running_var"):
            value = random.random(array.shape) + 0.5
        elif name.endswith("num_batches_tracked"):
            continue
        else:
            norm_weight = name.endswith("weight")
            value = strength.get(name, 1.0) * (0.1 * random.standard_normal(array.shape) + norm_weight)
        state[name] = value.astype(np.float32)
    return state


def network(model: str):
    from effnet_np.hf_config import EfficientNetConfig
    from effnet_np.model import EfficientNetForImageClassification

    config = EfficientNetConfig.preset(model)
    reference = EfficientNetForImageClassification(config, initialize=False)
    reference.load_state_dict(lively_state(config))
    return reference


def flops(model: str) -> int:
    """Of one image: two for each multiplication with an addition, convolutions and classifier alone (as the papers count)."""
    from effnet_np.hf_config import EfficientNetConfig
    from effnet_np.layer_specs import layer_specs

    config = EfficientNetConfig.preset(model)
    layers = layer_specs(config.architecture(), config.image_size, config.image_size)
    return 2 * sum(layer.mult_adds for layer in layers)


def images(model: str, batch: int) -> np.ndarray:
    from effnet_np.hf_config import EfficientNetConfig

    size = 224 if model == RESNET else EfficientNetConfig.preset(model).image_size
    shape = (batch, 3, size, size)
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def torch_model(model: str):
    """HF's class with the same weights; for a network that HF does not have, `torch_twin`; RESNET, with fresh weights."""
    import torch
    from transformers import EfficientNetConfig, EfficientNetForImageClassification, ResNetConfig, ResNetForImageClassification

    if model == RESNET:
        torch.manual_seed(0)  # fresh weights: the same ones in every engine's process
        return ResNetForImageClassification(ResNetConfig(depths=[3, 8, 36, 3], num_labels=1000)).eval()
    from effnet_np.hf_config import BEYOND_HF
    from effnet_np.hf_config import EfficientNetConfig as OurConfig

    config = OurConfig.preset(model)
    if BEYOND_HF.keys() & config.to_dict().keys():
        return torch_twin(config, {key: torch.from_numpy(value) for key, value in lively_state(config).items()})
    theirs = EfficientNetForImageClassification(EfficientNetConfig(**config.to_dict())).eval()
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in lively_state(config).items()})
    return theirs


def torch_twin(config, state: dict):
    """Any network of ours in PyTorch's functions, in eval mode: a module from pixels to logits. state: PyTorch's tensors."""
    import torch
    from torch.nn import functional

    network = config.architecture()
    act = {"swish": functional.silu, "relu6": functional.relu6}[config.hidden_act]

    def conv(x, name, part=None, groups=1):
        if part is None:
            return functional.conv2d(x, state[name + ".weight"], state.get(name + ".bias"))
        top, bottom, left, right = part.zeros(*map(int, x.shape[2:]))
        pad = top if top == bottom == left == right else 0  # a step less, where the convolution can add the zeros
        x = x if pad else functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(x, state[name + ".weight"], None, part.stride, pad, groups=groups)

    def norm(x, name):
        mean, variance, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, config.batch_norm_eps)

    def block_output(x, block):
        name, y = f"efficientnet.encoder.blocks.{block.index}.", x
        if block.expand_ratio != 1:
            y = conv(y, name + "expansion.expand_conv", block if block.fused else None)
            y = act(norm(y, name + "expansion.expand_bn"))
        if not block.fused:
            y = conv(y, name + "depthwise_conv.depthwise_conv", block, block.expanded_channels)
            y = act(norm(y, name + "depthwise_conv.depthwise_norm"))
        if block.squeeze_channels:
            gate = act(conv(y.mean((2, 3), keepdim=True), name + "squeeze_excite.reduce"))
            y = y * torch.sigmoid(conv(gate, name + "squeeze_excite.expand"))
        only = block.fused and block.expand_ratio == 1
        y = norm(conv(y, name + "projection.project_conv", block if only else None), name + "projection.project_bn")
        y = act(y) if only else y
        return y + x if block.residual else y

    class Twin(torch.nn.Module):
        def forward(self, pixel_values):
            x = conv(pixel_values, "efficientnet.embeddings.convolution", network.stem)
            x = act(norm(x, "efficientnet.embeddings.batchnorm"))
            for block in network.blocks:
                x = block_output(x, block)
            x = act(norm(conv(x, "efficientnet.encoder.top_conv"), "efficientnet.encoder.top_bn"))
            return functional.linear(x.mean((2, 3)), state["classifier.weight"], state["classifier.bias"])

    return Twin().eval()


def prepare(model: str, peers: list[str], folder: str) -> None:
    """Writes the ONNX file that onnxruntime and openvino read."""
    if not {"onnxruntime", "openvino"} & set(peers):
        return
    import logging
    import warnings

    import torch

    theirs = torch_model(model)
    if hasattr(theirs, "efficientnet"):
        # HF's pooling window is larger than the map (ceil_mode makes it the mean); not every runtime takes that.
        theirs.efficientnet.pooler = torch.nn.AdaptiveAvgPool2d(1)

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = theirs

        def forward(self, pixel_values):
            output = self.inner(pixel_values)
            return output if isinstance(output, torch.Tensor) else output.logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        file, axes = os.path.join(folder, f"{model}.onnx"), {"pixel_values": {0: "batch"}}
        torch.onnx.export(
            Logits(),
            (torch.from_numpy(images(model, 1)),),
            file,
            dynamo=False,
            opset_version=17,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_axes=axes,
        )
        logging.disable(logging.NOTSET)


def answerer(name: str, model: str, threads: int, batch: int, folder: str):
    """A function without arguments that computes the logits of the images, once."""
    if name == "gemm":
        a, b = np.random.default_rng(0).standard_normal((2, GEMM_SIZE, GEMM_SIZE), np.float32)
        out = np.empty_like(a)
        return lambda: np.matmul(a, b, out=out)
    x = images(model, batch)
    onnx = os.path.join(folder, f"{model}.onnx")
    if name == "numba":
        from effnet_np.kernels.compiled import CompiledEfficientNet as compile

        fast = compile(network(model), threads)
        return lambda: fast(x).logits
    if name == "numpy":
        reference = network(model)
        return lambda: reference(x).logits
    if name == "torch":
        import torch

        torch.set_num_threads(threads)
        theirs, tensor = torch_model(model), torch.from_numpy(x)

        def eager():
            with torch.inference_mode():
                output = theirs(tensor)
                return (output if isinstance(output, torch.Tensor) else output.logits).numpy()

        return eager
    if name == "onnxruntime":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(onnx, settings, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"pixel_values": x})[0]
    if name == "openvino":
        import openvino

        core = openvino.Core()
        read = core.read_model(onnx)
        read.reshape(list(x.shape))
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = core.compile_model(read, "CPU", settings).create_infer_request()
        return lambda: request.infer({0: x})[0]
    raise ValueError(f"there is no engine {name!r}")


def serve(name: str, model: str, threads: str, batch: str, folder: str) -> None:
    """The engine's process: answer once, then as often as each line of stdin says."""
    answer = answerer(name, model, int(threads), int(batch), folder)
    file = os.path.join(folder, f"{name}.npy")
    np.save(file, answer())
    print("@" + file, flush=True)
    for line in sys.stdin:
        answer()  # whatever another engine's turn has driven out of the caches comes back
        taken = []
        for _ in range(int(line)):
            began = time.perf_counter()
            answer()
            taken.append(time.perf_counter() - began)
        print("@" + " ".join(f"{seconds:.9f}" for seconds in taken), flush=True)


# -- where the time goes ----------------------------------------------------------------------------------------------


def profile(model: str, threads: int, rounds: int = 30) -> list[tuple[str, float, int, int]]:
    """(kind, milliseconds, FLOP, bytes of its tensors) of each step, medians."""
    from effnet_np.kernels.compiled import CompiledEfficientNet as compile

    return compile(network(model), threads).profile(images(model, 1), rounds)


def print_profile(model: str, threads: int, rounds: int = 30) -> None:
    """A table of the kinds of steps: where the time goes."""
    steps = profile(model, threads, rounds)
    whole = sum(milliseconds for _, milliseconds, _, _ in steps)
    print(f"{model}, {threads} threads\n| kind | ms | share | GFLOP/s |\n|---|---|---|---|")
    for kind in dict.fromkeys(step[0] for step in steps):
        mine = [step for step in steps if step[0] == kind]
        milliseconds, work = sum(step[1] for step in mine), sum(step[2] for step in mine)
        print(f"| {kind} | {milliseconds:.2f} | {milliseconds / whole:.1%} | {work / milliseconds / 1e6:.0f} |")
    print(f"| all | {whole:.2f} | | {sum(step[2] for step in steps) / whole / 1e6:.0f} |")


def plot(model: str, threads: int, file: str) -> None:
    """A roofline: each step's speed over how much it computes for each byte of its tensors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = profile(model, threads)
    a = np.ones(1 << 25, np.float32)
    b = np.empty_like(a)
    copies = []
    for _ in range(10):
        began = time.perf_counter()
        np.copyto(b, a)
        copies.append(time.perf_counter() - began)
    bandwidth = 2 * a.nbytes / min(copies) / 1e9
    a = np.ones((GEMM_SIZE, GEMM_SIZE), np.float32)
    products = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        products.append(time.perf_counter() - began)
    roof = 2 * GEMM_SIZE**3 / min(products) / 1e9
    figure, axes = plt.subplots(figsize=(8, 5))
    for kind in dict.fromkeys(step[0] for step in steps):
        mine = [step for step in steps if step[0] == kind]
        axes.scatter(
            [s[2] / s[3] for s in mine],
            [s[2] / s[1] / 1e6 for s in mine],
            s=[20 + 400 * s[1] / sum(t[1] for t in steps) for s in mine],
            alpha=0.6,
            label=kind,
        )
    intensity = np.geomspace(0.25, 500, 100)
    axes.plot(
        intensity,
        np.minimum(roof, bandwidth * intensity),
        "k-",
        linewidth=1,
        label=f"NumPy: {roof:.0f} GFLOP/s, {bandwidth:.0f} GB/s",
    )
    axes.set(xscale="log", yscale="log", xlabel="FLOP for each byte of the step's tensors", ylabel="GFLOP/s")
    axes.set_title(f"{model}, {threads} threads, batch 1: every step; the area is its share of the time")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    serve(*sys.argv[1:])
