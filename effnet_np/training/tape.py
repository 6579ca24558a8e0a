"""The chain rule: write down each step of the forward, then walk the list back and multiply by each step's derivative.

    with Tape([model.classifier.weight]) as tape:  # what gradients are wanted of
        logits = model(pixel_values).logits
    tape.start(logits, dlogits)
    tape.walk_back()
    tape.gradient(model.classifier.weight)

An array is known by where it lies in memory: a view, a reshaped one and the read-only one that a hook sees are the same
numbers. The tape holds on to every array that it knows, so no other can come to lie there; as it unwinds, it lets them go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from effnet_np.operation import listener
from effnet_np.training import gradients

SELECTIVE = ("conv2d", "batch_norm", "linear")  # their derivatives can leave out what nobody asks for


class Step(NamedTuple):
    """One call of an operation: its name, what went in, what came out, and which of its arguments want a gradient."""

    name: str
    arguments: Sequence[Any]
    options: dict[str, Any]
    outputs: tuple
    needs: tuple[bool, ...]


class Tape:
    """While it is open, the operations of this thread that depend on `sources` (a list of arrays) are written down."""

    def __init__(self, sources: Iterable[np.ndarray]):
        self._sources = {place(array): array for array in sources}
        self._steps: list[Step] = []
        self._dependent = set(self._sources)  # places of the sources and of all that was computed from them
        self._gradients: dict[int, np.ndarray] = {}

    def __enter__(self) -> Tape:
        if getattr(listener, "tape", None) is not None:
            raise RuntimeError("a tape is open in this thread already")
        listener.tape = self
        return self

    def __exit__(self, *exception: Any) -> None:
        listener.tape = None

    def run(self, function: Callable, arguments: tuple, options: dict) -> Any:
        """Called by ops.py: compute the step, and write it down where its result depends on a source."""
        listener.tape = None  # a step may be made of others, which its own derivative covers
        try:
            result = function(*arguments, **options)
        finally:
            listener.tape = self
        needs = tuple(place(argument) in self._dependent for argument in arguments)
        if any(needs):
            outputs = result if isinstance(result, tuple) else (result,)
            self._steps.append(Step(function.__name__, arguments, options, outputs, needs))
            self._dependent.update(map(place, outputs))
        return result

    def start(self, output: np.ndarray, gradient: np.ndarray) -> None:
        """The gradient to walk back from: dL/d output, of its shape; 1 where `output` is L itself."""
        self._gradients[place(output)] = gradient

    def walk_back(self, visit: Callable[[np.ndarray, np.ndarray], None] = lambda output, gradient: None) -> None:
        """Every step once, the last first. visit(output, gradient) sees each output's gradient when it is whole."""
        while self._steps:
            self._step_back(self._steps.pop(), visit)

    def _step_back(self, step: Step, visit: Callable) -> None:
        found = [self._gradients.pop(place(output), None) for output in step.outputs]
        if all(gradient is None for gradient in found):
            return  # nothing that L depends on
        pairs = zip(step.outputs, found, strict=True)
        dy = [np.zeros_like(y) if gradient is None else gradient.reshape(np.shape(y)) for y, gradient in pairs]
        for output, gradient in zip(step.outputs, dy, strict=True):
            visit(output, gradient)
        options = step.options | ({"needs": step.needs} if step.name in SELECTIVE else {})
        found = getattr(gradients, step.name)(dy[0] if len(dy) == 1 else dy, *step.arguments, **options)
        results = found if isinstance(found, tuple) else (found,)
        for argument, needed, gradient in zip(step.arguments, step.needs, results, strict=False):
            if needed:  # an array that went into several steps has the sum of what comes back from each
                before = self._gradients.get(place(argument))
                self._gradients[place(argument)] = gradient if before is None else before + gradient.reshape(before.shape)

    def gradient(self, source: np.ndarray) -> np.ndarray | None:
        """dL/d source, or None where L does not depend on it."""
        return self._gradients.get(place(source))


def place(array: Any) -> int:
    """Where an array's numbers lie in memory; for what is no array, the object itself."""
    return array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else id(array)
