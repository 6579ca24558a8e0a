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
MAX_PICKLE = 32 << 20  # bytes; B7's is 0.2 MB
MAX_STEPS = 2_000_000  # instructions; B7's takes 50,000
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
        self._file: BinaryIO = open(self.path, "rb")  # noqa: SIM115 - closed by close()
        try:
            self._zip = zipfile.ZipFile(self._file) if zipfile.is_zipfile(self._file) else None
            state = self._legacy_state() if self._zip is None else self._zip_state(self._zip)
            self._views = {str(name): check_view(name, view) for name, view in state.items()}
            self._check_storages()
        except (zipfile.BadZipFile, ValueError) as error:
            self.close()
            raise ValueError(f"{self.path} is not a readable PyTorch checkpoint: {error}") from error
        self.shapes = {name: view.shape for name, view in self._views.items()}

    def close(self) -> None:
        self._file.close()

    def read(self, name: str) -> np.ndarray:
        """The tensor's numbers, in an array of its own."""
        view = self._views[name]
        storage = np.frombuffer(self._bytes(view.storage), view.storage.dtype)
        strides = tuple(stride * storage.itemsize for stride in view.strides)
        return np.array(np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides))

    # -- where the numbers are --------------------------------------------------------------------------------------

    def _zip_state(self, archive: zipfile.ZipFile) -> dict:
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it must hold one <folder>/data.pkl, found {len(pickles)}")
        if len(set(names)) != len(names):
            raise ValueError("two of its entries have the same name")
        self._folder = pickles[0].removesuffix("data.pkl")
        info = archive.getinfo(pickles[0])
        if info.file_size > MAX_PICKLE:
            raise ValueError(f"its data.pkl unpacks to {info.file_size} bytes, more than the {MAX_PICKLE} allowed")
        if self._folder + "byteorder" in names and archive.read(self._folder + "byteorder") != b"little":
            raise ValueError("its numbers are big-endian, which this reader does not know")
        return read_state(io.BytesIO(archive.read(pickles[0])))

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
        size = os.fstat(self._file.fileno()).st_size
        for key in keys:
            if key not in storages:
                raise ValueError(f"storage {key!r} belongs to no tensor")
            storage = storages[key]
            self._file.seek(position)
            (count,) = struct.unpack("<q", self._file.read(8).ljust(8, b"\xff"))
            if count != storage.numel or position + 8 + count * storage.dtype.itemsize > size:
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

    def _bytes(self, storage: Storage) -> bytes:
        if self._zip is not None:
            try:
                return self._zip.read(f"{self._folder}data/{storage.key}")
            except zipfile.BadZipFile as error:
                raise ValueError(f"{self.path} is damaged: {error}") from error
        self._file.seek(self._starts[storage.key])
        return self._file.read(storage.numel * storage.dtype.itemsize)


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
    steps = 0
    try:
        for opcode, argument, position in pickletools.genops(stream):
            steps += 1
            if steps > MAX_STEPS:
                raise ValueError(f"its pickle takes more than {MAX_STEPS} steps")
            if opcode.name == "STOP":
                return stack.pop()
            _step(opcode.name, argument, position, stack, memo)
    except (IndexError, KeyError, TypeError, struct.error, UnicodeError) as error:
        raise ValueError(f"its pickle is malformed ({type(error).__name__})") from error
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
