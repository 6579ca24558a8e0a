"""One step of learning after the other: forward and back, clip, move the weights; and how well a network does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from effnet_np import ops
from effnet_np.layers import BatchNorm2d, Dropout
from effnet_np.model import EfficientNetForImageClassification
from effnet_np.module import Module
from effnet_np.training.backward import backward
from effnet_np.training.optimizers import MovingAverage, Optimizer, Schedule, clip_by_global_norm

AT_A_TIME = 8  # pictures that go forward and back together, where a batch may be cut
Batch = tuple[np.ndarray, np.ndarray]  # pixel_values (N, C, H, W), labels (N,)


class Score(NamedTuple):
    """How well a network does: its mean loss, the share of right answers, and its answers (N,)."""

    loss: float
    accuracy: float
    predictions: np.ndarray


class Trainer:
    """What stands between a model and its optimiser: `step(pixel_values, labels)` learns from one batch.

    model: one in NumPy, or what `effnet_np.compile(model, training=True)` gives, many times as fast.
    The parameters that the optimiser was made with learn; all others are frozen. schedule: a function from the number of steps
    made to a learning rate. batch_norm: "stored" holds every batch norm at its stored statistics, which suits small batches;
    "learning" takes the batch's, and follows them with `statistics_momentum` (HF's own configuration has 0.99 there, which
    PyTorch takes as: forget nearly all at each step). stochastic_depth: a block's residual branch is dropped for whole
    pictures, as in the paper, in place of HF's single numbers. average: the decay of a moving average of weights and
    statistics, which `evaluate` then judges. seed: of dropout.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Optimizer,
        schedule: Schedule | None = None,
        *,
        label_smoothing: float = 0.0,
        max_norm: float | None = None,
        batch_norm: str = "stored",
        statistics_momentum: float = 0.1,
        stochastic_depth: bool = False,
        average: float | None = None,
        seed: int = 0,
    ):
        if batch_norm not in ("stored", "learning"):
            raise ValueError(f'batch_norm must be "stored" or "learning", got {batch_norm!r}')
        self.kernels = None if isinstance(model, Module) else model
        self.model, self.optimizer, self.schedule = model if isinstance(model, Module) else model.model, optimizer, schedule
        self.label_smoothing, self.max_norm, self.batch_norm, self.seed = label_smoothing, max_norm, batch_norm, seed
        self.average = None if average is None else MovingAverage(self.model.state_dict(), average)
        for name, module in self.model.named_modules():
            if isinstance(module, BatchNorm2d) and batch_norm == "learning":
                module.momentum = statistics_momentum
            if isinstance(module, Dropout) and name.endswith("projection.dropout"):
                module.per_picture = stochastic_depth

    def step(self, pixel_values: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        """Learn from one batch -> (its loss, how many of its answers were right, both from before the step).

        Raises FloatingPointError where a gradient is not finite: the weights stay as they were.
        """
        self.model.train()
        if self.batch_norm == "stored":
            for _, module in self.model.named_modules():
                if isinstance(module, BatchNorm2d):
                    module.eval()
        with np.errstate(all="ignore"):  # what overflows shows in this gradient or the next, and is refused there
            loss, right, gradients = self._gradients(pixel_values, labels)
            if self.kernels is not None:
                self.kernels.move(self.optimizer, gradients, self.rate(), self.max_norm)
            else:
                if self.max_norm is not None:
                    gradients = clip_by_global_norm(gradients, self.max_norm)
                self.optimizer.step(gradients, self.rate())
            if self.average:
                self.average.update(self.model.state_dict())
        return loss, right

    def _gradients(self, pixel_values: np.ndarray, labels: np.ndarray) -> tuple[float, int, dict[str, np.ndarray]]:
        """(loss, right answers, gradients) of a batch: the mean over its pieces, each counting for the pictures that it has.

        Pieces stay in a core's cache for longer, and memory is theirs alone. With the batch's own statistics there are none,
        and neither with kernels, which keep to the caches by themselves.
        """
        if self.kernels is not None:
            seed = (self.seed, self.optimizer.steps, 0)
            names = list(self.optimizer.parameters)
            step = self.kernels.gradients(pixel_values, labels, names, self.label_smoothing, seed)
            return float(step.loss), int((step.logits.argmax(axis=1) == labels).sum()), step.parameters
        size = AT_A_TIME if self.batch_norm == "stored" else len(labels)
        loss, right = 0.0, 0
        gradients: dict[str, np.ndarray] = {}
        for first in range(0, len(labels), size):
            piece = slice(first, first + size)
            step = backward(
                self.model,
                pixel_values[piece],
                labels[piece],
                parameters=list(self.optimizer.parameters),
                pixel_gradient=False,
                label_smoothing=self.label_smoothing,
                seed=(self.seed, self.optimizer.steps, first),
            )
            share = len(labels[piece]) / len(labels)
            loss += float(step.loss) * share  # type: ignore[arg-type]  # there are labels, so there is a loss
            right += int((step.logits.argmax(axis=1) == labels[piece]).sum())
            for name, gradient in step.parameters.items():
                gradients[name] = gradients[name] + share * gradient if first else share * gradient
        return loss, right, gradients

    def rate(self) -> float:
        """The learning rate of the step to come."""
        return self.schedule(self.optimizer.steps) if self.schedule else self.optimizer.learning_rate

    def evaluate(self, batches: Iterable[Batch]) -> Score:
        """Loss and accuracy in eval mode over batches; of the moving average, where there is one."""
        with self.averaged():
            return evaluate(self.model if self.kernels is None else self.kernels.forward(), batches)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model has the averaged weights and statistics, where there is an average."""
        own = {} if self.average is None else {name: array.copy() for name, array in self.model.state_dict().items()}
        if self.average is not None:
            self.model.load_state_dict(self.average.average)
        try:
            yield
        finally:
            if own:
                self.model.load_state_dict(own)

    # -- to go on where it stopped --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Weights, statistics, the optimiser's memory and the average: arrays by name, the model's own, not copies."""
        state = {f"model/{name}": array for name, array in self.model.state_dict().items()}
        state |= {f"optimizer/{name}": array for name, array in self.optimizer.state_dict().items()}
        if self.average:
            state |= {f"average/{name}": array for name, array in self.average.average.items()}
            state["updates"] = np.array(self.average.updates)
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        self.model.load_state_dict(part(state, "model"))
        self.optimizer.load_state_dict(part(state, "optimizer"))
        if self.average:
            self.average.average = {name: np.array(array) for name, array in part(state, "average").items()}
            self.average.updates = int(state["updates"])


def part(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The entries below "name/", by what follows it."""
    return {key.removeprefix(f"{name}/"): array for key, array in state.items() if key.startswith(f"{name}/")}


def evaluate(model: Any, batches: Iterable[Batch]) -> Score:
    """Loss and accuracy of a model in eval mode, over all pictures of the batches."""
    model.eval()
    losses, right, predictions = 0.0, 0, []
    with np.errstate(all="ignore"):
        for pixel_values, labels in batches:
            logits = model(pixel_values, return_dict=True).logits
            losses += float(ops.cross_entropy(logits, labels)) * len(labels)
            predictions.append(logits.argmax(axis=1))
            right += int((predictions[-1] == labels).sum())
    count = sum(map(len, predictions))
    if not count:
        raise ValueError("there are no pictures to judge by")
    return Score(losses / count, right / count, np.concatenate(predictions))


def trainable(model: EfficientNetForImageClassification, train: str) -> list[str]:
    """Names of the parameters that "head", "last:3" (blocks, and what follows them) or "all" stands for. Raises ValueError."""
    names = [name for name, _ in model.named_parameters()]
    blocks = len(model.efficientnet.encoder.blocks)
    kind, _, count = train.partition(":")
    if kind == "last" and count.isdecimal() and 1 <= int(count) <= blocks:
        frozen = [f"efficientnet.encoder.blocks.{index}." for index in range(blocks - int(count))]
        return [name for name in names if not name.startswith((*frozen, "efficientnet.embeddings."))]
    if train == "head":
        return [name for name in names if name.startswith("classifier.")]
    if train == "all":
        return names
    raise ValueError(f'train must be "head", "last:1" to "last:{blocks}" (blocks of this model), or "all", got {train!r}')
