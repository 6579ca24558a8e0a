"""`effnet-np classify`: what is in pictures, by file, folder, pattern or from stdin."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effnet_np.cli.common import MODEL_HELP, PIXELS_HELP, PROCESSOR_HELP, Commands, picture, positive, say
from effnet_np.images.io import MAX_PIXELS, SUFFIXES
from effnet_np.printable import printable

DESCRIPTION = """Say what is in pictures: for each its name, then the labels with the highest scores.

An IMAGE is a file, a folder (hidden files are left out), a pattern such as 'photos/*.jpg', or - for stdin.
A picture that cannot be read is named on stderr, the others are answered, and the exit status is 1."""


def add(commands: Commands) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser("classify", help="say what is in pictures", description=DESCRIPTION, formatter_class=raw)
    command.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, a folder, a pattern, or - for stdin")
    command.add_argument("-r", "--recursive", action="store_true", help="also look into the folders below a folder")
    command.add_argument("--model", default="lite0", help=MODEL_HELP)
    command.add_argument("--processor", metavar="NAME", help=PROCESSOR_HELP)
    command.add_argument("--top-k", type=positive, default=5, metavar="K", help="labels per picture (default: %(default)s)")
    command.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="pictures at a time (default: %(default)s)"
    )
    command.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help=PIXELS_HELP)
    command.add_argument("--json", action="store_true", help="one JSON object per picture and line, for programs")
    backends = "numpy, numba (compiled kernels), or auto: numba where it is warmed up (default: %(default)s)"
    command.add_argument("--backend", choices=("auto", "numpy", "numba"), default="auto", help=backends)
    command.add_argument("--threads", type=positive, metavar="N", help="of the compiled kernels (default: one per core)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from effnet_np.inference.classify import get_runner
    from effnet_np.inference.stream import stream

    found = _expand(options.images, options.recursive)
    for remark in found.remarks:
        say(remark)
    for name, reason in found.failed:
        _report_failure(name, reason, options.json)
    if not found.paths:
        return 1
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(message)
        if options.backend == "numba":
            _compile_if_cold()
        runner = get_runner(options.model, options.backend, options.threads, options.processor)
    sources = (picture(path) for path in found.paths)
    asked = {"top_k": options.top_k, "batch_size": options.batch_size, "max_pixels": options.max_pixels}
    results = stream(runner, sources, errors="return", **asked)
    failed = len(found.failed)
    with closing(_Progress(len(found.paths))) as progress:
        for path, result in zip(found.paths, results, strict=True):
            with progress.answer():
                if isinstance(result, Exception):
                    failed += 1
                    _report_failure(path, str(result) or type(result).__name__, options.json)
                else:
                    _print_predictions(path, result, options.json)
    if failed and len(found.paths) + len(found.failed) > 1:
        say(f"{failed} could not be classified")
    return 1 if failed else 0


def _compile_if_cold() -> None:
    """Compile the kernels with a progress bar where their machine code is not on disk: half a minute of silence looks dead."""
    try:
        from effnet_np.kernels import library
        from effnet_np.kernels.warmup import warmup
    except ImportError:  # no Numba: `get_runner` says what to install
        return
    if not library.kernels_cached():
        say("compiling the kernels for this CPU, once, which takes up to a minute")
        warmup()


# -- pictures by name -------------------------------------------------------------------------------------------------


@dataclass
class _Found:
    paths: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)  # what stands for no picture, with the reason
    remarks: list[str] = field(default_factory=list)  # what was left out


def _expand(names: Iterable[str], recursive: bool) -> _Found:
    """Folders and patterns -> the pictures in them, sorted."""
    found = _Found()
    for name in names:
        if os.path.isdir(name):
            _expand_folder(name, recursive, found)
        elif not os.path.exists(name) and glob.has_magic(name) and "://" not in name:
            paths = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
            found.paths += paths
            if not paths:
                found.failed.append((name, f"{name}: no file fits this pattern (folders do not count)"))
        else:
            found.paths.append(name)
    return found


def _expand_folder(name: str, recursive: bool, found: _Found) -> None:
    """The folder's pictures by their suffixes, folder by folder; hidden files are no pictures, and not mentioned."""
    paths: list[str] = []
    others: Counter[str] = Counter()
    left_out = 0
    unreadable: list[OSError] = []
    for folder, below, files in os.walk(name, onerror=unreadable.append):
        below[:] = sorted(entry for entry in below if not entry.startswith("."))
        for file in sorted(file for file in files if not file.startswith(".")):
            suffix = Path(file).suffix.lower()
            if suffix in SUFFIXES:
                paths.append(os.path.join(folder, file))
            else:
                others[suffix or "without a suffix"] += 1
        left_out += sum(not recursive or os.path.islink(os.path.join(folder, entry)) for entry in below)
        if not recursive:
            break
    found.paths += paths
    found.failed += [(str(error.filename), f"{error.filename}: {error.strerror}") for error in unreadable]
    hint = "" if recursive or not left_out else f"; -r looks into the {_count(left_out, 'folder')} below"
    if not paths and not unreadable:
        found.failed.append((name, f"{name}: the folder holds no pictures ({', '.join(SUFFIXES)}){hint}"))
    elif hint:
        found.remarks.append(f"{name}{hint.replace(';', ':', 1)}")
    elif left_out:
        found.remarks.append(f"{name}: {_count(left_out, 'linked folder')} below not followed")
    if paths and others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        found.remarks.append(f"{name}: skipped {_count(others.total(), 'file')} of unknown kind ({kinds})")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


# -- answers ----------------------------------------------------------------------------------------------------------


class _Progress:
    """Answers counted on stderr where a person looks at it: by tqdm's bar if that is installed, else in a line."""

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self.shown = total > 1 and sys.stderr.isatty()
        self.bar: Any = None
        if self.shown:
            try:
                from tqdm import tqdm

                self.bar = tqdm(total=total, unit="picture", file=sys.stderr)
            except ImportError:
                self._show()

    @contextmanager
    def answer(self) -> Iterator[None]:
        """An answer is printed inside of this: the bar makes place for it, and counts it."""
        if self.bar is not None:
            with self.bar.external_write_mode(file=sys.stdout):
                yield
            self.bar.update()
            return
        if self.shown:
            print("\r" + " " * 40, end="\r", file=sys.stderr, flush=True)
        yield
        self.done += 1
        self._show()

    def _show(self) -> None:
        if self.shown:
            print(f"\r{self.done} of {self.total} pictures", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.shown:
            print(file=sys.stderr)


def _print_predictions(name: str, predictions: list[dict], as_json: bool) -> None:
    if as_json:
        _print_json(name, predictions=[prediction | {"label": _text(prediction["label"])} for prediction in predictions])
        return
    lines = [f"  {prediction['score']:6.1%}  {printable(prediction['label'])}" for prediction in predictions]
    print("\n".join([printable(name), *lines]), flush=True)


def _report_failure(name: str, reason: str, as_json: bool) -> None:
    if as_json:
        _print_json(name, error=_text(reason))
    print(f"effnet-np: {printable(reason if name in reason else f'{name}: {reason}')}", file=sys.stderr, flush=True)


def _print_json(name: str, **fields: Any) -> None:
    """One object in ASCII, so that no terminal obeys it; of a name that is not UTF-8 the bytes, in hexadecimal, too."""
    record: dict[str, Any] = {"file": _text(name)}
    if record["file"] != name:
        record["file_bytes"] = os.fsencode(name).hex()
    print(json.dumps(record | fields), flush=True)


def _text(label: Any) -> Any:
    """Text as UTF-8 can hold it; a label may also be a number."""
    return label.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(label, str) else label
