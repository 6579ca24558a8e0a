"""Activations on vectors, made to be applied to the sums of a convolution while they are still in registers.

Plain meaning, for swish: x / (1 + exp(-x)). With the exp of a mathematics library it costs more than many a convolution
in front of it, and B0 needs it for 5.7 million numbers. What it takes here, for a register of 16 (one core of a Zen 4 EPYC,
0.6 ns of it for loading and storing):

    exp by range reduction, a polynomial, 2**n by integer arithmetic, clamped to where that works,
      1 / (1 + e) by an estimate and a step of Newton's method                                            3.1 ns
    2**n and rounding by the instructions that AVX-512 has for them                                       2.9 ns
    a division instead of the estimate: it occupies no multiplier                                         2.3 ns
    no clamps, since those instructions saturate to 0 and infinity, and x / infinity is right             2.2 ns
    no multiplication by log2(e): it is in the weights                                                    1.9 ns

exp(y) is 2**(y log2(e)), and 2**t for t = n + f, n whole and f in [-1/2, 1/2], is a polynomial in f whose exponent is
then raised by n. Beside the two arithmetic units for multiplications, swish keeps those for additions and the divider busy,
so 7 cycles are what is left of it behind a matrix product.

*The factor in the weights.* Swish multiplies x by -log2(e) first. The weights that make x can as well have that factor
in them, and those that use the result can take it out again, for both are plain sums. So inside of the network swish takes and
gives numbers that are INNER = -log2(e) times what they mean; plan.py scales the weights around it.
"""

from __future__ import annotations

import math

from effnet_np.kernels.simd import float32, float32xN, int64, njit, staged
from effnet_np.kernels.table import CLAMP, GELU, GELU_NEW, MISH, SELU, SWISH

# 2**f on [-1/2, 1/2] to 2.6e-6 relative: the polynomial of degree 4 whose largest relative error is smallest.
EXP2 = (0.9999992614437773, 0.6931218146828059, 0.2402474483031089, 0.055917860761546305, 0.009570101967668544)
# The same of degree 5, to 7.5e-8, where an activation subtracts from it or does not have to be quick.
EXP2_FINE = (
    1.000000071654871, 0.6931469670643255, 0.2402211972291463, 0.05550713273762051, 0.009675541384674784, 0.0013276472048391488,
)  # fmt: skip
LOG2E = 1 / math.log(2)


def exp2(code, t, polynomial=EXP2_FINE):
    """2**t lane by lane. Outside of -126..126 the result is clamped, or 0 and infinity where the CPU does that itself."""
    t, n, scale = code.round_and_scale(t)
    f = t - n
    p = code.vector(polynomial[-1], t.lanes)
    for c in polynomial[-2::-1]:
        p = code.fma(p, f, c)
    return scale(p)


def exp(code, x):
    return exp2(code, x * LOG2E)


def sigmoid(code, x):
    return 1.0 / (1.0 + exp2(code, x * -LOG2E))


def swish(code, t):
    """-log2(e) * swish(x) for t = -log2(e) * x."""
    return t / (1.0 + exp2(code, t, EXP2))


def gelu(code, x):
    """x/2 (1 + erf(x / sqrt 2)), erf by Abramowitz and Stegun 7.1.26, which is right to 1.5e-7."""
    z = code.absolute(x) * math.sqrt(0.5)
    t = 1.0 / code.fma(z, 0.3275911, 1.0)
    p = code.vector(1.061405429, x.lanes)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = code.fma(p, t, c)
    tail = p * t * exp2(code, z * z * -LOG2E)  # erfc(|x| / sqrt 2)
    half = x * 0.5
    return code.select(
        code.builder.fcmp_ordered("<", x.value, code.vector(0.0, x.lanes).value), half * tail, half * (2.0 - tail)
    )


def gelu_new(code, x):
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), and (1 + tanh(u)) / 2 is sigmoid(2u)."""
    u = x * code.fma(x * x, 0.044715, 1.0) * math.sqrt(2 / math.pi)
    return x / (1.0 + exp2(code, u * (-2 * LOG2E)))


def selu(code, x):
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    negative = scale * alpha * (exp(code, code.minimum(x, 0.0)) - 1.0)
    return code.select(code.builder.fcmp_ordered("<", x.value, code.vector(0.0, x.lanes).value), negative, x * scale)


def mish(code, x):
    """x tanh(log(1 + e^x)); with n = e^x (e^x + 2) that is x n / (n + 2). From 20 on it is x to the last bit."""
    e = exp(code, code.minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))  # not x * n first, which would overflow from 1e21 on


# Applied to sums while they are in registers; the others follow in a second pass over what was stored.
FUSED = (CLAMP, SWISH)


def fused(code, mode, x, low, high):
    return swish(code, x) if mode == SWISH else code.minimum(code.maximum(x, low), high)


FUNCTIONS = {SWISH: swish, GELU: gelu, GELU_NEW: gelu_new, SELU: selu, MISH: mish}


@staged(float32xN, int64, float32xN)
def activate(code, which, x):
    """The activation with that number; x itself for CLAMP."""
    result = code.variable(x)
    for option in code.switch(which, FUNCTIONS):
        result.set(FUNCTIONS[option](code, x))
    return result.get()


@staged(float32xN, float32xN)
def gate(code, x):
    return sigmoid(code, x)


@staged(float32xN, float32xN)
def unseen(code, x):
    """What an activation that makes an ordinary number of infinity has to add, so that it is NaN: 0 for finite x."""
    return x - x


@staged(float32xN, float32xN, float32, float32)
def clamp(code, x, low, high):
    return code.minimum(code.maximum(x, code.splat(low)), code.splat(high))


@njit
def apply(which, low, high, x):
    """Any activation on one vector."""
    return clamp(x, low, high) if which == CLAMP else activate(which, x)
