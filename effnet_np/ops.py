"""The mathematics of EfficientNet: one pure function an operation, arrays in, arrays out.

Letters: `N` batch, `C` channels, `H` and `W` height and width, `O` output channels, `K` kernel size. Layout is NCHW.
The result has the dtype of the input, float32 or float64; an input is never written to. `padding` is (top, bottom, left,
right) in pixels of zeros.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from effnet_np.operation import operation

Padding = tuple[int, int, int, int]

# -- large arrays in pieces -------------------------------------------------------------------------------------------

# Elementwise work goes through memory many times. Done in pieces of this many numbers, it stays in a core's cache.
CACHE_BLOCK = 1 << 16


def pieces(count: int, size: int) -> list[slice]:
    """`count` things of `size` numbers each, cut into slices of things that together stay in a core's cache."""
    step = max(1, CACHE_BLOCK // size)
    return [slice(first, first + step) for first in range(0, count, step)]


def in_pieces(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The same elementwise function, applied to one piece after the other: faster, and otherwise no different."""

    @functools.wraps(function)
    def apply(x):
        y = np.empty(x.shape, x.dtype)
        flat, out = x.reshape(-1), y.reshape(-1)
        with np.errstate(over="ignore"):  # exp(-x) is infinite far below zero, where x / inf is the right answer, 0
            for piece in pieces(flat.size, 1):
                out[piece] = function(flat[piece])
        return y

    return apply


# -- convolution ------------------------------------------------------------------------------------------------------


@operation
def conv2d(x, weight, bias=None, stride: int = 1, padding: Padding = (0, 0, 0, 0), groups: int = 1) -> np.ndarray:
    """2-D cross-correlation, as deep learning calls convolution: one of the three below, by the weight's shape.

    x (N, C, H, W), weight (O, C / groups, K, K), bias (O,) or None -> (N, O, H', W'), H' = (H + padding - K) // stride + 1.
    `groups` is 1 or, for a depthwise convolution, C: then each channel has one kernel, and O = C. Raises ValueError where
    shapes do not fit.
    """
    channels, kernel = x.shape[1], weight.shape[2:]
    if channels != weight.shape[1] * groups:
        raise ValueError(f"the input has {channels} channels but the weight {weight.shape} expects {weight.shape[1] * groups}")
    if groups not in (1, channels):
        raise ValueError(f"groups must be 1 or the number of channels ({channels}), got {groups}")
    if groups > 1 and weight.shape[0] != channels:
        wanted = f"one kernel a channel, a weight of shape {(channels, 1, *kernel)}"
        raise ValueError(f"a depthwise convolution of {channels} channels takes {wanted}, got {weight.shape}")
    x = pad2d(x, padding)
    if x.shape[2] < kernel[0] or x.shape[3] < kernel[1]:
        raise ValueError(f"the padded input {x.shape[2:]} is smaller than the kernel {kernel}: the image is too small")
    if groups == channels == weight.shape[0]:  # one channel in and out is a depthwise convolution, too
        y = depthwise_conv2d(x, weight[:, 0], stride)
    elif kernel == (1, 1):
        y = pointwise_conv2d(x[:, :, ::stride, ::stride], weight[:, :, 0, 0])
    else:
        y = full_conv2d(x, weight, stride)
    if bias is not None:
        y += bias[:, None, None]
    return y


@operation
def pad2d(x, padding: Padding) -> np.ndarray:
    """Zeros around each plane; a negative number crops instead, as in torch.nn.ZeroPad2d. (N, C, H, W) -> (N, C, H', W')."""
    top, bottom, left, right = padding
    n, c, height, width = x.shape
    if not any(padding):
        return x
    x = x[:, :, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0)]
    top, bottom, left, right = (max(p, 0) for p in padding)
    padded = np.zeros((n, c, x.shape[2] + top + bottom, x.shape[3] + left + right), x.dtype)
    padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    return padded


def pointwise_conv2d(x, weight) -> np.ndarray:
    """A 1x1 convolution mixes channels at each position alone, which is a matrix product.

    x (N, C, H, W), weight (O, C) -> (N, O, H, W)
    """
    n, c, height, width = x.shape
    y = weight @ x.reshape(n, c, height * width)  # (O, C) @ (N, C, H*W) -> (N, O, H*W)
    return y.reshape(n, -1, height, width)


def depthwise_conv2d(x, weight, stride: int = 1) -> np.ndarray:
    """Each channel with a kernel of its own: K*K shifted copies of the plane, each times one number, added up.

    x (N, C, H, W), already padded, weight (C, K, K) -> (N, C, H', W')
    """
    kernel_h, kernel_w = weight.shape[1:]
    out_h, out_w = (x.shape[2] - kernel_h) // stride + 1, (x.shape[3] - kernel_w) // stride + 1
    y = np.zeros((*x.shape[:2], out_h, out_w), x.dtype)
    for channels in pieces(x.shape[1], x.shape[2] * x.shape[3]):
        for i in range(kernel_h):
            for j in range(kernel_w):
                shifted = x[:, channels, i : i + stride * out_h : stride, j : j + stride * out_w : stride]
                y[:, channels] += shifted[:, :, :out_h, :out_w] * weight[channels, i, j, None, None]
    return y


def full_conv2d(x, weight, stride: int = 1) -> np.ndarray:
    """Every output channel sees a K x K window of every input channel: windows times a matrix (EfficientNet's stem).

    x (N, C, H, W), already padded, weight (O, C, K, K) -> (N, O, H', W')
    """
    n, c = x.shape[:2]
    out_channels, _, kernel_h, kernel_w = weight.shape
    windows = sliding_window_view(x, (kernel_h, kernel_w), axis=(2, 3))[:, :, ::stride, ::stride]  # (N, C, H', W', K, K)
    out_h, out_w = windows.shape[2:4]
    columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(n, c * kernel_h * kernel_w, out_h * out_w)
    return (weight.reshape(out_channels, -1) @ columns).reshape(n, out_channels, out_h, out_w)


# -- normalisation, pooling, linear -----------------------------------------------------------------------------------


@operation
def batch_norm(x, mean, variance, weight, bias, eps: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps) * weight + bias, for each channel: one multiplication and one addition a number.

    x (N, C, H, W), the others (C,) -> (N, C, H, W)
    """
    scale = weight / np.sqrt(variance + x.dtype.type(eps))
    y = x * scale[:, None, None]
    y += (bias - mean * scale)[:, None, None]
    return y


@operation
def batch_statistics(x) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (biased) variance of each channel over the batch and all positions: (N, C, H, W) -> (C,), (C,)."""
    return x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))


@operation
def global_average_pool(x) -> np.ndarray:
    """The mean of each plane: (N, C, H, W) -> (N, C, 1, 1)."""
    return x.mean(axis=(2, 3), keepdims=True)


@operation
def global_max_pool(x) -> np.ndarray:
    """The largest number of each plane: (N, C, H, W) -> (N, C, 1, 1)."""
    return x.max(axis=(2, 3), keepdims=True)


@operation
def flatten(x) -> np.ndarray:
    """(N, C, 1, 1) -> (N, C)"""
    return x.reshape(x.shape[:2])


@operation
def linear(x, weight, bias=None) -> np.ndarray:
    """x (N, C), weight (O, C), bias (O,) -> (N, O)"""
    y = x @ weight.T
    return y if bias is None else y + bias


@operation
def dropout(x, keep, rate: float) -> np.ndarray:
    """Zero where `keep` says no, and otherwise divided by 1 - rate, so that the mean stays.

    keep: booleans of x's shape, or of one that broadcasts to it.
    """
    return x * keep / x.dtype.type(1 - rate) if rate < 1 else np.zeros_like(x)


# -- two maps become one ----------------------------------------------------------------------------------------------


@operation
def scale_channels(x, gate) -> np.ndarray:
    """Each channel times one number, squeeze-excite's last step: x (N, C, H, W), gate (N, C, 1, 1) -> (N, C, H, W)."""
    return x * gate


@operation
def add(x, y) -> np.ndarray:
    """The residual connection: two arrays of the same shape, added."""
    return x + y


# -- activations ------------------------------------------------------------------------------------------------------


@operation
@in_pieces
def sigmoid(x) -> np.ndarray:
    """1 / (1 + exp(-x))"""
    return 1 / (1 + np.exp(-x))


@operation
@in_pieces
def swish(x) -> np.ndarray:
    """x * sigmoid(x), also called SiLU (Ramachandran et al., arXiv 1710.05941)."""
    return x / (1 + np.exp(-x))


@operation
def relu(x) -> np.ndarray:
    """max(x, 0)"""
    return np.maximum(x, 0)


@operation
def relu6(x) -> np.ndarray:
    """min(max(x, 0), 6)"""
    return np.clip(x, 0, 6)


@operation
@in_pieces
def gelu(x) -> np.ndarray:
    """x * Phi(x), Phi the normal distribution function, through erf (Hendrycks and Gimpel, arXiv 1606.08415)."""
    return x / 2 * (1 + erf(x * math.sqrt(0.5)))


@operation
@in_pieces
def gelu_new(x) -> np.ndarray:
    """GELU's tanh approximation: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


@operation
@in_pieces
def selu(x) -> np.ndarray:
    """scale * (x where x > 0, else alpha * (exp(x) - 1)); the constants keep mean 0 and variance 1 (arXiv 1706.02515)."""
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    return scale * (np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0)))


@operation
@in_pieces
def mish(x) -> np.ndarray:
    """x * tanh(softplus(x)) (Misra, arXiv 1908.08681)."""
    return x * np.tanh(softplus(x))


@operation
def softplus(x) -> np.ndarray:
    """log(1 + exp(x)), written such that it neither overflows nor loses small numbers."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


@operation
def custom(x, function) -> np.ndarray:
    """A function of one's own, which `config.hidden_act` may be. To learn, it needs an attribute `derivative`."""
    return function(x)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "swish": swish,
    "silu": swish,
    "relu": relu,
    "relu6": relu6,
    "gelu": gelu,
    "gelu_new": gelu_new,
    "selu": selu,
    "mish": mish,
}


@operation
def erf(x) -> np.ndarray:
    """The error function, which NumPy lacks: Python's own, number by number in float64."""
    return np.frompyfunc(math.erf, 1, 1)(x.astype(np.float64)).astype(x.dtype)


# -- probabilities and losses -----------------------------------------------------------------------------------------


@operation
def softmax(x) -> np.ndarray:
    """exp(x) / sum exp(x) over the last axis; the largest is subtracted first so that nothing overflows."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@operation
def log_softmax(x) -> np.ndarray:
    """log(softmax(x)) over the last axis, without losing small probabilities."""
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@operation
def cross_entropy(logits, labels, ignore_index: int = -100, label_smoothing: float = 0.0) -> np.ndarray:
    """Mean of -log(softmax(logits)[label]) over the rows whose label is not `ignore_index`.

    `label_smoothing` e counts the label for 1 - e, and all O of them for e / O each (Szegedy et al., arXiv 1512.00567).
    logits (N, O), labels (N,) whole numbers -> (). Raises ValueError for a label outside 0..O-1.
    """
    counted = labels != ignore_index
    wrong = counted & ((labels < 0) | (labels >= logits.shape[-1]))
    if wrong.any():
        raise ValueError(f"labels must lie between 0 and {logits.shape[-1] - 1}, got {labels[wrong].tolist()}")
    logarithms = log_softmax(logits)
    chosen = logarithms[np.flatnonzero(counted), labels[counted]]
    if label_smoothing:
        chosen = (1 - label_smoothing) * chosen + label_smoothing * logarithms[counted].mean(axis=-1)
    return -chosen.sum() / logits.dtype.type(counted.sum())


@operation
def mse_loss(x, target) -> np.ndarray:
    """Mean of (x - target)^2: two arrays of the same shape -> ()."""
    return np.square(x - target).mean()


@operation
def bce_with_logits(logits, target) -> np.ndarray:
    """Mean of -(target log sigmoid(x) + (1 - target) log(1 - sigmoid(x))): two arrays of the same shape -> ()."""
    return (softplus(logits) - logits * target).mean()
