"""EfficientNet in plain numbers: how B0 grows into B7, and what every layer of such a network looks like. Read this first.

EfficientNet is one small network, B0, and a rule for growing it, *compound scaling* (paper, section 3.3): the width
multiplies the channels of every stage, the depth the number of blocks in it, and the image gets larger with them.

    image -> stem: 3x3 convolution, stride 2 -> seven stages of MBConv blocks -> head: 1x1 convolution -> pool -> classifier

A *block* widens its input by `expand_ratio` (1x1 convolution), filters each channel alone (depthwise K x K convolution),
weighs the channels (squeeze-excite), narrows again (1x1), and adds its input where the shapes allow it.

`architecture(config)` applies the rule and writes the whole network down; model, summary and kernels read what it gives.
Paper: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv 1905.11946.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

STEM_CHANNELS, HEAD_CHANNELS = 32, 1280  # of B0; in Table 1 of the paper the first and the last line


class Preset(NamedTuple):
    """A published network: what is scaled, and which blocks of stride 2 see an image of odd size at its native resolution."""

    width: float
    depth: float
    image_size: int  # pixels, height and width
    dropout: float
    depthwise_padding: list[int]


# Source: HF's convert_efficientnet_to_pytorch.py. "lite0" is TensorFlow's efficientnet/lite.
PRESETS: dict[str, Preset] = {
    "b0": Preset(1.0, 1.0, 224, 0.2, []),
    "b1": Preset(1.0, 1.1, 240, 0.2, [16]),
    "b2": Preset(1.1, 1.2, 260, 0.3, [5, 8, 16]),
    "b3": Preset(1.2, 1.4, 300, 0.3, [5, 18]),
    "b4": Preset(1.4, 1.8, 380, 0.4, [6]),
    "b5": Preset(1.6, 2.2, 456, 0.4, [13, 27]),
    "b6": Preset(1.8, 2.6, 528, 0.5, [31]),
    "b7": Preset(2.0, 3.1, 600, 0.5, [18]),
    "lite0": Preset(1.0, 1.0, 224, 0.2, []),
}


def round_filters(channels: int, width_coefficient: float, depth_divisor: int = 8) -> int:
    """Channels scaled by the width, rounded to a multiple of `depth_divisor`, never more than 10% down."""
    scaled = channels * width_coefficient
    rounded = max(depth_divisor, int(scaled + depth_divisor / 2) // depth_divisor * depth_divisor)
    return rounded + depth_divisor if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth_coefficient: float) -> int:
    """Blocks of a stage, scaled by the depth and rounded up."""
    return math.ceil(depth_coefficient * repeats)


@dataclass(frozen=True)
class StemSpec:
    """The first convolution, K x K, stride 2. Channels are counts; `padding` in pixels: (top and left, bottom and right)."""

    in_channels: int
    out_channels: int
    kernel_size: int = 3
    stride: int = 2
    padding: tuple[int, int] = (0, 1)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return output_size(self, height, width)


@dataclass(frozen=True)
class BlockSpec:
    """One MBConv block. Channels are counts; `padding` in pixels: (top and left, bottom and right)."""

    index: int
    stage: int  # 0..6 in the published networks
    in_channels: int
    expanded_channels: int  # equal to in_channels where expand_ratio is 1: then there is no expansion
    out_channels: int
    squeeze_channels: int  # 0: no squeeze-excite
    kernel_size: int
    stride: int
    padding: tuple[int, int]
    expand_ratio: int
    residual: bool  # the block's input is added to its output
    drop_rate: float  # in training, of the elementwise dropout before that addition

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return output_size(self, height, width)


def output_size(part: StemSpec | BlockSpec, height: int, width: int) -> tuple[int, int]:
    """(H, W) of the output of that stem or block for an input of (height, width)."""
    extra = sum(part.padding) - part.kernel_size
    return (height + extra) // part.stride + 1, (width + extra) // part.stride + 1


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
    """The network that HF's configuration fields describe (paper, Table 1; HF's `EfficientNetEncoder`)."""

    def scaled(channels: int) -> int:
        return round_filters(channels, config.width_coefficient, config.depth_divisor)

    repeats = [round_repeats(repeats, config.depth_coefficient) for repeats in config.num_block_repeats]
    stem_channels, head_channels = scaled(STEM_CHANNELS), scaled(HEAD_CHANNELS)
    if config.fix_head_stem:  # the Lite networks leave both ends as they are
        stem_channels, head_channels = STEM_CHANNELS, HEAD_CHANNELS
        repeats[0], repeats[-1] = config.num_block_repeats[0], config.num_block_repeats[-1]
    blocks: list[BlockSpec] = []
    in_channels = stem_channels
    for stage, count in enumerate(repeats):
        for repeat in range(count):
            first, index = repeat == 0, len(blocks)  # only a stage's first block changes resolution and channels
            kernel_size, expand_ratio = config.kernel_sizes[stage], config.expand_ratios[stage]
            stride, ratio = config.strides[stage] if first else 1, config.squeeze_expansion_ratio
            block = BlockSpec(
                index=index,
                stage=stage,
                in_channels=in_channels,
                expanded_channels=in_channels * expand_ratio,
                out_channels=scaled(config.out_channels[stage]),
                squeeze_channels=max(1, int(in_channels * ratio)) if ratio else 0,  # of the *unexpanded* input
                kernel_size=kernel_size,
                stride=stride,
                padding=depthwise_padding(kernel_size, stride, index in config.depthwise_padding),
                expand_ratio=expand_ratio,
                residual=stride == 1 and not first,
                drop_rate=config.drop_connect_rate * index / sum(repeats),
            )
            blocks.append(block)
            in_channels = block.out_channels
    head = HeadSpec(in_channels, head_channels, config.num_labels)
    return Architecture(StemSpec(config.num_channels, stem_channels), blocks, head)


def depthwise_padding(kernel_size: int, stride: int, symmetric: bool) -> tuple[int, int]:
    """(top and left, bottom and right) zeros. HF decides once, for all sizes, what TensorFlow decides for each input."""
    if stride == 1:  # the output is as large as the input
        return (kernel_size - 1) // 2, kernel_size // 2
    if symmetric:  # TensorFlow's SAME for an input of odd size
        return kernel_size // 2, kernel_size // 2
    return kernel_size // 2 - 1, kernel_size // 2  # and for one of even size
