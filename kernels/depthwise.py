"""Depthwise convolution, together with what makes its input: the expansion, or the stem.

Plain meaning, for one channel:

    out[y, x] = activation(sum over i, j of taps[i, j] * in[y * stride + i, x * stride + j] + shift)

It has few multiplications (9% of B0's, 5% of B7's), but plain loops run them at a few hundredths of the core's speed, and its
input, six times wider than anything else in the network, is the largest array there is.

How it became fast. `python -m effnet_np.kernels.versions` runs every step of it; it printed, for one core of an AMD EPYC
(Zen 5, AVX-512, a busy machine), for expansion and convolution together, GFLOP/s and the share of the core's peak:

    size, channels, taps                  56, 24 to 144, 3x3   28, 40 to 240, 5x5   7, 192 to 1152, 5x5
    v0 loops                                 8.2   (3%)           9.0   (3%)           24.9   (9%)
    v1 a register of channels               74.9  (27%)          70.2  (25%)          135.7  (50%)
    v2 a tile of 8 neighbouring outputs    172.1  (62%)         191.5  (69%)          218.2  (80%)
    v3 expanded rows never go to memory    174.0  (63%)         189.4  (69%)          210.5  (77%)
    v4 all rows of a ring in one call      179.9  (65%)         205.8  (75%)          232.0  (85%)
    v5 the next weights and rows fetched   178.7  (65%)         201.5  (73%)          223.1  (82%)

1. *A tile of 8 neighbouring outputs in registers*, for 16 channels at once. Each input is loaded once for a row of taps and
   serves all outputs that it belongs to: 60 loads for 200 multiply-adds with 5x5 taps, instead of 200. Kernel size and
   stride are known when the tile is compiled.
2. *Expanded activations never go to memory.* A task takes a group of up to 3 channel blocks and a band of rows. It makes some
   rows of the expansion (product.py) in a ring of rows in its scratch, which stays in the L2, and convolves them while
   they are there. For the stem, which block 0 reads, it is the same. By itself it gains little in the run above: with
   a row at a time, each call's way in and out costs as much. With the next step it is 4% to 8%.
3. *All rows of a ring in one call*, each row's address in a list. With one call a row, all the way in and out is paid for
   each. Rows above and below the map are one row of zeros; the columns beside it are zeros in the ring, written once a task.
4. *Squeeze-excite's first half on the way.* The outputs are added up while they are in registers, and the task multiplies
   its channels' sums with their part of the reducing layer's weights. What is left of it for the next step (squeeze_excite.py)
   is to add one short vector for each task. v5 adds up, v4 does not.
5. *Two equal tiles at a time where there are 16 registers* (AVX2): with 4 sums, each multiply-add waits for the last one, 25
   times for 5x5 taps. The weights of a row of taps, 8 sums and an input are 14 registers. 3% of the step (Zen 5 running AVX2
   code). A row of 7 stays two unequal tiles, one after the other.
6. *Where the next row of results will be stored is fetched before*, for writing: 1% of B4's largest maps, which do not fit
   in the L2 (measured on a Zen 4).

What did not help: fetching more. One attempt asked for the rows that will be copied next, for residuals, and for lines
about to be written as if they were to be read; B4 on two threads got 30% slower, probably through the last. A Winograd
form was not written: on paper its additions and transforms cost as much as the multiplications that it saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from effnet_np.kernels.activations import FUSED, fused
from effnet_np.kernels.arena import FeatureMap
from effnet_np.kernels.bands import depthwise_bands
from effnet_np.kernels.kernel import function, kernel
from effnet_np.kernels.product import Epilogue, Panel, Shape, map_at, pack_matrix, panel, panel_at, product, vector
from effnet_np.kernels.record import Activation, Address, Bytes, Count, Function, Map, Step
from effnet_np.kernels.simd import int64, load, njit, prefetch, splat, staged, store, store_int, void
from effnet_np.kernels.stem import StemLayer, stem_flops, stem_row, stem_scratch
from effnet_np.kernels.target import BYTES, REGISTERS, UNIT, VECTORS, WIDTH
from effnet_np.kernels.tiling import (
    IDENTITY,
    Ahead,
    ahead_of,
    band_of,
    blocks_of,
    ceil_div,
    cut,
    equal_tiles,
    in_registers,
    second_pass,
    share_of,
    units_of,
)

HEIGHT = 8 if REGISTERS == 32 else 4  # neighbouring outputs of a tile
PAIRS = REGISTERS == 16  # equal tiles: 4 sums are too few for the core; outputs are added up in the same order
SPECIAL = ((3, 1), (3, 2), (5, 1), (5, 2))  # kernel sizes and strides with code of their own
COPY, EXPAND, CONVOLVE = range(3)  # where the rows that are convolved come from: the map, its expansion, the stem
RING_BYTES = 384 * 1024  # of a thread's ring of rows: well inside of an L2 of 512 KB or more
ZERO = np.float32(0)

# -- the record --------------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Which inputs an output looks at."""

    kernel: Count
    stride: Count
    top: Count  # rows above the map that the first window covers; less than 0 where it begins later
    left: Count  # and columns beside it
    height: Count
    width: Count
    out_height: Count
    out_width: Count


class Taps(NamedTuple):
    """Weights and bias of all blocks, or from some block on: kernel x kernel registers a block."""

    weights: Address
    bias: Address
    kernel: Count
    stride: Count


class Ring(NamedTuple):
    """A ring of rows in a thread's scratch, for each block of the group; behind its last slot, a row of zeros."""

    address: Address  # None while planning: the scratch is the thread's
    slots: Count
    row: Bytes
    plane: Bytes
    lead: Bytes  # from where a row begins to where the first window does


class Squeeze(NamedTuple):
    """The first half of squeeze-excite: its reducing layer, and where each task leaves its part of the product."""

    weights: Address
    blocks: Count  # of squeezed channels
    partial: Address


@dataclass(frozen=True, kw_only=True)
class Depthwise(Step):
    """Depthwise convolution with what makes its input. A task: a band of output rows of a group of channel blocks."""

    producer: Count
    source: Map | None  # what is copied or expanded
    inputs: Count  # its channels
    expand: Panel | None
    stem_layer: StemLayer | None
    channels: Count  # that are convolved
    window: Window
    taps: Taps
    ring: Ring
    chunk: Count  # output rows that are made at a time
    squeeze: Squeeze | None
    target: Map
    activation: Activation
    rows: Function
    product: Function = "product"
    stem_row: Function = "stem_row"

    @property
    def label(self):
        return {COPY: "depthwise", EXPAND: "expand+depthwise", CONVOLVE: "stem+depthwise"}[self.producer]

    @property
    def flops(self):
        window, channels = self.window, self.channels
        pixels = window.height * window.width
        made = stem_flops(self.stem_layer, channels, pixels) if self.stem_layer else 2 * self.inputs * channels * pixels
        convolved = 2 * channels * window.kernel**2 * window.out_height * window.out_width
        return convolved + (made if self.producer != COPY else 0)

    @property
    def floats(self):
        window, stem = self.window, self.stem_layer
        read = stem.height * stem.width * stem.channels if stem else self.inputs * window.height * window.width
        weights = self.channels * (window.kernel**2 + (self.inputs if self.producer == EXPAND else 0))
        return read + weights + self.channels * window.out_height * window.out_width

    @property
    def listed(self) -> int:
        """Bytes of the list of the rows that a chunk looks at."""
        return list_bytes(self.chunk, self.window)

    @property
    def scratch(self):
        vectors = ceil_div(self.cut.blocks, self.cut.groups)
        stem = stem_scratch(self.stem_layer) if self.stem_layer else 0
        return TOTALS * BYTES + self.listed + vectors * self.ring.plane + stem


TOTALS = 8  # registers at the beginning of the scratch: the sums of the outputs, and, from the fifth on, zeros

# -- planning ----------------------------------------------------------------------------------------------------------


@njit
def list_bytes(chunk, window):
    return ceil_div(8 * (chunk * window.stride + window.kernel), 64) * 64


def pack_taps(weight: np.ndarray, channels: int) -> np.ndarray:
    """(channels, 1, K, K) -> (blocks, K * K, WIDTH): tap after tap, WIDTH channels side by side."""
    taps = np.zeros((blocks_of(channels) * WIDTH, weight[0].size), np.float32)
    taps[:channels] = weight.reshape(channels, -1)
    return taps.reshape(-1, WIDTH, taps.shape[1]).transpose(0, 2, 1)


def pack(weights, spec) -> None:
    name, channels, blocks = f"encoder.blocks.{spec.index}.", spec.expanded_channels, blocks_of(spec.expanded_channels)
    scale_in = weights.stem_scale if spec.index == 0 else 1.0  # the stem's output is scaled, a block's is not
    if spec.expand_ratio != 1:
        folded = weights.fold(name + "expansion.expand_conv", name + "expansion.expand_bn", scale_in, weights.inner)
        pack_matrix(weights, (spec.index, "expand"), spec.in_channels, channels, folded)
        scale_in = weights.inner
    conv, norm = name + "depthwise_conv.depthwise_conv", name + "depthwise_conv.depthwise_norm"
    folded = weights.fold(conv, norm, scale_in, weights.inner)

    def make():
        weight, bias = folded()
        return pack_taps(weight, channels), bias

    weights.add((spec.index, "depthwise"), blocks * WIDTH * spec.kernel_size**2, blocks * WIDTH, make)


def plan(net, spec, source: FeatureMap, target: FeatureMap, stem_layer: StemLayer | None = None) -> Depthwise:
    """source: the block's input, or, with `stem_layer`, the size of the map that the stem would have made."""
    window = window_of(spec, source, target)
    producer = EXPAND if spec.expand_ratio != 1 else CONVOLVE if stem_layer else COPY
    # Cycles for a register of input, and for one of output.
    input_cycles = 10 + {EXPAND: units_of(spec.in_channels) * UNIT, CONVOLVE: 27, COPY: 0}[producer]
    output_cycles = window.kernel**2 + 9
    bands = depthwise_bands(target.blocks, input_cycles, output_cycles, window)
    tasks = cut(target.blocks, bands, bands_first=False)
    chunk, ring = plan_ring(window, ceil_div(target.blocks, tasks.groups), ceil_div(window.out_height, bands))
    squeeze = None
    if spec.squeeze_channels:
        blocks = blocks_of(spec.squeeze_channels)
        partial = net.arena.reserve(tasks.tasks * blocks * BYTES)
        squeeze = Squeeze(net.weights.at((spec.index, "reduce")), blocks, partial)
    name = (spec.index, "depthwise")
    return Depthwise(
        cut=tasks,
        producer=producer,
        source=None if stem_layer else source.map,
        inputs=spec.in_channels,
        expand=panel(net.weights, (spec.index, "expand"), spec.in_channels) if producer == EXPAND else None,
        stem_layer=stem_layer,
        channels=target.channels,
        window=window,
        taps=Taps(net.weights.at(name), net.weights.at((name, "bias")), window.kernel, window.stride),
        ring=ring,
        chunk=chunk,
        squeeze=squeeze,
        target=target.map,
        activation=net.activation,
        rows=rows_name(window.kernel, window.stride),
    )


def window_of(spec, source: FeatureMap, target: FeatureMap) -> Window:
    """Of a block's K x K convolution from one map to another."""
    top, _, left, _ = spec.zeros(source.height, source.width)
    sizes = (source.height, source.width, target.height, target.width)
    return Window(spec.kernel_size, spec.stride, top, left, *sizes)


def plan_ring(window: Window, vectors: int, most: int) -> tuple[int, Ring]:
    """(output rows of a chunk, at most `most`, and the ring for it)."""
    left = max(window.left, 0)
    lead = left - window.left
    row = BYTES * max(lead + (window.out_width - 1) * window.stride + window.kernel, left + window.width)
    more = window.kernel - window.stride  # rows that a chunk shares with the next
    chunk = int((RING_BYTES / (vectors * row) - more) // window.stride)
    chunk = max(1, min(most, chunk))
    slots = max(1, chunk * window.stride + max(0, more))
    return chunk, Ring(None, slots, row, (slots + 1) * row, lead * BYTES)


def rows_name(kernel: int, stride: int) -> str:
    return f"depthwise_rows_{kernel}_{stride}" if (kernel, stride) in SPECIAL else "depthwise_rows_any"


# -- the convolution of some rows --------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """What to convolve: `count` rows of `pixels` outputs."""

    sources: Address  # a list of the addresses of the input rows
    moved: Bytes  # to be added to each
    count: Count
    pixels: Count


def _finish(code, sums, target, row, total, activation, size):
    """Stores one tile of `size` outputs, or two, and adds up each."""
    for column in range(len(sums)):
        code.prefetch(target + row, column * BYTES, level=1, to_write=True)
    low, high = code.splat(activation.low), code.splat(activation.high)
    for mode in code.switch(activation.code, FUSED):
        done = [fused(code, mode, y, low, high) for y in sums]
        for column, y in enumerate(done):
            code.store(target, y, column * BYTES)
        for first in range(0, len(done), size):
            part = done[first : first + size]
            while len(part) > 1:
                part = [part[i] + part[i + 1] if i + 1 < len(part) else part[i] for i in range(0, len(part), 2)]
            total.set(total.get() + part[0])


def _tiles(kernel, stride):
    """For some rows of one block of channels, `count` tiles beside each other, two at a time where one has too few sums."""

    @staged(void, Rows, int64, Taps, Map, int64, Activation)
    def tiles(code, rows, count, taps, target, total_at, activation):
        for size in code.switch(rows.pixels, range(1, HEIGHT + 1)):
            total = code.variable(code.load(total_at))
            bias = code.load(taps.bias)
            held = [code.load(taps.weights, i * BYTES) for i in range(kernel * kernel)] if kernel <= 3 and not PAIRS else None
            with code.loop(rows.count) as y:
                starts = [code.load_int(rows.sources + y * (8 * stride), 8 * i) + rows.moved for i in range(kernel)]
                to = target.address + y * target.row
                # (tiles at a time, how many times, which is the first)
                for together, times, first in [(2, count >> 1, 0), (1, count & 1, count - 1)] if PAIRS else [(1, count, 0)]:
                    with code.loop(times) as turn:
                        number = turn * together + first
                        sums = [bias] * (together * size)
                        for i in range(kernel):
                            w = held[i * kernel : (i + 1) * kernel] if held else None
                            if w is None:
                                w = [code.load(taps.weights, (i * kernel + j) * BYTES) for j in range(kernel)]
                            row = starts[i] + number * (size * stride * BYTES)
                            for x in range((len(sums) - 1) * stride + kernel):
                                value = code.load(row, x * BYTES)
                                for j in range(kernel):
                                    if (x - j) % stride == 0 and 0 <= (x - j) // stride < len(sums):
                                        column = (x - j) // stride
                                        sums[column] = code.fma(value, w[j], sums[column])
                        _finish(code, sums, to + number * (size * BYTES), target.row, total, activation, size)
            code.store(total_at, total.get())

    return tiles


@staged(void, Rows, int64, Taps, Map, int64, Activation)
def _any_tiles(code, rows, count, taps, target, total_at, activation):
    """The same for a kernel size and stride that are known only when the program runs."""
    for size in code.switch(rows.pixels, range(1, HEIGHT + 1)):
        total = code.variable(code.load(total_at))
        with code.loop(rows.count) as y, code.loop(count) as number:
            bias = code.load(taps.bias)
            sums = [code.variable(bias) for _ in range(size)]
            with code.loop(taps.kernel) as i:
                moved = rows.moved + number * taps.stride * (size * BYTES)
                row = code.load_int(rows.sources + (y * taps.stride + i) * 8) + moved
                with code.loop(taps.kernel) as j:
                    w = code.load(taps.weights + (i * taps.kernel + j) * BYTES)
                    for column in range(size):
                        value = code.load(row + (taps.stride * column + j) * BYTES)
                        sums[column].set(code.fma(value, w, sums[column].get()))
            to = target.address + y * target.row + number * (size * BYTES)
            _finish(code, [s.get() for s in sums], to, target.row, total, activation, size)
        code.store(total_at, total.get())


def _rows(kernel, stride):
    """The native function for that kernel size and stride, or, for None, for any."""
    tiles = _tiles(kernel, stride) if kernel else _any_tiles

    def rows_of(rows, taps, target, total_at, activation):
        now = in_registers(activation)
        before = load(total_at)
        for size, count, first in equal_tiles(rows.pixels, HEIGHT):
            if count > 0:
                tile = Rows(rows.sources, rows.moved + first * taps.stride * BYTES, rows.count, size)
                tiles(tile, count, taps, map_at(target, 0, first), total_at, now)
        if now.code != activation.code:
            store(total_at, second_pass(activation, target, 1, rows.count, rows.pixels, before))

    rows_of.__name__ = rows_of.__qualname__ = rows_name(kernel, stride)
    return function(Rows, Taps, Map, int64, Activation)(rows_of)


for _kernel, _stride in (*SPECIAL, (None, None)):
    rows_of = _rows(_kernel, _stride)  # all are called in the same way: the address says which it is

# -- the kernel --------------------------------------------------------------------------------------------------------


@njit
def zero(address, vectors):
    for i in range(vectors):
        store(address + i * BYTES, splat(ZERO))


@njit
def zero_edges(ring, window, vectors):
    """Zeros beside the map, which no row is written over, and in the row that stands for those above and below it."""
    left = max(window.left, 0)
    right = ring.row // BYTES - left - window.width
    for v in range(vectors):
        rows = ring.address + v * ring.plane
        for slot in range(ring.slots):
            zero(rows + slot * ring.row, left)
            zero(rows + slot * ring.row + (left + window.width) * BYTES, right)
        zero(rows + ring.slots * ring.row, ring.row // BYTES)


@njit
def make_rows(step, share, ring, made, needed, ahead, scratch):
    """Puts rows `made` to `needed` of the convolution's input into the ring."""
    window, source, activation = step.window, step.source, step.activation
    while made < needed:
        slot = made % ring.slots
        count = min(needed - made, ring.slots - slot)
        target = Map(ring.address + slot * ring.row + max(window.left, 0) * BYTES, ring.row, ring.plane)
        if step.producer == EXPAND:
            shape, matrix = Shape(2 * share.vectors, count, window.width), panel_at(step.expand, share.first_block)
            product(step.product, shape, map_at(source, 0, made * window.width), matrix, target, ahead, Epilogue(0, activation))
        elif step.producer == COPY:
            for v in range(share.vectors):
                for i in range(count):
                    row = source.address + (share.first_block + v) * source.plane + (made + i) * source.row
                    for x in range(window.width):
                        store(target.address + v * ring.plane + i * ring.row + x * BYTES, load(row + x * BYTES))
        else:
            for i in range(count):
                row = map_at(target, 0, i * (ring.row // BYTES))
                stem_row(step.stem_row, step.stem_layer, made + i, window.width, share, scratch, row, activation)
        made += count


@njit
def list_rows(sources, ring, window, first, count):
    """The addresses of input rows `first` to `first + count`: each one's slot, or the row of zeros."""
    slot = max(first, 0) % ring.slots
    for i in range(count):
        at = ring.address + ring.slots * ring.row
        if 0 <= first + i < window.height:
            at = ring.address + slot * ring.row
            slot += 1
            if slot == ring.slots:
                slot = 0
        store_int(sources + 8 * i, at + ring.lead)


@njit
def fetch_reduction(step, share):
    """Asks for the weights that `reduce_sums` will read."""
    squeeze = step.squeeze
    for q in range(0, squeeze.blocks, VECTORS):
        n = min(VECTORS, squeeze.blocks - q)
        weights = squeeze.weights + q * (step.cut.blocks * WIDTH * BYTES) + share.first_block * (WIDTH * n * BYTES)
        for i in range(share.vectors * WIDTH * n):
            prefetch(weights + i * BYTES)


@njit
def reduce_sums(step, share, task, totals):
    """This task's part of the reducing layer's product: its channels' sums times their weights."""
    squeeze = step.squeeze
    partial = squeeze.partial + task * (squeeze.blocks * BYTES)
    zeros = totals + TOTALS // 2 * BYTES  # instead of a bias
    for q in range(0, squeeze.blocks, VECTORS):
        n = min(VECTORS, squeeze.blocks - q)
        weights = squeeze.weights + q * (step.cut.blocks * WIDTH * BYTES) + share.first_block * (WIDTH * n * BYTES)
        matrix = Panel(weights, zeros, share.vectors * (WIDTH // UNIT))
        shape, ahead = Shape(2 * n, 1, 1), Ahead(weights, weights)
        product(step.product, shape, vector(totals, 0), matrix, vector(partial, q), ahead, Epilogue(0, IDENTITY))


@kernel(Depthwise)
def depthwise(step, task, scratch):
    """Chunk by chunk: makes the rows that the next output rows look at, and convolves them."""
    share, window, taps = share_of(step.cut, task), step.window, step.taps
    kernel_bytes = window.kernel * window.kernel * BYTES
    for i in range(share.vectors * window.kernel * window.kernel):
        prefetch(taps.weights + share.first_block * kernel_bytes + i * BYTES)
    totals, sources = scratch, scratch + TOTALS * BYTES
    ring = Ring(sources + list_bytes(step.chunk, window), step.ring.slots, step.ring.row, step.ring.plane, step.ring.lead)
    zero(totals, TOTALS)
    zero_edges(ring, window, share.vectors)
    ahead = ahead_of(step.cut, step.expand, share, task + step.threads)

    y, end = band_of(window.out_height, step.cut, share.band)
    made = max(0, y * window.stride - window.top)
    while y < end:
        last = min(end, y + step.chunk)
        first = y * window.stride - window.top
        needed = min(window.height, (last - 1) * window.stride - window.top + window.kernel)
        make_rows(step, share, ring, made, needed, ahead, ring.address + share.vectors * ring.plane)
        made = max(made, needed)
        if last == end:
            fetch_reduction(step, share)
        list_rows(sources, ring, window, first, (last - y - 1) * window.stride + window.kernel)
        for v in range(share.vectors):
            block = share.first_block + v
            these = Taps(taps.weights + block * kernel_bytes, taps.bias + block * BYTES, window.kernel, window.stride)
            target = map_at(step.target, block, y * window.out_width)
            rows = Rows(sources, v * ring.plane, last - y, window.out_width)
            rows_of(step.rows, rows, these, target, totals + v * BYTES, step.activation)
        y = last
    reduce_sums(step, share, task, totals)
