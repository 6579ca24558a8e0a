"""Maps of a whole batch, and what the passes of training say about them.

A map lies as planes of (images * H * W, WIDTH), one plane for each WIDTH channels: all positions of all images one behind the
other. A 1x1 convolution does not know where one image ends and the next begins, so it runs over ranges of positions; what looks
at neighbours takes one image out of the map (`image_of`).

*Pieces.* Every reduction over the batch is cut into pieces whose number depends on the shapes alone. A task adds up its own
piece, and a later step adds the pieces up in their order: so the sums are the same bits for any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from effnet_np.kernels.record import Address, At, Bytes, Count, Map
from effnet_np.kernels.simd import njit
from effnet_np.kernels.target import BYTES
from effnet_np.kernels.tiling import blocks_of

MOST_PIECES = 32
SCRATCH = 384 * 1024  # bytes of a thread's scratch that a stretch of positions may fill: inside of an L2 of 512 KB or more


@dataclass(frozen=True)
class BatchMap:
    """A map of `images` x `channels` x `height` x `width`, and the byte of its memory at which it begins."""

    offset: int
    channels: int
    images: int
    height: int
    width: int
    base: str = "arena"

    @property
    def blocks(self) -> int:
        return blocks_of(self.channels)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def positions(self) -> int:
        return self.images * self.pixels

    @property
    def size(self) -> int:
        """All its numbers, without those that only fill a block."""
        return self.channels * self.positions

    @property
    def bytes(self) -> int:
        return self.blocks * self.positions * BYTES

    @property
    def map(self) -> Map:
        return Map(At(self.base, self.offset), self.width * BYTES, self.positions * BYTES)


class Partial(NamedTuple):
    """Where the pieces of a sum lie: piece after piece of so many bytes."""

    address: Address
    piece: Bytes
    pieces: Count


def pieces_of(positions: int, smallest: int = 48) -> int:
    """Into how many pieces so many positions are cut."""
    return max(1, min(MOST_PIECES, positions // smallest))


def stretch_of(channels: int, positions: int, most: int = 256) -> int:
    """How many positions of a piece are worked on at a time, if all of so many channels lie in the scratch."""
    return max(1, min(most, SCRATCH // (blocks_of(channels) * BYTES), positions))


@njit
def image_of(whole, image, pixels):
    """One image of a batch's map, as a map."""
    return Map(whole.address + image * (pixels * BYTES), whole.row, whole.plane)
