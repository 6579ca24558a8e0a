"""What a run of finetune() can be told, and who looks on. Imported for the command line's help, so it imports nothing."""

from __future__ import annotations

from dataclasses import dataclass

OPTIMIZERS = ("adamw", "sgd", "rmsprop")
SCHEDULES = ("cosine", "staircase", "constant")


@dataclass(frozen=True)
class Settings:
    """What a run can be told, beside its folder and its model."""

    train: str = "head"  # "head": the classifier on features that are computed once; "last:3": blocks too; "all"
    epochs: int = 10  # of "last:3" and "all", after the head
    head_epochs: int = 60  # of the head, always first
    batch_size: int = 32
    learning_rate: float = 1e-3  # of the head, and x body_scale of what is below it
    body_scale: float = 0.3
    optimizer: str = "adamw"  # or "sgd" (momentum 0.9, Nesterov) or "rmsprop" (the paper's)
    weight_decay: float = 0.01
    schedule: str = "cosine"  # or "staircase" (the paper's) or "constant"; all warm up over the first epoch
    label_smoothing: float = 0.1
    max_norm: float | None = 5.0  # of the gradient; None: not clipped
    batch_norm: str = "stored"  # or "learning"
    stochastic_depth: bool = True  # whole branches are dropped a picture, as in the paper; False: single numbers, as in HF
    average: float | None = (
        0.98  # decay of the moving average of the weights, which is what is judged and kept; None or 0: none
    )
    augment: bool = True
    split: float = 0.2  # to judge by, where there is no val/
    seed: int = 0
    backend: str = "auto"  # what computes the features: "numpy", "numba", or "auto" as in classify()

    def __post_init__(self):
        for name in ("epochs", "head_epochs", "batch_size"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)!r}")
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("batch_norm", ("stored", "learning"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")


class Watcher:
    """Whoever looks on: this one is silent. `say` gets lines, `step` how far a part of the run is."""

    def say(self, text: str) -> None: ...

    def step(self, title: str, done: int, total: int, loss: float | None = None, accuracy: float | None = None) -> None: ...
