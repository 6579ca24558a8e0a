"""Where in a picture the evidence for a class lies: three methods that ask the gradient, and one that covers things up.

All take pixel_values (N, C, H, W) and a class for each picture, (N,), and give one number a position, in the model's dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from effnet_np.tracing.trace import Trace
from effnet_np.training.backward import Gradients, backward

LAST = "efficientnet.encoder.top_activation"  # the layer whose output is pooled


def gradcam(model: Any, pixel_values: np.ndarray, classes: np.ndarray, layer: str = LAST) -> np.ndarray:
    """ReLU of a layer's channels, each times the mean of its gradient (Selvaraju et al., arXiv 1610.02391): -> (N, h, w).

    At the last layer this is the class activation map without the bias, cut off at 0, divided by h w: there the gradient is the
    classifier's weight at every position. At an earlier one it is finer, and no longer exact.
    """
    with Trace(model, layers=layer) as trace:
        step = _logit(model, pixel_values, classes, activations=layer, pixel_gradient=False)
    if layer not in trace or trace[layer].ndim != 4 or layer not in step.activations:
        raise ValueError(f"Grad-CAM needs the name of one layer that gives maps (N, C, h, w), such as {LAST!r}; got {layer!r}")
    weights = step.activations[layer].mean(axis=(2, 3))  # (N, C)
    return np.maximum(np.einsum("nchw,nc->nhw", trace[layer], weights), 0)


def saliency(model: Any, pixel_values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """|d logit / d pixel|, the largest of the channels (Simonyan et al., arXiv 1312.6034): -> (N, H, W)."""
    gradient = _logit(model, pixel_values, classes).pixel_values
    assert gradient is not None
    return np.abs(gradient).max(axis=1)


def integrated_gradients(model: Any, pixel_values: np.ndarray, classes: np.ndarray, steps: int = 32) -> np.ndarray:
    """Each pixel's share of logit(picture) - logit(grey): -> (N, H, W), whose sum is that difference as `steps` grows.

    (x - x0) times the mean of d logit / d x over the straight way from x0 to x, summed over channels (Sundararajan et al.,
    arXiv 1703.01365). x0 is 0, which is the mean colour that the network was trained with. The gradient changes most near x0,
    so the steps are closer there: at u^2 of the way, u equally spaced, each counting for 2 u.
    """
    total = np.zeros_like(pixel_values)
    for step in range(steps):
        u = pixel_values.dtype.type((step + 0.5) / steps)
        total += 2 * u * _logit(model, u * u * pixel_values, classes).pixel_values
    return (pixel_values * total).sum(axis=1) / pixel_values.dtype.type(steps)


def occlusion(model: Any, pixel_values: np.ndarray, classes: np.ndarray, squares: int = 8) -> np.ndarray:
    """By how much the logit falls while a square is covered in grey (Zeiler and Fergus, arXiv 1311.2901): -> (N, H, W).

    A square has the side of 2 / squares of the shorter edge and moves by half of that; each pixel has the mean of the squares
    that cover it. No gradient: the network is only asked.
    """
    height, width = pixel_values.shape[2:]
    side = max(2, 2 * min(height, width) // squares)
    rows = np.arange(len(pixel_values))
    whole = model(pixel_values, return_dict=True).logits[rows, classes]
    total, count = np.zeros((len(rows), height, width), pixel_values.dtype), np.zeros((height, width), pixel_values.dtype)
    for top in _places(height, side):
        for left in _places(width, side):
            part = np.s_[top : top + side, left : left + side]
            covered = pixel_values.copy()
            covered[:, :, part[0], part[1]] = 0
            fall = whole - model(covered, return_dict=True).logits[rows, classes]
            total[:, part[0], part[1]] += fall[:, None, None]
            count[part] += 1
    return total / count


def _places(length: int, side: int) -> list[int]:
    """Where squares start that cover a line, each half over the one before, the last at the end."""
    return sorted({*range(0, max(1, length - side), max(1, side // 2)), max(0, length - side)})


def _logit(model: Any, pixel_values: np.ndarray, classes: np.ndarray, **options: Any) -> Gradients:
    """Gradients of the sum over pictures of each one's own logit; no picture's depends on another's."""
    chosen = np.zeros((len(classes), model.num_labels), pixel_values.dtype)
    chosen[np.arange(len(classes)), classes] = 1
    return backward(model, pixel_values, output_gradient=chosen, parameters=None, **options)
