"""Pictures whose classes are known: a folder of a folder a class, or a list of files with their labels."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effnet_np.hf_config import imagenet_labels
from effnet_np.images.io import SUFFIXES
from effnet_np.inference.classify import find_class
from effnet_np.printable import printable
from effnet_np.weights import wordnet_ids

MAX_LINE = 1 << 16  # characters of a line of a list
HEADERS = ({"file", "filename", "image", "path"}, {"label", "class", "target"})
SHOWN = 5  # names in an error


@dataclass
class Labelled:
    """`paths` and, for each, the index of its class, `truth`; `naming`: what its classes are called by; `remarks`."""

    paths: list[str]
    truth: list[int]
    naming: str
    remarks: list[str] = field(default_factory=list)


def read_labelled(source: str | os.PathLike, config: Any) -> Labelled:
    """The pictures under `source`, with the index in `config.id2label` of each one's class.

    A folder holds a folder for each class, with pictures in it, however deep; hidden files and those that are no pictures by
    their names are left out. A file is a list, a line a picture: its name, beside which the list lies if it is no whole path,
    and its label; separated by commas (.csv), tabs (.tsv, or where there are any), or else by the first space. Classes are
    named by the model's labels (or one of their synonyms), by WordNet id (ImageNet's 1,000), or by index, all in one way: the
    first of these that fits all of them. Raises FileNotFoundError, or ValueError for what names no class.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no folder or list {path}")
    found = _from_folder(path) if path.is_dir() else _from_list(path)
    if not found.pairs:
        raise ValueError(f"{path} holds no pictures{' ({})'.format(', '.join(SUFFIXES)) if path.is_dir() else ''}")
    try:
        naming, index_of = _indices(list(dict.fromkeys(label for _, label in found.pairs)), config)
    except ValueError as error:
        below = path / "val"
        hint = f"; give {below}, if those are the pictures to judge by" if below.is_dir() else ""
        raise ValueError(f"{path}: {error}{hint}") from None
    paths, labels = zip(*found.pairs, strict=True)
    return Labelled(list(paths), [index_of[label] for label in labels], naming, found.remarks)


@dataclass
class _Found:
    pairs: list[tuple[str, str]] = field(default_factory=list)  # (path, label)
    remarks: list[str] = field(default_factory=list)


def _from_folder(folder: Path) -> _Found:
    found, others, loose = _Found(), 0, 0
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            loose += 1
            continue
        for path in sorted(entry.rglob("*")):
            if any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_dir():
                continue
            if path.suffix.lower() in SUFFIXES:
                found.pairs.append((str(path), entry.name))
            else:
                others += 1
    if loose:
        found.remarks.append(f"left out {loose} beside the classes' folders")
    if others:
        found.remarks.append(f"left out {others} that are no pictures by their names")
    return found


def _from_list(path: Path) -> _Found:
    rows: list[tuple[int, list[str]]] = []
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if path.suffix.lower() == ".csv":
            try:
                rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
            except csv.Error as error:
                raise ValueError(f"{path} is no CSV file: {error}") from error
        else:
            for number, line in enumerate(file, 1):
                line = line.rstrip("\r\n")
                if len(line) > MAX_LINE:
                    raise ValueError(f"{path}, line {number}: it is longer than {MAX_LINE} characters, which is no list")
                if line.strip():
                    rows.append((number, line.split("\t") if "\t" in line else line.strip().split(None, 1)))
    if rows and len(rows[0][1]) == 2 and all(word.strip().casefold() in HEADERS[n] for n, word in enumerate(rows[0][1])):
        del rows[0]
    found = _Found()
    for number, row in rows:
        if len(row) != 2 or not all(word.strip() for word in row):
            raise ValueError(f"{path}, line {number}: expected a file and its label, got {len(row)} fields: {str(row):.80}")
        name, label = row[0].strip(), row[1].strip()
        found.pairs.append((os.path.join(path.parent, name), label))
    return found


# -- names of classes -------------------------------------------------------------------------------------------------


def _indices(names: Sequence[str], config: Any) -> tuple[str, dict[str, int]]:
    """(how these classes are named, the index of each). Raises ValueError with the names that do not fit."""
    ways = {"label": _by_label, "WordNet id": _by_wordnet_id, "index": _by_index}
    unknown: dict[str, list[str]] = {}
    for way, find in ways.items():
        index_of = find(names, config)
        unknown[way] = [name for name in names if name not in index_of]
        if not unknown[way]:
            return way, index_of
    way = min(unknown, key=lambda way: len(unknown[way]))
    shown = ", ".join(printable(repr(name[:60])) for name in unknown[way][:SHOWN])
    more = f" and {len(unknown[way]) - SHOWN} more" if len(unknown[way]) > SHOWN else ""
    counted = "is no class" if len(unknown[way]) == 1 else "are no classes"
    reason = ""
    if way == "label":
        try:
            find_class(config, _spaced(unknown[way][0]))
        except ValueError as error:  # which lists the labels that come close
            reason = f" ({error})" if "close" in str(error) or "classes" in str(error) else ""
    raise ValueError(f"{shown}{more} {counted} of this model, taken by {way}{reason}")


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _by_label(names: Sequence[str], config: Any) -> dict[str, int]:
    """By the whole label, else by it or one of its synonyms without regard to case, a folder's _ standing for a space."""
    exact = {str(label): index for index, label in config.id2label.items()}
    counts = Counter(str(label) for label in config.id2label.values())
    loose: dict[str, set[int]] = {}
    for index, label in config.id2label.items():
        for spelling in {str(label), *str(label).split(",")}:
            loose.setdefault(_spaced(spelling.strip().casefold()), set()).add(index)
    found = {}
    for name in names:
        fitting = loose.get(_spaced(name.casefold()), set())
        if counts[name] == 1:
            found[name] = exact[name]
        elif len(fitting) == 1:
            found[name] = next(iter(fitting))
    return found


def _by_wordnet_id(names: Sequence[str], config: Any) -> dict[str, int]:
    """Only for a model of ImageNet's 1,000 classes in their order, or of 1,000 without names."""
    generic = all(label == f"LABEL_{index}" for index, label in config.id2label.items())
    if config.num_labels != 1000 or not (generic or config.id2label == imagenet_labels()):
        return {}
    known = {name: index for index, name in enumerate(wordnet_ids())}
    return {name: known[name] for name in names if name in known}


def _by_index(names: Sequence[str], config: Any) -> dict[str, int]:
    numbers = {name: int(name) for name in names if re.fullmatch(r"[0-9]{1,9}", name)}
    return {name: number for name, number in numbers.items() if number < config.num_labels}
