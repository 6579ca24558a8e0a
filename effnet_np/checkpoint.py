"""Weights from and to files: .safetensors, .bin/.pth (read only) and .h5, sharded folders included. None of them runs code.

A source is opened, its keys and shapes are compared with the configuration as sets, and only when all of them fit are
numbers read, one tensor at a time. Files are written under a temporary name and renamed, so that a file is whole or absent.
A file may come from a stranger: what it claims is held against what it is before memory is spent (SECURITY.md has the list).

The .h5 format: one group a module, one dataset a tensor, so "efficientnet.encoder.blocks.0..." is a path; and in the root's
attributes `format_version`, `config`, `image_processor` and `id2label` (JSON), `source`, `revision`, and the `sha256`
of all tensors (see `tensors_sha256`).
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import math
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from effnet_np import hub
from effnet_np.config_checks import num_weights
from effnet_np.h5_file import FORMAT_VERSION, H5File
from effnet_np.hf_config import EfficientNetConfig
from effnet_np.image_processor import EfficientNetImageProcessor
from effnet_np.module import refuse_mismatch
from effnet_np.torch_file import TorchFile
from effnet_np.version import __version__

# What a checkpoint needs, several times over. A byte of JSON can become twenty in memory, so these also bound memory.
MAX_JSON = 2 << 20  # bytes of a .json file or a safetensors header; B7's are 0.1 and 0.2 MB
MAX_BRACKETS = 20_000  # objects and lists in it
MAX_DEPTH = 20  # of objects and lists in each other
MAX_SHARDS = 256
MAX_NAME = 500  # characters
DTYPES: dict[str, np.dtype] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
BACKBONE = "efficientnet."


# -- readers: each has `shapes`, {name: shape}, and `read(name)`, and knows nothing of EfficientNet -------------------


class SafetensorsFile:
    """A .safetensors file: 8 bytes with the header's length, a JSON header that says where each tensor lies, the numbers."""

    def __init__(self, path: Path):
        self.path = path
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        try:
            self._tensors = self._header()
        except ValueError as error:
            self.close()
            raise ValueError(f"{path} is not a readable safetensors file: {error!s:.500}") from error
        self.shapes = {name: shape for name, (_, shape, _) in self._tensors.items()}

    def _header(self) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
        """Name -> (dtype, shape, position in the file). The tensors must fill the file without a gap or an overlap."""
        size = os.fstat(self._file.fileno()).st_size
        (length,) = struct.unpack("<Q", self._file.read(8).ljust(8, b"\xff"))
        if length > min(MAX_JSON, size - 8):
            raise ValueError(f"its header would be {length} bytes long; {min(MAX_JSON, max(size - 8, 0))} are possible here")
        tensors: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}
        spans, start = [], 8 + length
        for name, entry in _parse_json(self._file.read(length), "its header").items():
            if name == "__metadata__":
                if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
                    raise ValueError("its __metadata__ is not an object of texts")
                continue
            if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
                raise ValueError(f"{name[:80]!r} is not described by dtype, shape and data_offsets")
            kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
            if not isinstance(kind, str) or kind not in DTYPES:
                raise ValueError(f"{name[:80]} has dtype {str(kind)[:80]}; only {', '.join(DTYPES)} can be read")
            if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
                raise ValueError(f"shape and data_offsets of {name[:80]} must be lists of whole numbers, two in the second")
            begin, end = offsets
            if end - begin != math.prod(shape) * DTYPES[kind].itemsize:
                raise ValueError(f"{name[:80]} of shape {shape} and dtype {kind} does not fill its bytes {begin} to {end}")
            tensors[name] = (DTYPES[kind], tuple(shape), start + begin)
            spans.append((begin, end))
        reached = 0
        for begin, end in sorted(spans):
            if begin != reached:
                raise ValueError(f"its tensors overlap or leave a gap: one ends at byte {reached}, the next starts at {begin}")
            reached = end
        if start + reached != size:
            raise ValueError(f"its tensors end at byte {start + reached}, but the file has {size}")
        return tensors

    def read(self, name: str) -> np.ndarray:
        dtype, shape, position = self._tensors[name]
        array = np.empty(shape, dtype)
        self._file.seek(position)
        if self._file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
            raise ValueError(f"{self.path} is damaged at {name}: it ends too early")
        return array

    def close(self) -> None:
        self._file.close()


def _counts(values: Any) -> bool:
    """Whether these are a list of at most 8 whole numbers from 0 to 2^40."""
    return isinstance(values, list) and len(values) <= 8 and all(type(v) is int and 0 <= v <= 1 << 40 for v in values)


class ShardedFiles:
    """Several weight files and the index that says which tensor is in which."""

    def __init__(self, index: Path):
        weight_map = read_weight_map(index)
        self._parts: dict[str, Any] = {}
        try:
            for name in sorted(set(weight_map.values())):
                path = in_folder(index.parent, name)
                if path is None:
                    raise FileNotFoundError(f"{index} names the shard {name!r}, but there is no such file beside it")
                self._parts[name] = open_weights(path)
            absent = [f"{key[:80]} (in {name})" for key, name in weight_map.items() if key not in self._parts[name].shapes]
            if absent:
                raise ValueError(f"{index} names tensors that their shards do not hold: {', '.join(absent[:5])}")
        except Exception:
            self.close()
            raise
        self._where = {key: self._parts[name] for key, name in weight_map.items()}
        self.shapes = {key: part.shapes[key] for key, part in self._where.items()}

    def read(self, name: str) -> np.ndarray:
        return self._where[name].read(name)

    def close(self) -> None:
        for part in self._parts.values():
            part.close()


READERS: dict[str, Any] = {
    ".safetensors": SafetensorsFile,
    ".bin": TorchFile,
    ".pth": TorchFile,
    ".pt": TorchFile,
    ".h5": H5File,
    ".hdf5": H5File,
}


def read_weight_map(index: Path) -> dict[str, str]:
    """An index file's map from tensor names to file names, all of them weight files of the index's own folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} has no weight_map from tensor names to file names")
    for name in set(weight_map.values()):
        if Path(name).name != name or "\\" in name or "\0" in name or not name.endswith((".safetensors", ".bin")):
            raise ValueError(f"{index} names {name[:80]!r}, which is not a weight file of the same folder")
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise ValueError(f"{index} names more than {MAX_SHARDS} shards")
    return weight_map


def in_folder(folder: Path, name: str) -> Path | None:
    """The file of that name in a folder, or None. Raises ValueError for a link out of the folder.

    The hub's cache is made of such links: from snapshots/<revision>/ to blobs/. Those are followed.
    """
    file, home = folder / name, folder.resolve()
    if not file.is_file():
        return None
    homes = [home, (home.parent.parent / "blobs").resolve()] if home.parent.name == "snapshots" else [home]
    if not any(file.resolve().is_relative_to(home) for home in homes):
        raise ValueError(f"{file} is a link to {file.resolve()}, outside its folder: if it is yours, put the file itself there")
    return file


def open_weights(path: Path) -> Any:
    """The reader for one weight file, chosen by its name."""
    if path.name.endswith(".index.json"):
        return ShardedFiles(path)
    if path.suffix not in READERS:
        raise ValueError(f"{path} is not a known kind of checkpoint; known are folders and {', '.join(READERS)}")
    return READERS[path.suffix](path)


# -- a checkpoint: weights, configuration, preprocessing --------------------------------------------------------------


class Checkpoint:
    """An opened source: `config` and `image_processor` (dictionaries, or None), `shapes`, and `read(name)`, in HF's names."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.weights_path = _weights_of(self.path)
        self.config, self.image_processor = _descriptions(self.path)
        self._weights = open_weights(self.weights_path)
        try:
            self._describe()
        except Exception:
            self.close()
            raise

    def _describe(self) -> None:
        self._names = {name: name for name in self._weights.shapes}
        self.sha256 = ""  # only .h5 files know theirs
        if isinstance(self._weights, H5File):
            attributes = self._weights.attributes
            self.config = _parse_json(attributes["config"], self.path) if attributes["config"] else self.config
            if attributes["id2label"] and self.config is not None:
                self.config["id2label"] = _parse_json(attributes["id2label"], self.path)
            self.sha256 = attributes["sha256"]
            if attributes["image_processor"]:
                self.image_processor = _parse_json(attributes["image_processor"], self.path)
        elif "_conv_stem.weight" in self._names:
            from effnet_np.weights import lite0

            self._names = {lite0.hf_name(name): name for name in self._weights.shapes}
            if len(self._names) != len(self._weights.shapes):
                raise ValueError(f"{self.weights_path} holds a tensor twice, under Lite0's name and under HF's")
            if self.config is None:
                self.config = EfficientNetConfig.preset("lite0").to_dict()
            if self.image_processor is None:
                self.image_processor = EfficientNetImageProcessor.preset("lite0").to_dict()
        if any(len(name) > MAX_NAME for name in self._names):
            raise ValueError(f"{self.weights_path} has a tensor whose name is longer than {MAX_NAME} characters")
        self.shapes = {name: self._weights.shapes[own] for name, own in self._names.items()}

    def read(self, name: str) -> np.ndarray:
        return self._weights.read(self._names[name])

    def close(self) -> None:
        self._weights.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def load_model(cls: type, source: str | os.PathLike, ignore_mismatched_sizes: bool, options: dict[str, Any]) -> Any:
    """`cls.from_pretrained`: see there."""
    hub_options, overrides = hub.split_options(options)
    seed, allow_nonfinite = overrides.pop("seed", None), overrides.pop("allow_nonfinite", False)
    given = overrides.pop("config", None)
    with Checkpoint(hub.resolve(source, weights=True, **hub_options)) as checkpoint:
        described = checkpoint.config if given is None else given.to_dict()
        if described is None:
            raise FileNotFoundError(f"{checkpoint.path} has no config.json beside its weights, so its network is not known")
        with naming(checkpoint.path):
            config = EfficientNetConfig.from_dict(described, **overrides)
        has = sum(math.prod(shape) for shape in checkpoint.shapes.values())
        if num_weights(config) > 2 * has + 1_000_000:  # said before such a network is built
            wanted = f"describes a network of {num_weights(config)} numbers, but the weights have {has}"
            raise ValueError(f"the configuration of {checkpoint.path} {wanted}")
        model = cls(config, seed, initialize=False)
        names = _names_for(model, checkpoint.shapes)
        own = model.state_dict()
        head = {"classifier.weight", "classifier.bias"}
        # Files older than PyTorch 0.4.1 do not count batches, and no inference needs the count.
        missing = [key for key in own if key not in names and not key.endswith("num_batches_tracked")]
        taken = set(names.values())
        unexpected = [key for key in checkpoint.shapes if key not in taken and not _left_out(own, key)]
        wrong = {key: f"expected {own[key].shape}, got {checkpoint.shapes[name]}" for key, name in names.items()
                 if own[key].shape != checkpoint.shapes[name]}  # fmt: skip
        fresh = set(wrong) | (head & set(missing)) if ignore_mismatched_sizes else set()
        refuse_mismatch(
            [key for key in missing if key not in fresh],
            unexpected,
            [f"{key}: {text}" for key, text in wrong.items() if key not in fresh],
            where=f"the checkpoint {checkpoint.weights_path}",
        )
        if fresh:
            model.initialize(seed)
        for key, name in names.items():
            if key not in fresh:
                _copy(own[key], checkpoint.read(name), f"{name} in {checkpoint.weights_path}", allow_nonfinite)
                if key.endswith("running_var") and (own[key] < 0).any():
                    raise ValueError(f"{name} in {checkpoint.weights_path} has negative variances: the file is damaged")
        everything = not fresh and len(names) == len(checkpoint.shapes) == len(own)
        if everything and checkpoint.sha256 and tensors_sha256(own) != checkpoint.sha256:
            raise ValueError(f"{checkpoint.path} is damaged: its tensors do not have the sha256 that it was written with")
        if checkpoint.image_processor is not None:
            with naming(checkpoint.path):
                model.image_processor = EfficientNetImageProcessor.from_dict(checkpoint.image_processor)
    return model


def _copy(target: np.ndarray, numbers: np.ndarray, name: str, allow_nonfinite: bool) -> None:
    """numbers -> target, of float32 or int64. NaN and infinity, also those that float64 becomes in float32, are refused."""
    if numbers.dtype.kind != target.dtype.kind:
        raise ValueError(f"{name} holds {numbers.dtype}, where {target.dtype} is expected")
    with np.errstate(over="ignore", invalid="ignore"):
        target[...] = numbers
    if not allow_nonfinite and not np.isfinite(target).all():
        raise ValueError(f"{name} holds NaN or infinite numbers; to load it all the same, pass allow_nonfinite=True")


def _names_for(model: Any, shapes: Mapping[str, tuple]) -> dict[str, str]:
    """The model's keys -> the checkpoint's, which may have a backbone's where the model has a classifier, or the reverse."""
    theirs_is_backbone = not any(name.startswith(BACKBONE) for name in shapes)
    ours_is_backbone = not hasattr(model, "efficientnet")
    names = {}
    for key in model.state_dict():
        name = key
        if ours_is_backbone and not theirs_is_backbone:
            name = BACKBONE + key
        elif theirs_is_backbone and not ours_is_backbone:
            name = key.removeprefix(BACKBONE) if key.startswith(BACKBONE) else ""
        if name in shapes:
            names[key] = name
    return names


def _left_out(own: Mapping[str, np.ndarray], name: str) -> bool:
    """A backbone, or a model of no labels, has no use for the classifier of the checkpoint that it is loaded from."""
    return name.startswith("classifier.") and "classifier.weight" not in own


def save_model(model: Any, folder: str | os.PathLike) -> None:
    """`model.save_pretrained`: see there."""
    from safetensors.numpy import save

    folder = Path(folder)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    json.dumps(config)  # before anything is written: a field that JSON cannot hold is a TypeError
    tensors = {name: np.asarray(array, order="C") for name, array in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as temporary:
        temporary.write_bytes(save(tensors, metadata={"format": "pt"}))  # transformers insists on that word
    write_json(folder, "config.json", config)
    if model.image_processor is not None:
        model.image_processor.save_pretrained(folder)


def save_h5(model: Any, path: str | os.PathLike, source: str = "", revision: str = "") -> str:
    """Write a model to one .h5 file that `from_pretrained` reads, and give the sha256 of its tensors."""
    import h5py

    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    id2label = config.pop("id2label")
    del config["label2id"]
    state = model.state_dict()
    digest = tensors_sha256(state)
    buffer = io.BytesIO()  # into memory first: where a disk is full, libhdf5 can only crash
    with h5py.File(buffer, "w", libver="earliest") as file:  # the form that h5_file.py and every HDF5 tool reads
        for name, array in state.items():
            file.create_dataset(name.replace(".", "/"), data=array)
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["effnet_np_version"] = __version__
        file.attrs["config"] = json.dumps(config)
        file.attrs["id2label"] = json.dumps(id2label)
        file.attrs["image_processor"] = json.dumps(model.image_processor.to_dict()) if model.image_processor else ""
        file.attrs["source"], file.attrs["revision"], file.attrs["sha256"] = source, revision, digest
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return digest


def tensors_sha256(state: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over name, dtype, shape and little-endian bytes of every tensor, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name]
        little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        digest.update(f"{name} {little.dtype.str} {array.shape}\n".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


# -- the files beside the weights -------------------------------------------------------------------------------------


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Put `path` before the message of a TypeError or ValueError that its contents cause."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"{path}: {error!s:.500}") from error


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The configuration of a folder, of an .h5 or .pth file, or in a .json file."""
    return _description(Path(path), 0, "config.json")


def read_processor_config(path: str | os.PathLike) -> dict[str, Any]:
    """The image processor's configuration of a folder, of an .h5 or .pth file, or in a .json file."""
    return _description(Path(path), 1, "preprocessor_config.json")


def _description(path: Path, which: int, name: str) -> dict[str, Any]:
    if path.suffix == ".json":
        return read_json(path)
    if path.is_dir():
        found = _descriptions(path)[which]
    else:
        with Checkpoint(path) as checkpoint:
            found = (checkpoint.config, checkpoint.image_processor)[which]
    if found is None:
        raise FileNotFoundError(f"{path} has no {name}")
    return found


def _descriptions(path: Path) -> tuple[dict | None, dict | None]:
    folder = path if path.is_dir() else path.parent
    config, processor = (in_folder(folder, name) for name in ("config.json", "preprocessor_config.json"))
    return read_json(config) if config else None, read_json(processor) if processor else None


def _weights_of(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"there is no file or folder {path}")
    for name in WEIGHT_FILES:
        found = in_folder(path, name)
        if found:
            return found
    raise FileNotFoundError(f"the folder {path} holds none of {', '.join(WEIGHT_FILES)}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most 2 MB. Raises FileNotFoundError, or ValueError with the file's name."""
    if not path.is_file():  # a pipe or a device would be read for ever
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, "rb") as file:
        return _parse_json(file.read(MAX_JSON + 1), path)


def _parse_json(text: str | bytes, where: object) -> dict[str, Any]:
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

    try:
        text = text.decode() if isinstance(text, bytes) else text
        if text.count("[") + text.count("{") > MAX_BRACKETS:
            raise ValueError(f"it has more than {MAX_BRACKETS} objects and lists")
        value = json.loads(text, object_pairs_hook=no_twins, parse_constant=no_constant)
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


def write_json(folder: str | os.PathLike, name: str, value: dict[str, Any]) -> str:
    """Write `folder`/`name`, making the folder where it is missing, and give the path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / name) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return str(folder / name)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it if all goes well and removed if not: the old file or the new, whole.

    A process that is killed leaves its temporary, `.<name>.<16 digits>.tmp`. Nothing reads those; an hour later the next write
    of the same file removes them.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 16}.tmp"):
        with contextlib.suppress(OSError):  # another process may be as quick
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb"):  # not mkstemp: its file would be its owner's alone
            pass
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# -- traces: the same file format, other contents (see trace_files.py) ------------------------------------------------


class _Pages(io.RawIOBase):
    """A file in memory, of which only the pages that were written to exist."""

    SIZE = 1 << 12

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[int, bytearray] = {}  # number -> contents
        self._position = self.length = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.length}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.length = self._position if size is None else size
        return self.length

    def _pieces(self, size: int) -> Iterator[tuple[int, slice, slice]]:
        """(page, part of it, part of the data) for so many bytes from here on, which are then passed."""
        done = 0
        while done < size:
            page, start = divmod(self._position, self.SIZE)
            count = min(self.SIZE - start, size - done)
            yield page, slice(start, start + count), slice(done, done + count)
            self._position, done = self._position + count, done + count

    def readinto(self, buffer: Any) -> int:
        data = memoryview(buffer).cast("B")
        for page, part, where in self._pieces(max(0, min(len(data), self.length - self._position))):
            data[where] = self.pages.get(page, bytes(self.SIZE))[part]
        return len(data)

    def write(self, buffer: Any) -> int:
        data = memoryview(buffer).cast("B")
        for page, part, where in self._pieces(len(data)):
            self.pages.setdefault(page, bytearray(self.SIZE))[part] = data[where]
        self.length = max(self.length, self._position)
        return len(data)


def save_arrays_h5(
    path: str | os.PathLike,
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    read: Callable[[str], np.ndarray],
    index: str,
) -> None:
    """Write arrays, {"group/name": (shape, dtype)}, `read` giving one's numbers; their index is the root's attribute `index`.

    libhdf5 crashes where a disk is full. So it lays the file out in memory, without the numbers, and we write all to the disk.
    """
    import h5py

    layout, places = _Pages(), {}
    with h5py.File(layout, "w", libver="earliest") as file:
        at_once = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        at_once.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        at_once.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        for place, (shape, dtype) in arrays.items():
            group = file.require_group(place.rpartition("/")[0] or "/")
            space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
            name, kind = place.rpartition("/")[2].encode(), h5py.h5t.py_create(dtype)
            dataset = h5py.h5d.create(group.id, name, kind, space, dcpl=at_once)
            places[place] = dataset.get_offset()  # None where there are no numbers
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["effnet_np_version"] = __version__
        file.attrs["index"] = index
    with replacing(path) as temporary, open(temporary, "wb") as out:
        for number, page in layout.pages.items():
            out.seek(number * layout.SIZE)
            out.write(page)
        for place, offset in places.items():
            if offset is not None:
                out.seek(offset)
                out.write(read(place).reshape(-1).view(np.uint8).data)
        out.truncate(layout.length)
