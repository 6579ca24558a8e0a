"""Where float32 could overflow inside of a network with ReLU6, and nothing afterwards would show it.

A sum of finite numbers beyond 3.4e38 becomes infinite or NaN, by the order of its terms, and the kernels' order is not
NumPy's. Most activations hand that on into the logits, where it is seen; ReLU6 makes 6 of infinity, and the answer looks like
any other. But behind a ReLU6 every number lies between 0 and 6, so that the weights alone tell what the next sums can reach:
at most the sum of their absolute values times the largest input.
"""

from __future__ import annotations

import math
import re

import numpy as np

from effnet_np.kernels.table import CLAMPS
from effnet_np.layer_specs import layer_specs

LIMIT = float(np.finfo(np.float32).max) / 2  # half of it, for rounding
WINOGRAD_GAIN = 256.0  # more than the transforms of winograd.py can make of that sum, which is 238 times it


def largest_pixel(state: dict[str, np.ndarray], config) -> float:
    """The largest absolute value in an image with which nothing can overflow unseen: infinity for activations that show it
    anyway, and 0 or less where the weights alone can do it. state: the model's weights, under their names."""
    _, high = CLAMPS.get(config.hidden_act, (0.0, math.inf))
    if math.isinf(high):
        return math.inf

    def absolute_sums(layer, tensor):  # (O, ...) -> (O,): the sum of the absolute values that make one output
        array = state.get(f"{layer.name}.{tensor}", state.get(f"{layer.name.removeprefix('efficientnet.')}.{tensor}"))
        return np.zeros(1) if array is None else np.abs(array).reshape(len(array), -1).sum(1, dtype=np.float64)

    limit = LIMIT / (WINOGRAD_GAIN if config.fused_stages else 1.0)
    # A channel's numbers are at most slope * pixel + reach; slope is 0 behind the stem, whose ReLU6 bounds what it hands on.
    slope, reach, most = np.ones(config.num_channels), np.zeros(config.num_channels), math.inf
    trunk, part = high, ""  # what the blocks can have handed on so far: all that they have added
    for index, layer in enumerate(layer_specs(config.architecture(), config.image_size, config.image_size)):
        weight, bias = absolute_sums(layer, "weight"), absolute_sums(layer, "bias")
        if layer.kind == "norm":
            scale = weight / np.sqrt(absolute_sums(layer, "running_var") + config.batch_norm_eps)
            slope, reach = slope * scale, (reach + absolute_sums(layer, "running_mean")) * scale + bias
            trunk += reach.max() if layer.name.endswith("project_bn") else 0.0  # the only one without an activation behind it
        elif index == 0:
            slope, reach = weight, bias + 0 * weight
        else:  # a block's first layer, and the head's, get what was handed on; the others what a ReLU6 has bounded
            before, part = part, re.sub(r"(.*blocks\.\d+\.)?.*", r"\1", layer.name)
            slope, reach = 0 * weight, weight * (trunk if part != before else high) + bias
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.where(slope > 0, (limit - reach) / slope, np.where(reach <= limit, math.inf, -math.inf))
        most = min(most, float(left.min()))
    return most
