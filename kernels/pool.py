"""The pool: ordinary Python threads that spend their time inside of the program, with Python's lock released.

Between two inferences a thread first goes on looking for the next run, for half a millisecond, and then sleeps until a bell
rings (a queue). So calls that follow each other closely find the threads awake, and a process at rest uses no CPU.

There is no threading layer below: nothing that aborts when two Python threads enter at once, and nothing that dies after a
fork. A child process has only the thread that forked, so the pool starts its others again there at the next call.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref

import numpy as np

from effnet_np.kernels import library
from effnet_np.kernels.table import JOB, LINE, STEPS

_pools: weakref.WeakSet = weakref.WeakSet()


def _work(serve, words, address, bell) -> None:
    """A thread of the pool: sleeps until the bell rings, works until there has been nothing to do for a while."""
    while bell.get():
        serve(address)


def _dismiss(bell, threads: int) -> None:
    for _ in range(threads):
        bell.put(False)


class Pool:
    """`threads` - 1 threads, and the caller's own, that run steps of a table. One caller at a time."""

    def __init__(self, threads: int, most_steps: int):
        self.threads = threads
        self._most_steps = most_steps
        self._start, self._finish, self._serve = (library.function(*f) for f in (("start", 6), ("finish", 1), ("serve", 1)))
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        """As new: also what a child process has to do after a fork, in which only the forking thread lives on."""
        memory = np.zeros((STEPS + self._most_steps * 2 * LINE + LINE) // 8, np.int64)
        skip = -memory.ctypes.data % LINE // 8
        self.words = memory[skip:]
        self._address = self.words.ctypes.data
        self._started = self.threads == 1
        self._bell: queue.SimpleQueue = queue.SimpleQueue()

    def _start_threads(self) -> None:
        for _ in range(self.threads - 1):
            arguments = (self._serve, self.words, self._address, self._bell)
            threading.Thread(target=_work, args=arguments, name="effnet_np", daemon=True).start()
            self._bell.put(True)
        weakref.finalize(self, _dismiss, self._bell, self.threads - 1)
        self._started = True

    def __call__(self, rows: int, first: int, last: int, scratch: int, scratch_bytes: int) -> None:
        """Run steps `first` to `last` of the table at address `rows`."""
        if not self._started:
            self._start_threads()
        self._start(self._address, rows, first, last, scratch, scratch_bytes)
        if self.threads > 1:
            for _ in range(self.words[(JOB + 40) // 8]):
                self._bell.put(True)
        self._finish(self._address)


def _after_fork() -> None:
    for pool in list(_pools):
        pool._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
