"""Learning with compiled kernels: what `effnet_np.compile(model, training=True)` gives.

    fast = effnet_np.compile(model.train(), training=True)
    step = fast.backward(pixel_values, labels=labels)        # as effnet_np.backward(model, ...), many times as fast
    optimizer = AdamW(dict(fast.named_parameters()), 1e-3)   # changes the weights where the kernels read them
    optimizer.step(step.parameters)

The network's body is kernels/training/; what follows the pool (dropout, classifier, loss) is NumPy, a number a channel.
"""

from __future__ import annotations

import copy
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from effnet_np.kernels.compiled import CompiledEfficientNet
from effnet_np.kernels.cores import default_threads
from effnet_np.kernels.training import optimize
from effnet_np.kernels.training.mover import Mover
from effnet_np.kernels.training.network import TrainingNetwork
from effnet_np.kernels.training.plan import Asked
from effnet_np.kernels.training.state import part_of
from effnet_np.layers import BatchNorm2d, Dropout
from effnet_np.model import EfficientNetForImageClassification, EfficientNetModel
from effnet_np.module import LoadResult
from effnet_np.pretrained import check_pixel_values, classification_loss
from effnet_np.training.backward import Gradients, backward, output_gradient_of, seed_dropout, select
from effnet_np.training.optimizers import SGD, AdamW, Optimizer, RMSProp, clip_by_global_norm, global_norm, refuse_nonfinite
from effnet_np.training.tape import Tape

_all: weakref.WeakSet = weakref.WeakSet()


class CompiledForTraining:
    """A copy of a model that learns by kernels. `model` is that copy, in NumPy: its arrays are those that the kernels read.

    So its state dict, its modes (`train`, `eval`, of single layers too), momenta and dropout generators are `model`'s, and
    whatever is set there counts here. Several Python threads may call it; they take turns.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, model: EfficientNetForImageClassification | EfficientNetModel, threads: int | None = None):
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads must be a whole number of at least 1, or None for all cores, got {threads!r}")
        refuse(model)
        self.threads = threads or default_threads()
        self.model: Any = copy.deepcopy(model)
        self.config, self.image_processor = self.model.config, self.model.image_processor
        self.classifies = isinstance(model, EfficientNetForImageClassification)
        self._backbone: Any = getattr(self.model, "efficientnet", self.model)
        self._prefix = "efficientnet." if self.classifies else ""
        self._norms = {name: module for name, module in self._backbone.named_modules() if isinstance(module, BatchNorm2d)}
        self._blocks = self.config.blocks()
        learnt = {name for name, _ in self.model.named_parameters()}
        self._network = TrainingNetwork(
            self.model.state_dict(), learnt, self._prefix, copy.deepcopy(model.config), self.threads
        )
        for key, module, name in self.model._state():
            if key in self._network.parameters.arrays:
                setattr(module, name, self._network.parameters.arrays[key])
        self._parameters = dict(self.model.named_parameters())
        self._mover: Mover | None = None
        self._moves: Optimizer | None = None  # whose memories the mover has
        self._lock = threading.Lock()
        _all.add(self)

    # -- what people call on a model ------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> CompiledForTraining:
        """Batch statistics and dropout, or neither; of single layers: on `model`."""
        self.model.train(mode)
        return self

    def eval(self) -> CompiledForTraining:
        return self.train(False)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Every parameter and buffer by name: the arrays that the kernels read, not copies."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, np.ndarray], strict: bool = True) -> LoadResult:
        return self.model.load_state_dict(state, strict)

    def named_parameters(self) -> Iterator[tuple[str, np.ndarray]]:
        return self.model.named_parameters()

    def __repr__(self) -> str:
        return f"CompiledForTraining({self.model!r}, {self.threads} threads, {self._network.bytes / 1e6:.0f} MB)"

    def forward(self) -> CompiledEfficientNet:
        """The forward pass of the weights as they are now, in eval mode, by the kernels of `effnet_np.compile(model)`."""
        return CompiledEfficientNet(self.model, self.threads)

    # -- learning -------------------------------------------------------------------------------------------------

    def backward(
        self,
        pixel_values: np.ndarray,
        labels: Any = None,
        output_gradient: np.ndarray | Callable[[np.ndarray], np.ndarray] | None = None,
        activations: str | Sequence[str] | None = None,
        parameters: str | Sequence[str] | None = "*",
        pixel_gradient: bool = True,
        label_smoothing: float = 0.0,
        seed: int | Sequence[int] | None = None,
    ) -> Gradients:
        """As `effnet_np.backward`, of whose arguments it takes all.

        Where `activations` are asked for, NumPy answers, from the same weights: the kernels fuse most of them away. Raises
        ValueError where some batch norms use the batch's statistics and others stored ones.
        """
        with self._lock:
            if activations is not None:
                return backward(
                    self.model, pixel_values, labels, output_gradient, activations, parameters, pixel_gradient,
                    label_smoothing, seed,
                )  # fmt: skip
            found = self._backward(pixel_values, labels, output_gradient, parameters, pixel_gradient, label_smoothing, seed)
            found.parameters = {name: array.copy() for name, array in found.parameters.items()}
            return found

    def gradients(
        self, pixel_values: np.ndarray, labels: Any, parameters: Sequence[str], label_smoothing: float, seed: Sequence[int]
    ) -> Gradients:
        """For an optimiser: without copies, so that the next call writes over what this one gives."""
        with self._lock:
            return self._backward(pixel_values, labels, None, parameters, False, label_smoothing, seed)

    def move(self, optimizer: Optimizer, gradients: Mapping[str, np.ndarray], rate: float, max_norm: float | None) -> None:
        """Clip and step as `optimizer` would, in one pass, for what `gradients` of this class gave and no other.

        Its memories become views of one array, so `optimizer.state_dict()` is what it always is. An optimiser that the kernels
        do not know steps by itself. Raises FloatingPointError, before anything moves, for a gradient with NaN or infinity.
        """
        kind = KINDS.get(type(optimizer))
        mine = self._network.parameters
        if kind is None or any(optimizer.parameters.get(name) is not self._parameters[name] for name in gradients):
            clipped = dict(gradients) if max_norm is None else clip_by_global_norm(gradients, max_norm)
            optimizer.step(clipped, rate)
            return
        with self._lock:
            mover = self._mover
            if mover is None or mover.names != list(gradients) or self._moves is not optimizer:
                self._mover, self._moves = Mover(mine, list(gradients), kind, self._network.functions, self.threads), optimizer
                mover = self._mover
            self._adopt(optimizer, mover)
            length = mover.length()
            if not np.isfinite(length):
                refuse_nonfinite(gradients, optimizer.steps + 1)
                length = global_norm(gradients)  # all finite, but their squares are not, in float32
            scale = 1.0 if max_norm is None else min(1.0, max_norm / (length + 1e-6))
            optimizer.steps += 1
            mover.move({name: numbers_of(optimizer, name, rate, scale) for name in mover.names})

    def _adopt(self, optimizer: Optimizer, mover: Mover) -> None:
        """Memories that the optimiser has, or begins with, become the views that the kernels move."""
        for name in mover.names:
            before, now = optimizer.state.get(name, {}), {}
            for (key, initial), views in zip(optimizer.memory, MEMORIES[type(optimizer)](mover.memories), strict=True):
                view = now[key] = views[name]
                if before.get(key) is not view:
                    view[...] = before.get(key, initial)
            optimizer.state[name] = now

    def _backward(self, pixel_values, labels, output_gradient, parameters, pixel_gradient, label_smoothing, seed) -> Gradients:
        """The same, but for the gradients: they are those that the next call writes over."""
        if (labels is None) == (output_gradient is None):
            raise ValueError(
                "give either labels, for the model's own loss, or output_gradient, dL/d logits for a loss of your own"
            )
        if labels is not None and not self.classifies:
            raise ValueError("a backbone has no loss: give output_gradient, dL/d pooler_output, in place of labels")
        images = np.ascontiguousarray(check_pixel_values(self.config, pixel_values, np.float32))
        wanted = select(self._parameters, parameters, "parameter")
        if seed is not None:
            seed_dropout(self.model, seed)
        asked, momenta = self._asked(images.shape, wanted, pixel_gradient)
        masks = self._masks(asked)
        network = self._network
        dropout = None
        if self.classifies and self.model.dropout.training and self.model.dropout.rate > 0:
            dropout = factors(self.model.dropout, (len(images), self.config.hidden_dim))
        logits = network.forward(images, asked, momenta, masks, dropout)
        if asked.batch_statistics:
            for module in self._norms.values():
                module.num_batches_tracked += 1
        loss = None
        if labels is None:
            gradient = output_gradient_of(output_gradient, logits)
        else:
            with Tape([logits]) as tape:
                loss = classification_loss(self.config, logits, np.asarray(labels), label_smoothing)
            tape.start(loss, np.ones((), logits.dtype))
            tape.walk_back()
            gradient = tape.gradient(logits).reshape(logits.shape)  # type: ignore[union-attr]  # the loss depends on them
        pixels = np.zeros_like(images) if pixel_gradient else None
        network.backward(gradient, pixels)
        return Gradients(loss, logits, {name: network.parameters.gradients[name] for name in wanted}, {}, pixels)

    def _asked(self, shape: tuple[int, ...], wanted: Mapping[str, Any], pixels: bool) -> tuple[Asked, dict[str, float]]:
        modes = {module.training for module in self._norms.values()}
        if len(modes) > 1:
            raise ValueError("some batch norms use the batch's statistics and others stored ones: the kernels take one for all")
        count, _, height, width = shape
        blocks = self._blocks
        if modes == {True}:
            last = self.config.architecture().sizes(height, width)[-1]
            if count * last[0] * last[1] < 2:
                size = (count, self.config.head_channels, *last)
                raise ValueError(f"batch norm in training needs more than one value a channel, got an input of shape {size}")
        parts = [part_of(name.removeprefix(self._prefix), len(blocks)) for name in wanted]
        first = -1 if pixels else min(parts, default=len(blocks) + 1)
        layers = self._backbone.encoder.blocks
        drops = [spec.index for spec, block in zip(blocks, layers, strict=True) if spec.residual and drops_now(block)]
        asked = Asked(count, height, width, first, modes == {True}, tuple(drops), pixels)
        return asked, {name: float(module.momentum) for name, module in self._norms.items()}

    def _masks(self, asked: Asked) -> dict[int, np.ndarray]:
        """For each block that drops: what its branch is multiplied by, as `Dropout` draws it."""
        masks, size = {}, self.config.architecture().sizes(asked.height, asked.width)
        for index in asked.drops:
            layer, channels = self._backbone.encoder.blocks[index].projection.dropout, self._blocks[index].out_channels
            masks[index] = factors(layer, (asked.images, channels, *size[index + 1]))
        return masks


# The optimisers that the kernels know, and which of a mover's two memories is which of theirs, in their order.
KINDS: dict[type, int] = {SGD: optimize.SGD, AdamW: optimize.ADAMW, RMSProp: optimize.RMSPROP}
MEMORIES: dict[type, Callable[[list], list]] = {
    SGD: lambda both: both[:1],
    AdamW: lambda both: both,
    RMSProp: lambda both: both[::-1],  # the square, then the velocity
}


def numbers_of(optimizer: Any, name: str, rate: float, scale: float) -> tuple[float, ...]:
    """What a step's formula has for one parameter, as `optimize.Numbers` lists it."""
    rate *= optimizer.scales[name]
    decay = optimizer.weight_decay if optimizer.parameters[name].ndim > 1 else 0.0
    if isinstance(optimizer, SGD):
        return (rate, decay, scale, optimizer.momentum, float(optimizer.nesterov), 0.0, 0.0, 0.0, 0.0)
    if isinstance(optimizer, RMSProp):
        return (rate, decay, scale, optimizer.decay, optimizer.momentum, 0.0, optimizer.eps, 1 - optimizer.decay, 0.0)
    (first, second), steps = optimizer.betas, optimizer.steps
    corrected = 1 / math.sqrt(1 - second**steps)
    rate, shrink = rate / (1 - first**steps), 1 - rate * decay
    return (rate, shrink, scale, first, second, corrected, optimizer.eps, 1 - first, 1 - second)


def factors(layer: Dropout, shape: tuple[int, ...]) -> np.ndarray:
    """What that layer multiplies an array of that shape by: 0, or 1 / (1 - rate)."""
    shape = (shape[0], *[1] * (len(shape) - 1)) if layer.per_picture else shape
    keep = layer.generator.random(shape, np.float32) >= layer.rate
    return np.multiply(keep, np.float32(1 / (1 - layer.rate) if layer.rate < 1 else 0), dtype=np.float32)


def drops_now(block: Any) -> bool:
    return block.projection.dropout.training and block.projection.dropout.rate > 0


def refuse(model: Any) -> None:
    """TypeError or ValueError for a model that the kernels of training do not take."""
    if not isinstance(model, (EfficientNetForImageClassification, EfficientNetModel)):
        raise TypeError(f"only a model of effnet_np in NumPy can be compiled for training, got {type(model).__name__}")
    if callable(model.config.hidden_act):
        raise ValueError("hidden_act is a Python function, which the kernels cannot call: effnet_np.backward takes it")
    if model.dtype != np.float32:
        raise ValueError(f"the kernels learn in float32, the model is in {model.dtype}: effnet_np.backward takes it")


def _after_fork() -> None:
    for compiled in list(_all):
        compiled._lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
