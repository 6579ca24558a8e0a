"""Each layer alone, on the input that the reference had: an error shows in the layer that makes it, and nowhere else.

In a language model this is called teacher forcing. A module that has others within it is run, too; those then give what the
reference recorded for them, so that its row shows its own arithmetic (a residual, a gate) and not theirs once more. To that end
their `forward` is replaced while the comparison runs: an attribute of the object that hides the method of its class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from effnet_np.measure import Row, measure
from effnet_np.module import Module
from effnet_np.outputs import read_only
from effnet_np.trace import FIELDS, INPUT, ROOT, Trace, flatten


def forced_rows(
    model: Module, theirs: Trace, wants: Callable[[str], bool], tolerance: float
) -> Iterator[tuple[Row, np.ndarray | None]]:
    """For each wanted layer of the reference: its row, and what ours gave there."""
    if not theirs.inputs:
        raise ValueError("forced=True needs the reference's inputs: record it with Trace(model, inputs=True) or `--inputs`")
    modules = dict(model.named_modules())
    with stand_ins(modules, theirs, tolerance) as (forwards, misled), np.errstate(all="ignore"):
        for entry in theirs:
            if not wants(entry):
                continue
            if entry == INPUT:
                yield measure(entry, theirs[entry], theirs[entry], tolerance), theirs[entry]
                continue
            name = module_of(entry, modules)
            if name is None:
                yield measure(entry, None, theirs[entry], tolerance), None
                continue
            inputs = theirs.inputs.get(name, (theirs[INPUT],) if not name and INPUT in theirs else None)
            if inputs is None:
                continue
            misled.clear()
            try:
                outputs = dict(flatten(name, forwards[name](*map(read_only, inputs))))
            except (ValueError, TypeError, IndexError) as error:
                yield Row(entry, "SHAPE", theirs[entry].shape, note=f"ours cannot run on the reference's input: {error}"), None
                continue
            row = measure(entry, outputs.get(entry), theirs[entry], tolerance)
            if misled and row.status == "OK":
                row.status = "DIFF"
                row.note = f"it hands {misled[0]} another input than the reference does"
            yield row, outputs.get(entry)


def module_of(entry: str, modules: Mapping[str, Module]) -> str | None:
    """The module whose output an entry is: the entry's own name, or that name without its field."""
    if entry in modules:
        return entry
    name = "" if entry in (ROOT, *FIELDS) else re.sub(rf"\.({'|'.join(FIELDS)}|hidden_states\.\d+)$", "", entry)
    return name if name in modules and name != entry else None


@contextmanager
def stand_ins(
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
        if any(measure(name, ours, reference, tolerance).status not in ("OK", "ZERO") for ours, reference in pairs):
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
