"""The plan: the network as a list of steps over one arena of floats, for one image size. It reads like model.py.

Each kind of step is a file with four parts: a record (what the kernel is told), `pack` (how its weights lie in memory), `plan`
(the record, for one place in the network) and a kernel. This file only walks through the network and gives every map its place.

A block is three steps: expansion and depthwise convolution; squeeze-excite; projection. A fused one is two, a full convolution
and the projection, or the first alone. Two places in the arena take turns as input and output of a block; a third holds the
expanded map between a block's steps.

The last blocks have more weights than numbers in their maps. Their maps have places of their own, at the arena's end, so that
several images may wait there, to go through the last blocks together: `late_bytes` after one image's arena begins that of the
next. What lies in front is then overwritten, image after image, beginning with the last one, whose arena lies behind all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from effnet_np.kernels import classifier, depthwise, fused, head, project, squeeze_excite, stem, winograd
from effnet_np.kernels.arena import Arena, FeatureMap
from effnet_np.kernels.pack import Weights
from effnet_np.kernels.record import Activation, At, Step, layout
from effnet_np.kernels.table import CLAMPS, CODES
from effnet_np.kernels.tiling import ceil_div


def pack(state: dict[str, np.ndarray], config) -> Weights:
    """All of a model's weights, packed once for any image size."""
    weights = Weights(state, config)
    stem.pack(weights)
    for spec in config.blocks():
        for part in (fused, winograd, project) if spec.fused else (depthwise, squeeze_excite, project):
            part.pack(weights, spec)
    head.pack(weights)
    classifier.pack(weights)
    return weights.finish()


class Net:
    """What the plan of a step reads beside its own arguments, and the arena that it takes its memory from."""

    def __init__(self, config, weights: Weights):
        self.config, self.weights, self.arena = config, weights, Arena()
        low, high = CLAMPS.get(config.hidden_act, (0.0, 0.0))
        self.activation = Activation(CODES[config.hidden_act], low, high)


@dataclass
class Plan:
    """The steps, and where the results will lie: offsets into the arena, in bytes."""

    steps: list[Step]
    starts: list[int]  # the number of each block's first step, and of the head's
    late: int  # the number of the first step of the last blocks, whose weights are larger than their maps
    image: tuple[int, int]  # height and width
    hidden: list[FeatureMap]
    last: FeatureMap | None
    pooled: int
    logits: int | None
    arena_bytes: int
    late_bytes: int  # of them, what an image keeps for the last blocks; 0: no two images go together

    @property
    def scratch_bytes(self) -> int:
        """Of each thread, in whole pages, and a page for reads that go a little further."""
        return ceil_div(max(step.scratch for step in self.steps), 4096) * 4096 + 4096

    def bind(self, arena: int, weights: int, functions: dict[str, int], threads: int) -> np.ndarray:
        """The table of steps, (steps, ROW_WORDS) int64, for an arena and weights at those addresses."""
        bases = {"arena": arena, "weights": weights}
        return np.stack([step.words(bases, functions, threads) for step in self.steps])

    def image_word(self, table: np.ndarray) -> np.ndarray:
        """The word of the table, (1,), where the address of the image has to be put."""
        word, _ = layout(type(self.steps[0]))["stem_layer.image"]
        return table[0, word : word + 1]


def plan(config, weights: Weights, height: int, width: int, keep_hidden: bool, keep_last: bool) -> Plan:
    """For an image of (height, width). keep_hidden: every block's output stays; keep_last: so does the last convolution's."""
    config.check_image_size(height, width)
    net, specs = Net(config, weights), config.blocks()
    # Only block 0 reads the stem's output. If all that it does first is to filter it, it makes it itself, row by row.
    inside = specs[0].expand_ratio == 1 and not specs[0].fused and not keep_hidden
    shapes = sizes(config, height, width)
    middles = [(spec.expanded_channels, *shape[1:]) for spec, shape in zip(specs, shapes[1:], strict=True)]
    late = 0 if keep_hidden else late_block(shapes, middles)
    maps = place(net.arena, shapes[:late], False, inside) if late else []
    expanded = [largest(net.arena, middles[:late])] * late
    early_bytes = net.arena.bytes
    maps += place(net.arena, shapes[late:], keep_hidden, inside and not late)
    expanded += [largest(net.arena, middles[late:])] * (len(specs) - late)

    picture = stem.stem_layer(net, height, width)
    steps = [] if inside else [stem.plan(net, picture, maps[0])]
    starts = []
    for spec, source, target, place_of_middle, size in zip(specs, maps, maps[1:], expanded, middles, strict=False):
        starts.append(len(steps))
        middle = FeatureMap(place_of_middle.offset, *size)
        layer = picture if inside and spec.index == 0 else None
        steps += block(net, spec, source, middle, target, layer)
    starts.append(len(steps))
    pooled = net.arena.vector(config.head_channels)
    last = net.arena.map(config.head_channels, maps[-1].height, maps[-1].width) if keep_last else None
    steps += [head.plan(net, maps[-1], pooled, last)]
    logits = None
    if "classifier" in weights.offset:
        logits = net.arena.vector(config.num_labels)
        steps += [classifier.plan(net, pooled, logits)]
    return Plan(
        steps,
        starts,
        starts[late],
        (height, width),
        maps if keep_hidden else [],
        last,
        pooled.offset,
        logits and logits.offset,
        net.arena.bytes,
        0 if keep_hidden else net.arena.bytes - early_bytes,
    )


def late_block(shapes: list[tuple[int, int, int]], middles: list[tuple[int, int, int]]) -> int:
    """The number of the first block from which on all have more weights than numbers in their maps, or of the head."""
    first = len(middles)
    while first > 0:
        (inputs, *_), (outputs, *_), (expanded, *_) = shapes[first - 1], shapes[first], middles[first - 1]
        maps = sum(math.prod(shape) for shape in (shapes[first - 1], shapes[first], middles[first - 1]))
        if expanded * (inputs + outputs) <= maps:
            break
        first -= 1
    return first


def largest(arena: Arena, shapes: list[tuple[int, int, int]]) -> At:
    """A place for any one of these maps."""
    return arena.reserve(max((FeatureMap(0, *shape).bytes for shape in shapes), default=0))


def block(net, spec, source: FeatureMap, middle: FeatureMap, target: FeatureMap, layer) -> list[Step]:
    """MBConv, or fused. layer: the stem's, if this block makes the stem's output itself."""
    residual = source if spec.residual else None
    if spec.fused:
        whole = spec.expand_ratio == 1
        made = target if whole else middle
        way = winograd if winograd.pays(spec, source, made) else fused
        convolved = way.plan(net, spec, source, made, residual if whole else None)
        return [convolved] if whole else [convolved, project.plan(net, spec, middle, target, residual, None)]
    expanded = depthwise.plan(net, spec, source, middle, layer)
    steps, folded = [expanded], None
    if spec.squeeze_channels:
        into_weights = project.takes_gates(middle, target.channels)
        gates = squeeze_excite.plan(net, spec, expanded, middle, scale_source=not into_weights)
        steps += [gates]
        folded = gates.gates if into_weights else None
    return [*steps, project.plan(net, spec, middle, target, residual, folded)]


def sizes(config, height: int, width: int) -> list[tuple[int, int, int]]:
    """(channels, height, width) of the stem's output, and of each block's."""
    size = config.stem_size(height, width)
    shapes = [(config.stem_channels, *size)]
    for spec in config.blocks():
        size = spec.output_size(*size)
        shapes.append((spec.out_channels, *size))
    return shapes


def place(arena: Arena, shapes: list[tuple[int, int, int]], keep: bool, inside: bool) -> list[FeatureMap]:
    """A place for each of these maps: one of its own, or one of two, by turns. The first needs none if it is never stored."""
    bytes_of = [FeatureMap(0, *shape).bytes for shape in shapes]
    places = [arena.reserve(size) for size in (bytes_of if keep else [max(bytes_of[inside:], default=0)] * 2)]
    return [FeatureMap(places[i % len(places)].offset, *shape) for i, shape in enumerate(shapes)]
