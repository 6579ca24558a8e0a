"""The two native functions of resize.py, which tells their story: weighted sums of rows, and a picture turned."""

from __future__ import annotations

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from effnet_np.kernels.native import native
from effnet_np.kernels.resize import DIGITS

BLOCK = 16  # pixels a side of the squares in which a picture is turned


@intrinsic
def _pointer(typing, address, kind):
    """An address as a pointer to numbers of that type."""
    pointer = types.CPointer(kind.dtype)

    def code(context, builder, _, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64, kind), code


@native(7)
def resample(source, numbers, target, rows, weights, taps, sums):
    """`weights`: for each row of the target, the first row of the source, how many, and `taps` weights; all int32."""
    plan = carray(_pointer(weights, np.int32), (rows, taps + 2))
    total = carray(_pointer(sums, np.int32), (numbers,))
    for row in range(rows):
        for i in range(numbers):
            total[i] = 1 << (DIGITS - 1)  # to round
        for tap in range(plan[row, 1]):
            line = carray(_pointer(source + (plan[row, 0] + tap) * numbers, np.uint8), (numbers,))
            weight = plan[row, 2 + tap]
            for i in range(numbers):
                total[i] += np.int32(weight * np.int32(line[i]))
        out = carray(_pointer(target + row * numbers, np.uint8), (numbers,))
        for i in range(numbers):
            out[i] = min(max(total[i] >> DIGITS, 0), 255)


@native(5)
def turn(source, source_stride, target, height, width):
    """`source_stride`: bytes from a row to the next one."""
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            for x in range(left, min(left + BLOCK, width)):
                for y in range(top, min(top + BLOCK, height)):
                    pixel = carray(_pointer(source + y * source_stride + 3 * x, np.uint8), (3,))
                    out = carray(_pointer(target + 3 * (x * height + y), np.uint8), (3,))
                    out[0] = pixel[0]
                    out[1] = pixel[1]
                    out[2] = pixel[2]
