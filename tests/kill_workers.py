"""20,000 pictures on three workers of a Dask cluster, of which one is killed (-9) every ten seconds: every answer once?

    python tests/kill_workers.py [--pictures 20000] [--every 10] [--workers 3] [--state FILE] [--seconds 500]

The pictures are small ones that are made here, and Lite0 sees them at 96 x 96 pixels, so that it does not take an hour. A quiet
run in one process says what the answers are; the others must be those, each once, in order. With --state the run goes on where
an earlier one of --seconds ended, as `--resume` does.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from effnet_np.inference import cluster
from effnet_np.inference.classify import get_model, get_runner
from effnet_np.inference.stream import stream

SIZE, SEEN = 64, 96  # pixels of a made picture's side, and of what the network sees
SAVE = 5.0  # seconds between two writings of the state


def picture(number: int) -> bytes:
    """The JPEG of that number: coarse coloured noise."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def network():
    """Lite0, from a copy whose processor makes SEEN x SEEN pixels."""
    model = copy.copy(get_model("lite0"))
    model.image_processor = copy.copy(model.image_processor)
    model.image_processor.size = {"height": SEEN, "width": SEEN}
    return model


def digest(answer: list) -> str:
    return hashlib.sha256(json.dumps(answer).encode()).hexdigest()[:16]


class Killer:
    """Kills a worker's process, chosen at random, every so many seconds."""

    def __init__(self, client, every: float):
        self.client, self.every, self.killed, self.end = client, every, 0, threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self) -> None:
        choose = random.Random(0)
        while not self.end.wait(self.every):
            try:
                processes = self.client.run(os.getpid, on_error="ignore")
                os.kill(choose.choice(sorted(processes.values())), signal.SIGKILL)
                self.killed += 1
            except (OSError, IndexError, RuntimeError) as error:
                print(f"  nobody was killed: {error!r}", flush=True)


def answers(options: argparse.Namespace, first: int) -> Iterator[str]:
    """The digests of the answers from picture `first` on, from workers that die."""
    with cluster.local(options.workers) as client:
        killer = Killer(client, options.every)
        try:
            sources = (picture(number) for number in range(first, options.pictures))
            for answer in cluster.map(client, sources, network(), backend="numba", errors="raise"):
                yield digest(answer)
        finally:
            killer.end.set()
            killer.thread.join()
            print(f"  {killer.killed} workers killed, one every {options.every:g} s", flush=True)


def quiet(options: argparse.Namespace, first: int) -> Iterator[str]:
    """The same without a cluster."""
    runner = get_runner(network(), "numba")
    for answer in stream(runner, (picture(number) for number in range(first, options.pictures))):
        yield digest(answer)


def run(options: argparse.Namespace) -> bool:
    """Both runs, as far as the time goes; whether all is done."""
    state = json.loads(options.state.read_text()) if options.state and options.state.exists() else {"killed": [], "quiet": []}
    began = time.monotonic()
    for name, source in (("killed", answers), ("quiet", quiet)):
        done = state[name]
        if len(done) < options.pictures:
            start, at = time.monotonic(), len(done)
            results, saved = source(options, at), start
            for result in results:
                done.append(result)
                if time.monotonic() - began > options.seconds:
                    break
                if options.state and time.monotonic() - saved > SAVE:
                    options.state.write_text(json.dumps(state))
                    saved = time.monotonic()
            results.close()
            seconds = time.monotonic() - start
            print(f"{name}: {len(done)} of {options.pictures} pictures, {(len(done) - at) / seconds:.1f} a second", flush=True)
        if options.state:
            options.state.write_text(json.dumps(state))
        if len(done) < options.pictures:
            return False
    assert len(state["killed"]) == len(state["quiet"]) == options.pictures
    wrong = [number for number, pair in enumerate(zip(state["killed"], state["quiet"], strict=True)) if pair[0] != pair[1]]
    assert not wrong, f"{len(wrong)} answers differ, the first of picture {wrong[0]}"
    print(
        f"{options.pictures} answers, each once, in order, {len(set(state['quiet']))} different ones: equal to the quiet run's"
    )
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--every", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    run(parser.parse_args())
