"""One step of learning, run: pictures in, pooled features out; their gradient in, all gradients out.

What it holds: weights and gradients (state.py), the panels, a few plans, one for each shape of batch that was seen lately, which
share one memory of maps; and a pool of threads. What stands behind the pool (classifier, loss) is not its business.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from effnet_np.kernels import library
from effnet_np.kernels.pool import Pool
from effnet_np.kernels.record import Step, layout
from effnet_np.kernels.target import WIDTH
from effnet_np.kernels.training.batch import BatchMap
from effnet_np.kernels.training.layers import layers
from effnet_np.kernels.training.plan import Asked, Planner, TrainingPlan
from effnet_np.kernels.training.state import Parameters, memory

MOST_PLANS = 4


def addresses() -> dict[str, int]:
    """Of forward's kernels and of training's."""
    return library.addresses() | library.addresses(part=library.TRAINING)


class Bound:
    """A plan with its table of addresses."""

    def __init__(self, plan: TrainingPlan, bases: dict[str, int], memories: dict[str, np.ndarray], functions, threads: int):
        self.plan, self.memories = plan, memories
        steps = plan.forward + plan.backward
        self.table = np.stack([step.words(bases, functions, threads) for step in steps])
        self.address, self.split, self.steps = self.table.ctypes.data, len(plan.forward), len(steps)
        self.images = self._words(steps, "stem_layer.image")
        self.pixels = self._words(steps, "pixels", "stem_backward")

    def _words(self, steps: list[Step], path: str, kernel: str | None = None) -> list[tuple[int, int]]:
        """(row, word) of each step that has a field of that name."""
        rows = [(row, layout(type(step))) for row, step in enumerate(steps) if kernel in (None, step.kernel)]
        return [(row, words[path][0]) for row, words in rows if path in words]

    def put(self, places: list[tuple[int, int]], address: int) -> None:
        for row, word in places:
            self.table[row, word] = address

    def view(self, where: BatchMap) -> np.ndarray:
        """(blocks, images, pixels, WIDTH) of a map."""
        floats = self.memories[where.base][where.offset // 4 :][: where.bytes // 4]
        return floats.reshape(where.blocks, where.images, where.pixels, WIDTH)


class TrainingNetwork:
    """state: the state dict that learning starts from; learnt: the names of its parameters; prefix: of the backbone's names."""

    def __init__(self, state: Mapping[str, np.ndarray], learnt: set[str], prefix: str, config, threads: int):
        self.functions = addresses()
        self.config, self.threads = config, threads
        self.parameters = Parameters(dict(state), learnt)
        self.layers = layers(self.parameters, prefix, config)
        self._panels = memory(self.layers.panels.bytes)
        self._plans: OrderedDict[tuple, Bound] = OrderedDict()
        self._memories: dict[str, np.ndarray] = {}
        self._scratch = memory(0)
        self._pool = Pool(threads, 64 * len(config.blocks()) + 64)
        self._bound: Bound | None = None

    @property
    def bytes(self) -> int:
        """All memory that it holds."""
        arrays = [self.parameters.data, self.parameters.gradient, self._panels, self._scratch, *self._memories.values()]
        return sum(array.nbytes for array in arrays)

    def bound(self, asked: Asked, momenta: dict[str, float]) -> Bound:
        key = (asked, tuple(momenta.values()))
        found = self._plans.get(key)
        if found is None:
            plan = Planner(self.config, self.layers, asked, momenta).plan()
            small = [name for name, size in plan.sizes.items() if self._memories.get(name, memory(0)).nbytes < size]
            if small:
                self._plans.clear()  # their tables point into what goes
                for name in small:
                    self._memories[name] = memory(0)  # the old one goes before the new one comes
                    self._memories[name] = memory(plan.sizes[name] + 4096)
            if self._scratch.nbytes < plan.scratch_bytes * self.threads:
                self._scratch = memory(plan.scratch_bytes * self.threads)
            own = {"state": self.parameters.data, "gradients": self.parameters.gradient, "panels": self._panels}
            bases = {name: array.ctypes.data for name, array in (self._memories | own).items()} | {"image": 0, "pixels": 0}
            found = self._plans[key] = Bound(plan, bases, dict(self._memories), self.functions, self.threads)
            if len(self._plans) > MOST_PLANS:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end(key)
        return found

    def forward(self, images: np.ndarray, asked: Asked, momenta: dict[str, float], masks: Mapping[int, np.ndarray]) -> np.ndarray:
        """images (N, C, H, W) float32, C-contiguous -> pooled features (N, C). masks: a factor for each number, or each picture,
        of the residual branches of the blocks in `asked.drops`."""
        bound = self._bound = self.bound(asked, momenta)
        self._images = images
        bound.put(bound.images, images.ctypes.data)
        for index, where in bound.plan.masks.items():
            write(bound.view(where), where, masks[index])
        self._run(bound, 0, bound.split)
        return read(bound.view(bound.plan.pooled), bound.plan.pooled)

    def backward(self, dpooled: np.ndarray, pixels: np.ndarray | None = None) -> None:
        """dL/d pooled (N, C) -> `parameters.gradients`, and dL/d images into `pixels`, zeros of their shape, if they are asked for."""
        bound = self._bound
        if bound.split == bound.steps:
            return
        where = BatchMap(0, dpooled.shape[1], len(dpooled), 1, 1, "dpooled")
        write(bound.view(where), where, dpooled[:, :, None, None])
        if pixels is not None:
            bound.put(bound.pixels, pixels.ctypes.data)
        self._run(bound, bound.split, bound.steps)

    def _run(self, bound: Bound, first: int, last: int) -> None:
        self._pool(bound.address, first, last, self._scratch.ctypes.data, bound.plan.scratch_bytes)


def write(view: np.ndarray, where: BatchMap, values: np.ndarray) -> None:
    """(N, C, H, W), or (N, C, 1, 1) and the like, into a map; what only fills the last block is zero."""
    count, channels = where.images, where.channels
    values = np.broadcast_to(values, (count, channels, where.height, where.width)).reshape(count, channels, where.pixels)
    whole = channels // WIDTH
    parts = values[:, : whole * WIDTH].reshape(count, whole, WIDTH, where.pixels)
    view[:whole] = parts.transpose(1, 0, 3, 2)
    if whole < len(view):
        view[whole] = 0
        view[whole, :, :, : channels - whole * WIDTH] = values[:, whole * WIDTH :].transpose(0, 2, 1)


def read(view: np.ndarray, where: BatchMap) -> np.ndarray:
    """(N, C) of a map with one position a picture."""
    return np.ascontiguousarray(view[:, :, 0].transpose(1, 0, 2).reshape(where.images, -1)[:, : where.channels])
