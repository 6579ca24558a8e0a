"""The stem: a 3x3 convolution with stride 2 over the few channels of the picture.

Plain meaning, with zeros around the picture, `top` rows of them above it and `left` columns beside it, none or one:

    out[y, x, :] = activation(sum over c, i, j of picture[c, 2y + i - top, 2x + j - left] * weight[c, i, j, :] + bias)

It is a matrix product with 27 inputs for a position (3 colours), which lie 2 numbers apart for neighbouring positions. So it is
done as one, with a tile of 8 positions times up to 3 registers of channels (as in product.py, and with its late swish where
there are 16 registers: then 4 positions, or 6 where 2 registers of channels are all), straight from the
picture's own NCHW layout: nothing is unfolded. The three rows of each colour that an output row needs are copied to the
thread's scratch first, 3% of the work, so that the zeros at the edges need no case of their own.

Block 0 of EfficientNet reads the stem's output and nothing else does, so depthwise.py asks for it row by row (`stem_row`)
and it never goes to memory. Only where hidden states are wanted is it a step of its own (`stem`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from effnet_np.kernels.activations import FUSED, fused
from effnet_np.kernels.arena import FeatureMap
from effnet_np.kernels.kernel import function, kernel
from effnet_np.kernels.product import LATE, Late, Shape, map_at, pack_matrix
from effnet_np.kernels.record import Activation, Address, Bytes, Count, Function, Map, Real, Step
from effnet_np.kernels.simd import int64, load, load_scalar, njit, splat, staged, store, store_scalar, void
from effnet_np.kernels.table import CLAMP, SWISH
from effnet_np.kernels.target import BYTES, REGISTERS, WIDTH
from effnet_np.kernels.tiling import Share, band_of, ceil_div, cut, equal_tiles, in_registers, second_pass, share_of

# Positions of a tile, for its width in half registers.
HEIGHTS = {6: 8, 4: 8, 2: 8} if REGISTERS == 32 else {6: 4, 4: 6, 2: 6}
HEIGHT_WIDE, HEIGHT_NARROW = HEIGHTS[6], HEIGHTS[4]
ZERO = np.float32(0)


class StemLayer(NamedTuple):
    """The picture, and the weights of the convolution."""

    image: Address  # (C, H, W); compiled.py puts in that of the picture in hand
    channels: Count
    height: Count
    width: Count
    top: Count  # rows of zeros above the picture, 0 or 1
    left: Count  # columns of zeros beside it, 0 or 1
    row: Bytes  # of a row with its zeros, as it is copied
    weights: Address
    bias: Address


@dataclass(frozen=True, kw_only=True)
class Stem(Step):
    """The stem as a step of its own. A task: a band of rows of a group of channel blocks."""

    stem_layer: StemLayer
    channels: Count  # of the output, (H, W):
    height: Count
    width: Count
    target: Map
    rescale: Real  # takes the factor out that the activation leaves in (activations.py), where block 0 adds the stem's output
    activation: Activation
    stem_row: Function = "stem_row"

    @property
    def flops(self):
        return stem_flops(self.stem_layer, self.channels, self.height * self.width)

    @property
    def floats(self):
        picture = self.stem_layer.channels * self.stem_layer.height * self.stem_layer.width
        return picture + self.channels * self.height * self.width

    @property
    def scratch(self):
        return stem_scratch(self.stem_layer)


# -- planning ----------------------------------------------------------------------------------------------------------


def stem_flops(layer: StemLayer, channels: int, pixels: int) -> int:
    return 2 * 9 * layer.channels * channels * pixels


def stem_scratch(layer: StemLayer) -> int:
    """Bytes for the three padded rows of each colour; reads of a tile may go a little further."""
    return 3 * layer.channels * layer.row + 256


def pack(weights) -> None:
    rows = 9 * weights.config.num_channels  # colour by colour, the 9 numbers of its window
    folded = weights.fold("embeddings.convolution", "embeddings.batchnorm", 1.0, weights.inner)
    pack_matrix(weights, "stem", rows, weights.config.stem_channels, folded, rows=rows)


def stem_layer(net, height: int, width: int) -> StemLayer:
    """For an image of (height, width)."""
    row = ceil_div(width + 2, 16) * 64
    top, _, left, _ = net.config.architecture().stem.zeros(height, width)
    weights, bias = net.weights.at("stem"), net.weights.at(("stem", "bias"))
    return StemLayer(None, net.config.num_channels, height, width, top, left, row, weights, bias)


def plan(net, layer: StemLayer, target: FeatureMap) -> Stem:
    return Stem(
        cut=cut(target.blocks, min(target.height, 16), bands_first=False),
        stem_layer=layer,
        channels=target.channels,
        height=target.height,
        width=target.width,
        target=target.map,
        rescale=net.weights.stem_scale / net.weights.inner,
        activation=net.activation,
    )


# -- the kernel --------------------------------------------------------------------------------------------------------


@staged(void, Shape, int64, Map, StemLayer, Map, Activation)
def _tiles(code, shape, count, rows, layer, target, activation):
    """`count` tiles of `shape.pixels` positions each, from the padded rows; a `rows.plane` holds one colour's three."""
    low, high = code.splat(activation.low), code.splat(activation.high)
    for halves in code.switch(shape.halves, HEIGHTS):
        vectors = halves // 2
        for positions in code.switch(shape.pixels, range(1, HEIGHTS[halves] + 1)):
            late = Late(code, target.plane, vectors) if LATE else None
            with code.loop(count) as number:
                bias = [code.load(layer.bias, v * BYTES) for v in range(vectors)]
                sums = [[code.variable(bias[v]) for v in range(vectors)] for _ in range(positions)]

                first = late.in_steps(layer.channels) if late else code.int(0)
                for comes, times, begin in [(late, first, 0)] * LATE + [(None, layer.channels - first, first)]:
                    with code.loop(times) as turn:
                        channel = turn + begin
                        panel = layer.weights + channel * (9 * vectors * BYTES)
                        for tap in range(9):
                            if comes:
                                comes.come_in([s for row in sums for s in row], tap, 9)
                            window = rows.address + number * (8 * positions) + channel * rows.plane + rows.row * (tap // 3)
                            weights = [code.load(panel, (tap * vectors + v) * BYTES) for v in range(vectors)]
                            for p in range(positions):
                                x = code.load_splat(window, 8 * p + 4 * (tap % 3))
                                for v in range(vectors):
                                    sums[p][v].set(code.fma(x, weights[v], sums[p][v].get()))
                to = target.address + number * (positions * BYTES)
                for mode in code.switch(activation.code, FUSED):
                    for v in range(vectors):
                        for p in range(positions):
                            x = sums[p][v].get()
                            if mode == CLAMP or not late:
                                x = fused(code, mode, x, low, high)
                            code.store(to + target.plane * v, x, p * BYTES)
                    if mode == SWISH and late:
                        late.leave(to, positions)
            if late:
                late.finish()


@njit
def copy_rows(layer, y, target):
    """The three rows of each colour that row `y` of the output looks at, with zeros around them, one after another."""
    for c in range(layer.channels):
        for i in range(3):
            to = target + (c * 3 + i) * layer.row
            if layer.left:
                store_scalar(to, ZERO)
                to += 4
            copied, row = 0, 2 * y + i - layer.top
            if 0 <= row < layer.height:
                source = layer.image + (c * layer.height + row) * layer.width * 4
                for x in range(layer.width // WIDTH):
                    store(to + x * BYTES, load(source + x * BYTES))
                copied = layer.width // WIDTH * WIDTH
                for x in range(copied, layer.width):
                    store_scalar(to + 4 * x, load_scalar(source + 4 * x))
                copied = layer.width
            for x in range(copied, layer.width + 1):
                store_scalar(to + 4 * x, ZERO)


@function(StemLayer, int64, int64, Share, int64, Map, Activation)
def stem_row(layer, y, pixels, share, scratch, target, activation):
    """Row y of the stem's output, for the blocks of channels of this task's share."""
    copy_rows(layer, y, scratch)
    rows = Map(scratch, layer.row, 3 * layer.row)
    weights, bias = layer.weights + share.first_block * (layer.channels * 9 * BYTES), layer.bias + share.first_block * BYTES
    here = StemLayer(layer.image, layer.channels, layer.height, layer.width, layer.top, layer.left, layer.row, weights, bias)
    now = in_registers(activation)
    for size, count, first in equal_tiles(pixels, HEIGHT_WIDE if share.vectors > 2 else HEIGHT_NARROW):
        if count > 0:
            window = Map(rows.address + first * 8, rows.row, rows.plane)
            _tiles(Shape(2 * share.vectors, 1, size), count, window, here, map_at(target, 0, first), now)
    if now.code != activation.code:
        second_pass(activation, target, share.vectors, 1, pixels, splat(ZERO))


@kernel(Stem)
def stem(step, task, scratch):
    share = share_of(step.cut, task)
    first, last = band_of(step.height, step.cut, share.band)
    for y in range(first, last):
        target = map_at(step.target, share.first_block, y * step.width)
        stem_row(step.stem_row, step.stem_layer, y, step.width, share, scratch, target, step.activation)
        if step.rescale != 1:
            for v in range(share.vectors):
                for x in range(step.width):
                    at = target.address + v * target.plane + x * BYTES
                    store(at, load(at) * splat(step.rescale))
