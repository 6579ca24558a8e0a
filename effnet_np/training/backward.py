"""Gradients of a network's loss, by name: of its parameters, of its activations and of its pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np

from effnet_np.layers import Dropout
from effnet_np.model import EfficientNetForImageClassification, EfficientNetModel
from effnet_np.module import Hook
from effnet_np.pretrained import check_pixel_values, classification_loss
from effnet_np.tracing.trace import Trace, flatten
from effnet_np.training.tape import Tape, place


@dataclass
class Gradients:
    """What `backward` gives. Every gradient has the shape and the dtype of what it is the gradient of."""

    loss: np.ndarray | None  # (), None where output_gradient was given
    logits: np.ndarray  # (N, num_labels); a backbone's pooler_output (N, hidden_dim)
    parameters: dict[str, np.ndarray]  # by the names of the state dict, in its order
    activations: dict[str, np.ndarray]  # by the names of a trace, in the order of the way back: the last layer first
    pixel_values: np.ndarray | None  # (N, C, H, W)


def backward(
    model: EfficientNetForImageClassification | EfficientNetModel,
    pixel_values: np.ndarray,
    labels: Any = None,
    output_gradient: np.ndarray | Callable[[np.ndarray], np.ndarray] | None = None,
    activations: str | Sequence[str] | None = None,
    parameters: str | Sequence[str] | None = "*",
    pixel_gradient: bool = True,
    label_smoothing: float = 0.0,
    seed: int | Sequence[int] | None = None,
) -> Gradients:
    """Run the model forward and back: pixel_values (N, C, H, W) -> dL/d everything that is asked for.

    labels: L is the model's loss with them, as in `model(pixel_values, labels)`. Or output_gradient: dL/d logits
    (N, num_labels), of a backbone dL/d pooler_output, for an L of your own; a function gets the logits and gives that.
    activations, parameters: patterns over names ("*", "*.blocks.3.*"), or several; None for none. `pixel_gradient=False` spares
    the stem's. The model's own mode counts: after `model.train()`, batch norms use and update their statistics as PyTorch's do,
    and dropout drops, by `seed` the same again. Raises TypeError or ValueError for what does not fit, before anything runs, and
    for an activation function whose derivative is not known.
    """
    if not isinstance(model, (EfficientNetForImageClassification, EfficientNetModel)):
        raise TypeError(f"gradients need a model of effnet_np in NumPy, got {type(model).__name__}")
    if (labels is None) == (output_gradient is None):
        raise ValueError("give either labels, for the model's own loss, or output_gradient, dL/d logits for a loss of your own")
    if labels is not None and isinstance(model, EfficientNetModel):
        raise ValueError("a backbone has no loss: give output_gradient, dL/d pooler_output, in place of labels")
    pixel_values = check_pixel_values(model.config, pixel_values, model.dtype)
    wanted = select(dict(model.named_parameters()), parameters, "parameter")
    if seed is not None:
        seed_dropout(model, seed)
    names: dict[int, dict[str, tuple[int, ...]]] = {}  # where an output lies -> its names and their shapes
    hooks = _listen(model, activations, names)
    try:
        with Tape([*wanted.values(), *([pixel_values] if pixel_gradient or activations else [])]) as tape:
            output = model(pixel_values, return_dict=True)
            logits = output.pooler_output if isinstance(model, EfficientNetModel) else output.logits
            loss = None
            if labels is not None:
                loss = classification_loss(model.config, logits, np.asarray(labels), label_smoothing)
    finally:
        for hook in hooks:
            hook.remove()
    del output
    if loss is None:
        tape.start(logits, output_gradient_of(output_gradient, logits))
    else:
        tape.start(loss, np.ones((), logits.dtype))
    seen: dict[str, np.ndarray] = {}

    def visit(output: np.ndarray, gradient: np.ndarray) -> None:
        for name, shape in names.get(place(output), {}).items():
            seen[name] = gradient.reshape(shape)

    tape.walk_back(visit)
    found = {name: tape.gradient(array) for name, array in wanted.items()}
    return Gradients(
        loss=loss,
        logits=logits,
        parameters={name: gradient for name, gradient in found.items() if gradient is not None},
        activations=seen,
        pixel_values=tape.gradient(pixel_values) if pixel_gradient else None,
    )


def select(arrays: dict[str, Any], patterns: str | Sequence[str] | None, kind: str) -> dict[str, Any]:
    """Those entries whose name fits one of the patterns. Raises ValueError for a pattern that fits none."""
    patterns = () if patterns is None else (patterns,) if isinstance(patterns, str) else tuple(patterns)
    exact = {pattern for pattern in patterns if pattern in arrays}
    globs = [pattern for pattern in patterns if pattern not in arrays]
    for pattern in globs:
        if not any(fnmatchcase(name, pattern) for name in arrays):
            raise ValueError(f"no {kind} of this model matches {pattern!r}; its names are such as {next(iter(arrays))!r}")
    return {
        name: array for name, array in arrays.items() if name in exact or any(fnmatchcase(name, pattern) for pattern in globs)
    }


def seed_dropout(model: Any, seed: Any) -> None:
    """Every dropout layer's generator anew, each its own stream of `seed` (a whole number, or several)."""
    layers = [module for _, module in model.named_modules() if isinstance(module, Dropout)]
    for layer, child in zip(layers, np.random.SeedSequence(seed).spawn(len(layers)), strict=True):
        layer.generator = np.random.default_rng(child)


def _listen(model: Any, activations: str | Sequence[str] | None, names: dict) -> list[Hook]:
    """Hooks that note where the outputs of the modules that are asked for lie, under a trace's names."""
    if activations is None:
        return []
    trace = Trace(model, layers=activations)  # refuses patterns that fit no layer

    def note(name: str, module: Any, inputs: tuple, output: Any) -> None:
        for entry, array in flatten(name, output):
            if trace.wants(entry):
                names.setdefault(place(array), {})[entry] = array.shape

    return [module.register_forward_hook(partial(note, name)) for name, module in model.named_modules()]


def output_gradient_of(output_gradient: Any, logits: np.ndarray) -> np.ndarray:
    gradient = np.asarray(output_gradient(logits) if callable(output_gradient) else output_gradient)
    if gradient.shape != logits.shape or gradient.dtype.kind not in "fiu":
        raise ValueError(f"output_gradient must hold numbers of shape {logits.shape}, got {gradient.dtype} {gradient.shape}")
    return gradient.astype(logits.dtype)
