"""What a command line calls pictures, one after another: files, folders, patterns, lists of names, tar shards, addresses."""

from __future__ import annotations

import glob
import http.client
import io
import os
import socket
import sys
import tarfile
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from effnet_np.images.headers import recognise
from effnet_np.images.io import SUFFIXES

SHARD = ".tar"
HEAD = 16  # bytes of stdin that tell a picture from a list of names
LONGEST_NAME = 1 << 16  # bytes; systems allow 4096
ADDRESSES = ("http://", "https://")


@dataclass(frozen=True)
class Entry:
    """A picture's name, and what `load_image` reads it from."""

    name: str
    source: Any


@dataclass(frozen=True)
class Limits:
    """Of what is fetched or unpacked: bytes of a picture, and seconds until it has come."""

    bytes: int
    seconds: float


class Failing:
    """Stands for no picture: reading it raises the reason."""

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason

    def read(self, _size: int = -1) -> bytes:
        raise ValueError(self.reason)


class Named(io.BytesIO):
    """Bytes of a picture that errors call by its name."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = name


def entries(found: Found, recursive: bool, limits: Limits, remark: Callable[[str], None]) -> Iterator[Entry]:
    """What was found -> the pictures, lazily: lists and shards are read as the work goes on."""
    for name, reason in found.failed:
        yield Entry(name, Failing(name, reason))
    for name in found.names:
        if name == "-":
            yield from _from_stdin(recursive, limits, remark)
        else:
            yield from _of_name(name, limits)


def _of_name(name: str, limits: Limits) -> Iterator[Entry]:
    if name.lower().startswith(ADDRESSES):
        yield Entry(name, Address(name, limits))
    elif is_shard(name):
        yield from _of_shard(name, limits)
    else:
        yield Entry(name, name)


def is_shard(name: str) -> bool:
    return name.lower().endswith(SHARD) and not name.lower().startswith(ADDRESSES)


# -- folders and patterns ---------------------------------------------------------------------------------------------


@dataclass
class Found:
    names: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)  # what stands for no picture, with the reason
    remarks: list[str] = field(default_factory=list)  # what was left out

    @property
    def total(self) -> int | None:
        """How many pictures these are, if that is known before they are read."""
        known = not any(name == "-" or is_shard(name) for name in self.names)
        return len(self.names) + len(self.failed) if known else None


def expand(names: Iterable[str], recursive: bool) -> Found:
    """Folders and patterns -> the pictures in them, sorted."""
    found = Found()
    for name in names:
        if os.path.isdir(name):
            _expand_folder(name, recursive, found)
        elif not os.path.exists(name) and glob.has_magic(name) and "://" not in name:
            paths = sorted(path for path in glob.glob(name, recursive=True) if os.path.isfile(path))
            found.names += paths
            if not paths:
                found.failed.append((name, f"{name}: no file fits this pattern (folders do not count)"))
        else:
            found.names.append(name)
    return found


def _expand_folder(name: str, recursive: bool, found: Found) -> None:
    """The folder's pictures and shards by their suffixes, folder by folder; hidden files are neither, and not mentioned."""
    paths: list[str] = []
    others: Counter[str] = Counter()
    left_out = 0
    unreadable: list[OSError] = []
    for folder, below, files in os.walk(name, onerror=unreadable.append):
        below[:] = sorted(entry for entry in below if not entry.startswith("."))
        for file in sorted(file for file in files if not file.startswith(".")):
            suffix = Path(file).suffix.lower()
            if suffix in SUFFIXES or suffix == SHARD:
                paths.append(os.path.join(folder, file))
            else:
                others[suffix or "without a suffix"] += 1
        left_out += sum(not recursive or os.path.islink(os.path.join(folder, entry)) for entry in below)
        if not recursive:
            break
    found.names += paths
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


# -- stdin: a picture, or names of pictures ---------------------------------------------------------------------------


class _Rest:
    """A picture on stdin, of which the first bytes have been read."""

    def __init__(self, head: bytes, stream: BinaryIO):
        self.name, self.head, self.stream = "<stdin>", head, stream

    def read(self, size: int) -> bytes:
        return self.head + self.stream.read(size - len(self.head))


def _from_stdin(recursive: bool, limits: Limits, remark: Callable[[str], None]) -> Iterator[Entry]:
    stream = sys.stdin.buffer
    head = b""
    while len(head) < HEAD and (more := os.read(stream.fileno(), 1 << 16) if _is_file(stream) else stream.read(HEAD)):
        head += more
    if not head or recognise(head) is not None:
        yield Entry("-", _Rest(head, stream))
        return
    for name in _names(head, stream):
        found = expand([name], recursive)
        for text in found.remarks:
            remark(text)
        yield from (Entry(failed, Failing(failed, reason)) for failed, reason in found.failed)
        for each in found.names:
            yield from _of_name(each, limits)


def _is_file(stream: BinaryIO) -> bool:
    """Whether the system reads it, and gives what there is without waiting for more."""
    try:
        return stream.fileno() >= 0
    except (OSError, ValueError):
        return False


def _names(head: bytes, stream: BinaryIO) -> Iterator[str]:
    """The names in a list, as it comes: separated by NUL if there is one at its beginning, else by ends of lines."""
    read = partial(os.read, stream.fileno()) if _is_file(stream) else stream.read
    rest, separator, more = head, b"", head
    while more or rest:
        if not separator and (b"\0" in rest or b"\n" in rest):
            separator = b"\0" if b"\0" in rest else b"\n"
        *whole, rest = rest.split(separator) if separator else [rest]
        if len(rest) > LONGEST_NAME:
            raise ValueError(f"stdin holds neither a picture that is known here nor names: {LONGEST_NAME} bytes without an end")
        if not more:
            whole, rest = [*whole, rest], b""
        for name in whole:
            name = name.removesuffix(b"\r") if separator == b"\n" else name
            if name:
                yield os.fsdecode(name)
        if more:
            more = read(1 << 16)
            rest += more


# -- shards: tar files of pictures, as WebDataset makes them ----------------------------------------------------------


def _of_shard(path: str, limits: Limits) -> Iterator[Entry]:
    """The pictures in a tar file, in its order, one at a time in memory; whatever else is in it is passed over."""
    count = 0
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|") as shard:
            for member in shard:
                shard.members = []  # type: ignore[attr-defined]  # or it keeps all of them
                if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
                    yield _of_member(f"{path}/{member.name}", shard, member, limits)
                    count += 1
        reason = "" if _is_whole(path) else f"{path} is cut off after {_count(count, 'picture')}"
    except (tarfile.TarError, EOFError) as error:
        reason = f"{path} is damaged or cut off after {_count(count, 'picture')}: {error}"
    except OSError as error:
        reason = f"{path}: {error.strerror or error}"
    if reason or not count:
        yield Entry(path, Failing(path, reason or f"{path}: the shard holds no pictures ({', '.join(SUFFIXES)})"))


def _of_member(name: str, shard: tarfile.TarFile, member: tarfile.TarInfo, limits: Limits) -> Entry:
    if member.size > limits.bytes:
        return Entry(name, Failing(name, f"{name} has {member.size} bytes, more than {limits.bytes}: --max-bytes allows more"))
    file = shard.extractfile(member)
    data = b"" if file is None else file.read()
    if len(data) < member.size:
        raise tarfile.ReadError(f"{member.name} has {len(data)} of {member.size} bytes")
    return Entry(name, Named(data, name))


def _is_whole(path: str) -> bool:
    """A tar file ends with blocks of zeros; one that is cut off between two members looks like any other to its reader."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 512))
        return size % 512 == 0 and not any(file.read())


# -- addresses --------------------------------------------------------------------------------------------------------


class Address:
    """A picture on the web, fetched when it is read, within limits. Raises ValueError, which names the address."""

    def __init__(self, name: str, limits: Limits):
        self.name, self.limits = name, limits

    def read(self, size: int) -> bytes:
        most = min(size, self.limits.bytes)
        sockets: list[socket.socket] = []
        late = threading.Event()

        def end() -> None:
            late.set()
            for each in sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)  # who waits for it sees its end

        timer = threading.Timer(self.limits.seconds, end)
        timer.start()
        try:
            with _opener(sockets, self.limits.seconds).open(self.name, timeout=self.limits.seconds) as response:
                data = response.read(most + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise ValueError(self._late()) from None
            raise ValueError(f"{self.name} cannot be fetched: {getattr(error, 'reason', error)}") from error
        finally:
            timer.cancel()
            timer.join()
        if late.is_set():
            raise ValueError(self._late())
        if len(data) > most:
            raise ValueError(f"{self.name} has more than {most} bytes: --max-bytes allows more")
        return data

    def _late(self) -> str:
        return f"{self.name} has not come within {self.limits.seconds:g} seconds: --timeout allows more"


def _opener(sockets: list[socket.socket], seconds: float) -> urllib.request.OpenerDirector:
    """What fetches by http and https alone, also where it is sent on, and notes the sockets that it opens."""

    def noting(kind: type) -> Callable:
        def connection(host: str, **options: Any) -> Any:
            made = kind(host, **options)
            connect = made.connect

            def connect_and_note() -> None:
                connect()
                sockets.append(made.sock)

            made.connect = connect_and_note
            return made

        return connection

    class Http(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(noting(http.client.HTTPConnection), request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(noting(http.client.HTTPSConnection), request)

    class Redirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request, file, code, message, headers, address):  # noqa: PLR0913 - urllib's own
            if not address.lower().startswith(ADDRESSES):
                raise urllib.error.URLError(f"it sends on to {address:.200}, which is not http or https")
            return super().redirect_request(request, file, code, message, headers, address)

    opener = urllib.request.OpenerDirector()
    kinds = (urllib.request.ProxyHandler, Http, Https, Redirect)
    for handler in (*kinds, urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor):
        opener.add_handler(handler())
    opener.addheaders = [("User-Agent", "effnet-np"), ("Accept", "image/*")]
    return opener
