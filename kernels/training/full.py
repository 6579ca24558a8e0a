"""A full K x K convolution in training, as EfficientNetV2's fused blocks have it, and the way back to weights and input.

Plain meaning, for the windows of a row (positions of it, K * K * C numbers each):

    raw = windows @ W.T                              # stored, with its moments
    dW += draw.T @ windows;   dwindows = draw @ W, added to where the windows were taken from;   draw = a dz + b raw + c

Windows are unfolded one row at a time into the thread's scratch, as planes of (positions, WIDTH): for tap (i, j) the blocks of
channels as they lie in the map, so a register is copied for each 4 C and more multiply-adds that then read it. The rest are
the products of every other layer. Weights have that order, too: `Spread` writes (O, C, K, K) as (O, taps, C and what fills
its last block), and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effnet_np.kernels.depthwise import Window
from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.product import Panel, map_at
from effnet_np.kernels.record import Address, Count, Function, Map, Step
from effnet_np.kernels.simd import load, load_scalar, njit, splat, store, store_scalar
from effnet_np.kernels.target import BYTES, WIDTH
from effnet_np.kernels.tiling import blocks_of, ceil_div
from effnet_np.kernels.training.batch import Partial, image_of
from effnet_np.kernels.training.expand import all_groups
from effnet_np.kernels.training.norm import MOMENTS, A, B, C, Norm, add_moments, clear, of_norm
from effnet_np.kernels.training.outer import Outer, outer, rounded
from effnet_np.kernels.training.rows import copy_row, gradient_row

ZERO = np.float32(0)

# -- weights -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spread(Step):
    """(O, C, K, K) -> (O, K * K, blocks of C), zeros where a block is filled, or that way back. A task: one output."""

    narrow: Address
    wide: Address
    inputs: Count
    taps: Count  # K * K
    back: Count  # 1: from `wide` to `narrow`

    label, flops = "pack", 0

    @property
    def floats(self):
        return 2 * self.cut.tasks * self.inputs * self.taps


@kernel(Spread)
def spread(step, task, scratch):
    columns = ceil_div(step.inputs, WIDTH) * WIDTH
    for c in range(step.inputs):
        for tap in range(step.taps):
            narrow = step.narrow + ((task * step.inputs + c) * step.taps + tap) * 4
            wide = step.wide + ((task * step.taps + tap) * columns + c) * 4
            if step.back != 0:
                store_scalar(narrow, load_scalar(wide))
            else:
                store_scalar(wide, load_scalar(narrow))


# -- windows -----------------------------------------------------------------------------------------------------------


@njit
def columns_of(window, j):
    """(first, last) output column whose window has a number of the map at tap column j."""
    first = min(window.out_width, max(0, ceil_div(window.left - j, window.stride)))
    last = min(window.out_width, (window.width - 1 + window.left - j) // window.stride + 1)
    return first, max(first, last)


@njit
def unfold(window, source, blocks, y, target):
    """The windows of output row `y` -> planes of out_width registers, tap by tap."""
    width = window.out_width
    for i in range(window.kernel):
        row = y * window.stride + i - window.top
        for j in range(window.kernel):
            first, last = columns_of(window, j)
            if row < 0 or row >= window.height:
                first = last = width
            for b in range(blocks):
                to = target + ((i * window.kernel + j) * blocks + b) * (width * BYTES)
                for x in range(first):
                    store(to + x * BYTES, splat(ZERO))
                at = map_at(source, b, row * window.width + first * window.stride + j - window.left).address
                if window.stride == 1:
                    copy_row(at, to + first * BYTES, last - first)
                else:
                    for x in range(last - first):
                        store(to + (first + x) * BYTES, load(at + x * window.stride * BYTES))
                for x in range(last, width):
                    store(to + x * BYTES, splat(ZERO))


@njit
def fold_back(window, windows, blocks, y, target):
    """Adds the gradient of the windows of output row `y` to that of the map."""
    width = window.out_width
    for i in range(window.kernel):
        row = y * window.stride + i - window.top
        if 0 <= row < window.height:
            for j in range(window.kernel):
                first, last = columns_of(window, j)
                for b in range(blocks):
                    source = windows + ((i * window.kernel + j) * blocks + b) * (width * BYTES)
                    to = map_at(target, b, row * window.width + first * window.stride + j - window.left).address
                    for x in range(last - first):
                        at = to + x * window.stride * BYTES
                        store(at, load(at) + load(source + (first + x) * BYTES))


# -- there -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FullForward(Step):
    """A task: a band of output rows of a picture; the cut's bands are those of all pictures, its blocks those of the output."""

    source: Map
    inputs: Count
    outputs: Count
    window: Window
    matrix: Panel
    bands: Count  # of a picture
    target: Map
    moments: Partial | None  # None: the stored statistics
    product: Function = "product"

    @property
    def flops(self):
        window, images = self.window, self.cut.bands // self.bands
        return images * 2 * window.kernel**2 * self.inputs * self.outputs * window.out_height * window.out_width

    @property
    def floats(self):
        window, images = self.window, self.cut.bands // self.bands
        written = self.outputs * window.out_height * window.out_width
        return images * (self.inputs * window.height * window.width + written)

    @property
    def scratch(self):
        return self.window.kernel**2 * blocks_of(self.inputs) * self.window.out_width * BYTES


@kernel(FullForward)
def full_forward(step, task, scratch):
    window, image, band = step.window, task // step.bands, task % step.bands
    first, last = band * window.out_height // step.bands, (band + 1) * window.out_height // step.bands
    source = image_of(step.source, image, window.height * window.width)
    target = image_of(step.target, image, window.out_height * window.out_width)
    windows = Map(scratch, 0, window.out_width * BYTES)
    for y in range(first, last):
        unfold(window, source, ceil_div(step.inputs, WIDTH), y, scratch)
        to = map_at(target, 0, y * window.out_width)
        all_groups(step.product, step.cut.blocks, window.out_width, windows, step.matrix, to, 0)
    for block in range(step.cut.blocks if step.moments.address != 0 else 0):
        at = step.moments.address + task * step.moments.piece + block * (MOMENTS * BYTES)
        clear(at, MOMENTS)
        here = map_at(target, block, first * window.out_width).address
        add_moments(at, 0, here, (last - first) * window.out_width)


# -- back --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FullBackward(Step):
    """dW and dX. A task: all rows of some pictures, one after another; the cut's bands are the pieces."""

    source: Map
    images: Count
    inputs: Count
    outputs: Count
    window: Window
    raw: Map
    gradient: Map  # dz
    norm: Norm
    partial: Partial  # of dW: (outputs, taps, inputs and what fills their last block)
    back: Panel
    target: Map | None  # of dX
    residual: Map | None  # what is added to it
    product: Function = "product"
    outer: Function = "outer"

    @property
    def flops(self):
        window = self.window
        each = 2 * window.kernel**2 * self.inputs * self.outputs * window.out_height * window.out_width
        return self.images * each * (2 if self.target else 1)

    @property
    def floats(self):
        window = self.window
        outputs = 2 * self.outputs * window.out_height * window.out_width
        return self.images * (2 * self.inputs * window.height * window.width + outputs)

    @property
    def scratch(self):
        planes = self.window.kernel**2 * blocks_of(self.inputs) + self.cut.blocks
        return planes * self.window.out_width * BYTES


@kernel(FullBackward)
def full_backward(step, task, scratch):
    window, blocks, norm = step.window, ceil_div(step.inputs, WIDTH), step.norm
    first, last = task * step.images // step.cut.bands, (task + 1) * step.images // step.cut.bands
    size, out_size, width = window.height * window.width, window.out_height * window.out_width, window.out_width
    planes = window.kernel * window.kernel * blocks
    partial = step.partial.address + task * step.partial.piece
    clear(partial, step.partial.piece // BYTES)
    windows, draw = Map(scratch, 0, width * BYTES), Map(scratch + planes * width * BYTES, 0, width * BYTES)
    for image in range(first, last):
        source, target = image_of(step.source, image, size), image_of(step.target, image, size)
        raw, gradient = image_of(step.raw, image, out_size), image_of(step.gradient, image, out_size)
        for b in range(blocks if step.target.address != 0 else 0):
            to = map_at(target, b, 0).address
            if step.residual.address != 0:
                copy_row(map_at(image_of(step.residual, image, size), b, 0).address, to, size)
            else:
                clear(to, size)
        for y in range(window.out_height):
            unfold(window, source, blocks, y, scratch)
            for block in range(step.cut.blocks):
                a, b, c = of_norm(norm, block, A), of_norm(norm, block, B), of_norm(norm, block, C)
                dz, x = map_at(gradient, block, y * width).address, map_at(raw, block, y * width).address
                gradient_row(dz, 0, x, map_at(draw, block, 0).address, width, a, b, c)
            outer(step.outer, Outer(step.outputs, planes, width, planes * BYTES), draw, windows, partial)
            if step.target.address != 0:
                all_groups(step.product, planes, width, draw, step.back, windows, 0)
                fold_back(window, scratch, blocks, y, target)


def piece_bytes(outputs: int, inputs: int, kernel: int) -> int:
    """Of a piece of dW."""
    return rounded(outputs) * kernel**2 * blocks_of(inputs) * BYTES
