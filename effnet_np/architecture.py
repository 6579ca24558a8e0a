"""EfficientNet in plain numbers: how B0 grows into B7, and what every layer of such a network looks like. Read this first.

EfficientNet is one small network, B0, and a rule for growing it, *compound scaling* (paper, section 3.3): the width
multiplies the channels of every stage, the depth the number of blocks in it, and the image gets larger with them (presets.py).

    image -> stem: 3x3 convolution, stride 2 -> seven stages of MBConv blocks -> head: 1x1 convolution -> pool -> classifier

A *block* widens its input by `expand_ratio` (1x1 convolution), filters each channel alone (depthwise K x K convolution),
weighs the channels (squeeze-excite), narrows again (1x1), and adds its input where the shapes allow it. EfficientNetV2 has in
its first stages *fused* blocks: one full K x K convolution widens and filters, and nothing weighs the channels.

`architecture(config)` applies the rule and writes the whole network down; model, summary and kernels read what it gives.
Paper: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv 1905.11946; V2: 2104.00298.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

STEM_CHANNELS, HEAD_CHANNELS = 32, 1280  # of B0; in Table 1 of the paper the first and the last line


def round_filters(channels: int, width_coefficient: float, depth_divisor: int = 8, version2: bool = False) -> int:
    """Channels scaled by the width, rounded to a multiple of `depth_divisor`; in version 1 never more than 10% down."""
    scaled = channels * width_coefficient
    rounded = max(depth_divisor, int(scaled + depth_divisor / 2) // depth_divisor * depth_divisor)
    return rounded + depth_divisor if rounded < 0.9 * scaled and not version2 else rounded


def round_repeats(repeats: int, depth_coefficient: float) -> int:
    """Blocks of a stage, scaled by the depth and rounded up."""
    return math.ceil(depth_coefficient * repeats)


def same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME, (before, after): zeros for an output at every `stride`-th pixel, an odd one of them at the end."""
    zeros = max((math.ceil(size / stride) - 1) * stride + kernel_size - size, 0)
    return zeros // 2, zeros - zeros // 2


@dataclass(frozen=True)
class WindowSpec:
    """What an output of a convolution looks at: K x K pixels, the next output's being `stride` further on."""

    kernel_size: int
    stride: int
    padding: tuple[int, int] | None  # zeros in pixels: (top and left, bottom and right); None: SAME, for each input anew

    def zeros(self, height: int, width: int) -> tuple[int, ...]:
        """Zeros around an input of (height, width), in pixels: (top, bottom, left, right)."""
        if self.padding is None:
            return tuple(zeros for size in (height, width) for zeros in same_padding(size, self.kernel_size, self.stride))
        return self.padding * 2

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of the output for an input of (height, width)."""
        top, bottom, left, right = self.zeros(height, width)
        rows, columns = height + top + bottom - self.kernel_size, width + left + right - self.kernel_size
        return rows // self.stride + 1, columns // self.stride + 1


@dataclass(frozen=True)
class StemSpec(WindowSpec):
    """The first convolution. Channels are counts."""

    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class BlockSpec(WindowSpec):
    """One MBConv or Fused-MBConv block; the window is that of its K x K convolution. Channels are counts."""

    index: int
    stage: int  # 0..6 in the published networks
    fused: bool  # the K x K convolution is a full one in the place of the expansion or, without one, of the projection
    in_channels: int
    expanded_channels: int  # equal to in_channels where expand_ratio is 1: then there is no expansion
    out_channels: int
    squeeze_channels: int  # 0: no squeeze-excite
    expand_ratio: int
    residual: bool  # the block's input is added to its output
    drop_rate: float  # in training, of the elementwise dropout before that addition


@dataclass(frozen=True)
class HeadSpec:
    """The last 1x1 convolution, whose output is pooled, and the classifier, which `num_labels` 0 leaves out."""

    in_channels: int
    out_channels: int
    num_labels: int


@dataclass(frozen=True)
class Architecture:
    """A whole network: stem, blocks, head."""

    stem: StemSpec
    blocks: list[BlockSpec]
    head: HeadSpec

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(H, W) of the stem's output and of each block's. Raises ValueError where nothing is left for some layer."""
        parts: list[StemSpec | BlockSpec] = [self.stem, *self.blocks]
        sizes = [(height, width)]
        for part in parts:
            sizes.append(part.output_size(*sizes[-1]))
            if min(sizes[-1]) < 1:
                where = "the stem" if part is self.stem else f"block {len(sizes) - 3}"
                pixels = math.prod(part.stride for part in parts)
                raise ValueError(
                    f"an image of {height} x {width} is too small for this network: nothing is left of it after {where}. "
                    f"The network halves it until {pixels} pixels are one; take an image of at least {pixels} x {pixels}"
                )
        return sizes[1:]


def architecture(config: Any) -> Architecture:
    """The network that the configuration's fields describe (paper, Table 1; HF's `EfficientNetEncoder`)."""
    version2 = config.fused_stages > 0

    def scaled(channels: int) -> int:
        return round_filters(channels, config.width_coefficient, config.depth_divisor, version2)

    repeats = [round_repeats(repeats, config.depth_coefficient) for repeats in config.num_block_repeats]
    stem_channels, head_channels = scaled(config.in_channels[0]), scaled(HEAD_CHANNELS)
    if config.fix_head_stem:  # the Lite networks leave both ends as they are
        stem_channels, head_channels = STEM_CHANNELS, HEAD_CHANNELS
        repeats[0], repeats[-1] = config.num_block_repeats[0], config.num_block_repeats[-1]
    stem = StemSpec(3, 2, padding(config, 3, 2, config.image_size), config.num_channels, stem_channels)
    size = math.ceil(config.image_size / stem.stride)  # of the map, where the image has its native size
    blocks: list[BlockSpec] = []
    in_channels = stem_channels
    for stage, count in enumerate(repeats):
        kernel_size, expand_ratio, fused = config.kernel_sizes[stage], config.expand_ratios[stage], stage < config.fused_stages
        out_channels = scaled(config.out_channels[stage])
        ratio = 0 if fused else config.squeeze_expansion_ratio
        for repeat in range(count):
            first, index = repeat == 0, len(blocks)  # only a stage's first block changes resolution and channels
            stride = config.strides[stage] if first else 1
            block = BlockSpec(
                kernel_size=kernel_size,
                stride=stride,
                padding=padding(config, kernel_size, stride, size, index),
                index=index,
                stage=stage,
                fused=fused,
                in_channels=in_channels,
                expanded_channels=in_channels * expand_ratio,
                out_channels=out_channels,
                squeeze_channels=max(1, int(in_channels * ratio)) if ratio else 0,  # of the *unexpanded* input
                expand_ratio=expand_ratio,
                residual=stride == 1 and (in_channels == out_channels if version2 else not first),
                drop_rate=config.drop_connect_rate * index / sum(repeats),
            )
            blocks.append(block)
            in_channels, size = out_channels, math.ceil(size / stride)
    return Architecture(stem, blocks, HeadSpec(in_channels, head_channels, config.num_labels))


def padding(config: Any, kernel_size: int, stride: int, size: int, index: int | None = None) -> tuple[int, int] | None:
    """A convolution's zeros by the rule `config.padding`; its input has `size` pixels where the image has its native size."""
    if stride == 1 or config.padding == "static_same":
        return same_padding(size, kernel_size, stride)
    if config.padding == "same":
        return None
    symmetric = config.padding == "symmetric" or index in config.depthwise_padding  # HF lists blocks with an odd native size
    return kernel_size // 2 - (not symmetric), kernel_size // 2
