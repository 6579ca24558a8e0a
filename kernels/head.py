"""The head: the last 1x1 convolution, and the mean (or the largest) of each of its channels.

Plain meaning: pooled = activation(A @ B + bias).mean(axis=0), for the positions of a map as rows.

A task makes up to 3 blocks of channels for all positions and pools them while they are in the L1. The map itself is stored
only where somebody asks for it, which the bare model does and the classifier does not.
"""

from __future__ import annotations

import numpy as np

from effnet_np.kernels import table
from effnet_np.kernels.native import native
from effnet_np.kernels.pointwise import call_tiles, group_start, next_weights
from effnet_np.kernels.simd import get, get_float, load, maximum, splat, store
from effnet_np.kernels.target import BYTES, UNIT

ZERO = np.float32(0)


@native(3)
def head(row, task, scratch):
    """A task: a group of channel blocks of the last convolution, and their pool."""
    groups, blocks, pixels, units = (
        get(row, table.GROUPS),
        get(row, table.BLOCKS),
        get(row, table.PIXELS),
        get(row, table.UNITS),
    )
    b0 = group_start(task, groups, blocks)
    vectors = group_start(task + 1, groups, blocks) - b0
    target, plane = get(row, table.TARGET), get(row, table.TARGET_PLANE)
    if target == 0:
        target, plane = scratch, pixels * BYTES
    else:
        target += b0 * plane
    ahead, end = next_weights(row, task, task + get(row, table.THREADS), units)
    call_tiles(
        get(row, table.TILES),
        2 * vectors,
        1,
        pixels,
        get(row, table.SOURCE),
        0,
        get(row, table.SOURCE_PLANE),
        units,
        get(row, table.WEIGHT) + b0 * (units * UNIT * BYTES),
        get(row, table.BIAS) + b0 * BYTES,
        target,
        0,
        plane,
        0,
        0,
        get(row, table.ACTIVATION),
        ahead,
        end,
        get_float(row, table.LOW),
        get_float(row, table.HIGH),
    )
    pooled, scale, rescale = get(row, table.POOLED) + b0 * BYTES, get_float(row, table.SCALE), get_float(row, table.RESCALE)
    for v in range(vectors):
        at = target + v * plane
        total = splat(ZERO)
        for i in range(pixels):
            y = load(at + i * BYTES) * splat(rescale)
            store(at + i * BYTES, y)
            total = maximum(total, y) if get(row, table.POOL) == table.MAX and i > 0 else total + y
        store(pooled + v * BYTES, total * splat(scale))
