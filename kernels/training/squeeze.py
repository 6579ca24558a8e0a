"""Squeeze-excite in training: for each picture a mean of each channel, two small layers, a gate for each channel; and back.

Plain meaning, for the means P (N, C) of a batch, Wr (S, C) and We (C, S):

    raw = P @ Wr.T + br;  r = activation(raw);  gates = sigmoid(r @ We.T + be)
    de = dgates * gates * (1 - gates);  dWe = de.T @ r;  dbe = sum de
    draw = (de @ We) * slope(raw);  dWr = draw.T @ P;  dbr = sum draw;  dP = draw @ Wr

A "map" here has one position a picture. dgates comes from project.py; dP goes back there, divided by the positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effnet_np.kernels.activations import gate as gate_of
from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.product import Epilogue, Panel, Shape, map_at, panel_at, product
from effnet_np.kernels.record import Activation, Address, Count, Function, Map, Real, Step
from effnet_np.kernels.simd import load, njit, splat, store
from effnet_np.kernels.target import BYTES, VECTORS, WIDTH
from effnet_np.kernels.tiling import IDENTITY, Ahead, blocks_of, ceil_div, share_of
from effnet_np.kernels.training.batch import image_of
from effnet_np.kernels.training.matrices import store_lanes
from effnet_np.kernels.training.norm import SCALE, SHIFT, Norm, clear, of_norm
from effnet_np.kernels.training.outer import Outer, outer
from effnet_np.kernels.training.rows import activate_row, activated_sum, multiply_slopes
from effnet_np.kernels.training.slopes import sum_registers

ZERO, ONE = np.float32(0), np.float32(1)
PLAIN, ACTIVATE, GATE = range(3)  # what follows a dense layer


@dataclass(frozen=True, kw_only=True)
class Squeeze(Step):
    """The mean of each activated channel of each picture. A task: a group of blocks of a picture."""

    raw: Map
    pixels: Count
    norm: Norm
    scale: Real
    target: Map
    activation: Activation

    @property
    def flops(self):
        return 0

    @property
    def floats(self):
        return self.pixels * self.cut.blocks * self.cut.bands * WIDTH


@kernel(Squeeze)
def squeeze(step, task, scratch):
    share = share_of(step.cut, task)
    raw = image_of(step.raw, share.band, step.pixels)
    for v in range(share.vectors):
        block = share.first_block + v
        scale, shift = of_norm(step.norm, block, SCALE), of_norm(step.norm, block, SHIFT)
        total = activated_sum(raw.address + block * raw.plane, step.pixels, scale, shift, step.activation)
        store(step.target.address + block * step.target.plane + share.band * BYTES, total * splat(step.scale))


@dataclass(frozen=True, kw_only=True)
class Dense(Step):
    """A small layer for all pictures. A task: a group of blocks of outputs."""

    source: Map
    images: Count
    inputs: Count
    outputs: Count
    matrix: Panel
    raw: Map
    then: Count
    target: Map  # of what follows; may be `raw`
    activation: Activation
    factor: Real  # that the activation wants its numbers multiplied by
    product: Function = "product"

    @property
    def flops(self):
        return 2 * self.images * self.inputs * self.outputs

    @property
    def floats(self):
        return self.inputs * self.outputs


@kernel(Dense)
def dense(step, task, scratch):
    share = share_of(step.cut, task)
    matrix, to = panel_at(step.matrix, share.first_block), map_at(step.raw, share.first_block, 0)
    shape = Shape(2 * share.vectors, 1, step.images)
    product(step.product, shape, step.source, matrix, to, Ahead(0, 0), Epilogue(0, IDENTITY))
    for block in range(share.first_block, share.first_block + share.vectors):
        raw, target = map_at(step.raw, block, 0).address, map_at(step.target, block, 0).address
        if step.then == ACTIVATE:
            activate_row(raw, target, step.images, splat(step.factor), splat(ZERO), splat(ONE), step.activation)
        elif step.then == GATE:
            for n in range(step.images):
                store(target + n * BYTES, gate_of(load(raw + n * BYTES)))


@dataclass(frozen=True, kw_only=True)
class DenseBackward(Step):
    """What comes before `draw` is made of `gradient` by `then`; dW = draw.T @ source, dbias = sum draw. A task: some outputs.

    ACTIVATE: draw = (gradient @ matrix) * slope(raw); GATE: draw = gradient * gates * (1 - gates); PLAIN: `target` holds it.
    """

    source: Map
    images: Count
    inputs: Count
    outputs: Count
    then: Count
    gradient: Map | None
    matrix: Panel | None
    raw: Map | None  # of ACTIVATE; of GATE: the gates
    target: Map  # of draw
    dweight: Address  # (outputs, inputs)
    dbias: Address
    activation: Activation
    factor: Real
    product: Function = "product"
    outer: Function = "outer"

    @property
    def flops(self):
        return 2 * self.images * self.inputs * self.outputs * (2 if self.then == ACTIVATE else 1)

    @property
    def floats(self):
        return 2 * self.inputs * self.outputs

    @property
    def scratch(self):
        rows = VECTORS * WIDTH
        return (rows * blocks_of(self.inputs) + 2) * BYTES


@njit
def draw_of(step, share):
    """Makes `draw` for the outputs of this share."""
    images = step.images
    if step.then == ACTIVATE:
        to = map_at(step.target, share.first_block, 0)
        matrix, shape = panel_at(step.matrix, share.first_block), Shape(2 * share.vectors, 1, images)
        product(step.product, shape, step.gradient, matrix, to, Ahead(0, 0), Epilogue(0, IDENTITY))
    for block in range(share.first_block, share.first_block + share.vectors):
        raw, to = map_at(step.raw, block, 0).address, map_at(step.target, block, 0).address
        if step.then == PLAIN:
            continue
        if step.then == ACTIVATE:
            multiply_slopes(to, raw, images, splat(step.factor), step.activation)
        else:
            gradient = map_at(step.gradient, block, 0).address
            for n in range(images):
                g = load(raw + n * BYTES)
                store(to + n * BYTES, load(gradient + n * BYTES) * g * (splat(ONE) - g))


@kernel(DenseBackward)
def dense_backward(step, task, scratch):
    share = share_of(step.cut, task)
    draw_of(step, share)
    draw, blocks = map_at(step.target, share.first_block, 0), ceil_div(step.inputs, WIDTH)
    slab = scratch + 2 * BYTES
    clear(slab, share.vectors * WIDTH * blocks)
    outer(step.outer, Outer(share.vectors * WIDTH, blocks, step.images, blocks * BYTES), draw, step.source, slab)
    first = share.first_block * WIDTH
    for row in range(min(share.vectors * WIDTH, step.outputs - first)):
        for b in range(blocks):
            to = step.dweight + ((first + row) * step.inputs + b * WIDTH) * 4
            store_lanes(to, load(slab + (row * blocks + b) * BYTES), step.inputs - b * WIDTH, scratch)
    for v in range(share.vectors):
        total = sum_registers(map_at(draw, v, 0).address, step.images)
        store_lanes(step.dbias + (first + v * WIDTH) * 4, total, step.outputs - first - v * WIDTH, scratch)
