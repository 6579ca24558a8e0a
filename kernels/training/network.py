"""One step of learning, run: pictures in, logits out; their gradient in, all gradients out.

What it holds: weights and gradients (state.py), the panels, a few plans, one for each shape of batch that was seen lately,
which share one memory of maps; and a pool of threads. The loss is not its business.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from effnet_np.kernels import library
from effnet_np.kernels.pool import Pool
from effnet_np.kernels.record import Step, layout
from effnet_np.kernels.target import WIDTH
from effnet_np.kernels.training.batch import BatchMap
from effnet_np.kernels.training.frozen import BoundPrefix, Folded
from effnet_np.kernels.training.layers import layers
from effnet_np.kernels.training.plan import Asked, Planner, TrainingPlan, whole_pages
from effnet_np.kernels.training.state import Parameters, memory, part_of

MOST_PLANS = 4


def addresses() -> dict[str, int]:
    """Of forward's kernels and of training's."""
    return library.addresses() | library.addresses(part=library.TRAINING)


class Bound:
    """A plan with its table of addresses."""

    def __init__(
        self, plan: TrainingPlan, prefix: BoundPrefix | None, bases: dict[str, int], memories, functions, threads: int
    ):
        self.plan, self.memories, self.prefix = plan, memories, prefix
        steps = plan.steps
        self.table = np.stack([step.words(bases, functions, threads) for step in steps])
        self.address, self.steps = self.table.ctypes.data, len(steps)
        parts = (plan.forward, plan.classify, plan.classify_back, plan.backward)
        self.scratch_bytes = max(plan.scratch_bytes, whole_pages(prefix.scratch) if prefix else 0)
        self.ends = np.cumsum([0, *map(len, parts)]).tolist()  # where each part begins, and the last one ends
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
        self._prefix = prefix
        self._folded: weakref.WeakValueDictionary[int, Folded] = weakref.WeakValueDictionary()

    @property
    def bytes(self) -> int:
        """All memory that it holds."""
        arrays = [self.parameters.data, self.parameters.gradient, self._panels, self._scratch, *self._memories.values()]
        return sum(array.nbytes for array in arrays)

    def bound(self, asked: Asked, momenta: dict[str, float]) -> Bound:
        key = (asked, tuple(momenta.values()))
        found = self._plans.get(key)
        if found is None:
            found = self._bind(Planner(self.config, self.layers, asked, momenta).plan())
            self._plans[key] = found
            if len(self._plans) > MOST_PLANS:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end(key)
        if found.prefix:
            found.prefix.folded.refresh()
        return found

    def _bind(self, plan: TrainingPlan) -> Bound:
        """Memory for a plan, and its table of addresses."""
        sizes, prefix = dict(plan.sizes), None
        if plan.prefix:
            prefix = BoundPrefix(plan.prefix, self.config, self._fold(plan.prefix.first))
            sizes["frozen arena"] = prefix.arena_bytes
        small = [name for name, size in sizes.items() if self._memories.get(name, memory(0)).nbytes < size]
        if small:
            self._plans.clear()  # their tables point into what goes
            for name in small:
                self._memories[name] = memory(0)  # the old one goes before the new one comes
                self._memories[name] = memory(sizes[name] + 4096)
        own = {"state": self.parameters.data, "gradients": self.parameters.gradient, "panels": self._panels}
        bases = {name: array.ctypes.data for name, array in (self._memories | own).items()} | {"image": 0, "pixels": 0}
        if prefix:
            prefix.bind(bases["arena"], bases["frozen arena"], self.functions, self.threads)
        bound = Bound(plan, prefix, bases, dict(self._memories), self.functions, self.threads)
        if self._scratch.nbytes < bound.scratch_bytes * self.threads:
            self._scratch = memory(bound.scratch_bytes * self.threads)
        return bound

    def _fold(self, first: int) -> Folded:
        """The weights before part `first`, folded once for all plans that need them."""
        folded = self._folded.get(first)
        if folded is None:
            blocks, prefix = len(self.config.blocks()), self._prefix
            arrays = self.parameters.arrays.items()
            before = {name: array for name, array in arrays if part_of(name.removeprefix(prefix), blocks) < first}
            folded = self._folded[first] = Folded(before, self.config, first)
        return folded

    def forward(
        self,
        images: np.ndarray,
        asked: Asked,
        momenta: dict[str, float],
        masks: Mapping[int, np.ndarray],
        dropout: np.ndarray | None,
    ) -> np.ndarray:
        """images (N, C, H, W) float32, C-contiguous -> logits (N, O), or the pooled features (N, C) where nothing classifies.

        masks: a factor for each number, or each picture, of the residual branches of the blocks in `asked.drops`. dropout: the
        same for the pooled features, or None.
        """
        bound = self._bound = self.bound(asked, momenta)
        plan, self._images, self._dropout = bound.plan, images, dropout
        bound.put(bound.images, images.ctypes.data)
        for index, where in plan.masks.items():
            write(bound.view(where), where, masks[index])
        if bound.prefix:
            self._run_prefix(bound.prefix, images.ctypes.data)
        self._run(0)
        if dropout is not None:
            self._drop(plan.pooled)
        if plan.logits is None:
            return read(bound.view(plan.pooled), plan.pooled)
        self._run(1)
        return read(bound.view(plan.logits), plan.logits)

    def backward(self, gradient: np.ndarray, pixels: np.ndarray | None = None) -> None:
        """dL/d what forward gave -> `parameters.gradients`; dL/d images into `pixels`, zeros of their shape, if wanted."""
        bound, plan = self._bound, self._bound.plan
        dpooled = BatchMap(0, plan.pooled.channels, plan.pooled.images, 1, 1, "dpooled")
        where = dpooled if plan.logits is None else plan.logits
        write(bound.view(where), where, gradient[:, :, None, None])
        if plan.logits is not None:
            self._run(2)
        if self._dropout is not None:
            self._drop(dpooled)
        if pixels is not None:
            bound.put(bound.pixels, pixels.ctypes.data)
        self._run(3)

    def _drop(self, where: BatchMap) -> None:
        view = self._bound.view(where)
        write(view, where, (read(view, where) * self._dropout)[:, :, None, None])

    def _run_prefix(self, prefix: BoundPrefix, address: int) -> None:
        scratch, size = self._scratch.ctypes.data, self._bound.scratch_bytes
        for image in range(prefix.images):
            table = prefix.table(image, address)
            self._pool(table.ctypes.data, 0, len(table), scratch, size)

    def _run(self, part: int) -> None:
        bound = self._bound
        first, last = bound.ends[part : part + 2]
        if first < last:
            self._pool(bound.address, first, last, self._scratch.ctypes.data, bound.scratch_bytes)


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
    return np.array(view[:, :, 0].transpose(1, 0, 2).reshape(where.images, -1)[:, : where.channels])
