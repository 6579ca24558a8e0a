"""Hugging Face's EfficientNet (transformers), whose names are ours: B0 to B7, converted from Keras."""

from __future__ import annotations

from typing import Any

from effnet_np.weights.dialect import Dialect, Network

TOP = {
    name: name
    for name in (
        "efficientnet.embeddings.convolution",
        "efficientnet.embeddings.batchnorm",
        "efficientnet.encoder.top_conv",
        "efficientnet.encoder.top_bn",
        "classifier",
    )
}
EXPAND = ("expansion.expand_conv", "expansion.expand_bn")
DEPTHWISE = ("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm")
SQUEEZE = ("squeeze_excite.reduce", "squeeze_excite.expand")
PROJECT = ("projection.project_conv", "projection.project_bn")
KINDS = {
    "mbconv": (*EXPAND, *DEPTHWISE, *SQUEEZE, *PROJECT),
    "mbconv_plain": (*DEPTHWISE, *SQUEEZE, *PROJECT),
    "fused": (*EXPAND, *PROJECT),
    "fused_plain": PROJECT,
}
IMAGE_SIZES = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}  # pixels
MEAN = [0.485, 0.456, 0.406]
STD = [0.47853944, 0.4732864, 0.47434163]  # in the files on the hub: the square roots of ImageNet's, divided by twice


def preprocessing(size: int) -> dict[str, Any]:
    """The image processor's options, for an image of `size` pixels: what the checkpoints on the hub have."""
    return {"size": size, "image_mean": MEAN, "image_std": STD}


DIALECT = Dialect(
    library="transformers",
    signs=(r"(efficientnet\.)?embeddings\.convolution\.weight", r"(efficientnet\.)?encoder\.blocks\.\d+\.projection\..*"),
    top=TOP,
    blocks={kind: {name: name for name in names} for kind, names in KINDS.items()},
    place="efficientnet.encoder.blocks.{index}.",
    networks={name: Network(name, {}, preprocessing(size)) for name, size in IMAGE_SIZES.items()},
)
