"""The table of steps: one row of int64 a step, and the names of its columns.

plan.py writes rows, the kernels read them. An address is in bytes; a plane is one block of channels of one image, that
is (H, W, WIDTH) floats, and `..._PLANE` the bytes from one to the next. Columns that a kind of step does not read are 0.
"""

from __future__ import annotations

from numba import njit

from effnet_np.kernels.simd import load_int, load_scalar

COPY, EXPAND, CONVOLVE = range(3)  # where the rows of a depthwise convolution come from

COLUMNS = (
    "FUNCTION", "TASKS", "SOURCE", "SOURCE_PLANE", "HEIGHT", "WIDTH_", "UNITS", "WEIGHT", "BIAS", "TARGET", "TARGET_PLANE",
    "ACTIVATION", "LOW", "HIGH", "BLOCKS", "GROUPS", "BANDS", "PRODUCER", "KERNEL", "STRIDE", "PAD", "OUT_HEIGHT", "OUT_WIDTH",
    "TAPS", "SHIFT", "CHUNK", "RING", "ROW", "LEAD", "SQUEEZE", "SQUEEZE_BLOCKS", "PARTIAL", "PARTIALS", "GATES", "RESIDUAL",
    "PIXELS", "POOL", "POOLED", "IMAGE_HEIGHT", "IMAGE_WIDTH", "CHANNELS", "SCALE", "EXPAND_BIAS", "TILES", "STEM_ROW", "ROWS", "LIST", "STEM", "THREADS", "HALF",
)  # fmt: skip
(
    FUNCTION, TASKS, SOURCE, SOURCE_PLANE, HEIGHT, WIDTH_, UNITS, WEIGHT, BIAS, TARGET, TARGET_PLANE,
    ACTIVATION, LOW, HIGH, BLOCKS, GROUPS, BANDS, PRODUCER, KERNEL, STRIDE, PAD, OUT_HEIGHT, OUT_WIDTH,
    TAPS, SHIFT, CHUNK, RING, ROW, LEAD, SQUEEZE, SQUEEZE_BLOCKS, PARTIAL, PARTIALS, GATES, RESIDUAL,
    PIXELS, POOL, POOLED, IMAGE_HEIGHT, IMAGE_WIDTH, CHANNELS, SCALE, EXPAND_BIAS, TILES, STEM_ROW, ROWS, LIST, STEM, THREADS, HALF,
) = range(len(COLUMNS))  # fmt: skip


@njit(nogil=True)
def get(row, column):
    """That column of the row at address `row`."""
    return load_int(row + 8 * column)


@njit(nogil=True)
def get_float(row, column):
    return load_scalar(row + 8 * column)
