"""The head: the last 1x1 convolution, and the mean (or the largest) of each of its channels.

Plain meaning: pooled = activation(A @ B + bias).mean(axis=0), for the positions of a map as rows.

A task makes up to 3 blocks of channels for all positions and pools them while they are in the L1. The map itself is stored
only where somebody asks for it, which the bare model does and the classifier does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effnet_np.kernels.arena import FeatureMap
from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.product import Epilogue, Panel, Shape, map_at, pack_matrix, panel, panel_at, product
from effnet_np.kernels.record import Activation, Address, Count, Function, Map, Real, Step
from effnet_np.kernels.simd import load, maximum, njit, splat, store
from effnet_np.kernels.target import BYTES, VECTORS
from effnet_np.kernels.tiling import ahead_of, blocks_of, cut, share_of

ZERO = np.float32(0)
MEAN, MAX = range(2)  # the kinds of pool


@dataclass(frozen=True, kw_only=True)
class Head(Step):
    """A task: a group of channel blocks of the last convolution, and their pool."""

    inputs: Count
    outputs: Count
    pixels: Count
    source: Map
    matrix: Panel
    target: Map | None  # where the map goes, if anybody asks for it
    pool: Count
    pooled: Address
    scale: Real  # of what was added up
    rescale: Real  # takes the factor out that the activation leaves in (activations.py)
    activation: Activation
    product: Function = "product"

    @property
    def flops(self):
        return 2 * self.inputs * self.outputs * self.pixels

    @property
    def floats(self):
        return self.inputs * (self.pixels + self.outputs) + self.outputs

    @property
    def scratch(self):
        return VECTORS * self.pixels * BYTES


# -- planning ----------------------------------------------------------------------------------------------------------


def pack(weights) -> None:
    config, fold = weights.config, weights.fold("encoder.top_conv", "encoder.top_bn", 1.0, weights.inner)
    pack_matrix(weights, "head", config.blocks()[-1].out_channels, config.head_channels, fold)


def plan(net, source: FeatureMap, pooled: Address, last: FeatureMap | None) -> Head:
    """last: where the map is wanted, if it is."""
    largest = net.config.pooling_type == "max"
    return Head(
        cut=cut(blocks_of(net.config.head_channels)),
        inputs=source.channels,
        outputs=net.config.head_channels,
        pixels=source.pixels,
        source=source.map,
        matrix=panel(net.weights, "head", source.channels),
        target=last.map if last else None,
        pool=MAX if largest else MEAN,
        pooled=pooled,
        scale=1.0 if largest else 1.0 / source.pixels,
        rescale=1.0 / net.weights.inner,
        activation=net.activation,
    )


# -- the kernel --------------------------------------------------------------------------------------------------------


@njit
def pool_plane(step, at):
    """The mean or the largest of a plane's positions, for WIDTH channels; the plane loses its factor."""
    total = splat(ZERO)
    for i in range(step.pixels):
        y = load(at + i * BYTES) * splat(step.rescale)
        store(at + i * BYTES, y)
        total = maximum(total, y) if step.pool == MAX and i > 0 else total + y
    return total * splat(step.scale)


@kernel(Head)
def head(step, task, scratch):
    share = share_of(step.cut, task)
    target = Map(scratch, 0, step.pixels * BYTES)
    if step.target.address != 0:
        target = map_at(step.target, share.first_block, 0)
    matrix, ahead = panel_at(step.matrix, share.first_block), ahead_of(step.cut, step.matrix, share, task + step.threads)
    shape, epilogue = Shape(2 * share.vectors, 1, step.pixels), Epilogue(0, step.activation)
    product(step.product, shape, step.source, matrix, target, ahead, epilogue)
    for v in range(share.vectors):
        store(step.pooled + (share.first_block + v) * BYTES, pool_plane(step, target.address + v * target.plane))
