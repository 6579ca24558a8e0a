"""Compare two recordings of a network, name the first layer that differs, and say why where the pattern is a known mistake.

    effnet_np.compare("my_dump/", "golden.h5")                     # traces, files, folders
    effnet_np.compare(model, "golden.h5", forced=True)             # each layer on the reference's own input
    effnet_np.compare_with_torch(model, hf_model, pixel_values)    # live; the models of timm, torchvision and others, too

An error is measured against the largest number of the reference's layer, never absolutely: activations that are all nearly
zero would pass any absolute bound. NaN never passes. `ours` is what is judged, `theirs` is the reference.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from effnet_np.inspection.forced import forced_rows
from effnet_np.inspection.foreign_names import Pairs, padded_as_ours, pairs_of, renamed
from effnet_np.inspection.hints import Case, diagnose
from effnet_np.inspection.measure import Row, measure
from effnet_np.inspection.report import Comparison
from effnet_np.module import Module
from effnet_np.tracing.trace import INPUT, Trace

TOLERANCE = 1e-4  # of the reference's largest number, after a whole network of float32 arithmetic
FORCED_TOLERANCE = 1e-5  # where each layer starts from the reference's own input, rounding does not add up


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

    Each of the two: a `Trace`, a path that `Trace.load` reads, a model of effnet_np, or a torch model; what has the names of
    timm, geffnet, torchvision, lukemelas' package or Keras is compared under ours. A model is run on
    `pixel_values` (N, C, H, W), or on the other side's recorded input where that is None; and, where a layer is wrong, once
    more for that layer's input and weights. `layers`: a glob or several; "pixel_values", which is what a network is given, is
    compared if both sides have it. forced: give each layer the reference's own input, so that an error shows only in the layer
    that makes it; `ours` must then be a model of effnet_np, and the reference live or recorded with inputs. tolerance: the
    largest error that is OK, relative to the reference's largest number; None means 1e-4, or 1e-5 if forced. Raises TypeError,
    ValueError.
    """
    tolerance = (FORCED_TOLERANCE if forced else TOLERANCE) if tolerance is None else tolerance
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be above 0 and finite, got {tolerance}")
    if forced and not isinstance(ours, Module):
        raise TypeError(f"forced=True runs each layer of ours, which must be a model of effnet_np, got {type(ours).__name__}")
    notes: list[str] = []
    ours_source, theirs_source = _source(ours), _source(theirs)
    paired = [_pairs(source) for source in (ours_source, theirs_source)]
    ours_source, theirs_source = map(_under_our_names, (ours_source, theirs_source), paired)
    if pixel_values is None:
        recorded = (source for source in (theirs_source, ours_source) if isinstance(source, Trace) and INPUT in source)
        pixel_values = next((source[INPUT] for source in recorded), None)
    their_trace = _recorded(theirs_source, pixel_values, layers, notes, inputs=forced)
    our_trace, wanted = Trace(), Trace(layers=layers).wants
    rows: list[Row] = []
    wrong = None  # what ours gave in the first wrong layer
    notes += [_paired_note(side, pairs) for side, pairs in zip(("ours", "the reference"), paired, strict=True) if pairs]
    if forced:
        if paired[1]:
            their_trace = padded_as_ours(their_trace, ours_source)
        for row, output in forced_rows(ours_source, their_trace, wanted, tolerance):
            rows.append(row)
            wrong = output if wrong is None and row is Comparison(rows, tolerance).first_divergence else wrong
    else:
        our_trace = _recorded(ours_source, pixel_values, layers, notes)
        names = filter(wanted, _in_order(our_trace, their_trace))
        if any(paired):
            names = filter(partial(_has_a_counterpart, our_trace, their_trace, paired), names)
        rows = [measure(name, our_trace.get(name), their_trace.get(name), tolerance) for name in names]
    if not rows:
        raise ValueError(f"there is nothing to compare: neither side has a layer that matches {layers!r}")
    result = Comparison(rows, tolerance, forced, notes=notes)
    first = result.first_divergence
    if first is not None:
        wrong = our_trace.get(first.name) if wrong is None else wrong
        if wrong is not None and first.name in their_trace:
            inputs, weights = _inputs_and_weights(first.name, theirs_source, ours_source, pixel_values)
            error = np.inf if first.relative is None else first.relative
            known = (first.name, wrong, their_trace[first.name], inputs, weights, tolerance, error, our_trace, their_trace)
            result.hints, failed = diagnose(Case(*known))
            notes += failed
    return result


def _in_order(ours: Trace, theirs: Trace) -> list[str]:
    """The layers of both, in the call order of the reference if that is known; what a network is given only if both have it."""
    order = theirs if theirs.ordered else ours
    names = [name for name in order if name in ours or name in theirs]
    names += [name for trace in (theirs, ours) for name in trace if name not in order]
    return [name for name in dict.fromkeys(names) if name != INPUT or (name in ours and name in theirs)]


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

    taken: dict[str, tuple] = {}  # what modules are given, before one that works in place has changed it

    def take(name: str, module: Any, arguments: tuple, keywords: dict) -> None:
        taken[name] = tuple(map(convert, (*arguments, *keywords.values())))

    def hook(name: str, module: Any, arguments: tuple, keywords: dict, output: Any) -> None:
        trace.record(name, module, taken.pop(name, ()), output, convert)

    def begin(module: Any, arguments: tuple, keywords: dict) -> None:
        trace.begin(arguments, keywords, convert)

    hooks = [module.register_forward_hook(partial(hook, name), with_kwargs=True) for name, module in modules.items()]
    for name, module in modules.items():
        if inputs and trace.wants(name):
            hooks.append(module.register_forward_pre_hook(partial(take, name), with_kwargs=True))
    hooks.append(torch_model.register_forward_pre_hook(begin, with_kwargs=True))
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


def is_torch(value: Any) -> bool:
    """Whether a value is a torch module, asked without importing torch."""
    return any(cls.__module__.startswith("torch.nn.") and cls.__name__ == "Module" for cls in type(value).__mro__)


def _pairs(source: Any) -> Pairs | None:
    """How the layers of another library are ours, where a source has its names."""
    if isinstance(source, Module):
        return None
    return pairs_of(list(source) if isinstance(source, Trace) else [name for name, _ in source.named_modules()])


def _under_our_names(source: Any, pairs: Pairs | None) -> Any:
    """A recording, renamed where it has to be; a live model is once it has run."""
    return renamed(source, pairs) if pairs and isinstance(source, Trace) else source


def _paired_note(side: str, pairs: Pairs) -> str:
    return f"{side} has the names of {pairs.dialect.library}: {len(pairs.layers)} of its layers are compared, under our names"


def _has_a_counterpart(ours: Trace, theirs: Trace, paired: list[Pairs | None], name: str) -> bool:
    """Whether a layer's absence on one side would be a fault: libraries have other modules beside those with the numbers."""
    sides = ((ours, theirs, paired[1]), (theirs, ours, paired[0]))
    return not any(pairs and name in trace and name not in other for trace, other, pairs in sides)


def _source(value: Any) -> Any:
    if isinstance(value, (str, os.PathLike)):
        return Trace.load(value)
    if isinstance(value, (Trace, Module)) or is_torch(value):
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
        pairs = _pairs(source)
        if pairs is None:
            return trace_torch(source, pixel_values, layers, inputs, weights)
        modules = pairs.theirs(Trace(layers=layers).wants)
        return renamed(trace_torch(source, pixel_values, modules, inputs, weights), pairs)
    with Trace(source, layers, inputs, weights) as trace, np.errstate(all="ignore"):  # NaN is reported, not warned of
        try:
            source(pixel_values)
        except ValueError as error:
            if not len(trace):
                raise
            notes.append(f"ours stopped before its end: {error}")
    return trace


def _inputs_and_weights(name: str, theirs: Any, ours: Any, pixel_values: Any) -> tuple[tuple, dict[str, np.ndarray]]:
    """The first wrong layer's: the reference's if it has them, else ours, which were right until there.

    A live model runs once more for them, and this layer alone is recorded: to keep all inputs of a run, in case one layer is
    wrong, would double the memory of every comparison.
    """
    inputs: tuple[np.ndarray, ...] = ()
    weights: Mapping[str, np.ndarray] = {}
    for source in (theirs, ours):
        if isinstance(source, Trace):
            trace = source
        elif name == INPUT or (inputs and weights):
            continue
        else:
            trace = _recorded(source, pixel_values, (name,), [], inputs=True, weights=True)
        inputs = inputs or trace.inputs.get(name, ())
        keys = [key for key in trace.weights if key.rpartition(".")[0] == name]
        weights = weights or {key.rpartition(".")[2]: trace.weights[key] for key in keys}
    return inputs, dict(weights)
