"""The network in parts (stem, each block, head), and what happened in one of them: every operation with its arrays, by name.

Names are a `Trace`'s. Of a whole run only what each part was given is kept; a part that is looked at is run again on that,
by the same modules, and gives the same numbers.

`place` [c, y, x]: a number's channel, row and column; y and x are 0 where an array is (N, C).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from effnet_np import ops
from effnet_np.operation import listener
from effnet_np.tracing.trace import INPUT, Trace
from effnet_np.training.tape import place as memory

SCORES = "scores"  # the entry of what becomes of the logits: probabilities
ALIAS = {"logits": "classifier", "efficientnet.pooler_output": "efficientnet.pooler"}  # fields that a whole run's trace has
ALIAS |= dict.fromkeys(
    ("efficientnet.last_hidden_state", "efficientnet.encoder.last_hidden_state"), "efficientnet.encoder.top_activation"
)


class Step(NamedTuple):
    """One call of an operation of ops.py: its name, what it was given, what it gave."""

    kind: str
    arguments: tuple
    options: Mapping[str, Any]
    output: np.ndarray


@dataclass(frozen=True)
class Operation:
    """What is known of a step without its arrays. `inputs`: the entries that it read; `window` of a convolution only."""

    name: str
    kind: str
    part: int
    shape: tuple[int, ...]  # (C, H, W) or (C,)
    inputs: tuple[str, ...]
    window: tuple[int, int, tuple[int, int]] | None = None  # kernel size, stride, (rows before, columns before) of padding


class Notes:
    """While it listens, every operation of this thread is written down, with all of its arrays."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __enter__(self) -> Notes:
        if getattr(listener, "tape", None) is not None:
            raise RuntimeError("something listens to this thread's operations already")
        listener.tape = self
        return self

    def __exit__(self, *exception: Any) -> None:
        listener.tape = None

    def run(self, function: Callable, arguments: tuple, options: Mapping[str, Any]) -> Any:
        """Called by ops.py for each operation; one that is made of others counts as one."""
        listener.tape = None
        try:
            output = function(*arguments, **options)
        finally:
            listener.tape = self
        self.steps.append(Step(function.__name__, arguments, options, output))
        return output


class Recording:
    """One part's operations in order: `operations` and `steps` by name; `alias`: {a module's name: whose output it gives}."""

    def __init__(self, part: int, source: str, given: np.ndarray, trace: Trace, steps: Sequence[Step], last: str = ""):
        self.part, self.operations, self.steps = part, {}, {}
        self.alias = dict(ALIAS)
        names: dict[int, str] = {}  # the first module to finish with an output is the one that computed it
        for entry in trace:
            names.setdefault(memory(trace[entry]), entry)
        known = {memory(given): source}
        for number, step in enumerate(steps):
            where = memory(step.output)
            arrays = [argument for argument in step.arguments if isinstance(argument, np.ndarray)]
            if any(memory(array) == where for array in arrays):  # no padding, or flattened: the same numbers
                continue
            name = names.get(where) or (last if number == len(steps) - 1 and last else _unchanged(names, steps[number + 1]))
            inputs = tuple(known[memory(array)] for array in arrays if memory(array) in known)
            shape = tuple(step.output.shape[1:])
            self.operations[name] = Operation(name, step.kind, part, shape, inputs, _window(step))
            self.steps[name] = step
            known[where] = name
        for entry in trace:
            if memory(trace[entry]) in known:
                self.alias[entry] = known[memory(trace[entry])]

    @property
    def nbytes(self) -> int:
        return sum(step.output.nbytes for step in self.steps.values())


def _unchanged(names: Mapping[int, str], following: Step) -> str:
    """The name of what a module computed before a change was made to it: no module gives that out."""
    return f"{names[memory(following.output)]} unchanged"


def _window(step: Step) -> tuple[int, int, tuple[int, int]] | None:
    if step.kind == "pad2d":
        top, _, left, _ = step.arguments[1]
        return 1, 1, (top, left)
    if step.kind != "conv2d":
        return None
    _, weight, _, stride, padding, _ = step.arguments  # as layers.py calls it
    return weight.shape[2], stride, (padding[0], padding[2])


# -- the parts ----------------------------------------------------------------------------------------------------------


def count_parts(model: Any) -> int:
    """The stem, the blocks, and the head."""
    return len(model.efficientnet.encoder.blocks) + 2


def part_of(model: Any, name: str) -> int:
    """The number of the part that holds the module of this name. Raises KeyError for a name that no part has."""
    pieces = ALIAS.get(name, name).split(".")
    if pieces[:2] == ["efficientnet", "embeddings"]:
        return 0
    if pieces[:3] == ["efficientnet", "encoder", "blocks"]:
        if len(pieces) > 3 and pieces[3].isdecimal() and int(pieces[3]) < count_parts(model) - 2:
            return int(pieces[3]) + 1
        raise KeyError(f"this network has no layer {name!r:.120}")
    if pieces[0] in ("classifier", "dropout", SCORES) or pieces[:2] in (
        ["efficientnet", "encoder"],
        ["efficientnet", "pooler"],
    ):
        return count_parts(model) - 1
    raise KeyError(f"this network has no layer {name!r:.120}")


def run_part(model: Any, part: int, hidden_states: np.ndarray) -> np.ndarray:
    """The part's own modules on what it is given; the head gives logits (N, num_labels)."""
    network, encoder = model.efficientnet, model.efficientnet.encoder
    if part == 0:
        return network.embeddings(hidden_states)
    if part < count_parts(model) - 1:
        return encoder.blocks[part - 1](hidden_states)
    hidden_states = encoder.top_activation(encoder.top_bn(encoder.top_conv(hidden_states)))
    return model.classifier(model.dropout(ops.flatten(network.pooler(hidden_states))))


def record_part(model: Any, part: int, given: np.ndarray, source: str, function: Callable) -> tuple[Recording, np.ndarray]:
    """Run a part, and keep all that happened in it. source: the entry of what it is given. function: from logits to scores."""
    last = part == count_parts(model) - 1
    with Trace(model) as trace, Notes() as notes:
        output = run_part(model, part, given)
        if last:
            function(output)
    return Recording(part, source, given, trace, notes.steps, SCORES if last else ""), output


__all__ = ["INPUT", "SCORES", "Operation", "Recording", "Step", "count_parts", "part_of", "record_part", "run_part"]
