"""Memory of an endless stream: the process after 1,000 pictures and after 100,000.

    python tests/memory_stream.py [--pictures 100000] [--backend numba]

The pictures are small JPEGs, each other bytes, and the network is small, so that the time goes into what could leak.
"""

import argparse
import io
import itertools
import threading
import time

import numpy as np
import PIL.Image

import effnet_np
from effnet_np.architecture import round_filters
from effnet_np.inference.classify import get_runner


def megabytes() -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def sources():
    generator = np.random.default_rng(0)
    for index in itertools.count():
        data = io.BytesIO()
        PIL.Image.fromarray(generator.integers(0, 256, (24, 32, 3), np.uint8)).save(data, "JPEG")
        yield b"no picture" if index % 1000 == 999 else data.getvalue()  # some fail


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--backend", default="numba")
    options = parser.parse_args()
    fields = {"width_coefficient": 0.125, "hidden_dim": round_filters(1280, 0.125), "image_size": 32, "num_labels": 5}
    model = effnet_np.EfficientNetForImageClassification(effnet_np.EfficientNetConfig.preset("b0", **fields), seed=0)
    model.image_processor = effnet_np.EfficientNetImageProcessor(size=32)
    runner, began = get_runner(model, options.backend), time.monotonic()
    for count, _ in enumerate(effnet_np.classify(sources(), model=runner, errors="return"), 1):
        if count in (1000, 10_000) or count % 25_000 == 0:
            rate = count / (time.monotonic() - began)
            print(f"{count}: {megabytes():.1f} MB, {threading.active_count()} threads, {rate:.0f} a second", flush=True)
        if count == options.pictures:
            break


if __name__ == "__main__":
    main()
