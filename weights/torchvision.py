"""torchvision's EfficientNets, B0 to B7 and V2 S, M and L: symmetric padding, and eps by the network."""

from __future__ import annotations

from typing import Any

from effnet_np.weights.dialect import Dialect, Network

TOP = {
    "efficientnet.embeddings.convolution": "features.0.0",
    "efficientnet.embeddings.batchnorm": "features.0.1",
    "efficientnet.encoder.top_conv": "features.{head}.0",
    "efficientnet.encoder.top_bn": "features.{head}.1",
    "classifier": "classifier.1",
}


def _conv(ours: str, number: int, kind: str = "") -> dict[str, str]:
    """A convolution and its batch norm, the block's part of that number."""
    layer, norm = ours.format("conv"), ours.format(kind or "bn")
    return {layer: f"block.{number}.0", norm: f"block.{number}.1"}


def _gate(number: int) -> dict[str, str]:
    return {"squeeze_excite.reduce": f"block.{number}.fc1", "squeeze_excite.expand": f"block.{number}.fc2"}


def _gate_outputs(number: int) -> dict[str, tuple[str, ...]]:
    at = f"block.{number}"
    return {
        "squeeze_excite": (at,),
        "squeeze_excite.squeeze": (f"{at}.avgpool",),
        "squeeze_excite.act_reduce": (f"{at}.activation",),
        "squeeze_excite.act_expand": (f"{at}.scale_activation",),
    }


EXPAND, DEPTHWISE, PROJECT = "expansion.expand_{}", "depthwise_conv.depthwise_{}", "projection.project_{}"
BLOCKS = {
    "mbconv": _conv(EXPAND, 0) | _conv(DEPTHWISE, 1, "norm") | _gate(2) | _conv(PROJECT, 3),
    "mbconv_plain": _conv(DEPTHWISE, 0, "norm") | _gate(1) | _conv(PROJECT, 2),
    "fused": _conv(EXPAND, 0) | _conv(PROJECT, 1),
    "fused_plain": _conv(PROJECT, 0),
}
OUTPUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "top": {
        "efficientnet.embeddings.activation": ("features.0.2",),
        "efficientnet.pooler": ("avgpool",),
    },
    "mbconv": {"": ("",), "expansion.expand_act": ("block.0.2",), "depthwise_conv.depthwise_act": ("block.1.2",)}
    | _gate_outputs(2),
    "mbconv_plain": {"": ("",), "depthwise_conv.depthwise_act": ("block.0.2",)} | _gate_outputs(1),
    "fused": {"": ("",), "expansion.expand_act": ("block.0.2",)},
    "fused_plain": {"": ("",), "projection.project_act": ("block.0.2",)},
}
BICUBIC, BILINEAR = 3, 2
IMAGENET, HALF = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ([0.5] * 3, [0.5] * 3)
PYTORCH, TENSORFLOW, V2 = (
    {"padding": "symmetric", "depthwise_padding": [], "batch_norm_eps": eps, "batch_norm_momentum": momentum}
    for eps, momentum in ((1e-5, 0.1), (1e-3, 0.01), (1e-3, 0.1))
)


def preprocessing(crop: int, resize: int, resample: int, statistics: tuple[list, list] = IMAGENET) -> dict[str, Any]:
    """The shorter side resized to `resize` pixels, the middle `crop` pixels cut out: torchvision's `ImageClassification`."""
    return {
        "size": {"shortest_edge": resize},
        "resample": resample,
        "do_center_crop": True,
        "crop_size": crop,
        "image_mean": statistics[0],
        "image_std": statistics[1],
        "include_top": False,
    }


def _network(preset: str, fields: dict[str, Any], crop: int, *options: Any) -> Network:
    return Network(preset, {**fields, "image_size": crop}, preprocessing(crop, *options))


DIALECT = Dialect(
    library="torchvision",
    signs=(r"features\.0\.0\.weight", r"features\.\d+\.\d+\.block\.0\.0\.weight"),
    top=TOP,
    blocks=BLOCKS,
    place="features.{number}.{position}.",
    networks={
        "efficientnet_b0": _network("b0", PYTORCH, 224, 256, BICUBIC),
        "efficientnet_b1": _network("b1", PYTORCH, 240, 255, BILINEAR),
        "efficientnet_b1.IMAGENET1K_V1": _network("b1", PYTORCH, 240, 256, BICUBIC),
        "efficientnet_b2": _network("b2", PYTORCH, 288, 288, BICUBIC),
        "efficientnet_b3": _network("b3", PYTORCH, 300, 320, BICUBIC),
        "efficientnet_b4": _network("b4", PYTORCH, 380, 384, BICUBIC),
        "efficientnet_b5": _network("b5", TENSORFLOW, 456, 456, BICUBIC),
        "efficientnet_b6": _network("b6", TENSORFLOW, 528, 528, BICUBIC),
        "efficientnet_b7": _network("b7", TENSORFLOW, 600, 600, BICUBIC),
        "efficientnet_v2_s": _network("v2-s", V2, 384, 384, BILINEAR),
        "efficientnet_v2_m": _network("v2-m", V2, 480, 480, BILINEAR),
        "efficientnet_v2_l": _network("v2-l", V2, 480, 480, BICUBIC, HALF),
    },
    outputs=OUTPUTS,
)
