"""Luke Melas-Kyriazi's `efficientnet_pytorch`: B0 to B8, converted from TensorFlow.

SAME padding, fixed when the network is built, from its native image size. Batch norms are numbered within their block: with an
expansion _bn0, _bn1, _bn2 follow the three convolutions; the block without one starts at _bn1. The activation is one module for
a whole block, so its outputs have no names. Preprocessing: the package's ImageNet example.
"""

from __future__ import annotations

from typing import Any

from effnet_np.weights.dialect import Dialect, Network

TOP = {
    "efficientnet.embeddings.convolution": "_conv_stem",
    "efficientnet.embeddings.batchnorm": "_bn0",
    "efficientnet.encoder.top_conv": "_conv_head",
    "efficientnet.encoder.top_bn": "_bn1",
    "classifier": "_fc",
}
EXPAND = {"expansion.expand_conv": "_expand_conv", "expansion.expand_bn": "_bn0"}
PLAIN = {
    "depthwise_conv.depthwise_conv": "_depthwise_conv",
    "depthwise_conv.depthwise_norm": "_bn1",
    "squeeze_excite.reduce": "_se_reduce",
    "squeeze_excite.expand": "_se_expand",
    "projection.project_conv": "_project_conv",
    "projection.project_bn": "_bn2",
}
IMAGE_SIZES = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600, "b8": 672}  # pixels
FIELDS = {"padding": "static_same", "depthwise_padding": [], "batch_norm_momentum": 0.01}  # 1 - TensorFlow's 0.99


def preprocessing(size: int) -> dict[str, Any]:
    """The shorter side resized to `size` pixels, the middle cut out, ImageNet's mean and std."""
    return {
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": size,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "include_top": False,
    }


DIALECT = Dialect(
    library="efficientnet_pytorch (lukemelas)",
    signs=(r"_conv_stem\.weight", r"_blocks\.\d+\._se_reduce\.weight"),
    top=TOP,
    blocks={"mbconv": EXPAND | PLAIN, "mbconv_plain": PLAIN},
    place="_blocks.{index}.",
    networks={f"efficientnet-{name}": Network(name, FIELDS, preprocessing(size)) for name, size in IMAGE_SIZES.items()},
    outputs={"mbconv": {"": ("",)}, "mbconv_plain": {"": ("",)}},
)
