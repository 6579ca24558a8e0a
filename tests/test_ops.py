"""Every operation against PyTorch: shape, dtype and values, in float32 and in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from effnet_np import ops
from effnet_np.layers import Dropout

from helpers import assert_same

TOLERANCE = {np.float32: 2e-6, np.float64: 1e-13}


def check(ours, theirs, *shapes, scale=1.0, tolerance=None):
    """ours(arrays) equals theirs(tensors) for random arrays of these shapes, in both dtypes; inputs stay as they were."""
    for dtype in (np.float32, np.float64):
        generator = np.random.default_rng(0)
        arrays = [(generator.standard_normal(shape) * scale).astype(dtype) for shape in shapes]
        copies = [array.copy() for array in arrays]
        expected = theirs(*(torch.from_numpy(copy.copy()) for copy in copies))
        assert_same(ours(*arrays), expected, tolerance=tolerance or TOLERANCE[dtype])
        for array, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("size", [(7, 7), (14, 9), (33, 40)])
def test_depthwise(size, kernel, stride):
    check(
        lambda x, w: ops.conv2d(x, w, stride=stride, groups=70),
        lambda x, w: F.conv2d(x, w, stride=stride, groups=70),
        (2, 70, *size),
        (70, 1, kernel, kernel),
    )


def test_depthwise_in_more_than_one_cache_block():
    assert ops.CACHE_BLOCK < 130 * 130 * 20
    check(
        lambda x, w: ops.depthwise_conv2d(x, w[:, 0], 2),
        lambda x, w: F.conv2d(x, w, stride=2, groups=20),
        (1, 20, 130, 131),
        (20, 1, 5, 5),
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise(stride):
    check(
        lambda x, w, b: ops.conv2d(x, w, b, stride=stride),
        lambda x, w, b: F.conv2d(x, w, b, stride=stride),
        (3, 16, 9, 11),
        (24, 16, 1, 1),
        (24,),
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kernel", [2, 3])
def test_full_convolution(channels, kernel):
    check(
        lambda x, w, b: ops.conv2d(x, w, b, stride=2, padding=(0, 1, 0, 1)),
        lambda x, w, b: F.conv2d(F.pad(x, (0, 1, 0, 1)), w, b, stride=2),
        (2, channels, 17, 20),
        (8, channels, kernel, kernel),
        (8,),
    )


def test_convolution_refuses_what_does_not_fit():
    x = np.zeros((1, 4, 2, 2), np.float32)
    with pytest.raises(ValueError, match="4 channels but the weight .* expects 3"):
        ops.conv2d(x, np.zeros((8, 3, 1, 1), np.float32))
    with pytest.raises(ValueError, match="groups must be 1 or the number of channels"):
        ops.conv2d(x, np.zeros((8, 2, 1, 1), np.float32), groups=2)
    with pytest.raises(ValueError, match="image is too small"):
        ops.conv2d(x, np.zeros((8, 4, 3, 3), np.float32))


@pytest.mark.parametrize("padding", [(0, 1, 0, 1), (1, 2, 2, 1), (-1, 0, -1, 0), (2, -1, 0, 3), (0, 0, 0, 0)])
def test_pad(padding):
    top, bottom, left, right = padding
    check(lambda x: ops.pad2d(x, padding), lambda x: F.pad(x, (left, right, top, bottom)), (2, 3, 6, 7))


def test_batch_norm():
    check(
        lambda x, m, v, w, b: ops.batch_norm(x, m, v * v, w, b, 1e-3),
        lambda x, m, v, w, b: F.batch_norm(x, m, v * v, w, b, eps=1e-3),
        (2, 40, 60, 61),
        *[(40,)] * 4,
        tolerance=4e-6,  # of the largest number: PyTorch's own order of operations differs
    )


OTHER_NAMES = {"swish": F.silu, "gelu_new": lambda x: F.gelu(x, approximate="tanh")}  # PyTorch's, where they differ


@pytest.mark.parametrize("name", sorted(ops.ACTIVATIONS))
def test_activations(name):
    theirs = OTHER_NAMES.get(name) or getattr(F, name)
    for scale in (0.1, 3.0, 200.0):  # swish(200) and swish(-200) must neither overflow nor warn
        check(ops.ACTIVATIONS[name], theirs, (2, 5, 33, 41), scale=scale)


def test_activations_more_numbers_than_a_cache_block():
    check(ops.swish, F.silu, (3, ops.CACHE_BLOCK + 7))


def test_activations_pass_nan_on():
    for function in {*ops.ACTIVATIONS.values(), ops.sigmoid}:
        assert np.isnan(function(np.array([np.nan, 1.0], np.float32))[0]), function.__name__


def test_sigmoid_and_erf():
    check(ops.sigmoid, torch.sigmoid, (4, 1000), scale=30)
    for scale in (0.01, 1, 4):
        check(ops.erf, torch.erf, (4, 1000), scale=scale)


def test_pools_and_linear():
    check(ops.global_average_pool, lambda x: F.adaptive_avg_pool2d(x, 1), (2, 5, 7, 9))
    check(ops.global_max_pool, lambda x: F.adaptive_max_pool2d(x, 1), (2, 5, 7, 9))
    check(ops.linear, F.linear, (3, 20), (7, 20), (7,))


def test_softmax():
    check(ops.softmax, lambda x: F.softmax(x, -1), (4, 1000), scale=50)
    check(ops.log_softmax, lambda x: F.log_softmax(x, -1), (4, 10), scale=50)


def test_losses():
    labels = np.array([3, 0, -100, 9])
    check(lambda x: ops.cross_entropy(x, labels), lambda x: F.cross_entropy(x, torch.from_numpy(labels)), (4, 10), scale=5)
    check(ops.mse_loss, F.mse_loss, (4, 10), (4, 10))
    check(ops.bce_with_logits, F.binary_cross_entropy_with_logits, (4, 10), (4, 10), scale=3)
    with pytest.raises(ValueError, match=r"between 0 and 9, got \[10\]"):
        ops.cross_entropy(np.zeros((1, 10)), np.array([10]))


def test_dropout_keeps_the_mean_and_the_seed():
    x = np.ones((100, 1000), np.float32)
    layer = Dropout(0.3, np.random.default_rng(0)).train()
    dropped = layer(x)
    assert dropped.dtype == np.float32
    assert set(np.unique(dropped)) == {0, np.float32(1) / np.float32(0.7)}
    assert abs((dropped == 0).mean() - 0.3) < 0.01
    np.testing.assert_array_equal(dropped, Dropout(0.3, np.random.default_rng(0)).train()(x))
    assert not Dropout(1.0, np.random.default_rng(0)).train()(x).any()
    assert layer.eval()(x) is x


def test_a_channel_multiplier_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"depthwise convolution of 4 channels takes one kernel a channel.*\(4, 1, 3, 3\)"):
        ops.conv2d(np.zeros((1, 4, 8, 8), np.float32), np.zeros((8, 1, 3, 3), np.float32), groups=4)
