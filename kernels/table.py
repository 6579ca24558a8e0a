"""Numbers that Python and the kernels have to agree on: activations, and the words that threads share."""

from __future__ import annotations

import math

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
PLACES = JOB + 40  # how many members there is scratch for,
IMAGES = JOB + 48  # how many images go through together, and the bytes from the steps of one to those of the next
STEPS = 5 * LINE  # for each step a line with the next task to be handed out, and one with the tasks that are done, and when
MEMBERS = 1 << 16
