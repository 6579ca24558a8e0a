"""Projection in training, both ways, with the activation and the gates before it and the residual behind.

Plain meaning, for the depthwise output D (N pictures of P positions, C channels), gates (N, C) and W (O, C), O smaller than C:

    A = activation(scale * D + shift);  raw = (A * gates) @ W.T                # stored, with its moments
    X' = (scale' * raw + shift') * mask + X                                    # the block's output

    back: draw = a dX' mask + b raw + c                                        # stored: it is small
    Q_n = draw_n.T @ A_n                        for each picture               # (O, C)
    dW = sum over n of Q_n * gates_n            dgates_n = (W * Q_n).sum(axis=0)
    dz = ((draw @ W) * gates + dP) * slope(scale * D + shift)                  # dP: squeeze-excite's, see squeeze.py

A is never stored: it is made from D, a stretch of positions at a time, in the scratch, for all that reads it. dgates would need
draw @ W and A at every position; but it is W's own product with Q_n, which the weight gradient needs anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.product import Epilogue, Panel, Shape, map_at, panel_at, product
from effnet_np.kernels.record import Activation, Count, Function, Map, Step
from effnet_np.kernels.simd import load, njit, splat, store
from effnet_np.kernels.target import BYTES, VECTORS, WIDTH
from effnet_np.kernels.tiling import IDENTITY, Ahead, band_of, share_of
from effnet_np.kernels.training.batch import Partial, image_of
from effnet_np.kernels.training.expand import all_groups
from effnet_np.kernels.training.norm import MEAN, MOMENTS, SCALE, SHIFT, SUMS, A, B, C, Norm, add_moments, clear, of_norm
from effnet_np.kernels.training.outer import Outer, outer
from effnet_np.kernels.training.rows import activate_row, gradient_row, scale_row, slope_row, sums_row

ZERO, ONE = np.float32(0), np.float32(1)
STRETCH = 256  # positions that lie in the scratch at a time


@njit
def of_picture(values, block, image, otherwise):
    """A register of a map with one position a picture, or a number where there is no such map."""
    if values.address == 0:
        return splat(otherwise)
    return load(values.address + block * values.plane + image * BYTES)


# -- forward -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProjectForward(Step):
    """A task: a range of positions; the cut's blocks are those of the output."""

    source: Map
    inputs: Count
    input_blocks: Count
    outputs: Count
    positions: Count
    pixels: Count  # of a picture
    stretch: Count
    norm: Norm
    gates: Map | None
    matrix: Panel
    target: Map
    moments: Partial | None  # None: the stored statistics
    activation: Activation
    product: Function = "product"

    @property
    def flops(self):
        return 2 * self.inputs * self.outputs * self.positions

    @property
    def floats(self):
        return self.positions * (self.inputs + self.outputs)

    @property
    def scratch(self):
        return self.input_blocks * self.stretch * BYTES


@kernel(ProjectForward)
def project_forward(step, task, scratch):
    first, last = band_of(step.positions, step.cut, task)
    moments, counts = step.moments.address + task * step.moments.piece, step.moments.address != 0
    if counts:
        clear(moments, MOMENTS * step.cut.blocks)
    source = Map(scratch, 0, step.stretch * BYTES)
    position = first
    while position < last:
        count = min(step.stretch, last - position)
        done = 0
        while done < count:  # the part of each picture
            image = (position + done) // step.pixels
            part = min(count - done, (image + 1) * step.pixels - position - done)
            for block in range(step.input_blocks):
                scale, shift = of_norm(step.norm, block, SCALE), of_norm(step.norm, block, SHIFT)
                g = of_picture(step.gates, block, image, ONE)
                raw, to = map_at(step.source, block, position + done).address, map_at(source, block, done).address
                activate_row(raw, to, part, scale, shift, g, step.activation)
            done += part
        target = map_at(step.target, 0, position)
        all_groups(step.product, step.cut.blocks, count, source, step.matrix, target, 0)
        if counts:
            for block in range(step.cut.blocks):
                at = moments + block * (MOMENTS * BYTES)
                add_moments(at, position - first, target.address + block * target.plane, count)
        position += count


@dataclass(frozen=True, kw_only=True)
class Normalise(Step):
    """target = norm(raw) * mask + residual, or the activation of norm(raw) in its place. A task: a range of positions."""

    raw: Map
    positions: Count
    norm: Norm
    mask: Map | None
    residual: Map | None
    target: Map
    activates: Count
    activation: Activation

    @property
    def flops(self):
        return 0

    @property
    def floats(self):
        return self.positions * self.cut.blocks * WIDTH * (2 + bool(self.mask) + bool(self.residual))


@njit
def address_of(map_, block, position):
    """0 where there is no map."""
    return map_at(map_, block, position).address if map_.address != 0 else 0


@kernel(Normalise)
def normalise(step, task, scratch):
    first, last = band_of(step.positions, step.cut, task)
    for block in range(step.cut.blocks):
        scale, shift = of_norm(step.norm, block, SCALE), of_norm(step.norm, block, SHIFT)
        raw, to = map_at(step.raw, block, first).address, map_at(step.target, block, first).address
        mask, residual = address_of(step.mask, block, first), address_of(step.residual, block, first)
        if step.activates != 0:
            activate_row(raw, to, last - first, scale, shift, splat(ONE), step.activation)
            if mask != 0 or residual != 0:
                scale_row(to, mask, residual, to, last - first, splat(ONE), splat(ZERO))
        else:
            scale_row(raw, mask, residual, to, last - first, scale, shift)


# -- the way back ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NormSums(Step):
    """The sums of a batch norm's gradient: of dy, and of dy (raw - mean). A task: a range of positions."""

    raw: Map
    gradient: Map
    mask: Map | None
    positions: Count
    norm: Norm
    sums: Partial

    flops, floats, label = Normalise.flops, Normalise.floats, "norm_sums"
    residual = None


@kernel(NormSums)
def norm_sums(step, task, scratch):
    first, last = band_of(step.positions, step.cut, task)
    for block in range(step.cut.blocks):
        sums = step.sums.address + task * step.sums.piece + block * (SUMS * BYTES)
        clear(sums, SUMS)
        raw, dy = map_at(step.raw, block, first).address, map_at(step.gradient, block, first).address
        sums_row(dy, address_of(step.mask, block, first), raw, last - first, of_norm(step.norm, block, MEAN), sums)


@dataclass(frozen=True, kw_only=True)
class NormInput(Step):
    """The gradient of what the batch norm was given: a dy + b raw + c. A task: a range of positions."""

    raw: Map
    gradient: Map
    mask: Map | None
    positions: Count
    norm: Norm
    target: Map

    flops, floats, label = Normalise.flops, Normalise.floats, "norm_input"
    residual = None


@kernel(NormInput)
def norm_input(step, task, scratch):
    first, last = band_of(step.positions, step.cut, task)
    for block in range(step.cut.blocks):
        a, b, c = of_norm(step.norm, block, A), of_norm(step.norm, block, B), of_norm(step.norm, block, C)
        raw, dy = map_at(step.raw, block, first).address, map_at(step.gradient, block, first).address
        to = map_at(step.target, block, first).address
        gradient_row(dy, address_of(step.mask, block, first), raw, to, last - first, a, b, c)


@dataclass(frozen=True, kw_only=True)
class ProjectWeights(Step):
    """dW and dgates. A task: some pictures, for a group of blocks of inputs; the cut's blocks are those."""

    source: Map  # D
    inputs: Count
    outputs: Count
    images: Count
    pixels: Count
    stretch: Count
    norm: Norm
    gates: Map | None
    draw: Map
    back: Panel
    room: Count  # rows of a group in a piece
    partial: Partial  # groups of (room, vectors) registers
    dgates: Map | None
    activation: Activation
    outer: Function = "outer"

    @property
    def flops(self):
        return 2 * self.inputs * self.outputs * self.images * self.pixels

    @property
    def floats(self):
        return self.images * self.pixels * (self.inputs + self.outputs)

    @property
    def scratch(self):
        return VECTORS * (self.stretch + self.room) * BYTES


@njit
def gate_gradients(step, share, image, slab, partial):
    """dgates of one picture from its Q, and Q * gates added to dW."""
    rows, vectors = step.outputs, share.vectors
    weights = panel_at(step.back, share.first_block).weights
    for v in range(vectors):
        block = share.first_block + v
        g, total = of_picture(step.gates, block, image, ONE), splat(ZERO)
        for row in range(rows):
            at = (row * vectors + v) * BYTES
            q = load(slab + at)
            total = total + q * load(weights + at)
            store(partial + at, load(partial + at) + q * g)
        store(step.dgates.address + block * step.dgates.plane + image * BYTES, total)


@kernel(ProjectWeights)
def project_weights(step, task, scratch):
    share = share_of(step.cut, task)
    first, last = band_of(step.images, step.cut, share.band)
    partial = step.partial.address + share.band * step.partial.piece + share.first_block * (step.room * BYTES)
    clear(partial, step.room * share.vectors)
    inputs = Map(scratch + VECTORS * step.room * BYTES, 0, step.stretch * BYTES)
    for image in range(first, last):
        target = scratch if step.gates.address != 0 else partial
        if step.gates.address != 0:
            clear(scratch, step.room * share.vectors)
        source, draw = image_of(step.source, image, step.pixels), image_of(step.draw, image, step.pixels)
        position = 0
        while position < step.pixels:
            count = min(step.stretch, step.pixels - position)
            for v in range(share.vectors):
                block = share.first_block + v
                scale, shift = of_norm(step.norm, block, SCALE), of_norm(step.norm, block, SHIFT)
                raw, to = map_at(source, block, position).address, map_at(inputs, v, 0).address
                activate_row(raw, to, count, scale, shift, splat(ONE), step.activation)
            shape = Outer(step.outputs, share.vectors, count, share.vectors * BYTES)
            outer(step.outer, shape, map_at(draw, 0, position), inputs, target)
            position += count
        if step.gates.address != 0:
            gate_gradients(step, share, image, scratch, partial)


@dataclass(frozen=True, kw_only=True)
class ProjectBackward(Step):
    """dz of the batch norm before the activation, and its sums. A task: some positions for a group of blocks of inputs."""

    draw: Map
    inputs: Count
    outputs: Count
    positions: Count
    pixels: Count
    stretch: Count
    back: Panel
    raw: Map  # D
    norm: Norm
    gates: Map | None
    means: Map | None  # dP
    target: Map
    sums: Partial
    activation: Activation
    product: Function = "product"

    @property
    def flops(self):
        return 2 * self.inputs * self.outputs * self.positions

    @property
    def floats(self):
        return self.positions * (2 * self.inputs + self.outputs)

    @property
    def scratch(self):
        return VECTORS * self.stretch * BYTES


@kernel(ProjectBackward)
def project_backward(step, task, scratch):
    share = share_of(step.cut, task)
    first, last = band_of(step.positions, step.cut, share.band)
    sums = step.sums.address + share.band * step.sums.piece + share.first_block * (SUMS * BYTES)
    clear(sums, SUMS * share.vectors)
    dy, norm = Map(scratch, 0, step.stretch * BYTES), step.norm
    each = splat(ONE / np.float32(step.pixels))
    position = first
    while position < last:
        count = min(step.stretch, last - position)
        shape, matrix = Shape(2 * share.vectors, 1, count), panel_at(step.back, share.first_block)
        product(step.product, shape, map_at(step.draw, 0, position), matrix, dy, Ahead(0, 0), Epilogue(0, IDENTITY))
        done = 0
        while done < count:
            image = (position + done) // step.pixels
            part = min(count - done, (image + 1) * step.pixels - position - done)
            for v in range(share.vectors):
                block = share.first_block + v
                g, more = of_picture(step.gates, block, image, ONE), of_picture(step.means, block, image, ZERO) * each
                scale, shift, mean = of_norm(norm, block, SCALE), of_norm(norm, block, SHIFT), of_norm(norm, block, MEAN)
                raw, to = map_at(step.raw, block, position + done).address, map_at(step.target, block, position + done).address
                gradient, at = map_at(dy, v, done).address, sums + v * (SUMS * BYTES)
                slope_row(gradient, raw, to, part, scale, shift, g, more, mean, at, step.activation)
            done += part
        position += count
