"""Program."""

from __future__ import annotations

from numba import int64, njit

from effnet_np.kernels import table
from effnet_np.kernels.depthwise import depthwise
from effnet_np.kernels.head import head
from effnet_np.kernels.pointwise import pointwise
from effnet_np.kernels.squeeze_excite import gates
from effnet_np.kernels.stem import stem
from effnet_np.kernels.sync import LINE, STEPS, atomic_add, close, enter, leave, wait_until
from effnet_np.kernels.table import get

ROW = 8 * len(table.COLUMNS)


@njit(nogil=True)
def perform(row, task, scratch):
    """One task of the step in that row of the table."""
    kind = get(row, table.KIND)
    if kind == table.DEPTHWISE:
        depthwise(row, task, scratch)
    elif kind == table.POINTWISE:
        pointwise(row, task, scratch)
    elif kind == table.GATE:
        gates(row, task, scratch)
    elif kind == table.HEAD:
        head(row, task, scratch)
    elif kind == table.STEM:
        stem(row, task, scratch)


def run(rows, first, last, words, run_number, scratch, scratch_bytes, started):
    thread = enter(words, run_number)
    if thread < 0:
        return
    own = scratch + thread * scratch_bytes
    for step in range(first, last):
        row = rows + step * ROW
        next_task = words + STEPS + step * (2 * LINE)
        done = next_task + LINE
        tasks = get(row, table.TASKS)
        while True:
            task = atomic_add(next_task, 1)
            if task >= tasks:
                break
            perform(row, task, own)
            atomic_add(done, 1)
        wait_until(done, tasks)
    leave(words)
    if started:
        close(words, run_number)


SIGNATURE = "void(int64, int64, int64, int64, int64, int64, int64, int64)"


def compile_run():
    return njit(SIGNATURE, nogil=True, cache=True)(run)
