"""Fused-MBConv's 3 x 3 convolution, version by version: swish of a full convolution with bias.

Sums are times -log2(e) throughout, as swish takes and gives them (activations.py).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from effnet_np.hf_config import EfficientNetConfig
from effnet_np.kernels import fused, library, product, winograd
from effnet_np.kernels.bench import lively_state
from effnet_np.kernels.native import caller
from effnet_np.kernels.pack import Weights
from effnet_np.kernels.plan import Net, pack
from effnet_np.kernels.product import Epilogue, Panel, Shape
from effnet_np.kernels.record import Activation, Map
from effnet_np.kernels.simd import load, store
from effnet_np.kernels.table import SWISH
from effnet_np.kernels.target import BYTES, UNIT, VECTORS, WIDTH
from effnet_np.kernels.tiling import Ahead, blocks_of, ceil_div, group_start
from effnet_np.kernels.versions.product import NO_LIMITS, aligned

call_kernel = caller(3)
SCRATCH = 1 << 20  # bytes


class Case:
    """One shape, as the second block of a network of two: its packed weights, its maps, and the steps of the library."""

    def __init__(self, size, inputs, outputs):
        config = EfficientNetConfig(
            width_coefficient=1.0, depth_coefficient=1.0, depth_divisor=1, hidden_dim=1280, in_channels=[32, inputs],
            out_channels=[inputs, inputs], kernel_sizes=[3, 3], strides=[1, 1], num_block_repeats=[1, 1],
            expand_ratios=[1, outputs // inputs], fused_stages=2,
        )  # fmt: skip
        state, spec = lively_state(config), config.blocks()[1]
        self.size, self.inputs, self.outputs, self.blocks = size, inputs, outputs, blocks_of(outputs)
        self.flops = 2 * size * size * 9 * inputs * outputs
        _, _, taps = fused.folded_taps(Weights(state, config), spec)
        self.weight, self.bias = (array.astype(np.float32) for array in taps())  # (O, 3, 3, C), (O,)
        net = Net(config, pack(state, config))
        source, target = net.arena.map(inputs, size, size), net.arena.map(outputs, size, size)
        self.arena, self.scratch = aligned(net.arena.bytes // 4 + 64), aligned(SCRATCH // 4)
        bases = {"arena": self.arena.ctypes.data, "weights": net.weights.address}
        self.x = self.arena[source.offset // 4 :][: source.bytes // 4].reshape(source.blocks, size, size, WIDTH)
        self.x[...] = np.random.default_rng(0).standard_normal(self.x.shape)
        self.out = self.arena[target.offset // 4 :][: target.bytes // 4].reshape(target.blocks, size, size, WIDTH)
        steps = [way.plan(net, spec, source, target, None) for way in (fused, winograd)]
        assert max(step.scratch for step in steps) <= SCRATCH
        self.steps = [(step.cut.tasks, step.words(bases, library.addresses(), 1)) for step in steps]
        self.unfolded = aligned(9 * source.blocks, size, size, WIDTH)
        self.panel = bases["weights"] + steps[0].matrix.weights.offset, bases["weights"] + steps[0].matrix.bias.offset
        self.function, self.keep = library.addresses()["product"], net


# -- v0 ---------------------------------------------------------------------------------------------------------------


@njit
def _v0(source, weight, bias, out):
    size, lanes = source.shape[1], source.shape[3]
    for o in range(weight.shape[0]):
        for y in range(size):
            for x in range(size):
                total = bias[o]
                for i in range(max(0, 1 - y), min(3, size + 1 - y)):
                    for j in range(max(0, 1 - x), min(3, size + 1 - x)):
                        for c in range(weight.shape[3]):
                            total += source[c // lanes, y + i - 1, x + j - 1, c % lanes] * weight[o, i, j, c]
                value = total / (np.float32(1) + np.float32(math.exp(total * np.float32(math.log(2)))))
                out[o // lanes, y, x, o % lanes] = value


def v0_loops(case):
    _v0(case.x, case.weight, case.bias, case.out)


# -- v1: the windows as rows of a matrix (im2col), and the library's matrix product ---------------------------------------


@njit
def _v1(function, blocks_in, blocks, size, x, unfolded, weights, bias, out):
    plane = size * size * BYTES
    for i in range(3):
        for j in range(3):
            for b in range(blocks_in):
                to = unfolded + ((3 * i + j) * blocks_in + b) * plane
                for y in range(max(0, 1 - i), min(size, size + 1 - i)):
                    for column in range(max(0, 1 - j), min(size, size + 1 - j)):
                        at = x + b * plane + ((y + i - 1) * size + column + j - 1) * BYTES
                        store(to + (y * size + column) * BYTES, load(at))
    units, groups = 9 * blocks_in * (WIDTH // UNIT), ceil_div(blocks, VECTORS)
    for group in range(groups):
        first = group_start(group, groups, blocks)
        vectors = group_start(group + 1, groups, blocks) - first
        panel = Panel(weights + first * (units * UNIT * BYTES), bias + first * BYTES, units)
        shape, epilogue = Shape(2 * vectors, 1, size * size), Epilogue(0, Activation(SWISH, *NO_LIMITS))
        product.product(
            function, shape, Map(unfolded, 0, plane), panel, Map(out + first * plane, 0, plane), Ahead(x, x), epilogue
        )


def v1_unfolded(case):
    addresses = case.x.ctypes.data, case.unfolded.ctypes.data, *case.panel, case.out.ctypes.data
    _v1(case.function, blocks_of(case.inputs), case.blocks, case.size, *addresses)


# -- v2 and v3: the library's own ---------------------------------------------------------------------------------------


@njit
def _run(function, row, tasks, scratch):
    for task in range(tasks):
        call_kernel(function, row, task, scratch)


def run_step(case, number):
    tasks, row = case.steps[number]
    _run(row[0], row.ctypes.data, tasks, case.scratch.ctypes.data)


def v2_tap_by_tap(case):
    run_step(case, 0)


def v3_winograd(case):
    run_step(case, 1)


VERSIONS = (v0_loops, v1_unfolded, v2_tap_by_tap, v3_winograd)
CASES = {  # channels in whole registers, so that v1 can read them as a matrix
    "28 x 28, 48 to 192": Case(28, 48, 192),
    "56 x 56, 32 to 128": Case(56, 32, 128),
    "48 x 48, 64 to 256": Case(48, 64, 256),
}
NAMES = ("loops", "unfolded into a matrix", "tap by tap, nothing unfolded", "Winograd's F(4 x 4, 3 x 3)")


def results(case) -> list[np.ndarray]:
    """Each version's, (blocks, H, W, WIDTH)."""
    answers = []
    for version in VERSIONS:
        case.out[...] = np.nan
        version(case)
        answers.append(case.out.copy())
    return answers
