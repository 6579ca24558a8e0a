"""The matrix product, version by version: result = swish(A @ B + bias), (M, K) @ (K, N) -> (M, N).

Swish takes and gives numbers times -log2(e), as everywhere in the kernels (activations.py): swish(t) = t / (1 + 2**t).
The weights are packed once, and so is not timed: `Case` holds what every version reads. Several copies of the weights, used by
turns, keep them out of the caches where a network would not find them there either.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from effnet_np.kernels import library, product
from effnet_np.kernels.activations import activate, swish
from effnet_np.kernels.product import Epilogue, Panel, Shape
from effnet_np.kernels.record import Activation, Map
from effnet_np.kernels.simd import int64, load, staged, store, void
from effnet_np.kernels.table import SWISH
from effnet_np.kernels.target import BYTES, HALVES, UNIT, VECTORS, WIDTH
from effnet_np.kernels.tiling import Ahead, blocks_of, ceil_div, equal_tiles, group_edges, group_start, units_of

NO_LIMITS = np.float32(0), np.float32(0)


def aligned(*shape) -> np.ndarray:
    memory = np.zeros(math.prod(shape) + 16, np.float32)
    return memory[-memory.ctypes.data % 64 // 4 :][: math.prod(shape)].reshape(shape)


class Case:
    """One shape: A as rows and as planes, B as it is and in panels (`copies` of them), and room for results."""

    def __init__(self, m, k, n, copies):
        random = np.random.default_rng(0)
        self.m, self.k, self.n, self.blocks = m, k, n, blocks_of(n)
        self.flops = 2 * m * k * n
        self.a, self.b = aligned(m, k), random.standard_normal((k, n)).astype(np.float32) / np.float32(math.sqrt(k))
        self.a[...] = random.standard_normal((m, k))
        self.planes = aligned(blocks_of(k), m, WIDTH)
        for channel in range(k):
            self.planes[channel // WIDTH, :, channel % WIDTH] = self.a[:, channel]
        self.bias = aligned(self.blocks * WIDTH)
        self.bias[:n] = random.standard_normal(n)
        packed = product.pack(self.b.T, units_of(k) * UNIT, group_edges(self.blocks))
        self.panels = aligned(copies, packed.size)
        self.panels[...] = packed
        self.rows, self.out = aligned(m, self.blocks * WIDTH), aligned(self.blocks, m, WIDTH)
        edges = group_edges(self.blocks)
        self.last_is_half = HALVES and 0 < n % WIDTH <= WIDTH // 2 and edges[-1] - edges[-2] > 1
        # Addresses: of what a version on rows reads and writes, of the same in planes, and of each copy of the weights.
        self.in_rows = tuple(array.ctypes.data for array in (self.a, self.bias, self.rows))
        self.in_planes = tuple(array.ctypes.data for array in (self.planes, self.bias, self.out))
        self.copies = [panels.ctypes.data for panels in self.panels]
        self.units, self.function, self.turn = units_of(k), library.addresses()["product"], 0

    def weights(self) -> tuple[int, int]:
        """(this turn's panels, the next turn's)."""
        here, self.turn = self.copies[self.turn], (self.turn + 1) % len(self.copies)
        return here, self.copies[self.turn]

    def result(self, in_planes: bool) -> np.ndarray:
        """(M, N)"""
        return (self.out.transpose(1, 0, 2).reshape(self.m, -1) if in_planes else self.rows)[:, : self.n]


# -- v0 ---------------------------------------------------------------------------------------------------------------


@njit
def _v0(a, b, bias, c):
    for m in range(a.shape[0]):
        for n in range(b.shape[1]):
            total = bias[n]
            for k in range(a.shape[1]):
                total += a[m, k] * b[k, n]
            c[m, n] = total / (np.float32(1) + np.float32(math.exp(total * np.float32(math.log(2)))))


def v0_loops(case):
    _v0(case.a, case.b, case.bias, case.rows)


# -- v1: a tile of 8 positions times 3 registers stays in registers over all of K --------------------------------------


def sums_of(code, positions, lanes, bias, depth, panel, read):
    """sums[position][register] = bias + the product; `read(k, i)`: position i's number of channel k, in every lane."""
    vectors = len(lanes)
    sums = [[code.variable(code.load(bias, v * BYTES, lanes[v])) for v in range(vectors)] for _ in range(positions)]
    with code.loop(depth) as k:
        weights = [code.load(panel + k * (vectors * BYTES), v * BYTES, lanes[v]) for v in range(vectors)]
        for i in range(positions):
            x = read(k, i)
            for v in range(vectors):
                factor = x if lanes[v] == WIDTH else x.low_half()
                sums[i][v].set(code.fma(factor, weights[v], sums[i][v].get()))
    return sums


def rows_tile(heights):
    @staged(void, *[int64] * 9)
    def tile(code, vectors, positions, a, a_row, depth, panel, bias, c, c_row):
        def read(k, i):
            return code.load_splat(a + i * a_row + k * 4)

        for n in code.switch(vectors, range(1, VECTORS + 1)):
            for height in code.switch(positions, heights):
                sums = sums_of(
                    code, height, [WIDTH] * n, bias, depth, panel, lambda k, i: code.load_splat(a + i * a_row + k * 4)
                )
                for i in range(height):
                    for v in range(n):
                        code.store(c + i * c_row, sums[i][v].get(), v * BYTES)

    return tile


_tile_v1, _tile_v2 = rows_tile((1, 8)), rows_tile(range(1, 9))


@njit
def swish_pass(at, vectors):
    for i in range(vectors):
        store(at + i * BYTES, activate(SWISH, load(at + i * BYTES)))


@njit
def _v1(m, k, blocks, a, panels, bias, c):
    groups, row = ceil_div(blocks, VECTORS), blocks * BYTES
    for group in range(groups):
        b0 = group_start(group, groups, blocks)
        vectors = group_start(group + 1, groups, blocks) - b0
        panel = panels + b0 * (ceil_div(k, UNIT) * UNIT * BYTES)
        for i in range(0, m - 7, 8):
            _tile_v1(vectors, 8, a + i * k * 4, k * 4, k, panel, bias + b0 * BYTES, c + i * row + b0 * BYTES, row)
        for i in range(m - m % 8, m):
            _tile_v1(vectors, 1, a + i * k * 4, k * 4, k, panel, bias + b0 * BYTES, c + i * row + b0 * BYTES, row)
    swish_pass(c, m * blocks)


def v1_tile_in_registers(case):
    a, bias, c = case.in_rows
    _v1(case.m, case.k, case.blocks, a, case.weights()[0], bias, c)


# -- v2: tiles as equal as can be ---------------------------------------------------------------------------------------


@njit
def _v2(m, k, blocks, a, panels, bias, c):
    groups, row = ceil_div(blocks, VECTORS), blocks * BYTES
    for group in range(groups):
        b0 = group_start(group, groups, blocks)
        vectors = group_start(group + 1, groups, blocks) - b0
        panel = panels + b0 * (ceil_div(k, UNIT) * UNIT * BYTES)
        for size, count, first in equal_tiles(m, 8):
            for i in range(first, first + size * count, size):
                _tile_v2(vectors, size, a + i * k * 4, k * 4, k, panel, bias + b0 * BYTES, c + i * row + b0 * BYTES, row)
    swish_pass(c, m * blocks)


def v2_equal_tiles(case):
    a, bias, c = case.in_rows
    _v2(case.m, case.k, case.blocks, a, case.weights()[0], bias, c)


# -- v3: channels in blocks, v4: half registers, v5: the epilogue in registers -------------------------------------------


def planes_tile(halves, finish):
    """`halves`: the widths of a tile in half registers. `finish(code, x)`: what happens to a sum before it is stored."""

    @staged(void, *[int64] * 8)
    def tile(code, width, positions, a, plane, units, panel, bias, c):
        for n in code.switch(width, halves):
            lanes = [WIDTH] * (n // 2) + [WIDTH // 2] * (n % 2)
            for height in code.switch(positions, range(1, 9)):
                sums = [[code.variable(code.load(bias, v * BYTES, w)) for v, w in enumerate(lanes)] for _ in range(height)]
                with code.loop(units) as unit:
                    block = a + unit * plane if WIDTH == UNIT else a + (unit >> 1) * plane + (unit & 1) * (4 * UNIT)
                    for k in range(UNIT):
                        line = panel + unit * (UNIT * len(lanes) * BYTES)
                        weights = [code.load(line, (k * len(lanes) + v) * BYTES, w) for v, w in enumerate(lanes)]
                        for i in range(height):
                            x = code.load_splat(block, i * BYTES + 4 * k)
                            for v, w in enumerate(lanes):
                                factor = x if w == WIDTH else x.low_half()
                                sums[i][v].set(code.fma(factor, weights[v], sums[i][v].get()))
                for i in range(height):
                    for v, w in enumerate(lanes):
                        y = finish(code, sums[i][v].get())
                        code.store(c + v * plane, y if w == WIDTH else y.widened(), i * BYTES)

    return tile


def planes_driver(tile, half, pass_follows):
    @njit
    def run(m, units, blocks, last_is_half, a, panels, bias, c):
        groups, plane = ceil_div(blocks, VECTORS), m * BYTES
        for group in range(groups):
            b0 = group_start(group, groups, blocks)
            vectors = group_start(group + 1, groups, blocks) - b0
            width = 2 * vectors - (half and last_is_half and group == groups - 1)
            for size, count, first in equal_tiles(m, 8):
                for i in range(first, first + size * count, size):
                    panel, to = panels + b0 * (units * UNIT * BYTES), c + b0 * plane + i * BYTES
                    tile(width, size, a + i * BYTES, plane, units, panel, bias + b0 * BYTES, to)
        if pass_follows:
            swish_pass(c, m * blocks)

    def version(case):
        a, bias, c = case.in_planes
        run(case.m, case.units, case.blocks, case.last_is_half, a, case.weights()[0], bias, c)

    return version


WHOLE, HALF = range(2, 2 * VECTORS + 1, 2), [*range(2, 2 * VECTORS + 1, 2)] + ([3, 5] if HALVES else [])
v3_blocks_of_channels = planes_driver(planes_tile(WHOLE, lambda code, x: x), False, True)
v4_half_registers = planes_driver(planes_tile(HALF, lambda code, x: x), HALVES, True)
v5_swish_in_registers = planes_driver(planes_tile(HALF, swish), HALVES, False)

# -- v6: the next task's weights are fetched meanwhile: the library's own ------------------------------------------------


@njit
def _v6(function, m, units, blocks, last_is_half, a, panels, following, bias, c):
    groups, plane, size = ceil_div(blocks, VECTORS), m * BYTES, units * UNIT * BYTES
    for group in range(groups):
        b0, b1 = group_start(group, groups, blocks), group_start(group + 1, groups, blocks)
        shape = Shape(2 * (b1 - b0) - (last_is_half and group == groups - 1), 1, m)
        panel = Panel(panels + b0 * size, bias + b0 * BYTES, units)
        ahead = Ahead(panels + b1 * size, panels + group_start(group + 2, groups, blocks) * size)
        if group == groups - 1:
            ahead = Ahead(following, following + group_start(1, groups, blocks) * size)
        epilogue = Epilogue(0, Activation(SWISH, *NO_LIMITS))
        product.product(function, shape, Map(a, 0, plane), panel, Map(c + b0 * plane, 0, plane), ahead, epilogue)


def v6_weights_fetched_ahead(case):
    a, bias, c = case.in_planes
    _v6(case.function, case.m, case.units, case.blocks, case.last_is_half, a, *case.weights(), bias, c)


# -- what a core can do ------------------------------------------------------------------------------------------------


@staged(void, int64, int64)
def _multiply_adds(code, count, at):
    sums = [code.variable(code.load(at, i * BYTES)) for i in range(24)]
    x = code.load(at)
    with code.loop(count):
        for total in sums:
            total.set(code.fma(x, x, total.get()))
    for i in range(24):
        code.store(at, sums[i].get(), i * BYTES)


@njit
def _peak(count, at):
    _multiply_adds(count, at)


PEAK_FLOPS = 2 * 24 * 10000 * WIDTH


def multiply_adds():
    """PEAK_FLOPS of them in registers, with nothing to load."""
    _peak(10000, ZEROS.ctypes.data)


ZEROS = aligned(24, WIDTH)
CASES = {
    "28 x 28, 40 to 240": Case(784, 40, 240, 1),
    "7 x 7, 1152 to 320": Case(49, 1152, 320, 12),
    "56 x 56, 144 to 24": Case(3136, 144, 24, 1),
}
VERSIONS = (
    v0_loops, v1_tile_in_registers, v2_equal_tiles, v3_blocks_of_channels, v4_half_registers, v5_swish_in_registers,
    v6_weights_fetched_ahead,
)  # fmt: skip
NAMES = (
    "loops", "a tile of sums in registers", "tiles as equal as can be", "channels in blocks", "half registers",
    "swish in registers", "the next weights fetched ahead",
)  # fmt: skip


def results(case) -> list[np.ndarray]:
    """Each version's, (M, N)."""
    answers = []
    for number, version in enumerate(VERSIONS):
        case.rows[...] = case.out[...] = np.nan
        version(case)
        answers.append(case.result(in_planes=number >= 3).copy())
    return answers
