"""Weights from and to files: .safetensors, .bin/.pth (read only) and .h5, sharded folders included. None of them runs code.

A source is opened, its keys and shapes are compared with the configuration as sets, and only when all of them fit are
numbers read, one tensor at a time. Files are written under a temporary name and renamed, so that a file is whole or absent.

The .h5 format: one group a module, one dataset a tensor, so "efficientnet.encoder.blocks.0..." is a path; and in the root's
attributes `format_version`, `config`, `image_processor` and `id2label` (JSON), `source`, `revision`, and the `sha256`
of all tensors (see `tensors_sha256`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from effnet_np import hub
from effnet_np.config import EfficientNetConfig
from effnet_np.image_processor import EfficientNetImageProcessor
from effnet_np.module import refuse_mismatch
from effnet_np.torch_file import TorchFile

FORMAT_VERSION = 1
MAX_JSON = 16 << 20  # bytes
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
BACKBONE = "efficientnet."


# -- readers: each has `shapes`, {name: shape}, and `read(name)`, and knows nothing of EfficientNet -------------------


class SafetensorsFile:
    """A .safetensors file, through the library of that name."""

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework="numpy")
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 - not a dict
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
        for name, part in slices.items():
            if part.get_dtype() not in ("F16", "F32", "F64", "I64"):
                raise ValueError(f"{path}: {name} has dtype {part.get_dtype()}; only F16, F32, F64 and I64 can be read")
        self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}

    def read(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def close(self) -> None:
        self._file.__exit__(None, None, None)


class H5File:
    """A .h5 file of ours: plain datasets in plain groups, and nothing that points to another place or file."""

    def __init__(self, path: Path):
        import h5py

        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise ValueError(f"{path} is not a readable HDF5 file: {error}") from error
        self.attributes: dict[str, Any] = {}
        try:
            self._datasets = dict(self._walk(self._file, ""))
            for name in ("format_version", "config", "image_processor", "id2label", "source", "revision", "sha256"):
                value = self._file.attrs.get(name, "")
                self.attributes[name] = value.decode() if isinstance(value, bytes) else value
            if self.attributes["format_version"] == "":
                raise ValueError(f"{path} was not written by effnet_np: it has no attribute format_version")
            if int(self.attributes["format_version"]) > FORMAT_VERSION:
                newer = f"format version {self.attributes['format_version']}, newer than the {FORMAT_VERSION} known here"
                raise ValueError(f"{path} has {newer}: upgrade effnet_np")
        except Exception:
            self.close()
            raise
        self.shapes = {name: dataset.shape for name, dataset in self._datasets.items()}

    def _walk(self, group, prefix: str) -> Iterator[tuple[str, Any]]:
        import h5py

        for name in group:
            full = prefix + name
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{self._file.filename}: {full} is a link to another place, which a checkpoint does not need")
            item = group[name]
            if isinstance(item, h5py.Group):
                if full.count(".") > 20:
                    raise ValueError(f"{self._file.filename}: {full[:80]}... is nested too deep")
                yield from self._walk(item, full + ".")
                continue
            plain = isinstance(item, h5py.Dataset) and not item.is_virtual and not item.external
            if not plain or item.dtype.kind not in "fi" or set(item._filters) - {"gzip", "shuffle"}:
                raise ValueError(f"{self._file.filename}: {full} is not a plain array of numbers")
            yield full, item

    def read(self, name: str) -> np.ndarray:
        try:
            return self._datasets[name][()]
        except OSError as error:
            raise ValueError(f"{self._file.filename} is damaged at {name}: {error}") from error

    def close(self) -> None:
        self._file.close()


class ShardedFiles:
    """Several weight files and the index that says which tensor is in which."""

    def __init__(self, index: Path):
        weight_map = read_weight_map(index)
        self._parts: dict[str, Any] = {}
        try:
            for name in sorted(set(weight_map.values())):
                if not (index.parent / name).is_file():
                    raise FileNotFoundError(f"{index} names the shard {name!r}, but there is no such file beside it")
                self._parts[name] = open_weights(index.parent / name)
            absent = [f"{key} (in {name})" for key, name in weight_map.items() if key not in self._parts[name].shapes]
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
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise ValueError(f"{index} names {name!r}, which is not a weight file of the same folder")
    return weight_map


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
            if self.config is None:
                self.config = EfficientNetConfig.preset("lite0").to_dict()
            if self.image_processor is None:
                self.image_processor = EfficientNetImageProcessor.preset("lite0").to_dict()
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
    seed = overrides.pop("seed", None)
    with Checkpoint(hub.resolve(source, weights=True, **hub_options)) as checkpoint:
        if checkpoint.config is None:
            raise FileNotFoundError(f"{checkpoint.path} has no config.json beside its weights, so its network is not known")
        config = EfficientNetConfig.from_dict(checkpoint.config, **overrides)
        model = cls(config, seed, initialize=False)
        names = _names_for(model, checkpoint.shapes)
        own = model.state_dict()
        head = {"classifier.weight", "classifier.bias"}
        # Files older than PyTorch 0.4.1 do not count batches, and no inference needs the count.
        missing = [key for key in own if key not in names and not key.endswith("num_batches_tracked")]
        unexpected = [key for key in checkpoint.shapes if key not in names.values() and not _left_out(model, key)]
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
                own[key][...] = checkpoint.read(name)
        everything = not fresh and len(names) == len(checkpoint.shapes) == len(own)
        if everything and checkpoint.sha256 and tensors_sha256(own) != checkpoint.sha256:
            raise ValueError(f"{checkpoint.path} is damaged: its tensors do not have the sha256 that it was written with")
        if checkpoint.image_processor is not None:
            model.image_processor = EfficientNetImageProcessor.from_dict(checkpoint.image_processor)
    return model


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


def _left_out(model: Any, name: str) -> bool:
    """A backbone has no use for the classifier of the checkpoint that it is loaded from."""
    return not hasattr(model, "efficientnet") and name.startswith("classifier.")


def save_model(model: Any, folder: str | os.PathLike) -> None:
    """`model.save_pretrained`: see there."""
    from safetensors.numpy import save

    folder = Path(folder)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
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
    with replacing(path) as temporary:
        with h5py.File(temporary, "w", libver=("v110", "v110")) as file:  # since 1.10, an attribute may exceed 64 KB
            for name, array in state.items():
                file.create_dataset(name.replace(".", "/"), data=array)
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["effnet_np_version"] = version("effnet_np")
            file.attrs["config"] = json.dumps(config)
            file.attrs["id2label"] = json.dumps(id2label)
            file.attrs["image_processor"] = json.dumps(model.image_processor.to_dict()) if model.image_processor else ""
            file.attrs["source"], file.attrs["revision"], file.attrs["sha256"] = source, revision, digest
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
    if path.suffix in (".h5", ".hdf5"):
        return None, None  # it brings its own
    files = (folder / "config.json", folder / "preprocessor_config.json")
    return tuple(read_json(file) if file.is_file() else None for file in files)  # type: ignore[return-value]


def _weights_of(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"there is no file or folder {path}")
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"the folder {path} holds none of {', '.join(WEIGHT_FILES)}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most 16 MB. Raises ValueError with the file's name."""
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path} is larger than {MAX_JSON} bytes, too large for a JSON file of a checkpoint")
    return _parse_json(path.read_text(encoding="utf-8", errors="replace"), path)


def _parse_json(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not hold valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(value).__name__}")
    return value


def write_json(folder: str | os.PathLike, name: str, value: dict[str, Any]) -> str:
    """Write `folder`/`name`, making the folder where it is missing, and give the path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / name) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return str(folder / name)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it if all goes well and removed if not: the old file or the new, whole."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's file is its owner's alone
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# -- traces: the same file format, other contents (see trace.py) ------------------------------------------------------


def save_arrays_h5(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], index: str) -> None:
    """Write arrays under "group/name" keys, and the text of their index as the root's attribute `index`."""
    import h5py

    with replacing(path) as temporary:
        with h5py.File(temporary, "w", libver=("v110", "v110")) as file:
            for place, array in arrays.items():
                file.create_dataset(place, data=array)
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["effnet_np_version"] = version("effnet_np")
            file.attrs["index"] = index


def load_arrays_h5(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], str]:
    """What `save_arrays_h5` wrote: (arrays, index). Raises ValueError for another file."""
    file = H5File(Path(path))
    try:
        index = file._file.attrs.get("index")
        if not isinstance(index, str):
            raise ValueError(f"{path} holds no trace: it has no attribute index (is it a checkpoint?)")
        return {name.replace(".", "/", 1): file.read(name) for name in file.shapes}, index
    finally:
        file.close()
