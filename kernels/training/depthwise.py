"""Depthwise convolution in training, both ways, together with the activated expansion that it reads.

Forward it is ../depthwise.py: expanded rows are made in a ring in the scratch and convolved there; but what comes out is stored
as it is, before its batch norm, and its moments are added up while it is in the L2.

Plain meaning of the way back, for one channel, with draw = a dz + b raw + c (norm.py) and `dilated` draw with stride - 1 zeros
between its numbers:

    dx[y, x] = sum over i, j of taps[i, j] * dilated[y + pad - i, x + pad - j]
    dtaps[i, j] = sum over y, x of in[y, x] * dilated[y + pad - i, x + pad - j]

Both walk over the *inputs*, row by row, and look at the same rows of `dilated`, which is a ring in the scratch: so one chunk of
rows goes through everything. First the input is made again by the expansion's product; dx is a convolution with the
taps turned round, by the tile of ../depthwise.py; then activation, slope and batch norm's sums in one go; then dtaps.
Multiplying the zeros of a stride of 2 costs 4 times what it has to, of something that is a hundredth of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from effnet_np.kernels.depthwise import Ring, Rows, Taps, Window, list_bytes, list_rows, rows_of, zero, zero_edges
from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.product import Epilogue, Panel, Shape, map_at, panel_at, product
from effnet_np.kernels.record import Activation, Address, Bytes, Count, Function, Map, Step
from effnet_np.kernels.simd import int64, load, load_scalar, njit, splat, staged, store, store_int, store_scalar, void
from effnet_np.kernels.target import BYTES, REGISTERS, WIDTH
from effnet_np.kernels.tiling import IDENTITY, Ahead, ceil_div, share_of
from effnet_np.kernels.training.batch import Partial, image_of
from effnet_np.kernels.training.norm import MEAN, MOMENTS, SCALE, SHIFT, SUMS, A, B, C, Ready, add_moments, clear, of_norm
from effnet_np.kernels.training.rows import activate_row, both_row, copy_row, gradient_row
from effnet_np.kernels.training.slopes import total

ZERO, ONE = np.float32(0), np.float32(1)
HEAD = 8 * BYTES  # at the beginning of the scratch: room for a register that is not looked at

# -- taps --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PackTaps(Step):
    """(C, 1, K, K) -> (blocks, K * K, WIDTH), as they are and turned round. A task: one block."""

    source: Address
    channels: Count
    taps: Count  # K * K
    there: Address
    back: Address

    label, flops = "pack", 0

    @property
    def floats(self):
        return 3 * self.channels * self.taps


@kernel(PackTaps)
def pack_taps(step, task, scratch):
    for lane in range(min(WIDTH, step.channels - task * WIDTH)):
        for tap in range(step.taps):
            w = load_scalar(step.source + ((task * WIDTH + lane) * step.taps + tap) * 4)
            store_scalar(step.there + (task * step.taps + tap) * BYTES + 4 * lane, w)
            store_scalar(step.back + (task * step.taps + step.taps - 1 - tap) * BYTES + 4 * lane, w)


@dataclass(frozen=True, kw_only=True)
class ReduceTaps(Step):
    """The pieces of the taps' gradient, turned round, added up. A task: one block."""

    partial: Partial
    channels: Count
    taps: Count
    target: Address

    label, flops = "reduce", 0

    @property
    def floats(self):
        return self.channels * self.taps * self.partial.pieces

    @property
    def scratch(self):
        return BYTES


@kernel(ReduceTaps)
def reduce_taps(step, task, scratch):
    for tap in range(step.taps):
        sum_ = splat(ZERO)
        for piece in range(step.partial.pieces):
            at = step.partial.address + piece * step.partial.piece + (task * step.taps + step.taps - 1 - tap) * BYTES
            sum_ = sum_ + load(at)
        store(scratch, sum_)
        for lane in range(min(WIDTH, step.channels - task * WIDTH)):
            store_scalar(step.target + ((task * WIDTH + lane) * step.taps + tap) * 4, load_scalar(scratch + 4 * lane))


# -- forward -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DepthwiseForward(Step):
    """A task: a band of output rows of a picture for a group of blocks; the cut's bands are those of all pictures."""

    source: Map
    inputs: Count
    expanded: Map | None  # what the expansion gave, where it was stored
    expand: Panel | None  # None: the source itself is convolved
    before: Ready | None  # the expansion's batch norm
    channels: Count
    window: Window
    taps: Taps
    ring: Ring
    chunk: Count
    bands: Count  # of a picture
    target: Map
    moments: Partial | None  # None: the stored statistics
    activation: Activation
    rows: Function
    product: Function = "product"

    @property
    def flops(self):
        window, images = self.window, self.cut.bands // self.bands
        makes = self.expand and not self.expanded
        made = 2 * self.inputs * self.channels * window.height * window.width if makes else 0
        return images * (made + 2 * self.channels * window.kernel**2 * window.out_height * window.out_width)

    @property
    def floats(self):
        window, images = self.window, self.cut.bands // self.bands
        read = (self.channels if self.expanded else self.inputs) * window.height * window.width
        return images * (read + self.channels * window.out_height * window.out_width)

    @property
    def scratch(self):
        vectors = ceil_div(self.cut.blocks, self.cut.groups)
        return HEAD + list_bytes(self.chunk, self.window) + vectors * self.ring.plane


@njit
def make_rows(step, share, source, expanded, ring, made, needed):
    """Puts rows `made` to `needed` of the convolution's input into the ring."""
    window, nothing = step.window, Ahead(0, 0)
    while made < needed:
        slot = made % ring.slots
        count = min(needed - made, ring.slots - slot)
        target = Map(ring.address + slot * ring.row + max(window.left, 0) * BYTES, ring.row, ring.plane)
        if step.expand.weights != 0:
            shape, matrix = Shape(2 * share.vectors, count, window.width), panel_at(step.expand, share.first_block)
            here, stored = map_at(source, 0, made * window.width), step.expanded.address != 0
            if not stored:
                product(step.product, shape, here, matrix, target, nothing, Epilogue(0, IDENTITY))
            for v in range(share.vectors):
                block = share.first_block + v
                scale, shift = of_norm(step.before, block, SCALE), of_norm(step.before, block, SHIFT)
                for i in range(count):
                    row = target.address + v * ring.plane + i * ring.row
                    raw = map_at(expanded, block, (made + i) * window.width).address if stored else row
                    activate_row(raw, row, window.width, scale, shift, splat(ONE), step.activation)
        else:
            for v in range(share.vectors):
                for i in range(count):
                    row = map_at(source, share.first_block + v, (made + i) * window.width).address
                    copy_row(row, target.address + v * ring.plane + i * ring.row, window.width)
        made += count


@kernel(DepthwiseForward)
def depthwise_forward(step, task, scratch):
    share, window, taps = share_of(step.cut, task), step.window, step.taps
    image, band = share.band // step.bands, share.band % step.bands
    source = image_of(step.source, image, window.height * window.width)
    expanded = image_of(step.expanded, image, window.height * window.width)
    target = image_of(step.target, image, window.out_height * window.out_width)
    moments = step.moments.address + share.band * step.moments.piece + share.first_block * (MOMENTS * BYTES)
    counts = step.moments.address != 0
    if counts:
        clear(moments, MOMENTS * share.vectors)
    sources = scratch + HEAD
    ring = Ring(sources + list_bytes(step.chunk, window), step.ring.slots, step.ring.row, step.ring.plane, step.ring.lead)
    zero_edges(ring, window, share.vectors)
    y, end = band * window.out_height // step.bands, (band + 1) * window.out_height // step.bands
    begin = y
    made = max(0, y * window.stride - window.top)
    while y < end:
        last = min(end, y + step.chunk)
        first = y * window.stride - window.top
        needed = min(window.height, (last - 1) * window.stride - window.top + window.kernel)
        make_rows(step, share, source, expanded, ring, made, needed)
        made = max(made, needed)
        list_rows(sources, ring, window, first, (last - y - 1) * window.stride + window.kernel)
        for v in range(share.vectors):
            block = share.first_block + v
            weights = taps.weights + block * (window.kernel * window.kernel * BYTES)
            these = Taps(weights, taps.bias + block * BYTES, window.kernel, window.stride)
            to = map_at(target, block, y * window.out_width)
            rows = Rows(sources, v * ring.plane, last - y, window.out_width)
            rows_of(step.rows, rows, these, to, scratch, IDENTITY)
            before, count = (y - begin) * window.out_width, (last - y) * window.out_width
            if counts:
                add_moments(moments + v * (MOMENTS * BYTES), before, to.address, count)
        y = last


# -- the way back ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DepthwiseBackward(Step):
    """A task: a band of input rows of a picture for a group of blocks."""

    source: Map
    inputs: Count
    expanded: Map | None  # what the expansion gave, where it was stored
    expand: Panel | None
    channels: Count
    window: Window  # of the forward
    taps: Taps  # turned round
    ring: Ring  # of the rows of draw
    chunk: Count  # input rows
    bands: Count
    raw: Map
    gradient: Map  # dz of the convolution's own batch norm
    norm: Ready
    before: Ready | None  # the expansion's
    sums: Partial | None  # of the expansion's batch norm
    partial: Partial  # of dtaps
    target: Map | None  # of the expansion's dz, or of dx; None: nobody wants it
    residual: Map | None  # what is added to dx
    activation: Activation
    rows: Function
    product: Function = "product"

    @property
    def flops(self):
        window, images = self.window, self.cut.bands // self.bands
        makes = self.expand and not self.expanded
        made = 2 * self.inputs * self.channels * window.height * window.width if makes else 0
        return images * (made + 4 * self.channels * window.kernel**2 * window.out_height * window.out_width)

    @property
    def floats(self):
        window, images = self.window, self.cut.bands // self.bands
        wide = self.channels * window.height * window.width
        return images * (
            self.inputs * window.height * window.width + wide + 2 * self.channels * window.out_height * window.out_width
        )

    @property
    def scratch(self):
        vectors = ceil_div(self.cut.blocks, self.cut.groups)
        rows = (vectors + 1) * self.chunk * self.window.width * BYTES
        return HEAD + back_list_bytes(self.chunk, self.window.kernel) + vectors * self.ring.plane + rows


@njit
def back_list_bytes(chunk, kernel):
    return ceil_div(8 * (chunk + kernel), 64) * 64


def plan_back(window: Window, vectors: int, most: int, room: int) -> tuple[int, Ring]:
    """(input rows of a chunk, at most `most`, and the ring of rows of draw for it) for a scratch of `room` bytes."""
    row = BYTES * (window.width + window.kernel - 1)
    each = vectors * row / window.stride + (vectors + 1) * window.width * BYTES
    chunk = max(1, min(most, int((room - vectors * row * (window.kernel + 2)) / each)))
    slots = (chunk + window.kernel - 1) // window.stride + 2
    return chunk, Ring(None, slots, row, (slots + 1) * row, 0)


class Draw(NamedTuple):
    """The rows of draw that are in the ring, and what they are made of."""

    raw: Map
    gradient: Map
    ring: Ring
    lead: Bytes  # from where a row of the ring begins to its first number of draw


@njit
def make_draw(step, share, draw, made, needed):
    """Puts rows `made` to `needed` of draw into the ring, stride - 1 zeros between its numbers."""
    window, ring, norm = step.window, draw.ring, step.norm
    for v in range(share.vectors):
        block = share.first_block + v
        a, b, c = of_norm(norm, block, A), of_norm(norm, block, B), of_norm(norm, block, C)
        for row in range(made, needed):
            dz = map_at(draw.gradient, block, row * window.out_width).address
            raw = map_at(draw.raw, block, row * window.out_width).address
            to = ring.address + v * ring.plane + row % ring.slots * ring.row + draw.lead
            if window.stride == 1:
                gradient_row(dz, 0, raw, to, window.out_width, a, b, c)
            else:
                for x in range(window.out_width):
                    y = load(dz + x * BYTES) * a + load(raw + x * BYTES) * b + c
                    store(to + x * window.stride * BYTES, y)


@njit
def list_draw(sources, ring, window, first, count):
    """The addresses of rows `first` to `first + count` of the dilated draw: its slot, or the row of zeros."""
    for i in range(count):
        at, row = ring.address + ring.slots * ring.row, first + i
        if row >= 0 and row % window.stride == 0 and row // window.stride < window.out_height:
            at = ring.address + row // window.stride % ring.slots * ring.row
        store_int(sources + 8 * i, at)


AT_A_TIME = 4 if REGISTERS == 32 else 2  # neighbouring inputs of a tile of tap_sums


@staged(void, int64, Rows, int64, int64)
def tap_sums(code, inputs, rows, kernel, sums_at):
    """Adds to the kernel * kernel registers at `sums_at`: for each (i, j) the sum of in[y, x] * listed[y + i][x + j]."""
    with code.loop(kernel) as i:
        for size in code.switch(kernel, (3, 5)):
            sums = [[code.variable(code.vector(0.0)) for _ in range(size)] for _ in range(AT_A_TIME)]
            with code.loop(rows.count) as y:
                row = code.load_int(rows.sources + (y + i) * 8) + rows.moved
                source = inputs + y * rows.pixels * BYTES
                tiles = rows.pixels >> (AT_A_TIME.bit_length() - 1)

                def tile(x, count, row=row, source=source, sums=sums, size=size):
                    values = [code.load(source + x * BYTES, p * BYTES) for p in range(count)]
                    seen = [code.load(row + x * BYTES, p * BYTES) for p in range(count + size - 1)]
                    for p in range(count):
                        for j in range(size):
                            sums[p][j].set(code.fma(values[p], seen[p + j], sums[p][j].get()))

                with code.loop(tiles) as number:
                    tile(number * AT_A_TIME, AT_A_TIME)
                with code.loop(rows.pixels - tiles * AT_A_TIME) as number:
                    tile(tiles * AT_A_TIME + number, 1)
            for j in range(size):
                at = sums_at + (i * size) * BYTES
                code.store(at, code.load(at, j * BYTES) + total([s[j].get() for s in sums]), j * BYTES)


@njit
def any_tap_sums(inputs, rows, kernel, sums_at):
    """The same for a kernel size that has no code of its own."""
    for i in range(kernel):
        for j in range(kernel):
            sum_ = splat(ZERO)
            for y in range(rows.count):
                row = load_row(rows, y + i)
                for x in range(rows.pixels):
                    sum_ = sum_ + load(inputs + (y * rows.pixels + x) * BYTES) * load(row + (x + j) * BYTES)
            at = sums_at + (i * kernel + j) * BYTES
            store(at, load(at) + sum_)


@staged(int64, Rows, int64)
def load_row(code, rows, number):
    return code.load_int(rows.sources + number * 8) + rows.moved


@njit
def add_rows(source, residual, target, count, add):
    """target = source, or source + residual."""
    for i in range(count):
        x = load(source + i * BYTES)
        if add:
            x = x + load(residual + i * BYTES)
        store(target + i * BYTES, x)


@kernel(DepthwiseBackward)
def depthwise_backward(step, task, scratch):
    share, window, taps = share_of(step.cut, task), step.window, step.taps
    image, band = share.band // step.bands, share.band % step.bands
    size, out_size, kernel = window.height * window.width, window.out_height * window.out_width, window.kernel
    source, stored = image_of(step.source, image, size), step.expanded.address != 0
    given = image_of(step.expanded, image, size)
    sources = scratch + HEAD
    pad = kernel - 1 - window.top  # rows of the dilated draw above the first that an input looks at
    lead = (kernel - 1 - window.left) * BYTES
    ring = Ring(sources + back_list_bytes(step.chunk, kernel), step.ring.slots, step.ring.row, step.ring.plane, 0)
    draw = Draw(image_of(step.raw, image, out_size), image_of(step.gradient, image, out_size), ring, lead)
    zero(ring.address, share.vectors * ring.plane // BYTES)
    expanded = Map(ring.address + share.vectors * ring.plane, 0, step.chunk * window.width * BYTES)
    dx = expanded.address + share.vectors * expanded.plane
    partial = step.partial.address + share.band * step.partial.piece + share.first_block * (kernel * kernel * BYTES)
    clear(partial, share.vectors * kernel * kernel)
    expands = step.expand.weights != 0
    sums = step.sums.address + share.band * step.sums.piece + share.first_block * (SUMS * BYTES)
    if expands:
        clear(sums, SUMS * share.vectors)
    y, end = band * window.height // step.bands, (band + 1) * window.height // step.bands
    made = ceil_div(max(0, y - pad), window.stride)
    while y < end:
        last = min(end, y + step.chunk)
        count = (last - y) * window.width
        needed = min(window.out_height, (last - 1 - pad + kernel - 1) // window.stride + 1)
        if needed > made:
            make_draw(step, share, draw, made, needed)
            made = needed
        list_draw(sources, ring, window, y - pad, last - y + kernel - 1)
        here = map_at(source, 0, y * window.width)
        if expands and not stored:
            shape, matrix = Shape(2 * share.vectors, 1, count), panel_at(step.expand, share.first_block)
            product(step.product, shape, here, matrix, expanded, Ahead(0, 0), Epilogue(0, IDENTITY))
        for v in range(share.vectors):
            block = share.first_block + v
            rows = Rows(sources, v * ring.plane, last - y, window.width)
            inputs = expanded.address + v * expanded.plane if expands else map_at(here, block, 0).address
            if step.target.address != 0:
                these = Taps(taps.weights + block * (kernel * kernel * BYTES), taps.bias, kernel, 1)
                rows_of(step.rows, rows, these, Map(dx, window.width * BYTES, 0), scratch, IDENTITY)
                to = map_at(image_of(step.target, image, size), block, y * window.width).address
                if expands:
                    scale, shift = of_norm(step.before, block, SCALE), of_norm(step.before, block, SHIFT)
                    mean, at = of_norm(step.before, block, MEAN), sums + v * (SUMS * BYTES)
                    raw = map_at(given, block, y * window.width).address if stored else inputs
                    both_row(dx, raw, inputs, to, count, scale, shift, mean, at, step.activation)
                else:
                    other = map_at(image_of(step.residual, image, size), block, y * window.width).address
                    add_rows(dx, other, to, count, step.residual.address != 0)
            if kernel == 3 or kernel == 5:
                tap_sums(inputs, rows, kernel, partial + v * (kernel * kernel * BYTES))
            else:
                any_tap_sums(inputs, rows, kernel, partial + v * (kernel * kernel * BYTES))
        y = last
