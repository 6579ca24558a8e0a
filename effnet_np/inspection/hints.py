"""Why a layer differs: known mistakes are made on purpose, and one is named where it gives exactly what ours gave.

Only the first wrong layer is looked at: everything before it was right, so its input and weights are the reference's.
`mistakes(case)` is the table: sentences, each with the function that makes the mistake. Several mistakes may give the same
numbers; then all of them are said. Of a family (all values of eps, all paddings) only the closest is. Where none fits, a guess
may: a pattern in the outputs alone, which could have other reasons. Only the first that fits is said, the most telling one.
Letters as in ops.py: N batch, C channels, H and W height and width, K kernel size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations, product
from typing import NamedTuple

import numpy as np

from effnet_np import ops
from effnet_np.images.processor import CHECKPOINT_MEAN, CHECKPOINT_STD
from effnet_np.inspection.measure import nearly_zero
from effnet_np.tracing.trace import INPUT

# (what, mean, std) that pictures are normalised with
NORMALISATIONS = (
    ("ImageNet's mean and std", CHECKPOINT_MEAN, [0.229, 0.224, 0.225]),
    ("the hub checkpoints' mean and std", CHECKPOINT_MEAN, CHECKPOINT_STD),
    ("mean 0.5 and std 0.5", [0.5] * 3, [0.5] * 3),
    ("Lite's mean 127 and std 128", [127.0] * 3, [128.0] * 3),
)
EPSILONS = (0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
EPS_OF = {  # as other libraries have it
    1e-5: "PyTorch, and so of timm's efficientnet_* and torchvision's B0 to B4",
    1e-3: "TensorFlow, and so of Hugging Face, Keras, timm's tf_*, lukemelas, and torchvision's B5 to B7 and V2",
}
BLOCK = 8  # pixels: a resize filter changes what is finer than this, and leaves what is coarser
SAME_PICTURE, FINE = 0.75, 0.4  # see _resize_filter
SECONDS = 10.0  # after which no further mistake is tried
MAX_AXES = 5  # of which all orders are tried
MAX_KERNEL = 15  # for which all paddings are tried
SAMPLE = 1 << 16  # numbers on which elementwise functions are tried

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{name: function for name, function in ops.ACTIVATIONS.items() if name != "silu"},  # which is swish
    "sigmoid": ops.sigmoid,
    "hard-sigmoid (relu6(x + 3) / 6)": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard-sigmoid (0.2 x + 0.5, cut at 0 and 1)": lambda x: np.clip(x / 5 + np.float32(0.5), 0, 1),
    "hard-swish (x relu6(x + 3) / 6)": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "tanh": np.tanh,
}


@dataclass(frozen=True)
class Case:
    """The first wrong layer. `inputs` and `weights` ("weight", "bias", "running_mean", ...) may be empty: not known."""

    name: str
    ours: np.ndarray
    theirs: np.ndarray
    inputs: tuple[np.ndarray, ...] = ()
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    tolerance: float = 1e-4
    error: float = np.inf  # of ours, relative to the reference's largest number; infinite where shapes differ
    our_outputs: Mapping[str, np.ndarray] = field(default_factory=dict)  # of all layers, as far as they are known
    their_outputs: Mapping[str, np.ndarray] = field(default_factory=dict)

    def same(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether two arrays are equal, and clearly more so than ours is equal to the reference."""
        return distance(a, b, self.theirs) <= min(self.tolerance, self.error / 4)

    @property
    def same_shape(self) -> bool:
        return self.ours.shape == self.theirs.shape


class Mistake(NamedTuple):
    """What to say, and what the layer gives once the mistake is made. Of a `family`, if it has one, the closest counts."""

    sentence: str
    make: Callable[[], np.ndarray]
    family: str = ""


def distance(a: np.ndarray, b: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference, relative to the largest number of the reference; infinite where shapes differ or it is not finite."""
    if a is b:
        return 0.0
    if a.shape != b.shape or not a.size:
        return float("inf")
    error = float(np.abs(a - b).max() / max(np.abs(reference).max(), 1e-30))
    return error if np.isfinite(error) else float("inf")


def diagnose(case: Case) -> tuple[list[str], list[str]]:
    """(hints, notes) for one case: none where nothing fits, or where the reference is nearly zero, which anything could equal.

    A rule that fails is a note, and costs no other. No rule is begun after SECONDS.
    """
    hints: list[str] = []
    notes: list[str] = []
    if nearly_zero(case.theirs):
        return hints, notes
    if not np.isfinite(case.theirs).all():
        return ["the reference itself holds NaN or infinite numbers here: compare with a reference that works"], notes
    rules: list[Callable[[Case, list[str], float], None]] = [partial(_explain, kind) for kind in (_byte_order, *KINDS)]
    rules += [partial(_guess, guess) for guess in (GUESSES if np.isfinite(case.ours).all() else (_not_finite,))]
    deadline = time.monotonic() + SECONDS
    with np.errstate(all="ignore"):
        for rule in rules:
            try:
                if time.monotonic() < deadline:
                    rule(case, hints, deadline)
            except Exception as error:  # whatever a rule stumbles on in a stranger's arrays, the report is worth more
                notes.append(f"looking for the reason, a rule failed: {type(error).__name__}: {error!s:.200}")
    return list(dict.fromkeys(hints)), notes


def _explain(kind: Callable[[Case], Iterable[Mistake]], case: Case, hints: list[str], deadline: float) -> None:
    """Add the sentences of all mistakes of a kind that give what ours gave."""
    closest: dict[str, tuple[float, int]] = {}  # family -> (distance, place in hints)
    for mistake in kind(case):
        if time.monotonic() > deadline:
            return
        candidate = mistake.make()
        if not case.same(case.ours, candidate):
            continue
        error = distance(case.ours, candidate, case.theirs)
        best, place = closest.get(mistake.family or mistake.sentence, (np.inf, len(hints)))
        if error < best:
            hints[place : place + 1] = [mistake.sentence]
            closest[mistake.family or mistake.sentence] = (error, place)


def _guess(guess: Callable[[Case], str | None], case: Case, hints: list[str], deadline: float) -> None:
    if not hints:
        hints += filter(None, [guess(case)])


# -- the table --------------------------------------------------------------------------------------------------------


def mistakes(case: Case) -> Iterator[Mistake]:
    """All that could have been done wrong in such a layer."""
    for kind in KINDS:
        yield from kind(case)


def _axes(case: Case) -> Iterator[Mistake]:
    ours, theirs = case.ours, case.theirs
    if ours.ndim == theirs.ndim and 1 < ours.ndim <= MAX_AXES:
        said: dict[tuple[int, ...], str] = {
            (0, 3, 1, 2): "ours is channels last (NHWC)",
            (0, 1, 3, 2): "ours has height and width exchanged",
        }
        for order in permutations(range(ours.ndim)):
            back = tuple(np.argsort(order))
            if list(order) != sorted(order) and tuple(ours.shape[axis] for axis in order) == theirs.shape:
                what = said.get(order, "the axes of ours are in another order")
                sentence = f"transposed layout: {what}; ours.transpose{order} is the reference"
                yield Mistake(sentence, partial(theirs.transpose, back), "axes")
    if theirs.ndim == 4 and case.same_shape:
        n, c, h, w = theirs.shape
        yield Mistake(
            "transposed layout: the numbers of ours lie channels last (NHWC), but its shape says channels first (NCHW)",
            lambda: theirs.transpose(0, 2, 3, 1).reshape(theirs.shape),
        )
        yield Mistake(
            "transposed layout: ours took channels-first (NCHW) numbers for channels last (NHWC) and moved them",
            lambda: theirs.reshape(n, h, w, c).transpose(0, 3, 1, 2),
        )
    if not case.same_shape and ours.size == theirs.size:
        sentence = f"shape: the numbers agree, only axes of length 1 differ; reshape ours to {theirs.shape}"
        if ours.squeeze().shape == theirs.squeeze().shape:
            yield Mistake(sentence, lambda: theirs.reshape(ours.shape))


def _batch_norm(case: Case) -> Iterator[Mistake]:
    names = ("running_mean", "running_var", "weight", "bias")
    if not all(name in case.weights for name in names) or not case.inputs or case.inputs[0].shape != case.theirs.shape:
        return
    x = case.inputs[0]
    mean, variance, weight, bias = (case.weights[name] for name in names)

    def run(eps: float) -> np.ndarray:
        return ops.batch_norm(x, mean, variance, weight, bias, eps)

    reference = min(EPSILONS, key=lambda eps: distance(case.theirs, run(eps), case.theirs))
    for eps in EPSILONS:
        if eps != reference:
            what = "too large" if eps > reference else "missing" if eps < 1e-7 else "too small"
            whose = f" ({eps:g} is that of {EPS_OF[eps]})" if eps in EPS_OF and reference in EPS_OF else ""
            sentence = (
                f"batch-norm eps {what}: ours is this layer computed with eps {eps:g}, the reference has {reference:g}{whose}"
            )
            yield Mistake(sentence, partial(run, eps), "eps")
    m, v, g, b = (array.reshape(-1, 1, 1) for array in (mean, variance, weight, bias))
    right = np.float32(reference)
    deviation = np.sqrt(v + right)
    wrong: dict[str, Callable[[], np.ndarray]] = {
        "the variance is used where its square root, the deviation, should be": lambda: (x - m) / (v + right) * g + b,
        "weight and bias are left out": lambda: (x - m) / deviation,
        "the bias is left out": lambda: (x - m) / deviation * g,
        "the running mean is not subtracted": lambda: x / deviation * g + b,
        "the layer is left out": lambda: x,
        "the batch's own statistics are used (training mode)": lambda: (
            (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + right) * g + b
        ),
    }
    for what, make in wrong.items():
        yield Mistake(f"batch norm: {what}", make)


def _convolution(case: Case) -> Iterator[Mistake]:
    weight, bias = case.weights.get("weight"), case.weights.get("bias")
    if weight is None or weight.ndim != 4 or not case.inputs or case.theirs.ndim != 4 or case.inputs[0].ndim != 4:
        return
    x, kernel = case.inputs[0], weight.shape[2]
    if not weight.size or not x.size or not 1 <= kernel == weight.shape[3] <= MAX_KERNEL:
        return
    groups, stride = x.shape[1] // weight.shape[1], max(1, round(x.shape[2] / max(case.theirs.shape[2], 1)))

    def run(kernels: np.ndarray, padding: tuple[int, int], x: np.ndarray = x) -> np.ndarray:
        before, after = padding
        return ops.conv2d(x, np.ascontiguousarray(kernels), bias, stride, (before, after, before, after), groups)

    def fitting(shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """The paddings that give a map of this shape, the smallest first."""
        sides = range(-2, kernel + 1)
        pairs = sorted(((a, b) for a in sides for b in sides), key=lambda pair: abs(pair[0]) + abs(pair[1]))
        cut = min(x.shape[2:])
        return [
            pair
            for pair in pairs
            if [(side + sum(pair) - kernel) // stride + 1 for side in x.shape[2:]] == list(shape[2:])
            and min(shape[2:]) > 0
            and cut + min(pair[0], 0) + min(pair[1], 0) > 0
        ]

    tried = [(distance(case.theirs, run(weight, pair), case.theirs), pair) for pair in fitting(case.theirs.shape)]
    error, right = min(tried, default=(np.inf, (0, 0)))
    if error > case.tolerance:
        return  # this is not the convolution that we think it is
    if bias is not None:
        yield Mistake("convolution: the bias is left out", lambda: case.theirs - bias[:, None, None])
    if kernel > 1:
        yield Mistake(
            "convolution: the kernel is flipped (true convolution; deep learning's is cross-correlation)",
            lambda: run(weight[:, :, ::-1, ::-1], right),
        )
        yield Mistake(
            "convolution: the kernel's height and width are exchanged", lambda: run(weight.transpose(0, 1, 3, 2), right)
        )
    if groups == 1:
        o, c = weight.shape[:2]
        hwio = "convolution: the weight was read in another order of axes (HWIO as TensorFlow has it, taken for OIHW)"
        swapped = "convolution: the axes of the weight matrix are swapped: inputs for outputs, (C, O) for (O, C)"
        yield Mistake(hwio, lambda: run(weight.transpose(2, 3, 1, 0).reshape(weight.shape), right), "matrix")
        if kernel == 1:
            yield Mistake(swapped, lambda: run(weight.reshape(c, o).T.reshape(o, c, 1, 1), right), "matrix")
    elif kernel > 1:
        hwio = "convolution: the weight was read in another order of axes (HWC as TensorFlow has it, taken for CHW)"
        yield Mistake(hwio, lambda: run(weight.transpose(2, 3, 1, 0).reshape(weight.shape), right), "matrix")
    if kernel > 1 and case.ours.ndim == 4 and case.ours.shape[:2] == case.theirs.shape[:2]:
        for pair in fitting(case.ours.shape):
            if pair != right:
                shifted = "padding shifted by one" if abs(pair[0] - right[0]) == 1 else "padding"
                pads = f"ours pads the input by {pair} (top and left, bottom and right), the reference by {right}"
                whose = _whose_padding(kernel, pair, right) if stride == 2 else ""
                yield Mistake(f"{shifted}: {pads}; a negative number cuts away{whose}", partial(run, weight, pair), "padding")
    block = case.name.removesuffix(".projection.project_conv")
    if block != case.name:  # whose input the gate has scaled
        bare, gated = f"{block}.depthwise_conv", f"{block}.squeeze_excite"
        if gated in case.their_outputs and bare in case.their_outputs:
            sentence = "squeeze-excite: the gate is left out, the projection takes what the depthwise convolution gave"
            yield Mistake(sentence, lambda: run(weight, right, case.their_outputs[bare]))
        elif gated not in case.their_outputs and gated in case.our_outputs:
            sentence = "squeeze-excite: ours has a gate where the reference has none"
            yield Mistake(sentence, lambda: run(weight, right, case.our_outputs[gated]))


def _whose_padding(kernel: int, ours: tuple[int, int], theirs: tuple[int, int]) -> str:
    """By the zeros at the top and left: those at the other end may never be looked at."""
    sentence = "symmetric is how timm's efficientnet_* and torchvision pad, one-sided is TensorFlow's SAME for an even size"
    return f"; {sentence}" if {ours[0], theirs[0]} == {kernel // 2, kernel // 2 - 1} else ""


def _linear(case: Case) -> Iterator[Mistake]:
    weight, bias = case.weights.get("weight"), case.weights.get("bias")
    if weight is None or weight.ndim != 2 or not case.inputs or case.inputs[0].ndim != 2 or case.theirs.ndim != 2:
        return
    x, (o, c) = case.inputs[0], weight.shape
    if x.shape[1] != c or distance(case.theirs, ops.linear(x, weight, bias), case.theirs) > case.tolerance:
        return
    if bias is not None:
        yield Mistake("linear: the bias is left out", lambda: ops.linear(x, weight))
    swapped = "linear: the axes of the weight matrix are swapped: inputs for outputs"
    yield Mistake(f"{swapped}, (C, O) for (O, C)", lambda: ops.linear(x, weight.reshape(c, o).T, bias), "matrix")
    yield Mistake(f"{swapped}, (O, C) for (C, O)", lambda: ops.linear(x, weight.T.reshape(o, c), bias), "matrix")


def _activation_of(case: Case) -> str | None:
    """The activation that the reference applies in this layer, None if it is no activation."""
    if case.weights or len(case.inputs) != 1 or case.inputs[0].shape != case.theirs.shape:
        return None
    step = case.theirs.size // SAMPLE + 1
    x, theirs = case.inputs[0].reshape(-1)[::step], case.theirs.reshape(-1)[::step]
    return next((name for name, f in ACTIVATIONS.items() if distance(theirs, f(x), case.theirs) <= case.tolerance), None)


def _activation(case: Case) -> Iterator[Mistake]:
    reference = _activation_of(case)
    if reference is None or not case.same_shape:
        return
    step = case.theirs.size // SAMPLE + 1  # elementwise: a part of it tells, and is exchanged in a copy of ours
    x, theirs = case.inputs[0].reshape(-1)[::step], case.theirs.reshape(-1)[::step]

    def whole(part: np.ndarray) -> np.ndarray:
        """The part among the other numbers of ours."""
        array = case.ours.reshape(-1).copy()
        array[::step] = part
        return array.reshape(case.ours.shape)

    given = "activation: it is left out, ours gives its input back where the reference applies"
    yield Mistake(f"{given} {reference}", lambda: whole(x))
    yield Mistake(f"activation: {reference} is applied twice", lambda: whole(ACTIVATIONS[reference](theirs)))
    alike: dict[bytes, list[str]] = {}  # functions that agree on this input, as relu and relu6 do below 6
    for name, function in ACTIVATIONS.items():
        alike.setdefault(function(x).astype(np.float32).tobytes(), []).append(name)
    for names in alike.values():
        if reference not in names:
            sentence = f"activation: ours applies {' or '.join(names)}, the reference {reference}"
            yield Mistake(sentence, partial(lambda name: whole(ACTIVATIONS[name](x)), names[0]), "activation")


def _gate(case: Case) -> Iterator[Mistake]:
    if case.weights or len(case.inputs) != 1 or case.theirs.ndim != 4 or case.inputs[0].shape != case.theirs.shape:
        return
    x = case.inputs[0]
    squares = np.square(x).sum((2, 3), keepdims=True)
    gate = (x * case.theirs).sum((2, 3), keepdims=True) / np.maximum(squares, 1e-30)  # (N, C, 1, 1)
    if not (squares > 0).any() or distance(x * gate, case.theirs, case.theirs) > case.tolerance:
        return
    yield Mistake("squeeze-excite: the gate is left out, ours gives its input back", lambda: x)
    yield Mistake("squeeze-excite: the gate is added to the input, where the reference multiplies by it", lambda: x + gate)
    yield Mistake("squeeze-excite: the gate is applied twice", lambda: x * gate * gate)


def _residual(case: Case) -> Iterator[Mistake]:
    if len(case.inputs) != 2 or case.inputs[0].shape != case.theirs.shape:
        return
    x = case.inputs[0]
    yield Mistake("residual: the block's input is not added", lambda: case.theirs - x)
    yield Mistake("residual: the block's input is added once more than in the reference", lambda: case.theirs + x)
    for name in ("relu", "swish"):
        sentence = (
            f"activation: ours applies {name} after the projection, before the block's input is added; the reference none"
        )
        yield Mistake(sentence, partial(lambda name: ACTIVATIONS[name](case.theirs - x) + x, name))


def _activation_after(case: Case) -> Iterator[Mistake]:
    """What a port fuses with the layer before it."""
    if not case.same_shape or _activation_of(case) is not None:
        return  # an activation itself has mistakes of its own
    step = case.theirs.size // SAMPLE + 1
    theirs = case.theirs.reshape(-1)[::step]
    alike: dict[bytes, list[str]] = {}
    for name in ("relu", "relu6", "swish"):
        alike.setdefault(ACTIVATIONS[name](theirs).tobytes(), []).append(name)
    for names in alike.values():
        sentence = f"activation: ours applies {' or '.join(names)} after this layer, where the reference has none"
        yield Mistake(sentence, partial(lambda name: ACTIVATIONS[name](case.theirs), names[0]), "activation after")


def _class_order(case: Case) -> Iterator[Mistake]:
    """Logits (N, classes) whose columns are those of the reference in another order."""
    if case.theirs.ndim != 2 or case.ours.ndim != 2 or case.name.rpartition(".")[2] not in ("classifier", "logits"):
        return
    count = case.theirs.shape[1]
    if case.ours.shape[1] == count + 1:
        yield Mistake(
            "class order: ours has a class more at the front, the background that TensorFlow's networks have",
            lambda: np.concatenate([case.ours[:, :1], case.theirs], axis=1),
        )
    if not case.same_shape:
        return
    as_texts = sorted(range(count), key=str)  # "0", "1", "10", "100", "101", ...
    folders = "as Keras orders the classes of folders that are named by numbers"
    yield Mistake(
        f"class order: the classes of ours are in the order of their numbers as texts (0, 1, 10, 11, ...), {folders}",
        lambda: case.theirs[:, as_texts],
    )
    yield Mistake(
        f"class order: the classes of the reference are in the order of their numbers as texts (0, 1, 10, 11, ...), {folders}",
        lambda: case.theirs[:, np.argsort(as_texts)],
    )
    order = np.empty(count, int)
    order[np.argsort(case.ours[0], kind="stable")] = np.argsort(case.theirs[0], kind="stable")
    first = int(np.flatnonzero(order != np.arange(count))[0]) if (order != np.arange(count)).any() else 0
    if len(case.theirs) > 1 or count > 20:  # else chance suffices
        sentence = f"class order: ours has the reference's numbers in another order, its class {first} is the reference's"
        yield Mistake(f"{sentence} {order[first]}", lambda: case.theirs[:, order], "")


KINDS = (_axes, _batch_norm, _convolution, _linear, _class_order, _activation, _gate, _residual, _activation_after)


def _byte_order(case: Case) -> Iterator[Mistake]:
    """Not in the table: rounding, in the last bits, becomes anything at all in the first, so it is undone and not made."""
    ours = case.ours
    if ours.dtype.itemsize > 1 and ours.dtype == case.theirs.dtype and case.same(ours.byteswap(), case.theirs):
        yield Mistake("byte order: the numbers of ours are big-endian, they must be little-endian", lambda: ours)


# -- numbers that are not finite --------------------------------------------------------------------------------------


def _not_finite(case: Case) -> str | None:
    """Ours has NaN or infinity where the reference has none."""
    if case.inputs and not np.isfinite(case.inputs[0]).all():
        return None
    eps = "batch-norm eps missing"
    channels = np.flatnonzero(~np.isfinite(case.ours).all(axis=tuple(a for a in range(case.ours.ndim) if a != 1)))
    variance = case.weights.get("running_var")
    if variance is not None and variance.shape == case.ours.shape[1:2] and (variance[channels] <= 0).all():
        return f"{eps}: a running variance is zero or negative, and without eps its root divides by zero or is NaN"
    if not all(np.isfinite(array).all() for array in case.weights.values()):
        return "a weight of this layer is NaN or infinite"
    if variance is None and _is_batch_norm(case.name):
        return f"{eps}, it seems: a channel that never fires has variance 0, and without eps its root divides by 0"
    return "this layer's input is finite: it overflows (exp of a large number?), divides by zero, or takes the root of less"


def _is_batch_norm(name: str) -> bool:
    return any(word in name.rpartition(".")[2] for word in ("bn", "norm"))


# -- guesses: the picture ---------------------------------------------------------------------------------------------


def _is_picture(case: Case) -> bool:
    return case.name == INPUT and case.same_shape and case.theirs.ndim == 4 and case.theirs.size > 0


def _channel_order(case: Case) -> str | None:
    if not _is_picture(case) or case.theirs.shape[1] != 3:
        return None
    turned = case.theirs[:, ::-1]
    if _affine(case.ours, turned)[2] <= 1e-4 < _affine(case.ours, case.theirs)[2]:
        return "channel order: ours has blue, green, red (BGR, as OpenCV reads pictures) where the reference has RGB"
    return None


def _normalisation(case: Case) -> str | None:
    """Each channel of ours is a * reference + b: which a and b says what was done twice, or not at all."""
    if not _is_picture(case):
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
    for (own, m1, s1), (other, m2, s2) in permutations(NORMALISATIONS, 2):
        (a, b), (c, d) = (_of_unit_pixels(mean, std, len(scale)) for mean, std in ((m1, s1), (m2, s2)))
        if _close(scale, d / b) and _close(shift, (c - a) / b):
            return f"normalisation: ours is prepared with {own}, the reference with {other}: weights want their own"
    if np.abs(shift).max() < 1e-3 and _close(scale, np.full_like(scale, scale[0])):
        return f"rescaling: ours is the reference times {scale[0]:.6g} (255 and 1/255: the division of pixels by 255)"
    numbers = ", ".join(f"{a:.4g} * reference {b:+.4g}" for a, b in zip(scale, shift, strict=True))
    return f"normalisation: another mean, std or rescaling; the channels of ours are {numbers}"


def _of_unit_pixels(mean: Sequence[float], std: Sequence[float], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std for pixels from 0 to 1, where they are given for those or, above 1, for pixels from 0 to 255."""
    m, s = np.resize(mean, channels), np.resize(std, channels)
    return (m / 255, s / 255) if m.max() > 1 else (m, s)


def _resize_filter(case: Case) -> str | None:
    """Still the same picture, and the difference is in its finest detail: it vanishes in means over 8 x 8 pixels."""
    ours, theirs = case.ours, case.theirs
    if not _is_picture(case) or min(theirs.shape[2:]) < 4 * BLOCK:
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


# -- guesses: layers --------------------------------------------------------------------------------------------------


def _batch_norm_from_outputs(case: Case) -> str | None:
    """Without input and weights: a missing eps makes the scale of every channel a little larger, by sqrt(1 + eps / var)."""
    known = "running_var" in case.weights and case.inputs
    if known or not _is_batch_norm(case.name) or case.ours.ndim != 4 or not case.same_shape:
        return None
    scale, _, residual = _affine(case.ours, case.theirs)
    if residual > min(case.tolerance, case.error / 4):
        return None
    scale = scale[case.theirs.std(axis=(0, 2, 3)) > 1e-3 * np.abs(case.theirs).max()]  # channels that hold more than rounding
    if len(scale) and (scale > 1 - 1e-5).all() and scale.max() > scale.min() + 1e-6:
        stretched = f"every channel of ours is the reference stretched, by factors from {scale.min():.5f} to {scale.max():.5f}"
        return f"batch-norm eps missing or too small: {stretched}"
    return "batch norm: every channel of ours is the reference stretched and moved; its statistics, weight, bias or eps differ"


def _shift(case: Case) -> str | None:
    """Ours is the reference moved by a pixel or two, where both are defined."""
    ours, theirs = case.ours, case.theirs
    if ours.ndim != 4 or theirs.ndim != 4 or ours.shape[:2] != theirs.shape[:2] or min(*ours.shape[2:], *theirs.shape[2:]) < 6:
        return None
    if max(abs(a - b) for a, b in zip(ours.shape, theirs.shape, strict=True)) > 3:
        return None
    for rows, columns in sorted(product(range(-2, 3), repeat=2), key=lambda offset: abs(offset[0]) + abs(offset[1])):
        if case.same_shape and rows == columns == 0:
            continue
        for margin in (0, 3) if min(theirs.shape[2:]) >= 14 else (0,):  # past a convolution, the border differs as well
            a, b = _overlap(ours, theirs, rows, columns, margin)
            if b.std() > 1e-3 * np.abs(theirs).max() and case.same(a, b):
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


def _constant_factor(case: Case) -> str | None:
    """The last resort: a constant factor is still worth saying."""
    if not case.same_shape or case.theirs.ndim < 2:
        return None
    factor = float(np.vdot(case.ours, case.theirs) / max(np.vdot(case.theirs, case.theirs), 1e-30))
    if case.same(case.ours, case.theirs * np.float32(factor)):
        return f"ours is the reference times {factor:.6g}"
    return None


GUESSES = (_channel_order, _normalisation, _batch_norm_from_outputs, _shift, _constant_factor, _resize_filter)


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
