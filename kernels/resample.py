"""The native functions of resize.py, which tells their story: weighted sums of rows, pictures turned, pixels into numbers.

Each goes through its rows in blocks of so many numbers, and the last block begins where it ends with the row: what it makes a
second time is the same. Rows that are shorter than a block go number by number.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from effnet_np.kernels.native import native
from effnet_np.kernels.resize import DIGITS
from effnet_np.kernels.target import WIDTH

SQUARE = 16  # pixels a side of the squares in which a picture is turned
BLOCK = 4 * WIDTH  # numbers of a row that are added at the same time: four registers of sums
I8, I32 = ir.IntType(8), ir.IntType(32)


@intrinsic
def _pointer(typing, address, kind):
    """An address as a pointer to numbers of that type."""
    pointer = types.CPointer(kind.dtype)

    def code(context, builder, _, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64, kind), code


def _at(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder, address, kind):
    return builder.load(_at(builder, address, kind), align=1, typ=kind)


def _store(builder, value, address):
    builder.store(value, _at(builder, address, value.type), align=1)


def _splat(builder, value, count):
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, count), ir.Undefined), value, I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, count), [0] * count))


def _pick(builder, a, b, places):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(places)), places))


# -- sums --------------------------------------------------------------------------------------------------------------


@intrinsic
def _add_block(typing, source, row, taps, weights, target):
    """BLOCK bytes at `target`: the sums of as many bytes in `taps` rows from `source` on, times the int32 `weights`."""

    def code(context, builder, _, arguments):
        source, row, taps, weights, target = arguments
        sums = ir.VectorType(I32, BLOCK)
        total = cgutils.alloca_once(builder, sums)
        builder.store(ir.Constant(sums, [1 << (DIGITS - 1)] * BLOCK), total)  # to round
        with cgutils.for_range(builder, taps) as loop:
            pixels = _load(builder, builder.add(source, builder.mul(loop.index, row)), ir.VectorType(I8, BLOCK))
            weight = _load(builder, builder.add(weights, builder.mul(loop.index, loop.index.type(4))), I32)
            product = builder.mul(builder.zext(pixels, sums), _splat(builder, weight, BLOCK))
            builder.store(builder.add(builder.load(total, typ=sums), product), total)
        whole = builder.ashr(builder.load(total, typ=sums), ir.Constant(sums, [DIGITS] * BLOCK))
        for limit, beyond in ((0, "<"), (255, ">")):
            edge = ir.Constant(sums, [limit] * BLOCK)
            whole = builder.select(builder.icmp_signed(beyond, whole, edge), edge, whole)
        _store(builder, builder.trunc(whole, ir.VectorType(I8, BLOCK)), target)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), code


@njit
def _sum_of_rows(source, numbers, plan, target):
    """`plan`: the address of a row of `resize.weights`: the first of the rows to be added, how many, and their weights."""
    head = carray(_pointer(plan, np.int32), (2,))
    first, taps = source + np.int64(head[0]) * numbers, np.int64(head[1])
    if numbers >= BLOCK:
        begin = np.int64(0)
        while begin < numbers:
            at = min(begin, numbers - BLOCK)
            _add_block(first + at, numbers, taps, plan + 8, target + at)
            begin += BLOCK
    else:
        weights, out = carray(_pointer(plan + 8, np.int32), (taps,)), carray(_pointer(target, np.uint8), (numbers,))
        for i in range(numbers):
            total = 1 << (DIGITS - 1)
            for tap in range(taps):
                total += np.int64(weights[tap]) * carray(_pointer(first + tap * numbers + i, np.uint8), (1,))[0]
            out[i] = min(max(total >> DIGITS, 0), 255)


@native(6)
def resample(source, numbers, target, rows, weights, taps):
    """`weights`: for each row of the target, the first row of the source, how many, and `taps` weights; all int32."""
    for row in range(rows):
        _sum_of_rows(source, numbers, weights + row * 4 * (taps + 2), target + row * numbers)


@native(8)
def resample_to_numbers(source, width, target, rows, weights, taps, tables, row_at):
    """As `resample`, for rows of `width` red, then green, then blue pixels, which become float32 numbers: three planes.

    `tables`: what becomes of each of the 256 values of each of the three. `row_at`: a place for one row.
    """
    for row in range(rows):
        _sum_of_rows(source, 3 * width, weights + row * 4 * (taps + 2), row_at)
        for channel in range(3):
            pixels = carray(_pointer(row_at + channel * width, np.uint8), (width,))
            table = carray(_pointer(tables + channel * 1024, np.float32), (256,))
            out = carray(_pointer(target + 4 * width * (channel * rows + row), np.float32), (width,))
            for x in range(width):
                out[x] = table[pixels[x]]


# -- turning -----------------------------------------------------------------------------------------------------------


def _turned(builder, rows):
    """16 registers of 16 pixels each -> their columns. Each of four rounds pairs rows that are 8, 4, 2, 1 apart."""
    for apart in (8, 4, 2, 1):
        low = [i for i in range(SQUARE) if not i & apart]
        new = list(rows)
        for i in low:
            a, b = rows[i], rows[i + apart]
            stay = [x if not x & apart else SQUARE + x - apart for x in range(SQUARE)]
            move = [x + apart if not x & apart else SQUARE + x for x in range(SQUARE)]
            new[i], new[i + apart] = _pick(builder, a, b, stay), _pick(builder, a, b, move)
        rows = new
    return rows


def _square(builder, source, row, pixel):
    """The columns of a square of pixels, of `pixel` bytes, at an address."""
    rows = []
    for y in range(SQUARE):
        at = builder.add(source, builder.mul(row, row.type(y)))
        if pixel == 4:
            rows.append(_load(builder, at, ir.VectorType(I32, SQUARE)))
        else:
            packed = _load(builder, at, ir.VectorType(I8, 3 * SQUARE))
            places = [3 * (i // 4) + min(i % 4, 2) for i in range(4 * SQUARE)]
            rows.append(builder.bitcast(_pick(builder, packed, packed, places), ir.VectorType(I32, SQUARE)))
    return _turned(builder, rows)


def _square_turned(pixel):
    @intrinsic
    def turned(typing, source, row, target, column):
        """A square of pixels of three bytes from one of `pixel` bytes; `column`: bytes from one of its columns to the next."""

        def code(context, builder, _, arguments):
            source, row, target, column = arguments
            for x, pixels in enumerate(_square(builder, source, row, pixel)):
                every = builder.bitcast(pixels, ir.VectorType(I8, 4 * SQUARE))
                packed = _pick(builder, every, every, [4 * (i // 3) + i % 3 for i in range(3 * SQUARE)])
                _store(builder, packed, builder.add(target, builder.mul(column, column.type(x))))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), code

    return turned


_square_of_3, _square_of_4 = _square_turned(3), _square_turned(4)


@intrinsic
def _square_to_planes(typing, source, row, target, column, plane):
    """A square of pixels of three bytes, turned; each column's reds, and `plane` bytes further on its greens, its blues."""

    def code(context, builder, _, arguments):
        source, row, target, column, plane = arguments
        for x, pixels in enumerate(_square(builder, source, row, 3)):
            for channel in range(3):
                at = builder.add(
                    target, builder.add(builder.mul(column, column.type(x)), builder.mul(plane, plane.type(channel)))
                )
                shift = ir.Constant(pixels.type, [8 * channel] * SQUARE)
                _store(builder, builder.trunc(builder.lshr(pixels, shift), ir.VectorType(I8, SQUARE)), at)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), code


@njit
def _turn_singly(source, row, pixel, height, width, target, column, step, plane):
    """Pixel by pixel; in the target `step` bytes are from a pixel to the one below it, `plane` from a channel to the next."""
    for y in range(height):
        for x in range(width):
            for channel in range(3):
                value = carray(_pointer(source + y * row + x * pixel + channel, np.uint8), (1,))[0]
                carray(_pointer(target + x * column + y * step + channel * plane, np.uint8), (1,))[0] = value


@native(6)
def turn(source, row, pixel, target, height, width):
    """(height, width) pixels of `pixel` bytes, 3 or 4, `row` bytes from a row to the next -> (width, height), of 3 bytes."""
    column = 3 * height
    if height < SQUARE or width < SQUARE:
        _turn_singly(source, row, pixel, height, width, target, column, 3, 1)
        return
    for top in range(0, height, SQUARE):
        y = min(top, height - SQUARE)
        for left in range(0, width, SQUARE):
            x = min(left, width - SQUARE)
            at, to = source + y * row + x * pixel, target + x * column + 3 * y
            if pixel == 4:
                _square_of_4(at, row, to, column)
            else:
                _square_of_3(at, row, to, column)


@native(4)
def turn_to_planes(source, target, height, width):
    """(height, width) pixels of three bytes -> `width` rows of `height` reds, then the greens, then the blues."""
    row, column = 3 * width, 3 * height
    if height < SQUARE or width < SQUARE:
        _turn_singly(source, row, 3, height, width, target, column, 1, height)
        return
    for top in range(0, height, SQUARE):
        y = min(top, height - SQUARE)
        for left in range(0, width, SQUARE):
            x = min(left, width - SQUARE)
            _square_to_planes(source + y * row + 3 * x, row, target + x * column + y, column, height)
