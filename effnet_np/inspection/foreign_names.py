"""Recordings of other libraries' models under our names, so that `compare` puts layer beside layer.

Which library it is, and which blocks its network has, is told by its modules' names (weights/dialect.py). A layer that has no
module of its own there, as padding, or that has none here, as timm's `drop_path`, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from effnet_np.module import Module
from effnet_np.tracing.trace import INPUT, ROOT, Trace
from effnet_np.tracing.trace_files import Lazy
from effnet_np.weights.dialect import Dialect
from effnet_np.weights.foreign import HF, dialect_of
from effnet_np.weights.timm import GEFFNET

PADS = {"embeddings.convolution": "embeddings.padding", "depthwise_conv.depthwise_conv": "depthwise_conv.depthwise_conv_pad"}


@dataclass(frozen=True)
class Pairs:
    """Our layer -> (the library's module whose input is that layer's, the one whose output it is), of one model."""

    dialect: Dialect
    layers: Mapping[str, tuple[str, str]]

    def theirs(self, wants: Callable[[str], bool]) -> tuple[str, ...]:
        """The library's modules that must be recorded for those layers of ours that are wanted."""
        wanted = {name for ours, names in self.layers.items() if wants(ours) for name in names}
        return (*wanted, *((INPUT,) if wants(INPUT) else ()), *((ROOT,) if wants("logits") else ()))


def pairs_of(names: Collection[str]) -> Pairs | None:
    """The pairs for a model of these modules; None where the names are ours, or no library's that is known here."""
    dialect = dialect_of({f"{name}.{tensor}" for name in names for tensor in ("weight", "kernel")})
    if dialect is None or dialect is HF:
        return None
    if "act1" in names and "conv_stem" in names:
        dialect = GEFFNET
    return Pairs(dialect, dialect.layers(dialect.blocks_in(names), set(names)))


def renamed(trace: Trace, pairs: Pairs) -> Trace:
    """The recording under our names, in its own order. Arrays are read when they are asked for, as before."""
    ours = {output: name for name, (_, output) in pairs.layers.items()} | {INPUT: INPUT, ROOT: "logits"}
    kept = {ours[name]: partial(trace.__getitem__, name) for name in trace if name in ours}
    result = Trace()
    result._outputs = Lazy(kept, trace.nbytes)
    sources = {name: source for name, (source, _) in pairs.layers.items() if source in trace.inputs}
    inputs = {name: partial(trace.inputs.__getitem__, source) for name, source in sources.items()}
    result.inputs = Lazy(inputs, trace.nbytes)
    names = pairs.dialect.renamed(trace.weights)
    weights = {name: partial(_weight, trace, pairs.dialect, name, own) for name, own in names.items()}
    result.weights = Lazy(weights, trace.nbytes)
    result.ordered = trace.ordered
    return result


def _weight(trace: Trace, dialect: Dialect, ours: str, own: str) -> np.ndarray:
    array, axes = trace.weights[own], dialect.transposition(ours)
    return array.transpose(axes) if axes and len(axes) == array.ndim else array


def padded_as_ours(trace: Trace, model: Module) -> Trace:
    """Inputs of convolutions that ours pads by a module of its own, and other libraries inside: padded by our module."""
    modules: dict[str, Any] = dict(model.named_modules())
    inputs = {name: partial(trace.inputs.__getitem__, name) for name in trace.inputs}
    for convolution, pad in PADS.items():
        for name in [name for name in inputs if name.endswith(convolution)]:
            padding = modules.get(name.removesuffix(convolution) + pad)
            if padding is not None and modules[name].stride == 2:
                inputs[name] = partial(_padded, inputs[name], padding)
    trace.inputs = Lazy(inputs, trace.nbytes)
    return trace


def _padded(read: Callable[[], tuple[np.ndarray, ...]], padding: Module) -> tuple[np.ndarray, ...]:
    return tuple(padding.forward(array) for array in read())
