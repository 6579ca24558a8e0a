"""The arena: one array of floats in which every map of the network has its place while an image goes through.

A map lies in it as planes of (H, W, WIDTH), one plane for each WIDTH channels. Channels that only fill the last plane are
zeros: their weights are zero, and every activation takes 0 to 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from effnet_np.kernels.record import At, Map
from effnet_np.kernels.target import BYTES
from effnet_np.kernels.tiling import blocks_of, ceil_div

ALIGN = 64


def aligned(size: int) -> int:
    return ceil_div(size, ALIGN) * ALIGN


@dataclass(frozen=True)
class FeatureMap:
    """A map of `channels` x `height` x `width`, and the byte of the arena at which it begins."""

    offset: int
    channels: int
    height: int
    width: int

    @property
    def blocks(self) -> int:
        return blocks_of(self.channels)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def size(self) -> int:
        """All its numbers, without those that only fill a block."""
        return self.channels * self.pixels

    @property
    def bytes(self) -> int:
        return self.blocks * self.pixels * BYTES

    @property
    def map(self) -> Map:
        return Map(At("arena", self.offset), self.width * BYTES, self.pixels * BYTES)


class Arena:
    """Hands out places one after another; `bytes` is how large it has to be."""

    def __init__(self):
        self.bytes = 0

    def reserve(self, size: int) -> At:
        offset = self.bytes
        self.bytes += aligned(size)
        return At("arena", offset)

    def map(self, channels: int, height: int, width: int) -> FeatureMap:
        return FeatureMap(self.reserve(FeatureMap(0, channels, height, width).bytes).offset, channels, height, width)

    def vector(self, channels: int) -> At:
        """A place for a number for each channel, and for those that fill the last block."""
        return self.reserve(blocks_of(channels) * BYTES)
