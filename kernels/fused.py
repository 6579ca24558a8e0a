"""Fused-MBConv's convolution: a full K x K one, which widens and filters at once, as a matrix product without a matrix.

Plain meaning, for the positions of a map:

    out[y, x, :] = activation(sum over i, j of in[y * stride + i - top, x * stride + j - left, :] @ B[i, j] + bias)

Where a block does not expand, this is all of it: `residual + out`.

It is the product of product.py with K * K times as many inputs: for each tap (i, j) the same tile of positions, moved. The
tile's sums stay in registers over all taps and channels. What others unfold first, the windows as rows of a matrix (im2col), is
never written: the map's own rows are read, K * K times, while they are near. Three things make them lie as the product wants:

1. *Rows with their zeros.* A task copies the rows that its next output rows look at into its scratch, with the zeros beside
   them, as depthwise.py does; rows above and below the map are one row of zeros. That is a load and a store for a register
   of input, for which the product then takes 9 * 16 * 3 / 2 cycles (3 x 3, stride 1, a group of 3 blocks of outputs).
2. *Lists of addresses*, one of rows and one of columns. Where tap (i, j) begins is the sum of a number of each, so one piece of
   code does all kernel sizes and strides.
3. *With stride 2, even and odd columns apart.* The columns that neighbouring outputs look at through one tap then lie beside
   each other, as with stride 1.

A 3 x 3 convolution of stride 1 has a quicker way, in winograd.py: plan.py takes it where it pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from effnet_np.kernels.activations import FUSED, fused
from effnet_np.kernels.arena import FeatureMap
from effnet_np.kernels.bands import fused_bands
from effnet_np.kernels.depthwise import RING_BYTES, Ring, Window, list_bytes, list_rows, window_of, zero
from effnet_np.kernels.kernel import function, kernel
from effnet_np.kernels.product import (
    HEIGHT_NARROW,
    HEIGHT_WIDE,
    HEIGHTS,
    Panel,
    Shape,
    add_product,
    map_at,
    pack_matrix,
    panel_at,
    start_sums,
)
from effnet_np.kernels.record import Activation, Address, Bytes, Count, Function, Map, Real, Step
from effnet_np.kernels.simd import int64, load, njit, splat, staged, store, store_int
from effnet_np.kernels.target import BYTES, UNIT, VECTORS, WIDTH
from effnet_np.kernels.tiling import (
    Ahead,
    ahead_of,
    band_of,
    blocks_of,
    ceil_div,
    cut,
    equal_tiles,
    in_registers,
    second_pass,
    share_of,
    units_of,
)

ZERO = np.float32(0)
COPY_CYCLES = 3  # for a register of input

# -- the record --------------------------------------------------------------------------------------------------------


class Taps(NamedTuple):
    """Where the inputs of a tile lie: for output row y, through tap (i, j), at `rows[y * stride + i] + columns[j] + moved`."""

    rows: Address  # a list of addresses
    columns: Address  # a list of distances
    moved: Bytes
    kernel: Count
    stride: Count
    units: Count  # of UNIT input channels
    plane: Bytes  # from one block of input channels to the next


@dataclass(frozen=True, kw_only=True)
class Fused(Step):
    """A full convolution. A task: a band of output rows of a group of channel blocks."""

    inputs: Count
    outputs: Count
    window: Window
    source: Map
    matrix: Panel  # of kernel * kernel * inputs rows, tap after tap
    units: Count  # of UNIT input channels
    ring: Ring
    phase: Bytes  # in a row of the ring, from the columns of one remainder by the stride to those of the next
    chunk: Count  # output rows that are made at a time
    target: Map
    whole: Count  # 1 where this is the whole block:
    residual: Address  # then of a map like the target that is added, or None,
    rescale: Real  # and what takes the factor out that the activation leaves in (activations.py)
    activation: Activation
    taps_product: Function = "taps_product"

    @property
    def label(self):
        return "fused"

    @property
    def flops(self):
        window = self.window
        return 2 * window.kernel**2 * self.inputs * self.outputs * window.out_height * window.out_width

    @property
    def floats(self):
        window = self.window
        written = self.outputs * window.out_height * window.out_width * (2 if self.residual else 1)
        return self.inputs * (window.height * window.width + window.kernel**2 * self.outputs) + written

    @property
    def scratch(self):
        return lists_bytes(self.chunk, self.window) + blocks_of(self.inputs) * self.ring.plane


# -- planning ----------------------------------------------------------------------------------------------------------


@njit
def lists_bytes(chunk, window):
    """Of the two lists: the columns' and the rows'."""
    return ceil_div(8 * window.kernel, 64) * 64 + list_bytes(chunk, window)


def folded_taps(weights, spec):
    """(outputs, inputs with those that fill a unit, a function that gives weight (O, K, K, inputs) and bias)."""
    name, whole = f"encoder.blocks.{spec.index}.", spec.expand_ratio == 1
    layer = name + ("projection.project_" if whole else "expansion.expand_")
    scale_in = weights.stem_scale if spec.index == 0 else 1.0  # the stem's output is scaled, a block's is not
    folded = weights.fold(layer + "conv", layer + "bn", scale_in, weights.inner)
    outputs, rows = spec.out_channels if whole else spec.expanded_channels, units_of(spec.in_channels) * UNIT

    def taps():
        weight, bias = folded()  # (O, C, K, K)
        padded = np.zeros((outputs, spec.kernel_size, spec.kernel_size, rows))
        padded[..., : spec.in_channels] = weight.transpose(0, 2, 3, 1)
        return padded, bias

    return outputs, rows, taps


def pack(weights, spec) -> None:
    outputs, rows, taps = folded_taps(weights, spec)
    pack_matrix(weights, (spec.index, "fused"), spec.kernel_size**2 * rows, outputs, taps)


def plan(net, spec, source: FeatureMap, target: FeatureMap, residual: FeatureMap | None) -> Fused:
    """residual: the map to be added, where this is the whole block, or None."""
    window, units, whole = window_of(spec, source, target), units_of(source.channels), spec.expand_ratio == 1
    output_cycles = window.kernel**2 * units * UNIT // 2 + 9
    bands = fused_bands(target.blocks, COPY_CYCLES * source.blocks, output_cycles, window)
    chunk, ring, phase = plan_rows(window, source.blocks, ceil_div(window.out_height, bands))
    matrix = net.weights.at((spec.index, "fused")), net.weights.at(((spec.index, "fused"), "bias"))
    return Fused(
        cut=cut(target.blocks, bands),
        inputs=source.channels,
        outputs=target.channels,
        window=window,
        source=source.map,
        matrix=Panel(*matrix, window.kernel**2 * units),
        units=units,
        ring=ring,
        phase=phase,
        chunk=chunk,
        target=target.map,
        whole=int(whole),
        residual=residual.map.address if residual else None,
        rescale=1.0 / net.weights.inner,
        activation=net.activation,
    )


def plan_rows(window: Window, blocks: int, most: int) -> tuple[int, Ring, int]:
    """(output rows of a chunk, at most `most`; the ring for it, of `blocks` planes; bytes between the columns' remainders)."""
    lead = max(-window.left, 0)
    columns = max(lead + (window.out_width - 1) * window.stride + window.kernel, max(window.left, 0) + window.width)
    phase = ceil_div(columns, window.stride) * BYTES
    row, more = window.stride * phase, max(0, window.kernel - window.stride)  # `more`: rows that a chunk shares with the next
    chunk = max(1, min(most, (RING_BYTES // (blocks * row) - more) // window.stride))
    slots = chunk * window.stride + more
    return chunk, Ring(None, slots, row, (slots + 1) * row, 0), phase


# -- the product of all taps -------------------------------------------------------------------------------------------


@staged(int64, Shape, int64, Taps, Panel, Map, Ahead, Activation)
def _tiles(code, shape, count, taps, panel, target, ahead, activation):
    """`shape.rows` times `count` tiles of `shape.pixels` positions each. Gives how far `ahead` has got."""
    coming = code.variable(ahead.address)
    low, high = code.splat(activation.low), code.splat(activation.high)
    for halves in code.switch(shape.halves, range(2, 2 * VECTORS + 1, 2)):  # whole registers: few stages have half a one here
        lanes = [WIDTH] * (halves // 2)
        for positions in code.switch(shape.pixels, range(1, HEIGHTS[halves] + 1)):
            with code.loop(shape.rows) as y, code.loop(count) as number:
                moved = taps.moved + number * (positions * BYTES)
                sums = start_sums(code, panel, positions, lanes)
                here = code.variable(panel.weights)
                with code.loop(taps.kernel) as i:
                    row = code.load_int(taps.rows + (y * taps.stride + i) * 8) + moved
                    with code.loop(taps.kernel) as j:
                        from_ = row + code.load_int(taps.columns + j * 8)
                        add_product(code, sums, taps.plane, taps.units, lanes, from_, here, coming, ahead.end)
                to = target.address + number * (positions * BYTES) + y * target.row
                for mode in code.switch(activation.code, FUSED):
                    for v in range(len(lanes)):
                        for p in range(positions):
                            x = fused(code, mode, sums[p][v].get(), low, high)
                            code.store(to + v * target.plane, x, p * BYTES)
    return coming.get()


@function(Shape, Taps, Panel, Map, Ahead, Activation)
def taps_product(shape, taps, panel, target, ahead, activation):
    """target = activation(sum over taps of source @ panel + bias)"""
    now, line = in_registers(activation), ahead.address
    for size, count, first in equal_tiles(shape.pixels, HEIGHT_WIDE if shape.halves > 4 else HEIGHT_NARROW):
        if count > 0:
            tile = Shape(shape.halves, shape.rows, size)
            moved = Taps(taps.rows, taps.columns, first * BYTES, taps.kernel, taps.stride, taps.units, taps.plane)
            line = _tiles(tile, count, moved, panel, map_at(target, 0, first), Ahead(line, ahead.end), now)
    if now.code != activation.code:
        second_pass(activation, target, shape.halves // 2, shape.rows, shape.pixels, splat(ZERO))


# -- the kernel --------------------------------------------------------------------------------------------------------


@njit
def list_columns(columns, step):
    """For each column of taps, how far from where a row of the ring begins its first output's input is."""
    window = step.window
    lead = max(0, -window.left)
    for j in range(window.kernel):
        column = lead + j
        store_int(columns + 8 * j, column % window.stride * step.phase + column // window.stride * BYTES)


@njit
def copy_rows(step, ring, first, end):
    """Rows `first` to `end` of the input into the ring, behind its zeros, columns by their remainders."""
    window, source, left = step.window, step.source, max(0, step.window.left)
    for b in range(ceil_div(step.units * UNIT, WIDTH)):
        for y in range(first, end):
            row = ring.address + b * ring.plane + y % ring.slots * ring.row
            from_ = source.address + b * source.plane + y * source.row
            for x in range(min(window.stride, window.width)):
                column = left + x
                to = row + column % window.stride * step.phase + column // window.stride * BYTES
                for at in range(x, window.width, window.stride):
                    store(to, load(from_ + at * BYTES))
                    to += BYTES


@njit
def finish_block(step, share, first, pixels):
    """Takes the activation's factor out again, and adds the residual, for `pixels` positions from the first."""
    for v in range(share.vectors):
        moved = (share.first_block + v) * step.target.plane + first * BYTES
        for i in range(pixels):
            at = moved + i * BYTES
            x = load(step.target.address + at) * splat(step.rescale)
            if step.residual != 0:
                x = x + load(step.residual + at)
            store(step.target.address + at, x)


@kernel(Fused)
def fused_conv(step, task, scratch):
    """Chunk by chunk: copies the rows that the next output rows look at, and multiplies."""
    share, window = share_of(step.cut, task), step.window
    columns, rows = scratch, scratch + ceil_div(8 * window.kernel, 64) * 64
    ring = Ring(scratch + lists_bytes(step.chunk, window), step.ring.slots, step.ring.row, step.ring.plane, 0)
    zero(ring.address, ceil_div(step.units * UNIT, WIDTH) * ring.plane // BYTES)
    list_columns(columns, step)
    taps = Taps(rows, columns, 0, window.kernel, window.stride, step.units, ring.plane)
    matrix, ahead = panel_at(step.matrix, share.first_block), ahead_of(step.cut, step.matrix, share, task + step.threads)

    y, end = band_of(window.out_height, step.cut, share.band)
    made = max(0, y * window.stride - window.top)
    while y < end:
        last = min(end, y + step.chunk)
        first = y * window.stride - window.top
        needed = min(window.height, (last - 1) * window.stride - window.top + window.kernel)
        copy_rows(step, ring, made, needed)
        made = max(made, needed)
        list_rows(rows, ring, window, first, (last - y - 1) * window.stride + window.kernel)
        target = map_at(step.target, share.first_block, y * window.out_width)
        taps_product(
            step.taps_product,
            Shape(2 * share.vectors, last - y, window.out_width),
            taps,
            matrix,
            target,
            ahead,
            step.activation,
        )
        if step.whole:
            finish_block(step, share, y * window.out_width, (last - y) * window.out_width)
        y = last
