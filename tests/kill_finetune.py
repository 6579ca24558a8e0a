"""Kill `finetune` at random moments, go on, and compare every byte with a run that was never interrupted: a script, not a test.

    python tests/kill_finetune.py [--kills 20]

Each run is a process of its own; kill -9 comes at a random share of the time that a whole run takes, then --resume ends it.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
from test_finetune import COLOURS, digest

import effnet_np

SETTINGS = ["--train", "all", "--epochs", "3", "--head-epochs", "20", "--batch-size", "8", "--average", "0.9"]
SETTINGS += ["--backend", "numpy"]
# The state is written after each step, not once a minute: a run of seconds would not write one between its epochs.
CODE = "import sys; from effnet_np.training import run; run.SAVE_EVERY = 0.0; from effnet_np.cli import main; sys.exit(main())"


def prepare(folder):
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(np.array(colour) + generator.normal(0, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    config = effnet_np.EfficientNetConfig.preset("b0", image_size=64, width_coefficient=0.25, hidden_dim=320, num_labels=5)
    model = effnet_np.EfficientNetForImageClassification(config, seed=0)
    model.image_processor = effnet_np.EfficientNetImageProcessor(size=64, resample=2)
    model.save_pretrained(folder / "model")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    kills = parser.parse_args().kills
    folder, chance = Path(tempfile.mkdtemp()), random.Random(0)
    prepare(folder)

    def start(name, *more):
        command = [sys.executable, "-c", CODE, "finetune", str(folder / "photos"), "-o", str(folder / name)]
        return subprocess.Popen([*command, "--model", str(folder / "model"), *SETTINGS, *more], stderr=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL)  # fmt: skip

    began = time.monotonic()
    assert start("whole").wait() == 0
    seconds, expected, equal, stages = time.monotonic() - began, digest(folder / "whole"), 0, []
    for number in range(kills):
        name = f"run{number}"
        process = start(name)
        time.sleep(seconds * chance.uniform(0.15, 0.95))
        process.kill()
        process.wait()
        unfinished = folder / f"{name}.unfinished"
        stages.append(", ".join(sorted(os.listdir(unfinished))) if unfinished.exists() else "nothing yet, or all of it")
        if not (folder / name).exists() or unfinished.exists():
            assert start(name, "--resume").wait() == 0, f"run {number} could not go on: {stages[-1]}"
        same = digest(folder / name) == expected
        equal += same
        print(f"kill {number + 1}: there was {stages[-1]}; {'equal' if same else 'DIFFERENT'}", flush=True)
    print(f"{equal} of {kills} bit-equal; a whole run takes {seconds:.1f} s")


if __name__ == "__main__":
    main()
