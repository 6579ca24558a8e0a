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

   What must happen when the program *runs* is said by `code`: `code.loop(n)`, `code.switch(value, options)`,
   `code.variable(initial)`. An argument may be a group of numbers (a NamedTuple, see record.py).

Nothing here imports Numba before something is compiled. `staged` and `njit` only note down what a function is; Numba asks
the note what it stands for when it meets it in a function that it compiles. So a file may hold a kernel beside the Python
that plans for it, and a process with kernels from the cache does not pay half a second for importing a compiler.

Addresses are plain int64 numbers, in bytes. There are no bounds checks: the `plan` of each kind of step is the place that
knows the sizes. A tested meaning of each operation is in tests/test_kernels_simd.py.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator

import numpy as np
from llvmlite import ir

from effnet_np.kernels.record import fields_of, is_real
from effnet_np.kernels.target import AVX512, WIDTH

I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
VECTOR, INTEGERS = ir.VectorType(F32, WIDTH), ir.VectorType(I32, WIDTH)
# What arguments and results may be, beside groups of numbers.
void, int64, float32, float32xN = "void", "int64", "float32", f"float32x{WIDTH}"


# -- values that exist while code is written --------------------------------------------------------------------------


def _indices(lanes):
    lanes = list(lanes)
    return ir.Constant(ir.VectorType(I32, len(lanes)), lanes)


class Int:
    """A 64-bit whole number of the running program: an address, a count, an index."""

    def __init__(self, code: Code, value):
        self.code, self.value = code, value

    def _binary(self, opcode, other):
        return Int(self.code, getattr(self.code.builder, opcode)(self.value, self.code.int(other).value))

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

    def __radd__(self, other):
        return self._binary("add", other)

    def __rmul__(self, other):
        return self._binary("mul", other)

    def compare(self, relation: str, other):
        """A condition for `code.select`: relation is "<", ">=", "==" and so on."""
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
        self.slot = code.slot(initial.value.type)
        self.set(initial)

    def get(self):
        return self.kind(self.code, self.code.builder.load(self.slot))

    def set(self, value):
        self.code.builder.store(value.value, self.slot)


def keep_apart(code: Code, variables: list[Variable]) -> None:
    """Keeps LLVM from moving work on these vectors, loads and stores across this place. For x86.

    It is empty inline assembly that claims to change memory and these registers ("=x", tied to what they hold). LLVM mixes
    independent computations as if registers were many; where sums occupy 12 of 16, it would spill them.
    """
    values = [variable.get().value for variable in variables]
    kinds = [value.type for value in values]
    one = len(values) == 1
    kind = ir.FunctionType(kinds[0] if one else ir.LiteralStructType(kinds), kinds)
    constraints = ["=x"] * len(kinds) + [str(i) for i in range(len(kinds))] + ["~{memory}"]
    kept = code.builder.call(ir.InlineAsm(kind, "", ",".join(constraints), side_effect=True), values)
    for i, variable in enumerate(variables):
        variable.set(Vector(code, kept if one else code.builder.extract_value(kept, i)))


class Code:
    """Writes instructions: the first argument of every staged function."""

    def __init__(self, context, builder):
        self.context, self.builder = context, builder

    def _declared(self, name, kind):
        """A function that LLVM or the system provides."""
        known = self.builder.module.globals.get(name)
        return known or ir.Function(self.builder.module, kind, name)

    def slot(self, kind):
        """Room for a value of that type, at the beginning of the function that is being written."""
        with self.builder.goto_entry_block():
            return self.builder.alloca(kind)

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
        function = self._declared("llvm.prefetch.p0", kind)
        numbers = [ir.Constant(I32, n) for n in (int(to_write), 4 - level, 1)]  # write, locality (3 is the L1), data
        self.builder.call(function, [self._at(address, offset, I8), *numbers])

    def smaller(self, a, b) -> Int:
        return Int(self, self.builder.select(a.compare("<", b), a.value, b.value))

    def load_int(self, address, offset: int = 0) -> Int:
        return Int(self, self.builder.load(self._at(address, offset, I64), align=8, typ=I64))

    # arithmetic

    def _call(self, name, result, *args):
        function = ir.FunctionType(result, [arg.type for arg in args])
        return self.builder.call(self._declared(name, function), args)

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

    # what happens when the program runs

    def variable(self, initial) -> Variable:
        return Variable(self, initial)

    @contextlib.contextmanager
    def loop(self, count):
        """The body once for each i in range(count)."""
        from numba.core.cgutils import for_range

        with for_range(self.builder, self.int(count).value, intp=I64) as iteration:
            yield Int(self, iteration.index)

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


# -- functions for Numba ----------------------------------------------------------------------------------------------


@functools.cache
def numba_type(kind):
    """Numba's type for an argument: a number, a register, or a group of numbers."""
    from numba import types

    if isinstance(kind, str):
        return _vector_type() if kind == float32xN else getattr(types, kind)
    fields = [numba_type(kind_of(annotation)) for _, annotation in fields_of(kind)]
    return types.BaseTuple.from_types(fields, kind)


def kind_of(annotation):
    """What a field with that annotation is in the running program."""
    return annotation if hasattr(annotation, "_fields") else float32 if is_real(annotation) else int64


@functools.cache
def _vector_type():
    """Numba's type for WIDTH float32 numbers in one register; made known to it, operators included, when first asked for."""
    from numba import types
    from numba.extending import models, overload, register_model

    class Float32Vector(types.Type):
        def __init__(self):
            super().__init__(name=float32xN)

    @register_model(Float32Vector)
    class Float32VectorModel(models.PrimitiveModel):
        def __init__(self, manager, fe_type):
            super().__init__(manager, fe_type, VECTOR)

    vector = Float32Vector()

    def define(function, implementation):
        @overload(function)
        def overloaded(x, y):
            return (lambda x, y: implementation(x, y)) if x is vector and y is vector else None

    for function in (operator.add, operator.sub, operator.mul, operator.truediv):
        define(function, staged(float32xN, float32xN, float32xN)(lambda code, x, y, function=function: function(x, y)))
    return vector


def _refreshed():
    """Numba's context of types, which has read what was made known since it last looked."""
    from numba.core.registry import cpu_target

    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    return cpu_target.typing_context


class Staged:
    """A staged function: `function(code, *arguments)` writes the code of a call. Numba asks for `_numba_type_`."""

    def __init__(self, function, result, arguments):
        self.function, self.result, self.arguments = function, result, arguments

    def _received(self, code, kind, value):
        """An argument as the staged function sees it."""
        if kind == float32xN:
            return Vector(code, value)
        if isinstance(kind, str):
            return Int(code, value) if kind == int64 else value
        parts = [code.builder.extract_value(value, i) for i in range(len(kind._fields))]
        return kind(*[self._received(code, kind_of(a), part) for (_, a), part in zip(fields_of(kind), parts, strict=True)])

    def _write(self, context, builder, _signature, values):
        code = Code(context, builder)
        received = [self._received(code, kind, value) for kind, value in zip(self.arguments, values, strict=True)]
        result = self.function(code, *received)
        if self.result == void:
            return context.get_dummy_value()
        return result.value if isinstance(result, (Int, Vector)) else result

    @functools.cached_property
    def _numba_type_(self):
        from numba.extending import intrinsic

        signature = numba_type(self.result)(*map(numba_type, self.arguments))

        def typed(typing_context, *given):
            return signature, self._write

        names = ["typing_context"] + [f"argument_{i}" for i in range(len(self.arguments))]
        typed.__signature__ = inspect.Signature([inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names])
        typed.__name__ = typed.__qualname__ = self.function.__name__
        typed.__doc__ = self.function.__doc__
        self._intrinsic = intrinsic(typed)  # Numba itself refers to it only weakly
        return _refreshed().resolve_value_type(self._intrinsic)


def staged(result, *arguments):
    """Turns function(code, *values) into a function that compiled code can call; see the head of this file."""
    return lambda function: Staged(function, result, arguments)


class Jitted:
    """A function for compiled code to call, and for Python, which runs it as it stands."""

    def __init__(self, function):
        self.function = function
        functools.update_wrapper(self, function)

    def __call__(self, *arguments):
        return self.function(*arguments)

    @functools.cached_property
    def _numba_type_(self):
        import numba

        self._dispatcher = numba.njit(error_model="numpy")(self.function)  # Numba itself refers to it only weakly
        template = self._dispatcher.get_call_template
        # Compiled once, not once more for each place where an argument is a constant.
        self._dispatcher.get_call_template = lambda args, kws: template([numba.types.unliteral(a) for a in args], kws)
        return self._dispatcher._numba_type_


njit = Jitted


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
