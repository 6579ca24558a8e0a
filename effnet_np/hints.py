"""Why a layer differs: each rule makes one known mistake on purpose, and speaks where that gives exactly what ours gave.

A rule takes a Case and gives a sentence or None. Rules compute with the first wrong layer only: everything before it was
right, so its input and weights are the reference's. Where those are not known, a rule falls back on the outputs alone.
Letters as in ops.py: N batch, C channels, H and W height and width, K kernel size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from effnet_np import ops
from effnet_np.image_processor import CHECKPOINT_MEAN, CHECKPOINT_STD
from effnet_np.trace import INPUT

# (what, mean, std) that pictures are normalised with
NORMALISATIONS = (
    ("ImageNet's mean and std", CHECKPOINT_MEAN, [0.229, 0.224, 0.225]),
    ("the hub checkpoints' mean and std", CHECKPOINT_MEAN, CHECKPOINT_STD),
    ("mean 0.5 and std 0.5", [0.5] * 3, [0.5] * 3),
    ("Lite's mean 127 and std 128", [127.0] * 3, [128.0] * 3),
)
EPSILONS = (0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
BLOCK = 8  # pixels: a resize filter changes what is finer than this, and leaves what is coarser
SAME_PICTURE, FINE = 0.75, 0.4  # see _resize_filter


@dataclass(frozen=True)
class Case:
    """The first wrong layer. `inputs` and `weights` ("weight", "bias", "running_mean", ...) may be empty: not known."""

    name: str
    ours: np.ndarray
    theirs: np.ndarray
    inputs: tuple[np.ndarray, ...]
    weights: dict[str, np.ndarray]
    tolerance: float
    error: float  # of ours, relative to the reference's largest number; infinite where shapes differ

    def distance(self, candidate: np.ndarray) -> float:
        """How far ours is from an array, relative to the largest number of the reference."""
        return distance(self.ours, candidate, self.theirs)

    def explains(self, candidate: np.ndarray) -> bool:
        """Whether ours is this array, and clearly more so than it is the reference."""
        return self.distance(candidate) <= min(self.tolerance, self.error / 4)


def distance(a: np.ndarray, b: np.ndarray, reference: np.ndarray) -> float:
    if a.shape != b.shape or not a.size:
        return float("inf")
    error = float(np.abs(a - b).max() / max(np.abs(reference).max(), 1e-30))
    return error if np.isfinite(error) else float("inf")


def diagnose(case: Case) -> list[str]:
    """The hints for one case, the most telling first; none where no rule knows it."""
    if not np.isfinite(case.theirs).all():
        return ["the reference itself holds NaN or infinite numbers here: compare with a reference that works"]
    if not np.isfinite(case.ours).all():
        return [hint for hint in [_not_finite(case)] if hint]
    with np.errstate(all="ignore"):
        rules = (_layout, _channel_order, _normalisation, _batch_norm, _convolution, _activation, _residual)
        hints = [hint for rule in rules if (hint := rule(case))]
        if not hints:
            hints = [hint for rule in (_shift, _constant_factor, _resize_filter) if (hint := rule(case))][:1]
    return hints


# -- layout and position ----------------------------------------------------------------------------------------------


def _layout(case: Case) -> str | None:
    ours, theirs = case.ours, case.theirs
    if ours.size != theirs.size:
        return None
    if ours.shape != theirs.shape and distance(ours.squeeze(), theirs.squeeze(), theirs) <= case.tolerance:
        return f"shape: the numbers agree, only axes of length 1 differ; reshape ours to {theirs.shape}"
    if ours.ndim == theirs.ndim > 1:
        for order in permutations(range(ours.ndim)):
            moved = ours.transpose(order)
            if list(order) != sorted(order) and distance(moved, theirs, theirs) <= min(case.tolerance, case.error / 4):
                names: dict[tuple[int, ...], str] = {
                    (0, 3, 1, 2): "ours is channels last (NHWC)",
                    (0, 1, 3, 2): "ours has height and width exchanged",
                }
                what = names.get(order, "the axes of ours are in another order")
                return f"transposed layout: {what}; ours.transpose{order} is the reference"
    if theirs.ndim == 4 and ours.shape == theirs.shape:
        n, c, h, w = theirs.shape
        if case.explains(theirs.transpose(0, 2, 3, 1).reshape(theirs.shape)):
            return "transposed layout: the numbers of ours lie channels last (NHWC), but its shape says channels first (NCHW)"
        if case.explains(theirs.reshape(n, h, w, c).transpose(0, 3, 1, 2)):
            return "transposed layout: ours took channels-first (NCHW) numbers for channels last (NHWC) and moved them"
    return None


def _shift(case: Case) -> str | None:
    """Ours is the reference moved by a pixel or two, where both are defined."""
    ours, theirs = case.ours, case.theirs
    if ours.ndim != 4 or theirs.ndim != 4 or ours.shape[:2] != theirs.shape[:2] or min(*ours.shape[2:], *theirs.shape[2:]) < 6:
        return None
    same_shape = ours.shape == theirs.shape
    if max(abs(a - b) for a, b in zip(ours.shape, theirs.shape, strict=True)) > 3:
        return None
    for rows, columns in sorted(product(range(-2, 3), repeat=2), key=lambda offset: abs(offset[0]) + abs(offset[1])):
        if same_shape and rows == columns == 0:
            continue
        for margin in (0, 3) if min(theirs.shape[2:]) >= 14 else (0,):  # past a convolution, the border differs as well
            a, b = _overlap(ours, theirs, rows, columns, margin)
            if b.std() > 1e-3 * np.abs(theirs).max() and distance(a, b, theirs) <= min(case.tolerance, case.error / 4):
                if case.name == INPUT:
                    return f"the picture is shifted by ({rows}, {columns}) pixels (down, right): is the crop rounded otherwise?"
                before = f"{rows:+d} rows at the top and {columns:+d} columns at the left"
                low, right = (ours.shape[2] - theirs.shape[2] - rows, ours.shape[3] - theirs.shape[3] - columns)
                after = f"{low:+d} rows at the bottom and {right:+d} columns at the right"
                moved = "padding shifted by one" if abs(rows) == 1 or abs(columns) == 1 else "padding"
                return f"{moved}: compared with the reference, ours is padded by {before}, and {after}"
    return None


def _overlap(ours: np.ndarray, theirs: np.ndarray, rows: int, columns: int, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """The parts of two maps (N, C, H, W) that lie on each other when ours is moved back by so many rows and columns."""
    slices: list[tuple[slice, slice]] = []
    for offset, a, b in ((rows, ours.shape[2], theirs.shape[2]), (columns, ours.shape[3], theirs.shape[3])):
        first, last = max(0, -offset) + margin, min(b, a - offset) - margin
        slices.append((slice(first + offset, last + offset), slice(first, last)))
    (our_rows, their_rows), (our_columns, their_columns) = slices
    return ours[:, :, our_rows, our_columns], theirs[:, :, their_rows, their_columns]


# -- the picture ------------------------------------------------------------------------------------------------------


def _channel_order(case: Case) -> str | None:
    if case.name != INPUT or case.ours.shape != case.theirs.shape or case.ours.shape[1] != 3:
        return None
    turned = case.theirs[:, ::-1]
    if _affine(case.ours, turned)[2] <= 1e-4 < _affine(case.ours, case.theirs)[2]:
        return "channel order: ours has blue, green, red (BGR, as OpenCV reads pictures) where the reference has RGB"
    return None


def _normalisation(case: Case) -> str | None:
    """Each channel of ours is a * reference + b: which a and b says what was done twice, or not at all."""
    if case.name != INPUT or case.ours.shape != case.theirs.shape:
        return None
    scale, shift, residual = _affine(case.ours, case.theirs)
    if residual > 1e-4:
        return None
    for (what, mean, std), factor in product(NORMALISATIONS, (1.0, 255.0)):
        if len(mean) != len(scale) and len(set(mean)) > 1:
            continue
        m, s = (np.resize(v, len(scale)) for v in (mean, std))
        again = "" if factor == 1 else ", with the division by 255 before it"
        if _close(scale, 1 / s / factor) and _close(shift, -m / s):
            return f"normalisation done twice: ours is the reference normalised once more with {what}{again}"
        if _close(scale, s * factor) and _close(shift, m * factor):
            return f"normalisation left out: the reference is ours normalised with {what}{again}"
        if factor == 1 and len(set(s)) > 1 and not np.abs(shift).max() > 1e-3:
            if _close(scale, 1 / s):
                return f"normalisation: ours is divided by the std once more than the reference ({what})"
            if _close(scale, s):
                return f"normalisation: ours lacks one division by the std ({what}; `include_top` divides a second time)"
    if np.abs(shift).max() < 1e-3 and _close(scale, np.full_like(scale, scale[0])):
        return f"rescaling: ours is the reference times {scale[0]:.6g} (255 and 1/255: the division of pixels by 255)"
    numbers = ", ".join(f"{a:.4g} * reference {b:+.4g}" for a, b in zip(scale, shift, strict=True))
    return f"normalisation: another mean, std or rescaling; the channels of ours are {numbers}"


def _resize_filter(case: Case) -> str | None:
    """Still the same picture, and the difference is in its finest detail: it vanishes in means over 8 x 8 pixels."""
    ours, theirs = case.ours, case.theirs
    if case.name != INPUT or ours.shape != theirs.shape or min(theirs.shape[2:]) < 4 * BLOCK:
        return None
    difference = ours - theirs
    root_mean_square = np.sqrt(np.square(difference).mean())
    same_picture = root_mean_square < SAME_PICTURE * theirs.std()
    n, c, h, w = (*theirs.shape[:2], *(side // BLOCK for side in theirs.shape[2:]))
    blocks = difference[:, :, : h * BLOCK, : w * BLOCK].reshape(n, c, h, BLOCK, w, BLOCK).mean(axis=(3, 5))
    if same_picture and np.sqrt(np.square(blocks).mean()) < FINE * root_mean_square:
        return (
            "wrong resize filter: the pictures agree in the large and differ in fine detail, as between nearest, bilinear, "
            "bicubic and antialiased resizing, or where pixel centres or the crop are a fraction of a pixel off"
        )
    return None


# -- layers -----------------------------------------------------------------------------------------------------------


def _batch_norm(case: Case) -> str | None:
    names = ("running_mean", "running_var", "weight", "bias")
    known = all(name in case.weights for name in names) and case.inputs and case.inputs[0].shape == case.ours.shape
    if not known:
        return _batch_norm_from_outputs(case)
    x = case.inputs[0]
    mean, variance, weight, bias = (case.weights[name] for name in names)

    def best(target: np.ndarray) -> tuple[float, float]:
        tried = ((distance(target, ops.batch_norm(x, mean, variance, weight, bias, e), case.theirs), e) for e in EPSILONS)
        return min(tried)

    error, eps = best(case.ours)
    reference = best(case.theirs)[1]
    if error <= min(case.tolerance, case.error / 4) and eps != reference:
        if eps < reference:
            missing = "missing" if eps < 1e-7 else "too small"
            return f"batch-norm eps {missing}: ours is this layer computed with eps {eps:g}, the reference has {reference:g}"
        return f"batch-norm eps too large: ours is this layer computed with eps {eps:g}, the reference has {reference:g}"
    spread = (-1, 1, 1)
    m, v, g, b = (array.reshape(spread) for array in (mean, variance, weight, bias))
    deviation = np.sqrt(v + np.float32(reference))
    mistakes = {
        "the variance is used where its square root, the deviation, should be": (x - m) / (v + np.float32(reference)) * g + b,
        "weight and bias are left out": (x - m) / deviation,
        "the bias is left out": (x - m) / deviation * g,
        "the running mean is not subtracted": x / deviation * g + b,
        "the layer is left out": x,
        "the batch's own statistics are used (training mode)": (x - x.mean((0, 2, 3), keepdims=True))
        / np.sqrt(x.var((0, 2, 3), keepdims=True) + np.float32(reference))
        * g
        + b,
    }
    return next((f"batch norm: {what}" for what, candidate in mistakes.items() if case.explains(candidate)), None)


def _batch_norm_from_outputs(case: Case) -> str | None:
    """Without input and weights: a missing eps makes the scale of every channel a little larger, by sqrt(1 + eps / var)."""
    if not _is_batch_norm(case.name) or case.ours.ndim != 4 or case.ours.shape != case.theirs.shape:
        return None
    scale, _, residual = _affine(case.ours, case.theirs)
    if residual > min(case.tolerance, case.error / 4):
        return None
    scale = scale[case.theirs.std(axis=(0, 2, 3)) > 1e-3 * np.abs(case.theirs).max()]  # channels that hold more than rounding
    if len(scale) and (scale > 1 - 1e-5).all() and scale.max() > scale.min() + 1e-6:
        factors = f"{scale.min():.5f} to {scale.max():.5f}"
        return (
            f"batch-norm eps missing or too small: every channel of ours is the reference stretched, by factors from {factors}"
        )
    return "batch norm: every channel of ours is the reference stretched and moved; its statistics, weight, bias or eps differ"


def _is_batch_norm(name: str) -> bool:
    return any(word in name.rpartition(".")[2] for word in ("bn", "norm"))


def _convolution(case: Case) -> str | None:
    weight, bias = case.weights.get("weight"), case.weights.get("bias")
    if weight is None or weight.ndim != 4 or not case.inputs or case.theirs.ndim != 4 or case.inputs[0].ndim != 4:
        return None
    x, kernel = case.inputs[0], weight.shape[2]
    groups = x.shape[1] // weight.shape[1]
    stride = max(1, round(x.shape[2] / case.theirs.shape[2]))

    def run(kernels: np.ndarray, padding: tuple[int, ...]) -> np.ndarray | None:
        before, after = padding
        sides = [(side + before + after - kernel) // stride + 1 for side in x.shape[2:]]
        if min(sides) < 1 or min(x.shape[2:]) + min(before, 0) + min(after, 0) < 1:
            return None
        return ops.conv2d(x, kernels, bias, stride, (before, after, before, after), groups)

    def find(target: np.ndarray) -> tuple[float, tuple[int, ...]]:
        tried: list[tuple[float, tuple[int, ...]]] = [(float("inf"), (0, 0))]
        for padding in sorted(product(range(-2, kernel + 1), repeat=2), key=lambda pair: abs(pair[0]) + abs(pair[1])):
            if [(side + sum(padding) - kernel) // stride + 1 for side in x.shape[2:]] == list(target.shape[2:]):
                result = run(weight, padding)
                tried.append((float("inf") if result is None else distance(target, result, case.theirs), padding))
        return min(tried, key=lambda pair: pair[0])

    error, reference = find(case.theirs)
    if error > case.tolerance:
        return None  # this is not the convolution that we think it is
    if bias is not None and case.explains(case.theirs - bias[:, None, None]):
        return "convolution: the bias is left out"
    variants = {
        "the kernel is flipped (true convolution; deep learning's is cross-correlation)": weight[:, :, ::-1, ::-1],
        "the kernel's height and width are exchanged": weight.transpose(0, 1, 3, 2),
        "the weight was read in another order of axes (HWIO as TensorFlow has it, taken for OIHW)": weight.transpose(
            2, 3, 1, 0
        ).reshape(weight.shape),
    }
    if kernel > 1 or groups == 1:
        for what, variant in variants.items():
            result = run(np.ascontiguousarray(variant), reference)
            if result is not None and case.explains(result):
                return f"convolution: {what}"
    if kernel > 1 and case.ours.shape[:2] == case.theirs.shape[:2]:
        error, padding = find(case.ours)
        if error <= min(case.tolerance, case.error / 4) and padding != reference:
            shifted = "padding shifted by one" if abs(padding[0] - reference[0]) == 1 else "padding"
            return (
                f"{shifted}: ours pads the input by {padding} (top and left, bottom and right), the reference by {reference}; "
                "a negative number cuts away"
            )
    return None


def _activation(case: Case) -> str | None:
    if case.weights or len(case.inputs) != 1 or case.inputs[0].shape != case.ours.shape == case.theirs.shape:
        return None
    x = case.inputs[0]
    known: dict[str, Callable] = {**ops.ACTIVATIONS, "sigmoid": ops.sigmoid}
    reference = next((name for name, f in known.items() if distance(case.theirs, f(x), case.theirs) <= case.tolerance), None)
    if reference is None:
        return None
    if case.explains(x):
        return f"activation: it is left out, ours gives its input back where the reference applies {reference}"
    if case.explains(known[reference](case.theirs)):
        return f"activation: {reference} is applied twice"
    fitting = [name for name, function in known.items() if name != "silu" and case.explains(function(x))]
    return f"activation: ours applies {' or '.join(fitting)}, the reference {reference}" if fitting else None


def _residual(case: Case) -> str | None:
    if len(case.inputs) < 2 or case.inputs[0].shape != case.theirs.shape:
        return None
    if case.explains(case.theirs - case.inputs[0]):
        return "residual: the block's input is not added"
    if case.explains(case.theirs + case.inputs[0]):
        return "residual: the block's input is added once more than in the reference"
    return None


def _constant_factor(case: Case) -> str | None:
    """The last resort: a constant factor is still worth saying."""
    if case.ours.shape != case.theirs.shape or case.theirs.ndim < 2:
        return None
    factor = float(np.vdot(case.ours, case.theirs) / max(np.vdot(case.theirs, case.theirs), 1e-30))
    if case.explains(case.theirs * np.float32(factor)):
        return f"ours is the reference times {factor:.6g}"
    return None


def _not_finite(case: Case) -> str | None:
    if case.inputs and not np.isfinite(case.inputs[0]).all():
        return None
    if "running_var" in case.weights and (case.weights["running_var"] <= 0).any():
        return (
            "batch-norm eps missing: a running variance is zero or negative, and without eps its root divides by zero or is NaN"
        )
    if not all(np.isfinite(array).all() for array in case.weights.values()):
        return "a weight of this layer is NaN or infinite"
    if _is_batch_norm(case.name):
        return (
            "batch-norm eps missing, it seems: a channel that never fires has variance 0, and without eps its root divides by 0"
        )
    return "this layer's input is finite: it overflows (exp of a large number?), divides by zero, or takes the root of less"


# -- arithmetic -------------------------------------------------------------------------------------------------------


def _affine(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Least squares, channel by channel: ours = scale * theirs + shift -> (scale (C,), shift (C,), largest residual).

    The residual is relative to the largest number of ours, and says whether the fit means anything.
    """
    a, b = (np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).astype(np.float64) for array in (ours, theirs))
    centred_a, centred_b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    variance = np.square(centred_b).sum(1)
    scale = np.where(variance > 0, (centred_a * centred_b).sum(1) / np.where(variance > 0, variance, 1), 1.0)
    shift = a.mean(1) - scale * b.mean(1)
    residual = np.abs(a - scale[:, None] * b - shift[:, None]).max() / max(np.abs(a).max(), 1e-30)
    return scale, shift, float(residual)


def _close(values: np.ndarray, expected: Iterable[float]) -> bool:
    wanted = np.asarray(expected)
    return np.allclose(values, wanted, rtol=5e-4, atol=5e-4 * np.abs(wanted).max())
