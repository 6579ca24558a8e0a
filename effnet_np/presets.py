"""The published networks by their short names: how each is grown, and in what else it differs from EfficientNet-B0.

b0 to b7: HF's convert_efficientnet_to_pytorch.py; b8, l2: TensorFlow's tpu/efficientnet; lite0 to lite4: its efficientnet/lite;
v2: Tan and Le, "EfficientNetV2: Smaller Models and Faster Training", arXiv 2104.00298 (Table 4 is S), and google/automl.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """Width and depth multiply channels and blocks (architecture.py); the image is `image_size` pixels high and wide."""

    width: float
    depth: float
    image_size: int
    dropout: float
    fields: dict[str, Any]  # of the configuration


def odd(*blocks: int) -> dict[str, Any]:
    """These blocks of stride 2 see an image of odd size at the native resolution: HF pads them on all sides."""
    return {"depthwise_padding": list(blocks)}


def version2(stem: int, out_channels: list[int], repeats: list[int]) -> dict[str, Any]:
    """EfficientNetV2: 3x3 kernels alone, three stages of Fused-MBConv, SAME padding; the stages' channels and blocks differ."""
    stages = len(repeats)  # 6, or 7
    return {
        "fused_stages": 3,
        "padding": "same",
        "in_channels": [stem, *out_channels[:-1]],
        "out_channels": out_channels,
        "num_block_repeats": repeats,
        "kernel_sizes": [3] * stages,
        "strides": [1, 2, 2, 2, 1, 2, 1][:stages],
        "expand_ratios": [1, 4, 4, 4, 6, 6, 6][:stages],
        "depthwise_padding": [],
    }


LITE = {"squeeze_expansion_ratio": 0.0, "hidden_act": "relu6", "fix_head_stem": True}
LARGER_LITE = LITE | {"padding": "same"}
V2_BASE = version2(32, [16, 32, 48, 96, 112, 192], [1, 2, 2, 3, 5, 8])

PRESETS: dict[str, Preset] = {
    "b0": Preset(1.0, 1.0, 224, 0.2, odd()),
    "b1": Preset(1.0, 1.1, 240, 0.2, odd(16)),
    "b2": Preset(1.1, 1.2, 260, 0.3, odd(5, 8, 16)),
    "b3": Preset(1.2, 1.4, 300, 0.3, odd(5, 18)),
    "b4": Preset(1.4, 1.8, 380, 0.4, odd(6)),
    "b5": Preset(1.6, 2.2, 456, 0.4, odd(13, 27)),
    "b6": Preset(1.8, 2.6, 528, 0.5, odd(31)),
    "b7": Preset(2.0, 3.1, 600, 0.5, odd(18)),
    "lite0": Preset(1.0, 1.0, 224, 0.2, LITE),
    "lite1": Preset(1.0, 1.1, 240, 0.2, LARGER_LITE),
    "lite2": Preset(1.1, 1.2, 260, 0.3, LARGER_LITE),
    "lite3": Preset(1.2, 1.4, 280, 0.3, LARGER_LITE),
    "lite4": Preset(1.4, 1.8, 300, 0.3, LARGER_LITE),
    "b8": Preset(2.2, 3.6, 672, 0.5, odd()),
    "l2": Preset(4.3, 5.3, 800, 0.5, odd()),
    "v2-b0": Preset(1.0, 1.0, 224, 0.2, V2_BASE),
    "v2-b1": Preset(1.0, 1.1, 240, 0.2, V2_BASE),
    "v2-b2": Preset(1.1, 1.2, 260, 0.3, V2_BASE),
    "v2-b3": Preset(1.2, 1.4, 300, 0.3, V2_BASE),
    "v2-s": Preset(1.0, 1.0, 384, 0.2, version2(24, [24, 48, 64, 128, 160, 256], [2, 4, 4, 6, 9, 15])),
    "v2-m": Preset(1.0, 1.0, 480, 0.3, version2(24, [24, 48, 80, 160, 176, 304, 512], [3, 5, 5, 7, 14, 18, 5])),
    "v2-l": Preset(1.0, 1.0, 480, 0.4, version2(32, [32, 64, 96, 192, 224, 384, 640], [4, 7, 7, 10, 19, 25, 7])),
}
