"""timm's EfficientNets and, under the same names, geffnet's: converted from TensorFlow ("tf_...") or trained in PyTorch.

"tf_efficientnet_b0" pads SAME, computed from each input, and has TensorFlow's eps; "efficientnet_b0" pads symmetrically and has
PyTorch's. Nothing in a file tells the two apart. `networks` has each architecture with the preprocessing of timm's default
weights, and weights whose preprocessing differs under their whole name, as "tf_efficientnet_b0.ap_in1k".
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from effnet_np.weights.dialect import Dialect, Network

TOP = {
    "efficientnet.embeddings.convolution": "conv_stem",
    "efficientnet.embeddings.batchnorm": "bn1",
    "efficientnet.encoder.top_conv": "conv_head",
    "efficientnet.encoder.top_bn": "bn2",
    "classifier": "classifier",
}
SQUEEZE = {"squeeze_excite.reduce": "se.conv_reduce", "squeeze_excite.expand": "se.conv_expand"}
BLOCKS = {
    "mbconv": {  # InvertedResidual
        "expansion.expand_conv": "conv_pw",
        "expansion.expand_bn": "bn1",
        "depthwise_conv.depthwise_conv": "conv_dw",
        "depthwise_conv.depthwise_norm": "bn2",
        **SQUEEZE,
        "projection.project_conv": "conv_pwl",
        "projection.project_bn": "bn3",
    },
    "mbconv_plain": {  # DepthwiseSeparableConv
        "depthwise_conv.depthwise_conv": "conv_dw",
        "depthwise_conv.depthwise_norm": "bn1",
        **SQUEEZE,
        "projection.project_conv": "conv_pw",
        "projection.project_bn": "bn2",
    },
    "fused": {  # EdgeResidual
        "expansion.expand_conv": "conv_exp",
        "expansion.expand_bn": "bn1",
        "projection.project_conv": "conv_pwl",
        "projection.project_bn": "bn2",
    },
    "fused_plain": {"projection.project_conv": "conv", "projection.project_bn": "bn1"},  # ConvBnAct
}
TIMM_GATES = {"squeeze_excite": ("se",), "squeeze_excite.act_reduce": ("se.act1",), "squeeze_excite.act_expand": ("se.gate",)}


# timm's batch norm holds its activation: what it gives is what comes after, and what comes before is its part `drop`.
def _norm(ours: str, activation: str, theirs: str) -> dict[str, tuple[str, ...]]:
    return {ours: (f"{theirs}.drop",), activation: (f"{theirs}.act",)}


EXPANDED = _norm("expansion.expand_bn", "expansion.expand_act", "bn1")
TIMM_OUTPUTS = {
    "top": _norm("efficientnet.embeddings.batchnorm", "efficientnet.embeddings.activation", "bn1")
    | _norm("efficientnet.encoder.top_bn", "efficientnet.encoder.top_activation", "bn2"),
    "mbconv": EXPANDED
    | _norm("depthwise_conv.depthwise_norm", "depthwise_conv.depthwise_act", "bn2")
    | TIMM_GATES
    | {"projection.project_bn": ("bn3.drop",), "": ("",)},
    "mbconv_plain": _norm("depthwise_conv.depthwise_norm", "depthwise_conv.depthwise_act", "bn1")
    | TIMM_GATES
    | {"projection.project_bn": ("bn2.drop",), "": ("",)},
    "fused": EXPANDED | {"projection.project_bn": ("bn2.drop",), "": ("",)},
    "fused_plain": _norm("projection.project_bn", "projection.project_act", "bn1") | {"": ("",)},
}
GEFFNET_OUTPUTS = {
    "top": {"efficientnet.embeddings.activation": ("act1",), "efficientnet.encoder.top_activation": ("act2",)},
    "mbconv": {
        "expansion.expand_act": ("act1",),
        "depthwise_conv.depthwise_act": ("act2",),
        "squeeze_excite": ("se",),
        "": ("",),
    },
    "mbconv_plain": {"depthwise_conv.depthwise_act": ("act1",), "squeeze_excite": ("se",), "": ("",)},
}

# -- networks ---------------------------------------------------------------------------------------------------------

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean, std
HALF = ([0.5] * 3, [0.5] * 3)
INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers
CROP_MODES = ("center", "squash")
TENSORFLOW = {"padding": "same", "depthwise_padding": [], "batch_norm_eps": 1e-3, "batch_norm_momentum": 0.1}
PYTORCH = {"padding": "symmetric", "depthwise_padding": [], "batch_norm_eps": 1e-5, "batch_norm_momentum": 0.1}
V2_XL = {
    "in_channels": [32, 32, 64, 96, 192, 256, 512],
    "out_channels": [32, 64, 96, 192, 256, 512, 640],
    "num_block_repeats": [4, 8, 8, 16, 24, 32, 8],
}


def preprocessing(
    size: int, crop_pct: float, mean: list[float], std: list[float], interpolation: str = "bicubic", crop_mode: str = "center"
) -> dict[str, Any]:
    """The image processor's options: resize so that the middle, `crop_pct` of it, has `size` pixels, and cut that out.

    "center" keeps the picture's shape, "squash" does not. Source: timm's `transforms_imagenet_eval`.
    """
    scaled = math.floor(size / crop_pct)
    return {
        "size": {"shortest_edge": scaled} if crop_mode == "center" else scaled,
        "resample": INTERPOLATIONS[interpolation],
        "do_center_crop": True,
        "crop_size": size,
        "image_mean": mean,
        "image_std": std,
        "include_top": False,
    }


def _network(preset: str, fields: dict[str, Any], size: int, crop_pct: float, statistics=IMAGENET, **options: Any) -> Network:
    name, more = ("v2-l", V2_XL) if preset == "v2-xl" else (preset, {})
    return Network(name, {**fields, **more, "image_size": size}, preprocessing(size, crop_pct, *statistics, **options))


B = {  # image size, crop_pct
    "b0": (224, 0.875), "b1": (240, 0.882), "b2": (260, 0.89), "b3": (300, 0.904), "b4": (380, 0.922), "b5": (456, 0.934),
    "b6": (528, 0.942), "b7": (600, 0.949), "b8": (672, 0.954),
}  # fmt: skip
LITE = {"lite0": (224, 0.875), "lite1": (240, 0.882), "lite2": (260, 0.89)}
SQUASH = {"crop_mode": "squash"}
NETWORKS = {
    **{f"tf_efficientnet_{name}": _network(name, TENSORFLOW, *size) for name, size in B.items()},
    **{f"tf_efficientnet_{name}.ap_in1k": _network(name, TENSORFLOW, *size, HALF) for name, size in B.items()},
    "tf_efficientnet_b8": _network("b8", TENSORFLOW, *B["b8"], HALF),
    "tf_efficientnet_b8.ra_in1k": _network("b8", TENSORFLOW, *B["b8"]),
    "tf_efficientnet_l2": _network("l2", TENSORFLOW, 475, 0.936),
    "tf_efficientnet_l2.ns_jft_in1k": _network("l2", TENSORFLOW, 800, 0.96),
    **{f"tf_efficientnet_{name}": _network(name, TENSORFLOW, *size, HALF) for name, size in LITE.items()},
    "tf_efficientnet_lite3": _network("lite3", TENSORFLOW, 300, 0.904, HALF, interpolation="bilinear"),
    "tf_efficientnet_lite4": _network("lite4", TENSORFLOW, 380, 0.92, HALF, interpolation="bilinear"),
    "tf_efficientnetv2_b0": _network("v2-b0", TENSORFLOW, 192, 0.875),
    "tf_efficientnetv2_b1": _network("v2-b1", TENSORFLOW, 192, 0.882),
    "tf_efficientnetv2_b2": _network("v2-b2", TENSORFLOW, 208, 0.89),
    "tf_efficientnetv2_b3": _network("v2-b3", TENSORFLOW, 240, 0.9, HALF, **SQUASH),
    "tf_efficientnetv2_b3.in1k": _network("v2-b3", TENSORFLOW, 240, 0.904),
    "tf_efficientnetv2_b3.in21k": _network("v2-b3", TENSORFLOW, 240, 0.904, HALF),
    "tf_efficientnetv2_s": _network("v2-s", TENSORFLOW, 300, 1.0, HALF),
    "tf_efficientnetv2_m": _network("v2-m", TENSORFLOW, 384, 1.0, HALF, **SQUASH),
    "tf_efficientnetv2_l": _network("v2-l", TENSORFLOW, 384, 1.0, HALF, **SQUASH),
    "tf_efficientnetv2_xl": _network("v2-xl", TENSORFLOW, 384, 1.0, HALF, **SQUASH),
    "efficientnet_b0": _network("b0", PYTORCH, 224, 0.875),
    "efficientnet_b0.ra4_e3600_r224_in1k": _network("b0", PYTORCH, 224, 0.9, HALF),
    "efficientnet_b1": _network("b1", PYTORCH, 240, 0.9, HALF),
    "efficientnet_b1.ft_in1k": _network("b1", PYTORCH, 224, 0.875),
    "efficientnet_b2": _network("b2", PYTORCH, 256, 0.875),
    "efficientnet_b3": _network("b3", PYTORCH, 288, 0.875),
    "efficientnet_b4": _network("b4", PYTORCH, 320, 0.875),
    "efficientnet_b5": _network("b5", PYTORCH, 448, 1.0, **SQUASH),
    "efficientnet_b5.sw_in12k": _network("b5", PYTORCH, 416, 0.95),
    **{f"efficientnet_{name}": _network(name, PYTORCH, *B[name]) for name in ("b6", "b7", "b8")},
    "efficientnet_l2": _network("l2", PYTORCH, 800, 0.961),
    **{f"efficientnet_{name}": _network(name, PYTORCH, *size) for name, size in LITE.items()},
    "efficientnet_lite3": _network("lite3", PYTORCH, 300, 0.904),
    "efficientnet_lite4": _network("lite4", PYTORCH, 380, 0.922),
    "efficientnetv2_s": _network("v2-s", PYTORCH, 288, 1.0),
    "efficientnetv2_m": _network("v2-m", PYTORCH, 320, 1.0),
    "efficientnetv2_l": _network("v2-l", PYTORCH, 384, 1.0),
    "efficientnetv2_xl": _network("v2-xl", PYTORCH, 384, 1.0),
}

DIALECT = Dialect(
    library="timm or geffnet",
    signs=(r"conv_stem\.weight", r"blocks\.\d+\.\d+\.(conv_dw|conv|conv_pw|conv_exp)\.weight"),
    top=TOP,
    blocks=BLOCKS,
    place="blocks.{stage}.{position}.",
    networks=NETWORKS,
    outputs=TIMM_OUTPUTS,
)
GEFFNET = dataclasses.replace(DIALECT, library="geffnet", outputs=GEFFNET_OUTPUTS)  # for its layers' names


# -- timm's config.json -----------------------------------------------------------------------------------------------


def described(config: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """A config.json of timm -> the architecture, fields of our configuration, and, where it says them, the processor's options.

    Raises ValueError for one that cannot be. Source: timm's models/_hub.py and data/config.py.
    """
    name, pretrained = config.get("architecture"), config.get("pretrained_cfg", {})
    if not isinstance(name, str) or not isinstance(pretrained, dict):
        raise ValueError("its architecture is not a text, or its pretrained_cfg is not an object")
    if isinstance(pretrained.get("tag"), str) and f"{name}.{pretrained['tag']}" in NETWORKS:
        name = f"{name}.{pretrained['tag']}"
    fields: dict[str, Any] = {}
    classes = config.get("num_classes", pretrained.get("num_classes"))
    if classes is not None:
        fields["num_labels"] = classes
    labels = config.get("label_names", pretrained.get("label_names"))
    if isinstance(labels, list) and all(isinstance(label, str) for label in labels) and len(labels) == classes:
        descriptions = config.get("label_descriptions", pretrained.get("label_descriptions"))
        descriptions = descriptions if isinstance(descriptions, dict) else {}
        fields["id2label"] = {number: str(descriptions.get(label, label)) for number, label in enumerate(labels)}
    wanted = ("input_size", "mean", "std")
    if not set(wanted) <= set(pretrained):
        return name, fields, None
    size, mean, std = (pretrained[key] for key in wanted)
    crop_pct, interpolation = pretrained.get("crop_pct", 0.875), pretrained.get("interpolation", "bicubic")
    crop_mode = pretrained.get("crop_mode", "center")
    if not _whole(size) or len(size) != 3 or size[1] != size[2]:
        raise ValueError(f"its input_size must be three whole numbers, channels and a square image, got {size!r:.80}")
    if isinstance(crop_pct, bool) or not isinstance(crop_pct, (int, float)) or not 0.1 <= crop_pct <= 1:
        raise ValueError(f"its crop_pct must be a number from 0.1 to 1, got {crop_pct!r:.80}")
    if str(interpolation) not in INTERPOLATIONS or str(crop_mode) not in CROP_MODES:
        known = f"{', '.join(INTERPOLATIONS)}, and {', '.join(CROP_MODES)}"
        raise ValueError(f"its interpolation {interpolation!r:.80} or crop_mode {crop_mode!r:.80} is not known here: {known}")
    fields |= {"image_size": size[1], "num_channels": size[0]}
    return name, fields, preprocessing(size[1], crop_pct, mean, std, interpolation, crop_mode)


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 1 <= value <= 1 << 13 for value in values)
