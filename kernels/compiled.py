"""compile(model) -> CompiledEfficientNet: the same call and the same outputs, computed by the kernels.

What it holds: the packed weights, once; a few plans, one for each image size that was seen lately; one arena for the
activations and one scratch, both as large as the largest plan wants; and a pool of threads. Images of a batch go through the
large maps one after another, so that each one's activations stay in the caches, and through the last blocks, whose weights
are larger than their maps, some at a time (`Plan.late`), so that the weights do. The results are the same, bit for bit.

It keeps nothing of the model that it was made from but the configuration and the image processor. Several Python threads
may call it; they take turns.
"""

from __future__ import annotations

import copy
import functools
import os
import threading
import time
import warnings
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np

from effnet_np.kernels import library, table
from effnet_np.kernels.arena import ALIGN, FeatureMap
from effnet_np.kernels.cores import default_threads
from effnet_np.kernels.overflow import largest_pixel
from effnet_np.kernels.plan import pack, plan
from effnet_np.kernels.pool import Pool
from effnet_np.kernels.resize import network_input
from effnet_np.kernels.target import CPU_NAME, WIDTH
from effnet_np.layer_specs import layer_specs
from effnet_np.model import EfficientNetForImageClassification
from effnet_np.outputs import BaseModelOutput, ImageClassifierOutput
from effnet_np.pretrained import PreTrainedModel, check_pixel_values, classification_loss
from effnet_np.version import __version__

MOST_PLANS = 8  # image sizes whose plans are kept
TOGETHER = 8  # images of a batch that go through the last blocks at once,
TOGETHER_BYTES = 1 << 23  # if their maps are no larger than this there
_models: weakref.WeakSet = weakref.WeakSet()


# What people call on a model of transformers or of ours, and where it is instead.
ELSEWHERE = {
    **dict.fromkeys(
        (
            "state_dict",
            "load_state_dict",
            "save_pretrained",
            "named_modules",
            "named_parameters",
            "parameters",
            "get_submodule",
        ),
        "its weights are folded and packed for this CPU: ask the model that it was compiled from",
    ),
    **dict.fromkeys(("cuda", "half", "bfloat16"), "it runs on the CPU, in float32"),
    **dict.fromkeys(
        ("train", "backward", "double"), "it computes the forward pass in float32, in eval mode; the model does more"
    ),
    "register_forward_hook": "the kernels do not stop at each module: put the hook on the model that it was compiled from",
}


def _aligned(memory: np.ndarray) -> int:
    return -(-memory.ctypes.data // ALIGN) * ALIGN


class _Bound:
    """A plan with a table of addresses for each of the images that go through together."""

    def __init__(self, owner: CompiledEfficientNet, plan, arena: np.ndarray, images: int, most: int):
        base = _aligned(arena)
        self.plan, self.images, self.most = plan, images, most
        bases = [base + image * plan.late_bytes for image in range(images)]
        weights, functions, threads = owner._weights.address, owner._functions, owner.threads
        self.tables = np.stack([plan.bind(each, weights, functions, threads) for each in bases])
        self.steps, self.stride = len(plan.steps), self.tables[0].nbytes
        self.places = [_Place(owner, plan, table, arena, each) for table, each in zip(self.tables, bases, strict=True)]

    def run(self, pool: Pool, scratch: int, images: list[np.ndarray]) -> None:
        """As many images as there are places, at most."""
        for place, image in zip(self.places, images, strict=False):
            place.source[0] = image.ctypes.data
        late = self.plan.late if len(images) > 1 else self.steps
        for place in self.places[: len(images)][::-1]:  # see plan.py
            pool(place.address, 0, late, scratch, self.plan.scratch_bytes)
        if late < self.steps:
            first = self.places[0].address
            pool(first, late, self.steps, scratch, self.plan.scratch_bytes, len(images), self.stride)


class _Place:
    """A table of addresses: where the image is, and where the results will lie."""

    def __init__(self, owner: CompiledEfficientNet, plan, rows: np.ndarray, arena: np.ndarray, base: int):
        self.arena, self.address = arena, rows.ctypes.data
        self.source = plan.image_word(rows)  # where the image's address goes
        self._skip = base - arena.ctypes.data
        self.hidden = [self.view(plane) for plane in plan.hidden]
        self.last = self.view(plan.last) if plan.last else None
        self.pooled = self.vector(plan.pooled, owner._network.head_channels)
        self.logits = self.vector(plan.logits, owner._network.num_labels) if plan.logits is not None else self.pooled

    def vector(self, offset: int, size: int) -> np.ndarray:
        start = (self._skip + offset) // 4
        return self.arena[start : start + size]

    def view(self, plane: FeatureMap) -> np.ndarray:
        """(blocks, WIDTH, H, W): NCHW but for channels that are only there to fill a block."""
        blocks = -(-plane.channels // WIDTH)
        floats = self.vector(plane.offset, blocks * plane.pixels * WIDTH)
        return floats.reshape(blocks, plane.height, plane.width, WIDTH).transpose(0, 3, 1, 2)


def _nchw(view: np.ndarray, out: np.ndarray) -> None:
    blocks = len(view)
    whole = len(out) // WIDTH
    out[: whole * WIDTH].reshape(whole, WIDTH, *out.shape[1:])[...] = view[:whole]
    if whole < blocks:
        out[whole * WIDTH :] = view[whole, : len(out) - whole * WIDTH]


def _blocks(maps: np.ndarray, view: np.ndarray) -> None:
    """The way back: (C, H, W) into (blocks, WIDTH, H, W), zeros where a block has more channels."""
    whole = len(maps) // WIDTH
    view[:whole] = maps[: whole * WIDTH].reshape(whole, WIDTH, *maps.shape[1:])
    if whole < len(view):
        view[whole] = 0
        view[whole, : len(maps) - whole * WIDTH] = maps[whole * WIDTH :]


class CompiledEfficientNet:
    """A model's forward, run by the kernels. Same call and same outputs as the model that it was made from."""

    def __init__(self, model: PreTrainedModel, threads: int | None = None):
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads must be a whole number of at least 1, or None for all cores, got {threads!r}")
        self.config, self.image_processor = model.config, model.image_processor
        self._asked, self.threads = threads, threads or default_threads()
        self.classifies = isinstance(model, EfficientNetForImageClassification)
        self._reference = None
        reason = _why_not(model)
        if reason:
            warnings.warn(f"{reason}: the NumPy model answers instead of the kernels", stacklevel=3)
            self._reference = model
            return
        self._functions = library.addresses()
        self._network = copy.deepcopy(model.config)  # what was packed: whatever becomes of `config`, no kernel reads beyond it
        self._weights = pack(model.state_dict(), self._network)
        if not np.isfinite(self._weights.data).all():  # the kernels' arithmetic differs from NumPy's in what NaN it gives
            warnings.warn("some weights are NaN or infinite: the NumPy model answers instead of the kernels", stacklevel=3)
            self._reference = model
            return
        self._largest_pixel = min(largest_pixel(model.state_dict(), self._network), float(np.finfo(np.float32).max))
        if self._largest_pixel <= 0:
            reason = "the weights are so large that the network can overflow unseen"
            warnings.warn(f"{reason}: the NumPy model answers instead of the kernels", stacklevel=3)
            self._reference = model
            return
        self._lanes: dict[int, list[CompiledEfficientNet]] = {}
        self._reset()

    def _reset(self) -> None:
        """What no two may share: plans, memory, threads, a lock."""
        self._plans: OrderedDict[tuple, _Bound] = OrderedDict()
        self._arena = self._scratch = np.zeros(0, np.float32)
        self._pool = Pool(self.threads, 3 * len(self._network.blocks()) + 4)
        self._lock = threading.Lock()
        _models.add(self)

    # -- pickle and copy ------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Configuration and packed weights travel; machine code is loaded, and memory taken, where they arrive.

        So `copy.copy` gives a model that shares the weights, which nobody writes, and may run beside this one.
        """
        kept = ("config", "image_processor", "classifies", "_asked", "_reference", "_network", "_weights", "_largest_pixel")
        state = {name: value for name, value in self.__dict__.items() if name in kept}
        return state | {"packed_for": _packed_for()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the kernels here read weights in another layout than they were packed in."""
        packed_for = state.pop("packed_for")
        self.__dict__.update(state)
        self.threads = self._asked or default_threads()  # all cores means those of the machine where it is now
        if self._reference is None:
            if packed_for != _packed_for():
                raise ValueError(
                    f"this compiled model was packed for effnet_np {packed_for[0]}, registers of {packed_for[1]} numbers, and "
                    f"here is effnet_np {__version__}, {WIDTH} numbers (or the kernels' code differs): send the model that it "
                    "was compiled from, and compile that here"
                )
            self._functions, self._lanes = library.addresses(), {}
            self._reset()

    # -- several at a time ----------------------------------------------------------------------------------------

    def lanes(self, count: int) -> list[CompiledEfficientNet]:
        """`count` models that may run at the same time, with this one's weights, each with its share of the threads, or one.

        For many images that is faster than all threads on each. They are kept. Where NumPy answers: this model itself, alone.
        """
        if self._reference is not None:
            return [self]
        with self._lock:
            if count not in self._lanes:
                self._lanes[count] = [self._twin(max(1, self.threads // count)) for _ in range(count)]
            return self._lanes[count]

    def _twin(self, threads: int) -> CompiledEfficientNet:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._asked = twin.threads = threads
        twin._lanes = {}
        twin._reset()
        return twin

    # -- pictures --------------------------------------------------------------------------------------------------

    def network_input(self, pixels: np.ndarray) -> np.ndarray:
        """One picture (H, W, C) uint8 -> (C, h, w), what its image processor's `network_input` makes of it, but sooner."""
        return (network_input if self._reference is None else type(self.image_processor).network_input)(
            self.image_processor, pixels
        )

    # -- what people call on a model ------------------------------------------------------------------------------

    dtype = np.dtype(np.float32)
    device = "cpu"
    training = False

    def eval(self) -> CompiledEfficientNet:
        """Itself: it is in eval mode, always."""
        return self

    def to(self, device: Any = "cpu") -> CompiledEfficientNet:
        """Itself, for "cpu" and float32. Raises ValueError for anything else."""
        if str(device).removeprefix("torch.") not in ("cpu", "float32") and device is not np.float32:
            raise ValueError(f"a compiled model runs on the CPU in float32, to({device!r}) is not possible")
        return self

    def num_parameters(self) -> int:
        """How many numbers training would change, in the model that it was compiled from."""
        layers = layer_specs(self.config.architecture(), self.config.image_size, self.config.image_size)
        return sum(layer.parameters for layer in layers if self.classifies or layer.kind != "linear")

    def __getattr__(self, name: str) -> Any:
        if name in ELSEWHERE:
            raise AttributeError(f"a compiled model has no {name}(): {ELSEWHERE[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        kind = "EfficientNetForImageClassification" if self.classifies else "EfficientNetModel"
        size = self.config.image_size
        text = f"{self.num_parameters() / 1e6:.1f} million parameters, {size} x {size}"
        if self._reference is not None:
            return f"CompiledEfficientNet({kind}, {text}; the NumPy model answers)"
        memory = (self._weights.data.nbytes + self._arena.nbytes + self._scratch.nbytes) / 1e6
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"CompiledEfficientNet({kind}, {text}, {threads}, {memory:.0f} MB, for {CPU_NAME} in registers of {WIDTH})"

    # -- running --------------------------------------------------------------------------------------------------

    def _bound(self, height: int, width: int, hidden: bool, count: int = 1) -> _Bound:
        key = (height, width, hidden)
        bound = self._plans.get(key)
        if bound is None or bound.images < min(count, bound.most):
            planned = plan(self._network, self._weights, height, width, hidden, not self.classifies)
            most = _together(planned)
            images = min(count, most)
            wanted = planned.arena_bytes + (images - 1) * planned.late_bytes
            if self._arena.nbytes < wanted + ALIGN:
                self._plans.clear()  # their tables point into the arena that goes
                self._arena = np.zeros(wanted // 4 + ALIGN, np.float32)
            if self._scratch.nbytes < planned.scratch_bytes * self.threads + ALIGN:
                self._scratch = np.zeros(planned.scratch_bytes * self.threads // 4 + ALIGN, np.float32)
            bound = self._plans[key] = _Bound(self, planned, self._arena, images, most)
            if len(self._plans) > MOST_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return bound

    def __call__(
        self, pixel_values=None, labels=None, output_hidden_states: bool | None = None, return_dict: bool | None = None
    ):
        if self._reference is not None:
            more = {"labels": labels} if self.classifies else {}
            return self._reference(pixel_values, output_hidden_states=output_hidden_states, return_dict=return_dict, **more)
        config = self.config
        hidden = bool(config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        images = pixel_values
        if not (type(images) is np.ndarray and images.dtype == np.float32 and images.ndim == 4 and images.flags.c_contiguous):
            images = np.ascontiguousarray(check_pixel_values(self._network, images, np.float32))
        if images.shape[1] != self._network.num_channels or not images.size:
            check_pixel_values(self._network, images, np.float32)  # which says what is wrong
        features, logits, maps = self._run(list(images), hidden)
        states = tuple(maps) if hidden else None
        if self.classifies:
            loss = None if labels is None else classification_loss(config, logits, np.asarray(labels))
            output = ImageClassifierOutput(loss, logits, states)
        else:
            output = BaseModelOutput(features, logits, states)
        return output if (config.use_return_dict if return_dict is None else return_dict) else output.to_tuple()

    @functools.cached_property
    def together(self) -> int:
        """How many images, of the size that it was made for, are best given at once: more would not go together."""
        size = self._network.image_size
        try:
            return _together(plan(self._network, self._weights, size, size, False, not self.classifies))
        except ValueError:  # no size for this network
            return 1

    def of_each(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Images of one size, each (C, H, W) float32 -> what a call gives for them all: logits, or pooled features.

        They need not be copied into one array. The call judges what is no such image: ValueError or TypeError.
        """
        kind = (np.ndarray, np.float32, (self._network.num_channels, *inputs[0].shape[1:]))
        fit = all((type(x), x.dtype, x.shape) == kind and x.flags.c_contiguous and x.size for x in inputs)
        if self._reference is None and fit:
            return self._run(inputs, False)[1]
        output = self(np.stack(inputs), return_dict=True)
        return output.logits if self.classifies else output.pooler_output

    def _run(self, images: list[np.ndarray], hidden: bool) -> tuple[np.ndarray | None, np.ndarray, list[np.ndarray]]:
        """(last map, logits or pooled features, hidden states) of images (C, H, W)."""
        for image in images:
            if not (image.max() <= self._largest_pixel and image.min() >= -self._largest_pixel):
                check_pixel_values(self._network, image[None], np.float32)
                raise ValueError(f"pixel_values beyond {self._largest_pixel:.3g} overflow float32 inside of this network")
        count, (_, height, width) = len(images), images[0].shape
        with self._lock:
            bound = self._bound(height, width, hidden, count)
            logits = np.empty((count, bound.places[0].logits.size), np.float32)
            maps = [np.empty((count, p.channels, p.height, p.width), np.float32) for p in bound.plan.hidden]
            last = bound.plan.last
            features = None if last is None else np.empty((count, last.channels, last.height, last.width), np.float32)
            for first in range(0, count, bound.images):
                some = images[first : first + bound.images]
                bound.run(self._pool, _aligned(self._scratch), some)
                for image, place in enumerate(bound.places[: len(some)], first):
                    logits[image] = place.logits
                    for view, out in zip(place.hidden, maps, strict=True):
                        _nchw(view, out[image])
                    if features is not None:
                        _nchw(place.last, features[image])
        if maps and self._weights.stem_scale != 1:
            maps[0] *= np.float32(1 / self._weights.stem_scale)
        return features, logits, maps

    def resume(self, block: int, hidden_states: np.ndarray, height: int, width: int) -> np.ndarray:
        """The network from a block on: hidden_states (1, C, H, W), what that block is given -> logits (1, num_labels).

        height, width: of the image that the network was given. After the last block comes the head: `len(config.blocks())`.
        The result is what a whole run gives, to rounding. Raises ValueError for another shape, NotImplementedError where the
        kernels do not answer.
        """
        if self._reference is not None or not self.classifies:
            raise NotImplementedError("the kernels do not answer for this model, or it has no classifier")
        with self._lock:
            bound = self._bound(height, width, True)
            place, view = bound.plan.hidden[block], bound.places[0].hidden[block]
            wanted = (1, place.channels, place.height, place.width)
            if hidden_states.shape != wanted or not np.isfinite(hidden_states).all():
                raise ValueError(f"block {block} takes finite numbers of shape {wanted}, got {hidden_states.shape}")
            scale = np.float32(self._weights.inner if block == 0 else 1)
            _blocks(hidden_states[0] * scale if scale != 1 else hidden_states[0], view)
            first = bound.plan.starts[block]
            here = bound.places[0]
            self._pool(here.address, first, bound.steps, _aligned(self._scratch), bound.plan.scratch_bytes)
            return here.logits[None].copy()

    def profile(self, pixel_values, rounds: int = 30) -> list[tuple[str, float, int, int]]:
        """(kind, milliseconds, FLOP, bytes of its tensors) of each step for the first image, medians over the rounds."""
        images = np.ascontiguousarray(check_pixel_values(self._network, pixel_values, np.float32))[:1]
        self(images)
        began, first = time.perf_counter(), None
        rows = []
        for _ in range(rounds):
            self(images)
            words = self._pool.words
            bound = self._plans[(*images.shape[2:], False)]
            line = table.LINE // 8
            done = table.STEPS // 8 + line + 1 + 2 * line * np.arange(bound.steps)
            ticks = np.concatenate([words[table.LEFT // 8 + 1 :][:1], words[done]])
            first = ticks[0] if first is None else first
            rows.append(np.diff(ticks))
        rate = (ticks[-1] - first) / (time.perf_counter() - began)  # ticks a second
        milliseconds = np.median(rows, axis=0) / max(rate, 1) * 1e3
        steps = bound.plan.steps
        return [(step.label, ms, step.flops, 4 * step.floats) for step, ms in zip(steps, milliseconds.tolist(), strict=True)]


def _together(planned) -> int:
    """How many images of a plan go through its last blocks at once."""
    return max(1, min(TOGETHER, TOGETHER_BYTES // planned.late_bytes)) if planned.late_bytes else 1


def _packed_for() -> tuple:
    """What the layout of packed weights depends on: this package's version, the CPU's registers, and the kernels' code."""
    return __version__, WIDTH, library.sources_digest()


def _why_not(model) -> str | None:
    """The reason why the kernels cannot run this model here, if there is one."""
    if callable(model.config.hidden_act):
        return "hidden_act is a Python function, which the kernels cannot call"
    if model.config.hidden_act not in table.CODES:
        return f"hidden_act {model.config.hidden_act!r} has no machine code (kernels/table.py, kernels/activations.py)"
    if not library.kernels_cached() and os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set, and no machine code of the kernels is kept from before"
    return None


def _after_fork() -> None:
    for model in list(_models):
        model._lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
