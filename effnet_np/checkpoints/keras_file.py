"""Keras' files: `.weights.h5`, whole models as `.h5` and `.keras`, each brought to the names `layer.variable`.

A `.keras` file is a zip with the model's configuration (config.json) and its weights (model.weights.h5). Weights are HDF5, in
one of two trees. Keras 3: `layers/<class>_<number>/vars/<number>`, the layer's name being an attribute of `vars`. Whole `.h5`,
and all of Keras 2: `<layer>/<layer>/<variable>`, in whole models under `model_weights`, the configuration being an attribute.

What Keras does with pixels is part of its model: layers before the first convolution, which `preprocessing` adds up.
Source: Keras 3.15, saving_lib.py and legacy_h5_format.py.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from effnet_np.checkpoints.files import MAX_JSON, naming, open_file, parse_json
from effnet_np.checkpoints.h5_file import H5File
from effnet_np.checkpoints.torch_file import PatientFile

MAX_BRACKETS = 200_000  # objects and lists of a configuration; V2L's has 32,000
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
VARIABLES = {  # of Keras 3, by the layer's class, in the order of their numbers
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": NORM,
    "normalization": ("mean", "variance", "count"),
}
LEFT_OUT = ("optimizer", "optimizer_weights", "top_level_model_weights", "_layer_checkpoint_dependencies")
PIXELS = ("Rescaling", "Normalization")  # the classes of layers that come before the first convolution
RESCALED = 1 / 255


class KerasFile:
    """Weights of an open file: `shapes` by "layer.variable", `read(name)`, and what the file says of pixels and input."""

    def __init__(self, weights: H5File, config: dict[str, Any] | None = None):
        self.path, self._weights, self.numbers = weights.path, weights, weights.numbers
        try:
            text = weights.attributes.get("model_config")
            if config is None and isinstance(text, str):
                config = parse_json(text, "its model_config", MAX_BRACKETS)
            self.layers = [] if config is None else _layers(config)
            self._names = self._named()
        except ValueError as error:
            self.close()
            raise ValueError(f"{self.path} is not a readable checkpoint of Keras: {error!s:.500}") from error
        # What pixels are normalised with is no part of the network.
        self.statistics = {name: own for name, own in self._names.items() if re.match(r"normalization(_\d+)?\.", name)}
        self._names = {name: own for name, own in self._names.items() if name not in self.statistics}
        self.shapes = {name: weights.shapes[own] for name, own in self._names.items()}

    def read(self, name: str) -> np.ndarray:
        return self._weights.read(self._names[name])

    def close(self) -> None:
        self._weights.close()

    def _named(self) -> dict[str, str]:
        """ "layer.variable" -> the name in the HDF5 file."""
        names: dict[str, str] = {}
        numbered = dict(self._numbered_layers())
        for own in self._weights.shapes:
            parts = own.split(".")
            if parts[0] in LEFT_OUT:
                continue
            if parts[-2:-1] == ["vars"] and len(parts) > 2:
                name = self._by_number(own, parts[-3], parts[-1], numbered)
            elif len(parts) > 1:
                variable = parts[-1].removesuffix(":0")
                name = f"{parts[-2]}.{'kernel' if variable == 'depthwise_kernel' else variable}"
            else:
                name = own
            if name in names:
                raise ValueError(f"it holds {name:.80} twice, as {names[name]:.80} and as {own:.80}")
            names[name] = own
        return names

    def _by_number(self, own: str, group: str, number: str, numbered: Mapping[str, str]) -> str:
        """The name of what the file has as "layers.conv2d_3.vars.0"; of a layer that no EfficientNet has, that name itself."""
        kind = re.sub(r"_\d+$", "", group)
        if kind not in VARIABLES or not number.isdecimal() or int(number) >= len(VARIABLES[kind]):
            return own
        layer = self._weights.attributes_of(own.rpartition(".")[0]).get("name") or numbered.get(group)
        if not isinstance(layer, str):
            hint = "save the whole model as .keras, which names its layers, or the weights with a newer Keras 3"
            raise ValueError(f"{own:.80} does not say which layer it is of: {hint}")
        return f"{'normalization' if kind == 'normalization' else layer}.{VARIABLES[kind][int(number)]}"

    def _numbered_layers(self) -> Iterator[tuple[str, str]]:
        """("conv2d_3", the layer's name) for each layer of the configuration: classes are counted in its order."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            kind = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", layer["class_name"]).lower()
            counts[kind] = counts.get(kind, -1) + 1
            yield f"{kind}_{counts[kind]}" if counts[kind] else kind, layer["name"]

    # -- what comes before the network -----------------------------------------------------------------------------

    def input_size(self) -> tuple[int | None, int | None] | None:
        """(height, width) that the model was built for, None for one that may be any; None where the file does not say."""
        for layer in self.layers:
            if layer["class_name"] == "InputLayer":
                shape = layer["config"].get("batch_shape") or layer["config"].get("batch_input_shape")
                if isinstance(shape, list) and len(shape) == 4:
                    return _side(shape[1]), _side(shape[2])
        return None

    def preprocessing(self) -> tuple[list[float], list[float]] | None:
        """(mean, std) of pixels from 0 to 255, a number a channel, that do what the model's own layers do with them.

        None where the file does not say. Raises ValueError for numbers that cannot be.
        """
        with naming(self.path):
            return self._preprocessing()

    def _preprocessing(self) -> tuple[list[float], list[float]] | None:
        steps = self._steps()
        if steps is None:
            return None
        scale, offset = np.ones(3), np.zeros(3)
        for factor, shift in steps:
            scale, offset = scale * factor, offset * factor + shift
        with np.errstate(all="ignore"):
            mean, std = -offset / scale, 1 / scale
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise ValueError("its layers Rescaling and Normalization have numbers that cannot be")
        return mean.tolist(), std.tolist()

    def _steps(self) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """(factor, shift) of each layer that changes pixels, in order."""
        if not self.layers:
            return self._steps_of_weights()
        steps = []
        for layer in self.layers:
            fields = layer["config"]
            if layer["class_name"] == "Rescaling":
                steps.append((_three(fields.get("scale")), _three(fields.get("offset", 0.0))))
            elif layer["class_name"] == "Normalization":
                stored = self._statistics()
                steps.append(_normalization(*(stored or (fields.get("mean"), fields.get("variance")))))
            elif layer["class_name"] == "Conv2D":
                break
        return steps

    def _steps_of_weights(self) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """The file has weights alone: B0 to B7's have the statistics; published ones divide by the root of std once more."""
        stored = self._statistics()
        if stored is None:
            return None
        steps = [(_three(RESCALED), _three(0.0)), _normalization(*stored)]
        published = np.allclose(stored[1], (0.229, 0.224, 0.225), rtol=1e-4)  # variance: ImageNet's std, by mistake
        if published:
            steps.append((1 / np.sqrt(np.asarray(stored[1], np.float64)), _three(0.0)))
        return steps

    def _statistics(self) -> tuple[Any, Any] | None:
        found = [
            next((own for name, own in self.statistics.items() if name.endswith(end)), "") for end in (".mean", ".variance")
        ]
        if not all(found):
            return None
        if any(math.prod(self._weights.shapes[own]) > 3 for own in found):
            raise ValueError("its layer Normalization is not one of 3 channels")
        return self._weights.read(found[0]).reshape(-1), self._weights.read(found[1]).reshape(-1)


def _layers(config: Any) -> list[dict[str, Any]]:
    """The layers of a model's configuration, in order: {"class_name", "name", "config"}."""
    layers = config.get("config") if isinstance(config, dict) else None
    layers = layers.get("layers") if isinstance(layers, dict) else None
    if not isinstance(layers, list):
        raise ValueError("its configuration lists no layers")
    found = []
    for layer in layers:
        fields = layer.get("config") if isinstance(layer, dict) else None
        name = (layer.get("name") or fields.get("name")) if isinstance(fields, dict) else None
        if not isinstance(name, str) or not isinstance(layer.get("class_name"), str):
            raise ValueError("its configuration has a layer without a class or a name")
        found.append({"class_name": layer["class_name"], "name": name, "config": fields})
    return found


def _normalization(mean: Any, variance: Any) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(all="ignore"):
        std = np.maximum(np.sqrt(_three(variance)), 1e-7)  # Keras' epsilon
    return 1 / std, -_three(mean) / std


def _three(value: Any) -> np.ndarray:
    """A number, or one a channel -> three."""
    if isinstance(value, (list, np.ndarray)) and len(value) not in (1, 3):
        raise ValueError(f"its layers Rescaling or Normalization have {len(value)} numbers, where 1 or 3 are expected")
    try:
        array = np.asarray(value, np.float64)
        return np.broadcast_to(array.reshape(-1), 3).copy()
    except (TypeError, ValueError):
        raise ValueError("its layers Rescaling or Normalization have something else than numbers") from None


def _side(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 16 else None


# -- the zip ----------------------------------------------------------------------------------------------------------


def open_keras(path: str | os.PathLike, file: BinaryIO | None = None) -> KerasFile:
    """A `.keras` file. Its entries are stored, not compressed, so that the weights are read where they lie."""
    path = Path(path)
    opened: Any = open_file(path) if file is None else file
    try:
        patient = PatientFile(opened.fileno(), closefd=False)
        archive = zipfile.ZipFile(patient)
        if len(archive.namelist()) > 100 or len(set(archive.namelist())) != len(archive.namelist()):
            raise ValueError("it has more than 100 entries, or two of one name")
        described, weights = (_Part(opened, *_place(archive, name)) for name in (CONFIG, WEIGHTS))
        config = parse_json(described.read(MAX_JSON + 1), "its config.json", MAX_BRACKETS)
        for name, part in ((CONFIG, described), (WEIGHTS, weights)):
            part.check(name, archive.getinfo(name).CRC)
    except Exception as error:  # a damaged zip is a BadZipFile, RuntimeError, NotImplementedError, OSError, ...
        opened.close()
        raise ValueError(f"{path} is not a readable .keras file: {error!s:.500}") from error
    return KerasFile(H5File(path, file=weights), config)  # type: ignore[arg-type]


def _place(archive: zipfile.ZipFile, name: str) -> tuple[int, int]:
    """(where an entry's bytes start, how many they are)."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise ValueError(f"it holds no {name}") from None
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise ValueError(f"its entry {name} is compressed or encrypted, which Keras never does")
    file: Any = archive.fp
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) != 30 or not header.startswith(b"PK\3\4"):
        raise ValueError(f"its entry {name} is not where the list of entries says")
    start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if start + info.file_size > os.fstat(file.fileno()).st_size:
        raise ValueError(f"its entry {name} ends after the file does")
    return start, info.file_size


class _Part:
    """A run of a file's bytes as a file of its own."""

    def __init__(self, file: Any, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = memoryview(buffer).cast("B")
        count = max(0, min(len(data), self._size - self._at))
        self._file.seek(self._start + self._at)
        got = self._file.readinto(data[:count]) if count else 0
        self._at += got
        return got

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        data = bytearray(left if size < 0 else min(size, left))
        return bytes(data[: self.readinto(data)])

    def check(self, name: str, checksum: int) -> None:
        """Raise ValueError where the bytes do not have the checksum that the zip has of them."""
        found, buffer = 0, bytearray(1 << 20)
        self.seek(0)
        while count := self.readinto(buffer):
            found = zlib.crc32(memoryview(buffer)[:count], found)
        if found != checksum:
            raise ValueError(f"its {name} does not have the checksum that it was stored with: it is damaged")

    def close(self) -> None:
        self._file.close()
