"""Atomics for Numba, and the protocol by which threads work through a program together.

The words that threads share lie one a cache line in an int64 array:

    GATE        run number * 2**16 + threads that have entered that run
    LEFT        threads that have left it
    two a step  NEXT, the next task to be handed out, and DONE, how many are finished; behind DONE, when that was

A thread may come late, or never (the machine is busy, the process has forked): nobody waits for it, since a step is
over when its *tasks* are done, not when all threads have arrived. The thread that started a run closes its gate at
the end, so a thread that comes later still finds the gate shut and touches nothing.
"""

from __future__ import annotations

import sys

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from effnet_np.kernels.simd import I32, I64, X86, Int, int64, load_int, staged, void

LINE = 64  # bytes of a cache line
GATE, LEFT, STEPS = 0, LINE, 2 * LINE  # byte offsets
MEMBERS = 1 << 16
SPINS = 2000  # looks at a word before the core is offered to others: some 50 microseconds


@staged(int64, int64, int64)
def atomic_add(code, address, value):
    """Memory at that address += value, indivisibly; gives the value before."""
    return Int(code, code.builder.atomic_rmw("add", code._pointer(address, I64), value.value, "seq_cst"))


@staged(int64, int64, int64)
def atomic_exchange(code, address, value):
    return Int(code, code.builder.atomic_rmw("xchg", code._pointer(address, I64), value.value, "seq_cst"))


@staged(int64, int64, int64, int64)
def compare_exchange(code, address, expected, value):
    """Memory at that address = value if it is `expected`; gives the value before, so it worked if that is `expected`."""
    pair = code.builder.cmpxchg(code._pointer(address, I64), expected.value, value.value, "seq_cst", "seq_cst")
    return Int(code, code.builder.extract_value(pair, 0))


@staged(int64, int64)
def atomic_load(code, address):
    return Int(code, code.builder.load_atomic(code._pointer(address, I64), "seq_cst", 8, typ=I64))


@staged(void)
def pause(code):
    """Tells the core that this is a spin loop."""
    kind = ir.FunctionType(ir.VoidType(), [I32] if not X86 else [])
    name = "llvm.x86.sse2.pause" if X86 else "llvm.aarch64.hint"
    arguments = [] if X86 else [ir.Constant(I32, 1)]
    code.builder.call(cgutils.get_or_insert_function(code.builder.module, kind, name), arguments)


@staged(int64)
def ticks(code):
    """The core's own clock, in ticks of a constant length; where it has none that a program may read, 0."""
    kind = ir.FunctionType(I64, [])
    return Int(code, code.builder.call(cgutils.get_or_insert_function(code.builder.module, kind, "llvm.readcyclecounter"), []))


if sys.platform == "win32":

    @njit(nogil=True)
    def give_way():
        pause()

else:
    _sched_yield = types.ExternalFunction("sched_yield", types.int32())

    @njit(nogil=True)
    def give_way():
        """Offers the core to another thread that is ready to run."""
        _sched_yield()


@njit(nogil=True)
def wait_until(address, goal):
    """Returns when the word at that address has reached `goal`."""
    spins = 0
    while atomic_load(address) < goal:
        spins += 1
        if spins < SPINS:
            pause()
        else:
            give_way()


@njit(nogil=True)
def enter(words, run):
    """The number of this thread in the run, from 0, or -1 where the run is over."""
    while True:
        seen = atomic_load(words + GATE)
        if seen // MEMBERS != run:
            return -1
        if compare_exchange(words + GATE, seen, seen + 1) == seen:
            return seen % MEMBERS


@njit(nogil=True)
def leave(words):
    atomic_add(words + LEFT, 1)


@njit(nogil=True)
def close(words, run):
    """Shuts the gate of that run, and waits for those inside."""
    entered = atomic_exchange(words + GATE, (run + 1) * MEMBERS) % MEMBERS
    wait_until(words + LEFT, entered)


__all__ = ["GATE", "LEFT", "LINE", "MEMBERS", "STEPS", "atomic_add", "atomic_load", "close", "enter", "leave", "load_int", "ticks", "wait_until"]
