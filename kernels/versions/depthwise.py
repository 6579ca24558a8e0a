"""Expansion and depthwise convolution, version by version: swish(A @ B + bias), then swish of a K x K window of each channel.

All versions expand with the matrix product of the library (product.py); what changes is the convolution, and when it gets its
input. Numbers are times -log2(e) throughout, as swish takes and gives them (activations.py).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from effnet_np.kernels import depthwise, library, product
from effnet_np.kernels.activations import activate, swish
from effnet_np.kernels.native import caller
from effnet_np.kernels.product import Epilogue, Panel, Shape
from effnet_np.kernels.record import Activation, At, Map
from effnet_np.kernels.simd import fma, int64, load, staged, store, store_int, void
from effnet_np.kernels.table import SWISH
from effnet_np.kernels.target import BYTES, UNIT, VECTORS, WIDTH
from effnet_np.kernels.tiling import Ahead, blocks_of, ceil_div, cut, equal_tiles, group_edges, group_start, units_of
from effnet_np.kernels.versions.product import NO_LIMITS, aligned

call_kernel = caller(3)


class Case:
    """One shape: the map in planes, the packed weights, and room for the expanded map with its zeros, a ring, and results."""

    def __init__(self, size, inputs, channels, kernel):
        random = np.random.default_rng(0)
        self.size, self.inputs, self.channels, self.kernel = size, inputs, channels, kernel
        self.blocks, self.pad = blocks_of(channels), kernel // 2
        self.flops = 2 * size * size * channels * (inputs + kernel * kernel)
        self.x = aligned(blocks_of(inputs), size * size, WIDTH)
        for channel in range(inputs):
            self.x[channel // WIDTH, :, channel % WIDTH] = random.standard_normal(size * size)
        matrix = random.standard_normal((channels, inputs)) / math.sqrt(inputs)
        self.panels = aligned(units_of(inputs) * UNIT * self.blocks * WIDTH)
        self.panels[...] = product.pack(matrix, units_of(inputs) * UNIT, group_edges(self.blocks))
        self.taps = aligned(self.blocks, kernel * kernel, WIDTH)
        self.taps[...] = depthwise.pack_taps(random.standard_normal((channels, 1, kernel, kernel)) / kernel, channels)
        self.bias = aligned(self.blocks * WIDTH)
        self.bias[:channels] = random.standard_normal(channels)
        self.padded = aligned(self.blocks, size + 2 * self.pad, size + 2 * self.pad, WIDTH)
        self.out = aligned(self.blocks, size, size, WIDTH)
        self.scratch = aligned(len(VERSIONS), 1 << 18)  # of its own for each version, whose zeros lie at different places
        self.function = library.addresses()["product"]
        self.addresses = tuple(a.ctypes.data for a in (self.x, self.panels, self.bias, self.taps, self.padded, self.out))
        self.step = library_step(self)


@njit
def expand(function, size, units, vectors, block, x, panels, bias, to, row, plane, first, count):
    """Some rows of the expanded map, for some blocks of channels."""
    source = Map(x + first * size * BYTES, size * BYTES, size * size * BYTES)
    panel = Panel(panels + block * (units * UNIT * BYTES), bias + block * BYTES, units)
    shape, epilogue = Shape(2 * vectors, count, size), Epilogue(0, Activation(SWISH, *NO_LIMITS))
    product.product(function, shape, source, panel, Map(to, row, plane), Ahead(x, x), epilogue)


@njit
def expand_all(function, size, pad, units, blocks, x, panels, bias, padded):
    row = (size + 2 * pad) * BYTES
    plane, groups = row * (size + 2 * pad), ceil_div(blocks, VECTORS)
    for group in range(groups):
        b = group_start(group, groups, blocks)
        vectors, to = group_start(group + 1, groups, blocks) - b, padded + b * plane + pad * row + pad * BYTES
        expand(function, size, units, vectors, b, x, panels, bias, to, row, plane, 0, size)


def expanded(case):
    """Makes the whole expanded map in memory."""
    x, panels, bias, _, padded, _ = case.addresses
    expand_all(case.function, case.size, case.pad, units_of(case.inputs), case.blocks, x, panels, bias, padded)


# -- v0 ---------------------------------------------------------------------------------------------------------------


@njit
def _v0(padded, taps, bias, out, kernel):
    blocks, height, width, lanes = out.shape
    for b in range(blocks):
        for lane in range(lanes):
            for y in range(height):
                for x in range(width):
                    total = bias[b * lanes + lane]
                    for i in range(kernel):
                        for j in range(kernel):
                            total += padded[b, y + i, x + j, lane] * taps[b, i * kernel + j, lane]
                    out[b, y, x, lane] = total / (np.float32(1) + np.float32(math.exp(total * np.float32(math.log(2)))))


def v0_loops(case):
    expanded(case)
    _v0(case.padded, case.taps, case.bias, case.out, case.kernel)


# -- v1: a register of channels at a time -------------------------------------------------------------------------------


@njit
def _v1(size, kernel, blocks, taps, bias, padded, out):
    row = (size + kernel - 1) * BYTES
    for b in range(blocks):
        for y in range(size):
            for x in range(size):
                total = load(bias + b * BYTES)
                for i in range(kernel):
                    for j in range(kernel):
                        value = load(padded + (b * (size + kernel - 1) + y + i) * row + (x + j) * BYTES)
                        total = fma(value, load(taps + ((b * kernel + i) * kernel + j) * BYTES), total)
                store(out + ((b * size + y) * size + x) * BYTES, activate(SWISH, total))


def v1_registers(case):
    _, _, bias, taps, padded, out = case.addresses
    expanded(case)
    _v1(case.size, case.kernel, case.blocks, taps, bias, padded, out)


# -- v2: a tile of 8 neighbouring outputs -------------------------------------------------------------------------------


def row_tile(kernel):
    @staged(void, *[int64] * 9)
    def tile(code, rows, count, size, sources, moved, taps, bias, out, out_row):
        for t in code.switch(size, range(1, 9)):
            w = [code.load(taps, i * BYTES) for i in range(kernel * kernel)]
            start = code.load(bias)
            with code.loop(rows) as y:
                lines = [code.load_int(sources + y * 8, 8 * i) + moved for i in range(kernel)]
                with code.loop(count) as number:
                    sums = [start] * t
                    for i in range(kernel):
                        for x in range(t + kernel - 1):  # each input is loaded once for a row of taps
                            value = code.load(lines[i] + number * (t * BYTES), x * BYTES)
                            for column in range(max(0, x - kernel + 1), min(t, x + 1)):
                                sums[column] = code.fma(value, w[i * kernel + x - column], sums[column])
                    for column in range(t):
                        code.store(out + y * out_row + number * (t * BYTES), swish(code, sums[column]), column * BYTES)

    return tile


def rows_with(kernel):
    tile = row_tile(kernel)

    @njit
    def convolve_rows(rows, size, sources, moved, taps, bias, out):
        for width, count, first in equal_tiles(size, 8):
            if count > 0:
                skip = first * BYTES
                tile(rows, count, width, sources, moved + skip, taps, bias, out + skip, size * BYTES)

    return convolve_rows


def v2_with(kernel):
    convolve_rows = rows_with(kernel)

    @njit
    def run(size, blocks, taps, bias, padded, out, sources):
        row = (size + kernel - 1) * BYTES
        for b in range(blocks):
            for y in range(size):
                for i in range(kernel):
                    store_int(sources + 8 * i, padded + (b * (size + kernel - 1) + y + i) * row)
                to = out + (b * size + y) * size * BYTES
                convolve_rows(1, size, sources, 0, taps + b * kernel * kernel * BYTES, bias + b * BYTES, to)

    return run


V2 = {kernel: v2_with(kernel) for kernel in (3, 5)}


def v2_tiles(case):
    _, _, bias, taps, padded, out = case.addresses
    expanded(case)
    V2[case.kernel](case.size, case.blocks, taps, bias, padded, out, case.scratch[2].ctypes.data)


# -- v3: expanded rows never go to memory, v4: all rows of a ring in one call ---------------------------------------------


def ring_with(kernel):
    convolve_rows = rows_with(kernel)

    @njit
    def run(function, size, units, blocks, chunk, x, panels, bias, taps, out, sources):
        pad, groups, slots = kernel // 2, ceil_div(blocks, VECTORS), chunk + kernel - 1
        row = (size + 2 * pad) * BYTES
        ring, plane = sources + ceil_div(slots, 8) * 64, (slots + 1) * row  # behind the last slot, a row of zeros
        for group in range(groups):
            b0 = group_start(group, groups, blocks)
            vectors, made = group_start(group + 1, groups, blocks) - b0, 0
            for y in range(0, size, chunk):
                count = min(chunk, size - y)
                while made < min(size, y + count + pad):
                    slot = made % slots
                    rows = min(min(size, y + count + pad) - made, slots - slot)
                    to = ring + slot * row + pad * BYTES
                    expand(function, size, units, vectors, b0, x, panels, bias, to, row, plane, made, rows)
                    made += rows
                for i in range(count + kernel - 1):
                    source = y - pad + i
                    store_int(sources + 8 * i, ring + (source % slots if 0 <= source < size else slots) * row)
                for v in range(vectors):
                    b, to = b0 + v, out + ((b0 + v) * size + y) * size * BYTES
                    convolve_rows(count, size, sources, v * plane, taps + b * kernel * kernel * BYTES, bias + b * BYTES, to)

    return run


RING = {kernel: ring_with(kernel) for kernel in (3, 5)}


def run_ring(case, chunk, scratch):
    x, panels, bias, taps, _, out = case.addresses
    given = case.function, case.size, units_of(case.inputs), case.blocks, chunk
    RING[case.kernel](*given, x, panels, bias, taps, out, scratch.ctypes.data)


def v3_never_in_memory(case):
    run_ring(case, 1, case.scratch[3])


def v4_all_rows_in_one_call(case):
    row = VECTORS * (case.size + 2 * case.pad) * BYTES
    run_ring(case, min(case.size, depthwise.RING_BYTES // row - case.kernel), case.scratch[4])


# -- v5: the next weights, and the place of the next row of results, fetched ahead: the library's own, which also adds up --


def library_step(case):
    """The step's row in the table."""
    size, kernel = case.size, case.kernel
    x, panels, bias, taps, _, out = (At("arena", address) for address in case.addresses)
    window = depthwise.Window(kernel, 1, case.pad, case.pad, size, size, size, size)
    chunk, ring = depthwise.plan_ring(window, VECTORS, size)
    plane = size * size * BYTES
    step = depthwise.Depthwise(
        cut=cut(case.blocks, 1, bands_first=False), producer=depthwise.EXPAND, source=Map(x, size * BYTES, plane),
        inputs=case.inputs, expand=Panel(panels, bias, units_of(case.inputs)), stem_layer=None, channels=case.channels,
        window=window,
        taps=depthwise.Taps(taps, bias, kernel, 1), ring=ring, chunk=chunk, squeeze=None, target=Map(out, size * BYTES, plane),
        activation=Activation(SWISH, *NO_LIMITS), rows=depthwise.rows_name(kernel, 1),
    )  # fmt: skip
    return step.cut.tasks, step.words({"arena": 0}, library.addresses(), 1)


@njit
def _v5(function, row, tasks, scratch):
    for task in range(tasks):
        call_kernel(function, row, task, scratch)


def v5_fetched_ahead(case):
    tasks, row = case.step
    _v5(row[0], row.ctypes.data, tasks, case.scratch[5].ctypes.data)


VERSIONS = (v0_loops, v1_registers, v2_tiles, v3_never_in_memory, v4_all_rows_in_one_call, v5_fetched_ahead)
CASES = {
    "56 x 56, 24 to 144, 3 x 3": Case(56, 24, 144, 3),
    "28 x 28, 40 to 240, 5 x 5": Case(28, 40, 240, 5),
    "7 x 7, 192 to 1152, 5 x 5": Case(7, 192, 1152, 5),
}
NAMES = (
    "loops", "a register of channels", "a tile of 8 neighbouring outputs", "expanded rows never go to memory",
    "all rows of a ring in one call", "the next weights and rows fetched ahead",
)  # fmt: skip


def results(case) -> list[np.ndarray]:
    """Each version's, (blocks, H, W, WIDTH)."""
    answers = []
    for version in VERSIONS:
        case.out[...] = np.nan
        version(case)
        answers.append(case.out.copy())
    return answers
