"""A folder of pictures, looked through before anything is learnt: classes, pictures, and what was refused and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from effnet_np.images.io import MAX_PIXELS, SUFFIXES, load_image
from effnet_np.printable import printable

Example = tuple[Path, int]  # a picture, and its class's number


@dataclass
class Dataset:
    """`classes` in order; `train` and `val`, lists of (path, class number); `refused`, [(path, reason)], left out of both."""

    folder: Path
    classes: list[str]
    train: list[Example] = field(default_factory=list)
    val: list[Example] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {len(self.classes)} classes, {len(self.train)} pictures to learn from, {len(self.val)} to judge by"
        ]
        counts = [Counter(label for _, label in part) for part in (self.train, self.val)]
        shown = self.classes if len(self.classes) <= 30 else self.classes[:29]
        width = max(map(len, shown))
        lines += [f"  {name:{width}}  {counts[0][n]:5} + {counts[1][n]}" for n, name in enumerate(shown)]
        lines += [f"  ... and {len(self.classes) - len(shown)} more"] if len(shown) < len(self.classes) else []
        lines += [f"refused: {reason if path in reason else f'{path}: {reason}'}" for path, reason in self.refused[:20]]
        lines += [f"... and {len(self.refused) - 20} more"] if len(self.refused) > 20 else []
        return "\n".join(printable(line) for line in [*lines, *(f"note: {note}" for note in self.notes)])

    def fingerprint(self) -> list[list]:
        """What a run that goes on must find again: each picture's path in the folder, size in bytes and class."""
        return [
            [str(path.relative_to(self.folder)), path.stat().st_size, label]
            for part in (self.train, self.val)
            for path, label in part
        ]


def read_folder(
    folder: str | os.PathLike,
    split: float = 0.2,
    seed: int = 0,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    threads: int = 2,
) -> Dataset:
    """Look at a folder of a folder a class, or at `train/` and `val/` of such; every picture is decoded once.

    Without `val/`, `split` of each class's pictures, at least one, is set aside by `seed` to judge by. What is no picture or is
    damaged is refused and named in the result; the rest goes on. Raises FileNotFoundError, NotADirectoryError, or ValueError
    for fewer than two classes, a class without pictures, or two classes whose names differ in case only.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: give one that holds a folder of pictures for each class")
    parted = (folder / "train").is_dir()
    classes = _classes(folder / "train" if parted else folder)
    dataset = Dataset(folder, classes)
    dataset.train = _examples(dataset, folder / "train" if parted else folder, channels, max_pixels, threads)
    loose = sum(path.suffix.lower() in SUFFIXES for path in (folder / "train" if parted else folder).iterdir())
    if loose:
        dataset.notes.append(f"{loose} pictures lie beside the folders of the classes, in no class: they are left out")
    if parted and (folder / "val").is_dir():
        unknown = sorted(set(_classes(folder / "val", least=1)) - set(classes))
        if unknown:
            raise ValueError(f"{folder / 'val'} has classes that {folder / 'train'} does not have: {', '.join(unknown)}")
        dataset.val = _examples(dataset, folder / "val", channels, max_pixels, threads)
        missing = sorted(set(range(len(classes))) - {label for _, label in dataset.val})
        if missing:
            dataset.notes.append(f"no pictures to judge by for: {', '.join(classes[label] for label in missing)}")
    else:
        _split(dataset, split, seed)
    _refuse_empty(dataset)
    return dataset


def _classes(folder: Path, least: int = 2) -> list[str]:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < least:
        wanted = f"a folder for each class, at least {least}, each with its pictures"
        raise ValueError(f"{folder} must hold {wanted}; it has {', '.join(classes) or 'none'}")
    for name, count in Counter(name.casefold() for name in classes).items():
        if count > 1:
            twins = [own for own in classes if own.casefold() == name]
            raise ValueError(
                f"the classes {' and '.join(twins)} of {folder} differ in case only: rename one, or put them together"
            )
    return classes


def _examples(dataset: Dataset, folder: Path, channels: int, max_pixels: int, threads: int) -> list[Example]:
    """All pictures under a part's classes that can be decoded; what cannot goes to `dataset.refused`."""
    found: list[Example] = []
    for label, name in enumerate(dataset.classes):
        entries = sorted((folder / name).rglob("*")) if (folder / name).is_dir() else []
        for path in entries:
            if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
                continue
            if path.suffix.lower() in SUFFIXES:
                found.append((path, label))
            else:
                dataset.refused.append((str(path), f"the name does not end in {', '.join(SUFFIXES)}"))

    def fault(example: Example) -> str | None:
        try:
            load_image(example[0], channels, max_pixels)
        except (OSError, ValueError, MemoryError) as error:
            return str(error) or type(error).__name__
        return None

    with ThreadPoolExecutor(threads) as pool:
        faults = list(pool.map(fault, found))
    dataset.refused += [(str(path), reason) for (path, _), reason in zip(found, faults, strict=True) if reason]
    return [example for example, reason in zip(found, faults, strict=True) if not reason]


def _split(dataset: Dataset, split: float, seed: int) -> None:
    """Stratified: of each class the same share, chosen by the seed, goes from `train` to `val`."""
    if not 0 < split < 1:
        raise ValueError(f"split must lie between 0 and 1, got {split}")
    everything, generator = dataset.train, np.random.default_rng(seed)
    dataset.train = []
    for label, name in enumerate(dataset.classes):
        own = [example for example in everything if example[1] == label]
        count = min(max(1, round(split * len(own))), len(own) - 1)
        if len(own) == 1:
            dataset.notes.append(f"{name} has one picture, which is learnt from: nothing is left to judge that class by")
        order = generator.permutation(len(own)).tolist()
        dataset.val += [own[index] for index in sorted(order[: max(0, count)])]
        dataset.train += [own[index] for index in sorted(order[max(0, count) :])]


def _refuse_empty(dataset: Dataset) -> None:
    present = {label for _, label in dataset.train}
    empty: Sequence[str] = [name for label, name in enumerate(dataset.classes) if label not in present]
    if empty:
        reasons = "".join(f"\n  {reason}" for _, reason in dataset.refused[:5])
        raise ValueError(f"no pictures to learn from for: {', '.join(empty)}; add some, or remove the folder{reasons}")
    if not dataset.val:
        raise ValueError(f"{dataset.folder} leaves no picture to judge by: every class has one, and two are needed")
