"""Batch norm in training: statistics from pieces, scale and shift from statistics, and the same way back.

Plain meaning, for one channel with M numbers in the batch:

    mean, variance = raw.mean(), raw.var()                   # or the stored ones
    y = scale * raw + shift,        scale = weight / sqrt(variance + eps), shift = bias - mean * scale
    draw = scale * (dy - dy.mean() - xhat * (dy * xhat).mean()) = a * dy + b * raw + c,   xhat = (raw - mean) / sqrt(...)

Neither the normalised map nor its gradient is ever stored: who reads `raw` or `dy` applies the two or three numbers on the
way. What is left for this file are steps between the passes, a few numbers a channel.

Moments of pieces are joined as Chan, Golub and LeVeque (1979) do it: (count, mean, sum of (x - mean)^2) of each, nothing is a
difference of large numbers. With stored statistics dy.mean() and the like do not count: b and c are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.record import Address, Count, Cut, Real, Step
from effnet_np.kernels.simd import load, njit, splat, store
from effnet_np.kernels.target import BYTES
from effnet_np.kernels.tiling import band_of
from effnet_np.kernels.training.batch import Partial
from effnet_np.kernels.training.slopes import root, sum_registers, sum_squares

ZERO, ONE = np.float32(0), np.float32(1)
SCALE, SHIFT, MEAN, RSTD, A, B, C = range(7)  # the registers of a block of channels
SLOTS = 8
MOMENTS = 3  # registers of a block in a piece: count, mean, sum of squares
SUMS = 2  # of dy, and of dy (raw - mean)


class Norm(NamedTuple):
    """A batch norm: its entries of the state, and the registers that are computed from them for each block."""

    weight: Address
    bias: Address
    running_mean: Address
    running_var: Address
    vectors: Address
    factor: Real  # that scale and shift are multiplied by: the next activation's

    @property
    def ready(self) -> Ready:
        return Ready(self.vectors)


class Ready(NamedTuple):
    """Of a batch norm, the registers of each block alone."""

    vectors: Address


@njit
def of_norm(norm, block, slot):
    return load(norm.vectors + (block * SLOTS + slot) * BYTES)


@njit
def add_moments(at, before, address, count):
    """Joins `count` registers to the moments at that address, which has `before` of them already."""
    n, m = splat(np.float32(before)), splat(np.float32(count))
    mean = sum_registers(address, count) / m
    squares = sum_squares(address, count, mean)
    join(at, n, n + m, m, mean, squares)


@njit
def join(at, n, both, m, mean, squares):
    """Chan's formula: n numbers are known at `at`, and m come to them."""
    known, more = load(at + BYTES), load(at + 2 * BYTES)
    distance = mean - known
    store(at, both)
    store(at + BYTES, known + distance * (m / both))
    store(at + 2 * BYTES, more + squares + distance * distance * (n * m / both))


@njit
def clear(address, registers):
    for i in range(registers):
        store(address + i * BYTES, splat(ZERO))


@dataclass(frozen=True, kw_only=True)
class NormForward(Step):
    """Scale and shift of all channels. A task: those of a band of blocks."""

    norm: Norm
    moments: Partial | None  # None: the stored statistics
    channels: Count
    eps: Real
    momentum: Real
    unbias: Real  # biased to unbiased variance, which is what is stored

    label, flops = "norm", 0

    @property
    def floats(self):
        return 6 * self.channels

    @property
    def scratch(self):
        return MOMENTS * BYTES


@dataclass(frozen=True, kw_only=True)
class NormBackward(Step):
    """a, b, c, and the gradients of weight and bias. A task: those of a band of blocks."""

    norm: Norm
    sums: Partial
    channels: Count
    share: Real  # 1 / numbers of a channel in the batch; 0 for stored statistics
    dweight: Address
    dbias: Address

    label, flops, floats = NormForward.label, NormForward.flops, NormForward.floats


def cut_blocks(blocks: int) -> Cut:
    return Cut(1, blocks, max(1, min(8, blocks // 4)), 1)


@njit
def joined(step, block, scratch):
    """The pieces of a block, joined in their order at `scratch`."""
    clear(scratch, MOMENTS)
    for piece in range(step.moments.pieces):
        at = step.moments.address + piece * step.moments.piece + block * (MOMENTS * BYTES)
        n, m = load(scratch), load(at)
        join(scratch, n, n + m, m, load(at + BYTES), load(at + 2 * BYTES))


@kernel(NormForward)
def norm_forward(step, task, scratch):
    first, last = band_of(step.cut.blocks, step.cut, task)
    norm = step.norm
    for block in range(first, last):
        at = norm.running_mean + block * BYTES
        at_var = norm.running_var + block * BYTES
        mean, variance = load(at), load(at_var)
        if step.moments.address != 0:
            joined(step, block, scratch)
            old, new = splat(ONE - step.momentum), splat(step.momentum)
            stored, stored_var = mean * old, variance * old
            mean = load(scratch + BYTES)
            variance = load(scratch + 2 * BYTES) / load(scratch)
            store(at, stored + mean * new)
            store(at_var, stored_var + variance * splat(step.unbias) * new)
        rstd = splat(ONE) / root(variance + splat(step.eps))
        scale = load(norm.weight + block * BYTES) * rstd
        shift = load(norm.bias + block * BYTES) - mean * scale
        to = norm.vectors + block * (SLOTS * BYTES)
        store(to + SCALE * BYTES, scale * splat(norm.factor))
        store(to + SHIFT * BYTES, shift * splat(norm.factor))
        store(to + MEAN * BYTES, mean)
        store(to + RSTD * BYTES, rstd)


@kernel(NormBackward)
def norm_backward(step, task, scratch):
    first, last = band_of(step.cut.blocks, step.cut, task)
    norm = step.norm
    for block in range(first, last):
        total, product = splat(ZERO), splat(ZERO)
        for piece in range(step.sums.pieces):
            at = step.sums.address + piece * step.sums.piece + block * (SUMS * BYTES)
            total, product = total + load(at), product + load(at + BYTES)
        rstd, mean = of_norm(norm, block, RSTD), of_norm(norm, block, MEAN)
        store(step.dweight + block * BYTES, product * rstd)
        store(step.dbias + block * BYTES, total)
        share = splat(step.share)
        a = load(norm.weight + block * BYTES) * rstd
        b = splat(ZERO) - a * rstd * rstd * product * share
        to = norm.vectors + block * (SLOTS * BYTES)
        store(to + A * BYTES, a)
        store(to + B * BYTES, b)
        store(to + C * BYTES, splat(ZERO) - a * total * share - b * mean)
