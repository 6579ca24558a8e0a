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
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    bias: bool = False

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

    def conv(name: str, norm: str, c_in: int, c_out: int, size, **options) -> Iterator[LayerSpec]:
        yield LayerSpec(name, "conv", c_in, c_out, *size, **options)
        if norm:
            yield LayerSpec(norm, "norm", c_out, c_out, *size)

    def window(part) -> dict[str, Any]:
        return {"kernel_size": part.kernel_size, "stride": part.stride, "padding": part.padding}

    stem, head, sizes = network.stem, network.head, network.sizes(height, width)
    where = "efficientnet.embeddings."
    yield from conv(where + "convolution", where + "batchnorm", stem.in_channels, stem.out_channels, sizes[0], **window(stem))
    for block, before, after in zip(network.blocks, sizes[:-1], sizes[1:], strict=True):
        where = f"efficientnet.encoder.blocks.{block.index}."
        channels, squeezed = block.expanded_channels, block.squeeze_channels
        if block.expand_ratio != 1:
            inside = where + "expansion."
            yield from conv(inside + "expand_conv", inside + "expand_bn", block.in_channels, channels, before)
        inside = where + "depthwise_conv."
        options = window(block) | {"groups": channels}
        yield from conv(inside + "depthwise_conv", inside + "depthwise_norm", channels, channels, after, **options)
        if squeezed:
            inside = where + "squeeze_excite."
            yield from conv(inside + "reduce", "", channels, squeezed, (1, 1), bias=True)
            yield from conv(inside + "expand", "", squeezed, channels, (1, 1), bias=True)
        inside = where + "projection."
        yield from conv(inside + "project_conv", inside + "project_bn", channels, block.out_channels, after)
    where = "efficientnet.encoder."
    yield from conv(where + "top_conv", where + "top_bn", head.in_channels, head.out_channels, sizes[-1])
    if head.num_labels:
        yield LayerSpec("classifier", "linear", head.out_channels, head.num_labels, 1, 1, bias=True)
