"""The five forms of a trace on disk: an .h5 or .npz file, or a folder of .npy, .txt or raw .bin files, each with an index.

An index has a line for each array, made for `fscanf`:

    kind name dtype layout dimensions shape file [scale=S] [zero_point=Z]
    output classifier float32 NC 2 1 1000 output/classifier.bin

kind is output, input or weight; layout NCHW, NHWC, NC, OIHW, OI, O or -; then the number of dimensions, the dimensions, and
where the numbers lie. Numbers are little-endian and in C order. Whole numbers q with a scale mean (q - Z) * S, and Z is 0
where it is not given. In a folder the index is `index.txt`.

A trace may come from a stranger. An index's claims are held against the files when it is opened; numbers are read when they are
asked for, one array at a time.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shutil
import stat
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from effnet_np.checkpoints.files import replacing, temporary_name
from effnet_np.checkpoints.h5_file import H5File
from effnet_np.checkpoints.h5_writer import save_arrays_h5
from effnet_np.printable import printable, shortened

FORMATS = ("h5", "npz", "npy", "txt", "bin")
LAYOUTS = ("NCHW", "NHWC")
KINDS = ("output", "input", "weight", "gradient")
DTYPES = ("float16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8")
H5_DTYPES = ("float16", "float32", "float64", "int64")
INDEX_HEADER = "# effnet_np trace 1"
INDEX_FIELDS = "kind name dtype layout dimensions shape file"

# What a trace needs, several times over: of B7 with inputs and weights, see test_the_limits_leave_room_for_b7.
MAX_INDEX = 2 << 20  # bytes; also of a zip's list of entries
MAX_ARRAYS = 10_000
MAX_ARRAY = 2 << 30  # bytes
MAX_DIMENSIONS = 8
MAX_NAME = 500  # characters
UNPACKED, TIMES = 64 << 20, 20  # a packed file's arrays may take so many bytes, and so many times the file's own, in all
MAX_NPY_HEADER = 1 << 14  # bytes
PIECE = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Entry:
    """One array of a trace: a line of its index."""

    kind: str
    name: str
    dtype: str
    layout: str
    shape: tuple[int, ...]
    place: str  # a path in the folder, or a name in the file
    scale: float | None = None
    zero_point: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def line(self) -> str:
        shape = " ".join(map(str, (len(self.shape), *self.shape)))
        return f"{self.kind} {self.name} {self.dtype} {self.layout} {shape} {self.place}"


def parse_index(text: str, path: Path) -> list[Entry]:
    """The lines of an index. Raises ValueError with the number of the line that is none."""
    if not text.startswith(INDEX_HEADER):
        raise ValueError(f"the index of {path} must begin with {INDEX_HEADER!r}")
    entries: list[Entry] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("#") or not line.strip():
            continue
        try:
            entries.append(_parse_line(line.split()))
        except ValueError as error:
            raise ValueError(f"line {number} of the index of {path}: {error}; got '{printable(line[:100])}'") from None
        if len(entries) > MAX_ARRAYS:
            raise ValueError(f"the index of {path} names more than {MAX_ARRAYS} arrays")
    return entries


def _parse_line(words: list[str]) -> Entry:
    sizes = words[4:-1]
    count = next((index for index, word in enumerate(sizes) if not re.fullmatch("[0-9]{1,13}", word)), len(sizes))
    rank = int(sizes[0]) if count else -1
    if not 0 <= rank < len(words) - 5 or rank >= count:
        raise ValueError(f"expected `{INDEX_FIELDS}`, with as many dimensions as it says")
    kind, name, dtype, layout = words[:4]
    shape, place = tuple(map(int, sizes[1 : rank + 1])), words[5 + rank]
    if kind not in KINDS or dtype not in DTYPES:
        raise ValueError(f"expected a kind of {', '.join(KINDS)} and a dtype of {', '.join(DTYPES)}")
    if rank > MAX_DIMENSIONS or max(len(name), len(place)) > MAX_NAME:
        raise ValueError(f"expected at most {MAX_DIMENSIONS} dimensions and names of {MAX_NAME} characters")
    quantised: dict[str, Any] = {}
    for word in words[6 + rank :]:
        key, _, value = word.partition("=")
        try:
            quantised[key] = {"scale": float, "zero_point": int}[key](value[:40])
        except (KeyError, ValueError):
            raise ValueError("expected nothing after the file but scale=NUMBER and zero_point=WHOLE NUMBER") from None
    if not math.isfinite(quantised.get("scale", 1.0)) or abs(quantised.get("zero_point", 0)) > 1 << 40:
        raise ValueError("expected a finite scale and zero point")
    return Entry(kind, name, dtype, layout, shape, place, **quantised)


# -- opening ----------------------------------------------------------------------------------------------------------


class Arrays(Protocol):
    """Where the numbers of a trace lie."""

    path: Path
    index: str | None  # None in another program's file, whose arrays have only names
    packed: int  # bytes of the file where arrays may be compressed in it, else 0

    def entries(self) -> list[Entry]: ...  # of a file without an index
    def check(self, entry: Entry) -> None: ...  # ValueError where there are no such numbers
    def read(self, entry: Entry) -> np.ndarray: ...


class StoredTrace:
    """An open trace: `entries` in the order of its index (or of names, if not `ordered`), and `read(entry)`."""

    def __init__(self, path: Path):
        """Raises FileNotFoundError, or ValueError for what is no trace, is damaged, or does not agree with its index."""
        if path.is_dir():
            self._arrays: Arrays = FolderArrays(path)
        elif not path.exists():
            raise FileNotFoundError(f"there is no trace {path}")
        elif path.suffix in (".h5", ".hdf5", ".npz") and path.is_file():
            self._arrays = NpzArrays(path) if path.suffix == ".npz" else H5Arrays(path)
        else:
            raise ValueError(f"{path} is no trace: it must be a folder, or a file that ends in .h5 or .npz")
        self._lock = threading.Lock()
        self.ordered = self._arrays.index is not None
        self.entries = self._arrays.entries() if self._arrays.index is None else parse_index(self._arrays.index, path)
        self._check(path)

    def _check(self, path: Path) -> None:
        twice = Counter((entry.kind, entry.name) for entry in self.entries) + Counter(entry.place for entry in self.entries)
        if twice and max(twice.values()) > 1:
            which = shortened(next(key for key, count in twice.items() if count > 1))
            raise ValueError(f"the index of {path} names {which} twice")
        for entry in self.entries:
            if entry.nbytes > MAX_ARRAY:
                raise ValueError(f"{path}: {shortened(entry.name)} of shape {entry.shape} takes more than {MAX_ARRAY} bytes")
        total, packed = sum(entry.nbytes for entry in self.entries), self._arrays.packed
        if packed and total > UNPACKED + TIMES * packed:
            raise ValueError(
                f"{path} has {packed} bytes and its arrays would take {total}, more than {TIMES} times as much: "
                "if that is no mistake, save it without compression"
            )
        for entry in self.entries:
            self._arrays.check(entry)

    def read(self, entry: Entry) -> np.ndarray:
        """The numbers of an entry, read-only, in NCHW; float32 where it has a scale. Raises ValueError for damage."""
        path = self._arrays.path
        try:
            with self._lock:
                array = self._arrays.read(entry)
        except (OSError, MemoryError, OverflowError) as error:
            raise ValueError(
                f"{path}: {shortened(entry.name)} cannot be read: {printable(error)[:300] or type(error).__name__}"
            ) from error
        if array.shape != entry.shape or array.dtype.name != entry.dtype:
            found, expected = f"{array.dtype} {array.shape}", f"{entry.dtype} {entry.shape}"
            raise ValueError(f"{path}: {shortened(entry.place)} is {found}, but its index says {expected}")
        if entry.scale is not None:
            with np.errstate(over="ignore"):
                array = (array.astype(np.float32) - np.float32(entry.zero_point)) * np.float32(entry.scale)
        if entry.layout == "NHWC" and array.ndim == 4:
            array = array.transpose(0, 3, 1, 2)
        array = array.view()
        array.flags.writeable = False
        return array


class Lazy(Mapping[str, Any]):
    """{name: value} whose values are read each time that they are asked for."""

    def __init__(self, readers: Mapping[str, Callable[[], Any]], nbytes: int):
        self._readers, self.nbytes = readers, nbytes

    def __getitem__(self, name: str) -> Any:
        return self._readers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def open_regular(path: Path, folder: Path | None = None) -> BinaryIO:
    """Open a file for reading; ValueError if it is a pipe or a device, or does not lie in `folder`, by links or by its name.

    It is judged once it is open: what is then put in its place does not matter.
    """
    name = printable(path) if folder is None else os.path.join(printable(folder), shortened(os.path.relpath(path, folder)))
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # the second: a name with a zero byte
        raise ValueError(f"{name} is not there, or cannot be opened: {getattr(error, 'strerror', error)}") from None
    file = open(descriptor, "rb")  # noqa: SIM115 - the caller closes it
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is not a file")
        if folder is not None:
            real = path.resolve()
            if not real.is_relative_to(folder.resolve()) or not os.path.samestat(status, os.lstat(real)):
                raise ValueError(f"{name} lies outside the folder")
    except (ValueError, OSError, RuntimeError) as error:  # the last: links in a circle
        file.close()
        raise ValueError(str(error) if isinstance(error, ValueError) else f"{name} cannot be found: {error!s:.300}") from None
    return file


def _fill(array: np.ndarray, read: Callable[[int], bytes]) -> np.ndarray:
    """An empty array, filled with the bytes that `read(size)` gives piece by piece. Raises ValueError where they end."""
    target, done = array.reshape(-1).view(np.uint8), 0
    while done < len(target):
        piece = read(min(PIECE, len(target) - done))
        if not piece:
            raise ValueError("it ends too early")
        target[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    return array


def _native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="), copy=False)


# -- .npy -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NpyHeader:
    """What the start of a .npy file says."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    size: int  # bytes before the numbers

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(file: Any, what: str) -> NpyHeader:
    """Read the header of a .npy file with its file position at the start. Raises ValueError, `what` being named.

    Not by NumPy's own reader, which evaluates the text as Python.
    """
    head = file.read(12)
    length = {1: 2, 2: 4, 3: 4}.get(head[6] if len(head) == 12 else 0, 0)
    size = int.from_bytes(head[8 : 8 + length], "little")
    if not head.startswith(b"\x93NUMPY") or not length or not 12 < size <= MAX_NPY_HEADER:
        raise ValueError(f"{what} is not a readable .npy file")
    text = (head[8 + length :] + file.read(8 + length + size - 12))[:size].decode("latin1")
    kind = re.search(r"""['"]descr['"]\s*:\s*['"]([<>|=]?)(\w{2,3})['"]""", text)
    order = re.search(r"""['"]fortran_order['"]\s*:\s*(True|False)""", text)
    sides = re.search(r"""['"]shape['"]\s*:\s*\(([0-9, ]*)\)""", text)
    codes = {np.dtype(name).str[1:]: name for name in DTYPES}
    if len(text) < size or not (kind and order and sides) or kind.group(2) not in codes:
        raise ValueError(f"{what} holds something else than an array of {', '.join(DTYPES)}")
    shape = tuple(int(side) for side in sides.group(1).replace(" ", "").split(",") if side)
    if len(shape) > MAX_DIMENSIONS or max(shape, default=0) > 1 << 40:
        raise ValueError(f"{what} has more than {MAX_DIMENSIONS} dimensions, or an absurd one")
    dtype = np.dtype(codes[kind.group(2)]).newbyteorder(">" if kind.group(1) == ">" else "<")
    return NpyHeader(dtype, shape, order.group(1) == "True", 8 + length + size)


def read_npy(file: Any, what: str) -> np.ndarray:
    header = read_npy_header(file, what)
    if header.nbytes > MAX_ARRAY:
        raise ValueError(f"{what} holds more than {MAX_ARRAY} bytes of numbers")
    try:
        array = _fill(np.empty(header.shape[::-1] if header.fortran_order else header.shape, header.dtype), file.read)
    except ValueError as error:
        raise ValueError(f"{what} is damaged: {error}") from error
    return _native(array.T if header.fortran_order else array)


def load_npy(path: str | os.PathLike) -> np.ndarray:
    """The array of a .npy file, whole numbers or floats; nothing in it is evaluated. Raises ValueError."""
    with open_regular(Path(path)) as file:
        return read_npy(file, str(path))


# -- folders ----------------------------------------------------------------------------------------------------------


class FolderArrays:
    packed = 0

    def __init__(self, path: Path):
        self.path, self.index = path, None
        if os.path.lexists(path / "index.txt"):
            with open_regular(path / "index.txt", path) as file:
                data = file.read(MAX_INDEX + 1)
            if len(data) > MAX_INDEX:
                raise ValueError(f"{path / 'index.txt'} is larger than {MAX_INDEX} bytes, too large for an index")
            self.index = data.decode("utf-8", "replace")

    def entries(self) -> list[Entry]:
        names = sorted(name for name in os.listdir(self.path) if name.endswith(".npy"))
        if not names:
            hint = "a dump of your own needs one like that of `effnet-np trace` (copy it, if your files have the same names)"
            raise ValueError(f"{self.path} holds neither index.txt nor .npy files: {hint}")
        if len(names) > MAX_ARRAYS:
            raise ValueError(f"{self.path} holds more than {MAX_ARRAYS} .npy files")
        found = []
        for name in names:
            with self._open(name) as file:
                header = read_npy_header(file, str(self.path / shortened(name)))
            found.append(Entry("output", name.removesuffix(".npy"), header.dtype.name, "-", header.shape, name))
        return found

    def _open(self, place: str) -> BinaryIO:
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise ValueError(f"{self.path}: {shortened(place)} is named in it, which lies outside the folder")
        return open_regular(self.path / place, self.path)

    def check(self, entry: Entry) -> None:
        if not entry.place.endswith((".npy", ".txt", ".bin")):
            raise ValueError(f"{self.path}: {shortened(entry.place)} must end in .npy, .txt or .bin")
        with self._open(entry.place) as file:
            what, size = str(self.path / shortened(entry.place)), os.fstat(file.fileno()).st_size
            if entry.place.endswith(".bin"):
                claim, fits = str(entry.nbytes), size == entry.nbytes
            elif entry.place.endswith(".txt"):  # a number and what parts it from the next take 2 bytes, and far less than 100
                count = math.prod(entry.shape)
                claim, fits = f"from {2 * count} to {100 * count}", 2 * count <= size <= 100 * max(count, 1)
                if size:
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        raise ValueError(f"{what} is cut off: its last line has no end")
            else:
                header = read_npy_header(file, what)
                claim, fits = str(header.size + header.nbytes), size == header.size + header.nbytes
                if (header.dtype.name, header.shape) != (entry.dtype, entry.shape):
                    found, expected = f"{header.dtype.name} {header.shape}", f"{entry.dtype} {entry.shape}"
                    raise ValueError(f"{what} is {found}, but its index says {expected}")
            if not fits:
                raise ValueError(f"{what} has {size} bytes, but {entry.dtype} {entry.shape} needs {claim}")

    def read(self, entry: Entry) -> np.ndarray:
        little = np.dtype(entry.dtype).newbyteorder("<")
        with self._open(entry.place) as file:
            what = str(self.path / shortened(entry.place))
            if entry.place.endswith(".npy"):
                return read_npy(file, what)
            try:
                if entry.place.endswith(".bin"):
                    return _native(_fill(np.empty(entry.shape, little), file.read))
                if not math.prod(entry.shape):
                    return np.empty(entry.shape, entry.dtype)
                return np.loadtxt(file, np.dtype(entry.dtype), ndmin=1).reshape(entry.shape)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"{what} is damaged: {printable(error)!s:.300}") from error


# -- .npz and .h5 -----------------------------------------------------------------------------------------------------


class _PatientFile(io.FileIO):
    """A file that gives at most MAX_INDEX bytes at a time: zipfile asks for a zip's list of entries at once, however long."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(MAX_INDEX if size is None or size < 0 else min(size, MAX_INDEX))


class NpzArrays:
    """A zip of .npy files, stored or deflated, as `np.savez` and `np.savez_compressed` write it."""

    def __init__(self, path: Path):
        self.path, self.index = path, None
        self._file = _PatientFile(path)
        try:
            self.packed = os.fstat(self._file.fileno()).st_size
            self._zip = zipfile.ZipFile(self._file)
            self._infos = self._list()
            if "index" in self._infos:
                array = self._read("index", MAX_INDEX)
                self.index = array.tobytes().decode("utf-8", "replace")
        except Exception as error:  # a damaged zip is a BadZipFile, RuntimeError, NotImplementedError, struct.error, ...
            self._file.close()
            raise ValueError(f"{path} is not a readable .npz file: {printable(error)!s:.300}") from error

    def _list(self) -> dict[str, zipfile.ZipInfo]:
        infos = self._zip.infolist()
        names = {info.filename.removesuffix(".npy"): info for info in infos}
        if len(infos) > MAX_ARRAYS + 1 or len(names) != len(infos):
            raise ValueError(f"it has more than {MAX_ARRAYS} entries, or two of the same name")
        if sum(info.compress_size for info in infos) > self.packed:
            raise ValueError("its entries are longer than the file, or lie on each other")
        for name, info in names.items():
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                raise ValueError(f"{name[:80]} is packed in a way that np.load does not read, or encrypted")
        return names

    @contextlib.contextmanager
    def _entry(self, place: str) -> Iterator[tuple[Any, zipfile.ZipInfo]]:
        if place not in self._infos:
            raise ValueError(f"{self.path}: the index names {shortened(place)}, which is not there")
        try:
            with self._zip.open(self._infos[place]) as file:
                yield file, self._infos[place]
        except Exception as error:  # as above, and zlib.error
            raise ValueError(f"{self.path} is damaged at {shortened(place)}: {printable(error)!s:.300}") from error

    def entries(self) -> list[Entry]:
        found = []
        for place in self._infos:
            with self._entry(place) as (file, _):
                header = read_npy_header(file, "it")
            found.append(Entry("output", place, header.dtype.name, "-", header.shape, place))
        return found

    def check(self, entry: Entry) -> None:
        with self._entry(entry.place) as (file, info):
            header = read_npy_header(file, "it")
            if (header.dtype.name, header.shape) != (entry.dtype, entry.shape):
                raise ValueError(f"it is {header.dtype.name} {header.shape}, but its index says {entry.dtype} {entry.shape}")
            if info.file_size != header.size + header.nbytes:
                raise ValueError(f"it has {info.file_size} bytes, but needs {header.size + header.nbytes}")

    def read(self, entry: Entry) -> np.ndarray:
        return self._read(entry.place, MAX_ARRAY)

    def _read(self, place: str, at_most: int) -> np.ndarray:
        with self._entry(place) as (file, info):
            if info.file_size > at_most + MAX_NPY_HEADER:
                raise ValueError(f"it has {info.file_size} bytes, more than the {at_most} expected")
            array = read_npy(file, "it")
            if file.read(1):  # also makes zipfile compare the checksum
                raise ValueError("it is longer than its header says")
            return array


class H5Arrays:
    def __init__(self, path: Path):
        self.path = path
        self._file = H5File(path, separator="/")  # names of layers have dots
        self.packed = path.stat().st_size
        index = self._file.attributes.get("index")
        if not isinstance(index, str):
            self._file.close()
            raise ValueError(f"{path} holds no trace: it has no attribute index (is it a checkpoint?)")
        if len(index) > MAX_INDEX:
            raise ValueError(f"the index of {path} is larger than {MAX_INDEX} bytes, too large for an index")
        self.index: str | None = index

    def entries(self) -> list[Entry]:
        return []  # there is always an index

    def check(self, entry: Entry) -> None:
        shape = self._file.shapes.get(entry.place)
        if shape is None:
            raise ValueError(f"{self.path}: the index names {shortened(entry.place)}, which is not there")
        if shape != entry.shape:
            raise ValueError(f"{self.path}: {shortened(entry.place)} is {shape}, but its index says {entry.shape}")

    def read(self, entry: Entry) -> np.ndarray:
        return _native(self._file.read(entry.place))


# -- writing ----------------------------------------------------------------------------------------------------------


def format_of(path: Path, format: str | None) -> str:
    """The format that is meant: by its name, or by the ending of `path`. Raises ValueError where the two do not agree."""
    by_ending = {".h5": "h5", ".hdf5": "h5", ".npz": "npz"}.get(path.suffix)
    format = format or by_ending or "npy"
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format not in ("h5", "npz") and by_ending:
        raise ValueError(f"format {format!r} is a folder of files, and {path.name} names one file: give a folder's name")
    if format in ("h5", "npz") and by_ending != format:
        raise ValueError(f"a trace in format {format!r} must have a name that ends in .{format}, got {path.name}")
    return format


def describe_array(kind: str, name: str, array: np.ndarray, format: str, layout: str) -> Entry:
    """The line of the index for an array that is to be written. Raises ValueError for what a trace cannot hold."""
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII) or len(name) > MAX_NAME:
        raise ValueError(f"{name[:100]!r} cannot be the name of a file: only letters, digits, '_', '-' and '.' can")
    dtypes = H5_DTYPES if format == "h5" else DTYPES
    if array.dtype.name not in dtypes or array.ndim > MAX_DIMENSIONS:
        wanted = f"{', '.join(dtypes)}, of at most {MAX_DIMENSIONS} dimensions"
        raise ValueError(f"{name} has dtype {array.dtype}, shape {array.shape}; a trace in format {format!r} holds {wanted}")
    of_weights = kind == "weight" or (kind == "gradient" and name.endswith((".weight", ".bias")))
    labels = {1: "O", 2: "OI", 4: "OIHW"} if of_weights else {2: "NC", 4: layout}
    label = labels.get(array.ndim, "-")
    shape = arranged(array, label).shape
    place = f"{kind}/{name}" + ("" if format in ("h5", "npz") else f".{format}")
    return Entry(kind, name, array.dtype.name, label, shape, place)


def arranged(array: np.ndarray, layout: str) -> np.ndarray:
    return array.transpose(0, 2, 3, 1) if layout == "NHWC" else array


def save_trace(
    path: Path, format: str, entries: list[Entry], read: Callable[[Entry], np.ndarray], documents: Mapping[str, str]
) -> None:
    """Write a trace whole or not at all; `read` gives an entry's array. A folder also gets the documents, {name: text}."""
    index = "\n".join([f"{INDEX_HEADER}: {INDEX_FIELDS}", *(entry.line() for entry in entries)]) + "\n"

    def little(entry: Entry) -> np.ndarray:
        return np.asarray(arranged(read(entry), entry.layout), np.dtype(entry.dtype).newbyteorder("<"), order="C")

    if format == "h5":
        by_place = {entry.place: entry for entry in entries}
        shapes = {entry.place: (entry.shape, np.dtype(entry.dtype).newbyteorder("<")) for entry in entries}
        save_arrays_h5(path, shapes, lambda place: little(by_place[place]), index)
    elif format == "npz":
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for entry in entries:
                with archive.open(f"{entry.place}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, little(entry), allow_pickle=False)
            with archive.open("index.npy", "w") as file:
                np.lib.format.write_array(file, np.frombuffer(index.encode(), np.uint8), allow_pickle=False)
    else:
        count = Counter(entry.place.casefold() for entry in entries)
        alike = [entry.name for entry in entries if count[entry.place.casefold()] > 1]
        if alike:
            both = f"{alike[0]} and {alike[1]} would be one file where case does not count (Windows, macOS)"
            raise ValueError(f"{both}: save the trace as .h5 or .npz")
        with new_folder(path) as folder:
            for entry in entries:
                (folder / entry.place).parent.mkdir(exist_ok=True)
                _write_file(folder / entry.place, little(entry))
            for name, text in {**documents, "index.txt": index}.items():
                (folder / name).write_text(text, encoding="utf-8")


def _write_file(file: Path, array: np.ndarray) -> None:
    if file.suffix in (".npy", ".bin"):
        with open(file, "wb") as raw:  # not by np.save, whose error says nothing of the cause
            if file.suffix == ".npy":
                np.lib.format.write_array_header_1_0(raw, np.lib.format.header_data_from_array_1_0(array))
            raw.write(array.reshape(-1).view(np.uint8).data)
    else:  # one row of the last axis a line; nine digits give every float32 back, seventeen every float64
        digits = "%d" if array.dtype.kind in "iu" else "%.17g" if array.dtype.itemsize == 8 else "%.9g"
        np.savetxt(file, array.reshape(-1, array.shape[-1] if array.ndim and array.size else 1), digits)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` if all goes well and is removed if not. `path` is new, or an empty folder.

    A process that is killed leaves `.<name>.<16 digits>.tmp`. Raises FileExistsError for a folder in use.
    """
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder: remove it, or choose another name")
    made = [parent for parent in path.parents if not parent.exists()]
    inside = path.exists()  # then its contents are moved: it may be a mount point, or somebody's current directory
    temporary = (path if inside else path.parent) / temporary_name(path)
    moved: list[Path] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        if not inside:
            temporary.rename(path)
        else:
            for item in sorted(temporary.iterdir(), key=lambda item: item.name == "index.txt"):  # the index last
                moved.append(item.rename(path / item.name))
            temporary.rmdir()
    except BaseException:
        for item in (temporary, *moved):
            shutil.rmtree(item, ignore_errors=True) if item.is_dir() else item.unlink(missing_ok=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
