"""The weight gradient of a 1x1 convolution: a matrix product over all positions.

Plain meaning, for dY (M positions, O channels) and X (M, C):

    dW += dY.T @ X                                   # (O, M) @ (M, C) -> (O, C)

Both maps lie in blocks of channels, and so nothing has to be transposed: a tile is some outputs (rows) times up to 3 registers
of inputs. Each position loads its registers of X once and multiplies them with one number of dY a row. The tile's sums stay in
registers over all positions of the call, and are added to what lies at the target.
"""

from __future__ import annotations

from typing import NamedTuple

from effnet_np.kernels.kernel import function
from effnet_np.kernels.record import Bytes, Count, Map
from effnet_np.kernels.simd import int64, njit, staged, void
from effnet_np.kernels.target import BYTES, REGISTERS, VECTORS, WIDTH
from effnet_np.kernels.tiling import ceil_div, group_start

ROWS = 8 if REGISTERS == 32 and WIDTH >= 8 else 4


class Outer(NamedTuple):
    """`rows` channels of the first map times `vectors` blocks of the second, over `pixels` positions."""

    rows: Count
    vectors: Count
    pixels: Count
    row: Bytes  # of the target, from one row to the next


@staged(void, Outer, int64, Map, int64)
def _tile(code, shape, a, b, target):
    for vectors in code.switch(shape.vectors, range(1, VECTORS + 1)):
        places = [target + shape.row * r for r in range(ROWS)]
        sums = [[code.variable(code.load(place, v * BYTES)) for v in range(vectors)] for place in places]
        with code.loop(shape.pixels) as p:
            x = [code.load(b.address + p * BYTES + b.plane * v) for v in range(vectors)]
            for r in range(ROWS):
                y = code.load_splat(a + p * BYTES, 4 * r)
                for v in range(vectors):
                    sums[r][v].set(code.fma(y, x[v], sums[r][v].get()))
        for place, row in zip(places, sums, strict=True):
            for v in range(vectors):
                code.store(place, row[v].get(), v * BYTES)


@function(Outer, Map, Map, int64)
def outer(shape, a, b, target):
    """target (rows, vectors) += a.T @ b. Rows are rounded up to ROWS, for which there has to be room."""
    groups = ceil_div(shape.vectors, VECTORS)
    for group in range(groups):
        first = group_start(group, groups, shape.vectors)
        count = group_start(group + 1, groups, shape.vectors) - first
        here = Map(b.address + first * b.plane, b.row, b.plane)
        for tile in range(ceil_div(shape.rows, ROWS)):
            row = tile * ROWS
            source = a.address + (row // WIDTH) * a.plane + (row % WIDTH) * 4
            _tile(Outer(ROWS, count, shape.pixels, shape.row), source, here, target + row * shape.row + first * BYTES)


@njit
def rounded(rows):
    """Rows for which a target of `outer` has room."""
    return ceil_div(rows, ROWS) * ROWS
