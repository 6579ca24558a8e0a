"""PyTorch's .bin and .pth files without PyTorch, and without running what is in them.

Such a file is a pickle, a program for a small stack machine, beside raw numbers. A pickle may name any function of any
module and call it, which is why loading one from a stranger is dangerous. So this is a stack machine of our own, which
knows the few instructions that a state dict needs and four names; anything else is an error that says where it stands.

Two formats hold such pickles. Since PyTorch 1.6: a zip with `<folder>/data.pkl` and one entry `<folder>/data/<key>` a
storage. Before it ("legacy"): five pickles one after the other (a magic number, the protocol, facts on the machine, the
state dict, the list of storage keys), then for each key an int64 count and the raw numbers.
Source: PyTorch's torch/serialization.py; the instructions: Python's pickletools.
"""

from __future__ import annotations

import io
import os
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
# What a state dict needs, several times over. A byte of a pickle can become a hundred in memory, so these also bound memory.
MAX_PICKLE = 2 << 20  # bytes of a pickle, and of a zip's list of entries; B7's take 0.2 MB each
MAX_STEPS = 300_000  # instructions; B7's takes 50,000
MAX_TEXT = 1000  # characters of a name
DTYPES: dict[str, np.dtype] = {"torch FloatStorage": np.dtype("<f4"), "torch LongStorage": np.dtype("<i8")}
ALLOWED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *DTYPES}


@dataclass(frozen=True)
class Storage:
    """A run of `numel` numbers of one dtype, known by its key."""

    key: str
    dtype: np.dtype
    numel: int


@dataclass(frozen=True)
class TensorView:
    """A tensor: where in its storage it starts, and how far apart its entries lie, both counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """An open .bin or .pth file: `shapes` of all tensors by name, and `read(name)` for the numbers of one."""

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._file = _PatientFile(self.path)
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._zip = zipfile.ZipFile(self._file) if self._file.read(4) == b"PK\3\4" else None  # PyTorch's own question
            state = self._legacy_state() if self._zip is None else self._zip_state(self._zip)
            self._views = {name: check_view(name, view) for name, view in state.items()}
            self._check_storages()
        except Exception as error:  # a damaged zip is a BadZipFile, RuntimeError, NotImplementedError, OSError, ...
            self.close()
            raise ValueError(f"{self.path} is not a readable PyTorch checkpoint: {error!s:.500}") from error
        self.shapes = {name: view.shape for name, view in self._views.items()}

    def close(self) -> None:
        self._file.close()

    def read(self, name: str) -> np.ndarray:
        """The tensor's numbers, in an array of its own."""
        view = self._views[name]
        try:
            data = self._bytes(view.storage)
        except Exception as error:  # as above
            raise ValueError(f"{self.path} is damaged at {name:.80}: {error!s:.500}") from error
        if len(data) != view.storage.numel * view.storage.dtype.itemsize:
            raise ValueError(f"{self.path} is damaged at {name}: it ends too early")
        storage = np.frombuffer(data, view.storage.dtype)
        strides = tuple(stride * storage.itemsize for stride in view.strides)
        return np.array(np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides))

    # -- where the numbers are --------------------------------------------------------------------------------------

    def _zip_state(self, archive: zipfile.ZipFile) -> dict:
        names = archive.namelist()
        for name in names:
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise ValueError(f"its entry {name[:80]!r} is named like a path to another folder")
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it must hold one <folder>/data.pkl, found {len(pickles)}")
        if len(set(names)) != len(names):
            raise ValueError("two of its entries have the same name")
        self._folder = pickles[0].removesuffix("data.pkl")
        if self._folder + "byteorder" in names and self._entry("byteorder", at_most=6) != b"little":
            raise ValueError("its numbers are big-endian, which this reader does not know")
        return read_state(io.BytesIO(self._entry("data.pkl", at_most=MAX_PICKLE)))

    def _entry(self, name: str, at_most: int) -> bytes:
        """An entry of the zip, which is stored as PyTorch stores them all: a compressed one may be a bomb."""
        assert self._zip is not None
        info = self._zip.getinfo(self._folder + name)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"its entry {name} is compressed, which PyTorch never does")
        if info.file_size > at_most:
            raise ValueError(f"its entry {name} holds {info.file_size} bytes, more than the {at_most} expected")
        with self._zip.open(info) as entry:  # piece by piece: the sizes above are only claims
            return b"".join(iter(lambda: entry.read(1 << 20), b""))

    def _legacy_state(self) -> dict:
        self._file.seek(0)
        stream = io.BytesIO(self._file.read(MAX_PICKLE))
        if run_pickle(stream) != MAGIC_NUMBER:
            raise ValueError("it starts neither as a zip nor with the number that PyTorch's older files start with")
        protocol, system = run_pickle(stream), run_pickle(stream)
        if protocol != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("its header is not that of protocol 1001 with little-endian numbers")
        state = read_state(stream)
        keys = run_pickle(stream)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
            raise ValueError("its list of storages is not a list of different names")
        storages = {view.storage.key: view.storage for view in state.values()}
        self._starts, position = {}, stream.tell()
        for key in keys:
            if key not in storages:
                raise ValueError(f"storage {key!r} belongs to no tensor")
            storage = storages[key]
            self._file.seek(position)
            (count,) = struct.unpack("<q", self._file.read(8).ljust(8, b"\xff"))
            if count != storage.numel or position + 8 + count * storage.dtype.itemsize > self._size:
                raise ValueError(f"storage {key!r} should hold {storage.numel} numbers; the file says {count}, or ends sooner")
            self._starts[key] = position + 8
            position += 8 + count * storage.dtype.itemsize
        return state

    def _check_storages(self) -> None:
        seen: dict[str, Storage] = {}
        for name, view in self._views.items():
            storage, expected = view.storage, view.storage.numel * view.storage.dtype.itemsize
            if seen.setdefault(storage.key, storage) != storage:
                raise ValueError(f"two tensors describe storage {storage.key!r} differently")
            if self._zip is None:
                if storage.key not in self._starts:
                    raise ValueError(f"the numbers of {name} (storage {storage.key!r}) are not in the file")
                continue
            try:
                info = self._zip.getinfo(f"{self._folder}data/{storage.key}")
            except KeyError:
                raise ValueError(f"the numbers of {name} (storage {storage.key!r}) are not in the file") from None
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != expected or info.compress_size != expected:
                wrong = f"should be {expected} uncompressed bytes, the file has {info.compress_size}"
                raise ValueError(f"the numbers of {name} {wrong}")
        total = sum(storage.numel * storage.dtype.itemsize for storage in seen.values())
        if total > self._size:  # entries of a zip may lie about their place, or share one
            raise ValueError(f"its storages would hold {total} bytes, more than the whole file")

    def _bytes(self, storage: Storage) -> bytes:
        size = storage.numel * storage.dtype.itemsize
        if self._zip is not None:
            return self._entry(f"data/{storage.key}", at_most=size)
        self._file.seek(self._starts[storage.key])
        return b"".join(self._file.read(min(MAX_PICKLE, size - done)) for done in range(0, size, MAX_PICKLE))


class _PatientFile(io.FileIO):
    """A file that gives at most MAX_PICKLE bytes at a time: zipfile asks for a zip's list of entries at once, however long."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(MAX_PICKLE if size is None or size < 0 else min(size, MAX_PICKLE))


# -- the stack machine ------------------------------------------------------------------------------------------------


def read_state(stream: BinaryIO) -> dict[str, TensorView]:
    """Run one pickle that must leave a dictionary from names to tensors."""
    state = run_pickle(stream)
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, not a dictionary of tensors")
    if set(state) == {"state_dict"} and isinstance(state["state_dict"], dict):
        state = state["state_dict"]
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, TensorView):
            raise ValueError(f"entry {str(name)[:80]!r} is a {type(value).__name__}, not a tensor under a name")
    return state


@dataclass(frozen=True)
class _Global:
    name: str


_MARK = object()


def run_pickle(stream: BinaryIO) -> Any:
    """What one pickle makes, of numbers, strings, tuples, lists, dictionaries and tensors alone. Raises ValueError."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    position = None
    try:
        for steps, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
            if steps >= MAX_STEPS:
                raise ValueError(f"its pickle takes more than {MAX_STEPS} steps")
            if isinstance(argument, (str, bytes)) and len(argument) > MAX_TEXT:
                raise ValueError(f"at byte {position} its pickle holds a text of {len(argument)} characters, as no name has")
            if opcode.name == "STOP":
                return stack.pop()
            _step(opcode.name, argument, position, stack, memo)
    except (IndexError, KeyError, TypeError, struct.error, UnicodeError) as error:  # nothing on the stack, no such memo, ...
        raise ValueError(f"at byte {position} its pickle is malformed ({type(error).__name__})") from error
    raise ValueError("its pickle ends too early")


def _step(name: str, argument: Any, position: int | None, stack: list, memo: dict) -> None:
    if name in ("PROTO", "FRAME"):
        pass
    elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT"):
        stack.append(argument)
    elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
        stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "MARK":
        stack.append(_MARK)
    elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
        stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name == "TUPLE":
        stack.append(tuple(_pop_to_mark(stack)))
    elif name in ("APPEND", "APPENDS"):
        items = [stack.pop()] if name == "APPEND" else _pop_to_mark(stack)
        _expect(stack[-1], list, name, position).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = [stack.pop() for _ in range(2)][::-1] if name == "SETITEM" else _pop_to_mark(stack)
        target = _expect(stack[-1], dict, name, position)
        if len(items) % 2:
            raise ValueError(f"at byte {position} its pickle sets a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_expect(key, (str, int), name, position)] = value
    elif name == "GLOBAL":
        if argument not in ALLOWED:
            named = argument.replace(" ", ".")[:200]
            raise ValueError(f"at byte {position} its pickle names {named!r}, which a state dict does not need")
        stack.append(_Global(argument))
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop(), position))
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_reduce(_expect(function, _Global, name, position).name, arguments, position))
    elif name == "BUILD":  # OrderedDict's attributes: `_metadata`, which holds version numbers only
        _expect(stack.pop(), dict, name, position)
        _expect(stack[-1], dict, name, position)
    else:
        raise ValueError(f"at byte {position} its pickle uses the instruction {name}, which a state dict does not need")


def _pop_to_mark(stack: list) -> list:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _expect(value: Any, kind: Any, name: str, position: int | None) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"at byte {position} its pickle applies {name} to a {type(value).__name__}")
    return value


def _reduce(function: str, arguments: Any, position: int | None) -> Any:
    """The only two calls: OrderedDict() and _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)."""
    if function == "collections OrderedDict" and arguments == ():
        return {}
    if function == "torch._utils _rebuild_tensor_v2" and isinstance(arguments, tuple) and len(arguments) in (6, 7):
        storage, offset, shape, strides = arguments[:4]
        if isinstance(storage, Storage) and _counts((offset,)) and _counts(shape) and _counts(strides):
            return TensorView(storage, offset, shape, strides)
    raise ValueError(f"at byte {position} its pickle calls {function.replace(' ', '.')} with arguments that it does not take")


def _storage(identity: Any, position: int | None) -> Storage:
    """("storage", type, key, location, numel) and, in legacy files, a view of it, which must be None."""
    if isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage" and identity[5:] in ((), (None,)):
        kind, key, numel = identity[1], identity[2], identity[4]
        if isinstance(kind, _Global) and kind.name in DTYPES and isinstance(key, str) and key.isalnum() and _counts((numel,)):
            return Storage(key, DTYPES[kind.name], numel)
    raise ValueError(f"at byte {position} its pickle refers to something that is not a storage of float32 or int64 numbers")


def _counts(values: Any) -> bool:
    """Whether these are a tuple of at most 8 whole numbers from 0 to 2^40."""
    return isinstance(values, tuple) and len(values) <= 8 and all(type(v) is int and 0 <= v <= 1 << 40 for v in values)


def check_view(name: str, view: TensorView) -> TensorView:
    """The view itself, if it lies in its storage and no two of its entries share a place; otherwise ValueError."""
    if len(view.shape) != len(view.strides):
        raise ValueError(f"{name} has {len(view.shape)} dimensions but {len(view.strides)} strides")
    reach = 1  # how many numbers the dimensions of smaller stride span
    for stride, size in sorted(zip(view.strides, view.shape, strict=True)):
        if size > 1:
            if stride < reach:
                raise ValueError(f"the entries of {name} overlap: shape {view.shape}, strides {view.strides}")
            reach = stride * (size - 1) + reach
    if view.offset + (reach if 0 not in view.shape else 0) > view.storage.numel:
        raise ValueError(f"{name} reaches beyond its storage of {view.storage.numel} numbers")
    return view
