"""The pool: ordinary Python threads that spend their time inside of the program, with Python's lock released.

Between two inferences a thread first goes on looking for the next run, for half a millisecond, and then sleeps until a bell
(a queue) rings, just before a run. So calls that follow each other closely find the threads awake, and a process at rest
uses no CPU.

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
from effnet_np.kernels.cores import usable
from effnet_np.kernels.table import ASLEEP, LINE, STEPS

_pools: weakref.WeakSet = weakref.WeakSet()


def _work(serve, words, address, bell) -> None:
    """A thread of the pool: works until there has been nothing to do for a while, then sleeps until the bell rings."""
    serve(address, 0)
    while bell.get():
        serve(address, 1)
    bell.put(False)  # the next one goes home, too


class Pool:
    """`threads` - 1 threads, and the caller's own, that run steps of a table. One caller at a time.

    No more than there are cores to use, however many are asked for: others would do tasks in their place, and wait for a core
    between two of them while all wait for the step's end. 8 threads on 2 cores took 1.3 times as long for a step of learning.

    An exception may come at any moment (Ctrl-C is one): then a thread has been started and not counted, or rung for and not
    needed, and that is all. The gate opens and closes within one native call, which also lets in no more threads than there
    is scratch memory for.
    """

    def __init__(self, threads: int, most_steps: int):
        self.threads = min(threads, usable())
        self._most_steps = most_steps
        self._run, self._serve = library.function("run_steps", 9), library.function("serve", 2)
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        """As new: also what a child process has to do after a fork, in which only the forking thread lives on."""
        memory = np.zeros((STEPS + self._most_steps * 2 * LINE + LINE) // 8, np.int64)
        skip = -memory.ctypes.data % LINE // 8
        self.words = memory[skip:]
        self._address = self.words.ctypes.data
        self._others = 0  # threads that were started
        self._bell: queue.SimpleQueue = queue.SimpleQueue()
        weakref.finalize(self, self._bell.put, False)

    def _start_threads(self) -> None:
        """Start the threads that are missing. Where the system gives no more, those that there are do the work."""
        arguments = (self._serve, self.words, self._address, self._bell)
        try:
            while self._others < self.threads - 1:
                threading.Thread(target=_work, args=arguments, name="effnet_np", daemon=True).start()
                self._others += 1
        except (RuntimeError, MemoryError):
            pass

    def __call__(
        self, rows: int, first: int, last: int, scratch: int, scratch_bytes: int, images: int = 1, stride: int = 0
    ) -> None:
        """Run steps `first` to `last` of the table at address `rows`; `scratch` has `scratch_bytes` for each of `threads`.

        images: of so many tables, `stride` bytes from one to the next.
        """
        if self._others < self.threads - 1:
            self._start_threads()
        for _ in range(int(self.words[ASLEEP // 8]) - self._bell.qsize()):
            self._bell.put(True)
        self._run(self._address, rows, first, last, scratch, scratch_bytes, self.threads, images, stride)


def _after_fork() -> None:
    for pool in list(_pools):
        pool._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
