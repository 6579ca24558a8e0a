"""A layer's weights for the products, and its gradients out of them.

Weights stay where `state_dict()` shows them: (O, C), row by row. The products read panels (../product.py), so at each step the
weights are laid out anew, twice: once for the way there (C inputs, O outputs), once for the way back (O inputs, C outputs).
For B0 that is 3 ms, a hundredth of a step.

`reduce` adds the pieces of a weight gradient up, in their order, into the gradient's own (O, C).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.record import Address, Count, Step
from effnet_np.kernels.simd import load, load_scalar, njit, splat, store, store_scalar
from effnet_np.kernels.target import BYTES, UNIT, VECTORS, WIDTH
from effnet_np.kernels.tiling import band_of, ceil_div, group_start, share_of
from effnet_np.kernels.training.batch import Partial

ZERO = np.float32(0)


@dataclass(frozen=True, kw_only=True)
class Pack(Step):
    """Both panels of a matrix. A task: a group of blocks of outputs."""

    source: Address  # (rows, columns)
    rows: Count
    columns: Count
    inputs: Count  # rows of a panel on the way there: `columns`, and those that fill a unit
    there: Address
    back: Address  # panels with `rows` inputs, or None

    label, flops = "pack", 0

    @property
    def floats(self):
        return 3 * self.rows * self.columns


@njit
def pack_there(step, share):
    panel = step.there + share.first_block * (step.inputs * BYTES)
    for v in range(share.vectors):
        row = (share.first_block + v) * WIDTH
        lanes = min(WIDTH, step.rows - row)
        for c in range(step.columns):
            to = panel + (c * share.vectors + v) * BYTES
            source = step.source + (row * step.columns + c) * 4
            for lane in range(lanes):
                store_scalar(to + 4 * lane, load_scalar(source + lane * step.columns * 4))


@njit
def pack_back(step, share):
    blocks, inputs = ceil_div(step.columns, WIDTH), ceil_div(step.rows, UNIT) * UNIT
    groups = ceil_div(blocks, VECTORS)
    first, last = share.first_block * WIDTH, min(step.rows, (share.first_block + share.vectors) * WIDTH)
    for group in range(groups):
        block = group_start(group, groups, blocks)
        vectors = group_start(group + 1, groups, blocks) - block
        panel = step.back + block * (inputs * BYTES)
        lanes = min(vectors * WIDTH, step.columns - block * WIDTH)
        for row in range(first, last):
            source, to = step.source + (row * step.columns + block * WIDTH) * 4, panel + row * (vectors * BYTES)
            for v in range(lanes // WIDTH):
                store(to + v * BYTES, load(source + v * BYTES))
            for lane in range(lanes // WIDTH * WIDTH, lanes):
                store_scalar(to + 4 * lane, load_scalar(source + 4 * lane))


@kernel(Pack)
def pack_panels(step, task, scratch):
    share = share_of(step.cut, task)
    pack_there(step, share)
    if step.back != 0:
        pack_back(step, share)


@dataclass(frozen=True, kw_only=True)
class Reduce(Step):
    """The pieces of a weight gradient, added up. The cut's blocks are those of the columns, in the groups that pieces have.

    A task: a band of rows of a group.
    """

    partial: Partial
    rows: Count
    columns: Count
    room: Count  # rows that a group has room for in a piece
    target: Address  # (rows, columns)

    label, flops = "reduce", 0

    @property
    def floats(self):
        return self.rows * self.columns * (self.partial.pieces + 1)

    @property
    def scratch(self):
        return BYTES


@njit
def store_lanes(address, x, lanes, scratch):
    """The first `lanes` numbers of a register."""
    if lanes >= WIDTH:
        store(address, x)
    else:
        store(scratch, x)
        for lane in range(lanes):
            store_scalar(address + 4 * lane, load_scalar(scratch + 4 * lane))


@kernel(Reduce)
def reduce_pieces(step, task, scratch):
    share = share_of(step.cut, task)
    first, last = band_of(step.rows, step.cut, share.band)
    group = step.partial.address + share.first_block * (step.room * BYTES)
    for row in range(first, last):
        for v in range(share.vectors):
            at = group + (row * share.vectors + v) * BYTES
            total = splat(ZERO)
            for piece in range(step.partial.pieces):
                total = total + load(at + piece * step.partial.piece)
            column = (share.first_block + v) * WIDTH
            store_lanes(step.target + (row * step.columns + column) * 4, total, step.columns - column, scratch)
