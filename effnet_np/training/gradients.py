"""The derivative of each operation of ops.py: the same names in the same order, written by hand.

For y = ops.f(x, ...) and a loss L, gradients.f(dy, x, ...) takes dy = dL/dy, of y's shape, and then what `ops.f` was called
with. It gives dL/dx, of x's shape; a tuple where several arrays went in, one gradient each, in their order. `needs` says which
of them are asked for; the others may be None. Letters and layout are those of ops.py, and `dy` is never written to.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from effnet_np import ops
from effnet_np.ops import Padding, pieces


def elementwise(derivative: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Of f'(x), the function that the chain rule wants: dx = dy f'(x), one cache-sized piece after the other."""

    @functools.wraps(derivative)
    def apply(dy, x):
        dx = np.empty(x.shape, x.dtype)
        flat_dy, flat_x, out = dy.reshape(-1), x.reshape(-1), dx.reshape(-1)
        with np.errstate(over="ignore"):  # as in ops.in_pieces
            for piece in pieces(x.size, 1):
                np.multiply(flat_dy[piece], derivative(flat_x[piece]), out=out[piece])
        return dx

    return apply


# -- convolution ------------------------------------------------------------------------------------------------------


def conv2d(
    dy, x, weight, bias=None, stride: int = 1, padding: Padding = (0, 0, 0, 0), groups: int = 1, needs=(True, True, True)
):
    """One of the three below, by the weight's shape; dbias is dy summed over all but the channels.

    dy (N, O, H', W'), x (N, C, H, W), weight (O, C / groups, K, K) -> (dx, dweight, dbias)
    """
    needs_x, needs_weight, needs_bias = needs[0], needs[1], bias is not None and needs[2]
    dbias = sum_of_channels(dy) if needs_bias else None
    needs = needs_x, needs_weight
    padded = ops.pad2d(x, padding)
    if groups == x.shape[1] == weight.shape[0]:
        dx, dweight = depthwise_conv2d(dy, padded, weight[:, 0], stride, needs)
    elif weight.shape[2:] == (1, 1):
        dx, dweight = pointwise_conv2d(dy, padded[:, :, ::stride, ::stride], weight[:, :, 0, 0], needs)
        if needs_x and stride > 1:  # pixels that the stride leaves out do not matter
            seen, dx = dx, np.zeros_like(padded)
            dx[:, :, ::stride, ::stride] = seen
    else:
        dx, dweight = full_conv2d(dy, padded, weight, stride, needs)
    dx = pad2d(dx, x, padding) if needs_x else None
    return dx, dweight.reshape(weight.shape) if needs_weight else None, dbias


def pad2d(dy, x, padding: Padding) -> np.ndarray:
    """Padding with the opposite sign: what was added is cut off, what was cropped is zero."""
    return ops.pad2d(dy, tuple(-pixels for pixels in padding))


def pointwise_conv2d(dy, x, weight, needs=(True, True)):
    """y = W x at each position, so dx = W^T dy, and dW = dy x^T summed over the positions.

    dy (N, O, H, W), x (N, C, H, W), weight (O, C) -> (dx, dweight)
    """
    n, c, height, width = x.shape
    dy = dy.reshape(n, -1, height * width)  # (N, O, H*W)
    dx = (weight.T @ dy).reshape(x.shape) if needs[0] else None  # (C, O) @ (N, O, H*W) -> (N, C, H*W)
    dweight = None
    if needs[1]:
        x = x.reshape(n, c, height * width)
        dweight = dy[0] @ x[0].T  # (O, H*W) @ (H*W, C) -> (O, C)
        for picture in range(1, n):
            dweight += dy[picture] @ x[picture].T
    return dx, dweight


def depthwise_conv2d(dy, x, weight, stride: int = 1, needs=(True, True)):
    """y = sum over (i, j) of shift(x, i, j) w[i, j]: dx adds dy w[i, j] back to where each shifted copy came from, and
    dw[i, j] is the product of dy with that shifted copy, summed over pictures and positions.

    dy (N, C, H', W'), x (N, C, H, W), already padded, weight (C, K, K) -> (dx, dweight)
    """
    (kernel_h, kernel_w), (out_h, out_w) = weight.shape[1:], dy.shape[2:]
    dx = np.zeros_like(x) if needs[0] else None
    dweight = np.zeros_like(weight) if needs[1] else None
    for channels in pieces(x.shape[1], x.shape[2] * x.shape[3]):
        for picture in range(len(x)):
            part = dy[picture, channels]  # (c, H', W')
            for i in range(kernel_h):
                for j in range(kernel_w):
                    rows, columns = slice(i, i + stride * out_h, stride), slice(j, j + stride * out_w, stride)
                    if dx is not None:
                        dx[picture, channels, rows, columns][:, :out_h, :out_w] += part * weight[channels, i, j, None, None]
                    if dweight is not None:
                        shifted = x[picture, channels, rows, columns][:, :out_h, :out_w]
                        dweight[channels, i, j] += np.einsum("chw,chw->c", part, shifted)
    return dx, dweight


def full_conv2d(dy, x, weight, stride: int = 1, needs=(True, True)):
    """y = W columns, columns the K x K windows of x: dW = dy columns^T; dcolumns = W^T dy, added back to where they came from.

    dy (N, O, H', W'), x (N, C, H, W), already padded, weight (O, C, K, K) -> (dx, dweight)
    """
    n, c = x.shape[:2]
    out_channels, _, kernel_h, kernel_w = weight.shape
    out_h, out_w = dy.shape[2:]
    dy = dy.reshape(n, out_channels, out_h * out_w)
    dx = np.zeros_like(x) if needs[0] else None
    dweight = np.zeros((out_channels, c * kernel_h * kernel_w), x.dtype) if needs[1] else None
    for picture in range(n):
        if dweight is not None:
            windows = sliding_window_view(x[picture], (kernel_h, kernel_w), axis=(1, 2))[:, ::stride, ::stride]
            columns = windows.transpose(0, 3, 4, 1, 2).reshape(-1, out_h * out_w)  # (C*K*K, H'*W')
            dweight += dy[picture] @ columns.T
        if dx is not None:
            dcolumns = (weight.reshape(out_channels, -1).T @ dy[picture]).reshape(c, kernel_h, kernel_w, out_h, out_w)
            for i in range(kernel_h):
                for j in range(kernel_w):
                    seen = dx[picture, :, i : i + stride * out_h : stride, j : j + stride * out_w : stride]
                    seen[:, :out_h, :out_w] += dcolumns[:, i, j]
    return dx, None if dweight is None else dweight.reshape(weight.shape)


# -- normalisation, pooling, linear -----------------------------------------------------------------------------------


def sum_of_channels(x) -> np.ndarray:
    """(N, C, H, W) -> (C,); along each plane first, where NumPy adds in pairs, which is more exact."""
    return x.reshape(*x.shape[:2], -1).sum(axis=2).sum(axis=0)


def batch_norm(dy, x, mean, variance, weight, bias, eps: float, needs=(True,) * 5):
    """With s = sqrt(variance + eps): dx = dy w / s, dbias = sum dy, dw = sum dy (x - mean) / s, dmean = -w / s sum dy,
    dvariance = -w / (2 s^3) sum dy (x - mean).

    This is all for stored statistics. The batch's own depend on x as well, which adds what `batch_statistics` gives.
    dy, x (N, C, H, W), the others (C,) -> (dx, dmean, dvariance, dweight, dbias)
    """
    root = np.sqrt(variance + x.dtype.type(eps))
    scale = weight / root
    dx = dy * scale[:, None, None] if needs[0] else None
    if not any(needs[1:]):
        return dx, None, None, None, None
    total, product = sum_of_channels(dy), np.zeros_like(mean)  # sum dy, sum dy (x - mean)
    for channels in pieces(x.shape[1], x.shape[2] * x.shape[3]):
        for picture in range(len(x)):
            centred = x[picture, channels] - mean[channels, None, None]
            centred *= dy[picture, channels]
            product[channels] += centred.reshape(len(centred), -1).sum(axis=1)
    return dx, -scale * total, -scale / (2 * root * root) * product, product / root, total


def batch_statistics(dy, x) -> np.ndarray:
    """The mean changes by dx / n and the variance by 2 (x - mean) dx / n, n numbers a channel.

    dy = (dmean, dvariance), each (C,), x (N, C, H, W) -> dx
    """
    dmean, dvariance = dy
    count = x.dtype.type(x.size // x.shape[1])
    mean, slope = x.mean(axis=(0, 2, 3)), 2 * dvariance / count
    dx = x * slope[:, None, None]
    dx += (dmean / count - mean * slope)[:, None, None]
    return dx


def global_average_pool(dy, x) -> np.ndarray:
    """Each position has an equal share: dx = dy / (H W), one number seen at every position. dy (N, C, 1, 1) -> (N, C, H, W)"""
    return np.broadcast_to(dy / x.dtype.type(x.shape[2] * x.shape[3]), x.shape)


def global_max_pool(dy, x) -> np.ndarray:
    """All of it goes to the largest number's place, the first where several are. dy (N, C, 1, 1) -> (N, C, H, W)"""
    n, c, height, width = x.shape
    dx = np.zeros((n, c, height * width), x.dtype)
    place = x.reshape(n, c, -1).argmax(axis=2)[:, :, None]
    np.put_along_axis(dx, place, dy.reshape(n, c, 1), axis=2)
    return dx.reshape(x.shape)


def flatten(dy, x) -> np.ndarray:
    """(N, C) -> (N, C, 1, 1)"""
    return dy.reshape(x.shape)


def linear(dy, x, weight, bias=None, needs=(True, True, True)):
    """y = x W^T + b, so dx = dy W, dW = dy^T x, db = sum dy. dy (N, O), x (N, C), weight (O, C) -> (dx, dweight, dbias)"""
    dx = dy @ weight if needs[0] else None
    dweight = dy.T @ x if needs[1] else None
    return dx, dweight, dy.sum(axis=0) if bias is not None and needs[2] else None


def dropout(dy, x, keep, rate: float) -> np.ndarray:
    """The same mask and the same factor as forward: where a number was dropped, nothing comes back."""
    return ops.dropout(dy, keep, rate)


# -- two maps become one ----------------------------------------------------------------------------------------------


def scale_channels(dy, x, gate):
    """y = x g: dx = dy g, dg = dy x summed over the plane. dy, x (N, C, H, W), gate (N, C, 1, 1) -> (dx, dgate)"""
    return dy * gate, np.einsum("nchw,nchw->nc", dy, x)[:, :, None, None]


def add(dy, x, y):
    """A sum passes its gradient on to both, unchanged: this is why a residual network learns at any depth."""
    return dy, dy


# -- activations ------------------------------------------------------------------------------------------------------


@elementwise
def sigmoid(x) -> np.ndarray:
    """s (1 - s), s = sigmoid(x)"""
    s = ops.sigmoid(x)
    return s * (1 - s)


@elementwise
def swish(x) -> np.ndarray:
    """s + x s (1 - s) = s (1 + x (1 - s)), s = sigmoid(x)"""
    s = ops.sigmoid(x)
    return s * (1 + x * (1 - s))


@elementwise
def relu(x) -> np.ndarray:
    """1 where x > 0, else 0 (at 0 it is a convention, PyTorch's)"""
    return (x > 0).astype(x.dtype)


@elementwise
def relu6(x) -> np.ndarray:
    """1 where 0 < x < 6, else 0"""
    return ((x > 0) & (x < 6)).astype(x.dtype)


@elementwise
def gelu(x) -> np.ndarray:
    """Phi(x) + x phi(x), phi(x) = exp(-x^2 / 2) / sqrt(2 pi) being Phi's own derivative"""
    return (1 + ops.erf(x * math.sqrt(0.5))) / 2 + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@elementwise
def gelu_new(x) -> np.ndarray:
    """With t = tanh(u), u = sqrt(2/pi) (x + 0.044715 x^3): (1 + t) / 2 + x/2 (1 - t^2) u'"""
    root = math.sqrt(2 / math.pi)
    t = np.tanh(root * (x + 0.044715 * x * x * x))
    return (1 + t) / 2 + x / 2 * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x)


@elementwise
def selu(x) -> np.ndarray:
    """scale where x > 0, else scale alpha exp(x)"""
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    return np.where(x > 0, x.dtype.type(scale), scale * alpha * np.exp(np.minimum(x, 0)))


@elementwise
def mish(x) -> np.ndarray:
    """With t = tanh(softplus(x)): t + x (1 - t^2) sigmoid(x), sigmoid being softplus' derivative"""
    t = np.tanh(ops.softplus(x))
    return t + x * (1 - t * t) * ops.sigmoid(x)


@elementwise
def softplus(x) -> np.ndarray:
    """sigmoid(x)"""
    return ops.sigmoid(x)


def custom(dy, x, function) -> np.ndarray:
    """dy times `function.derivative`, an attribute that a function of one's own needs only if the network is to learn."""
    if not callable(getattr(function, "derivative", None)):
        name = getattr(function, "__name__", type(function).__name__)
        hint = "set its attribute `derivative` to a function from x to f'(x), arrays of one shape"
        raise ValueError(f"the derivative of the activation {name} is not known: {hint}")
    return dy * function.derivative(x)


@elementwise
def erf(x) -> np.ndarray:
    """2 / sqrt(pi) exp(-x^2)"""
    return 2 / math.sqrt(math.pi) * np.exp(-x * x)


# -- probabilities and losses: dy is (), the gradient of the loss itself, 1 unless the loss is part of a larger one -----


def softmax(dy, x) -> np.ndarray:
    """y_i changes by y_i (dx_i - sum_j y_j dx_j): dx = y (dy - sum dy y), sums over the last axis."""
    y = ops.softmax(x)
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


def log_softmax(dy, x) -> np.ndarray:
    """dx = dy - softmax(x) sum dy, the sum over the last axis."""
    return dy - ops.softmax(x) * dy.sum(axis=-1, keepdims=True)


def cross_entropy(dy, logits, labels, ignore_index: int = -100, label_smoothing: float = 0.0) -> np.ndarray:
    """(softmax(logits) - target) / rows, target being 1 at the label: the probability given, less the one that was right.

    Smoothed by e, target is 1 - e at the label, and e / O everywhere on top. logits (N, O), labels (N,) -> (N, O)
    """
    counted = np.flatnonzero(labels != ignore_index)
    dx = np.zeros_like(logits)
    dx[counted] = ops.softmax(logits[counted]) - logits.dtype.type(label_smoothing / logits.shape[-1])
    dx[counted, labels[counted]] -= logits.dtype.type(1 - label_smoothing)
    return dx * (dy / logits.dtype.type(len(counted)))


def mse_loss(dy, x, target) -> np.ndarray:
    """2 (x - target) / count"""
    return (x - target) * (2 * dy / x.dtype.type(x.size))


def bce_with_logits(dy, logits, target) -> np.ndarray:
    """(sigmoid(logits) - target) / count"""
    return (ops.sigmoid(logits) - target) * (dy / logits.dtype.type(logits.size))
