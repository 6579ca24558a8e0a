"""What the plan (Python) and the kernels (Numba) agree on: the table of steps, the words that threads share, the names.

The table has one row of int64 a step. An address is in bytes. A feature map is `blocks` planes, one for each WIDTH
channels, of (height, width, WIDTH) floats; `..._PLANE` is the number of bytes from one plane to the next. Columns that a
kind of step does not read are 0. Floats lie in the first half of their column.
"""

from __future__ import annotations

import math

# -- the table --------------------------------------------------------------------------------------------------------

NAMES = (
    # every step
    "FUNCTION",  # address of the kernel
    "TASKS",  # how many tasks the step is cut into
    "GROUPS", "BLOCKS", "BANDS",  # groups of channel blocks, bands of rows or pixels
    "THREADS",  # how many threads there are: only a hint, for prefetching
    # what a convolution reads and writes
    "SOURCE", "SOURCE_PLANE", "TARGET", "TARGET_PLANE", "RESIDUAL", "PIXELS",
    "WEIGHT", "BIAS", "UNITS", "HALF", "ACTIVATION", "LOW", "HIGH", "RESCALE",
    # expansion and depthwise convolution
    "PRODUCER", "EXPAND_BIAS", "HEIGHT", "WIDTH_", "OUT_HEIGHT", "OUT_WIDTH", "KERNEL", "STRIDE", "PAD", "TAPS", "SHIFT",
    "CHUNK", "RING", "ROW", "LEAD", "LIST",
    # stem
    "IMAGE_HEIGHT", "IMAGE_WIDTH", "CHANNELS", "STEM_ROW",
    # squeeze-excite and pool
    "SQUEEZE", "SQUEEZE_BLOCKS", "PARTIAL", "PARTIALS", "GATES", "SCALE", "POOL", "POOLED",
    # addresses of functions that kernels call
    "TILES", "ROWS", "STEM",
)  # fmt: skip
for _number, _name in enumerate(NAMES):
    globals()[_name] = _number
ROW_BYTES = 8 * len(NAMES)

COPY, EXPAND, CONVOLVE = range(3)  # PRODUCER: where the rows that a depthwise convolution reads come from
MEAN, MAX = range(2)  # POOL

# -- activations ------------------------------------------------------------------------------------------------------

# CLAMP is min(max(x, LOW), HIGH): relu, relu6 and "none".
CLAMP, SWISH, GELU, GELU_NEW, SELU, MISH = range(6)
CODES = {
    "swish": SWISH,
    "silu": SWISH,
    "relu": CLAMP,
    "relu6": CLAMP,
    "gelu": GELU,
    "gelu_new": GELU_NEW,
    "selu": SELU,
    "mish": MISH,
}
CLAMPS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
# Inside of the network swish takes and gives numbers that are this many times what they mean, see activations.py.
INNER = -1 / math.log(2)

# -- the words that threads share, each on a cache line of its own, by the byte at which they begin --------------------

LINE = 64
GATE = 0  # run number * MEMBERS + threads that have entered; even numbers are closed
LEFT = LINE  # threads that have left; behind it, when the run began
ASLEEP = 2 * LINE  # threads that have to be woken
JOB = 3 * LINE  # the arguments of the run: rows, first step, last step, scratch, bytes of scratch for each member,
PLACES = JOB + 40  # and how many members there is scratch for
STEPS = 5 * LINE  # for each step a line with the next task to be handed out, and one with the tasks that are done, and when
MEMBERS = 1 << 16

SPECIAL = {(3, 1), (3, 2), (5, 1), (5, 2)}  # kernel sizes and strides with a depthwise kernel of their own


def depthwise_rows_name(kernel: int, stride: int) -> str:
    return f"depthwise_rows_{kernel}_{stride}" if (kernel, stride) in SPECIAL else "depthwise_rows_any"
