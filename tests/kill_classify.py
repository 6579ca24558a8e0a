"""Kill `classify -o` at random moments, go on, and compare every byte with a run that was never interrupted: a script.

    python tests/kill_classify.py FOLDER [--kills 20] [--ending jsonl csv parquet]

Each run is a process of its own; kill -9 comes at a random share of the time that a whole run takes, once or more often, until
--resume ends it. FOLDER holds the pictures.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ending", nargs="+", default=["jsonl", "csv", "parquet"])
    options = parser.parse_args()
    work, chance = Path(tempfile.mkdtemp()), random.Random(0)

    def start(path, *more):
        command = [sys.executable, "-m", "effnet_np", "classify", options.folder, "-r", "-o", str(path), *more]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    expected = {}
    for ending in options.ending:
        began = time.monotonic()
        status = start(work / f"whole.{ending}").wait()
        seconds, expected[ending] = time.monotonic() - began, (work / f"whole.{ending}").read_bytes()
    kills = equal = runs = 0
    while kills < options.kills:
        ending = options.ending[runs % len(options.ending)]
        path, runs, there = work / f"run{runs}.{ending}", runs + 1, []
        for _ in range(chance.choice((1, 1, 2, 3))):
            process = start(path, "--resume")
            time.sleep(seconds * chance.uniform(0.05, 0.95))
            process.kill()
            kills += process.wait() != status  # it may have come to its end before
            there.append(sum(file.stat().st_size for file in work.glob(f"{path.name}*")))
        again = start(path, "--resume").wait()
        same = path.read_bytes() == expected[ending] and again == status
        meant = {path.name} if ending == "parquet" else {path.name, f"{path.name}.run.json"}
        left = [name for name in os.listdir(work) if name.startswith(path.name) and name not in meant]
        equal += same and not left
        print(
            f"{kills} kills: {ending}, {there} bytes were there; {'equal' if same and not left else f'DIFFERENT {left}'}",
            flush=True,
        )
    print(f"{equal} of {runs} files equal after {kills} kills; a whole run takes {seconds:.1f} s")


if __name__ == "__main__":
    main()
