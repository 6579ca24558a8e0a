"""The stem: a 3x3 convolution with stride 2 over the few channels of the picture.

Plain meaning, with one row of zeros below the picture and one column right of it:

    out[y, x, :] = activation(sum over c, i, j of picture[c, 2y + i, 2x + j] * weight[c, i, j, :] + bias)

It is a matrix product with 27 inputs for a position (3 colours), which lie 2 numbers apart for neighbouring positions. So it is
done as one, with a tile of 8 positions times up to 3 registers of channels (as in pointwise.py), straight from the
picture's own NCHW layout: nothing is unfolded. The three rows of each colour that an output row needs are copied to the
thread's scratch first, 3% of the work, so that the zeros at the edges need no case of their own.

Block 0 of EfficientNet reads the stem's output and nothing else does, so depthwise.py asks for it row by row (`stem_row`)
and it never goes to memory. Only where hidden states are wanted is it a step of its own (`stem`).
"""

from __future__ import annotations

import numpy as np

from effnet_np.kernels import table
from effnet_np.kernels.activations import FUSED, activate, fused
from effnet_np.kernels.native import caller, native
from effnet_np.kernels.pointwise import INFINITY, group_start
from effnet_np.kernels.simd import float32, get, get_float, int64, load, load_scalar, staged, store, store_scalar, void
from effnet_np.kernels.table import CLAMP, SWISH
from effnet_np.kernels.target import BYTES, REGISTERS, WIDTH

ROWS = 8 if REGISTERS == 32 else 4
ZERO = np.float32(0)


def _tile(vectors):
    @staged(void, *[int64] * 11, float32, float32)
    def tile(code, count, size, image, row_bytes, plane_bytes, channels, b, bias, c, c_plane, act, low, high):
        for r in code.switch(size, range(1, ROWS + 1)):
            with code.loop(count) as number:
                first = [code.load(bias, v * BYTES) for v in range(vectors)]
                sums = [[code.variable(first[v]) for v in range(vectors)] for _ in range(r)]
                with code.loop(channels) as channel:
                    pb = b + channel * (9 * vectors * BYTES)
                    for i in range(3):
                        pa = image + number * (8 * r) + channel * plane_bytes + row_bytes * i
                        for j in range(3):
                            weights = [code.load(pb, ((3 * i + j) * vectors + v) * BYTES) for v in range(vectors)]
                            for o in range(r):
                                x = code.load_splat(pa, 8 * o + 4 * j)
                                for v in range(vectors):
                                    sums[o][v].set(code.fma(x, weights[v], sums[o][v].get()))
                lo, hi = code.splat(low), code.splat(high)
                target = c + number * (r * BYTES)
                for mode in code.switch(act, FUSED):
                    for v in range(vectors):
                        for o in range(r):
                            y = sums[o][v].get()
                            y = fused(code, mode, y, lo, hi)
                            code.store(target + c_plane * v, y, o * BYTES)

    return tile


_tile1, _tile2, _tile3 = _tile(1), _tile(2), _tile(3)


@native(7)
def stem_row(row, r, b0, vectors, scratch, target, plane):
    """Row r of the stem's output for `vectors` blocks of channels from b0 on."""
    channels, image_height, image_width = get(row, table.CHANNELS), get(row, table.IMAGE_HEIGHT), get(row, table.IMAGE_WIDTH)
    pixels, image, row_bytes = get(row, table.WIDTH_), get(row, table.SOURCE), get(row, table.STEM_ROW)
    act, low, high = get(row, table.ACTIVATION), get_float(row, table.LOW), get_float(row, table.HIGH)
    for c in range(channels):
        for i in range(3):
            to = scratch + (c * 3 + i) * row_bytes
            copied = 0
            if 2 * r + i < image_height:
                source = image + (c * image_height + 2 * r + i) * image_width * 4
                for x in range(image_width // WIDTH):
                    store(to + x * BYTES, load(source + x * BYTES))
                copied = image_width // WIDTH * WIDTH
                for x in range(copied, image_width):
                    store_scalar(to + 4 * x, load_scalar(source + 4 * x))
                copied = image_width
            for x in range(copied, image_width + 1):
                store_scalar(to + 4 * x, ZERO)
    n = (pixels + ROWS - 1) // ROWS
    size = pixels // n
    larger = pixels - size * n
    mode, lo, hi = act, low, high
    if act > SWISH:
        mode, lo, hi = CLAMP, -INFINITY, INFINITY
    weight = get(row, table.WEIGHT) + b0 * (channels * 9 * BYTES)
    bias = get(row, table.EXPAND_BIAS) + b0 * BYTES
    done = 0
    for part in range(2):
        rows, count = (size + 1, larger) if part == 0 else (size, n - larger)
        if count > 0:
            to, a = target + done * BYTES, scratch + done * 8
            if vectors == 3:
                _tile3(count, rows, a, row_bytes, 3 * row_bytes, channels, weight, bias, to, plane, mode, lo, hi)
            elif vectors == 2:
                _tile2(count, rows, a, row_bytes, 3 * row_bytes, channels, weight, bias, to, plane, mode, lo, hi)
            else:
                _tile1(count, rows, a, row_bytes, 3 * row_bytes, channels, weight, bias, to, plane, mode, lo, hi)
            done += rows * count
    if mode != act:
        for v in range(vectors):
            for x in range(pixels):
                p = target + v * plane + x * BYTES
                store(p, activate(act, load(p)))


call_stem_row = caller(7)


@native(3)
def stem(row, task, scratch):
    """A task: a band of rows of the stem's output, for a network whose stem is wanted by itself."""
    groups, blocks, bands = get(row, table.GROUPS), get(row, table.BLOCKS), get(row, table.BANDS)
    group, band = task % groups, task // groups
    b0 = group_start(group, groups, blocks)
    vectors = group_start(group + 1, groups, blocks) - b0
    height, width = get(row, table.HEIGHT), get(row, table.WIDTH_)
    plane = get(row, table.TARGET_PLANE)
    for r in range(band * height // bands, (band + 1) * height // bands):
        call_stem_row(
            get(row, table.ROWS), row, r, b0, vectors, scratch, get(row, table.TARGET) + b0 * plane + r * width * BYTES, plane
        )
