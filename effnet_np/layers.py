"""Layers: parameters bound to the operations of ops.py, with the names and shapes that PyTorch gives them.

A layer starts with zeros in its weights (the operating system hands those out without touching memory, so loading
a checkpoint costs nothing extra); `model.initialize` fills them in for a network that is not loaded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from effnet_np import ops
from effnet_np.architecture import WindowSpec
from effnet_np.module import Module


class Conv2d(Module):
    """weight (O, C / groups, K, K) and bias (O,) or None; x (N, C, H, W) -> (N, O, H', W')."""

    weight: np.ndarray

    def __init__(self, in_channels, out_channels, kernel_size, *, stride=1, padding=(0, 0), groups=1, bias=False):
        super().__init__()
        self.window = WindowSpec(kernel_size, stride, padding)
        self.stride, self.groups, self.padding = stride, groups, padding and padding * 2  # zeros; None: SAME
        self.add_parameter("weight", np.zeros((out_channels, in_channels // groups, kernel_size, kernel_size), np.float32))
        self.bias = None
        if bias:
            self.add_parameter("bias", np.zeros(out_channels, np.float32))

    def forward(self, x):
        padding = self.padding or self.window.zeros(*x.shape[2:])
        return ops.conv2d(x, self.weight, self.bias, self.stride, padding, self.groups)


class BatchNorm2d(Module):
    """Batch normalisation (Ioffe and Szegedy, arXiv 1502.03167): by stored statistics, or by the batch's in training.

    `momentum` is PyTorch's: running = (1 - momentum) * running + momentum * batch.
    """

    weight: np.ndarray
    bias: np.ndarray
    running_mean: np.ndarray
    running_var: np.ndarray
    num_batches_tracked: np.ndarray

    def __init__(self, channels: int, eps: float, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.add_parameter("weight", np.ones(channels, np.float32))
        self.add_parameter("bias", np.zeros(channels, np.float32))
        self.add_buffer("running_mean", np.zeros(channels, np.float32))
        self.add_buffer("running_var", np.ones(channels, np.float32))
        self.add_buffer("num_batches_tracked", np.zeros((), np.int64))

    def forward(self, x):
        mean, variance = self._batch_statistics(x) if self.training else (self.running_mean, self.running_var)
        return ops.batch_norm(x, mean, variance, self.weight, self.bias, self.eps)

    def _batch_statistics(self, x):
        count = x.size // x.shape[1]
        if count < 2:
            raise ValueError(f"batch norm in training needs more than one value a channel, got an input of shape {x.shape}")
        mean, variance = ops.batch_statistics(x)
        unbiased = variance * x.dtype.type(count / (count - 1))  # what is stored; what is used now is the biased one
        for running, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
            running[...] = running * (1 - self.momentum) + batch * self.momentum
        self.num_batches_tracked += 1
        return mean, variance


class Linear(Module):
    """weight (O, C) and bias (O,); x (N, C) -> (N, O)."""

    weight: np.ndarray
    bias: np.ndarray

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.add_parameter("weight", np.zeros((out_features, in_features), np.float32))
        self.add_parameter("bias", np.zeros(out_features, np.float32))

    def forward(self, x):
        return ops.linear(x, self.weight, self.bias)


class ZeroPad2d(Module):
    """The zeros that a convolution of this window wants, where it does not add them itself; a negative number crops."""

    def __init__(self, window: WindowSpec):
        super().__init__()
        self.window, self.padding = window, window.padding and window.padding * 2

    def forward(self, x):
        return ops.pad2d(x, self.padding or self.window.zeros(*x.shape[2:]))


class Dropout(Module):
    """Elementwise dropout in training, the identity otherwise. `generator` decides what is dropped.

    `per_picture` drops the whole array of a picture or none of it: in a block, stochastic depth (Huang et al., arXiv
    1603.09382), which is what EfficientNet's paper trains with; HF drops single numbers.
    """

    def __init__(self, rate: float, generator: np.random.Generator):
        super().__init__()
        self.rate, self.generator, self.per_picture = rate, generator, False

    def forward(self, x):
        if not self.training or self.rate == 0:
            return x
        shape = (len(x), *[1] * (x.ndim - 1)) if self.per_picture else x.shape
        keep = self.generator.random(shape, np.float32) >= self.rate
        return ops.dropout(x, keep, self.rate)


class Activation(Module):
    """An elementwise function under a name: one of `ops.ACTIVATIONS`, or any function from array to array."""

    def __init__(self, hidden_act: str | Callable[[np.ndarray], np.ndarray]):
        super().__init__()
        self.function = hidden_act if callable(hidden_act) else ops.ACTIVATIONS[hidden_act]
        self.custom = self.function not in (ops.sigmoid, *ops.ACTIVATIONS.values())

    def forward(self, x):
        return ops.custom(x, self.function) if self.custom else self.function(x)


class GlobalPool(Module):
    """The "mean" or the "max" of each plane: (N, C, H, W) -> (N, C, 1, 1)."""

    def __init__(self, pooling_type: str = "mean"):
        super().__init__()
        self.function = {"mean": ops.global_average_pool, "max": ops.global_max_pool}[pooling_type]

    def forward(self, x):
        return self.function(x)


class Identity(Module):
    """Gives what it is given: the classifier of a network without labels."""

    def forward(self, x):
        return x
