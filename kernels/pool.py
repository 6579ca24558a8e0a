"""Pool."""

from __future__ import annotations

import ctypes
import threading

import numpy as np

from effnet_np.kernels.program import run
from effnet_np.kernels.sync import LINE, MEMBERS


class Pool:
    def __init__(self, threads):
        self.threads = threads
        self.run = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)(run.address)
        self.number = 0
        self.words = np.zeros(0, np.int64)
        self.job = None
        self.wake = [threading.Semaphore(0) for _ in range(threads - 1)]
        for semaphore in self.wake:
            threading.Thread(target=self._work, args=(semaphore,), daemon=True).start()

    def _work(self, semaphore):
        while True:
            semaphore.acquire()
            self.run(*self.job, 0)

    def __call__(self, rows, first, last, steps, scratch, scratch_bytes):
        words = LINE // 8 * (2 + 2 * steps)
        if len(self.words) < words:
            self.words = np.zeros(words, np.int64)
        self.words[:] = 0
        self.number += 1
        self.words[0] = self.number * MEMBERS
        self.job = (rows, first, last, self.words.ctypes.data, self.number, scratch, scratch_bytes)
        for semaphore in self.wake:
            semaphore.release()
        self.run(*self.job, 1)
