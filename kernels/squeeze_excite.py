"""Squeeze-excite: a gate between 0 and 1 for each channel, from the means of all channels.

Plain meaning:

    squeezed = activation(reduce @ mean + bias_reduce)        # (S, C) @ (C,) -> (S,)
    gates    = sigmoid(expand @ squeezed + bias_expand)       # (C, S) @ (S,) -> (C,)

Few multiplications, but it stands between two large steps and needs all of the first before any of the second. So its
first product is done by the tasks of the depthwise convolution, each for its own channels; here their results are added
up, in the order of the tasks and not in that of the threads, and every task of this step makes the gates of some channels.

The gates are then used in one of two ways, whichever touches fewer numbers: multiplied into the projection's weights
(pointwise.py), or into the activations, here.
"""

from __future__ import annotations

import numpy as np

from effnet_np.kernels import table
from effnet_np.kernels.activations import apply, gate
from effnet_np.kernels.native import native
from effnet_np.kernels.pointwise import INFINITY, call_tiles, group_start
from effnet_np.kernels.simd import get, get_float, load, splat, store
from effnet_np.kernels.table import CLAMP
from effnet_np.kernels.target import BYTES, UNIT

ZERO = np.float32(0)


@native(3)
def gates(row, task, scratch):
    """A task: the gates of a range of channel blocks."""
    partial, partials, squeeze_blocks = get(row, table.PARTIAL), get(row, table.PARTIALS), get(row, table.SQUEEZE_BLOCKS)
    act, low, high = get(row, table.ACTIVATION), get_float(row, table.LOW), get_float(row, table.HIGH)
    scale = splat(get_float(row, table.SCALE))
    for q in range(squeeze_blocks):
        total = splat(ZERO)
        for p in range(partials):
            total = total + load(partial + (p * squeeze_blocks + q) * BYTES)
        x = total * scale + load(get(row, table.BIAS) + q * BYTES)
        store(scratch + q * BYTES, apply(act, low, high, x))

    groups, blocks, bands, units = get(row, table.GROUPS), get(row, table.BLOCKS), get(row, table.BANDS), get(row, table.UNITS)
    weight, shift, target = get(row, table.WEIGHT), get(row, table.SHIFT), get(row, table.GATES)
    source, plane, pixels = get(row, table.SOURCE), get(row, table.SOURCE_PLANE), get(row, table.PIXELS)
    for group in range(task * groups // bands, (task + 1) * groups // bands):
        b0 = group_start(group, groups, blocks)
        vectors = group_start(group + 1, groups, blocks) - b0
        to = target + b0 * BYTES
        call_tiles(
            get(row, table.TILES),
            2 * vectors,
            1,
            1,
            scratch,
            0,
            BYTES,
            units,
            weight + b0 * (units * UNIT * BYTES),
            shift + b0 * BYTES,
            to,
            0,
            BYTES,
            0,
            0,
            CLAMP,
            weight,
            weight,
            -INFINITY,
            INFINITY,
        )
        for v in range(vectors):
            g = gate(load(to + v * BYTES))
            store(to + v * BYTES, g)
            if source != 0:
                at = source + (b0 + v) * plane
                for i in range(pixels):
                    store(at + i * BYTES, load(at + i * BYTES) * g)
