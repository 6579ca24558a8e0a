"""Native functions: Numba `cfunc`s that call each other by address.

Why not `@njit` functions that call each other by name: Numba links all that a function calls into it and optimises the
whole again, at every level. The matrix product would be compiled once in each of the five kernels that use it and once
more in the program, 32 seconds in all; compiled once each and called through a pointer, the same code takes X.
The addresses travel in the table of steps, beside the addresses of the data.
"""

from __future__ import annotations

from llvmlite import ir
from numba import cfunc

from effnet_np.kernels.simd import F32, I64, float32, int64, staged, void

REGISTRY: list[Native] = []


class Native:
    """A function of numbers, compiled when its address is first asked for."""

    def __init__(self, signature: str, function):
        self.signature, self.function = signature, function
        self.name = function.__name__
        self._compiled = None
        REGISTRY.append(self)

    @property
    def address(self) -> int:
        if self._compiled is None:
            self._compiled = cfunc(self.signature, cache=True, error_model="numpy")(self.function)
        return self._compiled.address


def native(integers: int, floats: int = 0):
    """Decorates function(integers, then floats) -> nothing."""
    signature = f"void({', '.join(['int64'] * integers + ['float32'] * floats)})"
    return lambda function: Native(signature, function)


def caller(integers: int, floats: int = 0):
    """A function for @njit code that calls the native function at the address which is its first argument."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * integers + [F32] * floats)

    def call(code, function, *arguments):
        code.builder.call(code._pointer(function, kind), [getattr(a, "value", a) for a in arguments])

    return staged(void, int64, *[int64] * integers, *[float32] * floats)(call)
