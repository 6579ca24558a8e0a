"""The head in training: the last 1x1 convolution with its pool, and the way back from the pooled features.

Plain meaning: pooled = activation(norm(X @ W.T)).mean over positions; back, every position has its share of dpooled:
dz = dpooled / P * slope(scale * raw + shift). For a pool of the largest all of it goes to the first place that has it.

Its output is never stored (expand.py); dz is. Classifier, dropout and loss follow in NumPy: they see a number a channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effnet_np.kernels.head import MAX
from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.product import Epilogue, Panel, Shape, map_at, panel_at, product
from effnet_np.kernels.record import Activation, Count, Function, Map, Real, Step
from effnet_np.kernels.simd import float32xN, load, maximum, njit, splat, staged, store
from effnet_np.kernels.target import BYTES, VECTORS
from effnet_np.kernels.tiling import IDENTITY, Ahead, share_of
from effnet_np.kernels.training.batch import Partial, image_of
from effnet_np.kernels.training.norm import MEAN, SCALE, SHIFT, SUMS, Norm, clear, of_norm
from effnet_np.kernels.training.rows import activate_row, slope_row
from effnet_np.kernels.training.slopes import sum_registers

ZERO, ONE = np.float32(0), np.float32(1)


@dataclass(frozen=True, kw_only=True)
class HeadForward(Step):
    """A task: a group of blocks of outputs for a picture."""

    source: Map
    raw: Map | None  # what the convolution gave, where it was stored
    inputs: Count
    outputs: Count
    pixels: Count
    matrix: Panel
    norm: Norm
    pool: Count
    scale: Real
    target: Map  # one position a picture
    activation: Activation
    product: Function = "product"

    @property
    def flops(self):
        return 0 if self.raw else 2 * self.inputs * self.outputs * self.pixels * self.cut.bands

    @property
    def floats(self):
        return self.inputs * (self.pixels * self.cut.bands + self.outputs)

    @property
    def scratch(self):
        return VECTORS * self.pixels * BYTES


@njit
def raw_of(step, share, scratch):
    """What the convolution gives for a picture, for a group of blocks: stored before, or made in the scratch."""
    if step.raw.address != 0:
        return map_at(image_of(step.raw, share.band, step.pixels), share.first_block, 0)
    raw, shape = Map(scratch, 0, step.pixels * BYTES), Shape(2 * share.vectors, 1, step.pixels)
    source, panel = image_of(step.source, share.band, step.pixels), panel_at(step.matrix, share.first_block)
    product(step.product, shape, source, panel, raw, Ahead(0, 0), Epilogue(0, IDENTITY))
    return raw


@kernel(HeadForward)
def head_forward(step, task, scratch):
    share = share_of(step.cut, task)
    pixels, raw = step.pixels, raw_of(step, share, scratch)
    for v in range(share.vectors):
        block, at = share.first_block + v, scratch + v * pixels * BYTES
        scale, shift = of_norm(step.norm, block, SCALE), of_norm(step.norm, block, SHIFT)
        activate_row(raw.address + v * raw.plane, at, pixels, scale, shift, splat(ONE), step.activation)
        pooled = sum_registers(at, pixels) * splat(step.scale)
        if step.pool == MAX:
            pooled = load(at)
            for i in range(1, pixels):
                pooled = maximum(pooled, load(at + i * BYTES))
        store(step.target.address + block * step.target.plane + share.band * BYTES, pooled)


@dataclass(frozen=True, kw_only=True)
class HeadBackward(Step):
    """dz and its sums. A task: a group of blocks of outputs for a picture."""

    source: Map
    raw: Map | None
    inputs: Count
    outputs: Count
    pixels: Count
    matrix: Panel
    norm: Norm
    pool: Count
    scale: Real
    gradient: Map  # one position a picture
    target: Map
    sums: Partial
    activation: Activation
    product: Function = "product"

    flops = HeadForward.flops

    @property
    def floats(self):
        return self.pixels * self.cut.bands * (self.inputs + self.outputs)

    @property
    def scratch(self):
        return (VECTORS + 1) * self.pixels * BYTES


@staged(float32xN, float32xN, float32xN, float32xN)
def where_equal(code, x, y, free):
    """`free` where x == y, 0 elsewhere."""
    return code.select(code.builder.fcmp_ordered("==", x.value, y.value), free, code.vector(0.0))


@njit
def first_largest(at, pixels):
    """In place: 1 at the first of the largest numbers of each lane, 0 elsewhere."""
    largest = load(at)
    for i in range(1, pixels):
        largest = maximum(largest, load(at + i * BYTES))
    free = splat(ONE)
    for i in range(pixels):
        taken = where_equal(load(at + i * BYTES), largest, free)
        store(at + i * BYTES, taken)
        free = free - taken


@kernel(HeadBackward)
def head_backward(step, task, scratch):
    share = share_of(step.cut, task)
    pixels, norm = step.pixels, step.norm
    target, raw = image_of(step.target, share.band, pixels), raw_of(step, share, scratch)
    sums = step.sums.address + share.band * step.sums.piece + share.first_block * (SUMS * BYTES)
    clear(sums, SUMS * share.vectors)
    places = scratch + VECTORS * pixels * BYTES
    for v in range(share.vectors):
        block, at, here = share.first_block + v, raw.address + v * raw.plane, sums + v * (SUMS * BYTES)
        scale, shift, mean = of_norm(norm, block, SCALE), of_norm(norm, block, SHIFT), of_norm(norm, block, MEAN)
        dpooled = load(step.gradient.address + block * step.gradient.plane + share.band * BYTES) * splat(step.scale)
        to = map_at(target, block, 0).address
        if step.pool == MAX:
            activate_row(at, places, pixels, scale, shift, splat(ONE), step.activation)
            first_largest(places, pixels)
            slope_row(places, at, to, pixels, scale, shift, dpooled, splat(ZERO), mean, here, step.activation)
        else:
            slope_row(at, at, to, pixels, scale, shift, splat(ZERO), dpooled, mean, here, step.activation)
