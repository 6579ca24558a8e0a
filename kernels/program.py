"""Program."""

from __future__ import annotations

from effnet_np.kernels import table
from effnet_np.kernels.native import caller, native
from effnet_np.kernels.simd import store_int
from effnet_np.kernels.sync import LEFT, LINE, STEPS, atomic_add, close, enter, leave, ticks, wait_until
from effnet_np.kernels.table import get

ROW = 8 * len(table.COLUMNS)
call_kernel = caller(3)


@native(8)
def run(rows, first, last, words, number, scratch, scratch_bytes, started):
    """Steps `first` to `last` of the table at `rows`, together with the other threads that enter run `number`."""
    thread = enter(words, number)
    if thread < 0:
        return
    if started:
        store_int(words + LEFT + 8, ticks())
    own = scratch + thread * scratch_bytes
    for step in range(first, last):
        row = rows + step * ROW
        function, tasks = get(row, table.FUNCTION), get(row, table.TASKS)
        next_task = words + STEPS + step * (2 * LINE)
        done = next_task + LINE
        while True:
            task = atomic_add(next_task, 1)
            if task >= tasks:
                break
            call_kernel(function, row, task, own)
            atomic_add(done, 1)
        wait_until(done, tasks)
        if started:
            store_int(done + 8, ticks())
    leave(words)
    if started:
        close(words, number)
