"""Fused-MBConv's 3 x 3 convolution of stride 1 with a quarter of its multiplications: Winograd's F(4 x 4, 3 x 3).

Plain meaning: that of fused.py. Four outputs in a row look at six inputs; as a polynomial's values at six points they cost six
multiplications, not twelve (Winograd 1980; Lavin and Gray, arXiv 1509.09308). In two dimensions, for a tile of 4 x 4 outputs:

    V = Bt d B      # the 6 x 6 inputs of each channel, transformed
    U = G g Gt      # the 3 x 3 weights, transformed while packing, in float64
    M = U V         # for each of the 36 places a matrix product of its own, over the channels, with the tiles as positions
    y = At M A      # the 4 x 4 outputs

36 multiplications for 16 outputs where the direct way has 144. The matrices come from the points 0, +-p, +-q and infinity. The
usual 1 and 2 lose a digit: the largest error is 5e-6 of the largest output. 3/4 and 3/2 lose half of one, 1.3e-6 (48 channels,
random numbers; the direct way 2e-7), and every number of the matrices but G's is exact.

How it is laid out. A task transforms the inputs of some rows of tiles, once for all of its output channels, to its scratch;
then, for each group of output channels, does the 36 products (product.py) and transforms their results, while they are
in the L2. Bias and activation are applied on the way out, in registers. Tiles that reach over the map's edges are read through
a copy with zeros, and written through a copy of which the map takes its part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effnet_np.kernels.activations import FUSED, fused
from effnet_np.kernels.arena import FeatureMap
from effnet_np.kernels.bands import group_sizes, tiled_cut
from effnet_np.kernels.depthwise import Window, window_of, zero
from effnet_np.kernels.fused import finish_block, folded_taps
from effnet_np.kernels.kernel import function, kernel
from effnet_np.kernels.product import Epilogue, Panel, Shape, map_at, pack_matrix, panel_at, product
from effnet_np.kernels.project import fills_half
from effnet_np.kernels.record import Activation, Address, Count, Function, Map, Real, Step
from effnet_np.kernels.simd import int64, load, load_int, njit, splat, staged, store, store_int, void
from effnet_np.kernels.target import BYTES, UNIT, VECTORS, WIDTH
from effnet_np.kernels.tiling import (
    IDENTITY,
    Ahead,
    Share,
    band_of,
    blocks_of,
    ceil_div,
    group_start,
    in_registers,
    second_pass,
    share_of,
    units_of,
)

TILE, SEEN = 4, 6  # outputs of a tile, and the inputs that they look at, in each direction
PLACES = SEEN * SEEN
P, Q = 3 / 4, 3 / 2  # the points
INPUT_CYCLES, OUTPUT_CYCLES = 110, 220  # to transform a register of a tile's inputs, and of its outputs
TILES_BYTES = 512 * 1024  # of transformed inputs and products: well inside of an L2 of 1 MB, beside the weights
ZERO = np.float32(0)


@dataclass(frozen=True, kw_only=True)
class Winograd(Step):
    """A 3 x 3 convolution of stride 1. A task: some rows of tiles for some groups of channel blocks."""

    inputs: Count
    outputs: Count
    window: Window
    source: Map
    matrix: Panel  # of 36 * inputs rows, place after place
    units: Count  # of UNIT input channels
    groups: Count  # of output channels; the cut's blocks are these
    columns: Count  # of tiles, in a row of them
    rows: Count  # of tiles
    chunk: Count  # rows of tiles that are made at a time
    half: Count  # 1 where the last block of outputs fills at most half a register
    target: Map
    whole: Count  # as in fused.py
    residual: Address
    rescale: Real
    activation: Activation
    product: Function = "product"
    tiles_in: Function = "tiles_in"
    tiles_out: Function = "tiles_out"

    @property
    def label(self):
        return "winograd"

    @property
    def flops(self):
        """Of the convolution that it is, not of the way it is done."""
        return 2 * 9 * self.inputs * self.outputs * self.window.out_height * self.window.out_width

    @property
    def floats(self):
        pixels = self.window.out_height * self.window.out_width
        return self.inputs * (pixels + 9 * self.outputs) + self.outputs * pixels * (2 if self.residual else 1)

    @property
    def scratch(self):
        tiles = self.chunk * self.columns
        transformed = place_bytes(blocks_of(self.inputs), tiles) + place_bytes(VECTORS, tiles)
        return zeros_bytes(self.window) + edge_bytes(self.columns) + 128 + PLACES * transformed


# -- planning ----------------------------------------------------------------------------------------------------------


@njit
def place_bytes(blocks, tiles):
    """Of one place's numbers for so many tiles; an odd number of lines, so that 36 of them do not share a line of the L1."""
    return (blocks * tiles | 1) * BYTES


@njit
def zeros_bytes(window):
    """Of zeros that stand for a row of the map, and for a bias."""
    return max(window.width, VECTORS) * BYTES


@njit
def edge_bytes(columns):
    """Of a row of tiles that reach over the edge: their outputs (or one tile's inputs)."""
    return max(TILE * columns * TILE, PLACES) * BYTES


def one_way(size: int) -> int:
    """Tiles that cover so many outputs."""
    return ceil_div(size, TILE)


def pays(spec, source: FeatureMap, target: FeatureMap) -> bool:
    """Whether it takes fewer cycles than the direct way, for this map: not where most of its only tiles are over the edge."""
    if (spec.kernel_size, spec.stride) != (3, 1):
        return False
    inputs = units_of(source.channels) * UNIT
    tiles = one_way(target.height) * one_way(target.width)
    cycles = tiles * (target.blocks * (PLACES * inputs // 2 + OUTPUT_CYCLES) + source.blocks * INPUT_CYCLES)
    return cycles < target.pixels * target.blocks * (9 * inputs // 2 + 9)


def weight_matrix() -> np.ndarray:
    """G, (6, 3): a row for each point, the powers of it over the product of its distances from the others; infinity last."""
    points = np.array([0, P, -P, Q, -Q])
    distances = [np.prod([a - b for b in points if b != a]) for a in points]
    return np.array([[a**j / n for j in range(3)] for a, n in zip(points, distances, strict=True)] + [[0, 0, 1]])


def pack(weights, spec) -> None:
    """Beside fused.py's: which of the two a plan takes depends on the map's size."""
    if (spec.kernel_size, spec.stride) != (3, 1):
        return
    outputs, rows, folded = folded_taps(weights, spec)

    def places():
        weight, bias = folded()  # (O, 3, 3, rows) -> (O, 6, 6, rows)
        g = weight_matrix()
        return np.einsum("ai,oijc,bj->oabc", g, weight, g, optimize=True), bias

    pack_matrix(weights, (spec.index, "winograd"), PLACES * rows, outputs, places)


def plan(net, spec, source: FeatureMap, target: FeatureMap, residual: FeatureMap | None) -> Winograd:
    """residual: the map to be added, where this is the whole block, or None."""
    units, rows, columns = units_of(source.channels), one_way(target.height), one_way(target.width)
    block_cycles = columns * (PLACES * units * UNIT // 2 + OUTPUT_CYCLES)
    cut = tiled_cut(tuple(group_sizes(target.blocks)), rows, columns * source.blocks * INPUT_CYCLES, block_cycles)
    row_bytes = PLACES * columns * (source.blocks + min(VECTORS, target.blocks)) * BYTES
    name = (spec.index, "winograd")
    return Winograd(
        cut=cut,
        inputs=source.channels,
        outputs=target.channels,
        window=window_of(spec, source, target),
        source=source.map,
        matrix=Panel(net.weights.at(name), net.weights.at((name, "bias")), PLACES * units),
        units=units,
        groups=ceil_div(target.blocks, VECTORS),
        columns=columns,
        rows=rows,
        chunk=max(1, min(ceil_div(rows, cut.bands), TILES_BYTES // row_bytes)),
        half=int(fills_half(target.channels)),
        target=target.map,
        whole=int(spec.expand_ratio == 1),
        residual=residual.map.address if residual else None,
        rescale=1.0 / net.weights.inner,
        activation=net.activation,
    )


# -- the transforms ----------------------------------------------------------------------------------------------------


def values(code, d):
    """Bt d: six inputs as values at the six points."""
    p, q = P * P, Q * Q
    even_p, odd_p = code.fma(d[2], -q, d[4]), code.fma(d[1], -q, d[3])
    even_q, odd_q = code.fma(d[2], -p, d[4]), code.fma(d[1], -p, d[3])
    at_0 = code.fma(d[0], p * q, code.fma(d[2], -(p + q), d[4]))
    infinity = code.fma(d[1], p * q, code.fma(d[3], -(p + q), d[5]))
    signs = [code.fma(odd_p, P, even_p), code.fma(odd_p, -P, even_p), code.fma(odd_q, Q, even_q), code.fma(odd_q, -Q, even_q)]
    return [at_0, *signs, infinity]


def outputs_of(code, m):
    """At m: four outputs from products at the six points."""
    even_p, odd_p, even_q, odd_q = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    first, third = m[0] + (even_p + even_q), code.fma(even_p, P**2, even_q * Q**2)
    return [first, code.fma(odd_p, P, odd_q * Q), third, code.fma(odd_p, P**3, code.fma(odd_q, Q**3, m[5]))]


def both_ways(code, transform, rows):
    """The same transform of the columns and then of the rows of a matrix of registers."""
    columns = [transform(code, list(column)) for column in zip(*rows, strict=True)]
    return [transform(code, list(row)) for row in zip(*columns, strict=True)]


@staged(void, int64, int64, int64, int64, int64)
def _tiles_in(code, count, rows, moved, target, place):
    starts = [code.load_int(rows, 8 * i) + moved for i in range(SEEN)]
    with code.loop(count) as number:
        right = number * (TILE * BYTES)
        seen = [[code.load(start + right, x * BYTES) for x in range(SEEN)] for start in starts]
        to = target + number * BYTES
        for i, line in enumerate(both_ways(code, values, seen)):
            for j, value in enumerate(line):
                code.store(to + place * (SEEN * i + j), value)


@function(int64, int64, int64, int64, int64)
def tiles_in(count, rows, moved, target, place):
    """`count` tiles beside each other, from six rows of the map (a list of addresses, all to be `moved`), to 36 places."""
    _tiles_in(count, rows, moved, target, place)


@staged(void, int64, int64, int64, int64, Map, Activation)
def _tiles_out(code, count, source, place, bias_at, target, activation):
    low, high, bias = code.splat(activation.low), code.splat(activation.high), code.load(bias_at)
    for mode in code.switch(activation.code, FUSED):
        with code.loop(count) as number:
            from_, to = source + number * BYTES, target.address + number * (TILE * BYTES)
            products = [[code.load(from_ + place * (SEEN * i + j)) for j in range(SEEN)] for i in range(SEEN)]
            for i, line in enumerate(both_ways(code, outputs_of, products)):
                for j, y in enumerate(line):
                    code.store(to + target.row * i, fused(code, mode, y + bias, low, high), j * BYTES)


@function(int64, int64, int64, int64, Map, Activation)
def tiles_out(count, source, place, bias_at, target, activation):
    """`count` tiles beside each other, from 36 places to four rows of the target, with bias and activation."""
    _tiles_out(count, source, place, bias_at, target, in_registers(activation))


# -- the kernel --------------------------------------------------------------------------------------------------------


@njit
def transform_row(step, row, block, zeros, edge, lists, target, place):
    """The inputs of a row of tiles, for one block of channels. `zeros`: a row of them; `edge`, `lists`: room to work in."""
    window, source = step.window, step.source
    for i in range(SEEN):
        y = row * TILE - window.top + i
        inside = 0 <= y < window.height
        store_int(lists + 8 * i, source.address + block * source.plane + y * source.row if inside else zeros)
        store_int(lists + 64 + 8 * i, edge + i * SEEN * BYTES)
    begin = min(step.columns, ceil_div(window.left, TILE))  # of the tiles that see no column beside the map
    end = max(begin, min(step.columns, (window.width + window.left - SEEN) // TILE + 1))
    if end > begin:
        moved = (begin * TILE - window.left) * BYTES
        tiles_in(step.tiles_in, end - begin, lists, moved, target + begin * BYTES, place)
    for tile in range(step.columns):
        if tile < begin or tile >= end:
            for i in range(SEEN):
                for j in range(SEEN):
                    x = tile * TILE - window.left + j
                    value = splat(ZERO)
                    if 0 <= x < window.width:
                        value = load(load_int(lists + 8 * i) + x * BYTES)
                    store(edge + (i * SEEN + j) * BYTES, value)
            tiles_in(step.tiles_in, 1, lists + 64, 0, target + tile * BYTES, place)


@njit
def transform_back(step, row, block, edge, source, place):
    """The outputs of a row of tiles, for one block of channels."""
    window, bias = step.window, step.matrix.bias + block * BYTES
    height = min(TILE, window.out_height - row * TILE)
    target = map_at(step.target, block, row * TILE * window.out_width)
    whole = window.out_width // TILE if height == TILE else 0  # tiles that lie inside of the map
    if whole:
        tiles_out(step.tiles_out, whole, source, place, bias, target, step.activation)
    rest = step.columns - whole
    if rest:
        row_bytes = rest * TILE * BYTES
        tiles_out(step.tiles_out, rest, source + whole * BYTES, place, bias, Map(edge, row_bytes, 0), step.activation)
        for i in range(height):
            for x in range(whole * TILE, window.out_width):
                value = load(edge + i * row_bytes + (x - whole * TILE) * BYTES)
                store(target.address + i * target.row + x * BYTES, value)


@kernel(Winograd)
def winograd(step, task, scratch):
    part, window = share_of(step.cut, task), step.window  # in the cut's words, of groups
    lists, zeros = scratch, scratch + 128
    edge = zeros + zeros_bytes(window)
    seen, input_blocks = edge + edge_bytes(step.columns), ceil_div(step.units * UNIT, WIDTH)
    zero(zeros, zeros_bytes(window) // BYTES)
    row, end = band_of(step.rows, step.cut, part.band)
    while row < end:
        rows = min(step.chunk, end - row)
        tiles = rows * step.columns
        place = place_bytes(input_blocks, tiles)
        made, made_place = seen + PLACES * place, place_bytes(VECTORS, tiles)
        for block in range(input_blocks):
            for r in range(rows):
                target = seen + (block * tiles + r * step.columns) * BYTES
                transform_row(step, row + r, block, zeros, edge, lists, target, place)
        for group in range(part.first_block, part.first_block + part.vectors):
            first = group_start(group, step.groups, blocks_in(step))
            vectors = group_start(group + 1, step.groups, blocks_in(step)) - first
            halves = 2 * vectors - (step.half if group == step.groups - 1 else 0)
            matrix = panel_at(step.matrix, first)
            size = step.units * UNIT * vectors * BYTES  # of a place's weights
            for i in range(PLACES):
                weights = matrix.weights + i * size
                source, target = Map(seen + i * place, 0, tiles * BYTES), Map(made + i * made_place, 0, tiles * BYTES)
                ahead = Ahead(weights + size, weights + 2 * size)
                product(
                    step.product,
                    Shape(halves, 1, tiles),
                    source,
                    Panel(weights, zeros, step.units),
                    target,
                    ahead,
                    Epilogue(0, IDENTITY),
                )
            for v in range(vectors):
                for r in range(rows):
                    at = made + (v * tiles + r * step.columns) * BYTES
                    transform_back(step, row + r, first + v, edge, at, made_place)
            y = row * TILE
            height = min(window.out_height, (row + rows) * TILE) - y
            share = Share(group, first, vectors, part.band)
            if in_registers(step.activation).code != step.activation.code:
                target = map_at(step.target, first, y * window.out_width)
                second_pass(step.activation, target, vectors, height, window.out_width, splat(ZERO))
            if step.whole:
                finish_block(step, share, y * window.out_width, height * window.out_width)
        row += rows


@njit
def blocks_in(step):
    """Blocks of output channels."""
    return ceil_div(step.outputs, WIDTH)
