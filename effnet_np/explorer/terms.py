"""How a number was made: the terms of the sum behind it, and what was done to that sum; and which pixels it sees.

`TERMS` has one function for an operation of ops.py, by its name. Each takes the number's place [c, y, x] and what the operation
was given, and says what the number is made of, in one of these forms:

    sum        (inputs * weights, added up, + bias) / divisor; each term's place in the input, [-1, -1, -1] for padding
    product    the numbers of several inputs, multiplied
    normalize  (x - mean) / sqrt(variance + eps) * weight + bias
    function   an activation of x, by its name
    copy       x itself
    zero       nothing: a zero of the padding
    softmax    exp(x) / the sum of exp of all
    constant   nothing: what a question of "what if" has put there

The numbers are those that the network computed with, in float32. Adding them up is left to the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from effnet_np.explorer.recording import INPUT, Operation, Step

Place = tuple[int, int, int]
ELEMENTWISE = ("normalize", "function", "copy")  # forms of one input: the story goes on with what made that


def terms_of(step: Step, at: Place) -> dict[str, Any]:
    """What the number at a place of the step's output is made of."""
    function = TERMS.get(step.kind)
    if function is None:  # an activation: every other operation has a function of its own
        return {"form": "function", "function": step.kind, **_from(step.arguments[0], at)}
    return function(at, *step.arguments, **step.options)


def number(array: np.ndarray, at: Place) -> float:
    """The number at a place of an array (1, C, H, W) or (1, C)."""
    return float(array[0, at[0]] if array.ndim == 2 else array[(0, *at)])


def _from(x: np.ndarray, at: Place) -> dict[str, Any]:
    return {"x": number(x, at), "places": np.array([at], np.int32)}


def _conv2d(at: Place, x, weight, bias=None, stride=1, padding=(0, 0, 0, 0), groups=1) -> dict[str, Any]:
    out, row, column = at
    count, kernel_h, kernel_w = weight.shape[1:]
    first = out // (weight.shape[0] // groups) * count if groups > 1 else 0
    channel, i, j = np.meshgrid(np.arange(count), np.arange(kernel_h), np.arange(kernel_w), indexing="ij")
    y, z = row * stride - padding[0] + i, column * stride - padding[2] + j
    inside = (y >= 0) & (y < x.shape[2]) & (z >= 0) & (z < x.shape[3])
    places = np.where(inside[..., None], np.stack([channel + first, y, z], -1), -1).reshape(-1, 3)
    inputs = np.where(inside.reshape(-1), x[0, places[:, 0], places[:, 1], places[:, 2]], np.float32(0))
    return _sum(places, inputs, weight[out].reshape(-1), None if bias is None else float(bias[out]))


def _linear(at: Place, x, weight, bias=None) -> dict[str, Any]:
    places = np.zeros((x.shape[1], 3), np.int32)
    places[:, 0] = np.arange(x.shape[1])
    return _sum(places, x[0], weight[at[0]], None if bias is None else float(bias[at[0]]))


def _sum(places, inputs, weights, bias: float | None = None, divisor: int = 1) -> dict[str, Any]:
    arrays = {"places": places.astype(np.int32), "inputs": inputs, "weights": weights}
    return {"form": "sum", **arrays, "bias": bias, "divisor": divisor}


def _global_average_pool(at: Place, x) -> dict[str, Any]:
    rows, columns = x.shape[2:]
    y, z = np.divmod(np.arange(rows * columns), columns)
    places = np.stack([np.full_like(y, at[0]), y, z], -1)
    return _sum(places, x[0, at[0]].reshape(-1), np.ones(len(y), x.dtype), divisor=rows * columns)


def _global_max_pool(at: Place, x) -> dict[str, Any]:
    y, z = divmod(int(x[0, at[0]].argmax()), x.shape[3])
    return {"form": "copy", **_from(x, (at[0], y, z))}


def _batch_norm(at: Place, x, mean, variance, weight, bias, eps) -> dict[str, Any]:
    c = at[0]
    numbers = {"mean": mean[c], "variance": variance[c], "weight": weight[c], "bias": bias[c], "eps": eps}
    return {"form": "normalize", **{name: float(value) for name, value in numbers.items()}, **_from(x, at)}


def _scale_channels(at: Place, x, gate) -> dict[str, Any]:
    places = np.array([at, (at[0], 0, 0)], np.int32)
    return {"form": "product", "places": places, "inputs": np.array([number(x, at), number(gate, (at[0], 0, 0))], x.dtype)}


def _add(at: Place, x, y) -> dict[str, Any]:
    inputs = np.array([number(x, at), number(y, at)], x.dtype)
    return _sum(np.array([at, at]), inputs, np.ones(2, x.dtype))


def _pad2d(at: Place, x, padding) -> dict[str, Any]:
    place = (at[0], at[1] - padding[0], at[2] - padding[2])
    if not (0 <= place[1] < x.shape[2] and 0 <= place[2] < x.shape[3]):
        return {"form": "zero"}
    return {"form": "copy", **_from(x, place)}


def _softmax(at: Place, x) -> dict[str, Any]:
    places = np.zeros((x.shape[1], 3), np.int32)
    places[:, 0] = np.arange(x.shape[1])
    return {"form": "softmax", "places": places, "inputs": x[0]}


def _custom(at: Place, x, function) -> dict[str, Any]:
    return {"form": "function", "function": "a function of your own", **_from(x, at)}


def _set_channel(at: Place, x, channel: int, value: float) -> dict[str, Any]:
    return {"form": "constant"} if at[0] == channel else {"form": "copy", **_from(x, at)}


TERMS: dict[str, Callable[..., dict[str, Any]]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "global_average_pool": _global_average_pool,
    "global_max_pool": _global_max_pool,
    "batch_norm": _batch_norm,
    "scale_channels": _scale_channels,
    "add": _add,
    "pad2d": _pad2d,
    "softmax": _softmax,
    "custom": _custom,
    "set_channel": _set_channel,
}


# -- which pixels a number sees -------------------------------------------------------------------------------------------


def receptive_field(operations: Mapping[str, Operation], name: str, y: int, x: int) -> dict[str, Any]:
    """The network's pixels that a number at (y, x) of an entry can see: top, left, bottom, right, all within, not cut off.

    Convolutions are followed, both ways through a residual; `everything` says that a global pool lies behind, so that every
    pixel counts. A squeeze-excite's gate comes from such a pool: `gated` says so, and the window is that of the convolutions.
    """
    windows: dict[str, tuple[int, int, int, int]] = {name: (y, x, y, x)}
    everything = gated = False
    for current in reversed(list(operations.values())):
        window = windows.pop(current.name, None)
        if window is None:
            continue
        if current.kind in ("global_average_pool", "global_max_pool"):
            everything = True
        inputs = current.inputs
        if current.kind == "scale_channels":
            gated, inputs = True, inputs[:1]
        for source in inputs:
            before = _before(current, window)
            other = windows.get(source, before)
            windows[source] = (*map(min, before[:2], other[:2]), *map(max, before[2:], other[2:]))  # type: ignore[assignment]
    top, left, bottom, right = windows.get(INPUT, (0, 0, 0, 0))
    return {"top": top, "left": left, "bottom": bottom, "right": right, "everything": everything, "gated": gated}


def _before(operation: Operation, window: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    if operation.window is None:
        return window
    kernel, stride, (above, beside) = operation.window
    top, left, bottom, right = window
    return (
        top * stride - above,
        left * stride - beside,
        bottom * stride - above + kernel - 1,
        right * stride - beside + kernel - 1,
    )
