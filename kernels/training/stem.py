"""The stem in training: the 3x3 convolution of ../stem.py without an activation, and the way back to weights and pixels.

Plain meaning of the way back, for the windows of a row (pixels of it, 9 C numbers each), as `ops.full_conv2d` has them:

    dW += draw.T @ windows          dwindows = draw @ W, added to where the windows were taken from

Windows are unfolded one row at a time into the thread's scratch; the rest are the products of every other layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.product import Epilogue, Panel, Shape, map_at, panel_at, product
from effnet_np.kernels.record import Activation, Address, Count, Function, Map, Step
from effnet_np.kernels.simd import load_scalar, njit, splat, store_scalar
from effnet_np.kernels.stem import StemLayer, copy_rows, stem_flops, stem_row, stem_scratch
from effnet_np.kernels.target import BYTES, VECTORS, WIDTH
from effnet_np.kernels.tiling import IDENTITY, Ahead, Share, band_of, ceil_div, group_start
from effnet_np.kernels.training.batch import Partial, image_of
from effnet_np.kernels.training.norm import MEAN, MOMENTS, SCALE, SHIFT, SUMS, A, B, C, Norm, add_moments, clear, of_norm
from effnet_np.kernels.training.outer import Outer, outer
from effnet_np.kernels.training.rows import gradient_row, scale_row, slope_row

ZERO, ONE = np.float32(0), np.float32(1)


@njit
def picture_of(layer, image):
    """The layer for one picture of the batch."""
    address = layer.image + image * (4 * layer.channels * layer.height * layer.width)
    return StemLayer(
        address, layer.channels, layer.height, layer.width, layer.top, layer.left, layer.row, layer.weights, layer.bias
    )


@dataclass(frozen=True, kw_only=True)
class StemForward(Step):
    """A task: a band of rows of a picture; the cut's bands are those of all pictures."""

    stem_layer: StemLayer
    channels: Count
    height: Count  # of the output
    width: Count
    bands: Count  # of a picture
    target: Map
    moments: Partial | None  # None: the stored statistics
    stem_row: Function = "stem_row"

    @property
    def flops(self):
        return stem_flops(self.stem_layer, self.channels, self.height * self.width) * (self.cut.bands // self.bands)

    @property
    def floats(self):
        return self.channels * self.height * self.width * (self.cut.bands // self.bands)

    @property
    def scratch(self):
        return stem_scratch(self.stem_layer)


@kernel(StemForward)
def stem_forward(step, task, scratch):
    image, band = task // step.bands, task % step.bands
    first, last = band * step.height // step.bands, (band + 1) * step.height // step.bands
    target, layer = image_of(step.target, image, step.height * step.width), picture_of(step.stem_layer, image)
    blocks = step.cut.blocks
    groups = ceil_div(blocks, VECTORS)
    for y in range(first, last):
        for group in range(groups):
            block = group_start(group, groups, blocks)
            share = Share(group, block, group_start(group + 1, groups, blocks) - block, 0)
            row = map_at(target, block, y * step.width)
            stem_row(step.stem_row, layer, y, step.width, share, scratch, row, IDENTITY)
    for block in range(blocks if step.moments.address != 0 else 0):
        at = step.moments.address + task * step.moments.piece + block * (MOMENTS * BYTES)
        clear(at, MOMENTS)
        here = target.address + block * target.plane + first * step.width * BYTES
        add_moments(at, 0, here, (last - first) * step.width)


@dataclass(frozen=True, kw_only=True)
class Slope(Step):
    """The gradient of what is activated, from that of the activation; it may go to its place. A task: a range of positions."""

    positions: Count
    raw: Map
    gradient: Map
    mask: Map | None  # that the activation was multiplied by
    target: Map
    norm: Norm
    sums: Partial
    activation: Activation

    @property
    def flops(self):
        return 0

    @property
    def floats(self):
        return 3 * self.positions * self.cut.blocks * WIDTH


@kernel(Slope)
def slope(step, task, scratch):
    first, last = band_of(step.positions, step.cut, task)
    norm = step.norm
    for block in range(step.cut.blocks):
        sums = step.sums.address + task * step.sums.piece + block * (SUMS * BYTES)
        clear(sums, SUMS)
        raw, dy = map_at(step.raw, block, first).address, map_at(step.gradient, block, first).address
        to = map_at(step.target, block, first).address
        if step.mask.address != 0:
            scale_row(dy, map_at(step.mask, block, first).address, 0, to, last - first, splat(ONE), splat(ZERO))
            dy = to
        scale, shift, mean = of_norm(norm, block, SCALE), of_norm(norm, block, SHIFT), of_norm(norm, block, MEAN)
        gate, more = splat(ONE), splat(ZERO)
        slope_row(dy, raw, to, last - first, scale, shift, gate, more, mean, sums, step.activation)


@dataclass(frozen=True, kw_only=True)
class StemBackward(Step):
    """A task: all rows of some pictures, one after another; the cut's bands are the pieces."""

    stem_layer: StemLayer
    images: Count
    channels: Count
    height: Count
    width: Count
    raw: Map
    gradient: Map
    norm: Norm
    partial: Partial  # of dW: (channels, 9 C)
    back: Panel  # `channels` inputs, 9 C outputs
    pixels: Address  # dL/d pictures, or None
    outer: Function = "outer"
    product: Function = "product"

    @property
    def flops(self):
        return stem_flops(self.stem_layer, self.channels, self.height * self.width) * self.images * (2 if self.pixels else 1)

    @property
    def floats(self):
        return 2 * self.channels * self.height * self.width * self.images

    @property
    def scratch(self):
        windows = ceil_div(9 * self.stem_layer.channels, WIDTH)
        return stem_scratch(self.stem_layer) + (windows + self.cut.blocks) * self.width * BYTES


@njit
def unfold(layer, rows, width, target):
    """The windows of one row: 9 C numbers for each position, in blocks of WIDTH."""
    for number in range(9 * layer.channels):
        c, i, j = number // 9, number % 9 // 3, number % 3
        source = rows + (c * 3 + i) * layer.row + 4 * j
        to = target + number // WIDTH * (width * BYTES) + number % WIDTH * 4
        for x in range(width):
            store_scalar(to + x * BYTES, load_scalar(source + 8 * x))


@njit
def fold_back(layer, y, windows, width, pixels):
    """Adds the gradient of a row of windows to that of the picture."""
    for number in range(9 * layer.channels):
        c, i, j = number // 9, number % 9 // 3, number % 3
        row, first = 2 * y + i - layer.top, j - layer.left  # where the first window has this number
        if 0 <= row < layer.height:
            to = pixels + ((c * layer.height + row) * layer.width + first) * 4
            source = windows + number // WIDTH * (width * BYTES) + number % WIDTH * 4
            for x in range(1 if first < 0 else 0, min(width, (layer.width - first + 1) // 2)):
                store_scalar(to + 8 * x, load_scalar(to + 8 * x) + load_scalar(source + x * BYTES))


@kernel(StemBackward)
def stem_backward(step, task, scratch):
    first, last = band_of(step.images, step.cut, task)
    blocks, width = step.cut.blocks, step.width
    columns = 9 * step.stem_layer.channels
    vectors = ceil_div(columns, WIDTH)
    partial = step.partial.address + task * step.partial.piece
    clear(partial, step.partial.piece // BYTES)
    windows = Map(scratch, 0, width * BYTES)
    draw = Map(scratch + vectors * width * BYTES, 0, width * BYTES)
    rows = draw.address + blocks * width * BYTES
    for image in range(first, last):
        layer = picture_of(step.stem_layer, image)
        raw = image_of(step.raw, image, step.height * width)
        gradient = image_of(step.gradient, image, step.height * width)
        for y in range(step.height):
            copy_rows(layer, y, rows)
            unfold(layer, rows, width, windows.address)
            for block in range(blocks):
                a, b, c = of_norm(step.norm, block, A), of_norm(step.norm, block, B), of_norm(step.norm, block, C)
                dy, x = map_at(gradient, block, y * width).address, map_at(raw, block, y * width).address
                gradient_row(dy, 0, x, map_at(draw, block, 0).address, width, a, b, c)
            outer(step.outer, Outer(step.channels, vectors, width, vectors * BYTES), draw, windows, partial)
            if step.pixels != 0:
                pixels = step.pixels + image * (4 * layer.channels * layer.height * layer.width)
                groups = ceil_div(vectors, VECTORS)
                for group in range(groups):
                    block = group_start(group, groups, vectors)
                    count = group_start(group + 1, groups, vectors) - block
                    panel = panel_at(step.back, block)
                    to, nothing = map_at(windows, block, 0), Ahead(0, 0)
                    product(step.product, Shape(2 * count, 1, width), draw, panel, to, nothing, Epilogue(0, IDENTITY))
                fold_back(layer, y, windows.address, width, pixels)
