"""Depthwise convolution, together with what makes its input: the expansion, or the stem.

Plain meaning, for one channel:

    out[y, x] = activation(sum over i, j of taps[i, j] * in[y * stride + i, x * stride + j] + shift)

It has few multiplications (9% of B0's, 5% of B7's), but a plain loop runs them at a seventh of the core's speed, and its
input, six times wider than anything else in the network, is the largest array there is.

How it became fast:

1. *A tile of 8 neighbouring outputs in registers*, for 16 channels at once. Each input is loaded once for a row of taps and
   serves all outputs that it belongs to: 60 loads for 200 multiply-adds with 5x5 taps, instead of 200. Kernel size and
   stride are known when the tile is compiled. 25.7 cycles for an output of 25 taps, and 9.8 for one of 9.
2. *Expanded activations never go to memory.* A task takes a group of up to 3 channel blocks and a band of rows. It makes some
   rows of the expansion (pointwise.py) in a ring of rows in its scratch, which stays in the L2, and convolves them while
   they are there. For the stem, which block 0 reads, it is the same.
3. *All rows of a ring in one call*, each row's address in a list. With one call a row, rows of 7 outputs took 34 cycles an
   output for 25 taps instead of 26, all of it on the way in and out; B0's 14x14 and 28x28 blocks got 3% faster. Rows above
   and below the map are one row of zeros; the columns beside it are zeros in the ring, written once a task.
4. *Squeeze-excite's first half on the way.* The outputs are added up while they are in registers, and the task multiplies
   its channels' sums with their part of the reducing layer's weights. What is left of it for the next step (squeeze_excite.py)
   is to add one short vector for each task.
5. *Where the next row of results will be stored is fetched before*, for writing: 1% of B4's largest maps, which do not fit
   in the L2.

What did not help: fetching more. One attempt asked for the rows that will be copied next, for residuals, and for lines
about to be written as if they were to be read; B4 on two threads got 30% slower, probably through the last. A Winograd
form was not written: on paper its additions and transforms cost as much as the multiplications that it saves.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from effnet_np.kernels import table
from effnet_np.kernels.activations import FUSED, activate, fused
from effnet_np.kernels.native import caller, native
from effnet_np.kernels.pointwise import call_tiles, group_start, next_weights
from effnet_np.kernels.simd import float32, get, get_float, int64, load, prefetch, splat, staged, store, store_int, void
from effnet_np.kernels.stem import call_stem_row
from effnet_np.kernels.table import CLAMP, SWISH
from effnet_np.kernels.target import BYTES, REGISTERS, UNIT, WIDTH

COLUMNS = 8 if REGISTERS == 32 else 4
ZERO, INFINITY = np.float32(0), np.float32(np.inf)


def _finish(code, sums, target, target_row, total, act, low, high):
    for column in range(len(sums)):
        code.prefetch(target + target_row, column * BYTES, level=1, to_write=True)
    lo, hi = code.splat(low), code.splat(high)
    for mode in code.switch(act, FUSED):
        done = [fused(code, mode, y, lo, hi) for y in sums]
        for column, y in enumerate(done):
            code.store(target, y, column * BYTES)
        while len(done) > 1:
            done = [done[i] + done[i + 1] if i + 1 < len(done) else done[i] for i in range(0, len(done), 2)]
        total.set(total.get() + done[0])


def _columns(kernel, stride):
    """For `rows` rows of one block of channels: `count` times `size` neighbouring outputs."""

    @staged(void, *[int64] * 11, float32, float32)
    def columns(code, rows, count, size, sources, moved, taps, shift, target, target_row, total_at, act, low, high):
        for t in code.switch(size, range(1, COLUMNS + 1)):
            total = code.variable(code.load(total_at))
            bias = code.load(shift)
            held = [code.load(taps, i * BYTES) for i in range(kernel * kernel)] if kernel <= 3 else None
            with code.loop(rows) as y:
                starts = [code.load_int(sources + y * (8 * stride), 8 * i) + moved for i in range(kernel)]
                to = target + y * target_row
                with code.loop(count) as number:
                    sums = [bias] * t
                    for i in range(kernel):
                        w = held[i * kernel : (i + 1) * kernel] if held else None
                        if w is None:
                            w = [code.load(taps, (i * kernel + j) * BYTES) for j in range(kernel)]
                        row = starts[i] + number * (t * stride * BYTES)
                        for x in range((t - 1) * stride + kernel):
                            value = code.load(row, x * BYTES)
                            for j in range(kernel):
                                if (x - j) % stride == 0 and 0 <= (x - j) // stride < t:
                                    column = (x - j) // stride
                                    sums[column] = code.fma(value, w[j], sums[column])
                    _finish(code, sums, to + number * (t * BYTES), target_row, total, act, low, high)
            code.store(total_at, total.get())

    return columns


@staged(void, *[int64] * 13, float32, float32)
def _any_columns(
    code, kernel, stride, rows, count, size, sources, moved, taps, shift, target, target_row, total_at, act, low, high
):
    """The same for a kernel size and stride that are known only when the program runs."""
    for t in code.switch(size, range(1, COLUMNS + 1)):
        total = code.variable(code.load(total_at))
        with code.loop(rows) as y, code.loop(count) as number:
            bias = code.load(shift)
            sums = [code.variable(bias) for _ in range(t)]
            with code.loop(kernel) as i:
                row = code.load_int(sources + (y * stride + i) * 8) + moved + number * stride * (t * BYTES)
                with code.loop(kernel) as j:
                    w = code.load(taps + (i * kernel + j) * BYTES)
                    for column in range(t):
                        value = code.load(row + (stride * column + j) * BYTES)
                        sums[column].set(code.fma(value, w, sums[column].get()))
            _finish(
                code, [s.get() for s in sums], target + y * target_row + number * (t * BYTES), target_row, total, act, low, high
            )
        code.store(total_at, total.get())


def _rows(kernel, stride):
    """The function for that kernel size and stride, or, for 0 and 0, for any."""
    fixed = _columns(kernel, stride) if kernel else None

    def rows_of(kernel_size, step, rows, pixels, sources, moved, taps, shift, target, target_row, total_at, act, low, high):
        n = (pixels + COLUMNS - 1) // COLUMNS
        size = pixels // n
        larger = pixels - size * n
        mode, lo, hi = act, low, high
        before = load(total_at)
        if act > SWISH:
            mode, lo, hi = CLAMP, -INFINITY, INFINITY
        done = 0
        for part in range(2):
            t, count = (size + 1, larger) if part == 0 else (size, n - larger)
            if count > 0:
                at, to = moved + done * step * BYTES, target + done * BYTES
                if kernel:
                    fixed(rows, count, t, sources, at, taps, shift, to, target_row, total_at, mode, lo, hi)
                else:
                    _any_columns(
                        kernel_size, step, rows, count, t, sources, at, taps, shift, to, target_row, total_at, mode, lo, hi
                    )
                done += t * count
        if mode != act:
            total = before
            for y in range(rows):
                for i in range(pixels):
                    p = target + y * target_row + i * BYTES
                    value = activate(act, load(p))
                    store(p, value)
                    total = total + value
            store(total_at, total)

    rows_of.__name__ = rows_of.__qualname__ = table.depthwise_rows_name(kernel, stride)
    return native(12, 2)(rows_of)


for _kernel, _stride in [*sorted(table.SPECIAL), (0, 0)]:
    _rows(_kernel, _stride)
call_rows = caller(12, 2)


@njit(nogil=True)
def fill_zero(address, vectors):
    nothing = splat(ZERO)
    for i in range(vectors):
        store(address + i * BYTES, nothing)


@njit(nogil=True)
def copy(target, source, vectors):
    for i in range(vectors):
        store(target + i * BYTES, load(source + i * BYTES))


@native(3)
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

    ahead, end = next_weights(row, group, (task + get(row, table.THREADS)) % groups, units)
    squeeze_blocks, squeeze = get(row, table.SQUEEZE_BLOCKS), get(row, table.SQUEEZE)
    for i in range(vectors * kernel * kernel):
        prefetch(taps + (b0 * kernel * kernel + i) * BYTES)

    totals = scratch
    sources = totals + 8 * BYTES  # the second four stay zero: a bias of nothing
    rows = sources + get(row, table.LIST)
    plane = (ring + 1) * row_bytes
    fill_zero(totals, 8)
    left, right = max(pad, 0), row_bytes // BYTES - max(pad, 0) - width
    for v in range(vectors):
        for slot in range(ring):
            fill_zero(rows + v * plane + slot * row_bytes, left)
            fill_zero(rows + v * plane + slot * row_bytes + (left + width) * BYTES, right)
        fill_zero(rows + v * plane + ring * row_bytes, row_bytes // BYTES)

    made = max(0, y * stride - pad)
    while y < y1:
        last = min(y1, y + chunk)
        needed = min(height, (last - 1) * stride - pad + kernel)
        while made < needed:
            slot = made % ring
            count = min(needed - made, ring - slot)
            to = rows + slot * row_bytes + left * BYTES
            if producer == table.EXPAND:
                call_tiles(
                    get(row, table.TILES),
                    2 * vectors,
                    count,
                    width,
                    source + made * width * BYTES,
                    width * BYTES,
                    source_plane,
                    units,
                    weight,
                    bias,
                    to,
                    row_bytes,
                    plane,
                    0,
                    0,
                    act,
                    ahead,
                    end,
                    low,
                    high,
                )
            elif producer == table.COPY:
                for v in range(vectors):
                    for i in range(count):
                        copy(
                            to + v * plane + i * row_bytes, source + (b0 + v) * source_plane + (made + i) * width * BYTES, width
                        )
            else:
                for i in range(count):
                    call_stem_row(
                        get(row, table.STEM), row, made + i, b0, vectors, rows + vectors * plane, to + i * row_bytes, plane
                    )
            made += count
        made = max(made, needed)
        if last == y1:
            q = 0
            while q < squeeze_blocks:
                n = min(3, squeeze_blocks - q)
                for i in range(vectors * WIDTH * n):
                    prefetch(squeeze + q * (blocks * WIDTH * BYTES) + (b0 * WIDTH * n + i) * BYTES)
                q += n
        first = y * stride - pad
        slot = max(first, 0) % ring
        for i in range((last - y - 1) * stride + kernel):
            at = rows + ring * row_bytes
            if 0 <= first + i < height:
                at = rows + slot * row_bytes
                slot += 1
                if slot == ring:
                    slot = 0
            store_int(sources + 8 * i, at + lead * BYTES)
        for v in range(vectors):
            call_rows(
                get(row, table.ROWS),
                kernel,
                stride,
                last - y,
                out_width,
                sources,
                v * plane,
                taps + (b0 + v) * (kernel * kernel * BYTES),
                shift + (b0 + v) * BYTES,
                target + (b0 + v) * target_plane + y * out_width * BYTES,
                out_width * BYTES,
                totals + v * BYTES,
                act,
                low,
                high,
            )
        y = last

    if squeeze_blocks > 0:
        partial = get(row, table.PARTIAL) + task * (squeeze_blocks * BYTES)
        q = 0
        while q < squeeze_blocks:
            n = min(3, squeeze_blocks - q)
            part = squeeze + q * (blocks * WIDTH * BYTES) + b0 * (WIDTH * n * BYTES)
            call_tiles(
                get(row, table.TILES),
                2 * n,
                1,
                1,
                totals,
                0,
                BYTES,
                vectors * (WIDTH // UNIT),
                part,
                totals + 4 * BYTES,
                partial + q * BYTES,
                0,
                BYTES,
                0,
                0,
                CLAMP,
                part,
                part,
                -INFINITY,
                INFINITY,
            )
            q += n
