"""1x1 convolutions: the matrix product, which is 88% of B0's multiplications and 95% of B7's.

Plain meaning, for the positions of a map as rows (M), the input channels (K) and the output channels (N):

    C = activation(A @ B + bias)            # (M, K) @ (K, N) -> (M, N), then the residual or the activation

How it became fast (one core of a Zen 4 EPYC, 3.7 GHz; a core multiplies and adds 16 numbers a cycle, 118 GFLOP/s):

1. *A tile of sums stays in registers* over all of K. A tile of 8 positions times 3 registers of 16 channels is 24 sums;
   each step of k loads 3 registers of weights and 8 numbers, and does 24 multiply-adds with them. Those are independent,
   so their latency of 4 cycles does not show. Written as "staged" Python (see simd.py), since no compiler finds this by
   itself. 98% of the core's peak, where NumPy's OpenBLAS has 90%.
2. *Tiles as equal as can be.* 14 positions are 7 + 7, not 8 + 6, and 49 are seven times seven; every height from 1 to 8
   (12 for narrow tiles) is compiled. With one height and a slow path for the rest, 7x7 maps lose a third.
3. *Channels in blocks.* A map is stored as planes of (H, W, 16), one for each 16 channels. The numbers that a tile needs
   next to each other lie next to each other, 64 bytes a position, at distances known when the tile is compiled, whatever
   the number of channels. Rows of all channels (NHWC) would need a pointer for each of the 8 positions.
4. *Half registers.* 24, 40 and 56 channels fill their last register half. A tile whose last register is half as wide
   takes half the time there: B0's projections got 4% faster.
5. *The epilogue in registers.* Bias, swish or the residual are applied before anything is stored, for 7 cycles a register
   of sums (activations.py), which overlap with the next tile's multiplications.
6. *The next task's weights are fetched meanwhile.* B0 has 21 MB of weights and a core's L2 holds 1 MB, so each panel comes
   from further away, in a burst that no hardware prefetcher knows of in time. Each pair of k steps asks for one line of the
   weights that this thread will probably need next: B0's 7x7 blocks got 8% faster. The next tile's inputs are asked for
   in the same way: 0.5% of B4.

What did not help: asking for one's own weights 1, 3 or 6 KB ahead (no difference: the burst is more than the memory can
give in that time, so it has to begin earlier).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from effnet_np.kernels import table
from effnet_np.kernels.activations import FUSED, activate, fused
from effnet_np.kernels.native import caller, native
from effnet_np.kernels.simd import float32, get, get_float, int64, load, load_splat, staged, store
from effnet_np.kernels.table import CLAMP, SWISH
from effnet_np.kernels.target import BYTES, HALVES, REGISTERS, UNIT, WIDTH

# The widths of a tile, in half registers, and how many rows of sums fit in the registers beside the weights.
ROWS = {6: 8, 5: 8, 4: 12, 3: 12, 2: 12} if REGISTERS == 32 else {6: 4, 4: 6, 2: 6}
ROWS_WIDE, ROWS_NARROW = ROWS[6], ROWS[4]
RESIDUAL = 99  # instead of an activation: add what is at `residual`
ROWS_WIDE, ROWS_NARROW = ROWS[6], ROWS[4]
INFINITY = np.float32(np.inf)


def _tile(halves):
    """The function for tiles of that many half registers: (rows * count) tiles of `size` positions each.

    a: where the first position's first input channel lies, a_row the bytes to the next row of positions, a_plane to the
    next block of channels. b: the packed weights. c, c_row, c_plane: the same as for a, of the result. ahead, end: what to
    prefetch meanwhile; gives where that has got to.
    """
    vectors = (halves + 1) // 2
    lanes = [WIDTH] * (halves // 2) + [WIDTH // 2] * (halves % 2)
    arguments = [
        "rows",
        "count",
        "size",
        "a",
        "a_row",
        "a_plane",
        "units",
        "b",
        "bias",
        "c",
        "c_row",
        "c_plane",
        "residual",
        "residual_plane",
        "act",
        "ahead",
        "end",
    ]

    @staged(int64, *[int64] * len(arguments), float32, float32)
    def tile(code, *given):
        *whole_numbers, low, high = given
        at = dict(zip(arguments, whole_numbers, strict=True))
        coming = code.variable(at["ahead"])
        limits = [[limit, limit.low_half()] for limit in (code.splat(low), code.splat(high))]
        for positions in code.switch(at["size"], range(1, ROWS[halves] + 1)):
            with code.loop(at["rows"]) as row, code.loop(at["count"]) as number:
                moved = number * (positions * BYTES)
                source, target = at["a"] + moved + row * at["a_row"], at["c"] + moved + row * at["c_row"]
                sums = _sums(code, at, positions, lanes, source, coming)
                for mode in code.switch(at["act"], (*FUSED, RESIDUAL)):
                    for v in range(vectors):
                        half = lanes[v] < WIDTH
                        plane, other = target + v * at["c_plane"], at["residual"] + moved + v * at["residual_plane"]
                        for i in range(positions):
                            x = sums[i][v].get()
                            if mode == RESIDUAL:
                                x = x + code.load(other, i * BYTES, lanes[v])
                            else:
                                x = fused(code, mode, x, limits[0][half], limits[1][half])
                            code.store(plane, x.widened() if half else x, i * BYTES)
        return coming.get()

    return tile


def _sums(code, at, positions, lanes, source, coming):
    """sums[position][register] = bias + the product over all input channels: the inner loop of the whole library."""
    vectors = len(lanes)
    biases = [code.load(at["bias"], v * BYTES, lanes[v]) for v in range(vectors)]
    sums = [[code.variable(bias) for bias in biases] for _ in range(positions)]
    here = code.variable(at["b"])
    with code.loop(at["units"]) as unit:  # of UNIT input channels
        if WIDTH > UNIT:
            a = source + (unit >> 1) * at["a_plane"] + (unit & 1) * (4 * UNIT)
            # The next tile's inputs: the first half of their lines in the first half of a block, the rest in the second.
            following = a + positions * BYTES + (unit & 1) * (positions // 2 * BYTES - 4 * UNIT)
            for i in range((positions + 1) // 2):
                code.prefetch(following, i * BYTES, level=1)
        else:
            a = source + unit * at["a_plane"]
        b, line = here.get(), coming.get()
        coming.set(code.smaller(line + UNIT // 2 * 64, at["end"]))
        for k in range(UNIT):
            if k % 2:
                code.prefetch(line, k // 2 * 64)
            weights = [code.load(b, (k * vectors + v) * BYTES, lanes[v]) for v in range(vectors)]
            for i in range(positions):
                x = code.load_splat(a, i * BYTES + 4 * k)
                for v in range(vectors):
                    factor = x if lanes[v] == WIDTH else x.low_half()
                    sums[i][v].set(code.fma(factor, weights[v], sums[i][v].get()))
        here.set(b + UNIT * vectors * BYTES)
    return sums


_tile6, _tile4, _tile2 = _tile(6), _tile(4), _tile(2)
_tile5, _tile3 = (_tile(5), _tile(3)) if HALVES else (None, None)


@native(17, 2)
def tiles(
    halves, rows, pixels, a, a_row, a_plane, units, b, bias, c, c_row, c_plane, residual, res_plane, act, ahead, end, low, high
):
    """`rows` times `pixels` positions, `halves` half registers of output channels."""
    most = ROWS_WIDE if halves > 4 else ROWS_NARROW
    n = (pixels + most - 1) // most
    size = pixels // n
    larger = pixels - size * n  # so many tiles have one position more
    mode, lo, hi = act, low, high
    if act > SWISH and act != RESIDUAL:
        mode, lo, hi = CLAMP, -INFINITY, INFINITY  # the activation follows in a second pass
    m = 0
    for part in range(2):
        r, count = (size + 1, larger) if part == 0 else (size, n - larger)
        if count > 0:
            x, y, z = a + m, c + m, residual + m
            if halves == 6:
                ahead = _tile6(
                    rows, count, r, x, a_row, a_plane, units, b, bias, y, c_row, c_plane, z, res_plane, mode, ahead, end, lo, hi
                )
            elif halves == 4:
                ahead = _tile4(
                    rows, count, r, x, a_row, a_plane, units, b, bias, y, c_row, c_plane, z, res_plane, mode, ahead, end, lo, hi
                )
            elif halves == 2:
                ahead = _tile2(
                    rows, count, r, x, a_row, a_plane, units, b, bias, y, c_row, c_plane, z, res_plane, mode, ahead, end, lo, hi
                )
            if HALVES:
                if halves == 5:
                    ahead = _tile5(
                        rows,
                        count,
                        r,
                        x,
                        a_row,
                        a_plane,
                        units,
                        b,
                        bias,
                        y,
                        c_row,
                        c_plane,
                        z,
                        res_plane,
                        mode,
                        ahead,
                        end,
                        lo,
                        hi,
                    )
                elif halves == 3:
                    ahead = _tile3(
                        rows,
                        count,
                        r,
                        x,
                        a_row,
                        a_plane,
                        units,
                        b,
                        bias,
                        y,
                        c_row,
                        c_plane,
                        z,
                        res_plane,
                        mode,
                        ahead,
                        end,
                        lo,
                        hi,
                    )
            m += r * count * BYTES
    if mode != act:
        for v in range((halves + 1) // 2):
            for row in range(rows):
                for i in range(pixels):
                    p = c + v * c_plane + row * c_row + i * BYTES
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
    """Projection and classifier. A task: a band of positions, a group of output channels.

    Squeeze-excite gates, where the table has them, are multiplied into the weights (K x N numbers) and not into the
    activations (M x K), if that is less. The product of the two is stored in the thread's scratch.
    """
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
            for _ in range(vectors):
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
        get(row, table.TILES),
        halves,
        1,
        p1 - p0,
        get(row, table.SOURCE) + p0 * BYTES,
        0,
        get(row, table.SOURCE_PLANE),
        units,
        weight,
        get(row, table.BIAS) + b0 * BYTES,
        get(row, table.TARGET) + b0 * plane + p0 * BYTES,
        0,
        plane,
        residual,
        plane,
        act,
        ahead,
        end,
        get_float(row, table.LOW),
        get_float(row, table.HIGH),
    )
