"""Pointwise."""

from __future__ import annotations

import numpy as np
from numba import njit

from effnet_np.kernels import table
from effnet_np.kernels.activations import CLAMP, SWISH, activate, swish
from effnet_np.kernels.native import caller, native
from effnet_np.kernels.simd import BYTES, REGISTERS, WIDTH, float32, int64, load, load_splat, staged, store, void
from effnet_np.kernels.table import get, get_float

UNIT = min(8, WIDTH)
VECTORS = 3
ROWS = {1: 12, 2: 12, 3: 8} if REGISTERS == 32 else {1: 6, 2: 6, 3: 4}
RESIDUAL = 99
ROWS1, ROWS2, ROWS3 = ROWS[1], ROWS[2], ROWS[3]
INFINITY = np.float32(np.inf)


def _tile(vectors):
    @staged(int64, *[int64] * 17, float32, float32)
    def tile(code, rows, count, size, a, a_row, a_plane, units, b, bias, c, c_row, c_plane, residual, residual_plane, act, ahead, end, low, high):
        coming = code.variable(ahead)
        for r in code.switch(size, range(1, ROWS[vectors] + 1)):
            with code.loop(rows) as y, code.loop(count) as number:
                moved = number * (r * BYTES)
                first = [code.load(bias, v * BYTES) for v in range(vectors)]
                sums = [[code.variable(first[v]) for v in range(vectors)] for _ in range(r)]
                here = code.variable(b)
                source = a + moved + y * a_row
                with code.loop(units) as unit:
                    if WIDTH > UNIT:
                        pa = source + (unit >> 1) * a_plane + (unit & 1) * (4 * UNIT)
                    else:
                        pa = source + unit * a_plane
                    pb = here.get()
                    next_line = coming.get()
                    coming.set(code.smaller(next_line + UNIT // 2 * 64, end))
                    for k in range(UNIT):
                        if k % 2:
                            code.prefetch(next_line, k // 2 * 64)
                        weights = [code.load(pb, (k * vectors + v) * BYTES) for v in range(vectors)]
                        for i in range(r):
                            x = code.load_splat(pa, i * BYTES + 4 * k)
                            for v in range(vectors):
                                sums[i][v].set(code.fma(x, weights[v], sums[i][v].get()))
                    here.set(pb + UNIT * vectors * BYTES)
                target = c + moved + y * c_row
                planes = [target + v * c_plane for v in range(vectors)]
                lo, hi = code.splat(low), code.splat(high)
                for mode in code.switch(act, (CLAMP, SWISH, RESIDUAL)):
                    for i in range(r):
                        for v in range(vectors):
                            y_ = sums[i][v].get()
                            if mode == SWISH:
                                y_ = swish(code, y_)
                            elif mode == CLAMP:
                                y_ = code.minimum(code.maximum(y_, lo), hi)
                            else:
                                y_ = y_ + code.load(residual + moved + v * residual_plane, i * BYTES)
                            code.store(planes[v], y_, i * BYTES)
        return coming.get()

    return tile


_tile1, _tile2, _tile3 = _tile(1), _tile(2), _tile(3)


@native(17, 2)
def tiles(vectors, rows, pixels, a, a_row, a_plane, units, b, bias, c, c_row, c_plane, residual, residual_plane, act, ahead, end, low, high):
    """`rows` times `pixels` rows of the product, `vectors` registers wide."""
    cap = ROWS3 if vectors == 3 else ROWS2
    n = (pixels + cap - 1) // cap
    size = pixels // n
    larger = pixels - size * n
    mode, lo, hi = act, low, high
    if act != CLAMP and act != SWISH and act != RESIDUAL:
        mode, lo, hi = CLAMP, -INFINITY, INFINITY
    at = 0
    for part in range(2):
        r, count = (size + 1, larger) if part == 0 else (size, n - larger)
        if count > 0:
            if vectors == 3:
                ahead = _tile3(rows, count, r, a + at, a_row, a_plane, units, b, bias, c + at, c_row, c_plane, residual + at, residual_plane, mode, ahead, end, lo, hi)
            elif vectors == 2:
                ahead = _tile2(rows, count, r, a + at, a_row, a_plane, units, b, bias, c + at, c_row, c_plane, residual + at, residual_plane, mode, ahead, end, lo, hi)
            else:
                ahead = _tile1(rows, count, r, a + at, a_row, a_plane, units, b, bias, c + at, c_row, c_plane, residual + at, residual_plane, mode, ahead, end, lo, hi)
            at += r * count * BYTES
    if mode != act:
        for v in range(vectors):
            for y in range(rows):
                for i in range(pixels):
                    p = c + v * c_plane + y * c_row + i * BYTES
                    store(p, activate(act, load(p)))


call_tiles = caller(17, 2)


@njit(nogil=True)
def group_start(group, groups, blocks):
    return group * blocks // groups


@njit(nogil=True)
def next_weights(row, task, units):
    """Where the weights of the task that this thread will probably do next begin and end; the same address twice if none."""
    groups, blocks, weight = get(row, table.GROUPS), get(row, table.BLOCKS), get(row, table.WEIGHT)
    later = task + get(row, table.THREADS)
    group = later % groups
    if later >= get(row, table.TASKS) or group == task % groups:
        return weight, weight
    start = group_start(group, groups, blocks)
    return weight + start * (units * UNIT * BYTES), weight + group_start(group + 1, groups, blocks) * (units * UNIT * BYTES)


@native(3)
def pointwise(row, task, scratch):
    """A task: some pixels, some blocks of output channels."""
    groups, blocks, bands = get(row, table.GROUPS), get(row, table.BLOCKS), get(row, table.BANDS)
    group, band = task % groups, task // groups
    b0 = group_start(group, groups, blocks)
    vectors = group_start(group + 1, groups, blocks) - b0
    pixels = get(row, table.PIXELS)
    p0 = band * pixels // bands
    p1 = (band + 1) * pixels // bands
    units = get(row, table.UNITS)
    weight = get(row, table.WEIGHT) + b0 * (units * UNIT * BYTES)
    ahead, end = next_weights(row, task, units)
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
        get(row, table.TILES), vectors, 1, p1 - p0, get(row, table.SOURCE) + p0 * BYTES, 0, get(row, table.SOURCE_PLANE), units, weight,
        get(row, table.BIAS) + b0 * BYTES, get(row, table.TARGET) + b0 * plane + p0 * BYTES, 0, plane, residual, plane,
        act, ahead, end, get_float(row, table.LOW), get_float(row, table.HIGH),
    )  # fmt: skip
