"""The numbers that are learnt, and the panels that the products read.

All weights and statistics lie in one array of floats, as the state dict has them: a name is a view of it, so `state_dict()`
costs nothing at any time, and an optimiser's step is one pass over memory. Their gradients lie in a second one, at the same
places.

Panels and each batch norm's scale and shift lie in a third, which depends on the network but not on the
pictures: `Panels` hands out places there, and has the steps that fill them.
"""

from __future__ import annotations

import numpy as np

from effnet_np.kernels.arena import ALIGN, aligned
from effnet_np.kernels.product import Panel
from effnet_np.kernels.record import At, Cut, Step
from effnet_np.kernels.table import CODES, INNER, SWISH
from effnet_np.kernels.target import BYTES, UNIT, WIDTH
from effnet_np.kernels.tiling import blocks_of, cut, units_of
from effnet_np.kernels.training.depthwise import PackTaps
from effnet_np.kernels.training.full import Spread
from effnet_np.kernels.training.matrices import Pack
from effnet_np.kernels.training.norm import SLOTS, Norm


def memory(size: int) -> np.ndarray:
    """Zeros, `size` bytes, that begin on a cache line."""
    whole = np.zeros((size + ALIGN) // 4, np.float32)
    return whole[-whole.ctypes.data % ALIGN // 4 :][: size // 4]


class Parameters:
    """state: the model's state dict, whose floats are copied. `arrays` and `gradients` are views by name."""

    def __init__(self, state: dict[str, np.ndarray], learnt: set[str]):
        self.offset: dict[str, int] = {}
        floats = {name: array for name, array in state.items() if array.dtype.kind == "f"}
        size = 0
        for name in sorted(floats, key=lambda name: name not in learnt):  # what is learnt comes first
            self.offset[name] = size
            size += aligned(4 * floats[name].size)
            if name in learnt:
                self.learnt = size
        self.data, self.gradient = memory(size), memory(size)
        self.arrays, self.gradients = self.views(self.data, floats), self.views(self.gradient, floats)
        for name, array in floats.items():
            self.arrays[name][...] = array

    def views(self, data: np.ndarray, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of an array laid out as the weights are, each entry's part in its shape."""
        return {name: data[self.offset[name] // 4 :][: array.size].reshape(array.shape) for name, array in like.items()}


class Panels:
    """Places for panels, taps and norms, and the steps that fill them."""

    def __init__(self, parameters: Parameters, prefix: str, config):
        self.offset, self.prefix, self.config = parameters.offset, prefix, config
        self.inner = INNER if CODES[config.hidden_act] == SWISH else 1.0
        self.bytes = 0
        self.steps: list[tuple[int, Step]] = []  # with the part of the network (`part_of`) that each is for
        self.zeros = self.reserve(max(blocks_of(max(channels_of(config))), 1) * BYTES + 4 * BYTES)

    def reserve(self, size: int) -> At:
        offset = self.bytes
        self.bytes += aligned(size)
        return At("panels", offset)

    def state(self, name: str) -> At:
        return At("state", self.offset[self._whole(name)])

    def gradient(self, name: str) -> At:
        return At("gradients", self.offset[self._whole(name)])

    def _whole(self, name: str) -> str:
        """The state dict's name: the backbone's have a prefix, the classifier's have none."""
        return name if name.startswith("classifier.") else self.prefix + name

    def matrix(
        self, name: str, rows: int, columns: int, bias: str | None = None, inputs: int | None = None, source: At | None = None
    ) -> tuple[Panel, Panel]:
        """(there, back) of a weight (rows, columns), which a step of its own packs, from `source` if it lies elsewhere."""
        inputs = inputs or units_of(columns) * UNIT
        there = self.reserve(inputs * blocks_of(rows) * BYTES)
        back = self.reserve(units_of(rows) * UNIT * blocks_of(columns) * BYTES)
        step = Pack(
            cut=cut(blocks_of(rows)),
            source=source or self.state(name),
            rows=rows,
            columns=columns,
            inputs=inputs,
            there=there,
            back=back,
        )
        self.steps.append((part_of(name, len(self.config.blocks())), step))
        return Panel(there, self.state(bias) if bias else self.zeros, units_of(columns)), Panel(
            back, self.zeros, units_of(rows)
        )

    def full(self, name: str, outputs: int, inputs: int, kernel: int) -> tuple[Panel, Panel, At]:
        """(there, back, where the weights lie spread) of a full convolution: full.py."""
        columns = kernel**2 * blocks_of(inputs) * WIDTH
        wide = self.reserve(4 * outputs * columns)
        step = Spread(
            cut=Cut(outputs, outputs, 1, 1), narrow=self.state(name), wide=wide, inputs=inputs, taps=kernel**2, back=0
        )
        self.steps.append((part_of(name, len(self.config.blocks())), step))
        return *self.matrix(name, outputs, columns, source=wide), wide

    def taps(self, name: str, channels: int, kernel: int) -> tuple[At, At]:
        size = blocks_of(channels) * kernel * kernel * BYTES
        there, back = self.reserve(size), self.reserve(size)
        tasks = cut(blocks_of(channels) * 3, 1)._replace(groups=blocks_of(channels), blocks=blocks_of(channels))
        step = PackTaps(cut=tasks, source=self.state(name), channels=channels, taps=kernel**2, there=there, back=back)
        self.steps.append((part_of(name, len(self.config.blocks())), step))
        return there, back

    def norm(self, name: str, channels: int, activated: bool = True) -> Norm:
        vectors = self.reserve(blocks_of(channels) * SLOTS * BYTES)
        parts = [self.state(f"{name}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
        return Norm(*parts, vectors, self.inner if activated else 1.0)


def part_of(name: str, blocks: int) -> int:
    """Where in the network a parameter, without the backbone's prefix, is: -1 the stem, 0.. its block, head, classifier."""
    if name.startswith("embeddings."):
        return -1
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2])
    return blocks + name.startswith("classifier.")


def channels_of(config) -> list[int]:
    """Outputs of the products there and back."""
    blocks = config.blocks()
    windows = [spec.kernel_size**2 * blocks_of(spec.in_channels) * WIDTH for spec in blocks if spec.fused]
    channels = [config.stem_channels, config.head_channels, config.num_labels]
    return [9 * config.num_channels, *channels, *windows, *(spec.expanded_channels for spec in blocks)]
