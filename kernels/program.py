"""The program: one function runs any plan, and every thread of the pool is inside of it for a whole inference.

Plain meaning: for each step of the table, for each of its tasks: kernel(step, task, scratch).

A parallel region for each of a network's 48 steps would wake the threads up 48 times, which costs as much as the arithmetic
of B0. So each thread walks through all steps. Within a step an atomic counter hands the tasks out; at its end each
waits until all tasks are done, spinning, which takes a microsecond (sync.py). It offers its core to others where that takes
longer, as on a machine with more threads than cores.

Which thread does which task is left to chance. Nothing depends on it: each task writes numbers of its own, and what is added
up over tasks is added in their order.
"""

from __future__ import annotations

from numba import njit

from effnet_np.kernels.native import caller, native
from effnet_np.kernels.record import HEADER, ROW_BYTES
from effnet_np.kernels.simd import load_int, store_int
from effnet_np.kernels.sync import atomic_add, close_gate, enter, leave, open_gate, ticks, wait_until
from effnet_np.kernels.table import ASLEEP, JOB, LEFT, LINE, STEPS

call_kernel = caller(3)
FUNCTION, TASKS = 8 * HEADER.index("function"), 8 * HEADER.index("tasks")


@njit
def perform(words, thread, first_thread):
    """All steps of the job in `words`, together with the other threads that have entered."""
    rows, first, last = load_int(words + JOB), load_int(words + JOB + 8), load_int(words + JOB + 16)
    scratch = load_int(words + JOB + 24) + thread * load_int(words + JOB + 32)
    for step in range(first, last):
        row = rows + step * ROW_BYTES
        function, tasks = load_int(row + FUNCTION), load_int(row + TASKS)
        next_task = words + STEPS + step * (2 * LINE)
        done = next_task + LINE
        while True:
            task = atomic_add(next_task, 1)
            if task >= tasks:
                break
            call_kernel(function, row, task, scratch)
            atomic_add(done, 1)
        wait_until(done, tasks)
        if first_thread:
            store_int(done + 8, ticks())


@native(6)
def start(words, rows, first, last, scratch, scratch_bytes):
    """Opens a run of steps `first` to `last` of the table at `rows`. Leaves the number of sleeping threads at JOB + 40."""
    for step in range(first, last):
        store_int(words + STEPS + step * (2 * LINE), 0)
        store_int(words + STEPS + step * (2 * LINE) + LINE, 0)
    store_int(words + LEFT, 0)
    store_int(words + JOB, rows)
    store_int(words + JOB + 8, first)
    store_int(words + JOB + 16, last)
    store_int(words + JOB + 24, scratch)
    store_int(words + JOB + 32, scratch_bytes)
    store_int(words + JOB + 40, open_gate(words))


@native(1)
def finish(words):
    """The work of the thread that started the run: all that the others do not, and closing the gate."""
    store_int(words + LEFT + 8, ticks())
    _, thread = enter(words, 0)
    perform(words, thread, True)
    leave(words)
    close_gate(words)


@native(1)
def serve(words):
    """The work of every other thread: run after run, until none has come for a while."""
    last = 0
    while True:
        run, thread = enter(words, last)
        if run < 0:
            atomic_add(words + ASLEEP, 1)
            return
        perform(words, thread, False)
        leave(words)
        last = run
