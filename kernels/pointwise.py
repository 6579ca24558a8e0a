"""Pointwise."""

from __future__ import annotations

import numpy as np
from numba import njit

from effnet_np.kernels import table
from effnet_np.kernels.activations import FUSED, activate, fused
from effnet_np.kernels.native import caller, native
from effnet_np.kernels.simd import float32, get, get_float, int64, load, load_splat, staged, store, void
from effnet_np.kernels.table import CLAMP, SWISH
from effnet_np.kernels.target import BYTES, HALVES, REGISTERS, UNIT, WIDTH

# The widths of a tile, in half registers, and how many rows of sums fit in the registers beside the weights.
ROWS = {6: 8, 5: 8, 4: 12, 3: 12, 2: 12} if REGISTERS == 32 else {6: 4, 4: 6, 2: 6}
ROWS_WIDE, ROWS_NARROW = ROWS[6], ROWS[4]
RESIDUAL = 99
HALVES = WIDTH == 16  # half registers are worth it where a register is so wide
ROWS_WIDE, ROWS_NARROW = ROWS[6], ROWS[4]
INFINITY = np.float32(np.inf)


def _tile(halves):
    vectors = (halves + 1) // 2
    lanes = [WIDTH] * (halves // 2) + [WIDTH // 2] * (halves % 2)

    @staged(int64, *[int64] * 17, float32, float32)
    def tile(code, rows, count, size, a, a_row, a_plane, units, b, bias, c, c_row, c_plane, residual, residual_plane, act, ahead, end, low, high):
        coming = code.variable(ahead)
        for r in code.switch(size, range(1, ROWS[halves] + 1)):
            with code.loop(rows) as y, code.loop(count) as number:
                moved = number * (r * BYTES)
                first = [code.load(bias, v * BYTES, lanes[v]) for v in range(vectors)]
                sums = [[code.variable(first[v]) for v in range(vectors)] for _ in range(r)]
                here = code.variable(b)
                source = a + moved + y * a_row
                with code.loop(units) as unit:
                    if WIDTH > UNIT:
                        pa = source + (unit >> 1) * a_plane + (unit & 1) * (4 * UNIT)
                    else:
                        pa = source + unit * a_plane
                    if WIDTH > UNIT:
                        following = pa + r * BYTES + (unit & 1) * (r // 2 * BYTES - 4 * UNIT)
                        for i in range((r + 1) // 2):
                            code.prefetch(following, i * BYTES, level=1)
                    pb = here.get()
                    next_line = coming.get()
                    coming.set(code.smaller(next_line + UNIT // 2 * 64, end))
                    for k in range(UNIT):
                        if k % 2:
                            code.prefetch(next_line, k // 2 * 64)
                        weights = [code.load(pb, (k * vectors + v) * BYTES, lanes[v]) for v in range(vectors)]
                        for i in range(r):
                            x = code.load_splat(pa, i * BYTES + 4 * k)
                            for v in range(vectors):
                                factor = x if lanes[v] == WIDTH else x.low_half()
                                sums[i][v].set(code.fma(factor, weights[v], sums[i][v].get()))
                    here.set(pb + UNIT * vectors * BYTES)
                target = c + moved + y * c_row
                planes = [target + v * c_plane for v in range(vectors)]
                others = [residual + moved + v * residual_plane for v in range(vectors)]
                limits = [[s, s.low_half()] for s in (code.splat(low), code.splat(high))]
                for mode in code.switch(act, (*FUSED, RESIDUAL)):
                    for i in range(r):
                        for v in range(vectors):
                            x = sums[i][v].get()
                            half = x.lanes < WIDTH
                            if mode == RESIDUAL:
                                x = x + code.load(others[v], i * BYTES, lanes[v])
                            else:
                                x = fused(code, mode, x, limits[0][half], limits[1][half])
                            code.store(planes[v], x.widened() if half else x, i * BYTES)
        return coming.get()

    return tile


_tile6, _tile4, _tile2 = _tile(6), _tile(4), _tile(2)
_tile5, _tile3 = (_tile(5), _tile(3)) if HALVES else (None, None)


@native(17, 2)
def tiles(halves, rows, pixels, a, a_row, a_plane, units, b, bias, c, c_row, c_plane, residual, residual_plane, act, ahead, end, low, high):
    """`rows` times `pixels` rows of the product, `halves` half registers wide."""
    cap = ROWS_WIDE if halves > 4 else ROWS_NARROW
    n = (pixels + cap - 1) // cap
    size = pixels // n
    larger = pixels - size * n
    mode, lo, hi = act, low, high
    if act > SWISH and act != RESIDUAL:
        mode, lo, hi = CLAMP, -INFINITY, INFINITY
    at = 0
    for part in range(2):
        r, count = (size + 1, larger) if part == 0 else (size, n - larger)
        if count > 0:
            if halves == 6:
                ahead = _tile6(rows, count, r, a + at, a_row, a_plane, units, b, bias, c + at, c_row, c_plane, residual + at, residual_plane, mode, ahead, end, lo, hi)
            elif halves == 4:
                ahead = _tile4(rows, count, r, a + at, a_row, a_plane, units, b, bias, c + at, c_row, c_plane, residual + at, residual_plane, mode, ahead, end, lo, hi)
            elif halves == 2:
                ahead = _tile2(rows, count, r, a + at, a_row, a_plane, units, b, bias, c + at, c_row, c_plane, residual + at, residual_plane, mode, ahead, end, lo, hi)
            if HALVES:
                if halves == 5:
                    ahead = _tile5(rows, count, r, a + at, a_row, a_plane, units, b, bias, c + at, c_row, c_plane, residual + at, residual_plane, mode, ahead, end, lo, hi)
                elif halves == 3:
                    ahead = _tile3(rows, count, r, a + at, a_row, a_plane, units, b, bias, c + at, c_row, c_plane, residual + at, residual_plane, mode, ahead, end, lo, hi)
            at += r * count * BYTES
    if mode != act:
        for v in range((halves + 1) // 2):
            for y in range(rows):
                for i in range(pixels):
                    p = c + v * c_plane + y * c_row + i * BYTES
                    store(p, activate(act, load(p)))


call_tiles = caller(17, 2)


@njit(nogil=True)
def group_start(group, groups, blocks):
    """The first block of a group: groups are as equal as can be, the larger ones first."""
    return (group * blocks + groups - 1) // groups


@njit(nogil=True)
def next_weights(row, now, group, units):
    """Where the weights of the group that this thread will probably do next begin and end; the same address twice if none."""
    groups, blocks, weight = get(row, table.GROUPS), get(row, table.BLOCKS), get(row, table.WEIGHT)
    if group >= groups or group == now:
        return weight, weight
    start = group_start(group, groups, blocks)
    return weight + start * (units * UNIT * BYTES), weight + group_start(group + 1, groups, blocks) * (units * UNIT * BYTES)


@native(3)
def pointwise(row, task, scratch):
    """A task: some pixels, some blocks of output channels."""
    groups, blocks, bands = get(row, table.GROUPS), get(row, table.BLOCKS), get(row, table.BANDS)
    group, band = task // bands, task % bands
    b0 = group_start(group, groups, blocks)
    vectors = group_start(group + 1, groups, blocks) - b0
    halves = 2 * vectors
    if group == groups - 1:
        halves -= get(row, table.HALF)
    pixels = get(row, table.PIXELS)
    p0 = band * pixels // bands
    p1 = (band + 1) * pixels // bands
    units = get(row, table.UNITS)
    weight = get(row, table.WEIGHT) + b0 * (units * UNIT * BYTES)
    ahead, end = next_weights(row, group, (task + get(row, table.THREADS)) // bands, units)
    gates = get(row, table.GATES)
    if gates != 0:
        p = scratch
        for k in range(units * UNIT):
            g = load_splat(gates + 4 * k)
            for v in range(vectors):
                store(p, load(weight) * g)
                p += BYTES
                weight += BYTES
        weight = scratch
    plane = get(row, table.TARGET_PLANE)
    residual = get(row, table.RESIDUAL)
    act = get(row, table.ACTIVATION)
    if residual != 0:
        act = RESIDUAL
        residual += b0 * plane + p0 * BYTES
    call_tiles(
        get(row, table.TILES), halves, 1, p1 - p0, get(row, table.SOURCE) + p0 * BYTES, 0, get(row, table.SOURCE_PLANE), units, weight,
        get(row, table.BIAS) + b0 * BYTES, get(row, table.TARGET) + b0 * plane + p0 * BYTES, 0, plane, residual, plane,
        act, ahead, end, get_float(row, table.LOW), get_float(row, table.HIGH),
    )  # fmt: skip
