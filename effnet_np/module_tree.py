"""A module as text: PyTorch's tree, cut to the depth that fits a screen."""

from __future__ import annotations

from typing import Any

SCREEN = 40  # lines


def tree(module: Any) -> str:
    """The deepest tree of at most SCREEN lines. Children in a row that read the same share an entry: "(1-2): 2 x ..."."""
    text = _text(module, 0)
    for depth in range(1, 10):
        deeper = _text(module, depth)
        if deeper.count("\n") >= SCREEN:
            break
        text = deeper
    return text


def _text(module: Any, depth: int) -> str:
    name, children = type(module).__name__, list(module.named_children())
    if not children:
        return f"{name}({', '.join(_facts(module))})"
    if not depth:
        return f"{name}(...)"
    runs: list[tuple[list[str], str]] = []  # (the names of neighbours that read the same, how they read)
    for child_name, child in children:
        text = _text(child, depth - 1)
        if runs and runs[-1][1] == text and child_name.isdecimal():
            runs[-1][0].append(child_name)
        else:
            runs.append(([child_name], text))
    lines = [
        f"({names[0]}): {text}" if len(names) == 1 else f"({names[0]}-{names[-1]}): {len(names)} x {text}"
        for names, text in runs
    ]
    return "\n".join([f"{name}(", *("  " + line.replace("\n", "\n  ") for line in lines), ")"])


def _facts(layer: Any) -> list[str]:
    """What a layer says of itself: the shapes of its parameters, and its plain numbers."""
    facts = [f"{name}={getattr(layer, name).shape}" for name in layer._parameters]
    for name, value in vars(layer).items():
        if name.startswith("_") or name == "training" or name in layer._parameters + layer._buffers:
            continue
        if isinstance(value, (int, float, tuple)) and not isinstance(value, bool):
            facts.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
        elif name == "padding" and value is None:
            facts.append("padding=SAME")
        elif name == "function":
            facts.append(getattr(value, "__name__", type(value).__name__))
    return facts
