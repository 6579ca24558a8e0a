"""Atomics for Numba, and the protocol by which threads work through a program together.

The words that they share are listed in table.py. A thread may come late, or never (the machine is busy, the process has
forked): nobody waits for it, since a step is over when its *tasks* are done, not when all threads have arrived. The
thread that starts a run is its first member, and closes the gate at its end, all in one native call: no exception of Python's
can come between. A thread that comes later finds the gate shut, one too many finds no place, and both touch nothing.
"""

from __future__ import annotations

import sys

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from effnet_np.kernels.simd import I32, I64, Int, int64, load_int, staged, void
from effnet_np.kernels.table import GATE, LEFT, MEMBERS, PLACES
from effnet_np.kernels.target import X86

SPINS = 2000  # looks at a word before the core is offered to others: some 40 microseconds
YIELDS = 1000  # offers before a thread that waits for a run goes to sleep: about half a millisecond


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

    @njit
    def give_way():
        pause()

else:
    _sched_yield = types.ExternalFunction("sched_yield", types.int32())

    @njit
    def give_way():
        """Offers the core to another thread that is ready to run."""
        _sched_yield()


@njit
def wait_until(address, goal):
    """Returns when the word at that address has reached `goal`."""
    spins = 0
    while atomic_load(address) < goal:
        spins += 1
        if spins < SPINS:
            pause()
        else:
            give_way()


@njit
def open_gate(words):
    """Begins a run, of which the caller is the first member; nobody else is inside."""
    atomic_exchange(words + GATE, (atomic_load(words + GATE) // MEMBERS + 1) * MEMBERS + 1)


@njit
def enter(words, last):
    """Waits for a run other than number `last`: (its number, the number of this thread in it), or (-1, 0) if none comes."""
    looks = 0
    while True:
        seen = atomic_load(words + GATE)
        run = seen // MEMBERS
        if run % 2 == 1 and run != last and seen % MEMBERS < load_int(words + PLACES):
            if compare_exchange(words + GATE, seen, seen + 1) == seen:
                return run, seen % MEMBERS
        elif looks < SPINS:
            pause()
        elif looks < SPINS + YIELDS:
            give_way()
        else:
            return -1, 0
        looks += 1


@njit
def leave(words):
    atomic_add(words + LEFT, 1)


@njit
def close_gate(words):
    """Ends the run, and waits for those inside."""
    seen = atomic_load(words + GATE)
    while compare_exchange(words + GATE, seen, (seen // MEMBERS + 1) * MEMBERS) != seen:
        seen = atomic_load(words + GATE)
    wait_until(words + LEFT, seen % MEMBERS)
