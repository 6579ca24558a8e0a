"""A run that can be stopped at any moment: what it knows lies in a folder, and who goes on from there ends at the same bits.

Nothing depends on the past but through that state: the order of the pictures, each picture's augmentation and each step's
dropout come from the seed and from the number of the epoch, the picture and the step.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from effnet_np.checkpoints.files import read_json, replacing, temporary_name, write_json
from effnet_np.training.settings import Watcher
from effnet_np.training.trainer import Score, part

SAVE_EVERY = 60.0  # seconds


class Run:
    """`history`, one entry an epoch; `best`, the entry of the best validation accuracy, and its weights and answers.

    `place` says where the run is: the stage, the epoch in it, the step in that, and the sums over the epoch's steps so far.
    folder: where the state is kept, None for nowhere. description: everything that the result depends on.
    """

    def __init__(self, folder: Path | None, description: Mapping[str, Any], watcher: Watcher):
        self.folder, self.watcher, self.description = folder, watcher, json.loads(json.dumps(description))
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.best_weights: dict[str, np.ndarray] = {}
        self.predictions = np.zeros(0, np.int64)
        self.place: dict[str, Any] = {"stage": "head", "epoch": 0, "step": 0, "loss": 0.0, "right": 0}
        self.stopped: str | None = None  # why it ended early
        self._saved = time.monotonic()

    # -- state ----------------------------------------------------------------------------------------------------

    def begin(self, resume: bool) -> dict[str, np.ndarray]:
        """Make the folder, or find it again -> the arrays of the stage under way. Raises FileExistsError, ValueError."""
        if self.folder is None:
            return {}
        description = self.folder / "run.json"
        if not resume:
            if self.folder.exists():
                hint = "go on with it by resume=True (--resume), or remove that folder"
                raise FileExistsError(f"{self.folder} holds a run that did not end: {hint}")
        elif description.exists():
            self._refuse_another(read_json(description))
        write_json(self.folder, "run.json", self.description)
        if not (self.folder / "state.npz").exists():
            return {}
        with np.load(self.folder / "state.npz", allow_pickle=False) as file:
            state = {name: file[name] for name in file.files}
        known = json.loads(str(state.pop("known")))
        self.history, self.best, self.place = known["history"], known["best"], known["place"]
        self.best_weights, self.predictions = part(state, "best"), state["predictions"]
        return part(state, "stage")

    def _refuse_another(self, earlier: Mapping[str, Any]) -> None:
        for key in self.description | dict(earlier):
            before, now = earlier.get(key), self.description.get(key)
            if before != now:
                shown = f"{before!r:.80} then, {now!r:.80} now" if key != "pictures" else "pictures came, went or changed since"
                raise ValueError(f"the run in {self.folder} is of another configuration and cannot go on: {key}: {shown}")

    def save(self, arrays: Mapping[str, np.ndarray], always: bool = True) -> None:
        """Write the state, whole or not at all; unless `always`, only where the last one is a minute old."""
        if self.folder is None or (not always and time.monotonic() - self._saved < SAVE_EVERY):
            return
        known = {"history": self.history, "best": self.best, "place": self.place}
        state = {f"stage/{name}": array for name, array in arrays.items()}
        state |= {f"best/{name}": array for name, array in self.best_weights.items()}
        with replacing(self.folder / "state.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, known=np.array(json.dumps(known)), predictions=self.predictions, **state)  # type: ignore[arg-type]
        self._saved = time.monotonic()

    def keep(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that is computed once in a run."""
        path = None if self.folder is None else self.folder / f"{name}.npy"
        if path is not None and path.exists():
            return np.load(path, allow_pickle=False)
        array = compute()
        if path is not None:
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.save(file, array)
        return array

    # -- progress -------------------------------------------------------------------------------------------------

    def go_to(self, stage: str, epoch: int = 0) -> None:
        self.place = {"stage": stage, "epoch": epoch, "step": 0, "loss": 0.0, "right": 0}

    def count(self, loss: float, right: int, pictures: int) -> None:
        """One step more."""
        self.place["step"] += 1
        self.place["loss"] += loss * pictures
        self.place["right"] += right

    def end_epoch(self, count: int, rate: float, score: Score, weights: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Write the epoch down; keep the weights if they are the best so far: more right answers, or as many and less loss."""
        place = self.place
        entry = {
            "stage": place["stage"],
            "epoch": place["epoch"] + 1,
            "learning_rate": rate,
            "train_loss": place["loss"] / count,
            "train_accuracy": place["right"] / count,
            "val_loss": score.loss,
            "val_accuracy": score.accuracy,
        }
        self.history.append(entry)
        rank = (score.accuracy, -score.loss)
        if np.isfinite(score.loss) and (self.best is None or rank > (self.best["val_accuracy"], -self.best["val_loss"])):
            self.best, self.predictions = entry, score.predictions
            self.best_weights = {name: np.array(array) for name, array in weights().items()}
        self.go_to(place["stage"], place["epoch"] + 1)

    def write(self, output: Path, fill: Callable[[Path], None]) -> None:
        """A folder that is whole or absent: filled under another name, then renamed. A stopped run's result is replaced."""
        temporary = output.with_name(temporary_name(output))
        try:
            temporary.mkdir(parents=True)
            fill(temporary)
            old = None
            if output.exists():
                old = output.with_name(temporary_name(output))
                os.replace(output, old)
            os.replace(temporary, output)
            if old:
                shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if self.folder is not None and self.stopped != "interrupted":
            shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C only makes the function that this gives say True; the second interrupts as ever."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen to signals
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def in_batches(
    order: Sequence[int], size: int, load: Callable[[int], np.ndarray], labels: np.ndarray, threads: int, first: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of `size` in that order, from number `first` on; threads load two batches ahead of who takes them."""
    chunks = [list(order[start : start + size]) for start in range(first * size, len(order), size)]
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[list] = deque()
        try:
            for number, chunk in enumerate(chunks):
                while len(waiting) < 3 and number + len(waiting) < len(chunks):
                    waiting.append([pool.submit(load, index) for index in chunks[number + len(waiting)]])
                yield np.stack([future.result() for future in waiting.popleft()]), labels[chunk]
        finally:
            for future in (future for futures in waiting for future in futures):
                future.cancel()
