"""evaluate(): how often a model is right on pictures whose classes are known, how sure it is, and where it errs."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from effnet_np.checkpoints.files import replacing
from effnet_np.images.io import MAX_PIXELS
from effnet_np.inference import cluster, evaluation_page, metrics
from effnet_np.inference.classify import DEFAULT_MODEL, check_count, get_model, get_runner
from effnet_np.inference.labelled import read_labelled
from effnet_np.inference.metrics import Bin, ClassScore, Rate
from effnet_np.inference.stream import stream
from effnet_np.printable import printable

TOP = 5
SHOWN = 10  # confusions, and classes, of the short report


@dataclass
class Evaluation:
    """What `evaluate` found; `str()` is the short report, `save` writes it all as .json, .html or .txt.

    paths, truth (N,), top (N, k): each picture, its class, and the k classes with the highest scores, falling. confidence (N,):
    the probability of the first. loss (N,): -log of the probability that the right class got, in nats. failed: [(path,
    reason)], pictures that could not be judged and count in no number. temperature and calibrated: with `calibrate` alone.
    """

    model: str
    source: str
    naming: str
    labels: dict[int, str]
    paths: list[str]
    truth: np.ndarray
    top: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    seconds: float
    failed: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    temperature: float | None = None
    calibrated: list[Bin] | None = None

    @cached_property
    def right(self) -> np.ndarray:
        """(N,) bool: whether the class with the highest score is the right one."""
        return self.top[:, 0] == self.truth

    @property
    def top1(self) -> Rate:
        return Rate(int(self.right.sum()), len(self.truth))

    @property
    def top5(self) -> Rate | None:
        """None for a model of five classes or fewer, of which five always hold the right one."""
        if len(self.labels) <= TOP:
            return None
        return Rate(int((self.top == self.truth[:, None]).any(axis=1).sum()), len(self.truth))

    @property
    def cross_entropy(self) -> float:
        return float(self.loss.mean())

    @cached_property
    def classes(self) -> list[ClassScore]:
        return metrics.per_class(self.truth, self.top[:, 0])

    @cached_property
    def confusions(self) -> list[tuple[int, int, int]]:
        """[(class, what it was taken for, how often)], the most frequent first."""
        return metrics.confusions(self.truth, self.top[:, 0])

    @cached_property
    def reliability(self) -> list[Bin]:
        return metrics.reliability(self.confidence, self.right)

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: how far confidence and accuracy lie apart, from 0 to 1."""
        return metrics.calibration_error(self.reliability)

    def against(self, other: Evaluation) -> Pair:
        """This model and another on the same pictures. Raises ValueError where they have none in common."""
        return pair(self, other)

    def __str__(self) -> str:
        return to_text([self])

    def to_dict(self) -> dict[str, Any]:
        return to_dict(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write the report as the ending of `path` says, .json, .html or .txt: whole, or an OSError and the old file."""
        write(path, [self])


@dataclass
class Pair:
    """Two models on the same pictures: how many both, one alone, or neither got right, and McNemar's test of the two alone."""

    first: Evaluation
    second: Evaluation
    both: int
    only_first: int
    only_second: int
    neither: int
    differing: list[tuple[str, str, str, str]]  # (path, its class, the first's answer, the second's), right against wrong first

    @property
    def p_value(self) -> float:
        """How probable so uneven a share is if both models are equally good: below 0.05, one is better."""
        return metrics.mcnemar(self.only_first, self.only_second)

    def __str__(self) -> str:
        names = f"{self.first.model} alone right {self.only_first} times, {self.second.model} alone {self.only_second} times"
        counts = f"both {self.both}, neither {self.neither}"
        verdict = "no difference is shown" if self.p_value >= 0.05 else "the difference is no chance"
        return printable(f"{names}, {counts}: McNemar p = {self.p_value:.3g}, {verdict}")

    def to_dict(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("both", "only_first", "only_second", "neither")}
        fields = ("file", "truth", "first", "second")
        rows = [dict(zip(fields, map(_text, row), strict=True)) for row in self.differing]
        return counts | {"mcnemar_p": self.p_value, "differing": rows}

    def save(self, path: str | os.PathLike) -> None:
        """Write the report on both, and on their difference, as .json, .html or .txt."""
        write(path, [self.first, self.second], self)


# -- evaluating -------------------------------------------------------------------------------------------------------


def evaluate(
    source: str | os.PathLike,
    model: Any = DEFAULT_MODEL,
    *,
    calibrate: bool = False,
    batch_size: int = 8,
    backend: str = "auto",
    threads: int | None = None,
    image_processor: Any = None,
    max_pixels: int = MAX_PIXELS,
    client: Any = None,
    progress: Any = None,
    **hub_options: Any,
) -> Evaluation:
    """Judge a model by pictures whose classes are known: accuracy, confusions, calibration, speed.

    source: a folder with a folder of pictures for each class, or a list `file label` (.csv, .tsv, text); classes are named by
    label, WordNet id or index (see `labelled.read_labelled`). calibrate: also fit the temperature; it keeps every picture's
    logits in memory, 4 bytes a class. client: a dask.distributed.Client, whose workers then do it. progress: called with
    (done, total) after each picture. The other arguments are `classify`'s. Pictures that cannot be read are named in
    `failed`. Raises FileNotFoundError or ValueError where no picture, or no class, is found.
    """
    check_count("batch_size", batch_size)
    check_count("max_pixels", max_pixels)
    if client is None:
        runner = get_runner(model, backend, threads, image_processor, **hub_options)
    else:
        runner = get_model(model, image_processor, **hub_options)
    config = runner.config
    if config.num_labels < 2 or config.problem_type in ("multi_label_classification", "regression"):
        raise ValueError("evaluate() judges models that choose one of several classes, and this one does not")
    found = read_labelled(source, config)
    began = time.perf_counter()
    if client is None:
        rows = stream(
            runner, found.paths, "logits", batch_size=batch_size, errors="return", threads=threads, max_pixels=max_pixels
        )
    else:
        rows = cluster.map(client, found.paths, runner, "logits", backend=backend, max_pixels=max_pixels)
    judge = _Judge(config.num_labels, calibrate)
    for number, (path, truth, row) in enumerate(zip(found.paths, found.truth, rows, strict=True), 1):
        judge.take(path, truth, row)
        if progress is not None:
            progress(number, len(found.paths))
    seconds = time.perf_counter() - began
    if not judge.paths:
        raise ValueError(f"none of the {len(found.paths)} pictures could be judged; the first: {judge.failed[0][1]}")
    name = str(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__
    labels = {index: str(label) for index, label in config.id2label.items()}
    return judge.result(name, str(source), found.naming, labels, seconds, found.remarks)


class _Judge:
    """Collects, picture by picture, a few numbers each; all logits only where a temperature is to be fitted."""

    def __init__(self, classes: int, calibrate: bool):
        self.k, self.calibrate = min(TOP, classes), calibrate
        self.paths: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self.numbers: list[tuple] = []
        self.logits: list[np.ndarray] = []

    def take(self, path: str, truth: int, row: np.ndarray | Exception) -> None:
        if isinstance(row, Exception):
            self.failed.append((path, str(row) or type(row).__name__))
            return
        logits = row[None]
        top = metrics.top_classes(logits, self.k)[0]
        confidence = float(metrics.probabilities(logits)[0, top[0]])
        self.paths.append(path)
        self.numbers.append((truth, top, confidence, metrics.cross_entropy(logits, np.array([truth]))))
        if self.calibrate:
            self.logits.append(row)

    def result(self, model: str, source: str, naming: str, labels: dict, seconds: float, remarks: list[str]) -> Evaluation:
        truth, top, confidence, loss = (np.array(column) for column in zip(*self.numbers, strict=True))
        found = Evaluation(
            model, source, naming, labels, self.paths, truth, top, confidence, loss, seconds, self.failed, remarks
        )
        if self.calibrate:
            if len(self.paths) < 2:
                raise ValueError("a temperature needs at least two pictures: one half judges what the other half fits")
            logits = np.stack(self.logits)
            found.temperature = metrics.fit_temperature(logits, truth)
            found.calibrated = metrics.cross_fitted(logits, truth, found.right)
        return found


def pair(first: Evaluation, second: Evaluation) -> Pair:
    """Both on the pictures that both judged."""
    place = {path: number for number, path in enumerate(second.paths)}
    common = [(number, place[path]) for number, path in enumerate(first.paths) if path in place]
    if not common:
        raise ValueError("the two evaluations have no picture in common")
    mine, theirs = (np.array(column) for column in zip(*common, strict=True))
    one, other = first.right[mine], second.right[theirs]
    differing = []
    for a, b in common:
        truth, answers = (
            first.labels[int(first.truth[a])],
            (first.labels[int(first.top[a, 0])], second.labels[int(second.top[b, 0])]),
        )
        if answers[0] != answers[1] or first.right[a] != second.right[b]:
            differing.append((bool(first.right[a] == second.right[b]), (first.paths[a], truth, *answers)))
    differing.sort(key=lambda row: row[0])
    both, only_first, only_second, neither = (
        int(part.sum()) for part in (one & other, one & ~other, ~one & other, ~one & ~other)
    )
    return Pair(first, second, both, only_first, only_second, neither, [row for _, row in differing])


# -- the report -------------------------------------------------------------------------------------------------------


def check_ending(path: str | os.PathLike) -> str:
    """The ending of a report's name. Raises ValueError for another than those that are known."""
    ending = Path(path).suffix
    if ending not in (".json", ".html", ".txt"):
        raise ValueError(f"a report's name must end in .json, .html or .txt, got {Path(path).name}")
    return ending


def write(path: str | os.PathLike, runs: list[Evaluation], compared: Pair | None = None) -> None:
    """The report on one or two evaluations, as the ending of `path` says: whole, or an OSError and the old file."""
    writers = {".json": to_json, ".html": evaluation_page.page, ".txt": to_text}
    text = writers[check_ending(path)](runs, compared)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def to_json(runs: list[Evaluation], compared: Pair | None = None) -> str:
    """One evaluation as an object; of two, a list of both under "models", and under "compared" their difference."""
    if compared is None:
        return json.dumps(runs[0].to_dict(), indent=1, allow_nan=False)
    both = {"models": [run.to_dict() for run in runs], "compared": compared.to_dict()}
    return json.dumps(both, indent=1, allow_nan=False)


def to_text(runs: list[Evaluation], compared: Pair | None = None) -> str:
    return "\n\n".join([*map(_text_of, runs), *([str(compared)] if compared else [])])


def _text_of(found: Evaluation) -> str:
    """Rates, calibration and speed, then the classes that are recognised least and the most frequent confusions."""
    rows = [f"{found.model} on {found.source}: {len(found.paths)} pictures, named by {found.naming}", f"top-1    {found.top1}"]
    rows += [f"top-5    {found.top5}"] if found.top5 else []
    rows += [f"calibration error {found.calibration_error:.3f}, cross entropy {found.cross_entropy:.3f} nats"]
    if found.temperature is not None and found.calibrated is not None:
        after = metrics.calibration_error(found.calibrated)
        rows += [
            f"temperature {found.temperature:.3f}, with which the calibration error is {after:.3f} (fitted on the other half)"
        ]
    rows += [f"speed    {len(found.paths) / found.seconds:.1f} pictures a second"]
    worst = sorted((score for score in found.classes if score.recall.total), key=lambda score: score.recall.value)
    worst = [score for score in worst if score.recall.value < 1][:SHOWN]
    rows += ["recognised least:"] if worst else []
    rows += [f"  {score.recall.right:5} of {score.recall.total:<5} {found.labels[score.index]}" for score in worst]
    rows += ["taken for another:"] if found.confusions else []
    rows += [f"  {count:5} x {found.labels[a]} -> {found.labels[b]}" for a, b, count in found.confusions[:SHOWN]]
    rows += [f"not judged: {path}: {reason}" for path, reason in found.failed[:SHOWN]]
    rows += [f"... and {len(found.failed) - SHOWN} more"] if len(found.failed) > SHOWN else []
    return "\n".join(printable(row) for row in [*rows, *(f"note: {remark}" for remark in found.remarks)])


def to_dict(found: Evaluation) -> dict[str, Any]:
    """All of it as JSON holds it; what JSON lacks (NaN) is null."""
    labels = {index: _text(label) for index, label in found.labels.items()}
    calibration: dict[str, Any] = {
        "expected_calibration_error": found.calibration_error,
        "bins": [_bin(row) for row in found.reliability],
        "temperature": found.temperature,
    }
    if found.calibrated is not None:
        after = metrics.calibration_error(found.calibrated)
        calibration |= {"after_temperature": after, "bins_after_temperature": [_bin(row) for row in found.calibrated]}
    wrong = np.flatnonzero(~found.right).tolist()
    return {
        "model": _text(found.model),
        "source": _text(found.source),
        "classes_named_by": found.naming,
        "pictures": len(found.paths),
        "top1": _rate(found.top1),
        "top5": _rate(found.top5) if found.top5 else None,
        "cross_entropy": found.cross_entropy,
        "calibration": calibration,
        "classes": [
            {"index": row.index, "label": labels[row.index], "recall": _rate(row.recall), "precision": _rate(row.precision)}
            for row in found.classes
        ],
        "confusions": [{"truth": labels[a], "predicted": labels[b], "count": count} for a, b, count in found.confusions],
        "mistakes": [
            {
                "file": _text(found.paths[n]),
                "truth": labels[int(found.truth[n])],
                "predicted": labels[int(found.top[n, 0])],
                "confidence": float(found.confidence[n]),
            }
            for n in wrong
        ],
        "failed": [{"file": _text(path), "reason": _text(reason)} for path, reason in found.failed],
        "remarks": [_text(remark) for remark in found.remarks],
        "seconds": found.seconds,
        "pictures_a_second": len(found.paths) / found.seconds,
    }


def _rate(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval
    return {"right": rate.right, "total": rate.total, "value": _finite(rate.value), "low": low, "high": high}


def _bin(row: Bin) -> dict[str, Any]:
    return {name: _finite(value) for name, value in vars(row).items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(text: str) -> str:
    """As UTF-8 can hold it: a file's name may be no text."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
