"""compare_with_torch(): a model of effnet_np beside a torch model, on the way forward and on the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from effnet_np.inspection.compare import compare, is_torch
from effnet_np.inspection.compare_gradients import compare_gradients
from effnet_np.inspection.report import Comparison
from effnet_np.module import Module


def compare_with_torch(
    model: Module,
    hf_model: Any,
    pixel_values: np.ndarray,
    *,
    layers: str | Sequence[str] = "*",
    forced: bool = False,
    tolerance: float | None = None,
    gradients: bool = False,
    labels: Any = None,
    output_gradient: np.ndarray | None = None,
) -> Comparison:
    """Run a model of effnet_np and a torch model on the same input, and compare them layer by layer: see `compare`.

    hf_model: transformers' EfficientNet, or any torch.nn.Module with the same module names, in eval mode; the modules of timm,
    geffnet, torchvision and lukemelas' package are paired with ours. pixel_values: (N, C, H, W) float32. gradients: compare
    the way back instead, of the loss with `labels` (of other libraries' models: the cross entropy) or from `output_gradient`
    (see `backward`), in its own order, in eval or in training mode. Raises ImportError without torch, TypeError, ValueError.
    """
    if not is_torch(hf_model):
        raise TypeError(f"hf_model must be a torch.nn.Module, got {type(hf_model).__name__}")
    if gradients:
        tolerance = 1e-4 if tolerance is None else tolerance
        return compare_gradients(model, hf_model, pixel_values, labels, output_gradient, layers, tolerance)
    return compare(model, hf_model, pixel_values=pixel_values, layers=layers, forced=forced, tolerance=tolerance)
