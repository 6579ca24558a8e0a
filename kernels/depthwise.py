"""Depthwise."""

from __future__ import annotations

import numpy as np
from numba import njit

from effnet_np.kernels import table
from effnet_np.kernels.activations import CLAMP, SWISH, activate, swish
from effnet_np.kernels.pointwise import UNIT, group_start, tiles
from effnet_np.kernels.simd import (
    BYTES, REGISTERS, WIDTH, float32, int64, load, load_int, splat, staged, store, store_int, void,
)  # fmt: skip
from effnet_np.kernels.stem import stem_row
from effnet_np.kernels.table import get, get_float

COLUMNS = 8 if REGISTERS == 32 else 4
ZERO, INFINITY = np.float32(0), np.float32(np.inf)


def _finish(code, sums, target, total, act, low, high):
    lo, hi = code.splat(low), code.splat(high)
    for mode in code.switch(act, (CLAMP, SWISH)):
        done = [swish(code, y) if mode == SWISH else code.minimum(code.maximum(y, lo), hi) for y in sums]
        for column, y in enumerate(done):
            code.store(target, y, column * BYTES)
        while len(done) > 1:
            done = [done[i] + done[i + 1] if i + 1 < len(done) else done[i] for i in range(0, len(done), 2)]
        total.set(total.get() + done[0])


def _columns(kernel, stride):
    """`count` times `size` neighbouring outputs of one row, of one block of channels."""

    @staged(void, *[int64] * 8, float32, float32)
    def columns(code, count, size, sources, taps, shift, target, total_at, act, low, high):
        for t in code.switch(size, range(1, COLUMNS + 1)):
            rows = [code.load_int(sources, 8 * i) for i in range(kernel)]
            total = code.variable(code.load(total_at))
            bias = code.load(shift)
            held = [code.load(taps, i * BYTES) for i in range(kernel * kernel)] if kernel <= 3 else None
            with code.loop(count) as number:
                sums = [bias] * t
                for i in range(kernel):
                    w = held[i * kernel : (i + 1) * kernel] if held else None
                    if w is None:
                        w = [code.load(taps, (i * kernel + j) * BYTES) for j in range(kernel)]
                    row = rows[i] + number * (t * stride * BYTES)
                    for x in range((t - 1) * stride + kernel):
                        value = code.load(row, x * BYTES)
                        for j in range(kernel):
                            if (x - j) % stride == 0 and 0 <= (x - j) // stride < t:
                                column = (x - j) // stride
                                sums[column] = code.fma(value, w[j], sums[column])
                _finish(code, sums, target + number * (t * BYTES), total, act, low, high)
            code.store(total_at, total.get())

    return columns


@staged(void, *[int64] * 10, float32, float32)
def _any_columns(code, kernel, stride, count, size, sources, taps, shift, target, total_at, act, low, high):
    """The same for a kernel size and stride that are known only when the program runs."""
    for t in code.switch(size, range(1, COLUMNS + 1)):
        total = code.variable(code.load(total_at))
        with code.loop(count) as number:
            bias = code.load(shift)
            sums = [code.variable(bias) for _ in range(t)]
            with code.loop(kernel) as i:
                row = code.load_int(sources + i * 8) + number * stride * (t * BYTES)
                with code.loop(kernel) as j:
                    w = code.load(taps + (i * kernel + j) * BYTES)
                    for column in range(t):
                        value = code.load(row + (stride * column + j) * BYTES)
                        sums[column].set(code.fma(value, w, sums[column].get()))
            _finish(code, [s.get() for s in sums], target + number * (t * BYTES), total, act, low, high)
        code.store(total_at, total.get())


_columns31, _columns32, _columns51, _columns52 = _columns(3, 1), _columns(3, 2), _columns(5, 1), _columns(5, 2)


@njit(nogil=True)
def depthwise_row(kernel, stride, pixels, sources, taps, shift, target, total_at, act, low, high):
    """One row of outputs of one block of channels; adds them up at `total_at`."""
    n = (pixels + COLUMNS - 1) // COLUMNS
    size = pixels // n
    larger = pixels - size * n
    mode, lo, hi = act, low, high
    before = load(total_at)
    if act != CLAMP and act != SWISH:
        mode, lo, hi = CLAMP, -INFINITY, INFINITY
    done = 0
    for part in range(2):
        t, count = (size + 1, larger) if part == 0 else (size, n - larger)
        if count > 0:
            if part == 1 and done > 0:
                for i in range(kernel):
                    store_int(sources + 8 * i, load_int(sources + 8 * i) + done * stride * BYTES)
            to = target + done * BYTES
            if kernel == 3 and stride == 1:
                _columns31(count, t, sources, taps, shift, to, total_at, mode, lo, hi)
            elif kernel == 3 and stride == 2:
                _columns32(count, t, sources, taps, shift, to, total_at, mode, lo, hi)
            elif kernel == 5 and stride == 1:
                _columns51(count, t, sources, taps, shift, to, total_at, mode, lo, hi)
            elif kernel == 5 and stride == 2:
                _columns52(count, t, sources, taps, shift, to, total_at, mode, lo, hi)
            else:
                _any_columns(kernel, stride, count, t, sources, taps, shift, to, total_at, mode, lo, hi)
            done += t * count
    if mode != act:
        total = before
        for i in range(pixels):
            y = activate(act, load(target + i * BYTES))
            store(target + i * BYTES, y)
            total = total + y
        store(total_at, total)


@njit(nogil=True)
def fill_zero(address, vectors):
    nothing = splat(ZERO)
    for i in range(vectors):
        store(address + i * BYTES, nothing)


@njit(nogil=True)
def copy(target, source, vectors):
    for i in range(vectors):
        store(target + i * BYTES, load(source + i * BYTES))


@njit(nogil=True)
def depthwise(row, task, scratch):
    """A task: a band of output rows of a group of channel blocks."""
    groups, blocks, bands = get(row, table.GROUPS), get(row, table.BLOCKS), get(row, table.BANDS)
    group, band = task % groups, task // groups
    b0 = group_start(group, groups, blocks)
    vectors = group_start(group + 1, groups, blocks) - b0
    kernel, stride, pad = get(row, table.KERNEL), get(row, table.STRIDE), get(row, table.PAD)
    height, width = get(row, table.HEIGHT), get(row, table.WIDTH_)
    out_height, out_width = get(row, table.OUT_HEIGHT), get(row, table.OUT_WIDTH)
    y, y1 = band * out_height // bands, (band + 1) * out_height // bands
    chunk, ring, row_bytes, lead = get(row, table.CHUNK), get(row, table.RING), get(row, table.ROW), get(row, table.LEAD)
    producer, source, source_plane = get(row, table.PRODUCER), get(row, table.SOURCE), get(row, table.SOURCE_PLANE)
    units = get(row, table.UNITS)
    weight, bias = get(row, table.WEIGHT) + b0 * (units * UNIT * BYTES), get(row, table.EXPAND_BIAS) + b0 * BYTES
    taps, shift = get(row, table.TAPS), get(row, table.SHIFT)
    target, target_plane = get(row, table.TARGET), get(row, table.TARGET_PLANE)
    act, low, high = get(row, table.ACTIVATION), get_float(row, table.LOW), get_float(row, table.HIGH)

    totals = scratch
    sources = totals + 16 * BYTES
    zeros = sources + 8 * ((kernel + 15) // 16) * 16
    zero_bytes = max(row_bytes, 4 * BYTES)
    rows = zeros + zero_bytes
    plane = ring * row_bytes
    fill_zero(totals, vectors)
    fill_zero(zeros, zero_bytes // BYTES)
    left, right = max(pad, 0), row_bytes // BYTES - max(pad, 0) - width
    for v in range(vectors):
        for slot in range(ring):
            fill_zero(rows + v * plane + slot * row_bytes, left)
            fill_zero(rows + v * plane + slot * row_bytes + (left + width) * BYTES, right)

    made = max(0, y * stride - pad)
    while y < y1:
        last = min(y1, y + chunk)
        needed = min(height, (last - 1) * stride - pad + kernel)
        for r in range(made, needed):
            to = rows + (r % ring) * row_bytes + left * BYTES
            if producer == table.EXPAND:
                tiles(vectors, width, source + r * width * BYTES, source_plane, units, weight, bias, to, plane, 0, 0, act, low, high)
            elif producer == table.COPY:
                for v in range(vectors):
                    copy(to + v * plane, source + (b0 + v) * source_plane + r * width * BYTES, width)
            else:
                stem_row(row, r, b0, vectors, rows + vectors * plane, to, plane)
        made = max(made, needed)
        for v in range(vectors):
            for o in range(y, last):
                for i in range(kernel):
                    r = o * stride - pad + i
                    at = zeros
                    if 0 <= r < height:
                        at = rows + v * plane + (r % ring) * row_bytes
                    store_int(sources + 8 * i, at + lead * BYTES)
                depthwise_row(
                    kernel, stride, out_width, sources, taps + (b0 + v) * (kernel * kernel * BYTES), shift + (b0 + v) * BYTES,
                    target + (b0 + v) * target_plane + o * out_width * BYTES, totals + v * BYTES, act, low, high,
                )  # fmt: skip
        y = last

    squeeze_blocks = get(row, table.SQUEEZE_BLOCKS)
    if squeeze_blocks > 0:
        squeeze = get(row, table.SQUEEZE)
        partial = get(row, table.PARTIAL) + task * (squeeze_blocks * BYTES)
        q = 0
        while q < squeeze_blocks:
            n = min(3, squeeze_blocks - q)
            part = squeeze + q * (blocks * WIDTH * BYTES) + b0 * (WIDTH * n * BYTES)
            tiles(n, 1, totals, BYTES, vectors * (WIDTH // UNIT), part, zeros, partial + q * BYTES, BYTES, 0, 0, CLAMP, -INFINITY, INFINITY)
            q += n
