"""What if: a network with something changed in it, for as long as a `with` lasts.

A change is written as text, so that it fits into an address, several joined by ";":

    silence:NAME:7       channel 7 of what the module NAME gives is 0
    gate:NAME:7:0.5      channel 7 of it is 0.5: meant for a squeeze-excite's gate, its `act_expand`
    bias:NAME:7:2        the bias of channel 7 of the layer NAME counts twice
    blur:3   grey:0.5    the picture, before the network
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from effnet_np.explorer.pictures import blurred, greyed
from effnet_np.explorer.recording import part_of
from effnet_np.operation import operation

MOST = 32  # changes at a time
ON_A_LAYER, ON_THE_PICTURE = ("silence", "gate", "bias"), ("blur", "grey")


class Change(NamedTuple):
    """One change. `name` and `channel` are of the layer; what is done to the picture has "" and 0."""

    kind: str
    name: str
    channel: int
    value: float


def parse(text: str, model: Any) -> list[Change]:
    """The changes that an address names. Raises ValueError for what cannot be done to this network."""
    pieces = [piece for piece in text.split(";") if piece]
    if len(pieces) > MOST:
        raise ValueError(f"at most {MOST} changes at a time, got {len(pieces)}")
    return [_parse(piece, model) for piece in pieces]


def _parse(piece: str, model: Any) -> Change:
    kind, *rest = piece.split(":")
    wanted = "silence:NAME:CHANNEL, gate:NAME:CHANNEL:VALUE, bias:NAME:CHANNEL:FACTOR, blur:PIXELS or grey:SHARE"
    if kind in ON_THE_PICTURE and len(rest) == 1:
        value, most = _number(rest[0]), 50.0 if kind == "blur" else 1.0
        if not 0 <= value <= most:
            raise ValueError(f"{kind} must lie between 0 and {most:g}, got {rest[0]!r:.40}")
        return Change(kind, "", 0, value)
    if kind not in ON_A_LAYER or len(rest) != (2 if kind == "silence" else 3):
        raise ValueError(f"a change is {wanted}; got {piece!r:.120}")
    name, channel = rest[0], rest[1]
    part_of(model, name)
    module = model.get_submodule(name)
    if not channel.isdecimal() or len(channel) > 6:
        raise ValueError(f"a channel is a whole number, got {channel!r:.40}")
    if kind == "bias" and int(channel) >= len(_bias_of(name, module)):
        raise ValueError(f"{name} has no channel {channel}")
    return Change(kind, name, int(channel), 0.0 if kind == "silence" else _number(rest[2]))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e6:
        raise ValueError(f"a value is a number below a million, got {text!r:.40}")
    return value


def _bias_of(name: str, module: Any) -> np.ndarray:
    bias = getattr(module, "bias", None)
    if not isinstance(bias, np.ndarray):
        raise ValueError(f"{name} has no bias: a batch norm has one, a squeeze-excite's convolutions, and the classifier")
    return bias


def change_picture(pixels: np.ndarray, changes: Sequence[Change]) -> np.ndarray:
    """uint8 (h, w, C), as the network sees it -> the same, blurred and greyed."""
    for change in changes:
        if change.kind == "blur" and change.value:
            pixels = blurred(pixels, change.value)
        elif change.kind == "grey":
            pixels = greyed(pixels, change.value)
    return pixels


@operation
def set_channel(x, channel: int, value: float) -> np.ndarray:
    """A copy in which one channel is that value everywhere: an operation, so that a sum that meets it can say so."""
    if channel >= x.shape[1]:
        raise ValueError(f"there is no channel {channel} among {x.shape[1]}")
    changed = x.copy()
    changed[:, channel] = value
    return changed


@contextmanager
def changed(model: Any, changes: Sequence[Change]) -> Iterator[None]:
    """Within, the model's own modules compute with the changes; afterwards all is as before."""
    outputs: list[Any] = []
    biases: list[tuple[Any, np.ndarray]] = []
    try:
        for change in changes:
            if change.kind in ON_THE_PICTURE:
                continue
            module = model.get_submodule(change.name)
            if change.kind == "bias":
                biases.append((module, module.bias))
                module.bias = module.bias.copy()
                module.bias[change.channel] *= change.value
            else:
                outputs.append(module)
                module.forward = partial(_and_then, module.forward, change.channel, change.value)
        yield
    finally:
        for module in outputs:
            vars(module).pop("forward", None)  # what hid the method of its class
        for module, bias in reversed(biases):
            module.bias = bias


def _and_then(forward: Any, channel: int, value: float, *arguments: Any) -> np.ndarray:
    return set_channel(forward(*arguments), channel, value)
