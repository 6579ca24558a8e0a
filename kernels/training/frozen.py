"""The frozen beginning of a network: the steps of the forward pass (../plan.py), picture by picture, nothing kept.

What comes before the first layer that learns needs no way back, and with stored statistics its batch norms are numbers: they
fold into the weights, and the kernels of `effnet_np.compile(model)` compute it, which store no wide map at all. The last block
leaves its output where the batch's maps are. A block whose branch drops leaves its input out; `Leave` adds it:

    target = branch * mask + residual

With the batch's own statistics nothing folds; then the passes of learning compute the beginning, too (plan.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from effnet_np.kernels import depthwise, fused, head, project, squeeze_excite, stem, winograd
from effnet_np.kernels.arena import FeatureMap
from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.pack import Weights
from effnet_np.kernels.plan import Net, block, place
from effnet_np.kernels.product import map_at
from effnet_np.kernels.record import At, Count, Map, Step
from effnet_np.kernels.simd import njit, splat
from effnet_np.kernels.target import BYTES
from effnet_np.kernels.tiling import cut, share_of
from effnet_np.kernels.training.batch import BatchMap
from effnet_np.kernels.training.rows import scale_row

ZERO, ONE = np.float32(0), np.float32(1)
BATCH = "batch"  # the memory of the batch's maps; "arena" and "weights" are the forward pass's here


@dataclass(frozen=True, kw_only=True)
class Leave(Step):
    """A task: a group of channel blocks of one picture."""

    source: Map
    pixels: Count
    mask: Map | None
    residual: Map | None
    target: Map

    @property
    def flops(self):
        return 0

    @property
    def floats(self):
        return self.pixels * self.cut.blocks * (BYTES // 4) * (2 + bool(self.mask) + bool(self.residual))


@njit
def address_or_none(map_, number):
    """Of a block of channels of a map, or 0 where there is none."""
    return map_at(map_, number, 0).address if map_.address != 0 else 0


@kernel(Leave)
def leave(step, task, scratch):
    share = share_of(step.cut, task)
    for number in range(share.first_block, share.first_block + share.vectors):
        source, target = map_at(step.source, number, 0).address, map_at(step.target, number, 0).address
        mask, residual = address_or_none(step.mask, number), address_or_none(step.residual, number)
        scale_row(source, mask, residual, target, step.pixels, splat(ONE), splat(ZERO))


def fold(state: Mapping[str, np.ndarray], config, first: int) -> Weights:
    """The packed weights of what lies before part `first`; part `len(blocks)` is the head."""
    weights = Weights(dict(state), config)
    stem.pack(weights)
    specs = config.blocks()
    for spec in specs[:first]:
        for part in (fused, winograd, project) if spec.fused else (depthwise, squeeze_excite, project):
            part.pack(weights, spec)
    if first > len(specs):
        head.pack(weights)
    return weights.finish()


class Folded:
    """The packed weights of what lies before part `first`, and a copy of the numbers that they were made of.

    arrays: those numbers, the network's own, by the state dict's names. They change only where somebody writes to them; so each
    step compares them with the copy, a thousandth of it.
    """

    def __init__(self, arrays: dict[str, np.ndarray], config, first: int):
        self._arrays, self._config, self._first = arrays, config, first
        self._copy = {name: array.copy() for name, array in arrays.items()}
        self.weights = fold(self._copy, config, first)

    def refresh(self) -> None:
        """Pack again, in the same place, where a number has changed."""
        changed = [name for name, array in self._arrays.items() if not np.array_equal(array, self._copy[name])]
        if changed:
            for name in changed:
                self._copy[name][...] = self._arrays[name]
            self.weights.data[:] = fold(self._copy, self._config, self._first).data


@dataclass
class Prefix:
    """What is computed so: the parts before `first`, from pictures of that size, into `target`."""

    first: int
    height: int
    width: int
    masks: dict[int, BatchMap]
    target: BatchMap  # of the last block, or the pooled features

    def steps(self, config, weights: Weights, image: int) -> tuple[list[Step], int]:
        """(the steps for one picture of the batch; bytes of the arena)"""
        net, specs = Net(config, weights), config.blocks()[: self.first]
        sizes = config.architecture().sizes(self.height, self.width)[: len(specs) + 1]
        channels = [config.stem_channels, *(spec.out_channels for spec in specs)]
        inside = specs[0].expand_ratio == 1 and not specs[0].fused
        maps = place(net.arena, [(c, *size) for c, size in zip(channels, sizes, strict=True)], False, inside)
        middles = [FeatureMap(0, spec.expanded_channels, *size) for spec, size in zip(specs, sizes[1:], strict=True)]
        expanded = net.arena.reserve(max(middle.bytes for middle in middles))
        picture = stem.stem_layer(net, self.height, self.width)
        picture = picture._replace(image=At("image", image * 4 * config.num_channels * self.height * self.width))
        steps: list[Step] = [] if inside else [stem.plan(net, picture, maps[0])]
        for spec, source, target, middle in zip(specs, maps, maps[1:], middles, strict=False):
            steps += self._block(net, spec, source, replace(middle, offset=expanded.offset), target, picture, image)
        if self.first > len(specs):
            pooled = FeatureMap(net.arena.vector(config.head_channels).offset, config.head_channels, 1, 1)
            steps += [head.plan(net, maps[-1], At("arena", pooled.offset), None)]
            steps += [self._leave(pooled, None, None, self._slice(self.target, image))]
        return steps, net.arena.bytes

    def _block(self, net, spec, source, middle, target, picture, image: int) -> Iterator[Step]:
        layer = picture if spec.index == 0 and spec.expand_ratio == 1 and not spec.fused else None
        mask = self.masks.get(spec.index)
        yield from block(net, replace(spec, residual=spec.residual and not mask), source, middle, target, layer)
        last = spec.index == self.first - 1
        if mask or last:
            dropped = self._slice(mask, image) if mask else None
            to = self._slice(self.target, image) if last else target.map
            yield self._leave(target, dropped, source.map if mask else None, to)

    def _slice(self, whole: BatchMap, image: int) -> Map:
        at = At(BATCH, whole.offset + image * whole.pixels * BYTES)
        return whole.map._replace(address=at)

    def _leave(self, source: FeatureMap, mask: Map | None, residual: Map | None, target: Map) -> Leave:
        return Leave(
            cut=cut(source.blocks), source=source.map, pixels=source.pixels, mask=mask, residual=residual, target=target
        )


class BoundPrefix:
    """A prefix with its table of addresses, which for each picture is another one by always the same distances."""

    def __init__(self, prefix: Prefix, config, folded: Folded):
        self._steps = [prefix.steps(config, folded.weights, image)[0] for image in (0, 1)]
        self.folded, self.images = folded, prefix.target.images
        self.scratch = max(step.scratch for step in self._steps[0])
        self.arena_bytes = prefix.steps(config, folded.weights, 0)[1]

    def bind(self, batch: int, arena: int, functions: dict[str, int], threads: int) -> None:
        """batch, arena: the addresses of the batch's maps and of the forward pass's."""
        bases = {"arena": arena, "weights": self.folded.weights.address, "image": 0, BATCH: batch}
        first, second = (np.stack([step.words(bases, functions, threads) for step in steps]) for steps in self._steps)
        self._first, self._distance = first, second - first
        self._image = int(np.flatnonzero(self._distance[0])[0])  # of the first step, the picture's address alone moves

    def table(self, image: int, address: int) -> np.ndarray:
        """For one of the pictures that begin at an address."""
        table = self._first + image * self._distance
        table[0, self._image] += address
        return table
