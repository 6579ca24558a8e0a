"""Weights from and to files: .safetensors, .bin/.pth (read only) and .h5, sharded folders included. None of them runs code.

A source is opened, its keys and shapes are compared with the configuration as sets, and only when all of them fit are
numbers read, one tensor at a time. Files are written under a temporary name and renamed, so that a file is whole or absent.
A file may come from a stranger: what it claims is held against what it is before memory is spent (SECURITY.md has the list).

The .h5 format: one group a module, one dataset a tensor, so "efficientnet.encoder.blocks.0..." is a path; and in the root's
attributes `format_version`, `config`, `image_processor` and `id2label` (JSON), `source`, `revision`, and the `sha256`
of all tensors (see `tensors_sha256`).

A folder is three files, which cannot be renamed at once. So all that one save writes bears the same random id, `SAVE_ID`,
config.json is exchanged first and the weights last, and whoever reads files of two saves reads again: a save is going on, or
was killed, and then the folder is refused. Folders that others wrote have no id, and are taken as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from effnet_np.architecture import PRESETS
from effnet_np.checkpoints import hub
from effnet_np.checkpoints.files import json_text, naming, open_in_folder, parse_json, read_json, replacing, sync, write_json
from effnet_np.checkpoints.h5_file import H5File
from effnet_np.checkpoints.hub import WEIGHT_FILES, read_weight_map
from effnet_np.checkpoints.safetensors_file import SafetensorsFile
from effnet_np.checkpoints.torch_file import TorchFile
from effnet_np.config_checks import num_weights
from effnet_np.hf_config import EfficientNetConfig
from effnet_np.images.processor import EfficientNetImageProcessor
from effnet_np.match import Match, match
from effnet_np.version import __version__
from effnet_np.weights.foreign import refuse_foreign

__all__ = ["naming", "read_json", "replacing", "write_json"]  # of files.py, for those who write beside a checkpoint

FORMAT_VERSION = 1  # of our .h5 files
MAX_NAME = 500  # characters of a tensor's name
BACKBONE = "efficientnet."
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, of torch.compile, of what trains a model
HEAD = ("classifier.weight", "classifier.bias")
SAVE_ID = "effnet_np_save"
PATIENCE = 1.0  # seconds in which a save that is going on has exchanged its files


# -- weights: each reader has `shapes`, {name: shape}, `numbers`, how many there are, and `read(name)`, and knows no network


class ShardedFiles:
    """Several weight files and the index that says which tensor is in which."""

    def __init__(self, index: Path, file: BinaryIO | None = None):
        weight_map = read_weight_map(index, file)
        self._parts: dict[str, Any] = {}
        try:
            for name in sorted(set(weight_map.values())):
                shard = open_in_folder(index.parent, name)
                if shard is None:
                    raise FileNotFoundError(f"{index} names the shard {name!r}, but there is no such file beside it")
                self._parts[name] = open_weights(index.parent / name, shard)
            absent = [f"{key[:80]} (in {name})" for key, name in weight_map.items() if key not in self._parts[name].shapes]
            if absent:
                raise ValueError(f"{index} names tensors that their shards do not hold: {', '.join(absent[:5])}")
        except BaseException:
            self.close()
            raise
        self._where = {key: self._parts[name] for key, name in weight_map.items()}
        self.shapes = {key: part.shapes[key] for key, part in self._where.items()}
        self.numbers = sum(part.numbers for part in self._parts.values())

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


def open_weights(path: Path, file: BinaryIO | None = None) -> Any:
    """The reader for one weight file, chosen by its name; `file` is that file where it is open already."""
    if path.name.endswith(".index.json"):
        return ShardedFiles(path, file)
    if path.suffix not in READERS:
        keras = "a checkpoint of Keras, " if path.suffix == ".keras" else ""
        raise ValueError(f"{path} is {keras}not a known kind of checkpoint; known are folders and {', '.join(READERS)}")
    return READERS[path.suffix](path, file=file)


# -- a checkpoint: weights, configuration, preprocessing --------------------------------------------------------------


class Checkpoint:
    """An opened source: `config` and `image_processor` (dictionaries, or None), `shapes`, and `read(name)`, in HF's names.

    `unwrapped` says in words what the tensors were wrapped in, "" where they were not.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._open()
        try:
            self._describe()
        except BaseException:
            self.close()
            raise

    # -- files of one save --------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Descriptions and weights, again until they are of one save."""
        give_up = time.monotonic() + PATIENCE
        while True:
            self.config, self.image_processor = _descriptions(self.path)
            ids = [(part or {}).pop(SAVE_ID, None) for part in (self.config, self.image_processor)]
            self.weights_path, self._weights = _open_weights_of(self.path)
            if isinstance(self._weights, H5File) or self._is_one_save(*ids):
                return
            self.close()
            if time.monotonic() > give_up:
                raise ValueError(
                    f"{self.path}: config.json, preprocessor_config.json and {self.weights_path.name} are not of one save: it "
                    "was interrupted, or one of them was replaced. Save the model again, or, if they do belong together, "
                    f"delete the lines {SAVE_ID!r} in the .json files"
                )
            time.sleep(0.01)

    def _is_one_save(self, config_id: Any, processor_id: Any) -> bool:
        weights_id = getattr(self._weights, "metadata", {}).get(SAVE_ID)
        if weights_id is None:
            # transformers keeps our id when it saves a configuration, puts its own version in, and writes weights without it.
            written_by_us = config_id is not None and self.config is not None and "transformers_version" not in self.config
            return not (written_by_us and self.path.is_dir())
        if any(other not in (None, weights_id) for other in (config_id, processor_id)):
            return False
        if config_id is None:
            return True
        now, _ = _descriptions(self.path)  # a save that began after we had read config.json began with it
        return now is not None and now.get(SAVE_ID) == config_id

    # -- what they say ------------------------------------------------------------------------------------------------

    def _describe(self) -> None:
        names = list(self._weights.shapes)
        if any(len(name) > MAX_NAME for name in names):
            raise ValueError(f"{self.weights_path} has a tensor whose name is longer than {MAX_NAME} characters")
        prefix, said = "", []
        while found := next((word for word in PREFIXES if names and all(name.startswith(prefix + word) for name in names)), ""):
            prefix += found
        if getattr(self._weights, "found_in", ""):
            beside = f" (beside it, not read: {', '.join(self._weights.beside)[:200]})" if self._weights.beside else ""
            said.append(f"the state dict under {self._weights.found_in!r}{beside}")
        if prefix:
            said.append(f"its names without {prefix!r}, which all of them start with")
        self.unwrapped = ", ".join(said)
        self._names = {name.removeprefix(prefix): name for name in names}
        refuse_foreign(self._names, self.weights_path)
        self.sha256 = ""  # only our .h5 files know theirs
        if isinstance(self._weights, H5File):
            self._describe_h5(self._weights.attributes)
        elif "_conv_stem.weight" in self._names:
            self._describe_lite0()
        self.shapes = {name: self._weights.shapes[own] for name, own in self._names.items()}
        self.numbers = self._weights.numbers

    def _describe_h5(self, attributes: dict[str, Any]) -> None:
        """Read the attributes of our .h5 files. Raises ValueError for a file that is not one of them."""
        with naming(self.weights_path):
            number = attributes.get("format_version")
            if "format_version" not in attributes:
                raise ValueError("it was not written by effnet_np: it has no attribute format_version")
            if not isinstance(number, int) or number < 1:
                raise ValueError("its attribute format_version is not a whole number of at least 1")
            if number > FORMAT_VERSION:
                known = f"newer than the {FORMAT_VERSION} known here: upgrade effnet_np"
                raise ValueError(f"it has format version {number}, {known}")
            texts = {}
            for name in ("config", "image_processor", "id2label", "source", "revision", "sha256"):
                texts[name] = attributes.get(name, "")
                if not isinstance(texts[name], str):
                    raise ValueError(f"its attribute {name} is not a text")
        self.config = parse_json(texts["config"], self.path) if texts["config"] else self.config
        if texts["id2label"] and self.config is not None:
            self.config["id2label"] = parse_json(texts["id2label"], self.path)
        self.sha256 = texts["sha256"]
        if texts["image_processor"]:
            self.image_processor = parse_json(texts["image_processor"], self.path)

    def _describe_lite0(self) -> None:
        from effnet_np.weights import lite

        translated = {lite.hf_name(name): own for name, own in self._names.items()}
        if len(translated) != len(self._names):
            raise ValueError(f"{self.weights_path} holds a tensor twice, under Lite0's name and under HF's")
        self._names = translated
        if self.config is None:
            self.config = EfficientNetConfig.preset("lite0").to_dict()
        if self.image_processor is None:
            self.image_processor = EfficientNetImageProcessor.preset("lite0").to_dict()

    # -- for a model --------------------------------------------------------------------------------------------------

    def rename_for(self, own: Mapping[str, Any]) -> None:
        """Give the tensors the names that a model has: it may be a backbone where the file has a classifier, or the reverse."""
        ours, theirs = (any(name.startswith(BACKBONE) for name in names) for names in (own, self._names))
        if theirs and not ours:
            self._names = {name.removeprefix(BACKBONE): source for name, source in self._names.items()}
        elif ours and not theirs:
            self._names = {BACKBONE + name: source for name, source in self._names.items()}
        if "classifier.weight" not in own:  # a backbone, or a model of no labels, has no use for the classifier
            self._names = {name: source for name, source in self._names.items() if not name.startswith("classifier.")}
        self.shapes = {name: self._weights.shapes[source] for name, source in self._names.items()}

    def read(self, name: str) -> np.ndarray:
        return self._weights.read(self._names[name])

    def describe(self, name: str) -> str:
        """A tensor under the name that it has in the file, and the file."""
        return f"{self._names[name]} in {self.weights_path}"

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
    given, processor = overrides.pop("config", None), _processor(overrides.pop("image_processor", None))
    dtype = wanted_dtype(overrides.pop("torch_dtype", None), overrides.pop("dtype", None))
    with Checkpoint(hub.resolve(source, weights=True, **hub_options)) as checkpoint:
        described = checkpoint.config if given is None else given.to_dict()
        if described is None:
            raise FileNotFoundError(f"{checkpoint.path} has no config.json beside its weights, so its network is not known")
        with naming(checkpoint.path):
            config = EfficientNetConfig.from_dict(described, **overrides)
        wanted = num_weights(config, classifier=not ignore_mismatched_sizes)  # a fresh one is not in the file
        if wanted > 2 * checkpoint.numbers + 1_000_000:  # said before such a network is built
            described = f"describes a network of {wanted} numbers, but the weights have {checkpoint.numbers}"
            raise ValueError(f"the configuration of {checkpoint.path} {described}")
        model = cls(config, seed, initialize=False).to(dtype)
        found = _match(model.state_dict(), checkpoint, ignore_mismatched_sizes)
        if found.fresh:
            model.initialize(seed)
        _fill(model.state_dict(), checkpoint, found, allow_nonfinite)
        if processor is None and checkpoint.image_processor is not None:
            with naming(checkpoint.path):
                processor = EfficientNetImageProcessor.from_dict(checkpoint.image_processor)
        if processor is not None:
            model.image_processor = processor
    return model


def _match(own: Mapping[str, np.ndarray], checkpoint: Checkpoint, ignore_mismatched_sizes: bool) -> Match:
    """Which tensors are copied. Raises ValueError where they do not fit, warns of what starts fresh or was unwrapped."""
    checkpoint.rename_for(own)
    if checkpoint.unwrapped:
        warnings.warn(f"{checkpoint.weights_path}: read {checkpoint.unwrapped}", UserWarning, stacklevel=4)
    found = match({name: array.shape for name, array in own.items()}, checkpoint.shapes)
    # Files older than PyTorch 0.4.1 do not count batches, and no inference needs the count.
    found.missing = [name for name in found.missing if not name.endswith("num_batches_tracked")]
    shapes = found.misshapen
    if ignore_mismatched_sizes:
        found.start_fresh([*shapes, *HEAD])
    only_head = {*found.missing, *found.misshapen} <= set(HEAD)
    hint = "\nTo start with a fresh classifier in its place, pass ignore_mismatched_sizes=True." if only_head else ""
    found.refuse(f"the checkpoint {checkpoint.weights_path}", hint)
    if found.fresh:
        differ = [f"{name} (the file: {shapes[name][1]}, the model: {shapes[name][0]})" if name in shapes else
                  f"{name} (not in the file, the model: {own[name].shape})" for name in found.fresh]  # fmt: skip
        more = f" and {len(differ) - 10} more" if len(differ) > 10 else ""
        fresh = f"not taken from {checkpoint.weights_path} but drawn anew, so to be trained: {', '.join(differ[:10])}{more}"
        warnings.warn(fresh, UserWarning, stacklevel=4)
    return found


def _fill(own: Mapping[str, np.ndarray], checkpoint: Checkpoint, found: Match, allow_nonfinite: bool) -> None:
    """Copy the numbers in, in the order of names, in which the digest of an .h5 file was made."""
    digest = hashlib.sha256()
    for name in sorted(found.copy):
        numbers = checkpoint.read(name)
        _hash(digest, name, numbers)
        _copy(own[name], numbers, checkpoint.describe(name), allow_nonfinite)
        if name.endswith("running_var") and (own[name] < 0).any():
            raise ValueError(f"{checkpoint.describe(name)} has negative variances: the file is damaged")
    everything = len(found.copy) == len(checkpoint.shapes) == len(own)
    if everything and checkpoint.sha256 and digest.hexdigest() != checkpoint.sha256:
        raise ValueError(f"{checkpoint.path} is damaged: its tensors do not have the sha256 that it was written with")


def _copy(target: np.ndarray, numbers: np.ndarray, name: str, allow_nonfinite: bool) -> None:
    """numbers -> target, of float or int64. NaN and infinity, also those that float64 becomes in float32, are refused."""
    if numbers.dtype.kind != target.dtype.kind:
        raise ValueError(f"{name} holds {numbers.dtype}, where {target.dtype} is expected")
    with np.errstate(over="ignore", invalid="ignore"):
        target[...] = numbers
    if not allow_nonfinite and not np.isfinite(target).all():
        raise ValueError(f"{name} holds NaN or infinite numbers; to load it all the same, pass allow_nonfinite=True")


def _processor(source: Any) -> EfficientNetImageProcessor | None:
    """A processor itself, that of a preset ("b0".."b7", "lite0": nothing is fetched), or of a folder, a file or a hub id."""
    if source is None or isinstance(source, EfficientNetImageProcessor):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"image_processor must be an EfficientNetImageProcessor or where to find one, got {source!r:.80}")
    return (
        EfficientNetImageProcessor.preset(source) if source in PRESETS else EfficientNetImageProcessor.from_pretrained(source)
    )


def wanted_dtype(*wishes: Any) -> np.dtype:
    """What HF's `torch_dtype` or `dtype` asks for, by name or as torch's or NumPy's: float32 (None and "auto", too) or float64.

    Raises TypeError for all else.
    """
    for wish in wishes:
        name = str(getattr(wish, "__name__", wish)).removeprefix("torch.")
        if name in ("float64", "double"):
            return np.dtype(np.float64)
        if name not in ("None", "auto", "float32", "float"):
            also = "files in half precision are read as float32, number for number"
            raise TypeError(f"torch_dtype={name[:80]}: a model computes in float32 (or float64) here; {also}: leave it out")
    return np.dtype(np.float32)


# -- saving -----------------------------------------------------------------------------------------------------------


def save_model(model: Any, folder: str | os.PathLike) -> None:
    """`model.save_pretrained`: see there."""
    from safetensors.numpy import save

    folder, save_id = Path(folder), {SAVE_ID: secrets.token_hex(16)}
    config = model.config.to_dict() | {"architectures": [type(model).__name__]} | save_id
    config.pop("transformers_version", None)  # of who wrote the file that this model came from
    processor = model.image_processor.to_dict() | save_id if model.image_processor is not None else None
    # All texts before anything is written: what JSON cannot hold is an error.
    texts = {"preprocessor_config.json": json_text(processor)} if processor else {}
    texts["config.json"] = json_text(config)
    tensors = {name: np.asarray(array, order="C") for name, array in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder), contextlib.ExitStack() as files:
        # All are on the disk before the first is renamed; the stack renames them last to first: config.json, then the others.
        temporary = files.enter_context(replacing(folder / "model.safetensors"))
        temporary.write_bytes(save(tensors, metadata={"format": "pt"} | save_id))  # transformers insists on that word
        sync(temporary)
        if processor is None:
            files.push(lambda kind, *_: _remove_stale_processor(folder) if kind is None else None)
        for name, text in texts.items():
            temporary = files.enter_context(replacing(folder / name))
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)


def _remove_stale_processor(folder: Path) -> None:
    """Remove the preprocessing of the model that was saved there before. One that was put there by itself stays."""
    path = folder / "preprocessor_config.json"
    with contextlib.suppress(FileNotFoundError, ValueError):
        if SAVE_ID in read_json(path):
            path.unlink()


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one save at a time write to a folder, where the system can lock one; a process that dies leaves no lock."""
    try:
        import fcntl

        number = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


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
        _hash(digest, name, state[name])
    return digest.hexdigest()


def _hash(digest: Any, name: str, array: np.ndarray) -> None:
    little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    digest.update(f"{name} {little.dtype.str} {array.shape}\n".encode())
    digest.update(little.tobytes())


# -- the files beside the weights -------------------------------------------------------------------------------------


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The configuration of a folder, of an .h5 or .pth file, or in a .json file."""
    return _description(Path(path), 0, "config.json")


def read_processor_config(path: str | os.PathLike) -> dict[str, Any]:
    """The image processor's configuration of a folder, of an .h5 or .pth file, or in a .json file."""
    return _description(Path(path), 1, "preprocessor_config.json")


def _description(path: Path, which: int, name: str) -> dict[str, Any]:
    if path.suffix == ".json":
        found: dict[str, Any] | None = read_json(path)
    elif path.is_dir():
        found = _descriptions(path)[which]
    else:
        with Checkpoint(path) as checkpoint:
            found = (checkpoint.config, checkpoint.image_processor)[which]
    if found is None:
        raise FileNotFoundError(f"{path} has no {name}")
    found.pop(SAVE_ID, None)
    if which == 0 and "architecture" in found and "model_type" not in found:  # nothing of it would be read: it would be B7
        raise ValueError(f"{path} has a configuration of timm (architecture {found['architecture']!r:.80}), not Hugging Face's")
    return found


def _descriptions(path: Path) -> tuple[dict | None, dict | None]:
    folder = path if path.is_dir() else path.parent
    config, processor = (_json_of(folder, name) for name in ("config.json", "preprocessor_config.json"))
    return config, processor


def _json_of(folder: Path, name: str) -> dict[str, Any] | None:
    file = open_in_folder(folder, name)
    return None if file is None else read_json(folder / name, file)


def _open_weights_of(path: Path) -> tuple[Path, Any]:
    """(file, its reader) of a weight file, or of a folder's first one."""
    if not path.is_dir():
        if not path.is_file():  # a pipe or a device would be read for ever
            raise FileNotFoundError(f"there is no file or folder {path}")
        return path, open_weights(path)
    for name in WEIGHT_FILES:
        file = open_in_folder(path, name)
        if file is not None:
            return path / name, open_weights(path / name, file)
    raise FileNotFoundError(f"the folder {path} holds none of {', '.join(WEIGHT_FILES)}")


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
