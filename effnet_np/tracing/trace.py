"""Record what every module of a network gives out, and keep it in files that any language can read.

    with effnet_np.Trace(model) as trace:
        model(pixel_values)
    trace["efficientnet.encoder.blocks.3.expansion.expand_bn"]  # (N, C, H, W)
    trace.save("golden.h5")

Names are PyTorch's. A module that gives several arrays has an entry for each field: "efficientnet.pooler_output", "logits".
The order is the order in which modules finish, so a layer comes before the block it is in, and the first wrong entry is the
first wrong layer. The network's own input comes first, as "pixel_values".

trace_files.py has the files. A folder also says what a port needs to know of each layer that ran: `layers.txt`, a line a layer,
made for `fscanf`, and the same in `config.json` (see `Layer`).
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from effnet_np import ops
from effnet_np.layers import Activation, BatchNorm2d, Conv2d, Dropout, GlobalPool, Linear, ZeroPad2d
from effnet_np.model import EfficientNetFinalBlockLayer, EfficientNetSqueezeExciteLayer
from effnet_np.module import Hook, Module
from effnet_np.outputs import read_only
from effnet_np.tracing.trace_files import LAYOUTS, Entry, Lazy, StoredTrace, describe_array, format_of, save_trace

INPUT = "pixel_values"  # the entry of the network's own input
ROOT = "output"  # the entry of a traced module that gives one array and has no name, being the outermost
FIELDS = ("logits", "loss", "last_hidden_state", "pooler_output", "hidden_states.0")


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
        self.inputs: Mapping[str, tuple[np.ndarray, ...]] = {}
        self.weights: Mapping[str, np.ndarray] = {}
        self.gradients: Mapping[str, np.ndarray] = {}  # of outputs and parameters, by their names, the last layer's first
        self.settings: dict[str, Layer] = {}  # of each layer of ours that ran, in call order
        self._outputs: Mapping[str, np.ndarray] = {}
        self._keep_inputs, self._keep_weights = inputs, weights
        self._hooks: list[Hook] = []
        self.ordered = True  # in call order, which files of other programs do not tell
        if model is not None:
            self.refuse_unknown(name for name, _ in model.named_modules())

    # -- recording ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Trace:
        if self.model is None or self._hooks:
            raise RuntimeError("a trace records once at a time, and needs the model that it was made with: Trace(model)")
        self._hooks.append(self.model.register_forward_pre_hook(lambda _, args, kwargs: self.begin(args, kwargs)))
        for name, module in self.model.named_modules():
            self._hooks.append(module.register_forward_hook(partial(self.record, name)))
        if self._keep_weights:
            self.keep_weights(self.model.state_dict())
        return self

    def __exit__(self, *exception: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def begin(self, args: tuple, kwargs: Mapping[str, Any], convert: Callable = read_only) -> None:
        """A forward begins: what a forward pre-hook of the outermost module calls. What the last one left is forgotten."""
        self._outputs, self.inputs, self.settings = {}, {}, {}
        given = next(iter((*args, *kwargs.values())), None)
        if self.wants(INPUT) and given is not None:
            self._outputs[INPUT] = convert(given)

    def record(self, name: str, module: Any, inputs: tuple, output: Any, convert: Callable = read_only) -> None:
        """What a forward hook calls. `convert` makes an array, a tuple or a mapping of arrays of what a module took or gave."""
        assert isinstance(self._outputs, dict)
        assert isinstance(self.inputs, dict)
        if not any(self.wants(entry) for entry in _possible_entries(name)):
            return
        recorded = dict(flatten(name, convert(output)))
        self._outputs.update({entry: array for entry, array in recorded.items() if self.wants(entry)})
        if name and any(self.wants(entry) for entry in recorded):
            if self._keep_inputs:
                self.inputs[name] = tuple(array for array in map(convert, inputs) if isinstance(array, np.ndarray))
            if isinstance(module, Module):
                self.settings[name] = describe(name, module, inputs)

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
        counts = f"{len(self)} outputs, {len(self.inputs)} inputs, {len(self.weights)} weights"
        return f"<Trace of {counts}: {self.nbytes / 1e6:.1f} MB>"

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers; those of a trace from a file are in memory only while they are used."""
        parts = (self._outputs, self.inputs, self.weights, self.gradients)
        return sum(part.nbytes if isinstance(part, Lazy) else _nbytes(tuple(part.values())) for part in parts)

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike, format: str | None = None, layout: str = "NCHW") -> None:
        """Write everything that was recorded to `path`, whole or not at all.

        format: "h5" or "npz" (one file), "npy", "txt" or "bin" (a folder, which must be new or empty); None goes by the
        ending of `path`, and means "npy" where that says nothing. layout: "NCHW" or "NHWC" for outputs and inputs of four
        dimensions; weights stay as PyTorch has them (OIHW). Raises ValueError, OSError, or FileExistsError for a folder in use.
        """
        path = Path(path)
        format = format_of(path, format)
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        if not len(self):
            raise ValueError("this trace is empty: call the model inside `with Trace(model) as trace:` before saving it")
        arrays: dict[tuple[str, str], Callable[[], np.ndarray]] = {}
        for name in self:
            arrays["output", name] = partial(self.__getitem__, name)
        for layer, inputs in self.inputs.items():
            for number in range(len(inputs)):
                arrays["input", f"{layer}.{number}"] = lambda layer=layer, number=number: self.inputs[layer][number]  # type: ignore[misc]
        for key in self.weights:
            arrays["weight", key] = partial(self.weights.__getitem__, key)
        for name in self.gradients:
            arrays["gradient", name] = partial(self.gradients.__getitem__, name)
        entries = [describe_array(kind, name, read(), format, layout) for (kind, name), read in arrays.items()]
        save_trace(path, format, entries, lambda entry: arrays[entry.kind, entry.name](), self._documents())

    def _documents(self) -> dict[str, str]:
        """What a port needs to know beside the numbers, {name of the file: text}; nothing where no model of ours was traced."""
        if not self.settings:
            return {}
        rows = list(self.settings.values())
        header = f"# effnet_np layers 1: {' '.join(field.name for field in fields(Layer))}"
        notes = [f"# {line.strip()}".rstrip() for line in (Layer.__doc__ or "").splitlines()]
        documents = {"layers.txt": "\n".join([header, *notes, *map(str, rows)]) + "\n"}
        config, processor = getattr(self.model, "config", None), getattr(self.model, "image_processor", None)
        described = config.to_dict() if config is not None and isinstance(config.hidden_act, str) else {}
        documents["config.json"] = json.dumps(described | {"layers": [asdict(row) for row in rows]}, indent=1) + "\n"
        if processor is not None:
            documents["preprocessor_config.json"] = json.dumps(processor.to_dict(), indent=1) + "\n"
        return documents

    @classmethod
    def of(
        cls,
        outputs: Mapping[str, np.ndarray],
        inputs: Mapping[str, tuple[np.ndarray, ...]] | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> Trace:
        """A trace of arrays that are there already: {name: output} in call order, {name: inputs}, {state-dict key: weight}."""
        trace = cls()
        trace._outputs = {name: read_only(np.asarray(array)) for name, array in outputs.items()}
        trace.inputs, trace.weights = dict(inputs or {}), dict(weights or {})
        return trace

    @classmethod
    def load(cls, path: str | os.PathLike) -> Trace:
        """Open what `save` wrote (or another program in that form); an array is read, in NCHW, each time that it is asked for.

        A folder of `.npy` files or an `.npz` without an index is read as well, each array an output of its name, in no order.
        Raises FileNotFoundError, or ValueError for what is no trace, is damaged, or does not agree with its index: here where
        a size or a header says so, and where an array is read if only its numbers do.
        """
        path = Path(path)
        stored = StoredTrace(path)
        kinds: dict[str, list[Entry]] = {"output": [], "input": [], "weight": [], "gradient": []}
        for entry in stored.entries:
            kinds[entry.kind].append(entry)
        trace = cls()
        trace.ordered = stored.ordered
        trace._outputs = _lazy(stored, kinds["output"])
        trace.weights = _lazy(stored, kinds["weight"])
        trace.gradients = _lazy(stored, kinds["gradient"])
        layers: dict[str, dict[str, Entry]] = {}
        for entry in kinds["input"]:
            layer, _, number = entry.name.rpartition(".")
            layers.setdefault(layer, {})[number] = entry
        several = {}
        for layer, numbered in layers.items():
            if set(numbered) != {str(number) for number in range(len(numbered))}:
                raise ValueError(f"{path}: inputs must be numbered NAME.0, NAME.1 without a gap, got {sorted(numbered)[:5]}")
            ordered = [numbered[str(number)] for number in range(len(numbered))]
            several[layer] = lambda ordered=ordered: tuple(map(stored.read, ordered))
        trace.inputs = Lazy(several, sum(entry.nbytes for entry in kinds["input"]))
        return trace


def _lazy(stored: StoredTrace, entries: list[Entry]) -> Lazy:
    readers = {entry.name: partial(stored.read, entry) for entry in entries}
    return Lazy(readers, sum(entry.nbytes for entry in entries))


def _nbytes(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else sum(map(_nbytes, value))


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


# -- what a port needs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """What a layer does, beside its weights: a line of layers.txt, in the order of these fields.

    kind: "conv" (a cross-correlation; `groups` is 1 or, for a depthwise one, the number of channels; then the bias, if there is
    one), "batch_norm" ((x - running_mean) / sqrt(running_var + eps) * weight + bias), "linear", "pad" (zeros), "activation",
    "mean_pool" and "max_pool" (over each plane), "dropout" (nothing, in inference); "scale_channels": input .0 times the output
    of `act_expand` in it; "add": the output of `project_bn` in it (of `project_act`, where it has one) plus input .0;
    "module": nothing of its own, it ends with its last layer. A projection has two inputs, what the block was given (.0) and
    what the layer before it gave (.1); all other layers have one (.0). What a kind has no use for is 0, or "-".
    """

    name: str
    kind: str
    kernel: int = 0
    stride: int = 0
    pad_before: int | str = 0  # rows at the top and columns at the left, of zeros; "1,0" where they differ
    pad_after: int | str = 0  # rows at the bottom and columns at the right
    groups: int = 0
    eps: float = 0.0
    activation: str = "-"

    def __str__(self) -> str:
        return " ".join(map(str, astuple(self)))


def describe(name: str, module: Module, inputs: tuple) -> Layer:
    """The settings of a module of ours, which was given these inputs."""
    if isinstance(module, (Conv2d, ZeroPad2d)):
        top, bottom, left, right = module.padding or module.window.zeros(*inputs[0].shape[2:])
        before, after = (top, bottom) if (top, bottom) == (left, right) else (f"{top},{left}", f"{bottom},{right}")
        if isinstance(module, ZeroPad2d):
            return Layer(name, "pad", pad_before=before, pad_after=after)
        return Layer(name, "conv", module.weight.shape[2], module.stride, before, after, module.groups)
    if isinstance(module, BatchNorm2d):
        return Layer(name, "batch_norm", eps=float(module.eps))
    if isinstance(module, Activation):
        return Layer(name, "activation", activation=activation_name(module.function))
    if isinstance(module, GlobalPool):
        return Layer(name, "max_pool" if module.function is ops.global_max_pool else "mean_pool")
    if isinstance(module, EfficientNetFinalBlockLayer) and module.residual:
        return Layer(name, "add")
    kinds = {Linear: "linear", Dropout: "dropout", EfficientNetSqueezeExciteLayer: "scale_channels"}
    return Layer(name, kinds.get(type(module), "module"))


def enliven(model: Module, seed: int = 0) -> None:
    """Random weights with which activations keep their scale in every layer: for a golden network without a checkpoint.

    Fresh weights do not: with HF's initialisation the logits of B0 have a deviation of 3e-26, and whatever a port computes is
    right to any absolute tolerance. A residual branch is damped: at full strength a deep network multiplies rounding errors.
    """
    generator = np.random.default_rng(seed)

    def normal(array: np.ndarray, mean: float, deviation: float) -> None:
        array[...] = mean + np.float32(deviation) * generator.standard_normal(array.shape, np.float32)

    damped = {id(module.project_bn) for _, module in model.named_modules() if getattr(module, "residual", False)}  # type: ignore[attr-defined]
    for _, module in model.named_modules():
        if isinstance(module, (Conv2d, Linear)):
            normal(module.weight, 0, float(module.weight[0].size) ** -0.5)
            if module.bias is not None:
                normal(module.bias, 0, 0.1)
        elif isinstance(module, BatchNorm2d):
            normal(module.weight, 1, 0.2)
            normal(module.bias, 0, 0.2)
            normal(module.running_mean, 0, 0.1)
            module.running_var[...] = 0.5 + 0.5 * generator.random(module.running_var.shape, np.float32)
            if id(module) in damped:
                module.weight *= np.float32(0.4)


def activation_name(function: str | Callable) -> str:
    """The name of an activation: its key in `ops.ACTIVATIONS`, "sigmoid", or what a function of somebody else is called."""
    if isinstance(function, str):
        return function
    known = {**ops.ACTIVATIONS, "sigmoid": ops.sigmoid}
    named = next((name for name, other in known.items() if other is function), None)
    return named or re.sub(r"\W", "_", getattr(function, "__name__", "function"))
