"""What Hugging Face's interface asks for around the network: fresh weights, files, checks of the input, the losses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from effnet_np import ops
from effnet_np.checkpoints.checkpoint import save_model
from effnet_np.hf_config import EfficientNetConfig
from effnet_np.layers import Conv2d, Linear
from effnet_np.loading import load_model
from effnet_np.module import Module


class PreTrainedModel(Module):
    """What both models share: initialisation, loading, saving, and the check of their input."""

    config: EfficientNetConfig
    image_processor: Any = None  # set by from_pretrained: weights carry the preprocessing that they were trained with

    def initialize(self, seed: int | None) -> None:
        """Weights drawn with `config.initializer_range` as deviation, biases zero, as HF; batch norms stay as they are."""
        generator = np.random.default_rng(seed)
        for _, module in self.named_modules():
            if isinstance(module, (Conv2d, Linear)):
                generator.standard_normal(out=module.weight, dtype=np.float32)
                module.weight *= np.float32(self.config.initializer_range)
                if module.bias is not None:
                    module.bias[...] = 0

    @property
    def dtype(self) -> np.dtype:
        """float32, or float64 after `to(np.float64)`."""
        return next(self.named_parameters())[1].dtype

    @property
    def device(self) -> str:
        """Always "cpu"."""
        return "cpu"

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, *, ignore_mismatched_sizes: bool = False, **options: Any):
        """Load a model, in eval mode, with `model.image_processor` where the source has one.

        source: a folder as `save_pretrained` makes it, an .h5 or .pth file, a hub id, or a short name: "b0".."b7" mean
        Google's on the hub, "lite0" the embedded one; or a checkpoint of timm, geffnet, torchvision, lukemelas or Keras (see
        weights/README.md), of which `architecture` says by the library's name what the file does not. `config` and
        `image_processor` (itself, a short name, a folder or a file) are used in place of the source's. Hub options: `revision`,
        `local_files_only`, `cache_dir`, `token`, `force_download`, `subfolder` (of a local folder, too); all others override
        fields of the configuration, such as `num_labels` for a new
        head, which needs `ignore_mismatched_sizes=True`, is initialised with `seed`, and named in a UserWarning. `torch_dtype`
        (or `dtype`) may be float32, "auto" or float64. NaN and infinite weights are refused unless `allow_nonfinite=True`.
        Raises FileNotFoundError, ValueError, or TypeError for an option that is none of these.
        """
        return load_model(cls, source, ignore_mismatched_sizes, options)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write config.json, model.safetensors and, where known, preprocessor_config.json; transformers loads the folder.

        A UserWarning names the fields of the configuration for which it cannot: those beyond Hugging Face's.
        """
        self.config.say_what_is_beyond_hf()
        save_model(self, folder)

    def described(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What is written beside the weights: config.json's fields, and preprocessor_config.json's where they are known."""
        config = self.config.to_dict() | {"architectures": [type(self).__name__]}
        return config, None if self.image_processor is None else self.image_processor.to_dict()


def check_pixel_values(config: EfficientNetConfig, pixel_values: Any, dtype: Any) -> np.ndarray:
    """pixel_values (N, C, H, W) in that dtype; ValueError or TypeError where a model of this configuration cannot take them."""
    if pixel_values is None:
        raise ValueError("You have to specify pixel_values: an array of shape (batch, channels, height, width)")
    if isinstance(pixel_values, Mapping):
        raise TypeError("pixel_values is what an image processor returns, a dictionary: call model(**inputs)")
    array = np.asarray(pixel_values)
    if array.dtype.kind != "f":
        hint = "run the image processor first, it turns whole-numbered pixels into network input"
        raise TypeError(f"pixel_values must be floating-point, got {array.dtype}: {hint}")
    if array.ndim != 4:
        raise ValueError(f"pixel_values must have 4 dimensions (batch, channels, height, width), got shape {array.shape}")
    if array.shape[1] != config.num_channels:
        channels = config.num_channels
        hint = "; this looks like channels last, the model takes channels first" if array.shape[3] == channels else ""
        raise ValueError(f"this model takes {channels} channels, got {array.shape[1]} in shape {array.shape}{hint}")
    if 0 in array.shape:
        raise ValueError(f"pixel_values of shape {array.shape} hold no pixels")
    config.check_image_size(*array.shape[2:])
    with np.errstate(over="ignore"):  # a number of float64 may be infinite in float32
        array = array.astype(dtype, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"pixel_values hold NaN or infinite numbers (in {array.dtype}, in which the model computes)")
    return array


def classification_loss(
    config: EfficientNetConfig, logits: np.ndarray, labels: np.ndarray, label_smoothing: float = 0.0
) -> np.ndarray:
    """HF's loss by `config.problem_type`, which is set here where it is None. Raises ValueError for labels that do not fit.

    `label_smoothing` is for single labels only, which is the loss that has it.
    """
    num_labels = config.num_labels
    if config.problem_type is None:
        if num_labels == 1:
            config.problem_type = "regression"
        elif num_labels > 1 and labels.dtype in (np.int32, np.int64):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    if config.problem_type == "single_label_classification":
        if labels.dtype.kind not in "iu" or labels.size != len(logits):
            wanted = f"{len(logits)} whole numbers, one an image"
            raise ValueError(f"single_label_classification needs labels of {wanted}, got {labels.dtype} {labels.shape}")
        return ops.cross_entropy(logits, labels.reshape(-1), label_smoothing=label_smoothing)
    if config.problem_type == "regression" and num_labels == 1:
        logits, labels = logits.reshape(-1), labels.reshape(-1)
    if labels.shape != logits.shape:
        raise ValueError(f"{config.problem_type} needs labels of shape {logits.shape}, got {labels.shape}")
    loss = ops.mse_loss if config.problem_type == "regression" else ops.bce_with_logits
    return loss(logits, labels.astype(logits.dtype))
