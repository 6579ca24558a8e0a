"""What Numba has to know of records: kernels that read their step by name, and native functions that take groups.

`@kernel(Head) def head(step, task, scratch)` makes the function the kernel of that kind of step. `step` is an address in the
running program, and `step.pixels` a load from a distance that is known when the kernel is compiled.

`@function(Shape, Map) def product(shape, map)` is compiled once, as native.py explains, and is called with its address in
front: `product(step.product, shape, map)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from effnet_np.kernels.native import REGISTRY, Native
from effnet_np.kernels.record import HEADER, Count, fields_of, is_group, is_real, layout
from effnet_np.kernels.simd import F32, I64, Code, Int, Staged, float32, int64, kind_of, numba_type, void


@dataclass(frozen=True)
class TypedNative(Native):
    """A native function with arguments of more types than native.py knows; `types()` gives them to Numba."""

    types: Callable[[], list]

    def signature(self):
        from numba import types

        return types.void(*self.types())


def kernel(kind):
    """Decorates `function(step, task, scratch)`: the kernel of that kind of step."""

    def register(function):
        kind.kernel = function.__name__
        types = lambda: [step_type(kind), numba_type(int64), numba_type(int64)]  # noqa: E731
        REGISTRY.append(TypedNative(function.__name__, function, 3, 0, types))
        return function

    return register


def function(*kinds):
    """Decorates a native function that takes those groups and numbers; of all their numbers, the reals have to be the last."""
    numbers = _numbers(kinds)
    integers = numbers.count(int64)
    if float32 in numbers[:integers]:
        raise TypeError("reals have to be the last of the numbers that a native function takes")
    pointer = ir.FunctionType(ir.VoidType(), [F32 if number == float32 else I64 for number in numbers])

    def call(code: Code, address, *arguments):
        code.builder.call(code._pointer(address, pointer), [getattr(n, "value", n) for n in _flat(arguments)])

    def register(function):
        types = lambda: [numba_type(kind) for kind in kinds]  # noqa: E731
        REGISTRY.append(TypedNative(function.__name__, function, integers, len(numbers) - integers, types))
        return Staged(functools.wraps(function)(call), void, (int64, *kinds))

    return register


def _numbers(kinds) -> list[str]:
    """int64 or float32 for each number of the arguments."""
    parts = [_numbers(kind_of(a) for _, a in fields_of(kind)) if is_group(kind) else [kind] for kind in kinds]
    return [number for part in parts for number in part]


def _flat(values) -> list:
    return [number for value in values for number in (_flat(value) if isinstance(value, tuple) else [value])]


@functools.cache
def step_type(kind):
    """Numba's type of a step of that kind: an address, whose attributes are the fields of the record there."""
    return _step_types()(kind)


@functools.cache
def _step_types():
    from numba import types
    from numba.core.imputils import lower_getattr_generic
    from numba.core.typing.templates import AttributeTemplate, infer_getattr
    from numba.extending import models, register_model

    class StepType(types.Type):
        def __init__(self, kind):
            self.fields = dict(fields_of(kind)) | dict.fromkeys(HEADER, Count)
            self.words = layout(kind) | {name: (index, Count) for index, name in enumerate(HEADER)}
            super().__init__(name=f"step({kind.__name__})")

    @register_model(StepType)
    class StepModel(models.PrimitiveModel):
        def __init__(self, manager, fe_type):
            super().__init__(manager, fe_type, I64)

    @infer_getattr
    class StepFields(AttributeTemplate):
        key = StepType

        def generic_resolve(self, step, name):
            return numba_type(kind_of(step.fields[name])) if name in step.fields else None

    @lower_getattr_generic(StepType)
    def load_field(context, builder, step, address, name):
        code = Code(context, builder)

        def load(path, annotation):
            if is_group(annotation):
                parts = [load(f"{path}.{name}", a) for name, a in fields_of(annotation)]
                return context.make_tuple(builder, numba_type(annotation), parts)
            index, _ = step.words[path]
            kind, align = (F32, 4) if is_real(annotation) else (I64, 8)
            return builder.load(code._at(Int(code, address), 8 * index, kind), align=align, typ=kind)

        return load(name, step.fields[name])

    return StepType
