"""Squeeze-excite: a gate between 0 and 1 for each channel, from the means of all channels.

Plain meaning:

    squeezed = activation(reduce @ mean + bias_reduce)        # (S, C) @ (C,) -> (S,)
    gates    = sigmoid(expand @ squeezed + bias_expand)       # (C, S) @ (S,) -> (C,)

Few multiplications, but it stands between two large steps and needs all of the first before any of the second. So its
first product is done by the tasks of the depthwise convolution, each for its own channels; here their results are added
up, in the order of the tasks and not in that of the threads, and every task of this step makes the gates of some channels.

A sigmoid makes 0 or 1 of infinity, and a ReLU 0, so that nobody would see that a sum has overflowed: `unseen` adds NaN there.

The gates are then used in one of two ways, whichever touches fewer numbers: multiplied into the projection's weights
(project.py), or into the activations, here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effnet_np.kernels.activations import apply, gate, unseen
from effnet_np.kernels.arena import FeatureMap
from effnet_np.kernels.depthwise import Depthwise
from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.product import Epilogue, Panel, Shape, pack_matrix, panel, panel_at, product, vector
from effnet_np.kernels.record import Activation, Address, Count, Cut, Function, Map, Real, Step
from effnet_np.kernels.simd import load, njit, splat, store
from effnet_np.kernels.target import BYTES, UNIT, VECTORS, WIDTH
from effnet_np.kernels.tiling import IDENTITY, Ahead, band_of, blocks_of, ceil_div, group_start, units_of

ZERO = np.float32(0)
MOST_TASKS = 8


@dataclass(frozen=True, kw_only=True)
class Gates(Step):
    """The gates of all channels. A task: those of some panels of the expanding layer (a band of them, in the cut's words)."""

    channels: Count
    squeezed: Count
    squeeze_blocks: Count
    partials: Count  # tasks of the depthwise convolution, each of which has left a part of the reducing layer's product
    partial: Address
    scale: Real  # sums to means
    bias: Address  # of the reducing layer
    expand: Panel
    gates: Address
    scaled: Map | None  # the map that is multiplied by the gates here, if it is not the weights of the projection
    pixels: Count
    activation: Activation
    product: Function = "product"

    @property
    def label(self):
        return "squeeze-excite"

    @property
    def flops(self):
        return 4 * self.squeezed * self.channels

    @property
    def floats(self):
        return 2 * self.squeezed * self.channels

    @property
    def scratch(self):
        return self.squeeze_blocks * BYTES + 4096


# -- planning ----------------------------------------------------------------------------------------------------------


def pack(weights, spec) -> None:
    """The reducing layer in panels of exactly VECTORS blocks, the rest last: each task reads the part of its own channels."""
    if not spec.squeeze_channels:
        return
    name, inner, state = f"encoder.blocks.{spec.index}.squeeze_excite.", weights.inner, weights.state
    channels, squeezed, blocks = spec.expanded_channels, spec.squeeze_channels, blocks_of(spec.squeeze_channels)

    def dense(layer, scale_in, scale_out):
        scale, scale_out = np.float32(scale_out / scale_in), np.float32(scale_out)
        return lambda: (state[name + layer + ".weight"] * scale, state[name + layer + ".bias"] * scale_out)

    rows, edges = blocks_of(channels) * WIDTH, [*range(0, blocks, VECTORS), blocks]
    pack_matrix(weights, (spec.index, "reduce"), channels, squeezed, dense("reduce", inner, inner), rows, edges)
    pack_matrix(weights, (spec.index, "gate"), squeezed, channels, dense("expand", inner, 1.0))


def plan(net, spec, depthwise: Depthwise, source: FeatureMap, scale_source: bool) -> Gates:
    """scale_source: multiply the map by its gates here. Otherwise the projection reads them."""
    tasks = min(ceil_div(source.blocks, VECTORS), MOST_TASKS)
    return Gates(
        cut=Cut(1, source.blocks, tasks, 1),
        channels=source.channels,
        squeezed=spec.squeeze_channels,
        squeeze_blocks=depthwise.squeeze.blocks,
        partials=depthwise.cut.tasks,
        partial=depthwise.squeeze.partial,
        scale=1.0 / source.pixels,
        bias=net.weights.at(((spec.index, "reduce"), "bias")),
        expand=panel(net.weights, (spec.index, "gate"), spec.squeeze_channels),
        gates=net.arena.reserve(units_of(source.channels) * UNIT * 4 + BYTES),
        scaled=source.map if scale_source else None,
        pixels=source.pixels,
        activation=net.activation,
    )


# -- the kernel --------------------------------------------------------------------------------------------------------


@njit
def add_partials(step, squeezed):
    """The reducing layer's output, from what the tasks of the depthwise convolution have left, in their order."""
    activation = step.activation
    for q in range(step.squeeze_blocks):
        total = splat(ZERO)
        for p in range(step.partials):
            total = total + load(step.partial + (p * step.squeeze_blocks + q) * BYTES)
        x = total * splat(step.scale) + load(step.bias + q * BYTES)
        store(squeezed + q * BYTES, apply(activation.code, activation.low, activation.high, x) + unseen(x))


@kernel(Gates)
def gates(step, task, scratch):
    add_partials(step, scratch)
    blocks, groups = step.cut.blocks, ceil_div(step.cut.blocks, VECTORS)
    first, last = band_of(groups, step.cut, task)
    for group in range(first, last):
        block = group_start(group, groups, blocks)
        vectors = group_start(group + 1, groups, blocks) - block
        matrix = panel_at(step.expand, block)
        shape, ahead = Shape(2 * vectors, 1, 1), Ahead(matrix.weights, matrix.weights)
        product(step.product, shape, vector(scratch, 0), matrix, vector(step.gates, block), ahead, Epilogue(0, IDENTITY))
        for b in range(block, block + vectors):
            x = load(step.gates + b * BYTES)
            g = gate(x) + unseen(x)
            store(step.gates + b * BYTES, g)
            if step.scaled.address != 0:
                at = step.scaled.address + b * step.scaled.plane
                for i in range(step.pixels):
                    store(at + i * BYTES, load(at + i * BYTES) * g)
