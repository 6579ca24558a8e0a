"""A model's weights, packed once for the kernels: all in one array of floats.

Batch norm is folded into the convolution before it, in float64, and so is swish's factor (see activations.py). How the numbers
of a layer are then laid out is told where they are read: `product.py` for matrices, `depthwise.py` for taps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from effnet_np.kernels.arena import ALIGN, aligned
from effnet_np.kernels.record import At
from effnet_np.kernels.table import CODES, INNER, SWISH


class Weights:
    """First `add`, layer by layer; after `finish`, `data` has them all, and `at(name)` says where each begins."""

    def __init__(self, state: dict[str, np.ndarray], config):
        self.config = config
        self.inner = INNER if CODES[config.hidden_act] == SWISH else 1.0  # what activations inside are multiplied by
        # And what the stem's output is: where block 0 adds it to its own, which is not multiplied, nor is it.
        self.stem_scale = 1.0 if config.blocks()[0].residual else self.inner
        self.state = {key.removeprefix("efficientnet."): value for key, value in state.items()}
        self.offset: dict = {}
        self._size = 0
        self._made: list = []

    def fold(self, conv: str, norm: str, scale_in: float, scale_out: float) -> Callable:
        """A function that gives weight and bias (float64) of a convolution with the batch norm behind it folded in.

        The input that it will get is `scale_in` times what the network means, its output is to be `scale_out` times that.
        """

        def folded():
            state, eps = self.state, self.config.batch_norm_eps
            scale = state[norm + ".weight"].astype(np.float64) / np.sqrt(state[norm + ".running_var"].astype(np.float64) + eps)
            bias = state[norm + ".bias"] - state[norm + ".running_mean"] * scale
            weight = state[conv + ".weight"]
            return weight * (scale * (scale_out / scale_in)).reshape(-1, *[1] * (weight.ndim - 1)), bias * scale_out

        return folded

    def add(self, name, size: int, bias_size: int, make: Callable) -> None:
        """Room for a layer. `make()`, called once at the end, gives its packed weights and its bias, at most so many floats."""
        self.offset[name] = self._size
        self._size += aligned(4 * size)
        self.offset[name, "bias"] = self._size
        self._size += aligned(4 * bias_size)
        self._made.append((name, make))

    def at(self, name) -> At:
        return At("weights", self.offset[name])

    def finish(self) -> Weights:
        self._reserve()
        for name, make in self._made:
            for key, array in zip((name, (name, "bias")), make(), strict=True):
                self.data[self.offset[key] // 4 :][: array.size] = array.reshape(-1)
        del self._made, self.state
        return self

    def _reserve(self) -> None:
        """Memory for all of it, zeros, from an address that the kernels can read at best speed."""
        self._memory = np.zeros((self._size + ALIGN) // 4, np.float32)
        start = -self._memory.ctypes.data % ALIGN // 4
        self.data = self._memory[start : start + self._size // 4]
        self.address = self.data.ctypes.data

    def __getstate__(self) -> dict:
        """The numbers without their address, which is another one wherever they are unpickled or copied to."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_memory", "address")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        data = self.data
        self._reserve()
        self.data[:] = data
