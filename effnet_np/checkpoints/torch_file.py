"""PyTorch's .bin and .pth files without PyTorch, and without running what is in them.

Such a file is a pickle, a program for a small stack machine, beside raw numbers. A pickle may name any function of any
module and call it, which is why loading one from a stranger is dangerous. So this is a stack machine of our own, which
knows the few instructions that a checkpoint needs and a few names; anything else is an error that says where it stands.

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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np

from effnet_np.checkpoints.files import open_file

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
# What a state dict needs, several times over. A byte of a pickle can become a hundred in memory, so these also bound memory.
MAX_PICKLE = 2 << 20  # bytes of a pickle, and of a zip's list of entries; B7's take 0.2 MB each
MAX_STEPS = 300_000  # instructions; B7's takes 50,000
MAX_TEXT = 1000  # characters of a name
MAX_KEY = 1 << 32  # a whole number as a key: larger ones can be chosen so that all of them fall into one place of the table

BFLOAT16 = np.dtype([("upper_half", "<u2")])  # the upper 16 bits of a float32; NumPy has no such type
DTYPES: dict[str, np.dtype] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": BFLOAT16,
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
}
ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
# What checkpoints of a training hold beside tensors: options, scores. None of it is made: it stays a name without contents.
INERT = {
    "argparse Namespace",
    "torch Size",
    "torch device",
    "numpy dtype",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "_codecs encode",  # what is in a NumPy number
}
ALLOWED = {ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, *DTYPES, *INERT}


def widened(array: np.ndarray) -> np.ndarray:
    """bfloat16 -> float32, bit for bit the same number; other arrays as they are."""
    if array.dtype != BFLOAT16:
        return array
    return (array["upper_half"].astype("<u4") << 16).view("<f4")


@dataclass(frozen=True)
class Storage:
    """A run of `numel` numbers of one dtype, known by its key."""

    key: str
    dtype: np.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class TensorView:
    """A tensor: where in its storage it starts, and how far apart its entries lie, both counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """An open .bin or .pth file: `shapes` of all tensors by name, and `read(name)` for the numbers of one.

    The tensors of a checkpoint of a training lie deeper, under "state_dict" or "model": `found_in` is that name ("" where they
    do not), and `beside` names what else is there.
    """

    def __init__(self, path: str | os.PathLike, file: BinaryIO | None = None):
        self.path = os.fspath(path)
        self._opened = open_file(path) if file is None else file
        self._file = PatientFile(self._opened.fileno(), closefd=False)
        try:
            is_zip = self._file.read(4) == b"PK\3\4"  # PyTorch's own question
            self._storages: Storages = ZipStorages(self._file) if is_zip else LegacyStorages(self._file)
            state, self.found_in, self.beside = state_in(self._storages.contents)
            self._storages.locate()
            self._views = {name: check_view(name, view) for name, view in state.items()}
            self._check_storages()
        except Exception as error:  # a damaged zip is a BadZipFile, RuntimeError, NotImplementedError, OSError, ...
            self.close()
            raise ValueError(f"{self.path} is not a readable PyTorch checkpoint: {error!s:.500}") from error
        self.shapes = {name: view.shape for name, view in self._views.items()}
        self._readers = Counter(view.storage.key for view in self._views.values())  # tensors of each storage, not read yet
        self._shared: dict[str, bytes] = {}  # storages that more tensors need

    def close(self) -> None:
        self._shared = {}
        self._file.close()
        self._opened.close()

    def read(self, name: str) -> np.ndarray:
        """The tensor's numbers, in an array of its own; bfloat16 as float32, which holds each of its numbers.

        A storage is read once, and kept until the last of its tensors is: all that is kept is less than the file.
        """
        view = self._views[name]
        key = view.storage.key
        try:
            data = self._shared.pop(key, None) or self._storages.read(view.storage)
        except Exception as error:  # as above
            raise ValueError(f"{self.path} is damaged at {name:.80}: {error!s:.500}") from error
        if len(data) != view.storage.nbytes:
            raise ValueError(f"{self.path} is damaged at {name}: it ends too early")
        self._readers[key] -= 1
        if self._readers[key] > 0:
            self._shared[key] = data
        storage = np.frombuffer(data, view.storage.dtype)
        strides = tuple(stride * storage.itemsize for stride in view.strides)
        return widened(np.array(np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides)))

    def _check_storages(self) -> None:
        used = {view.storage for view in self._views.values()}
        for name, view in self._views.items():
            self._storages.check(name, view.storage)
        total = sum(storage.nbytes for storage in used)
        if total > os.fstat(self._file.fileno()).st_size:  # entries of a zip may lie about their place, or share one
            raise ValueError(f"its storages would hold {total} bytes, more than the whole file")
        self.numbers = sum(storage.numel for storage in used)


class PatientFile(io.FileIO):
    """A file that gives at most MAX_PICKLE bytes at a time: zipfile asks for a zip's list of entries at once, however long."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(MAX_PICKLE if size is None or size < 0 else min(size, MAX_PICKLE))


# -- where the numbers are --------------------------------------------------------------------------------------------


class Storages(Protocol):
    """One of the two formats: what its pickle holds, and the numbers of each storage."""

    contents: Any

    def locate(self) -> None: ...

    def check(self, name: str, storage: Storage) -> None: ...

    def read(self, storage: Storage) -> bytes: ...


class ZipStorages:
    """Since PyTorch 1.6: an entry `<folder>/data/<key>` a storage, stored and not compressed, with a checksum."""

    def __init__(self, file: PatientFile):
        self._zip = zipfile.ZipFile(file)
        names = self._zip.namelist()
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
        self.contents = run_pickle(io.BytesIO(self._entry("data.pkl", at_most=MAX_PICKLE)))

    def locate(self) -> None:
        pass  # the zip's list of entries says where they are

    def check(self, name: str, storage: Storage) -> None:
        try:
            info = self._zip.getinfo(f"{self._folder}data/{storage.key}")
        except KeyError:
            raise ValueError(f"the numbers of {name} (storage {storage.key!r}) are not in the file") from None
        sizes = {info.file_size, info.compress_size}
        if info.compress_type != zipfile.ZIP_STORED or sizes != {storage.nbytes}:
            wrong = f"should be {storage.nbytes} uncompressed bytes, the file has {info.compress_size}"
            raise ValueError(f"the numbers of {name} {wrong}")

    def read(self, storage: Storage) -> bytes:
        return self._entry(f"data/{storage.key}", at_most=storage.nbytes)

    def _entry(self, name: str, at_most: int) -> bytes:
        """An entry of the zip, which is stored as PyTorch stores them all: a compressed one may be a bomb."""
        info = self._zip.getinfo(self._folder + name)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"its entry {name} is compressed, which PyTorch never does")
        if info.file_size > at_most:
            raise ValueError(f"its entry {name} holds {info.file_size} bytes, more than the {at_most} expected")
        with self._zip.open(info) as entry:  # piece by piece: the sizes above are only claims
            return b"".join(iter(lambda: entry.read(1 << 20), b""))


class LegacyStorages:
    """Before: magic number, protocol, facts on the machine, state dict, storage keys; then an int64 count and numbers a key."""

    def __init__(self, file: PatientFile):
        self._file = file
        file.seek(0)
        stream = io.BytesIO(file.read(MAX_PICKLE))
        if run_pickle(stream) != MAGIC_NUMBER:
            raise ValueError("it starts neither as a zip nor with the number that PyTorch's older files start with")
        protocol, system = run_pickle(stream), run_pickle(stream)
        if protocol != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("its header is not that of protocol 1001 with little-endian numbers")
        self._stream, self._storages, self._starts = stream, dict[str, Storage](), dict[str, int]()
        self.contents = run_pickle(stream, self._storages)

    def locate(self) -> None:
        keys = run_pickle(self._stream)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
            raise ValueError("its list of storages is not a list of different names")
        position, size = self._stream.tell(), os.fstat(self._file.fileno()).st_size
        for key in keys:
            if key not in self._storages:
                raise ValueError(f"storage {key!r:.80} belongs to no tensor")
            storage = self._storages[key]
            self._file.seek(position)
            (count,) = struct.unpack("<q", self._file.read(8).ljust(8, b"\xff"))
            if count != storage.numel or position + 8 + storage.nbytes > size:
                raise ValueError(f"storage {key!r} should hold {storage.numel} numbers; the file says {count}, or ends sooner")
            self._starts[key] = position + 8
            position += 8 + storage.nbytes

    def check(self, name: str, storage: Storage) -> None:
        if storage.key not in self._starts:
            raise ValueError(f"the numbers of {name} (storage {storage.key!r}) are not in the file")

    def read(self, storage: Storage) -> bytes:
        self._file.seek(self._starts[storage.key])
        return b"".join(
            self._file.read(min(MAX_PICKLE, storage.nbytes - done)) for done in range(0, storage.nbytes, MAX_PICKLE)
        )


# -- the state dict in what a pickle holds ----------------------------------------------------------------------------

# Where trainings keep it; the first that is there is meant.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")


def state_in(contents: Any) -> tuple[dict[str, TensorView], str, list[str]]:
    """(the tensors by name, under which name they were found, what else is there). Raises ValueError where there are none."""
    found_in, beside = "", list[str]()
    for _ in range(3):
        if not isinstance(contents, dict):
            raise ValueError(f"it holds a {_kind(contents)}, not a dictionary of tensors")
        wrappers = [name for name in WRAPPERS if isinstance(contents.get(name), dict)]
        if not wrappers:
            break
        beside += [str(name) for name in contents if name != wrappers[0]]
        found_in, contents = (f"{found_in}.{wrappers[0]}" if found_in else wrappers[0]), contents[wrappers[0]]
    for name, value in contents.items():
        if not isinstance(name, str) or not isinstance(value, TensorView):
            raise ValueError(f"entry {str(name)[:80]!r} is a {_kind(value)}, not a tensor under a name")
    return contents, found_in, beside


def _kind(value: Any) -> str:
    return value.name.replace(" ", ".") if isinstance(value, Inert | _Global) else type(value).__name__


# -- the stack machine ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class Inert:
    """What would be an object of a class that no tensor needs: only the name of its class."""

    name: str


_MARK = object()


class _Machine:
    """The stack machine's state, and where it stands. An instruction is a method below, or a value that is pushed."""

    def __init__(self, storages: dict[str, Storage]):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages = storages
        self.opcode, self.position = "", 0

    def pop_to_mark(self) -> list:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def expect(self, value: Any, kind: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"at byte {self.position} its pickle applies {self.opcode} to a {_kind(value)}")
        return value

    # -- instructions: each takes the argument that follows it in the file ----------------------------------------------

    def nothing(self, _: Any) -> None:
        pass

    def push(self, argument: Any) -> None:
        self.stack.append(argument)

    def put(self, argument: Any) -> None:
        self.memo[argument] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, argument: Any) -> None:
        self.stack.append(self.memo[argument])

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def tuple_to_mark(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def append(self, _: Any) -> None:
        items = [self.stack.pop()] if self.opcode == "APPEND" else self.pop_to_mark()
        self.expect(self.stack[-1], list).extend(items)

    def set_items(self, _: Any) -> None:
        items = [self.stack.pop() for _ in range(2)][::-1] if self.opcode == "SETITEM" else self.pop_to_mark()
        target = self.expect(self.stack[-1], dict)
        if len(items) % 2:
            raise ValueError(f"at byte {self.position} its pickle sets a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(self.expect(key, (str, int)), int) and not 0 <= key < MAX_KEY:
                raise ValueError(f"at byte {self.position} its pickle has a number for a key that is not below {MAX_KEY}")
            target[key] = value

    def name(self, argument: str) -> None:
        if argument not in ALLOWED:
            named = argument.replace(" ", ".")[:200]
            raise ValueError(f"at byte {self.position} its pickle names {named!r}, which a state dict does not need")
        self.stack.append(_Global(argument))

    def call(self, _: Any) -> None:
        """OrderedDict(), _rebuild_tensor_v2(storage, offset, size, stride, ...), _rebuild_parameter(tensor, ...), by name."""
        arguments = self.stack.pop()
        function = self.expect(self.stack.pop(), _Global).name
        if function in INERT:
            return self.stack.append(Inert(function))
        if function == ORDERED_DICT and arguments == ():
            return self.stack.append({})
        if isinstance(arguments, tuple) and arguments:
            if function == REBUILD_PARAMETER and isinstance(arguments[0], TensorView):
                return self.stack.append(arguments[0])
            if function == REBUILD_TENSOR and len(arguments) in (6, 7):
                storage, offset, shape, strides = arguments[:4]
                if isinstance(storage, Storage) and _counts((offset,)) and _counts(shape) and _counts(strides):
                    return self.stack.append(TensorView(storage, offset, shape, strides))
        called = f"calls {function.replace(' ', '.')} with arguments that it does not take"
        raise ValueError(f"at byte {self.position} its pickle {called}")

    def new_object(self, _: Any) -> None:
        arguments, cls = self.stack.pop(), self.expect(self.stack.pop(), _Global)
        if arguments != () or cls.name not in INERT:
            raise ValueError(f"at byte {self.position} its pickle applies NEWOBJ to {cls.name.replace(' ', '.')}")
        self.stack.append(Inert(cls.name))

    def build(self, _: Any) -> None:
        """Attributes, which nothing here reads: OrderedDict's `_metadata` holds version numbers, the others' are theirs."""
        attributes = self.stack.pop()
        if not isinstance(self.stack[-1], Inert):
            self.expect(attributes, dict)
            self.expect(self.stack[-1], dict)

    def storage(self, _: Any) -> None:
        """("storage", type, key, location, numel) and, in legacy files, a view of it, which must be None."""
        identity = self.stack.pop()
        if isinstance(identity, tuple) and len(identity) in (5, 6) and identity[5:] in ((), (None,)):
            tag, kind, key, _, numel = identity[:5]
            is_key = isinstance(key, str) and key.isalnum()
            if tag == "storage" and isinstance(kind, _Global) and kind.name in DTYPES and is_key and _counts((numel,)):
                storage = Storage(key, DTYPES[kind.name], numel)
                if self.storages.setdefault(key, storage) != storage:
                    raise ValueError(f"two tensors describe storage {key!r:.80} differently")
                return self.stack.append(storage)
        raise ValueError(f"at byte {self.position} its pickle refers to something that is not a storage of numbers")


INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _Machine.nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.push(_MARK),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_to_mark,
    **dict.fromkeys(("APPEND", "APPENDS"), _Machine.append),
    **dict.fromkeys(("SETITEM", "SETITEMS"), _Machine.set_items),
    "GLOBAL": _Machine.name,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
}


def run_pickle(stream: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """What one pickle makes, of numbers, strings, tuples, lists, dictionaries and tensors alone. Raises ValueError.

    The storages that it refers to are put into `storages`, by key.
    """
    machine = _Machine({} if storages is None else storages)
    try:
        for steps, (opcode, argument, position) in enumerate(pickletools.genops(stream)):
            machine.opcode, machine.position = opcode.name, position or 0
            if steps >= MAX_STEPS:
                raise ValueError(f"its pickle takes more than {MAX_STEPS} steps")
            if isinstance(argument, (str, bytes)) and len(argument) > MAX_TEXT:
                raise ValueError(f"at byte {position} its pickle holds a text of {len(argument)} characters, as no name has")
            if opcode.name == "STOP":
                return machine.stack.pop()
            if opcode.name not in INSTRUCTIONS:
                unknown = f"uses the instruction {opcode.name}, which a state dict does not need"
                raise ValueError(f"at byte {position} its pickle {unknown}")
            INSTRUCTIONS[opcode.name](machine, argument)
    except (IndexError, KeyError, TypeError, struct.error, UnicodeError) as error:  # nothing on the stack, no such memo, ...
        raise ValueError(f"at byte {machine.position} its pickle is malformed ({type(error).__name__})") from error
    raise ValueError("its pickle ends too early")


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
