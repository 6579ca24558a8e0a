"""Activations with their derivatives, and arithmetic on rows of registers.

Inside of training swish takes numbers u = INNER * x (see ../activations.py), the other activations x itself: the scale and
shift of the batch norm before have the factor in them. What comes out is the activation itself, without a factor.

Plain meaning: `activation(u)` is y, `slope(u)` is dy / dx.
"""

from __future__ import annotations

import math

from effnet_np.kernels import activations
from effnet_np.kernels.activations import exp, exp2
from effnet_np.kernels.simd import float32xN, int64, staged
from effnet_np.kernels.table import CLAMP, GELU, GELU_NEW, INNER, MISH, SELU, SWISH
from effnet_np.kernels.target import WIDTH

MODES = (CLAMP, SWISH, GELU, GELU_NEW, SELU, MISH)


def below(code, x, limit):
    return code.builder.fcmp_ordered("<", x.value, code.vector(limit, x.lanes).value)


def _gelu(code, x):
    """(Phi(x), phi(x)): the normal distribution and its density; erf by Abramowitz and Stegun 7.1.26."""
    z = code.absolute(x) * math.sqrt(0.5)
    t = 1.0 / code.fma(z, 0.3275911, 1.0)
    p = code.vector(1.061405429, x.lanes)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = code.fma(p, t, c)
    bell = exp2(code, z * z * -activations.LOG2E)
    tail = p * t * bell * 0.5
    return code.select(below(code, x, 0.0), tail, 1.0 - tail), bell * (1 / math.sqrt(2 * math.pi))


def both(code, mode, u, low, high):
    """(y, dy / dx) of one register."""
    if mode == SWISH:
        s = 1.0 / (1.0 + exp2(code, u))
        x = u * (1 / INNER)
        y = x * s
        return y, code.fma(y, 1.0 - s, s)
    if mode == CLAMP:
        y = code.minimum(code.maximum(u, low), high)
        inside = code.builder.and_(
            code.builder.fcmp_ordered(">", u.value, low.value), code.builder.fcmp_ordered("<", u.value, high.value)
        )
        return y, code.select(inside, code.vector(1.0, u.lanes), code.vector(0.0, u.lanes))
    if mode == GELU:
        whole, density = _gelu(code, u)
        return u * whole, code.fma(u, density, whole)
    if mode == GELU_NEW:
        root = math.sqrt(2 / math.pi)
        s = 1.0 / (1.0 + exp2(code, u * code.fma(u * u, 0.044715, 1.0) * (-2 * root * activations.LOG2E)))
        inner = code.fma(u * u, 3 * 0.044715, 1.0) * (2 * root)
        return u * s, code.fma(u * (s * (1.0 - s)), inner, s)
    if mode == SELU:
        scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
        e = exp(code, code.minimum(u, 0.0)) * (scale * alpha)
        negative = below(code, u, 0.0)
        at_zero = code.builder.fcmp_ordered("==", u.value, code.vector(0.0, u.lanes).value)
        flat = code.builder.or_(negative, at_zero)
        return code.select(negative, e - scale * alpha, u * scale), code.select(flat, e, code.vector(scale, u.lanes))
    e = exp(code, code.minimum(u, 20.0))  # MISH; from 20 on it is x to the last bit
    n = e * (e + 2.0)
    t = n / (n + 2.0)
    s = e / (e + 1.0)
    return u * t, code.fma(u * s, 1.0 - t * t, t)


def activation(code, mode, u, low, high):
    return both(code, mode, u, low, high)[0]  # what is not used is not kept by LLVM


def slope(code, mode, u, low, high):
    return both(code, mode, u, low, high)[1]


def unrolled(code, count, body, ways: int = 4):
    """body(index, way) for each index below `count`, `ways` at a time, each with sums of its own; the rest with the first."""
    whole = count >> (ways.bit_length() - 1)
    with code.loop(whole) as i:
        for way in range(ways):
            body(i * ways + way, way)
    with code.loop(count - whole * ways) as i:
        body(whole * ways + i, 0)


@staged(float32xN, float32xN)
def root(code, x):
    from effnet_np.kernels.simd import Vector

    return Vector(code, code._call(f"llvm.sqrt.v{WIDTH}f32", x.value.type, x.value))


def total(sums):
    """The registers of a list added up in pairs."""
    while len(sums) > 1:
        sums = [sums[i] + sums[i + 1] if i + 1 < len(sums) else sums[i] for i in range(0, len(sums), 2)]
    return sums[0]


@staged(float32xN, int64, int64)
def sum_registers(code, address, count):
    """The sum of `count` registers, one behind the other."""
    from effnet_np.kernels.target import BYTES

    sums = [code.variable(code.vector(0.0)) for _ in range(4)]
    unrolled(code, count, lambda i, way: sums[way].set(sums[way].get() + code.load(address + i * BYTES)))
    return total([s.get() for s in sums])


@staged(float32xN, int64, int64, float32xN)
def sum_squares(code, address, count, mean):
    """The sum of (x - mean)^2 over `count` registers."""
    from effnet_np.kernels.target import BYTES

    sums = [code.variable(code.vector(0.0)) for _ in range(4)]

    def body(i, way):
        x = code.load(address + i * BYTES) - mean
        sums[way].set(code.fma(x, x, sums[way].get()))

    unrolled(code, count, body)
    return total([s.get() for s in sums])
