"""A wide 1x1 convolution (expansion, head), whose output is made once more wherever it is needed, or stored if that costs more.

Plain meaning, for X (M positions, C channels) and W (O, C), O larger than C:

    raw = X @ W.T                                              # M x O
    forward: the moments of raw                                # who goes on from here makes raw again, or reads it
    back:    draw = a dz + b raw + c;  dW = draw.T @ X;  dX = draw @ W

The expanded map is six times as large as X. Where X has few channels, to store and load it costs more than the product that
makes it: for B0's first expansion (16 to 96 channels, 112 x 112) a product of 38 MFLOP against 10 MB of memory traffic, for
each picture. But a register of it takes C / 2 cycles to make and, from memory, about 20 to load: from STORED channels on
(plan.py) raw is stored. Those are the small maps.

dz comes from whoever reads the activated map (depthwise.py, head.py). A stretch of positions goes through all that is left
while it lies in the L2: raw, draw in its place, both products.
"""

from __future__ import annotations

from dataclasses import dataclass

from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.product import Epilogue, Panel, Shape, map_at, panel_at, product
from effnet_np.kernels.record import Address, Count, Function, Map, Step
from effnet_np.kernels.simd import njit
from effnet_np.kernels.target import BYTES, VECTORS, WIDTH
from effnet_np.kernels.tiling import IDENTITY, Ahead, band_of, ceil_div, group_start, share_of
from effnet_np.kernels.training.batch import Partial
from effnet_np.kernels.training.norm import MOMENTS, A, B, C, Norm, add_moments, clear, of_norm
from effnet_np.kernels.training.outer import Outer, outer
from effnet_np.kernels.training.rows import gradient_row


@njit
def all_groups(function, blocks, pixels, source, panel, target, residual):
    """The product for every group of output blocks; `residual` is 0, or the first number of a map like the target."""
    groups = ceil_div(blocks, VECTORS)
    for group in range(groups):
        block = group_start(group, groups, blocks)
        vectors = group_start(group + 1, groups, blocks) - block
        matrix, to, nothing = panel_at(panel, block), map_at(target, block, 0), Ahead(0, 0)
        other = residual + block * target.plane if residual != 0 else 0
        product(function, Shape(2 * vectors, 1, pixels), source, matrix, to, nothing, Epilogue(other, IDENTITY))


@dataclass(frozen=True, kw_only=True)
class ExpandForward(Step):
    """Mean and variance of the output's channels; the output. A task: a range of positions for a group of blocks."""

    source: Map
    positions: Count
    stretch: Count
    inputs: Count
    outputs: Count
    matrix: Panel
    target: Map | None  # None: it is not stored
    moments: Partial | None  # None: the stored statistics
    product: Function = "product"

    @property
    def flops(self):
        return 2 * self.inputs * self.outputs * self.positions

    @property
    def floats(self):
        written = self.outputs * self.positions if self.target else 0
        return self.inputs * (self.positions + self.outputs) + written

    @property
    def scratch(self):
        return VECTORS * self.stretch * BYTES


@kernel(ExpandForward)
def expand_forward(step, task, scratch):
    share = share_of(step.cut, task)
    first, last = band_of(step.positions, step.cut, share.band)
    matrix = panel_at(step.matrix, share.first_block)
    moments = step.moments.address + share.band * step.moments.piece + share.first_block * (MOMENTS * BYTES)
    counts = step.moments.address != 0
    if counts:
        clear(moments, MOMENTS * share.vectors)
    target, nothing = Map(scratch, 0, step.stretch * BYTES), Ahead(0, 0)
    position = first
    while position < last:
        count = min(step.stretch, last - position)
        source = map_at(step.source, 0, position)
        if step.target.address != 0:
            target = map_at(step.target, share.first_block, position)
        product(step.product, Shape(2 * share.vectors, 1, count), source, matrix, target, nothing, Epilogue(0, IDENTITY))
        if counts:
            for v in range(share.vectors):
                add_moments(moments + v * (MOMENTS * BYTES), position - first, target.address + v * target.plane, count)
        position += count


@dataclass(frozen=True, kw_only=True)
class ExpandBackward(Step):
    """dW and dX. A task: a range of positions; the cut's blocks are those of the output."""

    source: Map  # X
    positions: Count
    stretch: Count
    inputs: Count
    outputs: Count
    input_blocks: Count
    matrix: Panel
    back: Panel
    gradient: Map  # dz
    norm: Norm
    stored: Count  # 1: stored statistics, raw is not needed
    raw: Map | None  # None: it was not stored
    partial: Partial  # of dW: (outputs, inputs)
    target: Map | None  # of dX
    residual: Address  # the first number of what is added to dX, or None
    product: Function = "product"
    outer: Function = "outer"

    @property
    def flops(self):
        made = not self.stored and self.raw is None
        return 2 * self.inputs * self.outputs * self.positions * (1 + made + (self.target is not None))

    @property
    def floats(self):
        return self.positions * (2 * self.inputs + self.outputs)

    @property
    def scratch(self):
        return self.cut.blocks * self.stretch * BYTES


@kernel(ExpandBackward)
def expand_backward(step, task, scratch):
    first, last = band_of(step.positions, step.cut, task)
    blocks, norm = step.cut.blocks, step.norm
    partial = step.partial.address + task * step.partial.piece
    clear(partial, step.partial.piece // BYTES)
    draw = Map(scratch, 0, step.stretch * BYTES)
    position = first
    while position < last:
        count = min(step.stretch, last - position)
        source = map_at(step.source, 0, position)
        known = step.stored != 0 or step.raw.address != 0
        if not known:
            all_groups(step.product, blocks, count, source, step.matrix, draw, 0)
        for block in range(blocks):
            a, b, c = of_norm(norm, block, A), of_norm(norm, block, B), of_norm(norm, block, C)
            dz, to = map_at(step.gradient, block, position).address, map_at(draw, block, 0).address
            raw = to
            if step.stored != 0:
                raw = dz  # b is 0
            elif known:
                raw = map_at(step.raw, block, position).address
            gradient_row(dz, 0, raw, to, count, a, b, c)
        shape = Outer(blocks * WIDTH, step.input_blocks, count, step.input_blocks * BYTES)
        outer(step.outer, shape, draw, source, partial)
        if step.target.address != 0:
            target = map_at(step.target, 0, position)
            residual = step.residual + position * BYTES if step.residual != 0 else 0
            all_groups(step.product, step.input_blocks, count, draw, step.back, target, residual)
        position += count
