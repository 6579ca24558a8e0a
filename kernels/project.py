"""Projection: the 1x1 convolution at the end of a block, with the squeeze-excite gates before it and the residual behind it.

Plain meaning: out = (gates * A) @ B + bias, then + residual where the block has one.       # (M, K) @ (K, N) -> (M, N)

The product itself is in product.py. Gates are multiplied into the weights (K x N numbers, once for each band of positions)
or, by the step before, into the activations (M x K), whichever are fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

from effnet_np.kernels.arena import FeatureMap
from effnet_np.kernels.bands import product_bands
from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.product import Epilogue, Panel, Shape, map_at, pack_matrix, panel, panel_at, product
from effnet_np.kernels.record import Address, Count, Function, Map, Step
from effnet_np.kernels.simd import load, load_splat, njit, store
from effnet_np.kernels.target import BYTES, HALVES, UNIT, VECTORS, WIDTH
from effnet_np.kernels.tiling import IDENTITY, ahead_of, band_of, blocks_of, cut, group_edges, share_of, units_of

FOLDING = 3.0  # cycles to multiply one register of weights by a gate


@dataclass(frozen=True, kw_only=True)
class Project(Step):
    """A task: a band of positions for a group of channel blocks."""

    inputs: Count
    outputs: Count
    pixels: Count
    source: Map
    matrix: Panel
    half: Count  # 1 where the last block of outputs fills at most half a register
    target: Map
    residual: Address  # of a map like the target, or None
    gates: Address  # to be multiplied into the weights, or None
    product: Function = "product"

    @property
    def flops(self):
        return 2 * self.inputs * self.outputs * self.pixels

    @property
    def floats(self):
        written = self.outputs * self.pixels
        return self.inputs * (self.pixels + self.outputs) + written * (2 if self.residual else 1)

    @property
    def scratch(self):
        return self.matrix.units * UNIT * VECTORS * BYTES if self.gates else 0


# -- planning ----------------------------------------------------------------------------------------------------------


def pack(weights, spec) -> None:
    if spec.fused and spec.expand_ratio == 1:  # its full convolution is the projection
        return
    name = f"encoder.blocks.{spec.index}.projection."
    folded = weights.fold(name + "project_conv", name + "project_bn", weights.inner, 1.0)
    pack_matrix(weights, (spec.index, "project"), spec.expanded_channels, spec.out_channels, folded)


def bands(source: FeatureMap, outputs: int, folding: bool) -> int:
    depth = units_of(source.channels) * UNIT
    return product_bands(blocks_of(outputs), depth, source.pixels, FOLDING if folding else 0.0)


def takes_gates(source: FeatureMap, outputs: int) -> bool:
    """Whether gates go into the weights."""
    weights = bands(source, outputs, True) * units_of(source.channels) * UNIT * blocks_of(outputs)
    return weights <= source.pixels * source.blocks


def fills_half(channels: int) -> bool:
    """Whether the last block of outputs fills at most half a register, in a group that has another block beside it."""
    edges = group_edges(blocks_of(channels))
    return HALVES and 0 < channels % WIDTH <= WIDTH // 2 and edges[-1] - edges[-2] > 1


def plan(net, spec, source: FeatureMap, target: FeatureMap, residual: FeatureMap | None, gates) -> Project:
    """residual: the map to be added, or None. gates: the address of those to be multiplied into the weights, or None."""
    return Project(
        cut=cut(target.blocks, bands(source, target.channels, gates is not None)),
        inputs=source.channels,
        outputs=target.channels,
        pixels=source.pixels,
        source=source.map,
        matrix=panel(net.weights, (spec.index, "project"), source.channels),
        half=int(fills_half(target.channels)),
        target=target.map,
        residual=residual.map.address if residual else None,
        gates=gates,
    )


# -- the kernel --------------------------------------------------------------------------------------------------------


@njit
def gated(matrix, gates, vectors, scratch):
    """The panel in the scratch, each input's weights multiplied by its gate."""
    source, target = matrix.weights, scratch
    for k in range(matrix.units * UNIT):
        g = load_splat(gates + 4 * k)
        for _ in range(vectors):
            store(target, load(source) * g)
            source += BYTES
            target += BYTES
    return Panel(scratch, matrix.bias, matrix.units)


@kernel(Project)
def project(step, task, scratch):
    share = share_of(step.cut, task)
    first, last = band_of(step.pixels, step.cut, share.band)
    halves = 2 * share.vectors
    if share.group == step.cut.groups - 1:
        halves -= step.half
    ahead = ahead_of(step.cut, step.matrix, share, task + step.threads)
    matrix = panel_at(step.matrix, share.first_block)
    if step.gates != 0:
        matrix = gated(matrix, step.gates, share.vectors, scratch)
    residual = step.residual
    if residual != 0:
        residual += share.first_block * step.target.plane + first * BYTES
    source, target = map_at(step.source, 0, first), map_at(step.target, share.first_block, first)
    product(step.product, Shape(halves, 1, last - first), source, matrix, target, ahead, Epilogue(residual, IDENTITY))
