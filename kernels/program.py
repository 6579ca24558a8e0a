"""The program: one function runs any plan, and every thread of the pool is inside of it for a whole inference.

Plain meaning: for each step of the table, for each of its tasks: kernel(step, task, scratch).

A parallel region for each of a network's 48 steps would wake the threads up 48 times, which costs as much as the arithmetic
of B0. So each thread walks through all steps. Within a step an atomic counter hands the tasks out; at its end each
waits until all tasks are done, spinning, which takes a microsecond (sync.py). It offers its core to others where that takes
longer, as on a machine with more threads than cores.

Several images may go through together: each has a table of its own, and a step's tasks are then those of all of them, the same
task for one image after the other, so that its weights come into the cache once.

Which thread does which task is left to chance. Nothing depends on it: each task writes numbers of its own, and what is added
up over tasks is added in their order.
"""

from __future__ import annotations

from numba import njit

from effnet_np.kernels.native import caller, native
from effnet_np.kernels.record import HEADER, ROW_BYTES
from effnet_np.kernels.simd import load_int, store_int
from effnet_np.kernels.sync import atomic_add, close_gate, enter, leave, open_gate, ticks, wait_until
from effnet_np.kernels.table import ASLEEP, IMAGES, JOB, LEFT, LINE, PLACES, STEPS

call_kernel = caller(3)
FUNCTION, TASKS = 8 * HEADER.index("function"), 8 * HEADER.index("tasks")


@njit
def perform(words, member, first_member):
    """All steps of the job in `words`, together with the other threads that have entered."""
    rows, first, last = load_int(words + JOB), load_int(words + JOB + 8), load_int(words + JOB + 16)
    scratch = load_int(words + JOB + 24) + member * load_int(words + JOB + 32)
    images, stride = load_int(words + IMAGES), load_int(words + IMAGES + 8)
    for step in range(first, last):
        row = rows + step * ROW_BYTES
        function, tasks = load_int(row + FUNCTION), load_int(row + TASKS) * images
        next_task = words + STEPS + step * (2 * LINE)
        done = next_task + LINE
        while True:
            task = atomic_add(next_task, 1)
            if task >= tasks:
                break
            call_kernel(function, row + task % images * stride, task // images, scratch)
            atomic_add(done, 1)
        wait_until(done, tasks)
        if first_member:
            store_int(done + 8, ticks())


@native(9)
def run_steps(words, rows, first, last, scratch, scratch_bytes, places, images, stride):
    """Runs steps `first` to `last` of the table at `rows`, with as many other threads as come, at most `places` in all.

    images: of so many tables, `stride` bytes from one to the next.

    From opening the gate to closing it in one call: whatever Python raises, and whenever, the gate is shut.
    """
    for step in range(first, last):
        store_int(words + STEPS + step * (2 * LINE), 0)
        store_int(words + STEPS + step * (2 * LINE) + LINE, 0)
    store_int(words + LEFT, 0)
    store_int(words + JOB, rows)
    store_int(words + JOB + 8, first)
    store_int(words + JOB + 16, last)
    store_int(words + JOB + 24, scratch)
    store_int(words + JOB + 32, scratch_bytes)
    store_int(words + PLACES, places)
    store_int(words + IMAGES, images)
    store_int(words + IMAGES + 8, stride)
    store_int(words + LEFT + 8, ticks())
    open_gate(words)
    perform(words, 0, True)
    leave(words)
    close_gate(words)


@native(2)
def serve(words, woken):
    """The work of every other thread, `woken` from sleep (1) or new (0): run after run, until none has come for a while."""
    atomic_add(words + ASLEEP, -woken)
    last = 0
    while True:
        run, member = enter(words, last)
        if run < 0:
            atomic_add(words + ASLEEP, 1)
            return
        perform(words, member, False)
        leave(words)
        last = run
