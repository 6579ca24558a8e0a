"""Work without an end: sources in, results out, in order, in bounded memory, by threads that run ahead.

Two kinds of work take turns on the cores: *preparing* a source (reading, decoding, preprocessing, in which Pillow and NumPy
let go of Python's lock), and a *lane*: a network that answers for a group of prepared sources, one call at a time. A thread
prepares a source, and whoever prepares the last one of a group takes the next free lane and answers for all of it. So the
cores are divided as the work demands: a thread that would wait for the network prepares, and nobody is told a ratio.
Where groups are many, a thread takes several of them in one go, its share of those that wait: the network then reads its
weights once for all of them, and Python's lock changes hands more seldom. Where sources come slowly, each goes by itself.

What is measured while it runs is how long threads wait: preparing takes seconds, for some of which the CPU works, or others
have it. Where sources come from a slow disk or a network, more threads are started, as many as keep the cores busy.

The caller's thread reads the sources and hands out the results; it reads no further than `window` sources ahead. Threads
and caller share nothing but queues, whose single operations no signal can tear: an exception (Ctrl-C is one) may come
anywhere. When the caller's generator ends, is closed or is dropped, the threads end.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

EVIDENCE = 0.25  # seconds of the threads' time, before it is judged how they spend it
PATIENCE = 1.0  # seconds after which a thread that waits looks whether its caller is still there
NAME = "effnet_np stream"


def attempt(function: Callable, *arguments: Any) -> Any:
    """What the function gives, or the exception that it raised."""
    try:
        return function(*arguments)
    except MemoryError as error:  # without its traceback, which holds the arrays that fill the memory
        return MemoryError(str(error) or "there is not enough memory for it")
    except Exception as error:
        return error


def run(
    sources: Iterable[Any], prepare: Callable, lanes: list[Callable], group: int, threads: int, window: int, most: int = 1
) -> Generator[Any, None, None]:
    """For each source, in order, its result, or the exception that it ended in.

    prepare: source -> input. lanes: functions of a list of inputs that give a list of results; each is called by one thread
    at a time. group: how many sources have to go to a lane together. threads: how many cores there are for it. window: how
    many sources are read ahead of the results, at least a group. most: how many groups may go to a lane at once. What reading
    the sources raises is raised after the results of those that were read.
    """
    crew = _Crew(prepare, lanes, threads, max(threads, window), most)
    try:
        yield from _results(crew, iter(sources), group, max(1, window // group))
    finally:
        crew.dismiss()


def _results(crew: _Crew, sources: Iterator[Any], group: int, most: int) -> Iterator[Any]:
    """Reads groups of sources ahead, `most` of them at a time; gives each group's results when it is its turn."""
    pending: deque[_Group] = deque()
    ended, fault, process = False, None, os.getpid()
    while pending or not ended:
        read = 0
        while not ended and len(pending) < most and not (read and pending[0].done):
            batch: list[Any] = []
            try:
                batch.extend(islice(sources, group))
            except Exception as error:  # those before it have been read, and are answered first
                fault = error
            read, ended = read + 1, len(batch) < group or fault is not None
            if batch:
                pending.append(_Group(batch))
                crew.hand_out(pending[-1])
        if pending:
            if os.getpid() != process:
                raise RuntimeError("threads do not survive a fork: start the stream in the process that reads its results")
            crew.wait_for(pending[0])
            yield from pending.popleft().results
    if fault is not None:
        raise fault


class _Group:
    """Sources that go to the network together, and what has become of them."""

    def __init__(self, sources: list[Any]):
        self.sources: list[Any] = sources
        self.results: list[Any] = [None] * len(sources)  # first inputs, then results; exceptions stay
        self.unprepared = len(sources)
        self.done = False
        self.news: SimpleQueue = SimpleQueue()  # that it is done


class _Crew:
    """The threads, and the queues between them and the caller."""

    def __init__(self, prepare: Callable, lanes: list[Callable], threads: int, most: int, at_once: int):
        self.prepare, self.cores, self.most, self.at_once = prepare, threads, most, at_once
        self.jobs: SimpleQueue = SimpleQueue()  # (group, index of the source), or None: go home
        self.lanes: SimpleQueue = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.lock = threading.Lock()  # among the threads, which no signal interrupts
        self.dismissed = False
        self.busy = self.waited = 0.0  # seconds of the threads: on a core, and for something else
        for lane in lanes:
            self.lanes.put(lane)

    # -- the caller's side --

    def hand_out(self, group: _Group) -> None:
        for index in range(len(group.sources)):
            self.jobs.put((group, index))
        for _ in range(min(len(group.sources), self.cores - len(self.threads))):
            self._start_thread()
        if not self.threads:
            self._work_off()

    def wait_for(self, group: _Group) -> None:
        while not group.done:
            if len(self.threads) < self._wanted() and self.jobs.qsize():
                self._start_thread()
            try:
                group.news.get(timeout=PATIENCE)
            except Empty:
                continue

    def _wanted(self) -> int:
        """How many threads keep the cores busy, by the share of their time that they are on one."""
        if self.busy + self.waited < EVIDENCE:
            return self.cores
        share = self.busy / (self.busy + self.waited)
        return min(self.most, math.ceil(self.cores / max(share, 1e-3))) if share < 0.7 else self.cores

    def _start_thread(self) -> None:
        """One more; where the system gives none, those that there are do the work, and without any the caller does."""
        arguments = (weakref.ref(self), self.jobs)
        thread = threading.Thread(target=_work, args=arguments, name=NAME, daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            self.most = self.cores = len(self.threads)
            return
        self.threads.append(thread)

    def _work_off(self) -> None:
        while self.jobs.qsize():
            self.work_on([self.jobs.get()])

    def dismiss(self) -> None:
        """Returns when the threads have ended, which they do when what they have begun is done."""
        self.dismissed = True
        while self.jobs.qsize():
            try:
                self.jobs.get_nowait()
            except Empty:
                break
        self.jobs.put(None)
        for thread in self.threads:
            thread.join()

    # -- the threads' side --

    def share_of_jobs(self, job: tuple) -> list[tuple]:
        """The job, and with it what falls to this thread of those that wait."""
        taken = [job]
        while len(taken) < self.at_once and self.jobs.qsize() >= len(taken) * self.cores:
            try:
                job = self.jobs.get_nowait()
            except Empty:
                break
            if job is None:
                self.jobs.put(None)
                break
            taken.append(job)
        return taken

    def work_on(self, jobs: list[tuple]) -> None:
        began, busy = time.perf_counter(), _ready_seconds()
        prepared = []
        for group, index in jobs:
            source, group.sources[index] = group.sources[index], None
            if not self.dismissed:
                group.results[index] = _everything(self.prepare, source)
            del source
            with self.lock:
                group.unprepared -= 1
                if group.unprepared == 0:
                    prepared.append(group)
        busy, waited = _ready_seconds() - busy, time.perf_counter() - began
        with self.lock:
            self.busy, self.waited = 0.95 * self.busy + busy, 0.95 * self.waited + waited - busy
        if prepared:
            self._answer(prepared)
        for group in prepared:
            group.done = True
        for group in prepared:  # not before: who waits for one finds all of them
            group.news.put(None)

    def _answer(self, groups: list[_Group]) -> None:
        ready = [
            (group, index)
            for group in groups
            for index, result in enumerate(group.results)
            if not isinstance(result, BaseException)
        ]
        inputs = [group.results[index] for group, index in ready]
        if not inputs:
            return
        lane = self.lanes.get()
        began = time.perf_counter()
        try:
            if self.dismissed:
                return
            results = _everything(lane, inputs)
            if isinstance(results, BaseException):  # one source is at fault, or memory does not suffice for all at once
                results = [_everything(lambda one: lane([one])[0], one) for one in inputs]
        finally:
            self.lanes.put(lane)
        with self.lock:
            self.busy += time.perf_counter() - began
        for (group, index), result in zip(ready, results, strict=True):
            group.results[index] = result


def _ready_seconds() -> float:
    """For how long this thread has been on a core, or (where Linux says it) has waited for one that others were on."""
    try:
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        try:
            delay = int(os.read(file, 128).split()[1])
        finally:
            os.close(file)
    except (OSError, IndexError, ValueError):
        delay = 0
    return time.thread_time() + 1e-9 * delay


def _everything(function: Callable, *arguments: Any) -> Any:
    """As `attempt`; and whatever else is raised in a thread is the caller's to see."""
    try:
        return attempt(function, *arguments)
    except BaseException as error:
        return error


def _work(crew_of: weakref.ref, jobs: SimpleQueue) -> None:
    """A thread: does jobs until it is sent home, or nobody is left to read the results."""
    while True:
        try:
            job = jobs.get(timeout=PATIENCE)
        except Empty:
            if (crew := crew_of()) is None or crew.dismissed:
                return
            del crew
            continue
        crew = crew_of()
        if job is None or crew is None or crew.dismissed:
            jobs.put(None)  # the next one goes home, too, also one that an interrupt left uncounted
            return
        crew.work_on(crew.share_of_jobs(job))
        del job, crew  # not to hold the last picture while there is nothing to do
