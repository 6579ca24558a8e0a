"""Head."""

from __future__ import annotations

from effnet_np.kernels import table
from effnet_np.kernels.native import native
from effnet_np.kernels.pointwise import UNIT, call_tiles, group_start, next_weights
from effnet_np.kernels.simd import BYTES, load, maximum, splat, store
from effnet_np.kernels.table import get, get_float


@native(3)
def head(row, task, scratch):
    """A task: a group of channel blocks of the last convolution, and their pool."""
    groups, blocks, pixels, units = get(row, table.GROUPS), get(row, table.BLOCKS), get(row, table.PIXELS), get(row, table.UNITS)
    b0 = group_start(task, groups, blocks)
    vectors = group_start(task + 1, groups, blocks) - b0
    target, plane = get(row, table.TARGET), get(row, table.TARGET_PLANE)
    if target == 0:
        target, plane = scratch, pixels * BYTES
    else:
        target += b0 * plane
    ahead, end = next_weights(row, task, task + get(row, table.THREADS), units)
    call_tiles(
        get(row, table.TILES), 2 * vectors, 1, pixels, get(row, table.SOURCE), 0, get(row, table.SOURCE_PLANE), units,
        get(row, table.WEIGHT) + b0 * (units * UNIT * BYTES), get(row, table.BIAS) + b0 * BYTES, target, 0, plane, 0, 0,
        get(row, table.ACTIVATION), ahead, end, get_float(row, table.LOW), get_float(row, table.HIGH),
    )  # fmt: skip
    pooled, scale = get(row, table.POOLED) + b0 * BYTES, splat(get_float(row, table.SCALE))
    for v in range(vectors):
        at = target + v * plane
        total = load(at)
        if get(row, table.POOL) == 0:
            for i in range(1, pixels):
                total = total + load(at + i * BYTES)
            total = total * scale
        else:
            for i in range(1, pixels):
                total = maximum(total, load(at + i * BYTES))
        store(pooled + v * BYTES, total)
