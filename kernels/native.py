"""Native functions: kernels that Numba compiles one by one, and that call each other by address.

Why not `@njit` functions that call each other by name: Numba links all that a function calls into it and optimises the
whole again, at every level. The matrix product would be compiled once in each of the five kernels that use it and once
more in the program, 32 seconds in all. Compiled once each and called through a pointer, the same code took 12,
and warm-up can say how far it is. The addresses travel in the table of steps, beside the addresses of the data.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from effnet_np.kernels.simd import F32, I64, float32, int64, staged, void


@dataclass(frozen=True)
class Native:
    """A function of `integers` int64 and `floats` float32 numbers that gives nothing back."""

    name: str
    function: object
    integers: int
    floats: int

    def signature(self) -> str:
        return f"void({', '.join(['int64'] * self.integers + ['float32'] * self.floats)})"


REGISTRY: list[Native] = []


def native(integers: int, floats: int = 0):
    """Decorates function(integers, then floats)."""

    def register(function):
        REGISTRY.append(Native(function.__name__, function, integers, floats))
        return function

    return register


def caller(integers: int, floats: int = 0):
    """A function for Numba code that calls the native function at the address which is its first argument."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * integers + [F32] * floats)

    def call(code, function, *arguments):
        code.builder.call(code._pointer(function, kind), [getattr(a, "value", a) for a in arguments])

    return staged(void, int64, *[int64] * integers, *[float32] * floats)(call)
