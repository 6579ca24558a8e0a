"""1x1 convolutions: the matrix product, which is 88% of B0's multiplications and 95% of B7's.

Plain meaning, for the positions of a map as rows (M), the input channels (K) and the output channels (N):

    C = activation(A @ B + bias)            # (M, K) @ (K, N) -> (M, N), then the residual or the activation

Expansion, projection, head and classifier are this product, each with what surrounds it, in files of their own.

How it became fast. `python -m effnet_np.kernels.versions` runs every step of it; it printed, for one core of an AMD EPYC
(Zen 5, AVX-512, a busy machine), GFLOP/s and the share of the core's peak, which is multiply-adds in registers:

    M x K x N of                          784 x 40 x 240    49 x 1152 x 320   3136 x 144 x 24
    v0 loops                                 6.4   (2%)         2.8   (1%)         6.2   (2%)
    v1 a tile of sums in registers         221.2  (81%)       230.7  (85%)       194.5  (71%)
    v2 tiles as equal as can be            225.3  (83%)       247.4  (91%)       195.7  (72%)
    v3 channels in blocks                  219.1  (81%)       250.6  (92%)       182.0  (67%)
    v4 half registers                      222.7  (82%)       248.9  (91%)       186.4  (68%)
    v5 swish in registers                  234.0  (86%)       258.0  (95%)       187.2  (69%)
    v6 the next weights fetched ahead      234.1  (86%)       263.2  (97%)       185.0  (68%)
    NumPy (OpenBLAS), 512 x 512 x 512      126.2  (46%)

1. *A tile of sums stays in registers* over all of K. A tile of 8 positions times 3 registers of 16 channels is 24 sums;
   each step of k loads 3 registers of weights and 8 numbers, and does 24 multiply-adds with them. Those are independent,
   so their latency of 4 cycles does not show. Written as "staged" Python (see simd.py), since no compiler finds this by
   itself.
2. *Tiles as equal as can be* (tiling.py). 14 positions are 7 + 7, not 8 + 6, and 49 are seven times seven; every height from
   1 to 8 (12 for narrow tiles) is compiled. With one height and a slow path for the rest, 7x7 maps lose.
3. *Channels in blocks.* A map is stored as planes of (H, W, 16), one for each 16 channels. The numbers that a tile needs
   next to each other lie next to each other, 64 bytes a position, at distances known when the tile is compiled, whatever
   the number of channels. This product alone gains nothing by it, and on this core loses up to 7%. It is for half registers,
   and for the convolutions that look at neighbours, which take 16 channels of a position in one load.
4. *Half registers.* 24, 40 and 56 channels fill their last register half. A tile whose last register is half as wide
   takes half the time there.
5. *The epilogue in registers.* Bias, swish or the residual are applied before anything is stored, for few cycles a register
   of sums (activations.py), which overlap with the next tile's multiplications.
6. *The next task's weights are fetched meanwhile.* B0 has 21 MB of weights and a core's L2 holds 1 MB, so each panel comes
   from further away, in a burst that no hardware prefetcher knows of in time. Each pair of k steps asks for one line of the
   weights that this thread will probably need next: B0's 7x7 blocks got 8% faster (measured on a Zen 4). The next tile's
   inputs are asked for in the same way: 0.5% of B4.
7. *Late swish*, where there are 16 registers (AVX2). A swish is a chain of 12 instructions that wait for each other, some 45
   cycles. Behind a tile of 12 sums there is nothing else to do: what the core can look ahead is full of chains. So a tile is
   stored without it. In each step of 8 inputs of the next tile two of its positions get it, one register at a time, loaded
   and stored again between the multiply-adds of two inputs (class Late; the stem uses it, too); an odd position, and what the
   steps have no room for, before them. LLVM has to be kept from mixing the chains, or it spills sums (keep_apart in simd.py).
   `python tests/compare_kernels.py OLD --steps` beside the code without it and without pairs (depthwise.py), a Zen 5
   running AVX2 code, one thread: expansion with depthwise convolution takes 0.92 of the time in B0 and in B4, the stem with its
   convolution 0.88 and 0.77. With AVX-512 it made no difference: a tile of 24 sums keeps the core busy for longer.

What did not help: asking for one's own weights 1, 3 or 6 KB ahead (no difference: the burst is more than the memory can
give in that time, so it has to begin earlier).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from effnet_np.kernels.activations import FUSED, fused, swish
from effnet_np.kernels.kernel import function
from effnet_np.kernels.record import Activation, Address, Count, Map
from effnet_np.kernels.simd import int64, keep_apart, njit, splat, staged
from effnet_np.kernels.table import CLAMP, SWISH
from effnet_np.kernels.target import BYTES, HALVES, REGISTERS, TRIPLE, UNIT, WIDTH
from effnet_np.kernels.tiling import Ahead, blocks_of, equal_tiles, group_edges, in_registers, second_pass, units_of

# The widths of a tile, in half registers, and how many positions' sums fit in the registers beside the weights.
HEIGHTS = {6: 8, 4: 12, 2: 12} if REGISTERS == 32 else {6: 4, 4: 6, 2: 6}
if HALVES:
    HEIGHTS |= {5: 8, 3: 12}
HEIGHT_WIDE, HEIGHT_NARROW = HEIGHTS[6], HEIGHTS[4]
# Whether swish comes late (7. above). With 32 registers the tiles are longer, and hide it as it is.
LATE = REGISTERS == 16 and not TRIPLE.startswith("i686")  # which has only 8 of them
RESIDUAL = -1  # in a tile, instead of an activation's number: add the residual
ZERO = np.float32(0)

# -- what the product takes --------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """What to make: so many rows of so many positions."""

    halves: Count  # half registers of output channels
    rows: Count
    pixels: Count


class Panel(NamedTuple):
    """Packed weights and bias of a matrix, or of some groups of its outputs: see `pack`."""

    weights: Address
    bias: Address
    units: Count  # of UNIT input channels


class Epilogue(NamedTuple):
    """What happens to the sums: a residual is added, if there is one; otherwise the activation is applied."""

    residual: Address  # the first number of a map whose planes are as far apart as the target's
    activation: Activation


@njit
def panel_at(panel, block):
    """The panel of the group that begins with that block."""
    return Panel(panel.weights + block * (panel.units * UNIT * BYTES), panel.bias + block * BYTES, panel.units)


@njit
def map_at(whole, block, pixel):
    """A map without its first blocks and positions."""
    return Map(whole.address + block * whole.plane + pixel * BYTES, whole.row, whole.plane)


@njit
def vector(address, block):
    """A vector of channels, from a block on, as a map of one position."""
    return Map(address + block * BYTES, 0, BYTES)


# -- packing -----------------------------------------------------------------------------------------------------------


def pack(weight: np.ndarray, rows: int, edges: list[int]) -> np.ndarray:
    """(outputs, inputs) -> panels: for each group of blocks between two edges, input by input, the weights of its outputs.

    A tile so reads them from front to back. Inputs up to `rows` and outputs that fill the last block have weights of zero.
    """
    outputs, inputs = weight.shape
    packed = np.zeros(rows * edges[-1] * WIDTH, np.float32)
    for first, last in zip(edges, edges[1:], strict=False):
        panel = packed[rows * first * WIDTH : rows * last * WIDTH].reshape(rows, (last - first) * WIDTH)
        part = weight[first * WIDTH : last * WIDTH]
        panel[:inputs, : len(part)] = part.T
    return packed


def pack_matrix(weights, name, inputs: int, outputs: int, folded, rows: int | None = None, edges: list[int] | None = None):
    """Adds a matrix to the packed weights (pack.py). `folded()` gives its weight, of any shape (outputs, ...), and its bias."""
    rows, blocks = rows or units_of(inputs) * UNIT, blocks_of(outputs)
    edges = edges or group_edges(blocks)

    def make():
        weight, bias = folded()
        return pack(weight.reshape(outputs, inputs), rows, edges), bias

    weights.add(name, rows * blocks * WIDTH, blocks * WIDTH, make)


def panel(weights, name, inputs: int) -> Panel:
    """While planning: where that matrix lies."""
    return Panel(weights.at(name), weights.at((name, "bias")), units_of(inputs))


# -- the kernel --------------------------------------------------------------------------------------------------------


@staged(int64, Shape, int64, Map, Panel, Map, Epilogue, Ahead)
def _tiles(code, shape, count, source, panel, target, epilogue, ahead):
    """`shape.rows` times `count` tiles of `shape.pixels` positions each. Gives how far `ahead` has got."""
    coming = code.variable(ahead.address)
    activation = epilogue.activation
    limits = [[limit, limit.low_half()] for limit in (code.splat(activation.low), code.splat(activation.high))]
    for halves in code.switch(shape.halves, HEIGHTS):
        lanes = [WIDTH] * (halves // 2) + [WIDTH // 2] * (halves % 2)
        for positions in code.switch(shape.pixels, range(1, HEIGHTS[halves] + 1)):
            late = Late(code, target.plane, len(lanes)) if LATE else None
            with code.loop(shape.rows) as y, code.loop(count) as number:
                moved = number * (positions * BYTES)
                from_, to = source.address + moved + y * source.row, target.address + moved + y * target.row
                sums = start_sums(code, panel, positions, lanes)
                here, units = code.variable(panel.weights), panel.units
                if late:
                    first = late.in_steps(units)
                    add_product(code, sums, source.plane, first, lanes, from_, here, coming, ahead.end, late)
                    from_, units = from_ + first * source.plane, units - first
                add_product(code, sums, source.plane, units, lanes, from_, here, coming, ahead.end)
                for mode in code.switch(activation.code, (*FUSED, RESIDUAL)):
                    for v in range(len(lanes)):
                        half = lanes[v] < WIDTH
                        plane, other = to + v * target.plane, epilogue.residual + moved + v * target.plane
                        for i in range(positions):
                            x = sums[i][v].get()
                            if mode == RESIDUAL:
                                x = x + code.load(other, i * BYTES, lanes[v])
                            elif mode == CLAMP or not late:
                                x = fused(code, mode, x, limits[0][half], limits[1][half])
                            code.store(plane, x.widened() if half else x, i * BYTES)
                    if mode == SWISH and late:
                        late.leave(to, positions)
            if late:
                late.finish()
    return coming.get()


class Late:
    """Writes the code for a tile that is stored without its swish, and gets it while the next tile's sums are made.

    In one step of the next tile's loop over the inputs, two positions "come in": their registers, one for each of `vectors`
    channel blocks, are loaded, go through swish, and are stored again.
    """

    def __init__(self, code, plane, vectors):
        self.code, self.plane, self.vectors = code, plane, vectors
        self.address, self.left = code.variable(code.int(0)), code.variable(code.int(0))  # of the next position; how many

    def leave(self, address, positions):
        """That tile is late now."""
        self.address.set(address)
        self.left.set(self.code.int(positions))

    def finish(self, but=0):
        """Applies swish to all positions but so many, without a next tile."""
        with self.code.loop(self.left.get() - but):
            for v in range(self.vectors):
                self._swish(v)
        self.left.set(self.code.int(0))

    def in_steps(self, most):
        """How many of the next `most` steps have positions that come in; what they have no room for is done now."""
        steps = self.code.smaller(most, self.left.get() >> 1)
        self.finish(steps * 2)
        return steps

    def come_in(self, sums, part, parts):
        """In part `part` of `parts` of a step: the registers whose turn it is there."""
        for r in range(2 * self.vectors):
            if r * parts // (2 * self.vectors) == part:
                keep_apart(self.code, sums)
                self._swish(r % self.vectors)
                keep_apart(self.code, sums)

    def _swish(self, v):
        at = self.address.get() + v * self.plane
        self.code.store(at, swish(self.code, self.code.load(at)))
        if v == self.vectors - 1:
            self.address.set(self.address.get() + BYTES)


def start_sums(code, panel, positions, lanes):
    """sums[position][register] = bias"""
    biases = [code.load(panel.bias, v * BYTES, lanes[v]) for v in range(len(lanes))]
    return [[code.variable(bias) for bias in biases] for _ in range(positions)]


def add_product(code, sums, plane, units, lanes, source, here, coming, end, late=None):
    """Adds the product over `units` of input channels to a tile's sums: the inner loop of the whole library.

    `here` is where the weights are, and then where they end.
    """
    positions, vectors = len(sums), len(lanes)
    with code.loop(units) as unit:  # of UNIT input channels
        if WIDTH > UNIT:
            a = source + (unit >> 1) * plane + (unit & 1) * (4 * UNIT)
            # The next tile's inputs: the first half of their lines in the first half of a block, the rest in the second.
            following = a + positions * BYTES + (unit & 1) * (positions // 2 * BYTES - 4 * UNIT)
            for i in range((positions + 1) // 2):
                code.prefetch(following, i * BYTES, level=1)
        else:
            a = source + unit * plane
        b, line = here.get(), coming.get()
        coming.set(code.smaller(line + UNIT // 2 * 64, end))
        for k in range(UNIT):
            if late:
                late.come_in([s for row in sums for s in row], k, UNIT)
            if k % 2:
                code.prefetch(line, k // 2 * 64)
            weights = [code.load(b, (k * vectors + v) * BYTES, lanes[v]) for v in range(vectors)]
            for i in range(positions):
                x = code.load_splat(a, i * BYTES + 4 * k)
                for v in range(vectors):
                    factor = x if lanes[v] == WIDTH else x.low_half()
                    sums[i][v].set(code.fma(factor, weights[v], sums[i][v].get()))
        here.set(b + UNIT * vectors * BYTES)


@function(Shape, Map, Panel, Map, Ahead, Epilogue)
def product(shape, source, panel, target, ahead, epilogue):
    """target = activation(source @ panel + bias), or the residual in the activation's place."""
    activation = in_registers(epilogue.activation)
    code = RESIDUAL if epilogue.residual != 0 else activation.code
    now = Epilogue(epilogue.residual, Activation(code, activation.low, activation.high))
    line = ahead.address
    for size, count, first in equal_tiles(shape.pixels, HEIGHT_WIDE if shape.halves > 4 else HEIGHT_NARROW):
        if count > 0:
            tile = Shape(shape.halves, shape.rows, size)
            a, c = map_at(source, 0, first), map_at(target, 0, first)
            here = Epilogue(now.residual + first * BYTES, now.activation)
            line = _tiles(tile, count, a, panel, c, here, Ahead(line, ahead.end))
    if code != RESIDUAL and epilogue.activation.code != activation.code:
        second_pass(epilogue.activation, target, (shape.halves + 1) // 2, shape.rows, shape.pixels, splat(ZERO))
