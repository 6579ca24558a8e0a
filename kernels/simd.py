"""Float32 vectors for Numba: as many lanes as the CPU's registers have, and kernels written as Python that writes code.

Numba's own vectorizer turns a simple loop into SIMD instructions, but it cannot be told "keep these 24 sums in
registers while the loop runs". A matrix product needs exactly that. So this file offers two things:

1. `float32xN`, a Numba type of `WIDTH` numbers in one register, for use inside `@njit` functions:

       x = load(address)                      # WIDTH floats from memory
       store(address, x * splat(2.0) + y)     # operators work on whole registers

2. `staged`, for kernels that need unrolling. A staged function is ordinary Python that runs *once, while Numba
   compiles*; what it does with a `Vector` or an `Int` is written down as machine instructions. A Python loop is
   therefore unrolled, a Python `if` is decided at compile time, and a list of Vectors is a list of registers:

       @staged(void, int64, int64)
       def add_rows(code, source, target):
           rows = [code.load(source + 64 * r) for r in range(4)]     # four registers
           code.store(target, (rows[0] + rows[1]) + (rows[2] + rows[3]))

   What must happen when the program *runs* is said by `code`: `code.loop(n)`, `code.when(condition)`,
   `code.switch(value, options)`, `code.variable(initial)`.

Addresses are plain int64 numbers, in bytes. There are no bounds checks: plan.py is the place that knows the sizes.
A tested meaning of each operation is in tests/test_kernels_simd.py.
"""

from __future__ import annotations

import contextlib
import inspect
import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from effnet_np.kernels.target import AVX512, WIDTH

I1, I8, I32, I64, F32 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
VECTOR, INTEGERS = ir.VectorType(F32, WIDTH), ir.VectorType(I32, WIDTH)
void, int64, float32 = types.void, types.int64, types.float32


class Float32Vector(types.Type):
    """WIDTH float32 numbers in one register."""

    def __init__(self):
        super().__init__(name=f"float32x{WIDTH}")


float32xN = Float32Vector()


@register_model(Float32Vector)
class Float32VectorModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, VECTOR)


# -- values that exist while code is written --------------------------------------------------------------------------


def _indices(lanes):
    lanes = list(lanes)
    return ir.Constant(ir.VectorType(I32, len(lanes)), lanes)


class Int:
    """A 64-bit whole number of the running program: an address, a count, an index."""

    def __init__(self, code: Code, value):
        self.code, self.value = code, value

    def _binary(self, opcode, other, swap=False):
        left, right = self.value, self.code.int(other).value
        if swap:
            left, right = right, left
        return Int(self.code, getattr(self.code.builder, opcode)(left, right))

    def __add__(self, other):
        return self._binary("add", other)

    def __sub__(self, other):
        return self._binary("sub", other)

    def __mul__(self, other):
        return self._binary("mul", other)

    def __and__(self, other):
        return self._binary("and_", other)

    def __rshift__(self, other):
        return self._binary("ashr", other)

    def __floordiv__(self, other):
        return self._binary("udiv", other)  # of numbers that are not negative

    def __radd__(self, other):
        return self._binary("add", other)

    def __rsub__(self, other):
        return self._binary("sub", other, swap=True)

    def __rmul__(self, other):
        return self._binary("mul", other)

    def compare(self, relation: str, other):
        """A condition for `code.when`: relation is "<", ">=", "==" and so on."""
        return self.code.builder.icmp_signed(relation, self.value, self.code.int(other).value)


class Vector:
    """A register of float32 numbers, WIDTH of them, or half as many.

    Operators work lane by lane; a Python number stands for a register full of it.
    """

    def __init__(self, code: Code, value):
        self.code, self.value = code, value

    @property
    def lanes(self) -> int:
        return self.value.type.count

    def low_half(self) -> Vector:
        """The first half of the lanes: the same register under another name, so it costs nothing."""
        half = list(range(self.lanes // 2))
        nothing = ir.Constant(self.value.type, ir.Undefined)
        return Vector(self.code, self.code.builder.shuffle_vector(self.value, nothing, _indices(half)))

    def widened(self) -> Vector:
        """Twice the lanes, the new ones zero."""
        zero = ir.Constant(self.value.type, None)
        return Vector(self.code, self.code.builder.shuffle_vector(self.value, zero, _indices(range(2 * self.lanes))))

    def _binary(self, opcode, other, swap=False):
        left, right = self.value, self.code.vector(other, self.lanes).value
        if swap:
            left, right = right, left
        return Vector(self.code, getattr(self.code.builder, opcode)(left, right))

    def __add__(self, other):
        return self._binary("fadd", other)

    def __sub__(self, other):
        return self._binary("fsub", other)

    def __mul__(self, other):
        return self._binary("fmul", other)

    def __truediv__(self, other):
        return self._binary("fdiv", other)

    def __radd__(self, other):
        return self._binary("fadd", other)

    def __rsub__(self, other):
        return self._binary("fsub", other, swap=True)

    def __rmul__(self, other):
        return self._binary("fmul", other)

    def __rtruediv__(self, other):
        return self._binary("fdiv", other, swap=True)


class Variable:
    """A value that changes while the program runs, such as a sum in a loop. LLVM keeps it in a register where it can."""

    def __init__(self, code: Code, initial):
        self.code, self.kind = code, type(initial)
        self.slot = cgutils.alloca_once(code.builder, initial.value.type)
        self.set(initial)

    def get(self):
        return self.kind(self.code, self.code.builder.load(self.slot))

    def set(self, value):
        self.code.builder.store(value.value, self.slot)


class Code:
    """Writes instructions: the first argument of every staged function."""

    def __init__(self, context, builder):
        self.context, self.builder = context, builder

    # constants and conversions

    def int(self, value) -> Int:
        return value if isinstance(value, Int) else Int(self, ir.Constant(I64, int(value)))

    def vector(self, value, lanes: int = WIDTH) -> Vector:
        if isinstance(value, Vector):
            return value
        return Vector(self, ir.Constant(ir.VectorType(F32, lanes), [float(np.float32(value))] * lanes))

    def splat(self, scalar) -> Vector:
        """WIDTH copies of one float32 of the running program."""
        undefined = ir.Constant(VECTOR, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
        return Vector(self, self.builder.shuffle_vector(first, undefined, ir.Constant(INTEGERS, [0] * WIDTH)))

    # memory

    def _pointer(self, address, kind):
        return self.builder.inttoptr(self.int(address).value, kind.as_pointer())

    def _at(self, address, offset, kind):
        """The pointer `address + offset`; a constant offset ends up inside the instruction that uses it."""
        pointer = self.builder.inttoptr(self.int(address).value, I8.as_pointer())
        if offset:
            pointer = self.builder.gep(pointer, [ir.Constant(I64, offset)], source_etype=I8)
        return self.builder.bitcast(pointer, kind.as_pointer())

    def load(self, address, offset: int = 0, lanes: int = WIDTH) -> Vector:
        kind = ir.VectorType(F32, lanes)
        return Vector(self, self.builder.load(self._at(address, offset, kind), align=4, typ=kind))

    def load_splat(self, address, offset: int = 0) -> Vector:
        """WIDTH copies of the float32 at the address."""
        return self.splat(self.builder.load(self._at(address, offset, F32), align=4, typ=F32))

    def store(self, address, value, offset: int = 0) -> None:
        self.builder.store(value.value, self._at(address, offset, value.value.type), align=4)

    def prefetch(self, address, offset: int = 0, level: int = 2, to_write: bool = False) -> None:
        """Asks for the cache line at that address, which need not be a valid one, into the cache of that level."""
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), I32, I32, I32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        numbers = [ir.Constant(I32, n) for n in (int(to_write), 4 - level, 1)]  # write, locality (3 is the L1), data
        self.builder.call(function, [self._at(address, offset, I8), *numbers])

    def smaller(self, a, b) -> Int:
        return Int(self, self.builder.select(a.compare("<", b), a.value, b.value))

    def load_int(self, address, offset: int = 0) -> Int:
        return Int(self, self.builder.load(self._at(address, offset, I64), align=8, typ=I64))

    # arithmetic

    def _call(self, name, result, *args):
        function = ir.FunctionType(result, [arg.type for arg in args])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function, name), args)

    def fma(self, a, b, c) -> Vector:
        """a * b + c: one instruction where the CPU has it, two where it has not."""
        lanes = max(v.lanes for v in (a, b, c) if isinstance(v, Vector))
        a, b, c = (self.vector(v, lanes) for v in (a, b, c))
        return Vector(self, self._call(f"llvm.fmuladd.v{lanes}f32", a.value.type, a.value, b.value, c.value))

    def maximum(self, x, limit) -> Vector:
        """The larger of the two lane by lane; where x is NaN, NaN."""
        limit = self.vector(limit, x.lanes)
        return self.select(self.builder.fcmp_ordered(">", limit.value, x.value), limit, x)

    def minimum(self, x, limit) -> Vector:
        limit = self.vector(limit, x.lanes)
        return self.select(self.builder.fcmp_ordered("<", limit.value, x.value), limit, x)

    def select(self, condition, if_true, if_false) -> Vector:
        return Vector(self, self.builder.select(condition, if_true.value, if_false.value))

    def absolute(self, x) -> Vector:
        return Vector(self, self._call(f"llvm.fabs.v{x.lanes}f32", x.value.type, x.value))

    def copysign(self, x, sign) -> Vector:
        return Vector(self, self._call(f"llvm.copysign.v{x.lanes}f32", x.value.type, x.value, sign.value))

    def round_and_scale(self, t):
        """For t lane by lane: (t, n, scale), n the nearest whole number and scale(p) = p * 2**n.

        AVX-512 has an instruction for each, which also saturates to 0 and infinity. Elsewhere n is found by adding
        1.5 * 2**23, which leaves it in the low bits of the sum, from where it is added to the exponent of p; t is
        clamped to what an exponent can hold.
        """
        lanes, kind = t.lanes, t.value.type
        if AVX512:
            everything, nearest = ir.Constant(ir.IntType(max(8, lanes)), -1), ir.Constant(I32, 0)
            zero = ir.Constant(kind, None)
            rounding = [ir.Constant(I32, 4)] if lanes == 16 else []  # "as is", which only the widest form is told
            name = f"llvm.x86.avx512.mask.{{}}.ps.{32 * lanes}"
            n = self._call(name.format("rndscale"), kind, t.value, nearest, zero, everything, *rounding)

            def scale(p):
                return Vector(self, self._call(name.format("scalef"), kind, p.value, n, zero, everything, *rounding))

            return t, Vector(self, n), scale
        magic = 1.5 * 2**23
        integers = ir.VectorType(I32, lanes)
        t = self.minimum(self.maximum(t, -126.0), 126.0)
        shifted = t + magic

        def scale(p):
            bits = self.builder.shl(self.builder.bitcast(shifted.value, integers), ir.Constant(integers, [23] * lanes))
            return Vector(self, self.builder.bitcast(self.builder.add(self.builder.bitcast(p.value, integers), bits), kind))

        return t, shifted - magic, scale

    def sum(self, x):
        """The sum of all lanes, a scalar, added in halves."""
        lanes, value = WIDTH, x.value
        while lanes > 1:
            lanes //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            low = self.builder.shuffle_vector(value, undefined, ir.Constant(ir.VectorType(I32, lanes), list(range(lanes))))
            high = self.builder.shuffle_vector(
                value, undefined, ir.Constant(ir.VectorType(I32, lanes), list(range(lanes, 2 * lanes)))
            )
            value = self.builder.fadd(low, high)
        return self.builder.extract_element(value, ir.Constant(I32, 0))

    # what happens when the program runs

    def variable(self, initial) -> Variable:
        return Variable(self, initial)

    @contextlib.contextmanager
    def loop(self, count):
        """The body once for each i in range(count)."""
        with cgutils.for_range(self.builder, self.int(count).value, intp=I64) as iteration:
            yield Int(self, iteration.index)

    def when(self, condition):
        return self.builder.if_then(condition)

    def switch(self, value, options):
        """For each option: the code to run where value equals it. Other values run nothing."""
        end = self.builder.append_basic_block("end")
        chosen = self.builder.switch(self.int(value).value, end)
        for option in options:
            block = self.builder.append_basic_block(f"case{option}")
            chosen.add_case(ir.Constant(I64, option), block)
            self.builder.position_at_end(block)
            yield option
            self.builder.branch(end)
        self.builder.position_at_end(end)


# -- staged functions, and the vector type in Numba -------------------------------------------------------------------


def staged(result, *arguments):
    """Turns function(code, *values) into a function that @njit code can call; see the head of this file."""

    def wrap(code, kind, value):
        return Vector(code, value) if kind is float32xN else Int(code, value) if kind is int64 else value

    def decorate(function):
        def codegen(context, builder, signature, args):
            code = Code(context, builder)
            given = [wrap(code, kind, value) for kind, value in zip(arguments, args, strict=True)]
            value = function(code, *given)
            if result is void:
                return context.get_dummy_value()
            return value.value if isinstance(value, (Int, Vector)) else value

        def typed(typing_context, *given):
            return result(*arguments), codegen

        names = ["typing_context"] + [f"argument_{i}" for i in range(len(arguments))]
        typed.__signature__ = inspect.Signature([inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names])
        typed.__name__ = typed.__qualname__ = function.__name__
        typed.__doc__ = function.__doc__
        return intrinsic(typed)

    return decorate


@staged(float32xN, int64)
def load(code, address):
    """WIDTH floats from that address."""
    return code.load(address)


@staged(void, int64, float32xN)
def store(code, address, value):
    code.store(address, value)


@staged(float32xN, float32)
def splat(code, scalar):
    return code.splat(scalar)


@staged(float32xN, int64)
def load_splat(code, address):
    """WIDTH copies of the float32 at that address."""
    return code.load_splat(address)


@staged(float32, int64)
def load_scalar(code, address):
    return code.builder.load(code._at(address, 0, F32), align=4, typ=F32)


@staged(void, int64, float32)
def store_scalar(code, address, value):
    code.builder.store(value, code._at(address, 0, F32), align=4)


@staged(int64, int64)
def load_int(code, address):
    return code.load_int(address)


@staged(int64, int64, int64)
def get(code, row, column):
    """That column of a row of the table of steps."""
    return code.load_int(row + column * 8)


@staged(float32, int64, int64)
def get_float(code, row, column):
    return code.builder.load(code._at(row + column * 8, 0, F32), align=4, typ=F32)


@staged(void, int64, int64)
def store_int(code, address, value):
    code.builder.store(value.value, code._at(address, 0, I64), align=8)


@staged(void, int64)
def prefetch(code, address):
    code.prefetch(address)


@staged(float32xN, float32xN, float32xN, float32xN)
def fma(code, a, b, c):
    """a * b + c"""
    return code.fma(a, b, c)


@staged(float32xN, float32xN, float32xN)
def maximum(code, x, y):
    return code.maximum(x, y)


@staged(float32, float32xN)
def horizontal_sum(code, x):
    return code.sum(x)


@staged(float32xN, float32xN, float32xN)
def _add(code, x, y):
    return x + y


@staged(float32xN, float32xN, float32xN)
def _subtract(code, x, y):
    return x - y


@staged(float32xN, float32xN, float32xN)
def _multiply(code, x, y):
    return x * y


@staged(float32xN, float32xN, float32xN)
def _divide(code, x, y):
    return x / y


def _operator(function, implementation):
    @overload(function)
    def overloaded(x, y):
        if x is float32xN and y is float32xN:
            return lambda x, y: implementation(x, y)
        return None


def _register_operators():
    for function, implementation in (
        (operator.add, _add),
        (operator.sub, _subtract),
        (operator.mul, _multiply),
        (operator.truediv, _divide),
    ):
        _operator(function, implementation)


_register_operators()
