"""A step's record: what the plan (Python) writes down and a kernel (Numba) reads, field by field, by the same names.

A kind of step is a frozen dataclass:

    @dataclass(frozen=True, kw_only=True)
    class Head(Step):
        source: Map
        pixels: Count
        scale: Real

and its kernel reads `step.source.plane`, `step.pixels`, `step.scale`. A field that is missing is a TypeError when the network
is planned, and so is a text where a count should be. `words` makes the row of the table of steps from a step: one int64 for
each number, in the order of the fields. `simd.py` and `kernel.py` make the type from the same fields with which Numba reads it.

Numbers that belong together are a group, a NamedTuple with the same kind of fields (`Map`, `Cut`, ...). Groups are written
while planning, read from a record as a whole, and handed from function to function; the compiler takes them apart.
"""

from __future__ import annotations

import functools
import numbers
from dataclasses import dataclass, fields, is_dataclass
from typing import ClassVar, NamedTuple, get_type_hints

import numpy as np

# -- what a number is --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class At:
    """An address while planning: `offset` bytes into "arena" or "weights". A record has 0 where there is None."""

    base: str
    offset: int

    def __add__(self, offset: int) -> At:
        return At(self.base, self.offset + offset)


class Address:
    """int64, in bytes. While planning: an `At`, or None for nothing."""

    accepts = (At, type(None))


class Count:
    """int64: how many, or which."""

    accepts = (int, np.integer)


class Bytes(Count):
    """int64: a distance in memory."""


class Real:
    """float32"""

    accepts = (numbers.Real,)


class Function:
    """int64: the address of a native function. While planning: its name."""

    accepts = (str,)


def is_real(annotation) -> bool:
    return annotation is Real


# -- groups that several kinds of step use -----------------------------------------------------------------------------


class Map(NamedTuple):
    """A feature map, or a part of one: planes of (height, width, WIDTH) floats, one for each WIDTH channels."""

    address: Address
    row: Bytes  # from one row of positions to the next
    plane: Bytes  # from one WIDTH channels to the next


class Activation(NamedTuple):
    """An activation's number (see table.py), and the limits of CLAMP."""

    code: Count
    low: Real
    high: Real


class Cut(NamedTuple):
    """How a step is cut into tasks: each makes one group of channel blocks for one band of rows or positions."""

    groups: Count
    blocks: Count  # of WIDTH channels, in all groups together
    bands: Count
    bands_first: Count  # 1: task after task goes through a group's bands, and then to the next group; 0: the other way round

    @property
    def tasks(self) -> int:
        return self.groups * self.bands


# -- steps -------------------------------------------------------------------------------------------------------------

HEADER = ("function", "tasks", "threads")  # words that every row begins with; `threads` is only a hint, for prefetching
ROW_WORDS = 64
ROW_BYTES = 8 * ROW_WORDS


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the plan and the profile ask of every kind; the kernel's name is set by `@kernel` (see kernel.py)."""

    kernel: ClassVar[str]
    cut: Cut

    @property
    def label(self) -> str:
        """The kind's name in a profile."""
        return self.kernel

    @property
    def flops(self) -> int:
        """Two for each multiplication with an addition."""
        raise NotImplementedError

    @property
    def floats(self) -> int:
        """Numbers in the tensors that it reads and writes, weights included."""
        raise NotImplementedError

    @property
    def scratch(self) -> int:
        """Bytes of a thread's scratch that a task uses."""
        return 0

    def words(self, bases: dict[str, int], functions: dict[str, int], threads: int) -> np.ndarray:
        """The row of the table, (ROW_WORDS,) int64. bases: the addresses of "arena" and "weights"."""
        numbers = [functions[self.kernel], self.cut.tasks, threads]

        def add(part, kind):
            for name, annotation in fields_of(kind):
                value = None if part is None else getattr(part, name)
                if is_group(annotation):
                    add(value, annotation)
                elif isinstance(value, At):
                    numbers.append(bases[value.base] + value.offset)
                elif isinstance(value, str):
                    numbers.append(functions[value])
                else:
                    numbers.append(value if annotation is not Real else int(np.float32(value or 0.0).view(np.int32)))

        add(self, type(self))
        row = np.zeros(ROW_WORDS, np.int64)
        row[: len(numbers)] = [number or 0 for number in numbers]
        return row

    def __post_init__(self):
        _check(self, type(self).__name__)


def _check(part, where: str) -> None:
    for name, annotation in fields_of(type(part)):
        value = getattr(part, name)
        if not is_group(annotation):
            if isinstance(value, bool) or not isinstance(value, annotation.accepts):
                raise TypeError(f"{where}.{name} is {value!r}, which is no {annotation.__name__}")
        elif value is not None:
            _check(value, f"{where}.{name}")


def is_group(annotation) -> bool:
    return hasattr(annotation, "_fields")


@functools.cache
def fields_of(kind) -> tuple[tuple[str, type], ...]:
    """(name, annotation) of each field of a group or a step. A group that may be missing (`Map | None`) counts as a group."""
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)] if is_dataclass(kind) else kind._fields
    return tuple((name, next(iter(getattr(hints[name], "__args__", (hints[name],))))) for name in names)


@functools.cache
def layout(kind) -> dict[str, tuple[int, type]]:
    """(word of the row, annotation) of each number of a step, by its path: "cut.groups". A missing group is all zeros."""
    paths: dict[str, type] = {}

    def walk(part, prefix):
        for name, annotation in fields_of(part):
            if is_group(annotation):
                walk(annotation, f"{prefix}{name}.")
            else:
                paths[prefix + name] = annotation

    walk(kind, "")
    if len(HEADER) + len(paths) > ROW_WORDS:
        raise ValueError(f"a {kind.__name__} has {len(paths)} numbers, and a row has room for {ROW_WORDS - len(HEADER)}")
    return {path: (len(HEADER) + i, annotation) for i, (path, annotation) in enumerate(paths.items())}
