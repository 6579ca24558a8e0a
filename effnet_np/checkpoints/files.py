"""Files of a checkpoint's folder, opened without leaving it; JSON read with limits; files written whole or not at all.

A folder may come from a stranger, who may have put links into it, and may exchange its files while it is read. So a file is
opened first, and what is judged is the open file: whatever happens to its name afterwards, that is what is read.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

# What a checkpoint needs, several times over. A byte of JSON can become twenty in memory, so these also bound memory.
MAX_JSON = 2 << 20  # bytes of a .json file or a safetensors header; B7's are 0.1 and 0.2 MB
MAX_BRACKETS = 20_000  # objects and lists in it
MAX_DEPTH = 20  # of objects and lists in each other
MAX_LINKS = 4  # one after the other

# Not waiting at a pipe; no translation of line ends (Windows). A system that lacks one of these has nothing to fear from it.
READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
LINK_MET = {errno.ELOOP, errno.EMLINK, getattr(errno, "EFTYPE", errno.ELOOP)}  # what opening a link by NO_LINK gives, by system
FOLDER = getattr(os, "O_DIRECTORY", 0)


# -- opening ----------------------------------------------------------------------------------------------------------


def open_file(path: str | os.PathLike) -> BinaryIO:
    """The file of that name, open for reading; links are followed. Raises FileNotFoundError, also for a pipe or a device."""
    try:
        return _regular(os.open(path, READ), path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no file {path}") from None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise FileNotFoundError(f"there is no file {path}") from None
        raise


def open_in_folder(folder: Path, name: str) -> BinaryIO | None:
    """The file of that name in a folder, open for reading, or None. Raises ValueError for a link out of the folder.

    A link to another file of the folder is followed, and so are those that the hub's cache is made of: from
    snapshots/<revision>/ to blobs/, which is no link itself. All steps start at the opened folder, so that nothing which is
    exchanged on the way leads out of it. Systems that cannot open by steps compare the open file with the one in the folder.
    """
    try:
        if {os.open, os.stat, os.readlink} <= os.supports_dir_fd and NO_LINK and FOLDER:
            return _open_by_steps(folder, name)
        return _open_and_compare(folder, name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            return None
        raise type(error)(error.errno, error.strerror, os.fspath(folder / name)) from None


def _open_by_steps(folder: Path, name: str) -> BinaryIO:
    with contextlib.ExitStack() as opened:

        def step(name: str | os.PathLike, within: int | None, flags: int = FOLDER | NO_LINK) -> int:
            number = os.open(name, READ | flags, dir_fd=within)
            opened.callback(os.close, number)
            return number

        path, where, target = folder / name, step(folder, None, FOLDER), ""
        for _ in range(MAX_LINKS):
            try:
                return _regular(os.open(name, READ | NO_LINK, dir_fd=where), path)
            except OSError as error:
                if error.errno not in LINK_MET:
                    raise
                try:
                    target = os.readlink(name, dir_fd=where)
                except OSError:
                    continue  # it was a link when it was opened, and is none now
            way = target
            if os.path.isabs(target):
                way = os.path.join(os.path.realpath(os.path.dirname(target)), os.path.basename(target))
                way = os.path.relpath(way, os.path.realpath(folder))
            *steps, name = [part for part in Path(way).parts if part != "."] or [".."]
            try:
                if steps and steps[-1] == "blobs" and set(steps[:-1]) == {".."}:  # ../../blobs/<hash>
                    below = where
                    for part in steps[:-1]:
                        below, where = where, step(part, where)
                    inside = os.path.samestat(os.fstat(below), os.stat("snapshots", dir_fd=where, follow_symlinks=False))
                    steps = ["blobs"] if inside else [".."]
                if ".." in steps:
                    break
                for part in steps:
                    where = step(part, where)
            except OSError:  # a folder on the way is a link, or not there
                break
        raise _outside(path, target) if target else FileNotFoundError(f"there is no file {path}")


def _open_and_compare(folder: Path, name: str) -> BinaryIO:
    path, home = folder / name, folder.resolve()
    try:
        file = _regular(os.open(path, READ), path)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _outside(path, "itself") from None
    try:
        real = path.resolve()
        inside = real.is_relative_to(home)
        for above in home.parents if not inside else ():
            blobs = above.parent / "blobs"
            inside = inside or (above.name == "snapshots" and not blobs.is_symlink() and real.parent == blobs)
        if not inside or not os.path.samestat(os.fstat(file.fileno()), os.lstat(real)):
            raise _outside(path, real)
    except (OSError, RuntimeError):  # exchanged meanwhile; links in a circle
        file.close()
        raise _outside(path, "another file every time") from None
    except BaseException:
        file.close()
        raise
    return file


def _regular(number: int, path: str | os.PathLike) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(number).st_mode):  # a pipe or a device would be read for ever
        os.close(number)
        raise FileNotFoundError(f"there is no file {path}")
    return os.fdopen(number, "rb")


def _outside(path: Path, target: object) -> ValueError:
    return ValueError(f"{path} is a link to {target!s:.300}, outside its folder: if it is yours, put the file itself there")


# -- JSON -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Put `path` before the message of a TypeError or ValueError that its contents cause."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"{path}: {error!s:.500}") from error


def read_json(path: Path, file: BinaryIO | None = None) -> dict[str, Any]:
    """The object in a JSON file of at most 2 MB (`file`, if it is open already). Raises FileNotFoundError or ValueError."""
    with open_file(path) if file is None else file as file:
        return parse_json(file.read(MAX_JSON + 1), path)


def parse_json(text: str | bytes, where: object, brackets: int = MAX_BRACKETS) -> dict[str, Any]:
    """A JSON object, not too large or deep, without a key twice or a NaN. `where` names it in the ValueError."""
    if len(text) > MAX_JSON:
        raise ValueError(f"{where} is larger than {MAX_JSON} bytes, too large for the JSON of a checkpoint")

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return value

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    def finite(digits: str) -> float:
        if not math.isfinite(float(digits)):
            raise ValueError(f"{digits[:30]} is too large a number")
        return float(digits)

    try:
        text = text.decode() if isinstance(text, bytes) else text
        if text.count("[") + text.count("{") > brackets:
            raise ValueError(f"it has more than {brackets} objects and lists")
        value = json.loads(text, object_pairs_hook=no_twins, parse_constant=no_constant, parse_float=finite)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # fails for half a character, such as "\\ud800"
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} does not hold valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object, got a {type(value).__name__}")
    if _deeper_than(value, MAX_DEPTH):
        raise ValueError(f"{where} has objects and lists more than {MAX_DEPTH} deep in each other")
    return value


def _deeper_than(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper_than(item, levels - 1) for item in inner)


def json_text(value: dict[str, Any], indent: int | None = 2) -> str:
    """JSON as it stands in files. Raises TypeError or ValueError for what JSON cannot hold, NaN and infinity included.

    Also for what `parse_json` would refuse: a file that is written is one that can be read.
    """
    text = json.dumps(value, indent=indent, sort_keys=indent is not None, allow_nan=False) + ("" if indent is None else "\n")
    parse_json(text, "the configuration, as it would be written,")
    return text


# -- writing ----------------------------------------------------------------------------------------------------------


def write_json(folder: str | os.PathLike, name: str, value: dict[str, Any]) -> str:
    """Write `folder`/`name`, making the folder where it is missing, and give the path."""
    folder, text = Path(folder), json_text(value)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / name) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return str(folder / name)


def temporary_name(path: Path) -> str:
    """What a file or folder is called until it is whole; at most 255 bytes, as the names of most file systems are."""
    return f".{_beginning(path)}.{secrets.token_hex(8)}.tmp"


def _beginning(path: Path) -> str:
    return os.fsencode(path.name)[: 255 - len(f"..{16 * '0'}.tmp")].decode(errors="ignore")  # no half character


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it if all goes well and removed if not: the old file or the new, whole.

    A process that is killed leaves its temporary, `.<name>.<16 digits>.tmp`. Nothing reads those; an hour later the next write
    of the same file removes them. An OSError names `path`, not the temporary.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, where a file is to be written")
    for leftover in path.parent.glob(f".{glob.escape(_beginning(path))}.{'[0-9a-f]' * 16}.tmp"):
        with contextlib.suppress(OSError):  # another process may be as quick
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink()
    temporary = path.with_name(temporary_name(path))
    try:
        with open(temporary, "xb"):  # not mkstemp: its file would be its owner's alone
            pass
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename != os.fspath(temporary):
            raise
        if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
            raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}") from None
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Return when the file's bytes are on the disk; OSError where there is no room for them."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def is_plain_name(name: str) -> bool:
    """Whether this names a file in a folder, and is no path to another."""
    return Path(name).name == name and not re.search(r"[\\\0]", name)
