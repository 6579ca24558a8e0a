"""Weights from and to files: .safetensors, .bin/.pth (read only) and .h5, sharded folders included. None of them runs code.

A source is opened and described; numbers are read one tensor at a time, when loading.py asks for them. Files are written
under a temporary name and renamed, so that a file is whole or absent. A file may come from a stranger: what it claims is held
against what it is before memory is spent (SECURITY.md has the list).

What an .h5 file holds is said in h5_writer.py.

A folder is three files, which cannot be renamed at once. So all that one save writes bears the same digest, `SAVE_ID`,
config.json is exchanged first and the weights last, and whoever reads files of two saves reads again: a save is going on, or
was killed, and then the folder is refused. Folders that others wrote have no id, and are taken as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from effnet_np.checkpoints.files import json_text, naming, open_in_folder, parse_json, read_json, replacing, sync
from effnet_np.checkpoints.h5_file import H5File
from effnet_np.checkpoints.h5_writer import FORMAT_VERSION, tensors_sha256
from effnet_np.checkpoints.hub import WEIGHT_FILES, read_weight_map
from effnet_np.checkpoints.keras_file import KerasFile, open_keras
from effnet_np.checkpoints.safetensors_file import SafetensorsFile
from effnet_np.checkpoints.torch_file import TorchFile
from effnet_np.weights import timm
from effnet_np.weights.dialect import BACKBONE, Dialect
from effnet_np.weights.foreign import HF, TIMM, dialect_of

KERAS_SIGN = r"(^|\.)(stem_conv|vars)\."  # in the names of Keras' files, whose layers are called so, or numbered
MAX_NAME = 500  # characters of a tensor's name
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, of torch.compile, of what trains a model
SAVE_ID = "effnet_np_save"
PATIENCE = 1.0  # seconds in which a save that is going on has exchanged its files


# -- weights: a reader is made from a path and, where it is open already, its `file`; it has `shapes`, {name: shape}, `numbers`,
# how many there are, `read(name)` and `close()`, raises ValueError that names the file, and knows no network


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


def open_h5(path: str | os.PathLike, file: BinaryIO | None = None) -> H5File | KerasFile:
    """Ours, which has the attribute format_version, or Keras'."""
    found = H5File(path, file=file)
    if "format_version" not in found.attributes and any(re.search(KERAS_SIGN, name) for name in found.shapes):
        return KerasFile(found)
    return found


READERS: dict[str, Any] = {
    ".safetensors": SafetensorsFile,
    ".bin": TorchFile,
    ".pth": TorchFile,
    ".pt": TorchFile,
    ".h5": open_h5,
    ".hdf5": open_h5,
    ".keras": open_keras,
}


def open_weights(path: Path, file: BinaryIO | None = None) -> Any:
    """The reader for one weight file, chosen by its name; `file` is that file where it is open already."""
    if path.name.endswith(".index.json"):
        return ShardedFiles(path, file)
    if path.suffix not in READERS:
        raise ValueError(f"{path} is not a known kind of checkpoint; known are folders and {', '.join(READERS)}")
    return READERS[path.suffix](path, file=file)


# -- a checkpoint: weights, configuration, preprocessing --------------------------------------------------------------


@dataclass(frozen=True)
class Foreign:
    """A network that its source does not describe as Hugging Face does: what is known of it.

    `hf_config.identify` finds out which it is, and refuses where that is not certain.
    """

    dialect: Dialect
    path: Path
    architecture: str | None  # by the library's name for it: what the caller says, or a configuration of timm
    shapes: Mapping[str, tuple[int, ...]]  # by our names; empty where only descriptions were read
    fields: dict[str, Any]  # of the configuration, as far as the source says them itself
    processor: dict[str, Any] | None  # the image processor's options, as far as the source says them itself


class Checkpoint:
    """An opened source: `config` and `image_processor` (dictionaries, or None), `shapes`, and `read(name)`, in HF's names.

    `foreign` is what is known of a source that is not described in Hugging Face's way; `architecture` is what the caller says.
    `unwrapped` says in words what the tensors were wrapped in, "" where they were not.
    """

    def __init__(self, path: str | os.PathLike, architecture: str | None = None):
        self.path, self.architecture = Path(path), architecture
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
        self.sha256 = ""  # only our .h5 files know theirs
        self.dialect = dialect_of(self._names) or HF
        if isinstance(self._weights, H5File):
            self._describe_h5(self._weights.attributes)
        self._translate()
        self.numbers = self._weights.numbers
        self.foreign = self._foreign()

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

    def _translate(self) -> None:
        """From the dialect's names to ours."""
        if self.dialect is not HF:
            translated = self.dialect.renamed(self._names)
            if len(translated) != len(self._names):
                library = self.dialect.library
                raise ValueError(f"{self.weights_path} holds a tensor twice, under the name of {library} and under HF's")
            self._names = {ours: self._names[theirs] for ours, theirs in translated.items()}
        self.shapes = {name: self._shape(name) for name in self._names}

    def _shape(self, name: str) -> tuple[int, ...]:
        shape, axes = self._weights.shapes[self._names[name]], self.dialect.transposition(name)
        return tuple(shape[axis] for axis in axes) if axes and len(axes) == len(shape) else shape

    def _foreign(self) -> Foreign | None:
        """What is known of a network that the source does not describe in Hugging Face's way; None where it does."""
        described, self_said = self.config, is_timms(self.config)
        if described is not None and not self_said and (self.dialect is HF or (self.path.is_dir() and not self.architecture)):
            if self.dialect is not HF:
                hint = "another library's: delete or replace it, or say architecture="
                raise ValueError(
                    f"{self.weights_path} is a checkpoint of {self.dialect.library}, and the config.json beside it is {hint}"
                )
            if self.architecture:
                hint = "architecture= is for files that do not say what they are; leave it out"
                raise ValueError(f"{self.path} is described by its own configuration: {hint}")
            return None
        if self.dialect is HF and not self.architecture:
            return None
        self.config = None
        where, fields, processor = self.path, dict[str, Any](), None
        if self_said and described is not None:
            if self.dialect is not TIMM:
                library = self.dialect.library
                raise ValueError(f"{self.weights_path} is a checkpoint of {library}, but the config.json beside it is timm's")
            return foreign_of_timm(where, described, self.architecture, self.shapes)
        if isinstance(self._weights, KerasFile):
            fields, processor = _said_by_keras(self._weights)
        return Foreign(self.dialect, where, self.architecture, self.shapes, fields, processor)

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
        self.shapes = {name: self._shape(name) for name in self._names}

    def read(self, name: str) -> np.ndarray:
        numbers, axes = self._weights.read(self._names[name]), self.dialect.transposition(name)
        return numbers.transpose(axes) if axes and len(axes) == numbers.ndim else numbers

    def describe(self, name: str) -> str:
        """A tensor under the name that it has in the file, and the file."""
        return f"{self._names[name]} in {self.weights_path}"

    def close(self) -> None:
        self._weights.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


# -- saving -----------------------------------------------------------------------------------------------------------


def save_model(model: Any, folder: str | os.PathLike) -> None:
    """Write model.safetensors, config.json and, where it is known, preprocessor_config.json, all of one save."""
    from safetensors.numpy import save

    folder, (config, processor) = Path(folder), model.described()
    config.pop("transformers_version", None)  # of who wrote the file that this model came from
    said = json_text(config) + json_text(processor or {}) + tensors_sha256(model.state_dict())
    save_id = {
        SAVE_ID: hashlib.sha256(said.encode()).hexdigest()[:32]
    }  # of what is saved, so that the same makes the same files
    # All texts before anything is written: what JSON cannot hold is an error.
    texts = {"preprocessor_config.json": json_text(processor | save_id)} if processor else {}
    texts["config.json"] = json_text(config | save_id)
    tensors = {name: np.asarray(array, order="C") for name, array in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder), contextlib.ExitStack() as files:
        # All are on the disk before the first is renamed; the stack renames them last to first: config.json, then the others.
        temporary = files.enter_context(replacing(folder / "model.safetensors"))
        temporary.write_bytes(_in_order(save(tensors, metadata={"format": "pt"} | save_id)))  # transformers insists on "pt"
        sync(temporary)
        if processor is None:
            files.push(lambda kind, *_: _remove_stale_processor(folder) if kind is None else None)
        for name, text in texts.items():
            temporary = files.enter_context(replacing(folder / name))
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)


def _in_order(data: bytes) -> bytes:
    """A safetensors file whose metadata is sorted: the library writes it in an order that differs from call to call."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    return data[:8] + text + data[8 + length :] if len(text) == length else data


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


# -- the files beside the weights -------------------------------------------------------------------------------------


def read_config(path: str | os.PathLike, architecture: str | None = None) -> dict[str, Any] | Foreign:
    """The configuration of a folder, of an .h5 or .pth file, or in a .json file; or what is known of a foreign network."""
    return _description(Path(path), 0, "config.json", architecture)


def read_processor_config(path: str | os.PathLike, architecture: str | None = None) -> dict[str, Any] | Foreign:
    """The image processor's configuration, found in the same places; or what is known of the network whose it is."""
    return _description(Path(path), 1, "preprocessor_config.json", architecture)


def _description(path: Path, which: int, name: str, architecture: str | None) -> dict[str, Any] | Foreign:
    found, config = None, None
    if path.suffix == ".json":
        found = config = read_json(path)
    elif path.is_dir():
        found, config = _descriptions(path)[which], _descriptions(path)[0]
    if found is None and config is not None and is_timms(config):
        found = config
    if found is None and (not path.is_dir() or any((path / file).is_file() for file in WEIGHT_FILES)):
        with Checkpoint(path, architecture) as checkpoint:
            found = (checkpoint.config, checkpoint.image_processor)[which]
            if found is None and checkpoint.foreign:
                return checkpoint.foreign
    if found is None:
        raise FileNotFoundError(f"{path} has no {name}")
    found.pop(SAVE_ID, None)
    return foreign_of_timm(path, found, architecture) if is_timms(found) else found


def is_timms(config: Mapping[str, Any] | None) -> bool:
    """Whether a config.json is timm's, which names an architecture; in Hugging Face's, nothing of it would be read."""
    return config is not None and "architecture" in config and "model_type" not in config


def foreign_of_timm(
    path: Path, config: dict[str, Any], architecture: str | None = None, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Foreign:
    """A network that a config.json of timm describes. Raises ValueError where the caller says another name than that."""
    with naming(path):
        own, fields, processor = timm.described(config)
        if architecture is not None and architecture.partition(".")[0] != own.partition(".")[0]:
            raise ValueError(f"its config.json says architecture {own!r:.80}, and not {architecture!r:.80}")
    return Foreign(TIMM, path, own, shapes or {}, fields, processor)


def _said_by_keras(file: KerasFile) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What Keras' model itself says: for the configuration, its input's size; for the image processor, what its layers do."""
    size, statistics = file.input_size(), file.preprocessing()
    if size is None and not any(name.startswith("predictions.") for name in file.shapes):
        size = (
            None,
            None,
        )  # weights alone, without a classifier: Keras builds such a model for any size, if it is not told one
    fields: dict[str, Any] = {} if size is None else {"input_size": size}
    if statistics is None:
        return fields, None
    return fields, {"do_rescale": False, "image_mean": statistics[0], "image_std": statistics[1], "include_top": False}


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
