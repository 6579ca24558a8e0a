"""Keras applications' EfficientNets: B0 to B7 and, under names that differ in one place, V2 B0 to B3, S, M and L.

Arrays are channels last: a kernel is (K, K, C, O), a depthwise one (K, K, C, 1). What Keras does with pixels is inside of its
model, in layers before the first convolution; checkpoints/keras_file.py turns those into an image processor's options.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from effnet_np.weights.dialect import CONV, DEPTHWISE, LINEAR, NORM, Dialect, Network

TOP = {
    "efficientnet.embeddings.convolution": "stem_conv",
    "efficientnet.embeddings.batchnorm": "stem_bn",
    "efficientnet.encoder.top_conv": "top_conv",
    "efficientnet.encoder.top_bn": "top_bn",
    "classifier": "predictions",
}
EXPAND = {"expansion.expand_conv": "expand_conv", "expansion.expand_bn": "expand_bn"}
DEPTH = {"depthwise_conv.depthwise_conv": "dwconv", "depthwise_conv.depthwise_norm": "bn"}
SQUEEZE = {"squeeze_excite.reduce": "se_reduce", "squeeze_excite.expand": "se_expand"}
PROJECT = {"projection.project_conv": "project_conv", "projection.project_bn": "project_bn"}
DEPTH_V2 = DEPTH | {"depthwise_conv.depthwise_conv": "dwconv2"}
BLOCKS = {"mbconv": EXPAND | DEPTH | SQUEEZE | PROJECT, "mbconv_plain": DEPTH | SQUEEZE | PROJECT}
BLOCKS_V2 = {
    "mbconv": EXPAND | DEPTH_V2 | SQUEEZE | PROJECT,
    "fused": EXPAND | PROJECT,
    "fused_plain": PROJECT,
}
TENSORS = {
    CONV: {"weight": "kernel", "bias": "bias"},
    DEPTHWISE: {"weight": "kernel"},
    LINEAR: {"weight": "kernel", "bias": "bias"},
    NORM: {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"},
}
AXES = {CONV: (3, 2, 0, 1), DEPTHWISE: (2, 3, 0, 1), LINEAR: (1, 0)}
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "expansion.expand_act": ("expand_activation",),
    "depthwise_conv.depthwise_act": ("activation",),
    "squeeze_excite": ("se_excite",),
    "": ("add", "project_activation", "project_bn"),
}
OUTPUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "top": {
        "efficientnet.embeddings.activation": ("stem_activation",),
        "efficientnet.encoder.top_activation": ("top_activation",),
    },
    **dict.fromkeys(("mbconv", "mbconv_plain", "fused", "fused_plain"), ACTIVATIONS),
}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGENET = ([255 * mean for mean in MEAN], [255 * std for std in STD])
HALF = ([128.0] * 3, [128.0] * 3)  # x / 128 - 1
MOMENTUM = {"batch_norm_momentum": 0.01}  # PyTorch's for Keras' 0.99
MOMENTUM_V2 = {"batch_norm_momentum": 0.1}  # and for its 0.9
IMAGE_SIZES = {"B0": 224, "B1": 240, "B2": 260, "B3": 300, "B4": 380, "B5": 456, "B6": 528, "B7": 600}  # pixels
IMAGE_SIZES_V2 = {"B0": 224, "B1": 240, "B2": 260, "B3": 300, "S": 384, "M": 480, "L": 480}


def preprocessing(size: Any, mean: list[float], std: list[float]) -> dict[str, Any]:
    """Resized by the nearest pixel, as Keras' `load_img` does; mean and std are those of pixels from 0 to 255."""
    return {"size": size, "do_rescale": False, "image_mean": mean, "image_std": std, "include_top": False}


DIALECT = Dialect(
    library="Keras",
    signs=(r"stem_conv\.kernel", r"block\w+_dwconv\.kernel"),
    top=TOP,
    blocks=BLOCKS,
    place="block{number}{letter}_",
    networks={
        f"EfficientNet{name}": Network(name.lower(), MOMENTUM, preprocessing(size, *IMAGENET))
        for name, size in IMAGE_SIZES.items()
    },
    outputs=OUTPUTS,
    tensors=TENSORS,
    axes=AXES,
    built_for_its_input=True,
)
DIALECT_V2 = dataclasses.replace(
    DIALECT,
    library="Keras (V2)",
    signs=(r"stem_conv\.kernel", r"block\w+_dwconv2\.kernel"),
    blocks=BLOCKS_V2,
    networks={
        f"EfficientNetV2{name}": Network(
            f"v2-{name.lower()}", MOMENTUM_V2, preprocessing(size, *(IMAGENET if name.startswith("B") else HALF))
        )
        for name, size in IMAGE_SIZES_V2.items()
    },
)
