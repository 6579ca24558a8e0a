"""The optimisers of training/optimizers.py in one pass over memory: weight, gradient and memories of a number together.

NumPy goes through a parameter's arrays eight times for AdamW; for B0's 5.3 million numbers that is a tenth of a step. Here each
register of them is loaded, moved and stored once. The records' numbers (rate, decay, ...) are written anew at each step.

`Squares` adds up the squares of the gradients, for their length and because a NaN or an infinity anywhere shows in the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.record import Address, Count, Cut, Real, Step
from effnet_np.kernels.simd import int64, splat, staged, store, void
from effnet_np.kernels.target import BYTES, WIDTH
from effnet_np.kernels.tiling import band_of, ceil_div
from effnet_np.kernels.training.slopes import sum_squares

SGD, ADAMW, RMSPROP = range(3)
REGISTERS = 1024  # of a task
ZERO = np.float32(0)


class Numbers(NamedTuple):
    """rate; decay: what the weight is multiplied by (AdamW), or what of it is added to the gradient; scale of the gradient."""

    rate: Real
    decay: Real
    scale: Real
    a: Real  # SGD: momentum; AdamW: beta 1; RMSProp: decay of the square
    b: Real  # SGD: 1 for Nesterov's look ahead; AdamW: beta 2; RMSProp: momentum
    c: Real  # AdamW: 1 / sqrt(1 - beta2 ** t)
    eps: Real
    rest_a: Real  # 1 - a and 1 - b: not by subtracting here, where 1 - 0.999 is off in its fifth digit
    rest_b: Real


@dataclass(frozen=True, kw_only=True)
class Move(Step):
    """One parameter moves. A task: some registers of it."""

    kind: Count
    registers: Count
    weight: Address
    gradient: Address
    first: Address
    second: Address
    numbers: Numbers

    @property
    def flops(self):
        return 0

    @property
    def floats(self):
        return 6 * self.registers * WIDTH


@dataclass(frozen=True, kw_only=True)
class Squares(Step):
    """The squares of a gradient, a register of sums for each task."""

    registers: Count
    gradient: Address
    sums: Address

    @property
    def flops(self):
        return 0

    @property
    def floats(self):
        return self.registers * WIDTH


def cut_registers(registers: int) -> Cut:
    return Cut(1, 1, ceil_div(registers, REGISTERS), 1)


def _root(code, x):
    from effnet_np.kernels.simd import Vector

    return Vector(code, code._call(f"llvm.sqrt.v{WIDTH}f32", x.value.type, x.value))


@staged(void, int64, int64, int64, int64, int64, int64, Numbers)
def _move(code, kind, count, weight, gradient, first, second, numbers):
    rate, decay, scale, a, b, c, eps, rest_a, rest_b = (code.splat(number) for number in numbers)
    for option in code.switch(kind, (SGD, ADAMW, RMSPROP)):
        with code.loop(count) as i:
            at = i * BYTES
            w, g, m = code.load(weight + at), code.load(gradient + at) * scale, code.load(first + at)
            if option == SGD:
                g = code.fma(decay, w, g)
                m = code.fma(a, m, g)
                ahead = code.fma(code.fma(a, m, g) - m, b, m)  # of Nesterov (b = 1), or m itself
                w = w - rate * ahead
            elif option == ADAMW:
                s = code.load(second + at)
                w = w * decay
                m = a * m + rest_a * g
                s = b * s + rest_b * g * g
                w = w - rate * m / (_root(code, s) * c + eps)
                code.store(second + at, s)
            else:
                s = code.load(second + at)
                g = code.fma(decay, w, g)
                s = a * s + rest_a * g * g
                m = b * m + rate * g / _root(code, s + eps)
                w = w - m
                code.store(second + at, s)
            code.store(first + at, m)
            code.store(weight + at, w)


@kernel(Move)
def move(step, task, scratch):
    begin, end = band_of(step.registers, step.cut, task)
    at = begin * BYTES
    weight, gradient, first, second = step.weight + at, step.gradient + at, step.first + at, step.second + at
    _move(step.kind, end - begin, weight, gradient, first, second, step.numbers)


@kernel(Squares)
def squares(step, task, scratch):
    begin, end = band_of(step.registers, step.cut, task)
    store(step.sums + task * BYTES, sum_squares(step.gradient + begin * BYTES, end - begin, splat(ZERO)))
