"""Elementwise work on rows of registers: what stands between two products.

Each function walks over `count` registers of one block of channels, so that scales and sums are one register for all of them.
The activation's number is looked at once for a row, and each has a loop of its own.
"""

from __future__ import annotations

from effnet_np.kernels.record import Activation
from effnet_np.kernels.simd import float32xN, int64, staged, void
from effnet_np.kernels.target import BYTES
from effnet_np.kernels.training.slopes import MODES, activation, both, slope, total, unrolled


def _limits(code, act):
    return code.splat(act.low), code.splat(act.high)


@staged(void, int64, int64, int64, float32xN, float32xN, float32xN, Activation)
def activate_row(code, source, target, count, scale, shift, gate, act):
    """target = activation(source * scale + shift) * gate"""
    low, high = _limits(code, act)
    for mode in code.switch(act.code, MODES):
        with code.loop(count) as i:
            u = code.fma(code.load(source + i * BYTES), scale, shift)
            code.store(target + i * BYTES, activation(code, mode, u, low, high) * gate)


@staged(float32xN, int64, int64, float32xN, float32xN, Activation)
def activated_sum(code, source, count, scale, shift, act):
    """The sum of activation(source * scale + shift)."""
    low, high = _limits(code, act)
    result = code.variable(code.vector(0.0))
    for mode in code.switch(act.code, MODES):
        with code.loop(count) as i:
            u = code.fma(code.load(source + i * BYTES), scale, shift)
            result.set(result.get() + activation(code, mode, u, low, high))
    return result.get()


@staged(void, int64, int64, int64, int64, int64, float32xN, float32xN)
def scale_row(code, source, mask, residual, target, count, scale, shift):
    """target = (source * scale + shift) * mask + residual; mask and residual may be 0: then there is none."""
    for kind in code.switch(_kind(code, mask, residual), range(4)):

        def body(i, way, kind=kind):
            y = code.fma(code.load(source + i * BYTES), scale, shift)
            if kind & 1:
                y = y * code.load(mask + i * BYTES)
            if kind & 2:
                y = y + code.load(residual + i * BYTES)
            code.store(target + i * BYTES, y)

        unrolled(code, count, body)


def _kind(code, first, second):
    """1 where the first address is one, plus 2 where the second is."""
    from effnet_np.kernels.simd import I64, Int

    bits = [code.builder.zext(address.compare("!=", 0), I64) for address in (first, second)]
    return Int(code, bits[0]) + Int(code, bits[1]) * 2


@staged(void, int64, int64, int64, int64, float32xN, int64)
def sums_row(code, gradient, mask, raw, count, mean, sums):
    """Adds to the two registers at `sums`: the sum of dy, and of dy (raw - mean); dy = gradient * mask (0: none)."""
    parts = [[code.variable(code.vector(0.0)) for _ in range(4)] for _ in range(2)]
    for kind in code.switch(_kind(code, mask, code.int(0)), range(2)):

        def body(i, way, kind=kind):
            y = code.load(gradient + i * BYTES)
            if kind:
                y = y * code.load(mask + i * BYTES)
            parts[0][way].set(parts[0][way].get() + y)
            parts[1][way].set(code.fma(y, code.load(raw + i * BYTES) - mean, parts[1][way].get()))

        unrolled(code, count, body)
    for number, part in enumerate(parts):
        code.store(sums, code.load(sums, number * BYTES) + total([p.get() for p in part]), number * BYTES)


@staged(void, int64, int64, int64, int64, int64, float32xN, float32xN, float32xN)
def gradient_row(code, gradient, mask, raw, target, count, a, b, c):
    """target = a dy + b raw + c: the gradient of what a batch norm was given; dy = gradient * mask (0: none)."""
    for kind in code.switch(_kind(code, mask, code.int(0)), range(2)):

        def body(i, way, kind=kind):
            y = code.load(gradient + i * BYTES)
            if kind:
                y = y * code.load(mask + i * BYTES)
            code.store(target + i * BYTES, code.fma(y, a, code.fma(code.load(raw + i * BYTES), b, c)))

        unrolled(code, count, body)


@staged(void, int64, int64, int64, int64, float32xN, float32xN, float32xN, float32xN, float32xN, int64, Activation)
def slope_row(code, gradient, raw, target, count, scale, shift, gate, more, mean, sums, act):
    """target = dz = (gradient * gate + more) * slope(raw * scale + shift); adds dz and dz (raw - mean) up at `sums`."""
    low, high = _limits(code, act)
    parts = [code.variable(code.vector(0.0)) for _ in range(2)]  # of this row alone: short sums are exact sums
    for mode in code.switch(act.code, MODES):
        with code.loop(count) as i:
            x = code.load(raw + i * BYTES)
            dy = code.fma(code.load(gradient + i * BYTES), gate, more)
            dz = dy * slope(code, mode, code.fma(x, scale, shift), low, high)
            code.store(target + i * BYTES, dz)
            parts[0].set(parts[0].get() + dz)
            parts[1].set(code.fma(dz, x - mean, parts[1].get()))
    for number, part in enumerate(parts):
        code.store(sums, code.load(sums, number * BYTES) + part.get(), number * BYTES)


@staged(void, int64, int64, int64, int64, int64, float32xN, float32xN, float32xN, int64, Activation)
def both_row(code, gradient, raw, activated, target, count, scale, shift, mean, sums, act):
    """As `slope_row`, and activated = activation(raw * scale + shift); it may be in the place of `raw`."""
    low, high = _limits(code, act)
    parts = [code.variable(code.vector(0.0)) for _ in range(2)]  # of this row alone: short sums are exact sums
    for mode in code.switch(act.code, MODES):
        with code.loop(count) as i:
            x = code.load(raw + i * BYTES)
            y, derivative = both(code, mode, code.fma(x, scale, shift), low, high)
            dz = code.load(gradient + i * BYTES) * derivative
            code.store(activated + i * BYTES, y)
            code.store(target + i * BYTES, dz)
            parts[0].set(parts[0].get() + dz)
            parts[1].set(code.fma(dz, x - mean, parts[1].get()))
    for number, part in enumerate(parts):
        code.store(sums, code.load(sums, number * BYTES) + part.get(), number * BYTES)


@staged(void, int64, int64, int64, float32xN)
def add_row(code, source, other, count, scale):
    """source = source + other * scale"""

    def body(i, way):
        at = source + i * BYTES
        code.store(at, code.fma(code.load(other + i * BYTES), scale, code.load(at)))

    unrolled(code, count, body)


@staged(void, int64, int64, int64)
def copy_row(code, source, target, count):
    unrolled(code, count, lambda i, way: code.store(target + i * BYTES, code.load(source + i * BYTES)))


@staged(void, int64, int64, int64, float32xN, Activation)
def multiply_slopes(code, gradient, raw, count, scale, act):
    """gradient = gradient * slope(raw * scale)"""
    low, high = _limits(code, act)
    for mode in code.switch(act.code, MODES):
        with code.loop(count) as i:
            derivative = slope(code, mode, code.load(raw + i * BYTES) * scale, low, high)
            code.store(gradient + i * BYTES, code.load(gradient + i * BYTES) * derivative)
