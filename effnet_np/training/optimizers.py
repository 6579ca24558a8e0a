"""How weights follow their gradients: SGD, AdamW, RMSProp; learning-rate schedules; clipping; moving averages.

An optimiser changes the arrays it is made with in place, and knows them by name: `SGD(dict(model.named_parameters()), ...)`.
`step(gradients)` moves those that have a gradient; what has none, being frozen, stays and is not decayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import numpy as np

Arrays = Mapping[str, np.ndarray]
Schedule = Callable[[int], float]

# -- optimisers -------------------------------------------------------------------------------------------------------


class Optimizer:
    """What all share: decay, groups, the memory of each array.

    parameters: {name: array}. weight_decay: on arrays of two dimensions and more, the weights of convolutions and of the
    classifier; batch norms and biases do not decay. scales: {pattern: factor}, the learning rate of what matches is multiplied:
    {"classifier.*": 10.0} lets a head learn faster than its body; of several that match, the last counts.
    """

    memory: tuple[tuple[str, float], ...] = ()  # (name, initial value) of the arrays that are kept for each parameter
    decays_weights_directly = False  # AdamW: the weights shrink, apart from the gradient

    def __init__(
        self,
        parameters: Arrays,
        learning_rate: float,
        weight_decay: float = 0.0,
        scales: Mapping[str, float] | None = None,
    ):
        if not isinstance(parameters, Mapping):
            raise TypeError("an optimiser knows its arrays by name: pass dict(model.named_parameters())")
        if not parameters:
            raise ValueError("there is nothing to learn: no parameters were given")
        if not learning_rate >= 0 or not weight_decay >= 0:
            raise ValueError(f"learning_rate and weight_decay must not be negative, got {learning_rate} and {weight_decay}")
        self.parameters, self.learning_rate, self.weight_decay = dict(parameters), learning_rate, weight_decay
        self.scales = dict.fromkeys(self.parameters, 1.0)
        for pattern, factor in (scales or {}).items():
            matching = [name for name in self.parameters if fnmatchcase(name, pattern)]
            if not matching:
                raise ValueError(f"no parameter matches the group {pattern!r}")
            self.scales.update(dict.fromkeys(matching, factor))
        self.steps = 0
        self.state: dict[str, dict[str, np.ndarray]] = {}

    def step(self, gradients: Arrays, learning_rate: float | None = None) -> None:
        """Move each parameter that has a gradient; `learning_rate` is this step's, else the optimiser's own.

        Raises KeyError for a gradient of something else, and FloatingPointError, before anything moves, for NaN or infinity.
        """
        unknown = [name for name in gradients if name not in self.parameters]
        if unknown:
            hint = "ask backward(..., parameters=[...]) for the gradients of its own alone"
            raise KeyError(f"this optimiser does not have the parameter {unknown[0]!r}: {hint}")
        refuse_nonfinite(gradients, self.steps + 1)
        self.steps += 1
        for name, gradient in gradients.items():
            array = self.parameters[name]
            rate = (self.learning_rate if learning_rate is None else learning_rate) * self.scales[name]
            decay = self.weight_decay if array.ndim > 1 else 0.0
            if decay and self.decays_weights_directly:
                array *= 1 - rate * decay
            elif decay:
                gradient = gradient + decay * array
            if name not in self.state:
                self.state[name] = {key: np.full_like(array, initial) for key, initial in self.memory}
            self.update(array, gradient, self.state[name], rate)

    def update(self, array: np.ndarray, gradient: np.ndarray, state: dict[str, np.ndarray], rate: float) -> None:
        """Move one array in place by its gradient."""
        raise NotImplementedError(f"{type(self).__name__} does not define update()")

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that a run needs to go on where it stopped, but for the weights: {"steps": (), "name/memory": array}."""
        arrays = {f"{name}/{key}": array for name, state in self.state.items() for key, array in state.items()}
        return {"steps": np.array(self.steps), **arrays}

    def load_state_dict(self, state: Arrays) -> None:
        self.steps = int(state["steps"])
        self.state = {}
        for key, array in state.items():
            name, _, memory = key.rpartition("/")
            if name:
                self.state.setdefault(name, {})[memory] = np.array(array)


class SGD(Optimizer):
    """v = momentum v + g, w -= rate v; with Nesterov's look ahead w -= rate (g + momentum v). As torch.optim.SGD."""

    memory = (("velocity", 0.0),)

    def __init__(self, parameters, learning_rate, momentum: float = 0.0, nesterov: bool = False, weight_decay=0.0, scales=None):
        super().__init__(parameters, learning_rate, weight_decay, scales)
        if nesterov and not momentum:
            raise ValueError("nesterov looks ahead along the momentum, which is 0: give momentum")
        self.momentum, self.nesterov = momentum, nesterov

    def update(self, array, gradient, state, rate):
        velocity = state["velocity"]
        velocity *= self.momentum
        velocity += gradient
        array -= rate * (gradient + self.momentum * velocity if self.nesterov else velocity)


class AdamW(Optimizer):
    """The mean m of gradients over the root of the mean v of their squares, both corrected for starting at 0; decay apart.

    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w -= rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), and before that
    w -= rate weight_decay w (Loshchilov and Hutter, arXiv 1711.05101). As torch.optim.AdamW.
    """

    memory = (("mean", 0.0), ("square", 0.0))
    decays_weights_directly = True

    def __init__(self, parameters, learning_rate, betas=(0.9, 0.999), eps: float = 1e-8, weight_decay=0.01, scales=None):
        super().__init__(parameters, learning_rate, weight_decay, scales)
        self.betas, self.eps = betas, eps

    def update(self, array, gradient, state, rate):
        mean, square, (first, second) = state["mean"], state["square"], self.betas
        mean *= first
        mean += (1 - first) * gradient
        square *= second
        square += (1 - second) * gradient * gradient
        root = np.sqrt(square) / math.sqrt(1 - second**self.steps) + self.eps
        array -= rate / (1 - first**self.steps) * mean / root


class RMSProp(Optimizer):
    """The paper's, as TensorFlow 1 has it: eps inside the root, the mean square starts at 1, the rate inside the momentum.

    s = decay s + (1 - decay) g^2, v = momentum v + rate g / sqrt(s + eps), w -= v.
    """

    memory = (("square", 1.0), ("velocity", 0.0))

    def __init__(
        self, parameters, learning_rate, decay=0.9, momentum: float = 0.9, eps: float = 1e-3, weight_decay=1e-5, scales=None
    ):
        super().__init__(parameters, learning_rate, weight_decay, scales)
        self.decay, self.momentum, self.eps = decay, momentum, eps

    def update(self, array, gradient, state, rate):
        square, velocity = state["square"], state["velocity"]
        square *= self.decay
        square += (1 - self.decay) * gradient * gradient
        velocity *= self.momentum
        velocity += rate * gradient / np.sqrt(square + self.eps)
        array -= velocity


OPTIMIZERS = {"sgd": SGD, "adamw": AdamW, "rmsprop": RMSProp}

# -- schedules: functions from the number of steps already made to a learning rate -------------------------------------


def constant(learning_rate: float) -> Schedule:
    return lambda step: learning_rate


def warmup_cosine(learning_rate: float, steps: int, warmup: int = 0) -> Schedule:
    """Up in `warmup` equal steps, then half a cosine down, to 0 after `steps` (Loshchilov and Hutter, arXiv 1608.03983)."""

    def schedule(step: int) -> float:
        if step < warmup:
            return learning_rate * (step + 1) / warmup
        return learning_rate * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))) / 2

    return schedule


def warmup_staircase(
    learning_rate: float, steps_per_epoch: int, warmup: int = 0, factor: float = 0.97, epochs: float = 2.4
) -> Schedule:
    """Up in `warmup` equal steps; after that x `factor` each time that `epochs` have passed since the start: the paper's."""

    def schedule(step: int) -> float:
        if step < warmup:
            return learning_rate * (step + 1) / warmup
        return learning_rate * factor ** math.floor(step / (steps_per_epoch * epochs))

    return schedule


# -- gradients --------------------------------------------------------------------------------------------------------


def global_norm(gradients: Arrays) -> float:
    """The length of all gradients as one vector; summed in float64."""
    return math.sqrt(sum(float(np.square(gradient, dtype=np.float64).sum()) for gradient in gradients.values()))


def clip_by_global_norm(gradients: Arrays, max_norm: float) -> dict[str, np.ndarray]:
    """The same direction, and no longer than `max_norm`; what is shorter stays. As torch.nn.utils.clip_grad_norm_."""
    factor = max_norm / (global_norm(gradients) + 1e-6)
    return dict(gradients) if factor >= 1 else {name: gradient * factor for name, gradient in gradients.items()}


def refuse_nonfinite(gradients: Arrays, step: int) -> None:
    """FloatingPointError that names the first layer, in the order of the forward, whose gradient holds NaN or infinity."""
    for name, gradient in gradients.items():
        if not np.isfinite(gradient).all():
            hint = "the weights stay as they were; a lower learning rate or clipping the gradient may help"
            raise FloatingPointError(f"the gradient of {name} is NaN or infinite at step {step}: {hint}")


class MovingAverage:
    """The exponential moving average of a state dict, weights and statistics: average = d average + (1 - d) state.

    d is `decay`, or less at the start, (1 + n) / (10 + n) after n updates, as TensorFlow has it. Whole numbers are copied.
    """

    def __init__(self, state: Arrays, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        self.decay, self.updates = decay, 0
        self.average = {name: np.array(array) for name, array in state.items()}

    def update(self, state: Arrays) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, array in state.items():
            average = self.average[name]
            if average.dtype.kind == "f":
                average += (1 - decay) * (array - average)
            else:
                average[...] = array
