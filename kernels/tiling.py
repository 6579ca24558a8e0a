"""Cutting: a step into tasks, a task into tiles. The same functions plan (in Python) and compute (compiled).

Tiles are as equal as can be. 14 positions are 7 + 7, not 8 + 6, since a tile takes the time of its instructions, and a tile
of 6 keeps fewer sums in the air than the core's latency wants. So a number of things is cut into larger ones first and then
into some that are one smaller; groups of channel blocks are cut in the same way.

Activations that are too long to be applied to sums in registers follow in a second pass over what was stored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from effnet_np.kernels.activations import activate
from effnet_np.kernels.record import Activation, Address, Count, Cut
from effnet_np.kernels.simd import load, njit, store
from effnet_np.kernels.table import CLAMP, SWISH
from effnet_np.kernels.target import BYTES, UNIT, VECTORS, WIDTH

IDENTITY = Activation(CLAMP, np.float32(-np.inf), np.float32(np.inf))


@njit
def ceil_div(a, b):
    return (a + b - 1) // b


def blocks_of(channels: int) -> int:
    """Planes of a map with so many channels."""
    return ceil_div(channels, WIDTH)


def units_of(channels: int) -> int:
    """Units in which a matrix product goes through so many inputs."""
    return ceil_div(channels, UNIT)


# -- a step into tasks -------------------------------------------------------------------------------------------------


@njit
def group_start(group, groups, blocks):
    """The first block of a group: groups are as equal as can be."""
    return ceil_div(group * blocks, groups)


def group_edges(blocks: int, largest: int = VECTORS) -> list[int]:
    """Where groups of at most `largest` blocks begin, and the last one ends."""
    groups = ceil_div(blocks, largest)
    return [group_start(group, groups, blocks) for group in range(groups + 1)]


def cut(blocks: int, bands: int = 1, bands_first: bool = True) -> Cut:
    """A step with so many channel blocks, in groups of as many as a tile is wide."""
    return Cut(ceil_div(blocks, VECTORS), blocks, bands, int(bands_first))


class Share(NamedTuple):
    """What a task makes."""

    group: Count
    first_block: Count
    vectors: Count  # blocks of this group
    band: Count


@njit
def share_of(cut, task):
    """The share of a task with that number."""
    if cut.bands_first:
        group, band = task // cut.bands, task % cut.bands
    else:
        group, band = task % cut.groups, task // cut.groups
    first = group_start(group, cut.groups, cut.blocks)
    return Share(group, first, group_start(group + 1, cut.groups, cut.blocks) - first, band)


@njit
def band_of(length, cut, band):
    """(where a band of so many rows or positions begins, where it ends)."""
    return band * length // cut.bands, (band + 1) * length // cut.bands


class Ahead(NamedTuple):
    """What to fetch into the cache meanwhile: nothing, where the two are the same."""

    address: Address
    end: Address


@njit
def ahead_of(cut, panel, share, task):
    """The weights of a later task, which this thread will probably do next, if they are others than those of its share now."""
    later = share_of(cut, task)
    if later.group >= cut.groups or later.group == share.group:
        return Ahead(panel.weights, panel.weights)
    begins = panel.weights + later.first_block * (panel.units * UNIT * BYTES)
    return Ahead(begins, begins + later.vectors * (panel.units * UNIT * BYTES))


# -- a task into tiles -------------------------------------------------------------------------------------------------


@njit
def equal_tiles(length, most):
    """((size, how many, where the first begins) of the larger tiles, the same of those that are one smaller)."""
    tiles = ceil_div(length, most)
    size = length // tiles
    larger = length - size * tiles
    return (size + 1, larger, 0), (size, tiles - larger, (size + 1) * larger)


@njit
def in_registers(activation):
    """What to apply to sums while they are in registers: the activation, or nothing if a second pass has to follow."""
    return IDENTITY if activation.code > SWISH else activation


@njit
def second_pass(activation, target, vectors, rows, pixels, total):
    """Applies an activation that was left out to a stored map. Gives `total` plus all results, register by register."""
    for v in range(vectors):
        for y in range(rows):
            for x in range(pixels):
                at = target.address + v * target.plane + y * target.row + x * BYTES
                value = activate(activation.code, load(at))
                store(at, value)
                total = total + value
    return total
