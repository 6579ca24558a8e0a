"""Compare two recordings of a network, name the first layer that differs, and say why where the pattern is a known mistake.

    effnet_np.compare("my_dump/", "golden.h5")                     # traces, files, folders
    effnet_np.compare(model, "golden.h5", forced=True)             # each layer on the reference's own input
    effnet_np.compare_with_torch(model, hf_model, pixel_values)    # live

An error is measured against the largest number of the reference's layer, never absolutely: activations that are all nearly
zero would pass any absolute bound. NaN never passes. `ours` is what is judged, `theirs` is the reference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from effnet_np.hints import Case, diagnose
from effnet_np.module import Module
from effnet_np.outputs import read_only
from effnet_np.report import to_html, to_json, to_text
from effnet_np.trace import FIELDS, INPUT, ROOT, Trace, flatten

TOLERANCE = 1e-4  # of the reference's largest number, after a whole network of float32 arithmetic
FORCED_TOLERANCE = 1e-5  # where each layer starts from the reference's own input, rounding does not add up
NEARLY_ZERO = 1e-6
DIVERGED = ("DIFF", "SHAPE", "NAN")


@dataclass
class Row:
    """One layer. Errors are None where they cannot be computed; `relative` is of the reference's largest number."""

    name: str
    status: str  # OK, DIFF, SHAPE, MISSING or NAN
    shape: tuple[int, ...] | None  # of the reference; of ours where the reference lacks the layer
    absolute: float | None = None
    relative: float | None = None
    cosine: float | None = None
    note: str = ""


@dataclass
class Comparison:
    """What `compare` found: `rows` in call order, `first_divergence`, `hints` for it, `notes`; `str()` is the short report."""

    rows: list[Row]
    tolerance: float
    forced: bool = False
    hints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def first_divergence(self) -> Row | None:
        """The first row, in call order, whose numbers or shape are wrong; layers that one side lacks do not count."""
        return next((row for row in self.rows if row.status in DIVERGED), None)

    @property
    def ok(self) -> bool:
        """Everything was there on both sides, and was right."""
        return all(row.status == "OK" for row in self.rows)

    def __str__(self) -> str:
        return to_text(self, everything=False)

    def to_text(self) -> str:
        """The verdict and every row."""
        return to_text(self, everything=True)

    def to_json(self) -> str:
        """The same as JSON; numbers that JSON lacks (NaN, infinity) are null."""
        return to_json(self)

    def to_html(self) -> str:
        """One page with a plot of error by depth; it loads nothing from elsewhere."""
        return to_html(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write the report as the ending of `path` says: .txt, .json or .html."""
        from pathlib import Path

        writers = {".txt": self.to_text, ".json": self.to_json, ".html": self.to_html}
        path = Path(path)
        if path.suffix not in writers:
            raise ValueError(f"a report's name must end in {', '.join(writers)}, got {path.name}")
        path.write_text(writers[path.suffix]() + "\n", encoding="utf-8")


def compare(
    ours: Any,
    theirs: Any,
    *,
    pixel_values: np.ndarray | None = None,
    layers: str | Sequence[str] = "*",
    forced: bool = False,
    tolerance: float | None = None,
) -> Comparison:
    """Compare ours with the reference, theirs, layer by layer -> Comparison.

    Each of the two: a `Trace`, a path that `Trace.load` reads, a model of effnet_np, or a torch model. A model is run on
    `pixel_values` (N, C, H, W), or on the other side's recorded input where that is None. `layers`: a glob or several.
    forced: give each layer the reference's own input, so that an error shows only in the layer that makes it; `ours` must
    then be a model of effnet_np, and the reference live or recorded with inputs. tolerance: the largest error that is OK,
    relative to the reference's largest number; None means 1e-4, or 1e-5 if forced. Raises TypeError, ValueError.
    """
    tolerance = (FORCED_TOLERANCE if forced else TOLERANCE) if tolerance is None else tolerance
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}")
    if forced and not isinstance(ours, Module):
        raise TypeError(f"forced=True runs each layer of ours, which must be a model of effnet_np, got {type(ours).__name__}")
    notes: list[str] = []
    ours_source, theirs_source = _source(ours), _source(theirs)
    if pixel_values is None:
        recorded = [source[INPUT] for source in (theirs_source, ours_source) if isinstance(source, Trace) and INPUT in source]
        pixel_values = recorded[0] if recorded else None
    their_trace = _recorded(theirs_source, pixel_values, layers, notes, inputs=forced)
    if forced:
        rows, wrong = _compare_forced(ours_source, their_trace, layers, tolerance)
    else:
        our_trace = _recorded(ours_source, pixel_values, layers, notes)
        order = their_trace if their_trace.ordered else our_trace
        names = [name for name in order if name in our_trace or name in their_trace]
        names += [name for trace in (their_trace, our_trace) for name in trace if name not in order]
        wanted = Trace(layers=layers).wants
        rows = [
            _row(name, our_trace.get(name), their_trace.get(name), tolerance) for name in dict.fromkeys(names) if wanted(name)
        ]
        wrong = dict(our_trace)
    if not rows:
        raise ValueError(f"there is nothing to compare: neither side has a layer that matches {layers!r}")
    result = Comparison(rows, tolerance, forced, notes=notes)
    dead = [name for name in their_trace if np.abs(their_trace[name]).max(initial=0) < NEARLY_ZERO]
    if dead:
        zero = f"{len(dead)} layers of the reference are nearly zero everywhere (largest below {NEARLY_ZERO}), first {dead[0]}"
        notes.append(f"{zero}: fresh weights let a signal vanish, and what vanished proves little")
    first = result.first_divergence
    if first is not None and first.name in wrong and first.name in their_trace:
        inputs, weights = _context(first.name, theirs_source, ours_source, pixel_values)
        error = np.inf if first.relative is None else first.relative
        result.hints = diagnose(Case(first.name, wrong[first.name], their_trace[first.name], inputs, weights, tolerance, error))
    return result


def compare_with_torch(
    model: Module,
    hf_model: Any,
    pixel_values: np.ndarray,
    *,
    layers: str | Sequence[str] = "*",
    forced: bool = False,
    tolerance: float | None = None,
    gradients: bool = False,
    labels: np.ndarray | None = None,
    output_gradient: np.ndarray | None = None,
) -> Comparison:
    """Run a model of effnet_np and a torch model with the same module names on the same input, and compare: see `compare`.

    hf_model: transformers' EfficientNet or any torch.nn.Module, in eval mode. pixel_values: (N, C, H, W) float32. gradients:
    compare the way back instead, of the loss with `labels` or from `output_gradient` (see `backward`), in its own order, in
    eval or in training mode. Raises ImportError without torch, TypeError, ValueError.
    """
    if not _is_torch(hf_model):
        raise TypeError(f"hf_model must be a torch.nn.Module, got {type(hf_model).__name__}")
    if gradients:
        from effnet_np.training.compare import compare_gradients

        tolerance = 1e-4 if tolerance is None else tolerance
        return compare_gradients(model, hf_model, pixel_values, labels, output_gradient, layers, tolerance)
    return compare(model, hf_model, pixel_values=pixel_values, layers=layers, forced=forced, tolerance=tolerance)


def trace_torch(
    torch_model: Any, pixel_values: np.ndarray, layers: str | Sequence[str] = "*", inputs: bool = False, weights: bool = False
) -> Trace:
    """Run a torch model on pixel_values (N, C, H, W) and record it as `Trace` records a model of effnet_np.

    Raises ValueError for a model in training mode, whose dropout would make every comparison fail.
    """
    import torch

    if torch_model.training:
        raise ValueError("the torch model is in training mode, where dropout and batch statistics differ: call .eval() first")

    def convert(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensor = value.detach().cpu()
            tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
            return tensor.numpy().copy()  # a later module may work in place
        if hasattr(value, "items"):
            return {key: convert(item) for key, item in value.items()}
        return tuple(map(convert, value)) if isinstance(value, (tuple, list)) else value

    trace = Trace(layers=layers, inputs=inputs, weights=weights)
    modules = dict(torch_model.named_modules())
    trace.refuse_unknown(modules)

    def hook(name: str, module: Any, arguments: tuple, keywords: dict, output: Any) -> None:
        trace.record(name, module, (*arguments, *keywords.values()), output, convert)

    hooks = [module.register_forward_hook(partial(hook, name), with_kwargs=True) for name, module in modules.items()]
    parameter = next(torch_model.parameters())
    tensor = torch.from_numpy(np.array(pixel_values)).to(parameter.device, parameter.dtype)
    try:
        with torch.no_grad():
            torch_model(tensor)
    finally:
        for handle in hooks:
            handle.remove()
    if weights:
        trace.keep_weights({key: convert(tensor) for key, tensor in torch_model.state_dict().items()})
    return trace


# -- the two sides ----------------------------------------------------------------------------------------------------


def _is_torch(value: Any) -> bool:
    """Whether a value is a torch module, asked without importing torch."""
    return any(cls.__module__.startswith("torch.nn.") and cls.__name__ == "Module" for cls in type(value).__mro__)


def _source(value: Any) -> Any:
    if isinstance(value, (str, os.PathLike)):
        return Trace.load(value)
    if isinstance(value, (Trace, Module)) or _is_torch(value):
        return value
    raise TypeError(f"compare takes a Trace, a path, a model of effnet_np or a torch model, got {type(value).__name__}")


def _recorded(
    source: Any, pixel_values: Any, layers: Any, notes: list[str], inputs: bool = False, weights: bool = False
) -> Trace:
    """The trace of either side; a live model runs for it. Where ours stops with an error, what it had done counts."""
    if isinstance(source, Trace):
        return source
    if pixel_values is None:
        wanted = "pass pixel_values=, or a trace that has recorded them"
        raise ValueError(f"a model must run to be compared, and there is no input for it: {wanted}")
    if not isinstance(source, Module):
        return trace_torch(source, pixel_values, layers, inputs, weights)
    with Trace(source, layers, inputs, weights) as trace, np.errstate(all="ignore"):  # NaN is reported, not warned of
        try:
            source(pixel_values)
        except ValueError as error:
            if not len(trace):
                raise
            notes.append(f"ours stopped before its end: {error}")
    return trace


def _context(name: str, theirs: Any, ours: Any, pixel_values: Any) -> tuple[tuple, dict[str, np.ndarray]]:
    """The first wrong layer's inputs and weights: the reference's if it has them, else ours, which were right until there."""
    inputs: tuple[np.ndarray, ...] = ()
    weights: dict[str, np.ndarray] = {}
    for source in (theirs, ours):
        if isinstance(source, Trace):
            trace = source
        elif name == INPUT:
            continue
        else:
            trace = _recorded(source, pixel_values, (name,), [], inputs=True, weights=True)
        inputs = inputs or trace.inputs.get(name, ())
        found = {key.rpartition(".")[2]: array for key, array in trace.weights.items() if key.rpartition(".")[0] == name}
        weights = weights or found
    return inputs, weights


def _row(name: str, ours: np.ndarray | None, theirs: np.ndarray | None, tolerance: float) -> Row:
    """Compare one entry. NaN and infinity come first: a comparison with NaN is never true, and so never an error either."""
    if ours is None or theirs is None:
        present = theirs if ours is None else ours
        side = "ours" if ours is None else "the reference"
        return Row(name, "MISSING", None if present is None else present.shape, note=f"{side} has no such layer")
    if ours.shape != theirs.shape:
        return Row(name, "SHAPE", theirs.shape, note=f"ours has shape {ours.shape}")
    for side, array in (("ours", ours), ("the reference", theirs)):
        finite = np.isfinite(array)
        if not finite.all():
            where = tuple(int(i) for i in np.argwhere(~finite)[0]) if array.ndim else ()
            count = f"{array.size - np.count_nonzero(finite)} of {array.size} numbers are NaN or infinite, the first at {where}"
            return Row(name, "NAN", theirs.shape, note=f"{side}: {count}")
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    absolute, scale = float(np.abs(a - b).max(initial=0)), float(np.abs(b).max(initial=0))
    relative = absolute / scale if scale else (0.0 if absolute == 0 else float("inf"))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / lengths if lengths else float(absolute == 0)
    return Row(name, "OK" if relative <= tolerance else "DIFF", theirs.shape, absolute, relative, cosine)


# -- teacher forcing --------------------------------------------------------------------------------------------------


def _compare_forced(model: Module, theirs: Trace, layers: Any, tolerance: float) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Run each module of ours alone on the reference's recorded inputs -> (rows, our outputs).

    Inside a module that has others within, those give the reference's outputs, so that its row shows its own arithmetic
    alone (a residual, a gate); and what it hands to them is compared with what the reference hands to them.
    """
    if not theirs.inputs:
        raise ValueError("forced=True needs the reference's inputs: record it with Trace(model, inputs=True) or `--inputs`")
    modules = dict(model.named_modules())
    rows: list[Row] = []
    outputs: dict[str, np.ndarray] = {}
    wanted = Trace(layers=layers).wants
    with _stand_ins(modules, theirs, tolerance) as (forwards, misled), np.errstate(all="ignore"):
        for entry in theirs:
            if not wanted(entry):
                continue
            if entry == INPUT:
                rows.append(_row(entry, theirs[entry], theirs[entry], tolerance))
                continue
            name = _module_of(entry, modules)
            if name is None:
                rows.append(_row(entry, None, theirs[entry], tolerance))
                continue
            inputs = theirs.inputs.get(name, (theirs[INPUT],) if not name and INPUT in theirs else None)
            if inputs is None:
                continue
            misled.clear()
            try:
                outputs |= dict(flatten(name, forwards[name](*map(read_only, inputs))))
            except (ValueError, TypeError, IndexError) as error:
                rows.append(Row(entry, "SHAPE", theirs[entry].shape, note=f"ours cannot run on the reference's input: {error}"))
                continue
            row = _row(entry, outputs.get(entry), theirs[entry], tolerance)
            if misled and row.status == "OK":
                row.status = "DIFF"
                row.note = f"it hands {misled[0]} another input than the reference does"
            rows.append(row)
    return rows, outputs


def _module_of(entry: str, modules: Mapping[str, Module]) -> str | None:
    """The module whose output an entry is: the entry's own name, or that name without its field."""
    if entry in modules:
        return entry
    name = "" if entry in (ROOT, *FIELDS) else re.sub(rf"\.({'|'.join(FIELDS)}|hidden_states\.\d+)$", "", entry)
    return name if name in modules and name != entry else None


@contextmanager
def _stand_ins(
    modules: Mapping[str, Module], theirs: Trace, tolerance: float
) -> Iterator[tuple[dict[str, Callable], list[str]]]:
    """Within, calling a module gives what the reference recorded for it; the true forwards are what this gives.

    The list that comes with them names the modules that were called with another input than the reference's.
    """
    forwards: dict[str, Callable] = {name: module.forward for name, module in modules.items()}
    misled: list[str] = []

    def stand_in(name: str, *arguments: Any, **keywords: Any) -> np.ndarray:
        arrays = [array for array in (*arguments, *keywords.values()) if isinstance(array, np.ndarray)]
        pairs = zip(arrays, theirs.inputs.get(name, arrays), strict=False)
        if any(_row(name, ours, reference, tolerance).status != "OK" for ours, reference in pairs):
            misled.append(name)
        return theirs[name]

    replaced = [name for name in modules if name and name in theirs]
    try:
        for name in replaced:
            modules[name].forward = partial(stand_in, name)  # type: ignore[method-assign]
        yield forwards, misled
    finally:
        for name in replaced:
            del modules[name].forward
