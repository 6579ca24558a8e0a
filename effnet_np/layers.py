"""Layers: parameters bound to the operations of ops.py, with the names and shapes that PyTorch gives them.

A layer starts with zeros in its weights (the operating system hands those out without touching memory, so loading
a checkpoint costs nothing extra); `model.initialize` fills them in for a network that is not loaded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from effnet_np import ops
from effnet_np.module import Module


class Conv2d(Module):
    """weight (O, C / groups, K, K) and bias (O,) or None; x (N, C, H, W) -> (N, O, H', W')."""

    weight: np.ndarray

    def __init__(self, in_channels, out_channels, kernel_size, *, stride=1, padding=(0, 0), groups=1, bias=False):
        super().__init__()
        before, after = padding  # pixels of zeros at the top and left, at the bottom and right
        self.stride, self.groups, self.padding = stride, groups, (before, after, before, after)
        self.add_parameter("weight", np.zeros((out_channels, in_channels // groups, kernel_size, kernel_size), np.float32))
        self.bias = None
        if bias:
            self.add_parameter("bias", np.zeros(out_channels, np.float32))

    def forward(self, x):
        return ops.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.groups)


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
        mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
        unbiased = variance * x.dtype.type(count / (count - 1))  # what is stored; what is used now is the biased one
        for name, batch in (("running_mean", mean), ("running_var", unbiased)):
            running = getattr(self, name)
            setattr(self, name, (running * (1 - self.momentum) + batch * self.momentum).astype(running.dtype))
        self.num_batches_tracked = self.num_batches_tracked + 1
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
    """`padding` = (top and left, bottom and right) pixels of zeros; a negative number crops."""

    def __init__(self, padding: tuple[int, int]):
        super().__init__()
        before, after = padding
        self.padding = (before, after, before, after)

    def forward(self, x):
        return ops.pad2d(x, self.padding)


class Dropout(Module):
    """Elementwise dropout in training, the identity otherwise. `generator` decides what is dropped."""

    def __init__(self, rate: float, generator: np.random.Generator):
        super().__init__()
        self.rate, self.generator = rate, generator

    def forward(self, x):
        return ops.dropout(x, self.rate, self.generator) if self.training else x


class Function(Module):
    """A function of one array that stands in the module tree under a name, as activations and poolings do in HF."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def activation(hidden_act: str | Callable) -> Function:
    """The module for `config.hidden_act`: a name from `ops.ACTIVATIONS`, or a function from array to array."""
    return Function(hidden_act if callable(hidden_act) else ops.ACTIVATIONS[hidden_act])
