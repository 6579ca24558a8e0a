"""The network layer by layer: shapes, parameters and multiply-adds of everything that holds numbers, without building it.

What `summary` prints, what golden folders list, and what a configuration is judged by before memory is spent on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from effnet_np.architecture import Architecture


@dataclass(frozen=True)
class LayerSpec:
    """One layer that holds numbers, under its module's name; `height` and `width` are those of its output."""

    name: str
    kind: str  # "conv", "norm" or "linear"
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel_size: int = 1
    stride: int = 1
    padding: tuple[int, ...] = (
        0,
        0,
    )  # (top and left, bottom and right), or (top, bottom, left, right)
    groups: int = 1
    bias: bool = False
    activated: bool = False  # an activation follows at once

    @property
    def parameters(self) -> int:
        """How many numbers training changes."""
        if self.kind == "norm":
            return 2 * self.out_channels
        return self.out_channels * (self.in_channels // self.groups * self.kernel_size**2 + self.bias)

    @property
    def mult_adds(self) -> int:
        """Multiplications, each with an addition, for one image; those of convolutions and classifier, as the paper counts."""
        if self.kind == "norm":
            return 0
        return self.out_channels * self.in_channels // self.groups * self.kernel_size**2 * self.height * self.width


def layer_specs(network: Architecture, height: int, width: int) -> Iterator[LayerSpec]:
    """Every layer with numbers in it, in the order of the forward pass, for an image of (height, width)."""

    def conv(name: str, norm: str, c_in: int, c_out: int, size, activated=True, **options) -> Iterator[LayerSpec]:
        yield LayerSpec(name, "conv", c_in, c_out, size[0], size[1], activated=activated and not norm, **options)
        if norm:
            yield LayerSpec(norm, "norm", c_out, c_out, size[0], size[1], activated=activated)

    def window(part, size) -> dict[str, Any]:
        zeros = part.zeros(*size)
        padding = zeros[:2] if zeros[:2] == zeros[2:] else zeros
        return {"kernel_size": part.kernel_size, "stride": part.stride, "padding": padding}

    stem, head, sizes = network.stem, network.head, network.sizes(height, width)
    where, options = "efficientnet.embeddings.", window(stem, (height, width))
    yield from conv(where + "convolution", where + "batchnorm", stem.in_channels, stem.out_channels, sizes[0], **options)
    for block, before, after in zip(network.blocks, sizes[:-1], sizes[1:], strict=True):
        where = f"efficientnet.encoder.blocks.{block.index}."
        channels, squeezed, options = block.expanded_channels, block.squeeze_channels, window(block, before)
        if block.expand_ratio != 1:
            inside, full, size = where + "expansion.", options if block.fused else {}, after if block.fused else before
            yield from conv(inside + "expand_conv", inside + "expand_bn", block.in_channels, channels, size, **full)
        if not block.fused:
            inside = where + "depthwise_conv."
            depthwise = options | {"groups": channels}
            yield from conv(inside + "depthwise_conv", inside + "depthwise_norm", channels, channels, after, **depthwise)
        if squeezed:
            inside = where + "squeeze_excite."
            yield from conv(inside + "reduce", "", channels, squeezed, (1, 1), bias=True)
            yield from conv(inside + "expand", "", squeezed, channels, (1, 1), bias=True)
        inside, only = where + "projection.", block.fused and block.expand_ratio == 1
        full = options if only else {}
        yield from conv(inside + "project_conv", inside + "project_bn", channels, block.out_channels, after, only, **full)
    where = "efficientnet.encoder."
    yield from conv(where + "top_conv", where + "top_bn", head.in_channels, head.out_channels, sizes[-1])
    if head.num_labels:
        yield LayerSpec("classifier", "linear", head.out_channels, head.num_labels, 1, 1, bias=True)
