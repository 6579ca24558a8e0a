"""Record what every module of a network gives out, and keep it in files that any language can read.

    with effnet_np.Trace(model) as trace:
        model(pixel_values)
    trace["efficientnet.encoder.blocks.3.expansion.expand_bn"]  # (N, C, H, W)
    trace.save("golden.h5")

Names are PyTorch's. A module that gives several arrays has an entry for each field: "efficientnet.pooler_output", "logits".
The order is the order in which modules finish, so a layer comes before the block it is in, and the first wrong entry is the
first wrong layer. The network's own input comes first, as "pixel_values".

A file is `.h5`, `.npz`, or a folder of `.npy`, `.txt` or raw `.bin` files. Each holds an index, one array a line, made for
`fscanf`: kind (output, input, weight), name, dtype, layout, number of dimensions, the dimensions, and where the numbers lie.
Numbers are little-endian and in C order. In a folder the index is `index.txt`, written last: a folder without it is not whole.
"""

from __future__ import annotations

import difflib
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from effnet_np.module import Hook, Module
from effnet_np.outputs import read_only

INPUT = "pixel_values"  # the entry of the network's own input
ROOT = "output"  # the entry of a traced module that gives one array and has no name, being the outermost
FIELDS = ("logits", "loss", "last_hidden_state", "pooler_output", "hidden_states.0")
FORMATS = ("h5", "npz", "npy", "txt", "bin")
LAYOUTS = ("NCHW", "NHWC")
KINDS = ("output", "input", "weight")
DTYPES = ("float16", "float32", "float64", "int64", "int32", "uint8")  # .h5 files hold the first four
INDEX_HEADER = "# effnet_np trace 1: kind name dtype layout dimensions shape file"
UNORDERED = "# effnet_np arrays without an index"
MAX_INDEX = 64 << 20  # bytes
WEIGHT_LAYOUTS = {1: "O", 2: "OI", 4: "OIHW"}


class Trace(Mapping[str, np.ndarray]):
    """Record a forward: {name: output} in call order, read-only; `with Trace(model) as trace: model(pixel_values)`.

    layers: a glob over names, or several ("*.blocks.3.*"); only what matches is kept, and only that takes memory.
    inputs: keep each of those layers' inputs too, in `trace.inputs`: {name: (array, ...)}.
    weights: keep those layers' parameters and buffers, in `trace.weights`: {state-dict key: array}.
    A trace holds the last forward: calling the model again starts anew. Raises TypeError or ValueError.
    """

    def __init__(
        self, model: Module | None = None, layers: str | Sequence[str] = "*", inputs: bool = False, weights: bool = False
    ):
        if model is not None and not isinstance(model, Module):
            raise TypeError(f"a model of effnet_np can be traced, made of its modules; got {type(model).__name__}")
        self.model, self.layers = model, (layers,) if isinstance(layers, str) else tuple(layers)
        self.inputs: dict[str, tuple[np.ndarray, ...]] = {}
        self.weights: dict[str, np.ndarray] = {}
        self._outputs: dict[str, np.ndarray] = {}
        self._keep_inputs, self._keep_weights = inputs, weights
        self._hooks: list[Hook] = []
        self._first: Any = None  # the module that finishes first in a forward
        self.ordered = True  # in call order, which files of other programs do not tell
        if model is not None:
            self.refuse_unknown(name for name, _ in model.named_modules())

    # -- recording ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Trace:
        if self.model is None or self._hooks:
            raise RuntimeError("a trace records once at a time, and needs the model that it was made with: Trace(model)")
        for name, module in self.model.named_modules():
            self._hooks.append(module.register_forward_hook(partial(self.record, name)))
        if self._keep_weights:
            self.keep_weights(self.model.state_dict())
        return self

    def __exit__(self, *exception: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def record(self, name: str, module: Any, inputs: tuple, output: Any, convert: Callable = read_only) -> None:
        """What a forward hook calls. `convert` makes an array, a tuple or a mapping of arrays of what a module took or gave."""
        if self._first is None or module is self._first:  # a forward begins
            self._first = module
            self._outputs.clear()
            self.inputs.clear()
            if self.wants(INPUT) and inputs:
                self._outputs[INPUT] = convert(inputs[0])
        if not any(self.wants(entry) for entry in _possible_entries(name)):
            return
        recorded = dict(flatten(name, convert(output)))
        self._outputs.update({entry: array for entry, array in recorded.items() if self.wants(entry)})
        if self._keep_inputs and name and any(self.wants(entry) for entry in recorded):
            self.inputs[name] = tuple(array for array in map(convert, inputs) if isinstance(array, np.ndarray))

    def keep_weights(self, state: Mapping[str, np.ndarray]) -> None:
        """Of a state dict, those tensors whose layers are wanted."""
        self.weights = {key: read_only(array) for key, array in state.items() if self.wants(key.rpartition(".")[0])}

    def wants(self, entry: str) -> bool:
        return any(fnmatchcase(entry, pattern) for pattern in self.layers)

    def refuse_unknown(self, modules: Any) -> None:
        """ValueError for a glob that no name of these modules can match: a trace of nothing helps nobody."""
        names = [INPUT, *modules]
        possible = [entry for name in names for entry in _possible_entries(name)]
        for pattern in self.layers:
            if not any(fnmatchcase(entry, pattern) for entry in possible):
                raise ValueError(f"no layer of this model matches {pattern!r}{_close(pattern, names)}")

    # -- reading --------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._outputs:
            raise KeyError(f"this trace has no {name!r}{_close(name, self._outputs)}")
        return self._outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __contains__(self, name: object) -> bool:
        return name in self._outputs

    def __repr__(self) -> str:
        size = sum(array.nbytes for _, _, array in self._entries())
        return f"<Trace of {len(self)} outputs, {len(self.inputs)} inputs, {len(self.weights)} weights: {size / 1e6:.1f} MB>"

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike, format: str | None = None, layout: str = "NCHW") -> None:
        """Write everything that was recorded to `path`.

        format: "h5" or "npz" (one file), "npy", "txt" or "bin" (a folder, which must be new or empty); None goes by the
        ending of `path`, and means "npy" where that says nothing. layout: "NCHW" or "NHWC" for outputs and inputs of four
        dimensions; weights stay as PyTorch has them (OIHW). Raises ValueError, or FileExistsError for a folder in use.
        """
        path = Path(path)
        format = _format_of(path, format)
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        if not len(self):
            raise ValueError("this trace is empty: call the model inside `with Trace(model) as trace:` before saving it")
        arrays: dict[str, np.ndarray] = {}
        lines = [INDEX_HEADER]
        for kind, name, array in self._entries():
            if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
                raise ValueError(f"{name!r} cannot be the name of a file: only letters, digits, '_', '-' and '.' can")
            dtypes = DTYPES[:4] if format == "h5" else DTYPES
            if array.dtype.name not in dtypes:
                raise ValueError(f"{name} has dtype {array.dtype}; a trace in format {format!r} holds {', '.join(dtypes)}")
            label = {2: "NC", 4: layout}.get(array.ndim, "-") if kind != "weight" else WEIGHT_LAYOUTS.get(array.ndim, "-")
            array = array.transpose(0, 2, 3, 1) if label == "NHWC" else array
            place = f"{kind}/{name}" + ("" if format in ("h5", "npz") else f".{format}")
            arrays[place] = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            shape = " ".join(map(str, (array.ndim, *array.shape)))
            lines.append(f"{kind} {name} {array.dtype.name} {label} {shape} {place}")
        index = "\n".join(lines) + "\n"
        if format == "h5":
            from effnet_np import checkpoint

            checkpoint.save_arrays_h5(path, arrays, index)
        elif format == "npz":
            from effnet_np import checkpoint

            arrays["index"] = np.frombuffer(index.encode(), np.uint8)
            with checkpoint.replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        else:
            _save_folder(path, arrays, index, format)

    def _entries(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """(kind, name, array) of everything; the inputs of a layer are numbered, "name.0", "name.1"."""
        yield from (("output", name, array) for name, array in self._outputs.items())
        for name, arrays in self.inputs.items():
            yield from (("input", f"{name}.{number}", array) for number, array in enumerate(arrays))
        yield from (("weight", key, array) for key, array in self.weights.items())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Trace:
        """Read what `save` wrote (or another program in that form), back in NCHW, into memory.

        A folder of `.npy` files without an index is read as well, each file an output of its name, in the order of names.
        Raises FileNotFoundError, or ValueError for what is no trace, is damaged, or does not agree with its index.
        """
        path = Path(path)
        if path.is_dir():
            index, read = _open_folder(path)
        elif not path.exists():
            raise FileNotFoundError(f"there is no trace {path}")
        elif path.suffix in (".h5", ".hdf5"):
            from effnet_np import checkpoint

            arrays, index = checkpoint.load_arrays_h5(path)
            read = _reader(arrays, path)
        elif path.suffix == ".npz":
            index, read = _open_npz(path)
        else:
            raise ValueError(f"{path} is no trace: it must end in .h5 or .npz, or be a folder")
        trace = cls()
        trace.ordered = index.startswith(INDEX_HEADER.split(":")[0])
        for kind, name, dtype, layout, shape, place in _parse_index(index, path):
            array = read(place, dtype, shape)
            if array.shape != shape or array.dtype.name != dtype:
                raise ValueError(f"{path}: {place} is {array.dtype} {array.shape}, but its index says {dtype} {shape}")
            array = read_only(array.transpose(0, 3, 1, 2) if layout == "NHWC" and len(shape) == 4 else array)
            if kind == "output":
                trace._outputs[name] = array
            elif kind == "input":
                layer = name.rpartition(".")[0]
                trace.inputs[layer] = (*trace.inputs.get(layer, ()), array)
            else:
                trace.weights[name] = array
        return trace


def flatten(name: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """What a module gave, as (entry, array): the array itself, or one entry a field of a ModelOutput or an item of a tuple."""
    prefix = f"{name}." if name else ""
    if isinstance(value, (np.ndarray, np.generic)):
        yield name or ROOT, read_only(np.asarray(value))
    elif hasattr(value, "items"):
        for field, item in value.items():
            yield from flatten(prefix + field, item)
    elif isinstance(value, (tuple, list)):
        for number, item in enumerate(value):
            yield from flatten(f"{prefix}{number}", item)


def _possible_entries(name: str) -> list[str]:
    """The entries that a module of this name may have."""
    prefix = f"{name}." if name else ""
    return [name or ROOT, *(prefix + field for field in FIELDS), prefix + "0"]


def _close(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), 3, 0.5)
    return f"; is one of these meant: {', '.join(close)}?" if close else ""


# -- reading and writing ----------------------------------------------------------------------------------------------


def _format_of(path: Path, format: str | None) -> str:
    by_ending = {".h5": "h5", ".hdf5": "h5", ".npz": "npz"}.get(path.suffix)
    format = format or by_ending or "npy"
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format not in ("h5", "npz") and by_ending:
        raise ValueError(f"format {format!r} is a folder of files, and {path.name} names one file: give a folder's name")
    if format in ("h5", "npz") and by_ending != format:
        raise ValueError(f"a trace in format {format!r} must have a name that ends in .{format}, got {path.name}")
    return format


def _save_folder(path: Path, arrays: Mapping[str, np.ndarray], index: str, format: str) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder: remove it, or choose another name")
    for place, array in arrays.items():
        file = path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        if format == "npy":
            np.save(file, array)
        elif format == "bin":
            array.tofile(file)
        else:  # one row of the last axis a line; nine digits give every float32 back, seventeen every float64
            digits = "%d" if array.dtype.kind in "iu" else "%.17g" if array.dtype == np.float64 else "%.9g"
            np.savetxt(file, array.reshape(-1, array.shape[-1] if array.ndim else 1), digits)
    (path / "index.txt").write_text(index, encoding="utf-8")


def _open_folder(path: Path) -> tuple[str, Callable]:
    index = path / "index.txt"
    if index.is_file():
        if index.stat().st_size > MAX_INDEX:
            raise ValueError(f"{index} is larger than {MAX_INDEX} bytes, too large for an index")
        return index.read_text(encoding="utf-8", errors="replace"), partial(_read_file, path)
    arrays = {
        file.stem: _checked(lambda file=file: np.load(file, allow_pickle=False), file) for file in sorted(path.glob("*.npy"))
    }
    if not arrays:
        hint = "a dump of your own needs one like that of `effnet-np trace` (copy it, if your files have the same names)"
        raise ValueError(f"{path} holds neither index.txt nor .npy files: {hint}")
    return _index_of(arrays), _reader(arrays, path)


def _open_npz(path: Path) -> tuple[str, Callable]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a readable .npz file")

    def load() -> dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    arrays = _checked(load, path)
    if "index" in arrays:
        return arrays["index"].tobytes().decode("utf-8", "replace"), _reader(arrays, path)
    return _index_of(arrays), _reader(arrays, path)


def _index_of(arrays: Mapping[str, np.ndarray]) -> str:
    """For another program's arrays, which have no index: each is an output of its name, in no known order."""
    rows = ((name, a.dtype.name, " ".join(map(str, (a.ndim, *a.shape)))) for name, a in arrays.items())
    return "\n".join([UNORDERED, *(f"output {name} {dtype} - {shape} {name}" for name, dtype, shape in rows)])


def _reader(arrays: Mapping[str, np.ndarray], path: Path) -> Callable:
    def read(place: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        if place not in arrays:
            raise ValueError(f"{path}: the index names {place}, which is not there")
        return arrays[place]

    return read


def _read_file(folder: Path, place: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array of a folder. Its size is compared with the index before it is read."""
    file = folder / place
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder}: the index names {place}, which lies outside the folder")
    if not file.is_file():
        raise ValueError(f"{folder}: the index names {place}, which is not there")
    count = int(np.prod(shape, dtype=object))
    size = file.stat().st_size
    little = np.dtype(dtype).newbyteorder("<")
    if file.suffix == ".bin":
        if size != count * little.itemsize:
            raise ValueError(f"{file} has {size} bytes, but {dtype} {shape} needs {count * little.itemsize}")
        return np.fromfile(file, little).reshape(shape)
    if file.suffix == ".npy":
        return _checked(lambda: np.load(file, allow_pickle=False), file)
    if file.suffix == ".txt":
        if size and not file.read_bytes().endswith(b"\n"):
            raise ValueError(f"{file} is cut off: its last line has no end")
        numbers = _checked(lambda: np.loadtxt(file, little, ndmin=1).reshape(-1), file)
        if len(numbers) != count:
            raise ValueError(f"{file} holds {len(numbers)} numbers, but shape {shape} needs {count}")
        return numbers.reshape(shape)
    raise ValueError(f"{folder}: {place} must end in .npy, .txt or .bin")


def _checked(load: Callable, path: Path) -> Any:
    try:
        return load()
    except (ValueError, EOFError, MemoryError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as arrays: {error}") from error


def _parse_index(text: str, path: Path) -> Iterator[tuple[str, str, str, str, tuple[int, ...], str]]:
    """The lines of an index as (kind, name, dtype, layout, shape, place)."""
    if not text.startswith((INDEX_HEADER.split(":")[0], UNORDERED)):
        raise ValueError(f"the index of {path} must begin with {INDEX_HEADER.split(':')[0]!r}")
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#") or not line.strip():
            continue
        words = line.split()
        numbers = words[4:-1]
        if (
            len(words) < 6
            or not all(word.isascii() and word.isdigit() for word in numbers)
            or int(numbers[0]) != len(numbers) - 1
        ):
            raise ValueError(f"line {number} of the index of {path} is not `{INDEX_HEADER.partition(': ')[2]}`: {line[:100]!r}")
        kind, name, dtype, layout = words[:4]
        if kind not in KINDS or dtype not in DTYPES:
            raise ValueError(f"line {number} of the index of {path}: {kind!r} is not in {KINDS}, or {dtype!r} not in {DTYPES}")
        yield kind, name, dtype, layout, tuple(map(int, numbers[1:])), words[-1]
